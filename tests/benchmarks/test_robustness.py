"""What the robustness benchmark does to a scan, on a phantom whose place in the world is known."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from benchmarks import robustness

#: LAS, 1 x 1 x 1.5 mm.
AFFINE = np.array([[-1.0, 0, 0, 30], [0, 1, 0, -35], [0, 0, 1.5, -20], [0, 0, 0, 1]])


@pytest.fixture
def scan() -> robustness.Scan:
    grid = np.indices((60, 70, 50))
    ball = ((grid[0] - 25) ** 2 + (grid[1] - 40) ** 2 + (1.5 * (grid[2] - 22)) ** 2) < 15**2
    return ndimage.gaussian_filter(1000.0 * ball, 1).astype(np.float32), AFFINE


def middle(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return nib.affines.apply_affine(affine, ndimage.center_of_mass(data))


@pytest.mark.parametrize("change", [name for name in robustness.CHANGES if not name.startswith(("cut", "defaced"))])
def test_the_head_stays_where_it_was(scan, change):
    data, affine = robustness.CHANGES[change][1](scan, np.random.default_rng(0))
    np.testing.assert_allclose(middle(data, affine), middle(*scan), atol=0.6 if change.startswith("bias") else 0.15)
    assert data.min() >= 0


def test_coarser_voxels_hold_the_same_amount(scan):
    data, affine = robustness.coarser(scan, np.random.default_rng(0), spacing_mm=(2.0, 2.0, 3.0))
    np.testing.assert_allclose(nib.affines.voxel_sizes(affine), (2, 2, 3))
    amount = [(d * np.prod(nib.affines.voxel_sizes(a))).sum() for d, a in (scan, (data, affine))]
    assert amount[1] == pytest.approx(amount[0], rel=0.02)


def test_the_top_is_cut(scan):
    data, affine = robustness.cut(scan, np.random.default_rng(0), top_mm=9)
    highest = np.argwhere(data > 200)[:, 2].max()
    assert affine[2, 3] == AFFINE[2, 3]
    assert 1.5 * (np.argwhere(scan[0] > 200)[:, 2].max() - highest) == pytest.approx(9, abs=1.6)


def test_a_head_that_moves_is_blurred_and_one_that_does_not_is_as_it_was(scan):
    still, _ = robustness.moved(scan, np.random.default_rng(0), times=0, degrees=9, mm=9)
    np.testing.assert_allclose(still, scan[0], atol=1e-2)
    blurred, _ = robustness.moved(scan, np.random.default_rng(0), times=4, degrees=2, mm=1)
    assert 0.01 < np.abs(blurred - scan[0])[scan[0] > 500].mean() / 1000 < 0.1


def test_a_ghost_is_half_a_view_away():
    data = np.ones((4, 70, 4), np.float32)
    data[2, 10, 2] = 101
    seen, _ = robustness.ghost((data, AFFINE), np.random.default_rng(0), percent=10)
    assert seen[2, 45, 2] == pytest.approx(1 + 10.1)
    assert seen[2, 10, 2] == pytest.approx(101.1)


def test_the_face_is_cut(scan):
    data, affine = robustness.defaced(scan, np.random.default_rng(0), depth_mm=9)
    np.testing.assert_array_equal(affine, AFFINE)
    forward_and_down = [
        (nib.affines.apply_affine(AFFINE, np.argwhere(image > 200)) @ [0, 1, -1]).max() for image in (scan[0], data)
    ]
    assert (forward_and_down[0] - forward_and_down[1]) / np.sqrt(2) == pytest.approx(9, abs=1.1)
    np.testing.assert_array_equal(data[data > 0], scan[0][data > 0])


def test_noise_is_as_strong_as_said_and_spares_the_empty_background(scan):
    data, _ = robustness.noisy(scan, np.random.default_rng(0), percent=5)
    inside = scan[0] > 999
    assert data[inside].std() == pytest.approx(50, rel=0.1)
    assert not data[scan[0] == 0].any()


def test_air_is_salted_and_the_head_is_not(scan):
    data, affine = scan
    data = data + 2.0  # a background that is not empty
    data[25, 40, 22] = 0  # a dark hole in the head
    salted, _ = robustness.salted((data, affine), np.random.default_rng(0))
    assert salted[:8].std() == pytest.approx(1000 / np.sqrt(12), rel=0.05)
    assert np.array_equal(salted[scan[0] > 500], data[scan[0] > 500].clip(max=salted.max()))
    assert not robustness.salted(scan, np.random.default_rng(0))[0][scan[0] == 0].any()


def test_volumes_are_told_relative_to_the_scan_as_it_is():
    table = pd.DataFrame([
        {"head": "ms", "change": "as it is", "tiv_mm3": 1.5e6, "lesion_mm3": 8000.0, "dice_lesion": 0.75},
        {"head": "ms", "change": "noise", "tiv_mm3": 1.53e6, "lesion_mm3": 7000.0, "dice_lesion": 0.7},
        {"head": "ms", "change": "cut", "tiv_mm3": np.nan, "lesion_mm3": np.nan, "dice_lesion": np.nan},
    ])  # fmt: skip
    text = robustness.as_markdown(table)
    assert "| ms | as it is | 1500.0 ml | 8.0 ml | 0.750 |" in text
    assert "| ms | noise | +2.0 % | 7.0 ml | 0.700 |" in text
    assert "| ms | cut | n/a | n/a |  |" in text


def test_a_face_is_only_removed_where_there_is_one() -> None:
    whole, stripped = (
        robustness.Head(name, {}, Path("reference"), lesions=False, stripped=name == "stripped")
        for name in ("whole", "stripped")
    )
    sessions = robustness.sessions_of([whole, stripped], ["asIs", "defaced"])
    assert sessions == [(whole, "asIs"), (whole, "defaced"), (stripped, "asIs")]

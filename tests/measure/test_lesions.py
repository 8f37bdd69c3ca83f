"""The lesion table: numbers worked out by hand on small boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from bidsapp.image.morphology import label_lesions
from bidsapp.measure.lesions import LESION_COLUMNS, lesion_table

SHAPE = (7, 8, 9)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def boxes() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[0, 0, 0] = True  # one voxel, first in memory
    mask[5, 6, 7] = True  # one voxel
    mask[2:4, 3:6, 4] = True  # 2 x 3 x 1
    return mask


def test_rows_by_hand():
    affine = np.diag([-2.0, 1.0, 3.0, 1.0])  # voxel 2 x 1 x 3 mm, first axis to the left
    affine[:3, 3] = (10, -20, 5)
    probability = np.where(boxes(), 0.5, 0.0)
    probability[5, 6, 7] = 0.8
    table = lesion_table(boxes(), probability, affine=affine)
    assert list(table.columns) == list(LESION_COLUMNS)
    assert table["lesion_id"].tolist() == [1, 2, 3]
    assert table["volume_mm3"].tolist() == pytest.approx([36, 6, 6])
    first = table.iloc[0]
    # centre of the box: voxel (2.5, 4, 4)
    assert first[["centroid_x_mm", "centroid_y_mm", "centroid_z_mm"]].tolist() == pytest.approx([5, -16, 17])
    assert first[["extent_x_mm", "extent_y_mm", "extent_z_mm"]].tolist() == pytest.approx([4, 3, 3])
    assert first["diameter_mm"] == pytest.approx(math.sqrt(16 + 9 + 9))
    # equal sizes go by position: voxel (0, 0, 0) before (5, 6, 7)
    assert table["centroid_x_mm"].tolist()[1:] == pytest.approx([10, 0])
    assert table["diameter_mm"].tolist()[1:] == pytest.approx([math.sqrt(14)] * 2)  # the diagonal of 2 x 1 x 3 mm


def test_mean_probability_and_order_are_stable(rng):
    mask = rng.random(SHAPE) < 0.1
    probability = rng.random(SHAPE)
    once, again = (lesion_table(mask, probability, affine=np.eye(4)) for _ in range(2))
    assert once.equals(again)
    assert once["volume_mm3"].is_monotonic_decreasing
    assert once["volume_mm3"].sum() == mask.sum()
    assert (once["mean_probability"] * once["volume_mm3"]).sum() == pytest.approx(probability[mask].sum())


def test_diameter_against_all_pairs(rng):
    # A ragged lesion on an oblique grid: all corners of all voxels, no hull.
    mask = np.zeros(SHAPE, bool)
    mask[1:6, 1:7, 1:8] = rng.random((5, 6, 7)) < 0.7
    angle = 0.3
    turn = [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
    affine = np.eye(4)
    affine[:3, :3] = np.array(turn) @ np.diag([0.7, 1.1, 4.0])
    labels, sizes = label_lesions(mask)
    voxels = np.argwhere(labels == 1)
    half = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    corners = (voxels[:, None] + half).reshape(-1, 3) @ affine[:3, :3].T
    table = lesion_table(mask, mask.astype(float), affine=affine)
    assert sizes[0] > 50
    assert table.loc[0, "diameter_mm"] == pytest.approx(pdist(corners).max())
    assert table.loc[0, "extent_x_mm"] == pytest.approx(np.ptp(corners[:, 0]))


def test_to_mni_is_called_with_scanner_points():
    table = lesion_table(boxes(), boxes() * 1.0, affine=np.diag([1.0, 2.0, 3.0, 1.0]), to_mni=lambda p: p * 10)
    for axis in "xyz":
        assert table[f"mni_{axis}_mm"].tolist() == pytest.approx((10 * table[f"centroid_{axis}_mm"]).tolist())
    without = lesion_table(boxes(), boxes() * 1.0, affine=np.eye(4))
    assert without[["mni_x_mm", "mni_y_mm", "mni_z_mm"]].isna().all(axis=None)


def test_no_lesion_gives_all_columns():
    table = lesion_table(np.zeros(SHAPE, bool), np.zeros(SHAPE), affine=np.eye(4), to_mni=lambda p: 1 / 0)
    assert len(table) == 0
    assert list(table.columns) == list(LESION_COLUMNS)


def test_large_lesions_are_quick():
    mask = np.ones((60, 70, 80), bool)
    table = lesion_table(mask, mask * 1.0, affine=np.eye(4))
    assert table.loc[0, "diameter_mm"] == pytest.approx(math.sqrt(60**2 + 70**2 + 80**2))


def test_wrong_input_is_refused():
    mask = boxes()
    with pytest.raises(ValueError, match="differ in shape"):
        lesion_table(mask, mask[1:] * 1.0, affine=np.eye(4))
    with pytest.raises(ValueError, match="no inverse"):
        lesion_table(mask, mask * 1.0, affine=np.zeros((4, 4)))
    with pytest.raises(ValueError, match="three dimensions"):
        lesion_table(mask[0], mask[0] * 1.0, affine=np.eye(4))

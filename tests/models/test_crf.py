"""The CRF on cases made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bidsapp.models.crf import FLOOR, CrfSettings, refine

ISOTROPIC = (1.0, 1.0, 1.0)


def two_classes(lesion: np.ndarray) -> np.ndarray:
    return np.stack([1 - lesion, lesion]).astype(np.float32)


def smooth(lesion: np.ndarray, image: np.ndarray | None = None, size: Any = ISOTROPIC, **settings: Any) -> np.ndarray:
    image = np.zeros(lesion.shape) if image is None else image
    found = refine(
        two_classes(lesion), image[None].astype(np.float32), CrfSettings(**settings), voxel_size_mm=size
    )  # fmt: skip
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    return found[1]


def test_one_round_by_hand() -> None:
    """Spatial kernel of 1 mm cut at 2 mm, weight 3: for the middle of two voxels in a row, from the formula."""
    lesion = np.full((9, 9, 9), 0.01)
    lesion[4, 4, 4], lesion[5, 4, 4] = 0.7, 0.9
    steps = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    steps = steps[((steps**2).sum(1) > 0) & ((steps**2).sum(1) <= 4)]
    weights = np.exp(-(steps**2).sum(1) / 2)
    weights /= weights.sum()
    q = np.array([lesion[tuple(np.array([4, 4, 4]) + step)] for step in steps])
    log_odds = np.log(0.7 / 0.3) + 3 * (weights @ q) - 3 * (weights @ (1 - q))
    found = smooth(lesion, spatial_weight=3.0, bilateral_weight=0.0, iterations=1)
    assert found[4, 4, 4] == pytest.approx(1 / (1 + np.exp(-log_odds)), abs=1e-4)


def test_isolated_voxel_goes_and_solid_blob_stays() -> None:
    lesion = np.full((20, 21, 22), 0.02)
    lesion[4, 4, 4] = 0.8
    lesion[10:15, 10:15, 10:15] = 0.8
    found = smooth(lesion, spatial_weight=3.0, bilateral_weight=0.0)
    assert found[4, 4, 4] < 0.2
    assert found[11:14, 11:14, 11:14].min() > 0.9


def test_follows_an_edge_of_intensity() -> None:
    """The network is unsure in a slab; the border goes where the image has an edge, not to the middle of the slab."""
    lesion = np.full((16, 9, 10), 0.02)
    lesion[:5], lesion[5:11] = 0.95, 0.5
    image = np.zeros(lesion.shape)
    image[:6] = 2.0
    settings = {"spatial_weight": 0.0, "bilateral_weight": 8.0, "bilateral_intensity": 0.3, "iterations": 10}
    found = smooth(lesion, image, **settings)
    assert found[5, 3:-3, 3:-3].min() > 0.9 and found[6:10, 3:-3, 3:-3].max() < 0.1
    flat = smooth(lesion, **settings)
    assert flat[6, 3:-3, 3:-3].min() > 0.5


def test_zero_weights_change_nothing(rng: np.random.Generator) -> None:
    lesion = rng.random((7, 8, 9))
    probability = two_classes(lesion)
    found = refine(
        probability, rng.normal(size=(2, 7, 8, 9)).astype(np.float32),
        CrfSettings(spatial_weight=0.0, bilateral_weight=0.0), voxel_size_mm=ISOTROPIC,
    )  # fmt: skip
    assert found is probability


def test_what_is_certain_keeps_its_probability() -> None:
    lesion = np.full((20, 21, 22), 0.02)
    lesion[4, 4, 4] = 0.8
    found = smooth(lesion)
    assert (found[8:] == np.float32(0.02)).all() and found[5, 4, 4] != np.float32(0.02)
    assert (smooth(np.full((7, 8, 9), 0.02)) == np.float32(0.02)).all()


def test_three_classes_and_no_room_around() -> None:
    """A lesion at the corner of the image, of two kinds: the stray voxel joins the kind around it."""
    probability = np.zeros((3, 7, 8, 9), np.float32)
    probability[0] = 1
    probability[:, :4, :4, :4] = np.array([0.1, 0.8, 0.1])[:, None, None, None]
    probability[:, 1, 1, 1] = 0.1, 0.35, 0.55
    settings = CrfSettings(spatial_weight=3.0, bilateral_weight=0.0)
    found = refine(probability, np.zeros((1, 7, 8, 9), np.float32), settings, voxel_size_mm=ISOTROPIC)
    assert found[:, 1, 1, 1].argmax() == 1 and found[:, 0, 0, 0].argmax() == 1
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_neighbours_are_counted_in_mm() -> None:
    """Slices of 3 mm: a voxel of the next slice is beyond the kernel, so a plate one slice thick stays."""
    lesion = np.full((15, 16, 11), FLOOR)
    lesion[4:11, 4:11, 5] = 0.8
    settings = {"spatial_weight": 4.0, "bilateral_weight": 0.0}
    assert smooth(lesion, size=(1.0, 1.0, 3.0), **settings)[7, 7, 5] > 0.95
    assert smooth(lesion, size=ISOTROPIC, **settings)[7, 7, 5] < 0.95


def test_many_voxels_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    lesion, image = rng.random((9, 10, 11)), rng.normal(size=(9, 10, 11))
    at_once = smooth(lesion, image)
    monkeypatch.setattr("bidsapp.models.crf.PAIRS", 30_000)
    np.testing.assert_array_equal(smooth(lesion, image), at_once)


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ({"width": 3}, "unknown"), ({"spatial_mm": 0}, "above 0"), ({"bilateral_mm": 50}, "up to 3"),
        ({"spatial_weight": -1}, "0 or more"), ({"iterations": 0}, "1 to 50"), ({"iterations": 2.5}, "1 to 50"),
        ({"spatial_mm": "wide"}, "a number"), ({"spatial_weight": float("nan")}, "0 or more"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(table: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        CrfSettings.of(table)

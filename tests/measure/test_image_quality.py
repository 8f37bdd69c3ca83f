"""Quality of a scan by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bidsapp.labels import CONTRASTS
from bidsapp.measure.image_quality import (
    SCAN_COLUMNS,
    contrast_to_noise,
    joint_variation,
    scan_quality,
    shading_percent,
    signal_to_noise,
    wm_ripples,
)
from tests.measure.two_tissues import SHAPE, half


def test_contrast_to_noise_by_hand(image):
    gm, wm = half(True), half(False)
    assert contrast_to_noise(image, gm, wm) == pytest.approx(30 / math.sqrt(4 + 1))
    assert math.isnan(contrast_to_noise(image, gm, np.zeros(SHAPE, bool)))


def test_joint_variation_by_hand(image):
    assert joint_variation(image, half(True), half(False)) == pytest.approx(1.4826 * (2 + 1) / 30)
    assert math.isnan(joint_variation(np.ones(SHAPE), half(True), half(False)))


def test_signal_to_noise_by_hand(image):
    n = 2 * 8 * 9
    assert signal_to_noise(image, half(False)) == pytest.approx(80 / (1 * math.sqrt(n / (n - 1))))
    assert math.isnan(signal_to_noise(image, np.zeros(SHAPE, bool)))


def test_a_few_very_bright_voxels_move_no_median():
    image = np.array([1, 1, 1, 1, 11, 4, 4, 4, 4, 104], float)  # variances 16 and 1600, of a sample 20 and 2000
    gm = np.arange(10) < 5
    assert contrast_to_noise(image, gm, ~gm) == pytest.approx((4 - 1) / math.sqrt(16 + 1600))
    assert signal_to_noise(image, gm) == pytest.approx(1 / math.sqrt(20))
    assert signal_to_noise(image, ~gm) == pytest.approx(4 / math.sqrt(2000))


def test_shading_by_hand():
    field = np.linspace(0.5, 1.5, 101).reshape(101, 1, 1)
    assert shading_percent(field, field > 0) == pytest.approx(100 * (1.45 - 0.55) / 1.0)
    assert shading_percent(np.ones(SHAPE), half(True)) == 0
    assert math.isnan(shading_percent(field, field > 2))


VOXELS = [(1.0, 1.0, 1.0), (0.75, 1.0, 4.0), (2.0, 2.0, 2.0)]


def white_matter(voxel_mm: tuple[float, float, float]) -> np.ndarray:
    """A block of 60 x 64 x 48 mm and air around it."""
    shape = [round(length / size) for length, size in zip((60, 64, 48), voxel_mm, strict=True)]
    return np.pad(np.ones(shape), 3)


@pytest.mark.parametrize("voxel_mm", VOXELS)
def test_ripples_by_hand(voxel_mm):
    """A sine of 10 % every 10 mm along the second axis, smoothed, its slopes taken over 2 mm."""
    wm = white_matter(voxel_mm)
    y = np.arange(wm.shape[1])[None, :, None] * voxel_mm[1]
    image = 200 * wm * (1 + 0.1 * np.sin(2 * np.pi * y / 10))
    left = math.exp(-2 * (math.pi * 2 / 10) ** 2)
    slope = 10 * left * 2 * math.sin(math.pi * 2 / 10) / 2 / math.sqrt(2)
    found = wm_ripples(image, wm, voxel_mm)
    assert found == pytest.approx(slope, rel=0.15)
    assert wm_ripples(3 * image, wm, voxel_mm) == pytest.approx(found)
    assert wm_ripples(200 * wm, wm, voxel_mm) == pytest.approx(0, abs=1e-4)


def test_noise_vessels_and_shading_are_no_ripples(rng):
    wm = white_matter((1, 1, 1))
    noisy = 200 * wm * (1 + rng.normal(0, 0.07, wm.shape))  # as much as the sine
    assert wm_ripples(noisy, wm, (1, 1, 1)) < 0.3
    vessel = 200 * wm * (1 + rng.normal(0, 0.005, wm.shape))
    quiet = wm_ripples(vessel, wm, (1, 1, 1))
    vessel[30, 30] = 400
    assert wm_ripples(vessel, wm, (1, 1, 1)) < 1.5 * quiet
    shaded = 200 * wm * np.linspace(0.9, 1.1, wm.shape[1])[None, :, None]
    assert wm_ripples(shaded, wm, (1, 1, 1)) < 0.2


def test_slices_that_differ_are_no_ripples():
    """Interleaved slices of 4 mm may differ in brightness; it is no movement within them."""
    wm = white_matter((1, 1, 4))
    wm[:, :, ::2] *= 0.95
    assert wm_ripples(100 * wm, (wm > 0).astype(float), (1, 1, 4)) == pytest.approx(0, abs=1e-4)


def test_ripples_need_white_matter():
    assert math.isnan(wm_ripples(np.ones(SHAPE), np.zeros(SHAPE), (1, 1, 1)))
    assert math.isnan(wm_ripples(np.ones((20, 20, 20)), np.full((20, 20, 20), 0.8), (1, 1, 1)))


def test_every_contrast_has_the_same_columns(image):
    tissues = np.stack([half(True), half(False)]).astype(float)
    found = scan_quality(image, tissues, np.ones(SHAPE), (1, 1, 3))
    assert list(SCAN_COLUMNS) == [f"{contrast.lower()}_{measure}" for contrast in CONTRASTS for measure in found]
    assert found["cnr"] == pytest.approx(30 / math.sqrt(5))
    assert found["snr_wm"] == pytest.approx(signal_to_noise(image, half(False)))
    assert found["shading_percent"] == 0 and found["slice_mm"] == 3
    assert found["wm_ripples"] is None  # two voxels of white matter have no depth
    parenchyma = scan_quality(image, tissues.sum(axis=0)[None], np.ones(SHAPE), (1, 1, 3))
    assert parenchyma == {**found, "cnr": None, "snr_wm": None}

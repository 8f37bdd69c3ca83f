from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bidsapp.image.grid import on_grid
from bidsapp.image.intensity import (
    LANDMARKS,
    IntensityMap,
    denoise,
    intensity_map,
    standard_landmarks,
)
from bidsapp.image.template import load_template, render_template

AFFINE = np.diag([1, 2, 3, 1.0])


@pytest.fixture
def scan(rng) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    data = rng.gamma(5, 60, (17, 18, 19)).astype(np.float32)
    mask = np.zeros(data.shape, dtype=np.uint8)
    mask[3:14, 3:15, 3:16] = 1
    return nib.Nifti1Image(data, AFFINE), nib.Nifti1Image(mask, AFFINE)


def normalised(img, mask, method, contrast="T1w"):
    return intensity_map(img, mask, method=method, contrast=contrast).apply(img)


def test_zscore_by_hand():
    data = np.zeros((7, 8, 9), dtype=np.float32)
    data[0, 0, :4] = [2, 4, 4, 6]  # mean 4, standard deviation sqrt(2)
    mask = np.zeros((7, 8, 9), dtype=np.uint8)
    mask[0, 0, :4] = 1
    out = normalised(nib.Nifti1Image(data, AFFINE), nib.Nifti1Image(mask, AFFINE), "zscore")
    np.testing.assert_allclose(out.get_fdata()[0, 0, :5], np.array([-2, 0, 0, 2, -4]) / np.sqrt(2), atol=1e-6)
    np.testing.assert_array_equal(out.affine, AFFINE)


def test_map_is_piecewise_linear_and_goes_on_beyond_its_ends():
    mapping = IntensityMap((0, 10, 20), (0, 50, 60))
    data = np.zeros((7, 8, 9), dtype=np.float32)
    data[0, 0, :5] = [-2, 5, 10, 15, 30]
    out = mapping.apply(nib.Nifti1Image(data, AFFINE)).get_fdata()[0, 0, :5]
    np.testing.assert_allclose(out, [-10, 25, 50, 55, 70])


@pytest.mark.parametrize("contrast", ["T1w", "T2w", "FLAIR"])
def test_nyul_brings_the_landmarks_to_the_standard(scan, contrast):
    img, mask = scan
    out = normalised(img, mask, "nyul", contrast).get_fdata()
    inside = np.asarray(mask.dataobj) > 0
    np.testing.assert_allclose(np.percentile(out[inside], LANDMARKS), standard_landmarks(contrast), atol=0.5)
    order = np.argsort(img.get_fdata().ravel())
    assert (np.diff(out.ravel()[order]) >= 0).all()  # monotone, outside the mask too


def test_nyul_takes_out_scanner_scale(scan):
    img, mask = scan
    other = on_grid(3.5 * img.get_fdata(dtype=np.float32) + 40, img)
    first, second = (normalised(image, mask, "nyul", "FLAIR").get_fdata() for image in (img, other))
    np.testing.assert_allclose(first, second, atol=1e-2)


def test_nyul_with_colliding_landmarks(scan):
    img, mask = scan
    data = np.where(img.get_fdata() < 400, 100, img.get_fdata()).astype(np.float32)  # most of the brain is one value
    out = normalised(on_grid(data, img), mask, "nyul", "T2w").get_fdata()
    assert np.isfinite(out).all()
    assert (np.diff(out.ravel()[np.argsort(data.ravel())]) >= -1e-6).all()
    nearly = np.full(data.shape, 5, dtype=np.float32)
    nearly[5, 5, 5] = 6
    assert np.isfinite(normalised(on_grid(nearly, img), mask, "nyul", "T2w").get_fdata()).all()


def test_standard_landmarks_are_those_of_the_template():
    for contrast in ("T1w", "T2w", "FLAIR"):
        landmarks = np.array(standard_landmarks(contrast))
        assert landmarks[0] == 0 and landmarks[-1] == 100
        assert (np.diff(landmarks) > 0).all()
        # So the template itself is mapped by one straight line.
        brain = render_template(contrast)
        mapping = intensity_map(brain, load_template().mask, method="nyul", contrast=contrast)
        slopes = np.diff(mapping.target) / np.diff(mapping.source)
        np.testing.assert_allclose(slopes, slopes[0], rtol=1e-6)


def test_unusable_input_is_refused(scan):
    img, mask = scan
    with pytest.raises(ValueError, match="zscore, nyul"):
        intensity_map(img, mask, method="whitestripe", contrast="T1w")
    with pytest.raises(ValueError, match="PDw"):
        normalised(img, mask, "nyul", "PDw")
    with pytest.raises(ValueError, match="empty"):
        normalised(img, on_grid(np.zeros(img.shape, dtype=np.uint8), img), "zscore")
    with pytest.raises(ValueError, match="constant"):
        normalised(on_grid(np.ones(img.shape, dtype=np.float32), img), mask, "zscore")


def test_denoising_comes_nearer_to_the_truth_and_leaves_the_rest_alone(rng):
    truth = render_template("T1w", resolution_mm=3)
    mask = load_template(3).mask
    inside = np.asarray(mask.dataobj) > 0
    noise = rng.normal(0, 0.06, (2, *truth.shape))
    noisy = np.hypot(truth.get_fdata() + noise[0], noise[1]).astype(np.float32)  # Rician
    out = denoise(on_grid(noisy, truth), mask).get_fdata(dtype=np.float32)
    before, after = (np.sqrt(np.mean((data - truth.get_fdata())[inside] ** 2)) for data in (noisy, out))
    assert after < 0.75 * before
    np.testing.assert_array_equal(out[~inside], noisy[~inside])
    with pytest.raises(ValueError, match="differ in shape"):
        denoise(truth, load_template(4).mask)

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bidsapp.image.bias import correct_bias
from bidsapp.image.grid import on_grid
from bidsapp.image.template import load_template, render_template


@pytest.fixture
def biased() -> tuple[nib.Nifti1Image, nib.Nifti1Image, np.ndarray]:
    clean = render_template("T1w", resolution_mm=3)
    mask = load_template(3).mask
    x, _, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in clean.shape], indexing="ij")
    field = np.exp(0.6 * x + 0.3 * z * z)
    head = np.where(np.asarray(mask.dataobj) > 0, clean.get_fdata(), 0.3)  # something outside the brain as well
    return on_grid((1000 * head * field).astype(np.float32), clean), mask, field


def test_a_smooth_field_is_found_and_removed(biased):
    img, mask, field = biased
    corrected, estimate = correct_bias(img, mask)
    inside = np.asarray(mask.dataobj) > 0
    left = np.log(estimate.get_fdata() / field)[inside]
    assert left.std() < 0.4 * np.log(field)[inside].std()
    np.testing.assert_allclose(corrected.get_fdata() * estimate.get_fdata(), img.get_fdata(), rtol=1e-4)
    np.testing.assert_allclose(corrected.get_fdata()[inside].mean(), img.get_fdata()[inside].mean(), rtol=1e-4)
    np.testing.assert_array_equal(corrected.affine, img.affine)


def test_the_whole_head_is_corrected_within_the_range_of_the_brain(biased):
    img, mask, _ = biased
    corrected, estimate = correct_bias(img, mask)
    inside, field = np.asarray(mask.dataobj) > 0, estimate.get_fdata()
    assert np.isfinite(corrected.get_fdata()).all()
    assert field.min() >= field[inside].min() and field.max() <= field[inside].max()
    left, right = corrected.get_fdata()[3, 30, 30], img.get_fdata()[3, 30, 30]
    assert left != right  # outside the mask too


def test_zeros_in_the_mask_and_repeated_runs_do_no_harm(biased):
    img, mask, _ = biased
    data = img.get_fdata(dtype=np.float32).copy()
    data[30:34, 35:40, 30:34] = 0
    first, second = (correct_bias(on_grid(data, img), mask)[0].get_fdata() for _ in range(2))
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("slope", [-0.3, 0.3])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_scan_z_scored_in_the_brain_is_neither_inverted_nor_blown_up(biased, axis, slope):
    img, mask, _ = biased
    inside = np.asarray(mask.dataobj) > 0
    ramp = 1 + slope * np.linspace(-1, 1, img.shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
    data = img.get_fdata() * ramp
    data = ((data - data[inside].mean()) / data[inside].std() * inside).astype(np.float32)
    corrected, field = (out.get_fdata() for out in correct_bias(on_grid(data, img), mask))
    assert np.corrcoef(corrected[inside], data[inside])[0, 1] > 0.9
    assert field.min() > 0.1 and field.max() < 10
    np.testing.assert_allclose(np.log(field[inside]).mean(), 0, atol=1e-4)


def test_unusable_masks_are_refused(biased):
    img, mask, _ = biased
    with pytest.raises(ValueError, match="empty"):
        correct_bias(img, on_grid(np.zeros(img.shape, dtype=np.uint8), img))
    with pytest.raises(ValueError, match="no positive"):
        correct_bias(on_grid(np.zeros(img.shape, dtype=np.float32), img), mask)
    with pytest.raises(ValueError, match="differ in shape"):
        correct_bias(img, load_template(4).mask)

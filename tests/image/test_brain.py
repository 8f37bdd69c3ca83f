from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bidsapp.image.brain import _levelled, clean_mask, extract_brain_by_template
from bidsapp.image.grid import on_grid, work_image
from bidsapp.image.itk import read_itk_affine
from bidsapp.image.load import load_scan
from bidsapp.image.resample import resample
from bidsapp.image.template import load_template, render_template


def dice(first: nib.Nifti1Image, second: nib.Nifti1Image) -> float:
    a, b = (np.asarray(img.dataobj) > 0 for img in (first, second))
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_largest_piece_is_kept_and_filled():
    mask = np.zeros((7, 8, 9), dtype=np.uint8)
    mask[1:4, 1:4, 1:4] = 1
    mask[2, 2, 2] = 0  # a hole
    mask[5, 5, 5:7] = 1  # a smaller piece
    mask[4, 4, 4] = 1  # touches by a corner only
    out = clean_mask(nib.Nifti1Image(mask, np.diag([1, 2, 3, 1])))
    expected = np.zeros_like(mask)
    expected[1:4, 1:4, 1:4] = 1
    np.testing.assert_array_equal(out.dataobj, expected)
    assert out.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(out.affine, np.diag([1, 2, 3, 1]))


def test_empty_mask_stays_empty():
    assert not np.asarray(clean_mask(nib.Nifti1Image(np.zeros((7, 8, 9), np.uint8), np.eye(4))).dataobj).any()


@pytest.mark.parametrize("contrast", ["FLAIR", "T2w"])
def test_stripped_scan_keeps_its_own_border(contrast):
    brain, mask = render_template(contrast, resolution_mm=2), load_template(2).mask
    smaller = ndimage.binary_erosion(np.asarray(mask.dataobj) > 0, iterations=4)
    image = on_grid(np.where(smaller, 500 * brain.get_fdata() + 50, 0).astype(np.float32), brain)
    assert dice(extract_brain_by_template(image, contrast=contrast), on_grid(smaller, mask)) > 0.995


def test_the_middle_of_the_brain_is_one_and_fat_is_cut():
    """Brighter near the surface and beyond it (a coil's field, fat): that is not what the scan is scaled to."""
    mask = load_template(2).mask
    inner = ndimage.binary_erosion(np.asarray(mask.dataobj) > 0, iterations=5)
    image = on_grid(np.where(inner, 200, 700).astype(np.float32), mask)
    levelled = np.asarray(_levelled(image, np.eye(4)).dataobj)
    assert (levelled[inner] == 1).all() and (levelled[~inner] == 2).all()
    with pytest.raises(ValueError, match="No brain was found"):
        _levelled(on_grid(np.zeros(mask.shape, np.float32), mask), np.eye(4))


def test_constant_scan_and_unknown_contrast_are_refused():
    flat = nib.Nifti1Image(np.ones((17, 18, 19), dtype=np.float32), np.diag([8, 8, 8, 1]))
    with pytest.raises(ValueError, match="constant"):
        extract_brain_by_template(flat, contrast="FLAIR")
    with pytest.raises(ValueError, match="PDw"):
        extract_brain_by_template(flat, contrast="PDw")


@pytest.mark.slow
@pytest.mark.parametrize("contrast", ["FLAIR", "T2w"])
def test_whole_heads_with_thick_slices(real_data, contrast):
    scan = load_scan(real_data / f"bids_ms_longitudinal/sub-01/ses-1/anat/sub-01_ses-1_{contrast}.nii.gz").image
    truth = real_data / "ms_longitudinal_truth/sub-01"
    work = work_image(scan)
    to_common = np.linalg.inv(read_itk_affine(truth / "study1_FLAIR_to_common_space.txt"))
    common = nib.load(truth / "sub-01_space-common_desc-brain_mask.nii.gz")
    expected = resample(common, work, transform=to_common, interpolation="nearest")
    assert dice(extract_brain_by_template(work, contrast=contrast), expected) > 0.93

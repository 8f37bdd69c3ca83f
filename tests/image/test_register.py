from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bidsapp.image.grid import on_grid, work_image
from bidsapp.image.itk import shift
from bidsapp.image.load import load_scan
from bidsapp.image.register import (
    _fits_better_turned,
    _similarity,
    register_rigid,
    register_template,
    similarity_matrix,
)
from bidsapp.image.resample import resample
from bidsapp.image.template import load_template, render_template
from bidsapp.measure.quality import RANGES
from bidsapp.models.brain import find_brain

AFFINE = np.array([[2.0, 0, 0, -10], [0, 1, 0, 5], [0, 0, 3, 7], [0, 0, 0, 1]])


@pytest.fixture
def image(rng) -> nib.Nifti1Image:
    return nib.Nifti1Image(rng.random((7, 8, 9), dtype=np.float32), AFFINE)


def error_mm(found: np.ndarray, expected: np.ndarray) -> float:
    corners = np.array(np.meshgrid(*[[-60, 60]] * 3)).reshape(3, -1)
    difference = (found - expected)[:3, :3] @ corners + (found - expected)[:3, 3:]
    return float(np.linalg.norm(difference, axis=0).max())


@pytest.mark.parametrize(
    ("angles", "vector"),
    [((3, -4, 2), (4, -6, 5)), ((20, 10, -15), (150, 20, -60))],
    ids=["headers nearly right", "headers wrong"],
)
def test_rigid_finds_a_known_movement_between_contrasts(angles, vector):
    fixed = render_template("T1w", resolution_mm=4)
    contrast = render_template("FLAIR", resolution_mm=4)
    truth = shift(np.array(vector, dtype=float)) @ similarity_matrix(1, *angles)
    moving = nib.Nifti1Image(np.asarray(contrast.dataobj), truth @ contrast.affine)
    found = register_rigid(moving, fixed, fixed_mask=load_template(4).mask)
    assert error_mm(found, truth) < 1.0
    np.testing.assert_allclose(np.linalg.det(found), 1, atol=1e-4)


def test_rigid_registration_repeats_bit_for_bit():
    fixed, moving = (render_template(contrast, resolution_mm=8) for contrast in ("T1w", "T2w"))
    first, second = (register_rigid(moving, fixed) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_template_refuses_an_empty_mask_and_other_grids(image):
    empty = nib.Nifti1Image(np.zeros((7, 8, 9), dtype=np.uint8), AFFINE)
    with pytest.raises(ValueError, match="empty"):
        register_template(image, empty, contrast="T1w")
    with pytest.raises(ValueError, match="differ in shape"):
        register_template(image, nib.Nifti1Image(np.ones((9, 8, 7), dtype=np.uint8), AFFINE), contrast="T1w")
    full = nib.Nifti1Image(np.ones((7, 8, 9), dtype=np.uint8), AFFINE)
    with pytest.raises(ValueError, match="PDw"):
        register_template(image, full, contrast="PDw")


@pytest.mark.parametrize("contrast", ["T1w", "T2w", "FLAIR"])
def test_a_head_that_lies_back_to_front_does_not_resemble_the_template(contrast):
    template = render_template(contrast, resolution_mm=2)
    assert _similarity(template, template, np.eye(4)) > 0.9
    turned = np.asarray(template.dataobj)[::-1, ::-1]
    centred = np.roll(turned, -5, axis=1)  # brain on brain, as registration would have it
    low = next(limit.low for limit in RANGES if limit.name == "registration_similarity")
    assert _similarity(on_grid(centred, template), template, np.eye(4)) < low


@pytest.mark.parametrize("contrast", ["T1w", "FLAIR"])
@pytest.mark.parametrize(("turn", "expected"), [
    (np.diag([1, -1, -1, 1]), True),  # upside down
    (np.diag([-1, -1, 1, 1]), True),  # back to front
    (np.eye(4)[[0, 2, 1, 3]] * [1, 1, -1, 1], True),  # lying on the face
    (similarity_matrix(1.1, 10, 5, 5), False),
])  # fmt: skip
def test_a_head_that_is_turned_fits_better_when_turned_back(contrast, turn, expected):
    fixed = render_template(contrast, resolution_mm=2)
    moving = nib.Nifti1Image(np.asarray(fixed.dataobj), turn @ fixed.affine)
    assert _fits_better_turned(moving, fixed) == expected


@pytest.mark.slow
def test_template_registration_of_a_cut_brain_with_thick_slices(real_data):
    scan = work_image(load_scan(real_data / "bids_ms_longitudinal/sub-20/ses-2/anat/sub-20_ses-2_FLAIR.nii.gz").image)
    sizes = tuple(float(size) for size in scan.header.get_zooms()[:3])
    mask = on_grid((find_brain(scan.get_fdata(dtype=np.float32), voxel_size_mm=sizes) > 0.5).astype(np.uint8), scan)
    result = register_template(scan, mask, contrast="FLAIR")
    assert result.similarity > 0.5
    assert 0.5 < np.linalg.det(result.affine) < 1.0  # the template's head is a large one
    back = resample(load_template(1).mask, scan, transform=result.to_subject, interpolation="nearest").get_fdata() > 0
    inside = mask.get_fdata() > 0
    assert 2 * (back & inside).sum() / (back.sum() + inside.sum()) > 0.95
    # There and back again: the two fields are inverse to each other.
    grid = nib.Nifti1Image(
        np.zeros((12, 12, 12), dtype=np.uint8),
        np.array([[8.0, 0, 0, -44], [0, 8, 0, -64], [0, 0, 8, -14], [0, 0, 0, 1]]),
    )
    ramp = load_template(1).t1
    axes = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in ramp.shape], indexing="ij"), axis=-1)
    coordinates = nib.Nifti1Image(
        axes @ ramp.affine[:3, :3].T.astype(np.float32) + ramp.affine[:3, 3].astype(np.float32), ramp.affine
    )
    there_and_back = resample(coordinates, grid, transform=[result.to_template, result.to_subject]).get_fdata()
    expected = np.stack(np.meshgrid(*[np.arange(12.0)] * 3, indexing="ij"), axis=-1) * 8 + grid.affine[:3, 3]
    seen = ndimage.binary_erosion(np.asarray(there_and_back).any(axis=-1))
    assert np.median(np.linalg.norm(there_and_back - expected, axis=-1)[seen]) < 0.5

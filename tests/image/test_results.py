from __future__ import annotations

import dataclasses

import nibabel as nib
import numpy as np
import pytest

from bidsapp.image import results
from bidsapp.image.grid import on_grid, whole, work_image
from bidsapp.image.itk import displacement_field
from bidsapp.image.resample import Resampler, resample
from bidsapp.image.results import (
    Results,
    Segmentation,
    carry_points,
    in_template,
    lesions_on_scan,
    modulated,
    tissues_on_scan,
    with_sides,
)
from bidsapp.labels import CSF, EXTRA_AXIAL_CSF, GM, LESION, PARENCHYMA, STRUCTURE_LESION, WM
from bidsapp.measure.image_quality import scan_quality


@pytest.fixture
def scan() -> nib.Nifti1Image:
    """16 x 18 x 10 voxels of 1 x 1 x 3 mm, LPS."""
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    affine[:3, 3] = (8, 9, -15)
    return nib.Nifti1Image(np.zeros((16, 18, 10), np.float32), affine)


@pytest.fixture
def found(scan: nib.Nifti1Image) -> Segmentation:
    """A box of three slabs (GM, WM, CSF along x) with a lesion of 2 x 2 x 6 mm in the WM."""
    work = work_image(scan)
    assert work.shape == (16, 18, 30)
    mask = np.zeros(work.shape, bool)
    mask[2:14, 3:15, 6:24] = True
    posteriors = np.zeros((*work.shape, 3), np.float32)
    posteriors[2:6, ..., 0] = posteriors[6:10, ..., 1] = posteriors[10:14, ..., 2] = 1
    posteriors *= mask[..., None]
    lesion = np.zeros(work.shape, bool)
    lesion[7:9, 8:10, 12:18] = True
    return Segmentation(
        mask=on_grid(mask, work),
        posteriors=on_grid(posteriors, work),
        separable=True,
        structures=on_grid(mask.astype(np.uint8) * 2, work),
        lesion_mask=on_grid(lesion, work),
        lesion_probability=on_grid(lesion.astype(np.float32) * 0.8, work),
    )


def on_native(found: Segmentation, scan: nib.Nifti1Image) -> Results:
    """As they are written: on all of the scan."""
    images = {name: image and whole(image, scan) for name, image in vars(results.on_native(found, scan)).items()}
    return Results(**images)


def test_results_fill_the_box_of_the_brain(found: Segmentation, scan: nib.Nifti1Image) -> None:
    """Of 16 x 18 x 10 voxels the brain takes 12 x 12 x 6; two more on each side, as far as the scan goes."""
    out = results.on_native(found, scan)
    assert {image.shape[:3] for image in vars(out).values()} == {(16, 16, 10)}
    placed = whole(out.mask, scan)
    np.testing.assert_array_equal(placed.affine, scan.affine)
    assert placed.shape == scan.shape and int(placed.header["sform_code"]) == int(scan.header["sform_code"])
    where = [np.flatnonzero(np.asarray(placed.dataobj).any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    assert [(int(seen[0]), int(seen[-1])) for seen in where] == [(2, 13), (3, 14), (2, 7)]


def test_native_results_are_a_partition(found: Segmentation, scan: nib.Nifti1Image) -> None:
    out = on_native(found, scan)
    mask, lesion = (np.asarray(img.dataobj) > 0 for img in (out.mask, out.lesion_mask))
    total = np.asarray(out.posteriors.dataobj).sum(axis=-1) + lesion
    np.testing.assert_allclose(total[mask], 1, atol=2e-3)
    assert not total[~mask].any()
    assert lesion.sum() * 3 == 24  # mm3
    dseg = np.asarray(out.dseg.dataobj)
    voxels = {label.index: int((dseg == label.index).sum()) for label in (GM, WM, CSF, LESION)}
    assert voxels == {GM.index: 4 * 12 * 6, WM.index: 4 * 12 * 6 - 8, CSF.index: 4 * 12 * 6, LESION.index: 8}
    np.testing.assert_array_equal(out.dseg.affine, scan.affine)


def test_sides_are_kept(found: Segmentation, scan: nib.Nifti1Image) -> None:
    """GM lies on the left (low x in RAS): in the LPS scan that is high i."""
    dseg = np.asarray(on_native(found, scan).dseg.dataobj)
    assert {int(i) for i in np.unique(np.argwhere(dseg == GM.index)[:, 0])} == {10, 11, 12, 13}


def test_without_lesions_and_without_contrast(found: Segmentation, scan: nib.Nifti1Image) -> None:
    plain = Segmentation(found.mask, found.posteriors, separable=False, structures=found.structures)
    out = on_native(plain, scan)
    assert out.lesion_mask is None and out.lesion_probability is None
    assert set(np.unique(np.asarray(out.dseg.dataobj))) == {0, CSF.index, PARENCHYMA.index}


def test_template_gets_the_moved_results(found: Segmentation, scan: nib.Nifti1Image) -> None:
    """A field that moves everything by 2 mm in x."""
    work = found.mask
    field = displacement_field(np.broadcast_to(np.float32([2, 0, 0]), (*work.shape, 3)), work.affine)
    out = in_template(found, Resampler(work, field))
    still = np.asarray(on_native(found, work).dseg.dataobj)
    np.testing.assert_array_equal(np.asarray(out.dseg.dataobj)[1:12], still[3:14])


def test_lesions_on_another_scan(found: Segmentation, scan: nib.Nifti1Image) -> None:
    """The other scan lies 4 mm further right; its slices are 6 mm."""
    affine = np.diag([1.0, 1.0, 6.0, 1.0])
    affine[:3, 3] = (-12 + 4, -9, -13.5)
    other = nib.Nifti1Image(np.zeros((24, 20, 5), np.float32), affine)
    matrix = np.eye(4)
    matrix[0, 3] = 4  # a point of the reference + 4 mm = the point of the other scan
    mask, probability = lesions_on_scan(found, other, work_image(other), matrix)
    where = nib.affines.apply_affine(affine, np.argwhere(np.asarray(mask.dataobj)))
    expected = nib.affines.apply_affine(
        scan.affine, np.argwhere(np.asarray(on_native(found, scan).lesion_mask.dataobj))
    )
    np.testing.assert_allclose(where.mean(axis=0), expected.mean(axis=0) + np.array([4, 0, 0]), atol=0.51)
    assert np.asarray(mask.dataobj).sum() * 6 == pytest.approx(24)
    assert np.asarray(probability.dataobj).max() == pytest.approx(0.8, abs=0.01)


def test_another_scan_is_measured_on_its_own_voxels(found: Segmentation, scan: nib.Nifti1Image) -> None:
    """Of 1 x 1 x 6 mm, moved by 4 mm, twice as bright by its field; the tissues go with it, and so does the box."""
    affine = np.diag([1.0, 1.0, 6.0, 1.0])
    affine[:3, 3] = (-9, -12, -14)
    shares = [on_native(found, scan).posteriors.slicer[..., index] for index in range(2)]
    matrix = np.eye(4)
    matrix[0, 3] = 4
    x = affine[0, 3] + np.arange(24)[:, None, None] + np.zeros((1, 20, 5)) - 4
    other = nib.Nifti1Image((2 * np.where(x < -1.5, 50, 80)).astype(np.float32), affine)  # GM lies where x < -1.5
    field = on_grid(np.full(found.mask.shape, 2, np.float32), found.mask)
    image, tissues, bias = tissues_on_scan(shares, field, other, work_image(other), matrix)
    assert image.shape == bias.shape == tissues.shape[1:] and tissues.shape[0] == 2
    assert image.shape[0] < 24
    gm, wm = tissues > 0.9
    assert np.median(image[gm]) == pytest.approx(50, rel=0.02) and np.median(image[wm]) == pytest.approx(80, rel=0.02)
    assert np.median(bias[gm | wm]) == pytest.approx(2)
    for tissue, before in zip(tissues, shares, strict=True):
        assert tissue.sum() * 6 == pytest.approx(np.asarray(before.dataobj).sum() * 3, rel=0.05)


def test_a_scan_that_misses_the_brain_has_no_tissue(found: Segmentation, scan: nib.Nifti1Image) -> None:
    shares = [on_native(found, scan).posteriors.slicer[..., 0]]
    field, matrix = on_grid(np.ones(found.mask.shape, np.float32), found.mask), np.eye(4)
    matrix[0, 3] = 500
    image, tissues, bias = tissues_on_scan(shares, field, scan, work_image(scan), matrix)
    assert not tissues.any() and not image.any() and not bias.any()
    measured = scan_quality(image, tissues, bias, (1, 1, 3))
    assert {name for name, value in measured.items() if value is not None} == {"slice_mm"}


def test_lesions_are_read_wherever_they_can_lie(found: Segmentation, rng: np.random.Generator) -> None:
    """The same bits as without the shortcut, for a tilted scan whose field of view cuts the lesions."""
    voxels = np.array([[0.9, 0.3, -0.1], [-0.3, 0.9, 0.2], [0.1, -0.2, 1.1]])
    affine = np.block([[voxels, np.array([[-6.0], [-5.0], [-9.0]])], [np.zeros((1, 3)), 1.0]])
    scan = nib.Nifti1Image(np.zeros((11, 13, 17), np.float32), affine)
    matrix = np.eye(4)
    matrix[:3, 3] = (1.3, -0.7, 2.1)
    noisy = rng.random(found.mask.shape, dtype=np.float32) * (np.asarray(found.lesion_probability.dataobj) > 0)
    found = dataclasses.replace(found, lesion_probability=on_grid(noisy, found.mask))
    _, probability = lesions_on_scan(found, scan, scan, matrix)
    whole = resample(on_grid(noisy, found.mask), scan, transform=np.linalg.inv(matrix))
    seen = np.asarray(probability.dataobj)
    assert seen.any() and not seen.all()
    np.testing.assert_array_equal(seen, np.round(np.asarray(whole.dataobj), 3))


def test_points_go_with_the_field() -> None:
    affine = np.diag([2.0, 2, 2, 1])
    shift = np.zeros((5, 6, 7, 3), np.float32)
    shift[..., 0] = np.arange(5)[:, None, None]  # i mm to the right at index i
    field = displacement_field(shift, affine)
    points = np.array([[0.0, 2, 4], [3, 2, 4], [100, 2, 4]])
    np.testing.assert_allclose(carry_points(points, field), [[0, 2, 4], [4.5, 2, 4], [104, 2, 4]])


def test_structures_fill_the_mask_and_lesions_are_apart(found: Segmentation, scan: nib.Nifti1Image) -> None:
    """Cortex where GM is, white matter where WM is, nothing named in the fluid; the lesion lies in the white matter."""
    labels = np.zeros(found.mask.shape, np.uint8)
    labels[2:6], labels[6:10] = 3, 2
    out = on_native(dataclasses.replace(found, structures=on_grid(labels, found.mask)), scan)
    values, counts = np.unique(np.asarray(out.structures.dataobj), return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {
        0: 16 * 18 * 10 - 12 * 12 * 6, 2: 4 * 12 * 6 - 8, 3: 4 * 12 * 6, EXTRA_AXIAL_CSF: 4 * 12 * 6,
        STRUCTURE_LESION.index: 8,
    }  # fmt: skip


def test_a_structure_on_a_third_of_a_slice_is_no_fluid(found: Segmentation, scan: nib.Nifti1Image) -> None:
    """What the mask covers belongs to the structure that is there, however little of the voxel that is."""
    labels = np.zeros(found.mask.shape, np.uint8)
    labels[..., 6] = 3  # one of the three millimetres of the first slice of the brain
    out = on_native(dataclasses.replace(found, structures=on_grid(labels, found.mask), lesion_mask=None), scan)
    structures = np.asarray(out.structures.dataobj)
    assert (structures == 3).sum() == 12 * 12 and (structures == EXTRA_AXIAL_CSF).sum() == 12 * 12 * 5


def test_sides_are_those_of_the_template(found: Segmentation) -> None:
    """The subject lies 3 mm to the left of the template: its midplane is at x = -3 mm."""
    labels = np.zeros(found.mask.shape, np.uint8)
    labels[2:14, 5, 8], labels[2:14, 6, 8] = 10, 14  # thalamus has sides, the third ventricle has none
    image = on_grid(labels, found.mask)
    shift = np.zeros((*labels.shape, 3))
    shift[..., 0] = 3
    sided = np.asarray(with_sides(image, displacement_field(shift, image.affine)).dataobj)
    x = image.affine[0, 3] + image.affine[0, 0] * np.arange(2, 14)
    assert sided[2:14, 5, 8].tolist() == [49 if place > -3 else 10 for place in x]
    assert {10, 49} <= set(sided[2:14, 5, 8].tolist()) and (sided[2:14, 6, 8] == 14).all()


def test_fragments_of_lesions_are_dropped(found: Segmentation) -> None:
    """On voxels of 1 x 1 x 2 mm: 2 mm3 of the work grid's lesion are dropped, 4 mm3 stay, on this scan and another."""
    affine = found.mask.affine.copy()
    affine[:3, 2] *= 2
    fine = nib.Nifti1Image(np.zeros((16, 18, 15), np.float32), affine)
    fine.affine[:3, 3] += 0.5 * found.mask.affine[:3, 2]
    lesion = np.asarray(found.lesion_mask.dataobj).copy()
    lesion[7, 5, 8:10] = 1  # two voxels of 1 mm, in one of 2 mm
    lesion[7, 12:14, 8:10] = 1  # four, in two
    few = dataclasses.replace(found, lesion_mask=on_grid(lesion, found.mask))
    for out in (on_native(few, fine).lesion_mask, lesions_on_scan(few, fine, work_image(fine), np.eye(4))[0]):
        out = np.asarray(out.dataobj) > 0
        assert not out[7, 5].any() and out[7, 12:14, 4].all()
        assert out.sum() == 2 * 2 * 3 + 2


def test_specks_off_the_mask_are_dropped(found: Segmentation, scan: nib.Nifti1Image) -> None:
    """A column of 1 x 1 x 3 mm (a voxel of the scan) two voxels from the mask."""
    mask = np.asarray(found.mask.dataobj).copy()
    mask[0, 5, 9:12] = 1
    plain = np.asarray(on_native(found, scan).mask.dataobj)
    out = np.asarray(on_native(dataclasses.replace(found, mask=on_grid(mask, found.mask)), scan).mask.dataobj)
    np.testing.assert_array_equal(out, plain)


def test_modulated_tissue_sums_up_to_the_volume_in_the_subject():
    """A subject 1.2 times as long along each axis than the template: a ball of the template is 1.728 times as large."""
    grid = nib.Nifti1Image(np.zeros((40, 42, 44), np.uint8), np.diag([1.0, 1.0, 1.0, 1.0]))
    where = np.moveaxis(np.indices(grid.shape), 0, -1)
    share = (np.linalg.norm(where - (20, 21, 22), axis=-1) < 10).astype(np.float32) * np.float32(0.5)
    coarse = np.diag([2.0, 2.0, 2.0, 1.0])  # the field may lie on another grid
    points = 2.0 * np.moveaxis(np.indices((22, 23, 24)), 0, -1)
    found = modulated(nib.Nifti1Image(share, grid.affine), displacement_field(0.2 * points, coarse))
    assert np.asarray(found.dataobj).sum() == pytest.approx(1.2**3 * share.sum(), rel=1e-4)

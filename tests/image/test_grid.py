from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bidsapp.image.grid import average_onto, bounding_box, labels_onto, mask_onto, on_grid, work_image

# LPS, 2 x 2 x 4 mm, oblique by 10 degrees about x
ANGLE = np.deg2rad(10)
ROTATION = np.array([[1, 0, 0], [0, np.cos(ANGLE), -np.sin(ANGLE)], [0, np.sin(ANGLE), np.cos(ANGLE)]])


def oblique(shape: tuple[int, int, int] = (17, 18, 9), sizes: tuple[float, ...] = (2, 2, 4)) -> nib.Nifti1Image:
    affine = np.eye(4)
    affine[:3, :3] = ROTATION @ np.diag([-1, -1, 1]) @ np.diag(sizes)
    affine[:3, 3] = (15, 20, -12)
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return nib.Nifti1Image(np.exp(-2 * sum(g**2 for g in grid)).astype(np.float32), affine)


def test_work_grid_is_ras_one_millimetre_and_covers_the_same_space() -> None:
    scan = oblique()
    work = work_image(scan)
    assert nib.aff2axcodes(work.affine) == ("R", "A", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(work.affine), 1, atol=1e-6)
    assert work.shape == (34, 36, 36)
    for img, shape in ((scan, scan.shape), (work, work.shape)):
        centre = img.affine @ [*(np.array(shape) - 1) / 2, 1]
        np.testing.assert_allclose(centre, scan.affine @ [8, 8.5, 4, 1], atol=1e-5)


def test_values_stay_in_place() -> None:
    scan = oblique()
    work = work_image(scan)
    # The maximum of the bump lies at the centre of the grid.
    peak = work.affine @ [*np.unravel_index(np.asarray(work.dataobj).argmax(), work.shape), 1]
    np.testing.assert_allclose(peak, scan.affine @ [8, 8.5, 4, 1], atol=1.0)
    assert np.asarray(work.dataobj).max() <= np.asarray(scan.dataobj).max()


def test_splines_are_scipys(rng) -> None:
    """Coarser and finer axes: 2 x 0.8 x 3.3 mm."""
    scan = nib.Nifti1Image(rng.random((7, 11, 5), dtype=np.float32), np.diag([2, 0.8, 3.3, 1]))
    work = work_image(scan)
    assert work.shape == (14, 9, 16)
    scale = 1 / np.array([2, 0.8, 3.3])
    smooth = ndimage.gaussian_filter(np.asarray(scan.dataobj), (0, 0.625, 0), truncate=2.5)
    expected = ndimage.affine_transform(
        smooth, np.diag(scale), offset=(scale - 1) / 2, output_shape=work.shape, order=3, mode="nearest"
    )
    expected = np.clip(expected, np.min(scan.dataobj), np.max(scan.dataobj))
    np.testing.assert_allclose(work.get_fdata(), expected, atol=1e-5)


def test_one_millimetre_scan_is_only_reordered() -> None:
    scan = oblique(sizes=(1.0, 0.95, 1.05))
    work = work_image(scan)
    np.testing.assert_array_equal(np.asarray(work.dataobj), np.asarray(scan.dataobj)[::-1, ::-1])


def test_average_respects_partial_volume() -> None:
    """A slab of three 1 mm planes fills 3/4 of a 4 mm slice."""
    scan = oblique()
    work = work_image(scan)
    data = np.zeros(work.shape, np.float32)
    data[:, :, 8:11] = 1  # planes 8-10 lie in native slice 2 (planes 8-11)
    back = average_onto(on_grid(data, work), scan)
    inner = np.asarray(back.dataobj)[4:-4, 4:-4]
    np.testing.assert_allclose(inner[:, :, 2], 0.75, atol=1e-5)
    np.testing.assert_allclose(inner[:, :, [1, 3]], 0, atol=1e-5)


def test_volume_is_kept_on_the_way_back() -> None:
    scan = oblique()
    work = work_image(scan)
    ball = np.zeros(work.shape, np.float32)
    grid = np.indices(work.shape) - np.array([17, 18, 18])[:, None, None, None]
    ball[(grid**2).sum(axis=0) < 8**2] = 1
    back = average_onto(on_grid(ball, work), scan)
    voxel = abs(np.linalg.det(scan.affine[:3, :3]))
    assert np.asarray(back.dataobj).sum() * voxel == pytest.approx(ball.sum(), rel=0.005)


def test_result_carries_the_exact_affine_and_codes_of_the_scan() -> None:
    scan = oblique()
    scan.set_sform(scan.affine, 2)
    scan.set_qform(scan.affine, 1)
    back = average_onto(work_image(scan), scan)
    np.testing.assert_array_equal(back.affine, scan.affine)
    assert (int(back.header["sform_code"]), int(back.header["qform_code"])) == (2, 1)
    assert back.shape == scan.shape


def test_masks_are_stored_as_bytes() -> None:
    scan = oblique()
    assert on_grid(np.ones(scan.shape, bool), scan).get_data_dtype() == np.uint8


def test_a_voxel_gets_the_label_that_covers_most_of_it() -> None:
    """Slices of 3 mm over a column of labels 1 1 2 | 0 0 5 | 5 5 5, seen from an LPS scan."""
    affine = np.diag([-1.0, -1, 3, 1])
    affine[:3, 3] = (3, 4, 1)
    scan = nib.Nifti1Image(np.zeros((4, 5, 3), np.float32), affine)
    work = work_image(scan)
    assert work.shape == (4, 5, 9)
    labels = np.zeros(work.shape, np.uint8)
    labels[0, 0] = (1, 1, 2, 0, 0, 5, 5, 5, 5)
    found = labels_onto(on_grid(labels, work), scan)
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(found.affine, affine)
    values = np.asarray(found.dataobj)
    assert values[3, 4].tolist() == [1, 0, 5]  # the corner of low x and y is that of high i and j
    values[3, 4] = 0
    assert not values.any()


def slices(thickness: float, number: int) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.zeros((12, 12, number), np.float32), np.diag([1, 1, thickness, 1]))


def test_a_tie_is_decided_by_the_place_not_by_the_label() -> None:
    """Slices of 4 mm, half one label and half the other: as many go to either, whatever their numbers."""
    scan = slices(4, 6)
    work = work_image(scan)
    labels = np.full(work.shape, 2, np.uint8)
    labels[:, :, 6:14] = 3  # 1.5 slices from the bottom, 2.5 from the top
    found = np.asarray(labels_onto(on_grid(labels, work), scan).dataobj)
    swapped = np.asarray(labels_onto(on_grid((5 - labels).astype(np.uint8), work), scan).dataobj)
    np.testing.assert_array_equal(swapped, 5 - found)
    assert (found == 3).sum() * 4 == (labels == 3).sum()


@pytest.mark.parametrize("thickness", [2, 4, 6])
def test_a_mask_neither_grows_nor_shrinks_on_even_slices(thickness: int, rng: np.random.Generator) -> None:
    """Blobs with borders anywhere; slices of an even number of work voxels often hold as much of them as not."""
    scan = slices(thickness, 60 // thickness)
    work = work_image(scan)
    mask = ndimage.gaussian_filter(rng.normal(size=work.shape), (0, 0, 4)) > 0.02
    found = mask_onto(on_grid(mask, work), scan)
    assert found.sum() * thickness == pytest.approx(mask.sum(), rel=0.03)


def test_the_mask_decides_what_belongs_to_the_labels() -> None:
    """A voxel of 5 mm: 1 mm of one label, 2 of another, 2 of none."""
    scan = slices(5, 4)
    work = work_image(scan)
    labels = np.zeros(work.shape, np.uint8)
    labels[:, :, 5:8] = (7, 8, 8)
    assert (np.asarray(labels_onto(on_grid(labels, work), scan, background=False).dataobj)[:, :, 1] == 8).all()
    labels[:, :, 5:9] = (0, 0, 8, 7)
    assert not np.asarray(labels_onto(on_grid(labels, work), scan).dataobj)[:, :, 1].any()


@pytest.mark.parametrize("size", [0.5, 0.6, 0.7, 0.8])
def test_the_last_plane_of_fine_scans_is_whole(size: float) -> None:
    """The work grid may end up to half a millimetre before the scan does."""
    scan = nib.Nifti1Image(np.zeros((40, 41, 163), np.float32), np.diag([size, size, size, 1]))
    work = work_image(scan)
    everything = on_grid(np.ones(work.shape, bool), work)
    assert mask_onto(everything, scan).all()
    np.testing.assert_allclose(np.asarray(average_onto(everything, scan).dataobj), 1, atol=1e-5)


def test_labels_on_finer_voxels_keep_their_place() -> None:
    affine = np.diag([0.5, 0.5, 0.5, 1])
    scan = nib.Nifti1Image(np.zeros((14, 16, 18), np.float32), affine)
    work = work_image(scan)
    labels = np.zeros(work.shape, np.int16)
    labels[1:4, 2:5, 3:6] = 42
    found = np.asarray(labels_onto(on_grid(labels, work), scan).dataobj)
    assert set(np.unique(found)) == {0, 42}
    # Where linear interpolation puts the border; a corner is mostly outside (0.75 ** 3 < 0.5).
    assert (found > 0).sum() == (found[2:8, 4:10, 6:12] > 0).sum() == 6**3 - 8


def test_box_of_what_is_there() -> None:
    volume = np.zeros((7, 8, 9), np.uint8)
    volume[1, 3, 4] = volume[2, 5, 8] = 1
    assert bounding_box(volume, margin=0) == (slice(1, 3), slice(3, 6), slice(4, 9))
    assert bounding_box(volume, margin=2) == (slice(0, 5), slice(1, 8), slice(2, 9))


def test_no_label_at_all() -> None:
    scan = nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4))
    empty = on_grid(np.zeros((4, 5, 6), np.uint8), scan)
    assert not np.asarray(labels_onto(empty, scan).dataobj).any()

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from bidsapp.image.itk import displacement_field, shift
from bidsapp.image.register import similarity_matrix
from bidsapp.image.resample import Resampler, jacobian_determinant, resample

AFFINE = np.array([[2.0, 0, 0, -10], [0, 1, 0, 5], [0, 0, 3, 7], [0, 0, 0, 1]])


@pytest.fixture
def image(rng) -> nib.Nifti1Image:
    return nib.Nifti1Image(rng.random((7, 8, 9), dtype=np.float32), AFFINE)


def test_resample_onto_itself_changes_nothing(image):
    for interpolation in ("nearest", "linear", "bspline"):
        out = resample(image, image, interpolation=interpolation)
        np.testing.assert_array_equal(out.affine, image.affine)
        np.testing.assert_allclose(out.get_fdata(), image.get_fdata(), atol=1e-5)


def test_matrix_maps_grid_points_to_image_points(image):
    # 4 mm along x are two voxels: the value at voxel i of the grid is that of voxel i + 2 of the image.
    out = resample(image, image, transform=shift(np.array([4.0, 0, 0]))).get_fdata()
    np.testing.assert_allclose(out[:5], image.get_fdata()[2:], atol=1e-6)
    assert not out[5:].any()  # outside the field of view


def test_linear_interpolation_by_hand(image):
    data = image.get_fdata()
    out = resample(image, image, transform=shift(np.array([0.5, 0, 0]))).get_fdata()  # a quarter of a voxel
    np.testing.assert_allclose(out[2, 3, 4], 0.75 * data[2, 3, 4] + 0.25 * data[3, 3, 4], atol=1e-6)


def test_field_of_view_ends_at_voxel_edges():
    slices = nib.Nifti1Image(np.ones((7, 8, 2), dtype=np.float32), np.diag([1, 1, 4.0, 1]))  # covers z from -2 to 6
    fine = np.eye(4)
    fine[2, 3] = -4.5
    out = resample(slices, nib.Nifti1Image(np.zeros((7, 8, 12), dtype=np.uint8), fine)).get_fdata()
    np.testing.assert_array_equal(out[3, 3], [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0])


def test_field_and_matrix_agree(image):
    vector = np.array([3.0, -2.0, 4.5])
    field = displacement_field(np.broadcast_to(vector, (4, 5, 6, 3)), np.diag([6.0, 6, 6, 1]))
    by_field = resample(image, image, transform=field)
    by_matrix = resample(image, image, transform=shift(vector))
    np.testing.assert_allclose(by_field.get_fdata(), by_matrix.get_fdata(), atol=1e-4)


def test_along_parallel_axes_interpolation_is_scipys(image, rng, monkeypatch):
    """Grids whose axes are parallel, one of them reversed, with points beyond the image's ends."""
    affine = image.affine @ shift(np.array([-1.2, 9.1, 0.3])) @ np.diag([0.4, -1.3, 0.7, 1])
    grid = nib.Nifti1Image(np.zeros((21, 9, 12), np.uint8), affine)
    field = displacement_field(rng.random((7, 8, 9, 3)) * 4, image.affine)
    quick = [resample(image, grid, transform=transform).get_fdata() for transform in (None, field)]
    monkeypatch.setattr("bidsapp.image.resample.PARALLEL", 0.0)
    for found, transform in zip(quick, (None, field), strict=True):
        expected = resample(image, grid, transform=transform).get_fdata()
        assert expected.any() and (expected == 0).any()
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("interpolation", ["nearest", "linear", "bspline"])
@pytest.mark.parametrize("deformed", [False, True])
def test_some_of_the_points_give_the_same_bits(image, rng, interpolation, deformed):
    turned = similarity_matrix(1.1, 10, 20, 30) @ shift(np.array([1.3, -0.7, 2.1]))
    field = displacement_field(rng.random((4, 5, 6, 3)) * 5, np.diag([6.0, 6, 6, 1]))
    grid = nib.Nifti1Image(np.zeros((11, 12, 13), np.uint8), shift(np.array([-8.0, 5, 9])))
    other = nib.Nifti1Image(rng.random((8, 9, 7), dtype=np.float32), np.diag([2.0, 2, 2, 1]) @ AFFINE)
    where = rng.random(grid.shape) < 0.3
    transforms = [turned, field] if deformed else turned
    onto = Resampler(grid, transforms)
    some = onto.only(where)
    for one in (image, other, image):
        whole = np.asarray(onto(one, interpolation=interpolation).dataobj)
        again = resample(one, grid, transform=transforms, interpolation=interpolation)
        np.testing.assert_array_equal(whole, again.dataobj)
        assert whole[where].any() and whole[~where].any()
        np.testing.assert_array_equal(some(one, interpolation=interpolation).dataobj, np.where(where, whole, 0))


def test_first_transform_of_a_sequence_meets_the_grid_points_first(image):
    double, move = np.diag([2.0, 2, 2, 1]), shift(np.array([1.0, 2, 3]))
    expected = resample(image, image, transform=move @ double).get_fdata()
    np.testing.assert_allclose(resample(image, image, transform=[double, move]).get_fdata(), expected, atol=1e-5)
    other = resample(image, image, transform=[move, double]).get_fdata()
    assert np.abs(other - expected).max() > 0.1
    field = displacement_field(
        np.broadcast_to([1.0, 2, 3], (9, 9, 9, 3)), shift(np.full(3, -90.0)) @ np.diag([20, 20, 20, 1])
    )
    np.testing.assert_allclose(resample(image, image, transform=[double, field]).get_fdata(), expected, atol=1e-4)


def test_ants_reads_the_field_alike(image, tmp_path):
    import ants

    from bidsapp.image.itk import image_to_ants

    points = np.stack(np.meshgrid(*[np.arange(9.0)] * 3, indexing="ij"), axis=-1)
    field = displacement_field(0.3 * points[..., ::-1] - 1, shift(np.array([-12.0, 0, 0])) @ np.diag([3, 3, 5, 1.0]))
    nib.save(field, tmp_path / "warp.nii.gz")
    there = ants.apply_transforms(image_to_ants(image), image_to_ants(image), [str(tmp_path / "warp.nii.gz")]).numpy()
    here = resample(image, image, transform=field).get_fdata()
    inner = (slice(1, -2), slice(1, -2), slice(1, -2))  # the rim is treated differently on purpose
    np.testing.assert_allclose(here[inner], there[inner], atol=2e-3)


def test_labels_keep_their_type_and_volumes_their_order(rng):
    labels = nib.Nifti1Image(rng.integers(0, 9, (7, 8, 9)).astype(np.uint8), AFFINE)
    out = resample(labels, labels, transform=shift(np.array([0.6, 0, 0])), interpolation="nearest")
    assert out.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(out.dataobj, labels.dataobj)
    series = nib.Nifti1Image(rng.random((7, 8, 9, 2), dtype=np.float32), AFFINE)
    move = shift(np.array([1.0, 0, 0]))
    out = resample(series, labels, transform=move)
    for i in range(2):
        one = nib.Nifti1Image(np.asarray(series.dataobj)[..., i], AFFINE)
        np.testing.assert_array_equal(np.asarray(out.dataobj)[..., i], resample(one, labels, transform=move).dataobj)


def test_cubic_interpolation_stays_in_range():
    step = np.zeros((7, 8, 9), dtype=np.float32)
    step[3:] = 1
    img = nib.Nifti1Image(step, np.eye(4))
    out = resample(img, img, transform=shift(np.array([0.5, 0, 0])), interpolation="bspline").get_fdata()
    assert out.min() >= 0 and out.max() <= 1


def test_resample_refuses_what_it_does_not_know(image):
    with pytest.raises(ValueError, match="nearest, linear, bspline"):
        resample(image, image, interpolation="cubic")
    with pytest.raises(ValueError, match="4x4"):
        resample(image, image, transform=np.eye(3))
    with pytest.raises(ValueError, match="displacement field"):
        resample(image, image, transform=image)


def test_jacobian_of_a_known_field():
    """On oblique, unequal voxels: a stretch along each axis, and a shear that changes no volume."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (10, 20, 30), degrees=True).as_matrix() @ np.diag([2.0, 3.0, 1.5])
    points = apply_affine(affine, np.moveaxis(np.indices((7, 8, 9)), 0, -1))
    x, y, z = np.moveaxis(points, -1, 0)
    field = displacement_field(np.stack([0.02 * x, -0.01 * y, 0.05 * z + 0.3 * x], axis=-1), affine)
    assert np.allclose(jacobian_determinant(field), 1.02 * 0.99 * 1.05, rtol=1e-4)

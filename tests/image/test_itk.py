from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bidsapp.image.itk import (
    affine_from_itk,
    displacement_field,
    displacements,
    image_to_ants,
    read_itk_affine,
    shift,
    to_ants,
    write_itk_affine,
)


def oblique(rng: np.random.Generator) -> np.ndarray:
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * [0.9, 1.1, 3.0]
    affine[:3, 3] = [-90, 12, 40]
    return affine


def test_text_transform_is_what_itk_expects(tmp_path):
    path = tmp_path / "t.txt"
    write_itk_affine(shift(np.array([1.0, 2.0, 3.0])), path)
    assert path.read_text().splitlines() == [
        "#Insight Transform File V1.0",
        "#Transform 0",
        "Transform: AffineTransform_double_3_3",
        "Parameters: 1.0 0.0 0.0 0.0 1.0 0.0 0.0 0.0 1.0 -1.0 -2.0 3.0",  # LPS: x and y change sign
        "FixedParameters: 0 0 0",
    ]


def test_text_transform_round_trip_is_exact_and_ants_agrees(tmp_path, rng):
    import ants

    matrix = oblique(rng)
    path = tmp_path / "t.txt"
    write_itk_affine(matrix, path)
    np.testing.assert_array_equal(read_itk_affine(path), matrix)
    point = np.array([10.0, -20.0, 30.0])
    flip = np.array([-1, -1, 1])
    by_ants = np.array(ants.read_transform(str(path)).apply_to_point((point * flip).tolist())) * flip
    np.testing.assert_allclose(by_ants, matrix[:3, :3] @ point + matrix[:3, 3], rtol=1e-6)


def test_centre_of_an_itk_transform_by_hand():
    # A half turn about z through the LPS point (1, 0, 0) brings the origin to (2, 0, 0) LPS, that is (-2, 0, 0) RAS.
    turn = [-1, 0, 0, 0, -1, 0, 0, 0, 1, 0, 0, 0]
    np.testing.assert_allclose(affine_from_itk(np.array(turn), np.array([1, 0, 0]))[:3, 3], [-2, 0, 0])


@pytest.mark.parametrize(
    "text",
    ["", "#Insight Transform File V1.0\nTransform: BSplineTransform_double_3_3\nParameters: 1\nFixedParameters: 1\n",
     "Transform: AffineTransform_double_3_3\nParameters: 1 2 3\nFixedParameters: 0 0 0\n"],
)  # fmt: skip
def test_other_files_are_refused_by_name(tmp_path, text):
    path = tmp_path / "other.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.txt"):
        read_itk_affine(path)


def test_only_affine_matrices_are_written(tmp_path):
    with pytest.raises(ValueError, match="Not an affine"):
        write_itk_affine(np.full((4, 4), np.nan), tmp_path / "t.txt")


def test_ants_places_voxels_where_nibabel_does(rng):
    import ants

    img = nib.Nifti1Image(rng.random((7, 8, 9), dtype=np.float32), oblique(rng))
    there = image_to_ants(img)
    np.testing.assert_array_equal(there.numpy(), img.get_fdata(dtype=np.float32))
    lps = np.array(ants.transform_index_to_physical_point(there, (2, 3, 4)))
    np.testing.assert_allclose(lps * [-1, -1, 1], img.affine[:3, :3] @ [2, 3, 4] + img.affine[:3, 3], atol=1e-4)


def test_ants_places_a_cut_where_it_was_cut(rng):
    data, affine = rng.random((7, 8, 9), dtype=np.float32), oblique(rng)
    box = (slice(1, 5), slice(2, 8), slice(3, 9))
    cut = to_ants(data[box], affine, box)
    np.testing.assert_allclose(
        np.array(cut.origin) * [-1, -1, 1], affine[:3, :3] @ [1, 2, 3] + affine[:3, 3], atol=1e-4
    )


def test_displacement_field_keeps_itk_conventions(rng):
    shifts = rng.normal(size=(7, 8, 9, 3)).astype(np.float32)
    field = displacement_field(shifts, oblique(rng))
    assert field.shape == (7, 8, 9, 1, 3)
    assert int(field.header["intent_code"]) == 1007
    np.testing.assert_array_equal(np.asarray(field.dataobj)[0, 0, 0, 0], shifts[0, 0, 0] * [-1, -1, 1])
    np.testing.assert_array_equal(displacements(field), shifts)
    with pytest.raises(ValueError, match="Not an ITK displacement field"):
        displacements(nib.Nifti1Image(shifts, np.eye(4)))


@pytest.mark.slow
def test_published_transform_lays_the_brain_mask_on_the_scan(real_data):
    from bidsapp.image.resample import resample

    truth = real_data / "ms_longitudinal_truth/sub-01"
    scan = nib.load(real_data / "bids_ms_longitudinal/sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz")
    mask = nib.load(truth / "sub-01_space-common_desc-brain_mask.nii.gz")
    to_common = np.linalg.inv(read_itk_affine(truth / "study1_FLAIR_to_common_space.txt"))
    data = scan.get_fdata()

    def spread(transform):
        inside = resample(mask, scan, transform=transform, interpolation="nearest").get_fdata() > 0
        return data[inside].std() / data[inside].mean()

    # Brain is even, skull and air are not: the right direction beats the wrong one.
    assert spread(to_common) < 0.9 * spread(np.linalg.inv(to_common))

"""Lesions divided into compartments on the native grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.interfaces.compartments import DivideLesions


def test_shares_are_averaged_over_thick_slices(tmp_path: Path) -> None:
    """Native slices of 2 mm, the work grid of 1 mm: each compartment's share is the mean of the two voxels."""
    shares = np.zeros((4, 5, 6, 2), np.float32)
    shares[..., 0] = 0.6
    shares[1, 1, 2:4, 1] = 0.5, 0.9  # mean 0.7
    shares[2, 2, 2:4, 1] = 0.9, 0.0  # mean 0.45
    nib.Nifti1Image(shares, np.eye(4)).to_filename(tmp_path / "shares.nii")
    affine = np.diag([1, 1, 2, 1.0])
    affine[2, 3] = 0.5
    lesion = np.zeros((4, 5, 3), np.uint8)
    lesion[1:3, 1:3, 1] = 1
    nib.Nifti1Image(lesion, affine).to_filename(tmp_path / "native_lesion_mask.nii.gz")
    node = DivideLesions(
        results=[str(tmp_path / "native_lesion_mask.nii.gz")], compartments_file=str(tmp_path / "shares.nii"),
        names=["edema", "enhancing tumour"],
    )  # fmt: skip
    image = nib.load(node.run(cwd=str(tmp_path)).outputs.labels_file)
    found = np.asarray(image.dataobj)
    assert found.dtype == np.uint8 and np.allclose(image.affine, affine)
    assert found[1, 1, 1] == 3 and found[2, 2, 1] == 2 and found[1, 2, 1] == 2
    assert found[lesion == 0].max() == 0


def test_without_a_lesion_mask_it_fails(tmp_path: Path) -> None:
    nib.Nifti1Image(np.zeros((4, 5, 6, 2), np.float32), np.eye(4)).to_filename(tmp_path / "shares.nii")
    node = DivideLesions(
        results=[str(tmp_path / "shares.nii")], compartments_file=str(tmp_path / "shares.nii"), names=["a", "b"]
    )
    with pytest.raises(KeyError, match="native_lesion_mask"):
        node.run(cwd=str(tmp_path))

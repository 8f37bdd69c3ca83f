from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.learn.lesion_masks import load_lesions


def test_mask_files_come_onto_one_grid(tmp_path: Path) -> None:
    data = np.zeros((181, 217, 181), np.float32)
    data[10, 20, 30] = 1
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = (-90, -125, -71)  # as the stroke masks lie: one voxel inside the grid
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "a.nii.gz")
    lesions = load_lesions(tmp_path, device="cpu")
    assert lesions.masks.nonzero().tolist() == [[0, 11, 21, 31]]
    with pytest.raises(FileNotFoundError, match="no lesion masks"):
        load_lesions(tmp_path, device="cpu", leave_out=("a",))

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from training.judge import Reference, cases, dice, on_scan


def test_dice_by_hand() -> None:
    one, two = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 1], bool)
    assert dice(one, two) == pytest.approx(2 / 5)


def test_reference_is_carried_to_the_scan() -> None:
    mask = np.zeros((7, 8, 9), np.uint8)
    mask[5, 4, 3] = 1
    reference = Reference("manual", nib.Nifti1Image(mask, np.eye(4)), np.eye(4))
    reference.matrix[:3, 3] = (1, 0, -1)  # scan (x, y, z) lies at mask (x + 1, y, z - 1)
    scan = nib.Nifti1Image(np.zeros((7, 8, 9), np.float32), np.eye(4))
    assert np.argwhere(on_scan(reference, scan)).tolist() == [[4, 4, 4]]


def test_missing_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="bids_t1_freesurfer"):
        cases(tmp_path)

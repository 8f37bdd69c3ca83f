from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from training.judge import Reference, dice, on_scan, read_itk

ITK = """#Insight Transform File V1.0
#Transform 0
Transform: MatrixOffsetTransformBase_double_3_3
Parameters: 0 -1 0 1 0 0 0 0 1 10 20 30
FixedParameters: 1 2 3
"""


def test_dice_by_hand() -> None:
    one, two = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 1], bool)
    assert dice(one, two) == pytest.approx(2 / 5)


def test_itk_transform_turns_about_its_centre_in_lps(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(ITK)
    # LPS point (2, 2, 3): minus the centre (1, 0, 0), turned (0, 1, 0), plus centre and shift (11, 23, 33).
    found = read_itk(path) @ [-2, -2, 3, 1]
    np.testing.assert_allclose(found, [-11, -23, 33, 1])


def test_file_that_is_no_transform_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("nothing")
    with pytest.raises(ValueError, match=r"t\.txt has no line 'Parameters:'"):
        read_itk(path)


def test_reference_is_carried_to_the_scan() -> None:
    mask = np.zeros((7, 8, 9), np.uint8)
    mask[5, 4, 3] = 1
    reference = Reference("manual", nib.Nifti1Image(mask, np.eye(4)), np.eye(4))
    reference.matrix[:3, 3] = (1, 0, -1)  # scan (x, y, z) lies at mask (x + 1, y, z - 1)
    scan = nib.Nifti1Image(np.zeros((7, 8, 9), np.float32), np.eye(4))
    assert np.argwhere(on_scan(reference, scan)).tolist() == [[4, 4, 4]]

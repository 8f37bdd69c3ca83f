from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.errors import InputError
from bidsapp.models.brain import _one_piece, deepbet_brain

DATA = Path(__file__).resolve().parents[2] / "../shared/data"


def test_one_piece_drops_the_smaller_piece_and_fills_holes() -> None:
    probability = np.full((7, 8, 9), 0.25, np.float32)
    probability[1:6, 1:6, 1:6] = 0.75
    probability[3, 3, 3] = 0.0  # a hole
    probability[1, 7, 8] = 0.75  # a stray voxel
    out = _one_piece(probability)
    assert out[3, 3, 3] == 1
    assert out[1, 7, 8] == 0
    assert out[2, 2, 2] == 0.75 and out[0, 0, 0] == 0.25
    assert out.dtype == np.float32


def test_one_piece_refuses_an_image_without_brain() -> None:
    with pytest.raises(InputError, match="no brain"):
        _one_piece(np.zeros((7, 8, 9), np.float32))


@pytest.mark.slow
def test_deepbet_agrees_with_freesurfer_on_a_real_t1w() -> None:
    folder = DATA / "bids_t1_freesurfer"
    if not folder.exists():
        pytest.skip(f"real scans are not here: {folder}")
    scan = nib.as_closest_canonical(nib.load(folder / "sub-01/anat/sub-01_T1w.nii.gz"))
    image = np.asanyarray(scan.dataobj, dtype=np.float32)
    truth = nib.load(folder / "derivatives/freesurfer/sub-01/anat/sub-01_space-orig_seg-aparcaseg_dseg.nii.gz")
    brain = np.asanyarray(nib.as_closest_canonical(truth).dataobj) > 0
    found = deepbet_brain(image)
    assert found.shape == image.shape and found.dtype == np.float32
    assert (found[brain] > 0.5).mean() > 0.98
    np.testing.assert_array_equal(found, deepbet_brain(image))


def test_deepbet_refuses_an_empty_image() -> None:
    with pytest.raises(InputError, match="deepbet finds no brain"):
        deepbet_brain(np.zeros((40, 41, 42), np.float32))

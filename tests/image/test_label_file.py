from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.errors import InputError
from bidsapp.image.label_file import open_labels, read_labels, read_mask

SHAPE = (7, 8, 9)
AFFINE = np.diag([-1.0, 1, 2, 1])


def saved(path: Path, data: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    return path


def marked(value: float, dtype: type = np.int16) -> np.ndarray:
    data = np.zeros(SHAPE, dtype)
    data[1, 2, 3] = value
    return data


@pytest.mark.parametrize("value", [1, 255])
def test_one_value_is_the_mask_whichever_it_is(tmp_path: Path, value: int) -> None:
    img = read_mask(saved(tmp_path / "mask.nii.gz", marked(value)))
    assert img.get_data_dtype() == np.uint8 and np.array_equal(np.asarray(img.dataobj), marked(1))
    np.testing.assert_array_equal(img.affine, AFFINE)  # as stored: the x axis runs to the left


def test_scaled_and_four_dimensional_labels_are_whole_numbers(tmp_path: Path) -> None:
    img = read_labels(saved(tmp_path / "dseg.nii", marked(42.00002, np.float32)[..., None]))
    assert img.shape == SHAPE and img.get_data_dtype() == np.int32
    assert np.array_equal(np.asarray(img.dataobj), marked(42))


@pytest.mark.parametrize(("data", "message"), [
    (marked(0.5, np.float32), r"not whole numbers \(0, 0.5\)"),
    (marked(np.nan, np.float32), "1 voxel with NaN"),
    (marked(-1), "those of no mask"),
    (np.arange(504, dtype=np.int16).reshape(SHAPE), r"0, 1, 2, 3, 4, ... \(504 of them\) are those of no mask"),
    (np.zeros((*SHAPE, 2), np.uint8), "three dimensions"),
    (np.zeros(SHAPE[:2], np.uint8), "three dimensions"),
])  # fmt: skip
def test_no_mask(tmp_path: Path, data: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=rf"mask\.nii.*{message}"):
        read_mask(saved(tmp_path / "mask.nii", data))


def test_what_is_no_whole_image(tmp_path: Path) -> None:
    path = saved(tmp_path / "mask.nii", marked(1))
    path.write_bytes(path.read_bytes()[:400])
    assert open_labels(path).shape == SHAPE  # the header is whole
    with pytest.raises(InputError, match="truncated or damaged"):
        read_labels(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="empty"):
        open_labels(path)

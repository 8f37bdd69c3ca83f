from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.errors import InputError
from bidsapp.image.drawn import WayBack, load_drawn, onto_work, scan_under

AFFINE = np.array([[-1.0, 0, 0, 20], [0, 1, 0, -18], [0, 0, 4, -30], [0, 0, 0, 1]])
SHAPE = (20, 24, 12)


def saved(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


@pytest.fixture
def scans(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    fine = np.diag([1.0, 1, 1, 1])
    return {
        "T1w": saved(tmp_path / "T1w.nii", rng.random((30, 30, 30), np.float32), fine),
        "FLAIR": saved(tmp_path / "FLAIR.nii", rng.random(SHAPE, np.float32)),
    }


def test_labels_are_found_on_the_scan_they_were_drawn_on(tmp_path: Path, scans: dict[str, Path]) -> None:
    contrast, grid = scan_under(saved(tmp_path / "label.nii", np.ones(SHAPE, np.uint8)), scans)
    assert contrast == "FLAIR" and grid.shape == SHAPE
    np.testing.assert_array_equal(grid.affine, AFFINE)


def test_only_the_header_of_a_scan_is_read(tmp_path: Path, scans: dict[str, Path]) -> None:
    scans["FLAIR"] = saved(tmp_path / "FLAIR.nii.gz", np.asarray(nib.load(scans["FLAIR"]).dataobj))
    whole = scans["FLAIR"].read_bytes()
    scans["FLAIR"].write_bytes(whole[: len(whole) // 2] + whole[-8:])  # the end of a gzip tells its size
    assert scan_under(saved(tmp_path / "label.nii", np.ones(SHAPE, np.uint8)), scans)[0] == "FLAIR"


@pytest.mark.parametrize("shift", [(0, 0, 4), (1, 0, 0)])
def test_labels_on_another_grid_are_refused(tmp_path: Path, scans: dict[str, Path], shift: tuple[int, ...]) -> None:
    moved = AFFINE.copy()
    moved[:3, 3] += shift
    with pytest.raises(InputError, match=r"label.nii.*none of this session's scans.*Resample"):
        scan_under(saved(tmp_path / "label.nii", np.ones(SHAPE, np.uint8), moved), scans)


def test_values_become_classes_in_the_order_asked_for(tmp_path: Path) -> None:
    data = np.zeros(SHAPE, np.int16)
    data[1, 2, 3], data[2, 2, 3], data[3, 2, 3] = 4, 43, 9
    grid = nib.Nifti1Image(np.zeros(SHAPE, np.float32), AFFINE)
    out = np.asarray(load_drawn(saved(tmp_path / "x.nii", data), grid, (43, 4)).dataobj)
    assert (out[1, 2, 3], out[2, 2, 3], out[3, 2, 3]) == (2, 1, 0)


@pytest.mark.parametrize(("data", "indices", "message"), [
    (np.zeros(SHAPE, np.uint8), (), "the mask is empty"),
    (np.ones(SHAPE, np.uint8), (7,), "none of the labels 7 occurs"),
    (np.full(SHAPE, np.nan, np.float32), (), "NaN"),
    (np.full(SHAPE, 0.4, np.float32), (1,), "not whole numbers"),
    (np.full(SHAPE, 0.4, np.float32), (), "Threshold it"),  # evaluate would refuse it after hours of training
    (np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), (), "those of no mask"),
])  # fmt: skip
def test_unusable_labels_are_named(tmp_path: Path, data: np.ndarray, indices: tuple[int, ...], message: str) -> None:
    grid = nib.Nifti1Image(np.zeros(SHAPE, np.float32), AFFINE)
    with pytest.raises(InputError, match=message):
        load_drawn(saved(tmp_path / "bad.nii", data), grid, indices)


def test_not_an_image(tmp_path: Path, scans: dict[str, Path]) -> None:
    (tmp_path / "label.nii").write_text("no image")
    with pytest.raises(InputError, match="not a readable NIfTI"):
        scan_under(tmp_path / "label.nii", scans)


def test_there_and_back_through_a_shift() -> None:
    """A block drawn on 4 mm slices of a scan that lies 3 mm beside the reference."""
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[6:14, 8:16, 4:8] = 1
    image = nib.Nifti1Image(drawn, AFFINE)
    work = nib.Nifti1Image(
        np.zeros((26, 26, 60), np.uint8), np.array([[1.0, 0, 0, -5], [0, 1, 0, -20], [0, 0, 1, -35], [0, 0, 0, 1]])
    )
    scan_work = nib.Nifti1Image(
        np.zeros((20, 24, 48), np.uint8), np.array([[1.0, 0, 0, 1], [0, 1, 0, -18], [0, 0, 1, -31.5], [0, 0, 0, 1]])
    )
    matrix = np.eye(4)
    matrix[0, 3] = 3.0
    moved = onto_work(image, work, matrix)
    assert int(np.asarray(moved.dataobj).sum()) == pytest.approx(4 * drawn.sum(), rel=0.07)  # half a voxel at a border
    probability = nib.Nifti1Image(np.asarray(moved.dataobj, np.float32), work.affine)
    back = WayBack(image, scan_work, matrix)
    assert np.array_equal(back.mean(probability) >= 0.5, drawn > 0)
    assert np.array_equal(back.mask(probability), drawn > 0)


def test_of_a_mask_that_fills_slices_by_half_some_come_back() -> None:
    """Ties go by place: the mask keeps its volume, instead of growing by half a slice at each end."""
    drawn = nib.Nifti1Image(np.zeros((40, 40, 12), np.uint8), np.diag([1.0, 1, 4, 1]))
    work = np.zeros((40, 40, 48), np.float32)
    work[:, :, 10:38] = 1  # two of the four millimetres of slices 2 and 9
    back = WayBack(drawn).mask(
        nib.Nifti1Image(work, np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -1.5], [0, 0, 0, 1]]))
    )
    assert back.sum() * 4 == pytest.approx(work.sum(), rel=0.02)

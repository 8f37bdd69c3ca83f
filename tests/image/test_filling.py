"""Lesions filled with white matter, on a scan whose white matter is known everywhere."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bidsapp.image.filling import fill_lesions

SHAPE, AFFINE = (60, 50, 40), np.diag([1.0, 1.0, 1.5, 1.0])


@pytest.fixture
def healthy(rng) -> np.ndarray:
    """White matter of 1000 with a bias of 30 % from left to right and noise of 20, in a shell of grey matter."""
    x = np.arange(SHAPE[0])[:, None, None]
    scan = 1000 * (0.85 + 0.3 * x / SHAPE[0]) + 20 * rng.normal(size=SHAPE)
    scan[:, :8], scan[:, -8:] = 650, 650
    return np.round(scan).astype(np.int16)


def images(healthy: np.ndarray, lesion: np.ndarray) -> tuple[nib.Nifti1Image, ...]:
    scan = np.where(lesion, 600, healthy).astype(np.int16)
    white = np.ones(SHAPE, np.float32)
    white[:, :8] = white[:, -8:] = 0
    white[lesion] = 0
    return tuple(nib.Nifti1Image(data, AFFINE) for data in (scan, lesion.astype(np.uint8), white))


def test_lesions_look_like_the_white_matter_that_was_there(healthy):
    lesion = np.zeros(SHAPE, bool)
    lesion[10:16, 20:26, 10:14] = lesion[40:52, 20:34, 15:30] = True  # the latter confluent: its middle is far away
    filled = fill_lesions(*images(healthy, lesion))
    data = np.asarray(filled.dataobj)
    assert filled.get_data_dtype() == np.int16 and np.array_equal(data[~lesion], healthy[~lesion])
    for side in (slice(0, 30), slice(30, 60)):
        here = lesion.copy()
        here[: side.start], here[side.stop :] = False, False
        new, old = data[here].astype(float), healthy[here].astype(float)
        assert new.mean() == pytest.approx(old.mean(), rel=0.01), "its brightness follows the bias field"
        assert new.std() == pytest.approx(old.std(), rel=0.5), "and it has noise"
    assert np.abs(data[lesion] - healthy[lesion].astype(float)).max() < 200
    assert filled.header.get_xyzt_units()[0] == "mm" and np.array_equal(filled.affine, AFFINE)
    again = np.asarray(fill_lesions(*images(healthy, lesion)).dataobj)
    assert np.array_equal(again, data)


def test_the_middle_of_a_large_lesion_is_filled_from_farther_away(healthy):
    lesion = np.zeros(SHAPE, bool)
    lesion[15:45, 12:38, 10:30] = True  # 30 x 26 x 30 mm: the nearest neighbourhood reaches 8 mm
    data = np.asarray(fill_lesions(*images(healthy, lesion)).dataobj)
    middle = np.s_[29:31, 24:26, 19:21]
    assert (np.abs(data[middle] - 1000.0) < 150).all()
    assert np.abs(data[lesion] - healthy[lesion].astype(float)).max() < 300


def test_nothing_to_fill_and_nothing_to_fill_with(healthy):
    none = np.zeros(SHAPE, bool)
    scan, lesion, white = images(healthy, none)
    assert np.array_equal(np.asarray(fill_lesions(scan, lesion, white).dataobj), healthy)
    lesion = nib.Nifti1Image((np.indices(SHAPE)[0] < 3).astype(np.uint8), AFFINE)
    black = nib.Nifti1Image(np.zeros(SHAPE, np.float32), AFFINE)
    assert np.array_equal(np.asarray(fill_lesions(scan, lesion, black).dataobj), healthy)


def test_fractions_stay_fractions(healthy):
    lesion = np.zeros(SHAPE, bool)
    lesion[20:24, 20:24, 20:24] = True
    scan, mask, white = images(healthy, lesion)
    scan = nib.Nifti1Image(np.asarray(scan.dataobj) / np.float32(7), AFFINE)
    filled = fill_lesions(scan, mask, white)
    assert filled.get_data_dtype() == np.float32
    assert np.array_equal(np.asarray(filled.dataobj)[~lesion], np.asarray(scan.dataobj)[~lesion])

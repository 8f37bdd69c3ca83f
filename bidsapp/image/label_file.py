"""Masks and dsegs as files: opened, checked, read; or what is wrong with one, and what to do."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from bidsapp.errors import InputError
from bidsapp.image.load import open_image, read_voxels
from bidsapp.words import count_of

#: How values may differ from 0 and 1 (or from whole numbers) by the scaling of a file.
ROUNDING = 1e-4


def open_labels(path: Path) -> nib.Nifti1Image:
    """A mask or dseg whose header was checked and whose voxels were not read yet.

    Raises
    ------
    InputError
        Not readable, not 3D, or an affine that says nothing. The message names the file and the remedy.
    """
    img = open_image(path)
    shape = img.shape
    if len(shape) < 3 or any(size != 1 for size in shape[3:]):
        raise InputError(
            f"{path}: shape {tuple(shape)}, but a mask or dseg has three dimensions."
            " Save one volume (nilearn.image.index_img)."
        )
    if not np.isfinite(img.affine).all() or abs(np.linalg.det(img.affine[:3, :3])) < 1e-9:
        raise InputError(
            f"{path}: its affine cannot be inverted, so nobody knows where its voxels lie. Convert it again."
        )
    return img


def read_labels(path: Path) -> nib.Nifti1Image:
    """A mask or dseg as int32, (X, Y, Z) as stored.

    Raises
    ------
    InputError
        As `open_labels`; or NaN, or values that are no whole numbers.
    """
    img = open_labels(path)
    data = read_voxels(img, path)
    data = data.reshape(data.shape[:3])
    if data.dtype.kind == "f":
        bad = int(np.size(data) - np.isfinite(data).sum())
        if bad:
            raise InputError(
                f"{path}: {count_of(bad, 'voxel')} with NaN or infinite values. Replace them by 0 (numpy.nan_to_num)."
            )
        whole = np.round(data)
        if np.abs(data - whole).max(initial=0) > ROUNDING:
            raise InputError(
                f"{path}: voxels are not whole numbers ({_some_values(data)}): a probability, or a mask that was"
                " interpolated linearly. Threshold it, e.g. at 0.5."
            )
        data = whole
    return nib.Nifti1Image(data.astype(np.int32), img.affine)


def read_mask(path: Path) -> nib.Nifti1Image:
    """A mask as uint8 0 and 1, (X, Y, Z) as stored; any one value besides 0 (such as 255) counts as 1.

    Raises
    ------
    InputError
        As `read_labels`, or there are more than two values, or negative ones.
    """
    img = read_labels(path)
    data = np.asarray(img.dataobj)
    values = np.unique(data)
    if len(values) > 2 or (values < 0).any() or (len(values) == 2 and values[0] != 0):
        raise InputError(
            f"{path}: the values {_some_values(data)} are those of no mask, which has 0 and 1. Threshold it, or name it"
            " *_dseg.nii.gz if these are labels."
        )
    return nib.Nifti1Image((data > 0).astype(np.uint8), img.affine)


def _some_values(data: np.ndarray) -> str:
    values = np.unique(data)
    return ", ".join(f"{value:g}" for value in values[:5]) + (
        f", ... ({len(values)} of them)" if len(values) > 5 else ""
    )

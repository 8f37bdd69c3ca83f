"""Reading and writing of the intermediate files that pass between nodes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bidsapp.image.save import in_file_order


def by_name(files: Iterable[str]) -> dict[str, str]:
    """Files by their stem: a list of files is what nipype can check for changes, a name is what we look up."""
    return {Path(path).name.split(".")[0]: path for path in files}


def load(path: str | Path) -> nib.Nifti1Image:
    """Load an image that the app itself wrote."""
    img = nib.load(path)
    assert isinstance(img, nib.Nifti1Image)
    return img


def array(path: str | Path, dtype: Any = np.float32, box: tuple[slice, ...] = ()) -> np.ndarray:
    """The voxels of an image, or of a box of it; tissue maps come with their class axis first, (C, X, Y, Z)."""
    proxy = load(path).dataobj
    data = np.asarray(proxy[box] if box else proxy, dtype=dtype)
    return np.ascontiguousarray(np.moveaxis(data, 3, 0)) if data.ndim == 4 else data


def voxel_size_mm(img: nib.Nifti1Image) -> tuple[float, float, float]:
    """Along the image's axes."""
    x, y, z = (float(size) for size in img.header.get_zooms()[:3])
    return x, y, z


def save(img: nib.Nifti1Image, folder: str, name: str) -> str:
    """Write an intermediate image, uncompressed (they are read again at once), and return its path."""
    path = Path(folder) / f"{name}.nii"
    nib.save(in_file_order(img), path)
    return str(path)

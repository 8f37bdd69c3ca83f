"""Write images of the derivatives: same result, same bytes; never half a file."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip

from bidsapp.writing import replacing

#: Of isal's levels, which are 0 to 3: nine times as fast as zlib's level 4, and files of a session are 8 % larger.
COMPRESSION = 2


def write_image(img: nib.Nifti1Image, path: Path) -> None:
    """Write ``.nii.gz`` aside and rename it.

    Parameters
    ----------
    img : Nifti1Image
        Stored in the type of its data. Float images other than fields of vectors should be passed through
        `as_probability` or `as_int16` first: raw floats hardly compress.
    path : Path
        Ends in ``.nii.gz``. Its folder is made.

    Notes
    -----
    The gzip header carries neither file name nor time, so equal images are equal files.
    """
    with (
        replacing(path) as aside,
        aside.open("wb") as stream,
        igzip.IGzipFile("", "wb", COMPRESSION, stream, mtime=0) as zipped,
    ):
        zipped.write(in_file_order(img).to_bytes())


def in_file_order(img: nib.Nifti1Image) -> nib.Nifti1Image:
    """The same image, its voxels in memory as they lie in a file: nibabel writes others slice by slice, slowly."""
    if not isinstance(img.dataobj, np.ndarray):  # it was read from a file
        return img
    return img.__class__(np.asfortranarray(img.dataobj), img.affine, img.header)


def as_probability(img: nib.Nifti1Image) -> nib.Nifti1Image:
    """Probabilities rounded to 1/1000: compresses well, and sums recomputed from the file are those reported."""
    data = np.round(np.asanyarray(img.dataobj, dtype=np.float32), 3)
    return nib.Nifti1Image(data.astype(np.float32), img.affine, img.header, dtype=np.float32)


def as_int16(img: nib.Nifti1Image) -> nib.Nifti1Image:
    """Intensities as scaled 16-bit integers (their scale factor is in the header)."""
    out = nib.Nifti1Image(np.asanyarray(img.dataobj, dtype=np.float32), img.affine, img.header)
    out.set_data_dtype(np.int16)
    return out

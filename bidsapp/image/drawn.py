"""Labels that others drew: on which scan's grid they lie, the way to the work grid, and back for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from bidsapp.errors import InputError
from bidsapp.image.grid import average_onto, on_grid
from bidsapp.image.load import GEOMETRY_TOLERANCE_MM, corner_distance, load_scan
from bidsapp.image.register import resample


def scan_under(label: Path, scans: Mapping[str, Path]) -> str:
    """The contrast on whose voxel grid a label image lies; the first of several.

    Parameters
    ----------
    label : Path
    scans : mapping
        Paths by contrast, in order of preference.

    Raises
    ------
    InputError
        It lies on none of them. The message names the grids and the remedy.
    """
    drawn = _read(label)
    told = []
    for contrast, path in scans.items():
        scan = load_scan(path).image
        if scan.shape == drawn.shape[:3] and any(
            corner_distance(drawn.affine, affine, scan.shape) <= GEOMETRY_TOLERANCE_MM
            for affine in (scan.affine, nib.Nifti1Image.from_filename(path).affine)
        ):
            return contrast
        told.append(f"{path.name} {scan.shape}")
    raise InputError(
        f"{label}: the labels {drawn.shape} lie on the grid of none of this session's scans ({', '.join(told)}):"
        " other size, orientation or position. Resample them onto the scan they were drawn on"
        " (nearest neighbour, e.g. nilearn.image.resample_to_img), or give labels with the right 'space-'."
    )


def load_drawn(label: Path, grid: nib.Nifti1Image, indices: Sequence[int] = ()) -> nib.Nifti1Image:
    """Read a label image, as classes 0, 1, ... on the affine of the scan it was drawn on.

    Parameters
    ----------
    label : Path
        Mask or dseg.
    grid : Nifti1Image
        The scan on its own grid, harmonised (`load.load_scan`).
    indices : sequence of int
        Values of the classes, in order; others are background. Empty: all that is not zero is class 1.

    Returns
    -------
    Nifti1Image
        uint8.

    Raises
    ------
    InputError
        Not a label image, or none of the classes occurs in it.
    """
    image = _read(label)
    data = np.asanyarray(image.dataobj)
    data = data.reshape(data.shape[:3])
    if not np.isfinite(data).all():
        raise InputError(f"{label}: NaN or infinite voxels in a label image. Replace them by 0.")
    if not indices:
        out = data > 0.5 if np.issubdtype(data.dtype, np.floating) else data > 0
    else:
        if not np.allclose(data, np.round(data), atol=1e-3):
            raise InputError(f"{label}: voxels are not whole numbers: no dseg, or one that was interpolated linearly.")
        table = {value: number for number, value in enumerate(indices, start=1)}
        out = np.zeros(data.shape, np.uint8)
        for value, number in table.items():
            out[np.round(data) == value] = number
    if not out.any():
        wanted = f"none of the labels {', '.join(map(str, indices))} occurs" if indices else "the mask is empty"
        raise InputError(f"{label}: {wanted}. Leave this case out (--participant-label), or mend the file.")
    return on_grid(np.asarray(out, np.uint8), grid)


def onto_work(drawn: nib.Nifti1Image, work: nib.Nifti1Image, matrix: np.ndarray | None = None) -> nib.Nifti1Image:
    """Classes on the work grid of the session: at each voxel the one that has most of it, by linear interpolation.

    Parameters
    ----------
    drawn : Nifti1Image
        Classes 0, 1, ... on a scan's own grid.
    work : Nifti1Image
        The reference on its work grid.
    matrix : array (4, 4), optional
        Rigid transform that resamples that scan onto the reference, where it is another.
    """
    data = np.asanyarray(drawn.dataobj)
    shares = [
        np.asarray(resample(on_grid((data == value).astype(np.float32), drawn), work, transform=matrix).dataobj)
        for value in range(1, int(data.max()) + 1)
    ]
    stack = np.stack([1 - np.sum(shares, axis=0), *shares])
    return on_grid(stack.argmax(0).astype(np.uint8), work)


def onto_drawn(
    probability: nib.Nifti1Image,
    drawn: nib.Nifti1Image,
    *,
    scan_work: nib.Nifti1Image | None = None,
    matrix: np.ndarray | None = None,
) -> np.ndarray:
    """A probability on the work grid carried to the grid of the drawn labels, averaged over each voxel.

    Parameters
    ----------
    probability, drawn : Nifti1Image
    scan_work : Nifti1Image, optional
        Work grid of the scan under the labels, where that is not the reference.
    matrix : array (4, 4), optional
        As in `onto_work`.

    Returns
    -------
    ndarray, float32
        On the grid of `drawn`.
    """
    if matrix is not None:
        assert scan_work is not None
        probability = resample(probability, scan_work, transform=np.linalg.inv(matrix))
    return np.asarray(average_onto(probability, drawn).dataobj)


def _read(path: Path) -> nib.Nifti1Image:
    try:
        image = nib.Nifti1Image.from_filename(path)
        shape = image.shape
    except Exception as error:  # nibabel raises whatever the file makes it raise
        raise InputError(f"{path}: not a readable NIfTI file ({error}).") from error
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise InputError(f"{path}: shape {shape}; a label image has three dimensions.")
    return image

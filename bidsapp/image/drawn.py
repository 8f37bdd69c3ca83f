"""Labels that others drew: on which scan's grid they lie, the way to the work grid, and back for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from bidsapp.errors import InputError
from bidsapp.image.grid import average_onto, mask_onto, on_grid
from bidsapp.image.label_file import open_labels, read_labels, read_mask
from bidsapp.image.load import GEOMETRY_TOLERANCE_MM, corner_distance, open_image, read_grid
from bidsapp.image.resample import resample


def scan_under(label: Path, scans: Mapping[str, Path]) -> tuple[str, nib.Nifti1Image]:
    """The contrast on whose voxel grid a label image lies, the first of several, and that grid (`load.read_grid`).

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
    drawn = open_labels(label)
    told = []
    for contrast, path in scans.items():
        scan = read_grid(path)
        if scan.shape == drawn.shape[:3] and any(
            corner_distance(drawn.affine, affine, scan.shape) <= GEOMETRY_TOLERANCE_MM
            for affine in (scan.affine, open_image(path).affine)
        ):
            return contrast, scan
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
        Values of the classes, in order; others are background. Empty: a mask, class 1.

    Returns
    -------
    Nifti1Image
        uint8.

    Raises
    ------
    InputError
        As `label_file.read_labels` and `read_mask`; or none of the classes occurs in it.
    """
    if indices:
        data = np.asarray(read_labels(label).dataobj)
        out = np.zeros(data.shape, np.uint8)
        for number, value in enumerate(indices, start=1):
            out[data == value] = number
    else:
        out = np.asarray(read_mask(label).dataobj)
    if not out.any():
        wanted = f"none of the labels {', '.join(map(str, indices))} occurs" if indices else "the mask is empty"
        raise InputError(f"{label}: {wanted}. Leave this case out (--participant-label), or mend the file.")
    return on_grid(out, grid)


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


@dataclass(frozen=True)
class WayBack:
    """From the work grid of a session to the grid its labels were drawn on.

    Attributes
    ----------
    drawn : Nifti1Image
        The labels, on a scan's own grid.
    scan_work : Nifti1Image, optional
        Work grid of that scan, where it is not the reference.
    matrix : array (4, 4), optional
        As in `onto_work`.
    """

    drawn: nib.Nifti1Image
    scan_work: nib.Nifti1Image | None = None
    matrix: np.ndarray | None = None

    def mean(self, probability: nib.Nifti1Image) -> np.ndarray:
        """A probability averaged over each voxel of the drawn labels, float32."""
        return np.asarray(average_onto(self._beside(probability), self.drawn).dataobj)

    def mask(self, mask: nib.Nifti1Image) -> np.ndarray:
        """The voxels of the drawn labels that a mask covers by half, ties by place, as the app writes masks."""
        return mask_onto(self._beside(mask), self.drawn)

    def _beside(self, image: nib.Nifti1Image) -> nib.Nifti1Image:
        if self.matrix is None:
            return image
        assert self.scan_work is not None
        return resample(image, self.scan_work, transform=np.linalg.inv(self.matrix))

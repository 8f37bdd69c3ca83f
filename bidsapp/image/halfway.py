"""A space half-way between the sessions of one subject, to which every scan is carried by the same amount.

Registering the follow-up to the baseline interpolates the follow-up alone, and the blur looks like a change (Yushkevich
et al. 2010, NeuroImage 50:434; Reuter and Fischl 2011, NeuroImage 57:19). Here every pair is registered both ways, the
two are averaged, and the space lies in the middle of all sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from scipy import linalg, ndimage

from bidsapp.image.grid import on_grid
from bidsapp.image.itk import Stage
from bidsapp.image.register import (
    FIXED_MARGIN,
    REGISTRATION_VOXEL_SIZE_MM,
    clip_intensities,
    deform,
    near_mask,
    register_rigid,
)
from bidsapp.image.resample import coarsen, crop, jacobian_determinant, resample

VOXEL_SIZE_MM = 1.0
MARGIN_MM = 5.0
#: Skull and fluid around the brain that the deformation sees.
BRAIN_MARGIN_MM = 4.0
#: Change is tenths of a per cent of a brain: smaller and more steps than the registration to the template takes.
SYN = Stage("SyN[0.25,3,0]", "Mattes", "32,Regular,0.5", "30x6", "2x1", "1x0")


@dataclass(frozen=True)
class Halfway:
    """The middle of a subject's sessions.

    Attributes
    ----------
    grid : Nifti1Image
        Empty uint8 image, 1 mm isotropic, axes along the mean scanner's, around the brains of all sessions.
    transforms : tuple of ndarray, each (4, 4)
        Of each session: points of the half-way space (RAS mm) to points of the session (what `resample` takes).
    disagreement_mm : tuple of float
        Of each session but the first: root mean square distance, over the brain's surface, of where the registration
        to the first session and the one back from it put a point. Large where one of them failed.
    """

    grid: nib.Nifti1Image
    transforms: tuple[np.ndarray, ...]
    disagreement_mm: tuple[float, ...]


def halfway_space(scans: Sequence[nib.Nifti1Image], masks: Sequence[nib.Nifti1Image]) -> Halfway:
    """Find the space half-way between the scans of one head.

    Parameters
    ----------
    scans : sequence of Nifti1Image
        One of each session, at least two, best of one contrast.
    masks : sequence of Nifti1Image
        Brain masks on the same grids.

    Returns
    -------
    Halfway

    Raises
    ------
    ValueError
        Fewer than two scans, or a mask is empty.
    """
    if len(scans) < 2 or len(scans) != len(masks):
        raise ValueError(
            f"A half-way space is that of two or more scans with masks, not {len(scans)} and {len(masks)}."
        )
    brains = [_brain_points(mask) for mask in masks]
    from_first, disagreements = [np.eye(4)], []
    for scan, mask in zip(scans[1:], masks[1:], strict=True):
        there = register_rigid(scan, scans[0], fixed_mask=masks[0])  # points of the first session to this one
        back = np.linalg.inv(register_rigid(scans[0], scan, fixed_mask=mask))
        from_first.append(mean_rigid([there, back]))
        gap = apply_affine(there, brains[0]) - apply_affine(back, brains[0])
        disagreements.append(float(np.sqrt((gap**2).sum(axis=1).mean())))
    middle = np.linalg.inv(mean_rigid(from_first))  # half-way point to point of the first session
    transforms = tuple(matrix @ middle for matrix in from_first)
    points = [apply_affine(np.linalg.inv(matrix), brain) for matrix, brain in zip(transforms, brains, strict=True)]
    return Halfway(_grid(np.concatenate(points)), transforms, tuple(disagreements))


def mean_rigid(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of rigid transforms that are not far from one another, by the logarithm.

    Parameters
    ----------
    matrices : sequence of ndarray, each (4, 4)

    Returns
    -------
    ndarray, shape (4, 4)
        The fixed point of M <- M exp(mean of log(M^-1 M_i)): of two, the transform half-way between them.
        (Arsigny et al. 2006, MICCAI: log-Euclidean polyaffine.)
    """
    mean = np.array(matrices[0], dtype=float)
    for _ in range(20):
        step = np.mean([linalg.logm(np.linalg.inv(mean) @ matrix).real for matrix in matrices], axis=0)
        mean = mean @ linalg.expm(step)
        if np.abs(step).max() < 1e-9:
            break
    mean[3] = 0, 0, 0, 1
    return mean


def carry(img: nib.Nifti1Image, halfway: Halfway, session: int, *, interpolation: str = "linear") -> nib.Nifti1Image:
    """Bring an image of a session (by its place in `halfway.transforms`) to the half-way space."""
    return resample(img, halfway.grid, transform=halfway.transforms[session], interpolation=interpolation)


def _brain_points(mask: nib.Nifti1Image) -> np.ndarray:
    """RAS mm of the surface of a mask, (n, 3)."""
    inside = np.asarray(mask.dataobj) > 0
    if not inside.any():
        raise ValueError("A brain mask is empty: there is nothing to register.")
    surface = np.argwhere(inside & ~ndimage.binary_erosion(inside))
    return np.asarray(apply_affine(mask.affine, surface))


def _grid(points: np.ndarray) -> nib.Nifti1Image:
    """A grid with whole millimetres as voxel centres, around points."""
    low = np.floor(points.min(axis=0) - MARGIN_MM)
    shape = np.ceil((points.max(axis=0) + MARGIN_MM - low) / VOXEL_SIZE_MM).astype(int) + 1
    affine = np.diag([VOXEL_SIZE_MM] * 3 + [1.0])
    affine[:3, 3] = low
    empty = np.zeros(tuple(shape), dtype=np.uint8)
    return on_grid(empty, nib.Nifti1Image(empty, affine))


def jacobians(
    first: nib.Nifti1Image, second: nib.Nifti1Image, near_brain: nib.Nifti1Image, *, seen: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Local volume ratios of the deformation from one scan to the other, and back.

    Parameters
    ----------
    first, second : Nifti1Image
        Two scans of one contrast in the half-way space.
    near_brain : Nifti1Image
        Brain of either session, on the same grid; the scans are compared in it and `BRAIN_MARGIN_MM` around it, so
        that brain masks that differ do not look like atrophy.
    seen : ndarray of bool, (X, Y, Z), optional
        What both scans show: beyond it nothing is compared. The blank beyond a field of view would squeeze the brain.

    Returns
    -------
    tuple of two ndarray, (X, Y, Z)
        Determinant of the Jacobian on the grid of the scans: of the points of the first to those of the second (above
        1: larger in the second), and of the second's to the first's.

    Notes
    -----
    SyN at 2 mm by mutual information, each direction on its own (Avants et al. 2008, Medical Image Analysis 12:26).
    """
    near = near_mask(near_brain, near_brain, margin_mm=BRAIN_MARGIN_MM)
    inside = np.asarray(near.dataobj) > 0
    if seen is not None:
        inside &= seen
    heads = [on_grid(clip_intensities(np.asarray(img.dataobj, np.float32), inside), img) for img in (first, second)]
    small = [crop(coarsen(head, REGISTRATION_VOXEL_SIZE_MM), margin=FIXED_MARGIN) for head in heads]
    out = []
    for fixed, moving in ((small[0], small[1]), (small[1], small[0])):
        warp, _ = deform(moving, fixed, affine=np.eye(4), stage=SYN)
        determinant = on_grid(jacobian_determinant(warp) - 1, fixed)
        out.append(1 + np.asarray(resample(determinant, near_brain).dataobj))
    return out[0], out[1]

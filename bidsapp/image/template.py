"""The template: ICBM 2009a symmetric brain and tissue priors, as packaged with nilearn, and its renderings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import nibabel as nib
import numpy as np

from bidsapp.image.grid import on_grid

TEMPLATE = "MNI152NLin2009aSym"

#: Intensity of GM, WM and CSF relative to the brightest class, per contrast. Source: the table of class means that
#: the project's network is trained around (spec/training.md, after the SynthSeg family: Billot et al. 2023).
CLASS_MEANS = {
    "T1w": (0.66, 1.0, 0.2),
    "T2w": (0.55, 0.38, 1.0),
    "FLAIR": (0.74, 0.6, 0.2),
}


@dataclass(frozen=True)
class Template:
    """A brain template in MNI space.

    Attributes
    ----------
    t1 : Nifti1Image
        3D float32, T1w of the skull-stripped brain, 0 outside, at most 1.
    mask : Nifti1Image
        3D uint8.
    priors : Nifti1Image
        4D float32, last axis in the order of `labels.TISSUES` (GM, WM, CSF); sums to 1 inside the mask, 0 outside.
    """

    t1: nib.Nifti1Image
    mask: nib.Nifti1Image
    priors: nib.Nifti1Image


@cache
def load_template(resolution_mm: int = 1) -> Template:
    """Load MNI152NLin2009aSym (Fonov et al. 2011, NeuroImage 54:313) from nilearn's package; no network.

    Parameters
    ----------
    resolution_mm : int
        Voxel size (mm). Coarser maps are block means of the 1 mm maps, so priors still sum to 1 inside the mask.

    Returns
    -------
    Template
        RAS axes. 1 mm: 197 x 233 x 189 voxels.

    Raises
    ------
    ValueError
        `resolution_mm` is not a whole number of mm from 1 to 8.

    Notes
    -----
    The brain mask is where the packaged T1w is not 0: the mask the template was stripped with. nilearn's own brain
    mask thresholds the T1w at 0.2 and has holes at the dark rim. GM and WM are divided by 255, not by their maximum;
    CSF is what they leave inside the mask (the package carries no CSF map).
    """
    if resolution_mm not in range(1, 9):
        raise ValueError(f"resolution_mm must be a whole number from 1 to 8, not {resolution_mm!r}.")
    if resolution_mm > 1:
        return _coarser(load_template(1), resolution_mm)
    from nilearn import datasets  # 1-2 s

    t1_img = datasets.load_mni152_template(resolution=1)
    t1, gm, wm = (
        np.ascontiguousarray(img.dataobj, dtype=np.float32)
        for img in (
            t1_img, datasets.load_mni152_gm_template(resolution=1), datasets.load_mni152_wm_template(resolution=1)
        )
    )  # fmt: skip
    mask = t1 > 0
    gm, wm = gm * mask, wm * mask
    excess = np.maximum(gm + wm, 1)
    gm, wm = gm / excess, wm / excess
    priors = np.stack([gm, wm, np.where(mask, 1 - gm - wm, 0)], axis=-1)
    return _template(t1, mask, priors, t1_img.affine)


def _coarser(fine: Template, resolution_mm: int) -> Template:
    t1, mask, priors = (np.asarray(img.dataobj) for img in (fine.t1, fine.mask, fine.priors))
    inside = _block_mean(mask.astype(np.float32), resolution_mm)
    inner = inside > 0.5
    means = _block_mean(priors, resolution_mm) / np.maximum(inside, 1e-6)[..., None] * inner[..., None]
    affine = fine.t1.affine @ _block_affine(resolution_mm)
    return _template(_block_mean(t1, resolution_mm) * inner, inner, means, affine)


def render_template(contrast: str, *, resolution_mm: int = 1) -> nib.Nifti1Image:
    """The template brain as it looks in another contrast: the T1w itself, or priors times published class means.

    Parameters
    ----------
    contrast : {"T1w", "T2w", "FLAIR"}
    resolution_mm : int

    Returns
    -------
    Nifti1Image
        3D float32, 0 outside the brain.

    Raises
    ------
    ValueError
        Unknown contrast.
    """
    if contrast not in CLASS_MEANS:
        raise ValueError(f"Unknown contrast {contrast!r}; known are {', '.join(CLASS_MEANS)}.")
    template = load_template(resolution_mm)
    if contrast == "T1w":
        return template.t1
    data = np.asarray(template.priors.dataobj) @ np.array(CLASS_MEANS[contrast], dtype=np.float32)
    return on_grid(data, template.t1)


def _template(t1: np.ndarray, mask: np.ndarray, priors: np.ndarray, affine: np.ndarray) -> Template:
    grid = nib.Nifti1Image(t1, affine)
    grid.set_sform(affine, 4)  # 4: MNI space
    grid.set_qform(affine, 4)
    return Template(grid, on_grid(mask, grid), on_grid(priors.astype(np.float32), grid))


def _block_affine(size: int) -> np.ndarray:
    """Voxel of the coarse grid -> voxel of the fine grid; the outer edges coincide at the first voxel."""
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = (size - 1) / 2
    return affine


def _block_mean(data: np.ndarray, size: int) -> np.ndarray:
    """Mean over blocks of size^3 voxels of the first three axes, the far edge padded with zeros."""
    pad = [(0, -n % size) for n in data.shape[:3]] + [(0, 0)] * (data.ndim - 3)
    data = np.pad(data, pad)
    for axis in range(3):
        shape = (
            *data.shape[:axis],
            data.shape[axis] // size,
            size,
            *data.shape[axis + 1 :],
        )
        data = data.reshape(shape).mean(axis=axis + 1)
    return data.astype(np.float32)

"""The template: ICBM 2009a symmetric brain and tissue priors, as packaged with nilearn, and its renderings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import as_file, files

import nibabel as nib
import numpy as np

from bidsapp.image.grid import block_affine, block_mean, bounding_box, on_grid

#: Intensity of GM, WM and CSF relative to the brightest class, per contrast. Source: the table of class means that
#: the project's network is trained around (spec/training.md, after the SynthSeg family: Billot et al. 2023).
CLASS_MEANS = {
    "T1w": (0.66, 1.0, 0.2),
    "T2w": (0.55, 0.38, 1.0),
    "FLAIR": (0.74, 0.6, 0.2),
}


@dataclass(frozen=True)
class Template:
    """MNI152NLin2009aSym (Fonov et al. 2011, NeuroImage 54:313), from nilearn's package; no network.

    Its images are made when they are first asked for. RAS axes; 1 mm: 197 x 233 x 189 voxels.

    Attributes
    ----------
    resolution_mm : int
        Voxel size. Coarser maps are block means of the 1 mm maps, so priors still sum to 1 inside the mask.

    Notes
    -----
    The brain mask is where the packaged T1w is not 0: the mask the template was stripped with. nilearn's own brain
    mask thresholds the T1w at 0.2 and has holes at the dark rim. GM and WM are divided by 255, not by their maximum;
    CSF is what they leave inside the mask (the package carries no CSF map).
    """

    resolution_mm: int

    @cached_property
    def t1(self) -> nib.Nifti1Image:
        """3D float32, T1w of the skull-stripped brain, 0 outside, at most 1."""
        if self.resolution_mm == 1:
            data, affine = _packaged("t1")
            return _in_mni(data / np.float32(data.max()), affine)
        fine = load_template(1).t1
        data = block_mean(np.asarray(fine.dataobj), self.resolution_mm) * np.asarray(self.mask.dataobj)
        return _in_mni(data, self._affine)

    @cached_property
    def mask(self) -> nib.Nifti1Image:
        """3D uint8."""
        if self.resolution_mm == 1:
            return _in_mni((np.asarray(self.t1.dataobj) > 0).astype(np.uint8), self._affine)
        return _in_mni((self._inside > 0.5).astype(np.uint8), self._affine)

    @cached_property
    def priors(self) -> nib.Nifti1Image:
        """4D float32, last axis as `labels.TISSUES` (GM, WM, CSF); sums to 1 inside the mask, 0 outside."""
        mask = np.asarray(self.mask.dataobj)
        priors = np.zeros((3, *mask.shape), np.float32)  # a tissue after the other: they are carried one by one
        if self.resolution_mm == 1:
            brain = bounding_box(mask, margin=0)
            inside = mask[brain] > 0
            gm, wm = (_packaged(name)[0][brain] / np.float32(255) * inside for name in ("gm", "wm"))
            excess = np.maximum(gm + wm, 1)
            gm, wm = gm / excess, wm / excess
            for tissue, out in zip((gm, wm, np.where(inside, 1 - gm - wm, 0)), priors, strict=True):
                out[brain] = tissue
        else:
            for fine, out in zip(np.moveaxis(np.asarray(load_template(1).priors.dataobj), -1, 0), priors, strict=True):
                out[:] = block_mean(fine, self.resolution_mm) / np.maximum(self._inside, 1e-6) * mask
        return _in_mni(np.moveaxis(priors, 0, -1), self._affine)

    @cached_property
    def _inside(self) -> np.ndarray:
        """Share of every voxel that lies inside the mask at 1 mm."""
        return block_mean(np.asarray(load_template(1).mask.dataobj, dtype=np.float32), self.resolution_mm)

    @property
    def _affine(self) -> np.ndarray:
        return np.asarray(load_template(1).t1.affine @ block_affine(self.resolution_mm))


@cache
def load_template(resolution_mm: int = 1) -> Template:
    """The template at a voxel size, made once in a process.

    Parameters
    ----------
    resolution_mm : int

    Returns
    -------
    Template

    Raises
    ------
    ValueError
        `resolution_mm` is not a whole number of mm from 1 to 8.
    """
    if resolution_mm not in range(1, 9):
        raise ValueError(f"resolution_mm must be a whole number from 1 to 8, not {resolution_mm!r}.")
    return Template(resolution_mm)


def _packaged(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A map of nilearn's package as it is kept there, uint8, and its affine.

    `nilearn.datasets` gives the same as float, after seconds of imports and copies; every process needs it.
    """
    file = files("nilearn") / f"datasets/data/mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    with as_file(file) as path:
        img = nib.Nifti1Image.from_filename(path)
        return np.asarray(img.dataobj), img.affine


def _in_mni(data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    img = nib.Nifti1Image(data, affine)
    img.set_sform(affine, 4)  # 4: MNI space
    img.set_qform(affine, 4)
    img.header.set_xyzt_units("mm")
    return img


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

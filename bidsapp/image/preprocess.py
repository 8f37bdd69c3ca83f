"""Normalise a scan on the work grid (for the models) and, by the same mapping, at native resolution (for the user)."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from bidsapp.image.grid import average_onto, on_grid
from bidsapp.image.intensity import denoise as denoise_image
from bidsapp.image.intensity import intensity_map
from bidsapp.image.register import resample


def normalize_pair(
    work: nib.Nifti1Image,
    mask: nib.Nifti1Image,
    *,
    native: nib.Nifti1Image,
    field: nib.Nifti1Image,
    reference: nib.Nifti1Image,
    transform: np.ndarray | None,
    contrast: str,
    method: str,
    denoise: bool,
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Apply noise reduction and intensity normalisation to both versions of a scan.

    Parameters
    ----------
    work : Nifti1Image
        Bias-corrected scan on the reference's work grid.
    mask, field : Nifti1Image
        Brain mask and bias field, on the work grid.
    native : Nifti1Image
        The scan as it was acquired (uncorrected).
    reference : Nifti1Image
        Defines the grid of the second result: the reference scan on its native grid.
    transform : array, shape (4, 4), or None
        Rigid transform that resamples the scan onto the reference (RAS mm); None for the reference itself.
    contrast, method : str
        Contrast and "zscore" or "nyul".
    denoise : bool
        Non-local means first.

    Returns
    -------
    work, native : Nifti1Image
        Preprocessed scan on the work grid, and on the reference's native grid.
    """
    carried = native if transform is None else resample(native, reference, transform=transform, interpolation="bspline")
    corrected = np.asanyarray(carried.dataobj) / _native_field(field, reference)
    native_out = on_grid(corrected.astype(np.float32), reference)
    if denoise:
        native_mask = on_grid(np.asanyarray(average_onto(mask, reference).dataobj) >= 0.5, reference)
        work, native_out = denoise_image(work, mask), denoise_image(native_out, native_mask)
    mapping = intensity_map(work, mask, method=method, contrast=contrast)
    return mapping.apply(work), mapping.apply(native_out)


def _native_field(field: nib.Nifti1Image, reference: nib.Nifti1Image) -> np.ndarray:
    """The bias field on the reference's own grid; 1 outside the work grid, where there is no estimate."""
    covered = average_onto(nib.Nifti1Image(np.ones(field.shape, np.float32), field.affine), reference)
    share = np.asanyarray(covered.dataobj)
    total = np.asanyarray(average_onto(field, reference).dataobj)
    return np.where(share > 0, total / np.maximum(share, 1e-6), 1)

"""Brain masks: extraction by the template (for scans without T1w), and cleaning."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from scipy import ndimage

from bidsapp.image.grid import on_grid


def clean_mask(mask: nib.Nifti1Image) -> nib.Nifti1Image:
    """Largest connected component (faces touch) of a mask, its holes filled.

    Parameters
    ----------
    mask : Nifti1Image
        3D; inside is above 0.

    Returns
    -------
    Nifti1Image
        uint8, same grid. Empty where `mask` is empty.
    """
    return on_grid(_largest_filled(np.asarray(mask.dataobj) > 0), mask)


def _largest_filled(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    largest = np.bincount(labels.ravel())[1:].argmax() + 1
    return ndimage.binary_fill_holes(labels == largest)

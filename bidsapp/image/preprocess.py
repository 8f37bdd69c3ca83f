"""Normalise a scan on the work grid (for the models) and, by the same mapping, at native resolution (for the user)."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from bidsapp.image.grid import average_onto, mask_onto, on_grid
from bidsapp.image.intensity import IntensityMap, intensity_map
from bidsapp.image.intensity import denoise as denoise_image
from bidsapp.image.resample import field_of_view, resample

#: From this share of the brain on a scan counts as whole: what lies beyond is a few voxels at the mask's rim.
WHOLE = 0.999
#: Below this share the user is told.
NEARLY_WHOLE = 0.97
#: A contrast that shows less is of more harm than use to the models of the session (docs/decisions/0016).
LEAST_SHOWN = 0.5
#: Fewer voxels of the brain (1 ml) say nothing of a scan's intensities.
LEAST_VOXELS = 1000


def in_view(
    scan: nib.Nifti1Image, mask: nib.Nifti1Image, transform: np.ndarray, *, contrast: str
) -> tuple[np.ndarray | None, str]:
    """Where a scan shows the brain of the reference.

    Parameters
    ----------
    scan : Nifti1Image
        On its own work grid; its voxels are not read.
    mask : Nifti1Image
        Brain mask on the reference's work grid.
    transform : array, shape (4, 4)
        Rigid transform that resamples the scan onto the reference (RAS mm).
    contrast : str
        For the warning.

    Returns
    -------
    seen : ndarray of bool, or None
        Field of view on the grid of `mask`; None where the whole brain lies in it.
    warning : str
        What the user should know of it, or nothing.
    """
    seen = field_of_view(scan, mask, transform)
    share = float(seen[np.asarray(mask.dataobj) > 0].mean())
    if share >= WHOLE:
        return None, ""
    remedy = "If there is a scan of the whole head, choose that with --bids-filter-file; else check the registration."
    told = f"The {contrast} shows {int(100 * share)} % of the brain:"
    if share < LEAST_SHOWN:
        return seen, f"{told} too little, it was not used for tissues and lesions. {remedy}"
    if share < NEARLY_WHOLE:
        beyond = "outside its field of view tissues were told by the other scans alone, and lesions may be missing."
        return seen, f"{told} {beyond} {remedy}"
    return seen, ""


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
    seen: np.ndarray | None = None,
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
        Contrast, and "zscore" or "nyul" for the native grid. On the work grid it is always z-scores: the network was
        trained on them, and the other models take the brightness of a scan as it is, but for its scale.
    denoise : bool
        Non-local means first.
    seen : ndarray of bool, optional
        Where the scan shows anything, on the work grid: see `in_view`.

    Returns
    -------
    work, native : Nifti1Image
        Preprocessed scan on the work grid, and on the reference's native grid. What was not seen is NaN on the work
        grid, so that no model takes it for signal, and as dark as air on the native one.
    """
    if seen is not None:
        mask = on_grid((np.asarray(mask.dataobj) > 0) & seen, mask)
    carried = native if transform is None else resample(native, reference, transform=transform, interpolation="bspline")
    corrected = np.asanyarray(carried.dataobj) / _native_field(field, reference)
    native_out = on_grid(corrected.astype(np.float32), reference)
    if denoise:
        native_mask = on_grid(mask_onto(mask, reference), reference)
        work, native_out = denoise_image(work, mask), denoise_image(native_out, native_mask)
    zscore = mapping = _mapping(work, mask, method="zscore", contrast=contrast, whole=seen is None)
    if method != "zscore":
        mapping = _mapping(work, mask, method=method, contrast=contrast, whole=seen is None)
    work_out = zscore.apply(work)
    if seen is not None:
        work_out = on_grid(np.where(seen, np.asarray(work_out.dataobj), np.float32(np.nan)), work)
    return work_out, mapping.apply(native_out)


def only_seen(native: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """A scan as `normalize_pair` gives it at native resolution, NaN where it shows nothing.

    All that it does not show has one value, that of air: dark, and the commonest in the brain.

    Parameters
    ----------
    native : ndarray, shape (X, Y, Z)
    brain : ndarray of bool, shape (X, Y, Z)

    Returns
    -------
    ndarray, shape (X, Y, Z)
    """
    values, counts = np.unique(native[brain], return_counts=True)
    if not values.size or counts.max() < (1 - WHOLE) * brain.sum():
        return native
    air = values[counts.argmax()]
    others = native[brain & (native != air)]
    if others.size and air > np.percentile(others, 5):
        return native
    return np.where(native == air, np.nan, native)


def _mapping(work: nib.Nifti1Image, mask: nib.Nifti1Image, *, method: str, contrast: str, whole: bool) -> IntensityMap:
    """The normalisation; none where a scan shows next to nothing of the brain (it is not used, and told of)."""
    if not whole and np.count_nonzero(mask.dataobj) < LEAST_VOXELS:
        return IntensityMap((0.0, 1.0), (0.0, 1.0))
    return intensity_map(work, mask, method=method, contrast=contrast)


def _native_field(field: nib.Nifti1Image, reference: nib.Nifti1Image) -> np.ndarray:
    """The bias field on the reference's own grid; 1 outside the work grid, where there is no estimate."""
    values = np.asanyarray(average_onto(field, reference).dataobj)
    return np.where(values > 0, values, 1)

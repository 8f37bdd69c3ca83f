"""Lesions filled with what white matter looks like around them, for tools that take dark lesions for grey matter."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from bidsapp.image.grid import bounding_box, on_grid
from bidsapp.image.intensity import MAD_TO_SD

#: White matter in the neighbourhood is weighted by a Gaussian of this standard deviation (mm) ...
NEIGHBOURHOOD_MM = 4.0
#: ... which is doubled, up to here, where there is too little: within large and confluent lesions.
FARTHEST_MM = 16.0
#: Least share of the neighbourhood that must be white matter.
LEAST_WHITE = 0.05
#: Share of white matter above which a voxel is a sample of it; at least a voxel away from any lesion.
SURELY_WHITE = 0.9
#: Deviations beyond this many robust standard deviations are no noise, but vessels and what else is no white matter.
USUAL = 2.5
#: The texture is drawn from the white matter by a generator with this seed: the same scan is filled in the same way.
SEED = 0


def fill_lesions(scan: nib.Nifti1Image, lesion: nib.Nifti1Image, white: nib.Nifti1Image) -> nib.Nifti1Image:
    """Give lesions the brightness and the noise of the white matter around them.

    Parameters
    ----------
    scan : Nifti1Image
        3D T1w, not corrected for anything.
    lesion : Nifti1Image
        Lesion mask on the same grid.
    white : Nifti1Image
        Share of healthy white matter in each voxel, 0 to 1, on the same grid.

    Returns
    -------
    Nifti1Image
        Integers where the scan has integers, else float32; outside the lesions the very values of the scan. Without
        enough white matter anywhere near, a lesion stays as it is.

    Notes
    -----
    After Battaglini et al. 2012 (Hum Brain Mapp 33:2062-2071): a lesion's voxels get the mean of the white matter
    around them, by normalised convolution, so that it follows the bias field, and the deviation from that mean of white
    matter voxels drawn at random.
    """
    data = np.array(scan.dataobj, dtype=np.float32)
    mask = np.asarray(lesion.dataobj) > 0
    if mask.any():
        size = voxel_sizes(scan.affine)
        box = bounding_box(mask, margin=np.ceil(2 * FARTHEST_MM / size).astype(int).tolist())
        samples = (np.asarray(white.dataobj[box]) > SURELY_WHITE) & ~ndimage.binary_dilation(mask[box])
        part = data[box]  # a view: what is filled is filled in the scan
        mean = _mean_of(part, samples, size, mask[box])
        wanted = mask[box] & np.isfinite(mean)
        known = samples & np.isfinite(mean)
        if known.any():
            deviations = (part - mean)[known]
            usual = USUAL * MAD_TO_SD * np.median(np.abs(deviations))
            deviations = deviations[np.abs(deviations) <= usual]
            part[wanted] = mean[wanted] + np.random.default_rng(SEED).choice(deviations, int(wanted.sum()))
    return _as_stored(data, scan)


def _mean_of(part: np.ndarray, samples: np.ndarray, size: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Mean of the samples around each voxel, from as near as there are enough where it is needed; else NaN."""
    mean = np.full(part.shape, np.nan, np.float32)
    sigma_mm = NEIGHBOURHOOD_MM
    while sigma_mm <= FARTHEST_MM and np.isnan(mean[needed]).any():
        weight, total = (
            ndimage.gaussian_filter(values.astype(np.float32), sigma_mm / size, mode="constant", truncate=2.0)
            for values in (samples, np.where(samples, part, 0))
        )
        here = np.isnan(mean) & (weight >= LEAST_WHITE)
        mean[here] = total[here] / weight[here]
        sigma_mm *= 2
    return mean


def _as_stored(data: np.ndarray, scan: nib.Nifti1Image) -> nib.Nifti1Image:
    """Whole numbers as such: scaled ones would differ from the scan's in the last digit."""
    original = np.asarray(scan.dataobj, dtype=np.float32)
    for kind in (np.int16, np.int32):
        limits = np.iinfo(kind)
        if (
            original.min() >= limits.min
            and original.max() < limits.max
            and np.array_equal(original, np.round(original))
        ):
            return on_grid(np.clip(np.round(data), limits.min, limits.max).astype(kind), scan)
    return on_grid(data, scan)

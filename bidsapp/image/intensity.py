"""Intensities made comparable between scans (z-score, Nyul) and noise reduction."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import nibabel as nib
import numpy as np

from bidsapp.image.grid import bounding_box, on_grid
from bidsapp.image.itk import to_ants
from bidsapp.image.template import load_template, render_template

#: Percentiles within the brain: the ends and the deciles (Nyul, Udupa, Zhang 2000, IEEE TMI 19:143).
LANDMARKS = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)

#: Scale of the median absolute deviation to the standard deviation of a normal distribution.
MAD_TO_SD = 1.4826
#: Voxels. A search radius of 2 takes three times as long and removes no more of simulated Rician noise on the template.
PATCH_RADIUS = SEARCH_RADIUS = 1


def robust_spread(values: np.ndarray) -> tuple[float, float]:
    """Median, and the standard deviation by the median absolute deviation (`MAD_TO_SD`)."""
    median = float(np.median(values))
    return median, MAD_TO_SD * float(np.median(np.abs(values - median)))


@dataclass(frozen=True)
class IntensityMap:
    """A monotone, piecewise linear mapping of intensities; the end segments continue beyond the ends.

    Attributes
    ----------
    source, target : tuple of float
        At least two points each; `source` strictly increasing, `target` not decreasing.
    """

    source: tuple[float, ...]
    target: tuple[float, ...]

    def apply(self, img: nib.Nifti1Image) -> nib.Nifti1Image:
        """The mapped image: float32, same grid."""
        data = np.asanyarray(img.dataobj)
        x, y = np.array(self.source), np.array(self.target)
        slopes = np.diff(y)[[0, -1]] / np.diff(x)[[0, -1]]
        out = np.empty_like(data, dtype=np.float32)
        for index in range(data.shape[-1]):  # slice by slice: in float64 a scan of half a millimetre takes gigabytes
            piece = data[..., index].astype(np.float64)
            beyond = np.minimum(piece - x[0], 0) * slopes[0] + np.maximum(piece - x[-1], 0) * slopes[1]
            out[..., index] = np.interp(piece, x, y) + beyond
        return on_grid(out, img)


def intensity_map(img: nib.Nifti1Image, mask: nib.Nifti1Image, *, method: str, contrast: str) -> IntensityMap:
    """The mapping that normalises a scan, to be applied to it at any resolution.

    Parameters
    ----------
    img : Nifti1Image
        3D, bias-corrected.
    mask : Nifti1Image
        Brain mask on the same grid.
    method : {"zscore", "nyul"}
        Mean 0 and standard deviation 1 inside the mask; or the scan's landmarks mapped to the standard ones of its
        contrast, scale 0-100 (Nyul, Udupa, Zhang 2000, IEEE TMI 19:143).
    contrast : {"T1w", "T2w", "FLAIR"}

    Returns
    -------
    IntensityMap

    Raises
    ------
    ValueError
        Unknown method or contrast, empty mask, or a scan that is constant inside the mask.
    """
    values = _inside(img, mask)
    if method == "zscore":
        mean, deviation = float(values.mean()), float(values.std())
        return IntensityMap((mean, mean + deviation), (0.0, 1.0))
    if method == "nyul":
        return _nyul_map(values, standard_landmarks(contrast))
    raise ValueError(f"Unknown normalisation {method!r}; known are zscore, nyul.")


@cache
def standard_landmarks(contrast: str) -> tuple[float, ...]:
    """Standard landmarks of a contrast, scale 0-100, one for each of `LANDMARKS`.

    They are the percentiles, within the brain, of the template: its own T1w, or T2w and FLAIR rendered from its
    priors and published class means (`template.CLASS_MEANS`). No scan of any subject takes part, so any subject can
    be mapped without a training set.

    Parameters
    ----------
    contrast : {"T1w", "T2w", "FLAIR"}

    Returns
    -------
    tuple of float
        Strictly increasing, 0 for the first and 100 for the last.

    Raises
    ------
    ValueError
        Unknown contrast.
    """
    brain = _inside(render_template(contrast), load_template().mask)
    landmarks = np.percentile(brain, LANDMARKS)
    landmarks = 100 * (landmarks - landmarks[0]) / (landmarks[-1] - landmarks[0])
    return tuple(float(x) for x in landmarks)


def denoise(img: nib.Nifti1Image, mask: nib.Nifti1Image) -> nib.Nifti1Image:
    """Non-local means with spatially varying Rician noise (Manjon et al. 2010, JMRI 31:192) inside the mask.

    Parameters
    ----------
    img : Nifti1Image
        3D.
    mask : Nifti1Image
        Brain mask on the same grid; the image is unchanged outside.

    Returns
    -------
    Nifti1Image
        float32, finite, same grid.

    Raises
    ------
    ValueError
        The grids differ.
    """
    import ants

    data = np.asarray(img.dataobj, dtype=np.float32)
    inside = np.asarray(mask.dataobj) > 0
    if data.shape != inside.shape:
        raise ValueError(f"Image and mask differ in shape: {data.shape} and {inside.shape}.")
    if not inside.any():
        return on_grid(data, img)
    box = bounding_box(inside, margin=4)
    clean = ants.denoise_image(
        to_ants(data[box], img.affine, box),
        mask=to_ants(inside[box].astype(np.float32), img.affine, box),
        p=PATCH_RADIUS,
        r=SEARCH_RADIUS,
    ).numpy()
    out = data.copy()
    out[box] = np.where(inside[box] & np.isfinite(clean), clean, data[box])
    return on_grid(out, img)


def _inside(img: nib.Nifti1Image, mask: nib.Nifti1Image) -> np.ndarray:
    data, inside = np.asarray(img.dataobj), np.asarray(mask.dataobj) > 0
    if data.shape != inside.shape:
        raise ValueError(f"Image and mask differ in shape: {data.shape} and {inside.shape}.")
    values = data[inside].astype(np.float64)
    if values.size == 0:
        raise ValueError("The brain mask is empty: intensities cannot be normalised.")
    if values.max() == values.min():
        raise ValueError("The scan is constant inside the brain mask: intensities cannot be normalised.")
    return values


def _nyul_map(values: np.ndarray, standard: tuple[float, ...]) -> IntensityMap:
    """Landmarks that collide (many equal voxels) are merged, so that the mapping stays a function."""
    source = np.percentile(values, LANDMARKS)
    distinct = np.flatnonzero(np.r_[True, np.diff(source) > 1e-6 * (source[-1] - source[0] + 1e-12)])
    if distinct.size < 2:  # nearly all voxels equal: only the range is left to go by
        return IntensityMap((float(values.min()), float(values.max())), (standard[0], standard[-1]))
    target = [float(np.mean(group)) for group in np.split(np.array(standard), distinct[1:])]
    return IntensityMap(tuple(source[distinct].tolist()), tuple(target))

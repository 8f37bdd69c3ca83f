"""Quality of a scan as an image: contrast, noise, shading and ripples, of each contrast of a session alike.

The formulas of contrast and noise are those of MRIQC (Esteban et al. 2017, PLoS ONE 12:e0184661;
``mriqc/qc/anatomical.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from scipy import ndimage

from bidsapp.image.grid import bounding_box
from bidsapp.image.intensity import robust_spread
from bidsapp.labels import CONTRASTS

#: Share of white matter of what is nothing else, and how deep (mm) below its surface ripples are looked for.
PURE = 0.9
DEPTH_MM = 2.0
#: Width (mm, sigma) of the smoothing, and the distance over which slopes are taken.
RIPPLE_MM = 2.0
#: Side (mm) of the surroundings whose mean is taken away first: anatomy and shading are wider than ripples.
AROUND_MM = 20.0
#: Slices thicker than this many times the pixels are looked at one by one.
THICK = 1.6
#: Fewer voxels of a tissue say nothing of a scan.
LEAST_VOXELS = 100

#: Long name, unit and description of what is measured of every contrast, by the end of its column.
_MEASURES: dict[str, tuple[str, str, str]] = {
    "cnr": (
        "Contrast-to-noise ratio of gray and white matter",
        "",
        "As cnr, on the {contrast} as it was acquired: on its own voxels, bias-corrected; n/a without one.",
    ),
    "snr_wm": ("Signal-to-noise ratio of white matter", "", "As snr_wm, on the scan as it was acquired."),
    "shading_percent": (
        "Shading of the brain",
        "percent",
        "95th less 5th percentile of the bias field in the brain, relative to its median (as MRIQC's INU range). "
        "It was corrected; much of it leaves more noise where the scan was dark.",
    ),
    "wm_ripples": (
        "Ripples in white matter",
        "percent/mm",
        "Root mean square of the slopes of the bias-corrected scan, smoothed (sigma 2 mm), in white matter 2 mm below "
        "its surface, along the axis of the slices where they are steepest, relative to the median there. Movement "
        "during the scan raises it. For comparing scans of one protocol.",
    ),
    "slice_mm": (
        "Largest side of a voxel",
        "mm",
        "Largest side of a voxel of the scan as it was acquired; as a rule the distance between slices.",
    ),
}


def _columns() -> dict[str, dict[str, str]]:
    out, first = {}, CONTRASTS[0].lower()
    for contrast in CONTRASTS:
        for measure, (name, unit, text) in _MEASURES.items():
            about = {"LongName": f"{name}, {contrast}"} | ({"Units": unit} if unit else {})
            told = text.format(contrast=contrast)
            if contrast != CONTRASTS[0] and measure != "cnr":
                told = f"As {first}_{measure}."
            out[f"{contrast.lower()}_{measure}"] = about | {"Description": told}
    return out


#: Data dictionary of the columns that every contrast has in the QC table: ``t1w_cnr`` and so on.
SCAN_COLUMNS = _columns()


def contrast_to_noise(image: np.ndarray, gm: np.ndarray, wm: np.ndarray) -> float:
    """MRIQC's CNR: difference of the tissue medians over the pooled standard deviation (Magnotta and Friedman 2006).

    Without the noise of air, which stripped and defaced scans do not show.

    Parameters
    ----------
    image : ndarray, shape (X, Y, Z)
    gm, wm : ndarray of bool, shape (X, Y, Z)

    Returns
    -------
    float
        NaN when a tissue is empty or nothing varies.
    """
    if not gm.any() or not wm.any():
        return float("nan")
    spread = np.sqrt(np.var(image[gm]) + np.var(image[wm]))
    return divide(abs(np.median(image[gm]) - np.median(image[wm])), spread)


def joint_variation(image: np.ndarray, gm: np.ndarray, wm: np.ndarray) -> float:
    """MRIQC's CJV: sum of the tissues' scaled MADs over the difference of their medians (Ganzetti et al. 2016).

    Parameters
    ----------
    image : ndarray, shape (X, Y, Z)
    gm, wm : ndarray of bool, shape (X, Y, Z)

    Returns
    -------
    float
        NaN when a tissue is empty or the medians are the same.
    """
    if not gm.any() or not wm.any():
        return float("nan")
    (gm_median, gm_mad), (wm_median, wm_mad) = robust_spread(image[gm]), robust_spread(image[wm])
    return divide(wm_mad + gm_mad, abs(wm_median - gm_median))


def signal_to_noise(image: np.ndarray, region: np.ndarray) -> float:
    """MRIQC's SNR within a tissue: median over the standard deviation, corrected for few voxels.

    Parameters
    ----------
    image : ndarray, shape (X, Y, Z)
        On a scale with a true zero: not z-scores.
    region : ndarray of bool, shape (X, Y, Z)

    Returns
    -------
    float
        NaN for fewer than two voxels or no variation.
    """
    values = image[region]
    if len(values) < 2:
        return float("nan")
    return divide(float(np.median(values)), float(values.std() * np.sqrt(len(values) / (len(values) - 1))))


def shading_percent(field: np.ndarray, brain: np.ndarray) -> float:
    """Range of a bias field, 5th to 95th percentile within the brain, in percent of its median.

    Parameters
    ----------
    field : ndarray, shape (X, Y, Z)
    brain : ndarray of bool, shape (X, Y, Z)

    Returns
    -------
    float
        0 for an even scan; NaN without a brain.
    """
    if not brain.any():
        return float("nan")
    low, middle, high = np.percentile(field[brain], (5, 50, 95))
    return 100 * divide(float(high - low), float(middle))


def wm_ripples(image: np.ndarray, wm: np.ndarray, voxel_size_mm: Sequence[float]) -> float:
    """How steep the brightness of white matter still is once noise is averaged out, in percent per mm.

    Movement during a scan leaves stripes where the tissue is even. White matter well below its surface, without what is
    as far from it as vessels and lesions, is smoothed; then the root mean square of the slopes along each axis, of
    which the largest counts. Thick slices are looked at one by one.

    Parameters
    ----------
    image : ndarray, shape (X, Y, Z)
        Bias-corrected, on a scale with a true zero.
    wm : ndarray, shape (X, Y, Z)
        Share of white matter.
    voxel_size_mm : sequence of float

    Returns
    -------
    float
        NaN without enough white matter.
    """
    sizes = np.array(voxel_size_mm)
    across = sizes > THICK * sizes.min()  # of thick slices
    reach = np.where(across, 0, np.maximum(1, np.round(DEPTH_MM / sizes))).astype(int)
    deep = ndimage.minimum_filter(wm > PURE, 2 * reach + 1, mode="constant")
    if np.count_nonzero(deep) < LEAST_VOXELS:
        return float("nan")
    box = bounding_box(deep, margin=0)
    deep, values = deep[box], np.where(deep, image, 0)[box].astype(np.float32)
    around = np.where(across, 1, np.round(AROUND_MM / sizes)).astype(int)
    uneven = values - _mean_within(values, deep, partial(ndimage.uniform_filter, size=around))
    _, spread = robust_spread(uneven[deep])
    even = np.clip(uneven, -3 * spread, 3 * spread)
    sigma = np.where(across, 0, RIPPLE_MM / sizes)
    smooth = _mean_within(even, deep, partial(ndimage.gaussian_filter, sigma=sigma, truncate=3))
    steepest = 0.0
    for axis in np.flatnonzero(~across):
        lag = max(1, round(RIPPLE_MM / sizes[axis]))
        (here, inside), (there, inside_too) = (
            (np.moveaxis(smooth, axis, 0)[part], np.moveaxis(deep, axis, 0)[part])
            for part in (slice(lag, None), slice(-lag))
        )
        steps = (here - there)[inside & inside_too]
        if steps.size:
            steepest = max(steepest, float(np.sqrt(np.mean(steps**2))) / (lag * sizes[axis]))
    return 100 * divide(steepest, float(np.median(values[deep])))


def _mean_within(values: np.ndarray, mask: np.ndarray, mean: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Moving mean over the voxels of a mask alone, there; 0 elsewhere."""
    weights, sums = mean(mask.astype(np.float32)), mean(np.where(mask, values, 0))
    return np.where(mask, sums / np.maximum(weights, 1e-6), 0)


def scan_quality(
    image: np.ndarray, tissues: np.ndarray, field: np.ndarray, voxel_size_mm: Sequence[float]
) -> dict[str, float | None]:
    """What is measured of one contrast, by the ends of the columns' names.

    Parameters
    ----------
    image : ndarray, shape (X, Y, Z)
        The scan on its own grid, bias-corrected, on a scale with a true zero.
    tissues : ndarray, shape (2, X, Y, Z) or (1, X, Y, Z)
        Shares of GM and WM; of parenchyma, where they are one class: what needs both is then None.
    field : ndarray, shape (X, Y, Z)
        The bias field.
    voxel_size_mm : sequence of float

    Returns
    -------
    dict
        None where not measured.
    """
    out: dict[str, float | None] = dict.fromkeys(_MEASURES)
    if len(tissues) > 1:
        gm, wm = tissues[0] > 0.5, tissues[1] > 0.5
        out["cnr"] = known(contrast_to_noise(image, gm, wm))
        out["snr_wm"] = known(signal_to_noise(image, wm))
        out["wm_ripples"] = known(wm_ripples(image, tissues[1], voxel_size_mm))
    out["shading_percent"] = known(shading_percent(field, tissues.sum(axis=0) > 0.5))
    out["slice_mm"] = float(max(voxel_size_mm))
    return out


def divide(numerator: float, denominator: float) -> float:
    """Their ratio; NaN where the denominator is 0."""
    return float(numerator / denominator) if denominator else float("nan")


def known(value: float) -> float | None:
    """None in place of NaN."""
    return None if np.isnan(value) else value

"""Quality control: a few numbers per session, and plain words where one of them is out of range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bidsapp.image.grid import bounding_box
from bidsapp.measure.image_quality import (
    SCAN_COLUMNS,
    contrast_to_noise,
    divide,
    joint_variation,
    known,
    signal_to_noise,
)

#: A plane of the brain as large as this share of the next one inside is no natural end: poles hold half of it at most.
CUT_AREA = 0.8

#: Data dictionary of the QC table, in the order of its columns.
QC_COLUMNS: dict[str, dict[str, str]] = {
    "cnr": {
        "LongName": "Contrast-to-noise ratio of gray and white matter",
        "Description": "abs(median GM - median WM) / sqrt(sd_GM^2 + sd_WM^2): that of MRIQC (Magnotta and Friedman "
        "2006) without the noise of air, which many scans do not show. Higher is better.",
    },
    "cjv": {
        "LongName": "Coefficient of joint variation of gray and white matter",
        "Description": "(MAD_WM + MAD_GM) / abs(median WM - median GM) (Ganzetti et al. 2016, as in MRIQC). "
        "Lower is better.",
    },
    "snr_brain": {
        "LongName": "Signal-to-noise ratio of the parenchyma",
        "Description": "Median / (sd * sqrt(n / (n - 1))) over the voxels that are mostly parenchyma (MRIQC's snr). "
        "Higher is better.",
    },
    "snr_gm": {
        "LongName": "Signal-to-noise ratio of gray matter",
        "Description": "As snr_brain, over the voxels that are mostly gray matter.",
    },
    "snr_wm": {
        "LongName": "Signal-to-noise ratio of white matter",
        "Description": "As snr_brain, over the voxels that are mostly white matter.",
    },
    "brain_mask_to_tiv": {
        "LongName": "Brain mask relative to the estimated intracranial volume",
        "Description": "brain_mask_mm3 / tiv_mm3. Far from 1 means that the mask or the registration failed. The "
        "masked brain is what is registered, so that most of an error of the mask is in the intracranial volume, too.",
    },
    "gm_to_wm": {
        "LongName": "Ratio of gray to white matter",
        "Description": "gm_with_lesions_mm3 / wm_with_lesions_mm3.",
    },
    "side_difference_percent": {
        "LongName": "Largest difference of left and right",
        "Units": "percent",
        "Description": "Difference of left and right relative to their mean, of the one of thalamus, caudate, putamen "
        "and hippocampus where it is largest. Lesions are not counted.",
    },
    "mask_on_edge": {
        "LongName": "Part of the brain's surface at the edge of the image",
        "Description": "Voxels of the brain mask on the outermost planes of the scan (not counting blank ones), as a "
        "fraction of the mask's surface voxels.",
    },
    "mask_components": {
        "LongName": "Pieces of the brain mask",
        "Description": "Connected pieces of the brain mask. Only the largest is kept, so this is 1, or 0 where the "
        "mask is empty.",
    },
    "registration_similarity": {
        "LongName": "Similarity of scan and template after registration",
        "Description": "Correlation of the scan and the template, 4 mm or more below the surface of the template's "
        "brain, the scan clipped at its 2nd and 90th percentile there; n/a where not registered.",
    },
    "agreement_gm": {
        "LongName": "Agreement of the two tissue models on gray matter",
        "Description": "Dice coefficient of the segmentation network and the unsupervised model, which are "
        "independent of each other; n/a where one of them does not tell gray from white matter.",
    },
    "agreement_wm": {
        "LongName": "Agreement of the two tissue models on white matter",
        "Description": "As agreement_gm.",
    },
    "agreement_csf": {
        "LongName": "Agreement of the two tissue models on cerebrospinal fluid",
        "Description": "As agreement_gm.",
    },
    "agreement_lesion": {
        "LongName": "Agreement of the two lesion models",
        "Description": "Dice coefficient of the network's lesions (or those of the lesion model of your own) and those "
        "of the unsupervised model; n/a where both find none or lesions were not looked for. Often low where there "
        "are few lesions.",
    },
    **SCAN_COLUMNS,
    "flags": {
        "LongName": "What is out of range",
        "Description": "Each finding with its value and the range it left, separated by '; '; 'none' where all is "
        "well. A flag asks for a look at the pictures; it is no verdict.",
    },
}


#: Structures whose sides are as good as equal in health, and large enough to be measured well.
SIDED = ("thalamus", "caudate", "putamen", "hippocampus")


@dataclass(frozen=True)
class Range:
    """Where a value raises no question, what it means when it does, and who says so."""

    name: str
    low: float
    high: float
    meaning: str
    source: str
    #: Column, and from which value of it on this range holds; None: always.
    holds_from: tuple[str, float] | None = None

    def holds(self, values: Mapping[str, float | str | None]) -> bool:
        """Whether this range says anything of a session, given its QC values and volumes."""
        if self.holds_from is None:
            return True
        value = values.get(self.holds_from[0])
        return value is not None and not isinstance(value, str) and value >= self.holds_from[1]  # False for NaN


#: Checked against the row of QC values and volumes, in this order.
RANGES: tuple[Range, ...] = (
    Range("brain_mm3", 700_000, 1_600_000, "brain volume unusual for an adult",
          "four SD about the mean of UK Biobank, 1.17 +- 0.11 l: Ritchie et al. 2018, Cereb Cortex 28:2959"),
    Range("tiv_mm3", 1_000_000, 2_100_000, "intracranial volume unusual for an adult",
          "four SD about 1.5 +- 0.14 l: Buckner et al. 2004, NeuroImage 23:724"),
    Range("brain_mask_to_tiv", 0.94, 1.07, "brain mask and registration disagree on the size of the head",
          "own rule: 0.98 to 1.05 in all real scans looked at; a mask 8 mm too small all around gives 0.92, one 16 mm"
          " too large 1.08"),
    Range("brain_parenchymal_fraction", 0.60, 0.99, "share of parenchyma in the brain mask unusual",
          "own rule around 0.87 in health: Rudick et al. 1999, Neurology 53:1698"),
    Range("gm_to_wm", 0.90, 2.20, "ratio of gray to white matter unusual for an adult",
          "1.1 to 1.5 over adult life: Miller et al. 1980, Neuropathol Appl Neurobiol 6:119; own margin"),
    Range("lesion_load_percent_wm", 0.0, 15.0, "lesion volume very large",
          "own rule: twice the largest load of the 27 patients of Lesjak et al. 2017, 52 ml of some 0.6 l"),
    Range("side_difference_percent", 0.0, 25.0, "left and right of a deep structure differ: an old infarct, a small"
          " hippocampus, or a wrong segmentation",
          "own rule: at most 19 in 18 heads looked at, 55 in one with an old infarct"),
    Range("mask_on_edge", 0.0, 0.02, "the brain is cut off by the field of view",
          "own rule"),
    Range("mask_components", 1, 1, "the brain mask is empty", "own rule"),
    Range("cnr", 0.3, np.inf, "gray and white matter hardly differ from the noise",
          "own rule: below all clinical scans looked at (0.4 to 1.3; FLAIR has the least)"),
    Range("t1w_wm_ripples", 0.0, 0.9, "stripes in white matter of the T1w: movement during the scan, or much noise",
          "own rule: at most 0.50 in 13 real scans; 1.4 to 2.3 where slices were moved by 2 degrees and mm (made up)"),
    Range("t2w_wm_ripples", 0.0, 1.6, "stripes in white matter of the T2w: movement during the scan, or much noise",
          "own rule: at most 1.19 in 7 real scans; 1.9 to 3.0 with that movement"),
    Range("flair_wm_ripples", 0.0, 1.3, "stripes in white matter of the FLAIR: movement during the scan, or much"
          " noise", "own rule: at most 0.99 in 12 real scans; 1.1 to 2.2 with that movement"),
    Range("agreement_gm", 0.6, 1.0, "the two tissue models disagree on gray matter", "own rule"),
    Range("agreement_wm", 0.6, 1.0, "the two tissue models disagree on white matter", "own rule"),
    Range("agreement_csf", 0.5, 1.0, "the two tissue models disagree on fluid: the scan may be very uneven in"
          " brightness, show a contrast agent, or be of another contrast than its name says",
          "own rule: 0.62 to 0.88 in 24 sessions looked at, 0.33 where proton density was called T2w; of a T1w 0.44"
          " with the shading of a surface coil, 0.31 with a contrast agent (both made up)"),
    Range("agreement_lesion", 0.3, 1.0, "the two lesion models disagree: the FLAIR may show movement or another"
          " artefact, or lesions that one of them does not know",
          "own rule, from 2 ml of lesions on: 0.50 to 0.81 in 12 runs on real scans looked at, 0.13 with 4 ml that"
          " were stripes of movement",
          holds_from=("lesion_mm3", 2000)),
    Range("registration_similarity", 0.39, 1.0, "the registration to the template looks wrong",
          "own rule: 0.51 to 0.80 in real scans looked at, 0.43 with a tumor and contrast agent, at most 0.35 where the"
          " head lay back to front"),
)  # fmt: skip


def side_difference_percent(volumes: Mapping[str, float | None]) -> float | None:
    """Largest difference between left and right of the structures `SIDED`, relative to the mean of both sides.

    Parameters
    ----------
    volumes : mapping
        With ``left_thalamus_mm3`` and so on.

    Returns
    -------
    float or None
        None where no structure has a volume on both sides.
    """
    found = []
    for name in SIDED:
        sides = [volumes.get(f"{side}_{name}_mm3") for side in ("left", "right")]
        found.append(asymmetry_percent(*sides))
    return max((abs(percent) for percent in found if percent is not None), default=None)


def asymmetry_percent(left: float | None, right: float | None) -> float | None:
    """Left minus right over their mean (the asymmetry index of the literature); None where it cannot be told."""
    if left is None or right is None or left + right <= 0:
        return None
    return 200 * (left - right) / (left + right)


def mask_on_edge(mask: np.ndarray, image: np.ndarray | None = None) -> float:
    """Fraction of the mask's surface that lies on the outermost planes of the field of view.

    Parameters
    ----------
    mask : ndarray of bool, shape (X, Y, Z)
    image : ndarray, shape (X, Y, Z), optional
        The scan: blank planes at an end, as left by a resampling or padding, are no part of its field of view.

    Returns
    -------
    float
        0 for a brain wholly inside, near 0.1 for one cut at the top; NaN for an empty mask.
    """
    mask = np.asarray(mask) > 0
    if not mask.any():
        return math.nan
    box = bounding_box(mask, margin=1)
    surface = mask[box] & ~ndimage.binary_erosion(mask[box])
    inner = np.zeros_like(mask)
    ends = [(0, size - 1) if image is None else _shown(mask, image, axis) for axis, size in enumerate(mask.shape)]
    inner[tuple(slice(first + 1, last) for first, last in ends)] = True
    return divide(int(np.count_nonzero(surface & ~inner[box])), int(np.count_nonzero(surface)))


def _shown(mask: np.ndarray, image: np.ndarray, axis: int) -> tuple[int, int]:
    """First and last plane of the field of view along an axis.

    A brain that was stripped ends where the scan goes blank, too, but it tapers: there the end of the grid counts.
    """
    others = tuple(each for each in range(mask.ndim) if each != axis)
    planes = np.flatnonzero(image.max(axis=others) > image.min(axis=others))
    area, ends = np.count_nonzero(mask, axis=others), []
    for outermost, inward, end in ((0, 1, 0), (-1, -1, mask.shape[axis] - 1)):
        last = int(planes[outermost]) if len(planes) > 2 else end
        ends.append(last if last == end or area[last] > CUT_AREA * area[last + inward] else end)
    return ends[0], ends[1]


def qc_row(
    *,
    image: np.ndarray,
    brain_mask: np.ndarray,
    posteriors: np.ndarray,
    volumes: Mapping[str, float | None],
    separable: bool = True,
    mask_on_edge: float | None = None,
    registration_similarity: float | None = None,
    agreement: Mapping[str, float | None] | None = None,
    scans: Mapping[str, Mapping[str, float | None]] | None = None,
) -> dict[str, float | str | None]:
    """Quality of one session, in the order of `QC_COLUMNS`; None where not measured.

    Parameters
    ----------
    image : ndarray, shape (X, Y, Z)
        The reference, bias-corrected, on a scale with a true zero (not z-scores: they have no SNR).
    brain_mask : ndarray, shape (X, Y, Z)
        Brain where not zero.
    posteriors : ndarray, shape (3, X, Y, Z) or (2, X, Y, Z)
        GM, WM, CSF, or parenchyma, CSF.
    volumes : mapping
        From `volumes.tissue_volumes`.
    separable : bool
        False where GM and WM are one class: their contrast is then None.
    mask_on_edge : float, optional
        From `mask_on_edge`, of the whole field of view.
    registration_similarity : float, optional
        Correlation with the template within the brain.
    agreement : mapping, optional
        From `model_agreement`.
    scans : mapping, optional
        By contrast, from `image_quality.scan_quality`.

    Returns
    -------
    dict
    """
    mask = np.asarray(brain_mask) > 0
    out: dict[str, float | str | None] = dict.fromkeys(QC_COLUMNS)
    out["snr_brain"] = known(signal_to_noise(image, mask & (posteriors[:-1].sum(axis=0) > 0.5)))
    if separable:
        gm, wm = mask & (posteriors[0] > 0.5), mask & (posteriors[1] > 0.5)
        out |= {
            "cnr": known(contrast_to_noise(image, gm, wm)),
            "cjv": known(joint_variation(image, gm, wm)),
            "snr_gm": known(signal_to_noise(image, gm)),
            "snr_wm": known(signal_to_noise(image, wm)),
            "gm_to_wm": _quotient(_with_lesions(volumes, "gm"), _with_lesions(volumes, "wm")),
        }
    out["side_difference_percent"] = side_difference_percent(volumes)
    out["brain_mask_to_tiv"] = _quotient(volumes.get("brain_mask_mm3"), volumes.get("tiv_mm3"))
    out["mask_on_edge"] = None if mask_on_edge is None else known(mask_on_edge)
    out["mask_components"] = int(ndimage.label(mask)[1])
    out["registration_similarity"] = registration_similarity
    out |= agreement or {}
    for contrast, found in (scans or {}).items():
        out |= {f"{contrast.lower()}_{measure}": value for measure, value in found.items()}
    out["flags"] = "; ".join(flags({**volumes, **out})) or "none"
    return out


def model_agreement(
    first: np.ndarray,
    second: np.ndarray,
    *,
    separable: bool = True,
    lesions: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, float | None]:
    """Dice coefficients of two segmentations of one brain, for `QC_COLUMNS`.

    Parameters
    ----------
    first, second : ndarray, shape (3, X, Y, Z)
        GM, WM, CSF; the likeliest counts, and voxels where either is zero do not.
    separable : bool
        Whether both tell GM from WM.
    lesions : pair of ndarray of bool, shape (X, Y, Z), optional

    Returns
    -------
    dict
        None where a class cannot be compared.
    """
    inside = (first.sum(0) > 0) & (second.sum(0) > 0)
    one, other = first[:, inside].argmax(0), second[:, inside].argmax(0)
    out: dict[str, float | None] = {
        f"agreement_{name}": _dice(one == index, other == index) for index, name in enumerate(("gm", "wm", "csf"))
    }
    if not separable:
        out |= {"agreement_gm": None, "agreement_wm": None}
    out["agreement_lesion"] = None if lesions is None else _dice(*lesions)
    return out


def _dice(one: np.ndarray, other: np.ndarray) -> float | None:
    total = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2 * int(np.count_nonzero(one & other)) / total if total else None


def flags(values: Mapping[str, float | str | None]) -> list[str]:
    """What is out of range, in words, in the order of `RANGES`.

    Parameters
    ----------
    values : mapping
        QC values and volumes by column name; missing, None and NaN raise no flag.

    Returns
    -------
    list of str
        For example ``"brain_mm3 = 5.21e+05, below 7e+05: brain volume unusual for an adult"``.
    """
    found = []
    for limit in RANGES:
        value = values.get(limit.name)
        if value is None or isinstance(value, str) or np.isnan(value) or limit.low <= value <= limit.high:
            continue
        if not limit.holds(values):
            continue
        side = f"below {limit.low:.3g}" if value < limit.low else f"above {limit.high:.3g}"
        found.append(f"{limit.name} = {value:.3g}, {side}: {limit.meaning}")
    return found


def _with_lesions(volumes: Mapping[str, float | None], tissue: str) -> float | None:
    with_lesions = volumes.get(f"{tissue}_with_lesions_mm3")
    return volumes.get(f"{tissue}_mm3") if with_lesions is None else with_lesions


def _quotient(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or not denominator else numerator / denominator

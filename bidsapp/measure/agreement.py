"""Agreement of two segmentations: the measures of Akkus et al. 2017, Table 1, and a few more.

Akkus Z. et al. Deep learning for brain MRI segmentation: state of the art and future directions.
J Digit Imaging 30:449-459 (2017), doi:10.1007/s10278-017-9983-4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from bidsapp.image.grid import bounding_box
from bidsapp.image.morphology import label_lesions

NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How a prediction P agrees with a reference R. NaN stands for "not defined", never for a bad score.

    Attributes
    ----------
    tpr : float
        True positive rate (sensitivity, recall), ``|P & R| / |R|``. NaN when R is empty.
    ppv : float
        Positive predictive value (precision), ``|P & R| / |P|``. NaN when P is empty.
    dsc : float
        Dice similarity coefficient, ``2 |P & R| / (|P| + |R|)``. 0 when one of the two is empty, NaN when both are.
    vdr : float
        Volume difference ratio, ``||P| - |R|| / |R|``. NaN when R is empty.
    hd_mm, hd95_mm : float
        Hausdorff distance, and the larger of the two directed 95th percentiles (linear interpolation, as numpy's and
        MONAI's). NaN when one of the two is empty.
    assd_mm : float
        Average symmetric surface distance, ``(sum d(r, P) + sum d(p, R)) / (|surface R| + |surface P|)``. NaN as above.
    lesion_tpr : float
        Reference lesions that any predicted voxel touches, as a fraction of all reference lesions. NaN without any.
    lesion_ppv : float
        Predicted lesions that touch any reference voxel, as a fraction of all predicted lesions. NaN without any.
    lesion_f1 : float
        Harmonic mean of the two. 0 when both are 0 or one side has no lesions; NaN when neither side has, or when the
        reference has none that count and no predicted one is false.
    reference_lesions, prediction_lesions : int or None
        Number of lesions on each side; None unless `lesion_wise` was asked for.
    reference_volume_mm3, prediction_volume_mm3 : float
        Number of voxels times the voxel volume.
    volume_difference_mm3, absolute_volume_difference_mm3 : float
        ``|P| - |R|`` (positive: too much), and without the sign.
    """

    tpr: float
    ppv: float
    dsc: float
    vdr: float
    hd_mm: float
    hd95_mm: float
    assd_mm: float
    lesion_tpr: float
    lesion_ppv: float
    lesion_f1: float
    reference_lesions: int | None
    prediction_lesions: int | None
    reference_volume_mm3: float
    prediction_volume_mm3: float
    volume_difference_mm3: float
    absolute_volume_difference_mm3: float


def agreement(
    reference: np.ndarray,
    prediction: np.ndarray,
    *,
    voxel_size_mm: tuple[float, float, float] | np.ndarray,
    lesion_wise: bool = False,
    minimum_lesion_mm3: float = 0.0,
) -> Agreement:
    """Compare a binary prediction with a binary reference.

    Parameters
    ----------
    reference, prediction : ndarray, shape (X, Y, Z)
        Bool, or numbers that are all 0 or 1.
    voxel_size_mm : three floats
        Along the axes of the arrays; the surface distances respect it.
    lesion_wise : bool
        Also compare lesion by lesion: lesions are 26-connected components, and *any* overlap counts as detected.
    minimum_lesion_mm3 : float
        Reference lesions below this volume do not count as missed or found. They still are reference: a predicted
        lesion that touches one is not a false positive.

    Returns
    -------
    Agreement

    Raises
    ------
    ValueError
        When the shapes differ, the arrays are not 3D or not binary, or a voxel size is not positive.

    Notes
    -----
    The surface of a mask is the set of its voxels with a face neighbour outside (the world beyond the field of view is
    outside); distances are between voxel centres. It is the definition of MONAI and MedPy. The `surface-distance`
    package measures between surface elements on a smoothed dual grid instead: two single voxels 3 mm apart have a mean
    distance of 2.5 mm there, 3 mm here and in the paper's formula.
    """
    reference, prediction = _binary(reference, "reference"), _binary(prediction, "prediction")
    if reference.shape != prediction.shape:
        raise ValueError(f"The reference {reference.shape} and the prediction {prediction.shape} differ in shape.")
    size = np.asarray(voxel_size_mm, dtype=float)
    if size.shape != (3,) or not (size > 0).all():
        raise ValueError(f"voxel_size_mm must be three positive numbers, not {voxel_size_mm}.")

    reference, prediction = _cropped(reference, prediction)
    voxel_mm3 = float(size.prod())
    r, p = int(reference.sum()), int(prediction.sum())
    both = int(np.count_nonzero(reference & prediction))
    hd, hd95, assd = surface_distances(reference, prediction, voxel_size_mm=size)
    lesions = (
        _lesion_wise(reference, prediction, minimum_voxels=minimum_lesion_mm3 / voxel_mm3)
        if lesion_wise
        else (NAN, NAN, NAN, None, None)
    )
    return Agreement(
        tpr=_ratio(both, r),
        ppv=_ratio(both, p),
        dsc=_ratio(2 * both, r + p),
        vdr=_ratio(abs(p - r), r),
        hd_mm=hd,
        hd95_mm=hd95,
        assd_mm=assd,
        lesion_tpr=lesions[0],
        lesion_ppv=lesions[1],
        lesion_f1=lesions[2],
        reference_lesions=lesions[3],
        prediction_lesions=lesions[4],
        reference_volume_mm3=r * voxel_mm3,
        prediction_volume_mm3=p * voxel_mm3,
        volume_difference_mm3=(p - r) * voxel_mm3,
        absolute_volume_difference_mm3=abs(p - r) * voxel_mm3,
    )


@dataclass(frozen=True)
class Reliability:
    """Whether probabilities are as often right as they say, bin by bin.

    Attributes
    ----------
    voxels : ndarray of int, shape (bins,)
    said, true : ndarray, shape (bins,)
        Mean probability of a bin's voxels, and the share of them that is in the reference; NaN in an empty bin.
    error : float
        Expected calibration error: mean of ``|said - true|`` over the voxels (Guo et al. 2017, arXiv:1706.04599). NaN
        without any.
    """

    voxels: np.ndarray
    said: np.ndarray
    true: np.ndarray
    error: float


def reliability(reference: np.ndarray, probability: np.ndarray, *, edges: np.ndarray) -> Reliability:
    """How reliable the probabilities between `edges` are; what lies below the first of them is left out.

    Parameters
    ----------
    reference : ndarray of bool
    probability : ndarray
        Of the same shape, within [0, 1].
    edges : ndarray, shape (bins + 1,)
        Ascending; a bin holds its lower edge, the last one its upper edge as well.

    Returns
    -------
    Reliability
    """
    inside = (probability >= edges[0]) & (probability <= edges[-1])
    values, truth = probability[inside].astype(float), reference[inside].astype(float)
    bins = len(edges) - 1
    index = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)
    voxels, said, true = (np.bincount(index, weights, bins) for weights in (None, values, truth))
    error = float(np.abs(said - true).sum() / len(values)) if len(values) else NAN
    there = np.where(voxels > 0, voxels, NAN)
    return Reliability(voxels, said / there, true / there, error)


def surface_distances(
    reference: np.ndarray, prediction: np.ndarray, *, voxel_size_mm: np.ndarray
) -> tuple[float, float, float]:
    """Hausdorff distance, its 95th percentile and the average symmetric surface distance, in mm.

    Parameters
    ----------
    reference, prediction : ndarray of bool, shape (X, Y, Z)
    voxel_size_mm : ndarray, shape (3,)

    Returns
    -------
    hd_mm, hd95_mm, assd_mm : float
        NaN when either mask is empty; definitions in `Agreement`.
    """
    on_r, on_p = (_surface(mask) * np.asarray(voxel_size_mm, dtype=float) for mask in (reference, prediction))
    if not len(on_r) or not len(on_p):
        return NAN, NAN, NAN
    from_r, _ = cKDTree(on_p).query(on_r)
    from_p, _ = cKDTree(on_r).query(on_p)
    hd = max(from_r.max(), from_p.max())
    hd95 = max(np.percentile(from_r, 95), np.percentile(from_p, 95))
    assd = (from_r.sum() + from_p.sum()) / (len(from_r) + len(from_p))
    return float(hd), float(hd95), float(assd)


def _surface(mask: np.ndarray) -> np.ndarray:
    """Indices, shape (n, 3), of the voxels with a face neighbour outside the mask."""
    return np.argwhere(mask & ~ndimage.binary_erosion(mask))


@dataclass(frozen=True)
class Lesions:
    """The lesions of one mask, and what another mask has of each.

    Attributes
    ----------
    labels : ndarray of int32, shape (X, Y, Z)
        The lesion's number, 1 for the largest.
    sizes, overlap : ndarray of int, shape (n,)
        Voxels of each lesion, and those of them that the other mask has too.
    touching : ndarray of int, shape (n,)
        Lesions of the other mask that each shares a voxel with.
    """

    labels: np.ndarray
    sizes: np.ndarray
    overlap: np.ndarray
    touching: np.ndarray


def lesions_of(mask: np.ndarray, other: np.ndarray, *, minimum_voxels: int = 1) -> Lesions:
    """Find the lesions (26-connected) of a mask in another mask.

    Parameters
    ----------
    mask, other : ndarray of bool, shape (X, Y, Z)
    minimum_voxels : int
        Smaller lesions of `mask` are left out; those of `other` never are.
    """
    labels, sizes = label_lesions(mask, minimum_voxels=minimum_voxels)
    theirs, _ = label_lesions(other)
    count = len(sizes) + 1
    overlap = np.bincount(labels[other], minlength=count)[1:]
    shared = np.unique(np.stack([labels[other], theirs[other]]), axis=1)
    touching = np.bincount(shared[0], minlength=count)[1:]
    return Lesions(labels, sizes, overlap, touching)


def _lesion_wise(
    reference: np.ndarray, prediction: np.ndarray, *, minimum_voxels: float
) -> tuple[float, float, float, int, int]:
    marked = lesions_of(reference, prediction, minimum_voxels=at_least(minimum_voxels))
    predicted = lesions_of(prediction, reference)
    tpr, ppv = (_ratio(int(np.count_nonzero(one.overlap)), len(one.sizes)) for one in (marked, predicted))
    return tpr, ppv, _harmonic_mean(tpr, ppv), len(marked.sizes), len(predicted.sizes)


def at_least(voxels: float) -> int:
    """Whole voxels that make up a volume given in voxels; a rounding error is none."""
    return int(np.ceil(voxels - 1e-6))


def _harmonic_mean(tpr: float, ppv: float) -> float:
    if np.isnan(tpr) and (np.isnan(ppv) or ppv == 1):  # nothing to find, and nothing false was found
        return NAN
    if np.isnan(tpr) or np.isnan(ppv) or tpr + ppv == 0:
        return 0.0
    return 2 * tpr * ppv / (tpr + ppv)


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else NAN


def _binary(mask: np.ndarray, name: str) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim != 3:
        raise ValueError(f"The {name} must have three dimensions, not shape {mask.shape}.")
    if mask.dtype == bool:
        return mask
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(f"The {name} is not binary: threshold it, or compare one label at a time.")
    return mask == 1


def _cropped(*masks: np.ndarray) -> tuple[np.ndarray, ...]:
    """Cut to the box that holds all of them: what lies outside it changes no measure, but takes time."""
    every = np.logical_or.reduce(masks)
    if not every.any():
        return masks
    box = bounding_box(every, margin=0)
    return tuple(mask[box] for mask in masks)

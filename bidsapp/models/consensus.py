"""Two opinions made one: the mean of the network's probabilities and the unsupervised models'.

They know nothing of each other and fail differently, so their mean is better than either (docs/models/segment.md).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bidsapp.image.grid import bounding_box
from bidsapp.image.morphology import label_lesions
from bidsapp.labels import EXTRA_AXIAL_CSF, TISSUES, structure_named

#: A lesion is where the mean of both probabilities exceeds this: half of the Dice coefficient that can be hoped for,
#: 0.8, is the threshold that gives it (Lipton et al. 2014, doi:10.1007/978-3-662-44851-9_15) ...
LESION_THRESHOLD = 0.4
#: ... and this somewhere in it: what neither model is sure of is often a few voxels of nothing. The lesion-wise F1 on
#: synthetic heads is best here and at 0.65, which finds fewer (`benchmarks.synthetic`; docs/decisions/0006).
LESION_SEED = 0.6
#: Where the network gives a lesion less than this it counts alone: the outlier model knows brightness and place, but
#: not that fluid may flow, and on a FLAIR with bright ventricles it took them for one lesion (docs/benchmarks.md).
LEAST_LESION = 0.05
#: ... and where the network is all but sure of one, the outlier model cannot take it away: of much confluent lesion it
#: makes a broad white matter, in which ordinary lesions do not stand out (docs/decisions/0006).
DOUBT = 0.25
#: Septum and fornix are bright on the FLAIR of healthy people: a lesion of which half lies between the lateral
#: ventricles, where they are no more than this apart, is none. Raters drew 4 of 2,961 there with a third in it
#: (27 patients, ``training/lesion_masks_ms``; docs/decisions/0012-no-lesions-of-the-septum.md).
SEPTUM_WIDTH_MM = 12.0
SEPTUM_SHARE = 0.5
LATERAL_VENTRICLE = structure_named("lateral ventricle")
#: Cortex and the white matter that it covers.
COVERED = tuple(
    (structure_named(f"{brain} cortex"), structure_named(f"{brain} white matter"))
    for brain in ("cerebral", "cerebellar")
)


def mean_tissues(network: np.ndarray, mixture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean of two sets of tissue posteriors.

    Parameters
    ----------
    network, mixture : ndarray, shape (3, X, Y, Z)
        GM, WM, CSF; where one of them is zero the other counts alone.
    mask : ndarray of bool, shape (X, Y, Z)

    Returns
    -------
    ndarray of float32, shape (3, X, Y, Z)
        Sums to 1 in `mask`, except where both are zero.
    """
    both = (network + mixture) * mask
    total = both.sum(0)
    return np.divide(both, total, out=np.zeros_like(both, np.float32), where=total > 0)


def redraw_cortex(structures: np.ndarray, tissues: np.ndarray) -> np.ndarray:
    """The structures, their cortex as thick as the tissues have it: inwards by one voxel at most, outwards never.

    The network alone draws it too thin, the mean of both models less so (docs/decisions/0021).

    Parameters
    ----------
    structures : ndarray of int, shape (X, Y, Z)
        FreeSurfer's indices, left and right.
    tissues : ndarray, shape (3, X, Y, Z)
        `mean_tissues`.

    Returns
    -------
    ndarray, shape (X, Y, Z)
        White matter beside cortex is cortex where it is likeliest gray matter; cortex is white matter or fluid where it
        is likeliest that.
    """
    out = structures.copy()
    known = tissues.any(0)
    if not known.any():
        return out
    box = bounding_box(known, margin=1)
    before, after = structures[box], out[box]
    likeliest = tissues[(slice(None), *box)].argmax(0)
    gm, wm, csf = ((likeliest == place) & known[box] for place in range(len(TISSUES)))
    for cortex, white in COVERED:
        for inner, outer in ((white.left, cortex.left), (white.right, cortex.right)):
            of_cortex = before == outer
            beside = ndimage.maximum_filter(of_cortex, 3)  # a dilation, an axis after the other: nine times as fast
            after[(before == inner) & beside & gm] = outer
            after[of_cortex & wm] = inner
            after[of_cortex & csf] = EXTRA_AXIAL_CSF
    return out


def mean_lesions(network: np.ndarray, outlier: np.ndarray) -> np.ndarray:
    """Mean of two lesion probabilities, but where the network is sure of either: float32, (X, Y, Z).

    It counts alone below `LEAST_LESION`, and its probability less `DOUBT` is the least that comes out.
    """
    mean = np.where(network < LEAST_LESION, network, (network + outlier) / 2)
    return np.maximum(mean, network - DOUBT).astype(np.float32)


def without_septum(lesions: np.ndarray, structures: np.ndarray, *, voxel_width_mm: float) -> np.ndarray:
    """The lesions but those that are mostly septum pellucidum or fornix.

    Parameters
    ----------
    lesions : ndarray of bool, shape (X, Y, Z)
        Axes in RAS order.
    structures : ndarray of int, shape (X, Y, Z)
        FreeSurfer's indices, left and right.
    voxel_width_mm : float
        From left to right.

    Returns
    -------
    ndarray of bool, shape (X, Y, Z)
    """
    labels, sizes = label_lesions(lesions)
    between = between_ventricles(structures, widest=SEPTUM_WIDTH_MM / voxel_width_mm)
    inside = np.bincount(labels[between], minlength=len(sizes) + 1)[1:]
    keep = np.concatenate([[False], inside < SEPTUM_SHARE * sizes])
    return np.asarray(keep[labels])


def between_ventricles(structures: np.ndarray, *, widest: float) -> np.ndarray:
    """Voxels with the left lateral ventricle to their left and the right one to their right, at most `widest` voxels
    apart: bool (X, Y, Z).
    """
    left, right = (structures == index for index in (LATERAL_VENTRICLE.left, LATERAL_VENTRICLE.right))
    x = np.arange(structures.shape[0], dtype=np.int32)[:, None, None]
    far = np.int32(10 * structures.shape[0])
    last = np.maximum.accumulate(np.where(left, x, -far), axis=0)
    following = np.minimum.accumulate(np.where(right, x, far)[::-1], axis=0)[::-1]
    return np.asarray((following - last - 1 <= widest) & ~left & ~right)

"""Two opinions made one: the mean of the network's probabilities and the unsupervised models'.

They know nothing of each other and fail differently, so their mean is better than either (docs/models/segment.md).
"""

from __future__ import annotations

import numpy as np

#: A lesion is where the mean of both probabilities exceeds this: half of the Dice coefficient that can be hoped for,
#: 0.8, is the threshold that gives it (Lipton et al. 2014, doi:10.1007/978-3-662-44851-9_15) ...
LESION_THRESHOLD = 0.4
#: ... and two thirds somewhere in it: what neither model is sure of is often a few voxels of nothing.
LESION_SEED = 2 / 3


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


def mean_lesions(network: np.ndarray, outlier: np.ndarray) -> np.ndarray:
    """Mean of two lesion probabilities, float32, shape (X, Y, Z)."""
    return ((network + outlier) / 2).astype(np.float32)

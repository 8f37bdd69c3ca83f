"""Several raters of one scan: their consensus (STAPLE), what each is worth, and how well they agree.

With two raters the data cannot tell whose fault a difference is: three are wanted.

STAPLE depends on the voxels only through which raters marked them, so it is run on the numbers of voxels of each of the
2^n patterns of decisions: exact, and fast for any image. The tests hold it against ITK's.

Warfield S. K., Zou K. H., Wells W. M. Simultaneous truth and performance level estimation (STAPLE).
IEEE Trans Med Imaging 23:903-921 (2004), doi:10.1109/TMI.2004.828354.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NAN = float("nan")
#: More would be 2^n patterns too many; no study has them.
MAXIMUM_RATERS = 16
#: The estimates have settled when none changes by more.
TOLERANCE, ITERATIONS = 1e-12, 10_000
#: Where the iterations start: raters that are nearly always right (section II.C of the paper).
START = 0.99999


@dataclass(frozen=True)
class Consensus:
    """What STAPLE makes of several raters.

    Attributes
    ----------
    mask : ndarray of bool, shape (X, Y, Z)
        True where the probability of the hidden truth is at least one half.
    sensitivity, specificity : tuple of float
        Of each rater against the hidden truth. NaN where nobody marked anything (sensitivity), or everything
        (specificity).
    prior : float
        Probability of foreground before looking: the share of voxels that the raters mark, over all of them.
    """

    mask: np.ndarray
    sensitivity: tuple[float, ...]
    specificity: tuple[float, ...]
    prior: float


def staple(masks: Sequence[np.ndarray]) -> Consensus:
    """Fuse the masks of several raters.

    Parameters
    ----------
    masks : sequence of ndarray of bool, shape (X, Y, Z)
        One for each rater, two at least; all voxels of the grid count.

    Returns
    -------
    Consensus

    Raises
    ------
    ValueError
        Fewer than two raters, more than `MAXIMUM_RATERS`, or masks of different shapes.
    """
    codes, decisions, count = _patterns(masks)
    prior = float((decisions * count[:, None]).sum() / (count.sum() * len(masks)))
    if prior in (0.0, 1.0):
        same = np.full(masks[0].shape, prior == 1.0)
        ends = (1.0, NAN) if prior else (NAN, 1.0)
        return Consensus(same, (ends[0],) * len(masks), (ends[1],) * len(masks), prior)
    p, q = np.full(len(masks), START), np.full(len(masks), START)
    for _ in range(ITERATIONS):
        weight = _truth(decisions, p, q, prior)
        inside, outside = weight * count, (1 - weight) * count
        before = np.r_[p, q]
        p = inside @ decisions / inside.sum()
        q = outside @ (1 - decisions) / outside.sum()
        if np.abs(np.r_[p, q] - before).max() <= TOLERANCE:
            break
    weight = _truth(decisions, p, q, prior)
    mask = (weight >= 0.5)[codes]
    return Consensus(mask, tuple(float(x) for x in p), tuple(float(x) for x in q), prior)


def majority(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Voxels that more than half of the raters marked, shape (X, Y, Z)."""
    codes, decisions, _ = _patterns(masks)
    return np.asarray((2 * decisions.sum(axis=1) > len(masks))[codes])


def pairwise_dice(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Dice coefficient of every pair of raters, shape (n, n); NaN where neither marked anything."""
    _, decisions, count = _patterns(masks)
    both = decisions.T @ (decisions * count[:, None])
    size = np.diag(both)
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * both / (size[:, None] + size[None, :]))


def fleiss_kappa(masks: Sequence[np.ndarray]) -> float:
    """Fleiss' generalised kappa of all raters over all voxels; NaN where all marked all, or nothing.

    Fleiss J. L. Measuring nominal scale agreement among many raters. Psychol Bull 76:378-382 (1971),
    doi:10.1037/h0031619. With much background it hardly depends on how much: it then nears the mean Dice coefficient of
    the pairs.
    """
    _, decisions, count = _patterns(masks)
    n = len(masks)
    yes = decisions.sum(axis=1)
    agreeing = (yes**2 + (n - yes) ** 2 - n) / (n * (n - 1))
    observed = float((agreeing * count).sum() / count.sum())
    share = float((yes * count).sum() / (n * count.sum()))
    chance = share**2 + (1 - share) ** 2
    return (observed - chance) / (1 - chance) if chance < 1 else NAN


def _truth(decisions: np.ndarray, p: np.ndarray, q: np.ndarray, prior: float) -> np.ndarray:
    """Probability of the hidden truth for every pattern (equation 14)."""
    yes = prior * np.prod(np.where(decisions == 1, p, 1 - p), axis=1)
    no = (1 - prior) * np.prod(np.where(decisions == 1, 1 - q, q), axis=1)
    total = yes + no
    return np.divide(yes, total, out=np.zeros_like(yes), where=total > 0)


def _patterns(masks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of each voxel's pattern (X, Y, Z), the raters' decisions in each (2^n, n), and its voxels (2^n,)."""
    if not 2 <= len(masks) <= MAXIMUM_RATERS:
        raise ValueError(f"A consensus needs 2 to {MAXIMUM_RATERS} raters, not {len(masks)}.")
    if len({mask.shape for mask in masks}) > 1:
        raise ValueError(f"The raters' masks differ in shape: {', '.join(str(mask.shape) for mask in masks)}.")
    codes = np.zeros(masks[0].shape, dtype=np.uint16)
    for number, mask in enumerate(masks):
        codes |= (mask > 0).astype(np.uint16) << number
    patterns = np.arange(2 ** len(masks))
    decisions = (patterns[:, None] >> np.arange(len(masks))) & 1
    return codes, decisions.astype(float), np.bincount(codes.ravel(), minlength=len(patterns)).astype(float)

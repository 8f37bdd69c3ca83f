"""Whether a logistic or a count model has an estimate at all: separation, found by linear programming.

Where a predictor tells for some sessions exactly that all (or none) have lesions, the likelihood rises for ever along a
direction of the coefficients: odds run away to infinity, and what a fit returns depends on when its iterations stopped.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import linalg, optimize

from bidsapp.measure.matrix import is_product

#: The search is within coefficients of -1 to 1, of predictors of one size: a true direction reaches the bounds, and
#: what the solver's tolerance (1e-7) lets through stays far below.
_FOUND = 0.5


def separating_terms(x: np.ndarray, y: np.ndarray, terms: Mapping[str, slice], *, counts: bool) -> list[str]:
    """Terms along which the likelihood has no maximum; none where the model has an estimate.

    Parameters
    ----------
    x : ndarray, shape (n, p)
        Predictors, of full column rank.
    y : ndarray, shape (n,)
        0 and 1, or counts.
    terms : mapping of str to slice
        Their columns; the intercept's is called "Intercept".
    counts : bool
        A Poisson model (a logistic one if False).

    Returns
    -------
    list of str
        Those that separate by themselves, or else those that do so together.

    References
    ----------
    Albert and Anderson 1984, Biometrika 71:1 (what separation is); Konis 2007, Linear programming algorithms for
    detecting separated data in binary logistic regression models, DPhil thesis, Oxford; Correia, Guimaraes and Zylkin
    2019, arXiv:1903.01633 (Poisson).
    """
    size = np.where(np.ptp(x, axis=0) > 0, x.std(axis=0), np.abs(x).max(axis=0).clip(1e-300))
    scaled = x / size
    direction = _direction(scaled, y, counts=counts)
    if direction is None:
        return []
    named = {name: where for name, where in terms.items() if name != "Intercept"}
    start = np.arange(x.shape[1])[terms["Intercept"]] if "Intercept" in terms else np.empty(0, int)
    alone = [
        name
        for name, where in named.items()
        if _direction(scaled[:, np.r_[start, np.arange(x.shape[1])[where]]], y, counts=counts) is not None
    ]
    alone = [name for name in alone if not is_product(name)] or alone  # a product separates wherever its parts do
    return alone or [name for name, where in named.items() if (np.abs(direction[where]) > 1e-6).any()] or ["Intercept"]


def _direction(x: np.ndarray, y: np.ndarray, *, counts: bool) -> np.ndarray | None:
    """Coefficients along which the likelihood never falls and somewhere rises, or None."""
    if counts:
        # What leaves every session that has lesions as it is, and lowers the others.
        basis = linalg.null_space(np.linalg.qr(x[y > 0], mode="r"))
        rows = -x[y <= 0] @ basis
    else:
        basis = np.eye(x.shape[1])
        rows = np.where(y > 0, 1.0, -1.0)[:, None] * x
    if not rows.size:
        return None
    found = optimize.linprog(-rows.sum(axis=0), A_ub=-rows, b_ub=np.zeros(len(rows)), bounds=(-1, 1), method="highs")
    if found.x is None or np.abs(found.x).max() < _FOUND:
        return None
    return np.asarray(basis @ found.x)

"""Each session against all other subjects of the same age, sex and head size: leave-one-out z-scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from bidsapp.measure.cohort import KEYS, even_out
from bidsapp.measure.formula import Design

#: Fewer other subjects make no norm.
MINIMUM_SUBJECTS = 10


def leave_one_out(y: np.ndarray, x: np.ndarray, subject: np.ndarray) -> np.ndarray:
    """How far every value lies from what the other subjects' values predict, in standard deviations.

    All sessions of a subject are left out together; what is left gives the regression, its residual standard deviation
    and the prediction's own uncertainty. Nothing is fitted anew: with the hat matrix H and residuals e, leaving out the
    rows S gives prediction errors ``(I - H_SS)^-1 e_S`` and ``RSS - e_S' (I - H_SS)^-1 e_S`` (Cook and Weisberg 1982,
    Residuals and Influence in Regression, 2.2). With one row per subject it is the externally studentised residual.
    Its t distribution is mapped to the normal one of equal probability.

    Parameters
    ----------
    y : ndarray, shape (n,)
    x : ndarray, shape (n, p)
        With a column of ones.
    subject : ndarray, shape (n,)
        Whose session each row is.

    Returns
    -------
    ndarray, shape (n,)
        z-scores; NaN where the others are too few or cannot predict (the only one of a sex).
    """
    n, p = len(y), int(np.linalg.matrix_rank(x))
    q = np.linalg.svd(x / np.linalg.norm(x, axis=0).clip(1e-300), full_matrices=False)[0][:, :p]
    residual = y - q @ (q.T @ y)
    total = float(residual @ residual)
    out = np.full(n, np.nan)
    _, code, count = np.unique(subject, return_inverse=True, return_counts=True)
    if len(count) <= MINIMUM_SUBJECTS or total <= 1e-20 * max(float(y @ y), 1e-300):
        return out
    order = np.argsort(code, kind="stable")
    start = np.cumsum(count) - count
    for size in np.unique(count):  # all subjects of as many sessions at once: rows (subjects, sessions)
        rows = order[start[count == size, None] + np.arange(size)]
        rest = np.eye(size) - q[rows] @ q[rows].transpose(0, 2, 1)
        rows, rest = (part[np.linalg.cond(rest) < 1e10] for part in (rows, rest))
        inverse = np.linalg.inv(rest)
        error = np.einsum("ijk,ik->ij", inverse, residual[rows])
        left = total - (residual[rows] * error).sum(axis=1, keepdims=True)
        out[rows] = _z(error, np.diagonal(inverse, axis1=1, axis2=2), left, n - int(size) - p)
    return out


def _z(error: np.ndarray, variance: np.ndarray, rest: np.ndarray, df: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        t = error / np.sqrt(np.maximum(rest, 0) / df * variance)
        z = np.sign(t) * stats.norm.isf(stats.t.sf(np.abs(t), df))
    return np.where(np.isfinite(variance) & (variance < 1e8), z, np.nan)


def adjusted_scores(frame: pd.DataFrame, design: Design, measures: Sequence[str]) -> pd.DataFrame:
    """Leave-one-out z-scores of all measures, adjusted for age, sex and TIV as far as they are there.

    Lesion loads and counts are compared as logarithms, where there are lesions (`cohort.even_out`).

    Parameters
    ----------
    frame : DataFrame
        From `formula.model_frame`.
    design : Design
        From `formula.find_design`.
    measures : sequence of str

    Returns
    -------
    DataFrame
        Key columns, then one column per measure; NaN where a covariate or the value is n/a.
    """
    out = {name: frame[name] for name in KEYS if name in frame}
    subject = frame["participant_id"].astype(str).to_numpy()
    for measure in measures:
        values = even_out(frame[[measure]].astype(float))[measure]
        terms = design.adjustments(outcome=measure)
        columns = [
            pd.get_dummies(frame[term], drop_first=True) if term == design.sex else frame[[term]] for term in terms
        ]
        known = values.notna() & frame[terms].notna().all(axis=1)
        parts = [np.ones((int(known.sum()), 1)), *(part[known].to_numpy(float) for part in columns)]
        z = np.full(len(frame), np.nan)
        if known.any():
            z[known.to_numpy()] = leave_one_out(values[known].to_numpy(float), np.hstack(parts), subject[known])
        out[measure] = pd.Series(z, index=frame.index)
    return pd.DataFrame(out)

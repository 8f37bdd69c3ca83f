"""Each session against all other subjects of the same age, sex and head size: leave-one-out z-scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from bidsapp.measure.cohort import KEYS, even_out, order_sessions
from bidsapp.measure.formula import Design

#: Fewer other subjects make no norm.
MINIMUM_SUBJECTS = 10


def leave_one_out(y: np.ndarray, x: np.ndarray, subject: np.ndarray) -> np.ndarray:
    """How far every value lies from what the other subjects' values predict, in standard deviations.

    The norm has one row of every other subject, the first: several sessions of one subject are alike, and taken as
    independent they would make it seem narrower than it is. It gives the regression, its residual standard deviation
    and the prediction's own uncertainty. Nothing is fitted anew: leaving row i out takes ``G x_i e_i / (1 - h_i)`` from
    the coefficients, ``e_i^2 / (1 - h_i)`` from the residual sum of squares, and adds ``G x_i x_i' G / (1 - h_i)`` to
    ``G = (X'X)^-1`` (Cook and Weisberg 1982, Residuals and Influence in Regression, 2.2). Of first rows it is the
    externally studentised residual. Its t distribution is mapped to the normal one of equal probability.

    Parameters
    ----------
    y : ndarray, shape (n,)
    x : ndarray, shape (n, p)
        With a column of ones.
    subject : ndarray, shape (n,)
        Whose session each row is; the first row of each belongs to the norm.

    Returns
    -------
    ndarray, shape (n,)
        z-scores; NaN where the others are too few or cannot predict (the only one of a sex).
    """
    _, first, code = np.unique(subject, return_index=True, return_inverse=True)
    if len(first) <= MINIMUM_SUBJECTS:
        return np.full(len(y), np.nan)
    norm = np.linalg.norm(x[first], axis=0)
    scaled = x / np.where(norm > 0, norm, 1)
    p = int(np.linalg.matrix_rank(scaled[first]))
    _, size, directions = np.linalg.svd(scaled[first], full_matrices=False)
    q = scaled @ (directions[:p].T / size[:p])  # the norm's rows are orthonormal: G is one
    beyond = np.abs(scaled - scaled @ directions[:p].T @ directions[:p]).max(axis=1) > 1e-8
    residual = y - q @ (q[first].T @ y[first])
    own, spare = residual[first], 1 - (q[first] ** 2).sum(axis=1)
    total = float(own @ own)
    if total <= 1e-20 * max(float(y[first] @ y[first]), 1e-300):
        return np.full(len(y), np.nan)
    with np.errstate(all="ignore"):
        moved = (q * q[first][code]).sum(axis=1) / spare[code]
        variance = 1 + (q**2).sum(axis=1) + moved**2 * spare[code]
        rest = total - own**2 / spare
    z = _z(residual + moved * own[code], variance, rest[code], len(first) - 1 - p)
    return np.where(beyond | (spare[code] < 1e-8), np.nan, z)


def _z(error: np.ndarray, variance: np.ndarray, rest: np.ndarray, df: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        t = error / np.sqrt(np.maximum(rest, 0) / df * variance)
        z = np.sign(t) * stats.norm.isf(stats.t.sf(np.abs(t), df))
    return np.where(np.isfinite(variance) & (variance < 1e8), z, np.nan)


def adjusted_scores(frame: pd.DataFrame, design: Design, measures: Sequence[str]) -> pd.DataFrame:
    """Leave-one-out z-scores of all measures, adjusted for age, sex and TIV as far as they are there.

    The norm is of the first sessions of which the measure and these are known. Lesion loads and counts are compared as
    logarithms, where there are lesions (`cohort.even_out`).

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
    order = order_sessions(frame)
    for measure in measures:
        values = even_out(frame[[measure]].astype(float))[measure]
        terms = design.adjustments(outcome=measure)
        columns = [
            pd.get_dummies(frame[term], drop_first=True) if term == design.sex else frame[[term]] for term in terms
        ]
        known = (values.notna() & frame[terms].notna().all(axis=1)).to_numpy()
        rows = order[known[order]]
        parts = [np.ones((len(rows), 1)), *(part.iloc[rows].to_numpy(float) for part in columns)]
        z = np.full(len(frame), np.nan)
        z[rows] = leave_one_out(values.to_numpy(float)[rows], np.hstack(parts), subject[rows])
        out[measure] = pd.Series(z, index=frame.index)
    return pd.DataFrame(out)

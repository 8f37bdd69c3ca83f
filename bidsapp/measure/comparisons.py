"""Two groups, two sessions, or two predictions: a test of means beside one of ranks, and the size of the difference."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
import pandas as pd
from scipy import stats

from bidsapp.measure.cohort import order_sessions
from bidsapp.words import count_of

#: Differences up to which the signed-rank test goes through all signs, ties or not (R stops at 49, without ties).
EXACT_SIGNED = 50
#: Subjects in a group from which the rank-sum test of untied values is the normal approximation, as R has it.
MANY_RANKS = 50
#: Ways to draw two samples from their ranks, up to which the rank-sum test of tied ones goes through all.
EXACT_DRAWS = 20_000
#: Subjects in each group, or pairs of sessions, for a comparison.
MINIMUM_COMPARED = 3
#: Binary digits that ranks look at, ten decimal ones: to a computer 2/3 - 1/3 is not 1/3.
RANK_BITS = 33


def compare_groups(frame: pd.DataFrame, factor: str, measures: Sequence[str]) -> pd.DataFrame:
    """Every level of a factor against the first, measure by measure: Welch's t test beside Wilcoxon's rank-sum test.

    Unadjusted, a subject's first session only, so that subjects are independent.

    Parameters
    ----------
    frame : DataFrame
        From `formula.model_frame`.
    factor : str
        A categorical column.
    measures : sequence of str

    Returns
    -------
    DataFrame
        A row per level and measure. Columns: comparison, column, n, reference_n, mean, reference_mean, median,
        reference_median, difference with its interval (Welch 1947; none where both are constant), t, df, p_t, p_rank
        (exact in small samples), effect_size (Hedges' g, 1981), effect and rank_test (their names), q_t and q_rank
        (Benjamini-Hochberg over the measures of a comparison).
    """
    first = frame.iloc[order_sessions(frame)].drop_duplicates("participant_id")
    levels = list(first[factor].cat.categories)
    rows = []
    for level in levels[1:]:
        for measure in measures:
            one = first.loc[first[factor] == level, measure].dropna().to_numpy(float)
            other = first.loc[first[factor] == levels[0], measure].dropna().to_numpy(float)
            if min(len(one), len(other)) >= MINIMUM_COMPARED and np.ptp(np.r_[one, other]) > 0:
                rows.append({"comparison": f"{factor}: {level} against {levels[0]}", "column": measure}
                            | _unpaired(one, other))  # fmt: skip
    return _with_q(pd.DataFrame(rows))


def compare_sessions(frame: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Last against first session of the same subjects: paired t test beside Wilcoxon's signed-rank test.

    Returns
    -------
    DataFrame
        As `compare_groups`; the reference is the first session, and the effect is Cohen's d of differences (d_z).
    """
    order, named = frame.iloc[order_sessions(frame)], "last session against first"
    if _has_time(frame):
        # A session of unknown date has no place in the order: it must not become anyone's last.
        unknown = order["time"].isna().groupby(order["participant_id"]).transform("any")
        repeated = order["participant_id"].duplicated(keep=False)
        subjects = order.loc[unknown & repeated, "participant_id"].nunique()
        order = order[~unknown]
        named += f" ({count_of(subjects, 'subject')} left out, time n/a)" if subjects else ""
    else:
        named += " (in the order of their labels, time n/a)"
    several = order[order["participant_id"].duplicated(keep=False)]
    first, last = (several.drop_duplicates("participant_id", keep=which) for which in ("first", "last"))
    first, last = (part.set_index("participant_id").sort_index() for part in (first, last))
    rows = []
    for measure in measures:
        pairs = pd.DataFrame({"first": first[measure], "last": last[measure]}).dropna().to_numpy(float)
        if len(pairs) >= MINIMUM_COMPARED and differences(pairs).any():
            rows.append({"comparison": named, "column": measure} | paired(pairs))
    return _with_q(pd.DataFrame(rows))


def _unpaired(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    t, df, p, low, high = _welch(one, other)
    n, m = len(one), len(other)
    pooled = np.sqrt(((n - 1) * one.var(ddof=1) + (m - 1) * other.var(ddof=1)) / (n + m - 2))
    difference = one.mean() - other.mean()
    # The small-sample factor of Hedges 1981, J Educ Stat 6:107.
    hedges = difference / pooled * (1 - 3 / (4 * (n + m) - 9)) if pooled > 0 else np.nan
    return _described(one, other) | {
        "difference": difference, "ci_low": low, "ci_high": high, "t": t, "df": df, "p_t": p,
        "p_rank": rank_sum(one, other), "effect_size": hedges, "effect": "Hedges' g",
        "rank_test": "Wilcoxon rank-sum",
    }  # fmt: skip


def _welch(one: np.ndarray, other: np.ndarray) -> tuple[float, ...]:
    """Welch's t, degrees of freedom, p and interval; NaN where neither sample varies, which it cannot judge."""
    if np.ptp(one) == 0 and np.ptp(other) == 0:
        return (np.nan,) * 5
    test = stats.ttest_ind(one, other, equal_var=False)
    interval = test.confidence_interval(0.95)
    return test.statistic, test.df, test.pvalue, interval.low, interval.high


def for_ranks(values: np.ndarray, reach: float | None = None) -> np.ndarray:
    """Values without errors of rounding, which hide ties and zeros: to `RANK_BITS` digits of their reach.

    Parameters
    ----------
    values : ndarray
    reach : float, optional
        Size of what they were computed from; by default the largest of them.

    Examples
    --------
    >>> for_ranks(np.array([2 / 3 - 1 / 3, 1 / 3, 0.1 + 0.2 - 0.3]), reach=1).round(3).tolist()
    [0.333, 0.333, 0.0]
    """
    reach = float(np.abs(values).max(initial=0)) if reach is None else reach
    # Of a power of two: no fraction of small numbers lies half-way between two steps.
    step = np.ldexp(1.0, np.frexp(reach)[1] - RANK_BITS)
    return np.asarray(np.round(values / step) * step)


def differences(pairs: np.ndarray) -> np.ndarray:
    """Second minus first of each pair, shape (n, 2), without errors of rounding."""
    return for_ranks(pairs[:, 1] - pairs[:, 0], float(np.abs(pairs).max(initial=0)))


def rank_sum(one: np.ndarray, other: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's rank-sum test (Mann and Whitney's).

    Exact in small samples: without ties in groups of fewer than `MANY_RANKS`, with ties (lesion loads of zero) up to
    `EXACT_DRAWS` draws; else the normal approximation, which is too bold for few and tied values.
    """
    both = for_ranks(np.r_[one, other])
    one, other = both[: len(one)], both[len(one) :]
    method: str | stats.PermutationMethod = "asymptotic"
    if len(np.unique(both)) == len(both):
        method = "exact" if max(len(one), len(other)) < MANY_RANKS else method
    elif comb(len(both), len(one)) <= EXACT_DRAWS:
        method = stats.PermutationMethod(n_resamples=np.inf)
    return float(stats.mannwhitneyu(one, other, method=method).pvalue)


def signed_rank(change: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test; differences of zero are left out, as Wilcoxon did.

    Exact in samples of up to `EXACT_SIGNED` differences, ties or not; else the normal approximation with a correction
    for continuity. NaN without any difference.
    """
    change = for_ranks(change)
    change = change[change != 0]
    if not len(change):
        return np.nan
    if len(change) > EXACT_SIGNED:
        return float(stats.wilcoxon(change, method="asymptotic", correction=True).pvalue)
    ranks = (2 * stats.rankdata(np.abs(change))).round().astype(int)  # whole numbers, ties or not
    ways = np.zeros(int(ranks.sum()) + 1)  # to choose signs, with that sum of the positive ones
    ways[0] = 1
    for rank in ranks:
        ways[rank:] += ways[: len(ways) - rank].copy()
    place = int(ranks[change > 0].sum())
    tail = min(ways[: place + 1].sum(), ways[place:].sum()) / ways.sum()
    return float(min(1.0, 2 * tail))


def paired(pairs: np.ndarray) -> dict[str, float]:
    """Second against first of each pair, shape (n, 2): paired t test and signed-rank test."""
    change = pairs[:, 1] - pairs[:, 0]
    t, df, p, low, high, effect = _paired_t(pairs)
    return _described(pairs[:, 1], pairs[:, 0]) | {
        "difference": change.mean(), "ci_low": low, "ci_high": high, "t": t, "df": df, "p_t": p,
        "p_rank": signed_rank(differences(pairs)), "effect_size": effect, "effect": "Cohen's d of the changes",
        "rank_test": "Wilcoxon signed-rank",
    }  # fmt: skip


def _paired_t(pairs: np.ndarray) -> tuple[float, ...]:
    """Student's paired t, degrees of freedom, p, interval and d_z; NaN where all change alike: t cannot judge that."""
    if np.ptp(differences(pairs)) == 0:
        return (np.nan,) * 6
    test = stats.ttest_rel(pairs[:, 1], pairs[:, 0])
    interval, change = test.confidence_interval(0.95), pairs[:, 1] - pairs[:, 0]
    return test.statistic, test.df, test.pvalue, interval.low, interval.high, change.mean() / change.std(ddof=1)


def _described(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    return {
        "n": len(one), "reference_n": len(other), "mean": one.mean(), "reference_mean": other.mean(),
        "median": float(np.median(one)), "reference_median": float(np.median(other)),
    }  # fmt: skip


def _with_q(table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        return table
    for kind in ("t", "rank"):
        table[f"q_{kind}"] = np.nan
        for rows in table.groupby("comparison", sort=False).groups.values():
            p = table.loc[rows, f"p_{kind}"].astype(float).dropna()
            table.loc[p.index, f"q_{kind}"] = stats.false_discovery_control(p.to_numpy())
    return table


def _has_time(frame: pd.DataFrame) -> bool:
    return "time" in frame and pd.api.types.is_numeric_dtype(frame["time"]) and bool(frame["time"].notna().any())

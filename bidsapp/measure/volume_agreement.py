"""How well the volumes of two methods agree: correlation, concordance, and Bland and Altman's limits of agreement.

Cases of one subject are not independent of one another: what is said of other subjects counts subjects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

#: Fewer subjects say nothing of correlation or limits of agreement.
MINIMUM_SUBJECTS = 3
#: Confidence of all intervals.
CONFIDENCE = 0.95


def subject_means(values: np.ndarray, subject: np.ndarray) -> np.ndarray:
    """Means of the cases of each subject, in order of appearance: with a case for each they are the values."""
    return pd.Series(values).groupby(subject, sort=False).mean().to_numpy(float)


def correlations(reference: np.ndarray, prediction: np.ndarray, *, subjects: int) -> dict[str, float]:
    """Pearson, Spearman, Lin's concordance and ICC(A,1) of paired values; NaN where one of the two does not vary.

    Parameters
    ----------
    reference, prediction : ndarray, shape (n,)
    subjects : int
        Whom the values are of, three at least: the intervals are those of so many pairs. For sessions of a subject that
        are alike this is right, for others it is cautious.
    """
    names = ("pearson", "pearson_ci_low", "pearson_ci_high", "spearman", "ccc", "ccc_ci_low", "ccc_ci_high", "icc")
    if min(np.ptp(reference), np.ptp(prediction)) == 0:
        return dict.fromkeys(names, np.nan)
    r = float(stats.pearsonr(reference, prediction).statistic)
    low, high = _fishers_interval(r, 1 / (subjects - 3)) if subjects > 3 else (np.nan, np.nan)
    concordance, *interval = lins_concordance(reference, prediction, subjects=subjects)
    values = (r, low, high, float(stats.spearmanr(reference, prediction).statistic), concordance, *interval,
              icc_agreement(np.stack([reference, prediction], axis=1)))  # fmt: skip
    return dict(zip(names, values, strict=True))


def _fishers_interval(r: float, variance: float) -> tuple[float, float]:
    """95 % interval of a correlation whose inverse hyperbolic tangent has this variance (Fisher 1921, Metron 1:3)."""
    reach = stats.norm.ppf(0.5 + CONFIDENCE / 2) * np.sqrt(max(variance, 0))
    with np.errstate(divide="ignore"):  # of r = 1, whose interval is [1, 1]
        return float(np.tanh(np.arctanh(r) - reach)), float(np.tanh(np.arctanh(r) + reach))


def lins_concordance(x: np.ndarray, y: np.ndarray, *, subjects: int) -> tuple[float, float, float]:
    """Lin's concordance correlation coefficient and its 95 % interval.

    Lin L. I. A concordance correlation coefficient to evaluate reproducibility. Biometrics 45:255-268 (1989),
    doi:10.2307/2532051; variance as corrected in Biometrics 56:324 (2000). Variances are divided by n, as there. The
    interval is that of as many pairs as there are `subjects`.
    """
    sx, sy, sxy = x.var(), y.var(), float(np.cov(x, y, ddof=0)[0, 1])
    c = 2 * sxy / (sx + sy + (x.mean() - y.mean()) ** 2)
    r = sxy / np.sqrt(sx * sy)
    if subjects <= 3 or abs(c) >= 1 or r == 0:
        return float(c), np.nan, np.nan
    u = (x.mean() - y.mean()) / (sx * sy) ** 0.25
    variance = (
        (1 - r**2) * c**2 / ((1 - c**2) * r**2)
        + 2 * c**3 * (1 - c) * u**2 / (r * (1 - c**2) ** 2)
        - c**4 * u**4 / (2 * r**2 * (1 - c**2) ** 2)
    ) / (subjects - 2)
    return float(c), *_fishers_interval(c, variance)


def icc_agreement(ratings: np.ndarray) -> float:
    """Intraclass correlation ICC(A,1), in the older naming ICC(2,1): absolute agreement of single ratings.

    McGraw K. O., Wong S. P. Forming inferences about some intraclass correlation coefficients. Psychol Methods 1:30-46
    (1996), doi:10.1037/1082-989X.1.1.30; Shrout P. E., Fleiss J. L. Psychol Bull 86:420-428 (1979).

    Parameters
    ----------
    ratings : ndarray, shape (n, k)
        A row per case, a column per rater.
    """
    n, k = ratings.shape
    rows, columns, all_of = ratings.mean(axis=1), ratings.mean(axis=0), ratings.mean()
    between = k * ((rows - all_of) ** 2).sum() / (n - 1)
    raters = n * ((columns - all_of) ** 2).sum() / (k - 1)
    rest = ((ratings - rows[:, None] - columns[None] + all_of) ** 2).sum() / ((n - 1) * (k - 1))
    below = between + (k - 1) * rest + k * (raters - rest) / n
    return float((between - rest) / below) if below > 0 else np.nan


@dataclass(frozen=True)
class BlandAltman:
    """Bias and limits of agreement of n cases, with their 95 % intervals; prediction minus reference."""

    n: int
    bias: float
    bias_ci_low: float
    bias_ci_high: float
    sd: float
    lower: float
    lower_ci_low: float
    lower_ci_high: float
    upper: float
    upper_ci_low: float
    upper_ci_high: float


def bland_altman(reference: np.ndarray, prediction: np.ndarray, subject: np.ndarray) -> BlandAltman:
    """Bland and Altman's analysis of paired values.

    Bland J. M., Altman D. G. Statistical methods for assessing agreement between two methods of clinical measurement.
    Lancet 1:307-310 (1986), doi:10.1016/S0140-6736(86)90837-8. The variance of a limit is that of their paper of 1999
    (Stat Methods Med Res 8:135-160, section 2): ``sd^2 (1 / n + 1.96^2 / (2 (n - 1)))``, here of n subjects.

    Parameters
    ----------
    reference, prediction : ndarray, shape (n,)
    subject : ndarray, shape (n,)
        Whose case it is, two subjects at least: bias and intervals are over their means.
    """
    difference = prediction - reference
    means = subject_means(difference, subject)
    n = len(means)
    bias, sd = float(means.mean()), _sd_of_cases(difference, subject)
    z, t = stats.norm.ppf(0.975), stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)
    of_bias, of_limit = t * means.std(ddof=1) / np.sqrt(n), t * sd * np.sqrt(1 / n + z**2 / (2 * (n - 1)))
    lower, upper = bias - z * sd, bias + z * sd
    return BlandAltman(len(difference), bias, bias - of_bias, bias + of_bias, sd, lower, lower - of_limit,
                       lower + of_limit, upper, upper - of_limit, upper + of_limit)  # fmt: skip


def _sd_of_cases(values: np.ndarray, subject: np.ndarray) -> float:
    """Standard deviation of single cases, of which some are of one subject: from the variances within and between.

    Bland J. M., Altman D. G. Agreement between methods of measurement with multiple observations per individual.
    J Biopharm Stat 17:571-582 (2007), doi:10.1080/10543400701329422.
    """
    groups = pd.Series(values).groupby(subject)
    count, mean = groups.count().to_numpy(), groups.mean().to_numpy()
    n, m = len(values), len(count)
    if n == m:
        return float(values.std(ddof=1))
    within = float(((values - groups.transform("mean")) ** 2).sum()) / (n - m)
    between = float((count * (mean - values.mean()) ** 2).sum()) / (m - 1)
    size = (n - (count**2).sum() / n) / (m - 1)
    return float(np.sqrt(within + max(between - within, 0) / size))

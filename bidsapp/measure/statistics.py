"""Statistics of a cohort: linear, mixed, two-part and count models, and their checks.

Which model an outcome gets, and why:

========================  ============================================================================================
volumes, fractions        linear model (ordinary least squares); with several sessions per subject a linear mixed
                          model with a random intercept for each subject (restricted maximum likelihood), and with a
                          random slope of time where there are sessions enough to tell one (`matrix.own_courses`)
lesion load               two parts (a hurdle model; Duan et al. 1983, J Bus Econ Stat 1:115): logistic for whether
                          there is any lesion, and a linear or mixed model of log(load) where there is. Loads are
                          skewed by orders of magnitude and may be zero, which neither log nor a normal model bears.
numbers of lesions        Poisson with a free dispersion (quasi-Poisson; McCullagh and Nelder 1989, chapter 6)
========================  ============================================================================================

With several sessions per subject, the logistic and the count models keep their estimates and take standard errors that
hold with dependent sessions (`mixed.clustered`).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from bidsapp.measure import matrix, mixed
from bidsapp.measure.formula import Formula
from bidsapp.measure.matrix import ModelMatrix, enumerate_terms, is_product, plain_term
from bidsapp.measure.separation import separating_terms
from bidsapp.words import count_of

#: Sessions per parameter below which estimates are called unstable (Harrell 2015, Regression Modeling Strategies, 4.4).
SESSIONS_PER_PARAMETER = 10
#: Subjects with and without the event, at least, for a logistic model (of its parameters, and of this number).
MINIMUM_EVENTS = 5
#: A check with a smaller p-value is called doubtful.
DOUBTFUL = 0.05
#: Cook's distance of an influential session (Cook and Weisberg 1982); variance inflation that hurts (Marquardt 1970).
COOK_LIMIT, VIF_LIMIT = 1.0, 10.0
#: Clustered over plain standard errors beyond which a mixed model's picture of the subjects is not to be relied on.
CLUSTERED_LIMIT = 1.5
#: Shapiro and Wilk's p-value is not accurate for more (scipy).
SHAPIRO_LIMIT = 5000
#: Volumes of lesions that do not say so in their names: by region, and by what became of them.
LESION_VOLUMES = (
    "periventricular", "juxtacortical", "infratentorial", "deep_white_matter", "deep_gray_matter",
    "new", "growth", "shrinkage", "resolved",
)  # fmt: skip

TERM_COLUMNS = [
    "formula", "outcome", "part", "method", "term", "estimate", "ci_low", "ci_high", "estimate_kind", "unit",
    "se", "statistic", "df", "p", "p_robust", "q_fdr", "effect_size", "effect_low", "effect_high", "effect",
    "sessions", "subjects",
]  # fmt: skip


@dataclass(frozen=True)
class Check:
    """An assumption of a model, looked at."""

    name: str
    finding: str
    p: float
    doubtful: bool


@dataclass(frozen=True)
class Fit:
    """A fitted model, or the reason why there is none.

    Attributes
    ----------
    formula : Formula
    part, method : str
        Such as "any lesion" and "logistic"; the part is empty where a model has only one.
    terms : DataFrame
        A row per coefficient (and per factor of three and more levels: a joint test); columns of `TERM_COLUMNS`.
    sessions, subjects : int
        What it was fitted to.
    checks : tuple of Check
    notes : tuple of str
    fitted, residuals : ndarray
        Of the sessions in `index`; empty where there are none to show. Residuals are standardised.
    index : Index
        Rows of the model frame.
    refused : str
        Why there is no model, or "".
    summary : str
        R squared, or the share of variance between subjects.
    """

    formula: Formula
    part: str
    method: str
    terms: pd.DataFrame
    sessions: int = 0
    subjects: int = 0
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    fitted: np.ndarray = field(default_factory=lambda: np.empty(0))
    residuals: np.ndarray = field(default_factory=lambda: np.empty(0))
    index: pd.Index = field(default_factory=lambda: pd.Index([]))
    refused: str = ""
    summary: str = ""


def fit(formula: Formula, frame: pd.DataFrame) -> list[Fit]:
    """Fit the model that suits the outcome: one `Fit`, or two for the parts of a lesion load.

    Parameters
    ----------
    formula : Formula
        From `formula.parse` or `formula.default_formulas`.
    frame : DataFrame
        From `formula.model_frame`.

    Returns
    -------
    list of Fit
        Never raises: what data, patsy or a solver do not allow is a `Fit` with `refused`, and others can be fitted.
    """
    try:
        return _fit(formula, frame)
    except Exception as error:  # of patsy's splines and contrasts alone there are a dozen kinds
        why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        return [_refusal(formula, f"it cannot be fitted: {why}. Write the formula otherwise.")]


def _fit(formula: Formula, frame: pd.DataFrame) -> list[Fit]:
    data, left_out, problem = matrix.build(formula, frame)
    if data is None:
        return [_refusal(formula, problem)]
    formula, data, fallback, problem = matrix.sufficient(formula, data)
    if problem:
        return [_refusal(formula, problem)]
    notes = (*left_out, *fallback)
    outcome = formula.outcome
    if formula.plain and outcome.endswith("_count") and (data.y >= 0).all():
        return [_counts(formula, data, notes)]
    if formula.plain and is_lesion_load(outcome) and (data.y >= 0).all():
        return _two_parts(formula, data, notes)
    return [_gaussian(formula, data, notes)]


def is_lesion_load(column: str) -> bool:
    """Whether a column is an amount of lesion: many small, few large, some zero."""
    if column in LESION_VOLUMES:
        return True
    return "lesion" in column and not column.endswith("_count") and not re.search("_with_lesions|change", column)


def with_fdr(fits: Sequence[Fit]) -> pd.DataFrame:
    """All terms of all models in one table, with q-values.

    Benjamini and Hochberg 1995 (J R Stat Soc B 57:289), within each family: the same term of the same right-hand side,
    over all its outcomes and parts. The intercept is not tested.
    """
    parts = [one.terms for one in fits if len(one.terms)]
    if not parts:
        return pd.DataFrame(columns=TERM_COLUMNS)
    table = pd.concat(parts, ignore_index=True)
    family = table["formula"].str.partition("~")[2].str.strip() + "\t" + table["term"]
    tested = table["p"].notna() & (table["term"] != "Intercept")
    table["q_fdr"] = np.nan
    for rows in table[tested].groupby(family[tested], sort=False).groups.values():
        table.loc[rows, "q_fdr"] = stats.false_discovery_control(table.loc[rows, "p"].to_numpy(float))
    return table[TERM_COLUMNS]


def _refusal(formula: Formula, why: str, part: str = "") -> Fit:
    return Fit(formula, part, "", pd.DataFrame(columns=TERM_COLUMNS), refused=why)


# --- linear and mixed models -----------------------------------------------------------------------------------------


def _gaussian(
    formula: Formula, data: ModelMatrix, notes: tuple[str, ...], *, part: str = "", logged: bool = False
) -> Fit:
    """Linear model, or mixed model where subjects have several sessions."""
    if np.ptp(data.y) <= 1e-12 * max(1.0, np.abs(data.y).max()):
        return _refusal(formula, "the outcome is the same for all sessions.", part)
    if data.repeated and matrix.same_within(data):
        shorter, data, dropped = matrix.once(formula, data)
        same = f"{formula.left} is the same in all sessions of each subject"
        if not set(data.names) - {"Intercept"}:
            return _refusal(formula, f"{same}: what changes between sessions cannot explain it.", part)
        if problem := matrix.too_few(data):
            return _refusal(formula, f"{same}, who counts once: {problem}", part)
        formula, notes = shorter, (*notes, f"{same}, who counts once, in the first session{matrix.without(dropped)}.")
    return _linear(formula, data, notes, part=part, logged=logged)


def _linear(formula: Formula, data: ModelMatrix, notes: tuple[str, ...], *, part: str, logged: bool) -> Fit:
    """`_gaussian` of an outcome that varies, within subjects too where they have several sessions."""
    import statsmodels.api as sm

    y, x, method, between, course = data.y, data.x, "linear model", np.zeros(len(data.y)), ""
    time = matrix.own_courses(data)
    if data.repeated:
        method = "linear mixed model (REML)"
        ratio, y, x = mixed.random_intercept(data.y, data.x, data.subject)
        between[:] = ratio
        if time is not None:
            method = "linear mixed model (REML), slopes of time by subject"
            slopes = mixed.random_slopes(data.y, data.x, data.subject, time, ratio=ratio)
            y, x, between = slopes.y, slopes.x, slopes.between
    result = sm.OLS(y, x).fit()
    if result.ssr <= 1e-20 * float(data.y @ data.y):
        return _refusal(formula, "the predictors explain the outcome without rest: it is computed from them.", part)
    alone = matrix.resting_on_one(data)
    df = matrix.degrees_of_freedom(data, time)
    if data.repeated:
        covariance, robust_df = mixed.clustered(x, result.resid, data.subject)
        robust = np.where(alone, np.nan, np.sqrt(np.diag(covariance)))
    else:
        robust, robust_df = _hc3(result, alone), df
    spread = float(np.sqrt(result.mse_resid * (1 + between.mean())))
    terms = _terms(
        formula, data, estimate=result.params, se=result.bse, df=df, spread=spread, part=part, method=method,
        p_robust=2 * stats.t.sf(np.abs(result.params / robust), robust_df),
        kind="ratio" if logged else "difference", covariance=result.cov_params(),
    )  # fmt: skip
    fitted = data.x @ result.params
    residual = data.y - fitted
    if data.repeated:
        offset = slopes.offset if time is not None else _intercepts(residual, data.subject, ratio)
        fitted, residual = fitted + offset, residual - offset
        if time is not None:
            sd = np.sqrt(slopes.covariance[1, 1] * result.mse_resid)
            course = f"subjects' own slopes of time have a standard deviation of {sd:.3g}, "
        summary = f"{course}intraclass correlation {between.mean() / (1 + between.mean()):.3f}"
    else:
        summary = f"R² {result.rsquared:.3f}, adjusted {result.rsquared_adj:.3f}"
    standard = residual / np.sqrt(result.mse_resid)
    return Fit(
        formula, part, str(terms["method"].iloc[0]), terms, len(data.y), data.subjects,
        checks=(*_checks(data, standard, result), *_clustering(data, robust / result.bse), *_support(data, alone)),
        notes=notes + _thin(data), fitted=fitted,
        residuals=standard, index=data.index, summary=summary,
    )  # fmt: skip


def _intercepts(residual: np.ndarray, subject: np.ndarray, ratio: float) -> np.ndarray:
    """The subjects' random intercepts, for each session: the mean of what is left, the less so the fewer sessions."""
    count = np.bincount(subject)
    mean = np.bincount(subject, weights=residual) / count
    return (count * ratio / (1 + count * ratio) * mean)[subject]


def _thin(data: ModelMatrix) -> tuple[str, ...]:
    subjects = data.subjects
    each = subjects / data.x.shape[1]
    if each >= SESSIONS_PER_PARAMETER:
        return ()
    return (
        f"Only {each:.1f} subjects per parameter, {SESSIONS_PER_PARAMETER} are wanted: the estimates are unstable.",
    )


def _support(data: ModelMatrix, alone: np.ndarray) -> tuple[Check, ...]:
    """Told only where something is wrong."""
    if not alone.any():
        return ()
    told = f"{matrix.resting(data, alone)} alone, without a robust p-value"
    return (Check("Several subjects for every term", told, np.nan, True),)


def _clustering(data: ModelMatrix, ratio: np.ndarray) -> tuple[Check, ...]:
    """Whether errors clustered by subject, which assume nothing of how its sessions go together, are much larger."""
    ratio = np.where([name == "Intercept" for name in data.names], np.nan, ratio)
    if not data.repeated or np.isnan(ratio).all():
        return ()
    worst = int(np.nanargmax(ratio))
    told = f"clustered errors up to {ratio[worst]:.2f} times the model's ({plain_term(data.names[worst])}, limit"
    doubtful = bool(ratio[worst] > CLUSTERED_LIMIT)
    told += f" {CLUSTERED_LIMIT:g})" + (": go by the robust p" if doubtful else "")
    return (Check("Sessions go together as modelled", told, np.nan, doubtful),)


def _hc3(result: object, alone: np.ndarray) -> np.ndarray:
    """Standard errors HC3 of least squares (Long and Ervin 2000, Am Stat 54:217); NaN for coefficients `alone`."""
    x, inverse, residual = result.model.wexog, result.model.pinv_wexog, result.wresid  # type: ignore[attr-defined]
    left = 1 - np.einsum("ij,ji->i", x, inverse)
    scaled = np.where(left > 1e-8, residual / left.clip(1e-8), 0)
    return np.where(alone, np.nan, np.sqrt(inverse**2 @ scaled**2))


def _checks(data: ModelMatrix, standard: np.ndarray, result: object) -> tuple[Check, ...]:
    """The assumptions of a normal linear model, each with its test."""
    from statsmodels.stats.diagnostic import het_breuschpagan
    from statsmodels.stats.outliers_influence import OLSInfluence

    n = len(standard)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if n <= SHAPIRO_LIMIT:
            test, (normal, p_normal) = "Shapiro-Wilk W", tuple(stats.shapiro(standard))
        else:
            test, (normal, p_normal) = "Jarque-Bera", tuple(stats.jarque_bera(standard))
        design = _with_constant(data.x)
        spread, p_spread = het_breuschpagan(standard, design)[:2] if design.shape[1] > 1 else (np.nan, np.nan)
        cook = OLSInfluence(result).cooks_distance[0]
    checks = [
        Check("Residuals are normal", f"{test} = {normal:.4g}", float(p_normal), bool(p_normal < DOUBTFUL)),
        Check("Spread is even", f"Breusch-Pagan = {spread:.4g}", float(p_spread), bool(p_spread < DOUBTFUL)),
        Check(
            "No session decides alone",
            f"largest Cook's distance {np.nanmax(cook):.3g} (limit {COOK_LIMIT:g})",
            np.nan,
            bool(np.nanmax(cook) > COOK_LIMIT),
        ),
    ]
    inflation = matrix.variance_inflation(data)
    if inflation is not None:
        name, value = inflation
        told = f"largest variance inflation {value:.3g} ({name}, limit {VIF_LIMIT:g})"
        checks.append(Check("Predictors differ", told, np.nan, value > VIF_LIMIT))
    return tuple(checks)


def _with_constant(x: np.ndarray) -> np.ndarray:
    """The predictors beside a constant, which a formula may have left out (``0 + group``)."""
    wide = np.c_[np.ones(len(x)), x[:, np.ptp(x, axis=0) > 0]]
    return wide if np.linalg.matrix_rank(wide) == wide.shape[1] else wide[:, :-1]


# --- lesions ---------------------------------------------------------------------------------------------------------


def _two_parts(formula: Formula, data: ModelMatrix, notes: tuple[str, ...]) -> list[Fit]:
    """Whether there is any lesion, and how much where there is."""
    some = data.y > 0
    fits = [_logistic(formula, data, some.astype(float), notes)]
    if not some.any():
        return [*fits, _refusal(formula, "no session has a lesion.", "load")]
    loads, present, fallback, problem = matrix.sufficient(formula, data.rows(some))
    moving = np.ptp(present.x, axis=0) > 0
    if not problem and not all(moving | (np.array(present.names) == "Intercept")):
        problem = "a predictor is the same for all sessions with lesions."
    if problem:
        return [*fits, _refusal(formula, problem, "load")]
    logged = replace(present, y=np.log(present.y))
    without = int((~some).sum())
    few = (f"The other part has {count_of(without, 'session')} without lesions, too.",) if without else ()
    return [*fits, _gaussian(loads, logged, (*notes, *few, *fallback), part="load", logged=True)]


def _logistic(formula: Formula, data: ModelMatrix, event: np.ndarray, notes: tuple[str, ...]) -> Fit:
    part = "any lesion"
    subjects = matrix.subjects_with(data, event)
    needed = max(MINIMUM_EVENTS, data.x.shape[1])
    if min(subjects.values()) < needed:
        rarer = min(subjects, key=lambda outcome: subjects[outcome])
        found = "subjects have a session" if data.repeated else "sessions are"
        why = f"{subjects[rarer]} of {data.subjects} {found} {rarer} lesions, at least {needed} are needed."
        return _refusal(formula, why, part)
    return _generalised(formula, data, event, notes, family="binomial", part=part)


def _counts(formula: Formula, data: ModelMatrix, notes: tuple[str, ...]) -> Fit:
    return _generalised(formula, data, data.y, notes, family="Poisson")


def _generalised(
    formula: Formula,
    data: ModelMatrix,
    y: np.ndarray,
    notes: tuple[str, ...],
    *,
    family: Literal["binomial", "Poisson"],
    part: str = "",
) -> Fit:
    """Logistic or quasi-Poisson model; robust for dependent sessions."""
    import statsmodels.api as sm

    logistic = family == "binomial"
    if data.repeated and data.subjects - data.x.shape[1] < matrix.MINIMUM_RESIDUAL_DF:
        return _refusal(formula, matrix.few_subjects(data), part)
    apart = separating_terms(data.x, y, data.terms, counts=not logistic)
    if apart:
        return _refusal(formula, _separated(apart, logistic=logistic), part)
    # On predictors of one size: the iterations are then steady whatever the units.
    scale = np.where(np.ptp(data.x, axis=0) > 0, data.x.std(axis=0), 1)
    model = sm.GLM(y, data.x / scale, family=sm.families.Binomial() if logistic else sm.families.Poisson())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = model.fit(scale=None if logistic else "X2")
    if not (result.converged and np.isfinite(result.bse).all()):
        return _refusal(formula, "the fit did not settle: the data say too little about a predictor.", part)
    alone = matrix.resting_on_one(data)
    if data.repeated and alone.any():
        return _refusal(
            formula, f"{matrix.resting(data, alone)}: errors by subject cannot be told. Leave it out.", part
        )
    variance = model.family.variance(result.mu)
    # The fit's last step is weighted least squares, and robust errors are of that (as R's sandwich has it).
    working = result.predict(which="linear") + (y - result.mu) / variance
    last = sm.WLS(working, data.x / scale, weights=variance).fit()
    if data.repeated:
        covariance, spare = mixed.clustered(last.model.wexog, last.wresid, data.subject)
        se = robust = np.sqrt(np.diag(covariance))
    else:
        covariance, se, robust = np.asarray(result.cov_params()), result.bse, _hc3(last, alone)
        spare = np.full(len(se), np.inf if logistic else len(y) - len(se))
    method = "logistic" if logistic else "Poisson, free dispersion"
    terms = _terms(
        formula, data, estimate=result.params / scale, se=se / scale, df=spare, spread=np.nan, part=part,
        method=method + (", errors clustered by subject" if data.repeated else ""),
        p_robust=2 * stats.t.sf(np.abs(result.params / robust), spare), kind="odds ratio" if logistic else "rate ratio",
        covariance=covariance / np.outer(scale, scale),
    )  # fmt: skip
    if logistic:
        each = min(matrix.subjects_with(data, y).values()) / data.x.shape[1]
        check = Check("Enough events", f"{each:.1f} of the rarer outcome per parameter (10 wanted)", np.nan, each < 10)
        summary = f"{y.mean():.0%} of the sessions have lesions"
    else:
        dispersion = float(np.sum((y - result.mu) ** 2 / variance) / (len(y) - data.x.shape[1]))
        check = Check("Dispersion is allowed for", f"dispersion {dispersion:.3g} (1 for Poisson)", np.nan, False)
        summary = f"dispersion {dispersion:.3g}"
    return Fit(
        formula, part, str(terms["method"].iloc[0]), terms, len(y), data.subjects,
        checks=(check, *_support(data, alone)), notes=notes + _thin(data), summary=summary,
    )  # fmt: skip


def _separated(terms: Sequence[str], *, logistic: bool) -> str:
    told = enumerate_terms(terms)
    tells = "tells" if len(terms) == 1 else "tell, together,"
    which, ratio = ("which of them have lesions", "odds ratio") if logistic else ("which counts are zero", "rate ratio")
    what = "where all or none have lesions" if logistic else "where all counts are zero"
    return (
        f"{told} {tells} of some or all sessions exactly {which} (such as a group {what}): there is no finite {ratio}."
        f" Leave {'it' if len(terms) == 1 else 'one'} out, or see Wilcoxon's test among the comparisons."
    )


# --- terms -----------------------------------------------------------------------------------------------------------


def _terms(
    formula: Formula,
    data: ModelMatrix,
    *,
    estimate: np.ndarray,
    se: np.ndarray,
    df: np.ndarray,
    spread: float,
    part: str,
    method: str,
    p_robust: np.ndarray,
    kind: str,
    covariance: np.ndarray,
) -> pd.DataFrame:
    """A row per coefficient, then one per factor of several levels."""
    statistic = estimate / se
    reach = stats.t.ppf(0.975, df) * se
    ends = [estimate, estimate - reach, estimate + reach]
    if kind != "difference":
        with np.errstate(over="ignore"):
            ends = [np.exp(end) for end in ends]
    shared = {"formula": formula.text, "outcome": formula.outcome, "part": part, "method": method}
    sizes = {"sessions": len(data.y), "subjects": data.subjects}
    rows = []
    for i, name in enumerate(data.names):
        effect, low, high, about = _effect(name, estimate[i], reach[i], statistic[i], df[i], spread)
        rows.append(shared | {
            "term": plain_term(name), "estimate": ends[0][i], "ci_low": ends[1][i], "ci_high": ends[2][i],
            "estimate_kind": kind, "unit": "", "se": se[i], "statistic": statistic[i], "df": df[i],
            "p": 2 * stats.t.sf(abs(statistic[i]), df[i]), "p_robust": p_robust[i], "q_fdr": np.nan,
            "effect_size": effect, "effect_low": low, "effect_high": high, "effect": about, **sizes,
        })  # fmt: skip
    for name, where in data.terms.items():
        if where.stop - where.start < 2:
            continue
        part_of = estimate[where]
        wald = float(part_of @ np.linalg.solve(covariance[where, where], part_of)) / len(part_of)
        spare = float(df[where].min())
        rows.append(shared | {
            "term": f"{plain_term(name)} (jointly)", "estimate": np.nan, "ci_low": np.nan, "ci_high": np.nan,
            "estimate_kind": f"F test of {len(part_of)} coefficients", "unit": "", "se": np.nan, "statistic": wald,
            "df": spare, "p": stats.f.sf(wald, len(part_of), spare if np.isfinite(spare) else 1e9),
            "p_robust": np.nan, "q_fdr": np.nan,
            "effect_size": wald * len(part_of) / (wald * len(part_of) + spare) if np.isfinite(spare) else np.nan,
            "effect_low": np.nan, "effect_high": np.nan, "effect": "partial eta squared", **sizes,
        })  # fmt: skip
    return pd.DataFrame(rows, columns=TERM_COLUMNS)


def _effect(
    name: str, estimate: float, reach: float, statistic: float, df: float, spread: float
) -> tuple[float, float, float, str]:
    """Effect size of a coefficient on the model's scale, its interval, and its name.

    Cohen's d of a level against the reference: the adjusted difference over the residual standard deviation (of a mixed
    model, between and within subjects together; Brysbaert and Stevens 2018, J Cogn 1:9), the interval that of the
    difference. Of a number: the partial correlation, ``t / sqrt(t^2 + df)`` (Cohen 1988), its interval by Fisher's
    transformation. None for logistic and count models: the ratio is one.
    """
    if not np.isfinite(spread) or name == "Intercept":
        return np.nan, np.nan, np.nan, ""
    if "[T." in name and not is_product(name):
        return estimate / spread, (estimate - reach) / spread, (estimate + reach) / spread, "Cohen's d"
    r = statistic / np.sqrt(statistic**2 + df)
    width = stats.norm.ppf(0.975) / np.sqrt(max(df - 1, 1))
    return r, float(np.tanh(np.arctanh(r) - width)), float(np.tanh(np.arctanh(r) + width)), "partial r"

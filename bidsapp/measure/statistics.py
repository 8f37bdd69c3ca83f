"""Statistics of a cohort: linear, mixed, two-part and count models, and their checks.

Which model an outcome gets, and why:

========================  ============================================================================================
volumes, fractions        linear model (ordinary least squares); with several sessions per subject a linear mixed
                          model with a random intercept for each subject (restricted maximum likelihood)
lesion load               two parts (a hurdle model; Duan et al. 1983, J Bus Econ Stat 1:115): logistic for whether
                          there is any lesion, and a linear or mixed model of log(load) where there is. Loads are
                          skewed by orders of magnitude and may be zero, which neither log nor a normal model bears.
numbers of lesions        Poisson with a free dispersion (quasi-Poisson; McCullagh and Nelder 1989, chapter 6)
========================  ============================================================================================

With several sessions per subject, the logistic and the count models keep their estimates and take standard errors that
hold with dependent sessions (clustered by subject; Liang and Zeger 1986, Biometrika 73:13).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy import linalg, optimize, stats

from bidsapp.measure.cohort import order_sessions
from bidsapp.measure.formula import FUNCTIONS, Formula
from bidsapp.measure.separation import separating_terms

#: Residual degrees of freedom below which a model is not fitted: its intervals would be guesses.
MINIMUM_RESIDUAL_DF = 5
#: Sessions per parameter below which estimates are called unstable (Harrell 2015, Regression Modeling Strategies, 4.4).
SESSIONS_PER_PARAMETER = 10
#: Subjects with and without the event, at least, for a logistic model (of its parameters, and of this number).
MINIMUM_EVENTS = 5
#: Least share of a predictor's variance within subjects with which it counts as varying there (TIV hardly does).
WITHIN_SHARE = 0.1
#: A check with a smaller p-value is called doubtful.
DOUBTFUL = 0.05
#: Cook's distance of an influential session (Cook and Weisberg 1982); variance inflation that hurts (Marquardt 1970).
COOK_LIMIT, VIF_LIMIT = 1.0, 10.0
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


@dataclass(frozen=True)
class _Data:
    """Design of a model: outcome y (n,), predictors x (n, p), group codes of the subjects (n,)."""

    y: np.ndarray
    x: np.ndarray
    names: list[str]
    terms: dict[str, slice]
    factors: set[str]
    subject: np.ndarray
    index: pd.Index

    @property
    def repeated(self) -> bool:
        return len(np.unique(self.subject)) < len(self.subject)

    @property
    def subjects(self) -> int:
        return int(self.subject.max()) + 1

    def rows(self, keep: np.ndarray) -> _Data:
        _, subject = np.unique(self.subject[keep], return_inverse=True)
        return _Data(self.y[keep], self.x[keep], self.names, self.terms, self.factors, subject, self.index[keep])

    def columns(self, keep: np.ndarray) -> _Data:
        """With some of the predictors only; terms without any column are gone."""
        terms, start = {}, 0
        for name, where in self.terms.items():
            stop = start + int(keep[where].sum())
            if stop > start:
                terms[name] = slice(start, stop)
            start = stop
        names = [name for name, one in zip(self.names, keep, strict=True) if one]
        return replace(self, x=self.x[:, keep], names=names, terms=terms)


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
    data, left_out, problem = _design(formula, frame)
    if data is None:
        return [_refusal(formula, problem)]
    formula, data, fallback, problem = _sufficient(formula, data)
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


# --- design ----------------------------------------------------------------------------------------------------------


def _design(formula: Formula, frame: pd.DataFrame) -> tuple[_Data | None, list[str], str]:
    """Outcome and predictors of the rows that are complete; what was left out; why there is no model."""
    import patsy

    needed = list(formula.variables)
    columns = [*dict.fromkeys([*needed, "participant_id"])]
    complete = frame[columns].iloc[order_sessions(frame)].replace([np.inf, -np.inf], np.nan)
    whole = complete.notna().all(axis=1)
    notes = _left_out(complete, whole, needed)
    used = complete[whole].copy()
    for name in needed:
        if isinstance(used[name].dtype, pd.CategoricalDtype):
            used[name] = used[name].cat.remove_unused_categories()
        if used[name].nunique() < 2:
            told = "the same for all sessions" if len(used) else "n/a"
            return None, notes, f"{name} is {told}" + (f" that are complete ({len(used)})." if len(used) else ".")
    environment = patsy.EvalEnvironment([dict(FUNCTIONS)])
    try:
        with np.errstate(all="ignore"):
            y, x = patsy.dmatrices(f"{formula.left} ~ {formula.right}", used, eval_env=environment, NA_action="raise")
    except patsy.PatsyError as error:
        return None, notes, f"the formula cannot be used: {str(error).splitlines()[0]}."
    y, matrix = np.asarray(y, dtype=float), np.asarray(x, dtype=float)
    if y.shape[1] != 1:
        return None, notes, f"{formula.left} is not one number per session: it cannot be explained by a linear model."
    if not (np.isfinite(y).all() and np.isfinite(matrix).all()):
        return None, notes, f"{formula.text} is not finite for every session (the logarithm of zero?)."
    _, subject = np.unique(used["participant_id"].astype(str), return_inverse=True)
    info = x.design_info
    factors = {
        term.name()
        for term in info.terms
        if term.factors and all(info.factor_infos[factor].type == "categorical" for factor in term.factors)
    }
    terms = {name: info.term_name_slices[name] for name in info.term_names}
    return _Data(y[:, 0], matrix, list(info.column_names), terms, factors, subject, used.index), notes, ""


def _left_out(frame: pd.DataFrame, whole: pd.Series, needed: Sequence[str]) -> list[str]:
    if whole.all():
        return []
    why = [f"{name} ({int(frame[name].isna().sum())})" for name in needed if frame[name].isna().any()]
    return [f"{int((~whole).sum())} of {len(whole)} sessions are left out, n/a in {', '.join(why)}."]


def _too_few(data: _Data) -> str:
    """Why the data cannot carry the model, or ""."""
    sessions, parameters = data.x.shape
    subjects = data.subjects
    if not parameters:
        return "it has no predictor. Name one, or write 1 for the mean alone."
    spare = int(_degrees_of_freedom(data).min())
    if spare < MINIMUM_RESIDUAL_DF:
        return (
            f"too few for this model: {sessions} sessions of {subjects} subjects and {parameters} parameters leave"
            f" {max(spare, 0)} degrees of freedom, at least {MINIMUM_RESIDUAL_DF} are needed. Use fewer predictors."
        )
    if np.linalg.matrix_rank(data.x / np.linalg.norm(data.x, axis=0).clip(1e-300)) < parameters:
        return (
            "its predictors determine one another (such as a site at which all are patients): their effects cannot be"
            " told apart. Leave one out."
        )
    return ""


def _degrees_of_freedom(data: _Data) -> np.ndarray:
    """Of every coefficient; between and within subjects apart (Schluchter and Elashoff 1990, J Stat Comput Sim 37:69).

    A mixed model's Wald tests with normal quantiles are too bold in small samples; these t quantiles mend it.
    """
    sessions, parameters = data.x.shape
    if not data.repeated:
        return np.full(parameters, sessions - parameters)
    within = _within(data)
    between_df = data.subjects - int((~within).sum())
    within_df = sessions - data.subjects - int(within.sum())
    return np.where(within, within_df, between_df)


def _within(data: _Data) -> np.ndarray:
    """Which predictors vary within subjects, by an analysis of variance of what the others do not tell of them.

    nlme counts a predictor as within subjects if any subject has two values, so that a head size measured anew at each
    of a few rescans would take its degrees of freedom from these. Shape (p,).
    """
    count = np.bincount(data.subject)
    varies = (data.x != data.x[np.unique(data.subject, return_index=True)[1]][data.subject]).any(axis=0)
    own = np.linalg.pinv(data.x / np.linalg.norm(data.x, axis=0).clip(1e-300)).T
    total = np.stack([np.bincount(data.subject, weights=column) for column in own.T], axis=1)
    square = ((own - (total / count[:, None])[data.subject]) ** 2).sum(axis=0) / max(len(own) - len(count), 1)
    return np.asarray(varies & (square > WITHIN_SHARE * own.var(axis=0, ddof=1)))


def _sufficient(formula: Formula, data: _Data) -> tuple[Formula, _Data, tuple[str, ...], str]:
    """What can be fitted: all sessions, else each subject's first; a note where it is these; why nothing can, or "".

    A few subjects who were scanned twice do not tell what changes within subjects, and must not cost the others their
    model.
    """
    problem = _too_few(data)
    if not problem or not data.repeated or not len(data.names):
        return formula, data, (), problem
    within = int(_within(data).sum())
    if not within or len(data.y) - data.subjects - within >= MINIMUM_RESIDUAL_DF:
        return formula, data, (), problem
    shorter, once, dropped = _once(formula, data)
    if not set(once.names) - {"Intercept"} or _too_few(once):
        return formula, data, (), problem
    several = int((np.bincount(data.subject) > 1).sum())
    note = (
        f"{several} of {data.subjects} subjects have several sessions, too few for what changes within subjects: the"
        f" first of each subject is used{_without(dropped)}."
    )
    return shorter, once, (note,), ""


def _once(formula: Formula, data: _Data) -> tuple[Formula, _Data, list[str]]:
    """The first session of each subject; predictors that then say nothing (time) are left out, and told."""
    _, first = np.unique(data.subject, return_index=True)
    once = data.rows(np.sort(first))
    keep = np.array([name == "Intercept" for name in once.names]) | (np.ptp(once.x, axis=0) > 0)
    for name, where in once.terms.items():
        keep[where] &= not re.search(r"\b(time|session_id)\b", name)
    shorter = once.columns(keep)
    dropped = [name for name in data.terms if name not in shorter.terms]
    right = " + ".join(name for name in shorter.terms if name != "Intercept") or "1"
    right = right if "Intercept" in shorter.terms else f"0 + {right}"
    needed = [name for name in formula.variables[1:] if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", right)]
    return Formula(formula.left, right, formula.outcome, (formula.outcome, *needed)), shorter, dropped


def _without(dropped: Sequence[str]) -> str:
    return f", without {_enumerated(dropped)}" if dropped else ""


def _refusal(formula: Formula, why: str, part: str = "") -> Fit:
    return Fit(formula, part, "", pd.DataFrame(columns=TERM_COLUMNS), refused=why)


# --- linear and mixed models -----------------------------------------------------------------------------------------


def random_intercept(y: np.ndarray, x: np.ndarray, subject: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Restricted maximum likelihood for a linear model with a random intercept per subject.

    With one random effect the likelihood depends, once profiled, on the ratio of the variances alone, and the model is
    ordinary least squares of partly demeaned data: ``y - theta_i mean_i(y)``, ``theta_i = 1 - 1 / sqrt(1 + n_i rho)``
    (Fuller and Battese 1973, J Am Stat Assoc 68:626; Pinheiro and Bates 2000, chapter 2). It is the estimate of
    statsmodels' MixedLM, checked in the tests, and takes milliseconds where that takes 13 s at 5,000 subjects.

    Parameters
    ----------
    y : ndarray, shape (n,)
    x : ndarray, shape (n, p)
        Full column rank.
    subject : ndarray of int, shape (n,)
        0 to m - 1.

    Returns
    -------
    ratio : float
        Variance between subjects over the variance within.
    y, x : ndarray
        Transformed: their ordinary least squares are the model.
    """
    count = np.bincount(subject).astype(float)
    mean_y = np.bincount(subject, weights=y) / count
    mean_x = np.stack([np.bincount(subject, weights=column) / count for column in x.T], axis=1)

    def transformed(ratio: float) -> tuple[np.ndarray, np.ndarray]:
        theta = 1 - 1 / np.sqrt(1 + count * ratio)
        return y - (theta * mean_y)[subject], x - (theta[:, None] * mean_x)[subject]

    def deviance(share: float) -> float:
        ratio = share / (1 - share)
        some_y, some_x = transformed(ratio)
        q, r = linalg.qr(some_x, mode="economic")
        residual = some_y - q @ (q.T @ some_y)
        spare = len(y) - x.shape[1]
        logdet_x = 2 * np.log(np.abs(np.diag(r))).sum()
        return float(spare * np.log(residual @ residual) + np.log1p(count * ratio).sum() + logdet_x)

    found = optimize.minimize_scalar(deviance, bounds=(0, 1 - 1e-6), method="bounded", options={"xatol": 1e-8})
    share = 0.0 if deviance(0.0) <= found.fun else float(found.x)
    ratio = share / (1 - share)
    return ratio, *transformed(ratio)


def _gaussian(formula: Formula, data: _Data, notes: tuple[str, ...], *, part: str = "", logged: bool = False) -> Fit:
    """Linear model, or mixed model where subjects have several sessions."""
    import statsmodels.api as sm

    if np.ptp(data.y) <= 1e-12 * max(1.0, np.abs(data.y).max()):
        return _refusal(formula, "the outcome is the same for all sessions.", part)
    if data.repeated and _same_within(data):
        shorter, data, dropped = _once(formula, data)
        same = f"{formula.left} is the same in all sessions of each subject"
        if not set(data.names) - {"Intercept"}:
            return _refusal(formula, f"{same}: what changes between sessions cannot explain it.", part)
        if problem := _too_few(data):
            return _refusal(formula, f"{same}, who counts once: {problem}", part)
        formula, notes = shorter, (*notes, f"{same}, who counts once, in the first session{_without(dropped)}.")
    ratio, y, x = (0.0, data.y, data.x)
    if data.repeated:
        ratio, y, x = random_intercept(data.y, data.x, data.subject)
    result = sm.OLS(y, x).fit()
    if result.ssr <= 1e-20 * float(data.y @ data.y):
        return _refusal(formula, "the predictors explain the outcome without rest: it is computed from them.", part)
    alone = _resting_on_one(data)
    if data.repeated:
        clustered = np.asarray(result.get_robustcov_results("cluster", groups=data.subject).bse)
        robust = np.where(alone, np.nan, clustered)
    else:
        robust = _hc3(result, alone)
    df = _degrees_of_freedom(data)
    spread = float(np.sqrt(result.mse_resid * (1 + ratio)))
    terms = _terms(
        formula, data, estimate=result.params, se=result.bse, df=df, spread=spread, part=part,
        method="linear mixed model (REML)" if data.repeated else "linear model",
        p_robust=2 * stats.t.sf(np.abs(result.params / robust), df),
        kind="ratio" if logged else "difference", covariance=result.cov_params(),
    )  # fmt: skip
    fitted = data.x @ result.params
    residual = data.y - fitted
    if data.repeated:
        mean = np.bincount(data.subject, weights=residual) / np.bincount(data.subject)
        shrink = (lambda n: n * ratio / (1 + n * ratio))(np.bincount(data.subject))
        offset = (shrink * mean)[data.subject]
        fitted, residual = fitted + offset, residual - offset
        summary = f"intraclass correlation {ratio / (1 + ratio):.3f}"
    else:
        summary = f"R² {result.rsquared:.3f}, adjusted {result.rsquared_adj:.3f}"
    standard = residual / np.sqrt(result.mse_resid)
    return Fit(
        formula, part, str(terms["method"].iloc[0]), terms, len(data.y), data.subjects,
        checks=(*_checks(data, standard, result), *_support(data, alone)), notes=notes + _thin(data), fitted=fitted,
        residuals=standard, index=data.index, summary=summary,
    )  # fmt: skip


def _same_within(data: _Data) -> bool:
    """Whether the outcome says nothing but who the subject is: its sessions are no further observations then."""
    _, first = np.unique(data.subject, return_index=True)
    return bool(np.abs(data.y - data.y[first][data.subject]).max() <= 1e-12 * np.abs(data.y).max())


def _thin(data: _Data) -> tuple[str, ...]:
    subjects = data.subjects
    each = subjects / data.x.shape[1]
    if each >= SESSIONS_PER_PARAMETER:
        return ()
    return (
        f"Only {each:.1f} subjects per parameter, {SESSIONS_PER_PARAMETER} are wanted: the estimates are unstable.",
    )


def _resting_on_one(data: _Data) -> np.ndarray:
    """Which coefficients cannot be estimated without some one subject, such as the only one of a site; shape (p,).

    That subject is fitted exactly whatever it is: errors made of residuals know nothing of such a coefficient.
    """
    x = data.x / np.linalg.norm(data.x, axis=0)
    q, r = np.linalg.qr(x)
    alone = np.zeros(x.shape[1], bool)
    for subject in np.flatnonzero(np.bincount(data.subject, weights=(q**2).sum(axis=1)) > 1 - 1e-8):
        _, size, directions = np.linalg.svd(q[data.subject == subject], full_matrices=False)
        for one in directions[size > 1 - 1e-8]:
            moved = np.abs(linalg.solve_triangular(r, one))
            alone |= moved > 1e-6 * moved.max()
    return alone


def _resting(data: _Data, alone: np.ndarray) -> str:
    rest = "rests" if alone.sum() == 1 else "rest"
    return f"{_enumerated([name for name, one in zip(data.names, alone, strict=True) if one])} {rest} on one subject"


def _support(data: _Data, alone: np.ndarray) -> tuple[Check, ...]:
    """Told only where something is wrong."""
    if not alone.any():
        return ()
    told = f"{_resting(data, alone)} alone, without a robust p-value"
    return (Check("Several subjects for every term", told, np.nan, True),)


def _hc3(result: object, alone: np.ndarray) -> np.ndarray:
    """Standard errors HC3 of least squares (Long and Ervin 2000, Am Stat 54:217); NaN for coefficients `alone`."""
    x, inverse, residual = result.model.wexog, result.model.pinv_wexog, result.wresid  # type: ignore[attr-defined]
    left = 1 - np.einsum("ij,ji->i", x, inverse)
    scaled = np.where(left > 1e-8, residual / left.clip(1e-8), 0)
    return np.where(alone, np.nan, np.sqrt(inverse**2 @ scaled**2))


def _checks(data: _Data, standard: np.ndarray, result: object) -> tuple[Check, ...]:
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
    inflation = _variance_inflation(data)
    if inflation is not None:
        name, value = inflation
        told = f"largest variance inflation {value:.3g} ({name}, limit {VIF_LIMIT:g})"
        checks.append(Check("Predictors differ", told, np.nan, value > VIF_LIMIT))
    return tuple(checks)


def _with_constant(x: np.ndarray) -> np.ndarray:
    """The predictors beside a constant, which a formula may have left out (``0 + group``)."""
    wide = np.c_[np.ones(len(x)), x[:, np.ptp(x, axis=0) > 0]]
    return wide if np.linalg.matrix_rank(wide) == wide.shape[1] else wide[:, :-1]


def _variance_inflation(data: _Data) -> tuple[str, float] | None:
    """Largest variance inflation factor of the main effects (products are collinear with their parts by nature)."""
    keep = [i for i, name in enumerate(data.names) if name != "Intercept" and ":" not in name]
    if len(keep) < 2:
        return None
    factors = np.diag(np.linalg.pinv(np.corrcoef(data.x[:, keep], rowvar=False)))
    worst = int(np.argmax(factors))
    return plain_term(data.names[keep[worst]]), float(factors[worst])


# --- lesions ---------------------------------------------------------------------------------------------------------


def _two_parts(formula: Formula, data: _Data, notes: tuple[str, ...]) -> list[Fit]:
    """Whether there is any lesion, and how much where there is."""
    some = data.y > 0
    fits = [_logistic(formula, data, some.astype(float), notes)]
    if not some.any():
        return [*fits, _refusal(formula, "no session has a lesion.", "load")]
    loads, present, fallback, problem = _sufficient(formula, data.rows(some))
    moving = np.ptp(present.x, axis=0) > 0
    if not problem and not all(moving | (np.array(present.names) == "Intercept")):
        problem = "a predictor is the same for all sessions with lesions."
    if problem:
        return [*fits, _refusal(formula, problem, "load")]
    logged = replace(present, y=np.log(present.y))
    few = (f"{int((~some).sum())} sessions without lesions are in the other part.",) if not some.all() else ()
    return [*fits, _gaussian(loads, logged, (*notes, *few, *fallback), part="load", logged=True)]


def _logistic(formula: Formula, data: _Data, event: np.ndarray, notes: tuple[str, ...]) -> Fit:
    part = "any lesion"
    subjects = _subjects_with(data, event)
    needed = max(MINIMUM_EVENTS, data.x.shape[1])
    if min(subjects.values()) < needed:
        rarer = min(subjects, key=lambda outcome: subjects[outcome])
        found = "subjects have a session" if data.repeated else "sessions are"
        why = f"{subjects[rarer]} of {data.subjects} {found} {rarer} lesions, at least {needed} are needed."
        return _refusal(formula, why, part)
    import statsmodels.api as sm

    return _generalised(formula, data, event, sm.families.Binomial(), notes, part=part)


def _subjects_with(data: _Data, event: np.ndarray) -> dict[str, int]:
    """In how many subjects there is a session with an event, and one without: sessions of one subject are no news."""
    return {name: len(np.unique(data.subject[event == value])) for name, value in (("with", 1), ("without", 0))}


def _counts(formula: Formula, data: _Data, notes: tuple[str, ...]) -> Fit:
    import statsmodels.api as sm

    return _generalised(formula, data, data.y, sm.families.Poisson(), notes, part="")


def _generalised(
    formula: Formula, data: _Data, y: np.ndarray, family: object, notes: tuple[str, ...], *, part: str
) -> Fit:
    """Logistic (``part`` is set) or quasi-Poisson model; robust for dependent sessions."""
    import statsmodels.api as sm

    logistic = bool(part)
    apart = separating_terms(data.x, y, data.terms, counts=not logistic)
    if apart:
        return _refusal(formula, _separated(apart, logistic=logistic), part)
    # On predictors of one size: the iterations are then steady whatever the units.
    scale = np.where(np.ptp(data.x, axis=0) > 0, data.x.std(axis=0), 1)
    options = {"cov_type": "cluster", "cov_kwds": {"groups": data.subject}} if data.repeated else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = sm.GLM(y, data.x / scale, family=family).fit(scale=None if logistic else "X2", **options)
    if not (result.converged and np.isfinite(result.bse).all()):
        return _refusal(formula, "the fit did not settle: the data say too little about a predictor.", part)
    alone = _resting_on_one(data)
    if data.repeated and alone.any():
        return _refusal(formula, f"{_resting(data, alone)}: errors by subject cannot be told. Leave it out.", part)
    subjects = data.subjects
    spare = np.full(data.x.shape[1], subjects - data.x.shape[1] if data.repeated else len(y) - data.x.shape[1], float)
    if logistic and not data.repeated:
        spare[:] = np.inf
    if data.repeated:
        robust = result.bse
    else:
        # The fit's last step is weighted least squares, and HC3 is of that (as vcovHC of R's sandwich has it).
        weight = family.variance(result.mu)  # type: ignore[attr-defined]
        working = result.predict(which="linear") + (y - result.mu) / weight
        robust = _hc3(sm.WLS(working, data.x / scale, weights=weight).fit(), alone)
    method = "logistic" if logistic else "Poisson, free dispersion"
    terms = _terms(
        formula, data, estimate=result.params / scale, se=result.bse / scale, df=spare, spread=np.nan, part=part,
        method=method + (", errors clustered by subject" if data.repeated else ""),
        p_robust=2 * stats.t.sf(np.abs(result.params / robust), spare), kind="odds ratio" if logistic else "rate ratio",
        covariance=np.asarray(result.cov_params()) / np.outer(scale, scale),
    )  # fmt: skip
    dispersion = float(np.sum((y - result.mu) ** 2 / family.variance(result.mu)) / (len(y) - data.x.shape[1]))  # type: ignore[attr-defined]
    if logistic:
        each = min(_subjects_with(data, y).values()) / data.x.shape[1]
        check = Check("Enough events", f"{each:.1f} of the rarer outcome per parameter (10 wanted)", np.nan, each < 10)
        summary = f"{y.mean():.0%} of the sessions have lesions"
    else:
        check = Check("Dispersion is allowed for", f"dispersion {dispersion:.3g} (1 for Poisson)", np.nan, False)
        summary = f"dispersion {dispersion:.3g}"
    return Fit(
        formula, part, str(terms["method"].iloc[0]), terms, len(y), subjects,
        checks=(check, *_support(data, alone)), notes=notes + _thin(data), summary=summary,
    )  # fmt: skip


def _separated(terms: Sequence[str], *, logistic: bool) -> str:
    told = _enumerated(terms)
    tells = "tells" if len(terms) == 1 else "tell, together,"
    which, ratio = ("which of them have lesions", "odds ratio") if logistic else ("which counts are zero", "rate ratio")
    what = "where all or none have lesions" if logistic else "where all counts are zero"
    return (
        f"{told} {tells} of some or all sessions exactly {which} (such as a group {what}): there is no finite {ratio}."
        f" Leave {'it' if len(terms) == 1 else 'one'} out, or see Wilcoxon's test among the comparisons."
    )


def _enumerated(terms: Sequence[str]) -> str:
    plain = [plain_term(term) for term in terms]
    return plain[0] if len(plain) == 1 else f"{', '.join(plain[:-1])} and {plain[-1]}"


# --- terms -----------------------------------------------------------------------------------------------------------


def _terms(
    formula: Formula,
    data: _Data,
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
    if "[T." in name and ":" not in name:
        return estimate / spread, (estimate - reach) / spread, (estimate + reach) / spread, "Cohen's d"
    r = statistic / np.sqrt(statistic**2 + df)
    width = stats.norm.ppf(0.975) / np.sqrt(max(df - 1, 1))
    return r, float(np.tanh(np.arctanh(r) - width)), float(np.tanh(np.arctanh(r) + width)), "partial r"


def plain_term(name: str) -> str:
    """A coefficient's name without patsy's marks.

    Examples
    --------
    >>> plain_term("group[T.MS]"), plain_term("C(site)[T.b]:age")
    ('group = MS', 'site = b : age')
    """
    parts = []
    for factor in name.split(":"):
        match = re.fullmatch(r"(?:C\((\w+)[^)]*\)|Q\('([^']+)'\)|(.+?))(?:\[(?:T\.)?(.*)\])?", factor)
        if match is None:
            parts.append(factor)
            continue
        base = next(text for text in match.groups()[:3] if text is not None)
        parts.append(f"{base} = {match[4]}" if match[4] is not None else base)
    return " : ".join(parts)

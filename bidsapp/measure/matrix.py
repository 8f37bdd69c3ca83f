"""What a model is fitted to: outcome, predictors and subjects of the complete sessions, and what these can carry."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import linalg

from bidsapp.measure.cohort import natural, order_sessions
from bidsapp.measure.formula import FUNCTIONS, Formula
from bidsapp.measure.mixed import lines, off_line
from bidsapp.words import count_of, enumerate_words

#: Residual degrees of freedom below which a model is not fitted: its intervals would be guesses.
MINIMUM_RESIDUAL_DF = 5
#: Least share of a predictor's variance within subjects with which it counts as varying there (TIV hardly does).
WITHIN_SHARE = 0.1


@dataclass(frozen=True)
class ModelMatrix:
    """Outcome and predictors of n sessions.

    Attributes
    ----------
    y : ndarray, shape (n,)
    x : ndarray, shape (n, p)
    names : list of str
        Of the p columns, as patsy has them.
    terms : dict of str to slice
        The columns of every term.
    subject : ndarray of int, shape (n,)
        0 to m - 1.
    index : Index
        Rows of the model frame.
    """

    y: np.ndarray
    x: np.ndarray
    names: list[str]
    terms: dict[str, slice]
    subject: np.ndarray
    index: pd.Index

    @property
    def repeated(self) -> bool:
        return len(np.unique(self.subject)) < len(self.subject)

    @property
    def subjects(self) -> int:
        return int(self.subject.max()) + 1

    def rows(self, keep: np.ndarray) -> ModelMatrix:
        _, subject = np.unique(self.subject[keep], return_inverse=True)
        return ModelMatrix(self.y[keep], self.x[keep], self.names, self.terms, subject, self.index[keep])

    def columns(self, keep: np.ndarray) -> ModelMatrix:
        """With some of the predictors only; terms without any column are gone."""
        terms, start = {}, 0
        for name, where in self.terms.items():
            stop = start + int(keep[where].sum())
            if stop > start:
                terms[name] = slice(start, stop)
            start = stop
        names = [name for name, one in zip(self.names, keep, strict=True) if one]
        return replace(self, x=self.x[:, keep], names=names, terms=terms)


def build(formula: Formula, frame: pd.DataFrame) -> tuple[ModelMatrix | None, list[str], str]:
    """Outcome and predictors of the sessions that are complete.

    Parameters
    ----------
    formula : Formula
    frame : DataFrame
        From `formula.model_frame`.

    Returns
    -------
    data : ModelMatrix or None
    notes : list of str
        What was left out.
    problem : str
        Why there is no model, or "".
    """
    import patsy

    needed = list(formula.variables)
    columns = [*dict.fromkeys([*needed, "participant_id"])]
    complete = frame[columns].iloc[order_sessions(frame)].replace([np.inf, -np.inf], np.nan)
    whole = complete.notna().all(axis=1)
    notes = _left_out(complete, whole, needed)
    used = complete[whole].copy()
    if "session_id" in needed:  # patsy would sort it as text: ses-10 before ses-2
        used["session_id"] = pd.Categorical(used["session_id"], sorted(used["session_id"].unique(), key=natural))
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
    info = x.design_info
    y, x = np.asarray(y, dtype=float), np.asarray(x, dtype=float)
    if y.shape[1] != 1:
        return None, notes, f"{formula.left} is not one number per session: it cannot be explained by a linear model."
    if not (np.isfinite(y).all() and np.isfinite(x).all()):
        return None, notes, f"{formula.text} is not finite for every session (the logarithm of zero?)."
    _, subject = np.unique(used["participant_id"].astype(str), return_inverse=True)
    terms = {name: info.term_name_slices[name] for name in info.term_names}
    return ModelMatrix(y[:, 0], x, list(info.column_names), terms, subject, used.index), notes, ""


def _left_out(frame: pd.DataFrame, whole: pd.Series, needed: Sequence[str]) -> list[str]:
    if whole.all():
        return []
    why = [f"{name} ({int(frame[name].isna().sum())})" for name in needed if frame[name].isna().any()]
    return [f"{int((~whole).sum())} of {len(whole)} sessions are left out, n/a in {', '.join(why)}."]


def too_few(data: ModelMatrix) -> str:
    """Why the data cannot carry the model, or ""."""
    sessions, parameters = data.x.shape
    subjects = data.subjects
    if not parameters:
        return "it has no predictor. Name one, or write 1 for the mean alone."
    spare = int(degrees_of_freedom(data).min())
    if spare < MINIMUM_RESIDUAL_DF:
        return (
            f"too few for this model: {count_of(sessions, 'session')} of {count_of(subjects, 'subject')} and"
            f" {count_of(parameters, 'parameter')} leave {count_of(max(spare, 0), 'degree')} of freedom, at least"
            f" {MINIMUM_RESIDUAL_DF} are needed. Use fewer predictors."
        )
    if np.linalg.matrix_rank(data.x / np.linalg.norm(data.x, axis=0).clip(1e-300)) < parameters:
        return (
            "its predictors determine one another (such as a site at which all are patients): their effects cannot be"
            " told apart. Leave one out."
        )
    return ""


def few_subjects(data: ModelMatrix) -> str:
    """Why errors clustered by subject cannot be told: they have no more degrees of freedom than that."""
    subjects, parameters = data.subjects, data.x.shape[1]
    return (
        f"too few for this model: errors by subject of {count_of(subjects, 'subject')} and"
        f" {count_of(parameters, 'parameter')} have {count_of(max(subjects - parameters, 0), 'degree')} of freedom, at"
        f" least {MINIMUM_RESIDUAL_DF} are needed. Use fewer predictors."
    )


def degrees_of_freedom(data: ModelMatrix, time: np.ndarray | None = None) -> np.ndarray:
    """Of every coefficient; between and within subjects apart (Schluchter and Elashoff 1990, J Stat Comput Sim 37:69).

    A mixed model's Wald tests with normal quantiles are too bold in small samples; these t quantiles mend it.

    Parameters
    ----------
    data : ModelMatrix
    time : ndarray, shape (n,), optional
        From `own_courses`. What is a straight line of it within subjects (time itself, its product with the group) is
        then judged by how many subjects have a slope, not by the sessions: the containment method of SAS.
    """
    sessions, parameters = data.x.shape
    if not data.repeated:
        return np.full(parameters, sessions - parameters)
    within = _within(data)
    between_df = data.subjects - int((~within).sum())
    if time is None:
        return np.where(within, sessions - data.subjects - int(within.sum()), between_df)
    own = lines(time, data.subject)
    more = within & off_line(data.x, time, data.subject)
    slope_df = int((own == 2).sum()) - int((within & ~more).sum())
    return np.where(more, sessions - int(own.sum()) - int(more.sum()), np.where(within, slope_df, between_df))


def own_courses(data: ModelMatrix) -> np.ndarray | None:
    """Time, where subjects can have a course of their own (random slopes), else None.

    Where time is a predictor, and the sessions tell how they scatter about their subjects' lines: two sessions of each
    do not.
    """
    if not data.repeated or "time" not in data.names:
        return None
    time = np.asarray(data.x[:, data.names.index("time")])
    spare = len(time) - int(lines(time, data.subject).sum())
    enough = min(spare, *degrees_of_freedom(data, time)) >= MINIMUM_RESIDUAL_DF
    return time if enough else None


def _within(data: ModelMatrix) -> np.ndarray:
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


def sufficient(formula: Formula, data: ModelMatrix) -> tuple[Formula, ModelMatrix, tuple[str, ...], str]:
    """What can be fitted: all sessions, else the first of each subject.

    A few subjects who were scanned twice do not tell what changes within subjects, and must not cost the others their
    model.

    Returns
    -------
    formula : Formula
        Without what first sessions do not tell, where it is these.
    data : ModelMatrix
    notes : tuple of str
    problem : str
        Why nothing can be fitted, or "".
    """
    problem = too_few(data)
    if not problem or not data.repeated or not len(data.names):
        return formula, data, (), problem
    within = int(_within(data).sum())
    if not within or len(data.y) - data.subjects - within >= MINIMUM_RESIDUAL_DF:
        return formula, data, (), problem
    shorter, first, dropped = once(formula, data)
    if not set(first.names) - {"Intercept"} or too_few(first):
        return formula, data, (), problem
    several = int((np.bincount(data.subject) > 1).sum())
    note = (
        f"{several} of {data.subjects} subjects have several sessions, too few for what changes within subjects: the"
        f" first of each subject is used{without(dropped)}."
    )
    return shorter, first, (note,), ""


def once(formula: Formula, data: ModelMatrix) -> tuple[Formula, ModelMatrix, list[str]]:
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


def same_within(data: ModelMatrix) -> bool:
    """Whether the outcome says nothing but who the subject is: its sessions are no further observations then."""
    _, first = np.unique(data.subject, return_index=True)
    return bool(np.abs(data.y - data.y[first][data.subject]).max() <= 1e-12 * np.abs(data.y).max())


def resting_on_one(data: ModelMatrix) -> np.ndarray:
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


def resting(data: ModelMatrix, alone: np.ndarray) -> str:
    """`resting_on_one` in words."""
    rest = "rests" if alone.sum() == 1 else "rest"
    return (
        f"{enumerate_terms([name for name, one in zip(data.names, alone, strict=True) if one])} {rest} on one subject"
    )


def subjects_with(data: ModelMatrix, event: np.ndarray) -> dict[str, int]:
    """In how many subjects there is a session with an event, and one without: sessions of one subject are no news."""
    return {name: len(np.unique(data.subject[event == value])) for name, value in (("with", 1), ("without", 0))}


def variance_inflation(data: ModelMatrix) -> tuple[str, float] | None:
    """Largest variance inflation factor of the main effects (products are collinear with their parts by nature)."""
    keep = [i for i, name in enumerate(data.names) if name != "Intercept" and not is_product(name)]
    if len(keep) < 2:
        return None
    factors = np.diag(np.linalg.pinv(np.corrcoef(data.x[:, keep], rowvar=False)))
    worst = int(np.argmax(factors))
    return plain_term(data.names[keep[worst]]), float(factors[worst])


# --- words


def without(dropped: Sequence[str]) -> str:
    """What else is to be said where terms were left out, or ""."""
    return f", without {enumerate_terms(dropped)}" if dropped else ""


def enumerate_terms(terms: Sequence[str]) -> str:
    """Names of coefficients in a sentence."""
    return enumerate_words([plain_term(term) for term in terms])


def is_product(name: str) -> bool:
    """Whether a coefficient is of an interaction.

    Examples
    --------
    >>> is_product("group[T.MS]:time"), is_product("stage[T.I:a]"), is_product("group[T.MS:RR [x]]")
    (True, False, False)
    """
    return len(_factors(name)) > 1


def _factors(name: str) -> list[str]:
    """The parts of a coefficient's name; colons within brackets are a level's or a column's own."""
    parts, level, call = [""], 0, 0
    for letter in name:
        level += (letter == "[") - (letter == "]")
        call += 0 if level else (letter == "(") - (letter == ")")
        if letter == ":" and level <= 0 and call <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def plain_term(name: str) -> str:
    """A coefficient's name without patsy's marks.

    Examples
    --------
    >>> plain_term("group[T.MS]"), plain_term("C(site)[T.b]:age")
    ('group = MS', 'site = b : age')
    >>> plain_term("C(group, Treatment(reference='MS'))[T.HC]"), plain_term("bs(age, df=3)[0]")
    ('group = HC', 'bs(age, df=3), part 1')
    """
    parts = []
    for factor in _factors(name):
        if spline := re.fullmatch(r"((?:bs|cr|cc)\(.*\))\[(\d+)\]", factor):
            parts.append(f"{spline[1]}, part {int(spline[2]) + 1}")
            continue
        match = re.fullmatch(r"(?:C\((\w+)(?:,.*)?\)|Q\('([^']+)'\)|(.+?))(?:\[(?:T\.)?(.*)\])?", factor)
        if match is None:
            parts.append(factor)
            continue
        base = next(text for text in match.groups()[:3] if text is not None)
        parts.append(f"{base} = {match[4]}" if match[4] is not None else base)
    return " : ".join(parts)

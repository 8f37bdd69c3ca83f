"""Formulas of statistical models: short names, checked words, and a sensible default for the columns there are."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import product

import numpy as np
import pandas as pd

from bidsapp.measure.cohort import (
    AGE_COLUMNS,
    DAYS_PER_YEAR,
    GROUP_COLUMNS,
    KEYS,
    SEX_COLUMNS,
    SITE_COLUMNS,
    moments,
    natural,
    order_sessions,
)

#: Names that people use, and the column each stands for in a model. Any column may also go without ``_mm3``.
SHORT_NAMES = {
    "lesions": "lesion",
    "lesion_load": "lesion_load_percent_tiv",
    "bpf": "brain_parenchymal_fraction",
    "icv": "tiv",
    "etiv": "tiv",
    "subject": "participant_id",
    "participant": "participant_id",
    "session": "session_id",
}
#: Functions a formula may call (patsy's and numpy's); everything else is refused, so that a formula is no program.
FUNCTIONS = {"log": np.log, "log2": np.log2, "log10": np.log10, "log1p": np.log1p, "sqrt": np.sqrt, "exp": np.exp}
PATSY_FUNCTIONS = ("C", "I", "Q", "center", "scale", "standardize", "bs", "cr", "cc", "Treatment", "Sum", "Poly")
_KEYWORDS = ("df", "degree", "reference", "constraints")
#: Splines of patsy that sum up to 1, and so determine the intercept, unless they are told not to.
_WITH_CONSTANT = re.compile(r"\bc[rc]\((?!.*constraints)")
_NO_INTERCEPT = re.compile(r"(^|[+ ])0(?![.\w])|- ?1(?![.\w])")

#: A level that reads like one of these is what the others are compared with.
REFERENCE_LEVEL = re.compile(
    r"^(hcs?|healthy.*|controls?|ctrls?|ctls?|con|cn|nc|hv|normals?|(cognitively[-_ ]?)?normal([-_ ]controls?)?"
    r"|non[-_ ]?demented|unaffected|reference|none|0|0\.0)$",
    re.IGNORECASE,
)

#: Fewer subjects in a level of a factor say nothing about it.
MINIMUM_PER_LEVEL = 3
MAXIMUM_LEVELS = 20
#: Labels of sessions that may stand for time.
MAXIMUM_LABELS = 4
#: A column of which so much is missing would take half the cohort out of every model.
MOSTLY_MISSING = "it is n/a for more than half the sessions"

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<string>"[^"]*"|'[^']*')
    |(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?![^\W\d]))
    |(?P<name>(?:np\.)?[^\W\d]\w*)
    |(?P<operator>\*\*|[-+*:/()~,=|])
    )""",
    re.VERBOSE,
)
_RANDOM_INTERCEPT = re.compile(r"\+?\s*\(\s*1\s*\|\s*(\w+)\s*\)")


class FormulaError(ValueError):
    """A formula that cannot be used; the message says why and what would do."""


@dataclass(frozen=True)
class Formula:
    """A checked formula of one outcome.

    Attributes
    ----------
    text : str
        As patsy reads it, with the names of the model frame, such as ``gm ~ group + age``.
    left, right : str
        Its sides.
    outcome : str
        Column of the left side.
    variables : tuple of str
        All columns it needs, the outcome first.
    notes : tuple of str
        What is read otherwise than it was written.
    """

    left: str
    right: str
    outcome: str
    variables: tuple[str, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def text(self) -> str:
        return f"{self.left} ~ {self.right}"

    @property
    def plain(self) -> bool:
        """Whether the outcome stands on the left as it is, not as a function of it."""
        return self.left == quoted(self.outcome)


def model_frame(frame: pd.DataFrame, *, categories: Iterable[str] = ()) -> pd.DataFrame:
    """The merged table as models use it.

    Volumes are in ml and go without their ``_mm3`` (``gm_mm3`` is ``gm``): effects then read as "ml per year", and no
    number is so large that it would spoil a fit. Text becomes a factor, with a control group as the reference level.

    Parameters
    ----------
    frame : DataFrame
        From `cohort.merge_sessions` and `cohort.add_covariates`.
    categories : iterable of str
        Columns of numbers that are codes, such as ``sex`` as 1 and 2.

    Returns
    -------
    DataFrame
        Same rows; ``time`` (years since the subject's first session) and ``age_first`` where they can be told.
    """
    out: dict[str, pd.Series] = {}
    coded = {name.lower() for name in (*categories, *GROUP_COLUMNS, *SEX_COLUMNS, *SITE_COLUMNS)} - set(AGE_COLUMNS)
    names = set(map(str, frame.columns))
    for name in map(str, frame.columns):
        column = frame[name]
        if not pd.api.types.is_numeric_dtype(column) or (name.lower() in coded and column.nunique() <= MAXIMUM_LEVELS):
            out[name] = _factor(column)
        elif name.endswith("_mm3") and name.removesuffix("_mm3") not in names:
            out[name.removesuffix("_mm3")] = column.astype(float) / 1000
        else:
            out[name] = column.astype(float)
    return _with_time(pd.DataFrame(out, index=frame.index))


def column_of(name: str, columns: Iterable[str]) -> str | None:
    """The column of the model frame that a name stands for, or None: exact, then short, then in any letter case."""
    known = [str(column) for column in columns]
    for candidate in (name, name.removesuffix("_mm3"), SHORT_NAMES.get(name.lower(), "")):
        if candidate in known:
            return candidate
    folded = {column.lower(): column for column in reversed(known)}
    return folded.get(name.lower()) or folded.get(name.lower().removesuffix("_mm3"))


def parse(
    text: str, columns: Sequence[str], *, measures: Sequence[str] = (), regions: Sequence[str] = ()
) -> list[Formula]:
    """Check a formula of the command line; one `Formula` for each outcome.

    Parameters
    ----------
    text : str
        ``"gm ~ group + age"``, ``"gm, wm ~ group"``, ``"all ~ group"`` or ``"cortex ~ group"``; operators and functions
        are patsy's (``group * time``, ``C(site)``, ``log(lesion)``). ``(1|subject)`` is understood; a random intercept
        is there anyway wherever subjects have several sessions.
    columns : sequence of str
        Of the model frame.
    measures : sequence of str
        What ``all`` stands for.
    regions : sequence of str
        What ``cortex`` stands for.

    Raises
    ------
    FormulaError
    """
    left, tilde, right = text.partition("~")
    if not tilde or not left.strip() or not right.strip() or "~" in right:
        raise FormulaError(f"{text!r} is no formula. Write it as 'outcome ~ predictors', such as 'gm ~ group + age'.")
    for match in _RANDOM_INTERCEPT.finditer(right):
        if column_of(match[1], columns) != "participant_id":
            raise FormulaError(f"{text!r}: a random intercept is there for subjects only: (1|subject).")
    right, needed, notes = _resolve_right(_RANDOM_INTERCEPT.sub("", right).strip() or "1", columns, text)
    if right.replace(" ", "") in ("0", "-1", "+0"):
        raise FormulaError(f"{text!r} has no predictors. Write '{left.strip()} ~ 1' for the mean.")
    word = left.strip().lower()
    several = {"all": measures, "cortex": regions}.get(word) if column_of(word, columns) is None else None
    if word == "cortex" and several is not None and not regions:
        raise FormulaError(f"{text!r}: no session has a table of cortical regions.")
    sides = list(several) if several is not None else _outcomes(left)
    formulas = []
    for side in sides:
        resolved, variables = _resolve(side, columns, text)
        if len(variables) != 1:
            raise FormulaError(f"{text!r}: {side.strip()!r} must name one column; several outcomes go with commas.")
        if variables[0] in needed:
            if several is not None:
                continue
            raise FormulaError(f"{text!r}: {variables[0]} stands on both sides.")
        formulas.append(Formula(resolved, right, variables[0], (variables[0], *needed), notes))
    if not formulas:
        raise FormulaError(f"{text!r}: there is no measure that it could explain.")
    return formulas


@dataclass(frozen=True)
class Design:
    """Which columns describe the subjects: what the default models, and the adjusted z-scores, are made of.

    Attributes
    ----------
    group, age, sex, site, tiv, time : str or None
        Columns of the model frame; None where there is none that varies.
    notes : tuple of str
        Why a column, or the product of group and time, was not used.
    session_age : str or None
        The age at each session, where `age` is the one at the first.
    by_group : bool
        Whether every group has subjects enough who were seen again to tell its own course.
    """

    group: str | None
    age: str | None
    sex: str | None
    site: str | None
    tiv: str | None
    time: str | None
    notes: tuple[str, ...] = ()
    session_age: str | None = None
    by_group: bool = True

    def predictors(self, *, outcome: str = "") -> list[str]:
        """Terms of the default model of an outcome."""
        head = [self.group or "", self.time or ""]
        first = ["*".join(head)] if all(head) and self.by_group else [term for term in head if term]
        rest = [term for term in (self.age, self.sex, self.site) if term]
        return first + rest + ([self.tiv] if self.tiv and not relative(outcome) else [])

    def adjustments(self, *, outcome: str = "") -> list[str]:
        """What makes sessions comparable: their own age, sex and TIV, without the group.

        The age at the first session would make everybody seem ill who is seen again after ten years.
        """
        terms = [term for term in (self.session_age or self.age, self.sex) if term]
        return terms + ([self.tiv] if self.tiv and not relative(outcome) else [])


def is_volume(column: str) -> bool:
    """Whether a column of the merged table is a volume or a fraction of one, as the app measures them."""
    return column.endswith(("_mm3", "_fraction"))


def relative(outcome: str) -> bool:
    """Whether a measure is the TIV itself or already relative to a head's size."""
    return outcome == "tiv" or "fraction" in outcome or "percent" in outcome


def find_design(frame: pd.DataFrame, *, site: str | None = None) -> Design:
    """See which of the usual columns are there and vary.

    Parameters
    ----------
    frame : DataFrame
        From `model_frame`.
    site : str, optional
        The column of the sites, where it is known.
    """
    notes: list[str] = []
    chosen: dict[str, str | None] = {}
    factors = {"group": GROUP_COLUMNS, "sex": SEX_COLUMNS, "site": (site.lower(),) if site else SITE_COLUMNS}
    for role, names in factors.items():
        chosen[role] = _first(frame, names, _factor_problem, notes)
    ages = ("age_first", *AGE_COLUMNS)
    chosen["age"] = _first(frame, ages, _number_problem, notes)
    chosen["session_age"] = _first(frame, AGE_COLUMNS, _number_problem, [])
    chosen["tiv"] = _first(frame, ("tiv",), _number_problem, notes)
    chosen["time"] = _first(frame, ("time",), _number_problem, [])
    for role in ("age", "sex", "site", "tiv", "time"):
        column, lacking = chosen[role], _lacking(frame, chosen["group"], chosen[role])
        if lacking:
            notes.append(f"{column} is not used: it is n/a for nearly all of {', '.join(lacking)}.")
            chosen[role] = None
    repeated = frame["participant_id"].duplicated().any()
    labels = frame["session_id"].nunique()
    if repeated and chosen["time"] is None and labels > 1:
        chosen["time"] = "session_id" if labels <= MAXIMUM_LABELS else None
        if labels > MAXIMUM_LABELS:
            notes.append(
                f"Default models have no time: it is known for too few sessions, and {labels} labels of sessions are"
                " too many to take its place. Dates or ages at the sessions would tell it."
            )
    few = _too_few_followed(frame, chosen) if repeated and chosen["group"] and chosen["time"] else []
    if few:
        head = chosen["group"], chosen["time"]
        notes.append(
            f"Default models have {' + '.join(map(str, head))}, not {'*'.join(map(str, head))}: fewer than"
            f" {MINIMUM_PER_LEVEL} subjects were followed in {', '.join(few)}."
        )
    return Design(**chosen, notes=tuple(notes), by_group=not few)


def find_years(intervals: pd.DataFrame) -> tuple[str | None, list[str]]:
    """The length of the intervals as a predictor of changes: where half of them have one, and it differs.

    Parameters
    ----------
    intervals : DataFrame
        From `model_frame`, of changes between sessions.

    Returns
    -------
    years : str or None
        Its column.
    notes : list of str
        Why it is not used.
    """
    if "years" not in intervals:
        return None, []
    why = _number_problem(intervals, "years").replace("sessions", "intervals")
    return (None, [f"years is not used in models of changes: {why}."]) if why else ("years", [])


def without_small_levels(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Groups, sexes and sites of fewer than `MINIMUM_PER_LEVEL` subjects as n/a, where two and more others remain.

    Two subjects of a third group should not cost the comparison of the other two.

    Returns
    -------
    frame : DataFrame
    notes : list of str
    """
    notes = []
    for name in map(str, frame.columns):
        factor = isinstance(frame[name].dtype, pd.CategoricalDtype)
        if not factor or name.lower() not in {*GROUP_COLUMNS, *SEX_COLUMNS, *SITE_COLUMNS}:
            continue
        counts = frame.groupby(name, observed=True)["participant_id"].nunique()
        small = counts.index[counts < MINIMUM_PER_LEVEL].tolist()
        if small and 2 <= len(counts) - len(small) <= MAXIMUM_LEVELS:
            frame = frame.assign(**{name: frame[name].cat.remove_categories(small)})
            few = ", ".join(map(str, small))
            notes.append(f"{name} {few}: fewer than {MINIMUM_PER_LEVEL} subjects, taken as n/a in models.")
    return frame, notes


def default_formulas(design: Design, measures: Sequence[str], *, years: str | None = None) -> list[Formula]:
    """One model for each measure: group (by time), age, sex, site and TIV, as far as they are there.

    Without any of group, age, sex and time there is nothing to ask, and no model.

    Parameters
    ----------
    design : Design
    measures : sequence of str
    years : str, optional
        Length of the interval of which the measures are changes; rates per year do without.
    """
    if not (design.group or design.age or design.sex or design.time):
        return []
    formulas = []
    for outcome in measures:
        terms = design.predictors(outcome=outcome)
        terms += [years] if years and "per_year" not in outcome else []
        parts = [term.split("*") for term in terms]
        names = [name for part in parts for name in part]
        if outcome not in names:
            right = " + ".join("*".join(map(quoted, part)) for part in parts)
            formulas.append(Formula(quoted(outcome), right, outcome, (outcome, *names)))
    return formulas


def _outcomes(left: str) -> list[str]:
    """Split at the commas that are not within brackets."""
    return [part.strip() for part in re.split(r",(?![^()]*\))", left) if part.strip()]


def _resolve_right(side: str, columns: Sequence[str], whole: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The predictors with the real names of their columns, these, and a note.

    The age at a session is the first age and the time since: beside time, age would take half of its effect.
    """
    right, needed = _resolve(side, columns, whole)
    if _WITH_CONSTANT.search(right) and not _NO_INTERCEPT.search(right):
        raise FormulaError(
            f"{whole!r}: cr() and cc() hold a constant, and so does the intercept: write cr(..., constraints='center')."
        )
    age = _age_column(columns)
    if age not in needed or "time" not in needed or "age_first" not in columns:
        return right, needed, ()
    right, needed = _resolve(side, columns, whole, {age: "age_first"})
    note = (
        f"Beside time, {age} is the age at the first session (age_first): the age at each session holds time already."
    )
    return right, needed, (note,)


def quoted(column: str) -> str:
    """A column as patsy reads it; what is no word, or one of Python's or patsy's own, goes with Q.

    So do words with other letters than ASCII's, which Python may spell otherwise than the table does (as NFKC).
    """
    plain = column.isascii() and column.isidentifier() and not keyword.iskeyword(column) and column != "Intercept"
    return column if plain else f"Q({column!r})"


def _resolve(
    side: str, columns: Sequence[str], whole: str, instead: Mapping[str | None, str] | None = None
) -> tuple[str, tuple[str, ...]]:
    """A side with the real names of its columns (or of those that take their place), and these."""
    instead = instead or {}
    words: list[str] = []
    used: list[str] = []
    place = 0
    while place < len(side.rstrip()):
        match = _TOKEN.match(side, place)
        if match is None:
            raise FormulaError(f"{whole!r}: {side[place:].strip()[:20]!r} cannot be read in a formula.")
        place = match.end()
        text = match[0].strip()
        after = side[place:].lstrip()[:1]
        if match["name"]:
            text = _word(text, after, columns, whole, used, instead)
        elif match["string"]:
            if words[-2:] == ["Q", "("]:
                used.append(_known(text[1:-1], columns, whole, instead))
                text = repr(used[-1])
        elif text == "|":
            raise FormulaError(f"{whole!r}: of random effects only (1|subject) is there.")
        words.append(text)
    spaced = "".join(f" {word} " if word in ("+", "-", "*", ":", "/") else word for word in words)
    return re.sub(r"\s+", " ", spaced).strip(), tuple(dict.fromkeys(used))


def _word(
    text: str, after: str, columns: Sequence[str], whole: str, used: list[str], instead: Mapping[str | None, str]
) -> str:
    """A name in a formula: a function, an option of one, or a column."""
    bare = text.removeprefix("np.")
    if after == "(":
        if bare in FUNCTIONS or text in PATSY_FUNCTIONS:
            return bare
        raise FormulaError(
            f"{whole!r}: the function {text} is not there; use one of {', '.join((*FUNCTIONS, *PATSY_FUNCTIONS))}."
        )
    if after == "=" and text in _KEYWORDS:
        return text
    if text in PATSY_FUNCTIONS[-3:] and column_of(text, columns) is None:
        return text
    column = _known(text, columns, whole, instead)
    used.append(column)
    return quoted(column)


def _known(name: str, columns: Sequence[str], whole: str, instead: Mapping[str | None, str]) -> str:
    column = column_of(name, columns)
    if column is None:
        there = [str(known) for known in columns if known not in KEYS]
        alike = get_close_matches(name.lower(), [known.lower() for known in there], n=3)
        meant = f" Is it {' or '.join(repr(known) for known in there if known.lower() in alike)}?" if alike else ""
        shown = [known for known in there if not known.startswith(("left_", "right_"))]
        more = ", and structures and regions of both sides (left_..., right_...)" if len(shown) < len(there) else ""
        raise FormulaError(f"{whole!r}: there is no column {name!r}.{meant} There are: {', '.join(shown)}{more}.")
    return instead.get(column, column)


def _first(
    frame: pd.DataFrame, names: Iterable[str], problem: Callable[[pd.DataFrame, str], str], notes: list[str]
) -> str | None:
    folded = {str(name).lower(): str(name) for name in reversed(list(frame.columns))}
    for name in names:
        column = folded.get(name)
        if column is None:
            continue
        why = problem(frame, column)
        if not why:
            return column
        notes.append(f"{column} is not used: {why}.")
    return None


def _factor_problem(frame: pd.DataFrame, column: str) -> str:
    if not isinstance(frame[column].dtype, pd.CategoricalDtype):
        return "it holds numbers, not groups"
    counts = frame.groupby(column, observed=True)["participant_id"].nunique()
    if len(counts) and frame[column].notna().mean() < 0.5:
        return MOSTLY_MISSING
    if len(counts) < 2:
        return "it is the same for all" if len(counts) else "it is n/a for all"
    if len(counts) > MAXIMUM_LEVELS:
        return f"it has {len(counts)} different values"
    small = [str(level) for level, count in counts.items() if count < MINIMUM_PER_LEVEL]
    return f"fewer than {MINIMUM_PER_LEVEL} subjects are {', '.join(small)}" if small else ""


def _too_few_followed(frame: pd.DataFrame, chosen: Mapping[str, str | None]) -> list[str]:
    """Groups (of labels as time: at a session) of whom too few were seen at several times to tell their own course.

    With controls who were scanned once, ``group*time`` says nothing that ``time`` does not, and cannot be fitted.
    """
    group, time = str(chosen["group"]), str(chosen["time"])
    known = frame.loc[frame[[name for name in chosen.values() if name]].notna().all(axis=1)]
    several = known.groupby("participant_id")[time].transform("nunique") > 1
    by = [group, time] if time == "session_id" else [group]
    followed = known[several].drop_duplicates(["participant_id", *by])
    count = Counter(followed[by].itertuples(index=False, name=None))
    cells = product(*(sorted(known[name].unique(), key=natural) for name in by))
    return [" at ".join(map(str, cell)) for cell in cells if count[cell] < MINIMUM_PER_LEVEL]


def _lacking(frame: pd.DataFrame, group: str | None, column: str | None) -> list[str]:
    """Groups of which a column is known for too few: with it, a model would be left without them."""
    if group is None or column is None:
        return []
    subjects = frame[frame[column].notna()].groupby(group, observed=False)["participant_id"].nunique()
    return [str(level) for level in frame[group].dropna().unique() if subjects[level] < MINIMUM_PER_LEVEL]


def _number_problem(frame: pd.DataFrame, column: str) -> str:
    values = frame[column]
    if not pd.api.types.is_numeric_dtype(values):
        return "it holds text, not numbers"
    if values.notna().mean() < 0.5:
        return MOSTLY_MISSING
    return "" if values.nunique() > 1 else "it is the same for all"


def _factor(column: pd.Series) -> pd.Series:
    """Text as a factor: levels in order, a control group first."""
    known = column.dropna()
    text = known.map(lambda value: f"{value:.15g}" if isinstance(value, float) else str(value))
    levels = sorted(text.unique(), key=lambda level: (not REFERENCE_LEVEL.match(level), level))
    if column.name in KEYS:
        return text.reindex(column.index).astype(object)
    return pd.Series(pd.Categorical(text.reindex(column.index), categories=levels), index=column.index)


def _age_column(columns: Iterable[object]) -> str | None:
    folded: Mapping[str, str] = {str(name).lower(): str(name) for name in columns}
    return next((folded[name] for name in AGE_COLUMNS if name in folded), None)


def _with_time(frame: pd.DataFrame) -> pd.DataFrame:
    """Add ``time`` from dates, or from ages that differ between a subject's sessions, and ``age_first`` of the latter.

    Dates come first: ages are often whole years. A subject goes by ages where only those are known of every session.
    """
    subject = frame["participant_id"]
    if not subject.duplicated().any():
        return frame
    by_date = _years_by_date(frame)
    ordered = frame if "time" in frame or by_date is None else frame.assign(time=by_date)
    by_age = _years_by_age(ordered)
    if by_age is not None:
        frame = frame.assign(age_first=_first_of(frame[_age_column(frame.columns)], ordered))
    if "time" in frame or (by_date is None and by_age is None):
        return frame
    if by_date is None or by_age is None:
        return frame.assign(time=by_age if by_date is None else by_date)
    dated, aged = (years.notna().groupby(subject).transform("all") for years in (by_date, by_age))
    return frame.assign(time=by_date.where(dated | ~aged, by_age))


def _years_by_date(frame: pd.DataFrame) -> pd.Series | None:
    """Years since the subject's first session; None where there are no dates that differ."""
    if "acq_time" not in frame:
        return None
    dates = moments(frame["acq_time"])
    days = (dates - _first_of(dates, frame)).dt.total_seconds() / 86400
    return days / DAYS_PER_YEAR if (days > 0).any() else None


def _years_by_age(frame: pd.DataFrame) -> pd.Series | None:
    """Years since the age at the subject's first session; None where ages do not differ within any subject.

    Where they do for some, a subject whose age is the same at all of several sessions has the one of participants.tsv:
    nothing is known of the time between them.
    """
    age = _age_column(frame.columns)
    if age is None or not pd.api.types.is_numeric_dtype(frame[age]):
        return None
    by_subject = frame[age].groupby(frame["participant_id"])
    years = frame[age] - _first_of(frame[age], frame)
    if not (years > 0).any():
        return None
    stale = (by_subject.transform("size") > 1) & (by_subject.transform("nunique") < 2)
    return years.where(~stale)


def _first_of(values: pd.Series, frame: pd.DataFrame) -> pd.Series:
    """Each subject's first date or age, in all of its rows.

    Missing where a session that has none may be the first, being before the earliest known one in the order of the
    sessions: time would begin too late.
    """
    subject = frame["participant_id"]
    place = pd.Series(np.argsort(order_sessions(frame)), frame.index)
    first = values.groupby(subject).transform("min")
    known = place.where(values == first).groupby(subject).transform("min")
    unknown = values.isna() & ~(place > known)
    return first.where(~unknown.groupby(subject).transform("any"))

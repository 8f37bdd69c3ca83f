"""The group level: many sessions' tables made one, its outliers and its summary. Tables in, tables out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bidsapp.image.intensity import MAD_TO_SD
from bidsapp.words import count_of

#: Columns that name a row.
KEYS = ["participant_id", "session_id"]

#: Column of the number of an interval between sessions, 1 and up for each subject in order of time.
INTERVAL = "interval_number"

#: |modified z-score| above which a value is an outlier: Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers.
MODIFIED_Z_LIMIT = 3.5
#: Median and MAD of fewer subjects say little.
MINIMUM_SUBJECTS = 5
#: A column of lesions with more values than this is no class.
MAXIMUM_CLASSES = 40

#: Columns of participants.tsv by what they mean, the first that is there.
GROUP_COLUMNS = ("group", "diagnosis", "dx", "disease", "condition", "cohort", "phenotype")
AGE_COLUMNS = ("age", "age_years", "age_at_scan", "age_at_baseline")
SEX_COLUMNS = ("sex", "gender")
SITE_COLUMNS = ("site", "scanner", "center", "centre", "institution")
#: Cells that hold nothing, in small letters. BIDS writes n/a; tables made by hand and by other programs do not.
MISSING = frozenset({"", "n/a", "na", "nan", ".", "-"})
#: Share of a column's cells that are numbers above which it is a column of numbers with a few bad cells.
MOSTLY_NUMBERS = 0.9

DAYS_PER_YEAR = 365.25

# E|x| of a standard normal distribution, inverted: as the scaled MAD, it then estimates the standard deviation.
_MEAN_DEVIATION_TO_SD = 1.253314

_OUTLIER_COLUMNS = [*KEYS, "column", "value", "median", "modified_z", "direction"]


@dataclass(frozen=True)
class Outliers:
    """Outlying values, one row each (largest |modified_z| first), and a word where none could be looked for."""

    table: pd.DataFrame
    note: str


def merge_sessions(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Put the sessions' tables together: one row per subject and session, in that order.

    Parameters
    ----------
    frames : iterable of DataFrame
        Each with ``participant_id``, perhaps ``session_id``, and values. ``n/a``, None and empty text become NaN.

    Returns
    -------
    DataFrame
        Key columns first, then all others in order of appearance; columns of numbers have a numeric type. A missing
        session is NaN. Without any frame: no row, only the key columns.

    Raises
    ------
    ValueError
        When a frame has no ``participant_id`` or two rows are of the same subject and session.
    """
    frames = list(frames)
    if any("participant_id" not in frame for frame in frames):
        raise ValueError("A table without the column participant_id cannot be merged: which subject is it?")
    merged = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=KEYS)
    merged = merged.astype(object).replace(["n/a", ""], np.nan)
    if "session_id" not in merged:
        merged["session_id"] = np.nan
    merged = merged[KEYS + [name for name in merged if name not in KEYS]]
    twice = merged[merged.duplicated(KEYS, keep=False)]
    if len(twice):
        names = sorted({" ".join(row.dropna().astype(str)) for _, row in twice[KEYS].iterrows()})
        raise ValueError(f"More than one row for {', '.join(names)}: remove the derivatives that are out of date.")
    merged = merged.iloc[order_sessions(merged)].reset_index(drop=True)
    return merged.apply(lambda column: column if column.name in KEYS else numeric_if_possible(column))


def covariate_label(column: str, table: str, taken: Iterable[str]) -> str:
    """What a column of the dataset is called beside the measures: its name, after its table's where that is taken.

    Models know ``gm_mm3`` as ``gm`` too, and in any letter case: all of these are taken.
    """
    return f"{table.removesuffix('.tsv')}_{column}" if _bare(column) in set(map(_bare, taken)) else column


def add_covariates(
    merged: pd.DataFrame,
    tables: Iterable[tuple[str, pd.DataFrame]],
    *,
    codes: Iterable[str] = (),
) -> tuple[pd.DataFrame, list[str]]:
    """Put what is known of the subjects and sessions beside their measures.

    Parameters
    ----------
    merged : DataFrame
        From `merge_sessions`.
    tables : iterable of (str, DataFrame)
        Name and content of ``participants.tsv``, ``sessions.tsv``, ``phenotype/*.tsv``: each with ``participant_id``
        and perhaps ``session_id``, all text. A table with sessions is merged by both, one without by the subject.
    codes : iterable of str
        Columns of which every cell is a code, never a number: none is mended.

    Returns
    -------
    merged : DataFrame
        The same rows and columns, then those of the tables. Of columns of one name, a value of the session wins over
        one of the subject, and else the first; where other sessions have an age, the subject's is that of the first. A
        column named as a measure gets its table's name before it (`covariate_label`). Cells that hold nothing
        (`MISSING`) are NaN.
    notes : list of str
        What could not be used, and what was read otherwise than it stands there.
    """
    notes: list[str] = []
    keys = merged[KEYS].astype(object).where(merged[KEYS].notna(), "")
    measured = [name for name in map(str, merged) if name not in KEYS]
    found: dict[str, pd.Series] = {}
    for name, table in tables:
        table = table.astype(object).map(content)
        by = [key for key in KEYS if key in table]
        if "participant_id" not in by:
            notes.append(f"{name} has no column participant_id: it is not used.")
            continue
        table = table.assign(**{key: _labelled(table[key], key) for key in by})
        twice = table.duplicated(by, keep="first")
        if twice.any():
            which = ", ".join(sorted(set(table.loc[twice, "participant_id"].astype(str)))[:5])
            notes.append(f"{name} has more than one row of {which}: the first is used.")
            table = table[~twice]
        table = table.assign(**{key: table[key].astype(object).fillna("") for key in by})
        notes += _unmatched(name, table, keys, by)
        beside = keys[by].merge(table, on=by, how="left")
        for column in map(str, table.columns.difference(KEYS, sort=False)):
            label = covariate_label(column, name, measured)
            values = pd.Series(beside[column].to_numpy(), index=merged.index)
            known = found.get(label)
            if known is None:
                found[label] = values
            elif "session_id" not in by:
                found[label] = known.where(known.notna(), values)
            else:
                found[label] = values.where(values.notna(), _of_no_session(known, values, keys, label))
    kept = {code.lower() for code in (*codes, *GROUP_COLUMNS, *SEX_COLUMNS, *SITE_COLUMNS)} - set(AGE_COLUMNS)
    added = {label: _read(values, label, notes, code=label.lower() in kept) for label, values in found.items()}
    return pd.concat([merged, pd.DataFrame(added, index=merged.index)], axis=1), notes


def _unmatched(name: str, table: pd.DataFrame, keys: pd.DataFrame, by: list[str]) -> list[str]:
    """A word on a table that names none of the sessions, and on subjects that participants.tsv does not name."""
    rows = [some[by].itertuples(index=False, name=None) for some in (keys, table)]
    here, there = (list(dict.fromkeys(some)) for some in rows)
    missing = [names for names in here if names not in set(there)]
    what = "sessions" if "session_id" in by else "subjects"
    if not missing or not there:
        return []
    shown = [" ".join(part for part in names if part) for names in (missing[0], there[0])]
    if len(missing) == len(here):
        return [f"{name} names none of the {what} here ({shown[0]}, ...; there: {shown[1]}, ...): it tells nothing."]
    if name != "participants.tsv":
        return []  # of one visit, or of patients alone, as it may be
    return [f"{name} does not name {len(missing)} of {len(here)} subjects, such as {shown[0]}: n/a there."]


def _of_no_session(known: pd.Series, values: pd.Series, keys: pd.DataFrame, label: str) -> pd.Series:
    """What is known of subjects, for sessions that say nothing; an age is that of the first, where others have one."""
    if label.lower() not in AGE_COLUMNS:
        return known
    told = values.notna().groupby(keys["participant_id"]).transform("any")
    return known.mask(told & keys["participant_id"].duplicated())


def _bare(name: str) -> str:
    return name.lower().removesuffix("_mm3")


def content(value: object) -> object:
    """A cell of a table without the blanks around it; NaN where it holds nothing (`MISSING`)."""
    text = value.strip() if isinstance(value, str) else value
    return np.nan if isinstance(text, str) and text.casefold() in MISSING else text


def _read(values: pd.Series, label: str, notes: list[str], *, code: bool) -> pd.Series:
    """A column as numbers where it holds numbers, but for a few bad cells; ages of "89+" (BIDS) are 89."""
    if label.lower() in AGE_COLUMNS:
        capped = values.astype(str).str.fullmatch(r"\d+(\.\d+)?\s*\+")
        if capped.any():
            notes.append(
                f"{label} {values[capped].iloc[0]} is read as a number ({count_of(int(capped.sum()), 'session')})."
            )
            values = values.where(~capped, values.astype(str).str.rstrip("+ "))
    whole = numeric_if_possible(values)
    if pd.api.types.is_numeric_dtype(whole) or code:
        return whole
    numbers = numeric_if_possible(values.where(pd.to_numeric(values, errors="coerce").notna()))
    if numbers.notna().sum() < MOSTLY_NUMBERS * values.notna().sum():
        return whole
    bad = values[values.notna() & numbers.isna()].astype(str)
    words = ", ".join(repr(word) for word in sorted(set(bad))[:5])
    notes.append(f"{label} holds numbers, but for {words}: n/a there ({count_of(len(bad), 'session')}).")
    return numbers


def lesion_summary(lesions: pd.DataFrame) -> pd.DataFrame:
    """Loads and counts per session by everything that single lesions are classed by.

    Parameters
    ----------
    lesions : DataFrame
        Rows of lesions with the key columns, ``volume_mm3`` and any columns of text (region, hemisphere, size class).

    Returns
    -------
    DataFrame
        One row per session, in order: ``lesion_largest_mm3``, ``lesion_median_mm3``, and for each class
        ``lesion_<class>_mm3`` and ``lesion_<class>_count``; 0 where a session has lesions, but none of that class, and
        NaN where it was not measured what class its lesions are of (T1w hypointensity without a T1w).
    """
    keys = lesions[KEYS].astype(object).fillna("")
    by = [keys[key] for key in KEYS]
    volume = pd.to_numeric(lesions["volume_mm3"], errors="coerce")
    out = {
        "lesion_largest_mm3": volume.groupby(by).max(),
        "lesion_median_mm3": volume.groupby(by).median(),
    }
    for column in lesions.columns.difference(KEYS, sort=False):
        text = lesions[column]
        if pd.api.types.is_numeric_dtype(text) or text.isna().all() or text.nunique() > MAXIMUM_CLASSES:
            continue
        told = text.notna().groupby(by).any()
        for level in sorted(text.dropna().astype(str).unique()):
            label = re.sub(r"[^a-z0-9]+", "_", f"{column} {level}".lower()).strip("_")
            here = (text.astype(str) == level).astype(float)
            out[f"lesion_{label}_mm3"] = (volume * here).groupby(by).sum().where(told)
            out[f"lesion_{label}_count"] = here.groupby(by).sum().where(told)
    return pd.DataFrame(out).rename_axis(KEYS).reset_index()


def is_lesion(column: str) -> bool:
    """Whether a column tells of lesions, not of a tissue with the lesions in it (``gm_with_lesions_mm3``)."""
    return "lesion" in column and "_with_lesions" not in column


def natural(label: object) -> tuple[tuple[int, int, str], ...]:
    """Sorting key of a label: ses-2 before ses-10, letters by the alphabet."""
    parts = re.findall(r"\d+|\D+", str(label))
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


def order_sessions(frame: pd.DataFrame) -> np.ndarray:
    """Places of the rows in order of subject, time and label: whoever takes a first row takes the first session.

    Parameters
    ----------
    frame : DataFrame
        With ``participant_id``, and perhaps ``session_id`` and ``time`` in numbers. Subjects with a session of
        unknown time go by the labels. Intervals between sessions go by their numbers (`INTERVAL`).

    Returns
    -------
    ndarray of int
    """
    sessions = frame["session_id"] if "session_id" in frame else pd.Series(np.nan, frame.index)
    labels = sorted(sessions.dropna().unique(), key=natural)
    rank = sessions.map({label: place for place, label in enumerate(labels)}).fillna(-1).astype(float)
    subject = frame["participant_id"].astype(str)
    time = frame[INTERVAL] if INTERVAL in frame else pd.Series(0.0, frame.index)
    if "time" in frame and pd.api.types.is_numeric_dtype(frame["time"]):
        time = frame["time"].where(frame["time"].notna().groupby(subject).transform("all"), 0.0)
    place = {label: place for place, label in enumerate(sorted(subject.unique(), key=natural))}
    return np.lexsort((rank, time, subject.map(place)))


def moments(column: pd.Series) -> pd.Series:
    """Dates and times of BIDS (any form of ISO 8601, with a time zone or without), NaT for what is none."""
    text = column.astype(object).map(str, na_action="ignore")
    return pd.to_datetime(text, errors="coerce", utc=True, format="ISO8601")


def even_out(values: pd.DataFrame) -> pd.DataFrame:
    """Lesion loads and counts as their logarithms (NaN for zero: no lesion is no small lesion), all else as it is.

    Loads are skewed by orders of magnitude: as they are, every large one would stand out.
    """
    skewed = [name for name in values if is_lesion(str(name))]
    return values.assign(**{str(name): np.log(values[name].where(values[name] > 0)) for name in skewed})


def middle(values: pd.DataFrame) -> pd.Series:
    """The median of every column; of lesion loads and counts that of those above 0, which are what is compared."""
    lesions = [str(name) for name in values if is_lesion(str(name))]
    return values.assign(**{name: values[name].where(values[name] > 0) for name in lesions}).median()


def modified_z(values: pd.DataFrame) -> pd.DataFrame:
    """Modified z-score of every value within its column (Iglewicz and Hoaglin 1993).

    ``(x - median) / (1.4826 MAD)``; where more than half the values are the same and the MAD is zero, the mean absolute
    deviation about the median takes its place, scaled by 1.253314. NaN where that is zero as well.

    Parameters
    ----------
    values : DataFrame
        Numbers, NaN for n/a.

    Returns
    -------
    DataFrame
        Same shape.
    """
    centred = values - values.median()
    deviation = centred.abs()
    scale = deviation.median() * MAD_TO_SD
    scale = scale.where(scale > 0, deviation.mean() * _MEAN_DEVIATION_TO_SD)
    return centred / scale.where(scale > 0)


def outliers(frame: pd.DataFrame, *, limit: float = MODIFIED_Z_LIMIT) -> Outliers:
    """Find the values far from the others of their column.

    Parameters
    ----------
    frame : DataFrame
        From `merge_sessions`.
    limit : float
        Outlier above this |modified z-score| (of lesion loads and counts: of their logarithms).

    Returns
    -------
    Outliers
        With fewer subjects than `MINIMUM_SUBJECTS` nothing is flagged, and `note` says so; so it is for single columns
        with fewer subjects measured.
    """
    empty = pd.DataFrame({name: pd.Series(dtype=object) for name in _OUTLIER_COLUMNS})
    subjects = frame["participant_id"].nunique()
    if subjects < MINIMUM_SUBJECTS:
        there = count_of(subjects, "subject")
        return Outliers(empty, f"Outliers were not looked for: {there}, at least {MINIMUM_SUBJECTS} are needed.")
    values = _values(frame)
    measured = values.notna().groupby(frame["participant_id"]).any().sum()
    few = [str(name) for name in values if measured[name] < MINIMUM_SUBJECTS]
    values = values.drop(columns=few)
    scores = modified_z(even_out(values))
    rows, columns = np.nonzero(scores.abs().to_numpy() > limit)
    note = f"Not looked for in {', '.join(few)}: fewer than {MINIMUM_SUBJECTS} subjects measured." if few else ""
    if not len(rows):
        return Outliers(empty, note)
    z = scores.to_numpy()[rows, columns]
    table = pd.DataFrame(
        {
            "participant_id": frame["participant_id"].to_numpy()[rows],
            "session_id": frame["session_id"].to_numpy()[rows] if "session_id" in frame else np.nan,
            "column": values.columns.to_numpy()[columns],
            "value": values.to_numpy()[rows, columns],
            "median": middle(values).to_numpy()[columns],
            "modified_z": z,
            "direction": np.where(z > 0, "high", "low"),
        }
    )
    order = table["modified_z"].abs().sort_values(ascending=False, kind="stable").index
    return Outliers(table.loc[order].reset_index(drop=True), note)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Describe every numeric column of a merged table.

    Parameters
    ----------
    frame : DataFrame
        From `merge_sessions`.

    Returns
    -------
    DataFrame
        One row per column: n, missing, mean, sd (n - 1), minimum, q1, median, q3, maximum. NaN where not defined.
    """
    values = _values(frame)
    quartiles = values.quantile([0.25, 0.5, 0.75])
    return pd.DataFrame(
        {
            "n": values.notna().sum(),
            "missing": values.isna().sum(),
            "mean": values.mean(),
            "sd": values.std(ddof=1),
            "minimum": values.min(),
            "q1": quartiles.loc[0.25],
            "median": quartiles.loc[0.5],
            "q3": quartiles.loc[0.75],
            "maximum": values.max(),
        }
    ).rename_axis("column")


def _values(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns=KEYS, errors="ignore").select_dtypes("number").astype(float)


def _labelled(column: pd.Series, key: str) -> pd.Series:
    """Labels with their prefix: tables made by hand often leave it out."""
    prefix = "sub-" if key == "participant_id" else "ses-"
    return column.map(lambda label: label if pd.isna(label) or str(label).startswith(prefix) else f"{prefix}{label}")


def numeric_if_possible(column: pd.Series) -> pd.Series:
    """A column of numbers as such (infinite ones are none), any other as it is."""
    try:
        return pd.to_numeric(column).replace([np.inf, -np.inf], np.nan)
    except (ValueError, TypeError):
        return column

"""What the group's page and table show: all sessions with volumes, their distributions, outliers and flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bidsapp.measure import cohort
from bidsapp.measure.volumes import VOLUME_COLUMNS
from bidsapp.report.read import Session
from bidsapp.report.subject import Notice, flag_warnings, volume_values
from bidsapp.report.wording import Value, count_of, describe, enumerate_words

#: The dots of a strip: width of the column they stack in (percent of the strip), and their distance (px).
SWARM_PERCENT, SWARM_STEP, SWARM_MIDDLE, SWARM_REACH = 1.0, 6, 22, 18

KEY_DICTIONARY = {
    "participant_id": {"LongName": "Subject", "Description": "Label of the subject, with sub-."},
    "session_id": {
        "LongName": "Session",
        "Description": "Label of the session, with ses-; n/a where the subject has none.",
    },
}


@dataclass(frozen=True)
class Cohort:
    """The merged table and where it came from.

    Attributes
    ----------
    frame : DataFrame
        From `cohort.merge_sessions`.
    dictionary : dict
        Data dictionary of its columns.
    sessions : dict
        By (participant_id, session_id or "").
    left_out : tuple of (str, tuple of str)
        Sessions of which something is not in the table, and why.
    """

    frame: pd.DataFrame
    dictionary: Mapping[str, Mapping[str, Any]]
    sessions: Mapping[tuple[str, str], Session]
    left_out: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Dot:
    """One session in a strip: place in percent and px."""

    x: float
    y: float
    session: str
    href: str
    title: str
    outlier: bool


@dataclass(frozen=True)
class Strip:
    """The distribution of a measure: dots, and a box of median and quartiles, in percent of the width."""

    name: str
    about: str
    measured: str
    median_words: str
    range_words: str
    low: str
    high: str
    dots: tuple[Dot, ...]
    box: tuple[float, float, float]
    whiskers: tuple[float, float]


@dataclass(frozen=True)
class Row:
    """A row of the group's table: name, link, contrasts, cells of (text, sorting key, reason, outlier)."""

    session: str
    participant: str
    session_label: str
    href: str
    contrasts: str
    flags: tuple[Notice, ...]
    cells: tuple[tuple[str, str, str, bool], ...]
    flagged: bool


@dataclass(frozen=True)
class GroupView:
    """The page of the group."""

    lede: str
    version: str
    left_out: tuple[tuple[str, tuple[str, ...]], ...]
    strips: tuple[Strip, ...]
    outliers: tuple[tuple[str, str, str, str], ...]
    outlier_note: str
    findings: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]
    headings: tuple[Value, ...]
    rows: tuple[Row, ...]


def collect_cohort(sessions: Sequence[Session]) -> Cohort:
    """Merge the sessions' volumes; what cannot be used is left out by name."""
    frames: list[pd.DataFrame] = []
    used: dict[tuple[str, str], Session] = {}
    left_out: list[tuple[str, tuple[str, ...]]] = []
    dictionary: dict[str, Mapping[str, Any]] = dict(KEY_DICTIONARY)
    for session in sessions:
        why = _unusable(session)
        if why or session.broken:
            left_out.append((session.name, (*session.broken, *([why] if why else []))))
        if why:
            continue
        table = session.tables["volumes"]
        frames.append(table)
        used[_key(table.iloc[0])] = session
        for column in table.columns:
            about = session.dictionaries.get("volumes", {}).get(column) or VOLUME_COLUMNS.get(column, {})
            dictionary.setdefault(column, about)
    return Cohort(cohort.merge_sessions(frames), dictionary, used, tuple(left_out))


def table_text(frame: pd.DataFrame) -> str:
    """The merged table as TSV: ``n/a`` for what was not measured, numbers with the digits of the sessions' tables."""
    return frame.to_csv(sep="\t", index=False, na_rep="n/a", float_format="%.10g", lineterminator="\n")


def view_group(group: Cohort, layout: Mapping[str, Any]) -> GroupView:
    """Everything the page of the group shows.

    Parameters
    ----------
    group : Cohort
        From `collect_cohort`.
    layout : mapping
        `report.yml`.
    """
    frame = group.frame
    columns = [str(column) for column in frame.columns if column not in cohort.KEYS]
    found = cohort.outliers(frame)
    outlying = {(*_key(row), str(row["column"])) for _, row in found.table.iterrows()}
    rows = tuple(_row(row, columns, group, layout, outlying) for _, row in frame.iterrows())
    numeric = frame.select_dtypes("number").columns
    shown = [column for column in layout["group"]["distributions"] if column in numeric]
    shown += [column for column in columns if column in numeric and column not in VOLUME_COLUMNS]
    described = cohort.summary(frame)
    versions = sorted({str(session.record.get("version", "")) for session in group.sessions.values()} - {""})
    return GroupView(
        lede=_lede(frame, group.left_out),
        version=enumerate_words(versions),
        left_out=group.left_out,
        strips=tuple(
            _strip(column, group, layout, outlying, described.loc[column])
            for column in shown
            if described.loc[column, "n"] > 0
        ),
        outliers=tuple(_outlier(row, group, layout) for _, row in found.table.iterrows()),
        outlier_note=found.note,
        findings=_findings(rows),
        headings=tuple(_value(column, None, group, layout) for column in columns),
        rows=rows,
    )


def _unusable(session: Session) -> str:
    """Why a session is not in the table, or "" where it is."""
    table = session.tables.get("volumes")
    if table is None:
        if session.broken:
            return "its volumes are not in the table."
        told = {"failed": "failed", "skipped": "was skipped"}.get(session.status, "has no table of volumes")
        return f"{told}{': ' + session.problem['message'] if session.problem.get('message') else ''}"
    if len(table) != 1:
        return f"{session.name}_volumes.tsv holds {len(table)} rows; one is expected."
    if "participant_id" not in table.columns:
        return f"{session.name}_volumes.tsv has no column participant_id."
    named = "_".join(part for part in _key(table.iloc[0]) if part)
    if named != session.name:
        return f"{session.name}_volumes.tsv is of {named}."
    return ""


def _key(row: pd.Series) -> tuple[str, str]:
    session = row.get("session_id")
    return str(row["participant_id"]), "" if pd.isna(session) or session in ("n/a", "") else str(session)


def _href(key: tuple[str, str]) -> str:
    return f"{key[0]}.html#{key[1] or 'session'}"


def _name(key: tuple[str, str]) -> str:
    return " ".join(part for part in key if part)


def _value(column: str, number: float | None, group: Cohort, layout: Mapping[str, Any], why: str = "") -> Value:
    return describe(column, number, names=layout["volumes"]["names"], dictionary=group.dictionary, why=why)


def _lede(frame: pd.DataFrame, left_out: Sequence[tuple[str, tuple[str, ...]]]) -> str:
    if frame.empty:
        return "No session with volumes was found."
    told = f"{count_of(len(frame), 'session')} of {count_of(frame['participant_id'].nunique(), 'subject')}"
    if not left_out:
        return f"{told}."
    return f"{told}. Something is missing from {count_of(len(left_out), 'session')}, named below."


def _row(
    row: pd.Series,
    columns: Sequence[str],
    group: Cohort,
    layout: Mapping[str, Any],
    outlying: set[tuple[str, str, str]],
) -> Row:
    key = _key(row)
    session = group.sessions[key]
    values = volume_values(session, layout)
    flags = tuple(flag_warnings(session, values))
    reasons = {column: value.why for column, value in values.items()}
    cells = []
    for column in columns:
        if pd.isna(row[column]):
            cells.append(("n/a", "", reasons.get(column, ""), False))
        elif isinstance(row[column], str):
            cells.append((row[column], row[column], "", False))
        else:
            value = _value(column, float(row[column]), group, layout)
            cells.append((value.text, f"{float(row[column]):.10g}", "", (*key, column) in outlying))
    return Row(
        session=_name(key),
        participant=key[0],
        session_label=key[1],
        href=_href(key),
        contrasts=" ".join(session.record.get("contrasts", ())),
        flags=flags,
        cells=tuple(cells),
        flagged=bool(flags) or any(cell[3] for cell in cells),
    )


def _findings(rows: Sequence[Row]) -> tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]:
    """What quality control found, most frequent first, each with its (session, link, detail)."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for row in rows:
        for flag in row.flags:
            found.setdefault(flag.text, []).append((row.session, row.href, flag.detail))
    order = sorted(found, key=lambda text: -len(found[text]))
    return tuple((text, tuple(found[text])) for text in order)


def _outlier(row: pd.Series, group: Cohort, layout: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """(session, link, what, why)."""
    key = _key(row)
    value = _value(str(row["column"]), float(row["value"]), group, layout)
    median = _value(str(row["column"]), float(row["median"]), group, layout)
    side = "above" if row["direction"] == "high" else "below"
    distance = f"{abs(float(row['modified_z'])):.1f}"
    return (
        _name(key),
        _href(key),
        f"{value.name}: {value.with_unit}",
        f"{distance} robust standard deviations {side} the median of {median.with_unit}",
    )


def _strip(
    column: str,
    group: Cohort,
    layout: Mapping[str, Any],
    outlying: set[tuple[str, str, str]],
    described: pd.Series,
) -> Strip:
    known = group.frame[group.frame[column].notna()]
    low, high = float(described["minimum"]), float(described["maximum"])

    def place(number: float) -> float:
        return round(50.0 if high == low else 2 + 96 * (number - low) / (high - low), 2)

    def words(number: float) -> str:
        return _value(column, number, group, layout).with_unit

    name = _value(column, None, group, layout)
    quartiles = tuple(place(float(described[which])) for which in ("q1", "median", "q3"))
    missing = int(described["missing"])
    return Strip(
        name=name.name,
        about=name.about,
        measured=count_of(int(described["n"]), "session") + (f", {missing} n/a" if missing else ""),
        median_words=f"median {words(float(described['median']))}",
        range_words=f"quartiles {words(float(described['q1']))}, {words(float(described['q3']))}",
        low=words(low),
        high=words(high),
        dots=_swarm(known, column, place, words, outlying),
        box=(quartiles[0], quartiles[1], quartiles[2]),
        whiskers=(place(low), place(high)),
    )


def _swarm(
    known: pd.DataFrame, column: str, place: Any, words: Any, outlying: set[tuple[str, str, str]]
) -> tuple[Dot, ...]:
    """Dots that stack up and down where many values are alike."""
    stacked: dict[int, int] = {}
    dots = []
    for _, row in known.sort_values(column, kind="stable").iterrows():
        key, number = _key(row), float(row[column])
        x = place(number)
        before = stacked.get(int(x / SWARM_PERCENT), 0)
        stacked[int(x / SWARM_PERCENT)] = before + 1
        offset = (before + 1) // 2 * SWARM_STEP * (1 if before % 2 else -1)
        # Beyond the strip's height dots start again: shown on top of each other, never lost.
        y = SWARM_MIDDLE + (abs(offset) % (SWARM_REACH + 1)) * (1 if offset > 0 else -1)
        dots.append(
            Dot(x, y, _name(key), _href(key), f"{_name(key)}: {words(number)}", (*key, column) in outlying)
        )  # fmt: skip
    return tuple(dots)

"""What the group's page and table show: all sessions with volumes, their distributions, outliers and flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bidsapp.measure import cohort
from bidsapp.measure.volumes import KEY_COLUMNS, VOLUME_COLUMNS
from bidsapp.report import group_figures
from bidsapp.report.analysis import Z_LIMIT, Analysis, tables
from bidsapp.report.group_models import (
    Comparison,
    ModelTerm,
    ModelView,
    Plot,
    Point,
    cohort_table,
    scatter,
    signed,
    view_comparisons,
    view_models,
    view_refused,
    view_terms,
)
from bidsapp.report.read import Session
from bidsapp.report.subject import Notice, flag_warnings, volume_values
from bidsapp.report.wording import Value, describe
from bidsapp.words import count_of, enumerate_words

#: The dots of a strip: width of the column they stack in (percent of the strip), and their distance (px).
SWARM_PERCENT, SWARM_STEP, SWARM_MIDDLE, SWARM_REACH = 1.0, 6, 22, 18
#: Of more sessions a strip shows a histogram, and as dots only the outliers: a browser is slow with 100,000 dots.
MAXIMUM_DOTS, BINS = 500, 60
#: Groups that get a colour of their own (style.css).
COLOURS = 5
#: Rows of a long table that are shown at a time; sorting and filtering reach all.
ROWS_SHOWN = 200


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
    colour: int = 0


@dataclass(frozen=True)
class Strip:
    """The distribution of a measure: dots (or bars of x, width, height), and a box of median and quartiles, in percent
    of the width.
    """

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
    bars: tuple[tuple[float, float, float], ...] = ()


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
class Picture:
    """A figure of the group: title, caption, the drawing, and paths of what may be downloaded beside it (maps)."""

    title: str
    caption: str
    drawing: group_figures.Drawing
    others: tuple[str, ...] = ()
    plot: bool = False


@dataclass(frozen=True)
class GroupView:
    """The page of the group."""

    lede: str
    version: str
    left_out: tuple[tuple[str, tuple[str, ...]], ...]
    strips: tuple[Strip, ...]
    scatters: tuple[Plot, ...]
    outliers: tuple[tuple[str, str, str, str, str], ...]
    outlier_note: str
    adjusted_for: str
    notes: tuple[str, ...]
    people: tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]
    levels: tuple[str, ...]
    terms: tuple[ModelTerm, ...]
    models: tuple[ModelView, ...]
    refused: tuple[tuple[str, tuple[str, ...]], ...]
    comparisons: tuple[Comparison, ...]
    harmonized: tuple[str, str, tuple[tuple[str, ...], ...], tuple[str, ...]] | None
    files: tuple[str, ...]
    pictures: tuple[Picture, ...]
    findings: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]
    headings: tuple[Value, ...]
    rows: tuple[Row, ...]
    limit: int = ROWS_SHOWN


def collect_cohort(sessions: Sequence[Session]) -> Cohort:
    """Merge the sessions' volumes; what cannot be used is left out by name."""
    frames: list[pd.DataFrame] = []
    used: dict[tuple[str, str], Session] = {}
    left_out: list[tuple[str, tuple[str, ...]]] = []
    dictionary: dict[str, Mapping[str, Any]] = dict(KEY_COLUMNS)
    for session in sessions:
        why = _unusable(session)
        table, unreadable = (pd.DataFrame(), ()) if why else _numbers(session.tables["volumes"])
        told = (*session.broken, *unreadable, *_not_the_last(session), *([why] if why else []))
        if told:
            left_out.append((session.name, told))
        if why:
            continue
        frames.append(table)
        used[_key(table.iloc[0])] = session
        for column in table.columns:
            about = session.dictionaries.get("volumes", {}).get(column) or VOLUME_COLUMNS.get(column, {})
            dictionary.setdefault(column, about)
        for column, about in session.dictionaries.get("cortex", {}).items():
            dictionary.setdefault(column, about)
    return Cohort(cohort.merge_sessions(frames), dictionary, used, tuple(left_out))


def _not_the_last(session: Session) -> list[str]:
    """A word where a later run had no success, but results of an earlier one are there."""
    if not (session.record and session.problem):
        return []
    message = str(session.problem.get("message") or "").rstrip(".")
    return [f"its volumes are of an earlier run: the last one {session.problem.get('status', 'failed')} ({message})"]


def _numbers(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """A session's volumes, n/a where a cell holds no number (somebody's spreadsheet was here), and these cells."""
    measures = [name for name in table if name not in cohort.KEYS]
    cells = table.loc[table.index[0], measures].map(cohort.content)
    numbers = pd.to_numeric(cells, errors="coerce")
    bad = [name for name in measures if pd.notna(cells[name]) and pd.isna(numbers[name])]
    told = tuple(f"volumes.tsv: {name} is {str(cells[name])!r}, which is no number: n/a here" for name in bad)
    return table.assign(**dict.fromkeys(bad, "n/a"), **{n: "n/a" for n in measures if pd.isna(cells[n])}), told


def view_group(
    group: Cohort, analysis: Analysis, layout: Mapping[str, Any], *, pictures: Sequence[Picture] = ()
) -> GroupView:
    """Everything the page of the group shows.

    Parameters
    ----------
    group : Cohort
        From `collect_cohort`.
    analysis : Analysis
        From `analysis.analyse`.
    layout : mapping
        `report.yml`.
    pictures : sequence of Picture
        Figures and maps on disk.
    """
    frame = analysis.volumes
    columns = [str(column) for column in frame.columns if column not in cohort.KEYS]
    measured = frame[[*cohort.KEYS, *analysis.measures]]
    found, note = _outliers(measured, analysis)
    outlying = {(*_key(row), str(row["column"])) for row in found}
    rows = tuple(_row(row, columns, group, layout, outlying) for row in frame.to_dict("records"))
    numeric = measured.select_dtypes("number").columns
    usual = [column for column in layout["group"]["distributions"] if column in numeric]
    shown = [*usual, *(c for c in analysis.measures if c in numeric and c not in VOLUME_COLUMNS)]
    described = cohort.summary(measured)
    versions = sorted({str(session.record.get("version", "")) for session in group.sessions.values()} - {""})
    level_of, levels = _levels(analysis)
    name = partial(_name_of_measure, group=group, analysis=analysis, layout=layout)
    return GroupView(
        lede=_lede(frame, group.left_out),
        version=enumerate_words(versions),
        left_out=group.left_out,
        strips=tuple(
            _strip(column, group, layout, outlying, described.loc[column], level_of)
            for column in shown
            if described.loc[column, "n"] > 0
        ),
        scatters=_scatters(usual, group, analysis, layout, level_of),
        outliers=tuple(_outlier(row, group, layout) for row in found),
        outlier_note=note,
        adjusted_for=enumerate_words([_words(term) for term in analysis.design.adjustments()]),
        notes=analysis.notes,
        people=cohort_table(analysis.frame, analysis.design) if len(frame) else ((), ()),
        levels=levels,
        terms=view_terms(analysis.terms, name),
        models=view_models(analysis.fits, name, (analysis.frame, analysis.intervals), _who),
        refused=view_refused(analysis.fits, name),
        comparisons=view_comparisons(analysis.comparisons, name),
        harmonized=_harmonized(analysis, name),
        files=tuple(f"group_{name}.tsv" for name in tables(analysis)),
        pictures=tuple(pictures),
        findings=_findings(rows),
        headings=tuple(_value(column, None, group, layout) for column in columns),
        rows=rows,
    )


def _name_of_measure(column: str, group: Cohort, analysis: Analysis, layout: Mapping[str, Any]) -> str:
    """A column of the model frame in words."""
    known = {*analysis.measures, *analysis.cortex, *analysis.changes}
    full = f"{column}_mm3" if f"{column}_mm3" in known else column
    if full in analysis.changes and full not in analysis.measures:
        return str(analysis.dictionaries.get("changes", {}).get(full, {}).get("LongName") or full)
    return _value(full, None, group, layout).name


def _who(row: Mapping[str, Any]) -> tuple[str, str]:
    """Name and link of a row's session."""
    return _name(_key(row)), _href(_key(row))


def draw_figures(out_dir: Path, analysis: Analysis, group: Cohort, layout: Mapping[str, Any]) -> list[Picture]:
    """Write the figures of the tables (SVG and PNG), as far as there is something to draw."""
    for old in sorted((out_dir / group_figures.FOLDER).glob("group_*")):
        old.unlink()
    shown = [c for c in layout["group"]["distributions"] if c in analysis.measures]
    shown = [c for c in shown if analysis.frame[c.removesuffix("_mm3")].notna().sum() >= cohort.MINIMUM_SUBJECTS]
    columns = [column.removesuffix("_mm3") for column in shown]
    names = [_value(column, None, group, layout).name for column in shown]
    units = ["ml" if c.endswith("_mm3") else "%" if "percent" in c else "" for c in shown]
    made = []
    if columns:
        about = "by group " if analysis.design.group else ""
        how = ", harmonised across sites" if analysis.harmonized is not None else ""
        drawn = group_figures.by_group(analysis, columns, names, units)
        caption = f"Measures {about}(boxes: median and quartiles; whiskers: 1.5 times that){how}."
        made.append(("group_distributions", drawn, "Distributions", caption))
    if columns and analysis.design.age:
        drawn = group_figures.against_age(analysis, columns, names, units)
        caption = f"Measures against age, with a straight line of each group, adjusted for nothing{how}."
        made.append(("group_age", drawn, "Against age", caption))
    drawn, shortened = group_figures.forest(
        analysis.terms, partial(_name_of_measure, group=group, analysis=analysis, layout=layout)
    )
    if drawn is not None:
        caption = f"Effect sizes with 95 % confidence intervals, coloured where q is below 0.05{shortened}."
        made.append(("group_effects", drawn, "Effect sizes", caption))
    pictures = []
    for stem, figure, title, caption in made:
        pictures.append(Picture(title, caption, group_figures.save(out_dir, stem, figure), plot=True))
    return pictures


def _scatters(
    shown: Sequence[str],
    group: Cohort,
    analysis: Analysis,
    layout: Mapping[str, Any],
    level_of: Mapping[tuple[str, str], int],
) -> tuple[Plot, ...]:
    """Every measure against age, a dot for each session (of many, for an even choice of them)."""
    age = analysis.design.session_age or analysis.design.age
    if age is None:
        return ()
    plots = []
    for column in shown:
        known = (analysis.frame[age].notna() & analysis.volumes[column].notna()).to_numpy()
        if known.sum() < cohort.MINIMUM_SUBJECTS:
            continue
        places = np.flatnonzero(known)
        places = places[np.unique(np.linspace(0, len(places) - 1, min(len(places), MAXIMUM_DOTS)).astype(int))]
        x = analysis.frame[age].to_numpy(float)[places]
        y = analysis.volumes[column].to_numpy(float)[places]
        words = [_value(column, float(number), group, layout).with_unit for number in y]
        keys = [_key(row) for row in analysis.volumes[cohort.KEYS].iloc[places].to_dict("records")]
        points = [
            Point(0, 0, _name(key), _href(key), level_of.get(key, 0), f"{_name(key)}: {word} at {number:g}")
            for key, word, number in zip(keys, words, x, strict=True)
        ]
        ends = (f"{x.min():g}", f"{x.max():g}", words[int(np.argmin(y))], words[int(np.argmax(y))])
        title = _value(column, None, group, layout).name
        plots.append(scatter(x, y, points, title=title, across=_words(age), ends=ends))
    return tuple(plots)


def _words(column: str) -> str:
    return {"tiv": "TIV", "age_first": "age"}.get(column, column.replace("_", " "))


def _levels(analysis: Analysis) -> tuple[dict[tuple[str, str], int], tuple[str, ...]]:
    """Number of each session's group (0: of none), and the groups' names."""
    group = analysis.design.group
    if group is None or len(analysis.frame[group].cat.categories) > COLOURS:
        return {}, ()
    codes = analysis.frame[group].cat.codes + 1
    keys = [_key(row) for row in analysis.volumes[cohort.KEYS].to_dict("records")]
    return dict(zip(keys, map(int, codes), strict=True)), tuple(map(str, analysis.frame[group].cat.categories))


def _outliers(measured: pd.DataFrame, analysis: Analysis) -> tuple[list[dict[str, Any]], str]:
    """Values far from the others as they are, or from those of the same age, sex and TIV; the farthest first."""
    found = cohort.outliers(measured)
    keys = [_key(row) for row in measured[cohort.KEYS].to_dict("records")]
    far = {(*_key(row), str(row["column"])): float(row["modified_z"]) for row in found.table.to_dict("records")}
    alike: dict[tuple[str, str, str], float] = {}
    for name in analysis.scores.columns.difference(cohort.KEYS, sort=False):
        column = f"{name}_mm3" if f"{name}_mm3" in measured else str(name)
        z = analysis.scores[name].to_numpy(float)
        alike |= {(*keys[i], column): float(z[i]) for i in np.flatnonzero(np.abs(z) > Z_LIMIT)}
        alike |= {(*keys[i], column): float(z[i]) for i in range(len(z)) if (*keys[i], column) in far}
    place = {key: number for number, key in enumerate(keys)}
    medians = cohort.middle(measured.select_dtypes("number"))
    rows = [
        {
            "participant_id": subject, "session_id": session, "column": column,
            "value": measured[column].iloc[place[subject, session]], "median": medians[column],
            "modified_z": far.get((subject, session, column), np.nan),
            "z": alike.get((subject, session, column), np.nan),
        }
        for subject, session, column in dict.fromkeys([*far, *alike])
    ]  # fmt: skip
    rows.sort(key=lambda row: -np.nanmax(np.abs([row["modified_z"], row["z"]])))
    return rows, found.note


def _harmonized(analysis: Analysis, name: Any) -> tuple[str, str, tuple[tuple[str, ...], ...], tuple[str, ...]] | None:
    """(site column, what was kept, rows of a table, notes)."""
    done = analysis.harmonized
    if done is None:
        return None
    rows = []
    for _, row in done.sites.iterrows():
        factor, unit = (1000, "\u00a0ml") if str(row["column"]).endswith("_mm3") else (1, "")
        rows.append((
            str(row["site"]), name(str(row["column"]).removesuffix("_mm3")), str(row["sessions"]),
            f"{signed(row['mean_before'] / factor)} ± {signed(row['sd_before'] / factor)}{unit}",
            f"{signed(row['mean_after'] / factor)} ± {signed(row['sd_after'] / factor)}{unit}",
        ))  # fmt: skip
    return done.site, enumerate_words([_words(term) for term in done.kept]), tuple(rows), done.notes


def _unusable(session: Session) -> str:
    """Why a session is not in the table, or "" where it is."""
    table = session.tables.get("volumes")
    if table is None and session.broken:
        return "its volumes are not in the table."
    if table is None or not (session.record or session.broken):  # the record comes last: without it nothing is whole
        told = {"failed": "failed", "skipped": "was skipped", "unfinished": "was not finished"}.get(
            session.status, "has no table of volumes"
        )
        return f"{told}{': ' + session.problem['message'] if session.problem.get('message') else ''}"
    if len(table) != 1:
        return f"{session.name}_volumes.tsv holds {len(table)} rows; one is expected."
    if "participant_id" not in table.columns:
        return f"{session.name}_volumes.tsv has no column participant_id."
    named = "_".join(part for part in _key(table.iloc[0]) if part)
    if named != session.name:
        return f"{session.name}_volumes.tsv is of {named}."
    return ""


def _key(row: Mapping[str, Any] | pd.Series) -> tuple[str, str]:
    session = row.get("session_id")
    return str(row["participant_id"]), "" if pd.isna(session) or session in ("n/a", "") else str(session)


def _href(key: tuple[str, str]) -> str:
    return f"{key[0]}.html#{key[1] or 'session'}"


def _name(key: tuple[str, str]) -> str:
    return " ".join(part for part in key if part)


def _value(column: str, number: float | None, group: Cohort, layout: Mapping[str, Any]) -> Value:
    return describe(column, number, names=layout["volumes"]["names"], dictionary=group.dictionary)


def _lede(frame: pd.DataFrame, left_out: Sequence[tuple[str, tuple[str, ...]]]) -> str:
    if frame.empty:
        return "No session with volumes was found."
    told = f"{count_of(len(frame), 'session')} of {count_of(frame['participant_id'].nunique(), 'subject')}"
    if not left_out:
        return f"{told}."
    return f"{told}. Something is missing from {count_of(len(left_out), 'session')}, or not as it should be: see below."


def _row(
    row: Mapping[str, Any],
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


def _outlier(row: Mapping[str, Any], group: Cohort, layout: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """(session, link, what, how far from all, how far from those alike)."""
    key = _key(row)
    value = _value(str(row["column"]), float(row["value"]), group, layout)
    median = _value(str(row["column"]), float(row["median"]), group, layout)
    far, alike = float(row["modified_z"]), float(row["z"])
    where = f"{'above' if far > 0 else 'below'} the median of {median.with_unit}"
    where += " of those above 0" if cohort.is_lesion(str(row["column"])) else ""
    return (
        _name(key),
        _href(key),
        f"{value.name}: {value.with_unit}",
        "" if pd.isna(far) else f"{signed(far)}, {where}",
        "" if pd.isna(alike) else signed(alike),
    )


def _strip(
    column: str,
    group: Cohort,
    layout: Mapping[str, Any],
    outlying: set[tuple[str, str, str]],
    described: pd.Series,
    level_of: Mapping[tuple[str, str], int],
) -> Strip:
    known = group.frame.loc[group.frame[column].notna(), [*cohort.KEYS, column]]
    low, high = float(described["minimum"]), float(described["maximum"])

    def place(number: float) -> float:
        return round(50.0 if high == low else 2 + 96 * (number - low) / (high - low), 2)

    def words(number: float) -> str:
        return _value(column, number, group, layout).with_unit

    name = _value(column, None, group, layout)
    quartiles = tuple(place(float(described[which])) for which in ("q1", "median", "q3"))
    missing = int(described["missing"])
    rows = known.sort_values(column, kind="stable").to_dict("records")
    many = len(rows) > MAXIMUM_DOTS
    if many:
        rows = [row for row in rows if (*_key(row), column) in outlying]
    return Strip(
        name=name.name,
        about=name.about,
        measured=count_of(int(described["n"]), "session") + (f", {missing} n/a" if missing else ""),
        median_words=f"median {words(float(described['median']))}",
        range_words=f"quartiles {words(float(described['q1']))}, {words(float(described['q3']))}",
        low=words(low),
        high=words(high),
        dots=_swarm(rows, column, place, words, outlying, level_of),
        box=(quartiles[0], quartiles[1], quartiles[2]),
        whiskers=(place(low), place(high)),
        bars=_histogram(known[column].to_numpy(float), place) if many else (),
    )


def _histogram(values: np.ndarray, place: Any) -> tuple[tuple[float, float, float], ...]:
    """Bars as (x in percent, width in percent, height in px)."""
    counts, edges = np.histogram(values, bins=BINS)
    places = [place(float(edge)) for edge in edges]
    highest = max(int(counts.max()), 1)
    return tuple(
        (places[i], round(places[i + 1] - places[i], 2), round(40 * int(count) / highest, 1))
        for i, count in enumerate(counts)
        if count
    )


def _swarm(
    rows: Sequence[Mapping[str, Any]],
    column: str,
    place: Any,
    words: Any,
    outlying: set[tuple[str, str, str]],
    level_of: Mapping[tuple[str, str], int],
) -> tuple[Dot, ...]:
    """Dots that stack up and down where many values are alike."""
    stacked: dict[int, int] = {}
    dots = []
    for row in rows:
        key, number = _key(row), float(row[column])
        x = place(number)
        before = stacked.get(int(x / SWARM_PERCENT), 0)
        stacked[int(x / SWARM_PERCENT)] = before + 1
        offset = (before + 1) // 2 * SWARM_STEP * (1 if before % 2 else -1)
        # Beyond the strip's height dots start again: shown on top of each other, never lost.
        y = SWARM_MIDDLE + (abs(offset) % (SWARM_REACH + 1)) * (1 if offset > 0 else -1)
        title = f"{_name(key)}: {words(number)}"
        dots.append(Dot(x, y, _name(key), _href(key), title, (*key, column) in outlying, level_of.get(key, 0)))
    return tuple(dots)

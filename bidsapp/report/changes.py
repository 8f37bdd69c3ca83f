"""What the page of the changes between a subject's sessions shows; the template only places it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bidsapp.labels import CHANGE_GROWTH, CHANGE_LOSS, CHANGE_NEW, CHANGE_RESOLVED, CHANGE_STABLE
from bidsapp.measure.comparability import EDGE_RATIO, TIV_PERCENT
from bidsapp.report.change_pictures import SHOWN
from bidsapp.report.read import BrokenFile, PictureFile, number, png_size, read_json, read_table
from bidsapp.report.wording import Value, describe, grouped, millilitres, with_sign
from bidsapp.words import count_of, enumerate_words

#: Order and words of the statuses; of the last two only the number is told.
STATUSES = {
    "new": "new",
    "enlarging": "enlarging",
    "shrinking": "shrinking",
    "resolved": "resolved",
    "stable": "stable",
    "unconfirmed": "unconfirmed",
    "small": "too small to compare",
}
ACTIVE = ("new", "enlarging", "shrinking", "resolved")
QUIET = ("unconfirmed", "small")
_COLORS = {
    "new": CHANGE_NEW.color,
    "enlarging": CHANGE_GROWTH.color,
    "shrinking": CHANGE_LOSS.color,
    "resolved": CHANGE_RESOLVED.color,
    "stable": CHANGE_STABLE.color,
}
#: Columns of the lesions' table that the page shows: (title, unit, columns).
COLUMNS = (
    ("No.", "", ("change_id",)),
    ("Status", "", ("status",)),
    ("Before", "mm³", ("volume_from_mm3",)),
    ("After", "mm³", ("volume_to_mm3",)),
    ("Half-way x, y, z", "mm", ("halfway_x_mm", "halfway_y_mm", "halfway_z_mm")),
    ("Gained", "mm³", ("gain_mm3",)),
    ("Lost", "mm³", ("loss_mm3",)),
    ("Brightness", "SD", ("brightness_change",)),
    ("MNI x, y, z", "mm", ("mni_x_mm", "mni_y_mm", "mni_z_mm")),
    ("Region", "", ("region",)),
)
FACTS = (
    "lesion_from_mm3", "lesion_to_mm3", "lesion_change_mm3", "lesion_change_mm3_per_year", "new_mm3", "growth_mm3",
    "shrinkage_mm3", "resolved_mm3", "brain_change_percent", "brain_change_percent_per_year", "years",
    "minimum_change_mm3", "common_brain_percent", "registration_disagreement_mm",
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """Two sessions that follow each other."""

    anchor: str
    title: str
    words: tuple[str, str]
    sentence: str
    notes: tuple[str, ...]
    counts: tuple[tuple[str, str, str], ...]
    facts: tuple[Value, ...]
    beside: PictureFile | None
    before: PictureFile | None
    after: PictureFile | None
    key: tuple[tuple[str, str], ...]
    headings: tuple[tuple[str, str, str], ...]
    rows: tuple[tuple[tuple[str, str], ...], ...]
    quiet: int


@dataclass(frozen=True)
class ChangesView:
    """The page."""

    subject: str
    lede: str
    version: str
    intervals: tuple[Interval, ...]
    broken: tuple[str, ...]
    edge_percent: str = f"{100 * (EDGE_RATIO - 1):.0f}"
    tiv_percent: str = f"{TIV_PERCENT:g}"


def has_changes(out_dir: Path, subject: str) -> bool:
    """Whether there is anything to make the page of: tables without their record are of a run that was stopped."""
    record = _table(out_dir, subject, "desc-changes_provenance").with_suffix(".json")
    return record.is_file() and _table(out_dir, subject, "changes").is_file()


def view_changes(out_dir: Path, subject: str) -> ChangesView:
    """Everything the page shows.

    Parameters
    ----------
    out_dir : Path
    subject : str
        Label.
    """
    broken: list[str] = []
    tables, dictionaries = {}, {}
    for kind in ("changes", "lesionchanges"):
        path = _table(out_dir, subject, kind)
        tables[kind] = _attempt(read_table, path, pd.DataFrame(), broken)
        dictionaries[kind] = _attempt(read_json, path.with_suffix(".json"), {}, broken)
    record = _attempt(read_json, _table(out_dir, subject, "desc-changes_provenance").with_suffix(".json"), {}, broken)
    intervals = tuple(
        _interval(out_dir, subject, row, tables["lesionchanges"], dictionaries)
        for row in tables["changes"].to_dict("records")
    )
    return ChangesView(
        subject=subject,
        lede=f"{count_of(len(intervals), 'interval')} between {count_of(len(intervals) + 1, 'session')},"
        " compared in the space half-way between them.",
        version=str(record.get("version", "")),
        intervals=intervals,
        broken=tuple(broken),
    )


def compared_facts(view: ChangesView) -> dict[str, str]:
    """What the sentences of `methods.yml` ask about the comparison of sessions."""
    brains = [value.number for item in view.intervals for value in item.facts if value.column == "brain_change_percent"]
    return {
        "changes": "yes" if view.intervals else "no",
        "lesion_changes": "yes" if any(item.counts for item in view.intervals) else "no",
        "brain_changes": "yes" if any(change is not None for change in brains) else "no",
    }


def _table(out_dir: Path, subject: str, kind: str) -> Path:
    return out_dir / f"sub-{subject}" / "anat" / f"sub-{subject}_{kind}.tsv"


def _attempt(read: Any, path: Path, otherwise: Any, broken: list[str]) -> Any:
    try:
        return read(path)
    except FileNotFoundError:
        return otherwise
    except BrokenFile as error:
        broken.append(f"{path.name}: {error}")
        return otherwise


def _interval(
    out_dir: Path,
    subject: str,
    row: Mapping[str, str],
    lesions: pd.DataFrame,
    dictionaries: Mapping[str, Mapping[str, Any]],
) -> Interval:
    first, second = str(row.get("session_from", "")), str(row.get("session_to", ""))
    word = f"{first.removeprefix('ses-')}to{second.removeprefix('ses-')}"
    start = out_dir / f"sub-{subject}" / "figures" / f"sub-{subject}_desc-change{word}"
    pictures = {kind: _picture(start.with_name(f"{start.name}{kind}.png"), out_dir)
                for kind in ("Beside", "Before", "After")}  # fmt: skip
    mine = [
        record
        for record in lesions.to_dict("records")
        if (record.get("session_from"), record.get("session_to")) == (first, second)
    ]
    shown = [record for record in mine if record.get("status") not in QUIET]
    notes = str(row.get("notes", "none"))
    dictionary = dictionaries["lesionchanges"]
    return Interval(
        anchor=f"change-{word}",
        title=f"Session {first.removeprefix('ses-')} to session {second.removeprefix('ses-')}",
        words=(first, second),
        sentence=_sentence(row),
        notes=() if notes in ("none", "n/a", "") else tuple(notes.split("; ")),
        counts=_counts(row),
        facts=tuple(_fact(column, number(row[column]), dictionaries["changes"]) for column in FACTS if column in row),
        beside=pictures["Beside"],
        before=pictures["Before"],
        after=pictures["After"],
        key=tuple((label.name, label.color) for label in SHOWN),
        headings=tuple(
            (title, unit, str(dictionary.get(columns[0], {}).get("Description", "")))
            for title, unit, columns in COLUMNS
        ),
        rows=tuple(tuple(_cell(record, columns) for _, _, columns in COLUMNS) for record in shown),
        quiet=len(mine) - len(shown),
    )


def _fact(column: str, value: float | None, dictionary: Mapping[str, Mapping[str, Any]]) -> Value:
    fact = describe(column, value, names={}, dictionary=dictionary)
    if column != "minimum_change_mm3" or value is None:
        return fact
    return replace(fact, text=grouped(value), unit="mm³")  # it is held against the lesions of the table below


def _counts(row: Mapping[str, str]) -> tuple[tuple[str, str, str], ...]:
    """(number, word, colour) of each status."""
    out = []
    for status, word in STATUSES.items():
        value = number(row.get(f"{status}_count"))
        if value is not None:
            out.append((f"{value:.0f}", word, _COLORS.get(status, "")))
    return tuple(out)


def _sentence(row: Mapping[str, str]) -> str:
    counted = {status: number(row.get(f"{status}_count")) for status in STATUSES}
    if counted["new"] is None:
        return "Lesions were not compared."
    active = [f"{value:.0f} {status}" for status, value in counted.items() if value and status in ACTIVE]
    change = number(row.get("lesion_change_mm3"))
    if not active:
        return "No new, enlarging, shrinking or resolved lesion."
    total = sum(int(value or 0) for status, value in counted.items() if status in ACTIVE)
    told = f"{enumerate_words(active)} {'lesion' if total == 1 else 'lesions'}"
    if change is None:
        return f"{told}."
    way = "more" if change >= 0 else "less"
    size = f"{millilitres(abs(change))}\u00a0ml" if abs(change) >= 1000 else f"{grouped(abs(change))}\u00a0mm³"
    return f"{told}; {size} {way} lesion than before, confirmed by brightness."


def _cell(record: Mapping[str, str], columns: Sequence[str]) -> tuple[str, str]:
    """Text and sorting key."""
    if columns[0] == "status":
        order = list(STATUSES)
        status = record.get("status", "")
        return status, f"{order.index(status) if status in order else len(order)}"
    if columns[0] == "region":
        text = record.get("region", "n/a").replace("_", " ")
        return ("–" if text == "n/a" else text), text
    values = [number(record.get(column)) for column in columns]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "n/a", ""
    if len(known) > 1:  # sorted by the slice
        return ", ".join(f"{round(value):d}".replace("-", "−") for value in known), f"{known[-1]:.10g}"
    key = f"{known[0]:.10g}"
    if columns[0].endswith("_mm3"):
        return grouped(known[0]), key
    return (f"{known[0]:.0f}" if columns[0].endswith("_id") else with_sign(known[0])), key


def _picture(path: Path, out_dir: Path) -> PictureFile | None:
    try:
        return PictureFile(path.relative_to(out_dir).as_posix(), *png_size(path))
    except (OSError, BrokenFile):
        return None

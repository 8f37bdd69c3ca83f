"""What is known of the subjects: participants.tsv, sessions.tsv and phenotype/ of the dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bidsapp.measure.cohort import KEYS, covariate_label, moments
from bidsapp.report.read import BrokenFile, NotUnicode, read_json, read_table


@dataclass(frozen=True)
class Covariates:
    """Tables about subjects and sessions, not measured by this app.

    Attributes
    ----------
    tables : tuple of (str, DataFrame)
        Name and content, all text; those of sessions first of their kind.
    dictionary : dict
        Data dictionary of all their columns.
    notes : tuple of str
        Files that could not be used.
    """

    tables: tuple[tuple[str, pd.DataFrame], ...] = ()
    dictionary: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def categories(self) -> list[str]:
        """Columns of codes: their dictionary lists levels."""
        return [name for name, about in self.dictionary.items() if about.get("Levels")]

    def beside(self, measures: Iterable[str]) -> Covariates:
        """The same, with other names for the columns that are called as a measure is; a note says so."""
        taken = tuple(measures)
        tables, dictionary, notes = [], dict(self.dictionary), list(self.notes)
        for name, table in self.tables:
            columns = [str(column) for column in table if column not in KEYS]
            labels = {column: covariate_label(column, name, taken) for column in columns}
            for column, label in labels.items():
                if label != column:
                    notes.append(f"{column} of {name} goes by {label} here: {column} is also the name of a measure.")
                    dictionary[label] = self.dictionary.get(column, {})
            tables.append((name, table.rename(columns=labels)))
        renamed = {column for _, table in self.tables for column in table} - {c for _, table in tables for c in table}
        dictionary = {column: about for column, about in dictionary.items() if column not in renamed}
        return replace(self, tables=tuple(tables), dictionary=dictionary, notes=tuple(notes))


def read_covariates(bids_dir: Path | None, out_dir: Path) -> Covariates:
    """Read the small tables of the dataset; where it is not at hand, those kept in the derivatives. Never an image.

    A participants.tsv in the derivatives takes the place of one that the dataset does not have.
    """
    tables: list[tuple[str, pd.DataFrame]] = []
    dictionary: dict[str, Mapping[str, Any]] = {}
    notes: list[str] = []
    people = next((place for place in (bids_dir, out_dir) if place and (place / "participants.tsv").is_file()), None)
    root = bids_dir if bids_dir is not None and bids_dir.is_dir() else people
    if root is None:
        return Covariates(notes=("There is no participants.tsv: nothing is known of the subjects but their scans.",))
    files = [(people or root, "participants.tsv")]
    files += [(root, f"phenotype/{path.name}") for path in sorted(root.glob("phenotype/*.tsv"))]
    for place, name in files:
        path = place / name
        table = _table(path, notes, place)
        if table is not None:
            tables.append((path.name, table))
            dictionary |= {k: v for k, v in _dictionary(path, notes, place).items() if k not in dictionary}
    if people is None:
        notes.append(f"There is no participants.tsv in {root.name}: nothing is known of the subjects but their scans.")
    dates = _dates_of_scans(root, notes)
    if len(dates):
        tables.append(("scans.tsv", dates))
        dictionary.setdefault("acq_time", {"Description": "When the session's first scan was made, of scans.tsv."})
    sessions = []
    for path in sorted(root.glob("sub-*/sub-*_sessions.tsv")):
        table = _table(path, notes, root)
        if table is not None and "session_id" in table:
            sessions.append(table.assign(participant_id=path.name.removesuffix("_sessions.tsv")))
            if len(sessions) == 1:
                dictionary |= _dictionary(path, notes, root)
    if (root / "sessions.tsv").is_file():
        table = _table(root / "sessions.tsv", notes, root)
        if table is not None:
            sessions.append(table)
    if sessions:
        tables.append(("sessions.tsv", pd.concat(sessions, ignore_index=True)))
        dictionary |= _dictionary(root / "sessions.tsv", notes, root)
    return Covariates(tuple(tables), dictionary, tuple(notes))


def _dates_of_scans(root: Path, notes: list[str]) -> pd.DataFrame:
    """The earliest date of every session's scans: BIDS's usual place for it. A date in sessions.tsv wins over it."""
    rows = []
    for path in sorted(root.glob("sub-*/ses-*/sub-*_ses-*_scans.tsv")):
        table = _table(path, notes, root)
        if table is None or "acq_time" not in table:
            continue
        when = moments(table["acq_time"])
        if when.notna().any():
            text = table["acq_time"][when.idxmin()]
            rows.append({"participant_id": path.parts[-3], "session_id": path.parts[-2], "acq_time": text})
    return pd.DataFrame(rows)


def _dictionary(path: Path, notes: list[str], root: Path) -> dict[str, Mapping[str, Any]]:
    content = _attempt(read_json, path.with_suffix(".json"), notes, root) or {}
    return {name: about for name, about in content.items() if isinstance(about, dict)}


def _table(path: Path, notes: list[str], root: Path) -> pd.DataFrame | None:
    """A table, told and None where it cannot be used; an accent of another encoding must not cost the ages."""

    def read(path: Path) -> pd.DataFrame:
        try:
            return read_table(path)
        except NotUnicode:
            table = read_table(path, encoding="latin-1")
            name = path.relative_to(root).as_posix()
            notes.append(f"{name} is not in UTF-8, and read as Latin-1: see that its accents are right.")
            return table

    found: pd.DataFrame | None = _attempt(read, path, notes, root)
    return found


def _attempt(read: Any, path: Path, notes: list[str], root: Path) -> Any:
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except BrokenFile as error:
        notes.append(f"{path.relative_to(root).as_posix()}: {error}.")
        return None

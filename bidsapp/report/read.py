"""Read what a session left in OUT_DIR; what is missing or broken is told, never raised."""

from __future__ import annotations

import csv
import io
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bidsapp.measure.cohort import natural

TABLES = ("volumes", "cortex", "lesions", "load", "qc")
LOG_LINES = 15


class BrokenFile(Exception):
    """A file of the derivatives that is there but cannot be used; the message says why, whoever reads it names it."""


class NotUnicode(BrokenFile):
    """A file that is no text, or text in another encoding than UTF-8."""


@dataclass(frozen=True)
class PictureFile:
    """A picture of the report: path relative to OUT_DIR, width and height in pixels."""

    path: str
    width: int
    height: int


@dataclass(frozen=True)
class Session:
    """One session as it lies on disk.

    Attributes
    ----------
    subject : str
        Label without ``sub-``.
    session : str or None
        Label without ``ses-``.
    name : str
        ``sub-X`` or ``sub-X_ses-Y``.
    record : dict
        The provenance; empty where there is none.
    tables : dict
        DataFrames of text by name (`TABLES`), for those that are there.
    dictionaries : dict
        Data dictionary of each table.
    pictures : dict
        By name, such as ``brain_image``.
    problem : dict
        What the app noted of a failed or skipped session (status, message); empty otherwise.
    broken : tuple of str
        What could not be read, a sentence each.
    log : str
        Path of the subject's log relative to OUT_DIR, or "".
    log_tail : str
        Its last lines, for sessions without a record.
    """

    subject: str
    session: str | None
    name: str
    record: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    dictionaries: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    pictures: Mapping[str, PictureFile] = field(default_factory=dict)
    problem: Mapping[str, str] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    log: str = ""
    log_tail: str = ""

    @property
    def status(self) -> str:
        """Done, failed, skipped or unfinished."""
        if self.record:
            return "done"
        return self.problem.get("status") or "unfinished"

    @property
    def keys(self) -> dict[str, str]:
        """The session as tables of a cohort name it; the session is "" where the dataset has none."""
        return {"participant_id": f"sub-{self.subject}", "session_id": f"ses-{self.session}" if self.session else ""}

    @property
    def row(self) -> dict[str, str]:
        """The session's volumes, as text; empty where there are none."""
        return _first_row(self.tables.get("volumes"))

    @property
    def checks(self) -> dict[str, str]:
        """The session's quality control, as text."""
        return _first_row(self.tables.get("qc"))

    @property
    def own_model(self) -> Mapping[str, Any]:
        """What the card of a lesion model that somebody trained says; empty where none was used."""
        about = self.record.get("methods", {}).get("own_lesion_model")
        return about if isinstance(about, dict) else {}

    @property
    def compartments(self) -> tuple[str, ...]:
        """Parts of the lesions that the model told apart; none where it knows but one."""
        names = self.own_model.get("lesion_classes")
        return tuple(map(str, names)) if isinstance(names, list) and len(names) > 1 else ()


def subjects(out_dir: Path) -> list[str]:
    """Labels of the subjects with results or a noted problem, in order: sub-2 before sub-10."""
    found = {path.name.removeprefix("sub-") for path in out_dir.glob("sub-*") if path.is_dir()}
    for path in (out_dir / "logs").glob("sub-*_problem.json"):
        found.add(path.name.removesuffix("_problem.json").removeprefix("sub-").partition("_ses-")[0])
    return sorted(found, key=natural)


def read_subject(out_dir: Path, subject: str) -> list[Session]:
    """All sessions of a subject: those with results, and those that failed or were skipped.

    In the order in which their changes were looked for, which knows the dates; without it, and where a session is not
    part of it, in the order of the labels.
    """
    start = f"sub-{subject}"
    names = {path.name.removesuffix("_provenance.json") for path in _below(out_dir / start, "*_provenance.json")}
    names |= {path.name.removesuffix("_volumes.tsv") for path in _below(out_dir / start, "*_volumes.tsv")}
    names |= {f"{start}_{path.name}" for path in (out_dir / start).glob("ses-*") if path.is_dir()}
    problems = (out_dir / "logs").glob(f"{start}*_problem.json")
    names |= {path.name.removesuffix("_problem.json") for path in problems}
    mine = sorted((name for name in names if name == start or name.startswith(f"{start}_ses-")), key=natural)
    dated = [name for name in _compared(out_dir, start) if name in mine]
    following = iter(dated)
    in_order = [next(following) if name in dated else name for name in mine]
    return [read_session(out_dir, subject, name) for name in in_order or [start]]


def _compared(out_dir: Path, start: str) -> list[str]:
    """Names of the sessions whose changes were looked for, the earliest first; none where there are no changes."""
    try:
        sessions = read_json(out_dir / start / "anat" / f"{start}_desc-changes_provenance.json").get("sessions")
    except (FileNotFoundError, BrokenFile):
        return []
    return list(dict.fromkeys(f"{start}_ses-{label}" for label in sessions)) if isinstance(sessions, list) else []


def read_session(out_dir: Path, subject: str, name: str) -> Session:
    """Read one session by its name (``sub-X`` or ``sub-X_ses-Y``)."""
    session = name.partition("_ses-")[2] or None
    folder = out_dir / f"sub-{subject}" / (f"ses-{session}" if session else "") / "anat"
    broken: list[str] = []

    def attempt(read: Any, path: Path, otherwise: Any) -> Any:
        try:
            return read(path)
        except FileNotFoundError:
            return otherwise
        except BrokenFile as error:
            broken.append(f"{path.relative_to(out_dir).as_posix()}: {error}")
            return otherwise

    record = attempt(read_json, folder / f"{name}_provenance.json", {})
    tables = {kind: attempt(read_table, folder / f"{name}_{kind}.tsv", None) for kind in TABLES}
    dictionaries = {kind: attempt(read_json, folder / f"{name}_{kind}.json", {}) for kind in TABLES}
    figures = sorted((out_dir / f"sub-{subject}" / "figures").glob(f"{name}_desc-*.png"))
    sizes = {path: attempt(png_size, path, None) for path in figures}
    logs = out_dir / "logs"
    log = logs / f"sub-{subject}.log"
    has_log = log.is_file()
    return Session(
        subject=subject,
        session=session,
        name=name,
        record=_sound(record),
        tables={kind: table for kind, table in tables.items() if table is not None},
        dictionaries={kind: _sound_dictionary(content) for kind, content in dictionaries.items()},
        pictures={
            path.name.removesuffix(".png").rpartition("_desc-")[2]: PictureFile(
                path.relative_to(out_dir).as_posix(), *size
            )
            for path, size in sizes.items()
            if size is not None
        },
        problem={key: str(value or "") for key, value in attempt(read_json, logs / f"{name}_problem.json", {}).items()},
        broken=tuple(broken),
        log=log.relative_to(out_dir).as_posix() if has_log else "",
        log_tail=_tail(log) if has_log and not record else "",
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises
    ------
    FileNotFoundError, BrokenFile
    """
    try:
        content = json.loads(_text(path))
    except ValueError as error:
        raise BrokenFile(f"is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise BrokenFile("is not a JSON object")
    return content


def read_table(path: Path, *, encoding: str = "utf-8-sig") -> pd.DataFrame:
    """A tab-separated table with a header, all cells as text; blanks around names, and empty cells beyond them, go.

    Raises
    ------
    FileNotFoundError, BrokenFile
    """
    text = _text(path, encoding)
    try:
        rows = [cells for cells in csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True) if cells]
    except csv.Error:  # quotes that are but marks, as in: "mild" lesions; or more in a cell than csv takes
        rows = [line.split("\t") for line in re.split(r"\r\n?|\n", text) if line]
    names = [name.strip() for name in rows[0]] if rows else []
    while names and not names[-1]:
        names.pop()
    if not names:
        raise BrokenFile("is not a table (it has no header)")
    if len(set(names)) < len(names):
        raise BrokenFile("has two columns of one name")
    for number, cells in enumerate(rows[1:], 2):
        if len(cells) > len(names) and any(map(str.strip, cells[len(names) :])):
            raise BrokenFile(f"is not a table (row {number} has {len(cells)} cells, the header {len(names)})")
    even = [(cells + [""] * (len(names) - len(cells)))[: len(names)] for cells in rows[1:]]
    return pd.DataFrame(even, columns=names, dtype=object)


def png_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG, from its header (PNG specification, section 11.2.2)."""
    with path.open("rb") as stream:
        head = stream.read(24)
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n":
        raise BrokenFile("is not a PNG picture")
    width, height = struct.unpack(">II", head[16:24])
    return int(width), int(height)


def number(text: str | None) -> float | None:
    """The number in a cell; None for ``n/a``, nothing, or what is no finite number."""
    try:
        value = float(text) if text is not None else float("nan")
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _text(path: Path, encoding: str = "utf-8-sig") -> str:
    try:
        return path.read_bytes().decode(encoding)  # Excel begins its tables with a byte order mark
    except UnicodeDecodeError as error:
        raise NotUnicode("is not text") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BrokenFile(f"cannot be read ({error.strerror})") from error


def _below(folder: Path, pattern: str) -> list[Path]:
    return [*folder.glob(f"anat/{pattern}"), *folder.glob(f"ses-*/anat/{pattern}")]


def _first_row(table: pd.DataFrame | None) -> dict[str, str]:
    if table is None or table.empty:
        return {}
    return {str(key): str(value) for key, value in table.iloc[0].items()}


def _tail(path: Path) -> str:
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    return "\n".join(lines[-LOG_LINES:])


def _sound(record: dict[str, Any]) -> dict[str, Any]:
    """The record with every part of the type the report counts on (it may come from another version)."""
    if not record:
        return {}
    out = dict(record)
    for key in ("inputs", "contrasts", "warnings"):
        out[key] = out[key] if isinstance(out.get(key), list) else []
    for key in ("options", "methods", "not_measured", "outputs"):
        out[key] = out[key] if isinstance(out.get(key), dict) else {}
    out["inputs"] = [scan for scan in out["inputs"] if isinstance(scan, dict)]
    out["contrasts"] = [str(contrast) for contrast in out["contrasts"]]
    out["warnings"] = [str(warning) for warning in out["warnings"]]
    return out


def _sound_dictionary(content: dict[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {column: about for column, about in content.items() if isinstance(about, dict)}

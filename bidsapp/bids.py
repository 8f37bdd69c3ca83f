"""The raw dataset: which sessions it has, which scans they have, and which of these are used."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bidsapp.errors import NotBidsError, NothingSelectedError, TryAgainError, UsageError
from bidsapp.image.load import read_geometry
from bidsapp.labels import REFERENCE_ORDER, WITH_AGENT

#: The combined image of an MP2RAGE: T1-weighted, but the app's methods do not know noise for a background.
UNIT1 = "UNIT1"
#: A scan that is shorter along any axis shows no whole head but a slab (of the hippocampi, say), however fine.
SHORTEST_VIEW_MM = 100.0
#: What decided between two scans of a contrast, in the order of `_rank`.
RANKS = (
    "the readable one", "the one that shows the whole head", "no derivative", "no single inversion or chunk",
    "without contrast agent", "the thinnest slices", "the smallest voxels", "echoes combined, or the fitting one",
    "the latest run", "first by name",
)  # fmt: skip
NO_SCAN = "no T1w, FLAIR or T2w scan"
#: Entities that come after ``space-`` in a name, and ``space-`` itself: derivatives have their own.
_AFTER_SPACE = frozenset({"space", "split", "recording", "chunk", "seg", "res", "den", "label", "desc"})


@dataclass(frozen=True)
class ScanChoice:
    """The file used for one contrast, and why."""

    contrast: str
    path: Path
    reason: str
    not_chosen: tuple[Path, ...] = ()


@dataclass(frozen=True)
class SessionInputs:
    """One unit of work: a subject's session with the scans chosen in it.

    Attributes
    ----------
    subject, session : str
        Labels without ``sub-`` and ``ses-``; `session` is None where the dataset has no sessions.
    scans : tuple of ScanChoice
        In the order of `REFERENCE_ORDER`: the first is the reference. Empty: nothing usable, the session is skipped.
    more : tuple of ScanChoice
        Scans that only certain lesion models use: `WITH_AGENT`.
    nothing_because : str
        Why there are no scans, where there are none.
    problem : str
        Why nothing is known of its scans (a folder that may not be read), or "".
    """

    subject: str
    session: str | None
    scans: tuple[ScanChoice, ...]
    more: tuple[ScanChoice, ...] = ()
    nothing_because: str = ""
    problem: str = ""

    @property
    def name(self) -> str:
        """``sub-X`` or ``sub-X_ses-Y``."""
        return f"sub-{self.subject}" + (f"_ses-{self.session}" if self.session else "")

    @property
    def reference(self) -> ScanChoice:
        """The scan whose grid the results lie on."""
        return self.scans[0]

    @property
    def contrasts(self) -> tuple[str, ...]:
        """Contrasts at hand, reference first."""
        return tuple(scan.contrast for scan in self.scans)

    def used_by(self, channels: Sequence[str]) -> tuple[ScanChoice, ...]:
        """All scans used where a lesion model has these channels: `scans`, then those of `more` it asks for."""
        return (*self.scans, *(scan for scan in self.more if scan.contrast in channels))

    @property
    def folder(self) -> Path:
        """Folder of the session below OUT_DIR."""
        return Path(f"sub-{self.subject}", *([f"ses-{self.session}"] if self.session else []), "anat")

    @property
    def prefix(self) -> str:
        """Start of the derivatives' names, from the reference scan's."""
        return derived_prefix(self.reference.path.name)


def collect(
    bids_dir: Path,
    *,
    participant_label: Sequence[str] = (),
    session_label: Sequence[str] = (),
    filters: Mapping[str, Mapping[str, Any]] | None = None,
    database_dir: Path | None = None,
) -> list[SessionInputs]:
    """Find the sessions of a dataset and choose one scan per contrast in each.

    Parameters
    ----------
    bids_dir : Path
        Root of the raw dataset.
    participant_label, session_label : sequence of str
        Keep these only; empty keeps all.
    filters : mapping, optional
        Entities per contrast (``--bids-filter-file``).
    database_dir : Path, optional
        Keep pybids' index here, or use the one that is here. Without it the folders are read anew, which takes a
        tenth of the time and leaves nothing that two runs could lock each other out of.

    Returns
    -------
    list of SessionInputs
        Ordered by subject and session; sessions without any usable scan are included, with no scans. So are those
        whose folder cannot be read, and subjects whose folder cannot, as one session: `problem` says so.

    Raises
    ------
    NothingSelectedError
        The dataset is empty, or the labels or filters leave nothing.
    UsageError
        A filter names an entity that BIDS does not have.
    """
    problems: dict[_Unit, str] = {}
    units = _units(bids_dir, participant_label, session_label, problems)
    if not units:
        raise NothingSelectedError(_nothing_selected(bids_dir, participant_label, session_label))
    wanted = _query(filters or {})
    if database_dir is None:
        files = _walk(bids_dir, units, wanted, problems)
    else:
        files = _from_database(bids_dir, database_dir, wanted)
    order = sorted(units, key=lambda unit: (unit[0], unit[1] or ""))
    sessions = [_session(bids_dir, files, unit, problems.get(unit, "")) for unit in order]
    if not any(unit.scans for unit in sessions):
        raise NothingSelectedError(
            f"{bids_dir}: {NO_SCAN} in any selected session"
            + (
                " that --bids-filter-file lets through."
                if filters
                else " (looked for sub-*/[ses-*/]anat/*_T1w.nii.gz)."
            )
            + next((f" {unit.name}: {unit.nothing_because}" for unit in sessions if _is_told(unit)), "")
            + "".join(f"\n  {problem}" for problem in problems.values())
        )
    return sessions


def _is_told(unit: SessionInputs) -> bool:
    """Whether there is more to say of a session without scans than that."""
    return unit.nothing_because.startswith(NO_SCAN) and unit.nothing_because != NO_SCAN


def missing_labels(sessions: Iterable[SessionInputs], participant_label: Sequence[str]) -> list[str]:
    """Labels asked for that the dataset does not have."""
    present = {unit.subject for unit in sessions}
    return [label for label in participant_label if label not in present]


#: (subject, session) without their prefixes; no session where the dataset has none.
_Unit = tuple[str, str | None]


@dataclass(frozen=True)
class _File:
    """A scan that may be used, with the entities of its name."""

    path: Path
    entities: Mapping[str, Any]


def _units(
    bids_dir: Path, participant_label: Sequence[str], session_label: Sequence[str], problems: dict[_Unit, str]
) -> set[_Unit]:
    """Sessions with any file at all, and empty subjects, so that those without a usable scan are told of.

    Labels of folders that are no BIDS labels are left out: nothing else ends up in the names of what is written.
    Of those that cannot be read `problems` says why.
    """
    units: set[_Unit] = set()
    for subject, folder in _subjects(bids_dir):
        if participant_label and subject not in participant_label:
            continue
        try:
            units |= _sessions(subject, folder, session_label, problems)
        except OSError as error:
            problems[subject, None] = _unreadable(folder, error)
    return units | problems.keys()


def _sessions(subject: str, folder: Path, session_label: Sequence[str], problems: dict[_Unit, str]) -> set[_Unit]:
    """Those of one subject; raises OSError where its folder cannot be read."""
    found: set[_Unit] = set()
    for session, path in _labelled(folder, "ses"):
        if session_label and session not in session_label:
            continue
        try:
            if _has_file(path):
                found.add((subject, session))
        except OSError as error:
            problems[subject, session] = _unreadable(path, error)
    # A file of the subject as a whole (sub-X_sessions.tsv, sub-X_scans.tsv) makes no session of its own.
    if not session_label and (_has_scan(folder / "anat") if found else _has_file(folder) or _is_empty(folder)):
        found.add((subject, None))
    return found


def _subjects(bids_dir: Path) -> list[tuple[str, Path]]:
    try:
        return _labelled(bids_dir, "sub")
    except OSError as error:
        raise NotBidsError(f"{bids_dir}: cannot be read ({error}).") from error


def unusable_names(bids_dir: Path, participant_label: Sequence[str] = ()) -> list[str]:
    """Folders of subjects and sessions, below `bids_dir`, whose names are no BIDS labels: nothing in them is used."""
    found = [name for name in _names(bids_dir, "sub") if not is_label(name.partition("-")[2])]
    for subject, folder in _subjects(bids_dir):
        if not participant_label or subject in participant_label:
            with suppress(OSError):  # told elsewhere
                sessions = _names(folder, "ses")
                found += [f"sub-{subject}/{name}" for name in sessions if not is_label(name.partition("-")[2])]
    return found


def is_label(text: str) -> bool:
    """Whether a text is a label of BIDS: letters and digits (and ``+``)."""
    return text.isascii() and text.replace("+", "").isalnum()


def _labelled(folder: Path, key: str) -> list[tuple[str, Path]]:
    """(label, folder) of the folders named ``key-label``."""
    found = [(name.partition("-")[2], folder / name) for name in _names(folder, key)]
    return [(label, path) for label, path in found if is_label(label)]


def _names(folder: Path, key: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.startswith(f"{key}-") and entry.is_dir())


def _unreadable(folder: Path, error: OSError) -> str:
    why = error.strerror or error
    return f"{error.filename or folder}: cannot be read ({why}). Allow whoever runs the app to read it."


def _has_file(folder: Path) -> bool:
    """Whether there is a file in the folder or in one right below it (``anat``)."""
    with os.scandir(folder) as entries:
        inside = [entry for entry in entries if not entry.name.startswith((".", "ses-"))]
    return any(not entry.is_dir() or _holds_anything(entry.path) for entry in inside)


def _is_empty(folder: Path) -> bool:
    return not os.listdir(folder)


def _holds_anything(folder: str) -> bool:
    try:
        return any(not name.startswith(".") for name in os.listdir(folder))
    except PermissionError:  # something, it seems; where it is ``anat``, `_walk` says so
        return True


def _has_scan(folder: Path) -> bool:
    return folder.is_dir() and any(name.endswith((".nii", ".nii.gz")) for name in os.listdir(folder))


def _nothing_selected(bids_dir: Path, participants: Sequence[str], sessions: Sequence[str]) -> str:
    there = sorted({subject for subject, _ in _units(bids_dir, (), (), {})})
    found = ", ".join(f"sub-{label}" for label in there[:20]) or "none"
    asked = [*(f"sub-{label}" for label in participants), *(f"ses-{label}" for label in sessions)]
    if not asked:
        return f"{bids_dir}: no subjects found (looked for sub-*/[ses-*/]anat)."
    return f"{bids_dir}: nothing matches {', '.join(asked)}. Subjects found: {found}."


@cache
def _entities() -> dict[str, Any]:
    """The entities of BIDS as pybids knows them: each has a name and finds its value in a path."""
    from bids.layout.models import Config

    return dict(Config.load("bids").entities)


def _query(filters: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per contrast, the entities that its scans must have."""
    for contrast, wanted in filters.items():
        unknown = sorted(set(wanted) - set(_entities()))
        if unknown:
            raise UsageError(
                f"--bids-filter-file: {contrast}: {', '.join(unknown)} is no entity of BIDS; use its long name, such as"
                " 'acquisition', 'run' or 'reconstruction'."
            )
    return {contrast: dict(filters.get(contrast, {})) for contrast in REFERENCE_ORDER}


_Found = dict[tuple[str, str | None, str], list[_File]]


def _walk(
    bids_dir: Path, units: Iterable[_Unit], wanted: Mapping[str, Mapping[str, Any]], problems: dict[_Unit, str]
) -> _Found:
    """Candidate scans by (subject, session, contrast), from the names in the ``anat`` folders of the sessions."""
    out: _Found = {}
    for unit in units:
        folder = _anat(bids_dir, unit)
        try:
            names = sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            problems.setdefault(unit, _unreadable(folder, error))
            continue
        for name in names:
            contrast = name.partition(".")[0].rpartition("_")[2]
            if contrast not in wanted or not name.endswith((".nii", ".nii.gz")):
                continue
            # Only what is below the dataset: a folder above may be called sub-something, too.
            path = _OnlyPath(f"/{(folder / name).relative_to(bids_dir)}")
            read = {key: entity.match_file(path) for key, entity in _entities().items()}
            entities = {key: value for key, value in read.items() if value is not None}
            fits = all(_matches(entities.get(key), value) for key, value in wanted[contrast].items())
            if fits and _belongs(name, unit, entities):
                out.setdefault((*unit, contrast), []).append(_File(folder / name, entities))
    return out


def _belongs(name: str, unit: _Unit, entities: Mapping[str, Any]) -> bool:
    """Whether a file is a magnitude image of the session it lies in: its name has to say so, too."""
    start = f"sub-{unit[0]}_" + (f"ses-{unit[1]}_" if unit[1] else "")
    return (
        name.startswith(start)
        and (entities.get("subject"), entities.get("session")) == unit
        and entities.get("part", "mag") == "mag"
    )


@dataclass(frozen=True)
class _OnlyPath:
    """All that pybids' entities ask of a file; its own class for files costs ten times as much."""

    path: str


def _matches(found: Any, wanted: Any) -> bool:
    """Whether an entity is what a filter asks for; ``null`` asks for none and ``"*"`` for any (as in fMRIPrep)."""
    if isinstance(wanted, list):
        return any(_matches(found, each) for each in wanted)
    if wanted is None or found is None:
        return wanted is None and found is None
    if wanted == "*":
        return True
    try:
        return int(found) == int(wanted)  # run-01 is run 1
    except ValueError:
        return str(found) == str(wanted)


def _from_database(bids_dir: Path, database_dir: Path, wanted: Mapping[str, Mapping[str, Any]]) -> _Found:
    """As `_walk`, from pybids' index in `database_dir`, which is made where there is none."""
    layout = _layout(bids_dir, database_dir)
    out: _Found = {}
    for contrast, filters in wanted.items():
        query: dict[str, Any] = {"suffix": contrast, "extension": [".nii", ".nii.gz"], "scope": "raw"}
        for file in layout.get(**query | {key: _query_value(value) for key, value in filters.items()}):
            entities = file.get_entities()
            # pybids may have resolved links above the dataset; names below its root are what the user knows.
            path = bids_dir / os.path.relpath(file.path, str(layout.root))
            unit = (entities.get("subject", ""), entities.get("session"))
            if _belongs(path.name, unit, entities):
                out.setdefault((*unit, contrast), []).append(_File(path, entities))
    return out


def has_database(folder: Path) -> bool:
    """Whether pybids' index is in the folder already."""
    return (folder / "layout_index.sqlite").is_file()


def _query_value(value: Any) -> Any:
    from bids.layout import Query

    if isinstance(value, list):
        return [_query_value(item) for item in value]
    if value is None:
        return Query.NONE
    return Query.ANY if value == "*" else value


def _layout(bids_dir: Path, database_dir: Path) -> Any:
    import sqlite3

    from bids.layout import BIDSLayout, BIDSLayoutIndexer
    from sqlalchemy.exc import SQLAlchemyError

    # Metadata are not needed and take most of the time; derivatives inside the dataset are not raw data.
    indexer = BIDSLayoutIndexer(
        validate=False, index_metadata=False, ignore=["derivatives", "sourcedata", "code", ".git"]
    )
    try:
        return BIDSLayout(bids_dir, validate=False, indexer=indexer, database_path=database_dir)
    except (sqlite3.Error, SQLAlchemyError) as error:
        raise TryAgainError(
            f"{database_dir}: the index of the dataset cannot be used ({error}). Another process may be writing it: try"
            " again, or remove the folder, or leave out --bids-database-dir."
        ) from error
    except (ValueError, OSError) as error:
        raise NotBidsError(f"{bids_dir}: cannot be read as a BIDS dataset ({error}).") from error


def _session(bids_dir: Path, files: _Found, unit: _Unit, problem: str) -> SessionInputs:
    scans, more = tuple(_choose(files, unit)), tuple(_choose_with_agent(files, unit))
    if scans:
        return SessionInputs(*unit, scans, more)  # a folder may be opened that cannot be listed: then `problem` is none
    return SessionInputs(*unit, scans, more, problem or _why_nothing(_anat(bids_dir, unit)), problem)


def _anat(bids_dir: Path, unit: _Unit) -> Path:
    return bids_dir / f"sub-{unit[0]}" / (f"ses-{unit[1]}" if unit[1] else "") / "anat"


def _why_nothing(folder: Path) -> str:
    """Why a session has no usable scan: what is there may need one step only."""
    if folder.parent.is_dir() and _is_empty(folder.parent):
        return f"{NO_SCAN}: its folder is empty. In a DataLad dataset run 'datalad get {folder.parent.name}' first."
    left_out = sorted(path.name for contrast in REFERENCE_ORDER for path in folder.glob(f"*_{contrast}.nii*"))
    if left_out:
        return (
            f"{NO_SCAN} of it is used, though {left_out[0]} is there. Is it what --bids-filter-file leaves out? Is the"
            " index in --bids-database-dir older than the dataset (remove it)? Or is it named after another session?"
        )
    found = sorted(path.name for path in folder.glob(f"*_{UNIT1}.nii*"))
    if not found:
        return NO_SCAN
    return (
        f"{NO_SCAN}, only {found[0]} (MP2RAGE), whose background is noise. Remove that noise (a denoised or robust UNI"
        f" image) and save the result beside it as {found[0].partition('.')[0].removesuffix(UNIT1)}T1w.nii.gz."
    )


def _choose(files: _Found, unit: _Unit) -> list[ScanChoice]:
    """One scan per contrast of a (subject, session)."""
    choices = []
    for contrast in REFERENCE_ORDER:
        candidates = files.get((*unit, contrast), [])
        if len(candidates) == 1:  # its header need not be read
            choices.append(ScanChoice(contrast, candidates[0].path, f"the only {contrast}"))
        elif candidates:
            choices.append(_best(contrast, candidates))
    return choices


def _choose_with_agent(files: _Found, unit: _Unit) -> Iterator[ScanChoice]:
    """The T1w with a contrast agent, where there is one without, too; alone, it is the T1w."""
    found = files.get((*unit, "T1w"), [])
    with_agent = [file for file in found if "ceagent" in file.entities]
    if len(with_agent) == 1 and len(found) > 1:
        yield ScanChoice(WITH_AGENT, with_agent[0].path, "the only T1w with contrast agent")
    elif with_agent and len(with_agent) < len(found):
        yield _best(WITH_AGENT, with_agent)


def _best(contrast: str, candidates: Sequence[_File]) -> ScanChoice:
    """The first of several scans by the fixed rule, and what decided between it and the second."""
    ranked = sorted((_rank(file), file.path) for file in candidates)
    (first, path), (second, _) = ranked[:2]
    decided = next(word for word, a, b in zip(RANKS, first, second, strict=True) if a != b)
    return ScanChoice(contrast, path, f"of {len(ranked)}: {decided}", tuple(path for _, path in ranked[1:]))


def _rank(file: _File) -> tuple[Any, ...]:
    """The fixed rule for several scans of one contrast: lower is better."""
    readable, shortest_mm, edge_mm, voxel_mm3 = geometry(file.path)
    return (
        not readable,  # whatever is wrong with it, another run is the better choice
        shortest_mm < SHORTEST_VIEW_MM,
        "space" in file.entities or "desc" in file.entities,
        "inv" in file.entities or "chunk" in file.entities,  # a part of what is combined elsewhere
        "ceagent" in file.entities,  # contrast agents change T1w intensities of vessels and lesions
        edge_mm,
        voxel_mm3,
        _echo_rank(file),
        -int(file.entities.get("run", 0)),  # scans are repeated because the first was bad
        str(file.path),
    )


def _echo_rank(file: _File) -> float:
    """Without the entity a combination of all; else the first, but of a T2w the last: the first of two shows PD."""
    echo = int(file.entities.get("echo", 0))
    return 1 / echo if echo and "_T2w." in file.path.name else echo


def geometry(path: Path) -> tuple[bool, float, float, float]:
    """From a scan's header: readable; shortest side of the field of view, largest edge (mm) and volume of the voxel.

    Sizes are 0 where it is not.
    """
    from nibabel.affines import voxel_sizes

    try:
        affine, shape = read_geometry(path)
        zooms = [round(float(size), 2) for size in voxel_sizes(affine)]
        sides = [size * n for size, n in zip(zooms, shape, strict=True)]
    except Exception:  # damaged in whatever way
        return (False, 0.0, 0.0, 0.0)
    return (True, min(sides), max(zooms), round(zooms[0] * zooms[1] * zooms[2], 2))


def header_problem(scan: ScanChoice) -> str:
    """What its header and its size show to be wrong with a scan, or an empty string."""
    from bidsapp.errors import InputError

    try:
        read_geometry(scan.path)
    except InputError as error:
        return str(error)
    return ""


def derived_prefix(name: str) -> str:
    """Start of the names of what is made of a scan: its entities, but for those that come after ``space-`` in BIDS.

    Examples
    --------
    >>> derived_prefix("sub-01_acq-fast_chunk-1_T1w.nii.gz")
    'sub-01_acq-fast'
    """
    parts = name.split(".")[0].split("_")[:-1]
    return "_".join(part for part in parts if part.partition("-")[0] not in _AFTER_SPACE)

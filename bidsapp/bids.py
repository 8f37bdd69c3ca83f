"""The raw dataset: which sessions it has, which scans they have, and which of these are used."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from bidsapp.errors import NotBidsError, NothingSelectedError, TryAgainError, UsageError
from bidsapp.labels import REFERENCE_ORDER, WITH_AGENT
from bidsapp.scan_choice import ScanChoice, ScanFile, Sidecars, choose, listed, suffix_of

#: The combined image of an MP2RAGE: T1-weighted, but the app's methods do not know noise for a background.
UNIT1 = "UNIT1"
NO_SCAN = "no T1w, FLAIR or T2w scan"
BY_FILTER = "--bids-filter-file"
#: Entities that come after ``space-`` in a name, and ``space-`` itself: derivatives have their own.
_AFTER_SPACE = frozenset({"space", "split", "recording", "chunk", "seg", "res", "den", "label", "desc"})


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
    filtered : tuple of str
        Contrasts of which it has scans, but none that the filters let through.
    """

    subject: str
    session: str | None
    scans: tuple[ScanChoice, ...]
    more: tuple[ScanChoice, ...] = ()
    nothing_because: str = ""
    problem: str = ""
    filtered: tuple[str, ...] = ()

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
    files = _walk(bids_dir, units, problems) if database_dir is None else _from_database(bids_dir, database_dir)
    order = sorted(units, key=lambda unit: (unit[0], unit[1] or ""))
    sidecars = Sidecars(bids_dir)
    sessions = [_session(bids_dir, files, wanted, unit, problems.get(unit, ""), sidecars) for unit in order]
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


def emptied_by_filters(sessions: Sequence[SessionInputs]) -> list[str]:
    """Contrasts that the filters leave to none of the sessions, though some have scans of it: a slip, most often."""
    return [
        contrast
        for contrast in REFERENCE_ORDER
        if any(contrast in unit.filtered for unit in sessions)
        and not any(contrast in unit.contrasts for unit in sessions)
    ]


#: (subject, session) without their prefixes; no session where the dataset has none.
_Unit = tuple[str, str | None]


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
    """Those of one subject, empty ones too; raises OSError where its folder cannot be read."""
    found: set[_Unit] = set()
    folders = _labelled(folder, "ses")
    for session, path in folders:
        if session_label and session not in session_label:
            continue
        try:
            os.listdir(path)
            found.add((subject, session))
        except OSError as error:
            problems[subject, session] = _unreadable(path, error)
    # A file of the subject as a whole (sub-X_sessions.tsv, sub-X_scans.tsv) makes no session of its own.
    if not session_label and (not folders or _has_scan(folder / "anat")):
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
        return sorted(entry.name for entry in entries if entry.name.startswith(f"{key}-") and _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Also where it cannot be known, of a link that leads nowhere or in a circle: its subject is to be told of."""
    return (entry.is_symlink() and not os.path.exists(entry.path)) or entry.is_dir()


def _unreadable(folder: Path, error: OSError) -> str:
    where, why = error.filename or folder, error.strerror or error
    if error.errno in (errno.ENOENT, errno.ELOOP):
        return f"{where}: is a link that leads nowhere ({why}). Mend or remove it; of a DataLad dataset get it first."
    return f"{where}: cannot be read ({why}). Allow whoever runs the app to read it."


def _is_empty(folder: Path) -> bool:
    return not os.listdir(folder)


def _has_scan(folder: Path) -> bool:
    return folder.is_dir() and any(name.endswith(_READ) for name in os.listdir(folder))


def _nothing_selected(bids_dir: Path, participants: Sequence[str], sessions: Sequence[str]) -> str:
    there = sorted({subject for subject, _ in _units(bids_dir, (), (), {})})
    found = _first_names(f"sub-{label}" for label in there)
    asked = [*(f"sub-{label}" for label in participants), *(f"ses-{label}" for label in sessions)]
    if not asked:
        return f"{bids_dir}: no subjects found (looked for sub-*/[ses-*/]anat).{_where_subjects_may_be(bids_dir)}"
    # Of the subjects asked for, if it is their sessions that do not match.
    labels = sorted({session for _, session in _units(bids_dir, participants, (), {}) if session})
    of_them = f" Sessions found: {_first_names(f'ses-{label}' for label in labels)}." if sessions and labels else ""
    return f"{bids_dir}: nothing matches {', '.join(asked)}. Subjects found: {found}.{of_them}"


def _first_names(names: Iterable[str]) -> str:
    first = list(names)
    return ", ".join(first[:20]) + (f" and {len(first) - 20} more" if len(first) > 20 else "") or "none"


def _where_subjects_may_be(bids_dir: Path) -> str:
    """A sentence for who gave the folder above, or whose folders of subjects have other names."""
    if names := unusable_names(bids_dir):
        return f" {names[0]} cannot be used: labels of BIDS are letters and digits only. Rename folders and files."
    folders = sorted(path for path in bids_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
    if alike := [path.name for path in folders if path.name.lower().startswith("sub")]:
        return f" {alike[0]} is there: folders of subjects are called sub-LABEL, and so are the files in them."
    nested = [path for path in folders if path.name not in ("derivatives", "code") and any(path.glob("sub-*"))]
    return f" There are some in {nested[0]}: give that folder." if nested else ""


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


_Found = dict[tuple[str, str | None, str], list[ScanFile]]


def _walk(bids_dir: Path, units: Iterable[_Unit], problems: dict[_Unit, str]) -> _Found:
    """Scans by (subject, session, contrast), from the names in the ``anat`` folders of the sessions."""
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
            contrast = suffix_of(name)
            if contrast not in REFERENCE_ORDER or not name.endswith(_READ):
                continue
            # Only what is below the dataset: a folder above may be called sub-something, too.
            path = _OnlyPath(f"/{(folder / name).relative_to(bids_dir)}")
            read = {key: entity.match_file(path) for key, entity in _entities().items()}
            entities = {key: value for key, value in read.items() if value is not None}
            if _belongs(name, unit, entities):
                out.setdefault((*unit, contrast), []).append(ScanFile(folder / name, entities))
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


def _fits(file: ScanFile, wanted: Mapping[str, Any]) -> bool:
    return all(_matches(file.entities.get(key), value) for key, value in wanted.items())


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


def _from_database(bids_dir: Path, database_dir: Path) -> _Found:
    """As `_walk`, from pybids' index in `database_dir`, which is made where there is none."""
    layout = _layout(bids_dir, database_dir)
    out: _Found = {}
    for contrast in REFERENCE_ORDER:
        for file in layout.get(suffix=contrast, extension=list(_READ), scope="raw"):
            entities = file.get_entities()
            # pybids may have resolved links above the dataset; names below its root are what the user knows.
            path = bids_dir / os.path.relpath(file.path, str(layout.root))
            unit = (entities.get("subject", ""), entities.get("session"))
            if _belongs(path.name, unit, entities):
                out.setdefault((*unit, contrast), []).append(ScanFile(path, entities))
    return out


def has_database(folder: Path) -> bool:
    """Whether pybids' index is in the folder already."""
    return (folder / "layout_index.sqlite").is_file()


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


def _session(
    bids_dir: Path,
    files: _Found,
    wanted: Mapping[str, Mapping[str, Any]],
    unit: _Unit,
    problem: str,
    sidecars: Sidecars,
) -> SessionInputs:
    there = {contrast: files.get((*unit, contrast), []) for contrast in REFERENCE_ORDER}
    own = {contrast: [file for file in there[contrast] if _fits(file, wanted[contrast])] for contrast in there}
    left_out = {contrast: len(there[contrast]) - len(own[contrast]) for contrast in there}
    filtered = tuple(contrast for contrast in there if left_out[contrast] and not own[contrast])
    chosen = tuple(_told_of_filters(choice, left_out) for choice in choose(own, sidecars))
    scans = tuple(choice for choice in chosen if choice.contrast != WITH_AGENT)
    if scans and scans[0].contrast != "T1w":
        scans = (replace(scans[0], reason=scans[0].reason + _no_t1w_because(_anat(bids_dir, unit))), *scans[1:])
    if scans and filtered:
        reason = f"{scans[0].reason} ({BY_FILTER} leaves out every {' and '.join(filtered)})"
        scans = (replace(scans[0], reason=reason), *scans[1:])
    if scans:  # a folder may be opened that cannot be listed: then `problem` is none
        return SessionInputs(*unit, scans, chosen[len(scans) :], filtered=filtered)
    return SessionInputs(*unit, (), (), problem or _why_nothing(bids_dir, unit), problem, filtered)


def _told_of_filters(choice: ScanChoice, left_out: Mapping[str, int]) -> ScanChoice:
    """With what the filters left out among its reasons: the only scan may not be the only one there is."""
    count = left_out.get(choice.contrast, 0)
    return replace(choice, reason=f"{choice.reason} ({BY_FILTER} leaves out {count})") if count else choice


def _anat(bids_dir: Path, unit: _Unit) -> Path:
    return bids_dir / f"sub-{unit[0]}" / (f"ses-{unit[1]}" if unit[1] else "") / "anat"


def _no_t1w_because(folder: Path) -> str:
    """What is left aside where a session seems to have a T1w."""
    found = [name for name in listed(folder) if suffix_of(name) == UNIT1 and name.endswith(_READ)]
    return f" ({found[0]} is not used: the background of an MP2RAGE is noise)" if found else ""


def _why_nothing(bids_dir: Path, unit: _Unit) -> str:
    """Why a session has no usable scan: what is there may need one step only."""
    folder = _anat(bids_dir, unit)
    session = folder.parent
    if session.is_dir() and _is_empty(session):
        return f"{NO_SCAN}: its folder is empty. In a DataLad dataset run 'datalad get {session.name}' first."
    names = listed(folder)
    for contrast in REFERENCE_ORDER:
        for name in names:
            if why := _not_used_because(name, contrast, unit):
                return f"{NO_SCAN} of it is used, though {name} is there: {why}"
    for name, where in _elsewhere(session):
        if any(suffix_of(name) == contrast and name.endswith(_READ) for contrast in REFERENCE_ORDER):
            return f"{NO_SCAN} of it is used, though {where}{name} is there: scans are looked for in {folder.name}/."
    if found := [name for name in names if suffix_of(name) == UNIT1 and name.endswith(_READ)]:
        return (
            f"{NO_SCAN}, only {found[0]} (MP2RAGE), whose background is noise. Remove that noise (a denoised or robust"
            f" UNI image) and save the result beside it as {found[0].partition('.')[0].removesuffix(UNIT1)}T1w.nii.gz."
        )
    others = sorted({suffix_of(name) for name in names if name.endswith(_READ)})
    return f"{NO_SCAN}; what is there: {', '.join(others)}" if others else NO_SCAN


#: Names that scans have, and others that images of heads have.
_READ = (".nii", ".nii.gz")
_OTHER_IMAGES = (".img", ".mgz", ".mgh", ".mnc", ".nrrd", ".dcm", ".mif", ".mif.gz", ".nii.zip", ".nii.bz2")
#: What scans are called where BIDS has another name for them.
_ALIASES = {"t1w": "T1w", "t1": "T1w", "mprage": "T1w", "t2w": "T2w", "t2": "T2w", "flair": "FLAIR", "t2flair": "FLAIR"}


def _not_used_because(name: str, contrast: str, unit: _Unit) -> str:
    """What is wrong with the name of a file that may be a scan of the contrast, or an empty string."""
    suffix, extension = suffix_of(name), name.removeprefix(name.partition(".")[0])
    if _ALIASES.get(suffix.lower(), suffix) != contrast:
        return ""
    if extension not in _READ:
        if extension.lower() in _READ:
            return f"its name ends with {extension}. Rename it to {extension.lower()}."
        return "only .nii and .nii.gz are read. Convert it." if extension.lower() in _OTHER_IMAGES else ""
    if suffix != contrast:
        return f"its name ends with _{suffix}. If it is one, rename it to _{contrast}{extension}."
    start = f"sub-{unit[0]}_" + (f"ses-{unit[1]}_" if unit[1] else "")
    if not name.startswith(start) or (not unit[1] and "_ses-" in name):
        return f"it is named after another subject or session than its folder. Names in it begin with {start}"
    if "_part-" in name and "_part-mag" not in name:
        return "it is no magnitude image."
    return "does --bids-filter-file leave it out, or is the index in --bids-database-dir older (remove it)?"


def _elsewhere(session: Path) -> Iterator[tuple[str, str]]:
    """(name, folder within it) of the files of a session that lie in no ``anat``."""
    for entry in listed(session):
        if not entry.startswith("ses-") and entry != "anat":
            yield entry, ""
            yield from ((name, f"{entry}/") for name in listed(session / entry))


def derived_prefix(name: str) -> str:
    """Start of the names of what is made of a scan: its entities, but for those that come after ``space-`` in BIDS.

    Examples
    --------
    >>> derived_prefix("sub-01_acq-fast_chunk-1_T1w.nii.gz")
    'sub-01_acq-fast'
    """
    parts = name.split(".")[0].split("_")[:-1]
    return "_".join(part for part in parts if part.partition("-")[0] not in _AFTER_SPACE)

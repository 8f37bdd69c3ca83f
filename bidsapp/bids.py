"""The BIDS side: which scans a session has and which are used; names and sidecars of what is written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bidsapp import __version__
from bidsapp.errors import NotBidsError, NothingSelectedError, TryAgainError
from bidsapp.image.load import check_header
from bidsapp.image.save import replacing
from bidsapp.labels import Label

#: Order of preference for the reference scan: T1w tells tissues best, FLAIR carries the lesions.
REFERENCE_ORDER = ("T1w", "FLAIR", "T2w")
APP_NAME = "bidsapp"
BIDS_VERSION = "1.10.0"
#: Written files that the BIDS schema does not know (yet).
IGNORED = (
    "*.html", "logs/", ".work/", ".locks/", "figures", "*_xfm.*", "*_volumes.*", "*_lesions.*", "*_load.*", "*_qc.*",
    "*_changes.*", "*_lesionchanges.*", "*_provenance.json", "group_*", "*.tmp",
)  # fmt: skip


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
    """

    subject: str
    session: str | None
    scans: tuple[ScanChoice, ...]

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

    @property
    def folder(self) -> Path:
        """Folder of the session below OUT_DIR."""
        return Path(f"sub-{self.subject}", *([f"ses-{self.session}"] if self.session else []), "anat")

    @property
    def prefix(self) -> str:
        """Start of the derivatives' names: all entities of the reference scan."""
        return self.reference.path.name.split(".")[0].rpartition("_")[0]


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
        Keep pybids' index here. Without it the index lives in memory, so no two runs can lock each other.

    Returns
    -------
    list of SessionInputs
        Ordered by subject and session; sessions without any usable scan are included, with no scans.

    Raises
    ------
    NothingSelectedError
        The dataset is empty, or the labels or filters leave nothing.
    """
    layout = _layout(bids_dir, database_dir)
    units = _units(layout, participant_label, session_label)
    if not units:
        raise NothingSelectedError(_nothing_selected(bids_dir, layout, participant_label, session_label))
    files = _files(layout, filters or {})
    sessions = [
        SessionInputs(*unit, tuple(_choose(files, unit, bids_dir=bids_dir, root=str(layout.root))))
        for unit in sorted(units, key=lambda unit: (unit[0], unit[1] or ""))
    ]
    if not any(unit.scans for unit in sessions):
        raise NothingSelectedError(
            f"{bids_dir}: no T1w, FLAIR or T2w scan in any selected session"
            + (
                " that --bids-filter-file lets through."
                if filters
                else " (looked for sub-*/[ses-*/]anat/*_T1w.nii.gz)."
            )
        )
    return sessions


def missing_labels(sessions: Iterable[SessionInputs], participant_label: Sequence[str]) -> list[str]:
    """Labels asked for that the dataset does not have."""
    present = {unit.subject for unit in sessions}
    return [label for label in participant_label if label not in present]


def _layout(bids_dir: Path, database_dir: Path | None) -> Any:
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


def _units(layout: Any, participant_label: Sequence[str], session_label: Sequence[str]) -> set[tuple[str, str | None]]:
    """(subject, session) pairs with any file at all, so that sessions without a usable scan are told of."""
    units = {
        (entities["subject"], entities.get("session"))
        for entities in (file.get_entities() for file in layout.get(scope="raw"))
        if "subject" in entities
    }
    # A file of the subject as a whole (sub-X_sessions.tsv, sub-X_scans.tsv) makes no session of its own.
    with_sessions = {subject for subject, session in units if session}
    has_scan = {
        (e["subject"], e.get("session"))
        for e in (file.get_entities() for file in layout.get(scope="raw", extension=[".nii", ".nii.gz"]))
        if "subject" in e
    }
    units = {unit for unit in units if unit[1] or unit[0] not in with_sessions or unit in has_scan}
    return {
        (subject, session)
        for subject, session in units
        if (not participant_label or subject in participant_label)
        and (not session_label or session in session_label)
    }  # fmt: skip


def _nothing_selected(bids_dir: Path, layout: Any, participants: Sequence[str], sessions: Sequence[str]) -> str:
    found = ", ".join(f"sub-{label}" for label in layout.get_subjects()[:20]) or "none"
    asked = [*(f"sub-{label}" for label in participants), *(f"ses-{label}" for label in sessions)]
    if not asked:
        return f"{bids_dir}: no subjects found (looked for sub-*/[ses-*/]anat)."
    return f"{bids_dir}: nothing matches {', '.join(asked)}. Subjects found: {found}."


def _files(layout: Any, filters: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str | None, str], list[Any]]:
    """Candidate scans by (subject, session, contrast)."""
    out: dict[tuple[str, str | None, str], list[Any]] = {}
    for contrast in REFERENCE_ORDER:
        query: dict[str, Any] = {"suffix": contrast, "extension": [".nii", ".nii.gz"], "scope": "raw"}
        query |= {key: _query_value(value) for key, value in filters.get(contrast, {}).items()}
        for file in layout.get(**query):
            entities = file.get_entities()
            if "subject" in entities and entities.get("part", "mag") == "mag":
                out.setdefault((entities["subject"], entities.get("session"), contrast), []).append(file)
    return out


def _query_value(value: Any) -> Any:
    """In filter files ``null`` asks for scans without the entity and ``"*"`` for those with any (as in fMRIPrep)."""
    from bids.layout import Query

    if isinstance(value, list):
        return [_query_value(item) for item in value]
    if value is None:
        return Query.NONE
    return Query.ANY if value == "*" else value


def _choose(
    files: Mapping[tuple[str, str | None, str], list[Any]],
    unit: tuple[str, str | None],
    *,
    bids_dir: Path,
    root: str,
) -> list[ScanChoice]:
    """One scan per contrast of a (subject, session)."""
    choices = []
    for contrast in REFERENCE_ORDER:
        candidates = files.get((*unit, contrast), [])
        if not candidates:
            continue
        ranked = sorted(candidates, key=_rank)
        # pybids may have resolved links above the dataset; names below its root are what the user knows.
        paths = [bids_dir / os.path.relpath(file.path, root) for file in ranked]
        reason = f"the only {contrast}" if len(paths) == 1 else _reason(ranked)
        choices.append(ScanChoice(contrast, paths[0], reason, tuple(paths[1:])))
    return choices


def _rank(file: Any) -> tuple[Any, ...]:
    """The fixed rule for several scans of one contrast: lower is better."""
    entities = file.get_entities()
    return (
        "ceagent" in entities,  # contrast agents change T1w intensities of vessels and lesions
        *_voxel_rank(Path(file.path)),
        int(entities.get("echo", 1)),
        -int(entities.get("run", 0)),  # scans are repeated because the first was bad
        file.path,
    )


def _voxel_rank(path: Path) -> tuple[float, float]:
    """(largest edge, volume) of the voxel in mm and mm3; unreadable files last."""
    try:
        zooms = [round(float(size), 2) for size in _zooms(path)]
    except Exception:  # whatever is wrong with it, another run is the better choice
        return (float("inf"), float("inf"))
    return (max(zooms), round(zooms[0] * zooms[1] * zooms[2], 2))


def _zooms(path: Path) -> Sequence[float]:
    import nibabel as nib
    from nibabel.affines import voxel_sizes

    return tuple(voxel_sizes(nib.load(path).affine))  # type: ignore[attr-defined]


def _reason(ranked: Sequence[Any]) -> str:
    first, second = _rank(ranked[0]), _rank(ranked[1])
    words = (
        "without contrast agent",
        "the thinnest slices",
        "the smallest voxels",
        "the first echo",
        "the latest run",
        "first by name",
    )
    decided = next(word for word, a, b in zip(words, first, second, strict=True) if a != b)
    return f"of {len(ranked)}: {decided}"


def header_problem(scan: ScanChoice) -> str:
    """What its header shows to be wrong with a scan, or an empty string."""
    from bidsapp.errors import InputError

    try:
        check_header(scan.path)
    except InputError as error:
        return str(error)
    return ""


# --- what is written ------------------------------------------------------------------------------------------------


def raw_uri(path: Path, bids_dir: Path) -> str:
    """BIDS URI of a file of the input dataset (``DatasetLinks`` names it ``raw``)."""
    return f"bids:raw:{path.relative_to(bids_dir).as_posix()}"


def sha256(path: Path) -> str:
    """Checksum of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write aside, then rename: a reader never sees half a file."""
    with replacing(path) as aside:
        aside.write_text(text)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def lookup_table(labels: Sequence[Label]) -> str:
    """Text of a ``_dseg.tsv``."""
    rows = ["index\tname\tabbreviation\tcolor"]
    rows += [f"{label.index}\t{label.name}\t{label.abbreviation}\t{label.color}" for label in labels]
    return "\n".join(rows) + "\n"


def write_dataset_description(out_dir: Path, bids_dir: Path) -> None:
    """Write ``dataset_description.json``, ``.bidsignore`` and ``README`` of the derivatives."""
    name = _dataset_name(bids_dir)
    write_json(
        out_dir / "dataset_description.json",
        {
            "Name": f"{APP_NAME} derivatives of {name}",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": APP_NAME, "Version": __version__, **_container()}],
            "SourceDatasets": [{"URL": bids_dir.resolve().as_uri()}],
            "DatasetLinks": {"raw": bids_dir.resolve().as_uri()},
            "HowToAcknowledge": "Please cite the works named in the methods section of the reports.",
        },
    )
    write_text(out_dir / ".bidsignore", "\n".join(IGNORED) + "\n")
    write_text(
        out_dir / "README",
        f"Brain mask, tissues, lesions and volumes of {name}, made by {APP_NAME} {__version__}.\n"
        "Open sub-*.html for a subject's report and group.html for the group's. Images lie in sub-*/[ses-*/]anat;\n"
        "every number in *_volumes.tsv, *_lesions.tsv and *_qc.tsv is explained in the .json beside it.\n",
    )


def _dataset_name(bids_dir: Path) -> str:
    try:
        return str(json.loads((bids_dir / "dataset_description.json").read_text())["Name"])
    except (OSError, ValueError, KeyError, TypeError):
        return bids_dir.resolve().name


def _container() -> dict[str, Any]:
    """Where the app runs as an image, the image's name (set by the Dockerfile and singularity.def)."""
    tag = os.environ.get("BIDSAPP_CONTAINER")
    kind = "singularity" if os.environ.get("APPTAINER_CONTAINER") else "docker"
    return {"Container": {"Type": kind, "Tag": tag}} if tag else {}

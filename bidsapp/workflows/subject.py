"""What is done for a subject once its sessions are there: the changes between them."""

from __future__ import annotations

import csv
import multiprocessing
import os
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from datetime import datetime
from pathlib import Path

from bidsapp.config import Config
from bidsapp.interfaces import change
from bidsapp.interfaces.finished import Finished, finished_sessions, in_order
from bidsapp.workflows.plugin import KILLED, start_worker
from bidsapp.writing import write_text

#: Memory (GB) to reckon with for one comparison. Measured: 0.7 on sub-03 of `bids_ms_longitudinal`, without the
#: deformation for the brain's volume; the rest is for that and for finer scans.
MEMORY_GB = 2.0
#: Columns of sessions.tsv that may hold the date of a session.
DATE_COLUMN = "acq_time"


def subjects_to_compare(config: Config, subjects: Iterable[str]) -> list[str]:
    """Subjects with two or more finished sessions whose changes are not there yet, or are of other sessions."""
    return [subject for subject in subjects if _to_do(config.out_dir, config.bids_dir, subject) is not None]


def left_over(config: Config, subjects: Iterable[str]) -> list[str]:
    """Subjects with changes of an earlier run who have fewer than two finished sessions now."""
    there = [subject for subject in subjects if change.has_changes(config.out_dir, subject)]
    return [subject for subject in there if len(finished_sessions(config.out_dir, subject)) < 2]


def run_changes(config: Config, subjects: Iterable[str]) -> dict[str, str]:
    """Compare the sessions of each subject, several subjects at a time.

    Parameters
    ----------
    config : Config
    subjects : iterable of str
        Labels. The caller sees to it that no other run is at work on them.

    Returns
    -------
    dict
        By subject: "" where it is done, else what went wrong (the whole text is in ``logs/sub-X_changes-failed.txt``).
        The sessions' own results are not touched.
    """
    waiting = list(subjects)
    workers = min(config.nprocs, int(config.mem_gb / MEMORY_GB))
    told = _side_by_side(config, waiting, max(1, min(workers, len(waiting))))
    for subject in [subject for subject in waiting if told[subject] == KILLED]:
        told |= _side_by_side(config, [subject], 1)  # one that is killed takes those beside it along
    for subject, problem in told.items():
        _note(config.out_dir, subject, problem)
    return {subject: (told[subject].strip().splitlines() or [""])[-1] for subject in waiting}


def _side_by_side(config: Config, subjects: Sequence[str], workers: int) -> dict[str, str]:
    """The text of what went wrong, by subject; `KILLED` where its process, or one beside it, was killed."""
    told: dict[str, str] = {}
    # Each in a process of its own, which gives its memory back; "spawn", as threads do not survive a fork.
    with ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=start_worker,
        initargs=(os.getcwd(), os.getpid()),
        max_tasks_per_child=1,
    ) as pool:
        jobs = {pool.submit(_compare, config.out_dir, config.bids_dir, subject): subject for subject in subjects}
        for job in as_completed(jobs):
            try:
                told[jobs[job]] = job.result()
            except BrokenProcessPool:
                told[jobs[job]] = KILLED
            except Exception as error:
                told[jobs[job]] = f"{type(error).__name__}: {error}"
    return told


def session_dates(bids_dir: Path, subject: str) -> dict[str, datetime]:
    """Dates of a subject's sessions, by label, as far as the dataset gives them.

    From ``acq_time`` in ``sub-X_sessions.tsv``, else the earliest of the session's ``scans.tsv`` (BIDS: shifted dates
    are fine, as long as all of a subject are shifted alike).
    """
    folder = bids_dir / f"sub-{subject}"
    found: dict[str, datetime] = {}
    for path in sorted(folder.glob(f"ses-*/sub-{subject}_ses-*_scans.tsv")):
        times = [when for row in _rows(path) if (when := _moment(row.get(DATE_COLUMN))) is not None]
        if times:
            found[path.parent.name.removeprefix("ses-")] = min(times)
    for row in _rows(folder / f"sub-{subject}_sessions.tsv"):
        if (when := _moment(row.get(DATE_COLUMN))) is not None and row.get("session_id"):
            found[row["session_id"].removeprefix("ses-")] = when
    return found


def _to_do(out_dir: Path, bids_dir: Path, subject: str) -> tuple[list[Finished], dict, dict] | None:
    """(sessions in order, dates, record) of changes that have to be made; None where they are there or need not be."""
    sessions = finished_sessions(out_dir, subject)
    if len(sessions) < 2:
        return None
    known = {one.record["session"] for one in sessions}
    dates = {label: when for label, when in session_dates(bids_dir, subject).items() if label in known}
    sessions = in_order(sessions, dates)
    wanted = change.record_of_changes(sessions, dates)
    return None if change.is_current(out_dir, subject, wanted) else (sessions, dates, wanted)


def _compare(out_dir: Path, bids_dir: Path, subject: str) -> str:
    """The work, in a process of its own; the text of the error, if any."""
    to_do = _to_do(out_dir, bids_dir, subject)  # another run may have done it while we waited
    if to_do is None:
        return ""
    sessions, dates, wanted = to_do
    try:
        change.write_changes(out_dir, subject, sessions, dates, wanted)
    except Exception:
        return traceback.format_exc()
    return ""


def _note(out_dir: Path, subject: str, problem: str) -> None:
    path = out_dir / "logs" / f"sub-{subject}_changes-failed.txt"
    if problem:
        write_text(path, problem)
    else:
        path.unlink(missing_ok=True)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        # A spreadsheet's byte-order mark, or a comment in another encoding, must not cost the dates.
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
            return list(csv.DictReader(stream, delimiter="\t"))
    except (OSError, csv.Error):
        return []


def _moment(text: str | None) -> datetime | None:
    """A date of BIDS (ISO 8601, without time zone or with Z); None for ``n/a`` and whatever is no date."""
    try:
        return datetime.fromisoformat((text or "").strip()).replace(tzinfo=None)
    except ValueError:
        return None

"""``python -m benchmarks.index``: how long the app takes to find the sessions of a large dataset."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks import app
from bidsapp import bids

#: The limit for 10,000 sessions of three scans, in seconds.
LIMIT_S = 30.0


def main() -> int:
    """Make a dataset of names, collect its sessions, print the times; 1 where the limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--database", action="store_true", help="with pybids' index too: the first and the second time")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bidsapp-index-") as folder:
        root = Path(folder) / "data"
        make(root, sessions=chosen.sessions)
        seconds = timed(root, sessions=chosen.sessions)
        print(f"{chosen.sessions} sessions, folders:   {seconds:6.1f} s  ({LIMIT_S:.0f} s is the limit for 10000)")
        first = time.perf_counter()
        bids.collect(root, participant_label=("00000",))
        print(f"one subject of them:      {time.perf_counter() - first:8.3f} s")
        if chosen.database:
            for word in ("made", "used again"):
                again = timed(root, sessions=chosen.sessions, database_dir=Path(folder) / "index")
                print(f"database, {word}: {again:6.1f} s")
    return int(seconds > LIMIT_S * max(1, chosen.sessions / 10_000))


def make(root: Path, *, sessions: int) -> None:
    """A dataset of subjects with two sessions of T1w, T2w and FLAIR: empty files and their sidecars."""
    app.begin_dataset(root, "large")
    for number in range(sessions):
        subject, session = f"sub-{number // 2:05d}", f"ses-{number % 2 + 1}"
        folder = root / subject / session / "anat"
        folder.mkdir(parents=True)
        for contrast in ("T1w", "T2w", "FLAIR"):
            for ending in (".nii.gz", ".json"):
                (folder / f"{subject}_{session}_{contrast}{ending}").touch()


def timed(root: Path, *, sessions: int, database_dir: Path | None = None) -> float:
    """Seconds to collect all sessions of the dataset.

    Raises
    ------
    RuntimeError
        Not all sessions or scans were found.
    """
    start = time.perf_counter()
    found = bids.collect(root, database_dir=database_dir)
    seconds = time.perf_counter() - start
    if len(found) != sessions or any(len(session.scans) != 3 for session in found):
        raise RuntimeError(f"{len(found)} of {sessions} sessions found")
    return seconds


if __name__ == "__main__":
    raise SystemExit(main())

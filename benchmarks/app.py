"""The app as a user runs it, and the datasets it is given: what the benchmarks share."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def command(dataset: Path, out: Path, *options: str, level: str = "participant") -> list[str]:
    """The command line of a run."""
    return [sys.executable, str(REPOSITORY / "run.py"), str(dataset.resolve()), str(out.resolve()), level, *options]


def run(dataset: Path, out: Path, *options: str) -> int:
    """The participant level of a dataset; its exit code, which is not 0 where a session failed."""
    return subprocess.run(command(dataset, out, *options), check=False).returncode


def run_all(dataset: Path, out: Path, options: Sequence[str] = ()) -> None:
    """The same, where a benchmark needs every session: ends the program if one failed."""
    if ended := run(dataset, out, *options):
        raise SystemExit(f"The app ended with {ended}: see {out / 'logs'}.")


def begin_dataset(folder: Path, name: str, readme: str = "") -> Path:
    """A folder that is a BIDS dataset without subjects."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_description.json").write_text(json.dumps({"Name": name, "BIDSVersion": "1.10.0"}))
    if readme:
        (folder / "README").write_text(readme)
    return folder

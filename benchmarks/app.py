"""The app as a user runs it, and the datasets it is given: what the benchmarks share."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def arguments(about: str | None, name: str) -> argparse.ArgumentParser:
    """The command line of a benchmark: where its results go, by default ``work/<name>``, and options of the app."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "work" / name, help="derivatives and tables go here")
    parser.add_argument("app_options", nargs="*", metavar="-- OPTION", help="passed on to run.py")
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    """``--data``, for a benchmark on the real scans."""
    parser.add_argument("--data", type=Path, default=REPOSITORY / "../shared/data", help="folder of the real scans")


def real_dataset(data: Path, name: str) -> Path:
    """One of the real datasets; ends the program where it is not there."""
    if not (data / name).is_dir():
        raise SystemExit(f"{data / name}: no such folder; --data names the folder of the real scans.")
    return data / name


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

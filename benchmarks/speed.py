"""Time and memory of one T1w + FLAIR session: ``python -m benchmarks.speed``.

Runs the app in a fresh output folder, on two cores, and prints wall time, peak memory of all its processes together
and the time of every stage (from ``logs/sub-X.log``). Linux only: memory is read from ``/proc``.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import app
from benchmarks.app import REPOSITORY

#: Agreed limits for a T1w + FLAIR session on two cores (issue 3).
LIMIT_SECONDS, LIMIT_GB = 90.0, 4.0
SAMPLE_SECONDS = 0.25


@dataclass(frozen=True)
class Run:
    """What a run of the app took."""

    wall_s: float
    cpu_s: float
    peak_gb: float
    largest_process_gb: float
    exit_code: int


def main(argv: list[str] | None = None) -> int:
    """Time the app; 1 when it fails or a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=REPOSITORY / "../shared/data/bids_ms_longitudinal")
    parser.add_argument("--participant", default="20")
    parser.add_argument("--session", default="2", help="empty for a dataset without sessions")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--out", type=Path, help="keep the table and the log here")
    parser.add_argument("app_options", nargs="*", metavar="-- OPTION", help="passed on to run.py")
    args = parser.parse_args(argv)
    if not args.dataset.is_dir():
        parser.exit(1, f"{args.dataset}: no such folder; --dataset names a BIDS dataset.\n")
    cores = sorted(os.sched_getaffinity(0))[: args.cores]
    os.sched_setaffinity(0, cores)
    which = ["--participant-label", args.participant, *(["--session-label", args.session] if args.session else [])]
    with tempfile.TemporaryDirectory(prefix="bidsapp-speed-") as folder:
        out = Path(folder) / "out"
        command = app.command(args.dataset, out, *which, "--nprocs", str(len(cores)), *args.app_options)
        run = measure(command)
        if run.exit_code:
            print(f"The app ended with {run.exit_code} after {run.wall_s:.0f} s: nothing to report.", file=sys.stderr)
            return 1
        again = measure(command)
        log = out / "logs" / f"sub-{args.participant}.log"
        text = as_markdown(run, again, stages(log.read_text() if log.is_file() else ""), cores=len(cores))
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / "speed.md").write_text(text)
            if log.is_file():
                shutil.copy(log, args.out)
    print(text)
    return int(again.exit_code != 0 or run.wall_s > LIMIT_SECONDS or run.peak_gb > LIMIT_GB)


def measure(command: list[str]) -> Run:
    """Run a command and watch it and its descendants.

    Parameters
    ----------
    command : list of str

    Returns
    -------
    Run
        `peak_gb` is the largest sum, over all processes at one time, of their proportional set size (pages that they
        share count once), sampled every `SAMPLE_SECONDS`; `largest_process_gb` the largest resident set of any one.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=REPOSITORY)
    while process.poll() is None:
        peak = max(peak, sum(_proportional_bytes(pid) for pid in _family(process.pid)))
        time.sleep(SAMPLE_SECONDS)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(wall, cpu, peak / 1e9, after.ru_maxrss * 1024 / 1e9, process.returncode)


def stages(log: str) -> list[tuple[str, float]]:
    """(node, seconds) from the participant's log, longest first.

    Parameters
    ----------
    log : str
        Lines that hold ``node <name> <seconds>s``.
    """
    found = re.findall(r"\bnode (\S+) ([0-9.]+)\s?s\b", log)
    return sorted(((name, float(seconds)) for name, seconds in found), key=lambda item: -item[1])


def as_markdown(run: Run, again: Run, nodes: list[tuple[str, float]], *, cores: int) -> str:
    """Two tables: the whole, and the stages."""
    lines = [
        f"| {cores} cores | measured | limit |",
        "|---|---|---|",
        f"| wall time | {run.wall_s:.0f} s | {LIMIT_SECONDS:.0f} s |",
        f"| CPU time | {run.cpu_s:.0f} s | |",
        f"| peak memory, all processes | {run.peak_gb:.1f} GB | {LIMIT_GB:.1f} GB |",
        f"| largest process | {run.largest_process_gb:.1f} GB | |",
        f"| the same command again | {again.wall_s:.1f} s | |",
        "",
        "| stage | seconds | share of the stages' time |",
        "|---|---|---|",
    ]
    total = sum(seconds for _, seconds in nodes) or 1.0
    lines += [f"| {name} | {seconds:.1f} | {100 * seconds / total:.0f} % |" for name, seconds in nodes]
    return "\n".join(lines) + "\n"


def _family(pid: int) -> list[int]:
    """A process and all its descendants."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            todo += [int(child) for child in _read(task).split()]
    return found


def _proportional_bytes(pid: int) -> int:
    match = re.search(r"^Pss:\s+(\d+) kB", _read(Path(f"/proc/{pid}/smaps_rollup")), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has just ended
        return ""


if __name__ == "__main__":
    raise SystemExit(main())

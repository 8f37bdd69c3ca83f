#!/usr/bin/env python3
"""Many processes on one OUT_DIR, killed at random and started again: are the results those of one clean run?

    python scripts/stress.py DATA OUT [--processes 8] [--kills 8] [--every 20 60] [--seed 1] [-- OPTIONS OF THE APP]

Real sessions, so it takes as long as two runs of the dataset and what the kills cost: not a part of the tests, which
do the same with sessions that cost nothing (tests/hpc). Every process is given all sessions; each does one step at a
time and takes up to 3 GB while it works on a session. Standard library only; exit code 1 where the trees differ.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import images

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Carry out the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="folder for both results; those of a clean run are used again")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--every", type=float, nargs=2, default=(20, 60), help="seconds between kills, least and most")
    parser.add_argument("--seed", type=int, default=1)
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    chosen = parser.parse_args(words[:cut], argparse.Namespace(app_options=words[cut + 1 :]))
    chosen.out.mkdir(parents=True, exist_ok=True)
    clean, shared = chosen.out / "clean", chosen.out / "shared"
    begun = time.monotonic()
    if start(chosen.data, clean, chosen.app_options, log=chosen.out / "clean.log", nprocs=2).wait():
        print("the clean run failed: clean.log")
        return 1
    print(f"clean run: {time.monotonic() - begun:.0f} s", flush=True)
    begun = time.monotonic()
    told = stress(chosen, shared)
    print(f"{chosen.processes} processes, {told}: {time.monotonic() - begun:.0f} s", flush=True)
    left = [path for path in shared.rglob("*") if path.name in (".work", ".locks") or path.name.endswith(".tmp")]
    try:
        images.compare(clean, shared)
    except images.Failed as error:
        print(error)
        return 1
    print(f"left behind: {[str(path.relative_to(shared)) for path in left] or 'nothing'}")
    return int(bool(left))


def stress(chosen: argparse.Namespace, shared: Path) -> str:
    """Start, kill and start again; wait until all have ended well; what was done, in words."""
    chance = random.Random(chosen.seed)
    logs = [chosen.out / f"process-{number}.log" for number in range(chosen.processes)]
    running = [start(chosen.data, shared, chosen.app_options, log=log, nprocs=1) for log in logs]
    killed = 0
    # Until a session is begun, nothing but starts of Python would be killed.
    while not any(sessions_of(process.pid, shared) for process in running):
        if all(process.poll() is not None for process in running):
            break
        time.sleep(1)
    while killed < chosen.kills and any(process.poll() is None for process in running):
        time.sleep(chance.uniform(*chosen.every))
        alive = [number for number, process in enumerate(running) if process.poll() is None]
        if not alive:
            break
        busy = [number for number in alive if sessions_of(running[number].pid, shared)]
        # Most processes wait for the others' sessions: half of the kills are for those at work.
        victim = chance.choice(busy if busy and chance.random() < 0.5 else alive)
        held = ", ".join(sessions_of(running[victim].pid, shared)) or "no session"
        done = len(list(shared.rglob("*_provenance.json")))
        print(f"kill: process {victim}, at work on {held}; {done} record(s) written so far", flush=True)
        os.kill(running[victim].pid, signal.SIGKILL)
        running[victim].wait()
        running[victim] = start(chosen.data, shared, chosen.app_options, log=logs[victim], nprocs=1)
        killed += 1
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"exit codes {codes}: {chosen.out}/process-*.log")
    return f"{killed} killed and started again"


def sessions_of(pid: int, shared: Path) -> list[str]:
    """The sessions whose locks a process holds (the kernel's list names inodes)."""
    rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    inodes = {row[5].rpartition(":")[2] for row in rows if "->" not in row and row[4] == str(pid)}
    try:
        locks = sorted(os.scandir(shared / ".locks"), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    return [
        entry.name.removesuffix(".lock")
        for entry in locks
        if entry.name.startswith("sub-") and str(entry.inode()) in inodes
    ]


def start(data: Path, out: Path, options: list[str], *, log: Path, nprocs: int) -> subprocess.Popen:
    """A process of the app, its messages at the end of `log`."""
    command = [sys.executable, str(ROOT / "run.py"), str(data), str(out), "participant", "--nprocs", str(nprocs)]
    # nprocs decides on the threads of the models; they must not decide on the results, and are kept alike here.
    with log.open("a") as stream:
        return subprocess.Popen(
            [*command, "--omp-nthreads", "1", *options], stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT
        )


if __name__ == "__main__":
    raise SystemExit(main())

"""What the user sees while the app works: progress, a log per participant, the closing table."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: What the system says of a disk that is full, and of a quota that is reached.
FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT))


class Progress:
    """Messages and tables on the terminal: rich where it is one, plain lines elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.out = Console(highlight=False)

    def note(self, message: str) -> None:
        """One line (markup in file names is not interpreted)."""
        self.console.print(message, markup=False)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table: drawn on a terminal, tab-separated elsewhere, where long paths must not be cut."""
        if not self.out.is_terminal:
            for row in (header, *rows):
                print("\t".join(row).rstrip())
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, header_style="bold")
        for name in header:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.out.print(table)


class Watch:
    """Called by nipype as nodes start and end: draws the progress and writes a log per participant."""

    def __init__(
        self,
        logs: Path,
        outcomes: Mapping[str, Any],
        say: Progress,
        *,
        total: int,
        on_written: Callable[[str], None] = lambda session: None,
    ) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self.logs = logs
        self.outcomes = outcomes
        self.say = say
        self.on_written = on_written
        self.began: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.used: dict[str, str] = {}
        self.bar = Bar(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=say.console, disable=not say.console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=total)
        self.bar.start()

    def __call__(self, node: Any, status: str) -> None:
        """nipype's ``status_callback``: status is "start", "end" or "exception"; "again" before a second try.

        "used" comes before the end of a step of which it was measured what it takes.
        """
        _, session, step = node.fullname.split(".")[:3]
        name, now = self.outcomes[session].inputs.name, time.time()
        if status == "again":
            self.log(session, f"again {step}: its process, or one beside it, was killed")
            self.say.note(f"{name}: {step} is done once more: its process, or one beside it, was killed.")
            return
        if status == "used":
            cpu, memory = node.used
            self.used[node.fullname] = f", {cpu:.1f} s of CPU, {memory:.2f} GB"
            return
        if status == "start":
            self.began[node.fullname] = now
            self.first.setdefault(session, now)
            self.bar.update(self.task, description=f"{name} {step}")
            return
        self.last[session] = now
        self.bar.advance(self.task)
        if node.run_without_submitting and status == "end":  # it only passes a list on, and has no start
            return
        if status == "end" and node.fullname not in self.began:  # nipype found its result from an earlier run
            self.log(session, f"reused {step}")
            return
        seconds = now - self.began.get(node.fullname, now)
        word = "node" if status == "end" else "FAILED"
        self.log(session, f"{word} {step} {seconds:.1f}s{self.used.get(node.fullname, '')}")
        if not self.say.console.is_terminal or status != "end":
            self.say.note(f"{name}: {step} {'failed after ' if status != 'end' else ''}{seconds:.1f} s")
        if step == "write" and status == "end":
            self.on_written(session)

    def seconds(self, session: str) -> float | None:
        """Wall time of a session so far, or None where nothing ran."""
        return self.last[session] - self.first[session] if session in self.last else None

    def log(self, session: str, text: str) -> None:
        """Append to ``logs/sub-X.log``."""
        inputs = self.outcomes[session].inputs
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with (self.logs / f"sub-{inputs.subject}.log").open("a", encoding="utf-8") as stream:
            stream.write(f"{stamp} {inputs.name} {text}\n")

    def close(self) -> None:
        """Leave the terminal as it was."""
        self.bar.stop()


@dataclass(frozen=True)
class Failure:
    """A failed node: the message for the user and the whole text for the log."""

    message: str
    text: str


def read_crashes(folder: Path) -> dict[str, Failure]:
    """The first failure of each session's workflow, from nipype's crash files."""
    out: dict[str, Failure] = {}
    for path in sorted(folder.glob("crash-*.txt")):
        text = path.read_text(errors="replace")
        found = re.search(r"^Node: bidsapp\.(\w+)\.(\w+)", text, flags=re.MULTILINE)
        if found:
            out.setdefault(found[1], Failure(_message(text, found[2]), text))
    return out


def _message(text: str, node: str) -> str:
    """The error itself, from a traceback: that of a full disk, else the last ``SomeError: message`` and the rest."""
    lines = [line.strip() for line in text.splitlines()]
    full = next((line for line in lines if re.match(rf"OSError: .*({'|'.join(FULL)})", line)), "")
    if full:  # whatever came of it; nipype misses a file that it could not write
        return f"step {node}: {full}"
    starts = [i for i, line in enumerate(lines) if re.match(r"^[\w.]+(Error|Exception|Killed|Pool)\w*: ", line)]
    if not starts:
        return f"step {node} failed; see the participant's log"
    kind, _, message = lines[starts[-1]].partition(": ")
    return message if kind.startswith("bidsapp.errors.") else f"step {node}: {kind.rpartition('.')[2]}: {message}"

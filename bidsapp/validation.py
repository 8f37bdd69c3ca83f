"""The dataset before anything is done with it: bids-validator (offline), and what its verdict means for the run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bidsapp import errors
from bidsapp.config import Config
from bidsapp.words import count_of

#: Lines that are told of single files, and letters of a message: a dataset of fMRI may have thousands of problems.
MOST_TOLD = 10
LONGEST = 200
#: Data of a subject that the app never opens.
_OTHER_DATA = re.compile(r"/sub-[^/]+/(ses-[^/]+/)?(?!anat/)[a-z]+/")


@contextmanager
def beside(config: Config, say: Callable[[str], None]) -> Iterator[None]:
    """The dataset is validated beside what is done within; the verdict is first of all messages, whatever comes."""
    if config.skip_bids_validation:
        yield
        return
    validation = Validation(config.bids_dir)
    try:
        if config.bids_database_dir is not None:  # an index may be written there
            validation.verdict(say)
        try:
            yield
        except errors.AppError:
            validation.verdict(say)
            raise
        validation.verdict(say)
    finally:
        validation.stop()


def validate(bids_dir: Path, say: Callable[[str], None]) -> None:
    """`Validation`, and nothing else meanwhile."""
    validation = Validation(bids_dir)
    try:
        validation.verdict(say)
    finally:
        validation.stop()


class Validation:
    """bids-validator (offline, its schema inside) at work on a dataset, in a process of its own."""

    def __init__(self, bids_dir: Path) -> None:
        self.bids_dir = bids_dir
        self._told = False
        self._process: subprocess.Popen | None = None
        # Files, not pipes: nobody reads while it writes. `stop` closes them.
        self._answer, self._errors = (tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") for _ in "12")  # noqa: SIM115
        folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        program = shutil.which("bids-validator-deno", path=folders)
        self._no_process = "is not installed"
        try:
            if program is not None:
                self._process = subprocess.Popen(
                    [program, "--json", "--ignoreNiftiHeaders", str(bids_dir)],
                    stdout=self._answer,
                    stderr=self._errors,
                    env=os.environ | {"NO_COLOR": "1"},  # what it complains of may be shown
                )
        except OSError as error:  # as where nothing may be executed
            self._no_process = f"cannot be started ({error.strerror})"

    def verdict(self, say: Callable[[str], None]) -> None:
        """Wait for it, and tell what it found (once).

        Problems of its description end the run: then it may be no BIDS dataset. Those of other files are told, and a
        scan's own session fails later if it cannot be read: bad input must not cost the other subjects' results.

        Raises
        ------
        NotBidsError
            There is no description of the dataset that is valid.
        """
        if self._told:
            return
        self._told = True
        if self._process is None:
            say(f"bids-validator-deno {self._no_process}: the dataset was not validated.")
            return
        self._process.wait()
        answer, complaints = (_whole_text(stream) for stream in (self._answer, self._errors))
        try:
            issues = json.loads(answer)["issues"]["issues"]
        except (ValueError, KeyError, TypeError):
            first = next((line.strip() for line in complaints.splitlines() if line.strip()), "it said nothing")
            say(f"bids-validator gave no usable answer ({first[:LONGEST]}): the dataset was not validated.")
            return
        problems = [issue for issue in issues if issue.get("severity") == "error"]
        whole = [issue for issue in problems if _of_the_whole(issue)]
        single = [issue for issue in problems if not _of_the_whole(issue)]
        for line in _told(single):
            say(f"warning: {line}")
        if whole:
            told = "\n  ".join([*dict.fromkeys(_issue_text(issue) for issue in whole)][:MOST_TOLD])
            raise errors.NotBidsError(
                f"{self.bids_dir} is not valid BIDS:\n  {told}\nMend this, or run with --skip-bids-validation."
            )

    def stop(self) -> None:
        """Leave nothing behind, however the run ends."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._answer.close()
        self._errors.close()


def _whole_text(stream: IO[str]) -> str:
    stream.seek(0)
    return stream.read()


def _told(problems: list[dict[str, Any]]) -> list[str]:
    """Lines about single files: alike ones together, and of files that the app never opens their number only."""
    used = [issue for issue in problems if not _is_unused(issue)]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for issue in used:
        kind = str(issue.get("location")).rpartition("/")[2].rpartition("_")[2]
        groups.setdefault((str(issue.get("code")), str(issue.get("subCode")), kind), []).append(issue)
    lines = []
    for alike in groups.values():
        others = len({issue.get("location") for issue in alike}) - 1
        lines.append(_issue_text(alike[0]) + (f" (and {others} more alike)" if others else ""))
    left = sum(map(len, [*groups.values()][MOST_TOLD:]))
    del lines[MOST_TOLD:]
    if left:
        lines.append(f"and {count_of(left, 'more problem')} of single files; bids-validator-deno lists them all.")
    if unused := len(problems) - len(used):
        what = "what is not used here (func, sidecars, ...)"
        lines.append(f"{count_of(unused, 'problem')} of {what}; bids-validator-deno lists them.")
    return lines


def _is_unused(issue: dict[str, Any]) -> bool:
    """Whether a problem is of what the app never reads: other data, or what a sidecar should say of a scan."""
    return issue.get("code") == "SIDECAR_KEY_REQUIRED" or bool(_OTHER_DATA.match(str(issue.get("location"))))


def _of_the_whole(issue: dict[str, Any]) -> bool:
    """Whether a problem is of the dataset's description, or of no file at all.

    A field of the description that need not be there (``Authors`` as a text) makes no dataset another one.
    """
    if issue.get("code") == "JSON_SCHEMA_VALIDATION_ERROR" and issue.get("subCode") not in ("Name", "BIDSVersion"):
        return False
    return str(issue.get("location") or "").lstrip("/") in ("", "dataset_description.json")


def _issue_text(issue: dict[str, Any]) -> str:
    """One line of a problem: what follows the first of its message explains a field of BIDS in full."""
    message = str(issue.get("issueMessage") or "").strip().partition("\n")[0]
    if message.startswith("Field description:"):
        message = ""
    text = " ".join(str(part) for part in (issue.get("code"), issue.get("subCode"), message[:LONGEST]) if part)
    return f"{issue.get('location', '')}: {text}".strip()

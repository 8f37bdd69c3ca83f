"""The dataset before anything is done with it: bids-validator (offline), and what its verdict means for the run."""

from __future__ import annotations

import json
import os
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
            say(f"bids-validator gave no usable answer ({first[:200]}): the dataset was not validated.")
            return
        problems = [issue for issue in issues if issue.get("severity") == "error"]
        whole = [issue for issue in problems if _of_the_whole(issue)]
        single = [issue for issue in problems if not _of_the_whole(issue)]
        for issue in single[:10]:
            say(f"warning: {_issue_text(issue)}")
        if len(single) > 10:
            say(f"warning: and {len(single) - 10} more problems of single files; bids-validator-deno lists them all.")
        if whole:
            told = "\n  ".join(_issue_text(issue) for issue in whole[:10])
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


def _of_the_whole(issue: dict[str, Any]) -> bool:
    """Whether a problem is of the dataset's description, or of no file at all."""
    return str(issue.get("location") or "").lstrip("/") in ("", "dataset_description.json")


def _issue_text(issue: dict[str, Any]) -> str:
    text = " ".join(str(issue[key]) for key in ("code", "subCode", "issueMessage") if issue.get(key))
    return f"{issue.get('location', '')}: {text}".strip()

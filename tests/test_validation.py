"""bids-validator beside the start of the run: its verdict comes first, and it never stays behind."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from bidsapp import errors, validation
from bidsapp.config import Config

ANSWER = """#!{python}
import sys, time
sys.stderr.write("x" * 200_000)  # more than a pipe holds
sys.stdout.write({text!r} + " " * 200_000)
sys.stdout.flush()
open({pid!r}, "w").write(str(__import__("os").getpid()))
time.sleep({seconds})
"""


def issue(location: str, severity: str = "error") -> dict[str, str]:
    return {"code": "BAD", "location": location, "severity": severity, "issueMessage": "is bad"}


@pytest.fixture
def validator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a program in the place of bids-validator; its process id is in the file that is returned."""

    def install(text: str, seconds: float = 0) -> Path:
        program, pid = tmp_path / "bin" / "bids-validator-deno", tmp_path / "pid"
        program.parent.mkdir()
        program.write_text(ANSWER.format(python=sys.executable, text=text, seconds=seconds, pid=str(pid)))
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
        return pid

    return install


def config(tmp_path: Path, **options) -> Config:
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data/dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    return Config(bids_dir=tmp_path / "data", out_dir=tmp_path / "out", level="participant", **options)


def answer(*issues: dict[str, str]) -> str:
    return json.dumps({"issues": {"issues": list(issues)}})


def test_problems_of_single_files_are_told_at_the_end(validator, tmp_path: Path) -> None:
    validator(answer(issue("/sub-01/anat/x.nii.gz"), issue("/", "warning")), seconds=0.3)
    said: list[str] = []
    with validation.beside(config(tmp_path), said.append):
        assert said == []  # still at work
    assert said == ["warning: /sub-01/anat/x.nii.gz: BAD is bad"]


def test_the_verdict_comes_before_whatever_else_is_wrong(validator, tmp_path: Path) -> None:
    validator(answer(issue("/dataset_description.json")))
    with (
        pytest.raises(errors.NotBidsError, match="not valid BIDS"),
        validation.beside(config(tmp_path), print),
    ):
        raise errors.NothingSelectedError("no such subject")


def test_nothing_is_done_before_the_verdict_where_an_index_may_be_written(validator, tmp_path: Path) -> None:
    validator(answer(issue("/dataset_description.json")))
    begun = []
    with (
        pytest.raises(errors.NotBidsError),
        validation.beside(config(tmp_path, bids_database_dir=tmp_path / "index"), print),
    ):
        begun.append(True)
    assert not begun


def test_an_interrupted_run_leaves_no_validator(validator, tmp_path: Path) -> None:
    pid = validator(answer(), seconds=60)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), validation.beside(config(tmp_path), print):  # noqa: PT012
        while not pid.is_file() or not pid.read_text():
            assert time.monotonic() < start + 20
            time.sleep(0.02)
        raise KeyboardInterrupt
    assert time.monotonic() < start + 20
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_an_answer_that_is_none_is_told(validator, tmp_path: Path) -> None:
    validator("panic")
    said: list[str] = []
    validation.validate(tmp_path, said.append)
    assert len(said) == 1
    assert said[0].startswith("bids-validator gave no usable answer (xxx")


def test_a_validator_that_cannot_be_started_costs_no_run(validator, tmp_path: Path) -> None:
    validator("")
    (tmp_path / "bin" / "bids-validator-deno").write_text("#!/no/such/program\n")
    said: list[str] = []
    validation.validate(tmp_path, said.append)
    assert said == ["bids-validator-deno cannot be started (No such file or directory): the dataset was not validated."]


def test_the_first_of_its_complaints_is_told_without_colors(validator, tmp_path: Path) -> None:
    validator("panic")
    program = tmp_path / "bin" / "bids-validator-deno"
    program.write_text("#!/bin/sh\nprintf '\\n  error: %s\\n    at main.js:1\\n' \"no colors: $NO_COLOR\" >&2\n")
    said: list[str] = []
    validation.validate(tmp_path, said.append)
    assert said == ["bids-validator gave no usable answer (error: no colors: 1): the dataset was not validated."]


def test_only_the_description_ends_the_run(validator, tmp_path: Path) -> None:
    stray = [issue(f"/notes-{number}.docx") for number in range(11)]
    validator(answer(issue("/participants.tsv"), *stray))
    said: list[str] = []
    with validation.beside(config(tmp_path), said.append):
        pass
    assert said[0].startswith("warning: /participants.tsv") and "and 2 more problems" in said[10] and len(said) == 11


def test_alike_problems_are_told_in_a_line_and_those_of_other_data_counted(validator, tmp_path: Path) -> None:
    """As of a dataset of fMRI: walls of text about files that are never opened hid what matters."""
    long = "TaskName Field description: Name of the task.\nNo two tasks should have the same name.\n"
    echoes = [issue(f"/sub-0{number}/anat/sub-0{number}_echo-1_T1w.nii.gz") for number in (1, 2, 3)]
    other = [issue(f"/sub-01/{kind}/sub-01_bold.nii.gz") for kind in ("func", "ses-1/eeg")]
    sidecar = {**issue("/sub-01/anat/sub-01_inv-1_MP2RAGE.nii.gz"), "code": "SIDECAR_KEY_REQUIRED"}
    wordy = {**issue("/sub-01/anat/sub-01_T2w.nii.gz"), "issueMessage": long}
    validator(answer(sidecar, *other, *echoes, *echoes, wordy))
    said: list[str] = []
    validation.validate(tmp_path, said.append)
    assert said == [
        "warning: /sub-01/anat/sub-01_echo-1_T1w.nii.gz: BAD is bad (and 2 more alike)",
        "warning: /sub-01/anat/sub-01_T2w.nii.gz: BAD TaskName Field description: Name of the task.",
        "warning: 3 problems of what is not used here (func, sidecars, ...); bids-validator-deno lists them.",
    ]


def test_one_problem_is_no_problems(validator, tmp_path: Path) -> None:
    stray = [{**issue(f"/sub-01/anat/{number}"), "code": f"BAD{number}"} for number in range(validation.MOST_TOLD + 1)]
    validator(answer(issue("/sub-01/func/sub-01_bold.nii.gz"), *stray))
    said: list[str] = []
    validation.validate(tmp_path, said.append)
    assert said[-2].startswith("warning: and 1 more problem of single") and said[-1].startswith("warning: 1 problem of")


@pytest.mark.parametrize(("field", "ends"), [("Authors", False), ("Funding", False), ("Name", True)])
def test_a_field_that_need_not_be_there_ends_no_run(validator, tmp_path: Path, field: str, ends: bool) -> None:
    bad = {**issue("/dataset_description.json"), "code": "JSON_SCHEMA_VALIDATION_ERROR", "subCode": field}
    validator(answer(bad, bad))
    said: list[str] = []
    line = f"/dataset_description.json: JSON_SCHEMA_VALIDATION_ERROR {field} is bad"
    if ends:
        with pytest.raises(errors.NotBidsError, match="valid BIDS:\n  " + line + "\nMend"):  # once
            validation.validate(tmp_path, said.append)
    else:
        validation.validate(tmp_path, said.append)
        assert said == [f"warning: {line}"]


def test_no_description_ends_the_run(validator, tmp_path: Path) -> None:
    validator(answer({"code": "MISSING_DATASET_DESCRIPTION", "severity": "error"}))
    with pytest.raises(errors.NotBidsError, match="MISSING"), validation.beside(config(tmp_path), print):
        pass

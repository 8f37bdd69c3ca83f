"""Many sessions in one run: batches, as a process cannot have a lock of each; and what is left behind at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bidsapp import app, locks
from bidsapp.bids import SessionInputs
from bidsapp.config import Config
from bidsapp.progress import Progress
from bidsapp.scan_choice import ScanChoice


def outcomes(folder: Path, number: int) -> list[app.Outcome]:
    found = []
    for name in map(str, range(number)):
        scan = ScanChoice("T1w", folder / f"sub-{name}_T1w.nii.gz", "the only T1w")
        found.append(app.Outcome(SessionInputs(name, None, (scan,))))
    return found


def config(folder: Path, **options: Any) -> Config:
    (folder / "dataset_description.json").write_text("{}")
    (folder / "out/logs").mkdir(parents=True)
    return Config(bids_dir=folder, out_dir=folder / "out", level="participant", **options)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Batches of two; names done in each (the locks held meanwhile are looked at). Session 1 fails."""
    done: list[list[str]] = []

    def execute(some: list[app.Outcome], chosen: Config, _: Progress) -> None:
        assert len(list((chosen.out_dir / ".locks").iterdir())) == len(some)
        done.append([outcome.inputs.subject for outcome in some])
        for outcome in some:
            outcome.status = "failed" if outcome.inputs.subject == "1" else "done"

    monkeypatch.setattr(app, "BATCH", 2)
    monkeypatch.setattr(app, "execute", execute)
    return done


def test_sessions_are_done_in_batches(tmp_path: Path, batches: list[list[str]]) -> None:
    found = outcomes(tmp_path, 5)
    app._work_through(found, config(tmp_path), Progress())
    assert batches == [["0", "1"], ["2", "3"], ["4"]]
    assert [outcome.status for outcome in found] == ["done", "failed", "done", "done", "done"]


def test_no_batch_comes_after_the_first_failure_where_that_is_asked_for(
    tmp_path: Path, batches: list[list[str]]
) -> None:
    found, chosen = outcomes(tmp_path, 5), config(tmp_path, stop_on_first_crash=True)
    app._work_through(found, chosen, Progress())
    assert batches == [["0", "1"]]
    assert [outcome.status for outcome in found] == ["done", *["failed"] * 4]
    assert "run the same command again" in found[4].message
    assert (tmp_path / "out/logs/sub-4_problem.json").is_file()


def test_subjects_are_compared_in_batches(
    tmp_path: Path, batches: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bidsapp.workflows import subject

    def run_changes(chosen: Config, labels: list[str]) -> dict[str, str]:
        assert len(list((chosen.out_dir / ".locks").iterdir())) == len(labels)
        batches.append(labels)
        return dict.fromkeys(labels, "")

    monkeypatch.setattr(subject, "subjects_to_compare", lambda chosen, labels: list(labels))
    monkeypatch.setattr(subject, "run_changes", run_changes)
    told = app._compare_sessions(outcomes(tmp_path, 3), config(tmp_path), Progress())
    assert batches == [["0", "1"], ["2"]] and list(told) == ["0", "1", "2"]


def test_a_session_whose_folder_cannot_be_read_fails(tmp_path: Path) -> None:
    outcome = app._outcome_so_far(SessionInputs("1", None, (), problem="/data/sub-1: cannot be read"), config(tmp_path))
    assert (outcome.status, outcome.message) == ("failed", "/data/sub-1: cannot be read")


def test_the_locks_go_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once they are gone another process may begin, and its intermediate files must not be removed."""
    tidied: list[Path] = []
    monkeypatch.setattr(locks, "tidy", tidied.append)
    with app._at_work(tmp_path, Progress()):
        assert not tidied
    assert tidied == [tmp_path]
    with locks.take(tmp_path, "sub-01"), pytest.raises(KeyError), app._at_work(tmp_path, Progress()):
        raise KeyError
    assert tidied == [tmp_path]  # not after an error: what it left may tell why

"""The app after its sessions: changes are made for the run's subjects, and a failure is told by the exit code only."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from bidsapp import app, locks
from bidsapp.bids import SessionInputs
from bidsapp.workflows import subject


@pytest.fixture
def outcomes() -> list[app.Outcome]:
    return [app.Outcome(SessionInputs(label, session, ())) for label in ("02", "01") for session in ("1", "2")]


@pytest.fixture
def say() -> SimpleNamespace:
    told: list[str] = []
    return SimpleNamespace(note=told.append, told=told)


def test_each_subject_once_and_under_its_lock(tmp_path: Path, outcomes, say, monkeypatch):
    seen = {}

    def run(config, subjects):
        seen["subjects"] = subjects
        seen["locked"] = sorted(path.name for path in (tmp_path / locks.FOLDER).rglob("*changes*"))
        return {"02": "", "01": "ValueError: the registration failed"}

    monkeypatch.setattr(subject, "subjects_to_compare", lambda config, subjects: list(subjects))
    monkeypatch.setattr(subject, "run_changes", run)
    problems = app._compare_sessions(outcomes, SimpleNamespace(out_dir=tmp_path), say)
    assert seen["subjects"] == ["01", "02"]
    assert len(seen["locked"]) == 2
    assert not list((tmp_path / locks.FOLDER).rglob("*changes*"))
    assert problems["01"] and not problems["02"]
    assert any("sub-01" in line and "registration failed" in line for line in say.told)
    assert not any("sub-02" in line for line in say.told)


def test_nothing_to_compare_is_silent(tmp_path: Path, outcomes, say, monkeypatch):
    monkeypatch.setattr(subject, "subjects_to_compare", lambda config, subjects: [])
    monkeypatch.setattr(subject, "run_changes", lambda *_: pytest.fail("there is nothing to run"))
    assert app._compare_sessions(outcomes, SimpleNamespace(out_dir=tmp_path), say) == {}
    assert say.told == []

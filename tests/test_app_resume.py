"""What is done already is done again when anything that changes results is another."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bidsapp import __version__, app, cards, resume, writing
from bidsapp.bids import ScanChoice, SessionInputs
from bidsapp.config import Config
from bidsapp.workflows.plan import plan


@pytest.fixture
def done(tmp_path: Path) -> tuple[SessionInputs, Config, Path]:
    """A session, and the record of it that a run has left; the path is the record's."""
    scan = tmp_path / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.write_bytes(b"scan")
    (tmp_path / "dataset_description.json").write_text("{}")
    config = Config(bids_dir=tmp_path, out_dir=tmp_path / "out", level="participant")
    inputs = SessionInputs("01", None, (ScanChoice("FLAIR", scan, "the only FLAIR"),))
    record = config.out_dir / inputs.folder / f"{inputs.name}_provenance.json"
    record.parent.mkdir(parents=True)
    of_scan = {"file": scan.relative_to(tmp_path).as_posix(), "sha256": writing.sha256(scan)}
    facts = {"version": __version__, "options": config.science(), "methods": plan(inputs, config).plain()}
    record.write_text(json.dumps({**facts, "inputs": [of_scan], "outputs": {}}))
    return inputs, config, record


def edit(record: Path, key: str, **changes: Any) -> None:
    facts = json.loads(record.read_text())
    facts[key] |= changes
    record.write_text(json.dumps(facts))


def test_a_session_that_is_done_is_not_done_again(done) -> None:
    inputs, config, _ = done
    assert resume.is_current(inputs, config)


def test_another_scan_of_the_same_name(done) -> None:
    inputs, config, _ = done
    inputs.reference.path.write_bytes(b"rescanned")
    assert not resume.is_current(inputs, config)


def test_what_auto_came_to_counts_and_not_the_word(done) -> None:
    inputs, config, record = done
    edit(record, "methods", brain_extraction="template")
    assert not resume.is_current(inputs, config)


def test_another_version_of_the_packaged_network(done, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, config, _ = done
    monkeypatch.setattr(cards, "packaged_version", lambda name: "99.0")
    assert not resume.is_current(inputs, config)
    assert plan(inputs, config).networks == {"brain": "99.0", "segment": "99.0"}


def test_an_output_that_is_gone(done) -> None:
    inputs, config, record = done
    edit(record, "outputs", **{"sub-01/anat/gone.nii.gz": 7})
    assert not resume.is_current(inputs, config)


def test_a_scan_of_another_size_is_seen_without_reading_it(done) -> None:
    inputs, config, record = done
    assert resume.is_current(inputs, config, by_checksum=False)
    facts = json.loads(record.read_text())
    facts["inputs"][0]["bytes"] = 4
    record.write_text(json.dumps(facts))
    assert resume.is_current(inputs, config, by_checksum=False)
    inputs.reference.path.write_bytes(b"another")
    assert not resume.is_current(inputs, config, by_checksum=False)


def test_a_scan_that_may_not_be_read_costs_its_session_alone(done, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, config, _ = done
    monkeypatch.setattr(writing, "sha256", lambda path: (_ for _ in ()).throw(PermissionError(13, "no", str(path))))
    assert app._outcome_so_far(inputs, config).status == "waiting"


def test_a_page_older_than_the_results_is_made_again(done) -> None:
    inputs, config, record = done
    outcome = app.Outcome(inputs, "up to date")
    page = config.out_dir / "sub-01.html"
    assert app._changed_subjects([outcome], config.out_dir) == ["01"]  # there is none
    page.write_text("page")
    os.utime(page, (2e9, 2e9))
    assert app._changed_subjects([outcome], config.out_dir) == []
    os.utime(record, (2.1e9, 2.1e9))  # the run was stopped before the pages
    assert app._changed_subjects([outcome], config.out_dir) == ["01"]


def test_a_problem_that_is_no_longer_one_is_taken_off_the_page(done) -> None:
    inputs, config, _ = done
    assert app._write_problems(config.out_dir, [app.Outcome(inputs, "failed", message="no")]) == []
    assert app._write_problems(config.out_dir, [app.Outcome(inputs, "up to date")]) == ["01"]
    assert app._write_problems(config.out_dir, [app.Outcome(inputs, "up to date")]) == []

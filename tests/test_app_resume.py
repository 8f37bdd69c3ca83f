"""What is done already is done again when anything that changes results is another."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from bidsapp import __version__, app, cards, errors, locks, progress, resume, writing
from bidsapp.bids import SessionInputs
from bidsapp.config import Config
from bidsapp.scan_choice import ScanChoice
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


def test_a_session_that_cannot_be_read_is_not_taken_for_done(done, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, config, record = done
    unread = SessionInputs("02", None, (), (), "sub-02: may not be read", "sub-02: may not be read")
    empty = SessionInputs("03", None, (), (), "no scans")
    assert app._list_jobs([inputs, empty], config) == 0
    assert app._list_jobs([inputs, unread], config) == 1
    record.unlink()
    assert app._list_jobs([unread, inputs], config) == 1
    assert capsys.readouterr().out == "--participant-label 01\n"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_to_be_tried_again_and_no_fault_of_a_session(done, code: int) -> None:
    _, config, _ = done
    other = "step conform: the file is empty"
    app._check_space([other], config)
    full = f"step write: OSError: {OSError(code, os.strerror(code), 'x.nii.gz')}"
    with pytest.raises(errors.TryAgainError, match=f"{os.strerror(code)}: .*{config.out_dir}.*same command again"):
        app._check_space([other, full], config)


def test_what_went_wrong_is_of_sessions_of_the_changes_between_them_and_of_pages(done, monkeypatch) -> None:
    inputs, config, _ = done
    full = "OSError: [Errno 28] No space left on device"
    monkeypatch.setattr(app, "_compare_sessions", lambda *_: {"01": full, "02": ""})
    monkeypatch.setattr(app, "_assemble_reports", lambda *_: ["the page of sub-01 could not be made"])
    outcomes = [app.Outcome(inputs, "failed", message="step conform: the file is empty"), app.Outcome(inputs, "done")]
    problems = app._do_all(outcomes, config, None)
    assert problems == ["step conform: the file is empty", full, "the page of sub-01 could not be made"]


def test_a_full_disk_is_told_though_the_step_ended_otherwise(tmp_path: Path) -> None:
    """As nipype does: it cannot write a step's result, and then misses it."""
    (tmp_path / "crash-1.txt").write_text(
        "Node: bidsapp.sub_01.brain\n  x.gz\nOSError: [Errno 28] No space left on device\n\n"
        "During handling of the above exception, another exception occurred:\n\nFileNotFoundError: result_brain.pklz\n"
    )
    (failure,) = progress.read_crashes(tmp_path).values()
    assert failure.message == "step brain: OSError: [Errno 28] No space left on device"


def test_networks_are_checked_before_any_session(
    done, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config, record = done
    record.unlink()
    folder = tmp_path_factory.mktemp("weights") / "weights"
    shutil.copytree(cards.PACKAGED, folder)
    cards.check_packaged(folder)
    weights = cards.newest("segment", folder) / cards.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    monkeypatch.setattr(cards.check_packaged, "__defaults__", (folder,))
    monkeypatch.setattr(app, "_do_all", lambda *_: pytest.fail("sessions were begun"))
    with pytest.raises(errors.AppError, match="The installation is damaged") as caught:
        app.run(dataclasses.replace(config, out_dir=config.bids_dir / "derivatives", skip_bids_validation=True))
    assert caught.value.exit_code == 70
    shutil.rmtree(cards.newest("brain", folder))
    with pytest.raises(errors.AppError, match="no model 'brain'"):
        cards.check_packaged(folder)


def test_a_folder_that_may_not_be_written_is_the_one_that_is_named(done) -> None:
    _, config, _ = done
    (config.out_dir / "file").touch()
    chosen = dataclasses.replace(config, work_dir=config.out_dir / "file" / "work")
    with pytest.raises(errors.TryAgainError, match="/file/work: cannot be written"):
        app._make_output(chosen)


@pytest.mark.parametrize(("code", "advice"), [(errno.EACCES, True), (errno.EROFS, False)])
def test_users_are_told_of_only_where_they_matter(
    code: int, advice: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.os, "open", fail)
    with pytest.raises(errors.TryAgainError) as caught:
        locks.take(tmp_path, "index")
    assert ("of one user" in str(caught.value)) == advice and os.strerror(code) in str(caught.value)

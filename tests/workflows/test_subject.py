"""When changes are made, from which dates, in which order; and that a failure costs nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from bidsapp.config import Config
from bidsapp.interfaces import change
from bidsapp.interfaces.finished import Finished, in_order
from bidsapp.measure import cohort
from bidsapp.workflows import subject as workflow
from bidsapp.writing import write_json

SHAPE = (60, 70, 50)
AFFINE = np.diag([2.5, 2.5, 2.5, 1.0])
AFFINE[:3, 3] = (-75, -87, -62)
#: Lesions (balls) of either session: centre in voxels, radius, session.
NEW, OLD = (40, 45, 30), (20, 30, 25)


def ball(centre, radius: float) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"))
    return ((grid - np.array(centre)[:, None, None, None]) ** 2).sum(axis=0) <= radius**2


def session(out: Path, label: str, rng: np.random.Generator, *, with_new: bool) -> None:
    """The derivatives of a session of sub-01, made by hand: FLAIR alone, a head of lumps, one or two lesions."""
    anatomy = np.random.default_rng(5)  # the same in both
    brain = ball((30, 35, 25), 22)
    lumps = ndimage.gaussian_filter(anatomy.normal(size=SHAPE), 2)
    white = brain & (lumps > 0)
    flair = np.where(brain, 60 + 40 * (lumps > 0) + 300 * lumps, 0) + rng.normal(0, 1.5, SHAPE)
    lesion = ball(OLD, 3) | (ball(NEW, 3) if with_new else np.zeros(SHAPE, bool))
    flair[lesion] += 90
    folder = out / "sub-01" / f"ses-{label}" / "anat"
    folder.mkdir(parents=True)
    start = f"sub-01_ses-{label}"
    dseg = np.where(lesion, 7, np.where(white, 2, np.where(brain, 1, 0))).astype(np.uint8)
    field = nib.Nifti1Image(np.zeros((10, 10, 10, 1, 3), np.float32), np.diag([20.0, 20, 20, 1]))
    field.header.set_intent("vector")
    images = {
        "space-orig_desc-preproc_FLAIR": flair.astype(np.float32),
        "space-orig_desc-brain_mask": brain.astype(np.uint8),
        "space-orig_seg-tissue_dseg": dseg,
        "space-orig_label-lesion_mask": lesion.astype(np.uint8),
    }
    for name, data in images.items():
        nib.save(nib.Nifti1Image(data, AFFINE), folder / f"{start}_{name}.nii.gz")
    nib.save(field, folder / f"{start}_from-MNI152NLin2009aSym_to-orig_mode-image_xfm.nii.gz")
    count = 2 if with_new else 1
    rows = "".join(f"{i}\tdeep_white_matter\n" for i in range(1, count + 1))
    (folder / f"{start}_lesions.tsv").write_text(f"lesion_id\tregion\n{rows}")
    record = {
        "subject": "01",
        "session": label,
        "reference": "FLAIR",
        "contrasts": ["FLAIR"],
        "inputs": [{"contrast": "FLAIR", "voxel_size_mm": [2.5, 2.5, 2.5]}],
        "options": {"denoise": with_new, "tta": False},
        "outputs": {path.relative_to(out).as_posix(): path.stat().st_size for path in sorted(folder.iterdir())},
    }
    write_json(folder / f"{start}_provenance.json", record)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "sub-01").mkdir(parents=True)
    write_json(folder / "dataset_description.json", {"Name": "t", "BIDSVersion": "1.10.0"})
    (folder / "sub-01" / "sub-01_sessions.tsv").write_text(
        "session_id\tacq_time\nses-1\t2020-01-01T10:00:00\nses-10\t2022-01-01T10:00:00\n"
    )
    return folder


def config(data: Path, out: Path) -> Config:
    return Config(bids_dir=data, out_dir=out, level="participant", nprocs=1)


@pytest.mark.slow
def test_a_new_lesion_from_files_to_tables(dataset, tmp_path, rng):
    out = tmp_path / "out"
    session(out, "10", rng, with_new=True)
    session(out, "1", rng, with_new=False)
    options = config(dataset, out)
    assert workflow.subjects_to_compare(options, ["01", "02"]) == ["01"]
    assert workflow.run_changes(options, ["01"]) == {"01": ""}
    anat = out / "sub-01" / "anat"
    row = pd.read_csv(anat / "sub-01_changes.tsv", sep="\t").iloc[0]
    assert (row["session_from"], row["session_to"]) == ("ses-1", "ses-10")
    assert row["years"] == pytest.approx(731 / 365.25, abs=1e-3)
    assert (row["new_count"], row["stable_count"], row["enlarging_count"], row["resolved_count"]) == (1, 1, 0, 0)
    truth = ball(NEW, 3).sum() * 2.5**3
    assert row["new_mm3"] == pytest.approx(truth, rel=0.15)
    assert row["lesion_change_mm3_per_year"] == pytest.approx(row["lesion_change_mm3"] / row["years"], rel=1e-3)
    assert abs(row["brain_change_percent"]) < 0.5
    assert "processed differently (denoise)" in row["notes"]
    table = pd.read_csv(anat / "sub-01_lesionchanges.tsv", sep="\t", keep_default_na=False)
    new = table[table["status"] == "new"].iloc[0]
    expected = AFFINE @ [*NEW, 1]  # the field to MNI is empty, and the sessions lie on each other
    assert [float(new[f"mni_{axis}_mm"]) for axis in "xyz"] == pytest.approx(expected[:3].tolist(), abs=1.5)
    assert new["lesions_from"] == "n/a" and str(new["lesions_to"]) in ("1", "2")
    assert new["region"] == "deep_white_matter"
    assert json.loads((anat / "sub-01_changes.json").read_text())["new_count"]["Description"]
    assert (out / "sub-01/figures/sub-01_desc-change1to10Beside.png").is_file()
    # made once; the same bytes when made again; made again when a session changes
    assert workflow.subjects_to_compare(options, ["01"]) == []
    before = {path.name: path.read_bytes() for path in anat.iterdir()}
    (anat / "sub-01_changes.tsv").unlink()
    assert workflow.subjects_to_compare(options, ["01"]) == ["01"]
    workflow.run_changes(options, ["01"])
    assert {path.name: path.read_bytes() for path in anat.iterdir()} == before
    # taken away with a session that is gone
    assert workflow.left_over(options, ["01"]) == []
    shutil.rmtree(out / "sub-01" / "ses-10")
    assert workflow.left_over(options, ["01"]) == ["01"]
    change.remove_changes(out, "01")
    assert not list(anat.iterdir()) and workflow.left_over(options, ["01"]) == []


def test_a_failure_is_told_and_costs_nothing(dataset, tmp_path, rng):
    out = tmp_path / "out"
    for label in ("1", "10"):
        session(out, label, rng, with_new=False)
    mask = out / "sub-01/ses-10/anat/sub-01_ses-10_space-orig_desc-brain_mask.nii.gz"
    mask.write_bytes(b"broken")
    kept = sorted(path for path in (out / "sub-01").rglob("ses-*/anat/*"))
    problems = workflow.run_changes(config(dataset, out), ["01"])
    assert problems["01"]
    assert problems["01"] in (out / "logs" / "sub-01_changes-failed.txt").read_text()
    assert sorted(path for path in (out / "sub-01").rglob("ses-*/anat/*")) == kept
    assert not (out / "sub-01/anat/sub-01_desc-changes_provenance.json").exists()
    assert workflow.subjects_to_compare(config(dataset, out), ["01"]) == ["01"]  # the next run tries again


def test_dates_from_sessions_and_from_scans(tmp_path):
    folder = tmp_path / "sub-01"
    for label, times in (("a", ["2020-02-01T00:00:00", "2020-01-01T12:00:00"]), ("b", ["n/a"]), ("c", ["soon"])):
        (folder / f"ses-{label}").mkdir(parents=True)
        rows = "".join(f"anat/x{i}.nii.gz\t{time}\n" for i, time in enumerate(times))
        (folder / f"ses-{label}" / f"sub-01_ses-{label}_scans.tsv").write_text(f"filename\tacq_time\n{rows}")
    assert workflow.session_dates(tmp_path, "01") == {"a": datetime(2020, 1, 1, 12)}
    (folder / "sub-01_sessions.tsv").write_text(
        "session_id\tacq_time\nses-a\t1900-01-01\nses-b\t1901-01-01T00:00:00Z\n"
    )
    assert workflow.session_dates(tmp_path, "01") == {"a": datetime(1900, 1, 1), "b": datetime(1901, 1, 1)}
    assert workflow.session_dates(tmp_path, "nobody") == {}


def test_dates_of_a_table_from_a_spreadsheet(tmp_path):
    (tmp_path / "sub-01").mkdir()
    table = "session_id\tacq_time\tcomment\r\nses-pre\t2020-01-01\tm\u00fcde\r\nses-post\t2021-01-01\t\r\n"
    dates = {"pre": datetime(2020, 1, 1), "post": datetime(2021, 1, 1)}
    for encoding in ("utf-8-sig", "latin-1"):
        (tmp_path / "sub-01" / "sub-01_sessions.tsv").write_bytes(table.encode(encoding))
        assert workflow.session_dates(tmp_path, "01") == dates


def test_sessions_go_by_number_or_by_date():
    def one(label: str) -> Finished:
        return Finished(Path(), Path(), {"session": label})

    labels = ["10", "2", "baseline"]
    natural = sorted(map(one, labels), key=lambda s: cohort.natural(s.record["session"]))
    assert [s.record["session"] for s in natural] == ["2", "10", "baseline"]
    dates = {"baseline": datetime(2019, 1, 1), "2": datetime(2020, 1, 1), "10": datetime(2021, 1, 1)}
    assert [s.record["session"] for s in in_order(natural, dates)] == ["baseline", "2", "10"]
    dates.pop("2")  # before all that have a date by its label: before them
    assert [s.record["session"] for s in in_order(natural, dates)] == ["2", "baseline", "10"]
    assert in_order(natural, {}) == natural
    visits = [one(label) for label in ("1", "2", "3")]
    some = {"1": datetime(2022, 1, 1), "2": datetime(2020, 1, 1)}
    assert [s.record["session"] for s in in_order(visits, some)] == ["2", "3", "1"]  # no time runs backwards


@pytest.mark.parametrize(
    ("labels", "dated", "told"),
    [
        (("pre", "post"), (), True),
        (("1", "2"), (), False),
        (("1", "2"), ("1",), False),
        (("pre", "post"), ("pre", "post"), False),
    ],
)
def test_an_order_that_only_labels_without_numbers_give_is_told(labels, dated, told):
    sessions = [Finished(Path(), Path(), {"session": label}) for label in labels]
    pair = change._Pair(Path(), "sub-01", *sessions, 0, None)
    assert bool(change._undated(pair, dict.fromkeys(dated, datetime(2020, 1, 1)))) == told


def test_one_session_has_no_changes(dataset, tmp_path, rng):
    session(tmp_path / "out", "1", rng, with_new=False)
    assert workflow.subjects_to_compare(config(dataset, tmp_path / "out"), ["01"]) == []


SLOW = """
import os, time
from pathlib import Path
def compare(out_dir, bids_dir, subject):
    (Path(out_dir) / "pid").write_text(str(os.getpid()))
    time.sleep(60)
if __name__ == "slow_main":
    import sys
    from bidsapp.config import Config
    from bidsapp.workflows import subject
    import slow
    subject._compare = slow.compare
    here = Path(sys.argv[1])
    subject.run_changes(Config(bids_dir=here, out_dir=here / "out", level="participant"), ["01"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells the workers")
def test_workers_end_with_a_killed_app(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "dataset_description.json").write_text("{}")
    (tmp_path / "out").mkdir()
    run = "import runpy; runpy.run_module('slow', run_name='slow_main')"
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[2])])
    app = subprocess.Popen([sys.executable, "-c", run, str(tmp_path)], env=os.environ | {"PYTHONPATH": path})
    deadline, pid = time.monotonic() + 60, tmp_path / "out" / "pid"
    while not (pid.is_file() and pid.read_text()):
        assert app.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    worker = Path("/proc") / pid.read_text()
    assert worker.is_dir()
    os.kill(app.pid, signal.SIGKILL)
    app.wait()
    while worker.is_dir() and "State:\tZ" not in (worker / "status").read_text():
        assert time.monotonic() < deadline, "the worker lives on"
        time.sleep(0.05)


def killed(out_dir: Path, bids_dir: Path, subject: str) -> str:
    """Stands in for `_compare`: sub-02 is more than the memory holds."""
    if subject == "02":
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3)  # it is at work when sub-02 is killed
    return ""


def test_a_subject_whose_process_is_killed_costs_no_other(tmp_path, monkeypatch):
    import importlib

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # spawned processes find `killed` by its module's name
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(workflow, "_compare", importlib.import_module("test_subject").killed)
    (tmp_path / "dataset_description.json").write_text("{}")
    (tmp_path / "out/logs").mkdir(parents=True)
    chosen = Config(bids_dir=tmp_path, out_dir=tmp_path / "out", level="participant", nprocs=2, mem_gb=8)
    told = workflow.run_changes(chosen, ["01", "02", "03"])
    assert list(told) == ["01", "02", "03"] and told["01"] == told["03"] == ""
    assert told["02"].startswith("its process was killed twice, probably for lack of memory")
    assert [path.name for path in (tmp_path / "out/logs").iterdir()] == ["sub-02_changes-failed.txt"]


@pytest.mark.slow
def test_what_one_flair_does_not_show_neither_came_nor_went(dataset, tmp_path, rng):
    out = tmp_path / "out"
    session(out, "1", rng, with_new=False)
    session(out, "10", rng, with_new=True)
    path = out / "sub-01/ses-1/anat/sub-01_ses-1_space-orig_desc-preproc_FLAIR.nii.gz"
    flair = np.asarray(nib.load(path).dataobj).copy()
    flair[32:] = flair.min()  # as `normalize_pair` writes what a scan does not show; the new lesion lies there
    nib.save(nib.Nifti1Image(flair, AFFINE), path)
    assert workflow.run_changes(config(dataset, out), ["01"]) == {"01": ""}
    row = pd.read_csv(out / "sub-01/anat/sub-01_changes.tsv", sep="\t").iloc[0]
    assert (row["new_count"], row["stable_count"], row["enlarging_count"]) == (0, 1, 0)
    assert "which both FLAIRs show" in row["notes"]

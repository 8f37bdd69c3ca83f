"""The whole app on made-up heads, good and broken ones in one dataset: one run, then what it left is looked at."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from bidsapp.measure.agreement import agreement

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
GOOD = ("sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1", "sub-07")
SUB_02 = ("--participant-label", "02")
GOLDEN = ROOT / "tests" / "integration" / "golden_files.txt"


@dataclass(frozen=True)
class Finished:
    """A run of the app."""

    data: Path
    out: Path
    code: int
    stdout: str
    stderr: str
    seconds: float


def command(data: Path, out: Path, level: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), str(data), str(out), level, *arguments]


def run_app(data: Path, out: Path, *arguments: str, level: str = "participant") -> Finished:
    start = time.perf_counter()
    done = subprocess.run(command(data, out, level, *arguments), capture_output=True, text=True, check=False)
    return Finished(data, out, done.returncode, done.stdout, done.stderr, time.perf_counter() - start)


def add_odd_subjects(data: Path) -> None:
    """sub-03 to sub-06 cannot be used, each for another reason; sub-07 has an odd T2w alone, which can."""
    source = nib.load(next((data / "sub-01" / "ses-1" / "anat").glob("*_T2w.nii.gz")))
    voxels = source.get_fdata(dtype=np.float32)
    for number in range(3, 8):
        (data / f"sub-0{number}" / "anat").mkdir(parents=True)
    holes = voxels.copy()
    holes[10, 10, 10] = np.nan
    nib.save(nib.Nifti1Image(holes, source.affine), data / "sub-03/anat/sub-03_T1w.nii.gz")
    (data / "sub-04/anat/sub-04_FLAIR.nii.gz").touch()
    four = nib.Nifti1Image(np.stack([voxels, voxels], axis=-1), source.affine)
    nib.save(four, data / "sub-05/anat/sub-05_T1w.nii.gz")
    nib.save(source, data / "sub-06/anat/sub-06_PDw.nii.gz")
    # Another orientation, scaled integers, a fourth axis of one volume: odd, but whole.
    target = nib.orientations.axcodes2ornt(("L", "I", "A"))
    turned = source.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(source.affine), target))
    odd = nib.Nifti1Image(turned.get_fdata(dtype=np.float32)[..., None], turned.affine)
    odd.set_data_dtype(np.int16)
    nib.save(odd, data / "sub-07/anat/sub-07_acq-odd_run-1_T2w.nii.gz")
    with (data / "participants.tsv").open("a") as stream:
        columns = len((data / "participants.tsv").read_text().splitlines()[0].split("\t"))
        for number in range(3, 8):
            stream.write("\t".join([f"sub-0{number}", *["n/a"] * (columns - 1)]) + "\n")


@pytest.fixture(scope="module")
def finished(demo_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The participant level over all subjects."""

    def run(folder: Path) -> Finished:
        shutil.copytree(demo_dataset, folder / "data")
        add_odd_subjects(folder / "data")
        return run_app(folder / "data", folder / "out")

    return once(demo_dataset.parent / "end-to-end", run)


@pytest.fixture(scope="module")
def killed(finished: Finished, demo_dataset: Path) -> Finished:
    """sub-02 alone, killed once its brain is found, then run again; intermediate files are in ``work`` beside it."""

    def run(folder: Path) -> Finished:
        out, options = folder / "out", (*SUB_02, "--work-dir", str(folder / "work"), "--keep-work")
        kill_after("node brain", finished.data, out, *options)
        assert not list(out.rglob("*_provenance.json"))
        return run_app(finished.data, out, *options)

    return once(demo_dataset.parent / "killed", run)


def kill_after(words: str, data: Path, out: Path, *arguments: str) -> None:
    """Run the participant level of sub-02, and kill it and all it started when its log says these words."""
    process = subprocess.Popen(
        command(data, out, "participant", *arguments),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    log = out / "logs" / "sub-02.log"
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and words not in (log.read_text() if log.is_file() else ""):
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert words in log.read_text()


def once(folder: Path, run: Callable[[Path], Finished]) -> Finished:
    """A run that is done once, however many workers pytest has."""
    with FileLock(f"{folder}.lock"):
        if not (folder / "done.json").is_file():
            folder.mkdir()
            done = run(folder)
            (folder / "done.json").write_text(
                json.dumps([str(done.data), str(done.out), done.code, done.stdout, done.stderr, done.seconds])
            )
    data, out, *rest = json.loads((folder / "done.json").read_text())
    return Finished(Path(data), Path(out), *rest)


def anat(out: Path, session: str) -> Path:
    return out.joinpath(*session.split("_"), "anat")


def one(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_bad_input_fails_alone_and_by_name(finished: Finished) -> None:
    assert finished.code == 1, finished.stderr
    rows = {tuple(line.split("\t")[:2]): line for line in finished.stdout.splitlines() if line.startswith("sub-")}
    for session in GOOD:
        subject, _, name = session.partition("_")
        assert "\tdone" in rows[(subject, name)], finished.stdout
    for subject, words in {
        "sub-03": "sub-03_T1w.nii.gz: 1 voxel with NaN",
        "sub-04": "sub-04_FLAIR.nii.gz: the file is empty",
        "sub-05": "sub-05_T1w.nii.gz: 2 volumes in one file",
    }.items():
        assert "\tfailed\t" in rows[(subject, "")]
        assert words in rows[(subject, "")]
        assert words in (finished.out / f"{subject}.html").read_text()
        assert words in (finished.out / "logs" / f"{subject}.log").read_text()
        assert not list((finished.out / subject).rglob("*.nii.gz"))
    assert "skipped" in rows[("sub-06", "")]


def test_files_are_those_of_the_golden_list(finished: Finished) -> None:
    """`golden_files.txt`: after a wanted change, replace it by what this test prints."""
    found = sorted(
        path.relative_to(finished.out).as_posix()
        for session in GOOD
        for path in [
            *anat(finished.out, session).iterdir(),
            *(finished.out / session.split("_")[0] / "figures").iterdir(),
        ]
    )
    between = (finished.out / "sub-01" / "anat").iterdir()  # changes between its sessions
    found = sorted({*found, *(path.relative_to(finished.out).as_posix() for path in between)})
    print("\n".join(found))
    assert found == GOLDEN.read_text().split()


def test_nothing_half_written_and_no_intermediate_files_of_good_sessions(finished: Finished) -> None:
    assert not list(finished.out.rglob("*.tmp"))
    assert not [path for path in (finished.out / ".work").rglob("sub_0[127]*") if path.is_dir()]


def test_output_is_valid_bids(finished: Finished) -> None:
    validator = Path(sys.executable).parent / "bids-validator-deno"
    done = subprocess.run([str(validator), "--json", str(finished.out)], capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_grids_are_those_of_the_scans(finished: Finished) -> None:
    for session in GOOD:
        folder = anat(finished.out, session)
        record = json.loads(one(folder, "*_provenance.json").read_text())
        scan = nib.load(finished.data / record["inputs"][0]["file"])
        for path in folder.glob("*_space-orig_*.nii.gz"):
            img = nib.load(path)
            assert img.shape == scan.shape[:3]
            np.testing.assert_allclose(img.affine, scan.affine, atol=1e-5)


def test_numbers_can_be_recomputed_from_the_files(finished: Finished) -> None:
    for session in GOOD:
        folder = anat(finished.out, session)
        table = pd.read_csv(one(folder, "*_volumes.tsv"), sep="\t", na_values="n/a").iloc[0]
        voxel = abs(np.linalg.det(nib.load(one(folder, "*_space-orig_desc-brain_mask.nii.gz")).affine[:3, :3]))

        def total(pattern: str, folder: Path = folder, voxel: float = voxel) -> float:
            return float(nib.load(one(folder, pattern)).get_fdata().sum() * voxel)

        assert table["brain_mask_mm3"] == pytest.approx(total("*_space-orig_desc-brain_mask.nii.gz"), rel=1e-4)
        assert table["csf_mm3"] == pytest.approx(total("*_space-orig_label-CSF_probseg.nii.gz"), rel=1e-4)
        if not np.isnan(table["gm_mm3"]):
            assert table["gm_mm3"] == pytest.approx(total("*_space-orig_label-GM_probseg.nii.gz"), rel=1e-4)
        if not np.isnan(table["lesion_mm3"]):
            assert table["lesion_mm3"] == pytest.approx(total("*_space-orig_label-lesion_mask.nii.gz"), rel=1e-4)
            lesions = pd.read_csv(one(folder, "*_lesions.tsv"), sep="\t")
            assert lesions["volume_mm3"].sum() == pytest.approx(table["lesion_mm3"], rel=1e-3)


def test_network_measures_all_from_any_contrast(finished: Finished) -> None:
    for session in ("sub-02_ses-1", "sub-07"):  # FLAIR alone, T2w alone
        row = pd.read_csv(one(anat(finished.out, session), "*_volumes.tsv"), sep="\t", na_values="n/a").iloc[0]
        assert row.notna().all()
        assert row["gm_mm3"] > row["left_cerebral_cortex_mm3"] + row["right_cerebral_cortex_mm3"] > 200_000
        assert 0.5 < row["left_thalamus_mm3"] / row["right_thalamus_mm3"] < 2
        structures = nib.load(one(anat(finished.out, session), "*_space-orig_seg-structures_dseg.nii.gz"))
        voxel = abs(np.linalg.det(structures.affine[:3, :3]))
        voxels = int(np.count_nonzero(np.asarray(structures.dataobj) == 10))
        assert row["left_thalamus_mm3"] == pytest.approx(voxels * voxel, rel=1e-4)
        middle = nib.affines.apply_affine(structures.affine, np.argwhere(np.asarray(structures.dataobj) == 10).mean(0))
        other = nib.affines.apply_affine(structures.affine, np.argwhere(np.asarray(structures.dataobj) == 49).mean(0))
        assert middle[0] + 8 < other[0]  # left is left


def test_unsupervised_models_say_what_they_cannot_measure(killed: Finished, tmp_path: Path) -> None:
    """FLAIR alone: the mixture does not tell grey from white matter. What other models share is not computed again."""
    which = (*SUB_02, "--output-spaces", "orig", "--skip-bids-validation", "-w", str(killed.out.parent / "work"))
    done = run_app(killed.data, tmp_path, "--tissue-model", "mixture", "--lesion-model", "outlier", *which)
    assert done.code == 0, done.stderr
    assert "reused brain" in (tmp_path / "logs" / "sub-02.log").read_text()
    row = pd.read_csv(one(anat(tmp_path, "sub-02_ses-1"), "*_volumes.tsv"), sep="\t", na_values="n/a").iloc[0]
    assert np.isnan(row["gm_mm3"]) and row["brain_mm3"] > 0 and row["lesion_mm3"] > 0
    record = json.loads(one(anat(tmp_path, "sub-02_ses-1"), "*_provenance.json").read_text())
    assert record["not_measured"]["gm_mm3"]
    assert record["methods"]["tissue_model"] == "mixture" and record["methods"]["lesion_model"] == "outlier"


@pytest.mark.parametrize(
    ("session", "pattern", "truth", "least"),
    [
        ("sub-01_ses-1", "*_space-orig_desc-brain_mask.nii.gz", "*_desc-brain_mask.nii.gz", 0.93),
        ("sub-02_ses-1", "*_space-orig_desc-brain_mask.nii.gz", "*_desc-brain_mask.nii.gz", 0.90),
        ("sub-01_ses-1", "*_space-orig_label-lesion_mask.nii.gz", "*_label-lesion_mask.nii.gz", 0.40),
    ],
)
def test_demo_truth_is_found(finished: Finished, session: str, pattern: str, truth: str, least: float) -> None:
    folder = anat(finished.data / "derivatives" / "truth", session)
    ours, reference = nib.load(one(anat(finished.out, session), pattern)), nib.load(one(folder, truth))
    result = agreement(
        np.asarray(reference.dataobj) > 0,
        np.asarray(ours.dataobj) > 0,
        voxel_size_mm=tuple(float(size) for size in ours.header.get_zooms()[:3]),
    )
    assert result.dsc >= least


def test_evaluate_compares_the_run_with_the_demo_truth(finished: Finished, tmp_path: Path) -> None:
    truth = finished.data / "derivatives" / "truth"
    command = [sys.executable, str(ROOT / "run.py"), "evaluate", str(truth), str(finished.out), "--out", str(tmp_path)]
    done = subprocess.run([*command, "--pictures", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "evaluation.tsv", sep="\t", na_values="n/a", keep_default_na=False)
    assert set(rows["segmentation"]) == {"label-brain", "label-lesion", "seg-tissue"} and rows["problem"].isna().all()
    cases = rows["participant_id"] + "_" + rows["session_id"]
    assert set(cases) == {"sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"}
    assert rows.loc[rows["segmentation"] == "label-brain", "dsc"].min() >= 0.9
    page = (tmp_path / "evaluation.html").read_text()
    assert page.count("Drawn on sub-0") == 2


def test_second_run_redoes_nothing(finished: Finished) -> None:
    good = ("--participant-label", "01", "02", "07")
    before = checksums(finished.out)
    again = run_app(finished.data, finished.out, *good)
    assert again.code == 0, again.stderr
    assert again.stdout.count("up to date") == len(GOOD)
    assert again.seconds < finished.seconds / 10
    assert checksums(finished.out) == before


def test_killed_run_is_taken_up_again(finished: Finished, killed: Finished) -> None:
    """Alone, in another folder, killed without warning in the middle of the work: the end is the same, to the byte."""
    assert killed.code == 0, killed.stderr
    log = (killed.out / "logs" / "sub-02.log").read_text()
    for step in ("conform_FLAIR", "brain"):  # what was finished is not run again
        assert log.count(f"node {step} ") == 1
        assert f"reused {step}" in log
    ours, theirs = checksums(killed.out), checksums(finished.out)
    names = [name for name in ours if name.startswith("sub-02")]
    assert len(names) > 20
    assert {name: ours[name] for name in names} == {name: theirs.get(name) for name in names}


def test_group_level_needs_the_derivatives_only(finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.out, out, ignore=shutil.ignore_patterns("*.nii.gz", ".work"))
    done = run_app(tmp_path / "no-raw-data", out, level="group")
    assert done.code == 0, done.stderr
    table = pd.read_csv(out / "group_volumes.tsv", sep="\t", na_values="n/a", dtype={"session_id": str})
    assert len(table) == len(GOOD)
    assert table["brain_mm3"].notna().all()
    assert "sub-07" in (out / "group.html").read_text()


def test_reports_only_makes_the_same_page(finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.out, out, ignore=shutil.ignore_patterns("*.nii.gz", ".work"))
    (out / "sub-01.html").unlink()
    done = run_app(finished.data, out, "--reports-only", "--participant-label", "01")
    assert done.code == 0, done.stderr
    assert (out / "sub-01.html").is_file()


def checksums(out: Path) -> dict[str, str]:
    """Of everything but the logs, which have times in them, and the pages' links to others, which may not be there."""
    links = re.compile(b"<!-- pages -->.*?<!-- /pages -->", re.DOTALL)
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(links.sub(b"", path.read_bytes())).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.relative_to(out).parts[0] not in ("logs", ".work")
    }

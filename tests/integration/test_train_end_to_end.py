"""``bidsapp train`` on the demo dataset, a few steps: prepare, cross-validate, judge, and use the model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bidsapp.models import segment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def train(data: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, str(ROOT / "run.py"), "train", str(data), str(out), "--labels", str(data / "derivatives/truth"),
        "--session-label", "1", "--folds", "2", "--steps", "1", "--synthetic", "0", "--skip-bids-validation",
        "--brain-extraction", "network", "--workers", "0",  # seconds instead of minutes
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def data(demo_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo dataset without its T2w: one scan less to prepare."""
    folder = tmp_path_factory.mktemp("data") / "bids"
    return Path(shutil.copytree(demo_dataset, folder, ignore=shutil.ignore_patterns("*_T2w.*", "ses-2")))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train") / "out"
    done = train(data, out)
    assert done.returncode == 0, done.stderr
    return out


def test_each_subject_was_predicted_by_a_model_that_never_saw_it(trained: Path) -> None:
    predicted = sorted(path.name.split("_")[0] for path in (trained / "crossvalidation/trained").rglob("*_mask.nii.gz"))
    assert predicted == ["sub-01", "sub-02"]
    for number in (1, 2):
        card = json.loads((trained / f"folds/fold-{number}/model/model.json").read_text())
        assert card["training"]["begun_from"] == f"segment {segment.packaged().card['version']}"


def test_the_held_out_predictions_were_judged(trained: Path, data: Path) -> None:
    table = pd.read_csv(trained / "crossvalidation/evaluation/evaluation.tsv", sep="\t", na_values="n/a")
    assert set(table["prediction"]) == {"trained", "before"} and len(table) == 4
    # The network finds the demo's lesions before and after a small step.
    assert table["dsc"].between(0.2, 1).all()
    row = table[(table["prediction"] == "trained") & (table["participant_id"] == "sub-02")].iloc[0]
    predicted = next((trained / "crossvalidation/trained/sub-02").rglob("*_mask.nii.gz"))
    truth = next((data / "derivatives/truth/sub-02").rglob(predicted.name))
    one, two = (np.asarray(nib.load(path).dataobj) > 0 for path in (predicted, truth))
    assert row["dsc"] == pytest.approx(2 * (one & two).sum() / (one.sum() + two.sum()), abs=1e-4)
    assert (trained / "crossvalidation/evaluation/evaluation.html").stat().st_size > 10_000


def test_the_model_tells_where_it_comes_from_and_how_good_it_is(trained: Path) -> None:
    card = json.loads((trained / "model/model.json").read_text())
    assert card["training"]["contrasts"] == {"sub-01_ses-1": ["T1w", "FLAIR"], "sub-02_ses-1": ["FLAIR"]}
    assert card["figures"]["held-out subjects"] and card["lesion_kind"] == "white-matter"
    assert card["channels"] == ["T1w", "T2w", "FLAIR"]  # those of what it began with


def test_the_same_command_again_trains_nothing_anew(trained: Path, data: Path) -> None:
    before = (trained / "folds/all/checkpoint.safetensors").stat().st_mtime_ns
    done = train(data, trained)
    assert done.returncode == 0 and "2 case(s) are prepared" in done.stderr
    assert (trained / "folds/all/checkpoint.safetensors").stat().st_mtime_ns == before

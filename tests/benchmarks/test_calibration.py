"""The calibration benchmark on maps whose truth is known."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from benchmarks import calibration


def write(folder: Path, name: str, data: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data, np.eye(4)).to_filename(folder / name)


def test_tables_say_how_often_the_maps_are_right(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    for name, dataset, subject, _ in calibration.CASES:
        probability = rng.random((30, 30, 30), dtype=np.float32)
        anat = out / name / subject / "anat"
        write(anat, f"{subject}_space-orig_label-lesion_probseg.nii.gz", probability)
        half = name == "bids_ms_mni"  # that one is half as often right as it says
        truth = rng.random(probability.shape) < probability / (1 + half)
        folder = data / dataset / "derivatives/manual" / subject / "anat"
        if half or not folder.exists() or dataset == "bids_flair_thick":
            write(folder, f"{subject}_label-lesion_mask.nii.gz", truth.astype(np.uint8))
    assert calibration.main(["--data", str(data), "--out", str(out)]) == 0
    table = (out / "calibration.md").read_text()
    assert capsys.readouterr().out.strip() == table.strip()
    by_case = {
        tuple(line.split(" | ")[:2]): float(line.split(" | ")[-1].strip(" |")) for line in table.splitlines()[2:]
    }
    assert len(by_case) == len(calibration.CASES)
    assert by_case["| sub-26", "T1w+T2w+FLAIR"] == pytest.approx(0.275, abs=0.03)
    assert by_case["| sub-104252", "FLAIR"] < 0.03


def test_a_missing_map_is_said_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "data").mkdir()
    assert calibration.main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 1
    assert "no map of lesion probability" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        calibration.main(["--data", str(tmp_path / "none")])

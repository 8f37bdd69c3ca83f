"""``bidsapp evaluate`` from the command line, on small made-up derivatives."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bidsapp import evaluate
from bidsapp.cli import main
from bidsapp.derivatives import find_labels, grid_of, label_file, pair_labels, read_lookup
from bidsapp.errors import InputError
from bidsapp.evaluate.options import Options, _parser, distinct_names
from bidsapp.evaluate.scans import _local, _raw
from bidsapp.measure.raters import staple

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (14, 15, 16)
AFFINE = np.array([[-0.9, 0, 0, 60.0], [0, 1.1, 0, -50.0], [0, 0, 3, -20.0], [0, 0, 0, 1]])


def mask(*boxes: tuple[slice, slice, slice]) -> np.ndarray:
    out = np.zeros(SHAPE, np.uint8)
    for box in boxes:
        out[box] = 1
    return out


BIG, SMALL, FAR = np.s_[2:6, 2:6, 2:6], np.s_[10:11, 10:12, 10:11], np.s_[12:13, 2:3, 12:14]
TRUTH = mask(BIG, SMALL)


def write(folder: Path, name: str, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    subject, *rest = name.split("_")
    session = rest[0] if rest[0].startswith("ses-") else ""
    path = folder / subject / session / "anat" / f"{name}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def table(out: Path, name: str = "evaluation") -> pd.DataFrame:
    return pd.read_csv(out / f"{name}.tsv", sep="\t", na_values="n/a", keep_default_na=False)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """References of three subjects and predictions that find the large lesion, and in sub-02 one too many."""
    reference, prediction = tmp_path / "manual", tmp_path / "ours"
    for subject in ("01", "02", "03"):
        write(reference, f"sub-{subject}_space-orig_label-lesion_mask", TRUTH)
        found = mask(BIG, FAR) if subject == "02" else mask(BIG)
        write(prediction, f"sub-{subject}_space-orig_label-lesion_mask", found)
    return reference, prediction


def run(*arguments: object) -> int:
    return main(["evaluate", *map(str, arguments)])


# --- the whole --------------------------------------------------------------------------------------------------------


def test_numbers_of_a_whole_run_by_hand(two, tmp_path):
    reference, prediction = two
    assert run(reference, prediction) == 0
    out = prediction / "evaluation"
    rows = table(out).set_index("participant_id")
    voxel = 0.9 * 1.1 * 3
    assert rows.loc["sub-01", "dsc"] == pytest.approx(2 * 64 / (66 + 64))
    assert rows.loc["sub-02", "ppv"] == pytest.approx(64 / 66)
    assert rows.loc["sub-02", ["lesion_tpr", "lesion_ppv"]].tolist() == [0.5, 0.5]
    assert rows.loc["sub-01", "volume_difference_mm3"] == pytest.approx(-2 * voxel)
    # The missed lesion is 2 voxels; from its nearer voxel (10, 10, 10) to the big one's corner (5, 5, 5).
    far = max(np.linalg.norm(np.array([0.9, 1.1, 3]) * d) for d in ((5, 5, 5), (5, 6, 5)))
    assert rows.loc["sub-01", "hd_mm"] == pytest.approx(far)
    assert rows.loc["sub-01", "problem"] is np.nan or pd.isna(rows.loc["sub-01", "problem"])
    lesions = table(out, "evaluation_lesions")
    missed = lesions[(lesions["lesion_of"] == "reference") & (lesions["found"] == "no")]
    assert missed["volume_mm3"].tolist() == pytest.approx([2 * voxel] * 3)
    x, y, z = (AFFINE @ [10, 10.5, 10, 1])[:3]
    assert missed.iloc[0][["x_mm", "y_mm", "z_mm"]].tolist() == pytest.approx([x, y, z])
    assert table(out, "evaluation_summary").set_index("measure").loc["lesion_ppv", "median"] == 1
    assert table(out, "evaluation_volumes").iloc[0]["n"] == 3
    for path in out.glob("*.tsv"):
        assert set(table(out, path.stem).columns) == set(pd.read_json(path.with_suffix(".json"), typ="series").index)
    page = (out / "evaluation.html").read_text()
    assert "No scan was found" in page and "data:image/png" in page and "://" not in page


def test_the_benchmark_gives_the_same_figures(two):
    from benchmarks.accuracy import Case

    reference, prediction = two
    run(reference, prediction)
    row = table(prediction / "evaluation").set_index("participant_id").loc["sub-02"]
    theirs = Case(
        dataset="", case="", structure="", contrasts="", reference=TRUTH, prediction=mask(BIG, FAR),
        voxel_size_mm=np.array([0.9, 1.1, 3]), lesion_wise=True,
    ).row()  # fmt: skip
    shared = [name for name in row.index if name in theirs]
    assert len(shared) == 16
    assert row[shared].tolist() == pytest.approx([theirs[name] for name in shared], rel=1e-6)  # a header is float32


def test_all_that_both_have_is_compared_masks_first(two):
    reference, prediction = two
    for folder in two:
        write(folder, "sub-01_space-orig_seg-tissue_dseg", TRUTH)
        write(folder, "sub-01_space-orig_desc-brain_mask", TRUTH)
    write(reference, "sub-01_space-orig_label-ventricle_mask", TRUTH)
    assert run(reference, prediction) == 0
    rows = table(prediction / "evaluation")
    assert list(dict.fromkeys(rows["segmentation"])) == ["label-brain", "label-lesion", "seg-tissue"]
    assert (
        "Not compared, since not all predictions have it: label-ventricle."
        in (prediction / "evaluation" / "evaluation.html").read_text()
    )


def test_two_runs_give_the_same_bytes(two, tmp_path):
    for name in ("a", "b"):
        run(*two, "--out", tmp_path / name, "--names", "ours")
    first = {path.name: path.read_bytes() for path in sorted((tmp_path / "a").iterdir())}
    assert len(first) > 8
    assert first == {path.name: path.read_bytes() for path in sorted((tmp_path / "b").iterdir())}


def test_a_against_b_and_groups(tmp_path, rng):
    for i in range(8):
        name = f"sub-{i:02d}_space-orig_label-lesion_mask"
        write(tmp_path / "manual", name, TRUTH)
        write(tmp_path / "a", name, mask(np.s_[2:6, 2:6, 2 : 4 + i % 2]))
        write(tmp_path / "b", name, mask(np.s_[2:6, 2:6, 2:6], np.s_[7 + i % 3 : 10, 1, 1]))
    participants = tmp_path / "participants.tsv"
    participants.write_text("participant_id\tsite\n" + "".join(f"sub-{i:02d}\t{'xy'[i % 2]}\n" for i in range(8)))
    out = tmp_path / "out"
    options = ["--names", "first", "<b>&", "--out", out, "--participants", participants, "--group", "site"]
    assert run(tmp_path / "manual", tmp_path / "a", tmp_path / "b", *options) == 0
    tests = table(out, "evaluation_tests")
    paired = tests[tests["test"] == "Wilcoxon signed-rank"].set_index("measure")
    assert paired.loc["dsc", "comparison"] == "<b>& against first"
    assert paired.loc["dsc", "p"] == pytest.approx(2 / 2**8) and paired.loc["dsc", "p_holm"] >= paired.loc["dsc", "p"]
    groups = tests[(tests["test"] == "Wilcoxon rank-sum") & (tests["prediction"] == "first")].set_index("measure")
    assert groups.loc["dsc", "n"] == 4 and groups.loc["dsc", "comparison"] == "y against x"
    page = (out / "evaluation.html").read_text()
    assert "<b>&" not in page and "&lt;b&gt;&amp;" in page


def test_raters_are_fused(tmp_path, rng):
    raters = [mask(BIG, SMALL), mask(BIG), mask(np.s_[2:6, 2:6, 2:7])]
    for i, data in enumerate(raters):
        write(tmp_path / f"rater{i}", "sub-01_ses-1_label-lesion_mask", data)
    write(tmp_path / "ours", "sub-01_ses-1_label-lesion_mask", mask(BIG))
    others = [tmp_path / "rater1", tmp_path / "rater2"]
    assert run(tmp_path / "rater0", tmp_path / "ours", "--raters", *others, "--out", tmp_path / "out") == 0
    fused = staple([data > 0 for data in raters])
    name = "consensus/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_desc-staple_mask.nii.gz"
    saved = nib.as_closest_canonical(nib.load(tmp_path / "out" / name))
    assert (np.asarray(saved.dataobj)[::-1] == fused.mask).all()  # stored along RAS; the raters' x runs to the left
    row = table(tmp_path / "out").iloc[0]
    assert row["reference_file"] == name
    assert row["reference_volume_mm3"] == pytest.approx(fused.mask.sum() * 0.9 * 1.1 * 3)
    agreement = table(tmp_path / "out", "evaluation_raters")
    one = agreement[agreement["kind"] == "rater"].set_index("rater")
    assert one["sensitivity"].tolist() == pytest.approx(fused.sensitivity, abs=1e-9)
    pair = agreement[(agreement["rater"] == "rater0") & (agreement["other"] == "rater1")].iloc[0]
    assert pair["dsc"] == pytest.approx(2 * 64 / 130)
    assert agreement.set_index("kind").loc["all", "kappa"] < 1
    assert "3 raters" in (tmp_path / "out" / "evaluation.html").read_text()


def test_raters_may_name_a_scan_more_or_less_fully(tmp_path, capsys):
    for rater, name in (("rater0", "sub-01"), ("rater1", "sub-01_run-1"), ("rater2", "sub-01_acq-3D")):
        write(tmp_path / rater, f"{name}_label-lesion_mask", TRUTH)
    for number in (1, 2):  # runs of one rater stay cases of their own
        write(tmp_path / "rater1", f"sub-02_run-{number}_label-lesion_mask", TRUTH)
        write(tmp_path / "rater2", f"sub-02_run-{number}_label-lesion_mask", TRUTH)
    for name in ("sub-01", "sub-02_run-1", "sub-02_run-2"):
        write(tmp_path / "ours", f"{name}_label-lesion_mask", mask(BIG))
    others = [tmp_path / "rater1", tmp_path / "rater2"]
    assert run(tmp_path / "rater0", tmp_path / "ours", "--raters", *others, "--out", tmp_path / "out") == 0
    rows = table(tmp_path / "out")
    assert rows["scan"].fillna("").tolist() == ["", "run-1", "run-2"]
    assert rows["reference_file"].str.startswith("consensus/").all()
    agreement = table(tmp_path / "out", "evaluation_raters")
    assert agreement["kind"].value_counts()["rater"] == 3 + 2 + 2
    assert "rater0 for sub-02_run-2" in capsys.readouterr().err


def test_zeros_before_a_number_make_no_other_scan(tmp_path):
    for number, drawn in ((1, TRUTH), (2, mask(BIG))):
        write(tmp_path / "rater", f"sub-01_run-0{number}_label-lesion_mask", drawn)
        write(tmp_path / "ours", f"sub-01_run-{number}_label-lesion_mask", drawn)
    assert run(tmp_path / "rater", tmp_path / "ours", "--out", tmp_path / "out") == 0
    rows = table(tmp_path / "out")
    assert rows["scan"].tolist() == ["run-1", "run-2"]
    assert rows["dsc"].tolist() == [1.0, 1.0]


def test_sixteen_raters_are_fused_and_seventeen_refused(two, tmp_path, capsys):
    reference, prediction = two
    others = []
    for number in range(16):
        others.append(tmp_path / f"rater{number}")
        write(others[-1], "sub-01_space-orig_label-lesion_mask", TRUTH if number else mask(BIG))
    chosen = (reference, prediction, "--participant-label", "01", "--pictures", "0", "--out", tmp_path / "out")
    assert run(*chosen, "--raters", *others[:15]) == 0
    agreement = table(tmp_path / "out", "evaluation_raters")
    one = agreement[agreement["kind"] == "rater"]
    assert one["dsc"].tolist() == pytest.approx([1, 2 * 64 / 130, *[1] * 14])
    assert run(*chosen, "--raters", *others) == 64
    assert "17 raters with REF_DIR; at most 16" in capsys.readouterr().err


def test_dsegs_are_matched_by_the_names_of_their_labels(tmp_path):
    ours, theirs = np.zeros(SHAPE, np.int16), np.zeros(SHAPE, np.int16)
    ours[BIG], ours[SMALL], theirs[BIG] = 2, 9, 41
    write(tmp_path / "manual", "sub-01_seg-tissue_dseg", theirs)
    write(tmp_path / "ours", "sub-01_space-orig_seg-tissue_dseg", ours)
    (tmp_path / "manual" / "seg-tissue_dseg.tsv").write_text("index\tname\n0\tBG\n41\tGrey matter\n7\tCSF\n")
    (tmp_path / "ours" / "sub-01" / "anat" / "sub-01_seg-tissue_dseg.tsv").write_text(
        "index\tname\tabbreviation\n0\tBackground\tBG\n2\tGray Matter\tGM\n5\tCerebrospinal Fluid\tCSF\n9\tOther\tX\n"
    )
    assert run(tmp_path / "manual", tmp_path / "ours") == 0
    rows = table(tmp_path / "ours" / "evaluation")
    assert rows["label"].tolist() == ["Grey matter"]  # CSF is in both tables and in no image
    assert rows["dsc"].tolist() == [1]


def test_two_labels_of_one_name_stay_apart(tmp_path):
    data = np.zeros(SHAPE, np.int16)
    data[BIG], data[SMALL] = 1, 2
    for folder in ("manual", "ours"):
        write(tmp_path / folder, "sub-01_seg-x_dseg", data)
        (tmp_path / folder / "seg-x_dseg.tsv").write_text("index\tname\n1\tthalamus\n2\tthalamus\n")
    assert run(tmp_path / "manual", tmp_path / "ours") == 0
    rows = table(tmp_path / "ours" / "evaluation").set_index("label")
    assert rows.loc["thalamus", "reference_volume_mm3"] == pytest.approx(64 * 2.97)
    assert rows.loc["thalamus (2)", "reference_volume_mm3"] == pytest.approx(2 * 2.97)


# --- which file with which --------------------------------------------------------------------------------------------


def test_of_several_predictions_the_one_on_the_grid_is_taken(two):
    _, prediction = two
    moved = AFFINE.copy()
    moved[0, 3] += 4
    for subject in ("01", "02", "03"):
        write(prediction, f"sub-{subject}_space-FLAIR_label-lesion_mask", TRUTH, moved)
        write(prediction, f"sub-{subject}_space-MNI152NLin2009aSym_label-lesion_mask", TRUTH[1:])
    assert run(*two) == 0
    assert table(prediction / "evaluation")["prediction_file"].str.contains("space-orig").all()


def test_the_space_of_the_reference_may_be_chosen(two, tmp_path):
    reference, _ = two
    write(reference, "sub-01_space-FLAIR_label-lesion_mask", mask(BIG))
    assert run(*two, "--space", "FLAIR", "--out", tmp_path / "out") == 0
    rows = table(tmp_path / "out")
    assert rows["reference_file"].tolist() == ["sub-01/anat/sub-01_space-FLAIR_label-lesion_mask.nii.gz"]
    assert run(*two, "--space", "nowhere") == 18


def test_a_flipped_file_is_the_same_grid(two, tmp_path):
    reference, _ = two
    affine = AFFINE @ np.array([[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    write(tmp_path / "flipped", "sub-01_label-lesion_mask", TRUTH[::-1], affine)
    assert run(reference, tmp_path / "flipped", "--participant-label", "sub-01") == 0
    assert table(tmp_path / "flipped" / "evaluation")["dsc"].tolist() == [1]


def test_runs_are_cases_of_their_own(tmp_path):
    for number in (1, 2):
        write(tmp_path / "manual", f"sub-01_run-{number}_label-lesion_mask", TRUTH)
        write(tmp_path / "ours", f"sub-01_run-{number}_label-lesion_mask", TRUTH if number == 1 else mask(BIG))
    assert run(tmp_path / "manual", tmp_path / "ours") == 0
    rows = table(tmp_path / "ours" / "evaluation").set_index("scan")
    assert rows.loc["run-1", "dsc"] == 1 and rows.loc["run-2", "dsc"] < 1


def test_several_references_of_one_scan_are_refused(two, capsys):
    reference, prediction = two
    for desc in ("draft", "final"):
        write(reference, f"sub-04_desc-{desc}_label-lesion_mask", TRUTH)
        write(prediction, f"sub-04_desc-{desc}_label-lesion_mask", TRUTH)
    write(reference, "sub-01_space-T1w_label-lesion_mask", TRUTH)  # of several spaces one is taken, as ever
    assert run(*two) == 1
    rows = table(prediction / "evaluation").set_index("participant_id")
    assert rows["dsc"].notna().tolist() == [True, True, True, False]
    for words in ("sub-04_desc-draft_label-lesion_mask.nii.gz", "desc-final", "a derivative of its own"):
        assert words in rows.loc["sub-04", "problem"]


def test_exactly_the_cases_asked_for_are_compared(tmp_path, capsys):
    for folder in ("manual", "ours"):
        for name in ("sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1", "sub-02_ses-2", "sub-03"):
            write(tmp_path / folder, f"{name}_label-lesion_mask", TRUTH)
    folders = {"references": {"manual": tmp_path / "manual"}, "predictions": {"ours": tmp_path / "ours"}}
    asked = frozenset({("01", "1"), ("02", "2"), ("03", ""), ("04", "1")})
    assert evaluate.run(evaluate.Options(**folders, out=tmp_path / "out", cases=asked)) == 0
    assert table(tmp_path / "out")["prediction_file"].str.split("_label").str[0].tolist() == [
        "sub-01/ses-1/anat/sub-01_ses-1", "sub-02/ses-2/anat/sub-02_ses-2", "sub-03/anat/sub-03"
    ]  # fmt: skip
    assert "There is no reference of sub-04_ses-1." in capsys.readouterr().err


def test_subjects_without_sessions_are_not_dropped_in_silence(tmp_path, capsys):
    for folder in ("manual", "ours"):
        for name in ("sub-01_ses-1", "sub-02", "sub-03_ses-2"):
            write(tmp_path / folder, f"{name}_label-lesion_mask", TRUTH)
    assert run(tmp_path / "manual", tmp_path / "ours", "--session-label", "1") == 0
    assert table(tmp_path / "ours" / "evaluation")["participant_id"].tolist() == ["sub-01"]
    assert (
        run(tmp_path / "manual", tmp_path / "ours", "--session-label", "1", "9", "--participant-label", "01", "7") == 0
    )
    assert "There is no reference of sub-7, ses-9." in capsys.readouterr().err
    assert run(tmp_path / "manual", tmp_path / "ours", "--session-label", "1") == 0
    told = "Left out by --session-label, since they have no sessions: sub-02."
    assert told in capsys.readouterr().err
    assert told in (tmp_path / "ours" / "evaluation" / "evaluation.html").read_text()


def test_other_names_on_the_other_side(two, tmp_path):
    reference, _ = two
    write(tmp_path / "wmh", "sub-01_label-WMH_mask", TRUTH * 255)
    assert run(reference, tmp_path / "wmh", "--participant-label", "01") == 66
    assert run(reference, tmp_path / "wmh", "--participant-label", "01", "--label", "lesion:WMH") == 0
    row = table(tmp_path / "wmh" / "evaluation").iloc[0]
    assert row["segmentation"] == "label-lesion : label-WMH" and row["dsc"] == 1


# --- scans to draw on -------------------------------------------------------------------------------------------------


def drawn_on(out: Path) -> list[str]:
    page = re.sub(r"base64,[^\"]+", "", (out / "evaluation.html").read_text())
    return re.findall(r"(?:Drawn on [^<]+|[^<> ]+ cannot be read|No scan was)", page)


@pytest.fixture
def dataset(tmp_path, rng) -> Path:
    """A subject with two FLAIR on one grid, labels and predictions of the second."""
    for number in (1, 2):
        write(tmp_path, f"sub-01_run-{number}_FLAIR", rng.random(SHAPE).astype(np.float32))
    write(tmp_path / "derivatives" / "manual", "sub-01_run-2_label-lesion_mask", TRUTH)
    write(tmp_path / "derivatives" / "ours", "sub-01_run-2_label-lesion_mask", mask(BIG))
    return tmp_path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def compare(dataset: Path) -> list[str]:
    ours = dataset / "derivatives" / "ours"
    assert run(dataset / "derivatives" / "manual", ours) == 0
    return drawn_on(ours / "evaluation")


def test_labels_are_drawn_on_the_scan_of_their_name(dataset):
    assert compare(dataset) == ["Drawn on sub-01_run-2_FLAIR.nii.gz."]
    (dataset / "sub-01/anat/sub-01_run-2_FLAIR.nii.gz").rename(dataset / "sub-01/anat/sub-01_run-2_T1w.nii.gz")
    assert compare(dataset) == ["Drawn on sub-01_run-2_T1w.nii.gz."]  # rather than on another run's FLAIR


def test_a_broken_scan_costs_no_page(dataset):
    scans = [dataset / f"sub-01/anat/sub-01_run-{number}_FLAIR.nii.gz" for number in (1, 2)]
    truncate(scans[1])
    assert compare(dataset) == ["Drawn on sub-01_run-1_FLAIR.nii.gz."]
    truncate(scans[0])
    assert compare(dataset) == ["sub-01_run-1_FLAIR.nii.gz cannot be read"]


def test_a_broken_brain_mask_costs_no_page(dataset, rng):
    some = rng.integers(0, 2, SHAPE).astype(np.uint8)
    path = write(dataset / "derivatives" / "ours", "sub-01_run-2_desc-brain_mask", some)
    truncate(path)
    grid_of(path)  # its header is whole
    assert compare(dataset) == ["Drawn on sub-01_run-2_FLAIR.nii.gz."]


# --- what goes wrong --------------------------------------------------------------------------------------------------


def flatten(path: Path) -> None:
    header = nib.load(path).header.copy()
    header["srow_x"], header["sform_code"] = 0, 1
    nib.save(nib.Nifti1Image(TRUTH, None, header), path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "There is no label-lesion of ours for sub-02"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "truncated or damaged"),
        (lambda path: nib.save(nib.Nifti1Image(TRUTH * 0.5, AFFINE), path), "not whole numbers"),
        (lambda path: nib.save(nib.Nifti1Image(np.arange(TRUTH.size, dtype=np.int16).reshape(SHAPE), AFFINE), path),
         "those of no mask"),
        (lambda path: nib.save(nib.Nifti1Image(np.where(TRUTH > 0, np.nan, 0), AFFINE), path), "NaN"),
        (lambda path: nib.save(nib.Nifti1Image(np.stack([TRUTH] * 2, axis=-1), AFFINE), path), "three dimensions"),
        (lambda path: flatten(path), "cannot be inverted"),
        (lambda path: nib.save(nib.Nifti1Image(TRUTH[1:], AFFINE), path), "resample"),
        (lambda path: nib.save(nib.Nifti1Image(TRUTH, AFFINE + np.eye(4) * 0.1), path), "on the grid of the reference"),
    ],
    ids=["missing", "empty", "truncated", "probability", "labels", "nan", "4d", "affine", "shape", "grid"],
)  # fmt: skip
def test_one_bad_pair_does_not_lose_the_others(two, capsys, spoil, words):
    _, prediction = two
    spoil(prediction / "sub-02" / "anat" / "sub-02_space-orig_label-lesion_mask.nii.gz")
    assert run(*two) == 1
    rows = table(prediction / "evaluation").set_index("participant_id")
    assert rows.loc[["sub-01", "sub-03"], "dsc"].notna().all() and pd.isna(rows.loc["sub-02", "dsc"])
    assert words in rows.loc["sub-02", "problem"] and "sub-02" in rows.loc["sub-02", "problem"]
    assert "sub-02" in capsys.readouterr().err
    assert "Not compared" in (prediction / "evaluation" / "evaluation.html").read_text()


def test_a_bad_reference_spoils_its_case_alone(two):
    reference, prediction = two
    nib.save(nib.Nifti1Image(TRUTH * 0.5, AFFINE), reference / "sub-01/anat/sub-01_space-orig_label-lesion_mask.nii.gz")
    assert run(*two) == 1
    rows = table(prediction / "evaluation").set_index("participant_id")
    assert "Threshold it" in rows.loc["sub-01", "problem"] and rows.loc["sub-02", "dsc"] > 0.9


def test_empty_masks_are_no_problem(tmp_path):
    for subject, marked, found in (("01", False, False), ("02", True, False), ("03", False, True)):
        write(tmp_path / "manual", f"sub-{subject}_label-lesion_mask", TRUTH * marked)
        write(tmp_path / "ours", f"sub-{subject}_label-lesion_mask", TRUTH * found)
    assert run(tmp_path / "manual", tmp_path / "ours") == 0
    rows = table(tmp_path / "ours" / "evaluation").set_index("participant_id")
    assert pd.isna(rows.loc["sub-01", "dsc"]) and rows.loc[["sub-02", "sub-03"], "dsc"].tolist() == [0, 0]
    assert rows.loc["sub-02", "reference_lesions"] == 2


def test_one_lesion_is_no_lesions(tmp_path):
    for folder in ("manual", "ours"):
        write(tmp_path / folder, "sub-01_label-lesion_mask", mask(BIG))
    assert run(tmp_path / "manual", tmp_path / "ours") == 0
    assert "1 of 1 lesion found, no false positives" in (tmp_path / "ours/evaluation/evaluation.html").read_text()


@pytest.mark.parametrize(("other", "code"), [(mask(), 0), (mask(BIG) * np.float32(0.3), 1)], ids=["empty", "broken"])
def test_a_prediction_without_any_lesion_to_count_has_no_bars(tmp_path, other, code):
    for subject in ("01", "02"):  # healthy: one prediction finds lesions that are none, the other finds nothing
        for folder, data in (("manual", mask()), ("a", mask(BIG)), ("b", other)):
            write(tmp_path / folder, f"sub-{subject}_label-lesion_mask", data)
    assert run(tmp_path / "manual", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out") == code
    page = (tmp_path / "out/evaluation.html").read_text()
    assert "a, 100-1000 mm³: 0 of 2" in page and "b, 100-1000 mm³" not in page


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 64, "required"),
        (["{ref}"], 64, "required"),
        (["{ref}", "{nowhere}"], 66, "no such folder"),
        (["{ref}", "{empty}"], 66, "no sub-* folder"),
        (["{above}", "{pred}"], 66, "Did you mean"),
        (["{ref}", "{ref}"], 64, "both a reference"),
        (["{ref}", "{pred}", "{pred}"], 64, "twice"),
        (["{ref}", "{pred}", "--names", "a", "b"], 64, "2 names for 1"),
        (["{ref}", "{pred}", "--label", "stroke"], 66, "label-stroke is not in the references: there is label-lesion"),
        (["{ref}", "{pred}", "--seg", "tissue"], 66, "seg-tissue is not in"),
        (["{ref}", "{pred}", "--participant-label", "77"], 18, "--participant-label"),
        (["{ref}", "{pred}", "--size-bins", "10", "5"], 64, "--size-bins"),
        (["{ref}", "{pred}", "--size-bins", "nan"], 64, "--size-bins"),
        (["{ref}", "{pred}", "--minimum-lesion", "-1"], 64, "--minimum-lesion"),
        (["{ref}", "{pred}", "--minimum-lesion", "nan"], 64, "--minimum-lesion"),
        (["{ref}", "{pred}", "--pictures", "-1"], 64, "--pictures"),
        (["{ref}", "{pred}", "--fusion", "vote"], 64, "staple, majority"),
        (["{ref}", "{pred}", "--group", "site"], 64, "go together"),
        (["{ref}", "{pred}", "--group", "site", "--participants", "{nowhere}"], 66, "cannot be read"),
        (["{ref}", "{pred}", "--lesions", "Lesion", "lesion"], 64, "--lesions Lesion: no such label; there is lesion."),
    ],
)
def test_bad_command_lines(two, tmp_path, capsys, arguments, code, words):
    (tmp_path / "empty").mkdir()
    places = {"ref": two[0], "pred": two[1], "nowhere": tmp_path / "no", "empty": tmp_path / "empty", "above": tmp_path}
    assert run(*(str(argument).format(**places) for argument in arguments)) == code
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_nothing_fits(two, tmp_path, capsys):
    write(tmp_path / "other", "sub-01_label-lesion_mask", TRUTH[2:])
    assert run(two[0], tmp_path / "other") == 18
    said = capsys.readouterr().err
    assert "sub-01_space-orig_label-lesion_mask.nii.gz" in said and "sub-01_label-lesion_mask.nii.gz" in said
    assert not (tmp_path / "other" / "evaluation").exists()


def test_group_column_that_is_not_there(two, tmp_path, capsys):
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t3\n")
    assert run(*two, "--participants", tmp_path / "participants.tsv", "--group", "site") == 64
    said = capsys.readouterr()
    assert "there is participant_id, age" in said.err
    assert "DSC" not in said.out  # before any case is measured


def test_blanks_are_no_group_and_small_groups_are_told(tmp_path, capsys):
    for i in range(12):
        write(tmp_path / "manual", f"sub-{i:02d}_label-lesion_mask", TRUTH)
        write(tmp_path / "ours", f"sub-{i:02d}_label-lesion_mask", mask(np.s_[2:6, 2:6, 2 : 3 + i % 4]))
    sites = ["", " ", "n/a", "A", *"BBBBCCCC"]
    rows = "".join(f"sub-{i:02d}\t{site}\t{20 + i}\n" for i, site in enumerate(sites))
    (tmp_path / "participants.tsv").write_text(f"participant_id\tsite\tage\n{rows}")
    command = (tmp_path / "manual", tmp_path / "ours", "--participants", tmp_path / "participants.tsv")
    assert run(*command, "--group", "site") == 0
    assert table(tmp_path / "ours/evaluation", "evaluation_tests")["comparison"].unique().tolist() == ["C against B"]
    said = capsys.readouterr().err
    assert "Not in a group of site: sub-00, sub-01, sub-02." in said
    assert "Groups of site with fewer than 3 subjects are left out: A." in said
    assert run(*command, "--group", "age") == 0
    assert "--group age: no two groups are large enough, so nothing is compared." in capsys.readouterr().err


def test_lesions_are_named_by_look_up_tables_or_numbers(tmp_path, capsys):
    data = np.zeros(SHAPE, np.int16)
    data[BIG], data[SMALL] = 1, 2
    for folder in ("manual", "ours"):
        write(tmp_path / folder, "sub-01_seg-x_dseg", data)
    command = (tmp_path / "manual", tmp_path / "ours", "--lesions")
    assert run(*command, "label 2") == 0
    assert table(tmp_path / "ours/evaluation").set_index("label").loc["label 2", "reference_lesions"] == 1
    (tmp_path / "manual" / "seg-x_dseg.tsv").write_text("index\tname\n0\tBG\n1\tcore\n2\trim\n")
    assert run(*command, "rim") == 0
    capsys.readouterr()
    assert run(*command, "Rim") == 64
    assert "no such label; there is core, core (1), rim, rim (2)." in capsys.readouterr().err


def test_help_is_quick_and_imports_nothing_heavy():
    probe = (
        "import sys\nfrom bidsapp.cli import main\n"
        "try:\n    main(['evaluate', '--help'])\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', sorted({'torch', 'numpy', 'nibabel', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--raters" in done.stdout and done.stdout.rstrip().endswith("HEAVY []")


def test_every_option_is_documented():
    text = (ROOT / "docs" / "evaluate.md").read_text()
    options = [action.option_strings[0] for action in _parser()._actions if action.option_strings]
    assert len(options) > 12
    assert [option for option in options if option != "-h" and f"`{option} " not in text] == []


# --- parts ------------------------------------------------------------------------------------------------------------


def test_names_that_tell_folders_apart():
    assert distinct_names([Path("/x/a/derivatives"), Path("/x/b/derivatives")]) == ["a/derivatives", "b/derivatives"]
    assert distinct_names([Path("/x/a")]) == ["a"]


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("sub-01_space-orig_label-lesion_mask.nii.gz", "label-lesion"),
        ("sub-01_ses-2_run-1_desc-brain_mask.nii", "label-brain"),
        ("sub-01_seg-tissue_dseg.nii.gz", "seg-tissue"),
        ("sub-01_atlas-AAL_dseg.nii.gz", "seg-AAL"),
        ("sub-01_mask.nii.gz", "mask"),
        ("sub-01+a_ses-1+b_mask.nii.gz", "mask"),
        ("sub-01_label-lesion_probseg.nii.gz", None),
        ("lesion_mask.nii.gz", None),
        (".sub-01_label-lesion_mask.nii.gz", None),
    ],
)
def test_names_of_files(name, target):
    found = label_file(Path(name))
    assert (None if found is None else str(found.target)) == target


def test_look_up_tables_are_inherited(tmp_path):
    path = write(tmp_path, "sub-01_space-orig_seg-tissue_dseg", TRUTH)
    one = find_labels(tmp_path)[0]
    assert read_lookup(one, tmp_path) == {}
    (tmp_path / "dseg.tsv").write_text("index\tname\n1\tfar\n")
    assert read_lookup(one, tmp_path) == {1: ("far", "")}
    (path.parent / "sub-01_seg-tissue_dseg.tsv").write_text("index\tname\tabbreviation\n1\tnear\tN\n")
    for other in ("sub-01_seg-other", "sub-01_seg-zones", "sub-02_seg-tissue", "sub-01"):  # the last one says less
        (path.parent / f"{other}_dseg.tsv").write_text("index\tname\n1\twrong\n")
    assert read_lookup(one, tmp_path) == {1: ("near", "N")}
    (path.parent / "sub-01_seg-tissue_dseg.tsv").write_text("number\n1\n")
    with pytest.raises(InputError, match="columns index and name"):
        read_lookup(one, tmp_path)


def test_labels_without_tables_go_by_number():
    pairs, notes = pair_labels({}, {}, present=[0, 3, 5])
    assert [(p.name, p.reference, p.prediction) for p in pairs] == [("label 3", 3, 3), ("label 5", 5, 5)]
    assert "numbers" in notes[0]
    pairs, notes = pair_labels({1: ("one", "")}, {1: ("eins", "")})
    assert [p.name for p in pairs] == ["one"] and "no name in common" in notes[0]


def test_the_order_of_storage_does_not_matter_to_a_grid(tmp_path):
    path = write(tmp_path, "sub-01_label-lesion_mask", TRUTH)
    np.testing.assert_allclose(grid_of(path).affine, nib.as_closest_canonical(nib.load(path)).affine)


def test_linked_folders_are_followed(tmp_path):
    store = tmp_path / "store" / "anat"
    store.mkdir(parents=True)
    (store / "sub-01_label-lesion_mask.nii.gz").touch()
    (tmp_path / "manual" / "sub-01").mkdir(parents=True)
    (tmp_path / "manual" / "sub-01" / "anat").symlink_to(store)
    (found,) = find_labels(tmp_path / "manual")
    assert found.path.parent.name == "anat"


@pytest.mark.parametrize("name", ["raw", "raw data", "Rohdaten für München"])
def test_the_dataset_is_found_whatever_its_folder_is_called(tmp_path: Path, name: str) -> None:
    """`out_dataset.write_dataset_description` writes the link as a URI."""
    assert Path(_local((tmp_path / name).as_uri())) == tmp_path / name
    assert _local("../100%25 raw") == "../100%25 raw"


@pytest.mark.parametrize("links", [{"raw": "../data", "web": "https://example.org"}, ["../data"], "../data"])
def test_a_dataset_that_is_linked_is_found_whatever_wrote_the_link(tmp_path: Path, links: object) -> None:
    (tmp_path / "data").mkdir()
    folder = tmp_path / "manual"
    folder.mkdir()
    (folder / "dataset_description.json").write_text(json.dumps({"DatasetLinks": links}), encoding="utf-8-sig")
    options = Options(references={"manual": folder}, predictions={}, out=tmp_path)
    assert _raw(options) == ([tmp_path / "data"] if isinstance(links, dict) else [])


def test_changes_between_sessions_are_no_labels_of_a_scan(two: tuple[Path, Path]) -> None:
    reference, _ = two
    change = write(reference, "sub-01_space-halfway_seg-change_desc-1to2_dseg", TRUTH)
    assert change not in [one.path for one in find_labels(reference)]


def test_files_in_the_folder_of_another_subject_are_not_used(two: tuple[Path, Path]) -> None:
    reference, _ = two
    stray = reference / "sub-02" / "anat" / "sub-01_label-lesion_mask.nii.gz"
    stray.write_bytes((reference / "sub-01" / "anat" / "sub-01_space-orig_label-lesion_mask.nii.gz").read_bytes())
    found = find_labels(reference)
    assert stray.is_file() and len(found) == 3 and stray not in [one.path for one in found]

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from bidsapp import errors, evaluate, train
from bidsapp.derivatives import find_labels
from bidsapp.learn import run as learning
from bidsapp.learn.model_folder import write_model
from bidsapp.learn.run import PATCH, Training, make_network
from bidsapp.models import segment
from bidsapp.progress import Progress
from bidsapp.train.cases import _of_another

AFFINE = np.diag([4.0, 4, 4, 1])
SHAPE = (20, 24, 18)


def write(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)


@pytest.fixture
def dataset(tmp_path: Path, rng: np.random.Generator) -> Path:
    """sub-01 and sub-02 with T1w and FLAIR (sub-02 FLAIR alone), a mask on the FLAIR each; sub-03 without labels."""
    root = tmp_path / "bids"
    root.mkdir()
    (root / "dataset_description.json").write_text(json.dumps({"Name": "small", "BIDSVersion": "1.10.0"}))
    fine = AFFINE.copy()
    fine[0, 0] = 2
    for subject, contrasts in (("01", ("T1w", "FLAIR")), ("02", ("FLAIR",)), ("03", ("FLAIR",))):
        for contrast in contrasts:
            shape, affine = ((40, 24, 18), fine) if contrast == "T1w" else (SHAPE, AFFINE)
            write(root / f"sub-{subject}/anat/sub-{subject}_{contrast}.nii.gz", rng.random(shape, np.float32), affine)
    mask = np.zeros(SHAPE, np.uint8)
    mask[8:11, 8:11, 8:11] = 1
    for subject in ("01", "02"):
        write(labels(tmp_path, subject), mask)
    return tmp_path


def labels(root: Path, subject: str) -> Path:
    return root / f"labels/sub-{subject}/anat/sub-{subject}_space-FLAIR_label-lesion_mask.nii.gz"


def parse(root: Path, *more: str) -> train.TrainOptions:
    return train.parse([str(root / "bids"), str(root / "out"), "--labels", str(root / "labels"), *more])


def found(root: Path, *more: str) -> list[train.Found]:
    return train.labelled(parse(root, *more), Progress())


def test_labels_are_found_on_the_scan_they_were_drawn_on(dataset: Path) -> None:
    cases = found(dataset)
    assert [(case.inputs.name, case.labels.contrast) for case in cases] == [("sub-01", "FLAIR"), ("sub-02", "FLAIR")]
    assert cases[0].inputs.contrasts == ("T1w", "FLAIR") and cases[0].names == ("lesion",)


def test_masks_of_any_name_are_the_lesions_that_the_network_knows(dataset: Path) -> None:
    for subject in ("01", "02"):
        labels(dataset, subject).rename(labels(dataset, subject).with_name(f"sub-{subject}_label-WMH_mask.nii.gz"))
    cases = found(dataset, "--label", "WMH")
    assert [(case.inputs.name, case.names) for case in cases] == [("sub-01", ("lesion",)), ("sub-02", ("lesion",))]
    training = train._training(parse(dataset, "--label", "WMH"), cases[0].names, ("T1w", "T2w", "FLAIR"))
    assert len(training.groups) == len(segment.packaged().card["classes"])  # the head is kept


def test_labels_on_another_grid_stop_all_before_hours_are_spent(dataset: Path) -> None:
    shifted = AFFINE.copy()
    shifted[0, 3] = 7
    write(labels(dataset, "02"), np.ones(SHAPE, np.uint8), shifted)
    with pytest.raises(errors.InputError, match=r"1 case\(s\) cannot be used:\n.*sub-02.*none of this session's scans"):
        found(dataset)
    assert [case.inputs.name for case in found(dataset, "--skip-bad-cases")] == ["sub-01"]


def test_a_subject_asked_for_that_is_not_there_is_told(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [one.inputs.subject for one in found(dataset, "--participant-label", "01", "99")] == ["01"]
    assert "sub-99 was asked for but is not in" in capsys.readouterr().err


def test_labels_of_another_run_are_no_labels_of_the_one_that_is_used(
    dataset: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both runs have one grid; the second is used."""
    anat = dataset / "bids/sub-02/anat"
    (anat / "sub-02_FLAIR.nii.gz").rename(anat / "sub-02_run-1_FLAIR.nii.gz")
    write(anat / "sub-02_run-2_FLAIR.nii.gz", rng.random(SHAPE, np.float32))
    label = labels(dataset, "02")
    first, second, plain = (
        label.with_name(f"sub-02{run}_label-lesion_mask.nii.gz") for run in ("_run-1", "_run-02", "")
    )
    label.rename(first)
    with pytest.raises(
        errors.InputError, match=r"\(run-1\) these labels.*another scan.*sub-02_run-2_FLAIR.*filter-file"
    ):
        found(dataset)
    for other in (plain, second):  # what is not named is no contradiction; the same name is better
        shutil.copyfile(first, other)
        assert found(dataset)[1].labels.path == other
        assert "sub-02_run-1_label-lesion_mask.nii.gz: by their name" in capsys.readouterr().err.replace("\n", " ")
    filters = dataset / "filters.json"
    filters.write_text('{"FLAIR": {"run": 1}}')
    assert found(dataset, "--bids-filter-file", str(filters), "--participant-label", "02")[0].labels.path == first


def test_labels_of_a_flair_may_have_the_name_of_the_t1w_beside_it(dataset: Path) -> None:
    """So the app names what it writes, and whoever corrects that keeps the name."""
    anat = dataset / "bids/sub-01/anat"
    (anat / "sub-01_T1w.nii.gz").rename(anat / "sub-01_acq-fine_T1w.nii.gz")
    (anat / "sub-01_FLAIR.nii.gz").rename(anat / "sub-01_acq-thick_FLAIR.nii.gz")
    label = labels(dataset, "01")
    label.rename(label.with_name("sub-01_acq-fine_space-FLAIR_label-lesion_mask.nii.gz"))
    assert found(dataset)[0].labels.contrast == "FLAIR"
    # Unless there is a FLAIR of that name, which was passed over.
    case = found(dataset)[0]
    flair = next(scan for scan in case.inputs.scans if scan.contrast == "FLAIR")
    (one,) = (one for one in find_labels(dataset / "labels") if one.path == case.labels.path)
    assert not _of_another(one, flair, case.inputs.scans)
    flair = dataclasses.replace(flair, not_chosen=(anat / "sub-01_acq-fine_FLAIR.nii.gz",))
    assert _of_another(one, flair, case.inputs.scans)


def test_labels_of_no_session_beside_scans_of_one(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for subject in ("01", "02", "03"):
        old, new = (dataset / f"bids/sub-{subject}" / name for name in ("anat", "ses-1/anat"))
        for path in old.iterdir():
            new.mkdir(parents=True, exist_ok=True)
            path.rename(new / path.name.replace("_", "_ses-1_", 1))
        old.rmdir()
    with pytest.raises(errors.NothingSelectedError, match=r"sub-01_ses-1 has labels of no session: name them like"):
        found(dataset)
    assert "sub-01_ses-1: no labels (there are of no session); left out" in capsys.readouterr().err


def test_empty_labels(dataset: Path) -> None:
    write(labels(dataset, "01"), np.zeros(SHAPE, np.uint8))
    with pytest.raises(errors.InputError, match=r"sub-01.*the mask is empty"):
        found(dataset)


def test_channels_are_asked_for_or_those_of_the_model_or_of_the_cases(dataset: Path) -> None:
    def channels(*more: str) -> tuple[str, ...]:
        options = parse(dataset, *more)
        return train._channels(train.labelled(options, Progress()), options)

    assert channels() == ("T1w", "T2w", "FLAIR")
    assert channels("--init", "none") == channels("--architecture", "patchwise") == ("T1w", "FLAIR")
    assert channels("--contrasts", "FLAIR", "T1w") == ("T1w", "FLAIR")
    with pytest.raises(errors.InputError, match=r"sub-02: there is none of T1w, .* \(there is FLAIR\)"):
        found(dataset, "--contrasts", "T1w")
    for more, message in (
        (("T1w", "T1wCE"), r"no synthetic scans can be made of T1wCE.*--synthetic 0"),
        (("T1wCE", "--synthetic", "0"), r"knows T1w, T2w, FLAIR, and not T1wCE.*--init none"),
        (("T1w", "T1wCE", "--synthetic", "0", "--freeze-encoder"), "knows no T1wCE"),
    ):
        with pytest.raises(errors.UsageError, match=message):
            found(dataset, "--contrasts", *more)


def test_a_scan_with_contrast_agent_is_used_where_asked_for(dataset: Path, rng: np.random.Generator) -> None:
    """Its labels may be drawn on it, too."""
    anat, fine = dataset / "bids/sub-01/anat", np.diag([1.0, 4, 4, 1])
    write(anat / "sub-01_ce-gad_T1w.nii.gz", rng.random((80, 24, 18), np.float32), fine)
    mask = np.zeros((80, 24, 18), np.uint8)
    mask[40:50, 8:11, 8:11] = 1
    write(labels(dataset, "01"), mask, fine)
    options = parse(dataset, "--contrasts", "T1w", "T1wCE", "FLAIR", "--synthetic", "0")
    case = train.labelled(options, Progress())[0]
    assert case.labels.contrast == "T1wCE"
    record = train._record(case, train.asked_channels(options), options)
    assert record["contrasts"] == list(record["scans"]) == ["T1w", "FLAIR", "T1wCE"]
    with pytest.raises(errors.InputError, match="none of this session's scans"):
        found(dataset)


def test_no_labels_of_that_name(dataset: Path) -> None:
    with pytest.raises(errors.NothingSelectedError, match=r"no label-stroke of any chosen .*there is: label-lesion"):
        found(dataset, "--label", "stroke")


def test_a_dseg_needs_its_table(dataset: Path) -> None:
    data = np.zeros(SHAPE, np.uint8)
    data[5:9, 5:9, 5:9], data[10:14, 5:9, 5:9] = 3, 7
    path = dataset / "labels/sub-01/anat/sub-01_space-orig_seg-parts_dseg.nii.gz"
    write(path, data)
    options = ("--seg", "parts", "--synthetic", "0", "--participant-label", "01")
    with pytest.raises(errors.InputError, match="no look-up table"):
        found(dataset, *options)
    path.with_name("sub-01_space-orig_seg-parts_dseg.tsv").write_text("index\tname\n0\tnone\n7\tb\n3\ta\n")
    (case,) = found(dataset, *options)
    assert case.labels.indices == (3, 7) and case.names == ("a", "b")


@pytest.mark.parametrize(("rows", "message"), [
    ("1\tedema\n2\tedema\n", "has the name 'edema' twice"),
    ("1\tbackground\n2\tedema\n", "a class 'background' whose index is not 0"),
    ("1\t\n2\tedema\n", r"empty, too long or not printable \(''\)"),
])  # fmt: skip
def test_names_of_classes_that_no_model_may_have_are_refused_at_once(dataset: Path, rows: str, message: str) -> None:
    data = np.zeros(SHAPE, np.uint8)
    data[5:9, 5:9, 5:9], data[10:14, 5:9, 5:9] = 1, 2
    write(dataset / "labels/sub-01/anat/sub-01_seg-parts_dseg.nii.gz", data)
    (dataset / "labels/seg-parts_dseg.tsv").write_text(f"index\tname\n{rows}")
    with pytest.raises(errors.InputError, match=rf"sub-01_seg-parts_dseg\.nii\.gz: its look-up table .*{message}"):
        found(dataset, "--seg", "parts", "--synthetic", "0")


@pytest.mark.parametrize(("arguments", "message"), [
    (("--architecture", "vnet"), "vnet.*unet, patchwise, cascade"),
    (("--folds", "²"), "--folds"),
    (("--architecture", "patchwise", "--init", "/nosuch"), "--init /nosuch: a patch-wise network begins from scratch"),
    (("--loss", "l2"), "l2.*dice-ce, tversky, focal"),
    (("--lesion-kind", "tumor"), "tumor.*white-matter, other"),
    (("--contrasts", "T1w", "PDw"), "--contrasts: 'PDw' is unknown; choose among T1w, T2w, FLAIR, T1wCE"),
    (("--folds", "many"), "--folds"),
    (("--steps", "0"), "--steps must be at least 1"),
    (("--patience", "-1"), "--patience must be at least 0"),
    (("--minutes", "-5"), "--minutes must be at least 0"),
    (("--minutes", "nan"), "--minutes must be at least 0"),
    (("--learning-rate", "0"), "--learning-rate must be above 0"),
    (("--dropout", "1"), "--dropout must be at least 0 and below 1"),
    (("--architecture", "patchwise", "--freeze-encoder"), "begins from scratch"),
    (("--foreground", "2"), "--foreground must lie between 0 and 1"),
    (("--seg", "x"), "--synthetic: synthetic scans know lesions only"),
    (("--init", "none", "--freeze-encoder"), "nothing to keep"),
    (("--name", "../x"), "letters, digits and hyphens"),
    (("--name", "a" * 101), "--name .*: at most 100"),
    (("--random-seed", "-1"), "--random-seed must lie between 0 and 4294967295, not -1"),
])  # fmt: skip
def test_options_that_cannot_be_used(dataset: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(errors.UsageError, match=message):
        parse(dataset, *arguments)


def test_no_such_folder_of_labels(dataset: Path) -> None:
    with pytest.raises(errors.UsageError, match=r"--labels .*no such folder"):
        train.parse([str(dataset / "bids"), str(dataset / "out"), "--labels", str(dataset / "nowhere")])


def test_output_that_would_lie_among_raw_scans(dataset: Path) -> None:
    options = train.parse(
        [str(dataset / "bids"), str(dataset / "bids" / "sub-01"), "--labels", str(dataset / "labels")]
    )
    with pytest.raises(errors.UsageError, match="sub-01"):
        train.run(options)


def test_a_cascade_keeps_the_encoder_of_its_first_stage_only(dataset: Path) -> None:
    """Its second begins from scratch: frozen, it would never learn."""
    options = parse(dataset, "--architecture", "cascade", "--freeze-encoder")
    second = train._training(options, ("lesion",), ("FLAIR",))
    first = train._first_stage(options, second)
    assert first is not None and (first.freeze, second.freeze) == (True, False)


def test_folds_larger_than_the_number_of_subjects_are_refused_before_anything_is_written(dataset: Path) -> None:
    with pytest.raises(errors.UsageError, match="2 labelled subjects"):
        train.run(parse(dataset, "--folds", "5", "--skip-bids-validation"))
    assert not (dataset / "out").exists()


def test_dry_run_tells_cases_folds_time_and_memory(
    dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PATCH, "FoldedUNet", 32)  # sixteen times faster
    options = parse(dataset, "--folds", "2", "--dry-run", "--skip-bids-validation", "--steps", "100")
    assert train.run(options) == 0
    out, said = capsys.readouterr()
    lines = out.splitlines()
    assert lines[1].split("\t")[:4] == ["sub-01", "T1w FLAIR", "sub-01_space-FLAIR_label-lesion_mask.nii.gz", "FLAIR"]
    network = next(line for line in lines if line.startswith("FoldedUNet")).split("\t")
    assert "for 11 predictions of whole brains" in said
    card = segment.packaged().card
    assert network[1:4] == [f"from segment {card['version']}", "1 x 32x32x32", "100"] and float(network[4]) > 0
    assert not (dataset / "out").exists()


@pytest.fixture
def plan(dataset: Path) -> train.Plan:
    """Both labelled subjects, one held out in each fold, and what was predicted of them."""
    options = parse(dataset, "--folds", "2")
    cases = train.labelled(options, Progress())
    for name in ("trained", "before"):
        for subject in ("01", "02"):
            path = options.out / f"crossvalidation/{name}" / labels(dataset, subject).relative_to(dataset / "labels")
            path.parent.mkdir(parents=True)
            shutil.copyfile(labels(dataset, subject), path)
    return train.Plan(options, cases, ("FLAIR",), [["01"], ["02"]])


def test_held_out_cases_alone_are_judged(plan: train.Plan, dataset: Path) -> None:
    """sub-03 has labels, and a prediction of an earlier run; it is no case of this one."""
    mask = np.ones(SHAPE, np.uint8)
    for place in (
        labels(dataset, "03"),
        plan.options.out / "crossvalidation/trained/sub-03/anat" / labels(dataset, "03").name,
    ):
        write(place, mask)
    figures = train._judge(plan, ["before"], Progress())
    dice = [row for row in figures["held-out subjects"] if row["measure"] == "dsc"]
    assert {(row["prediction"], row["n"]) for row in dice} == {("trained", "2"), ("before", "2")}
    assert "reservation" not in figures


def test_masks_of_any_name_are_judged_lesion_by_lesion(plan: train.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[evaluate.Options] = []
    monkeypatch.setattr(evaluate, "run", lambda options: asked.append(options) or pytest.skip("asked"))
    options = dataclasses.replace(plan.options, label="manual")
    with pytest.raises(pytest.skip.Exception):
        train._judge(dataclasses.replace(plan, options=options), [], Progress())
    assert asked[0].labels == asked[0].lesions == ("manual",) and list(asked[0].predictions) == ["trained"]


def test_a_comparison_that_fails_ends_no_training(
    plan: train.Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: evaluate.Options) -> int:
        raise errors.InputError("no pair fits")

    monkeypatch.setattr(evaluate, "run", fail)
    assert train._judge(plan, [], Progress()) == {}
    assert "could not be judged, and the model tells no figures: no pair fits" in capsys.readouterr().err


def own_model(folder: Path, training: dict) -> Path:
    small = Training(name="ours", classes=("background", "lesion"), channels=("FLAIR",), features=(8, 8, 8, 8))
    write_model(make_network(small), folder, {
        "name": "ours", "version": "1.0.0", "spacing_mm": 1.0, "orientation": "RAS", "channels": ["FLAIR"], "patch": 80,
        "classes": ["background", "lesion"], "lesion_classes": ["lesion"], "lesion_threshold": {"with FLAIR": 0.5},
        "training": training,
    })  # fmt: skip
    return folder


def test_a_model_that_knows_those_held_out_is_told_of(
    dataset: Path, plan: train.Plan, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained on sub-02 itself, and what it began with on sub-04."""
    old = own_model(dataset / "old", {"contrasts": {"sub-02_ses-1": ["FLAIR"]}, "subjects_seen_before": ["04"]})
    more = ("--init", str(old), "--folds", "2", "--synthetic", "0", "--skip-bids-validation")
    options = parse(dataset, *more)
    assert train.seen_before(options) == {"02", "04"}
    monkeypatch.setattr(train, "_dry_run", lambda plan, _: len(plan.seen))
    assert train.run(dataclasses.replace(options, dry_run=True)) == 1
    assert "WARNING: the card of the model you begin with" in (said := capsys.readouterr().err)
    assert "1 of the held-out subjects" in said and "sub-02" in said
    plan = dataclasses.replace(plan, options=options, seen=frozenset(["02"]))
    training = train._training(options, ("lesion",), ("FLAIR",))
    assert train._origin(plan, training)["subjects_seen_before"] == ["02", "04"]
    figures = train._judge(plan, ["before"], Progress())
    assert "sub-02" in figures["reservation"]
    assert {row["prediction"] for row in figures["held-out subjects"]} == {
        "trained (weights saw held-out subjects)", "before (weights saw held-out subjects)",
    }  # fmt: skip
    assert train.run(dataclasses.replace(options, dry_run=True, folds="0")) == 0  # nobody is held out
    assert "WARNING" not in capsys.readouterr().err


def test_the_time_of_minutes_begins_before_the_scans_are_prepared(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[float] = []
    clock = [1000.0]
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(train, "prepare", lambda *_: clock.append(clock.pop() + 500))
    monkeypatch.setattr(train, "_train", lambda _, say, deadline: ends.append(deadline) or 0)
    train.run(parse(dataset, "--folds", "2", "--minutes", "10", "--skip-bids-validation"))
    assert ends == [1600.0]


def test_whole_brains_are_part_of_the_minutes(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "seconds_a_brain", lambda model, device: 10.0)

    def told(*more: str) -> tuple[int, float]:
        options = parse(dataset, *more)
        cases = train.labelled(options, Progress())
        channels = ("T1w", "FLAIR")
        folds = [["01"], ["02"]] if options.folds != "0" else []
        training = train._training(options, ("lesion",), channels)
        stages = [stage for stage in (train._first_stage(options, training), training) if stage is not None]
        return train._whole_brains(train.Plan(options, cases, channels, folds), stages, "cpu")

    # Anatomy of 2; 2 held out, before and after; thresholds of one other in each fold (with FLAIR) and at the end of
    # both with FLAIR and of sub-01 without.
    assert told("--folds", "2") == (2 + 4 + 2 + 3, 110.0)
    assert told("--folds", "0", "--synthetic", "0", "--init", "none") == (3, 30.0)
    # A cascade's first network looks at all that too, and at what each training is trained on.
    assert told("--folds", "2", "--architecture", "cascade") == (2 + 2 + (2 + 5) + (2 + 5) + (1 + 1 + 2), 220.0)

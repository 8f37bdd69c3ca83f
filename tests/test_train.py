from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp import errors, train
from bidsapp.learn.run import PATCH
from bidsapp.models import segment
from bidsapp.progress import Progress

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


@pytest.mark.parametrize(("arguments", "message"), [
    (("--architecture", "vnet"), "vnet.*unet, patchwise, cascade"),
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
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("\t")[:4] == ["sub-01", "T1w FLAIR", "sub-01_space-FLAIR_label-lesion_mask.nii.gz", "FLAIR"]
    network = next(line for line in lines if line.startswith("FoldedUNet")).split("\t")
    card = segment.packaged().card
    assert network[1:4] == [f"from segment {card['version']}", "1 x 32x32x32", "100"] and float(network[4]) > 0
    assert not (dataset / "out").exists()

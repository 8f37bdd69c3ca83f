from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from bidsapp.errors import UsageError
from bidsapp.learn import folds as module
from bidsapp.learn import run
from bidsapp.learn.cases import Stored
from bidsapp.learn.folds import Folds, as_labelled, split
from bidsapp.learn.run import Training, train_model
from bidsapp.models.registry import Model

SESSIONS = ("01", "01", "02", "03", "03", "04", "05")


@pytest.mark.parametrize("folds", ["2", "3", "5", "loo"])
def test_each_subject_is_held_out_once(folds: str) -> None:
    found = split(SESSIONS, folds, seed=1)
    assert len(found) == (5 if folds == "loo" else int(folds))
    assert sorted(subject for fold in found for subject in fold) == ["01", "02", "03", "04", "05"]
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert split(SESSIONS, folds, seed=1) == found


def test_no_folds() -> None:
    assert split(SESSIONS, "0", seed=1) == []


@pytest.mark.parametrize(("subjects", "folds", "message"), [
    (SESSIONS, "6", "5 labelled subjects; give 2 to 5"),
    (SESSIONS, "1", "give 2 to 5"),
    (("01", "02"), "5", "2 labelled subjects; give 2, loo or 0"),
    (("07", "07"), "2", "one labelled subject .sub-07."),
    (("07",), "loo", "--folds 0"),
])  # fmt: skip
def test_too_few_subjects(subjects: tuple[str, ...], folds: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        split(subjects, folds, seed=1)


@pytest.fixture
def begin(case_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Folds]:
    """A patch-wise network on two subjects, the first with FLAIR, the second with T1w."""
    monkeypatch.setitem(run.PATCHES, "TwoPathway", 1)
    other = case_folder.parent / "sub-02"
    shutil.copytree(case_folder, other)
    (other / "FLAIR.nii").rename(other / "T1w.nii")
    record = json.loads((case_folder / "case.json").read_text())
    (other / "case.json").write_text(json.dumps(record | {"name": "sub-02", "subject": "02", "contrasts": ["T1w"]}))
    training = Training(
        name="t", classes=("background", "lesion"), architecture="TwoPathway", features=(4,) * 8, steps=1, workers=0
    )
    return lambda: Folds(
        {"sub-01": case_folder, "sub-02": other}, training, first=None, before=None, out=tmp_path / "out", device="cpu",
        card={}, deadline=float("inf"), say=lambda _: None,
    )  # fmt: skip


def test_only_thresholds_of_the_held_out_are_tried_and_nothing_is_done_twice(
    begin: Callable[[], Folds], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def train(cases, training, **options):
        asked.append(([case.name for case in cases], set(options["wanted"])))
        return train_model(cases, training, **options)

    monkeypatch.setattr(module, "train_model", train)
    names = {name: Path(f"{name}_mask.nii.gz") for name in ("sub-01", "sub-02")}

    def whole() -> None:
        work = begin()
        assert work.fold(1, ["01"], names) and work.fold(2, ["02"], names) and work.whole({})

    whole()
    assert asked == [
        (["sub-02"], {"with FLAIR"}), (["sub-01"], {"without FLAIR"}),
        (["sub-01", "sub-02"], {"with FLAIR", "without FLAIR"}),
    ]  # fmt: skip
    card = json.loads((tmp_path / "out/model/model.json").read_text())
    assert set(card["lesion_threshold"]) == {"with FLAIR", "without FLAIR"}
    monkeypatch.setattr(module, "load_case", lambda folder: pytest.fail("a case was read again"))
    whole()
    assert len(asked) == 3


class Lab:
    """`Folds` of subjects whose trainings only write down what they were begun with."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.training = root, Training(name="t", classes=("background", "lesion"))
        self.before: Model | None = None
        self.trained: list[str] = []
        self.predicted: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.aside: list[list[str]] = []
        self.stop_at = ""
        self.found = np.zeros((2, 2, 2), np.uint8)
        monkeypatch.setattr(module, "load_case", lambda folder, _: SimpleNamespace(name=folder.name))
        monkeypatch.setattr(module, "read_model", self.read)
        monkeypatch.setattr(module, "train_model", self.train)
        monkeypatch.setattr(module, "predict_drawn", self.predict)
        monkeypatch.setattr(Stored, "drawn", lambda _: nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)))

    @staticmethod
    def model(card: dict) -> Model:
        return Model(card["name"], "1", 1.0, card, None)

    def read(self, folder: Path) -> Model:
        return self.model(json.loads((folder / "model.json").read_text()))

    def train(self, cases, training, *, folder: Path, card, held_out, **_) -> Model | None:
        self.aside.append([case.name for case in held_out])
        on = [case.name for case in cases]
        checkpoint = folder / "checkpoint.safetensors"
        begun = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"on": on, "loss": training.loss}
        checkpoint.write_text(json.dumps(begun))
        self.trained.append(str(folder.relative_to(self.root / "out/folds")))
        if folder.name == self.stop_at:
            return None
        (folder / "model").mkdir()
        (folder / "model/model.json").write_text(json.dumps({**begun, **card, "name": training.name}))
        return self.read(folder / "model")

    def predict(self, model, folder: Path, *, device: str) -> np.ndarray:
        self.predicted.append((folder.name, model.card.get("on", model.card["name"])))
        return self.found

    def run(
        self, *subjects: str, seed: int = 1, cascade: bool = False, labels: str = "", card=None, indices=()
    ) -> bool:
        """Whether all was trained; `labels` stands for what is in the cases' files."""
        self.trained.clear(), self.predicted.clear(), self.said.clear()
        folders = {f"sub-{subject}": self.root / "cases" / f"sub-{subject}" for subject in subjects}
        for subject, folder in zip(subjects, folders.values(), strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            record = {"name": folder.name, "subject": subject, "contrasts": ["FLAIR"], "labels": labels}
            record["indices"] = list(indices)
            (folder / "case.json").write_text(json.dumps(record))
        self.work = work = Folds(
            folders, self.training, first=self.training if cascade else None, before=self.before,
            out=self.root / "out", device="cpu", card=card or {}, deadline=float("inf"), say=self.said.append,
        )  # fmt: skip
        names = {name: Path(f"{name}_mask.nii.gz") for name in folders}
        return all(
            work.fold(number, held_out, names) for number, held_out in enumerate(split(subjects, "2", seed=seed), 1)
        ) and work.whole({})

    def leaks(self) -> list[str]:
        """Held-out cases that the model that predicts them was trained on."""
        return [name for name, on in self.predicted if name in on]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, monkeypatch)


FOUR = ("01", "02", "03", "04")
ALL = ["fold-1", "fold-2", "all"]


def test_with_nothing_changed_nothing_is_done_again(lab: Lab) -> None:
    assert lab.run(*FOUR) and lab.trained == ALL and len(lab.predicted) == 4
    assert lab.run(*FOUR) and (lab.trained, lab.predicted, lab.said) == ([], [], [])


def test_models_that_saw_the_held_out_subjects_are_not_used_again(lab: Lab) -> None:
    """Another seed holds out others in a fold of the same number, and so does one subject more."""
    lab.run(*FOUR)
    assert split(FOUR, "2", seed=1) != split(FOUR, "2", seed=2)
    lab.run(*FOUR, seed=2)
    assert not lab.leaks() and len(lab.predicted) == 4 and lab.trained == ["fold-1", "fold-2"]  # of all: as before
    lab.run(*FOUR, "05", seed=2)
    assert not lab.leaks() and len(lab.predicted) == 5 and lab.trained == ALL
    assert any("sub-05: new" in line for line in lab.said)


def test_what_was_stopped_goes_on_with_the_same_settings_only(lab: Lab) -> None:
    lab.stop_at = "fold-2"
    assert not lab.run(*FOUR)
    lab.stop_at = ""
    assert lab.run(*FOUR) and lab.trained == ["fold-2", "all"] and not lab.said
    lab.stop_at = "fold-2"
    lab.training = dataclasses.replace(lab.training, loss="focal")
    assert not lab.run(*FOUR)
    lab.stop_at = ""
    lab.training = dataclasses.replace(lab.training, loss="tversky")
    assert lab.run(*FOUR) and lab.trained == ALL
    assert any(line.startswith("fold 2") and "loss: focal, now tversky" in line for line in lab.said)
    for name in ALL:
        assert json.loads((lab.root / f"out/folds/{name}/model/model.json").read_text())["loss"] == "tversky"


def test_what_was_trained_by_another_recipe_is_trained_anew(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.run(*FOUR)
    monkeypatch.setattr(module.fingerprint, "RECIPE", 10**6)
    lab.run(*FOUR)
    assert lab.trained == ALL and "now 1000000" in lab.said[0]


def test_corrected_labels_are_learned_and_predicted_anew(lab: Lab) -> None:
    lab.run(*FOUR)
    lab.run(*FOUR, labels="corrected")
    assert lab.trained == ALL and len(lab.predicted) == 4 and any("prepared anew" in line for line in lab.said)


def test_the_model_begun_with_predicts_anew_where_it_is_another(lab: Lab) -> None:
    lab.before = lab.model({"name": "old"})
    lab.run(*FOUR)
    lab.before = lab.model({"name": "new"})
    lab.training = dataclasses.replace(lab.training, name="other", workers=7, threads=3)
    lab.run(*FOUR)
    assert [on for _, on in lab.predicted] == ["new"] * 4 and not lab.trained


def test_the_card_tells_of_now_where_the_model_is_of_before(lab: Lab) -> None:
    lab.run(*FOUR, card={"lesion_kind": "other"})
    lab.training = dataclasses.replace(lab.training, name="renamed")
    lab.run(*FOUR, card={"lesion_kind": "white-matter"})
    card = json.loads((lab.root / "out/model/model.json").read_text())
    assert not lab.trained and (card["name"], card["lesion_kind"]) == ("renamed", "white-matter")


def test_predictions_of_cases_that_are_left_out_now_are_removed(lab: Lab) -> None:
    """They would be judged beside the others."""
    lab.before = lab.model({"name": "old"})
    lab.run(*FOUR, indices=(3,))
    there = lab.root / "out/crossvalidation"
    assert len(list(there.rglob("sub-0*_mask.*"))) == 2 * 4 * 3  # image, table, record
    names = {f"sub-{subject}": Path(f"sub-{subject}_mask.nii.gz") for subject in FOUR[:3]}
    lab.work.forget_others(names)
    assert {path.name.split("_")[0] for path in there.rglob("*.*")} == set(names)
    assert len(list(there.rglob("*.*"))) == 2 * 3 * 3
    lab.work.before = None
    lab.work.forget_others(names)
    assert {path.parent.name for path in there.rglob("*.*")} == {"trained"}


def test_early_stopping_goes_by_subjects_that_are_not_trained_on(lab: Lab) -> None:
    lab.run(*FOUR)
    assert lab.aside == [[], [], []]
    lab.aside.clear()
    lab.training = dataclasses.replace(lab.training, patience=2)
    lab.run(*FOUR)
    assert lab.aside[:2] == [[], []] and "too few subjects" in lab.said[1]  # two subjects a fold
    ((name,),) = lab.aside[2:]
    model = json.loads((lab.root / "out/model/model.json").read_text())
    assert sorted([name, *model["on"]]) == [f"sub-{subject}" for subject in FOUR]
    assert f"by {name.removeprefix('sub-')}, set aside" in lab.said[-1]


def test_stages_of_a_cascade_are_done_again_each_for_itself(lab: Lab) -> None:
    stages = ["fold-1/first", "fold-1", "fold-2/first", "fold-2", "all/first", "all"]
    lab.run(*FOUR, cascade=True)
    assert lab.trained == stages
    lab.run(*FOUR, cascade=True)
    assert not lab.trained
    (lab.root / "out/folds/fold-1/begun.json").unlink()
    lab.run(*FOUR, cascade=True)
    assert lab.trained == ["fold-1"] and "not known" in lab.said[0]
    lab.run(*FOUR)
    assert lab.trained == ALL and not (lab.root / "out/folds/all/first").exists()


def test_compartments_are_written_with_the_values_and_names_of_the_labels(lab: Lab) -> None:
    """As in BraTS: the third class has the value 4."""
    names = ("necrotic core", "edema", "enhancing tumor")
    lab.training = dataclasses.replace(lab.training, classes=("background", *names))
    lab.found = np.array([0, 1, 2, 3, 0, 0, 0, 3], np.uint8).reshape(2, 2, 2)
    lab.run("01", "02", indices=(1, 2, 4))
    path = lab.root / "out/crossvalidation/trained/sub-01_mask.nii.gz"
    written = nib.load(path)
    assert np.asarray(written.dataobj).ravel().tolist() == [0, 1, 2, 4, 0, 0, 0, 4]
    assert written.get_data_dtype() == np.uint8
    table = path.with_name("sub-01_mask.tsv").read_text().splitlines()
    assert table == ["index\tname", "1\tnecrotic core", "2\tedema", "4\tenhancing tumor"]


@pytest.mark.parametrize(("values", "expected", "kind"), [
    ((), [0, 1, 1], np.uint8), ((9,), [0, 9, 9], np.uint8), ((3, 2035), [0, 3, 2035], np.int32),
])  # fmt: skip
def test_values_of_classes(values: tuple[int, ...], expected: list[int], kind: type) -> None:
    found = as_labelled(np.array([0, 1, 2], np.uint8), values)
    assert found.tolist() == expected and found.dtype == kind

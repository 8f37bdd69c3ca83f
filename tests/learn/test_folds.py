from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bidsapp.errors import UsageError
from bidsapp.learn import folds as module
from bidsapp.learn import run
from bidsapp.learn.folds import Folds, split
from bidsapp.learn.run import Training, train_model

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
    (other / "case.json").write_text(json.dumps({"name": "sub-02", "subject": "02", "contrasts": ["T1w"]}))
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

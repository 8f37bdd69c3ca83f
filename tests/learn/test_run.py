from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bidsapp.errors import AppError
from bidsapp.learn import run
from bidsapp.learn.cases import Stored, load_case
from bidsapp.learn.model_folder import write_model
from bidsapp.learn.run import Training, make_network, predict_drawn, sample_config, thresholds, train_model, trial
from bidsapp.models.registry import read_model
from bidsapp.models.segment import packaged

LESION = ("background", "lesion")
SMALL = Training(name="t", classes=LESION, features=(8, 8, 8, 8), steps=2, workers=0)
PATCHWISE = dataclasses.replace(SMALL, architecture="TwoPathway", features=(4,) * 8)


@pytest.fixture(autouse=True)
def few_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.PATCHES, "TwoPathway", 2)


def test_fine_tuning_keeps_all_that_the_network_knows() -> None:
    training = Training(name="t", classes=LESION, init=packaged())
    network = make_network(training)
    assert network.config.classes == len(packaged().card["classes"])
    assert sum(training.groups) == 1 and training.groups[-1] == 1
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), packaged().network.parameters(), strict=True))
    assert all(p.requires_grad for p in network.parameters())
    assert not any(p.requires_grad for p in packaged().network.parameters())  # a copy was made


def test_other_classes_get_a_new_head_on_the_old_body() -> None:
    network = make_network(Training(name="t", classes=("background", "a", "b"), init=packaged()))
    assert network.config.classes == 3
    old, new = packaged().network.state_dict(), network.state_dict()
    assert all(torch.equal(old[key], value) for key, value in new.items() if not key.startswith("head"))
    assert new["head.weight"].shape != old["head.weight"].shape


def test_a_model_of_another_architecture_cannot_be_begun_with() -> None:
    with pytest.raises(AppError, match="segment is a FoldedUNet, and a TwoPathway was asked for"):
        make_network(dataclasses.replace(PATCHWISE, init=packaged()))


@pytest.mark.parametrize("training", [SMALL, PATCHWISE], ids=["unet", "patchwise"])
def test_patches_fit_the_network(training: Training) -> None:
    network = make_network(training)
    config = sample_config(network, training)
    assert config.patch % network.config.multiple == 0
    x = torch.zeros(1, 3, *[config.patch + 2 * config.margin] * 3)
    with torch.no_grad():
        answer = network.eval()(x, torch.zeros(1, 3, *[config.patch // 2] * 3))
    assert answer.shape == (1, 2, *[config.patch] * 3)


def test_trial_measures() -> None:
    seconds, gigabytes = trial(PATCHWISE, device="cpu", steps=1)
    assert seconds > 0 and gigabytes > 0.05


@pytest.mark.parametrize("family", ["unet", "patchwise", "cascade"])
def test_a_trained_folder_is_a_model(case_folder: Path, tmp_path: Path, family: str) -> None:
    case = load_case(case_folder)
    training = SMALL if family == "unet" else PATCHWISE
    if family == "cascade":
        training = dataclasses.replace(training, first=train_model([case], SMALL, folder=tmp_path / "first"))
    model = train_model([case], training, folder=tmp_path / "run", card={"training": {"data": ["one case"]}})
    again = read_model(tmp_path / "run/model")
    assert model is not None and again.card["training"] == {"data": ["one case"]}
    assert set(again.card["lesion_threshold"].values()) <= set(np.round(np.arange(0.2, 0.85, 0.05), 2))
    assert (again.first is not None) == (family == "cascade")
    found = predict_drawn(again, case_folder, device="cpu")
    assert found.shape == (40, 46, 13) and set(np.unique(found)) <= {0, 1}
    card = json.loads((tmp_path / "run/model/model.json").read_text())
    assert card["lesion_classes"] == ["lesion"] and card["channels"] == ["T1w", "T2w", "FLAIR"]


def test_a_case_is_predicted_once_for_each_threshold_that_it_tells_of(
    case_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probability is that of the FLAIR alone and half of it without: so are the best thresholds."""
    both = tmp_path / "cases/sub-02"
    shutil.copytree(case_folder, both)
    record = json.loads((both / "case.json").read_text()) | {"contrasts": ["T1w", "FLAIR"]}
    (both / "case.json").write_text(json.dumps(record))
    asked: list[tuple[str, tuple[str, ...]]] = []

    def predict(stored: Stored, model: object, *, device: str, without: tuple[str, ...]) -> np.ndarray:
        asked.append((stored.folder.name, without))
        return (stored.labels() > 0)[None] * (0.4 if without else 0.8) + 0.15

    monkeypatch.setattr(Stored, "predict", predict)
    assert thresholds(None, [case_folder, both], "cpu") == {"with FLAIR": 0.2, "without FLAIR": 0.2}
    assert asked == [("sub-01", ()), ("sub-02", ()), ("sub-02", ("FLAIR",))]
    assert list(thresholds(None, [both], "cpu", wanted={"without FLAIR"})) == ["without FLAIR"]
    asked.clear()
    thresholds(None, [case_folder] * 100, "cpu")
    assert len(asked) == run.THRESHOLD_CASES


def test_a_model_is_written_once_as_it_was_judged(
    case_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, judged = [], []
    monkeypatch.setattr(
        run, "write_model", lambda network, folder, card: written.append(write_model(network, folder, card))
    )
    monkeypatch.setattr(run, "thresholds", lambda model, *rest, **more: judged.append(model) or {"with FLAIR": 0.3})
    model = train_model([load_case(case_folder)], PATCHWISE, folder=tmp_path)
    assert model is not None and model.card["lesion_threshold"] == {"with FLAIR": 0.3} and len(written) == 1
    stored, seen = model.network.state_dict(), judged[0].network.state_dict()
    assert all(torch.equal(stored[key], seen[key]) for key in stored)  # rounded as it is stored


def test_it_learns_a_bright_block(case_folder: Path, tmp_path: Path) -> None:
    """Some seconds of training find what is plainly visible; an untrained network does not."""
    case = load_case(case_folder)
    training = dataclasses.replace(PATCHWISE, steps=25, drop=0.0, learning_rate=5e-3)
    truth = case.labels > 0
    dice = {}
    for steps in (1, 25):
        model = train_model([case], dataclasses.replace(training, steps=steps), folder=tmp_path / str(steps))
        found = predict_drawn(model, case_folder, device="cpu") > 0
        drawn = found[22:30, 20:28, 5:9].sum()
        dice[steps] = 2 * drawn / (found.sum() + 8 * 8 * 4)
    assert truth.any() and dice[25] > 0.6 and dice[1] < 0.4

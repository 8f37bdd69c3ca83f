from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bidsapp.cards import read_lesion_model
from bidsapp.errors import AppError
from bidsapp.learn import cases, run
from bidsapp.learn.cases import Stored, load_case
from bidsapp.learn.model_folder import write_model
from bidsapp.learn.run import Training, make_network, predict_drawn, sample_config, thresholds, train_model, trial
from bidsapp.models.registry import read_model
from bidsapp.models.segment import packaged
from tests.other_device import other_device

LESION = ("background", "lesion")
SMALL = Training(name="t", classes=LESION, features=(8, 8, 8, 8), steps=2, workers=0)
PATCHWISE = dataclasses.replace(SMALL, architecture="TwoPathway", features=(4,) * 8)


@pytest.fixture(autouse=True)
def few_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.PATCHES, "TwoPathway", 2)
    monkeypatch.setattr(run, "VALIDATION_PATCHES", 4)


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


def test_a_channel_that_is_new_changes_nothing_at_first() -> None:
    """T1w with contrast agent is added, T2w is taken away: the same answer as of the packaged network without T2w."""
    network = make_network(
        Training(name="t", classes=LESION, init=packaged(), channels=("T1w", "FLAIR", "T1wCE"))
    ).eval()
    # In double precision: the sums of a convolution are taken in another order where there are other channels.
    network, known = network.double(), copy.deepcopy(packaged().network).double()
    x = torch.randn(1, 3, 32, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    place = torch.zeros(1, 3, 16, 16, 16, dtype=torch.float64)
    before = torch.stack([x[:, 0], torch.zeros_like(x[:, 0]), x[:, 1]], 1)
    with torch.no_grad():
        torch.testing.assert_close(network(x, place), known(before, place))
    first = network.down[0].conv1.weight
    assert first.shape[1] == 24 and first.requires_grad and not first[:, 16:].any()


@pytest.mark.parametrize(("channels", "keys"), [
    (("T1w", "FLAIR", "T1wCE"), {"with FLAIR", "without FLAIR"}), (("FLAIR",), {"with FLAIR"}),
])  # fmt: skip
def test_a_model_of_other_channels(
    case_folder: Path, tmp_path: Path, channels: tuple[str, ...], keys: set[str]
) -> None:
    """A case with T1wCE beside its FLAIR; the model is fit for --lesion-model."""
    record = json.loads((case_folder / "case.json").read_text()) | {"contrasts": ["FLAIR", "T1wCE"]}
    (case_folder / "case.json").write_text(json.dumps(record))
    shutil.copyfile(case_folder / "FLAIR.nii", case_folder / "T1wCE.nii")
    case = load_case(case_folder, channels)
    assert case.contrasts == tuple(name for name in ("FLAIR", "T1wCE") if name in channels)
    assert [bool(channel.any()) for channel in case.channels] == [name != "T1w" for name in channels]
    training = dataclasses.replace(PATCHWISE, steps=1, channels=channels)
    model = train_model([case], training, folder=tmp_path / "run")
    assert model is not None and model.card["channels"] == list(channels)
    read = read_lesion_model(tmp_path / "run/model")
    assert read.channels == channels and set(read.card["lesion_threshold"]) == keys
    assert predict_drawn(model, case_folder, device="cpu").shape == (40, 46, 13)


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
    model = SimpleNamespace(card={})
    assert thresholds(model, [case_folder, both], "cpu") == {"with FLAIR": 0.2, "without FLAIR": 0.2}
    assert asked == [("sub-01", ()), ("sub-02", ()), ("sub-02", ("FLAIR",))]
    assert list(thresholds(model, [both], "cpu", wanted={"without FLAIR"})) == ["without FLAIR"]
    asked.clear()
    thresholds(model, [case_folder] * 100, "cpu")
    assert len(asked) == run.THRESHOLD_CASES
    # A model that is shown no FLAIR: nothing is left of the one, and one threshold for the other.
    asked.clear()
    found = thresholds(SimpleNamespace(card={"channels": ["T1w", "T2w"]}), [case_folder, both], "cpu")
    assert list(found) == ["without FLAIR"] and [name for name, _ in asked] == ["sub-02"]


@pytest.mark.parametrize(("contrasts", "found"), [(["T1w"], True), (["T1w", "T2w"], False), (["FLAIR"], False)])
def test_a_case_is_predicted_at_the_threshold_that_the_app_would_take(
    contrasts: list[str], found: bool, case_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a model that was trained, the packaged one is judged: its card knows a threshold of a T1w alone."""
    record = json.loads((case_folder / "case.json").read_text()) | {"contrasts": contrasts}
    (case_folder / "case.json").write_text(json.dumps(record))
    monkeypatch.setattr(Stored, "predict", lambda stored, model, **_: (stored.labels() > 0)[None] * 0.6)
    card = packaged().card | {"lesion_threshold": {"with FLAIR": 0.65, "without FLAIR": 0.7, "T1w alone": 0.55}}
    model = dataclasses.replace(packaged(), card=card)
    assert predict_drawn(model, case_folder, device="cpu").any() == found


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


def test_without_a_lesion_to_draw_it_is_trained_on_the_cases_alone(
    case_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "_in_template", lambda case: np.zeros((4, 4, 4), np.uint8))
    said: list[str] = []
    training = dataclasses.replace(PATCHWISE, steps=1, synthetic=1.0)
    model = train_model([load_case(case_folder)], training, folder=tmp_path, say=said.append)
    assert model is not None and "too small for synthetic scans" in said[0]


def test_anatomy_is_predicted_once_and_not_when_time_is_over(
    case_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept for other folds, as long as the case and the packaged network are the same."""
    made: list[str] = []
    clock = itertools.count(1000.0, 1000.0)

    def head(case: cases.Case, device: str) -> dict[str, torch.Tensor]:
        made.append(case.name)
        return {"labels": torch.full((2, 2), len(made))}

    monkeypatch.setattr(cases, "_head", head)
    monkeypatch.setattr(run, "own_generator", lambda *_, **__: None)
    training = dataclasses.replace(PATCHWISE, steps=1, synthetic=0.5)
    case = load_case(case_folder)
    assert train_model([case], training, folder=tmp_path / "run", max_seconds=0.0) is None and not made
    assert train_model([case], training, folder=tmp_path / "run") is not None and made == ["sub-01"]
    assert int(cases.head_of(case, device="cpu")["labels"][0, 0]) == 1 and len(made) == 1
    (case_folder / "case.json").write_text((case_folder / "case.json").read_text() + " ")
    assert int(cases.head_of(case, device="cpu")["labels"][0, 0]) == 2
    (case_folder / cases.HEAD).write_bytes(b"half")
    assert int(cases.head_of(case, device="cpu")["labels"][0, 0]) == 3
    # Time goes by as it is made: nothing else is begun, nor made of the second case.
    (case_folder / cases.HEAD).unlink()
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert train_model([case, case], training, folder=tmp_path / "other", max_seconds=1500.0) is None
    assert len(made) == 4 and not (tmp_path / "other").exists()


def test_whole_brains_are_counted_as_they_are_predicted(case_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for number, contrasts in enumerate((["FLAIR"], ["T1w", "FLAIR"], ["T1w"])):
        folders.append(case_folder.with_name(f"sub-{number}"))
        shutil.copytree(case_folder, folders[-1])
        record = json.loads((case_folder / "case.json").read_text()) | {"contrasts": contrasts}
        (folders[-1] / "case.json").write_text(json.dumps(record))
    done: list[object] = []
    monkeypatch.setattr(Stored, "predict", lambda stored, model, **_: done.append(1) or np.zeros((1, 40, 46, 38)))
    for wanted in (run.THRESHOLD_KEYS, {"with FLAIR"}):
        done.clear()
        thresholds(packaged(), folders, "cpu", wanted=wanted)
        shown = [json.loads((folder / "case.json").read_text())["contrasts"] for folder in folders]
        assert run.brains_for_thresholds(shown, wanted) == len(done) > 1
    assert run.seconds_a_brain(packaged(), device="cpu") > 0.1


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


def test_on_another_device(case_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays behind on the CPU would end it, as on a GPU; the weights are those of a training on the CPU."""
    monkeypatch.setattr("bidsapp.models.segment.bfloat16", lambda device: False)
    case, training = load_case(case_folder), dataclasses.replace(SMALL, steps=1)
    with other_device() as device:
        there = train_model([case], training, folder=tmp_path / "there", device=device)
        thresholds_there = there.card["lesion_threshold"]
        weights = [parameter.detach().cpu() for parameter in there.network.parameters()]
    here = train_model([case], training, folder=tmp_path / "here")
    assert thresholds_there == here.card["lesion_threshold"]
    for one, other in zip(weights, here.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)

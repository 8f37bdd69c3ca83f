"""Lesion models that are given as ``--lesion-model``: what is wrong with one is said before anything runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bidsapp.cards import packaged_lesion_models, read_lesion_model
from bidsapp.config import LESION_MODELS, Config
from bidsapp.errors import InputError, UsageError
from bidsapp.models.registry import read_whole_lesion_model

Write = Callable[..., Path]


def config(root: Path, model: object) -> Config:
    (root / "dataset_description.json").write_text("{}")
    return Config(bids_dir=root, out_dir=root / "out", level="participant", lesion_model=str(model))


def change(folder: Path, **values: Any) -> None:
    card = json.loads((folder / "model.json").read_text())
    for key, value in values.items():
        if value is None:
            card.pop(key, None)
        else:
            card[key] = value
    (folder / "model.json").write_text(json.dumps(card))


def test_record_names_the_model_and_not_where_it_lies(tmp_path: Path, write_lesion_model: Write) -> None:
    one = write_lesion_model(tmp_path / "one")
    label = config(tmp_path, one).science()["lesion_model"]
    digest = hashlib.sha256((one / "weights.safetensors").read_bytes()).hexdigest()[:12]
    assert label.startswith(f"bright-1.0 (weights {digest}, ")
    same = write_lesion_model(tmp_path / "elsewhere")
    assert config(tmp_path, same).science()["lesion_model"] == label


def test_another_model_is_noticed(tmp_path: Path, write_lesion_model: Write) -> None:
    others = (
        {}, {"above": 1.0}, {"lesion_threshold": {"with FLAIR": 0.4}}, {"crf": {}}, {"first": True}, {"version": "1.1"},
    )  # fmt: skip
    labels = [
        config(tmp_path, write_lesion_model(tmp_path / str(number), **options)).science()["lesion_model"]
        for number, options in enumerate(others)
    ]
    assert len(set(labels)) == len(labels)
    folder = tmp_path / "4"
    change(folder / "first", lesion_threshold={"with FLAIR": 0.3})
    assert config(tmp_path, folder).science()["lesion_model"] != labels[4]
    change(folder, figures={"dice": 0.5})  # changes no result
    change(folder / "first", lesion_threshold={"with FLAIR": 0.5})
    assert config(tmp_path, folder).science()["lesion_model"] == labels[4]


def test_relative_folder_holds_wherever_the_nodes_run(
    tmp_path: Path, write_lesion_model: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lesion_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for name in ("model", "./model", "model/"):
        own = config(tmp_path, name).own_lesion_model
        assert own is not None and own.folder == tmp_path / "model"


@pytest.mark.parametrize("name", LESION_MODELS)
def test_the_apps_own_models_stay_what_they_are(tmp_path: Path, name: str) -> None:
    chosen = config(tmp_path, name)
    assert chosen.own_lesion_model is None and chosen.science()["lesion_model"] == name


def test_more_packaged_models_go_by_their_name(
    tmp_path: Path, write_lesion_model: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not {"segment", "brain"} & set(packaged_lesion_models())
    for folder in ("stroke-0.9.0", "stroke-0.10.0", "segment-0.1.0"):
        write_lesion_model(tmp_path / folder, name="stroke", version=folder.split("-")[1])
    monkeypatch.setattr("bidsapp.cards.packaged_lesion_models", lambda: packaged_lesion_models(tmp_path))
    monkeypatch.setattr("bidsapp.cards.newest", lambda name: tmp_path / f"{name}-0.10.0")
    assert packaged_lesion_models(tmp_path) == ("stroke",)
    assert config(tmp_path, "stroke").science()["lesion_model"].startswith("stroke-0.10.0 (")


@pytest.mark.parametrize("name", ["magic", "segment", "brain"])
def test_a_word_that_is_no_model(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"choose one of: consensus, network.*or give the folder"):
        config(tmp_path, name)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"channels": None}, "'channels'"), ({"channels": ["FLAIR", "PDw"]}, "'channels'.*'PDw'"),
        ({"classes": ["lesion"]}, "'classes'"), ({"classes": "lesion"}, "'classes'"),
        ({"lesion_classes": ["tumour"]}, "'lesion_classes'"), ({"lesion_classes": []}, "'lesion_classes'"),
        ({"lesion_kind": "tumor"}, "must be white-matter or other"), ({"lesion_kind": []}, "'lesion_kind'"),
        ({"lesion_classes": ["background"]}, "'lesion_classes'"),
        ({"classes": ["background", "cortex"]}, "a lesion model"),
        ({"patch": 0}, "'patch'"), ({"patch": "large"}, "'patch'"), ({"spacing_mm": 2.5}, "'spacing_mm'"),
        ({"architecture": "FoldedUNet", "patch": 16}, "above 16"),
        ({"surround_mm": -1}, "'surround_mm'"), ({"surround_mm": "all"}, "'surround_mm'"),
        ({"class_offsets": [1]}, "'class_offsets'"), ({"class_offsets": {"FLAIR": 1}}, "a table of numbers by class"),
        ({"class_offsets": {"T1w": {}}}, "'T1w' are not among the channels"),
        ({"class_offsets": {"FLAIR": {"tumour": 0.1}}}, "'tumour': 0.1"),
        ({"class_offsets": {"FLAIR": {"lesion": 9}}}, "from -2 to 2"),
        ({"class_offsets": {"FLAIR": {"lesion": float("nan")}}}, "from -2 to 2"),
        ({"orientation": "LPS"}, "'orientation'"), ({"lesion_threshold": None}, "'lesion_threshold'"),
        ({"lesion_threshold": {"with FLAIR": 2}}, "between 0 and 1"),
        ({"lesion_threshold": {"with FLAIR": float("nan")}}, "between 0 and 1"),
        ({"lesion_threshold": {"without FLAIR": 0.5}}, "FLAIR is the only"),
        ({"channels": ["T1w"]}, "FLAIR is no channel"),
        ({"lesion_threshold": {"with T2w": 0.5}}, "'with FLAIR'"), ({"crf": True}, "'crf'"),
        ({"cascade": {"propose_above": 0.1}}, "'cascade'"),
        ({"cascade": {"propose_above": 0.1, "grow_mm": -1}}, "'cascade'"),
        ({"cascade": {"propose_above": 0.1, "grow_mm": 3}}, "first: there is no such folder"),
        ({"weights": {"file": "../x", "sha256": ""}}, "plain name"), ({"name": "a\nb"}, "printable"),
    ],
    ids=str,
)  # fmt: skip
def test_card_that_cannot_be_used(tmp_path: Path, write_lesion_model: Write, values: dict[str, Any], what: str) -> None:
    folder = write_lesion_model(tmp_path / "model")
    change(folder, **values)
    with pytest.raises(InputError, match=what) as error:
        config(tmp_path, folder)
    assert str(error.value).startswith(f"--lesion-model: {folder}")


def test_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--lesion-model.*no such folder"):
        config(tmp_path, tmp_path / "gone")
    with pytest.raises(InputError, match=r"no model\.json"):
        config(tmp_path, tmp_path)


def test_cascade_of_a_cascade(tmp_path: Path, write_lesion_model: Write) -> None:
    folder = write_lesion_model(tmp_path / "model", first=True)
    assert read_lesion_model(folder).first is not None
    change(folder / "first", cascade={"propose_above": 0.1, "grow_mm": 3})
    with pytest.raises(InputError, match="a cascade itself"):
        read_lesion_model(folder)


def test_contrasts_it_can_be_used_on(tmp_path: Path, write_lesion_model: Write) -> None:
    model = read_lesion_model(write_lesion_model(
        tmp_path / "model", channels=["T1w", "FLAIR"], lesion_threshold={"with FLAIR": 0.3, "without FLAIR": 0.2}
    ))  # fmt: skip
    assert model.threshold(["FLAIR"]) == model.threshold(["T2w", "T1w", "FLAIR"]) == 0.3
    assert model.threshold(["T1w", "T2w"]) == 0.2 and model.unusable_because(["T1w"]) == ""
    assert model.threshold(["T2w"]) is None and "T1w or FLAIR" in model.unusable_because(["T2w"])
    three = {"with FLAIR": 0.3, "without FLAIR": 0.2, "T1w alone": 0.1}
    change(tmp_path / "model", channels=["T1w", "T2w", "FLAIR"], lesion_threshold=three)
    model = read_lesion_model(tmp_path / "model")
    assert [model.threshold(there) for there in (["T1w"], ["T1w", "T2w"], ["T2w"], ["FLAIR"])] == [0.1, 0.2, 0.2, 0.3]
    change(tmp_path / "model", channels=["T1w", "FLAIR"], lesion_threshold={"with FLAIR": 0.3})
    model = read_lesion_model(tmp_path / "model")
    assert model.threshold(["T1w"]) is None and "there is no FLAIR" in model.unusable_because(["T1w"])


KEYS = ("name", "version", "architecture", "network", "spacing_mm", "orientation", "channels", "classes", "patch",
        "lesion_classes", "lesion_kind", "lesion_threshold", "weights", "cascade", "crf", "training")  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["background", "lesion", "FLAIR", "with FLAIR", "weights.safetensors", "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["file", "sha256", "features", "channels", "classes", "joint", "dropout", "with FLAIR",
                         "propose_above", "grow_mm", "spatial_mm", "iterations", "data"]) | st.text(max_size=4),
        inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


def test_lesions_are_of_the_white_matter_unless_they_have_parts_or_the_card_says_so(
    tmp_path: Path, write_lesion_model: Write
) -> None:
    parts = {"classes": ["background", "a", "b"], "lesion_classes": ["a", "b"]}
    for number, (card, kind) in enumerate(
        [({}, "white-matter"), (parts, "other"), ({"lesion_kind": "other"}, "other"),
         ({**parts, "lesion_kind": "white-matter"}, "white-matter")]
    ):  # fmt: skip
        model = read_lesion_model(write_lesion_model(tmp_path / str(number), **card))
        assert model.lesion_kind == model.about(["FLAIR"])["lesion_kind"] == kind


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS), value=VALUES)
@example(key="architecture", value="\ud800")
def test_whatever_stands_in_a_card_there_is_a_clear_error_or_none(
    tmp_path: Path, write_lesion_model: Write, key: str, value: Any
) -> None:
    folder = tmp_path / "model"
    if not folder.exists():
        write_lesion_model(folder, training={"data": ["one"]})
        (tmp_path / "card").write_text((folder / "model.json").read_text())
    card = json.loads((tmp_path / "card").read_text())
    (folder / "model.json").write_text(json.dumps(card | {key: value}))
    try:
        model = read_lesion_model(folder)
        json.dumps(model.about(["T1w", "FLAIR"]), ensure_ascii=False).encode()
        assert model.label
        read_whole_lesion_model(folder)
    except InputError as error:
        said = str(error)
    else:
        said = str(folder)
    assert str(folder) in said

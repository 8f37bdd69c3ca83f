"""Model folders: whole ones load, and whatever may be wrong with one is said, with its file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

from bidsapp.cards import PACKAGED
from bidsapp.errors import AppError, InputError
from bidsapp.models.patchwise import TwoPathway, TwoPathwayConfig
from bidsapp.models.registry import ARCHITECTURES, build, load_model, read_model
from bidsapp.models.unet import FoldedUNet, UNetConfig

UNET = UNetConfig(channels=1, classes=2, features=(4, 6))
TWO = TwoPathwayConfig(channels=1, classes=2, features=(2,) * 8, joint=3)


def write(folder: Path, network: nn.Module, **card: Any) -> Path:
    folder.mkdir(parents=True)
    weights = save({key: value.half() for key, value in network.state_dict().items()})
    (folder / "weights.safetensors").write_bytes(weights)
    digest = hashlib.sha256(weights).hexdigest()
    whole = {
        "name": "toy", "version": "1.2", "architecture": type(network).__name__, "network": asdict(network.config),
        "spacing_mm": 1.0, "weights": {"file": "weights.safetensors", "sha256": digest}, **card,
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(whole))
    return folder


def change(folder: Path, **values: Any) -> None:
    """Change or take away (None) keys of the card; ``weights__file`` is ``weights.file``."""
    card = json.loads((folder / "model.json").read_text())
    for key, value in values.items():
        *tables, name = key.split("__")
        table = card
        for part in tables:
            table = table[part]
        if value is None:
            del table[name]
        else:
            table[name] = value
    (folder / "model.json").write_text(json.dumps(card))


@pytest.mark.parametrize("network", [FoldedUNet(UNET), TwoPathway(TWO)], ids=lambda network: type(network).__name__)
def test_round_trip(tmp_path: Path, network: nn.Module) -> None:
    model = read_model(write(tmp_path / "toy-1.2", network))
    side = 16 + 2 * network.margin - (16 % network.config.multiple)
    x = torch.rand(1, 1, side, side, side, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.network(x), network.half().float().eval()(x))
    assert (model.name, model.version, model.spacing_mm, model.first) == ("toy", "1.2", 1.0, None)
    assert model.network.config == network.config
    assert not model.network.training and not any(p.requires_grad for p in model.network.parameters())


@pytest.mark.parametrize("folder", sorted(PACKAGED.glob("*-*")), ids=lambda folder: folder.name)
def test_packaged_models_can_be_read(folder: Path) -> None:
    model = read_model(folder)
    assert type(model.network).__name__ == model.card["architecture"]


def test_what_every_network_tells() -> None:
    for name, (config, network) in ARCHITECTURES.items():
        built = build(name, {})
        assert type(built) is network and built.config == config()
        assert built.margin >= 0 and built.config.multiple % built.config.step == 0
        assert {"channels", "classes", "place"} <= set(asdict(built.config))


def test_cascade_has_its_first_model(tmp_path: Path) -> None:
    second = TwoPathway(TwoPathwayConfig(channels=2, classes=2, features=(2,) * 8, joint=3))
    folder = write(tmp_path / "both", second, cascade={"propose_above": 0.1, "grow_mm": 3.0}, channels=["FLAIR"])
    with pytest.raises(InputError, match="first"):
        read_model(folder)
    write(folder / "first", FoldedUNet(UNET), channels=["FLAIR"], name="proposes")
    model = read_model(folder)
    assert model.first is not None and model.first.name == "proposes"
    change(folder / "first", channels=["T1w"])
    with pytest.raises(InputError, match="those of first"):
        read_model(folder)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"architecture": "Transformer"}, "'Transformer' is unknown.*FoldedUNet, TwoPathway"),
        ({"network__attention": True}, "no option 'attention'"),
        ({"network__features": [4, 0]}, "1 or more"),
        ({"network__features": "wide"}, "cannot be built"),
        ({"network__features": [4, 6, 8]}, "not the weights of the network"),
        ({"network__features": [4, 10**5]}, "not the weights of the network"),
        ({"network__features": [4, 10**9]}, "cannot be built"),
        ({"network__classes": 3}, "head.bias: 16 in the file, 24 in the network"),
        ({"spacing_mm": None}, "'spacing_mm' is missing"),
        ({"spacing_mm": "one"}, "'spacing_mm' cannot be 'one'"),
        ({"version": "1\n2"}, "printable"),
        ({"weights__sha256": None}, "'sha256'"),
        ({"weights__file": "../secret"}, "plain name"),
        ({"weights__file": "/etc/passwd"}, "plain name"),
        ({"weights__file": ".."}, "plain name"),
        ({"weights__file": "gone.safetensors"}, "gone.safetensors: cannot be read"),
    ],
    ids=str,
)
def test_card_that_cannot_be_used(tmp_path: Path, values: dict[str, Any], what: str) -> None:
    folder = write(tmp_path / "toy", FoldedUNet(UNET))
    change(folder, **values)
    with pytest.raises(InputError, match=what) as error:
        read_model(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("content", ["{", "[1]", "", '{"name": "toy"}', "[" * 100_000])
def test_file_that_is_no_card(tmp_path: Path, content: str) -> None:
    folder = write(tmp_path / "toy", FoldedUNet(UNET))
    (folder / "model.json").write_text(content)
    with pytest.raises(InputError, match=r"model\.json"):
        read_model(folder)


def test_what_is_no_model_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_model(tmp_path / "gone")
    with pytest.raises(InputError, match=r"no model\.json"):
        read_model(tmp_path)
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(InputError, match="is a file"):
        read_model(tmp_path / "weights.pt")


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"\xff" * 64], ids=["empty", "pickle", "noise"])
def test_weights_that_are_none(tmp_path: Path, content: bytes) -> None:
    """Even if the checksum is right."""
    folder = write(tmp_path / "toy", FoldedUNet(UNET))
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="not the file that"):
        read_model(folder)
    change(folder, weights__sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(InputError, match="no safetensors file"):
        read_model(folder)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    network = FoldedUNet(UNET)
    with torch.no_grad():
        network.head.bias[1] = float("nan")
    with pytest.raises(InputError, match=r"head\.bias.*not finite"):
        read_model(write(tmp_path / "toy", network))


def test_a_packaged_model_that_is_damaged_is_the_installations(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy-1.2", FoldedUNet(UNET))
    change(folder, weights__sha256="0" * 64)
    with pytest.raises(AppError, match="install the app anew") as error:
        load_model("toy", folder=tmp_path)
    assert not isinstance(error.value, InputError)

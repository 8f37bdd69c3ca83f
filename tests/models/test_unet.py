from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from bidsapp.errors import AppError
from bidsapp.models.registry import load_model, read_model
from bidsapp.models.unet import FoldedUNet, UNetConfig, fold, unfold

SMALL = UNetConfig(channels=1, classes=2, features=(4, 6))


def test_fold_puts_each_block_into_channels() -> None:
    x = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    np.testing.assert_array_equal(fold(x).flatten().numpy(), np.arange(8.0))
    assert fold(torch.zeros(2, 3, 4, 6, 8)).shape == (2, 24, 2, 3, 4)


def test_unfold_undoes_fold(rng_torch: torch.Generator) -> None:
    x = torch.randn(2, 3, 4, 6, 8, generator=rng_torch)
    torch.testing.assert_close(unfold(fold(x)), x, rtol=0, atol=0)


def test_network_keeps_the_grid_and_every_weight_learns(rng_torch: torch.Generator) -> None:
    network = FoldedUNet(SMALL)
    logits = network(torch.randn(1, 1, 8, 12, 16, generator=rng_torch))
    assert logits.shape == (1, 2, 8, 12, 16)
    (logits * torch.randn(logits.shape, generator=rng_torch)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_network_refuses_axes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        FoldedUNet(SMALL)(torch.zeros(1, 1, 8, 8, 6))


def test_model_folder_round_trip(tmp_path: Path) -> None:
    network = _write(tmp_path, "toy-0.1.0")
    model = read_model(tmp_path / "toy-0.1.0")
    x = torch.rand(1, 1, 8, 8, 12, generator=torch.Generator().manual_seed(0))
    # Weights are kept in half precision.
    torch.testing.assert_close(model.network(x), network.half().float()(x))
    assert not model.network.training and model.spacing_mm == 2.5


def test_newest_version_is_loaded(tmp_path: Path) -> None:
    _write(tmp_path, "toy-0.9.0")
    _write(tmp_path, "toy-0.10.0")
    assert load_model("toy", folder=tmp_path).version == "0.10.0"


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, "toy-0.1.0")
    weights = tmp_path / "toy-0.1.0/weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(AppError, match="damaged"):
        read_model(tmp_path / "toy-0.1.0")


def test_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(AppError, match="no model 'toy'"):
        load_model("toy", folder=tmp_path)


@pytest.fixture
def rng_torch() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _write(parent: Path, name: str) -> FoldedUNet:
    import hashlib

    torch.manual_seed(0)
    network = FoldedUNet(SMALL)
    folder = parent / name
    folder.mkdir()
    weights = save({key: value.half() for key, value in network.state_dict().items()})
    (folder / "weights.safetensors").write_bytes(weights)
    card = {
        "name": "toy",
        "version": name.split("-")[1],
        "architecture": "FoldedUNet",
        "spacing_mm": 2.5,
        "network": {"channels": 1, "classes": 2, "features": [4, 6]},
        "weights": {"file": "weights.safetensors", "sha256": hashlib.sha256(weights).hexdigest()},
    }
    (folder / "model.json").write_text(json.dumps(card))
    return network

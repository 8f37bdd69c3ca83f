"""Write a trained network as a self-describing folder, as `bidsapp.models.registry` reads it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from bidsapp.cards import CARD, WEIGHTS
from bidsapp.writing import replacing, write_text


def write_model(network: nn.Module, folder: Path, card: Mapping[str, Any]) -> Path:
    """Write ``weights.safetensors`` (float16) and then ``model.json``, each whole or not at all.

    Parameters
    ----------
    network : Module
        One of `registry.ARCHITECTURES`.
    folder : Path
    card : mapping
        ``name``, ``version`` and what else the card says; architecture, network and weights are added here.

    Returns
    -------
    Path
        The folder.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in sorted(network.state_dict().items())}
    weights = save({key: value.half() if value.is_floating_point() else value for key, value in state.items()})
    with replacing(folder / WEIGHTS) as aside:
        aside.write_bytes(weights)
    whole = {
        "name": card["name"],
        "version": card["version"],
        "architecture": type(network).__name__,
        "network": dataclasses.asdict(network.config),  # type: ignore[call-overload]
        **card,
        "weights": {
            "file": WEIGHTS,
            "type": "float16",
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "sha256": hashlib.sha256(weights).hexdigest(),
        },
    }
    write_text(folder / CARD, json.dumps(whole, indent=1) + "\n")
    return folder

"""Trained networks as self-describing folders: ``weights/<name>-<version>/{model.json,weights.safetensors}``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bidsapp.errors import AppError
from bidsapp.models.unet import FoldedUNet, UNetConfig

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Model:
    """A network ready to run, and what its ``model.json`` says.

    Attributes
    ----------
    name, version : str
    spacing_mm : float
        Isotropic voxel size of its input.
    card : dict
        All of ``model.json``: classes, normalisation, training data, licences, figures.
    network : FoldedUNet
        float32, in evaluation mode, on the device asked for.
    """

    name: str
    version: str
    spacing_mm: float
    card: dict[str, Any]
    network: FoldedUNet


def load_model(name: str, *, device: str = "cpu", folder: Path = WEIGHTS) -> Model:
    """Load the newest version of the model `name` from `folder`.

    Raises
    ------
    AppError
        No such model, or its weights are not those described (checksum): the installation is damaged.
    """
    found = sorted(folder.glob(f"{name}-*/model.json"), key=lambda path: _version(path.parent.name))
    if not found:
        raise AppError(f"no model '{name}' in {folder}: the installation is incomplete; install the app anew")
    return read_model(found[-1].parent, device=device)


def read_model(folder: Path, *, device: str = "cpu") -> Model:
    """Load the model in `folder`; never unpickles anything. Raises AppError as `load_model`."""
    try:
        card = json.loads((folder / "model.json").read_text())
        weights = folder / card["weights"]["file"]
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    except (OSError, ValueError, KeyError) as error:
        raise AppError(f"model folder {folder} cannot be read ({error}); install the app anew") from error
    if digest != card["weights"]["sha256"]:
        raise AppError(
            f"{weights} is not the file that model.json describes (sha256 {digest[:12]}..., expected "
            f"{card['weights']['sha256'][:12]}...): it is damaged or was replaced; install the app anew"
        )
    options = card["network"] | {"features": tuple(card["network"]["features"])}
    network = FoldedUNet(UNetConfig(**options))
    network.load_state_dict({key: value.float() for key, value in load_file(weights).items()})
    network.to(torch.device(device)).eval().requires_grad_(False)
    return Model(card["name"], card["version"], float(card["spacing_mm"]), card, network)


def _version(folder_name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in folder_name.rsplit("-", 1)[1].split("."))

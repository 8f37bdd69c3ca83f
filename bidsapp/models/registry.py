"""Trained networks as self-describing folders: ``<name>-<version>/{model.json,weights.safetensors}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from bidsapp.cards import CARD, FIRST, PACKAGED, newest, read_card, read_lesion_model, weights_file
from bidsapp.errors import AppError, InputError
from bidsapp.models.crf import CrfSettings
from bidsapp.models.patchwise import TwoPathway, TwoPathwayConfig
from bidsapp.models.unet import FoldedUNet, UNetConfig

Network = FoldedUNet | TwoPathway

#: Configuration and network by the ``architecture`` of a card. Each network has `config` (channels, classes, place,
#: multiple, step) and `margin` (voxels it must see around what it answers), and maps (B, channels, X + 2 margin, ...)
#: and, if `place`, (B, 3, X/2, Y/2, Z/2) to logits (B, classes, X, Y, Z).
ARCHITECTURES: Mapping[str, tuple[type, type[Network]]] = {
    "FoldedUNet": (UNetConfig, FoldedUNet),
    "TwoPathway": (TwoPathwayConfig, TwoPathway),
}


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
    network : FoldedUNet or TwoPathway
        float32, in evaluation mode, on the device asked for.
    first : Model or None
        Of a cascade: the model that proposes. The network has its foreground probability as one channel more, the last.
    """

    name: str
    version: str
    spacing_mm: float
    card: dict[str, Any]
    network: Network
    first: Model | None = None


def build(architecture: str, options: Mapping[str, Any]) -> Network:
    """A new network; lists among the options may stand for tuples, as in JSON.

    Raises
    ------
    InputError
        Unknown architecture, or options that it does not have or cannot be.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"architecture {architecture!r} is unknown to this version of the app; it has {', '.join(ARCHITECTURES)}."
        )
    config, network = ARCHITECTURES[architecture]
    known = [field.name for field in fields(config)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(
            f"{architecture} has no option {', '.join(map(repr, unknown))}; its options are {', '.join(known)}."
        )
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    try:
        return network(config(**values))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{architecture} cannot be built with {dict(options)} ({error}).") from error


def load_model(name: str, *, device: str = "cpu", folder: Path = PACKAGED) -> Model:
    """Load the newest version of the packaged model `name` from `folder`.

    Raises
    ------
    AppError
        No such model, or it cannot be used (see `read_model`): the installation is damaged.
    """
    found = newest(name, folder)
    if found is None:
        raise AppError(f"no model '{name}' in {folder}: the installation is incomplete; install the app anew")
    try:
        return read_model(found, device=device)
    except InputError as error:
        raise AppError(f"{error} The installation is damaged: install the app anew.") from error


def read_model(folder: Path, *, device: str = "cpu") -> Model:
    """Load the model in `folder`; never unpickles anything.

    Raises
    ------
    InputError
        As `cards.read_card`; or an unknown architecture, options it does not have, weights of another network, or a
        cascade without its first model.
    """
    card = read_card(folder)
    try:
        with torch.device("meta"):  # nothing is reserved before it is known that the weights fit
            network = build(card["architecture"], card["network"])
    except InputError as error:
        raise InputError(f"{folder / CARD}: {error}") from error
    network.load_state_dict(_weights(weights_file(folder, card), network), assign=True)
    network.to(torch.device(device)).eval().requires_grad_(False)
    first = _first(folder, card, network, device)
    return Model(card["name"], card["version"], float(card["spacing_mm"]), card, network, first)


def read_whole_lesion_model(folder: Path) -> Model:
    """Load a lesion model (or a cascade) that somebody trained, once all that its card says fits its networks.

    Raises
    ------
    InputError
        As `read_model` and `cards.read_lesion_model`; or classes, channels, tile or CRF do not fit the network.
    """
    read_lesion_model(folder)
    model = read_model(folder)
    for one, more in ((model, int(model.first is not None)), (model.first, 0)):
        if one is not None:
            _check_card(folder if one is model else folder / FIRST, one, more)
    return model


def _check_card(folder: Path, model: Model, more: int) -> None:
    card, config = model.card, model.network.config
    for what, said, has in (
        ("classes", len(card["classes"]), config.classes),
        ("channels", len(card["channels"]) + more, config.channels),
    ):
        if said != has:
            raise InputError(f"{folder / CARD}: {said} {what}, but the network has {has}.")
    if card["patch"] % config.multiple:
        raise InputError(f"{folder / CARD}: 'patch' must be a multiple of {config.multiple}, not {card['patch']}.")
    try:
        CrfSettings.of(card.get("crf", {}))
    except ValueError as error:
        raise InputError(f"{folder / CARD}: 'crf': {error}.") from error


def _weights(path: Path, network: Network) -> dict[str, torch.Tensor]:
    """The tensors of the file, of the types of the network (float32)."""
    try:
        stored = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: is no safetensors file ({error}); copy the model folder again.") from error
    wanted = network.state_dict()
    amiss = [
        f"{name}: {_size(stored.get(name))} in the file, {_size(wanted.get(name))} in the network"
        for name in sorted(set(stored) | set(wanted))
        if _size(stored.get(name)) != _size(wanted.get(name))
    ]
    if amiss:
        raise InputError(
            f"{path}: these are not the weights of the network that {CARD} describes ({amiss[0]}"
            f"{f'; and {len(amiss) - 1} more' if amiss[1:] else ''}). Correct 'architecture' and 'network' in {CARD},"
            " or write the folder anew with the program that trained it."
        )
    broken = [name for name, value in stored.items() if wanted[name].is_floating_point() and not value.isfinite().all()]
    if broken:
        raise InputError(f"{path}: {sorted(broken)[0]} holds numbers that are not finite; train the model again.")
    return {name: stored[name].nan_to_num().to(wanted[name].dtype) for name in wanted}


def _size(tensor: torch.Tensor | None) -> str:
    return "nothing" if tensor is None else "x".join(map(str, tensor.shape)) or "one number"


def _first(folder: Path, card: Mapping[str, Any], network: Network, device: str) -> Model | None:
    """The model that proposes, where this is a cascade."""
    if "cascade" not in card:
        return None
    first = read_model(folder / FIRST, device=device)
    if first.first is not None:
        raise InputError(f"{folder / FIRST / CARD}: is a cascade itself; a cascade has two models.")
    channels = first.card.get("channels")
    if card.get("channels") != channels or network.config.channels != len(channels or ()) + 1:
        raise InputError(
            f"{folder / CARD}: a cascade's 'channels' must be those of {FIRST}/{CARD} ({channels}), and its network"
            " must have one channel more, for what the first model found."
        )
    return first

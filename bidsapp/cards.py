"""What a model folder says of itself: ``model.json`` and the weights it describes, checked without loading them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bidsapp.errors import InputError

CARD, WEIGHTS, FIRST = "model.json", "weights.safetensors", "first"
#: What every card holds, and as what.
REQUIRED: Mapping[str, type | tuple[type, ...]] = {
    "name": str, "version": str, "architecture": str, "network": dict, "spacing_mm": (int, float), "weights": dict,
}  # fmt: skip


def read_card(folder: Path) -> dict[str, Any]:
    """The ``model.json`` of a model folder, once the weights beside it are those that it describes.

    Raises
    ------
    InputError
        No such folder, a file is missing or damaged, a key is missing or of another kind, ``weights.file`` is not the
        plain name of a file, or the checksum differs.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise InputError(f"{folder}: {what}; a model is the folder that holds {CARD} and {WEIGHTS}.")
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: holds no {CARD}, so this is not a model folder.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy the model folder again.") from error
    if not isinstance(card, dict):
        raise InputError(f'{path}: must hold a table {{"name": ..., "version": ..., ...}}.')
    for key, kind in REQUIRED.items():
        if key not in card:
            raise InputError(f"{path}: {key!r} is missing; write the folder anew with the program that trained it.")
        if not isinstance(card[key], kind) or isinstance(card[key], bool):
            raise InputError(f"{path}: {key!r} cannot be {str(card[key])[:40]!r}.")
    for key in ("name", "version"):
        if not card[key].isprintable() or not 0 < len(card[key]) <= 100:
            raise InputError(f"{path}: {key!r} must be 1 to 100 printable characters.")
    _check_weights(folder, card["weights"])
    return card


def weights_file(folder: Path, card: Mapping[str, Any]) -> Path:
    """The file of the weights that a checked card describes."""
    return folder / str(card["weights"]["file"])


def label(card: Mapping[str, Any]) -> str:
    """Name, version and checksum of the weights: what tells one model from another."""
    return f"{card['name']}-{card['version']} ({card['weights']['sha256'][:12]})"


def _check_weights(folder: Path, weights: Mapping[str, Any]) -> None:
    path = folder / CARD
    for key in ("file", "sha256"):
        if not isinstance(weights.get(key), str):
            raise InputError(f"{path}: 'weights' must hold the text {key!r}.")
    name = weights["file"]
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        raise InputError(f"{path}: 'weights.file' must be the plain name of a file in the folder, not {name!r}.")
    file = folder / name
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); copy the model folder again.") from error
    if digest != weights["sha256"]:
        raise InputError(
            f"{file} is not the file that {CARD} describes (sha256 {digest[:12]}..., expected"
            f" {weights['sha256'][:12]}...): it is damaged or was replaced; copy the model folder again."
        )

"""What a training was begun with, kept beside its checkpoint: only one of the same is gone on with, or used again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bidsapp import __version__
from bidsapp.learn.run import Training
from bidsapp.models.registry import Model
from bidsapp.writing import json_or_nothing, sha256, write_text

#: The file in a training's folder.
RECORD = "begun.json"
#: Fields of `Training` that change no weight: how the machine is used, and a name that is written at the end.
WITHOUT_EFFECT = ("name", "workers", "threads")
#: Another number where the same cases and settings train otherwise: 2 since patches are turned along all axes, 3 since
#: synthetic patches are right at their ends and told their own place.
RECIPE = 3
#: Cases that a message names.
NAMED = 5


def of_case(folder: Path) -> str:
    """SHA-256 of what a prepared case was made of: scans, labels and options."""
    return sha256(folder / "case.json")


def of_model(model: Model) -> str:
    """Name, version and a checksum of a model's card (which holds that of the weights), and of its first model's."""
    card = {key: value for key, value in model.card.items() if key != "name"}
    text = json.dumps([card, model.first and model.first.card], sort_keys=True)
    return f"{model.name} {model.version}, {hashlib.sha256(text.encode()).hexdigest()}"


def of_training(cases: Mapping[str, Path], training: Training, wanted: Collection[str]) -> dict[str, Any]:
    """All that the outcome of a training depends on, as JSON holds it.

    Parameters
    ----------
    cases : mapping
        Folders of the prepared cases by name.
    training : Training
    wanted : collection of str
        The thresholds that are tried.

    Returns
    -------
    dict
    """
    asked = {field.name: getattr(training, field.name) for field in dataclasses.fields(training)}
    models = {key: of_model(value) for key, value in asked.items() if isinstance(value, Model)}
    settings = {key: value for key, value in (asked | models).items() if key not in WITHOUT_EFFECT}
    found = {
        "app": __version__,
        "cases": {name: of_case(folder) for name, folder in cases.items()},
        "settings": {**settings, "thresholds": sorted(wanted), "recipe": RECIPE},
    }
    return json.loads(json.dumps(found, sort_keys=True))


def begin(folder: Path, now: Mapping[str, Any], *, keep: Collection[str] = ()) -> str:
    """Make the folder of a training ready: what one of another fingerprint left there is removed.

    Parameters
    ----------
    folder : Path
    now : mapping
        From `of_training`.
    keep : collection of str
        Names in the folder that are not the training's own.

    Returns
    -------
    str
        What is different from the one that was removed; empty where none was.
    """
    path = folder / RECORD
    before = json_or_nothing(path)
    if before == now:
        return ""
    left = [child for child in folder.iterdir() if child.name not in keep] if folder.is_dir() else []
    path.unlink(missing_ok=True)  # first: whatever is left if this is stopped halfway is nobody's
    for child in left:
        if child.is_dir():
            shutil.rmtree(child)
        else:
            child.unlink(missing_ok=True)
    write_record(path, now)
    return _differences(before, now) if left else ""


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write the record, whole or not at all."""
    write_text(path, json.dumps(record, indent=1, sort_keys=True) + "\n")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if not {"app", "cases", "settings"} <= set(before):
        return "what it was begun with is not known"
    told = []
    old, new = before["cases"], now["cases"]
    for names, how in (
        (set(new) - set(old), "new"), (set(old) - set(new), "left out now"),
        ({name for name in set(old) & set(new) if old[name] != new[name]}, "prepared anew"),
    ):  # fmt: skip
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            told.append(f"{', '.join(sorted(names)[:NAMED])}{more}: {how}")
    old, new = before["settings"], now["settings"]
    told += [
        f"{key.replace('_', ' ')}: {_short(old.get(key))}, now {_short(new.get(key))}"
        for key in sorted(set(old) | set(new))
        if old.get(key) != new.get(key)
    ]
    if before["app"] != now["app"]:
        told.append(f"app: {before['app']}, now {now['app']}")
    return "; ".join(told)


def _short(value: Any) -> str:
    """A setting in a message; of a model's checksum the start."""
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, str):
        name, comma, checksum = value.partition(", ")
        return f"{name} ({checksum[:8]})" if comma else name
    return "none" if value is None else str(value)

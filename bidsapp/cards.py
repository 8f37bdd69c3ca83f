"""What a model folder says of itself: ``model.json`` and the weights it describes, checked without loading them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from bidsapp import writing
from bidsapp.errors import AppError, InputError
from bidsapp.labels import CONTRASTS, WITH_AGENT

CARD, WEIGHTS, FIRST = "model.json", "weights.safetensors", "first"
#: The models that come with the app.
PACKAGED = Path(__file__).parent / "models" / "weights"
#: Those that are no lesion models to be chosen: what the app uses anyway.
ALWAYS_USED = ("brain", "segment")
#: What a model's channels may be.
CHANNELS = (*CONTRASTS, WITH_AGENT)
#: Keys of ``lesion_threshold``.
WITH_FLAIR, WITHOUT_FLAIR = "with FLAIR", "without FLAIR"
#: ... and one that a card may hold beside them, for where a T1w is all there is: it shows lesions fainter than a T2w.
T1W_ALONE = "T1w alone"
#: What a model's lesions are: those of MS and small vessels, whose places mean something, or any other (tumor, stroke).
LESION_KINDS = WHITE_MATTER, OTHER = "white-matter", "other"
#: No model may ask to be shown more than this around the brain: beyond it there is no head.
MOST_SURROUND_MM = 50.0
#: Classes that a lesion may have at most.
MOST_CLASSES = 50
#: Voxels that neighbouring tiles share, but for networks with a margin: those answer alike in every tile.
OVERLAP, WITH_MARGIN = 16, ("TwoPathway",)
#: Offsets of logits correct small differences; one of more than this would overrule what the network sees.
MOST_OFFSET = 2.0
#: Characters of a model's name, and of its version.
LONGEST_NAME = 100
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
        json.dumps(card, ensure_ascii=False).encode()  # half a character, a lone surrogate, is read but never written
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
        if not card[key].isprintable() or not 0 < len(card[key]) <= LONGEST_NAME:
            raise InputError(f"{path}: {key!r} must be 1 to {LONGEST_NAME} printable characters.")
    _check_weights(folder, card["weights"])
    return card


def weights_file(folder: Path, card: Mapping[str, Any]) -> Path:
    """The file of the weights that a checked card describes."""
    return folder / str(card["weights"]["file"])


def newest(name: str, folder: Path = PACKAGED) -> Path | None:
    """The folder of the newest version of a packaged model."""
    return _by_name(folder).get(name)


def check_packaged(folder: Path = PACKAGED) -> None:
    """Make sure that the networks that are always used are there and whole, before anything is done by them.

    Raises
    ------
    AppError
        One is missing or damaged.
    """
    for name in ALWAYS_USED:
        found = newest(name, folder)
        if found is None:
            raise AppError(f"no model '{name}' in {folder}: the installation is incomplete; install the app anew.")
        try:
            read_card(found)
        except InputError as error:
            raise AppError(f"{error} The installation is damaged: install the app anew.") from error


def packaged_version(name: str) -> str:
    """The newest version of a packaged model, or nothing where there is none."""
    found = newest(name)
    return "" if found is None else found.name.rsplit("-", 1)[1]


def packaged_lesion_models(folder: Path = PACKAGED) -> tuple[str, ...]:
    """Names of the lesion models that come with the app, but for the one that is always used."""
    return tuple(name for name in _by_name(folder) if name not in ALWAYS_USED)


def _by_name(folder: Path) -> dict[str, Path]:
    found = {}
    for path in sorted((path.parent for path in folder.glob(f"*-*/{CARD}")), key=lambda path: _version(path.name)):
        found[path.name.rsplit("-", 1)[0]] = path
    return dict(sorted(found.items()))


def _version(folder_name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in folder_name.rsplit("-", 1)[1].split(".") if part.isdigit())


def threshold_key(contrasts: Collection[str]) -> str:
    """Key of ``lesion_threshold`` for a network shown these contrasts, but for `T1W_ALONE`."""
    return WITH_FLAIR if "FLAIR" in contrasts else WITHOUT_FLAIR


def threshold_of(card: Mapping[str, Any], contrasts: Collection[str]) -> float | None:
    """Probability above which it is a lesion, of a network shown these contrasts; None where the card holds none."""
    thresholds = card["lesion_threshold"]
    if set(contrasts) == {"T1w"} and T1W_ALONE in thresholds:
        return float(thresholds[T1W_ALONE])
    value = thresholds.get(threshold_key(contrasts))
    return None if value is None else float(value)


@dataclass(frozen=True)
class LesionModel:
    """A model folder that can be given as ``--lesion-model``: what its card says, checked.

    Attributes
    ----------
    folder : Path
    card : mapping
        Its ``model.json``.
    first : LesionModel or None
        Of a cascade: the model that proposes.
    """

    folder: Path
    card: Mapping[str, Any]
    first: LesionModel | None = None

    @property
    def name(self) -> str:
        """Name and version."""
        return f"{self.card['name']}-{self.card['version']}"

    @property
    def channels(self) -> tuple[str, ...]:
        """Contrasts that it can use."""
        return tuple(self.card["channels"])

    @property
    def compartments(self) -> tuple[str, ...]:
        """Its classes that are lesion, or parts of one."""
        return tuple(self.card.get("lesion_classes", ["lesion"]))

    @property
    def lesion_kind(self) -> str:
        """One of `LESION_KINDS`; where the card does not say, a lesion with compartments is another kind."""
        return str(self.card.get("lesion_kind", WHITE_MATTER if len(self.compartments) == 1 else OTHER))

    @property
    def sha256(self) -> str:
        """Of its weights; of a cascade, of both networks'."""
        own = str(self.card["weights"]["sha256"])
        return own if self.first is None else hashlib.sha256(f"{self.first.sha256}{own}".encode()).hexdigest()

    @cached_property
    def label(self) -> str:
        """What tells this model from any other: name, version, weights, and all of the card that changes results."""
        used = (
            "patch", "channels", "classes", "lesion_classes", "lesion_threshold", "cascade", "crf", "spacing_mm",
            "lesion_kind", "surround_mm", "class_offsets",
        )  # fmt: skip
        cards = [model.card for model in (self, self.first) if model is not None]
        settings = json.dumps([{key: card.get(key) for key in used} for card in cards], sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()
        return f"{self.name} (weights {self.sha256[:12]}, settings {digest[:12]})"

    def threshold(self, contrasts: Sequence[str]) -> float | None:
        """Probability above which it is a lesion; None where the model cannot be used on these contrasts."""
        usable = [name for name in self.channels if name in contrasts]
        if not usable:
            return None
        return threshold_of(self.card, usable)

    def unusable_because(self, contrasts: Sequence[str]) -> str:
        """Why it cannot be used on these contrasts, or nothing."""
        if self.threshold(contrasts) is not None:
            return ""
        if set(self.channels) & set(contrasts):
            needs, there = ("FLAIR", "no FLAIR") if "FLAIR" not in contrasts else ("scans without FLAIR", "one")
        else:
            needs, there = " or ".join(self.channels), f"only {', '.join(contrasts)}"
        return f"the lesion model {self.name} was trained on {needs}, and there is {there}"

    def about(self, contrasts: Sequence[str]) -> dict[str, Any]:
        """What a session's record says of it."""
        training = self.card.get("training")
        data = training.get("data", []) if isinstance(training, dict) else []
        data = data if isinstance(data, list) else [data]
        return {
            "name": self.card["name"],
            "version": self.card["version"],
            "weights_sha256": self.sha256,
            "architecture": self.card["architecture"],
            "contrasts": [name for name in self.channels if name in contrasts],
            "threshold": self.threshold(contrasts),
            "lesion_classes": list(self.compartments),
            "lesion_kind": self.lesion_kind,
            "cascade": self.first is not None,
            "crf": "crf" in self.card,
            "trained_on": [_readable(entry) for entry in data[:20]],
        }


def read_lesion_model(folder: Path) -> LesionModel:
    """The card of a lesion model, fit to be used on the app's working grid.

    Raises
    ------
    InputError
        As `read_card`; or the card lacks what a lesion model's must hold, or holds what cannot be.
    """
    card = _lesion_card(folder, read_card(folder))
    if "cascade" not in card:
        return LesionModel(folder, card)
    proposes = read_card(folder / FIRST)
    if "cascade" in proposes:
        raise InputError(f"{folder / FIRST / CARD}: is a cascade itself; a cascade has two models.")
    first = LesionModel(folder / FIRST, _lesion_card(folder / FIRST, proposes))
    if first.channels != tuple(card["channels"]):
        raise InputError(f"{folder / CARD}: a cascade's 'channels' must be those of {FIRST}/{CARD}.")
    return LesionModel(folder, card, first)


def _lesion_card(folder: Path, card: dict[str, Any]) -> dict[str, Any]:
    """The card of a folder, if nothing is wrong with it for a lesion model; else the first thing that is, raised."""
    problem = next(_lesion_problems(card), None)
    if problem is not None:
        raise InputError(f"{folder / CARD}: {problem}")
    return card


def _lesion_problems(card: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a lesion model's card. Only the first is told: each may count on the ones before it."""
    yield from _naming_problems(card)
    yield from _grid_problems(card)
    yield from _offset_problems(card.get("class_offsets", {}), card["classes"], card["channels"])
    yield from _threshold_problems(card.get("lesion_threshold"), card["channels"])
    if "cascade" in card:
        yield from _cascade_problems(card["cascade"])
    if card.get("lesion_kind", OTHER) not in LESION_KINDS:
        yield f"'lesion_kind' must be {' or '.join(LESION_KINDS)}, not {card['lesion_kind']!r:.60}."
    if "crf" in card and not isinstance(card["crf"], dict):
        yield "'crf' must be a table of its settings, perhaps empty."


def _naming_problems(card: Mapping[str, Any]) -> Iterator[str]:
    """Of its channels and classes."""
    channels, classes, lesions = card.get("channels"), card.get("classes"), card.get("lesion_classes", ["lesion"])
    if not _names(channels) or not set(channels) <= set(CHANNELS):
        yield f"'channels' must be a list of contrasts ({', '.join(CHANNELS)}), not {channels!r:.60}."
    if not _names(classes) or len(classes) < 2 or classes[0] != "background":
        yield f"'classes' must be a list of names that begins with 'background', not {classes!r:.60}."
        return
    if not _names(lesions) or not set(lesions) <= set(classes[1:]) or len(lesions) > MOST_CLASSES:
        yield f"'lesion_classes' must be among the classes, not {lesions!r:.60}. Is this a lesion model?"


def class_problem(names: Sequence[str]) -> str:
    """What is wrong with the names of all classes but background, for whoever makes a model; "" where nothing is."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        return f"has the name {twice[0]!r} twice"
    if "background" in names:
        return "has a class 'background' whose index is not 0"
    if len(names) > MOST_CLASSES:
        return f"has {len(names)} classes; {MOST_CLASSES} at most"
    odd = [name for name in names if not name.strip() or not _names([name])]
    return f"has a name that is empty, too long or not printable ({odd[0]!r:.60})" if odd else ""


def _grid_problems(card: Mapping[str, Any]) -> Iterator[str]:
    """Of its tiles, and of the grid it works on, which is the app's."""
    patch, surround = card.get("patch"), card.get("surround_mm", 0)
    if not isinstance(patch, int) or isinstance(patch, bool) or not 1 <= patch <= 512:
        yield f"'patch' must be the voxels of a tile along each side, not {patch!r:.60}."
    elif card["architecture"] not in WITH_MARGIN and patch <= OVERLAP:
        yield f"'patch' must be above {OVERLAP}, the voxels that neighbouring tiles share, not {patch}."
    if not 0.9 <= card["spacing_mm"] <= 1.1:
        yield f"'spacing_mm' must be 1, as the app's working grid, not {card['spacing_mm']}."
    if card.get("orientation", "RAS") != "RAS":
        yield f"'orientation' must be RAS, as the app's working grid, not {card['orientation']!r:.60}."
    if not _number(surround) or not 0 <= surround <= MOST_SURROUND_MM:
        yield f"'surround_mm' must be millimetres from 0 to {MOST_SURROUND_MM:g}, not {surround!r:.60}."


def _offset_problems(offsets: Any, classes: Collection[str], channels: Collection[str]) -> Iterator[str]:
    """Of ``class_offsets``: by contrasts that are there, numbers by class."""
    if not isinstance(offsets, dict) or not all(isinstance(table, dict) for table in offsets.values()):
        yield "'class_offsets' must hold a table of numbers by class for contrasts such as 'T1w+FLAIR'."
        return
    for there, table in offsets.items():
        if not set(there.split("+")) <= set(channels):
            yield f"'class_offsets': {there!r:.60} are not among the channels."
        for name, value in table.items():
            if name not in classes or not _number(value) or abs(value) > MOST_OFFSET:
                limits = f"from -{MOST_OFFSET:g} to {MOST_OFFSET:g}"
                yield f"'class_offsets' must be {limits} by class, not {name!r:.40}: {value!r:.40}."


def _threshold_problems(thresholds: Any, channels: Sequence[str]) -> Iterator[str]:
    """Of ``lesion_threshold``: one for each way that the channels can be used, at least."""
    if not isinstance(thresholds, dict) or not thresholds or set(thresholds) - {WITH_FLAIR, WITHOUT_FLAIR, T1W_ALONE}:
        yield f"'lesion_threshold' must hold {WITH_FLAIR!r}, {WITHOUT_FLAIR!r}, or both, and may hold {T1W_ALONE!r}."
    elif not all(_number(value) and 0 < value < 1 for value in thresholds.values()):
        yield "'lesion_threshold' must hold numbers between 0 and 1."
    elif WITH_FLAIR not in thresholds and channels == ["FLAIR"]:
        yield f"'lesion_threshold' must hold {WITH_FLAIR!r}: FLAIR is the only channel."
    elif WITHOUT_FLAIR not in thresholds and "FLAIR" not in channels:
        yield f"'lesion_threshold' must hold {WITHOUT_FLAIR!r}: FLAIR is no channel."


def _cascade_problems(cascade: Any) -> Iterator[str]:
    if not isinstance(cascade, dict) or set(cascade) != {"propose_above", "grow_mm"}:
        yield "'cascade' must hold 'propose_above' and 'grow_mm'."
    elif not all(map(_number, cascade.values())) or not (
        0 <= cascade["propose_above"] < 1 and 0 <= cascade["grow_mm"] <= 100
    ):
        yield "'cascade': propose_above must be from 0 to 1, and grow_mm from 0 to 100."


def _readable(value: Any) -> str:
    """Text that can be written to any file, however odd the card."""
    return " ".join(str(value).encode("utf-8", "replace").decode().split())[:500]


def _names(value: Any) -> TypeGuard[list[str]]:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(name, str) and name.isprintable() and 0 < len(name) <= 100 for name in value)
        and len(set(value)) == len(value)
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf  # nan is not


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
        digest = writing.sha256(file)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); copy the model folder again.") from error
    if digest != weights["sha256"]:
        raise InputError(
            f"{file} is not the file that {CARD} describes (sha256 {digest[:12]}..., expected"
            f" {weights['sha256'][:12]}...): it is damaged or was replaced; copy the model folder again."
        )

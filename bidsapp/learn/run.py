"""From labelled cases to a model folder: which network, which samples, which loss, and the figures of what came out."""

from __future__ import annotations

import dataclasses
import logging
import math
import resource
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bidsapp.cards import CARD, FIRST, OVERLAP, threshold_of
from bidsapp.errors import AppError
from bidsapp.labels import CONTRASTS
from bidsapp.learn.cases import PROPOSE_ABOVE, Case, Stored, head_of, synthetic_doubles, with_proposals
from bidsapp.learn.generator import Generator
from bidsapp.learn.generator_config import STRIPPED, GeneratorConfig
from bidsapp.learn.loop import Fitted, Schedule, fit
from bidsapp.learn.losses import GroupedLoss, grouped
from bidsapp.learn.model_folder import write_model
from bidsapp.learn.samples import Batch, SampleConfig, Sampler
from bidsapp.models import segment
from bidsapp.models.registry import Model, build, read_model

log = logging.getLogger("bidsapp.learn")
#: Voxels a side that a network answers at a time in training, and patches a step.
PATCH = {"FoldedUNet": 80, "TwoPathway": 24}
PATCHES = {"FoldedUNet": 1, "TwoPathway": 6}
#: What dense inference answers at a time: larger tiles share more of the context.
TILE = {"FoldedUNet": 80, "TwoPathway": 48}
#: The layer of a `FoldedUNet` that sees the channels, eight folded voxels of each in turn.
FIRST_LAYER = "down.0.conv1.weight"
#: Parameters of what finds features, by architecture: frozen with ``freeze``.
ENCODER = {"FoldedUNet": ("down.",), "TwoPathway": ("fine.", "context.")}
LEARNING_RATE = {"FoldedUNet": 1e-3, "TwoPathway": 1e-3}
#: Fine-tuning starts where training ended: smaller steps.
FINE_TUNING_RATE = 3e-4
THRESHOLD_KEYS = (segment.WITH_FLAIR, segment.WITHOUT_FLAIR)
THRESHOLDS = np.round(np.arange(0.2, 0.85, 0.05), 2)
#: Cases that the threshold is tried on; more would hardly move it, and each costs a prediction.
THRESHOLD_CASES = 16
#: A validation looks at so many patches; in a training of few steps at fewer, so that it takes no longer than they do.
VALIDATION_PATCHES, VALIDATION_PATCHES_PER_STEP = 24, 4
#: Voxels along each side of the box that an ordinary brain takes, with what is shown around it.
BRAIN = (152, 184, 152)
#: A cascade's second stage decides this far around what the first proposes, too.
GROW_MM = 3.0


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, and how; see ``docs/train.md``."""

    name: str
    classes: tuple[str, ...]  # background first
    channels: tuple[str, ...] = CONTRASTS
    architecture: str = "FoldedUNet"
    init: Model | None = None  # fine-tuned from this one
    first: Model | None = None  # a cascade's semantic stage
    freeze: bool = False
    loss: str = "dice-ce"
    steps: int = 400
    learning_rate: float | None = None
    weight_decay: float = 1e-4
    dropout: float = 0.2
    patience: int = 0
    validate_every: int = 50
    foreground: float = 0.5
    two_phase: bool = False
    drop: float = 0.25
    synthetic: float = 0.0
    crf: bool = False
    seed: int = 1
    workers: int = 1
    threads: int = 1
    features: tuple[int, ...] | None = None

    @property
    def groups(self) -> tuple[int, ...]:
        """For each class of the network, the label that it counts as."""
        if self._keeps_head:
            assert self.init is not None
            lesions = segment.lesion_classes(self.init)
            return tuple(int(number in lesions) for number in range(len(self.init.card["classes"])))
        return tuple(range(len(self.classes)))

    @property
    def _keeps_head(self) -> bool:
        """A network that knows lesions among other classes goes on knowing them all."""
        lesion = self.classes == ("background", "lesion")
        return self.init is not None and lesion and "lesion" in self.init.card["classes"]


def make_network(training: Training) -> nn.Module:
    """A new network, or that of ``training.init``, with a head for the classes asked for.

    Raises
    ------
    AppError
        The model to begin with is of another architecture.
    """
    torch.manual_seed(training.seed)
    init = training.init
    if init is not None and type(init.network).__name__ != training.architecture:
        raise AppError(
            f"--init: {init.name} is a {type(init.network).__name__}, and a {training.architecture} was asked for."
            " Choose the architecture of the model you begin with, or begin from scratch (--init none)."
        )
    same_channels = init is not None and segment.contrasts_of(init) == training.channels
    if training._keeps_head and same_channels:
        assert init is not None
        return deepcopy(init.network).requires_grad_(True)
    channels = len(training.channels) + (training.first is not None)
    options: dict[str, Any] = {"channels": channels, "classes": len(training.classes)}
    if init is not None:
        classes = len(init.card["classes"]) if training._keeps_head else len(training.classes)
        options = dataclasses.asdict(init.network.config) | {"channels": channels, "classes": classes}
    elif training.architecture == "FoldedUNet":
        options |= {"features": training.features or (32, 48, 96, 160), "place": True}
    else:
        options |= {"dropout": training.dropout, "place": True} | (
            {"features": training.features} if training.features else {}
        )
    network = build(training.architecture, options)
    if init is not None:
        kept = {key: value for key, value in init.network.state_dict().items()
                if training._keeps_head or not key.startswith("head")}  # fmt: skip
        if not same_channels:
            kept[FIRST_LAYER] = _for_channels(kept[FIRST_LAYER], segment.contrasts_of(init), training.channels)
        network.load_state_dict(kept, strict=False)
    return network


def _for_channels(weight: torch.Tensor, before: Sequence[str], channels: Sequence[str]) -> torch.Tensor:
    """The first layer's weights (features, 8 x channels, ...) for other channels: what is new begins with 0."""
    blocks = dict(zip(before, weight.split(weight.shape[1] // len(before), 1), strict=True))
    nothing = torch.zeros_like(next(iter(blocks.values())))
    return torch.cat([blocks.get(name, nothing) for name in channels], 1)


def train_model(
    cases: Sequence[Case],
    training: Training,
    *,
    folder: Path,
    held_out: Sequence[Case] = (),
    device: str = "cpu",
    generator: Generator | None = None,
    card: Mapping[str, Any] | None = None,
    wanted: Collection[str] = THRESHOLD_KEYS,
    max_seconds: float = math.inf,
    on_step: Callable[[int, float], None] | None = None,
    say: Callable[[str], None] = log.warning,
) -> Model | None:
    """Train on `cases`, continuing from a checkpoint in `folder`; None where time ran out before the end.

    Parameters
    ----------
    cases : sequence of Case
        May be empty where there is a `generator` and ``training.synthetic`` is 1.
    training : Training
    folder : Path
        Gets the log, the curve, the checkpoint and the finished model, in ``model``.
    held_out : sequence of Case
        Early stopping goes by these; where there are none, by the cases themselves. The threshold goes by all.
    device : str
    generator : Generator, optional
        Of synthetic scans; without one they are made of the cases' own anatomy.
    card : mapping, optional
        More entries of ``model.json``.
    wanted : collection of str
        Which thresholds the model will be used with, of `THRESHOLD_KEYS`: the others are not tried.
    max_seconds : float
    on_step : callable, optional
        Called with the number of steps done and the loss.
    say : callable
        Takes a line on what is not done as asked.

    Returns
    -------
    Model or None
    """
    finished = folder / "model"
    if (finished / CARD).exists():
        return read_model(finished)
    until = time.monotonic() + max_seconds
    torch.set_num_threads(training.threads)
    network = make_network(training).to(device)
    own = bool(training.synthetic) and generator is None
    shown, judges = (
        _shown(cases, training, device, own=own, until=until),
        _shown(held_out, training, device, until=until),
    )
    if shown is None or judges is None:
        return None
    if own:
        # On the CPU, wherever the network is: patches are made ahead by other processes.
        # Of fewer channels than the generator makes none is left out: what it leaves may be none of them.
        whole = set(training.channels) >= set(CONTRASTS)
        generator = own_generator(
            cases, patch=scan_size(network, training.architecture), device="cpu", p_drop=None if whole else 0.0
        )
        if generator is None:
            say("the lesions are too small for synthetic scans: there are none among its samples (as --synthetic 0).")
    loss = GroupedLoss(training.loss, training.groups).to(device)
    result = fit(
        network,
        Sampler(shown, sample_config(network, training), generator=generator, first=training.first),
        loss=lambda net, batch: loss(answer(net, batch, device), batch.labels.to(device)),
        validate=_validation(judges or shown, network, training, device, generator),
        schedule=schedule(training),
        folder=folder,
        workers=training.workers,
        max_seconds=until - time.monotonic(),
        on_step=on_step,
        say=say,
    )
    if not result.finished:
        return None
    folders = [case.folder for case in (*cases, *held_out)]
    return _finish(result, training, finished, device=device, card=card or {}, folders=folders, wanted=wanted)


def _shown(
    cases: Sequence[Case], training: Training, device: str, *, own: bool = False, until: float
) -> list[Case] | None:
    """The cases with what `training.first` proposes; where synthetic scans are of their `own` anatomy, that is made.

    Both predict whole brains, one by one: None where time is over before the last.
    """
    out = []
    for case in cases:
        if time.monotonic() >= until:
            return None
        if own:
            head_of(case, device=device)
        out.append(case if training.first is None else with_proposals(case, training.first, device))
    return out


def untrained(training: Training) -> Model:
    """The network of a training before its first step, as a model to predict with."""
    return Model(training.name, "0", 1.0, {"patch": TILE[training.architecture]}, make_network(training))


def seconds_a_brain(model: Model, *, device: str) -> float:
    """Seconds that the prediction of a whole brain takes here, from one tile of noise; of a cascade's second alone."""
    network, patch = model.network.to(device).eval(), int(model.card["patch"])
    shared = 0 if network.margin else OVERLAP
    count = math.prod(math.ceil((side - shared) / (patch - shared)) for side in BRAIN)
    images = torch.randn(1, network.config.channels, *[patch + 2 * network.margin] * 3)
    batch = Batch(images, images[:, 0], torch.zeros(1, 3, *[patch // 2] * 3) if network.config.place else None)
    with torch.inference_mode():
        answer(network, batch, device).cpu()  # the first one prepares things
        began = time.monotonic()
        answer(network, batch, device).softmax(1).cpu()
    return count * (time.monotonic() - began)


def trial(training: Training, *, device: str, steps: int = 3) -> tuple[float, float]:
    """Seconds that a step takes here, and the most memory (GB), measured on patches of noise."""
    torch.set_num_threads(training.threads)
    network = make_network(training).to(device).train()
    config = sample_config(network, training)
    side = config.patch + 2 * config.margin
    images = torch.randn(config.count, network.config.channels, *[side] * 3)  # type: ignore[union-attr]
    labels = torch.zeros(config.count, *[config.patch] * 3, dtype=torch.long)
    place = torch.zeros(config.count, 3, *[config.patch // 2] * 3) if config.place else None
    loss = GroupedLoss(training.loss, training.groups).to(device)
    optimiser = torch.optim.AdamW(network.parameters())
    began = time.monotonic()
    for step in range(steps + 1):
        if step == 1:
            began = time.monotonic()  # the first one prepares things
        loss(answer(network, Batch(images, labels, place), device), labels.to(device)).backward()
        optimiser.step()
    seconds = (time.monotonic() - began) / steps
    if device != "cpu":
        return seconds, torch.cuda.max_memory_allocated(device) / 1e9
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def schedule(training: Training) -> Schedule:
    """Steps and rates of a training."""
    rate = FINE_TUNING_RATE if training.init is not None else LEARNING_RATE[training.architecture]
    return Schedule(
        steps=training.steps,
        learning_rate=training.learning_rate or rate,
        warm_up=min(50, max(1, training.steps // 10)),
        weight_decay=training.weight_decay,
        average_over=min(100, max(2, training.steps // 5)),
        validate_every=min(training.validate_every, training.steps),
        patience=training.patience,
        frozen=ENCODER[training.architecture] if training.freeze else (),
        head_from=0.8 if training.two_phase else 1.0,
        seed=training.seed,
    )


def sample_config(network: nn.Module, training: Training) -> SampleConfig:
    """The patches of a training."""
    return SampleConfig(
        patch=PATCH[training.architecture],
        margin=int(network.margin),  # type: ignore[arg-type]
        count=PATCHES[training.architecture],
        place=bool(network.config.place),  # type: ignore[union-attr]
        foreground=training.foreground,
        uniform_from=int(0.8 * training.steps) if training.two_phase else 2**62,
        drop=training.drop,
        synthetic=training.synthetic,
        seed=training.seed,
        contrasts=training.channels,
    )


def scan_size(network: nn.Module, architecture: str) -> int:
    """Voxels a side of a synthetic scan: what the network is shown, and room for several small patches."""
    patch, count = PATCH[architecture], PATCHES[architecture]
    return patch + 2 * int(network.margin) + (patch if count > 1 else 0)  # type: ignore[arg-type]


def own_generator(cases: Sequence[Case], *, patch: int, device: str, p_drop: float | None = None) -> Generator | None:
    """Synthetic scans of the anatomy and the lesions of the cases themselves; None where no lesion can be drawn."""
    doubles = synthetic_doubles(cases, device=device)
    if doubles is None:
        return None
    heads, masks = doubles
    config = stripped_scans(patch)
    return Generator(heads, config if p_drop is None else dataclasses.replace(config, p_drop=p_drop), masks)


def stripped_scans(patch: int) -> GeneratorConfig:
    """Synthetic scans as the app prepares real ones, most of them with lesions."""
    return dataclasses.replace(STRIPPED, patch=patch, p_lesions=0.7)


def answer(network: nn.Module, batch: Batch, device: str) -> torch.Tensor:
    """Logits of a batch, float32."""
    place = None if batch.place is None else batch.place.to(device)
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=segment.bfloat16(device)):
        return network(batch.images.to(device), place).float()


def _validation(
    cases: Sequence[Case], network: nn.Module, training: Training, device: str, generator: Generator | None
) -> Callable[[nn.Module], dict[str, float]]:
    """Dice by label over the same patches every time, all contrasts shown, nothing changed."""
    config = dataclasses.replace(
        sample_config(network, training),
        augment=False, drop=0.0, seed=training.seed + 10**6, uniform_from=2**62, synthetic=0.0 if cases else 1.0,
    )  # fmt: skip
    sampler = Sampler(cases, config, generator=generator, first=training.first)
    groups = torch.tensor(training.groups)
    patches = min(VALIDATION_PATCHES, VALIDATION_PATCHES_PER_STEP * training.steps)

    def validate(net: nn.Module) -> dict[str, float]:
        sums = np.zeros((2, len(training.classes)))
        with torch.no_grad():
            for number in range(math.ceil(patches / config.count)):
                batch = sampler(number)
                found = grouped(answer(net, batch, device).cpu(), groups).argmax(1)
                for label in range(1, len(training.classes)):
                    one, two = found == label, batch.labels == label
                    sums[:, label] += int((one & two).sum()), int(one.sum() + two.sum())
        dice = 2 * sums[0] / np.where(sums[1] > 0, sums[1], np.nan)
        return {f"dice_{name}": float(dice[label]) for label, name in enumerate(training.classes) if label}

    return validate


def _finish(
    result: Fitted,
    training: Training,
    folder: Path,
    *,
    device: str,
    card: Mapping[str, Any],
    folders: Sequence[Path],
    wanted: Collection[str],
) -> Model:
    """Write the model, with the threshold that its own predictions ask for."""
    kept = training.init if training._keeps_head else None
    classes = list(training.classes if kept is None else kept.card["classes"])
    lesions = classes[1:] if kept is None else [classes[number] for number in segment.lesion_classes(kept)]
    usable = [key for key, contrast in zip(THRESHOLD_KEYS, ({"FLAIR"}, set(training.channels) - {"FLAIR"}), strict=True)
              if contrast & set(training.channels)]  # fmt: skip
    whole: dict[str, Any] = {
        "name": training.name, "version": "1.0.0", "spacing_mm": 1.0, "orientation": "RAS",
        "normalisation": "mean 0 and standard deviation 1 within the brain, kept within 5; 0 outside and if missing",
        "channels": list(training.channels), "patch": TILE[training.architecture], "classes": classes,
        "lesion_classes": lesions, "lesion_threshold": dict.fromkeys(usable, 0.5),
        **card,
    }  # fmt: skip
    if training.crf:
        whole["crf"] = {}
    if training.first is not None:
        whole["cascade"] = {"propose_above": PROPOSE_ABOVE, "grow_mm": GROW_MM}
        write_model(training.first.network, folder / FIRST, training.first.card)
    network = result.network.cpu().eval().requires_grad_(False)
    network.half().float()  # as it will be stored
    if len(lesions) == 1 and folders:
        known = {} if kept is None else kept.card["lesion_threshold"]
        model = Model(training.name, "1.0.0", 1.0, whole, network, training.first)
        found = {key: known[key] for key in usable if key in known} | thresholds(model, folders, device, wanted=wanted)
        whole["lesion_threshold"] = found or whole["lesion_threshold"]
    write_model(network, folder, whole)
    return read_model(folder)


def thresholds(
    model: Model, folders: Sequence[Path], device: str, *, wanted: Collection[str] = THRESHOLD_KEYS
) -> dict[str, float]:
    """The thresholds with the best Dice over cases, with FLAIR and without; what cannot be tried is left out.

    A case is predicted once with all it has, and once more without its FLAIR where `wanted` and where anything is left.
    """
    sums = {key: np.zeros((2, len(THRESHOLDS))) for key in THRESHOLD_KEYS}
    for stored in (Stored.read(folders[number]) for number in _some(len(folders))):
        for key, without in tried(set(stored.record["contrasts"]) & set(segment.contrasts_of(model)), wanted):
            truth = stored.labels() > 0
            probability = stored.predict(model, device=device, without=without).sum(0)
            for index, threshold in enumerate(THRESHOLDS):
                above = probability > threshold
                sums[key][:, index] += int((above & truth).sum()), int(above.sum() + truth.sum())
    return {
        key: float(THRESHOLDS[int(np.argmax(2 * both / np.maximum(total, 1)))])
        for key, (both, total) in sums.items() if total.any()
    }  # fmt: skip


def _some(count: int) -> list[int]:
    """Numbers of the cases that thresholds are tried on."""
    return np.unique(np.linspace(0, count - 1, min(count, THRESHOLD_CASES)).round().astype(int)).tolist()


def tried(there: Collection[str], wanted: Collection[str]) -> list[tuple[str, tuple[str, ...]]]:
    """The thresholds that a case of these contrasts tells of, each with the contrasts left out for it."""
    able = {segment.WITH_FLAIR: "FLAIR" in there, segment.WITHOUT_FLAIR: bool(set(there) - {"FLAIR"})}
    return [(key, ("FLAIR",) if key == segment.WITHOUT_FLAIR else ()) for key in wanted if able[key]]


def brains_for_thresholds(cases: Sequence[Collection[str]], wanted: Collection[str]) -> int:
    """Whole brains that `thresholds` predicts for cases with these contrasts."""
    return sum(len(tried(cases[number], wanted)) for number in _some(len(cases)))


def predict_drawn(model: Model, folder: Path, *, device: str) -> np.ndarray:
    """Classes 0, 1, ... of a case on the grid of its drawn labels: lesions as in the app, else the likeliest class."""
    stored = Stored.read(folder)
    if len(segment.lesion_classes(model)) == 1:
        threshold = threshold_of(model.card, set(stored.record["contrasts"]) & set(segment.contrasts_of(model)))
        mask = segment.lesion_mask(
            stored.predict(model, device=device)[0],
            threshold=0.5 if threshold is None else threshold, voxel_size_mm=stored.mask()[1],
        )  # fmt: skip
        return stored.mask_as_drawn(mask).astype(np.uint8)
    shares = [stored.as_drawn(probability) for probability in stored.predict(model, device=device)]
    return np.stack([1 - np.sum(shares, axis=0), *shares]).argmax(0).astype(np.uint8)

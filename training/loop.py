"""A training run on synthetic scans alone, as its configuration says."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bidsapp.learn import lesion_masks
from bidsapp.learn.generator import Generator, Sample
from bidsapp.learn.heads import joined, load_heads
from bidsapp.learn.loop import Schedule, fit
from bidsapp.models.registry import Model, load_model
from bidsapp.models.segment import bfloat16
from bidsapp.models.unet import FoldedUNet
from training.config import TrainConfig
from training.patients import make_label_maps
from training.tasks import Task, make_task

#: Seeds of validation samples lie apart from those of training, which count up from seed * 10**9.
VALIDATION_SEED = 10**15


def train(config: TrainConfig, *, folder: Path, device: str, max_seconds: float = math.inf) -> None:
    """Train until ``config.steps`` or `max_seconds`, writing into `folder`.

    Files: ``run.json`` (configuration, git commit, device) and those of `bidsapp.learn.loop.fit`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    begun = load_model(config.begin_with) if config.begin_with else None
    _record(config, folder, device, begun)
    make, check = (generator(config, folder, device, held_out=held_out) for held_out in (False, True))
    task = make_task(config.task)
    network = FoldedUNet(config.network)
    if begun:
        network.load_state_dict(begun.network.state_dict())
    fit(
        network.to(device),
        lambda number: make.sample(config.seed * 10**9 + number),
        loss=lambda network, sample: task.loss(forward(network, task, sample, config), sample),
        validate=lambda network: validate(network, check, task, config),
        schedule=Schedule(
            **{f.name: getattr(config, f.name) for f in dataclasses.fields(Schedule) if hasattr(config, f.name)}
        ),
        folder=folder,
        workers=config.workers if device == "cpu" else 0,
        max_seconds=max_seconds,
    )


def forward(network: nn.Module, task: Task, sample: Sample, config: TrainConfig) -> torch.Tensor:
    """Logits (classes, X, Y, Z) of a sample, in float32."""
    place = task.place(sample)
    device = sample.image.device.type
    with torch.autocast(device, torch.bfloat16, enabled=config.mixed_precision and bfloat16(device)):
        return network(task.inputs(sample)[None], None if place is None else place[None])[0].float()


def validate(network: nn.Module, make: Generator, task: Task, config: TrainConfig) -> dict[str, float]:
    """Mean Dice by class over the same synthetic samples of held-out heads every time."""
    rows = []
    with torch.no_grad():
        for i in range(config.validate_on):
            sample = make.sample(VALIDATION_SEED + i, head=i % len(make.heads))
            rows.append(task.dice(forward(network, task, sample, config), sample))
    return {f"dice_{name}": float(value) for name, value in zip(task.classes, np.nanmean(rows, axis=0), strict=True)}


def generator(config: TrainConfig, folder: Path, device: str, *, held_out: bool) -> Generator:
    """Makes samples of the heads, patients and lesion masks trained on, or of the heads and masks held out."""
    names = config.held_out_heads if held_out else config.train_heads
    cache = folder.parent / "cache"
    heads = load_heads(Path(config.heads), names, cache=cache, device=device)
    if config.patients and not held_out:
        maps = cache / "patients"
        patients = make_label_maps(Path(config.patients), Path(config.heads), names, out=maps)
        heads = joined(heads, load_heads(maps, patients, cache=cache, device=device))
    lesions = _masks(config.lesions, config.held_out_lesions, device, held_out=held_out)
    large = _masks(config.large, config.held_out_large, device, held_out=held_out)
    if lesions and large:
        lesions = lesion_masks.joined(lesions, large)
    return Generator(heads, config.generator, lesions)


def _masks(folder: str, kept_apart: tuple[str, ...], device: str, *, held_out: bool) -> lesion_masks.Lesions | None:
    """The masks of a folder that are trained on, or those held out; none without a folder."""
    if not folder:
        return None
    names = {"only": kept_apart} if held_out else {"leave_out": kept_apart}
    return lesion_masks.load_lesions(Path(folder), device=device, **names)


def _record(config: TrainConfig, folder: Path, device: str, begun: Model | None) -> None:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    ).stdout.strip()  # fmt: skip
    record = {"commit": commit, "device": device, "torch": torch.__version__, "config": dataclasses.asdict(config)}
    record["begun_from"] = f"{begun.card['name']} {begun.card['version']}" if begun else "scratch"
    with (folder / "run.json").open("w") as stream:
        json.dump(record, stream, indent=1)

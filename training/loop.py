"""A training run on synthetic scans alone, as its configuration says."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bidsapp.learn.generator import Generator, Sample
from bidsapp.learn.loop import Schedule, fit
from bidsapp.models.registry import Model, load_model
from bidsapp.models.segment import bfloat16
from bidsapp.models.unet import FoldedUNet
from training.batches import Batches, Packed, apart
from training.config import TrainConfig
from training.material import material
from training.tasks import Task, make_task

#: Seeds of validation samples lie apart from those of training, which count up from seed * 10**9.
VALIDATION_SEED = 10**15
#: Environment variable that tells the commit where the code is a copy without git's files.
COMMIT = "TRAINING_COMMIT"


def train(
    config: TrainConfig,
    *,
    folder: Path,
    device: str,
    max_seconds: float = math.inf,
    finish_seconds: float = math.inf,
    packed: Path | None = None,
) -> None:
    """Train until ``config.steps`` or `max_seconds`, or be done within `finish_seconds`, writing into `folder`.

    Files: ``run.json`` (configuration, git commit, device) and those of `bidsapp.learn.loop.fit`. The material is that
    of the file `packed` (`training.material.pack`), or what the configuration names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    begun = load_model(config.begin_with) if config.begin_with else None
    _record(config, folder, device, begun)
    task = make_task(config.task)
    network = FoldedUNet(config.network)
    if begun:
        network.load_state_dict(begun.network.state_dict())
    # On a CPU one other process is enough: the network takes longer than the generator.
    workers = min(config.workers, 1) if device == "cpu" else config.workers
    made_on = config.workers_on if workers and device != "cpu" else device
    make = Batches(
        material(config, folder, held_out=False, packed=packed), config.generator,
        seed=config.seed, batch=config.batch, device=made_on, packed=workers > 0,
    )  # fmt: skip
    if made_on == "cpu":
        _ = make.generator  # once, before other processes are forked
    check = validation_samples(config, folder, device, packed=packed)
    schedule = {f.name: getattr(config, f.name) for f in dataclasses.fields(Schedule) if hasattr(config, f.name)}
    fit(
        on_device(network, device, one_shape=bool(config.generator.patch)),
        make,
        loss=lambda network, batch: loss(network, task, batch, config),
        validate=lambda network: validate(network, check, task, config),
        schedule=Schedule(**schedule | {"batch": 1}),  # of samples, which come as one
        folder=folder,
        workers=workers,
        start_workers="spawn" if workers and made_on != "cpu" else None,
        max_seconds=max_seconds,
        finish_seconds=finish_seconds,
    )


def on_device(network: FoldedUNet, device: str, *, one_shape: bool = True) -> FoldedUNet:
    """On a GPU with its channels last, as tensor cores want them; if all is `one_shape`, the fastest way is sought."""
    if not device.startswith("cuda"):
        return network.to(device)
    torch.backends.cudnn.benchmark = one_shape
    return network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def loss(network: nn.Module, task: Task, batch: list[Sample] | Packed, config: TrainConfig) -> torch.Tensor:
    """Mean loss of a batch; in one piece where its samples have one shape."""
    device = str(next(network.parameters()).device)
    samples = apart(batch, device) if isinstance(batch, Packed) else batch
    alike = len({sample.labels.shape for sample in samples}) == 1
    pieces = [samples] if alike else [[sample] for sample in samples]
    values = [
        task.loss(logits, sample)
        for piece in pieces
        for logits, sample in zip(forward(network, task, piece, config), piece, strict=True)
    ]
    return torch.stack(values).mean()


def forward(network: nn.Module, task: Task, samples: Sequence[Sample], config: TrainConfig) -> torch.Tensor:
    """Logits (samples, classes, X, Y, Z) of samples of one shape, in float32."""
    images = torch.stack([task.inputs(sample) for sample in samples])
    places = [task.place(sample) for sample in samples]
    place = None if places[0] is None else torch.stack(places)
    device = images.device.type
    with torch.autocast(device, torch.bfloat16, enabled=config.mixed_precision and bfloat16(device)):
        return network(images, place).float()


def validation_samples(config: TrainConfig, folder: Path, device: str, *, packed: Path | None) -> list[Sample]:
    """The same synthetic samples of held-out heads every time."""
    here = material(config, folder, held_out=True, packed=packed).to(device)
    make = Generator(here.heads, config.generator, here.lesions)
    return [make.sample(VALIDATION_SEED + i, head=i % len(here.heads)) for i in range(config.validate_on)]


def validate(network: nn.Module, samples: Sequence[Sample], task: Task, config: TrainConfig) -> dict[str, float]:
    """Mean Dice by class."""
    with torch.no_grad():
        rows = [task.dice(forward(network, task, [sample], config)[0], sample) for sample in samples]
    return {f"dice_{name}": float(value) for name, value in zip(task.classes, np.nanmean(rows, axis=0), strict=True)}


def _record(config: TrainConfig, folder: Path, device: str, begun: Model | None) -> None:
    commit = os.environ.get(COMMIT) or _commit()
    record = {"commit": commit, "device": device, "torch": torch.__version__, "config": dataclasses.asdict(config)}
    record["begun_from"] = f"{begun.card['name']} {begun.card['version']}" if begun else "scratch"
    with (folder / "run.json").open("w") as stream:
        json.dump(record, stream, indent=1)


def _commit() -> str:
    return subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    ).stdout.strip()  # fmt: skip

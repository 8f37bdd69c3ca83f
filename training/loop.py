"""The training loop: continues from its last checkpoint, on any machine."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import math
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bidsapp.models.unet import FoldedUNet
from training.config import TrainConfig
from training.generator import Generator, Sample
from training.heads import load_heads
from training.lesions import load_lesions
from training.tasks import Task, make_task

log = logging.getLogger("training")
#: Seeds of validation samples lie apart from those of training, which count up from seed * 10**9.
VALIDATION_SEED = 10**15


def train(config: TrainConfig, *, folder: Path, device: str, max_seconds: float = math.inf) -> None:
    """Train until ``config.steps`` or `max_seconds`, writing into `folder`.

    Files: ``run.json`` (configuration, git commit, device), ``log.tsv`` (a row each validation), ``curve.png``,
    ``checkpoint.pt`` (weights, their average, optimiser, step; written anew every ``config.checkpoint_seconds``).
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    _record(config, folder, device)
    began = time.monotonic()
    make = generator(config, folder, device, held_out=False)
    check = generator(config, folder, device, held_out=True)
    task, state = make_task(config.task), _State(config, device)
    state.load(folder / "checkpoint.pt")
    samples = iter(_samples(make, config, state.step * config.batch, device))
    log.info("%s from step %d, %s", config.name, state.step, device)
    saved, losses, spent = time.monotonic(), [], np.zeros(2)
    while state.step < config.steps and time.monotonic() - began < max_seconds:
        loss, seconds = _step(state, samples, task)
        losses.append(loss)
        spent += seconds
        if state.step % config.validate_every == 0 or state.step == config.steps:
            dice = validate(state.average, check, task, config)
            _write_row(folder / "log.tsv", state.step, losses, spent, dict(zip(task.classes, dice, strict=True)))
            draw_curve(folder / "log.tsv", folder / "curve.png")
            losses, spent = [], np.zeros(2)
        if time.monotonic() - saved > config.checkpoint_seconds:
            state.save(folder / "checkpoint.pt")
            saved = time.monotonic()
            log.info("step %d loss %.4f", state.step, loss)
    state.save(folder / "checkpoint.pt")


class _State:
    """Network, its running average, optimiser, step."""

    def __init__(self, config: TrainConfig, device: str) -> None:
        self.config = config
        self.network = FoldedUNet(config.network).to(device)
        self.average = FoldedUNet(config.network).to(device).eval().requires_grad_(False)
        self.average.load_state_dict(self.network.state_dict())
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.step = 0

    def save(self, path: Path) -> None:
        parts: dict[str, Any] = {"network": self.network, "average": self.average, "optimiser": self.optimiser}
        torch.save(
            {"step": self.step} | {key: part.state_dict() for key, part in parts.items()}, path.with_suffix(".new")
        )
        path.with_suffix(".new").replace(path)  # never half a checkpoint

    def load(self, path: Path) -> None:
        if not path.exists():
            return
        kept = torch.load(path, map_location=next(self.network.parameters()).device, weights_only=True)
        self.step = kept["step"]
        self.network.load_state_dict(kept["network"])
        self.average.load_state_dict(kept["average"])
        self.optimiser.load_state_dict(kept["optimiser"])

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine to 2 % at ``config.steps``."""
        c = self.config
        rise = min(1.0, (self.step + 1) / c.warm_up)
        fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / c.steps)))
        return c.learning_rate * rise * fall

    def follow(self) -> None:
        """Move the average towards the network; at first faster, so that the beginning is forgotten."""
        keep = min(1 - 1 / self.config.average_over, self.step / (self.step + 10))
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.network.parameters(), strict=True):
                slow.lerp_(fast, 1 - keep)


class _Numbered(Dataset):
    """Sample n of the run's seed."""

    def __init__(self, make: Generator, seed: int) -> None:
        self.make, self.first = make, seed * 10**9

    def __getitem__(self, number: int) -> Sample:
        return self.make.sample(self.first + number)


def _samples(make: Generator, config: TrainConfig, start: int, device: str) -> DataLoader:
    """Samples from number `start` on; on a CPU made ahead by another process, on a GPU in place."""
    workers = config.workers if device == "cpu" else 0
    return DataLoader(
        _Numbered(make, config.seed),
        sampler=range(start, config.steps * config.batch),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )


def _step(state: _State, samples: Iterator[Sample], task: Task) -> tuple[float, np.ndarray]:
    """One step of the optimiser: loss, and seconds spent on waiting for samples and on the network."""
    config, seconds, total = state.config, np.zeros(2), 0.0
    for group in state.optimiser.param_groups:
        group["lr"] = state.learning_rate()
    for _ in range(config.batch):
        before = time.monotonic()
        sample = next(samples)
        between = time.monotonic()
        loss = task.loss(forward(state.network, task, sample, config), sample) / config.batch
        loss.backward()
        total += float(loss.detach())
        seconds += between - before, time.monotonic() - between
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
    state.optimiser.step()
    state.optimiser.zero_grad(set_to_none=True)
    state.step += 1
    state.follow()
    return total, seconds


def forward(network: FoldedUNet, task: Task, sample: Sample, config: TrainConfig) -> torch.Tensor:
    """Logits (classes, X, Y, Z) of a sample, in float32."""
    place = task.place(sample)
    with torch.autocast(sample.image.device.type, torch.bfloat16, enabled=config.mixed_precision):
        return network(task.inputs(sample)[None], None if place is None else place[None])[0].float()


def validate(network: FoldedUNet, make: Generator, task: Task, config: TrainConfig) -> list[float]:
    """Mean Dice a class over the same synthetic samples of held-out heads every time."""
    rows = []
    with torch.no_grad():
        for i in range(config.validate_on):
            sample = make.sample(VALIDATION_SEED + i, head=i % len(make.heads))
            rows.append(task.dice(forward(network, task, sample, config), sample))
    return np.nanmean(np.array(rows), axis=0).tolist()


def draw_curve(table: Path, figure: Path) -> None:
    """Loss and Dice over steps, from the log."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with table.open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    steps = [int(row["step"]) for row in rows]
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(steps, [float(row["loss"]) for row in rows])
    left.set(xlabel="step", ylabel="loss (training)")
    for key in [key for key in rows[0] if key.startswith("dice_")]:
        right.plot(steps, [float(row[key]) for row in rows], label=key[5:])
    right.set(xlabel="step", ylabel="Dice (synthetic, held-out heads)", ylim=(0, 1))
    right.legend(fontsize=6, ncols=2)
    fig.savefig(figure, dpi=100, metadata={"Software": None})
    plt.close(fig)


def _write_row(path: Path, step: int, losses: list[float], spent: np.ndarray, dice: dict[str, float]) -> None:
    row = {"step": step, "loss": f"{np.mean(losses):.4f}", "make_s": f"{spent[0] / len(losses):.3f}"}
    row |= {"network_s": f"{spent[1] / len(losses):.3f}"} | {f"dice_{key}": f"{v:.4f}" for key, v in dice.items()}
    new = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, row.keys(), delimiter="\t", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    log.info("%s", row)


def generator(config: TrainConfig, folder: Path, device: str, *, held_out: bool) -> Generator:
    """Makes samples of the heads and lesion masks trained on, or of those held out."""
    names = config.held_out_heads if held_out else config.train_heads
    heads = load_heads(Path(config.heads), names, cache=folder.parent / "cache", device=device)
    lesions = None
    if config.lesions:
        kept = {"only": config.held_out_lesions} if held_out else {"leave_out": config.held_out_lesions}
        lesions = load_lesions(Path(config.lesions), device=device, **kept)
    return Generator(heads, config.generator, lesions)


def _record(config: TrainConfig, folder: Path, device: str) -> None:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    ).stdout.strip()  # fmt: skip
    record = {"commit": commit, "device": device, "torch": torch.__version__, "config": dataclasses.asdict(config)}
    with (folder / "run.json").open("w") as stream:
        json.dump(record, stream, indent=1)

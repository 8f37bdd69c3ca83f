"""The training loop, whatever is trained: it continues from its last checkpoint, on any machine."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.utils.data import DataLoader, Dataset

from bidsapp.errors import AppError, TryAgainError
from bidsapp.writing import replacing, write_text

log = logging.getLogger("bidsapp.learn")
CHECKPOINT = "checkpoint.safetensors"
#: Samples that each process makes ahead, and how long one of them may take.
AHEAD, SAMPLE_SECONDS = 4, 900.0
#: Where they are handed over, and how many bytes are to be left there for others.
SHARED, LEFT_FREE = Path("/dev/shm"), 4 << 20


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast.

    Attributes
    ----------
    steps, batch : int
        Steps of the optimiser, and samples that each takes, one after the other.
    learning_rate, weight_decay : float
        Of AdamW (Loshchilov & Hutter 2019); the rate rises linearly over `warm_up` steps, then falls to 2 % by half a
        cosine.
    average_over : int
        Steps of the exponential moving average of the weights, which is what is validated and kept.
    validate_every : int
        Steps.
    checkpoint_seconds : float
    patience : int
        Validations without a better score after which it ends, with the best weights; 0: never.
    frozen : tuple of str
        Starts of the names of parameters that stay as they are.
    head_from : float
        Share of the steps after which only the `head` learns (second phase of Havaei et al. 2017).
    seed : int
        Of what the network itself draws (dropout).
    """

    steps: int
    batch: int = 1
    learning_rate: float = 1e-3
    warm_up: int = 50
    weight_decay: float = 1e-4
    average_over: int = 100
    validate_every: int = 200
    checkpoint_seconds: float = 120.0
    patience: int = 0
    frozen: tuple[str, ...] = ()
    head_from: float = 1.0
    seed: int = 1

    def rate(self, step: int, spent: float = 0.0) -> float:
        """Learning rate of a step, when this share of the time is spent."""
        rise = min(1.0, (step + 1) / max(1, self.warm_up))
        fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, max(step / self.steps, spent))))
        return self.learning_rate * rise * fall


@dataclass(frozen=True)
class Fitted:
    """The outcome of a run: averaged weights (the best ones where there is patience) and where they were reached."""

    network: nn.Module
    step: int
    finished: bool


Loss = Callable[[nn.Module, Any], torch.Tensor]
Validate = Callable[[nn.Module], Mapping[str, float]]


def fit(
    network: nn.Module,
    make: Callable[[int], Any],
    *,
    loss: Loss,
    validate: Validate,
    schedule: Schedule,
    folder: Path,
    workers: int = 0,
    start_workers: str | None = None,
    max_seconds: float = math.inf,
    finish_seconds: float = math.inf,
    on_step: Callable[[int, float], None] | None = None,
    say: Callable[[str], None] = log.warning,
) -> Fitted:
    """Train until the last step, until nothing improves, or for `max_seconds`.

    Parameters
    ----------
    network : Module
        On its device; trained in place.
    make : callable
        Makes sample number n (numbers count up from 0; the same number always makes the same sample).
    loss : callable
        Of the network and a sample.
    validate : callable
        Figures of a network by name; their mean (without nan) is the score, the more the better.
    schedule : Schedule
    folder : Path
        Gets ``log.tsv`` (a row each validation), ``curve.png`` and ``checkpoint.safetensors``.
    workers : int
        Processes that make samples ahead.
    start_workers : str, optional
        How they are started (`multiprocessing`): "spawn" where they use a GPU; `make` is pickled then.
    max_seconds : float
        It stops there, to be continued.
    finish_seconds : float
        It is done by then: the learning rate falls with the steps or with this time, whichever is over first.
    on_step : callable, optional
        Called with the number of steps done and the loss.
    say : callable
        Takes a line on what is not done as asked.

    Returns
    -------
    Fitted

    Raises
    ------
    AppError
        The checkpoint in `folder` is damaged, or is another network's; a process that makes samples died (try again).
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = _State(network, schedule)
    state.load(folder / CHECKPOINT)
    _forget_rows(folder / "log.tsv", state.step)
    left = range(state.step * schedule.batch, schedule.steps * schedule.batch)
    began = saved = time.monotonic()
    if workers and start_workers is None and left:  # others are handed over on the GPU
        workers = _workers_with_room(make(left[0]), workers, say)
    samples = iter(samples_ahead(make, left, workers=workers, start=start_workers))
    losses: list[float] = []
    spent, timed_out = np.zeros(2), False
    while state.step < schedule.steps and not state.exhausted() and not timed_out:
        elapsed = time.monotonic() - began
        if elapsed >= max_seconds:
            break
        value, seconds = _step(state, samples, loss, spent=elapsed / finish_seconds)
        losses.append(value)
        spent += seconds
        if on_step is not None:
            on_step(state.step, value)
        timed_out = time.monotonic() - began >= finish_seconds
        if state.step % schedule.validate_every == 0 or state.step == schedule.steps or timed_out:
            figures = dict(validate(state.average))
            state.judge(figures)
            _write_row(folder / "log.tsv", state.step, losses, spent, figures)
            draw_curve(folder / "log.tsv", folder / "curve.png")
            losses, spent = [], np.zeros(2)
        if time.monotonic() - saved > schedule.checkpoint_seconds:
            state.save(folder / CHECKPOINT)
            saved = time.monotonic()
            log.info("step %d loss %.4f", state.step, value)
    state.save(folder / CHECKPOINT)
    finished = state.step >= schedule.steps or state.exhausted() or timed_out
    return Fitted(state.best if schedule.patience else state.average, state.step, finished)


class _State:
    """Network, its running average, the best of those, optimiser, step."""

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        self.network, self.schedule = network, schedule
        self.average = deepcopy(network).eval().requires_grad_(False)
        self.best = deepcopy(self.average)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(not name.startswith(schedule.frozen) if schedule.frozen else True)
        self.optimiser = torch.optim.AdamW(
            [p for p in network.parameters() if p.requires_grad],
            lr=schedule.learning_rate, weight_decay=schedule.weight_decay,
        )  # fmt: skip
        self.step, self.best_step, self.best_score, self.worse = 0, 0, -math.inf, 0

    def exhausted(self) -> bool:
        return bool(self.schedule.patience) and self.worse >= self.schedule.patience

    def judge(self, figures: Mapping[str, float]) -> None:
        """Keep the average if it is the best so far."""
        values = [value for value in figures.values() if not math.isnan(value)]
        score = float(np.mean(values)) if values else 0.0
        if score > self.best_score:
            self.best.load_state_dict(self.average.state_dict())
            self.best_score, self.best_step, self.worse = score, self.step, 0
        else:
            self.worse += 1

    def follow(self) -> None:
        """Move the average towards the network; at first faster, so that the beginning is forgotten."""
        keep = min(1 - 1 / self.schedule.average_over, self.step / (self.step + 10))
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.network.parameters(), strict=True):
                slow.lerp_(fast, 1 - keep)
            for slow, fast in zip(self.average.buffers(), self.network.buffers(), strict=True):
                slow.copy_(fast)  # running statistics of norms are averages already

    def save(self, path: Path) -> None:
        """One safetensors file; never half of one."""
        tensors = {
            f"{part}.{key}": value
            for part in ("network", "average", "best")
            for key, value in getattr(self, part).state_dict().items()
        }
        for number, values in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{key}": value for key, value in values.items()}
        kept = {name: getattr(self, name) for name in ("step", "best_step", "best_score", "worse")}
        content = save({key: value.contiguous() for key, value in tensors.items()}, {"state": json.dumps(kept)})
        with replacing(path) as aside:
            aside.write_bytes(content)

    def load(self, path: Path) -> None:
        """Continue from `path`, if it is there."""
        if not path.exists():
            return
        device = str(next(self.network.parameters()).device)
        try:
            with safe_open(path, "pt", device=device) as stored:
                kept = json.loads(stored.metadata()["state"])
                tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
            for part in ("network", "average", "best"):
                start = f"{part}."
                getattr(self, part).load_state_dict(
                    {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
                )
            self.optimiser.load_state_dict(
                {"state": _by_parameter(tensors), "param_groups": self.optimiser.state_dict()["param_groups"]}
            )
            self._lay_out_moments()
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise AppError(
                f"{path}: this checkpoint is damaged, or was left by a training with other settings"
                f" ({str(error).splitlines()[0]}). Delete it to begin anew, or give another output folder."
            ) from error
        for name, value in kept.items():
            setattr(self, name, value)

    def _lay_out_moments(self) -> None:
        """The optimiser's memory as it was before it was stored: a GPU takes longer steps with any other.

        Counts of steps lie on the CPU (each would be waited for), moments in memory as their parameters do.
        """
        for parameter, values in self.optimiser.state.items():
            for key, value in values.items():
                alike = value.shape == parameter.shape and key != "step"
                values[key] = torch.empty_like(parameter).copy_(value) if alike else value.cpu()


def _by_parameter(tensors: Mapping[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    out: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        if part == "optimiser":
            number, key = rest.split(".")
            out.setdefault(int(number), {})[key] = value
    return out


class _Numbered(Dataset):
    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, number: int) -> Any:
        return self.make(number)


def samples_ahead(make: Callable[[int], Any], numbers: range, *, workers: int, start: str | None) -> DataLoader:
    """Samples of these numbers, in order; made ahead by other processes where there are `workers`."""
    return DataLoader(
        _Numbered(make),
        sampler=numbers,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        multiprocessing_context=start if workers else None,
        timeout=SAMPLE_SECONDS if workers else 0,
    )


def _workers_with_room(sample: Any, workers: int, say: Callable[[str], None]) -> int:
    """The `workers`, or none where samples like this one do not fit where processes hand them over (a container's)."""
    needed = (AHEAD * workers + 1) * _bytes(sample) + LEFT_FREE
    if not SHARED.is_dir() or (free := shutil.disk_usage(SHARED).free) >= needed:
        return workers
    say(
        f"samples are not made ahead (as --workers 0), which is slower: {SHARED} has {free / 1e6:.0f} MB free, and"
        f" {workers} worker(s) need {needed / 1e6:.0f} (docker run --shm-size 1g)."
    )
    return 0


def _bytes(sample: Any) -> int:
    """Of all tensors in it."""
    if isinstance(sample, torch.Tensor):
        return sample.nbytes
    if isinstance(sample, list | tuple):
        return sum(map(_bytes, sample))
    return sum(map(_bytes, vars(sample).values())) if dataclasses.is_dataclass(sample) else 0


def _next(samples: Iterator[Any]) -> Any:
    """The next sample, or an error where the process that makes it is gone: one that died never delivers."""
    try:
        return next(samples)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader "):  # of `make` itself
            raise
        raise TryAgainError(
            f"A process that makes samples died, or had no room in {SHARED} ({str(error).splitlines()[0]}). The same"
            " command goes on from the last checkpoint; with --workers 0 there is no such process, and containers have"
            " more room with docker run --shm-size 1g."
        ) from error


def _step(state: _State, samples: Iterator[Any], loss: Loss, *, spent: float) -> tuple[float, np.ndarray]:
    """One step of the optimiser: loss, and seconds spent on waiting for samples and on the network."""
    schedule, seconds, total = state.schedule, np.zeros(2), 0.0
    state.network.train()
    if state.step >= schedule.head_from * schedule.steps:
        for name, parameter in state.network.named_parameters():
            parameter.requires_grad_(name.startswith("head"))
    for group in state.optimiser.param_groups:
        group["lr"] = schedule.rate(state.step, spent)
    for number in range(schedule.batch):
        before = time.monotonic()
        sample = _next(samples)
        between = time.monotonic()
        # Dropout draws the same in this step whether or not the training was interrupted before it.
        drawn = np.random.SeedSequence([schedule.seed, state.step, number])
        torch.manual_seed(int(drawn.generate_state(1)[0]))
        value = loss(state.network, sample) / schedule.batch
        value.backward()
        total += float(value.detach())
        seconds += between - before, time.monotonic() - between
    torch.nn.utils.clip_grad_norm_([p for p in state.network.parameters() if p.grad is not None], 1.0)
    state.optimiser.step()
    state.optimiser.zero_grad(set_to_none=True)
    state.step += 1
    state.follow()
    return total, seconds


def _forget_rows(path: Path, step: int) -> None:
    """Take out the rows after `step`, the last checkpoint's: a run that was killed later comes to them again."""
    if not path.exists():
        return
    header, *rows = path.read_text().splitlines(keepends=True) or [""]
    kept = [row for row in rows if row.endswith("\n") and int(row.split("\t")[0]) <= step]
    if not kept:
        path.unlink()
    elif len(kept) < len(rows):
        write_text(path, "".join([header, *kept]))


def _write_row(path: Path, step: int, losses: list[float], spent: np.ndarray, figures: Mapping[str, float]) -> None:
    row = {"step": str(step), "loss": f"{np.mean(losses):.4f}", "make_s": f"{spent[0] / len(losses):.3f}"}
    row |= {"network_s": f"{spent[1] / len(losses):.3f}"} | {key: f"{value:.4f}" for key, value in figures.items()}
    new = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, row.keys(), delimiter="\t", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    log.info("%s", row)


def draw_curve(table: Path, figure: Path) -> None:
    """Loss and the figures of validation over steps, from the log."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with table.open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    steps = [int(row["step"]) for row in rows]
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(steps, [float(row["loss"]) for row in rows])
    left.set(xlabel="step", ylabel="loss (training)")
    for key in list(rows[0])[4:]:
        right.plot(steps, [float(row[key]) for row in rows], label=key.removeprefix("dice_"))
    right.set(xlabel="step", ylabel="Dice (validation)", ylim=(0, 1))
    right.legend(fontsize=6, ncols=2)
    fig.savefig(figure, dpi=100, metadata={"Software": None})
    plt.close(fig)

"""A training run: everything that decides its outcome, read from a YAML file."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bidsapp.learn.generator_config import STRIPPED, GeneratorConfig
from bidsapp.models.unet import UNetConfig

#: What ``like`` in a generator's settings begins with; other settings win over it.
PRESETS = {"stripped": STRIPPED}


@dataclass(frozen=True)
class TrainConfig:
    """See the files in ``training/configs``; paths are relative to the working directory."""

    name: str
    version: str
    task: str  # "brain" or "segment"
    heads: str  # folder of the label maps
    lesions: str = ""  # folder of lesion masks in MNI space, or nothing
    large: str = ""  # folder of masks of large lesions (infarcts) in MNI space, or nothing
    patients: str = ""  # folder of patients' tissue classes and lesions, trained on beside the heads, or nothing
    begin_with: str = ""  # name of a packaged model to go on from
    keep_of_start: float = 0.0  # share of that model's weights in what is exported (Wortsman et al. 2022)
    held_out_heads: tuple[str, ...] = ("17", "18", "19", "20")
    train_heads: tuple[str, ...] = tuple(f"{n:02d}" for n in range(1, 17))
    held_out_lesions: tuple[str, ...] = ("26", "27", "28", "29", "30")
    held_out_large: tuple[str, ...] = ()
    seed: int = 0
    steps: int = 4000
    batch: int = 1  # samples a step, one after the other where they differ in shape
    learning_rate: float = 2e-3
    warm_up: int = 50
    weight_decay: float = 1e-4
    average_over: int = 100  # steps; the shipped weights are an exponential moving average
    validate_every: int = 200
    validate_on: int = 12  # synthetic samples
    checkpoint_seconds: float = 120.0
    surround_mm: float = 2.0  # segment: what is shown around a brain mask, at inference
    border_offset_mm: float = 0.0  # brain: the border of the target moved outwards by this, at inference
    mixed_precision: bool = True  # bfloat16 autocast, on a GPU and on a CPU that has it in hardware
    workers: int = 0  # processes that make samples ahead; one at most where the network is on a CPU
    workers_on: str = "cpu"  # ... and where, if the network is on a GPU: "cpu", "cuda"
    threads: int = 1  # more threads wait for one another on a busy machine
    network: UNetConfig = field(default_factory=UNetConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)


def load_config(path: Path, **changes: Any) -> TrainConfig:
    """Read a YAML file; `changes` (None means none) win over it. Raises ValueError on a key that does not exist."""
    with path.open() as stream:
        values = yaml.safe_load(stream) or {}
    values.update({key: value for key, value in changes.items() if value is not None})
    config = _build(TrainConfig, values, str(path))
    if config.task not in ("brain", "segment"):
        raise ValueError(f"{path}: task is {config.task!r}; it must be 'brain' or 'segment'")
    if config.keep_of_start and not config.begin_with:
        raise ValueError(f"{path}: keep_of_start is set, but there is nothing it began with: name it under begin_with")
    both = set(config.train_heads) & set(config.held_out_heads)
    if both:
        raise ValueError(f"{path}: heads {sorted(both)} are both trained on and held out")
    return config


def _preset(name: str, where: str) -> GeneratorConfig:
    if name not in PRESETS:
        raise ValueError(f"{where}: like is {name!r}; there is {', '.join(PRESETS)}")
    return PRESETS[name]


def _build(kind: type, values: dict[str, Any], where: str) -> Any:
    built: dict[str, Any] = {}
    if kind is GeneratorConfig and "like" in values:
        built = dict(vars(_preset(values["like"], where)))
        values = {key: value for key, value in values.items() if key != "like"}
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"{where}: no such setting: {', '.join(unknown)}; there are {', '.join(sorted(hints))}")
    for key, value in values.items():
        if dataclasses.is_dataclass(hints[key]):
            built[key] = _build(typing.cast(type, hints[key]), value, f"{where}: {key}")
        elif isinstance(value, list):
            built[key] = tuple(value)
        elif hints[key] is float:
            built[key] = float(value)  # YAML reads 2e-3 as a string
        else:
            built[key] = value
    return kind(**built)

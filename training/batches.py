"""Batches of samples, made where the network is or by other processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bidsapp.learn.generator import Generator, Sample
from bidsapp.learn.generator_config import GeneratorConfig
from training.material import Material


@dataclass(frozen=True)
class Packed:
    """Samples of one shape as a few small tensors on the CPU: what processes hand on to each other is dear.

    The fields are those of `Sample` with an axis of samples before; images and lesions in half precision.
    """

    image: torch.Tensor
    labels: torch.Tensor
    distance: torch.Tensor
    view: torch.Tensor
    lesion: torch.Tensor
    place: torch.Tensor
    level: np.ndarray


class Batches:
    """Batch number n of a run: always the same samples. Goes to other processes without its generator."""

    def __init__(
        self, material: Material, config: GeneratorConfig, *, seed: int, batch: int, device: str, packed: bool = False
    ) -> None:
        self.material, self.config, self.seed, self.batch = material, config, seed, batch
        self.device, self.packed = device, packed
        self._made: Generator | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_made": None}

    @property
    def generator(self) -> Generator:
        """Made when it is first asked for, by the process that uses it."""
        if self._made is None:
            here = self.material.to(self.device)
            self._made = Generator(here.heads, self.config, here.lesions)
        return self._made

    def __call__(self, number: int) -> list[Sample] | Packed:
        first = self.seed * 10**9 + number * self.batch
        with torch.no_grad():
            samples = [self.generator.sample(first + i) for i in range(self.batch)]
        return stacked(samples) if self.packed else samples


def stacked(samples: Sequence[Sample]) -> Packed:
    """Raises RuntimeError where the shapes differ."""

    def stack(name: str, kind: torch.dtype) -> torch.Tensor:
        return torch.stack([getattr(sample, name).to(kind) for sample in samples]).cpu()

    return Packed(
        image=stack("image", torch.float16),
        labels=stack("labels", torch.uint8),
        distance=stack("distance", torch.float16),
        view=stack("view", torch.bool),
        lesion=stack("lesion", torch.float16),
        place=torch.stack([torch.cat(sample.place) for sample in samples]).cpu(),
        level=np.stack([sample.level for sample in samples]),
    )


def apart(batch: Packed, device: str) -> list[Sample]:
    """The samples, on a device."""
    there = {
        name: getattr(batch, name).to(device, non_blocking=True)
        for name in ("image", "labels", "distance", "view", "lesion", "place")
    }
    return [
        Sample(
            image=there["image"][i].float(),
            labels=there["labels"][i].long(),
            distance=there["distance"][i].float(),
            view=there["view"][i],
            lesion=there["lesion"][i].float(),
            place=there["place"][i].split(list(batch.labels.shape[1:])),
            level=batch.level[i],
        )
        for i in range(len(batch.labels))
    ]

"""What a network is asked: its input, its loss and its figures, made of a synthetic sample."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional

from bidsapp.models.brain import RAMP_MM, normalise
from training.generator import Sample


class Task(Protocol):
    """One question."""

    classes: tuple[str, ...]

    def inputs(self, sample: Sample) -> torch.Tensor:
        """(channels, X, Y, Z)."""

    def loss(self, logits: torch.Tensor, sample: Sample) -> torch.Tensor:
        """Scalar, of logits (classes, X, Y, Z)."""

    def dice(self, logits: torch.Tensor, sample: Sample) -> list[float]:
        """Dice of each of `classes`; nan where a class is absent."""


class BrainTask:
    """Is it brain? A soft probability with a ramp across the border."""

    classes = ("brain",)

    def inputs(self, sample: Sample) -> torch.Tensor:
        return normalise(sample.image)

    def loss(self, logits: torch.Tensor, sample: Sample) -> torch.Tensor:
        """Cross-entropy and soft Dice (squared denominator: Milletari et al. 2016), within the field of view."""
        target = (0.5 + sample.distance / RAMP_MM).clamp(0, 1)[sample.view]
        inside = logits[0][sample.view].float()
        probability = inside.sigmoid()
        overlap = 2 * (probability * target).sum() / (probability.square().sum() + target.square().sum() + 1)
        # The border is a few per cent of the voxels and all of the question.
        near = 1 + 2 * (sample.distance[sample.view].abs() < 10)
        entropy = functional.binary_cross_entropy_with_logits(inside, target, reduction="none")
        return (entropy * near).sum() / near.sum() + 1 - overlap

    def dice(self, logits: torch.Tensor, sample: Sample) -> list[float]:
        found, truth = (logits[0] > 0) & sample.view, (sample.distance > 0) & sample.view
        both = (found & truth).sum()
        return [float(2 * both / (found.sum() + truth.sum()))]


def make_task(name: str) -> Task:
    return {"brain": BrainTask}[name]()

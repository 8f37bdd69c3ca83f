"""What a network is asked: its input, its loss and its figures, made of a synthetic sample."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional

from bidsapp.models.brain import RAMP_MM, normalise
from training.anatomy import STRUCTURES, TARGETS
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

    classes: tuple[str, ...] = ("brain",)

    def inputs(self, sample: Sample) -> torch.Tensor:
        return normalise(sample.image)

    def loss(self, logits: torch.Tensor, sample: Sample) -> torch.Tensor:
        """Cross-entropy and soft Dice (squared denominator: Milletari et al. 2016), within the field of view."""
        target = (0.5 + sample.distance / RAMP_MM).clamp(0, 1) * sample.view
        probability = logits[0].sigmoid() * sample.view
        overlap = 2 * (probability * target).sum() / (probability.square().sum() + target.square().sum() + 1)
        # The border is a few per cent of the voxels and all of the question.
        near = (1 + 2 * (sample.distance.abs() < 10)) * sample.view
        entropy = functional.binary_cross_entropy_with_logits(logits[0], target, reduction="none")
        return (entropy * near).sum() / near.sum() + 1 - overlap

    def dice(self, logits: torch.Tensor, sample: Sample) -> list[float]:
        found, truth = (logits[0] > 0) & sample.view, (sample.distance > 0) & sample.view
        both = (found & truth).sum()
        return [float(2 * both / (found.sum() + truth.sum()))]


class SegmentTask:
    """Which structure is it, or is it lesion? Stripped scans, z-scored within the brain."""

    classes: tuple[str, ...] = (*(str(index) for index in TARGETS), "lesion")

    def __init__(self) -> None:
        self._target = torch.tensor([TARGETS.index(s.target) for s in STRUCTURES])

    def inputs(self, sample: Sample) -> torch.Tensor:
        """Mean 0 and standard deviation 1 over the voxels above zero of each contrast; a missing one is all zero."""
        return torch.stack([_zscore(image) for image in sample.image])

    def loss(self, logits: torch.Tensor, sample: Sample) -> torch.Tensor:
        """Cross-entropy (lesion voxels count twice) and mean soft Dice over the classes present."""
        target = self._soft_target(sample)
        weight = 1 + sample.lesion
        entropy = (
            functional.cross_entropy(logits[None], target[None], reduction="none")[0] * weight
        ).sum() / weight.sum()
        probability = logits.softmax(0)
        overlap = (probability * target).flatten(1).sum(1)
        size = (probability.square() + target.square()).flatten(1).sum(1)
        present = target.flatten(1).sum(1) > 10
        return entropy + 1 - (2 * overlap / (size + 1))[present].mean()

    def dice(self, logits: torch.Tensor, sample: Sample) -> list[float]:
        count = len(self.classes)
        found = functional.one_hot(logits.argmax(0), count).bool()
        truth = functional.one_hot(self._soft_target(sample).argmax(0), count).bool()
        both, sizes = (found & truth).flatten(0, 2).sum(0), found.flatten(0, 2).sum(0) + truth.flatten(0, 2).sum(0)
        there = truth.flatten(0, 2).any(0)
        return torch.where(there, 2 * both / sizes.clamp(min=1), torch.nan).tolist()

    def _soft_target(self, sample: Sample) -> torch.Tensor:
        """(classes, X, Y, Z): one-hot structures, background outside the brain, and the lesion's share."""
        positions = self._target.to(sample.labels.device)[sample.labels] * (sample.distance > 0)
        onehot = functional.one_hot(positions, len(self.classes)).movedim(-1, 0).float()
        onehot = onehot * (1 - sample.lesion)
        onehot[-1] = sample.lesion
        return onehot


def _zscore(image: torch.Tensor) -> torch.Tensor:
    inside = image > 0
    count = inside.sum().clamp(min=1)
    mean = image.sum() / count
    deviation = (((image - mean) * inside).square().sum() / count).sqrt().clamp(min=1e-6)
    return ((image - mean) / deviation * inside).clamp(-5, 5)


def make_task(name: str) -> Task:
    """The task of this name (``TrainConfig.task``)."""
    return BrainTask() if name == "brain" else SegmentTask()

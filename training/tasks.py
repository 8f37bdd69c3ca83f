"""What a network is asked: its input, its loss and its figures, made of a synthetic sample."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional

from bidsapp.learn.anatomy import STRUCTURES, TARGETS, one_sided
from bidsapp.learn.generator import Sample, scaled
from bidsapp.models.brain import RAMP_MM, normalise
from bidsapp.models.unet import symmetric_place

#: How much a lesion counts, as a class of the Dice and voxel by voxel in the cross-entropy, where others count 1.
LESION_WEIGHT = 3.0
#: ... and a voxel of a small one up to this many times more than one of a large one, which has many of them.
SMALL_LESION_WEIGHT = 3.0
SMALL_LESION_VOXELS = 7  # side of the cube in which a lesion is small or large


class Task(Protocol):
    """One question."""

    classes: tuple[str, ...]

    def inputs(self, sample: Sample) -> torch.Tensor:
        """(channels, X, Y, Z)."""

    def place(self, sample: Sample) -> torch.Tensor | None:
        """(3, X/2, Y/2, Z/2), for networks that are told where they look."""

    def loss(self, logits: torch.Tensor, sample: Sample) -> torch.Tensor:
        """Scalar, of logits (classes, X, Y, Z)."""

    def dice(self, logits: torch.Tensor, sample: Sample) -> list[float]:
        """Dice of each of `classes`; nan where a class is absent."""


class BrainTask:
    """Is it brain? A soft probability with a ramp across the border."""

    classes: tuple[str, ...] = ("brain",)

    def inputs(self, sample: Sample) -> torch.Tensor:
        return normalise(sample.image)

    def place(self, sample: Sample) -> None:
        return None

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
    """Which structure is it, or is it lesion? Stripped scans, z-scored within the brain; left and right are one."""

    classes: tuple[str, ...] = (*TARGETS, "lesion")

    def __init__(self) -> None:
        self._target = torch.tensor([TARGETS.index(one_sided(s)) for s in STRUCTURES])
        self._weights = torch.tensor([1.0] * len(TARGETS) + [LESION_WEIGHT])

    def inputs(self, sample: Sample) -> torch.Tensor:
        return scaled(sample)

    def place(self, sample: Sample) -> torch.Tensor:
        """Where in the brain (bidsapp.models.unet.symmetric_place)."""
        return symmetric_place(*sample.place)

    def loss(self, logits: torch.Tensor, sample: Sample) -> torch.Tensor:
        """Cross-entropy and mean soft Dice over the classes present, in both of which lesions count more.

        The target is soft in the lesion alone (label and lesion share a voxel), so that no target of all classes is
        made: most of the time of a step went into that.
        """
        labels, lesion = self._labels(sample)[None], sample.lesion[None]
        log_probability = logits.log_softmax(0)
        at_label, at_lesion = log_probability.gather(0, labels), log_probability[-1:]
        weight = 1 + (lesion_weights(lesion) - 1) * lesion
        entropy = -((at_label * (1 - lesion) + at_lesion * lesion) * weight).sum() / weight.sum()
        overlap = self._sum_by_label(at_label.exp() * (1 - lesion), labels)
        overlap = torch.cat([overlap[:-1], (at_lesion.exp() * lesion).sum()[None]])
        target = self._sum_by_label((1 - lesion).square(), labels)
        target = torch.cat([target[:-1], lesion.square().sum()[None]])
        size = log_probability.mul(2).exp().flatten(1).sum(1) + target
        weights = self._weights.to(target.device) * (target > 10)
        return entropy + ((1 - 2 * overlap / (size + 1)) * weights).sum() / weights.sum()

    def dice(self, logits: torch.Tensor, sample: Sample) -> list[float]:
        count = len(self.classes)
        labels = torch.where(sample.lesion > 0.5, count - 1, self._labels(sample)).flatten()
        found = logits.argmax(0).flatten()
        both = torch.bincount(labels[found == labels], minlength=count)
        truth, sizes = torch.bincount(labels, minlength=count), torch.bincount(found, minlength=count)
        return torch.where(truth > 0, 2 * both / (truth + sizes).clamp(min=1), torch.nan).tolist()

    def _labels(self, sample: Sample) -> torch.Tensor:
        """(X, Y, Z): the class of each voxel, lesions aside; background outside the brain."""
        return self._target.to(sample.labels.device)[sample.labels] * (sample.distance > 0)

    def _sum_by_label(self, values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        sums = torch.zeros(len(self.classes), device=values.device)
        return sums.index_add(0, labels.flatten(), values.flatten())


def lesion_weights(lesion: torch.Tensor) -> torch.Tensor:
    """(1, X, Y, Z): LESION_WEIGHT in large lesions and at their borders, up to SMALL_LESION_WEIGHT times that in small.

    A lesion is as large as the densest cube that touches the voxel: borders that counted more than what they enclose
    would be drawn too far out.
    """
    side, margin = SMALL_LESION_VOXELS, SMALL_LESION_VOXELS // 2
    around = functional.avg_pool3d(lesion, side, stride=1, padding=margin, count_include_pad=False)
    around = functional.max_pool3d(around, side, stride=1, padding=margin)
    return LESION_WEIGHT * (1 + (SMALL_LESION_WEIGHT - 1) * (1 - around).clamp(0, 1).pow(4))


def make_task(name: str) -> Task:
    """The task of this name (``TrainConfig.task``)."""
    return BrainTask() if name == "brain" else SegmentTask()

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from bidsapp.learn.generator import Generator, Sample
from bidsapp.learn.generator_config import GeneratorConfig
from bidsapp.learn.heads import Heads
from bidsapp.learn.lesion_masks import Lesions
from training.tasks import LESION_WEIGHT, SMALL_LESION_WEIGHT, BrainTask, SegmentTask, lesion_weights

PLAIN = GeneratorConfig(rotation_deg=5, elastic_mm=(0, 0.5), view_sides_mm=(5, 20), view_bottom_mm=(5, 20), multiple=8)


def test_brain_task_rewards_the_truth(ball: Heads) -> None:
    task, sample = BrainTask(), Generator(ball, PLAIN).sample(1)
    right = torch.logit((0.5 + sample.distance / 6).clamp(1e-3, 1 - 1e-3))[None]
    assert task.loss(right, sample) < task.loss(-right, sample)
    assert task.dice(right, sample) == [1.0] and task.dice(-right, sample)[0] < 0.01


def test_segment_task_rewards_the_truth(ball: Heads, everywhere: Lesions, patches: GeneratorConfig) -> None:
    task, sample = SegmentTask(), Generator(ball, patches, everywhere).sample(1)
    target = _soft_target(task, sample)
    right, wrong = target.clamp(min=1e-6).log(), torch.zeros_like(target)
    assert task.loss(right, sample) < 0.2 * task.loss(wrong, sample)
    assert all(np.isnan(d) or d == 1 for d in task.dice(right, sample))


def _soft_target(task: SegmentTask, sample: Sample) -> torch.Tensor:
    """(classes, X, Y, Z): one-hot labels that give way to the lesion's share."""
    onehot = torch.nn.functional.one_hot(task._labels(sample), len(task.classes)).movedim(-1, 0).float()
    onehot = onehot * (1 - sample.lesion)
    onehot[-1] = sample.lesion
    return onehot


def test_segment_loss_is_cross_entropy_and_dice(ball: Heads, everywhere: Lesions, patches: GeneratorConfig) -> None:
    """The loss is written so that no target of all classes is made; here it is made."""
    task, sample = SegmentTask(), Generator(ball, patches, everywhere).sample(2)
    assert sample.lesion.max() > 0.5
    logits = torch.randn((len(task.classes), *sample.lesion.shape), generator=torch.Generator().manual_seed(0))
    target, probability = _soft_target(task, sample), logits.softmax(0)
    weight = 1 + (lesion_weights(sample.lesion[None])[0] - 1) * sample.lesion
    entropy = (-(target * logits.log_softmax(0)).sum(0) * weight).sum() / weight.sum()
    overlap, size = (probability * target).flatten(1).sum(1), (probability**2 + target**2).flatten(1).sum(1)
    present = (target**2).flatten(1).sum(1) > 10
    count = torch.tensor([1.0] * (len(task.classes) - 1) + [LESION_WEIGHT])[present]
    expected = entropy + 1 - ((2 * overlap / (size + 1))[present] * count).sum() / count.sum()
    torch.testing.assert_close(task.loss(logits, sample), expected, rtol=1e-4, atol=1e-4)


def test_voxels_of_small_lesions_count_more() -> None:
    lesion = torch.zeros(1, 40, 40, 40)
    lesion[0, 5, 5, 5] = 1
    lesion[0, 15:35, 15:35, 15:35] = 1
    weights = lesion_weights(lesion)
    assert float(weights[0, 25, 25, 25]) == pytest.approx(LESION_WEIGHT)
    assert float(weights[0, 5, 5, 5]) == pytest.approx(LESION_WEIGHT * SMALL_LESION_WEIGHT, rel=0.05)
    assert float(weights.max()) <= LESION_WEIGHT * SMALL_LESION_WEIGHT
    assert float(weights[0, 15, 25, 25]) == pytest.approx(LESION_WEIGHT, rel=0.05)  # the border of a large one


def test_scale_is_that_of_the_whole_brain(ball: Heads, patches: GeneratorConfig) -> None:
    """A patch of all of the head but its corners: the brain in it has mean 0 and standard deviation 1, about."""
    config = dataclasses.replace(
        patches, patch=64, p_lesions=0, bias=(0, 0), noise=(0, 0), texture=(0, 0.01), p_thick=0
    )
    make, task = Generator(ball, config), SegmentTask()
    for seed in range(3):
        sample = make.sample(seed)
        inside = (sample.distance > 0) & (sample.image[0] > 0)
        values = task.inputs(sample)[:, inside]
        assert values.mean(1).abs().max() < 0.25
        assert ((values.std(1) - 1).abs() < 0.3).all()

from __future__ import annotations

import pytest
import torch

from bidsapp.learn import LOSSES
from bidsapp.learn.losses import GroupedLoss, grouped


def logits_of(probability: torch.Tensor) -> torch.Tensor:
    """(1, classes, 1, 1, n) of probabilities (classes, n)."""
    return probability.log()[None, :, None, None, :]


def test_groups_add_up() -> None:
    found = grouped(logits_of(torch.tensor([[0.2, 0.1], [0.3, 0.2], [0.5, 0.7]])), torch.tensor([0, 0, 1])).exp()
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([[0.5, 0.3], [0.5, 0.7]]))


def test_dice_of_groups_by_hand() -> None:
    # Tversky with nothing wrong on the background: TP 0.5 + 0.7, FP 0, FN 0.5 + 0.3, smoothing 1.
    loss = GroupedLoss("tversky", (0, 0, 1))
    value = loss(logits_of(torch.tensor([[0.2, 0.1], [0.3, 0.2], [0.5, 0.7]])), torch.tensor([[[[1, 1]]]]))
    assert float(value) == pytest.approx(1 - (1.2 + 1) / (1.2 + 0.7 * 0.8 + 1), abs=1e-5)


def test_focal_loss_by_hand() -> None:
    """Lin et al. 2017: -(1 - p)^2 log p of the true class, a voxel; beside it Dice with squares, smoothing 1."""
    lesion, labels = torch.tensor([0.1, 0.9, 0.999]), torch.tensor([[[[0, 1, 0]]]])
    true = torch.tensor([0.9, 0.9, 0.001])
    focal = float((-((1 - true) ** 2) * true.log()).mean())
    dice = 1 - (2 * 0.9 + 1) / (1 + float(lesion.square().sum()) + 1)
    split = torch.stack([0.25 * (1 - lesion), 0.75 * (1 - lesion), lesion])  # of a network with another class
    for groups, probability in (((0, 1), torch.stack([1 - lesion, lesion])), ((0, 0, 1), split)):
        value = GroupedLoss("focal", groups)(logits_of(probability), labels)
        assert float(value) == pytest.approx(dice + focal, abs=1e-4)


@pytest.mark.parametrize("kind", LOSSES)
def test_better_answers_cost_less(kind: str) -> None:
    loss, labels = GroupedLoss(kind, (0, 1)), torch.tensor([[[[0, 0, 1, 1]]]])
    costs = [
        float(loss(logits_of(torch.tensor([[1 - p for p in row], row])), labels))
        for row in ([0.9, 0.8, 0.1, 0.2], [0.5, 0.5, 0.5, 0.5], [0.1, 0.2, 0.9, 0.8])
    ]
    assert costs[0] > costs[1] > costs[2]


@pytest.mark.parametrize("kind", LOSSES)
def test_a_patch_without_lesion_asks_for_none(kind: str) -> None:
    loss, labels = GroupedLoss(kind, (0, 1)), torch.zeros(1, 1, 1, 4, dtype=torch.long)
    some, none = (float(loss(logits_of(torch.tensor([[1 - p] * 4, [p] * 4])), labels)) for p in (0.4, 0.01))
    assert none < some


def test_unknown_loss() -> None:
    with pytest.raises(ValueError, match="'dice' is unknown"):
        GroupedLoss("dice", (0, 1))

"""Losses for few labels among many voxels, and for networks that tell more classes apart than the labels do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bidsapp.learn import LOSSES

#: Missed voxels weigh more than false ones (Salehi et al. 2017, doi:10.1007/978-3-319-67389-9_44).
TVERSKY_FALSE_POSITIVES, TVERSKY_FALSE_NEGATIVES = 0.3, 0.7


class GroupedLoss(nn.Module):
    """A loss of MONAI on groups of a network's classes.

    A network of twenty classes can so be trained on masks that know two: of the labels' background, it may make of
    each voxel what it likes, but lesion.

    Parameters
    ----------
    kind : str
        One of `LOSSES`: Dice and cross-entropy; Tversky; Dice and focal.
    groups : sequence of int
        For each class of the network the label that it counts as.
    """

    def __init__(self, kind: str, groups: Sequence[int]) -> None:
        super().__init__()
        from monai import losses  # takes seconds to import

        self.register_buffer("groups", torch.tensor(list(groups)))
        common = {"include_background": False, "softmax": True, "to_onehot_y": True, "batch": True}
        smooth = {"smooth_nr": 1.0, "smooth_dr": 1.0}  # patches without any lesion: what is found costs, nothing else
        if kind == "tversky":
            weights = {"alpha": TVERSKY_FALSE_POSITIVES, "beta": TVERSKY_FALSE_NEGATIVES}
            self.loss: nn.Module = losses.TverskyLoss(**common, **smooth, **weights)
        elif kind == "focal":
            self.loss = losses.DiceFocalLoss(**common, **smooth, squared_pred=True)
        elif kind == "dice-ce":
            self.loss = losses.DiceCELoss(**common, **smooth, squared_pred=True)
        else:
            raise ValueError(f"loss {kind!r} is unknown; there are {', '.join(LOSSES)}")

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes, X, Y, Z) and labels (B, X, Y, Z), whole numbers -> scalar."""
        return self.loss(grouped(logits, self.groups), labels[:, None])


def grouped(logits: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (B, labels, X, Y, Z) of groups of classes."""
    log_probability = logits.float().log_softmax(1)
    count = int(groups.max()) + 1
    if count == len(groups):
        return log_probability
    return torch.stack([log_probability[:, groups == group].logsumexp(1) for group in range(count)], 1)

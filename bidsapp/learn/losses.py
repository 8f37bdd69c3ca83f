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
        self.focal: nn.Module | None = None
        if kind == "tversky":
            weights = {"alpha": TVERSKY_FALSE_POSITIVES, "beta": TVERSKY_FALSE_NEGATIVES}
            self.loss: nn.Module = losses.TverskyLoss(**common, **smooth, **weights)
        elif kind == "focal":
            # Not MONAI's DiceFocalLoss: its focal part has a sigmoid for each class where these have a softmax.
            self.loss = losses.DiceLoss(**common, **smooth, squared_pred=True)
            self.focal = losses.FocalLoss(use_softmax=True, to_onehot_y=True)
        elif kind == "dice-ce":
            self.loss = losses.DiceCELoss(**common, **smooth, squared_pred=True)
        else:
            raise ValueError(f"loss {kind!r} is unknown; there are {', '.join(LOSSES)}")

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes, X, Y, Z) and labels (B, X, Y, Z), whole numbers -> scalar."""
        log_probability = grouped(logits, self.groups)
        value = self.loss(log_probability, labels[:, None])
        if self.focal is not None:  # MONAI's mean is over voxels and classes; that of Lin et al. 2017 is over voxels
            value = value + log_probability.shape[1] * self.focal(log_probability, labels[:, None])
        return value


def grouped(logits: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (B, labels, X, Y, Z) of groups of classes."""
    log_probability = logits.float().log_softmax(1)
    count = int(groups.max()) + 1
    if count == len(groups):
        return log_probability
    return torch.stack([log_probability[:, groups == group].logsumexp(1) for group in range(count)], 1)

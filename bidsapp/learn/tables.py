"""What is to be known of a voxel by its label or its kind of matter, as tables on a device."""

from __future__ import annotations

import numpy as np
import torch

from bidsapp.learn.anatomy import KIND, KINDS, LEFT_LESION, POSITION, RIGHT_LESION, STRUCTURES

#: Of each of `KINDS`: whether it lies in the brain, is solid tissue of it, is its fluid.
CEREBRAL = np.array([kind.cerebral for kind in KINDS])
TISSUE = CEREBRAL & np.array([kind.name not in ("csf", "choroid plexus") for kind in KINDS])
FLUID = np.array([kind.name == "csf" for kind in KINDS])
#: (contrasts, kinds): the signals of `anatomy.KINDS`.
SIGNALS = np.array([(kind.t1w, kind.t2w, kind.flair) for kind in KINDS]).T


class Tables:
    """To be indexed with labels (positions in ``anatomy.STRUCTURES``) or kinds (in ``anatomy.KINDS``).

    Attributes
    ----------
    kind, mirrored : Tensor
        int64 (labels,): the label's kind, and what it is when left and right are swapped.
    ventricle_of_side, ventricle, sulcal_fluid : Tensor
        bool, by label: left and right lateral ventricle (2, labels), either, fluid outside of ventricles.
    cerebral, tissue : Tensor
        bool, by kind.
    lesions : Tensor
        The labels of the lesions that a patient's label map has.
    bright_fluid : Tensor
        The kinds that flow may make bright.
    """

    def __init__(self, device: torch.device) -> None:
        sides = [[name in s.name and "lateral ventricle" in s.name for s in STRUCTURES] for name in ("left", "right")]
        self.kind = torch.tensor([KIND[s.kind] for s in STRUCTURES], device=device)
        self.mirrored = torch.tensor([POSITION[s.partner] for s in STRUCTURES], device=device)
        self.ventricle_of_side = torch.tensor(sides, device=device)
        self.ventricle = self.ventricle_of_side.any(0)
        self.sulcal_fluid = torch.tensor([s.name == "CSF" for s in STRUCTURES], device=device)
        self.cerebral = torch.from_numpy(CEREBRAL).to(device)
        self.tissue = torch.from_numpy(TISSUE).to(device)
        self.lesions = torch.tensor([POSITION[LEFT_LESION], POSITION[RIGHT_LESION]], device=device)
        self.bright_fluid = torch.tensor([KIND["csf"], KIND["choroid plexus"]], device=device)

    def is_kind(self, *names: str) -> torch.Tensor:
        """bool, by kind: whether it is one of these."""
        return torch.tensor([kind.name in names for kind in KINDS], device=self.kind.device)

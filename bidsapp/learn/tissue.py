"""Which tissue there is, and what is seen where it meets other tissue: thin cortex, soft borders, bright walls."""

from __future__ import annotations

import math

import torch

from bidsapp.learn.anatomy import KIND, POSITION
from bidsapp.learn.fields import Chance, soften, touching
from bidsapp.learn.generator_config import GeneratorConfig
from bidsapp.learn.tables import Tables

#: "Dirty" white matter is at most this many times the difference of cortex and white matter off white matter.
DIRT = 1.7


class Tissue:
    """Draws what label maps do not tell of healthy tissue."""

    def __init__(self, config: GeneratorConfig, tables: Tables) -> None:
        self.config, self.tables = config, tables

    def thinned(self, chance: Chance, labels: torch.Tensor) -> torch.Tensor:
        """Cortex that fluid has eaten into from outside and white matter from below, in places, never from both.

        The cortex of the label maps is 2.2 to 3.1 mm thick; people's is 1 to 4.5 mm, thinner with age (Fischl & Dale
        2000). What a network takes for cortex should follow from what it sees, not from how thick it always was.
        """
        outer, inner = (chance.uniform(*range_) for range_ in (self.config.thinning, self.config.thinning_below))
        if not (outer or inner):
            return labels
        kinds = self.tables.kind[labels]
        cortex = kinds == KIND["cortex"]
        fluid = self.tables.sulcal_fluid[labels] | ~self.tables.cerebral[kinds]
        taken = cortex & touching(fluid) & in_places(chance, labels, outer)
        white = labels.new_tensor([POSITION[2], POSITION[41]])  # left, right
        for side in white:
            below = cortex & touching(labels == side) & ~touching(fluid | taken)
            below &= in_places(chance, labels, inner)
            labels = torch.where(below, side, labels)
        return torch.where(taken, POSITION[24], labels)

    def kinds(self, chance: Chance, labels: torch.Tensor) -> torch.Tensor:
        """Kind of matter of each voxel; soft tissue and skin, one label each in the maps, get fat and muscle."""
        kinds = self.tables.kind[labels]
        field = chance.field(labels.shape, 6, 16)
        outer = (kinds == KIND["soft tissue"]) | (kinds == KIND["skin"])
        kinds = torch.where(outer & (field > chance.uniform(-0.5, 1.5)), KIND["fat"], kinds)
        return torch.where(outer & (field < chance.uniform(-2.0, -0.5)), KIND["muscle"], kinds)

    def border(self, chance: Chance, labels: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """How much of the cortex's signal its surroundings have.

        FreeSurfer, whose labels the maps hold, puts both surfaces of the cortex within the edges that are seen: on its
        T1w of ``bids_t1_freesurfer`` the white matter next to it looks four tenths like cortex, the fluid seven tenths.
        And all of the fluid in sulci, with its meninges and vessels, looks half like cortex there.
        """
        c, none = self.config, torch.zeros(kinds.shape, device=kinds.device)
        border, sulcal, below = (chance.uniform(*range_) for range_ in (c.border, c.sulcal, c.below))
        if not (border or sulcal or below):
            return none
        cortex = ((kinds == KIND["cortex"]) | (kinds == KIND["cerebellar cortex"])).float()
        near = soften(cortex, 0.8 / c.spacing_mm)
        fluid = none
        if sulcal:
            fluid = (sulcal * (1 + 0.5 * chance.field(kinds.shape, 3, 10))).clamp(0, 0.9)
        fluid = torch.maximum((border * near).clamp(max=0.8), fluid) * self.tables.sulcal_fluid[labels]
        white = (kinds == KIND["white matter"]) | (kinds == KIND["cerebellar white matter"])
        return fluid + (below * near).clamp(max=0.6) * white

    def lining(self, chance: Chance, labels: torch.Tensor, kinds: torch.Tensor, lesion: torch.Tensor) -> torch.Tensor:
        """Walls of the lateral ventricles, and what lies between the two: septum and fornix.

        Both are bright on the FLAIR of healthy people, the one about a voxel thick, the other a sheet in the midline.
        """
        if not chance.happens(self.config.p_lining):
            return torch.zeros(kinds.shape, device=kinds.device)
        tissue = self.tables.tissue[kinds]
        left, right = self.tables.ventricle_of_side[:, labels]
        wall = touching(left | right) & tissue
        width = chance.uniform(0.7, 2.0) / self.config.spacing_mm
        between = 4 * soften(left.float(), width) * soften(right.float(), width)
        between = (2 * between).clamp(max=1) * (tissue | left | right)
        bright = (0.5 + 0.5 * chance.field(kinds.shape, 8, 30)).clamp(0, 1)
        lining = torch.maximum(chance.uniform(0, 1) * bright * wall, chance.uniform(0, 1) * between)
        return lining * (1 - lesion)

    def dirt(self, chance: Chance, labels: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """White matter that is "dirty" near cortex, near ventricles or elsewhere, but holds no lesion; 1: as cortex.

        Caps and bands of the ventricles, corticospinal and optic tracts: brighter than cortex on some real FLAIR, and
        drawn by no rater.
        """
        c = self.config
        if not (c.p_lesions and chance.happens(c.p_dirty)):
            return torch.zeros(kinds.shape, device=kinds.device)
        field = chance.field(kinds.shape, 6, 25)
        where = chance.rng.integers(3)
        if where == 0:
            border = ((kinds == KIND["cortex"]) | (kinds == KIND["csf"])).float()
            field = field.clamp(0, 1) * soften(border, 2.0 / c.spacing_mm)
        elif where == 1:
            ventricle = soften(self.tables.ventricle[labels].float(), chance.uniform(4, 8) / c.spacing_mm)
            field = (field + 0.5).clamp(0, 1) * (4 * ventricle).clamp(max=1)
        else:
            field = (field - chance.uniform(0, 1)).clamp(0, 1)
        return chance.uniform(0, DIRT) * field * (kinds == KIND["white matter"])


def in_places(chance: Chance, like: torch.Tensor, share: float) -> torch.Tensor:
    """Patches of 3 to 12 mm that make up about this share of a volume of the shape of `like`, bool."""
    if not share:
        return torch.zeros(like.shape, dtype=torch.bool, device=like.device)
    field = chance.field(like.shape, 3, 12)
    return field < math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * share - 1)))

"""What is drawn as lesions, small and large."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bidsapp.learn.anatomy import KIND
from bidsapp.learn.fields import Chance, soften
from bidsapp.learn.generator_config import GeneratorConfig
from bidsapp.learn.heads import DISTANCE_SPACING_MM, Heads
from bidsapp.learn.lesion_masks import BRAIN_MM, ORIGIN_MM, Lesions
from bidsapp.learn.tables import Tables

#: The lesions that a patient's label map has, where others have the number of a mask; how often they are drawn there.
OWN, P_OWN = -1, 0.5
#: Large lesions and their shares: infarcts (real masks), masses with their oedema, broad seams of the ventricles.
LARGE = {"infarct": 0.4, "mass": 0.35, "seam": 0.25}
#: A mass within its oedema: how often some of it takes up contrast agent.
P_ENHANCING = 0.6
#: Voxels of a brain on the grid of the lesion masks (nilearn's load_mni152_brain_mask, 1 mm).
MNI_BRAIN_VOXELS = 1_886_539
#: Where the real masks seldom reach, blobs are drawn on their own.
BELOW_TENTORIUM = ("brain stem", "cerebellar white matter", "ventral DC", "thalamus")
#: Kinds of matter that lesions may lie in; of the cortex only what the real mask covers.
LESION_HOSTS = (
    "white matter", "cerebellar white matter", "brain stem", "thalamus", "caudate", "putamen", "pallidum", "ventral DC",
    "cortex",
)  # fmt: skip


@dataclass(frozen=True)
class Pathology:
    """What is drawn into the tissue, as shares (X, Y, Z) of each voxel.

    Attributes
    ----------
    lesion : Tensor
        What is to be found.
    severity : Tensor or float
        How far it is from normal, within (0, 1].
    cavity : Tensor or None
        The part of it that is fluid: old infarcts.
    rim, dead : Tensor or None
        The parts of a mass that take up contrast agent, and that are dead; both belong to the lesion.
    spots : Tensor or None
        Bright white matter that is not to be found, where infarcts are.
    large : str
        Which of `LARGE` it is, if any.
    share : float
        How much of the whole brain a large one takes, of which a patch may see a part.
    """

    lesion: torch.Tensor
    severity: torch.Tensor | float = 1.0
    cavity: torch.Tensor | None = None
    rim: torch.Tensor | None = None
    dead: torch.Tensor | None = None
    spots: torch.Tensor | None = None
    large: str = ""
    share: float = 0.0


@dataclass(frozen=True)
class Anatomy:
    """What lesions are drawn into.

    Attributes
    ----------
    points : Tensor
        (3, X, Y, Z), for each voxel of the sample its place in the head's label map, in voxels.
    labels, kinds : Tensor
        int64 (X, Y, Z), positions in ``anatomy.STRUCTURES`` and in ``anatomy.KINDS``.
    head : int
        Number of the head.
    growth : float
        How many times as large as that head's the brain is by volume.
    """

    points: torch.Tensor
    labels: torch.Tensor
    kinds: torch.Tensor
    head: int
    growth: float = 1.0


class Painter:
    """Draws what is not healthy.

    Raises
    ------
    ValueError
        Lesions are asked for, but there are no masks of them.
    """

    def __init__(self, heads: Heads, config: GeneratorConfig, tables: Tables, lesions: Lesions | None) -> None:
        if config.p_lesions and lesions is None:
            raise ValueError("p_lesions is set, but there are no lesion masks: name their folder under 'lesions'")
        if config.p_large and not (lesions and lesions.large):
            raise ValueError("p_large is set, but there are no masks of large lesions: name their folder under 'large'")
        self.heads, self.config, self.tables, self.lesions = heads, config, tables, lesions
        self._hosts = tables.tissue if config.strokes else tables.is_kind(*LESION_HOSTS)
        self._below = tables.is_kind(*BELOW_TENTORIUM)
        self._brain_mm3 = [float((heads.distance[i] > 0).sum()) * DISTANCE_SPACING_MM**3 for i in range(len(heads))]
        self._share_of_mask = [float(one.sum()) / MNI_BRAIN_VOXELS for one in lesions.masks] if lesions else []
        self._own_spots = [self._find_own(head) for head in range(len(heads))]

    def _find_own(self, head: int) -> np.ndarray:
        """(N, 3): where a patient's own lesions are, mm from the middle of the brain."""
        where = torch.isin(self.heads.labels[head].long(), self.tables.lesions).nonzero().cpu().numpy()
        return where - self.heads.centre[head]

    def choose_masks(self, chance: Chance, head: int) -> list[int]:
        """No mask, one, or two to unite; the first one may be the lesions that the head has itself."""
        if self.lesions is None or not chance.happens(self.config.p_lesions):
            return []
        common = self.lesions.common
        if self.config.p_large and chance.happens(self.config.p_large):
            return [int(chance.rng.integers(common, len(self.lesions)))]
        masks = [int(i) for i in chance.rng.integers(common, size=chance.rng.integers(1, 3))]
        if len(self._own_spots[head]) and chance.happens(P_OWN):
            masks[0] = OWN
        return masks

    def some_spot(self, chance: Chance, head: int, mask: int) -> np.ndarray:
        """A place in a mask's lesions, mm from the middle of the head's brain."""
        own = mask == OWN
        spots = self._own_spots[head] if own else self.lesions.spots[mask]  # type: ignore[union-attr]
        spot = spots[chance.rng.integers(len(spots))]
        return spot if own else self._from_mni(spot, head)

    def _from_mni(self, voxel: np.ndarray, head: int) -> np.ndarray:
        """Voxel of a lesion mask -> mm from the middle of this head's brain (boxes of both brains made to coincide)."""
        half = (BRAIN_MM[1] - BRAIN_MM[0]) / 2
        return (voxel + ORIGIN_MM - BRAIN_MM.mean(0)) / half * self.heads.extent[head]

    def draw(self, chance: Chance, anatomy: Anatomy, masks: list[int]) -> Pathology:
        """Whatever the masks that were chosen stand for."""
        if self.lesions is not None and masks and masks[0] >= self.lesions.common:
            return self._large(chance, anatomy, masks)
        if self.config.strokes:
            return self._strokes(chance, anatomy, masks)
        return self._small(chance, anatomy, masks)

    def _small(self, chance: Chance, anatomy: Anatomy, masks: list[int]) -> Pathology:
        """Real masks, thinned, and blobs; inside the tissues that may have them."""
        kinds = anatomy.kinds
        if not masks:
            return Pathology(torch.zeros(kinds.shape, device=kinds.device))
        lesion = self._placed(chance, anatomy, masks)
        lesion *= chance.field(kinds.shape, 6, 15) > chance.uniform(-3, 0.5)
        blobs = (chance.field(kinds.shape, 4, 9) > chance.uniform(2.8, 4.5)).float()
        if chance.happens(0.6):  # above all where the real masks seldom are
            lesion = torch.maximum(lesion, blobs)
            if chance.happens(0.5):
                field = chance.field(kinds.shape, 2.5, 6)
                lesion = torch.maximum(lesion, (field > chance.uniform(2.2, 3.5)) * self._below[kinds])
        lesion = soften(lesion, chance.uniform(0.3, 0.9)) * self._hosts[kinds]
        return Pathology(lesion, self._severity(chance, kinds))

    def _strokes(self, chance: Chance, anatomy: Anatomy, masks: list[int]) -> Pathology:
        """Infarcts, acute or old, and bright spots in white matter that are none."""
        kinds = anatomy.kinds
        lesion = torch.zeros(kinds.shape, device=kinds.device)
        if masks:
            lesion = self._placed(chance, anatomy, masks)
            lesion *= chance.field(kinds.shape, 6, 15) > chance.uniform(-3, -1.0)
        blobs = (chance.field(kinds.shape, 4, 9) > chance.uniform(2.8, 4.5)).float()
        use = chance.happens(0.6)
        spots = soften(blobs * use, chance.uniform(0.3, 0.9)) * (kinds == KIND["white matter"]) * (1 - lesion)
        cavity = self._cavity(chance, lesion)
        lesion = soften(lesion, chance.uniform(0.3, 0.9)) * self._hosts[kinds]
        severity = self._severity(chance, kinds) if masks else 1.0
        return Pathology(lesion, severity, cavity, spots=spots)

    def _large(self, chance: Chance, anatomy: Anatomy, masks: list[int]) -> Pathology:
        """An infarct, a mass or a broad seam of the ventricles, in any tissue, and blobs that are lesions, too."""
        labels, kinds = anatomy.labels, anatomy.kinds
        large, cavity, rim, dead = str(chance.rng.choice(list(LARGE), p=list(LARGE.values()))), None, None, None
        if large == "infarct":
            lesion = self._placed(chance, anatomy, masks)
            lesion *= chance.field(kinds.shape, 6, 15) > chance.uniform(-3, -0.5)
        elif large == "mass":
            lesion, rim, dead = self._mass(chance, kinds)
        else:
            lesion = self._seam(chance, labels, kinds)
        if chance.happens(0.5):
            blobs = chance.field(kinds.shape, 4, 9) > chance.uniform(2.4, 4.0)
            lesion = torch.maximum(lesion, blobs * self._hosts[kinds])
        tissue = self.tables.tissue[kinds]
        if large == "mass":  # it fills the sulci
            tissue = tissue | self.tables.sulcal_fluid[labels]
        lesion = soften(lesion, chance.uniform(0.3, 1.5)) * tissue
        rim, dead = (part if part is None else part * tissue for part in (rim, dead))
        if large == "infarct":
            cavity = self._cavity(chance, lesion)
            lesion = lesion * (1 - cavity)
        share = self._share(lesion, anatomy, masks[0] if large == "infarct" else None)
        severity = self._severity(chance, kinds)
        return Pathology(lesion, severity, cavity, rim, dead, large=large, share=share)

    def _share(self, lesion: torch.Tensor, anatomy: Anatomy, mask: int | None) -> float:
        """How much of the whole brain a large lesion takes; the patch sees a part of a `mask`."""
        brain = self._brain_mm3[anatomy.head] * anatomy.growth
        share = float(lesion.sum()) * self.config.spacing_mm**3 / brain
        if mask is not None:
            share = max(share, 0.7 * self._share_of_mask[mask]) * bool(lesion.any())
        return min(share, 0.4)

    def _seam(self, chance: Chance, labels: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """White matter and caudate around the ventricles, as far as a ragged border."""
        white = (kinds == KIND["white matter"]) | (kinds == KIND["caudate"])
        reach = soften(self.tables.ventricle[labels].float(), chance.uniform(3, 8) / self.config.spacing_mm)
        field = chance.field(kinds.shape, 6, 20)
        return ((4 * reach).clamp(max=1) + 0.2 * field > chance.uniform(0.3, 0.9)).float() * white

    def _mass(
        self, chance: Chance, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """A ball of 5 to 25 mm with a knobbly surface; what of it takes up contrast agent, and what is dead."""
        away = torch.zeros(like.shape, device=like.device)
        for axis, n in enumerate(like.shape):
            along = torch.arange(n, device=like.device, dtype=torch.float32) - n * chance.uniform(0.2, 0.8)
            along = (along * self.config.spacing_mm).square()
            away = away + along.view([-1 if i == axis else 1 for i in range(3)])
        radius = chance.uniform(5, 25)
        field = chance.field(like.shape, 8, 20)
        depth = radius * (1 + 0.3 * field) - away.sqrt()  # mm below the surface
        mass = (depth > 0).float()
        if not chance.happens(P_ENHANCING):
            return mass, None, None
        oedema = chance.uniform(0, 0.6) * radius
        thickness = chance.uniform(2, radius)  # solid where it is thicker than what it encloses
        rim, dead = (depth > oedema).float(), (depth > oedema + thickness).float()
        return mass, soften(rim, 0.6), soften(dead, 0.6)

    def _placed(self, chance: Chance, anatomy: Anatomy, masks: list[int]) -> torch.Tensor:
        """Masks brought from MNI space into the brain, united, and a patient's own lesions."""
        points, head = anatomy.points, anatomy.head
        lesion = torch.zeros(points.shape[1:], device=points.device)
        half = (BRAIN_MM[1] - BRAIN_MM[0]) / 2 / self.heads.extent[head]
        shift = BRAIN_MM.mean(0) - ORIGIN_MM - self.heads.centre[head] * half
        if OWN in masks:
            lesion = torch.isin(anatomy.labels, self.tables.lesions).float()
        for mask in (mask for mask in masks if mask != OWN):
            volume = self.lesions.masks[mask]  # type: ignore[union-attr]
            place = [(points[i] * float(half[i]) + float(shift[i])).round().long() for i in range(3)]
            if chance.happens(0.5) and not self.config.patch:  # a centred patch relies on the mask's own side
                place[0] = round(-2 * ORIGIN_MM[0]) - place[0]  # about x = 0 mm
            x, y, z = (p.clamp_(0, n - 1) for p, n in zip(place, volume.shape, strict=True))
            lesion = torch.maximum(lesion, volume[x, y, z].float())
        return lesion

    def _cavity(self, chance: Chance, lesion: torch.Tensor) -> torch.Tensor:
        """The fluid within an old infarct, away from its border; none in an acute one."""
        if chance.happens(0.5):
            return torch.zeros_like(lesion)
        inside = soften(lesion, chance.uniform(1.5, 4.0) / self.config.spacing_mm)
        field = chance.field(lesion.shape, 8, 20)
        return soften((inside + 0.15 * field > chance.uniform(0.55, 0.95)).float() * lesion, 0.6)

    def _severity(self, chance: Chance, like: torch.Tensor) -> torch.Tensor | float:
        """How far the lesions of each place are from normal, in all contrasts."""
        range_ = chance.uniform(*self.config.severity)
        if not range_:
            return 1.0
        return 1 - range_ * torch.sigmoid(2 * chance.field(like.shape, 8, 25))

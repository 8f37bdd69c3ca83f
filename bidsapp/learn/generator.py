"""Synthetic scans from label maps, wholly in torch: domain randomisation (SynthSeg, Billot et al. 2023).

One call makes one anatomy and any number of contrasts of it. All arrays live on the device of the heads;
scalar choices come from a NumPy generator on the CPU, so that nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from bidsapp.learn.anatomy import POSITION
from bidsapp.learn.fields import Chance
from bidsapp.learn.generator_config import GeneratorConfig
from bidsapp.learn.geometry import Geometry, Place
from bidsapp.learn.heads import Heads
from bidsapp.learn.lesion_masks import Lesions
from bidsapp.learn.pathology import Anatomy, Painter
from bidsapp.learn.rendering import Renderer, Scene
from bidsapp.learn.tables import Tables
from bidsapp.learn.tissue import Tissue


@dataclass(frozen=True)
class Sample:
    """One anatomy and its scans, on a grid of `spacing_mm`, RAS.

    Attributes
    ----------
    image : Tensor
        float32 (contrasts, X, Y, Z), >= 0; all zero where a contrast is missing.
    labels : Tensor
        int64 (X, Y, Z), positions in ``anatomy.STRUCTURES``.
    distance : Tensor
        float32 (X, Y, Z), mm to the brain's border, positive inside; those of the head before it was scaled.
    view : Tensor
        bool (X, Y, Z), the field of view; what is outside is padding.
    lesion : Tensor
        float32 (X, Y, Z), the share of each voxel that is lesion.
    place : tuple of Tensor
        Along each axis, voxel centres relative to the brain's box: -1 at its left, back, bottom and 1 at the other end.
    level : ndarray
        (contrasts, 2): mean and standard deviation within the whole brain, of which a patch sees a part.
    """

    image: torch.Tensor
    labels: torch.Tensor
    distance: torch.Tensor
    view: torch.Tensor
    lesion: torch.Tensor
    place: Place
    level: np.ndarray


class Generator:
    """Makes samples from heads; the same seed makes the same sample on the same kind of device.

    Raises
    ------
    ValueError
        Lesions are asked for, but there are no masks of them.
    """

    def __init__(self, heads: Heads, config: GeneratorConfig, lesions: Lesions | None = None) -> None:
        self.heads, self.config, self.lesions = heads, config, lesions
        self.device = heads.labels.device
        tables = Tables(self.device)
        self.geometry, self.tissue = Geometry(heads, config, tables), Tissue(config, tables)
        self.painter, self.renderer = Painter(heads, config, tables, lesions), Renderer(heads, config, tables)

    def sample(self, seed: int, head: int | None = None) -> Sample:
        """Sample number `seed`, of head number `head` or any."""
        chance = Chance.of(seed, self.config.spacing_mm, self.device)
        head = int(chance.rng.integers(len(self.heads))) if head is None else head
        scale = chance.uniform(*self.config.scale) * chance.rng.uniform(0.94, 1.06, 3)
        masks = self.painter.choose_masks(chance, head)
        spot = partial(self.painter.some_spot, chance, head, masks[0]) if masks else None
        posed = self.geometry.lay(chance, head, scale, spot)
        kept = self.geometry.kept(chance, head, posed)
        labels = self.tissue.thinned(chance, posed.labels)
        kinds = self.tissue.kinds(chance, labels)
        drawn = self.painter.draw(chance, Anatomy(posed.points, labels, kinds, head, float(scale.prod())), masks)
        dirt = self.tissue.dirt(chance, labels, kinds)
        if drawn.large and drawn.cavity is not None:  # what has become fluid is fluid, beside the infarcts' bright rim
            labels = torch.where(drawn.cavity > 0.5, POSITION[24], labels)
        shown = self._shown(chance)
        border = self.tissue.border(chance, labels, kinds)
        lining = self.tissue.lining(chance, labels, kinds, drawn.lesion)
        clean = kept if chance.happens(self.config.p_clean) else posed.view
        images, level = self._images(chance, Scene(kinds, kept, border, lining, dirt, drawn, head), shown)
        return Sample(images * clean, labels, posed.distance, posed.view, drawn.lesion, posed.place, level)

    def _shown(self, chance: Chance) -> list[int | None]:
        """The contrast of each image, or None where it is left out; at least one is there."""
        count = self.config.contrasts
        which = chance.rng.permutation(3)[:count] if count < 3 else range(3)
        keep = chance.rng.random(count) >= self.config.p_drop
        if not keep.any():
            keep[chance.rng.integers(count)] = True
        return [int(contrast) if there else None for contrast, there in zip(which, keep, strict=True)]

    def _images(self, chance: Chance, scene: Scene, shown: list[int | None]) -> tuple[torch.Tensor, np.ndarray]:
        """All contrasts, (contrasts, X, Y, Z), and their levels."""
        images = torch.zeros((len(shown), *scene.kinds.shape), device=self.device)
        level = np.tile([0.0, 1.0], (len(shown), 1))
        several = sum(contrast is not None for contrast in shown) > 1
        misaligned = self.config.misaligned_mm / self.config.spacing_mm * several
        for number, contrast in enumerate(shown):
            if contrast is not None:
                shift = chance.rng.normal(0, misaligned, 3)
                images[number], level[number] = self.renderer.render(chance, scene, contrast, shift)
        return images, level


def scaled(sample: Sample) -> torch.Tensor:
    """The images with mean 0 and standard deviation 1 in the whole brain, kept within +-5; 0 outside, or missing."""
    levels = torch.as_tensor(sample.level, dtype=torch.float32, device=sample.image.device)
    means, deviations = levels.T[:, :, None, None, None]
    return ((sample.image - means) / deviations * (sample.image > 0)).clamp(-5, 5)

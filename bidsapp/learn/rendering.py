"""How an anatomy looks on a contrast, and what a scanner makes of that."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from bidsapp.labels import CONTRASTS
from bidsapp.learn import artefacts
from bidsapp.learn.anatomy import KIND, KINDS
from bidsapp.learn.fields import Chance, apply_along, slice_profiles
from bidsapp.learn.generator_config import GeneratorConfig
from bidsapp.learn.heads import DISTANCE_SPACING_MM, Heads
from bidsapp.learn.pathology import Pathology
from bidsapp.learn.tables import CEREBRAL, FLUID, SIGNALS, TISSUE, Tables

#: Lesion signal on the scale of `anatomy.KINDS`. Raters' lesions on three real FLAIR are 1.2 to 1.9 times as bright as
#: white matter (0.6 here), most of them 1.3 to 1.6 times; on T1w many hardly differ from it (docs/training.md).
LESION_SIGNAL = ((0.45, 0.92), (0.57, 1.15), (0.82, 1.5))
#: "Dirty" white matter differs by the difference of cortex and white matter, or by this, where the two hardly differ:
#: what is no lesion does not fade with the contrast of the tissues.
LEAST_DIRT = 0.08
#: The signal of infarcts: an acute one, the scar around an old one, the cavity in it, which is fluid.
ACUTE_SIGNAL = ((0.60, 0.95), (0.55, 1.0), (0.80, 1.5))
SCAR_SIGNAL = ((0.50, 0.85), (0.60, 1.0), (0.70, 1.3))
CAVITY_SIGNAL = ((0.12, 0.35), (0.85, 1.1), (0.10, 0.40))
#: That of large lesions: on FLAIR clearly brighter than cortex, or raters would not have drawn them so large.
LARGE_SIGNAL = ((0.45, 0.90), (0.58, 1.10), (0.95, 1.6))
#: A mass within its oedema: what takes up contrast agent, as some do, and what is dead within that.
RIM_SIGNAL = ((0.9, 1.4), (0.55, 0.95), (0.6, 1.3))
DEAD_SIGNAL = ((0.2, 0.5), (0.75, 1.1), (0.3, 1.3))


@dataclass(frozen=True)
class Scene:
    """What is rendered.

    Attributes
    ----------
    kinds : Tensor
        int64 (X, Y, Z), positions in ``anatomy.KINDS``.
    kept : Tensor
        bool (X, Y, Z), what a stripping or defacing leaves.
    border : Tensor
        float32 (X, Y, Z), how much of the cortex's signal the fluid around it and the white matter below it have.
    lining : Tensor
        float32 (X, Y, Z), how much of a lesion's FLAIR signal walls and septum of the ventricles have, and are none.
    dirt : Tensor
        float32 (X, Y, Z), white matter on its way to cortex in its signal, and beyond: 1 is there.
    drawn : Pathology
    head : int
        Number of the head.
    """

    kinds: torch.Tensor
    kept: torch.Tensor
    border: torch.Tensor
    lining: torch.Tensor
    dirt: torch.Tensor
    drawn: Pathology
    head: int


class Renderer:
    """Makes images of scenes."""

    def __init__(self, heads: Heads, config: GeneratorConfig, tables: Tables) -> None:
        self.config, self.tables = config, tables
        self._fractions = np.stack([self._count_kinds(heads, head) for head in range(len(heads))])

    def _count_kinds(self, heads: Heads, head: int) -> np.ndarray:
        """Share of each kind of matter in a brain."""
        step = DISTANCE_SPACING_MM
        kinds = self.tables.kind[heads.labels[head, ::step, ::step, ::step].long()]
        counts = torch.bincount(kinds[heads.distance[head] > 0], minlength=len(KINDS)).double()
        return (counts / counts.sum()).cpu().numpy()

    def render(self, chance: Chance, scene: Scene, contrast: int, shift: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """One contrast, and its mean and standard deviation within the whole brain.

        By `shift` voxels along each axis it lies off the others.
        """
        c = self.config
        means, deviations = self._signals(chance, contrast)
        image = self._matter(chance, scene, means, deviations)
        if c.p_lesions:
            image = self._draw(chance, image, scene.drawn, contrast)
            share = chance.uniform(0.6, 1.1) if contrast else chance.uniform(0.2, 0.6)
            image = image + share * _dirt_signal(means) * scene.dirt
        lesion = scene.drawn.lesion
        ill = float((image * lesion).sum() / lesion.sum()) if scene.drawn.share else 0.0
        image = self.brighten(chance, image, scene, contrast)
        image = self._spoil(chance, image.clamp_(min=0)) * scene.kept
        image = image * torch.exp(chance.uniform(*c.bias) * chance.field(image.shape, 50, 120))
        image = self._acquire(chance, image, shift)
        gamma = chance.uniform(*c.gamma)
        level = self._level(chance, scene, means**gamma, max(ill, 0) ** gamma)
        return image.clamp(min=0) ** gamma, level

    def _signals(self, chance: Chance, contrast: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each kind of matter."""
        c, n, rng = self.config, len(KINDS), chance.rng
        means = SIGNALS[contrast] * np.exp(rng.normal(0, c.jitter, n)) + rng.normal(0, 0.03, n)
        middle = means[[KIND["cortex"], KIND["white matter"]]].mean()
        means[TISSUE] = middle + rng.uniform(*c.tissue_contrast) * (means[TISSUE] - middle)
        if chance.happens(c.p_random_contrast):
            means = rng.uniform(0, 1.2, n)
        outside = ~CEREBRAL
        if chance.happens(c.p_strange_outside):
            means[outside] = rng.uniform(0, 1.6, int(outside.sum())) * rng.uniform(0.5, 1.5)
        else:
            means[outside] *= np.exp(rng.normal(0, 2 * c.jitter, int(outside.sum())))
        means[KIND["air"]] = rng.uniform(0, 0.06) if chance.happens(0.9) else rng.uniform(0, 0.3)
        deviations = rng.uniform(*c.texture, n)
        return np.clip(means, 0, None), deviations

    def _matter(self, chance: Chance, scene: Scene, means: np.ndarray, deviations: np.ndarray) -> torch.Tensor:
        """Healthy tissue with its texture, soft borders and mottled white matter."""
        c, kinds = self.config, scene.kinds
        tables = torch.tensor(np.stack([means, deviations]), dtype=torch.float32).to(kinds.device)
        # What lies in the sulci is not as bright on one contrast as on another.
        border = (scene.border * chance.uniform(0.6, 1.2)).clamp(max=0.9) if c.sulcal[1] else scene.border
        image = torch.lerp(tables[0][kinds], tables[0][KIND["cortex"]], border)
        image = image + tables[1][kinds] * chance.noise(*kinds.shape)
        strength = chance.uniform(*c.mottle)
        if not strength:
            return image
        field = chance.field(kinds.shape, 8, 30)
        return image * (1 + strength * field * (kinds == KIND["white matter"]))

    def _draw(self, chance: Chance, image: torch.Tensor, drawn: Pathology, contrast: int) -> torch.Tensor:
        """Lesions in the signal of their kind, with a texture of low frequency."""
        body = LESION_SIGNAL
        if drawn.large:
            body = LARGE_SIGNAL
        elif drawn.cavity is not None:
            body = SCAR_SIGNAL if drawn.cavity.any() else ACUTE_SIGNAL
        parts = [
            (drawn.spots, LESION_SIGNAL), (drawn.lesion, body), (drawn.rim, RIM_SIGNAL), (drawn.dead, DEAD_SIGNAL),
            (drawn.cavity, CAVITY_SIGNAL),
        ]  # fmt: skip
        shares = [(share, signals) for share, signals in parts if share is not None]
        for share, signals in shares:
            low, high = signals[contrast]
            texture = chance.field(image.shape, 3, 8)
            signal = chance.uniform(low, high) * (1 + chance.uniform(0, 0.12) * texture)
            image = torch.lerp(image, signal, share * drawn.severity * chance.uniform(0.7, 1.0))
        return image

    def brighten(self, chance: Chance, image: torch.Tensor, scene: Scene, contrast: int) -> torch.Tensor:
        """Bright cortex, flow in fluid, choroid plexus, the ventricles' lining: what is taken for lesions on FLAIR."""
        c, kinds, name = self.config, scene.kinds, CONTRASTS[contrast]
        if name != "T1w" and chance.happens(c.p_bright_cortex):
            field = chance.field(kinds.shape, 12, 30).clamp(0, 2)
            image = image * (1 + chance.uniform(0, 0.2) * field * (kinds == KIND["cortex"]))
        if name == "FLAIR" and chance.happens(c.p_flow):
            field = chance.field(kinds.shape, 6, 20).clamp(0, 2)
            image = image + chance.uniform(0, 0.5) * field * torch.isin(kinds, self.tables.bright_fluid)
        if name == "FLAIR" and chance.happens(c.p_choroid):
            image = image + chance.uniform(0, 0.6) * (kinds == KIND["choroid plexus"])
        if name == "FLAIR" and c.p_lining:
            image = image + scene.lining * (chance.uniform(*LESION_SIGNAL[contrast]) - image)
        return image

    def _spoil(self, chance: Chance, image: torch.Tensor) -> torch.Tensor:
        """Motion and ringing; of the whole head, whose bright fat casts ghosts on the brain."""
        if self.config.p_motion and chance.happens(self.config.p_motion):
            image = artefacts.moved(chance, image)
        if self.config.p_ringing and chance.happens(self.config.p_ringing):
            image = artefacts.ringing(chance, image)
        return image

    def _acquire(self, chance: Chance, image: torch.Tensor, shift: np.ndarray) -> torch.Tensor:
        """Slices of a random thickness along one axis, noise on the acquired grid, and back by interpolation."""
        c = self.config
        thick_axis = int(chance.rng.integers(3)) if chance.happens(c.p_thick) else -1
        back = []
        for axis in range(3):
            spacing = thickness = 1.0  # in voxels
            if axis == thick_axis:
                spacing = max(1.0, chance.uniform(*c.thick_mm) / c.spacing_mm)
                thickness = spacing * chance.uniform(0.75, 1.0)  # gaps between slices
            to_slices, from_slices = slice_profiles(
                image.shape[axis], spacing=spacing, thickness=thickness, blur=chance.uniform(0.2, 0.75),
                phase=chance.uniform(0, 1), shift=float(shift[axis]), device=image.device,
            )  # fmt: skip
            image = apply_along(image, to_slices, axis)
            if axis == thick_axis and c.uneven[1]:
                image = artefacts.uneven(chance, image, axis, c.uneven)
            back.append(from_slices)
        deviation = chance.uniform(*c.noise)
        real, imaginary = chance.noise(2, *image.shape) * deviation
        image = torch.sqrt((image + real) ** 2 + imaginary**2)  # Rician (Gudbjartsson & Patz 1995)
        for axis, matrix in enumerate(back):
            image = apply_along(image, matrix, axis)
        return image

    def _level(self, chance: Chance, scene: Scene, means: np.ndarray, ill: float) -> np.ndarray:
        """Mean and standard deviation of the whole brain, with errors: by each kind's signal, and a large lesion's."""
        c, share = self.config, scene.drawn.share
        shares = self._fractions[scene.head] * np.where(FLUID, chance.uniform(*c.fluid), 1)
        shares = shares / shares.sum()
        if share:
            shares, means = np.append(shares * (1 - share), share), np.append(means, ill)
        mean = float(shares @ means)
        deviation = math.sqrt(float(shares @ (means - mean) ** 2)) + 1e-3
        shift, stretch = chance.rng.normal(0, c.level_error, 2) if c.level_error else (0.0, 0.0)
        return np.array([mean + shift * deviation, deviation * math.exp(stretch)])


def _dirt_signal(means: np.ndarray) -> float:
    """How far dirt of 1 is from white matter: as far as cortex, and on the same side of it."""
    difference = float(means[KIND["cortex"]] - means[KIND["white matter"]])
    return math.copysign(max(abs(difference), LEAST_DIRT), difference)

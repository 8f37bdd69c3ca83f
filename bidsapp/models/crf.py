"""A conditional random field over what a network found: like voxels near each other should be of one class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from bidsapp.image.grid import bounding_box

#: Classes can change where the first class (background) is less certain than this, and so many voxels around.
CERTAIN, AROUND = 0.95, 1
#: Windows end at this many standard deviations.
WINDOW = 2.0
#: Pairs of voxels looked at at a time; their weights, 4 bytes a pair, are all kept (14 ml of lesions: 0.2 GB).
PAIRS = 5_000_000
#: Probabilities are kept this far from 0: no voxel is so certain that its neighbours could not tell it otherwise.
FLOOR = 1e-4


@dataclass(frozen=True, kw_only=True)
class CrfSettings:
    """Weights and widths of the two kernels of Kraehenbuehl & Koltun 2011; the ``crf`` of a model's card.

    Attributes
    ----------
    spatial_weight, bilateral_weight : float
        By how much a neighbourhood that is all of one class (and, for the second, alike) adds to its log probability.
    spatial_mm : float
        Standard deviation of the kernel that only asks how near a voxel is.
    bilateral_mm, bilateral_intensity : float
        Those of the kernel that also asks how alike its intensities are, in standard deviations of the brain's.
    iterations : int

    Raises
    ------
    ValueError
        A negative weight, a width of 0 or less or of more than 3 mm, or no or more than 50 iterations.
    """

    spatial_weight: float = 1.0
    spatial_mm: float = 1.0
    bilateral_weight: float = 2.0
    bilateral_mm: float = 2.0
    bilateral_intensity: float = 0.5
    iterations: int = 5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{field.name} must be a number, not {value!r}")
        if not (0 <= self.spatial_weight < 1e3 and 0 <= self.bilateral_weight < 1e3):
            raise ValueError("spatial_weight and bilateral_weight must be 0 or more")
        if not (0 < self.spatial_mm <= 3 and 0 < self.bilateral_mm <= 3 and 0 < self.bilateral_intensity < 1e3):
            raise ValueError(
                "spatial_mm, bilateral_mm and bilateral_intensity must be above 0, the first two up to 3 (time and"
                " memory grow with the cube)"
            )
        if not 1 <= self.iterations <= 50 or self.iterations != int(self.iterations):
            raise ValueError(f"iterations must be 1 to 50, not {self.iterations}")

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> CrfSettings:
        """From a card; raises ValueError where a key is unknown or a value cannot be."""
        unknown = sorted(set(table) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: unknown; use {', '.join(field.name for field in fields(cls))}")
        return cls(**table)


def refine(
    probability: np.ndarray,
    images: np.ndarray,
    settings: CrfSettings,
    *,
    voxel_size_mm: tuple[float, float, float],
    device: str = "cpu",
) -> np.ndarray:
    """Mean-field inference of a CRF with a spatial and a bilateral Gaussian kernel and the Potts compatibility.

    Kraehenbuehl & Koltun 2011, NIPS, eqs. 2-4 and algorithm 1, as Kamnitsas et al. 2017 (Medical Image Analysis 36:61)
    use it for lesions. For voxel i and class l, with unary energy -log P:

        Q_i(l) ~ exp(log P_i(l) + sum_m w_m sum_{j near i} k_m(i, j) Q_j(l))

    Two things differ. Each kernel is divided by the sum of its spatial Gaussian, so that weights do not depend on the
    voxel size. And the kernels end at two standard deviations, and voxels that are certainly background and have only
    such around them keep their probability: that takes seconds where all pairs of voxels would take a compiled lattice.

    Parameters
    ----------
    probability : ndarray, float32 (classes, X, Y, Z)
        Sums to 1; background first.
    images : ndarray, float32 (channels, X, Y, Z)
        Scaled by the brain's standard deviation; a missing one is 0.
    settings : CrfSettings
    voxel_size_mm : tuple of float
    device : str

    Returns
    -------
    ndarray, float32 (classes, X, Y, Z)
        Sums to 1.
    """
    doubtful = probability[0] < CERTAIN
    if not doubtful.any() or settings.spatial_weight == settings.bilateral_weight == 0:
        return probability
    active = ndimage.binary_dilation(doubtful, np.ones((3, 3, 3)), iterations=AROUND)
    reach = [int(WINDOW * max(settings.spatial_mm, settings.bilateral_mm) / size) for size in voxel_size_mm]
    box = bounding_box(active, margin=reach)
    there = [channel for channel in images[(slice(None), *box)] if channel.any()]
    field = _Field(np.stack(there or [np.zeros(active[box].shape, np.float32)]), active[box], reach, device)
    unary = np.log(np.maximum(probability[(slice(None), *box)], FLOOR)).reshape(len(probability), -1)
    found = field.infer(torch.from_numpy(unary).to(device), settings, voxel_size_mm)
    out = probability.copy()
    out[(slice(None), *box)][:, active[box]] = found.cpu().numpy()
    return out


class _Field:
    """Voxels whose class is open, and their neighbours, as flat indices into a box padded by the window."""

    def __init__(self, images: np.ndarray, active: np.ndarray, reach: list[int], device: str) -> None:
        self.reach, self.device = reach, device
        padding = [(r, r) for r in reach]
        self.images = torch.from_numpy(np.pad(images, [(0, 0), *padding])).to(device).flatten(1)
        inside = np.pad(np.ones(active.shape, bool), padding)
        self.inside = torch.from_numpy(inside).to(device).flatten()
        self.shape = inside.shape
        self.active = torch.from_numpy(np.flatnonzero(np.pad(active, padding))).to(device)

    def infer(
        self, unary: torch.Tensor, settings: CrfSettings, voxel_size_mm: tuple[float, float, float]
    ) -> torch.Tensor:
        """Probabilities of the open voxels, (classes, n)."""
        log_p = torch.zeros((len(unary), self.inside.numel()), device=self.device)
        log_p[:, self.inside] = unary
        q = log_p.softmax(0)
        own = log_p[:, self.active]
        offsets, near, similar_near = self._kernels(settings, voxel_size_mm)
        chunks = self.active.split(max(1, PAIRS // max(1, len(offsets))))
        weights = [self._weights(here[:, None] + offsets, here, near, similar_near, settings) for here in chunks]
        for _ in range(int(settings.iterations)):
            # All voxels at once, as in the paper: every message comes from the last round. The first class needs no
            # sum of its own: what neighbours do not say for the others they say for it.
            told = [
                torch.stack([(weight * of_class[here[:, None] + offsets]).sum(1) for of_class in q[1:]])
                for here, weight in zip(chunks, weights, strict=True)
            ]
            all_told = torch.cat([weight.sum(1) for weight in weights])
            others = torch.cat(told, 1)
            q[:, self.active] = (own + torch.cat([(all_told - others.sum(0))[None], others])).softmax(0)
        return q[:, self.active]

    def _weights(
        self,
        neighbours: torch.Tensor,
        here: torch.Tensor,
        near: torch.Tensor,
        similar_near: torch.Tensor,
        settings: CrfSettings,
    ) -> torch.Tensor:
        """What each neighbour's word counts for some voxels, (n, neighbours); beyond the box there is none."""
        apart = torch.zeros(neighbours.shape, device=self.device)
        for image in self.images:
            apart += (image[neighbours] - image[here][:, None]) ** 2
        similar = torch.exp(apart * (-0.5 / settings.bilateral_intensity**2))
        return (near + similar_near * similar) * self.inside[neighbours]

    def _kernels(self, settings: CrfSettings, voxel_size_mm: tuple[float, float, float]) -> Sequence[torch.Tensor]:
        """Neighbours as steps in the flat box, and the weights of the two spatial Gaussians."""
        steps = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in self.reach), indexing="ij"), -1).reshape(-1, 3)
        distance = np.linalg.norm(steps * voxel_size_mm, axis=1)
        # A voxel is no neighbour of its own.
        kept = (distance > 0) & (distance <= WINDOW * max(settings.spatial_mm, settings.bilateral_mm))
        steps, distance = steps[kept], distance[kept]
        flat = steps @ np.array([self.shape[1] * self.shape[2], self.shape[2], 1])
        weights = []
        for width, weight in (
            (settings.spatial_mm, settings.spatial_weight),
            (settings.bilateral_mm, settings.bilateral_weight),
        ):
            gaussian = np.exp(-0.5 * (distance / width) ** 2) * (distance <= WINDOW * width)
            weights.append(weight * gaussian / max(gaussian.sum(), 1e-12))
        near, similar_near = (torch.tensor(w, dtype=torch.float32, device=self.device) for w in weights)
        return torch.from_numpy(flat).to(self.device), near, similar_near

"""Patches to train on, from labelled cases and synthetic scans; the nth is always the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from bidsapp.labels import CONTRASTS
from bidsapp.learn.cases import Case
from bidsapp.learn.generator import Generator, scaled
from bidsapp.models.registry import Model
from bidsapp.models.segment import lesion_classes
from bidsapp.models.unet import symmetric_place

#: Voxels around a patch that rotation and scaling may pull in: all that most of them do, and most that the others do.
SPARE = 12
#: Largest changes of a patch, the same for all axes: MONAI changes the first axis alone where it is given one number.
ROTATE_RAD, SCALE, SHEAR = (0.2,) * 3, (0.12,) * 3, (0.05,) * 6


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What the patches are like.

    Attributes
    ----------
    patch, margin : int
        Voxels a side that are answered, and of context around them.
    count : int
        Patches of a sample (a batch).
    place : bool
        Whether the network is told where it looks.
    foreground : float
        Share of the patches that are centred on a labelled voxel; the others lie anywhere in the brain.
    uniform_from : int
        Number of the sample from which on all lie anywhere (second phase of Havaei et al. 2017).
    drop : float
        Probability that a contrast is left out, as long as one is left.
    augment : bool
    synthetic : float
        Share of the samples made of synthetic scans.
    seed : int
    contrasts : tuple of str
        Channels of the cases, but for a cascade's proposals.
    """

    patch: int
    margin: int = 0
    count: int = 1
    place: bool = False
    foreground: float = 0.5
    uniform_from: int = 2**62
    drop: float = 0.25
    augment: bool = True
    synthetic: float = 0.0
    seed: int = 1
    contrasts: tuple[str, ...] = CONTRASTS


@dataclass(frozen=True)
class Batch:
    """Images (B, channels, X+2m, ...), labels (B, X, Y, Z), and the place (B, 3, X/2, ...) or None.

    The channels are the contrasts and, for the second network of a cascade, what the first proposes.
    """

    images: torch.Tensor
    labels: torch.Tensor
    place: torch.Tensor | None


class Sampler:
    """Makes batch number n."""

    def __init__(
        self,
        cases: Sequence[Case],
        config: SampleConfig,
        *,
        generator: Generator | None = None,
        first: Model | None = None,
    ) -> None:
        self.cases, self.config, self.generator = cases, config, generator
        # A copy on the CPU: the model itself may be moved to a GPU, which other processes must not touch.
        self.first = first and dataclasses.replace(first, network=deepcopy(first.network).cpu())
        self._augment = _augmentation(config.patch + 2 * config.margin) if config.augment else None

    def __call__(self, number: int) -> Batch:
        """Batch number `number`; the same every time."""
        c = self.config
        rng = np.random.default_rng([c.seed, number])
        if self.generator is not None and rng.random() < c.synthetic:
            patches = synthetic_patches(self.generator, rng, c, first=self.first)
        else:
            patches = [self._real(rng, number) for _ in range(c.count)]
        images, labels, places = zip(*patches, strict=True)
        return Batch(torch.stack(images), torch.stack(labels), torch.stack(places) if c.place else None)

    def _real(self, rng: np.random.Generator, number: int) -> tuple[torch.Tensor, ...]:
        c = self.config
        case = self.cases[int(rng.integers(len(self.cases)))]
        labelled = len(case.foreground) and rng.random() < c.foreground and number < c.uniform_from
        points = case.foreground if labelled else case.brain
        size = c.patch + 2 * c.margin + (2 * SPARE if c.augment else 0)
        jitter = rng.integers(-c.patch // 4, c.patch // 4 + 1, 3)
        corner = points[rng.integers(len(points))] + jitter - size // 2
        images = _cut(case.channels, corner, size)
        images *= _kept(rng, images, c.drop, len(c.contrasts))
        labels = _cut(case.labels[None], corner, size)
        place = _grid(case.places, corner, size)
        if self._augment is not None:
            images, labels, place = self._changed(rng, images, labels, place)
        m = slice(c.margin, c.margin + c.patch)
        place = functional.avg_pool3d(place[:, m, m, m], 2) if c.place else place[:, :1, :1, :1]
        return images, labels[0, m, m, m].long(), torch.stack([place[0].abs(), *place[1:]])

    def _changed(self, rng: np.random.Generator, *patch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert self._augment is not None
        space, intensity = self._augment
        for change in self._augment:
            change.set_random_state(int(rng.integers(2**31)))
        done = space(dict(zip(("images", "labels", "place"), patch, strict=True)))
        images, labels, place = (done[key].as_tensor() for key in ("images", "labels", "place"))
        count = len(self.config.contrasts)
        scans, others = images[:count], images[count:]
        brain = scans != 0  # what is no brain, or a missing contrast, stays 0
        return torch.cat([intensity(scans) * brain, others]), labels, place


def synthetic_patches(
    generator: Generator, rng: np.random.Generator, config: SampleConfig, *, first: Model | None = None
) -> list[tuple[torch.Tensor, ...]]:
    """Images, labels and place of ``config.count`` patches, all out of one synthetic scan.

    With the `first` model of a cascade, its foreground probability is a channel more.
    """
    sample = generator.sample(int(rng.integers(2**62)))
    images = scaled(sample)[[CONTRASTS.index(name) for name in config.contrasts]]
    labels = (sample.lesion > 0.5).long()
    if first is not None:
        images = torch.cat([images, _proposed(first, images, sample.place)[None]])
    size = config.patch + 2 * config.margin
    room = labels.shape[0] - size
    lesion = torch.nonzero(labels).numpy()
    out = []
    for _ in range(config.count):
        corner = rng.integers(0, room + 1, 3)
        if len(lesion) and rng.random() < config.foreground:
            corner = np.clip(lesion[rng.integers(len(lesion))] - size // 2, 0, room)
        outer = tuple(slice(int(a), int(a) + size) for a in corner)
        inner = tuple(slice(s.start + config.margin, s.stop - config.margin) for s in outer)
        place = symmetric_place(*(axis[s] for axis, s in zip(sample.place, inner, strict=True)))
        out.append((images[(slice(None), *outer)], labels[inner], place))
    return out


def _proposed(first: Model, images: torch.Tensor, place: Sequence[torch.Tensor]) -> torch.Tensor:
    """Probability of lesion (X, Y, Z) by a network without margin."""
    spare = -images.shape[1] % first.network.config.multiple
    padded = functional.pad(images, [0, spare] * 3)
    axes = [torch.cat([axis, axis[-1] + (axis[1] - axis[0]) * torch.arange(1, spare + 1)]) for axis in place]
    with torch.no_grad():
        found = first.network(padded[None], symmetric_place(*axes)[None])[0].softmax(0)
    n = images.shape[1]
    return found[lesion_classes(first)].sum(0)[:n, :n, :n]


def _cut(data: np.ndarray, corner: np.ndarray, size: int) -> torch.Tensor:
    """(channels, size, size, size) from `corner` on; 0 beyond the array."""
    out = np.zeros((len(data), size, size, size), np.float32)
    low, high = np.maximum(corner, 0), np.minimum(corner + size, data.shape[1:])
    if (high > low).all():
        source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        sink = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, corner, strict=True))
        out[(slice(None), *sink)] = data[(slice(None), *source)]
    return torch.from_numpy(out)


def _grid(places: Sequence[np.ndarray], corner: np.ndarray, size: int) -> torch.Tensor:
    """(3, size, size, size): place of each voxel, continued beyond the array."""
    axes = []
    for axis, start in zip(places, corner, strict=True):
        step = axis[1] - axis[0]
        axes.append(torch.from_numpy((axis[0] + step * (start + np.arange(size))).astype(np.float32)))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _kept(rng: np.random.Generator, images: torch.Tensor, drop: float, contrasts: int) -> torch.Tensor:
    """1 for each channel that stays, 0 for the others, (channels, 1, 1, 1); one contrast that is there stays always."""
    present = np.flatnonzero(images[:contrasts].flatten(1).any(1).numpy())
    keep = rng.random(len(images)) >= drop
    keep[contrasts:] = True
    if len(present) and not keep[present].any():
        keep[rng.choice(present)] = True
    return torch.from_numpy(keep.astype(np.float32))[:, None, None, None]


def _augmentation(size: int) -> tuple[Any, Any]:
    """Changes of space (flip, rotation, scaling, elastic), and of intensity (contrast, noise, blur, large voxels)."""
    from monai import transforms as t  # takes seconds to import

    keys = ["images", "labels", "place"]
    how = {"mode": ["bilinear", "nearest", "bilinear"], "padding_mode": ["zeros", "zeros", "border"]}
    space = t.Compose([
        t.RandFlipd(keys, prob=0.5, spatial_axis=0),
        t.RandAffined(
            keys, prob=0.8, spatial_size=[size] * 3, rotate_range=ROTATE_RAD, scale_range=SCALE, shear_range=SHEAR,
            **how,
        ),
        t.Rand3DElasticd(keys, prob=0.15, sigma_range=(6, 9), magnitude_range=(50, 200), **how),
    ])  # fmt: skip
    intensity = t.Compose(
        [
            t.RandScaleIntensity(prob=0.5, factors=0.15, channel_wise=True),
            t.RandShiftIntensity(prob=0.5, offsets=0.15, channel_wise=True),
            t.RandAdjustContrast(prob=0.3, gamma=(0.75, 1.3), retain_stats=True),
            t.RandGaussianNoise(prob=0.3, std=0.12),
            t.RandGaussianSmooth(prob=0.15, sigma_x=(0.3, 0.9), sigma_y=(0.3, 0.9), sigma_z=(0.3, 0.9)),
            t.RandSimulateLowResolution(prob=0.15, zoom_range=(0.4, 0.9)),
            t.EnsureType(track_meta=False),  # MONAI's own class of tensors would go on into the network
        ]
    )
    return space, intensity

"""How a head lies in a sample: field of view, pose and shape, and what a stripping or defacing leaves of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from bidsapp.learn.fields import Chance, moved, rotation, smooth_field
from bidsapp.learn.generator_config import GeneratorConfig
from bidsapp.learn.heads import DISTANCE_SPACING_MM, Heads
from bidsapp.learn.tables import Tables

Place = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Frame:
    """Which part of the space around a brain a sample shows.

    Attributes
    ----------
    shape : tuple of int
    view : Tensor
        bool (X, Y, Z), the field of view; what is outside is padding.
    middle : ndarray
        The middle of the brain, mm from the sample's first voxel.
    """

    shape: tuple[int, ...]
    view: torch.Tensor
    middle: np.ndarray


@dataclass(frozen=True)
class Posed:
    """A head in a sample.

    Attributes
    ----------
    points : Tensor
        (3, X, Y, Z), for each voxel of the sample its place in the head's label map, in voxels.
    labels : Tensor
        int64 (X, Y, Z), positions in ``anatomy.STRUCTURES``.
    distance : Tensor
        float32 (X, Y, Z), mm of the head to the brain's border, positive inside.
    view : Tensor
        bool (X, Y, Z), the field of view.
    place : tuple of Tensor
        Along each axis, voxel centres relative to the brain's box: -1 and 1 at its ends.
    """

    points: torch.Tensor
    labels: torch.Tensor
    distance: torch.Tensor
    view: torch.Tensor
    place: Place


class Geometry:
    """Lays heads into samples."""

    def __init__(self, heads: Heads, config: GeneratorConfig, tables: Tables) -> None:
        self.heads, self.config, self.tables = heads, config, tables
        self.device = heads.labels.device

    def lay(self, chance: Chance, head: int, scale: np.ndarray, spot: Callable[[], np.ndarray] | None) -> Posed:
        """Head number `head`, `scale` times as large along each axis.

        `spot` draws a place, mm from the middle of the brain as it was, that a patch may be centred on.
        """
        frame = self.frame(chance, head, scale, spot)
        points = self.points(chance, head, frame, scale)
        labels, distance = self.look_up(head, points)
        place = self.place(chance, frame, self.heads.extent[head] * scale)
        posed = Posed(points, labels, distance, frame.view, place)
        return self.mirrored(posed) if chance.happens(0.5) else posed

    def frame(self, chance: Chance, head: int, scale: np.ndarray, spot: Callable[[], np.ndarray] | None) -> Frame:
        """The field of view: a patch somewhere in the brain, or the head."""
        extent = self.heads.extent[head] * scale
        return self._patch(chance, extent, scale, spot) if self.config.patch else self._whole(chance, extent)

    def _patch(
        self, chance: Chance, extent: np.ndarray, scale: np.ndarray, spot: Callable[[], np.ndarray] | None
    ) -> Frame:
        c = self.config
        shape, half = (c.patch,) * 3, c.patch * c.spacing_mm / 2
        offset = chance.rng.uniform(-1, 1, 3) * np.maximum(0, extent + 8 - half)
        if spot and chance.happens(c.p_centred):  # close to it: turns and elastic field move it a little
            offset = spot() * scale + chance.rng.uniform(-0.3, 0.3, 3) * half
        return Frame(shape, torch.ones(shape, dtype=torch.bool, device=self.device), half - offset)

    def _whole(self, chance: Chance, extent: np.ndarray) -> Frame:
        c = self.config
        sides = chance.rng.uniform(*c.view_sides_mm, (2, 2))
        low = -extent - np.array([*sides[0], chance.uniform(*c.view_bottom_mm)])
        high = extent + np.array([*sides[1], chance.uniform(*c.view_top_mm)])
        size = np.minimum(high - low, c.view_most_mm)
        voxels = np.maximum(1, np.round(size / c.spacing_mm)).astype(int)
        shape = tuple(math.ceil(n / c.multiple) * c.multiple for n in voxels)
        view = torch.zeros(shape, dtype=torch.bool, device=self.device)
        start = [int(chance.rng.integers(0, n - v + 1)) for n, v in zip(shape, voxels, strict=True)]
        view[tuple(slice(a, a + v) for a, v in zip(start, voxels, strict=True))] = True
        # What does not fit is cut from below: the neck, not the brain.
        return Frame(shape, view, np.array(start) * c.spacing_mm + size - high)

    def points(self, chance: Chance, head: int, frame: Frame, scale: np.ndarray) -> torch.Tensor:
        """(3, X, Y, Z): for each voxel of the sample its place in the head's label map, in voxels (1 mm)."""
        c = self.config
        angles = np.deg2rad(chance.rng.uniform(-c.rotation_deg, c.rotation_deg, 3))
        matrix = rotation(angles) @ (np.eye(3) + chance.rng.uniform(-c.shear, c.shear, (3, 3)) * (1 - np.eye(3)))
        matrix = (matrix / scale).astype(np.float32)
        axes = [
            torch.arange(n, device=self.device, dtype=torch.float32) * c.spacing_mm - float(m)
            for n, m in zip(frame.shape, frame.middle, strict=True)
        ]
        strength = chance.uniform(*c.elastic_mm)
        points = torch.empty((3, *frame.shape), device=self.device)
        for i, centre in enumerate(self.heads.centre[head]):
            x, y, z = (float(matrix[i, j]) * axes[j] for j in range(3))
            points[i] = x[:, None, None] + y[:, None] + z + float(centre)
            points[i] += strength * chance.field(frame.shape, 30, 45)
        if any(c.ventricles_mm) and chance.happens(0.5):
            points = moved(points, self.heads.flow[head], chance.uniform(*c.ventricles_mm))
        return points

    def place(self, chance: Chance, frame: Frame, extent: np.ndarray) -> Place:
        """Voxel centres relative to a brain of half size `extent` (mm), as far as a box drawn with errors tells."""
        c, out = self.config, []
        for n, centre, half in zip(frame.shape, frame.middle, extent, strict=True):
            low, high = chance.rng.normal(0, c.box_error_mm, 2) if c.box_error_mm else (0.0, 0.0)
            millimetres = torch.arange(n, device=self.device, dtype=torch.float32) * c.spacing_mm  # as in `points`
            out.append((millimetres - float(centre + (low + high) / 2)) / float(half + (high - low) / 2))
        return out[0], out[1], out[2]

    def look_up(self, head: int, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels (the nearest voxel's) and distance to the brain's border at some points."""
        labels = self.heads.labels[head]
        nearest = points.round().long()
        inside = torch.ones(points.shape[1:], dtype=torch.bool, device=self.device)
        for axis, n in enumerate(labels.shape):
            inside &= (nearest[axis] >= 0) & (nearest[axis] < n)
            nearest[axis].clamp_(0, n - 1)
        x, y, z = nearest
        found = labels[x, y, z].long() * inside
        field = self.heads.distance[head].float()
        # Voxel i of the 2 mm map covers voxels 2i and 2i+1; grid_sample wants (z, y, x) in [-1, 1].
        places = [(points[i] - 0.5) / DISTANCE_SPACING_MM / (field.shape[i] - 1) * 2 - 1 for i in (2, 1, 0)]
        distance = functional.grid_sample(
            field[None, None], torch.stack(places, -1)[None], align_corners=True, padding_mode="border"
        )[0, 0]
        return found, distance

    def mirrored(self, posed: Posed) -> Posed:
        """Left and right swapped, in the labels, too."""
        x, y, z = posed.place
        return replace(
            posed,
            points=posed.points.flip(1),
            labels=self.tables.mirrored[posed.labels.flip(0)],
            distance=posed.distance.flip(0),
            view=posed.view.flip(0),
            place=(-x.flip(0), y, z),
        )

    def kept(self, chance: Chance, head: int, posed: Posed) -> torch.Tensor:
        """What a stripping or a defacing leaves of the head, bool (X, Y, Z)."""
        c, points, distance = self.config, posed.points, posed.distance
        if chance.happens(c.p_stripped):
            error = smooth_field(distance.shape, 20 / c.spacing_mm, chance.torch_rng) * chance.uniform(0, 2)
            return (distance + chance.uniform(*c.strip_error_mm) + error > 0) & posed.view
        if not chance.happens(c.p_defaced):
            return posed.view
        angle = np.deg2rad(chance.uniform(0, 60))  # the face lies before and below the brain
        forward, up = (points[axis] - float(self.heads.centre[head][axis]) for axis in (1, 2))
        face = math.cos(angle) * forward - math.sin(angle) * up > chance.uniform(45, 85)
        return ~(face & (distance < -chance.uniform(1, 12))) & posed.view

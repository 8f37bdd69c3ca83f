from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bidsapp.learn.anatomy import POSITION
from bidsapp.learn.fields import Chance
from bidsapp.learn.generator import Generator
from bidsapp.learn.generator_config import GeneratorConfig
from bidsapp.learn.heads import Heads, outwards

PLAIN = GeneratorConfig(rotation_deg=5, elastic_mm=(0, 0.5), view_sides_mm=(5, 20), view_bottom_mm=(5, 20), multiple=8)
Config = Callable[..., GeneratorConfig]


def test_flip_swaps_left_and_right(ball: Heads) -> None:
    """In both kinds of samples left labels lie on the left (low x, RAS)."""
    make = Generator(ball, PLAIN)
    for seed in range(8):
        labels = make.sample(seed).labels
        x = torch.arange(labels.shape[0])[:, None, None].expand(labels.shape)
        left, right = (x[labels == POSITION[i]].float().mean() for i in (2, 41))
        assert left < right


def test_place_is_relative_to_the_brain(ball: Heads, patches: GeneratorConfig) -> None:
    """Where x is -1 and 1 the brain of 24 mm (times its scale) ends."""
    config = dataclasses.replace(patches, patch=64, p_lesions=0, p_stripped=0, shear=0, elastic_mm=(0, 0))
    for seed in range(4):
        sample = Generator(ball, config).sample(seed)
        tissue = torch.isin(sample.labels, torch.tensor([POSITION[i] for i in (2, 41, 3, 42)]))
        for axis in range(3):
            along = tissue.any(dim=tuple(a for a in range(3) if a != axis))
            ends = sample.place[axis][along][[0, -1]]
            cut = along[0] or along[-1]  # the patch may end before the brain does
            assert cut or ends.tolist() == pytest.approx([-1, 1], abs=0.12)


def test_place_and_points_are_of_the_same_voxels(ball: Heads, bare: Config) -> None:
    geometry = Generator(ball, bare()).geometry
    frame = geometry.frame(Chance.of(0), 0, np.ones(3), None)
    points = geometry.points(Chance.of(1), 0, frame, np.ones(3))
    place = torch.stack(torch.meshgrid(*geometry.place(Chance.of(2), frame, ball.extent[0]), indexing="ij"))
    torch.testing.assert_close(points, 24 * place + torch.tensor([36.0, 40.0, 44.0])[:, None, None, None])


def test_ventricles_widen_and_the_brains_border_stays(ball: Heads, bare: Config) -> None:
    labels = ball.labels.clone()
    labels[0, 31:41, 35:45, 39:49] = POSITION[4]
    field = outwards((labels[0] == POSITION[4]).numpy(), ball.distance[0].numpy())
    heads = dataclasses.replace(ball, labels=labels, flow=torch.from_numpy(field)[None])
    assert field.shape == (3, 18, 20, 22) and np.abs(field).max() < 1.2 and not field[:, 0].any()
    assert not outwards(np.zeros(labels.shape[1:], bool), ball.distance[0].numpy()).any()

    def millilitres(**settings: tuple[float, float]) -> np.ndarray:
        make = Generator(heads, bare(patch=0, view_sides_mm=(5, 5), **settings))
        samples, sides = [make.sample(seed) for seed in range(8)], torch.tensor([POSITION[4], POSITION[43]])
        return np.array([[torch.isin(s.labels, sides).sum(), (s.distance > 0).sum()] for s in samples], float)

    still, wide, narrow = (millilitres(ventricles_mm=range_) for range_ in ((0.0, 0.0), (4.0, 4.0), (-1.5, -1.5)))
    grown = wide[:, 0] / still[:, 0]
    assert ((grown > 2) | (grown == 1)).all() and 0 < (grown > 2).sum() < len(grown)
    assert (narrow[:, 0] / still[:, 0]).min() < 0.8
    np.testing.assert_allclose(wide[:, 1], still[:, 1], rtol=0.02)

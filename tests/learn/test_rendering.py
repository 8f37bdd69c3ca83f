from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bidsapp.learn.anatomy import KIND, POSITION
from bidsapp.learn.fields import Chance
from bidsapp.learn.generator import Generator, Sample
from bidsapp.learn.generator_config import GeneratorConfig
from bidsapp.learn.heads import Heads
from bidsapp.learn.lesion_masks import Lesions
from bidsapp.learn.pathology import Pathology
from bidsapp.learn.rendering import Scene

Config = Callable[..., GeneratorConfig]


def means(sample: Sample, contrast: int, *labels: int) -> float:
    inside = torch.isin(sample.labels, torch.tensor([POSITION[i] for i in labels])) & (sample.image[contrast] > 0)
    return float(sample.image[contrast][inside].median())


def scene_of(kinds: torch.Tensor, lining: torch.Tensor | None = None) -> Scene:
    """Nothing but these kinds of matter, and a lining."""
    none = torch.zeros(kinds.shape)
    return Scene(kinds, none == 0, none, none if lining is None else lining, none, Pathology(none), head=0)


def test_less_contrast_between_tissues_leaves_that_against_fluid(ball: Heads, bare: Config) -> None:
    seeds = range(12)
    full, flat = (
        [Generator(ball, bare(tissue_contrast=(share, share))).sample(seed) for seed in seeds] for share in (1.0, 0.4)
    )
    for contrast in range(3):
        grey_white, fluid = (
            [np.median([means(s, contrast, *a) - means(s, contrast, *b) for s in which]) for which in (full, flat)]
            for a, b in (((3, 42), (2, 41)), ((2, 41), (24,)))
        )
        assert grey_white[1] == pytest.approx(0.4 * grey_white[0], abs=0.05)
        assert abs(fluid[1]) > 0.75 * abs(fluid[0])


def test_fluid_at_the_cortex_looks_like_it(ball: Heads, bare: Config) -> None:
    found = 0
    for seed in (3, 4):
        plain, soft = (Generator(ball, bare(border=(value, value))).sample(seed) for value in (0.0, 20.0))
        changed = (plain.image - soft.image).abs().amax(0) > 0.15
        cortex = torch.isin(plain.labels, torch.tensor([POSITION[3], POSITION[42]]))[None].float()
        assert torch.nn.functional.max_pool3d(cortex, 5, 1, 2)[0][changed].all()
        found += int(changed.sum())
    assert found > 100


def test_choroid_plexus_may_be_bright_on_flair_alone(ball: Heads, bare: Config) -> None:
    kinds = torch.full((8, 8, 8), KIND["choroid plexus"])
    renderer, scene = Generator(ball, bare(p_choroid=1.0)).renderer, scene_of(kinds)
    for contrast, brighter in ((0, False), (1, False), (2, True)):
        image = torch.full(kinds.shape, 0.5)
        out = renderer.brighten(Chance.of(0), image, scene, contrast)
        assert bool((out > image).all()) == brighter


def test_the_ventricles_lining_is_bright_on_flair_alone(ball: Heads, bare: Config) -> None:
    kinds = torch.full((8, 8, 8), KIND["white matter"])
    lining = torch.zeros(kinds.shape)
    lining[2:4] = 0.8
    image = torch.full(kinds.shape, 0.6)
    renderer, scene = Generator(ball, bare(p_lining=1.0)).renderer, scene_of(kinds, lining)
    for contrast, brighter in ((0, False), (1, False), (2, True)):
        out = renderer.brighten(Chance.of(0), image, scene, contrast)
        assert bool((out[lining > 0] > image[lining > 0]).all()) == brighter
        assert (out[lining == 0] == image[lining == 0]).all()


def test_level_follows_the_fluid_that_a_mask_holds(ball: Heads, bare: Config) -> None:
    much, little = (Generator(ball, bare(fluid=(share, share))).sample(3).level for share in (1.0, 0.1))
    there = much[:, 1] != 1
    assert (much[there, 1] > little[there, 1]).all()


def test_lesions_need_no_flow_or_bright_cortex(ball: Heads, everywhere: Lesions, patches: GeneratorConfig) -> None:
    """What imitates lesions changes the images, never the truth."""
    plain = Generator(ball, patches, everywhere).sample(5)
    config = dataclasses.replace(patches, p_flow=1.0, p_bright_cortex=1.0)
    spoiled = Generator(ball, config, everywhere).sample(5)
    torch.testing.assert_close(plain.lesion, spoiled.lesion)
    assert not torch.equal(plain.image, spoiled.image)

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from bidsapp.learn.anatomy import POSITION
from bidsapp.learn.fields import Chance, touching
from bidsapp.learn.generator import Generator
from bidsapp.learn.generator_config import GeneratorConfig
from bidsapp.learn.heads import Heads
from bidsapp.learn.lesion_masks import Lesions
from bidsapp.learn.tissue import DIRT

Config = Callable[..., GeneratorConfig]


def test_all_fluid_of_the_sulci_and_white_matter_below_cortex_look_partly_like_it(ball: Heads, bare: Config) -> None:
    make = Generator(ball, bare(spacing_mm=1.0, sulcal=(0.5, 0.5), below=(0.6, 0.6)))
    labels = make.heads.labels[0].long()
    border = make.tissue.border(Chance.of(0), labels, make.tissue.tables.kind[labels])
    fluid = labels == POSITION[24]
    assert float(border[fluid].mean()) == pytest.approx(0.5, abs=0.1)
    assert float(border.min()) >= 0 and float(border.max()) <= 0.9
    assert not border[torch.isin(labels, torch.tensor([POSITION[3], POSITION[4], POSITION[43]]))].any()
    white = torch.isin(labels, torch.tensor([POSITION[2], POSITION[41]]))
    cortex = torch.isin(labels, torch.tensor([POSITION[3], POSITION[42]]))[None].float()
    near = torch.nn.functional.max_pool3d(cortex, 3, 1, 1)[0] > 0
    far = torch.nn.functional.max_pool3d(cortex, 9, 1, 4)[0] == 0
    assert 0.1 < float(border[white & near].mean()) < 0.4
    assert float(border[white & far].max()) < 0.01


def test_fluid_takes_a_share_of_the_outermost_cortex(ball: Heads, bare: Config) -> None:
    labels = ball.labels[0].long()
    cortex = torch.isin(labels, torch.tensor([POSITION[3], POSITION[42]]))
    fluid = (labels == POSITION[24])[None, None].float()
    outer = cortex & (torch.nn.functional.max_pool3d(fluid, 3, 1, 1)[0, 0] > 0)
    for share in (0.0, 0.5, 0.9):
        make = Generator(ball, bare(spacing_mm=1.0, thinning=(share, share)))
        thinned = make.tissue.thinned(Chance.of(1), labels)
        changed = thinned != labels
        assert (outer[changed]).all()
        assert (thinned[changed] == POSITION[24]).all()
        outermost = cortex & touching(labels == POSITION[24])
        assert float(changed[outermost].float().mean()) == pytest.approx(share, abs=0.12)


def test_white_matter_takes_a_share_of_the_innermost_cortex(ball: Heads, bare: Config) -> None:
    labels = torch.full((24, 24, 24), POSITION[24])
    labels[:, :, :20] = POSITION[3]  # left cortex, ten voxels
    labels[:, :, :10] = POSITION[2]
    make = Generator(ball, bare(spacing_mm=1.0, thinning_below=(0.5, 0.5)))
    shares = []
    for seed in range(30):
        thinned = make.tissue.thinned(Chance.of(seed), labels)
        shares.append(float((thinned[:, :, 10] == POSITION[2]).float().mean()))
        assert torch.equal(thinned[:, :, 11:], labels[:, :, 11:])
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)


def test_cortex_of_two_voxels_is_not_taken_from_both_sides(ball: Heads, bare: Config) -> None:
    labels = torch.full((24, 24, 24), POSITION[24])
    labels[:, :, :12] = POSITION[42]
    labels[:, :, :10] = POSITION[41]
    make = Generator(ball, bare(spacing_mm=1.0, thinning=(0.5, 0.5), thinning_below=(0.9, 0.9)))
    thinned = make.tissue.thinned(Chance.of(1), labels)
    left = (thinned == POSITION[42]).sum(2)
    assert int(left.min()) == 1
    assert bool((thinned[:, :, 10] == POSITION[41]).any()) and bool((thinned[:, :, 11] == POSITION[24]).any())


def test_walls_of_the_ventricles_and_what_lies_between_may_be_bright(ball: Heads, bare: Config) -> None:
    labels = torch.full((24, 24, 24), POSITION[2])
    labels[4:11, 8:16, 8:16] = POSITION[4]  # left and right ventricle, two voxels of white matter between
    labels[13:20, 8:16, 8:16] = POSITION[43]
    make = Generator(ball, bare(spacing_mm=1.0, p_lining=1.0))
    kinds = make.tissue.tables.kind[labels]
    lesion = torch.zeros(labels.shape)
    lesion[11:13, 8:10] = 1
    seen = torch.zeros(labels.shape)
    for seed in range(8):
        lining = make.tissue.lining(Chance.of(seed), labels, kinds, lesion)
        assert float(lining.min()) >= 0 and float(lining.max()) <= 1
        assert not lining[lesion > 0].any()
        seen = torch.maximum(seen, lining)
    assert float(seen[11:13, 11:14, 11:14].min()) > 0.5  # septum
    assert float(seen[3, 9:15, 9:15].max()) > 0.3  # wall
    seen[seen < 1e-6] = 0
    assert not seen[:2].any()  # three voxels and more from any ventricle


def test_dirty_white_matter_is_no_lesion(ball: Heads, everywhere: Lesions, bare: Config) -> None:
    make = Generator(ball, bare(p_lesions=1.0, p_dirty=1.0, tissue_contrast=(1, 1)), everywhere)
    labels = make.heads.labels[0].long()
    kinds = make.tissue.tables.kind[labels]
    for seed in range(6):
        dirt = make.tissue.dirt(Chance.of(seed), labels, kinds)
        white = torch.isin(labels, torch.tensor([POSITION[2], POSITION[41]]))
        assert float(dirt.min()) >= 0 and float(dirt.max()) <= DIRT
        assert not dirt[~white].any()

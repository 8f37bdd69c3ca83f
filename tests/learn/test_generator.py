from __future__ import annotations

import torch

from bidsapp.learn.anatomy import POSITION
from bidsapp.learn.generator import Generator
from bidsapp.learn.generator_config import GeneratorConfig
from bidsapp.learn.heads import Heads

PLAIN = GeneratorConfig(rotation_deg=5, elastic_mm=(0, 0.5), view_sides_mm=(5, 20), view_bottom_mm=(5, 20), multiple=8)


def test_a_seed_makes_the_same_sample(ball: Heads) -> None:
    make = Generator(ball, PLAIN)
    one, two, other = make.sample(5), make.sample(5), make.sample(6)
    assert torch.equal(one.image, two.image) and torch.equal(one.labels, two.labels)
    assert one.image.shape != other.image.shape or not torch.equal(one.image, other.image)


def test_sample_is_consistent(ball: Heads) -> None:
    make = Generator(ball, PLAIN)
    for seed in range(8):
        s = make.sample(seed)
        assert s.image.shape == (1, *s.labels.shape) and all(n % 8 == 0 for n in s.labels.shape)
        assert torch.isfinite(s.image).all() and (s.image >= 0).all()
        assert (s.image[0][~s.view] == 0).all()
        tissue = torch.isin(s.labels, torch.tensor([POSITION[i] for i in (2, 41)]))
        # White matter lies at least 6 mm inside the border; allow for nearest neighbours at 2.5 mm.
        assert s.distance[tissue].min() > 3
        assert s.distance[s.labels == POSITION[511]].max() < 0


def test_contrasts_share_one_anatomy_and_one_is_always_left(ball: Heads) -> None:
    make = Generator(ball, GeneratorConfig(contrasts=3, p_drop=0.9, multiple=8, view_bottom_mm=(5, 20)))
    for seed in range(6):
        image = make.sample(seed).image
        assert image.shape[0] == 3
        assert 1 <= int((image.flatten(1).max(1).values > 0).sum()) <= 3

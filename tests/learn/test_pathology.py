from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bidsapp.learn.anatomy import LEFT_LESION, POSITION, RIGHT_LESION
from bidsapp.learn.fields import Chance
from bidsapp.learn.generator import Generator, Sample
from bidsapp.learn.generator_config import GeneratorConfig
from bidsapp.learn.heads import Heads
from bidsapp.learn.lesion_masks import SHAPE, SPOTS, Lesions
from bidsapp.learn.lesion_masks import joined as with_large
from bidsapp.learn.pathology import LARGE, Anatomy, Pathology
from training.tasks import SegmentTask

Config = Callable[..., GeneratorConfig]


def test_lesions_lie_in_tissue_that_may_have_them(ball: Heads, everywhere: Lesions, patches: GeneratorConfig) -> None:
    make = Generator(ball, patches, everywhere)
    samples = [make.sample(seed) for seed in range(6)]
    hosts = torch.tensor([POSITION[i] for i in (2, 41, 3, 42)])
    assert any((s.lesion > 0.5).any() for s in samples)
    for s in samples:
        assert s.image.shape == (3, 32, 32, 32) and s.lesion.max() <= 1
        assert (s.lesion[~torch.isin(s.labels, hosts)] == 0).all()


def test_a_patients_own_lesions_are_drawn_in_some_samples_and_are_white_matter_in_others(
    ball: Heads, everywhere: Lesions, bare: Config
) -> None:
    labels = ball.labels.clone()
    labels[0, 28:33, 38:43, 42:47] = POSITION[LEFT_LESION]
    nowhere = Lesions(torch.zeros_like(everywhere.masks), everywhere.spots)
    settings = {"p_lesions": 1.0, "p_centred": 1.0, "patch": 24, "spacing_mm": 1.0}
    make = Generator(dataclasses.replace(ball, labels=labels), bare(**settings), nowhere)
    shares = []
    for seed in range(24):
        sample = make.sample(seed)
        own = torch.isin(sample.labels, torch.tensor([POSITION[LEFT_LESION], POSITION[RIGHT_LESION]]))
        if own.sum() > 50:
            shares.append(float(sample.lesion[own].mean()))
    drawn = np.array(shares) > 0.6
    assert 0.3 < drawn.mean() < 1 and (np.array(shares)[~drawn] < 0.2).any()
    task = SegmentTask()
    assert task.classes[task._labels(sample)[own].unique()] == "cerebral white matter"


def test_masks_are_mirrored_about_the_midline(ball: Heads, bare: Config) -> None:
    """Of a sheet in the midline both sides are the same."""
    masks = torch.zeros((1, *SHAPE), dtype=torch.uint8)
    masks[:, 91] = 1  # x = 0 mm
    painter = Generator(ball, bare(patch=0, p_lesions=1.0), Lesions(masks, np.full((1, SPOTS, 3), 91))).painter
    points = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in ball.labels.shape[1:]], indexing="ij"))
    labels = ball.labels[0].long()
    drawn = [painter._placed(Chance.of(seed), Anatomy(points, labels, labels, 0), [0]) for seed in range(8)]
    assert all(torch.equal(one, drawn[0]) for one in drawn) and drawn[0][36].all()


@pytest.fixture(scope="module")
def with_infarcts(everywhere: Lesions) -> Lesions:
    """Beside the left half an infarct's mask that covers the whole brain."""
    return with_large(everywhere, Lesions(torch.ones((1, *SHAPE), dtype=torch.uint8), everywhere.spots))


def with_large_lesions(
    heads: Heads, lesions: Lesions, patches: GeneratorConfig
) -> tuple[list[Sample], list[Pathology]]:
    """Samples with a large lesion each, and what was drawn into them."""
    make = Generator(heads, dataclasses.replace(patches, p_large=1.0), lesions)
    drawn: list[Pathology] = []
    draw = make.painter.draw
    make.painter.draw = lambda *args: drawn.append(draw(*args)) or drawn[-1]  # type: ignore[method-assign]
    return [make.sample(seed) for seed in range(24)], drawn


def test_large_lesions_take_cortex_too_and_their_cavities_are_fluid(
    ball: Heads, with_infarcts: Lesions, patches: GeneratorConfig
) -> None:
    samples, drawn = with_large_lesions(ball, with_infarcts, patches)
    assert {one.large for one in drawn} == set(LARGE)
    cortex, fluid = torch.tensor([POSITION[3], POSITION[42]]), POSITION[24]
    hollow = 0
    for sample, one in zip(samples, drawn, strict=True):
        assert sample.lesion.max() <= 1 and 0 <= one.share <= 0.4
        if one.large == "infarct":
            assert (sample.lesion[torch.isin(sample.labels, cortex)] > 0.5).any()
            hole = one.cavity > 0.5
            hollow += bool(hole.any())
            assert (sample.labels[hole] == fluid).all() and (sample.lesion[hole] < 0.5).all()
    assert hollow


def test_a_mass_fills_sulci_and_what_is_dead_lies_within_what_enhances(
    ball: Heads, with_infarcts: Lesions, patches: GeneratorConfig
) -> None:
    samples, drawn = with_large_lesions(ball, with_infarcts, patches)
    fluid, ventricle = POSITION[24], POSITION[4]
    masses = [(sample, one) for sample, one in zip(samples, drawn, strict=True) if one.large == "mass"]
    assert any((sample.lesion[sample.labels == fluid] > 0.5).any() for sample, _ in masses)
    assert not any((sample.lesion[sample.labels == ventricle] > 0.5).any() for sample, _ in masses)
    enhancing = [(one.rim, one.dead) for _, one in masses if one.rim is not None]
    assert 0 < len(enhancing) < len(masses)
    for rim, dead in enhancing:
        assert dead is not None and (dead <= rim + 1e-5).all()
    assert any((dead > 0.5).any() for _, dead in enhancing if dead is not None)


def test_the_share_of_a_large_lesion_is_that_of_the_brain_as_it_was_scaled(
    ball: Heads, with_infarcts: Lesions, patches: GeneratorConfig
) -> None:
    """In patches that hold all of the brain."""
    whole = dataclasses.replace(patches, patch=80, spacing_mm=1.0, shear=0, scale=(0.8, 1.2), p_dirty=0)
    samples, drawn = with_large_lesions(ball, with_infarcts, whole)
    shares = [
        (one.share, float(sample.lesion.sum() / (sample.distance > 0).sum()))
        for sample, one in zip(samples, drawn, strict=True)
        if one.large != "infarct" and 0 < one.share < 0.4
    ]
    assert len(shares) > 3
    for said, true in shares:
        assert said == pytest.approx(true, rel=0.05)


def test_masks_of_large_lesions_change_nothing_where_none_are_asked_for(
    ball: Heads, everywhere: Lesions, with_infarcts: Lesions, patches: GeneratorConfig
) -> None:
    plain, more = (Generator(ball, patches, lesions).sample(3) for lesions in (everywhere, with_infarcts))
    torch.testing.assert_close(plain.image, more.image)
    torch.testing.assert_close(plain.lesion, more.lesion)
    with pytest.raises(ValueError, match="masks of large lesions"):
        Generator(ball, dataclasses.replace(patches, p_large=0.5), everywhere)


def test_without_lesion_masks_lesions_cannot_be_asked_for(ball: Heads, patches: GeneratorConfig) -> None:
    with pytest.raises(ValueError, match="lesion masks"):
        Generator(ball, patches)

"""Ghosts, ringing, uneven slices: on shapes whose look is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage

from bidsapp.learn import artefacts
from bidsapp.learn.fields import Chance
from bidsapp.learn.generator import Generator
from bidsapp.learn.generator_config import GeneratorConfig
from bidsapp.learn.heads import Heads

SEEDS = range(40)


def block(*, low: int = 10, high: int = 22) -> torch.Tensor:
    image = torch.zeros(32, 36, 40)
    image[low:high, low:high, low:high] = 1
    return image


def test_a_moved_head_is_blurred_about_its_place() -> None:
    still, away, moved = block(), [], []
    for seed in SEEDS:
        image = artefacts.moved(Chance.of(seed), still)
        assert image.min() >= 0
        inside = ndimage.center_of_mass(image.numpy() * (image.numpy() > 0.5))
        away.append(np.abs(np.subtract(inside, 15.5)).max())
        moved.append(float((image - still).abs().mean()))
    assert np.median(away) < 0.3
    assert max(away) < 2.5
    assert min(moved) > 0
    assert np.median(moved) > 0.005


def test_a_moved_head_that_fills_its_view_evenly_looks_the_same() -> None:
    for seed in SEEDS:
        torch.testing.assert_close(
            artefacts.moved(Chance.of(seed), torch.full((8, 12, 10), 3.0)), torch.full((8, 12, 10), 3.0)
        )


def test_a_wave_every_two_lines_makes_a_ghost_half_a_view_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefacts, "PULSE_LINES", (2.0, 2.0))
    monkeypatch.setattr(artefacts, "PULSE_MM", (0.0, 0.0))
    image = torch.zeros(32, 32, 32)
    image[4, 5, 6] = 1
    seen = set()
    for seed in SEEDS:
        ghosts = artefacts.moved(Chance.of(seed), image)
        spots = {tuple(spot) for spot in (ghosts > 0.02).nonzero().tolist()}
        if len(spots) == 2:  # a wave, whose phase is not near 0
            seen |= spots
    assert {(4, 5, 6), (20, 5, 6), (4, 21, 6), (4, 5, 22)} == seen


def test_ringing_overshoots_beside_an_edge_along_one_axis() -> None:
    for seed in SEEDS:
        image = artefacts.ringing(Chance.of(seed), block())
        through = [image[:, 15, 15], image[15, :, 15], image[15, 15, :]]
        rings = [float(line.max()) > 1.05 for line in through]
        assert sum(rings) == 1
        assert float(image.max()) < 1.3


def test_uneven_slices_differ_from_one_another_not_within() -> None:
    image = torch.ones(6, 24, 7)
    slices = artefacts.uneven(Chance.of(3), image, 1, (0.05, 0.05))
    torch.testing.assert_close(slices, slices[:1, :, :1].expand_as(slices))
    assert 0.02 < float(slices[0, :, 0].log().std()) < 0.12


def test_the_other_of_two_slices_is_acquired_in_another_turn() -> None:
    steps = []
    for seed in SEEDS:
        signal = artefacts.uneven(Chance.of(seed), torch.ones(1, 400, 1), 1, (0.05, 0.05)).log()[0, :, 0]
        steps.append(abs(float(signal[::2].mean() - signal[1::2].mean())))
    assert np.mean(steps) == pytest.approx(2 * 0.05 * np.sqrt(2 / np.pi), rel=0.4)


@pytest.mark.parametrize("setting", [{"p_motion": 1.0}, {"p_ringing": 1.0}])
def test_a_spoilt_scan_shows_the_same_anatomy(
    ball: Heads, bare: Callable[..., GeneratorConfig], setting: dict[str, float]
) -> None:
    plain, spoilt = (Generator(ball, bare(**values)).sample(5) for values in ({}, setting))
    torch.testing.assert_close(plain.labels, spoilt.labels)
    torch.testing.assert_close(plain.image > 0, spoilt.image > 0)
    assert all((a - b).abs().max() > 0.02 for a, b in zip(plain.image, spoilt.image, strict=True))


def test_thick_slices_are_uneven_where_asked(ball: Heads, bare: Callable[..., GeneratorConfig]) -> None:
    thick = {"p_thick": 1.0, "thick_mm": (8.0, 8.0)}
    even, uneven = (Generator(ball, bare(**thick, uneven=value)).sample(5) for value in ((0.0, 0.0), (0.2, 0.2)))
    torch.testing.assert_close(even.labels, uneven.labels)
    assert (even.image - uneven.image).abs().max() > 0.02

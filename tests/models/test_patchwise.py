from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bidsapp.models.patchwise import TwoPathway, TwoPathwayConfig

SMALL = TwoPathwayConfig(channels=2, classes=3, features=(3, 3, 4, 4, 4, 4, 5, 5), joint=6)


@pytest.fixture
def rng_torch() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def network(**options: Any) -> TwoPathway:
    torch.manual_seed(0)
    return TwoPathway(replace(SMALL, **options))


@pytest.mark.parametrize("options", [{}, {"residual": True}, {"activation": "leaky", "dropout": 0.0}], ids=str)
def test_every_tile_gives_the_same_answer(options: dict[str, Any], rng_torch: torch.Generator) -> None:
    x = torch.randn(1, 2, 48 + 9, 48 + 12, 48 + 6, generator=rng_torch)
    net = network(**options).eval()
    with torch.inference_mode():
        whole, part = net(x), net(x[:, :, 3:54, 6:57, :51])
    assert whole.shape == (1, 3, 9, 12, 6) and part.shape == (1, 3, 3, 3, 3)
    torch.testing.assert_close(part, whole[:, :, 3:6, 6:9, :3], rtol=1e-4, atol=1e-5)


def test_the_middle_block_sees_51_voxels(rng_torch: torch.Generator) -> None:
    """Each answer of a block of 3x3x3 depends on 51 voxels along each axis, and not on what lies beyond."""
    net = network().eval()
    x = torch.randn(1, 2, 57, 57, 57, generator=rng_torch, requires_grad=True)
    net(x)[0, 0, 4, 4, 4].backward()
    assert x.grad is not None
    for axis in range(3):
        others = [a for a in range(5) if a != axis + 2]
        seen = x.grad.abs().sum(others).nonzero().flatten()
        assert (int(seen[0]), int(seen[-1])) == (3, 53)


def test_fine_pathway_sees_17_voxels(rng_torch: torch.Generator) -> None:
    net = network().eval()
    x = torch.randn(1, 2, 17, 18, 19, generator=rng_torch)
    assert net.fine(x).shape == (1, 5, 1, 2, 3)


@pytest.mark.parametrize("residual", [False, True])
def test_every_weight_learns(residual: bool, rng_torch: torch.Generator) -> None:
    net = network(residual=residual, place=True)
    logits = net(torch.randn(2, 2, 60, 54, 60, generator=rng_torch), torch.randn(2, 3, 6, 3, 6, generator=rng_torch))
    assert logits.shape == (2, 3, 12, 6, 12)
    (logits * torch.randn(logits.shape, generator=rng_torch)).sum().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert not still


def test_residual_adds_what_two_layers_before_said(rng_torch: torch.Generator) -> None:
    """With the weights of layer 4 at nil, its output is that of layer 2, cropped, and nil in the fourth channel."""
    net = network(residual=True).eval()
    x = torch.randn(1, 2, 20, 21, 22, generator=rng_torch)
    second = net.fine.layers[1](net.fine.layers[0](x))
    told = []
    net.fine.layers[4].register_forward_pre_hook(lambda module, given: told.append(given[0]))
    torch.nn.init.zeros_(net.fine.layers[3][-1].weight)
    net.fine(x)
    torch.testing.assert_close(told[0][:, :3], second[:, :, 2:-2, 2:-2, 2:-2])
    assert not told[0][:, 3:].any()


def test_place_is_told_and_needed(rng_torch: torch.Generator) -> None:
    net = network(place=True).eval()
    x = torch.randn(1, 2, 54, 54, 54, generator=rng_torch)
    here, there = torch.zeros(1, 3, 3, 3, 3), torch.ones(1, 3, 3, 3, 3)
    assert not torch.allclose(net(x, here), net(x, there))
    with pytest.raises(ValueError, match="place"):
        net(x)
    with pytest.raises(ValueError, match="multiple of 6"):
        net(x[:, :, :51], here)


@pytest.mark.parametrize("shape", [(48, 51, 51), (52, 51, 51), (40, 51, 51)])
def test_axes_that_do_not_fit(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="multiple of 3"):
        network()(torch.zeros(1, 2, *shape))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"features": (4, 4)}, "8 numbers"), ({"classes": 0}, "1 or more"), ({"dropout": 1.0}, "dropout"),
        ({"activation": "relu"}, "prelu or leaky"), ({"features": (4, 4, 4, 4, 4, 4, 4, -1)}, "1 or more"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        replace(SMALL, **options)

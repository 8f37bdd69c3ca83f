"""The multi-scale two-pathway 3D network: it sees a fine patch and, three times coarser, what surrounds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

#: Voxels that the context pathway averages along each axis (Kamnitsas et al. 2017: a third of the resolution).
COARSER = 3
#: Valid convolutions of a pathway; each takes a voxel from every side.
DEPTH = 8
#: Layers whose output gets that of two layers before added, where there are residual connections
#: (Kamnitsas et al. 2016, BrainLes: between every two layers, but for the first two), counted from 0.
RESIDUAL = (3, 5, 7)


@dataclass(frozen=True)
class TwoPathwayConfig:
    """Widths and options of a `TwoPathway`.

    Attributes
    ----------
    channels, classes : int
        Of the image, and of the answer.
    features : tuple of int
        Channels after each of the eight convolutions of a pathway. DeepMedic has (30, 30, 40, 40, 40, 40, 50, 50); the
        default is about half, so that a CPU can train it.
    joint : int
        Channels of the two 1x1x1 layers that see both pathways (DeepMedic: 150).
    dropout : float
        In front of the second 1x1x1 layer and of the classifier (DeepMedic: 0.5, with half as many channels to spare).
    activation : str
        ``"prelu"`` (as DeepMedic) or ``"leaky"``.
    residual : bool
        Residual connections within the pathways.
    place : bool
        The network is told where in the brain each voxel lies (Ghafoorian et al. 2017, Scientific Reports 7:5110).

    Raises
    ------
    ValueError
        Not eight features, a width below 1, a dropout outside [0, 1), or an unknown activation.
    """

    channels: int = 3
    classes: int = 2
    features: tuple[int, ...] = (16, 16, 24, 24, 24, 24, 32, 32)
    joint: int = 96
    dropout: float = 0.3
    activation: str = "prelu"
    residual: bool = False
    place: bool = False

    def __post_init__(self) -> None:
        if len(self.features) != DEPTH:
            raise ValueError(f"features: {DEPTH} numbers, one for each convolution, not {len(self.features)}")
        if min(self.channels, self.classes, self.joint, *self.features) < 1:
            raise ValueError("channels, classes, features and joint must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: 0 or more and below 1, not {self.dropout}")
        if self.activation not in ("prelu", "leaky"):
            raise ValueError(f"activation: prelu or leaky, not {self.activation!r}")

    @property
    def multiple(self) -> int:
        """Every axis of what the network answers must be a multiple of this."""
        return 2 * COARSER if self.place else COARSER  # a place is that of the middle of 2x2x2 voxels

    @property
    def step(self) -> int:
        """Tiles start at multiples of this, so that all average the same voxels: then any tiling gives the same."""
        return self.multiple


class TwoPathway(nn.Module):
    """DeepMedic: Kamnitsas et al. 2017, Medical Image Analysis 36:61 (two pathways: also Havaei et al. 2017, 35:18).

    Two pathways of eight valid 3x3x3 convolutions: one on the image (it sees 17 voxels along each axis), one on the
    image averaged over 3x3x3 voxels (it sees 51). What the latter finds is repeated 3x3x3 times; two 1x1x1 layers and
    the classifier see both. Batch norm and activation come before each convolution but the first. No padding anywhere:
    each voxel's answer is the same in whatever tile it is asked for.

    Attributes
    ----------
    config : TwoPathwayConfig
    margin : int
        Voxels of the image around what is answered that `forward` needs.
    """

    margin = COARSER * DEPTH

    def __init__(self, config: TwoPathwayConfig) -> None:
        super().__init__()
        self.config = config
        self.fine, self.context = _Pathway(config), _Pathway(config)
        both = 2 * config.features[-1]
        self.joint1 = _layer(config, both, config.joint, kernel=1)
        self.joint2 = _layer(config, config.joint, config.joint, kernel=1, dropout=config.dropout)
        if config.place:
            self.place = nn.Sequential(nn.Conv3d(3, 32, 1), nn.LeakyReLU(0.01), nn.Conv3d(32, config.joint, 1))
        self.head = _layer(config, config.joint, config.classes, kernel=1, dropout=config.dropout, bias=True)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, a=0.25)  # He et al. 2015, as DeepMedic; 0.25: PReLU at first

    def forward(self, x: torch.Tensor, place: torch.Tensor | None = None) -> torch.Tensor:
        """(B, channels, X + 48, Y + 48, Z + 48) -> logits (B, classes, X, Y, Z); X, Y, Z multiples of ``multiple``.

        `place`, (B, 3, X/2, Y/2, Z/2), is needed where the network was built with ``config.place``.

        Raises
        ------
        ValueError
            An axis of another length.
        """
        answered = [n - 2 * self.margin for n in x.shape[2:]]
        if any(n < 1 or n % self.config.multiple for n in answered):
            raise ValueError(
                f"axes of {tuple(x.shape[2:])} voxels: each must be a multiple of {self.config.multiple} and"
                f" {2 * self.margin} more"
            )
        fine = self.fine(_cropped(x, self.margin - DEPTH))
        context = self.context(functional.avg_pool3d(x, COARSER))
        for axis in (2, 3, 4):
            context = context.repeat_interleave(COARSER, axis)
        x = self.joint2(self.joint1(torch.cat([fine, context], 1)))
        if self.config.place:
            if place is None:
                raise ValueError("this network was built to be told where each voxel lies: give its place")
            x = x + functional.interpolate(self.place(place), scale_factor=2)
        return self.head(x)


class _Pathway(nn.Module):
    """Eight valid 3x3x3 convolutions: (B, channels, X + 16, ...) -> (B, features, X, ...)."""

    def __init__(self, config: TwoPathwayConfig) -> None:
        super().__init__()
        widths = (config.channels, *config.features)
        self.layers = nn.ModuleList(
            _layer(config, before, after, first=number == 0) for number, (before, after) in enumerate(pairwise(widths))
        )
        self.residual = RESIDUAL if config.residual else ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        passed: Sequence[torch.Tensor] = ()
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in self.residual:
                x = _added(x, _cropped(passed[-2], 2))
            passed = (*passed[-1:], x)
        return x


def _added(x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """The sum; channels that only one of the two has stay as they are (He et al. 2016, option A)."""
    shared = min(x.shape[1], before.shape[1])
    return torch.cat([x[:, :shared] + before[:, :shared], x[:, shared:]], 1)


def _cropped(x: torch.Tensor, width: int) -> torch.Tensor:
    inner = slice(width, -width) if width else slice(None)
    return x[:, :, inner, inner, inner]


def _layer(
    config: TwoPathwayConfig,
    before: int,
    after: int,
    *,
    kernel: int = 3,
    dropout: float = 0.0,
    first: bool = False,
    bias: bool = False,
) -> nn.Sequential:
    """Batch norm, activation and dropout (not in the first layer), then the convolution."""
    convolution = nn.Conv3d(before, after, kernel, bias=bias)
    if first:
        return nn.Sequential(convolution)
    activation = nn.PReLU(before) if config.activation == "prelu" else nn.LeakyReLU(0.01)
    # Whole channels, not voxels: their neighbours say the same (Tompson et al. 2015).
    spared = [nn.Dropout3d(dropout)] if dropout else []
    return nn.Sequential(nn.BatchNorm3d(before), activation, *spared, convolution)

"""A U-Net that works on voxels folded 2x2x2 into channels: half the cost of one that works on every voxel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class UNetConfig:
    """Channels in, classes out, features per level (the first level lies at half the image's resolution)."""

    channels: int = 1
    classes: int = 1
    features: tuple[int, ...] = (16, 32, 64, 96)
    place: bool = False  # the network is told where in the brain each voxel lies

    def __post_init__(self) -> None:
        if not self.features or min(self.channels, self.classes, *self.features) < 1:
            raise ValueError("channels, classes and each of the features must be 1 or more")

    @property
    def multiple(self) -> int:
        """Every axis of the input must be a multiple of this."""
        return 2 ** len(self.features)

    @property
    def step(self) -> int:
        """Tiles start at multiples of this: pairs of voxels are folded."""
        return 2


def symmetric_place(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """(3, X/2, Y/2, Z/2): distance from the midline, place from back to front, from bottom to top.

    Parameters
    ----------
    x, y, z : Tensor
        Voxel centres along each axis (even lengths), relative to the box of the brain: -1 and 1 at its ends.
    """
    halves = [axis.reshape(-1, 2).mean(1) for axis in (x, y, z)]
    grid = torch.stack(torch.meshgrid(*halves, indexing="ij"))
    grid[0].abs_()
    return grid


def fold(x: torch.Tensor) -> torch.Tensor:
    """(B, C, X, Y, Z) -> (B, 8C, X/2, Y/2, Z/2): each 2x2x2 block becomes eight channels."""
    b, c, nx, ny, nz = x.shape
    x = x.reshape(b, c, nx // 2, 2, ny // 2, 2, nz // 2, 2)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, 8 * c, nx // 2, ny // 2, nz // 2)


def unfold(x: torch.Tensor) -> torch.Tensor:
    """(B, 8C, X, Y, Z) -> (B, C, 2X, 2Y, 2Z): the inverse of `fold`."""
    b, c, nx, ny, nz = x.shape
    x = x.reshape(b, c // 8, 2, 2, 2, nx, ny, nz)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, c // 8, 2 * nx, 2 * ny, 2 * nz)


class FoldedUNet(nn.Module):
    """U-Net (Ronneberger et al. 2015; 3D: Cicek et al. 2016) with instance norm and leaky ReLU, on folded voxels.

    Attributes
    ----------
    config : UNetConfig
    margin : int
        None: it answers for all that it sees.
    """

    margin = 0

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.features
        self.down = nn.ModuleList(
            _Block(8 * config.channels if level == 0 else widths[level - 1], width, stride=1 if level == 0 else 2)
            for level, width in enumerate(widths)
        )
        self.narrow = nn.ModuleList(nn.Conv3d(widths[i + 1], widths[i], 1) for i in range(len(widths) - 1))
        self.up = nn.ModuleList(_Block(width, width) for width in widths[:-1])
        self.head = nn.Conv3d(widths[0], 8 * config.classes, 1)
        if config.place:
            self.place_deep, self.place_fine = _place(widths[-1]), _place(widths[0])

    def forward(self, x: torch.Tensor, place: torch.Tensor | None = None) -> torch.Tensor:
        """(B, channels, X, Y, Z) -> logits (B, classes, X, Y, Z); X, Y, Z multiples of ``config.multiple``.

        `place`, (B, 3, X/2, Y/2, Z/2), is needed where the network was built with ``config.place``. It enters after the
        last norm of the deepest and of the finest level: an instance norm would take a patch's mean place away.
        """
        bad = [n for n in x.shape[2:] if n % self.config.multiple]
        if bad:
            raise ValueError(f"axes of {tuple(x.shape[2:])} voxels: each must be a multiple of {self.config.multiple}")
        if self.config.place and place is None:
            raise ValueError("this network was built to be told where each voxel lies: give its place")
        x = fold(x)
        passed = []
        for block in self.down:
            x = block(x)
            passed.append(x)
        x = passed.pop()
        if self.config.place and place is not None:
            x = x + self.place_deep(functional.interpolate(place, x.shape[2:], mode="trilinear", align_corners=False))
        for level in reversed(range(len(self.up))):  # coarse to fine
            # Trilinear, not nearest: blocks of the coarse grid would show in the border.
            x = functional.interpolate(self.narrow[level](x), scale_factor=2.0, mode="trilinear", align_corners=False)
            x = self.up[level](passed.pop() + x)  # a sum, not a concatenation: a third less work at the finest level
        if self.config.place:
            x = x + self.place_fine(place)
        return unfold(self.head(x))


def _place(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(3, 32, 1), nn.LeakyReLU(0.01), nn.Conv3d(32, width, 1))


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.InstanceNorm3d(after, affine=True)
        self.conv2 = nn.Conv3d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.InstanceNorm3d(after, affine=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.leaky_relu(self.norm1(self.conv1(x)), 0.01)
        return functional.leaky_relu(self.norm2(self.conv2(x)), 0.01)

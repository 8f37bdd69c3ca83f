"""What a moving head and an acquisition that stops early leave in an image: ghosts, blur, ringing, uneven slices."""

from __future__ import annotations

import math

import numpy as np
import torch

from bidsapp.learn.fields import Chance
from bidsapp.learn.generator_config import Range

#: Sudden moves during a scan and their standard deviation, mm; a pulse's or breath's, and lines between two of them.
MOVES, MOVES_MM = (1, 5), (0.3, 2.5)
PULSE_MM, PULSE_LINES = (0.1, 1.2), (2.0, 20.0)
#: How much brighter and darker a pulse makes the lines of k-space.
PULSE_SIGNAL = (0.0, 0.15)
#: Share of the lines along one axis that are acquired where an image rings: what lies beyond is 0.
ACQUIRED = (0.5, 0.9)


def moved(chance: Chance, image: torch.Tensor) -> torch.Tensor:
    """An image whose lines of k-space were acquired of a head at changing places.

    Translations within the plane of two random axes, one of which is the phase-encoding one: sudden moves, or a wave,
    which makes ghosts. While the middle of k-space is acquired the head is in its place, so that labels fit.

    Parameters
    ----------
    chance : Chance
    image : Tensor
        float32 (X, Y, Z), not negative.

    Returns
    -------
    Tensor
        float32 (X, Y, Z), the magnitude.
    """
    phase, other = chance.rng.permutation(3)[:2].tolist()
    lines = image.shape[phase]
    path, signal = _path(chance, lines), np.ones(lines)
    if chance.happens(0.5):
        path, signal = _wave(chance, lines)
    middle = lines // 2
    path, signal = (path - path[:, middle, None]) / chance.spacing_mm, signal / signal[middle]
    frequencies = [np.fft.fftshift(np.fft.fftfreq(image.shape[axis])) for axis in (phase, other)]
    turns = path[0, :, None] * frequencies[0][:, None] + path[1, :, None] * frequencies[1][None]
    transfer = signal[:, None] * np.exp(-2j * math.pi * turns)
    return _filtered(image, np.fft.ifftshift(transfer), (phase, other))


def ringing(chance: Chance, image: torch.Tensor) -> torch.Tensor:
    """An image of which the outer lines of k-space are missing along one axis: ripples beside edges (Gibbs).

    Takes and returns a float32 tensor (X, Y, Z) as `moved` does.
    """
    axis = int(chance.rng.integers(3))
    seen = np.abs(np.fft.fftfreq(image.shape[axis])) <= 0.5 * chance.uniform(*ACQUIRED)
    return _filtered(image, seen[:, None].astype(complex), (axis, (axis + 1) % 3))


def uneven(chance: Chance, slices: torch.Tensor, axis: int, deviations: Range) -> torch.Tensor:
    """Slices along `axis` whose signal differs, every other one's by as much again: they are acquired in two turns."""
    deviation, count = chance.uniform(*deviations), slices.shape[axis]
    factors = chance.rng.normal(0, deviation, count) + chance.rng.normal(0, deviation) * (-1.0) ** np.arange(count)
    shape = [count if each == axis else 1 for each in range(3)]
    return slices * torch.tensor(np.exp(factors), dtype=torch.float32).reshape(shape).to(slices.device)


def _path(chance: Chance, lines: int) -> np.ndarray:
    """(2, lines) mm: places between sudden moves."""
    moves = int(chance.rng.integers(*MOVES))
    cuts = np.sort(chance.rng.integers(1, lines, moves))
    places = chance.rng.normal(0, chance.uniform(*MOVES_MM), (2, moves + 1))
    return places[:, np.searchsorted(cuts, np.arange(lines), side="right")]


def _wave(chance: Chance, lines: int) -> tuple[np.ndarray, np.ndarray]:
    """(2, lines) mm and the signal of each line: a pulse or breath."""
    turns = np.arange(lines) / chance.uniform(*PULSE_LINES) + chance.uniform(0, 1)
    wave = np.sin(2 * math.pi * turns)
    way = chance.rng.normal(size=2)
    path = chance.uniform(*PULSE_MM) * way[:, None] / np.linalg.norm(way) * wave
    return path, 1 + chance.uniform(*PULSE_SIGNAL) * wave


def _filtered(image: torch.Tensor, transfer: np.ndarray, axes: tuple[int, int]) -> torch.Tensor:
    """Magnitude of the image after its frequencies along two axes are multiplied by `transfer`."""
    factors = torch.tensor(transfer, dtype=torch.complex64)
    if axes[0] > axes[1]:
        factors = factors.T
    shape = [1, 1, 1]
    for axis, n in zip(sorted(axes), factors.shape, strict=True):
        shape[axis] = n
    spectrum = torch.fft.fft2(image, dim=axes) * factors.reshape(shape).to(image.device)
    return torch.fft.ifft2(spectrum, dim=axes).abs()

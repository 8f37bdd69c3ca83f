"""Halves of a scan whose brightness and noise are known."""

from __future__ import annotations

import numpy as np

SHAPE = (7, 8, 9)


def half(first: bool) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[: 2 if first else 0] = first
    mask[2:4] = not first
    return mask


def two_tissues() -> np.ndarray:
    """GM (planes 0, 1) 50 +- 2, WM (planes 2, 3) 80 +- 1, air 0 or 2 (sd 1)."""
    image = np.zeros(SHAPE)
    sign = np.where(np.indices(SHAPE).sum(axis=0) % 2, 1, -1)
    image[:2], image[2:4], image[4:] = 50 + 2 * sign[:2], 80 + sign[2:4], 1 + sign[4:]
    return image

"""Pictures of what changed between two sessions: slices of both side by side, and a pair to flicker between."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np

from bidsapp.image.grid import bounding_box
from bidsapp.image.intensity import MAD_TO_SD
from bidsapp.labels import (
    CHANGE_GROWTH,
    CHANGE_LOSS,
    CHANGE_NEW,
    CHANGE_RESOLVED,
    CHANGE_STABLE,
)
from bidsapp.report.mosaic import Layer, mosaic
from bidsapp.report.slices import GAP, plan_detail

#: What is drawn on the later session, and in the key of the page.
SHOWN = (CHANGE_STABLE, CHANGE_NEW, CHANGE_GROWTH, CHANGE_LOSS, CHANGE_RESOLVED)
ACTIVE = (CHANGE_NEW, CHANGE_GROWTH, CHANGE_LOSS, CHANGE_RESOLVED)


def draw_change(
    *,
    flairs: Sequence[np.ndarray],
    brain: np.ndarray,
    lesions: Sequence[np.ndarray],
    change: np.ndarray,
    affine: np.ndarray,
) -> dict[str, bytes]:
    """Pictures of an interval, on the slices where lesions changed, then on those with stable ones.

    Parameters
    ----------
    flairs : sequence of two ndarray, (X, Y, Z)
        Earlier and later session in the half-way space.
    brain : ndarray of bool, (X, Y, Z)
        Seen by both.
    lesions : sequence of two ndarray of bool, (X, Y, Z)
    change : ndarray of int, (X, Y, Z)
        Labels of `labels.CHANGE_LOOKUP`.
    affine : ndarray, shape (4, 4)

    Returns
    -------
    dict
        PNG by name: ``Beside`` (each slice three times: before, after, after with what changed), ``Before`` and
        ``After`` (to flicker between).
    """
    box = bounding_box(brain, margin=0)
    corner = np.eye(4)
    corner[:3, 3] = [part.start for part in box]
    affine = affine @ corner
    shades = [_shade(flair[box], brain[box]) for flair in flairs]
    mask, labels = brain[box], change[box]
    active = np.isin(labels, [label.index for label in ACTIVE])
    stable = labels == CHANGE_STABLE.index
    seen = active if active.any() else stable if stable.any() else lesions[0][box] | lesions[1][box]

    def image(data: np.ndarray) -> nib.Nifti1Image:
        return nib.Nifti1Image(data, affine)

    before, after, brain_image = image(shades[0]), image(shades[1]), image(mask.astype(np.uint8))
    layout = plan_detail(brain_image, image(seen.astype(np.uint8)))
    pictures = {
        "Before": mosaic(before, layout=layout, window_mask=brain_image),
        "After": mosaic(after, layout=layout, window_mask=brain_image),
    }
    gap = np.zeros((GAP, *mask.shape[1:]), dtype=np.float32)
    dark = gap + min(float(shade.min()) for shade in shades)
    none = np.zeros_like(labels)
    three = [
        np.concatenate([a, between.astype(a.dtype), b, between.astype(a.dtype), c])
        for (a, b, c), between in (
            ((shades[0], shades[1], shades[1]), dark),
            ((mask, mask, mask), gap),
            ((seen, seen, seen), gap),
            ((stable, stable, stable), gap),
            ((none, none, labels), gap),
        )
    ]
    masks = image(three[1].astype(np.uint8))
    drawn = image(three[4])
    layers = [
        Layer(drawn, label.color, label=label.index, opacity=0.0 if label == CHANGE_STABLE else 0.35, outline=True)
        for label in SHOWN
        if (three[4] == label.index).any()
    ]
    changed, rest = (image(part.astype(np.uint8)) for part in three[2:4])
    layout = plan_detail(masks, changed, rows=3, then=rest, fill=False)
    pictures["Beside"] = mosaic(image(three[0]), layers, layout=layout, window_mask=masks, panels=3)
    return pictures


def _shade(flair: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Grey values of both sessions on one scale: median 0, spread 1 in the brain."""
    values = flair[brain]
    middle = np.median(values)
    spread = MAD_TO_SD * np.median(np.abs(values - middle))
    return ((flair - middle) / max(float(spread), 1e-6)).astype(np.float32)

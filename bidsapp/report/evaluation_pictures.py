"""Pictures of a case of ``bidsapp evaluate``: slices where the two sides differ most, outlined."""

from __future__ import annotations

import io
from collections.abc import Sequence

import nibabel as nib
import numpy as np
from PIL import Image
from scipy import ndimage

from bidsapp.image.grid import bounding_box
from bidsapp.report.mosaic import Layer, Picture, mosaic
from bidsapp.report.slices import plan_detail

#: The reference, and every prediction. They differ for colour-blind eyes and on grey.
REFERENCE_COLOR, PREDICTION_COLOR = "#ffd43b", "#40c4ff"
#: Around the masks, where there is no scan whose head could be shown (mm).
MARGIN_MM = 20.0


def draw_case(
    reference: np.ndarray,
    predictions: Sequence[np.ndarray],
    *,
    affine: np.ndarray,
    scan: np.ndarray | None = None,
    brain: np.ndarray | None = None,
) -> Picture:
    """One row of slices for each prediction; outlines, and what is missed or too much filled.

    Parameters
    ----------
    reference : ndarray of bool, shape (X, Y, Z)
    predictions : sequence of ndarray of bool, shape (X, Y, Z)
    affine : ndarray, shape (4, 4)
    scan : ndarray, shape (X, Y, Z), optional
        Drawn below; black without it.
    brain : ndarray of bool, shape (X, Y, Z), optional
        Brain mask, for the field shown and the grey values.

    Returns
    -------
    Picture
        The scan alone, and with the outlines.
    """
    every = np.logical_or.reduce([reference, *predictions])
    field = _field(every, affine, scan, brain)
    box = bounding_box(field, margin=0)
    corner = np.eye(4)
    corner[:3, 3] = [part.start for part in box]
    place = affine @ corner

    def image(data: np.ndarray) -> nib.Nifti1Image:
        return nib.Nifti1Image(data[box].astype(np.float32), place)

    differ = np.logical_or.reduce([reference != one for one in predictions])
    layout = plan_detail(image(field), image(differ if differ.any() else every), rows=1)
    background = image(np.full(reference.shape, np.nan) if scan is None else np.nan_to_num(scan))  # NaN is black
    window = None if brain is None or not brain.any() else image(brain)
    plain = mosaic(background, layout=layout, window_mask=window or (None if scan is None else image(scan > 0)))
    rows = []
    for one in predictions:
        layers = [
            Layer(image(reference & ~one), REFERENCE_COLOR, opacity=0.35),
            Layer(image(one & ~reference), PREDICTION_COLOR, opacity=0.35),
            Layer(image(reference), REFERENCE_COLOR, outline=True),
            Layer(image(one), PREDICTION_COLOR, outline=True),
        ]
        rows.append(
            mosaic(background, layers, layout=layout, window_mask=window or (None if scan is None else image(scan > 0)))
        )
    return Picture(stack([plain] * len(rows)), stack(rows))


def stack(pictures: Sequence[bytes]) -> bytes:
    """PNG of one palette, one below the other."""
    if len(pictures) == 1:
        return pictures[0]
    images = [Image.open(io.BytesIO(picture)) for picture in pictures]
    out = Image.fromarray(np.concatenate([np.asarray(image) for image in images]), mode="P")
    palette = images[0].getpalette()
    assert palette is not None and all(image.getpalette() == palette for image in images)
    out.putpalette(palette)
    stream = io.BytesIO()
    out.save(stream, "PNG", compress_level=9)
    return stream.getvalue()


def _field(every: np.ndarray, affine: np.ndarray, scan: np.ndarray | None, brain: np.ndarray | None) -> np.ndarray:
    """What the picture shows: the brain, else the head, else the masks with a margin."""
    if brain is not None and brain.any():
        return brain | every
    if scan is not None and (scan > 0).any():
        head = scan > 0.15 * np.percentile(scan[scan > 0], 99)
        return np.asarray(ndimage.binary_opening(head) | every)
    if not every.any():
        return np.ones_like(every)
    field = np.zeros_like(every)
    margin = np.ceil(MARGIN_MM / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))).astype(int)
    field[bounding_box(every, margin=margin)] = True
    return field

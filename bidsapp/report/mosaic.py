"""Mosaics of slices as PNG, in pairs of equal size: the picture alone and with what was found drawn on it."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from scipy import ndimage

from bidsapp.report.slices import Layout, Tile, canonical, check_same_grid

#: Grey levels of a mosaic. They leave room for colours in a palette of 256, which halves the size of the file.
GREYS = 48


@dataclass(frozen=True)
class Layer:
    """Something to draw on a picture.

    Attributes
    ----------
    image : Nifti1Image
        Mask or probability (0 to 1), on the grid of the picture; drawn where above one half.
    color : str
        "#rrggbb".
    label : int, optional
        `image` is a segmentation: draw where it has this label.
    opacity : float
        Of the filling; 0 for none.
    outline : bool
        Whether to draw its border.
    """

    image: nib.Nifti1Image
    color: str
    label: int | None = None
    opacity: float = 0.0
    outline: bool = False


@dataclass(frozen=True)
class Picture:
    """Two PNG files of equal size for the report to flicker between."""

    image: bytes
    overlay: bytes


def mosaic(
    background: nib.Nifti1Image,
    layers: Sequence[Layer] = (),
    *,
    layout: Layout,
    window_mask: nib.Nifti1Image | None = None,
    panels: int = 1,
) -> bytes:
    """Draw slices of an image, in neurological orientation: the subject's left is on the left.

    Parameters
    ----------
    background : Nifti1Image
        3D, any orientation; shown along its own axes (an oblique scan is shown straight), in true proportions.
    layers : sequence of Layer
        Later ones lie on top.
    layout : Layout
        From `plan_overview` or `plan_detail` on the same grid.
    window_mask : Nifti1Image, optional
        Where to take the range of grey values from: percentiles 1 and 99.7 inside, widened a little.
    panels : int
        Copies of the brain side by side in `background`, each with its own left and right.

    Returns
    -------
    bytes
        PNG with a palette: no time stamp, no version; equal input gives equal bytes.

    Raises
    ------
    ValueError
        When the images do not share one grid.
    """
    return _paint(_shades(background, layout=layout, window_mask=window_mask, panels=panels), layers)


def pair(
    background: nib.Nifti1Image, layers: Sequence[Layer], *, layout: Layout, window_mask: nib.Nifti1Image
) -> Picture:
    """A mosaic without its layers, and with them."""
    shades = _shades(background, layout=layout, window_mask=window_mask)
    return Picture(_paint(shades, []), _paint(shades, layers))


@dataclass(frozen=True)
class _Shades:
    """The slices of an image in grey, before anything is painted on them.

    Attributes
    ----------
    background : Nifti1Image
    layout : Layout
    grey, text : ndarray
        0 to 1, shape (height, width): the slices, and what is written beside them.
    """

    background: nib.Nifti1Image
    layout: Layout
    grey: np.ndarray
    text: np.ndarray


def _shades(
    background: nib.Nifti1Image, *, layout: Layout, window_mask: nib.Nifti1Image | None, panels: int = 1
) -> _Shades:
    data, _sizes, affine = canonical(background)
    low, high = _window(data, None if window_mask is None else canonical(window_mask)[0] > 0.5)
    width, height = layout.size
    grey = np.zeros((height, width), dtype=np.float32)
    for tile in layout.tiles:
        values = _resized(data, tile, layout.box, Image.Resampling.BICUBIC)
        grey[_place(tile)] = np.clip((values - low) / (high - low), 0, 1)
    return _Shades(background, layout, grey, _texts(layout, affine, panels))


def _paint(shades: _Shades, layers: Sequence[Layer]) -> bytes:
    for layer in layers:
        check_same_grid(shades.background, layer.image)
    drawn = [replace(layer, image=None) for layer in layers]  # type: ignore[arg-type]
    volumes = {id(layer.image): canonical(layer.image)[0] for layer in layers}
    code = np.zeros(shades.grey.shape, dtype=np.uint8)
    for tile in shades.layout.tiles if layers else ():
        soft = [
            _resized(volumes[id(layer.image)], tile, shades.layout.box, Image.Resampling.BILINEAR, label=layer.label)
            for layer in layers
        ]
        code[_place(tile)] = _codes(drawn, soft, (tile.height, tile.width))
    return _png(np.maximum(shades.grey, shades.text), np.where(shades.text > 0, 0, code), drawn)


def _place(tile: Tile) -> tuple[slice, slice]:
    """Where in the picture a slice stands."""
    return slice(tile.top, tile.top + tile.height), slice(tile.left, tile.left + tile.width)


def _window(data: np.ndarray, mask: np.ndarray | None) -> tuple[float, float]:
    # Percentiles of a part of the voxels do, and every slice of a 2D scan has its say.
    part = np.s_[::2, ::2, :] if data.size > 2e6 else np.s_[...]
    values = np.asarray(data[part], dtype=np.float32)
    keep = np.isfinite(values)
    if mask is not None and mask[part].any():
        keep &= mask[part]
    if not keep.any():
        return 0.0, 1.0
    low, high = np.percentile(values[keep], (1, 99.7))
    span = max(float(high - low), 1e-6)
    return float(low) - 0.08 * span, float(high) + 0.04 * span


def _resized(
    data: np.ndarray, tile: Tile, box: np.ndarray, how: Image.Resampling, *, label: int | None = None
) -> np.ndarray:
    """The tile's slice, shape (height, width), upper row first; where it has the label, as 0 to 1, if one is given."""
    (left, right), (lower, upper) = (box[axis] for axis in range(3) if axis != tile.axis)
    plane = data[tuple(tile.index if axis == tile.axis else slice(None) for axis in range(3))][left:right, lower:upper]
    plane = np.nan_to_num(plane.astype(np.float32), posinf=0, neginf=0) if label is None else plane == label
    upright = np.ascontiguousarray(plane.T[::-1], dtype=np.float32)
    return np.asarray(Image.fromarray(upright).resize((tile.width, tile.height), how))


def _codes(layers: Sequence[Layer], soft: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Which paint each pixel gets: 0 none, 1 + 2 i the filling of layer i, 2 + 2 i its outline."""
    code = np.zeros(shape, dtype=np.uint8)
    filled = [number for number, layer in enumerate(layers) if layer.opacity > 0]
    if filled:
        stack = np.stack([soft[number] for number in filled])
        # The strongest class wins, also against "none of them": thin gaps between classes do not open.
        winner = stack.argmax(axis=0)
        code = np.where(stack.max(axis=0) > 1 - stack.sum(axis=0), 1 + 2 * np.array(filled)[winner], 0).astype(np.uint8)
    for number, layer in enumerate(layers):
        if layer.outline:
            inside = soft[number] > 0.5
            # One pixel on either side of the border: the smallest lesion keeps its inside.
            code[ndimage.binary_dilation(inside) & ~ndimage.binary_erosion(inside, border_value=1)] = 2 + 2 * number
    return code


def _texts(layout: Layout, affine: np.ndarray, panels: int) -> np.ndarray:
    """Position of every slice below it, and L and R at the first of each row; 0 to 1, shape (height, width).

    Where a slice is several panels, all have their L and R.
    """
    canvas = Image.new("L", layout.size)
    draw = ImageDraw.Draw(canvas)
    small, large = ImageFont.load_default(15), ImageFont.load_default(19)
    for tile in layout.tiles:
        draw.text(
            (tile.left + tile.width / 2, tile.top + tile.height + 2), _position(tile, layout, affine), 165, small, "ma"
        )
        if tile.axis != 0 and (tile.first_in_row or tile.axis == 1 or panels > 1):
            for left, right in itertools.pairwise(np.linspace(tile.left, tile.left + tile.width, panels + 1)):
                draw.text((left + 4, tile.top + 4), "L", 235, large, "la")
                draw.text((right - 4, tile.top + 4), "R", 235, large, "ra")
    return np.asarray(canvas, dtype=np.float32) / 255


def _position(tile: Tile, layout: Layout, affine: np.ndarray) -> str:
    """Such as "z +24": scanner mm of the middle of the slice."""
    middle = layout.box.mean(axis=1) - 0.5
    middle[tile.axis] = tile.index
    mm = float((affine @ [*middle, 1])[tile.axis])
    return f"{'xyz'[tile.axis]} {mm:+.0f}"


def _png(grey: np.ndarray, code: np.ndarray, layers: Sequence[Layer]) -> bytes:
    """Palette of `GREYS` greys, then for each paint its mixtures with the grey below it."""
    mixed = [number for number, layer in enumerate(layers) if layer.opacity > 0]
    lines = [number for number, layer in enumerate(layers) if layer.outline]
    steps = min(GREYS, (256 - GREYS - len(lines)) // len(mixed)) if mixed else 0
    index = np.round(grey * (GREYS - 1)).astype(np.uint8)
    palette = [np.repeat(np.linspace(0, 255, GREYS)[:, None], 3, axis=1)]
    start = GREYS
    for number in mixed:
        hit, opacity = code == 1 + 2 * number, layers[number].opacity
        index[hit] = start + np.round(grey[hit] * (steps - 1)).astype(np.uint8)
        ramp = np.repeat(np.linspace(0, 255, steps)[:, None], 3, axis=1)
        palette.append((1 - opacity) * ramp + opacity * _rgb(layers[number]))
        start += steps
    for number in lines:
        index[code == 2 + 2 * number] = start
        palette.append(_rgb(layers[number])[None])
        start += 1
    picture = Image.fromarray(index, mode="P")
    picture.putpalette(np.round(np.concatenate(palette)).astype(np.uint8).tobytes())
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=6)  # a third of the time of 9, for 1 % of size
    return stream.getvalue()


def _rgb(layer: Layer) -> np.ndarray:
    return np.array(ImageColor.getrgb(layer.color), dtype=float)

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

from bidsapp.labels import (
    BACKGROUND,
    CORTICAL_REGIONS,
    EXTRA_AXIAL_CSF,
    LESION,
    STRUCTURE_LESION,
    STRUCTURE_LOOKUP,
    TISSUE_LOOKUP,
    Label,
)

#: Width of every mosaic in pixels: twice that of the report's column, sharp on dense screens and in print.
WIDTH = 1400
#: Width of field (mm) that one row of tiles should show: seven brains side by side, or five larger ones for lesions.
OVERVIEW_MM, DETAIL_MM = 1050.0, 760.0
#: Lesions are looked for in pieces of this height when slices are chosen (mm).
PIECE_MM = 10.0
#: A slice shows a lesion where it has this much of what the slice with most of it has.
SEEN_SHARE = 0.5
#: Slices nearer than this to one another look alike (mm).
NEAR_MM = 3.0
#: Slices thicker than this times the finest voxel size mark a 2D scan: it is shown in its own plane.
ANISOTROPIC = 1.5
#: Grey levels of a mosaic. They leave room for colours in a palette of 256, which halves the size of the file.
GREYS = 48
#: Voxels that a mosaic can show (mm): it has 1.1 to 1.6 pixels a millimetre.
DRAWN_MM = 1.0
#: Height (px) that no tile exceeds, however few there are.
TALLEST = 420
GAP, BAR = 6, 22  # px between tiles, and below a tile for its position

BRAIN_COLOR = "#ff6b5e"
TEMPLATE_BRAIN_COLOR = "#4dd0e1"
TEMPLATE_WM_COLOR = "#ffb74d"


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


@dataclass(frozen=True)
class Tile:
    """One slice in a mosaic: across `axis` (RAS) at `index`; its place and size in pixels."""

    axis: int
    index: int
    left: int
    top: int
    width: int
    height: int
    first_in_row: bool = False


@dataclass(frozen=True)
class Layout:
    """Which slices a mosaic shows and where.

    Attributes
    ----------
    tiles : tuple of Tile
    box : ndarray of int, shape (3, 2)
        First voxel and the one after the last, along the RAS axes.
    size : (int, int)
        Width and height in pixels.
    """

    tiles: tuple[Tile, ...]
    box: np.ndarray
    size: tuple[int, int]


def coarser(img: nib.Nifti1Image) -> nib.Nifti1Image:
    """Every second voxel of half a millimetre, as far as voxels stay within `DRAWN_MM`; others as they are.

    A scan of half a millimetre has 100 million voxels, of which a picture shows none that a screen could.
    """
    steps = [max(1, int(DRAWN_MM / size + 0.01)) for size in img.header.get_zooms()[:3]]
    return img if max(steps) == 1 else img.slicer[tuple(slice(None, None, step) for step in steps)]


def draw_session(
    *,
    reference: nib.Nifti1Image,
    mask: nib.Nifti1Image,
    dseg: nib.Nifti1Image | None = None,
    structures: nib.Nifti1Image | None = None,
    cortex: nib.Nifti1Image | None = None,
    lesion: nib.Nifti1Image | None = None,
    flair: nib.Nifti1Image | None = None,
    compartments: tuple[nib.Nifti1Image, Sequence[Label]] | None = None,
    template: nib.Nifti1Image | None = None,
    template_mask: nib.Nifti1Image | None = None,
    template_wm: nib.Nifti1Image | None = None,
) -> dict[str, bytes]:
    """All pictures of a session; all images share one grid.

    Parameters
    ----------
    reference, mask : Nifti1Image
        Preprocessed reference scan with its head, and the brain mask.
    dseg : Nifti1Image, optional
        Labels of `labels.TISSUE_LOOKUP`.
    structures : Nifti1Image, optional
        Labels of `labels.STRUCTURE_LOOKUP`.
    cortex : Nifti1Image, optional
        Labels of `labels.CORTICAL_LOOKUP`.
    lesion, flair : Nifti1Image, optional
        Lesion mask, drawn on the FLAIR (on the reference without one).
    compartments : tuple, optional
        Labels of the lesions' compartments and their look-up table, drawn likewise.
    template, template_mask, template_wm : Nifti1Image, optional
        The template's T1w, brain mask and white matter (0 to 1) brought to the reference.

    Returns
    -------
    dict
        PNG by name: ``brain_image``, ``brain_overlay``, ``tissue_image`` and so on, for what was given.

    Raises
    ------
    ValueError
        When two images do not share the grid.
    """
    # Read every image once: the pictures share them.
    reference, mask = _in_memory(reference), _in_memory(mask)
    dseg, structures, cortex, lesion, flair, template, template_mask, template_wm = (
        None if img is None else _in_memory(img)
        for img in (dseg, structures, cortex, lesion, flair, template, template_mask, template_wm)
    )
    pictures = {"brain": brain_picture(reference, mask)}
    if dseg is not None:
        pictures["tissue"] = tissue_picture(reference, dseg, mask=mask)
    if structures is not None:
        pictures["structures"] = structures_picture(reference, structures, mask=mask)
    if cortex is not None:
        pictures["cortex"] = cortex_picture(reference, cortex, mask=mask)
    if lesion is not None:
        pictures["lesion"] = lesion_picture(reference if flair is None else flair, lesion, mask=mask)
    if compartments is not None:
        labels, lookup = compartments
        pictures["compartments"] = compartments_picture(
            reference if flair is None else flair, _in_memory(labels), lookup=lookup, mask=mask
        )
    if template_mask is not None:
        pictures["registration"] = registration_picture(
            reference, template_mask, mask=mask, template_wm=template_wm, template=template
        )
    return {
        f"{name}_{kind}": getattr(picture, kind) for name, picture in pictures.items() for kind in ("image", "overlay")
    }


def brain_picture(reference: nib.Nifti1Image, mask: nib.Nifti1Image) -> Picture:
    """The outline of the brain mask on the head."""
    layout = plan_overview(mask, margin_mm=12)
    layers = [Layer(mask, BRAIN_COLOR, outline=True)]
    return _pair(reference, layers, layout=layout, window_mask=mask)


def tissue_picture(reference: nib.Nifti1Image, dseg: nib.Nifti1Image, *, mask: nib.Nifti1Image) -> Picture:
    """Tissue classes as translucent colours."""
    return _pair(reference, label_layers(dseg), layout=plan_overview(mask, margin_mm=3), window_mask=mask)


def structures_picture(reference: nib.Nifti1Image, structures: nib.Nifti1Image, *, mask: nib.Nifti1Image) -> Picture:
    """Anatomical structures in FreeSurfer's colours; the fluid around the brain is left clear."""
    layers = label_layers(structures, lookup=STRUCTURE_LOOKUP, clear=(EXTRA_AXIAL_CSF,))
    return _pair(reference, layers, layout=plan_overview(mask, margin_mm=3), window_mask=mask)


def cortex_picture(reference: nib.Nifti1Image, cortex: nib.Nifti1Image, *, mask: nib.Nifti1Image) -> Picture:
    """The cortical regions in FreeSurfer's colours."""
    lookup = [label for region in CORTICAL_REGIONS for label in region.labels]
    return _pair(
        reference, label_layers(cortex, lookup=lookup), layout=plan_overview(mask, margin_mm=3), window_mask=mask
    )


def lesion_picture(flair: nib.Nifti1Image, lesion: nib.Nifti1Image, *, mask: nib.Nifti1Image) -> Picture:
    """Lesions outlined on the slices that have them."""
    layout = plan_detail(mask, lesion)
    return _pair(flair, [Layer(lesion, LESION.color, opacity=0.18, outline=True)], layout=layout, window_mask=mask)


def compartments_picture(
    background: nib.Nifti1Image, compartments: nib.Nifti1Image, *, lookup: Sequence[Label], mask: nib.Nifti1Image
) -> Picture:
    """The compartments of the lesions as translucent colours, on the slices that have most of them."""
    whole = nib.Nifti1Image((np.asanyarray(compartments.dataobj) > 0).astype(np.uint8), compartments.affine)
    return _pair(
        background,
        label_layers(compartments, lookup=lookup),
        layout=plan_detail(mask, whole),
        window_mask=mask,
    )


def registration_picture(
    subject: nib.Nifti1Image,
    template_mask: nib.Nifti1Image,
    *,
    mask: nib.Nifti1Image,
    template_wm: nib.Nifti1Image | None = None,
    template: nib.Nifti1Image | None = None,
) -> Picture:
    """Outlines of the template's brain and white matter on the template (first) and on the subject (overlay).

    Without `template` the first picture is the subject without outlines.
    """
    layers = [Layer(template_mask, TEMPLATE_BRAIN_COLOR, outline=True)]
    if template_wm is not None:
        layers.append(Layer(template_wm, TEMPLATE_WM_COLOR, outline=True))
    layout = plan_overview(mask, margin_mm=6)
    overlay = mosaic(subject, layers, layout=layout, window_mask=mask)
    if template is None:
        return Picture(mosaic(subject, layout=layout, window_mask=mask), overlay)
    return Picture(mosaic(template, layers, layout=layout, window_mask=template_mask), overlay)


def label_layers(
    dseg: nib.Nifti1Image,
    *,
    lookup: Sequence[Label] = TISSUE_LOOKUP,
    clear: tuple[int, ...] = (),
    opacity: float = 0.55,
) -> list[Layer]:
    """A translucent layer for each label of a look-up table that the segmentation has, but for those left `clear`."""
    present = np.unique(np.asanyarray(dseg.dataobj))
    return [
        Layer(dseg, label.color, label=label.index, opacity=0.9 if label in (LESION, STRUCTURE_LESION) else opacity)
        for label in lookup
        if label != BACKGROUND and label.index in present and label.index not in clear
    ]


def plan_overview(mask: nib.Nifti1Image, *, margin_mm: float) -> Layout:
    """Two rows of slices in the plane of acquisition (axial for 3D scans) and one row across the other planes."""
    data, sizes, _ = _canonical(mask)
    box = _bounding_box(data, sizes, margin_mm)
    inner = _bounding_box(data, sizes, 0)
    main = _main_axis(sizes)
    columns = _columns(box, sizes, main, OVERVIEW_MM)
    slices = _spread(inner[main], 2 * columns)
    rows = [[(main, index) for index in part] for part in np.array_split(slices, max(1, -(-len(slices) // columns)))]
    across = [axis for axis in range(3) if axis != main]
    rows.append([(axis, index) for axis in across for index in _spread(inner[axis], 3, inset=0.2)])
    return _arrange(rows, box, sizes)


def plan_detail(
    mask: nib.Nifti1Image,
    lesion: nib.Nifti1Image,
    *,
    rows: int = 2,
    then: nib.Nifti1Image | None = None,
    fill: bool = True,
) -> Layout:
    """Rows of larger slices where the lesions are, chosen so that they show as many of them as they can.

    Parameters
    ----------
    mask, lesion : Nifti1Image
    rows : int
    then : Nifti1Image, optional
        Other lesions, for the places that are left.
    fill : bool
        Whether other slices of the brain fill the rows: what was not marked matters as much. They do, too, where there
        is no lesion at all.
    """
    _same_grid(mask, lesion)
    data, sizes, _ = _canonical(mask)
    box, main = _bounding_box(data, sizes, 3), _main_axis(sizes)
    columns = _columns(box, sizes, main, DETAIL_MM)
    room = rows * columns
    slices: list[int] = []
    for image in [lesion] if then is None else [lesion, then]:
        found = np.moveaxis(_canonical(image)[0] > 0.5, main, 0).copy()
        found[: box[main, 0]] = found[box[main, 1] :] = False  # beyond the picture
        slices = _covering(found, slices, room, sizes[main])
    if fill or not slices:
        inner = _bounding_box(data, sizes, 0)[main]
        context = [int(index) for index in _spread(inner, 2 * room, inset=0.15)]  # away from the brain's two ends
        slices += [index for index in context[::2] + context[1::2] if index not in slices]
    chosen = sorted(slices[:room])
    split = np.array_split(chosen, max(1, -(-len(chosen) // columns)))
    return _arrange([[(main, index) for index in part] for part in split], box, sizes)


def _covering(lesions: np.ndarray, chosen: Sequence[int], room: int, size_mm: float) -> list[int]:
    """Slices that show most of all lesions, after those `chosen` before, up to `room` of them.

    First whole lesions: each slice is the one that shows most of those not shown yet (of as many, the largest). Then
    pieces of `PIECE_MM` of what no slice shows all of: each is the one that adds most; what lies next to a chosen slice
    looks like it, and must add much to be worth a picture.

    Parameters
    ----------
    lesions : ndarray of bool, shape (slices, :, :)
    chosen : sequence of int
    room : int
    size_mm : float
        From slice to slice.
    """
    whole, pieces = _areas(lesions, size_mm)
    out, shares = list(chosen), whole / whole.max(axis=0, initial=1)
    left = np.ones(whole.shape[1], dtype=bool)
    left[(shares[out] >= SEEN_SHARE).any(axis=0)] = False
    while len(out) < room and left.any():
        shown = (shares >= SEEN_SHARE) & left
        most = (shown * shares).sum(axis=1), shown @ whole.sum(axis=0), shown.sum(axis=1)
        out.append(int(np.lexsort(most)[-1]))
        left &= ~shown[out[-1]]
    places = size_mm * np.arange(len(lesions))
    shares = pieces / pieces.max(axis=0, initial=1)
    seen = shares[out].max(axis=0, initial=0)
    while len(out) < room:
        gain = np.maximum(shares - seen, 0).sum(axis=1)
        distance = np.abs(places[:, None] - places[out]).min(axis=1, initial=np.inf)
        gain[distance < NEAR_MM - 0.01] /= 4
        if gain.max(initial=0) <= 0.05:  # what there is has been seen
            break
        best = np.flatnonzero(gain >= gain.max() - 1e-6)
        best = best[distance[best] == distance[best].max()]
        out.append(int(best[len(best) // 2]))
        seen = np.maximum(seen, shares[out[-1]])
    return out


def _areas(lesions: np.ndarray, size_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of each lesion (26-connected), and of each piece of one, in every slice: shapes (slices, n), (slices, m).

    A lesion is parted into pieces of equal height, about `PIECE_MM`.
    """
    number, count = ndimage.label(lesions, np.ones((3, 3, 3)))
    place = np.nonzero(lesions)
    lesion = number[place] - 1
    whole = np.zeros((len(lesions), count))
    np.add.at(whole, (place[0], lesion), 1)
    first, height = (whole > 0).argmax(axis=0), (whole > 0).sum(axis=0)
    parts = np.maximum(1, np.round(height * size_mm / PIECE_MM).astype(int))
    start = np.r_[0, np.cumsum(parts)]
    piece = start[lesion] + (place[0] - first[lesion]) * parts[lesion] // height[lesion]
    pieces = np.zeros((len(lesions), start[-1]))
    np.add.at(pieces, (place[0], piece), 1)
    return whole, pieces


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
    data, _sizes, affine = _canonical(background)
    low, high = _window(data, None if window_mask is None else _canonical(window_mask)[0] > 0.5)
    width, height = layout.size
    grey = np.zeros((height, width), dtype=np.float32)
    for tile in layout.tiles:
        values = _resized(data, tile, layout.box, Image.Resampling.BICUBIC)
        grey[_place(tile)] = np.clip((values - low) / (high - low), 0, 1)
    return _Shades(background, layout, grey, _texts(layout, affine, panels))


def _paint(shades: _Shades, layers: Sequence[Layer]) -> bytes:
    for layer in layers:
        _same_grid(shades.background, layer.image)
    drawn = [replace(layer, image=None) for layer in layers]  # type: ignore[arg-type]
    volumes = {id(layer.image): _canonical(layer.image)[0] for layer in layers}
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


def _pair(
    background: nib.Nifti1Image, layers: Sequence[Layer], *, layout: Layout, window_mask: nib.Nifti1Image
) -> Picture:
    shades = _shades(background, layout=layout, window_mask=window_mask)
    return Picture(_paint(shades, []), _paint(shades, layers))


def _in_memory(img: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.as_closest_canonical(nib.Nifti1Image(np.asanyarray(img.dataobj), img.affine))


def _canonical(img: nib.Nifti1Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels (X, Y, Z) along the axes nearest to RAS, voxel sizes in mm, affine."""
    if len(img.shape) != 3:
        raise ValueError(f"A picture needs a 3D image, not one of shape {img.shape}.")
    near = nib.as_closest_canonical(img)
    return np.asanyarray(near.dataobj), np.asarray(nib.affines.voxel_sizes(near.affine)), near.affine


def _same_grid(one: nib.Nifti1Image, other: nib.Nifti1Image) -> None:
    if one.shape != other.shape or not np.allclose(one.affine, other.affine, atol=1e-2):
        raise ValueError(f"Two images of one picture lie on different grids: {one.shape} and {other.shape}.")


def _main_axis(sizes: np.ndarray) -> int:
    return int(np.argmax(sizes)) if sizes.max() > ANISOTROPIC * sizes.min() else 2


def _bounding_box(mask: np.ndarray, sizes: np.ndarray, margin_mm: float) -> np.ndarray:
    """First voxel and the one after the last, shape (3, 2); the whole field of view where the mask is empty."""
    box = np.empty((3, 2), dtype=int)
    for axis in range(3):
        hit = np.flatnonzero((mask > 0.5).any(axis=tuple(other for other in range(3) if other != axis)))
        margin = round(margin_mm / sizes[axis])
        first, after = (hit[0] - margin, hit[-1] + 1 + margin) if len(hit) else (0, mask.shape[axis])
        box[axis] = max(0, first), min(mask.shape[axis], after)
    return box


def _columns(box: np.ndarray, sizes: np.ndarray, axis: int, field_mm: float) -> int:
    across = next(other for other in range(3) if other != axis)
    return max(2, round(field_mm / ((box[across, 1] - box[across, 0]) * sizes[across])))


def _spread(span: np.ndarray, count: int, *, inset: float = 0.06) -> np.ndarray:
    """Up to `count` different slices, evenly over a span (first, after last) without its ends."""
    first, last = span[0], span[1] - 1
    edge = inset * (last - first)
    return np.unique(np.round(np.linspace(first + edge, last - edge, count)).astype(int))


def _arrange(rows: Sequence[Sequence[tuple[int, int]]], box: np.ndarray, sizes: np.ndarray) -> Layout:
    """Place rows of (axis, index): one scale for all, every row spread over the width."""
    extent = (box[:, 1] - box[:, 0]) * sizes
    planes = {axis: [other for other in range(3) if other != axis] for axis in range(3)}
    rows = [row for row in rows if len(row)]
    wide = [sum(extent[planes[axis][0]] for axis, _ in row) for row in rows]
    scale = min((WIDTH - GAP * len(row)) / mm for mm, row in zip(wide, rows, strict=True))
    scale = min(scale, TALLEST / max(extent[planes[axis][1]] for row in rows for axis, _ in row))
    tiles: list[Tile] = []
    top = 0
    for row, mm in zip(rows, wide, strict=True):
        space = (WIDTH - mm * scale) / len(row)
        left = space / 2
        bottom = 0
        for number, (axis, index) in enumerate(row):
            width, height = (max(1, int(extent[across] * scale)) for across in planes[axis])
            tiles.append(Tile(axis, int(index), int(left), top, width, height, number == 0))
            left += extent[planes[axis][0]] * scale + space
            bottom = max(bottom, top + height)
        top = bottom + BAR
    return Layout(tuple(tiles), box, (WIDTH, top))


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

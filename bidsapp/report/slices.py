"""Which slices of a brain a mosaic shows, and where they stand in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

from bidsapp.image.grid import bounding_box

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
#: Height (px) that no tile exceeds, however few there are.
TALLEST = 420
GAP, BAR = 6, 22  # px between tiles, and below a tile for its position


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


def plan_overview(mask: nib.Nifti1Image, *, margin_mm: float) -> Layout:
    """Two rows of slices in the plane of acquisition (axial for 3D scans) and one row across the other planes."""
    data, sizes, _ = canonical(mask)
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
    check_same_grid(mask, lesion)
    data, sizes, _ = canonical(mask)
    box, main = _bounding_box(data, sizes, 3), _main_axis(sizes)
    columns = _columns(box, sizes, main, DETAIL_MM)
    room = rows * columns
    slices: list[int] = []
    for image in [lesion] if then is None else [lesion, then]:
        found = np.moveaxis(canonical(image)[0] > 0.5, main, 0).copy()
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


def _main_axis(sizes: np.ndarray) -> int:
    return int(np.argmax(sizes)) if sizes.max() > ANISOTROPIC * sizes.min() else 2


def _bounding_box(mask: np.ndarray, sizes: np.ndarray, margin_mm: float) -> np.ndarray:
    """First voxel and the one after the last, shape (3, 2); the whole field of view where the mask is empty."""
    inside = mask > 0.5
    if not inside.any():
        return np.array([(0, length) for length in mask.shape])
    sides = bounding_box(inside, margin=[round(margin_mm / size) for size in sizes])
    return np.array([(side.start, side.stop) for side in sides])


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


def canonical(img: nib.Nifti1Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels (X, Y, Z) along the axes nearest to RAS, voxel sizes in mm, affine."""
    if len(img.shape) != 3:
        raise ValueError(f"A picture needs a 3D image, not one of shape {img.shape}.")
    near = nib.as_closest_canonical(img)
    return np.asanyarray(near.dataobj), np.asarray(nib.affines.voxel_sizes(near.affine)), near.affine


def check_same_grid(one: nib.Nifti1Image, other: nib.Nifti1Image) -> None:
    """Raises ValueError where two images of one picture lie on different grids."""
    if one.shape != other.shape or not np.allclose(one.affine, other.affine, atol=1e-2):
        raise ValueError(f"Two images of one picture lie on different grids: {one.shape} and {other.shape}.")

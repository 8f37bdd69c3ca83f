"""The grids: native, work (near-RAS axes, about 1 mm) and the way between them."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

WORK_VOXEL_SIZE_MM = 1.0
#: A scan whose voxel sizes all lie within this range is only reordered: interpolation would cost more than it gives.
KEPT_VOXEL_SIZE_MM = (0.9, 1.1)
#: Voxels of the edge repeated around a scan, so that its splines end as if it went on (as scipy does).
SPLINE_MARGIN = 12
#: Voxels by which labels and masks are moved on their way to another grid. A slice of 2 or 4 mm is often half one label
#: and half the other: neither the label's number may decide, nor may such a slice always belong to the mask.
TIE_BREAK = 1e-3


def work_image(scan: nib.Nifti1Image) -> nib.Nifti1Image:
    """Bring a scan onto its work grid: own axes in the nearest RAS order, about 1 mm isotropic.

    Parameters
    ----------
    scan : Nifti1Image
        3D, any orientation, any voxel size.

    Returns
    -------
    Nifti1Image
        float32. Finer axes are low-pass filtered first (Gaussian of half the ratio of voxel sizes), coarser ones
        interpolated by cubic splines and kept within the range of the scan (splines overshoot at the scalp).
    """
    canonical = nib.as_closest_canonical(scan)
    data = np.asanyarray(canonical.dataobj, dtype=np.float32)
    zooms = voxel_sizes(canonical.affine)
    low, high = KEPT_VOXEL_SIZE_MM
    if zooms.min() >= low and zooms.max() <= high:
        return _with_affine(data, canonical.affine)
    scale = WORK_VOXEL_SIZE_MM / zooms  # native voxels per work voxel
    smooth = antialias(data, scale)
    shape = tuple(int(n) for n in np.maximum(1, np.round(np.array(data.shape) / scale)))
    # Voxel edges, not centres, coincide: the field of view stays where it was.
    offset = (scale - 1) / 2
    # As scipy's affine_transform with mode "nearest"; an axis after the other it takes a quarter of the time.
    beyond = np.pad(smooth, SPLINE_MARGIN, mode="edge")
    coefficients = ndimage.spline_filter(beyond, order=3, output=np.float32, mode="nearest")
    sides = zip(coefficients.shape, shape, scale, offset + SPLINE_MARGIN, strict=True)
    out = along_axes(coefficients, [_cubic_weights(*side) for side in sides])
    affine = canonical.affine @ _scaling(scale, offset)
    return _with_affine(np.clip(out, data.min(), data.max()), affine)


def _cubic_weights(n_from: int, n_to: int, step: float, start: float) -> np.ndarray:
    """Rows: the cubic B-splines of an axis' coefficients at ``start + step * index`` (Unser 1999, IEEE SPM 16:22)."""
    distance = np.abs(start + step * np.arange(n_to)[:, None] - np.arange(n_from))
    near = 2 / 3 - distance**2 + distance**3 / 2
    return np.where(distance < 1, near, np.clip(2 - distance, 0, None) ** 3 / 6)


def antialias(data: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Gaussian low-pass before sampling every `scale`-th voxel along each axis (nothing where scale <= 1)."""
    sigma = np.where(scale > 1, scale / 2, 0)
    return ndimage.gaussian_filter(data, sigma, truncate=2.5) if sigma.any() else data


def average_onto(img: nib.Nifti1Image, grid: nib.Nifti1Image) -> nib.Nifti1Image:
    """Carry a map from the work grid to a grid with the same axes, averaging over each target voxel.

    Partial volume is respected: a probability on a 4 mm slice is the mean of the 1 mm slices it covers.

    Parameters
    ----------
    img : Nifti1Image
        3D map on the work grid.
    grid : Nifti1Image
        Target; its axes are a permutation or reflection of those of `img` (a scan and its own work grid).

    Returns
    -------
    Nifti1Image
        float32, on the exact affine of `grid`.
    """
    axes, weights = _weights(img, grid)
    out = along_axes(np.transpose(np.asanyarray(img.dataobj, dtype=np.float32), axes), weights)
    return _with_affine(out, grid.affine, like=grid)


def mask_onto(mask: nib.Nifti1Image, grid: nib.Nifti1Image) -> np.ndarray:
    """Carry a mask from the work grid to a grid with the same axes (as in `average_onto`): what it covers by half.

    Parameters
    ----------
    mask, grid : Nifti1Image
        The mask is 0 and 1, or has the share that is covered of each voxel.

    Returns
    -------
    ndarray of bool
    """
    axes, weights = _weights(mask, grid, moved=TIE_BREAK)
    shares = np.asanyarray(mask.dataobj, dtype=np.float32)
    return along_axes(np.transpose(shares, axes), weights) >= 0.5


def labels_onto(labels: nib.Nifti1Image, grid: nib.Nifti1Image, *, background: bool = True) -> nib.Nifti1Image:
    """Carry a label map from the work grid to a grid with the same axes: each voxel gets what covers most of it.

    Parameters
    ----------
    labels : Nifti1Image
        3D, integers, 0 for none.
    grid : Nifti1Image
        As in `average_onto`.
    background : bool
        Whether 0 counts as a label; not where a mask tells what belongs to the labels, whichever they are.

    Returns
    -------
    Nifti1Image
        In the type of `labels`, on the exact affine of `grid`.
    """
    axes, weights = _weights(labels, grid, moved=TIE_BREAK)
    data = np.transpose(np.asanyarray(labels.dataobj), axes)
    best, out = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, data.dtype)
    if background:
        best = 1 - along_axes(data > 0, weights)
    for value, source in enumerate(ndimage.find_objects(data.astype(np.int32)), start=1):
        if source is None:
            continue
        # Only where the label is: most structures are small, and there are dozens of them.
        rows = [w[:, s] for w, s in zip(weights, source, strict=True)]
        sink = tuple(_span(np.any(w, axis=1)) for w in rows)
        share = along_axes(data[source] == value, [w[s] for w, s in zip(rows, sink, strict=True)])
        wins = share > best[sink]
        best[sink][wins], out[sink][wins] = share[wins], value
    return on_grid(out, grid)


def block_affine(size: int) -> np.ndarray:
    """Voxel of a grid `size` times as coarse -> voxel of the fine grid; the outer edges coincide at the first voxel."""
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = (size - 1) / 2
    return affine


def block_mean(data: np.ndarray, size: int) -> np.ndarray:
    """Mean over blocks of size^3 voxels of the first three axes, the far edge padded with zeros."""
    pad = [(0, -n % size) for n in data.shape[:3]] + [(0, 0)] * (data.ndim - 3)
    data = np.pad(data, pad)
    for axis in range(3):
        shape = (*data.shape[:axis], data.shape[axis] // size, size, *data.shape[axis + 1 :])
        data = data.reshape(shape).mean(axis=axis + 1)
    return data.astype(np.float32)


def along_axes(data: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """Weighted sums along one axis after the other, float32; `weights` hold a (target, source) matrix per axis."""
    whole = np.zeros((*(len(matrix) for matrix in weights), *data.shape[len(weights) :]), np.float32)
    if not data.any():
        return whole
    # Only where something is: of a map of the brain, a third of the head.
    source = bounding_box(data, margin=0)[: len(weights)]
    rows = [matrix[:, side].astype(np.float32) for matrix, side in zip(weights, source, strict=True)]
    sink = tuple(_span(np.any(matrix, axis=1)) for matrix in rows)
    out = data[source].astype(np.float32)
    for axis, (matrix, side) in enumerate(zip(rows, sink, strict=True)):
        out = np.moveaxis(np.tensordot(matrix[side], out, axes=(1, axis)), 0, axis)
    whole[sink] = out
    return whole


def _span(present: np.ndarray) -> slice:
    where = np.flatnonzero(present)
    return slice(int(where[0]), int(where[-1]) + 1) if len(where) else slice(0, 0)


def _weights(img: nib.Nifti1Image, grid: nib.Nifti1Image, *, moved: float = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """Axis of `img` for each axis of `grid`, and the weights along it; `moved` by so many voxels of `img`."""
    to_img = np.linalg.inv(img.affine) @ grid.affine  # grid voxel -> img voxel
    axes = np.abs(to_img[:3, :3]).argmax(axis=0)
    return axes, [
        _axis_weights(img.shape[axis], n, step=to_img[axis, side], start=to_img[axis, 3] + moved)
        for side, (axis, n) in enumerate(zip(axes, grid.shape, strict=True))
    ]


def _axis_weights(n_from: int, n_to: int, *, step: float, start: float) -> np.ndarray:
    """Rows: how much each source voxel of an axis gives to a target voxel centred at ``start + step * index``.

    Coarser targets take the mean of what they cover, finer ones interpolate between two source voxels. Where the
    source ends within a target voxel, what there is of it counts as the whole.
    """
    centres = start + step * np.arange(n_to)[:, None]
    source = np.arange(n_from)[None, :]
    width = max(abs(step), 1.0)
    # Overlap of [centre - width/2, centre + width/2] with the source voxel; for width 1 that is linear interpolation.
    low = np.maximum(centres - width / 2, source - 0.5)
    high = np.minimum(centres + width / 2, source + 0.5)
    overlap = np.clip(high - low, 0, None)
    return (overlap / np.maximum(overlap.sum(axis=1, keepdims=True), 1e-6)).astype(np.float32)


def on_grid(data: np.ndarray, grid: nib.Nifti1Image) -> nib.Nifti1Image:
    """`data` as an image with the exact affine and codes of `grid`, in the data's own type (bool as uint8)."""
    return _with_affine(data.astype(np.uint8) if data.dtype == bool else data, grid.affine, like=grid)


def whole(part: nib.Nifti1Image, grid: nib.Nifti1Image) -> nib.Nifti1Image:
    """An image of a box of a grid (``grid.slicer[box]``) on all of that grid: 0 outside the box."""
    if part.shape[:3] == grid.shape[:3]:
        return part
    start = np.round(np.linalg.inv(grid.affine) @ part.affine[:, 3])[:3].astype(int)
    box = tuple(slice(first, first + n) for first, n in zip(start, part.shape[:3], strict=True))
    data = np.asanyarray(part.dataobj)
    out = np.zeros((*grid.shape[:3], *part.shape[3:]), data.dtype)
    out[box] = data
    return _with_affine(out, grid.affine, like=grid)


def bounding_box(mask: np.ndarray, *, margin: int | Sequence[int]) -> tuple[slice, ...]:
    """The box of what is not 0 in a volume, and `margin` voxels (of every axis) around it as far as the volume goes.

    Something must be in it.
    """
    margins = [margin] * mask.ndim if isinstance(margin, int) else margin
    ranges = [
        np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))) for axis in range(mask.ndim)
    ]
    return tuple(
        slice(max(0, int(seen[0]) - around), min(size, int(seen[-1]) + 1 + around))
        for seen, size, around in zip(ranges, mask.shape, margins, strict=True)
    )


def _scaling(scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    matrix = np.diag([*scale, 1.0])
    matrix[:3, 3] = offset
    return matrix


def _with_affine(data: np.ndarray, affine: np.ndarray, like: nib.Nifti1Image | None = None) -> nib.Nifti1Image:
    out = nib.Nifti1Image(data, affine)
    sform_code = int(like.header["sform_code"]) if like is not None else 1
    qform_code = int(like.header["qform_code"]) if like is not None else 1
    out.set_sform(affine, sform_code or 1)
    out.set_qform(affine, qform_code or 1)
    out.header.set_xyzt_units("mm")
    return out

"""Resampling: images pulled onto grids through matrices and displacement fields, and what fields do to space."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from bidsapp.image.grid import along_axes, antialias, bounding_box, on_grid
from bidsapp.image.itk import displacement_field, displacements, shift

#: Axes are parallel where their direction cosines differ by less, 0.001 voxels over a thousand: interpolation is then
#: separable, an axis after the other, and several times as fast.
PARALLEL = 1e-6
#: The field of view ends at the voxels' edges, not at their centres (and rounding is no reason to leave it).
EDGE = 0.5 + 1e-3
ORDERS = {"nearest": 0, "linear": 1, "bspline": 3}

Transform = np.ndarray | nib.Nifti1Image


def resample(
    img: nib.Nifti1Image,
    grid: nib.Nifti1Image,
    *,
    transform: Transform | Sequence[Transform] | None = None,
    interpolation: str = "linear",
) -> nib.Nifti1Image:
    """Pull an image onto a grid.

    Parameters
    ----------
    img : Nifti1Image
        3D, or 4D (each volume alike).
    grid : Nifti1Image
        Its first three axes and affine are those of the result.
    transform : ndarray (4, 4) or displacement field or sequence of these, optional
        Maps grid points to image points. Of a sequence, the *first* is applied first to the grid's points, as in the
        list of ``antsApplyTransforms -t first -t second``. None: the headers alone.
    interpolation : {"nearest", "linear", "bspline"}
        "bspline" is cubic, and kept within the range of `img`.

    Returns
    -------
    Nifti1Image
        On the exact affine of `grid`, 0 outside the field of view of `img`. The type of `img` with "nearest", else
        float32.

    Raises
    ------
    ValueError
        Unknown interpolation, or a transform that is neither a 4x4 matrix nor a displacement field.
    """
    return Resampler(grid, transform)(img, interpolation=interpolation)


def field_of_view(img: nib.Nifti1Image, grid: nib.Nifti1Image, transform: Transform) -> np.ndarray:
    """Which points of a grid a transform brings into an image: where `resample` finds something to read.

    Parameters
    ----------
    img, grid, transform
        As in `resample`; the voxels of `img` are not read.

    Returns
    -------
    ndarray of bool
        Shape of the grid.
    """
    shape = grid.shape[:3]
    seen = np.ones(shape, bool)
    for beyond in _beyond(img.shape[:3], _points(grid, [transform]).moved(np.linalg.inv(img.affine)), shape):
        seen[beyond] = False
    return seen


def compose(grid: nib.Nifti1Image, transforms: list[Transform]) -> nib.Nifti1Image:
    """One displacement field on `grid` for a sequence of transforms."""
    shape = grid.shape[:3]
    end = _points(grid, transforms).moved(np.eye(4))
    start = _Points(np.asarray(grid.affine, dtype=float))
    shift = [end.coordinate(axis, shape) - start.coordinate(axis, shape) for axis in range(3)]
    return displacement_field(np.stack(shift, axis=-1), grid.affine)


def jacobian_determinant(field: nib.Nifti1Image) -> np.ndarray:
    """How many times larger the space around each point is where a displacement field carries it to.

    Parameters
    ----------
    field : Nifti1Image
        ITK displacement field.

    Returns
    -------
    ndarray of float32, shape (X, Y, Z)
        Determinant of the Jacobian of x + u(x), on the field's grid; differences are central, one-sided at the rim.
    """
    shift = displacements(field)
    by_voxel = np.stack([np.stack(np.gradient(shift[..., axis]), axis=-1) for axis in range(3)], axis=-2)
    return np.linalg.det(by_voxel @ np.linalg.inv(field.affine[:3, :3]) + np.eye(3)).astype(np.float32)


def coarsen(img: nib.Nifti1Image, size_mm: float) -> nib.Nifti1Image:
    """The image at `size_mm` along each of its own axes, low-pass filtered first; axes coarser than that stay."""
    data = np.asarray(img.dataobj, dtype=np.float32)
    scale = np.maximum(1, size_mm / voxel_sizes(img.affine))  # voxels per new voxel
    shape = np.maximum(1, np.round(np.array(data.shape) / scale)).astype(int)
    step = np.diag([*scale, 1.0])
    step[:3, 3] = (scale - 1) / 2
    grid = nib.Nifti1Image(np.empty(tuple(shape), dtype=np.uint8), img.affine @ step)
    return resample(nib.Nifti1Image(antialias(data, scale), img.affine), grid)


def crop(img: nib.Nifti1Image, *, margin: int) -> nib.Nifti1Image:
    """The bounding box of what is not 0, and a margin (voxels) as far as the field of view goes."""
    data = np.asarray(img.dataobj)
    box = bounding_box(data, margin=margin)
    return nib.Nifti1Image(data[box], img.affine @ shift(np.array([side.start for side in box])))


class Resampler:
    """`resample` for several images: the grid's points are carried through the transform once.

    Parameters
    ----------
    grid, transform
        As in `resample`.
    """

    def __init__(self, grid: nib.Nifti1Image, transform: Transform | Sequence[Transform] | None = None) -> None:
        self.grid = grid
        self._points = _points(grid, _as_list(transform))
        self._where: np.ndarray | None = None
        self._in_image: tuple[np.ndarray, _Points] | None = None  # affine of an image, and the points in its voxels

    def only(self, where: np.ndarray) -> Resampler:
        """The same, but read only where `where` (bool, shape of the grid) is true; 0 elsewhere, and faster."""
        other = copy.copy(self)
        other._where, other._in_image = where, None
        return other

    def __call__(self, img: nib.Nifti1Image, *, interpolation: str = "linear") -> nib.Nifti1Image:
        """One image, as in `resample`."""
        if interpolation not in ORDERS:
            raise ValueError(f"Unknown interpolation {interpolation!r}; known are {', '.join(ORDERS)}.")
        order = ORDERS[interpolation]
        data = np.asarray(img.dataobj)
        data = data if order == 0 else data.astype(np.float32, copy=False)
        if data.ndim == 3:
            return on_grid(self._pull(data, img.affine, order), self.grid)
        return on_grid(
            np.stack([self._pull(data[..., i], img.affine, order) for i in range(data.shape[-1])], axis=-1), self.grid
        )

    def _pull(self, data: np.ndarray, affine: np.ndarray, order: int) -> np.ndarray:
        shape = self.grid.shape[:3]
        if self._in_image is None or not np.array_equal(self._in_image[0], affine):
            self._in_image = (affine, self._points.moved(np.linalg.inv(affine), only=self._where))
        out = _pull(data, self._in_image[1], shape, order)
        if self._where is None:
            return out
        whole = np.zeros(shape, out.dtype)
        whole[self._where] = out
        return whole


# ---- grid points carried through the transforms, then values read there


@dataclass(frozen=True)
class _Points:
    """Points of a grid after some transforms: ``matrix`` of the voxel indices or, after a deformation, an array."""

    matrix: np.ndarray
    array: np.ndarray | None = None  # (3, i, j, k), or (3, N) for some of the points

    def moved(self, matrix: np.ndarray, *, only: np.ndarray | None = None) -> _Points:
        """All of them, or those of the voxels in a mask alone."""
        if self.array is None:
            moved = _Points(matrix @ self.matrix)
            return moved if only is None else moved._at(only)
        points = self.array if only is None else self.array[:, only]
        moved_array = np.tensordot(matrix[:3, :3].astype(np.float32), points, axes=1)
        moved_array += matrix[:3, 3].astype(np.float32).reshape(3, *[1] * (points.ndim - 1))
        return _Points(self.matrix, moved_array)

    def coordinate(self, axis: int, shape: tuple[int, ...]) -> np.ndarray:
        """One coordinate of every point, broadcast from the three index axes where that suffices."""
        if self.array is not None:
            return self.array[axis]
        i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
        row = self.matrix[axis]
        return (row[0] * i + row[3]) + row[1] * j + row[2] * k  # added up as scipy does: same bits

    def _at(self, where: np.ndarray) -> _Points:
        some = [np.broadcast_to(self.coordinate(axis, where.shape), where.shape)[where] for axis in range(3)]
        return _Points(self.matrix, np.stack(some))


def _as_list(transform: Transform | Sequence[Transform] | None) -> list[Transform]:
    if transform is None:
        return []
    return [transform] if isinstance(transform, (np.ndarray, nib.Nifti1Image)) else list(transform)


def _points(grid: nib.Nifti1Image, transforms: list[Transform]) -> _Points:
    """Where (RAS mm) the transforms take every point of `grid`."""
    shape = grid.shape[:3]
    points = _Points(np.asarray(grid.affine, dtype=float))
    for transform in transforms:
        if isinstance(transform, np.ndarray):
            if transform.shape != (4, 4):
                raise ValueError(f"A matrix transform is 4x4, not {transform.shape}.")
            points = points.moved(transform)
            continue
        field = displacements(transform)
        at = points.moved(np.linalg.inv(transform.affine))
        moved = np.empty((3, *shape), np.float32)
        # Beyond its grid the field keeps its last value: a jump to zero would tear the image at the rim.
        for axis in range(3):
            shift = _interpolate(field[..., axis], at, shape, 1)
            np.add(points.coordinate(axis, shape), shift, out=moved[axis], casting="same_kind")
        points = _Points(np.eye(4), moved)
    return points


def _interpolate(data: np.ndarray, points: _Points, shape: tuple[int, ...], order: int) -> np.ndarray:
    output = data.dtype if order == 0 else np.float32
    if points.array is not None:
        return ndimage.map_coordinates(data, points.array, order=order, mode="nearest", output=output)
    matrix, offset = points.matrix[:3, :3], points.matrix[:3, 3]
    if order == 1 and np.abs(matrix - np.diag(np.diag(matrix))).max() < PARALLEL:
        steps = zip(data.shape, shape, np.diag(matrix), offset, strict=True)
        return along_axes(data, [_linear_weights(*step) for step in steps])
    return ndimage.affine_transform(
        data,
        matrix,
        offset=offset,
        output_shape=shape,
        order=order,
        mode="nearest",
        output=output,
    )


def _linear_weights(n_from: int, n_to: int, step: float, start: float) -> np.ndarray:
    """Rows: what each voxel of an axis gives to a point at ``start + step * index``; beyond the ends, the last one."""
    at = start + step * np.arange(n_to)
    return np.stack([np.interp(at, np.arange(n_from), one) for one in np.eye(n_from)], axis=1)


def _pull(data: np.ndarray, points: _Points, shape: tuple[int, ...], order: int) -> np.ndarray:
    if points.array is not None and order < 2:
        return _read(data, points.array, order)
    out = _interpolate(data, points, shape, order)
    if order > 1:
        out = np.clip(out, data.min(), data.max())
    for beyond in _beyond(data.shape, points, shape):
        out[beyond] = 0
    return out


def _beyond(size: tuple[int, ...], points: _Points, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Along each axis of an image of this size: the points that lie outside it."""
    for axis, length in enumerate(size):
        coordinate = points.coordinate(axis, shape)
        yield (coordinate < -EDGE) | (coordinate > length - 1 + EDGE)


def _read(data: np.ndarray, points: np.ndarray, order: int) -> np.ndarray:
    """`_pull` at points (3, ...) for nearest and linear interpolation: read only where the image is not 0."""
    out = np.zeros(points.shape[1:], data.dtype if order == 0 else np.float32)
    if not data.any():
        return out
    some = np.ones(out.shape, bool)
    for coordinate, side, size in zip(points, bounding_box(data, margin=1), data.shape, strict=True):
        some &= coordinate >= (side.start if side.start > 0 else -EDGE)
        some &= coordinate <= (side.stop - 1 if side.stop < size else size - 1 + EDGE)
    out[some] = ndimage.map_coordinates(data, points[:, some], order=order, mode="nearest", output=out.dtype)
    return out

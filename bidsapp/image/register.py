"""Registration: between the contrasts of a session (rigid), to the template (affine and SyN), and resampling."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

from bidsapp.image.grid import along_axes, antialias, bounding_box, on_grid
from bidsapp.image.itk import (
    Stage,
    ants_registration,
    displacement_field,
    displacements,
    read_itk_affine,
    shift,
    write_itk_affine,
)
from bidsapp.image.template import load_template, render_template

__all__ = [
    "Resampler",
    "TemplateRegistration",
    "field_of_view",
    "jacobian_determinant",
    "read_itk_affine",
    "register_rigid",
    "register_template",
    "resample",
    "write_itk_affine",
]

REGISTRATION_VOXEL_SIZE_MM = 2.0
SEARCH_VOXEL_SIZE_MM = 6.0
#: Voxels around the brain: background tells a linear registration of its size, and a deformation can fade out.
FIXED_MARGIN = 5
#: The same for the deformation to the template, whose time goes with the voxels.
SYN_MARGIN = 3
#: No rigid stage before: the start is near enough (heads turned by up to 35 degrees ended within 0.4 mm of each other
#: with and without). At 2 mm a twentieth of the voxels tells as much of twelve parameters as a quarter does.
LINEAR = [
    Stage("Affine[0.1]", "Mattes", "32,Regular,0.25", "60", "2", "1"),
    Stage("Affine[0.1]", "Mattes", "32,Regular,0.05", "10", "1", "0"),
]
#: Chosen on real scans: Mattes at 2 mm carries the priors better, and in a fifth of the time, than cross-correlation.
#: Twelve and three steps of 0.6 on all voxels come further than twelve and four of 0.5 on half of them; these as far
#: as thirty and six of 0.25 (docs/speed.md).
SYN = Stage("SyN[0.6,3,0]", "Mattes", "32,None", "12x3", "2x1", "1x0")
#: Axes are parallel where their direction cosines differ by less, 0.001 voxels over a thousand: interpolation is then
#: separable, an axis after the other, and several times as fast.
PARALLEL = 1e-6
#: The field of view ends at the voxels' edges, not at their centres (and rounding is no reason to leave it).
EDGE = 0.5 + 1e-3
ORDERS = {"nearest": 0, "linear": 1, "bspline": 3}

Transform = np.ndarray | nib.Nifti1Image


@dataclass(frozen=True)
class TemplateRegistration:
    """A subject's brain registered to the template.

    Attributes
    ----------
    affine : ndarray, shape (4, 4)
        Template point -> subject point, RAS mm, without the deformation. Its determinant is the volume of the
        subject's head relative to the template's.
    to_template : Nifti1Image
        Composite displacement field (affine and deformation) on the template's grid at 2 mm, ITK convention: pulls
        subject images onto the template.
    to_subject : Nifti1Image
        Its inverse on the subject's grid at 2 mm: pulls template images onto the subject.
    similarity : float
        Pearson correlation of the template, rendered in the subject's contrast, and the subject carried onto it, 4 mm
        or more below the surface of the template's brain (within the subject's field of view). Measured on real scans
        (14 when right): 0.66-0.80 (T1w), 0.51-0.66 (FLAIR) and 0.66 (T2w), 0.43 with a tumor and contrast agent; at
        most 0.35 where the head lay back to front.
    """

    affine: np.ndarray
    to_template: nib.Nifti1Image
    to_subject: nib.Nifti1Image
    similarity: float


def register_rigid(
    moving: nib.Nifti1Image,
    fixed: nib.Nifti1Image,
    *,
    fixed_mask: nib.Nifti1Image | None = None,
) -> np.ndarray:
    """Register two scans of one head, of any contrasts, by Mattes mutual information at 4 and 2 mm.

    Parameters
    ----------
    moving, fixed : Nifti1Image
        3D; field of view and voxel size may differ, thick slices are fine, whole head or brain alone.
    fixed_mask : Nifti1Image, optional
        Brain mask on the grid of `fixed`; the metric is then taken in the brain and 8 mm around it.

    Returns
    -------
    ndarray, shape (4, 4)
        RAS mm: maps points of fixed space to points of moving space (what `resample` takes to bring `moving` onto
        `fixed`).

    Notes
    -----
    Starts from the headers or, where these fit worse, from the centres of mass.
    """
    fixed_small, moving_small = (coarsen(img, REGISTRATION_VOXEL_SIZE_MM) for img in (fixed, moving))
    mask = None if fixed_mask is None else near_mask(fixed_mask, fixed_small)
    start = _rigid_start(moving_small, fixed_small, mask)
    center = center_of_mass(fixed_small)
    stage = Stage("Rigid[0.1]", "Mattes", "32,Regular,0.25", "60x30", "2x1", "1x0")
    matrix, _, _ = ants_registration(
        moving_small, fixed_small, start=start, center=center, stages=[stage], fixed_mask=mask
    )
    return matrix


def register_template(img: nib.Nifti1Image, mask: nib.Nifti1Image, *, contrast: str) -> TemplateRegistration:
    """Register a brain to the template rendered in the same contrast: affine, then SyN, at 2 mm.

    SyN: Avants et al. 2008, Medical Image Analysis 12:26; metric: mutual information (Mattes et al. 2003, IEEE TMI
    22:120).

    Parameters
    ----------
    img : Nifti1Image
        3D, bias-corrected, on the work grid.
    mask : Nifti1Image
        Brain mask on the same grid.
    contrast : {"T1w", "T2w", "FLAIR"}

    Returns
    -------
    TemplateRegistration

    Raises
    ------
    ValueError
        Unknown contrast, empty mask, or grids that differ.
    """
    inside = np.asarray(mask.dataobj) > 0
    if inside.shape != img.shape:
        raise ValueError(f"Image and mask differ in shape: {img.shape} and {inside.shape}.")
    if not inside.any():
        raise ValueError("The brain mask is empty: there is nothing to register to the template.")
    brain = on_grid(clip_intensities(np.asarray(img.dataobj, dtype=np.float32), inside), img)
    moving = coarsen(brain, REGISTRATION_VOXEL_SIZE_MM)
    fixed = render_template(contrast, resolution_mm=2)
    affine, _, _ = ants_registration(
        crop(moving, margin=FIXED_MARGIN),
        crop(fixed, margin=FIXED_MARGIN),
        start=_similarity_start(moving, fixed),
        center=center_of_mass(fixed),
        stages=LINEAR,
    )
    warp, inverse_warp = deform(moving, crop(fixed, margin=SYN_MARGIN), affine=affine, stage=SYN)
    to_template = compose(fixed, [warp, affine])
    to_subject = compose(moving, [np.linalg.inv(affine), inverse_warp])
    similarity = _similarity(moving, fixed, to_template)
    return TemplateRegistration(affine, to_template, to_subject, similarity)


def deform(
    moving: nib.Nifti1Image,
    fixed: nib.Nifti1Image,
    *,
    affine: np.ndarray,
    stage: Stage,
    fixed_mask: nib.Nifti1Image | None = None,
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Deformable registration after an affine one.

    Parameters
    ----------
    moving, fixed : Nifti1Image
        3D.
    affine : ndarray, shape (4, 4)
        Fixed point -> moving point, RAS mm.
    stage : Stage
    fixed_mask : Nifti1Image, optional
        Where the metric is taken. What lies outside the field of view of `moving` is left out in any case: zeros
        there would squeeze the fixed image into the field of view.

    Returns
    -------
    warp, inverse : Nifti1Image
        Displacement fields in fixed space, on the grid of `fixed`.
    """
    here = resample(moving, fixed, transform=affine)
    seen = field_of_view(moving, fixed, affine)
    if fixed_mask is not None:
        seen &= np.asarray(fixed_mask.dataobj) > 0
    mask = None if seen.all() else on_grid(seen, fixed)
    center = center_of_mass(fixed)
    _, warp, inverse = ants_registration(here, fixed, start=np.eye(4), center=center, stages=[stage], fixed_mask=mask)
    if warp is None or inverse is None:
        raise ValueError(f"{stage.transform} is not a deformable stage.")
    return warp, inverse


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


# ---- resampling: grid points carried through the transforms, then values read there


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


def compose(grid: nib.Nifti1Image, transforms: list[Transform]) -> nib.Nifti1Image:
    """One displacement field on `grid` for a sequence of transforms."""
    shape = grid.shape[:3]
    end = _points(grid, transforms).moved(np.eye(4))
    start = _Points(np.asarray(grid.affine, dtype=float))
    shift = [end.coordinate(axis, shape) - start.coordinate(axis, shape) for axis in range(3)]
    return displacement_field(np.stack(shift, axis=-1), grid.affine)


# ---- starts


def _rigid_start(moving: nib.Nifti1Image, fixed: nib.Nifti1Image, mask: nib.Nifti1Image | None) -> np.ndarray:
    """The headers, unless the centres of mass with some head tilt give clearly more mutual information at 6 mm."""
    source, target = (coarsen(img, SEARCH_VOXEL_SIZE_MM) for img in (moving, fixed))
    where = np.ones(target.shape, dtype=bool)
    if mask is not None:
        where = np.asarray(resample(mask, target, interpolation="nearest").dataobj) > 0
    reference = np.asarray(target.dataobj)[where]

    def score(matrix: np.ndarray) -> float:
        return _mutual_information(reference, np.asarray(resample(source, target, transform=matrix).dataobj)[where])

    to, back = shift(center_of_mass(source)), shift(-center_of_mass(target))
    tilts = product((0, -20, 20), repeat=3)
    centred = max((to @ similarity_matrix(1, *angles) @ back for angles in tilts), key=score)
    return centred if score(centred) > 1.1 * score(np.eye(4)) else np.eye(4)


def _similarity_start(moving: nib.Nifti1Image, fixed: nib.Nifti1Image) -> np.ndarray:
    """Best of a grid of head tilts at 6 mm, brains laid on each other by centre and volume; template -> subject."""
    source, target = (coarsen(img, SEARCH_VOXEL_SIZE_MM) for img in (moving, fixed))
    reference = np.asarray(target.dataobj).ravel()
    volumes = [np.count_nonzero(np.asarray(img.dataobj)) * np.prod(voxel_sizes(img.affine)) for img in (moving, fixed)]
    scale = float(np.clip((volumes[0] / volumes[1]) ** (1 / 3), 0.8, 1.25))
    to, back = shift(center_of_mass(source)), shift(-center_of_mass(target))
    best, best_score = np.eye(4), -np.inf
    for pitch, roll, yaw in product((0, -15, 15, -30, 30), (0, -15, 15), (0, -15, 15)):
        matrix = to @ similarity_matrix(scale, pitch, roll, yaw) @ back
        score = np.corrcoef(
            np.asarray(resample(source, target, transform=matrix).dataobj).ravel(),
            reference,
        )[0, 1]
        if score > best_score:
            best, best_score = matrix, score
    return best


def similarity_matrix(scale: float, *degrees: float) -> np.ndarray:
    """Rotation about x, then y, then z, times a scale."""
    matrix = np.eye(4)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        rotation = np.eye(4)
        i, j = [a for a in range(3) if a != axis]
        rotation[[i, i, j, j], [i, j, i, j]] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        matrix = rotation @ matrix
    matrix[:3, :3] *= scale
    return matrix


# ---- small pieces


def coarsen(img: nib.Nifti1Image, size_mm: float) -> nib.Nifti1Image:
    """The image at `size_mm` along each of its own axes, low-pass filtered first; axes coarser than that stay."""
    data = np.asarray(img.dataobj, dtype=np.float32)
    scale = np.maximum(1, size_mm / voxel_sizes(img.affine))  # voxels per new voxel
    shape = np.maximum(1, np.round(np.array(data.shape) / scale)).astype(int)
    step = np.diag([*scale, 1.0])
    step[:3, 3] = (scale - 1) / 2
    grid = nib.Nifti1Image(np.empty(tuple(shape), dtype=np.uint8), img.affine @ step)
    return resample(nib.Nifti1Image(antialias(data, scale), img.affine), grid)


def near_mask(mask: nib.Nifti1Image, grid: nib.Nifti1Image, *, margin_mm: float = 8) -> nib.Nifti1Image:
    inside = np.asarray(resample(mask, grid, interpolation="nearest").dataobj) > 0
    distance = ndimage.distance_transform_edt(~inside, sampling=voxel_sizes(grid.affine))
    return on_grid(distance <= margin_mm, grid)


def crop(img: nib.Nifti1Image, *, margin: int) -> nib.Nifti1Image:
    """The bounding box of what is not 0, and a margin (voxels) as far as the field of view goes."""
    data = np.asarray(img.dataobj)
    box = bounding_box(data, margin=margin)
    return nib.Nifti1Image(data[box], img.affine @ shift(np.array([side.start for side in box])))


def clip_intensities(data: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Masked, scaled to 0-1 between the 0.5th and 99.5th percentile of the brain."""
    low, high = np.percentile(data[inside], [0.5, 99.5])
    return np.where(inside, np.clip((data - low) / max(high - low, 1e-6), 0.001, 1), 0).astype(np.float32)


def center_of_mass(img: nib.Nifti1Image) -> np.ndarray:
    """Of the foreground (above the mean), RAS mm."""
    data = np.asarray(img.dataobj)
    return apply_affine(img.affine, ndimage.center_of_mass(data > data.mean()))


def _mutual_information(first: np.ndarray, second: np.ndarray, bins: int = 32) -> float:
    joint, _, _ = np.histogram2d(first.ravel(), second.ravel(), bins=bins)
    joint /= joint.sum()
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    some = joint > 0
    return float((joint[some] * np.log(joint[some] / independent[some])).sum())


def _similarity(moving: nib.Nifti1Image, fixed: nib.Nifti1Image, transform: nib.Nifti1Image) -> float:
    """Pearson correlation within the template's brain, 4 mm below its surface, as far as the scan goes.

    At the surface any brain resembles any other: with it, a head that lay back to front had 0.92 instead of 0.95. The
    scan is clipped at its 2nd and 90th percentile there, or bright lesions would count most.
    """
    brain = np.asarray(load_template(2).mask.dataobj) > 0
    where = ndimage.binary_erosion(brain, iterations=2) & field_of_view(moving, fixed, transform)
    x, y = (np.asarray(img.dataobj)[where] for img in (resample(moving, fixed, transform=transform), fixed))
    x = np.clip(x, *np.percentile(x, [2, 90])) if x.size else x
    return float(np.corrcoef(x, y)[0, 1]) if min(x.std(), y.std()) > 0 else 0.0

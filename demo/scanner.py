"""From a head in MNI space to a scan: the subject's own shape and pose, voxels, bias field, noise."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel import orientations
from numpy.polynomial import polynomial
from scipy import ndimage

from demo.head import Head

#: Width (mm) of the cube around the head on which the deformation is drawn, and its number of knots along each axis.
_CUBE_MM, _KNOTS = 320.0, 9


@dataclass(frozen=True)
class Shape:
    """A subject's own anatomy: MNI mm = `matrix` @ subject mm + `displacement` (mm, on a coarse grid)."""

    matrix: np.ndarray
    displacement: np.ndarray


@dataclass(frozen=True)
class Protocol:
    """Voxel size (mm, in RAS order) and the order in which the axes are stored."""

    voxel_size: tuple[float, float, float]
    axes: str


def draw_shape(rng: np.random.Generator) -> Shape:
    """A random head: up to 5 % larger or smaller along each axis, a little sheared, bent by about 2 mm."""
    matrix = np.eye(3) * rng.uniform(0.95, 1.05, size=3) + rng.uniform(-0.02, 0.02, size=(3, 3))
    knots = rng.normal(scale=2.5, size=(3, _KNOTS, _KNOTS, _KNOTS)).astype(np.float32)
    return Shape(matrix, ndimage.zoom(knots, (1, 5, 5, 5), order=3))


def draw_pose(rng: np.random.Generator, *, degrees: float, mm: float) -> np.ndarray:
    """A random rigid movement: scanner mm from subject mm, up to so many degrees about, and mm along, each axis."""
    x, y, z = np.deg2rad(rng.uniform(-degrees, degrees, size=3))
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3] = about_z @ about_y @ about_x
    pose[:3, 3] = rng.uniform(-mm, mm, size=3)
    return pose


def field_of_view(head: Head, protocol: Protocol) -> nib.Nifti1Image:
    """An empty scan: the grid that the protocol lays over the head (RAS axes)."""
    extent = np.array(head.outside.shape) * head.spacing
    size = np.array(protocol.voxel_size)
    shape = np.ceil(extent / size).astype(int)
    affine = np.diag([*size, 1.0])
    affine[:3, 3] = head.affine[:3, 3] + (size - head.spacing) / 2
    return nib.Nifti1Image(np.zeros(shape, np.uint8), affine)


def sample(data: np.ndarray, head: Head, *, shape: Shape, pose: np.ndarray, grid: nib.Nifti1Image) -> np.ndarray:
    """What the voxels of `grid` see of an image on the head's grid.

    Parameters
    ----------
    data : ndarray, shape (X, Y, Z) or (C, X, Y, Z)
    head : Head
    shape : Shape
    pose : ndarray, shape (4, 4)
        Scanner mm from subject mm.
    grid : Nifti1Image
        RAS axes.

    Returns
    -------
    ndarray, float32
        Shape of `grid`, after the channels if there are any.
    """
    voxels = _head_voxels(head, shape=shape, pose=pose, grid=grid)
    # A voxel averages over its volume: the box's standard deviation, less what the head's own voxels blur already.
    size = np.array(grid.header.get_zooms()[:3]) / head.spacing
    sigma = np.sqrt(np.maximum(size**2 - 1, 0) / 12)
    channels = data if data.ndim == 4 else data[None]
    out = np.stack(
        [
            ndimage.map_coordinates(
                ndimage.gaussian_filter(c.astype(np.float32), sigma), voxels, order=1, mode="nearest"
            )
            for c in channels
        ]
    )
    return out if data.ndim == 4 else out[0]


def add_artefacts(
    signal: np.ndarray, rng: np.random.Generator, *, noise: float = 0.02, bias: float = 0.15
) -> np.ndarray:
    """A smooth bias field and Rician noise.

    Parameters
    ----------
    signal : ndarray, shape (X, Y, Z)
        1 is the white matter of T1w.
    rng : Generator
    noise : float
        Standard deviation of the two channels of the receiver, relative to 1.
    bias : float
        Standard deviation of the logarithm of the bias field.
    """
    degree = np.indices((4, 4, 4)).sum(axis=0)
    coefficients = rng.normal(size=(4, 4, 4)) * ((degree > 0) & (degree <= 3))
    x, y, z = (np.linspace(-1, 1, n) for n in signal.shape)
    log_field = polynomial.polygrid3d(x, y, z, coefficients)
    log_field *= bias / np.std(log_field)
    biased = signal * np.exp(log_field - np.mean(log_field))
    real, imaginary = rng.normal(scale=noise, size=(2, *signal.shape))
    return np.asarray(np.hypot(biased + real, imaginary), dtype=np.float32)


def store(data: np.ndarray, grid: nib.Nifti1Image, axes: str) -> nib.Nifti1Image:
    """An image with the axes in the order in which the scanner stores them, and both of its header's affines set."""
    img = nib.Nifti1Image(data, grid.affine)
    turn = orientations.ornt_transform(orientations.io_orientation(img.affine), orientations.axcodes2ornt(axes))
    img = img.as_reoriented(turn)
    img.set_qform(img.affine, 1)
    img.set_sform(img.affine, 1)
    img.header.set_xyzt_units("mm", "sec")
    return img


def _head_voxels(head: Head, *, shape: Shape, pose: np.ndarray, grid: nib.Nifti1Image) -> np.ndarray:
    """Voxel coordinates in the head of every voxel of the grid, shape (3, X, Y, Z)."""
    to_subject = np.linalg.inv(pose) @ grid.affine
    index = np.indices(grid.shape, dtype=np.float32)
    subject = _apply(to_subject, index)
    nodes = _apply(_to_nodes(head, shape.displacement.shape[1]), subject)
    mni = np.tensordot(shape.matrix.astype(np.float32), subject, axes=1)
    for axis in range(3):
        mni[axis] += ndimage.map_coordinates(shape.displacement[axis], nodes, order=1, mode="nearest")
    return _apply(np.linalg.inv(head.affine), mni)


def _to_nodes(head: Head, number: int) -> np.ndarray:
    """Affine from subject mm to the index of the `number` nodes along each axis of the deformation's cube."""
    center = head.affine[:3, 3] + head.spacing * (np.array(head.outside.shape) - 1) / 2
    per_mm = (number - 1) / _CUBE_MM
    affine = np.diag([per_mm] * 3 + [1.0])
    affine[:3, 3] = (number - 1) / 2 - center * per_mm
    return affine


def _apply(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    out = np.tensordot(affine[:3, :3].astype(np.float32), points, axes=1)
    return out + affine[:3, 3].astype(np.float32).reshape(3, *[1] * (points.ndim - 1))

"""Single lesions: connected components, and one table row for each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

#: Voxels that share a face, an edge or a corner belong to one lesion.
CONNECTIVITY_26 = np.ones((3, 3, 3), dtype=bool)

#: Data dictionary of the lesion table, in the order of its columns.
LESION_COLUMNS: dict[str, dict[str, str]] = {
    "lesion_id": {
        "LongName": "Lesion number",
        "Description": "1 is the largest lesion; lesions of equal volume go by position. Lesions are 26-connected.",
    },
    "volume_mm3": {
        "LongName": "Lesion volume",
        "Description": "Number of voxels of the lesion mask times the voxel volume.",
        "Units": "mm^3",
    },
    "centroid_x_mm": {
        "LongName": "Centroid, left to right",
        "Description": "Mean of the voxel centres in scanner space, positive to the right.",
        "Units": "mm",
    },
    "centroid_y_mm": {
        "LongName": "Centroid, posterior to anterior",
        "Description": "Mean of the voxel centres in scanner space, positive to the front.",
        "Units": "mm",
    },
    "centroid_z_mm": {
        "LongName": "Centroid, inferior to superior",
        "Description": "Mean of the voxel centres in scanner space, positive upwards.",
        "Units": "mm",
    },
    "mni_x_mm": {
        "LongName": "Centroid in MNI space, left to right",
        "Description": "The centroid carried to MNI152NLin2009aSym; n/a where the scan was not registered.",
        "Units": "mm",
    },
    "mni_y_mm": {
        "LongName": "Centroid in MNI space, posterior to anterior",
        "Description": "The centroid carried to MNI152NLin2009aSym; n/a where the scan was not registered.",
        "Units": "mm",
    },
    "mni_z_mm": {
        "LongName": "Centroid in MNI space, inferior to superior",
        "Description": "The centroid carried to MNI152NLin2009aSym; n/a where the scan was not registered.",
        "Units": "mm",
    },
    "diameter_mm": {
        "LongName": "Largest diameter",
        "Description": "Largest distance in 3D between any two points of the lesion, its voxels taken as whole boxes "
        "(a single voxel has the length of its diagonal).",
        "Units": "mm",
    },
    "extent_x_mm": {
        "LongName": "Extent, left to right",
        "Description": "Width of the lesion along the scanner's left-right axis, voxels taken as whole boxes.",
        "Units": "mm",
    },
    "extent_y_mm": {
        "LongName": "Extent, posterior to anterior",
        "Description": "Width of the lesion along the scanner's posterior-anterior axis, voxels taken as whole boxes.",
        "Units": "mm",
    },
    "extent_z_mm": {
        "LongName": "Extent, inferior to superior",
        "Description": "Width of the lesion along the scanner's inferior-superior axis, voxels taken as whole boxes.",
        "Units": "mm",
    },
    "mean_probability": {
        "LongName": "Mean lesion probability",
        "Description": "Mean of the lesion probability map over the voxels of the lesion (0 to 1).",
    },
}

_CORNERS = np.array(np.meshgrid(*[(-0.5, 0.5)] * 3, indexing="ij")).reshape(3, 8).T


def label_lesions(mask: np.ndarray, *, minimum_voxels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Number the lesions of a mask, largest first.

    Parameters
    ----------
    mask : ndarray, shape (X, Y, Z)
        Lesion where not zero.
    minimum_voxels : int
        Smaller lesions are left out.

    Returns
    -------
    labels : ndarray of int32, shape (X, Y, Z)
        0 outside, else the lesion's number (1 is the largest; equal sizes go by their first voxel).
    sizes : ndarray of int64, shape (n,)
        Voxels of each lesion, in the order of their numbers.
    """
    mask = _three_dimensional(mask)
    found, count = ndimage.label(mask, structure=CONNECTIVITY_26)
    sizes = np.bincount(found.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] >= minimum_voxels]
    renumber = np.zeros(count + 1, dtype=np.int32)
    renumber[order + 1] = np.arange(1, len(order) + 1)
    return renumber[found], sizes[order]


def lesion_table(
    mask: np.ndarray,
    probability: np.ndarray,
    *,
    affine: np.ndarray,
    to_mni: Callable[[np.ndarray], np.ndarray] | None = None,
    minimum_volume_mm3: float = 0.0,
) -> pd.DataFrame:
    """One row per lesion, by decreasing volume; the columns are those of `LESION_COLUMNS`.

    Parameters
    ----------
    mask : ndarray, shape (X, Y, Z)
        Lesion where not zero.
    probability : ndarray, shape (X, Y, Z)
        Lesion probability, 0 to 1.
    affine : ndarray, shape (4, 4)
        Voxel indices to scanner RAS mm.
    to_mni : callable, optional
        Carries points of shape (n, 3), scanner RAS mm, to MNI RAS mm. Without it the MNI columns are NaN.
    minimum_volume_mm3 : float
        Smaller lesions are left out. The default keeps all, so that the table adds up to the mask.

    Returns
    -------
    DataFrame
        Without rows, but with all columns, where there is no lesion.

    Raises
    ------
    ValueError
        When the shapes do not fit or the affine has no inverse.
    """
    if mask.shape != probability.shape:
        raise ValueError(f"The lesion mask {mask.shape} and its probability map {probability.shape} differ in shape.")
    voxel_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
    if not voxel_mm3 > 0:
        raise ValueError("The affine has no inverse: it cannot be that of a scan.")
    # The margin keeps rounding from dropping a lesion of exactly the minimum volume.
    minimum_voxels = max(1, int(np.ceil(minimum_volume_mm3 / voxel_mm3 - 1e-6)))
    labels, sizes = label_lesions(mask, minimum_voxels=minimum_voxels)
    if not len(sizes):
        return pd.DataFrame({name: pd.Series(dtype=float) for name in LESION_COLUMNS}).astype({"lesion_id": int})

    ids = np.arange(1, len(sizes) + 1)
    voxels = _voxels_by_lesion(labels, sizes)
    centroids = np.array([_to_mm(indices.mean(axis=0), affine) for indices in voxels])
    in_mni = np.full_like(centroids, np.nan) if to_mni is None else np.asarray(to_mni(centroids), dtype=float)
    shapes = np.array([_diameter_and_extents(indices, affine) for indices in voxels])
    columns = [
        ids,
        sizes * voxel_mm3,
        *centroids.T,
        *in_mni.T,
        *shapes.T,
        ndimage.mean(np.asarray(probability, dtype=float), labels, ids),
    ]
    return pd.DataFrame(dict(zip(LESION_COLUMNS, columns, strict=True)))


def _voxels_by_lesion(labels: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """Voxel indices, shape (n, 3), of every lesion: one pass over the array, however many lesions."""
    indices = np.argwhere(labels)
    order = np.argsort(labels[labels > 0], kind="stable")
    return np.split(indices[order], np.cumsum(sizes)[:-1])


def _diameter_and_extents(indices: np.ndarray, affine: np.ndarray) -> tuple[float, float, float, float]:
    """Largest distance between two voxel corners, and widths along the scanner axes, in mm."""
    corners = _to_mm((_row_ends(indices)[:, None] + _CORNERS).reshape(-1, 3), affine)
    # The two points farthest apart are vertices of the convex hull; corners are never coplanar.
    hull = corners[ConvexHull(corners).vertices]
    x, y, z = np.ptp(corners, axis=0)
    return float(pdist(hull).max()), float(x), float(y), float(z)


def _row_ends(indices: np.ndarray) -> np.ndarray:
    """First and last voxel of every row along the last axis: the rest cannot lie on the convex hull.

    `indices` is in C order, as numpy.argwhere gives it.
    """
    new_row = np.any(np.diff(indices[:, :2], axis=0), axis=1)
    first, last = np.r_[True, new_row], np.r_[new_row, True]
    return indices[first | last]


def _to_mm(indices: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return indices @ affine[:3, :3].T + affine[:3, 3]


def _three_dimensional(mask: np.ndarray) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim != 3:
        raise ValueError(f"A mask must have three dimensions, not shape {mask.shape}.")
    return mask if mask.dtype == bool else mask > 0

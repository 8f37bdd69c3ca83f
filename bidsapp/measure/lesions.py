"""Single lesions: connected components, and one table row for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from bidsapp.image.morphology import binary, label_lesions
from bidsapp.labels import LOBES
from bidsapp.measure.regions import REGIONS, Anatomy, Tissues, hemispheres, intensities, locate

#: Data dictionary of what the table of volumes and that of loads both say.
SHARED_LOAD_COLUMNS: dict[str, dict[str, str]] = {
    "lesion_load_percent_tiv": {
        "LongName": "Lesion load relative to the intracranial volume",
        "Description": "100 times lesion_mm3 / tiv_mm3.",
        "Units": "percent",
    },
    "lesion_load_percent_wm": {
        "LongName": "Lesion load relative to the white matter",
        "Description": "100 times lesion_mm3 / wm_with_lesions_mm3.",
        "Units": "percent",
    },
    "lesion_count": {
        "LongName": "Number of lesions",
        "Description": "Number of lesions: groups of voxels of the lesion mask that touch, also at an edge or a "
        "corner (26-connected components).",
    },
}

#: Data dictionary of the lesion table, in the order of its columns.
LESION_COLUMNS: dict[str, dict[str, Any]] = {
    "lesion_id": {
        "LongName": "Lesion number",
        "Description": "1 is the largest lesion; lesions of equal volume go by position. Voxels that touch, also at an "
        "edge or a corner, are one lesion.",
    },
    "volume_mm3": {
        "LongName": "Lesion volume",
        "Description": "Number of voxels of the lesion times the voxel volume.",
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
    "in_plane_diameter_mm": {
        "LongName": "Largest diameter in the plane of acquisition",
        "Description": "Largest distance between any two points of the lesion in one slice, its voxels taken as whole "
        "boxes; slices are those of the thickest voxel edge, axial ones where all edges are alike.",
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
    "region": {
        "LongName": "Region of the 2017 McDonald criteria",
        "Description": "Thompson et al. 2018, Lancet Neurol 17:162-173. Abutting: within 3 mm of a lateral ventricle; "
        "a tenth of the lesion within 1.5 mm of cortex. Where several hold, the first in this order: infratentorial, "
        "deep gray matter, periventricular, juxtacortical.",
        "Levels": {
            "periventricular": "abuts a lateral ventricle",
            "juxtacortical": "abuts or lies in the cerebral cortex",
            "infratentorial": "in brainstem or cerebellum",
            "deep_white_matter": "elsewhere in the cerebrum",
            "deep_gray_matter": "in thalamus, striatum, pallidum, hippocampus, amygdala or ventral diencephalon",
        },
    },
    "hemisphere": {
        "LongName": "Side",
        "Description": "left or right if at least 80 % of the lesion lie on that side of the midline of MNI space, "
        "else both; n/a where the scan was not registered.",
    },
    "lobe": {
        "LongName": "Lobe",
        "Description": "Lobe that most of the lesion is nearest to, by an atlas in MNI space; n/a where the scan was "
        "not registered.",
        "Levels": {
            **{lobe: f"{lobe} lobe" for lobe in LOBES if lobe != "insular"},
            "insular": "in the insula or within 3 mm of it",
            "none": "mostly in brainstem, cerebellum or deep gray matter",
        },
    },
    "ventricle_distance_mm": {
        "LongName": "Distance to the lateral ventricles",
        "Description": "From the lesion's nearest voxel to the lateral ventricles, between centres of voxels.",
        "Units": "mm",
    },
    "cortex_distance_mm": {
        "LongName": "Distance to the cerebral cortex",
        "Description": "From the lesion's nearest voxel to the cerebral cortex, between centres of voxels; 0 where the "
        "lesion reaches into it.",
        "Units": "mm",
    },
    "t1w_contrast": {
        "LongName": "Brightness on T1w against normal-appearing white matter",
        "Description": "Mean over the lesion minus the median of white matter at least 3 mm from any lesion, in robust "
        "standard deviations (1.4826 times the median absolute deviation) of that white matter: positive is "
        "brighter. n/a where the scan does not show the lesion.",
    },
    "t2w_contrast": {
        "LongName": "Brightness on T2w against normal-appearing white matter",
        "Description": "As t1w_contrast, on T2w.",
    },
    "flair_contrast": {
        "LongName": "Brightness on FLAIR against normal-appearing white matter",
        "Description": "As t1w_contrast, on FLAIR.",
    },
    "t1w_hypointense": {
        "LongName": "Dark on T1w (black hole)",
        "Description": "yes where the mean over the lesion is at most the median of gray matter on T1w (Sahraian et "
        "al. 2010, Acta Neurol Scand 122:1-8), else no. One scan cannot tell whether the lesion stays dark.",
    },
}

#: Size classes by volume, mm3: (name, from, below). 14 mm3 is a ball of 3 mm, the least that counts as a lesion of
#: multiple sclerosis (Filippi et al. 2019, Brain 142:1858-1875); the others are powers of ten.
SIZE_CLASSES = (
    ("tiny", 0.0, 14.0),
    ("small", 14.0, 100.0),
    ("medium", 100.0, 1000.0),
    ("large", 1000.0, float("inf")),
)
#: The load's interval goes from the volume of this probability to that of its complement.
LIKELY = 0.75

_CLASS_WORDS = {
    "tiny": "below 14 mm3",
    "small": "of 14 to 100 mm3",
    "medium": "of 100 to 1000 mm3",
    "large": "of 1000 mm3 or more",
}

#: Data dictionary of the load table, in the order of its columns.
LOAD_COLUMNS: dict[str, dict[str, str]] = {
    "lesion_mm3": {
        "LongName": "Lesion load",
        "Description": "Number of voxels of the lesion mask times the voxel volume, as in the volumes.",
        "Units": "mm^3",
    },
    "lesion_low_mm3": {
        "LongName": "Lesion load, low end",
        "Description": "Volume of the mask's voxels with a lesion probability of at least 0.75. If the probabilities "
        "are right and all borders err to the same side, the true load lies between the two ends in half of all cases. "
        "It tells how uncertain the borders of the lesions are to the model, nothing of lesions that it missed.",
        "Units": "mm^3",
    },
    "lesion_high_mm3": {
        "LongName": "Lesion load, high end",
        "Description": "Volume of the mask and of all other voxels with a lesion probability of at least 0.25.",
        "Units": "mm^3",
    },
    **SHARED_LOAD_COLUMNS,
    "largest_lesion_mm3": {
        "LongName": "Largest lesion",
        "Description": "Volume of the largest lesion; 0 where there is none.",
        "Units": "mm^3",
    },
    "confluence": {
        "LongName": "Confluence",
        "Description": "Probability that two points of lesion tissue drawn at random belong to one lesion: the sum of "
        "the squared volumes over the square of their sum (Simpson 1949, Nature 163:688). 1 is a single lesion, near 0 "
        "many small ones; n/a without lesions.",
    },
    **{
        f"{region}_count": {
            "LongName": f"Number of lesions, {region.replace('_', ' ')}",
            "Description": f"Number of lesions with {region} as their region in the table of lesions.",
        }
        for region in REGIONS
    },
    **{
        f"{region}_mm3": {
            "LongName": f"Lesion load, {region.replace('_', ' ')}",
            "Description": f"Volume of the lesions with {region} as their region in the table of lesions.",
            "Units": "mm^3",
        }
        for region in REGIONS
    },
    **{
        f"lesion_{lobe}_lobe_mm3": {
            "LongName": f"Lesion load, {lobe} lobe",
            "Description": f"Volume of the lesion mask's voxels that are nearest to the {lobe} lobe, of both sides, by "
            "an atlas in MNI space; without those in brainstem, cerebellum and deep gray matter.",
            "Units": "mm^3",
        }
        for lobe in LOBES
    },
    **{
        f"{name}_count": {
            "LongName": f"Number of {name} lesions",
            "Description": f"Number of lesions with a volume {_CLASS_WORDS[name]}.",
        }
        for name, _, _ in SIZE_CLASSES
    },
    "t1w_hypointense_count": {
        "LongName": "Number of lesions dark on T1w",
        "Description": "Number of lesions with yes as t1w_hypointense in the table of lesions; n/a without T1w.",
    },
}


@dataclass(frozen=True)
class Context:
    """What lesions are described by besides their shape; all on the grid of the mask.

    Attributes
    ----------
    anatomy : Anatomy
    images : mapping of str to ndarray
        Bias-corrected scans by contrast.
    tissues : Tissues
        Normal-appearing white and gray matter.
    lobes : ndarray of int, optional
        Lobe of each lesion voxel: 1 and up in the order of `labels.LOBES`, 0 where it is in none.
    """

    anatomy: Anatomy
    images: Mapping[str, np.ndarray]
    tissues: Tissues
    lobes: np.ndarray | None = None


_CORNERS = np.array(np.meshgrid(*[(-0.5, 0.5)] * 3, indexing="ij")).reshape(3, 8).T


def lesion_table(
    mask: np.ndarray,
    probability: np.ndarray,
    *,
    affine: np.ndarray,
    to_mni: Callable[[np.ndarray], np.ndarray] | None = None,
    context: Context | None = None,
) -> pd.DataFrame:
    """One row per lesion, by decreasing volume; the columns are those of `LESION_COLUMNS`. The rows add up to the mask.

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
    context : Context, optional
        Without it region, lobe, distances and brightness are not told.

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
    labels, sizes = label_lesions(mask)
    if not len(sizes):
        return pd.DataFrame({name: pd.Series(dtype=float) for name in LESION_COLUMNS}).astype({"lesion_id": int})

    ids = np.arange(1, len(sizes) + 1)
    voxels = _voxels_by_lesion(labels, sizes)
    centroids = np.array([_to_mm(indices.mean(axis=0), affine) for indices in voxels])
    in_mni = np.full_like(centroids, np.nan) if to_mni is None else np.asarray(to_mni(centroids), dtype=float)
    shapes = np.array([_diameter_and_extents(indices, affine) for indices in voxels])
    columns: dict[str, Sequence | np.ndarray] = {"lesion_id": ids, "volume_mm3": sizes * voxel_mm3}
    columns |= {f"centroid_{axis}_mm": column for axis, column in zip("xyz", centroids.T, strict=True)}
    columns |= {f"mni_{axis}_mm": column for axis, column in zip("xyz", in_mni.T, strict=True)}
    columns |= dict(zip(("diameter_mm", "extent_x_mm", "extent_y_mm", "extent_z_mm"), shapes.T, strict=True))
    across = slice_axis(affine)
    columns["in_plane_diameter_mm"] = [_in_plane_diameter(indices, affine, across) for indices in voxels]
    columns["mean_probability"] = ndimage.mean(np.asarray(probability, dtype=float), labels, ids)
    columns["hemisphere"] = hemispheres(voxels, affine, to_mni)
    columns |= _described(labels, len(sizes), context, affine)
    return pd.DataFrame({name: columns[name] for name in LESION_COLUMNS})


def load_row(
    table: pd.DataFrame,
    mask: np.ndarray,
    probability: np.ndarray,
    *,
    voxel_volume_mm3: float,
    volumes: Mapping[str, float | None],
    lobes: np.ndarray | None = None,
) -> dict[str, float | None]:
    """Lesion load of one session, in the order of `LOAD_COLUMNS`; None where not measured.

    Parameters
    ----------
    table : DataFrame
        From `lesion_table` of the same mask, all lesions in it.
    mask : ndarray, shape (X, Y, Z)
    probability : ndarray, shape (X, Y, Z)
        Lesion probability, 0 to 1.
    voxel_volume_mm3 : float
    volumes : mapping
        From `volumes.tissue_volumes`: its loads in percent are repeated here.
    lobes : ndarray of int, shape (X, Y, Z), optional
        As in `Context`.

    Notes
    -----
    The ends of the load are those of voxels that all err together (one threshold, unknown, for the whole map): the
    load at a threshold t is the volume above t, and for t uniform between 0 and 1 half of all loads lie between those
    at 0.75 and at 0.25. Errors that do not go together would cancel in part: the interval is wide rather than narrow.
    """
    inside = binary(mask)
    sizes = table["volume_mm3"].to_numpy(dtype=float)
    total = float(np.count_nonzero(inside)) * voxel_volume_mm3
    row: dict[str, float | None] = {
        "lesion_mm3": total,
        "lesion_low_mm3": float(np.count_nonzero(inside & (probability >= LIKELY))) * voxel_volume_mm3,
        "lesion_high_mm3": float(np.count_nonzero(inside | (probability >= 1 - LIKELY))) * voxel_volume_mm3,
        "lesion_load_percent_tiv": volumes.get("lesion_load_percent_tiv"),
        "lesion_load_percent_wm": volumes.get("lesion_load_percent_wm"),
        "lesion_count": len(table),
        "largest_lesion_mm3": float(sizes.max(initial=0)),
        "confluence": float((sizes**2).sum() / sizes.sum() ** 2) if len(sizes) else None,
    }
    located = not len(table) or bool((table["region"] != "n/a").all())
    for region in REGIONS:
        here = table["region"].to_numpy() == region
        row[f"{region}_count"] = int(here.sum()) if located else None
        row[f"{region}_mm3"] = float(sizes[here].sum()) if located else None
    for number, lobe in enumerate(LOBES, start=1):
        count = None if lobes is None else float(np.count_nonzero(inside & (lobes == number)))
        row[f"lesion_{lobe}_lobe_mm3"] = None if count is None else count * voxel_volume_mm3
    for name, least, below in SIZE_CLASSES:
        row[f"{name}_count"] = int(((sizes >= least) & (sizes < below)).sum())
    dark = table["t1w_hypointense"].to_numpy()
    row["t1w_hypointense_count"] = None if (dark == "n/a").any() else int((dark == "yes").sum())
    return {name: row[name] for name in LOAD_COLUMNS}


def slice_axis(affine: np.ndarray) -> int:
    """Voxel axis across the slices: that of the thickest edge, or the most axial one where all edges are alike."""
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if edges.max() > 1.2 * edges.min():
        return int(edges.argmax())
    return int(np.abs(affine[2, :3] / edges).argmax())


def _described(labels: np.ndarray, count: int, context: Context | None, affine: np.ndarray) -> dict[str, Any]:
    """Region and brightness, the former worked out in the box that holds everything."""
    if context is None:
        names = ("ventricle_distance_mm", "cortex_distance_mm", "t1w_contrast", "t2w_contrast", "flair_contrast")
        words = ("region", "lobe", "t1w_hypointense")
        return dict.fromkeys(words, ["n/a"] * count) | dict.fromkeys(names, np.full(count, np.nan))
    box = context.anatomy.box(labels > 0)
    edges = [float(edge) for edge in np.linalg.norm(affine[:3, :3], axis=0)]
    return {
        **locate(labels[box], count, context.anatomy.cropped(box), voxel_size_mm=edges),
        **intensities(labels, count, context.images, context.tissues),
        "lobe": _lobes(labels, count, context.lobes),
    }


def _lobes(labels: np.ndarray, count: int, lobes: np.ndarray | None) -> list[str]:
    """The lobe that most voxels of each lesion are in."""
    if lobes is None:
        return ["n/a"] * count
    inside = labels > 0
    shares = np.zeros((count + 1, len(LOBES) + 1), dtype=int)
    np.add.at(shares, (labels[inside], lobes[inside]), 1)
    return [("none", *LOBES)[most] for most in shares[1:].argmax(axis=1)]


def _in_plane_diameter(indices: np.ndarray, affine: np.ndarray, across: int) -> float:
    """Largest distance (mm) between two voxel corners of one slice."""
    plane = [axis for axis in range(3) if axis != across]
    corners = np.array([(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)])
    longest = 0.0
    for index in np.unique(indices[:, across]):
        flat = indices[indices[:, across] == index][:, plane]
        points = (flat[:, None] + corners).reshape(-1, 2) @ affine[:3, plane].T
        if len(points) > 400:  # all pairs are too many; the two points farthest apart are vertices of the hull
            points = points[ConvexHull((flat[:, None] + corners).reshape(-1, 2)).vertices]
        longest = max(longest, float(pdist(points).max()))
    return longest


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

"""Where lesions lie by the 2017 McDonald criteria, and how bright they are: arrays in, numbers out.

The regions are those of Thompson et al. 2018 (Lancet Neurol 17:162-173, panel 5): *periventricular* lesions abut the
lateral ventricles, *juxtacortical* ones the cortex (or lie in it), *infratentorial* ones lie in brainstem or
cerebellum; what is left of the cerebral white matter is *deep white matter*. Lesions in deep grey matter are none of
these. "Abut" is given a distance here, since segmentations leave a gap of partial volume.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bidsapp.image import zones as template_zones
from bidsapp.image.grid import bounding_box
from bidsapp.image.intensity import robust_spread
from bidsapp.labels import CONTRASTS, STRUCTURE_LESION, STRUCTURES

REGIONS = ("periventricular", "juxtacortical", "infratentorial", "deep_white_matter", "deep_gray_matter")

#: A lesion with a voxel this near (mm, centre to centre) to a lateral ventricle abuts it: the juxtaventricular rim of
#: Kim et al. 2008 (Biol Psychiatry 64:273-280), which is also about one slice of a 2D scan.
VENTRICLE_MM = 3.0
#: Voxel sizes in headers are rounded: a slice of 3 mm is at times one of 3.000008.
ROUNDING_MM = 0.05
#: A lesion abuts the cortex where at least `CONTACT` of its voxels have cortex within this distance (mm), or within
#: one voxel along the scan's finest axis. Of one voxel in touch the segmentation's noise would decide.
CORTEX_MM = 1.5
CONTACT = 0.1
#: Share of a lesion that must lie in brainstem and cerebellum, deep grey matter, or what a scan shows ...
MOSTLY = 0.5
#: ... or on one side of the midline.
ONE_SIDED = 0.8

#: Structures of `labels.STRUCTURES` that make up each part.
PARTS = {
    "ventricles": ("lateral ventricle", "inferior lateral ventricle"),
    "cortex": ("cerebral cortex",),
    "infratentorial": ("cerebellar white matter", "cerebellar cortex", "fourth ventricle", "brain stem"),
    "deep_gray": ("thalamus", "caudate", "putamen", "pallidum", "hippocampus", "amygdala", "accumbens", "ventral DC"),
}


@dataclass(frozen=True)
class Anatomy:
    """What lesions are located by; all arrays (X, Y, Z) of bool.

    Attributes
    ----------
    ventricles : ndarray
        Lateral ventricles.
    cortex : ndarray
        Cerebral cortex.
    infratentorial : ndarray
        Brainstem, cerebellum and the fourth ventricle between them.
    deep_gray : ndarray
        Thalamus, striatum, pallidum, hippocampus, amygdala.
    source : str
        "structures" or "tissue": what it was made from.
    """

    ventricles: np.ndarray
    cortex: np.ndarray
    infratentorial: np.ndarray
    deep_gray: np.ndarray
    source: str

    def __post_init__(self) -> None:
        shapes = {name: getattr(self, name).shape for name in ("ventricles", "cortex", "infratentorial", "deep_gray")}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"The parts of an anatomy lie on one grid, not on {shapes}.")

    def box(self, others: np.ndarray) -> tuple[slice, ...]:
        """The smallest box with all parts and `others` in it."""
        everything = others | self.ventricles | self.cortex | self.infratentorial | self.deep_gray
        return bounding_box(everything, margin=0) if everything.any() else (slice(None),) * 3

    def cropped(self, box: tuple[slice, ...]) -> Anatomy:
        """The same in a box."""
        return Anatomy(
            self.ventricles[box], self.cortex[box], self.infratentorial[box], self.deep_gray[box], self.source
        )


def can_locate(structures: np.ndarray) -> bool:
    """Whether a segmentation into structures, (X, Y, Z) of FreeSurfer's labels, shows lateral ventricles and cortex.

    It does not where the scan covers the posterior fossa alone, or the brain is none that the network knows.
    """
    return all(bool(np.isin(structures, _indices(PARTS[name])).any()) for name in ("ventricles", "cortex"))


def anatomy_from_structures(structures: np.ndarray, *, voxel_size_mm: Sequence[float]) -> Anatomy:
    """Anatomy of a segmentation into structures.

    Parameters
    ----------
    structures : ndarray of int, shape (X, Y, Z)
        Labels of `labels.STRUCTURES` (FreeSurfer's); lesions as `labels.STRUCTURE_LESION` or as what they lie in.
    voxel_size_mm : sequence of float

    Raises
    ------
    ValueError
        When ventricles or cortex are missing (`can_locate`).

    Notes
    -----
    Lesions count to brainstem, cerebellum or deep grey matter where these are the nearest structure; ventricles and
    cortex are not extended into them.
    """
    structures = np.asarray(structures)
    parts = {name: np.isin(structures, _indices(names)) for name, names in PARTS.items()}
    if not can_locate(structures):
        raise ValueError(
            "The segmentation has no voxel of the lateral ventricles (4, 43) or of the cortex (3, 42): lesions cannot"
            " be located by it. It must carry FreeSurfer's labels."
        )
    lesion = structures == STRUCTURE_LESION.index
    if lesion.any():
        nearest = _nearest_structure(structures, lesion, voxel_size_mm)
        for name in ("infratentorial", "deep_gray"):
            parts[name][lesion] = np.isin(nearest, _indices(PARTS[name]))
    return Anatomy(**parts, source="structures")


def _indices(names: Sequence[str]) -> list[int]:
    return [index for part in STRUCTURES if part.name in names for index in (part.left, part.right)]


def _nearest_structure(structures: np.ndarray, lesion: np.ndarray, voxel_size_mm: Sequence[float]) -> np.ndarray:
    """Label of the structure nearest (in mm) to each lesion voxel, in the order of the mask."""
    box = bounding_box(structures > 0, margin=0)
    known = (structures[box] > 0) & ~lesion[box]
    _, where = ndimage.distance_transform_edt(~known, sampling=voxel_size_mm, return_indices=True)
    return np.asarray(structures[box][tuple(index[lesion[box]] for index in where)])


def anatomy_from_tissue(
    posteriors: np.ndarray, zones: np.ndarray, *, voxel_size_mm: Sequence[float], priors: np.ndarray | None = None
) -> Anatomy:
    """Anatomy of tissue maps, told apart by the zones of the template.

    Parameters
    ----------
    posteriors : ndarray, shape (3, X, Y, Z) or (2, X, Y, Z)
        GM, WM, CSF, or parenchyma and CSF where GM and WM cannot be told apart.
    zones : ndarray of int, shape (X, Y, Z)
        `image.zones.template_zones` brought to the scan.
    voxel_size_mm : sequence of float
    priors : ndarray, shape (3, X, Y, Z), optional
        GM, WM, CSF priors brought to the scan; needed where GM and WM cannot be told apart.

    Raises
    ------
    ValueError
        When `priors` are needed and missing.

    Notes
    -----
    Ventricles: CSF that hangs together with the template's ventricles, at most 12 mm from them (ventricles enlarge).
    Cortex: GM, or where parenchyma is one class the GM prior, outside deep grey matter.
    """
    fluid, near = posteriors[-1] > 0.5, zones == template_zones.VENTRICLES
    distance = ndimage.distance_transform_edt(~near, sampling=voxel_size_mm)
    above = zones != template_zones.INFRATENTORIAL
    labels, _ = ndimage.label(fluid & (distance <= 12) & above)
    hit = np.unique(labels[near])
    ventricles = np.isin(labels, hit[hit > 0])
    if len(posteriors) == 3:
        gray = posteriors[0] > 0.5
    elif priors is None:
        raise ValueError("Where gray and white matter are one class, the cortex is taken from the priors: give them.")
    else:
        gray = (priors[0] > 0.5) & (posteriors[0] > 0.5)
    deep = zones == template_zones.DEEP_GRAY
    return Anatomy(ventricles, gray & (zones == template_zones.CEREBRUM), ~above, deep, "tissue")


def locate(
    labels: np.ndarray,
    count: int,
    anatomy: Anatomy,
    *,
    voxel_size_mm: Sequence[float],
) -> dict[str, np.ndarray]:
    """Region of every lesion, and its distances to ventricles and cortex.

    Parameters
    ----------
    labels : ndarray of int, shape (X, Y, Z)
        Lesions numbered from 1 to `count`.
    count : int
    anatomy : Anatomy
        On the same grid.
    voxel_size_mm : sequence of float

    Returns
    -------
    dict
        ``region`` (of str), ``ventricle_distance_mm``, ``cortex_distance_mm`` (of float): each of shape (count,).
        Distances are the least between voxel centres, 0 within, NaN where the structure is not in view.

    Notes
    -----
    Where several hold, infratentorial goes before deep grey matter, that before periventricular, and that before
    juxtacortical; the distances still tell of a confluent lesion that reaches both.
    """
    ids = np.arange(1, count + 1)
    to_ventricles = _distance(anatomy.ventricles, voxel_size_mm)
    to_cortex = _distance(anatomy.cortex, voxel_size_mm)
    reach = max(CORTEX_MM, min(voxel_size_mm)) + ROUNDING_MM
    ventricle, cortex = (np.asarray(ndimage.minimum(field, labels, ids)) for field in (to_ventricles, to_cortex))
    below, deep, touching = (
        np.asarray(ndimage.mean(part.astype(np.float32), labels, ids))
        for part in (anatomy.infratentorial, anatomy.deep_gray, to_cortex <= reach)
    )
    conditions = [below > MOSTLY, deep > MOSTLY, ventricle <= VENTRICLE_MM + ROUNDING_MM, touching >= CONTACT]
    names = ["infratentorial", "deep_gray_matter", "periventricular", "juxtacortical"]
    region = np.select(conditions, names, default="deep_white_matter")
    return {
        "region": region,
        "ventricle_distance_mm": _seen(ventricle),
        "cortex_distance_mm": _seen(cortex),
    }


def hemispheres(
    voxels: Sequence[np.ndarray],
    affine: np.ndarray,
    to_mni: Callable[[np.ndarray], np.ndarray] | None,
) -> list[str]:
    """Side of each lesion: "left" or "right" where at least 80 % of it lie there in MNI space, else "both".

    Parameters
    ----------
    voxels : sequence of ndarray, each of shape (n, 3)
        Voxel indices of each lesion.
    affine : ndarray, shape (4, 4)
        Voxel indices to scanner RAS mm.
    to_mni : callable, optional
        Points (n, 3) in scanner mm to MNI mm; without it "n/a".
    """
    if to_mni is None or not len(voxels):
        return ["n/a"] * len(voxels)
    points = np.concatenate(voxels) @ affine[:3, :3].T + affine[:3, 3]
    x = np.asarray(to_mni(points))[:, 0]
    rights = [float((part > 0).mean()) for part in np.split(x, np.cumsum([len(indices) for indices in voxels])[:-1])]
    return ["right" if share >= ONE_SIDED else "left" if share <= 1 - ONE_SIDED else "both" for share in rights]


@dataclass(frozen=True)
class Tissues:
    """Where intensities of healthy tissue are taken from: arrays (X, Y, Z) of bool; `gray` is None if not separable."""

    white: np.ndarray
    gray: np.ndarray | None


def normal_appearing(
    posteriors: np.ndarray, lesion: np.ndarray, *, voxel_size_mm: Sequence[float], separable: bool
) -> Tissues:
    """Voxels that are surely white (or gray) matter and at least 3 mm from any lesion.

    Parameters
    ----------
    posteriors : ndarray, shape (3, X, Y, Z) or (2, X, Y, Z)
        GM, WM, CSF; or parenchyma, CSF, where all of the parenchyma stands in for white matter.
    lesion : ndarray of bool, shape (X, Y, Z)
    voxel_size_mm : sequence of float
    separable : bool
    """
    far = _distance(lesion, voxel_size_mm) > 3
    if not separable:
        return Tissues((posteriors[0] > 0.95) & far, None)
    return Tissues((posteriors[1] > 0.9) & far, (posteriors[0] > 0.9) & far)


def intensities(
    labels: np.ndarray, count: int, images: Mapping[str, np.ndarray], tissues: Tissues
) -> dict[str, np.ndarray]:
    """Brightness of each lesion against normal-appearing white matter, and whether it is dark on T1w.

    Parameters
    ----------
    labels : ndarray of int, shape (X, Y, Z)
        Lesions numbered from 1 to `count`.
    count : int
    images : mapping of str to ndarray
        Bias-corrected scans by contrast on the grid of `labels`, in any linear scale; NaN where they show nothing.
    tissues : Tissues

    Returns
    -------
    dict
        ``t1w_contrast``, ``t2w_contrast``, ``flair_contrast``: mean in the lesion minus the median of the white matter,
        in robust standard deviations (1.4826 times the median absolute deviation) of the white matter, which any
        linear scaling leaves as it is; NaN where the contrast is missing or does not show the lesion.
        ``t1w_hypointense``: "yes" where the mean on T1w is at most the median of gray matter, the usual meaning of a
        black hole (Sahraian et al. 2010, Acta Neurol Scand 122:1-8), else "no"; "n/a" without T1w or gray matter.
    """
    out: dict[str, np.ndarray] = {}
    means = {contrast: _means(image, labels, count) for contrast, image in images.items()}
    for contrast in CONTRASTS:
        values = np.full(count, np.nan)
        white = _where_shown(images, contrast, tissues.white)
        if white.size:
            middle, spread = robust_spread(white)
            if spread > 0:
                values = (means[contrast] - middle) / spread
        out[f"{contrast.lower()}_contrast"] = values
    dark = np.full(count, "n/a", dtype=object)
    gray = _where_shown(images, "T1w", tissues.gray)
    if gray.size:
        dark = np.where(means["T1w"] <= np.median(gray), "yes", "no").astype(object)
        dark[np.isnan(means["T1w"])] = "n/a"
    out["t1w_hypointense"] = dark
    return out


def _where_shown(images: Mapping[str, np.ndarray], contrast: str, where: np.ndarray | None) -> np.ndarray:
    """A contrast's values in a tissue, as far as it shows it; none without the one or the other."""
    if contrast not in images or where is None:
        return np.zeros(0)
    values = images[contrast][where]
    return values[np.isfinite(values)]


def _means(image: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Mean of each lesion; NaN where most of it lies outside what the scan shows."""
    inside = labels > 0
    number, values = labels[inside], image[inside].astype(float)
    seen = np.isfinite(values)
    shown = np.bincount(number[seen], minlength=count + 1)[1:]
    total = np.bincount(number[seen], values[seen], minlength=count + 1)[1:]
    most = shown >= MOSTLY * np.bincount(number, minlength=count + 1)[1:]
    return np.divide(total, shown, out=np.full(count, np.nan), where=most & (shown > 0))


def _distance(mask: np.ndarray, voxel_size_mm: Sequence[float]) -> np.ndarray:
    """Distance (mm) of every voxel to the nearest one of a mask; infinite where the mask is empty."""
    if not mask.any():
        return np.full(mask.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=voxel_size_mm))


def _seen(distances: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(distances), distances, np.nan)

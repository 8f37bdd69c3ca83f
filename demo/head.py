"""A head in MNI space: the template's tissues, and around them skull, scalp, eyes, face and neck; lesions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from bidsapp.image.template import load_template

#: Everything outside the brain, painted in this order. Values of the three contrasts relative to white matter in T1w.
#: Brain: the class means of spec/training.md; the rest: by eye, after clinical scans without contrast agent.
OUTSIDE = {
    # name: (T1w, T2w, FLAIR)
    "air": (0.0, 0.0, 0.0),
    "muscle": (0.50, 0.22, 0.40),
    "fat": (1.25, 0.85, 0.60),
    "skin": (0.65, 0.45, 0.45),
    "bone": (0.08, 0.05, 0.05),
    "marrow": (0.80, 0.45, 0.40),
    "fluid": (0.20, 1.00, 0.20),
    "cord": (0.95, 0.40, 0.60),
}
BRAIN = {"T1w": (0.66, 1.0, 0.20), "T2w": (0.55, 0.38, 1.0), "FLAIR": (0.74, 0.60, 0.20)}  # GM, WM, CSF
DEEP_GREY = {"T1w": 0.10, "T2w": -0.08, "FLAIR": -0.05}  # added to GM in the basal ganglia and thalami
LESION = {"T1w": 0.62, "T2w": 0.90, "FLAIR": 1.15}
CONTRASTS = ("T1w", "T2w", "FLAIR")

# The template is the mean of 152 brains: squares bring its blurred borders back, weights its narrow fissures.
_SHARPEN = np.array([0.85, 1.0, 1.5], np.float32)  # GM, WM, CSF

# Extent of the head in MNI (mm): the template's own box, and room for the face and the neck.
_LOW, _HIGH = (-100.0, -136.0, -126.0), (100.0, 118.0, 110.0)


@dataclass(frozen=True)
class Head:
    """A head sampled on a regular grid in MNI space (RAS axes).

    Attributes
    ----------
    affine : ndarray, shape (4, 4)
        Voxel to MNI mm.
    tissues : ndarray, shape (3, X, Y, Z), float32
        Fractions of GM, WM and CSF; they sum to 1 in the brain and to 0 outside it.
    outside : ndarray, shape (X, Y, Z), uint8
        Index into `OUTSIDE` of what lies outside the brain.
    deep : ndarray, shape (X, Y, Z), bool
        Where grey matter is deep grey matter.
    """

    affine: np.ndarray
    tissues: np.ndarray
    outside: np.ndarray
    deep: np.ndarray

    @property
    def spacing(self) -> float:
        """Voxel size (mm)."""
        return float(self.affine[0, 0])


@dataclass(frozen=True)
class Lesions:
    """Lesions of one session.

    Attributes
    ----------
    fraction : ndarray, shape (X, Y, Z), float32
        How much of each voxel of the head is lesion; 0.5 at the border.
    centers : ndarray, shape (N, 3)
        MNI mm, in the order in which the lesions appear.
    """

    fraction: np.ndarray
    centers: np.ndarray


@cache
def build_head(spacing: int) -> Head:
    """Build the head around the packaged template.

    Parameters
    ----------
    spacing : int
        Voxel size (mm) of the head's grid.

    Returns
    -------
    Head
        Its arrays are read-only: the result is shared.
    """
    template = load_template(spacing)
    shape = tuple(int((high - low) // spacing) for low, high in zip(_LOW, _HIGH, strict=True))
    affine = np.diag([spacing, spacing, spacing, 1.0])
    # The grids are aligned, so that the template is placed without interpolation.
    affine[:3, 3] = template.mask.affine[:3, 3] + spacing * np.floor(
        (np.array(_LOW) - template.mask.affine[:3, 3]) / spacing
    )
    start = np.round((template.mask.affine[:3, 3] - affine[:3, 3]) / spacing).astype(int)
    priors = np.asarray(template.priors.dataobj)
    stop = np.minimum(start + priors.shape[:3], shape)
    place = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    kept = tuple(slice(0, b - a) for a, b in zip(start, stop, strict=True))
    tissues = np.zeros((3, *shape), np.float32)
    tissues[(slice(None), *place)] = np.moveaxis((priors[kept] * _SHARPEN) ** 2, -1, 0)
    tissues /= np.maximum(tissues.sum(axis=0), 1e-6)
    points = _points(shape, affine)
    outside = _paint(tissues.sum(axis=0) > 0.5, points, spacing)
    deep = _ellipsoid(points, (0, -6, 4), (38, 34, 22)) < 0
    for array in (tissues, outside, deep, affine):
        array.setflags(write=False)
    return Head(affine, tissues, outside, deep)


def grow_lesions(head: Head, *, number: int, rng: np.random.Generator, growth: float = 1.0) -> Lesions:
    """Lesions as in multiple sclerosis: soft irregular ellipsoids in white matter, most of them near the ventricles.

    Parameters
    ----------
    head : Head
    number : int
        How many; with the same state of `rng`, a larger number keeps the first ones where they are.
    rng : Generator
    growth : float
        Factor on every radius.
    """
    tissues = head.tissues
    fraction = np.zeros(tissues.shape[1:], np.float32)
    if number == 0:
        return Lesions(fraction, np.zeros((0, 3)))
    white = ndimage.binary_erosion(tissues[1] > 0.9)
    distance = ndimage.distance_transform_edt(~_ventricles(head), sampling=head.spacing)
    near, far = (np.argwhere(white & (distance > a) & (distance < b)) for a, b in ((3, 9), (9, 25)))
    wobble = _smooth_noise(rng, fraction.shape, 3.0 / head.spacing)
    centers = np.zeros((number, 3))
    for index in range(number):
        spots = far if index % 4 == 3 else near  # three quarters periventricular
        center = spots[rng.integers(len(spots))]
        radii = rng.uniform(3.0, 6.5, size=3) * growth
        _add_blob(fraction, center, radii / head.spacing, wobble)
        centers[index] = head.affine[:3, :3] @ center + head.affine[:3, 3]
    # Lesions end where white matter ends.
    return Lesions(fraction * np.clip(2 * tissues[1], 0, 1), centers)


def render(head: Head, lesions: Lesions, contrast: str, rng: np.random.Generator) -> np.ndarray:
    """Signal of the head in one contrast, without noise and bias: WM in T1w is 1.

    Returns
    -------
    ndarray, shape (X, Y, Z), float32
        On the grid of the head.
    """
    column = CONTRASTS.index(contrast)
    signal = np.array([means[column] for means in OUTSIDE.values()], np.float32)[head.outside]
    brain = head.tissues.sum(axis=0)
    inside = np.tensordot(np.array(BRAIN[contrast], np.float32), head.tissues, axes=1)
    inside += np.float32(DEEP_GREY[contrast]) * head.tissues[0] * head.deep
    inside += lesions.fraction * (np.float32(LESION[contrast]) - inside)
    signal = signal * (1 - brain) + inside
    texture = _smooth_noise(rng, signal.shape, 2.5 / head.spacing)
    return (signal * (1 + 0.025 * texture)).astype(np.float32)


def _paint(brain: np.ndarray, points: np.ndarray, spacing: float) -> np.ndarray:
    """Labels of `OUTSIDE` around the brain."""
    names = list(OUTSIDE)
    hull = _close(brain, 10.0 / spacing)
    away = ndimage.distance_transform_edt(~hull, sampling=spacing).astype(np.float32)
    x, y, z = points
    side = np.stack([np.abs(x), y, z])
    # Signed distances (mm), negative inside; the union is smooth, as skin is.
    skull = away - 15
    face = _ellipsoid(points, (0, 26, -62), (60, 64, 62))
    nose = _ellipsoid(points, (0, 84, -58), (13, 24, 20))
    neck = np.maximum((np.hypot(x / 54, (y + 22) / 60) - 1) * 54, z + 40)
    surface = _smooth_union(_smooth_union(_smooth_union(skull, neck, 18), face, 12), nose, 8)

    labels = np.zeros(brain.shape, np.uint8)

    def put(where: np.ndarray, name: str) -> None:
        labels[where] = names.index(name)

    put(surface < 0, "skin")
    put(surface < -2, "fat")
    put(surface < -7, "muscle")
    skull_band = (away > 2.5) & (away <= 8.5) & (surface < -3)
    put(skull_band, "bone")
    put(skull_band & (away > 4.2) & (away < 6.8) & (z > -20), "marrow")
    put(_ellipsoid(side, (31, 50, -40), (19, 26, 18)) < 0, "fat")  # orbits, eyes
    put(_ellipsoid(side, (32, 62, -40), (12.5, 12.5, 12.5)) < 0, "fluid")
    for centre, radii in (((0, 66, -52), (9, 26, 20)), ((28, 54, -66), (13, 14, 13)), ((0, 20, -88), (9, 8, 32))):
        put(_ellipsoid(side, centre, radii) < 0, "air")  # nose, maxillary sinuses, throat
    low = np.argwhere(brain)[:, 2].min()
    stem_y = float(y[brain & (np.arange(brain.shape[2]) == low)].mean())
    column = np.hypot(x, y - stem_y)
    below = z < float(z[0, 0, low]) + 1
    put(below & (np.hypot(x, y - stem_y - 22) < 13), "marrow")  # vertebral bodies
    put(below & (column < 13), "bone")
    put(below & (column < 9), "fluid")
    put(below & (column < 5), "cord")
    put((away <= 2.5) & (z > float(z[0, 0, low])), "fluid")  # around the brain and in its fissures
    return labels


def _ventricles(head: Head) -> np.ndarray:
    """CSF deep inside the brain."""
    depth = ndimage.distance_transform_edt(head.tissues.sum(axis=0) > 0.5, sampling=head.spacing)
    return (head.tissues[2] > 0.5) & (depth > 28)


def _add_blob(fraction: np.ndarray, center: np.ndarray, radii: np.ndarray, wobble: np.ndarray) -> None:
    """Add one soft ellipsoid (voxels), its border moved in and out by up to a fifth, in place."""
    reach = int(np.ceil(radii.max() * 2))
    box = tuple(slice(max(c - reach, 0), c + reach + 1) for c in center)
    grid = np.meshgrid(*(np.arange(s.start, min(s.stop, n)) for s, n in zip(box, fraction.shape, strict=True)),
                       indexing="ij")  # fmt: skip
    radius = np.sqrt(sum(((g - c) / r) ** 2 for g, c, r in zip(grid, center, radii, strict=True)))
    radius += 0.12 * wobble[box]
    blob = 1 / (1 + np.exp((radius - 1) / 0.10))
    fraction[box] = np.maximum(fraction[box], blob)


def _points(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """MNI mm of every voxel, shape (3, X, Y, Z)."""
    axes = [affine[i, i] * np.arange(n, dtype=np.float32) + affine[i, 3] for i, n in enumerate(shape)]
    return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def _ellipsoid(points: np.ndarray, center: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    """Roughly the signed distance (mm) to an ellipsoid, negative inside."""
    radius = np.sqrt(sum(((p - c) / r) ** 2 for p, c, r in zip(points, center, radii, strict=True)))
    return np.asarray((radius - 1) * min(radii), dtype=np.float32)


def _smooth_union(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    """Union of two signed distances, rounded over `width` mm (polynomial smooth minimum, Quilez 2013)."""
    overlap = np.maximum(width - np.abs(first - second), 0) / width
    return np.asarray(np.minimum(first, second) - overlap**2 * width / 4, dtype=np.float32)


def _close(mask: np.ndarray, radius: float) -> np.ndarray:
    """Morphological closing with a ball, by distances."""
    grown = ndimage.distance_transform_edt(~mask) <= radius
    return np.asarray((ndimage.distance_transform_edt(np.pad(grown, 1, mode="edge"))[1:-1, 1:-1, 1:-1] > radius) | mask)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Gaussian noise of unit variance, smooth over `sigma` voxels."""
    # Drawn on a coarse grid: the same statistics at a fraction of the cost.
    step = max(int(sigma), 1)
    coarse = rng.standard_normal([n // step + 2 for n in shape]).astype(np.float32)
    coarse = ndimage.gaussian_filter(coarse, sigma / step)
    coarse /= coarse.std()
    scale = [(c - 1) / max(n - 1, 1) for c, n in zip(coarse.shape, shape, strict=True)]
    return np.asarray(ndimage.affine_transform(coarse, np.diag(scale), output_shape=shape, order=1), dtype=np.float32)

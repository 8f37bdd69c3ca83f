"""Brain masks without a network: by the template, of stripped scans, and their cleaning."""

from __future__ import annotations

from itertools import product

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage, optimize

from bidsapp.image.bias import correct_bias
from bidsapp.image.grid import on_grid
from bidsapp.image.itk import Stage, ants_registration, shift
from bidsapp.image.morphology import grown, largest_filled
from bidsapp.image.register import center_of_mass, deform, near_mask, similarity_matrix
from bidsapp.image.resample import coarsen, crop, resample
from bidsapp.image.template import CLASS_MEANS, load_template, render_template

SEARCH_VOXEL_SIZE_MM = 6.0
#: The rim around the template's brain that is compared too: the skull, dark in every contrast; scalp lies beyond.
RIM_MM = 8.0
AFFINE = Stage("Affine[0.1]", "Mattes", "32,Regular,0.25", "60x10", "2x1", "1x0")
SYN = Stage("SyN[0.25,3,0]", "Mattes", "32,Regular,0.5", "20x5", "2x1", "1x0")
#: Brains are smaller than this, heads larger (litres; real heads: 2.6-4.5, cut ones included).
STRIPPED_MAXIMUM_L = 2.2
#: Intensity 4-11 mm below the surface (25th percentile) relative to the depth. Skull lies there in a head (measured:
#: 0.02-0.37), cortex in a stripped brain (0.70-0.94).
STRIPPED_MINIMUM_RATIO = 0.5
#: Thick slices leave steps in the registered mask.
BORDER_SMOOTHING_MM = 1.0


def extract_brain_by_template(img: nib.Nifti1Image, *, contrast: str) -> nib.Nifti1Image:
    """Brain mask of a scan by the template rendered in its contrast: found at 6 mm, then affine and SyN at 2 mm.

    Parameters
    ----------
    img : Nifti1Image
        3D on the work grid, near-RAS axes, about 1 mm; whole head, perhaps defaced or cut by the field of view, or
        already skull-stripped (then the brain is what is not background).
    contrast : {"T1w", "T2w", "FLAIR"}

    Returns
    -------
    Nifti1Image
        uint8, same grid: one connected piece without holes.

    Raises
    ------
    ValueError
        Unknown contrast, or a scan in which nothing can be found.
    """
    template_image = render_template(contrast, resolution_mm=2)
    data = np.asarray(img.dataobj, dtype=np.float32)
    if data.min() == data.max():
        raise ValueError("The scan is constant: there is no brain to be found in it.")
    inside = _not_background(data)
    if _is_stripped(data, inside, img.affine):
        return clean_mask(on_grid(inside, img))
    fixed = crop(template_image, margin=8)
    near = near_mask(load_template(2).mask, fixed, margin_mm=RIM_MM)
    start = _find_brain(img, contrast)
    moving = coarsen(_levelled(img, start), 2.0)
    center = center_of_mass(fixed)
    affine, _, _ = ants_registration(moving, fixed, start=start, center=center, fixed_mask=near, stages=[AFFINE])
    if contrast == "T1w":  # the bias field of a T1w can be stronger than the contrast of its tissues
        first = resample(load_template(1).mask, img, transform=np.linalg.inv(affine), interpolation="nearest")
        moving = coarsen(_levelled(correct_bias(img, first)[0], start), 2.0)
    _, inverse = deform(moving, fixed, affine=affine, stage=SYN, fixed_mask=near)
    whole = load_template(1).mask
    soft = resample(
        on_grid(np.asarray(whole.dataobj, dtype=np.float32), whole), img, transform=[np.linalg.inv(affine), inverse]
    )
    smooth = ndimage.gaussian_filter(np.asarray(soft.dataobj), BORDER_SMOOTHING_MM / voxel_sizes(img.affine))
    mask = clean_mask(on_grid((smooth > 0.5) & inside, img))
    if not np.asarray(mask.dataobj).any():
        raise ValueError("No brain was found: is this a head, and is its contrast the one its name says?")
    return mask


def stripped_brain(img: nib.Nifti1Image) -> nib.Nifti1Image | None:
    """Brain mask of a scan that is skull-stripped already (uint8, same grid): what is not background. None of a head.

    Parameters
    ----------
    img : Nifti1Image
        3D, about 1 mm.
    """
    data = np.asarray(img.dataobj, dtype=np.float32)
    inside = _not_background(data)
    return clean_mask(on_grid(inside, img)) if _is_stripped(data, inside, img.affine) else None


def clean_mask(mask: nib.Nifti1Image) -> nib.Nifti1Image:
    """Largest connected component (faces touch) of a mask, its holes filled.

    Parameters
    ----------
    mask : Nifti1Image
        3D; inside is above 0.

    Returns
    -------
    Nifti1Image
        uint8, same grid. Empty where `mask` is empty.
    """
    return on_grid(largest_filled(np.asarray(mask.dataobj) > 0), mask)


def _not_background(data: np.ndarray) -> np.ndarray:
    """What differs from the most frequent value, holes filled. Nearly everything where the background is noise."""
    values, counts = np.unique(data, return_counts=True)
    background = values[counts.argmax()]
    tolerance = 1e-3 * (np.percentile(data, 99) - data.min())
    return ndimage.binary_fill_holes(np.abs(data - background) > tolerance)


def _is_stripped(data: np.ndarray, inside: np.ndarray, affine: np.ndarray) -> bool:
    """Whether the foreground is a brain: as small as one, and without a skull below its surface."""
    litres = np.count_nonzero(inside) * abs(np.linalg.det(affine[:3, :3])) / 1e6
    if litres > STRIPPED_MAXIMUM_L:
        return False
    small = coarsen(nib.Nifti1Image(data * inside, affine), 3.0)
    within = np.asarray(coarsen(nib.Nifti1Image(inside.astype(np.float32), affine), 3.0).dataobj) > 0.5
    depth = ndimage.distance_transform_edt(within, sampling=3.0)
    values = np.asarray(small.dataobj)
    shell, core = values[(depth > 4) & (depth < 11)], values[depth > 15]
    if core.size == 0 or np.median(core) <= 0:
        return False
    return bool(np.percentile(shell, 25) > STRIPPED_MINIMUM_RATIO * np.median(core))


def _find_brain(img: nib.Nifti1Image, contrast: str) -> np.ndarray:
    """Similarity (template point -> scan point) with the best correlation in and around the brain, at 6 mm.

    A grid of shifts, tilts and sizes about the centre of the head, then Powell's method from the three best.
    """
    source = coarsen(img, SEARCH_VOXEL_SIZE_MM)
    values, head = _dark_shell(np.asarray(source.dataobj))
    target = coarsen(render_template(contrast), SEARCH_VOXEL_SIZE_MM)
    target = nib.Nifti1Image(np.pad(np.asarray(target.dataobj), 2), target.affine @ shift(np.full(3, -2)))
    near = grown(np.asarray(target.dataobj) > 0.1, RIM_MM, voxel_sizes(target.affine))
    # As flat as the scan was made: what is brighter than grey matter is cut.
    reference = np.minimum(np.asarray(target.dataobj)[near], CLASS_MEANS[contrast][0])
    points = apply_affine(target.affine, np.argwhere(near))
    to_voxel = np.linalg.inv(source.affine)
    back, to = shift(-center_of_mass(target)), shift(center_of_mass(on_grid(head, source)))

    def matrix(pose: np.ndarray) -> np.ndarray:  # cm, tens of degrees, tenths of log size: steps of like weight
        return shift(pose[:3] * 10) @ to @ similarity_matrix(float(np.exp(pose[6] / 10)), *(pose[3:6] * 10)) @ back

    def cost(pose: np.ndarray) -> float:
        at = apply_affine(to_voxel @ matrix(pose), points).T
        found = ndimage.map_coordinates(values, at, order=1, mode="constant", cval=np.nan)
        seen = np.isfinite(found)
        if seen.mean() < 0.4 or found[seen].std() == 0:
            return 0.0
        # The less of the brain lies in the field of view, the easier it is to agree.
        return -float(np.corrcoef(found[seen], reference[seen])[0, 1] * np.sqrt(seen.mean()))

    grid = [
        np.array([0, y, z, pitch, 0, 0, size], dtype=float)
        for y, z, pitch, size in product((-2, 0, 2), (-2, -1, 0, 1, 2, 4, 6), (-2, 0, 2), (-2, -1, 0, 1))
    ]
    options = {"maxiter": 4, "xtol": 0.05, "ftol": 1e-3}
    ends = [optimize.minimize(cost, pose, method="Powell", options=options) for pose in sorted(grid, key=cost)[:3]]
    return matrix(min(ends, key=lambda end: end.fun).x)


def _dark_shell(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The head at 6 mm with brain, scalp and air alike bright, and the head's mask.

    The skull is then the only dark shell. Otherwise the dark air around a bright scalp looks like the skull around a
    brain, above all on T2w.
    """
    positive = np.maximum(data, 0)
    bright = positive > 0.3 * np.median(positive[positive > positive.mean()])
    closed = ndimage.binary_closing(np.pad(bright, 4), iterations=3)[4:-4, 4:-4, 4:-4]
    head = np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(largest_filled(closed), 2, 0)], axis=2)
    level = np.median(positive[head & bright])
    return np.where(head, np.minimum(positive / level, 1), 1).astype(np.float32), head


def _levelled(img: nib.Nifti1Image, start: np.ndarray) -> nib.Nifti1Image:
    """Scaled to the median of the brain's core, cut at twice that: bright fat must not use up the histogram."""
    mask = load_template(2).mask
    core = ndimage.binary_erosion(np.asarray(mask.dataobj) > 0, iterations=5)
    values = np.asarray(resample(img, mask, transform=start).dataobj)[core]
    if not (values > 0).any():
        raise ValueError("No brain was found: is this a head, and is its contrast the one its name says?")
    level = np.median(values[values > 0])
    return on_grid(np.clip(np.asarray(img.dataobj, dtype=np.float32) / level, 0, 2), img)

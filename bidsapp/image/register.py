"""Registration: between the scans of a head (rigid), and to the template (affine and SyN)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations, product

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

from bidsapp.image.grid import on_grid
from bidsapp.image.itk import Stage, ants_registration, shift
from bidsapp.image.morphology import grown
from bidsapp.image.resample import coarsen, compose, crop, field_of_view, resample
from bidsapp.image.template import load_template, render_template

REGISTRATION_VOXEL_SIZE_MM = 2.0
SEARCH_VOXEL_SIZE_MM = 6.0
#: Nods of the head (degrees) that are tried.
PITCHES = (0, -15, 15, -30, 30)
#: Less `TemplateRegistration.similarity` raises the question whether the head is turned.
DOUBTFUL_SIMILARITY = 0.45
#: By so much another turn must beat the header's. A T1w whose header was upside down: 0.08; in five whose header was
#: right, that was better than the best of the others by 0.05 to 0.09.
CLEARLY_BETTER = 0.03
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
    turned : bool
        Where they hardly resemble each other: whether the head, turned by right angles, lies on the template better
        than as the header has it.
    """

    affine: np.ndarray
    to_template: nib.Nifti1Image
    to_subject: nib.Nifti1Image
    similarity: float
    turned: bool = False


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
    turned = similarity < DOUBTFUL_SIMILARITY and _fits_better_turned(moving, fixed)
    return TemplateRegistration(affine, to_template, to_subject, similarity, turned)


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
    """Best of a grid of head tilts; template -> subject."""
    tilts = (similarity_matrix(1, *degrees) for degrees in product(PITCHES, (0, -15, 15), (0, -15, 15)))
    return _best_turn(moving, fixed, tilts)[0]


def _fits_better_turned(moving: nib.Nifti1Image, fixed: nib.Nifti1Image) -> bool:
    """Whether one of the 23 turns by right angles, nodding allowed, fits clearly better than none."""
    nods = [similarity_matrix(1, pitch) for pitch in PITCHES]
    turns = []
    for axes in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            turn = np.eye(4)
            turn[:3, :3] = np.diag(signs)[:, axes]
            if np.linalg.det(turn) > 0 and not np.array_equal(turn, np.eye(4)):
                turns.append(turn)
    _, upright = _best_turn(moving, fixed, nods)
    _, turned = _best_turn(moving, fixed, (turn @ nod for turn in turns for nod in nods))
    return turned > upright + CLEARLY_BETTER


def _best_turn(
    moving: nib.Nifti1Image, fixed: nib.Nifti1Image, turns: Iterable[np.ndarray]
) -> tuple[np.ndarray, float]:
    """The turn with the highest correlation at 6 mm, brains laid on each other by centre and volume; and that."""
    source, target = (coarsen(img, SEARCH_VOXEL_SIZE_MM) for img in (moving, fixed))
    reference = np.asarray(target.dataobj).ravel()
    volumes = [np.count_nonzero(np.asarray(img.dataobj)) * np.prod(voxel_sizes(img.affine)) for img in (moving, fixed)]
    scale = float(np.clip((volumes[0] / volumes[1]) ** (1 / 3), 0.8, 1.25))
    to, back = shift(center_of_mass(source)), shift(-center_of_mass(target))
    best, best_score = np.eye(4), -np.inf
    for turn in turns:
        matrix = to @ turn @ np.diag([scale, scale, scale, 1]) @ back
        score = np.corrcoef(
            np.asarray(resample(source, target, transform=matrix).dataobj).ravel(),
            reference,
        )[0, 1]
        if score > best_score:
            best, best_score = matrix, score
    return best, float(best_score)


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


def near_mask(mask: nib.Nifti1Image, grid: nib.Nifti1Image, *, margin_mm: float = 8) -> nib.Nifti1Image:
    """A mask brought to a grid, and all within `margin_mm` of it there."""
    inside = np.asarray(resample(mask, grid, interpolation="nearest").dataobj) > 0
    return on_grid(grown(inside, margin_mm, voxel_sizes(grid.affine)), grid)


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

"""Put posteriors and lesions together into the images that are written, on any grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

from bidsapp.image.grid import average_onto, bounding_box, labels_onto, mask_onto, on_grid
from bidsapp.image.itk import displacements
from bidsapp.image.morphology import label_lesions, largest_piece
from bidsapp.image.resample import Resampler, jacobian_determinant
from bidsapp.image.save import as_probability
from bidsapp.labels import CSF, EXTRA_AXIAL_CSF, LESION, PARENCHYMA, STRUCTURE_LESION, STRUCTURES, TISSUES

#: The smallest lesion of the models is a row of three voxels of 1 mm; what is less on another grid was cut off by it.
SMALLEST_LESION_MM3 = 3.0
#: Voxels around the brain's box: its surface is no border of the volume, unless it is one of the scan.
BOX_MARGIN = 2
#: Voxels of the work grid between the points at which a bias field is carried to another scan.
FIELD_STEP = 4


@dataclass(frozen=True)
class Segmentation:
    """What the models found, on the work grid.

    Attributes
    ----------
    mask : Nifti1Image
        Brain mask.
    posteriors : Nifti1Image
        4D, last axis in the order of `labels.TISSUES`, sums to 1 in the mask.
    separable : bool
        Whether GM and WM can be told apart.
    lesion_mask, lesion_probability : Nifti1Image or None
        None where lesions were not looked for.
    structures : Nifti1Image
        FreeSurfer's labels (`labels.STRUCTURES`), left and right told apart.
    """

    mask: nib.Nifti1Image
    posteriors: nib.Nifti1Image
    separable: bool
    structures: nib.Nifti1Image
    lesion_mask: nib.Nifti1Image | None = None
    lesion_probability: nib.Nifti1Image | None = None


@dataclass(frozen=True)
class Results:
    """The same on a grid of the output: masks uint8, probabilities float32 in steps of 1/1000.

    `posteriors` exclude lesions: they and the lesion mask sum to 1 inside the brain mask.
    """

    mask: nib.Nifti1Image
    posteriors: nib.Nifti1Image
    dseg: nib.Nifti1Image
    structures: nib.Nifti1Image
    lesion_mask: nib.Nifti1Image | None
    lesion_probability: nib.Nifti1Image | None


def on_native(found: Segmentation, reference: nib.Nifti1Image) -> Results:
    """Results on the grid of the reference scan, each voxel the mean of what it covers.

    They fill the box of the brain (`brain_box`) in that grid; `grid.whole` brings them onto all of it.
    """
    # Averaging over thick slices can cut specks off the mask's rim.
    mask = largest_piece(mask_onto(found.mask, reference))
    box = brain_box(mask)
    grid = reference.slicer[box]
    maps = {name: _array(average_onto(img, grid)) for name, img in _maps(found).items()}
    structures = labels_onto(found.structures, grid, background=False)
    lesion = None if found.lesion_mask is None else mask_onto(found.lesion_mask, grid)
    return _assemble(mask[box], maps, lesion, structures, separable=found.separable, grid=grid)


def brain_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The brain's box, with a margin: a quarter of a head, which may have 100 million voxels of half a millimetre."""
    return bounding_box(mask, margin=BOX_MARGIN) if mask.any() else (slice(None),) * mask.ndim


def in_template(found: Segmentation, to_template: Resampler) -> Results:
    """Results on the template's grid.

    Parameters
    ----------
    found : Segmentation
    to_template : Resampler
        Onto the template, through the displacement field `to_template`.
    """
    mask = largest_piece(_array(to_template(_as_float(found.mask))) >= 0.5)
    in_brain = to_template.only(mask)  # a fifth of the grid
    maps = {name: _array(in_brain(img)) for name, img in _maps(found).items()}
    structures = in_brain(found.structures, interpolation="nearest")
    lesion = None if found.lesion_mask is None else _array(in_brain(_as_float(found.lesion_mask))) >= 0.5
    return _assemble(mask, maps, lesion, structures, separable=found.separable, grid=to_template.grid)


def carry_scan(scan: nib.Nifti1Image, onto: Resampler) -> nib.Nifti1Image:
    """A preprocessed scan on another grid, as dark as its darkest voxel where it shows nothing.

    Not 0, which of z-scores is the brightness of the brain: air beyond the field of view would look like tissue.
    """
    data = np.asarray(scan.dataobj, dtype=np.float32)
    darkest = data.min()
    carried = onto(on_grid(data - darkest, scan))
    return on_grid(np.asarray(carried.dataobj) + darkest, carried)


def modulated(share: nib.Nifti1Image, to_template: nib.Nifti1Image) -> nib.Nifti1Image:
    """A tissue in the template's space by its volume in the subject: what voxel-based morphometry compares.

    Parameters
    ----------
    share : Nifti1Image
        Share of the tissue in each voxel of the template's grid, 0 to 1.
    to_template : Nifti1Image
        Displacement field that carries points of the template to the subject.

    Returns
    -------
    Nifti1Image
        float32: the share times the determinant of the field's Jacobian, so that the sum times the voxel volume is the
        volume in the subject (Good et al. 2001, NeuroImage 14:21-36; Ashburner and Friston 2000, NeuroImage
        11:805-821).
    """
    ratio = nib.Nifti1Image(jacobian_determinant(to_template), to_template.affine)
    volume = _array(share) * np.maximum(_array(Resampler(share)(ratio)), 0)
    return on_grid(volume, share)


def with_sides(structures: nib.Nifti1Image, to_subject: nib.Nifti1Image) -> nib.Nifti1Image:
    """Left and right told apart by the side of the template's midplane that each voxel is carried to.

    Parameters
    ----------
    structures : Nifti1Image
        Labels of the left structures (`labels.STRUCTURES`) for both sides.
    to_subject : Nifti1Image
        Displacement field that carries points of the subject to the template.

    Returns
    -------
    Nifti1Image
        uint8, same grid.
    """
    data = np.asanyarray(structures.dataobj).astype(np.uint8)
    swap = np.arange(256, dtype=np.uint8)
    for structure in STRUCTURES:
        swap[structure.left] = structure.right
    voxels = np.argwhere(swap[data] != data)
    points = voxels @ structures.affine[:3, :3].T + structures.affine[:3, 3]
    right = carry_points(points, to_subject)[:, 0] > 0
    i, j, k = voxels[right].T
    out = data.copy()
    out[i, j, k] = swap[data[i, j, k]]
    return on_grid(out, structures)


def lesions_on_scan(
    found: Segmentation, scan: nib.Nifti1Image, scan_work: nib.Nifti1Image, matrix: np.ndarray
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Lesion mask and probability on the own grid of another scan of the session.

    Parameters
    ----------
    found : Segmentation
        With lesions.
    scan, scan_work : Nifti1Image
        The scan on its native and on its own work grid.
    matrix : array, shape (4, 4)
        Rigid transform that resamples the scan onto the reference (reference mm to scan mm, RAS).
    """
    assert found.lesion_mask is not None and found.lesion_probability is not None
    onto_scan = Resampler(scan_work, np.linalg.inv(matrix))
    lesions = [_as_float(img) for img in (found.lesion_mask, found.lesion_probability)]
    some = onto_scan.only(_reached(sum(_array(img) != 0 for img in lesions) > 0, lesions[0].affine, scan_work, matrix))
    mask, probability = (some(img) for img in lesions)
    return on_grid(_lesions(mask_onto(mask, scan), scan), scan), as_probability(average_onto(probability, scan))


def tissues_on_scan(
    tissues: Sequence[nib.Nifti1Image],
    field: nib.Nifti1Image,
    scan: nib.Nifti1Image,
    scan_work: nib.Nifti1Image,
    matrix: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Another scan of the session as it was acquired, its bias taken away, with the tissues of the reference.

    Parameters
    ----------
    tissues : sequence of Nifti1Image
        Shares, on any grid of the reference.
    field : Nifti1Image
        Bias field of the scan, on the reference's work grid.
    scan, scan_work : Nifti1Image
        The scan on its native grid, and its own work grid (of which no voxel is read).
    matrix : array, shape (4, 4)
        Rigid transform that resamples the scan onto the reference (reference mm to scan mm, RAS).

    Returns
    -------
    corrected : ndarray, shape (X, Y, Z)
        In the box of the brain in the native grid, as `tissues` and `field`.
    tissues : ndarray, shape (N, X, Y, Z)
    field : ndarray, shape (X, Y, Z)
    """
    present = np.any([_array(img) > 0 for img in tissues], axis=0)
    seen, seen_work = (_reached(present, tissues[0].affine, grid, matrix) for grid in (scan, scan_work))
    grid = scan.slicer[brain_box(seen)]
    onto_scan = Resampler(scan_work, np.linalg.inv(matrix)).only(seen_work)
    shares = np.stack([_array(average_onto(onto_scan(_as_float(img)), grid)) for img in tissues])
    # The field is smooth: a few of its points suffice.
    coarse = scan_work.slicer[
        tuple(slice(min(FIELD_STEP // 2, size - 1), None, FIELD_STEP) for size in scan_work.shape)
    ]
    bias = _array(average_onto(Resampler(coarse, np.linalg.inv(matrix))(_as_float(field)), grid))
    return without_field(_array(grid), bias), shares, bias


def without_field(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    """A scan without its bias field; 0 where that is not known."""
    return np.where(field > 0, image / np.where(field > 0, field, 1), 0)


def carry_points(points: np.ndarray, field: nib.Nifti1Image) -> np.ndarray:
    """Carry points through a displacement field.

    Parameters
    ----------
    points : array, shape (N, 3)
        RAS mm in the space the field is defined on.
    field : Nifti1Image
        ITK displacement field; `to_subject` carries points of the subject to the template.

    Returns
    -------
    array, shape (N, 3)
        RAS mm. Points outside the field move as the nearest point inside does.
    """
    voxels = np.linalg.inv(field.affine) @ np.c_[points, np.ones(len(points))].T
    moved = [
        ndimage.map_coordinates(component, voxels[:3], order=1, mode="nearest")
        for component in np.moveaxis(displacements(field), -1, 0)
    ]
    return points + np.stack(moved, axis=-1)


def _maps(found: Segmentation) -> dict[str, nib.Nifti1Image]:
    """The probabilities that are carried to another grid, by name, as float images."""
    maps: dict[str, nib.Nifti1Image | None] = {
        label.abbreviation: found.posteriors.slicer[..., index] for index, label in enumerate(TISSUES)
    }
    if found.lesion_probability is not None:
        maps["lesion_probability"] = found.lesion_probability
    return {name: _as_float(img) for name, img in maps.items() if img is not None}


def _reached(present: np.ndarray, affine: np.ndarray, grid: nib.Nifti1Image, matrix: np.ndarray) -> np.ndarray:
    """The box of `grid` (bool) to which a rigid `matrix` can carry what is present in an image, with a margin."""
    where = np.zeros(grid.shape[:3], dtype=bool)
    if not present.any():
        return where
    corners = np.array(list(product(*((side.start - 1, side.stop) for side in bounding_box(present, margin=0)))))
    reached = apply_affine(np.linalg.inv(grid.affine) @ matrix @ affine, corners)
    low = np.clip(np.floor(reached.min(axis=0)).astype(int) - 1, 0, None)
    high = np.clip(np.ceil(reached.max(axis=0)).astype(int) + 2, 0, None)
    where[tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))] = True
    return where


def _assemble(
    mask: np.ndarray,
    maps: dict[str, np.ndarray],
    lesion: np.ndarray | None,
    structures: nib.Nifti1Image,
    *,
    separable: bool,
    grid: nib.Nifti1Image,
) -> Results:
    lesion = None if lesion is None else _lesions(lesion, grid) & mask
    keep = mask if lesion is None else mask & ~lesion
    posteriors = np.zeros((len(TISSUES), *mask.shape), np.float32)
    dseg = np.zeros(mask.shape, np.uint8)
    if mask.any():  # in the brain's box: a third of a head
        brain = bounding_box(mask, margin=0)
        classes = [maps[label.abbreviation][brain] for label in TISSUES]
        total = np.maximum(sum(classes), 1e-6)
        for tissue, out in zip(classes, posteriors, strict=True):
            out[brain] = np.round(np.where(keep[brain], tissue / total, 0), 3)
        shares = posteriors[(slice(None), *brain)]
        dseg[brain] = np.where(keep[brain], _likeliest(shares, separable=separable), np.uint8(0))
    if lesion is not None:
        dseg[lesion] = LESION.index
    probability = None
    if "lesion_probability" in maps:
        probability = as_probability(on_grid(maps["lesion_probability"] * mask, grid))
    return Results(
        mask=on_grid(mask, grid),
        posteriors=on_grid(np.moveaxis(posteriors, 0, -1), grid),
        dseg=on_grid(dseg, grid),
        structures=on_grid(_structures(structures, mask, lesion), grid),
        lesion_mask=None if lesion is None else on_grid(lesion, grid),
        lesion_probability=probability,
    )


def _lesions(lesion: np.ndarray, grid: nib.Nifti1Image) -> np.ndarray:
    """Voxels of lesions, without fragments (26-connected) that are no lesion by themselves."""
    voxel_mm3 = float(np.prod(voxel_sizes(grid.affine)))
    least = int(np.ceil(SMALLEST_LESION_MM3 * (1 - 1e-3) / voxel_mm3))  # the header's digits are rounded
    return label_lesions(lesion, minimum_voxels=least)[0] > 0


def _structures(structures: nib.Nifti1Image, mask: np.ndarray, lesion: np.ndarray | None) -> np.ndarray:
    """The brain mask filled: fluid where no structure is, lesions a label of their own."""
    labels = np.asanyarray(structures.dataobj).astype(np.uint8)
    labels = np.where(mask, np.where(labels > 0, labels, np.uint8(EXTRA_AXIAL_CSF)), np.uint8(0))
    if lesion is not None:
        labels[lesion] = STRUCTURE_LESION.index
    return labels


def _likeliest(shares: np.ndarray, *, separable: bool) -> np.ndarray:
    """Index of the tissue with the largest share, of `shares` (tissue first)."""
    if separable:
        return np.array([label.index for label in TISSUES], dtype=np.uint8)[shares.argmax(axis=0)]
    return np.where(shares[TISSUES.index(CSF)] > 0.5, CSF.index, PARENCHYMA.index).astype(np.uint8)


def _array(img: nib.Nifti1Image) -> np.ndarray:
    return np.asanyarray(img.dataobj, dtype=np.float32)


def _as_float(img: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(_array(img), img.affine)

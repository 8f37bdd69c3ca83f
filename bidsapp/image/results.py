"""Put posteriors and lesions together into the images that are written, on any grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

from bidsapp.image.grid import average_onto, on_grid
from bidsapp.image.itk import displacements
from bidsapp.image.register import resample
from bidsapp.image.save import as_probability
from bidsapp.labels import CSF, LESION, PARENCHYMA, TISSUES


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
    """

    mask: nib.Nifti1Image
    posteriors: nib.Nifti1Image
    separable: bool
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
    lesion_mask: nib.Nifti1Image | None
    lesion_probability: nib.Nifti1Image | None


def on_native(found: Segmentation, reference: nib.Nifti1Image) -> Results:
    """Results on the grid of the reference scan, each voxel the mean of what it covers."""
    return _carry(found, reference, lambda img: average_onto(img, reference))


def in_template(found: Segmentation, template: nib.Nifti1Image, field: nib.Nifti1Image) -> Results:
    """Results on the template's grid, through the displacement field `to_template`."""
    return _carry(found, template, lambda img: resample(img, template, transform=field))


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
    inverse = np.linalg.inv(matrix)
    mask, probability = (
        average_onto(resample(_as_float(img), scan_work, transform=inverse), scan)
        for img in (found.lesion_mask, found.lesion_probability)
    )
    return on_grid(np.asanyarray(mask.dataobj) >= 0.5, scan), as_probability(probability)


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


def _carry(found: Segmentation, grid: nib.Nifti1Image, move: Callable[[nib.Nifti1Image], nib.Nifti1Image]) -> Results:
    mask = _moved(found.mask, move) >= 0.5
    # Class by class: a 4D array of a large scan would take the memory of four.
    classes = [_moved(found.posteriors.slicer[..., index], move) for index in range(len(TISSUES))]
    total = np.maximum(sum(classes), 1e-6)
    lesion = None if found.lesion_mask is None else (_moved(found.lesion_mask, move) >= 0.5) & mask
    keep = mask if lesion is None else mask & ~lesion
    posteriors = np.stack([np.round(np.where(keep, tissue / total, 0), 3) for tissue in classes], axis=-1)
    dseg = _dseg(posteriors, keep, lesion, separable=found.separable)
    probability = None
    if found.lesion_probability is not None:
        probability = as_probability(on_grid(_moved(found.lesion_probability, move) * mask, grid))
    return Results(
        mask=on_grid(mask, grid),
        posteriors=on_grid(posteriors.astype(np.float32), grid),
        dseg=on_grid(dseg, grid),
        lesion_mask=None if lesion is None else on_grid(lesion, grid),
        lesion_probability=probability,
    )


def _dseg(posteriors: np.ndarray, keep: np.ndarray, lesion: np.ndarray | None, *, separable: bool) -> np.ndarray:
    if separable:
        winner = np.array([label.index for label in TISSUES], dtype=np.uint8)[posteriors.argmax(axis=-1)]
    else:
        csf = posteriors[..., TISSUES.index(CSF)]
        winner = np.where(csf > 0.5, CSF.index, PARENCHYMA.index).astype(np.uint8)
    dseg = np.where(keep, winner, np.uint8(0))
    if lesion is not None:
        dseg[lesion] = LESION.index
    return dseg


def _moved(img: nib.Nifti1Image, move: Callable[[nib.Nifti1Image], nib.Nifti1Image]) -> np.ndarray:
    return np.asanyarray(move(_as_float(img)).dataobj, dtype=np.float32)


def _as_float(img: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asanyarray(img.dataobj, dtype=np.float32), img.affine)

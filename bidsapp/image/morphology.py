"""Binary arrays: their pieces, their surroundings, lesions as pieces of a mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from bidsapp.image.grid import bounding_box

#: Voxels that share a face, an edge or a corner belong to one lesion.
CONNECTIVITY_26 = np.ones((3, 3, 3), dtype=bool)


def binary(mask: np.ndarray) -> np.ndarray:
    """A mask of three dimensions as bool: what is above 0; a ValueError for any other array."""
    mask = np.asarray(mask)
    if mask.ndim != 3:
        raise ValueError(f"A mask must have three dimensions, not shape {mask.shape}.")
    return mask if mask.dtype == bool else mask > 0


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest connected component (faces touch) of a mask; of several alike, the first. Empty if the mask is.

    Parameters
    ----------
    mask : ndarray of bool, shape (X, Y, Z)

    Returns
    -------
    ndarray of bool, shape (X, Y, Z)
    """
    pieces, count = ndimage.label(mask)
    if count < 2:
        return mask
    return np.asarray(pieces == np.bincount(pieces.ravel())[1:].argmax() + 1)


def largest_filled(mask: np.ndarray) -> np.ndarray:
    """The largest connected component of a mask (`largest_piece`), its holes filled."""
    return np.asarray(ndimage.binary_fill_holes(largest_piece(mask)))


def grown(mask: np.ndarray, millimetres: float, voxel_size_mm: Sequence[float]) -> np.ndarray:
    """The mask and all within `millimetres` of it.

    Parameters
    ----------
    mask : ndarray of bool, shape (X, Y, Z)
    millimetres : float
    voxel_size_mm : sequence of float

    Returns
    -------
    ndarray of bool, shape (X, Y, Z)
    """
    out = np.zeros_like(mask)
    if mask.any():  # distances are costly, so only where they can matter
        box = bounding_box(mask, margin=int(np.ceil(millimetres / min(voxel_size_mm))))
        out[box] = ndimage.distance_transform_edt(~mask[box], sampling=voxel_size_mm) <= millimetres
    return out


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
    mask = binary(mask)
    labels = np.zeros(mask.shape, np.int32)
    if not mask.any():
        return labels, np.zeros(0, np.int64)
    box = bounding_box(mask, margin=0)  # of all lesions together, a small part of a head
    found, count = ndimage.label(mask[box], structure=CONNECTIVITY_26)
    sizes = np.bincount(found.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] >= minimum_voxels]
    renumber = np.zeros(count + 1, dtype=np.int32)
    renumber[order + 1] = np.arange(1, len(order) + 1)
    labels[box] = renumber[found]
    return labels, sizes[order]

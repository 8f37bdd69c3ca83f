"""Parts of lesions: which part a voxel belongs to, and the volumes of parts and of the regions they make up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bidsapp.labels import TUMOR_COMPARTMENTS, TUMOR_REGIONS, Compartment


def divide(shares: np.ndarray, lesion: np.ndarray, parts: Sequence[Compartment]) -> np.ndarray:
    """Labels of the likeliest compartment in each voxel of the lesions.

    Parameters
    ----------
    shares : ndarray, shape (parts, X, Y, Z)
        Probability of each compartment.
    lesion : ndarray of bool, shape (X, Y, Z)
    parts : sequence of Compartment
        In the order of `shares`.

    Returns
    -------
    ndarray of uint8, shape (X, Y, Z)
        0 outside the lesions.
    """
    indices = np.array([part.label.index for part in parts], np.uint8)
    return np.where(lesion, indices[np.argmax(shares, axis=0)], np.uint8(0))


def compartment_row(labels: np.ndarray, parts: Sequence[Compartment], *, voxel_volume_mm3: float) -> dict[str, float]:
    """Volume of each compartment and, of a tumor, of the regions of BraTS (Menze et al. 2015, IEEE TMI 34:1993).

    Parameters
    ----------
    labels : ndarray of int, shape (X, Y, Z)
        From `divide`.
    parts : sequence of Compartment
    voxel_volume_mm3 : float

    Returns
    -------
    dict
        In mm3, by the columns of `columns`; the parts sum up to the volume of the lesions.
    """
    sizes = {part: float(np.count_nonzero(labels == part.label.index)) * voxel_volume_mm3 for part in parts}
    row = {part.column: size for part, size in sizes.items()}
    if _is_tumor(parts):
        for column, _, members in TUMOR_REGIONS:
            row[column] = sum(size for part, size in sizes.items() if part.label in members)
    return row


def columns(parts: Sequence[Compartment]) -> dict[str, dict[str, str]]:
    """Data dictionary of `compartment_row`."""
    out = {
        part.column: {
            "LongName": part.label.name,
            "Description": f"Volume of the lesions' voxels that are likeliest to be {part.label.name}.",
            "Units": "mm^3",
        }
        for part in parts
    }
    if _is_tumor(parts):
        for column, name, members in TUMOR_REGIONS:
            out[column] = {
                "LongName": name,
                "Description": "Volume of " + " + ".join(member.name.lower() for member in members) + ", as in BraTS.",
                "Units": "mm^3",
            }
    return out


def _is_tumor(parts: Sequence[Compartment]) -> bool:
    return all(part.label in TUMOR_COMPARTMENTS for part in parts)

"""Change between two sessions of one subject, in the space half-way between them: arrays in, numbers out.

A lesion that only one of two segmentations shows is mostly one that the other missed. Here a difference of the masks
counts as a change only where FLAIR itself became brighter or darker, as in a subtraction image (Moraal et al. 2010,
Radiology 255:154-163; Schmidt et al. 2019, NeuroImage Clin 23:101849).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage, sparse

from bidsapp.image.intensity import robust_spread
from bidsapp.image.morphology import label_lesions
from bidsapp.labels import CHANGE_GROWTH, CHANGE_LOSS, CHANGE_NEW, CHANGE_RESOLVED, CHANGE_STABLE, CHANGE_UNCONFIRMED
from bidsapp.measure.comparability import EDGE_RATIO, TIV_PERCENT

#: In the order in which lesions are listed.
STATUSES = ("new", "enlarging", "shrinking", "resolved", "stable", "unconfirmed", "small")

#: Difference of FLAIR, in robust standard deviations of that of healthy white matter, from which it is a change: the
#: usual 2.5 % of either tail. For a whole lesion it is the mean that counts, which chance hardly ever reaches.
BRIGHTNESS = 2.0
#: Lesions of two sessions are one where they share this much of the smaller one.
SHARED = 0.1
#: A gain is a lesion of its own, though the later mask joins it to an old one, where less than this share of it lies
#: within `NEAR_MM` of the earlier mask: growth surrounds what was there. The same holds for losses.
APART, NEAR_MM = 0.25, 2.0
#: Change of a lesion, relative to its size before, that repeated measurements do not produce by chance, for lesions
#: with a cross-section below and above 67 mm2: Goodkin et al. 1992 (Arch Neurol 49:261-263), there of areas.
RELATIVE_CHANGE = (0.452, 0.242)
LARGE_CROSS_SECTION_MM2 = 67.0
#: A new lesion of multiple sclerosis is at least this wide (mm): Filippi et al. 2019 (Brain 142:1858-1875).
LEAST_WIDTH_MM = 3.0

#: Data dictionary of the table of changing lesions, in the order of its columns.
LESION_CHANGE_COLUMNS: dict[str, dict[str, Any]] = {
    "session_from": {"LongName": "Earlier session", "Description": "Label with ses-."},
    "session_to": {"LongName": "Later session", "Description": "Label with ses-."},
    "change_id": {
        "LongName": "Number within the interval",
        "Description": "By status (new, enlarging, shrinking, resolved, stable, unconfirmed, small), then by volume.",
    },
    "status": {
        "LongName": "What became of the lesion",
        "Description": "A difference between the two masks counts only where FLAIR became brighter or darker by at "
        "least 2 robust standard deviations of the difference in healthy white matter, and only if it exceeds "
        "minimum_change_mm3 of the interval.",
        "Levels": {
            "new": "only in the later session, and brighter there",
            "enlarging": "grown by more than 45 % (24 % where its cross-section is above 67 mm2; Goodkin et al. 1992), "
            "or a confluent lesion that gained or lost that much in solid parts, and gained more",
            "stable": "neither enlarging nor shrinking",
            "shrinking": "as enlarging, the other way: shrunk by that much, or lost more than gained",
            "resolved": "only in the earlier session, and darker since",
            "unconfirmed": "segmented in one session only, with no change of brightness",
            "small": "below minimum_change_mm3 in both sessions: not compared",
        },
    },
    "volume_from_mm3": {
        "LongName": "Volume before",
        "Description": "In the earlier session's lesion mask, carried to the half-way space.",
        "Units": "mm^3",
    },
    "volume_to_mm3": {
        "LongName": "Volume after",
        "Description": "In the later session's lesion mask, carried to the half-way space.",
        "Units": "mm^3",
    },
    "gain_mm3": {
        "LongName": "Gained",
        "Description": "Volume that is only in the later mask and became brighter (see status).",
        "Units": "mm^3",
    },
    "loss_mm3": {
        "LongName": "Lost",
        "Description": "Volume that is only in the earlier mask and became darker (see status).",
        "Units": "mm^3",
    },
    "change_percent": {
        "LongName": "Relative change",
        "Description": "100 times (gain_mm3 - loss_mm3) / volume_from_mm3; n/a for lesions that only one session "
        "shows.",
        "Units": "percent",
    },
    "brightness_change": {
        "LongName": "Change of brightness on FLAIR",
        "Description": "Mean over the lesion (the masks of both sessions together), in robust standard deviations of "
        "the difference in healthy white matter: positive is brighter in the later session.",
    },
    "halfway_x_mm": {
        "LongName": "Centroid in the half-way space, left to right",
        "Description": "Centroid of both sessions' masks together, in the space of the pictures of changes and of the "
        "images named space-halfway.",
        "Units": "mm",
    },
    "halfway_y_mm": {
        "LongName": "Centroid in the half-way space, posterior to anterior",
        "Description": "As halfway_x_mm.",
        "Units": "mm",
    },
    "halfway_z_mm": {
        "LongName": "Centroid in the half-way space, inferior to superior",
        "Description": "As halfway_x_mm.",
        "Units": "mm",
    },
    "mni_x_mm": {
        "LongName": "Centroid in MNI space, left to right",
        "Description": "Centroid of both sessions' masks together, carried to MNI152NLin2009aSym.",
        "Units": "mm",
    },
    "mni_y_mm": {
        "LongName": "Centroid in MNI space, posterior to anterior",
        "Description": "As mni_x_mm.",
        "Units": "mm",
    },
    "mni_z_mm": {
        "LongName": "Centroid in MNI space, inferior to superior",
        "Description": "As mni_x_mm.",
        "Units": "mm",
    },
    "lesions_from": {
        "LongName": "Lesions of the earlier session",
        "Description": "The lesion_id of these lesions in the earlier session's table, separated by commas.",
    },
    "lesions_to": {
        "LongName": "Lesions of the later session",
        "Description": "The lesion_id of these lesions in the later session's table, separated by commas.",
    },
    "region": {
        "LongName": "Region of the 2017 McDonald criteria",
        "Description": "The region, in the table of lesions, of the largest of these lesions: in the later session if "
        "it is there, else in the earlier one.",
    },
}

_OF_STATUS = {
    "new": "New lesions",
    "enlarging": "Enlarging lesions",
    "stable": "Stable lesions",
    "shrinking": "Shrinking lesions",
    "resolved": "Resolved lesions",
    "unconfirmed": "Unconfirmed lesions",
    "small": "Small lesions",
}

#: Data dictionary of the table of intervals, in the order of its columns.
INTERVAL_COLUMNS: dict[str, dict[str, Any]] = {
    "session_from": {"LongName": "Earlier session", "Description": "Label with ses-."},
    "session_to": {"LongName": "Later session", "Description": "Label with ses-; the next one in order."},
    "years": {
        "LongName": "Time between the sessions",
        "Description": "From acq_time in sessions.tsv or scans.tsv; n/a where the dataset gives no dates.",
        "Units": "year",
    },
    **{
        f"{status}_count": {"LongName": name, "Description": f"Number of lesions with the status {status}."}
        for status, name in _OF_STATUS.items()
    },
    "new_mm3": {
        "LongName": "Volume of the new lesions",
        "Description": "Sum of volume_to_mm3 over the lesions with the status new.",
        "Units": "mm^3",
    },
    "growth_mm3": {
        "LongName": "Growth of enlarging and shrinking lesions",
        "Description": "Sum of gain_mm3 over the lesions with the status enlarging or shrinking.",
        "Units": "mm^3",
    },
    "shrinkage_mm3": {
        "LongName": "Shrinkage of enlarging and shrinking lesions",
        "Description": "Sum of loss_mm3 over the lesions with the status enlarging or shrinking.",
        "Units": "mm^3",
    },
    "resolved_mm3": {
        "LongName": "Volume of the resolved lesions",
        "Description": "Sum of volume_from_mm3 over the lesions with the status resolved.",
        "Units": "mm^3",
    },
    "lesion_from_mm3": {
        "LongName": "Lesion load before",
        "Description": "Volume of the earlier lesion mask in the half-way space, where both sessions show the brain.",
        "Units": "mm^3",
    },
    "lesion_to_mm3": {
        "LongName": "Lesion load after",
        "Description": "Volume of the later lesion mask in the half-way space, where both sessions show the brain.",
        "Units": "mm^3",
    },
    "lesion_change_mm3": {
        "LongName": "Change of the lesion load, confirmed",
        "Description": "Sum of gain_mm3 minus sum of loss_mm3 over the lesions that are new, enlarging, shrinking or "
        "resolved. The difference of the two loads also holds disagreements of the two segmentations without any "
        "change in the scans.",
        "Units": "mm^3",
    },
    "lesion_change_mm3_per_year": {
        "LongName": "Change of the lesion load, confirmed, per year",
        "Description": "lesion_change_mm3 / years; n/a where the dataset gives no dates or they are less than half a "
        "year apart.",
        "Units": "mm^3/year",
    },
    "brain_change_percent": {
        "LongName": "Change of the brain's volume",
        "Description": "Mean over the parenchyma of the Jacobian of the deformation between the sessions in the "
        "half-way space, less 1, times 100; mean of both directions (Boyes et al. 2006, NeuroImage 32:159-169). "
        "Negative is a loss. n/a where the sessions differ in contrasts, voxel edges (by more than "
        f"{100 * (EDGE_RATIO - 1):.0f} %) or estimated intracranial volume (by more than {TIV_PERCENT:g} %): another "
        "protocol or scanner alone changes it more than a year of atrophy does.",
        "Units": "percent",
    },
    "brain_change_percent_per_year": {
        "LongName": "Change of the brain's volume per year",
        "Description": "brain_change_percent / years; n/a where the dataset gives no dates or they are less than half "
        "a year apart.",
        "Units": "percent/year",
    },
    "minimum_change_mm3": {
        "LongName": "Least change that counts",
        "Description": "Volume of a ball of 3 mm in diameter, or of a disc of 3 mm in one slice of the coarser scan if "
        "that is larger.",
        "Units": "mm^3",
    },
    "registration_disagreement_mm": {
        "LongName": "Disagreement of the registrations",
        "Description": "Root mean square distance, over the brain's surface, between where the registration to the "
        "first session and the one back put a point; the larger value of the two sessions.",
        "Units": "mm",
    },
    "common_brain_percent": {
        "LongName": "Brain seen by both sessions",
        "Description": "Voxels that are in both brain masks, as a share of those that are in at least one.",
        "Units": "percent",
    },
    "notes": {
        "LongName": "Notes",
        "Description": "What makes the sessions less comparable, separated by '; '; 'none' where nothing was found.",
    },
}

#: Shorter intervals make no yearly rate: it would be noise, enlarged.
LEAST_YEARS = 0.5
#: What `compare` tells of a lesion; the other columns come from the sessions' tables.
_MEASURED = [
    "status", "volume_from_mm3", "volume_to_mm3", "gain_mm3", "loss_mm3", "change_percent", "brightness_change",
]  # fmt: skip


@dataclass(frozen=True)
class Visit:
    """A session in the half-way space; arrays (X, Y, Z).

    Attributes
    ----------
    lesion : ndarray of bool
    flair : ndarray of float
        Bias-corrected, in any linear scale.
    brain : ndarray of bool
        Brain mask.
    white : ndarray of bool
        White matter, lesions excluded (where it cannot be told from grey matter: parenchyma).
    """

    lesion: np.ndarray
    flair: np.ndarray
    brain: np.ndarray
    white: np.ndarray


@dataclass(frozen=True)
class Change:
    """What changed between two sessions.

    Attributes
    ----------
    table : DataFrame
        One row per lesion: ``change_id``, ``status``, volumes, ``brightness_change`` of `LESION_CHANGE_COLUMNS`.
    lesions : ndarray of int, shape (X, Y, Z)
        Number of the row (from 1) each voxel belongs to.
    map : ndarray of uint8, shape (X, Y, Z)
        Labels of `labels.CHANGE_LOOKUP`.
    difference : ndarray of float, shape (X, Y, Z)
        Change of FLAIR in standard deviations of that of healthy white matter; 0 outside the common brain.
    common : ndarray of bool, shape (X, Y, Z)
        Brain of both.
    """

    table: pd.DataFrame
    lesions: np.ndarray
    map: np.ndarray
    difference: np.ndarray
    common: np.ndarray


def minimum_change_mm3(voxel_sizes_mm: Sequence[Sequence[float]]) -> float:
    """Least change of volume that is told from none.

    Parameters
    ----------
    voxel_sizes_mm : sequence of sequence of float
        Of all scans the lesions come from, both sessions.

    Returns
    -------
    float
        mm3: a ball of `LEAST_WIDTH_MM` across, or a disc of that width in one slice of the thickest scan, if larger:
        what is less than a slice high may be there or not by the head's position alone.

    Examples
    --------
    >>> round(minimum_change_mm3([(1, 1, 1), (1, 1, 1)]), 1)
    14.1
    >>> round(minimum_change_mm3([(0.7, 0.7, 4), (0.9, 0.9, 3)]), 1)
    28.3
    """
    ball = np.pi / 6 * LEAST_WIDTH_MM**3
    disc = np.pi / 4 * LEAST_WIDTH_MM**2 * max(max(edges) for edges in voxel_sizes_mm)
    return float(max(ball, disc))


def brightness_difference(first: Visit, second: Visit) -> tuple[np.ndarray, np.ndarray]:
    """FLAIR of the later session minus that of the earlier one, in deviations of healthy white matter.

    Returns
    -------
    difference : ndarray of float32, shape (X, Y, Z)
        0 outside the common brain.
    common : ndarray of bool, shape (X, Y, Z)

    Raises
    ------
    ValueError
        Shapes differ, or the brains hardly meet, or there is no common white matter.

    Notes
    -----
    Each FLAIR is first brought to median 0 and spread (1.4826 MAD) 1 over the common brain outside lesions, so that
    scale and offset of the scanner cancel; then the difference is scaled by its own spread in common white matter.
    """
    if first.lesion.shape != second.lesion.shape:
        raise ValueError(f"The sessions lie on different grids: {first.lesion.shape} and {second.lesion.shape}.")
    common = first.brain & second.brain
    if common.sum() < 0.5 * max(first.brain.sum(), second.brain.sum()):
        raise ValueError(
            "The brains of the two sessions cover each other by less than half: the registration failed, or one scan"
            " shows a part of the brain only."
        )
    healthy = common & ~first.lesion & ~second.lesion
    flairs = []
    for visit in (first, second):
        middle, spread = _robust(visit.flair[healthy])
        flairs.append((visit.flair - middle) / spread)
    difference = flairs[1] - flairs[0]
    white = first.white & second.white & healthy
    if white.sum() < 1000:
        raise ValueError("The two sessions have hardly any white matter in common: nothing tells noise from change.")
    middle, spread = _robust(difference[white])
    return np.where(common, (difference - middle) / spread, 0).astype(np.float32), common


def compare(first: Visit, second: Visit, *, voxel_mm3: float, minimum_mm3: float) -> Change:
    """Match the lesions of two sessions and tell what became of each.

    Parameters
    ----------
    first, second : Visit
        Earlier and later session on one grid of cubic voxels.
    voxel_mm3 : float
    minimum_mm3 : float
        From `minimum_change_mm3`.

    Returns
    -------
    Change

    Raises
    ------
    ValueError
        From `brightness_difference`.
    """
    difference, common = brightness_difference(first, second)
    before, after = first.lesion & common, second.lesion & common
    gain = after & ~before & (difference >= BRIGHTNESS)
    loss = before & ~after & (difference <= -BRIGHTNESS)
    least = minimum_mm3 / voxel_mm3
    edge = voxel_mm3 ** (1 / 3)
    labels = [
        _lesions(before, _apart(loss, before & ~after, after, least_voxels=least, near=NEAR_MM / edge)),
        _lesions(after, _apart(gain, after & ~before, before, least_voxels=least, near=NEAR_MM / edge)),
    ]
    groups = _match(*labels)
    earlier, later = (np.r_[0, group].astype(np.int32)[field] for (field, _), group in zip(labels, groups, strict=True))
    # Where lesions of different groups meet by a hair, the voxel is drawn as the later session's.
    joined = np.where(later > 0, later, earlier)
    count = int(max(groups[0].max(initial=0), groups[1].max(initial=0)))
    ids = np.arange(1, count + 1)
    # A rim of one voxel is what repeated segmentations differ by; three voxels across are not.
    solid_gain, solid_loss = (ndimage.binary_opening(mask) for mask in (gain, loss))
    sizes = {
        name: np.bincount(field[mask], minlength=count + 1)[1:] * voxel_mm3
        for name, field, mask in (
            ("volume_from_mm3", earlier, before),
            ("volume_to_mm3", later, after),
            ("gain_mm3", later, gain),
            ("loss_mm3", earlier, loss),
            ("solid_gain_mm3", later, solid_gain),
            ("solid_loss_mm3", earlier, solid_loss),
        )
    }
    sizes["cross_section_mm2"] = _cross_sections(before, earlier, count) * voxel_mm3 ** (2 / 3)
    sizes["brightness_change"] = np.asarray(ndimage.mean(difference, joined, ids)) if count else np.zeros(0)
    rows = [_row({name: float(values[i]) for name, values in sizes.items()}, minimum_mm3) for i in range(count)]
    order = sorted(range(count), key=lambda i: (STATUSES.index(rows[i]["status"]), -_extent(rows[i]), i))
    renumber = np.zeros(count + 1, dtype=np.int32)
    renumber[np.array(order, dtype=int) + 1] = ids
    lesions = renumber[joined]
    table = pd.DataFrame([rows[index] for index in order], columns=_MEASURED)
    table.insert(0, "change_id", ids)
    return Change(table, lesions, _map(table, lesions, before, after, gain, loss), difference, common)


def interval_row(change: Change, first: Visit, second: Visit, *, voxel_mm3: float) -> dict[str, float]:
    """Counts and volumes of an interval, in the names of `INTERVAL_COLUMNS`."""
    table = change.table
    of = {status: table[table["status"] == status] for status in STATUSES}
    resized = table[table["status"].isin(("enlarging", "shrinking"))]
    confirmed = table[table["status"].isin(("new", "enlarging", "shrinking", "resolved"))]
    return {
        **{f"{status}_count": len(of[status]) for status in STATUSES},
        "new_mm3": float(of["new"]["volume_to_mm3"].sum()),
        "growth_mm3": float(resized["gain_mm3"].sum()),
        "shrinkage_mm3": float(resized["loss_mm3"].sum()),
        "resolved_mm3": float(of["resolved"]["volume_from_mm3"].sum()),
        "lesion_from_mm3": float((first.lesion & change.common).sum()) * voxel_mm3,
        "lesion_to_mm3": float((second.lesion & change.common).sum()) * voxel_mm3,
        "lesion_change_mm3": float((confirmed["gain_mm3"] - confirmed["loss_mm3"]).sum()),
    }


def rates(row: Mapping[str, float | None]) -> dict[str, float | None]:
    """Changes per year; None without dates or where the sessions are too near each other."""
    years = row.get("years")
    if years is None or years < LEAST_YEARS:
        return {"lesion_change_mm3_per_year": None, "brain_change_percent_per_year": None}
    brain, lesion = row.get("brain_change_percent"), row.get("lesion_change_mm3")
    return {
        "lesion_change_mm3_per_year": None if lesion is None else lesion / years,
        "brain_change_percent_per_year": None if brain is None else brain / years,
    }


def mean_volume_change(jacobians: Sequence[np.ndarray], regions: Sequence[np.ndarray]) -> float:
    """Relative change of a region's volume from the deformations there and back, in percent.

    Parameters
    ----------
    jacobians : sequence of two ndarray, (X, Y, Z)
        Determinants of the deformation from the first session's points to the second's, on the first; and back, on
        the second.
    regions : sequence of two ndarray of bool, (X, Y, Z)
        The region in the first and in the second session.

    Notes
    -----
    The volume ratio is the mean Jacobian over the region (Boyes et al. 2006). The two directions are averaged as
    logarithms, so that exchanging the sessions gives exactly the inverse ratio.
    """
    there, back = (float(jacobian[region].mean()) for jacobian, region in zip(jacobians, regions, strict=True))
    return 100 * (float(np.sqrt(there / back)) - 1)


def _robust(values: np.ndarray) -> tuple[float, float]:
    """`robust_spread`, or a ValueError where there is none."""
    middle, spread = robust_spread(values)
    if not spread > 0:
        raise ValueError("FLAIR is constant in most of the brain: its brightness cannot be compared.")
    return middle, spread


def _apart(changed: np.ndarray, only: np.ndarray, other: np.ndarray, *, least_voxels: float, near: float) -> np.ndarray:
    """Number the parts of a gain (or loss) that are lesions of their own; 0 elsewhere.

    Parameters
    ----------
    changed : ndarray of bool
        Gain: in this mask only, and brighter.
    only : ndarray of bool
        In this mask only: a part takes its rim from here.
    other : ndarray of bool
        The other session's mask.
    least_voxels, near : float
        Least size, and the distance (voxels) that counts as near the other mask.
    """
    labels, count = ndimage.label(changed)  # by faces: a bridge of corners joins nothing
    if not count:
        return labels
    ids = np.arange(1, count + 1)
    close = ndimage.distance_transform_edt(~other) <= near if other.any() else np.zeros(other.shape, bool)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    keep = (sizes >= least_voxels) & (np.asarray(ndimage.mean(close, labels, ids)) < APART)
    labels = np.where(keep, np.cumsum(keep), 0)[labels - 1] * (labels > 0)
    for _ in range(round(near)):
        labels = np.where(only & (labels == 0), ndimage.grey_dilation(labels, size=3), labels)
    return labels


def _lesions(mask: np.ndarray, apart: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and sizes of a session's lesions: those of the mask without the parts that stand apart, then these."""
    labels, sizes = label_lesions(mask & (apart == 0))
    extra = np.bincount(apart.ravel())[1:]
    return np.where(apart > 0, apart + len(sizes), labels), np.r_[sizes, extra]


def _match(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Group (from 1) of every lesion of the first and of the second session.

    Lesions are in one group where a chain of overlaps of at least `SHARED` of the smaller one links them.
    """
    (labels, sizes), (others, other_sizes) = first, second
    n, m = len(sizes), len(other_sizes)
    overlap = np.zeros((n + 1, m + 1), dtype=int)
    np.add.at(overlap, (labels[(labels > 0) & (others > 0)], others[(labels > 0) & (others > 0)]), 1)
    smaller = np.minimum(sizes[:, None], other_sizes[None, :]) if n and m else np.ones((n, m))
    linked = np.argwhere(overlap[1:, 1:] >= np.maximum(1, SHARED * smaller))
    graph = sparse.coo_matrix((np.ones(len(linked)), (linked[:, 0], linked[:, 1] + n)), shape=(n + m, n + m))
    _, group = sparse.csgraph.connected_components(graph, directed=False)
    return group[:n] + 1, group[n:] + 1


def _cross_sections(mask: np.ndarray, field: np.ndarray, count: int) -> np.ndarray:
    """Largest number of voxels of each group in one axial plane."""
    out = np.zeros(count + 1)
    for plane in range(mask.shape[2]):
        here = field[:, :, plane][mask[:, :, plane]]
        if here.size:
            out = np.maximum(out, np.bincount(here, minlength=count + 1))
    return out[1:]


def _row(sizes: Mapping[str, float], minimum_mm3: float) -> dict[str, Any]:
    """What became of a lesion, given its volumes, its solid parts, its cross-section and its brightness."""
    before, after = sizes["volume_from_mm3"], sizes["volume_to_mm3"]
    net = sizes["gain_mm3"] - sizes["loss_mm3"]
    percent = 100 * net / before if before > 0 and after > 0 else float("nan")
    return {**sizes, "status": _status(sizes, minimum_mm3), "change_percent": percent}


def _status(sizes: Mapping[str, float], minimum_mm3: float) -> str:
    before, after = sizes["volume_from_mm3"], sizes["volume_to_mm3"]
    gain, loss, brightness = sizes["gain_mm3"], sizes["loss_mm3"], sizes["brightness_change"]
    if max(before, after) < minimum_mm3:
        return "small"
    if before == 0:
        return "new" if gain >= minimum_mm3 and brightness >= BRIGHTNESS else "unconfirmed"
    if after == 0:
        return "resolved" if loss >= minimum_mm3 and brightness <= -BRIGHTNESS else "unconfirmed"
    relative = RELATIVE_CHANGE[int(sizes["cross_section_mm2"] >= LARGE_CROSS_SECTION_MM2)]
    least = max(minimum_mm3, relative * before)
    net = gain - loss
    # A confluent lesion may grow here and shrink there by as much: its volume alone would call that stable.
    if abs(net) >= least or max(sizes["solid_gain_mm3"], sizes["solid_loss_mm3"]) >= least:
        return "enlarging" if net >= 0 else "shrinking"
    return "stable"


def _extent(row: Mapping[str, Any]) -> float:
    return max(row["volume_from_mm3"], row["volume_to_mm3"])


def _map(
    table: pd.DataFrame,
    lesions: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    gain: np.ndarray,
    loss: np.ndarray,
) -> np.ndarray:
    """What happened in each voxel. In lesions that changed only their gain or loss is told from the rest."""
    codes = [0, *(STATUSES.index(status) + 1 for status in table["status"])]
    of = np.array(codes, dtype=np.uint8)[lesions]
    either = before | after
    out = np.where(either & (of > 0), np.uint8(CHANGE_STABLE.index), np.uint8(0))
    for status, where, label in (
        ("unconfirmed", either, CHANGE_UNCONFIRMED),
        ("small", either, CHANGE_UNCONFIRMED),
        ("new", after, CHANGE_NEW),
        ("resolved", before, CHANGE_RESOLVED),
        ("enlarging", ndimage.binary_opening(loss), CHANGE_LOSS),
        ("enlarging", gain, CHANGE_GROWTH),
        ("shrinking", ndimage.binary_opening(gain), CHANGE_GROWTH),
        ("shrinking", loss, CHANGE_LOSS),
    ):
        out[where & (of == STATUSES.index(status) + 1)] = label.index
    return out

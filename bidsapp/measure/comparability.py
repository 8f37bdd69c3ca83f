"""Whether the scans of two sessions are alike enough for their volumes to be compared: the limits, stated once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Voxels are alike where no edge is longer than this many times the other session's.
EDGE_RATIO = 1.1
#: The intracranial volume of one head does not change; its estimates by registration agree within about this (percent).
TIV_PERCENT = 2.0


def edges(record: Mapping[str, Any], contrast: str) -> tuple[float, ...]:
    """Voxel edges (mm) of a session's scan, the shortest first; none where its record does not tell."""
    for scan in record.get("inputs", ()):
        sizes = scan.get("voxel_size_mm")
        if scan.get("contrast") != contrast or not isinstance(sizes, list) or len(sizes) != 3:
            continue
        if all(isinstance(size, int | float) for size in sizes):
            return tuple(sorted(map(float, sizes)))
    return ()


def contrasts_differ(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether sessions were segmented from different contrasts."""
    return len({frozenset(record.get("contrasts", ())) for record in records}) > 1


def voxels_differ(records: Sequence[Mapping[str, Any]], contrast: str) -> bool:
    """Whether an edge of a contrast's voxels differs by more than `EDGE_RATIO` between sessions that have it.

    Examples
    --------
    >>> thin, thick = ({"inputs": [{"contrast": "T1w", "voxel_size_mm": size}]} for size in ([1, 1, 1], [1, 1, 1.2]))
    >>> voxels_differ([thin, thick], "T1w"), voxels_differ([thin, thick], "FLAIR")
    (True, False)
    """
    known = [found for record in records if (found := edges(record, contrast))]
    return any(max(ends) > EDGE_RATIO * min(ends) for ends in zip(*known, strict=True))


def heads_differ(tiv_mm3: Iterable[float | None]) -> bool:
    """Whether estimates of the intracranial volume differ by more than `TIV_PERCENT`; unknown ones say nothing."""
    known = [size for size in tiv_mm3 if size]
    return bool(known) and max(known) > (1 + TIV_PERCENT / 100) * min(known)

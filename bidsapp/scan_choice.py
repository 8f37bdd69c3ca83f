"""Which of a session's scans is used: one of each contrast, by a fixed rule, from names, sidecars and headers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bidsapp.errors import InputError
from bidsapp.image.load import read_geometry
from bidsapp.labels import REFERENCE_ORDER, WITH_AGENT
from bidsapp.writing import json_or_nothing

#: A scan that is shorter along any axis shows no whole head but a slab (of the hippocampi, say), however fine.
SHORTEST_VIEW_MM = 100.0
#: What decided between two scans of a contrast, in the order of `_rank`.
RANKS = (
    "the readable one", "the one that shows the whole head", "no derivative", "no single inversion or chunk",
    "without contrast agent", "the thinnest slices", "the smallest voxels", "echoes combined, or the fitting one",
    "the latest run", "first by name",
)  # fmt: skip
BY_AGENT = "with contrast agent"


@dataclass(frozen=True)
class ScanChoice:
    """The file used for one contrast, and why."""

    contrast: str
    path: Path
    reason: str
    not_chosen: tuple[Path, ...] = ()


@dataclass(frozen=True)
class ScanFile:
    """A scan that may be used, with the entities of its name."""

    path: Path
    entities: Mapping[str, Any]
    with_agent: bool = False


def choose(files: Mapping[str, Sequence[ScanFile]], sidecars: Sidecars) -> Iterator[ScanChoice]:
    """One scan per contrast of those that a session has, then what only some lesion models use."""
    agents: list[ScanFile] = []
    for contrast in REFERENCE_ORDER:
        candidates = files.get(contrast, ())
        if len(candidates) == 1:  # neither its header nor its sidecar need be read
            told = f"the only {contrast}" + (f", {BY_AGENT}" if _named_with_agent(candidates[0]) else "")
            yield ScanChoice(contrast, candidates[0].path, told)
        elif candidates:
            marked = [replace(file, with_agent=_has_agent(file, sidecars)) for file in candidates]
            yield _best(contrast, marked)
            if contrast == "T1w" and not all(file.with_agent for file in marked):
                agents = [file for file in marked if file.with_agent]
    if len(agents) == 1:
        yield ScanChoice(WITH_AGENT, agents[0].path, "the only T1w with contrast agent")
    elif agents:
        yield _best(WITH_AGENT, agents)


def _best(contrast: str, candidates: Sequence[ScanFile]) -> ScanChoice:
    """The first of several scans by the fixed rule, and what decided between it and the second."""
    ranked = sorted((_rank(file), file.path) for file in candidates)
    (first, path), (second, _) = ranked[:2]
    decided = next(word for word, a, b in zip(RANKS, first, second, strict=True) if a != b)
    told = f", {BY_AGENT}" if contrast != WITH_AGENT and all(file.with_agent for file in candidates) else ""
    return ScanChoice(contrast, path, f"of {len(ranked)}: {decided}{told}", tuple(path for _, path in ranked[1:]))


def _rank(file: ScanFile) -> tuple[Any, ...]:
    """The fixed rule for several scans of one contrast: lower is better."""
    readable, shortest_mm, edge_mm, voxel_mm3 = geometry(file.path)
    return (
        not readable,  # whatever is wrong with it, another run is the better choice
        shortest_mm < SHORTEST_VIEW_MM or _of_the_neck(file),
        "space" in file.entities or "desc" in file.entities,
        "inv" in file.entities or "chunk" in file.entities or _says(file, _PART_OF_MP2RAGE),  # combined elsewhere
        file.with_agent,  # contrast agents change T1w intensities of vessels and lesions
        edge_mm,
        voxel_mm3,
        _echo_rank(file),
        -int(file.entities.get("run", 0)),  # scans are repeated because the first was bad
        str(file.path),
    )


def _echo_rank(file: ScanFile) -> float:
    """Without the entity a combination of all; else the first, but of a T2w the last: the first of two shows PD."""
    echo = int(file.entities.get("echo", 0))
    return 1 / echo if echo and "_T2w." in file.path.name else echo


#: What the labels of ``acq-`` and ``rec-`` say where an entity of BIDS is not used, or does not exist.
_AGENT = re.compile(r"contrast|postcon|gad|gd$|^(t1)?ce$|^t1c$", re.IGNORECASE)
_NO_AGENT = re.compile(r"pre|non?(contrast|gad|gd|ce)|without", re.IGNORECASE)
_PART_OF_MP2RAGE = re.compile(r"inv[12]$|uni(images|t1)?$", re.IGNORECASE)
_NECK = re.compile(r"spine|spinal|(?<!re)cord|neck", re.IGNORECASE)
_HEAD = re.compile(r"head|brain", re.IGNORECASE)


def _says(file: ScanFile, pattern: re.Pattern[str]) -> bool:
    labels = [str(file.entities.get(key, "")) for key in ("acquisition", "reconstruction")]
    return any(pattern.search(label) for label in labels)


def _of_the_neck(file: ScanFile) -> bool:
    """Whether the name tells of the spinal cord: by its labels, or by ``bp-``, which is proposed for BIDS."""
    part = re.search(r"_bp-([^_]+)", file.path.name)
    return bool(part and not _HEAD.search(part[1])) or (_says(file, _NECK) and not _says(file, _HEAD))


def _named_with_agent(file: ScanFile) -> bool:
    return "ceagent" in file.entities or (_says(file, _AGENT) and not _says(file, _NO_AGENT))


def _has_agent(file: ScanFile, sidecars: Sidecars) -> bool:
    agent = sidecars.value(file.path, "ContrastBolusIngredient")
    return _named_with_agent(file) or str(agent or "none").strip().lower() not in ("", "none", "n/a")


class Sidecars:
    """What the JSON files of a dataset say of a scan, by BIDS' rule of inheritance; each folder is listed once."""

    def __init__(self, bids_dir: Path) -> None:
        self._root = bids_dir
        self._names: dict[Path, list[str]] = {}

    def value(self, path: Path, key: str) -> Any:
        """Of the file nearest to the scan that has the key; None where none has."""
        suffix = suffix_of(path.name)
        parts = set(path.name.partition(".")[0].split("_"))
        for folder in path.parents:
            if folder not in self._names:
                self._names[folder] = [name for name in listed(folder) if name.endswith(".json")]
            for name in self._names[folder]:
                about = name.removesuffix(".json").split("_")
                if about[-1] == suffix and parts.issuperset(about):
                    found = json_or_nothing(folder / name)  # nothing that a run depends on is in sidecars
                    if key in found:
                        return found[key]
            if folder == self._root:
                break
        return None


def geometry(path: Path) -> tuple[bool, float, float, float]:
    """From a scan's header: readable; shortest side of the field of view, largest edge (mm) and volume of the voxel.

    Sizes are 0 where it is not.
    """
    from nibabel.affines import voxel_sizes

    try:
        affine, shape = read_geometry(path)
        zooms = [round(float(size), 2) for size in voxel_sizes(affine)]
        sides = [size * n for size, n in zip(zooms, shape, strict=True)]
    except Exception:  # damaged in whatever way
        return (False, 0.0, 0.0, 0.0)
    return (True, min(sides), max(zooms), round(zooms[0] * zooms[1] * zooms[2], 2))


def header_problem(scan: ScanChoice) -> str:
    """What its header and its size show to be wrong with a scan, or an empty string."""
    try:
        read_geometry(scan.path)
    except InputError as error:
        return str(error)
    return ""


def shown_in_part(scan: ScanChoice) -> str:
    """That a readable scan is a slab, for who looks at what was chosen; or an empty string."""
    readable, shortest_mm, _, _ = geometry(scan.path)
    return f"; a slab of {shortest_mm:.0f} mm" if readable and shortest_mm < SHORTEST_VIEW_MM else ""


def suffix_of(name: str) -> str:
    """What a name of BIDS ends with: ``T1w``."""
    return name.partition(".")[0].rpartition("_")[2]


def listed(folder: Path) -> list[str]:
    """Names in a folder in order, but for hidden ones; none where it cannot be listed."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []

"""The tables of structures, lobes and cortical regions: volumes of both sides, and how they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bidsapp.labels import CORTEX_SIDES, CORTICAL_REGIONS, LOBES, STRUCTURES
from bidsapp.measure.quality import asymmetry_percent
from bidsapp.measure.volumes import STRUCTURE_COLUMNS
from bidsapp.report.read import Session, number
from bidsapp.report.wording import Value, describe


@dataclass(frozen=True)
class StructureRow:
    """A structure: its volumes on both sides (or one, without sides), and how they differ; the color may be ""."""

    name: str
    color: str
    values: tuple[Value, ...]
    asymmetry: str


def structure_rows(values: Mapping[str, Value]) -> tuple[StructureRow, ...]:
    """The structures that the table of volumes has, in the order of `labels.STRUCTURES`."""
    # Not the fluid around the brain: it has no volume of its own.
    known = [structure for structure in STRUCTURES if STRUCTURE_COLUMNS.keys() >= set(structure.columns)]
    return _rows([(structure.name, structure.color, structure.columns) for structure in known], values)


def lobe_rows(values: Mapping[str, Value]) -> tuple[StructureRow, ...]:
    """The lobes' cortex, as far as the table of volumes has it."""
    return _rows([(lobe, "", tuple(f"{side}_{lobe}_cortex_mm3" for side in CORTEX_SIDES)) for lobe in LOBES], values)


def cortex_rows(session: Session) -> tuple[StructureRow, ...]:
    """The cortical regions, lobe by lobe."""
    table = session.tables.get("cortex")
    cells = {} if table is None or table.empty else table.iloc[0].to_dict()
    dictionary = session.dictionaries.get("cortex", {})
    values = {name: describe(name, number(cell), names={}, dictionary=dictionary) for name, cell in cells.items()}
    regions = sorted(CORTICAL_REGIONS, key=lambda region: LOBES.index(region.lobe))
    return _rows([(region.name, region.color, region.columns) for region in regions], values)


def _rows(parts: list[tuple[str, str, tuple[str, ...]]], values: Mapping[str, Value]) -> tuple[StructureRow, ...]:
    rows = []
    for name, color, columns in parts:
        there = tuple(values[column] for column in columns if column in values)
        if len(there) == len(columns):
            rows.append(StructureRow(name[0].upper() + name[1:], color, there, _asymmetry(there)))
    return tuple(rows)


def _asymmetry(sides: tuple[Value, ...]) -> str:
    """Left minus right, in percent of their mean; nothing where it cannot be told."""
    exact = asymmetry_percent(*(value.number for value in sides)) if len(sides) == 2 else None
    if exact is None:
        return ""
    percent = round(exact)
    return f"{percent:+d}\u00a0%".replace("-", "−") if percent else "0\u00a0%"

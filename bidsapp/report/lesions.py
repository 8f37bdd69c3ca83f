"""What the page of a subject shows of the lesions: a sentence, where they lie, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from math import pi
from typing import Any

from bidsapp.cards import OTHER
from bidsapp.labels import LOBES, TUMOR_REGIONS
from bidsapp.report.read import Session, number
from bidsapp.report.slices import ANISOTROPIC
from bidsapp.report.wording import Value, describe, grouped, millilitres, with_sign
from bidsapp.words import count_of, enumerate_words

#: Name, explanation, volume in ml, percent of the load.
Share = tuple[str, str, str, float]


@dataclass(frozen=True)
class Projection:
    """Lesions seen along one axis: outline and discs in mm, y upwards."""

    title: str
    outline: str
    view_box: str
    discs: tuple[tuple[float, float, float, str], ...]
    ends: tuple[str, str]


@dataclass(frozen=True)
class Lesions:
    """The lesion table and what sums it up.

    Attributes
    ----------
    sentence, interval : str
    reservation : str
        What they are worth, where no FLAIR shows them.
    regions : tuple
        (name, number, volume in ml, percent of the load) of each region.
    no_regions : str
        Why there are none, where that needs a word.
    lobes : tuple
        (lobe, volume in words), largest first; lobes without lesions are left out.
    sizes : tuple
        (name, number) of each size class.
    compartments, tumor_regions : tuple
        (name, explanation, volume in ml, percent of the load) of the parts that a model tells apart, and of the regions
        that these make up.
    facts : tuple of Value
    headings, rows : tuple
        Of the table.
    first : int
        Rows shown before the table is opened.
    projections : tuple of Projection
    """

    sentence: str
    interval: str
    reservation: str
    regions: tuple[tuple[str, str, str, float], ...]
    no_regions: str
    lobes: tuple[tuple[str, str], ...]
    sizes: tuple[tuple[str, str], ...]
    compartments: tuple[Share, ...]
    tumor_regions: tuple[Share, ...]
    facts: tuple[Value, ...]
    headings: tuple[tuple[str, str, str], ...]
    rows: tuple[tuple[tuple[str, str], ...], ...]
    first: int
    projections: tuple[Projection, ...]


def view_lesions(session: Session, values: Mapping[str, Value], layout: Mapping[str, Any]) -> Lesions | None:
    """The section on lesions; None where there is no table of them.

    Parameters
    ----------
    session : Session
    values : mapping
        Its volumes in words.
    layout : mapping
        `report.yml`.
    """
    table = session.tables.get("lesions")
    if table is None:
        return None
    elsewhere = _of_another_kind(session)
    present = [column for column in table.columns if not (elsewhere and column == "region")]
    columns = _lesion_columns(present, session, layout)
    across = _slice_axis(session)
    rows = tuple(
        tuple(_lesion_cell(record, sources, across) for _, sources in columns) for record in table.to_dict("records")
    )
    known = [not rows or any(row[index][0] != "n/a" for row in rows) for index in range(len(columns))]
    load = _first(session.tables.get("load"))
    return Lesions(
        sentence=_lesion_sentence(table.to_dict("records"), values),
        interval=_interval(load),
        reservation=_reservation(session, layout),
        regions=() if elsewhere else _regions(load, layout),
        no_regions=str(layout["lesions"]["no_regions"]).format(model=elsewhere) if elsewhere else "",
        lobes=_lobes(load),
        sizes=tuple(
            (words, f"{count:.0f}")
            for name, words in layout["lesions"]["sizes"].items()
            if (count := number(load.get(f"{name}_count"))) is not None
        ),
        compartments=_shares([column for column in load if column.startswith("compartment_")], load, session),
        tumor_regions=_shares([column for column, _, _ in TUMOR_REGIONS], load, session),
        facts=tuple(
            describe(column, number(load[column]), names={}, dictionary=session.dictionaries.get("load", {}))
            for column in ("largest_lesion_mm3", "confluence", "t1w_hypointense_count")
            if column in load
        ),
        headings=tuple(heading for heading, _ in compress(columns, known)),
        rows=tuple(tuple(compress(row, known)) for row in rows),
        first=layout["lesions"]["first"],
        projections=_projections(table.to_dict("records"), layout),
    )


def _of_another_kind(session: Session) -> str:
    """The lesion model whose lesions are not those of the white matter, as in tumors; or nothing."""
    own = session.own_model
    return f"{own.get('name')} {own.get('version')}" if own.get("lesion_kind") == OTHER else ""


def _reservation(session: Session, layout: Mapping[str, Any]) -> str:
    """What the app's own lesions are worth where no FLAIR shows them; or nothing."""
    scans = session.record.get("contrasts", ())
    if not scans or "FLAIR" in scans or session.own_model:
        return ""
    return str(layout["lesions"]["without_flair"]).format(scans=enumerate_words(scans))


def _lesion_columns(
    present: list[str], session: Session, layout: Mapping[str, Any]
) -> list[tuple[tuple[str, str, str], list[str]]]:
    """((title, unit, explanation), columns of the table) of each column shown; unknown ones come last."""
    dictionary = session.dictionaries.get("lesions", {})
    out, taken = [], set()
    for name, entry in layout["lesions"]["columns"].items():
        sources = [column for column in entry.get("columns", [name]) if column in present]
        if sources:
            about = str(dictionary.get(sources[0], {}).get("Description", ""))
            out.append(((str(entry["title"]), str(entry.get("unit", "")), about), sources))
            taken.update(sources)
    for column in present:
        if column not in taken and column not in layout["lesions"]["hidden"]:
            value = describe(column, None, names={}, dictionary=dictionary)
            out.append(((value.name, "", value.about), [column]))
    return out


def _slice_axis(session: Session) -> int:
    """The axis (of x, y, z) across which the picture of the lesions is sliced (`slices.plan_detail`)."""
    reference = session.record.get("reference")
    scan = next((scan for scan in session.record.get("inputs", ()) if scan.get("contrast") == reference), {})
    sizes, axes = scan.get("voxel_size_mm"), str(scan.get("orientation", ""))
    try:
        thick = max(sizes) > ANISOTROPIC * min(sizes)
        end = axes[sizes.index(max(sizes))] if thick else "S"
        return next(axis for axis, ends in enumerate(("LR", "PA", "IS")) if end in ends)
    except (TypeError, ValueError, IndexError, StopIteration):  # a record that does not tell
        return 2


def _lesion_cell(record: Mapping[str, str], sources: Sequence[str], across: int) -> tuple[str, str]:
    """Text and sorting key of a cell; places are sorted by the slices they are on."""
    if sources[0] in ("region", "lobe", "hemisphere", "t1w_hypointense"):
        text = record[sources[0]].replace("_", " ")
        return text, ("" if text == "n/a" else text)
    numbers = [value for value in (number(record[column]) for column in sources) if value is not None]
    if len(numbers) < len(sources):
        return ("n/a" if len(sources) > 1 else record[sources[0]]), ""
    if len(sources) > 1:
        return ", ".join(f"{round(value):d}".replace("-", "−") for value in numbers), f"{numbers[across]:.10g}"
    key = f"{numbers[0]:.10g}"
    (value,) = numbers
    if sources[0].endswith("_mm3"):
        return grouped(value, 0 if value >= 100 else 1), key
    if sources[0].endswith("_mm"):
        return f"{value:.1f}", key
    if sources[0].endswith("_contrast"):
        return with_sign(value), key
    return f"{value:.0f}" if sources[0].endswith("_id") else f"{value:.2f}", key


def _lesion_sentence(records: Sequence[Mapping[str, str]], values: Mapping[str, Value]) -> str:
    if not records:
        return "No lesion was found."
    sizes = [size for size in (number(record.get("volume_mm3")) for record in records) if size is not None]
    told = count_of(len(records), "lesion")
    if sizes:
        told += f", {millilitres(sum(sizes))}\u00a0ml in all"
        if len(sizes) > 1 and max(sizes) > 0:
            told += f"; the largest is {100 * max(sizes) / sum(sizes):.0f}\u00a0% of that"
    loads = [
        f"{value.with_unit} of {where}"
        for column, where in (
            ("lesion_load_percent_tiv", "the intracranial volume"),
            ("lesion_load_percent_wm", "the white matter"),
        )
        if (value := values.get(column)) is not None and value.number is not None
    ]
    return f"{told}. Lesion load: {enumerate_words(loads)}." if loads else f"{told}."


def _first(table: Any) -> Mapping[str, str]:
    return {} if table is None or table.empty else table.iloc[0].to_dict()


def _interval(load: Mapping[str, str]) -> str:
    low, high = number(load.get("lesion_low_mm3")), number(load.get("lesion_high_mm3"))
    if low is None or high is None:
        return ""
    return (
        f"By the probability map, the load lies between {millilitres(low)} and {millilitres(high)}\u00a0ml (even odds,"
        " if the probabilities are right and all borders err to the same side)."
    )


def _regions(load: Mapping[str, str], layout: Mapping[str, Any]) -> tuple[tuple[str, str, str, float], ...]:
    total = number(load.get("lesion_mm3"))
    out = []
    for region, name in layout["lesions"]["regions"].items():
        count, volume = number(load.get(f"{region}_count")), number(load.get(f"{region}_mm3"))
        if count is not None and volume is not None:
            out.append((name, f"{count:.0f}", millilitres(volume), 100 * volume / total if total else 0.0))
    return tuple(out)


def _lobes(load: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    volumes = {lobe: number(load.get(f"lesion_{lobe}_lobe_mm3")) or 0.0 for lobe in LOBES}
    found = sorted((lobe for lobe in LOBES if volumes[lobe] > 0), key=lambda lobe: -volumes[lobe])
    return tuple((lobe, f"{millilitres(volumes[lobe])}\u00a0ml") for lobe in found)


def _shares(columns: Sequence[str], load: Mapping[str, str], session: Session) -> tuple[Share, ...]:
    total, dictionary = number(load.get("lesion_mm3")), session.dictionaries.get("load", {})
    out = []
    for column in columns:
        volume, about = number(load.get(column)), dictionary.get(column, {})
        if volume is not None:
            name = str(about.get("LongName", column))
            told = str(about.get("Description", ""))
            out.append((name, told, millilitres(volume), 100 * volume / total if total else 0.0))
    return tuple(out)


def _projections(records: Sequence[Mapping[str, str]], layout: Mapping[str, Any]) -> tuple[Projection, ...]:
    """The lesions as discs (of the volume's sphere) within the outline of the template's brain."""
    spots = []
    for record in records:
        where = {axis: value for axis in "xyz" if (value := number(record.get(f"mni_{axis}_mm"))) is not None}
        size = number(record.get("volume_mm3"))
        if size is not None and size > 0 and len(where) == 3:
            radius = max(1.2, (3 * size / (4 * pi)) ** (1 / 3))
            place = ", ".join(f"{value:.0f}" for value in where.values())
            spots.append((where, radius, f"Lesion {record.get('lesion_id', '')}: {grouped(size)} mm³ at {place}"))
    if not spots:
        return ()
    out = []
    for entry in layout["lesions"]["silhouettes"]:
        across, up = entry["axes"]
        corners = [tuple(float(part) for part in point.split(",")) for point in entry["outline"].split()]
        left, low = min(x for x, _ in corners) - 6, min(y for _, y in corners) - 6
        width, height = max(x for x, _ in corners) + 6 - left, max(y for _, y in corners) + 6 - low
        out.append(
            Projection(
                title=entry["title"],
                outline=" ".join(f"{x:.0f},{-y:.0f}" for x, y in corners),
                view_box=f"{left:.0f} {-low - height:.0f} {width:.0f} {height:.0f}",
                # Large discs first, so that small ones lie on top.
                discs=tuple((round(at[across], 1), round(-at[up], 1), round(radius, 1), title)
                            for at, radius, title in sorted(spots, key=lambda spot: -spot[1])),
                ends=("L", "R") if across == "x" else ("P", "A"),
            )
        )  # fmt: skip
    return tuple(out)

"""What the page of a subject shows, put into words and shapes; the templates only place it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bidsapp import labels
from bidsapp.measure import comparability
from bidsapp.measure.cohort import is_lesion
from bidsapp.measure.image_quality import SCAN_COLUMNS
from bidsapp.measure.quality import RANGES
from bidsapp.measure.volumes import LOBE_COLUMNS, STRUCTURE_COLUMNS
from bidsapp.report import figures
from bidsapp.report.lesions import Lesions, view_lesions
from bidsapp.report.methods import Methods, methods_text
from bidsapp.report.read import PictureFile, Session, number
from bidsapp.report.structures import StructureRow, cortex_rows, lobe_rows, structure_rows
from bidsapp.report.wording import (
    Value,
    describe,
    file_size,
    millilitres,
    percent_text,
    with_sign,
)
from bidsapp.words import count_of, enumerate_words

#: A flag of `measure.quality`: "gm_to_wm = 0.7, below 0.9: meaning".
FLAG = re.compile(r"^(?P<column>\w+) = (?P<value>\S+), (?P<side>below|above) (?P<limit>[^:]+): (?P<meaning>.+)$")

CAUTION = "Part of a difference between sessions may come from the scans:"
#: Compared over time whatever the scans: it is what tells that they differ.
_ALWAYS_COMPARED = ("tiv_mm3",)

_TISSUE = {label.abbreviation: label for label in labels.TISSUE_LOOKUP}
LEGENDS = {
    "brain": [("Brain mask", figures.BRAIN_COLOR)],
    "lesion": [("Lesion", labels.LESION.color)],
    "template_brain": [("Brain of the template", figures.TEMPLATE_BRAIN_COLOR)],
    "template_wm": [("White matter of the template", figures.TEMPLATE_WM_COLOR)],
}


@dataclass(frozen=True)
class Part:
    """A part of the composition bar."""

    name: str
    color: str
    percent: float
    text: str


@dataclass(frozen=True)
class Figure:
    """A pair of pictures, or the word on what is missing."""

    name: str
    title: str
    caption: str
    alt: str
    image: PictureFile | None
    overlay: PictureFile | None
    image_word: str
    overlay_word: str
    legend: tuple[tuple[str, str], ...]
    missing: str


@dataclass(frozen=True)
class Check:
    """A quality measure, the range where it raises no question, and whether it is outside."""

    value: Value
    expected: str
    flag: str


@dataclass(frozen=True)
class Notice:
    """Something that asks for a look: what, and the detail."""

    text: str
    detail: str = ""


@dataclass(frozen=True)
class SessionView:
    """A session's section of the page."""

    anchor: str
    title: str
    session: Session
    contrasts: tuple[tuple[str, str], ...]
    status: str
    message: tuple[str, ...]
    warnings: tuple[Notice, ...]
    reservations: tuple[str, ...]
    headline: tuple[tuple[Value, str], ...]
    parts: tuple[Part, ...]
    figures: tuple[Figure, ...]
    volumes: tuple[tuple[Value, float | None, str, str], ...]
    footnotes: tuple[str, ...]
    mask_note: str
    structures: tuple[StructureRow, ...]
    lobes: tuple[StructureRow, ...]
    cortex: tuple[StructureRow, ...]
    lesions: Lesions | None
    no_lesions: str
    checks: tuple[Check, ...]
    scan_quality: tuple[tuple[str, ...], tuple[tuple[str, tuple[Check, ...]], ...]]
    inputs: tuple[Mapping[str, Any], ...]
    options: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str, bool], ...]


@dataclass(frozen=True)
class Trend:
    """A measure over the sessions."""

    name: str
    about: str
    unit: str
    cells: tuple[str, ...]
    points: tuple[tuple[float, float], ...]
    change: str
    href: str = ""


@dataclass(frozen=True)
class SubjectView:
    """The page of a subject."""

    subject: str
    version: str
    lede: str
    sessions: tuple[SessionView, ...]
    trends: tuple[Trend, ...]
    caution: str
    changes: str
    methods: Methods


def view_subject(
    sessions: Sequence[Session], layout: Mapping[str, Any], *, exists: Any, compared: Mapping[str, str] | None = None
) -> SubjectView:
    """Everything the page of a subject shows.

    Parameters
    ----------
    sessions : sequence of Session
        From `read.read_subject`; at least one.
    layout : mapping
        `report.yml`.
    exists : callable
        Whether a path relative to OUT_DIR is there.
    compared : mapping, optional
        From `changes.compared_facts`.
    """
    views = tuple(view_session(session, layout, exists=exists) for session in sessions)
    versions = sorted({str(session.record["version"]) for session in sessions if session.record.get("version")})
    done = [session for session in sessions if session.record]
    page = f"sub-{sessions[0].subject}_changes.html"
    changes = page if exists(page) else ""
    return SubjectView(
        subject=sessions[0].subject,
        version=enumerate_words(versions),
        lede=_lede(views),
        sessions=views,
        trends=_trends(views, layout, changes) if len(done) > 1 else (),
        caution=_caution(done),
        changes=changes,
        methods=methods_text(sessions, compared),
    )


def _unlike(sessions: Sequence[Session]) -> list[str]:
    """In what the scans of sessions differ so much that a difference of tissue volumes may come from that alone."""
    told = []
    records = [session.record for session in sessions]
    if comparability.contrasts_differ(records):
        told.append("they were segmented from different contrasts")
    if voxels := [name for name in labels.CONTRASTS if comparability.voxels_differ(records, name)]:
        told.append(f"voxels of {enumerate_words(voxels)} differ")
    heads = [size for session in sessions if (size := number(session.row.get("tiv_mm3")))]
    if comparability.heads_differ(heads):
        told.append(f"the intracranial volume differs by {100 * (max(heads) / min(heads) - 1):.1f}\u00a0%")
    return told


def _caution(sessions: Sequence[Session]) -> str:
    """What makes sessions less comparable; "" where nothing does."""
    told = _unlike(sessions)
    flagged = [f"session {session.session}" for session in sessions if _flags(session)]
    if flagged:
        told.append(f"quality control has something to look at in {enumerate_words(flagged)}")
    return f"{CAUTION} {'; '.join(told)}." if len(sessions) > 1 and told else ""


def view_session(session: Session, layout: Mapping[str, Any], *, exists: Any) -> SessionView:
    """A session's section of the page."""
    record = session.record
    values = volume_values(session, layout)
    footnotes = tuple(dict.fromkeys(value.why for value in values.values() if value.why))
    whole = values.get(layout["volumes"]["whole"])
    shares = {name: _share(value, whole) for name, value in values.items()}
    rows = tuple(
        (value, shares[name], _mark(value.why, footnotes), _color(name, layout))
        for name, value in values.items() if name not in STRUCTURE_COLUMNS and name not in LOBE_COLUMNS
    )  # fmt: skip
    headline = tuple(
        (values[name], _share_words(shares[name])) for name in layout["volumes"]["headline"] if name in values
    )
    lesions = view_lesions(session, values, layout)
    checks = _checks(session, layout)
    return SessionView(
        anchor=f"ses-{session.session}" if session.session else "session",
        title=f"Session {session.session}" if session.session else "Results",
        session=session,
        contrasts=_contrasts(record),
        status=session.status,
        message=_message(session),
        warnings=_warnings(session, values),
        reservations=(*_texts(record.get("reservations")), *([lesions.reservation] if lesions else [])),
        headline=headline,
        parts=_parts(values, layout),
        figures=tuple(
            _figure(entry, session) for entry in layout["figures"] if _expected_figure(entry["name"], session)
        ),
        volumes=rows,
        footnotes=footnotes,
        mask_note=_mask_note(values),
        structures=structure_rows(values),
        lobes=lobe_rows(values),
        cortex=cortex_rows(session),
        lesions=lesions,
        no_lesions=values["lesion_mm3"].why if "lesion_mm3" in values else "",
        checks=tuple(
            check
            for column, check in checks.items()
            if column not in SCAN_COLUMNS and column not in layout["quality"]["hidden"]
        ),
        scan_quality=_scan_quality(record.get("contrasts", ()), checks, layout),
        inputs=tuple(_input(scan) for scan in record.get("inputs", ())),
        options=_options(record),
        files=tuple(
            (str(path), file_size(size), bool(exists(str(path))))
            for path, size in sorted(record.get("outputs", {}).items())
            if isinstance(size, (int, float))
        ),
    )


def volume_values(session: Session, layout: Mapping[str, Any]) -> dict[str, Value]:
    """The session's volumes in words, in the order of the table."""
    not_measured = {key: str(why) for key, why in session.record.get("not_measured", {}).items()}
    return {
        column: describe(
            column,
            number(text),
            names=layout["volumes"]["names"],
            dictionary=session.dictionaries.get("volumes", {}),
            why=not_measured.get(column, "") if number(text) is None else "",
        )
        for column, text in session.row.items()
        if column not in ("participant_id", "session_id")
    }


def humanise_flag(flag: str, values: Mapping[str, Value]) -> Notice:
    """A flag of the QC table, its meaning first."""
    match = FLAG.match(flag)
    if match is None:
        return Notice(flag)
    value = values.get(match["column"])
    limit = next((entry for entry in RANGES if entry.name == match["column"]), None)
    meaning = match["meaning"][:1].upper() + match["meaning"][1:]
    if value is None or value.number is None or limit is None:
        return Notice(meaning, f"{match['column']} = {match['value']}, {match['side']} {match['limit']}")
    end = limit.low if match["side"] == "below" else limit.high
    bound = f"{end:g}" if not value.unit else describe(match["column"], end, names={}, dictionary={}).with_unit
    return Notice(meaning, f"{value.name}: {value.with_unit}, {match['side']} {bound}")


def flag_warnings(session: Session, values: Mapping[str, Value]) -> list[Notice]:
    """What quality control found in a session, given its volumes in words."""
    checks = {**values, **_check_values(session)}
    return [humanise_flag(flag, checks) for flag in _flags(session)]


def _lede(views: Sequence[SessionView]) -> str:
    """One sentence on what there is."""
    states: dict[str, int] = {}
    for view in views:
        states[view.status] = states.get(view.status, 0) + 1
    words = {"done": "segmented", "failed": "failed", "skipped": "skipped", "unfinished": "not finished"}
    if len(views) > 1:
        parts = [f"{number} {words.get(state, state)}" for state, number in states.items()]
        told = f"{count_of(len(views), 'session')}: {enumerate_words(parts)}."
    elif views[0].status == "done":
        scans = enumerate_words([name for name, role in views[0].contrasts if role != "absent"])
        told = f"Segmented from {scans}." if scans else "Segmented."
    else:
        told = f"{words.get(views[0].status, views[0].status).capitalize()}."
    looks = sum(len(view.warnings) for view in views)
    if looks:
        return f"{told} {count_of(looks, 'point')} to look at."
    return f"{told} Nothing out of range." if set(states) == {"done"} else told


def _message(session: Session) -> tuple[str, ...]:
    """Why there are no results, as paragraphs."""
    if session.record:
        return ()
    message = session.problem.get("message") or "No reason was noted."
    if session.status == "skipped":
        return ("This session was left out.", message)
    if session.status == "failed":
        return ("This session has no results: its processing failed.", message)
    return (
        "This session has no record: it was not finished, or its results were removed.",
        "Run the same command again; what is still valid is not done twice.",
    )


def _warnings(session: Session, values: Mapping[str, Value]) -> tuple[Notice, ...]:
    flags = _flags(session)
    told = [text for text in session.record.get("warnings", ()) if text not in flags]
    out = [Notice(text) for text in told]
    out += flag_warnings(session, values)
    if session.record and session.problem:
        out.insert(0, Notice("The last run of this session did not succeed; these are the results of an earlier one.",
                              session.problem.get("message", "")))  # fmt: skip
    out += [Notice("A file could not be read.", text) for text in session.broken]
    if session.record and not session.row:
        out.append(Notice("The table of volumes is missing.", f"{session.name}_volumes.tsv"))
    return tuple(out)


def _flags(session: Session) -> list[str]:
    text = session.checks.get("flags", "")
    flags = [] if text in ("", "none", "n/a") else text.split("; ")
    # The record repeats them; where the table is gone they are still told.
    return flags or [text for text in session.record.get("warnings", ()) if FLAG.match(text)]


def _check_values(session: Session) -> dict[str, Value]:
    return {
        column: describe(column, number(text), names={}, dictionary=session.dictionaries.get("qc", {}))
        for column, text in session.checks.items()
        if column not in ("participant_id", "session_id", "flags")
    }


def _checks(session: Session, layout: Mapping[str, Any]) -> dict[str, Check]:
    """Everything that was checked, by its column."""
    flagged = {match["column"]: match["side"] for match in map(FLAG.match, _flags(session)) if match}
    values = {column: number(text) for column, text in {**session.row, **session.checks}.items()}
    limits = {entry.name: entry for entry in RANGES if entry.holds(values)}
    dictionary = session.dictionaries.get("qc", {})
    out = {}
    for column, text in session.checks.items():
        if column in ("participant_id", "session_id", "flags"):
            continue
        value = describe(column, number(text), names=layout["quality"]["names"], dictionary=dictionary)
        limit = limits.get(column)
        expected = "" if limit is None else _expected(limit.low, limit.high)
        out[column] = Check(value, expected, flagged.get(column, ""))
    return out


def _scan_quality(
    contrasts: Sequence[str], checks: Mapping[str, Check], layout: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[Check, ...]], ...]]:
    """The contrasts that were used, and each measure of a scan with what it is of each of them."""
    used = tuple(name for name in labels.CONTRASTS if name in contrasts)
    rows = []
    for measure, name in layout["quality"]["scans"].items():
        columns = [f"{contrast.lower()}_{measure}" for contrast in used]
        if columns and all(column in checks for column in columns):  # not of an earlier version
            rows.append((name, tuple(checks[column] for column in columns)))
    return used, tuple(rows)


def _expected(low: float, high: float) -> str:
    if low == high:
        return f"{low:g}"
    if high == float("inf"):
        return f"at least {low:g}"
    return f"at most {high:g}" if low == 0 else f"{low:g} to {high:g}"


def _contrasts(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    used = list(record.get("contrasts", ()))
    if not used:
        return ()
    known = [contrast for contrast in labels.CONTRASTS if contrast not in used]
    roles = [(contrast, "reference" if contrast == record.get("reference") else "used") for contrast in used]
    return tuple(roles + [(contrast, "absent") for contrast in known])


def _share(value: Value, whole: Value | None) -> float | None:
    """Percent of the brain mask, for the volumes that are parts of it."""
    if whole is None or not whole.number or value.number is None or not value.column.endswith("_mm3"):
        return None
    if value.column in (whole.column, "tiv_mm3"):
        return None
    return min(100.0, 100 * value.number / whole.number)


def _share_words(percent: float | None) -> str:
    return "" if percent is None else f"{percent_text(percent)} of the brain mask"


def _mark(why: str, footnotes: Sequence[str]) -> str:
    return str(footnotes.index(why) + 1) if why else ""


def _mask_note(values: Mapping[str, Value]) -> str:
    """A word where the brain mask is larger than the intracranial volume, which is no error by itself."""
    mask, whole = (values[name].number if name in values else None for name in ("brain_mask_mm3", "tiv_mm3"))
    if mask is None or whole is None or mask <= whole:
        return ""
    limit = next(entry for entry in RANGES if entry.name == "brain_mask_to_tiv")
    return (
        "The brain mask is larger than the intracranial volume because that is an estimate, from the registration to"
        f" the template: a mask {100 * (1 - limit.low):.0f}\u00a0% smaller to {100 * (limit.high - 1):.0f}\u00a0%"
        " larger raises no question."
    )


def _color(column: str, layout: Mapping[str, Any]) -> str:
    """Colour of the tissue that a column is the volume of, or ""."""
    for recipe in layout["volumes"]["parts"]:
        for label, formula in recipe.items():
            if formula == column:
                return _TISSUE[label].color
    return ""


def _parts(values: Mapping[str, Value], layout: Mapping[str, Any]) -> tuple[Part, ...]:
    for recipe in layout["volumes"]["parts"]:
        sizes = {label: _sum(formula, values) for label, formula in recipe.items()}
        total = sum(size or 0 for size in sizes.values())
        if None in sizes.values() or total <= 0:
            continue
        return tuple(
            Part(_TISSUE[label].name, _TISSUE[label].color, 100 * size / total, f"{millilitres(size)}\u00a0ml")
            for label, size in sizes.items()
            if size is not None and size > 0
        )
    return ()


def _sum(formula: str, values: Mapping[str, Value]) -> float | None:
    """Evaluate "a_mm3 - b_mm3"."""
    numbers = [values[name].number if name in values else None for name in formula.split(" - ")]
    if None in numbers:
        return None
    first, *others = (float(value) for value in numbers if value is not None)
    return max(0.0, first - sum(others))


def _expected_figure(name: str, session: Session) -> bool:
    if name == "lesion" and session.record.get("methods", {}).get("lesion_model") == "none":
        return False  # the section on lesions says why
    if name == "structures" and not STRUCTURE_COLUMNS.keys() & session.row.keys():
        return False  # likewise
    if name == "cortex" and "cortex" not in session.tables:
        return False  # of an earlier version
    if name == "compartments" and not session.compartments:
        return False
    return bool(session.record or session.pictures)


def _figure(entry: Mapping[str, Any], session: Session) -> Figure:
    pair = [session.pictures.get(f"{entry['name']}_{kind}") for kind in ("image", "overlay")]
    stem = f"{session.name}_desc-{entry['name']}"
    missing = f"The pictures {stem}_image.png and _overlay.png are not both in sub-{session.subject}/figures."
    if entry["legend"] == ["tissue"]:
        legend = _tissue_legend(session)
    elif entry["legend"] == ["compartments"]:
        legend = [(label.name, label.color) for label in labels.compartment_lookup(session.compartments)[1:]]
    elif entry["legend"] == ["cortex"]:
        legend = [(region.name[0].upper() + region.name[1:], region.color) for region in labels.CORTICAL_REGIONS]
    elif entry["legend"] == ["structures"]:
        legend = [(s.name[0].upper() + s.name[1:], s.color) for s in labels.STRUCTURES if s.name != "CSF"]
        legend += [(labels.STRUCTURE_LESION.name, labels.STRUCTURE_LESION.color)] if _has_lesions(session) else []
    else:
        legend = [item for name in entry["legend"] for item in LEGENDS[name]]
    return Figure(
        name=entry["name"],
        title=entry["title"],
        caption=entry["caption"].format(lesion_scan=_lesion_scan(session.record)),
        alt=entry["alt"],
        image=pair[0],
        overlay=pair[1],
        image_word=entry["image"],
        overlay_word=entry["overlay"],
        legend=tuple(legend),
        missing=missing if None in pair else "",
    )


def _lesion_scan(record: Mapping[str, Any]) -> str:
    """What lesions are drawn on (`figures.draw_session`)."""
    return "FLAIR" if "FLAIR" in record.get("contrasts", ()) else str(record.get("reference") or "scan")


def _tissue_legend(session: Session) -> list[tuple[str, str]]:
    separable = "gm_mm3" not in session.record.get("not_measured", {})
    shown = [labels.GM, labels.WM] if separable else [labels.PARENCHYMA]
    shown.append(labels.CSF)
    if _has_lesions(session):
        shown.append(labels.LESION)
    return [(label.name, label.color) for label in shown]


def _has_lesions(session: Session) -> bool:
    return bool(number(session.row.get("lesion_mm3")))


def _input(scan: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "contrast": str(scan.get("contrast", "")),
        "file": str(scan.get("file", "")),
        "why": str(scan.get("chosen_because", "")),
        "not_chosen": _texts(scan.get("not_chosen")),
        "shape": " × ".join(str(length) for length in _numbers(scan.get("shape"))),
        "voxel": " × ".join(f"{size:.3g}" for size in _numbers(scan.get("voxel_size_mm"))),
        "orientation": str(scan.get("orientation", "")),
        "notes": _texts(scan.get("notes")),
        "sha256": str(scan.get("sha256", "")),
    }


def _numbers(values: Any) -> list[float]:
    return values if isinstance(values, list) and all(isinstance(value, (int, float)) for value in values) else []


def _texts(values: Any) -> list[str]:
    return [str(value) for value in values] if isinstance(values, list) else []


def _options(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Options as given, and, where "auto" was asked for, what it came to."""
    out = []
    for name, value in record.get("options", {}).items():
        used = record["methods"].get(name)
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        if isinstance(value, bool):
            text = "yes" if value else "no"
        if used is not None and not text.startswith(str(used)):  # a model's label begins with its name
            text = f"{text}: {used}"
        out.append((name.replace("_", " "), text))
    return tuple(out)


def _trends(views: Sequence[SessionView], layout: Mapping[str, Any], changes: str) -> tuple[Trend, ...]:
    """Measures over the sessions, without a line, or a change, where scans differ (`_unlike`).

    Of lesions, which the page `changes` compares all the same, there is a link to it instead.
    """
    done = [view.session for view in views if view.session.record]
    all_alike, ends_alike = not _unlike(done), not _unlike([done[0], done[-1]])
    by_session = [{value.column: value for value, *_ in view.volumes} for view in views]
    out = []
    for column in layout["volumes"]["over_time"]:
        values = [row.get(column) for row in by_session]
        known = [value for value in values if value is not None]
        if not any(value.number is not None for value in known):
            continue
        numbers = [None if value is None else value.number for value in values]
        always = column in _ALWAYS_COMPARED
        elsewhere = changes if is_lesion(column) and not ends_alike else ""
        unlike = "confirmed changes" if elsewhere else "not comparable"
        out.append(
            Trend(
                name=known[0].name,
                about=known[0].about,
                unit=next(value.unit for value in known if value.number is not None),
                cells=tuple("–" if value is None else value.text for value in values),
                points=_sparkline(numbers) if always or all_alike else (),
                change=_change(numbers) if always or ends_alike else unlike,
                href=elsewhere,
            )
        )
    return tuple(out)


def _sparkline(numbers: Sequence[float | None]) -> tuple[tuple[float, float], ...]:
    """Points in a box of 100 by 24, one per session that has the value."""
    known = [(place, value) for place, value in enumerate(numbers) if value is not None]
    if len(known) < 2:
        return ()
    low, high = min(value for _, value in known), max(value for _, value in known)
    # Changes below one percent look as flat as they are.
    span = max(high - low, 0.01 * abs(high), 1e-12)
    middle = (low + high) / 2
    step = 100 / (len(numbers) - 1)
    return tuple((round(place * step, 1), round(12 - 20 * (value - middle) / span, 1)) for place, value in known)


def _change(numbers: Sequence[float | None]) -> str:
    known = [value for value in numbers if value is not None]
    if len(known) < 2 or not known[0]:
        return ""
    return f"{with_sign(100 * (known[-1] - known[0]) / known[0])}\u00a0%"

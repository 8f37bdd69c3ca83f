"""What the page of ``bidsapp evaluate`` shows, from its tables alone."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from bidsapp import __version__
from bidsapp.measure.evaluation import BY_COLUMN, CASE, MEASURES, Measure, size_names
from bidsapp.measure.volume_agreement import MINIMUM_SUBJECTS
from bidsapp.report.evaluation_charts import (
    Chart,
    Mark,
    case_name,
    ceiling,
    heading,
    size_charts,
    versus,
    volume_charts,
)
from bidsapp.report.group_models import p_text, signed
from bidsapp.report.methods import Methods, compose
from bidsapp.report.mosaic import Picture
from bidsapp.words import count_of, enumerate_words

#: Colours that predictions get (style.css).
COLOURS = 5
#: Measures in the head of the page, and those with a strip for each label that is a mask.
HEADLINE = ("dsc", "tpr", "ppv", "hd95_mm", "assd_mm", "lesion_tpr", "lesion_ppv", "lesion_f1")
STRIPS = ("dsc", "tpr", "ppv", "hd95_mm", "assd_mm", "lesion_tpr", "lesion_ppv", "vdr")
#: Of a dseg with more labels than this a strip shows Dice alone.
FEW_LABELS = 2
#: Labels whose volumes are drawn; all are in the table.
DRAWN_LABELS = 6
#: Up to so many labels and predictions the table of results has a row for each measure, else a column.
UPRIGHT = 4
#: Of fewer cases the range is shown, not the quartiles.
QUARTILES = 5
#: Missed lesions and false positives that are listed.
LISTED = 8
ROWS_SHOWN = 100


@dataclass(frozen=True)
class Drawn:
    """A picture of a case: its name, label, what lies below, and the two PNG."""

    case: str
    segmentation: str
    label: str
    scan: str
    picture: Picture


@dataclass(frozen=True)
class Given:
    """What the page is made of.

    Attributes
    ----------
    tables : mapping
        By name, as `evaluate` writes them.
    names : tuple of str
        Predictions, in order.
    references : tuple of str
        Raters.
    fusion : str
    minimum_lesion_mm3 : float
    borders_mm3 : tuple of float
    group : str
    notes : tuple of str
    drawn : tuple of Drawn
        Worst first.
    files : tuple of str
    """

    tables: Mapping[str, pd.DataFrame]
    names: tuple[str, ...]
    references: tuple[str, ...]
    fusion: str
    minimum_lesion_mm3: float
    borders_mm3: tuple[float, ...]
    group: str
    notes: tuple[str, ...]
    drawn: tuple[Drawn, ...]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A prediction in a strip: box of quartiles and median in percent, or None; dots; words."""

    colour: int
    top: float
    box: tuple[float, float, float] | None
    words: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Strip:
    """A measure over the cases, a row for each prediction."""

    name: str
    about: str
    rows: tuple[Row, ...]
    low: str
    high: str
    height: float


#: Heading, explanation, and for each prediction its colour, median, unit and quartiles.
Headline = tuple[tuple[str, str, tuple[tuple[int, str, str, str], ...]], ...]


@dataclass(frozen=True)
class Part:
    """A label that was compared: its figures, in words and drawn."""

    title: str
    anchor: str
    lesion: bool
    headline: Headline
    strips: tuple[Strip, ...]
    versus: tuple[Chart, ...]
    volumes: tuple[Chart, ...]
    sizes: tuple[Chart, ...]
    missed: tuple[tuple[str, ...], ...]
    invented: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Cell:
    """Text of a table's cell, a second line, and a number to sort by."""

    text: str
    below: str = ""
    key: str = ""


@dataclass(frozen=True)
class CaseView:
    """A picture of the page: title, words, key, PNG as data URIs with their size."""

    anchor: str
    case: str
    title: str
    words: tuple[tuple[int, str, str], ...]
    scan: str
    rows: str
    image: str
    overlay: str
    width: int
    height: int


@dataclass(frozen=True)
class EvaluationView:
    """The page."""

    lede: str
    version: str
    names: tuple[str, ...]
    problems: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    measures: tuple[Measure, ...]
    parts: tuple[Part, ...]
    overall: tuple[tuple[str, Headline], ...]
    summary: tuple[tuple[str, str, int, tuple[Cell, ...]], ...]
    upright: bool
    several_cases: bool
    volumes: tuple[tuple[str, str, int, tuple[Cell, ...]], ...]
    tests: tuple[tuple[Cell, ...], ...]
    test_note: str
    groups: tuple[tuple[Cell, ...], ...]
    compared: tuple[str, ...]
    raters: tuple[tuple[str, ...], ...]
    pairs: tuple[tuple[str, ...], ...]
    pictures: tuple[CaseView, ...]
    rows: tuple[tuple[str, str, str, str, int, tuple[Cell, ...]], ...]
    conventions: tuple[tuple[str, str], ...]
    methods: Methods
    files: tuple[str, ...]
    limit: int = ROWS_SHOWN


@cache
def _layout() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "evaluation.yml").read_text(encoding="utf-8"))
    return content


def view_evaluation(given: Given) -> EvaluationView:
    """Everything the page shows."""
    cases = given.tables["cases"]
    done = cases[cases["problem"].isna()]
    measures = tuple(m for m in MEASURES if done[m.column].notna().any() or not m.lesion_wise)
    labels = list(dict.fromkeys(zip(done["segmentation"], done["label"], strict=True)))
    single = len({segmentation for segmentation, _ in labels}) == 1
    parts = _parts(given, done, labels, single)
    tests = given.tables["tests"]
    paired = tests[tests["test"] == "Wilcoxon signed-rank"]
    groups = tests[tests["test"] == "Wilcoxon rank-sum"]
    colour = _colours(given.names)
    failed = cases[cases["problem"].notna()]
    return EvaluationView(
        lede=_lede(given, done, labels),
        version=__version__,
        names=given.names,
        problems=tuple((f"{case_name(row)}, {row['segmentation']}, {row['prediction']}", str(row["problem"]))
                       for row in failed.to_dict("records")),
        notes=given.notes,
        measures=measures,
        parts=parts,
        overall=tuple(_overall(done, given.names, colour)),
        summary=tuple(_summary(given, labels, measures, colour, single)),
        upright=len(labels) * len(given.names) <= UPRIGHT,
        several_cases=len(done.drop_duplicates(CASE)) > 1,
        volumes=tuple(_volumes(given.tables["volumes"], colour, single)),
        tests=tuple(_test_row(row, single) for row in paired.to_dict("records") if paired["p"].notna().any()),
        test_note=_test_note(paired),
        groups=tuple(_test_row(row, single) for row in groups.to_dict("records")),
        compared=given.names[::-1] if len(given.names) == 2 else (),
        raters=tuple(_rater_rows(given.tables["raters"])),
        pairs=tuple(_pair_rows(given.tables["raters"])),
        pictures=tuple(_case_view(one, done, colour, single) for one in given.drawn),
        rows=tuple(_case_rows(done, measures, colour, single)),
        conventions=tuple((str(name), str(text)) for name, text in _layout()["conventions"]),
        methods=compose(_layout(), _facts(given, done, paired, groups)),
        files=given.files,
    )  # fmt: skip


def _facts(given: Given, done: pd.DataFrame, paired: pd.DataFrame, groups: pd.DataFrame) -> dict[str, Any]:
    def yes(value: Any) -> str:
        return "yes" if value else "no"

    return {
        "version": __version__, "lesions": yes(done["reference_lesions"].notna().any()),
        "raters": len(given.references), "several": yes(len(given.references) > 1), "fusion": given.fusion,
        "minimum": f"{given.minimum_lesion_mm3:g}", "minimal": yes(given.minimum_lesion_mm3 > 0),
        "borders": enumerate_words([f"{border:g}" for border in given.borders_mm3]),
        "paired": yes(paired["p"].notna().any()), "groups": yes(len(groups)),
        "volumes": yes(given.tables["volumes"]["bias_mm3"].notna().any()),
    }  # fmt: skip


def _lede(given: Given, done: pd.DataFrame, labels: Sequence[tuple[str, str]]) -> str:
    cases = done.drop_duplicates(CASE)
    subjects = cases["participant_id"].nunique()
    what = enumerate_words([name for _, name in labels]) if len(labels) <= 3 else f"{len(labels)} labels"
    size = count_of(len(cases), "case")
    size += f" of {count_of(subjects, 'subject')}" if subjects != len(cases) else ""
    raters = (
        f"the consensus of {len(given.references)} raters ({enumerate_words(list(given.references))})"
        if len(given.references) > 1
        else f"the references in {given.references[0]}"
    )
    predictions = f"{enumerate_words(list(given.names))}"
    return f"{predictions} against {raters}: {what} in {size}."


def _colours(names: Sequence[str]) -> dict[str, int]:
    return {name: 1 + number % COLOURS for number, name in enumerate(names)}


def _title(segmentation: str, label: str, single: bool) -> str:
    return label if single or segmentation.endswith(f"-{label}") else f"{label} ({segmentation})"


def anchor(*parts: str) -> str:
    """An id for links within the page."""
    return "-".join("".join(c if c.isalnum() else "-" for c in part) for part in parts)


# --- numbers in words -------------------------------------------------------------------------------------------------


def show(column: str, value: float) -> str:
    """A measure as people read it.

    Examples
    --------
    >>> show("dsc", 0.74201), show("hd95_mm", 7.0711), show("volume_difference_mm3", -190.0), show("dsc", float("nan"))
    ('0.742', '7.1', '−190', 'n/a')
    """
    if value is None or not np.isfinite(value):
        return "n/a"
    if column.endswith("_mm3"):
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}".replace(",", "\u202f")
        text = text.replace("-", "\u2212")
        return text if column != "volume_difference_mm3" or value <= 0 else f"+{text}"
    text = f"{value:.2f}" if column == "assd_mm" else f"{value:.1f}" if column.endswith("_mm") else f"{value:.3f}"
    return text.replace("-", "\u2212")


def _unit(measure: Measure) -> str:
    return measure.unit.replace("^3", "³")


def _key(value: float) -> str:
    return f"{value:.10g}" if value is not None and np.isfinite(value) else ""


def _spread(column: str, values: np.ndarray) -> str:
    """Quartiles, of few cases the range, of one nothing."""
    if len(values) < 2:
        return ""
    return _range(column, *np.percentile(values, (25, 75) if len(values) >= QUARTILES else (0, 100)))


def _range(column: str, q1: float, q3: float) -> str:
    return f"{show(column, q1)} to {show(column, q3)}"


# --- label by label ---------------------------------------------------------------------------------------------------


def _parts(given: Given, done: pd.DataFrame, labels: Sequence[tuple[str, str]], single: bool) -> tuple[Part, ...]:
    colour = _colours(given.names)
    parts = []
    for number, (segmentation, label) in enumerate(labels):
        some, lesions, volumes, sizes = (
            table[(table["segmentation"] == segmentation) & (table["label"] == label)]
            for table in (done, *(given.tables[name] for name in ("lesions", "volumes", "sizes")))
        )
        lesion = bool(some["reference_lesions"].notna().any())
        many = segmentation.startswith("seg-") and len(labels) > FEW_LABELS
        drawn = number < DRAWN_LABELS
        parts.append(Part(
            title=_title(segmentation, label, single), anchor=anchor("label", segmentation, label), lesion=lesion,
            headline=() if many else _headline(some, given.names, colour),
            strips=_strips(some, ("dsc",) if many else STRIPS, given.names, colour),
            versus=versus(some, given.names) if drawn else (),
            volumes=volume_charts(some, volumes, given.names, colour) if drawn else (),
            sizes=size_charts(sizes, size_names(given.borders_mm3), given.names, colour),
            missed=_listed(lesions, "reference"), invented=_listed(lesions, "prediction"),
        ))  # fmt: skip
    return tuple(parts)


def _headline(some: pd.DataFrame, names: Sequence[str], colour: Mapping[str, int]) -> Headline:
    out = []
    for column in HEADLINE:
        measure = BY_COLUMN[column]
        values = [some.loc[some["prediction"] == name, column].dropna().to_numpy(float) for name in names]
        if not any(map(len, values)):
            continue
        words = []
        for name, known in zip(names, values, strict=True):
            middle = float(np.median(known)) if len(known) else np.nan
            spread = _spread(column, known)
            words.append((colour[name], show(column, middle), _unit(measure), spread))
        out.append((heading(measure), f"{measure.name}: {measure.formula}.", tuple(words)))
    return tuple(out)


def _overall(done: pd.DataFrame, names: Sequence[str], colour: Mapping[str, int]) -> list[tuple[str, Headline]]:
    """Of dsegs with many labels: the labels' medians over cases, averaged over those that have one."""
    out = []
    for segmentation, some in done.groupby("segmentation", sort=False):
        count = some["label"].nunique()
        if not str(segmentation).startswith("seg-") or count <= FEW_LABELS:
            continue
        medians = some.groupby(["prediction", "label"])[["dsc", "hd95_mm", "assd_mm"]].median()
        parts = []
        for column in medians:
            measure = BY_COLUMN[str(column)]
            words = []
            for name in names:
                known = medians[column].get(name, pd.Series(dtype=float)).dropna()
                lowest = f"{show(str(column), known.min())} to {show(str(column), known.max())}" if len(known) else ""
                words.append((colour[name], show(str(column), known.mean()), _unit(measure), lowest))
            about = f"{measure.name}, mean over the labels that have one; below it the range over labels."
            parts.append((heading(measure), about, tuple(words)))
        out.append((f"{segmentation}: mean of {count} labels", tuple(parts)))
    return out


def _strips(
    some: pd.DataFrame, columns: Sequence[str], names: Sequence[str], colour: Mapping[str, int]
) -> tuple[Strip, ...]:
    """Where there are two cases at least."""
    if len(some.drop_duplicates(CASE)) < 2:
        return ()
    strips = []
    for column in columns:
        known = some[some[column].notna()]
        if known.empty:
            continue
        measure = BY_COLUMN[column]
        low, high = (0.0, measure.reach) if measure.reach else (0.0, ceiling(float(known[column].max())))
        assert high is not None
        rows = []
        for place, name in enumerate(names):
            mine = known[known["prediction"] == name]
            values = mine[column].to_numpy(float)
            top = 16.0 + 26 * place
            q1, median, q3 = np.percentile(values, (25, 50, 75)) if len(values) else (np.nan,) * 3
            box = tuple(_percent(v, low, high) for v in (q1, median, q3)) if len(values) >= QUARTILES else None
            marks = tuple(
                Mark(_percent(value, low, high), top + _jitter(i), colour[name], case,
                     f"{case}, {name}: {measure.short} {show(column, value)}")
                for i, (value, case) in enumerate(zip(values, map(case_name, mine.to_dict("records")), strict=True))
            )  # fmt: skip
            unit = f"\u00a0{_unit(measure)}" if measure.unit else ""
            words = f"{show(column, median)}{unit}" + (f" ({_spread(column, values)})" if len(values) > 1 else "")
            rows.append(Row(colour[name], top, box, words if len(values) else "n/a", marks))  # type: ignore[arg-type]
        unit = f" {_unit(measure)}" if measure.unit else ""
        strips.append(Strip(
            heading(measure), f"{measure.name}: {measure.formula}.", tuple(rows), f"{low:g}", f"{high:g}{unit}",
            26.0 * len(names) + 24,
        ))  # fmt: skip
    return tuple(strips)


def _percent(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2) if high > low else 50.0


def _jitter(number: int) -> float:
    """Dots on one place do not hide one another: five heights in turn."""
    return (0.0, 4.0, -4.0, 2.0, -2.0)[number % 5]


def _listed(lesions: pd.DataFrame, side: str) -> tuple[tuple[str, ...], ...]:
    """The largest missed lesions, or false positives: case, prediction, volume, place."""
    some = lesions[(lesions["lesion_of"] == side) & (lesions["found"] == "no")]
    some = some.sort_values("volume_mm3", ascending=False, kind="stable").head(LISTED)
    return tuple(
        (case_name(row), row["prediction"], show("volume_mm3", row["volume_mm3"]),
         ", ".join(f"{row[f'{axis}_mm']:.0f}".replace("-", "\u2212") for axis in "xyz"))
        for row in some.to_dict("records")
    )  # fmt: skip


# --- tables -----------------------------------------------------------------------------------------------------------


def _summary(
    given: Given,
    labels: Sequence[tuple[str, str]],
    measures: Sequence[Measure],
    colour: Mapping[str, int],
    single: bool,
) -> list[tuple[str, str, int, tuple[Cell, ...]]]:
    table = given.tables["summary"].set_index(["segmentation", "label", "prediction", "measure"])
    rows = []
    for segmentation, label in labels:
        for name in given.names:
            cells = []
            for measure in measures:
                key = (segmentation, label, name, measure.column)
                if key not in table.index or not table.loc[key, "n"]:
                    cells.append(Cell("n/a"))
                    continue
                row = table.loc[key]
                ends = ("q1", "q3") if row["n"] >= QUARTILES else ("min", "max")
                below = _range(measure.column, row[ends[0]], row[ends[1]]) if row["n"] > 1 else ""
                few = f"n = {int(row['n'])}" if row["undefined"] else ""
                below = ", ".join(filter(None, (below, few)))
                cells.append(Cell(show(measure.column, row["median"]), below, _key(row["median"])))
            rows.append((_title(segmentation, label, single), name, colour[name], tuple(cells)))
    return rows


def _volumes(
    table: pd.DataFrame, colour: Mapping[str, int], single: bool
) -> list[tuple[str, str, int, tuple[Cell, ...]]]:
    rows = []
    for row in table[table["subjects"] >= MINIMUM_SUBJECTS].to_dict("records"):
        of = f"of {count_of(row['subjects'], 'subject')}" if row["subjects"] < row["n"] else ""
        cells = [Cell(f"{row['n']}", of, key=f"{row['n']}")]
        for name in ("pearson", "spearman", "ccc", "icc"):
            ends = (row.get(f"{name}_ci_low", np.nan), row.get(f"{name}_ci_high", np.nan))
            below = f"{ends[0]:.2f} to {ends[1]:.2f}" if np.isfinite(ends).all() else ""
            cells.append(Cell(show("dsc", row[name]), below.replace("-", "\u2212"), _key(row[name])))
        for name in ("bias", "lower", "upper"):
            value = row[f"{name}_mm3"] / 1000
            below = f"{signed(row[f'{name}_ci_low'] / 1000)} to {signed(row[f'{name}_ci_high'] / 1000)}"
            cells.append(Cell(signed(value) or "n/a", below, _key(value)))
        title = _title(row["segmentation"], row["label"], single)
        rows.append((title, row["prediction"], colour[row["prediction"]], tuple(cells)))
    return rows


def _test_row(row: Mapping[str, Any], single: bool) -> tuple[Cell, ...]:
    measure = BY_COLUMN[row["measure"]]
    column = measure.column
    interval = _range(column, row["ci_low"], row["ci_high"]) if np.isfinite(row["ci_low"]) else ""
    n = f"{row['n']}" if row["test"] == "Wilcoxon signed-rank" else f"{row['n']} and {row['other_n']}"
    which = row["comparison"] + (f", {row['prediction']}" if isinstance(row["prediction"], str) else "")
    better = ""
    if np.isfinite(row["difference"]) and row["difference"] and measure.better != "zero":
        better = "better" if (row["difference"] > 0) == (measure.better == "higher") else "worse"
    return (
        Cell(which), Cell(_title(row["segmentation"], row["label"], single)), Cell(measure.name), Cell(n),
        Cell(show(column, row["median"]), key=_key(row["median"])),
        Cell(show(column, row["other_median"]), key=_key(row["other_median"])),
        Cell(show(column, row["difference"]), interval, _key(row["difference"])), Cell(better),
        Cell(p_text(row["p"]) or "n/a", key=_key(row["p"])), Cell(p_text(row["p_holm"]) or "", key=_key(row["p_holm"])),
        Cell(p_text(row["q_fdr"]) or "", key=_key(row["q_fdr"])),
        Cell(signed(row["effect_size"]) or "", key=_key(row["effect_size"])),
        Cell("yes" if row["p_holm"] < 0.05 else ""),
    )  # fmt: skip


def _test_note(paired: pd.DataFrame) -> str:
    if paired.empty:
        return ""
    most = int(paired["n"].max())
    smallest = paired["smallest_p"].min()
    if not np.isfinite(smallest) or smallest > 0.05:
        return (
            f"With {count_of(most, 'subject')} no difference can be significant: even six that all go the same way"
            " give p = 0.031, five 0.063. Look at the cases instead."
        )
    tested = paired[paired["p"].notna()]
    lost: dict[tuple[int, float, int], list[str]] = {}
    for name, some in tested.groupby("comparison", sort=False):  # as Holm's correction takes them
        least, tests = float(some["smallest_p"].min()), len(some)
        if least * tests > 0.05:
            lost.setdefault((int(some["n"].max()), least, tests), []).append(str(name))
    if not lost:
        return ""
    in_all = len(lost) == 1 and sum(map(len, lost.values())) == tested["comparison"].nunique()
    told = [
        ("The" if in_all else f"{enumerate_words(names)}: the")
        + f" smallest p that {count_of(subjects, 'subject')} can give is {least:.2g}: after Holm's correction for"
        f" {count_of(tests, 'test')}{' in each comparison' if len(names) > 1 else ''} none can be below 0.05."
        for (subjects, least, tests), names in lost.items()
    ]
    return " ".join([*told, "The false discovery rate asks for less."])


def _rater_rows(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """Medians over cases, a row per label and rater."""
    rows: list[tuple[str, ...]] = []
    some = table[table["kind"] == "rater"]
    for (label, rater), part in some.groupby(["label", "rater"], sort=False):
        cells = [show("dsc", part[column].median()) for column in ("sensitivity", "specificity", "dsc")]
        volume = f"{part['volume_mm3'].median() / 1000:.3g}"
        rows.append((str(label), str(rater), str(len(part)), *cells, volume))
    return rows


def _pair_rows(table: pd.DataFrame) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    some = table[table["kind"] == "pair"]
    for (label, rater, other), part in some.groupby(["label", "rater", "other"], sort=False):
        rows.append((str(label), f"{rater} and {other}", show("dsc", part["dsc"].median()), ""))
    for label, part in table[table["kind"] == "all"].groupby("label", sort=False):
        cells = (show("dsc", part["dsc"].median()), show("dsc", part["kappa"].median()))
        rows.append((str(label), "all", *cells))
    return rows


def _case_rows(
    done: pd.DataFrame, measures: Sequence[Measure], colour: Mapping[str, int], single: bool
) -> list[tuple[str, str, str, str, int, tuple[Cell, ...]]]:
    rows = []
    for row in done.to_dict("records"):
        cells = tuple(Cell(show(m.column, row[m.column]), key=_key(row[m.column])) for m in measures)
        volumes = tuple(
            Cell(f"{row[f'{side}_volume_mm3'] / 1000:.3g}", key=_key(row[f"{side}_volume_mm3"]))
            for side in ("reference", "prediction")
        )
        case = case_name(row)
        name = row["prediction"]
        title = _title(row["segmentation"], row["label"], single)
        rows.append((case, anchor("case", case), title, name, colour[name], cells + volumes))
    return rows


def _case_view(one: Drawn, done: pd.DataFrame, colour: Mapping[str, int], single: bool) -> CaseView:
    here = done[
        np.array([case_name(row) == one.case for row in done.to_dict("records")])
        & (done["segmentation"] == one.segmentation)
        & (done["label"] == one.label)
    ]
    words = []
    for row in here.to_dict("records"):
        told = [f"Dice {show('dsc', row['dsc'])}"]
        told += [f"{show('volume_difference_mm3', row['volume_difference_mm3'])} mm³"]
        if np.isfinite(row["lesion_tpr"]) and row["reference_lesions"]:
            lesions = int(row["reference_lesions"])
            told.append(f"{round(row['lesion_tpr'] * lesions)} of {count_of(lesions, 'lesion')} found")
        if np.isfinite(row["lesion_ppv"]):
            wrong = round((1 - row["lesion_ppv"]) * row["prediction_lesions"])
            told.append(count_of(wrong, "false positive"))
        words.append((colour[row["prediction"]], str(row["prediction"]), ", ".join(told)))
    names = [name for _, name, _ in words]
    width, height = _png_size(one.picture.image)
    return CaseView(
        anchor("case", one.case), one.case, f"{one.case}: {_title(one.segmentation, one.label, single)}", tuple(words),
        one.scan,
        f"Rows from the top: {enumerate_words(names)}." if len(names) > 1 else "",
        _data_uri(one.picture.image), _data_uri(one.picture.overlay), width, height,
    )  # fmt: skip


def _png_size(png: bytes) -> tuple[int, int]:
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()

"""The charts of ``bidsapp evaluate``'s page: what its SVG is drawn from, in user units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bidsapp.measure.evaluation import BY_COLUMN, CASE, Measure
from bidsapp.report.group_models import signed

#: Size and margins in user units of the SVG.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 250, 46, 12, 12, 34
_HEADINGS = {"dsc": "Dice", "tpr": "Sensitivity", "ppv": "Precision", "hd95_mm": "Hausdorff 95 %",
             "assd_mm": "Surface distance", "lesion_tpr": "Lesions found", "lesion_ppv": "Lesions true",
             "lesion_f1": "Lesion F1", "vdr": "Volume ratio"}  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """A case in a chart or strip."""

    x: float
    y: float
    colour: int
    case: str
    title: str


@dataclass(frozen=True)
class Chart:
    """A drawing with axes: marks, lines (x1, y1, x2, y2, class), boxes (x, y, width, height, class), texts."""

    title: str
    caption: str
    across: str
    up: str
    marks: tuple[Mark, ...] = ()
    lines: tuple[tuple[float, float, float, float, str], ...] = ()
    boxes: tuple[tuple[float, float, float, float, str, str], ...] = ()
    texts: tuple[tuple[float, float, str, str], ...] = ()
    size: tuple[int, int] = (WIDTH, HEIGHT)


def heading(measure: Measure) -> str:
    """What a measure is called above a figure."""
    return _HEADINGS.get(measure.column, measure.name)


def case_name(row: Mapping[str, Any]) -> str:
    """A case as the page names it."""
    return "_".join(str(row[key]) for key in CASE if isinstance(row[key], str) and row[key])


def ceiling(value: float) -> float:
    """The next round number.

    Examples
    --------
    >>> ceiling(41.06), ceiling(0.0), ceiling(0.43)
    (50.0, 1.0, 0.5)
    """
    if value <= 0:
        return 1.0
    size = 10.0 ** np.floor(np.log10(value))
    return float(next(step * size for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * size >= value * 0.9999))


def versus(some: pd.DataFrame, names: Sequence[str]) -> tuple[Chart, ...]:
    """Dice, and lesion-wise F1, of the first prediction against that of each other, case by case."""
    charts = []
    for other in names[1:]:
        for column in ("dsc", "lesion_f1"):
            both = some[some["prediction"].isin((names[0], other))].pivot_table(
                index=CASE, columns="prediction", values=column, aggfunc="first"
            )
            both = both.reindex(columns=[names[0], other]).dropna()
            if len(both) < 2:
                continue
            x, y = both.to_numpy(float).T
            axes = _Axes((0, 1), (0, 1))
            lines, texts = axes.frame(lambda v: f"{v:g}")
            marks = tuple(
                Mark(*axes.at(a, b), 2 if b > a else 1, case_name(dict(zip(CASE, key, strict=True))),
                     f"{case_name(dict(zip(CASE, key, strict=True)))}: {a:.3f} and {b:.3f}")
                for key, a, b in zip(both.index, x, y, strict=True)
            )  # fmt: skip
            better = int((y > x).sum())
            measure = BY_COLUMN[column]
            charts.append(Chart(
                f"{heading(measure)}: {other} against {names[0]}",
                f"Above the line {other} is the better one: {better} of {len(x)}.", names[0], other, marks,
                (*lines, axes.line(0, 0, 1, 1, "identity")), (), tuple(texts),
            ))  # fmt: skip
    return tuple(charts)


def volume_charts(
    some: pd.DataFrame, table: pd.DataFrame, names: Sequence[str], colour: Mapping[str, int]
) -> tuple[Chart, ...]:
    """A label's volumes against the reference's, and Bland and Altman's plot of each prediction.

    Parameters
    ----------
    some, table : DataFrame
        Of the label: the rows of the cases, and of the volumes.
    names : sequence of str
        Predictions.
    colour : mapping
    """
    known = some.dropna(subset=["reference_volume_mm3", "prediction_volume_mm3"])
    if len(known.drop_duplicates(CASE)) < 2:
        return ()
    reference, prediction = (known[f"{side}_volume_mm3"].to_numpy(float) / 1000 for side in ("reference", "prediction"))
    cases = list(map(case_name, known.to_dict("records")))
    top = ceiling(float(max(reference.max(), prediction.max())))
    axes = _Axes((0, top), (0, top))
    lines, texts = axes.frame(_number)
    marks = tuple(
        Mark(*axes.at(r, p), colour[who], case, f"{case}, {who}: {p:.4g} ml, reference {r:.4g} ml")
        for r, p, who, case in zip(reference, prediction, known["prediction"], cases, strict=True)
    )
    charts = [Chart("Volumes", "On the line the volumes are equal.", "reference, ml", "prediction, ml", marks,
                    (*lines, axes.line(0, 0, top, top, "identity")), (), tuple(texts))]  # fmt: skip
    table = table.set_index("prediction")
    every = np.abs(prediction - reference).max()
    limits = table[["lower_ci_low", "upper_ci_high"]].abs().max(axis=None) / 1000
    reach = ceiling(float(np.nanmax([every, limits])))
    for name in names:
        mine = (known["prediction"] == name).to_numpy()
        if mine.sum() < 2:
            continue
        charts.append(_bland_altman(reference[mine], prediction[mine], np.array(cases)[mine], name, colour[name],
                                    table.loc[name], top, reach))  # fmt: skip
    return tuple(charts)


def _bland_altman(
    reference: np.ndarray,
    prediction: np.ndarray,
    cases: np.ndarray,
    name: str,
    colour: int,
    row: pd.Series,
    top: float,
    reach: float,
) -> Chart:
    axes = _Axes((0, top), (-reach, reach))
    lines, texts = axes.frame(_number)
    boxes = []
    caption = "Too few subjects for limits of agreement."
    if np.isfinite(row["bias_mm3"]):
        ml = {key: float(row[key]) / 1000 for key in row.index if key.endswith(("_mm3", "_low", "_high"))}
        for part in ("bias", "lower", "upper"):
            boxes.append(axes.band(ml[f"{part}_ci_low"], ml[f"{part}_ci_high"], "band"))
            lines.append(axes.line(0, ml[f"{part}_mm3"], top, ml[f"{part}_mm3"], "bias" if part == "bias" else "limit"))
        caption = (
            f"Bias {signed(ml['bias_mm3'])} ml ({signed(ml['bias_ci_low'])} to {signed(ml['bias_ci_high'])}), limits of"
            f" agreement {signed(ml['lower_mm3'])} to {signed(ml['upper_mm3'])} ml; bands: 95 % intervals."
        )
    marks = tuple(
        Mark(*axes.at((r + p) / 2, p - r), colour, case, f"{case}, {name}: {signed(p - r)} ml")
        for r, p, case in zip(reference, prediction, cases, strict=True)
    )
    lines.append(axes.line(0, 0, top, 0, "zero"))
    return Chart(f"Bland-Altman: {name}", caption, "mean of the two, ml", "prediction minus reference, ml", marks,
                 tuple(lines), tuple(boxes), tuple(texts))  # fmt: skip


def size_charts(
    table: pd.DataFrame, sizes: Sequence[str], names: Sequence[str], colour: Mapping[str, int]
) -> tuple[Chart, ...]:
    """A label's lesions that were found, and predicted lesions that are true, by size.

    Parameters
    ----------
    table : DataFrame
        Of the label: the rows of the sizes.
    sizes, names : sequence of str
        Classes of size, and predictions.
    colour : mapping
    """
    if table.empty:
        return ()
    return (
        _size_chart(
            table, sizes, names, colour, rate="lesion_tpr", total="reference_lesions", hit="found",
            title="Lesions found, by size", about="of the reference's lesions",
        ),
        _size_chart(
            table, sizes, names, colour, rate="lesion_ppv", total="prediction_lesions", hit="true",
            title="Predicted lesions that are true, by size", about="of predicted lesions",
        ),
    )  # fmt: skip


def _size_chart(
    table: pd.DataFrame,
    sizes: Sequence[str],
    names: Sequence[str],
    colour: Mapping[str, int],
    *,
    rate: str,
    total: str,
    hit: str,
    title: str,
    about: str,
) -> Chart:
    """Bars of the columns `hit` of `total`, with the interval of their `rate`."""
    axes = _Axes((0, len(sizes)), (0, 1))
    lines, texts = axes.frame(lambda v: f"{100 * v:.0f} %")
    texts = [text for text in texts if text[3] == "end"]
    boxes = []
    width = 0.78 / len(names)
    for i, size in enumerate(sizes):
        texts.append((axes.at(i + 0.5, 0)[0], HEIGHT - BOTTOM + 13.0, f"{size}".replace(">=", "≥"), "middle"))
        rows = table[table["size"] == size]
        for j, name in enumerate(names):
            mine = rows[rows["prediction"] == name]
            if not mine[total].any():  # nor is it in the table where neither side has a lesion
                continue
            row = mine.iloc[0]
            start = i + 0.11 + j * width
            left, top = axes.at(start, float(row[rate]))
            right, bottom = axes.at(start + width, 0)
            said = f"{name}, {size} mm³: {row[hit]} of {row[total]}"
            boxes.append((left, top, round(right - left - 2, 1), round(max(bottom - top, 0.5), 1),
                          f"c{colour[name]}", said))  # fmt: skip
            middle = (left + right - 2) / 2
            ends = axes.at(0, float(row[f"{rate}_ci_low"]))[1], axes.at(0, float(row[f"{rate}_ci_high"]))[1]
            lines.append((round(middle, 1), ends[0], round(middle, 1), ends[1], "whisker"))
        counts = list(dict.fromkeys(str(row[total]) for _, row in rows.iterrows()))
        if len(counts) <= 2:
            place = axes.at(i + 0.5, 0)[0], HEIGHT - BOTTOM + 25.0
            texts.append((*place, f"n = {', '.join(counts)}", "middle"))
    return Chart(title, f"Part {about} of all cases; lines: 95 % intervals (Wilson).",
                 "volume of the lesion, mm³", "", (), tuple(lines), tuple(boxes), tuple(texts))  # fmt: skip


@dataclass(frozen=True)
class _Axes:
    """From numbers to user units."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * (x - self.x[0]) / (self.x[1] - self.x[0])
        up = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - self.y[0]) / (self.y[1] - self.y[0])
        return round(float(across), 1), round(float(up), 1)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> tuple[float, float, float, float, str]:
        return (*self.at(x1, y1), *self.at(x2, y2), kind)

    def band(self, low: float, high: float, kind: str) -> tuple[float, float, float, float, str, str]:
        left, top = self.at(self.x[0], min(high, self.y[1]))
        right, bottom = self.at(self.x[1], max(low, self.y[0]))
        return left, top, round(right - left, 1), round(max(bottom - top, 0.0), 1), kind, ""

    def frame(
        self, form: Callable[[float], str]
    ) -> tuple[list[tuple[float, float, float, float, str]], list[tuple[float, float, str, str]]]:
        """Lines and numbers of the ticks."""
        lines, texts = [], []
        for value in _ticks(*self.x):
            x, _ = self.at(value, self.y[0])
            texts.append((x, HEIGHT - BOTTOM + 13.0, form(value), "middle"))
        for value in _ticks(*self.y):
            _, y = self.at(self.x[0], value)
            lines.append((float(LEFT), y, float(WIDTH - RIGHT), y, "tick"))
            texts.append((LEFT - 5.0, y + 3.0, form(value), "end"))
        return lines, texts


def _ticks(low: float, high: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    return [float(v) for v in MaxNLocator(4).tick_values(low, high) if low - 1e-9 <= v <= high + 1e-9]


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "\u2212")

"""Figures of the group as drawings (SVG) and pictures (PNG), for papers and the page."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from bidsapp.report.analysis import Analysis
from bidsapp.report.group_models import formulas_to_tell
from bidsapp.report.read import png_size
from bidsapp.writing import replacing

FOLDER = "group_figures"
#: Colours of groups: those of the page (style.css) in the same order, and two more.
COLOURS = ("#0b6a6a", "#b4552d", "#5b4fa2", "#2962ff", "#222222", "#56B4E9", "#D4A017")
#: What is found, and what is not.
FOUND, NOT_FOUND = "#D55E00", "#555555"
#: Terms and outcomes that a figure of effect sizes has room for.
MAXIMUM_TERMS, MAXIMUM_OUTCOMES = 8, 60
DPI = 110
#: Of more sessions a random sample is drawn as dots; lines and boxes are of all.
MAXIMUM_DOTS = 2000
#: Height of axial slices in MNI space (mm), on the 1 mm grid.
SLICES_MM = (-30, -15, 0, 12, 24, 36, 48, 60)
LOG_P_LIMIT = 1.30103  # -log10(0.05)

# Same bytes every time: no date, no random identifiers; text stays text, and "$" in a group's name no formula.
_STYLE = {
    "svg.hashsalt": "bidsapp", "svg.fonttype": "none", "text.parse_math": False, "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "figure.constrained_layout.use": True,
}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A figure on disk, and as a data URI for the page, which is one file: its size in pixels, paths of PNG and SVG."""

    image: str
    width: int
    height: int
    files: tuple[str, ...]


def _figure(**options: Any) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(_STYLE)
    from matplotlib import pyplot

    return pyplot.subplots(**options)


def save(out_dir: Path, stem: str, figure: Any) -> Drawing:
    """Write ``group_figures/<stem>.png`` and ``.svg``."""
    from matplotlib import pyplot

    folder = out_dir / FOLDER
    for kind in ("png", "svg"):
        metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        with replacing(folder / f"{stem}.{kind}") as aside:
            figure.savefig(aside, format=kind, dpi=DPI, metadata=metadata)
        figure.set_layout_engine("none")  # once is enough: it takes as long as drawing
    pyplot.close(figure)
    png = folder / f"{stem}.png"
    image = "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()
    return Drawing(image, *png_size(png), (f"{FOLDER}/{stem}.png", f"{FOLDER}/{stem}.svg"))


def by_group(analysis: Analysis, columns: Sequence[str], names: Sequence[str], units: Sequence[str]) -> Any:
    """Boxes with dots of every measure, by group."""
    width = 2.6 + 0.5 * max(len(_levels(analysis)) - 4, 0)
    figure, panels, levels = _panels(analysis, columns, names, units, size=(width, 2.6))
    rng = np.random.default_rng(0)
    for axis, column in panels:
        for place, (_, frame) in enumerate(levels):
            values = frame[column].dropna().to_numpy(float)
            if not len(values):
                continue
            axis.boxplot([values], positions=[place], widths=0.5, showfliers=False, medianprops={"color": "black"})
            shown = values if len(values) <= MAXIMUM_DOTS else rng.choice(values, MAXIMUM_DOTS, replace=False)
            _dots(axis, place + rng.uniform(-0.17, 0.17, len(shown)), shown, place=place, area=7)
        axis.set_xticks(range(len(levels)), [name for name, _ in levels])
    return figure


def against_age(analysis: Analysis, columns: Sequence[str], names: Sequence[str], units: Sequence[str]) -> Any:
    """Every measure against age, with the line of each group."""
    group = analysis.design.group
    age = str(analysis.design.session_age or analysis.design.age)
    figure, panels, levels = _panels(analysis, columns, names, units, size=(3.2, 2.7))
    rng = np.random.default_rng(0)
    for axis, column in panels:
        for place, (level, some) in enumerate(levels):
            pairs = some[[age, column]].dropna().to_numpy(float)
            if not len(pairs):
                continue
            shown = pairs if len(pairs) <= MAXIMUM_DOTS else pairs[rng.choice(len(pairs), MAXIMUM_DOTS, replace=False)]
            _dots(axis, *shown.T, place=place, area=9, label=level or None)
            if len(pairs) > 2 and np.ptp(pairs[:, 0]) > 0:
                slope, start = np.polyfit(*pairs.T, 1)
                ends = np.array([pairs[:, 0].min(), pairs[:, 0].max()])
                axis.plot(ends, start + slope * ends, color=_colour(place), linewidth=1.4)
        axis.set_xlabel(age.replace("_", " "))
    if group:
        panels[0][0].legend(frameon=False, title=group, fontsize=8)
    return figure


def _panels(
    analysis: Analysis, columns: Sequence[str], names: Sequence[str], units: Sequence[str], *, size: tuple[float, float]
) -> tuple[Any, list[tuple[Any, str]], list[tuple[str, pd.DataFrame]]]:
    """A figure of a panel of `size` (inches) per measure, (panel, column) of each, (name, sessions) of each group."""
    across = min(len(columns), 4)
    down = -(-len(columns) // across)
    figure, axes = _figure(nrows=down, ncols=across, figsize=(size[0] * across, size[1] * down), squeeze=False)
    for axis, name, unit in zip(axes.flat, names, units, strict=False):
        axis.set_ylabel(f"{name}{f' ({unit})' if unit else ''}", wrap=True)
    for axis in list(axes.flat)[len(columns) :]:
        axis.set_visible(False)
    return figure, list(zip(axes.flat, columns, strict=False)), _levels(analysis)


def _levels(analysis: Analysis) -> list[tuple[str, pd.DataFrame]]:
    """Name and sessions of every group; all sessions, without a name, where there are no groups."""
    group, frame = analysis.design.group, analysis.frame
    if not group:
        return [("", frame)]
    return [(str(level), frame[frame[group] == level]) for level in frame[group].cat.categories]


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _dots(axis: Any, x: np.ndarray, y: np.ndarray, *, place: int, area: float, label: str | None = None) -> None:
    axis.scatter(
        x, y, s=area, color=_colour(place), alpha=0.55, linewidths=0, label=label, rasterized=len(x) > 300
    )  # fmt: skip


def forest(terms: pd.DataFrame, name: Callable[[str], str]) -> tuple[Any | None, str]:
    """Effect sizes with their intervals, a panel for each term; and what of them there was no room for, in words."""
    if terms.empty:
        return None, ""
    known = terms[terms["effect_low"].notna() & ~terms["term"].str.contains(" : ", regex=False)]
    apart = formulas_to_tell(known)
    known = known.assign(label=[_label(row, name, apart) for _, row in known.iterrows()])
    all_terms, all_labels = list(dict.fromkeys(known["term"])), list(dict.fromkeys(known["label"]))
    panels, labels = all_terms[:MAXIMUM_TERMS], all_labels[:MAXIMUM_OUTCOMES]
    if not panels:
        return None, ""
    cut = ((panels, all_terms, "terms"), (labels, all_labels, "outcomes"))
    shortened = "".join(f"; the first {len(s)} of {len(a)} {what}" for s, a, what in cut if len(s) < len(a))
    figure, axes = _figure(
        ncols=len(panels), figsize=(2.4 + 1.9 * len(panels), 1.0 + 0.24 * len(labels)), squeeze=False, sharey=True
    )
    for axis, term in zip(axes.flat, panels, strict=True):
        axis.axvline(0, color="#999999", linewidth=0.8)
        some = known[known["term"] == term]
        for _, row in some.iterrows():
            if row["label"] not in labels:
                continue
            place = len(labels) - 1 - labels.index(row["label"])
            colour = FOUND if row["q_fdr"] < 0.05 else NOT_FOUND
            axis.plot([row["effect_low"], row["effect_high"]], [place, place], color=colour, linewidth=1.3)
            axis.plot(row["effect_size"], place, "o", color=colour, markersize=4)
        axis.set_title(term, fontsize=9)
        axis.set_xlabel(str(some["effect"].iloc[0]))
        axis.set_yticks(range(len(labels)), labels[::-1])
    return figure, shortened


def _label(row: pd.Series, name: Callable[[str], str], apart: Collection[str]) -> str:
    part = f", {row['part']}" if row["part"] else ""
    return f"{name(str(row['outcome']))}{part}" + (f" ({row['formula']})" if row["formula"] in apart else "")


def planes_through(seek: np.ndarray | None, planes: Sequence[int]) -> list[int]:
    """Axial planes, moved as far as it takes for each cluster of `seek` to be on one, the largest cluster first."""
    out = list(planes)
    if seek is None or not seek.any():
        return out
    number, count = ndimage.label(seek, np.ones((3, 3, 3)))
    place = np.nonzero(seek)
    areas = np.zeros((seek.shape[2], count))
    np.add.at(areas, (place[2], number[place] - 1), 1)
    kept: set[int] = set()
    for cluster in np.argsort(-areas.sum(axis=0), kind="stable"):
        area = areas[:, cluster]
        if not area[out].any():
            free = [plane for plane in out if plane not in kept]
            if not free:
                continue
            best = int(area.argmax())
            out[out.index(min(free, key=lambda plane, best=best: abs(plane - best)))] = best
        kept.add(max(out, key=lambda plane, area=area: area[plane]))
    return sorted(out)


def slices(
    rows: Sequence[tuple[np.ndarray, str, float, float, str]],
    *,
    background: np.ndarray | None = None,
    contour: np.ndarray | None = None,
    seek: np.ndarray | None = None,
) -> Any:
    """Axial slices of maps on the 1 mm MNI grid, left on the left.

    Parameters
    ----------
    rows : sequence of (ndarray of shape (X, Y, Z), colour map, lowest, highest, name)
    background : ndarray of shape (X, Y, Z), optional
        Drawn in gray where the map is zero.
    contour : ndarray of shape (X, Y, Z), optional
        -log10 of p-values: a line is drawn around those below 0.05.
    seek : ndarray of bool, shape (X, Y, Z), optional
        Slices are moved so that each cluster of it is on one, the largest first.
    """
    depth = rows[0][0].shape[2]
    bottom = 72 if depth == 189 else depth // 2  # the packaged template's first plane lies at z = -72 mm
    planes = planes_through(seek, [min(max(z + bottom, 0), depth - 1) for z in SLICES_MM])
    figure, axes = _figure(
        nrows=len(rows), ncols=len(planes), figsize=(1.35 * len(planes) + 0.9, 1.7 * len(rows) + 0.3), squeeze=False
    )
    figure.patch.set_facecolor("white")
    for row, (values, colours, low, high, name) in zip(axes, rows, strict=True):
        for axis, plane in zip(row, planes, strict=True):
            if background is not None:
                axis.imshow(background[:, :, plane].T, origin="lower", cmap="gray", vmin=0, vmax=1.1)
            shown = np.ma.masked_less_equal(np.abs(values[:, :, plane].T), 1e-4 if background is not None else -1)
            shown = np.ma.array(values[:, :, plane].T, mask=np.ma.getmaskarray(shown))
            picture = axis.imshow(shown, origin="lower", cmap=colours, vmin=low, vmax=high, interpolation="nearest")
            if contour is not None:
                inside = contour[:, :, plane].T > LOG_P_LIMIT
                if inside.any():
                    axis.contour(inside, levels=[0.5], colors="#00d000", linewidths=0.7)
            axis.set_axis_off()
            axis.set_title(f"z = {plane - bottom}", fontsize=7)
        figure.colorbar(picture, ax=list(row), shrink=0.8, label=name, pad=0.01)
    return figure

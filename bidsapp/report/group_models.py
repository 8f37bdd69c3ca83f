"""What the group's page says of models and comparisons: numbers in words, and the pictures of their checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bidsapp.measure.formula import Design
from bidsapp.measure.statistics import Fit

#: Dots of a diagnostic picture; of more sessions every n-th is drawn, the most extreme ones always.
MAXIMUM_DOTS = 400
#: Size of a diagnostic picture (user units of the SVG).
WIDTH, HEIGHT, MARGIN = 260, 180, 12

#: Effect sizes in short: Cohen's d, partial r, partial eta squared.
_EFFECTS = {"Cohen's d": "d", "partial r": "r", "partial eta squared": "η²"}
_COMPARISONS_SORTED_BY = ("difference", "p_t", "p_rank", "effect_size")
_SORTED_BY = ("estimate", "p", "q_fdr", "effect_size")


@dataclass(frozen=True)
class Point:
    """A session in a diagnostic picture: place, name, link."""

    x: float
    y: float
    session: str
    href: str
    colour: int = 0
    title: str = ""


@dataclass(frozen=True)
class Plot:
    """A diagnostic picture: dots, a line, and what the axes show."""

    title: str
    across: str
    up: str
    points: tuple[Point, ...]
    line: tuple[float, float, float, float]
    ends: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelTerm:
    """A row of the table of effects; texts, and numbers to sort by. The formula only where it is not plain which."""

    outcome: str
    part: str
    formula: str
    term: str
    estimate: str
    interval: str
    p: str
    robust: str
    q: str
    effect: str
    keys: tuple[str, ...]
    found: bool
    bar: tuple[float, float, float] | None


@dataclass(frozen=True)
class ModelView:
    """A model that was fitted, with its checks."""

    title: str
    formula: str
    method: str
    size: str
    summary: str
    notes: tuple[str, ...]
    checks: tuple[tuple[str, str, str, bool], ...]
    plots: tuple[Plot, ...]
    doubtful: bool


@dataclass(frozen=True)
class Comparison:
    """A row of the table of comparisons."""

    comparison: str
    measure: str
    size: str
    means: str
    difference: str
    p_t: str
    p_rank: str
    effect: str
    keys: tuple[str, ...]
    found: bool


def p_text(p: float) -> str:
    """A p-value as people write it.

    Examples
    --------
    >>> p_text(0.04321), p_text(0.00002), p_text(float("nan"))
    ('0.043', '<0.001', '')
    """
    if not np.isfinite(p):
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def signed(value: float) -> str:
    """Three digits that count, and a real minus sign.

    Examples
    --------
    >>> signed(-21.9006), signed(1234.5), signed(999.6), signed(0.000123)
    ('−21.9', '1234', '1000', '0.000123')
    """
    if not np.isfinite(value):
        return ""
    text = f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")
    return text.replace("-", "\u2212")


def formulas_to_tell(terms: pd.DataFrame) -> set[str]:
    """Formulas to be named beside their outcome: of outcomes with several models, or of a function of the outcome."""
    models = terms[["outcome", "formula"]].drop_duplicates()
    several = models["outcome"].duplicated(keep=False)
    left = models["formula"].str.partition("~")[0].str.strip()
    return set(models.loc[several | (left != models["outcome"]), "formula"])


def view_terms(terms: pd.DataFrame, name: Callable[[str], str]) -> tuple[ModelTerm, ...]:
    """The effects of all models, intercepts left out."""
    if terms.empty:
        return ()
    shown = terms[terms["term"] != "Intercept"]
    reach = shown[["effect_low", "effect_high"]].abs().max(axis=None)
    apart = formulas_to_tell(shown)
    rows = []
    for _, row in shown.iterrows():
        kind = str(row["estimate_kind"])
        unit = f"\u00a0{row['unit']}" if row["unit"] else ""
        times = "OR\u00a0" if kind == "odds ratio" else "×\u00a0" if kind.endswith("ratio") else ""
        joint = not np.isfinite(row["estimate"])
        estimate = f"F = {row['statistic']:.2f}" if joint else f"{times}{signed(row['estimate'])}{unit}"
        interval = "" if joint else f"{signed(row['ci_low'])} to {signed(row['ci_high'])}"
        effect = (
            f"{_EFFECTS[row['effect']]}\u00a0{signed(row['effect_size'])}"
            if row["effect"] and np.isfinite(row["effect_size"])
            else ""
        )
        bar = None
        if np.isfinite(row["effect_low"]) and np.isfinite(reach) and reach > 0:
            places = [50 + 48 * float(row[end]) / reach for end in ("effect_low", "effect_size", "effect_high")]
            bar = (round(places[0], 1), round(places[1], 1), round(places[2], 1))
        rows.append(ModelTerm(
            outcome=name(str(row["outcome"])), part=str(row["part"]),
            formula=row["formula"] if row["formula"] in apart else "", term=str(row["term"]), estimate=estimate,
            interval=interval, p=p_text(row["p"]), robust=p_text(row["p_robust"]), q=p_text(row["q_fdr"]),
            effect=effect,
            keys=tuple("" if pd.isna(row[key]) else f"{row[key]:.6g}" for key in _SORTED_BY),
            found=bool(row["q_fdr"] < 0.05), bar=bar,
        ))  # fmt: skip
    return tuple(rows)


def view_models(
    fits: Sequence[Fit],
    name: Callable[[str], str],
    frames: Sequence[pd.DataFrame],
    href: Callable[[Mapping[str, Any]], tuple[str, str]],
) -> tuple[ModelView, ...]:
    """Every model that was fitted, with its checks; `frames` are those of sessions and of intervals."""
    views = []
    for fit in fits:
        if fit.refused:
            continue
        frame = next(some for some in frames if set(fit.formula.variables) <= set(some.columns))
        checks = tuple((check.name, check.finding, p_text(check.p), check.doubtful) for check in fit.checks)
        views.append(ModelView(
            title=_title(fit, name), formula=fit.formula.text, method=fit.method,
            size=f"{fit.sessions} sessions of {fit.subjects} subjects" if fit.sessions else "", summary=fit.summary,
            notes=fit.notes, checks=checks, plots=_plots(fit, frame, href),
            doubtful=any(check.doubtful for check in fit.checks),
        ))  # fmt: skip
    return tuple(views)


def view_refused(fits: Sequence[Fit], name: Callable[[str], str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Why models were not fitted, each reason with its models: title and formula."""
    found: dict[str, list[str]] = {}
    for fit in fits:
        if fit.refused:
            found.setdefault(fit.refused, []).append(f"{_title(fit, name)} ({fit.formula.text})")
    return tuple((reason, tuple(titles)) for reason, titles in found.items())


def _title(fit: Fit, name: Callable[[str], str]) -> str:
    return name(fit.formula.outcome) + (f", {fit.part}" if fit.part else "")


def view_comparisons(table: pd.DataFrame, name: Callable[[str], str]) -> tuple[Comparison, ...]:
    """Two groups or two sessions, parametric and rank test side by side."""
    rows = []
    for _, row in table.iterrows():
        unit = f"\u00a0{row['unit']}" if row["unit"] else ""
        same = row["n"] == row["reference_n"] and "session" in row["comparison"]
        rows.append(Comparison(
            comparison=str(row["comparison"]), measure=name(str(row["column"])),
            size=f"{row['n']} pairs" if same else f"{row['n']} and {row['reference_n']}",
            means=f"{signed(row['mean'])} and {signed(row['reference_mean'])}{unit}",
            difference=signed(row["difference"]) + _interval(row),
            p_t=p_text(row["p_t"]), p_rank=p_text(row["p_rank"]), effect=signed(row["effect_size"]),
            keys=tuple("" if pd.isna(row[k]) else f"{row[k]:.6g}" for k in _COMPARISONS_SORTED_BY),
            found=bool(row["q_t"] < 0.05),
        ))  # fmt: skip
    return tuple(rows)


def _interval(row: Mapping[str, Any]) -> str:
    return "" if pd.isna(row["ci_low"]) else f" ({signed(row['ci_low'])} to {signed(row['ci_high'])})"


def _plots(fit: Fit, frame: pd.DataFrame, href: Callable[[Mapping[str, Any]], tuple[str, str]]) -> tuple[Plot, ...]:
    """Normal quantiles and residuals against fitted values (standardised residuals)."""
    if not len(fit.residuals):
        return ()
    order = np.argsort(fit.residuals, kind="stable")
    n = len(order)
    kept = np.unique(np.linspace(0, n - 1, min(n, MAXIMUM_DOTS)).round().astype(int))
    quantiles = stats.norm.ppf((np.arange(n) + 0.5) / n)
    chosen = order[kept]
    records = frame.loc[fit.index[chosen], ["participant_id", "session_id"]].to_dict("records")
    names = [href(record) for record in records]
    quantile = _plot(
        "Normal quantiles", "expected of a normal distribution", "residual", quantiles[kept], fit.residuals[chosen],
        names, diagonal=True,
    )  # fmt: skip
    against = _plot(
        "Residuals", "fitted value", "residual", fit.fitted[chosen], fit.residuals[chosen], names, diagonal=False
    )
    return quantile, against


def scatter(
    x: np.ndarray, y: np.ndarray, points: Sequence[Point], *, title: str, across: str, ends: Sequence[str]
) -> Plot:
    """A measure against a number such as age; `points` carry names and colours, and get their places here.

    `ends` are the words at the lower and upper end of both axes: x low, x high, y low, y high.
    """
    places = [
        MARGIN + (size - 2 * MARGIN) * (values - values.min()) / max(float(np.ptp(values)), 1e-300)
        for values, size in ((x, WIDTH), (y, HEIGHT))
    ]
    placed = tuple(
        replace(point, x=round(float(one), 1), y=round(HEIGHT - float(other), 1))
        for point, one, other in zip(points, *places, strict=True)
    )
    return Plot(title, across, "", placed, (0.0, 0.0, 0.0, 0.0), tuple(ends))


def _plot(
    title: str, across: str, up: str, x: np.ndarray, y: np.ndarray, names: Sequence[tuple[str, str]], *, diagonal: bool
) -> Plot:
    low, high = (float(x.min()), float(x.max())) if np.ptp(x) > 0 else (float(x[0]) - 1, float(x[0]) + 1)
    reach = max(3.0, float(np.abs(y).max()))

    def place(value: float, other: float) -> tuple[float, float]:
        return (
            round(MARGIN + (WIDTH - 2 * MARGIN) * (value - low) / (high - low), 1),
            round(HEIGHT / 2 - (HEIGHT / 2 - MARGIN) * other / reach, 1),
        )

    points = tuple(Point(*place(float(one), float(other)), *name) for one, other, name in zip(x, y, names, strict=True))
    ends = (low, max(low, -reach)), (high, min(high, reach))
    line = (
        (*place(ends[0][1], ends[0][1]), *place(ends[1][1], ends[1][1]))
        if diagonal
        else (*place(low, 0), *place(high, 0))
    )
    return Plot(title, across, up, points, line)


def cohort_table(frame: pd.DataFrame, design: Design) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Who was measured: subjects, sessions, age and sex, by group."""
    group, age, sex = design.group, design.age, design.sex
    first = frame.drop_duplicates("participant_id")
    parts = [("All", frame.index == frame.index)]
    if group:
        parts += [(str(level), frame[group] == level) for level in frame[group].cat.categories]
    heads = [
        "",
        "Subjects",
        "Sessions",
        *([age.replace("_", " ").capitalize()] if age else []),
        *([sex] if sex else []),
    ]
    rows = []
    for label, mask in parts:
        some, one = frame[mask], first[pd.Series(mask, index=frame.index).reindex(first.index)]
        row = [label, str(len(one)), str(len(some))]
        if age:
            values = one[age].dropna()
            row.append(
                f"{values.mean():.1f} ± {values.std():.1f} ({values.min():.0f} to {values.max():.0f})"
                if len(values) > 1
                else "n/a"
            )
        if sex:
            row.append(", ".join(f"{level} {count}" for level, count in one[sex].value_counts(sort=False).items()))
        rows.append(tuple(row))
    return tuple(heads), tuple(rows)

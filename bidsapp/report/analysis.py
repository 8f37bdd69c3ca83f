"""The group level's numbers: merged tables, models, comparisons, z-scores, harmonisation; each with its dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bidsapp.measure import cohort, comparisons, formula, harmonize, normative, statistics
from bidsapp.measure.formula import Design, Formula, FormulaError
from bidsapp.measure.harmonize import HarmonizationError, Harmonized
from bidsapp.measure.statistics import Fit
from bidsapp.measure.volumes import KEY_COLUMNS
from bidsapp.report import merge
from bidsapp.report.covariates import Covariates
from bidsapp.report.merge import Changes
from bidsapp.report.read import Session
from bidsapp.writing import write_frame

#: |leave-one-out z| above which a value stands out (as `cohort.MODIFIED_Z_LIMIT`).
Z_LIMIT = cohort.MODIFIED_Z_LIMIT

#: Columns of the changes that describe the measurement, or a session, and no change.
_NO_CHANGE = (
    "years",
    "minimum_",
    "registration_",
    "common_",
    "small_",
    "unconfirmed_",
    "stable_",
    "lesion_from",
    "lesion_to",
)

#: Tables that are there only where there is something to say.
OPTIONAL_TABLES = (
    "volumes_harmonized", "harmonization", "qc", "cortex", "lesions", "single_lesions", "changes", "lesionchanges",
    "models", "checks", "comparisons", "zscores",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What was asked of the group level."""

    models: tuple[str, ...] = ()
    harmonize: str | None = None
    maps: bool = True
    permutations: int = 1000
    random_seed: int = 1
    processes: int = 1


@dataclass(frozen=True)
class Analysis:
    """All numbers of a group.

    Attributes
    ----------
    volumes : DataFrame
        One row per session, by subject and time: measures, then covariates.
    measures : tuple of str
        The measured columns of `volumes`.
    frame : DataFrame
        The same rows for models (ml, factors); of the harmonised table where there is one.
    design : Design
    fits : tuple of Fit
    cortex : DataFrame
        The cortical regions, in the same rows; without keys.
    quality : DataFrame
        What quality control measured, likewise.
    terms, comparisons, scores, lesions, single_lesions, changes, lesion_changes : DataFrame
    intervals : DataFrame
        The changes for models.
    harmonized : Harmonized or None
    dictionaries : dict
        By table name.
    notes : tuple of str
        What could not be done, and why.
    """

    volumes: pd.DataFrame
    measures: tuple[str, ...]
    frame: pd.DataFrame
    design: Design
    cortex: pd.DataFrame = field(default_factory=pd.DataFrame)
    quality: pd.DataFrame = field(default_factory=pd.DataFrame)
    fits: tuple[Fit, ...] = ()
    terms: pd.DataFrame = field(default_factory=pd.DataFrame)
    comparisons: pd.DataFrame = field(default_factory=pd.DataFrame)
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    lesions: pd.DataFrame = field(default_factory=pd.DataFrame)
    single_lesions: pd.DataFrame = field(default_factory=pd.DataFrame)
    changes: pd.DataFrame = field(default_factory=pd.DataFrame)
    lesion_changes: pd.DataFrame = field(default_factory=pd.DataFrame)
    intervals: pd.DataFrame = field(default_factory=pd.DataFrame)
    harmonized: Harmonized | None = None
    dictionaries: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def analyse(
    merged: pd.DataFrame,
    sessions: Sequence[Session],
    covariates: Covariates,
    *,
    dictionary: Mapping[str, Mapping[str, Any]],
    options: Options | None = None,
    changes: Changes | None = None,
) -> Analysis:
    """Everything of the group that is a number.

    Parameters
    ----------
    merged : DataFrame
        From `cohort.merge_sessions`.
    sessions : sequence of Session
        For their tables of lesions.
    covariates : Covariates
    dictionary : mapping
        Data dictionary of `merged`.
    options : Options
    changes : Changes, optional

    Raises
    ------
    FormulaError
        A formula that was asked for cannot be read. (One that cannot be *fitted* is told in the result.)
    """
    options, changes = options or Options(), changes or Changes()
    measures = tuple(str(name) for name in merged if name not in cohort.KEYS)
    loads, about_loads = merge.beside_volumes("load", merged, measures, sessions)
    cortex, about_cortex = merge.beside_volumes("cortex", merged, measures, sessions)
    quality, about_quality = merge.quality(merged, sessions)
    single, about_lesions = merge.single_lesions(sessions)
    lesions = merge.lesions(merged, measures, sessions, single, loads)
    beside = lesions.drop(columns=[name for name in lesions if name in merged])
    scans = merge.contrasts(sessions)
    changed = changes.tables.get("changes", pd.DataFrame())
    covariates = covariates.beside([*measures, *map(str, cortex), *map(str, beside), *map(str, changed), "contrasts"])
    known = [*covariates.categories, "contrasts"]
    volumes, notes = cohort.add_covariates(merged, [*covariates.tables, ("the records", scans)], codes=known)
    categories = (*known, options.harmonize) if options.harmonize else (*known,)  # sites may be told by numbers
    frame, few = _model_frame(volumes, cortex, beside, categories=categories)
    order = cohort.order_sessions(frame)
    ordered = (table.iloc[order].reset_index(drop=True) for table in (volumes, cortex, quality, beside, lesions, frame))
    volumes, cortex, quality, beside, lesions, frame = ordered
    result = Analysis(
        volumes, measures, frame, formula.find_design(frame), cortex=cortex, quality=quality, single_lesions=single,
        lesions=lesions, changes=changed, lesion_changes=changes.tables.get("lesionchanges", pd.DataFrame()),
    )  # fmt: skip
    result, unharmonized = _harmonised(result, beside, categories, options.harmonize)
    result = _modelled(result, covariates, changed, options.models)
    in_ml = [*measures, *map(str, cortex), *map(str, beside), *map(str, changed)]
    result = replace(result, terms=_with_units(result.terms, in_ml), comparisons=_with_units(result.comparisons, in_ml))
    notes += [*merge.unlike(scans), *merge.unlike_options(sessions), *unharmonized, *_without_site(result)]
    notes += [] if options.models else formula.find_years(result.intervals)[1]
    about = {**covariates.dictionary, **about_loads, **about_cortex, **dictionary, "contrasts": _CONTRASTS}
    described = {**_dictionaries(result, about, about_lesions), **changes.dictionaries}
    described["qc"] = {**about_quality, **KEY_COLUMNS}
    told = (*covariates.notes, *notes, *few, *result.design.notes, *changes.notes)
    return replace(result, dictionaries=described, notes=told)


def _model_frame(*tables: pd.DataFrame, categories: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Measures, lesions and covariates as models take them; a note on levels with too few subjects."""
    side_by_side = pd.concat(tables, axis=1)
    return formula.without_small_levels(formula.model_frame(side_by_side, categories=categories))


def _harmonised(
    analysis: Analysis, lesions: pd.DataFrame, categories: Sequence[str], site: str | None
) -> tuple[Analysis, list[str]]:
    """With the model frame of harmonised measures, where that was asked for and can be done; a note where not."""
    if site is None:
        return analysis, []
    try:
        harmonized = harmonize.harmonize(
            pd.concat([analysis.volumes, analysis.cortex], axis=1), analysis.frame, analysis.design, site,
            measures=[*analysis.measures, *map(str, analysis.cortex)],
        )  # fmt: skip
        frame, _ = _model_frame(harmonized.frame, lesions, categories=categories)
    except HarmonizationError as error:
        return analysis, [f"The table was not harmonised: {error}"]
    design = formula.find_design(frame, site=harmonized.site)
    return replace(analysis, frame=frame, design=design, harmonized=harmonized), []


def _modelled(analysis: Analysis, covariates: Covariates, changes: pd.DataFrame, asked: Sequence[str]) -> Analysis:
    """With models, comparisons and z-scores of the measures, and of their changes."""
    volumes, frame, design = analysis.volumes, analysis.frame, analysis.design
    measured = [name for name in analysis.measures if _is_measured(volumes[name])]
    outcomes = [name.removesuffix("_mm3") for name in measured]
    intervals, changed = _change_frame(changes, frame, covariates)
    regions = [name.removesuffix("_mm3") for name in map(str, analysis.cortex) if _is_measured(analysis.cortex[name])]
    fits = _fit_all([(frame, outcomes), (intervals, changed)], design, asked, regions=regions)
    found = []
    if design.group:
        found.append(comparisons.compare_groups(frame, design.group, outcomes))
    if design.group and len(intervals):
        found.append(comparisons.compare_groups(intervals, design.group, changed))
    if frame["participant_id"].duplicated().any():
        found.append(comparisons.compare_sessions(frame, outcomes))
    found = [table for table in found if len(table)]
    return replace(
        analysis, fits=tuple(fits), terms=statistics.with_fdr(fits), intervals=intervals,
        comparisons=pd.concat(found, ignore_index=True) if found else pd.DataFrame(),
        scores=normative.adjusted_scores(frame, design, outcomes),
    )  # fmt: skip


def _is_measured(column: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column) and column.notna().any())


def _without_site(analysis: Analysis) -> list[str]:
    """A word on models that leave out the sites that were harmonised."""
    if analysis.harmonized is None:
        return []
    done = {name.removesuffix("_mm3") for name in analysis.harmonized.columns}
    site = analysis.harmonized.site
    if all(site in one.formula.variables for one in analysis.fits if one.formula.outcome in done):
        return []
    return [
        f"Some models of harmonised measures do not have {site} among their predictors: where groups are not even over"
        f" the sites, their p-values are too small. Add + {formula.quoted(site)}."
    ]


def _fit_all(
    frames: Sequence[tuple[pd.DataFrame, Sequence[str]]],
    design: Design,
    asked: Sequence[str],
    *,
    regions: Sequence[str],
) -> list[Fit]:
    """Models of the sessions, and of the intervals between them where the outcome is a change."""
    (sessions, measures), (intervals, changed) = frames
    found: list[tuple[Formula, pd.DataFrame]] = []
    if not asked:
        found += [(one, sessions) for one in formula.default_formulas(design, measures)]
        if len(intervals):
            own = replace(formula.find_design(intervals), time=None)  # a session is no time of a change
            years, _ = formula.find_years(intervals)
            found += [(one, intervals) for one in formula.default_formulas(own, changed, years=years)]
    for text in asked:
        try:
            columns = [str(name) for name in sessions.columns]
            some = formula.parse(text, columns, measures=measures, regions=regions)
            found += [(one, sessions) for one in some]
        except FormulaError:
            if not len(intervals):
                raise
            try:
                some = formula.parse(text, [str(name) for name in intervals.columns], measures=changed)
            except FormulaError:
                some = []
            if not some:
                raise
            found += [(one, intervals) for one in some]
    unique = dict(found)
    return [
        replace(part, notes=(*one.notes, *part.notes))
        for one, frame in unique.items()
        for part in statistics.fit(one, frame)
    ]


def _with_units(table: pd.DataFrame, known: Sequence[str]) -> pd.DataFrame:
    """The unit of every estimate: of the outcome, as models use it."""
    if table.empty:
        return table
    in_ml = {name.removesuffix("_mm3") for name in known if name.endswith("_mm3")}
    column = table["outcome" if "outcome" in table else "column"]
    unit = column.map(lambda name: "ml" if name in in_ml else _unit(name)).astype(str)
    if "estimate_kind" in table:
        plain = pd.Series([f.startswith(f"{o} ~") for f, o in zip(table["formula"], column, strict=True)], table.index)
        unit = unit.where((table["estimate_kind"] == "difference") & plain, "")
    return table.assign(unit=unit)


def _change_frame(
    changes: pd.DataFrame, frame: pd.DataFrame, covariates: Covariates
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Intervals for models: what changed, with the covariates and the TIV of the earlier session; and the measures."""
    if changes.empty or "session_from" not in changes:
        return pd.DataFrame(), ()
    own = [str(name) for name in changes if name not in cohort.KEYS and _is_measured(changes[name])]
    keyed = changes.assign(session_id=changes["session_from"])[[*cohort.KEYS, *own]]
    joined, _ = cohort.add_covariates(keyed, covariates.tables, codes=covariates.categories)
    out, _ = formula.without_small_levels(formula.model_frame(joined, categories=covariates.categories))
    keys = [(str(row["participant_id"]), str(row["session_id"])) for row in frame[cohort.KEYS].to_dict("records")]
    if "tiv" in frame and "tiv" not in out:
        tiv = dict(zip(keys, frame["tiv"], strict=True))
        out["tiv"] = [tiv.get((str(r["participant_id"]), str(r["session_id"])), np.nan) for r in out.to_dict("records")]
    out[cohort.INTERVAL] = changes.groupby("participant_id").cumcount().to_numpy() + 1.0
    if "session_to" in changes:
        out["session_id"] = changes["session_to"].astype(object)  # where the page leads to
    measures = [name.removesuffix("_mm3") for name in own if not name.startswith(_NO_CHANGE)]
    return out.drop(columns="time", errors="ignore"), tuple(measures)


def _unit(column: str) -> str:
    """Unit of an outcome that models take as it stands in its table."""
    rate = "/year" if column.endswith("_per_year") else ""
    return f"mm3{rate}" if "_mm3" in column else f"%{rate}" if "percent" in column else ""


# --- tables and dictionaries -----------------------------------------------------------------------------------------

_CONTRASTS = {"Description": "Scans from which the session was segmented."}
_TERMS = {
    "formula": "The model, with volumes in ml (rates in mm3 per year); time is in years since the first session.",
    "outcome": "What is explained.",
    "part": "Of a lesion load: 'any lesion' (whether there is any) or 'load' (how much, where there is any).",
    "method": "Kind of model.",
    "term": "Coefficient: 'group = MS' is that level against the reference level; '(jointly)' tests all its levels."
    " Beside a product (group : time) a term alone is its effect where the other one is 0 or the reference: group at"
    " the first session, time in the reference group.",
    "estimate": "Effect of one unit of the term (of a level, against the reference), all else equal.",
    "ci_low": "Lower end of the 95 % confidence interval.",
    "ci_high": "Upper end of the 95 % confidence interval.",
    "estimate_kind": "difference (in `unit`), or ratio, odds ratio or rate ratio: 1 is then no effect.",
    "unit": "Unit of the estimate, per unit of the term.",
    "se": "Standard error on the model's scale (of ratios: the logarithm).",
    "statistic": "t (estimate / se on the model's scale), or F of joint tests.",
    "df": "Degrees of freedom; in mixed models between and within subjects apart (of time, where slopes differ by"
    " subject, by the subjects); Satterthwaite's of errors clustered by subject.",
    "p": "Two-sided p-value.",
    "p_robust": "The same with standard errors that hold where the spread is uneven (HC3), or, of several sessions,"
    " however those of a subject go together (CR2 with Satterthwaite's degrees of freedom).",
    "q_fdr": "p adjusted after Benjamini and Hochberg 1995 over all outcomes of the same term and right-hand side.",
    "effect_size": "Effect size, see `effect`.",
    "effect_low": "Lower end of its 95 % confidence interval.",
    "effect_high": "Upper end of it.",
    "effect": "Cohen's d (difference over the residual standard deviation), partial r, or partial eta squared.",
    "sessions": "Sessions in the model.",
    "subjects": "Subjects in the model.",
}
_COMPARISONS = {
    "comparison": "The two samples; the second is the reference.",
    "column": "Measure; volumes in ml, rates in mm3 per year. Not adjusted for anything.",
    "n": "Subjects.",
    "reference_n": "Subjects of the reference.",
    "mean": "Mean.",
    "reference_mean": "Mean of the reference.",
    "median": "Median.",
    "reference_median": "Median of the reference.",
    "difference": "Difference of the means (mean of the differences for two sessions).",
    "ci_low": "Lower end of its 95 % confidence interval (Welch; paired t).",
    "ci_high": "Upper end of it.",
    "t": "Welch's t, or the paired t.",
    "df": "Its degrees of freedom.",
    "p_t": "p-value of the t test.",
    "p_rank": "p-value of Wilcoxon's test: rank-sum of two groups, signed-rank of two sessions.",
    "effect_size": "Effect size, see `effect`.",
    "effect": "Hedges' g, or Cohen's d of the changes.",
    "rank_test": "Which of Wilcoxon's tests.",
    "q_t": "p_t adjusted after Benjamini and Hochberg 1995 over the measures of the comparison: those of"
    " sessions, and those of changes between sessions, apart.",
    "q_rank": "p_rank adjusted in the same way.",
    "unit": "Unit of means, medians and difference.",
}


def tables(analysis: Analysis) -> dict[str, pd.DataFrame]:
    """The tables to write, by name; those without content are left out (the volumes are always there)."""
    out = {"volumes": analysis.volumes}
    if analysis.harmonized is not None:
        out["volumes_harmonized"] = analysis.harmonized.frame
        out["harmonization"] = analysis.harmonized.sites
    keyed, checked = (
        pd.concat([analysis.volumes[cohort.KEYS], beside], axis=1) for beside in (analysis.cortex, analysis.quality)
    )
    optional = {
        "qc": checked if len(analysis.quality.columns) else None,
        "cortex": keyed if len(analysis.cortex.columns) else None,
        "lesions": analysis.lesions if "volume_mm3" in analysis.single_lesions or _has_lesions(analysis) else None,
        "single_lesions": analysis.single_lesions,
        "changes": analysis.changes,
        "lesionchanges": analysis.lesion_changes,
        "models": analysis.terms,
        "checks": checks_table(analysis.fits),
        "comparisons": analysis.comparisons,
        "zscores": analysis.scores if _values(analysis.scores).notna().any(axis=None) else None,
    }
    return out | {name: table for name, table in optional.items() if table is not None and len(table)}


def write_tables(out_dir: Path, analysis: Analysis) -> list[Path]:
    """Write every table as ``group_<name>.tsv`` with its data dictionary; tables of an earlier run are taken away."""
    current = tables(analysis)
    for name in OPTIONAL_TABLES:
        if name not in current:
            (out_dir / f"group_{name}.tsv").unlink(missing_ok=True)
            (out_dir / f"group_{name}.json").unlink(missing_ok=True)
    paths = []
    for name, table in current.items():
        about = {str(column): analysis.dictionaries.get(name, {}).get(str(column), {}) for column in table.columns}
        paths.append(write_frame(out_dir / f"group_{name}", table, about)[0])
    return paths


def checks_table(fits: Sequence[Fit]) -> pd.DataFrame:
    """One row per model and assumption; refused models with their reason."""
    rows = []
    for one in fits:
        head = {"formula": one.formula.text, "part": one.part, "method": one.method or "none"}
        if one.refused:
            rows.append(head | {"check": "not fitted", "finding": one.refused, "p": np.nan, "verdict": "not fitted"})
        for check in one.checks:
            verdict = "doubtful" if check.doubtful else "fine"
            rows.append(head | {"check": check.name, "finding": check.finding, "p": check.p, "verdict": verdict})
        rows += [head | {"check": "note", "finding": note, "p": np.nan, "verdict": "note"} for note in one.notes]
    return pd.DataFrame(rows, columns=["formula", "part", "method", "check", "finding", "p", "verdict"])


def _has_lesions(analysis: Analysis) -> bool:
    return any(map(cohort.is_lesion, analysis.measures))


def _values(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns=cohort.KEYS, errors="ignore")


def _dictionaries(
    analysis: Analysis, columns: Mapping[str, Mapping[str, Any]], lesions: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Mapping[str, Any]]]:
    volumes = {**columns, **KEY_COLUMNS}
    for name in analysis.volumes:
        volumes.setdefault(str(name), {"Description": "From participants.tsv, sessions.tsv or phenotype/."})
    adjusted = " and ".join(analysis.design.adjustments()) or "nothing"
    scores = {
        str(name): {
            "LongName": f"z-score of {name}",
            "Description": "Distance from what the first sessions of the other subjects predict, in standard"
            f" deviations, adjusted for {adjusted} (TIV not for itself and for fractions)."
            + (" Compared as logarithms, n/a without lesions." if cohort.is_lesion(str(name)) else ""),
        }
        for name in _values(analysis.scores)
    }
    harmonized = {}
    if analysis.harmonized is not None:
        told = " Harmonised by ComBat across " + analysis.harmonized.site
        kept = ", ".join(analysis.harmonized.kept)
        told += f", the effects of {kept} kept." if kept else "."
        harmonized = {
            name: {**about, "Description": str(about.get("Description", "")) + told}
            for name, about in volumes.items()
            if name in analysis.harmonized.columns
        }
    return {
        "volumes": volumes,
        "volumes_harmonized": {**volumes, **harmonized},
        "harmonization": _described({
            "site": "Site.", "column": "Measure.", "sessions": "Sessions of the site.",
            "mean_before": "Mean as measured.", "mean_after": "Mean after ComBat.",
            "sd_before": "Standard deviation as measured.", "sd_after": "Standard deviation after ComBat.",
        }),
        "cortex": volumes,
        "lesions": {**_lesion_dictionary(analysis.lesions), **volumes},
        "single_lesions": {**lesions, **KEY_COLUMNS},
        "models": _described(_TERMS),
        "checks": _described({
            "formula": _TERMS["formula"], "part": _TERMS["part"], "method": _TERMS["method"],
            "check": "The assumption, or 'not fitted'.", "finding": "What was found.", "p": "p-value of the check.",
            "verdict": "fine, doubtful (p below 0.05, or beyond the limit named), note, or not fitted.",
        }),
        "comparisons": _described(_COMPARISONS),
        "zscores": {**KEY_COLUMNS, **scores},
    }  # fmt: skip


def _described(texts: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    return {name: {"Description": text} for name, text in texts.items()}


def _lesion_dictionary(table: pd.DataFrame) -> dict[str, Mapping[str, Any]]:
    known = {
        "lesion_largest_mm3": {"Description": "Volume of the largest lesion; n/a without lesions.", "Units": "mm^3"},
        "lesion_median_mm3": {"Description": "Median volume of the lesions; n/a without lesions.", "Units": "mm^3"},
    }
    for name in map(str, _values(table)):
        if name in known:
            continue
        what = name.removeprefix("lesion_").removesuffix("_mm3").removesuffix("_count").replace("_", " ")
        if name.endswith("_mm3"):
            known[name] = {"Description": f"Volume of the lesions with {what}, by their table.", "Units": "mm^3"}
        else:
            known[name] = {"Description": f"Number of lesions with {what}, by their table."}
    return known


__all__ = ["Analysis", "FormulaError", "Options", "analyse", "tables", "write_tables"]

"""The group level's numbers: merged tables, models, comparisons, z-scores, harmonisation; each with its dictionary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bidsapp.cards import CONTRASTS
from bidsapp.measure import cohort, comparisons, formula, harmonize, normative, statistics
from bidsapp.measure.formula import Design, Formula, FormulaError
from bidsapp.measure.harmonize import HarmonizationError, Harmonized
from bidsapp.measure.statistics import Fit
from bidsapp.measure.volumes import KEY_COLUMNS
from bidsapp.report.covariates import Covariates
from bidsapp.report.read import BrokenFile, Session, read_json, read_table

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
    "volumes_harmonized", "harmonization", "lesions", "single_lesions", "changes", "lesionchanges", "models", "checks",
    "comparisons", "zscores",
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
    loads, about_loads = _loads(merged, measures, sessions)
    taken = [*measures, *map(str, loads), *map(str, changes.tables.get("changes", pd.DataFrame())), "contrasts"]
    covariates = covariates.beside(taken)
    categories = [*covariates.categories, "contrasts"]
    scans = _contrasts(sessions)
    volumes, notes = cohort.add_covariates(merged, [*covariates.tables, ("the records", scans)], codes=categories)
    notes += _unlike(scans)
    if options.harmonize:
        categories.append(options.harmonize)  # sites may be told by numbers
    frame, few = formula.without_small_levels(formula.model_frame(_side_by_side(volumes, loads), categories=categories))
    order = cohort.order_sessions(frame)
    volumes, loads, frame = (table.iloc[order].reset_index(drop=True) for table in (volumes, loads, frame))
    design = formula.find_design(frame)
    harmonized: Harmonized | None = None
    if options.harmonize:
        try:
            harmonized = harmonize.harmonize(volumes, frame, design, options.harmonize, measures=measures)
            done = formula.model_frame(_side_by_side(harmonized.frame, loads), categories=categories)
            frame, _ = formula.without_small_levels(done)
            design = formula.find_design(frame, site=harmonized.site)
        except HarmonizationError as error:
            notes.append(f"The table was not harmonised: {error}")
    known = [name for name in measures if pd.api.types.is_numeric_dtype(volumes[name]) and volumes[name].notna().any()]
    short = [name.removesuffix("_mm3") for name in known]
    intervals, changed = _change_frame(changes.tables.get("changes", pd.DataFrame()), frame, covariates)
    fits = _fit_all([(frame, short), (intervals, changed)], design, options.models)
    notes += _without_site(fits, harmonized)
    group = design.group
    found = [comparisons.compare_groups(frame, group, short)] if group else []
    if group and len(intervals):
        found.append(comparisons.compare_groups(intervals, group, changed))
    if frame["participant_id"].duplicated().any():
        found.append(comparisons.compare_sessions(frame, short))
    found = [table for table in found if len(table)]
    single, about_lesions = _single_lesions(sessions)
    result = Analysis(
        volumes, measures, frame, design, tuple(fits), statistics.with_fdr(fits),
        pd.concat(found, ignore_index=True) if found else pd.DataFrame(),
        normative.adjusted_scores(frame, design, short), harmonized=harmonized,
        single_lesions=single, notes=(*covariates.notes, *notes, *few, *design.notes, *changes.notes),
        changes=changes.tables.get("changes", pd.DataFrame()),
        lesion_changes=changes.tables.get("lesionchanges", pd.DataFrame()), intervals=intervals,
    )  # fmt: skip
    known += [str(name) for name in loads]
    known += [f"{name}_mm3" for name in changed if f"{name}_mm3" in result.changes]
    result = replace(result, terms=_with_units(result.terms, known), comparisons=_with_units(result.comparisons, known))
    result = replace(result, lesions=_lesions(volumes, measures, sessions, single, loads))
    about = {**covariates.dictionary, **about_loads, **dictionary, "contrasts": _CONTRASTS}
    described = _dictionaries(result, about, about_lesions)
    return replace(result, dictionaries={**described, **changes.dictionaries})


def _contrasts(sessions: Sequence[Session]) -> pd.DataFrame:
    """What every session was segmented from, such as T1w+FLAIR; in one order, whichever scan was the reference."""
    rows = []
    for session in sessions:
        used = "+".join(name for name in CONTRASTS if name in session.record.get("contrasts", ()))
        if used:
            rows.append((f"sub-{session.subject}", f"ses-{session.session}" if session.session else "", used))
    return pd.DataFrame(rows, columns=[*cohort.KEYS, "contrasts"])


def _unlike(scans: pd.DataFrame) -> list[str]:
    """A word on sessions that were segmented from different scans."""
    counts = scans["contrasts"].value_counts()
    if len(counts) < 2:
        return []
    told = ", ".join(f"{count} from {contrasts}" for contrasts, count in counts.items())
    return [
        f"Sessions were segmented from different scans ({told}): their volumes, of lesions above all, differ by that"
        " alone. Compare sessions of the same scans, or add + contrasts to the model."
    ]


def _without_site(fits: Sequence[Fit], harmonized: Harmonized | None) -> list[str]:
    """A word on models that leave out the sites that were harmonised."""
    if harmonized is None:
        return []
    done = {name.removesuffix("_mm3") for name in harmonized.columns}
    site = harmonized.site
    if all(site in one.formula.variables for one in fits if one.formula.outcome in done):
        return []
    return [
        f"Some models of harmonised measures do not have {site} among their predictors: where groups are not even over"
        f" the sites, their p-values are too small. Add + {site}."
    ]


def _side_by_side(volumes: pd.DataFrame, loads: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([volumes, loads], axis=1)


def _fit_all(frames: Sequence[tuple[pd.DataFrame, Sequence[str]]], design: Design, asked: Sequence[str]) -> list[Fit]:
    """Models of the sessions, and of the intervals between them where the outcome is a change."""
    (sessions, measures), (intervals, changed) = frames
    found: list[tuple[Formula, pd.DataFrame]] = []
    if not asked:
        found += [(one, sessions) for one in formula.default_formulas(design, measures)]
        if len(intervals):
            years = "years" if "years" in intervals and intervals["years"].nunique() > 1 else None
            own = formula.find_design(intervals)
            found += [(one, intervals) for one in formula.default_formulas(own, changed, years=years)]
    for text in asked:
        try:
            some = formula.parse(text, [str(name) for name in sessions.columns], measures=measures)
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
    unit = pd.Series(np.where(column.isin(in_ml), "ml", np.where(column.str.contains("percent"), "%", "")), table.index)
    if "estimate_kind" in table:
        plain = pd.Series([f.startswith(f"{o} ~") for f, o in zip(table["formula"], column, strict=True)], table.index)
        unit = unit.where((table["estimate_kind"] == "difference") & plain, "")
    return table.assign(unit=unit)


def _single_lesions(sessions: Sequence[Session]) -> tuple[pd.DataFrame, dict[str, Mapping[str, Any]]]:
    """All lesions of all sessions, one row each."""
    frames, about = [], {}
    for session in sessions:
        table = session.tables.get("lesions")
        if table is None:
            continue
        for name in table.columns:
            if name not in about:
                about[str(name)] = session.dictionaries.get("lesions", {}).get(name, {})
        if len(table):
            subject, _, visit = session.name.partition("_")
            frames.append(table.assign(participant_id=subject, session_id=visit or np.nan))
    if not frames:
        return pd.DataFrame(columns=[*cohort.KEYS, *(name for name in about if name not in cohort.KEYS)]), about
    merged = pd.concat(frames, ignore_index=True).astype(object).replace(["n/a", ""], np.nan)
    merged = merged[cohort.KEYS + [name for name in merged if name not in cohort.KEYS]]
    return merged.apply(lambda c: c if c.name in cohort.KEYS else cohort.numeric_if_possible(c)), about


def _loads(
    merged: pd.DataFrame, measures: Sequence[str], sessions: Sequence[Session]
) -> tuple[pd.DataFrame, dict[str, Mapping[str, Any]]]:
    """The sessions' tables of lesion load (by region and size), in the rows of `merged`, and their dictionary."""
    frames, about = [], {}
    for session in sessions:
        table = session.tables.get("load")
        if table is None or len(table) != 1:
            continue
        subject, _, visit = session.name.partition("_")
        frames.append(table.assign(participant_id=subject, session_id=visit))
        about |= {k: v for k, v in session.dictionaries.get("load", {}).items() if k not in about}
    if not frames:
        return pd.DataFrame(index=merged.index), about
    loads = cohort.merge_sessions(frames)
    loads = loads.drop(columns=[name for name in loads if name in measures])
    loads[cohort.KEYS] = loads[cohort.KEYS].astype(object).fillna("")
    keys = merged[cohort.KEYS].astype(object).fillna("")
    beside = keys.merge(loads, on=cohort.KEYS, how="left").drop(columns=cohort.KEYS)
    return beside.set_index(merged.index).apply(cohort.numeric_if_possible), about


def _lesions(
    volumes: pd.DataFrame,
    measures: Sequence[str],
    sessions: Sequence[Session],
    single: pd.DataFrame,
    loads: pd.DataFrame,
) -> pd.DataFrame:
    """Loads and counts of every session: from its volumes, its table of loads, and its single lesions."""
    own = [name for name in measures if cohort.is_lesion(name)]
    table = pd.concat([volumes[[*cohort.KEYS, *own]], loads], axis=1)
    if "volume_mm3" not in single:
        return table
    summed = cohort.lesion_summary(single) if len(single) else pd.DataFrame(columns=cohort.KEYS)
    if len(loads.columns):  # regions are told there
        summed = summed.drop(columns=[name for name in summed if name.startswith(("lesion_region_", "lesion_largest"))])
    summed = summed[[name for name in summed if name in cohort.KEYS or name not in table]]
    keys = table[cohort.KEYS].astype(object).fillna("")
    beside = keys.merge(summed, on=cohort.KEYS, how="left").drop(columns=cohort.KEYS)
    looked = {session.name for session in sessions if session.tables.get("lesions") is not None}
    names = ["_".join(part for part in row if part) for row in keys.to_numpy()]
    none = pd.Series([name in looked for name in names], beside.index) & beside.isna().all(axis=1)
    sums = [name for name in beside if name not in ("lesion_largest_mm3", "lesion_median_mm3")]
    beside.loc[none, sums] = 0.0
    return pd.concat([table, beside.set_index(table.index)], axis=1)


@dataclass(frozen=True)
class Changes:
    """Changes between sessions, of all subjects: tables, data dictionaries, and what could not be read."""

    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    dictionaries: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_changes(out_dir: Path) -> Changes:
    """Read the subjects' ``sub-X_changes.tsv`` (one row per interval) and ``sub-X_lesionchanges.tsv``."""
    notes: list[str] = []
    found: dict[str, pd.DataFrame] = {}
    dictionaries: dict[str, Mapping[str, Mapping[str, Any]]] = {}
    for kind in ("changes", "lesionchanges"):
        frames: list[pd.DataFrame] = []
        about: dict[str, Mapping[str, Any]] = {}
        for path in sorted([*out_dir.glob(f"sub-*/sub-*_{kind}.tsv"), *out_dir.glob(f"sub-*/anat/sub-*_{kind}.tsv")]):
            try:
                table = read_table(path)
                content = read_json(path.with_suffix(".json")) if path.with_suffix(".json").is_file() else {}
            except BrokenFile as error:
                notes.append(f"{path.relative_to(out_dir).as_posix()}: {error}.")
                continue
            if "participant_id" not in table:
                table.insert(0, "participant_id", path.name.split("_")[0])
            frames.append(table)
            about |= {name: text for name, text in content.items() if name not in about}
        if frames:
            merged = pd.concat(frames, ignore_index=True).astype(object).replace(["n/a", ""], np.nan)
            merged = merged[["participant_id", *(name for name in merged if name != "participant_id")]]
            found[kind] = merged.apply(cohort.numeric_if_possible)
            dictionaries[kind] = {**about, "participant_id": KEY_COLUMNS["participant_id"]}
    return Changes(found, dictionaries, tuple(notes))


def _change_frame(
    changes: pd.DataFrame, frame: pd.DataFrame, covariates: Covariates
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Intervals for models: what changed, with the covariates and the TIV of the earlier session; and the measures."""
    if changes.empty or "session_from" not in changes:
        return pd.DataFrame(), ()
    own = [
        str(name) for name in changes if pd.api.types.is_numeric_dtype(changes[name]) and changes[name].notna().any()
    ]
    own = [name for name in own if name not in cohort.KEYS]
    keyed = changes.assign(session_id=changes["session_from"])[[*cohort.KEYS, *own]]
    joined, _ = cohort.add_covariates(keyed, covariates.tables, codes=covariates.categories)
    out, _ = formula.without_small_levels(formula.model_frame(joined, categories=covariates.categories))
    keys = [(str(row["participant_id"]), str(row["session_id"])) for row in frame[cohort.KEYS].to_dict("records")]
    if "tiv" in frame and "tiv" not in out:
        tiv = dict(zip(keys, frame["tiv"], strict=True))
        out["tiv"] = [tiv.get((str(r["participant_id"]), str(r["session_id"])), np.nan) for r in out.to_dict("records")]
    if "session_to" in changes:
        out["session_id"] = changes["session_to"].astype(object)  # where the page leads to
    measures = [name.removesuffix("_mm3") for name in own if not name.startswith(_NO_CHANGE)]
    return out.drop(columns="time", errors="ignore"), tuple(measures)


# --- tables and dictionaries -----------------------------------------------------------------------------------------

_CONTRASTS = {"Description": "Scans that the session was segmented from."}
_TERMS = {
    "formula": "The model, with volumes in ml; time is in years since the subject's first session.",
    "outcome": "What is explained.",
    "part": "Of a lesion load: 'any lesion' (whether there is any) or 'load' (how much, where there is any).",
    "method": "Kind of model.",
    "term": "Coefficient: 'group = MS' is that level against the reference level; '(jointly)' tests all its levels.",
    "estimate": "Effect of one unit of the term (of a level, against the reference), all else equal.",
    "ci_low": "Lower end of the 95 % confidence interval.",
    "ci_high": "Upper end of the 95 % confidence interval.",
    "estimate_kind": "difference (in `unit`), or ratio, odds ratio or rate ratio: 1 is then no effect.",
    "unit": "Unit of the estimate, per unit of the term.",
    "se": "Standard error on the model's scale (of ratios: the logarithm).",
    "statistic": "t (estimate / se on the model's scale), or F of joint tests.",
    "df": "Degrees of freedom; between and within subjects apart in mixed models.",
    "p": "Two-sided p-value.",
    "p_robust": "The same with standard errors that hold where the spread is uneven (HC3; by subject in mixed models).",
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
    "column": "Measure; volumes in ml. Not adjusted for anything.",
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
    "q_t": "p_t adjusted after Benjamini and Hochberg 1995 over the measures of the comparison.",
    "q_rank": "p_rank adjusted in the same way.",
    "unit": "Unit of means, medians and difference.",
}


def tables(analysis: Analysis) -> dict[str, pd.DataFrame]:
    """The tables to write, by name; those without content are left out (the volumes are always there)."""
    out = {"volumes": analysis.volumes}
    if analysis.harmonized is not None:
        out["volumes_harmonized"] = analysis.harmonized.frame
        out["harmonization"] = analysis.harmonized.sites
    optional = {
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


def write_tables(out_dir: Path, analysis: Analysis, write: Any) -> list[Path]:
    """Write every table as ``group_<name>.tsv`` with its data dictionary; tables of an earlier run are taken away."""
    current = tables(analysis)
    for name in OPTIONAL_TABLES:
        if name not in current:
            (out_dir / f"group_{name}.tsv").unlink(missing_ok=True)
            (out_dir / f"group_{name}.json").unlink(missing_ok=True)
    paths = []
    for name, table in current.items():
        about = {str(column): analysis.dictionaries.get(name, {}).get(str(column), {}) for column in table.columns}
        paths.append(write(out_dir / f"group_{name}.tsv", table_text(table)))
        write(out_dir / f"group_{name}.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    return paths


def table_text(frame: pd.DataFrame) -> str:
    """A table as TSV: ``n/a`` for what was not measured, numbers with the digits of the sessions' tables."""
    return str(frame.to_csv(sep="\t", index=False, na_rep="n/a", float_format="%.10g", lineterminator="\n"))


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
    return any("lesion" in name for name in analysis.measures)


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
            "Description": "Distance from what the other subjects predict (this subject left out), in standard"
            f" deviations, adjusted for {adjusted} (TIV not for itself and for fractions)."
            + (
                " Compared as logarithms, n/a without lesions."
                if "lesion" in str(name) and "_with_lesions" not in str(name)
                else ""
            ),
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
            known[name] = {"Description": f"Volume of the lesions with {what}.", "Units": "mm^3"}
        else:
            known[name] = {"Description": f"Number of lesions with {what}."}
    return known


__all__ = ["Analysis", "FormulaError", "Options", "analyse", "read_changes", "table_text", "tables", "write_tables"]

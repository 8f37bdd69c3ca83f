"""Removing what scanners add: ComBat across sites, with neuroCombat, and refusing where it would do harm."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bidsapp.measure.cohort import is_lesion
from bidsapp.measure.formula import Design, column_of, is_volume

#: Subjects per site. ComBat shares information between sites, but with fewer a site's mean is hardly known, and its
#: variance less (Parekh et al. 2022, Front Neuroimaging 1:912231, ask for 16-32 for volumes; 10 is our lower bound).
MINIMUM_PER_SITE = 10
#: A column with more values names something else.
MAXIMUM_SITES = 100
#: Share of a covariate's variance that the sites explain above which the two cannot be told apart.
CONFOUNDED_R2 = 0.8


class HarmonizationError(ValueError):
    """Sites that cannot be harmonised; the message says why."""


@dataclass(frozen=True)
class Harmonized:
    """The harmonised table and what was done.

    Attributes
    ----------
    frame : DataFrame
        The merged table, `columns` harmonised; cells that could not be are n/a.
    site : str
        Column of the sites.
    columns, kept : tuple of str
        What was harmonised, and covariates whose effect was kept.
    sites : DataFrame
        Per site and column: sessions, mean before and after.
    notes : tuple of str
    """

    frame: pd.DataFrame
    site: str
    columns: tuple[str, ...]
    kept: tuple[str, ...]
    sites: pd.DataFrame
    notes: tuple[str, ...]


def harmonize(
    merged: pd.DataFrame, frame: pd.DataFrame, design: Design, site: str, *, measures: Sequence[str] | None = None
) -> Harmonized:
    """ComBat (Johnson et al. 2007, Biostatistics 8:118; Fortin et al. 2018, NeuroImage 167:104) by neuroCombat.

    Location and scale of every site are estimated with empirical Bayes over the measures and taken away; the effects of
    group, age, sex and time are estimated at the same time and kept.

    Parameters
    ----------
    merged : DataFrame
        From `cohort.merge_sessions`, in mm3.
    frame : DataFrame
        The same rows from `formula.model_frame`.
    design : Design
    site : str
        A column, such as ``site``.
    measures : sequence of str, optional
        The measured columns of `merged`; all by default.

    Raises
    ------
    HarmonizationError
        Fewer than two sites, a site of fewer than `MINIMUM_PER_SITE` subjects, or sites that go together with a
        covariate.

    Notes
    -----
    Tissue volumes and fractions are harmonised; lesion loads and counts are not: ComBat's normal model does not hold
    for what is skewed and may be zero. Parts are harmonised one by one, so that they need not add up any more.
    Measures that are there for the same sessions are harmonised together, so that a structure measured in a third of
    the sessions takes nothing from the others.

    Models of harmonised measures should keep the site: ComBat has used up degrees of freedom, and where groups are not
    even over the sites a model that does not know of this is too bold (Nygaard et al. 2016, Biostatistics 17:29).
    """
    column = column_of(site, list(frame.columns))
    if column is None:
        raise HarmonizationError(f"there is no column {site!r} in participants.tsv or sessions.tsv.")
    kept = [name for name in (design.group, design.age, design.sex, design.time) if name and name != column]
    names = merged.columns if measures is None else measures
    measured = [str(name) for name in names if is_volume(str(name)) and not is_lesion(str(name))]
    measured = [name for name in measured if merged[name].notna().any() and merged[name].nunique() > 1]
    known = frame[[column, *kept]].notna().all(axis=1)
    done = merged.copy()
    done[measured] = np.nan
    columns, single, refused = [], [], {}
    for block in _blocks(merged[measured].notna()):
        rows = known & merged[block[0]].notna()
        try:
            sites = frame.loc[rows, column].astype(str)
            _refuse(frame[rows], sites, kept, column)
            done.loc[rows, block] = _combat(merged.loc[rows, block], frame.loc[rows, kept], sites)
            columns += block
            single += block if len(block) == 1 else []
        except HarmonizationError as error:
            refused[", ".join(block)] = error
    if not columns:
        raise next(iter(refused.values()), HarmonizationError("there is no tissue volume that differs."))
    notes = (
        *_notes(frame, known, single),
        *(f"{block}: not harmonised, n/a. {why}" for block, why in refused.items()),
    )
    columns = [name for name in measured if name in columns]
    by_site = _by_site(merged, done, frame[column], columns)
    return Harmonized(done, column, tuple(columns), tuple(kept), by_site, notes)


def _blocks(there: pd.DataFrame) -> list[list[str]]:
    """Columns that are there for the same rows, the largest block first."""
    blocks: dict[bytes, list[str]] = {}
    for name in there:
        blocks.setdefault(there[name].to_numpy().tobytes(), []).append(str(name))
    return sorted(blocks.values(), key=len, reverse=True)


def _refuse(frame: pd.DataFrame, sites: pd.Series, kept: list[str], column: str) -> None:
    subjects = frame["participant_id"].groupby(sites).nunique()
    if len(subjects) < 2:
        told = " and ".join([column, *kept])
        raise HarmonizationError(f"{column} has fewer than two values among the {len(frame)} sessions with {told}.")
    if len(subjects) > MAXIMUM_SITES:
        raise HarmonizationError(f"{column} has {len(subjects)} values: that is no site.")
    small = [f"{name} ({count})" for name, count in subjects.items() if count < MINIMUM_PER_SITE]
    if small:
        raise HarmonizationError(
            f"too few subjects at {', '.join(small)}: at least {MINIMUM_PER_SITE} are needed at each site, for its mean"
            " and variance to be known. Put small sites together or leave them out."
        )
    indicator = pd.get_dummies(sites).to_numpy(float)
    for name in kept:
        for label, values in _numbers(frame[name]).items():
            r2 = _explained(values.to_numpy(float), indicator)
            if r2 > CONFOUNDED_R2:
                raise HarmonizationError(
                    f"{column} and {label} go together: the sites explain {r2:.0%} of it, so that taking away the sites"
                    f" would take away its effect. Sites need a mix of {name}."
                )
    design = np.hstack([indicator, *(_numbers(frame[name]).to_numpy(float) for name in kept)])
    if np.linalg.matrix_rank(design / np.linalg.norm(design, axis=0).clip(1e-300)) < design.shape[1]:
        raise HarmonizationError(f"{column} and {', '.join(kept)} determine one another: they cannot be told apart.")


def _numbers(column: pd.Series) -> pd.DataFrame:
    """A covariate as numbers: itself, or an indicator of each level but the first."""
    if pd.api.types.is_numeric_dtype(column):
        return column.to_frame()
    dummies = pd.get_dummies(column.astype(str), drop_first=True)
    return dummies.rename(columns={level: f"{column.name} = {level}" for level in dummies})


def _explained(values: np.ndarray, indicator: np.ndarray) -> float:
    centred = values - values.mean()
    total = float(centred @ centred)
    means = indicator.T @ centred / indicator.sum(axis=0)
    return float((indicator.sum(axis=0) * means**2).sum() / total) if total > 0 else 0.0


def _combat(values: pd.DataFrame, covariates: pd.DataFrame, sites: pd.Series) -> np.ndarray:
    from neuroCombat import neuroCombat

    factors = [name for name in covariates if not pd.api.types.is_numeric_dtype(covariates[name])]
    table = covariates.astype(dict.fromkeys(factors, str)).assign(__site__=sites).reset_index(drop=True)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = neuroCombat(
            dat=values.to_numpy(float).T,  # an array: a DataFrame would be cut down to float32
            covars=table,
            batch_col="__site__",
            categorical_cols=factors,
            continuous_cols=[name for name in covariates if name not in factors],
            eb=values.shape[1] > 1,  # the prior is estimated over measures: there must be several
        )["data"].T
    result = np.asarray(done, dtype=float)
    if not np.isfinite(result).all():
        raise HarmonizationError("ComBat did not come to finite values.")
    return result


def _notes(frame: pd.DataFrame, known: pd.Series, single: list[str]) -> tuple[str, ...]:
    notes = []
    if not known.all():
        notes.append(
            f"{int((~known).sum())} of {len(known)} sessions are n/a in the harmonised table, for their site or a"
            " covariate is."
        )
    if frame["participant_id"].duplicated().any():
        notes.append("Sessions of one subject are taken as independent when the sites' effects are estimated.")
    if single:
        notes.append(
            f"{', '.join(single)}: without empirical Bayes, by plain location and scale, for no other measure is there"
            " for the same sessions."
        )
    return tuple(notes)


def _by_site(before: pd.DataFrame, after: pd.DataFrame, sites: pd.Series, measured: list[str]) -> pd.DataFrame:
    rows = []
    for site, index in sites.dropna().astype(str).groupby(sites.dropna().astype(str)).groups.items():
        for name in measured:
            other = after.loc[index, name].dropna().astype(float)
            one = before.loc[other.index, name].astype(float)
            rows.append({"site": site, "column": name, "sessions": len(other), "mean_before": one.mean(),
                         "mean_after": other.mean(), "sd_before": one.std(), "sd_after": other.std()})  # fmt: skip
    return pd.DataFrame(rows)

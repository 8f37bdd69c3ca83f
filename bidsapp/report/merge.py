"""What the sessions left, put together for the group: loads, single lesions, changes, and which scans were used."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bidsapp.labels import CONTRASTS
from bidsapp.measure import cohort
from bidsapp.measure.volumes import KEY_COLUMNS
from bidsapp.report.read import BrokenFile, Session, read_json, read_table


@dataclass(frozen=True)
class Changes:
    """Changes between sessions, of all subjects: tables, data dictionaries, and what could not be read."""

    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    dictionaries: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_changes(out_dir: Path, subjects: Sequence[str], only_sessions: Sequence[str] = ()) -> Changes:
    """Read ``sub-X_changes.tsv`` (one row per interval) and ``sub-X_lesionchanges.tsv`` of some subjects.

    Of intervals between sessions those count of which both ends are among `only_sessions`, where these are given.
    """
    wanted = {f"sub-{label}" for label in subjects}
    notes: list[str] = []
    found: dict[str, pd.DataFrame] = {}
    dictionaries: dict[str, Mapping[str, Mapping[str, Any]]] = {}
    for kind in ("changes", "lesionchanges"):
        frames: list[pd.DataFrame] = []
        about: dict[str, Mapping[str, Any]] = {}
        for path in sorted(out_dir.glob(f"sub-*/anat/sub-*_{kind}.tsv")):
            subject = path.name.split("_")[0]
            if subject not in wanted or not (path.parent / f"{subject}_desc-changes_provenance.json").is_file():
                continue  # not asked for, or of a run that was stopped
            try:
                table = read_table(path)
                content = read_json(path.with_suffix(".json")) if path.with_suffix(".json").is_file() else {}
            except BrokenFile as error:
                notes.append(f"{path.relative_to(out_dir).as_posix()}: {error}.")
                continue
            if "participant_id" not in table:
                table.insert(0, "participant_id", subject)
            if only_sessions and "session_from" in table and "session_to" in table:
                ends = {f"ses-{label}" for label in only_sessions}
                table = table[table["session_from"].isin(ends) & table["session_to"].isin(ends)]
            frames.append(table)
            about |= {name: text for name, text in content.items() if name not in about}
        if frames:
            merged = pd.concat(frames, ignore_index=True).astype(object).replace(["n/a", ""], np.nan)
            merged = merged[["participant_id", *(name for name in merged if name != "participant_id")]]
            found[kind] = merged.apply(cohort.numeric_if_possible)
            dictionaries[kind] = {**about, "participant_id": KEY_COLUMNS["participant_id"]}
    return Changes(found, dictionaries, tuple(notes))


def contrasts(sessions: Sequence[Session]) -> pd.DataFrame:
    """What every session was segmented from, such as T1w+FLAIR; in one order, whichever scan was the reference."""
    rows = []
    for session in sessions:
        used = "+".join(name for name in CONTRASTS if name in session.record.get("contrasts", ()))
        if used:
            rows.append({**session.keys, "contrasts": used})
    return pd.DataFrame(rows, columns=[*cohort.KEYS, "contrasts"])


def unlike(scans: pd.DataFrame) -> list[str]:
    """A word on sessions that were segmented from different scans."""
    counts = scans["contrasts"].value_counts()
    if len(counts) < 2:
        return []
    told = ", ".join(f"{count} from {contrasts}" for contrasts, count in counts.items())
    return [
        f"Sessions were segmented from different scans ({told}): their volumes, of lesions above all, differ by that"
        " alone. Compare sessions of the same scans, or add + contrasts to the model."
    ]


def unlike_options(sessions: Sequence[Session]) -> list[str]:
    """A word on sessions that were run with different options, such as ``denoise``."""
    told = []
    for name in sorted({name for session in sessions for name in session.record.get("options", {})}):
        counts = Counter(json.dumps(s.record["options"].get(name)) for s in sessions if s.record.get("options"))
        if len(counts) > 1:
            told.append(f"{name}: " + ", ".join(f"{text} in {count}" for text, count in counts.most_common()))
    if not told:
        return []
    return [
        f"Sessions were run with different options ({'; '.join(told)}): run them all with the same to compare them."
    ]


def single_lesions(sessions: Sequence[Session]) -> tuple[pd.DataFrame, dict[str, Mapping[str, Any]]]:
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
            frames.append(table.assign(**session.keys))
    if not frames:
        return pd.DataFrame(columns=[*cohort.KEYS, *(name for name in about if name not in cohort.KEYS)]), about
    merged = pd.concat(frames, ignore_index=True).astype(object).replace(["n/a", ""], np.nan)
    merged = merged[cohort.KEYS + [name for name in merged if name not in cohort.KEYS]]
    return merged.apply(lambda c: c if c.name in cohort.KEYS else cohort.numeric_if_possible(c)), about


def beside_volumes(
    kind: str, merged: pd.DataFrame, measures: Sequence[str], sessions: Sequence[Session]
) -> tuple[pd.DataFrame, dict[str, Mapping[str, Any]]]:
    """Another table of one row per session, in the rows of `merged` and without its `measures`, and its dictionary.

    `kind` is "load" (of lesions, by region, lobe and size), "cortex" (the cortical regions) or "qc": all numbers; a
    cell that is none is n/a.
    """
    frames, about = [], {}
    for session in sessions:
        table = session.tables.get(kind)
        if table is None or len(table) != 1:
            continue
        frames.append(table.assign(**session.keys))
        about |= {k: v for k, v in session.dictionaries.get(kind, {}).items() if k not in about}
    if not frames:
        return pd.DataFrame(index=merged.index), about
    found = cohort.merge_sessions(frames)
    found = found.drop(columns=[name for name in found if name in measures])
    found[cohort.KEYS] = found[cohort.KEYS].astype(object).fillna("")
    keys = merged[cohort.KEYS].astype(object).fillna("")
    beside = keys.merge(found, on=cohort.KEYS, how="left").drop(columns=cohort.KEYS)
    return beside.set_index(merged.index).apply(pd.to_numeric, errors="coerce"), about


def quality(volumes: pd.DataFrame, sessions: Sequence[Session]) -> tuple[pd.DataFrame, dict[str, Mapping[str, Any]]]:
    """What was measured of the quality of every session, in the rows of `volumes`, and its dictionary.

    It is no outcome of models, and its names are no names of theirs.
    """
    found, about = beside_volumes("qc", volumes, (), sessions)
    texts = {_key(session.keys): session.checks.get("flags") for session in sessions}
    if "flags" in found:
        keys = volumes[cohort.KEYS].astype(object).fillna("").to_dict("records")
        found["flags"] = pd.Series([texts.get(_key(row)) for row in keys], found.index, dtype=object)
    return found, about


def _key(row: Mapping[Any, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in cohort.KEYS)


def lesions(
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
    if len(loads.columns):  # regions, and the volumes by lobe, are told there
        told = re.compile(r"lesion_region_|lesion_lobe_.*_mm3|lesion_largest")
        summed = summed.drop(columns=[name for name in summed if told.match(name)])
    summed = summed[[name for name in summed if name in cohort.KEYS or name not in table]]
    keys = table[cohort.KEYS].astype(object).fillna("")
    beside = keys.merge(summed, on=cohort.KEYS, how="left").drop(columns=cohort.KEYS)
    looked = {session.name for session in sessions if session.tables.get("lesions") is not None}
    names = ["_".join(part for part in row if part) for row in keys.to_numpy()]
    none = pd.Series([name in looked for name in names], beside.index) & beside.isna().all(axis=1)
    sums = [name for name in beside if name not in ("lesion_largest_mm3", "lesion_median_mm3")]
    beside.loc[none, sums] = 0.0
    return pd.concat([table, beside.set_index(table.index)], axis=1)

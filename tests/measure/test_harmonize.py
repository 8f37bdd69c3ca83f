from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bidsapp.measure import formula
from bidsapp.measure.harmonize import HarmonizationError, harmonize


def cohort(rng, *, per_site: int = 30, group=None) -> pd.DataFrame:
    n = 3 * per_site
    site = np.repeat(["a", "b", "c"], per_site)
    age = rng.uniform(20, 60, n)
    shift, scale = {"a": 0.0, "b": 30e3, "c": -20e3}, {"a": 1.0, "b": 1.8, "c": 0.7}
    base = {"gm_mm3": 600e3, "wm_mm3": 450e3, "csf_mm3": 250e3, "tiv_mm3": 1450e3}
    columns = {
        name: mean
        - 1000 * (age - 40)
        + [shift[s] + scale[s] * e for s, e in zip(site, rng.normal(0, 2e4, n), strict=True)]
        for name, mean in base.items()
    }
    return pd.DataFrame({
        "participant_id": [f"sub-{i:03}" for i in range(n)], "session_id": np.nan, **columns,
        "lesion_mm3": rng.exponential(5e3, n), "lesion_count": rng.poisson(5, n), "site": site, "age": age,
        "group": np.tile(["HC", "MS"], n)[:n] if group is None else group,
    })  # fmt: skip


def harmonized(merged: pd.DataFrame, site: str = "site"):
    frame = formula.model_frame(merged)
    return harmonize(merged, frame, formula.find_design(frame), site)


def test_sites_become_alike_and_age_keeps_its_effect(rng):
    merged = cohort(rng)
    before = merged.copy()
    done = harmonized(merged)
    pd.testing.assert_frame_equal(merged, before)  # the raw table stays raw
    assert set(done.columns) == {"gm_mm3", "wm_mm3", "csf_mm3", "tiv_mm3"} and set(done.kept) == {"group", "age"}
    site = merged["site"]
    raw = before["gm_mm3"] + 1000 * (before["age"] - 40)
    after = done.frame["gm_mm3"] + 1000 * (before["age"] - 40)
    assert np.ptp(raw.groupby(site).mean()) > 40e3 and np.ptp(after.groupby(site).mean()) < 6e3
    spread = after.groupby(site).std()
    assert spread.max() / spread.min() < 1.25 < 2 < raw.groupby(site).std().max() / raw.groupby(site).std().min()
    assert np.polyfit(before["age"], done.frame["gm_mm3"], 1)[0] == pytest.approx(-1000, abs=250)
    # Skewed counts and loads are none of ComBat's business.
    pd.testing.assert_series_equal(done.frame["lesion_mm3"], before["lesion_mm3"])


def test_without_site_effects_little_changes(rng):
    merged = cohort(rng)
    merged["site"] = rng.permutation(merged["site"].to_numpy())
    for name in ("gm_mm3", "wm_mm3", "csf_mm3", "tiv_mm3"):
        merged[name] = rng.normal(500e3, 2e4, len(merged))
    change = harmonized(merged).frame["gm_mm3"] - merged["gm_mm3"]
    assert change.abs().mean() < 5e3


def test_incomplete_sessions_are_left_out_and_told(rng):
    merged = cohort(rng)
    merged.loc[3, "age"] = np.nan
    merged.loc[4, "wm_mm3"] = np.nan
    done = harmonized(merged)
    assert np.flatnonzero(done.frame["gm_mm3"].isna()).tolist() == [3]
    assert np.flatnonzero(done.frame["wm_mm3"].isna()).tolist() == [3, 4]
    assert "1 of 90 sessions" in done.notes[0]


@pytest.mark.parametrize(("every", "enough"), [(2, True), (4, False)])
def test_a_structure_measured_in_few_takes_nothing_from_the_others(rng, every, enough):
    merged = cohort(rng)
    whole = harmonized(merged)
    merged["left_hippocampus_mm3"] = np.where(np.arange(90) % every == 0, rng.normal(3000, 100, 90), np.nan)
    done = harmonized(merged)
    pd.testing.assert_frame_equal(done.frame[list(whole.columns)], whole.frame[list(whole.columns)])
    assert done.frame["left_hippocampus_mm3"].notna().sum() == (45 if enough else 0)
    told = [note for note in done.notes if note.startswith("left_hippocampus_mm3: not harmonised")]
    plain = [note for note in done.notes if note.startswith("left_hippocampus_mm3: without empirical Bayes")]
    assert len(plain) == enough
    assert len(told) == (not enough) and ("left_hippocampus_mm3" in done.columns) == enough
    sessions = done.sites[done.sites["column"] == "left_hippocampus_mm3"]["sessions"].to_list()
    assert sessions == ([15] * 3 if enough else [])


def test_a_measure_that_is_the_same_for_all_takes_nothing_from_the_others(rng):
    merged = cohort(rng)
    whole = harmonized(merged)
    done = harmonized(merged.assign(left_accumbens_mm3=0.0))
    assert done.columns == whole.columns and (done.frame["left_accumbens_mm3"] == 0).all()
    pd.testing.assert_frame_equal(done.frame[list(whole.columns)], whole.frame[list(whole.columns)])


def test_a_single_measure_is_harmonised_without_empirical_bayes_and_told(rng):
    merged = cohort(rng)
    frame = formula.model_frame(merged)
    done = harmonize(merged, frame, formula.find_design(frame), "site", measures=["gm_mm3"])
    assert done.notes == (
        "gm_mm3: without empirical Bayes, by plain location and scale, for no other measure is there for the same"
        " sessions.",
    )
    assert harmonized(merged).notes == ()
    even = (done.frame["gm_mm3"] + 1000 * merged["age"]).groupby(merged["site"])
    assert np.ptp(even.mean()) < 6e3 and even.std().max() / even.std().min() < 1.25


def test_tissue_with_its_lesions_is_harmonised_too(rng):
    merged = cohort(rng)
    merged["gm_with_lesions_mm3"] = merged["gm_mm3"] + 500
    merged["education_mm3"] = 1.0 * np.arange(90)  # of participants.tsv: no measure
    frame = formula.model_frame(merged)
    measures = ["gm_mm3", "wm_mm3", "gm_with_lesions_mm3", "lesion_mm3"]
    done = harmonize(merged, frame, formula.find_design(frame), "site", measures=measures)
    assert done.columns == ("gm_mm3", "wm_mm3", "gm_with_lesions_mm3")
    raw, even = (
        np.ptp((table["gm_with_lesions_mm3"] + 1000 * merged["age"]).groupby(merged["site"]).mean())
        for table in (merged, done.frame)
    )
    assert even < 0.15 * raw


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t.drop(columns="site"), "no column 'site'"),
        (lambda t: t.assign(site="a"), "fewer than two"),
        (lambda t: t.assign(site=["a"] * 85 + ["b"] * 5), "too few subjects at b (5)"),
        (lambda t: t.assign(group=np.where(t["site"] == "a", "MS", "HC")), "go together"),
        (lambda t: t.assign(sex=np.where(t["group"] == "MS", "F", "M")), "determine one another"),
        (lambda t: t.assign(age=t["site"].map({"a": 20, "b": 40, "c": 60}) + t["age"] / 60), "go together"),
    ],
)
def test_refuses_with_the_reason(rng, change, why):
    with pytest.raises(HarmonizationError) as error:
        harmonized(change(cohort(rng)))
    assert why in str(error.value)

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.outliers_influence import OLSInfluence

from bidsapp.measure import formula, normative


def test_one_session_each_gives_the_externally_studentised_residual(rng):
    x = sm.add_constant(rng.normal(size=(40, 2)))
    y = x @ [1, 2, 3] + rng.normal(size=40)
    z = normative.leave_one_out(y, x, np.arange(40))
    t = OLSInfluence(sm.OLS(y, x).fit()).resid_studentized_external
    assert stats.norm.sf(np.abs(z)) == pytest.approx(stats.t.sf(np.abs(t), 36)) and (np.sign(z) == np.sign(t)).all()


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_units_make_no_difference(rng, unit):
    x, subject = sm.add_constant(rng.normal(size=(40, 2))), np.arange(40) // 2
    y = x @ [1, 2, 3] + rng.normal(size=40)
    z = normative.leave_one_out(y, x, subject)
    assert normative.leave_one_out(unit * y, x, subject) == pytest.approx(z)
    assert normative.leave_one_out(y, x * [1, unit, 1], subject) == pytest.approx(z)


def test_every_session_is_judged_by_the_first_ones_of_the_others(rng):
    subject = np.repeat(np.arange(20), [1, 2, 3, 1] * 5)
    first = np.r_[True, np.diff(subject) > 0]
    x = sm.add_constant(rng.normal(size=len(subject)))
    y = x @ [1, 2] + rng.normal(size=len(subject))
    z = normative.leave_one_out(y, x, subject)
    for who in (1, 2, 3):
        others, own = first & (subject != who), subject == who
        fit = sm.OLS(y[others], x[others]).fit()
        spread = np.sqrt(fit.mse_resid * (1 + np.einsum("ij,jk,ik->i", x[own], fit.normalized_cov_params, x[own])))
        t = (y[own] - x[own] @ fit.params) / spread
        assert z[own] == pytest.approx(np.sign(t) * stats.norm.isf(stats.t.sf(np.abs(t), fit.df_resid)))


def test_sessions_that_are_alike_are_not_flagged_too_often(rng):
    """As often as the limit has it, 0.05 %; taken as independent, 3 % were."""
    subject = np.repeat(np.arange(12), 5)
    flagged = 0
    for _ in range(150):
        x = sm.add_constant(rng.normal(size=(12, 3)))[subject]
        y = rng.normal(size=12)[subject] + 0.2 * rng.normal(size=60)
        flagged += (np.abs(normative.leave_one_out(y, x, subject)) > 3.5).sum()
    assert flagged / (150 * 60) < 0.004


def test_the_norm_is_of_first_sessions_whatever_the_order_of_the_rows(rng):
    merged = pd.DataFrame({
        "participant_id": np.repeat([f"sub-{i:02}" for i in range(15)], 2), "session_id": ["ses-2", "ses-10"] * 15,
        "gm_mm3": rng.normal(6e5, 1e4, 30), "age": rng.uniform(30, 60, 30),
    })  # fmt: skip
    one, other = (formula.model_frame(table) for table in (merged, merged.iloc[::-1].reset_index(drop=True)))
    scores, turned = (
        normative.adjusted_scores(frame, formula.find_design(frame), ["gm"])["gm"] for frame in (one, other)
    )
    assert scores.to_numpy() == pytest.approx(turned.to_numpy()[::-1]) and scores.notna().all()


def test_too_few_or_constant_give_none(rng):
    assert np.isnan(normative.leave_one_out(rng.normal(size=10), np.ones((10, 1)), np.arange(10))).all()
    assert np.isfinite(normative.leave_one_out(rng.normal(size=11), np.ones((11, 1)), np.arange(11))).all()
    assert np.isnan(normative.leave_one_out(np.ones(30), np.ones((30, 1)), np.arange(30))).all()


def test_a_large_head_is_no_outlier_but_a_small_brain_in_it_is(rng):
    n = 60
    tiv = rng.normal(1.5e6, 1e5, n)
    tiv[0], tiv[1] = 2.0e6, 2.0e6
    gm = 0.4 * tiv + rng.normal(0, 1e4, n)
    gm[1] = 0.34 * tiv[1]
    age = np.where(np.arange(n) == 5, np.nan, rng.uniform(20, 60, n))
    merged = pd.DataFrame({
        "participant_id": [f"sub-{i}" for i in range(n)], "session_id": np.nan, "tiv_mm3": tiv, "gm_mm3": gm,
        "age": age, "sex": ["F", "M"] * 30,
    })  # fmt: skip
    frame = formula.model_frame(merged)
    scores = normative.adjusted_scores(frame, formula.find_design(frame), ["gm", "tiv"])
    assert scores["participant_id"].equals(frame["participant_id"]) and "session_id" in scores
    assert abs(scores["gm"][0]) < 3 and scores["gm"][1] < -5 and scores["tiv"][0] > 3
    assert np.isnan(scores["gm"][5])  # age n/a


def test_later_sessions_are_compared_at_their_own_age(rng):
    first = np.repeat(rng.uniform(30, 60, 60), 2)
    age = first + np.tile([0.0, 10.0], 60)
    merged = pd.DataFrame({
        "participant_id": np.repeat([f"sub-{i:02}" for i in range(60)], 2), "session_id": ["ses-1", "ses-2"] * 60,
        "gm_mm3": 8e5 - 3000 * age + np.repeat(rng.normal(0, 1.5e4, 60), 2), "age": age,
    })  # fmt: skip
    frame = formula.model_frame(merged)
    design = formula.find_design(frame)
    assert (design.age, design.adjustments()) == ("age_first", ["age"])
    scores = normative.adjusted_scores(frame, design, ["gm"])
    assert scores["gm"].groupby(merged["session_id"]).mean().abs().max() < 0.3

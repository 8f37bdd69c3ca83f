"""Against published results: NIST, Pinheiro and Bates, Greene, Benjamini and Hochberg, Student; and statsmodels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM

from bidsapp.measure import comparisons, formula, mixed, statistics

# Potthoff and Roy 1964 (Biometrika 51:313): pituitary to pterygomaxillary fissure, mm, at ages 8, 10, 12, 14.
ORTHODONT = {
    "M": """26 25 29 31  21.5 22.5 23 26.5  23 22.5 24 27.5  25.5 27.5 26.5 27  20 23.5 22.5 26  24.5 25.5 27 28.5
            22 22 24.5 26.5  24 21.5 24.5 25.5  23 20.5 31 26  27.5 28 31 31.5  23 23 23.5 25  21.5 23.5 24 28
            17 24.5 26 29.5  22.5 25.5 25.5 26  23 24.5 26 30  22 21.5 23.5 25""",
    "F": """21 20 21.5 23  21 21.5 24 25.5  20.5 24 24.5 26  23.5 24.5 25 26.5  21.5 23 22.5 23.5  20 21 21 22.5
            21.5 22.5 23 25  23 23 23.5 24  20 21 22 21.5  16.5 19 19 19.5  24.5 25 28 28""",
}


def frame_of(**columns) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    keys = {"participant_id": [f"sub-{i:03}" for i in range(n)], "session_id": np.nan}
    return formula.model_frame(pd.DataFrame(keys | columns))


def fits_of(text: str, frame: pd.DataFrame) -> list[statistics.Fit]:
    (one,) = formula.parse(text, list(frame.columns))
    return statistics.fit(one, frame)


@pytest.fixture
def orthodont() -> pd.DataFrame:
    rows = []
    for sex, text in ORTHODONT.items():
        for child, values in enumerate(np.array(text.split(), float).reshape(-1, 4)):
            rows += [
                {
                    "participant_id": f"sub-{sex}{child:02}",
                    "session_id": f"ses-{age}",
                    "years": age,
                    "kind": sex,
                    "y": value,
                }
                for age, value in zip((8, 10, 12, 14), values, strict=True)
            ]
    frame = formula.model_frame(pd.DataFrame(rows))
    frame["kind"] = frame["kind"].cat.reorder_categories(["M", "F"])
    return frame


def test_linear_model_gives_the_certified_values_of_nist():
    # Longley 1967; NIST Statistical Reference Datasets, certified to 15 digits.
    data = sm.datasets.longley.load_pandas().data
    names = {"GNPDEFL": "a", "GNP": "b", "UNEMP": "c", "ARMED": "d", "POP": "e", "YEAR": "f"}
    frame = frame_of(y=data["TOTEMP"].to_numpy(), **{new: data[old].to_numpy() for old, new in names.items()})
    (fit,) = fits_of("y ~ a + b + c + d + e + f", frame)
    certified = [-3482258.63459582, 15.0618722713733, -0.0358191792925910, -2.02022980381683, -1.03322686717359,
                 -0.0511041056535807, 1829.15146461355]  # fmt: skip
    errors = [890420.383607373, 84.9149257747669, 0.0334910077722432, 0.488399681651699, 0.214274163161675,
              0.226073200069370, 455.478499142212]  # fmt: skip
    assert fit.terms["estimate"].to_numpy() == pytest.approx(certified, rel=1e-6)
    assert fit.terms["se"].to_numpy() == pytest.approx(errors, rel=1e-6)
    assert set(fit.terms["df"]) == {9}
    assert {check.name: check.doubtful for check in fit.checks}["Predictors differ"]  # Longley's are famous for it


def test_mixed_model_gives_the_published_values_of_pinheiro_and_bates(orthodont):
    # Mixed-Effects Models in S and S-PLUS (2000), lme(distance ~ age * Sex, random = ~ 1 | Subject), REML.
    (fit,) = fits_of("y ~ years * kind + (1|subject)", orthodont)
    found = fit.terms.set_index("term")
    terms = ["Intercept", "years", "kind = F", "years : kind = F"]
    assert found.loc[terms, "estimate"].to_list() == pytest.approx([16.340625, 0.784375, 1.032102, -0.304830], abs=2e-6)
    assert found.loc[terms, "se"].to_list() == pytest.approx([0.9813122, 0.0775011, 1.5374208, 0.1214209], abs=2e-6)
    # Between children 25 degrees of freedom, within 79 (lme's for age and its product with sex).
    assert found.loc[terms, "df"].to_list() == [25, 79, 25, 79]
    between, residual = 1.816214**2, 1.386382**2
    assert float(fit.summary.split()[-1]) == pytest.approx(between / (between + residual), abs=6e-4)
    # Cohen's d is over the standard deviation of children, not of what is left within each.
    effect = found.loc["kind = F", ["effect_size", "effect_low", "effect_high"]].to_numpy(float)
    reach = stats.t.ppf(0.975, 25) * 1.5374208
    ends = np.array([1.032102, 1.032102 - reach, 1.032102 + reach])
    assert effect == pytest.approx(ends / np.sqrt(between + residual), abs=1e-4)


@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_random_intercept_is_that_of_statsmodels(spread):
    rng = np.random.default_rng(0)
    subject = np.repeat(np.arange(25), [1, 2, 3, 4, 5] * 5)
    x = np.c_[np.ones(len(subject)), rng.normal(size=len(subject)), (subject % 2).astype(float)]
    y = x @ [10, -2, 3] + spread * rng.normal(size=25)[subject] + rng.normal(0, 2, len(subject))
    ratio, y_moved, x_moved = mixed.random_intercept(y, x, subject)
    ours = sm.OLS(y_moved, x_moved).fit()
    theirs = MixedLM(y, x, subject).fit(reml=True)
    assert ours.params == pytest.approx(theirs.params[:3], abs=2e-3)
    # Near the boundary (hardly any variance between subjects) statsmodels' numerical Hessian is a little off.
    assert ours.bse == pytest.approx(theirs.bse_fe, rel=5e-3 if spread else 3e-2)
    assert ratio == pytest.approx(float(theirs.cov_re[0, 0] / theirs.scale), rel=0.02, abs=2e-3)


def test_logistic_part_gives_the_values_of_greene():
    # Spector and Mazzeo 1980; Greene, Econometric Analysis, table 21.1.
    data = sm.datasets.spector.load_pandas().data
    frame = frame_of(lesion=data["GRADE"].to_numpy() * np.linspace(1, 2, 32), gpa=data["GPA"].to_numpy(),
                     tuce=data["TUCE"].to_numpy(), psi=data["PSI"].to_numpy())  # fmt: skip
    any_lesion, load = fits_of("lesion ~ gpa + tuce + psi", frame)
    assert (any_lesion.part, load.part) == ("any lesion", "load")
    assert np.log(any_lesion.terms["estimate"].to_numpy()) == pytest.approx(
        [-13.0213, 2.8261, 0.0952, 2.3787], abs=1e-4
    )
    assert any_lesion.terms["se"].to_numpy() == pytest.approx([4.9313, 1.2629, 0.1416, 1.0646], abs=1e-4)
    assert set(any_lesion.terms["estimate_kind"]) == {"odds ratio"}
    (events,) = (check for check in any_lesion.checks if check.name == "Enough events")
    assert events.doubtful and events.finding.startswith("2.8 of the rarer")  # 11 of 32, four parameters
    assert load.sessions == 11 and "21 sessions without lesions" in " ".join(load.notes)


def test_load_is_a_model_of_the_logarithm_told_as_a_ratio(rng):
    group = np.repeat(["control", "patient"], 20)
    load = np.exp(rng.normal(0, 0.5, 40) + np.log(2) * (group == "patient"))
    _, fit = fits_of("lesion ~ group", frame_of(lesion=load, group=group))
    row = fit.terms.set_index("term").loc["group = patient"]
    logs = np.log(load)
    t = stats.ttest_ind(logs[20:], logs[:20])
    assert row["estimate"] == pytest.approx(np.exp(logs[20:].mean() - logs[:20].mean()))
    assert (row["statistic"], row["p"]) == pytest.approx((t.statistic, t.pvalue))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(np.exp(t.confidence_interval())))
    pooled = np.sqrt((logs[:20].var(ddof=1) + logs[20:].var(ddof=1)) / 2)
    assert row["effect"] == "Cohen's d" and row["effect_size"] == pytest.approx(np.log(row["estimate"]) / pooled)


def test_effect_of_a_number_is_pearsons_correlation_with_its_interval(rng):
    x = rng.normal(size=30)
    y = 600 + 3 * x + rng.normal(0, 9, 30)
    row = fits_of("y ~ x", frame_of(y=y, x=x))[0].terms.set_index("term").loc["x"]
    pearson = stats.pearsonr(x, y)
    assert row["effect"] == "partial r" and row["effect_size"] == pytest.approx(pearson.statistic)
    assert (row["effect_low"], row["effect_high"]) == pytest.approx(tuple(pearson.confidence_interval(0.95)))


def test_counts_are_quasi_poisson(rng):
    age = rng.uniform(20, 60, 50)
    count = rng.negative_binomial(3, 0.2, 50)
    (fit,) = fits_of("lesion_count ~ age", frame_of(lesion_count=count, age=age))
    reference = sm.GLM(count, sm.add_constant(age), family=sm.families.Poisson()).fit(scale="X2")
    assert np.log(fit.terms["estimate"].to_numpy()) == pytest.approx(reference.params)
    assert fit.terms["se"].to_numpy() == pytest.approx(reference.bse)
    assert fit.terms["p"].to_numpy() == pytest.approx(2 * stats.t.sf(np.abs(reference.tvalues), 48))


def test_clustered_counts_are_less_sure_than_if_sessions_were_independent(rng):
    subject = np.repeat(np.arange(20), 4)
    age = rng.uniform(20, 60, 20)[subject]
    count = rng.poisson(5 * rng.gamma(2, 0.5, 20)[subject])
    frame = frame_of(lesion_count=count, age=age)
    alone = fits_of("lesion_count ~ age", frame)[0]
    frame["participant_id"] = [f"sub-{i}" for i in subject]
    clustered = fits_of("lesion_count ~ age", frame)[0]
    assert clustered.terms["estimate"].to_numpy() == pytest.approx(alone.terms["estimate"].to_numpy())
    assert clustered.terms["se"][1] > 1.3 * alone.terms["se"][1] and clustered.subjects == 20


def test_factor_of_three_levels_is_tested_jointly(rng):
    kind = np.tile(["a", "b", "c"], 12)
    y = rng.normal(size=36) + (kind == "c")
    (fit,) = fits_of("y ~ kind", frame_of(y=y, kind=kind))
    joint = fit.terms.set_index("term").loc["kind (jointly)"]
    reference = stats.f_oneway(*(y[kind == level] for level in "abc"))
    assert (joint["statistic"], joint["p"]) == pytest.approx((reference.statistic, reference.pvalue))
    assert joint["effect_size"] == pytest.approx(2 * joint["statistic"] / (2 * joint["statistic"] + 33))


def test_fdr_gives_the_example_of_benjamini_and_hochberg():
    # Their table of 15 p-values (1995, section 4.1): four are rejected at 0.05.
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.3240,
        0.4262,
        0.5719,
        0.6528,
        0.7590,
        1.0,
    ]
    table = pd.DataFrame(np.nan, index=range(15), columns=statistics.TERM_COLUMNS).astype(object)
    table = table.assign(formula=[f"y{i} ~ group" for i in range(15)], term="group = MS", p=p)
    one = statistics.Fit(formula.Formula("y", "group", "y", ("y", "group")), "", "", table)
    q = statistics.with_fdr([one])["q_fdr"]
    assert (q < 0.05).sum() == 4 and q[3] == pytest.approx(0.0095 * 15 / 4)


def test_groups_and_sessions_give_the_values_of_r_on_students_sleep_data():
    # Student 1908, R's data(sleep): t.test and wilcox.test.
    extra = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0, 1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    groups = comparisons.compare_groups(frame_of(y=extra, group=["1"] * 10 + ["2"] * 10), "group", ["y"]).iloc[0]
    assert (groups["t"], groups["df"], groups["p_t"]) == pytest.approx((1.8608, 17.776, 0.07939), rel=1e-4)
    assert (groups["ci_low"], groups["ci_high"]) == pytest.approx((-0.2054832, 3.3654832), abs=1e-6)
    assert groups["p_rank"] == pytest.approx(0.06933, abs=1e-5)
    # Of groups of one size Cohen's d is t sqrt(2 / n); Hedges' factor for 18 degrees of freedom is 1 - 3 / 71.
    assert groups["effect_size"] == pytest.approx(1.8608 * np.sqrt(2 / 10) * (1 - 3 / 71), rel=1e-4)
    both = frame_of(y=extra)
    both["participant_id"] = [f"sub-{i}" for i in range(10)] * 2
    both["session_id"] = ["ses-1"] * 10 + ["ses-2"] * 10
    pair = comparisons.compare_sessions(both, ["y"]).iloc[0]
    assert (pair["t"], pair["df"], pair["p_t"]) == pytest.approx((4.0621, 9, 0.002833), rel=1e-4)
    assert (pair["ci_low"], pair["ci_high"]) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert pair["p_rank"] == pytest.approx(2 / 2**9)  # exact: the nine changes that are not zero are all positive
    assert pair["effect_size"] == pytest.approx(4.0621 / np.sqrt(10), rel=1e-4)


@pytest.mark.parametrize(
    ("text", "columns", "why"),
    [
        ("y ~ age", {"y": range(6), "age": [1, 2, 3, 4, 5, 7]}, "degrees of freedom"),
        ("y ~ 1", {"y": [1, 2]}, "2 sessions of 2 subjects and 1 parameter leave 1 degree of freedom"),
        (
            "y ~ group + site",
            {"y": range(20), "group": ["a", "b"] * 10, "site": ["x", "z"] * 10},
            "determine one another",
        ),
        ("y ~ age", {"y": range(20), "age": [3] * 20}, "age is the same"),
        ("y ~ age", {"y": [np.nan] * 20, "age": range(20)}, "y is n/a"),
        ("y ~ x", {"y": np.arange(20) * 2.0, "x": range(20)}, "without rest"),
        ("log(y) ~ x", {"y": range(20), "x": np.arange(20) ** 2}, "not finite"),
    ],
)
def test_what_cannot_be_fitted_says_why(text, columns, why):
    (fit,) = fits_of(text, frame_of(**columns))
    assert why in fit.refused and fit.terms.empty


def test_no_odds_without_enough_sessions_free_of_lesions_nor_under_separation(rng):
    age = np.arange(30.0)
    any_lesion, load = fits_of("lesion ~ age", frame_of(lesion=np.r_[np.zeros(2), rng.uniform(1, 2, 28)], age=age))
    assert "2 of 30 sessions are without lesions" in any_lesion.refused and not load.refused
    any_lesion, _ = fits_of("lesion ~ age", frame_of(lesion=np.r_[np.zeros(15), rng.uniform(1, 2, 15)], age=age))
    assert any_lesion.refused and any_lesion.terms.empty


def test_odds_need_subjects_not_sessions(rng):
    """Eight sessions with lesions, all of two subjects of twenty."""
    lesion = np.r_[rng.uniform(1, 2, 8), np.zeros(72)]
    frame = several(frame_of(lesion=lesion, age=np.repeat(rng.uniform(20, 60, 20), 4)), 4)
    any_lesion, _ = fits_of("lesion ~ age", frame)
    assert "2 of 20 subjects have a session with lesions, at least 5 are needed." in any_lesion.refused


def test_rows_left_out_are_told_and_checks_find_what_is_wrong(rng):
    x = rng.uniform(1, 10, 200)
    y = x + x**2 * rng.standard_exponential(200)
    frame = frame_of(y=np.r_[y, 1.0], x=np.r_[x, np.nan])
    (fit,) = fits_of("y ~ x", frame)
    assert fit.sessions == 200 and "1 of 201 sessions are left out, n/a in x (1)." in fit.notes
    doubtful = {check.name for check in fit.checks if check.doubtful}
    w, _ = stats.shapiro(y - np.polyval(np.polyfit(x, y, 1), x))
    assert fit.checks[0].finding == f"Shapiro-Wilk W = {w:.4g}"
    assert {"Residuals are normal", "Spread is even"} <= doubtful
    assert fit.residuals.std() == pytest.approx(1, abs=0.02) and len(fit.residuals) == len(fit.index) == 200
    (fine,) = fits_of("z ~ x", frame_of(z=x + rng.normal(size=200), x=x))
    assert not any(check.doubtful for check in fine.checks)


def test_inflation_of_two_predictors_by_hand(rng):
    a, c = np.tile([-1.0, -1, 1, 1], 6), np.tile([-1.0, 1], 12)  # of one size, at right angles
    for factor, doubtful in ((2, False), (4, True)):
        (fit,) = fits_of("y ~ a + b", frame_of(y=rng.normal(size=24), a=a, b=factor * a + c))
        (check,) = (check for check in fit.checks if check.name == "Predictors differ")
        # 1 / (1 - r squared), which is 4/5 and 16/17
        assert check.finding.startswith(f"largest variance inflation {1 + factor**2} (") and check.doubtful is doubtful


def test_rows_left_out_and_few_subjects_are_told_of_counts_too(rng):
    age = np.r_[np.nan, np.nan, rng.uniform(20, 60, 16)]
    (fit,) = fits_of("lesion_count ~ age", frame_of(lesion_count=rng.poisson(5, 18), age=age))
    assert fit.sessions == 16
    assert fit.notes[0] == "2 of 18 sessions are left out, n/a in age (2)."
    assert fit.notes[1].startswith("Only 8.0 subjects per parameter")


def test_intervals_hold_the_truth_as_often_as_they_say():
    """150 cohorts: coverage and false positives within three standard errors (see benchmarks/cohort.py for all)."""
    rng = np.random.default_rng(1)
    inside = false = 0
    for _ in range(150):
        group = np.tile(["a", "b"], 10)
        y = rng.normal(size=20) + 2.0 * (group == "b")
        row = fits_of("y ~ group", frame_of(y=y, group=group))[0].terms.iloc[1]
        inside += row["ci_low"] <= 2.0 <= row["ci_high"]
        false += fits_of("y ~ group", frame_of(y=rng.normal(size=20), group=group))[0].terms["p"][1] < 0.05
    assert inside / 150 == pytest.approx(0.95, abs=0.053) and false / 150 == pytest.approx(0.05, abs=0.053)


def several(frame: pd.DataFrame, sessions: int) -> pd.DataFrame:
    """The same rows as so many sessions of each subject."""
    place = np.arange(len(frame))
    return frame.assign(
        participant_id=[f"sub-{i // sessions:03}" for i in place],
        session_id=[f"ses-{i % sessions + 1}" for i in place],
    )


@pytest.mark.parametrize("sessions", [1, 2])
@pytest.mark.parametrize("outcome", ["lesion", "lesion_count"])
def test_separation_is_refused_by_name_but_a_strong_effect_is_fitted(rng, sessions, outcome):
    # All patients have lesions (or no control has any): the ratio runs away to infinity, whatever the errors say.
    n = 80
    patient = np.repeat([False, True], n // 2)
    some = patient | (rng.random(n) < 0.5) if outcome == "lesion" else patient
    y = np.where(some, rng.poisson(8, n) + 1.0, 0)
    age = np.repeat(rng.normal(45, 9, n // sessions), sessions)
    columns = {"group": np.where(patient, "patient", "control"), "age": age}
    fit = fits_of(f"{outcome} ~ group + age", several(frame_of(**{outcome: y}, **columns), sessions))[0]
    assert fit.terms.empty and fit.refused.startswith("group tells") and "no finite" in fit.refused
    # One patient without and one control with lesions: strong, and finite.
    y[[0, 1, 2, 3, 4, 5, -2, -1]] = [4, 4, 4, 4, 4, 4, 0, 0]
    fit = fits_of(f"{outcome} ~ group + age", several(frame_of(**{outcome: y}, **columns), sessions))[0]
    row = fit.terms.set_index("term").loc["group = patient"]
    assert not fit.refused and 5 < row["estimate"] < 500 and row["ci_high"] < 1e4


def test_separation_by_a_number_and_by_two_together_is_named(rng):
    n = 60
    age, tiv = rng.normal(45, 9, n), rng.normal(1500, 90, n)
    lesion = np.where(age > 45, 1.0, 0) * rng.uniform(1, 2, n)
    assert fits_of("lesion ~ age + tiv", frame_of(lesion=lesion, age=age, tiv=tiv))[0].refused.startswith("age tells")
    lesion = np.where((age - 45) / 9 + (tiv - 1500) / 90 > 0, 1.0, 0) * rng.uniform(1, 2, n)
    refused = fits_of("lesion ~ age + tiv", frame_of(lesion=lesion, age=age, tiv=tiv))[0].refused
    assert refused.startswith("age and tiv tell, together,")
    eta = 3 * (age - 45) / 9  # as steep as effects get, and no separation
    lesion = (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(float)
    assert not fits_of("lesion ~ age + tiv", frame_of(lesion=lesion, age=age, tiv=tiv))[0].refused


def test_robust_p_values_are_hc3_of_every_model(rng):
    x = rng.normal(size=40)
    frame = frame_of(y=x + x**2 * rng.normal(size=40), x=x, lesion_count=rng.negative_binomial(2, 0.2, 40))
    linear, count = (fits_of(f"{outcome} ~ x", frame)[0].terms for outcome in ("y", "lesion_count"))
    reference = sm.OLS(frame["y"], sm.add_constant(x)).fit()
    expected = 2 * stats.t.sf(np.abs(reference.params / reference.HC3_se), 38)
    assert linear["p_robust"].to_numpy() == pytest.approx(expected)
    # HC3 of a generalised model by its definition: scores over one less the leverage (Zeileis 2006, J Stat Softw 16:9).
    design = sm.add_constant(x)
    fitted = sm.GLM(frame["lesion_count"].to_numpy(), design, family=sm.families.Poisson()).fit()
    bread = np.linalg.inv(design.T @ (fitted.mu[:, None] * design))
    leverage = fitted.mu * np.einsum("ij,jk,ik->i", design, bread, design)
    scores = design * ((frame["lesion_count"].to_numpy() - fitted.mu) / (1 - leverage))[:, None]
    errors = np.sqrt(np.diag(bread @ scores.T @ scores @ bread))
    assert count["p_robust"].to_numpy() == pytest.approx(2 * stats.t.sf(np.abs(fitted.params / errors), 38))


def test_level_of_one_subject_has_no_robust_p_value_and_is_told(rng):
    site = ["a"] * 20 + ["b"] * 19 + ["c"]
    frame = frame_of(y=rng.normal(size=40), age=rng.normal(45, 9, 40), site=site, lesion_count=rng.poisson(5, 40))
    for outcome in ("y", "lesion_count"):
        (fit,) = fits_of(f"{outcome} ~ age + site", frame)
        p = fit.terms.set_index("term")["p_robust"]
        assert np.isnan(p["site = c"]) and p[["age", "site = b"]].notna().all()
        (check,) = (check for check in fit.checks if check.name == "Several subjects for every term")
        assert check.doubtful and check.finding.startswith("site = c rests on one subject")
    twice = several(frame.loc[frame.index.repeat(2)].reset_index(drop=True), 2)
    twice["y"] += rng.normal(0, 0.1, 80)
    assert np.isnan(fits_of("y ~ age + site", twice)[0].terms.set_index("term")["p_robust"]["site = c"])
    assert "errors by subject" in fits_of("lesion_count ~ age + site", twice)[0].refused


def test_outcome_that_is_the_same_within_subjects_counts_once(rng):
    group, score = np.repeat(["control", "patient"], 20), rng.normal(3, 1, 40)
    age = rng.normal(45, 9, 40)
    once = frame_of(score=score, group=group, age=age)
    thrice = several(once.loc[once.index.repeat(3)].reset_index(drop=True), 3)
    thrice["time"] = np.tile([0.0, 1, 2], 40)
    expected = fits_of("score ~ group + age", once)[0].terms
    for text in ("score ~ group + age", "score ~ group*time + age"):
        (fit,) = fits_of(text, thrice)
        assert (fit.method, fit.sessions, fit.formula.text) == ("linear model", 40, "score ~ group + age")
        assert fit.terms[["estimate", "se", "df", "p"]].equals(expected[["estimate", "se", "df", "p"]])
        assert "score is the same in all sessions of each subject, who counts once" in " ".join(fit.notes)
    assert "without time and group : time" in " ".join(fit.notes)
    assert "cannot explain it" in fits_of("score ~ time", thrice)[0].refused
    few = thrice[51:69].assign(a=rng.normal(size=18), b=rng.normal(size=18))  # 6 subjects
    assert "counts once: too few for this model: 6 sessions" in fits_of("score ~ a + b", few)[0].refused
    thrice["lesion"] = np.exp(thrice["score"])
    assert fits_of("lesion ~ group + age", thrice)[1].sessions == 40
    # No false positives: the errors are those of 40 subjects, not of 120 sessions.
    thrice["score"] += rng.normal(0, 0.1, 120)
    assert fits_of("score ~ group + age", thrice)[0].method.startswith("linear mixed model")


@pytest.mark.parametrize(("rescans", "sessions"), [(3, 100), (40, 140)])
def test_a_few_rescans_cost_no_model(rng, rescans, sessions):
    place = np.r_[np.arange(100), np.arange(rescans)]
    group, tiv, gm = np.where(np.arange(100) % 2, "b", "a"), rng.normal(1500, 90, 100), rng.normal(600, 20, 100)
    frame = frame_of(gm=gm[place] + rng.normal(0, 2, len(place)), group=group[place], age=rng.normal(45, 9, 100)[place],
                     tiv=tiv[place] + rng.normal(0, 3, len(place)))  # fmt: skip
    frame = frame.assign(participant_id=[f"sub-{i:03}" for i in place], session_id="ses-1", time=0.0)
    frame.loc[100:, "session_id"], frame.loc[100:, "time"] = "ses-2", rng.uniform(0.2, 1, rescans)
    frame = frame.iloc[::-1]
    (fit,) = fits_of("gm ~ group*time + age + tiv", frame)
    assert not fit.refused and fit.sessions == sessions and fit.subjects == 100
    df = fit.terms.set_index("term")["df"]
    if rescans < 10:
        assert fit.formula.text == "gm ~ group + age + tiv" and set(df) == {96} and max(fit.index) == 99
        assert "3 of 100 subjects have several sessions, too few" in fit.notes[0]
        assert "without time and group : time" in fit.notes[0]
        # Without time nothing varies within subjects: TIV, measured anew, is known between them.
        (fit,) = fits_of("gm ~ group + tiv", frame)
        assert fit.sessions == 103 and set(fit.terms["df"]) == {97}
        assert "degrees of freedom" in fits_of("gm ~ time", frame)[0].refused
    else:
        assert df["tiv"] == 96 and df["time"] == 38


def test_loads_of_a_few_rescans_are_fitted_too(rng):
    place = np.r_[np.arange(60), np.arange(4)]
    frame = frame_of(lesion=rng.lognormal(size=64) * np.r_[np.tile([0, 1], 30), [1] * 4],
                     age=rng.normal(45, 9, 60)[place])  # fmt: skip
    frame = frame.assign(participant_id=[f"sub-{i:03}" for i in place], time=np.r_[np.zeros(60), [1, 1, 1, 1.5]])
    _, load = fits_of("lesion ~ age + time", frame)
    assert not load.refused and load.formula.text == "lesion ~ age"


def test_numerical_failures_are_told(rng, monkeypatch):
    frame = frame_of(y=rng.normal(size=30), group=["a", "b", "c"] * 10, age=rng.normal(45, 9, 30))
    (fit,) = fits_of("y ~ 0 + group", frame)
    means = frame.groupby("group", observed=True)["y"].mean()
    assert fit.terms["estimate"][:3].to_numpy() == pytest.approx(means.to_numpy())
    (same,) = fits_of("y ~ group", frame)
    spread = [check for one in (fit, same) for check in one.checks if check.name == "Spread is even"]
    assert spread[0].p == pytest.approx(spread[1].p)
    with pytest.raises(formula.FormulaError, match="no predictors"):
        fits_of("y ~ 0", frame)
    assert "df=2 is too small" in fits_of("y ~ bs(age, df=2)", frame)[0].refused

    def fails(*_args, **_options):
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(statistics, "_gaussian", fails)
    assert "SVD did not converge" in fits_of("y ~ age", frame)[0].refused


def test_sessions_are_compared_in_the_order_of_time_or_of_their_numbers(rng):
    loss = rng.normal(-10, 1, 12)
    y = np.c_[np.full(12, 600.0), 600 + loss].ravel()
    frame = several(frame_of(y=y, group=["a"] * 12 + ["b"] * 12), 2)
    frame["session_id"] = ["ses-2", "ses-10"] * 12
    frame = frame.sort_values(["participant_id", "session_id"])
    row = comparisons.compare_sessions(frame, ["y"]).iloc[0]
    assert row["difference"] == pytest.approx(loss.mean()) and "in the order of their labels" in row["comparison"]
    assert comparisons.compare_groups(frame.assign(y=frame["y"] + loss[0]), "group", ["y"]).empty  # all 600 at first
    # ses-10 came first; of the first subject one date is not known, and neither session may be called the last.
    frame["time"] = np.where(frame["session_id"] == "ses-10", 0.0, 1.0)
    frame.loc[0, "time"] = np.nan
    row = comparisons.compare_sessions(frame, ["y"]).iloc[0]
    assert row["n"] == 11 and row["difference"] == pytest.approx(-loss[1:].mean())
    assert row["comparison"] == "last session against first (1 subject left out, time n/a)"


def test_clustered_counts_of_few_subjects_are_refused(rng):
    numbers = {name: rng.normal(size=40) for name in "abcde"}
    frame = several(frame_of(lesion_count=rng.integers(1, 30, 40).astype(float), **numbers), 4)
    (refused,) = fits_of("lesion_count ~ a + b + c + d + e", frame)
    assert "10 subjects and 6 parameters have 4 degrees of freedom" in refused.refused
    (fitted,) = fits_of("lesion_count ~ a + b + c + d", frame)
    assert not fitted.refused and fitted.terms["df"].between(4, 9).all()  # of ten subjects, after Satterthwaite


@pytest.mark.parametrize(
    ("one", "other", "p"), [([1] * 3, [0] * 3, 0.1), ([0, 1, 2, 3], [0] * 4, 1 / 7), ([0, 1, 2, 3, 4], [0] * 5, 1 / 21)]
)
def test_rank_sum_of_tied_values_is_exact(one, other, p):
    # By counting: of all ways to draw the first sample, those whose rank sum is as far from its mean.
    assert comparisons.rank_sum(np.array(one, float), np.array(other, float)) == pytest.approx(p)


def test_ranks_do_not_see_errors_of_rounding():
    one, other = np.array([2 / 3 - 1 / 3, 0.1 + 0.2, 0.9]), np.array([1 / 3, 0.3, 0.1])
    assert comparisons.rank_sum(one, other) == comparisons.rank_sum(one.round(6), other.round(6))
    change = np.array([1 / 3, -(2 / 3 - 1 / 3), 0.9 - 0.6, -0.3, 0.5, 0.1])
    assert comparisons.signed_rank(change) == comparisons.signed_rank(change.round(6))


def test_sessions_that_all_change_alike_have_ranks_and_no_t_test(rng):
    frame = several(frame_of(y=rng.normal(600, 9, 6).repeat(2)), 2)
    frame["y"] -= np.where(frame["session_id"] == "ses-2", 0.3, 0)
    row = comparisons.compare_sessions(frame, ["y"]).iloc[0]
    assert row["p_rank"] == pytest.approx(2 / 2**6) and row["difference"] == pytest.approx(-0.3)
    assert row[["t", "p_t", "q_t", "ci_low", "effect_size"]].isna().all()


def test_fewer_than_three_are_not_compared():
    frame = frame_of(y=np.arange(5.0), group=list("aaabb"))
    assert comparisons.compare_groups(frame, "group", ["y"]).empty
    assert comparisons.compare_groups(
        frame.assign(group=frame["group"].cat.reorder_categories(["b", "a"])), "group", ["y"]
    ).empty
    pairs = several(frame_of(y=np.arange(6.0) ** 2), 2)
    assert comparisons.compare_sessions(pairs[:4], ["y"]).empty and len(comparisons.compare_sessions(pairs, ["y"])) == 1


def test_two_constant_groups_have_no_t_test():
    frame = frame_of(y=np.repeat([0.0, 1.0], 3), z=np.arange(6.0), group=list("aaabbb"))
    table = comparisons.compare_groups(frame, "group", ["y", "z"]).set_index("column")
    assert table.loc["y", ["t", "p_t", "q_t", "ci_low"]].isna().all() and table.loc["y", "p_rank"] == pytest.approx(0.1)
    assert table.loc["z", "q_t"] == table.loc["z", "p_t"]


@pytest.mark.parametrize("level", ["II:b", "MS:RR [x]", "MS [x]:RR", "II:(b"])
def test_a_colon_in_a_level_makes_no_interaction(rng, level):
    stage = ["I:a"] * 10 + [level] * 10
    frame = frame_of(y=rng.normal(size=20) + np.repeat([0, 1], 10), stage=stage, age=rng.normal(size=20))
    (fit,) = fits_of("y ~ stage*age", frame)
    assert fit.terms["term"].to_list() == ["Intercept", f"stage = {level}", "age", f"stage = {level} : age"]
    assert fit.terms["effect"].to_list() == ["", "Cohen's d", "partial r", "partial r"]


def test_checks_are_those_of_r_on_longleys_data():
    # R 4.2.2: m <- lm(Employed ~ ., longley); shapiro.test(resid(m)), lmtest::bptest(m), cooks.distance, car::vif
    data = sm.datasets.longley.load_pandas().data
    names = {"GNPDEFL": "a", "GNP": "b", "UNEMP": "c", "ARMED": "d", "POP": "e", "YEAR": "f"}
    frame = frame_of(y=data["TOTEMP"].to_numpy(), **{new: data[old].to_numpy() for old, new in names.items()})
    (fit,) = fits_of("y ~ a + b + c + d + e + f", frame)
    checks = {check.name: check for check in fit.checks}
    assert checks["Residuals are normal"].p == pytest.approx(0.467866, abs=1e-6)
    assert checks["Spread is even"].p == pytest.approx(0.867385, abs=1e-6)
    assert "distance 0.614 " in checks["No session decides alone"].finding
    assert "inflation 1.79e+03 (b" in checks["Predictors differ"].finding


def test_ranks_are_those_of_r():
    # coin::wilcoxsign_test(x ~ y, distribution = "exact", zero.method = "Wilcoxon"), with ties and zeros
    change = [3, -1, 2, 2, 0, 4, -2, 1, 1, 5, 3, -3, 2, 6, 4, 0, 1, -1, 2, 3]
    assert comparisons.signed_rank(np.array(change, float)) == pytest.approx(0.00820923, abs=1e-8)
    # wilcox.test(1:30 + 0.5, (1:40)^1.1): exact without ties in groups of fewer than 50
    one, other = np.arange(1, 31) + 0.5, np.arange(1, 41) ** 1.1
    assert comparisons.rank_sum(one, other) == pytest.approx(0.002912730336, abs=1e-8)
    # wilcox.test((-25:34) + 0.25): the normal approximation with the correction for continuity
    many = np.arange(-25, 35) + 0.25
    assert comparisons.signed_rank(many) == pytest.approx(0.05151747392, abs=1e-8)

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bidsapp.measure import formula, statistics
from bidsapp.measure.formula import FormulaError, find_design, model_frame, parse


@pytest.fixture
def merged() -> pd.DataFrame:
    n = 12
    return pd.DataFrame({
        "participant_id": [f"sub-{i:02}" for i in range(n)], "session_id": np.nan, "tiv_mm3": 1e6 + np.arange(n),
        "gm_mm3": 5e5 + 10.0 * np.arange(n), "left_hippocampus_mm3": 3000.0 + np.arange(n),
        "lesion_load_percent_tiv": 0.1, "group": ["patient", "HC"] * 6, "sex": [1, 2, 2] * 4,
        "age": np.arange(n) + 20, "site": ["a"] * 10 + ["b"] * 2, "EDSS score": 1.0 * np.arange(n),
        "größe": 170.0,
    })  # fmt: skip


def test_volumes_are_in_ml_and_controls_are_the_reference(merged):
    frame = model_frame(merged)
    assert frame["gm"][1] == pytest.approx(500.01) and frame["left_hippocampus"][2] == pytest.approx(3.002)
    assert list(frame["group"].cat.categories) == ["HC", "patient"]
    assert list(frame["sex"].cat.categories) == ["1", "2"]  # codes, not amounts
    assert frame["age"].dtype == float


def test_long_codes_stay_apart_and_age_is_never_a_factor(merged):
    codes = merged.assign(site=[1234561.0, 1234562.0] * 5 + [np.nan] * 2)
    frame = model_frame(codes, categories=["age"])
    assert list(frame["site"].cat.categories) == ["1234561", "1234562"]
    assert frame["age"].dtype == float


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gm ~ group + age", "gm ~ group + age"),
        ("GM_mm3 ~ Group*age", "gm ~ group * age"),
        ("icv ~ age + (1|subject)", "tiv ~ age"),
        ("left_hippocampus_mm3 ~ tiv", "left_hippocampus ~ tiv"),
        ("lesion_load ~ np.log(age) + C(sex, Treatment(reference='1'))",
         "lesion_load_percent_tiv ~ log(age) + C(sex,Treatment(reference='1'))"),
        ('gm ~ Q("EDSS score")', "gm ~ Q('EDSS score')"),
        ("gm ~ größe", "gm ~ Q('größe')"),
        ("log1p(gm) ~ bs(age, df=3) - 1", "log1p(gm) ~ bs(age,df=3) - 1"),
        ("gm ~ 0 + cr(age, df=3)", "gm ~ 0 + cr(age,df=3)"),
        ("gm ~ cr(age, df=3) - 1", "gm ~ cr(age,df=3) - 1"),
        ("gm ~ cr(age, df=3, constraints='center')", "gm ~ cr(age,df=3,constraints='center')"),
    ],
)  # fmt: skip
def test_short_names(merged, text, expected):
    (one,) = parse(text, list(model_frame(merged).columns))
    assert one.text == expected


def test_several_outcomes_and_all(merged):
    columns = list(model_frame(merged).columns)
    assert [one.outcome for one in parse("gm, tiv ~ age", columns)] == ["gm", "tiv"]
    regions = parse("Cortex ~ age", [*columns, "left_insula"], measures=["gm"], regions=["left_insula"])
    assert [one.text for one in regions] == ["left_insula ~ age"]
    with pytest.raises(FormulaError, match="no session has a table of cortical regions"):
        parse("cortex ~ age", columns, measures=["gm"])
    assert [one.outcome for one in parse("cortex ~ age", [*columns, "Cortex"], regions=["left_insula"])] == ["Cortex"]
    every = parse("all ~ age + tiv", columns, measures=["gm", "tiv", "left_hippocampus"])
    assert [one.outcome for one in every] == ["gm", "left_hippocampus"]  # tiv stands on the right


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("gm", "is no formula"),
        ("gm ~ ", "is no formula"),
        ("gm ~ agee", "no column 'agee'. Is it 'age'? There are: "),
        ("gm ~ cr(age, df=3)", "write cr(..., constraints='center')"),
        ("gm ~ group + cr(age / 10, df=3)", "write cr(..., constraints='center')"),
        ("gm ~ __import__('os').system('true')", "function __import__ is not there"),
        ("gm ~ age.__class__", "cannot be read"),
        ("gm ~ [1, 2]", "cannot be read"),
        ("gm ~ (1|site)", "for subjects only"),
        ("gm ~ (age|subject)", "only (1|subject)"),
        ("gm ~ gm + age", "both sides"),
        ("gm + tiv ~ age", "must name one column"),
        ("gm ~ 0", "has no predictors"),
    ],
)
def test_what_is_no_formula_says_why(merged, text, why):
    with pytest.raises(FormulaError) as error:
        parse(text, list(model_frame(merged).columns))
    assert why in str(error.value)


def test_a_wrong_name_is_not_answered_with_every_structure(merged):
    columns = [*model_frame(merged).columns, "left_insula", "right_insula"]
    with pytest.raises(FormulaError) as error:
        parse("gm ~ edss", columns)
    told = str(error.value)
    assert "insula" not in told and told.endswith("and structures and regions of both sides (left_..., right_...).")
    with pytest.raises(FormulaError, match="Is it 'left_insula'"):
        parse("gm ~ left_insul", columns)


def test_design_and_default_models(merged):
    frame = model_frame(merged)
    design = find_design(frame)
    assert (design.group, design.age, design.sex, design.tiv, design.time) == ("group", "age", "sex", "tiv", None)
    assert design.site is None and "fewer than 3 subjects are b" in " ".join(design.notes)
    texts = [one.text for one in formula.default_formulas(design, ["gm", "tiv", "lesion_load_percent_tiv"])]
    assert texts == [
        "gm ~ group + age + sex + tiv", "tiv ~ group + age + sex", "lesion_load_percent_tiv ~ group + age + sex",
    ]  # fmt: skip
    assert formula.default_formulas(find_design(frame.drop(columns=["group", "age", "sex"])), ["gm"]) == []


def test_a_site_may_have_any_name(merged):
    scanners = {"scanner model": ["a", "a", "b", "b"] * 3, "gm_mm3": np.random.default_rng(1).normal(6e5, 1e4, 12)}
    frame = model_frame(merged.drop(columns="tiv_mm3").assign(**scanners))
    (one,) = formula.default_formulas(find_design(frame, site="scanner model"), ["gm"])
    assert one.text == "gm ~ group + age + sex + Q('scanner model')" and one.variables[-1] == "scanner model"
    assert statistics.fit(one, frame)[0].refused == ""


@pytest.mark.parametrize("source", ["dates", "ages", "labels"])
def test_time_of_repeated_sessions(merged, source):
    twice = merged.loc[merged.index.repeat(2)].reset_index(drop=True)
    twice["session_id"] = ["ses-1", "ses-2"] * 12
    if source == "dates":
        twice["acq_time"] = ["2020-01-01T10:00:00", "2021-12-31T22:00:00"] * 12
    if source == "ages":
        twice["age"] = twice["age"] + np.tile([0.0, 2.0], 12)
    frame = model_frame(twice)
    design = find_design(frame)
    if source == "labels":
        assert design.time == "session_id"
        return
    assert design.time == "time" and frame["time"][:2].to_list() == pytest.approx([0, 2], abs=0.01)
    assert design.age == ("age_first" if source == "ages" else "age")
    assert design.predictors()[0] == "group*time"


@pytest.mark.parametrize("level", ["ctl", "CTRL", "Nondemented", "non-demented", "Cognitively normal", "normal", "HCs"])
def test_names_of_controls(level):
    frame = model_frame(pd.DataFrame({"participant_id": list("abcd"), "group": ["AD", level] * 2}))
    assert frame["group"].cat.categories[0] == level


def followed(seen: dict[str, int], **columns) -> pd.DataFrame:
    """Five subjects of every group with so many sessions."""
    rows = [
        {"participant_id": f"sub-{group}{i}", "session_id": f"ses-{k}", "group": group, "year": k, "gm_mm3": 6e5 + i**2}
        for group, sessions in seen.items()
        for i in range(5)
        for k in range(1, sessions + 1)
    ]
    frame = pd.DataFrame(rows).assign(**columns)
    frame["gm_mm3"] += 100 * np.sin(np.arange(len(frame)))
    return frame


@pytest.mark.parametrize("dated", [True, False])
@pytest.mark.parametrize(
    ("seen", "by_group"),
    [
        ({"HC": 2, "MS": 2}, True),
        ({"HC": 1, "MS": 3}, False),
        ({"HC": 1, "CIS": 2, "MS": 2}, False),  # two groups that were followed are not enough
    ],
)
def test_the_course_by_group_needs_groups_that_were_followed(seen, by_group, dated):
    frame = followed(seen)
    if dated:
        frame["acq_time"] = [f"{2000 + year}-01-01" for year in frame["year"]]
    frame = model_frame(frame.drop(columns="year"))
    design = find_design(frame)
    time = "time" if dated else "session_id"
    (one,) = formula.default_formulas(design, ["gm"])
    assert one.text == (f"gm ~ group*{time}" if by_group else f"gm ~ group + {time}")
    assert [fit.refused for fit in statistics.fit(one, frame)] == [""]
    assert (
        any(f"not group*{time}: fewer than 3 subjects were followed in HC" in note for note in design.notes) != by_group
    )


def test_a_label_that_one_group_has_alone_is_no_course_of_both():
    frame = model_frame(followed({"HC": 2, "MS": 3}).drop(columns="year"))
    design = find_design(frame)
    (one,) = formula.default_formulas(design, ["gm"])
    assert one.text == "gm ~ group + session_id" and "were followed in HC at ses-3." in design.notes[-1]
    assert [fit.refused for fit in statistics.fit(one, frame)] == [""]


def test_sessions_as_a_factor_go_by_their_numbers():
    frame = followed({"HC": 2, "MS": 2})
    frame["session_id"] = frame["session_id"].map({"ses-1": "ses-2", "ses-2": "ses-10"})
    (one,) = parse("gm ~ group + session_id", list(model_frame(frame).columns))
    (fit,) = statistics.fit(one, model_frame(frame))
    assert fit.terms["term"].to_list() == ["Intercept", "group = MS", "session_id = ses-10"]


def test_the_length_of_intervals_counts_where_it_is_known_for_half_of_them():
    whole = pd.DataFrame({"years": [1.0, 2, 3, 4, np.nan]})
    assert formula.find_years(whole) == ("years", [])
    rare = ["years is not used in models of changes: it is n/a for more than half the intervals."]
    assert formula.find_years(whole.where(whole < 3)) == (None, rare)
    assert formula.find_years(whole[[]]) == (None, [])


def test_a_small_level_is_left_out_and_the_column_stays(merged):
    few = merged.assign(group=["CIS"] * 2 + ["MS", "HC"] * 5, site=["a"] * 10 + ["b"] * 2)
    frame, notes = formula.without_small_levels(model_frame(few))
    assert list(frame["group"].cat.categories) == ["HC", "MS"] and frame["group"].isna().sum() == 2
    assert notes == ["group CIS: fewer than 3 subjects, taken as n/a in models."]  # of the sites one would remain
    assert list(frame["site"].cat.categories) == ["a", "b"] and find_design(frame).group == "group"


def test_a_group_known_for_few_is_not_used(merged):
    design = find_design(
        model_frame(merged.assign(group=["HC", "MS"] * 3 + [np.nan] * 6, sex=[1, 2, 2] + [np.nan] * 9))
    )
    assert design.group == "group" and design.sex is None
    assert "sex is not used: it is n/a for more than half the sessions." in design.notes


@pytest.mark.parametrize("word", ["class", "lambda", "None", "Intercept"])
def test_columns_may_be_words_of_python(merged, word):
    frame = model_frame(merged.rename(columns={"EDSS score": word}))
    (one,) = parse(f"gm ~ age + {word}", list(frame.columns))
    assert one.text == f"gm ~ age + Q('{word}')" and one.variables == ("gm", "age", word)


def sessions_of(**columns) -> pd.DataFrame:
    """Two subjects of three sessions each."""
    keys = {"participant_id": np.repeat(["sub-1", "sub-2"], 3), "session_id": ["ses-1", "ses-2", "ses-3"] * 2}
    return model_frame(pd.DataFrame(keys | columns))


def test_time_is_from_dates_in_any_form_before_ages():
    dates = ["2020-01-01", "2020-07-01T12:00:00.000Z", "2021-01-01 12:00"]
    frame = sessions_of(age=[45, 45, 46, 50, 51, 51], acq_time=dates * 2)
    assert frame["time"].to_list() == pytest.approx([0, 0.5, 1] * 2, abs=0.005)
    assert frame["age_first"].to_list() == [45] * 3 + [50] * 3


def test_beside_time_the_age_is_the_first_one():
    columns = list(sessions_of(Age=[45, 45, 46, 50, 51, 51], gm_mm3=1.0).columns)
    (one,) = parse("gm ~ time*age", columns)
    assert one.text == "gm ~ time * age_first" and one.variables == ("gm", "time", "age_first")
    assert "Age is the age at the first session" in one.notes[0]
    (one,) = parse("gm ~ age", columns)
    assert one.text == "gm ~ Age" and one.notes == ()


def test_a_subject_without_dates_goes_by_ages():
    dates = ["2020-01-01", "2020-07-01", "2021-01-01", "2020-01-01", np.nan, np.nan]
    frame = sessions_of(age=[45, 45, 46, 50, 51, 53], acq_time=dates)
    assert frame["time"].to_list() == pytest.approx([0, 0.5, 1, 0, 1, 3], abs=0.005)


def test_an_age_of_participants_tsv_says_nothing_of_the_time_between_sessions():
    frame = sessions_of(age=[45, 45, 46, 50, 50, 50])
    assert frame["time"][:3].to_list() == [0, 0, 1] and frame["time"][3:].isna().all()


def test_no_time_where_a_session_without_date_may_be_the_first():
    dates = [np.nan, "2020-01-01", "2021-01-01", "2020-01-01", np.nan, "2021-01-01"]
    time = sessions_of(acq_time=dates)["time"]
    assert time[:3].isna().all() and time[3:].to_list() == pytest.approx([0, np.nan, 1], abs=0.01, nan_ok=True)
    by_age = sessions_of(acq_time=dates, age=[45, 47, 48, 50, 50, 51])["time"]  # whole for the first alone
    assert by_age.to_list() == pytest.approx([0, 2, 3, 0, 0, 1], abs=0.01)


def test_no_first_age_where_a_session_without_age_may_be_the_first():
    ages = [np.nan, 52, 54, 50, np.nan, 54]
    frame = sessions_of(age=ages)
    assert frame["age_first"][:3].isna().all() and frame["age_first"][3:].to_list() == [50] * 3
    assert frame["time"][:3].isna().all() and frame["time"][3:].to_list() == pytest.approx([0, np.nan, 4], nan_ok=True)
    dates = ["2022-01-01", "2020-01-01", "2021-01-01", "2020-01-01", "2021-01-01", "2022-01-01"]
    assert sessions_of(age=ages, acq_time=dates)["age_first"].to_list() == [52] * 3 + [50] * 3  # ses-1 was the last


@pytest.mark.parametrize("lacking", ["patient", "control"])
def test_a_group_without_dates_or_ages_keeps_its_models(lacking):
    """A column that is n/a for a whole group would leave the models without that group."""
    rows = [
        {"participant_id": f"sub-{i:02}", "session_id": f"ses-{k}", "gm_mm3": 6e5 + 100.0 * i * k, "group": group,
         "acq_time": np.nan if group == lacking and k == 1 else f"202{k}-03-01",
         "age": np.nan if group == lacking else 30.0 + i}
        for i in range(30)
        for group in ("control" if i % 3 else "patient",)
        for k in (1, 2)
    ]  # fmt: skip
    few = [
        row for row in rows if lacking == "patient" or int(row["participant_id"][-2:]) < 8 or row["group"] != lacking
    ]
    frame = formula.model_frame(pd.DataFrame(few))
    design = formula.find_design(frame)
    assert (design.time, design.age) == ("session_id", None)
    notes = " ".join(design.notes)
    assert f"time is not used: it is n/a for nearly all of {lacking}." in notes and "age is not used" in notes
    (one,) = formula.default_formulas(design, ["gm"])
    (fit,) = statistics.fit(one, frame)
    assert not fit.refused and "group = patient" in set(fit.terms["term"])


def test_many_labels_without_dates_are_told():
    labels = [f"ses-{k}" for k in range(1, 7)]
    rows = [
        {"participant_id": f"sub-{i}", "session_id": s, "age": 30.0 + i, "gm_mm3": 1.0 * i}
        for i in range(6)
        for s in labels
    ]
    design = formula.find_design(formula.model_frame(pd.DataFrame(rows)))
    assert design.time is None and "6 labels of sessions are too many" in " ".join(design.notes)

"""Group tables: merging, outliers and summary."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest

from bidsapp.measure import cohort
from bidsapp.measure.cohort import merge_sessions, modified_z, outliers, summary


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def frame(subject: str, session: str | None, **values) -> pd.DataFrame:
    keys = {"participant_id": subject} | ({"session_id": session} if session else {})
    return pd.DataFrame([keys | values])


def test_merge_orders_rows_and_keeps_na():
    merged = merge_sessions(
        [
            frame("sub-02", "ses-1", gm_mm3="n/a", brain_mm3=3.0),
            frame("sub-01", "ses-2", gm_mm3=2.0, brain_mm3=4.0, flags="none"),
            frame("sub-01", "ses-1", gm_mm3=1.0, brain_mm3=5.0),
        ]
    )
    assert list(merged.columns) == ["participant_id", "session_id", "gm_mm3", "brain_mm3", "flags"]
    assert merged["brain_mm3"].tolist() == [5, 4, 3]
    assert merged["gm_mm3"].dtype == float and np.isnan(merged.loc[2, "gm_mm3"])
    assert merged["flags"].tolist()[1] == "none"


def test_merge_without_sessions_and_without_frames():
    merged = merge_sessions([frame("sub-2", None, x=1), frame("sub-1", "ses-1", x=2)])
    assert merged["participant_id"].tolist() == ["sub-1", "sub-2"]
    assert merged["session_id"].isna().tolist() == [False, True]
    assert list(merge_sessions([]).columns) == ["participant_id", "session_id"]


def test_labels_that_look_like_numbers_stay_labels():
    merged = merge_sessions([frame("01", "1", x=1), frame("02", "1", x=2)])
    assert merged["participant_id"].tolist() == ["01", "02"]


def test_age_of_a_subject_is_not_that_of_a_later_session():
    merged = merge_sessions([frame(f"sub-{n}", f"ses-{k}", x=1.0) for n in "12" for k in "123"])
    people = pd.DataFrame({"participant_id": ["sub-1", "sub-2"], "age": ["45", "60"], "sex": ["F", "M"]})
    visits = pd.DataFrame(
        {"participant_id": "sub-1", "session_id": ["ses-1", "ses-2", "ses-3"], "age": ["45", "n/a", "47"], "sex": "n/a"}
    )
    known, _ = cohort.add_covariates(merged, [("participants.tsv", people), ("sessions.tsv", visits)])
    np.testing.assert_array_equal(known["age"], [45, np.nan, 47, 60, 60, 60])
    assert known["sex"].tolist() == ["F"] * 3 + ["M"] * 3


def test_merge_refuses_doubles_and_nameless_tables():
    with pytest.raises(ValueError, match="More than one row for sub-01 ses-1"):
        merge_sessions([frame("sub-01", "ses-1", x=1)] * 2)
    with pytest.raises(ValueError, match="More than one row for sub-01:"):
        merge_sessions([frame("sub-01", None, x=1)] * 2)
    with pytest.raises(ValueError, match="participant_id"):
        merge_sessions([pd.DataFrame({"x": [1]})])


def test_modified_z_by_hand():
    # median 3, absolute deviations 2 1 0 1 97, MAD 1
    z = modified_z(pd.DataFrame({"x": [1.0, 2, 3, 4, 100]}))["x"]
    assert z.tolist() == pytest.approx([v / 1.4826 for v in (-2, -1, 0, 1, 97)])


def test_modified_z_where_most_values_are_the_same():
    z = modified_z(pd.DataFrame({"x": [5.0] * 9 + [15], "y": [1.0] * 10}))
    assert z["x"].tolist()[-1] == pytest.approx(10 / (1.253314 * 1.0))
    assert z["y"].isna().all()


def test_outliers_are_found_and_named():
    table = merge_sessions([frame(f"sub-{i}", "ses-1", x=float(i), y=1.0 + i % 2, note="a") for i in range(9)])
    table.loc[3, "x"] = -500
    table.loc[4, "x"] = 60
    found = outliers(table)
    assert found.note == ""
    assert found.table["participant_id"].tolist() == ["sub-3", "sub-4"]
    assert found.table["direction"].tolist() == ["low", "high"]
    assert found.table["column"].tolist() == ["x", "x"]
    assert found.table.loc[0, "value"] == -500
    assert outliers(table, limit=1e6).table.empty


def test_outliers_begin_at_a_modified_z_of_three_and_a_half():
    # median 0, MAD 1: 5.1 has 0.6745 x 5.1 = 3.44, 5.3 has 3.57
    table = pd.DataFrame({"participant_id": [f"sub-{i}" for i in range(9)], "x": [-5.1, -1, -1, -1, 0, 1, 1, 1, 5.3]})
    assert outliers(table).table["value"].tolist() == [5.3]


def test_few_subjects_are_not_judged():
    rows = [frame(f"sub-{i}", f"ses-{j}", x=float(i + j)) for i in range(4) for j in range(3)]
    table = merge_sessions(rows)
    table.loc[0, "x"] = 1e9
    found = outliers(table)
    assert found.table.empty and "4 subjects, at least 5" in found.note
    assert "1 subject, at least 5" in outliers(rows[0]).note


def test_columns_measured_in_few_subjects_are_not_judged():
    table = merge_sessions([frame(f"sub-{i}", "ses-1", x=float(i), y=float(i)) for i in range(8)])
    table.loc[3:, "y"] = np.nan
    table.loc[0, "y"] = 1e9
    found = outliers(table)
    assert found.table.empty and found.note.startswith("Not looked for in y")


def test_summary_by_hand():
    table = merge_sessions([frame(f"sub-{i}", "ses-1", x=v, s="a") for i, v in enumerate([1.0, 2.0, 6.0, "n/a"])])
    row = summary(table).loc["x"]
    assert summary(table).index.tolist() == ["x"]
    assert row.to_dict() == pytest.approx(
        {"n": 3, "missing": 1, "mean": 3, "sd": np.sqrt(7), "minimum": 1, "q1": 1.5, "median": 2, "q3": 4, "maximum": 6}
    )


def test_thousands_of_rows_take_no_time(rng):
    rows = [frame(f"sub-{i:05d}", "ses-1", **dict.fromkeys("abc", float(i))) for i in range(300)]
    big = pd.concat([merge_sessions(rows)] * 20, ignore_index=True)
    big["participant_id"] = [f"sub-{i:05d}" for i in range(len(big))]
    start = time.perf_counter()
    outliers(big)
    summary(big)
    assert time.perf_counter() - start < 2


def test_covariates_are_merged_by_subject_and_session():
    merged = cohort.merge_sessions([
        pd.DataFrame({"participant_id": ["sub-1"], "session_id": ["ses-1"], "gm_mm3": ["5"]}),
        pd.DataFrame({"participant_id": ["sub-1"], "session_id": ["ses-2"], "gm_mm3": ["6"]}),
        pd.DataFrame({"participant_id": ["sub-2"], "gm_mm3": ["7"]}),
    ])  # fmt: skip
    people = pd.DataFrame(
        {"participant_id": ["2", "sub-1", "sub-9"], "age": ["50", "40", "1"], "sex": ["F", "n/a", "M"]}
    )
    visits = pd.DataFrame({"participant_id": ["sub-1"], "session_id": ["2"], "age": ["41.5"]})
    scale = pd.DataFrame({"participant_id": ["sub-1", "sub-1"], "edss": ["2", "3"], "gm_mm3": ["x", "y"]})
    wrong = pd.DataFrame({"id": ["sub-1"]})
    found, notes = cohort.add_covariates(
        merged, [("participants.tsv", people), ("edss.tsv", scale), ("sessions.tsv", visits), ("wrong.tsv", wrong)]
    )
    # In the table's order: sub-1 ses-1, sub-1 ses-2, sub-2.
    assert found["age"].to_list() == [40, 41.5, 50] and found["edss"].to_list()[:2] == [2, 2]
    assert found["sex"].isna().to_list() == [True, True, False]
    assert found["gm_mm3"].to_list() == [5, 6, 7] and found["edss_gm_mm3"].to_list()[:2] == ["x", "x"]
    assert notes == [
        "edss.tsv has more than one row of sub-1: the first is used.",
        "wrong.tsv has no column participant_id: it is not used.",
    ]


def test_of_tables_that_tell_the_same_the_first_counts_and_a_session_more_than_its_subject():
    merged = merge_sessions([frame("sub-1", "ses-1", x=1.0), frame("sub-1", "ses-2", x=2.0)])
    people = pd.DataFrame({"participant_id": ["sub-1"], "edss": ["2"], "arm": ["n/a"]})
    later = pd.DataFrame({"participant_id": ["sub-1"], "edss": ["9"], "arm": ["b"]})
    found, _ = cohort.add_covariates(merged, [("participants.tsv", people), ("later.tsv", later)])
    assert found["edss"].to_list() == [2, 2] and found["arm"].to_list() == ["b", "b"]
    visits = pd.DataFrame({"participant_id": ["sub-1"], "session_id": ["ses-2"], "edss": ["4"]})
    for tables in ([("v.tsv", visits), ("p.tsv", people)], [("p.tsv", people), ("v.tsv", visits)]):
        assert cohort.add_covariates(merged, tables)[0]["edss"].to_list() == [2, 4]


def test_what_nearly_every_lesion_has_of_its_own_is_no_class():
    lesions = pd.DataFrame({"participant_id": "sub-1", "session_id": np.nan, "volume_mm3": 1.0, "note": range(41)})
    lesions["note"] = "n" + lesions["note"].astype(str)
    assert not [name for name in cohort.lesion_summary(lesions) if "note" in name]
    assert "lesion_note_n0_mm3" in cohort.lesion_summary(lesions.iloc[:40])


def test_lesions_are_summed_by_every_class():
    lesions = pd.DataFrame({
        "participant_id": ["sub-1"] * 3 + ["sub-2"], "session_id": ["ses-1"] * 3 + [np.nan], "lesion_id": [1, 2, 3, 1],
        "volume_mm3": [100.0, 30.0, 20.0, 7.0],
        "region": ["deep white matter", "infratentorial", "deep white matter", "infratentorial"],
        "hemisphere": ["left", "right", None, "left"],
    })  # fmt: skip
    found = cohort.lesion_summary(lesions).set_index("participant_id")
    assert found["lesion_region_deep_white_matter_mm3"].to_dict() == {"sub-1": 120, "sub-2": 0}
    assert found["lesion_region_infratentorial_count"].to_dict() == {"sub-1": 1, "sub-2": 1}
    assert found["lesion_hemisphere_left_mm3"].to_dict() == {"sub-1": 100, "sub-2": 7}
    assert found["lesion_largest_mm3"].to_dict() == {"sub-1": 100, "sub-2": 7}
    assert found.loc["sub-1", "lesion_median_mm3"] == 30 and not [name for name in found if "lesion_id" in name]


def test_loads_are_compared_as_logarithms_and_none_is_no_outlier():
    load = [0.0, *np.exp(np.linspace(5, 10, 20)), 5e9]
    frame = pd.DataFrame({"participant_id": [f"sub-{i:02}" for i in range(22)], "lesion_mm3": load})
    found = outliers(frame).table
    assert found["participant_id"].to_list() == ["sub-21"] and found["value"].to_list() == [5e9]


def test_loads_are_told_beside_the_median_of_those_above_zero():
    load = [0.0] * 14 + [*np.exp(np.linspace(8, 10, 13)), 2.0]
    frame = pd.DataFrame({"participant_id": [f"sub-{i:02}" for i in range(28)], "lesion_mm3": load, "gm_mm3": load})
    found = outliers(frame[["participant_id", "lesion_mm3"]]).table
    assert found["direction"].to_list() == ["low"] and found["median"][0] == np.median(load[14:])
    assert cohort.middle(frame[["lesion_mm3", "gm_mm3"]])["gm_mm3"] == np.median(load)
    assert cohort.middle(pd.DataFrame({"lesion_count": [0, 1, 1, 3]}))["lesion_count"] == 1


@pytest.mark.parametrize("column", ["gm", "GM", "gm_mm3"])
def test_no_covariate_takes_the_name_of_a_measure(column):
    merged = pd.DataFrame({"participant_id": ["sub-1"], "session_id": [np.nan], "gm_mm3": [5.0]})
    people = pd.DataFrame({"participant_id": ["sub-1"], column: ["yes"]})
    found, _ = cohort.add_covariates(merged, [("participants.tsv", people)])
    assert found["gm_mm3"].to_list() == [5.0] and found[f"participants_{column}"].to_list() == ["yes"]


@pytest.mark.parametrize(
    ("cell", "age", "said"),
    [
        (" 45 ", 45, ""), ("N/A", np.nan, ""), ("NA", np.nan, ""), ("nan", np.nan, ""), (".", np.nan, ""),
        ("-", np.nan, ""), ("", np.nan, ""), ("inf", np.nan, ""),
        ("89+", 89, "age 89+ is read as a number (1 session)"),
        ("unknown", np.nan, "age holds numbers, but for 'unknown': n/a there (1 session)"),
    ],
)  # fmt: skip
def test_one_odd_cell_leaves_ages_numbers(cell, age, said):
    names = [f"sub-{i:02}" for i in range(20)]
    merged = pd.DataFrame({"participant_id": names, "session_id": np.nan})
    people = pd.DataFrame(
        {"participant_id": names, "age": [cell, *map(str, range(30, 49))], "group": [" HC ", "."] * 10}
    )
    found, notes = cohort.add_covariates(merged, [("participants.tsv", people)])
    np.testing.assert_equal(found["age"].to_list(), [age, *range(30, 49)])
    assert set(found["group"].dropna()) == {"HC"} and found["group"].isna().sum() == 10
    assert " ".join(notes).startswith(said) and bool(notes) == bool(said)


def test_codes_and_text_are_not_mended():
    names = [f"sub-{i:02}" for i in range(20)]
    merged = pd.DataFrame({"participant_id": names, "session_id": np.nan})
    people = pd.DataFrame({"participant_id": names, "site": ["B", *"12" * 9, "1"], "arm": ["x", *"12" * 9, "1"],
                           "word": ["a", "b", "c", "4"] * 5})  # fmt: skip
    found, notes = cohort.add_covariates(merged, [("participants.tsv", people)], codes=["arm"])
    assert (found["site"][0], found["arm"][0], found["word"][0]) == ("B", "x", "a") and notes == []


def test_sessions_go_by_time_then_by_number():
    rows = [("sub-1", "ses-post", 1.0), ("sub-1", "ses-pre", 0.0), ("sub-2", "ses-10", np.nan), ("sub-2", "ses-2", 3.0)]
    table = pd.DataFrame(rows, columns=[*cohort.KEYS, "time"])
    assert cohort.order_sessions(table).tolist() == [1, 0, 3, 2]
    merged = merge_sessions([frame("sub-1", "ses-10", x=1.0), frame("sub-1", "ses-2", x=2.0)])
    assert merged["session_id"].to_list() == ["ses-2", "ses-10"]


def test_subjects_go_by_number_too():
    table = pd.DataFrame({"participant_id": ["sub-10", "sub-2", "sub-P1", "sub-1"], "session_id": np.nan})
    assert table["participant_id"][cohort.order_sessions(table)].tolist() == ["sub-1", "sub-2", "sub-10", "sub-P1"]


def test_classes_that_were_not_measured_are_not_zero():
    lesions = pd.DataFrame({
        "participant_id": ["sub-01", "sub-01", "sub-02"], "session_id": np.nan, "volume_mm3": ["10", "20", "30"],
        "t1w_hypointense": ["yes", np.nan, np.nan],
    })  # fmt: skip
    table = cohort.lesion_summary(lesions)
    assert table["lesion_t1w_hypointense_yes_count"].tolist()[0] == 1 and table["lesion_largest_mm3"].tolist()[1] == 30
    assert table[["lesion_t1w_hypointense_yes_count", "lesion_t1w_hypointense_yes_mm3"]].loc[1].isna().all()


def test_tables_that_name_nobody_here_are_told():
    merged = cohort.merge_sessions([frame(f"sub-{i:02}", None, gm_mm3=i) for i in (1, 2, 3)])
    table = pd.DataFrame({"participant_id": ["1", "2", "3"], "group": ["a", "b", "a"]})
    _, notes = cohort.add_covariates(merged, [("participants.tsv", table)])
    assert notes == [
        "participants.tsv names none of the subjects here (sub-01, ...; there: sub-1, ...): it tells nothing."
    ]
    table["participant_id"] = ["sub-01", "02", "sub-9"]
    _, notes = cohort.add_covariates(merged, [("participants.tsv", table), ("edss.tsv", table)])
    assert notes == ["participants.tsv does not name 1 of 3 subjects, such as sub-03: n/a there."]


def test_intervals_go_by_their_numbers():
    intervals = pd.DataFrame({
        "participant_id": ["sub-2", "sub-1", "sub-1"], "session_id": ["ses-b", "ses-fu", "ses-post"],
        cohort.INTERVAL: [1.0, 2.0, 1.0],
    })  # fmt: skip
    assert cohort.order_sessions(intervals).tolist() == [2, 1, 0]

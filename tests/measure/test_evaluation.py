from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bidsapp.measure import evaluation as ev
from bidsapp.measure.agreement import agreement

SHAPE = (7, 8, 9)
BORDERS = (10, 100, 1000)
ANISO = np.array([[0.5, 0, 0, 10.0], [0, 1, 0, -20.0], [0, 0, 3, 5.0], [0, 0, 0, 1]])


def box(*ranges: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


# --- against MONAI ----------------------------------------------------------------------------------------------------


def hd95_by_monai(reference, prediction, size):
    """Of MONAI's surface distances; its own percentile is a float32 quantile, off by 1e-5 between two distances."""
    from monai.metrics import utils

    edges = utils.get_mask_edges(prediction, reference)[:2]
    directed = [utils.get_surface_distance(a, b, spacing=list(size)) for a, b in (edges, edges[::-1])]
    return max(np.percentile(np.asarray(distances, float), 95) for distances in directed)


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(bool, SHAPE, elements=st.booleans()).filter(np.any),
    arrays.arrays(bool, SHAPE, elements=st.booleans()).filter(np.any),
    st.tuples(*[st.floats(0.4, 4.0)] * 3),
)
def test_every_measure_against_monai(reference, prediction, size):
    metrics, torch = pytest.importorskip("monai.metrics"), pytest.importorskip("torch")
    found = agreement(reference, prediction, voxel_size_mm=size)
    one, other = (torch.from_numpy(m)[None, None].double() for m in (prediction, reference))
    options = {"include_background": True, "spacing": [float(s) for s in size]}
    theirs = {
        "dsc": metrics.compute_dice(one, other, include_background=True),
        "hd_mm": metrics.compute_hausdorff_distance(one, other, **options),
        "hd95_mm": hd95_by_monai(reference, prediction, size),
        "assd_mm": metrics.compute_average_surface_distance(one, other, symmetric=True, **options),
    }
    matrix = metrics.get_confusion_matrix(one, other, include_background=True)
    theirs |= {
        name: metrics.compute_confusion_matrix_metric(long, matrix)
        for name, long in (("tpr", "sensitivity"), ("ppv", "precision"))
    }
    for name, value in theirs.items():
        # MONAI's distances are float32.
        assert getattr(found, name) == pytest.approx(float(value), abs=1e-6, rel=1e-6), name


# --- lesions ----------------------------------------------------------------------------------------------------------


def test_lesions_one_by_one_by_hand():
    # Reference: 8 voxels (4 of them predicted), 1 voxel (missed). Prediction: 12 voxels over the first, 2 alone.
    reference = box((0, 2), (0, 2), (0, 2)) | box((6, 7), (7, 8), (8, 9))
    prediction = box((1, 2), (0, 3), (0, 4)) | box((4, 5), (5, 7), (8, 9))
    row, lesions = ev.compare_masks(reference, prediction, affine=ANISO, lesion_wise=True, borders_mm3=BORDERS)
    assert (row["lesion_tpr"], row["lesion_ppv"]) == (0.5, 0.5)
    assert [(one["lesion_of"], one["lesion"], one["found"], one["touching"]) for one in lesions] == [
        ("reference", 1, "yes", 1), ("reference", 2, "no", 0), ("prediction", 1, "yes", 1), ("prediction", 2, "no", 0),
    ]  # fmt: skip
    assert [one["volume_mm3"] for one in lesions] == pytest.approx([12, 1.5, 18, 3])
    assert [one["overlap_mm3"] for one in lesions] == pytest.approx([6, 0, 6, 0])
    assert lesions[0]["overlap_fraction"] == pytest.approx(0.5)
    # Centroid of voxels 0..1 along each axis, through the affine; of the single voxel (6, 7, 8).
    assert [lesions[0][f"{axis}_mm"] for axis in "xyz"] == pytest.approx([10.25, -19.5, 6.5])
    assert [lesions[1][f"{axis}_mm"] for axis in "xyz"] == pytest.approx([13, -13, 29])
    assert [one["size"] for one in lesions] == ["10-100", "<10", "10-100", "<10"]
    tissue = ev.compare_masks(reference, prediction, affine=ANISO, lesion_wise=False, borders_mm3=BORDERS)
    assert tissue[1] == [] and tissue[0]["reference_lesions"] is None and tissue[0]["dsc"] == row["dsc"]


def test_one_large_prediction_finds_two_lesions():
    reference = box((1, 2), (1, 2), (1, 2)) | box((5, 6), (1, 2), (1, 2))
    _, lesions = ev.compare_masks(
        reference, box((0, 7), (1, 2), (1, 2)), affine=np.eye(4), lesion_wise=True, borders_mm3=BORDERS
    )
    assert [(one["lesion_of"], one["touching"]) for one in lesions] == [
        ("reference", 1), ("reference", 1), ("prediction", 2)
    ]  # fmt: skip


def test_small_reference_lesions_are_not_listed_but_excuse_predictions():
    reference = box((0, 2), (0, 2), (0, 2)) | box((6, 7), (7, 8), (8, 9))
    _, lesions = ev.compare_masks(
        reference,
        box((6, 7), (7, 8), (8, 9)),
        affine=np.eye(4),
        lesion_wise=True,
        borders_mm3=BORDERS,
        minimum_lesion_mm3=2,
    )
    assert [(one["lesion_of"], one["found"]) for one in lesions] == [("reference", "no"), ("prediction", "yes")]


def test_empty_masks_have_no_lesions():
    none = np.zeros(SHAPE, bool)
    row, lesions = ev.compare_masks(none, none, affine=np.eye(4), lesion_wise=True, borders_mm3=BORDERS)
    assert lesions == [] and math.isnan(row["dsc"]) and row["volume_difference_mm3"] == 0


def test_classes_of_size():
    names = ev.size_classes(np.array([9.9, 10, 99.999, 100, 0.1 * 3 / 0.3 * 1000, 5000]), BORDERS)
    assert names == ["<10", "10-100", "10-100", "100-1000", ">=1000", ">=1000"]


def test_detection_by_size_by_hand():
    lesions = pd.DataFrame(
        [("reference", "<10", "yes", 0.5), ("reference", "<10", "no", 0.0), ("reference", ">=10", "yes", 1.0),
         ("prediction", "<10", "no", 0.0)], columns=["lesion_of", "size", "found", "overlap_fraction"],
    ).assign(segmentation="label-lesion", label="lesion", prediction="A")  # fmt: skip
    table = ev.detection_by_size(lesions, (10,)).set_index("size")
    assert table.loc["<10", ["reference_lesions", "found", "prediction_lesions", "true"]].tolist() == [2, 1, 1, 0]
    assert table.loc["<10", "lesion_tpr"] == 0.5 and table.loc["<10", "lesion_ppv"] == 0
    # Wilson's interval of 1 in 2: (0.5 + z^2 / 4 -+ z sqrt(1/8 + z^2 / 16)) / (1 + z^2 / 2).
    z = 1.959964
    reach = z * math.sqrt(1 / 8 + z**2 / 16)
    assert table.loc["<10", "lesion_tpr_ci_low"] == pytest.approx((0.5 + z**2 / 4 - reach) / (1 + z**2 / 2), abs=1e-6)
    assert table.loc[">=10", "lesion_tpr"] == 1 and math.isnan(table.loc[">=10", "lesion_ppv"])


@pytest.mark.parametrize(("name", "yes"), [("Lesion", True), ("WMH", True), ("ventricle", False), ("GM", False)])
def test_labels_that_are_lesions(name, yes):
    assert ev.is_lesion(name) is yes


# --- tables -----------------------------------------------------------------------------------------------------------


def cases(values: dict[str, list[float]], *, sessions: int = 1, column: str = "dsc") -> pd.DataFrame:
    """A frame of cases: a column for each prediction's values."""
    rows = []
    for name, numbers in values.items():
        for i, value in enumerate(numbers):
            rows.append({
                "participant_id": f"sub-{i // sessions:02d}", "session_id": f"ses-{i % sessions}", "scan": "",
                "segmentation": "label-lesion", "label": "lesion", "prediction": name, column: value,
            })  # fmt: skip
    return pd.DataFrame(rows).reindex(columns=list(ev.CASE_COLUMNS))


def test_summary_by_hand():
    table = ev.summarise(cases({"A": [0.1, 0.2, 0.4, float("nan")]})).set_index("measure")
    row = table.loc["dsc"]
    assert (row["n"], row["undefined"], row["median"]) == (3, 1, 0.2)
    assert (row["q1"], row["q3"]) == pytest.approx((0.15, 0.3))
    assert row["mean"] == pytest.approx(0.7 / 3)
    sd = np.std([0.1, 0.2, 0.4], ddof=1)
    assert row["mean_ci_high"] - row["mean"] == pytest.approx(4.302653 * sd / math.sqrt(3), rel=1e-5)
    assert math.isnan(row["median_ci_low"])
    assert "lesion_tpr" not in table.index  # no case counted lesions


def test_sessions_of_a_subject_make_no_interval_narrower(rng):
    """Eight subjects of four sessions that are all but alike: as cases they had 65 % (mean) and 78 % (median)."""
    covered = []
    for _ in range(200):
        values = np.repeat(rng.normal(0.7, 0.1, 8), 4) + rng.normal(0, 0.02, 32)
        row = ev.summarise(cases({"A": list(values)}, sessions=4)).set_index("measure").loc["dsc"]
        covered.append([row[f"{what}_ci_low"] <= 0.7 <= row[f"{what}_ci_high"] for what in ("mean", "median")])
    assert (row["n"], row["subjects"]) == (32, 8)
    assert (np.mean(covered, axis=0) > 0.91).all()


def test_volumes_of_sessions_by_hand():
    # Four subjects twice: differences of 0, 2, 4, 6 mm3 on average, -1 and +1 about it. Within 8 / 4 = 2, between
    # 2 * 20 / 3; a single difference has the variance 2 + (40 / 3 - 2) / 2.
    frame = cases({"A": [1.0] * 8}, sessions=2)
    frame["reference_volume_mm3"] = np.repeat([10.0, 20, 30, 45], 2)
    frame["prediction_volume_mm3"] = frame["reference_volume_mm3"] + [-1.0, 1, 1, 3, 3, 5, 5, 7]
    row = ev.agreement_of_volumes(frame).iloc[0]
    assert (row["n"], row["subjects"], row["bias_mm3"]) == (8, 4, 3)
    sd, t, z = math.sqrt(2 + (40 / 3 - 2) / 2), 3.182446, 1.959964
    assert row["sd_mm3"] == pytest.approx(sd)
    assert row["bias_ci_high"] - 3 == pytest.approx(t * math.sqrt(20 / 3 / 4))
    assert row["lower_ci_high"] - row["lower_mm3"] == pytest.approx(t * sd * math.sqrt(1 / 4 + z**2 / 6))
    r = np.corrcoef(frame["reference_volume_mm3"], frame["prediction_volume_mm3"])[0, 1]
    assert np.arctanh(row["pearson_ci_high"]) - np.arctanh(r) == pytest.approx(z)  # 1 / sqrt(4 - 3)
    assert pd.isna(ev.agreement_of_volumes(frame.head(4)).iloc[0]["bias_mm3"])  # of two subjects


def test_median_has_an_interval_from_six_cases():
    row = ev.summarise(cases({"A": [1, 2, 3, 4, 5, 6]})).set_index("measure").loc["dsc"]
    assert (row["median_ci_low"], row["median_ci_high"]) == (1, 6)  # coverage 1 - 2 / 2^6 = 0.969


def test_signed_rank_by_hand():
    # Differences of six sizes, all positive: of the 2^6 signs only these and their opposites are as extreme.
    # So p = 2 / 2^6.
    a = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    b = [0.51, 0.52, 0.53, 0.54, 0.55, 0.56]
    table = ev.compare_predictions(cases({"A": a, "B": b}), ["A", "B"])
    row = table[table["measure"] == "dsc"].iloc[0]
    assert row["comparison"] == "B against A" and row["n"] == 6
    assert row["p"] == pytest.approx(2 / 64) == row["smallest_p"] and row["effect_size"] == 1
    assert row["difference"] == pytest.approx(0.035) and pd.isna(row["note"])


def test_textbook_signed_rank():
    # Hollander and Wolfe 1973, p. 29: Hamilton depression scale of nine patients before and after; one-sided p = 0.02.
    before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    row = ev.compare_predictions(cases({"A": before, "B": after}), ["A", "B"]).set_index("measure").loc["dsc"]
    assert row["p"] == pytest.approx(0.0391, abs=5e-5)
    assert row["effect_size"] == pytest.approx(-(40 - 5) / 45)
    assert (row["median"], row["other_median"]) == (1.06, 1.68)  # the fifth of nine


def test_ties_are_exact_in_small_samples():
    a = [0.5] * 6
    row = ev.compare_predictions(cases({"A": a, "B": [0.6] * 5 + [0.4]}), ["A", "B"]).set_index("measure").loc["dsc"]
    # Six differences of one size, five up: 2 (1 + 6) / 64.
    assert row["p"] == pytest.approx(14 / 64)


def test_the_same_difference_in_all_is_tested():
    table = ev.compare_predictions(cases({"A": [0.5] * 8, "B": [1.0] * 8}), ["A", "B"])
    row = table.set_index("measure").loc["dsc"]
    assert row["p"] == row["p_holm"] == pytest.approx(2 / 2**8) and row["effect_size"] == 1
    assert pd.isna(row["ci_low"])  # Student's t cannot judge what does not vary


def test_ties_are_seen_through_errors_of_rounding():
    # To a computer 2/3 - 1/3 is not 1/3, nor 0.1 + 0.2 0.3: two differences of one size, and none.
    a, b = [1 / 3, 0, 0.3, 0.5, 0.5, 0.5], [2 / 3, 1 / 3, 0.1 + 0.2, 0.4, 0.1, 0.7]
    row = ev.compare_predictions(cases({"A": a, "B": b}), ["A", "B"]).set_index("measure").loc["dsc"]
    # Ranks 3.5, 3.5, -1, -5, 2 (of 0.1, 0.2, 1/3 twice, 0.4).
    assert row["smallest_p"] == 2.0**-4 and row["effect_size"] == pytest.approx((9 - 6) / 15)
    assert row["p"] == pytest.approx(24 / 32)  # of the 2^5 signs, those with a sum of ranks of 3 or more off zero


def test_few_subjects_are_told():
    table = ev.compare_predictions(cases({"A": [1, 2, 3, 4, 5.0], "B": [2, 4, 6, 8, 10.0]}), ["A", "B"])
    row = table.set_index("measure").loc["dsc"]
    assert row["smallest_p"] == pytest.approx(0.0625) and "at least 6" in row["note"]
    same = ev.compare_predictions(cases({"A": [1, 2, 3.0], "B": [1, 2, 3.0]}), ["A", "B"]).set_index("measure")
    assert math.isnan(same.loc["dsc", "p"]) and "no difference" in same.loc["dsc", "note"]


def test_sessions_of_a_subject_are_averaged():
    a = [0.1, 0.3] * 6
    table = ev.compare_predictions(cases({"A": a, "B": [v + 0.1 for v in a]}, sessions=2), ["A", "B"])
    assert table.set_index("measure").loc["dsc", "n"] == 6


def test_only_cases_of_both_count():
    table = ev.compare_predictions(cases({"A": [1, 2, 3, float("nan")], "B": [2, 3, float("nan"), 4]}), ["A", "B"])
    assert table.set_index("measure").loc["dsc", "n"] == 2


def test_corrections_by_hand():
    frame = cases({"A": [0.0] * 6, "B": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]})
    frame["tpr"] = [0.0] * 6 + [0.1, 0.2, 0.3, 0.4, 0.5, -0.6]  # W = 6: p = 0.4375
    table = ev.compare_predictions(frame, ["A", "B"]).set_index("measure")
    assert table.loc[["dsc", "tpr"], "p"].tolist() == pytest.approx([0.03125, 0.4375])
    assert table.loc[["dsc", "tpr"], "p_holm"].tolist() == pytest.approx([0.0625, 0.4375])
    assert table.loc[["dsc", "tpr"], "q_fdr"].tolist() == pytest.approx([0.0625, 0.4375])


def test_groups_by_hand():
    frame = cases({"A": [0.1, 0.2, 0.3, 0.4, 0.7, 0.8, 0.9, 1.0]})
    groups = pd.Series({f"sub-{i:02d}": "MS" if i > 3 else "HC" for i in range(8)})
    row = ev.compare_groups_of_subjects(frame, groups, ["A"]).iloc[0]
    assert row["comparison"] == "MS against HC" and row["test"] == "Wilcoxon rank-sum"
    assert row["p"] == pytest.approx(2 / math.comb(8, 4)) == row["smallest_p"]
    assert (row["n"], row["other_n"], row["median"]) == (4, 4, pytest.approx(0.85))


def test_volume_table(peak_flow):
    frame = cases({"A": [1.0] * 17})
    frame["reference_volume_mm3"], frame["prediction_volume_mm3"] = peak_flow[::-1]
    row = ev.agreement_of_volumes(frame).iloc[0]
    assert row["n"] == 17 and row["bias_mm3"] == pytest.approx(-2.12, abs=0.01)
    few = ev.agreement_of_volumes(frame.head(2)).iloc[0]
    assert few["n"] == 2 and math.isnan(few["bias_mm3"])


def test_every_column_is_explained():
    for columns in (ev.CASE_COLUMNS, ev.LESION_COLUMNS, ev.SUMMARY_COLUMNS, ev.VOLUME_COLUMNS, ev.SIZE_COLUMNS,
                    ev.TEST_COLUMNS, ev.RATER_COLUMNS):  # fmt: skip
        assert all(about["Description"].strip() for about in columns.values())

"""Many comparisons of predictions with references: what each is called, and what they say together. Tables in and out.

Measures of a single case are in `agreement`; here are lesions one by one and by size, summaries, agreement of volumes,
and tests of one prediction against another and of groups.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from math import comb
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage, stats

from bidsapp.image.grid import bounding_box
from bidsapp.measure.agreement import Lesions, agreement, at_least, lesions_of
from bidsapp.measure.comparisons import MINIMUM_COMPARED, compare_groups, differences, paired
from bidsapp.measure.volume_agreement import CONFIDENCE, MINIMUM_SUBJECTS, bland_altman, correlations, subject_means
from bidsapp.words import count_of

#: Differences that a signed-rank test needs before any p can be below 0.05: 2 / 2^5 = 0.0625, 2 / 2^6 = 0.031.
MINIMUM_PAIRS = 6
LESION_WORDS = ("lesion", "wmh", "hyperintens", "infarct", "stroke", "tumor", "tumour", "edema", "oedema", "metasta",
                "microbleed", "plaque", "enhanc", "necro")  # fmt: skip

WHERE = ["segmentation", "label", "prediction"]
CASE = ["participant_id", "session_id", "scan"]


@dataclass(frozen=True)
class Measure:
    """A measure of agreement.

    Attributes
    ----------
    column, short, name : str
        In the table, in headings, in full.
    formula : str
        P: voxels of the prediction, R: of the reference.
    better : str
        "higher", "lower", or "zero".
    unit : str
        "" for ratios.
    lesion_wise : bool
        Whether it counts lesions.
    reach : float or None
        Its largest value, where it has one.
    """

    column: str
    short: str
    name: str
    formula: str
    better: str
    unit: str = ""
    lesion_wise: bool = False
    reach: float | None = None


#: Akkus et al. 2017, Table 1, in its order, then what is often asked for besides.
MEASURES = (
    Measure("tpr", "TPR", "True positive rate (sensitivity)", "|P ∩ R| / |R|", "higher", reach=1),
    Measure("ppv", "PPV", "Positive predictive value (precision)", "|P ∩ R| / |P|", "higher", reach=1),
    Measure("dsc", "DSC", "Dice similarity coefficient", "2 |P ∩ R| / (|P| + |R|)", "higher", reach=1),
    Measure("vdr", "VDR", "Volume difference ratio", "||P| − |R|| / |R|", "lower"),
    Measure("hd_mm", "HD", "Hausdorff distance", "largest distance from a point of either surface to the other",
            "lower", "mm"),
    Measure("assd_mm", "ASSD", "Average symmetric surface distance",
            "mean distance from all points of both surfaces to the other", "lower", "mm"),
    Measure("lesion_tpr", "LTPR", "Lesion-wise true positive rate",
            "lesions of R that P touches / all lesions of R", "higher", lesion_wise=True, reach=1),
    Measure("lesion_ppv", "LPPV", "Lesion-wise positive predictive value",
            "lesions of P that touch R / all lesions of P", "higher", lesion_wise=True, reach=1),
    Measure("hd95_mm", "HD95", "Hausdorff distance, 95th percentile",
            "the larger of the two directed 95th percentiles of surface distances", "lower", "mm"),
    Measure("lesion_f1", "LF1", "Lesion-wise F1", "2 LTPR · LPPV / (LTPR + LPPV)", "higher", lesion_wise=True, reach=1),
    Measure("absolute_volume_difference_mm3", "|ΔV|", "Absolute volume difference", "||P| − |R||, in mm³", "lower",
            "mm^3"),
    Measure("volume_difference_mm3", "ΔV", "Volume difference", "|P| − |R|, in mm³ (positive: too much)", "zero",
            "mm^3"),
)  # fmt: skip
BY_COLUMN = {measure.column: measure for measure in MEASURES}

COUNTS: dict[str, dict[str, Any]] = {
    "reference_volume_mm3": {"Description": "Volume of the label in the reference.", "Units": "mm^3"},
    "prediction_volume_mm3": {"Description": "Volume of the label in the prediction.", "Units": "mm^3"},
    "reference_lesions": {"Description": "Lesions of the reference (26-connected) of --minimum-lesion and more."},
    "prediction_lesions": {"Description": "Lesions of the prediction (26-connected)."},
}  # fmt: skip

KEYS: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Subject, with sub-."},
    "session_id": {"Description": "Session, with ses-; n/a where there is none."},
    "scan": {"Description": "Other entities that tell cases of a session apart, such as run-1; n/a without."},
    "segmentation": {"Description": "What was compared: label-X for masks, seg-X for dsegs."},
    "label": {"Description": "Label, by the look-up table of a dseg; of a mask, its name."},
    "prediction": {"Description": "Which prediction, by --names."},
}  # fmt: skip

#: Data dictionary of evaluation.tsv, in the order of its columns.
CASE_COLUMNS: dict[str, dict[str, Any]] = {
    **KEYS,
    **{
        m.column: {"LongName": m.name, "Description": f"{m.formula}. n/a where it is not defined."}
        | ({"Units": m.unit} if m.unit else {})
        for m in MEASURES
    },
    **COUNTS,
    "reference_file": {"Description": "Path in the folder of the references; of several raters, the fused one's."},
    "prediction_file": {"Description": "Path in the folder of the prediction."},
    "problem": {"Description": "Why the case could not be compared; n/a where it was."},
}

#: Of evaluation_lesions.tsv.
LESION_COLUMNS: dict[str, dict[str, Any]] = {
    **KEYS,
    "lesion_of": {"Description": "Whose lesion it is.",
                  "Levels": {"reference": "found or missed", "prediction": "true or false positive"}},
    "lesion": {"Description": "Its number, 1 is the largest."},
    "volume_mm3": {"Description": "Its volume.", "Units": "mm^3"},
    "overlap_mm3": {"Description": "Volume of it that the other side marks as well.", "Units": "mm^3"},
    "overlap_fraction": {"Description": "overlap_mm3 / volume_mm3."},
    "found": {"Description": "yes where the other side marks any voxel of it. A prediction's lesion with no is a false "
                             "positive."},
    "touching": {"Description": "Lesions of the other side that share a voxel with it."},
    "x_mm": {"Description": "Centroid, positive to the right.", "Units": "mm"},
    "y_mm": {"Description": "Centroid, positive to the front.", "Units": "mm"},
    "z_mm": {"Description": "Centroid, positive upwards.", "Units": "mm"},
    "size": {"Description": "Class of its volume in mm3 (--size-bins)."},
}  # fmt: skip

SUBJECTS = {
    "Description": "Subjects of these cases. They are what intervals count: sessions of one are not independent."
}

#: Of evaluation_summary.tsv.
SUMMARY_COLUMNS: dict[str, dict[str, Any]] = {
    **{key: KEYS[key] for key in WHERE},
    "measure": {"Description": "Column of evaluation.tsv."},
    "n": {"Description": "Cases in which it is defined."},
    "subjects": SUBJECTS,
    "undefined": {"Description": "Cases that were compared, but in which it is not defined."},
    "median": {"Description": "Median over cases."},
    "q1": {"Description": "First quartile."},
    "q3": {"Description": "Third quartile."},
    "median_ci_low": {"Description": "95 % interval of the median by order statistics, over subjects (of several cases,"
                                     " the mean); n/a for fewer than 6."},
    "median_ci_high": {"Description": "Upper end."},
    "mean": {"Description": "Mean over subjects (of several cases, the mean)."},
    "sd": {"Description": "Standard deviation between subjects (of several cases, the mean), n - 1."},
    "mean_ci_low": {"Description": "95 % interval of the mean (Student's t, over subjects)."},
    "mean_ci_high": {"Description": "Upper end."},
    "min": {"Description": "Smallest value."},
    "max": {"Description": "Largest value."},
}  # fmt: skip

#: Of evaluation_volumes.tsv.
VOLUME_COLUMNS: dict[str, dict[str, Any]] = {
    **{key: KEYS[key] for key in WHERE},
    "n": {"Description": "Cases."},
    "subjects": SUBJECTS,
    "pearson": {"Description": "Pearson's correlation of the volumes."},
    "pearson_ci_low": {"Description": "95 % interval by Fisher's transformation, for as many pairs as subjects."},
    "pearson_ci_high": {"Description": "Upper end."},
    "spearman": {"Description": "Spearman's rank correlation."},
    "ccc": {"Description": "Lin's concordance correlation coefficient (Lin 1989, Biometrics 45:255)."},
    "ccc_ci_low": {"Description": "95 % interval by Fisher's transformation; variance of Lin 1989, corrected 2000, for "
                                  "as many pairs as subjects."},
    "ccc_ci_high": {"Description": "Upper end."},
    "icc": {"Description": "Intraclass correlation of single ratings, absolute agreement, two-way: ICC(A,1) of McGraw "
                           "and Wong 1996, Psychol Methods 1:30; ICC(2,1) of Shrout and Fleiss 1979."},
    "bias_mm3": {"Description": "Mean difference, prediction minus reference (Bland and Altman 1986, Lancet 1:307), "
                                "over subjects (of several cases, the mean).", "Units": "mm^3"},
    "bias_ci_low": {"Description": "95 % interval (Student's t, over subjects).", "Units": "mm^3"},
    "bias_ci_high": {"Description": "Upper end.", "Units": "mm^3"},
    "sd_mm3": {"Description": "Standard deviation of the differences of single cases: within and between subjects "
                              "(Bland and Altman 2007, J Biopharm Stat 17:571).", "Units": "mm^3"},
    "lower_mm3": {"Description": "Lower limit of agreement, bias - 1.96 sd.", "Units": "mm^3"},
    "lower_ci_low": {"Description": "95 % interval of the limit (Bland and Altman 1999, Stat Methods Med Res 8:135),"
                                    " for as many differences as subjects.", "Units": "mm^3"},
    "lower_ci_high": {"Description": "Upper end.", "Units": "mm^3"},
    "upper_mm3": {"Description": "Upper limit of agreement, bias + 1.96 sd.", "Units": "mm^3"},
    "upper_ci_low": {"Description": "95 % interval of the limit.", "Units": "mm^3"},
    "upper_ci_high": {"Description": "Upper end.", "Units": "mm^3"},
}  # fmt: skip

#: Of evaluation_sizes.tsv.
SIZE_COLUMNS: dict[str, dict[str, Any]] = {
    **{key: KEYS[key] for key in WHERE},
    "size": {"Description": "Class of the lesion's volume in mm3."},
    "reference_lesions": {"Description": "Lesions of the references of that size, of all cases."},
    "found": {"Description": "Those of them that the prediction touches."},
    "lesion_tpr": {"Description": "found / reference_lesions."},
    "lesion_tpr_ci_low": {"Description": "95 % interval (Wilson 1927); takes lesions of one head as independent."},
    "lesion_tpr_ci_high": {"Description": "Upper end."},
    "median_overlap": {"Description": "Median part of these lesions that is marked."},
    "prediction_lesions": {"Description": "Lesions of the predictions of that size, of all cases."},
    "true": {"Description": "Those of them that touch the reference."},
    "lesion_ppv": {"Description": "true / prediction_lesions."},
    "lesion_ppv_ci_low": {"Description": "95 % interval (Wilson 1927)."},
    "lesion_ppv_ci_high": {"Description": "Upper end."},
}

#: Of evaluation_tests.tsv.
TEST_COLUMNS: dict[str, dict[str, Any]] = {
    "comparison": {"Description": "Which against which; differences are the first minus the second."},
    "test": {"Description": "Wilcoxon signed-rank (paired) or Wilcoxon rank-sum (groups)."},
    "segmentation": KEYS["segmentation"],
    "label": KEYS["label"],
    "prediction": {"Description": "Of a comparison of groups: which prediction; n/a otherwise."},
    "measure": {"Description": "Column of evaluation.tsv."},
    "n": {"Description": "Subjects (of several sessions, the mean); of the first group."},
    "other_n": {"Description": "Subjects of the second."},
    "median": {"Description": "Median of the first."},
    "other_median": {"Description": "Median of the second."},
    "difference": {"Description": "Mean difference."},
    "ci_low": {"Description": "95 % interval (paired: Student; groups: Welch)."},
    "ci_high": {"Description": "Upper end."},
    "effect_size": {"Description": "Size of the effect."},
    "effect": {"Description": "Matched-pairs rank-biserial correlation (Kerby 2014), or Hedges' g (1981)."},
    "p": {"Description": "Two-sided p of the test; exact in small samples."},
    "p_holm": {"Description": "p after Holm 1979 over all tests of the comparison (labels and measures)."},
    "q_fdr": {"Description": "p after Benjamini and Hochberg 1995 over the same tests."},
    "smallest_p": {"Description": "Smallest p that so many subjects can give: above 0.05 no difference can be shown."},
    "note": {"Description": "Why there is no test, or what to keep in mind."},
}

#: Of evaluation_raters.tsv.
RATER_COLUMNS: dict[str, dict[str, Any]] = {
    **{key: KEYS[key] for key in (*CASE, "segmentation", "label")},
    "kind": {"Description": "What the row is about.",
             "Levels": {"rater": "one rater against the consensus", "pair": "two raters", "all": "all raters"}},
    "rater": {"Description": "Rater."},
    "other": {"Description": "The other rater of a pair."},
    "volume_mm3": {"Description": "Volume that the rater marked.", "Units": "mm^3"},
    "sensitivity": {"Description": "Against the hidden truth, estimated by STAPLE (Warfield et al. 2004)."},
    "specificity": {"Description": "As sensitivity; over the whole grid, so near 1."},
    "dsc": {"Description": "Dice coefficient: with the consensus (rater), of the pair, or mean of all pairs (all)."},
    "kappa": {"Description": "Fleiss' kappa of all raters over the voxels of the grid (Fleiss 1971)."},
}  # fmt: skip


def is_lesion(name: str) -> bool:
    """Whether the connected parts of a label are lesions to be counted, by its name.

    Examples
    --------
    >>> is_lesion("lesion"), is_lesion("WMH"), is_lesion("Gray Matter")
    (True, True, False)
    """
    return any(word in name.lower() for word in LESION_WORDS)


# --- one case ---------------------------------------------------------------------------------------------------------


def compare_masks(
    reference: np.ndarray,
    prediction: np.ndarray,
    *,
    affine: np.ndarray,
    lesion_wise: bool,
    borders_mm3: Sequence[float],
    minimum_lesion_mm3: float = 0.0,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All measures of one case, and its lesions one by one.

    Parameters
    ----------
    reference, prediction : ndarray of bool, shape (X, Y, Z)
    affine : ndarray, shape (4, 4)
        Voxels to RAS mm.
    lesion_wise : bool
        Whether connected parts are lesions.
    borders_mm3 : sequence of float
        Of the classes of lesion volumes.
    minimum_lesion_mm3 : float
        As in `agreement.agreement`.

    Returns
    -------
    row : dict
        Measures and counts of `CASE_COLUMNS`.
    lesions : list of dict
        Columns of `LESION_COLUMNS` from ``lesion_of`` on; those of the reference first, each side largest first.
    """
    size = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    found = agreement(
        reference, prediction, voxel_size_mm=size, lesion_wise=lesion_wise, minimum_lesion_mm3=minimum_lesion_mm3
    )
    if not lesion_wise:
        return asdict(found), []
    voxel_mm3 = float(size.prod())
    either = reference | prediction
    if not either.any():
        return asdict(found), []
    box = bounding_box(either, margin=0)
    start = affine @ [*(part.start for part in box), 1]
    inside = affine.copy()
    inside[:3, 3] = start[:3]
    sides = (("reference", reference[box], prediction[box], at_least(minimum_lesion_mm3 / voxel_mm3)),
             ("prediction", prediction[box], reference[box], 1))  # fmt: skip
    rows = []
    for side, mask, other, minimum in sides:
        lesions = lesions_of(mask, other, minimum_voxels=minimum)
        rows += [{"lesion_of": side} | row for row in _lesion_rows(lesions, inside, voxel_mm3, borders_mm3)]
    return asdict(found), rows


def _lesion_rows(
    lesions: Lesions, affine: np.ndarray, voxel_mm3: float, borders: Sequence[float]
) -> list[dict[str, Any]]:
    numbers = np.arange(1, len(lesions.sizes) + 1)
    if not len(numbers):
        return []
    centres = np.array(ndimage.center_of_mass(lesions.labels > 0, lesions.labels, numbers))
    places = centres @ affine[:3, :3].T + affine[:3, 3]
    names = size_classes(lesions.sizes * voxel_mm3, borders)
    return [
        {
            "lesion": int(number), "volume_mm3": size * voxel_mm3, "overlap_mm3": overlap * voxel_mm3,
            "overlap_fraction": overlap / size, "found": "yes" if overlap else "no", "touching": int(touching),
            "x_mm": place[0], "y_mm": place[1], "z_mm": place[2], "size": name,
        }
        for number, size, overlap, touching, place, name in zip(
            numbers, lesions.sizes, lesions.overlap, lesions.touching, places, names, strict=True)
    ]  # fmt: skip


def size_names(borders: Sequence[float]) -> list[str]:
    """Names of the classes of volumes.

    Examples
    --------
    >>> size_names((10, 100))
    ['<10', '10-100', '>=100']
    """
    texts = [f"{border:g}" for border in borders]
    return [f"<{texts[0]}", *(f"{a}-{b}" for a, b in pairwise(texts)), f">={texts[-1]}"]


def size_classes(volumes_mm3: np.ndarray, borders: Sequence[float]) -> list[str]:
    """Class of each volume; a volume on a border belongs to the class above it."""
    names = size_names(borders)
    # A whole number of voxels may miss the border by rounding.
    return [names[i] for i in np.searchsorted(np.asarray(borders), volumes_mm3 * (1 + 1e-9), side="right")]


# --- all cases --------------------------------------------------------------------------------------------------------


def summarise(cases: pd.DataFrame) -> pd.DataFrame:
    """Every measure over the cases, a row for each label, prediction and measure (`SUMMARY_COLUMNS`)."""
    rows = []
    for where, some in _groups(cases, WHERE):
        for column in (*BY_COLUMN, "reference_volume_mm3", "prediction_volume_mm3"):
            known = some.dropna(subset=column)
            lesion_wise = some["reference_lesions"].notna().any()
            if column in BY_COLUMN and BY_COLUMN[column].lesion_wise and not lesion_wise:
                continue
            found = _described(known[column].to_numpy(float), known["participant_id"].to_numpy())
            rows.append(where | {"measure": column} | found | {"undefined": len(some) - len(known)})
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))


def _described(values: np.ndarray, subject: np.ndarray) -> dict[str, Any]:
    """What lies in the cases, and what that tells of other subjects: sessions of one subject are not independent."""
    if not len(values):
        return {"n": 0, "subjects": 0}
    q1, median, q3 = np.percentile(values, (25, 50, 75))
    means = subject_means(values, subject)
    out: dict[str, Any] = {"n": len(values), "subjects": len(means), "median": median, "q1": q1, "q3": q3,
                           "mean": means.mean(), "min": values.min(), "max": values.max()}  # fmt: skip
    if len(means) > 1:
        sd = float(means.std(ddof=1))
        reach = stats.t.ppf(0.5 + CONFIDENCE / 2, len(means) - 1) * sd / np.sqrt(len(means))
        out |= {"sd": sd, "mean_ci_low": out["mean"] - reach, "mean_ci_high": out["mean"] + reach}
    if len(means) >= MINIMUM_PAIRS:
        interval = stats.quantile_test(means, p=0.5).confidence_interval(CONFIDENCE)
        out |= {"median_ci_low": interval.low, "median_ci_high": interval.high}
    return out


def detection_by_size(lesions: pd.DataFrame, borders: Sequence[float]) -> pd.DataFrame:
    """Lesions found, and predicted lesions that are true, by size; those of all cases together (`SIZE_COLUMNS`)."""
    rows = []
    for where, some in _groups(lesions, WHERE):
        for name in size_names(borders):
            here = some[some["size"] == name]
            marked, predicted = (here[here["lesion_of"] == side] for side in ("reference", "prediction"))
            row: dict[str, Any] = where | {"size": name}
            for part, total, hit, rate in ((marked, "reference_lesions", "found", "lesion_tpr"),
                                           (predicted, "prediction_lesions", "true", "lesion_ppv")):  # fmt: skip
                count = int((part["found"] == "yes").sum())
                row |= {total: len(part), hit: count}
                if len(part):
                    interval = stats.binomtest(count, len(part)).proportion_ci(CONFIDENCE, method="wilson")
                    row |= {rate: count / len(part), f"{rate}_ci_low": interval.low, f"{rate}_ci_high": interval.high}
            if len(marked):
                row["median_overlap"] = float(marked["overlap_fraction"].median())
            rows.append(row)
    return pd.DataFrame(rows, columns=list(SIZE_COLUMNS))


def agreement_of_volumes(cases: pd.DataFrame) -> pd.DataFrame:
    """Correlation of volumes and Bland and Altman's analysis, a row per label and prediction (`VOLUME_COLUMNS`)."""
    rows = []
    for where, some in _groups(cases, WHERE):
        known = some.dropna(subset=["reference_volume_mm3", "prediction_volume_mm3"])
        subject = known["participant_id"].to_numpy()
        subjects = len(set(subject))
        row: dict[str, Any] = where | {"n": len(known), "subjects": subjects}
        if subjects >= MINIMUM_SUBJECTS:
            r, p = (known[f"{side}_volume_mm3"].to_numpy(float) for side in ("reference", "prediction"))
            row |= correlations(r, p, subjects=subjects) | {
                f"{name}_mm3" if name in ("bias", "sd", "lower", "upper") else name: value
                for name, value in asdict(bland_altman(r, p, subject)).items()
                if name != "n"
            }
        rows.append(row)
    return pd.DataFrame(rows, columns=list(VOLUME_COLUMNS))


# --- tests ------------------------------------------------------------------------------------------------------------


def compare_predictions(cases: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Every prediction against every other, by label and measure: Wilcoxon's signed-rank test (`TEST_COLUMNS`).

    Cases of a subject are averaged first, so that what is tested is independent; only cases in which both predictions
    have the measure count. p is corrected over all tests of a pair of predictions.
    """
    rows = []
    for first, second in combinations(names, 2):
        for where, some in _groups(cases, WHERE[:2]):
            for measure in _measured(some):
                rows.append(_pair_row(where, some, (second, first), measure))
    return _corrected(rows)


def _pair_row(where: Mapping[str, str], some: pd.DataFrame, names: tuple[str, str], measure: str) -> dict[str, Any]:
    """The first of `names` against the second."""
    by_case = some.pivot_table(index=CASE, columns="prediction", values=measure, aggfunc="first", dropna=False)
    pairs = by_case.reindex(columns=names[::-1]).dropna().groupby(level="participant_id").mean().to_numpy(float)
    row: dict[str, Any] = {"comparison": f"{names[0]} against {names[1]}", "test": "Wilcoxon signed-rank"} | {
        **where, "prediction": None, "measure": measure, "n": len(pairs), "other_n": len(pairs), "note": None,
    }  # fmt: skip
    if not len(pairs):
        return row | {"note": "no subject has it in both"}
    other, one = pairs.T
    change = differences(pairs)
    moved = change[change != 0]
    row |= {"median": float(np.median(one)), "other_median": float(np.median(other)),
            "difference": float((one - other).mean())}  # fmt: skip
    if not len(moved):
        return row | {"note": "no difference in any subject"}
    ranks = stats.rankdata(np.abs(moved))
    row |= {
        "effect_size": float((np.sign(moved) * ranks).sum() / ranks.sum()), "effect": "rank-biserial correlation",
        "smallest_p": 2.0 ** (1 - len(moved)),
    }  # fmt: skip
    if len(pairs) >= MINIMUM_COMPARED:
        found = paired(pairs)
        row |= {"ci_low": found["ci_low"], "ci_high": found["ci_high"], "p": found["p_rank"]}
    if len(moved) < MINIMUM_PAIRS:
        row["note"] = f"{count_of(len(moved), 'difference')}: at least {MINIMUM_PAIRS} are needed for any p below 0.05"
    return row


def compare_groups_of_subjects(cases: pd.DataFrame, groups: pd.Series, names: Sequence[str]) -> pd.DataFrame:
    """Every group of subjects against the first, by prediction, label and measure: Wilcoxon's rank-sum test.

    Parameters
    ----------
    cases : DataFrame
    groups : Series
        Group by ``participant_id``.
    names : sequence of str
        Predictions.
    """
    rows = []
    for where, some in _groups(cases, WHERE):
        if where["prediction"] not in names:
            continue
        measures = _measured(some)
        subjects = some.groupby("participant_id")[measures].mean()
        frame = subjects.join(groups.rename("group"), how="inner").dropna(subset="group").reset_index()
        frame["group"] = pd.Categorical(frame["group"].astype(str))
        if len(frame["group"].cat.categories) < 2:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that are all but equal in a group
            found = compare_groups(frame, "group", measures)
        for one in found.to_dict("records"):
            n, m = int(one["n"]), int(one["reference_n"])
            smallest = 2 / comb(n + m, n)
            rows.append({
                "comparison": one["comparison"].removeprefix("group: "), "test": "Wilcoxon rank-sum", **where,
                "measure": one["column"], "n": n, "other_n": m, "median": one["median"],
                "other_median": one["reference_median"], "difference": one["difference"], "ci_low": one["ci_low"],
                "ci_high": one["ci_high"], "effect_size": one["effect_size"], "effect": one["effect"],
                "p": one["p_rank"], "smallest_p": smallest,
                "note": "too few subjects for any p below 0.05" if smallest > 0.05 else None,
            })  # fmt: skip
    return _corrected(rows)


def _corrected(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The tests as a table, with p after Holm and after Benjamini and Hochberg in each comparison (and prediction)."""
    from statsmodels.stats.multitest import multipletests

    table = pd.DataFrame(rows, columns=list(TEST_COLUMNS))
    family = table["comparison"] + "\t" + table["prediction"].fillna("").astype(str)
    tested = table["p"].notna()
    for some in table[tested].groupby(family[tested], sort=False).groups.values():
        p = table.loc[some, "p"].to_numpy(float)
        table.loc[some, "p_holm"] = multipletests(p, method="holm")[1]
        table.loc[some, "q_fdr"] = multipletests(p, method="fdr_bh")[1]
    return table


def _measured(cases: pd.DataFrame) -> list[str]:
    return [column for column in BY_COLUMN if cases[column].notna().any()]


def _groups(table: pd.DataFrame, by: Sequence[str]) -> list[tuple[dict[str, str], pd.DataFrame]]:
    """Parts of a table in order of appearance."""
    if table.empty:
        return []
    return [
        (dict(zip(by, map(str, key), strict=True)), some)
        for key, some in table.groupby(list(by), sort=False, dropna=False)
    ]

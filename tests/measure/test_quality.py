"""Quality control by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bidsapp.measure.image_quality import SCAN_COLUMNS
from bidsapp.measure.quality import (
    QC_COLUMNS,
    RANGES,
    flags,
    mask_on_edge,
    model_agreement,
    qc_row,
    side_difference_percent,
)
from bidsapp.measure.volumes import VOLUME_COLUMNS, tissue_volumes
from tests.measure.two_tissues import SHAPE, half


def test_mask_on_edge():
    inside = np.zeros(SHAPE, bool)
    inside[1:6, 1:7, 1:8] = True
    assert mask_on_edge(inside) == 0
    cut = np.zeros(SHAPE, bool)
    cut[2:5, 2:5, 6:9] = True  # 3 x 3 x 3 with its top plane on the edge: 26 surface voxels, 9 of them there
    assert mask_on_edge(cut) == pytest.approx(9 / 26)
    assert math.isnan(mask_on_edge(np.zeros(SHAPE, bool)))


def ball(radius: float = 9.0) -> np.ndarray:
    return np.linalg.norm(np.indices((26, 26, 26)) - 12.5, axis=0) < radius


def test_a_brain_is_cut_where_the_scan_goes_blank(rng):
    """The lower third of a head, left blank by a resampling; the mask runs on into a blank plane."""
    image = rng.uniform(1, 2, (26, 26, 26))
    whole = mask_on_edge(ball(), image)
    image[:, :, :9] = 0
    cut = ball()
    cut[:, :, :8] = False
    assert whole == mask_on_edge(cut) == 0
    assert mask_on_edge(cut, image) > 0.2


def test_a_stripped_brain_is_not_cut(rng):
    image = np.where(ball(), rng.uniform(1, 2, (26, 26, 26)), 0)
    assert mask_on_edge(ball(), image) == 0
    assert mask_on_edge(ball(9.6), image) == 0  # a mask that is a little too large


@pytest.fixture
def session(image) -> dict:
    posteriors = np.stack([half(True), half(False), np.zeros(SHAPE)]).astype(float)
    mask = half(True) | half(False)
    volumes = tissue_volumes(posteriors, np.zeros(SHAPE, bool), voxel_volume_mm3=4200.0, brain_mask=mask, tiv_mm3=1.2e6)
    return {
        "image": image, "brain_mask": mask, "posteriors": posteriors, "volumes": volumes,
        "mask_on_edge": mask_on_edge(mask),
    }  # fmt: skip


def test_row(session):
    row = qc_row(**session, registration_similarity=0.9)
    assert list(row) == list(QC_COLUMNS)
    assert row["cnr"] == pytest.approx(30 / math.sqrt(5))
    assert row["gm_to_wm"] == pytest.approx(1)
    assert row["brain_mask_to_tiv"] == pytest.approx(288 * 4200 / 1.2e6)
    assert row["mask_components"] == 1
    assert row["registration_similarity"] == 0.9
    # the box fills the grid, and all of it is parenchyma; nothing else is wrong
    assert [flag.split(" = ")[0] for flag in str(row["flags"]).split("; ")] == [
        "brain_parenchymal_fraction",
        "mask_on_edge",
    ]


def test_every_scan_has_columns_of_its_own(session):
    row = qc_row(**session, scans={"T1w": {"cnr": 2.0, "slice_mm": 1.0}, "FLAIR": {"cnr": 0.7}})
    assert list(row) == list(QC_COLUMNS)
    assert (row["t1w_cnr"], row["flair_cnr"], row["t1w_slice_mm"]) == (2.0, 0.7, 1.0)
    assert row["t2w_cnr"] is None and row["flair_slice_mm"] is None
    assert row["cnr"] == qc_row(**session)["cnr"]


def test_lesions_belong_to_the_tissues_whose_ratio_is_told(session):
    volumes = {"gm_mm3": 300.0, "wm_mm3": 200.0}  # lesions were not looked for
    assert qc_row(**{**session, "volumes": volumes})["gm_to_wm"] == pytest.approx(1.5)
    volumes |= {"gm_with_lesions_mm3": 300.0, "wm_with_lesions_mm3": 250.0}
    assert qc_row(**{**session, "volumes": volumes})["gm_to_wm"] == pytest.approx(1.2)


def test_row_without_what_cannot_be_measured(session):
    volumes = tissue_volumes(session["posteriors"], None, voxel_volume_mm3=4200.0, separable=False)
    row = qc_row(**{**session, "volumes": volumes}, separable=False)
    missing = {name for name, value in row.items() if value is None}
    compared = {"agreement_gm", "agreement_wm", "agreement_csf", "agreement_lesion"}
    assert missing - compared - set(SCAN_COLUMNS) == {
        "cnr", "cjv", "snr_gm", "snr_wm", "gm_to_wm", "brain_mask_to_tiv", "registration_similarity",
        "side_difference_percent",
    }  # fmt: skip
    assert compared | set(SCAN_COLUMNS) <= missing


def test_the_sides_that_differ_most():
    even = {
        "left_thalamus_mm3": 6100.0,
        "right_thalamus_mm3": 5900.0,
        "left_putamen_mm3": 0.0,
        "right_putamen_mm3": 0.0,
    }
    assert side_difference_percent(even) == pytest.approx(100 / 30)
    infarct = {**even, "left_caudate_mm3": 1500.0, "right_caudate_mm3": 2500.0}
    assert side_difference_percent(infarct) == pytest.approx(50)
    assert side_difference_percent({"left_thalamus_mm3": 6100.0, "right_thalamus_mm3": None}) is None
    assert flags({"side_difference_percent": 50.0})[0].startswith("side_difference_percent = 50, above 25: left and")


def test_flags_say_what_and_why():
    good = {"brain_mm3": 1.2e6, "tiv_mm3": 1.5e6, "gm_to_wm": 1.3, "cnr": 3.0, "mask_components": 1}
    assert flags(good) == []
    assert flags({**good, "brain_mm3": 5.21e5}) == [
        "brain_mm3 = 5.21e+05, below 7e+05: brain volume unusual for an adult"
    ]
    assert flags({**good, "gm_to_wm": 9.0})[0].startswith("gm_to_wm = 9, above 2.2")
    assert len(flags({**good, "mask_components": 0, "cnr": 0.2})) == 2
    assert flags({"brain_mm3": None, "cnr": float("nan"), "flags": "none"}) == []


def test_ranges_are_sound():
    known = set(QC_COLUMNS) | set(VOLUME_COLUMNS)
    for limit in RANGES:
        assert limit.name in known
        assert limit.low <= limit.high
        assert limit.meaning and limit.source


def test_models_that_agree_on_half_the_white_matter() -> None:
    """Nine voxels: 3 GM, 4 WM, 2 CSF; the other model calls two of the WM voxels GM; a voxel outside is not counted."""
    first = np.eye(3)[:, [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]].reshape(3, 1, 2, 5)
    second = np.eye(3)[:, [0, 0, 0, 0, 0, 1, 1, 2, 2, 0]].reshape(3, 1, 2, 5)
    second[:, 0, 1, 4] = 0
    lesions = np.zeros((2, 1, 2, 5), bool)
    lesions[0, 0, 0, :3] = lesions[1, 0, 0, 2:4] = True
    found = model_agreement(first, second, lesions=(lesions[0], lesions[1]))
    assert found["agreement_gm"] == pytest.approx(2 * 3 / (3 + 5))
    assert found["agreement_wm"] == pytest.approx(2 * 2 / (4 + 2))
    assert found["agreement_csf"] == 1
    assert found["agreement_lesion"] == pytest.approx(2 * 1 / (3 + 2))
    unsure = model_agreement(first, second, separable=False)
    assert unsure == {"agreement_gm": None, "agreement_wm": None, "agreement_csf": 1, "agreement_lesion": None}


def test_strong_disagreement_is_a_flag() -> None:
    assert flags({"agreement_gm": 0.55}) == [
        "agreement_gm = 0.55, below 0.6: the two tissue models disagree on gray matter"
    ]


def test_lesion_models_that_disagree_are_a_flag_only_where_there_is_much_to_agree_on() -> None:
    """A Dice of few voxels says little: of 0.9 ml of true lesions it was 0.06."""
    assert flags({"agreement_lesion": 0.13, "lesion_mm3": 4300.0})[0].startswith("agreement_lesion = 0.13, below 0.3")
    for few in ({"lesion_mm3": 900.0}, {"lesion_mm3": float("nan")}, {"lesion_mm3": None}, {}):
        assert flags({"agreement_lesion": 0.13, **few}) == []
    assert flags({"agreement_lesion": 0.5, "lesion_mm3": 4300.0}) == []

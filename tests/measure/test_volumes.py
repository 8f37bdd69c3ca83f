"""Volumes by hand, on a brain of a few voxels."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.measure.volumes import (
    CORTEX_COLUMNS,
    LOBE_COLUMNS,
    STRUCTURE_COLUMNS,
    VOLUME_COLUMNS,
    cortex_volumes,
    estimate_tiv,
    exclude_lesions,
    lobe_volumes,
    structure_volumes,
    tissue_volumes,
)

SHAPE = (7, 8, 9)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def brain() -> dict[str, np.ndarray]:
    """10 voxels of GM, 20 of WM, 5 half GM half CSF, 5 of CSF, 6 of lesion in 3 pieces; 46 in the mask."""
    posteriors, lesion = np.zeros((3, 504)), np.zeros(504, bool)
    posteriors[0, :10] = posteriors[1, 10:30] = posteriors[2, 35:40] = 1
    posteriors[0, 30:35] = posteriors[2, 30:35] = 0.5
    lesion[40:42] = lesion[44:48] = True
    mask = posteriors.sum(axis=0) + lesion > 0
    return {"posteriors": posteriors.reshape(3, *SHAPE), "lesion": lesion.reshape(SHAPE), "mask": mask.reshape(SHAPE)}


def test_volumes_by_hand(brain):
    # lesion voxels 40, 41, 44 end a row of nine, 45-47 start the next: three pieces
    found = tissue_volumes(
        brain["posteriors"], brain["lesion"], voxel_volume_mm3=2.0, brain_mask=brain["mask"], tiv_mm3=200.0
    )
    assert list(found) == list(VOLUME_COLUMNS)
    assert found == pytest.approx(
        {
            "tiv_mm3": 200,
            "brain_mask_mm3": 92,
            "brain_mm3": 2 * (12.5 + 20 + 6),
            "gm_mm3": 25,
            "wm_mm3": 40,
            "csf_mm3": 15,
            "lesion_mm3": 12,
            "gm_with_lesions_mm3": 25,
            "wm_with_lesions_mm3": 52,
            "brain_parenchymal_fraction": 77 / 92,
            "lesion_load_percent_tiv": 6.0,
            "lesion_load_percent_wm": 100 * 12 / 52,
            "lesion_count": 3,
        }
    )


def test_priors_put_lesions_back_where_they_lie(brain):
    priors = np.zeros((3, 504))
    priors[1] = 1
    priors[:, 40] = (0.6, 0.3, 0.1)  # cortex
    priors[:, 41] = (0.45, 0.35, 0.2)  # more GM than WM, yet less than half: at the ventricle, say
    priors[:, 44] = 0  # outside the template
    found = tissue_volumes(brain["posteriors"], brain["lesion"], voxel_volume_mm3=2.0, priors=priors.reshape(3, *SHAPE))
    assert found["gm_with_lesions_mm3"] == pytest.approx(25 + 2)
    assert found["wm_with_lesions_mm3"] == pytest.approx(40 + 10)
    assert found["gm_with_lesions_mm3"] + found["wm_with_lesions_mm3"] == pytest.approx(found["brain_mm3"])
    assert found["tiv_mm3"] is found["brain_mask_mm3"] is found["brain_parenchymal_fraction"] is None


@pytest.mark.parametrize("classes", [2, 3])
def test_not_separable_gives_the_brain_but_no_guess(brain, classes):
    p = brain["posteriors"]
    posteriors = p if classes == 3 else np.stack([p[0] + p[1], p[2]])
    found = tissue_volumes(posteriors, brain["lesion"], voxel_volume_mm3=2.0, separable=False, tiv_mm3=200.0)
    missing = {name for name, value in found.items() if value is None}
    assert missing == {
        "brain_mask_mm3", "gm_mm3", "wm_mm3", "gm_with_lesions_mm3", "wm_with_lesions_mm3",
        "brain_parenchymal_fraction", "lesion_load_percent_wm",
    }  # fmt: skip
    assert (found["brain_mm3"], found["csf_mm3"], found["lesion_mm3"]) == pytest.approx((77, 15, 12))


def test_lesions_not_looked_for_are_not_zero(brain):
    found = tissue_volumes(brain["posteriors"], None, voxel_volume_mm3=2.0, tiv_mm3=200.0)
    assert {name for name, value in found.items() if value is None} >= {
        "lesion_mm3", "lesion_count", "lesion_load_percent_tiv", "gm_with_lesions_mm3", "wm_with_lesions_mm3",
    }  # fmt: skip
    assert found["brain_mm3"] == pytest.approx(65)
    none = tissue_volumes(brain["posteriors"], np.zeros(SHAPE, bool), voxel_volume_mm3=2.0, tiv_mm3=200.0)
    assert (none["lesion_mm3"], none["lesion_count"], none["lesion_load_percent_wm"]) == (0, 0, 0)


def test_tissue_gives_way_to_lesions(rng):
    posteriors = rng.dirichlet((1, 1, 1), SHAPE).transpose(3, 0, 1, 2)
    lesion = rng.random(SHAPE) * (rng.random(SHAPE) < 0.5)
    excluded = exclude_lesions(posteriors, lesion)
    assert (excluded.sum(axis=0) + lesion) == pytest.approx(np.ones(SHAPE), abs=0.006)
    assert np.array_equal(exclude_lesions(excluded, lesion), excluded)
    full = tissue_volumes(posteriors, lesion, voxel_volume_mm3=1.0)
    assert full["brain_mm3"] + full["csf_mm3"] == pytest.approx(504, rel=1e-3)
    hard = exclude_lesions(posteriors, lesion > 0.5)
    assert not hard[:, lesion > 0.5].any()


def test_large_sums_keep_their_precision():
    posteriors = np.full((3, 200, 200, 100), 1 / 3, np.float32)
    found = tissue_volumes(posteriors, None, voxel_volume_mm3=1.0)
    assert found["gm_mm3"] == pytest.approx(4e6 / 3, rel=1e-6)


def test_estimated_tiv():
    shear = np.array([[1.1, 0.2, 0.1, 5], [0, 0.9, 0.3, -7], [0, 0, 1.2, 9], [0, 0, 0, 1]])
    assert estimate_tiv(shear, 1000.0) == pytest.approx(1.1 * 0.9 * 1.2 * 1000)
    assert estimate_tiv(np.diag([-1.0, 1, 1]) @ shear[:3, :3], 1000.0) == pytest.approx(1188)
    for wrong in (np.zeros((4, 4)), np.full((4, 4), np.nan)):
        with pytest.raises(ValueError, match="no inverse"):
            estimate_tiv(wrong, 1000.0)
    with pytest.raises(ValueError, match="shape"):
        estimate_tiv(np.eye(2), 1000.0)


def test_wrong_input_is_refused(brain):
    p, lesion = brain["posteriors"], brain["lesion"]
    with pytest.raises(ValueError, match="differ in shape"):
        tissue_volumes(p, lesion[1:], voxel_volume_mm3=1.0)
    with pytest.raises(ValueError, match="differ in shape"):
        tissue_volumes(p, lesion, voxel_volume_mm3=1.0, brain_mask=lesion[1:])
    with pytest.raises(ValueError, match="Posteriors have shape"):
        tissue_volumes(p.transpose(1, 2, 3, 0), lesion, voxel_volume_mm3=1.0)
    with pytest.raises(ValueError, match="positive"):
        tissue_volumes(p, lesion, voxel_volume_mm3=0.0)
    with pytest.raises(ValueError, match="NaN"):
        tissue_volumes(np.where(p > 0.9, np.nan, p), lesion, voxel_volume_mm3=1.0)
    with pytest.raises(ValueError, match="separable"):
        tissue_volumes(p[:2], lesion, voxel_volume_mm3=1.0)
    with pytest.raises(ValueError, match="Priors"):
        tissue_volumes(p, lesion, voxel_volume_mm3=1.0, priors=p[:, 1:])


def test_every_column_is_described():
    assert all({"LongName", "Description"} <= set(entry) for entry in VOLUME_COLUMNS.values())
    assert all(VOLUME_COLUMNS[name]["Units"] == "mm^3" for name in VOLUME_COLUMNS if name.endswith("_mm3"))


def test_structures_by_hand():
    """3 voxels of thalamus left and 2 of the brain stem; CSF outside the brain is no structure of it."""
    labels = np.array([10] * 3 + [16] * 2 + [24] * 3)
    found = structure_volumes(labels.reshape(2, 2, 2), voxel_volume_mm3=2.0)
    assert list(found) == list(STRUCTURE_COLUMNS) and len(found) == 14 * 2 + 3
    assert {name: volume for name, volume in found.items() if volume} == {"left_thalamus_mm3": 6, "brain_stem_mm3": 4}


def test_cortical_regions_and_lobes_by_hand():
    """3 voxels of precuneus and 2 of the cuneus left, 5 of the insula right; white matter and lesions do not count."""
    labels = np.array([1025] * 3 + [1005] * 2 + [2035] * 5 + [2, 41, 77, 0])
    regions = cortex_volumes(labels.reshape(2, 7, 1), voxel_volume_mm3=2.0)
    assert list(regions) == list(CORTEX_COLUMNS) and len(regions) == 68
    found = {name: volume for name, volume in regions.items() if volume}
    assert found == {"left_precuneus_mm3": 6, "left_cuneus_mm3": 4, "right_insula_mm3": 10}
    lobes = lobe_volumes(regions)
    assert list(lobes) == list(LOBE_COLUMNS) and len(lobes) == 10
    assert {name: volume for name, volume in lobes.items() if volume} == {
        "left_parietal_cortex_mm3": 6, "left_occipital_cortex_mm3": 4, "right_insular_cortex_mm3": 10
    }  # fmt: skip
    every = dict.fromkeys(CORTEX_COLUMNS, 1.0)
    assert sum(lobe_volumes(every).values()) == 68, "each region belongs to one lobe"

"""The mean of two opinions, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.models.consensus import (
    LESION_SEED,
    LESION_THRESHOLD,
    between_ventricles,
    mean_lesions,
    mean_tissues,
    redraw_cortex,
    without_septum,
)


def test_mean_of_tissues() -> None:
    """Two voxels seen by both, one by the network alone, one outside the mask, one seen by none."""
    network = np.array([[0.8, 0, 0.5, 1, 0], [0.2, 0.4, 0.5, 0, 0], [0, 0.6, 0, 0, 0]]).reshape(3, 5, 1, 1)
    mixture = np.array([[0.4, 0, 0, 1, 0], [0.6, 0.8, 0, 0, 0], [0, 0.2, 0, 0, 0]]).reshape(3, 5, 1, 1)
    mask = np.array([True, True, True, False, True]).reshape(5, 1, 1)
    found = mean_tissues(network, mixture, mask)[:, :, 0, 0]
    expected = np.array([[0.6, 0, 0.5, 0, 0], [0.4, 0.6, 0.5, 0, 0], [0, 0.4, 0, 0, 0]])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_cortex_is_as_thick_as_the_tissues_have_it() -> None:
    """Along a line from fluid into white matter; a voxel of grey matter apart from the cortex is no cortex."""
    fluid, cortex, white, ventricle = 24, 42, 41, 43
    before = np.array([0, fluid, fluid, cortex, cortex, white, white, white, white, ventricle])
    likeliest = [-1, 0, 0, 2, 0, 0, 0, 1, 0, 0]  # -1: outside the brain
    tissues = np.array([[index == tissue for index in likeliest] for tissue in range(3)], np.float32)
    after = redraw_cortex(before.reshape(10, 1, 1), tissues.reshape(3, 10, 1, 1)).ravel()
    assert after.tolist() == [0, fluid, fluid, fluid, cortex, cortex, white, white, white, ventricle]
    tissues[:, 4] = 0, 1, 0
    after = redraw_cortex(before.reshape(10, 1, 1), tissues.reshape(3, 10, 1, 1)).ravel()
    assert after.tolist() == [0, fluid, fluid, fluid, white, cortex, white, white, white, ventricle]


def test_where_no_tissue_is_known_the_structures_stay() -> None:
    before = np.arange(8).reshape(2, 2, 2)
    assert np.array_equal(redraw_cortex(before, np.zeros((3, 2, 2, 2))), before)


def test_each_side_and_the_cerebellum_keep_their_own() -> None:
    before = np.array([2, 3, 8, 7, 0, 41, 42, 47, 46]).reshape(9, 1, 1)
    tissues = np.zeros((3, 9, 1, 1), np.float32)
    tissues[0] = 1  # all of it grey
    after = redraw_cortex(before, tissues).ravel()
    assert after.tolist() == [3, 3, 8, 8, 0, 42, 42, 47, 47]


def test_a_lesion_needs_one_sure_opinion_and_some_of_the_other() -> None:
    mean = mean_lesions(np.array([0.6, 0.7, 0.55, 0.06]), np.array([0.0, 0.4, 0.55, 0.7]))
    assert mean == pytest.approx([0.35, 0.55, 0.55, 0.38])
    assert (mean > LESION_THRESHOLD).tolist() == [False, True, True, False]


def test_what_the_network_is_all_but_sure_of_stays_a_lesion_whatever_the_other_says() -> None:
    mean = mean_lesions(np.array([0.9, 0.9]), np.array([0.0, 1.0]))
    assert mean == pytest.approx([0.65, 0.95])
    assert (mean > LESION_SEED).all()


def test_what_the_network_is_sure_is_no_lesion_is_none_however_bright() -> None:
    mean = mean_lesions(np.array([0.04, 0.0, 0.06]), np.array([1.0, 0.9, 1.0]))
    assert mean == pytest.approx([0.04, 0.0, 0.53])


@pytest.fixture
def structures() -> np.ndarray:
    """Left ventricle at 5 to 7, right one at 14 to 16, 6 voxels apart, for z below 5; white matter all around."""
    out = np.full((24, 10, 10), 2, np.int32)
    out[5:8, 2:8, :5], out[14:17, 2:8, :5] = 4, 43
    return out


def test_between_the_ventricles(structures: np.ndarray) -> None:
    found = between_ventricles(structures, widest=6)
    expected = np.zeros(structures.shape, bool)
    expected[8:14, 2:8, :5] = True
    assert np.array_equal(found, expected)
    assert not between_ventricles(structures, widest=5).any()
    assert not between_ventricles(structures[::-1], widest=6).any()  # sides taken for one another


def test_septum_is_no_lesion_but_lesions_beside_and_above_the_ventricles_are(structures: np.ndarray) -> None:
    septum, callosum, aside = (np.zeros(structures.shape, bool) for _ in range(3))
    septum[10:12, 3, 2:5] = True
    callosum[10:12, 6, 4:8] = True  # a quarter of it reaches down between them
    aside[18:21, 3:5, 2] = True
    found = without_septum(septum | callosum | aside, structures, voxel_width_mm=1.0)
    assert np.array_equal(found, callosum | aside)
    assert np.array_equal(without_septum(septum, structures, voxel_width_mm=3.0), septum)  # 18 mm apart

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.measure.raters import fleiss_kappa, majority, pairwise_dice, staple

SHAPE = (7, 8, 9)


def noisy(truth: np.ndarray, rng: np.random.Generator, p: float, q: float) -> np.ndarray:
    draw = rng.random(truth.shape)
    return np.where(truth, draw < p, draw >= q)


@pytest.fixture
def truth() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[1:5, 2:6, 2:7] = True
    return mask


def test_raters_of_one_mind(truth):
    found = staple([truth, truth, truth])
    assert (found.mask == truth).all()
    assert found.sensitivity == pytest.approx((1, 1, 1)) and found.specificity == pytest.approx((1, 1, 1))
    assert found.prior == pytest.approx(truth.mean())


def test_two_of_one_mind_and_a_careful_third_by_hand():
    # 20 voxels: A = B mark 10, C marks 4 of them. The fixed point by hand: the truth is what A and B mark, so
    # p = (1, 1, 4/10), q = (1, 1, 1): with these, W is 1 where A and B marked (whatever C did) and 0 elsewhere.
    a = np.zeros((20, 1, 1), bool)
    a[:10] = True
    c = np.zeros_like(a)
    c[:4] = True
    found = staple([a, a, c])
    assert (found.mask == a).all()
    assert found.sensitivity == pytest.approx((1, 1, 0.4), abs=1e-6)
    assert found.specificity == pytest.approx((1, 1, 1), abs=1e-6)
    assert found.prior == pytest.approx(24 / 60)


def test_the_truth_is_found_behind_known_errors(rng):
    truth = rng.random((40, 41, 42)) < 0.3
    known = [(0.95, 0.99), (0.7, 0.97), (0.85, 0.9)]
    found = staple([noisy(truth, rng, p, q) for p, q in known])
    assert found.sensitivity == pytest.approx([p for p, _ in known], abs=0.02)
    assert found.specificity == pytest.approx([q for _, q in known], abs=0.01)
    worst = max((noisy(truth, rng, p, q) != truth).mean() for p, q in known[:1])
    assert (found.mask != truth).mean() < worst


@pytest.mark.parametrize("raters", [2, 3, 4])
def test_against_itk(rng, truth, raters):
    sitk = pytest.importorskip("SimpleITK")
    masks = [noisy(truth, rng, 0.8 + 0.04 * i, 0.97 - 0.02 * i) for i in range(raters)]
    found = staple(masks)
    theirs = sitk.STAPLEImageFilter()
    theirs.SetForegroundValue(1)
    theirs.SetMaximumIterations(10_000)
    theirs.SetConfidenceWeight(1.0)
    weight = sitk.GetArrayFromImage(theirs.Execute([sitk.GetImageFromArray(m.astype(np.uint8)) for m in masks]))
    near = 1e-6 if raters > 2 else 2e-3  # two raters do not determine it: ITK stops on the way
    assert found.sensitivity == pytest.approx(theirs.GetSensitivity(), abs=near)
    assert found.specificity == pytest.approx(theirs.GetSpecificity(), abs=near)
    assert ((weight >= 0.5) == found.mask).all()


def test_nobody_or_everybody_marks_anything():
    none = staple([np.zeros(SHAPE, bool)] * 3)
    assert not none.mask.any() and np.isnan(none.sensitivity).all() and none.specificity == (1, 1, 1)
    every = staple([np.ones(SHAPE, bool)] * 2)
    assert every.mask.all() and every.sensitivity == (1, 1) and np.isnan(every.specificity).all()


def test_majority_is_more_than_half():
    votes = np.array([[1, 1, 0, 0], [1, 0, 0, 1], [0, 1, 0, 0]], bool).reshape(3, 4, 1, 1)
    assert majority(votes).ravel().tolist() == [True, True, False, False]
    assert majority(votes[:2]).ravel().tolist() == [True, False, False, False]  # a tie is no majority


def test_pairwise_dice_by_hand(truth):
    a, b = np.zeros((10, 1, 1), bool), np.zeros((10, 1, 1), bool)
    a[:4], b[2:8] = True, True  # 4 and 6 voxels, 2 shared
    table = pairwise_dice([a, b, np.zeros_like(a)])
    assert table[0, 1] == table[1, 0] == pytest.approx(4 / 10)
    assert table[0, 0] == 1 and table[0, 2] == 0 and np.isnan(table[2, 2])


def test_kappa_against_statsmodels(rng, truth):
    from statsmodels.stats.inter_rater import fleiss_kappa as theirs

    masks = [noisy(truth, rng, 0.8, 0.95) for _ in range(4)]
    votes = np.sum(masks, axis=0).ravel()
    assert fleiss_kappa(masks) == pytest.approx(theirs(np.stack([votes, 4 - votes], axis=1)), abs=1e-12)
    assert fleiss_kappa([truth, truth]) == 1
    assert np.isnan(fleiss_kappa([~truth & truth, truth & ~truth]))


def test_kappa_of_much_background_is_near_the_mean_dice(rng, truth):
    masks = [np.pad(noisy(truth, rng, 0.8, 0.95), 60) for _ in range(3)]
    pairs = pairwise_dice(masks)[np.triu_indices(3, 1)]
    assert fleiss_kappa(masks) == pytest.approx(pairs.mean(), abs=0.01)


def test_wrong_input_is_refused(truth):
    with pytest.raises(ValueError, match="2 to 16 raters"):
        staple([truth])
    with pytest.raises(ValueError, match="differ in shape"):
        staple([truth, truth[1:]])

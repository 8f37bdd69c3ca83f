"""Published examples, and results by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bidsapp.measure.volume_agreement import bland_altman, correlations, icc_agreement, lins_concordance


def test_bland_altman_of_1986(peak_flow):
    wright, mini = peak_flow
    found = bland_altman(mini, wright, np.arange(17))
    assert found.n == 17
    assert found.bias == pytest.approx(-2.1, abs=0.05)
    assert found.sd == pytest.approx(38.8, abs=0.05)
    assert (found.bias_ci_low, found.bias_ci_high) == pytest.approx((-22.0, 17.8), abs=0.1)
    # There the limits are two standard deviations away: -79.7 and 75.5.
    two = [found.bias + 2 * (limit - found.bias) / 1.959964 for limit in (found.lower, found.upper)]
    assert two == pytest.approx([-79.7, 75.5], abs=0.1)
    # The interval of a limit: -114.3 to -45.1, that is 34.6 to either side.
    assert (found.lower_ci_high - found.lower_ci_low) / 2 == pytest.approx(34.6, abs=0.3)
    assert (found.upper_ci_high - found.upper) == pytest.approx(found.lower - found.lower_ci_low)


def test_correlation_of_1986(peak_flow):
    found = correlations(*peak_flow, subjects=17)
    assert found["pearson"] == pytest.approx(0.94, abs=0.005)  # as printed there
    assert found["ccc"] <= found["pearson"]
    assert found["ccc_ci_low"] < found["ccc"] < found["ccc_ci_high"]


def test_icc_of_shrout_and_fleiss():
    # Shrout and Fleiss 1979, table 2: six targets, four judges; ICC(2,1) = 0.29 there.
    ratings = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
    assert icc_agreement(ratings) == pytest.approx(0.29, abs=0.005)


def test_concordance_by_hand():
    # x = 1, 2, 3; y = x + 1: means 2 and 3, variances and covariance 2/3: 4/3 / (4/3 + 1) = 4/7.
    x = np.array([1.0, 2.0, 3.0])
    assert lins_concordance(x, x + 1, subjects=3)[0] == pytest.approx(4 / 7)
    assert np.isnan(lins_concordance(x, x + 1, subjects=3)[1:]).all()  # three subjects have no interval
    assert lins_concordance(x, x, subjects=3)[0] == 1
    assert lins_concordance(x, -x + 4, subjects=3)[0] == pytest.approx(-1)


def test_interval_of_the_concordance_covers_the_truth(rng):
    cover = []
    for _ in range(300):
        x = rng.standard_normal(60)
        y = x + 0.5 * rng.standard_normal(60) + 0.2
        _, low, high = lins_concordance(x, y, subjects=60)
        cover.append(low < 2 / (1 + 1.25 + 0.04) < high)
    assert 0.91 < np.mean(cover) <= 0.99


def test_equal_volumes_have_no_correlation():
    assert all(math.isnan(v) for v in correlations(np.ones(4), np.arange(4.0), subjects=4).values())

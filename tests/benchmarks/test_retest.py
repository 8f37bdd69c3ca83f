from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.retest import as_markdown, compare, from_minc


def test_a_minc_volume_keeps_its_place() -> None:
    """Axes in the order x, z, y; x runs to the left, from +5 mm in steps of 2; z is tilted."""
    axes = {
        "xspace": {"start": 5, "space_length": 2, "step": -2, "direction_cosines": [1, 0, 0]},
        "zspace": {"start": 3, "space_length": 3, "step": 1, "direction_cosines": [0, 0.6, 0.8]},
        "yspace": {"start": -1, "space_length": 4, "step": 1, "direction_cosines": [0, 0.8, -0.6]},
    }
    image = from_minc({"order": ["xspace", "zspace", "yspace"], **axes}, bytes(range(24)))
    assert image.shape == (2, 3, 4)
    assert np.asarray(image.dataobj)[1, 2, 3] == 23
    start = 5 * np.array([1, 0, 0]) + 3 * np.array([0, 0.6, 0.8]) - np.array([0, 0.8, -0.6])
    np.testing.assert_allclose(image.affine @ [0, 0, 0, 1], [*start, 1])
    np.testing.assert_allclose(image.affine @ [1, 1, 0, 1], [*(start + np.array([-2, 0.6, 0.8])), 1])


def test_differences_are_of_the_mean_and_not_of_what_is_tiny() -> None:
    first = pd.Series({"session_id": "ses-1", "gm_mm3": 99_000.0, "lesion_mm3": 0.0})
    table = compare(first, pd.Series({"session_id": "ses-2", "gm_mm3": 101_000.0, "lesion_mm3": 20.0}))
    assert table["volume"].tolist() == ["gm", "lesion"]
    assert table["difference, %"].tolist()[0] == pytest.approx(2.0)
    assert np.isnan(table["difference, %"].tolist()[1])
    text = as_markdown(table, brain_change_percent=-0.171)
    assert "| gm | 99.0 | 101.0 | +2.0 |" in text and "largest 2.0 % (1 volumes)" in text and "-0.17 %" in text

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import ndimage

from benchmarks.ventricles import LATERAL, as_markdown, widened


def test_walls_move_outwards_by_what_was_asked_and_the_brain_stays() -> None:
    r = np.sqrt(((np.indices((112, 112, 112)) - 55.5) ** 2).sum(0))
    labels = np.where(r < 50, 2, 0)
    labels[r < 12] = LATERAL[0]
    wide = ndimage.map_coordinates(labels, widened(labels, 5), order=0, mode="nearest")
    radius = (np.isin(wide, LATERAL).sum() * 3 / 4 / np.pi) ** (1 / 3)
    assert 15 < radius < 17.5  # less than 5 mm: the flow is slower the farther from the wall it comes
    assert abs((wide > 0).sum() / (labels > 0).sum() - 1) < 0.01
    np.testing.assert_array_equal(widened(labels, 0)[0, 7], 7)


def test_table_has_a_row_for_each_width() -> None:
    table = pd.DataFrame([{"walls moved, mm": 4, "lateral ventricles, ml": 60.2, "found, ml": 61.0, "caudate": 0.8125,
                           "lesions, ml": 0.25}])  # fmt: skip
    assert as_markdown(table).splitlines()[2] == "| 4 | 60.2 | 61.0 | 0.812 | 0.2 |"

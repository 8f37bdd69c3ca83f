from __future__ import annotations

import numpy as np

from training.export import SMALLEST_LOAD, THRESHOLDS, best_threshold


def test_threshold_weighs_large_and_small_loads_and_scans_without_lesions() -> None:
    """One large load, found from 0.3 on; two small ones, found at 0.5 alone; specks below 0.4 in a scan without any."""
    true = np.zeros((4, len(THRESHOLDS)))
    true[0], true[1:3] = 10_000, 2 * SMALLEST_LOAD
    found, at = np.zeros_like(true), {round(float(t), 2): i for i, t in enumerate(THRESHOLDS)}
    found[0, at[0.3] :] = 10_000
    found[1:3, at[0.5]] = 2 * SMALLEST_LOAD
    found[3, : at[0.4]] = 500
    counts = np.stack([np.minimum(found, true), found, true], -1)
    assert best_threshold(counts) == 0.5
    assert best_threshold(counts[[0, 3]]) == 0.4

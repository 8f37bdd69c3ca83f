from __future__ import annotations

import numpy as np

from training.export import SMALLEST_LOAD, THRESHOLDS, best_threshold, shares_of_lesion


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


def test_shares_of_lesion_between_two_thresholds() -> None:
    """Between 0.2 and 0.25 lie 30 voxels of two scans, 6 of them lesion; all others lie above the last threshold."""
    counts = np.zeros((2, len(THRESHOLDS), 3), int)
    counts[:, :, 2] = 100
    counts[:, 0, 1], counts[:, 1:, 1] = (60, 50), np.array([[40], [40]])
    counts[:, 0, 0], counts[:, 1:, 0] = (25, 25), np.array([[23], [21]])
    assert shares_of_lesion(counts) == {"0.20-0.25": 0.2}

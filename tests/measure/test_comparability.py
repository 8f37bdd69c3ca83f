"""Which scans are alike enough to be compared."""

from __future__ import annotations

import pytest

from bidsapp.measure import comparability
from bidsapp.measure.change import INTERVAL_COLUMNS


def record(edges: object, contrast: str = "T1w") -> dict[str, object]:
    return {"contrasts": [contrast], "inputs": [{"contrast": contrast, "voxel_size_mm": edges}]}


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [([1, 1, 1], [1.1, 1, 1], False), ([1, 1, 1], [1, 1.12, 1], True), ([3, 1, 1], [1, 1, 3.2], False),
     ([1, 1, 1], None, False), ([1, 1, 1], [1, 1], False), ([1, 1, 1], ["1", 1, 3], False)],
)  # fmt: skip
def test_voxels(one, other, differ):
    """Whatever the order of the axes; a record that does not tell, tells of no difference."""
    assert comparability.voxels_differ([record(one), record(other)], "T1w") is differ
    assert not comparability.voxels_differ([record(one), record([3, 3, 3], "FLAIR")], "T1w")


def test_contrasts_and_heads():
    assert comparability.contrasts_differ([record([1, 1, 1]), record([1, 1, 1], "FLAIR")])
    assert not comparability.contrasts_differ([{"contrasts": ["T1w", "FLAIR"]}, {"contrasts": ["FLAIR", "T1w"]}])
    assert comparability.heads_differ([1500, None, 1540]) and comparability.heads_differ([1540, 1500])
    assert not comparability.heads_differ([None, None]) and not comparability.heads_differ([])
    assert not comparability.heads_differ([1500, 1529]) and not comparability.heads_differ([1500, None])


def test_the_dictionary_tells_the_limits():
    told = INTERVAL_COLUMNS["brain_change_percent"]["Description"]
    assert "voxel edges (by more than 10 %) or estimated intracranial volume (by more than 2 %)" in told

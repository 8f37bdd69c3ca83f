"""What the evaluation's page says of its tests."""

from __future__ import annotations

import pandas as pd
import pytest

from bidsapp.report.evaluation import _test_note

EIGHT = "he smallest p that 8 subjects can give is 0.0078: after Holm's correction for 12 tests"


@pytest.mark.parametrize(
    ("families", "said"),
    [
        ({"B against A": 10, "C against A": 10, "C against B": 10}, ""),  # 12 / 512, not 36 / 512
        ({"B against A": 8}, f"T{EIGHT} none"),
        ({"B against A": 8, "C against A": 8}, f"T{EIGHT} in each comparison none"),
        ({"B against A": 8, "C against A": 10}, f"B against A: t{EIGHT} none"),
        ({"B against A": 5}, "With 5 subjects no difference can be significant"),
    ],
)
def test_what_holm_leaves_is_told_of_each_comparison(families, said):
    """Comparisons of so many subjects, with twelve tests each."""
    rows = [
        {"comparison": name, "n": n, "p": 0.5, "smallest_p": 2.0 ** (1 - n)}
        for name, n in families.items()
        for _ in range(12)
    ]
    note = _test_note(pd.DataFrame(rows))
    assert note.startswith(said) and bool(note) == bool(said)

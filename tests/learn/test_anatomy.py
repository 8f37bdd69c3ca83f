from __future__ import annotations

from bidsapp.learn.anatomy import STRUCTURES


def test_every_label_has_a_partner_that_points_back() -> None:
    by_index = {s.index: s for s in STRUCTURES}
    for s in STRUCTURES:
        assert by_index[s.partner].partner == s.index
        assert by_index[s.partner].kind == s.kind

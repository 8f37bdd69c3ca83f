"""The scores of the change benchmark, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import change


def one(**values) -> change.Score:
    start = dict.fromkeys(change.Score.__dataclass_fields__, 0) | {"subject": "01"}
    return change.Score(**{**start, **values})


def test_regions_by_size_and_brightness():
    mask, difference = np.zeros((12, 10, 9), bool), np.zeros((12, 10, 9))
    mask[1:4, 1:4, 1:4] = True  # 27
    difference[1:4, 1:4, 1:4] = 3
    mask[8:10, 8:10, 1:3] = True  # 8: below the least volume
    found = list(change._regions(mask, difference, 20))
    assert [(len(where[0]), mean) for where, mean in found] == [(27, 3.0)]
    assert mask[found[0][0]].all()


def test_sums_and_shares():
    text = change.as_markdown([
        one(marked=5, brighter=4, brighter_found=3, brighter_mm3=100, brighter_found_mm3=50, reported=6, false=1),
        one(subject="02", brighter=0, darker=2, darker_found=1, reported=2, false=2, false_mm3=500),
    ])  # fmt: skip
    assert "| sub-01 | 5 | 3 of 4 | 50 % | 0 of 0 | 6 | 1 (0.00 ml) |" in text
    assert "| sub-02 | 0 | 0 of 0 | – | 1 of 2 | 2 | 2 (0.50 ml) |" in text
    assert "sensitivity 0.75 of 4 regions" in text and "0.50 of 2 that became darker" in text
    assert "1.5 false alarms per pair of sessions, 0.38 of what is told" in text


def test_nothing_to_score_is_an_error(tmp_path, capsys):
    assert change.main([str(tmp_path), "--data", str(tmp_path)]) == 1
    assert "no subject" in capsys.readouterr().out


def test_the_page_is_rewritten_between_its_marks(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"a\n{change.MARK}\nFORMER\n{change.MARK}\nb\n")
    monkeypatch.setattr(change, "scored", lambda *_: [one(marked=1)])
    assert change.main([str(tmp_path), "--write", str(page)]) == 0
    text = page.read_text()
    assert (
        text.startswith(f"a\n{change.MARK}\n| subject")
        and text.endswith(f"{change.MARK}\nb\n")
        and "FORMER" not in text
    )


@pytest.mark.parametrize("name", ["Parameters", "FixedParameters"])
def test_a_truth_without_its_transform_is_no_truth(tmp_path, name):
    (tmp_path / "t.txt").write_text(f"{name}: 1 2 3\n")
    with pytest.raises(KeyError):
        change._truth_matrix(tmp_path / "t.txt")

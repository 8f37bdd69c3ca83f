"""The page of the changes: what the tables say, in words; whatever is missing or broken is told."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp import bids
from bidsapp.labels import CHANGE_GROWTH, CHANGE_NEW
from bidsapp.measure.change import INTERVAL_COLUMNS, LESION_CHANGE_COLUMNS
from bidsapp.report import assemble
from bidsapp.report.change_pictures import draw_change
from bidsapp.report.changes import has_changes, view_changes
from bidsapp.report.read import png_size

INTERVAL = {
    "session_from": "ses-1", "session_to": "ses-2", "years": "1.5", "new_count": "2", "enlarging_count": "1",
    "stable_count": "4", "shrinking_count": "0", "resolved_count": "0", "unconfirmed_count": "1", "small_count": "3",
    "lesion_change_mm3": "1234", "brain_change_percent": "n/a", "notes": "voxels of T1w differ; <b>less</b>",
}  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "sub-01" / "anat"
    folder.mkdir(parents=True)
    rows = [
        {
            "change_id": "1",
            "status": "new",
            "volume_from_mm3": "0",
            "volume_to_mm3": "900",
            "region": "periventricular",
        },
        {"change_id": "2", "status": "small", "volume_from_mm3": "9", "volume_to_mm3": "0"},
    ]
    _write(folder / "sub-01_changes", [INTERVAL], INTERVAL_COLUMNS)
    bids.write_json(folder / "sub-01_desc-changes_provenance.json", {})
    _write(
        folder / "sub-01_lesionchanges",
        [{"session_from": "ses-1", "session_to": "ses-2", **row} for row in rows],
        LESION_CHANGE_COLUMNS,
    )
    return tmp_path


def _write(path: Path, rows, columns) -> None:
    lines = ["\t".join(["participant_id", *columns])]
    lines += ["\t".join(["sub-01", *(row.get(column, "n/a") for column in columns)]) for row in rows]
    path.with_suffix(".tsv").write_text("\n".join(lines) + "\n")
    bids.write_json(path.with_suffix(".json"), columns)


def test_the_page_says_what_the_tables_say(out):
    (interval,) = view_changes(out, "01").intervals
    assert (
        interval.sentence
        == "2 new and 1 enlarging lesions; 1.23\u00a0ml more lesion than before, confirmed by brightness."
    )
    assert [(count, word) for count, word, _ in interval.counts][:2] == [("2", "new"), ("1", "enlarging")]
    assert interval.notes == ("voxels of T1w differ", "<b>less</b>")
    assert len(interval.rows) == 1 and interval.quiet == 1
    assert [text for text, _ in interval.rows[0]][:4] == ["1", "new", "0", "900"]
    facts = {value.column: value.with_unit for value in interval.facts}
    assert facts["lesion_change_mm3"] == "1.23\u00a0ml" and facts["brain_change_percent"] == "n/a"


def test_the_pages_link_to_each_other(out):
    page = assemble.assemble_subject(out, "01")
    changes = (out / "sub-01_changes.html").read_text()
    assert "./sub-01.html" in changes and page.name == "sub-01.html"
    assert "&lt;b&gt;less&lt;/b&gt;" in changes and "<b>less</b>" not in changes


def test_without_changes_there_is_no_page(tmp_path):
    (tmp_path / "sub-02").mkdir()
    assert not has_changes(tmp_path, "02")
    assemble.assemble_subject(tmp_path, "02")
    assert not (tmp_path / "sub-02_changes.html").exists()


def test_what_is_broken_is_told(out):
    (out / "sub-01/anat/sub-01_lesionchanges.tsv").write_bytes(b"\xff\xfe\x00")
    view = view_changes(out, "01")
    assert view.broken == ("sub-01_lesionchanges.tsv: is not text",)
    assert view.intervals[0].rows == ()
    assemble.assemble_subject(out, "01")
    assert "is not text" in (out / "sub-01_changes.html").read_text()


def test_pictures_are_of_the_slices_that_changed(tmp_path, rng):
    shape = (40, 50, 30)
    brain = np.zeros(shape, bool)
    brain[5:-5, 5:-5, 5:-5] = True
    flairs = [rng.normal(100, 5, shape).astype(np.float32) for _ in range(2)]
    change = np.zeros(shape, np.uint8)
    change[20:24, 20:24, 12:14] = CHANGE_NEW.index
    change[10:13, 20:24, 20] = CHANGE_GROWTH.index
    lesions = [np.zeros(shape, bool), change > 0]
    affine = nib.affines.from_matvec(np.eye(3), (-20, -25, -15))
    first, again = (
        draw_change(flairs=flairs, brain=brain, lesions=lesions, change=change, affine=affine) for _ in range(2)
    )
    assert first == again and set(first) == {"Beside", "Before", "After"}
    for name, png in first.items():
        (tmp_path / name).write_bytes(png)
    assert png_size(tmp_path / "Before") == png_size(tmp_path / "After")
    unchanged = draw_change(flairs=flairs, brain=brain, lesions=lesions, change=change * 0, affine=affine)
    assert unchanged["Beside"] != first["Beside"]

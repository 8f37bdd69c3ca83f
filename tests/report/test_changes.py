"""The page of the changes: what the tables say, in words; whatever is missing or broken is told."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.labels import CHANGE_GROWTH, CHANGE_NEW, CHANGE_STABLE, CHANGE_UNCONFIRMED
from bidsapp.measure.change import INTERVAL_COLUMNS, LESION_CHANGE_COLUMNS
from bidsapp.report import assemble, change_pictures
from bidsapp.report.change_pictures import draw_change
from bidsapp.report.changes import has_changes, view_changes
from bidsapp.report.read import png_size
from bidsapp.writing import write_json

INTERVAL = {
    "session_from": "ses-1", "session_to": "ses-2", "years": "1.5", "new_count": "2", "enlarging_count": "1",
    "stable_count": "4", "shrinking_count": "0", "resolved_count": "0", "unconfirmed_count": "1", "small_count": "3",
    "lesion_change_mm3": "1234", "minimum_change_mm3": "28.3", "brain_change_percent": "n/a",
    "notes": "voxels of T1w differ; <b>less</b>",
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
            "brightness_change": "-0.04",
            "halfway_x_mm": "4.4",
            "halfway_y_mm": "-5.3",
            "halfway_z_mm": "6.2",
        },
        {"change_id": "2", "status": "small", "volume_from_mm3": "9", "volume_to_mm3": "0"},
    ]
    _write(folder / "sub-01_changes", [INTERVAL], INTERVAL_COLUMNS)
    write_json(folder / "sub-01_desc-changes_provenance.json", {})
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
    write_json(path.with_suffix(".json"), columns)


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
    assert facts["minimum_change_mm3"] == "28\u00a0mm³" and facts["years"] == "1.50\u00a0years"
    headings = [title for title, _, _ in interval.headings]
    assert interval.rows[0][headings.index("Half-way x, y, z")] == ("4, −5, 6", "6.2")
    assert interval.rows[0][headings.index("Brightness")] == ("0.0", "-0.04")


def test_less_than_a_millilitre_is_told_in_the_unit_of_the_table(out):
    _write(out / "sub-01/anat/sub-01_changes", [INTERVAL | {"lesion_change_mm3": "-28.4"}], INTERVAL_COLUMNS)
    assert "; 28\u00a0mm³ less lesion" in view_changes(out, "01").intervals[0].sentence


def test_the_methods_text_tells_how_changes_were_found(out, write_session):
    write_session("01", "1")
    text = " ".join(assemble.assemble_subject(out, "01").read_text().split())
    for said in ("(Moraal et al., 2010)", "(Goodkin et al., 1992)", "half-way between all of them"):
        assert said in text
    assert "(Boyes et al., 2006)" not in text  # the brain's change was not measured
    _write(out / "sub-01/anat/sub-01_changes", [INTERVAL | {"brain_change_percent": "-0.4"}], INTERVAL_COLUMNS)
    assert "(Boyes et al., 2006)" in assemble.assemble_subject(out, "01").read_text()
    write_session("02", "1")
    assert "half-way" not in assemble.assemble_subject(out, "02").read_text()


def test_the_limits_are_those_of_the_comparison(out):
    assemble.assemble_subject(out, "01")
    text = (out / "sub-01_changes.html").read_text()
    assert "voxels with edges within 10&nbsp;% and estimated intracranial volumes within 2&nbsp;%" in text


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


def test_only_slices_with_lesions_are_side_by_side(monkeypatch, rng):
    """Those with stable ones come after those that changed; nothing else fills the rows."""
    change = np.zeros((40, 50, 30), np.uint8)
    change[20:24, 20:24, 12] = CHANGE_NEW.index
    change[10:13, 30:34, 18] = CHANGE_UNCONFIRMED.index
    flairs = [rng.normal(100, 5, change.shape).astype(np.float32) for _ in range(2)]
    shown = []
    monkeypatch.setattr(change_pictures, "mosaic", lambda *_, layout, **__: shown.append(layout) or b"")
    for stable in (False, True):
        change[30:33, 20:24, 24] = CHANGE_STABLE.index * stable
        lesions = [change > 0] * 2
        draw_change(flairs=flairs, brain=change < 99, lesions=lesions, change=change, affine=np.eye(4))
        assert [tile.index for tile in shown[-1].tiles] == [12, 24][: 1 + stable]

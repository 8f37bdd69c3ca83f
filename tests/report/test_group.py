"""The group's table and page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bidsapp.errors import NothingSelectedError
from bidsapp.report import assemble, group_figures
from bidsapp.report import group as group_module
from bidsapp.report.analysis import Options, analyse
from bidsapp.report.covariates import read_covariates
from bidsapp.report.group import collect_cohort, view_group
from bidsapp.report.read import read_subject, subjects


def group_of(tmp_path):
    sessions = [session for subject in subjects(tmp_path) for session in read_subject(tmp_path, subject)]
    return collect_cohort(sessions)


def view_of(tmp_path, **options):
    group = group_of(tmp_path)
    covariates = read_covariates(None, tmp_path)
    found = analyse(
        group.frame, list(group.sessions.values()), covariates, dictionary=group.dictionary, options=Options(**options)
    )
    return view_group(group, found, assemble.layout())


@pytest.fixture
def ten(write_session):
    """Ten subjects; the last has a tiny brain and a flag."""
    for number in range(10):
        brain = 1_000_000 + 3_000 * number if number < 9 else 500_000
        flag = "none" if number < 9 else "brain_mm3 = 5e+05, below 7e+05: brain volume unusual for an adult"
        lesion = "n/a" if number == 4 else str(100 * number)
        write_session(
            f"{number:02}", "1" if number % 2 else None,
            volumes={"brain_mm3": str(brain), "lesion_mm3": lesion, "lesion_count": str(number)},
            qc={"flags": flag}, not_measured={"lesion_mm3": "no FLAIR"} if number == 4 else {},
        )  # fmt: skip


def test_table(tmp_path, ten):
    assemble.assemble_group(tmp_path)
    lines = (tmp_path / "group_volumes.tsv").read_text().splitlines()
    assert lines[0] == "participant_id\tsession_id\tbrain_mm3\tlesion_mm3\tlesion_count\tcontrasts"
    assert lines[1] == "sub-00\tn/a\t1000000\t0\t0\tT1w+FLAIR"
    assert lines[2] == "sub-01\tses-1\t1003000\t100\t1\tT1w+FLAIR"
    assert lines[5] == "sub-04\tn/a\t1012000\tn/a\t4\tT1w+FLAIR"
    assert len(lines) == 11
    about = json.loads((tmp_path / "group_volumes.json").read_text())
    assert list(about) == lines[0].split("\t") and about["brain_mm3"]["Description"] == "What brain_mm3 is."


def test_cortical_regions_have_a_table_and_models(tmp_path, write_session):
    """The insula shrinks by 20 mm3 a year, exactly; the tables of two subjects are of an earlier version."""
    for number in range(14):
        cortex = None
        if number < 12:
            noise = (-1) ** number * 0.5
            cortex = {
                "left_insula_mm3": "7 ml" if number == 11 else f"{7000 - 20 * number + noise}",
                "left_cuneus_mm3": f"{3000 + 7 * (number % 3)}",
            }
        write_session(f"{number:02}", cortex=cortex)
    ages = [f"sub-{number:02}\t{40 + number}" for number in range(14)]
    (tmp_path / "participants.tsv").write_text("participant_id\tage\n" + "\n".join(ages) + "\n")
    assemble.assemble_group(tmp_path, options=Options(models=("cortex ~ age",), maps=False))
    table = pd.read_csv(tmp_path / "group_cortex.tsv", sep="\t", na_values="n/a")
    assert list(table) == ["participant_id", "session_id", "left_insula_mm3", "left_cuneus_mm3"]
    assert table["left_insula_mm3"].notna().sum() == 11 and table["left_insula_mm3"][0] == 7000.5
    assert "left_insula_mm3" not in (tmp_path / "group_volumes.tsv").read_text()
    about = json.loads((tmp_path / "group_cortex.json").read_text())
    assert about["left_insula_mm3"]["Description"] == "What left_insula_mm3 is."
    models = pd.read_csv(tmp_path / "group_models.tsv", sep="\t")
    age = models[models["term"] == "age"].set_index("outcome")
    assert set(age.index) == {"left_insula", "left_cuneus"}
    assert age.loc["left_insula", "estimate"] == pytest.approx(-0.020, abs=1e-3) and age["unit"].eq("ml").all()


def test_maps_of_an_earlier_run_are_told_as_such(tmp_path, ten):
    """They stay, and the page does not show them: they may be of other subjects than its tables."""
    told = "maps in group_maps/ are those of an earlier run"
    page = assemble.assemble_group(tmp_path, options=Options(maps=False))
    assert told not in page.read_text()
    (tmp_path / "group_maps").mkdir()
    (tmp_path / "group_maps" / "group_space-X_label-GM_desc-mean_map.nii.gz").touch()
    assert told in assemble.assemble_group(tmp_path, options=Options(maps=False)).read_text()


def test_quality_has_a_table_and_is_no_outcome(tmp_path, write_session):
    """One row per session, whatever its table has; a session of an earlier version has no columns of its scans."""
    flag = "cnr = 0.2, below 0.3: gray and white matter hardly differ from the noise"
    write_session("01", qc={"cnr": "2.1", "t1w_cnr": "2.1", "flair_cnr": "0.7", "flags": "none"})
    write_session("02", qc={"cnr": "0.2", "flags": flag})
    write_session("03", qc={"cnr": "1.5", "t1w_cnr": "1.5", "flair_cnr": "n/a", "flags": "none"})
    (tmp_path / "participants.tsv").write_text("participant_id\tcnr\nsub-01\t7\nsub-02\t8\nsub-03\t9\n")
    assemble.assemble_group(tmp_path, options=Options(maps=False))
    table = pd.read_csv(tmp_path / "group_qc.tsv", sep="\t", na_values="n/a")
    assert list(table) == ["participant_id", "session_id", "cnr", "t1w_cnr", "flair_cnr", "flags"]
    assert table["cnr"].to_list() == [2.1, 0.2, 1.5] and table["flags"].to_list() == ["none", flag, "none"]
    np.testing.assert_array_equal(table["flair_cnr"], [0.7, np.nan, np.nan])
    about = json.loads((tmp_path / "group_qc.json").read_text())
    assert about["flair_cnr"]["Description"] == "What flair_cnr is." and "Description" in about["participant_id"]
    volumes = pd.read_csv(tmp_path / "group_volumes.tsv", sep="\t")
    assert volumes["cnr"].to_list() == [7, 8, 9] and "flair_cnr" not in volumes


def test_only_some_subjects_and_sessions(tmp_path, ten):
    for label in ("01", "02"):
        path = tmp_path / f"sub-{label}" / "anat" / f"sub-{label}_changes.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"session_from\tsession_to\tnew_count\nses-0\tses-1\t{int(label)}\nses-1\tses-2\t7\n")
        path.with_name(f"sub-{label}_desc-changes_provenance.json").touch()
    assemble.assemble_group(tmp_path, only_subjects=("01", "03", "04"), options=Options(maps=False))
    table = pd.read_csv(tmp_path / "group_volumes.tsv", sep="\t")
    assert table["participant_id"].to_list() == ["sub-01", "sub-03", "sub-04"]
    changes = pd.read_csv(tmp_path / "group_changes.tsv", sep="\t")
    assert changes["participant_id"].unique() == ["sub-01"] and len(changes) == 2
    assemble.assemble_group(tmp_path, only_sessions=("0", "1"), options=Options(maps=False))
    assert len(pd.read_csv(tmp_path / "group_volumes.tsv", sep="\t")) == 5, "those with a session 1"
    assert pd.read_csv(tmp_path / "group_changes.tsv", sep="\t")["new_count"].to_list() == [1, 2]
    told: list[str] = []
    only = {"only_subjects": ("01", "03", "99"), "only_sessions": ("1", "7")}
    assemble.assemble_group(tmp_path, **only, options=Options(maps=False), say=told.append)
    assert told == [f"warning: {name} was asked for but has no results in {tmp_path}." for name in ("sub-99", "ses-7")]
    with pytest.raises(NothingSelectedError, match="of these labels"):
        assemble.assemble_group(tmp_path, only_subjects=("99",))


def test_sessions_of_different_scans_are_told(tmp_path, write_session):
    for number, contrasts in enumerate((["T1w"], ["T1w", "FLAIR"], ["FLAIR", "T1w"])):
        write_session(f"{number:02}", contrasts=contrasts)
    (note,) = [note for note in view_of(tmp_path).notes if "different scans" in note]
    assert "(2 from T1w+FLAIR, 1 from T1w)" in note


def test_outliers_and_findings(tmp_path, ten):
    view = view_of(tmp_path)
    assert view.lede == "10 sessions of 10 subjects."
    ((name, href, what, why, _),) = view.outliers
    assert (name, href, what) == ("sub-09 ses-1", "sub-09.html#ses-1", "Brain parenchyma: 500.0\u00a0ml")
    assert "below the median of 1010.5\u00a0ml" in why
    ((finding, where),) = view.findings
    assert finding == "Brain volume unusual for an adult"
    assert where == (("sub-09 ses-1", "sub-09.html#ses-1", "Brain parenchyma: 500.0\u00a0ml, below 700.0\u00a0ml"),)
    assert [row.session for row in view.rows if row.flagged] == ["sub-09 ses-1"]


def test_strips(tmp_path, ten):
    view = view_of(tmp_path)
    strips = {strip.name: strip for strip in view.strips}
    brain = strips["Brain parenchyma"]
    assert (brain.low, brain.high) == ("500.0\u00a0ml", "1024.0\u00a0ml")
    assert [dot.session for dot in brain.dots if dot.outlier] == ["sub-09 ses-1"]
    assert brain.dots[0].x == 2.0 and brain.dots[-1].x == 98.0 and len(brain.dots) == 10
    assert brain.box[0] <= brain.box[1] <= brain.box[2]
    lesions = strips["Lesions"]
    assert lesions.measured == "9 sessions, 1 n/a" and len(lesions.dots) == 9
    assert lesions.median_words == "median 0.500\u00a0ml"


def test_reasons_of_what_was_not_measured(tmp_path, ten):
    view = view_of(tmp_path)
    (row,) = (row for row in view.rows if row.participant == "sub-04")
    assert ("n/a", "", "no FLAIR", False) in row.cells


def test_broken_files_are_named_and_the_others_stay(tmp_path, write_session):
    for subject in ("01", "02", "03", "04", "05", "06"):
        write_session(subject)
    tables = {subject: tmp_path / f"sub-{subject}" / "anat" / f"sub-{subject}_volumes.tsv" for subject in ("02", "03")}
    tables["02"].write_bytes(b"\xff\xfe\x00")
    tables["03"].write_text("participant_id\tbrain_mm3\nsub-03\t1\nsub-03\t2\n")
    (tmp_path / "sub-04" / "anat" / "sub-04_volumes.tsv").write_text("brain_mm3\n1\n")
    (tmp_path / "sub-05" / "anat" / "sub-05_volumes.tsv").write_text("participant_id\tbrain_mm3\nsub-01\t1\n")
    (tmp_path / "sub-06" / "anat" / "sub-06_provenance.json").write_text("{")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "sub-07_problem.json").write_text('{"status": "failed", "message": "empty file"}')
    group = group_of(tmp_path)
    assert list(group.frame["participant_id"]) == ["sub-01", "sub-06"]
    told = {name: " ".join(reasons) for name, reasons in group.left_out}
    assert "sub-02/anat/sub-02_volumes.tsv: is not text" in told["sub-02"]
    assert "holds 2 rows" in told["sub-03"] and "no column participant_id" in told["sub-04"]
    assert "is of sub-01" in told["sub-05"] and "is not JSON" in told["sub-06"]
    assert told["sub-07"] == "failed: empty file"
    page = assemble.assemble_group(tmp_path).read_text()
    assert all(name in page for name in told)


def test_few_subjects_give_no_outliers_and_say_so(tmp_path, write_session):
    write_session("01")
    view = view_of(tmp_path)
    assert view.outliers == () and "at least 5" in view.outlier_note
    assert all(strip.dots[0].x == 50.0 for strip in view.strips)


def test_columns_of_another_model_are_kept(tmp_path, write_session):
    write_session("01", volumes={"brain_mm3": "1", "thalamus_mm3": "14000"})
    assemble.assemble_group(tmp_path)
    table = pd.read_csv(tmp_path / "group_volumes.tsv", sep="\t")
    assert table.loc[0, "thalamus_mm3"] == 14000
    view = view_of(tmp_path)
    assert "Long name of thalamus_mm3" in [strip.name for strip in view.strips]


def test_hundreds_of_sessions_become_a_histogram_with_the_outliers_as_dots(tmp_path, ten, monkeypatch):
    monkeypatch.setattr(group_module, "MAXIMUM_DOTS", 5)
    view = view_of(tmp_path)
    brain = {strip.name: strip for strip in view.strips}["Brain parenchyma"]
    assert [dot.session for dot in brain.dots] == ["sub-09 ses-1"] and len(brain.bars) > 1
    assert sum(height == 40 for _, _, height in brain.bars) >= 1


def test_what_is_unusual_for_its_head_is_an_outlier(tmp_path, write_session, rng):
    """Not far from the others as it is, but far from what the head's size predicts."""
    for number in range(30):
        tiv = 1_300_000 + 15_000 * number
        brain = 0.75 * tiv + 3_000 * rng.normal() - (150_000 if number == 25 else 0)
        write_session(f"{number:02}", volumes={"tiv_mm3": str(tiv), "brain_mm3": str(brain)})
    ((name, _, what, far, alike),) = view_of(tmp_path).outliers
    assert (
        name == "sub-25" and what.startswith("Brain parenchyma") and far == "" and float(alike.replace("−", "-")) < -5
    )


def test_a_load_is_told_beside_those_with_lesions(tmp_path, write_session):
    loads = [0] * 16 + [8000 + 10 * number for number in range(14)] + [2]
    for number, load in enumerate(loads):
        write_session(f"{number:02}", volumes={"brain_mm3": str(1e6 + 1e3 * number), "lesion_mm3": str(load)})
    ((name, _, _, far, _),) = view_of(tmp_path).outliers
    assert name == "sub-30" and far.endswith("below the median of 8.06\u00a0ml of those above 0")


@pytest.mark.parametrize("column", ["age", "Age", "AGE_YEARS"])
def test_measures_against_age_whatever_its_column_is_called(tmp_path, write_session, column):
    for number in range(6):
        write_session(f"{number:02}", volumes={"brain_mm3": str(1e6 + 1e3 * number)})
    rows = "".join(f"sub-{number:02}\t{40 + number}\n" for number in range(6))
    (tmp_path / "participants.tsv").write_text(f"participant_id\t{column}\n{rows}")
    (plot,) = view_of(tmp_path).scatters
    assert plot.ends[:2] == ("40", "45")


def test_a_cell_that_is_no_number_is_told_and_costs_no_other(tmp_path, write_session):
    for number, (gm, count) in enumerate((("600000", "1"), ("NA", "2"), ("1,234.5", "foo"))):
        write_session(f"{number:02}", volumes={"brain_mm3": "1000000", "gm_mm3": gm, "lesion_count": count})
    group = group_of(tmp_path)
    assert group.frame["gm_mm3"].tolist()[0] == 600000 and group.frame["gm_mm3"].isna().sum() == 2
    assert group.frame["lesion_count"].tolist()[:2] == [1, 2]
    ((name, told),) = group.left_out
    assert name == "sub-02" and len(told) == 2 and "gm_mm3 is '1,234.5'" in told[0]
    assemble.assemble_group(tmp_path)


def test_results_of_an_earlier_run_and_other_options_are_told(tmp_path, write_session):
    for number in range(3):
        write_session(f"{number:02}", options={"denoise": number == 0})
    (tmp_path / "logs").mkdir()
    problem = {"subject": "01", "session": None, "status": "failed", "message": "out of memory"}
    (tmp_path / "logs" / "sub-01_problem.json").write_text(json.dumps(problem))
    ((name, told),) = group_of(tmp_path).left_out
    assert name == "sub-01" and "of an earlier run: the last one failed (out of memory)" in told[0]
    assert any("different options (denoise: false in 2, true in 1)" in note for note in view_of(tmp_path).notes)


def test_tables_without_a_record_are_not_whole(tmp_path, write_session):
    """A run that failed, or was killed, while it wrote."""
    for subject in ("01", "02", "03"):
        write_session(subject)
    for subject in ("02", "03"):
        (tmp_path / f"sub-{subject}" / "anat" / f"sub-{subject}_provenance.json").unlink()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "sub-02_problem.json").write_text('{"status": "failed", "message": "disk full"}')
    group = group_of(tmp_path)
    assert list(group.frame["participant_id"]) == ["sub-01"]
    assert dict(group.left_out) == {"sub-02": ("failed: disk full",), "sub-03": ("was not finished",)}


def test_a_folder_without_results_is_no_group(tmp_path):
    (tmp_path / "sub-01" / "anat").mkdir(parents=True)
    with pytest.raises(NothingSelectedError, match="Run the participant level first"):
        assemble.assemble_group(tmp_path)
    assert not (tmp_path / "group.html").exists()


def test_dots_that_are_no_outliers_are_no_stops_of_the_keyboard(tmp_path, ten):
    text = assemble.assemble_group(tmp_path).read_text()
    dots = re.findall(r'<a href="[^"]*" data-session="[^"]*" class="c[^>]*>', text)
    stops = [tag for tag in dots if "tabindex" not in tag]
    assert stops and all(' out"' in tag and "sub-09" in tag for tag in stops)


def test_groups_have_the_colours_of_the_page():
    style = (Path(assemble.__file__).parent / "style.css").read_text()
    light = re.findall(r"\.c\d \{ --dot: (#\w+); \}", style.partition("@media")[0])
    assert list(group_figures.COLOURS[: len(light)]) == light and len(light) == 5


def test_every_cluster_is_on_a_slice_the_largest_first():
    seek = np.zeros((10, 10, 60), bool)
    assert group_figures.planes_through(seek, [10, 30, 50]) == [10, 30, 50]
    seek[2:8, 2:8, 20:24] = True
    seek[2:4, 2:4, 29:32] = True  # is on one
    seek[5, 5, 41] = True
    seek[8, 8, 2] = True  # there is no room left
    found = group_figures.planes_through(seek, [10, 30, 50])
    assert found[0] in range(20, 24) and found[1:] == [30, 41]

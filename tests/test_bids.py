from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.arguments import missing_labels
from bidsapp.bids import SessionInputs, collect, emptied_by_filters, has_database, unusable_names
from bidsapp.errors import NotBidsError, NothingSelectedError, UsageError
from bidsapp.scan_choice import header_problem, shown_in_part
from bidsapp.writing import sha256


def scan(
    root: Path, name: str, sizes: tuple[float, float, float] = (1, 1, 1), shape: tuple[int, int, int] = (12, 12, 12)
) -> None:
    """An all-zero scan named like ``sub-01_ses-a_T1w``."""
    parts = [part for part in name.split("_")[:2] if part.startswith(("sub-", "ses-"))]
    folder = root.joinpath(*parts, "anat")
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), np.diag([*sizes, 1])), folder / f"{name}.nii.gz")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dataset_description.json").write_text(json.dumps({"Name": "test", "BIDSVersion": "1.10.0"}))
    return tmp_path


def test_unit_is_the_session_and_reference_is_t1w_flair_t2w(root: Path) -> None:
    for name in ("sub-01_ses-a_T1w", "sub-01_ses-a_FLAIR", "sub-01_ses-b_T2w", "sub-01_ses-b_FLAIR", "sub-02_T2w"):
        scan(root, name)
    sessions = collect(root)
    assert [(s.name, s.contrasts) for s in sessions] == [
        ("sub-01_ses-a", ("T1w", "FLAIR")),
        ("sub-01_ses-b", ("FLAIR", "T2w")),
        ("sub-02", ("T2w",)),
    ]
    assert str(sessions[0].folder) == "sub-01/ses-a/anat"


def test_session_without_usable_scan_is_kept_to_be_told_of(root: Path) -> None:
    scan(root, "sub-01_ses-a_T1w")
    scan(root, "sub-01_ses-b_PDw")
    assert [(s.name, s.contrasts) for s in collect(root)] == [("sub-01_ses-a", ("T1w",)), ("sub-01_ses-b", ())]


def test_files_about_the_subject_make_no_session(root: Path) -> None:
    scan(root, "sub-01_ses-a_T1w")
    (root / "sub-01" / "sub-01_sessions.tsv").write_text("session_id\nses-a\n")
    assert [s.name for s in collect(root)] == ["sub-01_ses-a"]


@pytest.mark.parametrize(
    ("names", "chosen", "reason"),
    [
        ({"sub-01_run-1_T1w": (1, 1, 1), "sub-01_run-2_T1w": (1, 1, 1)}, "sub-01_run-2_T1w", "of 2: the latest run"),
        (
            {"sub-01_acq-2d_T1w": (0.5, 0.5, 4), "sub-01_acq-3d_T1w": (1, 1, 1)},
            "sub-01_acq-3d_T1w",
            "the thinnest slices",
        ),
        ({"sub-01_acq-a_T1w": (1, 1, 1), "sub-01_acq-b_T1w": (0.9, 0.9, 1)}, "sub-01_acq-b_T1w", "the smallest voxels"),
        ({"sub-01_ce-gd_T1w": (0.8, 0.8, 0.8), "sub-01_T1w": (1, 1, 3)}, "sub-01_T1w", "without contrast agent"),
        ({"sub-01_rec-a_T1w": (1, 1, 1), "sub-01_rec-b_T1w": (1, 1, 1)}, "sub-01_rec-a_T1w", "first by name"),
        ({"sub-01_ce-gd_T1w": (1, 1, 1)}, "sub-01_ce-gd_T1w", "the only T1w"),
        ({"sub-01_echo-1_T1w": (1, 1, 1), "sub-01_rec-rms_T1w": (1, 1, 1)}, "sub-01_rec-rms_T1w", "echoes combined"),
        ({"sub-01_echo-2_T1w": (1, 1, 1), "sub-01_echo-1_T1w": (1, 1, 1)}, "sub-01_echo-1_T1w", "or the fitting one"),
        ({"sub-01_echo-1_T2w": (1, 1, 1), "sub-01_echo-2_T2w": (1, 1, 1)}, "sub-01_echo-2_T2w", "or the fitting one"),
        ({"sub-01_inv-1_T1w": (0.7, 0.7, 0.7), "sub-01_T1w": (1, 1, 1)}, "sub-01_T1w", "no single inversion"),
        ({"sub-01_chunk-1_T1w": (0.7, 0.7, 0.7), "sub-01_T1w": (1, 1, 1)}, "sub-01_T1w", "no single inversion"),
        (
            {"sub-01_acq-mp2rageUNI_T1w": (1, 1, 1), "sub-01_acq-mp2rageuniden_T1w": (1, 1, 1)},
            "sub-01_acq-mp2rageuniden_T1w",
            "no single inversion",
        ),
        ({"sub-01_acq-inv2_T1w": (1, 1, 1), "sub-01_acq-z_T1w": (1, 1, 1)}, "sub-01_acq-z_T1w", "no single inversion"),
        (
            {"sub-01_acq-postcontrast_T1w": (1, 1, 1), "sub-01_acq-preContrast_T1w": (1, 1, 5)},
            "sub-01_acq-preContrast_T1w",
            "without contrast agent",
        ),
        ({"sub-01_acq-space_T2w": (1, 1, 1), "sub-01_acq-tse_T2w": (1, 1, 3)}, "sub-01_acq-space_T2w", "thinnest"),
        (
            {"sub-01_ce-a_T1w": (1, 1, 1), "sub-01_ce-b_T1w": (1, 1, 2)},
            "sub-01_ce-a_T1w",
            "slices, with contrast agent",
        ),
    ],
)
def test_one_of_several_scans_is_chosen_by_rule(root: Path, names: dict, chosen: str, reason: str) -> None:
    for name, sizes in names.items():
        scan(root, name, sizes)
    choice = collect(root)[0].reference
    assert choice.path.name == f"{chosen}.nii.gz"
    assert reason in choice.reason
    assert len(choice.not_chosen) == len(names) - 1


@pytest.mark.parametrize("database", [False, True])
def test_t1w_with_contrast_agent_is_offered_beside_the_one_without(
    root: Path, tmp_path_factory: pytest.TempPathFactory, database: bool
) -> None:
    for name in ("sub-01_T1w", "sub-01_ce-gad_run-1_T1w", "sub-01_ce-gad_run-2_T1w", "sub-02_ce-gad_T1w", "sub-03_T1w"):
        scan(root, name)
    folder = tmp_path_factory.mktemp("index") if database else None
    both, alone, plain = collect(root, database_dir=folder)
    assert [(choice.contrast, choice.path.name) for choice in both.more] == [
        ("T1wCE", "sub-01_ce-gad_run-2_T1w.nii.gz")
    ]
    assert both.more[0].reason == "of 2: the latest run" and both.contrasts == ("T1w",)
    assert both.reference.path.name == "sub-01_T1w.nii.gz"
    assert [choice.contrast for choice in both.used_by(("FLAIR", "T1wCE"))] == ["T1w", "T1wCE"]
    assert both.used_by(("FLAIR",)) == both.used_by(()) == both.scans
    assert alone.reference.path.name == "sub-02_ce-gad_T1w.nii.gz" and not alone.more and not plain.more


def test_phase_images_are_no_candidates(root: Path) -> None:
    scan(root, "sub-01_part-mag_T1w")
    scan(root, "sub-01_part-phase_T1w")
    assert collect(root)[0].reference.reason == "the only T1w"


def test_a_readable_scan_is_preferred_to_a_broken_one(root: Path) -> None:
    scan(root, "sub-01_run-1_T1w")
    second = root / "sub-01/anat/sub-01_run-2_T1w.nii.gz"
    whole = (root / "sub-01/anat/sub-01_run-1_T1w.nii.gz").read_bytes()
    for broken in (b"broken", whole[: len(whole) // 2]):
        second.write_bytes(broken)
        assert collect(root)[0].reference.path.name == "sub-01_run-1_T1w.nii.gz"


def test_a_whole_head_is_preferred_to_a_fine_slab(root: Path) -> None:
    scan(root, "sub-01_acq-hippocampus_T2w", (0.4, 0.4, 2), (400, 480, 30))  # 60 mm
    scan(root, "sub-01_acq-whole_T2w", (0.9, 0.9, 3), (200, 240, 50))
    choice = collect(root)[0].reference
    assert choice.path.name == "sub-01_acq-whole_T2w.nii.gz"
    assert choice.reason == "of 2: the one that shows the whole head"


@pytest.mark.parametrize("neck", ["bp-cspine", "acq-cspine", "acq-spinalcord"])
def test_a_head_is_preferred_to_a_neck(root: Path, neck: str) -> None:
    scan(root, f"sub-01_{neck}_T1w", (0.8, 0.8, 0.8), (192, 320, 320))
    scan(root, "sub-01_rec-record_T1w", (1, 1, 1), (176, 240, 256))
    choice = collect(root)[0].reference
    assert choice.path.name == "sub-01_rec-record_T1w.nii.gz"
    assert choice.reason == "of 2: the one that shows the whole head"


@pytest.mark.parametrize("sidecar", ["sub-01/anat/sub-01_run-2_T1w.json", "sub-01/sub-01_run-2_T1w.json"])
def test_contrast_agent_is_read_in_sidecars(root: Path, sidecar: str) -> None:
    """Of runs the latest is chosen, which often is the one after the injection."""
    for name in ("sub-01_run-1_T1w", "sub-01_run-2_T1w"):
        scan(root, name)
    (root / "T1w.json").write_text('{"ContrastBolusIngredient": "none"}')
    (root / "sub-01/anat/sub-01_run-1_T1w.json").write_text("no json")
    assert collect(root)[0].reference.reason == "of 2: the latest run"
    (root / sidecar).write_text('{"ContrastBolusIngredient": "GADOLINIUM"}')
    (session,) = collect(root)
    assert session.reference.path.name == "sub-01_run-1_T1w.nii.gz"
    assert session.reference.reason == "of 2: without contrast agent"
    assert [(each.contrast, each.path.name) for each in session.more] == [("T1wCE", "sub-01_run-2_T1w.nii.gz")]


def test_the_sidecar_nearest_to_a_scan_counts(root: Path) -> None:
    for name in ("sub-01_acq-a_T1w", "sub-01_acq-b_T1w"):
        scan(root, name)
    (root / "acq-b_T1w.json").write_text('{"ContrastBolusIngredient": "n/a"}')
    (root / "sub-01/sub-01_T1w.json").write_text('{"ContrastBolusIngredient": "GADOLINIUM"}')
    assert collect(root)[0].reference.reason == "of 2: first by name, with contrast agent"
    (root / "sub-01/anat/sub-01_acq-b_T1w.json").write_text('{"ContrastBolusIngredient": ""}')
    assert collect(root)[0].reference.path.name == "sub-01_acq-b_T1w.nii.gz"


def test_a_slab_is_told_to_who_looks(root: Path) -> None:
    scan(root, "sub-01_T1w", (1, 1, 1), (176, 240, 256))
    scan(root, "sub-01_T2w", (0.4, 0.4, 2), (400, 480, 30))
    assert [shown_in_part(choice) for choice in collect(root)[0].scans] == ["", "; a slab of 60 mm"]


def test_headers_are_read_only_where_there_is_a_choice(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sub-01_T1w", "sub-01_FLAIR", "sub-02_run-1_T1w", "sub-02_run-2_T1w", "sub-02_T2w"):
        scan(root, name)
    read: list[str] = []
    load = nib.load
    monkeypatch.setattr(nib, "load", lambda path: (read.append(Path(path).name), load(path))[1])
    collect(root)
    assert sorted(read) == ["sub-02_run-1_T1w.nii.gz", "sub-02_run-2_T1w.nii.gz"]  # each once


def test_a_session_with_nothing_but_an_mp2rage_is_told_what_to_do(root: Path) -> None:
    scan(root, "sub-01_ses-a_T1w")
    scan(root, "sub-01_ses-b_UNIT1")
    scan(root, "sub-01_ses-c_PDw")
    a, b, c = collect(root)
    assert a.nothing_because == "" and c.nothing_because == "no T1w, FLAIR or T2w scan; what is there: PDw"
    assert "only sub-01_ses-b_UNIT1.nii.gz" in b.nothing_because
    assert "as sub-01_ses-b_T1w.nii.gz" in b.nothing_because
    with pytest.raises(NothingSelectedError, match=r"sub-01_ses-b: .*UNIT1.* as sub-01_ses-b_T1w"):
        collect(root, session_label=["b"])


def test_an_mp2rage_that_is_left_aside_is_told(root: Path) -> None:
    for name in ("sub-01_UNIT1", "sub-01_T2w", "sub-02_UNIT1", "sub-02_T1w"):
        scan(root, name)
    first, second = collect(root)
    assert first.reference.reason.startswith("the only T2w (sub-01_UNIT1.nii.gz is not used")
    assert second.reference.reason == "the only T1w"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("anat/sub-01_T1w.NII.GZ", "Rename it to .nii.gz."),
        ("anat/sub-01_T1w.mgz", "Convert it."),
        ("anat/sub-01_t1w.nii.gz", "rename it to _T1w.nii.gz."),
        ("anat/sub-01_acq-x_MPRAGE.nii", "rename it to _T1w.nii."),
        ("anat/sub-01_T2FLAIR.nii.gz", "rename it to _FLAIR.nii.gz."),
        ("anat/sub-001_T1w.nii.gz", "Names in it begin with sub-01_"),
        ("anat/sub-01_ses-1_T1w.nii.gz", "Names in it begin with sub-01_"),
        ("anat/sub-01_part-phase_T1w.nii.gz", "it is no magnitude image."),
        ("Anat/sub-01_T1w.nii.gz", "scans are looked for in anat/."),
        ("sub-01_T1w.nii.gz", "scans are looked for in anat/."),
    ],
)
def test_a_scan_that_is_nearly_one_is_named(root: Path, path: str, why: str) -> None:
    scan(root, "sub-02_T1w")
    (root / "sub-01" / path).parent.mkdir(parents=True, exist_ok=True)
    (root / "sub-01" / path).touch()
    said = collect(root)[0].nothing_because
    name = path.removeprefix("anat/")
    assert said.startswith(f"no T1w, FLAIR or T2w scan of it is used, though {name} is there: ") and said.endswith(why)


def test_what_a_session_has_instead_is_named(root: Path) -> None:
    scan(root, "sub-01_T1w")
    scan(root, "sub-02_inplaneT2")
    scan(root, "sub-02_acq-T1w_echo-1_MPM")
    (root / "sub-02/anat/._sub-02_T1w.nii.gz").touch()
    (root / "sub-02/anat/sub-02_T1w.json").touch()
    (root / "sub-03/ses-a/eeg").mkdir(parents=True)
    _, second, third = collect(root)
    assert second.nothing_because == "no T1w, FLAIR or T2w scan; what is there: MPM, inplaneT2"
    assert (third.name, third.nothing_because) == ("sub-03_ses-a", "no T1w, FLAIR or T2w scan")


@pytest.mark.parametrize(
    ("folder", "hint"),
    [
        ("rawdata/sub-01", "some in {root}/rawdata: give that folder"),
        ("Sub-01", "Sub-01 is there"),
        ("sub-A_01", "sub-A_01 cannot be used: labels"),
        ("derivatives/x/sub-01", r"anat\).$"),
    ],
)
def test_without_subjects_it_is_told_where_they_may_be(root: Path, folder: str, hint: str) -> None:
    (root / folder).mkdir(parents=True)
    with pytest.raises(NothingSelectedError, match="no subjects found.*" + hint.format(root=root)):
        collect(root)


def test_filters_apply_to_their_contrast_only(root: Path) -> None:
    for name in ("sub-01_acq-x_T1w", "sub-01_acq-y_T1w", "sub-01_acq-z_FLAIR", "sub-01_T2w"):
        scan(root, name)
    session = collect(root, filters={"T1w": {"acquisition": "y"}, "T2w": {"acquisition": "*"}})[0]
    assert [choice.path.name for choice in session.scans] == ["sub-01_acq-y_T1w.nii.gz", "sub-01_acq-z_FLAIR.nii.gz"]
    only_plain = collect(root, filters={"T1w": {"acquisition": None}, "FLAIR": {"acquisition": None}})[0]
    assert only_plain.contrasts == ("T2w",)


def test_derivatives_inside_the_dataset_are_not_raw(root: Path) -> None:
    scan(root, "sub-01_T1w")
    inside = root / "derivatives" / "other"
    inside.mkdir(parents=True)
    (inside / "dataset_description.json").write_text(
        '{"Name": "o", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}'
    )
    scan(inside, "sub-01_run-9_T1w", (0.5, 0.5, 0.5))
    assert collect(root)[0].reference.path.name == "sub-01_T1w.nii.gz"


def keys(sessions: list[SessionInputs]) -> list[tuple[str, str | None]]:
    return [(unit.subject, unit.session) for unit in sessions]


def test_labels_select_and_what_is_missing_is_known(root: Path) -> None:
    scan(root, "sub-01_T1w")
    scan(root, "sub-02_T1w")
    sessions = collect(root, participant_label=("02", "03"))
    assert [s.subject for s in sessions] == ["02"]
    assert missing_labels(keys(sessions), ("02", "03"), ()) == ["sub-03"]


def test_a_session_asked_for_that_nobody_has_is_known(root: Path) -> None:
    scan(root, "sub-01_ses-a_T1w")
    scan(root, "sub-02_ses-b_T1w")
    sessions = collect(root, session_label=("a", "b", "c"))
    assert missing_labels(keys(sessions), (), ("a", "b", "c")) == ["ses-c"]


def test_an_empty_subject_is_told_of(root: Path) -> None:
    """In DataLad datasets a subject may be a dataset of its own that was not fetched."""
    scan(root, "sub-01_T1w")
    (root / "sub-02").mkdir()
    _, empty = collect(root)
    assert empty.subject == "02" and not empty.scans
    assert "its folder is empty" in empty.nothing_because and "datalad get sub-02" in empty.nothing_because


def test_nothing_selected_names_what_there_is(root: Path) -> None:
    scan(root, "sub-01_ses-a_T1w")
    with pytest.raises(NothingSelectedError, match=r"sub-09.*Subjects found: sub-01"):
        collect(root, participant_label=("09",))
    with pytest.raises(NothingSelectedError, match=r"ses-z.*Sessions found: ses-a"):
        collect(root, session_label=("z",))
    scan(root, "sub-02_ses-b_T1w")
    with pytest.raises(NothingSelectedError, match=r"sub-02, ses-a.*Sessions found: ses-b\.$"):
        collect(root, participant_label=("02",), session_label=("a",))
    with pytest.raises(NothingSelectedError, match="filter"):
        collect(root, filters={c: {"acquisition": "none"} for c in ("T1w", "T2w", "FLAIR")})


def test_empty_dataset(root: Path) -> None:
    with pytest.raises(NothingSelectedError, match="no subjects found"):
        collect(root)


def test_index_on_disk_is_used_again(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    scan(root, "sub-01_T1w")
    database = tmp_path_factory.mktemp("db") / "index"
    first = collect(root, database_dir=database)
    assert any(database.iterdir())
    assert collect(root, database_dir=database) == first


def test_header_problem_is_empty_for_a_good_header(root: Path) -> None:
    scan(root, "sub-01_T1w")
    choice = collect(root)[0].reference
    assert header_problem(choice) == ""
    choice.path.write_bytes(b"")
    assert "0 bytes" in header_problem(choice)


def test_paths_stay_below_the_folder_that_was_given(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also through a link, as in DataLad datasets and on clusters."""
    scan(root, "sub-01_T1w")
    link = tmp_path_factory.mktemp("links") / "data"
    link.symlink_to(root)
    assert collect(link)[0].reference.path == link / "sub-01" / "anat" / "sub-01_T1w.nii.gz"


FILTERS = [
    {},
    {"T1w": {"acquisition": "x"}},
    {"T1w": {"acquisition": None}, "T2w": {"run": "*"}},
    {"T1w": {"acquisition": ["x", None], "run": 1}, "FLAIR": {"extension": ".nii.gz"}},
    {"T2w": {"run": "01"}},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_folders_and_database_give_the_same(
    root: Path, tmp_path_factory: pytest.TempPathFactory, filters: dict
) -> None:
    """The index of the folders reads names as pybids does."""
    for name in (
        "sub-01_ses-a_T1w", "sub-01_ses-a_acq-x_run-1_T1w", "sub-01_ses-a_run-01_T2w", "sub-01_ses-b_run-2_T2w",
        "sub-02_acq-x_rec-norm_T1w", "sub-02_ce-gd_T1w", "sub-02_part-phase_FLAIR", "sub-02_echo-1_part-mag_FLAIR",
        "sub-X3_ses-1_acq-yLong_run-1_T1w", "sub-X3_ses-1_task-a_FLAIR", "sub-04_ses-1_PDw",
    ):  # fmt: skip
        scan(root, name)
    (root / "sub-01" / "sub-01_sessions.tsv").write_text("session_id\nses-a\n")
    (root / "sub-05" / "func").mkdir(parents=True)
    (root / "sub-05" / "func" / "sub-05_task-rest_bold.nii.gz").touch()
    (root / "sub-06" / "anat").mkdir(parents=True)
    database = tmp_path_factory.mktemp("db") / "index"
    here, there = collect(root, filters=filters), collect(root, filters=filters, database_dir=database)
    assert here == there
    assert [session.name for session in here] == [
        "sub-01_ses-a", "sub-01_ses-b", "sub-02", "sub-04_ses-1", "sub-05", "sub-06", "sub-X3_ses-1",
    ]  # fmt: skip


def test_filter_of_an_unknown_entity_is_refused(root: Path) -> None:
    scan(root, "sub-01_T1w")
    with pytest.raises(UsageError, match="T1w: acq is no entity"):
        collect(root, filters={"T1w": {"acq": "x"}})


@pytest.mark.parametrize("name", ["sub-a b", "sub-..", "sub-<b>", "sub-a;rm", "sub-", "sub-é"])
def test_folders_that_are_no_labels_are_no_subjects(root: Path, name: str) -> None:
    """Labels become names of files, of workflows, and options in the lines of --list-jobs."""
    scan(root, "sub-01_T1w")
    (root / name / "anat").mkdir(parents=True)
    (root / name / "anat" / f"{name}_T1w.nii.gz").touch()
    assert [session.name for session in collect(root)] == ["sub-01"]


def test_names_that_disagree_with_their_folder_are_not_used(root: Path) -> None:
    scan(root, "sub-01_T1w")
    (root / "sub-01" / "anat" / "sub-02_FLAIR.nii.gz").touch()
    (root / "sub-01" / "anat" / "sub-01_ses-a_T2w.nii.gz").touch()
    assert collect(root)[0].contrasts == ("T1w",)


def test_links_into_annex_are_read_and_missing_content_is_told(root: Path) -> None:
    """A DataLad dataset: links into .git/annex; those of scans that were not fetched point nowhere. All read-only."""
    scan(root, "sub-01_T1w")
    annex = root / ".git" / "annex" / "objects"
    annex.mkdir(parents=True)
    path = root / "sub-01/anat/sub-01_T1w.nii.gz"
    path.rename(annex / "key1")
    path.symlink_to("../../.git/annex/objects/key1")
    (root / "sub-01/anat/sub-01_FLAIR.nii.gz").symlink_to("../../.git/annex/objects/key2")
    folders = [root, *(folder for folder in root.rglob("*") if folder.is_dir())]
    before = sorted(root.rglob("*"))
    for folder in folders:
        folder.chmod(0o555)
    try:
        session = collect(root)[0]
        assert session.contrasts == ("T1w", "FLAIR")
        assert header_problem(session.scans[0]) == ""
        assert "datalad get" in header_problem(session.scans[1])
        assert len(sha256(session.scans[0].path)) == 64
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert sorted(root.rglob("*")) == before


def test_a_database_is_seen_where_there_is_one(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    scan(root, "sub-01_T1w")
    database = tmp_path_factory.mktemp("db")
    assert not has_database(database)
    collect(root, database_dir=database)
    assert has_database(database)


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """As mode 000 does for whoever is not root."""
    locked: list[str] = []

    def guarded(function: Callable) -> Callable:
        def guard(folder: str | Path = ".") -> object:
            if any(Path(folder).is_relative_to(each) for each in locked):
                raise PermissionError(13, "Permission denied", str(folder))
            return function(folder)

        return guard

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, guarded(getattr(os, name)))
    return lambda folder: locked.append(str(folder))


@pytest.mark.parametrize(
    ("folder", "name"),
    [("sub-01", "sub-01"), ("sub-01/ses-a", "sub-01_ses-a"), ("sub-01/ses-a/anat", "sub-01_ses-a")],
)
def test_a_folder_that_cannot_be_read_costs_no_other_session(
    root: Path, lock: Callable[[Path], None], folder: str, name: str
) -> None:
    for each in ("sub-01_ses-a_T1w", "sub-02_ses-a_T1w"):
        scan(root, each)
    lock(root / folder)
    bad, good = collect(root)
    assert (bad.name, bad.scans, good.name, good.problem) == (name, (), "sub-02_ses-a", "")
    assert bad.problem.startswith(f"{root / folder}: cannot be read (Permission denied)")
    with pytest.raises(NothingSelectedError, match="Permission denied"):
        collect(root, participant_label=("01",))
    lock(root)
    with pytest.raises(NotBidsError, match="cannot be read"):
        collect(root)


@pytest.mark.parametrize("link", ["sub-02", "sub-02/ses-a"])
def test_a_link_that_leads_nowhere_costs_no_other_session(root: Path, link: str) -> None:
    scan(root, "sub-01_ses-a_T1w")
    (root / link).parent.mkdir(exist_ok=True)
    for target in ("missing", Path(link).name):  # nothing, and itself
        (root / link).symlink_to(target)
        good, bad = collect(root)
        assert good.contrasts == ("T1w",) and bad.problem.startswith(f"{root / link}: is a link that leads nowhere")
        (root / link).unlink()


def test_other_folders_need_not_be_readable(root: Path, lock: Callable[[Path], None]) -> None:
    scan(root, "sub-01_ses-a_T1w")
    (root / "sub-01/ses-a/dwi").mkdir()
    lock(root / "sub-01/ses-a/dwi")
    (session,) = collect(root)
    assert session.contrasts == ("T1w",) and not session.problem


@pytest.mark.parametrize("spoilt", ["four volumes", "no codes", "complex"])
def test_a_run_that_its_header_spoils_is_not_chosen(root: Path, spoilt: str) -> None:
    scan(root, "sub-01_run-1_T1w")
    scan(root, "sub-01_run-2_T1w")
    path = root / "sub-01/anat/sub-01_run-2_T1w.nii.gz"
    shape = (12, 12, 12, 4) if spoilt == "four volumes" else (12, 12, 12)
    bad = nib.Nifti1Image(np.zeros(shape, np.complex64 if spoilt == "complex" else np.uint8), np.eye(4))
    if spoilt == "no codes":
        bad.set_sform(None, 0)
        bad.set_qform(None, 0)
    nib.save(bad, path)
    (choice,) = collect(root)[0].scans
    assert choice.path.name == "sub-01_run-1_T1w.nii.gz" and choice.reason == "of 2: the readable one"


def test_a_raw_scan_comes_before_a_derived_one(root: Path) -> None:
    scan(root, "sub-01_space-MNI152NLin2009aSym_desc-preproc_T1w")
    scan(root, "sub-01_run-1_T1w", (2, 2, 2))
    (choice,) = collect(root)[0].scans
    assert choice.path.name == "sub-01_run-1_T1w.nii.gz"


def test_folders_without_a_label_of_bids_are_told(root: Path) -> None:
    scan(root, "sub-01_T1w")
    for name in ("sub-ABC_03/anat", "sub-01/ses-2020-01-05/anat", "sub-01/ses-a/anat"):
        (root / name).mkdir(parents=True)
    assert unusable_names(root) == ["sub-ABC_03", "sub-01/ses-2020-01-05"]
    assert unusable_names(root, ["02"]) == ["sub-ABC_03"]


def test_the_reason_tells_what_a_filter_leaves_out(root: Path) -> None:
    """The one that is left is not the only one there is."""
    for name in ("sub-01_acq-a_T1w", "sub-01_acq-b_T1w", "sub-01_FLAIR", "sub-01_acq-b_T2w"):
        scan(root, name)
    session = collect(root, filters={"T1w": {"acquisition": "a"}})[0]
    assert [choice.reason for choice in session.scans] == [
        "the only T1w (--bids-filter-file leaves out 1)", "the only FLAIR", "the only T2w",
    ]  # fmt: skip
    assert session.filtered == ()
    session = collect(root, filters={"T1w": {"acquisition": "c"}, "T2w": {"run": 1}})[0]
    assert session.reference.reason == "the only FLAIR (--bids-filter-file leaves out every T1w and T2w)"
    assert session.contrasts == ("FLAIR",) and session.filtered == ("T1w", "T2w")


def test_a_contrast_that_a_filter_takes_from_all_sessions_is_told(root: Path) -> None:
    """A slip in the filter's value, most often: a word on the terminal, not a hundred sessions without their T1w."""
    for name in ("sub-01_acq-a_T1w", "sub-01_FLAIR", "sub-02_acq-b_T1w", "sub-02_FLAIR"):
        scan(root, name)
    assert emptied_by_filters(collect(root, filters={"T1w": {"acquisition": "A"}})) == ["T1w"]
    assert emptied_by_filters(collect(root, filters={"T1w": {"acquisition": "a"}})) == []  # as is meant
    assert emptied_by_filters(collect(root, filters={"T2w": {"acquisition": "none"}})) == []  # there is none anyway


def test_scans_that_a_filter_leaves_out_are_not_called_missing(root: Path) -> None:
    scan(root, "sub-01_acq-a_T1w")
    scan(root, "sub-02_acq-b_T1w")
    sessions = collect(root, filters={"T1w": {"acquisition": "a"}})
    assert "though sub-02_acq-b_T1w.nii.gz is there" in sessions[1].nothing_because
    with pytest.raises(NothingSelectedError, match=r"lets through. sub-01: .* though sub-01_acq-a_T1w"):
        collect(root, filters={"T1w": {"acquisition": "c"}})

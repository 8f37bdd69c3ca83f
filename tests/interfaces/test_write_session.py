"""What is written of a session, of compartments among it, and what is recorded; what an earlier run wrote goes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bidsapp.errors import InputError
from bidsapp.interfaces.write import WriteSession


def scan(data: Path, name: str, contrast: str) -> dict[str, Any]:
    path = data / "sub-01" / "anat" / f"{name}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(np.zeros((11, 12, 13), np.uint8), np.eye(4)).to_filename(path)
    file = path.relative_to(data).as_posix()
    return {"contrast": contrast, "path": str(path), "file": file, "chosen_because": "the only one", "not_chosen": []}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Any]:
    data = tmp_path / "data"
    session = {
        "subject": "01", "session": "", "folder": "sub-01/anat", "prefix": "sub-01", "name": "sub-01",
        "scans": [scan(data, "sub-01_T1w", "T1w")], "more_scans": [scan(data, "sub-01_ce-gad_T1w", "T1wCE")],
    }  # fmt: skip
    files = {}
    for name in ("native_lesion_mask", "native_brain_mask", "work", "compartments", "field"):
        files[name] = str(tmp_path / f"{name}.nii.gz")
        nib.Nifti1Image(np.zeros((7, 8, 9), np.uint8), np.eye(4)).to_filename(files[name])
    return {
        "out_dir": str(tmp_path / "out"), "session": session, "options": {"denoise": False, "normalization": "zscore"},
        "plan": {"lesion_model": "shells-0.1", "no_lesions_because": ""},
        "results": [files["native_brain_mask"], files["native_lesion_mask"]], "preprocessed": [files["work"]],
        "to_template": files["field"], "to_subject": files["field"], "tables": [], "flags": "none", "pictures": [],
        "brain_note": "", "template_note": "", "network_note": "the CPU did it",
        "tissue_note": "", "lesion_note": "the CPU did it",
        "notes": [[], ["thick slices"]],
        "warnings": [[], ["cut at the top"]], "compartments_file": files["compartments"],
        "compartments": ["necrotic core", "edema", "<b>cyst</b>"],
    }  # fmt: skip


def test_segmentation_and_its_look_up_table(tmp_path: Path, inputs: dict[str, Any]) -> None:
    WriteSession(**inputs).run(cwd=str(tmp_path))
    folder = tmp_path / "out" / "sub-01" / "anat"
    assert (folder / "sub-01_space-orig_seg-lesions_dseg.nii.gz").is_file()
    rows = [line.split("\t")[:3] for line in (folder / "sub-01_seg-lesions_dseg.tsv").read_text().splitlines()]
    assert rows == [
        ["index", "name", "abbreviation"], ["0", "Background", "BG"], ["1", "Necrotic tumor core", "NCR"],
        ["2", "Peritumoral edema", "ED"], ["101", "<b>cyst</b>", "<b>cyst</b>"],
    ]  # fmt: skip
    assert "look-up" in json.loads((folder / "sub-01_space-orig_seg-lesions_dseg.json").read_text())["Description"]
    record = json.loads((folder / "sub-01_provenance.json").read_text())
    assert "sub-01/anat/sub-01_space-orig_seg-lesions_dseg.nii.gz" in record["outputs"]
    assert "sub-01/anat/sub-01_seg-lesions_dseg.tsv" in record["outputs"]


def test_scan_with_contrast_agent_is_recorded_and_not_written(tmp_path: Path, inputs: dict[str, Any]) -> None:
    WriteSession(**inputs).run(cwd=str(tmp_path))
    record = json.loads((tmp_path / "out/sub-01/anat/sub-01_provenance.json").read_text())
    assert [(scan["contrast"], scan["notes"]) for scan in record["inputs"]] == [
        ("T1w", []),
        ("T1wCE", ["thick slices"]),
    ]
    assert len(record["inputs"][1]["sha256"]) == 64 and record["contrasts"] == ["T1w"]
    assert record["warnings"] == ["cut at the top", "the CPU did it"]
    assert not [name for name in record["outputs"] if "ce-gad" in name]


def test_tissue_without_a_t1w_is_cautioned(tmp_path: Path, inputs: dict[str, Any]) -> None:
    inputs["session"]["scans"] = [scan(tmp_path / "data", "sub-01_FLAIR", "FLAIR")]
    for model, cautions in (("consensus", ["FLAIR alone gave"]), ("mixture", [])):
        inputs["plan"]["tissue_model"] = model
        WriteSession(**inputs).run(cwd=str(tmp_path))
        record = json.loads((tmp_path / "out/sub-01/anat/sub-01_provenance.json").read_text())
        assert len(record["reservations"]) == len(cautions)
        assert all(words in text for words, text in zip(cautions, record["reservations"], strict=True))
        assert not any("without a T1w" in warning for warning in record["warnings"])


@pytest.mark.parametrize(("spacing_mm", "cautions"), [(4.0, 0), (6.5, 1)])
def test_thick_slices_are_cautioned(tmp_path: Path, inputs: dict[str, Any], spacing_mm: float, cautions: int) -> None:
    """Those of the reference: the other scan has slices of 1 mm."""
    path = inputs["session"]["scans"][0]["path"]
    nib.Nifti1Image(np.zeros((11, 12, 13), np.uint8), np.diag([1, spacing_mm, 1, 1])).to_filename(path)
    WriteSession(**inputs).run(cwd=str(tmp_path))
    record = json.loads((tmp_path / "out/sub-01/anat/sub-01_provenance.json").read_text())
    assert len(record["reservations"]) == cautions
    assert all("T1w lie 6.5 mm apart" in text for text in record["reservations"])


def test_without_compartments_there_is_no_such_file(tmp_path: Path, inputs: dict[str, Any]) -> None:
    del inputs["compartments_file"], inputs["compartments"]
    WriteSession(**inputs).run(cwd=str(tmp_path))
    assert not list((tmp_path / "out").rglob("*seg-lesions*"))
    assert len(list((tmp_path / "out").rglob("*_dseg.tsv"))) == 3


def test_the_grid_that_was_used_is_recorded(tmp_path: Path, inputs: dict[str, Any]) -> None:
    """Of a header whose sform has a code but holds zeros: the qform was used."""
    about = inputs["session"]["scans"][0]
    img = nib.load(about["path"])
    img.set_qform(np.diag([-1.0, 2, 3, 1]), 1)
    header = bytearray(img.to_bytes())
    header[254:256] = np.int16(1).tobytes()
    header[280:328] = bytes(48)
    Path(about["path"]).write_bytes(gzip.compress(bytes(header)))
    WriteSession(**inputs).run(cwd=str(tmp_path))
    record = json.loads((tmp_path / "out/sub-01/anat/sub-01_provenance.json").read_text())
    assert record["inputs"][0]["voxel_size_mm"] == [1, 2, 3] and record["inputs"][0]["orientation"] == "LAS"


def test_a_record_that_cannot_be_made_costs_no_earlier_results(tmp_path: Path, inputs: dict[str, Any]) -> None:
    WriteSession(**inputs).run(cwd=str(tmp_path))
    before = left_behind(tmp_path / "out")
    Path(inputs["session"]["scans"][0]["path"]).unlink()
    with pytest.raises(InputError, match="no such file"):
        WriteSession(**inputs).run(cwd=str(tmp_path))
    assert left_behind(tmp_path / "out") == before


def test_a_scan_without_notes_is_an_error(tmp_path: Path, inputs: dict[str, Any]) -> None:
    inputs["notes"] = [[]]
    with pytest.raises(ValueError, match="shorter"):
        WriteSession(**inputs).run(cwd=str(tmp_path))


def left_behind(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("killed", [False, True])
def test_what_an_earlier_run_wrote_and_this_one_does_not_is_gone(
    killed: bool, tmp_path: Path, inputs: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    table, picture = tmp_path / "lesions.tsv", tmp_path / "desc-lesion_image.png"
    for path in (table, picture):
        path.write_text("of an earlier run")
    WriteSession(**inputs | {"tables": [str(table)], "pictures": [str(picture)]}).run(cwd=str(tmp_path))
    kept = [out / "sub-01/anat/sub-01_note.txt", out / "sub-01/figures/sub-01_ses-2_desc-lesion_image.png"]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of somebody else")
    if killed:
        (out / "sub-01/anat/sub-01_provenance.json").unlink()
    inputs["results"] = inputs["results"][:1]  # no lesions this time
    del inputs["compartments_file"], inputs["compartments"]
    WriteSession(**inputs).run(cwd=str(tmp_path))
    record = json.loads((out / "sub-01/anat/sub-01_provenance.json").read_text())
    there = left_behind(out) - {path.relative_to(out).as_posix() for path in kept}
    assert all(path.is_file() for path in kept)
    assert not [name for name in there if name.endswith(("_lesions.tsv", ".png"))]
    if not killed:
        assert there == {*record["outputs"], "sub-01/anat/sub-01_provenance.json"}


def test_a_record_cannot_remove_files_elsewhere(tmp_path: Path, inputs: dict[str, Any]) -> None:
    folder, precious = tmp_path / "out/sub-01/anat", tmp_path / "precious.txt"
    folder.mkdir(parents=True)
    precious.write_text("mine")
    names = {"../precious.txt": 1, str(precious): 1, "sub-01": 1}
    (folder / "sub-01_provenance.json").write_text(json.dumps({"outputs": names}))
    WriteSession(**inputs).run(cwd=str(tmp_path))
    assert precious.is_file()

"""The workflow of a labelled session: complete for any contrasts, and it follows the labels to their scan."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nipype.interfaces.base import isdefined

from bidsapp.bids import SessionInputs
from bidsapp.config import Config
from bidsapp.interfaces.cases import StoreCase
from bidsapp.scan_choice import ScanChoice
from bidsapp.workflows.case import Labels, init_case_wf


@pytest.mark.parametrize(("contrasts", "under"), [
    (("FLAIR",), "FLAIR"), (("T1w", "FLAIR"), "T1w"), (("T1w", "FLAIR", "T2w"), "FLAIR"),
])  # fmt: skip
def test_graph_is_complete(tmp_path: Path, contrasts: tuple[str, ...], under: str) -> None:
    (tmp_path / "dataset_description.json").write_text("{}")
    scans = []
    for contrast in (*contrasts, "labels"):
        path = tmp_path / f"sub-01_{contrast}.nii.gz"
        path.touch()
        scans.append(ScanChoice(contrast, path, "the only one"))
    inputs = SessionInputs("01", None, tuple(scans[:-1]))
    config = Config(bids_dir=tmp_path, out_dir=tmp_path / "out", level="participant")
    labels = Labels(scans[-1].path, (3, 7), under)
    workflow = init_case_wf(inputs, config, labels=labels, folder=tmp_path / "case", record={"name": "sub-01"})
    workflow._create_flat_graph()
    write = workflow.get_node("write")
    fed = {field: source.name for source, _, data in workflow._graph.in_edges(write, data=True)
           for _, field in data["connect"]}  # fmt: skip
    for name in write.inputs.traits(mandatory=True):
        assert name in fed or isdefined(getattr(write.inputs, name)), name
    assert fed["native_file"] == fed["work_file"] == f"conform_{under}"
    moved = under != contrasts[0]
    assert fed.get("transform_file") == (f"coregister_{under}" if moved else None)
    assert "template" not in workflow.list_node_names()  # half a minute that training does not need


def test_a_scan_with_contrast_agent_is_kept_where_the_model_is_shown_it(tmp_path: Path) -> None:
    (tmp_path / "dataset_description.json").write_text("{}")
    scans = {}
    for name in ("T1w", "T1wCE", "labels"):
        path = tmp_path / f"sub-01_{name}.nii.gz"
        path.touch()
        scans[name] = ScanChoice(name, path, "the only one")
    inputs = SessionInputs("01", None, (scans["T1w"],), (scans["T1wCE"],))
    config = Config(bids_dir=tmp_path, out_dir=tmp_path / "out", level="participant")
    for channels, kept in ((("T1w", "T1wCE"), ["T1w", "T1wCE"]), (("T1w",), ["T1w"])):
        workflow = init_case_wf(
            inputs, config, labels=Labels(scans["labels"].path, (), kept[-1]), channels=channels,
            folder=tmp_path / "case", record={},
        )  # fmt: skip
        assert workflow.get_node("write").inputs.contrasts == kept
        assert ("coregister_T1wCE" in workflow.list_node_names()) == ("T1wCE" in kept)


def test_the_node_keeps_a_session(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    affine = np.diag([1.0, 1, 1, 1])
    brain, drawn = np.zeros((16, 18, 14), np.uint8), np.zeros((16, 18, 14), np.int16)
    brain[3:13, 3:15, 3:11], drawn[6:9, 6:9, 6:9] = 1, 7
    scan = rng.random(brain.shape).astype(np.float32)
    files = {name: tmp_path / f"{name}.nii" for name in ("scan", "mask", "label")}
    for name, data in (("scan", scan), ("mask", brain), ("label", drawn)):
        nib.save(nib.Nifti1Image(data, affine), files[name])
    node = StoreCase(
        in_files=[str(files["scan"])], contrasts=["FLAIR"], mask_file=str(files["mask"]), indices=[3, 7],
        label_file=str(files["label"]), native_file=str(files["scan"]), work_file=str(files["scan"]),
        folder=str(tmp_path / "case"), record={"name": "sub-01"},
    )  # fmt: skip
    (tmp_path / "case").mkdir()
    (tmp_path / "case/to_drawn.txt").write_text("of an earlier run, whose labels lay on another scan")
    # Stopped as it writes: what an earlier run left is no case any more.
    (tmp_path / "case/case.json").write_text("{}")
    with monkeypatch.context() as stopped:
        stopped.setattr(shutil, "copyfile", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            node.run(cwd=str(tmp_path))
    assert not (tmp_path / "case/case.json").exists()
    node.run(cwd=str(tmp_path))
    assert not (tmp_path / "case/to_drawn.txt").exists()
    kept = nib.load(tmp_path / "case/labels.nii")
    assert kept.get_data_dtype() == np.uint8 and np.array_equal(np.asarray(kept.dataobj) == 2, drawn == 7)
    np.testing.assert_array_equal(nib.load(tmp_path / "case/FLAIR.nii").get_fdata(dtype=np.float32), scan)
    assert json.loads((tmp_path / "case/case.json").read_text()) == {"name": "sub-01"}

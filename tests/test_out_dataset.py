from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bidsapp.errors import NotBidsError, UsageError
from bidsapp.out_dataset import check_folders, write_dataset_description


def test_what_evaluate_writes_beside_the_results_does_not_trouble_the_validator(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_dataset_description(out, tmp_path)
    for name in ("evaluation.tsv", "evaluation.html", "pictures/a.png", "consensus/sub-01/anat/sub-01_note.txt"):
        path = out / "evaluation" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    validator = Path(sys.executable).parent / "bids-validator-deno"
    done = subprocess.run([str(validator), "--json", str(out)], capture_output=True, text=True, check=False)
    assert "evaluation" not in done.stdout


def test_results_are_no_input_and_another_dataset_is_no_output(tmp_path: Path) -> None:
    root, out, other = (tmp_path / name for name in ("data", "out", "other"))
    for folder in (root, other):
        folder.mkdir()
    (root / "dataset_description.json").write_text(json.dumps({"Name": "test", "BIDSVersion": "1.10.0"}))
    write_dataset_description(out, root)
    check_folders(root, out)  # as at every run but the first
    check_folders(root, root / "derivatives" / "bidsapp")
    with pytest.raises(NotBidsError, match="First BIDS_DIR, then OUT_DIR"):
        check_folders(out, root)
    (other / "dataset_description.json").write_text(json.dumps({"Name": "precious"}))
    with pytest.raises(UsageError, match=r"holds another dataset .precious."):
        check_folders(root, other)
    (other / "dataset_description.json").write_text(json.dumps({"Name": "another study"}))
    with pytest.raises(UsageError, match=r"results of another dataset .*same dataset by a new name, remove"):
        check_folders(other, out)
    (out / "dataset_description.json").unlink()
    check_folders(other, out)
    with pytest.raises(UsageError, match="lies within the dataset"):
        check_folders(root, root / "results")
    (root / ".bidsignore").write_text("*.html\nresults/\n")
    check_folders(root, root / "results")

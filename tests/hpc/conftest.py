"""A dataset for the app with light sessions (light.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def make_dataset() -> Callable[[Path], Path]:
    """The function that makes it."""
    return _make_dataset


def _make_dataset(folder: Path) -> Path:
    """Four subjects of two sessions, one without sessions; their scans are no images."""
    folder.mkdir()
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "light", "BIDSVersion": "1.10.0"}))
    names = [f"sub-0{subject}_ses-{session}" for subject in range(1, 5) for session in "ab"] + ["sub-05"]
    for name in names:
        path = folder.joinpath(*name.split("_"), "anat", f"{name}_T1w.nii.gz")
        path.parent.mkdir(parents=True)
        path.write_text(f"scan of {name}")
    return folder

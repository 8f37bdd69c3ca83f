"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def demo_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo dataset, made once per run of pytest, by whichever worker comes first. Read only: copy what you change.

    sub-01 ses-1 (T1w, T2w, FLAIR) and ses-2 (T1w, FLAIR), sub-02 ses-1 (FLAIR); the truth is in derivatives/truth.
    """
    from demo import make_dataset

    base = tmp_path_factory.getbasetemp()
    # Under xdist every worker has a folder of its own below the common one.
    folder = (base.parent if base.name.startswith("popen-") else base) / "demo-dataset"
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").is_dir():
            make_dataset(folder / "unfinished")
            (folder / "unfinished").rename(folder / "complete")
    return folder / "complete"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real scans; the test is skipped, saying so, where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real scans: {folder} is missing")
    return folder

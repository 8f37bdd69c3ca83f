"""Fixtures for all tests."""

from __future__ import annotations

import os

from bidsapp.machine import fixed_environment

# As the app does, before numpy and ITK are imported: results do not depend on the machine's load. One thread for each
# of pytest's processes.
os.environ.update(fixed_environment(threads=1, seed=1))

from collections.abc import Callable
from pathlib import Path
from typing import Any

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


@pytest.fixture
def write_lesion_model() -> Callable[..., Path]:
    """Write a model folder as ``bidsapp train`` does: lesion where the FLAIR is 2 standard deviations above the mean.

    What is given beside the folder goes into the card; ``first`` makes it a cascade (that folder is written, too).
    """
    import torch

    from bidsapp.learn.model_folder import write_model
    from bidsapp.models.patchwise import TwoPathway, TwoPathwayConfig

    def write(folder: Path, *, above: float = 2.0, first: bool = False, **card: Any) -> Path:
        classes = card.get("classes", ["background", "lesion"])
        config = TwoPathwayConfig(
            channels=1 + first, classes=len(classes), features=(1,) * 8, joint=1, dropout=0.0, activation="leaky"
        )
        network = TwoPathway(config)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.dim() == 5:
                    parameter.zero_()
            for layer in [*network.fine.layers, network.joint1, network.joint2]:
                side = layer[-1].kernel_size[0] // 2
                layer[-1].weight[0, 0, side, side, side] = 1
            network.head[-1].weight[1:, 0] = 10
            network.head[-1].bias.zero_()
            network.head[-1].bias[1:] = -10 * above
        whole = {
            "name": "bright", "version": "1.0", "spacing_mm": 1.0, "orientation": "RAS", "channels": ["FLAIR"],
            "patch": 48, "classes": classes, "lesion_threshold": {"with FLAIR": 0.5},
            "training": {"data": ["no scans at all"]}, **card,
        }  # fmt: skip
        if first:
            write(folder / "first", above=above, name="proposes")
            whole |= {"cascade": {"propose_above": 0.1, "grow_mm": 3.0}}
        return write_model(network, folder, whole)

    return write

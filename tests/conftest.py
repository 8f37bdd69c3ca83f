"""Fixtures for all tests."""

from __future__ import annotations

import os

from bidsapp.machine import fixed_environment

# As the app does, before numpy and ITK are imported: results do not depend on the machine's load. One thread for each
# of pytest's processes.
os.environ.update(fixed_environment(threads=1, seed=1))

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from bidsapp.learn.generator_config import GeneratorConfig
    from bidsapp.learn.heads import Heads
    from bidsapp.learn.lesion_masks import Lesions


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


@pytest.fixture(scope="session")
def ball() -> Heads:
    """A head made of balls: skin, bone, CSF, grey and white matter, right side apart from left."""
    import torch

    from bidsapp.learn.anatomy import INSIDE_BRAIN, POSITION
    from bidsapp.learn.heads import LATERAL, Heads, brain_hull, outwards, signed_distance, to_positions

    grid = np.indices((72, 80, 88)).astype(float)
    r = np.sqrt(((grid - np.array([36, 40, 44])[:, None, None, None]) ** 2).sum(0))
    left = grid[0] < 36
    labels = np.zeros(r.shape, int)
    for radius, index in ((33, (511, 511)), (30, (515, 515)), (26, (24, 24)), (24, (3, 42)), (18, (2, 41))):
        labels[r < radius] = np.where(left, *index)[r < radius]
    positions = to_positions(labels)
    inside = np.isin(positions, [POSITION[i] for i in INSIDE_BRAIN])
    distance = signed_distance(brain_hull(positions, inside))
    return Heads(
        torch.from_numpy(positions)[None],
        torch.from_numpy(distance)[None],
        torch.from_numpy(outwards(np.isin(positions, LATERAL), distance.astype(np.float32)))[None],
        np.array([[36.0, 40.0, 44.0]]),
        np.array([[24.0, 24.0, 24.0]]),
        ("ball",),
    )


@pytest.fixture(scope="session")
def everywhere() -> Lesions:
    """One mask that covers the left half of MNI space (x < 91)."""
    import torch

    from bidsapp.learn.lesion_masks import SHAPE, SPOTS, Lesions

    mask = torch.zeros((1, *SHAPE), dtype=torch.uint8)
    mask[:, :91] = 1
    return Lesions(mask, np.full((1, SPOTS, 3), (60, 108, 90)))


@pytest.fixture(scope="session")
def patches() -> GeneratorConfig:
    """Small patches of stripped heads, all with lesions."""
    from bidsapp.learn.generator_config import GeneratorConfig

    return GeneratorConfig(
        spacing_mm=1, contrasts=3, patch=32, p_lesions=1, p_centred=0, p_stripped=1, elastic_mm=(0, 0.5), rotation_deg=0
    )

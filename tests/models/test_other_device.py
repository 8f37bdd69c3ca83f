"""No model mixes what is on its device with what is not, and the device changes no result; no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from bidsapp.models import crf, patchwise, segment
from bidsapp.models.brain import find_brain
from bidsapp.models.mixture import fit_mixture
from bidsapp.models.registry import Model, load_model
from tests.other_device import NAME, Elsewhere, other_device

SHAPE = (40, 44, 36)


@pytest.fixture
def head(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Three shells of tissue on T1w and on a FLAIR of a part; the mask; their priors."""
    x, y, z = np.indices(SHAPE)
    radius = np.sqrt(((x - 20) / 16) ** 2 + ((y - 22) / 18) ** 2 + ((z - 18) / 15) ** 2)
    tissue = np.digitize(radius, (0.3, 0.7))[None] == np.array([2, 1, 0])[:, None, None, None]
    images = {
        name: (np.tensordot(means, tissue, 1) + rng.normal(0, 6, SHAPE)).astype(np.float32)
        for name, means in (("T1w", (60, 100, 20)), ("FLAIR", (90, 70, 20)))
    }
    images["FLAIR"][:5] = np.nan
    return images, radius < 1, np.where(tissue, 0.8, 0.1).astype(np.float32)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "bfloat16", lambda device: False)


def same(run: Callable[[str], np.ndarray]) -> None:
    with other_device() as device:
        found = run(device)
    np.testing.assert_array_equal(found, run("cpu"))


def test_the_stand_in_refuses_what_a_gpu_refuses() -> None:
    with other_device() as device:
        there = torch.zeros(3, device=device)
        there[1] = 5
        assert isinstance(there, Elsewhere) and there.device.type == NAME and float(there.sum()) == 5
        assert (there + 1).cpu().tolist() == [1, 6, 1] and isinstance(torch.tensor([1.0]).to(device), Elsewhere)
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError):
            there.numpy()


def test_mixture(head) -> None:
    images, mask, priors = head
    same(lambda device: fit_mixture(images, mask, priors, device=device).posteriors)


def test_brain(head) -> None:
    image = np.nan_to_num(head[0]["T1w"])
    same(lambda device: find_brain(image, voxel_size_mm=(4.0, 4.0, 4.0), device=device))


@pytest.mark.parametrize("tta", [False, True])
def test_segmentation_network(head, tta: bool) -> None:
    def run(device: str) -> np.ndarray:
        model = load_model("segment", device=device)
        size = (1.0, 1.0, 1.0)
        return segment.segment_network(
            head[0], head[1], voxel_size_mm=size, device=device, model=model, tta=tta
        ).probability

    same(run)


def test_cascade_of_patch_wise_networks_with_a_crf(head) -> None:
    images, mask, _ = head

    def model(channels: int, first: Model | None = None, **card) -> Model:
        torch.manual_seed(1)
        network = patchwise.TwoPathway(
            patchwise.TwoPathwayConfig(channels=channels, classes=2, features=(2,) * 8, joint=4)
        ).eval()
        card = {"patch": 27, "classes": ["background", "lesion"], "channels": ["FLAIR"], **card}
        return Model("drawn at random", "0", 1.0, card, network, first)

    def run(device: str) -> np.ndarray:
        cascade = model(2, model(1), cascade={"propose_above": 0.4, "grow_mm": 2.0}, crf={})
        return segment.segment_network(
            images, mask, voxel_size_mm=(1.0, 1.0, 1.0), device=device, model=cascade
        ).probability

    same(run)


def test_conditional_random_field(head) -> None:
    images = np.stack([np.nan_to_num(image) / 50 for image in head[0].values()]).astype(np.float32)
    lesion = 0.3 * head[1].astype(np.float32)
    same(
        lambda device: crf.refine(
            np.stack([1 - lesion, lesion]), images, crf.CrfSettings(), voxel_size_mm=(1.0, 1.0, 1.0), device=device
        )
    )

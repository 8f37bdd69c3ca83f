"""Networks with a margin and cascades, with networks that do as told; the two-pathway network cut in any way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from bidsapp.image.morphology import grown
from bidsapp.models import segment, tiles
from bidsapp.models.patchwise import TwoPathway, TwoPathwayConfig
from bidsapp.models.registry import Model
from bidsapp.models.segment import segment_network

LESION = ["background", "lesion"]


@dataclass(frozen=True)
class Config:
    channels: int = 1
    classes: int = 2
    place: bool = False
    multiple: int = 3
    step: int = 3


class Spread(torch.nn.Module):
    """Lesion where the mean of the 3x3x3 voxels around is above 1; it must see one voxel around (and says how many)."""

    margin = 1

    def __init__(self, channel: int = 0, channels: int = 1) -> None:
        super().__init__()
        self.config, self.channel, self.seen = Config(channels=channels), channel, 0

    def forward(self, x: torch.Tensor, place: torch.Tensor | None = None) -> torch.Tensor:
        self.seen += 1
        mean = torch.nn.functional.avg_pool3d(x[:, self.channel : self.channel + 1].float(), 3, stride=1)
        return torch.cat([torch.zeros_like(mean), 20 * (mean - 1)], 1)


class Says(torch.nn.Module):
    """Lesion with the same probability everywhere."""

    config, margin = Config(channels=2), 0

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.logit, self.inputs = float(np.log(probability / (1 - probability))), []  # type: ignore[var-annotated]

    def forward(self, x: torch.Tensor, place: torch.Tensor | None = None) -> torch.Tensor:
        self.inputs.append(x.clone())
        return torch.stack([torch.zeros_like(x[:, 0]), torch.full_like(x[:, 0], self.logit)], 1)


def model(network: torch.nn.Module, patch: int, first: Model | None = None, **card: Any) -> Model:
    card = {"patch": patch, "classes": LESION, "channels": ["FLAIR"], **card}
    return Model("fake", "0", 1.0, card, network, first)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "bfloat16", lambda device: False)


@pytest.fixture
def head(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A brain that reaches the ends of the image, with two bright spots."""
    mask = np.ones((21, 26, 31), bool)
    mask[:2] = False
    image = rng.normal(0, 1, mask.shape)
    image[5:9, 3:7, 3:7] += 6
    image[14:18, 20:24, 24:28] += 6
    return {"FLAIR": image.astype(np.float32)}, mask


def whole(found: segment.NetworkResult, shape: tuple[int, ...]) -> np.ndarray:
    out = np.zeros((len(found.classes), *shape), np.float32)
    out[(slice(None), *found.box)] = found.probability
    return out


def run(head: Any, network: Model, **options: Any) -> np.ndarray:
    images, mask = head
    found = segment_network(images, mask, voxel_size_mm=(1.0, 1.0, 1.0), model=network, **options)
    assert found.probability.sum(0) == pytest.approx(1, abs=1e-5)
    return whole(found, mask.shape)[1]


def test_box_of_tiles_by_hand() -> None:
    """Four voxels around, as far as the image begins; a tile wide at least, and a multiple of three."""
    mask = np.zeros((120, 110, 100), bool)
    mask[3:10, 20:90, 40:60] = True
    assert tiles.box_of_tiles(mask, model(Spread(), 48)) == (slice(0, 48), slice(16, 94), slice(36, 84))
    assert tiles.box_of_tiles(mask, model(Spread(), 9)) == (slice(0, 15), slice(16, 94), slice(36, 66))


@pytest.mark.parametrize("patch", [3, 6, 9, 30])
def test_tiles_see_around_themselves(head: Any, patch: int) -> None:
    """Whatever the tiles, the mean over 3x3x3 is that over the whole image; beyond its end all is 0."""
    images, mask = head
    scaled = np.clip((images["FLAIR"] - images["FLAIR"][mask].mean()) / images["FLAIR"][mask].std(), -5, 5) * mask
    padded = np.pad(scaled, 1)
    mean = sum(
        padded[x : x + 21, y : y + 26, z : z + 31] for x in range(3) for y in range(3) for z in range(3)
    ) / 27  # fmt: skip
    expected = 1 / (1 + np.exp(-20 * (mean - 1)))
    np.testing.assert_allclose(run(head, model(Spread(), patch))[mask], expected[mask], atol=1e-4)


def test_mirrored_tiles_see_around_themselves_too(head: Any) -> None:
    np.testing.assert_allclose(run(head, model(Spread(), 6), tta=True), run(head, model(Spread(), 6)), atol=1e-5)


def test_two_pathways_give_the_same_in_any_tiles(head: Any) -> None:
    torch.manual_seed(0)
    config = TwoPathwayConfig(channels=1, classes=2, features=(2,) * 8, joint=3, place=True)
    network = TwoPathway(config).eval()
    with torch.no_grad():  # or the answers would all be much alike
        for parameter in network.head.parameters():
            parameter *= 5
    coarse, fine = (run(head, model(network, patch)) for patch in (30, 18))
    assert coarse[head[1]].std() > 0.01
    np.testing.assert_allclose(fine, coarse, atol=1e-4)


def test_tiles_without_brain_are_left_out() -> None:
    mask = np.zeros((30, 30, 30), bool)
    mask[:3, :3, :3] = mask[-3:, -3:, -3:] = True
    network = Spread()
    found = run(({"FLAIR": np.ones(mask.shape, np.float32)}, mask), model(network, 6))
    assert network.seen == 2 and not found[10:20].any()


def test_every_voxel_is_in_a_tile() -> None:
    for n in range(6, 60, 3):
        for patch in (6, 9, 12):
            if n >= patch:
                covered = np.zeros(n, bool)
                starts = set()
                for tile in tiles.tiles((n, patch, patch), patch, step=3, overlap=0):
                    covered[tile[0]] = True
                    starts.add(tile[0].start)
                assert covered.all() and all(start % 3 == 0 for start in starts)


def test_cascade_asks_the_second_model_only_where_the_first_found_something(head: Any) -> None:
    """The second says 0.3 wherever it is asked: at the spots and 2 mm around; elsewhere the first's answer stays."""
    _, mask = head
    first, second = model(Spread(), 6), Says(0.3)
    alone = run(head, first)
    both = run(head, model(second, 30, first, cascade={"propose_above": 0.5, "grow_mm": 2.0}))
    near = grown(alone > 0.5, 2.0, (1.0, 1.0, 1.0)) & mask
    assert 100 < near.sum() < 0.1 * mask.sum()
    np.testing.assert_allclose(both[near], 0.3, atol=1e-5)
    np.testing.assert_allclose(both[~near & mask], alone[~near & mask], atol=1e-5)
    told = second.inputs[0][0, 1, :21, :26, :30].numpy()  # the last channel is what the first found
    np.testing.assert_allclose(told, (alone * mask)[:, :, :30], atol=1e-5)


def test_cascade_whose_first_finds_nothing(head: Any) -> None:
    second = Spread(channels=2)
    never = model(Says(1e-6), 30)
    found = run(head, model(second, 6, never, cascade={"propose_above": 0.1, "grow_mm": 3.0}))
    assert second.seen == 0 and found.max() < 1e-5


def test_cascade_of_compartments(head: Any) -> None:
    """Where it is not asked, the second model's kinds of lesion together are as probable as the first says."""

    class Kinds(Spread):
        def forward(self, x: torch.Tensor, place: torch.Tensor | None = None) -> torch.Tensor:
            return torch.cat([super().forward(x), torch.zeros_like(x[:, :1, 1:-1, 1:-1, 1:-1])], 1)

    network = Kinds(channels=2)
    network.config = Config(channels=2, classes=3)
    first = model(Says(0.05), 30)
    kinds = model(
        network, 6, first, classes=["background", "edema", "core"], lesion_classes=["edema", "core"],
        cascade={"propose_above": 0.1, "grow_mm": 3.0},
    )  # fmt: skip
    images, mask = head
    found = segment_network(images, mask, voxel_size_mm=(1.0, 1.0, 1.0), model=kinds)
    np.testing.assert_allclose(segment.lesion_probability(found, mask, kinds)[mask], 0.05, atol=1e-5)
    np.testing.assert_allclose(whole(found, mask.shape)[1][mask], 0.025, atol=1e-5)


def test_out_of_gpu_memory_in_either_stage(head: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    in_tiles, asked = tiles.in_tiles, []

    def scarce(network: Model, x: Any, places: Any, device: str, **options: Any) -> np.ndarray:
        asked.append((network.first is not None, device))
        if device != "cpu" and network.first is not None:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return in_tiles(network, x, places, device="cpu", **options)

    monkeypatch.setattr(tiles, "in_tiles", scarce)
    images, mask = head
    cascade = model(Says(0.3), 30, model(Spread(), 6), cascade={"propose_above": 0.5, "grow_mm": 2.0})
    found = segment_network(images, mask, voxel_size_mm=(1.0, 1.0, 1.0), device="cuda", model=cascade)
    assert asked == [(False, "cuda"), (True, "cuda"), (False, "cpu"), (True, "cpu")]
    assert "cuda" in found.note


def test_crf_of_the_card_is_used(head: Any) -> None:
    """All that is no lesion keeps its proportions, and all sums to 1."""
    settings = {"spatial_weight": 3.0, "bilateral_weight": 0.0}
    plain, smooth = run(head, model(Spread(), 6)), run(head, model(Spread(), 6, crf=settings))
    assert np.abs(plain - smooth).max() > 0.1
    nothing = {"spatial_weight": 0.0, "bilateral_weight": 0.0}
    np.testing.assert_array_equal(run(head, model(Spread(), 6, crf=nothing)), plain)
    with pytest.raises(ValueError, match="sharpness"):
        run(head, model(Spread(), 6, crf={"sharpness": 1}))


def test_contrasts_are_those_of_the_card(head: Any) -> None:
    with pytest.raises(ValueError, match="one of T2w, not FLAIR"):
        run(head, model(Spread(), 6, channels=["T2w"]))

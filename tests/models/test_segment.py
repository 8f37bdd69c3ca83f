"""The network's tiles, what it is told, what is read from it. Networks that do as told stand in for the real one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bidsapp.cards import T1W_ALONE
from bidsapp.image.morphology import grown
from bidsapp.labels import CONTRASTS, CSF, GM, STRUCTURES, TISSUES, WM
from bidsapp.models import segment, tiles
from bidsapp.models.registry import Model
from bidsapp.models.segment import NetworkResult, lesion_mask, read_classes, segment_network
from bidsapp.models.unet import UNetConfig, symmetric_place

NAMES = ("background", *(structure.name for structure in STRUCTURES), "lesion")
PATCH = 32


class Local(torch.nn.Module):
    """The logit of the first class is the FLAIR, that of the second how far from the midline a voxel lies."""

    config, margin = UNetConfig(channels=3, classes=2, place=True), 0

    def forward(self, x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        aside = torch.nn.functional.interpolate(place[:, :1], scale_factor=2)
        return torch.cat([x[:, 2:3], aside], 1)


@pytest.fixture
def model() -> Model:
    card = {"patch": PATCH, "classes": ["one", "other"]}
    return Model("local", "0", 1.0, card, Local())  # type: ignore[arg-type]


@pytest.fixture
def head(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A brain that reaches the end of the image along one axis and is larger than a tile along two."""
    mask = np.zeros((50, 24, 61), bool)
    mask[3:47, 4:24, 5:55] = True
    return {"FLAIR": rng.normal(100, 20, mask.shape).astype(np.float32)}, mask


def run(head: tuple[dict[str, np.ndarray], np.ndarray], model: Model, **options: Any) -> np.ndarray:
    images, mask = head
    found = segment_network(images, mask, voxel_size_mm=(1.0, 1.0, 1.0), model=model, **options)
    out = np.zeros((len(found.classes), *mask.shape), np.float32)
    out[(slice(None), *found.box)] = found.probability
    return out


def expected(images: dict[str, np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Probability of the first class, straight from the definition."""
    values = images["FLAIR"][mask].astype(float)
    scaled = np.clip((images["FLAIR"] - values.mean()) / values.std(), -5, 5)
    centre, half = (3 + 47) / 2, (47 - 3) / 2 - segment.FLUID_RIM_MM
    start = max(0, 3 - 4)
    pairs = ((np.arange(50) - start) // 2) * 2 + start + 1.0  # the place is that of the middle of two voxels
    aside = np.abs(pairs - centre)[:, None, None] / half
    return 1 / (1 + np.exp(aside - scaled))


def test_tiles_make_the_whole(head: Any, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the image is cut, a network that looks at single voxels gives the same; in float32, to be exact."""
    monkeypatch.setattr(segment, "bfloat16", lambda device: False)
    images, mask = head
    np.testing.assert_allclose(run(head, model)[0][mask], expected(images, mask)[mask], atol=1e-5)


def test_scale_of_the_scan_does_not_matter(head: Any, model: Model) -> None:
    images, mask = head
    np.testing.assert_allclose(run(({"FLAIR": images["FLAIR"] * 7 + 3}, mask), model), run(head, model), atol=1e-2)


def test_missing_contrast_and_air_are_zero(head: Any, model: Model) -> None:
    images, mask = head
    box = tiles.box_of_tiles(mask, model)
    channels = segment.scaled_channels(images, mask, mask, box)
    assert not channels[0].any() and not channels[1].any()
    inside = np.zeros(channels.shape[1:], bool)
    inside[: mask[box].shape[0], : mask[box].shape[1], : mask[box].shape[2]] = mask[box]
    assert not channels[2][~inside].any()
    assert channels[2][inside].mean() == pytest.approx(0, abs=1e-4)
    assert channels[2][inside].std() == pytest.approx(1, abs=1e-3)


def test_what_a_scan_does_not_show_is_neither_signal_nor_counted(head: Any, model: Model) -> None:
    images, mask = head
    box = tiles.box_of_tiles(mask, model)
    seen = np.ones(mask.shape, bool)
    seen[:, :, mask.shape[2] // 2 :] = False
    images["FLAIR"][~seen] = np.nan
    channel = segment.scaled_channels(images, mask, mask, box)[2]
    part = tuple(slice(0, n) for n in mask[box].shape)
    assert not channel[part][~seen[box]].any()
    shown = channel[part][(mask & seen)[box]]
    assert shown.mean() == pytest.approx(0, abs=1e-4) and shown.std() == pytest.approx(1, abs=1e-3)


def test_more_than_the_brain_may_be_shown_but_does_not_scale(head: Any, model: Model) -> None:
    images, mask = head
    images["FLAIR"][~mask] = 1000
    within = grown(mask, 2.0, (1.0, 1.0, 2.0))
    box = tiles.box_of_tiles(within, model)
    assert within.sum() > mask.sum() and not within[0, 0, 0]
    assert within[1, 10, 30] and not within[0, 10, 30]  # 2 mm from the mask, and 3
    assert within[25, 10, 55] and not within[25, 10, 56]  # thicker slices: 2 mm, and 4
    channels = segment.scaled_channels(images, mask, within, box)[2]
    shown, inside = within[box], mask[box]
    channels = channels[: shown.shape[0], : shown.shape[1], : shown.shape[2]]
    assert (channels[shown & ~inside] == 5).all() and not channels[~shown].any()
    assert channels[inside].mean() == pytest.approx(0, abs=1e-4)


def test_mirror_images_are_averaged(head: Any, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What treats both sides alike is not changed by it; what does not, is made to."""
    monkeypatch.setattr(segment, "bfloat16", lambda device: False)
    np.testing.assert_allclose(run(head, model, tta=True), run(head, model), atol=1e-5)

    class OneSided(Local):
        def forward(self, x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
            ramp = torch.linspace(-3, 3, x.shape[2])[None, None, :, None, None].expand_as(x[:, :1])
            return torch.cat([ramp, torch.zeros_like(ramp)], 1)

    _, mask = head
    lopsided = Model("sides", "0", 1.0, model.card, OneSided())  # type: ignore[arg-type]
    found = run(head, lopsided, tta=True)[0][mask]
    np.testing.assert_allclose(found, 0.5, atol=1e-5)
    assert run(head, lopsided)[0][mask].std() > 0.1


def test_out_of_gpu_memory_ends_on_the_cpu(head: Any, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    images, mask = head
    in_tiles, asked = tiles.in_tiles, []

    def scarce(model: Model, x: Any, places: Any, device: str, **options: Any) -> np.ndarray:
        asked.append(device)
        if device != "cpu":
            raise torch.cuda.OutOfMemoryError("out of memory")
        return in_tiles(model, x, places, device=device, **options)

    monkeypatch.setattr(tiles, "in_tiles", scarce)
    found = segment_network(images, mask, voxel_size_mm=(1.0, 1.0, 1.0), device="cuda:1", model=model)
    assert asked == ["cuda:1", "cpu"]
    assert "cuda:1" in found.note and "CPU" in found.note


def test_place_knows_no_side() -> None:
    ramp = torch.linspace(-1, 1, 8)
    place = symmetric_place(ramp, ramp, ramp)
    assert place.shape == (3, 4, 4, 4)
    torch.testing.assert_close(place[0], place[0].flip(0))
    assert place[1, 0, 0, 0] < 0 < place[1, 0, 3, 0]


@pytest.mark.parametrize(
    ("images", "what"),
    [({}, "nothing"), ({"PDw": np.ones((4, 5, 6))}, "PDw"), ({"T1w": np.ones((4, 5, 7))}, "shape")],
)
def test_input_that_does_not_fit(images: dict[str, np.ndarray], what: str, model: Model) -> None:
    with pytest.raises(ValueError, match=what):
        segment_network(images, np.ones((4, 5, 6), bool), voxel_size_mm=(1, 1, 1), model=model)


def test_empty_mask(model: Model) -> None:
    with pytest.raises(ValueError, match="empty"):
        segment_network({"T1w": np.ones((4, 5, 6))}, np.zeros((4, 5, 6), bool), voxel_size_mm=(1, 1, 1), model=model)


def network_result(shape: tuple[int, ...], **shares: np.ndarray) -> NetworkResult:
    probability = np.zeros((len(NAMES), *shape), np.float32)
    for name, share in shares.items():
        probability[NAMES.index(name.replace("_", " "))] = share
    return NetworkResult(NAMES, probability, tuple(slice(1, 1 + n) for n in shape))  # type: ignore[arg-type]


def test_classes_become_tissues_structures_and_lesions() -> None:
    """Along x: background, cortex, thalamus with a lesion of 40 %, white matter wholly lesion, ventricle."""
    shape = (5, 3, 4)

    def at(*values: float) -> np.ndarray:
        return np.broadcast_to(np.array(values)[:, None, None], shape)

    found = network_result(
        shape, background=at(0.9, 0.2, 0, 0, 0), cerebral_cortex=at(0.1, 0.8, 0, 0, 0), thalamus=at(0, 0, 0.6, 0, 0),
        lesion=at(0, 0, 0.4, 1, 0), lateral_ventricle=at(0, 0, 0, 0, 1),
    )  # fmt: skip
    mask = np.ones((7, 5, 6), bool)
    seen = read_classes(found, mask)
    assert not seen.mask[0].any() and not seen.mask[1].any() and seen.mask[2:6, 1:4, 1:5].all()
    tissues = seen.tissues[:, :, 1, 1]
    assert tissues[TISSUES.index(GM), 2] == pytest.approx(0.8, abs=2e-3)
    assert tissues[TISSUES.index(CSF), 2] == pytest.approx(0.2, abs=2e-3)  # the rest was background
    assert tissues[TISSUES.index(GM), 3] == pytest.approx(1, abs=2e-3)  # as if there were no lesion
    assert tissues[TISSUES.index(WM), 4] == pytest.approx(1)  # nothing else is known
    np.testing.assert_allclose(seen.tissues.sum(0)[seen.mask], 1, atol=1e-5)
    assert not seen.tissues[:, ~seen.mask].any()
    assert seen.structures[:, 1, 1].tolist() == [0, 0, 3, 10, 2, 4, 0]
    assert seen.lesion[:, 1, 1] == pytest.approx([0, 0, 0, 0.4, 1, 0, 0])


def test_a_lesion_lies_in_tissue() -> None:
    """A lesion of 70 % at a ventricle's wall, the rest twice as likely fluid as white matter: 0.2 and 0.1 + 0.7."""
    seen = read_classes(
        network_result((3, 3, 4), lesion=0.7, lateral_ventricle=0.2, cerebral_white_matter=0.1),
        np.ones((5, 5, 6), bool),
    )
    assert seen.structures[2, 2, 2] == 2
    assert seen.tissues[TISSUES.index(WM), 2, 2, 2] == pytest.approx(0.8, abs=1e-3)


def test_brain_keeps_its_largest_piece_without_holes() -> None:
    background = np.zeros((9, 8, 7), np.float32)
    background[4, 4, 3] = 1  # a hole
    background[7] = 1  # the last plane is cut off
    seen = read_classes(network_result((9, 8, 7), background=background), np.ones((11, 10, 9), bool))
    assert seen.mask[5, 5, 4] and not seen.mask[8:].any()


def test_narrow_clefts_are_brain_and_fluid() -> None:
    """A cleft of two voxels that is open to one side, as flow in the straight sinus makes it, and one of ten voxels."""
    background = np.zeros((30, 30, 30), np.float32)
    background[:20, 4:6] = 0.9
    background[:20, 12:22] = 0.9
    found = network_result(background.shape, background=background, cerebral_cortex=0.1)
    seen = read_classes(found, np.ones((32, 32, 32), bool))
    assert seen.mask[4:21, 5:7, 5:25].all()  # but for its mouth
    assert (seen.structures[4:21, 5:7, 5:25] == 24).all()
    assert seen.tissues[TISSUES.index(CSF), 10, 5, 10] == pytest.approx(0.9, abs=1e-3)
    assert not seen.mask[1:14, 16:20].any()
    beyond = np.ones((32, 32, 32), bool)
    beyond[:, 5:7] = False  # not shown, so not brain
    assert not read_classes(found, beyond).mask[:, 5:7].any()


def test_short_lesions_are_no_lesions() -> None:
    """Voxels of 1 x 1 x 2 mm: two voxels in a row along z are 4 mm long, two along x 2, three at corners 3."""
    probability = np.zeros((9, 8, 9), np.float32)
    probability[1, 1, 1:3] = probability[5:7, 1, 1] = 0.6
    probability[[5, 6, 7], [4, 5, 6], [6, 6, 6]] = 0.6
    found = lesion_mask(probability, threshold=0.5, voxel_size_mm=(1, 1, 2))
    assert np.argwhere(found).tolist() == [[1, 1, 1], [1, 1, 2], [5, 4, 6], [6, 5, 6], [7, 6, 6]]
    assert not lesion_mask(probability, threshold=0.7, voxel_size_mm=(1, 1, 2)).any()
    rounded = lesion_mask(probability, threshold=0.5, voxel_size_mm=(0.9999999, 0.9999999, 1.5))
    assert np.count_nonzero(rounded) == 5  # as header after header is rounded


def test_a_lesion_without_a_sure_voxel_is_none() -> None:
    probability = np.zeros((9, 8, 9), np.float32)
    probability[1:5, 1, 1] = probability[1:5, 6, 6] = 0.6
    probability[4, 6, 6] = 0.7
    found = lesion_mask(probability, threshold=0.5, seed=2 / 3, voxel_size_mm=(1, 1, 1))
    assert np.argwhere(found).tolist() == [[x, 6, 6] for x in range(1, 5)]


def test_packaged_network_names_all_structures() -> None:
    model = segment.packaged()
    assert tuple(model.card["classes"]) == NAMES
    assert set(model.card["lesion_threshold"]) == {segment.WITH_FLAIR, segment.WITHOUT_FLAIR, T1W_ALONE}
    assert all(0 < threshold < 1 for threshold in model.card["lesion_threshold"].values())
    assert model.card["channels"] == list(CONTRASTS)


def test_a_model_is_shown_as_much_around_the_brain_as_its_card_says(model: Model) -> None:
    mask = np.zeros((40, 40, 40), bool)
    mask[18:22, 18:22, 18:22] = True
    wide = replace(model, card={**model.card, "surround_mm": 10.0})
    for one, millimetres in ((model, int(segment.SURROUND_MM)), (wide, 10)):
        seen = segment.shown(mask, (1.0, 1.0, 2.0), one)
        rows, slices = np.flatnonzero(seen[:, 20, 20]), np.flatnonzero(seen[20, 20])
        assert (rows.min(), rows.max()) == (18 - millimetres, 21 + millimetres)
        assert (slices.min(), slices.max()) == (18 - millimetres // 2, 21 + millimetres // 2)


def test_offsets_of_the_card_are_those_of_the_contrasts_that_are_there(
    head: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "bfloat16", lambda device: False)
    _, mask = head
    plain = run(head, model)[:, mask]
    for key, moved in (("FLAIR", 0.5), ("T1w+FLAIR", 0.0)):
        offsets = replace(model, card={**model.card, "class_offsets": {key: {"one": 0.5}}})
        found = run(head, offsets)[:, mask]
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
        np.testing.assert_allclose(np.log(found[0] / found[1]) - np.log(plain[0] / plain[1]), moved, atol=1e-4)

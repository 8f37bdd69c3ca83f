from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp.cards import PACKAGED
from bidsapp.errors import InputError
from bidsapp.models import brain
from bidsapp.models.brain import _head_box, _one_piece, deepbet_brain, find_brain, normalise
from bidsapp.models.registry import Model, load_model
from bidsapp.models.unet import UNetConfig

DATA = Path(__file__).resolve().parents[2] / "../shared/data"


def test_one_piece_drops_the_smaller_piece_and_fills_holes() -> None:
    probability = np.full((7, 8, 9), 0.25, np.float32)
    probability[1:6, 1:6, 1:6] = 0.75
    probability[3, 3, 3] = 0.0  # a hole
    probability[1, 7, 8] = 0.75  # a stray voxel
    out = _one_piece(probability)
    assert out[3, 3, 3] == 1
    assert out[1, 7, 8] == 0
    assert out[2, 2, 2] == 0.75 and out[0, 0, 0] == 0.25
    assert out.dtype == np.float32


def test_one_piece_refuses_an_image_without_brain() -> None:
    with pytest.raises(InputError, match="no brain"):
        _one_piece(np.zeros((7, 8, 9), np.float32))


@pytest.mark.slow
def test_deepbet_agrees_with_freesurfer_on_a_real_t1w() -> None:
    folder = DATA / "bids_t1_freesurfer"
    if not folder.exists():
        pytest.skip(f"real scans are not here: {folder}")
    scan = nib.as_closest_canonical(nib.load(folder / "sub-01/anat/sub-01_T1w.nii.gz"))
    image = np.asanyarray(scan.dataobj, dtype=np.float32)
    truth = nib.load(folder / "derivatives/freesurfer/sub-01/anat/sub-01_space-orig_seg-aparcaseg_dseg.nii.gz")
    brain = np.asanyarray(nib.as_closest_canonical(truth).dataobj) > 0
    found = deepbet_brain(image)
    assert found.shape == image.shape and found.dtype == np.float32
    assert (found[brain] > 0.5).mean() > 0.98
    np.testing.assert_array_equal(found, deepbet_brain(image))


def test_deepbet_refuses_an_empty_image() -> None:
    with pytest.raises(InputError, match="deepbet finds no brain"):
        deepbet_brain(np.zeros((40, 41, 42), np.float32))


class _Echo(torch.nn.Module):
    """Stands in for the network: what it sees is its probability."""

    def __init__(self) -> None:
        super().__init__()
        self.config = UNetConfig(features=(2, 2, 2))
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert all(n % self.config.multiple == 0 for n in x.shape[2:])
        return torch.logit(x.clamp(1e-4, 1 - 1e-4))


@pytest.fixture
def echo() -> Model:
    return Model("echo", "0.0.0", 2.5, {}, _Echo())  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0), (0.9, 1.1, 1.3), (3.0, 1.0, 1.0)])
def test_the_way_down_and_up_keeps_the_border(echo: Model, sizes: tuple[float, float, float]) -> None:
    """A ball of radius 30 mm off the middle, drawn as the ramp that the network learns."""
    shape = tuple(int(n / size) for n, size in zip((97, 104, 111), sizes, strict=True))
    grid = [(np.arange(n) + 0.5) * size for n, size in zip(shape, sizes, strict=True)]
    x, y, z = np.meshgrid(*grid, indexing="ij")
    radius = np.sqrt((x - 41) ** 2 + (y - 52) ** 2 + (z - 60) ** 2)
    found = find_brain(np.clip(0.5 + (30 - radius) / 6, 0, 1).astype(np.float32) * 700, voxel_size_mm=sizes, model=echo)
    assert found.shape == shape and found.dtype == np.float32
    mask = found > 0.5
    # The border lies within half a millimetre: all voxels further from it are right.
    assert mask[radius < 29.5].all() and not mask[radius > 30.5].any()
    assert mask.sum() * np.prod(sizes) == pytest.approx(4 / 3 * np.pi * 30**3, rel=0.015)


def test_the_border_is_moved_outwards_as_the_card_says(echo: Model) -> None:
    grid = np.indices((80, 81, 82)) + 0.5
    radius = np.sqrt(((grid - 40) ** 2).sum(0))
    image = np.clip(0.5 + (25 - radius) / 6, 0, 1).astype(np.float32)
    moved = dataclasses.replace(echo, card={"border_offset_mm": 1.5})
    mask = find_brain(image, voxel_size_mm=(1, 1, 1), model=moved) > 0.5
    assert mask.sum() == pytest.approx(4 / 3 * np.pi * 26.5**3, rel=0.03)


def test_find_brain_refuses_an_empty_image(echo: Model) -> None:
    with pytest.raises(InputError, match="no brain"):
        find_brain(np.zeros((30, 31, 32), np.float32), voxel_size_mm=(1, 1, 1), model=echo)


@pytest.mark.parametrize(("shift", "taken", "said"), [(0, "given", ""), (1, "given", ""), (6, "network's", "Dice 0.")])
def test_a_second_opinion_takes_over_only_where_the_two_disagree_grossly(
    monkeypatch: pytest.MonkeyPatch, shift: int, taken: str, said: str
) -> None:
    given = np.zeros((40, 40, 40), bool)
    given[10:30, 10:30, 10:30] = True
    found = np.roll(given, shift, axis=0)
    monkeypatch.setattr(brain, "find_brain", lambda image, **_: np.where(found, 0.9, 0.1))
    plausible = brain.find_plausible_brain(given.astype(np.float32), voxel_size_mm=(5, 5, 5))
    mask, note = brain.second_opinion(given, *plausible)
    np.testing.assert_array_equal(mask, given if taken == "given" else found)
    assert said in note and bool(note) == bool(said)


def test_a_second_opinion_of_another_size_than_a_brain_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    given = np.zeros((40, 40, 40), bool)
    given[10:30, 10:30, 10:30] = True
    air = np.ones(given.shape, np.float32)  # as in the noise around an MP2RAGE's head: 8 l
    monkeypatch.setattr(brain, "find_brain", lambda image, **_: air)
    mask, note = brain.second_opinion(given, *brain.find_plausible_brain(air, voxel_size_mm=(5, 5, 5)))
    assert mask is given and "found 8.0 l, no brain" in note


def test_a_second_opinion_that_finds_no_brain_changes_nothing_but_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(image: np.ndarray, **_: object) -> np.ndarray:
        raise InputError("No brain was found.")

    monkeypatch.setattr(brain, "find_brain", nothing)
    given = np.ones((20, 20, 20), bool)
    air = np.zeros(given.shape, np.float32)
    mask, note = brain.second_opinion(given, *brain.find_plausible_brain(air, voxel_size_mm=(1, 1, 1)))
    assert mask is given and "found no brain" in note


def test_normalise_does_not_depend_on_scale_or_air() -> None:
    head = torch.linspace(0.5, 1.5, 11**3).reshape(11, 11, 11)
    with_air = torch.nn.functional.pad(head * 300, (5, 5, 5, 5, 5, 5))
    np.testing.assert_allclose(normalise(with_air), normalise(with_air / 300), rtol=1e-5)
    assert 0.5 < float(normalise(with_air).max()) < 1.5
    assert float(normalise(torch.full((3, 3, 3), 2.0)).max()) == 0  # nothing is brighter than the mean


def test_head_box_leaves_out_air_and_specks(rng: np.random.Generator) -> None:
    image = rng.uniform(0, 0.05, (30, 31, 32)).astype(np.float32)
    image[8:20, 9:22, 10:25] = 1
    image[28, 2, 2] = 1  # a speck
    assert _head_box(image) == (slice(7, 21), slice(8, 23), slice(9, 26))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_packaged_model_says_what_it_was_trained_on() -> None:
    model = load_model("brain")
    assert model.card["training"]["data"] and "Apache-2.0" in model.card["training"]["data"][0]
    assert model.card["classes"] == ["brain"] and model.spacing_mm == 2.5
    assert (PACKAGED / f"brain-{model.version}/weights.safetensors").stat().st_size < 3e6


@pytest.mark.slow
def test_network_finds_the_brain_in_a_real_stripped_flair() -> None:
    path = DATA / "bids_ms_mni/sub-26/anat/sub-26_FLAIR.nii.gz"
    if not path.exists():
        pytest.skip(f"real scans are not here: {path}")
    image = np.asanyarray(nib.as_closest_canonical(nib.load(path)).dataobj, dtype=np.float32)
    found = find_brain(image, voxel_size_mm=(1, 1, 1)) > 0.5
    truth = image > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.93
    np.testing.assert_array_equal(found, find_brain(image, voxel_size_mm=(1, 1, 1)) > 0.5)

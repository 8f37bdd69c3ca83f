from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp.learn import heads
from bidsapp.learn.generator import Generator, Sample
from bidsapp.learn.generator_config import GeneratorConfig
from bidsapp.learn.lesion_masks import SHAPE
from bidsapp.models.unet import FoldedUNet, UNetConfig
from training.batches import Batches, Packed, apart
from training.config import TrainConfig
from training.loop import forward, loss
from training.material import Material, gather, pack, unpack
from training.tasks import SegmentTask


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Two heads made of balls and one lesion mask each to train on and to hold out."""
    folder = tmp_path_factory.mktemp("material")
    grid = np.indices((96, 100, 104)).astype(float) - np.array([48, 50, 52])[:, None, None, None]
    r = np.sqrt((grid**2).sum(0))
    labels = np.select([r < 8, r < 28, r < 36, r < 42, r < 46], [4, 2, 3, 24, 515], 0)
    lesion = np.zeros(SHAPE, np.uint8)
    lesion[88:94, 105:111, 70:76] = 1
    for name in ("01", "17"):
        (folder / "heads").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(labels.astype(np.int16), np.eye(4)), folder / f"heads/{name}.nii.gz")
    affine = np.eye(4)
    affine[:3, 3] = (-91, -126, -72)
    for name in ("a", "b"):
        (folder / "lesions").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(lesion, affine), folder / f"lesions/{name}.nii.gz")
    return TrainConfig(
        name="x", version="0", task="segment", heads=str(folder / "heads"), lesions=str(folder / "lesions"),
        train_heads=("01",), held_out_heads=("17",), held_out_lesions=("b",), batch=2,
        network=UNetConfig(channels=3, classes=20, features=(4, 6), place=True),
        generator=GeneratorConfig(spacing_mm=1.0, contrasts=3, patch=32, p_lesions=1.0, p_stripped=1.0),
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small_heads() -> Iterator[None]:
    """On a smaller grid than real ones: quicker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "SHAPE", (104, 104, 112))
        yield


@pytest.fixture(scope="module")
def material(config: TrainConfig) -> Material:
    return gather(config, Path(config.heads).parent / "runs/x-0", held_out=False)


def same(one: Sample, other: Sample, **tolerance: float) -> None:
    for field in dataclasses.fields(Sample):
        torch.testing.assert_close(
            *(list(map(torch.as_tensor, v)) if isinstance(v, tuple) else v
              for v in (getattr(one, field.name), getattr(other, field.name))),
            **tolerance if field.name in ("image", "distance", "lesion") else {},
        )  # fmt: skip


def test_one_file_holds_what_the_folders_do(config: TrainConfig, material: Material, tmp_path: Path) -> None:
    pack(config, Path(config.heads).parent / "runs/x-0", tmp_path / "packed.zip")
    again = unpack(tmp_path / "packed.zip", held_out=False)
    assert again.heads.names == ("01",) and unpack(tmp_path / "packed.zip", held_out=True).heads.names == ("17",)
    makers = [Generator(part.heads, config.generator, part.lesions) for part in (material, again)]
    same(*(make.sample(3) for make in makers))


def test_a_batch_is_the_same_in_another_process(config: TrainConfig, material: Material) -> None:
    make = Batches(material, config.generator, seed=1, batch=2, device="cpu", packed=True)
    make(0)  # its generator is made, and stays behind
    there = pickle.loads(pickle.dumps(make))
    assert there._made is None
    here, other = make(4), there(4)
    assert isinstance(here, Packed) and isinstance(other, Packed)
    assert torch.equal(here.image, other.image) and torch.equal(here.labels, other.labels)
    assert not torch.equal(here.image, make(5).image)


def test_packing_keeps_a_sample(config: TrainConfig, material: Material) -> None:
    plain = Batches(material, config.generator, seed=1, batch=2, device="cpu")
    packed = Batches(material, config.generator, seed=1, batch=2, device="cpu", packed=True)
    for one, other in zip(plain(7), apart(packed(7), "cpu"), strict=True):
        same(one, other, atol=0.01, rtol=0.001)


def test_the_loss_of_a_batch_is_the_mean_of_its_samples(config: TrainConfig, material: Material) -> None:
    torch.manual_seed(0)
    task, network = SegmentTask(), FoldedUNet(config.network)
    samples = Batches(material, config.generator, seed=1, batch=3, device="cpu")(0)
    alone = [task.loss(forward(network, task, [sample], config)[0], sample) for sample in samples]
    torch.testing.assert_close(loss(network, task, samples, config), torch.stack(alone).mean(), rtol=0.01, atol=0.01)

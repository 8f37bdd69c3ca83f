from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from bidsapp.learn.cases import Case
from bidsapp.learn.samples import Batch, SampleConfig, Sampler


@pytest.fixture
def case() -> Case:
    """A brain of 60 x 70 x 50 voxels whose FLAIR is 3 within the label; no T2w."""
    shape = (60, 70, 50)
    labels = np.zeros(shape, np.uint8)
    labels[36:46, 40:52, 20:30] = 1
    channels = np.zeros((3, *shape), np.float16)
    channels[0], channels[2] = 0.5, np.where(labels, 3, -0.5)
    places = tuple(np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    brain = np.argwhere(np.ones(shape)).astype(np.int16)
    return Case("sub-01", "01", Path("nowhere"), ("T1w", "FLAIR"), channels, places, labels,
                np.argwhere(labels).astype(np.int16), brain[::97])  # fmt: skip


def same(one: Batch, two: Batch) -> bool:
    return torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)


def test_the_nth_batch_is_always_the_same_and_others_differ(case: Case) -> None:
    config = SampleConfig(patch=16, margin=4, count=2)
    assert same(Sampler([case], config)(5), Sampler([case], config)(5))
    assert not same(Sampler([case], config)(5), Sampler([case], config)(6))


def test_shapes(case: Case) -> None:
    batch = Sampler([case], SampleConfig(patch=16, margin=4, count=3, place=True))(0)
    assert batch.images.shape == (3, 3, 24, 24, 24) and batch.labels.shape == (3, 16, 16, 16)
    assert batch.place is not None and batch.place.shape == (3, 3, 8, 8, 8)
    assert {type(one) for one in (batch.images, batch.labels, batch.place)} == {torch.Tensor}


def test_foreground_is_in_every_patch_when_asked_for(case: Case) -> None:
    often = Sampler([case], SampleConfig(patch=16, count=8, foreground=1.0, augment=False))(0)
    assert (often.labels.flatten(1).sum(1) > 0).all()
    later = Sampler([case], SampleConfig(patch=16, count=40, foreground=1.0, augment=False, uniform_from=3))
    assert (later(3).labels.flatten(1).sum(1) > 0).float().mean() < 0.6


def test_labels_move_with_the_images(case: Case) -> None:
    batch = Sampler([case], SampleConfig(patch=32, count=6, foreground=1.0, drop=0.0))(1)
    bright = batch.images[:, 2] > 1.0
    both = (bright & (batch.labels == 1)).sum()
    assert 2 * both / (bright.sum() + (batch.labels == 1).sum()) > 0.85


def test_patches_are_turned_scaled_and_sheared_along_all_axes(case: Case) -> None:
    """The place of each voxel tells what was done to it: its derivatives are the matrix."""
    axes = tuple(np.arange(n, dtype=np.float32) for n in (60, 70, 50))
    sampler = Sampler([dataclasses.replace(case, places=axes)], SampleConfig(patch=16))
    changed = []
    for number in range(60):
        rng = np.random.default_rng(number)
        grid = torch.stack(torch.meshgrid(*[torch.arange(40.0)] * 3, indexing="ij"))
        _, _, place = sampler._changed(rng, torch.ones(3, 40, 40, 40), torch.ones(1, 40, 40, 40), grid)
        middle = place[:, 7:10, 7:10, 7:10]
        changed.append([[float((part.narrow(k, 2, 1) - part.narrow(k, 0, 1)).mean()) / 2 for k in range(3)]
                        for part in middle])  # fmt: skip
    matrices = np.array(changed)
    assert (np.abs(matrices - np.eye(3)).max(0) > 0.04).all()
    assert (np.abs(matrices[:, range(3), range(3)]).std(0) > 0.02).all()  # scales (a flip changes the sign)
    turned = (matrices - matrices.transpose(0, 2, 1)) / 2
    assert (np.abs(turned).max(0)[np.triu_indices(3, 1)] > 0.1).all()


def test_missing_contrasts_stay_missing_and_one_always_stays(case: Case) -> None:
    sampler = Sampler([case], SampleConfig(patch=16, count=30, drop=0.9))
    images = sampler(0).images
    assert not images[:, 1].any()
    there = images.flatten(2).abs().sum(2) > 0
    assert (there.sum(1) >= 1).all() and (there.sum(1) == 1).any()


def test_place_is_symmetric_and_continues_beyond_the_image(case: Case) -> None:
    batch = Sampler([case], SampleConfig(patch=16, count=4, place=True, augment=False))(2)
    assert batch.place is not None and (batch.place[:, 0] >= 0).all()
    steps = batch.place[:, 2].diff(dim=3)
    torch.testing.assert_close(steps, torch.full_like(steps, 2 * 2 / 49), rtol=1e-3, atol=1e-4)


def test_a_channel_beyond_the_contrasts_is_neither_dropped_nor_changed(case: Case) -> None:
    four = Case(**{**vars(case), "channels": np.concatenate([case.channels, case.labels[None].astype(np.float16)])})
    batch = Sampler([four], SampleConfig(patch=16, count=12, drop=0.9, foreground=1.0))(0)
    assert batch.images[:, 3].max() <= 1 and (batch.images[:, 3].flatten(1).sum(1) > 0).all()


def test_of_two_contrasts_one_stays_and_the_proposals_always(case: Case) -> None:
    """T1w and T1wCE, and what a cascade's first network found."""
    two = dataclasses.replace(case, channels=np.full_like(case.channels, 0.5))
    config = SampleConfig(patch=16, count=30, drop=0.9, augment=False, contrasts=("T1w", "T1wCE"))
    shown = Sampler([two], config)(0).images.flatten(2).any(2)
    assert shown[:, 2].all() and (shown[:, :2].sum(1) >= 1).all() and (shown[:, :2].sum(1) == 1).any()

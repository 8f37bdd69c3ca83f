from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bidsapp.measure import maps

SHAPE = (7, 8, 9)


@pytest.fixture
def masks(tmp_path, rng):
    """24 subjects; the second half has a lesion at (2, 3, 4) nearly always, the first never; noise elsewhere."""
    paths = []
    for i in range(24):
        mask = (rng.random(SHAPE) < 0.3).astype(np.uint8)
        mask[2, 3, 4] = i >= 12 and i != 20
        paths.append(tmp_path / f"{i:02}.nii.gz")
        nib.save(nib.Nifti1Image(mask, np.diag([2.0, 2, 3, 1])), paths[-1])
    return paths


def test_mean_is_the_share_of_subjects(masks):
    found = maps.mean_map(masks)
    by_hand = np.mean([np.asarray(nib.load(path).dataobj) for path in masks], axis=0)
    assert found.count == 24 and np.asarray(found.mean.dataobj) == pytest.approx(by_hand)
    assert np.asarray(found.mean.dataobj)[2, 3, 4] == pytest.approx(11 / 24)
    assert found.mean.affine[2, 2] == 3


def test_broken_images_and_other_grids_are_skipped_by_name(masks, tmp_path):
    masks[1].write_bytes(b"no image")
    nib.save(nib.Nifti1Image(np.zeros((9, 8, 7), np.uint8), np.eye(4)), masks[2])
    found = maps.mean_map(masks)
    assert found.count == 22 and [text.split(":")[0] for text in found.skipped] == ["01.nii.gz", "02.nii.gz"]
    assert maps.mean_map([tmp_path / "none.nii.gz"]) is None


def test_difference_is_found_where_it_is(masks):
    second = np.arange(24) >= 12
    found = maps.lesion_difference(masks, second, permutations=200)
    difference, log_p = np.asarray(found.difference.dataobj), np.asarray(found.log_p.dataobj)
    assert difference[2, 3, 4] == pytest.approx(11 / 12) and found.significant == 1
    assert log_p[2, 3, 4] > -np.log10(0.05) and (np.delete(log_p.ravel(), np.argmax(log_p)) < 1.301).all()
    assert found.smallest_p == pytest.approx(1 / 201)


def test_blocks_give_what_one_block_gives(masks, monkeypatch):
    second = np.arange(24) >= 12
    confounds = np.random.default_rng(1).normal(size=(24, 1))
    whole = maps.lesion_difference(masks, second, confounds=confounds, permutations=50)
    monkeypatch.setattr(maps, "BLOCK_BYTES", 24 * 40 * 7)
    blocks = maps.lesion_difference(masks, second, confounds=confounds, permutations=50)
    assert np.array_equal(np.asarray(whole.log_p.dataobj), np.asarray(blocks.log_p.dataobj))
    assert whole.tested == blocks.tested > 7 * 20


def test_nothing_is_found_where_nothing_is(masks):
    found = maps.lesion_difference(masks, np.arange(24) % 2 == 0, permutations=100)
    assert found.significant == 0 and found.smallest_p > 0.05


def test_too_few_subjects_or_lesions_are_refused(masks, tmp_path):
    with pytest.raises(ValueError, match="4 subjects with a map in the smaller group"):
        maps.lesion_difference(masks, np.arange(24) < 4)
    for path in masks:
        nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4)), path)
    with pytest.raises(ValueError, match="no voxel has lesions"):
        maps.lesion_difference(masks, np.arange(24) < 12)


def test_groups_told_apart_by_a_confound_are_not_tested(masks):
    second = np.arange(24) >= 12
    with pytest.raises(ValueError, match="told apart by what is adjusted for"):
        maps.lesion_difference(masks, second, confounds=(~second).astype(float)[:, None])

"""Voxel-based morphometry on blobs of grey matter whose loss is known."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import statsmodels.api as sm
from nibabel.affines import apply_affine
from scipy import ndimage

from bidsapp.measure import maps
from bidsapp.measure.morphometry import EffectMap, morphometry

SHAPE, SUBJECTS = (48, 45, 42), 24
CENTRE = (30, 15, 20)  # where the second group, or the old, has less
AFFINE = np.array([[1.0, 0, 0, -20], [0, 1, 0, -30], [0, 0, 1, 5], [0, 0, 0, 1]])


@pytest.fixture
def cohort(tmp_path, rng):
    """Writes smooth random maps, the tissue around `CENTRE` taken away by the share that each subject is given."""
    x, y, z = np.indices(SHAPE)
    ball = np.exp(-((x - CENTRE[0]) ** 2 + (y - CENTRE[1]) ** 2 + (z - CENTRE[2]) ** 2) / (2 * 6.0**2))
    brain = (x > 5) & (x < 43) & (y > 5) & (y < 40) & (z > 5) & (z < 37)

    def write(loss: np.ndarray) -> list:
        paths = []
        for i, share in enumerate(loss):
            noise = ndimage.gaussian_filter(rng.normal(size=SHAPE), 3)
            gm = brain * np.clip(0.6 + 0.05 * noise / noise.std() - share * ball, 0, None)
            paths.append(tmp_path / f"{i:02}.nii.gz")
            nib.save(nib.Nifti1Image(gm.astype(np.float32), AFFINE), paths[-1])
        return paths

    return write


def significant(found: EffectMap) -> np.ndarray:
    return np.asarray(found.log_p.dataobj) > -np.log10(0.05)


def test_loss_of_a_group_is_found_where_it_is(cohort):
    second = np.arange(SUBJECTS) >= 12
    found = morphometry(cohort(0.2 * second), second, permutations=200)
    assert found.peak_t < -5 and found.smallest_p == pytest.approx(1 / 201)
    assert np.linalg.norm(np.subtract(found.peak_mm, apply_affine(AFFINE, CENTRE))) < 6
    where = np.argwhere(significant(found))
    assert len(where) and np.linalg.norm(where - CENTRE, axis=1).max() < 20
    assert np.asarray(found.t.dataobj)[CENTRE] == pytest.approx(found.peak_t, rel=0.3)
    assert found.t.shape == SHAPE and found.subjects == SUBJECTS
    assert found.significant_ml == pytest.approx(significant(found).sum() / 1000, rel=0.1)
    assert found.tested_ml == pytest.approx(37 * 34 * 31 / 1000, rel=0.5)  # the brain's box, and what is smoothed out


def test_age_is_found_and_what_goes_with_a_confound_is_not(cohort, rng):
    age, size = rng.uniform(20, 80, SUBJECTS), rng.normal(size=SUBJECTS)
    found = morphometry(cohort((age - 20) / 200), age, permutations=200)
    assert found.peak_t < -5 and significant(found)[CENTRE]
    paths = cohort(0.05 + 0.04 * size)
    assert significant(morphometry(paths, size, permutations=200)).any()
    unrelated = np.arange(SUBJECTS) % 2 == 0
    assert not significant(morphometry(paths, unrelated, confounds=size[:, None], permutations=200)).any()


def test_t_is_that_of_a_linear_model(cohort, rng, monkeypatch):
    second, age = np.arange(SUBJECTS) >= 12, rng.uniform(20, 80, SUBJECTS)
    paths = cohort(0.1 * second)
    found = morphometry(paths, second, confounds=age[:, None], permutations=20)
    values = []  # the peak's voxel of the coarse grid, smoothed by hand: 8 mm, less what the mean of 3 voxels did
    sigma = np.sqrt((8 / np.sqrt(8 * np.log(2))) ** 2 - 9 / 12) / 3
    place = tuple(np.round((apply_affine(np.linalg.inv(AFFINE), found.peak_mm) - 1) / 3).astype(int))
    for path in paths:
        data = np.asarray(nib.load(path).dataobj).reshape(16, 3, 15, 3, 14, 3).mean(axis=(1, 3, 5))
        values.append(ndimage.gaussian_filter(data, sigma, mode="constant")[place])
    fit = sm.OLS(values, sm.add_constant(np.c_[second, age])).fit()
    assert found.peak_t == pytest.approx(fit.tvalues[1], rel=1e-3)
    monkeypatch.setattr(maps, "BLOCK_BYTES", SUBJECTS * 40 * 100)
    blocks = morphometry(paths, second, confounds=age[:, None], permutations=20)
    assert np.array_equal(np.asarray(blocks.log_p.dataobj), np.asarray(found.log_p.dataobj))


def test_false_positives_are_as_many_as_allowed(cohort, rng):
    """Of 40 tests of nothing at 5 % two are expected; seven and more have a chance of 0.3 %."""
    paths = cohort(np.zeros(SUBJECTS))
    tests = (rng.permutation(np.arange(SUBJECTS) < 12) for _ in range(40))
    assert sum(morphometry(paths, one, permutations=99).smallest_p <= 0.05 for one in tests) < 7


def test_a_scan_that_is_cut_is_no_loss(cohort):
    """The top third of four patients' heads lies beyond the field of view; nobody has lost anything."""
    second = np.arange(SUBJECTS) >= 12
    paths = cohort(np.zeros(SUBJECTS))
    for path in paths[12:14]:  # two of 24: they are left out
        gm = nib.load(path).get_fdata(dtype=np.float32)
        gm[:, :, 26:] = 0
        nib.save(nib.Nifti1Image(gm, AFFINE), path)
    found = morphometry(paths, second, permutations=100)
    assert found.cut == (12, 13) and found.subjects == 22 and found.smallest_p > 0.05
    before = found.tested_ml
    for path in paths[2:6]:  # six of 24: what so many do not show is not tested
        gm = nib.load(path).get_fdata(dtype=np.float32)
        gm[:, :, 26:] = 0
        nib.save(nib.Nifti1Image(gm, AFFINE), path)
    found = morphometry(paths, second, permutations=100)
    assert found.cut == () and found.tested_ml < 0.85 * before
    top = np.asarray(found.log_p.dataobj)[:, :, 34:]
    assert not top.any()


def test_confounds_that_determine_each_other_are_used_once(cohort):
    """All women at one site: the group can be told from both all the same."""
    second, site = np.arange(SUBJECTS) % 2 == 0, (np.arange(SUBJECTS) < 12).astype(float)
    twice = np.c_[site, 1 - site, np.ones(SUBJECTS)]
    paths = cohort(0.2 * second)
    found = [morphometry(paths, second, confounds=some, permutations=50) for some in (twice, site[:, None])]
    assert found[0].peak_t == pytest.approx(found[1].peak_t, rel=1e-6) and found[0].smallest_p < 0.05


def test_what_cannot_be_tested_is_refused(cohort, tmp_path):
    paths = cohort(np.zeros(SUBJECTS))
    with pytest.raises(ValueError, match="4 subjects with a map in the smaller group"):
        morphometry(paths, np.arange(SUBJECTS) < 4)
    with pytest.raises(ValueError, match="9 subjects with a map, at least 10"):
        morphometry(paths[:9], np.arange(9.0))
    with pytest.raises(ValueError, match="determined by what is adjusted for"):
        morphometry(paths, np.arange(24.0), confounds=2 * np.arange(24.0)[:, None])
    with pytest.raises(ValueError, match="24 subjects leave 3 degrees of freedom"):
        morphometry(paths, np.arange(SUBJECTS) < 12, confounds=np.random.default_rng(0).normal(size=(24, 19)))
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), AFFINE), paths[3])
    with pytest.raises(ValueError, match=r"03.nii.gz: lies on another grid"):
        morphometry(paths, np.arange(SUBJECTS) < 12)
    for path in paths:
        nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.float32), AFFINE), path)
    with pytest.raises(ValueError, match="no voxel holds enough gray matter"):
        morphometry(paths, np.arange(SUBJECTS) < 12)

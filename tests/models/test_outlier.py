"""The lesion model on phantoms whose lesions are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bidsapp.models.mixture import fit_mixture
from bidsapp.models.outlier import OutlierSettings, segment_lesions, without_rim

#: GM, WM, CSF, lesion: means in arbitrary units.
MEANS = {"T1w": (60, 100, 20, 70), "T2w": (80, 50, 180, 110), "FLAIR": (80, 65, 20, 120)}
SHAPE = (64, 70, 66)
SIZE = (1.0, 1.0, 1.0)


def brain(*, lesions: bool):
    """White core in a grey shell in CSF, a ventricle in the middle, three lesions in the white matter."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")).astype(float)

    def sphere(centre, radius):
        distance = np.sqrt(((grid - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(axis=0))
        return np.clip(radius - distance + 0.5, 0, 1).astype(np.float32)

    centre = (np.array(SHAPE) - 1) / 2
    ventricle, white, whole = (sphere(centre, radius) for radius in (5, 21, 27))
    shares = np.stack([whole - white, white - ventricle, 1 - whole + ventricle])
    mask = sphere(centre, 30) > 0.5
    lesion = np.zeros(SHAPE, np.float32)
    if lesions:
        for offset, radius in (((12, 0, 0), 4), ((-11, 4, 3), 3), ((0, 12, -5), 2.5)):
            lesion = np.maximum(lesion, sphere(centre + offset, radius))
    return shares, lesion, mask


def run(names, *, lesions=True, seed=0, scale=1.0, offset=0.0, unseen=None, **options):
    rng = np.random.default_rng(seed)
    shares, lesion, mask = brain(lesions=lesions)
    priors = np.stack([ndimage.gaussian_filter(np.roll(share, 1, axis=0), 1.5) for share in shares])
    priors = (priors / priors.sum(axis=0)).astype(np.float32)
    mixed = np.stack([*(shares * (1 - lesion)), lesion])
    images = {
        name: (
            scale * (np.tensordot(np.array(MEANS[name], float), mixed, 1) + rng.normal(0, 4, SHAPE)) + offset
        ).astype(np.float32)
        for name in MEANS
    }
    images = {name: images[name] for name in names}
    if unseen:  # the upper half, the first lesion and the second in it
        images[unseen] = np.where(np.arange(SHAPE[2]) > SHAPE[2] // 2 - 6, np.nan, images[unseen])
    mixture = fit_mixture(images, mask, priors)
    return segment_lesions(images, mask, mixture, priors, voxel_size_mm=SIZE, **options), lesion > 0.5, mask


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("names", [("FLAIR",), ("T1w", "FLAIR"), ("T1w", "T2w", "FLAIR")], ids="+".join)
def test_lesions_are_found_with_any_contrasts_beside_the_flair(names):
    result, truth, mask = run(names)
    assert dice(result.mask, truth) > 0.8
    assert result.mask.dtype == bool
    assert result.probability.dtype == np.float32
    assert result.probability.min() >= 0 and result.probability.max() <= 1
    assert not result.probability[~mask].any()
    assert (result.probability[result.mask] >= OutlierSettings().threshold).mean() > 0.9


@pytest.mark.parametrize("unseen", ["T2w", "FLAIR"])
def test_lesions_are_found_where_the_flair_shows_them(unseen):
    result, truth, mask = run(("T1w", "T2w", "FLAIR"), unseen=unseen)
    beyond = np.broadcast_to(np.arange(SHAPE[2]) > SHAPE[2] // 2 - 6, SHAPE)
    assert np.isfinite(result.probability).all() and np.isfinite(result.excess).all()
    assert (truth & beyond).sum() > 300
    if unseen == "FLAIR":
        assert result.probability[beyond].max() < 0.01 and dice(result.mask[~beyond], truth[~beyond]) > 0.6
    else:
        assert dice(result.mask[beyond], truth[beyond]) > 0.7
    assert not (result.mask & ~mask).any()


def test_a_brain_without_lesions_has_none():
    result, _, _ = run(("T1w", "FLAIR"), lesions=False)
    assert result.mask.sum() * np.prod(SIZE) < 30  # mm3; the brain has 110 000


def test_scale_and_offset_of_the_scan_make_no_difference():
    """Intensities are z-scores, Nyul's or the scanner's: the model must not care."""
    plain, _, _ = run(("T1w", "FLAIR"))
    other, _, _ = run(("T1w", "FLAIR"), scale=0.01, offset=-3)
    assert dice(plain.mask, other.mask) > 0.98


def test_same_input_same_bytes():
    first, second = (run(("T1w", "FLAIR"))[0] for _ in range(2))
    np.testing.assert_array_equal(first.probability, second.probability)


def test_what_surrounds_the_brain_makes_no_difference():
    shares, lesion, mask = brain(lesions=True)
    rng = np.random.default_rng(0)
    mixed = np.stack([*(shares * (1 - lesion)), lesion])
    flair = (np.tensordot(np.array(MEANS["FLAIR"], float), mixed, 1) + rng.normal(0, 4, SHAPE)).astype(np.float32)

    def found(more):
        def pad(data):
            return np.pad(data, [(0, 0)] * (data.ndim - 3) + [(more, more)] * 3)

        images, inside, priors = {"FLAIR": pad(flair)}, pad(mask), pad(shares)
        result = segment_lesions(images, inside, fit_mixture(images, inside, priors), priors, voxel_size_mm=SIZE)
        assert result.mask.shape == inside.shape
        inner = tuple(slice(more, more + size) for size in SHAPE)
        return result.mask[inner], result.probability[inner]

    for less, more in zip(found(12), found(40), strict=True):
        assert less.any()
        np.testing.assert_array_equal(less, more)


def test_lesions_below_the_minimum_are_left_out():
    """Of balls of 268, 113 and 65 mm3 one is larger than 180 mm3."""
    for least, expected in ((3.0, 3), (180.0, 1)):
        result, _, _ = run(("T1w", "FLAIR"), minimum_volume_mm3=least)
        assert ndimage.label(result.mask, np.ones((3, 3, 3)))[1] == expected


def test_without_flair_it_says_so():
    shares, _, mask = brain(lesions=True)
    priors = shares / shares.sum(axis=0)
    images = {"T1w": np.tensordot(np.array(MEANS["T1w"][:3], float), shares, 1).astype(np.float32)}
    images["T1w"] += np.random.default_rng(0).normal(0, 4, SHAPE).astype(np.float32)
    mixture = fit_mixture(images, mask, priors)
    with pytest.raises(ValueError, match="FLAIR"):
        segment_lesions(images, mask, mixture, priors, voxel_size_mm=SIZE)


@pytest.mark.parametrize("size", [(1.0, 1.0, 1.0), (0.8, 1.0, 2.0)])
def test_voxels_filled_in_part_are_no_lesion(size):
    """A bright and a faint ball, blurred: each ends where it is half as bright as itself, not where it can be seen."""
    grid = np.moveaxis(np.indices((50, 40, 30)) * np.reshape(size, (3, 1, 1, 1)), 0, 3)
    excess, truth = np.zeros(grid.shape[:3]), np.zeros(grid.shape[:3], bool)
    for x, brightness in ((12, 100), (29, 25)):
        ball = ((grid - (x, 18, 14)) ** 2).sum(-1) < 5**2
        truth |= ball
        excess += ndimage.gaussian_filter(brightness * ball.astype(float), 1 / np.array(size))
    visible = excess > 5
    found = without_rim(visible, excess, voxel_size_mm=size)
    assert visible.sum() > 1.5 * truth.sum()
    assert found.sum() == pytest.approx(truth.sum(), rel=0.15) and not (found & ~visible).any()
    for half in (grid[..., 0] < 20, grid[..., 0] > 20):
        assert (found & half).sum() == pytest.approx((truth & half).sum(), rel=0.2)


def test_what_is_dark_deep_inside_a_lesion_is_lesion():
    excess = np.zeros((30, 30, 30))
    excess[5:25, 5:25, 5:25] = 100
    excess[13:17, 13:17, 13:17] = -50
    found = without_rim(excess != 0, excess, voxel_size_mm=SIZE)
    assert found[13:17, 13:17, 13:17].all()


def test_no_lesions_no_rim():
    assert not without_rim(np.zeros(SHAPE, bool), np.zeros(SHAPE), voxel_size_mm=SIZE).any()

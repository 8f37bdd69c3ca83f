"""The tissue model on phantoms whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.models.mixture import CSF, GM, WM, MixtureSettings, enlarge, fit_mixture, without_signal

#: GM, WM, CSF, and their noise: means as on a real scan, in arbitrary units.
MEANS = {"T1w": (60, 100, 20), "T2w": (80, 50, 180), "FLAIR": (80, 65, 20)}


def ball(shape=(36, 42, 39), radius=17.0):
    """White core, grey shell, CSF around and a ventricle within; soft shares in the boundary voxels."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")).astype(float)
    centre = (np.array(shape) - 1) / 2
    distance = np.sqrt(((grid - centre[:, None, None, None]) ** 2).sum(axis=0))
    within = [np.clip(r - distance + 0.5, 0, 1) for r in (4.0, radius - 7, radius - 3)]  # share inside each sphere
    ventricle, white, brain = within
    shares = np.stack([brain - white, white - ventricle, 1 - brain + ventricle]).astype(np.float32)
    return shares, distance < radius


def scan(shares, means, rng, noise=4.0):
    return (np.tensordot(np.array(means, float), shares, 1) + rng.normal(0, noise, shares.shape[1:])).astype(np.float32)


def atlas(shares):
    """A blurred, shifted version of the truth: what registration leaves."""
    from scipy import ndimage

    moved = np.stack([ndimage.gaussian_filter(np.roll(s, 1, axis=0), 1.5) for s in shares])
    return (moved / moved.sum(axis=0)).astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def phantom(rng):
    shares, mask = ball()
    images = {name: scan(shares, means, rng) for name, means in MEANS.items()}
    return images, mask, shares, atlas(shares)


@pytest.mark.parametrize("names", [("T1w",), ("T2w", "FLAIR"), ("T1w", "FLAIR"), ("T1w", "T2w", "FLAIR")])
def test_tissue_is_found_with_any_contrasts(phantom, names):
    images, mask, shares, priors = phantom
    result = fit_mixture({name: images[name] for name in names}, mask, priors)
    truth, found = shares[:, mask], result.posteriors[:, mask]
    assert result.separable and result.reason == ""
    assert (found.argmax(0) == truth.argmax(0)).mean() > 0.95
    # Volumes are soft: partial volume counts by its share. 4 % of a ball this small is a tenth of a voxel of radius.
    np.testing.assert_allclose(found.sum(axis=1), truth.sum(axis=1), rtol=0.04)


def test_posteriors_are_shares(phantom):
    images, mask, _, priors = phantom
    posteriors = fit_mixture({"T1w": images["T1w"]}, mask, priors).posteriors
    assert posteriors.dtype == np.float32
    assert posteriors.min() >= 0
    np.testing.assert_allclose(posteriors[:, mask].sum(axis=0), 1, atol=1e-5)
    assert not posteriors[:, ~mask].any()


def test_partial_volume_is_the_share_not_a_class(phantom):
    """Voxels on the border of grey and white matter: their posterior is what each holds, not all or nothing."""
    images, mask, shares, priors = phantom
    border = (shares[GM] > 0.3) & (shares[GM] < 0.7) & (shares[WM] > 0.3)
    found = fit_mixture({"T1w": images["T1w"]}, mask, priors).posteriors[GM][border]
    assert border.sum() > 500
    assert found.mean() == pytest.approx(shares[GM][border].mean(), abs=0.05)
    assert ((found > 0.1) & (found < 0.9)).mean() > 0.8
    assert np.corrcoef(found, shares[GM][border])[0, 1] > 0.5


def test_parameters_are_the_true_ones(phantom):
    images, mask, _, priors = phantom
    result = fit_mixture({"T1w": images["T1w"], "T2w": images["T2w"]}, mask, priors)
    assert result.contrasts == ("T1w", "T2w")
    np.testing.assert_allclose(result.means[[GM, WM, CSF], 0], MEANS["T1w"], atol=2)
    np.testing.assert_allclose(result.means[[GM, WM], 1], MEANS["T2w"][:2], atol=2)
    assert np.sqrt(result.covariances[WM, 0, 0]) == pytest.approx(4, abs=1)


def test_lesions_do_not_pull_the_parameters(phantom):
    images, mask, _, priors = phantom
    clean = fit_mixture({"FLAIR": images["FLAIR"], "T1w": images["T1w"]}, mask, priors)
    lesion = np.zeros_like(mask)
    lesion[12:16, 18:24, 18:24] = True
    images["FLAIR"][lesion] = 200
    dirty = fit_mixture({"FLAIR": images["FLAIR"], "T1w": images["T1w"]}, mask, priors)
    np.testing.assert_allclose(dirty.means[[GM, WM], 1], clean.means[[GM, WM], 1], atol=1)


def test_bias_left_over_is_followed_by_the_local_means(phantom):
    images, mask, shares, priors = phantom
    ramp = np.linspace(-15, 15, mask.shape[0])[:, None, None]  # three quarters of the contrast from side to side
    result = fit_mixture({"T1w": (images["T1w"] + ramp).astype(np.float32)}, mask, priors)
    assert (result.posteriors.argmax(0) == shares.argmax(0))[mask].mean() > 0.93


def test_affine_change_of_intensities_changes_nothing(phantom):
    images, mask, _, priors = phantom
    first = fit_mixture({"T1w": images["T1w"]}, mask, priors)
    second = fit_mixture({"T1w": images["T1w"] * 7.5 - 300}, mask, priors)
    np.testing.assert_allclose(second.posteriors, first.posteriors, atol=2e-3)
    np.testing.assert_allclose(second.means, first.means * 7.5 - 300, rtol=1e-3)
    assert second.separation == pytest.approx(first.separation, rel=1e-3)


def test_same_input_same_bytes(phantom):
    images, mask, _, priors = phantom
    pair = [fit_mixture(images, mask, priors) for _ in range(2)]
    assert pair[0].posteriors.tobytes() == pair[1].posteriors.tobytes()
    assert pair[0].fields.tobytes() == pair[1].fields.tobytes()


def test_what_surrounds_the_brain_makes_no_difference(phantom):
    """More air: the same voxels, at the same bytes; the work is done in the brain's box alone."""
    images, mask, _, priors = phantom

    def padded(more):
        def pad(data):
            return np.pad(data, [(0, 0)] * (data.ndim - 3) + [(more, more + 3)] * 3)

        found = fit_mixture({name: pad(image) for name, image in images.items()}, pad(mask), pad(priors))
        inner = tuple(slice(more, more + size) for size in mask.shape)
        return found.posteriors[:, *inner], found.fields, enlarge(found.fields, pad(mask))

    for less, more in zip(padded(12), padded(40), strict=True):
        np.testing.assert_array_equal(less, more)


def test_order_of_the_mapping_does_not_matter(phantom):
    images, mask, _, priors = phantom
    backwards = dict(reversed(images.items()))
    assert (
        fit_mixture(images, mask, priors).posteriors.tobytes()
        == fit_mixture(backwards, mask, priors).posteriors.tobytes()
    )


def test_flair_alone_is_never_separable(phantom):
    images, mask, shares, priors = phantom
    result = fit_mixture({"FLAIR": images["FLAIR"]}, mask, priors)
    assert not result.separable and "FLAIR alone" in result.reason
    parenchyma = result.posteriors[GM] + result.posteriors[WM]
    assert ((parenchyma > 0.5) == (shares[CSF] < 0.5))[mask].mean() > 0.97
    # Split by the priors alone: as accurate as they are, and no more.
    assert (result.posteriors[GM] > result.posteriors[WM])[mask & (priors[GM] > 0.9)].all()


def test_t2w_alone_is_never_separable(phantom):
    images, mask, _, priors = phantom
    result = fit_mixture({"T2w": images["T2w"]}, mask, priors)
    assert not result.separable and "T2w alone" in result.reason


def test_a_contrast_that_cannot_tell_two_classes_apart_is_called_so(phantom, rng):
    _, mask, shares, priors = phantom
    result = fit_mixture({"T1w": scan(shares, (80, 78, 180), rng)}, mask, priors)
    assert not result.separable
    assert result.separation < MixtureSettings().separation
    assert "T1w" in result.reason and "too low" in result.reason
    assert (result.posteriors[CSF] > 0.5)[mask & (shares[CSF] > 0.9)].mean() > 0.97


def test_a_good_contrast_is_separable(phantom):
    images, mask, _, priors = phantom
    result = fit_mixture({"T1w": images["T1w"]}, mask, priors)
    assert result.separation > 4  # 40 units of contrast, 4 of noise


def test_a_scan_that_ends_within_the_brain(phantom):
    """Beyond the field of view of one scan the other one and the neighbours decide."""
    images, mask, shares, priors = phantom
    images["FLAIR"][:, :, 30:] = 0
    images["FLAIR"][~mask] = 0
    result = fit_mixture({"T1w": images["T1w"], "FLAIR": images["FLAIR"]}, mask, priors)
    seen = mask.copy()
    seen[:, :, 30:] = False
    assert (result.posteriors.argmax(0) == shares.argmax(0))[seen].mean() > 0.95
    assert result.means[CSF, 1] == pytest.approx(20, abs=3)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_outside_a_field_of_view_the_other_scan_decides(phantom, share):
    """Told (NaN) that one scan shows nothing there, the model goes by what the other shows, not by priors alone."""
    images, mask, shares, priors = phantom
    flat = np.full_like(priors, 1 / 3)
    beyond = np.zeros_like(mask)
    beyond[:, :, int(np.percentile(np.argwhere(mask)[:, 2], 100 * share)) :] = True
    images = {"T1w": images["T1w"], "FLAIR": np.where(beyond, np.nan, images["FLAIR"])}
    result = fit_mixture(images, mask, priors)
    alone = fit_mixture({"T1w": images["T1w"]}, mask, priors)
    truth, there = shares.argmax(0), mask & beyond
    assert (result.posteriors.argmax(0) == truth)[there].mean() > 0.95
    np.testing.assert_allclose(result.posteriors.sum(0)[mask], 1, atol=1e-4)
    # Without a prior to lean on, too.
    softened = fit_mixture(images, mask, 0.2 * priors + 0.8 * flat)
    assert (softened.posteriors.argmax(0) == truth)[there].mean() > 0.9
    assert result.means[WM, 0] == pytest.approx(alone.means[WM, 0], abs=2)


def test_background_in_the_mask_is_no_tissue(phantom):
    images, mask, _, priors = phantom
    t1w = np.where(mask, images["T1w"], -5)
    hole = np.zeros_like(mask)
    hole[18:21, 2:8, 18:21] = True
    t1w[hole] = -5
    result = fit_mixture({"T1w": t1w}, mask, priors)
    assert without_signal(t1w, mask).sum() == (hole & mask).sum()
    assert result.posteriors[CSF][hole & mask].min() > 0.9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i, m, p: ({}, m, p), "any of them"),
        (lambda i, m, p: ({"PDw": i["T1w"]}, m, p), "PDw"),
        (lambda i, m, p: (i, np.zeros_like(m), p), "mask holds 0 voxels"),
        (lambda i, m, p: (i, m.astype(float), p), "bool"),
        (lambda i, m, p: (i, m, p[:2]), "priors have shape"),
        (lambda i, m, p: (i, m[1:], p), "differ in shape"),
        (lambda i, m, p: ({"T1w": np.where(m, np.inf, 0)}, m, p), "infinite"),
        (lambda i, m, p: ({"T1w": np.where(m, np.nan, 0)}, m, p), "shows nothing of the brain"),
        (lambda i, m, p: ({"T1w": np.where(m, 7.0, 0)}, m, p), "no contrast"),
    ],
)
def test_what_cannot_be_segmented_is_refused(phantom, change, words):
    images, mask, _, priors = phantom
    with pytest.raises(ValueError, match=words):
        fit_mixture(*change(images, mask, priors))

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bidsapp.image.grid import on_grid, work_image
from bidsapp.image.preprocess import in_view, normalize_pair, only_seen
from bidsapp.image.resample import resample


@pytest.fixture
def scan() -> nib.Nifti1Image:
    """LPS, 1 x 1 x 3 mm; a smooth bump."""
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    affine[:3, 3] = (15, 16, -15)
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in (32, 34, 12)], indexing="ij")
    return nib.Nifti1Image((100 * np.exp(-sum(g**2 for g in grid))).astype(np.float32), affine)


def biased(img: nib.Nifti1Image, slope: float) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """The image times a field that rises along scanner x, and the field."""
    x = nib.affines.apply_affine(img.affine, np.stack(np.indices(img.shape), axis=-1))[..., 0]
    field = (1 + slope * x).astype(np.float32)
    return nib.Nifti1Image(np.asarray(img.dataobj) * field, img.affine), nib.Nifti1Image(field, img.affine)


def test_native_version_gets_the_same_correction_and_scale(scan: nib.Nifti1Image) -> None:
    native, _ = biased(scan, 0.01)
    work = work_image(scan)  # corrected already
    _, field = biased(work, 0.01)
    mask = on_grid(np.asarray(work.dataobj) > 40, work)
    out_work, out_native = normalize_pair(
        work, mask, native=native, field=field, reference=native, transform=None, contrast="T1w", method="zscore",
        denoise=False,
    )  # fmt: skip
    inside = np.asarray(out_work.dataobj)[np.asarray(mask.dataobj) > 0]
    assert inside.mean() == pytest.approx(0, abs=0.05)
    assert inside.std() == pytest.approx(1, abs=0.05)
    # One mapping for both: native voxels are the bump on the same scale, the field's slope gone.
    values = np.asarray(work.dataobj)[np.asarray(mask.dataobj) > 0]
    expected = (np.asarray(scan.dataobj) - values.mean()) / values.std()
    np.testing.assert_allclose(np.asarray(out_native.dataobj), expected, atol=0.1)
    np.testing.assert_array_equal(out_native.affine, native.affine)


def test_models_see_z_scores_whatever_is_written(scan: nib.Nifti1Image) -> None:
    work = work_image(scan)
    flat = nib.Nifti1Image(np.ones(work.shape, np.float32), work.affine)
    mask = on_grid(np.asarray(work.dataobj) > 40, work)
    of = {
        method: normalize_pair(
            work, mask, native=scan, field=flat, reference=scan, transform=None, contrast="T1w", method=method,
            denoise=False,
        )
        for method in ("zscore", "nyul")
    }  # fmt: skip
    np.testing.assert_array_equal(of["nyul"][0].dataobj, of["zscore"][0].dataobj)
    assert np.abs(np.asarray(of["nyul"][1].dataobj) - np.asarray(of["zscore"][1].dataobj)).max() > 0.1


def test_another_scan_lands_on_the_grid_of_the_reference(scan: nib.Nifti1Image) -> None:
    moved = nib.Nifti1Image(np.asarray(scan.dataobj), scan.affine.copy())
    moved.affine[0, 3] += 3  # the head lay 3 mm further right
    matrix = np.eye(4)
    matrix[0, 3] = 3
    work = work_image(scan)
    flat = nib.Nifti1Image(np.ones(work.shape, np.float32), work.affine)
    mask = on_grid(np.asarray(work.dataobj) > 40, work)
    _, native = normalize_pair(
        work, mask, native=moved, field=flat, reference=scan, transform=matrix, contrast="FLAIR", method="zscore",
        denoise=False,
    )  # fmt: skip
    _, direct = normalize_pair(
        work, mask, native=scan, field=flat, reference=scan, transform=None, contrast="FLAIR", method="zscore",
        denoise=False,
    )  # fmt: skip
    inner = (slice(4, -4), slice(4, -4), slice(1, -1))
    np.testing.assert_allclose(np.asarray(native.dataobj)[inner], np.asarray(direct.dataobj)[inner], atol=0.02)


@pytest.mark.parametrize(("kept", "words"), [(22, "shows"), (12, "was not used"), (0, "was not used")])
def test_intensities_are_those_of_what_a_cut_scan_shows(kept: int, words: str, rng: np.random.Generator) -> None:
    """Of a brain of 32 slices the scan shows the lower ones: 100 there, 0 where `resample` finds nothing."""
    whole = np.zeros((34, 36, 38), np.float32)
    whole[3:-3, 3:-3, 3:-3] = 100 + rng.normal(0, 5, (28, 30, 32))
    reference = nib.Nifti1Image(whole, np.diag([1.0, 1.0, 1.0, 1.0]))
    mask = on_grid(whole > 0, reference)
    cut = reference.slicer[:, :, : 3 + kept] if kept else reference.slicer[:, :, :1]
    work = resample(cut, reference)
    seen, warning = in_view(cut, mask, np.eye(4), contrast="T2w")
    assert seen is not None and seen.sum() == cut.shape[2] * 34 * 36
    assert words in warning and f"{int(100 * kept / 32)} % of the brain" in warning and "--bids-filter-file" in warning
    flat = on_grid(np.ones(whole.shape, np.float32), reference)
    out, native = normalize_pair(
        work, mask, native=cut, field=flat, reference=reference, transform=np.eye(4), contrast="T2w", method="zscore",
        denoise=False, seen=seen,
    )  # fmt: skip
    data = np.asarray(out.dataobj)
    np.testing.assert_array_equal(np.isnan(data), ~seen)
    assert np.isfinite(np.asarray(native.dataobj)).all()
    brain = np.asarray(mask.dataobj) > 0
    np.testing.assert_array_equal(np.isnan(only_seen(np.asarray(native.dataobj), brain))[brain], ~seen[brain])
    if kept:
        shown = data[(np.asarray(mask.dataobj) > 0) & seen]
        assert shown.mean() == pytest.approx(0, abs=1e-4) and shown.std() == pytest.approx(1, abs=1e-4)


def test_what_a_whole_scan_shows_often_is_seen(rng: np.random.Generator) -> None:
    """Bytes: every value is there many times, the commonest is no darkest; and a scan of floats."""
    brain = np.ones((20, 20, 20), bool)
    for values in (rng.normal(100, 5, brain.shape).round(), rng.normal(0, 1, brain.shape)):
        assert np.isfinite(only_seen(values, brain)).all()
    assert np.isfinite(only_seen(np.zeros((2, 2, 2)), np.zeros((2, 2, 2), bool))).all()


def test_a_scan_of_the_whole_brain_is_left_as_it_is(scan: nib.Nifti1Image) -> None:
    mask = np.zeros(scan.shape, bool)
    mask[2:-2, 2:-2, 1:-1] = True
    assert in_view(scan, on_grid(mask, scan), np.eye(4), contrast="FLAIR") == (None, "")

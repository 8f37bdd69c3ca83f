from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bidsapp.image.grid import on_grid, work_image
from bidsapp.image.preprocess import normalize_pair


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

"""The half-way space: in the middle, whichever session comes first; known deformations are measured."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy import ndimage

from bidsapp.image import halfway
from bidsapp.image.grid import on_grid
from bidsapp.image.itk import shift
from bidsapp.image.register import similarity_matrix
from bidsapp.image.resample import resample


def head(rng: np.random.Generator, shape=(50, 58, 44)) -> nib.Nifti1Image:
    """A lumpy ellipsoid, 2 mm voxels."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    inside = (grid**2 / np.array([0.75, 0.8, 0.7])[:, None, None, None] ** 2).sum(axis=0) < 1
    lumps = ndimage.gaussian_filter(rng.normal(size=shape), 2.5)
    data = np.where(inside, 100 + 40 * lumps / lumps.std(), 0).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -np.array(shape, dtype=float)
    return nib.Nifti1Image(data, affine)


def mask(img: nib.Nifti1Image) -> nib.Nifti1Image:
    return on_grid(np.asarray(img.dataobj) > 20, img)


def test_mean_of_two_rigid_transforms_is_half_way():
    turned = shift(np.array([4.0, -2, 6])) @ similarity_matrix(1, 0, 0, 10)
    mean = halfway.mean_rigid([np.eye(4), turned])
    assert np.allclose(mean @ mean, turned)
    assert np.allclose(halfway.mean_rigid([turned, np.eye(4)]), mean)
    assert np.allclose(mean[:3, :3] @ mean[:3, :3].T, np.eye(3))


def test_mean_of_three_does_not_depend_on_their_order():
    matrices = [np.eye(4), shift(np.array([3.0, 0, 0])) @ similarity_matrix(1, 5, 0, 0), similarity_matrix(1, 0, 8, 3)]
    assert np.allclose(halfway.mean_rigid(matrices), halfway.mean_rigid(matrices[::-1]), atol=1e-6)


def test_disagreement_is_the_distance_between_the_way_there_and_back(rng, monkeypatch):
    ways = iter([shift(np.array([3.0, 4, 0])), np.eye(4)])  # the way back finds no movement at all
    monkeypatch.setattr(halfway, "register_rigid", lambda *_, **__: next(ways))
    scan = head(rng, (20, 22, 18))
    found = halfway.halfway_space([scan, scan], [mask(scan)] * 2)
    assert found.disagreement_mm == pytest.approx((5.0,))
    # Of both ways the mean counts, and half of it is the way of either session.
    assert np.allclose(found.transforms[1], shift(np.array([0.75, 1, 0])))


def test_both_sessions_move_by_the_same_amount(rng):
    scan = head(rng)
    move = shift(np.array([6.0, -4, 3])) @ similarity_matrix(1, 0, 0, 6)  # points of the first to the second
    other = resample(scan, scan, transform=np.linalg.inv(move))
    found = halfway.halfway_space([scan, other], [mask(scan), mask(other)])
    points = np.array([[0.0, 0, 0], [40, 20, -20], [-30, 10, 30]])
    first, second = (apply_affine(matrix, points) for matrix in found.transforms)
    # the registration is that of the known move, and the space lies in its middle
    assert np.abs(apply_affine(move, first) - second).max() < 0.5
    assert np.allclose(found.transforms[0] @ found.transforms[1], np.eye(4), atol=0.3)
    assert found.disagreement_mm[0] < 0.5
    carried = [np.asarray(halfway.carry(img, found, index).dataobj) for index, img in enumerate((scan, other))]
    inside = ndimage.binary_erosion(carried[0] > 20, iterations=8)
    assert np.corrcoef(carried[0][inside], carried[1][inside])[0, 1] > 0.95
    swapped = halfway.halfway_space([other, scan], [mask(other), mask(scan)])
    assert np.abs(apply_affine(swapped.transforms[1], points) - first).max() < 0.3


@pytest.mark.slow
def test_a_brain_that_shrinks_by_a_known_share(rng):
    scan = head(rng)
    factor = 0.98  # each axis: 5.9 % of the volume
    small = resample(scan, scan, transform=np.diag([1 / factor] * 3 + [1.0]))
    near = on_grid((np.asarray(mask(scan).dataobj) > 0), scan)
    there, back = halfway.jacobians(scan, small, near)
    inner = ndimage.binary_erosion(np.asarray(mask(small).dataobj) > 0, iterations=3)
    assert there[inner].mean() == pytest.approx(factor**3, abs=0.015)
    assert back[inner].mean() == pytest.approx(factor**-3, abs=0.015)
    same, _ = halfway.jacobians(scan, scan, near)
    assert same[inner].mean() == pytest.approx(1, abs=0.002)


def test_what_is_no_pair_is_refused(rng):
    scan = head(rng)
    with pytest.raises(ValueError, match="two or more"):
        halfway.halfway_space([scan], [mask(scan)])
    with pytest.raises(ValueError, match="empty"):
        halfway.halfway_space([scan, scan], [mask(scan), on_grid(np.zeros(scan.shape, bool), scan)])


def test_a_field_of_view_that_ends_in_the_brain_is_no_growth(rng):
    scan = head(rng)
    near = mask(scan)
    cut = np.asarray(scan.dataobj).copy()
    seen = np.ones(cut.shape, bool)
    seen[:, :, :18] = False
    cut[~seen] = 0
    inside = (np.asarray(near.dataobj) > 0) & seen
    growth = [
        float(np.log(halfway.jacobians(scan, on_grid(cut, scan), near, seen=shown)[0][inside]).mean())
        for shown in (None, seen)
    ]
    assert abs(growth[1]) < 0.002 and abs(growth[1]) < abs(growth[0]) / 3

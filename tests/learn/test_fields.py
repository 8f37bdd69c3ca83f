from __future__ import annotations

import numpy as np
import pytest
import torch

from bidsapp.learn.fields import apply_along, moved, slice_profiles, smooth_field


def test_thick_slices_average_what_they_cover() -> None:
    to_slices, from_slices = slice_profiles(12, spacing=4, thickness=4, blur=0, phase=0.5)
    np.testing.assert_allclose(to_slices.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(from_slices.sum(1), 1, atol=1e-5)
    # The slice at voxel 4 covers voxels 2.5-5.5 fully and half of 2 and 6: (2/2 + 3 + 4 + 5 + 6/2) / 4 = 4.
    ramp = torch.arange(12.0)
    assert float(to_slices[1] @ ramp) == pytest.approx(4, abs=1e-3)
    np.testing.assert_allclose(to_slices[1].numpy(), [0, 0, 0.125, 0.25, 0.25, 0.25, 0.125, 0, 0, 0, 0, 0], atol=1e-3)
    # A line comes back as it was (the first slice hangs over the edge).
    np.testing.assert_allclose(from_slices[4:9] @ (to_slices @ ramp), ramp[4:9], atol=1e-3)


def test_one_voxel_slices_without_blur_change_nothing() -> None:
    to_slices, from_slices = slice_profiles(9, spacing=1, thickness=1, blur=0, phase=0.3)
    np.testing.assert_allclose(from_slices @ to_slices, np.eye(9), atol=1e-3)


@pytest.mark.parametrize("phase", [0.0, 0.3, 0.6, 0.99])
def test_slices_beyond_an_end_show_the_voxel_there(phase: float) -> None:
    to_slices, from_slices = slice_profiles(40, spacing=8, thickness=6, blur=0.2, phase=phase)
    away = (torch.arange(40)[:, None] - torch.arange(40)).abs()
    assert float((from_slices @ to_slices)[away > 16].max()) < 1e-4


def test_a_shift_moves_what_comes_back() -> None:
    to_slices, from_slices = slice_profiles(9, spacing=1, thickness=1, blur=0, phase=0.3, shift=0.25)
    ramp = torch.arange(9.0)
    np.testing.assert_allclose((from_slices @ (to_slices @ ramp))[1:8], ramp[1:8] - 0.25, atol=1e-3)


def test_apply_along_multiplies_the_axis_named() -> None:
    image = torch.randn(7, 8, 9, generator=torch.Generator().manual_seed(0))
    matrix = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(
        apply_along(image, matrix, 1), np.einsum("ab,xbz->xaz", matrix.numpy(), image.numpy()), rtol=1e-4, atol=1e-5
    )


def test_smooth_field_has_unit_variance_and_is_smooth() -> None:
    field = smooth_field((60, 64, 68), 6, torch.Generator().manual_seed(0))
    assert float(field.std()) == pytest.approx(1, abs=0.15)
    assert float(field.diff(dim=0).std()) < 0.35


def test_a_flow_carries_what_lies_upstream() -> None:
    points = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in (20, 24, 28)], indexing="ij"))
    flow = torch.zeros((3, 5, 6, 7))
    flow[1] = 1  # along the second axis, everywhere
    there = moved(points, flow, 3.0)
    torch.testing.assert_close(there[1, 8:12, 8:16, 8:20], points[1, 8:12, 8:16, 8:20] - 3)
    torch.testing.assert_close(there[[0, 2]], points[[0, 2]])

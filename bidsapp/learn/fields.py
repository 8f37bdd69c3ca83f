"""Random fields, slices and turns on grids of voxels, wholly in torch: what the generator draws with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

#: Voxels between the points at which a slow displacement is followed, and steps it is followed in.
COARSE, STEPS = 4, 4


@dataclass(frozen=True)
class Chance:
    """The random numbers of one sample.

    Attributes
    ----------
    rng : Generator
        Of scalars, on the CPU, so that nothing waits for the device.
    torch_rng : Generator
        Of fields, on the device.
    spacing_mm : float
        Of the sample's voxels.
    """

    rng: np.random.Generator
    torch_rng: torch.Generator
    spacing_mm: float

    @classmethod
    def of(cls, seed: int, spacing_mm: float = 1.0, device: torch.device | str = "cpu") -> Chance:
        """That of sample number `seed`."""
        return cls(np.random.default_rng(seed), torch.Generator(device).manual_seed(seed), spacing_mm)

    def uniform(self, low: float, high: float) -> float:
        """A number between the two."""
        return self.rng.uniform(low, high)

    def happens(self, probability: float) -> bool:
        """Whether something with this probability does."""
        return self.rng.random() < probability

    def field(self, shape: tuple[int, ...] | torch.Size, low_mm: float, high_mm: float) -> torch.Tensor:
        """`smooth_field` with its control points between `low_mm` and `high_mm` apart."""
        return smooth_field(shape, self.uniform(low_mm, high_mm) / self.spacing_mm, self.torch_rng)

    def noise(self, *shape: int) -> torch.Tensor:
        """Normally distributed, each voxel on its own."""
        return torch.randn(shape, generator=self.torch_rng, device=self.torch_rng.device)


def smooth_field(shape: tuple[int, ...] | torch.Size, spacing: float, torch_rng: torch.Generator) -> torch.Tensor:
    """Random field of mean 0 and about unit variance: cubic B-splines on control points `spacing` voxels apart."""
    of_length = {n: _splines(n, spacing).to(torch_rng.device) for n in set(shape)}
    matrices = [of_length[n] for n in shape]
    field = torch.randn([m.shape[1] for m in matrices], generator=torch_rng, device=torch_rng.device)
    for axis, matrix in enumerate(matrices):
        field = apply_along(field, matrix, axis)
    return field


def touching(mask: torch.Tensor) -> torch.Tensor:
    """The mask and the six neighbours of its voxels, bool (X, Y, Z)."""
    grown = mask.clone()
    for axis in range(3):
        n = mask.shape[axis] - 1
        grown.narrow(axis, 1, n).logical_or_(mask.narrow(axis, 0, n))
        grown.narrow(axis, 0, n).logical_or_(mask.narrow(axis, 1, n))
    return grown


def _splines(n: int, spacing: float) -> torch.Tensor:
    """(n, points): cubic B-spline weights, scaled to unit sum of squares; on the CPU, quicker for what is so small."""
    points = math.ceil((n - 1) / spacing) + 4
    t = (torch.arange(n, dtype=torch.float32)[:, None] / spacing) - (torch.arange(points, dtype=torch.float32) - 1.5)
    t = t.abs()
    weights = torch.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t).clamp(min=0) ** 3 / 6)
    return weights / weights.square().sum(1, keepdim=True).sqrt()


def slice_profiles(
    n: int, *, spacing: float, thickness: float, blur: float, phase: float, shift: float = 0.0,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Matrices that sample an axis in slices and bring it back by linear interpolation.

    Parameters
    ----------
    n : int
        Voxels along the axis.
    spacing, thickness : float
        Distance between the middles of slices, and width of their box profile, in voxels.
    blur : float
        Standard deviation in voxels of a Gaussian on top of the box (point spread, partial volume).
    phase : float
        Where the first slice begins, as a share of the spacing; nothing moves when the spacing is one voxel.
    shift : float
        Voxels by which what was sampled is put off its place on the way back.

    Returns
    -------
    to_slices : Tensor
        (slices, n), rows sum to 1.
    from_slices : Tensor
        (n, slices), rows sum to 1.
    """
    voxels = torch.arange(n, dtype=torch.float32)  # all on the CPU, as in _splines
    count = max(2, math.ceil(n / spacing))
    first = 0.0 if spacing == 1 else (phase - 0.5) * spacing
    middles = first + spacing * torch.arange(count + (spacing != 1), dtype=torch.float32)
    # A slice that lies wholly beyond an end shows the voxel there.
    seen = middles.clamp(-thickness / 2, n - 1 + thickness / 2)
    away = voxels[None] - seen[:, None]
    # Box of `thickness` convolved with a Gaussian: a difference of two error functions.
    width = max(blur, 0.05) * math.sqrt(2)
    profile = torch.erf((away + thickness / 2) / width) - torch.erf((away - thickness / 2) / width) + 1e-9
    to_slices = profile / profile.sum(1, keepdim=True)
    triangle = (1 - ((voxels[:, None] - middles - shift) / spacing).abs()).clamp(min=0) + 1e-9
    return to_slices.to(device), (triangle / triangle.sum(1, keepdim=True)).to(device)


def apply_along(image: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    """Multiply axis `axis` (n voxels) of a 3D image by a (m, n) matrix."""
    return torch.tensordot(matrix, image, dims=([1], [axis])).movedim(0, axis)


def soften(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blurred by a Gaussian of `sigma` voxels, and kept within 0 and 1."""
    of_length = {
        n: slice_profiles(n, spacing=1, thickness=0.5, blur=sigma, phase=0, device=image.device)[0]
        for n in set(image.shape)
    }
    for axis, n in enumerate(image.shape):
        image = apply_along(image, of_length[n], axis)
    return image.clamp(0, 1)


def moved(points: torch.Tensor, field: torch.Tensor, amount: float) -> torch.Tensor:
    """Points that a flow has carried: what lies at each now lay upstream of it before.

    Parameters
    ----------
    points : Tensor
        (3, X, Y, Z), places on the grid that `field` covers.
    field : Tensor
        (3, x, y, z), direction and speed of the flow, slowly varying; its voxels are `COARSE` units of `points` wide.
    amount : float
        How long it flows.
    """
    shape = points.shape[1:]
    few = [math.ceil(n / COARSE) + 1 for n in shape]
    before = functional.interpolate(points[None], few, mode="trilinear", align_corners=True)[0]
    now, flow = before, field[None].float()
    for _ in range(STEPS):
        places = [(2 * now[i] + 1) / (COARSE * field.shape[i + 1]) - 1 for i in (2, 1, 0)]
        there = functional.grid_sample(flow, torch.stack(places, -1)[None], align_corners=False)[0]
        now = now - amount / STEPS * there
    return points + functional.interpolate((now - before)[None], shape, mode="trilinear", align_corners=True)[0]


def rotation(angles: np.ndarray) -> np.ndarray:
    """(3, 3): turned by these angles (radians) about x, y and z, one after the other."""
    out = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        one = np.eye(3)
        one[i, i] = one[j, j] = math.cos(angle)
        one[i, j], one[j, i] = -math.sin(angle), math.sin(angle)
        out = one @ out
    return out

"""Bias field (intensity inhomogeneity) correction by N4."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from bidsapp.image.grid import bounding_box, on_grid
from bidsapp.image.itk import to_ants

#: N4 at these settings takes a twentieth of the default's time (spec/stack.md). A tolerance of 1e-4 takes 2.6 times as
#: long; the field is then another by 0.1-0.3 % (docs/speed.md).
SHRINK_FACTOR = 4
ITERATIONS = (50, 50, 30, 20)
TOLERANCE = 1e-3
#: Mean by mean magnitude of the brain: 1 in a scan as acquired, 0 in one that was z-scored in the brain.
CLEARLY_POSITIVE = 0.5


def correct_bias(img: nib.Nifti1Image, mask: nib.Nifti1Image) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Divide a scan by the bias field that N4 (Tustison et al. 2010, IEEE TMI 29:1310) estimates within a mask.

    Parameters
    ----------
    img : Nifti1Image
        3D.
    mask : Nifti1Image
        Brain mask on the same grid; the tighter, the better the field.

    Returns
    -------
    corrected, field : Nifti1Image
        float32, finite, on the grid of `img`; ``img = corrected * field``, field > 0. The field covers the whole
        head: outside the mask, where nothing was fitted, it is kept within its range inside. It is scaled so that the
        mean inside the mask is kept or, where that is near 0 (a scan that was z-scored), its own geometric mean is 1.

    Raises
    ------
    ValueError
        The grids differ, or the mask is empty.
    """
    import ants

    data = np.asarray(img.dataobj, dtype=np.float32)
    inside = np.asarray(mask.dataobj) > 0
    if data.shape != inside.shape:
        raise ValueError(f"Image and mask differ in shape: {data.shape} and {inside.shape}.")
    if not inside.any():
        raise ValueError("The brain mask is empty: the bias field cannot be estimated.")
    box = bounding_box(inside, margin=SHRINK_FACTOR)
    # N4 takes logarithms: zeros inside the mask would rule the fit.
    fit = inside & (data > 0)
    if not fit.any():
        raise ValueError("The scan has no positive intensities inside the brain mask.")
    field = ants.n4_bias_field_correction(
        to_ants(np.maximum(data, 0)[box], img.affine, box),
        mask=to_ants(fit[box].astype(np.float32), img.affine, box),
        shrink_factor=SHRINK_FACTOR,
        convergence={"iters": list(ITERATIONS), "tol": TOLERANCE},
        return_bias_field=True,
    ).numpy()
    field = np.clip(field, field[fit[box]].min(), field[fit[box]].max())
    field = _extend(field, data.shape, box).astype(np.float32)
    corrected = data / field
    scale = _scale(data, corrected, field, inside)
    return on_grid(corrected / scale, img), on_grid(field * scale, img)


def _scale(data: np.ndarray, corrected: np.ndarray, field: np.ndarray, inside: np.ndarray) -> np.floating:
    """What to divide the corrected scan by: > 0, or the scan would come out inverted."""
    if data[inside].mean() > CLEARLY_POSITIVE * np.abs(data[inside]).mean():
        return corrected[inside].mean() / data[inside].mean()
    # The quotient of two means near 0 may be anything, of either sign.
    return 1 / np.exp(np.log(field[inside]).mean())


def _extend(field: np.ndarray, shape: tuple[int, ...], box: tuple[slice, ...]) -> np.ndarray:
    """The field on the whole grid: the nearest value of the box outside it."""
    pad = [(s.start, n - s.start - f) for s, n, f in zip(box, shape, field.shape, strict=True)]
    return np.pad(field, pad, mode="edge")

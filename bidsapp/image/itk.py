"""Between nibabel (RAS mm) and ITK (LPS mm): images in memory, affine transforms as text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

if TYPE_CHECKING:
    import ants

#: RAS -> LPS and back: both flip the first two axes.
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def to_ants(data: np.ndarray, affine: np.ndarray, box: tuple[slice, ...] | None = None) -> ants.ANTsImage:
    """An ants image of a 3D array.

    Parameters
    ----------
    data : ndarray
        3D, already cut to `box`.
    affine : ndarray, shape (4, 4)
        Voxel -> RAS mm of the uncut array; axes orthogonal.
    box : tuple of slice, optional
        Where `data` was cut from.
    """
    import ants

    start = np.array([s.start for s in box]) if box else np.zeros(3)
    itk = FLIP @ affine
    spacing = np.linalg.norm(itk[:3, :3], axis=0)
    origin = itk[:3, :3] @ start + itk[:3, 3]
    return ants.from_numpy(
        np.asarray(data, dtype=np.float32),
        origin=tuple(origin.tolist()),
        spacing=tuple(spacing.tolist()),
        direction=itk[:3, :3] / spacing,
    )


def image_to_ants(img: nib.Nifti1Image) -> ants.ANTsImage:
    """An ants image of a 3D nibabel image."""
    return to_ants(np.asarray(img.dataobj, dtype=np.float32), img.affine)


def affine_from_itk(parameters: np.ndarray, center: np.ndarray) -> np.ndarray:
    """4x4 RAS matrix of an ITK ``MatrixOffsetTransformBase``: y = M (x - c) + t + c, in LPS.

    Parameters
    ----------
    parameters : ndarray, shape (12,)
        M by rows, then t.
    center : ndarray, shape (3,)
        ITK's fixed parameters.
    """
    parameters, center = (
        np.ravel(parameters).astype(float),
        np.ravel(center).astype(float),
    )
    lps = np.eye(4)
    lps[:3, :3] = parameters[:9].reshape(3, 3)
    lps[:3, 3] = parameters[9:] + center - lps[:3, :3] @ center
    return FLIP @ lps @ FLIP


def write_itk_affine(matrix: np.ndarray, path: Path) -> None:
    """Write a 4x4 RAS matrix (output point -> input point) as an ITK text transform, which ANTs and ITK-SNAP read.

    Raises
    ------
    ValueError
        `matrix` is not a finite affine matrix.
    """
    matrix = np.asarray(matrix, dtype=float)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise ValueError(f"Not an affine matrix: {matrix!r}")
    lps = FLIP @ matrix @ FLIP
    numbers = " ".join(repr(float(x) + 0.0) for x in [*lps[:3, :3].ravel(), *lps[:3, 3]])  # + 0.0: no "-0.0"
    Path(path).write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 0 0 0\n"
    )


def read_itk_affine(path: Path) -> np.ndarray:
    """Read an ITK text transform (one affine or rigid matrix) as a 4x4 RAS matrix (output point -> input point).

    Raises
    ------
    ValueError
        The file holds no such transform, or several.
    """
    rows = [line.split(":", 1) for line in Path(path).read_text().splitlines() if ":" in line]
    kinds = [value.strip() for key, value in rows if key.strip() == "Transform"]
    fields = {key.strip(): value.split() for key, value in rows}
    if len(kinds) != 1 or not kinds[0].startswith(("AffineTransform_", "MatrixOffsetTransformBase_")):
        raise ValueError(f"{path}: expected one ITK affine transform in text form, found {kinds or 'none'}.")
    parameters, center = (np.array(fields.get(key, []), dtype=float) for key in ("Parameters", "FixedParameters"))
    if parameters.size != 12 or center.size != 3:
        raise ValueError(f"{path}: an affine transform has 12 parameters and 3 fixed ones.")
    return affine_from_itk(parameters, center)


def displacement_field(ras_mm: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """A displacement field as ITK and ANTs keep it in NIfTI.

    Parameters
    ----------
    ras_mm : ndarray, shape (i, j, k, 3)
        Displacement (mm, RAS) of each grid point.
    affine : ndarray, shape (4, 4)

    Returns
    -------
    Nifti1Image
        float32, (i, j, k, 1, 3), intent "vector", LPS mm.
    """
    lps = (ras_mm * np.array([-1, -1, 1])).astype(np.float32)
    img = nib.Nifti1Image(lps[:, :, :, None, :], affine)
    img.header.set_intent("vector")
    img.header.set_xyzt_units("mm")
    img.set_sform(affine, 1)
    img.set_qform(affine, 1)
    return img


def displacements(field: nib.Nifti1Image) -> np.ndarray:
    """Displacements (mm, RAS) of an ITK displacement field; shape (i, j, k, 3).

    Raises
    ------
    ValueError
        The image is not a displacement field.
    """
    if field.ndim != 5 or field.shape[3:] != (1, 3) or int(field.header["intent_code"]) != 1007:
        raise ValueError(
            f"Not an ITK displacement field: shape {field.shape}, intent code {int(field.header['intent_code'])};"
            " expected (i, j, k, 1, 3) and 1007."
        )
    return np.asarray(field.dataobj, dtype=np.float32)[:, :, :, 0] * np.array([-1, -1, 1], dtype=np.float32)

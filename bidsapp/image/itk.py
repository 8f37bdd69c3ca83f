"""Between nibabel (RAS mm) and ITK (LPS mm): images, transforms, and calls of antsRegistration."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from scipy import io

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


@dataclass(frozen=True)
class Stage:
    """One stage of antsRegistration, coarse to fine; smoothing in voxels."""

    transform: str
    metric: str
    metric_options: str
    iterations: str
    shrink_factors: str
    smoothing_sigmas: str

    def arguments(self, fixed: str, moving: str) -> list[str]:
        return [
            "--transform", self.transform,
            "--metric", f"{self.metric}[{fixed},{moving},1,{self.metric_options}]",
            "--convergence", f"[{self.iterations},1e-6,10]",
            "--shrink-factors", self.shrink_factors,
            "--smoothing-sigmas", f"{self.smoothing_sigmas}vox",
        ]  # fmt: skip


def ants_registration(
    moving: nib.Nifti1Image,
    fixed: nib.Nifti1Image,
    *,
    start: np.ndarray,
    center: np.ndarray,
    stages: list[Stage],
    fixed_mask: nib.Nifti1Image | None = None,
) -> tuple[np.ndarray, nib.Nifti1Image | None, nib.Nifti1Image | None]:
    """Register two 3D images by stages of antsRegistration (Avants et al. 2011, NeuroImage 54:2033).

    Parameters
    ----------
    moving, fixed : Nifti1Image
    start : ndarray, shape (4, 4)
        Rotation, translation and one scale, fixed point -> moving point (RAS mm), to start from.
    center : ndarray, shape (3,)
        Point of fixed space (RAS mm) about which rotations are searched.
    stages : list of Stage
        Linear ones, then at most one deformable.
    fixed_mask : Nifti1Image, optional
        Where the metric is taken, on the grid of `fixed`.

    Returns
    -------
    matrix : ndarray, shape (4, 4)
        Fixed point -> moving point, RAS mm, of the linear stages and `start`.
    warp, inverse : displacement fields or None
        In fixed space, of the deformable stage: a fixed point goes through `warp`, then `matrix`, to the moving point;
        a moving point through the inverse of `matrix`, then `inverse`.

    Notes
    -----
    Metrics are sampled with a fixed seed. The start is put into the headers, so no file is needed for it.
    """
    import ants
    from ants.internal import get_pointer_string

    to_center = shift(-center)
    images = [
        image_to_ants(placed(moving, to_center @ np.linalg.inv(start))),
        image_to_ants(placed(fixed, to_center)),
    ]  # held until the call ends: it reads raw pointers
    pointers = [get_pointer_string(img) for img in images]
    mask_image = None if fixed_mask is None else image_to_ants(placed(fixed_mask, to_center)).clone("unsigned char")
    mask_pointer = "NA" if mask_image is None else get_pointer_string(mask_image)
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--dimensionality", "3", "--float", "1", "--random-seed", "1", "--output", f"{folder}/"]
        for stage in stages:
            arguments += stage.arguments(pointers[1], pointers[0])
        ants.registration([*arguments, "--masks", f"[{mask_pointer},NA]"], None)
        written = Path(folder)
        matrix = start
        for path in written.glob("*GenericAffine.mat"):
            matrix = start @ shift(center) @ _read_mat(path) @ to_center
        warp = _read_warp(written, "*[0-9]Warp.nii.gz", fixed.affine)
        inverse = _read_warp(written, "*InverseWarp.nii.gz", fixed.affine)
        return matrix, warp, inverse


def _read_warp(folder: Path, pattern: str, affine: np.ndarray) -> nib.Nifti1Image | None:
    """The warp antsRegistration wrote, if any, put back from the centred space of the call."""
    path = next(folder.glob(pattern), None)
    return None if path is None else displacement_field(displacements(nib.Nifti1Image.from_filename(path)), affine)


def _read_mat(path: Path) -> np.ndarray:
    """The affine antsRegistration wrote (Matlab 4 format), as a 4x4 RAS matrix."""
    content = io.loadmat(path)
    name = next(key for key in content if key not in ("fixed", "__header__", "__version__", "__globals__"))
    return affine_from_itk(content[name], content["fixed"])


def placed(img: nib.Nifti1Image, matrix: np.ndarray) -> nib.Nifti1Image:
    """The image moved in space by a rotation, translation and scale; no voxel changes."""
    return nib.Nifti1Image(np.asarray(img.dataobj), matrix @ img.affine)


def shift(vector: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = vector
    return matrix

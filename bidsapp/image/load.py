"""Read a scan from a dataset and harmonise its geometry, or say what is wrong with the file."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.spatialimages import HeaderDataError

from bidsapp.errors import InputError
from bidsapp.words import count_of

#: A structural scan has at least this many voxels along each axis (single slices and localisers have fewer).
MINIMUM_AXIS = 10
#: Voxel sizes (mm) outside this range are a broken header (or micrometres, or metres), not a head scan.
VOXEL_SIZE_RANGE_MM = (0.1, 12.0)
#: Forms whose voxels differ in size by more measure different volumes: one of them was scaled to a template.
SIZE_TOLERANCE = 0.01
#: Codes of sform and qform that name a template's space (nifti1.h).
TEMPLATE_CODES = {3: "Talairach", 4: "MNI152"}
#: Scanners round their headers; qform and sform this close (mm, at the corners of the image) agree.
GEOMETRY_TOLERANCE_MM = 0.1


#: Files of git-annex and Git LFS that stand for others are smaller.
POINTER_BYTES = 1000
#: Share of exact zeros from which they are a background that was set to 0.
BLANK_SHARE = 0.1
#: Share of the range of values that may lie below zero without meaning anything.
BELOW_ZERO = 0.05
#: Tilt (degrees) from which heads were segmented worse.
TILT_DEGREES = 30.0


@dataclass(frozen=True)
class Scan:
    """A scan whose data are finite float32 and whose sform and qform agree.

    Attributes
    ----------
    image : Nifti1Image
        3D, on the voxel grid of the file.
    notes : tuple of str
        What was harmonised, for the record.
    warnings : tuple of str
        What the user should check (left/right doubts).
    """

    image: nib.Nifti1Image
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def load_scan(path: Path) -> Scan:
    """Load one structural scan.

    Parameters
    ----------
    path : Path
        ``.nii`` or ``.nii.gz``.

    Returns
    -------
    Scan

    Raises
    ------
    InputError
        The file is missing, empty, truncated, no NIfTI, has several volumes, no orientation, not-a-number voxels, or
        no contrast. The message names the file and the remedy.
    """
    img = open_image(path)
    _check_axes(img.shape, path)
    affine, notes, warnings = _harmonise_affine(img, path)
    data, volume_notes = _read_volume(img, path)
    _check_voxel_size(affine, path)
    _check_values(data, path)
    data, value_notes = _from_zero(data)
    out = nib.Nifti1Image(data, affine)
    _set_codes(out, img)
    return Scan(out, (*notes, *volume_notes, *value_notes), (*warnings, *_tilted(affine)))


def read_grid(path: Path) -> nib.Nifti1Image:
    """The grid that `load_scan` gives a scan, from the header alone: an image of zeros that takes no memory.

    Raises
    ------
    InputError
        For what the header, and the size of the file, show to be unusable.
    """
    img, affine = _by_header(path)
    grid = nib.Nifti1Image(np.broadcast_to(np.uint8(0), img.shape[:3]), affine)
    _set_codes(grid, img)
    return grid


def read_geometry(path: Path) -> tuple[np.ndarray, tuple[int, ...]]:
    """Affine and shape of `read_grid`, and its errors, in half of its time: thousands of headers may be looked at."""
    img, affine = _by_header(path)
    return affine, img.shape[:3]


def _by_header(path: Path) -> tuple[nib.Nifti1Image, np.ndarray]:
    """An image that nothing is wrong with as far as its header and size tell, and its affine."""
    img = open_image(path)
    _check_axes(img.shape, path)
    affine, _, _ = _harmonise_affine(img, path)
    _check_voxel_size(affine, path)
    _check_size(img, path)
    return img, affine


def open_image(path: Path) -> nib.Nifti1Image:
    """An image of single numbers, its voxels not read yet; `InputError` where the file is none."""
    if path.is_symlink() and not path.exists():
        raise InputError(
            f"{path}: the link points to missing content. In a DataLad/git-annex dataset run 'datalad get' on it first."
        )
    if not path.exists():
        raise InputError(f"{path}: no such file.")
    if path.is_dir():
        raise InputError(f"{path}: is a folder, not an image. Give the image that name (perhaps it is inside).")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes). Copy or convert it again.")
    try:
        with LoggingOutputSuppressor():  # what nibabel mends in a header it tells on stderr, without the file's name
            img = nib.load(path)
    except PermissionError as error:
        raise InputError(f"{path}: may not be read. Allow whoever runs the app to read it.") from error
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(
            _pointer(path) or f"{path}: not a readable NIfTI file ({_instead(path) or error}). {_remedy(path)}"
        ) from error
    if not isinstance(img, nib.Nifti1Image):  # Nifti2Image derives from Nifti1Image
        raise InputError(f"{path}: not a NIfTI image but {type(img).__name__}. Convert it to .nii.gz.")
    if img.dataobj.offset < img.header.sizeof_hdr:  # type: ignore[attr-defined]
        raise InputError(f"{path}: not a readable NIfTI file (its voxels are said to begin within the header). {AGAIN}")
    if img.get_data_dtype().fields is not None or np.issubdtype(img.get_data_dtype(), np.complexfloating):
        raise InputError(
            f"{path}: voxels are {img.get_data_dtype()}, not single numbers."
            " Use the magnitude image, not RGB or complex."
        )
    return img


#: What files are that were given the name of another kind, by their first bytes.
_SIGNS = {
    b"\x1f\x8b": "it is compressed",
    b"\x5c\x01\x00\x00": "it is not compressed",  # 348, the size of a NIfTI-1 header
    b"\x00\x00\x01\x5c": "it is not compressed",
    b"\x1c\x02\x00\x00": "it is not compressed",  # 540, that of a NIfTI-2 header
    b"PK\x03\x04": "it is a zip archive",
    b"BZh": "it is compressed by bzip2",
    b"<": "it is a web page, or XML",
    b"NRRD": "it is a NRRD image",
    b"\x00\x00\x00\x01": "it is an uncompressed FreeSurfer image (.mgh)",
}
AGAIN = "Convert it again from the original images."
_RENAME = {"it is compressed": ".nii.gz", "it is not compressed": ".nii"}


def _instead(path: Path) -> str:
    """What a file that is no NIfTI of its name's kind seems to be, or an empty string."""
    with path.open("rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return "it is a DICOM file"
    found = next((what for sign, what in _SIGNS.items() if start.startswith(sign)), "")
    if found == "it is compressed" and path.suffix == ".gz":
        with suppress(zlib.error):
            return "it is a FreeSurfer image (.mgz)" if _first_bytes(path).startswith(b"\x00\x00\x00\x01") else ""
    return found


def _first_bytes(path: Path) -> bytes:
    """Of the image, unpacked: enough for a header, wherever the file breaks off."""
    with path.open("rb") as file:
        start = file.read(4096)
    return zlib.decompressobj(wbits=31).decompress(start) if path.suffix == ".gz" else start


def _remedy(path: Path) -> str:
    extension = _RENAME.get(_instead(path))
    return f"Rename it to {path.name.partition('.')[0]}{extension}." if extension else AGAIN


def _pointer(path: Path) -> str:
    """What to do about a few bytes that stand for the content: git-annex' or Git LFS', or a link written as text."""
    if path.stat().st_size > POINTER_BYTES:
        return ""
    text = path.read_bytes()
    for sign, command in ((b"annex/objects/", "datalad get"), (b"git-lfs", "git lfs pull")):
        if sign in text:
            return f"{path}: holds the name of its content only. Run '{command}' on it first."
    return ""


def _set_codes(out: nib.Nifti1Image, img: nib.Nifti1Image) -> None:
    """The codes of the file are kept: the grid means what it meant there. A form that was not used has the other's."""
    sform, qform = int(img.header["sform_code"]), int(img.header["qform_code"])
    placed, _, _ = _coded(img.get_qform)
    agree = placed is not None and corner_distance(placed, out.affine, img.shape[:3]) <= GEOMETRY_TOLERANCE_MM
    out.set_sform(out.affine, sform or qform)
    out.set_qform(out.affine, qform if agree else sform or qform)


def _harmonise_affine(img: nib.Nifti1Image, path: Path) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """One orthogonal affine from sform and qform, what was done, and what to check."""
    sform, sform_code, _ = _coded(img.get_sform)
    qform, qform_code, broken = _coded(img.get_qform)
    if qform is not None and _has_no_voxel_size(img, path):
        qform, broken = None, "a voxel size of 0"
    notes = [f"the qform is invalid ({broken}): the sform was used"] if broken else []
    warnings: list[str] = []
    if sform is None and qform is None:
        codes = f"codes {sform_code} and {qform_code}{broken and '; ' + broken}"
        raise InputError(
            f"{path}: neither sform nor qform is valid ({codes}), so left and right are unknown. Convert the scan again"
            " from DICOM (dcm2niix), or set the orientation with a tool such as fslorient and check it by eye."
        )
    if sform is not None and qform is not None:
        distance = corner_distance(sform, qform, img.shape[:3])
        if distance > GEOMETRY_TOLERANCE_MM:
            notes.append(f"qform and sform differ by up to {distance:.1f} mm: the sform was used")
            if np.sign(np.linalg.det(sform[:3, :3])) != np.sign(np.linalg.det(qform[:3, :3])):
                warnings.append(
                    f"{path.name}: qform and sform disagree about left and right; the sform was used. Check the sides."
                )
            warnings += _scaled(sform, qform, path)
    elif sform is None:
        notes.append("only the qform is valid: it was used")
    affine = np.asarray(sform if sform is not None else qform, dtype=float)
    warnings += _normalised(sform_code if sform is not None else qform_code, path)
    orthogonal = _nearest_orthogonal(affine, img.shape[:3])
    shear = corner_distance(affine, orthogonal, img.shape[:3])
    if shear > GEOMETRY_TOLERANCE_MM:
        notes.append(f"sheared axes were made orthogonal (corners moved by up to {shear:.1f} mm)")
        warnings += _skewed(affine, path)
    return orthogonal, tuple(notes), tuple(warnings)


def _has_no_voxel_size(img: nib.Nifti1Image, path: Path) -> bool:
    """Whether the header holds a voxel size of 0, which nibabel gives as 1."""
    if 1 not in img.header["pixdim"][1:4]:
        return False
    with LoggingOutputSuppressor():
        raw = type(img.header)(_first_bytes(path)[: img.header.sizeof_hdr], check=False)
    return bool((raw["pixdim"][1:4] == 0).any())


def _scaled(sform: np.ndarray, qform: np.ndarray, path: Path) -> list[str]:
    """A warning where the forms differ in the size of the voxels, and so of every volume."""
    sizes = [voxel_sizes(form) for form in (sform, qform)]
    if np.abs(sizes[0] / sizes[1] - 1).max() <= SIZE_TOLERANCE:
        return []
    said = [" x ".join(f"{size:.3g}" for size in each) for each in sizes]
    return [
        f"{path.name}: voxels are {said[0]} mm by the sform, which was used, and {said[1]} mm by the qform: volumes"
        f" differ by a factor of {np.prod(sizes[0] / sizes[1]):.2f}. If the sform is scaled to a template, remove it"
        " (set its code to 0)."
    ]


def _skewed(affine: np.ndarray, path: Path) -> list[str]:
    """A warning where axes are so far from right angles that every volume is another one."""
    factor = 1 / abs(float(np.linalg.det(affine[:3, :3] / voxel_sizes(affine))))
    if factor <= 1 + SIZE_TOLERANCE:
        return []
    return [
        f"{path.name}: its axes are not at right angles, as after an affine registration; with right angles, as they"
        f" were taken, volumes are {factor:.2f} times those of the header. Give the scan as it was acquired."
    ]


def _normalised(code: int, path: Path) -> list[str]:
    """A warning where the header says that the axes are those of a template: the head may have been scaled to it."""
    if code not in TEMPLATE_CODES:
        return []
    return [
        f"{path.name}: the header says that the scan lies in {TEMPLATE_CODES[code]} space. If it was scaled to that"
        " template, and not only turned, all volumes are those of the scaled head: give the scan as it was acquired."
    ]


def _coded(getter: Callable[..., Any]) -> tuple[np.ndarray | None, int, str]:
    """The affine where its code is set and it can be inverted, else None; the code; what cannot be read in it."""
    try:
        affine, code = getter(coded=True)
    except (ValueError, np.linalg.LinAlgError) as error:  # an impossible quaternion, if by a rounding error only
        return None, 0, str(error)
    if not code or affine is None or not np.isfinite(affine).all():
        return None, int(code or 0), ""
    sizes = voxel_sizes(affine)
    singular = sizes.min() == 0 or abs(np.linalg.det(affine[:3, :3] / sizes)) < 1e-6
    return (None, int(code), "") if singular else (affine, int(code), "")


def corner_distance(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance (mm) between the image corners placed by two affines."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    difference = (first - second)[:3, :3] @ corners + (first - second)[:3, 3:]
    return float(np.linalg.norm(difference, axis=0).max())


def _nearest_orthogonal(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The affine with the closest orthogonal axes (polar decomposition), the image's centre kept."""
    zooms = voxel_sizes(affine)
    u, _, vt = np.linalg.svd(affine[:3, :3] / zooms)
    out = np.eye(4)
    out[:3, :3] = (u @ vt) * zooms
    centre = (np.asarray(shape) - 1) / 2
    out[:3, 3] = affine[:3, :3] @ centre + affine[:3, 3] - out[:3, :3] @ centre
    # Untouched where there was nothing to mend, so that no bit of the file's affine is lost.
    return affine if np.allclose(out, affine, atol=1e-4) else out


def _check_size(img: nib.Nifti1Image, path: Path) -> None:
    """Whether the file ends before its voxels do, as where a download or a copy broke off.

    Of most files the size tells, which gzip keeps at their end; only where that is another one the file is read.
    """
    needed = int(img.dataobj.offset) + int(np.prod(img.shape)) * img.get_data_dtype().itemsize  # type: ignore[attr-defined]
    if _is_cut_short(path, needed):
        raise InputError(f"{path}: the file ends before its voxels do. Copy or convert it again.")


def _is_cut_short(path: Path, needed: int) -> bool:
    if path.suffix != ".gz":
        return path.stat().st_size < needed
    with path.open("rb") as packed:
        packed.seek(-4, os.SEEK_END)
        if int.from_bytes(packed.read(), "little") == needed % 2**32:
            return False
    for opener in (igzip.open, gzip.open):  # the first is fast, and stumbles over what may follow the image
        left = needed
        with suppress(Exception), opener(path) as stream:  # those of isal derive from nothing else
            while left > 0 and (part := stream.read(min(left, 2**22))):  # in several parts, perhaps
                left -= len(part)
            return left > 0
    return True


def _check_sum(path: Path) -> None:
    """Whether what a gzip holds is what was packed: nibabel stops before the checksum at its end."""
    try:
        with igzip.open(path) as stream:
            while stream.read(2**22):
                pass
    except Exception as error:  # others have been told of, or are of what follows the image
        if "CRC" in str(error):
            raise InputError(
                f"{path}: the voxel data are damaged ({error}). Copy or convert the file again."
            ) from error


def read_voxels(img: nib.Nifti1Image, path: Path, dtype: type | None = None) -> np.ndarray:
    """All values, scaled as the header says; `InputError` where the file ends too early or is damaged."""
    try:
        return np.asarray(img.dataobj) if dtype is None else np.asarray(img.get_fdata(dtype=dtype, caching="unchanged"))
    except (OSError, EOFError, ValueError, MemoryError, zlib.error) as error:
        raise InputError(
            f"{path}: the voxel data are truncated or damaged ({error}). Copy or convert the file again."
        ) from error


def _read_volume(img: nib.Nifti1Image, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    data = read_voxels(img, path, np.float32)
    if path.suffix == ".gz":
        _check_sum(path)
    if data.ndim > 3:
        return data.reshape(data.shape[:3]), (f"a {data.ndim}D file with a single volume was taken as 3D",)
    return data, ()


def _from_zero(data: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Values as magnitudes, air at 0, and a note: every later step takes them for such.

    A scan that was z-scored, or has an offset below zero, is moved up; a background that was set to 0 stays there.
    Small values below zero, which interpolation leaves at edges, are none of these.
    """
    if data.min() >= 0:  # as nearly all are
        return data, ()
    shown = data != 0
    if shown.mean() >= 1 - BLANK_SHARE:
        shown[:] = True
    low, high = np.percentile(data[shown], (0.5, 99))
    if low >= -BELOW_ZERO * (high - low):
        return data, ()
    moved = np.where(shown, np.maximum(data - low, 0), 0).astype(np.float32)
    return moved, (f"values begin at {low:.4g}: this was taken from all, so that the darkest are 0",)


def _tilted(affine: np.ndarray) -> tuple[str, ...]:
    """A warning where the axes of the grid are far from the body's."""
    nearest = np.abs(affine[:3, :3] / voxel_sizes(affine)).max(axis=0).min()
    degrees = float(np.degrees(np.arccos(min(1.0, nearest))))
    if degrees <= TILT_DEGREES:
        return ()
    return (
        f"the grid lies tilted by {degrees:.0f} degrees to the axes of the scanner: in such scans brain masks took in"
        " parts of the face, and lesions were found that are none; look at the pictures",
    )


def _check_axes(shape: tuple[int, ...], path: Path) -> None:
    if any(size != 1 for size in shape[3:]):
        raise InputError(
            f"{path}: {int(np.prod(shape[3:]))} volumes in one file (shape {shape}). A structural scan has one: average"
            " or select a volume (e.g. with nilearn.image.index_img), or choose another run with --bids-filter-file."
        )
    if len(shape) < 3 or min(shape[:3]) < MINIMUM_AXIS:
        raise InputError(
            f"{path}: shape {tuple(shape)} is no whole-brain scan (fewer than {MINIMUM_AXIS} slices)."
            " Exclude it with --bids-filter-file."
        )


def _check_voxel_size(affine: np.ndarray, path: Path) -> None:
    zooms = voxel_sizes(affine)
    low, high = VOXEL_SIZE_RANGE_MM
    if zooms.min() < low or zooms.max() > high:
        raise InputError(
            f"{path}: voxel size {tuple(float(z) for z in np.round(zooms, 4))} mm is not plausible for a head scan"
            f" ({low}-{high} mm). Check the header's units."
        )


def _check_values(data: np.ndarray, path: Path) -> None:
    bad = int(np.size(data) - np.isfinite(data).sum())
    if bad:
        raise InputError(
            f"{path}: {count_of(bad, 'voxel')} with NaN or infinite values. Replace them (e.g. with numpy.nan_to_num)"
            " or export again."
        )
    if data.max() == data.min():
        raise InputError(f"{path}: every voxel has the value {data.max():g}; there is no image in it. Export it again.")

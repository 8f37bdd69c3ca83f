"""Odd and broken files: each case is a row of docs/odd-inputs.md."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bidsapp.errors import InputError
from bidsapp.image.load import load_scan, read_geometry, read_grid

SHAPE = (12, 13, 14)
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 0, 3, -20], [0, -1, 0, 5], [0, 0, 0, 1]])  # LIA, unequal voxels
DOCS = Path(__file__).resolve().parents[2] / "docs" / "odd-inputs.md"


def voxels() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)


def image(
    data: np.ndarray | None = None, affine: np.ndarray = AFFINE, *, sform: int = 1, qform: int = 1
) -> nib.Nifti1Image:
    img = nib.Nifti1Image(voxels() if data is None else data, affine)
    img.set_sform(affine, sform)
    img.set_qform(affine, qform)
    return img


def saved(img: nib.Nifti1Image) -> Callable[[Path], None]:
    return lambda path: nib.save(img, path)


def with_voxel(value: float) -> nib.Nifti1Image:
    data = voxels()
    data[3, 4, 5] = value
    return image(data)


def truncated(path: Path) -> None:
    nib.save(image(), path)
    path.write_bytes(path.read_bytes()[:-2000])


def truncated_uncompressed(path: Path) -> None:
    path.write_bytes(gzip.compress(image().to_bytes()[:-500]))


def dangling(path: Path) -> None:
    path.symlink_to("../.git/annex/objects/not-there")


def nan_affine(path: Path) -> None:
    img = image(qform=0)
    img.header["srow_x"] = np.nan
    path.write_bytes(gzip.compress(nib.Nifti1Image(voxels(), None, img.header).to_bytes()))


def unknown_datatype(path: Path) -> None:
    header = bytearray(image().to_bytes())
    header[70:72] = np.int16(999).tobytes()
    path.write_bytes(gzip.compress(bytes(header)))


def bit_flipped(path: Path) -> None:
    """A byte that changed in a copy, where nothing but the checksum of the gzip can tell."""
    whole = bytearray(gzip.compress(image().to_bytes(), 0))
    whole[-100] ^= 1
    path.write_bytes(whole)


def offset_zero(path: Path) -> None:
    header = bytearray(image().to_bytes())
    header[108:112] = np.float32(0).tobytes()
    path.write_bytes(gzip.compress(bytes(header)))


def no_voxel_size(path: Path, *, sform: int = 0) -> None:
    header = bytearray(image().to_bytes())
    header[80:92] = np.zeros(3, np.float32).tobytes()
    header[254:256] = np.int16(sform).tobytes()
    path.write_bytes(gzip.compress(bytes(header)))


def freesurfer(path: Path) -> None:
    path.write_bytes(gzip.compress(nib.MGHImage(voxels(), AFFINE).to_bytes()))


def rgb() -> nib.Nifti1Image:
    data = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    return image(data)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing-file": (lambda path: None, "no such file"),
    "annex-content-missing": (dangling, "datalad get"),
    "annex-pointer": (lambda path: path.write_text("/annex/objects/MD5E-s9--d1.nii.gz\n"), "datalad get"),
    "lfs-pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "empty-file": (lambda path: path.touch(), "0 bytes"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "not-nifti": (lambda path: path.write_bytes(b"this is no image" * 50), "not a readable NIfTI"),
    "unknown-datatype": (unknown_datatype, "not a readable NIfTI"),
    "not-compressed": (lambda path: path.write_bytes(image().to_bytes()), "Rename it to sub-01_T1w.nii."),
    "freesurfer": (freesurfer, "it is a FreeSurfer image"),
    "web-page": (lambda path: path.write_bytes(b"<!DOCTYPE html>" * 99), "it is a web page"),
    "dicom": (lambda path: path.write_bytes(bytes(128) + b"DICM" + bytes(1000)), "it is a DICOM file"),
    "no-offset": (offset_zero, "begin within the header"),
    "no-voxel-size": (no_voxel_size, "a voxel size of 0"),
    "bit-flipped": (bit_flipped, "CRC"),
    "gzip-of-text": (lambda path: path.write_bytes(gzip.compress(b"no image" * 100)), "not a readable NIfTI"),
    "truncated-gzip": (truncated, "truncated or damaged"),
    "truncated-voxels": (truncated_uncompressed, "truncated or damaged"),
    "nan-voxels": (saved(with_voxel(np.nan)), "1 voxel with NaN or infinite values"),
    "infinite-voxels": (saved(with_voxel(np.inf)), "1 voxel with NaN or infinite values"),
    "constant": (saved(image(np.full(SHAPE, 7, np.int16))), "every voxel has the value 7"),
    "several-volumes": (saved(image(np.stack([voxels()] * 3, axis=-1))), "3 volumes"),
    "no-codes": (saved(image(sform=0, qform=0)), "left and right are unknown"),
    "qform-invalid-alone": (lambda path: quaternion_too_long(path, sform=0), "not a readable NIfTI"),
    "singular-affine": (nan_affine, "neither sform nor qform is valid"),
    "single-slice": (saved(image(voxels()[:, :, :1])), "fewer than 10 slices"),
    "two-dimensional": (saved(image(voxels()[:, :, 0])), "fewer than 10 slices"),
    "micrometres": (saved(image(affine=np.diag([900.0, 900, 900, 1]))), "not plausible"),
    "metres": (saved(image(affine=AFFINE * [[0.001], [0.001], [0.001], [1]])), "not plausible"),
    "rgb": (saved(rgb()), "not single numbers"),
    "complex": (saved(image(voxels().astype(np.complex64))), "not single numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_broken_file_is_refused_by_name(case: str, tmp_path: Path) -> None:
    make, fragment = REFUSED[case]
    path = tmp_path / "sub-01_T1w.nii.gz"
    make(path)
    with pytest.raises(InputError) as caught:
        load_scan(path)
    assert str(path) in str(caught.value)
    assert fragment in str(caught.value)


def tilted(degrees: float) -> np.ndarray:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("x", degrees, degrees=True).as_matrix()
    return turn @ AFFINE


def sheared() -> np.ndarray:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 1] = 0.1
    return affine


def mirrored(path: Path) -> None:
    img = image()
    img.set_qform(AFFINE @ np.diag([-1.0, 1, 1, 1]), 1)
    nib.save(img, path)


def shifted(path: Path) -> None:
    img = image()
    moved = AFFINE.copy()
    moved[0, 3] += 4
    img.set_qform(moved, 1)
    nib.save(img, path)


def quaternion_too_long(path: Path, *, sform: int = 1) -> None:
    """The quaternion of the qform is longer than 1 by a rounding error."""
    img = image()
    for axis in "bcd":
        img.header[f"quatern_{axis}"] = np.float32(1 / np.sqrt(3) + 1e-5)
    header = bytearray(img.to_bytes())
    header[254:256] = np.int16(sform).tobytes()  # nibabel itself saves no image whose qform alone is invalid
    path.write_bytes(gzip.compress(bytes(header)))


def talairach(path: Path) -> None:
    img = image()
    img.set_sform(AFFINE @ np.diag([1.12, 1.2, 1.3, 1.0]), 3)
    nib.save(img, path)


def scaled_integers(path: Path) -> None:
    img = image((voxels() * 10).astype(np.int16))
    img.header.set_slope_inter(0.1, 5)
    nib.save(img, path)


def followed(path: Path) -> None:
    path.write_bytes(gzip.compress(image().to_bytes()) + b"more" * 50)


def skewed() -> np.ndarray:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 1] = 0.5
    return affine


USED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "one-volume-4d": (saved(image(voxels()[..., None])), "single volume", ""),
    "one-volume-5d": (saved(image(voxels()[..., None, None])), "single volume", ""),
    "qform-only": (saved(image(sform=0)), "only the qform", ""),
    "sform-only": (saved(image(qform=0)), "", ""),
    "forms-differ": (shifted, "differ by up to 4.0 mm", ""),
    "forms-mirrored": (mirrored, "qform and sform differ", "disagree about left and right"),
    "qform-invalid": (quaternion_too_long, "the qform is invalid", ""),
    "sform-scaled": (talairach, "qform and sform differ", "by a factor of 1.75"),
    "normalised": (saved(image(sform=4)), "", "lies in MNI152 space"),
    "sheared": (saved(image(affine=sheared(), qform=0)), "made orthogonal", ""),
    "skewed": (saved(image(affine=skewed(), qform=0)), "made orthogonal", "volumes are 1.12 times"),
    "qform-without-size": (lambda path: no_voxel_size(path, sform=1), "the qform is invalid (a voxel size of 0)", ""),
    "followed": (followed, "", ""),
    "scaled-integers": (scaled_integers, "", ""),
    "big-endian": (saved(nib.Nifti1Image(voxels().astype(">f4"), AFFINE)), "", ""),
    "unsigned-16": (saved(image((voxels() * 300).astype(np.uint16))), "", ""),
    "negative-values": (saved(image(voxels() - 500)), "was taken from all", ""),
    "tilted": (saved(image(affine=tilted(40))), "", "tilted by 40 degrees"),
    "nifti-2": (saved(nib.Nifti2Image(voxels(), AFFINE)), "", ""),
}


@pytest.mark.parametrize("case", USED)
def test_odd_file_is_used_and_noted(case: str, tmp_path: Path) -> None:
    make, note, warning = USED[case]
    path = tmp_path / "sub-01_T1w.nii.gz"
    make(path)
    scan = load_scan(path)
    assert scan.image.shape == SHAPE
    assert scan.image.get_data_dtype() == np.float32
    np.testing.assert_allclose(scan.image.get_sform(), scan.image.get_qform(), atol=1e-3)
    grid = read_grid(path)
    assert grid.shape == SHAPE and grid.get_sform(coded=True)[1] == scan.image.get_sform(coded=True)[1]
    np.testing.assert_array_equal(grid.affine, scan.image.affine)
    affine, shape = read_geometry(path)
    assert shape == SHAPE and np.allclose(affine, scan.image.affine, rtol=1e-6)  # the image has float32
    assert note in " ".join(scan.notes)
    assert bool(scan.notes) == bool(note)
    assert warning in " ".join(scan.warnings)
    assert bool(scan.warnings) == bool(warning)


def test_scale_factor_is_applied(tmp_path: Path) -> None:
    scaled_integers(tmp_path / "a.nii.gz")
    expected = nib.load(tmp_path / "a.nii.gz").get_fdata()
    np.testing.assert_allclose(load_scan(tmp_path / "a.nii.gz").image.get_fdata(), expected, rtol=1e-5)


def test_sform_wins_and_is_kept_exactly(tmp_path: Path) -> None:
    shifted(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(load_scan(tmp_path / "a.nii.gz").image.affine, AFFINE)


def test_shear_is_removed_about_the_centre(tmp_path: Path) -> None:
    nib.save(image(affine=sheared(), qform=0), tmp_path / "a.nii.gz")
    affine = load_scan(tmp_path / "a.nii.gz").image.affine
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    centre = [*(np.array(SHAPE) - 1) / 2, 1]
    np.testing.assert_allclose(affine @ centre, sheared() @ centre, atol=1e-6)


def test_header_check_finds_what_needs_no_voxels(tmp_path: Path) -> None:
    REFUSED["several-volumes"][0](tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="3 volumes"):
        read_grid(tmp_path / "a.nii.gz")
    nib.save(with_voxel(np.nan), tmp_path / "b.nii.gz")
    read_grid(tmp_path / "b.nii.gz")  # voxels are not read


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_header_check_finds_files_that_end_too_early(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    nib.save(image(), path)
    whole = path.read_bytes()
    read_grid(path)
    if path.suffix == ".gz":  # as some programs write it: several gzips after each other
        plain = gzip.decompress(whole)
        path.write_bytes(gzip.compress(plain[:5000]) + gzip.compress(plain[5000:]))
        read_grid(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"{name}: the file ends before"):
        read_grid(path)


def test_a_compressed_file_named_nii_is_told_its_name(tmp_path: Path) -> None:
    path = tmp_path / "sub-01_T1w.nii"
    path.write_bytes(gzip.compress(image().to_bytes()))
    with pytest.raises(InputError, match=r"it is compressed\). Rename it to sub-01_T1w.nii.gz."):
        load_scan(path)


def test_every_case_is_documented() -> None:
    text = DOCS.read_text()
    assert [case for case in (*REFUSED, *USED) if f"| {case} |" not in text] == []


@pytest.mark.parametrize(
    ("sform", "qform", "moved_mm", "kept"),
    [(1, 2, 0, (1, 2)), (2, 1, 0, (2, 1)), (1, 0, 0, (1, 1)), (0, 2, 0, (2, 2)), (1, 2, 4, (1, 1))],
)
def test_codes_are_the_files_own_unless_the_form_was_not_used(
    sform: int, qform: int, moved_mm: float, kept: tuple[int, int], tmp_path: Path
) -> None:
    img = image(sform=sform, qform=qform)
    moved = AFFINE.copy()
    moved[0, 3] += moved_mm
    img.set_qform(moved, qform)
    nib.save(img, tmp_path / "sub-01_T1w.nii.gz")
    for found in (load_scan(tmp_path / "sub-01_T1w.nii.gz").image, read_grid(tmp_path / "sub-01_T1w.nii.gz")):
        assert (int(found.header["sform_code"]), int(found.header["qform_code"])) == kept


@pytest.mark.parametrize("air", [0.0, None])
def test_a_z_scored_scan_begins_at_zero_and_keeps_its_air(air: float | None, tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    outside = np.zeros(SHAPE, bool)
    outside[:3] = True
    data[outside] = data.min() if air is None else air
    nib.save(image(data), tmp_path / "a.nii.gz")
    found = np.asarray(load_scan(tmp_path / "a.nii.gz").image.dataobj)
    assert (found[outside] == 0).all() and (found >= 0).all()
    inside = ~outside & (found > 0)
    assert inside.sum() > 0.95 * (~outside).sum() and np.corrcoef(found[inside], data[inside])[0, 1] > 0.999


def test_a_voxel_at_the_mean_of_a_z_scored_scan_is_no_background(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    data[3, 4, 5] = 0
    nib.save(image(data), tmp_path / "a.nii.gz")
    found = np.asarray(load_scan(tmp_path / "a.nii.gz").image.dataobj)
    assert found[3, 4, 5] == pytest.approx(-np.percentile(data, 0.5))


def test_what_interpolation_leaves_below_zero_means_nothing(tmp_path: Path) -> None:
    data = voxels().copy()
    data[0, 0, :2] = -0.01 * data.max()
    nib.save(image(data), tmp_path / "a.nii.gz")
    assert np.array_equal(np.asarray(load_scan(tmp_path / "a.nii.gz").image.dataobj), data)

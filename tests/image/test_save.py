from __future__ import annotations

import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.image.save import as_int16, as_probability, write_image


def noise(rng_seed: int = 0) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.random.default_rng(rng_seed).random((7, 8, 9), dtype=np.float32), np.diag([1, 2, 3, 1]))


def test_same_image_same_bytes_and_nothing_else_left(tmp_path: Path) -> None:
    write_image(noise(), tmp_path / "a" / "x.nii.gz")
    time.sleep(1.1)  # a gzip time stamp has seconds
    write_image(noise(), tmp_path / "b" / "y.nii.gz")
    write_image(noise(1), tmp_path / "b" / "z.nii.gz")
    first, second, other = ((tmp_path / name).read_bytes() for name in ("a/x.nii.gz", "b/y.nii.gz", "b/z.nii.gz"))
    assert first == second
    assert first != other
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["x.nii.gz", "y.nii.gz", "z.nii.gz"]


def test_probabilities_come_back_as_rounded(tmp_path: Path) -> None:
    write_image(as_probability(noise()), tmp_path / "p.nii.gz")
    back = nib.load(tmp_path / "p.nii.gz")
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.round(noise().get_fdata(dtype=np.float32), 3))
    assert back.get_data_dtype() == np.float32


def test_scaled_integers_are_close(tmp_path: Path) -> None:
    image = nib.Nifti1Image((noise().get_fdata() * 8 - 4).astype(np.float32), np.eye(4))
    write_image(as_int16(image), tmp_path / "i.nii.gz")
    back = nib.load(tmp_path / "i.nii.gz")
    assert back.get_data_dtype() == np.int16
    np.testing.assert_allclose(back.get_fdata(), image.get_fdata(), atol=8 / 65000)


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.nii.gz"
    write_image(noise(), target)
    before = target.read_bytes()
    monkeypatch.setattr(nib.Nifti1Image, "to_bytes", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_image(noise(1), target)
    assert target.read_bytes() == before

"""The node of a lesion model that somebody trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.cards import read_lesion_model
from bidsapp.interfaces.segment import SegmentByModel


@pytest.fixture
def scans(tmp_path: Path, rng: np.random.Generator) -> dict[str, Path]:
    """A brain of noise with a bright lesion of 4x4x4 voxels, and a bright voxel that is too short to be one."""
    mask = np.zeros((30, 34, 38), np.uint8)
    mask[3:-3, 3:-3, 3:-3] = 1
    flair = rng.normal(0, 0.2, mask.shape).astype(np.float32)
    flair[10:14, 12:16, 14:18] = flair[20, 20, 20] = 8
    paths = {}
    for name, data in (("mask", mask), ("FLAIR", flair * mask), ("T1w", -flair * mask)):
        paths[name] = tmp_path / f"{name}.nii"
        nib.Nifti1Image(data, np.eye(4)).to_filename(paths[name])
    return paths


@pytest.mark.parametrize("cascade", [False, True])
def test_lesions_are_the_models(
    tmp_path: Path, scans: dict[str, Path], write_lesion_model: Callable[..., Path], cascade: bool
) -> None:
    folder = write_lesion_model(tmp_path / "model", first=cascade)
    work = tmp_path / "node"
    work.mkdir()
    found = SegmentByModel(
        in_files=[str(scans["T1w"]), str(scans["FLAIR"])], contrasts=["T1w", "FLAIR"], mask_file=str(scans["mask"]),
        model_dir=str(folder), model_label=read_lesion_model(folder).label,
    ).run(cwd=str(work)).outputs  # fmt: skip
    mask = np.asarray(nib.load(found.lesion_mask).dataobj) > 0
    assert mask.sum() == 64 and mask[10:14, 12:16, 14:18].all()
    probability = np.asarray(nib.load(found.lesion_probability).dataobj)
    assert probability[20, 20, 20] > 0.9 and probability[5:9, 5:9, 5:9].max() < 0.1 and probability[0].max() == 0
    assert found.note == ""


def test_a_model_replaced_during_the_run_is_noticed(
    tmp_path: Path, scans: dict[str, Path], write_lesion_model: Callable[..., Path]
) -> None:
    folder = write_lesion_model(tmp_path / "model")
    label = read_lesion_model(folder).label
    write_lesion_model(folder, above=1.0)
    node = SegmentByModel(
        in_files=[str(scans["FLAIR"])], contrasts=["FLAIR"], mask_file=str(scans["mask"]), model_dir=str(folder),
        model_label=label,
    )  # fmt: skip
    with pytest.raises(Exception, match="replaced during the run"):
        node.run(cwd=str(tmp_path))

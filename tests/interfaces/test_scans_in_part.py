"""Nodes that are given scans of a part of the brain."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nipype.interfaces.base import isdefined

from bidsapp.image.grid import on_grid
from bidsapp.image.itk import write_itk_affine
from bidsapp.interfaces import segment
from bidsapp.interfaces.files import save
from bidsapp.interfaces.preproc import CorrectBias, Normalize


@pytest.fixture
def head(rng: np.random.Generator) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """A brain of 26 slices, and its mask."""
    data = np.zeros((30, 32, 34), np.float32)
    data[4:-4, 4:-4, 4:-4] = rng.uniform(50, 150, (22, 24, 26))
    reference = nib.Nifti1Image(data, np.eye(4))
    return reference, on_grid((data > 0).astype(np.uint8), reference)


@pytest.mark.parametrize(("slices", "told"), [(30, ""), (20, "shows 61 % of the brain"), (2, "shows 0 % of the brain")])
def test_a_scan_is_corrected_and_normalised_whatever_it_shows(
    tmp_path: Path, head: tuple[nib.Nifti1Image, nib.Nifti1Image], slices: int, told: str
) -> None:
    reference, mask = head
    shown = np.arange(34) < slices
    work = save(on_grid(np.where(shown, reference.get_fdata(dtype=np.float32), 0), reference), str(tmp_path), "work")
    own = save(reference.slicer[:, :, :slices], str(tmp_path), "own")
    write_itk_affine(np.eye(4), tmp_path / "transform.txt")
    mask_file = save(mask, str(tmp_path), "mask")
    bias = CorrectBias(in_file=work, mask_file=mask_file).run(cwd=str(tmp_path)).outputs
    found = Normalize(
        work_file=bias.out_file, mask_file=mask_file, field_file=bias.field_file, native_file=own, own_work_file=own,
        reference_file=save(reference, str(tmp_path), "reference"), transform_file=str(tmp_path / "transform.txt"),
        contrast="T2w", method="zscore",
    ).run(cwd=str(tmp_path)).outputs  # fmt: skip
    assert [told in warning for warning in found.warnings] == [True] * bool(told)
    data = np.asarray(nib.load(found.work_out).dataobj)
    np.testing.assert_array_equal(np.isnan(data), np.broadcast_to(~shown, data.shape) & bool(told))
    assert np.isfinite(np.asarray(nib.load(found.native_out).dataobj)).all()


@pytest.mark.parametrize(("slices", "used"), [(26, True), (14, True), (12, False)])
def test_a_contrast_that_shows_less_than_half_of_the_brain_is_not_used(
    tmp_path: Path, head: tuple[nib.Nifti1Image, nib.Nifti1Image], slices: int, used: bool
) -> None:
    reference, mask = head
    flair = np.where(np.arange(34) < 4 + slices, reference.get_fdata(dtype=np.float32), np.nan)
    nothing = str(tmp_path / "not read.nii")
    Path(nothing).touch()
    node = segment.SegmentLesions(
        in_files=[save(reference, str(tmp_path), "T1w"), save(on_grid(flair, reference), str(tmp_path), "FLAIR")],
        contrasts=["T1w", "FLAIR"], mask_file=save(mask, str(tmp_path), "mask"), priors_file=nothing,
        result_file=nothing,
    )  # fmt: skip
    assert list(segment._scans(node.inputs)) == (["T1w", "FLAIR"] if used else ["T1w"])
    if not used:  # no opinion, which is not "no lesions"
        found = node.run(cwd=str(tmp_path)).outputs
        assert not isdefined(found.mask_file) and not isdefined(found.probability_file)
        assert "less than half" in found.reason  # for the record, and the page

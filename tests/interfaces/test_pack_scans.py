"""The node that makes scans and transforms ready to be written, before any model is."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.image.itk import displacement_field, displacements
from bidsapp.image.template import load_template
from bidsapp.interfaces.files import save
from bidsapp.interfaces.outputs import PackScans


@pytest.mark.parametrize("in_template", [True, False])
def test_scans_and_fields_are_what_they_were_and_compressed(in_template: bool, tmp_path: Path) -> None:
    """A scan 3 mm to the left of where the template has it: the field fetches it from there."""
    template = load_template(1).t1
    scan = nib.Nifti1Image(template.get_fdata(dtype=np.float32), template.affine.copy())
    scan.affine[0, 3] -= 3
    coarse = template.affine @ np.diag([10, 10, 10, 1])
    there, back = (displacement_field(np.tile([x, 0.0, 0.0], (20, 24, 19, 1)), coarse) for x in (-3.0, 3.0))
    folder = str(tmp_path)
    node = PackScans(
        preprocessed=[save(scan, folder, "T1w")],
        to_template=save(there, folder, "there"),
        to_subject=save(back, folder, "back"),
        in_template=in_template,
    )
    outputs = node.run(cwd=folder).outputs
    for path, field in ((outputs.to_template, there), (outputs.to_subject, back)):
        assert path.endswith(".nii.gz")
        np.testing.assert_array_equal(displacements(nib.load(path)), displacements(field))
    (packed,) = outputs.preprocessed
    assert nib.load(packed).get_data_dtype() == np.int16
    whole = float(np.asarray(scan.dataobj).max())
    np.testing.assert_allclose(nib.load(packed).get_fdata(), scan.get_fdata(), atol=whole / 2**15)
    assert [Path(path).name for path in outputs.results] == ["mni_preproc.nii.gz"] * in_template
    for path in outputs.results:
        inner = nib.load(path).get_fdata()[5:-5]
        np.testing.assert_allclose(inner, template.get_fdata()[5:-5], atol=whole / 2**14)


def test_beyond_its_field_of_view_a_scan_is_as_dark_as_air(tmp_path: Path) -> None:
    """z-scores: 0 is as bright as brain. The scan ends 40 mm above the lower end of the template's grid."""
    template = load_template(1).t1
    scores = (template.get_fdata(dtype=np.float32) - 50) / 20
    scan = nib.Nifti1Image(scores, template.affine).slicer[:, :, 40:]
    unmoved = displacement_field(np.zeros((20, 24, 19, 3)), template.affine @ np.diag([10, 10, 10, 1]))
    folder = str(tmp_path)
    field = save(unmoved, folder, "field")
    scans = [save(scan, folder, "T1w")]
    node = PackScans(preprocessed=scans, to_template=field, to_subject=field, in_template=True)
    (path,) = node.run(cwd=folder).outputs.results
    carried = nib.load(path).get_fdata()
    step = np.ptp(scores) / 2**15
    np.testing.assert_allclose(carried[..., :39], scores.min(), atol=step)
    np.testing.assert_allclose(carried[..., 41:], scores[..., 41:], atol=step)

"""The node that brings the template's priors to a scan."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from bidsapp.image import register
from bidsapp.image.itk import displacement_field
from bidsapp.image.template import load_template
from bidsapp.interfaces.files import array, save
from bidsapp.interfaces.preproc import PRIORS_MARGIN, RegisterTemplate


def test_priors_are_carried_to_the_brain_and_its_margin(tmp_path, monkeypatch):
    """A scan on the template's own grid, seen through a field that moves nothing: the priors themselves."""
    template = load_template(1)
    mask = np.zeros(template.mask.shape, np.uint8)
    mask[80:120, 90:130, 70:110] = 1
    still = displacement_field(np.zeros((20, 24, 19, 3)), template.t1.affine @ np.diag([10, 10, 10, 1]))
    found = register.TemplateRegistration(np.eye(4), still, still, 0.9)
    monkeypatch.setattr(register, "register_template", lambda img, mask, *, contrast: found)
    node = RegisterTemplate(
        in_file=save(template.t1, str(tmp_path), "t1"),
        mask_file=save(nib.Nifti1Image(mask, template.t1.affine), str(tmp_path), "mask"),
        contrast="T1w",
    )
    outputs = node.run(cwd=str(tmp_path)).outputs
    expected = np.moveaxis(np.asarray(template.priors.dataobj), -1, 0)
    near = tuple(slice(start - PRIORS_MARGIN, start + 40 + PRIORS_MARGIN) for start in (80, 90, 70))
    priors = array(outputs.priors_file)
    np.testing.assert_allclose(priors[:, *near], expected[:, *near], atol=1e-5)
    priors[:, *near] = 0
    assert not priors.any() and expected[:, 80, 60, 80].any()
    assert outputs.similarity == 0.9

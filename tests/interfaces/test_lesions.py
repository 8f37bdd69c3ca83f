"""Lesions are located by the structures where these can tell, else by the tissue and the template's zones."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bidsapp.image.itk import displacement_field
from bidsapp.interfaces.lesions import _anatomy

SHAPE = (40, 44, 36)


@pytest.mark.parametrize(("labels", "source"), [((2, 3, 4), "structures"), ((2, 3), "tissue"), ((7, 8, 16), "tissue")])
def test_a_scan_without_ventricles_or_cortex_is_located_by_tissue(labels: tuple[int, ...], source: str) -> None:
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = -80, -110, -70
    structures = np.random.default_rng(0).choice(labels, SHAPE).astype(np.int16)
    image = nib.Nifti1Image(structures, affine)
    still = displacement_field(np.zeros((*SHAPE, 3)), affine)
    posteriors = np.stack([structures == labels[1], structures != labels[1], np.zeros(SHAPE)]).astype(np.float32)
    found = _anatomy(structures, image, still, posteriors, posteriors, [4.0, 4, 4])
    assert found.source == source
    assert found.cortex.any()

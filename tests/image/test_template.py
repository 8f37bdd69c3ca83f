from __future__ import annotations

import numpy as np
import pytest

from bidsapp.image.template import CLASS_MEANS, load_template, render_template


@pytest.mark.parametrize(("size", "shape"), [(1, (197, 233, 189)), (2, (99, 117, 95))])
def test_priors_sum_to_one_inside_the_mask_and_to_nothing_outside(size, shape):
    template = load_template(size)
    assert template.t1.shape == template.mask.shape == shape
    assert template.priors.shape == (*shape, 3)
    total = template.priors.get_fdata().sum(axis=-1)
    inside = np.asarray(template.mask.dataobj) > 0
    np.testing.assert_allclose(total[inside], 1, atol=1e-5)
    assert not total[~inside].any()


def test_tissues_lie_where_anatomy_has_them():
    template = load_template()
    to_voxel = np.linalg.inv(template.t1.affine)

    def prior(x, y, z):
        i, j, k = np.round(to_voxel[:3, :3] @ [x, y, z] + to_voxel[:3, 3]).astype(int)
        return np.asarray(template.priors.dataobj)[i, j, k]

    assert prior(26, 6, 0)[0] > 0.5  # putamen: GM
    assert prior(26, -22, 28)[1] > 0.9  # corona radiata: WM
    assert prior(4, 10, 12)[2] > 0.5 or prior(6, 12, 12)[2] > 0.5  # lateral ventricle: CSF


def test_coarse_template_covers_the_same_place_and_volume():
    fine, coarse = load_template(1), load_template(2)
    volume = np.count_nonzero(fine.mask.dataobj)
    assert abs(8 * np.count_nonzero(coarse.mask.dataobj) / volume - 1) < 0.01
    # The centre of the first 2 mm voxel is the middle of the first two 1 mm voxels.
    np.testing.assert_allclose(coarse.t1.affine[:3, 3], fine.t1.affine[:3, 3] + 0.5)


def test_rendered_contrasts_order_the_tissues():
    priors = load_template(2).priors.get_fdata()
    for contrast in ("T2w", "FLAIR"):
        image = render_template(contrast, resolution_mm=2).get_fdata()
        pure = [image[priors[..., i] > 0.99].mean() for i in range(3)]
        np.testing.assert_allclose(pure, CLASS_MEANS[contrast], atol=0.02)
    assert render_template("T1w", resolution_mm=2) is load_template(2).t1


def test_unknown_contrast_and_size_are_refused():
    with pytest.raises(ValueError, match="T1w, T2w, FLAIR"):
        render_template("PDw")
    with pytest.raises(ValueError, match="1 to 8"):
        load_template(0)

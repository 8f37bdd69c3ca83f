"""Cortical regions and lobes of the template, and of a cortex made by hand."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from bidsapp.image.cortex import cortical_regions, nearest, template_lobes, template_regions
from bidsapp.image.itk import displacement_field
from bidsapp.image.template import load_template
from bidsapp.labels import CORTICAL_LOOKUP, CORTICAL_REGIONS, LOBES

NAMES = {region.index: region.name for region in CORTICAL_REGIONS}


def at(img: nib.Nifti1Image, point: tuple[float, float, float]) -> int:
    place = np.round(apply_affine(np.linalg.inv(img.affine), point)).astype(int)
    return int(np.asarray(img.dataobj)[tuple(place)])


@pytest.mark.parametrize(
    ("point", "name"),
    [  # MNI mm, right side, in the middle of what anatomy books show
        ((38, -22, 58), "precentral"), ((44, -28, 52), "postcentral"), ((10, -84, 4), "pericalcarine"),
        ((38, 4, 0), "insula"), ((60, -14, -2), "superior temporal"), ((6, -62, 40), "precuneus"),
        ((24, -62, 60), "superior parietal"), ((6, 34, 44), "superior frontal"),
        ((40, 36, 24), "rostral middle frontal"), ((54, -40, 34), "supramarginal"),
        ((26, -26, -20), "parahippocampal"), ((40, -50, -20), "fusiform"),
        ((52, 16, 12), "pars opercularis"), ((6, 38, 2), "rostral anterior cingulate"),
    ],
)  # fmt: skip
def test_regions_lie_where_the_books_have_them(point, name):
    regions = template_regions()
    assert NAMES[at(regions, point)] == name
    assert at(regions, (-point[0], *point[1:])) == at(regions, point)


def test_every_region_is_there_and_the_brain_is_covered():
    regions, template = template_regions(), load_template(1)
    data = np.asarray(regions.dataobj)
    assert data.shape == template.t1.shape and np.allclose(regions.affine, template.t1.affine)
    assert set(np.unique(data)) == {0, *NAMES}
    assert data[np.asarray(template.mask.dataobj) > 0].all()
    assert np.array_equal(data, data[::-1])


@pytest.mark.parametrize(
    ("point", "lobe"),
    [
        ((19, -10, 32), "frontal"),  # corona radiata: nearest to the cingulate gyrus, which does not count here
        ((26, -58, 12), "parietal"), ((-24, 30, 12), "frontal"), ((-40, -28, -14), "temporal"),
        ((16, -88, 6), "occipital"), ((38, 0, 0), "insular"),
        ((30, 0, 0), "frontal"), ((4, 30, 22), "frontal"), ((4, -36, 34), "parietal"),
    ],
)  # fmt: skip
def test_lobes_of_the_white_matter(point, lobe):
    assert LOBES[at(template_lobes(), point) - 1] == lobe


def test_a_cortex_by_hand():
    """The structures say what is cortex and on which side, the atlas says which region."""
    grid = load_template(1).t1
    structures = np.zeros(grid.shape, np.uint8)
    inside = np.linalg.inv(grid.affine)

    def put(point, label):
        i, j, k = np.round(apply_affine(inside, point)).astype(int)
        structures[i, j, k] = label
        return i, j, k

    motor = put((38, -22, 58), 42)
    across = put((3, -62, 40), 3)  # left cortex beyond the template's midplane stays left
    thalamus, lesion = put((10, -18, 8), 49), put((38, -22, 62), 77)
    outside = (0, 0, 0)
    structures[outside] = 3
    labels = cortical_regions(nib.Nifti1Image(structures, grid.affine))
    data = np.asarray(labels.dataobj)
    assert data.dtype == np.int16
    assert (data[motor], data[across], data[thalamus], data[lesion]) == (2024, 1025, 49, 77)
    assert data[outside] == 3, "beyond the atlas cortex stays cortex"
    assert np.count_nonzero(data) == 5
    assert set(np.unique(data)) <= {label.index for label in CORTICAL_LOOKUP}


def test_a_head_elsewhere_is_carried_to_the_template():
    """The subject is the template moved by a known way: the field undoes it, on voxels of another size and order."""
    move = np.array([12.0, -7.0, 5.0])
    affine = np.array([[0, -2.0, 0, 90], [0, 0, 3.0, -100], [1.5, 0, 0, -60], [0, 0, 0, 1]])
    field = displacement_field(np.tile(-move, (4, 4, 4, 1)), np.diag([100.0, 100, 100, 1]))
    structures = np.zeros((100, 90, 70), np.uint8)
    motor = tuple(np.round(apply_affine(np.linalg.inv(affine), np.array([38, -22, 58]) + move)).astype(int))
    structures[motor] = 42
    labels = cortical_regions(nib.Nifti1Image(structures, affine), field)
    assert np.asarray(labels.dataobj)[motor] == 2024


def test_the_nearest_voxel_of_an_atlas_tells_and_beyond_it_none():
    """Voxels of 0.6 mm at 0, 0.6, ... 3.6 mm; the atlas of 1 mm ends at 2.5 mm, and at 0.5 mm to the side."""
    atlas = nib.Nifti1Image(np.array([7, 8, 9], np.uint8).reshape(3, 1, 1), np.eye(4))
    affine = np.diag([0.6, 0.6, 0.6, 1.0])
    along, zero = np.arange(7), np.zeros(7, int)
    assert nearest(atlas, affine, (along, zero, zero)).tolist() == [7, 8, 8, 9, 9, 0, 0]
    assert nearest(atlas, affine, (along, zero, zero + 1)).tolist() == [0] * 7


def test_the_look_up_table_names_each_label_once():
    for part in ("index", "name", "abbreviation"):
        values = [getattr(label, part) for label in CORTICAL_LOOKUP]
        assert len(values) == len(set(values)), part
    assert len(CORTICAL_REGIONS) == 34

"""Which slices are shown, and where they stand."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bidsapp.report import slices

RAS_THICK = np.diag([1.0, 1.0, 4.0, 1.0])


def image(data: np.ndarray, affine: np.ndarray = RAS_THICK) -> nib.Nifti1Image:
    return nib.Nifti1Image(data, affine)


def test_thick_slices_keep_their_proportions(head):
    layout = slices.plan_overview(head["mask"], margin_mm=0)
    extent = (layout.box[:, 1] - layout.box[:, 0]) * [1, 1, 4]
    assert {tile.axis for tile in layout.tiles} == {0, 1, 2}
    for tile in layout.tiles:
        across, up = (extent[axis] for axis in range(3) if axis != tile.axis)
        assert tile.width / tile.height == pytest.approx(across / up, rel=0.02)


def test_tiles_lie_within_the_picture_and_apart(head):
    for layout in (slices.plan_overview(head["mask"], margin_mm=5), slices.plan_detail(head["mask"], head["lesion"])):
        taken = np.zeros(layout.size[::-1], dtype=int)
        for tile in layout.tiles:
            assert tile.left >= 0 and tile.left + tile.width <= layout.size[0]
            taken[tile.top : tile.top + tile.height + slices.BAR, tile.left : tile.left + tile.width] += 1
        assert taken.max() == 1


def test_overview_shows_the_acquired_plane_of_a_2d_scan():
    sagittal = np.diag([4.0, 1.0, 1.0, 1.0])
    mask = np.zeros((9, 40, 50), np.uint8)
    mask[1:8, 5:35, 5:45] = 1
    layout = slices.plan_overview(image(mask, sagittal), margin_mm=0)
    assert layout.tiles[0].axis == 0
    assert slices.plan_overview(image(mask, np.eye(4)), margin_mm=0).tiles[0].axis == 2


def test_detail_shows_every_slice_with_lesions(head):
    layout = slices.plan_detail(head["mask"], head["lesion"])
    assert 5 in {tile.index for tile in layout.tiles}
    assert len({tile.index for tile in layout.tiles}) == len(layout.tiles)
    many = np.zeros((40, 50, 90), np.uint8)
    many[10:30, 10:40, 5:85] = 1
    spread = slices.plan_detail(image(many, np.eye(4)), image(many, np.eye(4)))
    shown = sorted(tile.index for tile in spread.tiles)
    assert shown[0] < 15 and shown[-1] > 75 and max(np.diff(shown)) < 20


def test_four_dimensions_are_refused(head):
    with pytest.raises(ValueError, match="3D"):
        slices.plan_overview(image(np.zeros((4, 5, 6, 2), np.uint8)), margin_mm=0)


def test_slices_are_chosen_to_show_every_lesion():
    mask, lesion = np.zeros((20, 20, 60), np.uint8), np.zeros((20, 20, 60), np.uint8)
    mask[2:18, 2:18, 2:58] = 1
    lesion[4:14, 4:14, 5:35] = 1  # one large lesion, in three pieces of 10 mm
    for place in (38, 44, 50, 56):
        lesion[16, 16, place] = 1
    layout = slices.plan_detail(*(nib.Nifti1Image(data, np.eye(4)) for data in (mask, lesion)))
    shown = {tile.index for tile in layout.tiles}
    assert {38, 44, 50, 56} <= shown and {index // 10 for index in shown if index < 35} == {0, 1, 2, 3}


def test_no_larger_lesion_is_left_out_for_another_view_of_others():
    """Ten small lesions and two long ones, whose pieces would fill all places."""
    lesions = np.zeros((90, 20, 20), bool)
    lesions[3:80, 4:8, 4:8] = lesions[3:80, 10:13, 10:13] = True
    small = [4, 12, 20, 28, 36, 44, 52, 60, 68, 76]
    for place in small:
        lesions[place, 16, 16] = True
    assert set(small) <= set(slices._covering(lesions, [], 12, 1.0))
    lesions[28, 16, 15:17] = lesions[60, 16, 15:17] = True  # where there is no room for all, the largest
    assert set(slices._covering(lesions, [], 2, 1.0)) == {28, 60}


def test_one_slice_shows_what_lies_on_it():
    """Lesions side by side share a slice; of a lesion the slice with most of it is shown."""
    lesions = np.zeros((40, 20, 20), bool)  # slices first
    lesions[10:15, 3, 3] = lesions[12, 3:5, 3:5] = True
    lesions[12:16, 12, 12] = True
    lesions[30, 5, 5] = True
    assert sorted(slices._covering(lesions, [], 12, 1.0)) == [12, 30]
    assert slices._covering(lesions, [], 1, 1.0) == [12]
    assert slices._covering(lesions, [12], 12, 1.0) == [12, 30]


def test_slices_a_little_less_than_the_least_distance_apart_look_no_more_alike():
    lesions = np.zeros((30, 20, 20), bool)
    lesions[3:24, 3:12, 3:12] = True
    assert slices._covering(lesions, [], 6, 2.9999955) == slices._covering(lesions, [], 6, 3.0000009)


def test_rows_need_not_be_filled():
    mask, lesion = np.ones((30, 30, 40), np.uint8), np.zeros((30, 30, 40), np.uint8)
    lesion[5, 5, 10] = 1
    other = np.roll(lesion, 15, axis=2)
    mask, lesion, other, none = (image(data, np.eye(4)) for data in (mask, lesion, other, lesion * 0))

    def shown(*args, **options):
        return [tile.index for tile in slices.plan_detail(mask, *args, **options).tiles]

    assert shown(lesion, fill=False) == [10] and shown(lesion, then=other, fill=False) == [10, 25]
    assert 10 in shown(lesion) and len(shown(lesion)) > 4
    assert len(shown(none, fill=False)) > 4  # a picture there is

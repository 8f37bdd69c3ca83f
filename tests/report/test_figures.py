"""Pictures: size, proportions, sides, colours, determinism."""

from __future__ import annotations

import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bidsapp.labels import CSF, EDEMA, GM, LESION, NECROTIC_CORE, WM, compartment_lookup
from bidsapp.report import figures

RAS_THICK = np.diag([1.0, 1.0, 4.0, 1.0])


def image(data: np.ndarray, affine: np.ndarray = RAS_THICK) -> nib.Nifti1Image:
    return nib.Nifti1Image(data, affine)


@pytest.fixture
def head() -> dict[str, nib.Nifti1Image]:
    """A thick-slice scan of 40 x 50 x 9 voxels with an off-centre lesion on the subject's right."""
    rng = np.random.default_rng(0)
    x, y, z = np.indices((40, 50, 9))
    mask = ((x - 20) / 15) ** 2 + ((y - 25) / 19) ** 2 + ((z - 4) / 3.6) ** 2 < 1
    lesion = mask & (x > 27) & (x < 31) & (abs(y - 25) < 3) & (z == 5)
    dseg = np.where(mask, np.where(x < 15, GM.index, np.where(x < 25, WM.index, CSF.index)), 0)
    dseg[lesion] = LESION.index
    data = (rng.normal(100, 10, mask.shape) * mask).astype(np.float32)
    return {
        "reference": image(data),
        "mask": image(mask.astype(np.uint8)),
        "dseg": image(dseg.astype(np.uint8)),
        "lesion": image(lesion.astype(np.uint8)),
    }


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def colored(png: bytes, color: str) -> np.ndarray:
    """Where a picture has a pure colour, shape (height, width)."""
    rgb = np.asarray(opened(png).convert("RGB")).astype(int)
    wanted = [int(color[start : start + 2], 16) for start in (1, 3, 5)]
    return (rgb == wanted).all(axis=-1)


def test_every_pair_has_one_size_and_differs(head):
    pictures = figures.draw_session(**head, template_mask=head["mask"], template=head["reference"])
    assert sorted(pictures) == [
        f"{name}_{kind}" for name in ("brain", "lesion", "registration", "tissue") for kind in ("image", "overlay")
    ]
    for name in ("brain", "lesion", "tissue"):
        pair = [pictures[f"{name}_{kind}"] for kind in ("image", "overlay")]
        assert opened(pair[0]).size == opened(pair[1]).size
        assert pair[0] != pair[1]
    assert opened(pictures["brain_image"]).width == figures.WIDTH


def test_only_what_is_given_is_drawn(head):
    assert sorted(figures.draw_session(reference=head["reference"], mask=head["mask"])) == [
        "brain_image",
        "brain_overlay",
    ]


def test_compartments_have_the_colors_of_their_look_up_table(head):
    """Edema around a necrotic core, in a translucent layer each; what is not there is not drawn."""
    parts = np.asarray(head["lesion"].dataobj) * EDEMA.index
    parts[28:30, 24:27, 5] = NECROTIC_CORE.index
    lookup = compartment_lookup(["edema", "necrosis", "enhancing tumor"])
    pictures = figures.draw_session(**head, compartments=(image(parts.astype(np.uint8)), lookup))
    plain, drawn = (
        np.asarray(opened(pictures[f"compartments_{kind}"]).convert("RGB")).astype(int) for kind in ("image", "overlay")
    )
    assert np.ptp(plain, axis=-1).max() == 0  # grey
    hues = drawn[np.ptp(drawn, axis=-1) > 20].argmax(axis=-1)
    red, green, blue = np.bincount(hues, minlength=3)
    assert 20 < red < green and blue == 0  # the core is the smaller part


def test_equal_input_gives_equal_bytes_without_text_chunks(head):
    first, second = figures.draw_session(**head), figures.draw_session(**head)
    assert first == second
    assert all(opened(png).info.keys() <= {"transparency"} for png in first.values())
    other = dict(head, dseg=image(np.asarray(head["dseg"].dataobj)[::-1].copy()))
    assert figures.draw_session(**other)["tissue_overlay"] != first["tissue_overlay"]


def test_thick_slices_keep_their_proportions(head):
    layout = figures.plan_overview(head["mask"], margin_mm=0)
    extent = (layout.box[:, 1] - layout.box[:, 0]) * [1, 1, 4]
    assert {tile.axis for tile in layout.tiles} == {0, 1, 2}
    for tile in layout.tiles:
        across, up = (extent[axis] for axis in range(3) if axis != tile.axis)
        assert tile.width / tile.height == pytest.approx(across / up, rel=0.02)


def test_tiles_lie_within_the_picture_and_apart(head):
    for layout in (figures.plan_overview(head["mask"], margin_mm=5), figures.plan_detail(head["mask"], head["lesion"])):
        taken = np.zeros(layout.size[::-1], dtype=int)
        for tile in layout.tiles:
            assert tile.left >= 0 and tile.left + tile.width <= layout.size[0]
            taken[tile.top : tile.top + tile.height + figures.BAR, tile.left : tile.left + tile.width] += 1
        assert taken.max() == 1


def test_overview_shows_the_acquired_plane_of_a_2d_scan():
    sagittal = np.diag([4.0, 1.0, 1.0, 1.0])
    mask = np.zeros((9, 40, 50), np.uint8)
    mask[1:8, 5:35, 5:45] = 1
    layout = figures.plan_overview(image(mask, sagittal), margin_mm=0)
    assert layout.tiles[0].axis == 0
    assert figures.plan_overview(image(mask, np.eye(4)), margin_mm=0).tiles[0].axis == 2


def test_detail_shows_every_slice_with_lesions(head):
    layout = figures.plan_detail(head["mask"], head["lesion"])
    assert 5 in {tile.index for tile in layout.tiles}
    assert len({tile.index for tile in layout.tiles}) == len(layout.tiles)
    many = np.zeros((40, 50, 90), np.uint8)
    many[10:30, 10:40, 5:85] = 1
    spread = figures.plan_detail(image(many, np.eye(4)), image(many, np.eye(4)))
    shown = sorted(tile.index for tile in spread.tiles)
    assert shown[0] < 15 and shown[-1] > 75 and max(np.diff(shown)) < 20


@pytest.mark.parametrize("flip", [1, -1])
def test_the_subjects_right_is_on_the_right_whatever_the_storage(head, flip):
    lesion, reference = (np.asarray(head[name].dataobj)[::flip] for name in ("lesion", "reference"))
    affine = np.diag([flip, 1.0, 4.0, 1.0])
    affine[0, 3] = 0 if flip == 1 else 39
    mask = image(np.asarray(head["mask"].dataobj)[::flip].copy(), affine)
    picture = figures.lesion_picture(image(reference.copy(), affine), image(lesion.copy(), affine), mask=mask)
    layout = figures.plan_detail(mask, image(lesion.copy(), affine))
    (tile,) = (tile for tile in layout.tiles if tile.index == 5)
    found = colored(picture.overlay, LESION.color)
    columns = np.flatnonzero(found.any(axis=0)) - tile.left
    assert columns.size and columns.min() > tile.width / 2 and columns.max() < tile.width
    assert not colored(picture.image, LESION.color).any()


def test_outline_follows_the_mask(head):
    picture = figures.brain_picture(head["reference"], head["mask"])
    layout = figures.plan_overview(head["mask"], margin_mm=12)
    outline = colored(picture.overlay, figures.BRAIN_COLOR)
    box = layout.box
    for tile in layout.tiles:
        part = outline[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
        across = min(axis for axis in range(3) if axis != tile.axis)
        inside = np.take(np.asarray(head["mask"].dataobj), tile.index, axis=tile.axis)
        left, right = np.flatnonzero(inside.any(axis=1))[[0, -1]] - box[across, 0]
        scale = tile.width / (box[across, 1] - box[across, 0])
        columns = np.flatnonzero(part.any(axis=0))
        assert columns[0] == pytest.approx(left * scale, abs=scale)
        assert columns[-1] == pytest.approx((right + 1) * scale, abs=scale)


def test_position_is_in_scanner_millimetres(head):
    affine = RAS_THICK.copy()
    affine[2, 3] = -16
    layout = figures.plan_overview(head["mask"], margin_mm=0)
    tile = next(tile for tile in layout.tiles if tile.axis == 2)
    assert figures._position(tile, layout, affine) == f"z {4 * tile.index - 16:+d}"


def test_not_finite_values_and_an_empty_mask_do_no_harm(head):
    data = np.asarray(head["reference"].dataobj).copy()
    data[20, 25, 4], data[21, 25, 4] = np.nan, np.inf
    empty = image(np.zeros(data.shape, np.uint8))
    picture = figures.brain_picture(image(data), empty)
    assert opened(picture.image).width == figures.WIDTH
    pair = [np.asarray(opened(png).convert("RGB")) for png in (picture.image, picture.overlay)]
    np.testing.assert_array_equal(*pair)


def test_other_grid_is_refused(head):
    other = image(np.zeros((40, 50, 8), np.uint8))
    with pytest.raises(ValueError, match="different grids"):
        figures.brain_picture(head["reference"], other)
    moved = image(np.asarray(head["mask"].dataobj), np.diag([1.0, 1.0, 5.0, 1.0]))
    with pytest.raises(ValueError, match="different grids"):
        figures.lesion_picture(head["reference"], moved, mask=head["mask"])


def test_four_dimensions_are_refused(head):
    with pytest.raises(ValueError, match="3D"):
        figures.plan_overview(image(np.zeros((4, 5, 6, 2), np.uint8)), margin_mm=0)


def test_slices_are_chosen_to_show_every_lesion():
    mask, lesion = np.zeros((20, 20, 60), np.uint8), np.zeros((20, 20, 60), np.uint8)
    mask[2:18, 2:18, 2:58] = 1
    lesion[4:14, 4:14, 5:35] = 1  # one large lesion, in three pieces of 10 mm
    for place in (38, 44, 50, 56):
        lesion[16, 16, place] = 1
    layout = figures.plan_detail(*(nib.Nifti1Image(data, np.eye(4)) for data in (mask, lesion)))
    shown = {tile.index for tile in layout.tiles}
    assert {38, 44, 50, 56} <= shown and {index // 10 for index in shown if index < 35} == {0, 1, 2, 3}


def test_every_panel_has_its_sides():
    mask = nib.Nifti1Image(np.ones((60, 20, 20), np.uint8), np.eye(4))
    layout = figures.plan_detail(mask, mask)
    one, three = (figures._texts(layout, np.eye(4), panels) for panels in (1, 3))
    tile = layout.tiles[0]
    middle = np.s_[tile.top : tile.top + 25, tile.left + tile.width // 3 : tile.left + 2 * tile.width // 3]
    assert not one[middle].any() and three[middle].any()


@pytest.mark.parametrize(("sizes", "shape"), [
    ((0.5, 0.5, 0.5), (12, 13, 5)), ((0.3, 0.6, 1.0), (8, 25, 9)), ((1.0, 0.9, 3.0), (24, 25, 9)),
])  # fmt: skip
def test_fine_scans_are_drawn_from_fewer_voxels(sizes: tuple[float, ...], shape: tuple[int, ...]) -> None:
    data = np.random.default_rng(0).random((24, 25, 9), np.float32)
    image = nib.Nifti1Image(data, np.diag([*sizes, 1]))
    found = figures.coarser(image)
    assert found.shape == shape
    assert max(found.header.get_zooms()) <= max(1, *sizes)
    np.testing.assert_array_equal(found.affine[:3, 3], image.affine[:3, 3])  # the first voxel stays


def test_no_larger_lesion_is_left_out_for_another_view_of_others():
    """Ten small lesions and two long ones, whose pieces would fill all places."""
    lesions = np.zeros((90, 20, 20), bool)
    lesions[3:80, 4:8, 4:8] = lesions[3:80, 10:13, 10:13] = True
    small = [4, 12, 20, 28, 36, 44, 52, 60, 68, 76]
    for place in small:
        lesions[place, 16, 16] = True
    assert set(small) <= set(figures._covering(lesions, [], 12, 1.0))
    lesions[28, 16, 15:17] = lesions[60, 16, 15:17] = True  # where there is no room for all, the largest
    assert set(figures._covering(lesions, [], 2, 1.0)) == {28, 60}


def test_one_slice_shows_what_lies_on_it():
    """Lesions side by side share a slice; of a lesion the slice with most of it is shown."""
    lesions = np.zeros((40, 20, 20), bool)  # slices first
    lesions[10:15, 3, 3] = lesions[12, 3:5, 3:5] = True
    lesions[12:16, 12, 12] = True
    lesions[30, 5, 5] = True
    assert sorted(figures._covering(lesions, [], 12, 1.0)) == [12, 30]
    assert figures._covering(lesions, [], 1, 1.0) == [12]
    assert figures._covering(lesions, [12], 12, 1.0) == [12, 30]


def test_slices_a_little_less_than_the_least_distance_apart_look_no_more_alike():
    lesions = np.zeros((30, 20, 20), bool)
    lesions[3:24, 3:12, 3:12] = True
    assert figures._covering(lesions, [], 6, 2.9999955) == figures._covering(lesions, [], 6, 3.0000009)


def test_rows_need_not_be_filled():
    mask, lesion = np.ones((30, 30, 40), np.uint8), np.zeros((30, 30, 40), np.uint8)
    lesion[5, 5, 10] = 1
    other = np.roll(lesion, 15, axis=2)
    mask, lesion, other, none = (image(data, np.eye(4)) for data in (mask, lesion, other, lesion * 0))

    def shown(*args, **options):
        return [tile.index for tile in figures.plan_detail(mask, *args, **options).tiles]

    assert shown(lesion, fill=False) == [10] and shown(lesion, then=other, fill=False) == [10, 25]
    assert 10 in shown(lesion) and len(shown(lesion)) > 4
    assert len(shown(none, fill=False)) > 4  # a picture there is

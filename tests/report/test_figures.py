"""Pictures: size, proportions, sides, colours, determinism."""

from __future__ import annotations

import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bidsapp.labels import EDEMA, LESION, NECROTIC_CORE, compartment_lookup
from bidsapp.report import figures, mosaic, slices

RAS_THICK = np.diag([1.0, 1.0, 4.0, 1.0])


def image(data: np.ndarray, affine: np.ndarray = RAS_THICK) -> nib.Nifti1Image:
    return nib.Nifti1Image(data, affine)


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
    assert opened(pictures["brain_image"]).width == slices.WIDTH


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


@pytest.mark.parametrize("flip", [1, -1])
def test_the_subjects_right_is_on_the_right_whatever_the_storage(head, flip):
    lesion, reference = (np.asarray(head[name].dataobj)[::flip] for name in ("lesion", "reference"))
    affine = np.diag([flip, 1.0, 4.0, 1.0])
    affine[0, 3] = 0 if flip == 1 else 39
    mask = image(np.asarray(head["mask"].dataobj)[::flip].copy(), affine)
    picture = figures.lesion_picture(image(reference.copy(), affine), image(lesion.copy(), affine), mask=mask)
    layout = slices.plan_detail(mask, image(lesion.copy(), affine))
    (tile,) = (tile for tile in layout.tiles if tile.index == 5)
    found = colored(picture.overlay, LESION.color)
    columns = np.flatnonzero(found.any(axis=0)) - tile.left
    assert columns.size and columns.min() > tile.width / 2 and columns.max() < tile.width
    assert not colored(picture.image, LESION.color).any()


def test_outline_follows_the_mask(head):
    picture = figures.brain_picture(head["reference"], head["mask"])
    layout = slices.plan_overview(head["mask"], margin_mm=12)
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
    layout = slices.plan_overview(head["mask"], margin_mm=0)
    tile = next(tile for tile in layout.tiles if tile.axis == 2)
    assert mosaic._position(tile, layout, affine) == f"z {4 * tile.index - 16:+d}"


def test_not_finite_values_and_an_empty_mask_do_no_harm(head):
    data = np.asarray(head["reference"].dataobj).copy()
    data[20, 25, 4], data[21, 25, 4] = np.nan, np.inf
    empty = image(np.zeros(data.shape, np.uint8))
    picture = figures.brain_picture(image(data), empty)
    assert opened(picture.image).width == slices.WIDTH
    pair = [np.asarray(opened(png).convert("RGB")) for png in (picture.image, picture.overlay)]
    np.testing.assert_array_equal(*pair)


def test_other_grid_is_refused(head):
    other = image(np.zeros((40, 50, 8), np.uint8))
    with pytest.raises(ValueError, match="different grids"):
        figures.brain_picture(head["reference"], other)
    moved = image(np.asarray(head["mask"].dataobj), np.diag([1.0, 1.0, 5.0, 1.0]))
    with pytest.raises(ValueError, match="different grids"):
        figures.lesion_picture(head["reference"], moved, mask=head["mask"])


def test_every_panel_has_its_sides():
    mask = nib.Nifti1Image(np.ones((60, 20, 20), np.uint8), np.eye(4))
    layout = slices.plan_detail(mask, mask)
    one, three = (mosaic._texts(layout, np.eye(4), panels) for panels in (1, 3))
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

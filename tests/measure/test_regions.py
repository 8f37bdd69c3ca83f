"""Regions of lesions and their brightness, on a phantom whose distances are known by hand."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bidsapp.image import zones
from bidsapp.image.morphology import label_lesions
from bidsapp.measure.lesions import LOAD_COLUMNS, Context, lesion_table, load_row
from bidsapp.measure.regions import (
    Tissues,
    anatomy_from_structures,
    anatomy_from_tissue,
    can_locate,
    intensities,
    locate,
    normal_appearing,
)

SHAPE = (40, 30, 20)


def structures() -> np.ndarray:
    """A cerebrum of white matter (2) with a ventricle, a cortex and a thalamus, and a cerebellum below z = 4."""
    labels = np.full(SHAPE, 2)
    labels[:, :, :4] = 8
    labels[:, :2, 4:] = 3
    labels[18:22, 14:16, 8:12] = 4
    labels[10:14, 14:18, 8:11] = 10
    return labels


def lesions() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[22, 14:16, 8:11] = True  # touches the ventricle: 6 voxels
    mask[30:32, 2:4, 10:12] = True  # touches the cortex with half its voxels: 8 voxels
    mask[5:8, 20:22, 1:3] = True  # in the cerebellum: 12 voxels
    mask[35:37, 20:22, 14] = True  # far from everything: 4 voxels
    mask[11:13, 15:17, 9] = True  # in the thalamus: 4 voxels
    return mask


def located(mask: np.ndarray, labels: np.ndarray) -> dict[tuple[int, ...], str]:
    found, sizes = label_lesions(mask)
    out = locate(found, len(sizes), anatomy_from_structures(labels, voxel_size_mm=(1, 1, 1)), voxel_size_mm=(1, 1, 1))
    first = [tuple(int(i) for i in np.argwhere(found == index + 1)[0]) for index in range(len(sizes))]
    return dict(zip(first, out["region"].tolist(), strict=True))


@pytest.mark.parametrize("marked", [False, True], ids=["as tissue", "as lesions"])
def test_every_region_by_hand(marked):
    labels = structures()
    if marked:  # the network's segmentation has lesions as a label of their own
        labels[lesions()] = 77
    assert located(lesions(), labels) == {
        (22, 14, 8): "periventricular",
        (30, 2, 10): "juxtacortical",
        (5, 20, 1): "infratentorial",
        (35, 20, 14): "deep_white_matter",
        (11, 15, 9): "deep_gray_matter",
    }


def test_distances_are_in_mm_of_each_axis():
    mask = np.zeros(SHAPE, bool)
    mask[24, 14, 9] = True  # 3 voxels beyond the ventricle's last (21) along x, 13 beyond the cortex' last (1) along y
    out = locate(
        mask.astype(int), 1, anatomy_from_structures(structures(), voxel_size_mm=(1, 1, 1)), voxel_size_mm=(0.9, 1.5, 3)
    )
    assert out["ventricle_distance_mm"].tolist() == pytest.approx([2.7])
    assert out["cortex_distance_mm"].tolist() == pytest.approx([13 * 1.5])
    assert out["region"].tolist() == ["periventricular"]
    rounded = locate(
        mask.astype(int),
        1,
        anatomy_from_structures(structures(), voxel_size_mm=(1, 1, 1)),
        voxel_size_mm=(1.000003, 1.5, 3),
    )
    assert rounded["region"].tolist() == ["periventricular"]  # 3.000009 mm
    further = locate(
        mask.astype(int), 1, anatomy_from_structures(structures(), voxel_size_mm=(1, 1, 1)), voxel_size_mm=(1.1, 1.5, 3)
    )
    assert further["region"].tolist() == ["deep_white_matter"]  # 3.3 mm


def test_one_voxel_in_touch_does_not_make_a_lesion_juxtacortical():
    mask = np.zeros(SHAPE, bool)
    mask[30, 2:22, 10] = True  # a line of 20 voxels: its end (5 %) touches the cortex, nothing else is near
    out = locate(
        mask.astype(int), 1, anatomy_from_structures(structures(), voxel_size_mm=(1, 1, 1)), voxel_size_mm=(1, 1, 1)
    )
    assert out["cortex_distance_mm"].tolist() == [1]
    assert out["region"].tolist() == ["deep_white_matter"]


def test_a_lesion_lies_in_what_is_nearest_in_millimetres():
    """White matter beside it, deep gray matter in the slices above and below: near ones, and far ones."""
    labels = structures()
    labels[30:34, 20:24, [11, 13]] = 10
    labels[31:33, 21:23, 12] = 77
    mask = labels == 77
    for size, region in (((1, 1, 0.8), "deep_gray_matter"), ((0.5, 0.5, 6), "deep_white_matter")):
        anatomy = anatomy_from_structures(labels, voxel_size_mm=size)
        assert locate(mask.astype(int), 1, anatomy, voxel_size_mm=size)["region"] == [region]


def test_only_ventricles_with_cortex_can_locate():
    assert can_locate(structures())
    assert not can_locate(np.where(structures() == 4, 2, structures()))
    assert not can_locate(np.where(structures() == 3, 2, structures()))


def test_other_labels_are_refused():
    with pytest.raises(ValueError, match="FreeSurfer"):
        anatomy_from_structures(np.ones(SHAPE, int), voxel_size_mm=(1, 1, 1))


def test_tissue_tells_the_same_with_the_templates_zones():
    labels = structures()
    lookup = np.zeros(200, np.uint8)
    lookup[[2, 3, 4, 8, 10]] = zones.CEREBRUM, zones.CEREBRUM, zones.VENTRICLES, zones.INFRATENTORIAL, zones.DEEP_GRAY
    posteriors = np.stack([np.isin(labels, (3, 10)), np.isin(labels, (2, 8)), labels == 4]).astype(np.float32)
    # the template's ventricle is smaller than the subject's, and lies beside its middle
    zone = lookup[labels]
    zone[19:22, :, :][zone[19:22, :, :] == zones.VENTRICLES] = zones.CEREBRUM
    anatomy = anatomy_from_tissue(posteriors, zone, voxel_size_mm=(1, 1, 1))
    expected = anatomy_from_structures(labels, voxel_size_mm=(1, 1, 1))
    for name in ("ventricles", "cortex", "infratentorial", "deep_gray"):
        assert np.array_equal(getattr(anatomy, name), getattr(expected, name)), name
    with pytest.raises(ValueError, match="priors"):
        anatomy_from_tissue(posteriors[1:], zone, voxel_size_mm=(1, 1, 1))
    # Gray and white matter in one: the cortex is where the prior has it, but for a sulcus that is wider than there.
    priors, sulcus = posteriors, np.zeros(SHAPE, bool)
    sulcus[:5, 0, 10] = True
    parenchyma = np.stack([(labels != 4) & ~sulcus, (labels == 4) | sulcus]).astype(np.float32)
    anatomy = anatomy_from_tissue(parenchyma, zone, voxel_size_mm=(1, 1, 1), priors=priors)
    assert np.array_equal(anatomy.cortex, expected.cortex & ~sulcus)
    assert np.array_equal(anatomy.ventricles, expected.ventricles)


def test_csf_far_from_the_ventricles_is_none():
    labels = structures()
    labels[0:3, 25:, 8:12] = 4
    zone = np.full(SHAPE, zones.CEREBRUM)
    zone[18:22, 14:16, 8:12] = zones.VENTRICLES
    posteriors = np.stack([labels == 3, labels == 2, labels == 4]).astype(np.float32)
    assert anatomy_from_tissue(posteriors, zone, voxel_size_mm=(1, 1, 1)).ventricles.sum() == 4 * 2 * 4


def test_brightness_is_in_deviations_of_white_matter_and_of_no_scale(rng):
    labels = np.zeros(SHAPE, int)
    labels[5, 5, 5], labels[9, 9, 9] = 1, 2
    white, gray = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    white[20:30], gray[30:] = True, True
    t1 = rng.normal(100, 5, SHAPE)
    t1[gray] -= 30
    t1[5, 5, 5], t1[9, 9, 9] = 60, 90
    out = intensities(labels, 2, {"T1w": t1}, Tissues(white, gray))
    assert out["t1w_contrast"].tolist() == pytest.approx([-8, -2], abs=0.2)
    assert out["t1w_hypointense"].tolist() == ["yes", "no"]
    assert np.isnan(out["flair_contrast"]).all()
    scaled = intensities(labels, 2, {"T1w": 3 * t1 - 7}, Tissues(white, gray))
    assert scaled["t1w_contrast"].tolist() == pytest.approx(out["t1w_contrast"].tolist())
    assert intensities(labels, 2, {"T1w": t1}, Tissues(white, None))["t1w_hypointense"].tolist() == ["n/a", "n/a"]


def test_a_lesion_as_dark_as_most_gray_matter_is_dark(rng):
    """Fluid among a third of the gray matter does not make the others darker."""
    labels = np.zeros(SHAPE, int)
    labels[5, 5, 5], labels[9, 9, 9] = 1, 2
    white, gray = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    white[20:25], gray[25:] = True, True
    t1 = rng.normal(100, 5, SHAPE)
    t1[25:35], t1[35:] = 70, 10
    t1[5, 5, 5], t1[9, 9, 9] = 65, 75
    assert intensities(labels, 2, {"T1w": t1}, Tissues(white, gray))["t1w_hypointense"].tolist() == ["yes", "no"]


def test_what_a_scan_does_not_show_has_no_brightness(rng):
    """A slab: of the first lesion it shows nothing, of the second two of three voxels."""
    labels = np.zeros(SHAPE, int)
    labels[5, 5, 5], labels[8:11, 9, 9] = 1, 2
    white, gray = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    white[20:30], gray[30:] = True, True
    t1 = rng.normal(100, 5, SHAPE)
    t1[gray] -= 30
    t1[8:11, 9, 9] = 60
    t1[:9] = np.nan
    t1[20:28] = np.nan  # most of the white matter, too
    out = intensities(labels, 2, {"T1w": t1}, Tissues(white, gray))
    assert np.isnan(out["t1w_contrast"][0]) and out["t1w_contrast"][1] == pytest.approx(-8, abs=0.4)
    assert out["t1w_hypointense"].tolist() == ["n/a", "yes"]
    t1[20:] = np.nan
    assert np.isnan(intensities(labels, 2, {"T1w": t1}, Tissues(white, gray))["t1w_contrast"]).all()


def test_white_matter_near_lesions_is_not_normal():
    posteriors = np.zeros((3, *SHAPE), np.float32)
    posteriors[1] = 1
    lesion = np.zeros(SHAPE, bool)
    lesion[10, 10, 10] = True
    white = normal_appearing(posteriors, lesion, voxel_size_mm=(1, 1, 2), separable=True).white
    assert not white[13, 10, 10] and white[14, 10, 10]  # 3 mm, 4 mm
    assert not white[10, 10, 11] and white[10, 10, 12]  # 2 mm, 4 mm


def test_the_load_recomputed_without_the_table(rng):
    """Counts and sums by region, size and threshold, straight from the phantom's boxes."""
    mask, labels = lesions(), structures()
    probability = np.where(mask, 0.9, 0.0)
    probability[35:37, 20:22, 14] = 0.6  # 4 voxels that are less sure
    probability[0:2, 10, 10] = 0.3  # 2 voxels that were left out
    affine = np.diag([0.9, 1.1, 3.0, 1.0])
    voxel = 0.9 * 1.1 * 3.0
    lobes = np.ones(SHAPE, np.uint8)  # frontal; but parietal from voxel 31 on, and none in cerebellum and thalamus
    lobes[31:] = 2
    lobes[np.isin(labels, (8, 10))] = 0
    context = Context(
        anatomy_from_structures(labels, voxel_size_mm=(1, 1, 1)),
        {"FLAIR": rng.random(SHAPE)},
        Tissues(labels == 2, labels == 3),
        lobes,
    )
    table = lesion_table(mask, probability, affine=affine, to_mni=lambda p: p - (18, 0, 0), context=context)
    row = load_row(
        table, mask, probability, voxel_volume_mm3=voxel, volumes={"lesion_load_percent_tiv": 0.5}, lobes=lobes
    )
    assert list(row) == list(LOAD_COLUMNS)
    assert row["lesion_mm3"] == pytest.approx(34 * voxel)
    assert row["lesion_low_mm3"] == pytest.approx(30 * voxel)
    assert row["lesion_high_mm3"] == pytest.approx(36 * voxel)
    assert row["lesion_count"] == 5 and row["largest_lesion_mm3"] == pytest.approx(12 * voxel)
    assert row["confluence"] == pytest.approx((6**2 + 8**2 + 12**2 + 4**2 + 4**2) / 34**2)
    counts = {name: row[name] for name in row if name.endswith("_count")}
    assert counts["periventricular_count"] == counts["juxtacortical_count"] == counts["infratentorial_count"] == 1
    assert row["infratentorial_mm3"] == pytest.approx(12 * voxel)
    assert (counts["tiny_count"], counts["small_count"], counts["medium_count"]) == (2, 3, 0)  # 11.9, 17.8 ... mm3
    assert row["t1w_hypointense_count"] is None and row["lesion_load_percent_wm"] is None
    # 6 at the ventricle and half of the 8 at the cortex; the other half and the 4 far from everything
    assert row["lesion_frontal_lobe_mm3"] == pytest.approx(10 * voxel) and row[
        "lesion_parietal_lobe_mm3"
    ] == pytest.approx(8 * voxel)
    assert row["lesion_temporal_lobe_mm3"] == 0
    lobe_of = dict(zip(table["region"], table["lobe"], strict=True))
    assert lobe_of == {
        "infratentorial": "none", "deep_gray_matter": "none", "periventricular": "frontal", "juxtacortical": "frontal",
        "deep_white_matter": "parietal",
    }  # fmt: skip
    sides = dict(zip(table["region"], table["hemisphere"], strict=True))  # the midline is at 18 mm: voxel 20
    assert sides["infratentorial"] == "left" and sides["deep_white_matter"] == "right"


def test_in_plane_diameter_by_hand():
    mask = np.zeros(SHAPE, bool)
    mask[10:14, 10:13, 5] = True
    mask[10:12, 10:12, 6:9] = True
    table = lesion_table(mask, mask * 1.0, affine=np.diag([0.5, 1.0, 3.0, 1.0]))
    assert table.loc[0, "in_plane_diameter_mm"] == pytest.approx(np.hypot(4 * 0.5, 3 * 1.0))
    assert table.loc[0, "region"] == "n/a" and table.loc[0, "hemisphere"] == "n/a"
    large = np.ones((40, 30, 2), bool)
    assert lesion_table(large, large * 1.0, affine=np.diag([1, 1, 4, 1]))["in_plane_diameter_mm"][0] == 50


@pytest.mark.parametrize("second", [(11, 11), (11, 9)])
def test_in_plane_diameter_of_a_lesion_that_runs_aslant(second):
    mask = np.zeros(SHAPE, bool)
    mask[10, 10, 5] = mask[(*second, 5)] = True  # two pixels that share a corner
    table = lesion_table(mask, mask * 1.0, affine=np.diag([1.0, 1.0, 3.0, 1.0]))
    assert table["in_plane_diameter_mm"].tolist() == pytest.approx([np.hypot(2, 2)])


def test_slices_are_those_of_the_thickest_edge_and_axial_where_all_are_alike():
    mask = np.zeros(SHAPE, bool)
    mask[5:9, 10:13, 8:10] = True  # 4 x 3 x 2 voxels
    sagittal = np.diag([3.0, 1.0, 1.0, 1.0])
    assert lesion_table(mask, mask * 1.0, affine=sagittal)["in_plane_diameter_mm"][0] == pytest.approx(np.hypot(3, 2))
    turned = np.array([[0, 0, 1.1, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # the second axis goes down
    assert lesion_table(mask, mask * 1.0, affine=turned)["in_plane_diameter_mm"][0] == pytest.approx(np.hypot(4, 2.2))


@pytest.fixture(scope="module")
def template() -> nib.Nifti1Image:
    return zones.template_zones()


@pytest.mark.parametrize(
    ("point", "zone"),
    [
        ((-22, -60, -40), zones.INFRATENTORIAL),  # cerebellar hemisphere
        ((0, -25, -30), zones.INFRATENTORIAL),  # pons
        ((0, -38, -50), zones.INFRATENTORIAL),  # medulla
        ((-25, -90, -2), zones.CEREBRUM),  # occipital lobe, just above the tentorium
        ((22, -30, -18), zones.CEREBRUM),  # parahippocampal gyrus
        ((45, -60, -14), zones.CEREBRUM),  # fusiform gyrus
        ((-25, 5, 2), zones.DEEP_GRAY),  # putamen
        ((11, -18, 8), zones.DEEP_GRAY),  # thalamus
        ((-16, -20, 22), zones.VENTRICLES),  # body of the lateral ventricle
        ((-26, -46, 10), zones.VENTRICLES),  # atrium
        ((25, -15, 40), zones.CEREBRUM),  # centrum semiovale
        ((0, -110, 60), 0),
    ],
)
def test_zones_at_places_of_the_mni_atlas(template, point, zone):
    index = np.round(np.linalg.inv(template.affine) @ [*point, 1])[:3].astype(int)
    assert int(np.asarray(template.dataobj)[tuple(index)]) == zone

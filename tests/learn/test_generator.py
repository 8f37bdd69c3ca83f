from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bidsapp.learn.anatomy import INSIDE_BRAIN, KIND, LEFT_LESION, POSITION, RIGHT_LESION, STRUCTURES
from bidsapp.learn.fields import apply_along, moved, slice_profiles, smooth_field, touching
from bidsapp.learn.generator import (
    DIRT,
    LARGE,
    Generator,
    GeneratorConfig,
    Pathology,
    Sample,
    Scene,
)
from bidsapp.learn.heads import LATERAL, Heads, brain_hull, joined, outwards, signed_distance, to_positions
from bidsapp.learn.lesion_masks import SHAPE, SPOTS, Lesions, load_lesions
from bidsapp.learn.lesion_masks import joined as with_large
from training.tasks import (
    LESION_WEIGHT,
    SMALL_LESION_WEIGHT,
    BrainTask,
    SegmentTask,
    lesion_weights,
)

PLAIN = GeneratorConfig(rotation_deg=5, elastic_mm=(0, 0.5), view_sides_mm=(5, 20), view_bottom_mm=(5, 20), multiple=8)


@pytest.fixture(scope="module")
def ball() -> Heads:
    """A head made of balls: skin, bone, CSF, grey and white matter, right side apart from left."""
    grid = np.indices((72, 80, 88)).astype(float)
    r = np.sqrt(((grid - np.array([36, 40, 44])[:, None, None, None]) ** 2).sum(0))
    left = grid[0] < 36
    labels = np.zeros(r.shape, int)
    for radius, index in ((33, (511, 511)), (30, (515, 515)), (26, (24, 24)), (24, (3, 42)), (18, (2, 41))):
        labels[r < radius] = np.where(left, *index)[r < radius]
    positions = to_positions(labels)
    inside = np.isin(positions, [POSITION[i] for i in INSIDE_BRAIN])
    distance = signed_distance(brain_hull(positions, inside))
    return Heads(
        torch.from_numpy(positions)[None],
        torch.from_numpy(distance)[None],
        torch.from_numpy(outwards(np.isin(positions, LATERAL), distance.astype(np.float32)))[None],
        np.array([[36.0, 40.0, 44.0]]),
        np.array([[24.0, 24.0, 24.0]]),
        ("ball",),
    )


def test_every_label_has_a_partner_that_points_back() -> None:
    by_index = {s.index: s for s in STRUCTURES}
    for s in STRUCTURES:
        assert by_index[s.partner].partner == s.index
        assert by_index[s.partner].kind == s.kind


def test_unknown_label_is_named() -> None:
    with pytest.raises(ValueError, match="999"):
        to_positions(np.array([[[0, 2, 999]]]))


def test_distance_is_that_of_the_ball(ball: Heads) -> None:
    # Grey matter ends at 24 mm, the rim of CSF adds 1.5 mm; the centre lies deeper than the 20 mm kept.
    distance = ball.distance[0].numpy()
    assert distance[18, 20, 22] == 20
    assert distance[18, 20, 22 + 9] == pytest.approx(25 - 18.5, abs=1)
    assert distance[18, 20, 22 + 16] == pytest.approx(25 - 32.5, abs=1)


def test_a_seed_makes_the_same_sample(ball: Heads) -> None:
    make = Generator(ball, PLAIN)
    one, two, other = make.sample(5), make.sample(5), make.sample(6)
    assert torch.equal(one.image, two.image) and torch.equal(one.labels, two.labels)
    assert one.image.shape != other.image.shape or not torch.equal(one.image, other.image)


def test_sample_is_consistent(ball: Heads) -> None:
    make = Generator(ball, PLAIN)
    for seed in range(8):
        s = make.sample(seed)
        assert s.image.shape == (1, *s.labels.shape) and all(n % 8 == 0 for n in s.labels.shape)
        assert torch.isfinite(s.image).all() and (s.image >= 0).all()
        assert (s.image[0][~s.view] == 0).all()
        tissue = torch.isin(s.labels, torch.tensor([POSITION[i] for i in (2, 41)]))
        # White matter lies at least 6 mm inside the border; allow for nearest neighbours at 2.5 mm.
        assert s.distance[tissue].min() > 3
        assert s.distance[s.labels == POSITION[511]].max() < 0


def test_flip_swaps_left_and_right(ball: Heads) -> None:
    """In both kinds of samples left labels lie on the left (low x, RAS)."""
    make = Generator(ball, PLAIN)
    for seed in range(8):
        labels = make.sample(seed).labels
        x = torch.arange(labels.shape[0])[:, None, None].expand(labels.shape)
        left, right = (x[labels == POSITION[i]].float().mean() for i in (2, 41))
        assert left < right


def test_contrasts_share_one_anatomy_and_one_is_always_left(ball: Heads) -> None:
    make = Generator(ball, GeneratorConfig(contrasts=3, p_drop=0.9, multiple=8, view_bottom_mm=(5, 20)))
    for seed in range(6):
        image = make.sample(seed).image
        assert image.shape[0] == 3
        assert 1 <= int((image.flatten(1).max(1).values > 0).sum()) <= 3


def test_thick_slices_average_what_they_cover() -> None:
    to_slices, from_slices = slice_profiles(12, spacing=4, thickness=4, blur=0, phase=0.5)
    np.testing.assert_allclose(to_slices.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(from_slices.sum(1), 1, atol=1e-5)
    # The slice at voxel 4 covers voxels 2.5-5.5 fully and half of 2 and 6: (2/2 + 3 + 4 + 5 + 6/2) / 4 = 4.
    ramp = torch.arange(12.0)
    assert float(to_slices[1] @ ramp) == pytest.approx(4, abs=1e-3)
    np.testing.assert_allclose(to_slices[1].numpy(), [0, 0, 0.125, 0.25, 0.25, 0.25, 0.125, 0, 0, 0, 0, 0], atol=1e-3)
    # A line comes back as it was (the first slice hangs over the edge).
    np.testing.assert_allclose(from_slices[4:9] @ (to_slices @ ramp), ramp[4:9], atol=1e-3)


def test_one_voxel_slices_without_blur_change_nothing() -> None:
    to_slices, from_slices = slice_profiles(9, spacing=1, thickness=1, blur=0, phase=0.3)
    np.testing.assert_allclose(from_slices @ to_slices, np.eye(9), atol=1e-3)


def test_a_shift_moves_what_comes_back() -> None:
    to_slices, from_slices = slice_profiles(9, spacing=1, thickness=1, blur=0, phase=0.3, shift=0.25)
    ramp = torch.arange(9.0)
    np.testing.assert_allclose((from_slices @ (to_slices @ ramp))[1:8], ramp[1:8] - 0.25, atol=1e-3)


def bare(**settings: object) -> GeneratorConfig:
    """A T1w, T2w and FLAIR of the ball without chance in them, but for what is set."""
    none = {"rotation_deg": 0, "scale": (1, 1), "shear": 0, "elastic_mm": (0, 0), "jitter": 0, "bias": (0, 0)}
    none |= {"p_random_contrast": 0, "texture": (0, 0), "p_thick": 0, "noise": (0, 0), "gamma": (1, 1), "p_clean": 1}
    none |= {"p_stripped": 1, "strip_error_mm": (0, 0), "contrasts": 3, "patch": 32, "multiple": 8, "spacing_mm": 2}
    return GeneratorConfig(**(none | settings))


def means(sample: Sample, contrast: int, *labels: int) -> float:
    inside = torch.isin(sample.labels, torch.tensor([POSITION[i] for i in labels])) & (sample.image[contrast] > 0)
    return float(sample.image[contrast][inside].median())


def test_less_contrast_between_tissues_leaves_that_against_fluid(ball: Heads) -> None:
    seeds = range(12)
    full, flat = (
        [Generator(ball, bare(tissue_contrast=(share, share))).sample(seed) for seed in seeds] for share in (1.0, 0.4)
    )
    for contrast in range(3):
        grey_white, fluid = (
            [np.median([means(s, contrast, *a) - means(s, contrast, *b) for s in which]) for which in (full, flat)]
            for a, b in (((3, 42), (2, 41)), ((2, 41), (24,)))
        )
        assert grey_white[1] == pytest.approx(0.4 * grey_white[0], abs=0.05)
        assert abs(fluid[1]) > 0.75 * abs(fluid[0])


def test_fluid_at_the_cortex_looks_like_it(ball: Heads) -> None:
    found = 0
    for seed in (3, 4):
        plain, soft = (Generator(ball, bare(border=(value, value))).sample(seed) for value in (0.0, 20.0))
        changed = (plain.image - soft.image).abs().amax(0) > 0.15
        cortex = torch.isin(plain.labels, torch.tensor([POSITION[3], POSITION[42]]))[None].float()
        assert torch.nn.functional.max_pool3d(cortex, 5, 1, 2)[0][changed].all()
        found += int(changed.sum())
    assert found > 100


def test_all_fluid_of_the_sulci_and_white_matter_below_cortex_look_partly_like_it(ball: Heads) -> None:
    make = Generator(ball, bare(spacing_mm=1.0, sulcal=(0.5, 0.5), below=(0.6, 0.6)))
    labels = make.heads.labels[0].long()
    border = make._border(np.random.default_rng(0), torch.Generator().manual_seed(0), labels, make._kind[labels])
    fluid = labels == POSITION[24]
    assert float(border[fluid].mean()) == pytest.approx(0.5, abs=0.1)
    assert float(border.min()) >= 0 and float(border.max()) <= 0.9
    assert not border[torch.isin(labels, torch.tensor([POSITION[3], POSITION[4], POSITION[43]]))].any()
    white = torch.isin(labels, torch.tensor([POSITION[2], POSITION[41]]))
    cortex = torch.isin(labels, torch.tensor([POSITION[3], POSITION[42]]))[None].float()
    near = torch.nn.functional.max_pool3d(cortex, 3, 1, 1)[0] > 0
    far = torch.nn.functional.max_pool3d(cortex, 9, 1, 4)[0] == 0
    assert 0.1 < float(border[white & near].mean()) < 0.4
    assert float(border[white & far].max()) < 0.01


def test_choroid_plexus_may_be_bright_on_flair_alone(ball: Heads) -> None:
    kinds = torch.full((8, 8, 8), KIND["choroid plexus"])
    make, scene = Generator(ball, bare(p_choroid=1.0)), scene_of(kinds)
    for contrast, brighter in ((0, False), (1, False), (2, True)):
        image = torch.full(kinds.shape, 0.5)
        out = make._brighten(np.random.default_rng(0), torch.Generator().manual_seed(0), image, scene, contrast)
        assert bool((out > image).all()) == brighter


def scene_of(kinds: torch.Tensor, lining: torch.Tensor | None = None) -> Scene:
    """Nothing but these kinds of matter, and a lining."""
    none = torch.zeros(kinds.shape)
    drawn = Pathology(none, 1.0, None, None, none)
    return Scene(kinds, none == 0, none, none if lining is None else lining, drawn, np.zeros(3))


def test_fluid_takes_a_share_of_the_outermost_cortex(ball: Heads) -> None:
    labels = ball.labels[0].long()
    cortex = torch.isin(labels, torch.tensor([POSITION[3], POSITION[42]]))
    fluid = (labels == POSITION[24])[None, None].float()
    outer = cortex & (torch.nn.functional.max_pool3d(fluid, 3, 1, 1)[0, 0] > 0)
    for share in (0.0, 0.5, 0.9):
        make = Generator(ball, bare(spacing_mm=1.0, thinning=(share, share)))
        thinned = make._thinned(np.random.default_rng(1), torch.Generator().manual_seed(1), labels)
        changed = thinned != labels
        assert (outer[changed]).all()
        assert (thinned[changed] == POSITION[24]).all()
        outermost = cortex & touching(labels == POSITION[24])
        assert float(changed[outermost].float().mean()) == pytest.approx(share, abs=0.12)


def test_white_matter_takes_a_share_of_the_innermost_cortex(ball: Heads) -> None:
    labels = torch.full((24, 24, 24), POSITION[24])
    labels[:, :, :20] = POSITION[3]  # left cortex, ten voxels
    labels[:, :, :10] = POSITION[2]
    make = Generator(ball, bare(spacing_mm=1.0, thinning_below=(0.5, 0.5)))
    shares = []
    for seed in range(30):
        thinned = make._thinned(np.random.default_rng(seed), torch.Generator().manual_seed(seed), labels)
        shares.append(float((thinned[:, :, 10] == POSITION[2]).float().mean()))
        assert torch.equal(thinned[:, :, 11:], labels[:, :, 11:])
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)


def test_cortex_of_two_voxels_is_not_taken_from_both_sides(ball: Heads) -> None:
    labels = torch.full((24, 24, 24), POSITION[24])
    labels[:, :, :12] = POSITION[42]
    labels[:, :, :10] = POSITION[41]
    make = Generator(ball, bare(spacing_mm=1.0, thinning=(0.5, 0.5), thinning_below=(0.9, 0.9)))
    thinned = make._thinned(np.random.default_rng(1), torch.Generator().manual_seed(1), labels)
    left = (thinned == POSITION[42]).sum(2)
    assert int(left.min()) == 1
    assert bool((thinned[:, :, 10] == POSITION[41]).any()) and bool((thinned[:, :, 11] == POSITION[24]).any())


def test_walls_of_the_ventricles_and_what_lies_between_are_bright_on_flair_alone(ball: Heads) -> None:
    labels = torch.full((24, 24, 24), POSITION[2])
    labels[4:11, 8:16, 8:16] = POSITION[4]  # left and right ventricle, two voxels of white matter between
    labels[13:20, 8:16, 8:16] = POSITION[43]
    make = Generator(ball, bare(spacing_mm=1.0, p_lining=1.0))
    lesion = torch.zeros(labels.shape)
    lesion[11:13, 8:10] = 1
    seen = torch.zeros(labels.shape)
    for seed in range(8):
        lining = make._lining(
            np.random.default_rng(seed), torch.Generator().manual_seed(seed), labels, make._kind[labels], lesion
        )
        assert float(lining.min()) >= 0 and float(lining.max()) <= 1
        assert not lining[lesion > 0].any()
        seen = torch.maximum(seen, lining)
    assert float(seen[11:13, 11:14, 11:14].min()) > 0.5  # septum
    assert float(seen[3, 9:15, 9:15].max()) > 0.3  # wall
    seen[seen < 1e-6] = 0
    assert not seen[:2].any()  # three voxels and more from any ventricle
    image = torch.full(labels.shape, 0.6)
    scene = scene_of(make._kind[labels], seen)
    for contrast, brighter in ((0, False), (1, False), (2, True)):
        out = make._brighten(np.random.default_rng(0), torch.Generator().manual_seed(0), image, scene, contrast)
        assert bool((out[seen > 0] > image[seen > 0]).all()) == brighter
        assert (out[seen == 0] == image[seen == 0]).all()


def test_dirty_white_matter_is_no_lesion(ball: Heads, everywhere: Lesions) -> None:
    make = Generator(ball, bare(p_lesions=1.0, p_dirty=1.0, tissue_contrast=(1, 1)), everywhere)
    rng = np.random.default_rng(0)
    labels = make.heads.labels[0].long()
    kinds = make._kind[labels]
    for seed in range(6):
        dirt = make._dirt(rng, torch.Generator().manual_seed(seed), labels, kinds)
        white = torch.isin(labels, torch.tensor([POSITION[2], POSITION[41]]))
        assert float(dirt.min()) >= 0 and float(dirt.max()) <= DIRT
        assert not dirt[~white].any()


def test_level_follows_the_fluid_that_a_mask_holds(ball: Heads) -> None:
    much, little = (Generator(ball, bare(fluid=(share, share))).sample(3).level for share in (1.0, 0.1))
    there = much[:, 1] != 1
    assert (much[there, 1] > little[there, 1]).all()


def test_apply_along_multiplies_the_axis_named() -> None:
    image = torch.randn(7, 8, 9, generator=torch.Generator().manual_seed(0))
    matrix = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(
        apply_along(image, matrix, 1), np.einsum("ab,xbz->xaz", matrix.numpy(), image.numpy()), rtol=1e-4, atol=1e-5
    )


def test_smooth_field_has_unit_variance_and_is_smooth() -> None:
    field = smooth_field((60, 64, 68), 6, torch.Generator().manual_seed(0))
    assert float(field.std()) == pytest.approx(1, abs=0.15)
    assert float(field.diff(dim=0).std()) < 0.35


@pytest.fixture(scope="module")
def everywhere() -> Lesions:
    """One mask that covers the left half of MNI space (x < 91)."""
    mask = torch.zeros((1, *SHAPE), dtype=torch.uint8)
    mask[:, :91] = 1
    return Lesions(mask, np.full((1, SPOTS, 3), (60, 108, 90)))


PATCH = GeneratorConfig(
    spacing_mm=1, contrasts=3, patch=32, p_lesions=1, p_centred=0, p_stripped=1, elastic_mm=(0, 0.5), rotation_deg=0
)


def test_lesions_lie_in_tissue_that_may_have_them(ball: Heads, everywhere: Lesions) -> None:
    make = Generator(ball, PATCH, everywhere)
    samples = [make.sample(seed) for seed in range(6)]
    hosts = torch.tensor([POSITION[i] for i in (2, 41, 3, 42)])
    assert any((s.lesion > 0.5).any() for s in samples)
    for s in samples:
        assert s.image.shape == (3, 32, 32, 32) and s.lesion.max() <= 1
        assert (s.lesion[~torch.isin(s.labels, hosts)] == 0).all()


def test_a_patients_own_lesions_are_drawn_in_some_samples_and_are_white_matter_in_others(
    ball: Heads, everywhere: Lesions
) -> None:
    labels = ball.labels.clone()
    labels[0, 28:33, 38:43, 42:47] = POSITION[LEFT_LESION]
    nowhere = Lesions(torch.zeros_like(everywhere.masks), everywhere.spots)
    settings = {"p_lesions": 1.0, "p_centred": 1.0, "patch": 24, "spacing_mm": 1.0}
    make = Generator(dataclasses.replace(ball, labels=labels), bare(**settings), nowhere)
    shares = []
    for seed in range(24):
        sample = make.sample(seed)
        own = torch.isin(sample.labels, torch.tensor([POSITION[LEFT_LESION], POSITION[RIGHT_LESION]]))
        if own.sum() > 50:
            shares.append(float(sample.lesion[own].mean()))
    drawn = np.array(shares) > 0.6
    assert 0.3 < drawn.mean() < 1 and (np.array(shares)[~drawn] < 0.2).any()
    task = SegmentTask()
    assert task.classes[task._labels(sample)[own].unique()] == "cerebral white matter"


def test_a_flow_carries_what_lies_upstream() -> None:
    points = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in (20, 24, 28)], indexing="ij"))
    flow = torch.zeros((3, 5, 6, 7))
    flow[1] = 1  # along the second axis, everywhere
    there = moved(points, flow, 3.0)
    torch.testing.assert_close(there[1, 8:12, 8:16, 8:20], points[1, 8:12, 8:16, 8:20] - 3)
    torch.testing.assert_close(there[[0, 2]], points[[0, 2]])


def test_ventricles_widen_and_the_brains_border_stays(ball: Heads) -> None:
    labels = ball.labels.clone()
    labels[0, 31:41, 35:45, 39:49] = POSITION[4]
    field = outwards((labels[0] == POSITION[4]).numpy(), ball.distance[0].numpy())
    heads = dataclasses.replace(ball, labels=labels, flow=torch.from_numpy(field)[None])
    assert field.shape == (3, 18, 20, 22) and np.abs(field).max() < 1.2 and not field[:, 0].any()
    assert not outwards(np.zeros(labels.shape[1:], bool), ball.distance[0].numpy()).any()

    def millilitres(**settings: tuple[float, float]) -> np.ndarray:
        make = Generator(heads, bare(patch=0, view_sides_mm=(5, 5), **settings))
        samples, sides = [make.sample(seed) for seed in range(8)], torch.tensor([POSITION[4], POSITION[43]])
        return np.array([[torch.isin(s.labels, sides).sum(), (s.distance > 0).sum()] for s in samples], float)

    still, wide, narrow = (millilitres(ventricles_mm=range_) for range_ in ((0.0, 0.0), (4.0, 4.0), (-1.5, -1.5)))
    grown = wide[:, 0] / still[:, 0]
    assert ((grown > 2) | (grown == 1)).all() and 0 < (grown > 2).sum() < len(grown)
    assert (narrow[:, 0] / still[:, 0]).min() < 0.8
    np.testing.assert_allclose(wide[:, 1], still[:, 1], rtol=0.02)


def test_heads_are_joined_in_order(ball: Heads) -> None:
    other = dataclasses.replace(ball, labels=ball.labels.flip(1), names=("other",))
    both = joined(ball, other)
    assert both.names == ("ball", "other") and len(both) == 2 and both.extent.shape == (2, 3)
    assert torch.equal(both.labels[1], ball.labels[0].flip(0))


@pytest.fixture(scope="module")
def with_infarcts(everywhere: Lesions) -> Lesions:
    """Beside the left half an infarct's mask that covers the whole brain."""
    return with_large(everywhere, Lesions(torch.ones((1, *SHAPE), dtype=torch.uint8), everywhere.spots))


def with_large_lesions(heads: Heads, lesions: Lesions) -> tuple[list[Sample], list[Pathology]]:
    """Samples with a large lesion each, and what was drawn into them."""
    make = Generator(heads, dataclasses.replace(PATCH, p_large=1.0), lesions)
    drawn: list[Pathology] = []
    draw = make._pathology
    make._pathology = lambda *args: drawn.append(draw(*args)) or drawn[-1]  # type: ignore[method-assign]
    return [make.sample(seed) for seed in range(24)], drawn


def test_large_lesions_take_cortex_too_and_their_cavities_are_fluid(ball: Heads, with_infarcts: Lesions) -> None:
    samples, drawn = with_large_lesions(ball, with_infarcts)
    assert {one.large for one in drawn} == set(LARGE)
    cortex, fluid = torch.tensor([POSITION[3], POSITION[42]]), POSITION[24]
    hollow = 0
    for sample, one in zip(samples, drawn, strict=True):
        assert sample.lesion.max() <= 1 and 0 <= one.share <= 0.4
        if one.large == "infarct":
            assert (sample.lesion[torch.isin(sample.labels, cortex)] > 0.5).any()
            hole = one.cavity > 0.5
            hollow += bool(hole.any())
            assert (sample.labels[hole] == fluid).all() and (sample.lesion[hole] < 0.5).all()
    assert hollow


def test_a_mass_fills_sulci_and_what_is_dead_lies_within_what_enhances(ball: Heads, with_infarcts: Lesions) -> None:
    samples, drawn = with_large_lesions(ball, with_infarcts)
    fluid, ventricle = POSITION[24], POSITION[4]
    masses = [(sample, one) for sample, one in zip(samples, drawn, strict=True) if one.large == "mass"]
    assert any((sample.lesion[sample.labels == fluid] > 0.5).any() for sample, _ in masses)
    assert not any((sample.lesion[sample.labels == ventricle] > 0.5).any() for sample, _ in masses)
    enhancing = [(one.rim, one.dead) for _, one in masses if one.rim is not None]
    assert 0 < len(enhancing) < len(masses)
    for rim, dead in enhancing:
        assert dead is not None and (dead <= rim + 1e-5).all()
    assert any((dead > 0.5).any() for _, dead in enhancing if dead is not None)


def test_masks_of_large_lesions_change_nothing_where_none_are_asked_for(
    ball: Heads, everywhere: Lesions, with_infarcts: Lesions
) -> None:
    plain, more = (Generator(ball, PATCH, lesions).sample(3) for lesions in (everywhere, with_infarcts))
    torch.testing.assert_close(plain.image, more.image)
    torch.testing.assert_close(plain.lesion, more.lesion)
    with pytest.raises(ValueError, match="masks of large lesions"):
        Generator(ball, dataclasses.replace(PATCH, p_large=0.5), everywhere)


def test_without_lesion_masks_lesions_cannot_be_asked_for(ball: Heads) -> None:
    with pytest.raises(ValueError, match="lesion masks"):
        Generator(ball, PATCH)


def test_mask_files_come_onto_one_grid(tmp_path: Path) -> None:
    data = np.zeros((181, 217, 181), np.float32)
    data[10, 20, 30] = 1
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = (-90, -125, -71)  # as the stroke masks lie: one voxel inside the grid
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "a.nii.gz")
    lesions = load_lesions(tmp_path, device="cpu")
    assert lesions.masks.nonzero().tolist() == [[0, 11, 21, 31]]
    with pytest.raises(FileNotFoundError, match="no lesion masks"):
        load_lesions(tmp_path, device="cpu", leave_out=("a",))


def test_segment_task_rewards_the_truth(ball: Heads, everywhere: Lesions) -> None:
    task, sample = SegmentTask(), Generator(ball, PATCH, everywhere).sample(1)
    target = _soft_target(task, sample)
    right, wrong = target.clamp(min=1e-6).log(), torch.zeros_like(target)
    assert task.loss(right, sample) < 0.2 * task.loss(wrong, sample)
    assert all(np.isnan(d) or d == 1 for d in task.dice(right, sample))


def _soft_target(task: SegmentTask, sample: Sample) -> torch.Tensor:
    """(classes, X, Y, Z): one-hot labels that give way to the lesion's share."""
    onehot = torch.nn.functional.one_hot(task._labels(sample), len(task.classes)).movedim(-1, 0).float()
    onehot = onehot * (1 - sample.lesion)
    onehot[-1] = sample.lesion
    return onehot


def test_segment_loss_is_cross_entropy_and_dice(ball: Heads, everywhere: Lesions) -> None:
    """The loss is written so that no target of all classes is made; here it is made."""
    task, sample = SegmentTask(), Generator(ball, PATCH, everywhere).sample(2)
    assert sample.lesion.max() > 0.5
    logits = torch.randn((len(task.classes), *sample.lesion.shape), generator=torch.Generator().manual_seed(0))
    target, probability = _soft_target(task, sample), logits.softmax(0)
    weight = 1 + (lesion_weights(sample.lesion[None])[0] - 1) * sample.lesion
    entropy = (-(target * logits.log_softmax(0)).sum(0) * weight).sum() / weight.sum()
    overlap, size = (probability * target).flatten(1).sum(1), (probability**2 + target**2).flatten(1).sum(1)
    present = (target**2).flatten(1).sum(1) > 10
    count = torch.tensor([1.0] * (len(task.classes) - 1) + [LESION_WEIGHT])[present]
    expected = entropy + 1 - ((2 * overlap / (size + 1))[present] * count).sum() / count.sum()
    torch.testing.assert_close(task.loss(logits, sample), expected, rtol=1e-4, atol=1e-4)


def test_voxels_of_small_lesions_count_more() -> None:
    lesion = torch.zeros(1, 40, 40, 40)
    lesion[0, 5, 5, 5] = 1
    lesion[0, 15:35, 15:35, 15:35] = 1
    weights = lesion_weights(lesion)
    assert float(weights[0, 25, 25, 25]) == pytest.approx(LESION_WEIGHT)
    assert float(weights[0, 5, 5, 5]) == pytest.approx(LESION_WEIGHT * SMALL_LESION_WEIGHT, rel=0.05)
    assert float(weights.max()) <= LESION_WEIGHT * SMALL_LESION_WEIGHT
    assert float(weights[0, 15, 25, 25]) == pytest.approx(LESION_WEIGHT, rel=0.05)  # the border of a large one


def test_scale_is_that_of_the_whole_brain(ball: Heads) -> None:
    """A patch of all of the head but its corners: the brain in it has mean 0 and standard deviation 1, about."""
    config = dataclasses.replace(PATCH, patch=64, p_lesions=0, bias=(0, 0), noise=(0, 0), texture=(0, 0.01), p_thick=0)
    make, task = Generator(ball, config), SegmentTask()
    for seed in range(3):
        sample = make.sample(seed)
        inside = (sample.distance > 0) & (sample.image[0] > 0)
        values = task.inputs(sample)[:, inside]
        assert values.mean(1).abs().max() < 0.25
        assert ((values.std(1) - 1).abs() < 0.3).all()


def test_place_is_relative_to_the_brain(ball: Heads) -> None:
    """Where x is -1 and 1 the brain of 24 mm (times its scale) ends."""
    config = dataclasses.replace(PATCH, patch=64, p_lesions=0, p_stripped=0, shear=0, elastic_mm=(0, 0))
    for seed in range(4):
        sample = Generator(ball, config).sample(seed)
        tissue = torch.isin(sample.labels, torch.tensor([POSITION[i] for i in (2, 41, 3, 42)]))
        for axis in range(3):
            along = tissue.any(dim=tuple(a for a in range(3) if a != axis))
            ends = sample.place[axis][along][[0, -1]]
            cut = along[0] or along[-1]  # the patch may end before the brain does
            assert cut or ends.tolist() == pytest.approx([-1, 1], abs=0.12)


def test_lesions_need_no_flow_or_bright_cortex(ball: Heads, everywhere: Lesions) -> None:
    """What imitates lesions changes the images, never the truth."""
    plain = Generator(ball, PATCH, everywhere).sample(5)
    config = dataclasses.replace(PATCH, p_flow=1.0, p_bright_cortex=1.0)
    spoiled = Generator(ball, config, everywhere).sample(5)
    torch.testing.assert_close(plain.lesion, spoiled.lesion)
    assert not torch.equal(plain.image, spoiled.image)


def test_brain_task_rewards_the_truth(ball: Heads) -> None:
    task, sample = BrainTask(), Generator(ball, PLAIN).sample(1)
    right = torch.logit((0.5 + sample.distance / 6).clamp(1e-3, 1 - 1e-3))[None]
    assert task.loss(right, sample) < task.loss(-right, sample)
    assert task.dice(right, sample) == [1.0] and task.dice(-right, sample)[0] < 0.01

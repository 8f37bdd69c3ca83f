"""Agreement: hand-computed values, properties, an independent implementation, and MONAI's."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bidsapp.measure.agreement import agreement, reliability

SHAPE = (7, 8, 9)
ISO = (1.0, 1.0, 1.0)
ANISO = (0.5, 1.0, 3.0)

masks = hnp.arrays(bool, (5, 4, 6), elements=st.booleans())
sizes = st.tuples(*[st.floats(0.3, 7.0)] * 3)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def box(*slices: tuple[int, int], shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*bounds) for bounds in slices)] = True
    return mask


def same(a: float | None, b: float | None, tolerance: float = 1e-9) -> bool:
    if a is None or b is None:
        return a is b
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)


def test_overlap_measures_by_hand():
    # R 2x3x4 = 24 voxels, P shares 2x3x2 = 12 of them and has 2x3x1 = 6 more: |P| = 18.
    reference, prediction = box((1, 3), (2, 5), (2, 6)), box((1, 3), (2, 5), (4, 7))
    found = agreement(reference, prediction, voxel_size_mm=ANISO)
    assert found.tpr == pytest.approx(12 / 24)
    assert found.ppv == pytest.approx(12 / 18)
    assert found.dsc == pytest.approx(24 / 42)
    assert found.vdr == pytest.approx(6 / 24)
    assert found.reference_volume_mm3 == pytest.approx(24 * 1.5)
    assert found.volume_difference_mm3 == pytest.approx(-6 * 1.5)
    assert found.absolute_volume_difference_mm3 == pytest.approx(9.0)
    assert math.isnan(found.lesion_tpr) and found.reference_lesions is None


def test_surface_distances_of_two_voxels_by_hand():
    reference, prediction = box((1, 2), (2, 3), (3, 4)), box((3, 4), (2, 3), (5, 6))
    found = agreement(reference, prediction, voxel_size_mm=ANISO)  # 2 x 0.5 mm and 2 x 3 mm apart
    distance = math.hypot(1.0, 6.0)
    assert found.hd_mm == found.hd95_mm == found.assd_mm == pytest.approx(distance)


def test_surface_distances_of_rods_by_hand():
    # R: 4 voxels in a row, P: the same row and one voxel more at 3 mm: distances 0,0,0,0 and 0,0,0,0,3.
    found = agreement(box((2, 3), (2, 3), (1, 5)), box((2, 3), (2, 3), (1, 6)), voxel_size_mm=ANISO)
    assert found.hd_mm == pytest.approx(3.0)
    assert found.assd_mm == pytest.approx(3 / 9)
    assert found.hd95_mm == pytest.approx(0.8 * 3)  # 95th percentile of 0,0,0,0,3: position 3.8


def test_inside_of_a_box_is_not_its_surface():
    # A 3x3x3 box has one inner voxel. Against that voxel alone: 6 faces at 1, 12 edges at sqrt 2, 8 corners at sqrt 3.
    found = agreement(box((2, 5), (2, 5), (2, 5)), box((3, 4), (3, 4), (3, 4)), voxel_size_mm=ISO)
    assert found.hd_mm == pytest.approx(math.sqrt(3))
    assert found.assd_mm == pytest.approx((6 + 12 * math.sqrt(2) + 8 * math.sqrt(3) + 1) / 27)


def test_edge_of_the_field_of_view_is_surface():
    # Both fill the grid in y and z; P is one plane thicker at x = 3. Surfaces: all rim voxels.
    found = agreement(box((0, 3), (0, 8), (0, 9)), box((0, 4), (0, 8), (0, 9)), voxel_size_mm=ISO)
    assert found.hd_mm == pytest.approx(1.0)
    expected = brute_force(box((0, 3), (0, 8), (0, 9)), box((0, 4), (0, 8), (0, 9)), ISO)
    assert found.assd_mm == pytest.approx(expected["assd_mm"], abs=1e-9)


def test_lesion_wise_by_hand():
    reference = box((0, 2), (0, 2), (0, 2)) | box((4, 5), (4, 5), (4, 5)) | box((6, 7), (0, 1), (8, 9))
    prediction = box((1, 3), (1, 3), (1, 3)) | box((0, 1), (7, 8), (8, 9)) | box((6, 7), (0, 1), (7, 9))
    prediction |= box((2, 3), (5, 6), (0, 1))
    found = agreement(reference, prediction, voxel_size_mm=ISO, lesion_wise=True)
    assert (found.reference_lesions, found.prediction_lesions) == (3, 4)
    assert found.lesion_tpr == pytest.approx(2 / 3)
    assert found.lesion_ppv == pytest.approx(2 / 4)
    assert found.lesion_f1 == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))


def test_lesions_that_touch_at_a_corner_are_one():
    reference = box((1, 2), (1, 2), (1, 2)) | box((2, 3), (2, 3), (2, 3))
    found = agreement(reference, reference, voxel_size_mm=ISO, lesion_wise=True)
    assert found.reference_lesions == 1


def test_minimum_lesion_size_spares_the_small_reference_only():
    reference = box((0, 2), (0, 2), (0, 2)) | box((5, 6), (5, 6), (5, 6))
    prediction = box((5, 6), (5, 6), (5, 7))
    found = agreement(reference, prediction, voxel_size_mm=ISO, lesion_wise=True, minimum_lesion_mm3=3)
    assert found.reference_lesions == 1  # the one of 8 mm3, missed
    assert (found.lesion_tpr, found.lesion_ppv) == (0.0, 1.0)  # what touches the small one is no false positive
    exactly = agreement(reference, prediction, voxel_size_mm=ISO, lesion_wise=True, minimum_lesion_mm3=8)
    assert exactly.reference_lesions == 1


def test_no_reference_lesion_that_counts():
    small, far = box((5, 6), (5, 6), (5, 6)), box((0, 2), (0, 2), (0, 2))

    def found(prediction):
        return agreement(small, prediction, voxel_size_mm=ISO, lesion_wise=True, minimum_lesion_mm3=3)

    equal = found(small)
    assert math.isnan(equal.lesion_tpr) and equal.lesion_ppv == 1 and math.isnan(equal.lesion_f1)
    assert math.isnan(found(np.zeros(SHAPE, bool)).lesion_f1)
    assert found(small | far).lesion_f1 == 0  # one is false


@pytest.mark.parametrize("lesion_wise", [False, True])
def test_empty_masks(lesion_wise):
    empty, full = np.zeros(SHAPE, bool), box((1, 3), (1, 3), (1, 3))
    both = agreement(empty, empty, voxel_size_mm=ISO, lesion_wise=lesion_wise)
    for name in ("tpr", "ppv", "dsc", "vdr", "hd_mm", "hd95_mm", "assd_mm", "lesion_tpr", "lesion_ppv", "lesion_f1"):
        assert math.isnan(getattr(both, name)), name
    missed = agreement(full, empty, voxel_size_mm=ISO, lesion_wise=True)
    assert (missed.tpr, missed.dsc, missed.vdr, missed.lesion_tpr, missed.lesion_f1) == (0, 0, 1, 0, 0)
    assert math.isnan(missed.ppv) and math.isnan(missed.hd_mm) and math.isnan(missed.lesion_ppv)
    invented = agreement(empty, full, voxel_size_mm=ISO, lesion_wise=True)
    assert (invented.ppv, invented.dsc, invented.lesion_ppv, invented.lesion_f1) == (0, 0, 0, 0)
    assert math.isnan(invented.tpr) and math.isnan(invented.vdr) and math.isnan(invented.lesion_tpr)


def test_wrong_input_is_refused():
    mask = box((1, 3), (1, 3), (1, 3))
    with pytest.raises(ValueError, match="differ in shape"):
        agreement(mask, mask[1:], voxel_size_mm=ISO)
    with pytest.raises(ValueError, match="not binary"):
        agreement(mask, mask * 0.5, voxel_size_mm=ISO)
    with pytest.raises(ValueError, match="three dimensions"):
        agreement(mask[0], mask[0], voxel_size_mm=ISO)
    for bad in ((1, 1), (1, 1, 0), (1, 1, -2), (1, 1, float("nan"))):
        with pytest.raises(ValueError, match="three positive"):
            agreement(mask, mask, voxel_size_mm=bad)


def test_integers_count_as_masks():
    a, b = box((1, 3), (1, 3), (1, 3)), box((1, 4), (1, 3), (1, 3))
    as_bool = agreement(a, b, voxel_size_mm=ANISO)
    assert asdict(agreement(a.astype(np.uint8), b.astype(float), voxel_size_mm=ANISO)) == pytest.approx(
        asdict(as_bool), nan_ok=True
    )


SWAPPED = {"tpr": "ppv", "ppv": "tpr", "lesion_tpr": "lesion_ppv", "lesion_ppv": "lesion_tpr"}
SYMMETRIC = ("dsc", "hd_mm", "hd95_mm", "assd_mm", "lesion_f1", "absolute_volume_difference_mm3")


@settings(max_examples=60, deadline=None)
@given(masks, masks, sizes)
def test_exchange_of_the_two(a, b, size):
    there, back = (agreement(x, y, voxel_size_mm=size, lesion_wise=True) for x, y in ((a, b), (b, a)))
    for name in SYMMETRIC:
        assert same(getattr(there, name), getattr(back, name)), name
    for name, other in SWAPPED.items():
        assert same(getattr(there, name), getattr(back, other)), name
    assert there.volume_difference_mm3 == pytest.approx(-back.volume_difference_mm3)


@settings(max_examples=60, deadline=None)
@given(masks, masks, sizes)
def test_bounds(a, b, size):
    found = agreement(a, b, voxel_size_mm=size, lesion_wise=True)
    for name in ("tpr", "ppv", "dsc", "lesion_tpr", "lesion_ppv", "lesion_f1"):
        value = getattr(found, name)
        assert math.isnan(value) or 0 <= value <= 1, name
    assert math.isnan(found.vdr) or found.vdr >= 0
    diagonal = math.dist((0, 0, 0), [(n - 1) * s for n, s in zip(a.shape, size, strict=True)])
    if not math.isnan(found.hd_mm):
        assert 0 <= found.assd_mm <= found.hd_mm + 1e-9
        assert found.hd95_mm <= found.hd_mm + 1e-9 <= diagonal + 2e-9


@settings(max_examples=40, deadline=None)
@given(masks.filter(lambda mask: mask.any()), sizes)
def test_identity(mask, size):
    found = agreement(mask, mask.copy(), voxel_size_mm=size, lesion_wise=True)
    assert (found.tpr, found.ppv, found.dsc, found.vdr) == (1, 1, 1, 0)
    assert (found.hd_mm, found.hd95_mm, found.assd_mm) == (0, 0, 0)
    assert (found.lesion_tpr, found.lesion_ppv, found.lesion_f1) == (1, 1, 1)


@settings(max_examples=40, deadline=None)
@given(masks, masks, sizes)
def test_against_an_independent_implementation(a, b, size):
    found = asdict(agreement(a, b, voxel_size_mm=size, lesion_wise=True))
    for name, value in brute_force(a, b, size).items():
        assert same(found[name], value, 1e-6), name


def brute_force(reference: np.ndarray, prediction: np.ndarray, size) -> dict[str, float]:
    """All measures from their definitions, with loops and numpy only."""
    r, p = ({tuple(int(i) for i in v) for v in np.argwhere(m)} for m in (reference, prediction))
    nan = float("nan")
    out = {
        "tpr": len(r & p) / len(r) if r else nan,
        "ppv": len(r & p) / len(p) if p else nan,
        "dsc": 2 * len(r & p) / (len(r) + len(p)) if r or p else nan,
        "vdr": abs(len(p) - len(r)) / len(r) if r else nan,
    }
    on_r, on_p = _rim(r), _rim(p)
    out |= {"hd_mm": nan, "hd95_mm": nan, "assd_mm": nan}
    if r and p:
        d = np.sqrt((((on_r[:, None] - on_p[None]) * np.array(size)) ** 2).sum(axis=-1))
        from_r, from_p = d.min(axis=1), d.min(axis=0)
        out["hd_mm"] = max(from_r.max(), from_p.max())
        out["hd95_mm"] = max(np.quantile(from_r, 0.95), np.quantile(from_p, 0.95))
        out["assd_mm"] = np.concatenate([from_r, from_p]).mean()
    lesions_r, lesions_p = _flood(r), _flood(p)
    tpr = sum(bool(one & p) for one in lesions_r) / len(lesions_r) if lesions_r else nan
    ppv = sum(bool(one & r) for one in lesions_p) / len(lesions_p) if lesions_p else nan
    out |= {"lesion_tpr": tpr, "lesion_ppv": ppv}
    return out


def _rim(voxels: set) -> np.ndarray:
    faces = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    rim = [v for v in sorted(voxels) if any(tuple(np.add(v, f)) not in voxels for f in faces)]
    return np.array(rim, float).reshape(-1, 3)


def _flood(voxels: set) -> list[set]:
    left, found = set(voxels), []
    while left:
        one, todo = set(), [min(left)]
        while todo:
            v = todo.pop()
            if v not in left:
                continue
            left.discard(v)
            one.add(v)
            todo += [u for u in left if max(abs(i - j) for i, j in zip(u, v, strict=True)) <= 1]
        found.append(one)
    return found


def test_against_monai(rng):
    metrics = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    for _ in range(5):
        a, b = rng.random(SHAPE) < 0.3, rng.random(SHAPE) < 0.3
        found = agreement(a, b, voxel_size_mm=ANISO)
        one, other = (torch.from_numpy(m)[None, None].float() for m in (b, a))
        kwargs = {"include_background": True, "spacing": list(ANISO)}
        hd = metrics.compute_hausdorff_distance(one, other, **kwargs)
        hd95 = metrics.compute_hausdorff_distance(one, other, percentile=95, **kwargs)
        assd = metrics.compute_average_surface_distance(one, other, symmetric=True, **kwargs)
        assert found.hd_mm == pytest.approx(float(hd), abs=1e-5)
        assert found.hd95_mm == pytest.approx(float(hd95), abs=1e-5)
        assert found.assd_mm == pytest.approx(float(assd), abs=1e-5)


def test_reliability_by_hand() -> None:
    """Of four voxels said to be 0.3 one is lesion; of three at 0.9 and more all are; below 0.2 none counts."""
    probability = np.array([0.3, 0.3, 0.3, 0.3, 0.9, 0.9, 0.1, 1.0])
    reference = np.array([1, 0, 0, 0, 1, 1, 1, 1], bool)
    found = reliability(reference, probability, edges=np.array([0.2, 0.5, 0.8, 1.0]))
    assert found.voxels.tolist() == [4, 0, 3]
    assert found.said[[0, 2]] == pytest.approx([0.3, 2.8 / 3])
    assert found.true[[0, 2]] == pytest.approx([0.25, 1.0])
    assert np.isnan(found.said[1])
    assert np.isnan(found.true[1])
    assert found.error == pytest.approx((4 * 0.05 + 3 * (1 - 2.8 / 3)) / 7)
    assert np.isnan(reliability(reference[:0], probability[:0], edges=np.array([0.2, 1.0])).error)


def test_reliability_of_probabilities_that_are_right(rng: np.random.Generator) -> None:
    probability = rng.random(200_000)
    found = reliability(rng.random(probability.shape) < probability, probability, edges=np.linspace(0, 1, 11))
    assert found.error < 0.01
    wrong = reliability(rng.random(probability.shape) < probability**2, probability, edges=np.linspace(0, 1, 11))
    assert wrong.error == pytest.approx(1 / 2 - 1 / 3, abs=0.01)

"""Changes of lesions on a phantom whose every change is known, and the brain's volume on a known deformation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bidsapp.labels import CHANGE_GROWTH, CHANGE_LOSS, CHANGE_NEW, CHANGE_RESOLVED, CHANGE_STABLE, CHANGE_UNCONFIRMED
from bidsapp.measure.change import (
    INTERVAL_COLUMNS,
    LESION_CHANGE_COLUMNS,
    Visit,
    _match,
    brightness_difference,
    compare,
    interval_row,
    mean_volume_change,
    minimum_change_mm3,
    rates,
)

SHAPE = (60, 50, 40)
LEAST = 20.0

#: Boxes (first and after-last voxel per axis) of each lesion before and after, and whether FLAIR shows it.
STABLE = (np.s_[5:9, 5:10, 5:10],) * 2  # 100 voxels
NEW = (None, np.s_[20:24, 5:10, 5:10])  # 100
GONE = (np.s_[35:39, 5:10, 5:8], None)  # 60
GROWN = (np.s_[5:9, 25:29, 5:10], np.s_[5:13, 25:29, 5:10])  # 80 -> 160
GROWN_LITTLE = (np.s_[20:25, 25:30, 5:9], np.s_[20:26, 25:30, 5:9])  # 100 -> 120: 20 %
SHRUNK = (np.s_[35:43, 25:30, 5:9], np.s_[35:38, 25:30, 5:9])  # 160 -> 60
UNSEEN = (None, np.s_[5:9, 40:45, 20:25])  # 100 voxels marked, but not bright
TINY = (None, np.s_[50:52, 5:8, 5:8])  # 18 voxels, bright
ALL = (STABLE, NEW, GONE, GROWN, GROWN_LITTLE, SHRUNK, UNSEEN, TINY)


def visits(rng: np.random.Generator, *, swap: bool = False) -> tuple[Visit, Visit]:
    brain = np.zeros(SHAPE, bool)
    brain[2:-2, 2:-2, 2:-2] = True
    anatomy = rng.normal(0, 10, SHAPE)  # the same in both sessions
    out = []
    for session, (gain, offset) in enumerate(((1.0, 100.0), (2.5, -30.0))):  # another scale and offset of the scanner
        mask, flair = np.zeros(SHAPE, bool), anatomy + rng.normal(0, 2, SHAPE)
        for lesion in ALL:
            if lesion[session] is not None:
                mask[lesion[session]] = True
                if lesion is not UNSEEN:
                    flair[lesion[session]] += 30
        out.append(Visit(mask, (offset + gain * flair).astype(np.float32), brain, brain & ~mask))
    return (out[1], out[0]) if swap else (out[0], out[1])


def at(change, box) -> str:
    found = set(np.unique(change.lesions[box])) - {0}
    assert len(found) == 1
    return change.table.set_index("change_id").loc[found.pop(), "status"]


def test_every_change_by_hand(rng):
    first, second = visits(rng)
    found = compare(first, second, voxel_mm3=1, minimum_mm3=LEAST)
    assert at(found, STABLE[0]) == "stable"
    assert at(found, NEW[1]) == "new"
    assert at(found, GONE[0]) == "resolved"
    assert at(found, GROWN[0]) == "enlarging"
    assert at(found, GROWN_LITTLE[0]) == "stable"  # 20 %, below 45 %
    assert at(found, SHRUNK[0]) == "shrinking"
    assert at(found, UNSEEN[1]) == "unconfirmed"
    assert at(found, TINY[1]) == "small"
    assert len(found.table) == 8
    grown = found.table[found.table["status"] == "enlarging"].iloc[0]
    assert (grown["volume_from_mm3"], grown["volume_to_mm3"]) == (80, 160)
    assert grown["gain_mm3"] == pytest.approx(80, abs=2) and grown["loss_mm3"] == 0
    assert grown["change_percent"] == pytest.approx(100, abs=3)


def test_the_map_and_the_sums_recomputed_from_the_boxes(rng):
    first, second = visits(rng)
    found = compare(first, second, voxel_mm3=1, minimum_mm3=LEAST)
    count = np.bincount(found.map.ravel(), minlength=7)
    assert count[CHANGE_NEW.index] == 100 and count[CHANGE_RESOLVED.index] == 60
    assert count[CHANGE_GROWTH.index] == pytest.approx(80, abs=2)
    assert count[CHANGE_LOSS.index] == pytest.approx(100, abs=3)
    assert count[CHANGE_UNCONFIRMED.index] == 100 + 18
    assert count[CHANGE_STABLE.index] == pytest.approx(100 + 80 + 120 + 60, abs=5)
    row = interval_row(found, first, second, voxel_mm3=1)
    assert [row[f"{name}_count"] for name in ("new", "enlarging", "stable", "shrinking", "resolved")] == [1, 1, 2, 1, 1]
    assert row["lesion_from_mm3"] == 100 + 60 + 80 + 100 + 160
    assert row["lesion_to_mm3"] == 100 + 100 + 160 + 120 + 60 + 100 + 18
    assert row["lesion_change_mm3"] == pytest.approx(100 - 60 + 80 - 100, abs=6)
    assert "common_brain_percent" not in row  # of all scans, not of the FLAIRs: `interfaces.change` has it
    assert set(row) <= set(INTERVAL_COLUMNS) and set(found.table) <= set(LESION_CHANGE_COLUMNS)


def test_lesions_are_numbered_by_status_then_by_volume(rng):
    table = compare(*visits(rng), voxel_mm3=1, minimum_mm3=LEAST).table
    assert table["change_id"].tolist() == list(range(1, 9))
    assert table["status"].tolist() == [
        "new", "enlarging", "shrinking", "resolved", "stable", "stable", "unconfirmed", "small"
    ]  # fmt: skip
    assert table["volume_to_mm3"].tolist() == [100, 160, 60, 0, 120, 100, 100, 18]


@pytest.mark.parametrize("swap", [False, True])
def test_volumes_and_limits_are_those_of_the_voxels(rng, swap):
    """Of 2 mm: a cross-section of 25 voxels has 100 mm2, and a gain of 25 % is then a change; of 1 mm it is none."""
    pair = []
    for visit, top, scale in zip(visits(rng), (24, 25), (1, 2.5), strict=True):  # 100 -> 125 voxels
        lesion, flair, box = visit.lesion.copy(), visit.flair.copy(), np.s_[20:25, 40:45, 20:top]
        lesion[box], flair[box] = True, flair[box] + scale * 30
        pair.append(Visit(lesion, flair, visit.brain, visit.brain & ~lesion))
    first, second = reversed(pair) if swap else pair
    assert at(compare(first, second, voxel_mm3=1, minimum_mm3=LEAST), np.s_[20:25, 40:45, 20:24]) == "stable"
    found = compare(first, second, voxel_mm3=8, minimum_mm3=8 * LEAST)
    assert at(found, np.s_[20:25, 40:45, 20:24]) == ("stable" if swap else "enlarging")  # 20 % when it shrinks
    row = interval_row(found, first, second, voxel_mm3=8)
    loads = [8 * (100 + 60 + 80 + 100 + 160 + 100), 8 * (100 + 100 + 160 + 120 + 60 + 100 + 18 + 125)]
    assert [row["lesion_from_mm3"], row["lesion_to_mm3"]] == (loads[::-1] if swap else loads)
    # Of the 5 layers that `SHRUNK` lost only one is within 2 mm of the rest: it was a lesion of its own.
    assert row["new_mm3"] == 8 * (60 + 100 if swap else 100)
    assert row["resolved_mm3"] == 8 * (100 if swap else 60 + 100)
    assert row["growth_mm3"] == pytest.approx(8 * (0 if swap else 80 + 25), abs=16)
    assert row["shrinkage_mm3"] == pytest.approx(8 * (80 if swap else 0), abs=16)


def test_the_other_way_round_is_the_opposite(rng):
    found = compare(*visits(rng, swap=True), voxel_mm3=1, minimum_mm3=LEAST)
    assert at(found, NEW[1]) == "resolved"
    assert at(found, GONE[0]) == "new"
    assert at(found, GROWN[1]) == "shrinking"
    assert at(found, STABLE[0]) == "stable"


def test_nothing_changes_between_a_scan_and_its_repetition(rng):
    first, _ = visits(rng)
    noisy = Visit(first.lesion, first.flair + rng.normal(0, 2, SHAPE).astype(np.float32), first.brain, first.white)
    found = compare(first, noisy, voxel_mm3=1, minimum_mm3=LEAST)
    assert set(found.table["status"]) == {"stable"}
    # A mask that misses lesions and invents others is no change either: the scans are alike.
    other = np.roll(first.lesion, 17, axis=2)
    found = compare(first, Visit(other, noisy.flair, first.brain, first.brain & ~other), voxel_mm3=1, minimum_mm3=LEAST)
    assert not set(found.table["status"]) & {"new", "enlarging", "shrinking", "resolved"}
    assert "unconfirmed" in set(found.table["status"])


def test_a_new_lesion_that_touches_an_old_one_is_new(rng):
    first, second = visits(rng)
    large = np.s_[9:20, 5:10, 5:10]  # from the stable lesion to the new one: all three are one in the later mask
    lesion, flair = second.lesion.copy(), second.flair.copy()
    lesion[large], flair[large] = True, flair[large] + 2.5 * 30
    found = compare(first, Visit(lesion, flair, second.brain, second.white), voxel_mm3=1, minimum_mm3=LEAST)
    assert at(found, np.s_[15:24, 5:10, 5:10]) == "new"
    assert at(found, np.s_[5:8, 5:10, 5:10]) == "stable"


@pytest.mark.parametrize(("shared", "one"), [(9, False), (10, True)])
def test_lesions_that_share_a_tenth_of_the_smaller_one_are_one(shared, one):
    """A lesion of 200 voxels, later one of 100 that lies over its end, and one of 50 apart from both."""
    earlier, later = np.zeros(400, int), np.zeros(400, int)
    earlier[:200], later[200 - shared : 300 - shared], later[350:] = 1, 1, 2
    first, second = _match((earlier, np.array([200])), (later, np.array([100, 50])))
    assert bool(first[0] == second[0]) is one and second[1] not in (first[0], second[0])


def test_a_confluent_lesion_that_grows_here_and_shrinks_there_is_not_stable(rng):
    first, second = visits(rng)
    boxes = (np.s_[30:45, 40:46, 20:26], np.s_[38:53, 40:46, 20:26])  # moved by 8 of 15 voxels: no change of volume
    moved = []
    for visit, box, scale in zip((first, second), boxes, (1, 2.5), strict=True):
        lesion, flair = visit.lesion.copy(), visit.flair.copy()
        lesion[box], flair[box] = True, flair[box] + scale * 30
        moved.append(Visit(lesion, flair, visit.brain, visit.brain & ~lesion))
    found = compare(*moved, voxel_mm3=1, minimum_mm3=LEAST)
    row = found.table[found.table["volume_from_mm3"] == 15 * 36].iloc[0]
    assert row["status"] in ("enlarging", "shrinking")
    assert row["gain_mm3"] == pytest.approx(8 * 36, abs=6) and row["loss_mm3"] == pytest.approx(8 * 36, abs=6)
    assert found.map[50, 43, 23] == CHANGE_GROWTH.index and found.map[32, 43, 23] == CHANGE_LOSS.index


def test_brightness_has_no_unit_of_the_scanner(rng):
    first, second = visits(rng)
    difference, common = brightness_difference(first, second)
    white = first.white & second.white & common
    assert np.median(difference[white]) == pytest.approx(0, abs=1e-3)
    assert 1.4826 * np.median(np.abs(difference[white])) == pytest.approx(1, abs=1e-2)
    scaled = Visit(second.lesion, 7 * second.flair - 3, second.brain, second.white)
    assert np.allclose(brightness_difference(first, scaled)[0], difference, atol=1e-3)
    assert difference[NEW[1]].mean() == pytest.approx(30 / np.hypot(2, 2), rel=0.1)


def test_what_cannot_be_compared_is_refused(rng):
    first, second = visits(rng)
    elsewhere = np.zeros(SHAPE, bool)
    elsewhere[:4] = True
    with pytest.raises(ValueError, match="less than half"):
        brightness_difference(first, Visit(second.lesion, second.flair, elsewhere, second.white))
    part = first.brain & (np.arange(SHAPE[0]) < 20)[:, None, None]  # wholly in the other brain, a third of it
    for pair in ((first, replace(second, brain=part)), (replace(first, brain=part), second)):
        with pytest.raises(ValueError, match="less than half"):
            brightness_difference(*pair)
    with pytest.raises(ValueError, match="white matter"):
        brightness_difference(first, Visit(second.lesion, second.flair, second.brain, elsewhere & False))
    with pytest.raises(ValueError, match="different grids"):
        brightness_difference(first, Visit(second.lesion[1:], second.flair[1:], second.brain[1:], second.white[1:]))
    with pytest.raises(ValueError, match="constant"):
        brightness_difference(first, Visit(second.lesion, np.ones(SHAPE), second.brain, second.white))


def test_without_any_lesion(rng):
    first, second = visits(rng)
    empty = [Visit(np.zeros(SHAPE, bool), visit.flair, visit.brain, visit.white) for visit in (first, second)]
    found = compare(*empty, voxel_mm3=1, minimum_mm3=LEAST)
    assert len(found.table) == 0 and not found.map.any()
    assert interval_row(found, *empty, voxel_mm3=1)["new_count"] == 0


def test_the_least_change_goes_with_the_slices():
    assert minimum_change_mm3([(1, 1, 1), (0.9, 0.9, 1.2)]) == pytest.approx(np.pi / 6 * 27)
    assert minimum_change_mm3([(1, 1, 1), (0.5, 0.5, 5)]) == pytest.approx(np.pi / 4 * 9 * 5)


def test_volume_change_of_a_known_scaling():
    region = np.zeros(SHAPE, bool)
    region[10:20] = True
    there = np.where(region, 0.98, 5.0)
    assert mean_volume_change([there, 1 / there], [region, region]) == pytest.approx(-2)
    # 2 % there and none back is 1 % of both, as logarithms
    assert mean_volume_change([there, np.ones(SHAPE)], [region, region]) == pytest.approx(100 * (0.98**0.5 - 1))
    assert mean_volume_change([np.ones(SHAPE), there], [region, region]) == pytest.approx(100 * (0.98**-0.5 - 1))


def test_rates_need_time():
    row = {"lesion_change_mm3": 300.0, "brain_change_percent": -1.0}
    assert rates({**row, "years": 2.0}) == {
        "lesion_change_mm3_per_year": 150.0,
        "brain_change_percent_per_year": -0.5,
    }
    assert set(rates({**row, "years": 0.3}).values()) == set(rates({**row, "years": None}).values()) == {None}

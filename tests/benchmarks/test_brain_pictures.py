"""The outlines of brain masks, drawn on a phantom."""

from __future__ import annotations

import numpy as np
from matplotlib import colors, pyplot

from benchmarks.accuracy import Case
from benchmarks.brain_pictures import COLOURS, CUTS, draw


def test_both_outlines_are_drawn_where_the_brain_is():
    reference = np.zeros((30, 36, 12), bool)
    reference[5:25, 6:30, 2:10] = True
    case = Case(
        dataset="d", case="sub-1 ses-1", structure="brain mask", contrasts="FLAIR", reference=reference,
        prediction=np.roll(reference, 2, 1), voxel_size_mm=np.array([1.0, 1.0, 3.0]),
    )  # fmt: skip
    for along, share in CUTS:
        figure, axis = pyplot.subplots()
        draw(axis, case, reference * 100.0, along, share)
        drawn = {colors.to_hex(line.get_edgecolor()[0]) for line in axis.collections}
        assert drawn == {colors.to_hex(colour) for colour in COLOURS.values()}
        pyplot.close(figure)


def test_a_slice_without_the_reference_shows_ours_alone():
    found = np.zeros((20, 20, 20), bool)
    found[4:16, 4:16, 4:16] = True
    case = Case(
        dataset="d", case="sub-1 ses-1", structure="brain mask", contrasts="FLAIR", reference=~(found | True),
        prediction=found, voxel_size_mm=np.ones(3),
    )  # fmt: skip
    figure, axis = pyplot.subplots()
    draw(axis, case, found * 100.0, 0, 0.5)
    assert len(axis.collections) == 1
    pyplot.close(figure)

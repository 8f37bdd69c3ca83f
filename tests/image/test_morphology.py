from __future__ import annotations

import numpy as np

from bidsapp.image.morphology import grown, label_lesions, largest_piece

SHAPE = (7, 8, 9)


def test_corners_join_lesions():
    mask = np.zeros(SHAPE, bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    assert label_lesions(mask)[1].tolist() == [2]


def test_corners_join_no_pieces():
    mask = np.zeros(SHAPE, bool)
    mask[1, 1, 1] = mask[2, 2, 2] = mask[2, 2, 3] = True
    assert np.argwhere(largest_piece(mask)).tolist() == [[2, 2, 2], [2, 2, 3]]


def test_a_mask_grows_by_millimetres_along_each_axis():
    mask = np.zeros(SHAPE, bool)
    mask[3, 3, 4] = True
    wider = grown(mask, 2.0, (1.0, 2.0, 3.0))
    assert [np.flatnonzero(wider[:, 3, 4]).tolist(), np.flatnonzero(wider[3, :, 4]).tolist()] == [
        [1, 2, 3, 4, 5],
        [2, 3, 4],
    ]
    assert wider.sum() == 7  # nothing along the third axis, whose voxels are wider
    assert not grown(np.zeros(SHAPE, bool), 2.0, (1.0, 2.0, 3.0)).any()

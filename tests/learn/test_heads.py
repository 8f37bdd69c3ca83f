from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from bidsapp.learn.heads import Heads, joined, to_positions


def test_unknown_label_is_named() -> None:
    with pytest.raises(ValueError, match="999"):
        to_positions(np.array([[[0, 2, 999]]]))


def test_distance_is_that_of_the_ball(ball: Heads) -> None:
    # Grey matter ends at 24 mm, the rim of CSF adds 1.5 mm; the centre lies deeper than the 20 mm kept.
    distance = ball.distance[0].numpy()
    assert distance[18, 20, 22] == 20
    assert distance[18, 20, 22 + 9] == pytest.approx(25 - 18.5, abs=1)
    assert distance[18, 20, 22 + 16] == pytest.approx(25 - 32.5, abs=1)


def test_heads_are_joined_in_order(ball: Heads) -> None:
    other = dataclasses.replace(ball, labels=ball.labels.flip(1), names=("other",))
    both = joined(ball, other)
    assert both.names == ("ball", "other") and len(both) == 2 and both.extent.shape == (2, 3)
    assert torch.equal(both.labels[1], ball.labels[0].flip(0))

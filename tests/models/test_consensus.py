"""The mean of two opinions, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bidsapp.models.consensus import LESION_THRESHOLD, mean_lesions, mean_tissues


def test_mean_of_tissues() -> None:
    """Two voxels seen by both, one by the network alone, one outside the mask, one seen by none."""
    network = np.array([[0.8, 0, 0.5, 1, 0], [0.2, 0.4, 0.5, 0, 0], [0, 0.6, 0, 0, 0]]).reshape(3, 5, 1, 1)
    mixture = np.array([[0.4, 0, 0, 1, 0], [0.6, 0.8, 0, 0, 0], [0, 0.2, 0, 0, 0]]).reshape(3, 5, 1, 1)
    mask = np.array([True, True, True, False, True]).reshape(5, 1, 1)
    found = mean_tissues(network, mixture, mask)[:, :, 0, 0]
    expected = np.array([[0.6, 0, 0.5, 0, 0], [0.4, 0.6, 0.5, 0, 0], [0, 0.4, 0, 0, 0]])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_lesion_needs_one_sure_opinion_and_some_of_the_other() -> None:
    mean = mean_lesions(np.array([0.7, 0.9, 0.55, 0.0]), np.array([0.0, 0.2, 0.55, 0.75]))
    assert mean == pytest.approx([0.35, 0.55, 0.55, 0.375])
    assert (mean > LESION_THRESHOLD).tolist() == [False, True, True, False]

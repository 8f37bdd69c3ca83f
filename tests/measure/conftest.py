from __future__ import annotations

import numpy as np
import pytest

from tests.measure.two_tissues import two_tissues


@pytest.fixture
def image() -> np.ndarray:
    return two_tissues()


@pytest.fixture
def peak_flow() -> tuple[np.ndarray, np.ndarray]:
    """Bland and Altman 1986: peak expiratory flow (l/min) of 17 subjects, by Wright's meter and by the mini meter."""
    wright = np.array([494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427], float)
    mini = np.array([512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451], float)
    return wright, mini

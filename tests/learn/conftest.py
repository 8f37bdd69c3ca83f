from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.image.drawn import onto_work
from bidsapp.learn.generator_config import GeneratorConfig


@pytest.fixture
def case_folder(tmp_path: Path) -> Path:
    """What `interfaces.cases.StoreCase` leaves of a session: a brain with one bright block, drawn on 3 mm slices."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "cases/sub-01"
    folder.mkdir(parents=True)
    grid = np.indices((40, 46, 38)) - np.array([20, 23, 19])[:, None, None, None]
    mask = (grid / np.array([17, 20, 16])[:, None, None, None] ** 1.0) ** 2
    mask = mask.sum(0) < 1
    affine = np.diag([1.0, 1, 1, 1])
    drawn = np.zeros((40, 46, 13), np.uint8)
    drawn[22:30, 20:28, 5:9] = 1
    slices = nib.Nifti1Image(drawn, np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 3, 1], [0, 0, 0, 1]], float))
    work = nib.Nifti1Image(mask.astype(np.uint8), affine)
    labels = onto_work(slices, work)
    flair = (100 + 10 * rng.normal(size=mask.shape) + 80 * np.asarray(labels.dataobj)) * mask
    for name, image in (
        ("FLAIR", nib.Nifti1Image(flair.astype(np.float32), affine)), ("mask", work), ("labels", labels),
        ("drawn", slices),
    ):  # fmt: skip
        nib.save(image, folder / f"{name}.nii")
    record = {"name": "sub-01", "subject": "01", "contrasts": ["FLAIR"], "indices": []}
    (folder / "case.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="session")
def bare() -> Callable[..., GeneratorConfig]:
    """A T1w, T2w and FLAIR of the ball without chance in them, but for what is set."""
    none = {"rotation_deg": 0, "scale": (1, 1), "shear": 0, "elastic_mm": (0, 0), "jitter": 0, "bias": (0, 0)}
    none |= {"p_random_contrast": 0, "texture": (0, 0), "p_thick": 0, "noise": (0, 0), "gamma": (1, 1), "p_clean": 1}
    none |= {"p_stripped": 1, "strip_error_mm": (0, 0), "contrasts": 3, "patch": 32, "multiple": 8, "spacing_mm": 2}
    return lambda **settings: GeneratorConfig(**(none | settings))

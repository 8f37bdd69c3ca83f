"""The benchmark on synthetic heads: its truth, its sessions and what it makes of a result."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import synthetic
from bidsapp.learn.anatomy import LEFT_LESION, POSITION


def sample() -> SimpleNamespace:
    """Seven voxels in a row: background, sulcal fluid, cortex, white matter, a ventricle, a thalamus, a lesion."""
    labels = [0, 24, 42, 2, 4, 10, 2]
    return SimpleNamespace(
        labels=torch.tensor([POSITION[index] for index in labels])[:, None, None],
        distance=torch.tensor([-3.0, 1, 2, 4, 9, 9, 9])[:, None, None],
        lesion=torch.tensor([0, 0, 0, 0.4, 0, 0, 0.8])[:, None, None],
        image=torch.ones(3, 7, 1, 1),
    )


def test_truth_names_tissues_and_lesions() -> None:
    assert synthetic.truth(sample()).ravel().tolist() == [0, 3, 1, 2, 3, 1, 7]


def test_fluid_outside_the_brain_and_a_lesion_that_is_not_drawn_are_not_lesions() -> None:
    one = sample()
    one.labels[1], one.labels[6] = POSITION[24], POSITION[LEFT_LESION]
    one.lesion[6] = 0
    one.distance[1] = -0.5
    assert synthetic.truth(one).ravel().tolist() == [0, 0, 1, 2, 3, 1, 2]


def test_protocols_alternate_and_every_head_has_every_set_of_contrasts() -> None:
    sessions = synthetic.sessions_of(("17", "18", "19"))
    assert len(sessions) == 3 * len(synthetic.SETS) == len({session.subject for session in sessions})
    protocols = {session.head: session.protocol for session in sessions}
    assert protocols["17"] == protocols["19"] != protocols["18"]


@pytest.fixture
def result(tmp_path: Path) -> tuple[synthetic.Session, Path, Path]:
    """Truth of a head, and a result that misses one of two lesions and half of the grey matter."""
    session = synthetic.Session("17", "3D, 1 mm", ("T1w",))
    real = np.full((10, 10, 10), 3, np.uint8)
    real[:, :4], real[:, 4:8] = 1, 2
    real[1, 5, 5] = real[8, 5, 5] = 7
    found = real.copy()
    found[:, 2:4] = 3
    found[8, 5, 5] = 2
    truth = tmp_path / "bids/derivatives/truth/head-17_dseg.nii.gz"
    anat = tmp_path / "out" / session.subject / "anat"
    for folder in (truth.parent, anat):
        folder.mkdir(parents=True)
    nib.Nifti1Image(real, np.eye(4)).to_filename(truth)
    for name, data in (("seg-tissue_dseg", found), ("desc-brain_mask", (found > 0).astype(np.uint8))):
        nib.Nifti1Image(data, np.eye(4)).to_filename(anat / f"{session.subject}_space-orig_{name}.nii.gz")
    return session, tmp_path / "bids", tmp_path / "out"


def test_a_result_is_compared_with_what_was_drawn(result: tuple[synthetic.Session, Path, Path]) -> None:
    row = synthetic.compare(*result)
    assert row["brain"] == 1 and row["gm_ratio"] == 0.5
    assert row["gm"] == pytest.approx(2 * 200 / 600)
    assert row["lesion"] == pytest.approx(2 / 3) and (row["lesion_tpr"], row["lesion_ppv"]) == (0.5, 1)
    assert (row["true_ml"], row["found_ml"]) == (0.002, 0.001)


def test_a_session_without_a_result_is_a_row_of_nothing(result: tuple[synthetic.Session, Path, Path]) -> None:
    session, dataset, _ = result
    assert np.isnan(synthetic.compare(session, dataset, dataset / "nowhere")["brain"])


def test_the_table_gives_means_and_the_worst_mask(result: tuple[synthetic.Session, Path, Path]) -> None:
    row = synthetic.compare(*result)
    table = pd.DataFrame([row, row | {"head": "19", "brain": 0.5}])
    assert "| 3D, 1 mm | T1w | 0.750 (0.500) | 0.667 |" in synthetic.as_markdown(table)


def test_a_seed_leaves_out_what_the_models_are_less_sure_of(result: tuple[synthetic.Session, Path, Path]) -> None:
    session, dataset, derivatives = result
    session = synthetic.Session(session.head, session.protocol, ("FLAIR",))
    truth, probability = np.zeros((2, 30, 10, 10), np.float32)
    truth[2:6, 5, 5] = truth[12:16, 5, 5] = 7
    probability[2:6, 5, 5], probability[12:16, 5, 5], probability[22:26, 5, 5] = 0.9, 0.57, 0.62  # the last: false
    anat = derivatives / session.subject / "anat"
    anat.mkdir(parents=True)
    nib.Nifti1Image(truth.astype(np.uint8), np.eye(4)).to_filename(dataset / "derivatives/truth/head-17_dseg.nii.gz")
    path = anat / f"{session.subject}_space-orig_label-lesion_probseg.nii.gz"
    nib.Nifti1Image(probability, np.eye(4)).to_filename(path)
    text = synthetic.seeds_as_markdown(synthetic.lesion_seeds([session], dataset, derivatives))
    assert "| 3D, 1 mm | 0.55 | 1.00, 0.67, 0.800 | 0.800 |" in text
    assert "| 3D, 1 mm | 0.6 | 0.50, 0.50, 0.500 | 0.500 |" in text
    assert "| 3D, 1 mm | 0.65 | 0.50, 1.00, 0.667 | 0.667 |" in text

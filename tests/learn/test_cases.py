from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from bidsapp.errors import AppError
from bidsapp.learn import cases
from bidsapp.learn.cases import Stored, _in_template, load_case, synthetic_doubles
from bidsapp.learn.lesion_masks import BRAIN_MM, ORIGIN_MM, SHAPE
from bidsapp.models import segment


def test_a_case_is_what_the_network_would_be_shown(case_folder: Path) -> None:
    case = load_case(case_folder)
    flair = case.channels[2].astype(float)
    assert case.contrasts == ("FLAIR",) and not case.channels[:2].any()
    in_brain = flair[tuple(case.brain.T)]
    assert abs(in_brain.mean()) < 0.05 and abs(in_brain.std() - 1) < 0.05  # bar the values kept below 5
    assert flair[case.labels > 0].mean() > 2
    assert all(-1.4 < axis[0] < -0.9 and 0.9 < axis[-1] < 1.4 for axis in case.places)
    assert len(case.foreground) == (case.labels > 0).sum() > 0


def test_a_model_is_shown_as_much_as_its_card_says(case_folder: Path) -> None:
    stored = Stored.read(case_folder)
    mask, within, _ = stored.brain()
    wide = dataclasses.replace(segment.packaged(), card={**segment.packaged().card, "surround_mm": 4.0})
    _, wider, _ = stored.brain(wide)
    assert mask.sum() < within.sum() < wider.sum()
    assert not (within & ~wider).any()


def test_labels_go_to_the_work_grid_and_back(case_folder: Path) -> None:
    stored = Stored.read(case_folder)
    drawn = np.asarray(stored.drawn().dataobj)
    back = stored.as_drawn((stored.labels() > 0).astype(np.float32)) >= 0.5
    assert abs(int((stored.labels() > 0).sum()) - 3 * int(drawn.sum())) <= 64  # at most half a slice at either end
    assert np.array_equal(back, drawn > 0)


def test_a_folder_without_a_case(tmp_path: Path) -> None:
    with pytest.raises(AppError, match="no prepared case"):
        load_case(tmp_path)


def test_a_missing_image_is_named(case_folder: Path) -> None:
    (case_folder / "mask.nii").unlink()
    with pytest.raises(AppError, match=r"mask\.nii is missing"):
        load_case(case_folder)


def test_a_case_whose_lesions_are_lost_in_the_template_lends_its_anatomy_alone(
    case_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "_head", lambda *_: {})
    monkeypatch.setattr(cases.heads, "assemble", lambda parts, names, _: names)
    case = load_case(case_folder)
    lost = dataclasses.replace(case, name="lost", labels=np.zeros_like(case.labels))
    found = synthetic_doubles([lost, case], device="cpu")
    assert found is not None
    assert found[0] == ("lost", "sub-01") and len(found[1]) == 1 and found[1].masks.any()
    assert synthetic_doubles([lost], device="cpu") is None


def test_lesions_keep_their_place_in_the_brain_in_the_template(case_folder: Path) -> None:
    case = load_case(case_folder)
    mask = _in_template(case)
    assert mask.shape == SHAPE
    middle = (np.argwhere(mask).mean(0) + ORIGIN_MM - BRAIN_MM.mean(0)) / ((BRAIN_MM[1] - BRAIN_MM[0]) / 2)
    voxels = np.argwhere(case.labels).mean(0)
    expected = [np.interp(v, np.arange(len(axis)), axis) for v, axis in zip(voxels, case.places, strict=True)]
    np.testing.assert_allclose(middle, expected, atol=0.03)

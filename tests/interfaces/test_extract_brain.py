"""The node that finds the brain: a scan that is stripped already keeps its own border."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from nipype.interfaces.base import isdefined
from scipy import ndimage

from bidsapp.errors import InputError
from bidsapp.image.template import load_template, render_template
from bidsapp.interfaces.files import save
from bidsapp.interfaces.preproc import CheckBrain, ExtractBrain, FindBrain
from bidsapp.models import brain


def mask_of(image: nib.Nifti1Image, folder: str) -> np.ndarray:
    node = ExtractBrain(in_file=save(image, folder, "scan"), contrast="FLAIR", method="network", device="cpu")
    return np.asarray(nib.load(node.run(cwd=folder).outputs.mask_file).dataobj) > 0


@pytest.fixture
def head_and_brain() -> tuple[nib.Nifti1Image, nib.Nifti1Image, np.ndarray]:
    """The template's brain within a dark skull and a bright scalp; the brain alone; where it is."""
    rendered, inside = render_template("FLAIR", resolution_mm=2), np.asarray(load_template(2).mask.dataobj) > 0
    data = np.where(inside, 500 * rendered.get_fdata() + 50, 0).astype(np.float32)
    away = ndimage.distance_transform_edt(~inside, sampling=2)
    head = data + np.where((away > 6) & (away < 14), 400, 0).astype(np.float32)
    return nib.Nifti1Image(head, rendered.affine), nib.Nifti1Image(data, rendered.affine), inside


def test_a_stripped_scan_is_its_own_mask_and_a_head_is_shown_to_the_network(
    tmp_path, monkeypatch, head_and_brain
) -> None:
    head, stripped, inside = head_and_brain
    asked = []

    def find(image: np.ndarray, *, voxel_size_mm: tuple[float, float, float], device: str) -> np.ndarray:
        asked.append(voxel_size_mm)
        return np.full(image.shape, 0.75, np.float32)

    monkeypatch.setattr(brain, "find_brain", find)
    np.testing.assert_array_equal(mask_of(stripped, str(tmp_path)), ndimage.binary_fill_holes(inside))
    assert not asked
    assert mask_of(head, str(tmp_path)).all() and asked == [(2.0, 2.0, 2.0)]


def test_a_head_whose_mask_the_network_contradicts_gets_the_networks_mask(
    tmp_path, monkeypatch, head_and_brain
) -> None:
    head, stripped, inside = head_and_brain
    monkeypatch.setattr(brain, "find_brain", lambda image, **_: inside.astype(np.float32))
    wrong = np.zeros(inside.shape, np.uint8)
    wrong[:10] = 1
    given = save(nib.Nifti1Image(wrong, head.affine), str(tmp_path), "given")

    def run(image: nib.Nifti1Image) -> tuple[np.ndarray, str]:
        folders = [tmp_path / f"{step}_{id(image)}" for step in ("second", "checked")]
        for folder in folders:
            folder.mkdir()
        second = FindBrain(in_file=save(image, str(tmp_path), "scan")).run(cwd=str(folders[0])).outputs
        check = CheckBrain(in_file=given, wrong=second.wrong, notes=["small GPU", second.note, "small GPU"])
        if isdefined(second.mask_file):
            check.inputs.second_file = second.mask_file
        found = check.run(cwd=str(folders[1])).outputs
        return np.asarray(nib.load(found.mask_file).dataobj) > 0, found.note

    found, note = run(head)
    np.testing.assert_array_equal(found, inside)
    assert "two methods disagree" in note and note.count("small GPU") == 1
    kept, note = run(stripped)  # nothing to check: whoever stripped it has decided
    np.testing.assert_array_equal(kept, wrong > 0)
    assert note == "small GPU"


def test_a_check_that_finds_no_brain_is_told_and_changes_nothing(tmp_path, monkeypatch, head_and_brain) -> None:
    head, _, inside = head_and_brain
    monkeypatch.setattr(brain, "find_brain", lambda image, **_: np.ones(image.shape, np.float32))
    second = FindBrain(in_file=save(head, str(tmp_path), "scan")).run(cwd=str(tmp_path)).outputs
    assert not isdefined(second.mask_file) and second.wrong.endswith("l, no brain")
    given = save(nib.Nifti1Image(inside.astype(np.uint8), head.affine), str(tmp_path), "given")
    found = CheckBrain(in_file=given, wrong=second.wrong).run(cwd=str(tmp_path)).outputs
    np.testing.assert_array_equal(np.asarray(nib.load(found.mask_file).dataobj) > 0, inside)
    assert second.wrong in found.note


@pytest.mark.parametrize(
    ("answer", "check", "taken", "said"),
    [
        ("the brain", True, "network's", ""),
        ("all of it", True, "template's", "the network found "),
        ("nothing", True, "template's", "the network found no brain; the template's brain mask was taken"),
        ("all of it", False, "network's", ""),
    ],
)
def test_the_template_stands_in_where_the_network_finds_no_brain(
    tmp_path, monkeypatch, head_and_brain, answer: str, check: bool, taken: str, said: str
) -> None:
    head, _, inside = head_and_brain
    other = np.roll(inside, 3, axis=0)
    answers = {"the brain": inside, "all of it": np.ones(inside.shape, bool)}

    def find(image: np.ndarray, **_: object) -> np.ndarray:
        if answer == "nothing":
            raise InputError("no brain was found")
        return answers[answer].astype(np.float32)

    monkeypatch.setattr(brain, "find_brain", find)
    template = nib.Nifti1Image(other.astype(np.uint8), head.affine)
    monkeypatch.setattr("bidsapp.image.brain.extract_brain_by_template", lambda img, **_: template)
    scan = save(head, str(tmp_path), "scan")
    run = ExtractBrain(in_file=scan, contrast="FLAIR", method="network", check=check).run(cwd=str(tmp_path))
    found = np.asarray(nib.load(run.outputs.mask_file).dataobj) > 0
    np.testing.assert_array_equal(found, other if taken == "template's" else answers[answer])
    assert run.outputs.note.startswith(said) and bool(run.outputs.note) == bool(said)


def test_a_network_asked_for_by_name_that_finds_nothing_fails(tmp_path, monkeypatch, head_and_brain) -> None:
    def find(image: np.ndarray, **_: object) -> np.ndarray:
        raise InputError("no brain was found in this image")

    monkeypatch.setattr(brain, "find_brain", find)
    scan = save(head_and_brain[0], str(tmp_path), "scan")
    with pytest.raises(InputError, match="no brain was found in this image"):
        ExtractBrain(in_file=scan, contrast="FLAIR", method="network").run(cwd=str(tmp_path))

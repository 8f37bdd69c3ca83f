from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bidsapp.learn.anatomy import LEFT_LESION, RIGHT_LESION
from training import material
from training.config import TrainConfig
from training.material import gather
from training.patients import CSF, GM, OUTSIDE, WM, Atlas, _majority, by_tissue, label_map, patient_names

SHAPE, MIDDLE = (96, 100, 104), (48, 50, 52)


def away(centre: tuple[int, int, int] = MIDDLE) -> np.ndarray:
    """Distance of each voxel from a point."""
    return np.sqrt(sum((axis - c) ** 2 for axis, c in zip(np.indices(SHAPE), centre, strict=True)))


def balls(radii: tuple[float, float, float], centre: tuple[int, int, int] = MIDDLE) -> np.ndarray:
    """Tissue classes of a made-up brain: white matter in grey matter in fluid, a ventricle in the middle."""
    out = np.full(SHAPE, OUTSIDE, np.uint8)
    for tissue, radius in zip((CSF, GM, WM, CSF), (*radii, 8), strict=True):
        out[away(centre) < radius] = tissue
    return out


def head(classes: np.ndarray) -> np.ndarray:
    """FreeSurfer's labels of such a brain, left where x is small, and bone around it."""
    left = np.indices(SHAPE)[0] < MIDDLE[0]
    out = np.where(classes == GM, np.where(left, 3, 42), 0)
    out = np.where(classes == WM, np.where(left, 2, 41), out)
    out = np.where(classes == CSF, np.where(away() < 10, np.where(left, 4, 43), 24), out)
    return np.where((classes == OUTSIDE) & (away() < 46), 515, out).astype(np.int16)


def image(data: np.ndarray) -> nib.Nifti1Image:
    return nib.Nifti1Image(data, np.eye(4))


def test_each_voxel_takes_the_nearest_label_that_its_class_allows() -> None:
    labels = np.array([515, 24, 3, 2, 2, 10, 4, 43, 41])[:, None, None]
    classes = np.array([OUTSIDE, GM, GM, CSF, WM, WM, CSF, CSF, GM])[:, None, None]
    assert by_tissue(labels, classes).ravel().tolist() == [515, 3, 3, 24, 2, 10, 4, 43, 10]


def test_the_majority_decides_and_else_the_first() -> None:
    votes = [np.array([1, 1, 1, 2]), np.array([1, 2, 2, 3]), np.array([2, 2, 3, 4])]
    assert _majority(votes).tolist() == [1, 2, 1, 2]


def test_a_patient_gets_the_structures_of_the_heads_on_its_own_tissue() -> None:
    patient = balls((40, 34, 26), centre=(50, 52, 50))
    lesion = np.zeros(patient.shape, np.uint8)
    lesion[36:40, 50:54, 48:52] = 1
    lesion[62:66, 50:54, 48:52] = 1
    atlases = [Atlas.of(image(head(balls((42, 36, 28))))), Atlas.of(image(head(balls((39, 34, 27)))))]
    found = np.asarray(label_map(image(patient), image(lesion), atlases).dataobj)
    assert np.isin(found[patient == GM], [3, 42]).all()
    assert np.isin(found[(patient == WM) & (lesion == 0)], [2, 41]).all()
    assert set(np.unique(found[lesion > 0])) == {LEFT_LESION, RIGHT_LESION}
    assert (found[36:40, 50:54, 48:52] == LEFT_LESION).all()
    assert (found[62:66, 50:54, 48:52] == RIGHT_LESION).all()
    assert np.isin(found[away((50, 52, 50)) < 5], [4, 43]).all()
    assert not np.isin(found[patient == OUTSIDE], [2, 3, 4, 24, 41, 42, 43]).any()


def test_a_folder_without_patients_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no patients"):
        patient_names(tmp_path)


def test_patients_are_trained_on_beside_the_heads_but_not_validated_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, name in (("heads", "01"), ("heads", "17"), ("maps", "anna")):
        (tmp_path / folder).mkdir(exist_ok=True)
        nib.save(image(head(balls((42, 36, 28)))), tmp_path / folder / f"{name}.nii.gz")

    def make(folder: Path, heads: Path, names: tuple[str, ...], *, out: Path) -> tuple[str, ...]:
        assert (folder, heads, names) == (tmp_path / "patients", tmp_path / "heads", ("01",))
        out.mkdir(parents=True)
        (tmp_path / "maps/anna.nii.gz").rename(out / "anna.nii.gz")
        return ("anna",)

    monkeypatch.setattr(material, "make_label_maps", make)
    config = TrainConfig(
        name="x", version="0", task="brain", heads=str(tmp_path / "heads"), patients=str(tmp_path / "patients"),
        train_heads=("01",), held_out_heads=("17",),
    )  # fmt: skip
    folder = tmp_path / "runs/x-0"
    assert gather(config, folder, held_out=False).heads.names == ("01", "anna")
    assert gather(config, folder, held_out=True).heads.names == ("17",)

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bidsapp import labels
from demo import make_dataset
from demo.compare import compare
from demo.head import build_head, grow_lesions, render
from demo.scanner import Protocol, Shape, add_artefacts, draw_pose, field_of_view, sample, store

FIRST = "sub-01/ses-1/anat/sub-01_ses-1"
STRAIGHT = Shape(np.eye(3), np.zeros((3, 9, 9, 9), np.float32))


@pytest.fixture(scope="module")
def head():
    return build_head(4)


def _errors(folder: Path) -> list[str]:
    validator = Path(sys.executable).with_name("bids-validator-deno")
    run = subprocess.run([validator, folder, "--format", "json"], capture_output=True, text=True, check=False)
    issues = json.loads(run.stdout)["issues"]["issues"]
    return [issue["code"] for issue in issues if issue["severity"] == "error"]


def test_dataset_and_truth_are_valid_bids(demo_dataset):
    assert _errors(demo_dataset) == []
    assert _errors(demo_dataset / "derivatives" / "truth") == []


def test_validator_sees_what_is_wrong(demo_dataset, tmp_path):
    broken = shutil.copytree(demo_dataset, tmp_path / "broken")
    (broken / "dataset_description.json").unlink()
    assert _errors(broken)


def test_scans_of_every_session(demo_dataset):
    names = sorted(path.name for path in demo_dataset.glob("sub-*/ses-*/anat/*.nii.gz"))
    assert names == [
        "sub-01_ses-1_FLAIR.nii.gz",
        "sub-01_ses-1_T1w.nii.gz",
        "sub-01_ses-1_T2w.nii.gz",
        "sub-01_ses-2_FLAIR.nii.gz",
        "sub-01_ses-2_T1w.nii.gz",
        "sub-02_ses-1_FLAIR.nii.gz",
    ]
    participants = pd.read_csv(demo_dataset / "participants.tsv", sep="\t")
    assert list(participants["participant_id"]) == ["sub-01", "sub-02"]
    assert participants["age"].between(20, 64).all()


def test_orientations_differ_and_both_affines_agree(demo_dataset):
    axes = {}
    for contrast in ("T1w", "T2w", "FLAIR"):
        img = nib.load(demo_dataset / f"{FIRST}_{contrast}.nii.gz")
        axes[contrast] = "".join(nib.aff2axcodes(img.affine))
        np.testing.assert_allclose(img.get_qform(), img.get_sform(), atol=1e-4)
        assert int(img.header["qform_code"]) == int(img.header["sform_code"]) == 1
    assert axes == {"T1w": "PSR", "T2w": "LPS", "FLAIR": "LAS"}


def test_truth_lies_on_the_reference_and_its_volume_is_told(demo_dataset):
    scan = nib.load(demo_dataset / f"{FIRST}_T1w.nii.gz")
    stem = demo_dataset / "derivatives" / "truth" / f"{FIRST}_space-orig"
    lesion = nib.load(f"{stem}_label-lesion_mask.nii.gz")
    tissue = nib.load(f"{stem}_seg-tissue_dseg.nii.gz")
    np.testing.assert_allclose(lesion.affine, scan.affine, atol=1e-4)
    assert lesion.shape == tissue.shape == scan.shape
    voxels = int(np.asarray(lesion.dataobj).sum())
    told = json.loads(Path(f"{stem}_label-lesion_mask.json").read_text())["LesionVolume_mm3"]
    assert told == pytest.approx(voxels * 8)
    assert 1000 < told < 20000
    assert int((np.asarray(tissue.dataobj) == labels.LESION.index).sum()) == voxels


def test_contrasts_are_those_of_the_tissues(demo_dataset):
    stem = demo_dataset / "derivatives" / "truth" / f"{FIRST}_space-orig"
    tissue = np.asarray(nib.load(f"{stem}_seg-tissue_dseg.nii.gz").dataobj)
    t1 = np.asarray(nib.load(demo_dataset / f"{FIRST}_T1w.nii.gz").dataobj)
    gm, wm, csf, lesion = (np.median(t1[tissue == index]) for index in (1, 2, 3, 7))
    assert csf < gm < wm
    assert lesion < wm


def test_lesions_grow_and_one_appears(head):
    before = grow_lesions(head, number=4, rng=np.random.default_rng(0))
    after = grow_lesions(head, number=5, rng=np.random.default_rng(0), growth=1.2)
    np.testing.assert_array_equal(before.centers, after.centers[:4])
    assert after.fraction.sum() > 1.2 * before.fraction.sum()
    assert (after.fraction >= before.fraction - 1e-6).mean() > 0.999


def test_lesions_are_in_white_matter(head, rng):
    lesions = grow_lesions(head, number=6, rng=rng)
    core = lesions.fraction > 0.5
    assert core.any()
    assert head.tissues[1][core].mean() > 0.8


def test_no_lesions(head, rng):
    assert not grow_lesions(head, number=0, rng=rng).fraction.any()


def test_lesions_are_bright_on_flair_and_dark_on_t1w(head):
    with_lesions = grow_lesions(head, number=6, rng=np.random.default_rng(0))
    without = grow_lesions(head, number=0, rng=np.random.default_rng(0))
    core = with_lesions.fraction > 0.9
    for contrast, sign in (("T1w", -1), ("T2w", 1), ("FLAIR", 1)):
        one = render(head, with_lesions, contrast, np.random.default_rng(1))
        other = render(head, without, contrast, np.random.default_rng(1))
        assert ((one - other)[core] * sign > 0.1).all()
        np.testing.assert_array_equal(one[with_lesions.fraction == 0], other[with_lesions.fraction == 0])


def test_sampling_without_movement_gives_the_same_voxels(head):
    grid = field_of_view(head, Protocol((4, 4, 4), "RAS"))
    assert grid.shape == head.outside.shape
    data = np.arange(head.outside.size, dtype=np.float32).reshape(head.outside.shape) % 97
    got = sample(data, head, shape=STRAIGHT, pose=np.eye(4), grid=grid)
    np.testing.assert_allclose(got, data, atol=0.05)


def test_pose_moves_the_head_the_right_way(head):
    data = np.zeros(head.outside.shape, np.float32)
    data[20, 25, 30] = 1
    grid = field_of_view(head, Protocol((4, 4, 4), "RAS"))
    pose = np.eye(4)
    pose[:3, 3] = (8, -4, 12)  # mm: two voxels to the right, one back, three up
    got = sample(data, head, shape=STRAIGHT, pose=pose, grid=grid)
    assert np.unravel_index(got.argmax(), got.shape) == (22, 24, 33)


def test_poses_are_rigid(rng):
    pose = draw_pose(rng, degrees=6, mm=5)
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
    assert np.abs(pose[:3, 3]).max() <= 5


def test_noise_is_rician_in_air(rng):
    # A Rayleigh variable of scale s has mean s * sqrt(pi / 2).
    noisy = add_artefacts(np.zeros((40, 41, 42), np.float32), rng, noise=0.02)
    assert noisy.mean() == pytest.approx(0.02 * np.sqrt(np.pi / 2), rel=0.02)


def test_bias_is_smooth_and_as_strong_as_asked(rng):
    field = np.log(add_artefacts(np.ones((20, 21, 22), np.float32), rng, noise=0, bias=0.15))
    assert field.std() == pytest.approx(0.15, rel=0.01)
    assert np.abs(np.diff(field, axis=0)).max() < 0.3


def test_stored_axes_keep_the_world(rng):
    grid = nib.Nifti1Image(np.zeros((7, 8, 9), np.uint8), np.diag([2, 2, 3, 1.0]))
    data = rng.random((7, 8, 9)).astype(np.float32)
    img = store(data, grid, "PSR")
    assert nib.aff2axcodes(img.affine) == ("P", "S", "R")
    index = np.linalg.inv(img.affine) @ [2 * 3, 2 * 5, 3 * 6, 1]
    assert img.get_fdata()[tuple(np.round(index[:3]).astype(int))] == pytest.approx(data[3, 5, 6])


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    def digest(name: str, seed: int) -> dict[str, str]:
        root = make_dataset(tmp_path / name, n_subjects=2, voxel_size=4, seed=seed)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    first, again, other = digest("a", 1), digest("b", 1), digest("c", 2)
    assert first == again
    scans = [name for name in first if name.endswith("w.nii.gz")]
    assert scans
    assert all(first[name] != other[name] for name in scans)


def test_does_not_delete_what_it_did_not_write(tmp_path):
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(FileExistsError, match="no demo dataset"):
        make_dataset(tmp_path)
    assert (tmp_path / "thesis.docx").exists()


@pytest.mark.parametrize(("name", "value"), [("n_subjects", 0), ("voxel_size", 0.5)])
def test_refuses(tmp_path, name, value):
    with pytest.raises(ValueError, match=str(value)):
        make_dataset(tmp_path / "out", **{name: value})


def test_comparison_with_the_truth_itself_and_with_nothing(demo_dataset, tmp_path):
    truth = demo_dataset / "derivatives" / "truth"
    rows, missing = compare(demo_dataset, truth)
    assert missing == []
    assert [row[0] for row in rows] == ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"]
    assert rows[0][1:6] == ("1.00",) * 5
    assert rows[0][6] == rows[0][7] != "0.0"
    assert compare(demo_dataset, tmp_path) == ([], ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"])


def test_comparison_sees_a_missed_lesion(demo_dataset, tmp_path):
    truth = demo_dataset / "derivatives" / "truth"
    worse = shutil.copytree(truth, tmp_path / "worse")
    path = worse / f"{FIRST}_space-orig_label-lesion_mask.nii.gz"
    img = nib.load(path)
    nib.save(nib.Nifti1Image(np.zeros(img.shape, np.uint8), img.affine), path)
    rows, _ = compare(demo_dataset, worse)
    assert rows[0][5] == "0.00"
    assert rows[0][7] == "0.0"

"""The benchmark's own steps: baseline, resampling, table, and the direction of the truth's transforms."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from benchmarks import accuracy
from bidsapp.image.itk import read_itk_affine

DATA = Path(__file__).resolve().parents[2] / "../shared/data"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_resample_mask_moves_by_whole_voxels():
    mask = np.zeros((7, 8, 9), np.uint8)
    mask[2, 3, 4] = 1
    image = nib.Nifti1Image(mask, np.diag([2.0, 2, 2, 1]))
    grid = nib.Nifti1Image(np.zeros((7, 8, 9), np.uint8), np.diag([2.0, 2, 2, 1]))
    shift = np.eye(4)
    shift[0, 3] = 2.0  # a point of the grid lies 2 mm further in the mask
    moved = accuracy.resample_mask(image, grid, shift)
    assert np.argwhere(moved).tolist() == [[1, 3, 4]]


def test_baseline_finds_bright_spots_deep_inside_only(rng):
    shape = (40, 41, 42)
    brain = np.zeros(shape, bool)
    brain[1:-1, 1:-1, 1:-1] = True
    truth = np.zeros(shape, bool)
    truth[18:22, 18:22, 18:22] = True
    flair = rng.normal(100, 5, shape)
    flair[truth] = 160
    flair[2:4, 2:4, 2:4] = 160  # at the surface: never counted
    found, z = accuracy.best_plain_threshold(flair, brain, truth, voxel_size_mm=np.ones(3))
    assert z in accuracy.BASELINE_Z
    assert found[truth].all() and not found[2:4, 2:4, 2:4].any()


def test_verdicts_and_markdown():
    mask = np.zeros((7, 8, 9), bool)
    mask[1:3] = True
    shifted = np.roll(mask, 1, axis=0)
    common = {"dataset": "d", "structure": "s", "contrasts": "T1w", "reference": mask, "voxel_size_mm": np.ones(3)}
    rows = [
        accuracy.Case(case="a", prediction=mask, threshold=0.9, **common).row(),
        accuracy.Case(case="b", prediction=shifted, threshold=0.9, **common).row(),
        accuracy.Case(case="c", prediction=shifted, **common).row(),
        accuracy.Case(case="d", prediction=shifted, threshold=0.9, sound=False, **common).row(),
    ]
    assert [row["verdict"] for row in rows] == ["PASS", "FAIL", "", "reference unsound"]
    lines = accuracy.as_markdown(pd.DataFrame(rows).reindex(columns=accuracy.COLUMNS)).splitlines()
    assert len(lines) == 6
    assert "| a | s | bidsapp | T1w | 1.000 |" in lines[2]
    assert "| 0.500 |" in lines[3] and lines[3].endswith("| 0.90 | FAIL |")


def test_nothing_written_is_missing_not_passed(tmp_path, capsys):
    data = tmp_path / "data"
    anat = data / "bids_ms_longitudinal/sub-1/ses-1/anat"
    anat.mkdir(parents=True)
    (anat / "sub-1_ses-1_FLAIR.nii.gz").touch()
    truth = data / "ms_longitudinal_truth/sub-1"
    truth.mkdir(parents=True)
    nib.save(
        nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)), truth / "sub-1_space-common_desc-brain_mask.nii.gz"
    )
    code = accuracy.main(["--data", str(data), "--out", str(tmp_path / "out"), "--only", "brain", "--no-run"])
    assert code == 1
    assert "MISSING" in capsys.readouterr().out


def test_tissue_lists_do_not_overlap():
    assert not set(accuracy.FREESURFER_GM) & set(accuracy.FREESURFER_WM)


def test_fewer_contrasts_links_only_these(tmp_path):
    anat = tmp_path / "full/sub-1/anat"
    anat.mkdir(parents=True)
    for name in ("T1w", "T2w", "FLAIR"):
        (anat / f"sub-1_{name}.nii.gz").write_text(name)
    (tmp_path / "full/dataset_description.json").write_text("{}")
    target = accuracy.fewer_contrasts(tmp_path / "full", tmp_path / "few", ("FLAIR",))
    accuracy.fewer_contrasts(tmp_path / "full", tmp_path / "few", ("FLAIR",))  # again: no error
    assert sorted(path.name for path in target.rglob("*.*") if path.is_file()) == [
        "dataset_description.json",
        "sub-1_FLAIR.nii.gz",
    ]


@pytest.mark.slow
def test_direction_of_the_transforms_to_common_space():
    """Read as ITK transforms (common space to FLAIR), the two sessions' FLAIRs fall upon one another."""
    if not DATA.is_dir():
        pytest.skip("the real scans (../shared/data) are not here")
    truth_dir = DATA / "ms_longitudinal_truth/sub-03"
    common = nib.load(truth_dir / "sub-03_space-common_desc-brain_mask.nii.gz")
    step = np.diag([4.0, 4, 1, 1])
    coarse = common.affine @ step
    shape = np.array(common.shape) // (4, 4, 1)
    near = ndimage.binary_dilation(np.asarray(common.dataobj)[::4, ::4][: shape[0], : shape[1]] > 0, iterations=2)

    def likeness(invert: bool) -> float:
        moved = []
        for number in (1, 2):
            flair = nib.load(DATA / f"bids_ms_longitudinal/sub-03/ses-{number}/anat/sub-03_ses-{number}_FLAIR.nii.gz")
            to_flair = read_itk_affine(truth_dir / f"study{number}_FLAIR_to_common_space.txt")
            matrix = np.linalg.inv(flair.affine) @ (np.linalg.inv(to_flair) if invert else to_flair) @ coarse
            data = np.asarray(flair.dataobj, dtype=np.float32)
            moved.append(ndimage.affine_transform(data, matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=1))
        return float(np.corrcoef(moved[0][near], moved[1][near])[0, 1])

    assert likeness(invert=False) > 0.8
    assert likeness(invert=True) < 0.2


def test_consistency_of_the_same_brain(tmp_path):
    """TIV 1000 and 1040 ml: 40 over 1020 is 3.9 %, above 3; grey matter 500 and 510: 2 %, below 6; WM not measured."""
    for number, (tiv, gm) in enumerate(((1_000_000, 500_000), (1_040_000, 510_000)), start=1):
        anat = tmp_path / f"bids_ms_longitudinal/sub-01/ses-{number}/anat"
        anat.mkdir(parents=True)
        (anat / f"sub-01_ses-{number}_volumes.tsv").write_text(f"tiv_mm3\tgm_mm3\twm_mm3\n{tiv}\t{gm}\tn/a\n")
    places = accuracy.Places(tmp_path, tmp_path, run_app=False, app_options=())
    table = accuracy.consistency(places, ["brain", "mni"])
    assert table["verdict"].tolist() == ["FAIL", "PASS", "", "MISSING"]
    assert table["measured"][0] == pytest.approx(100 * 40 / 1020)
    assert "(1000, 1040 ml)" in table["what"][0]

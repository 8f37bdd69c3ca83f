"""A small folder of derivatives, written by hand: the report reads files only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bidsapp.labels import CSF, GM, LESION, WM

PNG_1X1 = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
)
HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"

VOLUMES = {
    "tiv_mm3": "1500000",
    "brain_mask_mm3": "1200000",
    "brain_mm3": "1010000",
    "gm_mm3": "600000",
    "wm_mm3": "400000",
    "csf_mm3": "190000",
    "lesion_mm3": "10000",
    "brain_parenchymal_fraction": "0.84167",
    "lesion_load_percent_tiv": "0.66667",
    "lesion_load_percent_wm": "2.439",
    "lesion_count": "25",
}
FLAIR_ONLY = VOLUMES | {"gm_mm3": "n/a", "wm_mm3": "n/a", "lesion_load_percent_wm": "n/a"}
QC = {"cnr": "2.1", "gm_to_wm": "1.46", "mask_components": "1", "flags": "none"}
WHY = "GM and WM look alike on FLAIR; a T1w or T2w scan is needed"

Write = Callable[..., Path]


@pytest.fixture
def write_session(tmp_path: Path) -> Write:
    """Write one session below ``tmp_path``, as the app does; returns its folder."""

    def write(
        subject: str,
        session: str | None = None,
        *,
        volumes: dict[str, str] = VOLUMES,
        qc: dict[str, str] = QC,
        lesions: int = 25,
        load: dict[str, str] | None = None,
        cortex: dict[str, str] | None = None,
        pictures: tuple[str, ...] = ("brain", "tissue", "lesion", "registration"),
        **record: Any,
    ) -> Path:
        name = f"sub-{subject}" + (f"_ses-{session}" if session else "")
        folder = tmp_path / f"sub-{subject}" / (f"ses-{session}" if session else "") / "anat"
        folder.mkdir(parents=True)
        who = {"participant_id": f"sub-{subject}"} | ({"session_id": f"ses-{session}"} if session else {})
        _table(folder / f"{name}_volumes", [who | volumes])
        _table(folder / f"{name}_qc", [who | qc])
        _table(folder / f"{name}_lesions", [_lesion(number + 1, lesions) for number in range(lesions)])
        if load is not None:
            _table(folder / f"{name}_load", [who | load])
        if cortex is not None:
            _table(folder / f"{name}_cortex", [who | cortex])
        figures = tmp_path / f"sub-{subject}" / "figures"
        figures.mkdir(exist_ok=True)
        for picture in pictures:
            for kind in ("image", "overlay"):
                (figures / f"{name}_desc-{picture}_{kind}.png").write_bytes(PNG_1X1)
        (folder / f"{name}_provenance.json").write_text(json.dumps(_record(subject, session, name) | record))
        return folder

    return write


def _record(subject: str, session: str | None, name: str) -> dict[str, Any]:
    where = f"sub-{subject}/" + (f"ses-{session}/" if session else "") + "anat"
    return {
        "version": "0.1.0",
        "subject": subject,
        "session": session,
        "reference": "T1w",
        "contrasts": ["T1w", "FLAIR"],
        "inputs": [
            {
                "contrast": contrast,
                "file": f"{where}/{name}_{contrast}.nii.gz",
                "chosen_because": f"the only {contrast}",
                "not_chosen": [],
                "sha256": "0" * 64,
                "shape": [7, 8, 9],
                "voxel_size_mm": [0.9, 0.9, 3.0],
                "orientation": "LPS",
                "notes": ["a note of the reader"],
            }
            for contrast in ("T1w", "FLAIR")
        ],
        "options": {
            "brain_extraction": "auto",
            "tissue_model": "mixture",
            "lesion_model": "outlier",
            "normalization": "zscore",
            "denoise": False,
        },
        "methods": {"brain_extraction": "deepbet", "tissue_model": "mixture", "lesion_model": "outlier"},
        "not_measured": {},
        "warnings": [],
        "outputs": {f"{where}/{name}_volumes.tsv": 200, f"{where}/{name}_gone.nii.gz": 3_400_000},
    }


def _lesion(number: int, count: int) -> dict[str, str]:
    volume = 10_000 * 2 * (count + 1 - number) / (count * (count + 1))
    place = {f"{space}_{axis}_mm": str(number - 10) for space in ("centroid", "mni") for axis in "xyz"}
    return {"lesion_id": str(number), "volume_mm3": f"{volume:.1f}", **place, "diameter_mm": "5"}


def _table(stem: Path, rows: list[dict[str, str]]) -> None:
    columns = list(rows[0]) if rows else ["lesion_id", "volume_mm3"]
    lines = ["\t".join(columns), *("\t".join(row[column] for column in columns) for row in rows)]
    stem.with_suffix(".tsv").write_text("\n".join(lines) + "\n")
    about = {column: {"LongName": f"Long name of {column}", "Description": f"What {column} is."} for column in columns}
    stem.with_suffix(".json").write_text(json.dumps(about))


@pytest.fixture
def head() -> dict[str, nib.Nifti1Image]:
    """A thick-slice scan of 40 x 50 x 9 voxels with an off-centre lesion on the subject's right."""
    rng = np.random.default_rng(0)
    x, y, z = np.indices((40, 50, 9))
    mask = ((x - 20) / 15) ** 2 + ((y - 25) / 19) ** 2 + ((z - 4) / 3.6) ** 2 < 1
    lesion = mask & (x > 27) & (x < 31) & (abs(y - 25) < 3) & (z == 5)
    dseg = np.where(mask, np.where(x < 15, GM.index, np.where(x < 25, WM.index, CSF.index)), 0)
    dseg[lesion] = LESION.index
    data = (rng.normal(100, 10, mask.shape) * mask).astype(np.float32)
    parts = {"mask": mask.astype(np.uint8), "dseg": dseg.astype(np.uint8), "lesion": lesion.astype(np.uint8)}
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    return {name: nib.Nifti1Image(part, affine) for name, part in {"reference": data, **parts}.items()}

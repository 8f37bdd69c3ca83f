"""The demo dataset: which scans there are, their files, and the truth as a derivative."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bidsapp import labels
from bidsapp.image.save import write_image
from demo import head as heads
from demo import scanner

BIDS_VERSION = "1.10.0"
#: Contrasts of each session of a subject; subjects after the last row are like the last.
PLAN: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("T1w", "T2w", "FLAIR"), ("T1w", "FLAIR")),
    (("FLAIR",),),
    (("T1w", "FLAIR"),),
)
#: Lesions in the first session of a subject with multiple sclerosis; each later session adds one, and all grow.
LESIONS = 9
GROWTH = 1.12
#: Units of the stored intensities: white matter of T1w. Small, as 8 bits of signal compress well.
SCALE = 200

README = """\
A made-up dataset: heads built by code around the ICBM 2009a symmetric template, with simulated lesions of multiple
sclerosis. No person was scanned; ages and sexes are drawn at random. The truth (brain, tissues, lesions) is in
derivatives/truth, on the grid of each session's T1w, or of its FLAIR where there is no T1w.

Written by "python -m demo" of bidsapp. The template: Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging
Centre, Montreal Neurological Institute, McGill University; free to use, copy, modify and distribute for any purpose,
provided that this copyright notice appears in all copies. Fonov et al. 2011, NeuroImage 54:313.
"""


@dataclass(frozen=True)
class Session:
    """One visit of a subject."""

    subject: str
    session: str
    contrasts: tuple[str, ...]

    @property
    def stem(self) -> str:
        """Start of every file name."""
        return f"sub-{self.subject}_ses-{self.session}"

    @property
    def folder(self) -> str:
        """Where its images lie below the root of a dataset."""
        return f"sub-{self.subject}/ses-{self.session}/anat"


def make_dataset(out_dir: Path, *, n_subjects: int = 2, voxel_size: float = 2.0, seed: int = 1) -> Path:
    """Write a raw BIDS dataset of made-up heads and, in ``derivatives/truth``, what is in them.

    Subject 01 has two sessions (T1w, T2w and FLAIR; T1w and FLAIR), subject 02 one with FLAIR alone, any further one
    T1w and FLAIR. Odd subjects after the first are healthy; all others have lesions.

    Parameters
    ----------
    out_dir : Path
        Root of the dataset. A demo dataset that is there already is replaced.
    n_subjects : int
    voxel_size : float
        Of the T1w (mm), isotropic; slices of T2w and FLAIR are half as thick again.
    seed : int
        Same arguments, same bytes.

    Returns
    -------
    Path
        `out_dir`.

    Raises
    ------
    ValueError
        No subject, or a voxel size outside 1-4 mm.
    FileExistsError
        `out_dir` holds something that this function did not write.
    """
    if n_subjects < 1:
        raise ValueError(f"The demo needs at least one subject, not {n_subjects}.")
    if not 1 <= voxel_size <= 4:
        raise ValueError(f"The demo's voxels are 1 to 4 mm wide, not {voxel_size}.")
    _clear(out_dir)
    truth = out_dir / "derivatives" / "truth"
    _write_description(out_dir, truth)
    _write_participants(out_dir, n_subjects, seed)
    head = heads.build_head(int(voxel_size))
    for number in range(1, n_subjects + 1):
        shape = scanner.draw_shape(np.random.default_rng([seed, number, 0]))
        for visit, contrasts in enumerate(PLAN[min(number, len(PLAN)) - 1], start=1):
            session = Session(f"{number:02d}", str(visit), contrasts)
            lesions = heads.grow_lesions(
                head,
                number=LESIONS + visit - 1 if _is_patient(number) else 0,
                rng=np.random.default_rng([seed, number, 1]),
                growth=GROWTH ** (visit - 1),
            )
            rng = np.random.default_rng([seed, number, 2, visit])
            _write_session(out_dir, truth, session, head, lesions, shape, voxel_size, rng)
    return out_dir


def _write_session(
    root: Path,
    truth: Path,
    session: Session,
    head: heads.Head,
    lesions: heads.Lesions,
    shape: scanner.Shape,
    voxel_size: float,
    rng: np.random.Generator,
) -> None:
    pose = scanner.draw_pose(rng, degrees=6, mm=6)
    for index, contrast in enumerate(session.contrasts):
        protocol = _protocol(contrast, voxel_size)
        grid = scanner.field_of_view(head, protocol)
        # People move between two scans of a session.
        moved = pose if index == 0 else pose @ scanner.draw_pose(rng, degrees=1.5, mm=1.5)
        if index == 0:
            reference = (grid, protocol.axes, moved)
        signal = heads.render(head, lesions, contrast, rng)
        seen = scanner.sample(signal, head, shape=shape, pose=moved, grid=grid)
        data = np.round(scanner.add_artefacts(seen, rng) * SCALE).astype(np.int16)
        path = root / session.folder / f"{session.stem}_{contrast}.nii.gz"
        write_image(scanner.store(data, grid, protocol.axes), path)
        _write_json(path, {"Manufacturer": "none (made up)", "BodyPart": "BRAIN"})
    grid, axes, pose = reference
    fractions = np.concatenate([head.tissues, lesions.fraction[None]])
    seen = scanner.sample(fractions, head, shape=shape, pose=pose, grid=grid)
    _write_truth(truth, session, seen, grid, axes)


def _write_truth(root: Path, session: Session, fractions: np.ndarray, grid: nib.Nifti1Image, axes: str) -> None:
    """Brain mask, tissues and lesions of a session; `fractions` is GM, WM, CSF and lesion along the first axis."""
    brain = fractions[:3].sum(axis=0) > 0.5
    lesion = brain & (fractions[3] > 0.5)
    tissue = np.array([label.index for label in labels.TISSUES], np.uint8)[fractions[:3].argmax(axis=0)] * brain
    tissue[lesion] = labels.LESION.index
    source = f"bids:raw:{session.folder}/{session.stem}_{session.contrasts[0]}.nii.gz"
    volume = float(np.prod(grid.header.get_zooms()[:3])) * int(lesion.sum())
    stem = f"{session.stem}_space-orig"
    for name, data, about in (
        ("desc-brain_mask", brain, {"Type": "Brain"}),
        ("seg-tissue_dseg", tissue, {}),
        ("label-lesion_mask", lesion, {"Type": "Lesion", "LesionVolume_mm3": round(volume, 1)}),
    ):
        path = root / session.folder / f"{stem}_{name}.nii.gz"
        write_image(scanner.store(data.astype(np.uint8), grid, axes), path)
        _write_json(path, {"Sources": [source], "SpatialReference": source, **about})
    rows = [
        "index\tname\tabbreviation\tcolor",
        *(f"{label.index}\t{label.name}\t{label.abbreviation}\t{label.color}" for label in labels.TISSUE_LOOKUP[:-1]),
    ]
    (root / session.folder / f"{stem}_seg-tissue_dseg.tsv").write_text("\n".join(rows) + "\n")


def _protocol(contrast: str, voxel_size: float) -> scanner.Protocol:
    """T1w isotropic and sagittal; T2w and FLAIR axial with thicker slices; three orders of axes among them."""
    if contrast == "T1w":
        return scanner.Protocol((voxel_size,) * 3, "PSR")
    return scanner.Protocol((voxel_size, voxel_size, 1.5 * voxel_size), "LAS" if contrast == "FLAIR" else "LPS")


def _is_patient(number: int) -> bool:
    return number == 1 or number % 2 == 0


def _clear(out_dir: Path) -> None:
    if not out_dir.exists():
        return
    readme = out_dir / "README"
    if not out_dir.is_dir() or (any(out_dir.iterdir()) and not (readme.is_file() and readme.read_text() == README)):
        raise FileExistsError(f"{out_dir} is there already and is no demo dataset; give another folder, or remove it.")
    shutil.rmtree(out_dir)


def _write_description(root: Path, truth: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    truth.mkdir(parents=True)
    common = {"BIDSVersion": BIDS_VERSION, "License": "CC0", "Authors": ["bidsapp developers"]}
    tool = {"Name": "truth", "Description": "What the simulation put into each head"}
    _dump(root / "dataset_description.json", {"Name": "bidsapp demo", "DatasetType": "raw", **common})
    _dump(
        truth / "dataset_description.json",
        {
            "Name": "bidsapp demo: truth",
            "DatasetType": "derivative",
            **common,
            "GeneratedBy": [tool],
            "DatasetLinks": {"raw": "../.."},
        },
    )
    for folder in (root, truth):
        (folder / "README").write_text(README)


def _write_participants(root: Path, n_subjects: int, seed: int) -> None:
    rows = ["participant_id\tage\tsex\tgroup"]
    for number in range(1, n_subjects + 1):
        rng = np.random.default_rng([seed, number, 3])
        group = "MS" if _is_patient(number) else "control"
        rows.append(f"sub-{number:02d}\t{rng.integers(20, 65)}\t{rng.choice(['F', 'M'])}\t{group}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    _dump(
        root / "participants.json",
        {
            "age": {"Description": "Age, drawn at random", "Units": "year"},
            "sex": {"Description": "Sex, drawn at random", "Levels": {"F": "female", "M": "male"}},
            "group": {
                "Description": "Whether lesions were put in",
                "Levels": {"MS": "lesions as in multiple sclerosis", "control": "none"},
            },
        },
    )


def _write_json(image: Path, content: dict[str, Any]) -> None:
    _dump(image.with_name(image.name.replace(".nii.gz", ".json")), content)


def _dump(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")

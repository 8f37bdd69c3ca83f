"""Finished sessions of a subject in OUT_DIR, as their records tell of them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib

from bidsapp.interfaces.files import load
from bidsapp.writing import json_or_nothing

FLAIR = "FLAIR"


@dataclass(frozen=True)
class Finished:
    """A finished session in OUT_DIR."""

    out_dir: Path
    record_file: Path
    record: Mapping[str, Any]

    @property
    def label(self) -> str:
        """With ``ses-``."""
        return f"ses-{self.record['session']}"

    @property
    def contrasts(self) -> list[str]:
        return list(self.record["contrasts"])

    @property
    def edges(self) -> list[list[float]]:
        """Voxel sizes (mm) of the scans that lesions come from."""
        used = {self.record["reference"], FLAIR}
        return [scan["voxel_size_mm"] for scan in self.record["inputs"] if scan["contrast"] in used]

    def path(self, ending: str) -> Path:
        """The output of that ending on the reference's own grid.

        Raises
        ------
        FileNotFoundError
        """
        for name in self.record["outputs"]:
            if name.endswith(ending) and "_space-MNI" not in name and "_space-FLAIR_label" not in name:
                return self.out_dir / name
        raise FileNotFoundError(f"{self.record_file}: no output ends in {ending}.")

    def scan(self, contrast: str) -> nib.Nifti1Image:
        """A preprocessed scan on the reference's grid."""
        return load(self.path(f"_desc-preproc_{contrast}.nii.gz"))

    @cached_property
    def mask(self) -> nib.Nifti1Image:
        """The brain mask."""
        return load(self.path("_desc-brain_mask.nii.gz"))

    @property
    def intracranial_mm3(self) -> float | None:
        """Estimated intracranial volume, or None where there is none."""
        name = next((name for name in self.record["outputs"] if name.endswith("_volumes.tsv")), None)
        if name is None:
            return None
        with (self.out_dir / name).open(newline="", encoding="utf-8") as stream:
            row = next(csv.DictReader(stream, delimiter="\t"), {})
        try:
            return float(row.get("tiv_mm3", "")) or None
        except ValueError:
            return None

    @property
    def has_lesions(self) -> bool:
        """Whether lesions were looked for, and there is a FLAIR to compare them on."""
        return FLAIR in self.contrasts and any(name.endswith("_lesions.tsv") for name in self.record["outputs"])


def finished_sessions(out_dir: Path, subject: str) -> list[Finished]:
    """Sessions of a subject that have a record, by label (numbers by their value)."""
    from bidsapp.measure.cohort import natural  # imports pandas

    found = []
    for path in sorted((out_dir / f"sub-{subject}").glob(f"ses-*/anat/sub-{subject}_ses-*_provenance.json")):
        record = json_or_nothing(path)
        if record.get("session") and isinstance(record.get("outputs"), dict):
            found.append(Finished(out_dir, path, record))
    return sorted(found, key=lambda one: natural(one.record["session"]))


def in_order(sessions: Sequence[Finished], dates: Mapping[str, Any]) -> list[Finished]:
    """By date; one without a date stays behind the one before it, and all without any date stay as they are."""
    known = [dates[one.record["session"]] for one in sessions if one.record["session"] in dates]
    if not known:
        return list(sessions)
    places, when = [], min(known)
    for number, one in enumerate(sessions):
        when = dates.get(one.record["session"], when)
        places.append((when, number))
    return [sessions[number] for _, number in sorted(places)]

"""``python -m demo.compare DEMO OUT``: what the app found in the demo dataset against what was put in."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from bidsapp import labels
from bidsapp.measure.agreement import agreement

HEADER = ("scan", "brain", "GM", "WM", "CSF", "lesions", "true lesions (ml)", "found (ml)")


def main() -> int:
    """Print a table of Dice coefficients; 1 where the app left out a session."""
    demo, out = Path(sys.argv[1]), Path(sys.argv[2])
    rows, missing = compare(demo, out)
    print("\nDice coefficient with the truth of the simulation (1: the same, 0: nothing in common)")
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    for row in (HEADER, *rows):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    for name in missing:
        print(f"missing: {name}", file=sys.stderr)
    return 1 if missing else 0


def compare(demo: Path, out: Path) -> tuple[list[tuple[str, ...]], list[str]]:
    """Compare every session of the demo dataset.

    Returns
    -------
    rows : list of tuple of str
        One row per session, in the order of `HEADER`; ``n/a`` where the app gives no such result.
    missing : list of str
        Sessions without any result.
    """
    truth = demo / "derivatives" / "truth"
    rows, missing = [], []
    for path in sorted(truth.glob("sub-*/ses-*/anat/*_dseg.nii.gz")):
        stem = path.name.removesuffix("_space-orig_seg-tissue_dseg.nii.gz")
        found = out / path.relative_to(truth)
        if found.is_file():
            rows.append((stem, *_row(path, found)))
        else:
            missing.append(stem)
    return rows, missing


def _row(truth: Path, found: Path) -> list[str]:
    real, tissue = _read(truth), _read(found)
    voxel = float(np.prod(nib.Nifti1Image.from_filename(truth).header.get_zooms()[:3])) / 1000
    brain = found.with_name(found.name.replace("seg-tissue_dseg", "desc-brain_mask"))
    cells = [_dice(_read(brain) > 0, real > 0)]
    cells += [_dice(tissue == t.index, real == t.index) if (tissue == t.index).any() else "n/a" for t in labels.TISSUES]
    lesion_file = found.with_name(found.name.replace("seg-tissue_dseg", "label-lesion_mask"))
    if not lesion_file.is_file():
        return [*cells, "n/a", f"{(real == labels.LESION.index).sum() * voxel:.1f}", "n/a"]
    lesion, real_lesion = _read(lesion_file) > 0, real == labels.LESION.index
    return [*cells, _dice(lesion, real_lesion), f"{real_lesion.sum() * voxel:.1f}", f"{lesion.sum() * voxel:.1f}"]


def _dice(found: np.ndarray, real: np.ndarray) -> str:
    value = agreement(real, found, voxel_size_mm=(1.0, 1.0, 1.0)).dsc  # Dice has no unit
    return "n/a" if np.isnan(value) else f"{value:.2f}"


def _read(path: Path) -> np.ndarray:
    return np.asarray(nib.Nifti1Image.from_filename(path).dataobj)


if __name__ == "__main__":
    raise SystemExit(main())

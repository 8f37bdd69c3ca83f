"""Wide ventricles: ``python -m benchmarks.ventricles``.

Old and ill people have lateral ventricles several times as wide as those of the heads the network was trained on. There
are no such scans with labels here, so those of the healthy T1w of ``bids_t1_freesurfer`` are widened, the scan and
FreeSurfer's labels alike: their walls move outwards, and the tissue around with them, less and less up to the brain's
border. Writes ``ventricles.tsv`` and ``ventricles.md`` beside the derivatives, and prints them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from benchmarks import app
from benchmarks.accuracy import FREESURFER_CEREBRAL_WM, FREESURFER_STRUCTURES
from bidsapp import labels
from bidsapp.learn.fields import moved
from bidsapp.learn.heads import outwards, signed_distance
from bidsapp.measure.agreement import agreement

LATERAL = (4, 43)
#: How far the walls move, mm.
WIDER_MM = (0, 4, 8, 12)
#: What is compared, left and right together.
NAMES = ("lateral ventricle", "caudate", "thalamus", "putamen", "hippocampus", "cerebral cortex")


def main(argv: list[str] | None = None) -> int:
    """Widen, run, compare."""
    parser = app.arguments(__doc__, "ventricles")
    app.add_data(parser)
    args = parser.parse_args(argv)
    source = app.real_dataset(args.data, "bids_t1_freesurfer")
    scan = nib.as_closest_canonical(nib.load(next(source.glob("sub-01/anat/*_T1w.nii.gz"))))
    theirs = nib.as_closest_canonical(nib.load(next(source.glob("derivatives/freesurfer/sub-01/anat/*_dseg.nii.gz"))))
    with tempfile.TemporaryDirectory() as folder:
        truth = make_dataset(scan, np.asarray(theirs.dataobj).astype(np.int32), Path(folder))
        app.run_all(Path(folder), args.out, args.app_options)
    table = pd.DataFrame([compare(wider, reference, args.out) for wider, reference in truth.items()])
    table.to_csv(args.out / "ventricles.tsv", sep="\t", float_format="%.4f", index=False)
    text = as_markdown(table)
    (args.out / "ventricles.md").write_text(text)
    print(text)
    return 0


def make_dataset(scan: nib.Nifti1Image, reference: np.ndarray, dataset: Path) -> dict[int, np.ndarray]:
    """A subject of each width; their labels."""
    app.begin_dataset(dataset, "ventricles", "Widened ventricles: see benchmarks/ventricles.py.\n")
    truth = {}
    for wider in WIDER_MM:
        subject = f"sub-wider{wider}"
        (dataset / subject / "anat").mkdir(parents=True)
        points = widened(reference, wider)
        truth[wider] = ndimage.map_coordinates(reference, points, order=0, mode="nearest")
        data = ndimage.map_coordinates(np.asarray(scan.dataobj, np.float32), points, order=1, mode="nearest")
        nib.save(nib.Nifti1Image(data, scan.affine), dataset / subject / "anat" / f"{subject}_T1w.nii.gz")
    return truth


def widened(reference: np.ndarray, wider_mm: float) -> np.ndarray:
    """(3, X, Y, Z): where each voxel of a head with wider ventricles lay before.

    Parameters
    ----------
    reference : ndarray of int
        FreeSurfer's labels, 1 mm, RAS; axes are multiples of four.
    wider_mm : float
        How far the walls of the lateral ventricles move.
    """
    brain = ndimage.binary_fill_holes(reference > 0)
    flow = torch.from_numpy(outwards(np.isin(reference, LATERAL), signed_distance(brain)))
    points = torch.from_numpy(np.indices(reference.shape).astype(np.float32))
    return (moved(points, flow, wider_mm) if wider_mm else points).numpy()


def compare(wider_mm: int, reference: np.ndarray, out: Path) -> dict[str, float]:
    """Volumes of the lateral ventricles, Dice of some structures, lesions that a healthy head does not have."""
    start = out / f"sub-wider{wider_mm}/anat/sub-wider{wider_mm}_space-orig"
    found = np.asarray(nib.load(f"{start}_seg-structures_dseg.nii.gz").dataobj)
    lesion = nib.load(f"{start}_label-lesion_mask.nii.gz")
    with_plexus = [index for side in LATERAL for index in FREESURFER_STRUCTURES[side]]
    row = {
        "walls moved, mm": wider_mm,
        "lateral ventricles, ml": np.isin(reference, with_plexus).sum() / 1000,
        "found, ml": np.isin(found, LATERAL).sum() / 1000,
    }
    for structure in labels.STRUCTURES:
        if structure.name in NAMES:
            sides = (structure.left, structure.right)
            theirs = [index for side in sides for index in FREESURFER_STRUCTURES.get(side, (side,))]
            row[structure.name] = _dice(np.isin(reference, theirs), np.isin(found, sides))
    row["white matter"] = _dice(np.isin(reference, FREESURFER_CEREBRAL_WM), np.isin(found, (2, 41)))
    return row | {"lesions, ml": (np.asarray(lesion.dataobj) > 0).sum() / 1000}


def _dice(reference: np.ndarray, found: np.ndarray) -> float:
    return agreement(reference, found, voxel_size_mm=(1, 1, 1)).dsc


def as_markdown(table: pd.DataFrame) -> str:
    """The table: ml with one digit, Dice with three."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    digits = [0, 1, 1, *[3] * (len(table.columns) - 4), 1]
    for row in table.itertuples(index=False):
        lines.append("| " + " | ".join(f"{value:.{n}f}" for value, n in zip(row, digits, strict=True)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

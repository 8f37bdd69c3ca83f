"""Are the lesion probabilities as often right as they say? ``python -m benchmarks.calibration``, after ``accuracy``.

Reads the probability maps that ``python -m benchmarks.accuracy`` left, and the raters' lesions: of the voxels that the
app calls lesion with a probability of, say, 0.4 to 0.6, how many are one? Voxels below 0.1 are left out: there are so
many of them that nothing else would count. Writes ``calibration.tsv`` and ``calibration.md`` beside the maps.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from benchmarks.accuracy import manual_mask, same_grid
from benchmarks.app import REPOSITORY
from bidsapp.measure.agreement import reliability

EDGES = np.array([0.1, 0.2, 0.4, 0.6, 0.8, 1.0])
#: Output folder of ``accuracy``, dataset of the reference, subject, contrasts.
CASES = (
    ("bids_ms_mni", "bids_ms_mni", "sub-26", "T1w+T2w+FLAIR"),
    ("bids_ms_mni_T1wFLAIR", "bids_ms_mni", "sub-26", "T1w+FLAIR"),
    ("bids_ms_mni_FLAIR", "bids_ms_mni", "sub-26", "FLAIR"),
    ("bids_ms_mni_T1w", "bids_ms_mni", "sub-26", "T1w"),
    ("bids_flair_thick", "bids_flair_thick", "sub-104252", "FLAIR"),
    ("bids_flair_thick", "bids_flair_thick", "sub-105465", "FLAIR"),
)


def main(argv: list[str] | None = None) -> int:
    """Make the tables; 1 where a map is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "../shared/data", help="folder of the real scans")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "work/accuracy", help="where accuracy wrote")
    args = parser.parse_args(argv)
    if not args.data.is_dir():
        parser.exit(1, f"{args.data}: no such folder; --data names the folder of the real scans.\n")
    rows = [row for case in CASES for row in compare(args.data, args.out, *case)]
    missing = len(CASES) - len({(row["case"], row["contrasts"]) for row in rows})
    table = pd.DataFrame(rows, columns=["case", "contrasts", "from", "to", "voxels", "said", "true", "error"])
    table.to_csv(args.out / "calibration.tsv", sep="\t", index=False, na_rep="n/a", float_format="%.4f")
    text = as_markdown(table)
    (args.out / "calibration.md").write_text(text)
    print(text)
    return int(missing > 0)


def compare(data: Path, out: Path, name: str, dataset: str, subject: str, contrasts: str) -> list[dict[str, object]]:
    """A row for each bin; none, saying so, where there is no map."""
    maps = list((out / name / subject / "anat").glob("*_space-orig_label-lesion_probseg.nii.gz"))
    if not maps:
        print(f"{out / name / subject}: no map of lesion probability; run python -m benchmarks.accuracy first.")
        return []
    truth, ours = manual_mask(data / dataset, subject, "lesion"), nib.load(maps[0])
    same_grid(truth, ours)
    found = reliability(np.asarray(truth.dataobj) > 0, np.asarray(ours.dataobj, dtype=np.float32), edges=EDGES)
    bins = zip(EDGES[:-1], EDGES[1:], found.voxels, found.said, found.true, strict=True)
    return [
        {"case": subject, "contrasts": contrasts, "from": low, "to": high, "voxels": int(voxels), "said": said,
         "true": true, "error": found.error}
        for low, high, voxels, said, true in bins
    ]  # fmt: skip


def as_markdown(table: pd.DataFrame) -> str:
    """A row for each case: the share of lesion in each bin, and the expected calibration error."""
    bins = [f"{low:.1f}-{high:.1f}" for low, high in itertools.pairwise(EDGES)]
    lines = ["| case | contrasts | " + " | ".join(bins) + " | error |", "|" + "---|" * (len(bins) + 3)]
    for (case, contrasts), rows in table.groupby(["case", "contrasts"], sort=False):
        shares = ["" if np.isnan(share) else f"{share:.2f}" for share in rows["true"]]
        lines.append(f"| {case} | {contrasts} | " + " | ".join(shares) + f" | {rows['error'].iloc[0]:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())

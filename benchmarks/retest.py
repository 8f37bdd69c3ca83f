"""The same head scanned twice, and how far its volumes move: ``python -m benchmarks.retest``.

No network and nobody who wrote the app has tuned anything on these two whole-head T1w scans of 1 mm: they are the
examples of the npm package ``brainbrowser`` (AGPL-3.0), fetched by ``npm pack`` into a temporary folder. Writes
``retest.tsv`` and ``retest.md`` beside the derivatives, and prints them.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from benchmarks import app

PACKAGE = "brainbrowser@2.3.0"
SCANS = {"1": "structural1.mnc", "2": "structural2.mnc"}
#: What is too small for a percentage to mean anything.
LEAST_ML = 0.3


def main(argv: list[str] | None = None) -> int:
    """Fetch the scans, run the app, compare the visits."""
    args = app.arguments(__doc__, "retest").parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder, "bids")
        make_dataset(fetch(Path(folder)), dataset)
        app.run_all(dataset, args.out, args.app_options)
    tables = [
        pd.read_csv(args.out / f"sub-01/ses-{visit}/anat/sub-01_ses-{visit}_volumes.tsv", sep="\t") for visit in SCANS
    ]
    table = compare(*(one.iloc[0] for one in tables))
    table.to_csv(args.out / "retest.tsv", sep="\t", float_format="%.2f", index=False)
    changes = pd.read_csv(args.out / "sub-01/anat/sub-01_changes.tsv", sep="\t")
    text = as_markdown(table, brain_change_percent=float(changes["brain_change_percent"].iloc[0]))
    (args.out / "retest.md").write_text(text)
    print(text)
    return 0


def fetch(folder: Path) -> Path:
    """The package's models, unpacked in a folder."""
    try:
        subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"'npm pack {PACKAGE}' failed ({error}): npm and its registry are needed once.") from error
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package" / "examples" / "models"


def make_dataset(models: Path, dataset: Path) -> None:
    """One subject of two sessions, a T1w each."""
    app.begin_dataset(dataset, "retest", f"Two scans of one head, from the npm package {PACKAGE}.\n")
    for visit, name in SCANS.items():
        anat = dataset / f"sub-01/ses-{visit}/anat"
        anat.mkdir(parents=True)
        header = json.loads(gzip.decompress((models / f"{name}.header.gz").read_bytes()))
        raw = gzip.decompress((models / f"{name}.raw.gz").read_bytes())
        nib.save(from_minc(header, raw), anat / f"sub-01_ses-{visit}_T1w.nii.gz")


def from_minc(header: dict, raw: bytes) -> nib.Nifti1Image:
    """A volume of bytes with a header of MINC's: per axis start and step along a direction, in mm, RAS."""
    order = header["order"]
    voxels = np.frombuffer(raw, np.uint8).reshape([header[axis]["space_length"] for axis in order])
    affine = np.eye(4)
    for column, axis in enumerate(order):
        direction = np.array(header[axis]["direction_cosines"])
        affine[:3, column] = direction * header[axis]["step"]
        affine[:3, 3] += direction * header[axis]["start"]
    return nib.Nifti1Image(voxels, affine)


def compare(first: pd.Series, second: pd.Series) -> pd.DataFrame:
    """Per volume: ml at both visits, and their difference in per cent of their mean."""
    rows = []
    for column in first.index:
        if column.endswith("_mm3"):
            ml = [float(visit[column]) / 1000 for visit in (first, second)]
            mean = sum(ml) / 2
            percent = 100 * (ml[1] - ml[0]) / mean if mean >= LEAST_ML else float("nan")
            rows.append((column.removesuffix("_mm3"), *ml, percent))
    return pd.DataFrame(rows, columns=["volume", "visit 1, ml", "visit 2, ml", "difference, %"])


def as_markdown(table: pd.DataFrame, *, brain_change_percent: float) -> str:
    """The table; the mean and the largest of its differences; what the page of changes says of the brain."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    for name, first, second, percent in table.itertuples(index=False):
        lines.append(f"| {name} | {first:.1f} | {second:.1f} | {'' if np.isnan(percent) else f'{percent:+.1f}'} |")
    known = table["difference, %"].abs().dropna()
    of_all = f"Mean of their sizes {known.mean():.2f} %, largest {known.max():.1f} % ({len(known)} volumes)."
    between = f"The brain's change between the visits, registered half-way: {brain_change_percent:+.2f} %."
    return "\n".join([*lines, "", of_all, between]) + "\n"


if __name__ == "__main__":
    sys.exit(main())

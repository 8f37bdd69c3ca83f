"""The same heads as other scanners might have seen them: ``python -m benchmarks.robustness``.

Degrades two real sessions of ``../shared/data``, the healthy T1w and the patient with MS, one way at a time, runs the
app on all of them, and tells how far volumes and agreement with the reference move from those of the scans as they
are. Writes ``robustness.tsv`` and ``robustness.md`` into the output folder.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial.transform import Rotation

from benchmarks import app
from benchmarks.accuracy import FREESURFER_GM, FREESURFER_WM, resample_mask
from benchmarks.app import REPOSITORY
from bidsapp import labels
from bidsapp.measure.agreement import agreement

Scan = tuple[np.ndarray, np.ndarray]  # (X, Y, Z) float32 >= 0, and its affine
PLAIN = "asIs"


# --- what is done to a scan -------------------------------------------------------------------------------------------


def coarser(scan: Scan, _: np.random.Generator, *, spacing_mm: tuple[float, float, float]) -> Scan:
    """Voxels of at least `spacing_mm` along the axes of the array; slices are Gaussian, as wide at half height."""
    data, affine = scan
    factors = np.maximum(1, np.array(spacing_mm) / nib.affines.voxel_sizes(affine))
    for axis, factor in enumerate(factors):
        if factor > 1:
            data = ndimage.gaussian_filter1d(data, factor / np.sqrt(8 * np.log(2)), axis=axis, mode="nearest")
    shape = np.ceil(np.array(data.shape) / factors).astype(int)
    offset = (factors - 1) / 2  # the middle of the first new voxel
    data = ndimage.affine_transform(data, np.diag(factors), offset, output_shape=tuple(shape), order=1, mode="nearest")
    return data, affine @ nib.affines.from_matvec(np.diag(factors), offset)


def finer(scan: Scan, _: np.random.Generator, *, spacing_mm: float) -> Scan:
    """Cubes of `spacing_mm`, interpolated: nothing more to see, but many more voxels."""
    data, affine = scan
    factors = spacing_mm / nib.affines.voxel_sizes(affine)
    shape = tuple(np.floor((np.array(data.shape) - 1) / factors).astype(int) + 1)
    fine = ndimage.affine_transform(data.astype(np.float32), np.diag(factors), output_shape=shape, order=3)
    return np.maximum(fine, 0), affine @ np.diag([*factors, 1])


def low_field(scan: Scan, rng: np.random.Generator) -> Scan:
    """Slices of 5 mm with voxels of 1.6 mm and noise, as portable scanners of low field have them."""
    return noisy(coarser(scan, rng, spacing_mm=(1.6, 1.6, 5.0)), rng, percent=6)


def noisy(scan: Scan, rng: np.random.Generator, *, percent: float) -> Scan:
    """Rician noise, in per cent of the brightness of the head; none where the background is empty."""
    data, affine = scan
    deviation = percent / 100 * np.percentile(data[data > data.mean()], 75)
    real, imaginary = rng.normal(0, deviation, (2, *data.shape))
    return np.hypot(data + real, imaginary) * (data > 0), affine


def shaded(scan: Scan, rng: np.random.Generator, *, percent: float) -> Scan:
    """A smooth field that multiplies, from -`percent` to +`percent`: products of half cosines along the axes."""
    data, affine = scan
    field = np.zeros(data.shape)
    for orders in itertools.product(range(3), repeat=3):
        if 0 < sum(orders) < 4:
            waves = [np.cos(k * np.pi * (np.arange(n) + 0.5) / n) for k, n in zip(orders, data.shape, strict=True)]
            field += rng.normal() * np.einsum("i,j,k", *waves)
    return data * (1 + percent / 100 * field / np.abs(field).max()), affine


def other_contrast(scan: Scan, _: np.random.Generator, *, power: float) -> Scan:
    """Grey and white matter closer together (`power` below 1) or further apart."""
    data, affine = scan
    top = np.percentile(data[data > 0], 99.5)
    return top * (data / top) ** power, affine


def tilted(scan: Scan, _: np.random.Generator, *, degrees: float) -> Scan:
    """An oblique grid: the head lies where it lay, the slices do not."""
    data, affine = scan
    turn = Rotation.from_euler("XZ", [degrees, degrees], degrees=True).as_matrix()
    middle = (np.array(data.shape) - 1) / 2
    offset = middle - turn @ middle
    turned = ndimage.affine_transform(data, turn, offset, order=1)
    return turned, affine @ nib.affines.from_matvec(turn, offset)


def cut(scan: Scan, _: np.random.Generator, *, top_mm: float) -> Scan:
    """The uppermost `top_mm` of the head are out of view."""
    data, affine = scan
    axes = nib.aff2axcodes(affine)
    axis = next(i for i, code in enumerate(axes) if code in "SI")
    low, high = (side(np.flatnonzero((data > data.mean()).any(tuple({0, 1, 2} - {axis})))) for side in (min, max))
    voxels = round(top_mm / nib.affines.voxel_sizes(affine)[axis])
    keep, start = (slice(0, high - voxels), 0) if axes[axis] == "S" else (slice(low + voxels, None), low + voxels)
    index: list[slice] = [slice(None)] * 3
    index[axis] = keep
    shift = np.zeros(3)
    shift[axis] = start
    return data[tuple(index)], affine @ nib.affines.from_matvec(np.eye(3), shift)


def salted(scan: Scan, rng: np.random.Generator) -> Scan:
    """Air full of noise from black to white, as in the UNI image of an MP2RAGE; none where the background is empty."""
    data, affine = scan
    top = np.percentile(data[data > data.mean()], 99)
    dark, _ = ndimage.label(ndimage.gaussian_filter(data, 1 / nib.affines.voxel_sizes(affine)) < 0.12 * top)
    around = np.unique(np.concatenate([dark[side].ravel() for side in (0, -1, np.s_[:, 0], np.s_[:, -1])]))
    air = np.isin(dark, around[around > 0]) & (data > 0)
    return np.where(air, rng.uniform(0, top, data.shape), np.minimum(data, top)), affine


def defaced(scan: Scan, _: np.random.Generator, *, depth_mm: float) -> Scan:
    """Zeros down to `depth_mm` behind a plane that leans on chin and forehead, as tools that remove faces leave it."""
    data, affine = scan
    forward_and_down = np.array([0, 1, -1]) / np.sqrt(2)
    along = forward_and_down @ affine[:3, :3]
    depth = sum(step * index for step, index in zip(along, np.ogrid[tuple(map(slice, data.shape))], strict=True))
    head = np.percentile(depth[data > data.mean()], 99.9)
    return data * (depth < head - depth_mm), affine


def moved(scan: Scan, rng: np.random.Generator, *, times: int, degrees: float, mm: float) -> Scan:
    """A head that moved while its lines of k-space were acquired, but not while the middle ones were.

    Nothing is seen where the background is empty.
    """
    data, affine = scan
    lines, spacing = data.shape[1], nib.affines.voxel_sizes(affine)
    away = np.r_[8 : lines // 2 - 8, lines // 2 + 9 : lines - 8]
    cuts = [0, *np.sort(rng.choice(away, times, replace=False)), lines]
    middle, spectrum = (np.array(data.shape) - 1) / 2, np.fft.fftshift(np.fft.fftn(data), axes=1)
    for first, last in itertools.pairwise(cuts):
        turn = Rotation.from_rotvec(rng.normal(0, np.deg2rad(degrees), 3)).as_matrix()
        turn = turn * spacing[None] / spacing[:, None]
        offset = middle - turn @ middle + rng.normal(0, mm, 3) / spacing
        if not first <= lines // 2 < last:
            pose = np.fft.fftshift(np.fft.fftn(ndimage.affine_transform(data, turn, offset, order=1)), axes=1)
            spectrum[:, first:last] = pose[:, first:last]
    seen = np.abs(np.fft.ifftn(np.fft.ifftshift(spectrum, axes=1)))
    return seen * (data > 0), affine


def ghost(scan: Scan, _: np.random.Generator, *, percent: float) -> Scan:
    """The head once more, fainter, half a field of view away; not where the background is empty.

    Its cause is that every other line of k-space is brighter, or turned.
    """
    data, affine = scan
    return (data + percent / 100 * np.roll(data, data.shape[1] // 2, axis=1)) * (data > 0), affine


CHANGES: dict[str, tuple[str, Callable[[Scan, np.random.Generator], Scan]]] = {
    PLAIN: ("as it is", lambda scan, _: scan),
    "cubes05": ("voxels of 0.5 mm", partial(finer, spacing_mm=0.5)),
    "lowField": ("1.6 x 1.6 x 5 mm and noise of 6 %", low_field),
    "cubes2": ("voxels of 2 mm", partial(coarser, spacing_mm=(2.0, 2.0, 2.0))),
    "thick4": ("slices of 4 mm (third axis)", partial(coarser, spacing_mm=(0.0, 0.0, 4.0))),
    "thick6": ("slices of 6 mm (second axis)", partial(coarser, spacing_mm=(0.0, 6.0, 0.0))),
    "noise5": ("noise of 5 %", partial(noisy, percent=5)),
    "noise10": ("noise of 10 %", partial(noisy, percent=10)),
    "salt": ("air full of noise, as in an MP2RAGE", salted),
    "bias40": ("bias field of 40 %", partial(shaded, percent=40)),
    "power07": ("contrast to the power of 0.7", partial(other_contrast, power=0.7)),
    "power14": ("contrast to the power of 1.4", partial(other_contrast, power=1.4)),
    "tilt15": ("tilted by 15 degrees, twice", partial(tilted, degrees=15)),
    "cut20": ("top 20 mm out of view", partial(cut, top_mm=20)),
    "moved": ("moved four times, by 2 degrees and 1 mm", partial(moved, times=4, degrees=2, mm=1)),
    "ghost": ("a ghost of 10 %", partial(ghost, percent=10)),
    "defaced": ("face removed", partial(defaced, depth_mm=22)),
}
#: Of a brain without its skull they would take away a part.
OF_WHOLE_HEADS = ("defaced",)


# --- the run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """One real session and what is known of it."""

    name: str
    scans: dict[str, Path]
    reference: Path
    lesions: bool  # what the reference holds: lesions, or FreeSurfer's labels
    stripped: bool


def main(argv: list[str] | None = None) -> int:
    """Degrade, run, compare; 1 where a session came to nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "../shared/data", help="folder of the real scans")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "work/robustness", help="scans, derivatives, tables")
    parser.add_argument(
        "--only", nargs="+", choices=list(CHANGES), default=list(CHANGES), help=f"{PLAIN} is always run"
    )
    parser.add_argument("--no-run", action="store_true", help="compare what is in OUT; do not run the app")
    args = parser.parse_args(argv)
    if not args.data.is_dir():
        parser.exit(1, f"{args.data}: no such folder; --data names the folder of the real scans.\n")
    wanted = [name for name in CHANGES if name in args.only or name == PLAIN]
    sessions, derivatives = sessions_of(real_heads(args.data), wanted), args.out / "derivatives"
    if not args.no_run:
        for head, change in sessions:
            write_session(args.out / "bids", head, change)
        app.run(args.out / "bids", derivatives, "--skip-bids-validation")
    table = pd.DataFrame([compare(head, change, derivatives) for head, change in sessions])
    table.to_csv(args.out / "robustness.tsv", sep="\t", index=False, na_rep="n/a", float_format="%.4f")
    text = as_markdown(table)
    (args.out / "robustness.md").write_text(text)
    print(text)
    return int(table["tiv_mm3"].isna().any())


def real_heads(data: Path) -> list[Head]:
    """The healthy T1w and the patient with MS."""
    healthy, patient = data / "bids_t1_freesurfer", data / "bids_ms_mni"
    return [
        Head(
            "healthy",
            {"T1w": next(healthy.glob("sub-01/anat/*_T1w.nii.gz"))},
            next(healthy.glob("derivatives/freesurfer/sub-01/anat/*_dseg.nii.gz")),
            lesions=False,
            stripped=False,
        ),
        Head(
            "ms",
            {name: next(patient.glob(f"sub-26/anat/*_{name}.nii.gz")) for name in ("T1w", "T2w", "FLAIR")},
            next(patient.glob("derivatives/**/*label-lesion_mask.nii.gz")),
            lesions=True,
            stripped=True,
        ),
    ]


def sessions_of(heads: Iterable[Head], changes: Iterable[str]) -> list[tuple[Head, str]]:
    """Each head in each way that makes sense for it."""
    pairs = itertools.product(heads, changes)
    return [(head, change) for head, change in pairs if not (head.stripped and change in OF_WHOLE_HEADS)]


def write_session(dataset: Path, head: Head, change: str) -> None:
    """The scans of a head, all changed in the same way, as a subject of a BIDS dataset."""
    subject = f"sub-{head.name}{change}"
    anat = dataset / subject / "anat"
    anat.mkdir(parents=True, exist_ok=True)
    app.begin_dataset(dataset, "Degraded scans")
    for number, (contrast, path) in enumerate(head.scans.items()):
        target = anat / f"{subject}_{contrast}.nii.gz"
        if target.exists():
            continue
        image = nib.load(path)
        scan = np.clip(np.asarray(image.dataobj, np.float32), 0, None), image.affine
        data, affine = CHANGES[change][1](scan, np.random.default_rng([number, list(CHANGES).index(change)]))
        nib.Nifti1Image(data.astype(np.float32), affine).to_filename(target)


def compare(head: Head, change: str, derivatives: Path) -> dict[str, object]:
    """Volumes in mm3 and Dice with the reference, on the reference's grid; nan where there is no result."""
    subject = f"sub-{head.name}{change}"
    row: dict[str, object] = {"head": head.name, "change": CHANGES[change][0]}
    tables = sorted((derivatives / subject / "anat").glob("*_volumes.tsv"))
    measured = pd.read_csv(tables[0], sep="\t", na_values="n/a").iloc[0] if tables else pd.Series(dtype=float)
    row |= {name: measured.get(name, np.nan) for name in ("tiv_mm3", "gm_mm3", "wm_mm3", "lesion_mm3")}
    for name, dice in _dice(head, derivatives / subject / "anat") if tables else ():
        row[f"dice_{name}"] = dice
    return row


def _dice(head: Head, anat: Path) -> Iterator[tuple[str, float]]:
    reference = nib.load(head.reference)
    truth, size = np.asarray(reference.dataobj), nib.affines.voxel_sizes(reference.affine)

    def dice(found: np.ndarray, image: nib.Nifti1Image, wanted: np.ndarray) -> float:
        mask = nib.Nifti1Image(found.astype(np.uint8), image.affine)
        return agreement(wanted, resample_mask(mask, reference, np.eye(4)), voxel_size_mm=size).dsc

    if head.lesions:
        image = nib.load(next(anat.glob("*_space-orig_label-lesion_mask.nii.gz")))
        yield "lesion", dice(np.asarray(image.dataobj) > 0, image, truth > 0)
        return
    image = nib.load(next(anat.glob("*_space-orig_seg-tissue_dseg.nii.gz")))
    for tissue, members in ((labels.GM, FREESURFER_GM), (labels.WM, FREESURFER_WM)):
        found = np.asarray(image.dataobj) == tissue.index
        yield tissue.abbreviation, dice(found, image, np.isin(truth, members))


def as_markdown(table: pd.DataFrame) -> str:
    """Volumes in ml of the scans as they are, and in per cent of those for the others."""
    dice = [name for name in table.columns if name.startswith("dice_")]
    volumes = [name for name in table.columns if name.endswith("_mm3")]
    titles = ["head", "change", *(name.removesuffix("_mm3") for name in volumes), *(f"Dice {d[5:]}" for d in dice)]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for _, rows in table.groupby("head", sort=False):
        plain = rows.iloc[0]
        for number, row in enumerate(rows.to_dict("records")):
            cells = [str(row["head"]), str(row["change"])]
            for name in volumes:
                if pd.isna(row[name]):
                    cells.append("n/a")
                elif number == 0 or name == "lesion_mm3":
                    cells.append(f"{row[name] / 1000:.1f} ml")
                else:
                    cells.append(f"{100 * (row[name] / plain[name] - 1):+.1f} %")
            cells += ["" if pd.isna(row[name]) else f"{row[name]:.3f}" for name in dice]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())

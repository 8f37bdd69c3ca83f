"""``python -m training.judge [--model FOLDER]``: brain masks on real scans that nothing was trained on.

References: the manual masks of ``ms_longitudinal_truth``, carried by its FLAIR-to-common transforms (scans of one
session share their scanner coordinates); FreeSurfer's labels, closed by 6 mm; for the stripped case what is not zero.
Two of the manual masks are visibly wrong (sub-03: cut at the front and top; sub-19: far outside the skull): there the
reference is deepbet on the T1w of the second session, an agreement and not a truth.
"""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bidsapp.image.brain import extract_brain_by_template
from bidsapp.image.grid import work_image
from bidsapp.image.itk import read_itk_affine
from bidsapp.models.brain import deepbet_brain, find_brain
from bidsapp.models.registry import Model, read_model

WRONG_MASKS = ("sub-03", "sub-19")


@dataclass(frozen=True)
class Reference:
    """A mask, what made it, and the 4x4 matrix from the scan's scanner coordinates to the mask's (mm, RAS)."""

    kind: str
    mask: nib.Nifti1Image
    matrix: np.ndarray


def dice(one: np.ndarray, two: np.ndarray) -> float:
    """Dice coefficient of two boolean arrays."""
    return float(2 * (one & two).sum() / (one.sum() + two.sum()))


def on_scan(reference: Reference, scan: nib.Nifti1Image) -> np.ndarray:
    """The reference mask on the grid of `scan` (bool)."""
    matrix = np.linalg.inv(reference.mask.affine) @ reference.matrix @ scan.affine
    mask = np.asanyarray(reference.mask.dataobj, dtype=np.float32)
    return ndimage.affine_transform(mask, matrix[:3, :3], matrix[:3, 3], output_shape=scan.shape, order=1) > 0.5


def cases(data: Path) -> dict[str, tuple[Path, Reference]]:
    """Name -> scan and reference, for every scan that has one."""
    found: dict[str, tuple[Path, Reference]] = {}
    for path in sorted((data / "bids_ms_longitudinal").glob("sub-*/ses-*/anat/*.nii.gz")):
        name = path.name.removesuffix(".nii.gz")
        found[name] = (path, _longitudinal(data, path.parents[2].name, path.parents[1].name[-1]))
    for path in sorted((data / "bids_ms_mni").glob("sub-*/anat/*.nii.gz")):
        image = nib.Nifti1Image.from_filename(path)
        shape = np.asanyarray(image.dataobj) != 0
        mask = nib.Nifti1Image(ndimage.binary_fill_holes(shape).astype(np.uint8), image.affine)
        found[f"mni_{path.name.removesuffix('.nii.gz')}"] = (path, Reference("not zero", mask, np.eye(4)))
    scan = data / "bids_t1_freesurfer/sub-01/anat/sub-01_T1w.nii.gz"
    found["freesurfer_T1w"] = (scan, _freesurfer(data))
    return found


def _longitudinal(data: Path, subject: str, session: str) -> Reference:
    truth = data / "ms_longitudinal_truth" / subject
    from_scan = np.linalg.inv(read_itk_affine(truth / f"study{session}_FLAIR_to_common_space.txt"))
    if subject not in WRONG_MASKS:
        return Reference(
            "manual", nib.Nifti1Image.from_filename(truth / f"{subject}_space-common_desc-brain_mask.nii.gz"), from_scan
        )
    mask = _deepbet_mask(data / f"bids_ms_longitudinal/{subject}/ses-2/anat/{subject}_ses-2_T1w.nii.gz")
    return Reference("deepbet", mask, read_itk_affine(truth / "study2_FLAIR_to_common_space.txt") @ from_scan)


@functools.cache
def _deepbet_mask(path: Path) -> nib.Nifti1Image:
    t1w = work_image(nib.Nifti1Image.from_filename(path))
    mask = deepbet_brain(t1w.get_fdata(dtype=np.float32)) > 0.5
    return nib.Nifti1Image(mask.astype(np.uint8), t1w.affine)


def _freesurfer(data: Path) -> Reference:
    path = data / "bids_t1_freesurfer/derivatives/freesurfer/sub-01/anat/sub-01_space-orig_seg-aparcaseg_dseg.nii.gz"
    image = nib.Nifti1Image.from_filename(path)
    tissue = np.pad(np.asanyarray(image.dataobj) > 0, 12)
    near = ndimage.distance_transform_edt(~tissue) <= 6
    closed = (ndimage.distance_transform_edt(near) > 6) | tissue
    mask = ndimage.binary_fill_holes(closed)[12:-12, 12:-12, 12:-12]
    return Reference("freesurfer", nib.Nifti1Image(mask.astype(np.uint8), image.affine), np.eye(4))


def other_mask(scan: nib.Nifti1Image, contrast: str) -> np.ndarray:
    """deepbet's mask of a T1w, else the template's."""
    if contrast == "T1w":
        return deepbet_brain(scan.get_fdata(dtype=np.float32)) > 0.5
    return np.asarray(extract_brain_by_template(scan, contrast=contrast).dataobj) > 0


def judge(data: Path, *, model: Model | None, others: bool, keep: Path | None) -> list[dict[str, object]]:
    """A row per scan: Dice and volume (ml) of the network; where asked, Dice of deepbet or the template."""
    rows = []
    for name, (path, reference) in cases(data).items():
        scan = work_image(nib.Nifti1Image.from_filename(path))
        image = scan.get_fdata(dtype=np.float32)
        sizes = tuple(float(n) for n in nib.affines.voxel_sizes(scan.affine))
        truth = on_scan(reference, scan)
        mask = find_brain(image, voxel_size_mm=(sizes[0], sizes[1], sizes[2]), model=model) > 0.5
        ml = float(np.prod(sizes)) / 1000
        row: dict[str, object] = {"scan": name, "reference": reference.kind, "dice": round(dice(mask, truth), 4)}
        row |= {"ml": round(mask.sum() * ml), "reference_ml": round(truth.sum() * ml)}
        if others and reference.kind != "deepbet":
            row["dice_other"] = round(dice(other_mask(scan, name.rsplit("_", 1)[1]), truth), 4)
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(keep / name, image=image, truth=truth, mask=mask)
        rows.append(row)
        print(*row.values(), sep="\t", flush=True)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.judge", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", type=Path, help="model folder (default: the packaged one)")
    parser.add_argument("--others", action="store_true", help="judge deepbet (T1w) and the template as well")
    parser.add_argument("--keep", type=Path, help="write image, reference and mask of each scan here (.npz)")
    parser.add_argument("--out", type=Path, help="write the figures here (JSON), e.g. <run>/judged.json")
    args = parser.parse_args()
    model = read_model(args.model) if args.model else None
    rows = judge(args.data, model=model, others=args.others, keep=args.keep)
    print("mean", np.mean([float(str(row["dice"])) for row in rows]).round(4), sep="\t")
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

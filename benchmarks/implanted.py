"""Large lesions set into a real scan: ``python -m benchmarks.implanted``.

There are no real scans with raters' masks of infarcts or of confluent white matter hyperintensities here. So those of
``bids_ms_mni`` get lesions in the shape of real infarcts that no network was trained on, and a seam around the lateral
ventricles, as bright as the brighter of that patient's lesions; what is finer stays as texture. Writes
``implanted.tsv`` and ``implanted.md`` beside the derivatives, and prints them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.processing import resample_from_to
from scipy import ndimage

from benchmarks import app
from bidsapp.labels import CSF, GM, WM
from bidsapp.measure.agreement import agreement

#: 8 to 74 ml, all on the left; held out of every training (training/configs/segment.yml).
INFARCTS = ("Subject_031", "Subject_061", "Subject_091", "Subject_111")
#: From the lateral ventricles outwards, in white matter, mm.
SEAM_MM = 6.0
VENTRICLES = (4, 43)
#: Signal of a lesion: on FLAIR times healthy white matter's (the brighter of the raters' are: docs/training.md), on T1w
#: and T2w from white matter's on the way to grey matter's and beyond.
FLAIR_RATIO, T1W_SHARE, T2W_SHARE = 1.8, 1.2, 2.0
#: What is coarser than this (mm) becomes lesion, what is finer stays as texture.
TEXTURE_MM = 2.0
CONTRAST_SETS = {"all": ("T1w", "T2w", "FLAIR"), "FLAIR": ("FLAIR",)}


def main(argv: list[str] | None = None) -> int:
    """Run the app on the scans as they are, set lesions into them, run it again, compare."""
    parser = app.arguments(__doc__, "implanted")
    app.add_data(parser)
    args = parser.parse_args(argv)
    source = app.real_dataset(args.data, "bids_ms_mni")
    app.run_all(source, args.out / "before", args.app_options)
    with tempfile.TemporaryDirectory() as folder:
        truth = make_dataset(source, args.out / "before", args.data / "training/lesion_masks_stroke", Path(folder))
        app.run_all(Path(folder), args.out, args.app_options)
    table = compare(truth, args.out)
    table.to_csv(args.out / "implanted.tsv", sep="\t", float_format="%.3f", index=False)
    text = as_markdown(table)
    (args.out / "implanted.md").write_text(text)
    print(text)
    return 0


def make_dataset(source: Path, before: Path, masks: Path, dataset: Path) -> dict[str, np.ndarray]:
    """A subject of each lesion and set of contrasts; the lesions by subject, bool, the raters' of before among them."""
    app.begin_dataset(dataset, "implanted", "Lesions set into scans: see benchmarks/implanted.py.\n")
    results = before / "sub-26/anat/sub-26_space-orig"
    tissue = nib.load(f"{results}_seg-tissue_dseg.nii.gz")
    classes = np.asarray(tissue.dataobj)
    raters = nib.load(next(source.glob("derivatives/manual/sub-26/anat/*_label-lesion_mask.nii.gz")))
    own = np.asarray(raters.dataobj) > 0
    places = {name.replace("Subject_", "infarct"): _on(masks / f"{name}.nii.gz", tissue) for name in INFARCTS}
    structures = np.asarray(nib.load(f"{results}_seg-structures_dseg.nii.gz").dataobj)
    away = ndimage.distance_transform_edt(~np.isin(structures, VENTRICLES), sampling=tissue.header.get_zooms()[:3])
    places["seam"] = (away <= SEAM_MM) & (classes == WM.index)
    scans = {contrast: nib.load(source / f"sub-26/anat/sub-26_{contrast}.nii.gz") for contrast in CONTRAST_SETS["all"]}
    changes = {contrast: to_lesion(scan.get_fdata(), classes, contrast) for contrast, scan in scans.items()}
    truth = {}
    for name, place in places.items():
        share = ndimage.gaussian_filter(place.astype(float), 1) * (classes != CSF.index) * (classes > 0)
        for label, contrasts in CONTRAST_SETS.items():
            subject = f"{name}{label}"
            folder = dataset / f"sub-{subject}/anat"
            folder.mkdir(parents=True)
            for contrast in contrasts:
                data = np.clip(scans[contrast].get_fdata() + share * changes[contrast], 0, None).astype(np.float32)
                path = folder / f"sub-{subject}_{contrast}.nii.gz"
                nib.save(nib.Nifti1Image(data, scans[contrast].affine), path)
            truth[subject] = (share > 0.5) | own
    return truth


def to_lesion(scan: np.ndarray, classes: np.ndarray, contrast: str) -> np.ndarray:
    """What to add to each voxel of a scan to make it lesion."""
    grey, white = (float(np.median(scan[classes == label.index])) for label in (GM, WM))
    signal = {
        "FLAIR": FLAIR_RATIO * white,
        "T1w": white + T1W_SHARE * (grey - white),
        "T2w": white + T2W_SHARE * (grey - white),
    }[contrast]
    return signal - ndimage.gaussian_filter(scan, TEXTURE_MM)


def _on(path: Path, grid: nib.Nifti1Image) -> np.ndarray:
    """A mask in MNI space on the scan's grid, which lies there, too."""
    return np.asarray(resample_from_to(nib.load(path), grid, order=0).dataobj) > 0


def compare(truth: dict[str, np.ndarray], out: Path) -> pd.DataFrame:
    """Of each subject, how much of the lesion was found."""
    rows = []
    for subject, lesion in truth.items():
        image = nib.load(out / f"sub-{subject}/anat/sub-{subject}_space-orig_label-lesion_mask.nii.gz")
        score = agreement(lesion, np.asarray(image.dataobj) > 0, voxel_size_mm=image.header.get_zooms()[:3])
        ml = [volume / 1000 for volume in (score.reference_volume_mm3, score.prediction_volume_mm3)]
        rows.append((subject, *ml, score.dsc, score.tpr, score.ppv))
    return pd.DataFrame(rows, columns=["lesion, contrasts", "set in, ml", "found, ml", "DSC", "TPR", "PPV"])


def as_markdown(table: pd.DataFrame) -> str:
    """The table, and its means."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    for name, truth, found, *scores in table.itertuples(index=False):
        lines.append(f"| {name} | {truth:.1f} | {found:.1f} | " + " | ".join(f"{score:.2f}" for score in scores) + " |")
    means = table[["DSC", "TPR", "PPV"]].mean()
    return "\n".join(lines) + f"\n\nMeans: DSC {means['DSC']:.2f}, TPR {means['TPR']:.2f}, PPV {means['PPV']:.2f}.\n"


if __name__ == "__main__":
    sys.exit(main())

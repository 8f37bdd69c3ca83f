"""Agreement with the truth of the real scans: ``python -m benchmarks.accuracy``.

Runs the app on the ``bids_*`` datasets of ``../shared/data`` (sessions that are up to date are not run again), compares
brain masks, tissues and lesions with their references by the measures of Akkus et al. 2017, Table 1, and writes
``accuracy.tsv`` and ``accuracy.md`` into the output folder. Exit code 1 when a threshold is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from benchmarks import app
from benchmarks.app import REPOSITORY
from bidsapp import labels
from bidsapp.image.itk import read_itk_affine
from bidsapp.measure.agreement import agreement
from bidsapp.measure.raters import pairwise_dice
from bidsapp.out_dataset import CORTEX_ATLAS

#: Acceptance thresholds of the Dice coefficient (issue 3).
THRESHOLDS = {
    "brain": 0.96,
    "GM": 0.86,
    "WM": 0.88,
    "structures": 0.75,
    # Ours, so that a worse atlas is noticed: where both see cortex.
    "cortical regions": 0.75,
    "lobes": 0.88,
    "lesions, MNI": 0.60,
    "lesions, MNI, FLAIR alone": 0.50,
    "lesions, thick": 0.50,
    "ventricles, thick": 0.80,
}
#: Acceptance limits of what has no reference (issue 3): lesions in a healthy head, and the same brain measured twice.
HEALTHY_LESION_ML = 1.0
SPREAD_PERCENT = {"tiv_mm3": 3.0, "gm_mm3": 6.0, "wm_mm3": 6.0}

#: Brain masks of the dataset that are none: 2.4 l, with the scalp inside (look at it). Compared, but not judged.
UNSOUND_TRUTH = ("sub-19",)

#: FreeSurfer's aparc+aseg (FreeSurferColorLUT.txt): cortex, deep grey matter with accumbens and ventral diencephalon,
#: hippocampus, amygdala, cerebellar cortex.
FREESURFER_GM = (3, 42, *range(1000, 1036), *range(2000, 2036),
                 10, 11, 12, 13, 26, 28, 49, 50, 51, 52, 58, 60, 17, 18, 53, 54, 8, 47)  # fmt: skip
#: Cerebral and cerebellar white matter, corpus callosum, brain stem, hypointensities, optic chiasm.
FREESURFER_WM = (2, 41, 7, 46, 16, 77, 78, 79, 85, *range(251, 256))

#: All four: the masks drawn by hand hold the fourth, too.
VENTRICLES = (4, 5, 14, 15, 43, 44)
#: FreeSurfer's labels where they differ from ours: cortex by regions, ventricles with choroid plexus.
FREESURFER_STRUCTURES: dict[int, tuple[int, ...]] = {
    3: (3, *range(1000, 1036)), 42: (42, *range(2000, 2036)), 4: (4, 31), 43: (43, 63),
}  # fmt: skip
#: Corpus callosum and hypointensities have no sides there, so white matter is compared as a whole.
FREESURFER_CEREBRAL_WM = (2, 41, 77, 78, 79, 251, 252, 253, 254, 255)

#: Labels of cortical regions, FreeSurfer's and ours, begin here.
CORTEX_FROM = 1000

#: The baseline looks this deep inside the brain mask: nearer to the surface FLAIR is bright without lesions.
BASELINE_DEPTH_MM = 10.0
BASELINE_Z = tuple(0.25 * step for step in range(4, 13))

COLUMNS = ["dataset", "case", "structure", "method", "contrasts", "dsc", "tpr", "ppv", "vdr", "hd_mm", "hd95_mm",
           "assd_mm", "lesion_tpr", "lesion_ppv", "lesion_f1", "reference_lesions", "prediction_lesions",
           "reference_volume_mm3", "prediction_volume_mm3", "volume_difference_mm3",
           "absolute_volume_difference_mm3", "threshold", "verdict"]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison: two masks on one grid."""

    dataset: str
    case: str
    structure: str
    contrasts: str
    reference: np.ndarray
    prediction: np.ndarray
    voxel_size_mm: np.ndarray
    threshold: float | None = None
    sound: bool = True
    lesion_wise: bool = False
    method: str = "bidsapp"

    def row(self) -> dict[str, object]:
        """The comparison as a row of the table."""
        found = agreement(
            self.reference, self.prediction, voxel_size_mm=self.voxel_size_mm, lesion_wise=self.lesion_wise
        )
        row: dict[str, object] = {
            name: getattr(self, name) for name in ("dataset", "case", "structure", "method", "contrasts", "threshold")
        }
        row |= {**dataclasses.asdict(found), "verdict": ""}
        if self.threshold is not None:
            passed = "PASS" if found.dsc >= self.threshold else "FAIL"
            row["verdict"] = passed if self.sound else "reference unsound"
        return row


@dataclass(frozen=True)
class Job:
    """Comparisons of one session, made when asked for: a session without results must not cost the others theirs."""

    dataset: str
    case: str
    cases: Callable[[], Iterator[Case]]


@dataclass(frozen=True)
class Places:
    """Where the data is, where the app writes, and how it is run."""

    data: Path
    out: Path
    run_app: bool
    app_options: tuple[str, ...]

    def derivatives(self, dataset: Path, name: str) -> Path:
        """Run the app on a dataset and give the folder of its derivatives."""
        target = self.out / name
        if self.run_app and (ended := app.run(dataset, target, *self.app_options)):
            print(f"The app ended with {ended} on {dataset}: what it wrote is compared.", file=sys.stderr)
        return target


def main(argv: list[str] | None = None) -> int:
    """Run the comparisons; 1 when a threshold is missed or a result is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "../shared/data", help="folder of the real scans")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "work/accuracy", help="derivatives and tables go here")
    parser.add_argument("--only", nargs="+", choices=sorted(COMPARISONS), default=sorted(COMPARISONS))
    parser.add_argument("--no-run", action="store_true", help="compare what is in OUT; do not run the app")
    parser.add_argument("app_options", nargs="*", metavar="-- OPTION", help="passed on to run.py")
    args = parser.parse_args(argv)
    if not args.data.is_dir():
        parser.exit(1, f"{args.data}: no such folder; --data names the folder of the real scans.\n")
    places = Places(args.data.resolve(), args.out.resolve(), not args.no_run, tuple(args.app_options))
    places.out.mkdir(parents=True, exist_ok=True)

    table = compare(places, args.only)
    table.to_csv(places.out / "accuracy.tsv", sep="\t", index=False, na_rep="n/a", float_format="%.4f")
    text = as_markdown(table)
    (places.out / "accuracy.md").write_text(text)
    print(text)
    checks = consistency(places, args.only)
    checks.to_csv(places.out / "consistency.tsv", sep="\t", index=False, na_rep="n/a", float_format="%.4g")
    text = _checks_as_markdown(checks)
    (places.out / "consistency.md").write_text(text)
    print(text)
    return int((pd.concat([table["verdict"], checks["verdict"]]).isin(["FAIL", "MISSING"])).any())


def compare(places: Places, only: list[str]) -> pd.DataFrame:
    """All rows of the chosen comparisons. A result that is not there is a row with the verdict MISSING."""
    rows: list[dict[str, object]] = []
    for job in (job for name in only for job in COMPARISONS[name](places)):
        try:
            for case in job.cases():
                rows.append(case.row())
                print(f"{job.dataset} {job.case} {case.structure} {case.method}: {rows[-1]['dsc']:.3f}", flush=True)
        except FileNotFoundError as error:
            print(error, file=sys.stderr)
            rows.append({"dataset": job.dataset, "case": job.case, "verdict": "MISSING"})
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def as_markdown(table: pd.DataFrame) -> str:
    """The table in Markdown, distances in mm, volumes in ml."""
    shown = [("dataset", "dataset", ""), ("case", "case", ""), ("structure", "structure", ""), ("method", "method", ""),
             ("contrasts", "contrasts", ""), ("DSC", "dsc", ".3f"), ("TPR", "tpr", ".3f"), ("PPV", "ppv", ".3f"),
             ("VDR", "vdr", ".3f"), ("HD", "hd_mm", ".1f"), ("HD95", "hd95_mm", ".1f"), ("ASSD", "assd_mm", ".2f"),
             ("lesion TPR", "lesion_tpr", ".2f"), ("lesion PPV", "lesion_ppv", ".2f"),
             ("lesion F1", "lesion_f1", ".2f"),
             ("reference ml", "reference_volume_mm3", "ml"), ("prediction ml", "prediction_volume_mm3", "ml"),
             ("threshold", "threshold", ".2f"), ("verdict", "verdict", "")]  # fmt: skip
    lines = ["| " + " | ".join(title for title, _, _ in shown) + " |", "|" + "---|" * len(shown)]
    for row in table.to_dict("records"):
        lines.append("| " + " | ".join(_cell(row[name], form) for _, name, form in shown) + " |")
    return "\n".join(lines) + "\n"


def _checks_as_markdown(checks: pd.DataFrame) -> str:
    lines = ["| what | measured | limit | verdict |", "|---|---|---|---|"]
    for row in checks.to_dict("records"):
        lines.append(f"| {row['what']} | {_cell(row['measured'], '.3g')} | {row['limit']:g} | {row['verdict']} |")
    return "\n".join(lines) + "\n"


def _cell(value: Any, form: str) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value / 1000:.1f}" if form == "ml" else format(value, form)


# --- the comparisons --------------------------------------------------------------------------------------------------


def brain_masks(places: Places) -> Iterator[Job]:
    """Brain masks of six patients, in the common space of their two sessions."""
    dataset = places.data / "bids_ms_longitudinal"
    out = places.derivatives(dataset, dataset.name)
    for flair in sorted(dataset.glob("sub-*/ses-*/anat/*_FLAIR.nii.gz")):
        subject, session = flair.parts[-4], flair.parts[-3]
        anat = out / subject / session / "anat"
        yield Job(dataset.name, f"{subject} {session}", partial(_brain_case, places.data, flair, anat))


def _brain_case(data: Path, flair: Path, anat: Path) -> Iterator[Case]:
    """Our mask carried to the common space.

    ``study{1,2}_FLAIR_to_common_space.txt`` resample the FLAIR of session 1 or 2 onto the common grid, so they map
    points of the common space to the FLAIR, as all ITK transforms do; the images show it
    (tests/benchmarks/test_accuracy.py).
    """
    subject, session = flair.parts[-4], flair.parts[-3]
    truth_dir = data / "ms_longitudinal_truth" / subject
    truth = _load(truth_dir / f"{subject}_space-common_desc-brain_mask.nii.gz")
    mask = _load(_find(anat, "*_space-orig_desc-brain_mask.nii.gz"))
    to_mask = read_itk_affine(truth_dir / f"study{session[-1]}_FLAIR_to_common_space.txt")
    contrasts = "+".join(name for name in ("T1w", "T2w", "FLAIR") if list(flair.parent.glob(f"*_{name}.nii.gz")))
    if "T1w" in contrasts:
        to_mask = read_itk_affine(_find(anat, "*_from-orig_to-FLAIR_mode-image_xfm.txt")) @ to_mask
    yield Case(
        dataset="bids_ms_longitudinal", case=f"{subject} {session}", structure="brain mask", contrasts=contrasts,
        reference=_mask(truth), prediction=resample_mask(mask, truth, to_mask), voxel_size_mm=_voxel_size(truth),
        threshold=THRESHOLDS["brain"],
        sound=subject not in UNSOUND_TRUTH,
    )  # fmt: skip


def freesurfer(places: Places) -> Iterator[Job]:
    """Grey and white matter against FreeSurfer's automatic labels: an agreement, not a truth."""
    dataset = places.data / "bids_t1_freesurfer"
    anat = places.derivatives(dataset, dataset.name) / "sub-01/anat"
    yield Job(dataset.name, "sub-01", partial(_tissue_cases, dataset, anat))


def _tissue_cases(dataset: Path, anat: Path) -> Iterator[Case]:
    theirs = _load(_find(dataset / "derivatives/freesurfer/sub-01/anat", "*_dseg.nii.gz"))
    ours = _load(_find(anat, "*_space-orig_seg-tissue_dseg.nii.gz"))
    same_grid(theirs, ours)
    for tissue, members in ((labels.GM, FREESURFER_GM), (labels.WM, FREESURFER_WM)):
        yield Case(
            dataset=dataset.name, case="sub-01", structure=tissue.abbreviation, contrasts="T1w",
            reference=np.isin(np.asarray(theirs.dataobj), members),
            prediction=np.asarray(ours.dataobj) == tissue.index,
            voxel_size_mm=_voxel_size(ours), threshold=THRESHOLDS[tissue.abbreviation],
        )  # fmt: skip
    yield from _structure_cases(dataset.name, theirs, _load(_find(anat, "*_space-orig_seg-structures_dseg.nii.gz")))
    yield from _cortex_cases(dataset.name, theirs, _load(_find(anat, f"*_space-orig_{CORTEX_ATLAS}_dseg.nii.gz")))


def _structure_cases(dataset: str, theirs: nib.Nifti1Image, ours: nib.Nifti1Image) -> Iterator[Case]:
    """Each structure, both sides; the fluid around the brain, which FreeSurfer does not delineate, is left out."""
    reference, prediction = np.asarray(theirs.dataobj), np.asarray(ours.dataobj)
    for structure in labels.STRUCTURES:
        if structure.left == labels.EXTRA_AXIAL_CSF:
            continue
        parts = [(label.name, (label.index,)) for label in structure.labels]
        if structure.left == FREESURFER_CEREBRAL_WM[0]:
            parts = [(structure.name, (structure.left, structure.right))]
        for name, indices in parts:
            members = FREESURFER_STRUCTURES.get(indices[0], indices)
            yield Case(
                dataset=dataset, case="sub-01", structure=name, contrasts="T1w",
                reference=np.isin(reference, members if len(indices) == 1 else FREESURFER_CEREBRAL_WM),
                prediction=np.isin(prediction, indices), voxel_size_mm=_voxel_size(ours),
            )  # fmt: skip


def _cortex_cases(
    dataset: str, theirs: nib.Nifti1Image, ours: nib.Nifti1Image, *, both: bool = False
) -> Iterator[Case]:
    """Each cortical region and lobe of both sides; `both`: in the cortex of both alone, whatever its border."""
    reference, prediction = np.asarray(theirs.dataobj), np.asarray(ours.dataobj)
    if both:
        shared = (reference >= CORTEX_FROM) & (prediction >= CORTEX_FROM)
        reference, prediction = np.where(shared, reference, 0), np.where(shared, prediction, 0)
    parts = {label.name: [label.index] for region in labels.CORTICAL_REGIONS for label in region.labels}
    for lobe in labels.LOBES:
        for side, start in labels.CORTEX_SIDES.items():
            members = [start + region.index for region in labels.CORTICAL_REGIONS if region.lobe == lobe]
            parts[f"{side} {lobe} lobe"] = members
    for name, members in parts.items():
        yield Case(
            dataset=dataset, case="sub-01", structure=name, contrasts="T1w",
            reference=np.isin(reference, members), prediction=np.isin(prediction, members),
            voxel_size_mm=_voxel_size(ours),
        )  # fmt: skip


def lesions_mni(places: Places) -> Iterator[Job]:
    """Lesions of one patient, consensus of several raters: all contrasts, and with and without each of them."""
    dataset = places.data / "bids_ms_mni"
    for contrasts, limit in (
        (("T1w", "T2w", "FLAIR"), "lesions, MNI"), (("T1w", "FLAIR"), ""), (("T2w", "FLAIR"), ""),
        (("FLAIR",), "lesions, MNI, FLAIR alone"), (("T1w", "T2w"), ""), (("T1w",), ""), (("T2w",), ""),
    ):  # fmt: skip
        whole = len(contrasts) == 3
        name = dataset.name if whole else f"{dataset.name}_{''.join(contrasts)}"
        source = dataset if whole else fewer_contrasts(dataset, places.out / f"{name}_raw", contrasts)
        anat = places.derivatives(source, name) / "sub-26/anat"
        cases = partial(_lesion_cases, dataset, "sub-26", anat, "+".join(contrasts), THRESHOLDS.get(limit))
        yield Job(dataset.name, "sub-26", cases)


def lesions_thick(places: Places) -> Iterator[Job]:
    """Manual lesions of two patients, FLAIR alone, slices of 6.5 and 7.7 mm."""
    dataset = places.data / "bids_flair_thick"
    out = places.derivatives(dataset, dataset.name)
    for folder in sorted(dataset.glob("sub-*")):
        subject = folder.name
        anat = out / subject / "anat"
        cases = partial(_lesion_cases, dataset, subject, anat, "FLAIR", THRESHOLDS["lesions, thick"])
        yield Job(dataset.name, subject, cases)
        yield Job(dataset.name, subject, partial(_ventricle_cases, dataset, subject, anat))


def _ventricle_cases(dataset: Path, subject: str, anat: Path) -> Iterator[Case]:
    """The four ventricles as drawn by hand."""
    truth = manual_mask(dataset, subject, "ventricle")
    ours = _load(_find(anat, "*_space-orig_seg-structures_dseg.nii.gz"))
    same_grid(truth, ours)
    yield Case(
        dataset=dataset.name, case=subject, structure="ventricles", contrasts="FLAIR", reference=_mask(truth),
        prediction=np.isin(np.asarray(ours.dataobj), VENTRICLES), voxel_size_mm=_voxel_size(truth),
        threshold=THRESHOLDS["ventricles, thick"],
    )  # fmt: skip


def _lesion_cases(dataset: Path, subject: str, anat: Path, contrasts: str, threshold: float | None) -> Iterator[Case]:
    """Our lesions, then the baseline's where there is a FLAIR."""
    truth = manual_mask(dataset, subject, "lesion")
    flair = _load(_find(dataset / subject / "anat", "*_FLAIR.nii.gz"))
    ours = _load(_find(anat, "*_space-orig_label-lesion_mask.nii.gz"))
    brain = _load(_find(anat, "*_space-orig_desc-brain_mask.nii.gz"))
    for image in (ours, brain, flair):
        same_grid(truth, image)
    ours_here = Case(
        dataset=dataset.name, case=subject, structure="lesions", contrasts=contrasts, reference=_mask(truth),
        prediction=_mask(ours), voxel_size_mm=_voxel_size(truth), threshold=threshold, lesion_wise=True,
    )  # fmt: skip
    yield ours_here
    if "FLAIR" not in contrasts:
        return
    best, z = best_plain_threshold(
        flair.get_fdata(dtype=np.float32), _mask(brain), _mask(truth), voxel_size_mm=_voxel_size(truth)
    )
    yield dataclasses.replace(
        ours_here, prediction=best, method=f"baseline: z > {z:.2f}", contrasts="FLAIR", threshold=None
    )


def consistency(places: Places, only: list[str]) -> pd.DataFrame:
    """What has no reference: the same brain from other contrasts or another visit, and a head without lesions.

    Reads the tables that the comparisons left in the output folder. The spread is that of largest and smallest,
    relative to their mean.
    """
    rows: list[dict[str, object]] = []
    for dataset, measure in ((name, MEASURED[name]) for name in only if name in MEASURED):
        try:
            rows += [_check(*values) for values in measure(places)]
        except FileNotFoundError as error:
            print(error, file=sys.stderr)
            rows.append({"what": dataset, "verdict": "MISSING"})
    return pd.DataFrame(rows, columns=["what", "measured", "limit", "verdict"])


def _healthy(places: Places) -> Iterator[tuple[str, float, float, bool]]:
    yield "healthy T1w: mean Dice of the structures", _structure_mean(places), THRESHOLDS["structures"], True
    regions, lobes = _cortex_means(places)
    where = "in the cortex of both"
    yield f"healthy T1w: mean Dice of the cortical regions, {where}", regions, THRESHOLDS["cortical regions"], True
    yield f"healthy T1w: mean Dice of the lobes, {where}", lobes, THRESHOLDS["lobes"], True
    lesion = float(_volumes(places, "bids_t1_freesurfer", "sub-01")["lesion_mm3"])
    yield "healthy T1w: lesions, ml", lesion / 1000, HEALTHY_LESION_ML, False


def _spread(places: Places, what: str, measured: Sequence[tuple[str, str]]) -> Iterator[tuple[str, float, float, bool]]:
    rows = [_volumes(places, *where) for where in measured]
    for column, limit in SPREAD_PERCENT.items():
        values = pd.Series([row[column] for row in rows], dtype=float)
        told = ", ".join(f"{value / 1000:.0f}" for value in values)
        spread = 100 * (values.max() - values.min()) / values.mean()
        yield f"{what}: spread of {column}, % ({told} ml)", spread, limit, False


#: What `consistency` looks at, by comparison.
MEASURED: dict[str, Callable[[Places], Iterator[tuple[str, float, float, bool]]]] = {
    "freesurfer": _healthy,
    "mni": partial(
        _spread, what="sub-26, all contrasts, FLAIR, T1w",
        measured=[(name, "sub-26") for name in ("bids_ms_mni", "bids_ms_mni_FLAIR", "bids_ms_mni_T1w")],
    ),
    "brain": partial(
        _spread, what="sub-01, two visits",
        measured=[("bids_ms_longitudinal", f"sub-01/ses-{number}") for number in (1, 2)],
    ),
}  # fmt: skip


def _check(what: str, measured: float, limit: float, least: bool) -> dict[str, object]:
    verdict = "" if np.isnan(measured) else "PASS" if (measured >= limit if least else measured <= limit) else "FAIL"
    return {"what": what, "measured": measured, "limit": limit, "verdict": verdict}


def _structure_mean(places: Places) -> float:
    dataset, theirs, ours = _against_freesurfer(places, "seg-structures")
    return _mean_dice(_structure_cases(dataset, theirs, ours))


def _cortex_means(places: Places) -> tuple[float, float]:
    """Of the regions, and of the lobes, where both see cortex."""
    cases = list(_cortex_cases(*_against_freesurfer(places, CORTEX_ATLAS), both=True))
    regions, lobes = ([c for c in cases if c.structure.endswith(" lobe") is lobe] for lobe in (False, True))
    return _mean_dice(regions), _mean_dice(lobes)


def _against_freesurfer(places: Places, kind: str) -> tuple[str, nib.Nifti1Image, nib.Nifti1Image]:
    dataset = places.data / "bids_t1_freesurfer"
    theirs = _load(_find(dataset / "derivatives/freesurfer/sub-01/anat", "*_dseg.nii.gz"))
    ours = _load(_find(places.out / dataset.name / "sub-01/anat", f"*_space-orig_{kind}_dseg.nii.gz"))
    return dataset.name, theirs, ours


def _mean_dice(cases: Iterable[Case]) -> float:
    return float(np.mean([pairwise_dice([case.reference, case.prediction])[0, 1] for case in cases]))


def _volumes(places: Places, name: str, session: str) -> pd.Series:
    table = _find(places.out / name / session / "anat", "*_volumes.tsv")
    return pd.read_csv(table, sep="\t", na_values="n/a").iloc[0]


COMPARISONS: dict[str, Callable[[Places], Iterator[Job]]] = {
    "brain": brain_masks,
    "freesurfer": freesurfer,
    "mni": lesions_mni,
    "thick": lesions_thick,
}


def best_plain_threshold(
    flair: np.ndarray, brain: np.ndarray, truth: np.ndarray, *, voxel_size_mm: np.ndarray
) -> tuple[np.ndarray, float]:
    """The baseline: z-scores of FLAIR above a threshold, deep inside the brain mask.

    The threshold is picked *by the truth*, in the baseline's favour: no fixed one does better.

    Parameters
    ----------
    flair, brain, truth : ndarray, shape (X, Y, Z)
    voxel_size_mm : ndarray, shape (3,)

    Returns
    -------
    mask : ndarray of bool, shape (X, Y, Z)
    z : float
    """
    scores = (flair - flair[brain].mean()) / flair[brain].std()
    padded = np.pad(brain, 1)  # the world beyond the field of view is not brain
    depth = ndimage.distance_transform_edt(padded, sampling=voxel_size_mm)[1:-1, 1:-1, 1:-1]
    deep = depth > BASELINE_DEPTH_MM

    def dice(z: float) -> float:
        found = deep & (scores > z)
        both = int(np.count_nonzero(found & truth))
        return 2 * both / max(1, int(found.sum()) + int(truth.sum()))

    best = max(BASELINE_Z, key=dice)
    return deep & (scores > best), best


def fewer_contrasts(dataset: Path, target: Path, contrasts: tuple[str, ...]) -> Path:
    """A dataset of links to some contrasts of another."""
    for source in [dataset / "dataset_description.json", dataset / "README", dataset / "participants.tsv",
                   *(path for name in contrasts for path in dataset.glob(f"sub-*/**/*_{name}.*"))]:  # fmt: skip
        link = target / source.relative_to(dataset)
        link.parent.mkdir(parents=True, exist_ok=True)
        if source.is_file() and not link.exists():
            link.symlink_to(source)
    return target


def manual_mask(dataset: Path, subject: str, label: str) -> nib.Nifti1Image:
    """What raters drew of a subject: its ``lesion`` or its ``ventricle``."""
    return _load(_find(dataset / "derivatives/manual" / subject / "anat", f"*_label-{label}_mask.nii.gz"))


def resample_mask(mask: nib.Nifti1Image, grid: nib.Nifti1Image, to_mask: np.ndarray) -> np.ndarray:
    """Bring a mask to another grid, linear interpolation cut at one half.

    Parameters
    ----------
    mask, grid : Nifti1Image
    to_mask : ndarray, shape (4, 4)
        Points of `grid` to points of `mask`, RAS mm.

    Returns
    -------
    ndarray of bool, shape of `grid`
    """
    return resample_linear(mask, grid, to_mask) >= 0.5


def resample_linear(image: nib.Nifti1Image, grid: nib.Nifti1Image, to_image: np.ndarray) -> np.ndarray:
    """Bring an image to another grid: float32, 0 beyond it; `to_image` as in `resample_mask`."""
    matrix = np.linalg.inv(image.affine) @ to_image @ grid.affine
    data = np.asarray(image.dataobj, dtype=np.float32)
    return ndimage.affine_transform(data, matrix[:3, :3], matrix[:3, 3], output_shape=grid.shape[:3], order=1)


def _find(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(f"{folder}: {len(found)} files match {pattern}, one is needed. Did the app run there?")
    return found[0]


def _load(path: Path) -> nib.Nifti1Image:
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    return image


def same_grid(a: nib.Nifti1Image, b: nib.Nifti1Image) -> None:
    if a.shape != b.shape or not np.allclose(a.affine, b.affine, atol=1e-3):
        raise ValueError(f"{a.get_filename()} and {b.get_filename()} are not on one grid.")


def _mask(image: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(image.dataobj) > 0


def _voxel_size(image: nib.Nifti1Image) -> np.ndarray:
    return nib.affines.voxel_sizes(image.affine)


if __name__ == "__main__":
    raise SystemExit(main())

"""Changes of lesions against the change masks of `ms_longitudinal_truth`: what is found, and what is a false alarm.

    python -m benchmarks.change OUT_DIR [--data ../shared/data] [--write docs/lesions.md]

OUT_DIR holds the finished participant level of `bids_ms_longitudinal`. The truth (Lesjak et al. 2016, Neuroinformatics
14:403-420) marks changes of any kind, also darkening and changes that FLAIR hardly shows; it does not say which are new
lesions. So each marked region is sorted by what FLAIR itself does there, which no segmentation has a part in.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from bidsapp.image.itk import affine_from_itk, read_itk_affine
from bidsapp.image.resample import resample
from bidsapp.interfaces.finished import Finished, finished_sessions
from bidsapp.labels import CHANGE_GROWTH, CHANGE_LOSS, CHANGE_NEW, CHANGE_RESOLVED, PARENCHYMA, WM
from bidsapp.measure.change import Visit, brightness_difference

ROOT = Path(__file__).resolve().parents[1]
CONNECTIVITY = np.ones((3, 3, 3))
#: Mean change of FLAIR (standard deviations of white matter's) from which a marked region is brighter, or darker.
VISIBLE = 2.0
MARK = "<!-- benchmarks.change -->"


@dataclass(frozen=True)
class Score:
    """One subject."""

    subject: str
    marked: int
    brighter: int
    brighter_found: int
    brighter_mm3: float
    brighter_found_mm3: float
    darker: int
    darker_found: int
    reported: int
    false: int
    false_mm3: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Score every subject with a truth and a change map; 1 where there is none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--write", type=Path, help="put the table into this page, between its marks")
    options = parser.parse_args(arguments)
    scores = list(scored(options.out_dir, options.data / "ms_longitudinal_truth"))
    if not scores:
        print(f"{options.out_dir}: no subject has a change map and a truth in {options.data}.")
        return 1
    text = as_markdown(scores)
    print(text)
    if options.write is not None:
        before, _, rest = options.write.read_text().partition(MARK)
        options.write.write_text(f"{before}{MARK}\n{text}\n{MARK}{rest.partition(MARK)[2]}")
    return 0


def scored(out_dir: Path, truth: Path) -> Iterator[Score]:
    """A score of each subject, in order."""
    for folder in sorted(truth.glob("sub-*")):
        maps = sorted((out_dir / folder.name / "anat").glob("*_space-halfway_seg-change_desc-*_dseg.nii.gz"))
        if len(maps) == 1:
            yield score(out_dir, folder, maps[0])


def score(out_dir: Path, truth: Path, map_file: Path) -> Score:
    """Compare a change map with the marked regions, in the half-way space."""
    subject = truth.name.removeprefix("sub-")
    sessions = finished_sessions(out_dir, subject)
    image = nib.load(map_file)
    change = np.asarray(image.dataobj)
    marked = marked_regions(truth, sessions[0], image)
    visits = [_visit(out_dir, subject, one, image) for one in sessions]
    difference, common = brightness_difference(*visits)
    least = _minimum(out_dir, subject)
    gained, lost = (np.isin(change, [label.index for label in labels])
                    for labels in ((CHANGE_NEW, CHANGE_GROWTH), (CHANGE_LOSS, CHANGE_RESOLVED)))  # fmt: skip
    regions = list(_regions(marked & common, difference, least))
    brighter = [where for where, mean in regions if mean >= VISIBLE]
    darker = [where for where, mean in regions if mean <= -VISIBLE]
    reported = [where for where, _ in _regions(gained, difference, least)]
    false = [where for where in reported if not marked[where].any()]
    return Score(
        subject=subject,
        marked=len(regions),
        brighter=len(brighter),
        brighter_found=sum(bool(gained[where].any()) for where in brighter),
        brighter_mm3=float(sum(len(where[0]) for where in brighter)),
        brighter_found_mm3=float(sum(gained[where].sum() for where in brighter)),
        darker=len(darker),
        darker_found=sum(bool(lost[where].any()) for where in darker),
        reported=len(reported),
        false=len(false),
        false_mm3=float(sum(len(where[0]) for where in false)),
    )


def as_markdown(scores: Sequence[Score]) -> str:
    """The table of the documentation, and the sums."""
    rows = [
        "| subject | marked | brighter, found | of their volume | darker, found | told as new, grown | false alarms |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in scores:
        share = f"{100 * one.brighter_found_mm3 / one.brighter_mm3:.0f} %" if one.brighter_mm3 else "–"
        rows.append(
            f"| sub-{one.subject} | {one.marked} | {one.brighter_found} of {one.brighter} | {share} |"
            f" {one.darker_found} of {one.darker} | {one.reported} | {one.false} ({one.false_mm3 / 1000:.2f} ml) |"
        )
    frame = pd.DataFrame([vars(one) for one in scores]).sum(numeric_only=True)
    told = (
        f"Together: sensitivity {frame['brighter_found'] / max(1, frame['brighter']):.2f} of {frame['brighter']:.0f}"
        f" regions that became brighter ({frame['brighter_found_mm3'] / max(1, frame['brighter_mm3']):.2f} of their"
        f" volume), {frame['darker_found'] / max(1, frame['darker']):.2f} of {frame['darker']:.0f} that became darker;"
        f" {frame['false'] / len(scores):.1f} false alarms per pair of sessions,"
        f" {frame['false'] / max(1, frame['reported']):.2f} of what is told."
    )
    return "\n".join(rows) + f"\n\n{told}"


def marked_regions(truth: Path, session: Finished, grid: nib.Nifti1Image) -> np.ndarray:
    """The truth's change mask in the half-way space, by way of the first session's FLAIR."""
    name = truth.name
    image = nib.load(next(truth.glob("*_space-common_desc-change_mask.nii.gz")))
    marked = nib.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32), image.affine)
    to_common = np.linalg.inv(_truth_matrix(truth / "study1_FLAIR_to_common_space.txt"))
    folder = session.record_file.parents[2] / "anat"
    to_session = read_itk_affine(folder / f"{name}_{session.label}_from-orig_to-halfway_mode-image_xfm.txt")
    chain = [to_session]
    if session.record["reference"] != "FLAIR":
        chain.append(read_itk_affine(session.path("_from-FLAIR_to-orig_mode-image_xfm.txt")))
    return np.asarray(resample(marked, grid, transform=[*chain, to_common]).dataobj) > 0.5


def _truth_matrix(path: Path) -> np.ndarray:
    rows = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return affine_from_itk(*(np.array(rows[key].split(), dtype=float) for key in ("Parameters", "FixedParameters")))


def _visit(out_dir: Path, subject: str, one: Finished, grid: nib.Nifti1Image) -> Visit:
    folder = out_dir / f"sub-{subject}" / "anat"
    matrix = read_itk_affine(folder / f"sub-{subject}_{one.label}_from-orig_to-halfway_mode-image_xfm.txt")

    def carried(mask: np.ndarray, like: nib.Nifti1Image) -> np.ndarray:
        moved = resample(nib.Nifti1Image(mask.astype(np.float32), like.affine), grid, transform=matrix)
        return np.asarray(moved.dataobj) > 0.5

    lesion, dseg = (nib.load(one.path(end)) for end in ("_label-lesion_mask.nii.gz", "_seg-tissue_dseg.nii.gz"))
    labels = np.asarray(dseg.dataobj)
    white = np.isin(labels, (WM.index, PARENCHYMA.index))
    return Visit(
        lesion=carried(np.asarray(lesion.dataobj) > 0, lesion),
        flair=np.asarray(resample(one.scan("FLAIR"), grid, transform=matrix).dataobj),
        brain=carried(np.asarray(one.mask.dataobj) > 0, one.mask),
        white=carried(white, dseg),
    )


def _minimum(out_dir: Path, subject: str) -> float:
    table = pd.read_csv(out_dir / f"sub-{subject}" / "anat" / f"sub-{subject}_changes.tsv", sep="\t")
    return float(table["minimum_change_mm3"].iloc[0])


def _regions(mask: np.ndarray, difference: np.ndarray, least: float) -> Iterator[tuple[tuple[np.ndarray, ...], float]]:
    """Connected regions of at least the least volume (mm3 of 1 mm voxels), and the mean change of FLAIR in them."""
    labels, _ = ndimage.label(mask, CONNECTIVITY)
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        where = np.nonzero(labels[box] == index)
        if len(where[0]) >= least:
            place = tuple(axis + part.start for axis, part in zip(where, box, strict=True))
            yield place, float(difference[place].mean())


if __name__ == "__main__":
    raise SystemExit(main())

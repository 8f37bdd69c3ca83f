"""Brain masks and their references, to be looked at: ``python -m benchmarks.brain_pictures --out OUT``.

OUT is the folder that ``python -m benchmarks.accuracy`` wrote (``--only brain`` is enough). Draws for each session of
``bids_ms_longitudinal`` the outline of the dataset's mask and of ours on the FLAIR, in the dataset's common space, into
``OUT/brain_masks.png``: which of the two is wrong where they differ is a question for the eye.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import nibabel as nib
import numpy as np

from benchmarks.accuracy import Case, Places, brain_masks, resample_linear
from benchmarks.app import REPOSITORY
from bidsapp.image.itk import read_itk_affine

mpl.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {"reference": "lime", "bidsapp": "red"}
#: Where the brain is cut: axis, and the share of its extent along it.
CUTS = ((0, 0.44), (1, 0.4), (1, 0.65), (2, 0.3), (2, 0.8))


def main(argv: list[str] | None = None) -> int:
    """Draw all sessions that have results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "../shared/data", help="folder of the real scans")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "work/accuracy", help="what the benchmark wrote")
    args = parser.parse_args(argv)
    places = Places(args.data.resolve(), args.out.resolve(), run_app=False, app_options=())
    cases = [case for job in brain_masks(places) for case in job.cases()]
    figure, axes = plt.subplots(len(cases), len(CUTS), figsize=(4 * len(CUTS), 3.6 * len(cases)), squeeze=False)
    for row, case in zip(axes, cases, strict=True):
        flair = flair_in_common_space(places.data, case)
        for axis, (along, share) in zip(row, CUTS, strict=True):
            draw(axis, case, flair, along, share)
        row[0].set_title(f"{case.case}: Dice {case.row()['dsc']:.3f}", loc="left")
    figure.suptitle(", ".join(f"{colour}: {name}" for name, colour in COLOURS.items()))
    figure.tight_layout()
    figure.savefig(args.out / "brain_masks.png", dpi=60)
    print(args.out / "brain_masks.png")
    return 0


def flair_in_common_space(data: Path, case: Case) -> np.ndarray:
    """The session's FLAIR on the grid of the reference."""
    subject, session = case.case.split()
    truth = data / "ms_longitudinal_truth" / subject
    grid = nib.load(truth / f"{subject}_space-common_desc-brain_mask.nii.gz")
    image = nib.load(next((data / "bids_ms_longitudinal" / subject / session / "anat").glob("*_FLAIR.nii.gz")))
    to_flair = read_itk_affine(truth / f"study{session[-1]}_FLAIR_to_common_space.txt")
    return resample_linear(image, grid, to_flair)


def draw(axis: plt.Axes, case: Case, flair: np.ndarray, along: int, share: float) -> None:
    """One slice with both outlines."""
    seen = np.flatnonzero(case.prediction.any(tuple({0, 1, 2} - {along})))
    index = int(seen[0] + share * (seen[-1] - seen[0]))
    size = np.delete(case.voxel_size_mm, along)
    axis.imshow(
        np.take(flair, index, along).T, cmap="gray", origin="lower", aspect=size[1] / size[0],
        vmax=np.percentile(flair, 99.5),
    )  # fmt: skip
    for mask, colour in ((case.reference, COLOURS["reference"]), (case.prediction, COLOURS["bidsapp"])):
        outline = np.take(mask, index, along).T
        if outline.any():
            axis.contour(outline, [0.5], colors=colour, linewidths=1)
    axis.axis("off")


if __name__ == "__main__":
    raise SystemExit(main())

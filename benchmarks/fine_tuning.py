"""Fine-tuning on few real cases, judged on others: ``python -m benchmarks.fine_tuning``.

Leave-one-out over the labelled real cases of ``../shared/data``: the packaged network is fine-tuned on two and judged
on the third, beside what it was before. The figures are in ``trained/crossvalidation/evaluation`` of the output folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import app
from benchmarks.app import REPOSITORY
from bidsapp import train

DATASETS = ("bids_ms_mni", "bids_flair_thick")


def main() -> int:
    """Command line; what it does not know goes to ``bidsapp train``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "../shared/data")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "work/fine_tuning")
    args, more = parser.parse_known_args()
    scans, labels = united(args.data.resolve(), args.out)
    return train.main([
        str(scans), str(args.out / "trained"), "--labels", str(labels), "--folds", "loo", "--skip-bids-validation",
        *more,
    ])  # fmt: skip


def united(data: Path, out: Path) -> tuple[Path, Path]:
    """Links to the subjects of all datasets, as one dataset, and to their labels."""
    scans, labels = out / "bids", out / "labels"
    for folder in (scans, labels):
        app.begin_dataset(folder, "labelled real cases")
    for name in DATASETS:
        for folder, source in ((scans, data / name), (labels, data / name / "derivatives/manual")):
            for subject in source.glob("sub-*"):
                if not (folder / subject.name).exists():
                    (folder / subject.name).symlink_to(subject)
    return scans, labels


if __name__ == "__main__":
    raise SystemExit(main())

"""``python -m demo OUT``: write the demo dataset."""

from __future__ import annotations

import argparse
from pathlib import Path

from demo.dataset import make_dataset


def main() -> None:
    """Read the command line and write the dataset."""
    parser = argparse.ArgumentParser(
        prog="python -m demo", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the dataset; replaced where it exists")
    parser.add_argument("--subjects", type=int, default=2, help="number of subjects")
    parser.add_argument("--resolution", type=float, default=2.0, metavar="MM", help="voxel size")
    parser.add_argument("--seed", type=int, default=1, help="seed of everything random")
    chosen = parser.parse_args()
    try:
        make_dataset(chosen.out, n_subjects=chosen.subjects, voxel_size=chosen.resolution, seed=chosen.seed)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    print(
        f"{chosen.out}: {len(list(chosen.out.glob('sub-*/ses-*/anat/*.nii.gz')))} scans of {chosen.subjects} subjects"
    )


if __name__ == "__main__":
    main()

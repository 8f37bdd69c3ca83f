"""``python -m training CONFIG.yml``: train, continue, or export a network, or pack what it is trained on."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("config", type=Path, help="e.g. training/configs/brain.yml")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--steps", type=int, help="instead of the configuration's")
    parser.add_argument("--heads", help="folder of the label maps, instead of the configuration's")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop (and save) after this long")
    parser.add_argument(
        "--finish", type=float, default=float("inf"), metavar="MINUTES",
        help="be done after this long: the learning rate falls with the time, if that is over before the steps are",
    )  # fmt: skip
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--pack", type=Path, help="train nothing; write the label maps and masks into this one file")
    parser.add_argument("--packed", type=Path, help="such a file, instead of the folders that the configuration names")
    parser.add_argument("--export", type=Path, help="train nothing; write the run's averaged weights into this folder")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    import torch

    from training.config import load_config

    config = load_config(args.config, steps=args.steps, heads=args.heads)
    folder = args.runs / f"{config.name}-{config.version}"
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.pack:
        from training.material import pack

        pack(config, folder, args.pack)
    elif args.export:
        from training.export import export

        export(config, run=folder, out=args.export, device=device, packed=args.packed)
    else:
        from training.loop import train

        train(
            config, folder=folder, device=device, max_seconds=args.minutes * 60, finish_seconds=args.finish * 60,
            packed=args.packed,
        )  # fmt: skip


if __name__ == "__main__":
    main()

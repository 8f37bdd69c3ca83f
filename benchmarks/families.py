"""The three families of networks, trained alike: ``python -m benchmarks.families``.

Semantic-wise (``unet``), patch-wise (``patchwise``) and ``cascade`` (Akkus et al. 2017) learn white-matter lesions from
scratch, on the same synthetic scans (label maps and lesion masks of ``../shared/data/training``), each for the same CPU
time on one core, and are judged on the labelled real cases, which none was trained on. Writes ``families.tsv`` and
``families.md``: agreement, seconds and memory a scan, size. ``--no-train`` judges what is there; ``--only packaged``
the packaged network alone, which is always judged beside them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch

from benchmarks.app import REPOSITORY
from bidsapp import train
from bidsapp.labels import CONTRASTS
from bidsapp.learn.cases import Stored
from bidsapp.learn.generator import Generator
from bidsapp.learn.heads import load_heads
from bidsapp.learn.lesion_masks import load_lesions
from bidsapp.learn.run import Training, make_network, predict_drawn, scan_size, stripped_scans, train_model, trial
from bidsapp.measure.agreement import agreement
from bidsapp.models.registry import Model, read_model
from bidsapp.progress import Progress

CLASSES = ("background", "lesion")
TRAINED_ON = tuple(f"{n:02d}" for n in range(1, 17))
#: Masks of these patients are held out, as for the packaged network: sub-26 is one of the real cases.
HELD_OUT_LESIONS = ("26", "27", "28", "29", "30")
MEASURES = ("dsc", "tpr", "ppv", "lesion_tpr", "lesion_ppv", "lesion_f1", "hd95_mm", "assd_mm", "volume_difference_mm3")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "../shared/data")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "work/families")
    parser.add_argument("--minutes", type=float, default=20, help="CPU time of each family's training")
    parser.add_argument("--only", nargs="+", default=["unet", "patchwise", "cascade"])
    parser.add_argument("--no-train", action="store_true")
    parser.add_argument("--predict", nargs=3, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.predict:
        print(json.dumps(_predict(*args.predict)))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    families = [family for family in args.only if family != "packaged"]
    if not args.no_train:
        for family in families:
            learn(family, data=args.data.resolve(), out=args.out, seconds=60 * args.minutes)
    folders = labelled_cases(args.data.resolve(), args.out)
    rows = [row for family in families for row in judge(family, args.out / family / "model", folders)]
    rows += judge("packaged", None, folders)
    table = pd.DataFrame(rows)
    table.to_csv(args.out / "families.tsv", sep="\t", index=False, float_format="%.4f")
    text = as_markdown(table)
    (args.out / "families.md").write_text(text)
    print(text)


def learn(family: str, *, data: Path, out: Path, seconds: float) -> None:
    """Train a family on synthetic scans alone for as many steps as fit into `seconds` of one core."""
    unet = Training(name="unet", classes=CLASSES, synthetic=1.0, validate_every=250)
    if family == "unet":
        _train(unet, out / family, data, seconds)
        return
    patchwise = dataclasses.replace(unet, name=family, architecture="TwoPathway")
    if family == "cascade":
        first = _train(unet, out / family / "first", data, seconds / 2)
        patchwise, seconds = dataclasses.replace(patchwise, first=first), seconds / 2
    _train(patchwise, out / family, data, seconds)


def _train(training: Training, folder: Path, data: Path, seconds: float) -> Model | None:
    heads = load_heads(data / "training/head_label_maps", TRAINED_ON, cache=folder.parents[0] / "cache", device="cpu")
    lesions = load_lesions(data / "training/lesion_masks_ms", device="cpu", leave_out=HELD_OUT_LESIONS)
    size = scan_size(make_network(training), training.architecture)
    planned = folder / "steps.json"
    if not planned.exists():  # one that is continued keeps its schedule
        trial(training, device="cpu", steps=1)  # the first one imports and prepares things
        began = time.process_time()
        trial(training, device="cpu", steps=7)
        folder.mkdir(parents=True, exist_ok=True)
        planned.write_text(json.dumps({"steps": int(seconds / ((time.process_time() - began) / 8))}))
    training = dataclasses.replace(training, steps=json.loads(planned.read_text())["steps"])
    print(f"{folder.name}: {training.architecture}, {training.steps} steps", flush=True)
    began = time.monotonic()

    def tell(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"{folder.name}: step {step}, loss {loss:.3f}, {time.monotonic() - began:.0f} s", flush=True)

    generator = Generator(heads, stripped_scans(size), lesions)
    return train_model([], training, folder=folder, generator=generator, on_step=tell)


def labelled_cases(data: Path, out: Path) -> dict[str, Path]:
    """The real cases, prepared as by ``bidsapp train``: name -> folder."""
    found = {}
    for name in ("bids_ms_mni", "bids_flair_thick"):
        options = train.parse([
            str(data / name), str(out / "prepared" / name), "--labels", str(data / name / "derivatives/manual"),
            "--folds", "0", "--skip-bids-validation",
        ])  # fmt: skip
        say = Progress()
        cases = train.labelled(options, say)
        train.prepare(cases, CONTRASTS, options, say)
        found |= {case.inputs.name: train.case_folder(options, case.inputs) for case in cases}
    return found


def judge(family: str, folder: Path | None, cases: dict[str, Path]) -> list[dict[str, object]]:
    """A row a case; `folder` None is the packaged network."""
    folder = folder or sorted((REPOSITORY / "bidsapp/models/weights").glob("segment-*"))[-1]
    model = read_model(folder)
    rows = []
    for name, case in cases.items():
        drawn = Stored.read(case).drawn()
        with tempfile.TemporaryDirectory() as aside:  # a process of its own, whose memory can be told
            found = Path(aside) / "found.npy"
            command = [sys.executable, "-m", "benchmarks.families", "--predict", str(folder), str(case), str(found)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
            spent, mask = json.loads(done.stdout), np.load(found) > 0
        found_agreement = agreement(
            np.asarray(drawn.dataobj) > 0, mask, voxel_size_mm=nib.affines.voxel_sizes(drawn.affine), lesion_wise=True
        )
        rows.append({
            "family": family, "case": name, **{key: getattr(found_agreement, key) for key in MEASURES}, **spent,
            "parameters": sum(p.numel() for p in model.network.parameters())
            + (sum(p.numel() for p in model.first.network.parameters()) if model.first else 0),
            "megabytes": sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 1e6,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def _predict(folder: Path, case: Path, out: Path) -> dict[str, float]:
    """Predict a case into a file; CPU seconds, the loading of the model apart, and the most memory."""
    model = read_model(folder)
    began = time.process_time()
    found = predict_drawn(model, case, device="cpu")
    seconds = time.process_time() - began
    np.save(out, found)
    return {"cpu_seconds": seconds, "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def as_markdown(table: pd.DataFrame) -> str:
    """A line for each family and case."""
    shown = {"family": "", "case": "", "dsc": ".3f", "tpr": ".3f", "ppv": ".3f", "lesion_tpr": ".2f",
             "lesion_ppv": ".2f", "hd95_mm": ".1f", "assd_mm": ".2f", "cpu_seconds": ".0f", "memory_gb": ".1f",
             "parameters": ",", "megabytes": ".1f"}  # fmt: skip
    lines = ["| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    for row in table.to_dict("records"):
        lines.append("| " + " | ".join(format(row[key], form) for key, form in shown.items()) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""Whole synthetic heads whose truth is known: ``python -m benchmarks.synthetic``.

Renders the four heads that no network was trained on, with skull, lesions of held-out patients and the contrasts and
slices of a research or a clinical protocol, one after the other, runs the app on them with one, two or three contrasts,
and compares brain mask, tissues and lesions with what was drawn. They are no real scans; but all is known of them, the
networks saw neither the heads nor the lesions, and there are more of them than real scans with a reference. Tells,
too, how sure of a lesion the models should have to be (`consensus.LESION_SEED`). Writes ``synthetic.tsv`` and
``synthetic.md`` into the output folder.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch

from benchmarks import app
from benchmarks.app import REPOSITORY
from benchmarks.robustness import coarser
from bidsapp import labels
from bidsapp.image.grid import labels_onto
from bidsapp.labels import CONTRASTS
from bidsapp.learn.anatomy import STRUCTURES
from bidsapp.learn.generator import Generator, Sample
from bidsapp.learn.generator_config import STRIPPED
from bidsapp.learn.heads import load_heads
from bidsapp.learn.lesion_masks import load_lesions
from bidsapp.measure.agreement import agreement
from bidsapp.models.consensus import LESION_THRESHOLD
from bidsapp.models.segment import lesion_mask
from training.config import TrainConfig

#: As the networks' samples, but whole heads, drawn once and without the faults that `PROTOCOLS` and noise bring.
WHOLE = replace(
    STRIPPED, patch=0, p_stripped=0.0, p_clean=0.0, p_defaced=0.3, p_drop=0.0, p_thick=0.0, p_random_contrast=0.0,
    p_strange_outside=0.3, view_sides_mm=(5.0, 20.0), view_top_mm=(5.0, 20.0), view_bottom_mm=(10.0, 60.0),
    bias=(0.1, 0.3), noise=(0.005, 0.03), p_lesions=1.0,
)  # fmt: skip
#: Voxels in mm, right to left, back to front, bottom to top.
PROTOCOLS = {
    "3D, 1 mm": dict.fromkeys(CONTRASTS, (1.0, 1.0, 1.0)),
    "2D, 3 to 5 mm": {"T1w": (0.9, 0.9, 3.0), "T2w": (0.9, 0.9, 3.0), "FLAIR": (0.9, 0.9, 5.0)},
}
SETS = (("T1w", "T2w", "FLAIR"), ("T1w", "FLAIR"), ("T1w",), ("FLAIR",), ("T2w",))
SEED = 3 * 10**15
#: Tried for `consensus.LESION_SEED`.
LESION_SEEDS = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)


@dataclass(frozen=True)
class Session:
    """One head by one protocol, with some of its contrasts."""

    head: str
    protocol: str
    contrasts: tuple[str, ...]

    @property
    def subject(self) -> str:
        return f"sub-{self.head}{self.protocol[:2]}{''.join(self.contrasts)}"


def main(argv: list[str] | None = None) -> int:
    """Render, run, compare; 1 where a session came to nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "../shared/data", help="with training material")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "work/synthetic", help="scans, derivatives, tables")
    parser.add_argument("--heads", nargs="+", default=list(TrainConfig.held_out_heads), help="label maps (all four)")
    parser.add_argument("--no-run", action="store_true", help="compare what is in OUT; do not run the app")
    args = parser.parse_args(argv)
    if not (args.data / "training").is_dir():
        parser.exit(1, f"{args.data}/training: no such folder; --data names the folder that holds it.\n")
    dataset, derivatives = args.out / "bids", args.out / "derivatives"
    sessions = sessions_of(args.heads)
    render(args.data / "training", args.heads, dataset)
    if not args.no_run:
        app.run(dataset, derivatives, "--skip-bids-validation")
    table = pd.DataFrame([compare(session, dataset, derivatives) for session in sessions])
    table.to_csv(args.out / "synthetic.tsv", sep="\t", index=False, na_rep="n/a", float_format="%.4f")
    text = as_markdown(table) + "\n" + seeds_as_markdown(lesion_seeds(sessions, dataset, derivatives))
    (args.out / "synthetic.md").write_text(text)
    print(text)
    return int(table["brain"].isna().any())


def sessions_of(names: Sequence[str]) -> list[Session]:
    """Each head by one of the protocols, with each set of contrasts."""
    by_protocol = zip(names, itertools.cycle(PROTOCOLS))
    return [Session(*who, contrasts) for who, contrasts in itertools.product(by_protocol, SETS)]


def render(material: Path, names: Sequence[str], dataset: Path) -> None:
    """Scans and truth of the heads, those that are not there yet, as a BIDS dataset."""
    missing = [name for name in names if not _truth(dataset, name).exists()]
    if not missing:
        return
    app.begin_dataset(dataset, "Synthetic heads")
    heads = load_heads(material / "head_label_maps", tuple(names), cache=dataset.parent / "cache", device="cpu")
    lesions = load_lesions(material / "lesion_masks_ms", device="cpu", only=TrainConfig.held_out_lesions)
    make = Generator(heads, WHOLE, lesions)
    for name in missing:
        sample = make.sample(SEED + int(name), head=names.index(name))
        for session in sessions_of(names):
            if session.head == name:
                _write_scans(sample, session, dataset)
        path = _truth(dataset, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.Nifti1Image(truth(sample), np.eye(4)).to_filename(path)


def truth(sample: Sample) -> np.ndarray:
    """What was drawn: 0 outside the brain, else the tissue's or the lesion's index, uint8."""
    tissue_of = {
        side: structure.tissue.index for structure in labels.STRUCTURES for side in (structure.left, structure.right)
    }
    table = torch.tensor([tissue_of.get(structure.target, labels.CSF.index) for structure in STRUCTURES])
    tissues = torch.where(sample.lesion > 0.5, labels.LESION.index, table[sample.labels])
    return (tissues * (sample.distance > 0)).numpy().astype(np.uint8)


def _truth(dataset: Path, name: str) -> Path:
    return dataset / "derivatives/truth" / f"head-{name}_dseg.nii.gz"


def _truth_on(grid: nib.Nifti1Image, dataset: Path, name: str) -> np.ndarray:
    return np.asarray(labels_onto(nib.load(_truth(dataset, name)), grid).dataobj)


def _write_scans(sample: Sample, session: Session, dataset: Path) -> None:
    anat = dataset / session.subject / "anat"
    anat.mkdir(parents=True, exist_ok=True)
    for contrast in session.contrasts:
        data = 1000 * sample.image[CONTRASTS.index(contrast)].numpy()
        spacing = PROTOCOLS[session.protocol][contrast]
        data, affine = coarser((data, np.eye(4)), np.random.default_rng(0), spacing_mm=spacing)
        image = nib.Nifti1Image(np.round(data).astype(np.int16), affine)
        image.to_filename(anat / f"{session.subject}_{contrast}.nii.gz")


def compare(session: Session, dataset: Path, derivatives: Path) -> dict[str, object]:
    """Dice with the truth on the grid of the result, and volumes relative to it; nan where there is no result."""
    row: dict[str, object] = {
        "head": session.head, "protocol": session.protocol, "contrasts": "+".join(session.contrasts),
    }  # fmt: skip
    anat = derivatives / session.subject / "anat"
    names = ("brain", "gm", "wm", "csf", "gm_ratio", "wm_ratio", "lesion", "lesion_tpr", "lesion_ppv")
    masks = sorted(anat.glob("*_space-orig_desc-brain_mask.nii.gz"))
    if not masks:
        return row | dict.fromkeys(names, np.nan)
    brain = nib.load(masks[0])
    real = _truth_on(brain, dataset, session.head)
    found = np.asarray(nib.load(next(anat.glob("*_space-orig_seg-tissue_dseg.nii.gz"))).dataobj)
    size = nib.affines.voxel_sizes(brain.affine)
    row["brain"] = agreement(real > 0, np.asarray(brain.dataobj) > 0, voxel_size_mm=size).dsc
    for tissue in labels.TISSUES:
        row[tissue.abbreviation.lower()] = agreement(
            real == tissue.index, found == tissue.index, voxel_size_mm=size
        ).dsc
    for tissue in (labels.GM, labels.WM):
        row[f"{tissue.abbreviation.lower()}_ratio"] = (found == tissue.index).sum() / (real == tissue.index).sum()
    ill = (real == labels.LESION.index, found == labels.LESION.index)
    lesions = agreement(*ill, voxel_size_mm=size, lesion_wise=True)
    row |= {"lesion": lesions.dsc, "lesion_tpr": lesions.lesion_tpr, "lesion_ppv": lesions.lesion_ppv}
    row |= {f"{name}_ml": mask.sum() * np.prod(size) / 1000 for name, mask in zip(("true", "found"), ill, strict=True)}
    return row


def lesion_seeds(sessions: Sequence[Session], dataset: Path, derivatives: Path) -> pd.DataFrame:
    """How many lesions there are, are found, and are right, by `LESION_SEEDS`: of the sessions with a FLAIR.

    From the probabilities that were written, whatever seed they were written with.
    """
    rows = []
    for session in (one for one in sessions if "FLAIR" in one.contrasts):
        anat = derivatives / session.subject / "anat"
        for path in anat.glob("*_space-orig_label-lesion_probseg.nii.gz"):
            image = nib.load(path)
            probability, size = np.asarray(image.dataobj), nib.affines.voxel_sizes(image.affine)
            real = _truth_on(image, dataset, session.head) == labels.LESION.index
            for seed in LESION_SEEDS:
                found = lesion_mask(probability, threshold=LESION_THRESHOLD, seed=seed, voxel_size_mm=size)
                lesions = agreement(real, found, voxel_size_mm=size, lesion_wise=True)
                there, said = lesions.reference_lesions or 0, lesions.prediction_lesions or 0
                rows.append({
                    "protocol": session.protocol, "seed": seed, "there": there, "said": said,
                    "found": there * np.nan_to_num(lesions.lesion_tpr),
                    "right": said * np.nan_to_num(lesions.lesion_ppv), "lesion": lesions.dsc,
                })  # fmt: skip
    return pd.DataFrame(rows)


def seeds_as_markdown(table: pd.DataFrame) -> str:
    """Lesion-wise TPR, PPV and F1 of all lesions of a protocol together, and the mean Dice of its sessions, by seed."""
    lines = ["| protocol, with a FLAIR | seed | TPR, PPV, F1 by lesion | lesions |", "|---|---|---|---|"]
    for (protocol, seed), rows in table.groupby(["protocol", "seed"], sort=False) if len(table) else ():
        total = rows.sum(numeric_only=True)
        tpr, ppv = total["found"] / max(total["there"], 1), total["right"] / max(total["said"], 1)
        f1 = 2 * tpr * ppv / max(tpr + ppv, 1e-9)
        lines.append(f"| {protocol} | {seed} | {tpr:.2f}, {ppv:.2f}, {f1:.3f} | {rows['lesion'].mean():.3f} |")
    return "\n".join(lines) + "\n"


def as_markdown(table: pd.DataFrame) -> str:
    """Means over the heads, by protocol and contrasts; and the worst brain mask."""
    titles = ("protocol", "contrasts", "brain (worst)", "GM", "WM", "CSF", "GM, WM: found / true", "lesions",
              "TPR, PPV by lesion", "lesions, ml: true, found")  # fmt: skip
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for (protocol, contrasts), rows in table.groupby(["protocol", "contrasts"], sort=False):
        mean = rows.mean(numeric_only=True)
        cells = [protocol, contrasts, f"{mean['brain']:.3f} ({rows['brain'].min():.3f})"]
        cells += [f"{mean[name]:.3f}" for name in ("gm", "wm", "csf")]
        cells += [f"{mean['gm_ratio']:.2f}, {mean['wm_ratio']:.2f}", f"{mean['lesion']:.3f}"]
        cells += [
            f"{mean['lesion_tpr']:.2f}, {mean['lesion_ppv']:.2f}",
            f"{mean['true_ml']:.1f}, {mean['found_ml']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())

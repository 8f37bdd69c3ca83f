"""A finished (or running) training run -> a model folder that the app ships."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from bidsapp.cards import T1W_ALONE, WITH_FLAIR, WITHOUT_FLAIR
from bidsapp.labels import CONTRASTS
from bidsapp.learn.generator import Generator, Sample
from bidsapp.learn.loop import CHECKPOINT
from bidsapp.learn.model_folder import write_model
from bidsapp.models.registry import load_model
from bidsapp.models.unet import FoldedUNet
from training.config import TrainConfig
from training.loop import VALIDATION_SEED, forward, on_device
from training.material import Material, material
from training.tasks import Task, make_task

#: Candidates of the lesion threshold, and the synthetic scans it is chosen on: others than those of the log.
THRESHOLDS = np.round(np.arange(0.2, 0.85, 0.05), 2)
CALIBRATION_SAMPLES, CALIBRATION_SEED = 240, VALIDATION_SEED + 10**6

#: Synthetic scans, and voxels of each, that `class_offsets` are found on.
OFFSET_SAMPLES, OFFSET_VOXELS, OFFSET_SEED = 48, 20_000, VALIDATION_SEED + 2 * 10**6
#: The classes that get offsets: the tissues that fill the brain.
EVENED = ("cerebral white matter", "cerebral cortex", "cerebellar white matter", "cerebellar cortex", "CSF")
#: Voxels of lesion (1 mm) from which on a scan counts as one with lesions.
SMALLEST_LOAD = 50

SOURCES = {
    "head_label_maps": "SynthSeg label maps (Billot et al. 2023, Medical Image Analysis), Apache-2.0",
    "lesion_masks_ms": "MS lesion masks (Lesjak et al. 2017, Neuroinformatics, doi:10.1007/s12021-017-9348-7), CC-BY",
    "ms_tissue_and_lesions": "Tissues and lesions of 7 MS patients, derived from Lesjak et al. 2017 (as above), CC-BY",
    "lesion_masks_stroke": "Stroke lesion masks of LESYMAP, Apache-2.0",
}


def export(config: TrainConfig, *, run: Path, out: Path, device: str = "cpu", packed: Path | None = None) -> Path:
    """Write ``<out>/<name>-<version>/{model.json,weights.safetensors}``: averaged weights in float16.

    The material of the synthetic scans is that of the file `packed`, or what the configuration names.
    Figures on real scans come from ``<run>/judged.json`` (``python -m training.judge``), where that file exists.

    Raises
    ------
    ValueError
        A share of the weights the run began with is to be kept, and another version of that model is packaged now.
    """
    record = json.loads((run / "run.json").read_text())
    step, network = _average(config, run / CHECKPOINT, begun_from=record["begun_from"])
    counts, offsets = {}, {}
    if config.task == "segment":
        here = material(config, run, held_out=True, packed=packed).to(device)
        network = on_device(network, device)
        counts, offsets = lesion_counts(config, network, here), class_offsets(*answers(config, network, here))
    used = [Path(folder).name for folder in (config.heads, config.lesions, config.large, config.patients) if folder]
    card = {
        "name": config.name,
        "version": config.version,
        "spacing_mm": config.generator.spacing_mm,
        "orientation": "RAS",
        **_usage(config, counts, offsets),
        "classes": list(make_task(config.task).classes),
        "training": {
            "data": [SOURCES.get(name, name) for name in used],
            "begun_from": record["begun_from"],
            "share_of_that_in_the_weights": config.keep_of_start,
            "real_scans": "none: synthetic scans of these label maps only",
            "heads": list(config.train_heads),
            "steps": step,
            "seed": config.seed,
            "commit": record["commit"],
            "device": record["device"],
        },
        "figures": _figures(run, counts),
    }
    return write_model(network.cpu(), out / f"{config.name}-{config.version}", card)


def _average(config: TrainConfig, checkpoint: Path, *, begun_from: str) -> tuple[int, FoldedUNet]:
    """The step reached, and the network with the averaged weights: those of the run, and of what it began with.

    The mean of the weights before and after fine-tuning is more robust to scans unlike those of either training than
    both (Wortsman et al. 2022, CVPR, doi:10.1109/CVPR52688.2022.00780).
    """
    network = FoldedUNet(config.network)
    with safe_open(checkpoint, "pt") as stored:
        step = json.loads(stored.metadata()["state"])["step"]
        weights = {key: stored.get_tensor(f"average.{key}") for key in network.state_dict()}
    if config.keep_of_start:
        model = load_model(config.begin_with)
        if f"{model.name} {model.version}" != begun_from:
            raise ValueError(
                f"{checkpoint}: this run began with {begun_from}, but {model.name} {model.version} is packaged now. To"
                " keep a share of what it began with, put that one's folder back and take the newer one away."
            )
        start = model.network.state_dict()
        weights = {key: torch.lerp(value, start[key], config.keep_of_start) for key, value in weights.items()}
    network.load_state_dict(weights)
    return step, network.eval().requires_grad_(False)


def _usage(
    config: TrainConfig, counts: Mapping[str, np.ndarray], offsets: Mapping[str, Mapping[str, float]]
) -> dict[str, object]:
    """What whoever runs the network has to know."""
    if config.task == "brain":
        scale = "90th percentile of voxels above the mean to 1, kept below 3 (bidsapp.models.brain.normalise)"
        return {"normalisation": scale, "border_offset_mm": config.border_offset_mm}
    scale = "mean 0 and standard deviation 1 within the brain, kept within 5; 0 outside, and for a missing contrast"
    return {
        "normalisation": scale,
        "channels": list(CONTRASTS),
        "patch": config.generator.patch,
        "surround_mm": config.surround_mm,
        # Most who have a T1w alone have healthy people's: false lesions in these count, not small loads.
        "lesion_threshold": {key: best_threshold(scans, by_scan=key != T1W_ALONE) for key, scans in counts.items()},
        "class_offsets": offsets,
    }


def answers(config: TrainConfig, network: FoldedUNet, here: Material) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Classes, and their probabilities in some voxels of the same synthetic brains from each set of contrasts.

    The latter (classes, voxels), by the contrasts that are there, joined by "+".
    """
    task, make = make_task(config.task), Generator(here.heads, replace(config.generator, p_drop=0.0), here.lesions)
    sets = [those for count in (1, 2, 3) for those in itertools.combinations(range(len(CONTRASTS)), count)]
    found: dict[str, list[np.ndarray]] = {"+".join(CONTRASTS[i] for i in those): [] for those in sets}
    for number in range(OFFSET_SAMPLES):
        sample = make.sample(OFFSET_SEED + number)
        where = torch.as_tensor(np.random.default_rng(number).integers(sample.lesion.numel(), size=OFFSET_VOXELS))
        for those, kept in zip(sets, found.values(), strict=True):
            there = torch.zeros(len(CONTRASTS), 1, 1, 1)
            there[list(those)] = 1
            image = sample.image * there.to(sample.image.device)
            logits = forward(network, task, [replace(sample, image=image)], config)[0]
            kept.append(logits.flatten(1).cpu()[:, where].softmax(0).numpy())
    return task.classes, {key: np.concatenate(parts, 1) for key, parts in found.items()}


def class_offsets(classes: Sequence[str], found: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """What to add to logits so that the volumes of the tissues are those from all contrasts; of `answers`."""
    even = [classes.index(name) for name in EVENED]
    wanted = found["+".join(CONTRASTS)][even].sum(1)
    out = {}
    for key, probability in found.items():
        offsets = np.zeros(len(classes))
        for _ in range(20):
            moved = probability * np.exp(offsets)[:, None]
            offsets[even] += np.log(wanted / (moved / moved.sum(0))[even].sum(1))
        out[key] = {classes[i]: round(float(offsets[i]), 3) for i in even}
    del out["+".join(CONTRASTS)]
    return out


def lesion_counts(config: TrainConfig, network: FoldedUNet, here: Material) -> dict[str, np.ndarray]:
    """Voxels found and true, found, true, by scan and threshold: (scans, thresholds, 3), by the thresholds of a card.

    These are with a FLAIR, without, and of a T1w alone, to which end every scan that has a T1w is seen once more. The
    scans are synthetic ones of held-out heads, others than those of the log, and without the large lesions, whose many
    voxels would choose the threshold of the small ones.
    """
    task, make = make_task(config.task), Generator(here.heads, replace(config.generator, p_large=0.0), here.lesions)
    counts: dict[str, list[np.ndarray]] = {WITH_FLAIR: [], WITHOUT_FLAIR: [], T1W_ALONE: []}
    for number in range(CALIBRATION_SAMPLES):
        sample = make.sample(CALIBRATION_SEED + number)
        key = WITH_FLAIR if sample.image[CONTRASTS.index("FLAIR")].any() else WITHOUT_FLAIR
        counts[key].append(_counts(config, network, task, sample))
        if sample.image[CONTRASTS.index("T1w")].any():
            alone = torch.zeros_like(sample.image)
            alone[CONTRASTS.index("T1w")] = sample.image[CONTRASTS.index("T1w")]
            counts[T1W_ALONE].append(_counts(config, network, task, replace(sample, image=alone)))
    return {key: np.stack(scans) for key, scans in counts.items()}


def _counts(config: TrainConfig, network: FoldedUNet, task: Task, sample: Sample) -> np.ndarray:
    """(thresholds, 3) of one scan."""
    found, truth = forward(network, task, [sample], config)[0].softmax(0)[-1], sample.lesion > 0.5
    above = [found > threshold for threshold in THRESHOLDS]
    return np.array([[int((one & truth).sum()), int(one.sum()), int(truth.sum())] for one in above])


def best_threshold(counts: np.ndarray, *, by_scan: bool = True) -> float:
    """The best threshold of the lesions, of `lesion_counts`.

    Best: the largest mean of two Dice coefficients, of all voxels of all scans together (false lesions in scans without
    any count) and on average over the scans with lesions (small loads count as much as large ones). Not `by_scan`: the
    first alone.
    """
    both, found, true = np.moveaxis(counts.astype(float), 2, 0)
    pooled = 2 * both.sum(0) / np.maximum(found.sum(0) + true.sum(0), 1)
    there = true[:, 0] >= SMALLEST_LOAD
    each = (2 * both / np.maximum(found + true, 1))[there].mean(0) if by_scan and there.any() else 0
    return float(THRESHOLDS[int(np.argmax(pooled + each))])


def shares_of_lesion(counts: np.ndarray) -> dict[str, float]:
    """Of the voxels with a probability between two thresholds, how many are lesion; of `lesion_counts`."""
    both, found, _ = counts.sum(0).T
    between = zip(itertools.pairwise(THRESHOLDS), -np.diff(both), -np.diff(found), strict=True)
    return {f"{low:.2f}-{high:.2f}": round(float(true / voxels), 3) for (low, high), true, voxels in between if voxels}


def _figures(run: Path, counts: Mapping[str, np.ndarray]) -> dict[str, object]:
    header, *rows = (line.split("\t") for line in (run / "log.tsv").read_text().splitlines())
    figures: dict[str, object] = {"synthetic, held-out heads": dict(zip(header, rows[-1], strict=True))}
    if counts:
        shares = {key: shares_of_lesion(scans) for key, scans in counts.items()}
        figures["share of lesion by its probability, synthetic"] = shares
    judged = run / "judged.json"
    if judged.exists():
        figures["real scans, never trained on"] = json.loads(judged.read_text())
    return figures

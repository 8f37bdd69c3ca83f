from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bidsapp.models.unet import FoldedUNet, UNetConfig
from training import export
from training.config import TrainConfig, load_config
from training.export import EVENED, SMALLEST_LOAD, THRESHOLDS, best_threshold, class_offsets, shares_of_lesion
from training.tasks import SegmentTask


def test_threshold_weighs_large_and_small_loads_and_scans_without_lesions() -> None:
    """One large load, found from 0.3 on; two small ones, found at 0.5 alone; specks below 0.4 in a scan without any."""
    true = np.zeros((4, len(THRESHOLDS)))
    true[0], true[1:3] = 10_000, 2 * SMALLEST_LOAD
    found, at = np.zeros_like(true), {round(float(t), 2): i for i, t in enumerate(THRESHOLDS)}
    found[0, at[0.3] :] = 10_000
    found[1:3, at[0.5]] = 2 * SMALLEST_LOAD
    found[3, : at[0.4]] = 500
    counts = np.stack([np.minimum(found, true), found, true], -1)
    assert best_threshold(counts) == 0.5
    assert best_threshold(counts[[0, 3]]) == 0.4
    found[3, at[0.5]] = 3000  # false ones, at what finds the small loads
    counts = np.stack([np.minimum(found, true), found, true], -1)
    assert best_threshold(counts) == 0.5 and best_threshold(counts, by_scan=False) == 0.4


def test_shares_of_lesion_between_two_thresholds() -> None:
    """Between 0.2 and 0.25 lie 30 voxels of two scans, 6 of them lesion; all others lie above the last threshold."""
    counts = np.zeros((2, len(THRESHOLDS), 3), int)
    counts[:, :, 2] = 100
    counts[:, 0, 1], counts[:, 1:, 1] = (60, 50), np.array([[40], [40]])
    counts[:, 0, 0], counts[:, 1:, 0] = (25, 25), np.array([[23], [21]])
    assert shares_of_lesion(counts) == {"0.20-0.25": 0.2}


def test_offsets_bring_the_tissues_to_their_volumes_from_all_contrasts() -> None:
    """From FLAIR alone the network says cortex too often, from T1w alone the same as from all."""
    classes = SegmentTask.classes
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (len(classes), 400))
    found = {"T1w+T2w+FLAIR": logits, "FLAIR": logits.copy(), "T1w": logits}
    found["FLAIR"][classes.index("cerebral cortex")] += 0.3
    probability = {key: np.exp(values) / np.exp(values).sum(0) for key, values in found.items()}
    offsets = class_offsets(classes, probability)
    assert set(offsets) == {"FLAIR", "T1w"} and set(offsets["FLAIR"]) == set(EVENED)
    assert not any(offsets["T1w"].values())
    assert offsets["FLAIR"]["cerebral cortex"] == pytest.approx(-0.3, abs=0.01)
    assert abs(offsets["FLAIR"]["CSF"]) < 0.01


def test_weights_are_those_of_the_run_and_of_what_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = UNetConfig(features=(2, 4))
    config = TrainConfig(
        name="x", version="0", task="brain", heads="h", begin_with="old", keep_of_start=0.25, network=small
    )
    run, start = FoldedUNet(small), FoldedUNet(small)
    weights = {f"average.{key}": value for key, value in run.state_dict().items()}
    save_file(weights, tmp_path / "checkpoint", {"state": json.dumps({"step": 7})})
    old = SimpleNamespace(name="old", version="1", network=start)
    monkeypatch.setattr(export, "load_model", lambda name: {"old": old}[name])
    step, mixed = export._average(config, tmp_path / "checkpoint", begun_from="old 1")
    assert step == 7
    for key, value in mixed.state_dict().items():
        torch.testing.assert_close(value, 0.75 * run.state_dict()[key] + 0.25 * start.state_dict()[key])
    with pytest.raises(ValueError, match="began with old 0, but old 1"):
        export._average(config, tmp_path / "checkpoint", begun_from="old 0")


def test_a_share_of_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yml"
    path.write_text("{name: x, version: 0.1, task: brain, heads: h, keep_of_start: 0.5}")
    with pytest.raises(ValueError, match="begin_with"):
        load_config(path)

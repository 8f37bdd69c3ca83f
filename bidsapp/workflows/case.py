"""The workflow of a labelled session: prepared as any session is, then kept for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nipype.pipeline import engine as pe

from bidsapp.bids import SessionInputs
from bidsapp.config import Config
from bidsapp.interfaces.cases import StoreCase
from bidsapp.workflows.plan import plan
from bidsapp.workflows.session import MEMORY_GB, merge, prepare, workflow_name


@dataclass(frozen=True)
class Labels:
    """Labels of a session: the file, the values of its classes (none: a mask), the contrast on whose grid it lies."""

    path: Path
    indices: tuple[int, ...]
    contrast: str


def init_case_wf(
    inputs: SessionInputs,
    config: Config,
    *,
    labels: Labels,
    channels: Sequence[str] = (),
    folder: Path,
    record: Mapping[str, Any],
    device: str = "cpu",
) -> pe.Workflow:
    """Build the workflow; its last node, ``write``, leaves ``case.json`` in `folder`.

    `channels` are those of the model to train: the scans that it uses are kept, beside all that the app uses itself.
    """
    workflow = pe.Workflow(name=workflow_name(inputs))
    scans, brain = prepare(workflow, inputs, plan(inputs, config), config, device=device, channels=channels)
    images = merge(workflow, [(nodes.normalize, "work_out") for nodes in scans.values()], "work_images")
    write = pe.Node(
        StoreCase(
            contrasts=list(scans),
            label_file=str(labels.path),
            indices=list(labels.indices),
            folder=str(folder),
            record=dict(record),
        ),
        name="write",
        mem_gb=MEMORY_GB["other"] * max(nodes.size for nodes in scans.values()),
    )
    under = scans[labels.contrast]
    workflow.connect([
        (images, write, [("out", "in_files")]),
        (brain, write, [("mask_file", "mask_file")]),
        (under.conform, write, [("native_file", "native_file"), ("work_file", "work_file")]),
    ])  # fmt: skip
    if under.coregister is not None:
        workflow.connect(under.coregister, "transform_file", write, "transform_file")
    return workflow

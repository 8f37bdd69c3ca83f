"""The workflow of one session: from the scans of the dataset to its derivatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nipype.interfaces import utility as niu
from nipype.interfaces.base import BaseInterface
from nipype.pipeline import engine as pe

from bidsapp.bids import SessionInputs
from bidsapp.cards import WHITE_MATTER
from bidsapp.config import Config
from bidsapp.image.load import read_grid
from bidsapp.interfaces.compartments import DivideLesions
from bidsapp.interfaces.outputs import Carry, DrawFigures, Measure, PackScans, TellSides
from bidsapp.interfaces.preproc import (
    CheckBrain,
    CleanMask,
    Conform,
    Coregister,
    CorrectBias,
    ExtractBrain,
    FindBrain,
    Normalize,
    RegisterTemplate,
)
from bidsapp.interfaces.segment import (
    CombineModels,
    SegmentAll,
    SegmentByModel,
    SegmentLesions,
    SegmentTissue,
)
from bidsapp.interfaces.write import WriteSession
from bidsapp.labels import TEMPLATE
from bidsapp.scan_choice import ScanChoice
from bidsapp.workflows.plan import Plan, plan

#: Peak memory (GB) of the nodes, measured with ``make bench`` on a 256-cubed head at 1 mm. It grows with the voxels: of
#: twice as many, carrying took 1.5 times as much, and loading a scan 24 bytes for each.
MEMORY_GB = {
    "brain": 1.6, "template": 1.2, "bias": 1.0, "network": 1.6, "tissue": 1.6, "lesions": 1.4, "carry": 1.5,
    "measure": 1.5, "figures": 1.5, "other": 0.8,
}  # fmt: skip
MEASURED_VOXELS = 256**3


def init_session_wf(inputs: SessionInputs, config: Config, *, device: str = "cpu") -> pe.Workflow:
    """Build the workflow of one session.

    Parameters
    ----------
    inputs : SessionInputs
        With at least one scan; the first is the reference.
    config : Config
        The run's options.
    device : str
        Resolved device of the models: "cpu" or "cuda[:N]".

    Returns
    -------
    Workflow
        Named like ``sub_X_ses_Y``; its last node, ``write``, leaves the session's record.
    """
    chosen = plan(inputs, config)
    workflow = pe.Workflow(name=workflow_name(inputs))
    scans, brain = prepare(workflow, inputs, chosen, config, device=device, channels=config.own_channels)
    template = _template_node(workflow, scans, inputs, brain)
    build = _Build(workflow, inputs, chosen, config, device, scans, brain, template)
    _output_nodes(build, _segmentation_nodes(build))
    return workflow


def prepare(
    workflow: pe.Workflow,
    inputs: SessionInputs,
    chosen: Plan,
    config: Config,
    *,
    device: str,
    channels: Sequence[str],
) -> tuple[dict[str, ScanNodes], pe.Node]:
    """Add what any segmentation begins with: conform, brain, coregister, bias, normalize; the same in training.

    `channels` are those of a lesion model that may use more scans than the app itself.
    """
    used = inputs.used_by(channels)
    scans = {scan.contrast: _scan_nodes(workflow, scan) for scan in used}
    brain = _brain_node(workflow, scans[inputs.reference.contrast], inputs, chosen, device)
    for scan in used[1:]:
        _connect_coregistration(workflow, scans, scan, inputs, brain)
    for scan in used:
        _connect_bias_and_intensity(workflow, scans, scan, inputs, brain, config)
    return scans, brain


def workflow_name(inputs: SessionInputs) -> str:
    """Name of a session's workflow: letters, digits and underscores only.

    A ``+``, which BIDS allows in labels, becomes two underscores: no label has any, so names stay apart.
    """
    return inputs.name.replace("-", "_").replace("+", "__")


def relative_size(path: Path) -> float:
    """How many times more voxels than `MEASURED_VOXELS` a scan has, on its own grid or at 1 mm; at least 1.

    Only the header is read. One that cannot be read counts as 1: the scan's first step says what is wrong with it.
    """
    try:
        grid = read_grid(path)
        voxels = math.prod(grid.shape)
        return max(1.0, voxels / MEASURED_VOXELS, voxels * math.prod(grid.header.get_zooms()) / MEASURED_VOXELS)
    except Exception:
        return 1.0


@dataclass
class ScanNodes:
    """Nodes of one contrast, as they come to be."""

    size: float  # `relative_size`
    conform: pe.Node
    on_work_grid: tuple[pe.Node, str]
    coregister: pe.Node | None = None
    bias: pe.Node | None = None
    normalize: pe.Node | None = None


def _scan_nodes(workflow: pe.Workflow, scan: ScanChoice) -> ScanNodes:
    size = relative_size(scan.path)
    conform = _node(Conform(in_file=str(scan.path)), f"conform_{scan.contrast}", size)
    workflow.add_nodes([conform])
    return ScanNodes(size, conform, (conform, "work_file"))


def _brain_node(
    workflow: pe.Workflow, reference: ScanNodes, inputs: SessionInputs, chosen: Plan, device: str
) -> pe.Node:
    method, by_network = chosen.brain_extraction, chosen.brain_extraction == "network"
    if method == "bet":
        return _bet_nodes(workflow, reference)
    second_opinion = chosen.check_brain and not by_network
    brain = _node(
        ExtractBrain(
            contrast=inputs.reference.contrast,
            method=method,
            check=chosen.check_brain and by_network,
            device=device,
            use_gpu=device != "cpu" and method in ("deepbet", "network"),
        ),
        f"brain_by_{method}" if second_opinion else "brain",
        reference.size,
        memory="brain",
    )
    workflow.connect(reference.conform, "work_file", brain, "in_file")
    return _checked_brain(workflow, reference, brain, device) if second_opinion else brain


def _checked_brain(workflow: pe.Workflow, reference: ScanNodes, brain: pe.Node, device: str) -> pe.Node:
    """The network looks for the brain meanwhile, and takes over where the two disagree grossly."""
    network = _node(
        FindBrain(device=device, use_gpu=device != "cpu"), "brain_by_network", reference.size, memory="brain"
    )
    checked = _node(CheckBrain(), "brain", reference.size)
    workflow.connect([
        (reference.conform, network, [("work_file", "in_file")]),
        (brain, checked, [("mask_file", "in_file")]),
        (network, checked, [("mask_file", "second_file"), ("wrong", "wrong")]),
        (merge(workflow, [(brain, "note"), (network, "note")], "brain_notes"), checked, [("out", "notes")]),
    ])  # fmt: skip
    return checked


def _bet_nodes(workflow: pe.Workflow, reference: ScanNodes) -> pe.Node:
    from nipype.interfaces.fsl import BET  # FSL is the user's; the app checks that it is there

    bet = _node(BET(mask=True, robust=True, output_type="NIFTI"), "bet", reference.size)
    brain = _node(CleanMask(), "brain", reference.size)
    workflow.connect([
        (reference.conform, bet, [("work_file", "in_file")]),
        (bet, brain, [("mask_file", "in_file")]),
    ])  # fmt: skip
    return brain


def _connect_coregistration(
    workflow: pe.Workflow, scans: dict[str, ScanNodes], scan: ScanChoice, inputs: SessionInputs, brain: pe.Node
) -> None:
    nodes, reference = scans[scan.contrast], scans[inputs.reference.contrast]
    coregister = _node(Coregister(), f"coregister_{scan.contrast}", max(nodes.size, reference.size))
    workflow.connect([
        (nodes.conform, coregister, [("work_file", "moving_file")]),
        (reference.conform, coregister, [("work_file", "fixed_file")]),
        (brain, coregister, [("mask_file", "fixed_mask")]),
    ])  # fmt: skip
    nodes.coregister = coregister
    nodes.on_work_grid = (coregister, "out_file")


def _connect_bias_and_intensity(
    workflow: pe.Workflow,
    scans: dict[str, ScanNodes],
    scan: ScanChoice,
    inputs: SessionInputs,
    brain: pe.Node,
    config: Config,
) -> None:
    nodes, reference = scans[scan.contrast], scans[inputs.reference.contrast]
    source, field = nodes.on_work_grid
    nodes.bias = _node(CorrectBias(), f"bias_{scan.contrast}", reference.size, memory="bias")
    nodes.normalize = _node(
        Normalize(contrast=scan.contrast, method=config.normalization, denoise=config.denoise),
        f"normalize_{scan.contrast}",
        max(nodes.size, reference.size),
    )
    workflow.connect([
        (source, nodes.bias, [(field, "in_file")]),
        (brain, nodes.bias, [("mask_file", "mask_file")]),
        (nodes.bias, nodes.normalize, [("out_file", "work_file"), ("field_file", "field_file")]),
        (brain, nodes.normalize, [("mask_file", "mask_file")]),
        (nodes.conform, nodes.normalize, [("native_file", "native_file")]),
        (reference.conform, nodes.normalize, [("native_file", "reference_file")]),
    ])  # fmt: skip
    if nodes.coregister is not None:
        workflow.connect(nodes.coregister, "transform_file", nodes.normalize, "transform_file")
        workflow.connect(nodes.conform, "work_file", nodes.normalize, "own_work_file")


def _template_node(
    workflow: pe.Workflow, scans: dict[str, ScanNodes], inputs: SessionInputs, brain: pe.Node
) -> pe.Node:
    reference = scans[inputs.reference.contrast]
    interface = RegisterTemplate(contrast=inputs.reference.contrast)
    template = _node(interface, "template", reference.size, memory="template")
    workflow.connect([
        (reference.bias, template, [("out_file", "in_file")]),
        (brain, template, [("mask_file", "mask_file")]),
    ])  # fmt: skip
    return template


@dataclass(frozen=True)
class _Build:
    """A session's workflow with its scans prepared, to which the segmentation and the output are added."""

    workflow: pe.Workflow
    inputs: SessionInputs
    chosen: Plan
    config: Config
    device: str
    scans: dict[str, ScanNodes]  # by contrast
    brain: pe.Node
    template: pe.Node

    @property
    def reference(self) -> ScanNodes:
        return self.scans[self.inputs.reference.contrast]

    def node(self, interface: BaseInterface, name: str, *, memory: str = "other") -> pe.Node:
        """A step on images of the reference."""
        return _node(interface, name, self.reference.size, memory=memory)

    def scans_of(self, contrasts: Sequence[str], port: str, name: str) -> pe.Node:
        """The same output of several contrasts' `Normalize` as one list."""
        return merge(self.workflow, [(self.scans[contrast].normalize, port) for contrast in contrasts], name)


Port = tuple[pe.Node, str]
LESION_FIELDS = ("lesion_mask", "lesion_probability")


@dataclass(frozen=True)
class _Found:
    """Where each result comes from: (node, field). Lesions None where they are not looked for."""

    brain: pe.Node
    mask: Port
    posteriors: Port
    structures: Port
    lesion_mask: Port | None
    lesion_probability: Port | None
    combine: pe.Node
    mixture_alone: pe.Node | None  # the tissue model that may fail to tell GM from WM, where that is alone
    outlier_alone: pe.Node | None  # the lesion model that a FLAIR of a part of the brain fails, where that is alone
    network: pe.Node
    mixture: pe.Node
    own: pe.Node | None  # the lesion model that somebody trained


def _segmentation_nodes(build: _Build) -> _Found:
    """The network and the unsupervised models; together, or one gives the results and the other the second opinion."""
    workflow, inputs, chosen, brain, template = (
        build.workflow, build.inputs, build.chosen, build.brain, build.template
    )  # fmt: skip
    images = build.scans_of(inputs.contrasts, "work_out", "work_images")
    contrasts = {"contrasts": list(inputs.contrasts)}
    on_device = {"device": build.device, "use_gpu": build.device != "cpu"}
    network = build.node(SegmentAll(tta=build.config.tta, **contrasts, **on_device), "network", memory="network")
    own = _own_model_node(build, on_device)
    sides = build.node(TellSides(), "sides")
    tissue = build.node(SegmentTissue(**contrasts, **on_device), "tissue", memory="tissue")
    combine = build.node(CombineModels(), "combine")
    workflow.connect([
        (images, network, [("out", "in_files")]),
        (brain, network, [("mask_file", "mask_file")]),
        (network, sides, [("structures_file", "in_file")]),
        (template, sides, [("to_subject", "to_subject")]),
        (images, tissue, [("out", "in_files")]),
        (brain, tissue, [("mask_file", "mask_file")]),
        (template, tissue, [("priors_file", "priors_file")]),
        (network, combine, [("mask_file", "mask_file"), ("posteriors_file", "network_posteriors")]),
        (own or network, combine, [
            ("lesion_mask", "network_lesions"), ("lesion_probability", "network_lesion_probability"),
        ]),
        (tissue, combine, [("posteriors_file", "mixture_posteriors"), ("separable", "separable")]),
        (sides, combine, [("out_file", "structures_file")]),
    ])  # fmt: skip
    lesions = None
    if chosen.lesion_model != "none" and "FLAIR" in inputs.contrasts:
        lesions = build.node(SegmentLesions(**contrasts), "lesions", memory="lesions")
        workflow.connect([
            (images, lesions, [("out", "in_files")]),
            (brain, lesions, [("mask_file", "mask_file")]),
            (template, lesions, [("priors_file", "priors_file")]),
            (tissue, lesions, [("result_file", "result_file")]),
            (lesions, combine, [
                ("mask_file", "outlier_lesions"), ("probability_file", "outlier_lesion_probability"),
                ("excess_file", "excess_file"),
            ]),
        ])  # fmt: skip
    of_tissue = {"network": network, "mixture": tissue, "consensus": combine}[chosen.tissue_model]
    named = {"network": network, "outlier": lesions, "consensus": combine, "none": None}
    of_lesions = own or named[chosen.lesion_model]
    masks, probabilities = ("mask_file", "probability_file") if of_lesions is lesions else LESION_FIELDS
    return _Found(
        brain=brain,
        mask=(brain if chosen.tissue_model == "mixture" else network, "mask_file"),
        posteriors=(of_tissue, "posteriors_file"),
        structures=(combine, "structures_file") if of_tissue is combine else (sides, "out_file"),
        lesion_mask=None if of_lesions is None else (of_lesions, masks),
        lesion_probability=None if of_lesions is None else (of_lesions, probabilities),
        combine=combine,
        mixture_alone=tissue if chosen.tissue_model == "mixture" else None,
        outlier_alone=lesions if of_lesions is lesions else None,
        network=network,
        mixture=tissue,
        own=own,
    )


def _own_model_node(build: _Build, on_device: dict[str, Any]) -> pe.Node | None:
    """The lesion model that somebody trained, where that is to find the lesions."""
    own = build.config.own_lesion_model
    if own is None or build.chosen.own_lesion_model is None:
        return None
    names = [name for name in own.channels if name in build.scans]
    # No mirror image: its figures and threshold are of predictions without.
    model = SegmentByModel(model_dir=str(own.folder), model_label=own.label, contrasts=names, **on_device)
    node = build.node(model, "own_model", memory="network")
    build.workflow.connect([
        (build.scans_of(names, "work_out", "own_images"), node, [("out", "in_files")]),
        (build.brain, node, [("mask_file", "mask_file")]),
    ])  # fmt: skip
    return node


def _output_nodes(build: _Build, found: _Found) -> None:
    """Carry the results to the output's grids, measure and draw them there, and write everything at the end."""
    workflow, inputs, chosen, config = build.workflow, build.inputs, build.chosen, build.config
    preproc = build.scans_of(inputs.contrasts, "native_out", "preprocessed")
    own_kind = (chosen.own_lesion_model or {}).get("lesion_kind", WHITE_MATTER)
    fill = inputs.reference.contrast == "T1w" and own_kind == WHITE_MATTER
    pack = build.node(PackScans(in_template=TEMPLATE in config.output_spaces), "pack", memory="carry")
    carries = [build.node(Carry(grids=["native"], fill_lesions=fill), "carry", memory="carry")]
    if TEMPLATE in config.output_spaces:  # a node of its own: it takes as long as all that needs the native grid
        carries.append(build.node(Carry(grids=["mni"]), "carry_mni", memory="carry"))
    carry = carries[0]
    measure = build.node(
        Measure(subject=inputs.subject, session=inputs.session or "", contrasts=list(inputs.contrasts)),
        "measure",
        memory="measure",
    )
    figures = build.node(DrawFigures(contrasts=list(inputs.contrasts)), "figures", memory="figures")
    write = build.node(
        WriteSession(
            session=describe(inputs, config.bids_dir, more=inputs.used_by(config.own_channels)[len(inputs.scans) :]),
            options=config.science(),
            plan=chosen.plain(),
            out_dir=str(config.out_dir),
        ),
        "write",
    )
    workflow.connect([
        (carry, measure, [("results", "results")]),
        (preproc, measure, [("out", "preprocessed")]),
        (build.reference.bias, measure, [("out_file", "corrected_file")]),
        (found.combine, measure, [("agreement", "agreement")]),
        (build.template, measure, [
            ("similarity", "similarity"), ("tiv_mm3", "tiv_mm3"), ("to_subject", "to_subject"),
            ("priors_file", "priors_file"),
        ]),
        (carry, figures, [("results", "results")]),
        (preproc, figures, [("out", "preprocessed")]),
        (build.template, figures, [("to_subject", "to_subject")]),
        (preproc, pack, [("out", "preprocessed")]),
        (build.template, pack, [("to_template", "to_template"), ("to_subject", "to_subject")]),
        (merge(workflow, [(node, "results") for node in (*carries, pack)], "results"), write, [("out", "results")]),
        (pack, write, [
            ("preprocessed", "preprocessed"), ("to_template", "to_template"), ("to_subject", "to_subject"),
        ]),
        (found.brain, write, [("note", "brain_note")]),
        (build.template, write, [("note", "template_note")]),
        (found.network, write, [("note", "network_note")]),
        (found.mixture, write, [("note", "tissue_note")]),
        (measure, write, [("tables", "tables"), ("flags", "flags")]),
        (figures, write, [("pictures", "pictures")]),
    ])  # fmt: skip
    if found.own is not None:
        workflow.connect(found.own, "note", write, "lesion_note")
        _connect_compartments(build, found.own, carry, (measure, figures, write))
    for node in carries:
        _connect_carry(build, node, found)
    if found.mixture_alone is not None:
        workflow.connect([
            (found.mixture_alone, measure, [("separable", "separable")]),
            (found.mixture_alone, write, [("reason", "not_separable_because")]),
        ])  # fmt: skip
    if found.outlier_alone is not None:
        workflow.connect(found.outlier_alone, "reason", write, "no_lesions_because")
    _connect_rigid(build, write)
    _connect_scans(build, measure)
    flair = build.scans.get("FLAIR")
    beside = flair is not None and flair.coregister is not None
    if beside and found.lesion_mask is not None and "FLAIR" in config.output_spaces:
        workflow.connect([
            (flair.conform, carry, [("native_file", "flair_file"), ("work_file", "flair_work_file")]),
            (flair.coregister, carry, [("transform_file", "flair_transform")]),
        ])  # fmt: skip
    _connect_notes(build, write)


def _connect_rigid(build: _Build, write: pe.Node) -> None:
    """The transforms between the reference and the session's other scans, both ways."""
    moving = [build.scans[name].coregister for name in build.inputs.contrasts]
    both = [(node, way) for node in moving if node is not None for way in ("transform_file", "inverse_file")]
    if both:
        build.workflow.connect(merge(build.workflow, both, "rigid"), "out", write, "rigid_files")


def _connect_scans(build: _Build, measure: pe.Node) -> None:
    """The session's scans as they were acquired, their fields, and the way to those that are not the reference."""
    scans = [build.scans[name] for name in build.inputs.contrasts]
    others = [nodes for nodes in scans if nodes.coregister is not None]
    for kind, ports in (
        ("scans", [(nodes.conform, "native_file") for nodes in scans]),
        ("fields", [(nodes.bias, "field_file") for nodes in scans]),
        ("other_work_files", [(nodes.conform, "work_file") for nodes in others]),
        ("other_transforms", [(nodes.coregister, "transform_file") for nodes in others]),
    ):
        if ports:
            build.workflow.connect(merge(build.workflow, ports, kind), "out", measure, kind)


def _connect_notes(build: _Build, write: pe.Node) -> None:
    """What was noted and warned of while the scans were prepared."""
    for kind in ("notes", "warnings"):
        tellers = [nodes.conform for nodes in build.scans.values()]
        if kind == "warnings":
            tellers += [nodes.normalize for nodes in build.scans.values()]
        told = merge(build.workflow, [(teller, kind) for teller in tellers], kind, numbered=True)
        build.workflow.connect(told, "out", write, kind)


def _connect_compartments(build: _Build, own: pe.Node, carry: pe.Node, users: tuple[pe.Node, ...]) -> None:
    """Divide the lesions on the native grid, where the model tells several compartments apart."""
    names = (build.chosen.own_lesion_model or {}).get("lesion_classes", [])
    if len(names) < 2:
        return
    divide = build.node(DivideLesions(names=names), "compartments")
    build.workflow.connect([
        (carry, divide, [("results", "results")]),
        (own, divide, [("compartments_file", "compartments_file")]),
    ])  # fmt: skip
    for node in users:
        node.inputs.compartments = names
        build.workflow.connect(divide, "labels_file", node, "compartments_file")


def _connect_carry(build: _Build, carry: pe.Node, found: _Found) -> None:
    build.workflow.connect([
        (build.reference.conform, carry, [("native_file", "reference_file")]),
        (build.template, carry, [("to_template", "to_template"), ("to_subject", "to_subject")]),
    ])  # fmt: skip
    for (node, source), sink in (
        (found.mask, "mask_file"), (found.posteriors, "posteriors_file"), (found.structures, "structures_file"),
        (found.lesion_mask or (None, ""), "lesion_mask"),
        (found.lesion_probability or (None, ""), "lesion_probability"),
    ):  # fmt: skip
        if node is not None:
            build.workflow.connect(node, source, carry, sink)
    if found.mixture_alone is not None:
        build.workflow.connect(found.mixture_alone, "separable", carry, "separable")


def describe(inputs: SessionInputs, bids_dir: Path, *, more: Sequence[ScanChoice] = ()) -> dict[str, Any]:
    """The session as plain values, for the node that writes (nipype hashes its inputs).

    `more` are scans that only the lesion model was shown: they are recorded, and nothing is written of them.
    """

    def plain(scan: ScanChoice) -> dict[str, Any]:
        return {
            "contrast": scan.contrast,
            "path": str(scan.path),
            "file": scan.path.relative_to(bids_dir).as_posix(),
            "chosen_because": scan.reason,
            "not_chosen": [path.relative_to(bids_dir).as_posix() for path in scan.not_chosen],
        }

    return {
        "subject": inputs.subject,
        "session": inputs.session or "",
        "folder": str(inputs.folder),
        "prefix": inputs.prefix,
        "name": inputs.name,
        "scans": [plain(scan) for scan in inputs.scans],
        "more_scans": [plain(scan) for scan in more],
    }


def merge(workflow: pe.Workflow, sources: list, name: str, *, numbered: bool = False) -> pe.Node:
    """A list of the outputs of several nodes, in order (`numbered`: a list of lists is kept as such)."""
    merge = pe.Node(niu.Merge(len(sources), no_flatten=numbered), name=name, run_without_submitting=True)
    for index, (node, port) in enumerate(sources, start=1):
        workflow.connect(node, port, merge, f"in{index}")
    return merge


def _node(interface: BaseInterface, name: str, size: float, *, memory: str = "other") -> pe.Node:
    """A step; `size` is the `relative_size` of the largest image it reads."""
    return pe.Node(interface, name=name, mem_gb=MEMORY_GB[memory] * size, n_procs=1)

"""Every combination of contrasts and options makes a complete graph."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from nipype.interfaces.base import isdefined
from nipype.pipeline import engine as pe

from bidsapp import progress
from bidsapp.bids import SessionInputs
from bidsapp.config import BRAIN_EXTRACTIONS, LESION_MODELS, NORMALIZATIONS, TISSUE_MODELS, Config
from bidsapp.scan_choice import ScanChoice
from bidsapp.workflows.plan import plan
from bidsapp.workflows.session import MEMORY_GB, init_session_wf, relative_size, workflow_name

SUBSETS = [
    subset for n in (1, 2, 3) for subset in itertools.combinations(("T1w", "FLAIR", "T2w"), n)
]  # fmt: skip


def session(root: Path, contrasts: tuple[str, ...], *, agent: bool = False) -> SessionInputs:
    scans = []
    for contrast in contrasts:
        path = root / "sub-01" / "anat" / f"sub-01_acq-x_{contrast}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        scans.append(ScanChoice(contrast, path, f"the only {contrast}"))
    more = ()
    if agent:
        path = root / "sub-01" / "anat" / "sub-01_ce-gad_T1w.nii.gz"
        path.touch()
        more = (ScanChoice("T1wCE", path, "the only T1w with contrast agent"),)
    return SessionInputs("01", None, tuple(scans), more)


def config(root: Path, **options: object) -> Config:
    (root / "dataset_description.json").write_text("{}")
    return Config(bids_dir=root, out_dir=root / "out", level="participant", **options)  # type: ignore[arg-type]


def unset_inputs(workflow: pe.Workflow) -> list[str]:
    """Mandatory inputs that are neither set nor connected: nipype finds them only when the node runs."""
    missing = []
    for node in workflow._graph.nodes():
        connected = {field for _, _, data in workflow._graph.in_edges(node, data=True) for _, field in data["connect"]}
        for name in node.inputs.traits(mandatory=True):
            if name not in connected and not isdefined(getattr(node.inputs, name)):
                missing.append(f"{node.name}.{name}")
    return missing


@pytest.mark.parametrize("contrasts", SUBSETS, ids="+".join)
@pytest.mark.parametrize("brain", [b for b in BRAIN_EXTRACTIONS if b != "auto"])
def test_graph_is_complete(tmp_path: Path, contrasts: tuple[str, ...], brain: str) -> None:
    for lesion, normalization, denoise, spaces in itertools.product(
        LESION_MODELS, NORMALIZATIONS, (False, True), (("orig",), ("orig", "MNI152NLin2009aSym", "FLAIR"))
    ):
        chosen = config(tmp_path, brain_extraction=brain, lesion_model=lesion, normalization=normalization,
                        denoise=denoise, output_spaces=spaces)  # fmt: skip
        workflow = init_session_wf(session(tmp_path, contrasts), chosen)
        assert unset_inputs(workflow) == []
        assert ("lesions" in workflow.list_node_names()) == (lesion != "none" and "FLAIR" in contrasts)


def test_nodes_that_only_pass_lists_on_are_not_told_as_reused(tmp_path: Path) -> None:
    """nipype tells of their end alone, which else means a result of an earlier run."""
    workflow = init_session_wf(session(tmp_path, ("T1w", "FLAIR", "T2w")), config(tmp_path))
    outcome = SimpleNamespace(inputs=SimpleNamespace(name="sub-01", subject="01"))
    (tmp_path / "logs").mkdir()
    watch = progress.Watch(tmp_path / "logs", {"sub_01": outcome}, progress.Progress(), total=99)
    for node in workflow._graph.nodes:
        passes = node.run_without_submitting
        watch(SimpleNamespace(fullname=f"all.sub_01.{node.name}", run_without_submitting=passes), "end")
    told = {line.split()[-1] for path in (tmp_path / "logs").iterdir() for line in path.read_text().splitlines()}
    assert told == {node.name for node in workflow._graph.nodes} - {
        "fields", "notes", "other_transforms", "other_work_files", "preprocessed", "results", "rigid", "scans",
        "warnings", "brain_notes", "work_images",
    }  # fmt: skip


def test_what_a_scan_does_not_show_of_the_brain_is_told(tmp_path: Path) -> None:
    workflow = init_session_wf(session(tmp_path, ("T1w", "T2w")), config(tmp_path))
    told = [node.name for node, _ in workflow._graph.in_edges(workflow.get_node("warnings"))]
    assert sorted(told) == ["conform_T1w", "conform_T2w", "normalize_T1w", "normalize_T2w"]
    for contrast, source in (("T1w", {"native_file"}), ("T2w", {"native_file", "work_file"})):
        edge = workflow._graph.get_edge_data(
            workflow.get_node(f"conform_{contrast}"), workflow.get_node(f"normalize_{contrast}")
        )
        assert {field for field, _ in edge["connect"]} >= source


@pytest.mark.parametrize("contrasts", SUBSETS, ids="+".join)
def test_the_quality_of_every_contrast_is_measured(tmp_path: Path, contrasts: tuple[str, ...]) -> None:
    """In the order of the contrasts, the reference first; of the others the way to them, too."""
    workflow = init_session_wf(session(tmp_path, contrasts), config(tmp_path))
    measure = workflow.get_node("measure")
    order = list(measure.inputs.contrasts)
    for kind, source, names in (
        ("scans", "conform", order), ("fields", "bias", order),
        ("other_work_files", "conform", order[1:]), ("other_transforms", "coregister", order[1:]),
    ):  # fmt: skip
        merged = workflow.get_node(kind)
        assert (merged is not None) == bool(names)
        if merged is not None:
            edges = workflow._graph.in_edges(merged, data=True)
            places = {data["connect"][0][1]: node.name for node, _, data in edges}
            assert [places[f"in{place}"] for place in range(1, len(names) + 1)] == [f"{source}_{n}" for n in names]
            assert workflow._graph.get_edge_data(merged, measure)["connect"] == [("out", kind)]


def test_unset_input_would_be_seen(tmp_path: Path) -> None:
    workflow = init_session_wf(session(tmp_path, ("T1w",)), config(tmp_path))
    workflow.disconnect(workflow.get_node("brain"), "mask_file", workflow.get_node("tissue"), "mask_file")
    assert unset_inputs(workflow) == ["tissue.mask_file"]


@pytest.mark.parametrize(
    ("contrasts", "brain", "lesions"),
    [
        (("T1w", "FLAIR"), "deepbet", "outlier"),
        (("FLAIR",), "network", "outlier"),
        (("T1w", "T2w"), "deepbet", "none"),
        (("T2w",), "network", "none"),
    ],
)
def test_plan_follows_the_contrasts(tmp_path: Path, contrasts: tuple[str, ...], brain: str, lesions: str) -> None:
    chosen = plan(session(tmp_path, contrasts), config(tmp_path, lesion_model="outlier"))
    assert (chosen.brain_extraction, chosen.lesion_model) == (brain, lesions)
    assert bool(chosen.no_lesions_because) == (lesions == "none")


@pytest.mark.parametrize(
    ("contrasts", "slice_mm", "brain"),
    [
        (("FLAIR",), 4.0, "network"),
        (("FLAIR",), 5.000002, "network"),
        (("FLAIR",), 6.5, "template"),
        (("T2w",), 6.5, "template"),
        (("T1w", "FLAIR"), 6.5, "deepbet"),
    ],
)
def test_the_brain_of_thick_slices_is_found_by_the_template(
    tmp_path: Path, contrasts: tuple[str, ...], slice_mm: float, brain: str
) -> None:
    inputs = session(tmp_path, contrasts)
    for scan in inputs.scans:
        image = nib.Nifti1Image(np.ones((60, 60, 30), np.int16), np.diag([1, 1, slice_mm, 1]))
        image.to_filename(tmp_path / "scan.nii.gz")
        (tmp_path / "scan.nii.gz").rename(scan.path)
    assert plan(inputs, config(tmp_path)).brain_extraction == brain
    assert plan(inputs, config(tmp_path, brain_extraction="network")).brain_extraction == "network"


def test_the_brain_mask_is_checked_unless_it_was_asked_for_by_name(tmp_path: Path) -> None:
    inputs = session(tmp_path, ("FLAIR",))
    by_default = plan(inputs, config(tmp_path))
    assert by_default.check_brain and set(by_default.networks) == {"brain", "segment"}
    asked_for = plan(inputs, config(tmp_path, brain_extraction="template"))
    assert not asked_for.check_brain and set(asked_for.networks) == {"segment"}
    workflow = init_session_wf(inputs, config(tmp_path))
    assert workflow.get_node("brain").inputs.check


def test_the_network_checks_the_mask_of_another_method_meanwhile(tmp_path: Path) -> None:
    inputs = session(tmp_path, ("T1w", "FLAIR"))
    workflow = init_session_wf(inputs, config(tmp_path))
    assert inputs_of(workflow, "brain") == {
        "in_file": "brain_by_deepbet", "second_file": "brain_by_network", "wrong": "brain_by_network",
        "notes": "brain_notes",
    }  # fmt: skip
    assert unset_inputs(workflow) == []
    by_name = init_session_wf(inputs, config(tmp_path, brain_extraction="deepbet"))
    assert not [name for name in by_name.list_node_names() if name.startswith("brain_")]


@pytest.mark.parametrize("contrasts", SUBSETS, ids="+".join)
def test_network_looks_for_lesions_in_any_contrast(tmp_path: Path, contrasts: tuple[str, ...]) -> None:
    expected = "consensus" if "FLAIR" in contrasts else "network"
    assert plan(session(tmp_path, contrasts), config(tmp_path)).lesion_model == expected
    none = plan(session(tmp_path, contrasts), config(tmp_path, lesion_model="none"))
    assert none.lesion_model == "none" and "switched off" in none.no_lesions_because


@pytest.mark.parametrize("tissue", TISSUE_MODELS)
@pytest.mark.parametrize("lesions", LESION_MODELS)
def test_results_come_from_the_models_asked_for(tmp_path: Path, tissue: str, lesions: str) -> None:
    workflow = init_session_wf(
        session(tmp_path, ("T1w", "FLAIR")), config(tmp_path, tissue_model=tissue, lesion_model=lesions)
    )
    sources = inputs_of(workflow, "carry")
    assert sources["mask_file"] == ("brain" if tissue == "mixture" else "network")
    assert sources["posteriors_file"] == {"network": "network", "mixture": "tissue", "consensus": "combine"}[tissue]
    assert sources["structures_file"] == ("combine" if tissue == "consensus" else "sides")
    assert inputs_of(workflow, "combine")["structures_file"] == "sides"
    assert inputs_of(workflow, "sides")["in_file"] == "network"
    node = {"network": "network", "outlier": "lesions", "consensus": "combine", "none": None}[lesions]
    assert sources.get("lesion_mask") == sources.get("lesion_probability") == node


@pytest.mark.parametrize("contrasts", SUBSETS, ids="+".join)
@pytest.mark.parametrize("tissue", TISSUE_MODELS)
def test_a_model_of_ones_own_finds_the_lesions(
    tmp_path: Path, contrasts: tuple[str, ...], tissue: str, write_lesion_model: Callable[..., Path]
) -> None:
    """Where its contrasts are there; the outlier model gives the second opinion. Else there are none, and a reason."""
    thresholds = {"with FLAIR": 0.5, "without FLAIR": 0.4}
    folder = write_lesion_model(tmp_path / "model", channels=["FLAIR", "T2w"], lesion_threshold=thresholds)
    options, inputs = config(tmp_path, lesion_model=str(folder), tissue_model=tissue), session(tmp_path, contrasts)
    workflow, chosen = init_session_wf(inputs, options), plan(inputs, options)
    assert unset_inputs(workflow) == []
    usable = set(contrasts) & {"FLAIR", "T2w"}
    names = workflow.list_node_names()
    assert ("own_model" in names) == bool(usable) and ("lesions" in names) == ("FLAIR" in contrasts)
    sources = inputs_of(workflow, "carry")
    assert sources.get("lesion_mask") == sources.get("lesion_probability") == ("own_model" if usable else None)
    record = workflow.get_node("write").inputs
    assert "bright-1.0 (weights" in record.options["lesion_model"] and str(tmp_path) not in str(record.options)
    if usable:
        assert inputs_of(workflow, "combine")["network_lesions"] == "own_model"
        assert chosen.lesion_model == "bright-1.0" and not chosen.no_lesions_because
        about = record.plan["own_lesion_model"]
        assert about["threshold"] == (0.5 if "FLAIR" in contrasts else 0.4) and set(about["contrasts"]) == usable
        assert about["trained_on"] == ["no scans at all"] and str(tmp_path) not in str(record.plan)
    else:
        assert chosen.lesion_model == "none" and "trained on FLAIR or T2w" in chosen.no_lesions_because
        assert "own_lesion_model" not in record.plan


def inputs_of(workflow: pe.Workflow, name: str) -> dict[str, str]:
    """Which node each input comes from."""
    edges = workflow._graph.in_edges(workflow.get_node(name), data=True)
    return {sink: source.name for source, _, data in edges for _, sink in data["connect"]}


def test_compartments_are_divided_where_the_model_tells_several(
    tmp_path: Path, write_lesion_model: Callable[..., Path]
) -> None:
    inputs = session(tmp_path, ("T1w", "FLAIR"))
    names = ["edema", "enhancing tumour"]
    several = write_lesion_model(tmp_path / "model", classes=["background", *names], lesion_classes=names)
    workflow = init_session_wf(inputs, config(tmp_path, lesion_model=str(several)))
    assert unset_inputs(workflow) == []
    assert inputs_of(workflow, "compartments") == {"results": "carry", "compartments_file": "own_model"}
    for user in ("measure", "figures", "write"):
        assert inputs_of(workflow, user)["compartments_file"] == "compartments"
        assert workflow.get_node(user).inputs.compartments == names
    one = config(tmp_path, lesion_model=str(write_lesion_model(tmp_path / "one")))
    assert "compartments" not in init_session_wf(inputs, one).list_node_names()


@pytest.mark.parametrize("asked", [False, True])
def test_scan_with_contrast_agent_is_for_models_that_list_it_alone(
    tmp_path: Path, write_lesion_model: Callable[..., Path], asked: bool
) -> None:
    inputs = session(tmp_path, ("T1w", "FLAIR"), agent=True)
    channels = ["T1w", "T1wCE", "FLAIR"] if asked else ["T1w", "FLAIR"]
    options = config(tmp_path, lesion_model=str(write_lesion_model(tmp_path / "model", channels=channels)))
    workflow = init_session_wf(inputs, options)
    assert unset_inputs(workflow) == []
    assert ("coregister_T1wCE" in workflow.list_node_names()) == asked
    assert workflow.get_node("own_model").inputs.contrasts == channels
    assert inputs_of(workflow, "own_images")["in2"] == ("normalize_T1wCE" if asked else "normalize_FLAIR")
    for name in ("network", "tissue", "lesions", "measure", "figures"):
        assert workflow.get_node(name).inputs.contrasts == ["T1w", "FLAIR"]
    written = workflow.get_node("write").inputs.session
    assert [scan["contrast"] for scan in written["scans"]] == ["T1w", "FLAIR"]
    assert [scan["file"] for scan in written["more_scans"]] == ["sub-01/anat/sub-01_ce-gad_T1w.nii.gz"] * asked
    assert len(inputs_of(workflow, "notes")) == 2 + asked


def test_without_such_a_model_nothing_is_made_of_it(tmp_path: Path) -> None:
    plain, agent = (
        init_session_wf(session(tmp_path, ("T1w", "FLAIR"), agent=agent), config(tmp_path)) for agent in (False, True)
    )
    assert plain.list_node_names() == agent.list_node_names()


def test_only_the_scan_with_contrast_agent_is_there_for_the_model(
    tmp_path: Path, write_lesion_model: Callable[..., Path]
) -> None:
    folder = write_lesion_model(tmp_path / "model", channels=["T1wCE"], lesion_threshold={"without FLAIR": 0.5})
    options = config(tmp_path, lesion_model=str(folder))
    assert plan(session(tmp_path, ("T1w",), agent=True), options).own_lesion_model["contrasts"] == ["T1wCE"]
    none = plan(session(tmp_path, ("T1w", "FLAIR")), options)
    assert none.lesion_model == "none" and "trained on T1wCE" in none.no_lesions_because


@pytest.mark.parametrize(
    ("shape", "size_mm", "expected"),
    [
        ((256, 256, 256), (1, 1, 1), 1),
        ((40, 50, 60), (1, 1, 1), 1),
        ((512, 512, 256), (0.5, 0.5, 1), 4),  # fine voxels
        ((256, 256, 64), (1, 1, 12), 3),  # many at 1 mm
    ],
)
def test_memory_grows_with_the_voxels(
    tmp_path: Path, shape: tuple[int, ...], size_mm: tuple[float, ...], expected: float
) -> None:
    """From the header: the voxels are holes of the file, and not read."""
    inputs = session(tmp_path, ("T1w", "FLAIR"))
    header = nib.Nifti1Image(np.broadcast_to(np.uint8(0), shape), np.diag([*size_mm, 1])).header
    header.set_sform(np.diag([*size_mm, 1]), 1)
    header["vox_offset"] = 352
    path = tmp_path / "large.nii"
    path.write_bytes(header.binaryblock)
    os.truncate(path, 352 + int(np.prod(shape)))
    assert relative_size(path) == pytest.approx(expected)
    scans = (ScanChoice("T1w", path, "the only T1w"), inputs.scans[1])
    workflow = init_session_wf(SessionInputs("01", None, scans), config(tmp_path))
    for name, memory in (
        ("conform_T1w", "other"), ("brain_by_deepbet", "brain"), ("carry", "carry"), ("measure", "measure"),
        ("figures", "figures"), ("normalize_FLAIR", "other"), ("network", "network"), ("write", "other"),
    ):  # fmt: skip
        assert workflow.get_node(name).mem_gb == pytest.approx(MEMORY_GB[memory] * expected), name
    assert workflow.get_node("conform_FLAIR").mem_gb == MEMORY_GB["other"]  # a file that cannot be read


def test_labels_with_a_plus_have_workflows_of_their_own(tmp_path: Path) -> None:
    """BIDS allows it, nipype does not."""
    labels = [
        ("1", None),
        ("1+", None),
        ("+1", None),
        ("1++", None),
        ("1", "2"),
        ("1+", "2"),
        ("1", "+2"),
        ("1+2", None),
    ]
    (chosen,) = session(tmp_path, ("T1w",)).scans
    names = [workflow_name(SessionInputs(subject, label, (chosen,))) for subject, label in labels]
    assert len(set(names)) == len(names)
    workflow = init_session_wf(SessionInputs("1+", "2", (chosen,)), config(tmp_path))
    assert workflow.name == names[5] and names[4] == "sub_1_ses_2"

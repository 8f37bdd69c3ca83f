"""What the user asked for: one frozen object, validated once, handed to the app and the workflows."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bidsapp import cards
from bidsapp.errors import AnalysisLevelError, InputError, NotBidsError, UsageError
from bidsapp.labels import CONTRASTS, TEMPLATE
from bidsapp.machine import available_cpus, available_memory_gb

LEVELS = ("participant", "group")
BRAIN_EXTRACTIONS = ("auto", "deepbet", "template", "network", "bet")
TISSUE_MODELS = ("consensus", "network", "mixture")
LESION_MODELS = ("consensus", "network", "outlier", "none")
NORMALIZATIONS = ("zscore", "nyul")
DESCRIPTION = "dataset_description.json"
OUTPUT_SPACES = ("orig", TEMPLATE, "FLAIR")


def _where_the_root_may_be(folder: Path) -> str:
    """A sentence for who gave a folder within a dataset, or one above it, or left the description out."""
    if (folder.parent / DESCRIPTION).is_file():
        return f" {folder.parent} is one; single subjects are chosen with --participant-label."
    if any(folder.glob("sub-*")):
        return ' It has subjects: write the file, at least {"Name": "...", "BIDSVersion": "1.10.0"}.'
    within = sorted(path.parent for path in folder.glob(f"*/{DESCRIPTION}"))
    return f" {within[0]} is one: give that folder." if within else ""


def default_threads(nprocs: int) -> int:
    """Threads of a model. Not more on larger machines: sums, and so the last bits, depend on the number of threads."""
    return min(2, nprocs)


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run of the app; see ``docs/usage.md`` for what each option does.

    Raises
    ------
    UsageError, AnalysisLevelError, NotBidsError
        On construction, when an option cannot be used as given.
    """

    bids_dir: Path
    out_dir: Path
    level: str
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    bids_filters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    bids_database_dir: Path | None = None
    skip_bids_validation: bool = False
    brain_extraction: str = "auto"
    tissue_model: str = "consensus"
    lesion_model: str = "consensus"
    tta: bool = True
    normalization: str = "zscore"
    denoise: bool = False
    output_spaces: tuple[str, ...] = OUTPUT_SPACES
    device: str = "auto"
    work_dir: Path | None = None
    keep_work: bool = False
    nprocs: int = field(default_factory=available_cpus)
    omp_nthreads: int = field(default_factory=lambda: default_threads(available_cpus()))
    mem_gb: float = field(default_factory=available_memory_gb)
    random_seed: int = 1
    stop_on_first_crash: bool = False
    resource_monitor: bool = False
    reports_only: bool = False
    model: tuple[str, ...] = ()
    harmonize: str | None = None
    no_maps: bool = False
    dry_run: bool = False
    list_jobs: bool = False
    nipype_plugin: Mapping[str, Any] = field(default_factory=dict)
    verbose: int = 0

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise AnalysisLevelError(f"analysis level {self.level!r} is unknown; choose one of: {', '.join(LEVELS)}.")
        self._check_choices()
        self._check_numbers()
        self._check_previews()
        self._check_folders()
        unknown = set(self.bids_filters) - set(CONTRASTS)
        if unknown:
            raise UsageError(
                f"--bids-filter-file: {', '.join(sorted(unknown))} is no contrast of this app;"
                f" use {', '.join(CONTRASTS)}."
            )

    def _check_choices(self) -> None:
        for name, allowed in (
            ("brain_extraction", BRAIN_EXTRACTIONS),
            ("tissue_model", TISSUE_MODELS),
            ("normalization", NORMALIZATIONS),
        ):
            if getattr(self, name) not in allowed:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag}: {getattr(self, name)!r} is unknown; choose one of: {', '.join(allowed)}.")
        _ = self.own_lesion_model  # whatever is wrong with it is said now
        for space in self.output_spaces:
            if space not in OUTPUT_SPACES:
                raise UsageError(
                    f"--output-spaces: {space!r} is not available; choose among {', '.join(OUTPUT_SPACES)}."
                    f" (The packaged template is {TEMPLATE}; other templates would have to be downloaded.)"
                )
        kind, _, number = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (number and (kind != "cuda" or not number.isdecimal())):
            raise UsageError(f"--device: {self.device!r} is unknown; use auto, cpu, cuda or cuda:N.")

    def _check_numbers(self) -> None:
        for name in ("nprocs", "omp_nthreads"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}.")
        if not 0 < self.mem_gb < math.inf:
            raise UsageError(f"--mem must be positive (GB), not {self.mem_gb}.")
        if not 0 <= self.random_seed < 2**32:  # what numpy takes
            raise UsageError(f"--random-seed must lie between 0 and {2**32 - 1}, not {self.random_seed}.")

    def _check_previews(self) -> None:
        """What asks for a look only must never write."""
        if self.level == "participant" and not self.reports_only:
            return
        for name in ("dry_run", "list_jobs"):
            if getattr(self, name):
                other = "--reports-only" if self.reports_only else "the group level"
                raise UsageError(f"--{name.replace('_', '-')} is for the participant level: {other} has no use for it.")

    def _check_folders(self) -> None:
        if self.level == "participant" and not self.reports_only:
            if not self.bids_dir.is_dir():
                raise NotBidsError(f"{self.bids_dir}: no such folder. Give the root of a BIDS dataset.")
            if not (self.bids_dir / DESCRIPTION).is_file():
                raise NotBidsError(
                    f"{self.bids_dir}: no {DESCRIPTION}, so this is not the root of a BIDS dataset."
                    + _where_the_root_may_be(self.bids_dir)
                )
        if self.out_dir.exists() and not self.out_dir.is_dir():
            raise UsageError(f"{self.out_dir}: is a file; give a folder for the output.")
        if self.out_dir.resolve() == self.bids_dir.resolve() and not (self.level == "group" or self.reports_only):
            raise UsageError(
                f"{self.out_dir}: output and input are the same folder; use e.g. {self.bids_dir}/derivatives/bidsapp."
            )

    @property
    def work(self) -> Path:
        """Folder of intermediate files."""
        return self.work_dir if self.work_dir is not None else self.out_dir / ".work"

    @cached_property
    def own_lesion_model(self) -> cards.LesionModel | None:
        """The model folder that ``--lesion-model`` names: one's own, or one more that comes with the app.

        Raises
        ------
        UsageError
            It is neither one of `LESION_MODELS`, nor the name of a model, nor a folder.
        InputError
            The folder cannot be used.
        """
        name = self.lesion_model
        if name in LESION_MODELS:
            return None
        more = cards.packaged_lesion_models()
        if name in more:
            folder = cards.newest(name)
            assert folder is not None
        elif os.sep in name or os.path.lexists(name):
            folder = Path(os.path.abspath(name))  # the nodes run in folders of their own
        else:
            raise UsageError(
                f"--lesion-model: {name!r} is unknown; choose one of: {', '.join((*LESION_MODELS, *more))}, or give the"
                " folder of a model, as 'bidsapp train' writes it."
            )
        try:
            return cards.read_lesion_model(folder)
        except InputError as error:
            raise InputError(f"--lesion-model: {error}") from error

    @property
    def own_channels(self) -> tuple[str, ...]:
        """Contrasts that `own_lesion_model` can use; none without it."""
        return () if self.own_lesion_model is None else self.own_lesion_model.channels

    def science(self) -> dict[str, Any]:
        """The options that change results: part of every session's record, and of what a resumed run compares."""
        names = ("brain_extraction", "tissue_model", "lesion_model", "tta", "normalization", "denoise", "random_seed")
        chosen = {name: getattr(self, name) for name in names} | {"output_spaces": sorted(self.output_spaces)}
        if self.own_lesion_model is not None:  # wherever it lies, and whatever lay there before
            chosen["lesion_model"] = self.own_lesion_model.label
        return chosen


def read_plugin(path: Path) -> dict[str, Any]:
    """Read ``--nipype-plugin-file``: ``plugin: NAME`` and ``plugin_args: {...}``, YAML or JSON.

    Raises
    ------
    UsageError
        The file is missing, no YAML, or holds something else.
    """
    import yaml  # only for those who use it

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--nipype-plugin-file {path}: cannot be read ({error}).") from error
    arguments = loaded.get("plugin_args", {}) if isinstance(loaded, dict) else None
    if not isinstance(loaded, dict) or not isinstance(arguments, dict) or set(loaded) - {"plugin", "plugin_args"}:
        raise UsageError(f"--nipype-plugin-file {path}: must hold 'plugin: NAME' and 'plugin_args:' with its options.")
    return {"plugin": str(loaded.get("plugin", "MultiProc")), "plugin_args": arguments}


def read_filters(path: Path) -> dict[str, dict[str, Any]]:
    """Read ``--bids-filter-file``: ``{"T1w": {"acquisition": "mprage"}, ...}``; keys in any letter case.

    Raises
    ------
    UsageError
        The file is missing, no JSON, or not a table of tables of words, numbers, null or lists of these.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--bids-filter-file {path}: cannot be read ({error}).") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, dict) for value in loaded.values()):
        raise UsageError(f'--bids-filter-file {path}: must look like {{"T1w": {{"acquisition": "mprage"}}}}.')
    for contrast, entities in loaded.items():
        for entity, wanted in entities.items():
            values = wanted if isinstance(wanted, list) else [wanted]
            if not all(value is None or isinstance(value, (str, int, float)) for value in values):
                raise UsageError(
                    f"--bids-filter-file {path}: {entity!r} of {contrast} must be a word, a number, null or a list."
                )
    names: dict[str, str] = {contrast.lower(): contrast for contrast in CONTRASTS}
    return {names.get(str(key).lower(), str(key)): value for key, value in loaded.items()}

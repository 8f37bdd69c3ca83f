"""Which methods a session gets: decided from its contrasts and the options, without loading any of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from bidsapp import cards
from bidsapp.bids import SessionInputs
from bidsapp.config import Config
from bidsapp.scan_choice import ScanChoice, geometry

#: On slices of 6.5 and 7.7 mm the network took skull for brain; on those of 3 and 4 mm, and of 5 mm on synthetic
#: heads, its border was the best (docs/decisions/0020-the-network-finds-the-brain-without-a-t1w.md).
THICK_MM = 5.0


@dataclass(frozen=True)
class Plan:
    """What will run for a session: decided once, shown by ``--dry-run``, kept in the record."""

    brain_extraction: str
    tissue_model: str
    lesion_model: str
    no_lesions_because: str = ""
    check_brain: bool = False  # by another method, which takes over where the mask cannot be right
    networks: dict[str, str] = field(default_factory=dict)  # packaged ones that are used, and their versions
    own_lesion_model: dict[str, Any] | None = None  # what its card says, where ``lesion_model`` is its name

    def plain(self) -> dict[str, Any]:
        """As it is kept in the record."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def plan(inputs: SessionInputs, config: Config) -> Plan:
    """Choose the methods for the contrasts at hand."""
    brain, check = config.brain_extraction, config.brain_extraction == "auto"  # what is asked for by name is done
    if check:
        brain = _brain_extraction(inputs.reference)
    used = ("brain", "segment") if check or brain == "network" else ("segment",)
    networks = {name: cards.packaged_version(name) for name in used}
    why, own = "", config.own_lesion_model
    if own is not None:
        there = [scan.contrast for scan in inputs.used_by(own.channels)]
        why = own.unusable_because(there)
        if not why:
            return Plan(brain, config.tissue_model, own.name, "", check, networks, own.about(there))
    elif config.lesion_model == "none":
        why = "lesion segmentation was switched off (--lesion-model none)"
    elif config.lesion_model == "outlier" and "FLAIR" not in inputs.contrasts:
        why = "this lesion model (outlier) finds lesions by their brightness on FLAIR, and there is no FLAIR"
    lesions = "none" if why else config.lesion_model
    if lesions == "consensus" and "FLAIR" not in inputs.contrasts:
        lesions = "network"  # the other model has no opinion
    return Plan(brain, config.tissue_model, lesions, why, check, networks)


def _brain_extraction(reference: ScanChoice) -> str:
    """deepbet, which knows T1w alone; else the network or, on thick slices, the template."""
    if reference.contrast == "T1w":
        return "deepbet"
    _, _, edge_mm, _ = geometry(reference.path)  # 0 of one that cannot be read: its first step says what is wrong
    return "template" if edge_mm > THICK_MM else "network"

"""Names that all parts share, of contrasts and of the template; and the only place with label integers.

Indices 1, 2, 3 and 7 are those of the BIDS derivatives specification
("Common image-derived labels"); 20 is ours and lies outside its range.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

#: Contrasts, in the order of the channels of the packaged networks and of the scans they are trained on.
CONTRASTS = ("T1w", "T2w", "FLAIR")
#: Order of preference for the reference scan: T1w tells tissues best, FLAIR carries the lesions.
REFERENCE_ORDER = ("T1w", "FLAIR", "T2w")
#: ... and for a scan to see or compare lesions on.
LESION_ORDER = ("FLAIR", "T1w", "T2w")
#: T1w with a contrast agent (``ce-``) beside one without: only for lesion models whose card lists it as a channel.
WITH_AGENT = "T1wCE"
#: Space of the packaged template (`image.template`).
TEMPLATE = "MNI152NLin2009aSym"
#: What lies half-way between the sessions of a subject is of none of them.
HALFWAY = "halfway"


@dataclass(frozen=True)
class Label:
    """One row of a BIDS look-up table (``*_dseg.tsv``)."""

    index: int
    name: str
    abbreviation: str
    color: str


BACKGROUND = Label(0, "Background", "BG", "#000000")
GM = Label(1, "Gray Matter", "GM", "#d98880")
WM = Label(2, "White Matter", "WM", "#f4ecd8")
CSF = Label(3, "Cerebrospinal Fluid", "CSF", "#5dade2")
LESION = Label(7, "Lesion", "L", "#f1c40f")
# FLAIR alone cannot tell grey from white matter; the two are then one class.
PARENCHYMA = Label(20, "Brain Parenchyma (gray and white matter)", "PAR", "#e5b9a8")

#: Order of the first axis of every array of tissue posteriors or priors.
TISSUES = (GM, WM, CSF)

TISSUE_LOOKUP = (BACKGROUND, GM, WM, CSF, LESION, PARENCHYMA)


@dataclass(frozen=True)
class Structure:
    """An anatomical structure as the segmentation network names it.

    Attributes
    ----------
    name : str
        The network's class.
    left, right : int
        Indices of FreeSurferColorLUT.txt, those of SynthSeg; equal where the structure has no sides.
    tissue : Label
        The tissue it counts to (FreeSurfer counts the ventral diencephalon to subcortical gray matter).
    color : str
        As in FreeSurferColorLUT.txt.
    """

    name: str
    left: int
    right: int
    tissue: Label
    color: str

    @property
    def sided(self) -> bool:
        """Whether there is one on each side."""
        return self.left != self.right

    @property
    def labels(self) -> tuple[Label, ...]:
        """Rows of the look-up table, left first."""
        if not self.sided:
            return (Label(self.left, self.name, self.name, self.color),)
        return _both_sides(self.name, self.left, self.right, self.color)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of its volumes in tables."""
        return tuple(_volume_column(label) for label in self.labels)


def _both_sides(name: str, left: int, right: int, color: str) -> tuple[Label, Label]:
    return Label(left, f"left {name}", f"L-{name}", color), Label(right, f"right {name}", f"R-{name}", color)


def _volume_column(label: Label) -> str:
    return f"{label.name.lower().replace(' ', '_')}_mm3"


STRUCTURES = (
    Structure("cerebral white matter", 2, 41, WM, "#f5f5f5"),
    Structure("cerebral cortex", 3, 42, GM, "#cd3e4e"),
    Structure("lateral ventricle", 4, 43, CSF, "#781286"),
    Structure("inferior lateral ventricle", 5, 44, CSF, "#c43afa"),
    Structure("cerebellar white matter", 7, 46, WM, "#dcf8a4"),
    Structure("cerebellar cortex", 8, 47, GM, "#e69422"),
    Structure("thalamus", 10, 49, GM, "#00760e"),
    Structure("caudate", 11, 50, GM, "#7abadc"),
    Structure("putamen", 12, 51, GM, "#ec0db0"),
    Structure("pallidum", 13, 52, GM, "#0c30ff"),
    Structure("third ventricle", 14, 14, CSF, "#ccb68e"),
    Structure("fourth ventricle", 15, 15, CSF, "#2acca4"),
    Structure("brain stem", 16, 16, WM, "#779fb0"),
    Structure("hippocampus", 17, 53, GM, "#dcd814"),
    Structure("amygdala", 18, 54, GM, "#67ffff"),
    Structure("CSF", 24, 24, CSF, "#3c3c3c"),
    Structure("accumbens", 26, 58, GM, "#ffa500"),
    Structure("ventral DC", 28, 60, GM, "#a52a2a"),
)


def structure_named(name: str) -> Structure:
    """The one of `STRUCTURES` of that name."""
    return next(structure for structure in STRUCTURES if structure.name == name)


#: What is left of a brain mask: fluid around the brain.
EXTRA_AXIAL_CSF = 24
#: Lesions among the structures: FreeSurfer's white-matter hypointensities, as in WMH-SynthSeg.
STRUCTURE_LESION = Label(77, "Lesion", "L", LESION.color)

STRUCTURE_LOOKUP = (
    BACKGROUND, *sorted((label for s in STRUCTURES for label in s.labels), key=lambda label: label.index),
    STRUCTURE_LESION,
)  # fmt: skip

LOBES = ("frontal", "parietal", "temporal", "occipital", "insular")


@dataclass(frozen=True)
class CorticalRegion:
    """A region of the cerebral cortex after Desikan et al. 2006 (NeuroImage 31:968-980), on either side.

    Attributes
    ----------
    index : int
        From 1; FreeSurfer adds 1000 for the left side, 2000 for the right.
    name : str
    lobe : str
        Of `LOBES`, as FreeSurfer groups the regions; those of the cingulate gyrus are frontal or parietal.
    color : str
        As in FreeSurferColorLUT.txt.
    """

    index: int
    name: str
    lobe: str
    color: str

    @property
    def labels(self) -> tuple[Label, Label]:
        """Rows of the look-up table, left first."""
        left, right = (start + self.index for start in CORTEX_SIDES.values())
        return _both_sides(self.name, left, right, self.color)

    @property
    def columns(self) -> tuple[str, str]:
        """Names of its volumes in tables, left first."""
        left, right = self.labels
        return _volume_column(left), _volume_column(right)


#: What FreeSurfer adds to the number of a cortical region.
CORTEX_SIDES = {"left": 1000, "right": 2000}
CORTICAL_REGIONS = (
    CorticalRegion(1, "banks of superior temporal sulcus", "temporal", "#196428"),
    CorticalRegion(2, "caudal anterior cingulate", "frontal", "#7d64a0"),
    CorticalRegion(3, "caudal middle frontal", "frontal", "#641900"),
    CorticalRegion(5, "cuneus", "occipital", "#dc1464"),
    CorticalRegion(6, "entorhinal", "temporal", "#dc140a"),
    CorticalRegion(7, "fusiform", "temporal", "#b4dc8c"),
    CorticalRegion(8, "inferior parietal", "parietal", "#dc3cdc"),
    CorticalRegion(9, "inferior temporal", "temporal", "#b42878"),
    CorticalRegion(10, "isthmus cingulate", "parietal", "#8c148c"),
    CorticalRegion(11, "lateral occipital", "occipital", "#141e8c"),
    CorticalRegion(12, "lateral orbitofrontal", "frontal", "#234b32"),
    CorticalRegion(13, "lingual", "occipital", "#e18c8c"),
    CorticalRegion(14, "medial orbitofrontal", "frontal", "#c8234b"),
    CorticalRegion(15, "middle temporal", "temporal", "#a06432"),
    CorticalRegion(16, "parahippocampal", "temporal", "#14dc3c"),
    CorticalRegion(17, "paracentral", "frontal", "#3cdc3c"),
    CorticalRegion(18, "pars opercularis", "frontal", "#dcb48c"),
    CorticalRegion(19, "pars orbitalis", "frontal", "#146432"),
    CorticalRegion(20, "pars triangularis", "frontal", "#dc3c14"),
    CorticalRegion(21, "pericalcarine", "occipital", "#78643c"),
    CorticalRegion(22, "postcentral", "parietal", "#dc1414"),
    CorticalRegion(23, "posterior cingulate", "parietal", "#dcb4dc"),
    CorticalRegion(24, "precentral", "frontal", "#3c14dc"),
    CorticalRegion(25, "precuneus", "parietal", "#a08cb4"),
    CorticalRegion(26, "rostral anterior cingulate", "frontal", "#50148c"),
    CorticalRegion(27, "rostral middle frontal", "frontal", "#4b327d"),
    CorticalRegion(28, "superior frontal", "frontal", "#14dca0"),
    CorticalRegion(29, "superior parietal", "parietal", "#14b48c"),
    CorticalRegion(30, "superior temporal", "temporal", "#8cdcdc"),
    CorticalRegion(31, "supramarginal", "parietal", "#50a014"),
    CorticalRegion(32, "frontal pole", "frontal", "#640064"),
    CorticalRegion(33, "temporal pole", "temporal", "#464646"),
    CorticalRegion(34, "transverse temporal", "temporal", "#9696c8"),
    CorticalRegion(35, "insula", "insular", "#ffc020"),
)
CORTEX = structure_named("cerebral cortex")

#: The structures, and the cortex in its regions: what FreeSurfer calls aparc+aseg.
CORTICAL_LOOKUP = (
    *STRUCTURE_LOOKUP, *sorted((label for r in CORTICAL_REGIONS for label in r.labels), key=lambda label: label.index),
)  # fmt: skip

#: Labels of a change map: what became of lesions between two sessions.
CHANGE_STABLE = Label(1, "Stable lesion", "STABLE", "#111133")
CHANGE_NEW = Label(2, "New lesion", "NEW", "#e53935")
CHANGE_GROWTH = Label(3, "Growth of an enlarging lesion", "GROWTH", "#fb8c00")
CHANGE_LOSS = Label(4, "Loss of a shrinking lesion", "LOSS", "#26c6da")
CHANGE_RESOLVED = Label(5, "Resolved lesion", "RESOLVED", "#1e88e5")
CHANGE_UNCONFIRMED = Label(
    6, "Segmented in one session only without a change of brightness, or too small to tell", "UNCONFIRMED", "#b39ddb"
)
CHANGE_LOOKUP = (
    BACKGROUND, CHANGE_STABLE, CHANGE_NEW, CHANGE_GROWTH, CHANGE_LOSS, CHANGE_RESOLVED, CHANGE_UNCONFIRMED,
)  # fmt: skip


@dataclass(frozen=True)
class Compartment:
    """A part of a lesion that a model tells from the others.

    Attributes
    ----------
    label : Label
        Row of the look-up table of ``seg-lesions_dseg``; its name is the clinical one.
    column : str
        Of its volume in the load table.
    """

    label: Label
    column: str


#: Compartments of a tumor by the names that models give them. Numbers and regions are those of the BraTS challenges
#: (Menze et al. 2015, IEEE TMI 34:1993) from 2023 on; enhancing tumor had the number 4 before.
_TUMOR = (
    (Label(1, "Necrotic tumor core", "NCR", "#e53935"),
     ("necrotic core", "necrosis", "necrotic tumor core", "necrotic and non enhancing tumor core", "ncr")),
    (Label(2, "Peritumoral edema", "ED", "#43a047"),
     ("edema", "peritumoral edema", "peritumoral edematous tissue", "ed")),
    (Label(3, "Enhancing tumor", "ET", "#fdd835"),
     ("enhancing tumor", "gd enhancing tumor", "enhancing", "et")),
)  # fmt: skip
NECROTIC_CORE, EDEMA, ENHANCING_TUMOR = (label for label, _ in _TUMOR)
TUMOR_COMPARTMENTS = (NECROTIC_CORE, EDEMA, ENHANCING_TUMOR)
#: Regions of a tumor, as sums of its compartments: column, name, compartments.
TUMOR_REGIONS = (
    ("whole_tumor_mm3", "Whole tumor", TUMOR_COMPARTMENTS),
    ("tumor_core_mm3", "Tumor core", (NECROTIC_CORE, ENHANCING_TUMOR)),
    ("enhancing_tumor_mm3", "Enhancing tumor", (ENHANCING_TUMOR,)),
)
#: Parts of lesions that the app knows no clinical name of get numbers from here on, and these colors in turn.
_OTHER_COMPARTMENTS, _OTHER_COLORS = 101, ("#8e24aa", "#00acc1", "#6d4c41", "#c0ca33", "#3949ab", "#f4511e")


def compartments(names: Sequence[str]) -> tuple[Compartment, ...]:
    """The compartments of a model's ``lesion_classes``, in their order; edema or tumour may be spelled in any way.

    Where two names mean the same, or none is known, the name is kept.
    """
    found: list[Compartment] = []
    for name in names:
        plain = re.sub(r"[^a-z0-9]+", " ", name.lower().replace("oedema", "edema").replace("tumour", "tumor")).strip()
        label = next((label for label, known in _TUMOR if plain in known), None)
        if label is None or any(label is other.label for other in found):
            number = sum(other.label.index >= _OTHER_COMPARTMENTS for other in found)
            label = Label(_OTHER_COMPARTMENTS + number, name, name, _OTHER_COLORS[number % len(_OTHER_COLORS)])
        known_as = label.name.lower() if label in TUMOR_COMPARTMENTS else plain
        column = f"compartment_{known_as.replace(' ', '_')}_mm3"
        if any(column == other.column for other in found):
            column = column.replace("_mm3", f"_{label.index}_mm3")
        found.append(Compartment(label, column))
    return tuple(found)


def compartment_lookup(names: Sequence[str]) -> tuple[Label, ...]:
    """Look-up table of ``seg-lesions_dseg`` for a model's ``lesion_classes``: background, then by number."""
    return (BACKGROUND, *sorted((part.label for part in compartments(names)), key=lambda label: label.index))

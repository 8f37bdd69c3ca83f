"""The label maps of whole heads: what each label is, how it looks, what it becomes in the target."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of matter: typical signal on T1w, T2w and FLAIR, relative to white matter on T1w."""

    name: str
    t1w: float
    t2w: float
    flair: float
    cerebral: bool


@dataclass(frozen=True)
class Structure:
    """One label of the maps (FreeSurfer's numbers; 502-530 as in FreeSurfer's look-up table)."""

    index: int
    name: str
    kind: str
    partner: int  # the label it becomes when left and right are swapped
    target: int  # SynthSeg's label, 0 for background


# Signals: project's recipe (shared/spec/training.md) for brain tissue; those outside the brain are
# textbook orders of magnitude (fat bright, cortical bone dark) and are varied most.
KINDS = (
    Kind("air", 0.02, 0.02, 0.02, False),
    Kind("csf", 0.20, 1.00, 0.20, True),
    Kind("cortex", 0.66, 0.55, 0.74, True),
    Kind("white matter", 1.00, 0.38, 0.60, True),
    Kind("cerebellar cortex", 0.64, 0.55, 0.72, True),
    Kind("cerebellar white matter", 0.97, 0.40, 0.62, True),
    Kind("thalamus", 0.82, 0.45, 0.64, True),
    Kind("caudate", 0.74, 0.50, 0.70, True),
    Kind("putamen", 0.78, 0.46, 0.68, True),
    Kind("pallidum", 0.90, 0.32, 0.55, True),
    Kind("brain stem", 0.93, 0.42, 0.62, True),
    Kind("hippocampus", 0.68, 0.57, 0.78, True),
    Kind("amygdala", 0.68, 0.55, 0.78, True),
    Kind("accumbens", 0.74, 0.50, 0.72, True),
    Kind("ventral DC", 0.88, 0.40, 0.60, True),
    Kind("choroid plexus", 0.50, 0.80, 0.75, True),
    Kind("nerve", 0.85, 0.45, 0.60, False),
    Kind("vessel", 0.35, 0.30, 0.30, False),
    Kind("eye", 0.25, 1.00, 0.30, False),
    Kind("soft tissue", 0.55, 0.30, 0.45, False),
    Kind("fat", 1.40, 0.90, 0.70, False),
    Kind("muscle", 0.55, 0.25, 0.40, False),
    Kind("mucosa", 0.60, 0.80, 0.80, False),
    Kind("skin", 1.10, 0.70, 0.60, False),
    Kind("spinal cord", 0.90, 0.42, 0.62, False),
    Kind("cortical bone", 0.08, 0.06, 0.06, False),
    Kind("marrow", 0.90, 0.55, 0.45, False),
)
KIND = {kind.name: number for number, kind in enumerate(KINDS)}


def _pair(left: int, right: int, name: str, kind: str) -> tuple[Structure, Structure]:
    return (
        Structure(left, f"left {name}", kind, right, left),
        Structure(right, f"right {name}", kind, left, right),
    )


def _single(index: int, name: str, kind: str, target: int = 0) -> Structure:
    return Structure(index, name, kind, index, target)


#: FreeSurfer's hypointensities of white matter.
LEFT_LESION, RIGHT_LESION = 78, 79
#: Position in this tuple = value in the arrays that the generator works on.
STRUCTURES = (
    _single(0, "background", "air"),
    *_pair(2, 41, "cerebral white matter", "white matter"),
    *_pair(3, 42, "cerebral cortex", "cortex"),
    *_pair(4, 43, "lateral ventricle", "csf"),
    *_pair(5, 44, "inferior lateral ventricle", "csf"),
    *_pair(7, 46, "cerebellar white matter", "cerebellar white matter"),
    *_pair(8, 47, "cerebellar cortex", "cerebellar cortex"),
    *_pair(10, 49, "thalamus", "thalamus"),
    *_pair(11, 50, "caudate", "caudate"),
    *_pair(12, 51, "putamen", "putamen"),
    *_pair(13, 52, "pallidum", "pallidum"),
    _single(14, "third ventricle", "csf", 14),
    _single(15, "fourth ventricle", "csf", 15),
    _single(16, "brain stem", "brain stem", 16),
    *_pair(17, 53, "hippocampus", "hippocampus"),
    *_pair(18, 54, "amygdala", "amygdala"),
    _single(24, "CSF", "csf", 24),
    # 25 and 57 border white matter and the ventricles' walls; without a lesion drawn on it, it is white matter.
    Structure(25, "left white matter near ventricle", "white matter", 57, 2),
    Structure(57, "right white matter near ventricle", "white matter", 25, 41),
    *_pair(26, 58, "accumbens", "accumbens"),
    *_pair(28, 60, "ventral DC", "ventral DC"),
    Structure(30, "left perivascular space", "csf", 62, 2),
    Structure(62, "right perivascular space", "csf", 30, 41),
    _single(72, "cavum septi pellucidi", "csf", 24),
    _single(85, "optic chiasm", "nerve", 24),
    Structure(136, "left choroid plexus", "choroid plexus", 163, 4),
    Structure(163, "right choroid plexus", "choroid plexus", 136, 43),
    Structure(137, "left choroid plexus (inferior)", "choroid plexus", 164, 5),
    Structure(164, "right choroid plexus (inferior)", "choroid plexus", 137, 44),
    _single(502, "artery", "vessel"),
    _single(506, "eye", "eye"),
    _single(507, "soft tissue", "soft tissue"),
    _single(508, "eye muscle", "muscle"),
    _single(509, "mucosa", "mucosa"),
    _single(511, "skin", "skin"),
    _single(512, "spinal cord", "spinal cord"),
    _single(514, "vein", "vessel"),
    _single(515, "cortical bone", "cortical bone"),
    _single(516, "marrow", "marrow"),
    _single(530, "optic nerve", "nerve"),
    # Lesions where a patient has them (training/patients.py); without a lesion drawn on it, it is white matter.
    Structure(LEFT_LESION, "left lesion", "white matter", RIGHT_LESION, 2),
    Structure(RIGHT_LESION, "right lesion", "white matter", LEFT_LESION, 41),
)
POSITION = {structure.index: number for number, structure in enumerate(STRUCTURES)}
#: Labels of brain tissue and of what lies inside it: all that have a target, but CSF outside the ventricles.
INSIDE_BRAIN = tuple(s.index for s in STRUCTURES if s.target and s.index not in (24, 85))


def one_sided(structure: Structure) -> str:
    """Name of a structure's target without its side: the network sees no left and right."""
    target = STRUCTURES[POSITION[structure.target]]
    return target.name.removeprefix("left ").removeprefix("right ")


#: Output classes of the segmentation network, in order; the lesion is appended by the task.
TARGETS = tuple(dict.fromkeys(one_sided(s) for s in STRUCTURES if s.target == 0 or s.index == s.target))

"""The options of ``bidsapp evaluate``: parsed, checked once."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bidsapp.arguments import Parser, bare_label
from bidsapp.errors import UsageError

#: Cases whose pictures the page shows, if not told otherwise: a page of some MB.
PICTURES = 12
FUSIONS = ("staple", "majority")
#: Borders of the classes of lesion volumes (mm3): decades, since volumes spread over orders of magnitude. 10 mm3 is a
#: ball of 2.7 mm: smaller ones lie below the 3 mm that a lesion of multiple sclerosis has by convention (Filippi et al.
#: 2019, Brain 142:1858). 100 and 1000 mm3 are balls of 5.8 and 12.4 mm.
SIZE_BINS_MM3 = (10.0, 100.0, 1000.0)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What ``bidsapp evaluate`` was asked for; made by `parse`, checked once.

    Attributes
    ----------
    references : mapping
        Folder by name of the rater; the first is REF_DIR.
    predictions : mapping
        Folder by name.
    out : Path
    labels, segs : tuple of str
        Masks and dsegs to compare, ``NAME`` or ``REFERENCE:PREDICTION``; both empty: what all have.
    subjects, sessions : tuple of str
        Labels without prefixes; empty for all.
    cases : frozenset of (str, str), optional
        Labels of subject and session ("" without one): exactly these are compared.
    space : str
        Of the references; "" for any.
    fusion : str
        One of `FUSIONS`.
    lesions : tuple of str
        Labels counted lesion by lesion; empty: by their names.
    minimum_lesion_mm3 : float
    size_bins : tuple of float
    participants : Path or None
        Table of the subjects.
    group : str
        Its column of groups.
    scans : Path or None
        Dataset of the scans to draw on.
    pictures : int
    """

    references: Mapping[str, Path]
    predictions: Mapping[str, Path]
    out: Path
    labels: tuple[str, ...] = ()
    segs: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    cases: frozenset[tuple[str, str]] | None = None
    space: str = ""
    fusion: str = FUSIONS[0]
    lesions: tuple[str, ...] = ()
    minimum_lesion_mm3: float = 0.0
    size_bins: tuple[float, ...] = SIZE_BINS_MM3
    participants: Path | None = None
    group: str = ""
    scans: Path | None = None
    pictures: int = PICTURES

    def __post_init__(self) -> None:
        from bidsapp.measure.raters import MAXIMUM_RATERS

        if len(self.references) > MAXIMUM_RATERS:
            raise UsageError(
                f"--raters: {len(self.references)} raters with REF_DIR; at most {MAXIMUM_RATERS} can be fused."
            )
        for name, folder in self.predictions.items():
            if folder in self.references.values():
                raise UsageError(f"{folder} is both a reference and the prediction {name}: all would agree.")
        if not 0 <= self.minimum_lesion_mm3 < math.inf:
            raise UsageError("--minimum-lesion: a volume in mm3, 0 or more.")
        bins = self.size_bins
        if not bins or not all(a < b for a, b in itertools.pairwise((0, *bins, math.inf))):
            raise UsageError("--size-bins: volumes in mm3, each larger than the one before, such as 10 100 1000.")
        if bool(self.participants) != bool(self.group):
            raise UsageError("--participants and --group go together: the table, and its column of groups.")
        if self.pictures < 0:
            raise UsageError("--pictures: 0 or more.")
        if self.fusion not in FUSIONS:
            raise UsageError(f"--fusion {self.fusion}: choose one of {', '.join(FUSIONS)}.")


def _parser() -> Parser:
    parser = Parser(
        prog="bidsapp evaluate",
        description="Compare segmentations with references, case by case and together: overlap, surface distances,"
        " volumes, lesions one by one and by size; several predictions against each other, several raters fused.",
        epilog="Exit codes: 0 fine, 1 a pair could not be compared (the others were), 18 nothing to compare, 64 bad"
        " command line, 66 input not readable.",
    )
    add = parser.add_argument
    add("ref_dir", type=Path, metavar="REF_DIR", help="BIDS derivative with the references (masks or dsegs)")
    add("pred_dir", type=Path, nargs="+", metavar="PRED_DIR", help="derivatives with predictions: A, B, ...")
    add("--names", nargs="+", default=(), metavar="NAME", help="names of the predictions (default: their folders')")
    add("--out", type=Path, metavar="DIR", help="folder of tables and page (default: PRED_DIR/evaluation)")

    group = parser.add_argument_group("what is compared")
    add = group.add_argument
    add("--label", nargs="+", default=(), metavar="NAME",
        help="masks (label-NAME_mask or desc-NAME_mask); where names differ, REFERENCE:PREDICTION")  # fmt: skip
    add("--seg", nargs="+", default=(), metavar="NAME", help="dsegs (seg-NAME_dseg), or REFERENCE:PREDICTION")
    add("--space", default="", metavar="SPACE", help="use references of this space- alone")
    add("--participant-label", nargs="+", default=(), metavar="LABEL", help="subjects")
    add("--session-label", nargs="+", default=(), metavar="LABEL", help="sessions")

    group = parser.add_argument_group("several raters")
    add = group.add_argument
    add("--raters", nargs="+", type=Path, default=(), metavar="DIR",
        help="derivatives of further raters; the reference is then the consensus of REF_DIR and these")  # fmt: skip
    add("--fusion", default=FUSIONS[0], metavar="NAME", help="how raters are fused: " + " or ".join(FUSIONS))

    group = parser.add_argument_group("lesions")
    add = group.add_argument
    add("--lesions", nargs="+", default=(), metavar="LABEL",
        help="labels counted lesion by lesion (default: those named lesion, wmh, stroke and the like)")  # fmt: skip
    add("--minimum-lesion", type=float, default=0.0, metavar="MM3",
        help="smaller lesions of the reference count neither as found nor as missed")  # fmt: skip
    add("--size-bins", type=float, nargs="+", default=SIZE_BINS_MM3, metavar="MM3",
        help="borders of the classes of lesion volume")  # fmt: skip

    group = parser.add_argument_group("groups of subjects")
    add = group.add_argument
    add("--participants", type=Path, metavar="FILE", help="participants.tsv")
    add("--group", default="", metavar="COLUMN", help="its column of groups, compared by Wilcoxon's rank-sum test")

    group = parser.add_argument_group("page")
    add = group.add_argument
    add("--scans", type=Path, metavar="BIDS_DIR", help="dataset of the scans to draw on (default: found by itself)")
    add("--pictures", type=int, default=PICTURES, metavar="N", help="cases with a picture, the worst ones first")
    return parser


def parse(argv: Sequence[str]) -> Options:
    """Turn the command line into `Options`.

    Raises
    ------
    UsageError
        What is wrong and how it should be.
    """
    given = _parser().parse_args(argv)
    folders = [Path(os.path.abspath(folder)) for folder in given.pred_dir]
    raters = [Path(os.path.abspath(folder)) for folder in (given.ref_dir, *given.raters)]
    for what, several in (("prediction", folders), ("reference", raters)):
        if len(set(several)) < len(several):
            raise UsageError(f"A folder is given twice as a {what}.")
    names = list(given.names) or distinct_names(folders)
    if len(names) != len(folders):
        raise UsageError(f"--names: {len(names)} names for {len(folders)} predictions.")
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise UsageError("--names: every prediction needs a name of its own.")
    return Options(
        references=dict(zip(distinct_names(raters), raters, strict=True)),
        predictions=dict(zip(names, folders, strict=True)),
        out=Path(os.path.abspath(given.out)) if given.out else folders[0] / "evaluation",
        labels=tuple(given.label), segs=tuple(given.seg), space=given.space.removeprefix("space-"),
        subjects=tuple(map(bare_label, given.participant_label)), sessions=tuple(map(bare_label, given.session_label)),
        fusion=given.fusion, lesions=tuple(given.lesions), minimum_lesion_mm3=given.minimum_lesion,
        size_bins=tuple(given.size_bins), participants=given.participants, group=given.group,
        scans=given.scans, pictures=given.pictures,
    )  # fmt: skip


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart.

    Examples
    --------
    >>> distinct_names([Path("/a/x"), Path("/b/x")]), distinct_names([Path("/a/x"), Path("/a/y")])
    (['a/x', 'b/x'], ['x', 'y'])
    """
    for depth in range(1, max((len(folder.parts) for folder in folders), default=1) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def by_lesion(label: str, options: Options) -> bool:
    from bidsapp.measure.evaluation import is_lesion

    return label in options.lesions if options.lesions else is_lesion(label)

"""Masks and dsegs of BIDS derivatives, whoever made them: found and matched by their entities and grids.

No index and no ``dataset_description.json`` is needed: file names and headers say it all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from bidsapp.errors import InputError
from bidsapp.image.label_file import open_labels
from bidsapp.image.load import GEOMETRY_TOLERANCE_MM, corner_distance
from bidsapp.labels import HALFWAY
from bidsapp.words import count_of

#: Entities that say what a file shows or where, not which scan it was made from.
NOT_OF_THE_SCAN = ("space", "res", "den", "label", "seg", "atlas", "desc", "hemi", "cohort")
#: Of several references on grids of their own, the first of these spaces is preferred ("" for a file that names none).
SPACES = ("", "orig", "T1w", "FLAIR", "T2w")

_NAME = re.compile(
    r"(?P<entities>sub-[a-zA-Z0-9+]+(?:_[a-zA-Z0-9]+-[a-zA-Z0-9+.]+)*)_(?P<suffix>mask|dseg)\.nii(?:\.gz)?"
)


@dataclass(frozen=True, order=True)
class Target:
    """What a file shows: a mask by its ``label`` (else ``desc``), a dseg by its ``seg`` (else ``atlas``, ``desc``)."""

    suffix: str
    name: str

    def __str__(self) -> str:
        key = "label" if self.suffix == "mask" else "seg"
        return f"{key}-{self.name}" if self.name else self.suffix


@dataclass(frozen=True)
class Pair:
    """What is compared: a target of the references with one of the predictions; nearly always the same."""

    reference: Target
    prediction: Target

    def __str__(self) -> str:
        same = self.reference == self.prediction
        return str(self.reference) if same else f"{self.reference} : {self.prediction}"


@dataclass(frozen=True)
class LabelFile:
    """A mask or dseg of a derivative."""

    path: Path
    target: Target
    entities: Mapping[str, str]

    @property
    def key(self) -> tuple[str, str]:
        """Subject and session, without prefixes; the session may be empty."""
        return self.entities["sub"], self.entities.get("ses", "")

    @property
    def scan(self) -> dict[str, str]:
        """Entities of the scan it was made from, but for subject and session."""
        return scan_entities(self.entities)

    def entity(self, name: str) -> str:
        """An entity's value, "" where the name has none."""
        return self.entities.get(name, "")


@dataclass(frozen=True)
class Grid:
    """Shape and affine along the axes nearest to RAS, so that the order of storage does not matter."""

    shape: tuple[int, ...]
    affine: np.ndarray = field(compare=False)

    def same_as(self, other: Grid) -> bool:
        """Whether voxels coincide, within `GEOMETRY_TOLERANCE_MM` at the corners."""
        near = self.shape == other.shape
        return near and corner_distance(self.affine, other.affine, self.shape) <= GEOMETRY_TOLERANCE_MM

    def __str__(self) -> str:
        sizes = " x ".join(f"{size:.3g}" for size in nib.affines.voxel_sizes(self.affine))
        origin = ", ".join(f"{mm:.1f}" for mm in self.affine[:3, 3])
        return f"{' x '.join(map(str, self.shape))} voxels of {sizes} mm, the first at ({origin})"


@dataclass(frozen=True)
class Match:
    """References and predictions of one case.

    Attributes
    ----------
    subject, session, scan : str
        Without prefixes; `scan` is what else tells cases of a session apart, such as ``run-1``.
    pair : Pair
    references : mapping
        File by name of the rater; all on one grid, the first of them gives it.
    predictions : mapping
        File by name of the prediction, for those that have one on this grid.
    problems : mapping
        Why a prediction is missing, by its name; "" for what concerns all of them.
    notes : tuple of str
        Of raters that are left out.
    """

    subject: str
    session: str
    scan: str
    pair: Pair
    references: Mapping[str, LabelFile]
    predictions: Mapping[str, LabelFile]
    problems: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Such as ``sub-01_ses-2_run-1``."""
        return "_".join(
            part for part in (f"sub-{self.subject}", f"ses-{self.session}" if self.session else "", self.scan) if part
        )


# --- names ------------------------------------------------------------------------------------------------------------


def entities_of(name: str) -> dict[str, str]:
    """Of the name of a file.

    Examples
    --------
    >>> entities_of("sub-01_run-2_FLAIR.nii.gz")
    {'sub': '01', 'run': '2'}
    """
    return dict(part.split("-", 1) for part in name.split(".nii")[0].split("_") if "-" in part)


def scan_entities(entities: Mapping[str, str]) -> dict[str, str]:
    """Those that tell scans of a session apart; numbers without zeros before them: some write run-01, others run-1."""
    told = {key: value for key, value in entities.items() if key not in (*NOT_OF_THE_SCAN, "sub", "ses")}
    return {key: str(int(value)) if value.isdecimal() else value for key, value in told.items()}


def may_be_one_scan(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether the entities of two scans of a session do not contradict each other; one may be named more fully."""
    return all(other.get(key, value) == value for key, value in one.items())


# --- finding ----------------------------------------------------------------------------------------------------------


def find_labels(folder: Path, *, subjects: Sequence[str] = ()) -> list[LabelFile]:
    """All masks and dsegs of a derivative, in order of their paths; but those half-way between sessions.

    Parameters
    ----------
    folder : Path
        Holds ``sub-*`` folders.
    subjects : sequence of str
        Labels without prefixes; empty for all.

    Raises
    ------
    InputError
        No such folder, no ``sub-*`` folder, or no mask and no dseg. The message says what was found instead.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder.")
    homes = sorted(path for path in folder.glob("sub-*") if path.is_dir())
    if not homes:
        raise InputError(f"{folder}: no sub-* folder in it, so no BIDS derivative.{_nearby(folder)}")
    found = []
    for home in homes:
        if subjects and home.name.removeprefix("sub-") not in subjects:
            continue
        for path in _images(home):
            one = label_file(path)
            if one is not None and f"sub-{one.key[0]}" == home.name and f"_space-{HALFWAY}_" not in path.name:
                found.append(one)
    if not found and not subjects:
        raise InputError(
            f"{folder}: no *_mask.nii.gz and no *_dseg.nii.gz named as BIDS has it"
            f" (sub-01_space-orig_label-lesion_mask.nii.gz) in its {count_of(len(homes), 'sub-* folder')}."
            + _nearby(folder)
        )
    return found


def _images(home: Path) -> list[Path]:
    """Images of a subject, at most three folders deep; unlike ``**``, a ``*`` follows links (DataLad's, say)."""
    return sorted(path for depth in range(4) for path in home.glob("*/" * depth + "*.nii*"))


def label_file(path: Path) -> LabelFile | None:
    """The mask or dseg that a path names, or None for anything else."""
    match = _NAME.fullmatch(path.name)
    if match is None or path.name.startswith("."):
        return None
    entities = entities_of(path.name)
    keys = ("label", "desc") if match["suffix"] == "mask" else ("seg", "atlas", "desc")
    name = next((entities[key] for key in keys if key in entities), "")
    return LabelFile(path, Target(match["suffix"], name), entities)


def _nearby(folder: Path) -> str:
    """Derivatives below or beside, which may be what was meant."""
    near = {path.parent for pattern in ("*/sub-*", "derivatives/*/sub-*") for path in folder.glob(pattern)}
    names = sorted(str(path) for path in near if path.is_dir())[:5]
    return f" Did you mean {' or '.join(names)}?" if names else ""


# --- matching ---------------------------------------------------------------------------------------------------------


def choose_pairs(
    references: Sequence[LabelFile],
    predictions: Mapping[str, Sequence[LabelFile]],
    *,
    masks: Sequence[str] = (),
    dsegs: Sequence[str] = (),
) -> tuple[list[Pair], list[str]]:
    """What to compare: what was asked for, else what the references and all predictions have.

    Parameters
    ----------
    references : sequence of LabelFile
    predictions : mapping
        Files by name of the prediction.
    masks, dsegs : sequence of str
        ``NAME``, or ``NAME_OF_REFERENCES:NAME_OF_PREDICTIONS``.

    Returns
    -------
    pairs : list of Pair
    notes : list of str
        What is not compared, and why.

    Raises
    ------
    InputError
        What was asked for is not there, or nothing is common to all. The message lists what there is.
    """
    mine = sorted({one.target for one in references})
    theirs = {name: {one.target for one in files} for name, files in predictions.items()}
    asked = [_pair("mask", text) for text in masks] + [_pair("dseg", text) for text in dsegs]

    def told(which: set[Target] | list[Target]) -> str:
        return ", ".join(map(str, sorted(which))) or "nothing"

    for pair in asked:
        lacking = [] if pair.reference in mine else [("the references", set(mine), pair.reference)]
        lacking += [(n, has, pair.prediction) for n, has in theirs.items() if pair.prediction not in has]
        for who, has, wanted in lacking:
            raise InputError(f"{wanted} is not in {who}: there is {told(has)}.")
    if asked:
        return asked, []
    common = [target for target in mine if all(target in has for has in theirs.values())]
    if not common:
        raise InputError(
            f"References and predictions have nothing in common. References: {told(mine)}."
            + "".join(f" {name}: {told(has)}." for name, has in theirs.items())
            + " Say what to compare, such as --label lesion:wmh (references' name : predictions' name)."
        )
    left = [target for target in mine if target not in common]
    notes = [f"Not compared, since not all predictions have it: {', '.join(map(str, left))}."] if left else []
    common.sort(key=lambda target: (target.suffix != "mask", target.name))
    return [Pair(target, target) for target in common], notes


def _pair(suffix: str, text: str) -> Pair:
    mine, _, theirs = text.partition(":")
    return Pair(Target(suffix, mine), Target(suffix, theirs or mine))


def match_cases(
    raters: Mapping[str, Sequence[LabelFile]],
    predictions: Mapping[str, Sequence[LabelFile]],
    pairs: Sequence[Pair],
    *,
    space: str = "",
) -> list[Match]:
    """Put references and predictions together, by subject, session, other entities of the scan, and grid.

    Parameters
    ----------
    raters : mapping
        References by name of the rater, nearly always one.
    predictions : mapping
        By name.
    pairs : sequence of Pair
        From `choose_pairs`.
    space : str
        Use references of this ``space-`` alone.

    Returns
    -------
    list of Match
        One for each reference (for each rater's, where there are several of one case: together), in order. What has no
        partner on its grid says so in `problems`.
    """
    matches = []
    for pair in pairs:
        mine = {
            name: [one for one in files if one.target == pair.reference and space in ("", one.entity("space"))]
            for name, files in raters.items()
        }
        for key in sorted({one.key for files in mine.values() for one in files}):
            here = {name: [one for one in files if one.key == key] for name, files in mine.items()}
            those = {
                name: [one for one in files if one.target == pair.prediction and one.key == key]
                for name, files in predictions.items()
            }
            matches += [_match((*key, scan), pair, there, those) for scan, there in _by_scan(here)]
    return matches


def _by_scan(raters: Mapping[str, Sequence[LabelFile]]) -> list[tuple[str, dict[str, list[LabelFile]]]]:
    """References of a session by the name of their scan, which raters may have named more or less fully.

    The first rater who has a scan names it. Files of one rater that differ in an entity of the scan are of two scans.
    """
    named: dict[str, tuple[str, dict[str, str]]] = {}
    for rater, files in raters.items():
        known = [scan for _, scan in named.values()]
        for one in files:
            if not any(may_be_one_scan(one.scan, scan) for scan in known):
                named.setdefault(_scan_name(one), (rater, one.scan))
    return [
        (name, {
            rater: [one for one in files if one.scan == scan or (rater != first and may_be_one_scan(one.scan, scan))]
            for rater, files in raters.items()
        })
        for name, (first, scan) in sorted(named.items())
    ]  # fmt: skip


def _scan_name(one: LabelFile) -> str:
    return "_".join(f"{key}-{value}" for key, value in one.scan.items())


def _match(
    case: tuple[str, str, str],
    pair: Pair,
    raters: Mapping[str, Sequence[LabelFile]],
    predictions: Mapping[str, Sequence[LabelFile]],
) -> Match:
    """The reference (one space of several) that most predictions have a partner for, and those partners."""
    first = next(name for name, files in raters.items() if files)
    tried = [(one, *_partners(one, predictions, pair)) for one in sorted(raters[first], key=_preference)]
    best, found, problems = max(tried, key=lambda each: len(each[1]))  # of equals the first
    space = best.entity("space")
    alike = [one for one, theirs, _ in tried if len(theirs) == len(found) and one.entity("space") == space]
    if found and len(alike) > 1:
        names = ", ".join(one.path.name for one in alike)
        why = f"Several references of one scan in {first}: {names}. Keep one of them in a derivative of its own."
        return Match(*case, pair, {first: best}, {}, dict.fromkeys(predictions, why))
    others = {name: files for name, files in raters.items() if name != first}
    more, left_out = _partners(best, others, Pair(pair.reference, pair.reference))
    return Match(*case, pair, {first: best, **more}, found, problems, tuple(left_out.values()))


def _partners(
    reference: LabelFile, files: Mapping[str, Sequence[LabelFile]], pair: Pair
) -> tuple[dict[str, LabelFile], dict[str, str]]:
    """By name the file that goes with the reference, and why there is none."""
    found = {name: _partner(reference, some, name, pair) for name, some in files.items()}
    return (
        {name: partner for name, (partner, _) in found.items() if partner is not None},
        {name: why for name, (partner, why) in found.items() if partner is None},
    )


def _preference(one: LabelFile) -> tuple[int, str]:
    space = one.entity("space")
    return (SPACES.index(space) if space in SPACES else len(SPACES), one.path.name)


def _partner(reference: LabelFile, files: Sequence[LabelFile], who: str, pair: Pair) -> tuple[LabelFile | None, str]:
    """The file of the same scan and grid as the reference, or why there is none."""
    scan = reference.scan
    alike = [one for one in files if may_be_one_scan(one.scan, scan)]
    what = f"{pair.prediction} of {who}"
    if not alike:
        where = "_".join(f"{k}-{v}" for k, v in reference.entities.items() if k not in NOT_OF_THE_SCAN)
        return None, f"There is no {what} for {where} ({reference.path.name} has no partner)."
    try:
        wanted = grid_of(reference.path)
    except InputError as error:
        return None, str(error)
    here, told = [], []
    for one in alike:
        try:
            grid = grid_of(one.path)
        except InputError as error:
            told.append(str(error))
            continue
        if grid.same_as(wanted):
            here.append(one)
        else:
            told.append(f"{one.path}: {grid}")
    if not here:
        return None, _other_grid(reference, wanted, told)
    for same in (
        lambda one: one.scan == scan,
        lambda one: one.entity("space") == reference.entity("space"),
        lambda one: one.entity("desc") == reference.entity("desc"),
        lambda one: one.entity("space") in ("", "orig"),
    ):
        here = [one for one in here if same(one)] or here
        if len(here) == 1:
            return here[0], ""
    names = ", ".join(one.path.name for one in here)
    return (
        None,
        f"Several files of {who} fit {reference.path.name}: {names}. Keep one of them in a derivative of its own.",
    )


def _other_grid(reference: LabelFile, wanted: Grid, told: Sequence[str]) -> str:
    return (
        f"No prediction on the grid of the reference. {reference.path}: {wanted}. {'; '.join(told)}. Give a prediction"
        " in the reference's space (bidsapp writes its results on the scan's own grid, space-orig, and on the FLAIR's),"
        " or resample it with nearest neighbour (nilearn.image.resample_to_img) if both lie in one space."
    )


# --- grids ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=100_000)
def grid_of(path: Path) -> Grid:
    """The grid of an image, from its header alone; `InputError` where it is none or not 3D."""
    img = open_labels(path)
    shape = img.shape
    flips = nib.orientations.io_orientation(img.affine)
    affine = img.affine @ nib.orientations.inv_ornt_aff(flips, shape[:3])
    order = np.argsort(flips[:, 0])
    return Grid(tuple(int(shape[axis]) for axis in order), affine)


# --- look-up tables ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelPair:
    """One label of two dsegs: its name and its index in each."""

    name: str
    reference: int
    prediction: int


def read_lookup(one: LabelFile, root: Path) -> dict[int, tuple[str, str]]:
    """Names and abbreviations by index, from the ``_dseg.tsv`` that holds for a dseg; empty where there is none.

    The table lies beside the file or above it, up to the derivative's folder, and names no entity that the file lacks
    (BIDS' inheritance principle); the nearest one wins.

    Raises
    ------
    InputError
        The table cannot be read, or has no columns ``index`` and ``name``.
    """
    folder = one.path.parent
    while True:
        fitting = []
        for path in sorted(folder.glob("*dseg.tsv")):
            entities = entities_of(path.name)
            if all(one.entities.get(key) == value for key, value in entities.items()):
                fitting.append((len(entities), path))
        if fitting:
            return _read_table(max(fitting)[1])
        if folder in (root, folder.parent):
            return {}
        folder = folder.parent


def _read_table(path: Path) -> dict[int, tuple[str, str]]:
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        abbreviations = table["abbreviation"] if "abbreviation" in table else [""] * len(table)
        return {
            int(index): (name, "" if short == "n/a" else short)
            for index, name, short in zip(table["index"], table["name"], abbreviations, strict=True)
        }
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: no look-up table with the columns index and name, tab-separated ({error})."
        ) from error


def pair_labels(
    reference: Mapping[int, tuple[str, str]],
    prediction: Mapping[int, tuple[str, str]],
    *,
    present: Sequence[int] = (),
) -> tuple[list[LabelPair], list[str]]:
    """Which label of one dseg is which of the other: by name or abbreviation, else by index.

    Parameters
    ----------
    reference, prediction : mapping
        From `read_lookup`; empty where there is no table.
    present : sequence of int
        Indices that occur in the images: used where a side has no table.

    Returns
    -------
    pairs : list of LabelPair
        In order of the references' indices, without background.
    notes : list of str
    """
    if not (reference and prediction):
        known = reference or prediction
        indices = sorted(index for index in known or present if index != 0)
        who = "The references have" if prediction else "The predictions have" if reference else "Neither side has"
        told = f"{who} no look-up table (*_dseg.tsv): labels are compared by their numbers."
        return [LabelPair(known.get(i, (f"label {i}", ""))[0], i, i) for i in indices], [told]
    by_name = {form: index for index, names in reversed(list(prediction.items())) for form in _forms(names)}
    pairs, left = [], []
    for index, names in sorted(reference.items()):
        if index in prediction and set(_forms(names)) & set(_forms(prediction[index])):
            other: int | None = index
        else:
            other = next((by_name[form] for form in _forms(names) if form in by_name), None)
        if index == 0:
            continue
        if other in (None, 0):
            left.append(names[0])
        else:
            assert other is not None
            pairs.append(LabelPair(names[0], index, other))
    if not pairs:
        common = sorted((set(reference) & set(prediction)) - {0})
        pairs = [LabelPair(reference[i][0], i, i) for i in common]
        return pairs, ["The look-up tables have no name in common: labels are compared by their numbers."]
    some = ", ".join(left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
    return pairs, [f"Only the references' look-up table has {some}."] if left else []


def _forms(names: tuple[str, str]) -> list[str]:
    """A label's names without case, spaces and spelling; the full name first."""
    plain = [re.sub(r"[^a-z0-9]", "", name.lower().replace("grey", "gray")) for name in names]
    return [form for form in plain if form]

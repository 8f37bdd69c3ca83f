"""The labelled sessions that ``bidsapp train`` learns from: which labels lie on which scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bidsapp import cards, errors
from bidsapp.train.options import TrainOptions, asked_channels

if TYPE_CHECKING:  # heavy: --help answers at once
    from nibabel import Nifti1Image

    from bidsapp.bids import SessionInputs
    from bidsapp.derivatives import LabelFile
    from bidsapp.progress import Progress
    from bidsapp.scan_choice import ScanChoice
    from bidsapp.workflows.case import Labels

#: The class of a mask, whatever its file is called: so the packaged network knows it.
LESION = "lesion"


@dataclass(frozen=True)
class Found:
    """A labelled session."""

    inputs: SessionInputs
    labels: Labels
    names: tuple[str, ...]  # of the classes


def labelled(options: TrainOptions, say: Progress) -> list[Found]:
    """Sessions with scans and labels.

    Raises
    ------
    AppError
        What is wrong with which file; or nothing is left.
    """
    from bidsapp import bids
    from bidsapp.app import warn_of_slips
    from bidsapp.derivatives import Target, find_labels

    sessions = bids.collect(
        options.app.bids_dir,
        participant_label=options.app.participant_label,
        session_label=options.app.session_label,
        filters=options.app.bids_filters,
    )
    warn_of_slips(sessions, options.app, say)
    channels = asked_channels(options)
    wanted = Target("dseg", options.seg) if options.seg else Target("mask", options.label)
    files = find_labels(options.labels)
    labels = [one for one in files if one.target == wanted]
    found, problems = [], []
    for inputs in sessions:
        drawn = [one for one in labels if one.key == (inputs.subject, inputs.session or "")]
        if not drawn or not inputs.scans:
            why = _no_labels(inputs, labels) if inputs.scans else inputs.problem or "no scans"
            say.note(f"{inputs.name}: {why}; left out.")
            continue
        try:
            found.append(_with_labels(inputs, drawn, channels, options, say))
        except errors.AppError as error:
            problems.append(str(error))
    if problems and not options.skip_bad_cases:
        told = "\n  ".join(problems)
        raise errors.InputError(f"{len(problems)} case(s) cannot be used:\n  {told}\nMend them, or --skip-bad-cases.")
    for problem in problems:
        say.note(f"left out: {problem}")
    if not found:
        there = ", ".join(sorted({str(one.target) for one in files}))
        others = ((inputs.name, _other_sessions(inputs, labels)) for inputs in sessions)
        hint = next((f" {name} has labels of {told}: name them like its scans." for name, told in others if told), "")
        raise errors.NothingSelectedError(
            f"{options.labels}: no {wanted} of any chosen session of {options.app.bids_dir} (there is: {there}).{hint}"
        )
    tables = {(case.labels.indices, case.names) for case in found}
    if len(tables) > 1:
        told = "; ".join(", ".join(names) for _, names in sorted(tables))
        raise errors.InputError(f"{options.labels}: look-up tables differ between sessions: {told}. Make them alike.")
    return found


def _no_labels(inputs: SessionInputs, labels: Sequence[LabelFile]) -> str:
    others = _other_sessions(inputs, labels)
    return f"no labels (there are of {others})" if others else "no labels"


def _other_sessions(inputs: SessionInputs, labels: Sequence[LabelFile]) -> str:
    """Sessions of this subject that have labels: often the same one, named otherwise than the scans."""
    sessions = sorted({one.key[1] for one in labels if one.key[0] == inputs.subject})
    return ", ".join(f"ses-{session}" if session else "no session" for session in sessions)


def _with_labels(
    inputs: SessionInputs, drawn: Sequence[LabelFile], channels: Sequence[str], options: TrainOptions, say: Progress
) -> Found:
    """Check the labels of a session, before hours are spent."""
    from bidsapp.image.drawn import load_drawn
    from bidsapp.workflows.case import Labels

    scans = inputs.used_by(channels)
    there = [scan.contrast for scan in scans]
    if channels and not set(there) & set(channels):
        raise errors.InputError(
            f"{inputs.name}: there is none of {', '.join(channels)}, which the model is shown (there is"
            f" {', '.join(there)})."
        )
    one, scan, grid = _on_a_scan(drawn, scans, say)
    classes = _classes(one, options) if options.seg else {}
    load_drawn(one.path, grid, tuple(classes))
    return Found(inputs, Labels(one.path, tuple(classes), scan.contrast), tuple(classes.values()) or (LESION,))


def _on_a_scan(
    drawn: Sequence[LabelFile], scans: Sequence[ScanChoice], say: Progress
) -> tuple[LabelFile, ScanChoice, Nifti1Image]:
    """Labels, the scan they lie on and its grid; of several, those whose name says most of that scan.

    Those that another scan's name contradicts (another run, say) are no labels of it, even on the same grid.
    """
    from bidsapp.image.drawn import scan_under

    found, elsewhere, problems = [], [], []
    for one in drawn:
        try:
            scan_under(one.path, {scan.contrast: scan.path for scan in scans})
        except errors.InputError as error:
            problems.append(error)
            continue
        own = [scan for scan in scans if not _of_another(one, scan, scans)]
        try:
            contrast, grid = scan_under(one.path, {scan.contrast: scan.path for scan in _by_name(one, own)})
        except errors.InputError:
            elsewhere.append(_told_of_another(one, scans))
            continue
        found.append((one, next(scan for scan in own if scan.contrast == contrast), grid))
    if not found:
        raise errors.InputError(elsewhere[0]) if elsewhere else problems[0]
    for told in elsewhere:
        say.note(f"{told} Left out.")
    return max(found, key=lambda each: _alike(each[0], each[1].path))


def _entities(path: Path) -> dict[str, str]:
    from bidsapp.derivatives import entities_of, scan_entities

    return scan_entities(entities_of(path.name))


def _alike(one: LabelFile, path: Path) -> int:
    """Entities that the names of labels and of a scan have in common."""
    return len(one.scan.items() & _entities(path).items())


def _by_name(one: LabelFile, scans: Sequence[ScanChoice]) -> list[ScanChoice]:
    return sorted(scans, key=lambda scan: -_alike(one, scan.path))


def _of_another(one: LabelFile, scan: ScanChoice, scans: Sequence[ScanChoice]) -> bool:
    """Whether the name of labels contradicts a scan's: other run, acquisition, echo, ...

    Not where it names the grid (``space-FLAIR``) and otherwise the scan beside it, as this app names what it writes,
    unless a scan that was not chosen has that name.
    """
    from bidsapp.derivatives import may_be_one_scan

    if may_be_one_scan(one.scan, _entities(scan.path)):
        return False
    beside = any(_alike(one, other.path) == len(one.scan) for other in scans if other is not scan)
    passed_over = any(_alike(one, path) == len(one.scan) for path in scan.not_chosen)
    return one.entity("space") != scan.contrast or not beside or passed_over


def _told_of_another(one: LabelFile, scans: Sequence[ScanChoice]) -> str:
    used = ", ".join(scan.path.name for scan in scans)
    return (
        f"{one.path}: by their name ("
        + "_".join(f"{key}-{value}" for key, value in one.scan.items())
        + ") these labels"
        f" are of another scan than the one used ({used}): choose that one with --bids-filter-file."
    )


def _classes(one: LabelFile, options: TrainOptions) -> dict[int, str]:
    """Names by value of a dseg, fit for a model's card."""
    from bidsapp.derivatives import read_lookup

    table = read_lookup(one, options.labels)
    if not table:
        raise errors.InputError(f"{one.path}: no look-up table (*_dseg.tsv with columns index and name) for it.")
    classes = {index: names[0] for index, names in sorted(table.items()) if index}
    names = list(classes.values())
    problem = cards.class_problem(names)
    if problem:
        raise errors.InputError(f"{one.path}: its look-up table (*_dseg.tsv) {problem}: a model could not be used.")
    return classes

"""``bidsapp train``: a lesion or tissue model from a lab's own labelled BIDS dataset, cross-validated by subject."""

from __future__ import annotations

import csv
import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsapp import __version__, cards, config, errors, out_dataset
from bidsapp.arguments import Parser, bare_label
from bidsapp.config import Config
from bidsapp.labels import CONTRASTS
from bidsapp.learn import LOSSES
from bidsapp.machine import available_cpus, fixed_environment

if TYPE_CHECKING:  # heavy: --help answers at once
    from nibabel import Nifti1Image

    from bidsapp.bids import ScanChoice, SessionInputs
    from bidsapp.derivatives import LabelFile
    from bidsapp.learn.run import Training
    from bidsapp.models.registry import Model
    from bidsapp.progress import Progress
    from bidsapp.workflows.case import Labels

#: The class of a mask, whatever its file is called: so the packaged network knows it.
LESION = "lesion"
ARCHITECTURES = {"unet": "FoldedUNet", "patchwise": "TwoPathway", "cascade": "TwoPathway"}
#: Steps where none are asked for: on a CPU minutes from the packaged weights, hours from scratch.
STEPS = {"fine-tuned": 400, "from scratch": 4000}


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What the user asked for.

    Raises
    ------
    UsageError
        On construction, when an option cannot be used as given.
    """

    app: Config  # how the scans are chosen and prepared
    labels: Path
    label: str = "lesion"
    seg: str | None = None
    lesion_kind: str | None = None
    contrasts: tuple[str, ...] = ()
    architecture: str = "unet"
    init: str = "packaged"
    freeze: bool = False
    name: str = "trained"
    steps: int | None = None
    folds: str = "5"
    loss: str = LOSSES[0]
    foreground: float = 0.5
    two_phase: bool = False
    synthetic: float = 0.25
    dropout: float = 0.2
    weight_decay: float = 1e-4
    learning_rate: float | None = None
    patience: int = 0
    crf: bool = False
    workers: int = 1
    minutes: float = float("inf")
    skip_bad_cases: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if not self.labels.is_dir():
            raise errors.UsageError(
                f"--labels {self.labels}: no such folder. Give the BIDS derivative with the labels."
            )
        for flag, value, allowed in (
            ("--architecture", self.architecture, tuple(ARCHITECTURES)), ("--loss", self.loss, LOSSES),
            ("--lesion-kind", self.lesion_kind or cards.OTHER, cards.LESION_KINDS),
        ):  # fmt: skip
            if value not in allowed:
                raise errors.UsageError(f"{flag}: {value!r} is unknown; choose one of: {', '.join(allowed)}.")
        for flag, share in (
            ("--foreground", self.foreground),
            ("--synthetic", self.synthetic),
        ):
            if not 0 <= share <= 1:
                raise errors.UsageError(f"{flag} must lie between 0 and 1, not {share}.")
        if not 0 <= self.dropout < 1:
            raise errors.UsageError(f"--dropout must be at least 0 and below 1, not {self.dropout}.")
        for flag, value, least in (
            ("--steps", self.steps, 1), ("--patience", self.patience, 0), ("--workers", self.workers, 0),
            ("--weight-decay", self.weight_decay, 0), ("--minutes", self.minutes, 0),
        ):  # fmt: skip
            if value is not None and not value >= least:
                raise errors.UsageError(f"{flag} must be at least {least}, not {value}.")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise errors.UsageError(f"--learning-rate must be above 0, not {self.learning_rate}.")
        if self.folds != "loo" and not self.folds.isdecimal():
            raise errors.UsageError(
                f"--folds: {self.folds!r}; give a number of folds, 0 for none, or loo (leave one out)."
            )
        if not self.name.replace("-", "").isalnum():
            raise errors.UsageError(f"--name {self.name}: letters, digits and hyphens only.")
        if self.synthetic and self.seg:
            raise errors.UsageError("--synthetic: synthetic scans know lesions only; with --seg, give --synthetic 0.")
        for name in self.contrasts:
            if name not in cards.CHANNELS:
                raise errors.UsageError(
                    f"--contrasts: {name!r} is unknown; choose among {', '.join(cards.CHANNELS)} (T1w with contrast"
                    " agent, beside one without)."
                )
        if self.freeze and self.init == "none":
            raise errors.UsageError("--freeze-encoder: there is nothing to keep when training begins from scratch.")
        if self.architecture == "patchwise" and self.init not in ("packaged", "none"):
            raise errors.UsageError(f"--init {self.init}: a patch-wise network begins from scratch; leave --init out.")
        if self.freeze and self.architecture == "patchwise":
            raise errors.UsageError(
                "--freeze-encoder: a patch-wise network begins from scratch; there is nothing to keep."
            )

    @property
    def out(self) -> Path:
        """Folder of all that is written."""
        return self.app.out_dir


@dataclass(frozen=True)
class Found:
    """A labelled session."""

    inputs: SessionInputs
    labels: Labels
    names: tuple[str, ...]  # of the classes


@dataclass(frozen=True)
class Plan:
    """What is trained on what."""

    options: TrainOptions
    cases: Sequence[Found]
    channels: tuple[str, ...]
    folds: Sequence[Sequence[str]]  # subjects held out in each
    seen: frozenset[str] = frozenset()  # those of them that the model begun with was trained on


def main(argv: Sequence[str]) -> int:
    """Parse the command line and train; the return value is the exit code."""
    return run(parse(argv))


def parse(argv: Sequence[str]) -> TrainOptions:
    """Turn the command line into `TrainOptions`; raises AppError for what cannot be used."""
    chosen = vars(_parser().parse_args(list(argv)))
    app = {name: chosen.pop(name) for name in (
        "bids_dir", "out_dir", "participant_label", "session_label", "skip_bids_validation", "brain_extraction",
        "normalization", "denoise", "device", "nprocs", "random_seed", "verbose",
    )}  # fmt: skip
    filter_file, work_dir = chosen.pop("bids_filter_file"), chosen.pop("work_dir")
    threads = chosen.pop("omp_nthreads") or config.default_threads(max(1, app["nprocs"]))
    for name in ("participant_label", "session_label"):
        app[name] = tuple(map(bare_label, app[name]))
    for name in ("bids_dir", "out_dir"):
        app[name] = Path(os.path.abspath(app[name]))
    return TrainOptions(
        app=Config(
            level="participant",
            omp_nthreads=threads,
            work_dir=work_dir and Path(os.path.abspath(work_dir)),
            bids_filters=config.read_filters(Path(filter_file)) if filter_file else {},
            **app,
        ),
        labels=Path(os.path.abspath(chosen.pop("labels"))),
        **chosen,
    )


def _parser() -> Parser:
    parser = Parser(
        prog="bidsapp train",
        description="Train or fine-tune a model on the labelled scans of a BIDS dataset, and cross-validate it by"
        " subject. The model is used with: bidsapp BIDS_DIR OUT participant --lesion-model OUT_DIR/model",
        epilog="Exit codes: 0 fine, 16 not a BIDS dataset, 18 no labels of the chosen sessions, 64 bad command line (or"
        " more folds than subjects), 66 scans or labels not readable, 70 a checkpoint or the model to begin with cannot"
        " be used, 75 --minutes are over or try again, 130 interrupted.",
    )
    add = parser.add_argument
    add("bids_dir", type=Path, help="root of the BIDS dataset (read only)")
    add("out_dir", type=Path, help="folder of the prepared cases, the folds and the model")
    add("-v", "--verbose", action="count", default=0, help="say more")

    add = parser.add_argument_group("labels").add_argument
    add("--labels", required=True, metavar="DIR", help="BIDS derivative with the labels")
    add("--label", default="lesion", metavar="LABEL", help="masks to learn: *_label-LABEL_mask.nii.gz")
    add("--seg", metavar="NAME", help="learn *_seg-NAME_dseg.nii.gz with its look-up table: compartments of a lesion")
    add("--lesion-kind", metavar="KIND",
        help="white-matter (MS, small vessels) or other (tumor, stroke): whether the report tells the regions of the"
        " McDonald criteria (default: white-matter with --label, other with --seg)")  # fmt: skip
    add("--skip-bad-cases", action="store_true", help="leave out sessions whose labels cannot be used, and go on")

    add = parser.add_argument_group("what to train").add_argument
    add("--contrasts", nargs="+", default=(), metavar="NAME",
        help=f"what the model is shown, of {', '.join(cards.CHANNELS)} (default: what the model one begins with knows;"
        " from scratch, what the cases have of the first three)")  # fmt: skip
    add("--architecture", default="unet", metavar="NAME",
        help="unet (semantic-wise), patchwise (two pathways) or cascade (one, then the other)")  # fmt: skip
    add("--init", default="packaged", metavar="MODEL",
        help="begin with packaged weights, a model folder, or none (from scratch; patchwise always is)")  # fmt: skip
    add("--freeze-encoder", dest="freeze", action="store_true", help="keep the first half of the network as it is")
    add("--name", default="trained", help="name of the model")
    add("--crf", action="store_true", help="smooth its answers along edges (conditional random field)")

    add = parser.add_argument_group("how to train").add_argument
    add("--folds", default="5", metavar="N", help="folds of the cross-validation; loo: leave one subject out; 0: none")
    add("--steps", type=int, metavar="N", help="of the optimiser (default: "
        + ", ".join(f"{number} {how}" for how, number in STEPS.items()) + ")")  # fmt: skip
    add("--minutes", type=float, default=float("inf"), metavar="N",
        help="stop after this long; the same command goes on from there (default: no limit)")  # fmt: skip
    add("--loss", default=LOSSES[0], help=", ".join(LOSSES))
    add("--learning-rate", type=float, metavar="RATE", help="of AdamW (default: 0.001, fine-tuning 0.0003)")
    add("--weight-decay", type=float, default=1e-4, metavar="X", help="of AdamW")
    add("--dropout", type=float, default=0.2, metavar="P", help="of the patch-wise network")
    add("--patience", type=int, default=0, metavar="N",
        help="stop after N validations without gain on subjects set aside for it, a tenth (0: never)")  # fmt: skip
    add("--foreground", type=float, default=0.5, metavar="SHARE", help="of the patches, centred on labelled voxels")
    add("--two-phase", action="store_true",
        help="in the last fifth patches lie anywhere, and only the last layer learns")  # fmt: skip
    add("--synthetic", type=float, default=0.25, metavar="SHARE",
        help="of the patches, made of the cases' own anatomy with other contrasts and lesions")  # fmt: skip

    add = parser.add_argument_group("which scans, and how they are prepared").add_argument
    add("--participant-label", nargs="+", default=(), metavar="LABEL", help="subjects, with or without 'sub-'")
    add("--session-label", nargs="+", default=(), metavar="LABEL", help="sessions, with or without 'ses-'")
    add("--bids-filter-file", metavar="FILE", help="JSON of entities per contrast")
    add("--skip-bids-validation", action="store_true", help="do not run bids-validator first")
    add("--brain-extraction", default="auto", metavar="NAME", help="as at the participant level")
    add("--normalization", default="zscore", metavar="NAME", help=", ".join(config.NORMALIZATIONS))
    add("--denoise", action="store_true", help="non-local means")

    add = parser.add_argument_group("machine").add_argument
    add("--dry-run", action="store_true", help="show cases, folds, memory and time; train nothing")
    add("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N")
    add("--nprocs", type=int, default=available_cpus(), metavar="N", help="processes that prepare scans")
    add("--omp-nthreads", type=int, metavar="N", help="threads of the network (default: 2, or --nprocs if less)")
    add("--workers", type=int, default=1, metavar="N", help="processes that make patches ahead, on a CPU")
    add("--random-seed", type=int, default=1, metavar="N", help="seed of everything random")
    add("-w", "--work-dir", type=Path, metavar="DIR", help="intermediate files (default: OUT_DIR/.work)")
    return parser


def run(options: TrainOptions) -> int:
    """Prepare the cases, cross-validate, train on all of them.

    Returns
    -------
    int
        0; or 75 (try again) where ``--minutes`` were over before the end.
    """
    deadline = time.monotonic() + 60 * options.minutes
    os.environ.update(fixed_environment(threads=options.app.omp_nthreads, seed=options.app.random_seed))
    from bidsapp import validation
    from bidsapp.learn.folds import split  # numpy and torch, which read the environment
    from bidsapp.progress import Progress

    say = Progress()
    out_dataset.check_folders(options.app.bids_dir, options.out)
    if not options.app.skip_bids_validation:
        validation.validate(options.app.bids_dir, say.note)
    cases = labelled(options, say)
    channels = _channels(cases, options)
    folds = split([case.inputs.subject for case in cases], options.folds, seed=options.app.random_seed)
    held_out = {subject for subjects in folds for subject in subjects}
    plan = Plan(options, cases, channels, folds, frozenset(held_out & seen_before(options)))
    if plan.seen:
        say.note(f"WARNING: {_leak(plan)}")
    if options.dry_run:
        return _dry_run(plan, say)
    options.out.mkdir(parents=True, exist_ok=True)
    prepare(cases, channels, options, say)
    return _train(plan, say, deadline)


# --- cases ------------------------------------------------------------------------------------------------------------


def labelled(options: TrainOptions, say: Progress) -> list[Found]:
    """Sessions with scans and labels.

    Raises
    ------
    AppError
        What is wrong with which file; or nothing is left.
    """
    from bidsapp import bids
    from bidsapp.derivatives import Target, find_labels

    sessions = bids.collect(
        options.app.bids_dir,
        participant_label=options.app.participant_label,
        session_label=options.app.session_label,
        filters=options.app.bids_filters,
    )
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


def asked_channels(options: TrainOptions) -> tuple[str, ...]:
    """Channels asked for, else those of the model to begin with; none where the cases shall tell.

    Raises
    ------
    AppError
        No such model, one that knows none of the channels, or there are no synthetic scans of such a channel.
    """
    channels = tuple(name for name in cards.CHANNELS if name in options.contrasts)
    folder = _init_folder(options)
    if folder is not None:
        known = tuple(cards.read_card(folder).get("channels", CONTRASTS))
        channels = channels or known
        new = [name for name in channels if name not in known]
        if len(new) == len(channels):
            raise errors.UsageError(
                f"--contrasts: the model you begin with knows {', '.join(known)}, and not {', '.join(new)}. Begin from"
                " scratch (--init none), or add one that it knows."
            )
        if new and options.freeze:
            raise errors.UsageError(
                f"--freeze-encoder: the model you begin with knows no {', '.join(new)}, and would not learn it."
            )
    without_doubles = [name for name in channels if name not in CONTRASTS]
    if without_doubles and options.synthetic:
        raise errors.UsageError(
            f"--synthetic: no synthetic scans can be made of {', '.join(without_doubles)}; give --synthetic 0."
        )
    return channels


def _init_folder(options: TrainOptions) -> Path | None:
    """Of the model to begin with; None from scratch."""
    if options.architecture == "patchwise" or options.init == "none":
        return None
    return cards.newest("segment") if options.init == "packaged" else Path(options.init)


def seen_before(options: TrainOptions) -> set[str]:
    """Subjects that the model to begin with was trained on, as its card says, or the one that it began with."""
    folder = _init_folder(options)
    training = {} if folder is None else cards.read_card(folder).get("training")
    if not isinstance(training, dict):
        return set()
    own, before = training.get("contrasts"), training.get("subjects_seen_before")
    names = [*(own if isinstance(own, dict) else ()), *(before if isinstance(before, list) else ())]
    return {bare_label("sub-" + str(name).removeprefix("sub-").partition("_")[0]) for name in names}


def _leak(plan: Plan) -> str:
    """What it means that the model begun with knows subjects who are held out now."""
    names = ", ".join(f"sub-{subject}" for subject in sorted(plan.seen))
    return (
        f"the card of the model you begin with ({plan.options.init}) names {len(plan.seen)} of the held-out subjects"
        f" among those it was trained on: {names}. If they are the same people, the figures of the cross-validation,"
        " 'before' and 'trained' alike, are not those of unseen subjects; begin with another model for such figures."
    )


def _channels(cases: Sequence[Found], options: TrainOptions) -> tuple[str, ...]:
    """Channels of the model: `asked_channels`, or all contrasts that there are."""
    return asked_channels(options) or tuple(
        name for name in cards.CHANNELS if any(name in case.inputs.contrasts for case in cases)
    )


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
    """Of a scan's name; numbers without zeros before them, as some write run-01 and others run-1."""
    from bidsapp.derivatives import entities_of

    return {key: _plain(value) for key, value in entities_of(path.name).items()}


def _plain(value: str) -> str:
    return str(int(value)) if value.isdecimal() else value


def _alike(one: LabelFile, path: Path) -> int:
    """Entities that the names of labels and of a scan have in common."""
    entities = _entities(path)
    return sum(entities.get(key) == _plain(value) for key, value in one.scan.items())


def _by_name(one: LabelFile, scans: Sequence[ScanChoice]) -> list[ScanChoice]:
    return sorted(scans, key=lambda scan: -_alike(one, scan.path))


def _of_another(one: LabelFile, scan: ScanChoice, scans: Sequence[ScanChoice]) -> bool:
    """Whether the name of labels contradicts a scan's: other run, acquisition, echo, ...

    Not where it names the grid (``space-FLAIR``) and otherwise the scan beside it, as this app names what it writes,
    unless a scan that was not chosen has that name.
    """
    entities = _entities(scan.path)
    if all(entities.get(key, _plain(value)) == _plain(value) for key, value in one.scan.items()):
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


def prepare(cases: Sequence[Found], channels: Sequence[str], options: TrainOptions, say: Progress) -> None:
    """Run the workflow of each case that is not prepared yet."""
    from bidsapp import app, resume
    from bidsapp.workflows.case import init_case_wf

    by_name = {case.inputs.name: case for case in cases}
    records = {name: _record(case, channels, options) for name, case in by_name.items()}

    def is_prepared(inputs: SessionInputs, _: Config) -> bool:
        return resume.read_record(case_folder(options, inputs) / "case.json") == records[inputs.name]

    def build(inputs: SessionInputs, chosen: Config, *, device: str) -> Any:
        case = by_name[inputs.name]
        folder, record = case_folder(options, inputs), records[inputs.name]
        return init_case_wf(
            inputs, chosen, labels=case.labels, channels=channels, folder=folder, record=record, device=device
        )

    waiting = [app.Outcome(case.inputs) for case in cases if not is_prepared(case.inputs, options.app)]
    if not waiting:
        say.note(f"{len(cases)} case(s) are prepared.")
        return
    (options.out / "logs").mkdir(parents=True, exist_ok=True)
    app.execute(waiting, options.app, say, build=build, finished=is_prepared)
    failed = [f"{outcome.inputs.name}: {outcome.message}" for outcome in waiting if outcome.status == "failed"]
    if failed:
        told = "\n  ".join(failed)
        raise errors.InputError(f"{len(failed)} case(s) could not be prepared (see {options.out}/logs):\n  {told}")


def case_folder(options: TrainOptions, inputs: SessionInputs) -> Path:
    """Where a prepared case lies."""
    return options.out / "cases" / inputs.name


def _contrasts(case: Found, channels: Sequence[str]) -> list[str]:
    return [scan.contrast for scan in case.inputs.used_by(channels)]


def _record(case: Found, channels: Sequence[str], options: TrainOptions) -> dict[str, Any]:
    """What a prepared case was made of: it is made again when this differs."""
    from bidsapp.writing import sha256

    science = options.app.science()
    return {
        "name": case.inputs.name,
        "subject": case.inputs.subject,
        "version": __version__,
        "contrasts": _contrasts(case, channels),
        "scans": {scan.contrast: sha256(scan.path) for scan in case.inputs.used_by(channels)},
        "labels": {"file": case.labels.path.name, "sha256": sha256(case.labels.path), "on": case.labels.contrast},
        "indices": list(case.labels.indices),
        "options": {name: science[name] for name in ("brain_extraction", "normalization", "denoise", "random_seed")},
    }


# --- training ---------------------------------------------------------------------------------------------------------


def _training(options: TrainOptions, classes: tuple[str, ...], channels: tuple[str, ...]) -> Training:
    """The network to train (of a cascade: the second; `Folds` trains the first)."""
    from bidsapp.learn.run import Training

    init = _initial(options) if options.architecture == "unet" else None
    steps = options.steps or STEPS["fine-tuned" if init is not None else "from scratch"]
    return Training(
        name=options.name, classes=("background", *classes), channels=channels,
        architecture=ARCHITECTURES[options.architecture],
        init=init, freeze=options.freeze and init is not None, loss=options.loss, steps=steps,
        learning_rate=options.learning_rate, weight_decay=options.weight_decay, dropout=options.dropout,
        patience=options.patience, validate_every=max(1, min(50, steps // 4)), foreground=options.foreground,
        two_phase=options.two_phase, synthetic=options.synthetic, crf=options.crf, seed=options.app.random_seed,
        workers=options.workers, threads=options.app.omp_nthreads,
    )  # fmt: skip


def _initial(options: TrainOptions) -> Model | None:
    """The model to begin with."""
    from bidsapp.models.registry import read_model
    from bidsapp.models.segment import packaged

    if options.init == "none":
        return None
    return packaged() if options.init == "packaged" else read_model(Path(os.path.abspath(options.init)))


def _first_stage(options: TrainOptions, training: Training) -> Training | None:
    """A cascade's semantic stage."""
    if options.architecture != "cascade":
        return None
    init = _initial(options)
    steps = options.steps or STEPS["fine-tuned" if init is not None else "from scratch"]
    freeze = options.freeze and init is not None
    return dataclasses.replace(training, architecture="FoldedUNet", init=init, freeze=freeze, steps=steps, crf=False)


def _train(plan: Plan, say: Progress, deadline: float) -> int:
    from bidsapp.learn.folds import Folds
    from bidsapp.models.device import resolve

    options, cases = plan.options, plan.cases
    training = _training(options, cases[0].names, plan.channels)
    work = Folds(
        {case.inputs.name: case_folder(options, case.inputs) for case in cases},
        training,
        first=_first_stage(options, training),
        before=_initial(options) if training.classes == ("background", LESION) else None,
        out=options.out,
        device=resolve(options.app.device),
        card={
            "training": _origin(plan, training),
            "lesion_kind": options.lesion_kind or (cards.OTHER if options.seg else cards.WHITE_MATTER),
        },
        deadline=deadline,
        say=say.note,
    )
    names = {case.inputs.name: case.inputs.folder / _plain_name(case.labels.path) for case in cases}
    for number, subjects in enumerate(plan.folds, start=1):
        if not work.fold(number, subjects, names):
            return _over(say)
    work.forget_others(names)
    figures = _judge(plan, [] if work.before is None else ["before"], say) if plan.folds else {}
    if not work.whole(figures):
        return _over(say)
    say.note(f"Model: {options.out / 'model'}")
    say.note(f"Use it: bidsapp BIDS_DIR OUT_DIR participant --lesion-model {options.out / 'model'}")
    return errors.OK


def _over(say: Progress) -> int:
    say.note("The time given by --minutes is over; the same command goes on from here.")
    return errors.TryAgainError.exit_code


def _plain_name(path: Path) -> str:
    return f"{path.name.split('.')[0]}.nii.gz"


def _origin(plan: Plan, training: Training) -> dict[str, Any]:
    """What the model's card says of its training."""
    options, cases = plan.options, plan.cases
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    left_out = ("app", "labels", "minutes", "dry_run", "workers", "skip_bad_cases")
    return {
        "data": [f"{len(cases)} labelled sessions of '{out_dataset.dataset_name(options.app.bids_dir)}'"],
        "begun_from": "scratch" if training.init is None else f"{training.init.name} {training.init.version}",
        "contrasts": {case.inputs.name: _contrasts(case, training.channels) for case in cases},
        "subjects_seen_before": sorted(seen_before(options)),
        "options": {key: value for key, value in asked.items() if key not in left_out},
        "app": __version__,
    }


def _judge(plan: Plan, before: Sequence[str], say: Progress) -> dict[str, Any]:
    """Compare the held-out predictions with the labels (tables, page); the summary goes into the model's card."""
    from bidsapp import evaluate

    options, folder = plan.options, plan.options.out / "crossvalidation"
    # Where it is no fair comparison, tables and page say so with every figure.
    known = " (weights saw held-out subjects)" if plan.seen else ""
    asked = evaluate.Options(
        references={options.labels.name: options.labels},
        predictions={f"{name}{known}": folder / name for name in ("trained", *before)},
        out=folder / "evaluation",
        labels=() if options.seg else (options.label,), segs=(options.seg,) if options.seg else (),
        lesions=() if options.seg else (options.label,),  # whatever its name; compartments go by theirs
        cases=frozenset((case.inputs.subject, case.inputs.session or "") for case in plan.cases),
        scans=options.app.bids_dir,
    )  # fmt: skip
    try:
        if evaluate.run(asked):
            say.note("Some held-out predictions could not be compared with their labels: see above.")
    except errors.AppError as error:  # what was trained for hours does not depend on it
        say.note(f"The held-out predictions could not be judged, and the model tells no figures: {error}")
        return {}
    with (folder / "evaluation/evaluation_summary.tsv").open(encoding="utf-8") as stream:
        figures: dict[str, Any] = {"held-out subjects": list(csv.DictReader(stream, delimiter="\t"))}
    return figures | ({"reservation": _leak(plan)} if plan.seen else {})


def _dry_run(plan: Plan, say: Progress) -> int:
    """Show what would be done, with the memory and the seconds that steps of this training take on this machine."""
    from bidsapp.learn.run import PATCH, PATCHES, trial
    from bidsapp.models.device import resolve

    options, cases, channels, folds = plan.options, plan.cases, plan.channels, plan.folds
    held_out = {subject: str(number) for number, subjects in enumerate(folds, start=1) for subject in subjects}
    rows = [
        (case.inputs.name, " ".join(_contrasts(case, channels)), case.labels.path.name, case.labels.contrast,
         held_out.get(case.inputs.subject, ""))
        for case in cases
    ]  # fmt: skip
    say.table("Cases", ("session", "contrasts", "labels", "drawn on", "held out in fold"), rows)
    training = _training(options, cases[0].names, channels)
    stages = [stage for stage in (_first_stage(options, training), training) if stage is not None]
    device = resolve(options.app.device)
    told, total = [], 0.0
    for stage in stages:
        seconds, gigabytes = trial(stage, device=device)
        whole = seconds * stage.steps * (len(folds) + 1)
        total += whole
        what = "from scratch" if stage.init is None else f"from {stage.init.name} {stage.init.version}"
        side = PATCH[stage.architecture]
        told.append((
            stage.architecture, what, f"{PATCHES[stage.architecture]} x {side}x{side}x{side}", str(stage.steps),
            f"{seconds:.2f}", f"{gigabytes:.1f}", f"{whole / 60:.0f}",
        ))  # fmt: skip
    say.table(
        f"Training, {len(folds)} fold(s) and once on all cases",
        ("network", "", "patches a step", "steps", "s a step", "GB", "minutes in all"), told,
    )  # fmt: skip
    say.note(f"The model is shown {', '.join(channels)}.")
    missing = sorted({name for case in cases for name in channels if name not in _contrasts(case, channels)})
    if missing:
        say.note(f"Not every case has {', '.join(missing)}: the model learns to do without.")
    brains, took = _whole_brains(plan, stages, device)
    say.note(
        f"About {(total + took) / 60:.0f} minutes, {took / 60:.0f} of them for {brains} predictions of whole brains"
        " (anatomy of synthetic scans, thresholds, held-out cases), and some for the preparation of"
        f" {len(cases)} session(s)."
    )
    return errors.OK


def _whole_brains(plan: Plan, stages: Sequence[Training], device: str) -> tuple[int, float]:
    """How many whole brains are predicted beside the steps of training, and about how many seconds that takes."""
    from bidsapp.learn.run import THRESHOLD_KEYS, brains_for_thresholds, seconds_a_brain, untrained
    from bidsapp.models.segment import packaged

    options, last = plan.options, stages[-1]
    shown = [frozenset(_contrasts(case, plan.channels)) & set(plan.channels) for case in plan.cases]
    left_out: list[set[str]] = [set(subjects) for subjects in plan.folds] + [set()]
    proposed = own = 0
    for out in left_out:
        there = [contrasts for case, contrasts in zip(plan.cases, shown, strict=True) if case.inputs.subject not in out]
        held = [contrasts for case, contrasts in zip(plan.cases, shown, strict=True) if case.inputs.subject in out]
        keys = {cards.threshold_key(contrasts) for contrasts in held} or set(THRESHOLD_KEYS)
        own += len(held) + (brains_for_thresholds(there, keys) if len(last.classes) == 2 else 0)
        proposed += len(there)
    counts = [(untrained(last), own)]
    if len(stages) > 1:  # both networks of a cascade look at every brain, the first also at all it is trained on
        counts.append((untrained(stages[0]), own + proposed))
    before = _initial(options) if last.classes == ("background", LESION) and plan.folds else None
    if before is not None:
        counts.append((before, len(plan.cases)))
    if options.synthetic:
        counts.append((packaged(), len(plan.cases)))
    brains = sum(count for _, count in counts)
    return brains, sum(seconds_a_brain(model, device=device) * count for model, count in counts if count)

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

from bidsapp import __version__, cards, errors, out_dataset
from bidsapp.config import Config
from bidsapp.machine import fixed_environment
from bidsapp.train.cases import LESION, Found, labelled
from bidsapp.train.options import ARCHITECTURES, STEPS, TrainOptions, asked_channels, init_folder, parse

if TYPE_CHECKING:  # heavy: --help answers at once
    from bidsapp.bids import SessionInputs
    from bidsapp.learn.run import Training
    from bidsapp.models.registry import Model
    from bidsapp.progress import Progress


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


def seen_before(options: TrainOptions) -> set[str]:
    """Subjects that the model to begin with was trained on, as its card says, or the one that it began with."""
    folder = init_folder(options)
    training = {} if folder is None else cards.read_card(folder).get("training")
    if not isinstance(training, dict):
        return set()
    own, before = training.get("contrasts"), training.get("subjects_seen_before")
    names = [*(own if isinstance(own, dict) else ()), *(before if isinstance(before, list) else ())]
    return {str(name).removeprefix("sub-").partition("_")[0] for name in names}


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


def prepare(cases: Sequence[Found], channels: Sequence[str], options: TrainOptions, say: Progress) -> None:
    """Run the workflow of each case that is not prepared yet."""
    from bidsapp import app
    from bidsapp.workflows.case import init_case_wf
    from bidsapp.writing import json_or_nothing

    by_name = {case.inputs.name: case for case in cases}
    records = {name: _record(case, channels, options) for name, case in by_name.items()}

    def is_prepared(inputs: SessionInputs, _: Config) -> bool:
        return json_or_nothing(case_folder(options, inputs) / "case.json") == records[inputs.name]

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

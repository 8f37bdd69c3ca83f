"""One run of the app: query -> build -> execute -> report -> exit code."""

from __future__ import annotations

import gc
import hashlib
import importlib
import logging
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bidsapp import (
    __version__,
    bids,
    cards,
    errors,
    locks,
    machine,
    out_dataset,
    progress,
    resume,
    scan_choice,
    validation,
)  # fmt: skip
from bidsapp.arguments import missing_labels
from bidsapp.bids import SessionInputs
from bidsapp.config import Config
from bidsapp.writing import write_json

#: Sessions taken at a time. Each has a lock, which is an open file (a process may have 1024, often), and nipype looks
#: at all steps at every poll.
BATCH = 256
#: Message of sessions that nothing is wrong with.
UNFINISHED = "stopped before it was finished; run the same command again"


@dataclass
class Outcome:
    """What became of a session; a row of the closing table."""

    inputs: SessionInputs
    status: str = "waiting"  # done | up to date | failed | skipped; waiting only until the end
    seconds: float | None = None
    message: str = ""


def run(config: Config) -> int:
    """Run one analysis level; threads and seeds are fixed already, by the environment that `cli.main` has set.

    Returns
    -------
    int
        0, or `errors.PARTICIPANT_FAILED` when a session failed (the others' results are there).

    Raises
    ------
    AppError
        Nothing could be run at all.
    """
    machine.allow_many_files()
    if config.level == "group":
        return _group(config)
    if config.reports_only:
        return _reports_only(config)
    return _participant(config)


def _participant(config: Config) -> int:
    say = progress.Progress()
    sessions = _find_sessions(config, say)
    _warn(sessions, config, say)
    if config.list_jobs:
        return _list_jobs(sessions, config)
    if config.dry_run:
        return _dry_run(sessions, config, say)
    cards.check_packaged()
    _check_tools(config)
    _make_output(config)
    with _at_work(config.out_dir, say) as here:
        outcomes = [_outcome_so_far(inputs, config) for inputs in sessions]
        problems = _do_all(outcomes, config, say)
        if here.alone() and not (problems or config.keep_work or config.work_dir is not None):
            shutil.rmtree(config.work, ignore_errors=True)
    _closing_table(outcomes, say)
    _check_space(problems, config)
    return errors.PARTICIPANT_FAILED if problems else errors.OK


def _find_sessions(config: Config, say: progress.Progress) -> list[SessionInputs]:
    """Those asked for, while the dataset is validated; what the work needs, if there is any, is imported meanwhile."""
    out_dataset.check_folders(config.bids_dir, config.out_dir)
    with validation.beside(config, say.note):
        with _index_lock(config):
            sessions = bids.collect(
                config.bids_dir,
                participant_label=config.participant_label,
                session_label=config.session_label,
                filters=config.bids_filters,
                database_dir=config.bids_database_dir,
            )
        if not (config.list_jobs or config.dry_run or _all_done(sessions, config)):
            _import_ahead()
    return sessions


def _do_all(outcomes: list[Outcome], config: Config, say: progress.Progress) -> list[str]:
    """Sessions, then the changes between them, then pages; what went wrong, a message each."""
    mended = _write_problems(config.out_dir, [outcome for outcome in outcomes if outcome.status != "waiting"])
    _work_through([outcome for outcome in outcomes if outcome.status == "waiting"], config, say)
    compared = _compare_sessions(outcomes, config, say)
    changed = dict.fromkeys([*_changed_subjects(outcomes, config.out_dir), *mended, *compared])
    of_pages = _assemble_reports(config.out_dir, changed, say)
    of_sessions = [outcome.message for outcome in outcomes if outcome.status == "failed"]
    return [*of_sessions, *filter(None, compared.values()), *of_pages]


def _check_space(problems: Sequence[str], config: Config) -> None:
    """Raises TryAgainError where something failed for want of space: nothing is wrong with the sessions."""
    reasons = [why for why in progress.FULL if any(why in problem for problem in problems)]
    if reasons:
        raise errors.TryAgainError(
            f"{', '.join(reasons)}: not all could be done. Free space in {config.out_dir}, {config.work} or"
            f" {tempfile.gettempdir()}, and run the same command again; what is finished stays."
        )


def _closing_table(outcomes: list[Outcome], say: progress.Progress) -> None:
    say.table(
        "Sessions",
        ("subject", "session", "contrasts", "status", "seconds", ""),
        [
            (
                f"sub-{outcome.inputs.subject}",
                f"ses-{outcome.inputs.session}" if outcome.inputs.session else "",
                " ".join(outcome.inputs.contrasts),
                outcome.status,
                "" if outcome.seconds is None else f"{outcome.seconds:.0f}",
                outcome.message,
            )
            for outcome in outcomes
        ],
    )


def warn_of_slips(sessions: Sequence[SessionInputs], config: Config, say: progress.Progress) -> None:
    """Warn of what was asked for and is not there."""
    there = [(unit.subject, unit.session) for unit in sessions]
    for label in missing_labels(there, config.participant_label, config.session_label):
        say.note(f"warning: {label} was asked for but is not in {config.bids_dir}.")
    for contrast in bids.emptied_by_filters(sessions):
        say.note(f"warning: --bids-filter-file lets no {contrast} through, though there are some; none will be used.")
    memory = machine.memory_gb()
    if config.mem_gb > memory:
        say.note(
            f"warning: --mem: {config.mem_gb:g} GB to plan with, and there are {memory:.0f}: steps may run"
            " out of memory. Without a unit the number is GB; write 8000MB for MB."
        )


def _warn(sessions: list[SessionInputs], config: Config, say: progress.Progress) -> None:
    """Warn of what was asked for and is not there, and of what is there and cannot be used."""
    warn_of_slips(sessions, config, say)
    if names := bids.unusable_names(config.bids_dir, config.participant_label):
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        say.note(
            f"warning: {', '.join(names[:5])}{more} not used: labels of BIDS are letters and digits only. Rename the"
            " folders and the files in them."
        )
    if out_dataset.is_derivative(config.bids_dir):
        say.note(f"warning: {config.bids_dir} says that it is a derivative; raw scans are what is expected.")
    for inputs in sessions:
        if inputs.problem:
            say.note(f"warning: {inputs.problem}")


def _group(config: Config) -> int:
    from bidsapp.report import assemble

    if not config.out_dir.is_dir():
        raise errors.InputError(f"{config.out_dir}: no such folder. Run the participant level first.")
    options = assemble.Options(
        models=config.model,
        harmonize=config.harmonize,
        maps=not config.no_maps,
        random_seed=config.random_seed,
        processes=config.nprocs,
    )
    with _at_work(config.out_dir, progress.Progress()):
        try:
            page = assemble.assemble_group(
                config.out_dir,
                bids_dir=config.bids_dir,
                options=options,
                only_subjects=config.participant_label,
                only_sessions=config.session_label,
            )
        except assemble.FormulaError as error:
            raise errors.UsageError(f"--model: {error}") from error
        _link_pages(config.out_dir)
    print(f"Group report: {page}")
    return errors.OK


def _reports_only(config: Config) -> int:
    subjects = sorted(path.name.removeprefix("sub-") for path in config.out_dir.glob("sub-*") if path.is_dir())
    say = progress.Progress()
    for label in sorted(set(config.participant_label) - set(subjects)):
        say.note(f"warning: sub-{label} was asked for but has no results in {config.out_dir}.")
    if config.participant_label:
        subjects = [subject for subject in subjects if subject in config.participant_label]
    if not subjects:
        raise errors.NothingSelectedError(
            f"{config.out_dir}: no results to report on. Run the participant level first."
        )
    with _at_work(config.out_dir, say):
        problems = _assemble_reports(config.out_dir, subjects, say)
    return errors.PARTICIPANT_FAILED if problems else errors.OK


# --- before the work ------------------------------------------------------------------------------------------------


def _all_done(sessions: list[SessionInputs], config: Config) -> bool:
    return all(not inputs.scans or resume.is_current(inputs, config, by_checksum=False) for inputs in sessions)


def _import_ahead() -> None:
    """Load what the steps need, while the validator is at work; their processes, forked from this one, share it."""
    for name in ("bidsapp.workflows.session", "torch", "ants"):
        importlib.import_module(name)


def _check_tools(config: Config) -> None:
    if config.brain_extraction == "bet" and shutil.which("bet") is None:
        raise errors.UsageError(
            "--brain-extraction bet: FSL's 'bet' is not on the PATH. Install FSL (free for non-commercial use) and"
            " source its setup, or use --brain-extraction auto, which needs nothing else."
        )
    _check_model(config)


def _check_model(config: Config) -> None:
    """Raises InputError where a lesion model's network or weights are not those of its card."""
    if config.own_lesion_model is not None:
        from bidsapp.models.registry import read_whole_lesion_model

        read_whole_lesion_model(config.own_lesion_model.folder)


def _make_output(config: Config) -> None:
    try:
        config.out_dir.mkdir(parents=True, exist_ok=True)
        (config.out_dir / "logs").mkdir(exist_ok=True)
        out_dataset.write_dataset_description(config.out_dir, config.bids_dir)
        config.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        where = error.filename or config.out_dir  # the work folder may be elsewhere
        raise errors.TryAgainError(f"{where}: cannot be written ({error.strerror}).") from error


def _dry_run(sessions: list[SessionInputs], config: Config, say: progress.Progress) -> int:
    from bidsapp.workflows.plan import plan

    _check_model(config)
    rows = []
    for inputs in sessions:
        label = (f"sub-{inputs.subject}", f"ses-{inputs.session}" if inputs.session else "")
        if not inputs.scans:
            rows.append((*label, "", "", inputs.problem or inputs.nothing_because, "skip"))
            continue
        chosen = plan(inputs, config)
        state = _outcome_so_far(inputs, config).status
        steps = f"{chosen.brain_extraction} + {chosen.tissue_model} + {chosen.lesion_model}"
        for scan in inputs.used_by(config.own_channels):
            problem = scan_choice.header_problem(scan)
            why = problem or scan.reason + scan_choice.shown_in_part(scan)
            rows.append((*label, scan.contrast, scan.path.name, why,
                         "nothing (up to date)" if state == "up to date" else steps))  # fmt: skip
            label, steps, state = ("", ""), "", ""
    say.table(
        "What would run", ("subject", "session", "contrast", "file", "why this one", "brain + tissue + lesions"), rows
    )
    return errors.OK


def _list_jobs(sessions: list[SessionInputs], config: Config) -> int:
    """The options of one job per session, a line each; labels are letters and digits, so a shell may split them.

    Those that cannot be read have none, and were warned of: 1, so that no script takes them for done.
    """
    for inputs in sessions:
        if inputs.scans and not resume.is_current(inputs, config, by_checksum=False):
            print(
                f"--participant-label {inputs.subject}"
                + (f" --session-label {inputs.session}" if inputs.session else "")
            )
    return errors.PARTICIPANT_FAILED if any(inputs.problem for inputs in sessions) else errors.OK


def _outcome_so_far(inputs: SessionInputs, config: Config) -> Outcome:
    if inputs.problem:
        return Outcome(inputs, "failed", message=inputs.problem)
    if not inputs.scans:
        return Outcome(inputs, "skipped", message=inputs.nothing_because)
    return Outcome(inputs, "up to date" if resume.is_current(inputs, config) else "waiting")


# --- the work -------------------------------------------------------------------------------------------------------


def _index_lock(config: Config) -> AbstractContextManager[object]:
    """While an index of the dataset is being written; one that is there is only read, by any number of processes."""
    folder = config.bids_database_dir
    if folder is None or bids.has_database(folder):
        return nullcontext()
    return locks.take(folder, "index")


@contextmanager
def _at_work(out_dir: Path, say: progress.Progress) -> Iterator[locks.Held]:
    """Tell others that this process is at work in OUT_DIR, so that nobody tidies up behind it; the last one does.

    The locks go last, as another process may begin its work once they are gone.
    """
    here = locks.take(out_dir, "run", shared=True)
    if not here.sound:
        say.note(
            f"warning: the file system of {out_dir} has no locks. Take care that no two processes work on one session."
        )
    with here:
        yield here
        if here.alone():
            locks.tidy(out_dir)


def _work_through(outcomes: list[Outcome], config: Config, say: progress.Progress) -> None:
    """Do each session under its lock: first those that nobody is at, then what others had and did not finish."""
    left = list(outcomes)
    stopped = False
    while left:
        with ExitStack() as stack:
            mine = _take_batch(left, config.out_dir, stack)
            if not mine:
                mine = left[:1]
                say.note(f"{mine[0].inputs.name}: another process is at work on it; waiting.")
                stack.enter_context(locks.take(config.out_dir, mine[0].inputs.name))
            _work_on(mine, config, say, stopped=stopped)
        stopped = config.stop_on_first_crash and any(outcome.status == "failed" for outcome in outcomes)
        left = [outcome for outcome in left if outcome not in mine]


def _take_batch(left: list[Outcome], out_dir: Path, stack: ExitStack) -> list[Outcome]:
    """Sessions that nobody is at, `BATCH` at most; `stack` holds their locks."""
    mine = []
    for outcome in left:
        held = locks.attempt(out_dir, outcome.inputs.name)
        if held is not None:
            stack.enter_context(held)
            mine.append(outcome)
        if len(mine) == BATCH:
            break
    return mine


def _work_on(mine: list[Outcome], config: Config, say: progress.Progress, *, stopped: bool) -> None:
    """Do sessions whose locks this process has; where it has `stopped`, only say that they are not done."""
    for outcome in mine:  # the other process may have finished it
        outcome.status = _outcome_so_far(outcome.inputs, config).status
    to_do = [outcome for outcome in mine if outcome.status == "waiting"]
    if stopped:
        for outcome in to_do:
            outcome.status, outcome.message = "failed", UNFINISHED
    elif to_do:
        execute(to_do, config, say)
    _write_problems(config.out_dir, mine)


def execute(
    outcomes: list[Outcome],
    config: Config,
    say: progress.Progress,
    *,
    build: Callable[..., Any] | None = None,
    finished: Callable[[SessionInputs, Config], bool] | None = None,
) -> None:
    """Run the workflows of sessions, and say in each outcome what became of it.

    `build` makes a session's workflow (default: `workflows.session.init_session_wf`), whose last node is ``write``;
    `finished` tells whether its results are there (default: `resume.is_current`).
    """
    from bidsapp.models.device import resolve

    device = resolve(config.device)
    crashes = config.work / f"crashes-{secrets.token_hex(8)}"
    _configure_nipype(config, crashes)
    from nipype.pipeline import engine as pe

    from bidsapp.workflows.session import init_session_wf, workflow_name

    workflow = pe.Workflow(name="bidsapp")
    workflow.add_nodes([(build or init_session_wf)(outcome.inputs, config, device=device) for outcome in outcomes])
    by_name = {workflow_name(outcome.inputs): outcome for outcome in outcomes}
    watch = _watch(workflow, by_name, config, say)
    plugin = config.nipype_plugin.get("plugin", "MultiProc")
    by = f"{config.nprocs} process(es)" if plugin == "MultiProc" else f"nipype's {plugin} plugin"
    say.note(f"bidsapp {__version__}: {len(outcomes)} session(s) on {device}, {by}.")
    if config.resource_monitor and plugin != "MultiProc":
        say.note(f"warning: --resource-monitor: nothing is measured where nipype's {plugin} plugin runs the steps.")
    plugin_args = {**_plugin_args(config, device), "status_callback": watch}
    try:
        _run_workflow(workflow, list(by_name), config, plugin, plugin_args)
    except Exception as error:  # nipype raises at the end when any node failed; which ones is in the crash files
        logging.getLogger("bidsapp").debug("workflow: %s", error)
        if not crashes.is_dir():
            raise
    finally:
        watch.close()
    failures = progress.read_crashes(crashes)
    for name, outcome in by_name.items():
        outcome.seconds = watch.seconds(name)
        if name in failures:
            outcome.status, outcome.message = "failed", failures[name].message
            watch.log(name, failures[name].text)
        elif (finished or resume.is_current)(outcome.inputs, config):
            outcome.status = "done"
        else:
            outcome.status, outcome.message = "failed", UNFINISHED
    shutil.rmtree(crashes, ignore_errors=True)


def _watch(workflow: Any, by_name: dict[str, Outcome], config: Config, say: progress.Progress) -> progress.Watch:
    """Tells how far the sessions are, and removes the intermediate files of one that is written."""

    def clean_up(session: str) -> None:
        if not config.keep_work:
            shutil.rmtree(Path(workflow.base_dir) / workflow.name / session, ignore_errors=True)

    total = len(workflow.list_node_names())
    return progress.Watch(config.out_dir / "logs", by_name, say, total=total, on_written=clean_up)


def _plugin_args(config: Config, device: str) -> dict[str, Any]:
    return {
        "n_procs": config.nprocs,
        "n_gpu_procs": 1,  # all steps are on one device; nipype's own count is 0 where nvidia-smi is not in the image
        "raise_insufficient": False,
        "measure": config.resource_monitor,
        "memory_gb": config.mem_gb,
        "mp_context": None if device == "cpu" else "spawn",  # CUDA does not work in processes that were forked
        **config.nipype_plugin.get("plugin_args", {}),
    }


def _run_workflow(
    workflow: Any, sessions: Sequence[str], config: Config, plugin: str, plugin_args: dict[str, Any]
) -> None:
    """Run the workflow of `sessions`, in their order, where the steps of earlier runs are."""
    from bidsapp.workflows.cache import drop_broken_results
    from bidsapp.workflows.plugin import make_plugin

    environment = machine.fixed_environment(threads=config.omp_nthreads, seed=config.random_seed)
    gc.collect()
    gc.freeze()  # nipype collects garbage at every poll: what lives through the run need not be looked at again
    try:
        with _work_folder(config, sessions) as base:
            for name in sessions:
                drop_broken_results(base / workflow.name / name)
            workflow.base_dir = str(base)
            workflow.run(plugin=make_plugin(plugin, plugin_args, order=sessions, environment=environment))
    finally:
        gc.unfreeze()  # another batch may come


@contextmanager
def _work_folder(config: Config, names: Sequence[str]) -> Iterator[Path]:
    """Where the steps of sessions are kept, to be found again by a later run with the same app, code and dataset.

    Runs into several OUT_DIRs may share a --work-dir, and steps that are the same for all; but where one is at work on
    one of the sessions, whoever comes later has a folder of its own.
    """
    from bidsapp.workflows.cache import code_fingerprint

    base = config.work / f"bidsapp-{__version__}-{code_fingerprint()}-{_short_hash(config.bids_dir)}"
    with ExitStack() as stack:
        held = [locks.attempt(base, name) for name in names]
        for lock in held:
            if lock is not None:
                stack.enter_context(lock)
        if None in held:
            stack.close()
            base = base.with_name(f"{base.name}-{_short_hash(config.out_dir)}")
        yield base


def _short_hash(folder: Path) -> str:
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]


def _configure_nipype(config: Config, crashes: Path) -> None:
    from nipype import config as nipype_config
    from nipype import logging as nipype_logging

    nipype_config.update_config({
        "execution": {
            "crashdump_dir": str(crashes).replace("%", "%%"),  # configparser's own sign
            "crashfile_format": "txt",
            "poll_sleep_duration": "0.2",  # the default of 2 s costs more than many nodes take; polling costs CPU
            "stop_on_first_crash": str(config.stop_on_first_crash).lower(),
            "remove_unnecessary_outputs": "false",
            "create_report": "false",
            "check_version": "false",
        },
        "logging": {
            level: ("CRITICAL", "INFO", "DEBUG")[min(config.verbose, 2)]
            for level in ("workflow_level", "interface_level", "utils_level")
        },
    })  # fmt: skip
    nipype_logging.update_logging(nipype_config)


def _compare_sessions(outcomes: list[Outcome], config: Config, say: progress.Progress) -> dict[str, str]:
    """Changes between the sessions of each subject that has several; by subject what went wrong, or ""."""
    from bidsapp.interfaces.change import remove_changes
    from bidsapp.workflows.subject import left_over, run_changes, subjects_to_compare

    everyone = dict.fromkeys(outcome.inputs.subject for outcome in outcomes)
    problems: dict[str, str] = {}
    for subject in left_over(config, everyone):
        with _changes_lock(config.out_dir, subject):
            remove_changes(config.out_dir, subject)
        problems[subject] = ""
    subjects = subjects_to_compare(config, everyone)
    if not subjects:
        return problems
    say.note(f"Changes between the sessions of {len(subjects)} subject(s).")
    in_order = sorted(subjects)  # so that no two runs wait for each other
    for first in range(0, len(in_order), BATCH):
        batch = in_order[first : first + BATCH]
        with ExitStack() as stack:
            for subject in batch:
                stack.enter_context(_changes_lock(config.out_dir, subject))
            problems |= run_changes(config, batch)
    for subject, problem in problems.items():
        if problem:
            say.note(f"sub-{subject}: the changes between its sessions could not be measured ({problem}).")
    return problems


def _changes_lock(out_dir: Path, subject: str) -> locks.Held:
    return locks.take(out_dir, f"changes_sub-{subject}")


# --- after the work -------------------------------------------------------------------------------------------------


def _write_problems(out_dir: Path, outcomes: Iterable[Outcome]) -> list[str]:
    """Keep what failed or was skipped beside the results, for the report (``logs/`` is not compared between runs).

    Returns the subjects of whom a problem is no longer one.
    """
    mended = []
    for outcome in outcomes:
        path = out_dir / "logs" / f"{outcome.inputs.name}_problem.json"
        if outcome.status in ("failed", "skipped"):
            write_json(
                path,
                {
                    "subject": outcome.inputs.subject,
                    "session": outcome.inputs.session,
                    "status": outcome.status,
                    "message": outcome.message,
                },
            )
        elif path.exists():
            path.unlink(missing_ok=True)
            mended.append(outcome.inputs.subject)
    return mended


def _changed_subjects(outcomes: list[Outcome], out_dir: Path) -> list[str]:
    """Subjects whose report is missing or older than their results."""
    subjects = dict.fromkeys(
        outcome.inputs.subject
        for outcome in outcomes
        if outcome.status != "up to date" or resume.page_is_stale(outcome.inputs, out_dir)
    )
    return list(subjects)


def _assemble_reports(out_dir: Path, subjects: Iterable[str], say: progress.Progress) -> list[str]:
    """Make the pages of subjects; why some of them could not be made, which costs no other."""
    from bidsapp.report import assemble

    subjects, problems = list(subjects), []
    for subject in subjects:
        try:
            # Read and written under one lock: of two that end at the same time, the second sees both sessions.
            with _subject_lock(out_dir, subject):
                page = assemble.assemble_subject(out_dir, subject)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # of files somebody has changed
            logging.getLogger("bidsapp").debug("", exc_info=error)
            problem = f"the page of sub-{subject} could not be made ({type(error).__name__}: {error})."
            say.note(f"warning: {problem}")
            problems.append(problem)
        else:
            say.note(f"Report: {page}")
    _link_pages(out_dir, subjects)
    return problems


def _link_pages(out_dir: Path, changed: Iterable[str] | None = None) -> None:
    from bidsapp.report import assemble

    for subject in assemble.to_link(out_dir, changed):
        with _subject_lock(out_dir, subject):
            assemble.link_subject(out_dir, subject)


def _subject_lock(out_dir: Path, subject: str) -> locks.Held:
    return locks.take(out_dir, f"report_sub-{subject}")

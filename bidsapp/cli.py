"""Command line -> `Config` -> exit code. Imports nothing heavy: ``--help`` answers at once."""

from __future__ import annotations

import argparse
import atexit
import errno
import gc
import logging
import os
import select
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bidsapp import __version__, cards, config
from bidsapp.arguments import Parser, bare_label, gigabytes
from bidsapp.errors import AppError, InputError, TryAgainError, UsageError
from bidsapp.machine import available_cpus, available_memory_gb, fixed_environment

STDOUT = 1
#: As a shell tells of a program that SIGPIPE has ended.
OUTPUT_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app; the return value is the process's exit code (see ``docs/usage.md``)."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    # Python looks for garbage once more when it ends: two seconds in all that torch, ants and nipype brought along.
    atexit.register(gc.freeze)
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # while it can be told from an error of the app that nobody reads on
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # Python flushes once more when it ends
        return OUTPUT_CLOSED


def _run(arguments: list[str]) -> int:
    try:
        if not {"-h", "--help", "--version"} & set(arguments):
            _settle_folders()
        if arguments[:1] == ["train"]:
            from bidsapp import train

            return train.main(arguments[1:])
        if arguments[:1] == ["evaluate"]:
            from bidsapp import evaluate

            return evaluate.main(arguments[1:])
        chosen = parse(arguments)
        os.environ.update(fixed_environment(threads=chosen.omp_nthreads, seed=chosen.random_seed))
        from bidsapp import app  # heavy: only once the command line is known to be right

        return app.run(chosen)
    except AppError as error:
        print(f"bidsapp: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # of a file that nobody expected it of
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            raise
        logging.getLogger("bidsapp").debug("", exc_info=error)
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"bidsapp: error: {what}. Free space, and run the same command again.", file=sys.stderr)
            return TryAgainError.exit_code
        print(f"bidsapp: error: {what}. What is done is kept; mend this, and run again.", file=sys.stderr)
        return InputError.exit_code
    except KeyboardInterrupt:
        print("bidsapp: interrupted; run the same command again to go on from here.", file=sys.stderr)
        return 130


def _settle_folders() -> None:
    """Make sure of a place for temporary files, and of a home, which libraries ask for; a container may have neither.

    Raises
    ------
    TryAgainError
        No temporary folder can be written to.
    """
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise TryAgainError(
            "no folder for temporary files can be written to: set TMPDIR to one (docker run --tmpfs /tmp)."
        ) from error
    try:
        (Path.home() / ".config").exists()
    except (RuntimeError, PermissionError):  # without HOME and an entry in /etc/passwd; or it is somebody else's
        os.environ["HOME"] = temporary


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose other end is closed, as that of ``| head -1``."""
    look = select.poll()
    look.register(STDOUT, 0)  # errors are told without being asked for
    return any(events & select.POLLERR for _, events in look.poll(0))


def parse(argv: Sequence[str]) -> config.Config:
    """Turn the command line (and ``--config-file``) into a `Config`.

    Raises
    ------
    AppError
        With the exit code of what is wrong.
    """
    parser = _parser()
    first = parser.parse_args(argv)
    if first.config_file is not None:
        _set_defaults(parser, first.config_file)
        first = parser.parse_args(argv)
    options = vars(first)
    options.pop("config_file")
    filter_file = options.pop("bids_filter_file")
    filters = config.read_filters(Path(filter_file)) if filter_file else {}
    plugin_file = options.pop("nipype_plugin_file")
    plugin = config.read_plugin(Path(plugin_file)) if plugin_file else {}
    for name in ("participant_label", "session_label"):
        options[name] = tuple(map(bare_label, options[name]))
    for name in ("bids_dir", "out_dir", "work_dir", "bids_database_dir"):
        if options[name] is not None:  # the nodes run in folders of their own
            options[name] = Path(os.path.abspath(options[name]))
    if options["omp_nthreads"] is None:
        options["omp_nthreads"] = config.default_threads(max(1, options["nprocs"]))
    options["output_spaces"] = tuple(options["output_spaces"])
    options["model"] = tuple(options["model"])
    return config.Config(bids_filters=filters, nipype_plugin=plugin, **options)


def _parser() -> Parser:
    parser = Parser(
        prog="bidsapp",
        description="Brain mask, tissues, lesions and volumes from T1w, T2w and FLAIR scans of a BIDS dataset.",
        epilog="Two commands beside it, each with a --help of its own: 'bidsapp train' (a lesion model from labels of"
        " your own) and 'bidsapp evaluate' (segmentations against references). Exit codes: 0 fine, 1 a participant"
        " failed, 16 not a BIDS dataset, 17 unknown analysis level, 18 nothing selected, 64 bad command line, 66 input"
        " not readable, 70 damaged installation, 75 try again, 130 interrupted, 141 nobody reads the output, 143"
        " ended from outside.",
    )
    add = parser.add_argument
    add(
        "bids_dir",
        type=Path,
        help="root of the BIDS dataset, which is only read; at the group level its tables alone",
    )
    add("out_dir", type=Path, help="folder of the derivatives")
    add("level", metavar="{participant,group}", help="analysis level")
    add("--version", action="version", version=f"bidsapp {__version__}")
    add("-v", "--verbose", action="count", default=0, help="say more; -vv for every message of the libraries")

    group = parser.add_argument_group("which scans")
    add = group.add_argument
    add("--participant-label", nargs="+", default=(), metavar="LABEL",
        help="subjects, with or without 'sub-'")  # fmt: skip
    add("--session-label", nargs="+", default=(), metavar="LABEL",
        help="sessions, with or without 'ses-'")  # fmt: skip
    add("--bids-filter-file", metavar="FILE",
        help='JSON of entities per contrast, e.g. {"T1w": {"acquisition": "mprage"}}')  # fmt: skip
    add("--bids-database-dir", type=Path, metavar="DIR",
        help="keep the index of the dataset here and use it again")  # fmt: skip
    add("--skip-bids-validation", "--skip-bids-validator",
        action="store_true", help="do not run bids-validator first")  # fmt: skip
    add("--dry-run", action="store_true", help="show what was found and chosen and what would run; stop")
    add("--list-jobs", action="store_true",
        help="print the options of one job for each session that is not done yet, a line each; stop")  # fmt: skip

    group = parser.add_argument_group("how to segment")
    add = group.add_argument
    add("--brain-extraction", default="auto", metavar="NAME",
        help="auto (deepbet with a T1w; without one network, or template on slices thicker than 5 mm; network checks"
        " the other two), deepbet, template, network, or bet (FSL's)")  # fmt: skip
    add("--tissue-model", default="consensus", metavar="NAME", help=", ".join(config.TISSUE_MODELS))
    add("--lesion-model", default="consensus", metavar="NAME|FOLDER",
        help=", ".join((*config.LESION_MODELS, *cards.packaged_lesion_models()))
        + ", or the folder of a model that 'bidsapp train' wrote")  # fmt: skip
    add("--tta", action=argparse.BooleanOptionalAction, default=True,
        help="the packaged network also sees the mirror image")  # fmt: skip
    add("--normalization", default="zscore", metavar="NAME", help=", ".join(config.NORMALIZATIONS))
    add("--denoise", action="store_true", help="non-local means before the segmentation")
    add("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N")
    add("--random-seed", type=int, default=1, metavar="N", help="seed of everything random")

    group = parser.add_argument_group("what to write")
    add = group.add_argument
    add("--output-spaces", nargs="+", default=config.OUTPUT_SPACES, metavar="SPACE",
        help="the reference's own grid (orig) is always written; " + ", ".join(config.OUTPUT_SPACES[1:]))  # fmt: skip
    add("--reports-only", action="store_true", help="make the reports again from what is in OUT_DIR")
    add("-w", "--work-dir", type=Path, metavar="DIR", help="intermediate files (default: OUT_DIR/.work)")
    add("--keep-work", action="store_true", help="keep the intermediate files of sessions that succeeded")

    group = parser.add_argument_group("group level")
    add = group.add_argument
    add("--model", action="append", default=[], metavar="FORMULA",
        help='statistical model, such as "gm ~ group + age + sex + tiv"; may be given several times')  # fmt: skip
    add("--harmonize", metavar="COLUMN", help="take away the effects of sites (ComBat); the column that names them")
    add("--no-maps", action="store_true",
        help="make no lesion frequency and tissue maps, and no voxel-based morphometry")  # fmt: skip

    group = parser.add_argument_group("machine")
    add = group.add_argument
    add("--nprocs", "--nthreads", "--n-cpus",
        type=int, default=available_cpus(), metavar="N", help="processes at a time")  # fmt: skip
    add(
        "--omp-nthreads",
        type=int,
        metavar="N",
        help="threads per model (default: 2, or --nprocs if less)",
    )
    add(
        "--mem",
        "--mem-gb",
        dest="mem_gb",
        type=gigabytes,
        default=available_memory_gb(),
        metavar="GB",
        help="memory to plan with, or with its unit, as 8000MB"
        " (default: nine tenths of what there is, or of what a job or container is given)",
    )
    add("--nipype-plugin-file", metavar="FILE",
        help="YAML of 'plugin' and 'plugin_args': who runs the steps (MultiProc, Dask, SLURM, ...)")  # fmt: skip
    add("--stop-on-first-crash", action="store_true", help="give up at the first failure")
    add("--resource-monitor", action="store_true", help="log memory and CPU of every step")
    add(
        "--config-file",
        metavar="FILE",
        help="YAML or JSON of the options above; the command line wins",
    )
    return parser


def _set_defaults(parser: Parser, path: str) -> None:
    import yaml  # only for those who use it

    try:
        loaded: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--config-file {path}: cannot be read ({error}).") from error
    if not isinstance(loaded, dict):
        raise UsageError(f"--config-file {path}: must hold 'option: value' lines.")
    given = {str(key).lstrip("-").replace("-", "_"): value for key, value in loaded.items()}
    known = _by_name(parser)
    unknown = sorted(given.keys() - known.keys())
    if unknown:
        raise UsageError(f"--config-file {path}: unknown option {', '.join(unknown)}.")
    try:
        arguments = [text for name, value in given.items() for text in _as_arguments(known[name], value)]
        read = parser.parse_args(["BIDS_DIR", "OUT_DIR", "LEVEL", *arguments])  # read and checked as from there
    except UsageError as error:
        raise UsageError(f"--config-file {path}: {error}") from error
    set_here = [known[name].dest for name, value in given.items() if value is not None]
    parser.set_defaults(**{name: getattr(read, name) for name in set_here})


def _by_name(parser: Parser) -> dict[str, argparse.Action]:
    """The options that a file may set, by all of their names (``mem``, ``mem_gb``)."""
    return {
        name.removeprefix("--").replace("-", "_"): action
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--")
        and action.dest not in ("help", "version", "config_file")
        and not (isinstance(action, argparse.BooleanOptionalAction) and name.startswith("--no-"))  # tta: false
    }


def _as_arguments(action: argparse.Action, value: Any) -> list[str]:
    """An option of a file as it would be on the command line."""
    option = next(name for name in action.option_strings if name.startswith("--"))
    if value is None:
        return []
    if action.nargs == 0:
        if isinstance(action, argparse.BooleanOptionalAction) and isinstance(value, bool):
            return [option if value else option.replace("--", "--no-", 1)]
        if isinstance(value, bool) or (action.dest == "verbose" and isinstance(value, int)):
            return [option] * int(value)
        raise UsageError(f"{option} is on (true) or off (false), not {value!r}.")
    several = action.nargs == "+" or action.dest == "model"
    values = value if several and isinstance(value, list) else [value]
    if any(isinstance(one, (list, dict, bool)) for one in values):
        raise UsageError(f"{option} cannot be {value!r}.")
    if action.dest.endswith("_label") and not all(isinstance(one, str) for one in values):
        raise UsageError(f"{option}: write labels in quotes, as in ['01', '02']; without, YAML makes numbers of them.")
    return [option, *map(str, values)] if action.nargs == "+" else [f"{option}={one}" for one in values]

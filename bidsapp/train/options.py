"""The options of ``bidsapp train``: parsed, checked once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bidsapp import cards, config, errors
from bidsapp.arguments import Parser, bare_label
from bidsapp.config import Config
from bidsapp.labels import CONTRASTS
from bidsapp.learn import LOSSES
from bidsapp.machine import available_cpus

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
        if len(self.name) > cards.LONGEST_NAME:
            raise errors.UsageError(f"--name {self.name}: at most {cards.LONGEST_NAME} characters.")
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


def asked_channels(options: TrainOptions) -> tuple[str, ...]:
    """Channels asked for, else those of the model to begin with; none where the cases shall tell.

    Raises
    ------
    AppError
        No such model, one that knows none of the channels, or there are no synthetic scans of such a channel.
    """
    channels = tuple(name for name in cards.CHANNELS if name in options.contrasts)
    folder = init_folder(options)
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


def init_folder(options: TrainOptions) -> Path | None:
    """Of the model to begin with; None from scratch."""
    if options.architecture == "patchwise" or options.init == "none":
        return None
    return cards.newest("segment") if options.init == "packaged" else Path(options.init)

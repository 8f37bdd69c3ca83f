from __future__ import annotations

import errno
import json
import os
import pwd
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from bidsapp import __version__, app
from bidsapp.cli import _settle_folders, main, parse
from bidsapp.config import Config
from bidsapp.errors import AnalysisLevelError, NotBidsError, UsageError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "test", "BIDSVersion": "1.10.0"}))
    return folder


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"]], ids=["app", "train", "evaluate"])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    probe = (
        "import sys\nfrom bidsapp.cli import main\n"
        f"try:\n    main({[*command, '--help']})\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ants', 'nipype', 'numpy', 'nibabel', 'bids', 'pandas'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("HEAVY []")


LOOK = """
import os, sys
class Look:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            print("THREADS", os.environ.get("OPENBLAS_NUM_THREADS"))
sys.meta_path.insert(0, Look())
from bidsapp.cli import main
print("CODE", main({arguments}))
"""


@pytest.mark.parametrize("level", ["participant", "group", "train"])
def test_threads_are_fixed_before_numpy_is_imported(level: str, dataset: Path, tmp_path: Path) -> None:
    """Its OpenBLAS does not look again."""
    (tmp_path / "out").mkdir()
    arguments = [str(dataset), str(tmp_path / "out"), "--omp-nthreads", "3"]
    more = ["train", *arguments, "--labels", str(dataset)] if level == "train" else [*arguments, level]
    probe = LOOK.format(arguments=more)
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert "THREADS 3" in done.stdout, done.stderr
    assert "THREADS None" not in done.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("data/sub-01", "{root}/data is one; single subjects are chosen with --participant-label"),
        ("", "{root}/data is one: give that folder"),
        ("plain", "It has subjects: write the file"),
    ],
)
def test_who_gives_another_folder_than_the_root_is_told_where_it_is(dataset: Path, given: str, said: str) -> None:
    root = dataset.parent
    (dataset / "sub-01").mkdir()
    (root / "plain" / "sub-01").mkdir(parents=True)
    with pytest.raises(NotBidsError) as caught:
        Config(bids_dir=root / given, out_dir=root / "out", level="participant")
    assert said.format(root=root) in str(caught.value)


def test_version_is_quick() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "run.py", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - start)
    assert done.stdout.strip() == f"bidsapp {__version__}"
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 64, "required"),
        (
            ["--participant-label", "01", "{data}", "{out}", "participant"],
            64,
            "--participant-label takes all that follows",
        ),
        (["--participant-label=01", "{data}", "{out}"], 64, "required: {participant,group}. See"),
        (["{data}", "{out}", "dataset"], 17, "analysis level 'dataset'"),
        (["{out}/nowhere", "{out}", "participant"], 16, "no such folder"),
        (["{out}", "{out}/x", "participant"], 16, "dataset_description.json"),
        (["{data}", "{data}", "participant"], 64, "same folder"),
        (["{data}", "{out}", "participant", "--nprocs", "0"], 64, "--nprocs"),
        (["{data}", "{out}", "participant", "--mem", "-1"], 64, "--mem"),
        (["{data}", "{out}", "participant", "--mem", "inf"], 64, "--mem"),
        (["{data}", "{out}", "participant", "--random-seed", "5000000000"], 64, "--random-seed"),
        (["{data}", "{out}", "participant", "--nprocs", "two"], 64, "invalid int"),
        (["{data}", "{out}", "participant", "--device", "tpu"], 64, "--device"),
        (["{data}", "{out}", "participant", "--device", "cuda:²"], 64, "--device"),
        (["{data}", "{out}", "participant", "--brain-extraction", "magic"], 64, "choose one of: auto"),
        (["{data}", "{out}", "participant", "--tissue-model", "magic"], 64, "--tissue-model"),
        (["{data}", "{out}", "participant", "--normalization", "magic"], 64, "zscore, nyul"),
        (["{data}", "{out}", "participant", "--output-spaces", "MNI152NLin6Asym"], 64, "not available"),
        (["{data}", "{out}", "participant", "--no-such-flag"], 64, "--no-such-flag"),
        (["{data}", "{out}", "participant", "--bids-filter-file", "{out}/none.json"], 64, "cannot be read"),
        (["{data}", "{out}", "participant", "--config-file", "{out}/none.yml"], 64, "cannot be read"),
        (["{data}", "{out}", "group"], 66, "Run the participant level first"),
        (["{data}", "{out}", "group", "--dry-run"], 64, "--dry-run is for the participant level: the group level"),
        (["{data}", "{out}", "participant", "--reports-only", "--list-jobs"], 64, "--reports-only has no use for it"),
    ],
)
def test_exit_codes(
    arguments: list[str], code: int, words: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    if "{out}" in arguments[:1]:
        out.mkdir()
    assert main([text.format(data=dataset, out=out) for text in arguments]) == code
    assert words in capsys.readouterr().err


def test_both_spellings_and_prefixes(dataset: Path, tmp_path: Path) -> None:
    base = [str(dataset), str(tmp_path / "out"), "participant"]
    dashes = parse([*base, "--participant-label", "sub-01", "02", "--session-label", "ses-a", "--skip-bids-validation"])
    lines = parse([*base, "--participant_label", "01", "sub-02", "--session_label", "a", "--skip_bids_validator"])
    assert dashes == lines
    assert dashes.participant_label == ("01", "02")
    assert dashes.session_label == ("a",)


@pytest.mark.parametrize(
    ("text", "expected"), [("6", 6), ("6.5", 6.5), ("6GB", 6), ("6 g", 6), ("6144MB", 6), ("6144M", 6), ("1T", 1024)]
)
def test_memory_with_and_without_its_unit(text: str, expected: float, dataset: Path, tmp_path: Path) -> None:
    base = [str(dataset), str(tmp_path / "out"), "participant"]
    assert parse([*base, "--mem", text]).mem_gb == expected
    (tmp_path / "run.yml").write_text(f"mem: {text}\n")
    assert parse([*base, "--config-file", str(tmp_path / "run.yml")]).mem_gb == expected


@pytest.mark.parametrize("text", ["much", "6 apples", "1.2.3", "6KB", "-6"])
def test_what_is_no_amount_of_memory(text: str, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--mem.*no amount of memory; write 8"):
        parse([str(dataset), str(tmp_path / "out"), "participant", f"--mem={text}"])


@pytest.mark.parametrize("option", ["--nprocs", "--nthreads", "--n-cpus", "--n_cpus"])
def test_names_of_other_apps_for_the_number_of_processes(option: str, dataset: Path, tmp_path: Path) -> None:
    base = [str(dataset), str(tmp_path / "out"), "participant"]
    assert parse([*base, option, "3"]).nprocs == 3
    (tmp_path / "run.yml").write_text(f"{option.lstrip('-')}: 3\n")
    assert parse([*base, "--config-file", str(tmp_path / "run.yml")]).nprocs == 3


def test_what_was_asked_for_and_cannot_be_had_is_told(dataset: Path, tmp_path: Path, capsys) -> None:
    """On the terminal, before any work: memory in MB as fMRIPrep has it, labels and filters that are slips."""
    scan = dataset / "sub-01" / "ses-1" / "anat" / "sub-01_ses-1_acq-a_T1w.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.touch()
    (scan.parent / "sub-01_ses-1_FLAIR.nii.gz").touch()
    (tmp_path / "filter.json").write_text('{"T1w": {"acquisition": "b"}}')
    options = ["--mem", "16000000", "--session-label", "1", "7", "--bids-filter-file", str(tmp_path / "filter.json")]
    base = [str(dataset), str(tmp_path / "out"), "participant", "--dry-run", "--skip-bids-validation"]
    assert main([*base, *options]) == 0
    told = "".join(capsys.readouterr())
    for words in (
        "--mem: 1.6e+07 GB to plan with", "write 8000MB for MB", "ses-7 was asked for", "lets no T1w through",
    ):  # fmt: skip
        assert words in told
    assert main([*base, "--mem", "1"]) == 0
    assert "warning" not in "".join(capsys.readouterr())


def test_config_file_gives_defaults_and_the_command_line_wins(dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yml"
    file.write_text("nprocs: 3\nnormalization: nyul\nparticipant-label: ['01']\nmem: 6\nwork-dir: /tmp/w\n")
    base = [str(dataset), str(tmp_path / "out"), "participant", "--config-file", str(file)]
    config = parse([*base, "--nprocs", "1"])
    assert (config.nprocs, config.normalization, config.participant_label) == (1, "nyul", ("01",))
    assert (config.mem_gb, config.work) == (6, Path("/tmp/w"))


def test_config_file_with_unknown_option_is_refused(dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yml"
    file.write_text("n-procs: 3\n")
    with pytest.raises(UsageError, match="unknown option n_procs"):
        parse([str(dataset), str(tmp_path / "out"), "participant", "--config-file", str(file)])


def test_models_of_the_group_level(dataset: Path, tmp_path: Path) -> None:
    base = [str(dataset), str(tmp_path / "out"), "group"]
    assert parse(base).model == () and not parse(base).no_maps
    config = parse([*base, "--model", "gm ~ age", "--model", "wm ~ age", "--harmonize", "site", "--no-maps"])
    assert (config.model, config.harmonize, config.no_maps) == (("gm ~ age", "wm ~ age"), "site", True)
    file = tmp_path / "group.yml"
    file.write_text('model: "gm ~ age"\nharmonize: scanner\n')
    config = parse([*base, "--config-file", str(file), "--model", "csf ~ age"])
    assert (config.model, config.harmonize) == (("gm ~ age", "csf ~ age"), "scanner")


def test_a_wrong_model_is_a_usage_error_that_names_the_columns(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out" / "sub-01" / "anat"
    folder.mkdir(parents=True)
    (folder / "sub-01_volumes.tsv").write_text("participant_id\tgm_mm3\nsub-01\t600000\n")
    assert main([str(dataset), str(tmp_path / "out"), "group", "--model", "gm ~ height"]) == 64
    assert "--model: 'gm ~ height': there is no column 'height'" in capsys.readouterr().err


def test_filters_are_read_in_any_letter_case(dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "filter.json"
    file.write_text('{"t1w": {"acquisition": "mprage"}, "flair": {"run": 1}}')
    config = parse([str(dataset), str(tmp_path / "out"), "participant", "--bids-filter-file", str(file)])
    assert config.bids_filters == {"T1w": {"acquisition": "mprage"}, "FLAIR": {"run": 1}}
    file.write_text('{"bold": {"task": "rest"}}')
    with pytest.raises(UsageError, match="bold"):
        parse([str(dataset), str(tmp_path / "out"), "participant", "--bids-filter-file", str(file)])
    file.write_text('{"T1w": {"run": [1, {}]}}')
    with pytest.raises(UsageError, match="'run' of T1w must be a word"):
        parse([str(dataset), str(tmp_path / "out"), "participant", "--bids-filter-file", str(file)])


def test_errors_carry_the_codes_of_the_proposal() -> None:
    assert (NotBidsError.exit_code, AnalysisLevelError.exit_code, UsageError.exit_code) == (16, 17, 64)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("participant-label: [01, 03]", "write labels in quotes"),
        ("session-label: 010", "write labels in quotes"),
        ("denoise: 'no'", "--denoise is on"),
        ("random-seed: [1]", "--random-seed cannot be"),
        ("nprocs: many", "invalid int value"),
        ("lesion-model: false", "--lesion-model cannot be"),
        ("version: true", "unknown option version"),
        ("no-tta: true", "unknown option no_tta"),
    ],
)
def test_config_file_is_read_as_strictly_as_the_command_line(
    text: str, said: str, dataset: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.yml"
    file.write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        parse([str(dataset), str(tmp_path / "out"), "participant", "--config-file", str(file)])
    assert str(file) in str(caught.value)


def test_config_file_with_switches_and_lists(dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yml"
    file.write_text(
        "denoise: true\ntta: false\nverbose: 2\noutput_spaces: [orig]\nomp-nthreads:\nmodel: gm ~ age\n"
        "skip-bids-validator: true\n"
    )
    config = parse([str(dataset), str(tmp_path / "out"), "participant", f"--config_file={file}"])
    assert (config.denoise, config.tta, config.verbose, config.output_spaces) == (True, False, 2, ("orig",))
    assert config.model == ("gm ~ age",) and config.skip_bids_validation


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/out/x"), 75, "/out/x: No space left on device. Free space"),
        (PermissionError(errno.EACCES, "Permission denied", "/data"), 66, "/data: Permission denied"),
    ],
)
def test_errors_of_the_system_are_told_in_a_line(
    error: OSError, code: int, words: str, dataset: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    def fail(config: Config) -> int:
        raise error

    monkeypatch.setattr(app, "run", fail)
    assert main([str(dataset), str(tmp_path / "out"), "participant"]) == code
    assert words in capsys.readouterr().err


def test_config_file_in_another_encoding_is_a_usage_error(dataset: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "c.yml").write_bytes("work-dir: /m\u00fcller".encode("latin-1"))
    assert main([str(dataset), str(tmp_path / "out"), "participant", "--config-file", str(tmp_path / "c.yml")]) == 64
    assert "cannot be read" in capsys.readouterr().err


def test_a_user_without_a_home_is_given_one(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is run as a number; pybids asks for it."""

    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(app, "run", lambda config: 0)
    assert main([str(dataset), str(tmp_path / "out"), "participant"]) == 0
    assert os.environ["HOME"] == tempfile.gettempdir()


def test_a_home_of_somebody_else_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setenv("HOME", "/root")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", refuse)
        _settle_folders()
    assert os.environ["HOME"] == tempfile.gettempdir()


def test_without_a_temporary_folder_it_says_so(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    assert main([str(dataset), str(tmp_path / "out"), "participant"]) == 75
    assert "set TMPDIR" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])


PRINT = """
import sys
from bidsapp import app, cli
app.run = lambda config: print("row\\n" * {rows}) or 0
sys.exit(cli.main({arguments}))
"""


@pytest.mark.parametrize("rows", [1, 100_000])
def test_a_reader_that_has_seen_enough_is_no_error(rows: int, dataset: Path, tmp_path: Path) -> None:
    probe = PRINT.format(rows=rows, arguments=[str(dataset), str(tmp_path / "out"), "participant"])
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_pipe_of_the_app_itself_is_one(dataset: Path, tmp_path: Path) -> None:
    probe = PRINT.replace("print(", "(_ for _ in ()).throw(BrokenPipeError(32, 'Broken pipe')) or (")
    probe = probe.format(rows=1, arguments=[str(dataset), str(tmp_path / "out"), "participant"])
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 66 and "Broken pipe" in done.stderr

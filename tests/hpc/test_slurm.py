"""The scripts of docs/hpc, with stand-ins for SLURM and Apptainer that do what the scripts count on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

#: Runs an array's tasks at once (at most three), or a single job after those it depends on, and prints the job's id.
SBATCH = """#!{python}
import os, re, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
options = dict(arg.lstrip("-").partition("=")[::2] for arg in sys.argv[1:-1])
script, folder = sys.argv[-1], os.environ["FAKE_SLURM"]
job = str(100 + len(os.listdir(folder)))
open(os.path.join(folder, job), "w").write(" ".join(sys.argv[1:]))
assert os.path.exists(script) and "parsable" in options and options["export"] == "ALL"
if "dependency" in options:
    assert os.path.exists(os.path.join(folder, re.fullmatch(r"afterany:(\\d+)", options["dependency"])[1]))
tasks = range(1, int(re.fullmatch(r"1-(\\d+)%\\d+", options["array"])[1]) + 1) if "array" in options else [None]
def run(task):
    log = options["output"].replace("%A", job).replace("%a", str(task)).replace("%j", job)
    more = {{"SLURM_CPUS_PER_TASK": "1"}} | ({{}} if task is None else {{"SLURM_ARRAY_TASK_ID": str(task)}})
    with open(log, "w") as stream:
        return subprocess.run(["bash", script], env=os.environ | more, stdout=stream, stderr=stream).returncode
with ThreadPoolExecutor(3) as pool:
    list(pool.map(run, tasks))  # a failed task does not fail the submission
print(job)
"""

#: ``apptainer run [options] -B here:there... IMAGE arguments``: the arguments with the paths of this side.
APPTAINER = """#!{python}
import os, subprocess, sys
arguments, binds = sys.argv[2:], {{}}
assert sys.argv[1] == "run" and "--containall" in arguments and "--cleanenv" in arguments
while arguments[0].startswith("-"):
    if arguments.pop(0) == "-B":
        here, there, *mode = arguments.pop(0).split(":")
        binds[there] = here
        assert os.path.isdir(here) and (there != "/data" or mode == ["ro"])
assert os.path.isfile(arguments[0])
command = [sys.executable, "-c", "import light; light.main()", *(binds.get(a, a) for a in arguments[1:])]
where = {{"PYTHONPATH": {path!r}, "PATH": os.environ["PATH"], "LIGHT_PAUSE": "0"}}
sys.exit(subprocess.run(command, env=where, cwd="/").returncode)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """Environment of a user of a cluster with nothing but `sbatch` and `apptainer`."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / "slurm").mkdir()
    for name, text in (("sbatch", SBATCH), ("apptainer", APPTAINER)):
        path = programs / name
        path.write_text(text.format(python=sys.executable, path=f"{HERE}{os.pathsep}{ROOT}"))
        path.chmod(0o755)
    (tmp_path / "app.sif").touch()
    return {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "FAKE_SLURM": str(tmp_path / "slurm")}


def attempt(folder: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "docs/hpc/submit.sh"), *(words or ("data", "out", "app.sif", "--partition=short"))],
        cwd=folder, env=environment | {"BIDSAPP_OPTIONS": "--skip-bids-validation"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def submit(folder: Path, environment: dict[str, str]) -> str:
    done = attempt(folder, environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def listing(tmp_path: Path, cluster: dict[str, str]) -> Callable[..., None]:
    """Put programs in the place of Apptainer and sbatch: one lists jobs, the other keeps its words and prints an id."""
    (tmp_path / "data").mkdir()

    def install(*jobs: str, code: int = 0, group_fails: bool = False) -> None:
        lines = "".join(f"echo '{job}'\n" for job in jobs)
        (tmp_path / "bin/apptainer").write_text(f"#!/bin/sh\n{lines}exit {code}\n")
        ends = "[ $n -eq 1 ] || exit 1\n" if group_fails else ""
        (tmp_path / "bin/sbatch").write_text(
            '#!/bin/sh\nn=$(ls "$FAKE_SLURM" | wc -l); n=$((n + 1))\nfor word in "$@"; do echo "$word"; done > '
            f'"$FAKE_SLURM/$n"\n{ends}echo "$n;here"\n'
        )

    return install


def words_of(folder: Path, job: int) -> list[str]:
    return (folder / "slurm" / str(job)).read_text().splitlines()


def test_who_pays_and_where_is_said_of_both_jobs(tmp_path: Path, cluster: dict[str, str], listing) -> None:
    listing("--participant-label 01")
    options = ["-p", "short", "--account=lab", "--gres=gpu:1", "-qlow", "--time", "30", "--qos", "x y"]
    done = attempt(tmp_path, cluster | {"GROUP_SBATCH_OPTIONS": "--mem=8G"}, "data", "out", "app.sif", *options)
    assert done.returncode == 0, done.stderr
    assert words_of(tmp_path, 1)[-len(options) - 1 : -1] == options
    assert words_of(tmp_path, 2)[-8:-1] == ["-p", "short", "--account=lab", "-qlow", "--qos", "x y", "--mem=8G"]


def test_the_array_is_told_though_the_group_level_is_refused(tmp_path: Path, cluster: dict[str, str], listing) -> None:
    listing("--participant-label 01", group_fails=True)
    done = attempt(tmp_path, cluster)
    assert (done.returncode, done.stdout.partition(".")[0]) == (1, "1 session(s): array job 1")
    assert "the group level was not submitted" in done.stderr


def test_sessions_that_cannot_be_read_are_not_called_done(tmp_path: Path, cluster: dict[str, str], listing) -> None:
    listing(code=1)
    done = attempt(tmp_path, cluster)
    assert done.returncode == 1 and "done already" not in done.stdout
    listing("--participant-label 01", code=1)
    done = attempt(tmp_path, cluster)
    assert (done.returncode, "array job 1" in done.stdout) == (1, True)
    listing("--participant-label 01", code=16)
    assert attempt(tmp_path, cluster).returncode == 16


def test_a_dataset_that_is_not_there_and_a_raw_one_for_the_results(
    tmp_path: Path, cluster: dict[str, str], listing
) -> None:
    listing("--participant-label 01")
    assert attempt(tmp_path, cluster, "missing", "out", "app.sif").returncode != 0
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/dataset_description.json").write_text('{"Name": "x"}')
    assert attempt(tmp_path, cluster, "data", "raw", "app.sif").returncode == 64
    assert not (tmp_path / "out").exists() and not (tmp_path / "raw/logs").exists()


@pytest.mark.slow
def test_an_array_of_all_sessions_then_of_those_left(
    make_dataset: Callable[[Path], Path], tmp_path: Path, cluster: dict[str, str]
) -> None:
    data = make_dataset(tmp_path / "data")
    broken = data / "sub-05/anat/sub-05_T1w.nii.gz"
    content = broken.read_text()
    broken.write_text("")
    for extra in ("sub-03", "sub-04"):  # five sessions are enough
        for path in sorted((data / extra).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (data / extra).rmdir()
    said = submit(tmp_path, cluster)
    assert said.startswith("5 session(s): array job 100. ") and said.endswith("Then the group level: job 101\n")
    (jobs,) = (tmp_path / "out/logs/slurm").glob("jobs-*.txt")
    assert jobs.read_text().splitlines() == [
        "--participant-label 01 --session-label a",
        "--participant-label 01 --session-label b",
        "--participant-label 02 --session-label a",
        "--participant-label 02 --session-label b",
        "--participant-label 05",
    ]
    assert all("--partition=short" in (tmp_path / "slurm" / job).read_text() for job in ("100", "101"))
    assert len(list((tmp_path / "out").rglob("*_provenance.json"))) == 4
    assert (tmp_path / "out/sub-05.html").is_file()
    assert "the file is empty" in (tmp_path / "out/logs/slurm/100_5.txt").read_text()

    broken.write_text(content)
    assert submit(tmp_path, cluster).startswith("1 session(s)")
    assert len(list((tmp_path / "out").rglob("*_provenance.json"))) == 5
    assert submit(tmp_path, cluster) == "Every session is done already.\n"


def test_a_wrong_command_line_says_how(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "docs/hpc/submit.sh"), "data"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 64
    assert "submit.sh DATA OUT IMAGE" in done.stderr

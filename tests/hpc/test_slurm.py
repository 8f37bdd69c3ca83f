"""The scripts of docs/hpc, with stand-ins for SLURM and Apptainer that do what the scripts count on.

The last test takes a real SLURM, of this machine alone and without its accounts, where one is installed
(``apt-get install slurmctld slurmd slurm-client``; nothing needs to be set up or running).
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
    log = options["output"].replace("%%", "%").replace("%A", job).replace("%a", str(task)).replace("%j", job)
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

#: A cluster of this machine: more CPUs than it has, arrays of three tasks.
SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
MaxArraySize=4
KillWait=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=64000 State=UNKNOWN
PartitionName=short Nodes={host} Default=YES MaxTime=60
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


def test_memory_is_asked_for_once(tmp_path: Path, cluster: dict[str, str], listing) -> None:
    """sbatch refuses --mem beside --mem-per-cpu, also where the one is in the script."""
    listing("--participant-label 01")
    assert attempt(tmp_path, cluster).returncode == 0
    assert "--mem=4G" in words_of(tmp_path, 1) and "--mem=4G" in words_of(tmp_path, 2)
    apart = {"GROUP_SBATCH_OPTIONS": "--mem-per-cpu=1G --comment 'of the group'"}
    given = ("data", "out", "app.sif", "--mem-per-cpu", "2G")
    assert attempt(tmp_path, cluster | apart, *given).returncode == 0
    assert "--mem=4G" not in words_of(tmp_path, 3) + words_of(tmp_path, 4)
    assert "of the group" in words_of(tmp_path, 4)
    assert attempt(tmp_path, cluster | {"SBATCH_MEM_PER_CPU": "2G"}).returncode == 0
    assert "--mem=4G" not in words_of(tmp_path, 5)
    assert not any("#SBATCH --mem" in path.read_text() for path in (ROOT / "docs/hpc").glob("*.sh"))


def test_more_sessions_than_an_array_may_have(tmp_path: Path, cluster: dict[str, str], listing) -> None:
    listing(*(f"--participant-label {number}" for number in range(7)))
    (tmp_path / "bin/scontrol").write_text("#!/bin/sh\necho 'MaxArraySize            = 4'\n")
    (tmp_path / "bin/scontrol").chmod(0o755)
    done = attempt(tmp_path, cluster | {"AT_ONCE": "10"})
    assert done.returncode == 0, done.stderr
    assert [words_of(tmp_path, job)[1] for job in (1, 2, 3)] == ["--array=1-3%4", "--array=1-3%4", "--array=1-1%4"]
    assert "--dependency=afterany:1:2:3" in words_of(tmp_path, 4)
    assert done.stdout.count("session(s): array job") == 3


def test_what_the_cluster_does_not_take_any_more_is_told(tmp_path: Path, cluster: dict[str, str], listing) -> None:
    listing(*(f"--participant-label {number}" for number in range(7)))
    (tmp_path / "bin/scontrol").write_text("#!/bin/sh\necho 'MaxArraySize            = 4'\n")
    (tmp_path / "bin/scontrol").chmod(0o755)
    sbatch = tmp_path / "bin/sbatch"
    sbatch.write_text(sbatch.read_text().replace('echo "$n;here"', '[ $n -ne 2 ] || exit 1; echo "$n;here"'))
    done = attempt(tmp_path, cluster)
    assert (done.returncode, "4 session(s) were not submitted" in done.stderr) == (1, True)
    assert "--dependency=afterany:1" in words_of(tmp_path, 3)


@pytest.fixture
def task(tmp_path: Path, cluster: dict[str, str]) -> Callable[..., list[str]]:
    """Run a script as SLURM does, with a program in the place of Apptainer; what that was called with and in."""
    keep = 'for word in "$@"; do echo "$word"; done; env | grep -E "^(APPTAINER|SINGULARITY)ENV_"; true\n'
    (tmp_path / "bin/apptainer").write_text(f"#!/bin/sh\n{keep}")
    (tmp_path / "jobs.txt").write_text("--participant-label 01\n--participant-label 02 --session-label 1\n")
    (tmp_path / "node").mkdir()
    about = {name: str(tmp_path / name.lower()) for name in ("DATA", "OUT", "IMAGE")}
    about |= {"JOBS": str(tmp_path / "jobs.txt"), "SLURM_TMPDIR": str(tmp_path / "node"), "SLURM_CPUS_PER_TASK": "3"}

    def run(script: str, **more: str) -> list[str]:
        done = subprocess.run(
            ["bash", str(ROOT / "docs/hpc" / script)], env=cluster | about | more,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == int(more.get("code", 0)), done.stderr
        return done.stdout.splitlines()

    return run


def test_a_task_knows_its_line_its_gpu_and_its_memory(tmp_path: Path, task: Callable[..., list[str]]) -> None:
    quoted = {"BIDSAPP_OPTIONS": "--config-file '/out/my options.yml'", "APPTAINER_OPTIONS": '--nv -B "/a b:/model:ro"'}
    job = {"CUDA_VISIBLE_DEVICES": "2,3", "SLURM_MEM_PER_NODE": "4096", "SLURM_CPUS_ON_NODE": "3"}
    said = task("slurm_session.sh", SLURM_ARRAY_TASK_ID="1", BEFORE="1", **quoted, **job)
    words = said[said.index("participant") :]
    assert words[1:6] == ["--participant-label", "02", "--session-label", "1", "--skip-bids-validation"]
    assert words[6:12] == ["--nprocs", "3", "-w", "/work", "--config-file", "/out/my options.yml"]
    assert {"/a b:/model:ro", "APPTAINERENV_CUDA_VISIBLE_DEVICES=2,3", "SINGULARITYENV_SLURM_MEM_PER_NODE=4096"} < {
        *said
    }
    assert any(word.startswith(f"{tmp_path}/node/bidsapp.") and word.endswith(":/work") for word in said)
    assert not list((tmp_path / "node").iterdir())
    task("slurm_session.sh", SLURM_ARRAY_TASK_ID="2", BEFORE="1", code="64")


def test_the_group_level_names_what_was_killed(tmp_path: Path, task: Callable[..., list[str]]) -> None:
    said = task("slurm_group.sh", GROUP_OPTIONS="--model 'gm ~ age'", ARRAYS="7,9")  # the stand-in lists its words
    assert said[0].startswith("Not done") and "sacct -X -j 7,9" in said[0]
    assert said[-5:] == ["group", "--nprocs", "3", "--model", "gm ~ age"]
    (tmp_path / "bin/apptainer").write_text("#!/bin/sh\n")
    assert task("slurm_group.sh") == []


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
    assert attempt(tmp_path, cluster, "data", "out", "other.sif").returncode == 66
    for name in ("a:b", "a,b"):  # parts of what Apptainer binds
        assert attempt(tmp_path, cluster, "data", name, "app.sif").returncode == 64
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/dataset_description.json").write_text('{"Name": "x"}')
    assert attempt(tmp_path, cluster, "data", "raw", "app.sif").returncode == 64
    assert not any((tmp_path / name).exists() for name in ("out", "raw/logs", "a:b", "a,b"))


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


@pytest.fixture
def real_cluster(tmp_path: Path, cluster: dict[str, str]) -> Iterator[dict[str, str]]:
    """As `cluster`, but `sbatch` is SLURM's own."""
    search = f"{cluster['PATH']}:/usr/sbin"
    daemons = [shutil.which(name, path=search) for name in ("slurmctld", "slurmd")]
    (tmp_path / "bin/sbatch").unlink()
    if not all(daemons) or not shutil.which("sbatch", path=search):
        pytest.skip("no slurmctld, slurmd and sbatch on this machine")
    folder = tmp_path / "ctld"
    for each in (folder / "state", folder / "spool"):
        each.mkdir(parents=True)
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1], two.getsockname()[1]]
    about = {"host": socket.gethostname().partition(".")[0], "user": getpass.getuser(), "ports": ports}
    (folder / "slurm.conf").write_text(SLURM_CONF.format(folder=folder, **about))
    environment = cluster | {"SLURM_CONF": str(folder / "slurm.conf"), "LANG": "C"}
    running = [subprocess.Popen([str(each), "-D"], env=environment, stderr=subprocess.DEVNULL) for each in daemons]
    try:
        wait_until(lambda: ask(environment, "sinfo", "-h", "-o", "%t") == "idle", seconds=60)
        yield environment
    finally:
        ask(environment, "scancel", f"--user={about['user']}")
        for process in running:
            process.terminate()
        for process in running:
            process.wait(30)


def ask(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()


def wait_until(holds: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.5)


@pytest.mark.slow
def test_a_real_slurm(make_dataset: Callable[[Path], Path], tmp_path: Path, real_cluster: dict[str, str]) -> None:
    """Three arrays for nine sessions, words and folders with spaces, one session that fails and one that is killed."""
    make_dataset(tmp_path / "my data")
    (tmp_path / "my data/sub-05/anat/sub-05_T1w.nii.gz").write_text("")
    given = ("my data", "100% mine", "app.sif", "--mem-per-cpu=300M", "--comment", "two words", "--time=5", "--hold")
    options = {"GROUP_SBATCH_OPTIONS": "--comment 'of the group' --mem-per-cpu=300M"}
    done = attempt(tmp_path, real_cluster | options, *given)
    assert (done.returncode, done.stdout.count("3 session(s): array job")) == (0, 3), done.stderr
    arrays = [line.partition(". ")[0].split()[-1] for line in done.stdout.splitlines()[:3]]
    told = ask(real_cluster, "scontrol", "show", "job")
    assert told.count("Comment=two words") == 3 and "Comment=of the group" in told and "mem=600M" in told
    ask(real_cluster, "scancel", f"{arrays[0]}_1")
    ask(real_cluster, "scontrol", "release", *arrays)
    wait_until(lambda: not ask(real_cluster, "squeue", "-h"), seconds=240)
    logs = tmp_path / "100% mine/logs/slurm"
    assert len(list((tmp_path / "100% mine").rglob("*_provenance.json"))) == 7
    assert "the file is empty" in (logs / f"{arrays[2]}_3.txt").read_text()
    (group,) = logs.glob("group_*.txt")
    assert group.read_text().splitlines()[1:3] == [
        "--participant-label 01 --session-label a",
        "--participant-label 05",
    ]
    assert (tmp_path / "100% mine/group.html").is_file()
    done = attempt(tmp_path, real_cluster, *given)
    assert done.stdout.startswith("2 session(s): array job")

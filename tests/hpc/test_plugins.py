"""Other ways to run the steps: a real Dask cluster on this machine, nipype's own plugins, one GPU for all steps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bidsapp import config
from bidsapp.cli import parse
from bidsapp.errors import UsageError
from bidsapp.workflows.plugin import SessionBySession, make_plugin

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}", "LIGHT_PAUSE": "0"}


def run(data: Path, out: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "import light; light.main()", str(data), str(out), "participant",
               "--skip-bids-validation", *options]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=180)


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[Path]:
    """Scheduler and two workers as processes of their own, as on a cluster; yields the scheduler's file."""
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    file = tmp_path / "scheduler.json"
    local = ["--host", "127.0.0.1"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_scheduler", *local, "--port", "0", "--no-dashboard",
             "--scheduler-file", str(file)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT,
        )
    ]  # fmt: skip
    for number in range(2):
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_worker", *local, "--scheduler-file", str(file),
                 "--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(tmp_path / str(number))],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT,
            )
        )  # fmt: skip
    yield file
    for process in started:
        process.kill()
    for process in started:
        process.wait(timeout=30)


def test_a_dask_cluster_does_what_this_machine_does(
    make_dataset: Callable[[Path], Path], scheduler: Path, tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "data")
    (data / "sub-05/anat/sub-05_T1w.nii.gz").write_text("")  # a failed step comes back by its name
    plugin = tmp_path / "plugin.yml"
    plugin.write_text(f"plugin: Dask\nplugin_args: {{scheduler_file: '{scheduler}'}}\n")
    by_dask = run(data, tmp_path / "dask", "--nipype-plugin-file", str(plugin))
    assert by_dask.returncode == 1, by_dask.stderr
    assert "nipype's Dask plugin" in by_dask.stderr
    assert by_dask.stdout.count("\tdone\t") == 8
    assert "the file is empty" in by_dask.stdout
    here = run(data, tmp_path / "here", "--nprocs", "1")
    assert here.returncode == 1, here.stderr
    trees = [
        {p.relative_to(out): p.read_bytes() for p in out.rglob("sub-*/**/*") if p.is_file() and ".work" not in p.parts}
        for out in (tmp_path / "dask", tmp_path / "here")
    ]
    assert len(trees[0]) == 8 * 12
    assert trees[0] == trees[1]


def test_nipypes_own_plugins_by_name(make_dataset: Callable[[Path], Path], tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    (tmp_path / "plugin.yml").write_text("plugin: Linear\n")
    done = run(
        data, tmp_path / "out", "--nipype-plugin-file", str(tmp_path / "plugin.yml"), "--participant-label", "05"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/sub-05/anat/sub-05_provenance.json").is_file()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_session_whose_process_is_killed_fails_and_costs_no_other(
    make_dataset: Callable[[Path], Path], tmp_path: Path, start: str
) -> None:
    data = make_dataset(tmp_path / "data")
    (data / "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz").write_text("larger than memory")
    (tmp_path / "plugin.yml").write_text(f"plugin_args: {{mp_context: {start}}}\n")
    options = ["--nipype-plugin-file", str(tmp_path / "plugin.yml"), "--participant-label", "01", "02"]
    done = run(data, tmp_path / "out", "--nprocs", "2", *options)
    assert done.returncode == 1, done.stderr
    (row,) = (line for line in done.stdout.splitlines() if "\tfailed\t" in line)
    assert row.startswith("sub-02\tses-a") and "its process was killed twice" in row and "--nprocs" in row
    assert done.stdout.count("\tdone\t") == 3
    assert "sub-02_ses-a: conform is done once more" in done.stderr and "nipype.workflow" not in done.stdout
    assert "its process was killed" in (tmp_path / "out/sub-02.html").read_text()


def test_labels_with_a_plus(make_dataset: Callable[[Path], Path], tmp_path: Path) -> None:
    """BIDS allows it. Another failing session is told of by its right name."""
    data = make_dataset(tmp_path / "data")
    for name, text in (("sub-05+1", "scan"), ("sub-05+2", "")):
        scan = data / name / "anat" / f"{name}_T1w.nii.gz"
        scan.parent.mkdir(parents=True)
        scan.write_text(text)
    done = run(data, tmp_path / "out", "--nprocs", "1", "--participant-label", "05", "05+1", "05+2")
    assert done.returncode == 1, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()[1:]]
    assert [(row[0], row[3]) for row in rows] == [("sub-05", "done"), ("sub-05+1", "done"), ("sub-05+2", "failed")]
    assert "the file is empty" in rows[2][5]
    assert (tmp_path / "out/sub-05+1.html").is_file() and (tmp_path / "out/logs/sub-05+2.log").is_file()


def test_processes_for_a_gpu_are_not_forked(make_dataset: Callable[[Path], Path], tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    done = run(data, tmp_path / "out", "--nprocs", "1", "--device", "cuda", "--participant-label", "05")
    assert done.returncode == 0, done.stdout
    assert "1 session(s) on cuda" in done.stderr
    forked = tmp_path / "plugin.yml"
    forked.write_text("plugin_args: {mp_context: fork}\n")
    options = ["--nipype-plugin-file", str(forked), "--device", "cuda", "--participant-label", "05"]
    done = run(data, tmp_path / "other", "--nprocs", "1", *options)
    assert "Cannot re-initialize CUDA" in done.stdout  # the stand-in for a step on a GPU does what CUDA does


def test_an_unknown_plugin_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"'Slurm'.*Dask.*MultiProc.*SLURM"):
        make_plugin("Slurm", {}, order=(), environment={})


@pytest.mark.parametrize("text", ["- Dask", "plugin: Dask\nplugin_arg: {}", "plugin_args: 3", "{"])
def test_a_plugin_file_that_holds_something_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "plugin.yml").write_text(text)
    with pytest.raises(UsageError, match="--nipype-plugin-file"):
        config.read_plugin(tmp_path / "plugin.yml")


def test_the_command_line_reads_the_plugin_file(make_dataset: Callable[[Path], Path], tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    (tmp_path / "p.yml").write_text("plugin: SLURM\nplugin_args: {template: x.sh}\n")
    chosen = parse([str(data), str(tmp_path / "out"), "participant", "--nipype-plugin-file", str(tmp_path / "p.yml")])
    assert chosen.nipype_plugin == {"plugin": "SLURM", "plugin_args": {"template": "x.sh"}}


def test_steps_that_use_a_gpu_wait_for_each_other() -> None:
    """MultiProc lets one of two through, and any number of those that use none."""
    from nipype.interfaces import utility as niu
    from nipype.pipeline import engine as pe

    def step(name: str, gpu: bool) -> pe.Node:
        node = pe.Node(niu.Function(input_names=["use_gpu"], function=_pass), name=name)
        node.inputs.use_gpu = gpu
        return node

    plugin = make_plugin("MultiProc", {"n_procs": 4, "n_gpu_procs": 1}, order=("a",), environment={})
    assert isinstance(plugin, SessionBySession)
    plugin.procs = [step("one", True), step("two", True), step("three", False)]
    assert plugin._check_resources([])[2] == 1
    assert plugin._check_resources([(1, 0)])[2] == 0
    assert plugin._check_resources([(1, 2)])[2] == 1
    plugin.pool.shutdown()


def _pass(use_gpu: bool) -> bool:
    return use_gpu

"""The processes that do the steps: they keep memory while they work, and none afterwards; they may be killed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nipype import config as nipype_config
from nipype.interfaces.utility import Function
from nipype.pipeline import engine as pe

from bidsapp import app, progress
from bidsapp.bids import SessionInputs
from bidsapp.workflows.plugin import SessionBySession, Workers, make_plugin, start_worker

MIB = 2**20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def make_and_drop() -> tuple[int, int]:
    """Resident memory before, and after 600 MiB were made and dropped within the step.

    Part of that may lie in memory that a worker inherits: it is forked from a process that ran other tests.
    """
    before = resident()
    volume = np.ones(600 * MIB, np.uint8)
    assert volume[-1] == 1
    del volume
    return before, resident()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory")
def test_memory_is_kept_within_a_step_and_given_back_after_it(tmp_path: Path) -> None:
    with Workers(max_workers=1, initializer=start_worker, initargs=(str(tmp_path), os.getpid())) as workers:
        before, within = workers.submit(make_and_drop).result()
        after = workers.submit(resident).result()
    assert within - before > 250 * MIB
    assert after - before < 50 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory")
def test_memory_is_kept_for_the_next_step_where_that_is_asked_for(tmp_path: Path) -> None:
    options = {"max_workers": 1, "initializer": start_worker, "initargs": (str(tmp_path), os.getpid())}
    with Workers(keep_memory=True, **options) as workers:
        before, _ = workers.submit(make_and_drop).result()
        after = workers.submit(resident).result()
    assert after - before > 250 * MIB


@pytest.mark.parametrize(("memory_gb", "kept"), [(100.0, True), (7.9, False)])
def test_processes_keep_at_most_half_of_the_memory(memory_gb: float, kept: bool) -> None:
    plugin = make_plugin("MultiProc", {"n_procs": 2, "memory_gb": memory_gb}, order=(), environment={})
    assert isinstance(plugin, SessionBySession)
    assert plugin.pool._keep_memory is kept
    plugin.pool.shutdown()


@pytest.mark.parametrize(("largest_gb", "kept"), [(1.5, True), (6.0, False)])
def test_what_processes_keep_grows_with_the_scans(largest_gb: float, kept: bool) -> None:
    plugin = make_plugin("MultiProc", {"n_procs": 2, "memory_gb": 10}, order=(), environment={})
    whole = pe.Workflow("bidsapp")
    whole.add_nodes([pe.Node(Function(["file"], ["file"], tell), "one", mem_gb=largest_gb)])
    plugin._prerun_check(whole._graph)
    assert plugin.pool._keep_memory is kept


def test_a_step_that_fails_tells_so(tmp_path: Path) -> None:
    with Workers(max_workers=1, initializer=start_worker, initargs=(str(tmp_path), os.getpid())) as workers:
        with pytest.raises(ZeroDivisionError):
            workers.submit(divmod, 1, 0).result()
        assert workers.submit(divmod, 7, 2).result() == (3, 1)


# --- killed ---------------------------------------------------------------------------------------------------------


def be_killed(file, times):
    """Killed the first `times` times, as by the system when memory runs out; `file` counts."""
    import os
    import signal
    import time

    with open(file, "a") as stream:
        stream.write("x")
    time.sleep(0.3)
    if os.path.getsize(file) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return file


def take_a_second(file, times):
    import time

    with open(file, "a") as stream:
        stream.write("x")
    time.sleep(1)
    return file


def tell(file):
    """How its process was started, and what nipype's loggers let through there."""
    import logging
    import multiprocessing

    with open(file, "a") as stream:
        level = logging.getLogger("nipype.workflow").level
        stream.write(f"{multiprocessing.current_process().__class__.__name__} {level}")
    return file


def take_much(file, times):
    """300 MiB and a third of a second of the processor."""
    import time

    until = time.process_time() + 0.3
    volume = bytearray(b"x") * (300 * 2**20)
    while time.process_time() < until:
        pass
    return file if volume else ""


@pytest.fixture
def crashes(tmp_path: Path) -> Iterator[Path]:
    """Where nipype leaves what it has to say of failures, as in the app."""
    kept = {name: dict(nipype_config._sections[name]) for name in ("execution", "logging")}
    folder = tmp_path / "crashes"
    chosen = {"crashdump_dir": str(folder), "crashfile_format": "txt", "poll_sleep_duration": "0.05"}
    nipype_config.update_config({"execution": chosen})
    yield folder
    nipype_config.update_config(kept)


def workflow(folder: Path, steps: dict[str, tuple[Any, int]]) -> pe.Workflow:
    """A session by each name: the step, then one that passes its file on; `write` is reached or not."""
    whole = pe.Workflow("bidsapp", base_dir=str(folder))
    for name, (function, times) in steps.items():
        session = pe.Workflow(name)
        first = pe.Node(Function(["file", "times"], ["file"], function), "one", mem_gb=0.1)
        first.inputs.trait_set(file=str(folder / name), times=times)
        last = pe.Node(Function(["file"], ["file"], tell), "write", mem_gb=0.1)
        session.connect(first, "file", last, "file")
        whole.add_nodes([session])
    return whole


def run(whole: pe.Workflow, order: tuple[str, ...], **options: Any) -> list[str]:
    """Statuses that were told, in order."""
    told: list[str] = []
    known = {"memory_gb": 4, "raise_insufficient": False, "n_gpu_procs": 1, **options}
    known["status_callback"] = lambda node, status: told.append(f"{node.fullname.partition('.')[2]} {status}")
    whole.run(plugin=make_plugin("MultiProc", known, order=order, environment={}))
    return told


@pytest.mark.parametrize("processes", [1, 3])
def test_a_killed_step_fails_its_session_and_no_other(tmp_path: Path, crashes: Path, processes: int) -> None:
    """Those beside it are killed with it, by Python: they are done again, and their sessions go on."""
    steps = {"sub_a": (be_killed, 9), "sub_b": (take_a_second, 0), "sub_c": (be_killed, 1)}
    with pytest.raises(RuntimeError):
        run(workflow(tmp_path, steps), tuple(steps), n_procs=processes)
    failures = progress.read_crashes(crashes)
    assert list(failures) == ["sub_a"]
    assert failures["sub_a"].message.startswith("step one: its process was killed twice, probably for lack of memory")
    assert "--nprocs" in failures["sub_a"].message
    assert (tmp_path / "sub_a").read_text() == "xx"
    assert "Process" in (tmp_path / "sub_b").read_text() and "Process" in (tmp_path / "sub_c").read_text()


def test_a_step_that_is_done_once_more_is_told_of(tmp_path: Path, crashes: Path) -> None:
    steps = {"sub_a": (be_killed, 1)}
    told = run(workflow(tmp_path, steps), tuple(steps), n_procs=1)
    assert told == [f"sub_a.{what}" for what in ("one start", "one again", "one end", "write start", "write end")]
    assert not crashes.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's account of memory")
@pytest.mark.parametrize("measure", [True, False])
def test_what_a_step_takes_is_in_the_log_where_that_is_asked_for(tmp_path: Path, crashes: Path, measure: bool) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "sub_a").touch()
    outcome = app.Outcome(SessionInputs("a", None, ()))
    watch = progress.Watch(tmp_path / "logs", {"sub_a": outcome}, progress.Progress(), total=2)
    options = {"n_procs": 1, "memory_gb": 4, "raise_insufficient": False, "n_gpu_procs": 1, "measure": measure}
    plugin = make_plugin("MultiProc", {**options, "status_callback": watch}, order=("sub_a",), environment={})
    workflow(tmp_path, {"sub_a": (take_much, 0)}).run(plugin=plugin)
    watch.close()
    one, write = (tmp_path / "logs" / "sub-a.log").read_text().splitlines()
    if not measure:
        assert re.search(r"node one [\d.]+s$", one)
        return
    pattern = r"node \w+ [\d.]+s, ([\d.]+) s of CPU, ([\d.]+) GB$"
    took, after = ([float(number) for number in re.search(pattern, line).groups()] for line in (one, write))
    assert 0.3 <= took[0] < 2 and after[0] < 0.3
    assert took[1] > after[1] + 0.2, "a step's memory is not told of the next one"


def test_processes_that_are_not_forked(tmp_path: Path, crashes: Path) -> None:
    """As with a GPU: they do the same, and are as silent as those that inherit nipype's settings."""
    nipype_config.update_config({"logging": {"workflow_level": "CRITICAL"}})
    steps = {"sub_a": (be_killed, 1), "sub_b": (take_a_second, 0)}
    run(workflow(tmp_path, steps), tuple(steps), n_procs=2, mp_context="spawn")
    for name in steps:
        assert (tmp_path / name).read_text().endswith("xSpawnProcess 50")

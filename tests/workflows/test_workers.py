"""The processes that do the steps: they keep memory while they work, and none afterwards."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from bidsapp.workflows.plugin import SessionBySession, Workers, make_plugin, start_worker

MIB = 2**20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def make_and_drop() -> tuple[int, int]:
    """Resident memory before, and after 300 MiB were made and dropped within the step."""
    before = resident()
    volume = np.ones(300 * MIB, np.uint8)
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


def test_a_step_that_fails_tells_so(tmp_path: Path) -> None:
    with Workers(max_workers=1, initializer=start_worker, initargs=(str(tmp_path), os.getpid())) as workers:
        with pytest.raises(ZeroDivisionError):
            workers.submit(divmod, 1, 0).result()
        assert workers.submit(divmod, 7, 2).result() == (3, 1)

"""The processes that do the steps: they keep memory while they work, and none afterwards."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from bidsapp.workflows.plugin import Workers, start_worker

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


def test_a_step_that_fails_tells_so(tmp_path: Path) -> None:
    with Workers(max_workers=1, initializer=start_worker, initargs=(str(tmp_path), os.getpid())) as workers:
        with pytest.raises(ZeroDivisionError):
            workers.submit(divmod, 1, 0).result()
        assert workers.submit(divmod, 7, 2).result() == (3, 1)

"""The parts of the stress run that decide what is killed."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import ModuleType


def test_who_is_at_work_is_known_by_the_locks(stress: ModuleType, tmp_path: Path) -> None:
    assert stress.sessions_of(os.getpid(), tmp_path) == []  # no locks yet
    (tmp_path / ".locks").mkdir()
    for name in ("run", "sub-01_ses-1", "sub-01_ses-2"):
        (tmp_path / ".locks" / f"{name}.lock").touch()
    with (
        (tmp_path / ".locks" / "run.lock").open("w") as run,
        (tmp_path / ".locks" / "sub-01_ses-2.lock").open("w") as session,
    ):
        for stream in (run, session):
            fcntl.lockf(stream, fcntl.LOCK_EX)
        assert stress.sessions_of(os.getpid(), tmp_path) == ["sub-01_ses-2"]
        assert stress.sessions_of(os.getppid(), tmp_path) == []
    assert stress.sessions_of(os.getpid(), tmp_path) == []

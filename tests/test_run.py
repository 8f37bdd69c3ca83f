"""run.py as the first process of a container."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_first_process_of_a_container_ends_when_told_to(tmp_path: Path) -> None:
    """The kernel hides SIGTERM from a first process that has no handler: `docker stop` would wait, then kill."""
    spaces = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    try:
        subprocess.run([*spaces, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no process namespaces here")
    (tmp_path / "data").mkdir()
    pipe = tmp_path / "options.yml"
    os.mkfifo(pipe)  # nobody ever writes: reading it takes for ever
    app = [str(ROOT / "run.py"), str(tmp_path / "data"), str(tmp_path / "out"), "participant"]
    outer = subprocess.Popen([*spaces, sys.executable, *app, "--config-file", str(pipe)])
    writer = None
    try:
        writer = _once_read(pipe, outer)
        (first,) = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)
        assert outer.wait(timeout=20) == 128 + signal.SIGTERM
    finally:
        outer.kill()
        if writer is not None:
            os.close(writer)


def _once_read(pipe: Path, process: subprocess.Popen) -> int:
    """The end to write to, once somebody reads."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.1)
    raise AssertionError("it does not read the file")

"""The stop-watch: what it reads from logs and from /proc."""

from __future__ import annotations

import sys

import pytest

from benchmarks import speed


def test_stages_longest_first():
    log = (
        "2026-01-01 10:00:00 sub-20_ses-2 node conform_T1w 1.5s\n"
        "2026-01-01 10:00:09 sub-20_ses-2 node template 31.25s\n"
        "2026-01-01 10:00:09 sub-20_ses-2 FAILED lesions 3.0s\n"
    )
    assert speed.stages(log) == [("template", 31.25), ("conform_T1w", 1.5)]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_of_children_counts():
    child = "import time; block = bytearray(b'x') * 200_000_000; time.sleep(1.5)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    run = speed.measure([sys.executable, "-c", code])
    assert run.exit_code == 0
    assert 0.2 < run.peak_gb < 0.35
    assert run.wall_s > 1.5


def test_exit_code_is_passed_on():
    assert speed.measure([sys.executable, "-c", "raise SystemExit(3)"]).exit_code == 3


def test_a_failed_run_is_no_measurement(tmp_path, capsys):
    code = speed.main(["--dataset", str(tmp_path), "--participant", "1", "--session", ""])
    assert code == 1
    assert "nothing to report" in capsys.readouterr().err

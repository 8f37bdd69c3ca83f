"""What `make` would do, asked by ``make -n``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


def would_do(*words: str, **environment: str) -> list[str]:
    command = ["make", "-n", "--no-print-directory", *words]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("words", [[], ["OUT=/precious", "DEMO=/precious"]])
def test_clean_removes_what_the_demo_made_and_nothing_else(words: list[str]) -> None:
    """Many shells have an ``OUT`` of their own."""
    assert would_do("clean", *words, OUT="/precious", DEMO="/precious") == ["rm -rf demo-data demo-out"]


def test_folders_of_the_demo_are_those_of_the_command_line() -> None:
    assert any(" -m demo here" in line for line in would_do("demo", "DEMO=here", DEMO="/precious"))
    assert not any("/precious" in line for line in would_do("demo", OUT="/precious", DEMO="/precious"))

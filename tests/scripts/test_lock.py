"""Which versions ``make lock`` asks for."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ANSWER = """numpy==2.3.0 \\
    --hash=sha256:0a
torch==2.13.0 \\
    --hash=sha256:0b
nvidia-nccl==2.27 \\
    --hash=sha256:0c
customtkinter==5.2 \\
    --hash=sha256:0d
"""
TOOL = """ruff==0.14.0 \\
    --hash=sha256:0e
"""


@pytest.fixture
def asked(lock: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Locks of today, and what uv is asked to keep: once for the app, once with the tools."""
    for name, package in (("dev", "ruff==0.13.0"), ("torch", "torch==2.12.0"), ("cuda", "nvidia-nccl==2.26")):
        (tmp_path / f"requirements-{name}.txt").write_text(f"{package} \\\n    --hash=sha256:ff\n")
    found: list[list[str]] = []

    def uv(command: list[str], **_: object) -> SimpleNamespace:
        found.append((tmp_path / ".lock-constraints.txt").read_text().split())
        return SimpleNamespace(returncode=0, stdout=ANSWER + TOOL * ("dev" in command), stderr="")

    monkeypatch.setattr(lock, "ROOT", tmp_path)
    monkeypatch.setattr(subprocess, "run", uv)
    return found


def test_versions_stay_those_of_the_tools_too(
    asked: list[list[str]], lock: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["lock.py"])
    lock.main()
    assert asked[0] == ["nvidia-nccl==2.26", "ruff==0.13.0", "torch==2.12.0"]
    assert asked[1] == ["numpy==2.3.0", "nvidia-nccl==2.27", "ruff==0.13.0", "torch==2.13.0"]


def test_an_upgrade_keeps_only_what_the_app_got(
    asked: list[list[str]], lock: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["lock.py", "--upgrade"])
    lock.main()
    assert asked == [[], ["numpy==2.3.0", "nvidia-nccl==2.27", "torch==2.13.0"]]
    locks = {path.name: path.read_text() for path in tmp_path.glob("requirements*.txt")}
    assert locks["requirements.txt"] == "numpy==2.3.0 \\\n    --hash=sha256:0a\n"
    assert locks["requirements-dev.txt"].split()[::3] == ["numpy==2.3.0", "ruff==0.14.0"]
    assert locks["requirements-torch.txt"].count("--hash") == 2  # the CPU build's, too
    assert "nvidia-nccl==2.27" in locks["requirements-cuda.txt"]
    assert not (tmp_path / ".lock-constraints.txt").exists()

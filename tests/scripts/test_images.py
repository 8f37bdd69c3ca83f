"""The script that builds and checks the images; the images themselves where they are (``make image``)."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def images() -> ModuleType:
    spec = importlib.util.spec_from_file_location("images", ROOT / "scripts" / "images.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_app_runs_with_nothing_it_was_not_given(
    images: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for engine in (True, False):
        monkeypatch.setattr(images, "has_docker", lambda engine=engine: engine)
        command = images.in_image(["/data", "/out", "participant"], ["/x:/data:ro"], writes=tmp_path)
        assert command[0] == ("docker" if engine else "podman")
        for option in ("--network=none", "--read-only", "--cap-drop=ALL", "--volume=/x:/data:ro"):
            assert option in command
        (user,) = [option for option in command if option.startswith("--user=")]
        assert user != "--user=0:0"
        assert tmp_path.stat().st_uid == int(user.partition("=")[2].partition(":")[0])
        assert command[-4:] == [images.tag(), "/data", "/out", "participant"]


def test_an_image_beyond_its_budget_fails(images: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert images.BUDGET["cpu"] == 2_500_000_000
    monkeypatch.setattr(images, "_inspect", lambda variant="cpu": {"Size": 2_500_000_000})
    images.check_size()
    monkeypatch.setattr(images, "_inspect", lambda variant="cpu": {"Size": 2_500_000_001})
    with pytest.raises(images.Failed, match="larger than its budget"):
        images.check_size()


@pytest.mark.parametrize("user", ["", "0", "root:root"])
def test_an_image_of_root_fails(images: ModuleType, monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    monkeypatch.setattr(images, "_inspect", lambda variant="cpu": {"Size": 1, "Config": {"User": user, "Labels": {}}})
    with pytest.raises(images.Failed, match="runs as"):
        images.check_image()


def test_any_difference_is_found(images: ModuleType, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "sub-01").mkdir(parents=True)
        (tmp_path / name / "logs").mkdir()
        (tmp_path / name / "logs" / "time.log").write_text(name)
        (tmp_path / name / "sub-01" / "x.tsv").write_text("same")
    images.compare(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "sub-01" / "x.tsv").write_text("sane")
    with pytest.raises(images.Failed, match=r"x\.tsv"):
        images.compare(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "sub-01" / "x.tsv").write_text("same")
    (tmp_path / "a" / "sub-01" / "y.tsv").touch()
    with pytest.raises(images.Failed, match=r"in one only.*y\.tsv"):
        images.compare(tmp_path / "a", tmp_path / "b")
    with pytest.raises(images.Failed):  # nothing at all is no success
        images.compare(tmp_path / "none", tmp_path / "nothing")


def test_all_recipes_hold_the_same_files() -> None:
    dockerfile, recipe = (ROOT / name for name in ("Dockerfile", "singularity-debian.def"))
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile.read_text(), re.MULTILINE)
    files = re.search(r"%files\n(.*?)\n\n", recipe.read_text(), re.DOTALL)[1]
    assert sorted(line.split()[0] for line in files.splitlines()) == sorted(" ".join(copied).split())
    tests = [(ROOT / name).read_text().partition("%test")[2] for name in ("singularity.def", "singularity-debian.def")]
    assert tests[0].strip() == tests[1].strip() != ""


@pytest.mark.slow
def test_the_image_is_as_it_should_be(images: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs it; only where ``make image`` was run for this version."""
    if not images.has_docker() and shutil.which("podman") is None:
        pytest.skip("neither Docker nor podman here")
    if os.getuid() != 0 and not images.has_docker():
        pytest.skip("podman needs root here")
    try:
        images._inspect()
    except images.Failed as error:
        pytest.skip(str(error))
    # The second that `make image` asks for is of an idle machine; beside other tests it says nothing.
    monkeypatch.setattr(images, "VERSION_SECONDS", 10.0)
    images.check_image()
    # Nothing of the machine but the app: no network, no place to write.
    probe = """
import pathlib, socket
for attempt in (pathlib.Path("/opt/x").touch, lambda: socket.create_connection(("192.0.2.1", 9), timeout=3)):
    try:
        attempt()
    except OSError as error:
        print(error.strerror)
"""
    done = subprocess.run(
        images.in_image(["-c", probe], entrypoint=["/opt/venv/bin/python"]), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["Read-only file system", "Network is unreachable"]

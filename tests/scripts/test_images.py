"""The script that builds and checks the images; the images themselves where they are (``make image``)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


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


def test_what_pips_settings_name_is_lent_to_the_build(images: ModuleType, tmp_path: Path) -> None:
    certificates = tmp_path / "ca.crt"
    settings = {"PIP_FIND_LINKS": f"{tmp_path} /no/such/folder", "PIP_CERT": str(certificates), "PIP_INDEX_URL": "x"}
    assert images._lent(settings) == {str(tmp_path): str(tmp_path), str(certificates): "/run/host-ca.crt"}
    assert images._lent({}) == {}


@pytest.mark.parametrize("name", ["PIP_CERT", "PIP_FIND_LINKS"])
def test_a_docker_engine_is_given_no_files_of_this_machine(
    images: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    done: list[list[str]] = []
    monkeypatch.setattr(images, "has_docker", lambda: True)
    monkeypatch.setattr(images, "_do", done.append)
    monkeypatch.setattr(images, "check_image", lambda variant: None)
    monkeypatch.setattr(images, "_pip_settings", lambda: {name: str(tmp_path)})
    with pytest.raises(images.Failed, match=f"{tmp_path} cannot be used"):
        images.build("cpu")
    assert not done
    monkeypatch.setattr(images, "_pip_settings", lambda: {"PIP_EXTRA_INDEX_URL": "https://x", "PIP_FIND_LINKS": "y"})
    images.build("cpu")
    assert done[0][:2] == ["docker", "build"]


def test_a_docker_that_does_not_answer_is_heard(
    images: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho 'permission denied: docker.sock' >&2\nexit 1\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert not images.has_docker()
    with pytest.raises(images.Failed, match=r"does not answer: permission denied: docker\.sock"):
        images._need("no-such-program")
    docker.unlink()
    with pytest.raises(images.Failed, match="neither a Docker engine nor no-such-program"):
        images._need("no-such-program")


def test_a_store_of_somebody_elses_is_told_in_a_line(
    images: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied", "/var/tmp/x")

    monkeypatch.setattr(images, "build_sif", refuse)
    monkeypatch.setattr(images.sys, "argv", ["images.py", "sif"])
    assert images.main() == 1
    assert "Permission denied: '/var/tmp/x'" in capsys.readouterr().err


def test_images_of_two_users_lie_apart(images: ModuleType) -> None:
    assert "IMAGE_STORE" in os.environ or images.STORE.name.endswith(f"-{os.getuid()}")


@pytest.mark.parametrize("machine", ["aarch64", "arm64"])
def test_another_processor_is_refused_in_a_line(machine: str, tmp_path: Path) -> None:
    uname = tmp_path / "uname"
    uname.write_text(f"#!/bin/sh\necho {machine}\n")
    uname.chmod(0o755)
    done = subprocess.run(
        ["sh", str(ROOT / "scripts/install.sh"), "cpu"], cwd=tmp_path, check=False, capture_output=True, text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 1 and f"not {machine}" in done.stderr and "linux/amd64" in done.stderr


def test_the_recipe_of_debian_is_given_its_base_as_a_file(
    images: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[list[str]] = []
    monkeypatch.setattr(images, "STORE", tmp_path)
    monkeypatch.setattr(images, "_do", done.append)
    monkeypatch.setattr(images, "_base_image", lambda name, include: None)
    monkeypatch.setattr(images, "_sid_root", lambda: tmp_path / "sid")
    monkeypatch.setattr(images, "_say_size", lambda which: None)
    monkeypatch.setattr(images.shutil, "which", lambda name: None)
    monkeypatch.setattr(images, "_pip_settings", lambda: {"PIP_EXTRA_INDEX_URL": "a b", "PIP_INDEX_URL": "c"})
    (tmp_path / "sid").mkdir()
    images.build_sif_of_debian()
    recipe = (tmp_path / "sif" / "singularity-debian.def").read_text()
    assert f"Bootstrap: docker-archive\nFrom: /host{tmp_path}/sif/debian.tar\n" in recipe
    assert recipe.partition("%arguments")[2] == (ROOT / "singularity-debian.def").read_text().partition("%arguments")[2]
    assert "'--build-arg=PIP_EXTRA_INDEX_URL=a b'" in done[-1][-1]
    assert "PIP_INDEX_URL=c" not in done[-1][-1]  # the recipe knows no such argument: Apptainer would stop


@pytest.mark.parametrize(("variant", "wanted"), [("cpu", "torch==2.13.0+cpu"), ("cuda", "torch===2.13.0")])
def test_a_variant_takes_its_own_torch_and_no_other(variant: str, wanted: str, tmp_path: Path) -> None:
    """The first lines of install.sh, on a lock of one package; what follows would install."""
    script = (ROOT / "scripts" / "install.sh").read_text().partition("export PIP_")[0]
    (tmp_path / "requirements-torch.txt").write_text("torch==2.13.0 \\\n    --hash=sha256:00\n")
    subprocess.run(["sh", "-c", script, "install.sh", variant], cwd=tmp_path, check=True)
    assert (tmp_path / "requirements-torch.txt").read_text().split()[0] == wanted
    done = subprocess.run(["sh", "-c", script, "install.sh", "rocm"], cwd=tmp_path, check=False, capture_output=True)
    assert done.returncode == 1


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

#!/usr/bin/env python3
"""Build, check and run the images: with Docker where there is an engine, with buildah and podman where there is none.

    python scripts/images.py build [--variant cuda]      what `make image` does
    python scripts/images.py sif [--debian]              what `make sif` does; --debian: without a Docker image
    python scripts/images.py check [--image WHICH] DATA OUT      one session, image against checkout, byte by byte
    python scripts/images.py run [--image WHICH] DATA OUT ...    the app in the image, as strictly as it can be run

Standard library only: it runs before anything is installed. See docs/images.md.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = (ROOT / "version").read_text().strip()
#: A user's own, as /var/tmp is everybody's.
STORE = Path(os.environ.get("IMAGE_STORE") or f"/var/tmp/bidsapp-images-{os.getuid()}")
BASE = os.environ.get("BASE", "docker.io/library/python:3.11-slim-bookworm")
#: What singularity-debian.def starts from.
DEBIAN = "docker.io/library/debian:bookworm-slim"
#: The images that the app can be run in: the two Docker images, and Apptainer's files.
SIFS = {"sif": "bidsapp.sif", "sif-debian": "bidsapp-debian.sif"}
#: Unpacked bytes an image may have. A larger one is a mistake until somebody decides otherwise.
BUDGET = {"cpu": 2_500_000_000, "cuda": 9_000_000_000}
#: ``--version`` in the image, container start included: the best of three (seconds).
VERSION_SECONDS = 1.0
#: pip's settings of this machine that the build may need; none of them stays in the image.
PIP_SETTINGS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CERT")
#: Where a build finds this machine's certificates.
CERTIFICATES = "/run/host-ca.crt"
#: A user id that no image has.
ANYBODY = 54321
#: What two runs of the same version may differ in: times (logs/), and the name of the container.
NOT_COMPARED = ("logs", ".work", "dataset_description.json")


class Failed(Exception):
    """A step went wrong, or a check did not hold: the message is for the user."""


def main() -> int:
    """Carry out the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    build_parser = commands.add_parser("build", help="build the Docker image, check its size and its speed")
    build_parser.add_argument("--variant", choices=sorted(BUDGET), default="cpu")
    sif_parser = commands.add_parser("sif", help="make bidsapp.sif from the Docker image; its %%test runs")
    sif_parser.add_argument("--debian", action="store_true", help="bidsapp-debian.sif, by singularity-debian.def")
    for name in ("check", "run"):
        sub = commands.add_parser(name)
        sub.add_argument("--image", choices=[*BUDGET, *SIFS], default="cpu")
        sub.add_argument("data", type=Path)
        sub.add_argument("out", type=Path)
        sub.add_argument("arguments", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    try:
        if chosen.command == "build":
            build(chosen.variant)
        elif chosen.command == "sif":
            build_sif_of_debian() if chosen.debian else build_sif()
        elif chosen.command == "run":
            return run(chosen.data, chosen.out, chosen.arguments, image=chosen.image).returncode
        else:
            check(chosen.data, chosen.out, chosen.arguments, image=chosen.image)
    except (Failed, OSError) as error:  # a store of somebody else's, a full disk
        print(f"images: error: {error}", file=sys.stderr)
        return 1
    return 0


# --- the Docker image -----------------------------------------------------------------------------------------------


def has_docker() -> bool:
    """Whether there is a Docker engine that answers."""
    return shutil.which("docker") is not None and not _docker_problem()


def _docker_problem() -> str:
    """What the Docker on the PATH says where it cannot be used: its engine is not running, this user may not."""
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip() or f"docker info ended with {done.returncode}"


def podman(*arguments: str) -> list[str]:
    """A podman command on the store of this script."""
    return ["podman", *_store(), "--cgroup-manager", "cgroupfs", "--runtime", "runc", *arguments]


def tag(variant: str = "cpu") -> str:
    """Name of the image."""
    return "localhost/bidsapp:" + (VERSION if variant == "cpu" else f"{VERSION}-{variant}")


def plain_name(variant: str = "cpu") -> str:
    """The name that the documentation calls the image by: the last one built."""
    return "bidsapp:" + ("latest" if variant == "cpu" else variant)


def build(variant: str) -> None:
    """Build the image, then check what can be checked at once."""
    arguments = {"VARIANT": variant, "VERSION": VERSION, "REVISION": _revision(), "BASE": BASE}
    settings = _pip_settings()
    if has_docker():
        if lent := _lent(settings):
            raise Failed(
                f"docker build is shown no files of this machine: {', '.join(lent)} cannot be used (PIP_CERT, a folder"
                " in PIP_FIND_LINKS). Put the certificates into a base image (BASE=...) and name an index by its"
                " address; or build with buildah and podman, where no Docker engine answers (docs/images.md)."
            )
        given = [f"--build-arg={name}={value}" for name, value in {**arguments, **settings}.items()]
        _do(["docker", "build", *given, "-t", tag(variant), "-t", plain_name(variant), str(ROOT)])
    else:
        _need("buildah", "podman", "runc")
        _base_image()
        mounts = [f"--volume={path}:{inside}:ro" for path, inside in _lent(settings).items()]
        if "PIP_CERT" in settings:
            settings["PIP_CERT"] = CERTIFICATES
        given = [f"--build-arg={name}={value}" for name, value in {**arguments, **settings}.items()]
        # Each layer that is kept is another copy of what is installed: too many for the CUDA image's many GB.
        layers = f"--layers={str(variant == 'cpu').lower()}"
        names = ["-t", tag(variant), "-t", f"localhost/{plain_name(variant)}"]
        _do(["buildah", *_store(), "bud", "--isolation", "chroot", "--pull-never", "--network", "host", "--format",
             "docker", layers, *given, *mounts, *names, str(ROOT)])  # fmt: skip
    check_image(variant)


def check_size(variant: str = "cpu") -> None:
    """Fail where the image has grown beyond its budget."""
    size = int(_inspect(variant)["Size"])
    print(f"{tag(variant)}: {size / 1e9:.2f} GB unpacked; budget {BUDGET[variant] / 1e9:.1f} GB")
    if size > BUDGET[variant]:
        raise Failed(f"{tag(variant)} is larger than its budget. What grew: {_packages(variant)}, `make image` output.")


def check_image(variant: str = "cpu") -> None:
    """Size, labels, user, speed of ``--version``, list of packages."""
    check_size(variant)
    about = _inspect(variant)["Config"]
    user, labels = about.get("User", ""), about.get("Labels") or {}
    if user.split(":")[0] in ("", "0", "root"):
        raise Failed(f"the image runs as {user or 'root'}")
    wrong = {
        name: labels.get(f"org.opencontainers.image.{name}")
        for name, wanted in {"title": "bidsapp", "version": VERSION, "licenses": "Apache-2.0"}.items()
        if labels.get(f"org.opencontainers.image.{name}") != wanted
    }
    if wrong:
        raise Failed(f"labels of the image: {wrong}")
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(in_image(["--version"], variant=variant), capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
        if done.stdout.strip() != f"bidsapp {VERSION}":
            raise Failed(f"--version says {done.stdout!r} {done.stderr!r}")
    print(f"--version: {min(seconds):.2f} s, user {user}")
    if min(seconds) > VERSION_SECONDS:
        raise Failed(f"--version takes {min(seconds):.2f} s, more than {VERSION_SECONDS} s")
    STORE.mkdir(parents=True, exist_ok=True)
    show = in_image([], entrypoint=["cat", "/opt/bidsapp/packages.tsv"], variant=variant)
    listed = subprocess.run(show, capture_output=True, text=True, check=True)
    _packages(variant).write_text(listed.stdout)
    unknown = [line.split("\t")[1] for line in listed.stdout.splitlines()[1:] if line.endswith("\tunknown")]
    print(f"{len(listed.stdout.splitlines()) - 1} packages with licences: {_packages(variant)}"
          + (f"; without a stated licence: {', '.join(unknown)}" if unknown else ""))  # fmt: skip


def _packages(variant: str) -> Path:
    return STORE / ("packages.tsv" if variant == "cpu" else f"packages-{variant}.tsv")


def in_image(
    arguments: Sequence[str],
    mounts: Sequence[str] = (),
    *,
    entrypoint: Sequence[str] = (),
    writes: Path | None = None,
    variant: str = "cpu",
) -> list[str]:
    """Command that runs the image with no network, a read-only root, no privileges and a user nobody knows."""
    if writes is not None and os.getuid() == 0:
        os.chown(writes, ANYBODY, ANYBODY)
    user = ANYBODY if writes is None or os.getuid() == 0 else os.getuid()
    # nofile, nproc: podman asks for more than a container in a container may have.
    options = ["run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges",
               f"--user={user}:{user}", *(f"--volume={mount}" for mount in mounts),
               *([f"--entrypoint={json.dumps(list(entrypoint))}"] if entrypoint else [])]  # fmt: skip
    if has_docker():
        if entrypoint:  # docker takes the program alone there
            options[-1] = f"--entrypoint={entrypoint[0]}"
            arguments = [*entrypoint[1:], *arguments]
        return ["docker", *options, "--tmpfs=/tmp", tag(variant), *arguments]
    limits = ["--pull=never", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]
    return podman(*options, *limits, tag(variant), *arguments)


def _inspect(variant: str = "cpu") -> dict:
    command = ["docker"] if has_docker() else podman()
    done = subprocess.run([*command, "image", "inspect", tag(variant)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"no image {tag(variant)}: run `make image VARIANT={variant}` first")
    return json.loads(done.stdout)[0]


def _store() -> list[str]:
    return ["--root", str(STORE / "store"), "--runroot", str(STORE / "run"), "--storage-driver", "overlay"]


def _pip_settings() -> dict[str, str]:
    return {name: os.environ[name] for name in PIP_SETTINGS if os.environ.get(name)}


def _lent(settings: dict[str, str]) -> dict[str, str]:
    """Folders and files of this machine that pip's `settings` name, and where the build finds them.

    Not the certificates at their own path: there they would break the base's ca-certificates package.
    """
    paths = [path for name, value in settings.items() if name != "PIP_CERT" for path in value.split()]
    lent = {path: path for path in paths if Path(path).is_dir()}
    return lent | ({settings["PIP_CERT"]: CERTIFICATES} if "PIP_CERT" in settings else {})


def _base_image(name: str = BASE, include: str = "python3,python3-venv,ca-certificates") -> None:
    """The base from its registry; where that cannot be reached, a stand-in of the same name from Debian's packages."""
    if _quiet(*podman("image", "exists", name)) == 0 or _quiet(*podman("pull", name)) == 0:
        return
    print(f"{name} cannot be pulled: making a stand-in with debootstrap. Images for others need the real one.")
    _need("debootstrap")
    folder = STORE / f"rootfs-{name.rpartition('/')[2].partition(':')[0]}"
    STORE.mkdir(parents=True, exist_ok=True)
    if not (folder / "etc/debian_version").exists():
        _do(["debootstrap", "--variant=minbase", f"--include={include}", "bookworm", str(folder)])
    for path, inside in _lent(_pip_settings()).items():  # Apptainer makes no place for what is lent to it
        place = folder / inside.lstrip("/")
        place.mkdir(parents=True, exist_ok=True) if Path(path).is_dir() else place.touch()
    base = STORE / "base.tar"
    _do(["tar", "-C", str(folder), "--numeric-owner", "--exclude=./var/cache/apt/archives/*.deb",
         "--exclude=./var/lib/apt/lists/*", "-cf", str(base), "."])  # fmt: skip
    path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    _do(podman("import", "-c", path, str(base), name))
    base.unlink()


def _revision() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


# --- the Apptainer image --------------------------------------------------------------------------------------------


def build_sif() -> None:
    """Save the Docker image and build ``bidsapp.sif`` of it."""
    _inspect()
    folder = STORE / "sif"
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "bidsapp.tar"
    archive.unlink(missing_ok=True)
    save = ["docker", "save"] if has_docker() else podman("save", "--format", "docker-archive")
    _do([*save, "-o", str(archive), tag()])
    shutil.copyfile(ROOT / "singularity.def", folder / "singularity.def")
    _do(apptainer(folder, "build --force bidsapp.sif singularity.def"))
    archive.unlink()
    _say_size("sif")


def build_sif_of_debian() -> None:
    """Build ``bidsapp-debian.sif`` from a Debian base alone, as users without Docker do."""
    folder = STORE / "sif"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in _pip_settings().items() if name != "PIP_INDEX_URL"}
    lent, recipe, host = _lent(settings), ROOT / "singularity-debian.def", ""
    if not shutil.which("apptainer"):  # Debian's, in a root folder of its own: it is given the base as a file
        _base_image(DEBIAN, "ca-certificates")
        host, archive = "/host", folder / "debian.tar"
        archive.unlink(missing_ok=True)
        _do(podman("save", "--format", "docker-archive", "-o", str(archive), DEBIAN))
        swapped = recipe.read_text().replace("Bootstrap: docker\n", "Bootstrap: docker-archive\n")
        recipe = folder / "singularity-debian.def"
        recipe.write_text(swapped.replace("From: debian:bookworm-slim", f"From: {host}{archive}"))
    if "PIP_CERT" in settings:
        settings["PIP_CERT"] = CERTIFICATES
    words = ["build", "--force", *(f"--bind={host}{path}:{inside}:ro" for path, inside in lent.items()),
             *(f"--build-arg={name}={value}" for name, value in settings.items()),
             f"{host}{folder}/{SIFS['sif-debian']}", f"{host}{recipe}"]  # fmt: skip
    _do(apptainer(ROOT, shlex.join(words)))
    (folder / "debian.tar").unlink(missing_ok=True)
    _say_size("sif-debian")


def _say_size(which: str) -> None:
    path = STORE / "sif" / SIFS[which]
    print(f"{path}: {path.stat().st_size / 1e9:.2f} GB (compressed)")


def apptainer(folder: Path, command: str, *, network: bool = True) -> list[str]:
    """Command that runs Apptainer in `folder`: the machine's own, or one in a root folder of its own (``SIDROOT``).

    Without `network` the second has none, not even by mistake; the first is told so by its own options.
    """
    if shutil.which("apptainer"):
        return ["sh", "-c", f"cd {folder} && exec apptainer {command}"]
    root = _sid_root()
    (root / "w").mkdir(exist_ok=True)
    here = Path(__file__).parent
    inside = f"cd /w && exec apptainer {command}"
    options = [] if network else ["--no-network"]
    return [
        sys.executable,
        str(here / "userns.py"),
        *options,
        "bash",
        str(here / "pivot.sh"),
        str(root),
        str(folder),
        inside,
    ]


def _sid_root() -> Path:
    root = Path(os.environ.get("SIDROOT", STORE / "sidroot"))
    if not (root / "usr/bin/apptainer").exists():
        print("No apptainer here: installing Debian's in a folder of its own.")
        _need("debootstrap")
        packages = "--include=apptainer,ca-certificates,squashfs-tools"
        _do(["debootstrap", "--variant=minbase", packages, "sid", str(root)])
    for name in ("hosts", "resolv.conf"):
        shutil.copyfile(f"/etc/{name}", root / "etc" / name)
    return root


# --- the app in the images ------------------------------------------------------------------------------------------


def run(data: Path, out: Path, arguments: Sequence[str], *, image: str = "cpu") -> subprocess.CompletedProcess:
    """Run the app in an image: `data` read-only, `out` writable, nothing else of this machine."""
    data, out = data.resolve(), out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    what = ["/data", "/out", *arguments]
    if image not in SIFS:
        mounts = [f"{data}:/data:ro", f"{out}:/out"]
        return subprocess.run(in_image(what, mounts, writes=out, variant=image), check=False)
    if shutil.which("apptainer"):
        own, host = "--net --network=none", ""
    else:
        own, host = "", "/host"
    binds = f"-B {host}{data}:/data:ro -B {host}{out}:/out"
    command = f"run --containall --cleanenv --no-home {own} {binds} {SIFS[image]} {shlex.join(what)}"
    return subprocess.run(apptainer(STORE / "sif", command, network=False), check=False)


def check(data: Path, out: Path, arguments: Sequence[str], *, image: str = "cpu") -> None:
    """The participant level in the image and in the checkout give the same bytes.

    Raises
    ------
    Failed
        One of them does not run, or a file differs.
    """
    chosen = ["participant", *(arguments or ["--participant-label", "02"])]
    ours, theirs = out / "checkout", out / image
    here = [sys.executable, str(ROOT / "run.py"), str(data.resolve()), str(ours.resolve()), *chosen]
    for name, folder in (("checkout", ours), (image, theirs)):
        start = time.perf_counter()
        done = subprocess.run(here, check=False) if folder is ours else run(data, folder, chosen, image=image)
        if done.returncode:
            raise Failed(f"the app in {name} ended with {done.returncode}")
        print(f"{name}: {time.perf_counter() - start:.0f} s")
    compare(ours, theirs)


def compare(ours: Path, theirs: Path) -> None:
    """Every file of two folders, byte by byte."""
    names = [
        {
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and path.relative_to(folder).parts[0] not in NOT_COMPARED
        }
        for folder in (ours, theirs)
    ]
    different = sorted(names[0] ^ names[1])
    same, other, unread = filecmp.cmpfiles(ours, theirs, sorted(names[0] & names[1]), shallow=False)
    print(f"{len(same)} files the same")
    if not same or different or other or unread:
        raise Failed(f"in one only: {different}; other bytes: {other}; unreadable: {unread}")


# --- commands -------------------------------------------------------------------------------------------------------


def _do(command: Sequence[str]) -> None:
    print("+", " ".join(command), flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise Failed(f"{command[0]} ended with {done.returncode}")


def _quiet(*command: str) -> int:
    return subprocess.run(command, capture_output=True, check=False).returncode


def _need(*programs: str) -> None:
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        if shutil.which("docker") and (problem := _docker_problem()):
            raise Failed(f"Docker is here but does not answer: {problem}")
        raise Failed(
            f"neither a Docker engine nor {', '.join(missing)}. On Debian: apt-get install -y --no-install-recommends"
            " debootstrap podman buildah runc fuse-overlayfs uidmap"
        )


if __name__ == "__main__":
    raise SystemExit(main())

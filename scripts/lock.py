#!/usr/bin/env python3
"""Write the locks anew from pyproject.toml, every file with its hashes (``make lock``). Needs uv.

    requirements.txt        what the app needs at run time, without torch
    requirements-dev.txt    that, and what development needs
    requirements-torch.txt  torch: all its builds, the CPU build of the PyTorch project's index included
    requirements-cuda.txt   what torch's CUDA build on Linux needs besides (NVIDIA's libraries)

Versions stay as they are unless ``--upgrade`` is given.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: deepbet asks for a graphical interface that the app never opens; setuptools comes with the environment.
LEFT_OUT = ("customtkinter", "darkdetect", "setuptools")
CUDA = re.compile(r"nvidia-|cuda-|triton$")
#: Wheels of the PyTorch project's CPU index: the default index does not list them. One for each Python that was
#: built and tested with it; add the line `pip hash FILE` prints.
CPU_WHEELS = {"2.13.0": {"cp311 linux x86_64": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"}}


def main() -> None:
    """Write all four."""
    upgrade = sys.argv[1:]
    kept = {} if upgrade else pinned()
    runtime = resolve(kept, *upgrade)
    dev = resolve(kept | {name: text.split()[0] for name, text in runtime.items()}, "--extra", "dev", *upgrade)
    torch = runtime.pop("torch")
    version = torch.split()[0].partition("==")[2]
    for digest in CPU_WHEELS.get(version, {}).values():
        torch += f" \\\n    --hash=sha256:{digest}"
    cuda = {name: text for name, text in runtime.items() if CUDA.match(name)}
    write("requirements-torch.txt", {"torch": torch})
    write("requirements-cuda.txt", cuda)
    write("requirements.txt", {name: text for name, text in runtime.items() if name not in cuda})
    write("requirements-dev.txt", {n: text for n, text in dev.items() if n != "torch" and not CUDA.match(n)})


def pinned() -> dict[str, str]:
    """What the locks hold now, as ``name==version`` by name."""
    files = (ROOT / f"requirements-{name}.txt" for name in ("dev", "torch", "cuda"))
    lines = (line for path in files if path.exists() for line in path.read_text().splitlines())
    return {line.partition("==")[0]: line.split()[0] for line in lines if "==" in line}


def resolve(constraints: dict[str, str], *options: str) -> dict[str, str]:
    """Packages by name, each with its version and hashes as requirement files have them."""
    kept = ROOT / ".lock-constraints.txt"
    kept.write_text("".join(f"{one}\n" for one in sorted(constraints.values())))
    command = ["uv", "pip", "compile", "--quiet", "pyproject.toml", "--generate-hashes", "--python-version", "3.11",
               "--python-platform", "linux", "--no-annotate", "--no-header", "--no-config", "-c", kept.name,
               *options]  # fmt: skip
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        kept.unlink()
    if done.returncode:
        raise SystemExit(done.stderr)
    blocks = re.findall(r"^(\S+==(?:.|\n(?=\s))*)", done.stdout, re.MULTILINE)
    found = {block.partition("==")[0]: block.rstrip() for block in blocks}
    return {name: text for name, text in found.items() if name not in LEFT_OUT}


def write(name: str, packages: dict[str, str]) -> None:
    """Write a requirement file."""
    (ROOT / name).write_text("".join(f"{packages[key]}\n" for key in sorted(packages)))


if __name__ == "__main__":
    main()

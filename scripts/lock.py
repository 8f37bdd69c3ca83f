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
    runtime = resolve(*upgrade)
    dev = resolve("--extra", "dev", *upgrade, constraints=runtime)
    torch = runtime.pop("torch")
    version = torch.split()[0].partition("==")[2]
    for digest in CPU_WHEELS.get(version, {}).values():
        torch += f" \\\n    --hash=sha256:{digest}"
    cuda = {name: text for name, text in runtime.items() if CUDA.match(name)}
    write("requirements-torch.txt", {"torch": torch})
    write("requirements-cuda.txt", cuda)
    write("requirements.txt", {name: text for name, text in runtime.items() if name not in cuda})
    write("requirements-dev.txt", {n: text for n, text in dev.items() if n != "torch" and not CUDA.match(n)})


def resolve(*options: str, constraints: dict[str, str] | None = None) -> dict[str, str]:
    """Packages by name, each with its version and hashes as requirement files have them."""
    kept = ROOT / ".lock-constraints.txt"
    if constraints is not None:
        kept.write_text("\n".join(text.split()[0] for text in constraints.values()) + "\n")
    elif "--upgrade" not in options:
        files = ("requirements-dev.txt", "requirements-torch.txt", "requirements-cuda.txt")
        known = [ROOT / name for name in files if (ROOT / name).exists()]
        pinned = {line.split()[0] for path in known for line in path.read_text().splitlines() if "==" in line}
        kept.write_text("\n".join(sorted(pinned)) + "\n")
    else:
        kept.write_text("")
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

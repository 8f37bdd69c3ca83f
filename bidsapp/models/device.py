"""Which device the models run on."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from bidsapp.errors import UsageError

#: Makes torch count devices by NVML, which leaves a process fit to be forked: with CUDA at work in the app itself,
#: every step of a forked process would end with "Cannot re-initialize CUDA".
BY_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
#: NVML sees devices that cannot be used, too (the driver is too old for this build of torch): tried in another process.
TRY_OUT = "import torch; torch.zeros(1, device='cuda'); print(torch.cuda.device_count())"


def resolve(device: str) -> str:
    """``auto`` -> ``cuda`` where there is one, else ``cpu``; a device asked for by name must be there.

    CUDA is never initialised in this process.

    Raises
    ------
    UsageError
        A CUDA device was asked for that this machine (or this build of torch) does not have.
    """
    if device == "cpu":
        return device
    available, problem = _usable()
    if device == "auto":
        return "cuda" if available else "cpu"
    number = int(device.partition(":")[2] or 0)
    if number >= available:
        found = f"{available} CUDA device(s) found" if available else f"no CUDA device {problem or 'found'}"
        raise UsageError(f"--device {device}: {found}. Use --device auto or cpu.")
    return device


def _usable() -> tuple[int, str]:
    """How many CUDA devices work; where there are some and none does, why."""
    os.environ[BY_NVML] = "1"
    if not torch.cuda.is_available():
        return 0, ""
    tried = subprocess.run([sys.executable, "-c", TRY_OUT], capture_output=True, text=True, check=False)
    if tried.returncode == 0:
        return int(tried.stdout), ""
    told = tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"]
    return 0, f"that can be used ({told[-1].rstrip('.')})"

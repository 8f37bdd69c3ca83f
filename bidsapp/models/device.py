"""Which device the models run on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from bidsapp.errors import UsageError

Result = TypeVar("Result")

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


def or_on_cpu(run: Callable[[str], Result], device: str, what: str) -> tuple[Result, str]:
    """What a model gives on a device, or on the CPU where the device's memory does not suffice.

    Parameters
    ----------
    run : callable
        Called with the device.
    device : str
        "cpu" or "cuda[:N]".
    what : str
        The model, for the note.

    Returns
    -------
    result
        Of `run`.
    note : str
        What to tell whoever reads the results; "" where the device did it.
    """
    try:
        return run(device), ""
    except RuntimeError as error:  # torch.cuda.OutOfMemoryError, or CUDA's own where not even a context can be made
        if device == "cpu" or "out of memory" not in str(error).lower():
            raise
    return run("cpu"), f"the memory of {device} did not suffice for {what}, which ran on the CPU"

"""Which device the models run on."""

from __future__ import annotations

import torch

from bidsapp.errors import UsageError


def resolve(device: str) -> str:
    """``auto`` -> ``cuda`` where there is one, else ``cpu``; a device asked for by name must be there.

    Raises
    ------
    UsageError
        A CUDA device was asked for that this machine (or this build of torch) does not have.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if available else "cpu"
    if device == "cpu":
        return device
    number = int(device.partition(":")[2] or 0)
    if number >= available:
        found = f"{available} CUDA device(s) found" if available else "no CUDA device found"
        raise UsageError(f"--device {device}: {found}. Use --device auto or cpu.")
    return device

"""The device is found without CUDA at work in this process."""

from __future__ import annotations

import os

import pytest
import torch

from bidsapp.errors import UsageError
from bidsapp.models import device


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """A machine whose NVML sees a device; how torch was told to look is noted."""
    how: list[str | None] = []
    monkeypatch.delenv(device.BY_NVML, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not how.append(os.environ.get(device.BY_NVML)))
    yield how
    os.environ.pop(device.BY_NVML, None)


def test_devices_are_counted_without_cuda(asked: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "TRY_OUT", "print(2)")
    assert [device.resolve(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda", "cuda", "cuda:1", "cpu"]
    assert asked == ["1"] * 3
    assert not torch.cuda.is_initialized()
    with pytest.raises(UsageError, match=r"cuda:2: 2 CUDA device\(s\) found"):
        device.resolve("cuda:2")


def test_a_device_that_cannot_be_used_is_none(asked: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a driver that is too old: NVML sees it, and CUDA fails."""
    monkeypatch.setattr(device, "TRY_OUT", "raise RuntimeError('The NVIDIA driver is too old.')")
    assert device.resolve("auto") == "cpu"
    with pytest.raises(
        UsageError, match=r"no CUDA device that can be used \(RuntimeError: The NVIDIA driver is too old"
    ):
        device.resolve("cuda")


def test_without_a_device_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "subprocess", None)
    assert device.resolve("auto") == "cpu"
    with pytest.raises(UsageError, match="no CUDA device found"):
        device.resolve("cuda")


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDA error: out of memory")]
)
def test_the_cpu_does_what_the_device_has_no_memory_for(error: RuntimeError) -> None:
    def model(where: str) -> str:
        if where != "cpu":
            raise error
        return f"done on the {where}"

    assert device.or_on_cpu(model, "cuda:1", "the model") == (
        "done on the cpu", "the memory of cuda:1 did not suffice for the model, which ran on the CPU",
    )  # fmt: skip
    assert device.or_on_cpu(model, "cpu", "the model") == ("done on the cpu", "")


@pytest.mark.parametrize(("where", "said"), [("cuda", "an illegal memory access"), ("cpu", "out of memory")])
def test_other_errors_are_errors(where: str, said: str) -> None:
    def model(_where: str) -> None:
        raise RuntimeError(said)

    with pytest.raises(RuntimeError, match=said):
        device.or_on_cpu(model, where, "the model")

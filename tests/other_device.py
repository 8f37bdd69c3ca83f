"""A stand-in for a GPU: tensors that say they are elsewhere, and refuse what tensors of a GPU refuse.

They are computed on the CPU, so that results are the same; but whoever mixes them with the CPU's, or reads them with
NumPy, is told, as on a GPU. The device is called "meta", the one that every build of torch knows beside the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "meta"
#: What may have tensors of both: copies, and indices, which CUDA takes from the CPU, too.
CROSSING = ("aten._to_copy", "aten.copy_", "aten.index", "aten.index_put_", "aten._index_put_impl_")


class Elsewhere(torch.Tensor):
    """A tensor of the other device; `inner` is what it holds."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Elsewhere:
        out = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=NAME, requires_grad=inner.requires_grad,
        )  # fmt: skip
        out.inner = inner
        return out

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """For what no tensor of the device takes part in: those that make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def other_device() -> Iterator[str]:
    """Within it, the name that is yielded is that of a device."""
    new_tensor = torch.tensor

    def tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        made = new_tensor(data, **options)  # the mode does not see where torch.tensor itself puts it
        return made if device is None else made.to(device)

    with pytest.MonkeyPatch.context() as patch, _Mode():
        patch.setattr(torch, "tensor", tensor)
        patch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # of known devices alone
        yield NAME


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = any(isinstance(one, Elsewhere) for one in tensors)
    here = any(not isinstance(one, Elsewhere) and one.dim() for one in tensors)
    if there and here and not str(func).startswith(tuple(f"{name}." for name in CROSSING)):
        raise RuntimeError(f"tensors of two devices: {func}")
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == NAME
        kwargs = kwargs | {"device": "cpu"}
    elif str(func).startswith("aten.copy_."):
        there = isinstance(args[0], Elsewhere)
    plain = tree_map(_inner, args)
    out = func(*plain, **tree_map(_inner, kwargs))
    if func._schema.is_mutable and args and out is _inner(args[0]):
        return args[0]  # changed in place
    return tree_map(lambda one: Elsewhere(one) if there and isinstance(one, torch.Tensor) else one, out)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Elsewhere) else value

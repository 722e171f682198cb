"""A guard under which code that makes the host wait for the device fails, also on a machine without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC2701
from torch.utils._pytree import tree_leaves  # noqa: PLC2701

aten = torch.ops.aten

# Operators whose result, or its shape, the host must read from the device's memory.
READING = {
    aten._local_scalar_dense,
    aten.item,
    aten.is_nonzero,
    aten.equal,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.repeat_interleave,
    aten.bincount,
}
# Functions that make a tensor from numbers of the host, and copy it to a device from memory that is not pinned.
# `from_numpy` stays on the host.
FROM_HOST = {"tensor", "as_tensor", "new_tensor"}
# Methods that read memory without any operator if it happens to be the host's, as it is in tests without a device.
HOST_METHODS = {
    "numpy",
    "tolist",
    "item",
    "cpu",
    "__array__",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__complex__",
}


class HostWaits(AssertionError):
    """Something made the host wait for the device."""


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in READING and not (packet is aten.repeat_interleave and kwargs.get("output_size") is not None):
            raise HostWaits(f"{func} makes the host wait for the device")
        if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_) and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            raise HostWaits(f"{func} with a boolean mask makes the host wait: use torch.where")
        result = func(*args, **kwargs)
        if packet in (aten._to_copy, aten.copy_):
            source = args[1] if packet is aten.copy_ else args[0]
            target = args[0] if packet is aten.copy_ else result
            asynchronous = kwargs.get("non_blocking", len(args) > 2 and packet is aten.copy_ and args[2])
            if source.device != target.device and not asynchronous:
                raise HostWaits(f"a copy from {source.device} to {target.device} makes the host wait: non_blocking")
        return result


class _Methods(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        to_host = name == "to" and any(str(leaf) == "cpu" for leaf in tree_leaves((args[1:], kwargs)))
        if (name in HOST_METHODS and args and isinstance(args[0], Tensor)) or to_host:
            raise HostWaits(f"Tensor.{name} makes the host wait for the device")
        if name in FROM_HOST and not (name == "as_tensor" and isinstance(args[0], Tensor)):
            raise HostWaits(
                f"{name} copies numbers of the host to the device, which makes the host wait: fill a tensor"
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def no_wait() -> Iterator[None]:
    """Raises HostWaits where the block reads a tensor's value or data-dependent shape; on a GPU any synchronisation."""
    cuda = torch.cuda.is_available()
    if cuda:
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
    try:
        with _Methods(), _Operators():
            yield
    finally:
        if cuda:
            torch.cuda.set_sync_debug_mode(mode)

"""Sorting of floating-point numbers by their bits: torch sorts integers by radix, several times as fast as floats."""

from __future__ import annotations

import torch
from torch import Tensor

INTEGERS = {torch.float64: torch.int64, torch.float32: torch.int32}
RADIX = 32_768  # numbers from which torch sorts integers by radix on a CPU


@torch.no_grad()
def sorted_values(x: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of a vector in ascending order, and their places in it; equal numbers keep their order.

    A positive float grows with its bits, read as an integer. A negative one falls with them, so all bits but the sign
    are inverted.
    """
    if x.numel() < RADIX or x.dtype not in INTEGERS:
        values, order = x.sort(stable=True)
        return values, order
    bits = (x + 0.0).view(INTEGERS[x.dtype])  # the sum turns -0 into 0: floats compare the two as equal
    _exchange_(bits)
    keys, order = bits.sort(stable=True)
    return _exchange_(keys).view(x.dtype), order


def _exchange_(bits: Tensor) -> Tensor:
    """Exchange the bits of floats and the integers that are ordered as the floats are, in place."""
    info = torch.iinfo(bits.dtype)
    return bits.bitwise_xor_((bits >> (info.bits - 1)).bitwise_and_(info.max))

"""A CUDA graph's stand-in for machines without a GPU: it records the operators of a function, and runs them again.

A graph knows only operators and addresses. It repeats neither Python code, nor numbers that the host passed, nor
tensors that the host allocated anew. `RecordedGraph` has the same limits: it records below autograd, keeps every tensor
that an operator read or wrote, and a replay runs the same operators on the same tensors. A test compares a replay with
the next eager update: if they differ, the update depends on something that a graph does not know.

What a graph cannot hold is refused while it is recorded (`CannotCapture`): random draws from a generator that is not
registered, values that the host reads, and tensors made from the host's data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from no_wait import no_wait
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC2701
from torch.utils._pytree import tree_leaves  # noqa: PLC2701

T = TypeVar("T")
aten = torch.ops.aten

# Operators that make a tensor from the host's data: on a device they copy from memory that changes or is freed.
FROM_HOST = {aten.lift_fresh, aten.lift_fresh_copy, aten.lift}


class CannotCapture(AssertionError):
    """A graph cannot hold this operator."""


class RecordedGraph(TorchDispatchMode):
    """Records the operators of a function, and runs them again on the same tensors.

    Args:
        generators: The random generators that a graph would register; every random draw must use one of them.
    """

    def __init__(self, generators: Sequence[Generator]) -> None:
        super().__init__()
        self.generators = {generator._cdata for generator in generators}
        self.operators: list[tuple[Any, Any, dict[str, Any], list[tuple[int, Tensor]]]] = []

    def record(self, function: Callable[[], T]) -> T:
        """Run a function, and keep its operators with their tensors."""
        with no_wait(), self:
            return function()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in FROM_HOST:
            raise CannotCapture(f"{func} copies the host's data; allocate the tensor once, and fill it")
        inputs = tree_leaves((args, kwargs))
        if torch.Tag.nondeterministic_seeded in func.tags:
            used = [leaf for leaf in inputs if isinstance(leaf, Generator)]
            if not used:
                raise CannotCapture(f"{func} draws from the global generator")
            if any(generator._cdata not in self.generators for generator in used):
                raise CannotCapture(f"{func} draws from a generator that the graph does not know")
        result = func(*args, **kwargs)
        known = {leaf.untyped_storage().data_ptr() for leaf in inputs if isinstance(leaf, Tensor)}
        # Results that share memory with an argument (views, and operators in place) need no copy.
        fresh = [
            (place, leaf)
            for place, leaf in enumerate(tree_leaves(result))
            if isinstance(leaf, Tensor) and (leaf.numel() == 0 or leaf.untyped_storage().data_ptr() not in known)
        ]
        self.operators.append((func, args, kwargs, fresh))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Run the recorded operators again, with the recorded arguments, into the recorded results."""
        for func, args, kwargs, fresh in self.operators:
            leaves = tree_leaves(func(*args, **kwargs))
            for place, tensor in fresh:
                tensor.copy_(leaves[place])

"""Batches, and the interface of memories: they store experience and yield a batch for each pending update."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from ..common.moved import renamed
from ..common.spaces import Step
from .clock import Sampling

__all__ = ["Batch", "Memory"]


@dataclass(frozen=True, eq=False)
class Batch:
    """B sampled transitions, on the memory's device. Iterating over a batch yields its tensors in this order."""

    obs: Tensor  # [B, *obs], as stored: uint8 pixels or float32
    action: Tensor  # [B] int64 or [B, A] float32
    reward: Tensor  # [B] float32, sum of gamma^j clip(r_j) over the window's m <= n steps
    discount: Tensor  # [B] float32, gamma^m, or 0 where the window ends by termination
    next_obs: Tensor  # [B, *obs], m steps later; an episode's final observation where the window ends by truncation
    weight: Tensor  # [B] float32 importance weights, ones if sampled uniformly
    index: Tensor  # [B] int64 ordinals, for `Memory.update_priorities`

    def __iter__(self) -> Iterator[Tensor]:
        yield from vars(self).values()

    def take(self, index: slice | Tensor) -> Self:
        """The transitions at `index`."""
        return type(self)(*(part[index] for part in self))

    def replace(self, **changes: Tensor) -> Self:
        """A copy with other tensors for the named fields."""
        return replace(self, **changes)

    if not TYPE_CHECKING:  # so that a type checker still reports an unknown attribute
        __getattr__ = renamed("Batch", {"_replace": "replace"})  # batches were named tuples in earlier versions

    @classmethod
    def of(
        cls,
        obs: Any,
        action: Any,
        reward: Any,
        next_obs: Any,
        terminated: Any,
        *,
        gamma: float = 0.99,
        device: torch.device | str = "cpu",
    ) -> Batch:
        """A batch of one-step transitions from arrays, such as those of another library's replay; `terminated` stops
        bootstrapping."""
        obs, next_obs = (torch.as_tensor(x, device=device) for x in (obs, next_obs))
        action = torch.as_tensor(action, device=device)
        action = action.float() if action.is_floating_point() else action.long()
        reward = torch.as_tensor(reward, dtype=torch.float32, device=device)
        discount = gamma * (1.0 - torch.as_tensor(terminated, dtype=torch.float32, device=device))
        index = torch.arange(len(reward), device=device)
        return Batch(obs, action, reward, discount, next_obs, torch.ones_like(reward), index)


class Memory(Protocol):
    """A memory of `num_envs` environments that step together. `Replay`, `Rollout` and `Samples` are memories.

    A subclass implements the abstract methods and inherits the others, which only some memories need. A memory whose
    content is too large for `state_dict` also implements `checkpoint.Chunked`.
    """

    num_envs: int

    @abstractmethod
    def __len__(self) -> int:
        """The number of stored transitions."""

    @abstractmethod
    def start(self, obs: NDArray[Any]) -> None:
        """Store the first observations [E, *obs]; called once, before `add`."""

    @abstractmethod
    def add(self, action: NDArray[Any], step: Step) -> None:
        """Store the result of `action`, one step of every environment; all arrays are on the host."""

    @abstractmethod
    def pending(self, sampling: Sampling) -> int:
        """Maximum number of draws that the next call of `draws` prepares."""

    @abstractmethod
    def draws(self, sampling: Sampling) -> Iterator[Hashable]:
        """Prepare a draw for each pending update, or for a limited number of them: write what the host knows to the
        device, where `draw` reads it. Yields a key; draws of equal keys run the same operators."""

    @abstractmethod
    def draw(self) -> Batch:
        """The batch of the update that `draws` prepared. Tensors in, tensors out: a graph can hold it."""

    def batches(self, sampling: Sampling) -> Iterator[Batch]:
        """Yield one batch for each pending update, or for a limited number of them."""
        for _ in self.draws(sampling):
            yield self.draw()

    def learnt(self) -> Iterator[Tensor]:
        """The tensors that `update_priorities` changes."""
        return iter(())

    def generators(self) -> Iterator[Generator]:
        """The random generators that `draw` uses."""
        return iter(())

    @abstractmethod
    def sample(
        self, batch_size: int, n_step: int = 1, gamma: float = 0.99, generator: Generator | None = None
    ) -> Batch:
        """Draw a batch. With a given generator, the memory's state does not change.

        Raises:
            RuntimeError: The memory holds nothing that can be sampled.
        """

    @abstractmethod
    def clear(self) -> None:
        """Forget all transitions and the pending updates."""

    @abstractmethod
    def reseed(self, seed: int) -> None:
        """Seed the memory's generator anew."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The state of the memory; valid between two calls of `batches`."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`.

        Raises:
            ValueError: The state belongs to a memory of another kind or size.
        """

    def has_pending(self, sampling: Sampling) -> bool:
        """True if updates are pending that must be made before the next step."""
        return self.pending(sampling) > 0

    def update_priorities(self, index: Tensor, td_error: Tensor) -> None:
        """Set the priorities of a batch [B] from the errors of its update [B]; by default, there are no priorities."""
        return None

"""The memory of a supervised learner on a stream: each minibatch for its updates, and the latest samples for observers.

For the training loop it is a memory like `Replay` and `Rollout`; only the batches differ: the newest samples with their
targets, one sample of every environment.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from ..common.memory import refuse_too_large
from ..common.spaces import ActionSpec, ObservationSpec, Step
from .clock import Sampling
from .memory import Batch, Memory


class Samples(Memory):
    """A ring buffer of the latest `capacity` samples of a stream, in complete minibatches.

    A sample is a row of a `Batch` whose `action` is the target: a class, or a vector of numbers. A sample has no
    successor, so its discount is 0 and its next observation is its own observation. Its reward is the target as a
    single number (the class, or the mean of the vector), so that it is also the target of a value.

    Args:
        observation, action: Specs of observations and targets.
        capacity: Samples kept for `sample`; at least the newest minibatch is kept.
        num_envs: Samples in a minibatch, one of every environment.
        updates: Consecutive updates on each minibatch.

    Raises:
        ValueError: A size is out of range.
        TooLarge: The memory does not fit on the device.
    """

    def __init__(
        self,
        observation: ObservationSpec,
        action: ActionSpec,
        *,
        capacity: int,
        num_envs: int,
        updates: int,
        device: torch.device,
        seed: int,
    ) -> None:
        if min(capacity, num_envs, updates) < 1:
            raise ValueError("a stream's memory needs at least one sample, environment and update")
        self.num_envs, self.updates, self.device = num_envs, updates, device
        self.rows = -(-capacity // num_envs)
        refuse_too_large(
            f"a memory of {self.rows * num_envs:,} samples",
            self.size_of(observation, action, capacity, num_envs),
            device,
            "give a smaller --agent.buffer-size or --num-envs",
        )
        self.generator = Generator(device).manual_seed(seed)
        shape, kind = (self.rows, num_envs), torch.int64 if action.discrete else torch.float32
        self.obs = torch.zeros((*shape, *observation.shape), dtype=observation.dtype, device=device)
        self.target = torch.zeros(shape if action.discrete else (*shape, action.size), dtype=kind, device=device)
        # Steps are written through numpy views of the same memory, which takes a tenth of copies between tensors.
        self._views = (self.obs.numpy(), self.target.numpy()) if device.type == "cpu" else None
        self.seen = 0  # minibatches so far
        self._pending = 0  # pending updates on the newest minibatch
        self.latest: NDArray[Any] | None = None
        self._zeros = torch.zeros(num_envs, device=device)
        self._ones = torch.ones(num_envs, device=device)
        self._index = torch.arange(num_envs, device=device)
        self._row = torch.zeros(1, dtype=torch.int64, device=device)  # row of the newest minibatch

    @staticmethod
    def size_of(observation: ObservationSpec, action: ActionSpec, capacity: int, num_envs: int) -> int:
        """Bytes that such a memory would take."""
        each = math.prod(observation.shape) * observation.dtype.itemsize + 8 * (1 if action.discrete else action.size)
        return -(-capacity // num_envs) * num_envs * each

    def __len__(self) -> int:
        return min(self.seen, self.rows) * self.num_envs

    def start(self, obs: NDArray[Any]) -> None:
        """Store the first observations [E, *obs]."""
        self.latest = obs.copy()

    def add(self, action: Any, step: Step) -> None:
        """Store one minibatch: the previous observations and their targets.

        Raises:
            ValueError: The environment gives no targets.
        """
        if step.target is None:
            raise ValueError(NO_TARGETS.format(agent="supervised", env="this environment"))
        assert self.latest is not None, "a stream's memory is started before anything is added to it"
        row = self.seen % self.rows
        if self._views is not None:
            self._views[0][row], self._views[1][row] = self.latest, step.target
        else:
            for place, content in ((self.obs, self.latest), (self.target, step.target)):
                place[row].copy_(torch.from_numpy(np.ascontiguousarray(content)), non_blocking=True)
        self.latest = step.obs.copy()
        self.seen += 1
        self._pending = self.updates

    def draws(self, sampling: Sampling) -> Iterator[Hashable]:
        """Prepare the newest minibatch once for each of its pending updates."""
        self._row.fill_((self.seen - 1) % self.rows)
        while self._pending:
            self._pending -= 1
            yield None

    def draw(self) -> Batch:
        obs, target = (ring.index_select(0, self._row).squeeze(0) for ring in (self.obs, self.target))
        return Batch(obs, target, _number(target), self._zeros, obs, self._ones, self._index)

    def pending(self, sampling: Sampling) -> int:
        return self._pending

    def clear(self) -> None:
        """Forget all samples and pending updates; only the newest minibatch stays, for observers."""
        self._pending = 0
        if self.seen:
            newest = (self.seen - 1) % self.rows
            self.obs[0].copy_(self.obs[newest])
            self.target[0].copy_(self.target[newest])
            self.seen = 1

    def sample(
        self, batch_size: int, n_step: int = 1, gamma: float = 0.99, generator: Generator | None = None
    ) -> Batch:
        """Draw some of the latest samples with replacement; with a given generator, the memory's state does not change.

        `n_step` and `gamma` have no effect: samples have no successors.

        Raises:
            RuntimeError: The memory is empty.
        """
        if not self.seen:
            raise RuntimeError("nothing to sample: no minibatch has been seen yet")
        index = torch.randint(len(self), (batch_size,), generator=generator or self.generator, device=self.device)
        obs, target = self.obs.flatten(0, 1)[index], self.target.flatten(0, 1)[index]
        zeros = torch.zeros(batch_size, device=self.device)
        return Batch(obs, target, _number(target), zeros, obs, zeros + 1, index)

    # ------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """The whole state; valid between two calls of `batches`, where a run is saved."""
        filled = min(self.seen, self.rows)
        return {
            "obs": self.obs[:filled].clone(),
            "target": self.target[:filled].clone(),
            "seen": self.seen,
            "owed": self._pending,  # a key of checkpoints
            "generator": self.generator.get_state(),
            "made_for": self._made_for(),
            "latest": None if self.latest is None else torch.from_numpy(self.latest.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`.

        Raises:
            ValueError: The state belongs to a memory of another size or on another kind of device.
        """
        if (saved := state["made_for"] | {"device": self.device.type}) != self._made_for():
            raise ValueError(
                f"the saved samples are of {saved['num_envs']} environments and {saved['rows']} "
                f"minibatches, not of {self.num_envs} and {self.rows}"
            )
        filled = min(state["seen"], self.rows)
        self.obs[:filled].copy_(state["obs"])
        self.target[:filled].copy_(state["target"])
        self.seen = state["seen"]
        self._pending = state["owed"]  # a key of checkpoints
        self.generator.set_state(state["generator"].cpu())
        self.latest = None if state["latest"] is None else state["latest"].numpy()

    def reseed(self, seed: int) -> None:
        """Seed the memory's generator anew."""
        self.generator.manual_seed(seed)

    def _made_for(self) -> dict[str, Any]:
        return {"num_envs": self.num_envs, "rows": self.rows, "device": self.device.type}


NO_TARGETS = (
    "{agent} learns from targets, and {env} gives none: choose an environment of the suite stream, "
    "such as --env stream/RandomLabels, or another --agent"
)


def _number(target: Tensor) -> Tensor:
    """Targets [B] or [B, K] → one number for each [B] float32."""
    return target.float() if target.ndim == 1 else target.mean(dim=1)

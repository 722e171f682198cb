"""On-policy memory: the latest steps of all environments, used for a few epochs of updates and then discarded.

For the training loop it is a memory like `Replay`; only the batches, and when they are available, differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from ..common.memory import refuse_too_large
from ..common.moved import moved
from ..common.spaces import ActionSpec, ObservationSpec, Step
from .clock import Sampling
from .memory import Batch, Memory

__getattr__ = moved(__name__, {"Judged": "pliant.agents.rollout.Evaluation"})  # former name


@dataclass(frozen=True, eq=False)
class RolloutBatch(Batch):
    """B steps of the present rollout: a batch of one-step transitions, and the values that the policy loss needs.

    Actions are as sampled, not clipped to the environment's bounds. Rewards are as used for training (clipped or
    scaled). Weights are ones.
    """

    log_prob: Tensor  # [B], of the action under the policy that took it
    value: Tensor  # [B], of the observation, by the critic before the updates of this rollout
    advantage: Tensor  # [B]
    ret: Tensor  # [B], target of the value: advantage + value


class Evaluation(NamedTuple):
    """The agent's log-probabilities and values for T steps of E environments, computed when the rollout is complete,
    before the updates."""

    log_prob: Tensor  # [T, E]
    value: Tensor  # [T, E], of obs
    next_value: Tensor  # [T, E], of next_obs


class Rollout(Memory):
    """The latest `length` steps of `num_envs` environments.

    Args:
        length: Steps of every environment in a rollout; when it is full, `batches` makes `epochs` passes over it.
        batch_size: Steps in a minibatch. The last minibatch of a pass may be smaller; if it has a single step, it is
            skipped.
        evaluate: Computes log-probabilities and values of a complete rollout, from its observations, actions and next
            observations [T, E, ...].
        scale: Maps rewards [T, E], episode ends [T, E] and a state carried between rollouts [E] to the rewards that
            are used for training.
        finish: Called with all observations [T * E, *obs] after the updates of a rollout.

    Raises:
        ValueError: A size is out of range.
        TooLarge: The rollout does not fit into memory.
    """

    def __init__(
        self,
        observation: ObservationSpec,
        action: ActionSpec,
        *,
        length: int,
        num_envs: int,
        batch_size: int,
        epochs: int,
        lam: float,
        device: torch.device,
        seed: int,
        evaluate: Callable[[Tensor, Tensor, Tensor], Evaluation],
        scale: Callable[[Tensor, Tensor, Tensor], Tensor],
        finish: Callable[[Tensor], None],
    ) -> None:
        if min(length, num_envs, batch_size, epochs) < 1:
            raise ValueError("a rollout needs at least one step, environment, epoch and transition in a batch")
        refuse_too_large(
            f"a rollout of {length:,} steps of {num_envs:,} environments",
            self.size_of(observation, action, length, num_envs),
            "cpu",
            "give a smaller --agent.rollout or --num-envs",
        )
        self.length, self.num_envs, self.epochs, self.lam = length, num_envs, epochs, lam
        self.batch_size = min(batch_size, length * num_envs)
        self.device = device
        self.evaluate, self.scale, self.finish = evaluate, scale, finish
        self.generator = Generator(device).manual_seed(seed)
        shape, each = (length, num_envs), (length, num_envs, *observation.shape)
        kind = torch.int64 if action.discrete else torch.float32
        # On the host until the rollout is complete. Steps are written through numpy views of the same memory, which
        # takes a tenth of copies between tensors.
        self.obs = torch.zeros(each, dtype=observation.dtype)
        self.next_obs = torch.zeros(each, dtype=observation.dtype)
        self.action = torch.zeros(shape if action.discrete else (*shape, action.size), dtype=kind)
        self.reward = torch.zeros(shape)
        self.terminated = torch.zeros(shape, dtype=torch.bool)
        self.over = torch.zeros(shape, dtype=torch.bool)
        self._views: dict[str, NDArray[Any]] = {name: getattr(self, name).numpy() for name in NAMES}
        self.carry = torch.zeros(num_envs, device=device)
        self.filled = 0
        self._places = torch.zeros(self.batch_size, dtype=torch.int64, device=device)
        self._drawn = self._places  # the steps of the prepared minibatch
        self.held: RolloutBatch | None = None  # the last complete rollout, for observers
        self.latest: NDArray[Any] | None = None

    @staticmethod
    def size_of(observation: ObservationSpec, action: ActionSpec, length: int, num_envs: int) -> int:
        """Bytes that a rollout takes during updates: the recorded steps, and a copy of them."""
        observed = 2 * math.prod(observation.shape) * observation.dtype.itemsize
        acted = 8 if action.discrete else 4 * action.size
        return 2 * length * num_envs * (observed + acted + 32)

    def __len__(self) -> int:
        return self.filled * self.num_envs

    def start(self, obs: NDArray[Any]) -> None:
        """Store the first observations [E, *obs]."""
        self.latest = obs.copy()

    def add(self, action: Any, step: Step) -> None:
        """Store one step of every environment: the actions and their results."""
        assert self.latest is not None, "a rollout is started before anything is added to it"
        t = self.filled
        views = self._views
        views["obs"][t] = self.latest
        views["next_obs"][t] = step.final_obs
        views["action"][t] = action
        views["reward"][t] = step.reward
        views["terminated"][t] = step.terminated
        np.logical_or(step.terminated, step.truncated, out=views["over"][t])
        self.latest = step.obs.copy()
        self.filled += 1

    def draws(self, sampling: Sampling) -> Iterator[Hashable]:
        """Prepare nothing until the rollout is full; then `epochs` passes of minibatches, after which it is empty."""
        if self.filled < self.length:
            return
        whole = self._hold(self.complete(sampling.gamma))
        size = len(whole.reward)
        for _ in range(self.epochs):
            order = torch.randperm(size, generator=self.generator, device=self.device)
            for begin in range(0, size, self.batch_size):
                places = order[begin : begin + self.batch_size]
                if len(places) > 1 or size == 1:
                    self._drawn = self._places[: len(places)].copy_(places)
                    yield len(places)
                    if not self.filled:  # an intervention cleared the memory: skip the rest
                        return
        self.finish(whole.obs)
        self.filled = 0

    def draw(self) -> RolloutBatch:
        assert self.held is not None
        return self.held.take(self._drawn)

    def _hold(self, whole: RolloutBatch) -> RolloutBatch:
        """Keep a complete rollout. Its tensors stay where the first one's are, so that a captured graph finds them."""
        if self.held is None:
            self.held = whole
        for place, content in zip(self.held, whole, strict=True):
            if place is not content:
                place.copy_(content)
        return self.held

    def pending(self, sampling: Sampling) -> int:
        size = self.length * self.num_envs
        return self.epochs * -(-size // self.batch_size) if self.filled == self.length else 0

    def clear(self) -> None:
        """Forget the steps recorded so far, and the remaining minibatches of a rollout in use. Observers can still
        sample the last complete rollout."""
        self.filled = 0
        self.carry.zero_()

    def complete(self, gamma: float) -> RolloutBatch:
        """All steps, with generalised advantage estimates (Schulman et al. 2016, 1506.02438, eq. 16).

        A truncated episode is bootstrapped from its final observation; a terminated one is not.
        """
        obs, next_obs, action, reward, terminated, over = (self._present(name) for name in NAMES)
        reward = self.scale(reward, over, self.carry)
        evaluation = self.evaluate(obs, action, next_obs)
        discount = gamma * (~terminated).float()
        delta = reward + discount * evaluation.next_value - evaluation.value
        running = torch.zeros(self.num_envs, device=self.device)
        going = gamma * self.lam * (~over).float()
        backwards: list[Tensor] = []
        for error, weight in zip(reversed(delta.unbind()), reversed(going.unbind()), strict=True):
            running = error + weight * running
            backwards.append(running)
        advantage = torch.stack(backwards[::-1])
        index = torch.arange(self.length * self.num_envs, device=self.device)
        return RolloutBatch(
            obs=obs.flatten(0, 1),
            action=action.flatten(0, 1),
            reward=reward.flatten(),
            discount=discount.flatten(),
            next_obs=next_obs.flatten(0, 1),
            weight=torch.ones_like(reward).flatten(),
            index=index,
            log_prob=evaluation.log_prob.flatten(),
            value=evaluation.value.flatten(),
            advantage=advantage.flatten(),
            ret=(advantage + evaluation.value).flatten(),
        )

    def _present(self, name: str) -> Tensor:
        """A copy of one recorded tensor, on the device; the next rollout does not overwrite it."""
        record: Tensor = getattr(self, name)
        if self.device.type == "cpu":
            return record.clone()
        # Only copies from pinned memory are asynchronous; the allocator keeps the memory until the copy is done.
        pinned = self.device.type == "cuda"
        return (record.pin_memory() if pinned else record.clone()).to(self.device, non_blocking=pinned)

    def sample(
        self, batch_size: int, n_step: int = 1, gamma: float = 0.99, generator: Generator | None = None
    ) -> RolloutBatch:
        """Draw steps of the last complete rollout; with a given generator, the memory's state does not change.

        Raises:
            RuntimeError: No rollout is complete yet.
        """
        if self.held is None:
            raise RuntimeError("nothing to sample: no rollout is complete yet")
        size = len(self.held.reward)
        places = torch.randint(size, (batch_size,), generator=generator or self.generator, device=self.device)
        return self.held.take(places)

    # ------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """The whole state; valid between two calls of `batches`, where a run is saved."""
        tensors = {name: getattr(self, name)[: self.filled].clone() for name in NAMES}
        held = None if self.held is None else [part.clone() for part in self.held]
        return {
            "tensors": tensors,
            "filled": self.filled,
            "held": held,
            "carry": self.carry.clone(),
            "generator": self.generator.get_state(),
            "made_for": self._made_for(),
            "latest": None if self.latest is None else torch.from_numpy(self.latest.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`.

        Raises:
            ValueError: The state belongs to a rollout of another size.
        """
        saved = state["made_for"]
        saved = dict(zip(("length", "num_envs"), saved, strict=True)) if isinstance(saved, list) else saved
        if saved != self._made_for():
            raise ValueError(
                f"the saved rollout is of {saved['length']} steps of {saved['num_envs']} environments, "
                f"not of {self.length} of {self.num_envs}"
            )
        self.filled = state["filled"]
        for name in NAMES:
            getattr(self, name)[: self.filled].copy_(state["tensors"][name])
        self.carry.copy_(state["carry"])
        held = state["held"]
        if held is None:
            self.held = None
        else:
            self._hold(RolloutBatch(*(part.to(self.device) for part in held)))
        self.generator.set_state(state["generator"].cpu())
        self.latest = None if state["latest"] is None else state["latest"].numpy()

    def reseed(self, seed: int) -> None:
        """Seed the rollout's generator anew."""
        self.generator.manual_seed(seed)

    def _made_for(self) -> dict[str, int]:
        return {"length": self.length, "num_envs": self.num_envs}


NAMES = ("obs", "next_obs", "action", "reward", "terminated", "over")

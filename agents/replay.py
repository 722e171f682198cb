"""The replay: an agent's transitions, and the number of pending updates.

Two ring buffers on the chosen device. The ring of *frames* holds every frame once. An observation is `stack` slot
numbers in it, so that an Atari transition takes 7.2 kB rather than 56. The ring of *rows* holds one packed row per
transition: the slots of its observation and of the next frame, reward, end flags, action. A transition's ordinal is the
number of transitions stored before it. All environments step together, so the successor of transition i in the same
environment is transition i + num_envs.

* Every frame is stored as soon as it is observed. So the newest transition can be sampled at once, and the final
  observation of an episode is kept: the next observation of a truncated transition is exact.
* n-step windows are assembled when they are sampled, so n and the discount may be annealed. A window stops at the first
  `terminated | truncated`, inclusive. Windows that end beyond the newest transition are not sampled: the newest
  (n - 1) * num_envs transitions wait, whether or not the end of an episode would shorten their window.
* `clear` makes the present the first transition that can be sampled. It overwrites nothing, so the frames that the
  running episodes still need are kept, and chunks of a checkpoint keep their versions.
* The replay has its own random generator. Neither storing nor sampling makes the host wait for the device.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common.memory import USABLE, TooLarge, available_memory, in_bytes
from ..common.spaces import ActionSpec, ObservationSpec, Step
from .clock import Sampling
from .memory import Batch, Memory
from .priorities import Priorities, PrioritisedConfig

__all__ = ["Batch", "PrioritisedConfig", "Replay", "ReplayTooLarge"]

SHORT_EPISODE = 64  # minimum mean episode length at which final frames fit in addition to `capacity` transitions
NONE = np.empty(0, np.int64)
AT_ONCE = 256  # maximum number of updates between two checks for a stop request


class ReplayTooLarge(TooLarge):
    """A replay that does not fit into the memory of its device."""


class _Layout(NamedTuple):
    """Sizes of a replay, known before anything is allocated."""

    transitions: int  # length of the ring of rows: `capacity`, rounded up to whole steps of all environments
    slots: int  # length of the ring of frames; one more slot holds the zeros that pad stacks
    frame: int  # numbers in a frame
    row: int  # int32 numbers in a row
    steps: int  # length of the host's ring of steps
    nbytes: int


def _layout(observation: ObservationSpec, action: ActionSpec, capacity: int, envs: int, prioritised: bool) -> _Layout:
    stack, frame = observation.stack, prod(observation.frame_shape)
    steps = -(-capacity // envs)
    # One frame for every transition, for the older frames of the first stack and for the newest observation, and one
    # for the final observation of every episode. The minimum keeps the newest stacks valid even if all environments
    # reset at every step.
    slots = max((steps + stack) * envs + capacity // SHORT_EPISODE, 2 * envs * (stack + 1))
    row = stack + 4 + (1 if action.discrete else action.size)
    transitions = steps * envs
    nbytes = (slots + 1) * frame * observation.dtype.itemsize + transitions * row * 4 + (steps + 1 + envs * stack) * 8
    nbytes += envs * row * 4 + 20  # and the numbers that a draw reads
    nbytes += Priorities.size_of(transitions) if prioritised else 0
    return _Layout(transitions, slots, frame, row, steps + 1, nbytes)


class Replay(Memory):
    """A replay of the newest `capacity` transitions of `num_envs` environments that step together.

    It holds exactly the newest `capacity` transitions if at most `capacity` / 64 episodes end among them (mean episode
    length 64 steps or more). Shorter episodes have more final frames, so somewhat fewer transitions fit (97 % at 20
    steps, half at 1). A transition is dropped before any frame of its stack is overwritten.

    Args:
        observation, action: Specs of the observations and actions.
        capacity: Maximum number of transitions.
        num_envs: Number of environments that step together.
        device: Device of the replay; batches are drawn and assembled there.
        seed: Seed of the sampling.
        learning_starts: Initial transitions that add no pending updates.
        reward_clip: Rewards are stored raw and clipped to [-reward_clip, reward_clip] when sampled.
        prioritised: Sample by priority rather than uniformly.
        chunk_bytes: Approximate size of a chunk of the checkpoint, in bytes.

    Raises:
        ValueError: The capacity is smaller than one step of all environments, or another number is out of range.
        ReplayTooLarge: The replay does not fit into the free memory of its device.
    """

    def __init__(
        self,
        observation: ObservationSpec,
        action: ActionSpec,
        *,
        capacity: int,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        learning_starts: int = 0,
        reward_clip: float | None = None,
        prioritised: PrioritisedConfig | None = None,
        chunk_bytes: int = 8 * 2**20,
    ) -> None:
        if num_envs < 1 or capacity < num_envs:
            raise ValueError(
                f"a replay of {capacity} transitions cannot hold one step of {num_envs} environments: give a larger "
                "--agent.buffer-size, or fewer --num-envs"
            )
        if learning_starts < 0 or (reward_clip is not None and reward_clip <= 0):
            raise ValueError(f"learning_starts {learning_starts} must not be negative, reward_clip {reward_clip} > 0")
        self.observation, self.action = observation, action
        self.capacity, self.num_envs, self.device = capacity, num_envs, torch.device(device)
        self.learning_starts, self.reward_clip = learning_starts, reward_clip
        self._layout = _layout(observation, action, capacity, num_envs, prioritised is not None)
        self._refuse_if_too_large(prioritised is not None)
        # The operating system allocates pages when they are first written: a replay takes memory only as it fills.
        self._frames = torch.empty(
            self._layout.slots + 1, self._layout.frame, dtype=observation.dtype, device=self.device
        )
        self._frames[-1].zero_()
        self._ring = self._frames[:-1]
        self._rows = torch.empty(self._layout.transitions, self._layout.row, dtype=torch.int32, device=self.device)
        # On the CPU, numpy views of the same memory: writing through them takes a tenth of a copy between tensors.
        on_host = (self._ring, self._rows) if self.device.type == "cpu" else ()
        self._views = {id(ring): ring.numpy() for ring in on_host}
        self._priorities = Priorities(self._layout.transitions, prioritised, self.device) if prioritised else None
        self._generator = torch.Generator(self.device).manual_seed(seed)
        # What `draw` reads: on the device, so that a captured graph sees the present numbers.
        self._first = torch.zeros((), dtype=torch.int64, device=self.device)
        self._available = torch.ones((), dtype=torch.int64, device=self.device)
        self._gamma = torch.zeros((), dtype=torch.float32, device=self.device)
        self._prepared: tuple[int, int, float] = (0, 1, 0.0)  # the same numbers on the host
        self._drawn = (0, 1)  # batch size and n-step of the prepared draw
        self._chunk_bytes = chunk_bytes
        # The host counts the frames and transitions written since the start; `_tail` is the oldest valid transition.
        self._written = self._head = self._tail = 0
        self._oldest = np.zeros(self._layout.steps, np.int64)  # for every step: the oldest frame that its stacks need
        self._stacks = np.full((num_envs, observation.stack), -1, np.int64)  # frames of present observations; -1: zeros
        self._credit, self._credited, self._extra = 0.0, 0, 0
        self._begin = 0  # the first transition that may be sampled: the number stored when `clear` was called last
        self._row = np.empty((num_envs, self._layout.row), np.int32)  # rows that `add` packs, before the copy to device
        self._number = self._row.view(np.float32)
        self._expected = (num_envs, *observation.shape), np.uint8 if observation.dtype == torch.uint8 else np.float32

    # Size

    @staticmethod
    def size_of(
        observation: ObservationSpec, action: ActionSpec, *, capacity: int, num_envs: int = 1, prioritised: bool = False
    ) -> int:
        """Bytes that such a replay would take in total."""
        return _layout(observation, action, capacity, num_envs, prioritised).nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of the full replay: frames, rows, priorities, and the host's arrays."""
        priorities = self._priorities.nbytes if self._priorities else 0
        host = self._oldest.nbytes + self._stacks.nbytes + self._row.nbytes
        draw = self._first.nbytes + self._available.nbytes + self._gamma.nbytes
        return self._frames.nbytes + self._rows.nbytes + priorities + host + draw

    @property
    def bytes_per_transition(self) -> float:
        return self.nbytes / self.capacity

    def describe(self) -> str:
        """One line: capacity, device and memory."""
        return (
            f"replay: {self.capacity:,} transitions of {in_bytes(self.bytes_per_transition)} "
            f"on {self.device} = {in_bytes(self.nbytes)}"
        )

    def _refuse_if_too_large(self, prioritised: bool) -> None:
        spare = int(available_memory(self.device) * USABLE)
        if self._layout.nbytes <= spare:
            return

        def size(capacity: int) -> int:
            return _layout(self.observation, self.action, capacity, self.num_envs, prioritised).nbytes

        fits = bisect_right(range(self.capacity), spare, key=size) - 1
        raise ReplayTooLarge(
            f"a replay of {self.capacity:,} transitions takes {in_bytes(self._layout.nbytes)}, but {self.device} has "
            f"{in_bytes(spare)} to spare: "
            + (f"--agent.buffer-size {fits} fits" if fits >= self.num_envs else "not even one transition fits")
        )

    # Storing

    def start(self, obs: NDArray[Any]) -> None:
        """Store the first observations [E, *obs]; call it once, before `add`.

        Raises:
            RuntimeError: The replay has started already.
            ValueError: The observations do not fit the spec.
        """
        if self._written:
            raise RuntimeError("start() was called before: it is for the first observations of a run")
        self._check_obs("the first observations", obs)
        self._check_padding(obs)
        self._write(self._ring, 0, self._newest(obs))
        self._stacks = self._first_stacks(np.arange(self.num_envs))
        self._written = self.num_envs

    def add(self, action: NDArray[Any], step: Step) -> None:
        """Store the result of `action` ([E] integers or [E, A] floats); all arrays are on the host.

        Raises:
            RuntimeError: `start` was not called.
            ValueError: An array has the wrong shape or type.
        """
        if not self._written:
            raise RuntimeError("the replay has no observation to start from: call start(obs) before add()")
        self._check_step(action, step)
        envs, stack = self.num_envs, self.observation.stack
        # First the final frames of the episodes that ended, then the present frame of every environment.
        frames = self._newest(step.obs)
        over = NONE if step.quiet or not step.reset.any() else np.flatnonzero(step.reset)
        slots = np.arange(self._written + over.size, self._written + over.size + envs)
        seen = np.empty((envs, stack + 1), np.int64)
        seen[:, :-1], seen[:, -1] = self._stacks, slots
        stacks = seen[:, 1:].copy()
        if over.size:
            self._check_padding(step.obs[over])
            frames = np.concatenate([self._newest(step.final_obs[over]), frames])
            stacks[over] = self._first_stacks(slots[over])
            seen[over, -1] = np.arange(self._written, self._written + over.size)

        row, number = self._row, self._number
        np.remainder(seen, self._layout.slots, out=row[:, : stack + 1], casting="unsafe")
        if stack > 1:
            row[:, : stack + 1][seen < 0] = self._layout.slots
        number[:, stack + 1] = step.reward
        number[:, stack + 2 : stack + 4] = 1.0
        if not step.quiet:
            number[:, stack + 2] = ~step.terminated  # bootstrapping goes on
            number[:, stack + 3] = ~(step.terminated | step.truncated | step.reset)  # the window goes on
        if self.action.discrete:
            row[:, -1] = action
        else:
            number[:, stack + 4 :] = action

        # As an unsigned integer, the -1 of zero padding is the largest number, so min() ignores it.
        self._oldest[self._head // envs % len(self._oldest)] = self._stacks.view(np.uint64).min()
        self._write(self._ring, self._written, frames)
        self._write(self._rows, self._head, row)
        self._stacks = stacks
        self._written += len(frames)
        self._head += envs
        self._drop()

    def _drop(self) -> None:
        """Drop transitions beyond the capacity, those before the latest `clear`, and every step that needs an
        overwritten frame."""
        self._tail = max(self._tail, self._head - self.capacity, self._begin)
        present = self._written - self._layout.slots
        while self._oldest[self._tail // self.num_envs % len(self._oldest)] < present:
            self._tail = (self._tail // self.num_envs + 1) * self.num_envs

    def _write(self, ring: Tensor, begin: int, content: NDArray[Any]) -> None:
        if (host := self._views.get(id(ring))) is not None:
            begin %= len(host)
            fitting = min(len(content), len(host) - begin)
            host[begin : begin + fitting] = content[:fitting]
            if fitting < len(content):
                host[: len(content) - fitting] = content[fitting:]
            return
        begin %= len(ring)
        fitting = min(len(content), len(ring) - begin)
        source = torch.from_numpy(np.array(content, order="C"))  # a copy: an environment's arrays may be read-only
        if self.device.type == "cuda":
            # Only copies from pinned memory are asynchronous; the allocator keeps the memory until the copy is done.
            source = source.pin_memory()
        ring[begin : begin + fitting].copy_(source[:fitting], non_blocking=True)
        if fitting < len(source):
            ring[: len(source) - fitting].copy_(source[fitting:], non_blocking=True)

    def _newest(self, obs: NDArray[Any]) -> NDArray[Any]:
        """The newest frame of each observation [E, frame]."""
        return obs.reshape(len(obs), -1)[:, -self._layout.frame :]

    def _first_stacks(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Frame numbers of the stacks at the beginning of an episode [E, stack]."""
        stacks = np.full((len(slots), self.observation.stack), -1, np.int64)
        stacks[:, (-1 if self.observation.padding == "zero" else 0) :] = slots[:, None]
        return stacks

    def _check_obs(self, what: str, obs: NDArray[Any]) -> None:
        shape, dtype = self._expected
        if obs.shape != shape or obs.dtype != dtype:
            raise ValueError(
                f"{what} should have shape {shape} ({self.num_envs} environments first) and type {dtype.__name__}, "
                f"not shape {obs.shape} and type {obs.dtype}"
            )

    def _check_step(self, action: NDArray[Any], step: Step) -> None:
        self._check_obs("the observations of a step", step.obs)
        if step.final_obs is not step.obs:
            self._check_obs("the final observations of a step", step.final_obs)
        envs = (self.num_envs,)
        for name in ("reward", "terminated", "truncated", "reset"):
            value = getattr(step, name)
            if value.shape != envs or (name != "reward" and value.dtype != np.bool_):
                kind = "numbers" if name == "reward" else "booleans"
                raise ValueError(f"{name} should be {envs} {kind}, not {value.dtype} of shape {value.shape}")
        shape, kinds = (envs, "iu") if self.action.discrete else ((*envs, self.action.size), "f")
        if action.shape != shape or action.dtype.kind not in kinds:
            kind = "whole numbers" if self.action.discrete else "floats"
            raise ValueError(f"actions should be {shape} {kind}, not {action.dtype} of shape {action.shape}")

    def _check_padding(self, obs: NDArray[Any]) -> None:
        """Check that first observations of episodes are padded according to the spec: stacks are rebuilt from frames.

        Raises:
            ValueError: They are padded otherwise.
        """
        if self.observation.stack == 1:
            return
        frames = obs.reshape(len(obs), self.observation.stack, -1)
        padding = 0 if self.observation.padding == "zero" else frames[:, -1:]
        if (frames[:, :-1] != padding).any():
            wanted = "zeros" if self.observation.padding == "zero" else "copies of its newest frame"
            raise ValueError(
                f"the older frames of an episode's first observation should be {wanted}, according to the observation "
                f"spec (padding={self.observation.padding!r}); this environment fills them differently"
            )

    # Sampling

    def __len__(self) -> int:
        """Transitions that can be sampled with n_step=1."""
        return self._head - self._tail

    def available(self, n_step: int = 1) -> int:
        """Transitions that can be sampled: those whose window of `n_step` steps is complete."""
        return max(0, len(self) - (n_step - 1) * self.num_envs)

    def sample(
        self, batch_size: int, n_step: int = 1, gamma: float = 0.99, generator: torch.Generator | None = None
    ) -> Batch:
        """Draw transitions with replacement, uniformly or by priority.

        With a given generator (on the replay's device) the draw is uniform and changes no state of the replay, so that
        observers do not change the run.

        Raises:
            ValueError: `n_step` is smaller than 1.
            RuntimeError: The replay holds no transition with a complete window.
        """
        if n_step < 1:
            raise ValueError(f"n_step must be at least 1, not {n_step}")
        available = self.available(n_step)
        if not available:
            raise RuntimeError(
                f"nothing to sample: the replay holds {len(self)} transitions of {self.num_envs} environments, "
                f"none of which has a complete window of {n_step} steps"
            )
        if generator is None:
            self._prepare(batch_size, n_step, gamma)
            return self.draw()
        last = self._tail + available
        index = torch.randint(self._tail, last, (batch_size,), device=self.device, generator=generator)
        return self._gather(index, torch.ones(batch_size, device=self.device), n_step, gamma)

    def draw(self) -> Batch:
        batch_size, n_step = self._drawn
        if self._priorities is None:
            index = torch.empty(batch_size, dtype=torch.int64, device=self.device).random_(generator=self._generator)
            index = index.remainder_(self._available).add_(self._first)
            weight = torch.ones(batch_size, device=self.device)
        else:
            index = self._priorities.draw(batch_size, self._generator)
            weight = self._priorities.weights(index)
        return self._gather(index, weight, n_step, self._gamma)

    def _prepare(self, batch_size: int, n_step: int, gamma: float) -> None:
        """Write what `draw` reads to the device; the host does not wait."""
        numbers = self._tail, self.available(n_step), gamma
        if numbers != self._prepared:
            for place, number in zip((self._first, self._available, self._gamma), numbers, strict=True):
                place.fill_(number)
            self._prepared = numbers
        self._drawn = batch_size, n_step
        if self._priorities is not None:
            self._priorities.limit(self._tail, self._tail + numbers[1])
            self._priorities.set_steps(self._head - self._begin)

    def learnt(self) -> Iterator[Tensor]:
        if self._priorities is not None:
            yield from self._priorities.tensors()

    def generators(self) -> Iterator[torch.Generator]:
        yield self._generator

    def update_priorities(self, index: Tensor, td_error: Tensor) -> None:
        """Set the priorities of sampled transitions [B] from their errors [B]; does nothing if sampling is uniform.

        Transitions that were dropped before the latest `sample` are ignored.
        """
        if self._priorities is not None:
            self._priorities.update(index, td_error)

    def _gather(self, index: Tensor, weight: Tensor, n_step: int, gamma: float | Tensor) -> Batch:
        """The transitions with the given ordinals [B], whose windows must be complete."""
        stack, batch = self.observation.stack, len(index)
        if n_step == 1:
            first = last = self._rows.index_select(0, index.remainder(self._layout.transitions))
            numbers = first.view(torch.float32)
            reward, discount = self._clipped(numbers[:, stack + 1]), numbers[:, stack + 2] * gamma
        else:
            steps = torch.arange(n_step, device=self.device)
            ordinals = (index[:, None] + steps * self.num_envs).remainder_(self._layout.transitions)
            rows = self._rows.index_select(0, ordinals.view(-1))
            window = rows.view(batch, n_step, -1)
            numbers = window.view(torch.float32)
            inside = torch.ones(batch, n_step, device=self.device)  # 1 up to the step that ends the window, then 0
            torch.cumprod(numbers[:, :-1, stack + 3], 1, out=inside[:, 1:])
            length = inside.sum(1)
            ends = torch.arange(-1, batch * n_step - 1, n_step, device=self.device) + length.long()
            first, last = window[:, 0], rows.index_select(0, ends)
            reward = (self._clipped(numbers[:, :, stack + 1]) * inside * torch.pow(gamma, steps.float())).sum(1)
            discount = last.view(torch.float32)[:, stack + 2] * torch.pow(gamma, length)
        acted = first[:, stack + 4 :].contiguous()
        action = acted.view(-1).long() if self.action.discrete else acted.view(torch.float32)
        slots = torch.stack((first[:, :stack], last[:, 1 : stack + 1]))
        obs, next_obs = self._frames.index_select(0, slots.view(-1)).view(2, batch, *self.observation.shape).unbind()
        return Batch(obs, action, reward, discount, next_obs, weight, index)

    def _clipped(self, reward: Tensor) -> Tensor:
        return reward.contiguous() if self.reward_clip is None else reward.clamp(-self.reward_clip, self.reward_clip)

    def clear(self) -> None:
        """Forget all transitions stored until now, and their pending updates.

        Updates resume once `learning_starts` more transitions are stored. Until the next transition is stored, the old
        ones can still be sampled (by monitors).
        """
        self._begin = self._credited = self._head
        self._credit = 0.0
        if self._priorities is not None:
            self._priorities.begin_anew()

    # Pending updates

    def draws(self, sampling: Sampling) -> Iterator[Hashable]:
        """Prepare one draw for each pending update: `replay_ratio` for every transition stored since the last call, and
        the growth of `extra_updates`. At most `AT_ONCE` per call; later calls yield the rest (`has_pending`).

        Transitions before `learning_starts` do not count. The ratio applies to new transitions only, so a change takes
        effect at once; fractions are kept. Each draw is prepared just before its update, so that it uses the priorities
        set by the previous update.
        """
        self._credit = self._due(sampling)
        self._extra = max(self._extra, sampling.extra_updates)
        self._credited = self._head
        return self._pending_draws(sampling)

    def _due(self, sampling: Sampling) -> float:
        """The number of pending updates, with fractions."""
        new = self._head - max(self._credited, self._begin + self.learning_starts)
        return self._credit + sampling.replay_ratio * max(0, new) + max(0, sampling.extra_updates - self._extra)

    def pending(self, sampling: Sampling) -> int:
        """The number of draws that the next call of `draws` prepares, if nothing changes before it."""
        return min(AT_ONCE, int(self._due(sampling) + 1e-9)) if self.available(sampling.n_step) else 0

    def _pending_draws(self, sampling: Sampling) -> Iterator[Hashable]:
        for _ in range(AT_ONCE):
            if not self._can_update(sampling):
                return
            self._credit -= 1
            self._prepare(sampling.batch_size, sampling.n_step, sampling.gamma)
            yield self._drawn

    def _can_update(self, sampling: Sampling) -> bool:
        # The tolerance absorbs rounding: ten times 0.1 is a little less than 1.
        return self._credit >= 1 - 1e-9 and self.available(sampling.n_step) > 0

    def has_pending(self, sampling: Sampling) -> bool:
        """True if updates are pending that must be made before the next step: the rest of a large number, or extra
        updates."""
        return self._can_update(sampling) or sampling.extra_updates > self._extra

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The state without frames and rows, which are saved as `chunks`."""
        steps = np.arange(self._tail // self.num_envs, self._head // self.num_envs)
        return {
            "made_for": self._made_for(),
            "written": self._written,
            "head": self._head,
            "tail": self._tail,
            "oldest": torch.from_numpy(self._oldest[steps % len(self._oldest)]),
            "stacks": torch.from_numpy(self._stacks.copy()),
            "credit": self._credit,
            "credited": self._credited,
            "extra": self._extra,
            "begin": self._begin,
            "generator": self._generator.get_state(),
            "priorities": self._priorities.state_dict() if self._priorities else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`. Once the chunks are loaded too, adding and sampling continue bitwise equal.

        Raises:
            ValueError: The state belongs to a replay of another size, kind or device.
        """
        mine = self._made_for()
        if state["made_for"] != mine:
            other = state["made_for"]
            differs = ", ".join(f"{k} {other.get(k)!r} but here {v!r}" for k, v in mine.items() if other.get(k) != v)
            raise ValueError(f"the saved replay does not fit this one: it was saved with {differs}")
        self._written, self._head, self._tail = state["written"], state["head"], state["tail"]
        steps = np.arange(self._tail // self.num_envs, self._head // self.num_envs)
        self._oldest[steps % len(self._oldest)] = state["oldest"].numpy()
        self._stacks = state["stacks"].numpy().copy()
        self._credit, self._credited = state["credit"], state["credited"]
        self._extra, self._begin = state.get("extra", 0), state.get("begin", 0)
        self._generator.set_state(state["generator"])
        if self._priorities:
            self._priorities.load_state_dict(state["priorities"])

    def reseed(self, seed: int) -> None:
        """Seed the replay's generator anew."""
        self._generator.manual_seed(seed)

    def _made_for(self) -> dict[str, Any]:
        return {
            "capacity": self.capacity,
            "num_envs": self.num_envs,
            "observation shape": list(self.observation.shape),
            "observation type": str(self.observation.dtype),
            "stack": self.observation.stack,
            "padding": self.observation.padding,
            "actions": self.action.size,
            "discrete": self.action.discrete,
            "prioritised": self._priorities is not None,
            "device": self.device.type,  # a generator cannot load the state of a generator on another kind of device
        }

    def chunks(self) -> list[tuple[str, int]]:
        """(name, version) of every non-empty chunk; a chunk is rewritten if and only if its version grows."""
        versions = []
        for kind, ring, written in self._rings():
            length, size = len(ring), self._chunk_length(ring)
            for begin in range(0, length, size):
                # The version is the total number of items written when this chunk was last changed: the present total
                # if writing is inside this chunk, else the total when writing last passed the chunk's end.
                end = min(begin + size, length)
                here = begin <= (written - 1) % length < end
                version = written if here else (written - end) // length * length + end
                if version > 0:
                    versions.append((f"{kind}-{begin:010d}", version))
        return versions

    def chunk(self, name: str) -> dict[str, Tensor]:
        """The present content of a chunk, copied to the host; only the part that has been written."""
        kind, ring, begin = self._chunk(name)
        written = next(count for other, _, count in self._rings() if other == kind)
        end = min(begin + self._chunk_length(ring), len(ring), written)
        return {kind: ring[begin:end].to("cpu", copy=True)}

    def load_chunk(self, name: str, content: dict[str, Tensor]) -> None:
        """Restore a chunk.

        Raises:
            ValueError: The content does not fit the chunk, or there is no such chunk.
        """
        kind, ring, begin = self._chunk(name)
        items = content.get(kind)
        place = None if items is None else ring[begin : begin + len(items)]
        if items is None or place is None or items.dtype != ring.dtype or items.shape != place.shape:
            held = None if items is None else (items.dtype, tuple(items.shape))
            raise ValueError(f"{name} holds {held}; this replay has {kind} of {ring.dtype}, {tuple(ring.shape)}")
        place.copy_(items)

    def _rings(self) -> tuple[tuple[str, Tensor, int], ...]:
        """Name, storage, and the number of items written since the start, for each ring."""
        return ("frames", self._frames[:-1], self._written), ("rows", self._rows, self._head)

    def _chunk_length(self, ring: Tensor) -> int:
        return max(1, self._chunk_bytes // (ring.shape[1] * ring.element_size()))

    def _chunk(self, name: str) -> tuple[str, Tensor, int]:
        kind, _, begin = name.partition("-")
        for other, ring, _ in self._rings():
            if kind == other and begin.isdigit() and int(begin) < len(ring):
                return kind, ring, int(begin)
        raise ValueError(f"a replay of {self._layout.transitions} transitions has no chunk {name!r}")

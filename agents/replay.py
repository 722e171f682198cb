"""Replay: what an agent has lived through, and how many updates it owes to it.

Two rings on the chosen device. The ring of *frames* holds every frame once: an observation is `stack` numbers of slots
in it, so that an Atari transition takes 7.2 kB rather than 56. The ring of *rows* holds one packed row per transition:
the slots of its observation and of the frame that followed, reward, ends, action. All environments step together, so
the transition after the one with ordinal i (how many were stored before it) in the same environment is i + num_envs.

* Every frame gets its slot as soon as it is seen, so the newest transition can be sampled at once, and an episode's
  final observation is kept: the successor of a truncated transition is exact.
* n-step windows are put together when sampled, so n and the discount may be annealed. A window stops at the first
  `terminated | truncated`, inclusive. Windows that end beyond the newest transition are not sampled: the newest
  (n - 1) * num_envs transitions wait for their turn, whether or not an episode's end would have cut their window.
* `clear` moves the beginning of what is learnt from to the present. Nothing is overwritten for it, so the frames that
  the running episodes still need are there, and pieces of a checkpoint keep their versions.
* Randomness is a generator of the replay's own. Neither storing nor sampling makes the host wait for the device.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common.memory import HEADROOM, TooLarge, available_memory, in_bytes
from ..common.spaces import ActionSpec, ObservationSpec, Step
from .hooks import Sampling
from .priorities import Priorities, PrioritisedConfig

__all__ = ["Batch", "PrioritisedConfig", "Replay", "ReplayTooLarge"]

SHORT_EPISODE = 64  # mean length from which on the final frames of episodes find room beside `capacity` transitions
NOBODY = np.empty(0, np.int64)
AT_ONCE = 256  # updates between which a run is not asked whether it is to stop


class Batch(NamedTuple):
    """B sampled transitions, on the replay's device."""

    obs: Tensor  # [B, *obs], as stored: uint8 pixels or float32
    action: Tensor  # [B] int64 or [B, A] float32
    reward: Tensor  # [B] float32, sum of gamma^j clip(r_j) over the window's m <= n steps
    discount: Tensor  # [B] float32, gamma^m, or 0 where the window ends by termination
    next_obs: Tensor  # [B, *obs], m steps later; an episode's final observation where the window ends by truncation
    weight: Tensor  # [B] float32 importance weights, ones if sampled uniformly
    index: Tensor  # type: ignore[assignment]  # [B] int64 ordinals, for `Replay.update_priorities`

    def take(self, index: slice | Tensor) -> Batch:
        """Some of the transitions."""
        return Batch(*(part[index] for part in self))

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
        """A batch of one-step transitions from arrays of anybody's replay; `terminated` stops bootstrapping."""
        obs, next_obs = (torch.as_tensor(x, device=device) for x in (obs, next_obs))
        action = torch.as_tensor(action, device=device)
        action = action.float() if action.is_floating_point() else action.long()
        reward = torch.as_tensor(reward, dtype=torch.float32, device=device)
        discount = gamma * (1.0 - torch.as_tensor(terminated, dtype=torch.float32, device=device))
        index = torch.arange(len(reward), device=device)
        return cls(obs, action, reward, discount, next_obs, torch.ones_like(reward), index)


class ReplayTooLarge(TooLarge):
    """A replay that does not fit into the memory of its device."""


class _Layout(NamedTuple):
    """Sizes of a replay, known before anything is allocated."""

    transitions: int  # length of the ring of rows: `capacity`, rounded up to whole steps of all environments
    slots: int  # length of the ring of frames; one more slot holds the zeros that pad stacks
    frame: int  # numbers in a frame
    row: int  # int32 words in a row
    steps: int  # length of the host's ring of steps
    nbytes: int


def _layout(observation: ObservationSpec, action: ActionSpec, capacity: int, envs: int, prioritised: bool) -> _Layout:
    stack, frame = observation.stack, prod(observation.frame_shape)
    steps = -(-capacity // envs)
    # A frame for every transition, for the older frames of the first one's stack and for the newest observation, and
    # one for the final observation of every episode. At the very least the newest stacks must survive if all
    # environments reset at every step.
    slots = max((steps + stack) * envs + capacity // SHORT_EPISODE, 2 * envs * (stack + 1))
    row = stack + 4 + (1 if action.discrete else action.size)
    transitions = steps * envs
    nbytes = (slots + 1) * frame * observation.dtype.itemsize + transitions * row * 4 + (steps + 1 + envs * stack) * 8
    nbytes += envs * row * 4
    nbytes += Priorities.size_of(transitions) if prioritised else 0
    return _Layout(transitions, slots, frame, row, steps + 1, nbytes)


class Replay:
    """A replay of the newest `capacity` transitions of `num_envs` environments that step together.

    It holds exactly the newest `capacity` as long as at most `capacity` / 64 episodes end among them (episodes of 64
    steps on average, or longer); shorter episodes have more final frames to keep, and somewhat fewer transitions fit
    (97 % at 20 steps, half at 1). A transition is dropped before any frame of its stack is overwritten.

    Args:
        observation, action: what is stored.
        capacity: transitions.
        num_envs: environments that step together.
        device: where the replay lives; batches are drawn and put together there.
        seed: of the sampling.
        learning_starts: transitions for which no updates are owed, because they precede learning.
        reward_clip: rewards are stored raw and clipped to [-reward_clip, reward_clip] when sampled.
        prioritised: sample by priority rather than uniformly.
        chunk_bytes: about how much a chunk of the checkpoint holds.

    Raises:
        ReplayTooLarge: if it does not fit into the memory that its device has to spare.
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
        # Memory that is never written is never touched either: a large replay costs what it holds.
        self._frames = torch.empty(
            self._layout.slots + 1, self._layout.frame, dtype=observation.dtype, device=self.device
        )
        self._frames[-1].zero_()
        self._ring = self._frames[:-1]
        self._rows = torch.empty(self._layout.transitions, self._layout.row, dtype=torch.int32, device=self.device)
        # On the host, numpy's views of the same memory: writing through them costs a tenth of a copy between tensors.
        on_host = (self._ring, self._rows) if self.device.type == "cpu" else ()
        self._views = {id(ring): ring.numpy() for ring in on_host}
        self._priorities = Priorities(self._layout.transitions, prioritised, self.device) if prioritised else None
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._chunk_bytes = chunk_bytes
        # The host keeps count: frames and transitions written since the start, and the oldest transition still whole.
        self._written = self._head = self._tail = 0
        self._oldest = np.zeros(self._layout.steps, np.int64)  # of every step: the oldest frame its stacks need
        self._stacks = np.full((num_envs, observation.stack), -1, np.int64)  # frames of what agents act on; -1: zeros
        self._credit, self._credited, self._extra = 0.0, 0, 0
        self._begin = 0  # the first transition that is learnt from: how many there were when `clear` was called last
        self._row = np.empty((num_envs, self._layout.row), np.int32)  # what `add` packs, before it goes to the device
        self._number = self._row.view(np.float32)
        self._expected = (num_envs, *observation.shape), np.uint8 if observation.dtype == torch.uint8 else np.float32

    # Size

    @staticmethod
    def size_of(
        observation: ObservationSpec, action: ActionSpec, *, capacity: int, num_envs: int = 1, prioritised: bool = False
    ) -> int:
        """Bytes that such a replay would take, everything counted."""
        return _layout(observation, action, capacity, num_envs, prioritised).nbytes

    @property
    def nbytes(self) -> int:
        """Bytes taken when full: frames, rows, priorities, and the host's bookkeeping."""
        priorities = self._priorities.nbytes if self._priorities else 0
        host = self._oldest.nbytes + self._stacks.nbytes + self._row.nbytes
        return self._frames.nbytes + self._rows.nbytes + priorities + host

    @property
    def bytes_per_transition(self) -> float:
        return self.nbytes / self.capacity

    def describe(self) -> str:
        """One line for people: capacity, device and memory."""
        return (
            f"replay: {self.capacity:,} transitions of {in_bytes(self.bytes_per_transition)} "
            f"on {self.device} = {in_bytes(self.nbytes)}"
        )

    def _refuse_if_too_large(self, prioritised: bool) -> None:
        spare = int(available_memory(self.device) * HEADROOM)
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
        """Take the first observations [E, *obs], once, before anything is added."""
        if self._written:
            raise RuntimeError("the replay has started already: start() is for the first observations of a run")
        self._check_obs("the first observations", obs)
        self._check_padding(obs)
        self._write(self._ring, 0, self._newest(obs))
        self._stacks = self._first_stacks(np.arange(self.num_envs))
        self._written = self.num_envs

    def add(self, action: NDArray[Any], step: Step) -> None:
        """Store the step that answered `action` ([E] whole numbers or [E, A] floats); host arrays."""
        if not self._written:
            raise RuntimeError("the replay has no observation to start from: call start(obs) before add()")
        self._check_step(action, step)
        envs, stack = self.num_envs, self.observation.stack
        # First the final frames of the episodes that ended, then what every environment goes on from.
        frames = self._newest(step.obs)
        over = NOBODY if step.quiet or not step.reset.any() else np.flatnonzero(step.reset)
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

        # Read as unsigned, the -1 of a padding zero is the greatest number there is.
        self._oldest[self._head // envs % len(self._oldest)] = self._stacks.view(np.uint64).min()
        self._write(self._ring, self._written, frames)
        self._write(self._rows, self._head, row)
        self._stacks = stacks
        self._written += len(frames)
        self._head += envs
        self._drop()

    def _drop(self) -> None:
        """Let go of what exceeds the capacity, of what was there before the latest `clear`, and of every step that
        needs a frame which is gone."""
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
        source = torch.from_numpy(np.array(content, order="C"))  # a copy: what an environment gives may be read-only
        if self.device.type == "cuda":
            # Only from pinned memory does a copy leave the host free; the allocator keeps it until the copy is done.
            source = source.pin_memory()
        ring[begin : begin + fitting].copy_(source[:fitting], non_blocking=True)
        if fitting < len(source):
            ring[: len(source) - fitting].copy_(source[fitting:], non_blocking=True)

    def _newest(self, obs: NDArray[Any]) -> NDArray[Any]:
        """[E, frame] newest frames of observations."""
        return obs.reshape(len(obs), -1)[:, -self._layout.frame :]

    def _first_stacks(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """[E, stack] frames of observations that begin an episode."""
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
        """Stacks are put together from frames, so the first of an episode must be padded as the spec says."""
        if self.observation.stack == 1:
            return
        frames = obs.reshape(len(obs), self.observation.stack, -1)
        padding = 0 if self.observation.padding == "zero" else frames[:, -1:]
        if (frames[:, :-1] != padding).any():
            wanted = "zeros" if self.observation.padding == "zero" else "copies of its newest frame"
            raise ValueError(
                f"the older frames of an episode's first observation should be {wanted}, as the observation spec says "
                f"(padding={self.observation.padding!r}); this environment fills them otherwise"
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

        With a generator of the caller's own (on the replay's device) the draw is uniform and leaves no trace in the
        replay, so that who merely looks does not change the run.
        """
        if n_step < 1:
            raise ValueError(f"n_step must be at least 1, not {n_step}")
        available = self.available(n_step)
        if not available:
            raise RuntimeError(
                f"nothing to sample: the replay holds {len(self)} transitions of {self.num_envs} environments, "
                f"none of which has a complete window of {n_step} steps"
            )
        last = self._tail + available
        if self._priorities is None or generator is not None:
            index = torch.randint(
                self._tail, last, (batch_size,), device=self.device, generator=generator or self._generator
            )
            weight = torch.ones(batch_size, device=self.device)
        else:
            self._priorities.limit(self._tail, last)
            index = self._priorities.draw(batch_size, self._generator)
            weight = self._priorities.weights(index, self._head - self._begin)
        return self._gather(index, weight, n_step, gamma)

    def update_priorities(self, index: Tensor, td_error: Tensor) -> None:
        """Set the priorities of sampled transitions [B] by their errors [B]; nothing happens if sampling is uniform.

        What was dropped before the latest `sample` is passed over.
        """
        if self._priorities is not None:
            self._priorities.update(index, td_error)

    def _gather(self, index: Tensor, weight: Tensor, n_step: int, gamma: float) -> Batch:
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
            live = torch.ones(batch, n_step, device=self.device)  # 1 up to the step that ends the window, then 0
            torch.cumprod(numbers[:, :-1, stack + 3], 1, out=live[:, 1:])
            length = live.sum(1)
            ends = torch.arange(-1, batch * n_step - 1, n_step, device=self.device) + length.long()
            first, last = window[:, 0], rows.index_select(0, ends)
            reward = (self._clipped(numbers[:, :, stack + 1]) * live * torch.pow(gamma, steps.float())).sum(1)
            discount = last.view(torch.float32)[:, stack + 2] * torch.pow(gamma, length)
        acted = first[:, stack + 4 :].contiguous()
        action = acted.view(-1).long() if self.action.discrete else acted.view(torch.float32)
        slots = torch.stack((first[:, :stack], last[:, 1 : stack + 1]))
        obs, next_obs = self._frames.index_select(0, slots.view(-1)).view(2, batch, *self.observation.shape).unbind()
        return Batch(obs, action, reward, discount, next_obs, weight, index)

    def _clipped(self, reward: Tensor) -> Tensor:
        return reward.contiguous() if self.reward_clip is None else reward.clamp(-self.reward_clip, self.reward_clip)

    def clear(self) -> None:
        """Forget everything: what was stored until now is not learnt from any more, and nothing is owed for it.

        Learning begins anew once `learning_starts` more transitions are there. Until the next one is stored, who
        merely looks still sees the old ones.
        """
        self._begin = self._credited = self._head
        self._credit = 0.0
        if self._priorities is not None:
            self._priorities.begin_anew()

    # What is owed

    def batches(self, sampling: Sampling) -> Iterator[Batch]:
        """As many batches as updates are owed: `replay_ratio` for every transition stored since the last call, and
        what `extra_updates` has grown by. At most `AT_ONCE` a call; the rest is for the next one (`owes`).

        Transitions before `learning_starts` do not count. A ratio applies to what is new, so a change takes effect at
        once; fractions are kept. Each batch is drawn when it is asked for, so that priorities set by the update before
        it count.
        """
        self._credit = self._due(sampling)
        self._extra = max(self._extra, sampling.extra_updates)
        self._credited = self._head
        return self._owed(sampling)

    def _due(self, sampling: Sampling) -> float:
        """The updates that are owed by now."""
        new = self._head - max(self._credited, self._begin + self.learning_starts)
        return self._credit + sampling.replay_ratio * max(0, new) + max(0, sampling.extra_updates - self._extra)

    def coming(self, sampling: Sampling) -> int:
        """How many batches the next call of `batches` gives, if nothing changes meanwhile."""
        return min(AT_ONCE, int(self._due(sampling) + 1e-9)) if self.available(sampling.n_step) else 0

    def _owed(self, sampling: Sampling) -> Iterator[Batch]:
        for _ in range(AT_ONCE):
            if not self._affords(sampling):
                return
            self._credit -= 1
            yield self.sample(sampling.batch_size, sampling.n_step, sampling.gamma)

    def _affords(self, sampling: Sampling) -> bool:
        # Ten times 0.1 is a little less than one.
        return self._credit >= 1 - 1e-9 and self.available(sampling.n_step) > 0

    def owes(self, sampling: Sampling) -> bool:
        """Are updates owed that come before the next step: the rest of many, or such as are owed besides?"""
        return self._affords(sampling) or sampling.extra_updates > self._extra

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything but frames and rows, which `chunks` gives piece by piece."""
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
        """Restore what `state_dict` gave; with the chunks loaded too, adding and sampling go on bitwise as they would.

        Raises ValueError if the state is that of a replay of another size, kind or device.
        """
        mine = self._made_for()
        if state["made_for"] != mine:
            other = state["made_for"]
            differs = ", ".join(f"{k} {other.get(k)!r} but here {v!r}" for k, v in mine.items() if other.get(k) != v)
            raise ValueError(f"the saved replay is not of this one's kind; saved with {differs}")
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
        """Draw from another seed from now on."""
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
            "device": self.device.type,  # the generators of two kinds of device do not understand each other's state
        }

    def chunks(self) -> list[tuple[str, int]]:
        """(name, version) of every piece that holds anything; a piece is rewritten if and only if its version grows."""
        found = []
        for kind, ring, written in self._rings():
            length, size = len(ring), self._chunk_length(ring)
            for begin in range(0, length, size):
                # How many items had been written, ever, when the latest of this piece was: all up to now if the ring
                # is being written here, else all up to the piece's end in the round when that was passed.
                end = min(begin + size, length)
                here = begin <= (written - 1) % length < end
                version = written if here else (written - end) // length * length + end
                if version > 0:
                    found.append((f"{kind}-{begin:010d}", version))
        return found

    def chunk(self, name: str) -> dict[str, Tensor]:
        """The present content of a piece, copied to the host; only what has been written."""
        kind, ring, begin = self._chunk(name)
        written = next(count for other, _, count in self._rings() if other == kind)
        end = min(begin + self._chunk_length(ring), len(ring), written)
        return {kind: ring[begin:end].to("cpu", copy=True)}

    def load_chunk(self, name: str, content: dict[str, Tensor]) -> None:
        """Put a piece back."""
        kind, ring, begin = self._chunk(name)
        piece = content.get(kind)
        place = None if piece is None else ring[begin : begin + len(piece)]
        if piece is None or place is None or piece.dtype != ring.dtype or piece.shape != place.shape:
            found = None if piece is None else (piece.dtype, tuple(piece.shape))
            raise ValueError(f"{name} holds {found}; this replay has {kind} of {ring.dtype}, {tuple(ring.shape)}")
        place.copy_(piece)

    def _rings(self) -> tuple[tuple[str, Tensor, int], ...]:
        """Name, storage, and the number of items written since the start."""
        return ("frames", self._frames[:-1], self._written), ("rows", self._rows, self._head)

    def _chunk_length(self, ring: Tensor) -> int:
        return max(1, self._chunk_bytes // (ring.shape[1] * ring.element_size()))

    def _chunk(self, name: str) -> tuple[str, Tensor, int]:
        kind, _, begin = name.partition("-")
        for other, ring, _ in self._rings():
            if kind == other and begin.isdigit() and int(begin) < len(ring):
                return kind, ring, int(begin)
        raise ValueError(f"a replay of {self._layout.transitions} transitions has no chunk {name!r}")

"""One interface for every simulator: explicit seeds, correct final observations, and exact resumption.

Each episode starts with its own seed, a pure function of (run seed, environment, episode number), and the actions since
its start are stored. A deterministic simulator can therefore be resumed exactly, although almost none can save its
state: reset it with the episode's seed, and replay the actions. The resulting observation is compared with the one at
the time of saving.

`ListAdapter` drives single gymnasium environments, `VectorAdapter` a gymnasium `VectorEnv` in any autoreset mode.
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from ..common.spaces import (
    LONGEST_EPISODE,
    ActionSpec,
    Diverged,
    Episode,
    Layout,
    NotFinite,
    ObservationSpec,
    Step,
    action_spec,
    image_layout,
    observation_spec,
)

if TYPE_CHECKING:
    from gymnasium import Env
    from gymnasium.vector import VectorEnv

    from .drift import Drifts

Array = NDArray[Any]


LARGEST = float(np.finfo(np.float32).max)
SQUARES = 1e76  # a sum of squares below this has only terms whose roots fit float32


class NotReproduced(RuntimeError):
    """A simulator did not repeat an episode from its seed and actions, so a run cannot continue from its checkpoint."""


def episode_seed(run_seed: int, env_index: int, episode: int, evaluation: bool = False) -> int:
    """The seed of one episode: 31 bits, even in training and odd in evaluation.

    The last bit guarantees that the two never coincide, for any run seeds; the other thirty come from numpy's
    `SeedSequence`, so neighbouring arguments give unrelated seeds.
    """
    sequence = np.random.SeedSequence(run_seed, spawn_key=(int(evaluation), env_index, episode))
    return (int(sequence.generate_state(1)[0]) >> 1 & ~1) | int(evaluation)


def describe_observation(space: Any, name: str, given: ObservationSpec | None = None) -> tuple[ObservationSpec, Layout]:
    """The spec of a gymnasium observation space, and the simulator's layout of image channels.

    `image_layout` determines the layout, unless the given spec has the same shape as the space. Vectors of any numeric
    type become float32; a float64 simulator loses the lower 29 bits of every number here.

    Raises:
        ValueError: Agents do not support such observations; the message names the environment.
    """
    image = image_layout(space)
    try:
        if image is None:
            return observation_spec(space), "same"
        shape: tuple[int, ...] = image[0]
        layout = image[1]
        if given is not None and given.shape == tuple(space.shape):
            shape, layout = given.shape, "same"
        high = 1.0 if space.dtype == np.bool_ else float(np.max(space.high))
        return ObservationSpec(shape, torch.uint8, high), layout
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def describe_action(space: Any, name: str) -> ActionSpec:
    """The spec of a gymnasium action space; ValueError with the environment's name if agents do not support it."""
    try:
        return action_spec(space)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def refuse_lost_actions(action: Array, name: str) -> None:
    """Refuse actions [E, A] that are not finite numbers, before the environment processes them (Diverged)."""
    if math.isfinite(np.vdot(action, action)):
        return
    for i in np.flatnonzero(~np.isfinite(action).all(axis=1)).tolist():
        raise Diverged(
            f"the agent's action in {name}, environment {i}, is {action[i].tolist()}: its networks no longer give "
            "finite numbers"
        )


class ActionLog:
    """The actions of E environments since the start of each running episode, in one growing array of rows [E, *action].

    One row per step, for any E. Rows that no running episode needs any more are dropped before the array grows.
    """

    def __init__(self, num_envs: int, action: ActionSpec, rows: int = 1024) -> None:
        self.begun = [0] * num_envs
        self.count = 0
        row = (num_envs,) if action.discrete else (num_envs, action.size)
        self._rows: Array = np.empty((rows, *row), np.int32 if action.discrete else np.float32)

    def append(self, action: Array) -> None:
        if self.count == len(self._rows):
            self._make_room()
        self._rows[self.count] = action
        self.count += 1

    def take_back(self) -> None:
        """Remove the latest row."""
        self.count -= 1

    def restart(self, env: int) -> None:
        self.begun[env] = self.count

    def length(self, env: int) -> int:
        return self.count - self.begun[env]

    def since_start(self, env: int) -> Array:
        return self._rows[self.begun[env] : self.count, env].copy()

    def load(self, actions: Sequence[Array]) -> None:
        """Load one record of actions per environment, with aligned ends."""
        self.count = max(len(a) for a in actions)
        if self.count > len(self._rows):
            self._rows = np.empty((2 * self.count, *self._rows.shape[1:]), self._rows.dtype)
        for env, record in enumerate(actions):
            self.begun[env] = self.count - len(record)
            self._rows[self.begun[env] : self.count, env] = record

    def _make_room(self) -> None:
        oldest = min(self.begun)
        kept = self._rows[oldest : self.count]
        if 2 * len(kept) > len(self._rows):
            self._rows = np.empty((2 * len(self._rows), *self._rows.shape[1:]), self._rows.dtype)
        self._rows[: len(kept)] = kept.copy()
        self.begun = [start - oldest for start in self.begun]
        self.count = len(kept)


class Envs(ABC):
    """E environments that step together.

    Returned arrays belong to the caller: no simulator overwrites them. `final_obs` may be the same object as `obs` if
    no episode ended. `frame_skip` is simulator frames per agent step; lengths count agent steps, and so does
    `longest_episode`, after which evaluations truncate an episode.
    """

    def __init__(
        self,
        name: str,
        num_envs: int,
        observation: ObservationSpec,
        action: ActionSpec,
        *,
        seed: int,
        evaluation: bool = False,
        frame_skip: int = 1,
    ) -> None:
        if seed < 0:
            raise ValueError(f"a seed must not be negative: {seed}")
        self.name = name
        self.num_envs = num_envs
        self.observation = observation
        self.action = action
        self.frame_skip = frame_skip
        self.longest_episode = LONGEST_EPISODE
        self._run_seed = seed
        self._evaluation = evaluation
        self._dtype: Any = np.uint8 if observation.dtype == torch.uint8 else np.float32
        self._pictures = self._dtype is np.uint8  # images are always finite
        self._bounds = np.asarray(action.low, np.float32), np.asarray(action.high, np.float32)
        self._action_shape = (num_envs,) if action.discrete else (num_envs, action.size)
        self._episode = [-1] * num_envs  # numbers of the running episodes; -1 before the first
        self._seeds = [0] * num_envs
        self._returns = np.zeros(num_envs)
        self._log = ActionLog(num_envs, action)
        self._obs: Array | None = None
        # Environment steps of the run, their increment per step, and the start of each running episode.
        self._steps, self._stride = 0, num_envs
        self._begun = [0] * num_envs
        self._tasks: list[int | None] = [None] * num_envs

    @property
    def obs(self) -> Array:
        """The latest observations [E, *obs], on which a resumed run acts first; RuntimeError before the first reset."""
        if self._obs is None:
            raise RuntimeError(f"{self.name}: no observation yet; call reset() first")
        return self._obs

    def reset(self) -> Array:
        """Start the next episode of every environment; return its first observations [E, *obs]."""
        everyone = list(range(self.num_envs))
        obs = self._new_obs()
        self._next_episode(everyone)
        self._begin(everyone, self._seeds, obs)
        if not self._all_finite(obs):
            self._refuse_obs(obs, "the first observation")
        self._obs = obs
        return obs

    def step(self, action: Array) -> Step:
        """Act with [E] integers or [E, A] float32 numbers. An episode that ends is followed by the next within the same
        call.

        Raises:
            NotFinite: A reward or an observation is not a finite number in float32. `state_dict` still returns the
                state before this step, so that a run can be saved and continued from there.
            Diverged: An action is not a finite number.
        """
        if self._obs is None:
            raise RuntimeError(f"{self.name}: reset() must come before the first step()")
        if self.action.discrete:
            action = np.asarray(action)
            if action.dtype.kind not in "iu":
                raise ValueError(f"{self.name} takes integer actions, not {action.dtype}")
        else:
            # An agent may sample from an unbounded distribution, but the space is bounded.
            action = np.clip(np.asarray(action, np.float32), *self._bounds)
            refuse_lost_actions(action, self.name)
        if action.shape != self._action_shape:
            raise ValueError(f"{self.name} takes actions of shape {self._action_shape}, not {action.shape}")
        self._log.append(action)
        try:
            obs, reward, terminated, truncated, ended = self._advance(action)
            # A finite sum of squares proves that all numbers are finite; an infinite one needs an exact check.
            if not (np.vdot(reward, reward) < SQUARES and (self._pictures or math.isfinite(np.vdot(obs, obs)))):
                self._refuse_reward(reward)
                self._refuse_obs(obs, "the observation")
        except NotFinite:
            self._log.take_back()
            raise
        before = self._mark() if ended else None
        self._returns += reward
        self._steps += self._stride
        if not (ended or terminated.any()):  # a lost life terminates, but ends no episode
            self._obs = obs
            never = np.zeros(self.num_envs, np.bool_)
            return Step(obs, reward.astype(np.float32), never, never, never, obs, quiet=True)
        reset = np.zeros(self.num_envs, np.bool_)
        final_obs = obs
        episodes: tuple[Episode, ...] = ()
        if ended:
            reset[ended] = True
            episodes = tuple(self._finished(i) for i in ended)
            self._next_episode(ended)
            obs = final_obs.copy()
            try:
                self._begin(ended, [self._seeds[i] for i in ended], obs)
                if not self._all_finite(obs):
                    self._refuse_obs(obs, "the first observation")
            except NotFinite:
                assert before is not None
                self._go_back(before)
                raise
        self._obs = obs
        return Step(obs, reward.astype(np.float32), terminated, truncated, reset, final_obs, episodes)

    def cut(self, envs: Sequence[int]) -> tuple[Episode, ...]:
        """Truncate the running episodes of some environments, and start their next ones; return the truncated episodes,
        in order. `obs` then holds the first observations of the new episodes (NotFinite if they are not finite)."""
        which = list(envs)
        episodes = tuple(self._finished(i)._replace(cut=True) for i in which)
        obs = self.obs.copy()
        self._next_episode(which)
        self._begin(which, [self._seeds[i] for i in which], obs)
        if not self._all_finite(obs):
            self._refuse_obs(obs, "the first observation")
        self._obs = obs
        return episodes

    def state_dict(self) -> dict[str, Any]:
        """The state from which `load_state_dict` simulates the running episodes again."""
        started = self._obs is not None
        everyone = range(self.num_envs)
        return {
            "name": self.name,
            "seed": self._run_seed,
            "evaluation": self._evaluation,
            "steps": self._steps,
            "episode": list(self._episode),
            "seeds": list(self._seeds),
            "return": self._returns.tolist(),
            "actions": [torch.from_numpy(self._log.since_start(i)) for i in everyone],
            "checksum": [_checksum(self.obs[i]) for i in everyone] if started else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from `state`; `obs` then holds the latest observations of that time.

        Costs as many simulator steps as the longest running episode has had. Raises ValueError if the state belongs to
        another environment, `NotReproduced` if the simulator does not reproduce its episodes.
        """
        if (state["name"], len(state["episode"])) != (self.name, self.num_envs):
            raise ValueError(
                f"the saved state belongs to {len(state['episode'])} x {state['name']} "
                f"and cannot be loaded into {self.num_envs} x {self.name}"
            )
        self._run_seed, self._evaluation = state["seed"], state["evaluation"]
        self._steps = state.get("steps", 0)  # older states belong to stationary problems
        self._episode = list(state["episode"])
        self._log = ActionLog(self.num_envs, self.action)
        self._returns = np.zeros(self.num_envs)
        self._obs = None
        if not state["checksum"]:
            return
        # Running episodes may have begun before the run's seed was changed; older states lack their seeds.
        self._seeds = list(state.get("seeds") or (self._seed_of(i) for i in range(self.num_envs)))
        actions = [a.numpy() for a in state["actions"]]
        self._log.load(actions)
        self._begun = [self._steps - self._stride * len(record) for record in actions]
        obs, self._returns = self._simulate_again(actions)
        for i, checksum in enumerate(state["checksum"]):
            if _checksum(obs[i]) != checksum:
                self._not_reproduced(i, "gives another observation than when the state was saved")
            if self._returns[i] != state["return"][i]:
                self._not_reproduced(i, f"gives the score {self._returns[i]}, not {state['return'][i]}")
        self._obs = obs

    def reseed(self, seed: int) -> None:
        """Derive the seeds of later episodes from another seed. Running episodes continue unchanged, and the problem
        and its drift stay the same (ValueError if the seed is negative)."""
        if seed < 0:
            raise ValueError(f"a seed must not be negative: {seed}")
        self._run_seed = seed

    def picture(self) -> Array | None:
        """An image of the first environment, uint8 [H, W] or [H, W, 3]; None if it cannot be drawn.

        For environments with pixels, it is the newest frame of the agent's observation.
        """
        if not self.observation.pixels:
            return None
        frame = self.obs[0][-self.observation.frame_shape[0] :]
        if self.observation.high < 255:  # one plane per kind of object: later planes cover earlier ones
            planes = np.arange(1, len(frame) + 1)[:, None, None] * (frame > 0)
            return (planes.max(axis=0) * (255 // len(frame))).astype(np.uint8)
        return np.moveaxis(frame, 0, -1) if len(frame) == 3 else frame[-1]

    def close(self) -> None:  # noqa: B027  # most subclasses have nothing to release
        """Release the simulators' resources."""

    @abstractmethod
    def _begin(self, envs: list[int], seeds: list[int], obs: Array) -> None:
        """Reset these environments with these seeds, and write their first observations into `obs` [E, *obs]."""

    @abstractmethod
    def _advance(self, action: Array) -> tuple[Array, Array, Array, Array, list[int]]:
        """Act: observations (the ended episodes' last), float64 rewards, terminated, truncated, whose episode ended.

        The arrays are new ones. The next call for an environment whose episode ended is `_begin`.
        """

    @abstractmethod
    def _simulate_again(self, actions: list[Array]) -> tuple[Array, Array]:
        """Replay the running episodes from their seeds; last observations [E, *obs] and returns [E]."""

    def _new_obs(self) -> Array:
        return np.empty((self.num_envs, *self.observation.shape), self._dtype)

    def _seed_of(self, env: int) -> int:
        return episode_seed(self._run_seed, env, self._episode[env], self._evaluation)

    def _next_episode(self, envs: list[int]) -> None:
        for i in envs:
            self._episode[i] += 1
            self._seeds[i] = self._seed_of(i)
            self._begun[i] = self._steps
            self._returns[i] = 0.0
            self._log.restart(i)

    def _all_finite(self, obs: Array) -> bool:
        """Return whether all numbers are finite. May return False for very large finite numbers."""
        return self._pictures or math.isfinite(np.vdot(obs, obs))

    def _refuse_reward(self, reward: Array) -> None:
        """Refuse a reward that is not a finite float32 number, the type in which agents use it (NotFinite)."""
        for i in np.flatnonzero(~(np.abs(reward) <= LARGEST)).tolist():
            self._not_finite(i, f"the reward is {float(reward[i])!r}, which is not a finite float32 number")

    def _refuse_obs(self, obs: Array, what: str) -> None:
        """Refuse observations [E, *obs] with a number that is not finite (NotFinite)."""
        for i in range(self.num_envs):
            bad = np.argwhere(~np.isfinite(obs[i]))
            if len(bad):
                place = ", ".join(map(str, bad[0].tolist()))
                value = float(obs[i][tuple(bad[0])])
                self._not_finite(i, f"{what} has {value!r} at [{place}], which is not a finite float32 number")

    def _not_finite(self, env: int, what: str) -> NoReturn:
        """Raise NotFinite for the present step, whose action is in the log already, or for a starting episode."""
        step = self._log.length(env)
        steps = self._steps + (self._stride if step else 0)
        raise NotFinite(
            f"{self.name}, environment {env}, episode {self._episode[env]}, step {step} of the episode (environment "
            f"step {steps:,} of the run): {what}"
        )

    def _not_a_number(self, env: int, reward: Any) -> NoReturn:
        self._not_finite(env, f"the reward is {reward!r}, not a number")

    def _mark(self) -> tuple[Any, ...]:
        """The positions of all episodes before the step whose action is the latest in the log."""
        lists = (self._episode, self._seeds, self._begun, self._tasks, self._log.begun)
        return [list(each) for each in lists], self._returns.copy(), self._steps, self._log.count - 1

    def _go_back(self, mark: tuple[Any, ...]) -> None:
        lists, self._returns, self._steps, self._log.count = mark
        self._episode, self._seeds, self._begun, self._tasks, self._log.begun = lists

    def _finished(self, env: int) -> Episode:
        return Episode(env, float(self._returns[env]), self._log.length(env), self._seeds[env], self._tasks[env])

    def _not_reproduced(self, env: int, what: str) -> NoReturn:
        raise NotReproduced(
            f"{self.name}, environment {env}: simulating episode {self._episode[env]} again from its seed "
            f"{self._seeds[env]} and its actions {what}. Either the simulator is not deterministic, or it, its "
            "settings or its version have changed since."
        )


def _checksum(obs: Array) -> int:
    return zlib.crc32(obs.tobytes())


def _as_laid_out(obs: Array, layout: str) -> Array:
    """A view of channel-first observations [E, C, H, W] in the layout of the simulator."""
    if layout == "last":
        return np.moveaxis(obs, 1, -1)
    return obs[:, 0] if layout == "none" else obs


class ListAdapter(Envs):
    """Single gymnasium environments, stepped one after the other.

    With `drift`, they are `Drifting` environments: each episode is given the environment steps of the run at which it
    begins. These steps are part of the state and determine the problem of every step since the running episodes began.
    """

    def __init__(
        self,
        envs: Sequence[Env[Any, Any]],
        *,
        seed: int,
        name: str = "",
        observation: ObservationSpec | None = None,
        evaluation: bool = False,
        frame_skip: int = 1,
        drift: Drifts | None = None,
    ) -> None:
        if not envs:
            raise ValueError("give at least one environment")
        first = envs[0]
        name = name or _name_of(first)
        for env in envs[1:]:
            if (env.observation_space, env.action_space) != (first.observation_space, first.action_space):
                raise ValueError(f"{name}: environments that step together must have the same spaces")
        described, self._layout = describe_observation(first.observation_space, name, observation)
        super().__init__(
            name,
            len(envs),
            _override(described, observation, name),
            describe_action(first.action_space, name),
            seed=seed,
            evaluation=evaluation,
            frame_skip=frame_skip,
        )
        self.envs = list(envs)
        self._raw_shape = first.observation_space.shape
        self._step_one = [env.step for env in self.envs]
        self._narrow = np.dtype(self._dtype)
        self._drift = drift
        if drift is not None:
            self._steps, self._stride = drift.begin, drift.stride

    def state_dict(self) -> dict[str, Any]:
        drift = {} if self._drift is None else {"drift_seed": self._drift.seed}
        return super().state_dict() | drift

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._drift is not None:
            if "drift_seed" not in state:
                raise ValueError(f"the saved state belongs to {self.name} without drift and cannot continue with drift")
            self._drift.reseed(state["drift_seed"])
        super().load_state_dict(state)

    def picture(self) -> Array | None:
        if not self.observation.pixels and self.envs[0].render_mode == "rgb_array":
            return np.asarray(self.envs[0].render())
        return super().picture()

    def _begin(self, envs: list[int], seeds: list[int], obs: Array) -> None:
        laid_out = _as_laid_out(obs, self._layout)
        for i, seed in zip(envs, seeds, strict=True):
            if self._drift is None:
                first = self.envs[i].reset(seed=seed)[0]
            else:
                first, info = self.envs[i].reset(seed=seed, options={"steps": self._begun[i]})
                self._tasks[i] = info["task"]
            if np.shape(first) != self._raw_shape:
                raise ValueError(
                    f"{self.name} returned an observation of shape {np.shape(first)}, but its space has "
                    f"{self._raw_shape}"
                )
            with np.errstate(over="ignore"):
                laid_out[i] = first

    def _advance(self, action: Array) -> tuple[Array, Array, Array, Array, list[int]]:
        obs = self._new_obs()
        laid_out = obs if self._layout == "same" else _as_laid_out(obs, self._layout)
        reward = np.empty(self.num_envs)
        terminated = np.zeros(self.num_envs, np.bool_)
        truncated = np.zeros(self.num_envs, np.bool_)
        ended: list[int] = []
        # Python integers step most simulators twice as fast as numpy's.
        actions: Any = action.tolist() if self.action.discrete else action
        for i, step in enumerate(self._step_one):
            seen, gained, over, cut, _ = step(actions[i])
            if getattr(seen, "dtype", None) is self._narrow:
                laid_out[i] = seen
            else:
                with np.errstate(over="ignore"):  # numbers that become infinite here are refused later
                    laid_out[i] = seen
            try:
                reward[i] = gained
            except (TypeError, ValueError):
                self._not_a_number(i, gained)
            if gained is None or isinstance(gained, str):  # numpy would convert these to numbers
                self._not_a_number(i, gained)
            if over or cut:
                terminated[i], truncated[i] = over, cut
                ended.append(i)
        return obs, reward, terminated, truncated, ended

    def _simulate_again(self, actions: list[Array]) -> tuple[Array, Array]:
        obs, returns = self._new_obs(), np.zeros(self.num_envs)
        laid_out = _as_laid_out(obs, self._layout)
        for i, record in enumerate(actions):
            self._begin([i], [self._seeds[i]], obs)
            for action in record.tolist() if self.action.discrete else record:
                laid_out[i], reward, over, cut, _ = self._step_one[i](action)
                returns[i] += reward
                if over or cut:
                    self._not_reproduced(i, "ends before all of them are taken")
        return obs, returns

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()


class VectorAdapter(Envs):
    """A gymnasium `VectorEnv`, in any autoreset mode.

    Independent of the simulator's own resets at the end of an episode, the environment is then reset with the seed of
    its next episode, by `reset(options={"reset_mask": ...})`. Two conventions exist for the seeds of such a partial
    reset: gymnasium's vector environments take one seed per environment, ALE's one per environment that is reset
    (`seeds_of_masked_only`).
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        *,
        seed: int,
        name: str = "",
        observation: ObservationSpec | None = None,
        evaluation: bool = False,
        frame_skip: int = 1,
        seeds_of_masked_only: bool = False,
        fresh_arrays: bool = False,
    ) -> None:
        name = name or _name_of(env)
        described, self._layout = describe_observation(env.single_observation_space, name, observation)
        super().__init__(
            name,
            env.num_envs,
            _override(described, observation, name),
            describe_action(env.single_action_space, name),
            seed=seed,
            evaluation=evaluation,
            frame_skip=frame_skip,
        )
        self.env = env
        self._masked_only = seeds_of_masked_only
        # A simulator that always returns new arrays of the right type needs no copy.
        self._fresh = fresh_arrays and self._layout == "same" and described.dtype == torch.uint8
        self._raw_shape = (env.num_envs, *(env.single_observation_space.shape or ()))
        # Compared by name: `gymnasium` is not imported here.
        self._same_step = getattr(env.metadata.get("autoreset_mode"), "name", "") == "SAME_STEP"
        self._info: dict[str, Any] = {}

    def _begin(self, envs: list[int], seeds: list[int], obs: Array) -> None:
        partial = len(envs) < self.num_envs
        mask = np.zeros(self.num_envs, np.bool_)
        mask[envs] = True
        given: Any = np.asarray(seeds)
        if not self._masked_only:
            every: list[int | None] = [None] * self.num_envs
            for i, seed in zip(envs, seeds, strict=True):
                every[i] = seed
            given = every
        try:
            raw, self._info = self.env.reset(seed=given, options={"reset_mask": mask} if partial else None)
        except Exception as error:
            raise RuntimeError(
                f"{self.name}: this vector environment cannot reset its environments one by one, each with its own "
                "seed, so its episodes cannot be repeated; give a list of single environments instead"
            ) from error
        new = self._received(raw)
        if partial and not np.array_equal(new[~mask], obs[~mask], equal_nan=self._dtype is np.float32):
            raise RuntimeError(f"{self.name}: a partial reset has changed environments outside its reset_mask")
        obs[mask] = new[mask]

    def _advance(self, action: Array) -> tuple[Array, Array, Array, Array, list[int]]:
        if self.action.discrete:
            action = action.astype(np.int64, copy=False)
        raw, reward, terminated, truncated, self._info = self.env.step(action)
        obs = self._received(raw)
        over = terminated | truncated
        ended: list[int] = np.flatnonzero(over).tolist() if over.any() else []
        if ended and self._same_step:
            # The simulator has already reset, and `obs` belongs to the next episode. gymnasium returns the final
            # observations as an array of objects (None where no episode ended), ALE as one array.
            last, laid_out = self._info["final_obs"], _as_laid_out(obs, self._layout)
            for i in ended:
                laid_out[i] = last[i]
        return obs, self._numbers(reward), np.array(terminated), np.array(truncated), ended

    def _numbers(self, reward: Any) -> Array:
        try:
            return np.array(reward, np.float64)
        except (TypeError, ValueError):
            for i, each in enumerate(reward):
                if not isinstance(each, int | float | np.number):
                    self._not_a_number(i, each)
            raise

    def _simulate_again(self, actions: list[Array]) -> tuple[Array, Array]:
        # Episodes differ in length but must end together, so shorter ones begin later. Until then their
        # environments take arbitrary actions.
        obs, returns = self._new_obs(), np.zeros(self.num_envs)
        total = max(len(record) for record in actions)
        begins = np.array([total - len(record) for record in actions])
        rows = np.zeros((total, *self._action_shape), np.int64 if self.action.discrete else np.float32)
        if not self.action.discrete:
            rows[:] = np.clip(0.0, self.action.low, self.action.high)
        for i, record in enumerate(actions):
            rows[begins[i] :, i] = record
        self._begin(list(range(self.num_envs)), self._seeds, obs)
        for t in range(total):
            obs, reward, _, _, ended = self._advance(rows[t])
            counted = begins <= t
            returns[counted] += reward[counted]
            for i in ended:
                if counted[i]:
                    self._not_reproduced(i, "ends before all of them are taken")
            again = sorted({*ended, *np.flatnonzero(begins == t + 1).tolist()})
            if again:
                self._begin(again, [self._seeds[i] for i in again], obs)
        return obs, returns

    def _received(self, raw: Any) -> Array:
        """The simulator's observations as arrays of the spec's type, which the simulator does not overwrite."""
        if np.shape(raw) != self._raw_shape:
            raise ValueError(
                f"{self.name} returned observations of shape {np.shape(raw)}, but its space has {self._raw_shape}"
            )
        if self._fresh:
            return np.asarray(raw)
        obs = self._new_obs()
        with np.errstate(over="ignore"):  # numbers that become infinite here are refused later
            _as_laid_out(obs, self._layout)[:] = raw
        return obs

    def close(self) -> None:
        """Close the vector environment."""
        self.env.close()


def _name_of(env: Any) -> str:
    spec = getattr(env, "spec", None)
    return spec.id if spec is not None else type(env.unwrapped).__name__


def _override(described: ObservationSpec, given: ObservationSpec | None, name: str) -> ObservationSpec:
    if given is not None and (given.shape, given.dtype) != (described.shape, described.dtype):
        raise ValueError(
            f"{name} has observations of {described.shape} {described.dtype}, not {given.shape} {given.dtype}"
        )
    return given or described

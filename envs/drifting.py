"""Base class of drifts, and the wrapper that applies drifts to an environment."""

from __future__ import annotations

import functools
import inspect
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import gymnasium
import numpy as np

from ..common.ranges import EnvSteps, NotNegative, Positive, Seed, Share, SomeEnvSteps, checked
from .adapter import Array
from .schedule import Level, Moment, Schedule

if TYPE_CHECKING:
    from .drift import Drifts

First = Literal["none", "drawn"]
Changes = Literal["episode", "step"]


@dataclass(frozen=True)
class Target:
    """The environment that a drift changes, without wrappers that render pixels, and whether its agent sees pixels."""

    env: gymnasium.Env[Any, Any]
    name: str
    pixels: bool = False


class Drift(ABC):
    """One kind of change of an environment. All parallel environments share one instance.

    A subclass overrides those of the four hooks that it needs: `enter` sets the simulator, before a reset (and after a
    step for the next one, with `changes=step`); `act`, `observe` and `reward` change signals between simulator and
    agent.
    """

    name: ClassVar[str]
    example: ClassVar[str]
    excludes: ClassVar[tuple[str, ...]] = ()
    """Names of drifts that cannot be combined with this one."""
    numeric: ClassVar[bool] = True
    """Whether levels are numbers, which can be interpolated; otherwise an episode takes one of two adjacent levels."""

    def __init_subclass__(cls, **defaults: Any) -> None:
        """Check the numbers of a subclass's constructor against their ranges. `class Gravity(LogUniform, low=0.5)`
        inherits the constructor, with this default."""
        super().__init_subclass__()
        if defaults:
            cls.__init__ = _with_defaults(cls.__init__, defaults)  # type: ignore[method-assign]
        elif "__init__" in cls.__dict__:
            cls.__init__ = checked(cls.__dict__["__init__"])  # type: ignore[method-assign]

    def __init__(
        self,
        every: EnvSteps,
        at: tuple[SomeEnvSteps, ...],
        order: tuple[Level, ...],
        abruptness: Share,
        levels: Sequence[Any],
        seed: Seed | None,
        changes: Changes = "episode",
    ) -> None:
        if levels and order and max(order) >= len(levels):
            raise ValueError(f"order names level {max(order)}, but there are only the levels 0 to {len(levels) - 1}")
        self.schedule = Schedule(every, tuple(at), tuple(order) or tuple(range(len(levels))), abruptness)
        self.levels = tuple(levels)
        self.changes = changes
        self.fixed_seed = seed
        self._seed = seed or 0
        self._known: dict[int, Any] = {}

    def seed(self, seed: int) -> None:
        """Derive the levels from this seed, unless the spec has its own seed."""
        self._seed = seed if self.fixed_seed is None else self.fixed_seed
        self._known.clear()

    def generator(self, level: int) -> np.random.Generator:
        """The random stream of a level."""
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(_key(self.name), level)))

    def value(self, level: int) -> Any:
        """The value of a level."""
        if level not in self._known:
            self._known[level] = self.given(self.levels[level]) if self.levels else self.draw(level)
        return self._known[level]

    def shown(self, moment: Moment, seed: int) -> Any:
        """The value at a moment, in an episode with this seed."""
        if moment.blend == 0:
            return self.value(moment.level)
        if self.numeric:
            return (1 - moment.blend) * self.value(moment.level) + moment.blend * self.value(moment.next_level)
        drawn = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_key(self.name),))).random()
        return self.value(moment.next_level if drawn < moment.blend else moment.level)

    @abstractmethod
    def bind(self, target: Target) -> None:
        """Called once with the environment; ValueError if the drift cannot change it."""

    @abstractmethod
    def draw(self, level: int) -> Any:
        """Draw the value of a level, given its number."""

    def given(self, level: Any) -> Any:
        """Convert a value of the configuration to the form that `draw` returns."""
        return level

    def enter(self, env: gymnasium.Env[Any, Any], value: Any) -> None:  # noqa: B027  # optional hook
        """Set the value in the simulator."""

    def act(self, action: Any, value: Any) -> Any:
        """The action for the simulator, from the agent's action."""
        return action

    def observe(self, obs: Array, value: Any) -> Array:
        """The agent's observation, from the simulator's; it must be a new array."""
        return obs

    def reward(self, reward: Any, value: Any) -> Any:
        """The agent's reward, from the simulator's."""
        return reward


def _with_defaults(constructor: Callable[..., None], defaults: dict[str, Any]) -> Callable[..., None]:
    """The same constructor with other defaults, which its signature shows."""
    signature = inspect.signature(constructor)
    parameters = [p.replace(default=defaults.get(key, p.default)) for key, p in signature.parameters.items()]
    changed = signature.replace(parameters=parameters)

    @functools.wraps(constructor)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        given = changed.bind(self, *args, **kwargs)
        given.apply_defaults()
        constructor(*given.args, **given.kwargs)

    construct.__signature__ = changed  # type: ignore[attr-defined]
    return construct


class LogUniform(Drift):
    """A positive number for each level, drawn log-uniformly. Level 0 is `own()` if `first` is "none"."""

    def __init__(
        self,
        low: Positive,
        high: Positive,
        every: EnvSteps = 0,
        at: tuple[SomeEnvSteps, ...] = (),
        order: tuple[Level, ...] = (),
        abruptness: Share = 1.0,
        levels: tuple[NotNegative, ...] = (),
        first: First = "none",
        changes: Changes = "episode",
        seed: Seed | None = None,
    ) -> None:
        super().__init__(every, at, order, abruptness, levels, seed, changes)
        if low > high:
            raise ValueError(f"low must not be above high, and {low} is above {high}")
        self.low, self.high, self.first = low, high, first

    def draw(self, level: int) -> Any:
        if level == 0 and self.first == "none":
            return self.own()
        return self.given(float(np.exp(self.generator(level).uniform(np.log(self.low), np.log(self.high)))))

    def own(self) -> Any:
        """The value that leaves the simulator unchanged: 1 for a factor."""
        return 1.0


def _key(name: str) -> int:
    return zlib.crc32(name.encode())


def _overrides(drift: Drift, hook: str) -> bool:
    return getattr(type(drift), hook) is not getattr(Drift, hook)


class Drifting(gymnasium.Wrapper[Array, Any, Any, Any]):
    """One environment with the drifts of a run.

    `reset(seed=…, options={"steps": n})` starts an episode at n environment steps of the run, which determine the
    drifts' values.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], drifts: Drifts) -> None:
        super().__init__(env)
        self._shared = drifts  # one object for all parallel environments
        self._drifts = drifts.drifts
        self._entering, self._acting, self._observing, self._rewarding = (
            [i for i, drift in enumerate(self._drifts) if _overrides(drift, hook)]
            for hook in ("enter", "act", "observe", "reward")
        )
        self._moving = [i for i, drift in enumerate(self._drifts) if drift.changes == "step"]
        self._values: list[Any] = [None] * len(self._drifts)
        self._tasks: dict[str, int] = {}
        self._task = 0
        self._begun, self._taken, self._seed = 0, 0, 0
        if self._observing:
            shape = env.observation_space.shape
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, shape, env.observation_space.dtype)  # type: ignore[arg-type]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode at `options["steps"]` environment steps of the run."""
        self._begun, self._taken, self._seed = (options or {}).get("steps", 0), 0, seed or 0
        self._move(range(len(self._values)), self._begun)
        obs, info = self.env.reset(seed=seed)
        return self._for_agent(obs, info)

    def step(self, action: Any) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        """Action and reward use the present values; the returned observation already uses those of the next step."""
        drifts, values = self._drifts, self._values
        for i in self._acting:
            action = drifts[i].act(action, values[i])
        obs, reward, terminated, truncated, info = self.env.step(action)
        for i in self._rewarding:
            reward = drifts[i].reward(reward, values[i])
        self._taken += 1
        if self._moving:
            self._move(self._moving, self._begun + self._shared.stride * self._taken)
        for i in self._observing:
            obs = drifts[i].observe(obs, values[i])
        info["task"], info["tasks"] = self._task, self._tasks
        return obs, reward, terminated, truncated, info

    def _move(self, which: Iterable[int], steps: int) -> None:
        tasks = dict(self._tasks)
        for i in which:
            drift = self._drifts[i]
            moment = drift.schedule.moment(steps)
            tasks[drift.name] = moment.task
            self._values[i] = drift.shown(moment, self._seed)
            if i in self._entering:
                drift.enter(self.env, self._values[i])
        self._tasks, self._task = tasks, tasks[self._drifts[0].name]

    def _for_agent(self, obs: Array, info: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
        for i in self._observing:
            obs = self._drifts[i].observe(obs, self._values[i])
        return obs, info | {"task": self._task, "tasks": self._tasks}

"""Changes between simulator and agent: of observations, actions and rewards."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import numpy as np

from ..common.ranges import EnvSteps, NotNegative, Number, Positive, Seed, Share, SomeEnvSteps, above, at_least, between
from .adapter import Array
from .drifting import Changes, Drift, First, LogUniform, Target
from .schedule import Level

Sign: TypeAlias = Annotated[int, between(-1, 1, hint="levels are signs, 1 or -1; scale_rewards takes other factors")]
Factor: TypeAlias = Annotated[float, above(0, hint="flip_rewards changes the sign")]
Place: TypeAlias = Annotated[int, at_least(0)]
"""An index in a permutation."""


def _vector(target: Target, verb: str) -> int:
    """The length of the observation, if it is a vector of numbers."""
    space = target.env.observation_space
    if target.pixels or space.shape is None or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(
            f"it {verb} vectors of numbers, but the observations of this environment are pixels or integers"
        )
    return int(space.shape[0])


class ObservationOffset(Drift):
    """Add a vector to every observation; each level has a different vector.

    When: Continual classic control (CartPole, Acrobot, LunarLander): the smallest known problem in which PPO loses
        plasticity, within minutes.
    Paper: Muppidi, Zhang & Heng 2024, "Fast TRAC", 2405.16642, and Tang et al. 2025, "C-CHAIN", 2506.00592: normal
        numbers of standard deviation 2, a new level every 200 iterations of 800 steps, no offset in the first one.
    Differs: An episode keeps its level if a task ends during it; the authors' iterations end all episodes.
    Excludes: nothing.

    Args:
        scale: Standard deviation of the drawn numbers, in the units of the observation.
        every: Length of a task in environment steps.
        at: Alternative to `every`: the environment steps at which the second, third, … task begins.
        order: Order of the levels, repeated: (0, 1) is A-B-A-B. By default, every task has a new level.
        abruptness: 1 changes at once. Below 1, the last share `1 - abruptness` of a task moves to the next level.
        levels: The offsets of the levels, instead of drawn ones.
        first: none: level 0 has no offset; drawn: it has one like all others.
        changes: Whether levels change at the start of an episode, or at every step.
        seed: Seed of the levels; the run's seed by default.
    """

    name = "observation_offset"
    example = "observation_offset(scale=2.0, every=160000)"

    def __init__(
        self,
        scale: NotNegative = 2.0,
        every: EnvSteps = 0,
        at: tuple[SomeEnvSteps, ...] = (),
        order: tuple[Level, ...] = (),
        abruptness: Share = 1.0,
        levels: tuple[tuple[Number, ...], ...] = (),
        first: First = "none",
        changes: Changes = "episode",
        seed: Seed | None = None,
    ) -> None:
        super().__init__(every, at, order, abruptness, levels, seed, changes)
        self.scale, self.first = scale, first

    def bind(self, target: Target) -> None:
        self.size = _vector(target, "shifts")
        self.dtype: Any = target.env.observation_space.dtype

    def draw(self, level: int) -> Array:
        if level == 0 and self.first == "none":
            return np.zeros(self.size)
        return self.generator(level).normal(0.0, self.scale, self.size)

    def given(self, level: tuple[float, ...]) -> Array:
        if len(level) != self.size:
            raise ValueError(
                f"an offset needs {self.size} numbers, one for each entry of an observation, not {len(level)}"
            )
        return np.asarray(level, np.float64)

    def observe(self, obs: Array, value: Array) -> Array:
        return np.add(obs, value, dtype=self.dtype, casting="same_kind")


class _Permutation(Drift):
    """Permutations of `size` items. Each is derived from the previous one, so that successive levels always differ."""

    numeric = False
    size: int
    signs = False

    def __init__(
        self,
        every: int,
        at: tuple[int, ...],
        order: tuple[int, ...],
        abruptness: float,
        levels: tuple[tuple[int, ...], ...],
        first: First,
        seed: int | None,
    ) -> None:
        super().__init__(every, at, order, abruptness, levels, seed)
        self.first = first

    def draw(self, level: int) -> Any:
        known = max((k for k in self._known if k < level), default=-1)
        current = self._known.get(known, self._identity())
        for k in range(known + 1, level + 1):
            current = self._next(k, current)
            self._known[k] = current
        return current

    def _identity(self) -> tuple[Array, Array]:
        return np.arange(self.size), np.ones(self.size, np.float32)

    def _next(self, level: int, before: tuple[Array, Array]) -> tuple[Array, Array]:
        """The source index of each item, and its sign."""
        if level == 0 and self.first == "none":
            return before
        generator = self.generator(level)
        order, sign = self._identity()
        while (order == np.arange(self.size)).all() and (sign == 1).all():
            order = generator.permutation(self.size)
            if self.signs:
                sign = generator.choice(np.array([-1, 1], np.float32), self.size)
        return before[0][order], (before[1] * sign)[order]

    def given(self, level: tuple[int, ...]) -> tuple[Array, Array]:
        if sorted(level) != list(range(self.size)):
            raise ValueError(
                f"a permutation of {self.size} items contains each of 0 … {self.size - 1} once; {level} does not"
            )
        return np.asarray(level), np.ones(self.size, np.float32)


class PermuteObservations(_Permutation):
    """Permute the entries of an observation vector.

    When: To change the meaning of all inputs at once, as in online permuted MNIST, on control tasks.
    Paper: Dohare et al. 2024, "Loss of plasticity in deep continual learning", Nature 632, permutes pixels in the
        same way; each permutation is applied to the previous one.
    Differs: Permutes vectors of control tasks, not pixels.
    Excludes: pixels.

    Args:
        every: Length of a task in environment steps.
        at: Alternative to `every`: the environment steps at which the second, third, … task begins.
        order: Order of the levels, repeated: (0, 1) is A-B-A-B. By default, every task has a new level.
        abruptness: 1 changes at once. Below 1, in the last share `1 - abruptness` of a task, a growing share of
            episodes shows the next level.
        levels: The permutations of the levels, such as (2, 0, 1), instead of drawn ones: entry i of the observation is
            entry `permutation[i]` of the simulator's.
        first: none: level 0 is the simulator's own order; drawn: it is drawn like all others.
        seed: Seed of the levels; the run's seed by default.
    """

    name = "permute_observations"
    example = "permute_observations(every=100000)"

    def __init__(
        self,
        every: EnvSteps = 0,
        at: tuple[SomeEnvSteps, ...] = (),
        order: tuple[Level, ...] = (),
        abruptness: Share = 1.0,
        levels: tuple[tuple[Place, ...], ...] = (),
        first: First = "none",
        seed: Seed | None = None,
    ) -> None:
        super().__init__(every, at, order, abruptness, levels, first, seed)

    def bind(self, target: Target) -> None:
        self.size = _vector(target, "permutes")
        if self.size < 2:
            raise ValueError("a single number cannot be permuted")

    def observe(self, obs: Array, value: tuple[Array, Array]) -> Array:
        return obs[value[0]]


class PermuteActions(_Permutation):
    """Permute the effects of actions.

    When: To change the meaning of the policy's outputs alone: learned features of the environment stay valid.
    Paper: Dohare et al. 2024, "Loss of plasticity in deep continual learning", Nature 632, permute a classifier's
        inputs; Elsayed & Mahmood 2024, 2404.00781, its labels.
    Differs: Permutes actions instead of labels.
    Excludes: nothing.

    Args:
        every: Length of a task in environment steps.
        at: Alternative to `every`: the environment steps at which the second, third, … task begins.
        order: Order of the levels, repeated: (0, 1) is A-B-A-B. By default, every task has a new level.
        abruptness: 1 changes at once. Below 1, in the last share `1 - abruptness` of a task, a growing share of
            episodes shows the next level.
        levels: The permutations of the levels, such as (1, 0), instead of drawn ones. For discrete actions: action i
            has the effect of action `permutation[i]`. For a box: entry i of the simulator's action is entry
            `permutation[i]` of the agent's.
        first: none: level 0 is the simulator's own order; drawn: it is drawn like all others.
        signs: For a box: flip the signs of some entries, too.
        seed: Seed of the levels; the run's seed by default.
    """

    name = "permute_actions"
    example = "permute_actions(every=100000)"

    def __init__(
        self,
        every: EnvSteps = 0,
        at: tuple[SomeEnvSteps, ...] = (),
        order: tuple[Level, ...] = (),
        abruptness: Share = 1.0,
        levels: tuple[tuple[Place, ...], ...] = (),
        first: First = "none",
        signs: bool = False,
        seed: Seed | None = None,
    ) -> None:
        super().__init__(every, at, order, abruptness, levels, first, seed)
        if signs and levels:
            raise ValueError("signs=True excludes given levels: remove one of the two")
        self.signs = signs

    def bind(self, target: Target) -> None:
        space: Any = target.env.action_space
        self.discrete = hasattr(space, "n")
        self.size = int(space.n) if self.discrete else int(np.prod(space.shape))
        if self.discrete and self.signs:
            raise ValueError("discrete actions have no signs")
        if not self.discrete:
            if len({*space.low.tolist()}) > 1 or len({*space.high.tolist()}) > 1:
                raise ValueError("the actions have different bounds, so they cannot be permuted")
            if self.signs and (space.low != -space.high).any():
                raise ValueError("the actions' bounds are not symmetric, so their signs cannot be flipped")
        if self.size < 2 and not self.signs:
            raise ValueError("a single action cannot be permuted" + ("" if self.discrete else "; signs=True flips it"))

    def act(self, action: Any, value: tuple[Array, Array]) -> Any:
        return int(value[0][action]) if self.discrete else action[value[0]] * value[1]


# ------------------------------------------------------------------------------------------------------ rewards


class FlipRewards(Drift):
    """Flip the sign of every reward.

    When: To reverse the objective: the hardest change of values that keeps everything else.
    Paper: Abbas et al. 2023, "Loss of plasticity in continual deep RL", 2303.07507, study changing games; a change of
        the sign alone is the smallest such change.
    Differs: Logged returns are sums of the flipped rewards.
    Excludes: nothing.

    Args:
        every: Length of a task in environment steps.
        at: Alternative to `every`: the environment steps at which the second, third, … task begins.
        order: Order of the levels, repeated. Even levels have the simulator's sign, odd levels the opposite sign.
        abruptness: 1 changes at once. Below 1, in the last share `1 - abruptness` of a task, a growing share of
            episodes shows the next level.
        levels: The signs of the levels, 1 or -1.
    """

    name = "flip_rewards"
    example = "flip_rewards(every=100000)"
    numeric = False

    def __init__(
        self,
        every: EnvSteps = 0,
        at: tuple[SomeEnvSteps, ...] = (),
        order: tuple[Level, ...] = (),
        abruptness: Share = 1.0,
        levels: tuple[Sign, ...] = (),
    ) -> None:
        super().__init__(every, at, order, abruptness, levels, None)
        if any(level not in (-1, 1) for level in levels):
            raise ValueError(f"levels are signs, 1 or -1, not {levels}; scale_rewards takes other factors")
        if len({self.levels[k] if levels else k % 2 for k in self.schedule.order}) == 1:
            raise ValueError("all levels have the same sign, so no reward would be flipped")

    def bind(self, target: Target) -> None:
        """Every problem has rewards."""

    def draw(self, level: int) -> int:
        return -1 if level % 2 else 1

    def reward(self, reward: Any, value: int) -> Any:
        return value * float(reward)


class ScaleRewards(LogUniform):
    """Multiply every reward.

    When: To make targets grow and shrink: values have to change by large factors.
    Paper: Lyle et al. 2024, "Disentangling the causes of plasticity loss", 2402.18762, find that large changes of the
        targets' magnitude do lasting harm.
    Differs: Logged returns are sums of the scaled rewards.
    Excludes: nothing.

    Args:
        low: Lower bound of drawn factors.
        high: Upper bound of drawn factors.
        every: Length of a task in environment steps.
        at: Alternative to `every`: the environment steps at which the second, third, … task begins.
        order: Order of the levels, repeated: (0, 1) is A-B-A-B. By default, every task has a new level.
        abruptness: 1 changes at once. Below 1, the last share `1 - abruptness` of a task moves to the next level.
        levels: The factors of the levels, instead of drawn ones.
        first: none: level 0 has the simulator's rewards; drawn: its factor is drawn like all others.
        changes: Whether levels change at the start of an episode, or at every step.
        seed: Seed of the levels; the run's seed by default.
    """

    name = "scale_rewards"
    example = "scale_rewards(every=100000)"

    def __init__(
        self,
        low: Positive = 0.1,
        high: Positive = 10.0,
        every: EnvSteps = 0,
        at: tuple[SomeEnvSteps, ...] = (),
        order: tuple[Level, ...] = (),
        abruptness: Share = 1.0,
        levels: tuple[Factor, ...] = (),
        first: First = "none",
        changes: Changes = "episode",
        seed: Seed | None = None,
    ) -> None:
        super().__init__(low, high, every, at, order, abruptness, levels, first, changes, seed)

    def bind(self, target: Target) -> None:
        """Every problem has rewards."""

    def reward(self, reward: Any, value: float) -> Any:
        return value * float(reward)

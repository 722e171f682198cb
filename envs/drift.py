"""Non-stationary problems: drift specs make an environment change while an agent learns in it.

    pliant train --env CartPole-v1 --env.drift "observation_offset(scale=2, every=160000)"
    make("HalfCheetah-v5", config=EnvConfig(drift=("friction(every=500000)",)))

A problem is a sequence of *tasks*. Each task has a *level*: an offset, a permutation, a friction, a game (`Schedule`).
Level k is a pure function of the run's seed (or of the spec's own `seed`) and k: it is the same in every parallel
environment, in evaluation and after resumption, and a level that recurs is unchanged. The number of the task is in
gymnasium's `info` and in `Episode.task`, and never in the observation.

An episode has one task from its first step to its last: the task of the environment steps (of all environments
together) at which it began. Specs with `changes=step` follow the schedule within episodes, too. A step, including the
observation that it acts on, belongs to the task at its number of environment steps. If `abruptness` is less than 1,
numbers move steadily from one level to the next. Permutations, signs, games and modes are drawn for each episode, from
its seed: the probability of the next level grows.

In evaluation the problem is fixed at the run's present step. Rewards and returns are those of the changed problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gymnasium

from ..common.specs import Spec, SpecError, one_line, parse, resolve
from .drift_games import Games, Modes
from .drift_physics import ActuatorStrength, Friction, Gravity
from .drift_signals import FlipRewards, ObservationOffset, PermuteActions, PermuteObservations, ScaleRewards
from .drifting import Drift, Drifting, Target


class Drifts:
    """The drift specs of a run, and the run's position in their schedules.

    Args:
        specs: Specs as in `EnvConfig.drift`; at least one.
        seed: Seed of the levels.
        num_envs: Number of parallel environments: each step advances the environment steps by this number.
        at_steps: Environment steps of the run at which the problem is fixed; None: it advances with the steps taken.
    """

    def __init__(self, specs: Sequence[str], seed: int, num_envs: int, at_steps: int | None = None) -> None:
        if at_steps is not None and at_steps < 0:
            raise ValueError(f"at_steps must not be negative: {at_steps}")
        self.drifts = build(specs)
        self.begin = at_steps or 0
        self.stride = num_envs if at_steps is None else 0
        self.seed = seed
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Derive the levels from another seed, such as that of a run that is continued."""
        self.seed = seed
        for drift in self.drifts:
            drift.seed(seed)

    def of_kind(self, kind: type[Drift]) -> Any:
        """The drift of a kind, or None."""
        return next((drift for drift in self.drifts if isinstance(drift, kind)), None)

    def around(
        self, envs: Sequence[gymnasium.Env[Any, Any]], name: str, pixels: bool = False
    ) -> list[gymnasium.Env[Any, Any]]:
        """Wrap environments so that they drift together (ValueError if a spec does not fit)."""
        for drift in self.drifts:
            try:
                drift.bind(Target(envs[0], name, pixels))
            except ValueError as error:
                raise DriftError(f"{name}: {drift.name}: {one_line(error)}") from error
            for level in range(len(drift.levels)):  # report a level that does not fit now, not hours later
                try:
                    drift.value(level)
                except ValueError as error:
                    raise DriftError(f"{name}: {drift.name}: {one_line(error)}") from error
        return [Drifting(env, self) for env in envs]


class DriftError(ValueError):
    """A spec that does not fit the environment. The message is one line."""


# ------------------------------------------------------------------------------------------------------ registry

DRIFTS: dict[str, type[Drift]] = {
    kind.name: kind
    for kind in (
        ActuatorStrength,
        FlipRewards,
        Friction,
        Games,
        Gravity,
        Modes,
        ObservationOffset,
        PermuteActions,
        PermuteObservations,
        ScaleRewards,
    )
}
"""Every kind of drift by its name in specs."""


def build(specs: Iterable[str]) -> list[Drift]:
    """The drifts of these specs (SpecError)."""
    drifts: list[Drift] = []
    for spec, arguments in _resolved(specs):
        try:
            drift = DRIFTS[spec.name](**arguments)
        except ValueError as error:
            raise SpecError(f"{Spec(spec.name, arguments)}: {one_line(error)}") from error
        for other in drifts:
            if other.name == drift.name:
                raise SpecError(f"{drift.name} is given twice; give all of its levels in one spec")
            if other.name in drift.excludes or drift.name in other.excludes:
                raise SpecError(f"{other.name} and {drift.name} exclude each other")
        drifts.append(drift)
    return drifts


def check(specs: Iterable[str]) -> tuple[str, ...]:
    """The specs in canonical spelling; every name, parameter and schedule is checked (SpecError)."""
    specs = tuple(specs)
    build(specs)
    return tuple(str(Spec(spec.name, arguments)) for spec, arguments in _resolved(specs))


def _resolved(specs: Iterable[str]) -> list[tuple[Spec, dict[str, Any]]]:
    registry: Mapping[str, Callable[..., Any]] = DRIFTS
    read = [parse(spec, "drift", ObservationOffset.example) for spec in specs]
    return [(spec, resolve(spec, registry, "drift")) for spec in read]

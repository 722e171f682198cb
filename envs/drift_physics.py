"""Changes of physics: friction, gravity and the strength of actuators, set in place in the running simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from .adapter import Array
from .drifting import LogUniform, Target


def _model(env: gymnasium.Env[Any, Any]) -> Any:
    """MuJoCo's model of an environment; None if there is none."""
    model = getattr(env.unwrapped, "model", None)
    return model if hasattr(model, "geom_friction") else None


class Friction(LogUniform, low=0.02, high=2.0, first="drawn"):
    """Set the sliding friction of all geoms in a MuJoCo world.

    When: Slippery Ant and similar tasks: continual locomotion in which PPO and SAC learn less and less.
    Paper: Dohare et al. 2024, "Loss of plasticity in deep continual learning", Nature 632: log-uniform in [0.02, 2],
        every 2 million steps.
    Differs: The authors write a new XML file and create a new environment; pliant changes the model in place. The
        authors count a period from the first episode of a task, pliant from multiples of `every`.
    Excludes: nothing.

    Args:
        low: Lower bound of drawn frictions.
        high: Upper bound of drawn frictions.
        every: Length of a task in environment steps.
        at: Alternative to `every`: the environment steps at which the second, third, … task begins.
        order: Order of the levels, repeated: (0, 1) is A-B-A-B. By default, every task has a new level.
        abruptness: 1 changes at once. Below 1, the last share `1 - abruptness` of a task moves to the next level.
        levels: The frictions of the levels, instead of drawn ones.
        first: drawn: level 0 is drawn like all others; none: it is the simulator's own friction.
        changes: Whether levels change at the start of an episode, or at every step.
        seed: Seed of the levels; the run's seed by default.
    """

    name = "friction"
    example = "friction(every=2000000)"

    def bind(self, target: Target) -> None:
        model = _model(target.env)
        if model is None:
            raise ValueError("the friction of this simulator cannot be set; MuJoCo's can")
        touching = (model.geom_contype[:, None] & model.geom_conaffinity[None, :]) != 0
        touching = (touching | touching.T) & (model.geom_bodyid[:, None] != model.geom_bodyid[None, :])
        if not touching.any() and not model.npair:
            raise ValueError("no two bodies of this world can touch, so friction has no effect")
        self._own: Array = model.geom_friction[:, 0].copy()

    def own(self) -> Array:
        return self._own

    def given(self, level: float) -> Array:
        return np.full_like(self._own, level)

    def enter(self, env: gymnasium.Env[Any, Any], value: Array) -> None:
        _model(env).geom_friction[:, 0] = value


class Gravity(LogUniform, low=0.5, high=2.0):
    """Multiply gravity.

    When: To change the dynamics while observations and rewards keep their meaning. Works in MuJoCo, CartPole, Pendulum,
        MountainCar and LunarLander; Acrobot's gravity is a constant in its equations.
    Paper: Dulac-Arnold et al. 2020, "An empirical investigation of the challenges of real-world RL", 2003.11881,
        perturbs physical parameters in the same way.
    Differs: A new factor is drawn for each level, log-uniformly.
    Excludes: nothing.

    Args:
        low: Lower bound of drawn factors.
        high: Upper bound of drawn factors.
        every: Length of a task in environment steps.
        at: Alternative to `every`: the environment steps at which the second, third, … task begins.
        order: Order of the levels, repeated: (0, 1) is A-B-A-B. By default, every task has a new level.
        abruptness: 1 changes at once. Below 1, the last share `1 - abruptness` of a task moves to the next level.
        levels: The factors of the levels, instead of drawn ones.
        first: none: level 0 is the simulator's own gravity; drawn: it is drawn like all others.
        changes: Whether levels change at the start of an episode, or at every step.
        seed: Seed of the levels; the run's seed by default.
    """

    name = "gravity"
    example = "gravity(every=500000)"

    def bind(self, target: Target) -> None:
        plain: Any = target.env.unwrapped
        if (model := _model(target.env)) is not None:
            self._set: Callable[[Any, Any], None] = _set_mujoco
            self._gravity: Any = model.opt.gravity.copy()
        elif attribute := next((a for a in ("gravity", "g") if isinstance(getattr(plain, a, None), float)), None):
            self._set = lambda env, value: _set_attribute(env, attribute, value)
            self._gravity = getattr(plain, attribute)
        else:
            raise ValueError("the gravity of this simulator cannot be set")
        if not np.any(self._gravity):
            raise ValueError("this world has no gravity")

    def enter(self, env: gymnasium.Env[Any, Any], value: float) -> None:
        self._set(env.unwrapped, value * self._gravity)


def _set_mujoco(env: Any, gravity: Array) -> None:
    env.model.opt.gravity[:] = gravity


def _set_attribute(env: Any, attribute: str, gravity: float) -> None:
    setattr(env, attribute, gravity)
    # Box2D creates a new world at a reset; within an episode, its gravity has to be set here.
    if hasattr(env, "world"):
        env.world.gravity = (0, gravity)


class ActuatorStrength(LogUniform, low=0.3, high=1.5):
    """Multiply the strength of a MuJoCo body's actuators (`actuator_gear`).

    When: To model wear and repair of a body: dynamics change, observations and rewards keep their meaning.
    Paper: Dulac-Arnold et al. 2020, "An empirical investigation of the challenges of real-world RL", 2003.11881,
        perturbs physical parameters in the same way.
    Differs: One factor for all actuators, drawn for each level, log-uniformly. Control costs are those of the agent's
        action, independent of the factor.
    Excludes: nothing.

    Args:
        low: Lower bound of drawn factors.
        high: Upper bound of drawn factors.
        every: Length of a task in environment steps.
        at: Alternative to `every`: the environment steps at which the second, third, … task begins.
        order: Order of the levels, repeated: (0, 1) is A-B-A-B. By default, every task has a new level.
        abruptness: 1 changes at once. Below 1, the last share `1 - abruptness` of a task moves to the next level.
        levels: The factors of the levels, instead of drawn ones.
        first: none: level 0 is the simulator's own strength; drawn: it is drawn like all others.
        changes: Whether levels change at the start of an episode, or at every step.
        seed: Seed of the levels; the run's seed by default.
    """

    name = "actuator_strength"
    example = "actuator_strength(every=500000)"

    def bind(self, target: Target) -> None:
        model = _model(target.env)
        if model is None or not model.nu:
            raise ValueError("the strength of this simulator's actuators cannot be set; MuJoCo's can")
        self._gear: Array = model.actuator_gear.copy()

    def enter(self, env: gymnasium.Env[Any, Any], value: float) -> None:
        _model(env).actuator_gear[:] = value * self._gear

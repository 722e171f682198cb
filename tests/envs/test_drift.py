"""Drifting problems: each drift spec is compared with the real simulators, and runs with drift stop and resume."""

from __future__ import annotations

import inspect
import io
import itertools
import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from processes import Command, outcome_of

from pliant.agents.checkpoint import Checkpoints
from pliant.common.seeds import derive_seed
from pliant.common.spaces import Step
from pliant.common.specs import SpecError
from pliant.envs import EnvConfig, Envs, NotReproduced, episode_seed, make
from pliant.envs.atari import AtariGame, AtariListAdapter
from pliant.envs.drift import DRIFTS, Drifts, check
from pliant.envs.schedule import Schedule
from pliant.lab.experiments.config import default_run_folder, defaults, differences, dump, load, parse
from pliant.scripts import main
from pliant.scripts.train import main as train


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def drifting(name: str, *specs: str, num_envs: int = 1, seed: int = 0, **options: Any) -> Envs:
    made = {key: options.pop(key) for key in ("evaluation", "at_steps", "drift_seed") if key in options}
    return make(name, num_envs, seed, EnvConfig(drift=specs, **options), **made)


def actions_for(envs: Envs, steps: int, seed: int = 0) -> Any:
    rng, spec = np.random.default_rng(seed), envs.action
    if spec.discrete:
        return rng.integers(spec.size, size=(steps, envs.num_envs))
    return rng.uniform(spec.low, spec.high, (steps, envs.num_envs, spec.size)).astype(np.float32)


def played(envs: Envs, actions: Any) -> tuple[list[Any], list[Step]]:
    """The observations before each action and after the last, and the steps."""
    shown, steps = [envs.reset().copy()], []
    for action in actions:
        steps.append(envs.step(action))
        shown.append(steps[-1].obs)
    return shown, steps


def inner(envs: Envs, i: int = 0) -> Any:
    return envs.envs[i].unwrapped  # type: ignore[attr-defined]


def levels(envs: Envs, number: int = 0) -> Any:
    """The function that gives the levels of a drift."""
    return envs._drift.drifts[number].value  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------ signals


def test_an_offset_is_added_to_every_observation() -> None:
    spec = "observation_offset(scale=2.0, every=60)"
    plain, offset = make("CartPole-v1", 3), drifting("CartPole-v1", spec, num_envs=3)
    actions = actions_for(plain, 100)
    (seen, steps), (shifted, others) = played(plain, actions), played(offset, actions)
    started_at = [0, 0, 0]
    level = levels(offset)
    assert not level(0).any() and level(1).any()
    tasks = set()
    for t, (a, b) in enumerate(zip(seen, shifted, strict=True)):
        for i in range(3):
            if t and steps[t - 1].reset[i]:
                assert np.array_equal(
                    others[t - 1].final_obs[i],
                    steps[t - 1].final_obs[i] + level(started_at[i] // 60).astype(np.float32),
                )
                (final_state,) = (e for e in others[t - 1].episodes if e.env == i)
                assert final_state.task == started_at[i] // 60
                started_at[i] = 3 * t
            # An episode keeps the offset with which it began.
            assert np.array_equal(b[i], a[i] + level(started_at[i] // 60).astype(np.float32))
            tasks.add(started_at[i] // 60)
    assert tasks == {0, 1, 2, 3, 4}
    for a, b in zip(steps, others, strict=True):
        assert np.array_equal(a.reward, b.reward) and np.array_equal(a.terminated, b.terminated)


def test_offsets_are_normally_distributed() -> None:
    drift = DRIFTS["observation_offset"](scale=2.0, every=1, first="drawn")
    drift.size = 8
    numbers = np.stack([drift.value(k) for k in range(500)])
    assert numbers.std() == pytest.approx(2, rel=0.05) and abs(numbers.mean()) < 0.1
    assert len(np.unique(numbers)) == numbers.size


def test_levels_depend_only_on_the_seed_of_the_run() -> None:
    """They are equal in every environment, in evaluation, for monitors and when they recur; other seeds give others."""
    spec = "observation_offset(every=10, order=(1, 2), first=drawn)"
    run = drifting("CartPole-v1", spec, num_envs=2, seed=7)
    assert np.array_equal(levels(run)(1), levels(drifting("CartPole-v1", spec, seed=3, drift_seed=7))(1))
    assert not np.array_equal(levels(run)(1), levels(drifting("CartPole-v1", spec, seed=3))(1))
    with_seed = "observation_offset(every=10, order=(1, 2), first=drawn, seed=7)"
    assert np.array_equal(levels(run)(1), levels(drifting("CartPole-v1", with_seed, seed=3))(1))
    evaluation = drifting("CartPole-v1", spec, seed=3, drift_seed=7, evaluation=True, at_steps=35)
    first = evaluation.reset()[0].copy()
    bare = make("CartPole-v1", 1, 3, evaluation=True).reset()[0]
    assert np.allclose(first - bare, levels(run)(2), atol=1e-6)  # task 3 shows the second level of the order again


def test_two_specs_have_unrelated_levels() -> None:
    specs = (f"{drift}(every=5, low=0.1, high=9)" for drift in ("gravity", "actuator_strength"))
    envs = drifting("HalfCheetah-v5", *specs)
    assert levels(envs, 0)(1) != levels(envs, 1)(1)


def test_observations_are_permuted() -> None:
    spec = "permute_observations(every=40)"
    plain, permuted = make("Pendulum-v1"), drifting("Pendulum-v1", spec, max_episode_steps=40)
    plain = make("Pendulum-v1", config=EnvConfig(max_episode_steps=40))
    actions = actions_for(plain, 200)
    seen, shuffled = played(plain, actions)[0], played(permuted, actions)[0]
    orders = [tuple(levels(permuted)(k)[0]) for k in range(6)]
    assert orders[0] == (0, 1, 2) and all(a != b for a, b in itertools.pairwise(orders))
    for t, (a, b) in enumerate(zip(seen, shuffled, strict=True)):
        assert np.array_equal(b[0], a[0][list(orders[t // 40])])


def test_actions_are_permuted() -> None:
    """With an order, each action has the effect of the action that the order names."""
    specs = ("permute_actions(levels=((2, 0, 1), (1, 2, 0)), every=50)",)
    plain = make("Acrobot-v1", config=EnvConfig(max_episode_steps=50))
    permuted = drifting("Acrobot-v1", *specs, max_episode_steps=50)
    actions = actions_for(plain, 100)
    done = np.concatenate([np.array([2, 0, 1])[actions[:50]], np.array([1, 2, 0])[actions[50:]]])
    for a, b in zip(played(plain, done)[0], played(permuted, actions)[0], strict=True):
        assert np.array_equal(a, b)


def test_dimensions_of_an_action_are_permuted_and_change_signs() -> None:
    plain = make("HalfCheetah-v5", config=EnvConfig(max_episode_steps=30))
    permuted = drifting("HalfCheetah-v5", "permute_actions(every=30, signs=True)", max_episode_steps=30)
    actions = actions_for(plain, 60)
    order, sign = levels(permuted)(1)
    assert sorted(order) == list(range(6)) and set(np.abs(sign)) == {1} and (sign < 0).any()
    done = actions.copy()
    done[30:] = actions[30:][..., order] * sign
    for a, b in zip(played(plain, done)[0], played(permuted, actions)[0], strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(levels(drifting("Pendulum-v1", "permute_actions(every=9, signs=True)"))(1)[1], [-1])


def test_consecutive_orders_differ_even_for_two_actions() -> None:
    envs = drifting("CartPole-v1", "permute_actions(every=5)")
    assert list(levels(envs)(3)[0]) == [1, 0]
    assert [list(levels(envs)(k)[0]) for k in range(20)] == 10 * [[0, 1], [1, 0]]
    some, all_ = (drifting("HalfCheetah-v5", "permute_actions(every=5, signs=True)") for _ in range(2))
    for k in range(6):
        levels(all_)(k)
    assert all(np.array_equal(a, b) for a, b in zip(levels(some)(5), levels(all_)(5), strict=True))


@pytest.mark.parametrize(
    ("spec", "factors"),
    [
        ("flip_rewards(every=50)", [1, -1, 1, -1]),
        ("flip_rewards(every=50, levels=(-1, 1))", [-1, 1, -1, 1]),
        ("scale_rewards(every=50, levels=(2, 0.5))", [2, 0.5, 2, 0.5]),
        ("scale_rewards(every=50, levels=(2, 4), abruptness=0.0)", [2, 4, 2, 4]),
    ],
)
def test_rewards_are_multiplied_by_the_level_of_their_task(spec: str, factors: list[float]) -> None:
    plain, changed = (
        make("Pendulum-v1", config=EnvConfig(max_episode_steps=25)),
        drifting("Pendulum-v1", spec, max_episode_steps=25),
    )
    actions = actions_for(plain, 200)
    a, b = played(plain, actions)[1], played(changed, actions)[1]
    for t, (x, y) in enumerate(zip(a, b, strict=True)):
        factor = factors[t // 50]
        if "abruptness=0.0" in spec and t // 25 % 2:  # the second episode of a task begins in the middle
            factor = 3
        assert y.reward[0] == pytest.approx(factor * x.reward[0], rel=1e-6)
        for e, f in zip(x.episodes, y.episodes, strict=True):
            assert f.ret == pytest.approx(factor * e.ret) and f.task == t // 50


def test_drawn_factors_are_log_uniform() -> None:
    drift = DRIFTS["scale_rewards"](every=1)
    assert drift.value(0) == 1
    logs = np.log10([drift.value(k) for k in range(1, 600)])
    assert logs.min() > -1 and logs.max() < 1 and abs(logs.mean()) < 0.08
    assert logs.std() == pytest.approx(0.577, abs=0.04)


# ------------------------------------------------------------------------------------------------------ physics


def changed_directly(name: str, change: Any, actions: Any, seed: int, **options: Any) -> list[Any]:
    """The observations of a gymnasium environment whose physics the test changes directly."""
    env = gymnasium.make(name, **options)
    change(env.unwrapped)
    shown = [env.reset(seed=seed)[0]]
    shown += [env.step(int(a[0]) if np.ndim(a) == 1 else a[0])[0] for a in actions]
    env.close()
    return [np.asarray(obs, np.float32) for obs in shown]


def set_friction(env: Any) -> None:
    env.model.geom_friction[:, 0] = 0.03


def set_gravity(env: Any) -> None:
    env.model.opt.gravity[:] = [0, 0, -9.81 * 0.5]


def set_gear(env: Any) -> None:
    env.model.actuator_gear[:, 0] *= 0.5


PHYSICS = {
    "friction of HalfCheetah": ("HalfCheetah-v5", "friction(levels=(0.03, 1.5), every=100)", set_friction, {}),
    "friction of Ant": ("Ant-v5", "friction(levels=(0.03, 1.5), every=100)", set_friction, {}),
    "gravity of Hopper": ("Hopper-v5", "gravity(levels=(0.5, 2), every=100)", set_gravity, {}),
    "strength of HalfCheetah": ("HalfCheetah-v5", "actuator_strength(levels=(0.5, 2), every=100)", set_gear, {}),
    "gravity of CartPole": (
        "CartPole-v1",
        "gravity(levels=(0.5, 2), every=100)",
        lambda env: setattr(env, "gravity", 4.9),
        {},
    ),
    "gravity of Pendulum": ("Pendulum-v1", "gravity(levels=(0.5, 2), every=100)", lambda env: None, {"g": 5.0}),
    "gravity of MountainCar": (
        "MountainCar-v0",
        "gravity(levels=(0.5, 2), every=100)",
        lambda env: setattr(env, "gravity", 0.00125),
        {},
    ),
    "gravity of LunarLander": (
        "LunarLander-v3",
        "gravity(levels=(0.5, 1), every=100)",
        lambda env: None,
        {"gravity": -5.0},
    ),
}


@pytest.mark.parametrize("case", PHYSICS)
def test_changed_physics_equal_a_direct_change_of_the_simulator(case: str) -> None:
    name, spec, change, options = PHYSICS[case]
    envs, plain = drifting(name, spec), make(name)
    actions = actions_for(envs, 12)
    shown = [obs[0] for obs in played(envs, actions)[0]]
    seed = episode_seed(0, 0, 0)
    if "Lunar" in name:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = changed_directly(name, change, actions, seed, **options)
    else:
        expected = changed_directly(name, change, actions, seed, **options)
    for t, (a, b) in enumerate(zip(shown, expected, strict=True)):
        assert np.array_equal(a, b), t
    steps_to_the_ground = 12
    assert not all(
        np.array_equal(a, b[0]) for a, b in zip(shown, played(plain, actions[:steps_to_the_ground])[0], strict=True)
    )


def test_friction_changes_only_the_sliding_friction_of_every_geom() -> None:
    envs, own = drifting("Hopper-v5", "friction(every=30, first=none)", max_episode_steps=10), make("Hopper-v5")
    before = inner(own).model.geom_friction.copy()
    assert len(np.unique(before[:, 0])) > 1
    actions = actions_for(envs, 45)
    envs.reset()
    for t, action in enumerate(actions):
        friction = inner(envs).model.geom_friction
        assert np.array_equal(friction[:, 1:], before[:, 1:])
        if t < 20:
            assert np.array_equal(friction, before)
        envs.step(action)
    now = inner(envs).model.geom_friction[:, 0]
    assert len(np.unique(now)) == 1 and 0.02 <= now[0] <= 2 and now[0] != 1


def test_factors_multiply_the_original_physics() -> None:
    """The factors of successive levels are not accumulated."""
    specs = ("gravity(levels=(0.5, 2), every=10)", "actuator_strength(levels=(2, 0.5), every=20)")
    envs, own = drifting("HalfCheetah-v5", *specs, max_episode_steps=5), inner(make("HalfCheetah-v5")).model
    envs.reset()
    for t, action in enumerate(actions_for(envs, 65)):
        model = inner(envs).model
        assert np.array_equal(model.opt.gravity, own.opt.gravity * (0.5, 2)[t // 10 % 2])
        assert np.array_equal(model.actuator_gear, own.actuator_gear * (2, 0.5)[t // 20 % 2])
        envs.step(action)


def test_gravity_changes_within_a_landing() -> None:
    envs = drifting("LunarLander-v3", "gravity(levels=(1, 0.25), every=7, changes=step)")
    envs.reset()
    for t in range(30):
        assert inner(envs).world.gravity[1] == pytest.approx(-10 * (1, 0.25)[t // 7 % 2])
        falling = inner(envs).lander.linearVelocity[1]
        envs.step(np.array([0]))
        fallen = inner(envs).lander.linearVelocity[1] - falling
        assert fallen == pytest.approx(-10 * (1, 0.25)[t // 7 % 2] / 50, abs=0.03)  # its legs pull a little


def test_frictions_are_log_uniform() -> None:
    envs = drifting("HalfCheetah-v5", "friction(every=30)")
    logs = np.log([levels(envs)(k)[0] for k in range(400)])
    low, high = np.log(0.02), np.log(2)
    assert low <= logs.min() < low + 0.1 and high - 0.1 < logs.max() <= high
    assert logs.mean() == pytest.approx((low + high) / 2, abs=0.2)


# ------------------------------------------------------------------------------------------------------ when


def test_a_change_within_episodes_follows_the_schedule_at_every_step() -> None:
    """Observations, motion and rewards at s steps follow the offset, gravity and scale of step s."""
    specs = (
        "observation_offset(levels=((0, 0, 0), (1, 2, 3)), every=40, abruptness=0.25, changes=step)",
        "gravity(levels=(1, 2), every=60, changes=step)",
        "scale_rewards(levels=(1, 3), every=30, abruptness=0, changes=step)",
    )
    envs = drifting("Pendulum-v1", *specs, num_envs=2)
    plain = gymnasium.make("Pendulum-v1")
    actions = actions_for(envs, 90)
    shown, steps = played(envs, actions)
    for lane in range(2):
        raw, _ = plain.reset(seed=episode_seed(0, lane, 0))
        for t, action in enumerate(actions):
            s = 2 * t
            offset = Schedule(40, order=(0, 1), abruptness=0.25).moment(s)
            expected_offset = np.array([1, 2, 3]) * (
                (1 - offset.blend) * offset.level + offset.blend * offset.next_level
            )
            assert np.allclose(shown[t][lane], raw + expected_offset, atol=1e-5)
            plain.unwrapped.g = 10.0 * (1 + s // 60 % 2)  # type: ignore[attr-defined]
            raw, reward, *_ = plain.step(action[lane])
            scale = Schedule(30, order=(0, 1), abruptness=0).moment(s)
            factor = 1 + 2 * ((1 - scale.blend) * scale.level + scale.blend * scale.next_level)
            assert steps[t].reward[lane] == pytest.approx(factor * float(reward), rel=1e-5)


def test_values_that_cannot_be_interpolated_are_drawn_with_growing_probability() -> None:
    part = DRIFTS["flip_rewards"](every=100, abruptness=0.0)
    for steps, share in ((0, 0.0), (30, 0.3), (80, 0.8)):
        moment = part.schedule.moment(steps)
        flipped = [part.shown(moment, seed) == -1 for seed in range(2000)]
        assert np.mean(flipped) == pytest.approx(share, abs=0.04)
    # Two drifts of one episode draw independently.
    other = DRIFTS["permute_actions"](every=100, abruptness=0.0)
    other.size = 2
    alike = [(part.shown(moment, seed) == -1) == (other.shown(moment, seed)[0][0] == 1) for seed in range(1000)]
    assert np.mean(alike) == pytest.approx(0.8**2 + 0.2**2, abs=0.05)


def test_the_task_is_reported_but_not_observed() -> None:
    specs = ("permute_actions(every=20)", "scale_rewards(every=50)")
    envs = drifting("CartPole-v1", *specs)
    assert envs.observation == make("CartPole-v1").observation and envs.action == make("CartPole-v1").action
    lane = envs.envs[0]  # type: ignore[attr-defined]
    _, info = lane.reset(seed=4, options={"steps": 70})
    assert info["task"] == 3 and info["tasks"] == {"permute_actions": 3, "scale_rewards": 1}
    info = lane.step(0)[4]
    assert info["task"] == 3 and info["tasks"] == {"permute_actions": 3, "scale_rewards": 1}
    episodes = [e for step in played(envs, actions_for(envs, 150))[1] for e in step.episodes]
    started_at = np.cumsum([0, *(e.length for e in episodes)])[:-1]
    assert [e.task for e in episodes] == [b // 20 for b in started_at] and len({e.task for e in episodes}) > 3


def test_an_evaluation_keeps_the_problem_of_one_step() -> None:
    spec = "observation_offset(every=30, first=drawn)"
    for at_steps, task in ((0, 0), (29, 0), (30, 1), (65, 2)):
        envs = drifting("CartPole-v1", spec, num_envs=3, evaluation=True, at_steps=at_steps)
        plain = make("CartPole-v1", 3, evaluation=True)
        actions = actions_for(envs, 60)
        (seen, _), (shown, steps) = played(plain, actions), played(envs, actions)
        for a, b in zip(seen, shown, strict=True):
            assert np.array_equal(b, a + levels(envs)(task).astype(np.float32))
        episodes = [e for step in steps for e in step.episodes]
        assert episodes and all(e.task == task for e in episodes)
    default = drifting("CartPole-v1", spec, evaluation=True)  # at the first step by default
    assert {e.task for step in played(default, actions_for(default, 90))[1] for e in step.episodes} == {0}
    with pytest.raises(ValueError, match="must not be negative"):
        drifting("CartPole-v1", spec, at_steps=-1)


# ------------------------------------------------------------------------------------------------------ games


def test_every_task_plays_its_minatar_game() -> None:
    """Each task plays the original game with six actions, and with empty channels if it has fewer channels."""
    row = ("Breakout", "Seaquest", "Asterix")
    envs = drifting(
        "MinAtar/Breakout-v0", "games(levels=(Breakout, Seaquest, Asterix), every=40)", max_episode_steps=20, num_envs=2
    )
    assert envs.observation.shape == (10, 10, 10) and envs.action.size == 6
    actions = actions_for(envs, 140)
    shown, _ = played(envs, actions)
    alone = {g: make(f"MinAtar/{g}-v0", 1, config=EnvConfig(max_episode_steps=20)).envs[0] for g in row}  # type: ignore[attr-defined]
    games = set()
    for lane in range(2):
        t, episode = 0, 0
        while t < 140:
            game = row[2 * t // 40 % 3]
            games.add(game)
            obs, _ = alone[game].reset(seed=episode_seed(0, lane, episode))
            over = cut = False
            while True:
                assert np.array_equal(shown[t][lane][: len(obs)], obs) and not shown[t][lane][len(obs) :].any()
                if t == 140:
                    break
                obs, _, over, cut, _ = alone[game].step(int(actions[t][lane]))
                t += 1
                if over or cut:
                    break
            episode += 1
            if not (over or cut):
                break
    assert games == set(row)
    assert drifting("MinAtar/Seaquest-v0", "games(every=9)")._drift.drifts[0].levels == (  # type: ignore[attr-defined]
        "Seaquest",
        "SpaceInvaders",
        "Asterix",
        "Breakout",
        "Freeway",
    )


@pytest.mark.parametrize(
    "options", [{"terminal_on_life_loss": True, "frame_skip": 12}, {"max_episode_frames": 99, "frame_skip": 3}]
)
def test_single_emulators_equal_the_vector_environment(options: dict[str, Any]) -> None:
    """Seeds, frames without action, sticky actions, pooling and ends of episodes are equal to the last bit."""
    vector, single = (make("ALE/Breakout-v5", 2, 5, EnvConfig(**options, **more)) for more in ({}, {"mode": 0}))
    assert isinstance(single, AtariListAdapter) and not isinstance(vector, AtariListAdapter)
    assert (vector.observation, vector.action) == (single.observation, single.action)
    actions = actions_for(vector, 80)
    (a, steps), (b, others) = played(vector, actions), played(single, actions)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    for x, y in zip(steps, others, strict=True):
        assert all(np.array_equal(p, q) for p, q in zip(x[:6], y[:6], strict=True)) and x.episodes == y.episodes
    assert any(step.episodes for step in steps)
    vector.close()


def test_every_task_plays_its_atari_game_also_when_it_recurs() -> None:
    envs = drifting(
        "ALE/Pong-v5",
        "games(levels=(Pong, Boxing), every=20, order=(0, 1, 1, 0))",
        full_action_space=True,
        max_episode_frames=40,
        noop_max=1,
    )
    assert envs.action.size == 18
    actions = actions_for(envs, 80)
    shown, _ = played(envs, actions)
    alone = {
        g: AtariGame(g.lower(), EnvConfig(full_action_space=True, max_episode_frames=40, noop_max=1), mode)
        for g, mode in (("Pong", 0), ("Boxing", 0))
    }
    for episode in range(8):
        game = alone[("Pong", "Boxing", "Boxing", "Pong")[episode // 2]]
        obs, _ = game.reset(seed=episode_seed(0, 0, episode))
        for t in range(10):
            assert np.array_equal(shown[10 * episode + t][0], obs)
            obs = game.step(int(actions[10 * episode + t][0]))[0]


def test_every_task_plays_the_mode_and_difficulty_of_its_level() -> None:
    envs = drifting("ALE/Freeway-v5", "modes(levels=(0, (3, 1)), every=10)", max_episode_frames=40, noop_max=1)
    played(envs, actions_for(envs, 5))
    assert (inner(envs).mode, inner(envs).difficulty) == (0, None)
    shown, _ = played(envs, (actions := actions_for(envs, 30)))
    assert (inner(envs).mode, inner(envs).difficulty) == (3, 1)  # those of the episode that began at 35 steps
    with_mode = {
        level: AtariGame("freeway", EnvConfig(max_episode_frames=40, noop_max=1), m, d)
        for level, (m, d) in enumerate(((0, 0), (3, 1)))
    }
    different = 0
    for episode in range(3):  # they began at 5, 15 and 25 steps
        steps = 5 + 10 * episode
        game, other = with_mode[steps // 10 % 2], with_mode[1 - steps // 10 % 2]
        seed = episode_seed(0, 0, 1 + episode)
        obs, against = game.reset(seed=seed)[0], other.reset(seed=seed)[0]
        for t in range(10 * episode, 10 * episode + 10):
            assert np.array_equal(shown[t][0], obs)
            different += not np.array_equal(obs, against)
            obs, against = (g.step(int(actions[t][0]))[0] for g in (game, other))
    assert different > 20
    assert drifting("ALE/Freeway-v5", "modes(every=9)")._drift.drifts[0].levels == tuple(range(8))  # type: ignore[attr-defined]


def test_a_game_runs_without_frame_stack_and_initial_no_ops() -> None:
    game = AtariGame("pong", EnvConfig(noop_max=0, frame_stack=1, sticky_actions=0.0, frame_skip=1))
    obs, _ = game.reset(seed=0)
    assert obs.shape == (1, 84, 84) and obs.max() > 0


# ------------------------------------------------------------------------------------------------------ resuming

CHANGING = {
    "offset": ("CartPole-v1", ["observation_offset(every=50)"], {}),
    "offset, gradual": ("CartPole-v1", ["observation_offset(every=100, abruptness=0.1, changes=step)"], {}),
    "signs, drawn": ("CartPole-v1", ["permute_actions(every=90, abruptness=0)", "flip_rewards(every=70)"], {}),
    "friction": ("HalfCheetah-v5", ["friction(every=80)"], {"max_episode_steps": 30}),
    "friction, gradual": (
        "HalfCheetah-v5",
        ["friction(every=60, abruptness=0, changes=step)"],
        {"max_episode_steps": 50},
    ),
    "lunar gravity": ("LunarLander-v3", ["gravity(every=70, changes=step)", "permute_observations(every=200)"], {}),
    "minatar": ("MinAtar/Breakout-v0", ["games(levels=(Breakout, SpaceInvaders), every=60, abruptness=0.5)"], {}),
    "atari": (
        "ALE/Pong-v5",
        ["games(levels=(Pong, Boxing), every=40)"],
        {"full_action_space": True, "max_episode_frames": 90, "noop_max": 1},
    ),
    "modes": (
        "ALE/Freeway-v5",
        ["modes(levels=(0, 3), every=40, abruptness=0.3)"],
        {"max_episode_frames": 90, "noop_max": 1},
    ),
}


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("case", CHANGING)
def test_a_drifting_problem_resumes_exactly(case: str) -> None:
    """It resumes in the middle of a level, at its end and just after, and in the middle of a gradual change."""
    name, specs, options = CHANGING[case]
    original = drifting(name, *specs, num_envs=2, seed=1, **options)
    length, onwards = (70, 15) if "ALE" in name else (130, 30)
    actions = actions_for(original, length)
    every = original._drift.drifts[0].schedule.every  # type: ignore[attr-defined]
    stops = {every // 2 - 1, every // 2, every // 2 + 1, every // 2 + every // 6, 3, 7 * every // 8, length - onwards}
    if "ALE" in name:
        stops = {every // 2 - 1, every // 2, every // 2 + 13}
    original.reset()
    states, steps = {}, []
    for t, action in enumerate(actions):
        if t in stops:
            states[t] = through_a_file(original.state_dict()), original.obs.copy()
        steps.append(original.step(action))
    assert len({e.task for step in steps for e in step.episodes}) > 1 or not steps[0].episodes
    resumed = drifting(name, *specs, num_envs=2, seed=55, **options)
    resumed.reset()
    for t, (state, obs) in states.items():
        resumed.load_state_dict(state)
        assert np.array_equal(resumed.obs, obs)
        for action, step in zip(actions[t : t + onwards], steps[t : t + onwards], strict=True):
            again = resumed.step(action)
            assert all(np.array_equal(a, b) for a, b in zip(again[:6], step[:6], strict=True))
            assert again.episodes == step.episodes


def test_a_state_of_another_drift_is_refused() -> None:
    envs = drifting("CartPole-v1", "observation_offset(every=10, first=drawn)")
    played(envs, actions_for(envs, 15))
    state = envs.state_dict()
    with pytest.raises(NotReproduced, match="another observation"):
        drifting("CartPole-v1", "observation_offset(every=3)").load_state_dict(state)
    with pytest.raises(ValueError, match="without drift"):
        drifting("CartPole-v1", "gravity(every=3)").load_state_dict(make("CartPole-v1").state_dict())


def test_states_of_earlier_versions_load_without_drift() -> None:
    envs = make("CartPole-v1", 2)
    actions = actions_for(envs, 60)
    played(envs, actions[:30])
    state = envs.state_dict()
    del state["steps"]
    old, new = make("CartPole-v1", 2), make("CartPole-v1", 2)
    old.load_state_dict(state)
    new.load_state_dict(envs.state_dict())
    for action in actions[30:]:
        assert np.array_equal(old.step(action).obs, new.step(action).obs)


SMALL = ["--threads", "1", "--log-every", "50", "--evaluate-episodes", "0", "--monitors", "none"]
DQN = [
    "--agent",
    "dqn",
    "--agent.learning-starts",
    "50",
    "--agent.buffer-size",
    "300",
    "--agent.network.hidden",
    "16",
    "--agent.epsilon-steps",
    "100",
    "--agent.update-every",
    "4",
    "--agent.target-period",
    "20",
]
PIXELS = [*DQN, "--agent.network.width", "0.125"]
RUNS = {
    "cartpole": (
        [
            *DQN,
            "--env",
            "CartPole-v1",
            "--num-envs",
            "2",
            "--env.drift",
            "observation_offset(every=100)",
            "permute_actions(every=150, abruptness=0.5)",
        ],
        300,
        (150, 200),
    ),
    "cheetah": (
        [
            "--agent",
            "sac",
            "--env",
            "HalfCheetah-v5",
            "--agent.learning-starts",
            "50",
            "--agent.buffer-size",
            "300",
            "--agent.network.hidden",
            "16",
            "--agent.actor-network.hidden",
            "16",
            "--agent.batch-size",
            "16",
            "--agent.replay-ratio",
            "0.25",
            "--env.max-episode-steps",
            "60",
            "--env.drift",
            "friction(every=100, abruptness=0.2, changes=step)",
        ],
        240,
        (150, 200),
    ),
    "minatar": (
        [*PIXELS, "--env", "MinAtar/Breakout-v0", "--env.drift", "games(levels=(Breakout, Asterix), every=100)"],
        260,
        (130, 200),
    ),
    "atari": (
        [
            *PIXELS,
            "--env",
            "ALE/Pong-v5",
            "--env.full-action-space",
            "--env.max-episode-frames",
            "120",
            "--env.drift",
            "games(levels=(Pong, Boxing), every=60)",
        ],
        105,
        (60, 80),
    ),
}


def final_state(folder: Path) -> dict[str, Any]:
    checkpoint = Checkpoints.open(folder)
    return {part: checkpoint.load(part) for part in ("agent", "envs", "replay", "loop")}


def assert_same(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a.nan_to_num(), b.nan_to_num()), where
    else:
        assert a == b or a != a, where


def episodes_in(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "charts/episodic_return" in line and "task" in line]


@pytest.mark.parametrize("case", RUNS)
def test_a_run_resumes_exactly_in_the_middle_of_a_level_and_at_its_end(case: str, tmp_path: Path) -> None:
    arguments, steps, stops = RUNS[case]
    assert train([*SMALL, *arguments, "--run", str(tmp_path / "whole"), "--steps", str(steps)]) == 0
    for stop in (*stops, steps):
        assert train([*SMALL, *arguments, "--run", str(tmp_path / "halves"), "--steps", str(stop)]) == 0
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "halves"))
    whole, halves = episodes_in(tmp_path / "whole"), episodes_in(tmp_path / "halves")
    assert whole == halves and len({e["task"] for e in whole}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("case", RUNS)
def test_a_killed_run_resumes_exactly(case: str, tmp_path: Path) -> None:
    arguments, steps, _ = RUNS[case]
    arguments = [*SMALL, *arguments, "--steps", str(steps), "--checkpoint-every", "20"]
    assert outcome_of("train", "--run", str(tmp_path / "whole"), *arguments)[0] == 0
    killed = tmp_path / "killed"
    for kill_at in (40, 80):
        process = Command("train", "--run", str(killed), *arguments)
        while process.poll() is None:
            if any(int(p.name.split("_")[1]) >= kill_at for p in killed.glob("checkpoints/step_*") if not p.suffix):
                process.send(signal.SIGKILL)
                break
            time.sleep(0.005)
        process.wait()
    assert outcome_of("train", "--run", str(killed), *arguments)[0] == 0
    assert_same(final_state(tmp_path / "whole"), final_state(killed))


def test_evaluations_and_monitors_use_the_current_step_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training, in `pliant evaluate` and for monitors they use the latest level, drawn with the run's seed."""
    from pliant.lab.experiments import evaluation as evaluating
    from pliant.lab.experiments import training

    requested: list[Any] = []

    def watched(*args: Any, **options: Any) -> Envs:
        requested.append((options.get("evaluation", False), options.get("at_steps"), options.get("drift_seed")))
        return make(*args, **options)

    monkeypatch.setattr(training, "make", watched)
    monkeypatch.setattr(evaluating, "make", watched)
    arguments, steps, _ = RUNS["cartpole"]
    folder = tmp_path / "run"
    train(
        [
            *SMALL[:4],
            *arguments,
            "--steps",
            str(steps),
            "--seed",
            "3",
            "--run",
            str(folder),
            "--evaluate-episodes",
            "3",
            "--evaluate-every",
            "100",
            "--monitors",
            "overestimation(every=150, episodes=1, max_steps=20)",
        ]
    )
    assert requested == [
        (False, None, None),
        (True, 99, 3),
        (False, 149, 3),
        (True, 199, 3),
        (False, 299, 3),
        (True, 299, 3),
        (True, 299, 3),
    ]
    requested.clear()
    assert main.main(["evaluate", str(folder), "--episodes", "3", "--seed", "8"]) == 0
    assert main.main(["evaluate", str(folder), "--episodes", "3", "--at-steps", "120"]) == 0
    assert requested == [(True, 299, 3), (True, 120, 3)]
    assert json.loads((folder / "evaluation.json").read_text())["at_steps"] == 120
    assert derive_seed(3, "monitors") != 3


# ------------------------------------------------------------------------------------------------------ specs

REFUSED = [
    ("CartPole-v1", ["observation_offset(at=(50, 20))"], "overlap"),
    ("CartPole-v1", ["observation_offset"], "give exactly one of every"),
    ("CartPole-v1", ["observation_offset(every=5, abruptness=2)"], "abruptness"),
    ("CartPole-v1", ["observation_offse(every=5)"], "Did you mean 'observation_offset'"),
    ("CartPole-v1", ["observation_offset(evry=5)"], "Did you mean 'every'"),
    ("CartPole-v1", ["observation_offset(every=5, scale=-1)"], "scale"),
    ("CartPole-v1", ["observation_offset(every=5, levels=((1, 2, 3),))"], "needs 4 numbers"),
    ("CartPole-v1", ["observation_offset(every=5, levels=((1, 2, 3, 4),), order=(0, 1))"], "names level 1"),
    ("CartPole-v1", ["gravity(every=5)", "gravity(every=7)"], "given twice"),
    ("CartPole-v1", ["friction(every=5)"], "the friction of this simulator cannot be set"),
    ("InvertedPendulum-v5", ["friction(every=5)"], "no two bodies"),
    ("HalfCheetah-v5", ["friction(every=5, low=0)"], "low must be above 0, not 0"),
    ("HalfCheetah-v5", ["friction(every=5, levels=(-1,))"], "levels must be at least 0, not -1"),
    ("Acrobot-v1", ["gravity(every=5)"], "the gravity of this simulator cannot be set"),
    ("Pusher-v5", ["gravity(every=5)"], "this world has no gravity"),
    ("CartPole-v1", ["actuator_strength(every=5)"], "actuators cannot be set"),
    ("MinAtar/Breakout-v1", ["permute_observations(every=5)"], "pixels"),
    ("MinAtar/Breakout-v1", ["observation_offset(every=5)"], "pixels"),
    ("CartPole-v1", ["permute_observations(every=5, levels=((0, 1, 2, 2),))"], "each of 0 … 3 once"),
    ("CartPole-v1", ["permute_actions(every=5, signs=True)"], "no signs"),
    ("Pendulum-v1", ["permute_actions(every=5)"], "cannot be permuted"),
    ("HalfCheetah-v5", ["permute_actions(every=5, signs=True, levels=((0, 1, 2, 3, 4, 5),))"], "excludes given levels"),
    ("CartPole-v1", ["flip_rewards(every=5, levels=(1, 2))"], "1 or -1"),
    ("CartPole-v1", ["flip_rewards(every=5, levels=(1, 1))"], "no reward would be flipped"),
    ("CartPole-v1", ["flip_rewards(every=5, order=(0, 2))"], "no reward would be flipped"),
    ("CartPole-v1", ["scale_rewards(every=5, levels=(1, -1))"], "flip_rewards"),
    ("CartPole-v1", ["games(every=5)"], "only Atari and MinAtar"),
    ("CartPole-v1", ["modes(every=5)"], "only Atari games"),
    ("MinAtar/Breakout-v1", ["games(every=5)"], "use MinAtar/Breakout-v0"),
    ("MinAtar/Breakout-v0", ["games(every=5, levels=(Breakout, Asterisk))"], "Did you mean 'Asterix'"),
    (
        "MinAtar/Breakout-v0",
        ["games(every=5, levels=(Asterix, Breakout))"],
        "the environment's own, Breakout, not Asterix",
    ),
    ("MinAtar/Breakout-v0", ["games(every=5, levels=(Breakout, Breakout))"], "given twice"),
    ("MinAtar/Breakout-v0", ["games(every=5, levels=(Breakout,))"], "at least two games"),
    ("MinAtar/Breakout-v0", ["games(every=5, order=(0, 5))"], "has the level 5"),
    ("ALE/Pong-v5", ["games(every=5, levels=(Pong, Boxing))"], "full_action_space"),
    ("ALE/Freeway-v5", ["modes(every=5, levels=(0, 9))"], "no mode 9"),
    ("ALE/Freeway-v5", ["modes(every=5, levels=((0, 4),))"], "no difficulty 4"),
    ("ALE/Breakout-v5", ["modes(every=5)", "games(every=5)"], "exclude each other"),
]


@pytest.mark.parametrize(("name", "specs", "message"), REFUSED)
def test_drifts_that_do_not_fit_are_refused_in_one_line(
    name: str, specs: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=message):
        drifting(name, *specs)
    assert main.main(["train", "--env", name, "--agent", "ppo", "--run", "run", "--env.drift", *specs]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(err) == 1 and re.search(message, err[0]) and not Path("run").exists()


@pytest.mark.parametrize(
    ("name", "options", "specs", "message"),
    [
        ("CartPole-v1", {"pixels": 84}, ["observation_offset(every=5)"], "pixels"),
        ("ALE/Freeway-v5", {"mode": 1}, ["modes(every=5)"], "fixed mode"),
        ("ALE/Pong-v5", {"full_action_space": True}, ["games(every=5)"], "games: name them"),
        (
            "ALE/Pong-v5",
            {"full_action_space": True, "mode": 0},
            ["games(every=5, levels=(Pong, Boxing))"],
            "excludes mode and difficulty",
        ),
        ("ALE/Pong-v5", {"full_action_space": True}, ["games(every=5, levels=(Pong, Boxin))"], "Did you mean 'Boxing'"),
        ("ALE/Pong-v5", {"continuous": True}, ["flip_rewards(every=5)"], "not available with continuous actions"),
        ("ALE/Bowling-v5", {"mode": 1}, ["flip_rewards(every=5)"], "bowling has no mode 1; it has 0, 2, 4"),
    ],
)
def test_drifts_that_exclude_an_option_are_refused(
    name: str, options: dict[str, Any], specs: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        drifting(name, *specs, **options)


def test_specs_are_part_of_the_configuration(tmp_path: Path) -> None:
    spec = "observation_offset(scale=2, every=1e3)"
    canonical = "observation_offset(every=1000, scale=2.0)"
    assert EnvConfig(drift=(spec,)) == EnvConfig(drift=[canonical]) == EnvConfig(drift=spec)  # type: ignore[arg-type]
    assert check([spec]) == (canonical,)
    line = ["--agent", "ppo", "--env", "CartPole-v1", "--env.drift", spec, "flip_rewards(every=5)"]
    config = parse(line).config
    assert config.env_config.drift == (canonical, "flip_rewards(every=5)")
    (tmp_path / "c.yaml").write_text(dump(config))
    assert load(tmp_path / "c.yaml") == config
    (tmp_path / "d.yaml").write_text(f"agent: ppo\nenv: {{name: CartPole-v1, drift: '{spec}'}}\n")
    assert load(tmp_path / "d.yaml").env_config.drift == (canonical,)
    plain = defaults("ppo", "CartPole-v1")
    assert differences(plain, config) == {"env.drift": ((), config.env_config.drift)}
    assert default_run_folder(plain) == Path("runs/CartPole-v1/ppo/seed0")
    assert default_run_folder(load(tmp_path / "d.yaml")) == Path(
        "runs/CartPole-v1~observation_offset,every=1000,scale=2.0/ppo/seed0"
    )
    with pytest.raises(SpecError, match="exclude"):
        EnvConfig(drift=("games(every=5)", "modes(every=5)"))


@pytest.mark.parametrize("name", DRIFTS)
def test_the_documentation_of_a_drift_is_complete(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind = DRIFTS[name]
    assert main.main(["drifts", name]) == 0
    card = capsys.readouterr().out
    body = inspect.getdoc(kind) or ""
    assert body in card and len(body.splitlines()[0]) <= 110 and body.splitlines()[0].endswith(".")
    places = [body.index(f"\n{section}") for section in ("When:", "Paper:", "Differs:", "Excludes:")]
    assert places == sorted(places)
    assert re.search(r"\b(19|20)\d\d\b", body[places[1] : places[2]])
    explained = re.findall(r"^ {4}(\w+): ", body.partition("Args:")[2], re.MULTILINE)
    assert explained == list(inspect.signature(kind).parameters)
    assert kind.name == name and check([kind.example])


def test_the_catalogue_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["drifts"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == sorted(DRIFTS)
    assert main.main(["drifts", "frictoin"]) == 2
    assert "Did you mean 'friction'" in capsys.readouterr().err


def test_an_environment_without_drift_has_no_wrapper() -> None:
    assert "Drifting" not in str(make("CartPole-v1").envs[0])  # type: ignore[attr-defined]
    assert Drifts(("flip_rewards(every=5)",), 0, 4).stride == 4

"""The contract of environments for every adapter: flags, final observations, seeds, exact resumption, no aliasing."""

from __future__ import annotations

import functools
import io
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.common.spaces import ActionSpec, Episode, ObservationSpec, Step
from pliant.envs import (
    EnvConfig,
    Envs,
    MissingPackage,
    NotReproduced,
    RenderingUnavailable,
    UnknownEnvironment,
    control,
    episode_seed,
    make,
    names,
    suite,
    wrap,
)
from pliant.envs.adapter import ActionLog, ListAdapter, VectorAdapter
from pliant.envs.atari import AtariAdapter

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


class Counting(gymnasium.Env):
    """Observes [steps since the reset, seed of the reset mod 1000, last action]; the reward is ten times the step.

    An episode takes `length` steps and ends by termination, or by truncation if `cut`. If `careless`, it always
    returns one and the same array.
    """

    observation_space = gymnasium.spaces.Box(-1, 1000, (3,), np.float64)
    action_space = gymnasium.spaces.Discrete(4)

    def __init__(self, length: int = 3, cut: bool = False, careless: bool = True) -> None:
        self.length, self.cut, self.careless = length, cut, careless
        self.shown = np.zeros(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if not self.careless:
            self.shown = self.shown.copy()
        self.shown[:] = 0, -1 if seed is None else seed % 1000, 0
        return self.shown, {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.shown[0] += 1
        self.shown[2] = action
        over = self.shown[0] >= self.length
        return self.shown, 10.0 * self.shown[0], bool(over and not self.cut), bool(over and self.cut), {}


class ImageTask(gymnasium.Env):
    """A task with image observations: every pixel is the step number. Steps outside an episode are an error."""

    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, shape: tuple[int, ...] = (6, 8, 3), dtype: Any = np.uint8, high: int = 255) -> None:
        self.observation_space = gymnasium.spaces.Box(0, high, shape, dtype)
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.t = 0
        return self._image(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self._image(), float(action[0]), False, self.t == 5, {}

    def _image(self) -> Any:
        space = self.observation_space
        assert space.shape is not None
        image = np.full(space.shape, self.t % 2 if space.dtype == np.bool_ else self.t, space.dtype)
        image[0] = 0  # marks the first row, so that a wrong order of axes is noticed
        return image


def counting(mode: AutoresetMode | None, ends: list[tuple[int, bool]], seed: int = 0, evaluation: bool = False) -> Envs:
    """Counting environments of (length, cut) as a vector environment, or as a list if the mode is None."""
    # gymnasium itself keeps no copy of a final observation in SAME_STEP mode: a careless environment overwrites it.
    careless = mode is not AutoresetMode.SAME_STEP
    makers = [lambda length=length, cut=cut: Counting(length, cut, careless) for length, cut in ends]
    if mode is None:
        return wrap([maker() for maker in makers], seed, evaluation=evaluation)
    return wrap(SyncVectorEnv(makers, autoreset_mode=mode), seed, evaluation=evaluation)


@dataclass(frozen=True)
class Case:
    """One kind of environment, with the number of steps after which some episodes have ended."""

    build: Callable[[int, int, bool], Envs]  # seed, num_envs, evaluation
    shape: tuple[int, ...]
    actions: int
    steps: int = 60
    discrete: bool = True
    widths: tuple[int, int] = (1, 3)
    kind: type[Any] = np.float32

    def __call__(self, seed: int = 0, num_envs: int = 1, evaluation: bool = False) -> Envs:
        return self.build(seed, num_envs, evaluation)


def named(name: str, **options: Any) -> Callable[[int, int, bool], Envs]:
    return lambda seed, num_envs, evaluation: make(name, num_envs, seed, EnvConfig(**options), evaluation)


def counted(mode: AutoresetMode | None) -> Callable[[int, int, bool], Envs]:
    ends = [(3, False), (2, True), (5, False)]
    return lambda seed, num_envs, evaluation: counting(mode, ends[:num_envs], seed, evaluation)


def ale_wrapped(seed: int, num_envs: int, evaluation: bool) -> Envs:
    from ale_py.vector_env import AtariVectorEnv

    options = {"max_num_frames_per_episode": 60, "repeat_action_probability": 0.25}
    return wrap(AtariVectorEnv("pong", num_envs, autoreset_mode="SameStep", **options), seed, evaluation=evaluation)


ATARI: dict[str, Any] = {"shape": (4, 84, 84), "kind": np.uint8}
CASES = {
    "ale": Case(named("ALE/Pong-v5", max_episode_frames=62), actions=6, steps=34, widths=(1, 4), **ATARI),
    "ale-life-loss": Case(
        named("ALE/Breakout-v5", frame_skip=12, terminal_on_life_loss=True), actions=4, steps=76, widths=(1, 2), **ATARI
    ),
    "ale-continuous": Case(
        named("ALE/Pong-v5", continuous=True, max_episode_frames=72),
        actions=3,
        steps=30,
        discrete=False,
        widths=(1, 2),
        **ATARI,
    ),
    "ale-one-by-one": Case(
        named("ALE/Breakout-v5", mode=4, frame_skip=12, terminal_on_life_loss=True),
        actions=4,
        steps=76,
        widths=(1, 2),
        **ATARI,
    ),
    "ale-wrapped": Case(ale_wrapped, actions=6, steps=34, widths=(1, 2), **ATARI),
    "halfcheetah": Case(
        named("HalfCheetah-v5", max_episode_steps=40), (17,), actions=6, steps=100, discrete=False, widths=(1, 2)
    ),
    "hopper": Case(named("Hopper-v5"), (11,), actions=3, steps=120, discrete=False),
    "pendulum": Case(named("Pendulum-v1"), (3,), actions=1, steps=450, discrete=False),
    "cartpole": Case(named("CartPole-v1"), (4,), actions=2, steps=150),
    "lunarlander": Case(named("LunarLander-v3"), (8,), actions=4, steps=200),
    "minatar": Case(named("MinAtar/Breakout-v1"), (4, 10, 10), actions=3, steps=120, kind=np.uint8),
    "minatar-seaquest": Case(
        named("MinAtar/Seaquest-v0", max_episode_steps=70), (10, 10, 10), actions=6, steps=160, kind=np.uint8
    ),
    "list": Case(counted(None), (3,), actions=4, steps=17),
} | {f"vector-{m.name.lower()}": Case(counted(m), (3,), actions=4, steps=17) for m in MODES}


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo leaves a log file in the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def case(name: str) -> Case:
    return CASES[name]


@functools.cache
def recorded(name: str, seed: int, wide: bool, evaluation: bool = False) -> list[Any]:
    """The stream of a case, computed once for all tests (an ALE reset takes a tenth of a second)."""
    case = CASES[name]
    envs = case(seed, case.widths[wide], evaluation)
    steps = stream(envs, case.steps)
    envs.close()
    return steps


def actions_for(envs: Envs, steps: int, seed: int = 0) -> Any:
    """Random actions; those of one environment do not depend on the number of environments."""
    spec, rows = envs.action, []
    for i in range(envs.num_envs):
        rng = np.random.default_rng([seed, i])
        if spec.discrete:
            rows.append(rng.integers(spec.size, size=steps))
        else:
            rows.append(rng.uniform(spec.low, spec.high, (steps, spec.size)).astype(np.float32))
    return np.stack(rows, 1)


def play(envs: Envs, actions: Any) -> list[Step]:
    return [envs.step(action) for action in actions]


def stream(envs: Envs, steps: int, seed: int = 0) -> list[Any]:
    """Copies of the first observations and of every step."""
    first = envs.reset().copy()
    return [first, *(copied(step) for step in play(envs, actions_for(envs, steps, seed)))]


def copied(step: Step) -> Step:
    return Step(*(field.copy() for field in step[:6]), step.episodes)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Step):
        return a.episodes == b.episodes and all(same(x, y) for x, y in zip(a[:6], b[:6], strict=True))
    return a.dtype == b.dtype and np.array_equal(a, b)


def assert_same(a: list[Any], b: list[Any]) -> None:
    assert len(a) == len(b)
    for t, (x, y) in enumerate(zip(a, b, strict=True)):
        assert same(x, y), f"the streams differ at {t}: {x} and {y}"


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


# The contract


@pytest.mark.parametrize("wide", [False, True])
def test_observations_and_steps_have_the_right_shapes_and_types(name: str, wide: bool) -> None:
    case = CASES[name]
    E = case.widths[wide]
    envs = case(0, E)
    spec = envs.observation
    assert (envs.num_envs, envs.action.size, envs.action.discrete) == (E, case.actions, case.discrete)
    assert (spec.shape, spec.dtype) == (case.shape, torch.uint8 if case.kind is np.uint8 else torch.float32)
    first, *steps = recorded(name, 0, wide)
    assert (first.shape, first.dtype) == ((E, *case.shape), case.kind)
    for step in steps:
        for obs in (step.obs, step.final_obs):
            assert (obs.shape, obs.dtype) == ((E, *case.shape), case.kind)
        assert (step.reward.shape, step.reward.dtype) == ((E,), np.float32)
        for flag in (step.terminated, step.truncated, step.reset):
            assert (flag.shape, flag.dtype) == ((E,), np.bool_)
        kinds = (int, float, int, int, type(None), bool)
        assert all(type(x) is t for e in step.episodes for x, t in zip(e, kinds, strict=True))


def test_flags_and_episodes_agree(name: str) -> None:
    first, *steps = recorded(name, 0, True)
    E = len(first)
    returns, lengths, numbers = np.zeros(E), np.zeros(E, int), [0] * E
    for step in steps:
        returns += step.reward
        lengths += 1
        assert [e.env for e in step.episodes] == np.flatnonzero(step.reset).tolist()
        assert not (step.reset & ~(step.terminated | step.truncated)).any()
        assert not (step.truncated & ~step.reset).any()
        going = ~step.reset
        assert np.array_equal(step.final_obs[going], step.obs[going])
        for env, ret, length, seed, _, _ in step.episodes:
            assert ret == pytest.approx(returns[env], rel=1e-5)
            assert length == lengths[env]
            assert seed == episode_seed(0, env, numbers[env])
            assert not np.array_equal(step.obs[env], step.final_obs[env])
            returns[env], lengths[env] = 0, 0
            numbers[env] += 1
    assert sum(numbers) > 0, "the stream is too short: no episode has ended"


def test_the_seed_determines_the_stream(name: str) -> None:
    case = CASES[name]
    assert_same(recorded(name, 0, False), stream(case(0), case.steps))
    assert not all(same(x, y) for x, y in zip(recorded(name, 0, False), stream(case(4), case.steps), strict=True))


def test_an_environment_does_not_depend_on_its_neighbours(name: str) -> None:
    alone, among = (recorded(name, 0, wide) for wide in (False, True))
    assert np.array_equal(alone[0], among[0][:1])
    for a, b in zip(alone[1:], among[1:], strict=True):
        assert all(np.array_equal(x, y[:1]) for x, y in zip(a[:6], b[:6], strict=True))
        assert a.episodes == tuple(e for e in b.episodes if e.env == 0)


def test_environments_of_one_run_differ(name: str) -> None:
    first, *steps = recorded(name, 0, True)
    shown = np.stack([first, *(step.obs for step in steps)])
    assert not np.array_equal(shown[:, 0], shown[:, 1])


def test_resumption_is_exact_within_and_at_the_end_of_episodes(name: str) -> None:
    case = CASES[name]
    steps = recorded(name, 0, True)
    original = case(0, case.widths[True])
    actions = actions_for(original, case.steps)
    ends = [t for t, step in enumerate(steps) if t and step.reset.any()]
    # In the middle no episode ends; at the last end some environment has just started an episode.
    middle = next(t for t in range(ends[0] + 2, case.steps) if t not in ends)
    states, shown = {}, {}
    original.reset()
    for t in range(max(middle, ends[-1]) + 1):
        if t in (0, middle, ends[-1]):
            states[t], shown[t] = through_a_file(original.state_dict()), original.obs.copy()
        if t < case.steps:
            assert same(original.step(actions[t]), steps[t + 1]), "saving has changed the run"

    resumed = case(77, case.widths[True])  # the seed comes from the state, not from the new adapter
    resumed.reset()
    for t in states:  # earlier steps of the adapter have no effect
        resumed.load_state_dict(states[t])
        assert same(resumed.obs, shown[t])
        assert_same(play(resumed, actions[t : t + 25]), steps[t + 1 : t + 26])
    # At the start of an episode no actions are stored.
    assert [len(a) == 0 for a in states[ends[-1]]["actions"]] == steps[ends[-1]].reset.tolist()


def test_a_state_saved_before_the_first_reset_loads(name: str) -> None:
    case = CASES[name]
    state = through_a_file(case(0).state_dict())
    resumed = case(9)
    resumed.load_state_dict(state)
    assert_same(stream(resumed, 5), recorded(name, 0, False)[:6])


def test_evaluation_has_separate_seeds(name: str) -> None:
    training, evaluation = (recorded(name, 0, False, e) for e in (False, True))
    a, b = ({e.seed for step in steps[1:] for e in step.episodes} for steps in (training, evaluation))
    assert {seed % 2 for seed in a} <= {0}
    assert {seed % 2 for seed in b} <= {1}
    assert not all(same(x, y) for x, y in zip(training, evaluation, strict=True))


def test_returned_arrays_are_never_overwritten(case: Case) -> None:
    envs = case(num_envs=case.widths[True])
    kept: list[Any] = [envs.reset()]
    copies: list[Any] = [kept[0].copy()]
    for action in actions_for(envs, case.steps):
        mine = action.copy()
        step = envs.step(mine)
        mine[...] = 0  # actions are not kept by reference
        kept.append(step)
        copies.append(copied(step))
    assert_same(kept, copies)


def test_steps_of_a_vector_environment_that_reuses_its_arrays_are_copied() -> None:
    envs = wrap(SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 2, copy=False))
    kept = [envs.reset(), *play(envs, actions_for(envs, 60))]
    assert any(step.episodes for step in kept[1:])  # type: ignore[union-attr]
    again = wrap(SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 2))
    assert_same(kept, stream(again, 60))


def test_reset_starts_the_next_episode(case: Case) -> None:
    envs = case(seed=6)
    first = envs.reset()
    play(envs, actions_for(envs, 2))
    second = envs.reset()
    assert envs.state_dict()["episode"] == [1]
    other = case(seed=6)
    assert_same([other.reset(), other.reset()], [first, second])


def test_steps_before_a_reset_and_invalid_actions_are_refused(case: Case) -> None:
    envs = case(num_envs=1)
    action = actions_for(envs, 1)[0]
    with pytest.raises(RuntimeError, match="reset"):
        envs.step(action)
    with pytest.raises(RuntimeError, match="reset"):
        _ = envs.obs
    envs.reset()
    with pytest.raises(ValueError, match="shape"):
        envs.step(np.concatenate([action, action]))
    if envs.action.discrete:
        with pytest.raises(ValueError, match="integer"):
            envs.step(action.astype(np.float32))


# The stream of the counting environment


@pytest.mark.parametrize("mode", [None, *MODES])
def test_the_stream_of_the_counting_environment_is_as_computed_by_hand(mode: AutoresetMode | None) -> None:
    envs = counting(mode, [(3, False), (2, True)], seed=11)
    seeds = {(i, k): episode_seed(11, i, k) for i in (0, 1) for k in range(3)}
    tag = {key: seed % 1000 for key, seed in seeds.items()}
    assert len(set(tag.values())) == 6

    assert envs.reset().tolist() == [[0, tag[0, 0], 0], [0, tag[1, 0], 0]]
    got = play(envs, np.array([[1, 2], [2, 3], [3, 1], [1, 0]]))

    assert [s.obs.tolist() for s in got] == [
        [[1, tag[0, 0], 1], [1, tag[1, 0], 2]],
        [[2, tag[0, 0], 2], [0, tag[1, 1], 0]],
        [[0, tag[0, 1], 0], [1, tag[1, 1], 1]],
        [[1, tag[0, 1], 1], [0, tag[1, 2], 0]],
    ]
    assert [s.final_obs.tolist() for s in got] == [
        [[1, tag[0, 0], 1], [1, tag[1, 0], 2]],
        [[2, tag[0, 0], 2], [2, tag[1, 0], 3]],
        [[3, tag[0, 0], 3], [1, tag[1, 1], 1]],
        [[1, tag[0, 1], 1], [2, tag[1, 1], 0]],
    ]
    assert [s.reward.tolist() for s in got] == [[10, 10], [20, 20], [30, 10], [10, 20]]
    assert [s.terminated.tolist() for s in got] == [[False, False], [False, False], [True, False], [False, False]]
    assert [s.truncated.tolist() for s in got] == [[False, False], [False, True], [False, False], [False, True]]
    assert [s.reset.tolist() for s in got] == [[False, False], [False, True], [True, False], [False, True]]
    assert [s.episodes for s in got] == [
        (),
        (Episode(1, 30.0, 2, seeds[1, 0]),),
        (Episode(0, 60.0, 3, seeds[0, 0]),),
        (Episode(1, 30.0, 2, seeds[1, 1]),),
    ]


ends = st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(ends=ends, steps=st.integers(1, 25), seed=st.integers(0, 2**40), mode=st.sampled_from(MODES))
def test_a_vector_environment_equals_a_list_of_environments(
    ends: list[tuple[int, bool]], steps: int, seed: int, mode: AutoresetMode
) -> None:
    assert_same(stream(counting(None, ends, seed), steps), stream(counting(mode, ends, seed), steps))


@settings(max_examples=60, deadline=None)
@given(
    ends=ends, before=st.integers(0, 20), after=st.integers(1, 12), mode=st.sampled_from([None, *MODES]), data=st.data()
)
def test_resumption_is_exact_at_any_step(
    ends: list[tuple[int, bool]], before: int, after: int, mode: AutoresetMode | None, data: st.DataObject
) -> None:
    original, resumed = (counting(mode, ends, 8) for _ in range(2))
    original.reset()
    actions = actions_for(original, before + after, data.draw(st.integers(0, 99)))
    play(original, actions[:before])
    resumed.load_state_dict(original.state_dict())
    assert_same(play(original, actions[before:]), play(resumed, actions[before:]))


# Seeds and recorded actions


@given(st.integers(0, 2**64), st.integers(0, 4096), st.integers(0, 2**40))
def test_episode_seeds_are_in_range_and_evaluation_seeds_are_separate(run: int, env: int, episode: int) -> None:
    training, evaluation = episode_seed(run, env, episode), episode_seed(run, env, episode, evaluation=True)
    assert 0 <= training < 2**31
    assert 0 <= evaluation < 2**31
    assert (training % 2, evaluation % 2) == (0, 1)
    assert training != episode_seed(run, env, episode + 1)
    assert training == episode_seed(run, env, episode)


def test_episode_seeds_do_not_change_between_versions() -> None:
    """Changing them would change every run with the same seed, and break every saved state."""
    assert [episode_seed(0, 0, 0), episode_seed(0, 0, 1), episode_seed(0, 1, 0), episode_seed(1, 0, 0)] == [
        1839233790,
        872880836,
        623452746,
        841291576,
    ]
    assert episode_seed(0, 0, 0, evaluation=True) == 238126281


def test_episode_seeds_rarely_collide() -> None:
    seeds = {episode_seed(r, i, k) for r in range(10) for i in range(10) for k in range(100)}
    assert len(seeds) > 9_990  # 10,000 draws from 2**30 have 0.05 collisions on average


@given(st.lists(st.one_of(st.none(), st.integers(0, 2)), max_size=120), st.booleans())
def test_recorded_actions_are_those_since_the_start_of_the_episode(events: list[int | None], discrete: bool) -> None:
    """None is a step of all environments; a number is the start of the next episode of that environment."""
    spec = ActionSpec(7, True) if discrete else ActionSpec(2, False, (-1.0, -1.0), (1.0, 1.0))
    spec_shape = () if discrete else (2,)
    log, expected, rng = ActionLog(3, spec, rows=4), [[], [], []], np.random.default_rng(0)
    peak = 0
    for event in events:
        if event is None:
            action = rng.integers(7, size=3) if discrete else rng.random((3, 2), np.float32)
            log.append(action)
            for i in range(3):
                expected[i].append(action[i])
            peak = max(peak, *map(len, expected))
        else:
            log.restart(event)
            expected[event] = []
    for i in range(3):
        assert log.length(i) == len(expected[i])
        assert np.array_equal(log.since_start(i), np.array(expected[i]).reshape(len(expected[i]), *spec_shape))
    assert len(log._rows) <= max(4, 4 * peak), "the log keeps rows that no running episode needs"


def test_an_episode_of_half_an_hour_is_resumed() -> None:
    """27,000 steps, the length of the longest Atari episode, beside an environment with short episodes."""
    original, resumed = (counting(AutoresetMode.SAME_STEP, [(27_000, True), (7, False)]) for _ in range(2))
    original.reset()
    play(original, actions_for(original, 5_000))
    resumed.load_state_dict(through_a_file(original.state_dict()))
    assert_same(play(original, actions_for(original, 9)), play(resumed, actions_for(resumed, 9)))


# Simulators that cannot be resumed, states of other environments


class NotDeterministic(Counting):
    """Its second episode with the same seed differs from the first."""

    def __init__(self, difference: str) -> None:
        super().__init__(10)
        self.difference, self.resets = difference, 0

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        shown, info = super().reset(**options)
        self.resets += 1
        if self.difference == "observation":
            shown[1] = self.resets
        elif self.difference == "length":
            self.length = 10 - 8 * (self.resets > 1)
        return shown, info

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, *rest = super().step(action)
        return obs, reward + (self.resets if self.difference == "score" else 0), *rest


@pytest.mark.parametrize("difference", ["observation", "length", "score"])
@pytest.mark.parametrize("vector", [False, True])
def test_a_simulator_that_is_not_deterministic_is_refused_by_name(difference: str, vector: bool) -> None:
    fine, bad = Counting(10), NotDeterministic(difference)
    envs = wrap(SyncVectorEnv([lambda: fine, lambda: bad]) if vector else [fine, bad], name="NotDeterministic-v0")
    envs.reset()
    play(envs, actions_for(envs, 5))
    state = envs.state_dict()
    with pytest.raises(NotReproduced, match=r"NotDeterministic-v0, environment 1.*not deterministic.*version"):
        envs.load_state_dict(state)


def test_a_state_of_another_environment_is_refused() -> None:
    state = make("CartPole-v1", 2).state_dict()
    with pytest.raises(ValueError, match=r"2 x CartPole-v1.*3 x CartPole-v1"):
        make("CartPole-v1", 3).load_state_dict(state)
    with pytest.raises(ValueError, match="Acrobot-v1"):
        make("Acrobot-v1", 2).load_state_dict(state)


def test_a_vector_environment_with_one_generator_for_all_is_refused() -> None:
    envs = wrap(gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point"))
    with pytest.raises(RuntimeError, match="list of single environments"):
        envs.reset()


def test_a_vector_environment_that_ignores_the_mask_is_refused() -> None:
    class ResetsAll(SyncVectorEnv):
        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            return super().reset(seed=seed)

    envs = wrap(ResetsAll([lambda: Counting(2), lambda: Counting(5)]), name="ResetsAll")
    envs.reset()
    with pytest.raises(RuntimeError, match=r"ResetsAll.*outside its reset_mask"):
        play(envs, actions_for(envs, 3))


# Atari


def rebuilt(steps: list[Any], spec: ObservationSpec) -> list[tuple[Any, Any]]:
    """Every (obs, final_obs) of environment 0, stacked again from only the newest frames, as the replay memory does."""
    size = spec.shape[0] // spec.stack

    def first_stack(obs: Any) -> deque[Any]:
        newest = obs[-size:]
        older = newest if spec.padding == "repeat" else np.zeros_like(newest)
        return deque([older] * (spec.stack - 1) + [newest], maxlen=spec.stack)

    frames, stacks = first_stack(steps[0][0]), [(np.concatenate(first_stack(steps[0][0])),) * 2]
    for step in steps[1:]:
        frames.append(step.final_obs[0][-size:])
        final = np.concatenate(frames)
        if step.reset[0]:
            frames = first_stack(step.obs[0])
        stacks.append((np.concatenate(frames), final))
    return stacks


@pytest.mark.parametrize(
    ("name", "options", "flag"),
    [
        ("ALE/Breakout-v5", {"frame_skip": 16, "terminal_on_life_loss": True}, "terminated"),
        ("ALE/Breakout-v5", {"frame_skip": 20, "frame_stack": 3}, "terminated"),
        ("ALE/Seaquest-v5", {"max_episode_frames": 90, "noop_max": 0}, "truncated"),
        ("ALE/Pong-v5", {"max_episode_frames": 101, "frame_stack": 1}, "truncated"),
    ],
)
def test_stacks_can_be_rebuilt_from_single_frames(name: str, options: dict[str, Any], flag: str) -> None:
    envs = make(name, 1, 3, EnvConfig(**options))
    steps = stream(envs, 110)
    assert sum(int(step.reset[0] & getattr(step, flag)[0]) for step in steps[1:]) >= 1
    shown = [(steps[0][0],) * 2] + [(step.obs[0], step.final_obs[0]) for step in steps[1:]]
    for (obs, final), (obs_rebuilt, final_rebuilt) in zip(shown, rebuilt(steps, envs.observation), strict=True):
        assert np.array_equal(obs, obs_rebuilt)
        assert np.array_equal(final, final_rebuilt)


@functools.cache
def breakout(**options: Any) -> list[Any]:
    return stream(make("ALE/Breakout-v5", 2, 1, EnvConfig(frame_skip=12, **options)), 100, seed=4)


def test_a_lost_life_ends_only_bootstrapping() -> None:
    plain, marked = breakout(), breakout(terminal_on_life_loss=True)
    lost = np.zeros(2, int)
    for a, b in zip(plain[1:], marked[1:], strict=True):
        for field in ("obs", "final_obs", "reward", "truncated", "reset"):
            assert np.array_equal(getattr(a, field), getattr(b, field))
        assert a.episodes == b.episodes
        assert not (a.terminated & ~b.terminated).any()
        lost += b.terminated & ~b.reset
        for episode in b.episodes:
            assert lost[episode.env] == 4, "Breakout has five lives, and the last one ends the game"
            lost[episode.env] = 0
    assert any(step.episodes for step in plain[1:])


def test_lost_lives_are_those_reported_by_ale() -> None:
    from ale_py.vector_env import AtariVectorEnv

    steps = breakout(terminal_on_life_loss=True)
    ale = AtariVectorEnv(
        "breakout",
        2,
        frameskip=12,
        repeat_action_probability=0.25,
        life_loss_info=True,
        reward_clipping=False,
        use_fire_reset=False,
    )
    numbers = [0, 0]
    first, _ = ale.reset(seed=np.array([episode_seed(1, i, 0) for i in (0, 1)]))
    assert np.array_equal(first, steps[0])
    actions = actions_for(make("ALE/Breakout-v5", 2), 100, seed=4)
    for action, step in zip(actions, steps[1:], strict=True):
        obs, reward, terminated, truncated, _ = ale.step(action)
        assert np.array_equal(obs, step.final_obs)
        assert np.array_equal(reward, step.reward)
        assert np.array_equal(terminated, step.terminated)
        assert np.array_equal(truncated, step.truncated)
        if step.reset.any():
            over = np.flatnonzero(step.reset)
            for i in over:
                numbers[i] += 1
            seeds = np.array([episode_seed(1, i, numbers[i]) for i in over.tolist()])
            ale.reset(seed=seeds, options={"reset_mask": step.reset})


def test_a_life_is_lost_when_the_counter_falls_to_a_positive_number() -> None:
    """In a few games the counter is already zero during the last life; this life ends only with the game."""

    class Scripted(gymnasium.vector.VectorEnv):
        num_envs = 1
        single_observation_space = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        single_action_space = gymnasium.spaces.Discrete(2)
        lives = iter([5, 4, 4, 0, 0, 3, 2, 2, 5, 4])
        metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            return np.zeros((1, 4, 84, 84), np.uint8), {"lives": np.array([next(self.lives)])}

        def step(self, actions: Any) -> Any:
            lives = np.array([next(self.lives)])
            over, cut = actions == 1, actions == 2
            return np.zeros((1, 4, 84, 84), np.uint8), np.zeros(1), over, cut, {"lives": lives}

    spec = ObservationSpec((4, 84, 84), torch.uint8, 255.0, stack=4)
    envs = AtariAdapter(Scripted(), terminal_on_life_loss=True, name="Scripted", observation=spec, seed=0)
    envs.reset()  # 5 lives
    got = play(envs, np.array([[0], [0], [0], [1], [0], [2], [0]]))
    # 4, 4 again, zero during play, the end (then 3), 2, cut at 2 (then 5), 4
    assert [bool(step.terminated[0]) for step in got] == [True, False, False, True, True, False, True]
    assert [bool(step.reset[0]) for step in got] == [False, False, False, True, False, True, False]


def test_a_game_truncated_at_a_lost_life_is_over() -> None:
    steps = breakout(terminal_on_life_loss=True)
    t = next(t for t, step in enumerate(steps[1:], 1) if step.terminated[0])
    cut = breakout(terminal_on_life_loss=True, max_episode_frames=12 * t)[t]
    assert (cut.terminated[0], cut.truncated[0], cut.reset[0]) == (True, True, True)
    assert cut.episodes[0].length == t


def test_atari_rewards_are_raw_scores() -> None:
    steps = stream(make("ALE/Assault-v5", 1, 0), 150)
    assert max(step.reward[0] for step in steps[1:]) == 21


def test_atari_frames_do_not_depend_on_threads() -> None:
    one, two = (stream(make("ALE/Breakout-v5", 4, 0, EnvConfig(threads=n, max_episode_frames=80)), 30) for n in (1, 2))
    assert_same(one, two)


def test_sticky_actions_are_on_by_default() -> None:
    fixed = np.full((30, 1), 3)
    streams = []
    for sticky in (None, 0.25, 0.0):
        envs = make("ALE/Pong-v5", 1, 0, EnvConfig(sticky_actions=sticky, noop_max=0))
        envs.reset()
        streams.append([step.obs for step in play(envs, np.where(np.arange(30)[:, None] % 2, 2, fixed))])
    assert_same(streams[0], streams[1])
    assert not np.array_equal(streams[0][-1], streams[2][-1])
    # Without sticky actions and initial no-ops an episode does not depend on its seed.
    envs = make("ALE/Pong-v5", 1, 9, EnvConfig(sticky_actions=0.0, noop_max=0))
    envs.reset()
    other = [step.obs for step in play(envs, np.where(np.arange(30)[:, None] % 2, 2, fixed))]
    assert_same(streams[2], other)


@pytest.mark.parametrize(("options", "actions"), [({}, 6), ({"full_action_space": True}, 18)])
def test_atari_games_have_their_minimal_or_the_full_action_set(options: dict[str, Any], actions: int) -> None:
    envs = make("ALE/Pong-v5", config=EnvConfig(**options))
    assert (envs.action.size, envs.action.discrete, envs.frame_skip) == (actions, True, 4)


def test_every_atari_game_starts() -> None:
    games = [name for name in names() if name.startswith("ALE/")]
    assert len(games) == len(set(games)) >= 100
    assert {"ALE/MsPacman-v5", "ALE/TicTacToe3D-v5", "ALE/Pong-v5", "ALE/UpNDown-v5"} <= set(games)
    for name in games[::25]:
        envs = make(name)
        first = envs.reset()
        step = envs.step(np.array([0]))
        assert np.array_equal(step.obs[:, 2], first[:, 3])
        envs.close()


# Control and pixels


def test_float64_observations_are_rounded_to_float32() -> None:
    envs, env = make("HalfCheetah-v5", seed=4), gymnasium.make("HalfCheetah-v5")
    exact, _ = env.reset(seed=episode_seed(4, 0, 0))
    assert np.array_equal(envs.reset()[0], exact.astype(np.float32))
    action = np.full(6, 0.5, np.float32)
    exact, reward, *_ = env.step(action)
    step = envs.step(action[None])
    assert np.array_equal(step.obs[0], exact.astype(np.float32))
    assert step.reward[0] == np.float32(reward)


def test_action_repeat_adds_rewards() -> None:
    once, thrice = make("Pendulum-v1"), make("Pendulum-v1", config=EnvConfig(action_repeat=3))
    assert thrice.frame_skip == 3
    for envs in (once, thrice):
        envs.reset()
    action = np.array([[1.0]], np.float32)
    single = [once.step(action) for _ in range(3)]
    repeated = thrice.step(action)
    assert np.array_equal(repeated.obs, single[-1].obs)
    assert repeated.reward[0] == pytest.approx(sum(s.reward[0] for s in single))
    # A task of 200 steps has 67 steps of the agent; the last one has two steps fewer.
    assert next(t for t in range(2, 99) if thrice.step(action).reset[0]) == 67


@pytest.mark.parametrize("shape", [(6, 8, 3), (3, 6, 8), (6, 8)])
@pytest.mark.parametrize("dtype", [np.uint8, np.bool_])
@pytest.mark.parametrize("vector", [False, True])
def test_images_have_their_channels_first(shape: tuple[int, ...], dtype: Any, vector: bool) -> None:
    high = 255 if dtype == np.uint8 else 1
    makers = [lambda: ImageTask(shape, dtype, high)] * 2
    envs = wrap(SyncVectorEnv(makers) if vector else [maker() for maker in makers])
    channels = 3 if len(shape) == 3 else 1
    assert envs.observation == ObservationSpec((channels, 6, 8), torch.uint8, float(high))
    envs.reset()
    obs = envs.step(np.zeros((2, 2), np.float32)).obs
    expected = np.ones((2, channels, 6, 8), np.uint8)
    if shape == (3, 6, 8):
        expected[:, 0] = 0
    else:
        expected[:, :, 0] = 0
    assert np.array_equal(obs, expected)


def test_a_given_observation_spec_adds_information() -> None:
    spec = ObservationSpec((3, 6, 8), torch.uint8, 255.0, stack=3, padding="repeat")
    assert wrap([ImageTask((3, 6, 8))], observation=spec).observation == spec
    with pytest.raises(ValueError, match="has observations of"):
        wrap([ImageTask((3, 6, 8))], observation=ObservationSpec((4, 6, 8), torch.uint8, 255.0))


class RenderedTask(gymnasium.Env):
    """A vector task that can be rendered: its colours show the seed and the step number."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode, self.tag, self.t = render_mode, 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.tag, self.t = (seed or 0) % 200, 0
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> Any:
        self.t += 1
        return np.zeros(2, np.float32), 1.0, False, False, {}

    def render(self) -> Any:
        image = np.zeros((40, 60, 3), np.uint8)
        image[..., 0], image[:20, :, 1], image[..., 2] = self.tag, 100, self.t
        return image


@pytest.fixture
def rendered_task() -> Any:
    gymnasium.register("RenderedTask-v0", entry_point=RenderedTask, max_episode_steps=7)
    yield "RenderedTask-v0"
    del gymnasium.registry["RenderedTask-v0"]


def test_rendered_observations_are_stacked_repeated_and_resumed(rendered_task: str) -> None:
    envs = make(rendered_task, 2, 5, EnvConfig(pixels=10, frame_stack=2, action_repeat=2))
    assert envs.observation == ObservationSpec((6, 10, 10), torch.uint8, 255.0, stack=2, padding="repeat")
    steps = stream(envs, 9)
    first = steps[0][0]
    tag = episode_seed(5, 0, 0) % 200
    assert (first[[0, 3]] == tag).all()
    assert (first[[1, 4], :5] == 100).all()
    assert (first[[1, 4], 5:] == 0).all()
    assert [[int(step.final_obs[0, c, 0, 0]) for c in (2, 5)] for step in steps[1:5]] == [
        [0, 2],
        [2, 4],
        [4, 6],
        [6, 7],
    ]
    assert steps[4].truncated.all()
    assert steps[4].episodes[0].length == 4
    shown = [(steps[0][0],) * 2] + [(step.obs[0], step.final_obs[0]) for step in steps[1:]]
    for (obs, final), (obs_rebuilt, final_rebuilt) in zip(shown, rebuilt(steps, envs.observation), strict=True):
        assert np.array_equal(obs, obs_rebuilt)
        assert np.array_equal(final, final_rebuilt)
    resumed = make(rendered_task, 2, 5, EnvConfig(pixels=10, frame_stack=2, action_repeat=2))
    resumed.load_state_dict(envs.state_dict())
    assert_same(play(envs, actions_for(envs, 6)), play(resumed, actions_for(resumed, 6)))


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 40), st.integers(0, 255), st.integers(0, 99))
@settings(deadline=None)
def test_shrinking_an_image_averages_over_areas(height: int, width: int, side: int, value: int, seed: int) -> None:
    flat = control.shrink(np.full((height, width, 3), value, np.uint8), side)
    assert flat.shape == (3, side, side)
    assert (flat == value).all()
    image = np.random.default_rng(seed).integers(256, size=(2 * side, 3 * side, 3), dtype=np.uint8)
    blocks = image.reshape(side, 2, side, 3, 3).astype(np.int64).sum((1, 3)).transpose(2, 0, 1)
    assert np.array_equal(control.shrink(image, side), np.rint(blocks / 6).astype(np.uint8))


def test_a_machine_that_cannot_render_raises_a_clear_error(rendered_task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_display(self: RenderedTask) -> Any:
        raise OSError("no display")

    monkeypatch.setattr(RenderedTask, "render", no_display)
    with pytest.raises(RenderingUnavailable, match=r"RenderedTask-v0.*no display.*MUJOCO_GL"):
        make(rendered_task, config=EnvConfig(pixels=16))

    def no_pygame(self: RenderedTask) -> Any:
        raise gymnasium.error.DependencyNotInstalled('run `pip install "gymnasium[classic-control]"`')

    monkeypatch.setattr(RenderedTask, "render", no_pygame)
    with pytest.raises(MissingPackage, match=r"pip install .gymnasium\[classic-control\]"):
        make(rendered_task, config=EnvConfig(pixels=16))


def test_a_missing_box2d_is_reported_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise gymnasium.error.DependencyNotInstalled("Box2D is not installed")

    monkeypatch.setattr(control.importlib, "import_module", missing)
    with pytest.raises(MissingPackage, match=r"LunarLander-v3.*pip install 'pliant\[box2d\]'"):
        make("LunarLander-v3")


@pytest.mark.parametrize(
    ("action", "observation", "message"),
    [
        (gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32), None, r"Unusable.*unbounded.*RescaleAction"),
        (gymnasium.spaces.MultiDiscrete([2, 2]), None, "Unusable.*MultiDiscrete"),
        (None, gymnasium.spaces.Discrete(5), r"Unusable.*Discrete\(5\)"),
        (None, gymnasium.spaces.Dict({"a": gymnasium.spaces.Discrete(2)}), "Unusable.*Dict"),
    ],
)
def test_spaces_that_an_agent_cannot_use_are_refused(action: Any, observation: Any, message: str) -> None:
    env = Counting()
    env.action_space = action or env.action_space
    env.observation_space = observation or env.observation_space
    for form in ([env], SyncVectorEnv([lambda: env])):
        with pytest.raises(ValueError, match=message):
            wrap(form, name="Unusable")  # type: ignore[arg-type]


def test_environments_of_a_list_must_have_the_same_spaces() -> None:
    with pytest.raises(ValueError, match="same spaces"):
        wrap([Counting(), ImageTask()])
    with pytest.raises(ValueError, match="at least one"):
        wrap([])


# MinAtar


@pytest.mark.parametrize("name", [n for n in names() if n.startswith("MinAtar/")])
def test_minatar_observations_are_the_states_of_the_game(name: str) -> None:
    envs = make(name, 2)
    assert envs.observation.high == 1.0
    assert envs.observation.pixels
    if name.endswith("-v0"):
        assert envs.action.size == 6
    first, *steps = stream(envs, 30)
    assert set(np.unique(first)) == {0, 1}
    assert all(step.obs.max() == 1 for step in steps)
    raw = envs.envs[0].unwrapped.game.state()  # type: ignore[attr-defined]
    assert np.array_equal(envs.obs[0], raw.transpose(2, 0, 1))


def test_minatar_does_not_repeat_the_last_action_of_the_last_episode() -> None:
    """MinAtar's own reset keeps it, and sticky actions may repeat it."""
    streams = []
    for last in (1, 2):
        envs = make("MinAtar/Breakout-v1", 1, 0, EnvConfig(sticky_actions=0.9))
        envs.reset()
        play(envs, np.full((7, 1), last))
        envs.reset()
        streams.append([step.obs for step in play(envs, np.zeros((5, 1), int))])
    assert_same(*streams)


def test_minatar_options_reach_the_game() -> None:
    game = (
        make("MinAtar/Asterix-v1", 1, 0, EnvConfig(sticky_actions=0.5, difficulty_ramping=False)).envs[0].unwrapped.game
    )  # type: ignore[attr-defined]
    assert (game.sticky_action_prob, game.env.ramping) == (0.5, False)
    game = make("MinAtar/Asterix-v1").envs[0].unwrapped.game  # type: ignore[attr-defined]
    assert (game.sticky_action_prob, game.env.ramping) == (0.1, True)
    with pytest.raises(ValueError, match="action -1"):
        envs = make("MinAtar/Asterix-v1")
        envs.reset()
        envs.step(np.array([-1]))


# Names and options


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ALE/Brekout-v5", r"did you mean ALE/Breakout-v5\?"),
        ("ALE/ms_pacman-v5", "ALE/MsPacman-v5"),
        ("ALE/Pong-v4", "ALE/Pong-v5"),
        ("Pong", "ALE/Pong-v5"),
        ("PongNoFrameskip-v4", r"older id.*ALE/Pong-v5 with EnvConfig\(sticky_actions=0\)"),
        ("MsPacman-v0", r"older id.*ALE/MsPacman-v5"),
        ("MinAtar/Brakout-v1", r"did you mean MinAtar/Breakout-v1 or MinAtar/Breakout-v0\?"),
        ("HalfChetah-v5", "HalfCheetah-v5"),
        ("HalfCheetah-v9", "HalfCheetah-v5"),
        ("cartpole", "CartPole-v1"),
        ("no_such_module:Thing-v0", "No module named 'no_such_module'"),
        ("xyzzyqq", "names"),
    ],
)
def test_an_unknown_name_suggests_the_most_similar_names(name: str, message: str) -> None:
    with pytest.raises(UnknownEnvironment, match=message):
        make(name)


def test_the_list_of_names_holds_all_suites() -> None:
    known = names()
    assert known == sorted(set(known))
    assert {"CartPole-v1", "MountainCar-v0", "HalfCheetah-v5", "ALE/Pong-v5", "MinAtar/Freeway-v1"} <= set(known)
    assert not {"Pong-v4", "HalfCheetah-v2"} & set(known)


def test_each_name_has_its_suite() -> None:
    suites = [suite(n) for n in ("ALE/Pong-v5", "MinAtar/Breakout-v1", "CartPole-v1", "mine:Thing-v0")]
    assert suites == ["atari", "minatar", "control", "control"]


@pytest.mark.parametrize("package", ["mujoco", "minatar"])
def test_a_missing_package_is_reported_with_its_extra(package: str) -> None:
    name = {"mujoco": "HalfCheetah-v5", "minatar": "MinAtar/Breakout-v1"}[package]
    code = f"""
import importlib.util, sys
sys.modules[{package!r}] = None
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda n, *a: None if n == {package!r} else find_spec(n, *a)
from pliant.envs import MissingPackage, make
try:
    make({name!r})
except MissingPackage as error:
    print(error)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"pip install 'pliant[{package}]'" in output


def test_importing_the_package_imports_no_simulator() -> None:
    code = """
import sys
import pliant.envs
print([m for m in ("gymnasium", "ale_py", "mujoco", "minatar") if m in sys.modules])
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("CartPole-v1", {"sticky_actions": 0.25}, r"CartPole-v1 has no option sticky_actions.*atari and minatar"),
        ("CartPole-v1", {"frame_skip": 2}, "frame_skip.*atari"),
        ("CartPole-v1", {"frame_stack": 2}, "set pixels"),
        ("HalfCheetah-v5", {"terminal_on_life_loss": True}, "terminal_on_life_loss.*atari"),
        ("ALE/Pong-v5", {"pixels": 84}, "pixels.*control"),
        ("ALE/Pong-v5", {"max_episode_steps": 9}, "max_episode_steps.*control and minatar"),
        ("MinAtar/Breakout-v1", {"noop_max": 3}, "noop_max.*atari"),
        ("ALE/Pong-v5", {"mode": 9}, "pong has no mode 9; it has 0, 1"),
        ("ALE/Pong-v5", {"difficulty": 7}, "pong has no difficulty 7"),
        ("ALE/Pong-v5", {"continuous": True, "mode": 0}, "not available with continuous actions"),
        ("ALE/Pong-v5", {"continuous": True, "full_action_space": True}, "continuous.*full_action_space"),
    ],
)
def test_options_of_another_suite_are_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(name, config=EnvConfig(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"sticky_actions": 1.0},
        {"sticky_actions": -0.1},
        {"frame_skip": 0},
        {"frame_stack": 0},
        {"noop_max": -1},
        {"max_episode_steps": 0},
        {"max_episode_frames": 0},
        {"action_repeat": 0},
        {"pixels": -1},
        {"threads": -1},
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        EnvConfig(**options)


def test_invalid_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="num_envs"):
        make("CartPole-v1", 0)
    with pytest.raises(ValueError, match="seed must be at least 0, not -1"):
        make("CartPole-v1", 1, -1)


def test_each_name_has_its_adapter() -> None:
    assert isinstance(make("CartPole-v1"), ListAdapter)
    assert isinstance(make("ALE/Pong-v5"), VectorAdapter)
    assert make("ALE/Pong-v5").name == "ALE/Pong-v5"
    assert wrap([Counting()]).name == "Counting"

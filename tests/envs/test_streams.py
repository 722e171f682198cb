"""Streams: data in closed form, seeds, tasks and their boundaries, resumption, files, refusals."""

from __future__ import annotations

import gzip
import io
import itertools
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import pliant.envs.datasets as datasets
from pliant.agents import DQN, PPO, DQNConfig, Episode, PPOConfig, Supervised
from pliant.agents.networks import NetworkConfig
from pliant.agents.playing import play
from pliant.agents.run import Run
from pliant.envs import EnvConfig, UnknownEnvironment, make, names, suite
from pliant.envs.streams import Stream

Array = NDArray[Any]
ALL = (
    "RandomLabels",
    "RandomTargets",
    "SlowRegression",
    "ShiftingPairs",
    "PermutedDigits",
    "ShuffledDigits",
    "WarmStart",
)
each = pytest.mark.parametrize("name", ALL)


def stream(
    name: str,
    num_envs: int = 8,
    seed: int = 3,
    *,
    evaluation: bool = False,
    at_steps: int | None = None,
    drift_seed: int | None = None,
    **options: Any,
) -> Stream:
    config = EnvConfig(**options)
    made = make(f"stream/{name}", num_envs, seed, config, evaluation, at_steps=at_steps, drift_seed=drift_seed)
    assert isinstance(made, Stream)
    return made


def any_prediction(envs: Stream) -> Array:
    """Predictions of zero."""
    if envs.action.discrete:
        return np.zeros(envs.num_envs, np.int64)
    return np.zeros((envs.num_envs, envs.action.size), np.float32)


def read_stream(envs: Stream, steps: int) -> tuple[Array, Array, list[int]]:
    """Inputs [T, E, ...], targets [T, E, ...] and tasks of this number of steps."""
    obs, rows = envs.reset(), []
    for _ in range(steps):
        task = envs.moment().task
        step = envs.step(any_prediction(envs))
        rows.append((obs, step.target, task))
        obs = step.obs
    return np.stack([r[0] for r in rows]), np.stack([r[1] for r in rows]), [r[2] for r in rows]


# ------------------------------------------------------------------------------------------------ all streams


@each
def test_samples_depend_on_the_seed_and_not_on_the_learner(name: str) -> None:
    first, second, other = stream(name, period=64), stream(name, period=64), stream(name, period=64, seed=4)
    rng = np.random.default_rng(0)
    a, b = first.reset(), second.reset()
    others = [other.reset()]
    shown = [a]
    for _ in range(20):
        size = (8,) if first.action.discrete else (8, 1)
        x = first.step(rng.integers(first.action.size, size=size) if first.action.discrete else rng.normal(size=size))
        y = second.step(any_prediction(second))
        assert np.array_equal(a, b) and np.array_equal(x.target, y.target)
        a, b = x.obs, y.obs
        shown.append(a)
        others.append(other.step(any_prediction(other)).obs)
    assert not np.array_equal(np.stack(shown), np.stack(others))


@each
def test_all_environments_share_one_stream(name: str) -> None:
    """Twice as many environments get the same samples in the same order, in half as many steps."""
    few, many = (read_stream(stream(name, lanes, period=80), 240 // lanes) for lanes in (4, 8))
    for a, b in zip(few[:2], many[:2], strict=True):
        assert np.array_equal(a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:]))


@each
@pytest.mark.parametrize("stop", [7, 10, 13])  # within the first task, at its end, within the second task
@pytest.mark.parametrize("abruptness", [1.0, 0.5])
def test_a_stream_resumes_exactly(name: str, stop: int, abruptness: float) -> None:
    options: dict[str, Any] = dict(period=80, abruptness=abruptness, stretch=4)
    straight, stopped = stream(name, **options), stream(name, **options)
    for envs in (straight, stopped):
        envs.reset()
        for _ in range(stop):
            envs.step(any_prediction(envs))
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    assert file.tell() < 4000, "the state must be small for any data"
    file.seek(0)
    resumed = stream(name, **options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert np.array_equal(resumed.obs, straight.obs)
    for _ in range(25):
        a, b = straight.step(any_prediction(straight)), resumed.step(any_prediction(resumed))
        assert a.episodes == b.episodes
        for x, y in zip(a[:6], b[:6], strict=True):
            assert np.array_equal(x, y)
        assert np.array_equal(a.target, b.target)
    assert straight.state_dict() == resumed.state_dict()


def test_a_state_of_another_stream_is_refused() -> None:
    state = stream("RandomLabels").state_dict()
    for other in (stream("RandomTargets"), stream("RandomLabels", 4), stream("RandomLabels", seed=9)):
        with pytest.raises(ValueError, match="the saved state belongs to a stream with"):
            other.load_state_dict(state)


@each
def test_every_step_terminates_and_episodes_are_stretches_of_steps(name: str) -> None:
    envs = stream(name, 4, period=40, stretch=4)
    envs.reset()
    episodes: list[tuple[int, Episode]] = []
    rewards: list[Array] = []
    for i in range(1, 23):
        step = envs.step(any_prediction(envs))
        rewards.append(step.reward)
        assert step.terminated.all() and not step.truncated.any()
        assert step.reset.all() == step.reset.any() == bool(step.episodes)
        episodes += [(i, e) for e in step.episodes]
    # Tasks of ten steps (the last has two) in stretches of four; the end of a task also ends a stretch.
    later = name == "WarmStart"
    assert [i for i, _ in episodes] == [4, 8, 10, *((14, 18, 22) if later else (14, 18, 20))]
    assert [e.length for _, e in episodes] == [4, 4, 2, 4, 4, *((4,) if later else (2,))]
    assert [e.task for _, e in episodes] == [0, 0, 0, 1, 1, 1]
    for i, e in episodes:
        mean = np.stack(rewards[i - e.length : i]).astype(float).sum(0).mean()
        assert e.env == 0 and e.ret == pytest.approx(mean, rel=1e-5)


@each
def test_evaluation_has_an_episode_for_each_environment_at_one_fixed_step(name: str) -> None:
    envs = stream(name, 3, period=30, stretch=5, evaluation=True)
    envs.reset()
    tasks, episodes = set(), []
    for _ in range(30):
        tasks.add(envs.moment().task)
        episodes += list(envs.step(any_prediction(envs)).episodes)
    assert tasks == {0} and [e.env for e in episodes] == [0, 1, 2] * 6 and {e.length for e in episodes} == {5}
    later = stream(name, 3, period=30, evaluation=True, at_steps=45)
    later.reset()
    assert later.moment().task == 1


def test_the_order_of_samples_and_the_problem_have_separate_seeds() -> None:
    first: Any = stream("RandomLabels", seed=1, drift_seed=5)
    second: Any = stream("RandomLabels", seed=2, drift_seed=5)
    assert np.array_equal(first.labels(3), second.labels(3)) and np.array_equal(first.inputs, second.inputs)
    assert not np.array_equal(read_stream(first, 5)[1], read_stream(second, 5)[1])


def test_tasks_begin_with_the_next_minibatch() -> None:
    envs: Any = stream("RandomLabels", 8, period=20)
    obs, _, tasks = read_stream(envs, 10)
    # Samples 0-7, 8-15 and 16-23 belong to the task of their first sample.
    assert tasks == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    for task, begin in ((1, 3), (2, 5), (3, 8)):  # each task starts at the beginning of its order
        first = envs.of_order("order", task, 0).permutation(512)[:16]
        assert np.array_equal(obs[begin : begin + 2].reshape(16, -1), envs.inputs[first])
    _, _, tasks = read_stream(stream("RandomLabels", 8, at=(20, 40)), 9)
    assert tasks == [0, 0, 0, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("name", ["RandomLabels", "ShuffledDigits"])
def test_rewards_count_correct_predictions(name: str) -> None:
    envs = stream(name)
    envs.reset()
    for _ in range(5):
        right = envs._target.copy()  # type: ignore[union-attr]
        answer = right.copy()
        answer[::2] = (right[::2] + 1) % 10
        step = envs.step(answer)
        assert step.reward.tolist() == [0.0, 1.0] * 4 and step.reward.dtype == np.float32
        assert np.array_equal(step.target, right) and step.target.dtype == np.int64


@pytest.mark.parametrize("name", ["RandomTargets", "SlowRegression", "ShiftingPairs"])
def test_rewards_are_negative_squared_errors(name: str) -> None:
    envs = stream(name)
    envs.reset()
    prediction = np.full((8, 1), 30.0, np.float32)  # beyond the bounds, which are only a scale
    step = envs.step(prediction)
    assert step.target.dtype == np.float32 and step.target.shape == (8, 1)
    assert np.allclose(step.reward, -((30.0 - step.target[:, 0].astype(float)) ** 2))


def test_every_kind_of_agent_learns_from_a_stream() -> None:
    labels, targets = stream("RandomLabels", 4, samples=16), stream("RandomTargets", 4)
    dqn = DQN(
        labels.observation,
        labels.action,
        DQNConfig(gamma=0.0, learning_starts=8, update_every=4, batch_size=8, network=NetworkConfig(hidden=(16,))),
    )
    for agent, envs in (
        (dqn, labels),
        (PPO(labels.observation, labels.action, PPOConfig(rollout=8, epochs=1, batch_size=16)), labels),
        (PPO(targets.observation, targets.action, PPOConfig(rollout=8, epochs=1, batch_size=16)), targets),
        (Supervised(labels.observation, labels.action), labels),
    ):
        run = Run(agent, envs)
        run.train(400)
        assert run.clock.updates > 0
    done = play(dqn, stream("RandomLabels", 3, evaluation=True, stretch=4), episodes=7)
    assert len(done) == 7 and {e.length for e in done} == {4}


# ---------------------------------------------------------------------------------------------------- random labels


def test_random_labels_are_fixed_within_a_task_and_independent_between_tasks() -> None:
    envs: Any = stream("RandomLabels", 64)
    assert envs.observation.shape == (64,) and envs.action.size == 10 and envs.schedule.every == 300 * 64
    obs, labels, tasks = read_stream(envs, 616)
    assert tasks == [0] * 300 + [1] * 300 + [2] * 16
    inputs = envs.inputs
    assert inputs.shape == (512, 64) and abs(inputs.mean()) < 0.02 and abs(inputs.std() - 1) < 0.02
    place = {row.tobytes(): i for i, row in enumerate(inputs)}
    index = np.array([[place[row.tobytes()] for row in batch] for batch in obs])
    for first in range(0, 304, 8):  # passes over the data set; the 38th begins in the first task
        if first < 296 or first >= 300:
            assert sorted(index[first : first + 8].ravel()) == list(range(512))
    assert sorted(index[300:308].ravel()) == list(range(512)), "a task begins with a new pass"
    passes = index[:16].reshape(2, 512)
    assert not np.array_equal(*passes), "every pass has its own order"
    assert not np.array_equal(index[:8], index[300:308]), "and every task has its own order"
    known = [np.full(512, -1) for _ in range(3)]
    for t, batch, label in zip(tasks, index, labels, strict=True):
        known[t][batch] = np.where(known[t][batch] < 0, label, known[t][batch])
        assert np.array_equal(known[t][batch], label), "a label stays for the whole task"
    for one, other in itertools.combinations(known, 2):
        assert 0.04 < (one == other).mean() < 0.18, "labels of two tasks agree by chance"
    assert np.bincount(known[0], minlength=10).min() > 25


def test_random_labels_follow_their_options() -> None:
    envs = stream("RandomLabels", samples=20, classes=3, features=5, order=(0,), period=40)
    obs, labels, _ = read_stream(envs, 40)
    pairs = {(o.tobytes(), int(y)) for o, y in zip(obs.reshape(-1, 5), labels.ravel(), strict=True)}
    assert len(pairs) == 20 and {y for _, y in pairs} == {0, 1, 2}, "order=(0,) never changes"


RECURRING = ("RandomLabels", "RandomTargets", "ShuffledDigits", "PermutedDigits", "SlowRegression")


@pytest.mark.parametrize("name", RECURRING)
def test_a_recurring_level_is_unchanged(name: str) -> None:
    envs = stream(name, 8, order=(0, 1), period=512 * 4)
    obs, target, _ = read_stream(envs, 4 * 256)
    targets: list[dict[bytes, bytes]] = []
    for task in range(4):
        some = slice(256 * task, 256 * (task + 1))
        x, y = (part[some].reshape(2048, -1) for part in (obs, target))
        targets.append({a.tobytes(): b.tobytes() for a, b in zip(x, y, strict=True)})
    both = [targets[0].keys() & targets[task].keys() for task in range(4)]
    assert len(both[2]) > 10 and all(targets[0][key] == targets[2][key] for key in both[2])
    if name == "PermutedDigits":
        assert not both[1]
    elif name == "SlowRegression":
        assert not both[1], "one slow bit differs"
    else:
        assert sum(targets[0][key] != targets[1][key] for key in both[1]) > len(both[1]) / 2


def test_labels_change_one_by_one_if_the_change_is_gradual() -> None:
    envs: Any = stream("RandomLabels", 64, samples=64, period=6400, abruptness=0.5)
    old, new = (envs.labels(level).copy() for level in (0, 1))
    place = {row.tobytes(): i for i, row in enumerate(envs.inputs)}
    obs, target, _ = read_stream(envs, 100)
    moved = np.zeros(64, bool)
    for step in range(100):
        index = np.array([place[row.tobytes()] for row in obs[step]])  # every input, once
        is_new, is_old = target[step] == new[index], target[step] == old[index]
        assert (is_new | is_old).all()
        now = np.zeros(64, bool)
        now[index[is_new & ~is_old]] = True
        assert not (moved & ~now).any(), "an input that has its new label keeps it"
        moved |= now
        differing = old != new
        expected = max(0.0, (step / 100 - 0.5) / 0.5)
        assert abs(moved[differing].mean() - expected) < 0.2
        if step <= 50:
            assert not moved.any()


def test_evaluation_uses_the_current_state_of_a_gradual_change() -> None:
    options: dict[str, Any] = dict(samples=64, period=6400, abruptness=0.0)
    obs, target, _ = read_stream(stream("RandomLabels", 64, **options), 51)
    trained = {row.tobytes(): int(y) for row, y in zip(obs[50], target[50], strict=True)}
    x, y, _ = read_stream(stream("RandomLabels", 8, seed=9, drift_seed=3, evaluation=True, at_steps=3200, **options), 8)
    tested = {row.tobytes(): int(label) for row, label in zip(x.reshape(64, -1), y.ravel(), strict=True)}
    assert tested == trained, "the same inputs as in training have their new labels"
    old, new = (stream("RandomLabels", **options).labels(level) for level in (0, 1))  # type: ignore[attr-defined]
    assert sorted(tested.values()) not in (sorted(old), sorted(new))


def test_random_targets_drift_and_change_gradually() -> None:
    envs: Any = stream("RandomTargets", 64, target_drift=2.5, period=6400, abruptness=0.0)
    assert envs.observation.shape == (64,) and envs.action.size == 1 and not envs.action.discrete
    levels = [envs.targets(level)[:, 0].copy() for level in range(3)]
    for level, targets in enumerate(levels):
        assert abs(targets.mean() - 2.5 * level) < 0.2 and abs(targets.std() - 1) < 0.15
    assert abs(np.corrcoef(levels[0], levels[1])[0, 1]) < 0.2
    place = {row.tobytes(): i for i, row in enumerate(envs.inputs)}
    obs, target, _ = read_stream(envs, 150)
    for step in range(150):
        task, part = divmod(step, 100)
        index = np.array([place[row.tobytes()] for row in obs[step]])
        expected = (1 - part / 100) * levels[task][index] + part / 100 * levels[task + 1][index]
        np.testing.assert_allclose(target[step, :, 0], expected, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- new samples


def test_slow_regression_flips_one_slow_bit_a_task() -> None:
    envs: Any = stream("SlowRegression", 10)
    assert envs.schedule.every == 10_000
    obs, _, tasks = read_stream(stream("SlowRegression", 10, period=500), 50 * 40)
    assert obs.shape[2:] == (20,) and set(np.unique(obs)) == {0.0, 1.0}
    slow = obs[..., :15].reshape(40, 500, 15)
    assert (slow == slow[:, :1]).all(), "the slow bits are constant within a task"
    flips = np.abs(np.diff(slow[:, 0], axis=0)).sum(1)
    assert (flips == 1).all(), "and one of them flips at every change of task"
    fast = obs[..., 15:].reshape(-1, 5)
    assert abs(fast.mean() - 0.5) < 0.02 and (np.abs(np.cov(fast.T) - np.eye(5) / 4) < 0.01).all()
    assert abs(np.corrcoef(fast[:-1, 0], fast[1:, 0])[0, 1]) < 0.03, "other bits are new in every sample"
    assert tasks[-1] == 39
    which = np.abs(np.diff(np.stack([envs.slow_bits(k) for k in range(400)]), axis=0)).argmax(1)
    assert np.bincount(which, minlength=15).min() > 10, "every slow bit flips at some time"
    far: Any = stream("SlowRegression", 10)
    assert np.array_equal(far.slow_bits(399), envs.slow_bits(399)), "a level does not depend on the levels read before"


def test_slow_regression_targets_come_from_threshold_units() -> None:
    envs: Any = stream("SlowRegression", 16)
    assert envs.weights.shape == (100, 20) and set(np.unique(envs.weights)) == {-1.0, 1.0}
    assert set(np.unique(envs.bias)) == set(np.unique(envs.out)) == {-1.0, 1.0} and abs(envs.out_bias) == 1
    obs, target, _ = read_stream(envs, 20)
    for x, y in zip(obs.reshape(-1, 20), target.ravel(), strict=True):
        total = float(envs.out_bias[0])
        for w, b, v in zip(envs.weights, envs.bias, envs.out, strict=True):
            tau = 0.7 * (20 + 1) - (20 - sum(w) + b) / 2
            total += v * (float(np.dot(w, x)) + b >= tau)
        assert y == total
    on = obs.reshape(-1, 20) @ envs.weights.T + envs.bias >= envs.threshold
    assert 0 < on.mean() < 0.2, "a unit is rarely active"


def test_slow_bits_change_in_a_growing_fraction_of_samples_if_the_change_is_gradual() -> None:
    obs, _, _ = read_stream(stream("SlowRegression", 100, period=10_000, abruptness=0.0), 100)
    flipped = (obs[..., :15] != obs[0, 0, :15]).any(-1).mean(1)
    np.testing.assert_allclose(flipped, np.arange(100) / 100, atol=0.2)
    assert abs(flipped[40:60].mean() - 0.495) < 0.04


def test_targets_of_shifting_pairs_are_means_of_the_current_pair() -> None:
    envs = stream("ShiftingPairs", 32)
    assert envs.observation.shape == (16,) and envs.schedule.every == 200 * 32
    obs, target, tasks = read_stream(stream("ShiftingPairs", 32, period=128), 40)
    assert abs(obs.mean()) < 0.02 and abs(obs.std() - 1) < 0.02
    for x, y, task in zip(obs, target, tasks, strict=True):
        first = 2 * (task % 8)
        np.testing.assert_allclose(y[:, 0], (x[:, first] + x[:, first + 1]) / 2, rtol=1e-6, atol=1e-7)
    assert tasks[-1] == 9, "the pairs must recur"
    obs, target, _ = read_stream(stream("ShiftingPairs", 32, period=320, abruptness=0.0), 10)
    for step in range(10):
        expected = (1 - step / 10) * obs[step, :, :2].mean(1) + step / 10 * obs[step, :, 2:4].mean(1)
        np.testing.assert_allclose(target[step, :, 0], expected, atol=1e-6)


# ------------------------------------------------------------------------------------------------ digits


def digits() -> datasets.Images:
    return datasets.load("Digits", "")


def test_the_digits_always_have_the_same_test_images() -> None:
    data = digits()
    assert data.train.shape == (1438, 1, 8, 8) and data.test.shape == (359, 1, 8, 8) and data.train.max() == 16
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    chosen = np.random.default_rng(0).permutation(1797)[:359]
    assert np.array_equal(data.test_labels, labels[chosen]), "every run must have the same test images"
    everything = np.concatenate([data.train, data.test]).reshape(1797, 64)
    theirs = sorted((row.tobytes(), int(y)) for row, y in zip(images.astype(np.uint8), labels, strict=True))
    ours = zip(everything, np.concatenate([data.train_labels, data.test_labels]), strict=True)
    assert sorted((row.tobytes(), int(y)) for row, y in ours) == theirs


def test_permuted_digits_have_one_permutation_of_pixels_per_task() -> None:
    train, train_labels, *_ = digits()
    envs: Any = stream("PermutedDigits", 64)
    assert envs.observation.shape == (64,) and envs.schedule.every == 19_200
    obs, target, tasks = read_stream(stream("PermutedDigits", 64, period=1472), 69)
    known = {row.tobytes(): int(y) for row, y in zip(train.reshape(-1, 64), train_labels, strict=True)}
    orders = [envs.of_level("permutation", level).permutation(64) for level in range(3)]
    assert not np.array_equal(orders[0], np.arange(64)) and not np.array_equal(orders[0], orders[1])
    for task in range(3):
        x, y = obs[23 * task : 23 * (task + 1)].reshape(-1, 64), target[23 * task : 23 * (task + 1)].ravel()
        back = np.empty_like(x)
        back[:, orders[task]] = x
        assert [known[row.tobytes()] for row in np.rint(16 * back).astype(np.uint8)] == y.tolist()
        assert x.min() == 0 and x.max() == 1
    assert tasks == [0] * 23 + [1] * 23 + [2] * 23


def test_shuffled_digits_have_one_permutation_of_classes_per_task() -> None:
    train, train_labels, *_ = digits()
    envs = stream("ShuffledDigits", 64, period=1472)
    obs, target, _ = read_stream(envs, 69)
    known = {row.tobytes(): int(y) for row, y in zip(train.reshape(-1, 64), train_labels, strict=True)}
    labels_of_tasks = []
    for task in range(3):
        some = slice(23 * task, 23 * (task + 1))
        true = [known[row.tobytes()] for row in np.rint(16 * obs[some].reshape(-1, 64)).astype(np.uint8)]
        pairs = set(zip(true, target[some].ravel().tolist(), strict=True))
        assert len(pairs) == 10 and {b for _, b in pairs} == set(range(10)), (
            "the labels are a permutation of the classes"
        )
        labels_of_tasks.append(pairs)
    assert labels_of_tasks[0] != labels_of_tasks[1] != labels_of_tasks[2] and labels_of_tasks[0] != {
        (k, k) for k in range(10)
    }


@pytest.mark.parametrize("name", ["PermutedDigits", "ShuffledDigits"])
def test_images_change_one_by_one_if_the_change_is_gradual(name: str) -> None:
    gradual, old, new = (
        stream(name, 719, **(dict(period=1438 * 10, abruptness=0.0) | more))
        for more in ({}, {"order": (0,)}, {"order": (1,)})
    )
    a, b, c = (read_stream(envs, 20) for envs in (gradual, old, new))
    for step in range(20):
        is_old, is_new = ((a[0][step] == x[0][step]).all(1) & (a[1][step] == x[1][step]) for x in (b, c))
        assert (is_old | is_new).all()
        assert abs((is_new & ~is_old).mean() / (1 - (is_new & is_old).mean()) - step / 20) < 0.08


def test_evaluations_use_images_that_training_never_uses() -> None:
    tests = {row.tobytes() for row in (digits().test.reshape(-1, 64).astype(np.float32) / np.float32(16))}
    for name in ("ShuffledDigits", "WarmStart"):
        trained, _, _ = read_stream(stream(name, 64), 120)
        tested, _, _ = read_stream(stream(name, 8, evaluation=True), 45)
        assert not tests & {row.tobytes() for row in trained.reshape(-1, 64)}
        assert {row.tobytes() for row in tested.reshape(-1, 64)} == tests, "one pass covers all test images"
    now = read_stream(stream("ShuffledDigits", 8, evaluation=True, at_steps=19_200), 45)[1]
    then = read_stream(stream("ShuffledDigits", 8, evaluation=True), 45)[1]
    assert (now != then).mean() > 0.5, "evaluations use the labels of the task"


def test_a_warm_start_uses_half_of_the_images_and_then_all() -> None:
    def rows(obs: Array) -> set[bytes]:
        return {row.tobytes() for row in obs.reshape(-1, 64)}

    train, train_labels, *_ = digits()
    obs, target, tasks = read_stream(stream("WarmStart", 64, at=(6400,)), 160)
    half, whole = rows(obs[:100]), rows(obs[100:])
    everything = {row.tobytes() for row in digits().train.reshape(-1, 64).astype(np.float32) / np.float32(16)}
    assert len(half) in (718, 719) and half < everything and whole == everything and tasks == [0] * 100 + [1] * 60
    assert rows(read_stream(stream("WarmStart", 64, at=(6400,), order=(1,)), 40)[0]) == everything, (
        "the level of the fresh start has all images"
    )
    assert rows(read_stream(stream("WarmStart", 64, period=6400), 100)[0]) == half
    other = read_stream(stream("WarmStart", 64, seed=9, drift_seed=3, period=6400), 100)[0]
    assert rows(other) == half and not np.array_equal(other, obs[:100]), (
        "the half depends on the level, the order on the seed"
    )
    growing = read_stream(stream("WarmStart", 64, at=(12800,), abruptness=0.5), 200)[0]
    assert rows(growing[:100]) == half and half < rows(growing)
    assert 0.4 < len(rows(growing[130:150]) - half) / 400 < 1.1
    known = {row.tobytes(): int(y) for row, y in zip(train.reshape(-1, 64), train_labels, strict=True)}
    assert [known[r.tobytes()] for r in np.rint(16 * obs.reshape(-1, 64)).astype(np.uint8)] == target.ravel().tolist()


# ------------------------------------------------------------------------------------------------ files


def idx(array: Array) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, *, zipped: bool = True, joint: str = "-") -> dict[str, Array]:
    rng = np.random.default_rng(0)
    parts = {
        "train-images": rng.integers(256, size=(60, 28, 28)),
        "train-labels": rng.integers(10, size=60),
        "t10k-images": rng.integers(256, size=(20, 28, 28)),
        "t10k-labels": rng.integers(10, size=20),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in parts.items():
        file = folder / f"{name}{joint}idx{array.ndim}-ubyte{'.gz' if zipped else ''}"
        file.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    return parts


@pytest.mark.parametrize(("place", "zipped", "joint"), [("", True, "-"), ("MNIST/raw", False, "-"), ("", False, ".")])
def test_mnist_files_are_read(tmp_path: Path, place: str, zipped: bool, joint: str) -> None:
    parts = write_mnist(tmp_path / place, zipped=zipped, joint=joint)
    envs = stream("ShuffledMNIST", 4, data=str(tmp_path))
    spec = envs.observation
    assert (spec.shape, spec.dtype, spec.high) == ((1, 28, 28), torch.uint8, 255)
    obs, _, _ = read_stream(envs, 15)
    assert sorted(row.tobytes() for row in obs.reshape(60, -1)) == sorted(
        row.astype(np.uint8).tobytes() for row in parts["train-images"]
    )
    flat = stream("ShuffledMNIST", 4, data=str(tmp_path), flat=True)
    vectors = obs[:3].reshape(3, 4, -1).astype(np.float32) / 255
    assert np.array_equal(read_stream(flat, 3)[0], vectors)
    permuted = stream("PermutedMNIST", 4, data=str(tmp_path))
    assert permuted.observation.shape == (784,) and permuted.schedule.every == 19_200
    assert np.array_equal(np.sort(read_stream(permuted, 3)[0]), np.sort(vectors))
    memorised = stream("RandomLabelsMNIST", 4, data=str(tmp_path), samples=20, classes=7)
    obs, target, _ = read_stream(memorised, 10)
    assert memorised.action.size == 7 and memorised.schedule.every == 400 * 20
    assert len({(x.tobytes(), int(y)) for x, y in zip(obs.reshape(40, -1), target.ravel(), strict=True)}) == 20
    assert len(read_stream(stream("WarmStartMNIST", 4, data=str(tmp_path), evaluation=True), 5)[0]) == 5


@pytest.mark.parametrize("ten", [True, False])
def test_cifar_files_are_read(tmp_path: Path, ten: bool) -> None:
    rng, images = np.random.default_rng(0), []
    folder = tmp_path / ("cifar-10-batches-py" if ten else "cifar-100-python")
    folder.mkdir()
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if ten else ["train", "test"]
    for file in files:
        data = rng.integers(256, size=(8, 3072)).astype(np.uint8)
        labels = rng.integers(10 if ten else 100, size=8).tolist()
        content = {b"data": data, b"labels" if ten else b"fine_labels": labels, b"filenames": [b"a.png"]}
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))
        images.append(data)
    for place in (tmp_path, folder):
        envs = stream("ShuffledCIFAR10" if ten else "ShuffledCIFAR100", 4, data=str(place))
        assert envs.observation.shape == (3, 32, 32) and envs.action.size == (10 if ten else 100)
        obs, _, _ = read_stream(envs, 10 if ten else 2)
        train = np.concatenate(images[:-1])
        assert sorted(x.tobytes() for x in obs.reshape(-1, 3072)) == sorted(x.tobytes() for x in train)
    permuted = stream("PermutedCIFAR10" if ten else "PermutedCIFAR100", 4, data=str(tmp_path))
    x = np.rint(read_stream(permuted, 1)[0][0].reshape(4, 3, 1024) * 255).astype(int)
    pixels = {tuple(sorted(map(tuple, row.T))) for row in x}
    theirs = {tuple(sorted(map(tuple, row.reshape(3, 1024).T.astype(int)))) for row in train}
    assert pixels <= theirs, "the channels of a pixel stay together"


@pytest.mark.parametrize("divided", [True, False])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_are_read_from_a_folder(tmp_path: Path, divided: bool, mode: str) -> None:
    rng = np.random.default_rng(0)
    for part, number in (("train", 5), ("test", 2)) if divided else (("", 5),):
        for label in ("cat", "dog", "eel"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(256, size=(6, 9) if mode == "L" else (6, 9, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{i}.png")
    envs = stream("ShuffledImages", 3, data=str(tmp_path))
    assert envs.observation.shape == (1 if mode == "L" else 3, 6, 9) and envs.action.size == 3
    images = datasets.load("Images", str(tmp_path))
    assert (len(images.train), len(images.test)) == ((15, 6) if divided else (12, 3))
    first = np.asarray(Image.open(tmp_path / ("train" if divided else "") / "eel" / "3.png"))
    place = images.train if divided else np.concatenate([images.train, images.test])
    labels = images.train_labels if divided else np.concatenate([images.train_labels, images.test_labels])
    same = (place == (first[None] if mode == "L" else np.moveaxis(first, -1, 0))).all((1, 2, 3))
    assert labels[same].tolist() == [2]


class CodeInPickle:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_invalid_files_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(match: str, name: str = "ShuffledMNIST", data: Path | str = tmp_path, **options: Any) -> None:
        datasets._read.cache_clear()
        with pytest.raises(ValueError, match=match) as error:
            stream(name, data=str(data), **options)
        assert "\n" not in str(error.value)

    refused("give their folder with --env.data", data="")
    refused("there is no folder", data=tmp_path / "nowhere")
    refused("there is no train-images-idx3-ubyte")
    parts = write_mnist(tmp_path)
    file = tmp_path / "train-labels-idx1-ubyte.gz"
    good = file.read_bytes()
    for content, match in (
        (gzip.compress(idx(parts["train-labels"])[:-3]), "cut short"),
        (good[:-9], "cannot be read"),
        (b"x", "cannot be read"),
        (gzip.compress(idx(np.zeros((3, 2)))), "not an idx file of bytes with 1 dim"),
        (gzip.compress(b""), "not an idx file"),
        (gzip.compress(idx(np.zeros(59))), "60 training images and 59 labels"),
        (gzip.compress(idx(np.full(60, 10))), "a training label is not in 0 … 9"),
    ):
        file.write_bytes(content)
        refused(match)
    file.write_bytes(good)
    refused("has 60 images for training, and samples is 61", samples=61)

    cifar = tmp_path / "cifar-10-batches-py"
    cifar.mkdir()
    refused("there is no file .*data_batch_1", "ShuffledCIFAR10")
    batch: dict[bytes, Any] = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}
    for i in range(2, 6):
        (cifar / f"data_batch_{i}").write_bytes(pickle.dumps(batch))
    (cifar / "test_batch").write_bytes(pickle.dumps(batch))
    for content, match in (
        (pickle.dumps({b"data": CodeInPickle()}), "it needs builtins.print"),
        (b"junk", "not a CIFAR batch"),
        (pickle.dumps(batch)[:-20], "not a CIFAR batch"),
        (pickle.dumps([1]), "does not contain a dictionary"),
        (pickle.dumps(batch | {b"data": np.zeros((2, 3073), np.uint8)}), "its data are not bytes"),
        (pickle.dumps({b"data": batch[b"data"]}), "it has no labels"),
    ):
        (cifar / "data_batch_1").write_bytes(content)
        refused(match, "ShuffledCIFAR10")
    assert capsys.readouterr().out == "", "no code in a pickle may be run"
    (cifar / "data_batch_1").write_bytes(pickle.dumps(batch))
    assert stream("ShuffledCIFAR10", data=str(tmp_path)).action.size == 10

    pictures = tmp_path / "pictures"
    (pictures / "a").mkdir(parents=True)
    refused("at least two classes", "ShuffledImages", pictures)
    (pictures / "b").mkdir()
    refused("contains no images", "ShuffledImages", pictures)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(pictures / "a" / "0.png")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(pictures / "b" / "0.png")
    refused("give all the same size and channels", "ShuffledImages", pictures)
    (pictures / "b" / "0.png").write_text("no picture")
    refused("is not an image that Pillow can read", "ShuffledImages", pictures)


@pytest.mark.parametrize(
    ("package", "name", "match"),
    [("sklearn", "PermutedDigits", r"pip install 'pliant\[digits\]'"), ("PIL", "ShuffledImages", "pip install pillow")],
)
def test_a_missing_package_is_reported_with_its_install_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, name: str, match: str
) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
    datasets._digits.cache_clear()
    monkeypatch.setattr(datasets, "find_spec", lambda wanted: None if wanted == package else object())
    with pytest.raises(ValueError, match=match) as error:
        stream(name, **({"data": str(tmp_path)} if package == "PIL" else {}))
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------ names and refusals


def test_names_of_streams_are_listed_and_suggested() -> None:
    known = [name for name in names() if suite(name) == "stream"]
    assert set(known) >= {f"stream/{name}" for name in ALL} | {"stream/PermutedMNIST", "stream/WarmStartImages"}
    assert "stream/WarmStartDigits" not in known
    with pytest.raises(UnknownEnvironment, match="did you mean stream/RandomLabels"):
        make("stream/RandomLable")
    with pytest.raises(UnknownEnvironment, match="did you mean stream/SlowRegression"):
        make("stream/SlowRegresion")


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("RandomLabels", dict(at=(200, 100)), "tasks overlap"),
        ("RandomLabels", dict(at=(100,), period=50), "give exactly one of every"),
        ("RandomLabels", dict(abruptness=1.5), "abruptness must be between 0 and 1, not 1.5"),
        ("RandomLabels", dict(order=(0, -1)), "order must be at least 0, not -1"),
        ("RandomLabels", dict(period=7), "shorter than a minibatch of 8"),
        ("RandomLabels", dict(period=-1), "period must be at least"),
        ("RandomLabels", dict(stretch=0), "stretch must be at least 1"),
        ("RandomLabels", dict(data="x"), "has no option data"),
        ("RandomLabels", dict(target_drift=1.0), "has no option target_drift .*it belongs to stream/RandomTargets"),
        ("SlowRegression", dict(samples=5), "has no option samples"),
        ("PermutedDigits", dict(classes=5), "has no option classes"),
        ("PermutedDigits", dict(data="x"), "has no option data"),
        ("RandomLabels", dict(frame_skip=2), "it belongs to atari"),
        ("RandomLabels", dict(drift=("gravity(every=5)",)), "drift"),
        ("WarmStart", dict(order=(0, 2)), "has the levels 0"),
        ("WarmStart", dict(at=(100, 200)), "has only two tasks"),
        ("WarmStart", dict(at=(100,), period=50), "give exactly one of every"),
    ],
)
def test_invalid_options_are_refused_in_one_line(name: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match) as error:
        stream(name, **options)
    assert "\n" not in str(error.value)


def test_options_of_streams_are_refused_by_other_suites() -> None:
    with pytest.raises(ValueError, match=r"has no option period .*it belongs to stream"):
        make("CartPole-v1", config=EnvConfig(period=5))


def test_predictions_of_the_wrong_type_are_refused() -> None:
    labels, targets = stream("RandomLabels"), stream("RandomTargets")
    with pytest.raises(RuntimeError, match="must come before"):
        labels.step(any_prediction(labels))
    for envs in (labels, targets):
        envs.reset()
    for envs, action in (
        (labels, np.zeros(8)),
        (labels, np.zeros(7, int)),
        (labels, np.zeros((8, 1), int)),
        (targets, np.zeros(8)),
    ):
        with pytest.raises(ValueError, match="actions of shape"):
            envs.step(action)

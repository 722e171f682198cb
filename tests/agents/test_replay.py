"""The replay memory compared with a list of all transitions: samples, their frequency, pending updates, and saving."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from no_wait import HostWaits, no_wait
from torch import Tensor

from pliant.agents import replay as replay_module
from pliant.agents.clock import Sampling
from pliant.agents.priorities import BLOCK, Priorities, PrioritisedConfig
from pliant.agents.replay import Batch, Replay, ReplayTooLarge
from pliant.agents.rollout import RolloutBatch
from pliant.common import memory
from pliant.common.spaces import ActionSpec, ObservationSpec, Step

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
PIXELS = ObservationSpec((4, 2, 2), torch.uint8, 255.0, stack=4)
ATARI = ObservationSpec((4, 84, 84), torch.uint8, 255.0, stack=4)
VECTOR = ObservationSpec((3,))
DISCRETE = ActionSpec(5, discrete=True)
BOX = ActionSpec(2, discrete=False, low=(-1.0, -1.0), high=(1.0, 1.0))


class Transition(NamedTuple):
    """One transition, with all fields that the replay memory must reproduce."""

    obs: Any
    action: Any
    reward: float
    next_obs: Any
    terminated: bool
    over: bool  # an n-step window stops here


class Stream:
    """Random environments that step together, with a list of all transitions; every frame is unique."""

    def __init__(
        self,
        observation: ObservationSpec,
        action: ActionSpec,
        envs: int,
        seed: int = 0,
        ends: float = 0.2,
        life_loss: float = 0.1,
        rewards: str = "quarters",
    ) -> None:
        self.observation, self.action, self.envs = observation, action, envs
        self.rng, self.ends, self.life_loss, self.rewards = np.random.default_rng(seed), ends, life_loss, rewards
        self.frames = 0
        self.episodes: list[list[Any]] = [[self.frame()] for _ in range(envs)]
        self.seen: list[Transition] = []
        self.resets: list[int] = []  # for every step: the number of episodes that ended

    def frame(self) -> Any:
        self.frames += 1
        shape = self.observation.frame_shape
        if self.observation.dtype == torch.uint8:
            digits = [self.frames >> shift & 255 for shift in (0, 8, 16, 24)]
            return np.resize(np.array(digits, np.uint8), shape)
        return np.full(shape, self.frames, np.float32) + np.arange(shape[0], dtype=np.float32) / 8

    def obs(self, env: int) -> Any:
        episode, stack = self.episodes[env], self.observation.stack
        before = np.zeros_like(episode[0]) if self.observation.padding == "zero" else episode[0]
        frames = ([before] * (stack - 1) + episode)[-stack:]
        return np.concatenate(frames) if stack > 1 else frames[0]

    def all_obs(self) -> Any:
        return np.stack([self.obs(env) for env in range(self.envs)])

    def step(self, reset: Any = None) -> tuple[Any, Step]:
        envs, rng = self.envs, self.rng
        before = self.all_obs()
        if self.action.discrete:
            action = rng.integers(0, self.action.size, envs)
        else:
            action = rng.random((envs, self.action.size), np.float32)
        if self.rewards == "quarters":  # their sums are exact in any order if gamma is 0.5
            reward = (rng.integers(-12, 13, envs) / 4).astype(np.float32)
        else:
            reward = rng.normal(size=envs).astype(np.float32)
        reset = rng.random(envs) < self.ends if reset is None else np.asarray(reset)
        how = rng.integers(0, 3, envs)  # an episode ends by termination, truncation, or both at once
        terminated = np.where(reset, how != 1, rng.random(envs) < self.life_loss)
        truncated = reset & (how != 0)
        for env in range(envs):
            self.episodes[env].append(self.frame())
        final = self.all_obs()
        for env in np.flatnonzero(reset):
            self.episodes[env] = [self.frame()]
        self.seen += [
            Transition(before[e], action[e], reward[e], final[e], terminated[e], terminated[e] | truncated[e])
            for e in range(envs)
        ]
        self.resets.append(int(reset.sum()))
        return action, Step(self.all_obs(), reward, terminated, truncated, reset, final)

    def feed(self, replay: Replay, steps: int, **kwargs: Any) -> None:
        for _ in range(steps):
            replay.add(*self.step(**kwargs))

    def window(
        self, ordinal: int, n_step: int, gamma: float, clip: float | None
    ) -> tuple[Transition, float, float, Any]:
        """(first transition, return, discount, observation after it) of the window from an ordinal."""
        total = 0.0
        for j in range(n_step):
            seen = self.seen[ordinal + j * self.envs]
            total += gamma**j * (seen.reward if clip is None else min(max(seen.reward, -clip), clip))
            if seen.over:
                break
        return self.seen[ordinal], total, 0.0 if seen.terminated else gamma ** (j + 1), seen.next_obs


def new_replay(stream: Stream, capacity: int, **kwargs: Any) -> Replay:
    replay = Replay(stream.observation, stream.action, capacity=capacity, num_envs=stream.envs, **kwargs)
    replay.start(stream.all_obs())
    return replay


def sampleable(replay: Replay, n_step: int = 1) -> range:
    """Ordinals of all transitions that can be sampled."""
    last = replay._head - (n_step - 1) * replay.num_envs
    return range(replay._tail, last)


def gather(replay: Replay, ordinals: Any, n_step: int = 1, gamma: float = 0.5) -> Batch:
    index = torch.tensor(list(ordinals), device=replay.device)
    return replay._gather(index, torch.ones(len(index), device=replay.device), n_step, gamma)


def check_against(stream: Stream, replay: Replay, n_step: int, gamma: float, exact: bool = True) -> None:
    """Every transition that can be sampled equals the recorded one."""
    ordinals = sampleable(replay, n_step)
    assert len(ordinals) == replay.available(n_step)
    if not ordinals:
        return
    batch = gather(replay, ordinals, n_step, gamma)
    expected = [stream.window(o, n_step, gamma, replay.reward_clip) for o in ordinals]
    tolerance = 0.0 if exact else 1e-5
    for got, want in (
        (batch.obs, [w[0].obs for w in expected]),
        (batch.action, [w[0].action for w in expected]),
        (batch.next_obs, [w[3] for w in expected]),
    ):
        assert got.cpu().numpy().dtype == np.asarray(want).dtype
        np.testing.assert_array_equal(got.cpu().numpy(), np.stack(want))
    np.testing.assert_allclose(batch.reward.cpu().numpy(), [w[1] for w in expected], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(batch.discount.cpu().numpy(), [w[2] for w in expected], rtol=tolerance, atol=tolerance)
    assert batch.reward.dtype == batch.discount.dtype == torch.float32
    assert all(field.is_contiguous() for field in batch)


def guaranteed_transitions(stream: Stream, replay: Replay) -> int:
    """The number of transitions that must be stored: those of complete steps of which every frame has a slot."""
    envs, stack, steps = stream.envs, stream.observation.stack, len(stream.resets)
    for first in range(steps + 1):
        oldest = max(first - stack + 1, 0)
        if (steps - oldest + 1) * envs + sum(stream.resets[oldest:]) <= replay._layout.slots:
            return min(replay.capacity, (steps - first) * envs)
    raise AssertionError("the slots do not even hold the newest observations")


observations = st.one_of(
    st.just(VECTOR),
    st.builds(
        lambda stack, channels, padding: ObservationSpec((stack * channels, 2, 2), torch.uint8, 255.0, stack, padding),
        st.sampled_from([1, 2, 4]),
        st.sampled_from([1, 3]),
        st.sampled_from(["zero", "repeat"]),
    ),
)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=150, deadline=None)
@given(
    observation=observations,
    action=st.sampled_from([DISCRETE, BOX]),
    envs=st.integers(1, 5),
    data=st.data(),
    ends=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    life_loss=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 2**32 - 1),
    clip=st.sampled_from([None, 1.0]),
)
def test_all_samples_equal_the_recorded_transitions(
    device: str,
    observation: ObservationSpec,
    action: ActionSpec,
    envs: int,
    data: st.DataObject,
    ends: float,
    life_loss: float,
    seed: int,
    clip: float | None,
) -> None:
    stream = Stream(observation, action, envs, seed, ends, life_loss)
    replay = new_replay(stream, data.draw(st.integers(envs, 40), "capacity"), device=device, reward_clip=clip)
    assert len(replay) == 0
    for _ in range(data.draw(st.integers(1, 8), "rounds")):
        stream.feed(replay, data.draw(st.integers(1, 40), "steps"))
        assert guaranteed_transitions(stream, replay) <= len(replay) <= min(replay.capacity, len(stream.seen))
        assert len(replay) >= min(envs, replay.capacity)  # the newest step is always stored
        for n_step in {1, data.draw(st.integers(2, 5), "n_step")}:
            check_against(stream, replay, n_step, 0.5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_step=st.integers(1, 10), gamma=st.floats(0.0, 1.0), envs=st.integers(1, 3))
def test_n_step_returns_are_correct_for_any_gamma_and_reward(seed: int, n_step: int, gamma: float, envs: int) -> None:
    stream = Stream(VECTOR, DISCRETE, envs, seed, rewards="normal")
    replay = new_replay(stream, 50)
    stream.feed(replay, 70)
    check_against(stream, replay, n_step, gamma, exact=False)


def test_long_windows_are_correct_while_n_step_changes() -> None:
    stream = Stream(PIXELS, DISCRETE, 2, ends=0.0, life_loss=0.0)
    replay = new_replay(stream, 60)
    stream.feed(replay, 45)
    for n_step in (10, 3, 1, 5, 30):
        check_against(stream, replay, n_step, 0.5, exact=n_step < 30)  # the last rewards of 30 steps are below rounding
    assert replay.available(30) == 2 and replay.available(31) == 0


@pytest.mark.parametrize("capacity,envs,period", [(256, 1, 70), (250, 3, 64), (1000, 16, 200), (130, 2, 65)])
def test_the_replay_holds_exactly_its_capacity_if_episodes_are_long_enough(
    capacity: int, envs: int, period: int
) -> None:
    stream = Stream(PIXELS, DISCRETE, envs, life_loss=0.0)
    replay = new_replay(stream, capacity)
    for t in range(3 * capacity // envs):
        # Episodes end in one environment after the other, as in practice, and never more than one in 64 transitions.
        stream.feed(replay, 1, reset=[t % (period * envs) == period * e for e in range(envs)])
        assert len(replay) == min(capacity, len(stream.seen))
    check_against(stream, replay, 3, 0.5)


def test_short_episodes_leave_room_for_fewer_transitions() -> None:
    stream = Stream(VECTOR, DISCRETE, 1, life_loss=0.0)
    replay = new_replay(stream, 1000)
    for t in range(3000):
        stream.feed(replay, 1, reset=[t % 20 == 19])
    assert 0.96 * 1000 <= len(replay) < 1000
    stream.feed(replay, 3000, reset=[True])
    assert 0.5 * 1000 <= len(replay) <= 0.52 * 1000


def test_the_newest_and_a_truncated_transition_can_be_sampled_immediately() -> None:
    stream = Stream(PIXELS, DISCRETE, 1, seed=3, life_loss=0.0)
    replay = new_replay(stream, 20)
    stream.feed(replay, 5, reset=[False])
    action, step = stream.step(reset=[True])
    step.terminated[:] = False
    step.truncated[:] = True
    replay.add(action, step)
    batch = gather(replay, [5])
    np.testing.assert_array_equal(batch.next_obs[0], step.final_obs[0])
    assert not np.array_equal(step.obs, step.final_obs)
    assert batch.discount.item() == 0.5


def test_a_lost_life_ends_windows_and_bootstrapping_but_not_the_frame_stack() -> None:
    stream = Stream(PIXELS, DISCRETE, 1, ends=0.0, life_loss=1.0)
    replay = new_replay(stream, 20)
    stream.feed(replay, 8, reset=[False])
    batch = gather(replay, range(0, 6), n_step=3)
    assert (batch.discount == 0).all()
    np.testing.assert_array_equal(batch.reward, [seen.reward for seen in stream.seen[:6]])
    assert (gather(replay, [6]).obs.flatten(2)[0, :, 0] > 0).all()  # no frame of the stack is padding


def test_arrays_that_an_environment_reuses_are_copied() -> None:
    stream = Stream(PIXELS, DISCRETE, 2, ends=0.5)
    replay = new_replay(stream, 50)
    for _ in range(20):
        action, step = stream.step()
        copies = Step(*(np.copy(x) for x in step[:6]))
        replay.add(action.copy(), copies)
        for array in copies[:6]:
            array[:] = 1
    check_against(stream, replay, 1, 0.5)


def test_read_only_arrays_are_accepted() -> None:
    stream = Stream(VECTOR, BOX, 1, ends=0.5)
    obs = stream.all_obs()
    obs.setflags(write=False)
    replay = Replay(VECTOR, BOX, capacity=10)
    replay.start(obs)
    for _ in range(20):
        action, step = stream.step()
        for array in (action, *step[:6]):
            array.setflags(write=False)
        replay.add(action, step)  # warnings are errors
    check_against(stream, replay, 2, 0.5)


# Sampling


@pytest.mark.parametrize("device", DEVICES)
def test_sampling_is_uniform(device: str) -> None:
    stream = Stream(VECTOR, DISCRETE, 2, ends=0.05)
    replay = new_replay(stream, 50, seed=1, device=device)
    stream.feed(replay, 200)
    for n_step in (1, 3):
        ordinals = sampleable(replay, n_step)
        index = replay.sample(20_000, n_step).index.cpu().numpy() - ordinals[0]
        counts = np.bincount(index, minlength=len(ordinals))
        assert len(counts) == len(ordinals)
        expected = 20_000 / len(ordinals)
        assert ((counts - expected) ** 2 / expected).sum() < 90  # the 99.9 % quantile at 49 degrees of freedom is 85


def test_a_sample_equals_the_gathered_transitions_of_its_index() -> None:
    stream = Stream(PIXELS, BOX, 2)
    replay = new_replay(stream, 50, seed=5)
    stream.feed(replay, 100)
    batch = replay.sample(16, 3, 0.9)
    again = gather(replay, batch.index.tolist(), 3, 0.9)
    for got, want in zip(batch, again, strict=True):
        assert torch.equal(got, want)
    assert (batch.weight == 1).all() and batch.weight.shape == (16,)
    assert batch.obs.shape == batch.next_obs.shape == (16, 4, 2, 2) and batch.action.shape == (16, 2)


@pytest.mark.parametrize("prioritised", [None, PrioritisedConfig()])
def test_sampling_uses_only_the_replays_own_generator(prioritised: PrioritisedConfig | None) -> None:
    def make(seed: int) -> Replay:
        stream = Stream(VECTOR, DISCRETE, 1)
        replay = new_replay(stream, 50, seed=seed, prioritised=prioritised)
        stream.feed(replay, 60)
        return replay

    first, second, other = make(1), make(1), make(2)
    before = torch.get_rng_state()
    drawn = first.sample(32).index
    torch.rand(3)
    assert torch.equal(drawn, second.sample(32).index)
    assert not torch.equal(drawn, other.sample(32).index)
    torch.set_rng_state(before)
    first.sample(32)
    assert torch.equal(before, torch.get_rng_state())

    state = blob(first)
    first.sample(32, 3, generator=torch.Generator().manual_seed(0))
    assert blob(first) == state  # an observer's sample changes no state
    assert torch.equal(first.sample(32).index, (second.sample(32), second.sample(32))[1].index)


# Priorities


def power(value: Any, config: PrioritisedConfig) -> Any:
    return (np.abs(np.asarray(value, np.float64)) + config.epsilon) ** config.alpha


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 400), seed=st.integers(0, 2**32 - 1))
def test_priorities_of_a_ring_buffer_equal_a_plain_dictionary(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = PrioritisedConfig(alpha=0.7, epsilon=0.01)
    priorities = Priorities(size, config, torch.device("cpu"))
    expected: dict[int, float] = {}
    highest, head = 1.0, 0
    for _ in range(30):
        head += int(rng.integers(0, size // 2 + 2))
        first = max(0, head - size)
        last = max(first, head - int(rng.integers(0, 8)))  # n-step windows get longer and shorter
        priorities.limit(first, last)
        expected = {o: expected.get(o, highest) for o in range(first, last)}
        if not expected:
            continue
        ordinals = torch.from_numpy(rng.integers(max(0, first - 5), head + 5, 6))
        errors = torch.from_numpy(rng.normal(size=6).astype(np.float32) * 3)
        priorities.update(ordinals, errors)
        given = power(errors, config)
        for ordinal in {o for o in ordinals.tolist() if o in expected}:
            expected[ordinal] = max(p for o, p in zip(ordinals.tolist(), given, strict=True) if o == ordinal)
            highest = max(highest, expected[ordinal])
        table = np.zeros(priorities._table.numel())
        for ordinal, priority in expected.items():
            table[ordinal % size] = priority
        np.testing.assert_allclose(priorities._table.view(-1), table, rtol=1e-14)
        np.testing.assert_array_equal(priorities._sums, priorities._table.sum(1))
        assert set(priorities.draw(64, torch.Generator().manual_seed(seed)).tolist()) <= set(expected)


@pytest.mark.parametrize("first", [0, 777])
def test_a_draw_equals_a_search_in_the_cumulative_sum(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size, count = 5 * BLOCK + 17, 64
    priorities = Priorities(size, PrioritisedConfig(alpha=1.0, epsilon=2.0**-10), torch.device("cpu"))
    priorities.limit(0, first)
    priorities.limit(first, first + size)
    ordinals = torch.arange(first, first + size)
    errors = (torch.randint(0, 64, (size,), generator=torch.Generator().manual_seed(0)) / 8) ** 2
    priorities.update(ordinals, errors)

    # All sums are exact, so a naive search over all priorities in the order of the ring must agree in every draw.
    by_place = np.empty(size)
    by_place[ordinals.numpy() % size] = errors.double().numpy() + 2.0**-10
    upper = by_place.cumsum()
    for seed in range(20):
        uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).numpy()
        place = np.searchsorted(upper, (np.arange(count) + uniform) * (upper[-1] / count), side="right")
        drawn = priorities.draw(count, torch.Generator().manual_seed(seed))
        np.testing.assert_array_equal(drawn.numpy() % size, place)
        assert first <= int(drawn.min()) and int(drawn.max()) < first + size

    # A point on the border of two priorities belongs to the second; the first may be zero.
    priorities.limit(first + 8, first + 8 + 64)
    priorities.update(torch.arange(first + 8, first + 72), torch.full((64,), 1 - 2.0**-10))
    monkeypatch.setattr(torch, "rand", lambda *size, **kwargs: torch.zeros(*size, dtype=kwargs["dtype"]))
    drawn = priorities.draw(64, torch.Generator())
    assert sorted(drawn.tolist()) == list(range(first + 8, first + 72))


@pytest.mark.parametrize("device", DEVICES)
def test_sampling_is_proportional_to_priorities_and_weights_correct_for_it(device: str) -> None:
    config = PrioritisedConfig(alpha=0.6, beta=0.4, beta_steps=1000)
    stream = Stream(VECTOR, DISCRETE, 2, ends=0.0)
    replay = new_replay(stream, 300, seed=2, prioritised=config, device=device)
    stream.feed(replay, 250)
    replay.sample(1)
    ordinals = np.array(sampleable(replay))
    errors = np.random.default_rng(0).exponential(size=300).astype(np.float32)
    replay.update_priorities(torch.tensor(ordinals, device=device), torch.tensor(errors, device=device))
    probability = power(errors, config) / power(errors, config).sum()

    draws = [replay.sample(100) for _ in range(300)]
    counts = np.bincount(torch.cat([b.index for b in draws]).cpu().numpy() - ordinals[0], minlength=300)
    expected = 30_000 * probability
    assert ((counts - expected) ** 2 / expected).sum() < 300 + 4 * np.sqrt(2 * 300)
    # Stratified: the number of draws of a transition differs by less than two from its expectation.
    for batch in draws[:20]:
        hits = np.bincount(batch.index.cpu().numpy() - ordinals[0], minlength=300)
        assert (np.abs(hits - 100 * probability) < 2).all()

    beta = 0.4 + 0.6 * 500 / 1000
    weights = (300 * probability[draws[0].index.cpu().numpy() - ordinals[0]]) ** -beta
    np.testing.assert_allclose(draws[0].weight.cpu(), weights / weights.max(), rtol=1e-6)
    assert draws[0].weight.dtype == torch.float32


def test_new_transitions_get_the_highest_priority_once_their_window_is_complete() -> None:
    config = PrioritisedConfig(alpha=1.0, epsilon=2.0**-20)
    stream = Stream(VECTOR, DISCRETE, 2, ends=0.1)
    replay = new_replay(stream, 40, prioritised=config)

    def stored() -> dict[int, float]:
        table = replay._priorities._table.view(-1)  # type: ignore[union-attr]
        return {o: table[o % 40].item() for o in range(replay._tail, replay._head)}

    stream.feed(replay, 10)
    index = replay.sample(200, n_step=3).index
    assert set(index.tolist()) == set(range(16))
    assert list(stored().values()) == [1.0] * 16 + [0.0] * 4
    replay.update_priorities(torch.tensor([3, 4]), torch.tensor([8.0, -0.5]))
    assert stored()[3] == 8 + config.epsilon and stored()[4] == 0.5 + config.epsilon
    replay.sample(1, n_step=1)
    assert [stored()[o] for o in range(16, 20)] == [8 + config.epsilon] * 4
    replay.sample(1, n_step=5)
    assert [o for o, p in stored().items() if p == 0] == list(range(12, 20))
    assert stored()[4] == 0.5 + config.epsilon
    stream.feed(replay, 12)
    replay.sample(1)
    replay.update_priorities(torch.tensor([3]), torch.tensor([100.0]))  # no longer stored: ignored
    assert max(stored().values()) == 8 + config.epsilon and len(stored()) == len(replay)


def test_errors_that_are_not_finite_do_not_break_sampling() -> None:
    stream = Stream(VECTOR, DISCRETE, 1)
    replay = new_replay(stream, 200, prioritised=PrioritisedConfig())
    stream.feed(replay, 200)
    oldest = replay.sample(1).index * 0 + replay._tail
    for error, different in ((float("nan"), 32), (float("inf"), 1), (-float("inf"), 1)):
        replay.update_priorities(oldest, torch.tensor([error]))
        batch = replay.sample(32)
        assert torch.isfinite(batch.weight).all() and set(batch.index.tolist()) <= set(sampleable(replay))
        assert len(set(batch.index.tolist())) == different  # the others are as likely as before, or hardly ever drawn


@pytest.mark.parametrize("prioritised", [None, PrioritisedConfig()])
def test_samples_are_correct_while_priorities_are_updated(prioritised: PrioritisedConfig | None) -> None:
    stream = Stream(PIXELS, DISCRETE, 3, seed=9)
    replay = new_replay(stream, 37, prioritised=prioritised)
    for round_ in range(60):
        stream.feed(replay, 1 + round_ % 7)
        n_step = 1 + round_ % 4
        if not replay.available(n_step):
            continue
        batch = replay.sample(8, n_step, 0.5)
        assert set(batch.index.tolist()) <= set(sampleable(replay, n_step))
        want = [stream.window(o, n_step, 0.5, None) for o in batch.index.tolist()]
        np.testing.assert_array_equal(batch.next_obs, np.stack([w[3] for w in want]))
        replay.update_priorities(batch.index, batch.reward)


# Pending updates


def count_updates(replay: Replay, ratio: float, n_step: int = 1) -> int:
    return sum(1 for _ in replay.batches(Sampling(batch_size=2, n_step=n_step, gamma=0.99, replay_ratio=ratio)))


@pytest.mark.parametrize(
    "ratio,envs,expected",
    [
        (0.25, 1, [0, 0, 0, 1, 0, 0, 0, 1]),
        (0.1, 1, [0] * 9 + [1] + [0] * 9 + [1]),
        (1.0, 1, [1, 1, 1]),
        (2.0, 1, [2, 2, 2]),
        (8.0, 1, [8, 8]),
        (1.5, 1, [1, 2, 1, 2]),
        (0.25, 16, [4, 4]),
        (0.25, 3, [0, 1, 1, 1, 0]),
        (0.0, 1, [0, 0]),
    ],
)
def test_the_number_of_updates_follows_the_replay_ratio(ratio: float, envs: int, expected: list[int]) -> None:
    stream = Stream(VECTOR, DISCRETE, envs)
    replay = new_replay(stream, 100)
    for count in expected:
        stream.feed(replay, 1)
        assert count_updates(replay, ratio) == count
        assert count_updates(replay, ratio) == 0  # without new steps there are no updates


def test_a_change_of_ratio_takes_effect_at_once_and_fractions_are_kept() -> None:
    stream = Stream(VECTOR, DISCRETE, 1)
    replay = new_replay(stream, 100)
    total = []
    for ratio in [0.5] * 10 + [2.0] * 10 + [0.25] * 3:
        stream.feed(replay, 1)
        total.append(count_updates(replay, ratio))
    assert sum(total[:10]) == 5 and total[10:20] == [2] * 10 and sum(total[20:]) == 0
    stream.feed(replay, 1)
    assert count_updates(replay, 8.25) == 9  # three quarters of an update were left


def test_transitions_before_learning_starts_add_no_updates() -> None:
    stream = Stream(VECTOR, DISCRETE, 4)
    replay = new_replay(stream, 100, learning_starts=10)
    counts = []
    for _ in range(5):
        stream.feed(replay, 1)
        counts.append(count_updates(replay, 1.0))
    assert counts == [0, 0, 2, 4, 4]
    later = new_replay(Stream(VECTOR, DISCRETE, 4), 100, learning_starts=10)
    Stream(VECTOR, DISCRETE, 4).feed(later, 5)
    assert count_updates(later, 1.0) == 10


def test_updates_wait_until_a_window_is_complete() -> None:
    stream = Stream(VECTOR, DISCRETE, 1)
    replay = new_replay(stream, 100)
    counts = []
    for _ in range(4):
        stream.feed(replay, 1)
        counts.append(count_updates(replay, 1.0, n_step=3))
    assert counts == [0, 0, 3, 1]


def test_each_batch_is_drawn_only_when_it_is_requested() -> None:
    stream = Stream(VECTOR, DISCRETE, 1)
    replay = new_replay(stream, 100, prioritised=PrioritisedConfig(alpha=1.0))
    stream.feed(replay, 50)
    batches = replay.batches(Sampling(32, 1, 0.99, 0.1))
    first = next(batches)
    replay.update_priorities(first.index, torch.zeros(32))
    replay.update_priorities(torch.tensor([7]), torch.tensor([1e9]))
    assert (next(batches).index == 7).all()
    # The call itself counts new transitions, even if no batch is drawn, and a drawn batch is no longer pending.
    assert sum(1 for _ in replay.batches(Sampling(32, 1, 0.99, 1.0))) == 3


def test_extra_updates_are_made_once_and_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "AT_ONCE", 4)
    stream = Stream(VECTOR, DISCRETE, 2)
    replay = new_replay(stream, 100, learning_starts=3)
    stream.feed(replay, 1)
    made = []
    for steps, extra in ((0, 0), (0, 10), (0, 10), (0, 10), (0, 10), (1, 10), (1, 12), (0, 12), (0, 12)):
        stream.feed(replay, steps)
        sampling = Sampling(2, 1, 0.99, 0.5, extra)
        pending = replay.has_pending(sampling)
        made.append((pending, sum(1 for _ in replay.batches(sampling))))
    # Ten extra updates, at most four at a time; half an update per transition; two more, with the halves of three.
    assert made == [
        (False, 0),
        (True, 4),
        (True, 4),
        (True, 2),
        (False, 0),
        (False, 0),
        (True, 3),
        (False, 0),
        (False, 0),
    ]
    assert not replay.has_pending(Sampling(2, 1, 0.99, 0.5, 12)) and replay.has_pending(Sampling(2, 1, 0.99, 0.5, 13))
    empty = new_replay(stream, 100)
    assert count_updates(empty, 1.0) == 0
    assert sum(1 for _ in empty.batches(Sampling(2, 1, 0.99, 1.0, 5))) == 0
    assert not empty.has_pending(Sampling(2, 1, 0.99, 1.0, 5)), "updates that cannot be made are not pending"


# Clearing


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.sampled_from([PIXELS, VECTOR]),
    st.integers(4, 40),
    st.lists(st.integers(0, 30), min_size=1, max_size=4),
)
def test_after_clear_only_new_transitions_are_sampled(
    seed: int, envs: int, observation: ObservationSpec, capacity: int, between: list[int]
) -> None:
    """Frame stacks that reach back to before `clear` are complete for any amount and content of earlier data."""
    stream = Stream(observation, DISCRETE, envs, seed)
    replay = new_replay(stream, max(capacity, envs))
    for steps in between:
        stream.feed(replay, steps)
        before, cleared_at = len(replay), replay._head
        replay.clear()
        assert len(replay) == before, "observers can still sample the old transitions"
        assert count_updates(replay, 1.0) == 0
        for k in range(1, 4):
            stream.feed(replay, 1)
            assert sampleable(replay).start >= cleared_at and len(replay) <= k * envs
            check_against(stream, replay, 1, 0.5)
            check_against(stream, replay, 3, 0.5)
            assert count_updates(replay, 1.0) == envs


def test_after_clear_learning_waits_for_learning_starts_again() -> None:
    stream = Stream(VECTOR, DISCRETE, 4)
    replay = new_replay(stream, 100, learning_starts=10)
    stream.feed(replay, 5)
    batches = replay.batches(Sampling(2, 1, 0.99, 1.0))
    next(batches)
    replay.clear()
    assert list(batches) == [], "updates pending for cleared transitions are not made"
    counts = []
    for _ in range(5):
        stream.feed(replay, 1)
        counts.append(count_updates(replay, 1.0))
    assert counts == [0, 0, 2, 4, 4]


def test_clear_resets_priorities_and_their_correction() -> None:
    config = PrioritisedConfig(alpha=1.0, beta=0.0, beta_final=1.0, beta_steps=100)
    stream = Stream(VECTOR, DISCRETE, 1)
    replay = new_replay(stream, 200, prioritised=config)
    stream.feed(replay, 100)
    replay.update_priorities(replay.sample(64).index, torch.full((64,), 1e6))
    replay.clear()
    stream.feed(replay, 20)
    batch = replay.sample(256)
    assert int(batch.index.min()) >= 100 and int(batch.index.max()) < 120
    table = replay._priorities._table.view(-1)  # type: ignore[union-attr]
    assert (table[100:120] == 1.0).all(), "the highest priority of cleared transitions is dropped"
    assert table.sum() == 20.0 and replay._priorities._sums.sum() == 20.0  # type: ignore[union-attr]
    replay.update_priorities(torch.arange(100, 120), torch.arange(20.0))
    assert replay.sample(64).weight.min() > 0.05**0.25, "beta must be annealed over twenty transitions only"


@pytest.mark.parametrize("cleared", [7, 30, 31])
@pytest.mark.parametrize("prioritised", [None, PrioritisedConfig()])
def test_a_cleared_and_restored_replay_continues_bitwise(cleared: int, prioritised: PrioritisedConfig | None) -> None:
    """It is saved right after `clear`, and one step later. Chunks that did not change keep their versions."""
    for later in (0, 1):
        stream, shadow = (Stream(PIXELS, DISCRETE, 2, seed=3) for _ in range(2))
        replay, other = (
            new_replay(s, 24, prioritised=prioritised, learning_starts=4, chunk_bytes=64) for s in (stream, shadow)
        )
        stream.feed(replay, cleared)
        list(replay.batches(Sampling(4, 1, 0.9, 0.5)))
        versions = replay.chunks()
        replay.clear()
        assert replay.chunks() == versions
        stream.feed(replay, later)
        other.load_state_dict(torch.load(io.BytesIO(blob(replay)), weights_only=True))
        for name, _ in replay.chunks():
            other.load_chunk(name, replay.chunk(name))
        shadow = stream
        for _ in range(12):
            action, step = shadow.step()
            for one in (replay, other):
                one.add(action, step)
            drawn = [list(one.batches(Sampling(4, 2, 0.9, 0.7))) for one in (replay, other)]
            assert len(drawn[0]) == len(drawn[1])
            for mine, theirs in zip(*drawn, strict=True):
                assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))
        assert blob(replay) == blob(other)


# Checkpoints


def blob(replay: Replay) -> bytes:
    buffer = io.BytesIO()
    torch.save(replay.state_dict(), buffer)
    return buffer.getvalue()


class Store:
    """Chunks by name and version, as a folder of checkpoints stores them."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int], dict[str, Tensor]] = {}
        self.written = 0

    def save(self, replay: Replay) -> tuple[bytes, list[tuple[str, int]]]:
        for name, version in replay.chunks():
            content = replay.chunk(name)
            if (name, version) in self.kept:
                assert all(torch.equal(self.kept[name, version][k], v) for k, v in content.items())
            else:
                self.written += 1
                self.kept[name, version] = content
        return blob(replay), replay.chunks()

    def restore(self, saved: tuple[bytes, list[tuple[str, int]]], replay: Replay) -> Replay:
        replay.load_state_dict(torch.load(io.BytesIO(saved[0]), weights_only=True))
        for name, version in saved[1]:
            replay.load_chunk(name, self.kept[name, version])
        return replay


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("prioritised", [None, PrioritisedConfig()])
@settings(max_examples=15, deadline=None)
@given(
    observation=observations,
    envs=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    steps=st.integers(0, 60),
    chunk_bytes=st.sampled_from([1, 50, 300, 10**6]),
)
def test_a_restored_replay_continues_bitwise(
    device: str,
    prioritised: PrioritisedConfig | None,
    observation: ObservationSpec,
    envs: int,
    seed: int,
    steps: int,
    chunk_bytes: int,
) -> None:
    def make(seed: int) -> Replay:
        return Replay(
            observation,
            DISCRETE,
            capacity=40,
            num_envs=envs,
            seed=seed,
            prioritised=prioritised,
            device=device,
            chunk_bytes=chunk_bytes,
        )

    stream, store = Stream(observation, DISCRETE, envs, seed), Store()
    replay = make(0)
    replay.start(stream.all_obs())
    for _ in range(4):
        for _ in range(steps):
            replay.add(*stream.step())
            for batch in replay.batches(Sampling(4, 2, 0.9, 0.3)):
                replay.update_priorities(batch.index, batch.reward)
        saved = store.save(replay)
    other = store.restore(saved, make(1))
    assert blob(other) == saved[0] and other.chunks() == saved[1]
    for _ in range(30):
        action, step = stream.step()
        for each in (replay, other):
            each.add(action, step)
        sampling = Sampling(4, 2, 0.9, 0.7)
        for mine, theirs in zip(replay.batches(sampling), other.batches(sampling), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
            for each in (replay, other):
                each.update_priorities(mine.index, mine.reward)
    assert blob(other) == blob(replay) and other.chunks() == replay.chunks()
    check_against(stream, other, 2, 0.5)


def test_a_chunk_keeps_its_version_until_it_changes() -> None:
    stream, store = Stream(PIXELS, DISCRETE, 2, ends=0.1), Store()
    replay = new_replay(stream, 60, chunk_bytes=8 * 4)  # 8 frames
    before: dict[str, tuple[int, Tensor]] = {}
    for _ in range(200):
        stream.feed(replay, 1)
        store.save(replay)
        now = {name: (version, replay.chunk(name)) for name, version in replay.chunks()}
        for name, (version, content) in now.items():
            if name.startswith("frames") and name in before:  # every frame is unique
                same = torch.equal(before[name][1], content["frames"])
                assert (version == before[name][0]) == same
                assert version >= before[name][0]
        before = {name: (version, content["frames"]) for name, (version, content) in now.items() if "frames" in content}
    changes = store.written
    store.save(replay)
    assert store.written == changes
    stream.feed(replay, 1)
    store.save(replay)
    assert store.written - changes <= 6  # at most two chunks of frames, and as many chunks of rows for two rows


def test_a_partly_filled_replay_saves_only_its_filled_part() -> None:
    stream = Stream(PIXELS, DISCRETE, 1, ends=0.0)
    replay = new_replay(stream, 1000, chunk_bytes=400)
    stream.feed(replay, 10)
    assert [name for name, _ in replay.chunks()] == ["frames-0000000000", "rows-0000000000", "rows-0000000011"][:2]
    assert len(replay.chunk("frames-0000000000")["frames"]) == 11
    assert len(replay.chunk("rows-0000000000")["rows"]) == 10


@pytest.mark.parametrize(
    "change,message",
    [
        ({"capacity": 41}, "capacity 40 but here 41"),
        ({"num_envs": 1}, "num_envs 2 but here 1"),
        ({"observation": ObservationSpec((4, 3, 2), torch.uint8, 255.0, 4)}, r"\[4, 2, 2\] but here \[4, 3, 2\]"),
        ({"action": ActionSpec(6, True)}, "actions 5 but here 6"),
        ({"prioritised": PrioritisedConfig()}, "prioritised False but here True"),
    ],
)
def test_the_state_of_a_different_replay_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"observation": PIXELS, "action": DISCRETE, "capacity": 40, "num_envs": 2}
    other = Replay(**(arguments | change))
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(Replay(**arguments).state_dict())


def test_chunks_of_another_replay_are_refused() -> None:
    replay = new_replay(Stream(PIXELS, DISCRETE, 1), 40)
    for name in ("frames-0000009999", "pictures-0", "frames-x", "frames"):
        with pytest.raises(ValueError, match="has no chunk"):
            replay.load_chunk(name, {})
    for content in (
        {},
        {"frames": torch.zeros(3, 5, dtype=torch.uint8)},
        {"frames": torch.zeros(3, 4)},
        {"frames": torch.zeros(999, 4, dtype=torch.uint8)},
    ):
        with pytest.raises(ValueError, match=r"this replay has frames of torch\.uint8"):
            replay.load_chunk("frames-0000000000", content)


# Memory


@pytest.mark.parametrize("envs", [1, 16])
@pytest.mark.parametrize("capacity", [10_000, 1_000_000])
def test_an_atari_transition_takes_at_most_7_3_kilobytes(envs: int, capacity: int) -> None:
    nbytes = Replay.size_of(ATARI, DISCRETE, capacity=capacity, num_envs=envs, prioritised=True)
    assert 7056 <= nbytes / capacity <= 7300
    if capacity > 10_000:
        return
    replay = Replay(ATARI, DISCRETE, capacity=capacity, num_envs=envs, prioritised=PrioritisedConfig())
    arrays = [x for owner in (replay, replay._priorities) for x in vars(owner).values()]
    whole: dict[int, int] = {}  # memory with several views counts once
    for x in arrays:
        if isinstance(x, Tensor | np.ndarray):
            place = x.data_ptr() if isinstance(x, Tensor) else x.ctypes.data
            whole[place] = max(whole.get(place, 0), x.nbytes)
    counted = sum(whole.values())
    assert replay.nbytes == nbytes == counted
    assert replay.bytes_per_transition == nbytes / capacity
    size = {1: ("7.22 kB", "72.2 MB"), 16: ("7.26 kB", "72.6 MB")}[envs]
    assert replay.describe() == f"replay: 10,000 transitions of {size[0]} on cpu = {size[1]}"
    # Slots do not depend on the size of a frame. With episodes of 200 steps the full capacity is available.
    stream = Stream(PIXELS, DISCRETE, envs, life_loss=0.0)
    small = new_replay(stream, capacity)
    for t in range(capacity // envs + 300):
        stream.feed(small, 1, reset=[(t + 13 * e) % 200 == 199 for e in range(envs)])
        stream.seen.clear()
    assert len(small) == capacity and small._layout.slots == replay._layout.slots


def test_a_replay_that_does_not_fit_is_refused_with_a_size_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "available_memory", lambda device: 100_000_000)
    message = r"takes 7\.21 GB, but cpu has 90 MB to spare: --agent\.buffer-size \d+ fits"
    with pytest.raises(ReplayTooLarge, match=message) as e:
        Replay(ATARI, DISCRETE, capacity=1_000_000)
    fits = int(str(e.value).split("buffer-size ")[1].split()[0])
    assert Replay(ATARI, DISCRETE, capacity=fits).nbytes <= 90_000_000
    with pytest.raises(ReplayTooLarge):
        Replay(ATARI, DISCRETE, capacity=fits + 1)
    monkeypatch.setattr(replay_module, "available_memory", lambda device: 1000)
    with pytest.raises(ReplayTooLarge, match="not even one"):
        Replay(ATARI, DISCRETE, capacity=100)


def test_available_memory_respects_control_groups(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    system = memory._system_memory()
    assert 0 < memory.available_memory("cpu") <= system * 1.5  # other processes start and end between the two calls
    assert memory._group_memory(tmp_path, "memory.max", "memory.current", "inactive_file") == []
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    for limit, free in (("max", []), ("1000", [450]), ("100", [0])):
        (tmp_path / "memory.max").write_text(limit + "\n")
        assert memory._group_memory(tmp_path, "memory.max", "memory.current", "inactive_file") == free


# The host never waits


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("prioritised", [None, PrioritisedConfig()])
@pytest.mark.parametrize("observation,action", [(PIXELS, DISCRETE), (VECTOR, BOX)])
def test_the_host_never_waits_for_the_device(
    device: str, prioritised: PrioritisedConfig | None, observation: ObservationSpec, action: ActionSpec
) -> None:
    stream = Stream(observation, action, 2, ends=0.3)
    replay = new_replay(stream, 20, prioritised=prioritised, device=device, reward_clip=1.0)
    stream.feed(replay, 30)
    for n_step in (1, 3, 2):
        step = stream.step()
        with no_wait():
            replay.add(*step)
            for batch in replay.batches(Sampling(4, n_step, 0.9, 0.5)):
                replay.update_priorities(batch.index, batch.reward.abs())
    # The guard itself must detect operations that wait.
    values = torch.arange(3.0)
    for wait in (
        lambda: values[0].item(),
        lambda: bool(values[0]),
        lambda: values[values > 1],
        lambda: values.tolist(),
        lambda: values.nonzero(),
        lambda: values.cpu(),
        lambda: values.to("cpu"),
        lambda: values.numpy(),
        lambda: torch.equal(values, values),
        lambda: torch.masked_select(values, values > 1),
        lambda: values.unique(),
        lambda: int(values[1]),
    ):
        with pytest.raises(HostWaits), no_wait():
            wait()


# Refusals


def test_invalid_arrays_and_calls_are_refused_by_name() -> None:
    stream = Stream(PIXELS, DISCRETE, 2)
    replay = Replay(PIXELS, DISCRETE, capacity=20, num_envs=2)
    action, step = stream.step(reset=[True, False])
    with pytest.raises(RuntimeError, match=r"call start\(obs\)"):
        replay.add(action, step)
    with pytest.raises(ValueError, match=r"first observations should have shape \(2, 4, 2, 2\)"):
        replay.start(step.obs[:1])
    with pytest.raises(RuntimeError, match="nothing to sample"):
        replay.sample(4)
    replay.start(Stream(PIXELS, DISCRETE, 2).all_obs())
    with pytest.raises(RuntimeError, match=r"^start\(\) was called before"):
        replay.start(step.obs)
    with pytest.raises(RuntimeError, match="nothing to sample"):
        replay.sample(4)
    for change, message in (
        ({"obs": step.obs[:, :3]}, r"observations of a step .* not shape \(2, 3, 2, 2\)"),
        ({"obs": step.obs.astype(np.float32)}, "type uint8, not .* type float32"),
        ({"final_obs": step.final_obs[:1]}, "final observations"),
        ({"reward": step.reward[:1]}, "reward should be"),
        ({"terminated": step.terminated.astype(int)}, "terminated should be .* booleans"),
        ({"reset": step.reset[:1]}, "reset should be"),
        ({"obs": np.ones_like(step.obs)}, "should be zeros, according to the observation spec"),
    ):
        with pytest.raises(ValueError, match=message):
            replay.add(action, step._replace(**change))
    for wrong in (action[:1], action.astype(np.float32), np.zeros((2, 1), np.int64)):
        with pytest.raises(ValueError, match=r"actions should be \(2,\) whole numbers"):
            replay.add(wrong, step)
    replay.add(action, step)
    with pytest.raises(RuntimeError, match="complete window of 2 steps"):
        replay.sample(4, n_step=2)
    with pytest.raises(ValueError, match="n_step"):
        replay.sample(4, n_step=0)
    replay.update_priorities(replay.sample(4).index, torch.ones(4))  # without priorities this does nothing


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot hold one step of 4 environments"):
        Replay(VECTOR, DISCRETE, capacity=3, num_envs=4)
    with pytest.raises(ValueError, match="reward_clip"):
        Replay(VECTOR, DISCRETE, capacity=3, reward_clip=0.0)
    for wrong in ({"alpha": -1.0}, {"beta": 1.5}, {"beta_final": -0.1}, {"epsilon": 0.0}, {"beta_steps": 0}):
        with pytest.raises(ValueError, match="|".join(wrong)):
            PrioritisedConfig(**wrong)  # type: ignore[arg-type]
    box = Replay(VECTOR, BOX, capacity=3)
    stream = Stream(VECTOR, BOX, 1)
    box.start(stream.all_obs())
    action, step = stream.step()
    with pytest.raises(ValueError, match=r"actions should be \(1, 2\) floats"):
        box.add(action[:, :1], step)


# Batches


def test_a_batch_of_a_rollout_is_a_batch_and_both_yield_their_tensors_in_order() -> None:
    parts = [torch.full((3,), float(i)) for i in range(11)]
    plain, whole = Batch(*parts[:7]), RolloutBatch(*parts)
    assert isinstance(whole, Batch) and all(a is b for a, b in zip(whole, parts, strict=True))
    assert all(a is b for a, b in zip(plain, parts, strict=False))
    taken = whole.take(torch.tensor([2, 0]))
    assert type(taken) is RolloutBatch and [len(part) for part in taken] == [2] * 11
    changed = whole.replace(reward=parts[9])
    assert type(changed) is RolloutBatch and changed.reward is parts[9] and whole.reward is parts[2]
    with pytest.raises(AttributeError, match=r"Batch\._replace has a new name: use Batch\.replace"):
        whole._replace(reward=parts[9])
    with pytest.raises(AttributeError, match="'Batch' object has no attribute 'log_prob'"):
        plain.log_prob  # noqa: B018

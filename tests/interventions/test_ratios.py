"""The number of updates after a step: credit, a fixed ratio, and the adaptive ratio compared with its authors' code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from no_wait import no_wait
from numpy.typing import NDArray
from stand import Stand, only
from test_agents import BOX, SAC_SMALL, SMALL_PIXELS
from torch import Tensor

from pliant.agents import DQN, SAC, Agent, DQNConfig, Intervention
from pliant.agents.clock import Sampling
from pliant.agents.networks import NetworkConfig
from pliant.agents.run import Run
from pliant.agents.views import view
from pliant.common.spaces import ActionSpec, Episode, ObservationSpec, Step
from pliant.interventions.adaptive_replay_ratio import AdaptiveReplayRatio
from pliant.interventions.replay_ratio import ReplayRatio

SMALL = DQNConfig(
    network=NetworkConfig(hidden=(4,)),
    batch_size=4,
    buffer_size=512,
    learning_starts=0,
    update_every=1,
    epsilon_start=1.0,
    epsilon_end=1.0,
)


class Short:
    """Environments of random numbers whose episodes all end together, after `length` steps."""

    frame_skip = 1

    def __init__(self, num_envs: int = 1, length: int = 5) -> None:
        self.observation, self.action = ObservationSpec((3,)), ActionSpec(2, discrete=True)
        self.num_envs, self.length, self.age = num_envs, length, 0
        self.rng = np.random.default_rng(0)

    def _obs(self) -> NDArray[np.float32]:
        return self.rng.normal(size=(self.num_envs, 3)).astype(np.float32)

    def reset(self) -> NDArray[Any]:
        return self._obs()

    def step(self, action: NDArray[Any]) -> Step:
        self.age += 1
        over, obs = np.full(self.num_envs, self.age % self.length == 0), self._obs()
        ended = tuple(Episode(i, 1.0, self.length, 0) for i in np.flatnonzero(over))
        return Step(obs, np.ones(self.num_envs, np.float32), over, np.zeros_like(over), over, obs, ended)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def begin(*parts: Intervention, num_envs: int = 1, length: int = 5, **changes: Any) -> Run:
    envs = Short(num_envs, length)
    agent = DQN(envs.observation, envs.action, replace(SMALL, **changes), interventions=parts)
    run = Run(agent, envs)
    run.obs = envs.reset()
    run.memory.start(run.obs)
    return run


def updates(run: Run, steps: int) -> list[int]:
    """The number of updates after each of the next steps."""
    counts = []
    for _ in range(steps):
        before = run.clock.updates
        run.step()
        counts.append(run.clock.updates - before)
    return counts


# ---------------------------------------------------------------------------------------------------------- credit


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(0.5, [0, 1] * 5), (0.25, [0, 0, 0, 1] * 2), (1, [1] * 6), (2, [2] * 6), (0.3, [0, 0, 0, 1, 0, 0, 1, 0, 0, 1])],
)
def test_updates_follow_from_credit(ratio: float, expected: list[int]) -> None:
    assert updates(begin(ReplayRatio(ratio)), len(expected)) == expected


@settings(max_examples=15, deadline=None)
@given(tenths=st.integers(1, 35), num_envs=st.integers(1, 3), steps=st.integers(1, 30))
def test_no_fraction_of_an_update_is_lost(tenths: int, num_envs: int, steps: int) -> None:
    run = begin(ReplayRatio(tenths / 10), num_envs=num_envs)
    for step, done in enumerate(np.cumsum(updates(run, steps)), 1):
        assert done == Fraction(tenths, 10) * num_envs * step // 1


def test_steps_with_random_actions_give_no_credit() -> None:
    assert updates(begin(ReplayRatio(2), learning_starts=6), 10) == [0] * 6 + [2] * 4


class Switch(Intervention):
    """A replay ratio of 0.5, and of 2 from a given step on."""

    name = "switch"

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def schedule(self, sampling: Sampling, clock: Any) -> Sampling:
        return replace(sampling, replay_ratio=0.5 if clock.steps <= self.at else 2.0)


def test_a_change_of_the_ratio_takes_effect_at_once() -> None:
    """A ratio of 0.5 for 10 steps gives 5 updates, then a ratio of 2 for 10 steps gives 20."""
    counts = updates(begin(Switch(10)), 20)
    assert sum(counts[:10]) == 5 and counts[10:] == [2] * 10
    # Remaining credit at the change is not lost.
    counts = updates(begin(Switch(9)), 20)
    assert sum(counts[:9]) == 4 and counts[9:11] == [2, 2] and sum(counts) == 4 + 22


def test_resets_are_counted_in_updates_so_they_are_earlier_at_a_higher_ratio() -> None:
    for ratio, expected in ((1.0, [12, 24]), (2.0, [6, 12, 18, 24]), (4.0, [3, 6, 9, 12, 15, 18, 21, 24])):
        run, fired = begin(ReplayRatio(ratio, reset_every=12)), []
        output = run.agent.components["critic"].online.advantage.linear
        for step in range(1, 25):
            before = output.weight.detach().clone()
            updates(run, 1)
            # A step of the optimizer changes a weight by about its learning rate, a redraw by far more.
            fired += [step] if (output.weight - before).abs().max() > 0.05 else []
        assert fired == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReplayRatio(0), "replay_ratio: ratio must be above 0"),
        (lambda: ReplayRatio(2, reset_every=-1), "reset_every must be at least 0"),
        (lambda: ReplayRatio(2, encoder_shrink=0.5), "encoder_shrink needs reset_every"),
        (lambda: AdaptiveReplayRatio(low=0.0), "low must be above 0"),
        (lambda: AdaptiveReplayRatio(delta=-1.0), "delta must be at least 0, not -1"),
        (lambda: begin(ReplayRatio(2), AdaptiveReplayRatio()), "exclude each other: both reserve the replay ratio"),
        (lambda: begin(AdaptiveReplayRatio(), network=NetworkConfig(hidden=())), "no hidden layer to measure"),
    ],
)
def test_invalid_ratios_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# -------------------------------------------------------------------------------------------------------- adaptive


def active(share: float) -> dict[str, list[Tensor]]:
    """Outputs of which a given fraction is positive, one is zero and all others are negative."""
    h = torch.full((10_000,), -1.0)
    h[: round(share * 10_000)] = 0.5
    h[-1] = 0.0
    return {"critic": [h.view(100, 100)]}


def adaptive(**options: Any) -> Stand:
    agent = DQN((3,), 2, replace(SMALL, learning_starts=0), interventions=[AdaptiveReplayRatio(**options)])
    return Stand(agent)


def ratio(stand: Stand) -> float:
    return stand.agent.sampling(stand.clock).replay_ratio


def feed(stand: Stand, shares: Iterable[float], ends: int = 0) -> None:
    """One update for each fraction; before the first update, the given number of episodes ends."""
    for k, share in enumerate(shares):
        stand.tick(1, ends if k == 0 else 0)
        with no_wait():
            stand.act(active(share))


def episodes(stand: Stand, shares: Iterable[float], updates: int = 2) -> None:
    """Whole episodes, each with a constant active fraction; the last one has not ended yet."""
    for number, share in enumerate(shares):
        feed(stand, [share] * updates, ends=1 if number else 0)


def last(stand: Stand) -> float:
    return float(only(stand.agent).last)


def test_the_first_check_compares_with_the_first_update() -> None:
    stand = adaptive()
    feed(stand, [0.37, 0.9])
    assert last(stand) == pytest.approx(0.37) and ratio(stand) == 0.5


@pytest.mark.parametrize(("second", "switched"), [(0.5005, True), (0.501, True), (0.4995, True), (0.5011, False)])
def test_a_small_change_of_the_mean_switches_the_ratio(second: float, switched: bool) -> None:
    """Episodes 1 to 49 are at 0.5, the 50th differs a little: a change up to 0.001 switches, one of 0.0011 does not."""
    stand = adaptive(delta=0.001 + 1e-6)
    episodes(stand, [0.5] * 49 + [second])
    assert ratio(stand) == 0.5, "the 50th episode has not ended"
    feed(stand, [0.3], ends=1)
    assert last(stand) == pytest.approx(second, abs=1e-6)
    assert ratio(stand) == (2.0 if switched else 0.5)
    shown = only(stand.agent).measurements()["interventions/replay_ratio"].item()
    assert shown == (2.0 if switched else 0.5)


def test_values_before_the_last_episode_do_not_count() -> None:
    stand = adaptive()
    episodes(stand, [0.5, *np.linspace(0.1, 0.9, 48), 0.5])
    feed(stand, [0.9], ends=1)
    assert last(stand) == pytest.approx(0.5, abs=1e-6) and ratio(stand) == 2.0


def test_updates_after_an_end_belong_to_the_next_episode() -> None:
    """The update right after the 49th end is the first that counts, and the one after the 50th does not count."""
    stand = adaptive(every=3)
    feed(stand, [0.2, 0.9])
    feed(stand, [0.9, 0.9], ends=1)
    feed(stand, [0.4, 0.6], ends=1)
    feed(stand, [0.8, 0.1], ends=1)
    assert last(stand) == pytest.approx(0.5, abs=1e-6)
    feed(stand, [0.8] * 5, ends=1)
    feed(stand, [0.3, 0.5], ends=1)
    feed(stand, [0.8], ends=1)
    assert last(stand) == pytest.approx(0.4, abs=1e-6)


def test_every_episode_can_be_checked() -> None:
    """The authors' code would divide by zero here."""
    stand = adaptive(every=1)
    feed(stand, [0.2, 0.4])
    for mean, shares in ((0.3, [0.6, 0.8]), (0.7, [0.1])):
        feed(stand, shares, ends=1)
        assert last(stand) == pytest.approx(mean, abs=1e-6)


def test_an_interval_without_an_update_switches_nothing() -> None:
    stand = adaptive(every=2)
    feed(stand, [0.5])
    stand.clock = stand.clock.stepped(9, episodes=1)
    stand.clock = stand.clock.stepped(9, episodes=1)
    feed(stand, [0.9], ends=0)
    # The mean is over the updates since the latest check.
    assert last(stand) == pytest.approx(0.5) and ratio(stand) == 2.0
    stand = adaptive(every=2)
    feed(stand, [0.5])
    feed(stand, [0.9], ends=1)
    feed(stand, [0.7], ends=1)
    assert last(stand) == pytest.approx(0.9) and ratio(stand) == 0.5


@pytest.mark.parametrize("together", [1, 2, 4])
def test_ends_of_several_environments_at_once_are_one_check(together: int) -> None:
    """With four episodes per check there is exactly one check, whether they end one by one or together."""
    stand = adaptive(every=4)
    feed(stand, [0.5] * 3)
    for _ in range(4 // together):
        feed(stand, [0.5] * 3, ends=together)
    assert float(only(stand.agent).checks) == 1.0 and ratio(stand) == 2.0
    # The next check is due four episodes later.
    for _ in range(4 // together):
        assert float(only(stand.agent).checks) == 1.0
        feed(stand, [0.5] * 3, ends=together)
    assert float(only(stand.agent).checks) == 2.0


def test_the_switch_is_never_undone() -> None:
    stand = adaptive(every=1)
    feed(stand, [0.5])
    feed(stand, [0.5], ends=1)
    assert ratio(stand) == 2.0
    for share in (0.1, 0.9, 0.2):
        feed(stand, [share], ends=1)
        assert ratio(stand) == 2.0


def test_first_checks_can_be_recorded_without_a_switch() -> None:
    stand = adaptive(every=1, at_least=2)
    for check, expected in enumerate((0.5, 0.5, 0.5, 2.0)):
        feed(stand, [0.5], ends=min(check, 1))
        assert ratio(stand) == expected


@pytest.mark.parametrize("of", ["updates", "steps"])
def test_on_other_clocks_the_mean_is_over_the_whole_period(of: Any) -> None:
    stand = adaptive(every=4, of=of)
    feed(stand, [0.1, 0.2, 0.6], ends=7)
    feed(stand, [0.9])
    assert last(stand) == pytest.approx(0.3, abs=1e-6)
    feed(stand, [0.1, 0.1, 0.1, 0.4])
    assert last(stand) == pytest.approx(0.3, abs=1e-6) and ratio(stand) == 2.0


def test_the_active_fraction_is_pooled_over_the_hidden_layers_of_the_value_function() -> None:
    """Encoder and projection are not included; the weight of a layer is its number of outputs."""
    network = NetworkConfig(body="drq", width=0.25, hidden=(7, 30))
    agent: Agent = SAC(SMALL_PIXELS, BOX, replace(SAC_SMALL, network=network), interventions=[AdaptiveReplayRatio()])
    stand = Stand(agent)
    trace = view(agent).activations(stand.memory.batch)["critic"]
    assert len(trace) == 4 + 1 + 2 * 2
    own = torch.cat([h.flatten() for h in trace[5:]])
    stand.tick().act()
    assert last(stand) == pytest.approx((own > 0).float().mean().item(), abs=1e-6)
    by_layer = torch.stack([(h > 0).float().mean() for h in trace[5:]]).mean().item()
    assert last(stand) != pytest.approx(by_layer, abs=1e-5)


def test_in_a_real_run_the_ratio_is_one_half_and_then_exactly_two() -> None:
    run = begin(AdaptiveReplayRatio(every=2, delta=1.0), length=6)
    counts = updates(run, 40)
    # Episodes end at steps 6 and 12; the first update after the second end makes the check.
    assert counts[:12] == [0, 1] * 6
    assert counts[12:] == [2] * 28


def test_in_a_real_run_it_never_switches_while_units_change() -> None:
    run = begin(AdaptiveReplayRatio(every=1, delta=0.0, at_least=10**6), length=3, num_envs=2)
    assert updates(run, 24) == [1] * 24


def test_the_chosen_ratio_is_saved(tmp_path: Path) -> None:
    stand = adaptive(every=1)
    feed(stand, [0.5])
    feed(stand, [0.5, 0.6], ends=1)
    stand.agent.save(tmp_path / "agent.pt")
    loaded = DQN.load(tmp_path / "agent.pt", interventions=[AdaptiveReplayRatio(every=1)])
    other = Stand(loaded, clock=stand.clock)
    assert ratio(stand) == ratio(other) == 2.0
    for which in (stand, other):
        feed(which, [0.9], ends=1)
    assert last(stand) == last(other) == pytest.approx(0.55, abs=1e-6)


def test_the_configuration_begins_with_the_lower_ratio() -> None:
    assert begin(AdaptiveReplayRatio(low=0.25)).agent.config.replay_ratio == 0.25
    assert begin(ReplayRatio(8)).agent.config.replay_ratio == 8

"""Numbers that are not finite stop a run: from an environment before the agent learns from them, in an agent before
they are saved. A run without an update reports it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import SyncVectorEnv
from refusals import error_line

from pliant.agents import DQN, PPO, SAC, ObservationSpec
from pliant.agents.checkpoint import Checkpoints
from pliant.agents.clock import Clock
from pliant.agents.dqn import DQNConfig
from pliant.agents.log import read_metrics
from pliant.agents.run import Run
from pliant.common.spaces import Diverged, NotFinite, action_spec, observation_spec
from pliant.envs import make, wrap
from pliant.scripts.main import main

FAULTY = "FaultyForTests-v0"
fault: dict[str, Any] = {}
"""The fault of the environments: `reward` or `obs` at a step of an episode, or `first`, its first observation."""


class FaultyEnv(gymnasium.Env[Any, Any]):
    """Episodes of nine steps that are functions of their seeds; a fault can occur in the third episode."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space: gymnasium.Space[Any] = Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.t, self.rng = 0, np.random.default_rng(seed)
        self.faulty = fault.get("seed") == seed
        return self._show("first"), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.t += 1
        reward = float(self.rng.random())
        if self.faulty and self.t == 5 and "reward" in fault:
            reward = fault["reward"]
        return self._show("obs" if self.t == 5 else ""), reward, self.t >= 9, False, {}

    def _show(self, when: str) -> Any:
        obs = self.rng.random(3)
        if self.faulty and when in fault:
            obs[1] = fault[when]
        return obs


class FaultyBoxEnv(FaultyEnv):
    action_space = Box(-1, 1, (2,), np.float32)


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    gymnasium.register(FAULTY, FaultyEnv)
    yield
    del gymnasium.registry[FAULTY]


@pytest.fixture(autouse=True)
def no_fault() -> Iterator[None]:
    fault.clear()
    yield
    fault.clear()


@pytest.fixture(scope="module")
def faultless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a fault."""
    folder = tmp_path_factory.mktemp("faultless")
    assert train(folder) == 0
    return folder


def third_seed(env: int = 1, seed: int = 0) -> int:
    from pliant.envs import episode_seed

    return episode_seed(seed, env, 2)


OPTIONS = (
    "--env",
    FAULTY,
    "--num-envs",
    "2",
    "--steps",
    "120",
    "--threads",
    "1",
    "--log-every",
    "20",
    "--evaluate-episodes",
    "0",
    "--checkpoint-every",
    "30",
    "--agent.learning-starts",
    "10",
    "--agent.update-every",
    "2",
    "--agent.batch-size",
    "4",
    "--agent.network.hidden",
    "8",
)


def train(folder: Path, *options: str) -> int:
    return main(["train", "--run", str(folder), "--agent", "dqn", *OPTIONS, *options])


def weights(folder: Path) -> list[torch.Tensor]:
    state = Checkpoints.open(folder).load("agent")["state"]["modules"]
    return [t for module in state.values() for t in module.values() if torch.is_tensor(t)]


@pytest.mark.parametrize(
    ("place", "value", "message", "steps"),
    [
        ("reward", None, "step 5 of the episode (environment step 46 of the run): the reward is None", 44),
        ("reward", "high", "the reward is 'high'", 44),
        ("reward", float("nan"), "the reward is nan", 44),
        ("reward", 1e300, "the reward is 1e+300", 44),
        ("obs", float("nan"), "step 5 of the episode (environment step 46 of the run): the observation has nan", 44),
        ("obs", 1e300, "the observation has inf at [1]", 44),
        ("first", float("inf"), "step 0 of the episode (environment step 36 of the run): the first observation", 34),
    ],
)
def test_an_invalid_reward_or_observation_stops_the_run_which_resumes_once_it_is_repaired(
    place: str,
    value: Any,
    message: str,
    steps: int,
    faultless: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    fault.update({"seed": third_seed(), place: value})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(tmp_path / "faulty") == 1
    error = error_line(capsys)
    assert error.startswith(f"error: {FAULTY}, environment 1, episode 2, ")
    assert message in error and f"saved as of environment step {steps}, before this step" in error
    assert not (tmp_path / "faulty" / "DONE").exists()
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "faulty") if t.is_floating_point())
    assert train(tmp_path / "faulty") == 1, "the fault is still there"
    assert message in error_line(capsys)
    fault.clear()
    assert train(tmp_path / "faulty") == 0
    for file in ("metrics.jsonl", "DONE"):
        assert (tmp_path / "faulty" / file).read_bytes() == (faultless / file).read_bytes()
    pairs = zip(weights(tmp_path / "faulty"), weights(faultless), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


@pytest.mark.parametrize("form", ["list", "vector"])
@pytest.mark.parametrize("value", [None, "high", 1e300, float("-inf")])
def test_the_saved_state_is_that_before_the_faulty_step(form: str, value: Any) -> None:
    def envs() -> Any:
        made = [FaultyEnv(), FaultyEnv()]
        return wrap(made if form == "list" else SyncVectorEnv([lambda e=e: e for e in made]), name="faulty")  # type: ignore[misc]

    actions = [np.array([i % 2, 1]) for i in range(60)]
    faultless = envs()
    straight = [faultless.reset(), *(faultless.step(a).obs for a in actions)]
    fault.update(seed=third_seed(), reward=value)
    if form == "vector" and value in (None, "high"):
        fault["reward"] = float("nan")  # gymnasium's own vector environments accept no other values
    stopped = envs()
    stopped.reset()
    done = 0
    with pytest.raises(NotFinite, match="faulty, environment 1, episode 2, step 5"):
        for a in actions:
            stopped.step(a)
            done += 1
    state = stopped.state_dict()
    fault.clear()
    resumed = envs()
    resumed.load_state_dict(state)
    np.testing.assert_array_equal(resumed.obs, straight[done])
    for i in range(done, 60):
        np.testing.assert_array_equal(resumed.step(actions[i]).obs, straight[i + 1])


def test_large_finite_numbers_are_accepted() -> None:
    class Large(FaultyEnv):
        def _show(self, when: str) -> Any:
            return np.array([3e38, -1e30, 0], np.float32)

        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            return self._show(""), np.float64(-3.4e38), False, False, {}

    envs = wrap([Large()])
    envs.reset()
    assert envs.step(np.array([0])).reward[0] == np.float32(-3.4e38)


def test_the_first_observation_of_a_run_is_checked() -> None:
    from pliant.envs import episode_seed

    fault.update(seed=episode_seed(0, 0, 0), first=float("nan"))
    with pytest.raises(NotFinite, match=r"FaultyEnv, environment 0, episode 0, step 0 .*first observation has nan at"):
        wrap([FaultyEnv()]).reset()


@pytest.mark.parametrize("agent_class", [SAC, PPO])
def test_environments_refuse_actions_of_a_diverged_agent(agent_class: Any) -> None:
    for envs in (wrap([FaultyBoxEnv()]), make("stream/RandomTargets")):
        agent = agent_class(envs.observation, envs.action)
        with torch.no_grad():
            for component in agent.components.values():
                for p in component.online.parameters():
                    p.fill_(torch.nan)
        obs = envs.reset()
        with pytest.raises(Diverged, match=r"the agent's action in .*, environment 0, is .*nan"):
            envs.step(agent.act(obs, Clock(10**6)).cpu().numpy())


# ----------------------------------------------------------------------------------------------------- the agent


DIVERGES = ("--agent.optimizer.lr", "1e30", "--agent.value-loss", "mse", "--agent.learning-starts", "50")


def test_a_diverged_run_reports_it_and_keeps_its_good_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, *DIVERGES) == 1
    error = error_line(capsys)
    assert "error: the agent has diverged: at environment step 60 and update " in error
    assert "saved as of environment step 30" in error and "a smaller learning rate" in error
    assert not (tmp_path / "DONE").exists()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_000000000030"]
    assert all(torch.isfinite(t).all() for t in weights(tmp_path) if t.is_floating_point())


def small_agent() -> tuple[DQN, Any]:
    envs = wrap([FaultyEnv(), FaultyEnv()])
    return DQN(envs.observation, envs.action, DQNConfig(batch_size=4, learning_starts=10, update_every=1)), envs


def test_a_loss_that_is_nan_stops_the_run_when_the_log_is_written(tmp_path: Path) -> None:
    agent, envs = small_agent()
    run = Run(agent, envs)
    run.log.log_every = 20

    def corrupt_weights() -> bool:
        if run.clock.steps == 30:
            with torch.no_grad():
                next(iter(agent.components["critic"].online.parameters()))[0] = torch.nan
        return False

    with pytest.raises(Diverged, match=r"at environment step 40 and update .* the weights .* of the critic"):
        run.train(100, corrupt_weights)
    assert not np.isfinite(run.log.latest["losses/td_loss"]), "the record must show the loss"


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    agent, envs = small_agent()
    run = Run(agent, envs, checkpoints=Checkpoints(tmp_path))
    run.train(8)
    before = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    with torch.no_grad():
        next(iter(agent.components["critic"].online.parameters()))[0, 0] = torch.inf
    with pytest.raises(Diverged, match="saved as of environment step 8; later steps are lost"):
        run.train(10)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == before


def test_an_overflow_of_a_metric_that_is_not_a_loss_stops_nothing() -> None:
    agent, envs = small_agent()
    run = Run(agent, envs)
    run.log.update({"losses/approx_kl": torch.tensor(torch.inf), "losses/td_loss": torch.tensor(1.0)}, run.clock)
    run.flush()
    run.log.update({"losses/td_loss": torch.tensor(torch.inf)}, run.clock)
    with pytest.raises(Diverged, match="the mean of losses/td_loss since the last log is inf"):
        run.flush()


# ----------------------------------------------------------------------------------------- runs without updates


@pytest.mark.parametrize("options", [("--agent.learning-starts", "5000"), ("--agent.replay-ratio", "0.001")])
def test_a_run_without_an_update_reports_it(
    options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, *options) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert (
        len(lines) == 1 and "no gradient update in 120 environment steps" in lines[0] and " ".join(options) in lines[0]
    )
    done = json.loads((tmp_path / "DONE").read_text())
    assert done["updates"] == 0 and [f"warning: {text}" for text in done["warnings"]] == lines


def test_a_run_with_updates_prints_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path) == 0
    assert "warning" not in capsys.readouterr().err
    assert "warnings" not in json.loads((tmp_path / "DONE").read_text())
    assert all(np.isfinite(value) for row in read_metrics(tmp_path) for value in row.values())


# -------------------------------------------------------------------------------------------------------- spaces


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (MultiBinary(3), r"MultiBinary\(3\), of several choices at once.*np.unravel_index"),
        (MultiBinary([2, 2]), r"MultiBinary\(.*of several choices"),
        (MultiDiscrete([2, 3]), r"MultiDiscrete\(\[2 3\]\), of several choices at once.*TransformAction"),
        (Box(0, 5, (2,), np.int64), "of whole numbers: agents give a Box real numbers"),
        (
            Box(np.array([0, 1], np.float32), np.array([1, 1], np.float32)),
            "dimension 1 of the action space has low 1 and high 1.*remove it",
        ),
    ],
)
def test_actions_that_an_agent_cannot_choose_are_refused_by_name(space: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        action_spec(space)
    assert "RescaleAction" not in str(refused.value)
    env = FaultyEnv()
    env.action_space = space
    for form in ([env], SyncVectorEnv([lambda: env])):
        with pytest.raises(ValueError, match=f"my task: .*{message}"):
            wrap(form, name="my task")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        DQN(env.observation_space, space)


def test_an_action_of_one_value_is_refused_by_make() -> None:
    class Fixed(FaultyEnv):
        action_space = Box(2.0, 2.0, (1,), np.float32)

    gymnasium.register("FixedForTests-v0", Fixed)
    try:
        with pytest.raises(ValueError, match="FixedForTests-v0: dimension 0 of the action space has low 2 and high 2"):
            make("FixedForTests-v0")
    finally:
        del gymnasium.registry["FixedForTests-v0"]


def test_images_whose_range_is_zero_are_refused() -> None:
    black = FaultyEnv()
    black.observation_space = Box(0, 0, (3, 10, 10), np.uint8)
    with pytest.raises(ValueError, match="black: observations are divided by high"):
        wrap([black], name="black")


@pytest.mark.parametrize("space", [Box(0, 255, (96, 96, 3), np.uint8), (96, 96, 3), Box(0, 255, (96, 96), np.uint8)])
def test_images_whose_channels_are_not_first_are_refused_with_the_solution(space: Any) -> None:
    channels = 1 if getattr(space, "shape", space) == (96, 96) else 3
    with pytest.raises(ValueError, match=rf"agents read channels, height, width.*\(\({channels}, 96, 96\)"):
        DQN(space, 4)


def test_the_suggested_observation_specs_are_accepted() -> None:
    for shape in ((3, 96, 96), (4, 84, 84), (10, 10, 10)):
        assert observation_spec(Box(0, 255, shape, np.uint8)).shape == shape == observation_spec(shape).shape
    spec = ObservationSpec((9, 8, 8), torch.uint8, 255.0)
    assert observation_spec(spec) is spec
    assert DQN(spec, 2).observation.shape == (9, 8, 8)


def test_a_given_spec_decides_the_position_of_the_channels() -> None:
    """With nine channels of eight by eight the last axis is smaller than the first."""

    class Many(FaultyEnv):
        observation_space = Box(0, 255, (9, 8, 8), np.uint8)

        def _show(self, when: str) -> Any:
            return np.arange(9, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)

    envs = wrap([Many()], observation=ObservationSpec((9, 8, 8), torch.uint8, 255.0, stack=3))
    np.testing.assert_array_equal(envs.reset()[0, :, 0, 0], np.arange(9))
    assert make("CartPole-v1", config=pixels(8)).reset().shape == (1, 9, 8, 8)


def pixels(side: int) -> Any:
    from pliant.envs import EnvConfig

    return EnvConfig(pixels=side)


def test_car_racing_is_observed_with_channels_first() -> None:
    pytest.importorskip("Box2D")
    envs = make("CarRacing-v3")
    try:
        obs = envs.reset()
        assert envs.observation.shape == (3, 96, 96) and obs.shape == (1, 3, 96, 96)
        raw = envs.envs[0].unwrapped.state  # type: ignore[attr-defined]
        np.testing.assert_array_equal(obs[0], np.moveaxis(raw, -1, 0))
        agent = SAC(envs.observation, envs.action)
        envs.step(agent.act(obs, Clock()).cpu().numpy())
        with pytest.raises(ValueError, match=r"images of shape \(96, 96, 3\).*ObservationSpec\(\(3, 96, 96\)"):
            SAC(envs.envs[0].observation_space, envs.action)  # type: ignore[attr-defined]
    finally:
        envs.close()

"""The learning study: its statistics equal reference numbers, and both libraries get the same settings."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[2] / "studies" / "learning.py"


@pytest.fixture(scope="module")
def learning() -> ModuleType:
    spec = importlib.util.spec_from_file_location("learning_study", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["learning_study"] = module  # dataclasses need their module here
    spec.loader.exec_module(module)
    return module


def test_intervals_are_those_of_students_t(learning: ModuleType) -> None:
    # scipy.stats.t.interval(0.95, 4, loc=3, scale=sem) of 1 … 5: 3 ± 1.96324
    assert learning.interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3.0, 1.96324), abs=1e-3)


def test_differences_are_those_of_welch(learning: ModuleType) -> None:
    # Welch on (1 … 5) and (2, 4, 6, 8, 10): variances 2.5 and 10, standard error sqrt(2.5), 5.882 degrees of freedom:
    # t = 2.458824.
    gap, half = learning.difference([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 4.0, 6.0, 8.0, 10.0])
    assert (gap, half) == pytest.approx((-3.0, 2.4588237 * 2.5**0.5))


def test_the_training_score_is_the_mean_of_the_last_fifth(learning: ModuleType) -> None:
    episodes = [[100, 1.0], [800, 2.0], [801, 10.0], [1000, 20.0]]
    assert learning.training_score({"steps": 1000, "episodes": episodes}) == 15.0
    assert learning.training_score({"steps": 10_000, "episodes": episodes}) == 20.0


OFF_POLICY = {"lr", "batch", "buffer", "starts", "gamma", "hidden", "replay_ratio", "update_every"}
ON_POLICY = {
    "lr",
    "anneal",
    "num_envs",
    "rollout",
    "batch",
    "epochs",
    "gamma",
    "lam",
    "clip",
    "entropy",
    "value_weight",
    "max_grad_norm",
    "hidden",
    "normalise",
}


def test_every_task_has_settings_for_both_libraries(learning: ModuleType) -> None:
    for name, task in learning.TASKS.items():
        s = task.settings
        assert task.seeds >= 5
        if task.agent == "ppo":
            assert s.keys() == ON_POLICY, name
            whole, rest = divmod(task.steps, s["rollout"] * s["num_envs"])
            assert whole > 10 and not rest, f"{name}: only one library would learn from the last rollout"
        else:
            assert s.keys() >= OFF_POLICY, name
            assert (s["replay_ratio"] * s["update_every"]).is_integer(), name


@pytest.mark.parametrize("name", ["ppo-cartpole", "ppo-pendulum", "ppo-halfcheetah"])
def test_both_libraries_get_the_settings_of_a_ppo_task(learning: ModuleType, name: str) -> None:
    """Compared field by field, under the names of each library."""
    pytest.importorskip("stable_baselines3")
    from pliant.envs import make

    task = learning.TASKS[name]
    theirs, _ = learning.sb3_ppo(task, 3)
    envs = make(task.env, num_envs=theirs.n_envs, seed=3)
    ours = learning.pliant_agent(task, 3, envs, ())
    c = ours.config
    assert (theirs.n_steps, theirs.batch_size, theirs.n_epochs) == (c.rollout, c.batch_size, c.epochs)
    assert (theirs.gamma, theirs.gae_lambda, theirs.ent_coef) == (c.gamma, c.gae_lambda, c.entropy)
    assert (theirs.clip_range(0.7), theirs.max_grad_norm) == (c.clip, c.optimizer.max_grad_norm)
    assert theirs.clip_range_vf is None and c.clip_value == 0 and theirs.normalize_advantage and c.normalise_advantage
    assert theirs.vf_coef == c.value_weight / 2 and theirs.target_kl is None and not theirs.use_sde
    assert theirs.policy.net_arch == list(c.network.hidden) == list(c.actor_network.hidden)
    assert theirs.policy.optimizer.param_groups[0]["eps"] == c.optimizer.eps
    for left in (1.0, 0.25):
        annealed = c.optimizer.lr * (left if c.anneal_steps else 1.0)
        assert theirs.lr_schedule(left) == pytest.approx(annealed)
    assert c.anneal_steps in (0, task.steps)
    normalised = type(theirs.env).__name__ == "VecNormalize"
    assert normalised == c.normalise_observations == c.scale_rewards
    if normalised:
        assert (theirs.env.clip_obs, theirs.env.clip_reward, theirs.env.gamma) == (10, 10, c.gamma)
    assert sum(p.numel() for p in theirs.policy.parameters()) == sum(
        p.numel() for m in ours.components.values() for p in m.online.parameters()
    )


@pytest.mark.parametrize("library", ["pliant", "sb3"])
@pytest.mark.parametrize("name", ["ppo-cartpole", "ppo-pendulum"])
def test_a_short_run_records_every_episode_and_the_seeds_of_the_evaluation(
    learning: ModuleType, name: str, library: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every episode is recorded once, with its undiscounted return; the evaluation begins at its own seeds."""
    pytest.importorskip("stable_baselines3")
    whole = learning.TASKS[name]
    short = {"num_envs": 2, "rollout": 128, "epochs": 1, "batch": 64}
    task = replace(whole, steps=512, settings=whole.settings | short)
    monkeypatch.setattr(learning, "EVALUATION_EPISODES", 2)
    monkeypatch.setattr(learning, "RESULTS", tmp_path)
    monkeypatch.setitem(learning.TASKS, name, task)
    began = []
    gym_env = learning.gym_env

    def recorded(task: Any) -> Any:
        env = gym_env(task)
        reset = env.reset
        env.reset = lambda **k: (began.append(k.get("seed")), reset(**k))[1]
        return env

    monkeypatch.setattr(learning, "gym_env", recorded)
    result = learning.measure(name, library, 0)
    assert began[-2:] == [10_000, 10_001] and len(result["evaluation"]) == 2
    steps, returns = zip(*result["episodes"], strict=True)
    assert list(steps) == sorted(steps) and steps[-1] <= 512
    if name == "ppo-pendulum":
        assert list(steps) == [400, 400] and all(-2000 < r < -500 for r in returns)
    else:
        assert 400 < sum(returns) <= 512, "the return of an episode is its length"

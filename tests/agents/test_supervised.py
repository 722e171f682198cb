"""The supervised learner: its loss and gradients in closed form, its memory, and whole runs by the real command."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from law_agents import BOX, DISCRETE, IMAGE, VECTOR, RandomEnvs, build_run, differences, take_steps
from test_runs import content, kill_soon_after_a_checkpoint, same
from torch import Tensor

from pliant.agents import Batch, Clock, Supervised, SupervisedConfig
from pliant.agents.clock import Sampling
from pliant.agents.log import read_metrics
from pliant.agents.networks import NetworkConfig
from pliant.agents.optimizers import OptimizerConfig
from pliant.agents.run import Run
from pliant.agents.stream import Samples
from pliant.agents.views import view
from pliant.common.spaces import ActionSpec, ObservationSpec, Step
from pliant.envs import EnvConfig, make
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core.spec import build
from pliant.lab.errors import BadInput
from pliant.lab.experiments.config import defaults
from pliant.monitors import watch
from pliant.scripts.train import main

LINEAR = SupervisedConfig(network=NetworkConfig(hidden=()))
SAMPLING = Sampling(64, 1, 0.0, 1.0)


def batch_of(x: Tensor, target: Tensor) -> Batch:
    zeros = torch.zeros(len(x))
    return Batch(x, target, zeros, zeros, x, zeros + 1, torch.arange(len(x)))


def linear(action: ActionSpec, **changes: Any) -> tuple[Supervised, Tensor, Tensor]:
    """A learner without a hidden layer, its weights and biases."""
    agent = Supervised(VECTOR, action, SupervisedConfig(network=NetworkConfig(hidden=()), **changes), seed=1)
    layer = agent.critic.online.output.linear
    return agent, layer.weight.detach().clone(), layer.bias.detach().clone()


# ------------------------------------------------------------------------------------------------ learning


def test_cross_entropy_loss_and_gradient_equal_their_closed_form() -> None:
    agent, weight, bias = linear(DISCRETE)
    x, target = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 2, 1, 0, 1])
    update = agent.update(batch_of(x, target), agent.plan(Clock().updated()))
    logits = x @ weight.T + bias
    share = logits.exp() / logits.exp().sum(1, keepdim=True)
    each = -share[torch.arange(7), target].log()
    torch.testing.assert_close(update.metrics["losses/loss"], each.mean())
    torch.testing.assert_close(update.td_error, each)
    torch.testing.assert_close(update.metrics["losses/accuracy"], (share.argmax(1) == target).float().mean())
    layer = agent.critic.online.output.linear
    error = (share - F.one_hot(target, 3)) / 7
    torch.testing.assert_close(layer.weight.grad, error.T @ x)
    torch.testing.assert_close(layer.bias.grad, error.sum(0))
    # Adam's first step has the size of the learning rate and the opposite sign of the gradient.
    torch.testing.assert_close(layer.weight.detach(), weight - 1e-3 * (error.T @ x).sign(), atol=1e-6, rtol=0)


def test_the_loss_of_numbers_is_half_the_mean_squared_error() -> None:
    agent, weight, bias = linear(BOX)
    g = torch.Generator().manual_seed(0)
    x, target = torch.randn(7, 5, generator=g), torch.randn(7, 2, generator=g)
    update = agent.update(batch_of(x, target), agent.plan(Clock().updated()))
    error = x @ weight.T + bias - target
    torch.testing.assert_close(update.metrics["losses/loss"], error.square().mean() / 2)
    torch.testing.assert_close(update.metrics["losses/squared_error"], error.square().mean())
    torch.testing.assert_close(update.td_error, error.square().mean(1) / 2)
    torch.testing.assert_close(agent.critic.online.output.linear.weight.grad, error.T @ x / 14)


@pytest.mark.parametrize("loss", ["mse", "huber", "symlog", "two_hot", "hl_gauss"])
def test_numbers_are_learnt_by_every_head_for_scalars(loss: str) -> None:
    config = SupervisedConfig(network=NetworkConfig(hidden=(32,)), value_loss=loss, optimizer=OptimizerConfig(lr=1e-2))  # type: ignore[arg-type]
    agent, g = Supervised(VECTOR, BOX, config, seed=0), torch.Generator().manual_seed(0)
    x, clock = torch.randn(32, 5, generator=g), Clock()
    target = torch.stack([x[:, 0], x[:, 1] - x[:, 2]], dim=1)
    for _ in range(300):
        clock = clock.stepped(32).updated()
        agent.update(batch_of(x, target), agent.plan(clock))
    assert agent.act(x).shape == (32, 2) and (agent.act(x) - target).square().mean() < 0.1
    values = view(agent).values(batch_of(x, target))
    torch.testing.assert_close(values, agent.act(x).mean(1).unsqueeze(0))


def test_it_predicts_the_most_likely_class_without_exploration() -> None:
    agent, weight, bias = linear(DISCRETE)
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    classes = (x @ weight.T + bias).argmax(1)
    state = agent.generator.get_state().clone()
    assert torch.equal(agent.act(x.numpy()), classes) and torch.equal(agent.act(x, Clock(steps=5)), classes)
    assert torch.equal(state, agent.generator.get_state()) and len(set(classes.tolist())) > 1


def test_values_are_logits_minus_their_mean() -> None:
    agent, weight, bias = linear(DISCRETE)
    x, target = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
    logits = x @ weight.T + bias
    torch.testing.assert_close(
        view(agent).values(batch_of(x, target))[0], logits[torch.arange(6), target] - logits.mean(1)
    )
    before, after = view(agent).decisions(batch_of(x, target)), torch.tensor([0, 0, 0, 0, 0, 0])
    assert view(agent).policy_churn(before, after) == (before != 0).float().mean()
    numbers = linear(BOX)[0]
    a, b = torch.zeros(4, 2), torch.full((4, 2), 3.0)
    assert view(numbers).policy_churn(a, b) == 9.0


def test_random_labels_are_memorised() -> None:
    envs = make("stream/RandomLabels", 16, seed=0, config=EnvConfig(samples=64, stretch=20))
    agent = Supervised(envs.observation, envs.action, seed=0)
    shapes = [tuple(p.shape) for p in agent.critic.online.parameters() if p.ndim == 2]
    assert shapes == [(128, 64), (128, 128), (10, 128)]
    run = Run(agent, envs)
    run.train(16 * 200)
    returns = run.log._recent
    assert len(returns) == 10 and returns[0] / 20 < 0.5 and returns[-1] / 20 == 1.0
    assert run.clock.updates == 200


def test_every_minibatch_gets_the_configured_number_of_updates() -> None:
    envs = RandomEnvs(VECTOR, DISCRETE, 3)
    run = Run(Supervised(VECTOR, DISCRETE, SupervisedConfig(updates_per_step=4)), envs)
    run.train(30)
    assert run.clock.updates == 40 and run.clock.steps == 30


# ------------------------------------------------------------------------------------------------ memory


def memory(rows: int = 3, updates: int = 1, action: ActionSpec = DISCRETE) -> Samples:
    return Samples(
        ObservationSpec((2,)),
        action,
        capacity=2 * rows,
        num_envs=2,
        updates=updates,
        device=torch.device("cpu"),
        seed=0,
    )


def step_to(number: int) -> Step:
    """A step to the observation `number`, with the target of the observation before."""
    no = np.zeros(2, bool)
    obs = np.array([[number, 0], [number, 1]], np.float32)
    return Step(obs, np.zeros(2, np.float32), ~no, no, no, obs, target=np.array([number % 3, (number + 1) % 3]))


@pytest.mark.parametrize("updates", [1, 3])
def test_each_minibatch_is_learnt_from_once(updates: int) -> None:
    held = memory(updates=updates)
    held.start(np.array([[0, 0], [0, 1]], np.float32))
    for number in range(1, 9):
        held.add(np.zeros(2), step_to(number))
        given = list(held.batches(SAMPLING))
        assert len(given) == updates and not list(held.batches(SAMPLING)) and not held.has_pending(SAMPLING)
        for batch in given:
            assert batch.obs.tolist() == [[number - 1, 0], [number - 1, 1]], (
                "the target belongs to the observation before the step"
            )
            assert batch.action.tolist() == [number % 3, (number + 1) % 3] and batch.action.dtype == torch.int64
            assert not batch.discount.any() and torch.equal(batch.next_obs, batch.obs)
            assert batch.reward.tolist() == [number % 3, (number + 1) % 3]
        assert len(held) == 2 * min(number, 3)


def test_observers_sample_the_latest_samples_without_a_change_of_state() -> None:
    held = memory()
    with pytest.raises(RuntimeError, match="nothing to sample"):
        held.sample(3)
    held.start(np.array([[0, 0], [0, 1]], np.float32))
    for number in range(1, 9):
        held.add(np.zeros(2), step_to(number))
    state = held.generator.get_state().clone()
    drawn = held.sample(200, generator=torch.Generator().manual_seed(1))
    assert torch.equal(state, held.generator.get_state())
    pairs = {(float(o[0]), float(o[1]), int(y)) for o, y in zip(drawn.obs, drawn.action, strict=True)}
    assert pairs == {(n - 1, lane, (n + lane) % 3) for n in (6, 7, 8) for lane in (0, 1)}
    assert torch.equal(drawn.obs, held.sample(200, generator=torch.Generator().manual_seed(1)).obs)
    held.clear()
    assert len(held) == 2 and not list(held.batches(SAMPLING)), "no update is pending after clear"
    assert {float(o[0]) for o in held.sample(50).obs} == {7.0}, "observers sample only the newest minibatch"


@pytest.mark.parametrize("number", [0, 2, 5])
def test_a_restored_memory_continues_to_the_last_bit(number: int) -> None:
    one, other = memory(), memory()
    one.start(np.array([[0, 0], [0, 1]], np.float32))
    for n in range(1, number + 1):
        one.add(np.zeros(2), step_to(n))
        list(one.batches(SAMPLING))
    other.load_state_dict(one.state_dict())
    for n in range(number + 1, number + 6):
        for held in (one, other):
            held.add(np.zeros(2), step_to(n))
        for a, b in zip(one.batches(SAMPLING), other.batches(SAMPLING), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert torch.equal(one.sample(5).obs, other.sample(5).obs)
    assert not differences(one.state_dict(), other.state_dict())
    with pytest.raises(ValueError, match="the saved samples are of 2 environments and 3 minibatches, not of 2 and 4"):
        memory(4).load_state_dict(one.state_dict())


def test_targets_that_are_numbers_are_stored_as_numbers() -> None:
    held = memory(action=BOX)
    held.start(np.zeros((2, 2), np.float32))
    held.add(np.zeros((2, 2)), step_to(1)._replace(target=np.array([[1, 2], [3, 5]], np.float32)))
    (batch,) = held.batches(SAMPLING)
    assert batch.action.tolist() == [[1, 2], [3, 5]] and batch.reward.tolist() == [1.5, 4.0]


# ------------------------------------------------------------------------------------------------ monitors, specs


def test_every_monitor_observes_and_none_changes_the_run() -> None:
    specs = ["values(every=2, samples=16)", "overestimation(every=8, episodes=2, max_steps=6, tail=1.0)"]
    watched, alone = build_run("supervised", monitors=specs), build_run("supervised")
    for _ in range(8):
        before = watched.clock.steps
        watched.step()
        watched.after_step(before)  # monitors that play episodes measure here
    take_steps(alone, 8)
    list(watched.monitors.arrive())  # type: ignore[union-attr]
    readings = set(watched.monitors.readings)  # type: ignore[union-attr]
    assert {"critic/q_mean", "critic/loss", "critic/td_error"} <= readings
    assert not any("overestimation" in name or "mc_" in name for name in readings), (
        "values of the supervised learner are not returns"
    )
    assert not differences(watched.agent.state_dict(), alone.agent.state_dict())


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("mse", "value_loss mse is of numbers"),
        ("hl_gauss", "value_loss hl_gauss is of numbers"),
        ("c51", "and c51 on distributions"),
        ("hare_tortoise", "hare_tortoise sets target_tau, which supervised does not"),
        ("replay_ratio(2)", "replay_ratio sets replay_ratio, which supervised does not"),
    ],
)
def test_specs_that_do_not_fit_the_supervised_learner_are_refused(spec: str, match: str) -> None:
    with pytest.raises(ValueError, match=match) as error:
        Supervised(VECTOR, DISCRETE, interventions=tuple(build([spec], INTERVENTIONS)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes", [dict(updates_per_step=0), dict(buffer_size=0), dict(value_loss="quantile")])
def test_invalid_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes)) if "value_loss" not in changes else "quantile"):
        SupervisedConfig(**changes)


def test_environments_without_targets_are_refused() -> None:
    agent = Supervised(VECTOR, DISCRETE)
    held = agent.memory(2)
    held.start(np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match="gives none: choose an environment of the suite stream") as error:
        held.add(np.zeros(2), step_to(1)._replace(target=None))
    assert "\n" not in str(error.value)


def test_an_image_learner_has_an_encoder() -> None:
    agent = Supervised(IMAGE, DISCRETE, SupervisedConfig(network=NetworkConfig(body="drq", width=0.1, hidden=(8,))))
    assert set(view(agent).probed(batch_of(agent.blank(), torch.zeros(1).long()))) == {"critic", "encoder"}
    assert watch(agent, "all").parts


# ------------------------------------------------------------------------------------------------ whole runs


def train(folder: Path, *arguments: str) -> int:
    return main(["--run", str(folder), "--threads", "1", "--device", "cpu", *arguments])


RUN = (
    "--agent",
    "supervised",
    "--env",
    "stream/RandomLabels",
    "--num-envs",
    "64",
    "--threads",
    "1",
    "--device",
    "cpu",
    "--log-every",
    "640",
    "--evaluate-episodes",
    "0",
)


def test_the_preset_for_random_labels_learns_every_task(tmp_path: Path) -> None:
    config = defaults("supervised", "stream/RandomLabels")
    assert config.agent_config.network.hidden == (128, 128) and config.agent_config.optimizer.lr == 1e-3
    assert train(tmp_path, *RUN, "--steps", "12800", "--env.period", "6400", "--evaluate-episodes", "4") == 0
    rows = read_metrics(tmp_path)
    episodes = [row for row in rows if "charts/episodic_return" in row]
    assert [row["task"] for row in episodes] == [0, 0, 1, 1] and all(row["env"] == 0 for row in episodes)
    assert episodes[1]["charts/episodic_return"] > 1.5 * episodes[0]["charts/episodic_return"]
    assert episodes[2]["charts/episodic_return"] < episodes[1]["charts/episodic_return"], (
        "the second task has other labels"
    )
    losses = [row["losses/loss"] for row in rows if "losses/loss" in row]
    assert len(losses) == 20 and all("losses/accuracy" in row for row in rows if "losses/loss" in row)
    done = json.loads((tmp_path / "DONE").read_text())
    assert done["updates"] == 200 and done["evaluation"]["lengths"] == [50] * 4
    # The evaluation uses the last task, and its result is far above chance.
    assert done["evaluation"]["mean"] > 0.8 * episodes[3]["charts/episodic_return"] > 12


@pytest.mark.full
def test_a_run_killed_in_the_midst_of_a_task_resumes_bitwise(tmp_path: Path) -> None:
    """SIGKILL, with checkpoints within a task and at its end."""
    command = [
        *RUN,
        "--steps",
        "25600",
        "--env.period",
        "3200",
        "--checkpoint-every",
        "1600",
        "--env.abruptness",
        "0.7",
        "--interventions",
        "redo(every=30)",
        "--monitors",
        "none",
    ]
    assert train(tmp_path / "straight", *command) == 0
    kill_soon_after_a_checkpoint(tmp_path / "killed", command, random.Random(0))
    assert not (tmp_path / "killed" / "DONE").exists()
    assert train(tmp_path / "killed", *command) == 0
    one, other = content(tmp_path / "straight"), content(tmp_path / "killed")
    for part in one:
        assert same(one[part], other[part]), f"{part} differs"
    assert one["envs"]["taken"] == 400 and len(one["metrics"]) > 1000


def test_a_run_stopped_at_the_end_of_a_task_resumes_bitwise(tmp_path: Path) -> None:
    command = [*RUN, "--env.period", "1280", "--checkpoint-every", "0", "--monitors", "none"]
    for folder, stops in (("straight", [3840]), ("stopped", [640, 1280, 2560, 3840])):
        for steps in stops:
            assert train(tmp_path / folder, *command, "--steps", str(steps)) == 0
    one, other = content(tmp_path / "straight"), content(tmp_path / "stopped")
    for part in one:
        assert same(one[part], other[part]), f"{part} differs"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--agent", "supervised", "--env", "CartPole-v1"], "CartPole-v1 gives none: choose an environment"),
        (["--agent", "sac", "--env", "stream/RandomLabels"], "sac"),
        (["--agent", "dqn", "--env", "stream/RandomTargets"], "dqn needs discrete actions"),
        (["--agent", "supervised", "--env", "stream/RandomLabel"], "did you mean stream/RandomLabels"),
        (["--agent", "supervised", "--env", "stream/RandomLabels", "--env.at", "200", "100"], "tasks overlap"),
        (["--agent", "supervised", "--env", "stream/RandomLabels", "--env.frame-skip", "2"], "Labels has no option"),
        (["--agent", "supervised", "--env", "stream/PermutedMNIST"], "give their folder with --env.data"),
        (["--agent", "supervised", "--env", "stream/RandomLabels", "--agent.gamma", "0.9"], "--agent.gamma"),
    ],
)
def test_invalid_combinations_are_refused_in_one_line_and_create_nothing(
    tmp_path: Path, arguments: list[str], match: str
) -> None:
    with pytest.raises(BadInput, match=match) as error:
        train(tmp_path / "run", *arguments, "--steps", "10")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()

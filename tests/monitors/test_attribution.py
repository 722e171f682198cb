"""Attribution: on a network with one planted fault the repairs identify it, and the agent does not change."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pliant.agents import DQN, Batch, Clock
from pliant.agents.checkpoint import Checkpoints
from pliant.agents.dqn import DQNConfig
from pliant.interventions.core.parts import survey
from pliant.lab.experiments import why
from pliant.monitors.attribution import AS_IT_IS, FRESH, Attribution, attribute, pooled, table
from pliant.scripts.main import main


def healthy(spread: float = 1.0) -> tuple[DQN, Batch]:
    """A small DQN after some updates, and its batch."""
    config = DQNConfig()
    agent = DQN((8,), 3, replace(config, network=replace(config.network, hidden=(64, 64))), seed=1)
    draw = torch.Generator().manual_seed(3)
    batch = Batch.of(
        torch.randn(256, 8, generator=draw),
        torch.randint(3, (256,), generator=draw),
        spread * torch.randn(256, generator=draw),
        torch.randn(256, 8, generator=draw),
        torch.zeros(256, dtype=torch.bool),
    )
    clock = Clock()
    for _ in range(30):
        clock = clock.updated()
        agent.update(batch, agent.plan(clock))
    return agent, batch


@torch.no_grad()
def planted(fault: str) -> tuple[DQN, Batch]:
    with torch.enable_grad():
        agent, batch = healthy(300.0 if fault == "targets" else 1.0)
    layers = survey(agent).layers.values()
    hidden = [layer for layer in layers if not layer.is_output]
    if fault == "norms":
        for layer in layers:
            for parameter in layer.parameters():
                parameter.mul_(100.0)
    if fault == "centre":
        for layer in hidden:
            layer.linear.bias.add_(12.0)
    if fault == "revive":
        for layer in hidden:
            layer.linear.bias[: int(0.95 * layer.units)] -= 30.0
    if fault == "separate":
        source = torch.arange(64) % 2
        hidden[0].linear.weight.copy_(hidden[0].linear.weight[source])
        hidden[0].linear.bias.copy_(hidden[0].linear.bias[source])
    if fault == "optimizer":
        for memory in agent.components["critic"].optimizer.state.values():
            memory["exp_avg_sq"].fill_(1e4)
            memory["step"].fill_(1e5)
    return agent, batch


@pytest.mark.parametrize("fault", ["optimizer", "targets", "revive", "separate", "centre", "norms"])
def test_the_planted_fault_is_identified(fault: str) -> None:
    agent, batch = planted(fault)
    before = copy.deepcopy(agent.state_dict())
    (attribution,) = attribute(agent, batch, draws=5)
    assert attribution.fault == fault, table([attribution])
    assert attribution.recovered(fault) > 0.85
    after = agent.state_dict()
    for name, module in before["modules"].items():
        assert all(
            torch.equal(value, after["modules"][name][key])
            for key, value in module.items()
            if isinstance(value, torch.Tensor)
        )
    assert torch.equal(before["generator"], after["generator"])


def test_a_healthy_network_has_no_fault() -> None:
    (attribution,) = attribute(*healthy(), draws=5)
    assert attribution.fault is None and not attribution.lost
    assert "nothing to repair" in attribution.verdict() and "separate" not in attribution.fits


def attribution_of(**fits: list[float]) -> Attribution:
    named = {AS_IT_IS: fits.pop("bad"), FRESH: fits.pop("new"), **fits}
    return Attribution("critic", {name: np.array(fit) for name, fit in named.items()}, {})


def test_the_fault_is_the_smallest_sufficient_repair() -> None:
    bad, new = [0.1, 0.2, 0.1, 0.2], [0.9, 0.8, 0.9, 0.8]
    # among equally good repairs the one that changes least
    assert attribution_of(bad=bad, new=new, revive=[0.75, 0.7, 0.75, 0.7], norms=new).fault == "revive"
    assert attribution_of(bad=bad, new=new, revive=[0.6, 0.6, 0.5, 0.5], norms=new).fault == "norms"
    # repairs that help little, or only sometimes
    assert attribution_of(bad=bad, new=new, norms=[0.2, 0.3, 0.2, 0.3]).fault is None
    assert attribution_of(bad=bad, new=new, norms=[0.9, 0.1, 0.2, 0.1]).fault is None
    assert attribution_of(bad=bad, new=[0.13, 0.22, 0.13, 0.22], norms=new).fault is None
    attribution = attribution_of(bad=bad, new=new, norms=[0.5, 0.5, 0.5, 0.5])
    assert attribution.recovered("norms") == pytest.approx(0.5)
    mean, low, high = attribution.gain("norms")  # t(3) = 3.182: 0.35 ± 3.182 * 0.0577 / 2
    assert (mean, low, high) == (pytest.approx(0.35), pytest.approx(0.2581, abs=1e-4), pytest.approx(0.4419, abs=1e-4))


def test_several_runs_are_averaged_draw_by_draw() -> None:
    one, other = (
        attribution_of(bad=[0.0, 0.2], new=[1.0, 0.8], revive=[1.0, 0.8]),
        attribution_of(bad=[0.2, 0.4], new=[1.0, 0.8]),
    )
    (both,) = pooled([[one], [other]])
    assert both.fits["revive"] == pytest.approx([0.6, 0.6])  # the other run had no units to revive
    assert both.fits[AS_IT_IS] == pytest.approx([0.1, 0.3])


@pytest.mark.full
def test_why_works_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    arguments = "--agent ppo --env CartPole-v1 --steps 256 --num-envs 4 --agent.rollout 32 --agent.network.hidden 16"
    arguments += " --agent.actor-network.hidden 16 --evaluate-episodes 0 --monitors none --threads 1"
    assert main(["train", *arguments.split(), "--run", str(run)]) == 0
    capsys.readouterr()
    assert main(["fork", str(run), str(run), "--at", "latest", "--why"]) == 0
    out = capsys.readouterr().out
    assert "the mean of 2 runs at step 256" in out and "actor  " in out and "critic  fresh" in out
    assert not (run / "forks").exists()


def test_why_uses_the_n_step_and_discount_of_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BBF anneals n-step and discount: their values come from the checkpoint's clock, not from the configuration."""
    arguments = "--agent dqn --env MinAtar/Breakout-v1 --steps 90 --agent.learning-starts 40 --agent.network.hidden 8"
    arguments += " --agent.update-every 1 --agent.replay-ratio 1 --evaluate-episodes 0 --monitors none --threads 1"
    run = tmp_path / "run"
    assert main(["train", *arguments.split(), "--interventions", "bbf(anneal=100)", "--run", str(run)]) == 0
    batches: list[Batch] = []

    def recorded_attribute(agent: Any, batch: Batch, **_: Any) -> list[Attribution]:
        batches.append(batch)
        return []

    monkeypatch.setattr(why, "attribute", recorded_attribute)
    checkpoint = Checkpoints.open(run)
    why.attributed(run, checkpoint, draws=1)
    left = 1 - checkpoint.load("loop")["clock"]["updates"] / 100
    n_step, gamma = round(10 * 0.3 ** (1 - left)), 1 - 0.03**left * 0.003 ** (1 - left)
    whole = batches[0].discount[batches[0].discount > 0].min().item()
    assert 3 < n_step < 10 and whole == pytest.approx(gamma**n_step, rel=1e-5)

"""Claims that need no seeds: exact properties and arithmetic consequences, tested on the code itself.

A check returns rows of (what was tested, measured value, expected value). The claim holds if all rows agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...agents import Agent
from ...agents.clock import Clock
from ...agents.hooks import sample_like_training
from ...agents.optimizers import Adam, OptimizerConfig
from ...agents.replay import Batch
from ...agents.run import Run
from ...agents.views import view
from ...envs import make
from ...interventions import INTERVENTIONS
from ...interventions.core.spec import build
from ...interventions.core.surgery import MEMORY
from ..experiments.config import known, parse


class Row(NamedTuple):
    """One tested property, with its measured and expected value."""

    what: str
    measured: str
    expected: str
    holds: bool


def _run(line: str, spec: str) -> tuple[Run, Any]:
    """A small run of an agent with one intervention, and that intervention."""
    config = parse([*line.split(), "--interventions", spec, "--device", "cpu"], prog="pliant train").config
    envs = make(config.env, num_envs=config.num_envs, seed=0, config=config.env_config)
    agent: Agent = known().agent_class(config.agent)(
        envs.observation, envs.action, config.agent_config, interventions=tuple(build([spec], INTERVENTIONS)), seed=0
    )
    return Run(agent, envs), next(iter(agent.interventions))


# ------------------------------------------------------------------------------------------------ plasticity injection

LEARNERS = {
    "DQN on CartPole": "--agent dqn --env CartPole-v1 --agent.learning-starts 100 --agent.update-every 1 "
    "--agent.replay-ratio 1 --agent.buffer-size 1000",
    "DQN on MinAtar Breakout": "--agent dqn --env MinAtar/Breakout-v1 --agent.learning-starts 100 "
    "--agent.update-every 1 --agent.replay-ratio 1 --agent.buffer-size 1000",
    "SAC on Pendulum": "--agent sac --env Pendulum-v1 --agent.learning-starts 100 --agent.buffer-size 1000",
}


def injection() -> list[Row]:
    """The changes by an injection when it fires, after 100 updates, on 100 states of the replay."""
    rows = []
    for name, line in LEARNERS.items():
        run, part = _run(line, "plasticity_injection(at=1000000, of=updates)")
        run.train(200)
        batch = sample_like_training(run, 100, torch.Generator().manual_seed(0))
        critic = run.agent.components["critic"]
        trained = sum(p.numel() for group in critic.optimizer.param_groups for p in group["params"])
        with torch.no_grad():
            before = view(run.agent).values(batch)
            weights = [p.clone() for p in critic.online.parameters()]
            part.inject(run.agent, 0)
            after = view(run.agent).values(batch)
        changed = float((after - before).abs().max())
        pairs = zip(critic.online.parameters(), weights, strict=True)
        moved = max(float((p.detach() - q).abs().max()) for p, q in pairs)
        now = sum(p.numel() for group in critic.optimizer.param_groups for p in group["params"])
        rows += [
            Row(f"{name}: largest change of a value", f"{changed:g}", "0", changed == 0.0),
            Row(f"{name}: largest change of a weight", f"{moved:.2g}", "above 0", moved > 0),
            Row(f"{name}: parameters that are trained", str(now), f"{trained}, as before", now == trained),
        ]
        run.envs.close()
    return rows


# ------------------------------------------------------------------------------------------------ adaptive replay ratio


def adaptive_replay_ratio() -> list[Row]:
    """The update of the switch, on a critic whose share of active units is prescribed: it falls for 40 updates, is
    constant for 30 and falls again. It is measured every 10 updates. A separate computation of the same rule gives the
    expected update."""
    period, delta = 10, 0.001
    shares = [0.90 - 0.01 * min(u, 40) - 0.01 * max(u - 70, 0) for u in range(1, 101)]
    # The rule is checked before the update's own share is added.
    seen = [shares[max(k - period - 1, 0) : k - 1] for k in range(period, 101, period)]
    means = [math.fsum(part) / len(part) for part in seen]
    settled = next(i for i, mean in enumerate(means) if abs(mean - (means[i - 1] if i else shares[0])) <= delta)
    run, part = _run(
        "--agent dqn --env CartPole-v1", f"adaptive_replay_ratio(low=0.5, high=2.0, every={period}, of=updates)"
    )
    agent, clock, ratios = run.agent, Clock(), []
    traces = view(agent).activations(_batch(agent))
    for share in shares:
        clock = clock.stepped(1).updated()
        active = {name: [_active(h, share) for h in hs] for name, hs in traces.items()}
        part.after_update(SimpleNamespace(clock=clock, agent=agent), active)
        ratios.append(agent.sampling(clock).replay_ratio)
    run.envs.close()
    switched = ratios.index(2.0) + 1 if 2.0 in ratios else 0
    due = (settled + 1) * period
    return [
        Row(
            "replay ratio while the share of active units falls",
            f"{ratios[due - 2]:g}",
            "0.5",
            set(ratios[: due - 1]) == {0.5},
        ),
        Row(
            "update at which it switches",
            str(switched or "never"),
            f"{due}, the first check that finds it settled",
            switched == due,
        ),
        Row(
            "replay ratio when the share falls again", f"{ratios[-1]:g}", "2, for good", set(ratios[due - 1 :]) == {2.0}
        ),
    ]


def _batch(agent: Agent) -> Any:
    zeros, ones = torch.zeros(200, *agent.observation.shape), torch.ones(200)
    index = torch.zeros(200, dtype=torch.int64)
    return Batch(zeros, index, ones, ones, zeros, ones, index)


def _active(h: Tensor, share: float) -> Tensor:
    """Outputs of the shape of `h`, with this share of them above zero."""
    flat = torch.zeros(h.numel())
    flat[: round(share * h.numel())] = 1.0
    return flat.view(h.shape)


# ------------------------------------------------------------------------------------------------ the step counter

LR, BETA1, BETA2, OLD = 1e-3, 0.9, 0.999, 4_000


def _reinitialised(how: str) -> tuple[list[float], list[float]]:
    """Sizes of the first three steps, in learning rates, of a reinitialised weight among old ones, and of its old
    neighbour: under a constant gradient, after 4,000 steps."""
    parameter = nn.Parameter(torch.zeros(2))
    adam = Adam([parameter], OptimizerConfig(lr=LR, eps=1e-12))
    if how == "own":
        adam.count_per_weight(parameter)
    parameter.grad = torch.ones(2)
    for _ in range(OLD):
        adam.step()
    state = adam.state[parameter]
    for name in MEMORY:
        if name in state:
            state[name][0] = 0.0
    if how == "zeroed":
        state["step"].zero_()
    sizes = []
    for _ in range(3):
        before = parameter.detach().clone()
        adam.step()
        sizes.append(((before - parameter.detach()) / LR).tolist())
    return [size[0] for size in sizes], [size[1] for size in sizes]


def step_counter() -> list[Row]:
    """Adam's first steps of one reinitialised weight, by the way its steps are counted."""

    def text(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.2f}" for value in values)

    # Moments of k steps, corrected as if they were of OLD + k steps.
    expected = [
        (1 - BETA1**k) / math.sqrt(1 - BETA2**k) * math.sqrt(1 - BETA2 ** (OLD + k)) / (1 - BETA1 ** (OLD + k))
        for k in (1, 2, 3)
    ]
    rows = []
    for how, what, new, neighbour in (
        ("shared", "moments zeroed, step counter shared", expected, [1.0] * 3),
        ("own", "an age of its own", [1.0] * 3, [1.0] * 3),
    ):
        steps = _reinitialised(how)
        for who, values, wanted in zip(("reinitialised weight", "neighbour"), steps, (new, neighbour), strict=True):
            holds = all(abs(v - w) < 0.01 for v, w in zip(values, wanted, strict=True))
            rows.append(Row(f"{what}: first steps of the {who}, in learning rates", text(values), text(wanted), holds))
    fresh, old = _reinitialised("zeroed")
    rows.append(
        Row(
            "moments and step counter zeroed: first steps of the reinitialised weight",
            text(fresh),
            text([1.0] * 3),
            all(abs(v - 1) < 0.01 for v in fresh),
        )
    )
    # An old neighbour has full moments, which the reset counter divides by 1 - beta again.
    slowed = [math.sqrt((1 - BETA2**k) / (1 - BETA2 ** (OLD + k))) / (1 - BETA1**k) for k in (1, 2, 3)]
    rows.append(
        Row(
            "… and of its neighbour",
            text(old),
            text(slowed),
            all(abs(v - w) < 0.01 for v, w in zip(old, slowed, strict=True)),
        )
    )
    return rows


CHECKS: Mapping[str, Callable[[], list[Row]]] = {
    "injection": injection,
    "adaptive_replay_ratio": adaptive_replay_ratio,
    "step_counter": step_counter,
}
"""All checks by the names used in cards."""

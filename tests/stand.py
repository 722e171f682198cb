"""A stand-in for a run: a test lets a method act at one moment, on one batch, and checks the result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from test_agents import batch_for
from torch import Generator, Tensor, nn

from pliant.agents import Agent, Batch, Clock
from pliant.agents.hooks import Intervention
from pliant.agents.networks import Layer
from pliant.agents.views import view
from pliant.interventions.core.surgery import MEMORY


class Fixed:
    """A memory that returns the same batch to every caller, and counts the requests."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.requests = batch, 0

    def sample(
        self, batch_size: int, n_step: int = 1, gamma: float = 0.99, generator: Generator | None = None
    ) -> Batch:
        self.requests += 1
        return self.batch


@dataclass
class Stand:
    """The parts of a run that `after_update` may read."""

    agent: Agent
    batch: Batch | None = None
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.memory: Any = Fixed(batch_for(self.agent) if self.batch is None else self.batch)

    def tick(self, steps: int = 1, episodes: int = 0) -> Stand:
        """Advance the clock by one step and one update."""
        self.clock = self.clock.stepped(steps, episodes).updated()
        return self

    def act(self, activations: Mapping[str, Sequence[Tensor]] | None = None) -> None:
        """Let the agent's interventions act, on the memory's batch unless given activations."""
        if activations is None:
            activations = view(self.agent).activations(self.memory.batch)
        self.agent.interventions.after_update(self, activations)

    def learn(self, steps: int = 1, episodes: int = 0) -> None:
        """Make a step and an update, then let the interventions act on it."""
        self.tick(steps, episodes)
        update = self.agent.update(self.memory.batch, self.agent.plan(self.clock))
        self.agent.interventions.after_update(self, update.activations)


def put_(layer: Layer, weight: Sequence[Any] | Tensor, bias: Sequence[float] | float = 0.0) -> None:
    """Give a layer weights and biases by hand."""
    with torch.no_grad():
        layer.linear.weight.copy_(torch.as_tensor(weight, dtype=torch.float32).view_as(layer.linear.weight))
        layer.linear.bias.copy_(torch.as_tensor(bias, dtype=torch.float32))


def state_of(agent: Agent, parameter: Tensor) -> dict[str, Tensor]:
    """The state that the parameter's optimizer holds for it."""
    states = [o.state[parameter] for _, o in agent.optimizers() if parameter in o.state]
    assert len(states) == 1
    return states[0]


def memories(agent: Agent, parameter: Tensor) -> dict[str, Tensor]:
    """The entries of `state_of` with the parameter's shape."""
    return {name: value for name, value in state_of(agent, parameter).items() if name in MEMORY}


def remember_(agent: Agent) -> None:
    """Fill the optimizers' states as after long training: moments of one, step counts beyond the warm-up."""
    for _, optimizer in agent.optimizers():
        for state in optimizer.state.values():
            for name, value in state.items():
                value.fill_(1e6 if name == "step" else 1.0)


def parameters(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters by name."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def only(agent: Agent) -> Any:
    """The agent's one intervention."""
    parts: list[Intervention] = list(agent.interventions)
    assert len(parts) == 1
    return parts[0]


def ks(first: Tensor, second: Tensor) -> float:
    """The Kolmogorov-Smirnov statistic of two samples, scaled so that 1.95 is exceeded once in a thousand times."""
    a, b = first.flatten().sort().values, second.flatten().sort().values
    points = torch.cat([a, b])
    below = [torch.searchsorted(x, points, right=True) / len(x) for x in (a, b)]
    return (below[0] - below[1]).abs().max().item() * math.sqrt(len(a) * len(b) / (len(a) + len(b)))

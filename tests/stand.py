"""A stand-in for a run, so that a method can be asked to act at one moment, on one batch, and be looked at."""

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
from pliant.interventions.core.surgery import MEMORY


class Fixed:
    """A memory that gives one batch, whoever asks."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.asked = batch, 0

    def sample(
        self, batch_size: int, n_step: int = 1, gamma: float = 0.99, generator: Generator | None = None
    ) -> Batch:
        self.asked += 1
        return self.batch


@dataclass
class Stand:
    """What `after_update` may see of a run."""

    agent: Agent
    batch: Batch | None = None
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.memory: Any = Fixed(batch_for(self.agent) if self.batch is None else self.batch)

    def tick(self, steps: int = 1, episodes: int = 0) -> Stand:
        """One step and one update later."""
        self.clock = self.clock.stepped(steps, episodes).updated()
        return self

    def look(self, activations: Mapping[str, Sequence[Tensor]] | None = None) -> None:
        """Let the agent's interventions act, on the memory's batch unless given activations."""
        if activations is None:
            activations = self.agent.activations(self.memory.batch)
        self.agent.interventions.after_update(self, activations)

    def learn(self, steps: int = 1, episodes: int = 0) -> None:
        """A step, an update, and what follows from it."""
        self.tick(steps, episodes)
        update = self.agent.update(self.memory.batch, self.clock)
        self.agent.interventions.after_update(self, update.activations)


def put_(layer: Layer, weight: Sequence[Any] | Tensor, bias: Sequence[float] | float = 0.0) -> None:
    """Give a layer weights and biases by hand."""
    with torch.no_grad():
        layer.linear.weight.copy_(torch.as_tensor(weight, dtype=torch.float32).view_as(layer.linear.weight))
        layer.linear.bias.copy_(torch.as_tensor(bias, dtype=torch.float32))


def state_of(agent: Agent, parameter: Tensor) -> dict[str, Tensor]:
    """What the optimizer that holds a parameter remembers of it."""
    found = [o.state[parameter] for _, o in agent.optimizers() if parameter in o.state]
    assert len(found) == 1
    return found[0]


def memories(agent: Agent, parameter: Tensor) -> dict[str, Tensor]:
    """The part of that which has the parameter's shape."""
    return {name: value for name, value in state_of(agent, parameter).items() if name in MEMORY}


def remember_(agent: Agent) -> None:
    """Let the optimizers seem to have been at work for long: moments of one, ages and counters past warming up."""
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
    places = torch.cat([a, b])
    below = [torch.searchsorted(x, places, right=True) / len(x) for x in (a, b)]
    return (below[0] - below[1]).abs().max().item() * math.sqrt(len(a) * len(b) / (len(a) + len(b)))

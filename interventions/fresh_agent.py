"""A freshly initialised agent on a schedule: the upper baseline of continual learning, and the full reset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..agents.agent import Agent
from ..agents.clock import At, Every, Unit
from ..agents.hooks import Run
from ..common.ranges import Moment, Period, Start
from .core.config_edits import agent_name
from .core.resetting import LayerMethod, trigger
from .core.surgery import forget_, load_layer_


class FreshAgent(LayerMethod):
    """Reinitialise the whole agent in place on a schedule: the baseline for every method of continual learning.

    When: As the baseline of a stream of tasks, with the period of the tasks: a method that preserves all plasticity
        performs as well. With `memory=keep` it is the full reset; in a fork it shows whether the network or the data
        limits an agent.
    Paper: Lyle et al. 2023, "Understanding Plasticity in Neural Networks", 2303.01486 (fresh networks as the reference
        for plasticity); Nikishin et al. 2022, 2205.07802, section 5 (memory=keep: a fresh SAC on its old replay).
    Differs: Tensors are edited in place; no network is rebuilt. The initialisers redraw every network, and targets
        equal the online networks. Temperature, deviation and running statistics return to their initial values.
        Optimizers lose all state, counters included. Other interventions lose their state about the earlier agent
        (ages, utilities, thresholds). It acts at the first update at or after a task boundary. At that moment it
        empties the memory, and a rollout that crosses the boundary is not used further. Some things do not restart: the
        schedules of other interventions and of the target network, which follow the run's clock; triggers that wait for
        a measurement; the random number streams; and heavy_priming, which primes only the first agent.
    Excludes: plasticity_injection.

    Args:
        every: Period. Use the period of the tasks.
        of: Clock of the period: steps (environment steps), updates or episodes.
        at: Clock values at which it fires, instead of a period.
        memory: The replay or rollout. clear: it is emptied, and learning waits until it holds learning_starts
            transitions again. keep: the new agent learns from the transitions of the earlier one (agents with a
            replay).
        exploration: Schedules that start with the agent (epsilon of DQN, random actions before learning starts,
            PPO's learning rate). restart: they start again. keep: they continue. None: restart if memory is cleared,
            else keep.
        start: First clock value at which it may fire.
        stop: Last clock value at which it may fire.
    """

    name = "fresh_agent"
    example: ClassVar[str] = "fresh_agent(every=3, of=updates)"
    effect = "memory"

    def __init__(
        self,
        every: Period = 100_000,
        of: Unit = "steps",
        at: tuple[Moment, ...] = (),
        memory: Literal["clear", "keep"] = "clear",
        exploration: Literal["restart", "keep"] | None = None,
        start: Start = 0,
        stop: Start | None = None,
    ) -> None:
        super().__init__(("all",), trigger(every, of, at, start, stop), "copy", "all")
        self.memory = memory
        self.restarts = memory == "clear" if exploration is None else exploration == "restart"

    def configure(self, config: Any) -> Any:
        """Change nothing, but refuse settings with which no agent learns."""
        if self.memory == "keep" and not hasattr(config, "replay_ratio"):
            raise ValueError(f"fresh_agent: memory=keep needs a replay, and {agent_name(config)} has none")
        for field, what in (("learning_starts", "learning begins"), ("rollout", "a rollout is complete")):
            self.refuse_before(getattr(config, field, 0), f"{what} {field}=")
        return config

    def refuse_before(self, steps: int, what: str) -> None:
        """Refuse a period that ends before a freshly initialised agent has learnt anything (ValueError)."""
        when = self.when
        if self.memory == "keep" or getattr(when, "of", "") != "steps":
            return
        if isinstance(when, Every):
            gap = when.period
        elif isinstance(when, At) and len(when.moments) > 1:
            moments = sorted(when.moments)
            gap = min(b - a for a, b in pairwise(moments))
        else:
            return
        if gap <= steps:
            raise ValueError(
                f"fresh_agent: a new agent starts every {gap} steps, and no agent learns: {what}{steps} steps after "
                "its initialisation; use longer tasks or a smaller value"
            )

    def bind(self, agent: Agent) -> None:
        super().bind(agent)
        for key, tensor in self.rest(agent):
            self.register_buffer(key, tensor.detach().clone())

    def rest(self, agent: Agent) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the agent's modules that belongs to no layer, with the name of the buffer that holds its
        initial value."""
        layers = (*self.survey.layers.values(), *self.survey.copies.values())
        drawn = {id(p) for layer in layers for p in layer.parameters()}
        for name, module in agent.modules():
            if module is agent.interventions:
                continue
            for key, tensor in (*module.named_parameters(), *module.named_buffers()):
                if id(tensor) not in drawn:
                    yield f"birth:{name}:{key}".replace(".", "/"), tensor  # a key of checkpoints

    @torch.no_grad()
    def fire(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        agent, memory = run.agent, run.memory
        rollout = getattr(memory, "length", 0) * getattr(memory, "num_envs", 1)
        self.refuse_before(rollout, "a rollout of all environments is complete ")
        for name in self.names:
            load_layer_(self.survey.layers[name], self.draw(name, self.generator), None)
        for key, tensor in self.rest(agent):
            tensor.copy_(getattr(self, key))
        self.finish(agent, self.names)
        for _, optimizer in agent.optimizers():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    forget_(self.optimizers, parameter)
        if self.restarts:
            agent.initialised_at = run.clock.steps
        if self.memory == "clear":
            memory.clear()
        for part in agent.interventions:
            if part is not self:
                part.reinitialised(run)

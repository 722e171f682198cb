"""Updates: a batch is drawn, the agent learns from it, its priorities are set. On a GPU, as a CUDA graph.

An eager update launches about a hundred kernels from Python, and the GPU waits for the host most of the time. A graph
holds the kernels of one update with their addresses; a replay launches all of them at once. One graph is captured for
each plan that occurs (the target network moves or not, the actor learns or not), for each kind of draw and for each
structure of the networks, so a graph contains no decision.

What changes from update to update must be a value on the device, at an address that stays: the bounds of the replay,
the discount, the learning rate. `Memory.draws` writes them before each update. Random generators are registered with
the graph, so draws go on as in eager updates. Python attributes that an update sets (`.grad`, `clipped`, `unpenalised`)
are set again at each replay, because a replay runs no Python.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Generator

from .agent import Agent
from .clock import Plan, Update
from .memory import Batch, Memory

T = TypeVar("T")
WARM_UP = 3  # eager updates of a plan before its graph is captured: kernels are chosen and workspaces allocated
MOST_GRAPHS = 32  # each holds the memory of an update; further plans are made eagerly


class Result(NamedTuple):
    """An update with the batch that it learnt from."""

    batch: Batch
    update: Update


class Graph(Protocol):
    """Operators that can be run again. `CudaGraph` is one; tests have one for the CPU."""

    def record(self, function: Callable[[], T]) -> T: ...
    def replay(self) -> None: ...


class CudaGraph:
    """A CUDA graph of one function.

    Args:
        generators: Every generator that the function draws from.
    """

    def __init__(self, generators: Sequence[Generator]) -> None:
        self.graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self.graph.register_generator_state(generator)

    def record(self, function: Callable[[], T]) -> T:
        """Capture a function, then run it once: a capture runs nothing."""
        with torch.cuda.graph(self.graph):
            result = function()
        self.graph.replay()
        return result

    def replay(self) -> None:
        self.graph.replay()


class Learner:
    """Makes the updates of an agent from a memory, one after the other."""

    def __init__(self, agent: Agent, memory: Memory) -> None:
        self.agent, self.memory = agent, memory

    def learn(self, plan: Plan, draw: Hashable) -> Result:
        """Make the update that `Memory.draws` prepared.

        Args:
            plan: What the clock decided about this update.
            draw: What `Memory.draws` yielded: draws with equal keys run the same operators.
        """
        batch = self.memory.draw()
        update = self.agent.update(batch, plan)
        self.memory.update_priorities(batch.index, update.td_error)
        return Result(batch, update)


class Captured(NamedTuple):
    """A graph, its results, and the Python attributes that its update set: holder, name and value."""

    graph: Graph
    result: Result
    attributes: list[tuple[Any, str, Any]]


class CapturedLearner(Learner):
    """Makes the updates of an agent as graphs, one for each plan that occurs.

    The results are the tensors of the graph, so the next update overwrites them.

    Args:
        graph: Makes an empty graph that knows the given generators.
        warm_up: Eager updates of each plan before it is captured.
    """

    def __init__(
        self,
        agent: Agent,
        memory: Memory,
        graph: Callable[[Sequence[Generator]], Graph] = CudaGraph,
        warm_up: int = WARM_UP,
    ) -> None:
        super().__init__(agent, memory)
        self.graph, self.warm_up = graph, warm_up
        self.made: Counter[Hashable] = Counter()  # eager updates of each plan
        self.captured: dict[Hashable, Captured] = {}

    def learn(self, plan: Plan, draw: Hashable) -> Result:
        key = plan, draw, self.agent.structure()
        if (captured := self.captured.get(key)) is not None:
            captured.graph.replay()
            for holder, name, value in captured.attributes:
                setattr(holder, name, value)
            return captured.result
        if self.made[key] < self.warm_up or len(self.captured) >= MOST_GRAPHS:
            self.made[key] += 1
            return super().learn(plan, draw)
        graph = self.graph([*self.agent.generators(), *self.memory.generators()])
        before = self._attributes()
        result = graph.record(lambda: Learner.learn(self, plan, draw))
        changed = [
            (holder, name, new)
            for (holder, name, old), (_, _, new) in zip(before, self._attributes(), strict=True)
            if new is not old
        ]
        self.captured[key] = Captured(graph, result, changed)
        return result

    def _attributes(self) -> list[tuple[Any, str, Any]]:
        """The attributes that updates set: holder, name and present value."""
        optimizers = [optimizer for _, optimizer in self.agent.optimizers()]
        parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        return [
            *((parameter, "grad", parameter.grad) for parameter in parameters),
            *((optimizer, "clipped", getattr(optimizer, "clipped", None)) for optimizer in optimizers),
            (self.agent, "unpenalised", self.agent.unpenalised),
        ]

"""Updates: a batch is drawn, the agent learns from it, its priorities are set. On a GPU, one CUDA graph does all this.

An eager update launches about a hundred kernels from Python, and the GPU waits for the host most of the time. A graph
holds the kernels of one update with their addresses; one launch runs all of them. One graph is captured for
each plan that occurs (the target network moves or not, the actor learns or not), for each kind of draw and for each
structure of the networks, so a graph needs no branches.

What changes from update to update must be a value on the device, at a fixed address: the bounds of the replay buffer,
the discount, the learning rate. `Memory.draws` writes them before each update. Random generators are registered with
the graph, so draws go on as in eager updates. Python attributes that an update sets (`.grad`, `clipped`, `unpenalised`)
are set again after each launch, because a graph runs no Python.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Generator, Tensor

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
        """Capture a function, then run it once: capturing only records."""
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
            draw: The key that `Memory.draws` yielded. Draws of equal keys run the same operators.
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

    The results are the tensors of the graph, so the next update overwrites them. If the first graph cannot be captured,
    or does not give the result of an eager update, all updates are eager, and `refused` holds the reason.

    Args:
        graph: Makes an empty graph that knows the given generators.
        warm_up: Eager updates of each plan before it is captured.
        check: Compare the first graph with an eager update.
        notify: Called with one line: whether updates run as graphs and, if not, why.
    """

    def __init__(
        self,
        agent: Agent,
        memory: Memory,
        graph: Callable[[Sequence[Generator]], Graph] = CudaGraph,
        *,
        warm_up: int = WARM_UP,
        check: bool = True,
        notify: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(agent, memory)
        self.graph, self.warm_up, self.check, self.notify = graph, warm_up, check, notify
        self.made: Counter[Hashable] = Counter()  # eager updates of each plan
        self.captured: dict[Hashable, Captured] = {}
        self.refused = ""

    def learn(self, plan: Plan, draw: Hashable) -> Result:
        key = plan, draw, self.agent.structure()
        if (captured := self.captured.get(key)) is not None:
            captured.graph.replay()
            for holder, name, value in captured.attributes:
                setattr(holder, name, value)
            return captured.result
        if self.refused or self.made[key] < self.warm_up or len(self.captured) >= MOST_GRAPHS:
            self.made[key] += 1
            return super().learn(plan, draw)
        if self.check and not self.captured:
            return self._checked(key, plan, draw)
        return self._capture(key, plan, draw)

    def _capture(self, key: Hashable, plan: Plan, draw: Hashable) -> Result:
        graph = self.graph(self._generators())
        before = self._attributes()
        result = graph.record(lambda: Learner.learn(self, plan, draw))
        changed = [
            (holder, name, new)
            for (holder, name, old), (_, _, new) in zip(before, self._attributes(), strict=True)
            if new is not old
        ]
        self.captured[key] = Captured(graph, result, changed)
        return result

    def _checked(self, key: Hashable, plan: Plan, draw: Hashable) -> Result:
        """Capture the first graph, after an eager update from the same state. Training goes on
        from the state that the graph produced."""
        state, generators = self._tensors(), self._generators()
        before = [tensor.clone() for tensor in state]
        streams = [generator.get_state() for generator in generators]

        def restore() -> None:
            for tensor, content in zip(state, before, strict=True):
                tensor.copy_(content)
            for generator, stream in zip(generators, streams, strict=True):
                generator.set_state(stream)

        with torch.no_grad():
            with torch.enable_grad():
                Learner.learn(self, plan, draw)
            eager = [tensor.clone() for tensor in state]
            restore()
            try:
                with torch.enable_grad():
                    result = self._capture(key, plan, draw)
            except (RuntimeError, AssertionError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                self.refused = f"the agent's update cannot be captured ({reason})"
            else:
                if all(
                    torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)
                    for a, b in zip(eager, state, strict=True)
                ):
                    self.notify("updates run as graphs")
                    return result
                self.refused = "the first graph does not give the result of the update that it captured"
            self.captured.clear()
            restore()
        self.notify(f"updates run operator by operator, not as CUDA graphs: {self.refused}")
        return super().learn(plan, draw)

    def _generators(self) -> list[Generator]:
        return [*self.agent.generators(), *self.memory.generators()]

    def _tensors(self) -> list[Tensor]:
        """Every tensor that an update may change."""
        modules = [module for _, module in self.agent.modules()]
        states = [state for _, optimizer in self.agent.optimizers() for state in optimizer.state.values()]
        return [
            *(tensor for module in modules for tensor in (*module.parameters(), *module.buffers())),
            *(value for state in states for value in state.values() if isinstance(value, Tensor)),
            *self.memory.learnt(),
        ]

    def _attributes(self) -> list[tuple[Any, str, Any]]:
        """The attributes that updates set: holder, name and present value."""
        optimizers = [optimizer for _, optimizer in self.agent.optimizers()]
        parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        return [
            *((parameter, "grad", parameter.grad) for parameter in parameters),
            *((optimizer, "clipped", getattr(optimizer, "clipped", None)) for optimizer in optimizers),
            (self.agent, "unpenalised", self.agent.unpenalised),
        ]


def learner_of(agent: Agent, memory: Memory, notify: Callable[[str], None] = lambda line: None) -> Learner:
    """The learner that the agent's configuration asks for.

    Args:
        notify: On a GPU, called with one line: whether updates run as graphs and, if not, why.

    Raises:
        ValueError: `compile=graph` on a device without CUDA.
    """
    mode = getattr(agent.config, "compile", "off")
    if mode == "graph" and agent.device.type != "cuda":
        raise ValueError(
            f"--agent.compile graph needs a CUDA device, and this agent is on {agent.device}: use auto or off"
        )
    if mode == "off" or agent.device.type != "cuda":
        return Learner(agent, memory)
    return CapturedLearner(agent, memory, notify=notify)

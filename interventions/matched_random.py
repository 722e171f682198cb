"""The placebo of a reset: a random change of the same size at the same times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..agents.agent import Agent
from ..agents.clock import Clock, Sampling, When
from ..agents.hooks import Intervention, Run, firing
from ..agents.memory import Memory
from ..agents.replay import Batch
from ..common.seeds import derive_seed
from .core.recycling import Recycler
from .core.resetting import LayerMethod
from .core.spec import build_parts
from .core.surgery import Optimizers

FAMILIES = (Recycler, LayerMethod)


class MatchedRandom(Intervention):
    """Apply another intervention, but move weights by the same amount in random directions.

    When: As the control of any method that edits weights. If the method is better than this control, the selection of
        weights explains the difference; the random change explains the rest.
    Paper: Sokar et al. 2023, 2302.12902, use randomly selected units as a control; this extends the control to methods
        that redraw whole layers.
    Differs: No units are selected. Every parameter tensor moves in its own Gaussian direction, scaled to the norm of
        the change that the other intervention made to it. A target network moves in the direction of its online
        network, by the norm of its own change. Other tensors (running statistics) keep the values that the other
        intervention gives them.
    Excludes: Everything that the other intervention excludes.

    Args:
        like: The other intervention, a quoted spec: `matched_random("redo(tau=0.1, every=1000)")`. It must reset units
            or redraw layers.
        moments: The optimizer state. like: as the other intervention leaves it. keep: unchanged.
    """

    name = "matched_random"
    example: ClassVar[str] = "matched_random(like='reset(every=3)')"
    effect = "layer_surgery"
    # Every intervention by name. `registry.py` sets it, because `registry.py` imports this class.
    registry: ClassVar[Mapping[str, type[Intervention]]] = {}

    def __init__(self, like: str, moments: Literal["like", "keep"] = "like") -> None:
        super().__init__()
        (self.inner,) = build_parts([like], self.registry)
        if not isinstance(self.inner, FAMILIES):
            known = sorted(name for name, kind in self.registry.items() if issubclass(kind, FAMILIES))
            raise ValueError(
                f"{self.inner.name} resets no units and redraws no layers, so there is no change to match; use one of: "
                f"{', '.join(known)}"
            )
        self.moments = moments
        self.on, self.when = self.inner.on, self.inner.when
        self.reserves, self.edits = self.inner.reserves, self.inner.edits
        self.moved: dict[str, Tensor] = {}

    def seed(self, seed: int, device: torch.device) -> None:
        super().seed(seed, device)
        self.inner.seed(derive_seed(seed, "like"), device)

    def fire_when(self, when: When) -> None:
        self.inner.fire_when(when)
        self.when = when

    def configure(self, config: Any) -> Any:
        return self.inner.configure(config)

    def bind(self, agent: Agent) -> None:
        self.inner.bind(agent)
        self.optimizers = Optimizers(optimizer for _, optimizer in agent.optimizers())

    def schedule(self, sampling: Sampling, clock: Clock) -> Sampling:
        return self.inner.schedule(sampling, clock)

    def transform_batch(self, batch: Batch) -> Batch:
        return self.inner.transform_batch(batch)

    def penalty(self, agent: Agent, component: str) -> Tensor | float:
        return self.inner.penalty(agent, component)

    def reinitialised(self, run: Run) -> None:
        self.inner.reinitialised(run)

    def added_late(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        self.inner.added_late(run, activations)

    def fire_now(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        trigger = self.inner.when
        self.inner.when = lambda clock: True  # the other intervention checks its own trigger
        try:
            super().fire_now(run, activations)
        finally:
            self.inner.when = trigger

    def after_update(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        if not self.when(run.clock):
            return self.inner.after_update(run, activations)
        fires = type(self.inner).after_update is Intervention.after_update
        with firing(run, self) if fires else nullcontext():
            self.fire(run, activations)

    @torch.no_grad()
    def fire(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        old = {p: p.detach().clone() for pair in pairs(run.agent) for p in pair}
        remembered = {
            value: value.clone() for p in old for value in self.optimizers.state(p).values() if self.moments == "keep"
        }
        self.inner.after_update(UnrecordedRun(run), activations)
        norms = []
        for pair in pairs(run.agent):
            # Online and target network move in one direction. Noise is drawn for every tensor, so that the random
            # stream does not depend on which tensors changed.
            noise = torch.randn(pair[0].shape, generator=self.generator, device=pair[0].device)
            noise.div_(torch.linalg.vector_norm(noise).clamp(min=1e-30))
            for p in pair:
                norm = torch.linalg.vector_norm(p - old[p])
                p.copy_(old[p] + norm * noise)
                norms.append(norm)
        for value, before in remembered.items():
            value.copy_(before)
        self.touched = self.inner.touched
        self.moved = {"interventions/matched_random_norm": torch.stack(norms).square().sum().sqrt()}

    def measurements(self) -> dict[str, Tensor]:
        measured, self.moved = self.moved | self.inner.measurements(), {}
        return measured


class UnrecordedRun:
    """The run that is passed to the other intervention. It does not record that change, because the change is
    replaced."""

    def __init__(self, run: Run) -> None:
        self.agent: Agent = run.agent
        self.clock: Clock = run.clock
        self.memory: Memory = run.memory

    def firing(self, part: Intervention) -> AbstractContextManager[None]:
        return nullcontext()


def pairs(agent: Agent) -> Iterator[tuple[Tensor, ...]]:
    """Every parameter of an agent's networks, paired with the target network's parameter if there is one."""
    seen: set[int] = set()
    for component in agent.components.values():
        targets = dict(zip(component.followed, component.followers, strict=False))
        for p in component.followed:
            if id(p) not in seen:
                seen.add(id(p))
                yield (p, targets[p]) if p in targets else (p,)

"""The placebo of a reset: a random change of the same size at the same moments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..agents.agent import Agent
from ..agents.hooks import Clock, Intervention, Memory, Run, Sampling, When, firing
from ..agents.replay import Batch
from ..common.seeds import derive_seed
from .core.recycling import Recycler
from .core.resetting import LayerMethod
from .core.spec import build_parts
from .core.surgery import Optimizers

FAMILIES = (Recycler, LayerMethod)


class MatchedRandom(Intervention):
    """Do what another intervention does, but change weights by as much in random directions.

    When: As the control of any method that edits weights: what it does better than its placebo is owed to which weights
        it picks, the rest to the shake.
    Paper: The control of Sokar et al. 2023, 2302.12902, who recycle units at random, carried over to methods that
        redraw whole layers.
    Differs: No units are picked. Every parameter tensor moves by a Gaussian direction of its
        own, scaled to the norm by which the other intervention moved it; a target network moves along with its online
        one by the norm of its own change. What the tensor holds besides weights (running statistics) is left as the
        other one leaves it.
    Excludes: What the other intervention excludes.

    Args:
        like: The other intervention, a word in quotes: `matched_random("redo(tau=0.1, every=1000)")`. One that resets
            units or redraws layers.
        moments: The optimizers' memory. like: as the other one leaves it. keep: as if nothing had happened.
    """

    name = "matched_random"
    example: ClassVar[str] = "matched_random(like='reset(every=3)')"
    effect = "layer_surgery"
    # Every intervention by name. `registry.py` sets it, because it lists this class and imports it.
    registry: ClassVar[Mapping[str, type[Intervention]]] = {}

    def __init__(self, like: str, moments: Literal["like", "keep"] = "like") -> None:
        super().__init__()
        (self.inner,) = build_parts([like], self.registry)
        if not isinstance(self.inner, FAMILIES):
            known = sorted(name for name, kind in self.registry.items() if issubclass(kind, FAMILIES))
            raise ValueError(
                f"{self.inner.name} resets no units and redraws no layers, so there is no change to match; what does: "
                f"{', '.join(known)}"
            )
        self.moments = moments
        self.on, self.when = self.inner.on, self.inner.when
        self.claims, self.edits = self.inner.claims, self.inner.edits
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

    def reborn(self, run: Run) -> None:
        self.inner.reborn(run)

    def joined(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        self.inner.joined(run, activations)

    def fire_now(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        beat = self.inner.when
        self.inner.when = lambda clock: True  # what it matches asks its own beat
        try:
            super().fire_now(run, activations)
        finally:
            self.inner.when = beat

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
        self.inner.after_update(Unwatched(run), activations)
        norms = []
        for pair in pairs(run.agent):
            # Online and target in one direction. Drawn for every tensor, so that the stream does not depend on which
            # were changed.
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
        found, self.moved = self.moved | self.inner.measurements(), {}
        return found


class Unwatched:
    """A run as the other intervention sees it: what it changes is not weighed, for it does not stay."""

    def __init__(self, run: Run) -> None:
        self.agent: Agent = run.agent
        self.clock: Clock = run.clock
        self.memory: Memory = run.memory

    def firing(self, part: Intervention) -> AbstractContextManager[None]:
        return nullcontext()


def pairs(agent: Agent) -> Iterator[tuple[Tensor, ...]]:
    """Every parameter of an agent's networks, with the target network's of the same place where there is one."""
    seen: set[int] = set()
    for component in agent.components.values():
        twins = dict(zip(component.followed, component.followers, strict=False))
        for p in component.followed:
            if id(p) not in seen:
                seen.add(id(p))
                yield (p, twins[p]) if p in twins else (p,)

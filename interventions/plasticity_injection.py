"""Plasticity injection: Nikishin et al. 2023, 2305.15555."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ..agents.agent import Agent
from ..agents.clock import At, Unit
from ..agents.hooks import Intervention, Run
from ..agents.networks import MOST_INJECTIONS, TWO_COPIES, Layer
from ..common.ranges import Moment, at_least
from .core.config_edits import edit_network
from .core.parts import HEADS
from .core.surgery import Optimizers, copy_layer_, forget_, load_layer_

Times: TypeAlias = Annotated[int, at_least(1, "injections", most=MOST_INJECTIONS, why=TWO_COPIES)]


class PlasticityInjection(Intervention):
    """Freeze the critic's head and add a new trained head, without a change of any prediction.

    When: To test whether a network has lost plasticity (fork a run and inject), or to restore plasticity late in a run.
    Paper: Nikishin et al. 2023, "Deep Reinforcement Learning with Plasticity Injection", 2305.15555, section 4: q(x) =
        old(x) + new(x) - copy of new(x). Only `new` and the encoder are trained.
    Differs: The trained tensors stay the same: the old head is copied into a frozen copy, and the trained head is
        reinitialised. The function and the optimizer are the same as in the paper. The copies are allocated at
        construction and hold zeros. The head of the target network moves in the same way, with the same draws.
    Excludes: every other intervention that edits the critic's head.

    Args:
        at: Clock values of the injections; leave it out if the injection waits for a measurement (`when='...'`).
        of: Clock of `at`: steps (environment steps) or updates.
        times: With `when`, the number of injections for which copies are allocated. After that many injections it does
            nothing.
        encoder_moments: The optimizer state of the encoder: keep (the paper finds that a reset hurts) or reset.
    """

    name = "plasticity_injection"
    example: ClassVar[str] = "plasticity_injection(at=3, of=updates)"
    effect = "layer_surgery"
    reserves = (HEADS,)

    def __init__(
        self,
        at: tuple[Moment, ...] = (),
        of: Unit = "steps",
        times: Times = 1,
        encoder_moments: Literal["keep", "reset"] = "keep",
    ) -> None:
        super().__init__()
        self.at, self.encoder_moments = tuple(sorted(at)), encoder_moments
        self.when = At(self.at, of)
        self.times = len(self.at) or times
        self.made = 0
        self.fired: dict[str, Tensor] = {}

    def configure(self, config: Any) -> Any:
        if isinstance(self.when, At) and not self.at:
            raise ValueError("plasticity_injection needs a moment, at=100000, or when='place/metric > number'")
        earlier = getattr(config, config.parts["critic"][0]).injections
        return edit_network(config, "critic", self.name, injections=earlier + self.times)

    def bind(self, agent: Agent) -> None:
        if not list(injectable(agent.components["critic"].online)):
            raise ValueError(f"plasticity_injection: the critic of this {agent.name} has no separate head")
        self.optimizers = Optimizers(optimizer for _, optimizer in agent.optimizers())

    def after_update(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        if self.made < self.times:
            super().after_update(run, activations)

    def fire(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        # If one update passes several clock values of `at`, each of them makes an injection of its own.
        passed = 1
        if isinstance(self.when, At):
            last, now = run.clock.read(self.when.of)
            passed = max(1, sum(last < moment <= now for moment in self.at))
        for _ in range(passed):
            self.inject(run.agent, self.made)
            self.made += 1

    def host_state(self) -> dict[str, Any]:
        return {"made": self.made}

    def load_host_state(self, state: dict[str, Any]) -> None:
        self.made = state["made"]

    @torch.no_grad()
    def inject(self, agent: Agent, number: int) -> None:
        """Copy every head of the critic into its frozen copy `number`, and reinitialise the head."""
        critic = agent.components["critic"]
        heads = list(injectable(critic.online))
        targets = list(injectable(critic.target)) if critic.target is not None else [None] * len(heads)
        for head, target in zip(heads, targets, strict=True):
            draws = [layer.fresh(self.generator) for layer in layers(head.head_modules().values())]
            self.move(head, number, draws, self.optimizers)
            if target is not None:
                self.move(target, number, draws, None)
        if self.encoder_moments == "reset":
            for parameter in critic.online.encoder.parameters():
                forget_(self.optimizers, parameter)
        self.touched = {"critic": float(sum(layer.units for h in heads for layer in layers(h.head_modules().values())))}
        count = torch.full((), float(len(heads)), device=agent.device)
        self.fired = {"interventions/plasticity_injection_heads": count}

    def move(
        self, head: Any, number: int, draws: Sequence[Mapping[str, Tensor]], optimizers: Optimizers | None
    ) -> None:
        """Three copies: old <- head; head <- draw; the frozen copy of the new head <- the same draw."""
        modules = list(layers(head.head_modules().values()))
        old, initial = (list(layers([copies[number]])) for copies in (head.injection.old, head.injection.initial))
        for layer, kept, copy, fresh in zip(modules, old, initial, draws, strict=True):
            copy_layer_(kept, layer)
            load_layer_(layer, fresh, optimizers)
            copy_layer_(copy, layer)
        head.injection.opened = number + 1

    def measurements(self) -> dict[str, Tensor]:
        fired, self.fired = self.fired, {}
        return fired


def injectable(network: nn.Module) -> Iterator[Any]:
    """The heads of a network for which injection copies are allocated."""
    for module in network.modules():
        if getattr(module, "injection", None) is not None:
            yield module


def layers(modules: Any) -> Iterator[Layer]:
    """The layers within modules, in order."""
    for module in modules:
        yield from (m for m in module.modules() if isinstance(m, Layer))

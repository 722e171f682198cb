"""CHAIN, reduction of churn: Tang & Berseth 2024, 2409.04792; Tang et al. 2025, 2506.00592 (C-CHAIN)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..agents.agent import Agent
from ..agents.hooks import Intervention, Run, sample_like_training
from ..agents.networks import Injection
from ..common.ranges import NotNegative, Samples, SomeUpdates, Updates


class Chain(Intervention):
    """Keep what the agent says of states that it did not just learn from, from one update to the next.

    When: Values or policies change everywhere when they learn anywhere (see the monitor churn); streams of tasks.
    Paper: Tang & Berseth 2024, "Improving Deep Reinforcement Learning by Reducing the Chain Effect of Value and Policy
        Churn", 2409.04792, equations 8 and 9: on a reference batch of its own, the mean squared difference of values,
        or the divergence of policies, between the network and what it was before its last update. Tang et al. 2025,
        "Mitigating Plasticity Loss in Continual Reinforcement Learning by Reducing Churn", 2506.00592. Strength as in
        the code: ratio * mean |loss| / mean churn, with a ratio of 0.01 to 0.05 for DDQN and 0.1 for PPO.
    Differs: Means are running ones, of about the last `window` updates, where the code keeps all values of 50,000
        updates (DDQN) or 100 (PPO), and until `start` there is no penalty at all (PPO's code begins with a strength of
        100). For PPO the loss that counts is the component's own part of the joint one. The divergence of policies is
        the KL divergence from before to now, where PPO's code has squared differences of mean actions. The code of SAC
        adds up the value churn of its critics, where this is their mean, with a fixed strength, and multiplies the KL
        divergence from now to before by a fixed factor and the mean |min Q - alpha log pi|. The batch is
        drawn after the previous update and not augmented. The weights from before are a frozen copy that is written
        to in every update. The update after an intervention has edited weights sees that edit as churn too.
    Excludes: another chain on the same component.

    Args:
        ratio: Share of the loss that the penalty is held to on average.
        weight: Fixed strength, instead of that; 0 is off.
        on: Whose churn: critic, actor, or all.
        samples: Transitions in a reference batch.
        window: Updates over which loss and churn are averaged.
        start: Updates of a component before its penalty begins.
    """

    name = "chain"
    example: ClassVar[str] = "chain(ratio=1.0, start=2, samples=8)"
    effect = "penalty"
    obs: Tensor
    action: Tensor

    def __init__(
        self,
        ratio: NotNegative = 0.05,
        weight: NotNegative = 0.0,
        on: Literal["all", "critic", "actor"] = "all",
        samples: Samples = 64,
        window: SomeUpdates = 1000,
        start: Updates = 100,
    ) -> None:
        super().__init__()
        self.ratio, self.weight, self.on = ratio, weight, on
        self.samples, self.window, self.start = samples, window, start
        self.claims = tuple(f"the churn of the {c}" for c in (("critic", "actor") if on == "all" else (on,)))
        self.terms: dict[str, Tensor] = {}

    def bind(self, agent: Agent) -> None:
        known = [name for name in ("critic", "actor") if name in agent.components]
        chosen = known if self.on == "all" else [self.on]
        if self.on != "all" and self.on not in known:
            raise ValueError(f"chain: this {agent.name} has no {self.on}; it has {', '.join(known)}")
        size, device = self.samples, agent.device
        kind = torch.int64 if agent.action.discrete else torch.float32
        shape = (size,) if agent.action.discrete else (size, agent.action.size)
        # Zeros until the first batch is drawn: before a first update there is no churn on any batch.
        obs = torch.zeros(size, *agent.observation.shape, dtype=agent.observation.dtype, device=device)
        self.register_buffer("obs", obs)
        self.register_buffer("action", torch.zeros(shape, dtype=kind, device=device))
        self.before = nn.ModuleDict()
        self.online: dict[str, dict[str, nn.Module]] = {}
        for name in chosen:
            # What one optimizer moves is one network, to whoever reads several parts of it.
            optimizer = agent.components[name].optimizer
            self.online[name] = {k: c.online for k, c in agent.components.items() if c.optimizer is optimizer}
            copies = {k: agent.slow_copy(network).eval() for k, network in self.online[name].items()}
            self.before[name] = nn.ModuleDict(copies)
            for what in ("loss", "churn", "updates"):
                self.register_buffer(f"{name}:{what}", torch.zeros((), device=device))

    def penalty(self, agent: Agent, component: str) -> Tensor | float:
        if component not in self.online:
            return 0.0
        with torch.no_grad():
            before = agent.predictions(component, self.obs, self.action, self.before[component])  # type: ignore[arg-type]
        now = agent.predictions(component, self.obs, self.action)
        churn = agent.policy_churn(before, now) if component == "actor" else (now - before).square().mean()
        strength = self.strength(component, agent.unpenalised[component].abs(), churn.detach())
        self.remember_(component)
        term = strength * churn
        place = f"interventions/{self.name}_{component}"
        self.terms |= {place: term.detach(), f"{place}_churn": churn.detach()}
        return term

    @torch.no_grad()
    def strength(self, component: str, loss: Tensor, churn: Tensor) -> Tensor:
        """What the churn is multiplied with (0-d), once these two have entered their means."""
        updates = self.get_buffer(f"{component}:updates").add_(1)
        share = 1 / updates.clamp(max=float(self.window))
        means = []
        for what, value in (("loss", loss), ("churn", churn)):
            mean = self.get_buffer(f"{component}:{what}")
            means.append(mean.add_((value - mean) * share))
        found = means[0] * self.ratio / (means[1] + 1e-8) if not self.weight else torch.full_like(loss, self.weight)
        return torch.where(updates > self.start, found, 0.0)

    @torch.no_grad()
    def remember_(self, component: str) -> None:
        """Take note of the weights as they are before this update."""
        for name, network in self.online[component].items():
            copy = self.before[component][name]  # type: ignore[index]
            torch._foreach_copy_(list(copy.parameters()), list(network.parameters()))
            for mine, theirs in zip(copy.modules(), network.modules(), strict=True):
                if isinstance(mine, Injection) and isinstance(theirs, Injection):
                    mine.opened = theirs.opened

    @torch.no_grad()
    def after_update(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        """Draw the batch for the next update."""
        batch = sample_like_training(run, self.samples, self.generator)
        self.obs.copy_(batch.obs)
        self.action.copy_(batch.action)

    @torch.no_grad()
    def joined(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        self.reborn(run)
        self.after_update(run, activations)

    @torch.no_grad()
    def reborn(self, run: Run) -> None:
        for component in self.online:
            self.remember_(component)
            for what in ("loss", "churn", "updates"):
                self.get_buffer(f"{component}:{what}").zero_()

    def measurements(self) -> dict[str, Tensor]:
        found, self.terms = self.terms, {}
        return found

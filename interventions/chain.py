"""CHAIN, churn reduction: Tang & Berseth 2024, 2409.04792; Tang et al. 2025, 2506.00592 (C-CHAIN)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..agents.agent import Agent
from ..agents.hooks import Intervention, Run, sample_like_training
from ..agents.networks import Injection
from ..agents.views import view
from ..common.ranges import NotNegative, Samples, SomeUpdates, Updates


class Chain(Intervention):
    """Penalise changes of the outputs for states outside the batch (churn).

    When: An update on some states changes values or policies for all states (see the monitor churn); streams of tasks.
    Paper: Tang & Berseth 2024, "Improving Deep Reinforcement Learning by Reducing the Chain Effect of Value and Policy
        Churn", 2409.04792, equations 8 and 9. The penalty is measured on a separate reference batch. It is the mean
        squared difference of values, or the divergence of policies, between the network and the same network before its
        last update. Tang et al. 2025, "Mitigating Plasticity Loss in Continual Reinforcement Learning by Reducing
        Churn", 2506.00592. The strength is that of the code: ratio * mean |loss| / mean churn, with a ratio of 0.01 to
        0.05 for DDQN and 0.1 for PPO.
    Differs: The means are running means over about the last `window` updates, while the code keeps all values of 50,000
        updates (DDQN) or 100 (PPO). Until `start` there is no penalty at all, while PPO's code begins with a strength
        of 100. For PPO the mean loss is that of the component's own part of the joint loss. The divergence of policies
        is the KL divergence from the earlier to the present policy, while PPO's code uses squared differences of mean
        actions. The code of SAC sums the value churn of its critics with a fixed strength; here it is their mean. That
        code multiplies the KL divergence from the present to the earlier policy by a fixed factor and the mean |min Q -
        alpha log pi|. Here the reference batch is drawn after the previous update and is not augmented. The earlier
        weights are a frozen copy that is overwritten at every update. If an intervention edits weights, the next update
        counts that edit as churn too.
    Excludes: another chain on the same component.

    Args:
        ratio: Target for the mean penalty, as a fraction of the mean loss.
        weight: Fixed strength that replaces the adaptive one; 0 is off.
        on: Component whose churn is penalised: critic, actor, or all.
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
        self.reserves = tuple(f"the churn of the {c}" for c in (("critic", "actor") if on == "all" else (on,)))
        self.terms: dict[str, Tensor] = {}

    def bind(self, agent: Agent) -> None:
        view(agent, self.name)
        known = [name for name in ("critic", "actor") if name in agent.components]
        chosen = known if self.on == "all" else [self.on]
        if self.on != "all" and self.on not in known:
            raise ValueError(f"chain: this {agent.name} has no {self.on}; it has {', '.join(known)}")
        size, device = self.samples, agent.device
        kind = torch.int64 if agent.action.discrete else torch.float32
        shape = (size,) if agent.action.discrete else (size, agent.action.size)
        # Zeros until the first batch is drawn: before the first update there is no churn on any batch.
        obs = torch.zeros(size, *agent.observation.shape, dtype=agent.observation.dtype, device=device)
        self.register_buffer("obs", obs)
        self.register_buffer("action", torch.zeros(shape, dtype=kind, device=device))
        self.before = nn.ModuleDict()
        self.online: dict[str, dict[str, nn.Module]] = {}
        for name in chosen:
            # `predictions` may read several networks, so copy every network that this optimizer trains.
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
            before = view(agent).predictions(component, self.obs, self.action, self.before[component])  # type: ignore[arg-type]
        now = view(agent).predictions(component, self.obs, self.action)
        churn = view(agent).policy_churn(before, now) if component == "actor" else (now - before).square().mean()
        strength = self.strength(component, agent.unpenalised[component].abs(), churn.detach())
        self.remember_(component)
        term = strength * churn
        place = f"interventions/{self.name}_{component}"
        self.terms |= {place: term.detach(), f"{place}_churn": churn.detach()}
        return term

    @torch.no_grad()
    def strength(self, component: str, loss: Tensor, churn: Tensor) -> Tensor:
        """The factor on the churn (0-d), after loss and churn have entered their running means."""
        updates = self.get_buffer(f"{component}:updates").add_(1)
        share = 1 / updates.clamp(max=float(self.window))
        means = []
        for what, value in (("loss", loss), ("churn", churn)):
            mean = self.get_buffer(f"{component}:{what}")
            means.append(mean.add_((value - mean) * share))
        strength = means[0] * self.ratio / (means[1] + 1e-8) if not self.weight else torch.full_like(loss, self.weight)
        return torch.where(updates > self.start, strength, 0.0)

    @torch.no_grad()
    def remember_(self, component: str) -> None:
        """Copy the weights before this update."""
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
    def added_late(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        self.reinitialised(run)
        self.after_update(run, activations)

    @torch.no_grad()
    def reinitialised(self, run: Run) -> None:
        for component in self.online:
            self.remember_(component)
            for what in ("loss", "churn", "updates"):
                self.get_buffer(f"{component}:{what}").zero_()

    def measurements(self) -> dict[str, Tensor]:
        terms, self.terms = self.terms, {}
        return terms

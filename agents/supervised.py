"""A supervised learner with the interface of an agent: its actions are predictions.

It acts in streams (`pliant.envs.streams`), whose steps return the targets. One step of all environments is a minibatch,
and the learner trains on it once. This is online learning without bootstrapping and exploration, so failures are due to
the network's plasticity. The literature shows loss of plasticity with random labels, permuted inputs and slowly
changing targets (Lyle et al. 2023, 2303.01486; Dohare et al. 2024, Nature 632; Kumar et al. 2023, 2308.11958).

Discrete actions are classes, trained with softmax cross-entropy. A box is regression, trained with half the squared
error, averaged over the numbers of a target, or with another head for scalars.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from ..common.ranges import SomeTransitions, at_least
from ..common.seeds import derive_seed
from ..common.spaces import ObservationSpec
from .agent import Agent, Component
from .clock import Clock, Plan, Sampling, Update
from .config import AgentConfig
from .heads import HeadConfig, HeadName, ValueHead, build_head
from .networks import Injection, NetworkConfig, Trace, ValueNetwork
from .optimizers import OptimizerConfig, build_optimizer, step
from .replay import Batch
from .stream import Samples

# Heads whose target is a number; the others need the distribution of a return.
NUMBERS = ("auto", "mse", "huber", "symlog", "two_hot", "hl_gauss")


@dataclass(frozen=True)
class SupervisedConfig(AgentConfig):
    """A supervised learner. The defaults are those of experiments with random labels: two layers of 128, Adam with
    learning rate 1e-3. The batch size is the number of environments.

    Attributes:
        network: Shape of the network; the last layer has one output per class, or the outputs of the head per number.
        optimizer: Optimizer of the network.
        value_loss: Loss for regression; auto is mse, half the squared error. Classification always uses cross-entropy
            and requires auto.
        head: Parameters of the value loss.
        updates_per_step: Consecutive gradient updates on every minibatch.
        buffer_size: Latest samples kept for monitors and methods; training uses only the newest minibatch.
    """

    parts: ClassVar[dict[str, tuple[str, str]]] = {"critic": ("network", "optimizer")}
    # Updates follow every step.
    update_every: ClassVar[int] = 1

    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(hidden=(128, 128)))
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3))
    value_loss: HeadName | Literal["auto"] = "auto"
    head: HeadConfig = field(default_factory=HeadConfig)
    updates_per_step: Annotated[int, at_least(1, "gradient updates", most=10_000, why="a step would take minutes")] = 1
    buffer_size: SomeTransitions = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value_loss not in NUMBERS:
            raise ValueError(
                f"supervised regresses on numbers, and {self.value_loss} on distributions of returns; use "
                f"{', '.join(NUMBERS)}"
            )


class Predictor(ValueNetwork):
    """Observations [B, *obs] → logits [B, outputs], with copies for plasticity injections into the dense layers."""

    def __init__(self, observation: ObservationSpec, outputs: int, config: NetworkConfig, generator: Generator) -> None:
        super().__init__(observation, outputs, config, generator)
        self.injection = Injection(self.head_modules(), config.injections) if config.injections else None

    def head_modules(self) -> dict[str, nn.Module]:
        """The dense modules from features to logits, by name."""
        return {"body": self.body, "output": self.output}

    def forward(self, obs: Tensor, trace: Trace | None = None) -> Tensor:
        modules: Mapping[str, Any] = self._modules
        features = modules["encoder"].forward(obs, trace)
        logits = self.logits(modules, features, trace)
        if self.injection is not None:
            logits = self.injection(logits, lambda copies: self.logits(copies, features))
        return logits

    def logits(self, modules: Mapping[str, Any], features: Tensor, trace: Trace | None = None) -> Tensor:
        """Features [B, F] → logits [B, outputs], by this head's modules or a copy of them."""
        logits: Tensor = modules["output"].forward(modules["body"].forward(features, trace))
        return logits


class Supervised(Agent):
    """Classification (discrete actions) or regression (a box) of observations.

    Its single component is called "critic", although it estimates no values: intervention specs without a component
    mean the critic, so every method and monitor applies to this network by default.
    """

    name = "supervised"
    config_class = SupervisedConfig
    config: SupervisedConfig
    learns_from_targets: ClassVar[bool] = True
    # Batch size for observers; a training minibatch has one sample per environment.
    batch_size: ClassVar[int] = 64

    def build(self, generator: Generator) -> None:
        c = self.config
        if self.action.discrete and c.value_loss != "auto":
            raise ValueError(
                f"value_loss {c.value_loss} is of numbers, and this stream has classes, which supervised learns by "
                "cross-entropy: leave it at auto"
            )
        self.head: ValueHead | None = None
        if not self.action.discrete:
            self.head = build_head("mse" if c.value_loss == "auto" else c.value_loss, c.head, gamma=0.0)
            self.head = self.head.to(self.device)
        online = self.built(generator)["critic"].to(self.device)
        self.critic = Component(online, build_optimizer(online.parameters(), c.optimizer))
        self.components = {"critic": self.critic}

    def networks(self, generator: Generator) -> dict[str, nn.Module]:
        outputs = self.action.size * (1 if self.head is None else self.head.outputs)
        return {"critic": Predictor(self.observation, outputs, self.config.network, generator)}

    @torch.no_grad()
    def act(self, obs: NDArray[Any] | Tensor, clock: Clock | None = None) -> Tensor:
        """The predictions: the most likely classes [E], or numbers [E, K]. There is no exploration."""
        return self.predicted(self.critic.online.forward(self.tensor(obs)))

    def predicted(self, logits: Tensor) -> Tensor:
        """Logits [B, outputs] → predictions: the most likely classes [B], or numbers [B, K]."""
        if self.head is None:
            return logits.argmax(dim=1)
        return self.head.value(logits.view(-1, self.head.outputs)).view(-1, self.action.size)

    def sampling(self, clock: Clock) -> Sampling:
        return self.interventions.schedule(
            Sampling(self.batch_size, 1, 0.0, float(self.config.updates_per_step)), clock
        )

    def memory(self, num_envs: int = 1, seed: int | None = None) -> Samples:
        """The memory of the latest samples, on the agent's device."""
        c = self.config
        return Samples(
            self.observation,
            self.action,
            capacity=c.buffer_size,
            num_envs=num_envs,
            updates=c.updates_per_step,
            device=self.device,
            seed=derive_seed(self.seed if seed is None else seed, "samples"),
        )

    def describe_memory(self, num_envs: int = 1) -> str:
        samples = -(-self.config.buffer_size // num_envs) * num_envs
        return (
            f"samples: minibatches of {num_envs}, each learnt from once; the latest {samples:,} are kept for monitors"
        )

    def memory_bytes(self, num_envs: int = 1) -> int:
        return Samples.size_of(self.observation, self.action, self.config.buffer_size, num_envs)

    # ------------------------------------------------------------------------------------------------- learning

    def errors(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each sample [B]: cross-entropy, or the mean loss of its numbers."""
        if self.head is None:
            return F.cross_entropy(logits, target, reduction="none")
        each = self.head.loss(logits.view(-1, self.head.outputs), target.flatten())
        return each.view(target.shape).mean(dim=1)

    def loss(self, batch: Batch, trace: Trace | None = None) -> Tensor:
        """Mean loss of a batch, without penalties of interventions."""
        return self.errors(self.critic.online(batch.obs, trace), batch.action).mean()

    def update(self, batch: Batch, plan: Plan) -> Update:
        batch = self.interventions.transform_batch(batch)
        trace = Trace()
        logits = self.critic.online.forward(batch.obs, trace)
        errors = self.errors(logits, batch.action)
        loss = errors.mean()
        step(self.penalised(loss, "critic"), self.critic.optimizer, self.config.optimizer.max_grad_norm)
        metrics = {"losses/loss": loss.detach()}
        with torch.no_grad():
            predicted = self.predicted(logits)
            if self.head is None:
                metrics["losses/accuracy"] = (predicted == batch.action).float().mean()
            else:
                metrics["losses/squared_error"] = (predicted - batch.action).square().mean()
        return Update(metrics, {"critic": [h.detach() for h in trace]}, errors.detach())

    def blank_pass(self) -> None:
        self.critic.online(self.blank())

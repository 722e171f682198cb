"""The base class of agents: components, `act`, `update`, and a state that can be saved.

An agent works without the training loop, the logger and the environments:

    agent, clock = DQN((4,), 2), Clock()
    action = agent.act(obs)                                   # [E, 4] → [E]
    batch = Batch.of(obs, action, reward, next_obs, terminated)
    clock = clock.updated()
    agent.update(batch, agent.plan(clock))
    agent.save("agent.pt"); agent = DQN.load("agent.pt")
"""

from __future__ import annotations

import copy
import errno
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from ..common.files import replacing
from ..common.memory import refuse_too_large
from ..common.moved import moved
from ..common.ranges import OutOfRange
from ..common.seeds import derive_seed
from ..common.spaces import ActionSpec, ObservationSpec, action_spec, observation_spec
from .clock import Clock, Plan, Sampling, Update
from .config import plain, restore
from .hooks import Compose, Intervention, restore_stream_
from .memory import Memory
from .networks import Dropout, Injection
from .replay import Batch, Replay
from .saved import BadFile, check_is_agent, read_agent

FORMAT = 1


N = TypeVar("N", bound=nn.Module)


@dataclass
class Component(Generic[N]):
    """A trained network, its target network (if it has one), and its optimizer."""

    online: N
    optimizer: torch.optim.Optimizer
    target: N | None = None

    def __post_init__(self) -> None:
        # Tensors are never replaced, so the pairs of target and online tensors can be collected once.
        self.followed: list[Tensor] = list(self.online.parameters())
        self.followers: list[Tensor] = list(self.target.parameters()) if self.target is not None else []
        self.buffers: list[tuple[Tensor, Tensor]] = []
        if self.target is not None:
            self.buffers = list(zip(self.target.buffers(), self.online.buffers(), strict=True))


class Agent(ABC):
    """Base of all agents.

    Args:
        observation: A gymnasium `Box`, a shape, or an `ObservationSpec`.
        action: A gymnasium `Discrete` or `Box`, a number of discrete actions, or an `ActionSpec`.
        config: The agent's configuration; its default if None.
        interventions: Interventions, applied in this order.
        seed: Seed of all random draws of the agent: initial weights, exploration, sampled actions.
        device: Device of the networks.

    Raises:
        ValueError: The spaces do not fit the agent, or two interventions exclude each other.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[Any]]
    learns_from_targets: ClassVar[bool] = False  # True: the environments must give labels
    slow: ClassVar[tuple[str, ...]] = ()  # the components that have a target network
    network_bytes: int = 0  # bytes of weights, gradients, optimizer states and target networks; set by `built`
    # The class that answers the questions of observers (`pliant.agents.views.AgentView`); None: that of the base class,
    # if there is one. An agent needs no view to train, to be reset and to resume.
    view_class: ClassVar[type[Any] | None] = None

    def __init__(
        self,
        observation: Any,
        action: Any,
        config: Any = None,
        *,
        interventions: Sequence[Intervention] = (),
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.observation: ObservationSpec = observation_spec(observation)
        self.action: ActionSpec = action_spec(action)
        # A tensor reports its device with an index; this makes the two comparable.
        self.device = torch.empty(0, device=device).device
        if not self.action.discrete:
            low, high = torch.tensor(self.action.low), torch.tensor(self.action.high)
            self.center, self.scale = ((high + low) / 2).to(self.device), ((high - low) / 2).to(self.device)
        self.seed = seed
        self.given_config = self.config_class() if config is None else config
        self.interventions = Compose(interventions)
        self.config = self.interventions.configure(self.given_config)
        # For exploration and sampled actions. Initial weights come from another stream, so that a wider network does
        # not change the exploration.
        self.generator = Generator(self.device).manual_seed(derive_seed(seed, "noise"))
        self.host_rng = np.random.Generator(np.random.PCG64(derive_seed(seed, "host noise")))
        self.components: dict[str, Component[Any]] = {}
        # The latest loss of each component without the penalties of interventions. Penalties that are weighted relative
        # to the loss read it.
        self.unpenalised: dict[str, Tensor] = {}
        # Environment step of the initialisation: an agent that is reinitialised restarts its schedules.
        self.initialised_at = 0
        self._sampling: tuple[Any, Sampling] | None = None  # a configuration, and the sampling that it describes
        self.build(Generator().manual_seed(derive_seed(seed, "weights")))
        inner = [m for _, module in self.modules() for m in module.modules()]
        self.dropouts = [m for m in inner if isinstance(m, Dropout)]
        self.injections = [m for m in inner if isinstance(m, Injection)]
        self.interventions.to(self.device)
        self.interventions.bind(self)

    @abstractmethod
    def build(self, generator: Generator) -> None:
        """Fill `components`."""

    def networks(self, generator: Generator) -> dict[str, nn.Module]:
        """The trained networks by component, freshly initialised on the CPU; `built` calls this."""
        raise NotImplementedError

    def built(self, generator: Generator) -> dict[str, Any]:
        """Build the agent's `networks`, after a check on the meta device (which allocates nothing) that they fit.

        Raises:
            TooLarge: The networks do not fit into memory with gradients, optimizer state and target networks, or a
                batch does not fit.
        """
        with torch.device("meta"):
            sketch = self.networks(generator)
        weights = needed = 0
        for name, network in sketch.items():
            learnt = sum(p.nbytes for p in network.parameters() if p.requires_grad)
            rest = sum(x.nbytes for x in (*network.parameters(), *network.buffers())) - learnt
            weights += sum(p.numel() for p in network.parameters())
            # Trained parameters take four times their size: weights, gradients and two moments. A target network holds
            # weights only.
            needed += 4 * learnt + rest + (learnt + rest if name in self.slow else 0)
        self.network_bytes = needed
        refuse_too_large(
            f"an agent whose networks have {weights:,} weights",
            needed,
            self.device,
            "give smaller widths in --agent.network.hidden, or less of what multiplies networks and their outputs",
        )
        refuse_too_large(
            f"a batch of {self.batch():,} transitions",
            self.batch() * self.bytes_per_sample(),
            self.device,
            "give a smaller --agent.batch-size, or a head with fewer outputs",
        )
        return self.networks(generator)

    def batch(self) -> int:
        """Transitions in a batch; 0 if the configuration has no batch size."""
        return int(getattr(self.config, "batch_size", 0))

    def bytes_per_sample(self) -> int:
        """Minimum bytes that one transition of a batch takes during an update: both observations, as stored and as
        floats, and the values that the loss compares."""
        numbers = math.prod(self.observation.shape)
        stored = 0 if self.observation.dtype == torch.float32 else self.observation.dtype.itemsize
        head = getattr(self, "head", None)
        return 2 * numbers * (4 + stored) + (4 * head.scratch if head is not None else 0)

    @abstractmethod
    def act(self, obs: NDArray[Any] | Tensor, clock: Clock | None = None) -> Tensor:
        """Choose actions for observations [E, *obs]: [E] int64 or [E, A] float32, on the device.

        The agent explores if `clock` is given, and acts greedily otherwise.
        """

    def plan(self, clock: Clock) -> Plan:
        """What the host decides about the next update from the clock, which already counts it. An annealed learning
        rate is set here."""
        return Plan()

    @abstractmethod
    def update(self, batch: Batch, plan: Plan) -> Update:
        """Make one gradient update by a plan. All else is tensors in, tensors out: the host neither decides nor
        waits."""

    @abstractmethod
    def blank_pass(self) -> None:
        """Run every online network once on an observation of zeros, so that the unit graph can be traced."""

    def fresh_copy(self) -> Self:
        """A freshly initialised agent with the same configuration and seed, its own tensors and no interventions, for
        experiments; `copy_from_` then copies this agent's state into it."""
        return type(self)(self.observation, self.action, self.config, seed=self.seed, device=self.device)

    @torch.no_grad()
    def copy_from_(self, other: Agent) -> None:
        """Copy the weights and optimizer states of an agent with the same configuration, in place."""
        for name, component in other.components.items():
            mine = self.components[name]
            for one, its in ((mine.online, component.online), (mine.target, component.target)):
                if one is not None and its is not None:
                    one.load_state_dict(its.state_dict())
            # Tensor by tensor: torch's load_state_dict copies everything twice and checks the device of each tensor.
            for group, given in zip(mine.optimizer.param_groups, component.optimizer.param_groups, strict=True):
                group |= {key: value for key, value in given.items() if key != "params"}
                for p, q in zip(group["params"], given["params"], strict=True):
                    for key, value in mine.optimizer.state[p].items():
                        value.copy_(component.optimizer.state[q][key])

    def age(self, clock: Clock) -> int:
        """Environment steps since the agent was initialised; its schedules are functions of this number."""
        return clock.steps - self.initialised_at

    def charts(self, clock: Clock) -> dict[str, float]:
        """Current values of the agent's schedules, for the log."""
        return {}

    @contextmanager
    def drawing_from(self, generator: Generator) -> Iterator[None]:
        """Use another generator within the block, so that training's stream does not advance."""
        own, self.generator = self.generator, generator
        try:
            for module in self.dropouts:
                module.generator = generator
            yield
        finally:
            self.generator = own
            for module in self.dropouts:
                module.generator = own

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Switch dropout off within the block, so that forward passes make no random draw."""
        for module in self.dropouts:
            module.training = False
        try:
            yield
        finally:
            for module in self.dropouts:
                module.training = True

    def blank(self) -> Tensor:
        """One observation of zeros [1, *obs], in the stored type."""
        return torch.zeros(1, *self.observation.shape, dtype=self.observation.dtype, device=self.device)

    def sampling(self, clock: Clock) -> Sampling:
        """Batch size, n-step, discount and replay ratio at this moment."""
        c = self.config
        if self._sampling is None or self._sampling[0] is not c:  # asked for several times in a step
            self._sampling = c, Sampling(c.batch_size, c.n_step, c.gamma, c.replay_ratio)
        return self.interventions.schedule(self._sampling[1], clock)

    def memory(self, num_envs: int = 1, seed: int | None = None) -> Memory:
        """The memory that the configuration describes, on the agent's device: by default a replay.

        Raises:
            ValueError: The replay does not fit into memory, or no window of `n_step` rewards fits into the replay.
        """
        c = self.config
        if (waiting := (c.n_step - 1) * num_envs) >= c.buffer_size:
            raise OutOfRange(
                "--agent.n-step",
                f"must be smaller than {c.n_step:,}: the newest {waiting:,} transitions of {num_envs:,} environments "
                f"wait for their windows, and the replay holds {c.buffer_size:,}",
            )
        return Replay(
            self.observation,
            self.action,
            capacity=c.buffer_size,
            num_envs=num_envs,
            device=self.device,
            seed=derive_seed(self.seed if seed is None else seed, "replay"),
            learning_starts=c.learning_starts,
            reward_clip=c.reward_clip or None,
            prioritised=c.priorities if getattr(c, "prioritised", False) else None,
        )

    def describe_memory(self, num_envs: int = 1) -> str:
        """One line: how many bytes `memory` will take. Allocates nothing."""
        size = self.memory_bytes(num_envs)
        return f"replay: {self.config.buffer_size:,} transitions take {size / 1e9:.3g} GB on {self.device}"

    def memory_bytes(self, num_envs: int = 1) -> int:
        """Bytes that `memory` will take. Allocates nothing."""
        c = self.config
        return Replay.size_of(
            self.observation,
            self.action,
            capacity=c.buffer_size,
            num_envs=num_envs,
            prioritised=getattr(c, "prioritised", False),
        )

    def penalised(self, loss: Tensor, component: str, own: Tensor | None = None) -> Tensor:
        """A component's loss plus the penalties of interventions.

        `own` is the component's part of `loss`, if several components share the loss.
        """
        if not len(self.interventions):
            return loss
        # A new dictionary, so that a captured update can set it again.
        self.unpenalised = self.unpenalised | {component: (loss if own is None else own).detach()}
        return loss + self.interventions.penalty(self, component)

    def slow_copy(self, online: N) -> N:
        """A frozen copy of a network, to be its target network. Dropout in both draws from the agent's generator."""
        for module in online.modules():
            if isinstance(module, Dropout):
                module.generator = self.generator
        # A generator cannot be deep-copied; the memo makes both networks share the same one.
        return copy.deepcopy(online, memo={id(self.generator): self.generator}).requires_grad_(False)

    def unscaled(self, action: Tensor) -> Tensor:
        """Actions [B, A] in the environment's range → the range [-1, 1], which networks use."""
        return (action - self.center) / self.scale

    def tensor(self, obs: NDArray[Any] | Tensor) -> Tensor:
        """Observations [E, *obs] on the device, in the stored type.

        Raises:
            ValueError: The observations have another shape.
        """
        if obs.shape[1:] != self.observation.shape:
            raise ValueError(
                f"observations must have the shape (batch, {', '.join(map(str, self.observation.shape))}), "
                f"not {tuple(obs.shape)}"
            )
        x = self.upload(obs)
        return x if x.dtype == self.observation.dtype else x.to(self.observation.dtype)

    def upload(self, x: NDArray[Any] | Tensor) -> Tensor:
        """Copy an array or tensor to the device without waiting: only copies from pinned memory are asynchronous."""
        if not isinstance(x, Tensor):
            x = torch.from_numpy(x if x.flags.writeable else x.copy())
        if x.device == self.device:
            return x
        return x.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else x.to(self.device)

    # ------------------------------------------------------------------------------------------------- state

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Every distinct module that holds state, by name."""
        seen: set[int] = set()
        for name, component in self.components.items():
            for suffix, module in (("online", component.online), ("target", component.target)):
                if module is not None and id(module) not in seen:
                    seen.add(id(module))
                    yield f"{name}.{suffix}", module
        yield "interventions", self.interventions

    def structure(self) -> int:
        """A number that changes whenever the operators of an update change: the plasticity injections in use."""
        return sum(module.opened for module in self.injections)

    def generators(self) -> Iterator[Generator]:
        """The random generators that an update uses."""
        yield self.generator
        for part in self.interventions.modules():
            if isinstance(part, Intervention) and "generator" in part.__dict__:
                yield part.generator

    def optimizers(self) -> Iterator[tuple[str, torch.optim.Optimizer]]:
        """Every distinct optimizer, by the name of the first component that uses it."""
        seen: set[int] = set()
        for name, component in self.components.items():
            if id(component.optimizer) not in seen:
                seen.add(id(component.optimizer))
                yield name, component.optimizer

    def state_dict(self) -> dict[str, Any]:
        """Weights, target networks, optimizer states, the state of interventions and the random generators."""
        return {
            "modules": {name: dict(module.state_dict()) for name, module in self.modules()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers()},
            "generator": self.generator.get_state(),
            "host_rng": _rng_state(self.host_rng),
            "born": self.initialised_at,  # a key of checkpoints
        }

    def load_state_dict(self, state: dict[str, Any], *, joining: int = 0) -> None:
        """Copy a saved state into this agent's own tensors; nothing is replaced.

        Args:
            joining: How many of the last interventions the saved agent did not have. They keep their initial state, and
                so do the parts of the networks that only they use.

        Raises:
            ValueError: The state belongs to an agent of another shape or with other interventions.
        """
        try:
            for name, module in self.modules():
                missing, unknown = module.load_state_dict(state["modules"][name], strict=not joining)
                self._refuse_unmatched(missing, unknown, joining if module is self.interventions else None)
            for name, optimizer in self.optimizers():
                optimizer.load_state_dict(state["optimizers"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"the saved state does not fit this {self.name}: {error}. Build the agent with the configuration and "
                "the interventions that it was saved with"
            ) from error
        restore_stream_(self.generator, state["generator"], derive_seed(self.seed, "noise"))
        _set_rng_state(self.host_rng, state["host_rng"])
        self.initialised_at = state.get("born", 0)  # a key of checkpoints

    def _refuse_unmatched(self, missing: Sequence[str], unknown: Sequence[str], joining: int | None) -> None:
        """Check a state that was loaded with `strict=False`.

        Raises:
            KeyError: The state has an unknown key, or the state of an intervention that does not join is missing.
        """
        if unknown:
            raise KeyError(f"there is no {unknown[0]} here")
        if joining is not None:
            new = tuple(f"parts.{len(self.interventions) - 1 - i}." for i in range(joining))
            if lacking := [key for key in missing if not key.startswith(new)]:
                raise KeyError(f"the saved state has no {lacking[0]}")

    def reseed(self, seed: int) -> None:
        """Seed every generator of the agent and its interventions anew."""
        self.generator.manual_seed(derive_seed(seed, "noise"))
        self.host_rng = np.random.Generator(np.random.PCG64(derive_seed(seed, "host noise")))
        for i, part in enumerate(self.interventions):
            for inner in part.modules():
                if isinstance(inner, Intervention) and "generator" in inner.__dict__:
                    inner.generator.manual_seed(derive_seed(seed, f"intervention {i} {inner.name}"))

    def content(self) -> dict[str, Any]:
        """Everything that `load` needs: the arguments of the constructor, and the state."""
        return {
            "format": FORMAT,
            "agent": self.name,
            "observation": asdict(self.observation) | {"dtype": str(self.observation.dtype).removeprefix("torch.")},
            "action": asdict(self.action),
            "config": plain(self.given_config),
            "interventions": [part.name for part in self.interventions],
            "seed": self.seed,
            "state": self.state_dict(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the agent to one file, atomically; `load` needs no other file."""
        with replacing(Path(path)) as scratch:
            torch.save(self.content(), scratch)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        interventions: Sequence[Intervention] = (),
        device: str | torch.device = "cpu",
    ) -> Self:
        """Load the agent that `save` wrote; it can act and continue to learn.

        Raises:
            FileNotFoundError: The file does not exist.
            BadFile: The file holds no agent, or an incomplete one (a ValueError).
            ValueError: The file holds another kind of agent, a newer format, or other interventions than given.
        """
        if not os.path.exists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
        return cls.from_content(read_agent(path), path, interventions=interventions, device=device)

    @classmethod
    def from_content(
        cls,
        content: Any,
        path: str | os.PathLike[str],
        *,
        interventions: Sequence[Intervention] = (),
        device: str | torch.device = "cpu",
    ) -> Self:
        """Build the agent that `content` describes; error messages name `path`.

        Raises:
            BadFile: The content is not that of an agent, or is incomplete.
            ValueError: As `load`.
        """
        check_is_agent(content, path)
        if content["agent"] != cls.name:
            raise ValueError(f"{path} holds {content['agent']}, not {cls.name}")
        if content["format"] > FORMAT:
            raise ValueError(f"{path} was written by a newer version (format {content['format']}); upgrade pliant")
        if (given := [part.name for part in interventions]) != content["interventions"]:
            raise ValueError(f"{path} was saved with the interventions {content['interventions']}, not {given}")
        observed = content["observation"]
        try:
            observation = ObservationSpec(**observed | {"dtype": getattr(torch, observed["dtype"])})
            action, config = ActionSpec(**content["action"]), restore(cls.config_class, content["config"])
        except (KeyError, TypeError, AttributeError) as error:
            raise BadFile(f"{path} does not describe a {cls.name} as this version of pliant does: {error}") from error
        agent = cls(observation, action, config, interventions=interventions, seed=content["seed"], device=device)
        try:
            agent.load_state_dict(content["state"])
        except (KeyError, TypeError, AttributeError) as error:
            raise BadFile(f"{path} holds no whole state of a {cls.name}: {error!r}") from error
        return agent


def _rng_state(rng: np.random.Generator) -> dict[str, Any]:
    """The state of a PCG64 generator. Its 128-bit integers become strings, which every file format can store."""
    state = rng.bit_generator.state
    integers = {key: str(value) for key, value in state["state"].items()}
    return {"state": integers, "has_uint32": state["has_uint32"], "uinteger": state["uinteger"]}


def _set_rng_state(rng: np.random.Generator, saved: dict[str, Any]) -> None:
    integers = {key: int(value) for key, value in saved["state"].items()}
    rng.bit_generator.state = {**saved, "bit_generator": "PCG64", "state": integers}


@torch.no_grad()
def sync_target_(component: Component[Any], tau: float) -> None:
    """target ← tau * online + (1 - tau) * target, in place, for every parameter; buffers are copied."""
    if tau == 1.0:
        torch._foreach_copy_(component.followers, component.followed)
    else:
        torch._foreach_lerp_(component.followers, component.followed, tau)
    for mine, theirs in component.buffers:
        mine.copy_(theirs)


__getattr__ = moved(__name__, {name: f"pliant.agents.policies.{name}" for name in ("categorical_kl", "gaussian_kl")})

"""What every agent is: components, an act, an update, and a state that can be saved.

An agent needs neither loop nor logger nor environments:

    agent, clock = DQN((4,), 2), Clock()
    action = agent.act(obs)                                   # [E, 4] → [E]
    batch = Batch.of(obs, action, reward, next_obs, terminated)
    clock = clock.updated()
    agent.update(batch, clock)
    agent.save("agent.pt"); agent = DQN.load("agent.pt")
"""

from __future__ import annotations

import copy
import errno
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from ..common.memory import refuse_too_large
from ..common.ranges import OutOfRange, check_numbers
from ..common.seeds import derive_seed
from ..common.spaces import ActionSpec, ObservationSpec, action_spec, observation_spec
from .heads import precise
from .hooks import Clock, Compose, Intervention, Sampling, Update, restore_stream_
from .networks import Dropout, Trace
from .replay import Batch, Replay
from .saved import BadFile, check_is_agent, read_agent

FORMAT = 1


N = TypeVar("N", bound=nn.Module)


@dataclass
class Component(Generic[N]):
    """A network that learns, the slow copy that it bootstraps from (if any), and its optimizer."""

    online: N
    optimizer: torch.optim.Optimizer
    target: N | None = None

    def __post_init__(self) -> None:
        # Nothing is ever replaced, so what a target follows can be looked up once.
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
        interventions: Applied in order.
        seed: Of everything random in the agent: initial weights, exploration, sampled actions.
        device: Where networks live.

    Raises:
        ValueError: The spaces do not fit the agent, or two interventions exclude each other.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[Any]]
    learns_from_targets: ClassVar[bool] = False  # and so needs environments that tell what should have been said
    slow: ClassVar[tuple[str, ...]] = ()  # the components that bootstrap from a slow copy of themselves
    values_are_returns: ClassVar[bool] = True  # so that they can be compared with what follows

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
        # With its index, as tensors tell it, so that the two can be compared.
        self.device = torch.empty(0, device=device).device
        self.seed = seed
        self.given_config = self.config_class() if config is None else config
        self.interventions = Compose(interventions)
        self.config = self.interventions.configure(self.given_config)
        # Exploration and sampled actions. Initial weights come from another stream, so that a wider network does not
        # shift what the agent tries.
        self.generator = Generator(self.device).manual_seed(derive_seed(seed, "noise"))
        self.host_rng = np.random.Generator(np.random.PCG64(derive_seed(seed, "host noise")))
        self.components: dict[str, Component[Any]] = {}
        # The latest loss of each component without what interventions add, for who weighs the one against the other.
        self.unpenalised: dict[str, Tensor] = {}
        self.born = 0  # environment steps at which it was born: a fresh agent of a run begins its schedules anew
        self.build(Generator().manual_seed(derive_seed(seed, "weights")))
        self.dropouts = [m for _, module in self.modules() for m in module.modules() if isinstance(m, Dropout)]
        self.interventions.to(self.device)
        self.interventions.bind(self)

    @abstractmethod
    def build(self, generator: Generator) -> None:
        """Fill `components`."""

    def networks(self, generator: Generator) -> dict[str, nn.Module]:
        """The networks that learn, by component, newly born on the CPU, for `built`."""
        raise NotImplementedError

    def built(self, generator: Generator) -> dict[str, Any]:
        """The agent's `networks`, once a sketch of them without memory has shown that they fit.

        Raises:
            TooLarge: They do not fit with gradients, optimizer and slow copies, or a batch does not.
        """
        with torch.device("meta"):
            sketch = self.networks(generator)
        weights = needed = 0
        for name, network in sketch.items():
            learnt = sum(p.nbytes for p in network.parameters() if p.requires_grad)
            rest = sum(x.nbytes for x in (*network.parameters(), *network.buffers())) - learnt
            weights += sum(p.numel() for p in network.parameters())
            # Of what learns the weights, their gradients and two moments; a slow copy holds the weights alone.
            needed += 4 * learnt + rest + (learnt + rest if name in self.slow else 0)
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
        """Transitions in a batch, as far as the configuration says it."""
        return int(getattr(self.config, "batch_size", 0))

    def bytes_per_sample(self) -> int:
        """Bytes that a transition of a batch takes at the very least while it is learnt from: both observations, as
        stored and as floats, and what the loss compares."""
        numbers = math.prod(self.observation.shape)
        stored = 0 if self.observation.dtype == torch.float32 else self.observation.dtype.itemsize
        head = getattr(self, "head", None)
        return 2 * numbers * (4 + stored) + (4 * head.scratch if head is not None else 0)

    @abstractmethod
    def act(self, obs: NDArray[Any] | Tensor, clock: Clock | None = None) -> Tensor:
        """[E, *obs] → actions [E] int64 or [E, A] float32 on the device: exploring if given a clock, else greedy."""

    @abstractmethod
    def update(self, batch: Batch, clock: Clock) -> Update:
        """One gradient update; `clock` counts it already. Never makes the host wait for the device."""

    @abstractmethod
    def blank_pass(self) -> None:
        """Run every online network once on a blank observation, so that what reads what can be measured."""

    @abstractmethod
    def activations(self, batch: Batch) -> dict[str, Trace]:
        """The outputs of every hidden layer on a batch, by component, as `update` returns them; draws nothing."""

    @abstractmethod
    def live_traces(self, batch: Batch) -> Iterator[tuple[str, Tensor, Trace]]:
        """Component, loss, and hidden outputs that still hang in its graph, for who asks for gradients of units."""

    @abstractmethod
    def values(self, batch: Batch, *, target: bool = False) -> Tensor:
        """Each critic's value of the actions taken [N, B], by the online network or by the target network, where there
        is one. Gradients run through it; it draws nothing."""

    @torch.no_grad()
    def valued_policy(self, obs: NDArray[Any] | Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """What the policy that `values` are of does: actions for observations [E, *obs], drawn from `generator` if at
        all, and the bonus [E] that the agent gives itself for them. Here the greedy policy, without a bonus."""
        action = self.act(obs)
        return action, torch.zeros(len(obs), device=action.device)

    def scaled_rewards(self, reward: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rewards in the unit of `values`, before they are clipped."""
        return reward

    @abstractmethod
    def losses(self, batch: Batch, seed: int) -> dict[str, Callable[[], Tensor]]:
        """Component → its loss on a batch as a function of its present weights alone, without what interventions add:
        targets are computed now and stay, noise is the same at every call, nothing is dropped."""

    @abstractmethod
    def decisions(self, batch: Batch) -> Tensor:
        """What the policy does, without its noise, in the form that `policy_churn` compares."""

    @abstractmethod
    def policy_churn(self, before: Tensor, after: Tensor) -> Tensor:
        """How far two sets of `decisions` on the same observations lie apart (0-d)."""

    @abstractmethod
    def probed(self, batch: Batch) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
        """The modules whose plasticity is worth to be told apart, by name, and what each reads on a batch."""

    def twin(self) -> Self:
        """An agent of the same build as this one was born, with tensors of its own and without interventions, to be
        experimented on; `become_` makes it a copy."""
        return type(self)(self.observation, self.action, self.config, seed=self.seed, device=self.device)

    @torch.no_grad()
    def become_(self, other: Agent) -> None:
        """Take over the weights and optimizers of an agent of the same build, in place."""
        for name, component in other.components.items():
            mine = self.components[name]
            for one, its in ((mine.online, component.online), (mine.target, component.target)):
                if one is not None and its is not None:
                    one.load_state_dict(its.state_dict())
            # Tensor by tensor: torch's own way copies all twice, and asks each for its device.
            for group, given in zip(mine.optimizer.param_groups, component.optimizer.param_groups, strict=True):
                group |= {key: value for key, value in given.items() if key != "params"}
                for p, q in zip(group["params"], given["params"], strict=True):
                    for key, value in mine.optimizer.state[p].items():
                        value.copy_(component.optimizer.state[q][key])

    def age(self, clock: Clock) -> int:
        """Environment steps since it was born; what its schedules are functions of."""
        return clock.steps - self.born

    def charts(self, clock: Clock) -> dict[str, float]:
        """What its schedules say at this moment, for the log."""
        return {}

    @contextmanager
    def drawing_from(self, generator: Generator) -> Iterator[None]:
        """Let whoever looks at losses draw from a stream of his own, so that training's stays where it is."""
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
        """Forward passes that drop nothing, and so draw nothing."""
        for module in self.dropouts:
            module.training = False
        try:
            yield
        finally:
            for module in self.dropouts:
                module.training = True

    def blank(self) -> Tensor:
        """One observation of zeros, as it is stored."""
        return torch.zeros(1, *self.observation.shape, dtype=self.observation.dtype, device=self.device)

    def sampling(self, clock: Clock) -> Sampling:
        """How batches are drawn at this moment."""
        c = self.config
        return self.interventions.schedule(Sampling(c.batch_size, c.n_step, c.gamma, c.replay_ratio), clock)

    def memory(self, num_envs: int = 1, seed: int | None = None) -> Replay:
        """The replay that the configuration describes, on the agent's device.

        Raises:
            ValueError: It does not fit into memory, or no window of `n_step` rewards fits into it.
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
        """One line: what `memory` will take, before anything is allocated."""
        c = self.config
        size = Replay.size_of(
            self.observation,
            self.action,
            capacity=c.buffer_size,
            num_envs=num_envs,
            prioritised=getattr(c, "prioritised", False),
        )
        return f"replay: {c.buffer_size:,} transitions take {size / 1e9:.3g} GB on {self.device}"

    def penalised(self, loss: Tensor, component: str, own: Tensor | None = None) -> Tensor:
        """A component's loss with what interventions add to it; `own` is its part of a loss that several share."""
        if not len(self.interventions):
            return loss
        self.unpenalised[component] = (loss if own is None else own).detach()
        return loss + self.interventions.penalty(self, component)

    def predictions(
        self, component: str, obs: Tensor, action: Tensor, networks: Mapping[str, nn.Module] | None = None
    ) -> Tensor:
        """What a component says of B observations and actions: values [B, actions] or [N, B], or a policy in the form
        of `decisions`. Gradients run through it; it draws nothing.

        Args:
            networks: By component, copies to ask in the place of the agent's own networks; all or some of them.
        """
        said: Tensor = self.asked(component, networks)(obs)
        return said

    def asked(self, component: str, networks: Mapping[str, nn.Module] | None) -> Any:
        """The network of a component among those given, or else the agent's own."""
        if networks is not None and component in networks:
            return networks[component]
        return self.components[component].online

    def slow_copy(self, online: N) -> N:
        """A frozen copy to bootstrap from. What draws in either (dropout) draws from the agent's stream."""
        for module in online.modules():
            if isinstance(module, Dropout):
                module.generator = self.generator
        # A generator cannot be copied, and must not be: the memo hands out the same one.
        return copy.deepcopy(online, memo={id(self.generator): self.generator}).requires_grad_(False)

    def tensor(self, obs: NDArray[Any] | Tensor) -> Tensor:
        """Observations on the device, in their stored type; their shape is checked."""
        if obs.shape[1:] != self.observation.shape:
            raise ValueError(
                f"observations must have the shape (batch, {', '.join(map(str, self.observation.shape))}), "
                f"not {tuple(obs.shape)}"
            )
        x = self.upload(obs)
        return x if x.dtype == self.observation.dtype else x.to(self.observation.dtype)

    def upload(self, x: NDArray[Any] | Tensor) -> Tensor:
        """A tensor on the device, without waiting for it: only from pinned memory does a copy leave the host free."""
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

    def optimizers(self) -> Iterator[tuple[str, torch.optim.Optimizer]]:
        """Every distinct optimizer, by the name of the first component that it serves."""
        seen: set[int] = set()
        for name, component in self.components.items():
            if id(component.optimizer) not in seen:
                seen.add(id(component.optimizer))
                yield name, component.optimizer

    def state_dict(self) -> dict[str, Any]:
        """Weights, targets, optimizer moments, interventions' memory and the random stream."""
        return {
            "modules": {name: dict(module.state_dict()) for name, module in self.modules()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers()},
            "generator": self.generator.get_state(),
            "host_rng": _rng_state(self.host_rng),
            "born": self.born,
        }

    def load_state_dict(self, state: dict[str, Any], *, joining: int = 0) -> None:
        """Copy a saved state into this agent's own tensors; nothing is replaced.

        Args:
            joining: How many of the last interventions the saved agent did not have. They stay as they were born, and
                so does what the networks hold for them alone.

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
        self.born = state.get("born", 0)

    def _refuse_unmatched(self, missing: Sequence[str], unknown: Sequence[str], joining: int | None) -> None:
        """Of a state that was loaded leniently: nothing in it may be left over, and of the interventions only
        those that join may be without one (KeyError)."""
        if unknown:
            raise KeyError(f"there is no {unknown[0]} here")
        if joining is not None:
            new = tuple(f"parts.{len(self.interventions) - 1 - i}." for i in range(joining))
            if lacking := [key for key in missing if not key.startswith(new)]:
                raise KeyError(f"the saved state has no {lacking[0]}")

    def reseed(self, seed: int) -> None:
        """Let everything random in it be drawn from another seed from now on."""
        self.generator.manual_seed(derive_seed(seed, "noise"))
        self.host_rng = np.random.Generator(np.random.PCG64(derive_seed(seed, "host noise")))
        for i, part in enumerate(self.interventions):
            for inner in part.modules():
                if isinstance(inner, Intervention) and "generator" in inner.__dict__:
                    inner.generator.manual_seed(derive_seed(seed, f"intervention {i} {inner.name}"))

    def content(self) -> dict[str, Any]:
        """All that `load` needs: what the agent was built from, and its state."""
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
        """Write the whole agent to one file, atomically; `load` needs nothing else."""
        path = Path(path)
        scratch = path.with_name(path.name + ".tmp")
        torch.save(self.content(), scratch)
        os.replace(scratch, path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        interventions: Sequence[Intervention] = (),
        device: str | torch.device = "cpu",
    ) -> Self:
        """The agent that `save` wrote, ready to act and to learn on.

        Raises:
            FileNotFoundError: No such file.
            BadFile: The file holds no agent, or not all of one (a ValueError).
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
        """The agent that `content` described; `path` says in errors where it came from (BadFile, ValueError)."""
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
    """The state of a PCG64 generator; its 128-bit integers as text, which every format can hold."""
    state = rng.bit_generator.state
    words = {key: str(value) for key, value in state["state"].items()}
    return {"state": words, "has_uint32": state["has_uint32"], "uinteger": state["uinteger"]}


def _set_rng_state(rng: np.random.Generator, saved: dict[str, Any]) -> None:
    words = {key: int(value) for key, value in saved["state"].items()}
    rng.bit_generator.state = {**saved, "bit_generator": "PCG64", "state": words}


def check_off_policy(config: Any) -> None:
    """Check the configuration of an agent with a replay: every number, and windows against the replay.

    Raises:
        ValueError: A number is not in its range, or no window of `n_step` rewards fits into the replay.
    """
    check_numbers(config)
    if config.n_step >= config.buffer_size:
        raise OutOfRange(
            "n_step",
            f"must be below buffer_size = {config.buffer_size:,}, not {config.n_step:,}: no window of so many rewards "
            "fits into the replay",
        )


@torch.no_grad()
def sync_target_(component: Component[Any], tau: float) -> None:
    """target ← tau * online + (1 - tau) * target, in place, for every parameter; buffers are copied."""
    if tau == 1.0:
        torch._foreach_copy_(component.followers, component.followed)
    else:
        torch._foreach_lerp_(component.followers, component.followed, tau)
    for mine, theirs in component.buffers:
        mine.copy_(theirs)


def gaussian_kl(before: Tensor, after: Tensor) -> Tensor:
    """Mean KL divergence of diagonal Gaussians, of the first from the second (0-d); each is means and log deviations
    [2, B, A]."""
    (mean, log_std), (new_mean, new_log_std) = precise(before), precise(after)
    moved = (mean - new_mean) / new_log_std.exp()
    divergence = 0.5 * (beyond_first_order(2 * (log_std - new_log_std)) + moved.square()).sum(dim=1)
    return divergence.clamp(min=0).mean().to(after.dtype)


def categorical_kl(before: Tensor, after: Tensor) -> Tensor:
    """Mean KL divergence of categorical distributions, of the first from the second (0-d); each is log-probabilities
    [B, actions], which are normalised anew, since the sum of rounded ones is 1 to seven digits only."""
    old, new = precise(before).log_softmax(dim=1), precise(after).log_softmax(dim=1)
    change, p = new - old, old.exp()
    # Where a probability grows much nothing cancels, and the exponential of the change may be infinite.
    small = p * beyond_first_order(change.clamp(max=1.0))
    divergence = torch.where(change < 1.0, small, new.exp() - p * (1 + change)).sum(dim=1)
    return divergence.clamp(min=0).mean().to(after.dtype)


def beyond_first_order(x: Tensor) -> Tensor:
    """exp(x) - 1 - x, never negative. It is the divergence of what has changed by x, which after one update is of the
    order of 1e-8: in single precision the rounding of exp(x) alone would be larger."""
    return x.expm1() - x


def plain(config: Any) -> dict[str, Any]:
    """A configuration as nested dicts of numbers, strings and lists."""
    return {
        f.name: plain(value)
        if is_dataclass(value := getattr(config, f.name))
        else list(value)
        if isinstance(value, tuple)
        else value
        for f in fields(config)
    }


def restore(cls: type[Any], values: dict[str, Any]) -> Any:
    """The inverse of `plain`: defaults tell which fields are configurations themselves, and which are tuples."""
    default = cls()
    unknown = set(values) - {f.name for f in fields(cls)}
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {', '.join(sorted(unknown))}")
    given = {
        name: restore(type(old), value)
        if is_dataclass(old := getattr(default, name))
        else tuple(value)
        if isinstance(old, tuple)
        else value
        for name, value in values.items()
    }
    return cls(**given)

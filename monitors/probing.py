"""The plasticity probe: how well a copy of a module learns new targets, compared with a fresh module.

Copies of the module are trained for a fixed budget on newly drawn targets, on the agent's own states. Two controls are
trained on the same data, in the same order and on the same targets: a freshly initialised module, and one whose layers
are rescaled to the norms of the agent's layers, which isolates the effect of the norms.

    agent       a copy of the agent's module, with a new optimizer
    present     a copy of the agent's module, with the agent's present optimizer state for it
    fresh       a module drawn from the initialiser
    rescaled    the same draw, with every tensor of every layer scaled to the norm of the agent's tensor

    fit   = 1 - final loss / variance of the targets                   1: learnt, 0: no better than a constant
    ratio = mean fit of the agent's copies / mean fit of the fresh modules     1: as plastic as new, 0: learns nothing

In a ratio, fits below zero count as zero; if the control itself learns nothing, there is no ratio (nan).

Targets are standardised and added to the initial outputs of each arm: every arm starts at a fit of zero, however
large its outputs are. (Lyle et al. 2023, 2303.01486, shift their targets by the mean output in a similar way; with
`relative=False` targets are not added to outputs, as in Lyle et al. 2022, 2204.09560.)

    random    the outputs of another freshly initialised module on the states (Lyle et al. 2022)
    noise     standard normal numbers: memorisation
    replay    the agent's temporal-difference targets on the batch
    next      the same on a batch of the next task

The last two kinds are one number per state. They are compared with the output for the action taken. If that output is a
vector (a distributional value head), or the module outputs no values (actor, encoder), they are compared with a random
linear readout of the outputs. For the other kinds, features of an encoder are projected to a few outputs, too. Each
repetition has its own readouts, which all arms share.

Nothing here changes the agent: only copies are trained, and all random numbers follow from the seed. Training does not
wait for the device; `probe` waits once, for the losses.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_leaves  # noqa: PLC2701

from ..agents.agent import Agent
from ..agents.networks import Dropout, Injection, Layer, all_layers
from ..agents.optimizers import Adam, OptimizerConfig
from ..agents.replay import Batch
from ..agents.stopping import heed
from ..agents.views import view
from ..common.moved import moved
from ..common.ranges import AT_ONCE, Positive, Samples, SomeUpdates, at_least, check_numbers
from ..common.seeds import derive_seed
from ..interventions.core.spec import did_you_mean
from ..interventions.external.networks import read_network

TargetKind = Literal["random", "noise", "replay", "next"]
Control = Literal["drawn", "initial"]
ARMS = ("agent", "present", "fresh", "rescaled")
FEATURES = "encoder"  # the module whose outputs are features, which need a readout
CHUNK = 256  # states in one forward pass without gradients
RESAMPLES = 2_000  # bootstrap resamples


Draws: TypeAlias = Annotated[int, at_least(1, most=10_000, why="each is trained separately")]


@dataclass(frozen=True)
class Budget:
    """The training budget of every arm.

    Attributes:
        steps: Gradient steps.
        batch_size: States per gradient step.
        draws: Repetitions, each with its own targets, controls, readout and order of the data.
        lr: Learning rate of Adam.
        relative: Targets are added to the initial outputs of the copy.
        outputs: Number of outputs that features are projected to.
    """

    steps: SomeUpdates = 100
    batch_size: Samples = 64
    draws: Draws = 10
    lr: Positive = 1e-3
    relative: bool = True
    outputs: Annotated[int, at_least(1, most=1_000_000, why=AT_ONCE)] = 4

    def __post_init__(self) -> None:
        check_numbers(self)

    @classmethod
    def of(cls, pixels: bool, steps: int | None, batch_size: int | None, **others: Any) -> Budget:
        """A budget within which even a fresh network does not fit the targets fully, so that slower learning shows. The
        fit of a fresh network on random targets is about 0.9 on vectors and 0.5 on images, whose convolutions take a
        hundred times as long."""
        default = (60, 16) if pixels else (100, 64)
        return cls(steps or default[0], batch_size or default[1], **others)


@dataclass(frozen=True)
class Subject:
    """A module to be probed.

    Attributes:
        module: Never changed, never run.
        inputs: Its inputs [N, ...] each.
        values: Kind of target → one number per state [N].
        action: Actions whose outputs these numbers belong to [N] int64, if the module outputs [N, actions, outputs].
        features: The outputs are features, which need a readout for every kind of target.
        memory: The optimizer's state, by parameter; empty if there is none.
        initial: The same module with its initial weights, for `control="initial"`.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    values: Mapping[str, Tensor] = field(default_factory=dict)
    action: Tensor | None = None
    features: bool = False
    memory: Mapping[Tensor, Mapping[str, Tensor]] = field(default_factory=dict)
    initial: nn.Module | None = None


@dataclass(frozen=True)
class Probe:
    """The result of one module on one kind of target.

    Attributes:
        module: Name of the module.
        target: Kind of target.
        losses: Final mean squared errors [arms, draws], in the order of `ARMS`; nan for an arm that was not run.
        variance: Variance of the targets [draws].
        seed: Seed of the bootstrap.
    """

    module: str
    target: str
    losses: NDArray[np.float64]
    variance: NDArray[np.float64]
    seed: int = 0

    @classmethod
    def of(cls, module: str, target: str, rows: NDArray[Any], seed: int = 0) -> Probe:
        """From the rows that `experiment` returns [arms + 1, draws]."""
        rows = np.asarray(rows, np.float64)
        return cls(module, target, rows[:-1], rows[-1], seed)

    @property
    def fits(self) -> dict[str, NDArray[np.float64]]:
        """Arm → 1 - loss / variance [draws]; nan if the target does not vary."""
        with np.errstate(divide="ignore", invalid="ignore"):
            fits = np.where(self.variance > 0, 1 - self.losses / self.variance, np.nan)
        return dict(zip(ARMS, fits, strict=True))

    @property
    def ratio(self) -> float:
        """Plasticity: mean fit of the agent's copies over that of fresh modules."""
        return self._ratio("agent", "fresh")

    @property
    def ratio_present(self) -> float:
        """The same with the agent's optimizer state."""
        return self._ratio("present", "fresh")

    @property
    def ratio_rescaled(self) -> float:
        """The ratio to fresh modules that are scaled to the norms of the agent's tensors."""
        return self._ratio("agent", "rescaled")

    @property
    def loss_ratio(self) -> float:
        """Mean final loss of the agent's copies over that of fresh modules."""
        agent, _, fresh, _ = self.losses.mean(axis=1)
        return float(agent / fresh) if fresh > 0 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % percentile interval of the ratio, by a paired bootstrap over draws."""
        fits, draws = self.fits, len(self.variance)
        agent, fresh = fits["agent"], fits["fresh"]
        if not np.isfinite(self.ratio):
            return math.nan, math.nan
        chosen = np.random.default_rng(self.seed).integers(draws, size=(RESAMPLES, draws))
        control = fresh[chosen].mean(axis=1)
        # If the controls of a resample learn nothing, its ratio counts as infinite.
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(control > 0, np.maximum(agent[chosen].mean(axis=1), 0) / control, np.inf)
        low, high = np.quantile(ratios, [0.025, 0.975], method="inverted_cdf")
        return float(low), float(high)

    def _ratio(self, arm: str, control: str) -> float:
        mean = {name: fit.mean() for name, fit in self.fits.items()}
        return float(np.maximum(mean[arm], 0) / mean[control]) if mean[control] > 0 else math.nan

    def json(self) -> dict[str, Any]:
        """Plain values; None for numbers that are not finite."""
        numbers = {
            "ratio": self.ratio,
            "low": self.interval[0],
            "high": self.interval[1],
            "rescaled": self.ratio_rescaled,
            "present_optimizer": self.ratio_present,
            "loss_ratio": self.loss_ratio,
        }
        fits = {arm: [_plain(x) for x in fit] for arm, fit in self.fits.items()}
        return {
            "module": self.module,
            "target": self.target,
            **{key: _plain(x) for key, x in numbers.items()},
            "fits": fits,
            "variance": [_plain(x) for x in self.variance],
        }


def pooled(name: str, probes: Sequence[Probe]) -> Probe:
    """Pool the members of an ensemble: the mean of their fits, for each repetition."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.stack([np.where(p.variance > 0, p.losses / p.variance, np.nan) for p in probes])
    losses: NDArray[np.float64] = shares.mean(axis=0)
    return Probe(name, probes[0].target, losses, np.ones(losses.shape[1]), probes[0].seed)


@dataclass(frozen=True)
class Probes:
    """The results of `probe`, by module and kind of target."""

    probes: tuple[Probe, ...]
    budget: Budget

    def __getitem__(self, key: tuple[str, str]) -> Probe:
        return {(p.module, p.target): p for p in self.probes}[key]

    def __iter__(self) -> Any:
        return iter(self.probes)

    def table(self) -> str:
        """A human-readable table: one line per module and kind of target."""
        head = ("module", "target", "ratio", "95 % interval", "rescaled", "present", "fit", "fresh fit")
        rows: list[tuple[str, ...]] = [head]
        for p in self.probes:
            low, high = p.interval
            fits = p.fits
            numbers = [p.ratio_rescaled, p.ratio_present, fits["agent"].mean(), fits["fresh"].mean()]
            rows.append((p.module, p.target, _short(p.ratio), f"{_short(low)} … {_short(high)}", *map(_short, numbers)))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]

        def line(row: tuple[str, ...]) -> str:
            names = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
            numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
            return "  ".join([*names, *numbers])

        return "\n".join(map(line, rows))

    def json(self) -> dict[str, Any]:
        """Plain values."""
        return {"budget": dict(vars(self.budget)), "probes": [p.json() for p in self.probes]}


def probe(
    agent: Agent,
    batch: Batch,
    *,
    modules: Sequence[str] | None = None,
    targets: Sequence[TargetKind] = ("random", "replay"),
    draws: int = 10,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float = 1e-3,
    seed: int = 0,
    relative: bool = True,
    control: Control = "drawn",
    next_batch: Batch | None = None,
    outputs: int = 4,
) -> Probes:
    """How plastic an agent's modules are, on the states of a batch of N transitions.

    Args:
        modules: Names as in `agent.probed`; all if None.
        targets: Kinds of target: random, noise, replay; next, if there is a `next_batch`.
        draws: Repetitions; a meaningful interval needs ten or more.
        steps: Gradient steps; if None 100, or 60 on images.
        batch_size: States per gradient step; if None 64, or 16 on images.
        lr: Learning rate of Adam, in all arms.
        seed: Seed of all random numbers.
        relative: Add targets to the initial outputs of a copy; False uses the targets alone.
        control: drawn: the fresh control of each draw is initialised from the seed. initial: it is the agent's module
            with its initial weights.
        next_batch: Transitions of the next task.
        outputs: Number of outputs that an encoder's features are projected to.

    Raises:
        ValueError: No such module or kind of target, or a budget out of range.
    """
    check_targets(targets)
    if ("next" in targets) != (next_batch is not None):
        raise ValueError("targets of the next task need both targets=('next', ...) and next_batch=...")
    if str(control) == (former := "born"):  # a former name
        raise ValueError(f"control={former!r} is called control='initial' now")
    if control not in get_args(Control):
        raise ValueError(f"control must be 'drawn' or 'initial', not {control!r}")
    budget = Budget.of(
        agent.observation.pixels, steps, batch_size, draws=draws, lr=lr, relative=relative, outputs=outputs
    )
    initial = agent.fresh_copy() if control == "initial" else None
    here = subjects(agent, batch, "replay", modules, initial)
    there = {} if next_batch is None else subjects(agent, next_batch, "next", modules, initial)
    probes = []
    for name, subject in here.items():
        rows = experiment(subject, [kind for kind in targets if kind != "next"], budget, seed)
        if name in there:
            rows |= experiment(there[name], ["next"], budget, seed)
        probes += [Probe.of(name, kind, rows[kind].double().cpu().numpy(), seed) for kind in targets]
    return Probes(tuple(probes), budget)


def check_targets(targets: Iterable[str]) -> None:
    """Refuse unknown kinds of target (ValueError)."""
    known = get_args(TargetKind)
    if unknown := [kind for kind in targets if kind not in known]:
        hint = did_you_mean(unknown[0], known)
        raise ValueError(f"unknown target {unknown[0]!r}.{hint} known targets: {', '.join(known)}")


@torch.no_grad()
def subjects(
    agent: Agent, batch: Batch, kind: str, modules: Sequence[str] | None = None, initial_agent: Agent | None = None
) -> dict[str, Subject]:
    """The modules of an agent that can be probed, by name, with temporal-difference targets called `kind`.

    Args:
        initial_agent: The agent with its initial weights, if its modules are the control.
    """
    probed = view(agent).probed(batch)
    names = list(probed) if modules is None else list(modules)
    if unknown := [name for name in names if name not in probed]:
        raise ValueError(
            f"this {agent.name} has no module {unknown[0]!r} to be probed.{did_you_mean(unknown[0], probed)} "
            f"It has {', '.join(probed)}"
        )
    values = {kind: temporal_difference_targets(agent, batch)}
    memory = {p: state for _, optimizer in agent.optimizers() for p, state in optimizer.state.items()}
    initial = {} if initial_agent is None else view(initial_agent).probed(batch)
    action = batch.action if agent.action.discrete else None
    return {
        name: Subject(
            name,
            probed[name][0],
            probed[name][1],
            values,
            action,
            name == FEATURES,
            memory,
            initial[name][0] if initial else None,
        )
        for name in names
    }


@torch.no_grad()
def temporal_difference_targets(agent: Agent, batch: Batch) -> Tensor:
    """r + gamma^n min Q⁻(s', a'), a' the greedy action, without an entropy bonus [N]; it draws no random number."""
    following = batch.replace(obs=batch.next_obs, action=agent.act(batch.next_obs))
    return torch.addcmul(batch.reward, batch.discount, view(agent).values(following, target=True).amin(dim=0))


# --------------------------------------------------------------------------------------------------- experiment


def experiment(subject: Subject, kinds: Sequence[str], budget: Budget, seed: int) -> dict[str, Tensor]:
    """Train all arms on all draws; the host never waits.

    Returns:
        Kind of target → final losses of the arms, and in the last row the variance of the targets
        [arms + 1, draws], on the device.
    """
    bench = Bench(subject, budget)
    rows: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    own = bench.start()
    for draw in range(budget.draws):
        streams = Streams(seed, subject.name, draw, bench.device)
        order = torch.randint(
            bench.samples, (budget.steps, budget.batch_size), generator=streams("order"), device=bench.device
        )
        bench.draw_readouts(streams("readout"))
        goals = {kind: bench.goal(kind, streams) for kind in kinds}
        bench.load_control_(streams("control"))
        fresh = bench.start()
        bench.rescale_(own)
        starts = {"agent": own, "present": own, "fresh": fresh, "rescaled": bench.start()}
        for kind, goal in goals.items():
            losses = [bench.trained(arm, start, kind, goal, order) for arm, start in starts.items()]
            rows[kind].append(torch.stack([*losses, goal.square().mean()]))
    return {kind: torch.stack(columns, dim=1) for kind, columns in rows.items()}


@dataclass(frozen=True)
class Streams:
    """The random streams of one draw, one per purpose."""

    seed: int
    name: str
    draw: int
    device: torch.device

    def __call__(self, purpose: str) -> Generator:
        return Generator(self.device).manual_seed(derive_seed(self.seed, f"{self.name}: {purpose} {self.draw}"))


@dataclass(frozen=True)
class Start:
    """The initial state of an arm: all tensors of the module, the open injections, and the outputs [N, ...]."""

    tensors: list[Tensor]
    opened: list[int]
    outputs: Tensor


class Bench:
    """One copy of a module, on which all arms are trained in turn."""

    def __init__(self, subject: Subject, budget: Budget) -> None:
        self.subject, self.budget = subject, budget
        # A generator cannot be copied; the copy is in evaluation mode and never draws from it.
        droppers = [m for m in subject.module.modules() if isinstance(m, Dropout)]
        memo: dict[int, Any] = {id(m.generator): m.generator for m in droppers}
        self.net = copy.deepcopy(subject.module, memo).eval()
        self.inputs, self.samples = subject.inputs, len(subject.inputs[0])
        self.tensors: list[Tensor] = [*self.net.parameters(), *self.net.buffers()]
        self.device = self.tensors[0].device
        self.injections = [m for m in self.net.modules() if isinstance(m, Injection)]
        self.layers = layers_of(self.net, self.inputs)
        self.weights = [p for p in self.net.parameters() if p.requires_grad]
        for p in self.weights:
            p.grad = None
        initial = subject.initial
        self.initial = None if initial is None else [t.detach() for t in (*initial.parameters(), *initial.buffers())]
        self.new = Adam(self.weights, OptimizerConfig(lr=budget.lr))
        self.present = self._present()
        self.full: Tensor | None = None
        self.single: Tensor | None = None
        with torch.no_grad():
            self.shape = self.forward(*(x[:2] for x in self.inputs)).shape[1:]

    def _present(self) -> tuple[Adam, list[Tensor], list[Tensor]] | None:
        """An optimizer, its state tensors, and the agent's values for them; None if the agent's optimizer has no
        moments of these weights."""
        pairs = list(zip(self.subject.module.parameters(), self.net.parameters(), strict=True))
        memory = {mine: self.subject.memory.get(its, {}) for its, mine in pairs if mine.requires_grad}
        if not all("exp_avg" in state and "exp_avg_sq" in state for state in memory.values()):
            return None
        adam = Adam(self.weights, OptimizerConfig(lr=self.budget.lr))
        for p, state in memory.items():
            if "filled" in state:
                adam.count_per_weight(p)
        keys = [(p, key) for p in self.weights for key in adam.state[p]]
        return adam, [adam.state[p][key] for p, key in keys], [memory[p][key].detach().clone() for p, key in keys]

    # ---------------------------------------------------------------------------------------------------- weights

    @torch.no_grad()
    def start(self) -> Start:
        """The module in its present state."""
        return Start([t.detach().clone() for t in self.tensors], [m.opened for m in self.injections], self.outputs())

    @torch.no_grad()
    def load_(self, start: Start) -> None:
        torch._foreach_copy_(self.tensors, start.tensors)
        for injection, opened in zip(self.injections, start.opened, strict=True):
            injection.opened = opened

    @torch.no_grad()
    def draw_(self, generator: Generator) -> None:
        """Reinitialise the module in place, with all its injections closed."""
        reinitialise_(self.layers.values(), generator)
        for injection in self.injections:
            injection.opened = 0

    @torch.no_grad()
    def load_control_(self, generator: Generator) -> None:
        """Set the module to the fresh control, in place."""
        self.draw_(generator)
        if self.initial is not None:
            torch._foreach_copy_(self.tensors, self.initial)

    @torch.no_grad()
    def rescale_(self, like: Start) -> None:
        """Give every tensor of every layer the norm that it has in `like`; zero tensors stay zero."""
        norms = dict(zip(self.tensors, like.tensors, strict=True))
        for layer in self.layers.values():
            for _, p in layer.named_parameters():
                norm = torch.linalg.vector_norm(p)
                target = torch.linalg.vector_norm(norms[p])
                p.mul_(torch.where(norm > 0, target / norm, 1.0))

    # ---------------------------------------------------------------------------------------------------- outputs

    def forward(self, *inputs: Tensor) -> Tensor:
        """[B, actions, outputs] if the module has outputs for every action, else [B, F]."""
        out = self.net(*inputs)
        if isinstance(out, Tensor) and out.ndim == 3 and self.subject.action is not None:
            return out
        return torch.cat([x.flatten(1).float() for x in tree_leaves(out) if isinstance(x, Tensor)], dim=1)

    @torch.no_grad()
    def outputs(self) -> Tensor:
        """The outputs on all states."""
        parts = []
        for i in range(0, self.samples, CHUNK):
            heed()
            parts.append(self.forward(*(x[i : i + CHUNK] for x in self.inputs)))
        return torch.cat(parts)

    def draw_readouts(self, generator: Generator) -> None:
        """Draw the two readouts: one projects features to a few outputs, the other any outputs to one number."""
        width = self.shape[-1]

        def draw(outputs: int) -> Tensor:
            return torch.randn(width, outputs, generator=generator, device=self.device) / math.sqrt(width)

        self.full = draw(self.budget.outputs) if self.subject.features else None
        self.single = draw(1) if width > 1 else None

    def read(self, kind: str, out: Tensor, index: Tensor | None = None) -> Tensor:
        """The outputs that are compared with a target of this kind [B, K], for the states of `index` (all if None)."""
        if kind in ("random", "noise"):
            out = out.flatten(1)
            return out if self.full is None else out @ self.full
        if out.ndim == 3:
            assert self.subject.action is not None
            action = self.subject.action if index is None else self.subject.action.index_select(0, index)
            out = out.gather(1, action.view(-1, 1, 1).expand(-1, 1, out.shape[2])).squeeze(1)
        return out if self.single is None else out @ self.single

    @torch.no_grad()
    def goal(self, kind: str, streams: Streams) -> Tensor:
        """Standardised targets [N, K]."""
        if kind in self.subject.values:
            return standardised(self.subject.values[kind].float().unsqueeze(1))
        if kind == "random":
            self.draw_(streams("target"))
            return standardised(self.read(kind, self.outputs()))
        width = math.prod(self.shape) if self.full is None else self.budget.outputs
        noise = torch.randn(self.samples, width, generator=streams("noise"), device=self.device)
        return standardised(noise)

    # --------------------------------------------------------------------------------------------------- learning

    def trained(self, arm: str, start: Start, kind: str, goal: Tensor, order: Tensor) -> Tensor:
        """The mean squared error on all states after the budget (0-d); nan if there is no such arm."""
        if arm == "present" and self.present is None:
            return torch.full((), torch.nan, device=self.device)
        self.load_(start)
        adam = self._begin(arm)
        with torch.no_grad():
            wanted = goal + self.read(kind, start.outputs) if self.budget.relative else goal
        with torch.enable_grad():
            for index in order.unbind():
                heed()
                out = self.forward(*(x.index_select(0, index) for x in self.inputs))
                loss = (self.read(kind, out, index) - wanted.index_select(0, index)).square().mean()
                gradients = torch.autograd.grad(loss, self.weights, allow_unused=True, materialize_grads=True)
                with torch.no_grad():
                    adam.apply(adam.param_groups[0], list(gradients))
        with torch.no_grad():
            return (self.read(kind, self.outputs()) - wanted).square().mean()

    @torch.no_grad()
    def _begin(self, arm: str) -> Adam:
        """The arm's optimizer, with its initial state."""
        if arm == "present":
            assert self.present is not None
            adam, memory, initial = self.present
            torch._foreach_copy_(memory, initial)
            return adam
        torch._foreach_zero_([value for p in self.weights for value in self.new.state[p].values()])
        return self.new


def layers_of(net: nn.Module, inputs: Sequence[Tensor]) -> Mapping[str, Layer]:
    """The layers that can be reinitialised, by name: pliant's own, or those read from an external network.

    Raises:
        NotMeasurable: An external network is not understood; the message names the reason.
    """
    own = all_layers(net)
    if own:
        return own
    example = tuple(x[:2] for x in inputs)
    return read_network(net, lambda: net(*example), name="network", encoder="encoder", init="torch").layers


@torch.no_grad()
def reinitialise_(layers: Iterable[Layer], generator: Generator) -> None:
    """Reinitialise all layers by their initialisers, in place."""
    for layer in layers:
        for key, value in layer.fresh(generator).items():
            layer.get_parameter(key).copy_(value)


def standardised(y: Tensor) -> Tensor:
    """Mean 0 and variance 1 in every column [N, K]; a column that does not vary is all zeros."""
    mean = y.mean(dim=0)
    centred = y - mean
    scale = centred.square().mean(dim=0).sqrt()
    # Differences of the size of rounding errors do not count as variation.
    varies = scale > 1e-5 * mean.abs() + 1e-30
    return torch.where(varies, centred / torch.where(varies, scale, 1.0), 0.0)


def _plain(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def _short(x: float) -> str:
    return f"{x:.3f}" if np.isfinite(x) else "-"


__all__ = [
    "ARMS",
    "Bench",
    "Budget",
    "Probe",
    "Probes",
    "Streams",
    "Subject",
    "check_targets",
    "experiment",
    "layers_of",
    "pooled",
    "probe",
    "reinitialise_",
    "standardised",
    "subjects",
    "temporal_difference_targets",
]

__getattr__ = moved(__name__, {"newborn_": f"{__name__}.reinitialise_"})  # a former name

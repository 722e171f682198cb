"""Measurements of a saved agent, or of any torch module, by the monitors, for `pliant inspect`.

The result contains the values that the run's own monitors would have measured at its next update, on states from its
replay. One update is made, on a copy in memory; no file is written.

For a module that is not an agent, the monitors of weights and outputs are available: units, norms, ranks, probe.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor, nn

from pliant.agents import Agent, Batch, Clock
from pliant.agents.checkpoint import Checkpoint
from pliant.agents.clock import Every, Never, Sampling
from pliant.agents.hooks import sample_like_training
from pliant.agents.networks import ReLU
from pliant.agents.rollout import Rollout
from pliant.agents.saved import read_torch
from pliant.common.moved import moved
from pliant.common.ranges import AT_ONCE, at_least
from pliant.common.seeds import derive_seed
from pliant.envs import EnvConfig, make
from pliant.interventions.core.spec import did_you_mean, parse
from pliant.interventions.external.networks import ExternalNetwork, ExternalSurvey, read_network
from pliant.lab.errors import BadInput
from pliant.lab.experiments.config import RunConfig
from pliant.lab.experiments.own_modules import refuse_others
from pliant.lab.experiments.saved import check_fits, read_saved
from pliant.monitors import MONITORS, watch
from pliant.monitors.base import Finding, Known, Monitor, MonitorContext, Monitors
from pliant.monitors.dashboard import Picture
from pliant.monitors.probe import ProbeMonitor, readings
from pliant.monitors.probing import Budget, Probe, Subject, experiment
from pliant.monitors.registry import built, check_monitors, expand, measurer

SAMPLES = 2_048  # states that are collected by playing, or drawn
States: TypeAlias = Annotated[int, at_least(2, "states", most=1_000_000, why=AT_ONCE)]
MOST_NUMBERS = 2**30  # numbers that may be drawn
WIDTH = 118  # columns of the table
PLAIN = ("units", "norms", "ranks", "probe")  # monitors that need only weights and outputs
LATE = 10**12  # environment steps after which no exploration schedule is still running


@dataclass
class Inspection:
    """The result of an inspection.

    Attributes:
        source: The file or checkpoint.
        about: Description of the agent and of the states used, as plain values.
        metrics: Key → number; undefined metrics are left out.
        skipped: Monitor → the reason why it was skipped.
        notes: Remarks for the user.
    """

    source: str
    about: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, key: str, value: float) -> None:
        """Add a number, unless it is NaN or infinite."""
        if math.isfinite(value):
            self.metrics[key] = value

    def json(self) -> dict[str, Any]:
        measured = {"notes": self.notes, "skipped": self.skipped, "metrics": self.metrics}
        return {"source": self.source, **self.about, **measured}

    def __str__(self) -> str:
        about = ", ".join(f"{key} {value}" for key, value in self.about.items())
        lines = [self.source, f"  {about}", *(f"  {note}" for note in self.notes)]
        lines += [f"  not measured: {name} ({why})" for name, why in self.skipped.items()]
        sections: dict[str, dict[str, dict[str, float]]] = {}
        for key, value in self.metrics.items():
            place, _, metric = key.rpartition("/")
            sections.setdefault(measurer(metric) or "others", {}).setdefault(metric, {})[place] = value
        for name, rows in sections.items():
            lines += ["", name, *_table(rows)]
        return "\n".join(lines)


def _table(rows: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Metrics by place, in blocks that fit the width of a screen."""
    places = list(dict.fromkeys(place for row in rows.values() for place in row))
    first = max(map(len, rows))
    cells = {p: {m: f"{row[p]:.4g}" for m, row in rows.items() if p in row} for p in places}
    widths = {p: max(len(p), *map(len, cells[p].values())) for p in places}
    while places:
        shown = [places.pop(0)]
        while places and first + sum(widths[p] + 2 for p in (*shown, places[0])) + 2 <= WIDTH:
            shown.append(places.pop(0))
        yield f"  {'':<{first}}" + "".join(f"  {p:>{widths[p]}}" for p in shown)
        for metric in rows:
            if any(metric in cells[p] for p in shown):
                yield f"  {metric:<{first}}" + "".join(f"  {cells[p].get(metric, ''):>{widths[p]}}" for p in shown)


# ------------------------------------------------------------------------------------------------------ agents


@dataclass
class Loaded:
    """An agent to inspect, with its saved clock, memory and configuration."""

    agent: Agent
    clock: Clock
    source: str
    memory: Any = None
    checkpoint: Checkpoint | None = None
    config: RunConfig | None = None


def load_agent(path: Path, device: str, interventions: Sequence[str] = ()) -> Loaded:
    """The agent in a run's folder, a checkpoint or a file, on any device.

    `interventions` are those of an agent file; those of a run come from its configuration (BadInput, and the errors of
    `read_saved`).
    """
    saved = read_saved(path, whole=True, otherwise="; for the weights of your own module, give --module")
    if saved.config is not None and interventions:
        raise BadInput(f"--interventions is for an agent's file; {path} belongs to a run with its own")
    agent, checkpoint = saved.build(device, interventions), saved.checkpoint
    if checkpoint is None:
        return Loaded(agent, Clock(), saved.source)
    state = checkpoint.load("replay")
    memory = agent.memory(state["made_for"]["num_envs"])
    own = memory.state_dict()
    # An inspection draws from its own generator: the saved one may belong to another device.
    here = {key: value for key, value in own["made_for"].items() if key == "device"}
    state |= {"generator": own["generator"], "made_for": state["made_for"] | here}
    memory.load_state_dict(state)
    checkpoint.restore(memory)
    return Loaded(agent, Clock(**checkpoint.load("loop")["clock"]), saved.source, memory, checkpoint, saved.config)


class GivenMemory:
    """A memory that holds given transitions."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def sample(
        self, batch_size: int, n_step: int = 1, gamma: float = 0.99, generator: Generator | None = None
    ) -> Batch:
        """A sample with replacement."""
        device = self.batch.reward.device
        return self.batch.take(torch.randint(len(self.batch.reward), (batch_size,), generator=generator, device=device))


def memory_from_file(agent: Agent, path: Path) -> GivenMemory:
    """Observations from a file, each as the last of an episode without reward."""
    array = _array(path, "--observations")
    spec = agent.observation
    if array.shape[1:] != spec.shape or not len(array):
        raise BadInput(
            f"--observations {path}: the shape is {array.shape}, but this {agent.name} reads "
            f"(N, {', '.join(map(str, spec.shape))})"
        )
    if spec.pixels and array.dtype != np.uint8:
        raise BadInput(f"--observations {path}: the type is {array.dtype}, but this {agent.name} reads images of uint8")
    obs = torch.from_numpy(array).to(agent.device, spec.dtype)
    zeros = torch.zeros(len(obs), device=agent.device)
    index = torch.arange(len(obs), device=agent.device)
    return GivenMemory(Batch(obs, agent.act(obs), zeros, zeros, obs, zeros + 1, index))


def memory_from_play(
    agent: Agent, env: str, config: EnvConfig, samples: int, n_step: int, seed: int, **moment: Any
) -> Any:
    """A replay of transitions that the agent collects in an environment, with the exploration of the end of training:
    `samples` transitions with complete windows of `n_step` steps, or one rollout if the agent learns from rollouts."""
    envs = make(env, num_envs=1, seed=seed, config=config, evaluation=True, **moment)
    try:
        check_fits(agent, envs)
        memory = agent.memory(1)
        obs = envs.reset()
        memory.start(obs)
        clock = Clock(steps=LATE)
        for _ in range(memory.length if isinstance(memory, Rollout) else samples + n_step - 1):
            action = agent.act(obs, clock).cpu().numpy()
            step = envs.step(action)
            memory.add(action, step)
            obs = step.obs
        if isinstance(memory, Rollout):
            memory.held = memory.complete(agent.sampling(clock).gamma)
        return memory
    finally:
        envs.close()


def select_monitors(
    specs: Sequence[str] | None, agent: Agent, env: str | None, probe: bool, inspection: Inspection
) -> list[str]:
    """The monitors to use: the requested ones, or all that apply.

    Raises:
        ValueError: A requested monitor is unknown, does not suit the agent, or needs an environment.
    """
    named = specs is not None
    wanted = expand(check_monitors(specs)) if specs is not None else list(MONITORS)
    selected = []
    for spec in wanted:
        name = parse(spec).name
        part = built([spec])[0]
        if name == ProbeMonitor.name and not probe:
            continue
        try:
            if part.plays and env is None:
                raise ValueError(
                    f"{name} plays its own episodes: give --env; for a run, name the monitor in --monitors"
                )
            if type(part).follow is not Monitor.follow:
                raise ValueError(
                    f"{name} trains together with a run, so it cannot measure a saved agent: use pliant fork"
                )
            # A trial, so that a monitor that does not suit the agent does not affect the others.
            part.to(agent.device)
            part.bind(agent)
        except ValueError as error:
            if named:
                raise
            inspection.skipped[name] = " ".join(str(error).split())
        else:
            selected.append(spec)
    return selected


def inspect_agent(
    saved: Loaded, monitors: Monitors, inspection: Inspection, *, seed: int, fresh_envs: Any = None
) -> None:
    """Apply monitors to one update of an agent, and between two steps."""
    agent = saved.agent
    # An update at which all components are trained.
    period = getattr(agent.config, "actor_period", 1)
    updates = (saved.clock.updates // period + 1) * period
    clock = replace(saved.clock, updates=updates, last_updates=updates - 1)
    run = SimpleNamespace(agent=agent, clock=clock, memory=saved.memory, log=None, fresh_envs=fresh_envs)
    between = [part for part in monitors.parts.values() if part.plays]
    for part in between:
        for key, value in part.between(run):
            if not isinstance(value, Picture):
                inspection.add(key, value)
    for part in monitors.parts.values():
        part.when = Never() if part in between else Every(1)
    generator = Generator(agent.device).manual_seed(derive_seed(seed, "inspect"))
    batch = sample_like_training(run, agent.sampling(clock).batch_size, generator)
    monitors.before_update(run)
    with agent.drawing_from(generator):
        update = agent.update(batch, agent.plan(clock))
    monitors.after_update(run, update)
    for arrived in monitors.arrive():
        for key, value in arrived.values.items():
            inspection.add(key, value)


# ------------------------------------------------------------------------------------------------- plain modules


class PlainNetworkView:
    """The part of `AgentView` that monitors of weights and outputs use."""

    def __init__(self, agent: PlainNetwork) -> None:
        self.activations = agent.activations


class PlainNetwork:
    """The interface that monitors of weights and outputs need, for a module that is not an agent's."""

    view_class = PlainNetworkView
    name, seed, dropouts, interventions = "network", 0, (), ()
    observation = SimpleNamespace(pixels=False)

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.module, self.inputs = module.eval(), inputs
        self.device = inputs[0].device
        self.external: ExternalNetwork = read_network(
            module, lambda: module(*(x[:2] for x in inputs)), name="network", encoder="encoder", init="torch"
        )
        taps = {"network": list(self.external.places)}
        self.survey = ExternalSurvey("network", dict(self.external.layers), {}, self.external.graph, taps)
        for name, h in zip(self.external.places, self.activations(self.batch())["network"], strict=True):
            # A module does not show which activation its forward applies, but the outputs of ReLU are recognisable.
            rectified = bool((h >= 0).all() and (h == 0).any())
            self.external.layers[name].activation = ReLU() if rectified else nn.Identity()

    def optimizers(self) -> Iterator[Any]:
        return iter(())

    def sampling(self, clock: Clock) -> Sampling:
        return Sampling(len(self.inputs[0]), 1, 1.0, 1.0)

    def batch(self) -> Any:
        """All inputs, as the states of a batch."""
        return SimpleNamespace(obs=self.inputs)

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        """The interface of a memory: returns all inputs."""
        return self.batch()

    @torch.no_grad()
    def activations(self, batch: Any) -> dict[str, list[Tensor]]:
        """The outputs of each layer's units, as their consumers receive them."""
        places = {name: here[0] for name, here in self.external.places.items()}
        seen: dict[nn.Module, Tensor] = {}

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[module] = args[0] if args else kwargs["input"]

        handles = [
            m.register_forward_pre_hook(note, with_kwargs=True) for m in {place.consumer for place in places.values()}
        ]
        try:
            self.module(*batch.obs)
        finally:
            for handle in handles:
                handle.remove()
        return {"network": [place.take(seen[place.consumer]).float() for place in places.values()]}


def inspect_module(network: PlainNetwork, specs: Sequence[str], inspection: Inspection, *, seed: int) -> None:
    """Apply the monitors of weights and outputs to a module, and probe it."""
    lost = {
        name: {key: torch.full_like(p, torch.nan) for key, p in layer.named_parameters()}
        for name, layer in network.survey.layers.items()
    }  # the initial weights are unknown: comparisons with them are left out
    agent: Any = network
    watched = Known(network.survey, agent, network.survey, lost)
    clock = Clock(updates=1)
    for part in built([_on_all(spec, len(network.inputs[0])) for spec in specs]):
        if isinstance(part, ProbeMonitor):
            for key, value in _probed(network, part, seed):
                inspection.add(key, value)
            continue
        part.to(network.device)
        part.bind(agent)
        context = MonitorContext(agent, clock, network, watched)
        part.before_update(context)
        for key, tensor in part.measure(context):
            single: list[Finding] = [(key, float(tensor))] if tensor.ndim == 0 else []
            for name, reading in single or part.finish(key, tensor.cpu().numpy(), clock):
                if not isinstance(reading, Picture):
                    inspection.add(name, reading)
    for name, why in network.external.left_alone.items():
        inspection.skipped[f"the units of {name}"] = why


def _on_all(spec: str, samples: int) -> str:
    """A monitor spec with all inputs as samples, unless it sets `samples`."""
    read = parse(spec)
    if read.name in ("units", "ranks"):
        return str(replace(read, arguments={"samples": samples} | read.arguments))
    return spec


def _probed(network: PlainNetwork, part: ProbeMonitor, seed: int) -> Iterator[tuple[str, float]]:
    """The probe, with targets that do not need rewards."""
    kinds = [kind for kind in part.targets if kind != "replay"] or ["random"]
    budget = Budget.of(network.inputs[0].ndim == 4, part.given["steps"], part.given["batch_size"], **part.others)
    rows = experiment(Subject("network", network.module, network.inputs), kinds, budget, seed)
    for kind in kinds:
        for metric, value in readings(Probe.of("network", kind, rows[kind].double().cpu().numpy(), seed)).items():
            yield f"network/{metric}", value


def build_module(path: str, arguments: str | None) -> nn.Module:
    """Build a module: `package.module:Class` with JSON arguments."""
    place, colon, name = path.partition(":")
    if not (place and colon and name):
        raise BadInput(f"--module {path}: write package.module:Class, or a function that returns the module")
    try:
        given = json.loads(arguments) if arguments is not None else {}
    except ValueError as error:
        raise BadInput(f"--module-args is not valid JSON: {error}") from None
    if not isinstance(given, dict | list):
        raise BadInput(f"--module-args must be a JSON object of named arguments, or a list, not {arguments}")
    with _importable_from_here(), _user_code(f"--module {path}: importing {place} fails"):
        source = import_module(place)
    factory = getattr(source, name, None)
    if not callable(factory):
        hint = did_you_mean(name, vars(source))
        raise BadInput(f"--module {path}: {place} has no {name!r} that can be called.{hint}")
    with _user_code(f"--module {path} cannot be built with {arguments or 'no arguments'}"):
        module = factory(**given) if isinstance(given, dict) else factory(*given)
    if not isinstance(module, nn.Module):
        raise BadInput(f"--module {path} gives {type(module).__name__}, not a torch module")
    return module


@contextmanager
def _importable_from_here() -> Iterator[None]:
    """Allow imports from the current folder, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


@contextmanager
def _user_code(what: str) -> Iterator[None]:
    """Wraps user code, which may raise any error or exit (BadInput)."""
    try:
        yield
    except (Exception, SystemExit) as error:
        message = str(error) or "without a message"
        name = "it calls sys.exit" if isinstance(error, SystemExit) else type(error).__name__
        raise BadInput(f"{what}: {name}: {' '.join(message.split())}") from error


def read_weights_(module: nn.Module, path: Path) -> None:
    """Load a file of weights into a module, in place."""
    content = read_torch(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BadInput(f"{path} is not a state dict (names and tensors)")
    with _user_code(f"{path} does not fit {type(module).__name__}"):
        module.load_state_dict(content)


def read_inputs(given: Sequence[str], samples: int, seed: int, device: str) -> tuple[tuple[Tensor, ...], str]:
    """The module's inputs, one per argument, and a description of their source."""
    generator = Generator().manual_seed(derive_seed(seed, "inputs"))
    inputs, sources = [], []
    for item in given:
        if re.fullmatch(r"\d+([,x]\d+)*", item):
            shape = [int(n) for n in re.split("[,x]", item)]
            if samples * math.prod(shape) > MOST_NUMBERS:
                raise BadInput(
                    f"--input {item}: {samples:,} samples of this shape are more than {MOST_NUMBERS:,} "
                    "numbers, which are in memory at once; give fewer --samples"
                )
            inputs.append(torch.randn(samples, *shape, generator=generator))
            sources.append(f"{samples} standard normal draws of shape ({', '.join(map(str, shape))})")
        else:
            array = _array(Path(item), "--input")
            inputs.append(torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array))
            sources.append(f"{len(array)} from {item}")
    if len({len(x) for x in inputs}) > 1:
        raise BadInput(f"--input: all arguments need as many samples, not {', '.join(str(len(x)) for x in inputs)}")
    return tuple(x.to(device) for x in inputs), "; ".join(sources)


def _array(path: Path, option: str) -> Any:
    """The samples in a file that numpy saved, [N, ...] of numbers (BadInput)."""
    if path.is_dir():
        raise BadInput(f"{option} {path} is a folder: give a .npy file")
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise BadInput(f"{option} {path}: no such file") from None
    except MemoryError:
        raise BadInput(f"{option} {path} does not fit into memory") from None
    except Exception as error:  # numpy and zipfile raise many types for files that they cannot read
        objects = "Object arrays" in str(error)
        why = "it holds Python objects, which are not loaded" if objects else "numpy cannot read it"
        raise BadInput(f"{option} {path} is not an array of numbers saved by numpy: {why}") from error
    if not isinstance(array, np.ndarray):
        raise BadInput(f"{option} {path} holds several arrays (.npz): save one as .npy")
    if array.ndim < 1 or array.dtype.kind not in "fiub" or not len(array):
        raise BadInput(f"{option} {path} is not an array of samples (N, ...): {array.dtype} of shape {array.shape}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


# ------------------------------------------------------------------------------------------------------ command line


def agent_inspection(arguments: argparse.Namespace) -> Inspection:
    """Inspect a run, a checkpoint or an agent file."""
    saved = load_agent(arguments.path, arguments.device, arguments.interventions)
    agent, env = saved.agent, arguments.env
    inspection = Inspection(saved.source, {"agent": agent.name})
    if saved.checkpoint is not None:
        inspection.about |= {"steps": saved.clock.steps, "updates": saved.clock.updates}
    run, specs = saved.config, arguments.monitors
    if env is None and run is not None and specs is not None:
        env = run.env  # only requested monitors may play, because playing can take minutes
    config = run.env_config if run is not None and run.env == env else EnvConfig()
    if env is not None and run is not None and run.env == env:
        refuse_others(arguments.path, env)
    # A drifting environment is frozen in the state in which the agent last acted.
    moment: dict[str, Any] = {}
    if run is not None and saved.checkpoint is not None:
        moment = {"at_steps": max(0, saved.clock.steps - 1), "drift_seed": run.seed}
    if arguments.observations is not None:
        saved.memory = memory_from_file(agent, arguments.observations)
        inspection.about["states"] = f"{len(saved.memory.batch.obs)} from {arguments.observations}"
        inspection.notes.append(
            "the states have no rewards: gradients, errors and curvature are those of episodes of one step"
        )
    elif saved.memory is not None:
        inspection.about["states"] = f"the replay's {len(saved.memory):,}"
    elif env is not None:
        n_step = agent.sampling(saved.clock).n_step
        saved.memory = memory_from_play(agent, env, config, arguments.samples, n_step, arguments.seed, **moment)
        steps = saved.memory.length if isinstance(saved.memory, Rollout) else arguments.samples
        inspection.about["states"] = f"{steps:,} steps in {env}"
    else:
        raise BadInput(
            f"{arguments.path} holds an agent without its replay: give --env NAME to collect states, or --observations "
            "FILE.npy"
        )
    specs = select_monitors(specs, agent, env, arguments.probe, inspection)
    if arguments.observations is not None:
        specs = [_without_rewards(spec) for spec in specs]
    monitors = watch(agent, *(specs or ["none"]))
    fresh: Callable[[], Any] | None = None
    if env is not None:
        fresh = lambda: make(  # noqa: E731
            env, num_envs=1, seed=arguments.seed, config=config, evaluation=True, **moment
        )
    inspect_agent(saved, monitors, inspection, seed=arguments.seed, fresh_envs=fresh)
    return inspection


def _without_rewards(spec: str) -> str:
    """The monitor spec without targets that need rewards."""
    read = parse(spec)
    return "probe(targets=random)" if read.name == ProbeMonitor.name and not read.arguments else spec


def module_inspection(arguments: argparse.Namespace) -> Inspection:
    """Inspect the weights of a user's module."""
    if not arguments.input:
        raise BadInput("--module needs --input: a FILE.npy with inputs of the module, or the SHAPE of one sample")
    module = build_module(arguments.module, arguments.module_args)
    read_weights_(module, arguments.path)
    inputs, source = read_inputs(arguments.input, arguments.samples, arguments.seed, arguments.device)
    module = module.to(arguments.device).eval()
    with _user_code(f"--module {arguments.module} cannot read --input"), torch.no_grad():
        module(*(x[:2] for x in inputs))
    specs = expand(check_monitors(arguments.monitors)) if arguments.monitors is not None else list(PLAIN)
    if unsuitable := [spec for spec in specs if parse(spec).name not in PLAIN]:
        raise BadInput(f"{unsuitable[0]} needs an agent; a module can be measured by {', '.join(PLAIN)}")
    specs = [spec for spec in specs if parse(spec).name != ProbeMonitor.name or arguments.probe]
    inspection = Inspection(str(arguments.path), {"module": arguments.module, "inputs": source})
    inspect_module(PlainNetwork(module, inputs), specs, inspection, seed=arguments.seed)
    return inspection


FORMER = {
    "Report": "Inspection",
    "Looked": "Loaded",
    "looked_at": "load_agent",  # a former name
    "Given": "GivenMemory",
    "observed": "memory_from_file",
    "played": "memory_from_play",
    "chosen": "select_monitors",
    "built_module": "build_module",
    "report_on_agent": "agent_inspection",
    "report_on_module": "module_inspection",
}
__getattr__ = moved(__name__, {name: f"{__name__}.{new}" for name, new in FORMER.items()})

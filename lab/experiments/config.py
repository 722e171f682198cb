"""The configuration of a run, as a dataclass, as YAML, and as a command line.

    pliant train --agent dqn --env ALE/Pong-v5 --interventions layer_norm "redo(tau=0.1)" --agent.gamma 0.997
    pliant train --config runs/ALE-Pong-v5/dqn/seed0/config.yaml --seed 1

A setting comes from the command line; otherwise from the file given by `--config`; otherwise from the agent's
preset for the environment's suite; otherwise from the default of its class. The command line is parsed twice: first for
`--config`, `--agent` and `--env` alone, and then completely, against the options of this agent, which `tyro` makes from
the dataclasses. So `--help` shows the options of the chosen agent.

Agents are listed in `AGENTS` and imported on demand. To use agents or environments other than pliant's, pass a `Known`
to `parse` and `load`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import io
import os
import re
import sys
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import tyro
import yaml

from ...common.ranges import (
    EnvSteps,
    NumEnvs,
    OutOfRange,
    Seed,
    SomeEnvSteps,
    Threads,
    at_least,
    check_numbers,
    check_value,
    field_hints,
    unwrapped,
)
from ...common.specs import control_character, one_line, shorten
from ...envs.config import EnvConfig, options_of, suite
from ...interventions.core.spec import (
    Registry,
    Spec,
    check,
    convert,
    did_you_mean,
    normalise,
    spell,
    with_current_names,
)
from ...interventions.core.spec import parse as parse_spec
from ...interventions.registry import INTERVENTIONS
from ...monitors.registry import check_monitors
from ..commands.given import ended, unfit, unfit_name
from ..errors import BadInput
from .synonyms import synonyms
from .yaml_file import read_yaml_file

Seeds: TypeAlias = Annotated[int, at_least(1, "seeds", most=1_000, why="each has its own environments and replay")]
Kept: TypeAlias = Annotated[int, at_least(1, "checkpoints")]
EvaluationEpisodes: TypeAlias = Annotated[int, at_least(0, "episodes", most=1_000_000, why="each is played to its end")]


class AgentEntry(NamedTuple):
    """The classes of an agent and of its configuration, or `module:name` of each."""

    agent: str | type[Any]
    config: str | type[Any]


AGENTS: dict[str, AgentEntry] = {
    "dqn": AgentEntry("pliant.agents.dqn:DQN", "pliant.agents.dqn:DQNConfig"),
    "ppo": AgentEntry("pliant.agents.ppo:PPO", "pliant.agents.ppo:PPOConfig"),
    "sac": AgentEntry("pliant.agents.sac:SAC", "pliant.agents.sac:SACConfig"),
    "supervised": AgentEntry("pliant.agents.supervised:Supervised", "pliant.agents.supervised:SupervisedConfig"),
}


@dataclass(frozen=True)
class Known:
    """All names that a command line or file may use. `env_options`: the fields of `env_config` that a suite uses."""

    agents: Mapping[str, AgentEntry]
    env_config: type[Any]
    suite: Callable[[str], str]
    env_options: Callable[[str], Collection[str]]
    interventions: Registry

    def entry(self, agent: str) -> AgentEntry:
        """The entry of an agent (BadInput if there is none)."""
        if agent not in self.agents:
            hint = did_you_mean(agent, self.agents)
            raise BadInput(f"unknown agent {shorten(agent)}.{hint} known agents: {', '.join(sorted(self.agents))}")
        return self.agents[agent]

    def agent_class(self, agent: str) -> type[Any]:
        return load_class(self.entry(agent).agent)

    def config_class(self, agent: str) -> type[Any]:
        return load_class(self.entry(agent).config)


def known() -> Known:
    """The agents, environments and interventions of pliant itself."""
    return Known(AGENTS, EnvConfig, suite, options_of, INTERVENTIONS)


@dataclass(frozen=True)
class RunConfig:
    """The complete configuration of a run of one agent in one environment: the content of `config.yaml`.

    `agent_config` and `env_config` are the configurations of the agent and of the environment. They have no
    docstring here, so that `--help` shows those of their own classes. The other docstrings are the help of the flags.
    """

    agent: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(AGENTS) + "}")] = "dqn"
    """The agent. Its own options are given as --agent.OPTION."""
    env: Annotated[str, tyro.conf.arg(metavar="NAME")] = "ALE/Pong-v5"
    """The environment, such as ALE/Pong-v5, MinAtar/Breakout-v1 or HalfCheetah-v5; or module:Name-v0, which your own
    module registers with gymnasium. Its options are given as --env.OPTION."""
    interventions: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[SPEC ...]")] = ()
    """Interventions, in order of application: names, or calls in quotes like "redo(tau=0.1, every=1000)".
    `pliant interventions` lists them."""
    monitors: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[SPEC ...]")] = ("cheap",)
    """Monitors of the agent's plasticity: names or calls like "probe(every=50000)", or the groups cheap, deep, all,
    none. They never change the run. `pliant monitors` lists them."""
    steps: SomeEnvSteps = 1_000_000
    """Environment steps (decisions of the agent, over all environments together; in Atari one is four frames)."""
    seed: Seed = 0
    """Seed of everything random: weights, exploration, replay, environments."""
    num_envs: NumEnvs = 1
    """Number of environments that are stepped together."""
    run: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the run (default: runs/<env>/<agent and interventions>/seed<seed>)."""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue the run in the folder if there is one. never: refuse a folder that holds a run."""
    device: str = "auto"
    """Device of networks and replay: cpu, cuda, cuda:1, mps; auto uses an accelerator if there is one."""
    threads: Threads = 0
    """CPU threads of torch; 0 times updates at the start with one thread and with all cores, and uses the faster."""
    log_every: SomeEnvSteps = 1_000
    """Environment steps between two points of the training curves."""
    checkpoint_every: EnvSteps = 50_000
    """Environment steps between two checkpoints; 0 saves only at the end, and when stopped by a signal."""
    keep_checkpoints: Kept = 2
    """Number of latest checkpoints that stay on disk."""
    evaluate_every: EnvSteps = 0
    """Environment steps between two evaluations; 0 evaluates only at the end."""
    evaluate_episodes: EvaluationEpisodes = 10
    """Episodes per evaluation; 0 never evaluates."""
    agent_config: Annotated[Any, tyro.conf.arg(name="agent")] = None
    env_config: Annotated[Any, tyro.conf.arg(name="env")] = None

    def __post_init__(self) -> None:
        try:
            check_numbers(self)
        except OutOfRange as error:
            raise BadInput(f"{_flag(error.name)} {error.complaint}") from None
        if not self.env.strip():
            raise BadInput("--env must not be empty")
        if self.run is not None and not self.run.strip():
            raise BadInput("--run must not be empty")
        for flag, text in (("--env", self.env), ("--run", self.run or "")):
            if (hidden := control_character(text)) is not None:
                raise BadInput(f"{flag} {shorten(text)} contains {hidden}")
        if self.resume not in ("auto", "never"):
            raise BadInput(f"--resume must be auto or never, not {shorten(self.resume)}")
        check_device_name(self.device)


def check_device_name(name: str) -> None:
    """Refuse names that are not device names (BadInput)."""
    if not re.fullmatch(r"auto|(cpu|cuda|mps|xpu)(:\d{1,3})?", name):
        raise BadInput(f"--device must be auto, cpu, cuda, cuda:N, mps or xpu, not {shorten(name)}")


def usable_device(name: str) -> str:
    """The device of this name; `auto` is the accelerator if there is one (BadInput if it is not available)."""
    import torch

    check_device_name(name)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):  # torch's own message is replaced by one for users
        raise BadInput(f"--device {name}: not available on this machine; --device auto chooses one that is") from None
    return name


_SECTIONS = {"agent": "agent_config", "env": "env_config"}


@dataclass(frozen=True)
class _CommandLine(RunConfig):
    config: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """A saved config.yaml, or the folder that holds it, to start from; flags override it."""

    def __post_init__(self) -> None:
        """No checks here: values are checked when the line becomes a `RunConfig`, whose messages are pliant's."""


@dataclass(frozen=True)
class _CommandLineOfSeeds(_CommandLine):
    seeds: Seeds = 1
    """Seeds to train in one process: that of --seed and those that follow it, each in the folder seedN below --run.
    Each is the run that it would be alone; without this flag, one run is trained."""


class Parsed(NamedTuple):
    """The configuration of a command line, and the source of its settings (one line, shown to the user).

    `seeds` is the number that `--seeds` gives; None without this flag.
    """

    config: RunConfig
    source: str
    seeds: int | None = None


def defaults(agent: str = RunConfig.agent, env: str = RunConfig.env, among: Known | None = None) -> RunConfig:
    """The configuration of an agent in an environment before file and flags: class defaults and suite preset."""
    return _base({}, "", agent, env, among or known())


def parse(
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    among: Known | None = None,
    several_seeds: bool = False,
) -> Parsed:
    """Read a command line (that of the process if None). `several_seeds`: it may have the flag `--seeds`.

    Raises:
        ValueError: `BadInput`, `SpecError` or another error of pliant's that names the mistake.
        SystemExit: After `--help`.
    """
    line = list(sys.argv[1:] if argv is None else argv)
    among = among or known()
    _refuse_unfit(line)
    for flag in ("--interventions", "--monitors", "--config"):
        if sum(item == flag or item.startswith(f"{flag}=") for item in line) > 1:
            raise BadInput(f"{flag} is given twice" + "; put all specs after one flag" * (flag != "--config"))
    file = _peek(line, "config")
    data, where = _read(file) if file else ({}, "")
    start = _base(data, where, _peek(line, "agent"), _peek(line, "env"), among)
    kind = _CommandLineOfSeeds if several_seeds else _CommandLine
    _refuse_unknown_options(line, start, among, kind)
    shown = _show_only(start.env_config, among.env_options(among.suite(start.env)))
    unchecked = {"agent_config": _unchecked(start.agent_config), "env_config": shown}
    default = kind(**_shallow(start) | unchecked, config=file)
    with _INTEGERS, _in_one_line(line, prog or "pliant train"):
        read = tyro.cli(
            kind,
            args=line,
            default=default,
            prog=prog,
            description=f"Train {start.agent} in {start.env}.",
            config=(tyro.conf.AvoidSubcommands,),
        )
    built = {
        "agent_config": _built(read.agent_config, start.agent_config, "agent."),
        "env_config": _built(read.env_config, start.env_config, "env."),
    }
    config = RunConfig(**_shallow(read) | built)
    config = _checked(config, among)
    preset = f"{config.agent}'s settings for {among.suite(config.env)}"
    seeds = None
    if isinstance(read, _CommandLineOfSeeds) and _peek(line, "seeds") is not None:
        seeds = read.seeds
        try:
            check_value(seeds, Seeds, "--seeds")
        except OutOfRange as error:
            raise BadInput(str(error)) from None
    return Parsed(config, f"{preset}, overridden by {where}" if where else preset, seeds)


def load(path: str | Path, among: Known | None = None) -> RunConfig:
    """The configuration in a YAML file, or in a run's folder. Settings that it omits are those of `defaults`.

    Raises:
        BadInput: The file does not exist, is not YAML, or has an unknown key or an invalid value.
    """
    among = among or known()
    data, where = _read(path)
    config = _base(data, where, None, None, among)
    return _checked(config, among)


def _checked(config: RunConfig, among: Known) -> RunConfig:
    """The configuration with its intervention and monitor specs in canonical spelling (SpecError)."""
    return replace(
        config, interventions=check(config.interventions, among.interventions), monitors=check_monitors(config.monitors)
    )


def dump(config: RunConfig) -> str:
    """The whole configuration as YAML; `load` reads it back."""
    plain: dict[str, Any] = {}
    for field in fields(RunConfig):
        value = getattr(config, field.name)
        if field.name in _SECTIONS:
            plain[field.name] = {"name": value}
        elif field.name in _SECTIONS.values():
            section = next(name for name, holder in _SECTIONS.items() if holder == field.name)
            plain[section] |= _plain(value) if value is not None else {}
        else:
            plain[field.name] = _plain(value)
    return yaml.dump(plain, Dumper=ConfigDumper, sort_keys=False, allow_unicode=True, width=120)


def run_folder(config: RunConfig) -> Path:
    """The folder of the run: the given one, or the default (BadInput: it begins with ~ and an unknown user)."""
    if config.run is None:
        return default_run_folder(config)
    try:
        return Path(config.run).expanduser()
    except RuntimeError as error:  # ~ and an unknown user
        raise BadInput(f"--run {config.run}: {error}") from None


def default_run_folder(config: RunConfig) -> Path:
    """`runs/<env>/<agent and interventions>/seed<seed>`, readable and safe on every file system.

    The interventions are normalised, so that different spellings lead to the same folder:
    `dqn` with `layer_norm "redo(tau=0.1)"` is `dqn+layer_norm+redo,tau=0.1`. Drifts follow the environment's name:
    `CartPole-v1~observation_offset,every=160000`. A name that was shortened, or lost characters that may distinguish
    it from others, ends in a hash of the whole name.
    """
    experiment = "+".join([config.agent, *(spec_for_folder(parse_spec(spec)) for spec in config.interventions)])
    problem = "~".join([config.env.replace("/", "-"), *map(spec_for_folder, _drifts(config))])
    return Path("runs", safe_name(problem), safe_name(experiment), f"seed{config.seed}")


def flat_hparams(config: RunConfig) -> dict[str, str | float | bool]:
    """A dozen settings that distinguish runs in a table, with the same keys for every agent; "-" if missing."""
    settings = dict(flat_fields(config.agent_config))
    wanted = {
        "lr": ("lr", "optimizer.lr", "critic_lr"),
        "batch_size": ("batch_size",),
        "replay_ratio": ("replay_ratio",),
        "n_step": ("n_step",),
        "gamma": ("gamma",),
        "value_loss": ("value_loss",),
        "buffer_size": ("buffer_size",),
    }
    flat: dict[str, str | float | bool] = {
        "agent": config.agent,
        "env": config.env,
        "drift": " ".join(str(spec) for spec in _drifts(config)) or "-",
        "interventions": normalise(config.interventions) or "-",
        "seed": config.seed,
        "steps": config.steps,
        "num_envs": config.num_envs,
    }
    for key, names in wanted.items():
        value = next((settings[name] for name in names if settings.get(name) is not None), "-")
        flat[key] = value if isinstance(value, str | int | float) else str(value)
    return flat


def differences(before: RunConfig, after: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, by flag without its dashes (`agent.optimizer.lr`), with both values."""
    old, new = _flags(before), _flags(after)
    missing = "(not set)"
    pairs = {key: (old.get(key, missing), new.get(key, missing)) for key in [*old, *(k for k in new if k not in old)]}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


# Building


def load_class(what: str | type[Any]) -> type[Any]:
    if isinstance(what, type):
        return what
    module, _, name = what.partition(":")
    loaded: type[Any] = getattr(import_module(module), name)
    return loaded


def _preset(cls: type[Any], suite: str) -> Any:
    return cls.for_suite(suite) if hasattr(cls, "for_suite") else cls()


def _base(data: Mapping[str, Any], where: str, agent: str | None, env: str | None, among: Known) -> RunConfig:
    """Preset and file combined. `agent` and `env` come from the command line, or are None."""
    names, options = {}, {}
    for section in _SECTIONS:
        content = data.get(section)
        names[section], options[section] = _section(content, section, where)
    if agent is not None and names["agent"] is not None and agent != names["agent"] and options["agent"]:
        among.entry(agent)
        raise BadInput(
            f"{where} holds options of {names['agent']}, not of {agent}: remove --agent {agent} or the section 'agent'"
        )
    agent = agent or names["agent"] or RunConfig.agent
    env = env or names["env"] or RunConfig.env
    with _errors_name(where if agent == names["agent"] else ""):
        config_class = among.config_class(agent)
    suite = among.suite(env)
    with _errors_name(where):
        agent_config = _fill(_preset(config_class, suite), options["agent"], where, "agent.")
        env_config = _fill(_preset(among.env_config, suite), options["env"], where, "env.")
        start = RunConfig(agent=agent, env=env, agent_config=agent_config, env_config=env_config)
        rest = {key: value for key, value in data.items() if key not in _SECTIONS}
        specs = rest.get("interventions")
        if isinstance(specs, list) and all(isinstance(spec, str) for spec in specs):
            # The file may be that of a run from before a parameter was renamed.
            rest["interventions"] = list(with_current_names(specs, among.interventions))
        return _fill(start, rest, where, "")


def _section(content: Any, section: str, where: str) -> tuple[str | None, dict[str, Any]]:
    """Name and options of the sections `agent` and `env`, which may also be just a name."""
    if content is None or isinstance(content, str):
        return content, {}
    if not isinstance(content, Mapping):
        shown = shorten(content)
        raise BadInput(f"{where}: {section!r} must be a name, or a section with 'name' and options, not {shown}")
    options = dict(content)
    name = options.pop("name", None)
    if name is not None and not isinstance(name, str):
        raise BadInput(f"{where}: '{section}.name' expects str, not {shorten(name)}")
    return name, options


def _fill(default: Any, data: Mapping[str, Any], where: str, prefix: str) -> Any:
    """`default` with the settings of a file; every key is checked and every value converted to its field's type."""
    hints = field_hints(type(default))
    known_keys = [f.name for f in fields(default) if f.init and not (prefix == "" and f.name in _SECTIONS.values())]
    changes: dict[str, Any] = {}
    for key, value in data.items():
        if key not in known_keys:
            there = [f"{prefix}{name}" for name, _ in flat_fields(default)]
            close = synonyms(f"{prefix}{key}".replace("-", "_"), there)
            hint = did_you_mean(str(key), known_keys) if not close else f" Did you mean '{close[0]}'?"
            shown = shorten(f"{prefix}{key}")
            raise BadInput(f"{where}: unknown key {shown}.{hint}" + ("" if hint else _list(known_keys)))
        current = getattr(default, key)
        if isinstance(value, Mapping) and not is_dataclass(current):
            plain, _ = unwrapped(hints[key])
            nested = [kind for kind in (plain, *typing.get_args(plain)) if is_dataclass(kind)]
            current = nested[0]() if len(nested) == 1 else current  # type: ignore[operator]
        if is_dataclass(current) and isinstance(value, Mapping):
            changes[key] = _fill(current, value, where, f"{prefix}{key}.")
            continue
        try:
            changes[key] = convert(value, hints[key], text=True)
        except OutOfRange as error:
            raise BadInput(f"{where}: {prefix}{key} {error.complaint}") from None
        except ValueError as error:
            raise BadInput(f"{where}: '{prefix}{key}' {error}") from None
    try:
        return replace(default, **changes)
    except OutOfRange as error:
        raise error.named(prefix + error.name) from None


@contextmanager
def _errors_name(where: str) -> Iterator[None]:
    """Errors about values name the file that contains the values."""
    try:
        yield
    except ValueError as error:
        if not where or str(error).startswith(where):
            raise
        raise BadInput(f"{where}: {error}") from error


# Reading


class ConfigDumper(yaml.SafeDumper):
    """YAML with lists on one line."""


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """A text. One with line ends other than a newline is put into double quotes, which preserve them."""
    style = '"' if re.search("[\r\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


ConfigDumper.add_representer(
    list, lambda d, items: d.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)
ConfigDumper.add_representer(str, _text_node)


def _read(path: str | Path) -> tuple[dict[str, Any], str]:
    """Content and name of a configuration file, given by its path or its folder."""
    try:
        file = Path(path).expanduser()
    except RuntimeError as error:  # ~ and an unknown user
        raise BadInput(f"--config {path}: {error}") from None
    try:
        if in_folder := file.is_dir():
            file = file / "config.yaml"
        data = read_yaml_file(file)
    except FileNotFoundError:
        raise BadInput(f"--config: there is no file {file}") from None
    except OSError as error:
        raise BadInput(f"--config: cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(f"{file} is not valid YAML: {one_line(error)}") from None
    if data is None and in_folder:  # a file written by hand may be empty; that of a run never is
        raise BadInput(f"{file} is empty: restore it from a copy, or choose another folder")
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise BadInput(f"{file} must hold keys and values, not {type(data).__name__}")
    return data, str(file)


def _plain(value: Any) -> Any:
    """A value as plain YAML types."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value) if field.init}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _peek(line: Sequence[str], name: str) -> str | None:
    """The value of a flag before the line is parsed completely. The last one counts, as in the parser."""
    value = None
    for position, item in enumerate(line):
        if item == f"--{name}" and position + 1 < len(line) and not line[position + 1].startswith("--"):
            value = line[position + 1]
        elif item.startswith(f"--{name}="):
            value = item.partition("=")[2]
    return value


PATHS = {"config", "run", "env.data"}


def _refuse_unfit(line: Sequence[str]) -> None:
    """Refuse values that are empty, contain control characters, or cannot be the file name that they should be."""
    flag = ""
    for item in line:
        if flag in ("--interventions", "--monitors") and not item.startswith("--"):
            continue  # specs have their own grammar and messages
        if item.startswith("--"):
            flag, given, value = item.partition("=")
            if not given:
                continue
        else:
            value = item
        named = flag.removeprefix("--").replace("-", "_") in PATHS
        if complaint := unfit(value) or (unfit_name(value) if named else ""):
            raise BadInput(f"{flag or 'an argument'} {complaint}")


def _refuse_unknown_options(
    line: Sequence[str], start: RunConfig, among: Known, kind: type[_CommandLine] = _CommandLine
) -> None:
    """Refuse options that the chosen agent or environment does not have, and name the one that has them.

    tyro sees only the chosen agent and cannot do this. Nor does it explain how to write a switch.
    """
    top = {field.name for field in fields(kind)} - set(_SECTIONS.values()) | {"help"}
    for position, item in enumerate(line):
        flag, given, _ = item.partition("=")
        section, dot, option = flag.removeprefix("--").replace("-", "_").partition(".")
        if not flag.startswith("--"):
            continue
        if not dot or section not in _SECTIONS:
            if section not in top or dot:
                raise BadInput(_unknown_flag(flag, start, top))
            continue
        own = dict(flat_fields(getattr(start, _SECTIONS[section])))
        name = _find(option, own)
        if name is None:
            raise BadInput(_missing_option(flag, section, option, list(own), start, among))
        suite = among.suite(start.env)
        if section == "env" and name.partition(".")[0] not in among.env_options(suite):
            raise BadInput(f"{start.env} has no option {flag}: it is not one of the suite {suite}. --help lists them")
        value = given or (line[position + 1] if position + 1 < len(line) else "")
        if isinstance(own[name], bool) and (given or value.lower() in ("true", "false", "0", "1")):
            switch = f"--{section}.{name}".replace("_", "-")
            raise BadInput(f"{flag} takes no value: write {switch} or {_with_no(switch)}")


def _unknown_flag(flag: str, start: RunConfig, top: Collection[str]) -> str:
    """The message about an unknown flag without a section."""
    name = flag.removeprefix("--").replace("-", "_")
    own = [key for key in _flags(start) if "." in key]
    namesakes = [key for key in own if key.partition(".")[2] == name]
    inner = [key for key in own if key.rpartition(".")[2] == name]
    close = namesakes or synonyms(name, [*top, *own]) or difflib.get_close_matches(name, top, n=1) or inner
    close = close or difflib.get_close_matches(f"agent.{name}", own, n=1, cutoff=0.75)
    return f"unknown option {shorten(flag)}." + (_as_hint(close) or " `pliant train --help` lists the options")


def _as_hint(keys: Sequence[str]) -> str:
    """` Did you mean --a or --b?` for settings given by their dotted names; empty without any."""
    return f" Did you mean {' or '.join('--' + key.replace('_', '-') for key in keys)}?" if keys else ""


def _missing_option(flag: str, section: str, option: str, own: Sequence[str], start: RunConfig, among: Known) -> str:
    """The message about an unknown option of a section."""
    for other in among.agents if section == "agent" else ():
        if _find(option, dict(flat_fields(_preset(among.config_class(other), among.suite(start.env))))) is not None:
            return f"{flag} is an option of {other}, not of {start.agent}; choose it with --agent {other}"
    there = [f"{section}.{key}" for key in own]
    namesakes = [key for key in there if key.rpartition(".")[2] == option.rpartition(".")[2]]
    top = [field.name for field in fields(RunConfig) if field.name not in _SECTIONS.values()]
    close = namesakes or synonyms(option, [*there, *top])
    close = close or [f"{section}.{key}" for key in difflib.get_close_matches(option, own, n=1)]
    owner = start.agent if section == "agent" else start.env
    return f"{owner} has no option {flag}." + (_as_hint(close) or " --help lists them")


@contextmanager
def _in_one_line(line: Sequence[str], prog: str) -> Iterator[None]:
    """Turn tyro's boxed error messages into one line (BadInput). Help is unchanged."""
    if {"-h", "--help"} & {*line}:
        yield
        return
    message, width = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "2000"  # tyro breaks lines at this width, even within names
    try:
        with redirect_stderr(message), redirect_stdout(message):
            yield
    except SystemExit:
        raise BadInput(f"{ended(_reworded(message.getvalue()))} `{prog} --help` lists the options") from None
    finally:
        del os.environ["COLUMNS"]
        if width is not None:
            os.environ["COLUMNS"] = width


def _reworded(message: str) -> str:
    """tyro's message, beginning with the flag and without the flag's help."""
    text = " ".join(re.sub(r"[\u2500-\u257f]+|-{20,}", " ", message).split())
    text = re.split(r"Argument helptext:|For full helptext|Perhaps you meant", text)[0].strip().rstrip(".")
    if wrong := re.search(r"Error parsing ([^:]+): (.*)", text):
        flag, reason = wrong.groups()
        flag = re.sub(r"^(agent|env)-config\b", r"--\1", flag)  # an error of a section's own checks
        reason = re.sub("^could not convert string to float: (.*)", r"\1 is not a number", reason)
        reason = re.sub(r"^Could not find valid parse for arguments: \[(.*)\]", r"\1 does not fit", reason)
        return f"{flag}: {reason}"
    if missing := re.search(r"Missing value for argument '(--[^']+)'", text):
        return f"{missing[1]} needs a value"
    if choice := re.search(r"invalid choice '(.*)' for argument '(--[^']+)'. Expected one of \((.*)\)", text):
        given, flag, choices = choice.groups()
        names = [name for name in re.split(r"[', ]+", choices) if name]
        return f"{flag} {shorten(given)} is not one of {', '.join(names)}.{did_you_mean(given, names)}".rstrip(".")
    if unknown := re.search("Unrecognized options: ([^,]*)", text):
        item = unknown[1].strip()
        kind = "unknown option" if item.startswith("-") else "a value without an option:"
        return f"{kind} {shorten(item)}"
    return text[:500]


def _find(option: str, options: Mapping[str, Any]) -> str | None:
    """The field that an option sets: the option's name, or for `no_…` that of the switch it turns off."""
    if option in options:
        return option
    switch = re.sub(r"(^|\.)no_(\w+)$", r"\1\2", option)
    return switch if isinstance(options.get(switch), bool) else None


def _with_no(switch: str) -> str:
    head, _, last = switch.rpartition(".")
    return f"{head}.no-{last}"


def _show_only(config: Any, options: Collection[str]) -> Any:
    """`config` as an instance of a subclass that hides the other fields from `--help`; they keep their values."""
    kind = type(config)
    hints = typing.get_type_hints(kind, include_extras=True)
    hidden = [field for field in fields(kind) if field.init and field.name not in options]
    suppress: Any = tyro.conf.Suppress
    return _variant(
        config,
        {f.name: getattr(config, f.name) for f in hidden},
        {field.name: suppress[hints[field.name]] for field in hidden},
    )


def _unchecked(config: Any) -> Any:
    """`config`, and the configurations within it, as instances of subclasses without checks. Values are checked when
    the options become a configuration (`_built`), where the flag of each value is known."""
    nested = {f.name: _unchecked(v) for f in fields(config) if f.init and is_dataclass(v := getattr(config, f.name))}
    return _variant(config, nested, {})


def _variant(config: Any, replaced: Mapping[str, Any], annotations: Mapping[str, Any]) -> Any:
    kind = type(config)
    # A subclass, because tyro finds a field's docstring in the source of the class that first defined it.
    body: dict[str, Any] = {name: dataclasses.field(default=replaced[name]) for name in annotations}
    body |= {"__post_init__": lambda self: None, "__doc__": kind.__doc__, "__annotations__": dict(annotations)}
    subclass: Any = dataclass(frozen=True)(type(kind.__name__, (kind,), body))
    return subclass(**{f.name: replaced.get(f.name, getattr(config, f.name)) for f in fields(kind) if f.init})


def _built(read: Any, like: Any, prefix: str) -> Any:
    """The configuration in the class of `like`, from the values of a command line (BadInput, which names the flag)."""
    values = {}
    for field in fields(like):
        if field.init:
            value, inner = getattr(read, field.name), getattr(like, field.name)
            values[field.name] = _built(value, inner, f"{prefix}{field.name}.") if is_dataclass(inner) else value
    try:
        return type(like)(**values)
    except BadInput:
        raise
    except OutOfRange as error:
        raise BadInput(f"{_flag(prefix + error.name)} {error.complaint}") from None
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        raise BadInput(f"{_flag(prefix + name)} {rest}" if name in values else str(error)) from error


def _flag(name: str) -> str:
    """The flag of a field given by its dotted name, such as `--agent.n-step` for agent_config.n_step."""
    section, dot, rest = name.partition(".")
    names = {holder: section for section, holder in _SECTIONS.items()}
    return f"--{names.get(section, section)}{dot}{rest}".replace("_", "-")


def _whole_number(texts: Sequence[str]) -> int:
    """1000000, 1_000_000 or 1e6."""
    try:
        return int(texts[0])
    except ValueError:
        try:
            number = convert(float(texts[0]), int)
        except ValueError:
            raise ValueError(f"{texts[0]!r} is not a whole number") from None
        return int(number)


_INTEGERS = tyro.constructors.ConstructorRegistry()


@_INTEGERS.primitive_rule
def _integer_rule(info: Any) -> tyro.constructors.PrimitiveConstructorSpec[int] | None:
    if info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=_whole_number,
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


# Names


def _list(names: Sequence[str]) -> str:
    return f" known keys: {', '.join(names)}"


def _shallow(config: RunConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in fields(RunConfig)}


def flat_fields(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a nested dataclass by dotted name."""
    for field in fields(value) if is_dataclass(value) else ():
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from flat_fields(inner, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", inner


def _flags(config: RunConfig) -> dict[str, Any]:
    flat = {key: value for key, value in _shallow(config).items() if key not in _SECTIONS.values()}
    for section, holder in _SECTIONS.items():
        flat |= {f"{section}.{key}": value for key, value in flat_fields(getattr(config, holder))}
    return flat


def _drifts(config: RunConfig) -> list[Spec]:
    """The drifts of the environment. The configuration of a user's own environments need not have the field."""
    return [parse_spec(spec) for spec in getattr(config.env_config, "drift", ())]


def spec_for_folder(spec: Spec) -> str:
    given = [("", value) for value in spec.positional] + [(f"{k}=", v) for k, v in sorted(spec.arguments.items())]
    return ",".join([spec.name, *(key + _value_for_folder(value) for key, value in given)])


def _value_for_folder(value: Any) -> str:
    if isinstance(value, tuple) and value:
        return "~".join(_value_for_folder(item) for item in value)
    return spell(value)


def safe_name(name: str, longest: int = 96) -> str:
    """`name` as the name of one folder."""
    safe = re.sub(r"[^A-Za-z0-9._+=,~-]+", "-", name).strip("-.~") or "x"
    if safe == name and len(safe) <= longest:
        return safe
    digest = hashlib.blake2b(name.encode("utf-8", "backslashreplace"), digest_size=4).hexdigest()
    return f"{safe[: longest - 9]}-{digest}"

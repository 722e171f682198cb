"""Study files: agents × environments × arms × seeds, as a file that `pliant sweep` runs and `pliant report` reports.

    name: continual_cartpole           # letters, digits, _ and -
    title: What keeps PPO learning when CartPole's sensors change
    about: One or more sentences.
    agents:                            # label: flags of `pliant train`; the label is the agent unless a flag sets it
      ppo: {agent.rollout: 64}
    environments:                      # label: flags; the label is the environment unless a flag `env` sets it
      CartPole-v1: {env.drift: ["observation_offset(scale=2.0, every=40000)"]}
    arms:                              # label: nothing, a list of intervention specs, or a section
      plain: {kind: control}
      oracle: {kind: oracle, words: ["fresh_agent(every=40000)"]}
      layer_norm: [layer_norm]
      narrow: {words: [redo], flags: {agent.network.hidden: [16]}, only: [ppo]}
    baseline: plain                    # the arm that the others are compared with; default: the control
    seeds: 8                           # 0 to 7; or a list of seeds
    segment: 40000                     # environment steps per task, for the analysis
    flags: {num_envs: 16, steps: 320000}

A run's flags are those of the study, overridden by those of its agent, its environment and its arm, in this order; null
removes a flag. Every run uses one CPU thread unless a flag `device` selects another device.

The parser of `pliant train` checks every combination in the file without running anything. Each error is one line. The
runs are in `<environment>/<agent>/<arm>/seed<k>` below the study's folder, `runs/studies/<name>`. The folder also holds
a copy of the file, `study.yaml`, so that the folder can be given in place of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from ...common.specs import shorten
from ...interventions import INTERVENTIONS
from ...interventions.core.spec import build, check, did_you_mean
from ..errors import BadInput
from .config import ConfigDumper, RunConfig, dump, safe_name
from .sections import (
    NOT_FOR_FILES,
    Wrong,
    check_number_of_runs,
    checked_flags,
    command_line,
    converted,
    known_keys,
    label,
    labelled,
    make,
    needs,
    paragraph,
    plain_text,
    read_command,
    read_yaml,
    sentence,
)

Kind = Literal["control", "oracle", "fixed_task", "linear"]

STUDIES = Path("runs", "studies")
LONGEST_NAME = 100  # characters of a study's name, which also names its folder
FILE = "study.yaml"
"""The copy of a study in its folder."""


@dataclass(frozen=True)
class Arm:
    """One treatment, applied to every agent in every environment.

    Attributes:
        kind: control (no treatment), oracle (a fresh agent for every task), fixed_task (the task does not change),
            linear (no hidden units to lose), or none of these.
        words: Intervention specs.
        flags: Flags of `pliant train` that differ from those of the study, agent and environment.
        only: The agents or environments that have this arm; all if empty.
    """

    name: str
    kind: Kind | None = None
    words: tuple[str, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run of a study; `words` are the arguments of its `pliant train` command, including folder and seed."""

    environment: str
    agent: str
    arm: str
    seed: int
    config: RunConfig
    words: tuple[str, ...]

    @property
    def folder(self) -> Path:
        assert self.config.run is not None
        return Path(self.config.run)

    @property
    def name(self) -> str:
        """`CartPole-v1/ppo/plain/seed0`."""
        return f"{self.environment}/{self.agent}/{self.arm}/seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """A study, complete and checked.

    Attributes:
        path: The file that it was read from.
        agents, environments: Flags by label.
        baseline: The arm that others are compared with; None if there is neither a baseline nor a control.
        segment: Environment steps per task; 0 if the study does not give it.
        flags: Flags of all runs.
        folder: The folder of its runs.
        text: The content of `study.yaml` in that folder.
    """

    name: str
    path: Path
    title: str
    about: str
    agents: Mapping[str, Mapping[str, Any]]
    environments: Mapping[str, Mapping[str, Any]]
    arms: Mapping[str, Arm]
    seeds: tuple[int, ...]
    baseline: str | None
    segment: int
    flags: Mapping[str, Any]
    folder: Path
    text: str

    def combinations(self) -> Iterator[tuple[str, str, Arm]]:
        """(environment, agent, arm) of all runs."""
        for environment in self.environments:
            for agent in self.agents:
                for arm in self.arms.values():
                    agents = [name for name in arm.only if name in self.agents]
                    environments = [name for name in arm.only if name in self.environments]
                    if agent in (agents or [agent]) and environment in (environments or [environment]):
                        yield environment, agent, arm

    def command(self, environment: str, agent: str, arm: Arm) -> tuple[str, ...]:
        """The arguments of `pliant train` without seed and folder."""
        flags = {"agent": agent, "env": environment, **self.flags}
        for more in (self.agents[agent], self.environments[environment], arm.flags):
            flags |= more
        if arm.words:
            flags["interventions"] = arm.words
        return command_line({name: value for name, value in flags.items() if value is not None})

    def cells(self, root: Path | None = None) -> list[Cell]:
        """All runs, below `root` (the study's folder if None). Every combination runs with one seed before the next
        seed, so that a sweep that ends early can be compared."""
        root = self.folder if root is None else root
        combinations = []
        for environment, agent, arm in self.combinations():
            config = _read(self, environment, agent, arm)
            # The specs of the command line are spelled canonically, as in the configuration.
            command = self.command(environment, agent, replace(arm, words=config.interventions))
            combinations.append((environment, agent, arm, config, command))
        cells = []
        for seed in self.seeds:
            for environment, agent, arm, config, command in combinations:
                folder = (
                    root
                    / safe_name(environment.replace("/", "-"))
                    / safe_name(agent)
                    / safe_name(arm.name)
                    / f"seed{seed}"
                )
                # Without ./ a name that begins with a dash would be read as a flag.
                run = f"./{folder}" if str(folder).startswith("-") else str(folder)
                settled = replace(config, seed=seed, run=run)
                cells.append(Cell(environment, agent, arm.name, seed, settled, _whole(command, settled)))
        return cells

    def scaled(self, steps: int) -> Study:
        """The same study with runs of `steps` environment steps, in a folder of its own."""
        data = read_yaml(self.path, "study")
        for name in ("agents", "environments"):
            if isinstance(data[name], Mapping):
                for flags in data[name].values():
                    (flags or {}).pop("steps", None)
        for content in data["arms"].values() if isinstance(data["arms"], Mapping) else ():
            if isinstance(content, Mapping):
                (content.get("flags") or {}).pop("steps", None)
        data["flags"] = dict(data.get("flags") or {}) | {"steps": steps}
        text = yaml.dump(data, Dumper=ConfigDumper, sort_keys=False, allow_unicode=True, width=120)
        small = _named(self.path, data, text)
        return replace(small, folder=self.folder.with_name(f"{self.folder.name}-{steps}steps"))


def load_study(path: Path) -> Study:
    """The study in a file, or in a folder that holds `study.yaml` (the runs are then in this folder).

    Raises:
        BadInput: One line that begins with the file.
    """
    path = Path(path).expanduser()
    folder = None
    if path.is_dir():
        folder, path = path, path / FILE
    study = _named(path, read_yaml(path, "study"), path.read_text(encoding="utf-8"))
    return study if folder is None else replace(study, folder=folder)


def _named(path: Path, data: dict[str, Any], text: str) -> Study:
    try:
        return _study(path, data, text)
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(f"{path}: {' '.join(str(error).split())}") from error


def _study(path: Path, data: dict[str, Any], text: str) -> Study:
    known_keys(data, Study, "", besides={"path", "folder", "text"})
    needs(data, ("name", "title", "agents", "environments", "arms"), "")
    given = data["name"]
    name = str(given) if type(given) is int else given
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise Wrong(f"'name' is made of letters, digits, _ and -, not {shorten(given)}")
    if len(name) > LONGEST_NAME:
        raise Wrong(f"'name' has more than {LONGEST_NAME} characters: it names a folder")
    segment = converted(data.get("segment", 0), int, "segment")
    if segment < 0:
        raise Wrong("'segment' must not be negative")
    agents = _labelled(data["agents"], "agents", "agent", {"env": "the environment is set in 'environments'"})
    environments = _labelled(data["environments"], "environments", "env", {"agent": "the agent is set in 'agents'"})
    arms = {name: _arm(name, content) for name, content in _labels(data["arms"], "arms").items()}
    study = Study(
        name=name,
        path=path,
        title=sentence(data["title"], "'title'"),
        about=paragraph(data.get("about"), "'about'"),
        agents=agents,
        environments=environments,
        arms=arms,
        seeds=_seeds(data.get("seeds", 1)),
        baseline=_baseline(data.get("baseline"), arms),
        segment=segment,
        folder=STUDIES / name,
        text=text,
        flags=_flags({} if data.get("flags") is None else data["flags"], "flags", _ELSEWHERE),
    )
    _check_only(study)
    check_number_of_runs(
        len(study.agents) * len(study.environments) * len(study.arms), len(study.seeds), "combinations"
    )
    _check_folders(study)
    _check_runs(study)
    return study


_ELSEWHERE = {
    "agent": "the agent is set in 'agents'",
    "env": "the environment is set in 'environments'",
    "interventions": "interventions are set in the 'words' of an arm",
}


def _flags(content: Any, where: str, refused: Mapping[str, str]) -> dict[str, Any]:
    never = {name: f"a study file may not set {name!r}" for name in NOT_FOR_FILES}
    return checked_flags(content, where, never | dict(refused))


def _labels(content: Any, where: str) -> dict[str, Any]:
    """A section that is not empty and whose keys are labels. A list of labels is read as keys without content."""
    if isinstance(content, list):
        seen: dict[str, None] = {}
        for item in content:
            if label(item, where) in seen:
                raise Wrong(f"{where}: {shorten(item)} appears twice")
            seen[item] = None
        content = seen
    labels = labelled(content, where)
    if not labels:
        raise Wrong(f"'{where}' is empty")
    return labels


def _labelled(content: Any, where: str, flag: str, refused: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    refused = dict(refused) | {"interventions": _ELSEWHERE["interventions"]}
    sections = {}
    for name, flags in _labels(content, where).items():
        sections[name] = _flags({} if flags is None else flags, f"{where}: {name}", refused)
        if plain_text(sections[name].get(flag, name), f"{where}: {name}: '{flag}'").startswith("-"):
            raise Wrong(f"{where}: {shorten(name)}: a name does not begin with a dash")
    return sections


def _arm(name: str, content: Any) -> Arm:
    where = f"arm {name!r}"
    if content is None:
        return Arm(name)
    if isinstance(content, str | list):
        content = {"words": [content] if isinstance(content, str) else content}
    arm: Arm = make(Arm, content, where, name=name)
    return replace(arm, flags=_flags(arm.flags, f"{where}: flags", _ELSEWHERE))


def _seeds(content: Any) -> tuple[int, ...]:
    if isinstance(content, list | tuple):
        seeds: tuple[int, ...] = converted(content, tuple[int, ...], "seeds")
    else:
        count = converted(content, int, "seeds")
        check_number_of_runs(1, count, "combination")
        seeds = tuple(range(count))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise Wrong(f"'seeds' is how many there are, at least 1, or a list of different ones, not {shorten(content)}")
    if max(seeds) >= 2**63:
        raise Wrong("'seeds': a seed is below 2**63")
    return seeds


def _baseline(given: Any, arms: Mapping[str, Arm]) -> str | None:
    if given is not None:
        if not isinstance(given, str) or given not in arms:
            raise Wrong(f"the 'baseline' {shorten(given)} is not one of the arms.{did_you_mean(str(given), arms)}")
        return given
    controls = [arm.name for arm in arms.values() if arm.kind == "control"]
    if len(controls) > 1:
        raise Wrong(f"the controls are {' and '.join(controls)}: say which one is the 'baseline'")
    return controls[0] if controls else None


def _check_only(study: Study) -> None:
    if both := set(study.agents) & set(study.environments):
        raise Wrong(f"{both.pop()!r} is the label of an agent and of an environment")
    names = [*study.agents, *study.environments]
    for arm in study.arms.values():
        for name in arm.only:
            if name not in names:
                raise Wrong(
                    f"arm {arm.name!r}: 'only' names agents and environments, and {shorten(name)} is neither."
                    f"{did_you_mean(name, names)}"
                )


def _check_folders(study: Study) -> None:
    """Refuse two labels that lead to the same folder."""
    for where, labels in (("agents", study.agents), ("environments", study.environments), ("arms", study.arms)):
        seen: dict[str, str] = {}
        for name in labels:
            other = seen.setdefault(
                safe_name(name.replace("/", "-")) if where == "environments" else safe_name(name), name
            )
            if other != name:
                raise Wrong(f"{where}: {other!r} and {name!r} would share a folder: name one of them otherwise")


def _check_runs(study: Study) -> None:
    """Refuse what `pliant train` would refuse, and two labels for the same run."""
    seen: dict[str, tuple[str, str, str]] = {}
    for environment, agent, arm in study.combinations():
        try:
            config = _read(study, environment, agent, arm)
        except ValueError as error:
            raise Wrong(f"{agent} in {environment}, arm {arm.name!r}: {error}") from error
        plain = replace(config, checkpoint_every=0, keep_checkpoints=1, monitors=())
        mine = (environment, agent, arm.name)
        other = seen.setdefault(dump(plain), mine)
        if other != mine:
            labels = [(a, b) for a, b in zip(other, mine, strict=True) if a != b]
            names = " and ".join(repr(", ".join(pair[i] for pair in labels)) for i in (0, 1))
            raise Wrong(f"{names} are the same run")


def _read(study: Study, environment: str, agent: str, arm: Arm) -> RunConfig:
    """The configuration of a combination. Command lines are slow to parse, and specs change only the interventions. So
    arms with the same flags are parsed once."""
    bare = read_command(study.command(environment, agent, replace(arm, words=())))
    try:
        words = check(arm.words, INTERVENTIONS)
    except ValueError as error:
        raise Wrong(f"'words': {error}") from error
    build(words, INTERVENTIONS)  # refuses values out of range, and interventions that exclude each other
    return replace(bare, interventions=words)


def _whole(command: tuple[str, ...], config: RunConfig) -> tuple[str, ...]:
    """The command line that gives exactly this configuration."""
    chosen: list[str] = []
    for flag, value in (
        ("--seed", config.seed),
        ("--device", config.device),
        ("--threads", config.threads),
        ("--checkpoint-every", config.checkpoint_every),
        ("--keep-checkpoints", config.keep_checkpoints),
        ("--run", config.run),
    ):
        if flag not in command:
            chosen += [flag, str(value)]
    return (*command, *chosen)

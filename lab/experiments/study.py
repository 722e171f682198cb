"""Study files: agents × environments × arms × seeds, as a file that `pliant sweep` runs and `pliant report` reports.

    name: continual_cartpole           # letters, digits, _ and -
    title: What keeps PPO learning when CartPole's sensors change
    about: A description, of any length.
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
    comparisons:                       # optional: expected results, which the report evaluates (see `predicates.py`)
      - {a: layer_norm, b: plain, expect: higher, margin: 20}

A claim file is a study of one agent in one environment, which come from a testbed, and it needs comparisons:

    title: Random labels wear Adam out
    paper: {title: "Understanding Plasticity in Neural Networks", arxiv: "2303.01486"}
    claim: A network trained by Adam on labels drawn anew again and again ends up learning them less well than at first.
    testbed: random_labels             # beds/random_labels.yaml beside the file, or the same keys written here
    arms:
      plain:                           # no content: taken from the testbed
      layer_norm: [layer_norm]
    measures:
      accuracy in the last tasks: {read: losses/accuracy, last: 5}
    comparisons:
      - {a: layer_norm, b: plain, expect: higher, margin: 0.05}
    seeds: 5

A claim of `kind: check` needs no runs: it names a function of `lab/claims/checks.py` instead of a testbed.

A run's flags are those of the study (of the testbed), overridden by those of its agent, its environment and its arm, in
this order; null removes a flag. Every run uses one CPU thread unless a flag `device` selects another device.

The parser of `pliant train` checks every combination in the file without running anything. Each error is one line. The
runs are in `<environment>/<agent>/<arm>/seed<k>` below the study's folder, `runs/studies/<name>`. The folder also holds
a copy of the file, `study.yaml`, so that the folder can be given in place of the file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml

from ...common.specs import shorten
from ...interventions import INTERVENTIONS
from ...interventions.core.spec import build, check, did_you_mean
from ..errors import BadInput
from .config import ConfigDumper, RunConfig, default_run_folder, dump, flat_fields, safe_name
from .predicates import Comparison, Measure, read_comparisons, read_measures, refuse_unrecorded, with_measures
from .sections import (
    NOT_FOR_FILES,
    Prose,
    RequiredProse,
    Wrong,
    check_number_of_runs,
    checked_flags,
    command_line,
    converted,
    labelled,
    make,
    needs,
    plain_text,
    read_command,
    read_yaml,
)
from .yaml_file import parse_yaml

Kind = Literal["control", "treatment", "oracle", "fixed_task", "linear", "optimizer", "random"]
Flags: TypeAlias = Mapping[str, Any]

STUDIES = Path("runs", "studies")
LONGEST_NAME = 100  # characters of a study's name, which also names its folder
FILE = "study.yaml"
"""The copy of a study in its folder."""


# ------------------------------------------------------------------------------------------------ values of keys

_PLACES = {
    "agent": "the agent is set in 'agents'",
    "env": "the environment is set in 'environments'",
    "interventions": "interventions are set in the 'words' of an arm",
}


def _refused(what: str, *names: str) -> dict[str, str]:
    """Flags that a section may not set, with the error messages."""
    never = {name: f"a {what} file may not set {name!r}" for name in NOT_FOR_FILES}
    return never | {name: _PLACES[name] for name in names}


def _kind(value: Any, where: str) -> Any:
    return "treatment" if value is None else converted(value, Kind, where)


def _name(value: Any, where: str) -> str:
    name = str(value) if type(value) is int else value
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise Wrong(f"{where} is made of letters, digits, _ and -, not {shorten(value)}")
    if len(name) > LONGEST_NAME:
        raise Wrong(f"{where} has more than {LONGEST_NAME} characters: it names a folder")
    return name


def _not_negative(value: Any, where: str) -> float:
    number: float = converted(value, float, where)
    if number < 0:
        raise Wrong(f"{where} must not be negative")
    return number


def _segment(value: Any, where: str) -> int:
    return int(_not_negative(converted(value, int, where), where))


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    if isinstance(value, list | tuple):
        seeds: tuple[int, ...] = converted(value, tuple[int, ...], where)
    else:
        check_number_of_runs(1, converted(value, int, where))
        seeds = tuple(range(converted(value, int, where)))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise Wrong(f"{where} is how many there are, at least 1, or a list of different ones, not {shorten(value)}")
    if max(seeds) >= 2**63:
        raise Wrong(f"{where}: a seed is below 2**63")
    return seeds


def _flags(value: Any, where: str) -> Flags:
    return checked_flags({} if value is None else value, where.strip("'"), _refused("study", *_PLACES))


def _testbed_flags(value: Any, where: str) -> Flags:
    return checked_flags(value, where.replace("'", ""), _refused("claim"))


def _agents(value: Any, where: str) -> dict[str, Flags]:
    return _variants(value, "agents", "agent", _refused("study", "env", "interventions"))


def _environments(value: Any, where: str) -> dict[str, Flags]:
    return _variants(value, "environments", "env", _refused("study", "agent", "interventions"))


def _variants(content: Any, where: str, flag: str, refused: Mapping[str, str]) -> dict[str, Flags]:
    variants: dict[str, Flags] = {}
    for name, flags in labelled(content, where).items():
        variants[name] = checked_flags({} if flags is None else flags, f"{where}: {name}", refused)
        if plain_text(variants[name].get(flag, name), f"{where}: {name}: '{flag}'").startswith("-"):
            raise Wrong(f"{where}: {shorten(name)}: a name does not begin with a dash")
    return variants


def _arms(value: Any, where: str) -> dict[str, Arm]:
    return {name: _arm(name, {} if item is None else item) for name, item in labelled(value, "arms").items()}


def _claim_arms(value: Any, where: str) -> dict[str, Arm | None]:
    """Arms by label; None for one that the testbed defines."""
    items = labelled(value, "arms").items()
    return {name: None if item is None else _arm(name, item, of_claim=True) for name, item in items}


def _testbed_arms(value: Any, where: str) -> dict[str, Arm]:
    return {name: _arm(name, item, of_claim=True) for name, item in labelled(value, where.replace("'", "")).items()}


def _arm(name: str, content: Any, of_claim: bool = False) -> Arm:
    if isinstance(content, str | list):
        content = {"words": [content] if isinstance(content, str) else content}
    arm: Arm = make(Arm, content, f"arm {name!r}", name=name, without=("only",) if of_claim else ())
    refused = _refused("claim", "interventions") if of_claim else _refused("study", *_PLACES)
    return replace(arm, flags=checked_flags(arm.flags, f"arm {name!r}: flags", refused))


def _unchecked(value: Any, where: str) -> Any:
    """A value that is checked when the rest of the file is known."""
    return value


def _paper(value: Any, where: str) -> Paper:
    paper: Paper = make(Paper, value, "paper")
    if not re.fullmatch(r"[A-Za-z0-9./-]{0,40}", paper.arxiv):
        raise Wrong(f"paper: 'arxiv' is a number like 2303.01486, not {shorten(paper.arxiv)}")
    return paper


# ------------------------------------------------------------------------------------------------ studies


@dataclass(frozen=True)
class Arm:
    """One treatment, applied to every agent in every environment.

    Attributes:
        kind: control (no treatment), treatment, oracle (a fresh agent for every task), fixed_task (the task does not
            change), linear (no hidden units to lose), optimizer (only its memory is reset), random (edits of the same
            size at random).
        specs: Intervention specs (`words` in a file).
        flags: Flags of `pliant train` that differ from those of the study, agent and environment; null removes a flag.
        only: The agents or environments that have this arm; all if empty.
    """

    name: str
    kind: Annotated[Kind, _kind] = "treatment"
    specs: tuple[str, ...] = field(default=(), metadata={"key": "words"})
    flags: Flags = field(default_factory=dict)
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run of a study; `line` holds the arguments of its `pliant train` command, including folder and seed."""

    environment: str
    agent: str
    arm: str
    seed: int
    config: RunConfig
    line: tuple[str, ...]

    @property
    def folder(self) -> Path:
        assert self.config.run is not None
        return Path(self.config.run)

    @property
    def name(self) -> str:
        """`CartPole-v1/ppo/plain/seed0`."""
        return f"{self.environment}/{self.agent}/{self.arm}/seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study, complete and checked. Its fields are the keys of a file, but for path, folder, text and record.

    Attributes:
        path: The file that it was read from.
        agents, environments: Flags by label.
        baseline: The arm that others are compared with; None if there is neither a baseline nor a control.
        segment: Environment steps per task; 0 if the study does not give it.
        flags: Flags of all runs.
        folder: The folder of its runs.
        text: The content of `study.yaml` in that folder.
        record: Tags of metrics.jsonl that its measures read.
    """

    name: Annotated[str, _name]
    title: RequiredProse
    about: Prose = ""
    agents: Annotated[Mapping[str, Flags], _agents]
    environments: Annotated[Mapping[str, Flags], _environments]
    arms: Annotated[Mapping[str, Arm], _arms]
    baseline: Annotated[str | None, _unchecked] = None
    seeds: Annotated[tuple[int, ...], _seeds] = (0,)
    segment: Annotated[int, _segment] = 0
    flags: Annotated[Flags, _flags] = field(default_factory=dict)
    measures: Annotated[Mapping[str, Measure], read_measures] = field(default_factory=dict)
    comparisons: Annotated[tuple[Comparison, ...], read_comparisons] = ()
    path: Path
    folder: Path
    text: str
    record: tuple[str, ...] = ()

    def combinations(self) -> Iterator[tuple[str, str, Arm]]:
        """(environment, agent, arm) of all runs."""
        for environment in self.environments:
            for agent in self.agents:
                for arm in self.arms.values():
                    agents = [name for name in arm.only if name in self.agents]
                    environments = [name for name in arm.only if name in self.environments]
                    if agent in (agents or [agent]) and environment in (environments or [environment]):
                        yield environment, agent, arm

    def command(self, arm: Arm, agent: str = "", environment: str = "") -> tuple[str, ...]:
        """The arguments of `pliant train` without seed and folder (agent and environment: the first ones)."""
        agent, environment = agent or next(iter(self.agents)), environment or next(iter(self.environments))
        flags = {"agent": agent, "env": environment, **self.flags}
        for more in (self.agents[agent], self.environments[environment], arm.flags):
            flags |= more
        if arm.specs:
            flags["interventions"] = arm.specs
        return command_line({name: value for name, value in flags.items() if value is not None})

    def config(self, arm: Arm, agent: str = "", environment: str = "") -> RunConfig:
        """The configuration of a combination, without seed and folder. Command lines are slow to parse, and specs
        change only the interventions. So arms with the same flags are parsed once."""
        bare = read_command(self.command(replace(arm, specs=()), agent, environment))
        if not arm.specs:
            return bare
        try:
            specs = check(arm.specs, INTERVENTIONS)
        except ValueError as error:
            raise Wrong(f"'words': {error}") from error
        build(specs, INTERVENTIONS)  # refuses values out of range, and interventions that exclude each other
        return replace(bare, interventions=specs)

    def cells(self, root: Path | None = None, seeds: Sequence[int] = (), by_configuration: bool = False) -> list[Cell]:
        """All runs. Every combination runs with one seed before the next seed, so that a sweep that ends early can be
        compared.

        Args:
            root: The folder of the runs (None: the study's).
            seeds: The seeds (default: the study's).
            by_configuration: Name folders by configurations instead of labels, so that studies can share runs.
        """
        combinations = []
        for environment, agent, arm in self.combinations():
            config = self.config(arm, agent, environment)
            # The specs of the command line are spelled canonically, as in the configuration.
            command = self.command(replace(arm, specs=config.interventions), agent, environment)
            labels = Path(safe_name(environment.replace("/", "-")), safe_name(agent), safe_name(arm.name))
            folder = (self.folder if root is None else root) / (key(command) if by_configuration else labels)
            combinations.append((environment, agent, arm, config, command, folder))
        cells = []
        for seed in seeds or self.seeds:
            for environment, agent, arm, config, command, folder in combinations:
                run = str(folder / f"seed{seed}")
                # Without ./ a name that begins with a dash would be read as a flag.
                settled = replace(config, seed=seed, run=f"./{run}" if run.startswith("-") else run)
                cells.append(Cell(environment, agent, arm.name, seed, settled, _whole(command, settled)))
        return cells

    def scaled(self, steps: int) -> Study:
        """The same study with runs of `steps` environment steps, in a folder of its own."""
        data: dict[str, Any] = parse_yaml(self.text)
        common = data.get("testbed", data)
        for flags in (*_inner(data, "agents"), *_inner(data, "environments")):
            flags.pop("steps", None)
        for arm in (*_inner(data, "arms"), *_inner(common, "arms")):
            (arm.get("flags") or {}).pop("steps", None)
        common["flags"] = dict(common.get("flags") or {}) | {"steps": steps}
        return replace(_parsed(self.path, data), folder=self.folder.with_name(f"{self.folder.name}-{steps}steps"))


def _inner(data: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The sections within a section of labels."""
    content = data.get(name)
    return [item for item in content.values() if isinstance(item, dict)] if isinstance(content, dict) else []


@dataclass(frozen=True)
class Paper:
    """The source of a claim."""

    title: RequiredProse
    arxiv: str = ""
    where: Prose = ""


@dataclass(frozen=True, kw_only=True)
class Claim(Study):
    """A published claim, complete and checked: a study of one agent in one environment, with comparisons.

    Attributes:
        name: The file's name without its suffix.
        about, segment, record, flags: Those of the testbed. A run is divided into segments of this length; 0 gives
            twenty segments.
        minutes: Expected processor minutes, used until they have been measured.
        tried: Attempts to obtain the effect, with their outcome.
        check: The function that tests a claim of kind check, which has no runs.
    """

    name: str
    paper: Annotated[Paper, _paper]
    claim: RequiredProse
    kind: Literal["runs", "check"] = "runs"
    testbed: Annotated[Any, _unchecked] = None
    agents: Mapping[str, Flags] = field(default_factory=dict)
    environments: Mapping[str, Flags] = field(default_factory=dict)
    arms: Annotated[Mapping[str, Any], _claim_arms] = field(default_factory=dict)
    seeds: Annotated[tuple[int, ...], _seeds] = tuple(range(5))
    minutes: Annotated[float, _not_negative] = 0.0
    tried: Prose = ""
    check: str = ""

    @property
    def first_measure(self) -> Measure:
        return next(iter(self.measures.values()))

    def of_kind(self, kind: Kind) -> Arm | None:
        """The first arm of a kind."""
        return next((arm for arm in self.arms.values() if arm.kind == kind), None)

    def key(self, arm: Arm) -> str:
        """The name of an arm's runs, see `key`."""
        return key(self.command(arm))


@dataclass(frozen=True)
class Testbed:
    """The settings that claims share, and arms that they may use by name."""

    about: Prose
    flags: Annotated[Flags, _testbed_flags]
    segment: Annotated[int, _segment] = 0
    record: tuple[str, ...] = ()
    arms: Annotated[Mapping[str, Arm], _testbed_arms] = field(default_factory=dict)


@cache
def key(line: tuple[str, ...]) -> str:
    """`<env>/<agent and interventions>-<hash>` of a command line. Command lines of the same run have the same key,
    independent of the seed.

    The hash is over the settings that differ from the defaults of `pliant train`, so a new option with a neutral
    default keeps the keys of the stored results. A change of a default requires that the claims are run again.
    """
    config = replace(
        read_command(line), seed=0, run=None, resume="auto", threads=0, checkpoint_every=0, keep_checkpoints=1
    )
    defaults = RunConfig(agent_config=type(config.agent_config)(), env_config=type(config.env_config)())
    usual = dict(flat_fields(defaults))
    changed = sorted((name, value) for name, value in flat_fields(config) if value != usual[name])
    digest = hashlib.blake2b(repr(changed).encode(), digest_size=4).hexdigest()
    env, experiment = default_run_folder(config).parts[1:3]
    return f"{env[:60]}/{experiment[:60]}-{digest}"


def _whole(command: tuple[str, ...], config: RunConfig) -> tuple[str, ...]:
    """The command line that gives exactly this configuration."""
    chosen: list[str] = []
    for name in ("seed", "device", "threads", "checkpoint_every", "keep_checkpoints", "run"):
        if (flag := f"--{name.replace('_', '-')}") not in command:
            chosen += [flag, str(getattr(config, name))]
    return (*command, *chosen)


# ------------------------------------------------------------------------------------------------ reading files


def load_study(path: Path) -> Study:
    """The study or claim in a file, or in a folder that holds `study.yaml` (the runs are then in this folder).

    Raises:
        BadInput: One line that begins with the file.
    """
    path = Path(path).expanduser()
    folder = path if path.is_dir() else None
    path = path / FILE if folder is not None else path
    study = _parsed(path, read_yaml(path, "study"))
    if isinstance(study, Claim) and study.kind == "check":
        raise BadInput(f"{path}: a check has no runs: `pliant claims run {path}` evaluates it")
    return study if folder is None else replace(study, folder=folder)


def load_claim(path: Path) -> Claim:
    """The claim in a file (BadInput, one line that begins with the file)."""
    data = read_yaml(path, "claim file")
    if "agents" in data and "testbed" not in data:
        raise BadInput(f"{path}: a study, not a claim: `pliant sweep {path}` runs it")
    claim = _parsed(path, data, as_claim=True)
    assert isinstance(claim, Claim)
    return claim


def _parsed(path: Path, data: dict[str, Any], as_claim: bool = False) -> Study:
    try:
        return _claim(path, data) if as_claim or {"testbed", "claim", "check"} & data.keys() else _study(path, data)
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(f"{path}: {' '.join(str(error).split())}") from error


def _study(path: Path, data: dict[str, Any]) -> Study:
    study: Study = make(Study, data, "", path=path, folder=Path(), text=_dumped(data), record=())
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
    return _checked(
        replace(
            study,
            baseline=_baseline(study.baseline, study.arms),
            comparisons=with_measures(study.comparisons, study.arms, study.measures),
            record=tuple(sorted({measure.read for measure in study.measures.values() if "/" in measure.read})),
            folder=STUDIES / study.name,
        )
    )


def _claim(path: Path, data: dict[str, Any]) -> Claim:
    name = plain_text(path.parent.name if path.name == FILE else path.stem, "the name of the claim")
    of_testbed = ("about", "agents", "environments", "segment", "record", "flags", "baseline")
    given = {"name": name, "path": path, "folder": STUDIES / safe_name(name), "text": ""}
    claim: Claim = make(Claim, data, "", without=of_testbed, **given)
    if claim.kind == "check":
        for unused in ("testbed", "arms", "measures", "comparisons", "seeds"):
            if unused in data:
                raise Wrong(f"a check runs no agent, and has no {unused!r}")
        needs(data, ("check",), "")
        return claim
    needs(data, ("testbed", "arms", "measures", "comparisons"), "")
    bed, title, content = _testbed(path, claim.testbed)
    for name, arm in claim.arms.items():
        if arm is None and name not in bed.arms:
            raise Wrong(
                f"arm {name!r} has no content, and the testbed {title} no arm of this name."
                f"{did_you_mean(name, bed.arms)}"
            )
    arms = {name: bed.arms[name] if arm is None else arm for name, arm in claim.arms.items()}
    refuse_unrecorded(claim.measures.values(), bed.record, title)
    return _checked(
        replace(
            claim,
            about=bed.about,
            agents={str(bed.flags.get("agent") or RunConfig.agent): {}},
            environments={str(bed.flags.get("env") or RunConfig.env): {}},
            arms=arms,
            baseline=next((arm.name for arm in arms.values() if arm.kind == "control"), None),
            segment=bed.segment,
            record=bed.record,
            flags=bed.flags,
            comparisons=with_measures(claim.comparisons, arms, claim.measures),
            text=_dumped(data | {"testbed": content}),
        )
    )


def _dumped(data: Mapping[str, Any]) -> str:
    return yaml.dump(dict(data), Dumper=ConfigDumper, sort_keys=False, allow_unicode=True, width=120)


def _testbed(path: Path, content: Any) -> tuple[Testbed, str, Any]:
    """The testbed of a claim, its name, and its content: that of the section, or of a file beside the claim."""
    if not isinstance(content, str):
        return make(Testbed, content, "testbed"), path.stem, content
    beds = path.parent / "beds"
    known = [file.stem for file in sorted(beds.glob("*.yaml"))]
    if content not in known:
        raise Wrong(
            f"unknown testbed {shorten(content)}.{did_you_mean(content, known)} "
            f"known in {beds}: {', '.join(known) or 'none'}"
        )
    data = read_yaml(beds / f"{content}.yaml", "testbed")
    return make(Testbed, data, f"beds/{content}.yaml"), content, data


def _baseline(given: Any, arms: Mapping[str, Arm]) -> str | None:
    if given is not None:
        if not isinstance(given, str) or given not in arms:
            raise Wrong(f"the 'baseline' {shorten(given)} is not one of the arms.{did_you_mean(str(given), arms)}")
        return given
    controls = [arm.name for arm in arms.values() if arm.kind == "control"]
    if len(controls) > 1:
        raise Wrong(f"the controls are {' and '.join(controls)}: choose which one is the 'baseline'")
    return controls[0] if controls else None


def _checked(study: Any) -> Any:
    """Refuse too many runs, runs that `pliant train` would refuse, and two labels for the same run or folder."""
    check_number_of_runs(len(study.agents) * len(study.environments) * len(study.arms), len(study.seeds))
    for where, labels in (("agents", study.agents), ("environments", study.environments), ("arms", study.arms)):
        folders: dict[str, str] = {}
        for name in labels:
            folder = safe_name(name.replace("/", "-") if where == "environments" else name)
            if (other := folders.setdefault(folder, name)) != name:
                raise Wrong(f"{where}: {other!r} and {name!r} would share a folder: rename one of them")
    seen: dict[str, tuple[str, str, str]] = {}
    for environment, agent, arm in study.combinations():
        try:
            config = study.config(arm, agent, environment)
        except ValueError as error:
            raise Wrong(f"{agent} in {environment}, arm {arm.name!r}: {error}") from error
        plain = replace(config, checkpoint_every=0, keep_checkpoints=1, monitors=())
        mine = (environment, agent, arm.name)
        first = seen.setdefault(dump(plain), mine)
        if first != mine:
            labels = [(a, b) for a, b in zip(first, mine, strict=True) if a != b]
            names = " and ".join(repr(", ".join(pair[i] for pair in labels)) for i in (0, 1))
            raise Wrong(f"{names} are the same run")
    return study

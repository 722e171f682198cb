"""The command line and the configuration file: the settings that are read, their order, and the errors about mistakes.

Most tests use stand-ins for agents and environments, to test the configuration alone; the last tests use those of
pliant.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pliant.agents.hooks import Intervention
from pliant.common.specs import control_character
from pliant.interventions.core.spec import SpecError
from pliant.lab.errors import BadInput, bad_input
from pliant.lab.experiments.config import (
    AgentEntry,
    Known,
    Parsed,
    RunConfig,
    default_run_folder,
    defaults,
    differences,
    dump,
    flat_hparams,
    known,
    load,
    parse,
    run_folder,
)
from pliant.scripts import main as command
from pliant.scripts.main import exit_code


@dataclass(frozen=True)
class Net:
    """The network."""

    hidden: tuple[int, ...] = (64,)
    """Widths of the hidden layers."""
    body: Literal["mlp", "nature"] = "mlp"
    """What stands before them."""


@dataclass(frozen=True)
class DQNStandIn:
    """Deep Q-learning."""

    lr: float = 1e-3
    """Learning rate of the Q-network."""
    batch_size: int = 32
    """Transitions in a batch."""
    double: bool = False
    """Double Q-learning."""
    clip: float | None = None
    """Norm of gradients."""
    note: str = ""
    """Anything."""
    alpha: float | Literal["auto"] = "auto"
    """Temperature."""
    net: Net = field(default_factory=Net)

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, not {self.lr}")

    @classmethod
    def for_suite(cls, suite: str) -> DQNStandIn:
        return cls(lr=6.25e-5, net=Net(hidden=(512,), body="nature")) if suite == "atari" else cls()


@dataclass(frozen=True)
class SACStandIn:
    """Soft actor-critic."""

    lr: float = 3e-4
    """Learning rate of the critics."""
    tau_actor: float = 0.01
    """Only an actor has this."""


@dataclass(frozen=True)
class EnvStandIn:
    """Options of an environment."""

    sticky_actions: float | None = None
    """Probability of a repeated action."""
    life_loss: bool = False
    """Atari: a lost life ends bootstrapping."""
    pixels: int = 0
    """Control: side length of drawn observations."""


class Redo(Intervention):
    """Recycles dormant units."""

    def __init__(self, tau: float = 0.1, every: int = 1000) -> None:
        super().__init__()


class LayerNorm(Intervention):
    """Normalises."""


class Reset(Intervention):
    """Draws layers anew.

    Nikishin et al., 2022.
    """

    def __init__(self, layers: tuple[str, ...] = ("head",), when: str = "") -> None:
        super().__init__()


def _suite(name: str) -> str:
    return "atari" if name.startswith("ALE/") else "control"


AMONG = Known(
    agents={"dqn": AgentEntry(DQNStandIn, DQNStandIn), "sac": AgentEntry(SACStandIn, SACStandIn)},
    env_config=EnvStandIn,
    suite=_suite,
    env_options=lambda suite: {"atari": ["sticky_actions", "life_loss"], "control": ["pixels"]}[suite],
    interventions={"redo": Redo, "layer_norm": LayerNorm, "reset": Reset},
)


def read(*line: str) -> RunConfig:
    return parse(line, prog="train.py", among=AMONG).config


def write(folder: Path, text: str) -> str:
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


# The command line


def test_a_line_with_many_options_is_read_into_a_configuration() -> None:
    config = read(
        "--agent",
        "dqn",
        "--env",
        "ALE/Pong-v5",
        "--steps",
        "200000",
        "--seed",
        "3",
        "--num-envs",
        "8",
        "--interventions",
        "layer_norm",
        "redo(tau=0.1, every=1000)",
        "--run",
        "runs/x",
        "--resume",
        "never",
        "--device",
        "cuda:1",
        "--agent.lr",
        "1e-4",
        "--agent.double",
        "--agent.net.hidden",
        "256",
        "128",
        "--agent.clip",
        "10",
        "--env.sticky-actions",
        "0.0",
    )
    assert config == RunConfig(
        agent="dqn",
        env="ALE/Pong-v5",
        steps=200_000,
        seed=3,
        num_envs=8,
        run="runs/x",
        resume="never",
        interventions=("layer_norm", "redo(every=1000, tau=0.1)"),
        device="cuda:1",
        agent_config=DQNStandIn(lr=1e-4, double=True, clip=10.0, net=Net((256, 128), "nature")),
        env_config=EnvStandIn(sticky_actions=0.0),
    )
    assert type(config.env_config) is EnvStandIn
    assert type(config) is RunConfig


def test_a_line_without_arguments_gives_the_defaults() -> None:
    assert read() == defaults(among=AMONG)
    assert read().agent_config == DQNStandIn.for_suite("atari")


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        (["--num_envs=4"], "num_envs", 4),
        (["--num-envs=4"], "num_envs", 4),
        (["--steps", "1e6"], "steps", 1_000_000),
        (["--steps=1_000"], "steps", 1_000),
        (["--seed", "1", "--seed", "2"], "seed", 2),
        (["--run", "None"], "run", None),
        (["--interventions"], "interventions", ()),
        (["--interventions", "redo( every=1e2 )", "--seed", "1"], "interventions", ("redo(every=100)",)),
        (["--interventions=layer_norm"], "interventions", ("layer_norm",)),
        (["--interventions", "reset(when='a-b_c > -0.2')"], "interventions", ("reset(when='a-b_c > -0.2')",)),
    ],
)
def test_every_spelling_of_an_option_is_read(line: list[str], name: str, value: Any) -> None:
    assert getattr(read(*line), name) == value


def test_an_option_that_takes_a_list_can_be_empty() -> None:
    assert read("--agent.net.hidden").agent_config.net.hidden == ()


def test_dashes_and_underscores_are_equivalent_in_nested_options() -> None:
    assert read("--agent.batch_size", "7").agent_config == read("--agent.batch-size=7").agent_config
    assert read("--env.sticky_actions=0.5").env_config == read("--env.sticky-actions", "0.5").env_config
    assert read("--agent.double", "--agent.no_double").agent_config.double is False


def _help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *line: str, among: Known = AMONG) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as exited:
        parse([*line, "--help"], prog="train.py", among=among)
    assert exited.value.code == 0
    return capsys.readouterr().out


def _options(value: Any, prefix: str = "") -> list[str]:
    names = []
    for f in fields(value):
        inner = getattr(value, f.name)
        names += _options(inner, f"{prefix}{f.name}.") if is_dataclass(inner) else [f"{prefix}{f.name}"]
    return names


def test_help_shows_and_explains_every_field(capsys: Any, monkeypatch: Any) -> None:
    text = _help(capsys, monkeypatch)
    shown = set(re.findall(r"--[\w.-]+", text))
    own = {f.name for f in fields(RunConfig)} - {"agent_config", "env_config"}
    expected = own | {f"agent.{name}" for name in _options(DQNStandIn())} | {"env.sticky_actions", "env.life_loss"}
    assert {f"--{name.replace('_', '-')}" for name in expected} <= shown
    assert "--agent.tau-actor" not in shown, "an option of another agent"
    assert "--env.pixels" not in shown, "an option of another suite"
    for explanation in (
        "Learning rate of the Q-network. (default: 6.25e-05)",
        "Widths of the hidden layers. (default: 512)",
        "Number of environments that are stepped together. (default: 1)",
        "Probability of a repeated action.",
        "agent options",
        "env options",
        "Deep Q-learning.",
        "Options of an environment.",
        "--agent {dqn,ppo,sac,supervised}",
        "{auto,never}",
    ):
        assert explanation in text


def test_help_is_that_of_the_chosen_agent_and_suite(capsys: Any, monkeypatch: Any) -> None:
    text = _help(capsys, monkeypatch, "--agent", "sac", "--env", "Hopper-v5")
    assert "--agent.tau-actor" in text and "--agent.double" not in text
    assert "--env.pixels" in text and "--env.life-loss" not in text
    assert "Train sac in Hopper-v5." in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--agent", "dqm"], r"unknown agent 'dqm'\. Did you mean 'dqn'\? known agents: dqn, sac"),
        (["--agent=zzz"], r"unknown agent 'zzz'\. known agents: dqn, sac"),
        (["--agent.tau-actor", "1"], "--agent.tau-actor is an option of sac, not of dqn; choose it with --agent sac"),
        (["--agent", "sac", "--agent.no-double"], "--agent.no-double is an option of dqn, not of sac"),
        (["--agent", "sac", "--agent.net.hidden=1"], "--agent.net.hidden is an option of dqn, not of sac"),
        (["--agent.batch-siz", "3"], r"dqn has no option --agent.batch-siz\. Did you mean --agent.batch-size\?"),
        (["--agent.hidden", "3"], r"dqn has no option --agent.hidden\. Did you mean --agent.net.hidden\?"),
        (["--agent.no-lr"], "dqn has no option --agent.no-lr"),
        (["--agent.qqqqqq", "3"], "dqn has no option --agent.qqqqqq. --help lists them"),
        (["--env.stiky-actions", "3"], r"ALE/Pong-v5 has no option --env.stiky-actions\. Did you mean --env.sticky"),
        (["--env.pixels", "84"], "ALE/Pong-v5 has no option --env.pixels: it is not one of the suite atari"),
        (["--agent.double", "False"], "--agent.double takes no value: write --agent.double or --agent.no-double"),
        (["--agent.double=true"], "--agent.double takes no value"),
        (["--interventions", "redo", "--interventions", "layer_norm"], "--interventions is given twice; put all specs"),
        (["--interventions", "rdo"], r"unknown intervention 'rdo'\. Did you mean 'redo'\?"),
        (["--interventions", "redo(tua=1)"], r"redo has no parameter 'tua'\. Did you mean 'tau'\?"),
        (["--steps", "0"], "--steps must be at least 1 environment step, not 0"),
        (["--num-envs", "0"], "--num-envs must be at least 1 environment, not 0"),
        (["--seed", "-1"], "--seed must be at least 0, not -1"),
        (["--seed", str(2**63)], r"--seed must be at most 2\*\*63 - 1, not 2\*\*63"),
        (["--checkpoint-every", "-1"], "--checkpoint-every must be at least 0"),
        (["--keep-checkpoints", "0"], "--keep-checkpoints must be at least 1"),
        (["--agent.lr", "-1"], "--agent.lr must be positive, not -1"),
        (["--device", "gpu"], "--device must be auto, cpu, cuda"),
        (["--env", ""], "--env is empty"),
        (["--run", " "], "--run is empty"),
        (["--config", "/nowhere/config.yaml"], "there is no file /nowhere/config.yaml"),
    ],
)
def test_a_mistake_is_explained_in_one_line(line: list[str], message: str) -> None:
    with pytest.raises((BadInput, SpecError), match=message) as caught:
        read(*line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--stpes", "3"], "unknown option '--stpes'. Did you mean --steps?"),
        (["--"], "unknown option '--'"),
        (["--agent"], "--agent needs a value"),
        (["--config"], "--config needs a value"),
        (["--agent.lr", "abc"], "--agent.lr: 'abc' is not a number"),
        (["--steps", "1.5"], "--steps: '1.5' is not a whole number"),
        (["--steps", "many"], "'many' is not a whole number"),
        (["--steps", "1e999"], "'1e999' is not a whole number"),
        (["--agent.net.body", "natur"], "--agent.net.body 'natur' is not one of mlp, nature. Did you mean 'nature'?"),
        (["--resume", "always"], "--resume 'always' is not one of auto, never"),
        (["dqn"], "a value without an option: 'dqn'"),
        (["--config", ""], "--config is empty"),
        (["--config="], "--config is empty"),
        ([""], "an argument is empty"),
        (["--config", "a\0b"], "--config contains the control character U+0000: 'a"),
        (["--run", "a\nb"], "--run contains a line break"),
        (["--run", "\udcff"], "--run contains the control character U+DCFF"),
        (["--run", "x" * 256], "--run holds a name of 256 bytes"),
        (["--run", "~no such user/x"], "--run begins with the name of an unknown user"),
        (["--agent.learning-rate", "1"], "dqn has no option --agent.learning-rate. Did you mean --agent.lr?"),
        (["--learning-rate", "1"], "unknown option '--learning-rate'. Did you mean --agent.lr?"),
        (["--total-timesteps", "1"], "unknown option '--total-timesteps'. Did you mean --steps?"),
        (["--agent.n_envs=1"], "Did you mean --num-envs?"),
        (["--batch-size", "1"], "Did you mean --agent.batch-size?"),
        (["--env.repeat-action-probability", "1"], "Did you mean --env.sticky-actions?"),
    ],
)
def test_a_mistake_gives_an_error_of_pliant_and_prints_nothing(line: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(ValueError) as caught:
        read(*line)
    assert type(caught.value).__module__.startswith("pliant")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


# Precedence


def test_a_flag_overrides_the_file_which_overrides_the_preset_and_the_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "agent: {lr: 0.5, batch_size: 5}\nseed: 5\nsteps: 50\n")
    config = read("--config", file, "--seed", "6", "--agent.batch-size", "6")
    assert config.agent_config == DQNStandIn(
        lr=0.5,  # file over preset
        batch_size=6,  # flag over file
        net=Net(hidden=(512,), body="nature"),  # preset over default
        double=False,  # default
    )
    assert (config.seed, config.steps, config.num_envs) == (6, 50, 1)


def test_the_preset_is_that_of_the_environment_in_the_line_or_the_file(tmp_path: Path) -> None:
    assert read("--env", "Hopper-v5").agent_config == DQNStandIn()
    assert read("--env=Hopper-v5").agent_config == DQNStandIn()
    file = write(tmp_path, "env: Hopper-v5\n")
    assert read("--config", file).agent_config == DQNStandIn()
    assert read("--config", file, "--env", "ALE/Pong-v5").agent_config == DQNStandIn.for_suite("atari")


def test_the_source_of_settings_is_reported(tmp_path: Path) -> None:
    parsed = parse([], among=AMONG)
    assert isinstance(parsed, Parsed)
    assert parsed.source == "dqn's settings for atari"
    file = write(tmp_path, "seed: 1\n")
    assert parse(["--config", file], among=AMONG).source == f"dqn's settings for atari, overridden by {file}"


# Files


def _configs() -> st.SearchStrategy[RunConfig]:
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    positive = st.floats(min_value=1e-300, allow_nan=False, allow_infinity=False)
    nets = st.builds(Net, st.lists(st.integers(), max_size=3).map(tuple), st.sampled_from(["mlp", "nature"]))
    dqn = st.builds(
        DQNStandIn,
        lr=positive,
        batch_size=st.integers(),
        double=st.booleans(),
        clip=st.none() | numbers,
        note=st.text() | st.sampled_from(["1e-4", "null", "~", "yes", "0x1", "1_0", "2024-01-01", "=", "<<"]),
        alpha=numbers | st.just("auto"),
        net=nets,
    )
    sac = st.builds(SACStandIn, numbers, numbers)
    specs = st.sampled_from(["layer_norm", "redo(every=7, tau=0.1)", "reset(layers=(head,), when='a: b # c')"])
    counts = st.integers(1, 2**62)

    def run(learner: Any, **rest: Any) -> RunConfig:
        return RunConfig(agent="dqn" if isinstance(learner, DQNStandIn) else "sac", agent_config=learner, **rest)

    names = st.text(min_size=1).filter(lambda text: text.strip() and control_character(text) is None)
    return st.builds(
        run,
        learner=dqn | sac,
        env=st.sampled_from(["ALE/Pong-v5", "Hopper-v5", "null", "1e3"]) | names,
        env_config=st.builds(EnvStandIn, st.none() | numbers, st.booleans(), st.integers()),
        interventions=st.lists(specs, max_size=3).map(tuple),
        steps=counts,
        seed=counts,
        log_every=counts,
        checkpoint_every=counts,
        num_envs=st.integers(1, 65_536),
        threads=st.integers(0, 1_024),
        run=st.none() | names | st.sampled_from(["null", "1", "on", "2024-01-01"]),
        resume=st.sampled_from(["auto", "never"]),
        device=st.sampled_from(["auto", "cpu", "cuda:1"]),
    )


@settings(deadline=None, max_examples=200)
@given(_configs())
@example(RunConfig(agent_config=DQNStandIn(note="1e-4", lr=1e-4), env_config=EnvStandIn(), run="~"))
@example(RunConfig(agent_config=DQNStandIn(note="0\x85 1\u2028\r2"), env_config=EnvStandIn()))
def test_a_saved_configuration_is_loaded(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
    loaded = load(folder, AMONG)
    assert loaded == config
    assert dump(loaded) == dump(config)
    assert repr(loaded) == repr(config), "also of the same types"


def test_a_saved_run_is_reloaded_and_overridden(tmp_path: Path) -> None:
    first = read("--env", "Hopper-v5", "--agent.lr=0.01", "--interventions", "redo(0.2)", "--seed=4", "--agent.double")
    file = write(tmp_path, dump(first))
    for source in (file, str(tmp_path)):
        assert read("--config", source) == first
        assert read("--config", source, "--seed", "5") == replace(first, seed=5)
        assert read("--config", source, "--interventions") == replace(first, interventions=())
        again = read("--config", source, "--agent.no-double")
        assert again == replace(first, agent_config=replace(first.agent_config, double=False))
    assert read("--config", file, "--agent", "dqn") == first
    with pytest.raises(BadInput, match="holds options of dqn, not of sac: remove --agent sac"):
        read("--config", file, "--agent", "sac")
    with pytest.raises(BadInput, match="unknown agent 'dqm'"):
        read("--config", file, "--agent", "dqm")


def test_a_file_written_by_hand_may_leave_out_keys_and_use_short_forms(tmp_path: Path) -> None:
    file = write(tmp_path, "agent: sac\nenv:\n  name: Hopper-v5\n  pixels: 84\nsteps: 1e6\ninterventions: layer_norm\n")
    config = load(file, AMONG)
    assert config == RunConfig(
        agent="sac",
        env="Hopper-v5",
        agent_config=SACStandIn(),
        env_config=EnvStandIn(pixels=84),
        steps=1_000_000,
        interventions=("layer_norm",),
    )
    assert read("--config", file, "--agent", "dqn").agent == "dqn", "the file has no options of sac"
    assert load(write(tmp_path, ""), AMONG) == defaults(among=AMONG)
    config = load(write(tmp_path, "agent: {lr: 1e-4, alpha: 1e-2, note: 1e-4, net: {hidden: 3}}"), AMONG)
    assert config.agent_config == replace(
        DQNStandIn.for_suite("atari"), lr=1e-4, alpha=1e-2, note="1e-4", net=Net((3,), "nature")
    )


def test_numbers_in_scientific_notation_are_read_as_floats(tmp_path: Path) -> None:
    assert yaml.safe_load("lr: 1e-4") == {"lr": "1e-4"}, "YAML reads it as text"
    config = load(write(tmp_path, "agent:\n  lr: 1e-4\n  clip: 10\n"), AMONG).agent_config
    assert (config.lr, config.clip) == (1e-4, 10.0)
    assert type(config.lr) is type(config.clip) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed: 1", r"config.yaml: unknown key 'sed'\. Did you mean 'seed'\?"),
        ("xyzzy: 1", r"unknown key 'xyzzy'\. known keys: agent, env, interventions, monitors, steps"),
        ("agent: {lrr: 1}", r"unknown key 'agent.lrr'\. Did you mean 'lr'\?"),
        ("agent: {net: {hiden: 1}}", r"unknown key 'agent.net.hiden'\. Did you mean 'hidden'\?"),
        ("env: {sticky: 1}", r"unknown key 'env.sticky'"),
        ("agent_config: {lr: 1}", "unknown key 'agent_config'"),
        ("1: 2", "unknown key '1'"),
        ("agent: dqm", r"unknown agent 'dqm'\. Did you mean 'dqn'"),
        ("agent: [dqn]", "'agent' must be a name, or a section with 'name' and options"),
        ("agent: {name: 3}", "'agent.name' expects str, not 3"),
        ("agent: {lr: abc}", "'agent.lr' expects float, not 'abc'"),
        ("agent: {double: 1}", "'agent.double' expects bool, not 1"),
        ("agent: {net: 3}", "'agent.net' expects Net, not 3"),
        ("agent: {net: null}", "'agent.net' expects Net, not None"),
        ("agent: {lr: {a: 1}}", "'agent.lr' expects float"),
        ("agent: {net: {body: natur}}", "'agent.net.body' expects 'mlp' | 'nature', not 'natur'"),
        ("agent: {lr: -1}", "config.yaml: lr must be positive, not -1"),
        ("seed: 1.5", "'seed' expects int, not 1.5"),
        ("seed: null", "'seed' expects int, not None"),
        ("steps: 0", "config.yaml: steps must be at least 1 environment step, not 0"),
        ("resume: always", "'resume' expects 'auto' | 'never', not 'always'"),
        ("interventions: [1]", r"'interventions' expects \(str, ...\)"),
        ("interventions: [rdo]", "unknown intervention 'rdo'"),
        ("seed: 1\nseed: 2", "config.yaml is not valid YAML: 'seed' appears twice"),
        ("agent: {lr: 1, lr: 2}", "'lr' appears twice"),
        ("a: b: c", "config.yaml is not valid YAML: mapping values are not allowed"),
        ("- 1", "must hold keys and values, not list"),
        ("!!python/object/apply:os.getcwd []", "is not valid YAML: could not determine a constructor"),
        ("a: \x01", "is not valid YAML"),
    ],
)
def test_a_mistake_in_a_file_is_reported_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    for consumer in (lambda: load(file, AMONG), lambda: read("--config", file)):
        with pytest.raises((BadInput, SpecError), match=message) as caught:
            consumer()
        assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="is not valid YAML"):
        load(tmp_path, AMONG)


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no file .*config\.yaml"):
        load(tmp_path, AMONG)


# Names of runs


@pytest.mark.parametrize(
    ("line", "folder"),
    [
        ([], "runs/ALE-Pong-v5/dqn/seed0"),
        (["--agent", "sac", "--env", "Hopper-v5", "--seed", "7"], "runs/Hopper-v5/sac/seed7"),
        (
            ["--interventions", "layer_norm", "redo(tau=.1, every=1e3)"],
            "runs/ALE-Pong-v5/dqn+layer_norm+redo,every=1000,tau=0.1/seed0",
        ),
        (["--interventions", "reset(layers=[head,torso])"], "runs/ALE-Pong-v5/dqn+reset,layers=head~torso/seed0"),
        (["--interventions", "reset(head)"], "runs/ALE-Pong-v5/dqn+reset,layers=head/seed0"),
    ],
)
def test_the_default_folder_names_environment_agent_and_interventions(line: list[str], folder: str) -> None:
    assert default_run_folder(read(*line)) == Path(folder)


def test_two_spellings_of_a_spec_give_one_folder_and_two_specs_give_two() -> None:
    one = default_run_folder(read("--interventions", "redo(tau=0.1, every=1000)"))
    assert default_run_folder(read("--interventions", "redo( 0.10,every = 1_000 )")) == one
    assert default_run_folder(read("--interventions", "redo(tau=0.2, every=1000)")) != one
    by_hand = [RunConfig(interventions=(spec,)) for spec in ("redo(tau=0.1, every=1000)", "redo(every=1000, tau=0.1)")]
    assert [default_run_folder(config) for config in by_hand] == [one, one]
    swapped = default_run_folder(read("--interventions", "redo(tau=0.1, every=1000)", "layer_norm"))
    assert swapped != default_run_folder(read("--interventions", "layer_norm", "redo(tau=0.1, every=1000)"))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.text(max_size=200), min_size=2, max_size=2, unique=True))
@example(["a > 1", "a < 1"])
@example(["x" * 300 + "1", "x" * 300 + "2"])
@example(["../..", "."])
@example(["1", "'1'"])
def test_names_of_folders_are_safe_and_differ(texts: list[str]) -> None:
    # Names of environments have no control characters; strings in specs may contain them as escapes.
    names = ["".join(c for c in text if control_character(c) is None).strip() or "x" for text in texts]
    configs = [
        RunConfig(interventions=(f"reset(when={text!r})",), env=env) for text, env in zip(texts, names, strict=True)
    ]
    folders = [default_run_folder(config) for config in configs]
    for folder in folders:
        assert len(folder.parts) == 4
        for part in folder.parts:
            assert re.fullmatch(r"[A-Za-z0-9_+=,][A-Za-z0-9._+=,~-]*", part), part
            assert len(part) <= 96 and not part.endswith(".")
    assert folders[0].parts[2] != folders[1].parts[2]


def test_a_given_folder_is_used_unchanged() -> None:
    assert run_folder(read("--run", "some where/else")) == Path("some where/else")
    assert run_folder(read("--run", "~/x")) == Path.home() / "x"
    assert run_folder(read()) == default_run_folder(read())


# Uses of a configuration


def test_hyperparameters_in_the_log_have_the_same_keys_for_every_agent() -> None:
    dqn, sac = (flat_hparams(read("--agent", agent, "--interventions", "redo(0.2)")) for agent in ("dqn", "sac"))
    assert list(dqn) == list(sac)
    assert 10 <= len(dqn) <= 15
    assert dqn["interventions"] == "redo(tau=0.2)"
    assert (dqn["agent"], dqn["lr"], dqn["batch_size"]) == ("dqn", 6.25e-5, 32)
    assert (sac["agent"], sac["lr"], sac["batch_size"]) == ("sac", 3e-4, "-")
    assert flat_hparams(read())["interventions"] == "-"
    assert all(isinstance(value, str | float | int) for value in dqn.values())


def test_differences_are_reported_by_flag() -> None:
    before = read("--agent.lr", "1e-3")
    assert differences(before, before) == {}
    after = read("--agent.lr", "1e-4", "--agent.net.hidden", "5", "--seed", "1", "--env.life-loss")
    assert differences(before, after) == {
        "seed": (0, 1),
        "agent.lr": (1e-3, 1e-4),
        "agent.net.hidden": ((512,), (5,)),
        "env.life_loss": (False, True),
    }
    other = differences(before, read("--agent", "sac"))
    assert other["agent"] == ("dqn", "sac")
    assert other["agent.tau_actor"] == ("(not set)", 0.01)


# Exit codes


class TheirError(ValueError):
    """A ValueError that pliant does not define."""


@pytest.mark.parametrize("error", [BadInput("wrong\nagain"), SpecError("wrong again")])
def test_bad_input_gives_one_line_and_exit_code_2(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> int:
        raise error

    assert exit_code(run) == 2
    assert capsys.readouterr() == ("", "error: wrong again\n")


@pytest.mark.parametrize("error", [ValueError("a bug"), TheirError("a bug"), KeyError("a bug"), FileNotFoundError("x")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    def run() -> int:
        raise error

    with pytest.raises(type(error)):
        exit_code(run)


@pytest.mark.parametrize("error", [ValueError, TheirError, FileNotFoundError, BadInput])
def test_an_error_during_the_setup_of_a_run_is_reported_as_bad_input(
    error: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> int:
        with bad_input():
            raise error("wrong")

    assert exit_code(run) == 2
    assert capsys.readouterr().err == "error: wrong\n"


def test_other_exit_codes_are_returned_unchanged() -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert exit_code(lambda: 0) == 0
    assert exit_code(lambda: 75) == 75
    assert exit_code(interrupted) == 130


# The command


def test_help_lists_the_commands_and_version_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ("train", "evaluate", "bench", "interventions"):
        assert re.search(rf"^  {name} +\S", text, re.MULTILINE)
    assert command.main(["--version"]) == 0
    assert re.fullmatch(r"pliant \d+\.\d+\S*\n", capsys.readouterr().out)
    assert command.main([]) == 2
    assert "usage: pliant COMMAND" in capsys.readouterr().err


def test_an_unknown_command_is_refused_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["trian", "--agent", "dqn"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: unknown command 'trian'. Did you mean 'train'? known commands: train,")
    assert output.err.count("\n") == 1


def test_a_command_gets_the_rest_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def echo(argv: list[str]) -> int:
        seen.append(argv)
        return 75

    monkeypatch.setattr(command, "echo", echo, raising=False)
    monkeypatch.setitem(command.COMMANDS, "echo", ("pliant.scripts.main:echo", ""))
    assert command.main(["echo", "--a", "b c"]) == 75
    assert seen == [["--a", "b c"]]


def test_help_does_not_import_torch() -> None:
    code = "import sys; from pliant.scripts.main import main; main(['--help']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_the_catalogue_lists_interventions_and_a_card_shows_one_with_its_cost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pliant.scripts.interventions.INTERVENTIONS", AMONG.interventions, raising=False)
    # The measured cost of pliant's own reset does not apply to the stand-in.
    monkeypatch.setattr("pliant.lab.commands.cards.COSTS", tmp_path / "costs.json")
    assert command.main(["interventions"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "layer_norm  Normalises.",
        "redo        Recycles dormant units.",
        "reset       Draws layers anew.",
    ]
    assert command.main(["interventions", "reset"]) == 0
    assert capsys.readouterr().out == (
        "reset(layers: (str, ...) = (head,), when: str = '')\n\nDraws layers anew.\n\nNikishin et al., 2022.\n"
    )
    cost = {"an agent": {"relative": 0.5, "event_ms": 12.3}, "another": {"relative": 1.0}}
    (tmp_path / "costs.json").write_text(json.dumps({"machine": "a machine", "methods": {"reset": cost}}))
    assert command.main(["interventions", "reset", "redo"]) == 0
    output = capsys.readouterr().out
    assert "Cost (a machine; `pliant bench --only interventions`):" in output and output.count("Cost (") == 1
    assert "    an agent: 0.50 of the plain agent's updates a second, and 12.3 ms whenever it fires\n" in output
    assert "    another: 1.00 of the plain agent's updates a second\n" in output
    assert command.main(["interventions", "rdo"]) == 2
    assert "unknown intervention 'rdo'. Did you mean 'redo'?" in capsys.readouterr().err
    monkeypatch.setattr("pliant.scripts.interventions.INTERVENTIONS", {})
    assert command.main(["interventions"]) == 0
    assert "no interventions" in capsys.readouterr().out


def test_the_error_of_a_checkout_that_is_not_installed_shows_how_to_install_it() -> None:
    scripts = Path(command.__file__).parent
    # Without site-packages pliant is not installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    line = [sys.executable, "-S", str(scripts), "train"]
    result = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    assert "pip install -e ." in result.stderr
    assert result.stderr.count("\n") == 1


# With pliant's own agents and environments


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Known:
    monkeypatch.setattr("pliant.lab.experiments.config.INTERVENTIONS", AMONG.interventions, raising=False)
    return known()


@pytest.mark.parametrize("env", ["ALE/Pong-v5", "MinAtar/Breakout-v1", "HalfCheetah-v5"])
@pytest.mark.parametrize("agent", ["dqn", "sac"])
def test_options_of_pliants_agents_are_read_explained_and_saved(
    agent: str, env: str, own: Known, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    config = parse(["--agent", agent, "--env", env, "--agent.gamma", "0.9"]).config
    preset = own.config_class(agent).for_suite(own.suite(env))
    assert config.agent_config == replace(preset, gamma=0.9)
    assert load(write(tmp_path, dump(config))) == config
    assert own.agent_class(agent).config_class is type(preset)
    hparams = flat_hparams(config)
    assert hparams["gamma"] == 0.9
    assert all(hparams[key] != "-" for key in ("lr", "batch_size", "replay_ratio", "n_step"))
    text = _help(capsys, monkeypatch, "--agent", agent, "--env", env, among=own)
    shown = set(re.findall(r"--[\w.-]+", text))
    wanted = [f"agent.{name}" for name in _options(preset)]
    wanted += [f"env.{name}" for name in own.env_options(own.suite(env))]
    assert {f"--{name.replace('_', '-')}" for name in wanted} <= shown
    undocumented = re.findall(r"^│ (--\S+(?: \S+)*)(?: {2,}| *│\n│ +)\(default:", text, re.MULTILINE)
    assert not undocumented, "options without an explanation"


def test_every_option_of_an_environment_belongs_to_a_suite(own: Known) -> None:
    belonging = {option for suite in ("atari", "minatar", "control", "stream") for option in own.env_options(suite)}
    assert belonging == {f.name for f in fields(own.env_config)}

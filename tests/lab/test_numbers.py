"""Every number of every configuration, spec and command line is finite and in the range of its annotation."""

from __future__ import annotations

import argparse
import dataclasses
import math
import pkgutil
import resource
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from gymnasium.spaces import Box

import pliant.agents
import pliant.envs
from pliant.agents import DQN, PPO, SAC, Supervised
from pliant.agents.clock import At, Every, When
from pliant.agents.dqn import DQNConfig
from pliant.agents.hooks import Intervention
from pliant.agents.networks import NetworkConfig
from pliant.agents.sac import SACConfig
from pliant.common.ranges import (
    OutOfRange,
    Range,
    at_least,
    check_numbers,
    field_hints,
    numeric_leaves,
    parameter_hints,
    parameters_of,
)
from pliant.common.spaces import ObservationSpec
from pliant.common.specs import Spec, SpecError, resolve
from pliant.envs.drift import DRIFTS
from pliant.envs.schedule import Schedule
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core.spec import LOOP, check
from pliant.interventions.redo import ReDo
from pliant.lab.commands.arguments import Numeric, Parser
from pliant.lab.errors import BadInput
from pliant.lab.experiments.config import AGENTS, RunConfig, load, load_class, parse
from pliant.monitors import MONITORS
from pliant.monitors.probing import Budget
from pliant.scripts import main, train

ABSURD = 10**40
COMMANDS = ("bench", "claims", "evaluate", "fork", "inspect", "report", "sweep")


def bad_values(kind: type[Any], ranges: tuple[Range, ...]) -> list[float]:
    """Values that a number of this type and range must refuse."""
    values: list[float] = [math.nan, math.inf, -math.inf, ABSURD if kind is int else 1e300]
    for each in ranges:
        step = 1 if kind is int else 0.5
        values += [each.low if each.above else each.low - step, each.high if each.below else each.high + step]
        if abs(each.high) > 2**52 and kind is float:  # where rounding loses a step
            values[-2:] = [each.low if each.above else min(2 * each.low, each.low - step), 2 * each.high]
    return values


def nested(value: float, path: str) -> Any:
    """A value in a tuple for every `[` of its path, or the value itself."""
    for _ in range(path.count("[")):
        value = (value,)  # type: ignore[assignment]
    return value


# ------------------------------------------------------------------------------------------------ configurations


def configurations() -> list[type[Any]]:
    """Every dataclass of agents and environments that is a configuration, and those of runs, probes and clocks."""
    kinds: dict[str, type[Any]] = {"RunConfig": RunConfig, "Budget": Budget}
    for package in (pliant.agents, pliant.envs):
        for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            for name, kind in vars(import_module(info.name)).items():
                if isinstance(kind, type) and is_dataclass(kind) and name.endswith(("Config", "Schedule")):
                    kinds[name] = kind
    kinds["EnvConfig"] = pliant.envs.EnvConfig
    del kinds["AgentConfig"]  # the base class of agents' configurations has no number of its own
    return list(kinds.values())


def test_the_configurations_of_all_agents_are_checked_here() -> None:
    assert {load_class(entry.config) for entry in AGENTS.values()} <= set(configurations())
    assert len(configurations()) >= 12


@pytest.mark.parametrize("kind", configurations(), ids=lambda kind: kind.__name__)
def test_every_number_of_a_configuration_has_a_range_and_is_refused_out_of_it(kind: type[Any]) -> None:
    seen = 0
    for field in fields(kind):
        for path, number, ranges in numeric_leaves(field_hints(kind)[field.name]):
            assert ranges, f"declare the range of {kind.__name__}.{field.name}: Annotated[{number.__name__}, ...]"
            for value in bad_values(number, ranges):
                with pytest.raises(ValueError) as refused:
                    kind(**({"every": 1} if kind is Schedule else {}) | {field.name: nested(value, path)})
                message = str(refused.value).removeprefix("--").replace("-", "_")
                assert message.startswith(f"{field.name} must be ") and "\n" not in message, message
            seen += 1
    assert seen


def test_numbers_in_nested_configurations_are_reported_with_their_dotted_name() -> None:
    config = DQNConfig()
    object.__setattr__(config.optimizer, "lr", math.nan)
    with pytest.raises(OutOfRange, match=r"^agent\.optimizer\.lr must be a finite number, above 0, not nan$"):
        check_numbers(config, "agent.")


def test_a_number_without_a_range_must_still_be_finite() -> None:
    @dataclasses.dataclass(frozen=True)
    class Plain:
        x: float = 0.0
        several: tuple[float, ...] = ()
        anything: Any = None

    check_numbers(Plain(1e300, (1.0,), "x"))
    for changes in (dict(x=math.inf), dict(several=(0.0, math.nan)), dict(anything=-math.inf)):
        with pytest.raises(OutOfRange, match=f"{next(iter(changes))} must be a finite number"):
            check_numbers(replace(Plain(), **changes))


def test_the_message_states_the_declared_type_bound_and_unit() -> None:
    for value in (1, 1_000_000):
        assert DQNConfig(batch_size=value, buffer_size=10**7).batch_size == value
    with pytest.raises(OutOfRange, match=r"^batch_size must be at least 1 transition, not 0$"):
        DQNConfig(batch_size=0)
    with pytest.raises(OutOfRange, match=r"at most 1,000,000 transitions, not 1,000,001: all of it is in memory at on"):
        DQNConfig(batch_size=1_000_001)
    with pytest.raises(OutOfRange, match=r"^batch_size must be a whole number, not 1\.5$"):
        DQNConfig(batch_size=1.5)  # type: ignore[arg-type]
    with pytest.raises(OutOfRange, match="not a whole number of 16610 bits"):
        DQNConfig(batch_size=10**5000)


def test_a_window_of_n_steps_must_fit_into_the_replay() -> None:
    with pytest.raises(OutOfRange, match=r"^n_step must be below buffer_size = 100, not 100: no window of so many"):
        DQNConfig(n_step=100, buffer_size=100)
    DQNConfig(n_step=99, buffer_size=100)


# ------------------------------------------------------------------------------------------------ specs

KINDS = [(name, kind, registry) for registry in (INTERVENTIONS, MONITORS, DRIFTS) for name, kind in registry.items()]
NEEDED: dict[str, dict[str, Any]] = {"replay_ratio": {"ratio": 2.0}, "matched_random": {"like": "redo"}}


@pytest.mark.parametrize(("name", "kind", "registry"), KINDS, ids=[name for name, *_ in KINDS])
def test_every_number_of_a_spec_has_a_range_and_is_refused_out_of_it(name: str, kind: Any, registry: Any) -> None:
    for key in parameters_of(kind):
        for path, number, ranges in numeric_leaves(parameter_hints(kind)[key]):
            assert ranges, f"declare the range of {name}({key}=...): Annotated[{number.__name__}, ...]"
            for value in bad_values(number, ranges):
                arguments = NEEDED.get(name, {}) | {key: nested(value, path)}
                # In Python …
                with pytest.raises(OutOfRange) as refused:
                    kind(**arguments)
                assert str(refused.value).startswith(f"{name}: {key} must be "), refused.value
                # … and in a spec, whose grammar has no infinite numbers.
                with pytest.raises(SpecError) as unread:
                    resolve(Spec(name, arguments), registry)
                message = str(unread.value)
                assert message.startswith((f"{name}: {key} must be ", f"{name}({key}=...) expects ")), message
                assert "\n" not in message


def test_additional_numbers_of_a_spec_have_ranges() -> None:
    assert all(ranges for hint in LOOP.values() for _, _, ranges in numeric_leaves(hint))
    for spec, message in {
        "redo(when='critic/x > nan')": "above must be a finite number",
        "redo(when='critic/x < -inf')": "below must be a finite number",
        "redo(when='critic/x > 1', patience=0)": "patience must be at least 1 measurement, not 0",
        "redo(when='critic/x > 1', cooldown=-1)": "cooldown must be at least 0 gradient updates, not -1",
    }.items():
        with pytest.raises(SpecError, match=message):
            check([spec], INTERVENTIONS)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Every(0),
        lambda: Every(10**40),
        lambda: Every(1, start=-1),
        lambda: At((3, 0)),
        lambda: When("critic/x", above=math.nan),
        lambda: When("critic/x", below=math.inf),
        lambda: When("critic/x", above=1.0, patience=0),
        lambda: ReDo(math.nan),
        lambda: ReDo(0.1, 0),
    ],
)
def test_numbers_out_of_range_are_refused_in_python_too(build: Any) -> None:
    with pytest.raises(OutOfRange):
        build()


def test_a_users_own_interventions_are_checked_by_their_annotations() -> None:
    class Mine(Intervention):
        name = "mine"

        def __init__(self, share: Annotated[float, at_least(0.0, "units", most=2.0)], free: float = 1) -> None:
            super().__init__()

    Mine(1.0)
    with pytest.raises(OutOfRange, match=r"^mine: share must be at most 2 units, not 3$"):
        Mine(3.0)
    for bad in ((math.nan,), (1.0, math.inf)):
        with pytest.raises(OutOfRange, match=r"^mine: (share|free) must be a finite number"):
            Mine(*bad)
    with pytest.raises(TypeError):  # Python's own error for the call
        Mine()  # type: ignore[call-arg]


# ------------------------------------------------------------------------------------------------ flags of train


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--agent.reward-clip nan", "--agent.reward-clip must be a finite number, at least 0, not nan"),
        ("--agent.optimizer.lr inf", "--agent.optimizer.lr must be a finite number, above 0, not inf"),
        ("--agent.optimizer.lr nan", "--agent.optimizer.lr must be a finite number, above 0, not nan"),
        ("--agent.optimizer.lr -1", "--agent.optimizer.lr must be above 0, not -1"),
        ("--agent.priorities.alpha nan", "--agent.priorities.alpha must be between 0 and 10, not nan"),
        ("--agent.gamma nan", "--agent.gamma must be between 0 and 1, not nan"),
        ("--agent.replay-ratio nan", "--agent.replay-ratio must be a finite number, at least 0 gradient updates per"),
        (
            "--agent.replay-ratio 1e9",
            "--agent.replay-ratio must be at most 10,000 gradient updates per environment "
            "step, not 1,000,000,000: a step would take minutes",
        ),
        ("--agent.n-step 1000000", "--agent.n-step must be at most 10,000 rewards, not 1,000,000"),
        ("--agent.n-step 5000 --agent.buffer-size 5000", "--agent.n-step must be below buffer_size = 5,000, not 5,000"),
        ("--agent.network.injections 1000000", "--agent.network.injections must be at most 100, not 1,000,000"),
        ("--agent.head.bins 100000000", "--agent.head.bins must be at most 100,000, not 100,000,000"),
        ("--agent.head.low 5 --agent.head.high 4", "--agent.head.low must lie below high"),
        ("--agent ppo --agent.entropy nan", "--agent.entropy must be a finite number, at least 0, not nan"),
        ("--agent sac --agent.temperature nan", "--agent.temperature must be a finite number, at least 0, not nan"),
        ("--agent sac --agent.target-entropy nan", "--agent.target-entropy must be a finite number"),
        ("--agent sac --agent.critics 1000000", "--agent.critics must be at most 100, not 1,000,000"),
        ("--agent sac --agent.target-critics 3", "--agent.target-critics must be at most critics = 2, not 3"),
        ("--agent sac --agent.actor-optimizer.lr nan", "--agent.actor-optimizer.lr must be"),
        ("--env ALE/Pong-v5 --env.noop-max 1000000000", "--env.noop-max must be at most 10,000 frames, not 1,000,000"),
        ("--env ALE/Pong-v5 --env.sticky-actions nan", "--env.sticky-actions must be at least 0 and below 1, not nan"),
        ("--env.drift friction(levels=(1,-1),every=9)", "friction: levels must be at least 0, not -1"),
        ("--num-envs 1000000000", "--num-envs must be at most 65,536 environments, not 1,000,000,000: each is simul"),
        ("--threads 100000", "--threads must be at most 1,024 threads, not 100,000"),
        ("--steps 0", "--steps must be at least 1 environment step, not 0"),
        ("--interventions redo(tau=-1)", "redo: tau must be at least 0, not -1"),
        ("--monitors units(samples=0)", "units: samples must be at least 1 transition, not 0"),
    ],
)
def test_a_number_out_of_range_is_reported_with_its_flag_and_leaves_nothing(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--env", "CartPole-v1"] if "--env " not in line else []
    assert main.exit_code(lambda: train.main([*given, "--run", str(tmp_path / "run"), *line.split()])) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()


def test_a_number_out_of_range_in_a_file_is_reported_with_file_and_key(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    for text, message in {
        "agent: {name: dqn, optimizer: {lr: .nan}}": "agent.optimizer.lr must be a finite number, above 0, not nan",
        "agent: {name: dqn, gamma: 2}": "agent.gamma must be between 0 and 1, not 2",
        "agent: {name: dqn, n_step: 30, buffer_size: 30}": "agent.n_step must be below buffer_size = 30, not 30",
        "num_envs: 0": "num_envs must be at least 1 environment, not 0",
        "agent: {name: dqn, network: {hidden: [3, 0]}}": "agent.network.hidden must be at least 1 unit, not 0",
    }.items():
        file.write_text(text)
        with pytest.raises(ValueError) as refused:
            load(file)
        assert str(refused.value).startswith(str(file)) and message in str(refused.value)


@pytest.mark.full
def test_every_flag_of_training_that_takes_a_number_is_refused_out_of_range() -> None:
    for agent, config_class in ((name, load_class(entry.config)) for name, entry in AGENTS.items()):
        for flag in flags_of(config_class, "--agent"):
            with pytest.raises(BadInput) as refused:
                parse(["--agent", agent, "--env", "CartPole-v1", f"{flag}=nan"])
            assert str(refused.value).startswith(f"{flag} must be "), refused.value


def flags_of(kind: type[Any], prefix: str) -> Iterator[str]:
    """The flags of a configuration that take a float."""
    for field in fields(kind):
        hint, flag = field_hints(kind)[field.name], f"{prefix}.{field.name.replace('_', '-')}"
        if isinstance(hint, type) and is_dataclass(hint):
            yield from flags_of(hint, flag)
        elif any(number is float for _, number, _ in numeric_leaves(hint)):
            yield flag


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "--agent.network.hidden 1000000 1000000",
            "an agent whose networks have 1,000,008,000,002 weights takes 20 TB, but cpu has 8 GB to spare: give "
            "smaller widths in --agent.network.hidden",
        ),
        ("--agent ppo --agent.actor-network.hidden 1000000 1000000", "an agent whose networks have 1,000,008,0"),
        ("--agent supervised --env stream/RandomLabels --agent.network.hidden 1000000 1000000", "an agent whose netw"),
        (
            "--agent sac --env Pendulum-v1 --agent.critics 100 --agent.network.hidden 10000 10000",
            "an agent whose networks have 10,00",
        ),
        ("--agent.network.hidden 3000 3000 --agent.network.injections 100", "an agent whose networks have 1,8"),
        ("--env ALE/Pong-v5 --agent.network.width 10000", "an agent whose networks have "),
        (
            "--agent.head.bins 100000 --agent.value-loss c51 --agent.network.hidden 10000",
            "an agent whose networks have 2,000,",
        ),
        ("--agent.value-loss quantile --agent.head.quantiles 10000", "a batch of 64 transitions takes 25.6 GB, but"),
        ("--agent.batch-size 1000000 --env ALE/Pong-v5", "a batch of 1,000,000 transitions takes 282 GB, but cpu"),
        ("--agent ppo --agent.rollout 1000000000", "a rollout of 1,000,000,000 steps of 1 environments takes"),
        (
            "--agent supervised --env stream/RandomLabels --agent.buffer-size 1000000000",
            "a memory of 1,000,000,000 samples takes",
        ),
        ("--agent.buffer-size 1000000000", "a replay of 1,000,000,000 transitions takes"),
        ("--agent.n-step 60 --num-envs 20 --agent.buffer-size 1000", "--agent.n-step must be smaller than 60: the n"),
        ("--env ALE/Pong-v5 --num-envs 60000", "the memory of 60,000 environments ALE/Pong-v5 takes 95.1 GB"),
        ("--env ALE/Pong-v5 --env.frame-stack 1000 --num-envs 1000", "the memory of 1,000 environments ALE/Pong-v5 ta"),
        ("--env CartPole-v1 --env.pixels 4096 --num-envs 64", "the memory of 64 environments CartPole-v1 takes 29 GB"),
        (
            "--agent supervised --env stream/RandomLabels --env.samples 1000000000",
            "the memory of 1 environments stream/RandomLabels takes 768 GB",
        ),
    ],
)
def test_sizes_that_would_exhaust_memory_are_refused_before_allocation(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("common.memory", "agents.replay"):
        monkeypatch.setattr(f"pliant.{module}.available_memory", lambda device: int(8e9 / 0.9) + 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    given = ["--env", "CartPole-v1"] if "--env " not in line else []
    arguments = [*given, "--threads", "1", "--run", str(tmp_path / "run"), *line.split()]
    assert main.exit_code(lambda: train.main(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "kB: nothing large was allocated"


@pytest.mark.parametrize(
    "agent",
    [
        lambda: DQN((4,), 2),
        lambda: DQN((4,), 2, DQNConfig(dueling=True, value_loss="quantile")),
        lambda: DQN(ObservationSpec((4, 84, 84), torch.uint8), 3),
        lambda: DQN(ObservationSpec((4, 84, 84), torch.uint8), 3, DQNConfig(network=NetworkConfig(body="impala"))),
        lambda: SAC((4,), Box(-1, 1, (2,)), SACConfig(dropout=0.1)),
        lambda: PPO((4,), 2),
        lambda: SAC(ObservationSpec((9, 84, 84), torch.uint8), Box(-1, 1, (2,))),
        lambda: PPO((4,), Box(-1, 1, (2,))),
        lambda: Supervised((4,), 10),
        lambda: DQN((4,), 2, DQNConfig(network=NetworkConfig(injections=2, norm="layer_norm"))),
    ],
)
def test_the_estimate_of_memory_equals_the_size_of_the_agent_and_draws_nothing(
    agent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        "pliant.agents.agent.refuse_too_large", lambda what, nbytes, device, way_out: asked.append(nbytes)
    )
    built = agent()
    held = 0
    for component in built.components.values():
        if component.online is getattr(built, "temperature", None):
            continue
        for p in component.online.parameters():
            held += p.nbytes * (4 if p.requires_grad else 1)
        held += sum(b.nbytes for b in component.online.buffers())
        if component.target is not None:
            held += sum(x.nbytes for x in (*component.target.parameters(), *component.target.buffers()))
    assert asked[0] == held
    with torch.device("meta"):
        generator = torch.Generator().manual_seed(0)
        state = generator.get_state()
        built.networks(generator)
    assert torch.equal(generator.get_state(), state)


# ------------------------------------------------------------------------------------------------ argparse


class Captured(Exception):
    """Carries the parser on which `parse_args` was called."""


def parser_of(command: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser of a command, captured when it is about to read the line."""

    def capture(self: argparse.ArgumentParser, *_: object) -> None:
        raise Captured(self)

    module, _, function = main.COMMANDS[command][0].partition(":")
    with monkeypatch.context() as patched, pytest.raises(Captured) as caught:
        patched.setattr(argparse.ArgumentParser, "parse_args", capture)
        getattr(import_module(module), function)([])
    parser: argparse.ArgumentParser = caught.value.args[0]
    return parser


def actions(parser: argparse.ArgumentParser) -> Iterator[tuple[list[str], argparse.Action]]:
    """Every argument of a parser and of its subcommands, with the names of the subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from (([name, *path], inner) for path, inner in actions(sub))
        else:
            yield [], action


def test_commands_that_use_argparse_are_all_listed_here() -> None:
    # The others have no numbers of their own (lists of names), or are read by tyro (train).
    assert set(main.COMMANDS) - set(COMMANDS) == {"train", "interventions", "monitors", "drifts"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_of_a_command_line_is_refused_out_of_range_in_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = parser_of(command, monkeypatch)
    assert isinstance(parser, Parser)
    numeric = [(path, action) for path, action in actions(parser) if isinstance(action.type, Numeric)]
    assert numeric
    for path, action in numeric:
        assert isinstance(action.type, Numeric)
        for value in ("nan", "inf", "-inf", "-1", str(ABSURD), "1e300", "x"):
            flag = action.option_strings[0]
            assert main.main([command, *path, f"{flag}={value}"]) == 2
            message = capsys.readouterr().err
            assert message.startswith(f"error: {flag} must be ") and message.count("\n") == 1, message


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_of_a_command_line_has_a_range(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [a.option_strings for _, a in actions(parser_of(command, monkeypatch)) if a.type in (int, float)]
    assert not plain, "give it type=read(Annotated[int, at_least(...)])"
    numeric = [a.type for _, a in actions(parser_of(command, monkeypatch)) if isinstance(a.type, Numeric)]
    assert all(each.ranges for each in numeric)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bench --rounds -1", "--rounds must be at least 1 round, not -1"),
        ("bench --threads 0", "--threads must be at least 1 thread, not 0"),
        ("bench --threads 100000", "--threads must be at most 1,024 threads, not 100,000: no machine gains by more"),
        (
            "inspect x --samples 1000000000000",
            "--samples must be at most 1,000,000 states, not 1,000,000,000,000: all of it is in memory at once",
        ),
        ("evaluate x --num-envs 1000000000", "--num-envs must be at most 65,536 environments, not 1,000,000,000"),
        ("evaluate x --epsilon 1.5", "--epsilon must be between 0 and 1, not 1.5"),
        ("evaluate x --episodes 2.5", "--episodes must be a whole number, not '2.5'"),
        ("sweep x --executor slurm --cpus 0", "--cpus must be at least 1 core, not 0"),
    ],
)
def test_messages_name_flag_bound_unit_and_value(
    line: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    assert main.main(line.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_numbers_are_written_as_on_the_command_line_of_train(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = parser_of("evaluate", monkeypatch)
    for text, value in (("1e3", 1000), ("1_000", 1000), ("7", 7)):
        assert parser.parse_args(["x", "--episodes", text]).episodes == value

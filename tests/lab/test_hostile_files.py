"""Files and names that may be hostile: shell text in studies, YAML without bounds, a wrong type at every key."""

from __future__ import annotations

import copy
import json
import math
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pliant.common.specs import LONGEST_SHOWN, SpecError, parse, shorten
from pliant.lab.claims.cards import load_claim
from pliant.lab.errors import BadInput
from pliant.lab.experiments.config import load
from pliant.lab.experiments.config import parse as parse_line
from pliant.lab.experiments.on_slurm import Request
from pliant.lab.experiments.study import load_study
from pliant.lab.experiments.yaml_file import BadYaml, parse_yaml
from pliant.scripts.main import main

STUDY: dict[str, Any] = {
    "name": "tiny",
    "title": "T",
    "about": "A",
    "agents": {"ppo": {"agent.rollout": 64}},
    "environments": {"CartPole-v1": {"num_envs": 1, "env.drift": ["observation_offset(every=400)"]}},
    "arms": {
        "plain": {"kind": "control"},
        "norm": {"kind": "linear", "words": ["layer_norm"], "flags": {"agent.epochs": 2}, "only": ["ppo"]},
    },
    "baseline": "plain",
    "seeds": 2,
    "segment": 100,
    "flags": {"steps": 400, "monitors": ["none"], "evaluate_episodes": 0},
}
CARD: dict[str, Any] = {
    "title": "T",
    "paper": {"title": "P", "arxiv": "2303.01486", "where": "w"},
    "claim": "C",
    "kind": "runs",
    "tried": "t",
    "minutes": 1.0,
    "seeds": 2,
    "testbed": {
        "about": "a",
        "flags": {"agent": "supervised", "env": "stream/RandomLabels", "steps": 640},
        "segment": 64,
        "record": ["losses/accuracy"],
        "arms": {"x": {"kind": "treatment", "words": ["layer_norm"]}},
    },
    "arms": {"plain": {"kind": "control", "words": [], "flags": {"agent.network.hidden": [8]}}, "x": None},
    "measures": {
        "m": {
            "read": "losses/accuracy",
            "of": "mean",
            "first": 0,
            "last": 1,
            "reduce": "mean",
            "relative": "none",
            "base": 1,
            "better": "higher",
            "unit": "u",
        }
    },
    "comparisons": [{"a": "x", "b": "plain", "expect": "higher", "margin": 0.1, "measure": "m", "paired": True}],
}
CHECK: dict[str, Any] = {"title": "T", "paper": {"title": "P"}, "claim": "C", "kind": "check", "check": "step_counter"}


def write(file: Path, data: Any) -> Path:
    file.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return file


def changed(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    data = copy.deepcopy(data)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return data


def whole_error(capsys: pytest.CaptureFixture[str]) -> str:
    """All of stderr; fails unless it is one printable line of an error."""
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert len(error) < 800 and error.rstrip("\n").isprintable(), error
    return error


# ------------------------------------------------------------------------------------------------ the shell


EVIL = "redo(tau=0.1,\nevery=1000#;touch PWNED\n)"
REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a spec with a command in a comment": ({"arms": {"plain": [EVIL]}}, []),
    "a spec on two lines": ({"arms": {"plain": ["redo(tau=0.1,\n every=1000)"]}}, []),
    "a spec with a carriage return": ({"arms": {"plain": ["redo(\rtau=0.1)"]}}, []),
    "a line separator": ({"arms": {"a\u2028touch PWNED": None}}, []),
    "an arm on two lines": ({"arms": {"a\ntouch PWNED": None}}, []),
    "an agent on two lines": ({"agents": {"a\ntouch PWNED": {"agent": "ppo"}}}, []),
    "an environment on two lines": ({"environments": {"CartPole-v1\ntouch PWNED": None}}, []),
    "an environment's name on two lines": ({"environments": {"e": {"env": "CartPole-v1\n"}}}, []),
    "an environment that is a flag": ({"environments": {"e": {"env": "--config=x"}}}, []),
    "a monitor on two lines": ({"flags": {"steps": 400, "monitors": ["units(every=100,\n)"]}}, []),
    "a monitor that is a flag": ({"flags": {"steps": 400, "monitors": ["none", "--run", "PWNED"]}}, []),
    "a flag with a value in its name": ({"flags": {"agent.rollout=64 --run": "PWNED"}}, []),
    "a flag on two lines": ({"flags": {"agent.rollout\ntouch PWNED": 64}}, []),
    "a name on two lines": ({"name": "tiny\n#SBATCH --wrap=x"}, []),
    "a partition on two lines": ({}, ["--partition", "gpu\n#SBATCH --wrap=x"]),
    "a partition with a command": ({}, ["--partition", "gpu; touch PWNED"]),
    "a partition that is a flag": ({}, ["--partition=--wrap"]),
    "a time on two lines": ({}, ["--time", "1\ntouch PWNED"]),
    "a time with a command": ({}, ["--time", "$(touch PWNED)"]),
    "a time in other digits": ({}, ["--time", "\u0661:00:00"]),
    "no cores": ({}, ["--cpus", "0"]),
    "a folder on two lines": ({}, ["--out", "a\ntouch PWNED"]),
    "a folder that is no UTF-8": ({}, ["--out", "a\udcff"]),
    "a folder in a file": ({}, ["--out", "study.yaml/x/y"]),
    "a folder with a name that is too long": ({}, ["--out", "x" * 300]),
    "a folder of an unknown user": ({}, ["--out", "~no-user-of-this-name/x"]),
    "a script on two lines": ({}, ["--emit", "a\ntouch PWNED"]),
    "a script in a file": ({}, ["--emit", "study.yaml/x"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_text_that_could_reach_a_shell_is_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    changes, options = REFUSED[case]
    write(tmp_path / "study.yaml", STUDY | {"baseline": None} | changes)
    assert main(["sweep", "study.yaml", "--executor", "slurm", *options]) == 2
    line = whole_error(capsys)
    assert options[0].partition("=")[0] in line if options else "study.yaml: " in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.yaml"], "nothing is left behind"


COMMANDS = [
    "$(touch PWNED)",
    "`touch PWNED`",
    "a; touch PWNED",
    "a && exec touch PWNED #",
    "a' ; touch PWNED; '",
    'a" ; touch PWNED; "',
    "a | touch PWNED",
    "a > PWNED",
    "a\\",
    "* ? [x]",
    "  lead",
    "#x",
    "!x",
    "-x",
    "--run",
    "\u00e9\u6f22",
    "$HOME ${IFS}",
    "a&touch PWNED",
    "()",
    "{a,b}",
]


@pytest.mark.parametrize("name", COMMANDS)
def test_an_array_runs_exactly_its_own_commands(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real bash runs the script, with a `pliant` that records its arguments. Folders, labels, specs, the current
    folder and the script all have the hostile name."""
    here = tmp_path / name.strip("/") / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    escaped = "reset(layers='$(touch PWNED)\\ntouch PWNED', every=9)"  # a string that the agent does not know
    arms = {"plain": None, name: ["layer_norm \n", f"matched_random(like='redo(tau=0.1, every=9)')#{name}", escaped]}
    options = {
        "seeds": 1,
        "baseline": None,
        "arms": arms,
        "agents": {f"{name}": {"agent": "ppo"}},
        "environments": {f"on {name}": {"env": "CartPole-v1"}},
    }
    if name.startswith("-"):
        options["environments"] = {"x": {"env": "CartPole-v1"}}
    write(here / "study.yaml", STUDY | options | {"flags": {"steps": 64}})
    assert main(["sweep", "study.yaml", f"--out={name}", "--executor", "slurm", f"--emit={name}.sh"]) == 0
    (listed,) = here.glob("*.commands")
    lines = listed.read_text(encoding="utf-8").splitlines()
    cells = load_study(here / "study.yaml").cells(Path(name))
    assert len(lines) == len(cells) == 2
    for line, cell in zip(lines, cells, strict=True):
        assert shlex.split(line.split("\t")[1]) == ["exec", "pliant", "train", *cell.line]
    stand_in = tmp_path / "bin" / "pliant"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/bash\nprintf "%s\\0" "$PWD" "$@" > "$RECORD.$SLURM_ARRAY_TASK_ID"\necho ran\n')
    stand_in.chmod(0o755)
    for index, cell in enumerate(cells):
        environment = {
            "PATH": f"{stand_in.parent}:{os.environ['PATH']}",
            "RECORD": str(tmp_path / "record"),
            "SLURM_ARRAY_TASK_ID": str(index),
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path),
        }
        done = subprocess.run(["bash", "--", f"{here}/{name}.sh"], cwd=tmp_path, env=environment, capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        ran = (tmp_path / f"record.{index}").read_bytes().decode().split("\0")[:-1]
        assert ran == [str(here), "train", *cell.line]
        assert (here / cell.folder / "output.log").read_text() == "ran\n"
    assert len(list(tmp_path.glob("record.*"))) == 2 and not list(tmp_path.rglob("PWNED*"))
    assert {path.name for path in here.iterdir()} == {"study.yaml", name, f"{name}.sh", listed.name}
    # The dry run prints the same commands, to be copied from the terminal.
    capsys.readouterr()
    assert main(["sweep", "study.yaml", f"--out={name}", "--dry-run"]) == 0
    shown = capsys.readouterr().out.splitlines()[1:]
    assert [shlex.split(line) for line in shown] == [["pliant", "train", *cell.line] for cell in cells]


def test_a_run_records_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pool records it, in a folder that begins with a dash; the parser reads it back, and it repeats the run."""
    monkeypatch.chdir(tmp_path)
    root = "-x'; $(touch PWNED) && \\ `touch PWNED`"
    arms = {root: {"words": ["layer_norm"], "flags": {"agent.epochs": 1}}}
    flags = {"steps": 64, "evaluate_episodes": 0, "monitors": ["none"]}
    write(tmp_path / "study.yaml", STUDY | {"baseline": None, "seeds": 1, "arms": arms, "flags": flags})
    assert main(["sweep", "study.yaml", f"--out={root}", "--jobs", "1"]) == 0
    (cell,) = load_study(tmp_path / "study.yaml").cells(Path(root))
    folder = tmp_path / cell.folder
    (session,) = json.loads((folder / "versions.json").read_text())
    assert shlex.split(session["command"]) == ["pliant", "train", *cell.line]
    assert parse_line(list(cell.line)).config == cell.config
    assert load(folder) == replace(cell.config, run=None)
    assert all((folder / name).exists() for name in ("output.log", "cost.jsonl", "DONE"))
    capsys.readouterr()
    assert main(["train", *cell.line]) == 0 and "is already done" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([root, "study.yaml"])


def test_slurms_forms_of_times_and_partitions_are_accepted() -> None:
    for good in ("90", "04:00:00", "120:30", "2-12", "2-12:00:00", "UNLIMITED"):
        Request(time=good, partition="gpu_a100,cpu.long")
    for bad in ("", "-1", "4h", "1:2:3:4", "1 ", "01:00:00\n"):
        with pytest.raises(BadInput, match="--time"):
            Request(time=bad)


def test_a_spec_with_a_line_break_or_a_control_character_is_refused() -> None:
    for spec in (EVIL, "redo(\ttau=0.1)", "a\x1b", "redo(layers='\u2028')", "a\u202eb"):
        with pytest.raises(SpecError) as error:
            parse(spec)
        assert str(error.value).isprintable() and ("U+" in str(error.value) or "a line break" in str(error.value))
    assert str(parse("  redo(tau=0.1)\n")) == "redo(tau=0.1)"
    # A string may contain these characters as escapes; the canonical text has the same escapes.
    assert str(parse("redo(layers='a\\n\\u2028b')")) == "redo(layers='a\\n\\u2028b')"


# ------------------------------------------------------------------------------------------------ YAML


def laughs(levels: int = 30, lists: bool = True) -> str:
    """YAML in which every level repeats the one before nine times."""
    lines = ["a0: &a0 [lol]" if lists else "a0: &a0 {x: 1}"]
    for i in range(1, levels):
        inner = ", ".join([f"*a{i - 1}"] * 9)
        lines.append(f"a{i}: &a{i} [{inner}]" if lists else f"a{i}: &a{i} {{<<: [{inner}]}}")
    return "\n".join(lines) + "\n"


BOMBS = {
    "aliases": (laughs(), "more than 10,000 keys and values"),
    "merged sections": (laughs(lists=False), "more than 10,000 keys and values"),
    "a value that is refused": (laughs(5) + "seeds: *a4\n", "more than 10,000 keys and values"),
    "many values": ("[" + "1," * 100_000 + "]", "more than 10,000 keys and values"),
    "deep lists": ("a: " + "[" * 100_000, "more than 30 levels deep"),
    "deep sections": ("".join(" " * i + "a:\n" for i in range(600)), "more than 30 levels deep"),
    "deep dashes": ("- " * 50_000, "more than 30 levels deep"),
    "a chain of aliases": (
        "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 3000)),
        "more than 30 levels deep",
    ),
    "a list in itself": ("a: &a [*a]", "within its own anchor"),
    "a section in itself": ("a: &a {b: *a}", "within its own anchor"),
    "a large file": ("a: " + "x" * 300_000, "larger than 256 KiB"),
    "a long number": ("a: 0x" + "f" * 100_000, "more than 100 characters"),
    "a long name": ("a: *" + "x" * 100_000, "undefined alias"),
    "a key twice": ("a: 1\na: 2\n", "'a' appears twice, line 2"),
    "a key twice, deep": ("a:\n  b: {c: 1, c: 2}\n", "'c' appears twice"),
    "an object": ("a: !!python/object/apply:os.system ['touch PWNED']", "could not determine a constructor"),
    "bytes": ("a: !!binary aGk=", "could not determine a constructor"),
    "two documents": ("a: 1\n---\nb: 2\n", "a single document"),
    "a bad number": ("a: !!int x", "invalid literal"),
    "NUL": ("a: \0", "#x0000"),
    "not UTF-8": (b"a: \xff", "not UTF-8"),
    "not YAML": ("a: [1", "expected ',' or ']'"),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("command", ["train --config", "sweep", "claims list"])
def test_a_bomb_is_refused_in_one_line_within_a_second(
    command: str, bomb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file, (content, expected) = tmp_path / "bomb.yaml", BOMBS[bomb]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.process_time()
    assert main([*command.split(), str(file)]) == 2
    assert time.process_time() - started < 1
    line = whole_error(capsys)
    assert str(file) in line and expected in line
    assert [path.name for path in tmp_path.iterdir()] == ["bomb.yaml"]


def test_an_endless_device_is_refused_as_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train --config", "sweep", "claims list"):
        assert main([*command.split(), "/dev/zero"]) == 2
        assert "larger than 256 KiB" in whole_error(capsys)


def test_yaml_values_keep_their_types() -> None:
    text = "a: &a {b: 1, c: 2.5, d: true, e: null, f: 2020-01-01, g: 1e-4}\nh: {<<: *a, b: -3}\ni: [*a, .inf, '1']\n"
    a = {"b": 1, "c": 2.5, "d": True, "e": None, "f": "2020-01-01", "g": "1e-4"}
    assert parse_yaml(text) == {"a": a, "h": a | {"b": -3}, "i": [a, math.inf, "1"]}
    assert parse_yaml("") is None
    with pytest.raises(BadYaml):
        parse_yaml("? [a]\n: 1\n")


def test_values_are_shortened_in_messages() -> None:
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep] * 9
    many = {str(i): "y" * 1000 for i in range(10**4)}
    for value in (deep, "x" * 10**6, "\0" * 10**6, 10**10000, many, [[1] * 10**6]):
        assert len(shorten(value)) <= LONGEST_SHOWN + 2
    assert [shorten(value) for value in ("a", [1, 2], (1.5,), None, {"a": 1})] == [
        "'a'",
        "[1, 2]",
        "(1.5,)",
        "None",
        "{'a': 1}",
    ]


# ------------------------------------------------------------------------------------------------ keys and types


WRONG: dict[str, Any] = {
    "none": None,
    "list": [[1]],
    "empty list": [],
    "mapping": {"a": {"b": 1}},
    "empty mapping": {},
    "number": 5.5,
    "nan": math.nan,
    "true": True,
    "empty": "",
    "long": "x" * 100_000,
    "control": "a\x1bb",
}
# Values that are valid at these keys: null omits most of them, and prose has no maximum length.
RIGHT: dict[str, set[str]] = {
    "title": {"long"},
    "claim": {"long"},
    "where": {"none", "empty", "long"},
    "unit": {"empty", "long"},
    "tried": {"none", "empty", "long"},
    "about": {"none", "empty", "long"},
    "arxiv": {"empty"},
    "b": {"number"},
    "minutes": {"number"},
    "margin": {"number"},
    "paired": {"true"},
    "measure": {"empty"},
    "plain": {"none", "empty list", "empty mapping"},
    "x": {"none", "empty list", "empty mapping"},
    "ppo": {"none", "empty mapping"},
    "CartPole-v1": {"none", "empty mapping"},
    "words": {"empty list"},
    "only": {"empty list"},
    "monitors": {"none", "empty list"},
    "env.drift": {"none", "empty list"},
    "baseline": {"none"},
    "flags": {"none", "empty mapping"},
    "kind": {"none"},
    "agent.rollout": {"none"},
    "agent.epochs": {"none"},
    "num_envs": {"none"},
    "steps": {"none"},
    "evaluate_episodes": {"none"},
    "agent": {"none"},
    "env": {"none"},
    "agent.network.hidden": {"none"},
}


def paths(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in pairs:
        yield (*at, key)
        yield from paths(value, (*at, key))


@pytest.mark.parametrize(
    ("kind", "path"),
    [(kind, path) for kind, data in (("study", STUDY), ("card", CARD), ("check", CHECK)) for path in paths(data)],
)
def test_a_wrong_type_at_any_key_is_refused_by_name(kind: str, path: tuple[Any, ...], tmp_path: Path) -> None:
    data = {"study": STUDY, "card": CARD, "check": CHECK}[kind]
    read: Any = load_study if kind == "study" else load_claim
    read(write(tmp_path / "right.yaml", data))
    file = tmp_path / "wrong.yaml"
    named = [key for key in path if isinstance(key, str)][-1]
    right = RIGHT.get(path[-1], set())
    for what, value in WRONG.items():
        write(file, changed(data, path, value))
        try:
            read(file)
        except BadInput as error:
            line = str(error)
            assert line.startswith(f"{file}: ") and line.isprintable() and len(line) < 700, (what, line)
            stem = named.rpartition(".")[2].rstrip("s")  # the message may name an element instead of the list
            assert stem.replace("_", "-") in line.replace("_", "-"), (what, line)
        else:
            assert what in right, f"{what} is accepted"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["right.yaml", "wrong.yaml"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": 1_000_000_000}, "'seeds': 1 combination times 1,000,000,000 seeds are more than 100,000 runs"),
        ({"seeds": 60_000}, "'seeds': 2 combinations times 60,000 seeds are more than 100,000 runs"),
        ({"seeds": 10**30}, "'seeds'"),
        ({"seeds": [2**63]}, "'seeds': a seed is below 2**63"),
        ({"arms": [f"a{i}" for i in range(5001)], "environments": {"a": None, "b": None}}, "more than 10,000"),
        ({"baseline": ["plain"]}, "the 'baseline' ['plain'] is not one of the arms"),
        ({"name": "x" * 101}, "'name' has more than 100 characters"),
        ({"flags": {"agent.n-step": 1, "agent.n_step": 2}}, "'agent.n_step' appears twice"),
    ],
)
def test_a_study_of_absurd_size_is_refused_at_once(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    file = write(tmp_path / "study.yaml", {k: v for k, v in (STUDY | {"baseline": None} | changes).items() if v})
    started = time.process_time()
    with pytest.raises(BadInput) as error:
        load_study(file)
    assert time.process_time() - started < 2 and expected in str(error.value)


def test_a_card_of_absurd_size_is_refused_at_once(tmp_path: Path) -> None:
    for seeds in (1_000_000_000, 60_000):
        with pytest.raises(BadInput, match=r"'seeds': .* are more than 100,000 runs"):
            load_claim(write(tmp_path / "card.yaml", CARD | {"seeds": seeds}))


def test_a_negative_number_in_a_file_is_a_value(tmp_path: Path) -> None:
    changes = {"agents": {"sac": {"agent.target_entropy": -1e-5}}, "environments": ["Pendulum-v1"], "arms": ["plain"]}
    study = load_study(write(tmp_path / "study.yaml", STUDY | changes))
    assert {cell.config.agent_config.target_entropy for cell in study.cells()} == {-1e-5}
    assert "--agent.target-entropy=-1e-05" in study.cells()[0].line


def test_a_refused_value_of_a_configuration_is_shortened(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    long, many = "x" * 90_000, "[1], " * 3000
    for text in (f"steps: {long}", f"agent: [{many}]", f'"{long}": 1', f"seed: [{many}]", f"agent: {long}"):
        file.write_text(text)
        with pytest.raises(BadInput) as error:
            load(file)
        assert len(str(error.value)) < 700 and str(file) in str(error.value)

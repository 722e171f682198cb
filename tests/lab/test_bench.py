"""`pliant bench`: measurements are recorded as they come, and a bench that was killed goes on with what is missing."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorder import RecordedGraph

from pliant.lab.benchmarks import interventions, machine, peers, speed, updates
from pliant.lab.benchmarks.record import Record
from pliant.scripts import bench
from pliant.scripts.main import main


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`pliant bench --only …` in an empty folder, with tasks of a few steps; processes become calls."""
    # Nothing here starts Atari: the tests need no OpenCV.
    monkeypatch.setattr("pliant.scripts.bench.find_spec", lambda name: True)
    monkeypatch.chdir(tmp_path)
    tasks = {name: replace(task, warmup=40, steps=60) for name, task in speed.TASKS.items()}
    monkeypatch.setattr(speed, "TASKS", tasks)
    monkeypatch.setattr(bench, "TASKS", tasks)

    def in_this_process(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:3] == ["-m", "pliant.scripts"]
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = main(command[3:])
        return subprocess.CompletedProcess(command, code, out.getvalue(), "")

    monkeypatch.setattr(speed.subprocess, "run", in_this_process)
    return lambda *line: main(["bench", "--only", *line])


def test_training_is_measured_beside_sb3_and_printed_as_it_comes(
    small: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert small("cartpole", "--rounds", "2") == 0
    out, err = capsys.readouterr()
    assert "- processor: " in out and "- load at the start: " in out
    row = out.splitlines()[-1].split(" | ")
    assert row[0].startswith("| DQN, CartPole") and row[-1] == "2 |" and float(row[1].replace(",", "")) > 0
    lines = [line for line in err.splitlines() if line.startswith("round ")]
    assert [line.split(": ")[-1].split()[0] for line in lines] == ["pliant", "SB3"] * 2


def test_a_killed_bench_goes_on_with_what_is_missing(
    small: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []

    def measure(library: str, name: str, threads: int, device: str) -> float:
        if len(calls) == 3:
            calls.append("killed")
            raise KeyboardInterrupt
        calls.append(library)
        return 50.0 if library == "sb3" else 100.0 * len(calls)

    monkeypatch.setattr(speed, "_in_process", measure)
    line = ("pong", "--rounds", "2")
    assert small(*line) != 0
    assert json.loads(Path("runs/bench.json").read_text())["finished"] is False
    capsys.readouterr()
    assert small(*line) == 0
    out, err = capsys.readouterr()
    assert calls == ["pliant", "sb3", "pliant", "killed", "sb3"]
    assert "4 measurements are in runs/bench.json" in err  # the load is one
    assert "| **4.00** (2.00–6.00) | 2 |" in out
    # The record is finished, so the next bench measures anew.
    assert small(*line) == 0
    assert len(calls) == 9


def test_a_record_of_other_settings_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "record.json"
    first = Record(file, {"threads": 1})
    assert first.once("a", lambda: 1) == 1 and first.once("a", lambda: 2) == 1
    assert Record(file, {"threads": 1}).measurements == {"a": 1}
    assert Record(file, {"threads": 2}).measurements == {}
    for damaged in ("", "[]", '{"settings": {"threads": 1}}', "{"):
        file.write_text(damaged)
        assert Record(file, {"threads": 1}).measurements == {}


def test_no_further_round_starts_once_the_time_is_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0.0]

    def measure(library: str, name: str, threads: int, device: str) -> float:
        now[0] += 10.0
        return 1.0

    monkeypatch.setattr(speed, "_in_process", measure)
    monkeypatch.setattr(speed.time, "monotonic", lambda: now[0])
    notes: list[str] = []
    settings = speed.Settings(rounds=5, seconds=65.0)
    speeds = speed.measure_speeds(["pong", "cartpole"], settings, Record(tmp_path / "r.json", {}), notes.append)
    assert [len(each["sb3"]) for each in speeds.values()] == [2, 1]
    assert notes[-1] == "the time was over after these numbers of rounds: pong 2, cartpole 1"


SCRIPT = """
import os, sys
print(sys.argv[1:], os.getcwd())
print("SPS: 90")
print("speed:  123.45 sps, epsilon: 0.1", file=sys.stderr)
"""


def test_scripts_of_cleanrl_and_leanrl_run_as_they_are(tmp_path: Path) -> None:
    """In their own processes: the speed that they print last counts, and a failure is a cell of the table."""
    for library, text in (("cleanrl", SCRIPT), ("leanrl", "raise SystemExit('no module named tensordict')")):
        file = tmp_path / "peers" / peers.SCRIPTS[library]["cartpole"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    script = peers.script_for("cleanrl", "cartpole", tmp_path / "peers")
    line = peers.arguments("cleanrl", "cartpole", steps=100, learning_starts=20, batch=128, device="cpu")
    assert script is not None and peers.steps_per_second(script, line, 1) == 123.45
    broken = peers.script_for("leanrl", "cartpole", tmp_path / "peers" / "leanrl")
    assert broken is not None
    with pytest.raises(peers.ScriptFailed, match=r"dqn_torchcompile\.py ended with exit code 1: no module named"):
        peers.steps_per_second(broken, [], 1)
    assert "--cudagraphs" in peers.arguments("leanrl", "pong", steps=1, learning_starts=1, batch=1, device="cuda")
    settings = speed.Settings(scripts={"cleanrl": tmp_path, "leanrl": tmp_path})
    one = {"pliant": [4.0], "sb3": [2.0], "cleanrl": [1.0], "leanrl": ["it failed"]}
    rows = speed.speed_rows({"cartpole": one}, settings)
    assert "| CleanRL steps/s | LeanRL steps/s |" in rows[0] and "| 4 | 2 | 1 | it failed | 0 |" in rows[2]
    assert len({row.count("|") for row in rows}) == 1


def test_the_tables_are_written_between_the_markers_of_a_page(small: Callable[..., int], capsys: Any) -> None:
    begin, end = bench.MARKERS
    page = Path("page.md")
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    assert small("memory", "--write", "page.md") == 0
    text = page.read_text()
    assert text.startswith(f"before\n{begin}\n\n- processor") and text.endswith(f"\n{end}\nafter\n")
    assert "| SB3 `ReplayBuffer` |" in text and "old" not in text
    page.write_text("no markers")
    capsys.readouterr()
    assert small("memory", "--write", "page.md") == 2
    assert "does not contain the lines" in capsys.readouterr().err and page.read_text() == "no markers"


def test_the_project_page_has_the_markers() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md").read_text()
    assert all(page.count(marker) == 1 for marker in bench.MARKERS)


def test_the_default_takes_at_most_five_minutes() -> None:
    """The arithmetic on a machine with the published speeds of SB3: the other tables take less than a minute."""
    assert set(bench.DEFAULT) == {"limits", "updates", "memory", *speed.TASKS}
    published = {"pong": 48, "cartpole": 1_824, "halfcheetah": 50}
    one_round = sum(2 * ((t.warmup + t.steps) / published[n] + 5) for n, t in speed.TASKS.items())
    assert one_round < 240


@pytest.mark.parametrize("workload", updates.TITLES)
def test_updates_are_made_and_their_operators_counted(workload: str) -> None:
    small = {"batch_size": 4}
    run = updates.prepared(workload, compile="off", **small)
    before = run.clock.updates
    updates.make_updates(run, 3)
    assert run.clock.updates == before + 3 and run.batch is not None and len(run.batch.reward) == 4
    assert updates.operators(run) > 50


def test_updates_run_as_graphs_on_a_stand_in() -> None:
    run = updates.captured("mlp", "cpu", RecordedGraph)
    assert run.learner.captured  # type: ignore[attr-defined]


def test_a_benchmark_refuses_an_agent_that_forgot_its_updates() -> None:
    run = updates.prepared("mlp")
    run.memory.clear()
    with pytest.raises(RuntimeError, match="forgot"):
        updates.make_updates(run, 1)


def test_a_rate_is_the_number_of_calls_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def make(calls: int) -> None:
        now[0] += calls / 8  # eight calls per second

    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])
    assert machine.rate(make, 10.0) == 8.0


def test_the_limits_of_the_machine_are_measured() -> None:
    for title, (unit, measure) in machine.limits("cpu").items():
        if "CartPole" in title or unit == "1/s":
            assert measure(0.02) > 100
    assert {"processor", "software"} <= machine.describe().keys()


def test_the_cost_of_a_method_counts_its_firing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that needs no time costs nothing; a firing of one second at every thousandth update costs its share."""
    monkeypatch.setattr(interventions, "block", lambda run, number: number / 100)
    monkeypatch.setattr(interventions, "firing", lambda run: (1.01, 1_000))
    cost = interventions.cost_of("sac", "layer_norm", None, 1)
    assert cost is not None and cost["event_ms"] == pytest.approx(1000) and cost["relative"] == pytest.approx(10 / 11)
    assert interventions.cost_of("sac", "random_shift", None, 1) is None

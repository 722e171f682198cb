"""`make gpu` on a machine without a GPU: it runs as far as it goes, and a cut leaves valid files."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import on_gpu
import pytest
import torch
from recorder import RecordedGraph

from pliant.agents.captured import CapturedLearner
from pliant.lab.benchmarks import speed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sections run in this process, as on a machine without a GPU."""

    def lines(command: list[str], log: Path, seconds: float) -> Iterator[str | int]:
        rows: list[str] = []
        if "section" in command:
            name, device = command[command.index("section") + 1 :][:2]
            on_gpu.SECTIONS[name](device, 1.0, lambda row: rows.append(json.dumps(row) + "\n"))
        yield from rows
        yield 0

    monkeypatch.setattr(on_gpu, "lines_of", lines)
    monkeypatch.setattr(on_gpu, "device", lambda: "cpu")


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    line = ["--out", str(tmp_path / "out"), "--page", str(tmp_path / "gpu.md"), *arguments]
    assert on_gpu.main(line) == 0
    content: dict[str, Any] = json.loads((tmp_path / "out" / "gpu.json").read_text())
    return content


def test_it_runs_without_a_gpu_and_marks_every_row(without_processes: None, tmp_path: Path) -> None:
    content = run(tmp_path, "--only", "captured", "updates", "training")
    assert content["finished"] and content["device"] == "cpu" and not content["notes"]
    assert all(row["draws"] == row["rest"] == "equal" and row["graphs"] for row in content["rows"]["captured"])
    assert [row["host waits"] for row in content["rows"]["captured"]] == ["none", "none"]
    (figures,) = content["rows"]["updates"]
    assert figures["eager"] > 1 and figures["operators an update"] > 50
    assert content["rows"]["training"][0]["steps/s"] > 1
    page = (tmp_path / "gpu.md").read_text()
    assert on_gpu.NO_GPU in page and page == (tmp_path / "out" / "gpu.md").read_text()
    assert "2 of 2 equal an eager update" in page
    tables = [line for line in page.splitlines() if line.startswith("| ") and "---" not in line]
    assert sum(on_gpu.NOT_MEASURED in line for line in tables) == len(tables) - 5  # the headers


def test_several_seeds_take_longer_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "TASKS", {"cartpole": replace(speed.TASKS["cartpole"], warmup=40)})
    monkeypatch.setattr(on_gpu, "SEEDS", 4)
    assert 1.5 < on_gpu.seeds_beside_one("cartpole", "cpu", 60) < 20


class Cut(Exception):
    """The command was killed."""


def test_a_cut_leaves_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(command: list[str], log: Path, seconds: float) -> Iterator[str | int]:
        if "section" not in command:
            outcomes = Path(command[command.index("--outcomes") + 1])
            done = {"test": "a.py::b", "outcome": "failed", "seconds": 1, "reason": "it | waits", "place": "c.py:7"}
            outcomes.write_text(json.dumps(done) + '\n{"test": "half a li')
            yield -9
        elif "updates" in command:
            yield '{"key": "dqn float32", "eager": 369.4}\n'
            yield '{"key": "dqn float32", "captured": 1694.2, "kernels an update": 117.0}\n'
            raise Cut
        else:
            yield "a warning\n"
            yield json.dumps({"key": "dqn", "error": "RuntimeError: not permitted when stream is capturing"}) + "\n"
            yield 1

    monkeypatch.setattr(on_gpu, "lines_of", lines)
    results = on_gpu.Results(tmp_path / "out", tmp_path / "gpu.md", "cuda", {"GPU": "a GPU, 80 GiB"})
    results.out.mkdir()
    on_gpu.run_laws(results, 3.0, None)
    on_gpu.run_section("captured", results, 3.0)
    with pytest.raises(Cut):
        on_gpu.run_section("updates", results, 3.0)
    content = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert not content["finished"]
    assert content["notes"] == {"laws": "cut after its 3 seconds", "captured": "ended with exit code 1; see log.txt"}
    page = (tmp_path / "gpu.md").read_text()
    assert "- GPU: a GPU, 80 GiB" in page and "did not finish" in page
    assert "1 failed." in page and "| 1 | c.py:7 | it / waits | a.py::b |" in page
    assert "| dqn |  | failed: RuntimeError: not permitted" in page
    assert "| DQN, Nature CNN, batch 32 | float32 | 369 | 1,694 | 117 | not measured | 2,000 |" in page
    widths = {line.count("|") for line in page.splitlines() if line.startswith("| ") and "Nature" in line}
    assert len(widths) == 1


def test_a_page_with_measurements_of_a_gpu_is_kept(without_processes: None, tmp_path: Path) -> None:
    measured = on_gpu.Results(tmp_path / "on_gpu", tmp_path / "gpu.md", "cuda", {"GPU": "a GPU"}, finished=True)
    measured.write()
    before = (tmp_path / "gpu.md").read_text()
    assert "did not finish" not in before
    run(tmp_path, "--only", "captured")
    assert (tmp_path / "gpu.md").read_text() == before
    assert on_gpu.NO_GPU in (tmp_path / "out" / "gpu.md").read_text()


def test_what_is_missing_is_named_and_left_out(
    without_processes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = {"gymnasium", "tyro", "hypothesis", "ale_py"}
    monkeypatch.setattr(on_gpu, "find_spec", lambda name: None if name in absent else object())
    content = run(tmp_path, "--only", "laws", "runs", "training")
    out = capsys.readouterr().out
    assert all(out.count(f"{name} is missing: ") >= 1 for name in absent)
    assert content["notes"] == {"laws": "not run: hypothesis is missing"}
    assert content["rows"]["runs"][0]["outcome"] == "not run: tyro is missing"
    assert content["rows"]["training"][0]["steps/s"] == "not run: gymnasium is missing"


@pytest.mark.parametrize("bug", ["", "weights", "draws"])
def test_a_graph_that_differs_from_an_eager_update_is_seen(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = CapturedLearner.learn

    def changed(self: CapturedLearner, plan: Any, draw: Any) -> Any:
        result = learn(self, plan, draw)
        if bug == "weights":
            with torch.no_grad():
                next(self.agent.components["critic"].online.parameters()).add_(0.01)
        elif bug == "draws":
            torch.rand(1, generator=next(iter(self.memory.generators())))
        return result

    monkeypatch.setattr(CapturedLearner, "learn", changed)
    row = on_gpu.beside_eager("dqn", (), RecordedGraph)
    if not bug:
        assert (row["draws"], row["rest"], row["largest difference"]) == ("equal", "equal", 0.0)
    elif bug == "weights":
        assert row["draws"] == "equal" and "critic.online" in row["rest"] and row["largest difference"] > 0.009
    else:
        assert row["draws"].startswith("differs: ") and row["rest"] != "equal"  # the next batch is another one


def test_a_section_is_killed_with_its_children_after_its_time(tmp_path: Path) -> None:
    script = "import subprocess, sys; print('{}', flush=True); subprocess.run([sys.executable, '-c', 'input()'])"
    start = time.monotonic()
    lines = list(on_gpu.lines_of([sys.executable, "-c", script + "; import time; time.sleep(60)"], tmp_path / "l", 1.0))
    assert lines[-1] in (-9, 0) and time.monotonic() - start < 30


PROBE = """
import pytest
from pliant.agents import DQN, Agent

def test_device():
    assert DQN((4,), 2).device.type == "meta", "agents are on the CPU"

@pytest.mark.full
def test_first_in_the_file_and_full():
    pass

@pytest.mark.parametrize("agent", [1, 2])
@pytest.mark.parametrize("method", ["a", "b"])
def test_an_update_never_waits(method, agent):
    pytest.skip("no reason")

def test_fails():
    raise RuntimeError("two\\nlines")

def test_not_among_the_cases():
    pass
"""


def test_the_plugin_puts_agents_on_a_device_and_writes_outcomes_in_order(tmp_path: Path) -> None:
    (tmp_path / "test_probe_of_plugin.py").write_text(PROBE.replace('DQN((4,), 2).device.type == "meta"', DEVICE))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "on_device", "-p", "no:cacheprovider", "-p", "no:xdist"]
    on_gpu.make_importable()
    command += ["--agents-on", "meta", "--outcomes", "out.jsonl", "--cases", "6", "-c", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), "-m", "not slow", str(tmp_path / "test_probe_of_plugin.py")],
        cwd=tmp_path,
        env=on_gpu.environment(),
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    shown = [(line["test"].rpartition("::")[2], line["outcome"]) for line in lines]
    waits = [(f"test_an_update_never_waits[{case}]", "skipped") for case in ("a-1", "b-1", "a-2", "b-2")]
    assert shown == [*waits, ("test_device", "passed"), ("test_fails", "failed")], done.stdout + done.stderr
    assert lines[5]["reason"] == "RuntimeError: two lines" and lines[5]["place"].startswith("test_probe_of_plugin.py:")


# An agent cannot be trained on the meta device, but its defaults show where it would be built.
DEVICE = 'Agent.__init__.__kwdefaults__["device"] == Agent.load.__func__.__kwdefaults__["device"] == "meta"'

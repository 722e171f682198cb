"""The number of threads is chosen once, by a measurement that changes no result; waiting threads use no cores."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
from law_agents import AGENTS

from pliant.agents.checkpoint import Checkpoints
from pliant.common import spinning
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core.spec import build
from pliant.lab.benchmarks.interventions import SPECS
from pliant.lab.errors import BadInput
from pliant.lab.experiments import pool, threads, training
from pliant.lab.experiments.config import RunConfig, load, parse
from pliant.lab.experiments.threads import Choice, Measured
from pliant.scripts import train

ROOT = Path(__file__).resolve().parents[2]
LINE = (
    "--agent {agent} --env {env} --device cpu --steps 400 --num-envs 2 --log-every 100 --evaluate-episodes 0 "
    "--monitors none"
)
DQN = LINE.format(agent="dqn", env="CartPole-v1") + " --agent.learning-starts 50 --agent.update-every 1"
PPO = LINE.format(agent="ppo", env="CartPole-v1") + " --agent.rollout 64"
SAC = LINE.format(agent="sac", env="Pendulum-v1") + " --agent.learning-starts 300 --interventions layer_norm l2"
SAC += " --agent.network.hidden 32 32 --agent.actor-network.hidden 32 32 --agent.batch-size 32"


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable sets the number of threads, and torch would use two."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def measuring(monkeypatch: pytest.MonkeyPatch, one: float, two: float, others: float | None = None) -> list[float]:
    """Replace the measurement by one with this result; the returned list collects the expected updates of each call."""
    asked: list[float] = []

    def measured(agent: Any, batch_size: int, most: int, expected: float) -> Measured:
        asked.append(expected)
        return Measured({1: one, most: two}, others)

    monkeypatch.setattr(threads, "updates_per_second", measured)
    return asked


def run(folder: Path, arguments: str = DQN) -> int:
    return train.main([*arguments.split(), "--run", str(folder)])


# ------------------------------------------------------------------------------------------------ the choice


@pytest.mark.parametrize(
    ("rates", "others", "most", "text"),
    [
        ({1: 19.5, 2: 31.04}, 0.1, 2, "2 threads: 31 updates/s, 19.5 with 1"),
        ({1: 19.5, 2: 31.04}, None, 2, "2 threads: 31 updates/s, 19.5 with 1"),
        ({1: 8.7, 2: 2.7}, 1.94, 2, "1 thread: 8.7 updates/s, 2.7 with 2; other processes use 1.9 of 2 cores"),
        ({1: 100.0, 2: 109.0}, 0.0, 2, "1 thread: 100 updates/s, 109 with 2"),  # less than a tenth more
        ({1: 100.0, 16: 1234.0}, 0.0, 16, "16 threads: 1,234 updates/s, 100 with 1"),
        ({}, None, 2, "1 thread: too few updates to measure"),
    ],
)
def test_the_faster_number_of_threads_is_chosen_and_the_reason_is_reported(
    rates: dict[int, float], others: float | None, most: int, text: str
) -> None:
    assert str(threads.choice_from(Measured(rates, others), most)) == text


@pytest.mark.parametrize(
    ("expected", "seconds", "allowed"),
    [
        (5_500, 0.035, 1.0),  # ten minutes of a real game
        (4_500, 0.002, 0.18),  # ten seconds of CartPole
        (199, 0.035, 0.0),
        (0, 0.035, 0.0),
        (1e9, 10.0, 1.0),
    ],
)
def test_a_measurement_takes_at_most_a_second_and_a_fiftieth_of_the_run(
    expected: float, seconds: float, allowed: float
) -> None:
    assert threads.budget(expected, seconds) == pytest.approx(allowed)


def test_the_measurement_of_a_short_run_makes_at_most_two_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, made = AGENTS["dqn"](), []
    update = agent.update
    monkeypatch.setattr(agent, "update", lambda *given: made.append(0) or update(*given))
    assert threads.updates_per_second(agent, 8, 2, 100).rates == {}
    assert len(made) == 2


@pytest.mark.parametrize(
    ("arguments", "updates"),
    [
        ("--agent dqn --env CartPole-v1 --steps 11000", 5_000),
        ("--agent sac --env Pendulum-v1 --steps 6000 --interventions replay_ratio(4)", 4_000),
        ("--agent ppo --env CartPole-v1 --steps 6400 --agent.epochs 10 --agent.batch-size 64", 1_000),
        ("--agent supervised --env stream/RandomLabels --num-envs 64 --steps 64000", 1_000),
        ("--agent dqn --env CartPole-v1 --steps 10", 0),
    ],
)
def test_the_number_of_updates_is_computed_before_the_run(arguments: str, updates: int) -> None:
    config = replace(parse(arguments.split(), prog="test").config, threads=1, device="cpu")
    envs, agent = training.built(config)
    envs.close()
    assert threads.updates(config, agent) == pytest.approx(updates)
    assert threads.batch_size(config, agent) > 1


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_can_be_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SECONDS", 0.01)
    before, stream = torch.get_num_threads(), torch.get_rng_state()
    rates, _ = threads.updates_per_second(AGENTS[name](), 8, 2, 1e9)
    assert rates.keys() == {1, 2} and min(rates.values()) > 0
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize("agent", ["dqn, minatar, dueling", "sac, pixels"])
def test_every_agent_can_be_measured_with_every_intervention(agent: str) -> None:
    made = 0
    for name in sorted(INTERVENTIONS):
        try:
            treated = AGENTS[agent](interventions=tuple(build([SPECS.get(name, name)], INTERVENTIONS)))
        except ValueError:
            continue  # refused by this agent, as in a run
        threads.updates_per_second(treated, 8, 2, 0)
        made += 1
    assert made > 25


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_number_set_by_a_variable_is_used_without_a_measurement(
    name: str, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "2")
    choice = threads.choose(RunConfig(), AGENTS["dqn"](), 2, pytest.fail)
    assert choice == Choice(2, f"{name} is set")


def test_one_core_needs_no_measurement(two_cores: None) -> None:
    assert str(threads.choose(RunConfig(), AGENTS["dqn"](), 1, pytest.fail)) == "1 thread"


# ------------------------------------------------------------------------------------------------ in a run


def test_the_first_line_reports_the_choice_and_the_folder_records_it(
    tmp_path: Path, two_cores: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = measuring(monkeypatch, 8.7, 2.7, 1.9)
    assert run(tmp_path) == 0
    assert asked == [pytest.approx(175)]
    first = capsys.readouterr().err.splitlines()[0]
    assert first.endswith("cpu, 1 thread: 8.7 updates/s, 2.7 with 2; other processes use 1.9 of 2 cores)")
    assert load(tmp_path).threads == 1

    # Now two threads would be faster; the run keeps its number, so that its results stay the same.
    torch.set_num_threads(2)
    asked = measuring(monkeypatch, 10.0, 20.0)
    assert run(tmp_path, DQN + " --steps 500") == 0
    assert not asked and load(tmp_path).threads == 1 and torch.get_num_threads() == 1
    assert capsys.readouterr().err.splitlines()[0].endswith("cpu, 1 thread)")

    # Another number on the command line is refused as another run.
    with pytest.raises(BadInput, match="--threads 1 there, 2 now"):
        run(tmp_path, DQN + " --steps 600 --threads 2")
    assert not asked


def test_a_number_on_the_command_line_is_used_without_a_measurement(
    tmp_path: Path, two_cores: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = measuring(monkeypatch, 10.0, 20.0)
    assert run(tmp_path / "given", DQN + " --threads 1") == 0
    assert capsys.readouterr().err.splitlines()[0].endswith("cpu, 1 thread)")
    assert train.main(["--config", str(tmp_path / "given"), "--run", str(tmp_path / "from file"), "--steps", "60"]) == 0
    assert load(tmp_path / "from file").threads == 1
    assert not asked


@pytest.mark.parametrize("arguments", [DQN, PPO, SAC], ids=["dqn", "ppo", "sac"])
def test_a_measured_run_equals_a_run_with_the_number_given(
    arguments: str, tmp_path: Path, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "SECONDS", 0.05)
    monkeypatch.setattr(threads, "LEAST", 0)
    measured: list[Measured] = []
    monkeypatch.setattr(threads, "choice_from", lambda rates, most: measured.append(rates) or Choice(most))
    assert run(tmp_path / "chosen", arguments) == 0
    assert measured and measured[0].rates.keys() == {1, 2}  # a real measurement, then two threads for any result
    assert run(tmp_path / "given", arguments + " --threads 2") == 0
    assert len(measured) == 1
    for file in ("metrics.jsonl", "config.yaml"):
        assert (tmp_path / "chosen" / file).read_bytes() == (tmp_path / "given" / file).read_bytes(), file
    a, b = (Checkpoints.open(tmp_path / name, verify=None).load("agent")["state"] for name in ("chosen", "given"))
    assert str(a) == str(b)
    for name, module in a["modules"].items():
        for key, value in module.items():
            assert not isinstance(value, torch.Tensor) or torch.equal(value, b["modules"][name][key]), key


# ------------------------------------------------------------------------------------------------ threads that wait


def test_a_setting_of_the_user_is_kept() -> None:
    assert spinning.bounded({}) == {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    for name in spinning.DECIDED:
        assert spinning.bounded({name: "1"}) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings GNU's OpenMP on Linux")
@pytest.mark.full
def test_the_openmp_that_torch_loads_has_read_the_setting() -> None:
    """In real processes, of the command and of the script."""
    module = [sys.executable, "-m", "pliant.scripts", "train", "--help"]
    script = [sys.executable, str(ROOT / "scripts" / "train.py"), "--help"]
    environment = {key: value for key, value in os.environ.items() if key not in spinning.DECIDED}
    environment["OMP_DISPLAY_ENV"] = "VERBOSE"  # OpenMP prints what it has read
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for command in (module, script)
    ]
    for text in [process.communicate()[1] for process in started]:
        assert "OMP_WAIT_POLICY = 'PASSIVE'" in text and "GOMP_SPINCOUNT = '0'" in text, text


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.full
def test_workers_of_a_pool_start_with_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variables of a real worker at its start, before it loaded anything."""
    for name in (*spinning.DECIDED, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # it was started with the settings of the tests
    started: list[str] = []
    wait = pool._Workers.wait

    def recorded(self: Any, seconds: float) -> Any:
        started.extend(Path(f"/proc/{process.pid}/environ").read_text() for process in self.busy if not started)
        return wait(self, seconds)

    monkeypatch.setattr(pool._Workers, "wait", recorded)
    config = replace(parse([*PPO.split(), "--run", str(tmp_path)], prog="test").config, steps=100)
    (outcome,) = pool.run_all([pool.Job(config)])
    assert outcome.status == "done", outcome.tail
    there = dict(entry.split("=", 1) for entry in started[0].split("\0") if "=" in entry)
    assert there["OMP_WAIT_POLICY"] == "PASSIVE" and there["KMP_BLOCKTIME"] == "0" and there["OMP_NUM_THREADS"] == "1"
    assert not {*spinning.DECIDED, "OMP_NUM_THREADS"} & os.environ.keys()
    assert json.loads((tmp_path / "DONE").read_text())["steps"] >= 100


def test_a_pool_keeps_a_setting_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in spinning.DECIDED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    with pool.one_thread():
        assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE" and "KMP_BLOCKTIME" not in os.environ
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


# ------------------------------------------------------------------------------------------------ the study


def test_the_study_measures_the_job_of_make_train_and_reports_the_choice(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("threads_study", ROOT / "studies" / "threads.py")
    assert spec is not None and spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    config = parse(study.job(), prog="test").config
    assert (config.env, config.num_envs, config.agent_config.learning_starts) == ("ALE/Freeway-v5", 4, 200)
    results = {
        f"{title}, beside {count}": {"steps/s": 100.0 - count, "updates/s": 25.0, "threads": 1, "why": why}
        for title, why in zip(study.VARIANTS, ("", "", "", "26 updates/s, 20 with 2"), strict=True)
        for count in study.NEIGHBOURS
    }
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    assert study.measure_missing(file, 1.0) == results  # no result is missing, so nothing is started
    assert "| with 2 busy processes | 98 | 98 | 98 | 98 (1 thread) |" in study.tables(results)

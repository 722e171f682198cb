"""The number of threads is chosen once and leaves no trace, and threads that wait do not take cores from others."""

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
from pliant.lab.benchmarks.interventions import WORDS
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
    """Nobody has said how many threads there are to be, and torch would take two."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def measuring(monkeypatch: pytest.MonkeyPatch, one: float, two: float, others: float | None = None) -> list[float]:
    """Replace the measurement by one with this result; the expected updates of each are kept."""
    asked: list[float] = []

    def measured(agent: Any, batch_size: int, most: int, expected: float) -> Measured:
        asked.append(expected)
        return Measured({1: one, most: two}, others)

    monkeypatch.setattr(threads, "updates_per_second", measured)
    return asked


def run(folder: Path, words: str = DQN) -> int:
    return train.main([*words.split(), "--run", str(folder)])


# ------------------------------------------------------------------------------------------------ the choice


@pytest.mark.parametrize(
    ("rates", "others", "most", "text"),
    [
        ({1: 19.5, 2: 31.04}, 0.1, 2, "2 threads: 31 updates/s, 19.5 with 1"),
        ({1: 19.5, 2: 31.04}, None, 2, "2 threads: 31 updates/s, 19.5 with 1"),
        ({1: 8.7, 2: 2.7}, 1.94, 2, "1 thread: 8.7 updates/s, 2.7 with 2; other processes use 1.9 of 2 cores"),
        ({1: 100.0, 2: 109.0}, 0.0, 2, "1 thread: 100 updates/s, 109 with 2"),  # a core for less than a tenth
        ({1: 100.0, 16: 1234.0}, 0.0, 16, "16 threads: 1,234 updates/s, 100 with 1"),
        ({}, None, 2, "1 thread: too few updates to measure"),
    ],
)
def test_the_faster_number_is_taken_and_the_reason_is_reported(
    rates: dict[int, float], others: float | None, most: int, text: str
) -> None:
    assert str(threads.judged(Measured(rates, others), most)) == text


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
def test_a_measurement_takes_a_second_at_most_and_a_fiftieth_of_the_run(
    expected: float, seconds: float, allowed: float
) -> None:
    assert threads.budget(expected, seconds) == pytest.approx(allowed)


def test_a_short_run_makes_at_most_two_updates_to_find_out_that_it_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, made = AGENTS["dqn"](), []
    update = agent.update
    monkeypatch.setattr(agent, "update", lambda *given: made.append(0) or update(*given))
    assert threads.updates_per_second(agent, 8, 2, 100).rates == {}
    assert len(made) == 2


@pytest.mark.parametrize(
    ("words", "updates"),
    [
        ("--agent dqn --env CartPole-v1 --steps 11000", 5_000),
        ("--agent sac --env Pendulum-v1 --steps 6000 --interventions replay_ratio(4)", 4_000),
        ("--agent ppo --env CartPole-v1 --steps 6400 --agent.epochs 10 --agent.batch-size 64", 1_000),
        ("--agent supervised --env stream/RandomLabels --num-envs 64 --steps 64000", 1_000),
        ("--agent dqn --env CartPole-v1 --steps 10", 0),
    ],
)
def test_updates_are_counted_before_the_run(words: str, updates: int) -> None:
    config = replace(parse(words.split(), prog="test").config, threads=1, device="cpu")
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
            treated = AGENTS[agent](interventions=tuple(build([WORDS.get(name, name)], INTERVENTIONS)))
        except ValueError:
            continue  # refused by this agent, as in a run
        threads.updates_per_second(treated, 8, 2, 0)
        made += 1
    assert made > 25


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_users_own_number_is_not_measured(name: str, two_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "2")
    choice = threads.choose(RunConfig(), AGENTS["dqn"](), 2, pytest.fail)
    assert choice == Choice(2, f"{name} is set")


def test_one_core_is_not_measured(two_cores: None) -> None:
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

    # By now the machine is idle, and two threads would be the faster: the run keeps its bits.
    torch.set_num_threads(2)
    asked = measuring(monkeypatch, 10.0, 20.0)
    assert run(tmp_path, DQN + " --steps 500") == 0
    assert not asked and load(tmp_path).threads == 1 and torch.get_num_threads() == 1
    assert capsys.readouterr().err.splitlines()[0].endswith("cpu, 1 thread)")

    # A number that is given is another run, and is told so.
    with pytest.raises(BadInput, match="--threads 1 there, 2 now"):
        run(tmp_path, DQN + " --steps 600 --threads 2")
    assert not asked


def test_a_given_number_is_not_measured(
    tmp_path: Path, two_cores: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = measuring(monkeypatch, 10.0, 20.0)
    assert run(tmp_path / "given", DQN + " --threads 1") == 0
    assert capsys.readouterr().err.splitlines()[0].endswith("cpu, 1 thread)")
    assert train.main(["--config", str(tmp_path / "given"), "--run", str(tmp_path / "from file"), "--steps", "60"]) == 0
    assert load(tmp_path / "from file").threads == 1
    assert not asked


@pytest.mark.parametrize("words", [DQN, PPO, SAC], ids=["dqn", "ppo", "sac"])
def test_a_measured_run_is_that_of_the_number_given(
    words: str, tmp_path: Path, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "SECONDS", 0.05)
    monkeypatch.setattr(threads, "LEAST", 0)
    measured: list[Measured] = []
    monkeypatch.setattr(threads, "judged", lambda found, most: measured.append(found) or Choice(most))
    assert run(tmp_path / "chosen", words) == 0
    assert measured and measured[0].rates.keys() == {1, 2}  # for real, and then two threads whatever it says
    assert run(tmp_path / "given", words + " --threads 2") == 0
    assert len(measured) == 1
    for file in ("metrics.jsonl", "config.yaml"):
        assert (tmp_path / "chosen" / file).read_bytes() == (tmp_path / "given" / file).read_bytes(), file
    a, b = (Checkpoints.open(tmp_path / name, verify=None).load("agent")["state"] for name in ("chosen", "given"))
    assert str(a) == str(b)
    for name, module in a["modules"].items():
        for key, value in module.items():
            assert not isinstance(value, torch.Tensor) or torch.equal(value, b["modules"][name][key]), key


# ------------------------------------------------------------------------------------------------ spinning


def test_a_users_own_setting_wins() -> None:
    assert spinning.bounded({}) == {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    for name in spinning.DECIDED:
        assert spinning.bounded({name: "1"}) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings GNU's OpenMP on Linux")
@pytest.mark.full
def test_the_openmp_that_torch_loads_has_read_the_setting() -> None:
    """Real processes: the command, and the script."""
    command = [sys.executable, "-m", "pliant.scripts", "train", "--help"]
    script = [sys.executable, str(ROOT / "scripts" / "train.py"), "--help"]
    environment = {key: value for key, value in os.environ.items() if key not in spinning.DECIDED}
    environment["OMP_DISPLAY_ENV"] = "VERBOSE"  # OpenMP prints what it has read
    started = [
        subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for words in (command, script)
    ]
    for text in [process.communicate()[1] for process in started]:
        assert "OMP_WAIT_POLICY = 'PASSIVE'" in text and "GOMP_SPINCOUNT = '0'" in text, text


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.full
def test_workers_of_a_pool_start_with_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a real worker's process was started with, before it loaded anything."""
    for name in (*spinning.DECIDED, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # it was started with the settings of the tests
    born: list[str] = []
    wait = pool._Workers.wait

    def watched(self: Any, seconds: float) -> Any:
        born.extend(Path(f"/proc/{process.pid}/environ").read_text() for process in self.busy if not born)
        return wait(self, seconds)

    monkeypatch.setattr(pool._Workers, "wait", watched)
    config = replace(parse([*PPO.split(), "--run", str(tmp_path)], prog="test").config, steps=100)
    (outcome,) = pool.run_all([pool.Job(config)])
    assert outcome.status == "done", outcome.tail
    there = dict(word.split("=", 1) for word in born[0].split("\0") if "=" in word)
    assert there["OMP_WAIT_POLICY"] == "PASSIVE" and there["KMP_BLOCKTIME"] == "0" and there["OMP_NUM_THREADS"] == "1"
    assert not {*spinning.DECIDED, "OMP_NUM_THREADS"} & os.environ.keys()
    assert json.loads((tmp_path / "DONE").read_text())["steps"] >= 100


def test_a_pool_leaves_a_users_own_setting(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert study.measure_missing(file, 1.0) == results  # all is there: nothing is started
    assert "| beside 2 busy processes | 98 | 98 | 98 | 98 (1 thread) |" in study.tables(results)

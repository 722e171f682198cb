"""Several seeds in one process: each is the run that it would be alone, to the last bit."""

from __future__ import annotations

import io
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Command, outcome_of
from refusals import error_line
from test_runs import RUNS, SMALL, content, same, steps_saved

from pliant.agents import DQN
from pliant.agents.clock import Clock
from pliant.agents.dqn import DQNConfig
from pliant.agents.ppo import PPO, PPOConfig
from pliant.agents.run import Run
from pliant.agents.supervised import Supervised, SupervisedConfig
from pliant.common import memory
from pliant.common.files import DONE
from pliant.common.memory import TooLarge, refuse_too_many
from pliant.common.spaces import Diverged
from pliant.envs import make
from pliant.lab.errors import BadInput
from pliant.lab.experiments.seeds import SharedProgress
from pliant.scripts.main import main

NET = ["--agent.network.hidden", "16"]
OFF_POLICY = ["--agent.learning-starts", "100", "--agent.buffer-size", "500", "--agent.batch-size", "8"]
OFTEN = ["--agent.update-every", "4"]
QUICK: dict[str, list[str]] = {
    "dqn with methods and monitors": [
        *("--agent", "dqn", "--env", "CartPole-v1", "--steps", "600", *NET, *OFF_POLICY, *OFTEN),
        *("--interventions", "layer_norm", "redo(tau=0.2, every=20)", "continual_backprop(rho=0.02, maturity=10)"),
        *("--monitors", "cheap", "probe(every=40, steps=4, batch_size=8, samples=16, draws=1)"),
    ],
    "sac": [
        *("--agent", "sac", "--env", "Pendulum-v1", "--steps", "250", *NET, *OFF_POLICY),
        *("--agent.actor-network.hidden", "16", "--interventions", "reset(every=60)"),
    ],
    "ppo": [
        *("--agent", "ppo", "--env", "CartPole-v1", "--num-envs", "2", "--steps", "600", *NET),
        *("--agent.actor-network.hidden", "16", "--agent.rollout", "32", "--agent.batch-size", "16"),
    ],
    "supervised": [
        *("--agent", "supervised", "--env", "stream/RandomLabels", "--num-envs", "8", "--steps", "1600", *NET),
        *("--interventions", "shrink_perturb(every=50)"),
    ],
}
KILLED = [*RUNS["dqn, prioritised, 3-step, double, dueling"], *SMALL, "--interventions", "redo(tau=0.1, every=50)"]
TINY = ["--env", "CartPole-v1", "--steps", "200", *NET, *OFF_POLICY, *OFTEN, *SMALL]


def assert_same_run(one: Path, other: Path) -> None:
    a, b = content(one), content(other)
    for part in a:
        assert same(a[part], b[part]), f"{part} of {one.name} differs"
    assert len(a["metrics"]) > 300
    assert (one / "config.yaml").read_bytes() == (other / "config.yaml").read_bytes()


def train(*arguments: str) -> int:
    return main(["train", *arguments])


@pytest.mark.parametrize("name", QUICK)
def test_each_seed_is_the_run_that_it_would_be_alone(name: str, tmp_path: Path) -> None:
    arguments = [*QUICK[name], *SMALL]
    assert train(*arguments, "--seeds", "3", "--seed", "5", "--run", str(tmp_path / "all")) == 0
    assert {path.name for path in (tmp_path / "all").iterdir()} == {"seed5", "seed6", "seed7"}
    for seed in (5, 7):
        alone = tmp_path / f"seed{seed}"
        assert train(*arguments, "--seed", str(seed), "--run", str(alone)) == 0
        assert_same_run(alone, tmp_path / "all" / f"seed{seed}")
    assert not same(content(tmp_path / "all/seed5")["agent"], content(tmp_path / "all/seed6")["agent"])


def kill_soon_after_checkpoints(process: Command, folders: list[Path], rng: random.Random) -> None:
    """SIGKILL at a random moment after the next checkpoint of each folder."""
    before = [steps_saved(folder) for folder in folders]
    deadline = time.monotonic() + 120
    while any(steps_saved(folder) <= steps for folder, steps in zip(folders, before, strict=True)):
        assert process.poll() is None, process.printed()
        assert time.monotonic() < deadline, "no checkpoint in two minutes"
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.2))
    process.send(signal.SIGKILL)
    process.wait()


@pytest.mark.full  # the quick run stops them by a signal
def test_seeds_that_are_killed_together_resume_together_and_alone(tmp_path: Path) -> None:
    """Killed together, one killed alone, killed together from different steps, one finished alone, then the rest."""
    together, straight = tmp_path / "all", tmp_path / "straight"
    folders = [together / f"seed{seed}" for seed in range(3)]
    every = ["train", *KILLED, "--seeds", "3", "--run", str(together)]
    rng = random.Random(3)
    kill_soon_after_checkpoints(Command(*every), folders, rng)
    one = ["train", *KILLED, "--seed", "1", "--run", str(folders[1])]
    kill_soon_after_checkpoints(Command(*one), [folders[1]], rng)
    assert steps_saved(folders[1]) > max(steps_saved(folders[0]), steps_saved(folders[2]))
    kill_soon_after_checkpoints(Command(*every), folders, rng)
    code, output = outcome_of(*one)
    assert code == 0 and "continues from step" in output, output
    code, output = outcome_of(*every)
    assert code == 0, output
    assert "seed0: continues from step" in output and "seed2: continues from step" in output
    assert f"{folders[1]} is already done" in output
    for seed, folder in enumerate(folders):
        alone = straight / f"seed{seed}"
        assert outcome_of("train", *KILLED, "--seed", str(seed), "--run", str(alone))[0] == 0
        assert_same_run(alone, folder)


def test_a_signal_saves_all_seeds_and_the_same_command_continues(tmp_path: Path) -> None:
    together = tmp_path / "all"
    every = ["train", *KILLED, "--checkpoint-every", "0", "--seeds", "2", "--run", str(together)]
    process = Command(*every)
    process.wait_for_line("replay: ")
    time.sleep(0.3)
    process.send(signal.SIGTERM)
    code, output = process.wait(60), process.printed()
    assert code == 75 and "stopped and saved at seed0: step" in output and ", seed1: step" in output, output
    assert all(steps_saved(together / name) for name in ("seed0", "seed1"))
    assert outcome_of(*every)[0] == 0
    for seed in (0, 1):
        alone = tmp_path / f"seed{seed}"
        line = ["train", *KILLED, "--checkpoint-every", "0", "--seed", str(seed), "--run", str(alone)]
        assert outcome_of(*line)[0] == 0
        assert_same_run(alone, together / f"seed{seed}")


def test_seeds_that_are_done_are_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [*TINY, "--seeds", "2", "--run", str(tmp_path)]
    assert train(*line) == 0
    done = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert train(*line) == 0
    assert capsys.readouterr().out.count("is already done") == 2
    assert done == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert train(*TINY, "--seeds", "3", "--run", str(tmp_path)) == 0
    assert (tmp_path / "seed2" / DONE).exists()


def test_one_seed_goes_into_the_folder_of_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(*TINY, "--seeds", "1", "--seed", "9") == 0
    assert (tmp_path / "runs/CartPole-v1/dqn/seed9" / DONE).exists()


@pytest.mark.parametrize("error", [Diverged("the agent has diverged"), ZeroDivisionError("a bug")])
def test_a_seed_that_fails_leaves_the_others_as_they_would_be_alone(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    catch_up = Run.catch_up

    def failing(run: Run, ended: Any) -> None:
        if run.agent.seed == 1 and run.clock.steps == 150:
            raise error
        catch_up(run, ended)

    monkeypatch.setattr(Run, "catch_up", failing)
    line = [*TINY, "--seeds", "3", "--run", str(tmp_path / "all")]
    if isinstance(error, Diverged):
        assert train(*line) == 1
        shown = capsys.readouterr().err
        assert "error: 1 of 3 seeds failed, the others went on. seed1: the agent has diverged" in shown
        assert "seed1 failed, the others go on: the agent has diverged" in shown
    else:
        with pytest.raises(ZeroDivisionError, match="a bug"):
            train(*line)
    assert not (tmp_path / "all/seed1" / DONE).exists()
    for seed in (0, 2):
        assert (tmp_path / f"all/seed{seed}" / DONE).exists()
        assert train(*TINY, "--seed", str(seed), "--run", str(tmp_path / f"seed{seed}")) == 0
        assert_same_run(tmp_path / f"seed{seed}", tmp_path / f"all/seed{seed}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "single"
    assert train(*TINY, "--run", str(folder)) == 0
    return folder


def refused(line: list[str], folder: Path, message: str, capsys: pytest.CaptureFixture[str], code: int = 2) -> None:
    """A command line gives one line of error, and changes no file in a folder."""

    def files() -> dict[Path, Any]:
        return {p: p.stat().st_mtime_ns if p.is_file() else None for p in folder.rglob("*")}

    before = files()
    capsys.readouterr()
    assert train(*line) == code
    assert message in error_line(capsys)
    assert files() == before


def test_a_folder_that_holds_a_single_run_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = f"--run {run} holds a single run: continue it without --seeds"
    refused([*TINY, "--seeds", "2", "--run", str(run)], run, message, capsys)


def test_another_run_in_the_folder_of_a_seed_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "seed1")
    message = f"{tmp_path / 'seed1'} holds another run: --seed 0 there, 1 now"
    refused([*TINY, "--seeds", "2", "--run", str(tmp_path)], tmp_path, message, capsys)


def test_a_seed_in_use_leaves_no_folder_for_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = Command("train", *KILLED, "--steps", "100000", "--seed", "1", "--run", str(tmp_path / "seed1"))
    process.wait_for_line("replay: ")
    try:
        assert train(*KILLED, "--steps", "100000", "--seeds", "2", "--run", str(tmp_path)) == 1
        assert f"{tmp_path / 'seed1'} is in use by pid {process.pid}" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["seed1"]
    finally:
        process.send(signal.SIGKILL)
        process.wait()


def test_seeds_that_do_not_fit_into_memory_are_refused_before_any_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The replay of one seed takes 242 MB, and 1 GB is free."""
    made: list[int] = []
    start = DQN.memory
    monkeypatch.setattr(DQN, "memory", lambda agent, *rest: made.append(1) or start(agent, *rest))
    monkeypatch.setattr(memory, "available_memory", lambda device: 1_000_000_000)
    line = [*TINY, "--agent.buffer-size", "5e6", "--run", str(tmp_path / "all")]
    refused([*line, "--seeds", "8"], tmp_path, "has 900 MB to spare: --seeds 3 fits", capsys)
    assert not made


def test_a_number_of_objects_that_does_not_fit_is_refused_with_the_number_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda device: 1_000_000_000)
    refuse_too_many(9, "seeds", 100_000_000, "cpu", "--seeds")
    with pytest.raises(
        TooLarge, match=r"^10 seeds take 1 GB \(100 MB each\), but cpu has 900 MB to spare: --seeds 9 f"
    ):
        refuse_too_many(10, "seeds", 100_000_000, "cpu", "--seeds")
    with pytest.raises(TooLarge, match="not even one fits"):
        refuse_too_many(2, "seeds", 1_000_000_000, "cpu", "--seeds")


@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_stated_bytes_of_a_memory_are_those_that_it_takes(num_envs: int) -> None:
    """At least the tensors that it holds, and at most twice as many: a rollout is copied when it is complete."""
    envs, stream = make("CartPole-v1", num_envs=num_envs), make("stream/RandomLabels", num_envs=num_envs)
    for agent in (
        DQN(envs.observation, envs.action, DQNConfig(buffer_size=5_000)),
        PPO(envs.observation, envs.action, PPOConfig(rollout=500)),
        Supervised(stream.observation, stream.action, SupervisedConfig(buffer_size=5_000)),
    ):
        kept = [x.untyped_storage() for x in vars(agent.memory(num_envs)).values() if isinstance(x, torch.Tensor)]
        held = sum({storage.data_ptr(): storage.nbytes() for storage in kept}.values())
        assert 0.9 * held <= agent.memory_bytes(num_envs) < 3 * held + 50_000
        weights = sum(p.nbytes for c in agent.components.values() for p in c.online.parameters())
        assert agent.network_bytes >= 4 * weights
    envs.close()
    stream.close()


def test_the_progress_of_seeds_is_one_line_with_the_sum_of_their_steps() -> None:
    stream, now = io.StringIO(), [0.0]
    shared = SharedProgress(["seed3", "seed4"], 1_000, stream, lambda: now[0])
    one, other = shared.seeds
    one.update(Clock(steps=0), None)
    shared.show()
    now[0] = 20.0
    one.update(Clock(steps=600), 10.0)
    other.update(Clock(steps=400), 30.0)
    shared.show()
    one.note("saved")
    one.close()
    line, note = stream.getvalue().splitlines()
    assert "50%  1,000/2,000 steps  return 20  50 SPS" in line
    assert note == "seed3: saved"


def test_only_pliant_train_knows_the_flag() -> None:
    from pliant.lab.experiments.config import parse

    assert parse(["--env", "CartPole-v1"], several_seeds=True).seeds is None
    assert parse(["--env", "CartPole-v1", "--seeds", "1"], several_seeds=True).seeds == 1
    with pytest.raises(BadInput, match="unknown option '--seeds'"):
        parse(["--env", "CartPole-v1", "--seeds", "1"])

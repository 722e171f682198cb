"""A stop during an evaluation, a probe or a report takes effect at once, and a resumed run is equal to the last bit."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from processes import Command, outcome_of

from pliant.agents import DQN, PPO, SAC, Supervised
from pliant.agents.checkpoint import Checkpoints
from pliant.agents.dqn import DQNConfig
from pliant.agents.log import Log
from pliant.agents.networks import NetworkConfig
from pliant.agents.playing import play
from pliant.agents.ppo import PPOConfig
from pliant.agents.run import Run
from pliant.agents.sac import SACConfig
from pliant.agents.saving import copied
from pliant.agents.stopping import Interrupted, heed, interruptible
from pliant.agents.supervised import SupervisedConfig
from pliant.common.spaces import LONGEST_EPISODE, Episode
from pliant.envs import EnvConfig, make, wrap
from pliant.lab.commands.exits import Terminated, exit_code
from pliant.lab.experiments.evaluation import score, summarise
from pliant.monitors import watch

SMALL = NetworkConfig(hidden=(8,))
PROBES = (
    "probe(every=30, steps=6, batch_size=8, samples=32, draws=2)",
    "curvature(every=40, samples=4, steps=3, probes=2)",
    "kernel(every=50, samples=4)",
    "landscape(every=50, points=3, samples=4)",
    "criticality(every=40, samples=4)",
    "churn(every=7, samples=4)",
)
PLAYING = ("overestimation(every=30, episodes=2, max_steps=20, tail=1.0)",)
TASKS: dict[str, tuple[str, int, Callable[..., Any], tuple[str, ...]]] = {
    "dqn, prioritised": (
        "CartPole-v1",
        2,
        lambda o, a: DQN(
            o,
            a,
            DQNConfig(
                network=SMALL,
                learning_starts=20,
                buffer_size=80,
                batch_size=4,
                n_step=2,
                update_every=4,
                prioritised=True,
                replay_ratio=0.7,
            ),
        ),
        (*PROBES, *PLAYING, "tandem(every=40, episodes=1)"),
    ),
    "sac": (
        "Pendulum-v1",
        1,
        lambda o, a: SAC(
            o,
            a,
            SACConfig(
                network=SMALL, actor_network=SMALL, learning_starts=20, buffer_size=100, batch_size=4, replay_ratio=0.5
            ),
        ),
        (PROBES[0], *PLAYING),
    ),
    "ppo": (
        "CartPole-v1",
        2,
        lambda o, a: PPO(o, a, PPOConfig(network=SMALL, rollout=8, batch_size=8, epochs=3)),
        (PROBES[0], *PLAYING),
    ),
    "supervised": (
        "stream/RandomLabels",
        4,
        lambda o, a: Supervised(o, a, SupervisedConfig(network=SMALL)),
        (PROBES[0],),
    ),
}


class StopAt:
    """A callback that requests a stop at its n-th call in one stage of a step."""

    def __init__(self, run: Run, stage: str, number: int = 1) -> None:
        self.run, self.stage, self.left = run, stage, number

    def __call__(self) -> bool:
        self.left -= stage_of(self.run) == self.stage
        return self.left <= 0


def stage_of(run: Run) -> str:
    if run.rescue is not None:
        return "updates"
    return "steps" if run.unfinished is None else str(run.unfinished["stage"])


def new_run(task: str, folder: Path) -> Run:
    env, num_envs, make_agent, monitors = TASKS[task]
    envs = make(env, num_envs=num_envs, seed=1)
    agent = make_agent(envs.observation, envs.action)

    def evaluate(agent: Any) -> dict[str, float]:
        result = score(agent, env, EnvConfig(max_episode_steps=30) if "stream" not in env else EnvConfig(), 3)
        return {"eval/episodic_return": result.mean}

    run = Run(
        agent,
        envs,
        log=Log(folder, log_every=20),
        checkpoints=Checkpoints(folder),
        checkpoint_every=50,
        evaluate=evaluate,
        evaluate_every=60,
        monitors=watch(agent, *monitors),
        fresh_envs=lambda: make(env, num_envs=1, seed=9, config=EnvConfig() if "stream" in env else SHORT),
    )
    assert run.checkpoints is not None
    saved = run.checkpoints.resume()
    if saved is None:
        run.log.restart()
    else:
        run.restore(saved)
        run.log.go_on()
    return run


SHORT = EnvConfig(max_episode_steps=25)


def content(folder: Path) -> dict[str, Any]:
    """The content of the last checkpoint, and the record; without the log, whose files differ by session."""
    checkpoint = Checkpoints.open(folder, verify=None)
    return {part: checkpoint.load(part) for part in ("agent", "replay", "envs", "loop", "monitors")} | {
        "record": (folder / "metrics.jsonl").read_bytes()
    }


def assert_same(a: Any, b: Any, place: str = "") -> None:
    assert type(a) is type(b), place
    if isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a:
            assert_same(a[key], b[key], f"{place}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), place
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{place}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)), place
    else:
        assert a == b or (a != a and b != b), place


@pytest.mark.parametrize("task", TASKS)
def test_a_run_stopped_anywhere_resumes_to_the_last_bit(task: str, tmp_path: Path) -> None:
    """It is stopped twice in steps, evaluations, probes and monitors that play: once right after its restart."""
    steps, straight, stopped = 280, tmp_path / "straight", tmp_path / "stopped"
    assert new_run(task, straight).train(steps)
    plays = ["monitors"] if any(monitor in PLAYING for monitor in TASKS[task][3]) else []
    for stage in ["updates", "steps", "evaluation", *plays, "updates"]:
        for number in (7, 1):
            run = new_run(task, stopped)
            before = run.clock.steps
            assert not run.train(steps, StopAt(run, stage, number)), f"never called in {stage} from step {before} on"
            run.log.close("stopped")
            left = Checkpoints.open(stopped).load("loop").get("unfinished")
            assert (left is None) == (stage == "steps") and (left is None or left["stage"] == stage)
            assert run.spent == (stage == "updates")
            if run.spent:
                with pytest.raises(RuntimeError, match="build a new run and restore its checkpoint"):
                    run.train(steps)
    run = new_run(task, stopped)
    assert run.train(steps) and run.unfinished is None
    assert_same(content(straight), content(stopped))


def test_only_interruptible_blocks_are_interrupted() -> None:
    heed()
    with interruptible(None):
        heed()
    with interruptible(lambda: False):
        heed()
    with pytest.raises(Interrupted), interruptible(lambda: True):
        heed()
    heed()


def test_a_copied_state_is_independent_of_the_original() -> None:
    state = {"a": [torch.zeros(2), (1, "x")], "b": {"c": torch.ones(3)[1:]}}
    copy = copied(state)
    assert_same(copy, state)
    state["a"][0][0] = 1  # type: ignore[index]
    state["b"]["c"].fill_(5)  # type: ignore[union-attr, call-overload]
    assert copy["a"][0].sum() == 0 and copy["b"]["c"].tolist() == [1, 1]


# ----------------------------------------------------------------------------------------- episodes without end


class Endless(gymnasium.Env[Any, Any]):
    """Every second episode ends after 5 steps, the others never end; every step has a reward of 1."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    episodes = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.t, self.episodes = 0, self.episodes + 1
        return np.array([seed or 0, 0], np.float32) % 1, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.zeros(2, np.float32), 1.0, self.ends and self.episodes % 2 == 0 and self.t == 5, False, {}

    def __init__(self, ends: bool = True) -> None:
        self.ends = ends


@pytest.mark.parametrize("form", ["list", "vector"])
def test_an_endless_episode_is_cut_and_counts_with_its_return_so_far(form: str) -> None:
    made = [Endless(), Endless()]
    envs = wrap(made if form == "list" else SyncVectorEnv([lambda e=e: e for e in made]), name="endless")  # type: ignore[misc]
    assert envs.longest_episode == LONGEST_EPISODE == 27_000
    envs.longest_episode = 40
    episodes = play(DQN(envs.observation, envs.action, DQNConfig(network=SMALL)), envs, 8)
    assert sorted((e.ret, e.length, e.cut) for e in episodes) == [(5.0, 5, False)] * 4 + [(40.0, 40, True)] * 4
    assert len({e.seed for e in episodes}) == 8
    summary = summarise("endless", episodes)
    assert summary.cut == 4 and summary.metrics()["eval/episodes_cut"] == 4 and summary.json()["cut"] == 4
    line = "4 of 8 episodes did not end within 40 steps; they were cut there and count with their return so far"
    assert str(summary).splitlines()[-1] == f"  {line}"


def test_the_summary_of_episodes_that_end_by_themselves_is_unchanged() -> None:
    summary = summarise("endless", [Episode(0, 1.0, 2, 3)])
    assert "cut" not in str(summary) and "cut" not in summary.json() and "eval/episodes_cut" not in summary.metrics()


def test_evaluations_use_the_configured_limit_of_episode_lengths() -> None:
    def longest(env: str, **options: Any) -> int:
        envs = make(env, config=EnvConfig(**options))
        envs.close()
        return envs.longest_episode

    assert longest("CartPole-v1") == longest("ALE/Pong-v5") == longest("MinAtar/Breakout-v1") == 27_000
    assert longest("CartPole-v1", max_episode_steps=100_000) == 100_000
    assert longest("CartPole-v1", max_episode_steps=101, action_repeat=2) == 51
    assert longest("MinAtar/Breakout-v1", max_episode_steps=50) == 50
    assert longest("ALE/Pong-v5", frame_skip=1) == 108_000
    assert longest("stream/RandomLabels", stretch=30_000) == 30_000


def test_atari_games_are_cut_in_their_midst() -> None:
    """ALE's own vector environment resets one of several emulators while the others continue."""
    envs = make("ALE/Pong-v5", num_envs=2, evaluation=True)
    envs.longest_episode = 15
    agent = DQN(envs.observation, envs.action, DQNConfig(network=NetworkConfig(hidden=(8,), width=0.1)))
    episodes = play(agent, envs, 4)
    envs.close()
    assert [(e.length, e.cut) for e in episodes] == [(15, True)] * 4 and len({e.seed for e in episodes}) == 4


def test_endless_episodes_of_environments_without_cut_are_reported() -> None:
    class ExternalNetwork:
        num_envs, frame_skip, longest_episode = 1, 1, 3

        def __init__(self) -> None:
            self.envs = wrap([Endless(ends=False)])
            self.reset, self.step = self.envs.reset, self.envs.step
            self.observation, self.action = self.envs.observation, self.envs.action

    external: Any = ExternalNetwork()
    agent = DQN(external.observation, external.action, DQNConfig(network=SMALL))
    with pytest.raises(RuntimeError, match=r"an episode of ExternalNetwork does not end, .* no cut\(\): give them a"):
        play(agent, external, 1)


def test_the_episodes_of_a_passive_agent_are_cut_as_well() -> None:
    run = tandem_run()
    readings = dict(next(iter(run.monitors.parts.values())).between(run))  # type: ignore[union-attr]
    assert readings["critic/tandem_return"] == readings["critic/tandem_active_return"] == 12


def tandem_run() -> Run:
    def endless() -> Any:
        envs = wrap([Endless(ends=False)])
        envs.longest_episode = 12
        return envs

    envs = endless()
    agent = DQN(envs.observation, envs.action, DQNConfig(network=SMALL))
    return Run(agent, envs, monitors=watch(agent, "tandem(every=8, episodes=2)"), fresh_envs=endless)


# ------------------------------------------------------------------------------------------------- real processes


QUICK = 2.0  # seconds within which a signal must take effect
TRAIN = (
    "train",
    "--agent",
    "dqn",
    "--env",
    "CartPole-v1",
    "--num-envs",
    "2",
    "--steps",
    "600",
    "--threads",
    "1",
    "--log-every",
    "300",
    "--agent.learning-starts",
    "50",
    "--agent.update-every",
    "4",
    "--agent.network.hidden",
    "8",
    "--agent.buffer-size",
    "500",
    "--agent.batch-size",
    "8",
)


def wait_for_cpu_time(process: Command, seconds: float) -> None:
    """Wait until a process has used this many seconds of CPU time, so that it is in the middle of its work."""
    ticks = 0.0
    while process.poll() is None and ticks / os.sysconf("SC_CLK_TCK") < seconds:
        time.sleep(0.01)
        try:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return
        ticks = float(fields[11]) + float(fields[12])


def wait_for_log_at(process: Command, folder: Path, steps: int) -> None:
    """Wait until a run has written its log at this step."""
    record = folder / "metrics.jsonl"
    while process.poll() is None and (not record.exists() or f'"steps": {steps}, ' not in record.read_text()):
        time.sleep(0.01)
    time.sleep(0.2)


def exit_code_after_signal(process: Command, number: signal.Signals = signal.SIGTERM) -> int:
    """The exit code after a signal, which must take effect at once."""
    assert process.poll() is None, process.printed()
    sent_at = time.monotonic()
    process.send(number)
    code = process.wait(30)
    taken = time.monotonic() - sent_at
    assert taken < QUICK, f"{taken:.1f} s:\n{process.printed()}"
    assert "Traceback" not in process.printed()
    return code


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without monitors."""
    folder = tmp_path_factory.mktemp("trained")
    code, output = outcome_of(*TRAIN, "--run", str(folder), "--evaluate-episodes", "0", "--monitors", "none")
    assert code == 0, output
    return folder


@pytest.mark.full
def test_a_signal_stops_an_evaluation_which_is_repeated_after_the_resume(tmp_path: Path) -> None:
    """This holds in the midst of a run and at its end; the record is the same to the last byte."""
    command = (*TRAIN, "--evaluate-every", "300", "--evaluate-episodes", "1000")
    code, output = outcome_of(*command, "--run", str(tmp_path / "straight"))
    assert code == 0, output
    folder = tmp_path / "stopped"
    for steps, number in ((300, signal.SIGTERM), (600, signal.SIGINT)):
        process = Command(*command, "--run", str(folder))
        wait_for_log_at(process, folder, steps)
        assert exit_code_after_signal(process, number) == 75
        assert f"stopped and saved at step {steps}; the same command continues" in process.printed()
        assert not (folder / "DONE").exists()
    code, output = outcome_of(*command, "--run", str(folder))
    assert code == 0 and "continues from step 600" in output
    for file in ("metrics.jsonl", "DONE"):
        assert (folder / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()


@pytest.mark.full
def test_a_signal_interrupts_a_probe_and_the_resumed_run_is_unchanged(trained: Path, tmp_path: Path) -> None:
    command = (*TRAIN, "--run", str(tmp_path), "--evaluate-episodes", "0")
    process = Command(*command, "--monitors", "probe(every=50, steps=100000)", "--checkpoint-every", "0")
    process.wait_for_line("replay: ")
    wait_for_cpu_time(process, 1.5)
    assert exit_code_after_signal(process) == 75
    left = Checkpoints.open(tmp_path).load("loop")
    assert left["unfinished"]["stage"] == "updates" and 0 < left["clock"]["updates"] < 50
    code, output = outcome_of(*command, "--monitors", "none")
    assert code == 0 and f"continues from step {left['clock']['steps']}" in output
    for part in ("agent", "replay", "envs"):
        assert_same(*(Checkpoints.open(folder).load(part) for folder in (tmp_path, trained)))
    assert (tmp_path / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "RUN", "--episodes", "1000000", "--out", "OUT/result.json"),
        ("inspect", "RUN", "--monitors", "probe(steps=100000)", "--json", "OUT/result.json"),
    ],
)
def test_a_command_with_nothing_to_save_ends_at_once(
    command: tuple[str, ...], number: signal.Signals, code: int, trained: Path, tmp_path: Path
) -> None:
    process = Command(*(argument.replace("RUN", str(trained)).replace("OUT", str(tmp_path)) for argument in command))
    wait_for_cpu_time(process, 1.0)
    assert exit_code_after_signal(process, number) == code
    assert process.printed() == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.5])
def test_a_stopped_report_is_complete_or_absent(seconds: float, trained: Path, tmp_path: Path) -> None:
    process = Command("report", str(trained), "--out", str(tmp_path / "report"))
    wait_for_cpu_time(process, seconds)
    if process.poll() is None:
        assert exit_code_after_signal(process) in (0, 143)  # 0 if it was writing its last file
    written = sorted(p.name for p in tmp_path.rglob("*"))
    assert written == [] or ("report.html" in written and not any(name.endswith(".tmp") for name in written))


def test_a_signal_waits_until_all_files_of_a_report_are_written(tmp_path: Path) -> None:
    """The signal waits for the last file, even if another thread could receive it."""
    from pliant.agents.stopping import signals_held

    ended = threading.Event()
    other = threading.Thread(target=ended.wait, daemon=True)
    other.start()

    def write() -> int:
        with signals_held():
            os.kill(os.getpid(), signal.SIGTERM)
            (tmp_path / "last").write_text("whole")
        raise AssertionError("SIGTERM had no effect")

    try:
        assert exit_code(write) == 143
    finally:
        ended.set()
        other.join()
    assert (tmp_path / "last").read_text() == "whole"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_signal_ends_a_command_and_ignored_signals_stay_ignored() -> None:
    def two_signals() -> int:
        from pliant.agents.stopping import graceful_stop

        with graceful_stop() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop()
            os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the second signal had no effect")

    assert exit_code(two_signals) == 130
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert exit_code(lambda: os.kill(os.getpid(), signal.SIGTERM) or 0) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(Terminated):
        raise Terminated


def test_a_worker_that_gets_a_signal_before_its_run_begins_counts_as_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from pliant.lab.experiments import pool

    monkeypatch.setattr(pool, "train", lambda config, source: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(pool.os, "dup2", lambda *args: None)
    monkeypatch.setattr(pool, "replace", lambda config, **changes: config)
    monkeypatch.setattr(pool, "wait_for_predecessor", lambda folder: None)
    monkeypatch.setattr(sys, "argv", sys.argv)
    job: Any = SimpleNamespace(folder=tmp_path, line=(), config=SimpleNamespace(threads=1))
    assert pool.work(job) == pool.STOPPED
    assert json.loads((tmp_path / pool.COST).read_text())

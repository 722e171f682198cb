"""Stopped in the midst of an evaluation, a probe or a report: heard at once, and a run goes on to the last bit."""

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
from pliant.agents.ppo import PPOConfig
from pliant.agents.run import Run, copied, play
from pliant.agents.sac import SACConfig
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


class Ask:
    """Asks for a stop when it is asked itself in a stage of a step, for the n-th time in a session."""

    def __init__(self, run: Run, stage: str, number: int = 1) -> None:
        self.run, self.stage, self.left = run, stage, number

    def __call__(self) -> bool:
        self.left -= stage_of(self.run) == self.stage
        return self.left <= 0


def stage_of(run: Run) -> str:
    if run.rescue is not None:
        return "updates"
    return "steps" if run.unfinished is None else str(run.unfinished["stage"])


def built(task: str, folder: Path) -> Run:
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
    found = run.checkpoints.resume()
    if found is None:
        run.log.restart()
    else:
        run.restore(found)
        run.log.go_on()
    return run


SHORT = EnvConfig(max_episode_steps=25)


def content(folder: Path) -> dict[str, Any]:
    """All that the last checkpoint holds, but for the log, whose files differ by session, and the record."""
    found = Checkpoints.open(folder, verify=None)
    return {part: found.load(part) for part in ("agent", "replay", "envs", "loop", "monitors")} | {
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
def test_a_run_stopped_anywhere_goes_on_to_the_last_bit(task: str, tmp_path: Path) -> None:
    """In steps, evaluations, probes and monitors that play: in each of them twice, and once just as it begins anew."""
    steps, straight, stopped = 280, tmp_path / "straight", tmp_path / "stopped"
    assert built(task, straight).train(steps)
    plays = ["monitors"] if any(word in PLAYING for word in TASKS[task][3]) else []
    for stage in ["updates", "steps", "evaluation", *plays, "updates"]:
        for number in (7, 1):
            run = built(task, stopped)
            before = run.clock.steps
            assert not run.train(steps, Ask(run, stage, number)), f"never asked in {stage} from step {before} on"
            run.log.close("stopped")
            left = Checkpoints.open(stopped).load("loop").get("unfinished")
            assert (left is None) == (stage == "steps") and (left is None or left["stage"] == stage)
            assert run.spent == (stage == "updates")
            if run.spent:
                with pytest.raises(RuntimeError, match="build it anew and restore its checkpoint"):
                    run.train(steps)
    run = built(task, stopped)
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


def test_a_copy_is_not_written_to() -> None:
    state = {"a": [torch.zeros(2), (1, "x")], "b": {"c": torch.ones(3)[1:]}}
    copy = copied(state)
    assert_same(copy, state)
    state["a"][0][0] = 1  # type: ignore[index]
    state["b"]["c"].fill_(5)  # type: ignore[union-attr, call-overload]
    assert copy["a"][0].sum() == 0 and copy["b"]["c"].tolist() == [1, 1]


# ----------------------------------------------------------------------------------------- episodes without end


class Endless(gymnasium.Env[Any, Any]):
    """Ends after 5 steps in every second episode of its own, and otherwise never; every step is worth 1."""

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
def test_an_episode_without_end_is_cut_and_counts_with_its_return_so_far(form: str) -> None:
    made = [Endless(), Endless()]
    envs = wrap(made if form == "list" else SyncVectorEnv([lambda e=e: e for e in made]), name="endless")  # type: ignore[misc]
    assert envs.longest_episode == LONGEST_EPISODE == 27_000
    envs.longest_episode = 40
    episodes = play(DQN(envs.observation, envs.action, DQNConfig(network=SMALL)), envs, 8)
    assert sorted((e.ret, e.length, e.cut) for e in episodes) == [(5.0, 5, False)] * 4 + [(40.0, 40, True)] * 4
    assert len({e.seed for e in episodes}) == 8
    found = summarise("endless", episodes)
    assert found.cut == 4 and found.metrics()["eval/episodes_cut"] == 4 and found.json()["cut"] == 4
    line = "4 of 8 episodes did not end within 40 steps; they were cut there and count with their return so far"
    assert str(found).splitlines()[-1] == f"  {line}"


def test_the_summary_of_episodes_that_end_by_themselves_is_unchanged() -> None:
    found = summarise("endless", [Episode(0, 1.0, 2, 3)])
    assert "cut" not in str(found) and "cut" not in found.json() and "eval/episodes_cut" not in found.metrics()


def test_the_limit_of_the_configuration_is_the_limit_of_evaluations() -> None:
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


def test_games_are_cut_in_their_midst_like_others() -> None:
    """ALE's own vector environment, which resets one emulator of several while the others play on."""
    envs = make("ALE/Pong-v5", num_envs=2, evaluation=True)
    envs.longest_episode = 15
    agent = DQN(envs.observation, envs.action, DQNConfig(network=NetworkConfig(hidden=(8,), width=0.1)))
    episodes = play(agent, envs, 4)
    envs.close()
    assert [(e.length, e.cut) for e in episodes] == [(15, True)] * 4 and len({e.seed for e in episodes}) == 4


def test_environments_that_cannot_cut_say_so() -> None:
    class ExternalNetwork:
        num_envs, frame_skip, longest_episode = 1, 1, 3

        def __init__(self) -> None:
            self.envs = wrap([Endless(ends=False)])
            self.reset, self.step = self.envs.reset, self.envs.step
            self.observation, self.action = self.envs.observation, self.envs.action

    foreign: Any = ExternalNetwork()
    agent = DQN(foreign.observation, foreign.action, DQNConfig(network=SMALL))
    with pytest.raises(RuntimeError, match=r"an episode of ExternalNetwork does not end, .* no cut\(\): give them a"):
        play(agent, foreign, 1)


def test_a_passive_agent_plays_no_longer_than_others() -> None:
    run = built_tandem()
    found = dict(next(iter(run.monitors.parts.values())).between(run))  # type: ignore[union-attr]
    assert found["critic/tandem_return"] == found["critic/tandem_active_return"] == 12


def built_tandem() -> Run:
    def endless() -> Any:
        envs = wrap([Endless(ends=False)])
        envs.longest_episode = 12
        return envs

    envs = endless()
    agent = DQN(envs.observation, envs.action, DQNConfig(network=SMALL))
    return Run(agent, envs, monitors=watch(agent, "tandem(every=8, episodes=2)"), fresh_envs=endless)


# ------------------------------------------------------------------------------------------------- real processes


QUICK = 2.0  # seconds in which a signal is heard
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


def worked(process: Command, seconds: float) -> None:
    """Wait until a process has used so much time of a processor, so that it is well in what it does."""
    ticks = 0.0
    while process.poll() is None and ticks / os.sysconf("SC_CLK_TCK") < seconds:
        time.sleep(0.01)
        try:
            words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return
        ticks = float(words[11]) + float(words[12])


def has_come_to(process: Command, folder: Path, steps: int) -> None:
    """Wait until the log of a run was written at so many steps."""
    record = folder / "metrics.jsonl"
    while process.poll() is None and (not record.exists() or f'"steps": {steps}, ' not in record.read_text()):
        time.sleep(0.01)
    time.sleep(0.2)


def stopped(process: Command, number: signal.Signals = signal.SIGTERM) -> int:
    """The exit code after a signal, which is heard at once."""
    assert process.poll() is None, process.printed()
    begun = time.monotonic()
    process.send(number)
    code = process.wait(30)
    taken = time.monotonic() - begun
    assert taken < QUICK, f"{taken:.1f} s:\n{process.printed()}"
    assert "Traceback" not in process.printed()
    return code


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without monitors."""
    folder = tmp_path_factory.mktemp("trained")
    code, said = outcome_of(*TRAIN, "--run", str(folder), "--evaluate-episodes", "0", "--monitors", "none")
    assert code == 0, said
    return folder


@pytest.mark.full
def test_a_signal_is_heard_in_evaluations_which_are_made_again(tmp_path: Path) -> None:
    """In the midst of a run, and at its end; the record is the same to the last byte."""
    words = (*TRAIN, "--evaluate-every", "300", "--evaluate-episodes", "1000")
    code, said = outcome_of(*words, "--run", str(tmp_path / "straight"))
    assert code == 0, said
    folder = tmp_path / "stopped"
    for steps, number in ((300, signal.SIGTERM), (600, signal.SIGINT)):
        process = Command(*words, "--run", str(folder))
        has_come_to(process, folder, steps)
        assert stopped(process, number) == 75
        assert f"stopped and saved at step {steps}; the same command goes on" in process.printed()
        assert not (folder / "DONE").exists()
    code, said = outcome_of(*words, "--run", str(folder))
    assert code == 0 and "goes on from step 600" in said
    for file in ("metrics.jsonl", "DONE"):
        assert (folder / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()


@pytest.mark.full
def test_a_signal_interrupts_a_probe_and_the_resumed_run_is_unchanged(trained: Path, tmp_path: Path) -> None:
    words = (*TRAIN, "--run", str(tmp_path), "--evaluate-episodes", "0")
    process = Command(*words, "--monitors", "probe(every=50, steps=100000)", "--checkpoint-every", "0")
    process.wait_for_line("replay: ")
    worked(process, 1.5)
    assert stopped(process) == 75
    left = Checkpoints.open(tmp_path).load("loop")
    assert left["unfinished"]["stage"] == "updates" and 0 < left["clock"]["updates"] < 50
    code, said = outcome_of(*words, "--monitors", "none")
    assert code == 0 and f"goes on from step {left['clock']['steps']}" in said
    for part in ("agent", "replay", "envs"):
        assert_same(*(Checkpoints.open(folder).load(part) for folder in (tmp_path, trained)))
    assert (tmp_path / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "RUN", "--episodes", "1000000", "--out", "OUT/result.json"),
        ("inspect", "RUN", "--monitors", "probe(steps=100000)", "--json", "OUT/result.json"),
    ],
)
def test_a_command_with_nothing_to_save_ends_at_once(
    words: tuple[str, ...], number: signal.Signals, code: int, trained: Path, tmp_path: Path
) -> None:
    process = Command(*(word.replace("RUN", str(trained)).replace("OUT", str(tmp_path)) for word in words))
    worked(process, 1.0)
    assert stopped(process, number) == code
    assert process.printed() == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.5])
def test_a_report_is_whole_or_not_there(seconds: float, trained: Path, tmp_path: Path) -> None:
    process = Command("report", str(trained), "--out", str(tmp_path / "report"))
    worked(process, seconds)
    if process.poll() is None:
        assert stopped(process) in (0, 143)  # 0 if it was writing its last file
    written = sorted(p.name for p in tmp_path.rglob("*"))
    assert written == [] or ("report.html" in written and not any(name.endswith(".tmp") for name in written))


def test_files_that_belong_together_are_written_together(tmp_path: Path) -> None:
    """A signal while a report is written waits for the last file, also where other threads could receive it."""
    from pliant.agents.stopping import signals_held

    ended = threading.Event()
    other = threading.Thread(target=ended.wait, daemon=True)
    other.start()

    def write() -> int:
        with signals_held():
            os.kill(os.getpid(), signal.SIGTERM)
            (tmp_path / "last").write_text("whole")
        raise AssertionError("SIGTERM was not heard")

    try:
        assert exit_code(write) == 143
    finally:
        ended.set()
        other.join()
    assert (tmp_path / "last").read_text() == "whole"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_signal_insists_and_ignored_ones_stay_ignored() -> None:
    def insisted() -> int:
        from pliant.agents.run import graceful_stop

        with graceful_stop() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop()
            os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the second one was not heard")

    assert exit_code(insisted) == 130
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert exit_code(lambda: os.kill(os.getpid(), signal.SIGTERM) or 0) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(Terminated):
        raise Terminated


def test_a_worker_that_is_asked_to_leave_before_it_has_begun_counts_as_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from pliant.lab.experiments import pool

    monkeypatch.setattr(pool, "train", lambda config, source: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(pool.os, "dup2", lambda *args: None)
    monkeypatch.setattr(pool, "replace", lambda config, **changes: config)
    monkeypatch.setattr(pool, "wait_for_predecessor", lambda folder: None)
    monkeypatch.setattr(sys, "argv", sys.argv)
    job: Any = SimpleNamespace(folder=tmp_path, words=(), config=SimpleNamespace(threads=1))
    assert pool.work(job) == pool.STOPPED
    assert json.loads((tmp_path / pool.COST).read_text())

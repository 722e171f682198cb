"""Whole runs through the real command: a run that was killed and continued equals an uninterrupted run to the last bit.

Every test starts `pliant train` as a process of its own, on real simulators and real ROMs.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Command, outcome_of

from pliant.agents.checkpoint import Checkpoints

SMALL = ["--threads", "1", "--log-every", "50", "--evaluate-episodes", "0"]
RUNS = {
    "dqn on Pong, sticky actions, 4 environments": [
        "--agent",
        "dqn",
        "--env",
        "ALE/Pong-v5",
        "--num-envs",
        "4",
        "--steps",
        "1200",
        "--checkpoint-every",
        "200",
        "--agent.learning-starts",
        "200",
        "--agent.buffer-size",
        "600",
        "--agent.network.hidden",
        "32",
        "--agent.network.width",
        "0.25",
        "--agent.epsilon-steps",
        "500",
        "--agent.target-period",
        "50",
        "--agent.batch-size",
        "16",
    ],
    "dqn, prioritised, 3-step, double, dueling": [
        "--agent",
        "dqn",
        "--env",
        "CartPole-v1",
        "--num-envs",
        "2",
        "--steps",
        "3000",
        "--checkpoint-every",
        "400",
        "--agent.prioritised",
        "--agent.n-step",
        "3",
        "--agent.double",
        "--agent.dueling",
        "--agent.learning-starts",
        "100",
        "--agent.buffer-size",
        "900",
        "--agent.update-every",
        "4",
        "--agent.network.hidden",
        "32",
        "--agent.epsilon-steps",
        "1500",
    ],
    "sac on HalfCheetah": [
        "--agent",
        "sac",
        "--env",
        "HalfCheetah-v5",
        "--steps",
        "1800",
        "--checkpoint-every",
        "250",
        "--agent.learning-starts",
        "200",
        "--agent.buffer-size",
        "1500",
        "--agent.network.hidden",
        "32",
        "32",
        "--agent.actor-network.hidden",
        "32",
        "32",
        "--agent.batch-size",
        "32",
        "--agent.replay-ratio",
        "0.5",
    ],
    "dqn on Breakout with interventions": [
        "--agent",
        "dqn",
        "--env",
        "ALE/Breakout-v5",
        "--num-envs",
        "2",
        "--steps",
        "900",
        "--checkpoint-every",
        "150",
        "--interventions",
        "layer_norm",
        "hl_gauss",
        "redo(tau=0.1, every=20)",
        "adaptive_replay_ratio(low=0.25, high=0.5, every=3)",
        "--agent.learning-starts",
        "200",
        "--agent.buffer-size",
        "600",
        "--agent.network.hidden",
        "32",
        "--agent.network.width",
        "0.25",
        "--agent.epsilon-steps",
        "500",
        "--agent.target-period",
        "50",
        "--agent.batch-size",
        "16",
    ],
    "sac on HalfCheetah with interventions": [
        "--agent",
        "sac",
        "--env",
        "HalfCheetah-v5",
        "--steps",
        "350",
        "--checkpoint-every",
        "60",
        "--interventions",
        "reset(every=150)",
        "replay_ratio(2)",
        "continual_backprop(rho=0.01, maturity=50, on=all)",
        "--agent.learning-starts",
        "100",
        "--agent.buffer-size",
        "500",
        "--agent.network.hidden",
        "32",
        "32",
        "--agent.actor-network.hidden",
        "32",
        "32",
        "--agent.batch-size",
        "32",
    ],
}


def start(folder: Path, *arguments: str) -> Command:
    return Command("train", "--run", str(folder), *arguments)


def finish(folder: Path, *arguments: str) -> str:
    code, output = outcome_of("train", "--run", str(folder), *arguments)
    assert code == 0, output
    return output


def steps_saved(folder: Path) -> int:
    return max((int(p.name.split("_")[1]) for p in folder.glob("checkpoints/step_*") if p.suffix == ""), default=0)


def kill_soon_after_a_checkpoint(folder: Path, arguments: list[str], rng: random.Random) -> None:
    """SIGKILL at a random moment after the next checkpoint."""
    before, process = steps_saved(folder), start(folder, *arguments)
    deadline = time.monotonic() + 120
    while steps_saved(folder) <= before:
        assert process.poll() is None, process.printed()
        assert time.monotonic() < deadline, "no checkpoint in two minutes"
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.4))
    process.send(signal.SIGKILL)
    process.wait()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


class Chunks:
    """Collects the replay of a checkpoint."""

    def __init__(self) -> None:
        self.content: dict[str, dict[str, torch.Tensor]] = {}

    def chunks(self) -> list[tuple[str, int]]:
        return []

    def chunk(self, name: str) -> dict[str, torch.Tensor]:
        return self.content[name]

    def load_chunk(self, name: str, content: dict[str, torch.Tensor]) -> None:
        self.content[name] = content


def content(folder: Path) -> dict[str, Any]:
    """The content of a run's last checkpoint, without the log's file sizes (event files differ by session)."""
    checkpoint = Checkpoints.open(folder, verify=None)
    chunks = Chunks()
    checkpoint.restore(chunks)
    parts = {part: checkpoint.load(part) for part in ("agent", "replay", "envs", "loop")}
    return parts | {"chunks": chunks.content, "metrics": (folder / "metrics.jsonl").read_bytes()}


def assert_same_run(one: Path, other: Path) -> None:
    a, b = content(one), content(other)
    for part in a:
        assert same(a[part], b[part]), f"{part} differs"
    assert len(a["metrics"]) > 1000 and a["chunks"]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_killed_three_times_equals_an_uninterrupted_run(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    arguments = [*RUNS[name], *SMALL]
    finish(tmp_path / "straight", *arguments)
    for _ in range(3):
        kill_soon_after_a_checkpoint(tmp_path / "killed", arguments, rng)
    output = finish(tmp_path / "killed", *arguments)
    assert "continues from step" in output
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
    if "--interventions" in arguments:
        logged = (tmp_path / "killed" / "metrics.jsonl").read_text()
        assert "interventions/re" in logged, "the log lacks the actions of the methods"


@pytest.mark.full
def test_a_signal_saves_at_once_and_exits_with_75(tmp_path: Path) -> None:
    arguments = [*RUNS["dqn, prioritised, 3-step, double, dueling"], *SMALL, "--checkpoint-every", "0"]
    finish(tmp_path / "straight", *arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        process = start(tmp_path / "stopped", *arguments)
        process.wait_for_line("replay: ")  # before that line the run is not set up, and there is nothing to save
        time.sleep(0.3)
        process.send(number)
        code, output = process.wait(60), process.printed()
        assert code == 75 and "stopped and saved at step" in output, output
        assert steps_saved(tmp_path / "stopped") > 0
    finish(tmp_path / "stopped", *arguments)
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that is done, with an evaluation."""
    folder = tmp_path_factory.mktemp("runs") / "cartpole"
    arguments = ["--env", "CartPole-v1", "--steps", "600", "--agent.learning-starts", "100", "--evaluate-episodes", "3"]
    finish(folder, *arguments, "--threads", "1", "--log-every", "100")
    return folder


def test_the_folder_of_a_run_holds_configuration_versions_metrics_and_checkpoints(finished: Path) -> None:
    there = {p.name for p in finished.iterdir()}
    assert {"config.yaml", "versions.json", "metrics.jsonl", "timing.jsonl", "checkpoints", "replay", "DONE"} <= there
    assert any(name.startswith("events.out.tfevents") for name in there)
    session = json.loads((finished / "versions.json").read_text())[-1]
    assert session["packages"]["torch"] == torch.__version__ and "train" in session["command"]
    done = json.loads((finished / "DONE").read_text())
    assert done["steps"] == 600 and len(done["evaluation"]["returns"]) == 3
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    tags = {tag for line in lines for tag in line}
    assert {"charts/episodic_return", "charts/episodic_length", "losses/td_loss", "eval/episodic_return"} <= tags
    assert not any("SPS" in tag or tag.startswith("time/") for tag in tags)


def test_a_finished_run_is_not_repeated_and_goes_on_with_more_steps(finished: Path, tmp_path: Path) -> None:
    config = str(finished / "config.yaml")
    assert "is already done" in finish(finished, "--config", config)
    longer, straight = tmp_path / "longer", tmp_path / "straight"
    shutil.copytree(finished, longer)
    assert "continues from step 600" in finish(longer, "--config", config, "--steps", "900", "--evaluate-episodes", "3")
    finish(straight, "--config", config, "--steps", "900")
    assert same(content(longer)["agent"], content(straight)["agent"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--agent.gamma", "0.9"], "holds another run: --agent.gamma 0.99 there, 0.9 now"),
        (["--resume", "never"], "already holds a run"),
        (["--env", "CartPole-v9"], "CartPole"),
        (["--device", "cuda:7"], "--device cuda:7: not available on this machine"),
        (["--interventions", "redoo"], "unknown intervention"),
    ],
)
def test_bad_input_gives_one_line_of_error_and_exit_code_2(finished: Path, arguments: list[str], message: str) -> None:
    if "--device" in arguments and torch.cuda.is_available():
        pytest.skip("this machine may have such a device")
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.name != ".lock"}
    code, output = outcome_of("train", "--run", str(finished), "--config", str(finished / "config.yaml"), *arguments)
    assert code == 2, output
    errors = [text for text in output.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], output
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.name != ".lock"}


@pytest.mark.full
def test_a_second_process_in_a_folder_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    arguments = [*RUNS["dqn, prioritised, 3-step, double, dueling"], *SMALL, "--steps", "100000"]
    first = start(tmp_path, *arguments)
    while not (tmp_path / "metrics.jsonl").exists() and first.poll() is None:
        time.sleep(0.02)
    code, output = outcome_of("train", "--run", str(tmp_path), *arguments)
    first.send(signal.SIGKILL)
    first.wait()
    assert code == 1
    assert f"is in use by pid {first.pid}" in output and "Traceback" not in output


@pytest.mark.full
def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(finished, folder)
    config = str(finished / "config.yaml")
    finish(folder, "--config", config, "--steps", "1200", "--checkpoint-every", "300")
    newest = max(folder.glob("checkpoints/step_*"))
    agent = newest / "agent.pt"
    agent.write_bytes(agent.read_bytes()[:-100])
    output = finish(folder, "--config", config, "--steps", "1500", "--checkpoint-every", "300")
    assert "damaged checkpoint skipped" in output and newest.name in output
    assert "continues from step 900" in output


@pytest.mark.full
def test_sac_learns_from_the_pixels_of_a_real_game_and_evaluate_films_it(tmp_path: Path) -> None:
    arguments = ["--agent", "sac", "--env", "ALE/Breakout-v5", "--env.continuous", "--steps", "120", "--num-envs", "2"]
    arguments += ["--agent.learning-starts", "40", "--agent.buffer-size", "200", "--agent.network.width", "0.25"]
    arguments += ["--agent.batch-size", "8", "--agent.network.hidden", "16", "--agent.projection", "8", *SMALL]
    arguments += ["--env.max-episode-frames", "400"]
    finish(tmp_path / "run", *arguments)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("losses/actor_loss" in line for line in lines)
    film = tmp_path / "film.gif"
    code, output = outcome_of("evaluate", str(tmp_path / "run"), "--episodes", "1", "--video", str(film))
    assert code == 0, output
    assert film.read_bytes()[:6] == b"GIF89a"
    assert "human-normalised" in output


def test_a_run_is_evaluated_without_its_replay(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(finished, folder)
    for file in (folder / "replay").iterdir():
        file.unlink()
    arguments = ["evaluate", str(folder), "--episodes", "4", "--seed", "3"]
    code, output = outcome_of(*arguments)
    assert code == 0, output
    result = json.loads((folder / "evaluation.json").read_text())
    assert len(result["returns"]) == 4 and result["mean"] == pytest.approx(sum(result["returns"]) / 4)
    assert outcome_of(*arguments, "--out", str(tmp_path / "again.json"))[0] == 0
    assert json.loads((tmp_path / "again.json").read_text())["returns"] == result["returns"]

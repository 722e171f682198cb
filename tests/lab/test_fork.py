"""Forks: an arm without a change repeats its parent to the last bit, arms do not affect each other, and an intervention
that cannot be added to a trained network is refused by name. Most tests call the real command, at small scale."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import Command
from refusals import contents, error_line

from pliant.agents import checkpoint
from pliant.agents.checkpoint import CheckpointDamaged, Checkpoints, saved_steps
from pliant.agents.clock import At, Clock, Every
from pliant.common.files import FileDamaged
from pliant.interventions import INTERVENTIONS
from pliant.lab.errors import BadInput
from pliant.lab.experiments import fork
from pliant.scripts.main import main

RUNS = {
    "dqn": (
        "--agent dqn --env CartPole-v1 --num-envs 2 --agent.learning-starts 100 --agent.buffer-size 600 "
        "--agent.network.hidden 16 --agent.batch-size 16"
    ),
    "dqn_atari": (
        "--agent dqn --env ALE/Breakout-v5 --agent.learning-starts 60 --agent.buffer-size 300 "
        "--agent.batch-size 4 --agent.network.hidden 16"
    ),
    "sac": (
        "--agent sac --env HalfCheetah-v5 --agent.learning-starts 100 --agent.buffer-size 500 "
        "--agent.network.hidden 16 --agent.actor-network.hidden 16 --agent.batch-size 16"
    ),
    "ppo": (
        "--agent ppo --env CartPole-v1 --num-envs 4 --agent.rollout 16 --agent.epochs 2 --agent.batch-size 32 "
        "--agent.network.hidden 16 --agent.actor-network.hidden 16 "
        "--env.drift observation_offset(scale=2.0,every=400)"
    ),
    "supervised": "--agent supervised --env stream/RandomLabels --num-envs 8 --agent.network.hidden 16",
}
STEPS, AT, BETWEEN = 800, 400, 320


def line(name: str, folder: Path, steps: int = STEPS) -> list[str]:
    return [
        *RUNS[name].split(),
        "--steps",
        str(steps),
        "--evaluate-episodes",
        "0",
        "--log-every",
        "80",
        "--threads",
        "1",
        "--device",
        "cpu",
        "--run",
        str(folder),
        "--checkpoint-every",
        "200",
        "--keep-checkpoints",
        "9",
        "--monitors",
        "units(every=20)",
    ]


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def parent(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "run"
            assert main(["train", *line(name, made[name])]) == 0
        return made[name]

    return parent


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b or (a != a and b != b))


def state(folder: Path, step: int = STEPS) -> dict[str, Any]:
    """The whole state of a run at a step, with the replay and without the names of the log's files."""
    saved = Checkpoints.open(folder / "checkpoints" / f"step_{step:012d}", verify=None)
    parts = {part: saved.load(part) for part in saved.parts if part != "log"}
    chunks = {entry["name"]: entry["sha256"] for entry in saved.manifest["chunks"]}
    return parts | {"chunks": chunks}


def record(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


def forked(folder: Path, *arguments: str) -> int:
    return main(["fork", str(folder), "--jobs", "1", *arguments])


# ------------------------------------------------------------------------------------------------ the law


@pytest.mark.parametrize("name", RUNS)
def test_the_control_repeats_the_parent_to_the_last_bit(name: str, parents: Any, tmp_path: Path) -> None:
    parent = parents(name)
    spec = "l2(weight=0.1)" if name != "dqn_atari" else "reset_target"
    assert forked(parent, "--at", str(AT), "--with", "", "--with", spec) == 0
    control = parent / "forks" / str(AT) / "control" / "seed0"
    assert same(state(control), state(parent))
    assert record(control) == record(parent)
    other = next(f for f in (parent / "forks" / str(AT)).iterdir() if f.name != "control") / "seed0"
    assert not same(state(other)["agent"], state(parent)["agent"])
    assert record(other)[: len(record(control)) // 3] == record(control)[: len(record(control)) // 3]


@pytest.mark.parametrize("name", ["dqn", "ppo"])
def test_a_step_without_a_checkpoint_is_reached_by_running_again(
    name: str, parents: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = parents(name)
    assert forked(parent, "--at", str(BETWEEN), "--with", "", "--with", "l2") == 0
    assert "running it again from step 200" in capsys.readouterr().err
    assert same(state(parent / "forks" / str(BETWEEN) / "control" / "seed0"), state(parent))


@pytest.mark.full
def test_a_run_without_checkpoints_is_run_again_from_the_start(tmp_path: Path) -> None:
    arguments = line("dqn", tmp_path / "run", 300)
    arguments[arguments.index("--checkpoint-every") + 1] = "0"
    assert main(["train", *arguments]) == 0
    assert forked(tmp_path / "run", "--at", "220", "--with", "l2") == 0
    assert same(state(tmp_path / "run" / "forks" / "220" / "control" / "seed0", 300), state(tmp_path / "run", 300))


def test_a_parent_that_cannot_be_repeated_is_refused(tmp_path: Path) -> None:
    assert main(["train", *line("dqn", tmp_path / "run", 300)]) == 0
    file = tmp_path / "run" / "metrics.jsonl"
    rows = [json.loads(row) for row in record(tmp_path / "run")]
    changed = next(row for row in rows if row["steps"] > 200 and "charts/episodic_return" in row)
    changed["charts/episodic_return"] += 1
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInput, match="did not repeat it: the logs differ from step"):
        fork.checkpoint_at(fork.parent_of(tmp_path / "run"), 280)
    assert not (tmp_path / "run" / "forks").exists()


@pytest.mark.full
def test_a_passive_agent_learns_during_the_control_run_and_does_not_change_it(
    parents: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = parents("dqn")
    assert forked(parent, "--at", "500", "--tandem", "100") == 0
    control = parent / "forks" / "500" / "control" / "seed0"
    mine, its = state(control), state(parent)
    passive = mine["monitors"]["monitors"]["tandem"]["_extra_state"]["passive"]
    assert all(same(mine[part], its[part]) for part in mine if part != "monitors")
    rows = [json.loads(row) for row in record(control) if "tandem_gap" in row]
    assert [row["steps"] for row in rows] == [600, 700, 800]
    weights = passive["modules"]["critic.online"]
    assert weights.keys() == its["agent"]["state"]["modules"]["critic.online"].keys()
    assert passive["optimizers"]["critic"]["state"][0]["step"] > 50  # it has learnt as often as the control since then
    # A control with a passive agent serves a fork without one; the reverse is refused.
    assert forked(parent, "--at", "500", "--with", "l2") == 0
    assert forked(parent, "--at", "600", "--with", "l2") == 0
    assert forked(parent, "--at", "600", "--tandem", "100") == 2
    assert "forks/600/control/seed0 was run without tandem(every=100): move the folder away" in capsys.readouterr().err


def test_a_passive_agent_of_an_agent_without_a_replay_is_refused(
    parents: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = parents("ppo")
    assert forked(parent, "--at", "760", "--tandem") == 2
    assert "tandem: a passive agent learns from a replay, and ppo has none" in capsys.readouterr().err
    assert not (parent / "forks" / "760").exists() and not (parent / "forks" / "stem" / "760").exists()


# ------------------------------------------------------------------------------------------------ replicates


@pytest.mark.full
def test_replicates_draw_new_random_numbers_and_arms_of_a_replicate_share_them(parents: Any) -> None:
    parent = parents("ppo")
    assert forked(parent, "--at", "600", "--with", "reset_optimizer(start=1000000)", "--reseed", "2") == 0
    arms = parent / "forks" / "600"
    other = arms / "reset_optimizer,start=1000000"
    final = {(arm.name, k): state(arm / f"seed{k}") for arm in (arms / "control", other) for k in (0, 1)}
    assert same(final["control", 0], state(parent))
    for k in (0, 1):  # an intervention that has not acted yet changes nothing, in either replicate
        mine, its = final["control", k], final[other.name, k]
        assert same(mine["agent"]["state"]["modules"]["actor.online"], its["agent"]["state"]["modules"]["actor.online"])
        assert same(mine["envs"], its["envs"])
    first, second = final["control", 0], final["control", 1]
    assert not same(first["agent"]["state"]["modules"], second["agent"]["state"]["modules"])
    assert first["envs"]["drift_seed"] == second["envs"]["drift_seed"]  # the problem is the same
    assert first["envs"]["seed"] != second["envs"]["seed"]


@pytest.mark.parametrize("name", ["dqn", "supervised", "sac"])
def test_a_stopped_arm_with_a_new_seed_goes_on_to_the_same_result(name: str, parents: Any, tmp_path: Path) -> None:
    parent = fork.parent_of(parents(name))
    start = fork.checkpoint_at(parent, AT)
    arm = fork.arm_of("l2(weight=0.1)")
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    for folder in (whole, halved):
        fork.begin(parent, start, arm, 1, folder, STEPS)
    assert main(["train", "--config", str(whole), "--run", str(whole)]) == 0
    assert main(["train", "--config", str(halved), "--run", str(halved), "--steps", "560"]) == 0
    assert main(["train", "--config", str(halved), "--run", str(halved), "--steps", str(STEPS)]) == 0
    assert same(state(whole), state(halved))


# ------------------------------------------------------------------------------------- interventions that are added

REFUSED = {
    "tensors do not match": {
        "c51",
        "crelu",
        "fourier",
        "hl_gauss",
        "layer_norm",
        "quantile",
        "two_hot",
        "value_mapping",
    },
    "would change": {"activation", "linear", "symlog"},
    "which are in the past": {"heavy_priming"},
    "this dqn has none": {"bbf"},
    "needs images": {"random_shift"},
}


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_every_intervention_is_added_or_refused_by_name(name: str, parents: Any, tmp_path: Path) -> None:
    parent = fork.parent_of(parents("dqn"))
    start = fork.checkpoint_at(parent, AT)
    arm = fork.arm_of(name if name == "plasticity_injection" else INTERVENTIONS[name].example or name)
    why = next((why for why, names in REFUSED.items() if name in names), None)
    if why is not None:
        with pytest.raises(BadInput, match=f"(?s){name}.*{why}"):
            fork.begin(parent, start, arm, 0, tmp_path / "arm", STEPS)
        assert not (tmp_path / "arm").exists()
    else:
        fork.begin(parent, start, arm, 0, tmp_path / "arm", STEPS)
        here = state(tmp_path / "arm", AT)
        assert same(here["envs"], state(parent.folder, AT)["envs"])
        assert len(here["agent"]["interventions"]) == 1


def test_the_error_names_the_one_of_several_interventions_that_cannot_be_added(parents: Any, tmp_path: Path) -> None:
    parent = fork.parent_of(parents("dqn"))
    with pytest.raises(BadInput, match=r"^layer_norm cannot be added"):
        fork.begin(parent, fork.checkpoint_at(parent, AT), fork.arm_of("l2 layer_norm"), 0, tmp_path / "arm", STEPS)


def test_scheduled_interventions_fire_at_the_fork_and_are_logged(parents: Any, tmp_path: Path) -> None:
    parent = fork.parent_of(parents("dqn"))
    start = fork.checkpoint_at(parent, AT)
    old = state(parent.folder, AT)["agent"]["state"]["modules"]["critic.online"]
    kept = {"critic.online": {}}
    for k in (0, 1):
        fork.begin(parent, start, fork.arm_of("reset(layers=last)"), k, tmp_path / str(k), STEPS)
        kept[k] = state(tmp_path / str(k), AT)["agent"]["state"]["modules"]["critic.online"]
        changed = {name.partition(".")[0] for name in old if not torch.equal(old[name], kept[k][name])}
        assert changed == {"advantage", "value"} & {name.partition(".")[0] for name in old}
    assert not same(kept[0], kept[1])  # each replicate draws its own
    fork.begin(parent, start, fork.arm_of("reset(start=500)"), 0, tmp_path / "later", STEPS)
    assert same(state(tmp_path / "later", AT)["agent"]["state"]["modules"]["critic.online"], old)
    assert main(["train", "--config", str(tmp_path / "0"), "--run", str(tmp_path / "0")]) == 0
    events = [json.loads(row) for row in record(tmp_path / "0") if '"firings/reset/units"' in row]
    assert [row["steps"] for row in events] == [AT]


def test_an_intervention_fires_at_the_fork_unless_its_schedule_gives_another_step() -> None:
    clock = Clock(steps=400, updates=300, last_steps=398, last_updates=300)  # no update is pending at 399 and 400

    def at_fork(spec: str) -> bool:
        from pliant.interventions.core.spec import build_parts

        return fork.fires_at_fork(build_parts([spec], INTERVENTIONS)[0], clock)

    assert at_fork("redo") and at_fork("reset(every=1000)") and not at_fork("l2")
    assert at_fork(f"reset(every={fork.ONCE})")
    # the next update crosses 400 and fires by itself; at the fork it must not fire a second time
    assert Every(400, "steps")(clock.updated()) and not at_fork("reset(every=400)")
    assert not at_fork("reset(start=401)") and not at_fork("reset(stop=399)") and not at_fork("reset(at=500)")
    assert At((400,), "steps")(clock.updated()) and not at_fork("reset(at=400)")
    with pytest.raises(BadInput, match="would never fire: all its steps are before the fork at 400"):
        at_fork("reset(at=300)")
    assert not at_fork("redo(when='critic/dormant_fraction > 0.2')")


def test_the_optimizer_has_the_settings_of_the_arm(parents: Any, tmp_path: Path) -> None:
    parent = fork.parent_of(parents("dqn"))
    arm = fork.arm_of("l2(weight=0.3, form=decoupled)")
    fork.begin(parent, fork.checkpoint_at(parent, AT), arm, 0, tmp_path / "arm", STEPS)
    optimizer = state(tmp_path / "arm", AT)["agent"]["state"]["optimizers"]["critic"]
    assert optimizer["param_groups"][0]["weight_decay"] == 0.3
    plain = state(parent.folder, AT)["agent"]["state"]["optimizers"]["critic"]
    assert same(optimizer["state"], plain["state"])


# ------------------------------------------------------------------------------------------------ kills and misuse


@pytest.mark.full
def test_a_killed_fork_finishes_with_the_same_command(parents: Any, tmp_path: Path) -> None:
    """SIGKILL during the making of arms and during their runs: the same command finishes with the same result."""
    copy = tmp_path / "run"
    shutil.copytree(parents("dqn"), copy, ignore=shutil.ignore_patterns("forks"))
    arguments = [str(copy), "--at", str(AT), "--with", "l2(weight=0.1)", "--jobs", "1", "--for", "2400"]
    process = Command("fork", *arguments)
    arm = copy / "forks" / str(AT) / "control" / "seed0"
    until = time.monotonic() + 60
    while not any(step > AT for step in saved_steps(arm)) and time.monotonic() < until:
        time.sleep(0.02)
    process.send(signal.SIGKILL)
    process.wait()
    (copy / "forks" / str(AT) / "l2,weight=0.1" / "seed1.tmp").mkdir(parents=True)
    until = time.monotonic() + 60
    while time.monotonic() < until:  # the worker notices that the pool is gone, saves and ends
        try:
            from pliant.agents.checkpoint import RunLock

            with RunLock(arm):
                break
        except RuntimeError:
            time.sleep(0.1)
    assert main(["fork", *arguments, "--reseed", "2"]) == 0
    done = sorted(path.parent.relative_to(copy / "forks").as_posix() for path in copy.glob("forks/*/*/*/DONE"))
    assert done == [f"{AT}/{arm}/seed{k}" for arm in ("control", "l2,weight=0.1") for k in (0, 1)]
    assert main(["train", *line("dqn", copy, AT + 2400)]) == 0
    assert same(state(arm, AT + 2400), state(copy, AT + 2400))


def test_a_wrong_command_line_gives_one_line_of_error(
    parents: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = parents("dqn")
    for arguments, message in {
        ("--at", "4000", "--with", "redo"): "ends at step 800, before 4,000",
        ("--at", "soon", "--with", "redo"): "--at must be a number of environment steps or latest, not 'soon'",
        ("--at", "0", "--with", "redo"): "--at must be at least 1",
        ("--at", "1e400", "--with", "redo"): "--at must be a number of environment steps or latest, not '1e400'",
        ("--at", "1.5e0", "--with", "redo"): "--at must be a number of environment steps or latest, not '1.5e0'",
        ("--at", "400", "--with", "redo", "--steps", "0"): "--steps must be at least 1 environment step, not 0",
        ("--at", "400"): "nothing to compare",
        ("--at", "400", "--with", "rodo"): "unknown intervention 'rodo'. Did you mean 'redo'?",
        ("--at", "400", "--with", "redo(tua=1)"): "redo has no parameter 'tua'",
        ("--at", "400", "--with", "redo", "--steps", "400"): "would end at step 400",
        ("--at", "400", "--with", "redo", "--steps", "900", "--for", "9"): "give --steps or --for, not both",
        ("--at", "400", "--with", "redo", "--reseed", "0"): "--reseed must be at least 1 replicate, not 0",
    }.items():
        assert forked(parent, *arguments) == 2
        assert message in capsys.readouterr().err
    assert main(["fork", str(tmp_path), "--at", "1", "--with", "redo"]) == 2
    assert ": not a run folder (no config.yaml)" in capsys.readouterr().err


@pytest.fixture
def copy(parents: Any, tmp_path: Path) -> Path:
    """A copy of a run without forks."""
    shutil.copytree(parents("dqn"), tmp_path / "run", ignore=shutil.ignore_patterns("forks"))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--at", "400", "--with", "l2", "--with", "layer_norm"), "layer_norm cannot be added"),
        (("--at", "400", "--with", "l2", "--with", "linear", "--reseed", "2"), "linear cannot be added"),
        (("--at", "300", "--with", "l2", "--with", "heavy_priming"), "heavy_priming cannot be added"),
        (("--at", "300", "--with", "l2", "--steps", "300"), "would end at step 300"),
        (("--at", "4000", "--with", "l2"), "ends at step 800"),
    ],
)
def test_a_refused_fork_leaves_the_folder_unchanged(
    arguments: tuple[str, ...], message: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(copy)
    assert forked(copy, *arguments) == 2
    assert message in error_line(capsys)
    assert contents(copy) == before


def test_a_parent_that_cannot_be_repeated_is_left_unchanged(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in record(copy)]
    rows[0] |= {"losses/td_loss": -1.0}
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for folder in copy.glob("checkpoints/*"):
        shutil.rmtree(folder)
    before = contents(copy)
    assert forked(copy, "--at", "300", "--with", "l2") == 2
    assert "did not repeat it" in error_line(capsys)
    assert contents(copy) == before


@pytest.mark.parametrize("when", ["copied", "named"])
def test_a_full_disk_leaves_no_unfinished_arm(
    when: str, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = contents(copy)
    with monkeypatch.context() as patch:
        if when == "copied":
            patch.setattr(shutil, "copyfile", full)
        else:
            patch.setattr(os, "replace", full)
        assert forked(copy, "--at", "400", "--with", "l2") == 1
    assert "No space left on device" in error_line(capsys)
    assert contents(copy) == before


@pytest.mark.parametrize(("number", "code"), [(errno.EROFS, 2), (errno.ENOSPC, 1)])
def test_a_run_on_a_read_only_or_full_disk_is_not_forked(
    number: int, code: int, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, **more: Any) -> None:
        raise OSError(number, os.strerror(number))

    before = contents(copy)
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", refuse)
        assert forked(copy, "--at", "400", "--with", "l2") == code
    error = error_line(capsys)
    assert (
        str(copy / "forks") in error and os.strerror(number) in error and ("copy that folder" in error) == (code == 2)
    )
    assert contents(copy) == before


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_damaged_lineage_file_is_named(text: str, parents: Any, tmp_path: Path) -> None:
    parent = fork.parent_of(parents("dqn"))
    start = fork.checkpoint_at(parent, AT)
    fork.begin(parent, start, fork.arm_of(""), 0, tmp_path / "arm", STEPS)
    (tmp_path / "arm" / "fork.json").write_text(text)
    before = contents(tmp_path)
    with pytest.raises(FileDamaged, match=r"arm/fork\.json .*Move the folder of the arm away"):
        fork.begin(parent, start, fork.arm_of(""), 0, tmp_path / "arm", STEPS)
    assert contents(tmp_path) == before


def test_other_content_at_the_path_of_an_arm_is_left_unchanged(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = copy / "forks" / "400" / "control" / "seed0"
    place.mkdir(parents=True)
    (place / "mine").write_text("x")
    before = contents(copy)
    assert forked(copy, "--at", "400", "--with", "l2") == 2
    assert f"{place} already exists" in error_line(capsys)
    assert contents(copy) == before


def test_a_damaged_record_of_the_parent_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (copy / "metrics.jsonl").read_bytes().split(b"\n")
    for folder in copy.glob("checkpoints/*"):
        shutil.rmtree(folder)
    (copy / "metrics.jsonl").write_bytes(b"\n".join([lines[0], b"{" + lines[1], *lines[2:]]))
    before = contents(copy)
    assert forked(copy, "--at", "300", "--with", "l2") == 1
    assert f"{copy / 'metrics.jsonl'} is damaged: its line 2" in error_line(capsys)
    assert contents(copy) == before
    # A last line that was cut short, as by a kill, is not damage.
    (copy / "metrics.jsonl").write_bytes(b"\n".join(lines[:20]) + b'\n{"frames')
    assert fork.checkpoint_at(fork.parent_of(copy), 300).step == 300


def test_a_checkpoint_that_names_a_file_outside_is_not_forked(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    victim = copy.parent / "victim.txt"
    victim.write_text("mine")
    newest = copy / "checkpoints" / f"step_{AT:012d}"
    manifest = json.loads((newest / "manifest.json").read_text())
    del manifest["sha256"]
    entry = {"size": 4, "sha256": hashlib.sha256(b"mine").hexdigest()}
    manifest["files"]["../../../victim.txt"] = entry
    (newest / "manifest.json").write_bytes(checkpoint._sealed(manifest))
    before = contents(copy.parent)
    assert forked(copy, "--at", str(AT), "--with", "l2") == 1
    assert "'../../../victim.txt', which is not a valid name of a part" in error_line(capsys)
    assert contents(copy.parent) == before and victim.stat().st_nlink == 1


def test_another_arm_under_the_name_of_an_existing_one_is_refused(parents: Any, tmp_path: Path) -> None:
    parent = fork.parent_of(parents("dqn"))
    start = fork.checkpoint_at(parent, AT)
    fork.begin(parent, start, fork.arm_of("l2"), 0, tmp_path / "arm", STEPS)
    fork.begin(parent, start, fork.arm_of("l2"), 0, tmp_path / "arm", STEPS)  # exists already
    with pytest.raises(BadInput, match="belongs to another fork"):
        fork.begin(parent, start, fork.arm_of("l2_init"), 0, tmp_path / "arm", STEPS)


def test_the_error_about_a_checkpoint_that_was_deleted_meanwhile_names_the_option(parents: Any, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(parents("dqn"), copy, ignore=shutil.ignore_patterns("forks"))
    parent = fork.parent_of(copy)
    start = fork.checkpoint_at(parent, AT)
    shutil.rmtree(start.path)
    with pytest.raises(CheckpointDamaged, match="raise its --keep-checkpoints"):
        fork.begin(parent, start, fork.arm_of("l2"), 0, tmp_path / "arm", STEPS)


def test_specs_are_split_at_spaces_between_them() -> None:
    assert fork.split("redo(tau=0.1, every=3) l2_init") == ["redo(tau=0.1, every=3)", "l2_init"]
    assert fork.split("redo(when='critic/dead_fraction > 0.2')  reset(layers=[head, last])") == [
        "redo(when='critic/dead_fraction > 0.2')",
        "reset(layers=[head, last])",
    ]
    assert fork.split("  ") == []


# ------------------------------------------------------------------------------------------------ output


def _arms(folder: Path, scores: dict[str, list[float]]) -> dict[str, dict[tuple[int, int], Path]]:
    folders: dict[str, dict[tuple[int, int], Path]] = {}
    for label, values in scores.items():
        for k, value in enumerate(values):
            path = folder / label / str(k)
            path.mkdir(parents=True)
            rows = [
                {"steps": 10, "charts/episodic_return": 1e9},
                {"steps": 30, "charts/episodic_return": value - 1},
                {"steps": 40, "charts/episodic_return": value + 1},
                {"steps": 50, "losses/td": 5.0},
                {"steps": 60, "charts/episodic_return": -1e9},
            ]
            (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            folders.setdefault(label, {})[0, k] = path
    return folders


@pytest.mark.full
def test_a_diagnosis_reports_which_arm_recovers(tmp_path: Path) -> None:
    names = ("injection", "fresh_optimizer", "full_reset")
    arms = [fork.Arm(), *(fork.Arm(("x",), name, "diagnose") for name in names)]
    base = np.array([10.0, 12.0, 11.0, 13.0])
    better, unlike = np.array([5, 6, 5, 6]), np.array([-1, 1, -2, 2])
    folders = _arms(
        tmp_path / "a",
        {
            "control": list(base),
            "injection": list(base + better),
            "fresh_optimizer": list(base + unlike),
            "full_reset": list(base - better),
        },
    )
    span = {0: (20, 45)}  # episodes after the span, of an arm that has run further, do not count
    text = fork.results_table(folders, arms, span)
    assert "injection recovers: the critic's head has lost its plasticity" in text
    assert "full_reset is worse than the control" in text and "fresh_optimizer recovers" not in text
    assert "11.5" in text and "+5.5" in text
    few = {label: {key: path for key, path in paths.items() if key[1] < 2} for label, paths in folders.items()}
    assert "Too few runs: an interval needs three" in fork.results_table(
        few, arms, span
    ) and "recovers" not in fork.results_table(few, arms, span)
    none = {label: folders["control"] if label != "full_reset" else folders["full_reset"] for label in folders}
    assert "No arm recovers" in fork.results_table(none, arms, span)


def test_replicates_of_one_parent_count_as_one_run(tmp_path: Path) -> None:
    """Each of three parents counts once: two are better by 1 and one is worse, in five replicates each."""
    arms = [fork.Arm(), fork.Arm(("x",), "injection", "diagnose")]
    folders: dict[str, dict[tuple[int, int], Path]] = {"control": {}, "injection": {}}
    for parent, gap in enumerate((1.0, 1.0, -0.5)):
        made = _arms(tmp_path / str(parent), {"control": [10.0] * 5, "injection": [10.0 + gap] * 5})
        for label, paths in made.items():
            folders[label] |= {(parent, k): path for (_, k), path in paths.items()}
    spans = dict.fromkeys(range(3), (20, 45))
    assert "injection recovers" not in fork.results_table(folders, arms, spans)
    # A replicate without an episode is left out alone.
    for label in folders:
        (folders[label][2, 0] / "metrics.jsonl").write_text("")
    text = fork.results_table(folders, arms, spans)
    assert "[" in text and "nan" not in text and "Too few" not in text


@pytest.mark.full
def test_the_control_of_a_parent_with_two_threads_has_two(tmp_path: Path) -> None:
    parent = tmp_path / "run"
    arguments = line("dqn", parent)
    arguments[arguments.index("--threads") + 1] = "2"
    before = torch.get_num_threads()
    try:
        assert main(["train", *arguments]) == 0
    finally:
        torch.set_num_threads(before)
    assert forked(parent, "--at", str(AT), "--with", "") == 0
    control = parent / "forks" / str(AT) / "control" / "seed0"
    assert same(state(control, STEPS), state(parent, STEPS))


def test_two_arms_with_the_same_folder_are_refused(parents: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The diagnosis's arm does not silently replace a given arm of the same name."""
    assert forked(parents("ppo"), "--at", str(AT), "--with", "fresh_agent", "--diagnose") == 2
    assert "two arms have the same folder fresh_agent" in capsys.readouterr().err


def test_a_second_fork_of_one_run_at_the_same_time_is_refused(parents: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from pliant.agents.checkpoint import RunLock

    with RunLock(parents("dqn") / "forks"):
        assert forked(parents("dqn"), "--at", str(AT), "--with", "redo") == 2
    assert "is being forked already" in capsys.readouterr().err


@pytest.mark.full
def test_the_report_reads_the_folders_of_the_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A moment between two steps of several environments is rounded up in folders, table and report alike, and the
    parent, which is run again to reach it, does not count as a second run."""
    parent = tmp_path / "run"
    assert main(["train", *line("ppo", parent)]) == 0
    capsys.readouterr()
    assert forked(parent, "--at", "501", "--with", "", "--for", "100") == 0
    output = capsys.readouterr().out
    (named,) = [text for text in output.splitlines() if text.startswith("Report: ")]
    assert Path(named.split()[3]).is_dir() and named.split()[3].endswith("/504")
    assert main(["report", str(parent), "--out", str(tmp_path / "report"), "--no-flops"]) == 0


@pytest.mark.full
def test_diagnose_makes_the_arms_that_fit_the_agent(parents: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert [a.label for a in fork.diagnosis(fork.parent_of(parents("dqn")).config)] == [
        "injection",
        "critic_reset",
        "full_reset",
        "fresh_optimizer",
        "fresh_target",
    ]
    assert "left out of the diagnosis: actor_reset" in capsys.readouterr().err
    assert [a.label for a in fork.diagnosis(fork.parent_of(parents("sac")).config)] == [
        "injection",
        "actor_reset",
        "critic_reset",
        "full_reset",
        "fresh_optimizer",
        "fresh_target",
    ]
    assert [a.label for a in fork.diagnosis(fork.parent_of(parents("ppo")).config)] == [
        "actor_reset",
        "critic_reset",
        "fresh_agent",
        "fresh_optimizer",
    ]
    capsys.readouterr()
    assert forked(parents("ppo"), "--at", "700", "--diagnose") == 0
    out = capsys.readouterr().out
    assert "Too few runs: an interval needs three" in out and "fresh_agent" in out

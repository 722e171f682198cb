"""A command prints only its own lines: no banner, advice or warning of a simulator before a run or an error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from processes import outcome_of

from pliant.envs import make

SHORT = ("--steps", "4", "--run", "run", "--threads", "1", "--evaluate-episodes", "0", "--monitors", "none")
PONG = ("--env", "ALE/Pong-v5", "--agent.buffer-size", "200")
CHEETAH = ("--env", "HalfCheetah-v5", "--agent.buffer-size", "200")
OURS = (
    r"run  \(.* settings for .*; cpu, 1 thread\)",
    r"replay: .* transitions take .* on cpu",
    r"100%  4/4 steps  .*",
    r"Curves: .*   Folder: run",
    r".*the agent has not been trained: no gradient update.*",
)


@pytest.mark.parametrize(
    "arguments",
    [
        PONG,
        (*PONG, "--env.mode", "1"),  # one emulator at a time
        ("--agent", "sac", *CHEETAH),
        ("--agent", "dqn", "--env", "CartPole-v0"),  # there is a newer version of it
        ("--agent", "dqn", "--env", "CartPole-v1", "--env.pixels", "36"),  # rendered by SDL
    ],
    ids=" ".join,
)
def test_a_run_prints_only_its_own_lines(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = outcome_of("train", *arguments, *SHORT)
    assert code == 0, output
    assert [line for line in output.splitlines() if not any(re.fullmatch(ours, line) for ours in OURS)] == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "arguments",
    [
        (*PONG, "--env.mode", "77"),
        (*PONG, "--agent.n-stp", "3"),
        ("--agent", "dqn", *CHEETAH),
        ("--agent", "sac", *CHEETAH, "--interventions", "reset(layers=haed)"),
        ("--agent", "sac", "--env", "CartPole-v0"),
    ],
    ids=" ".join,
)
def test_an_error_is_the_only_line_of_the_output(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = outcome_of("train", *arguments, *SHORT)
    assert code == 2 and re.fullmatch(r"error: .*\n", output), output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GL needs no display on other systems")
@pytest.mark.parametrize("library", ["osmesa", "glfw", "egl"])
def test_rendering_failures_are_reported_in_one_line(library: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    line = [sys.executable, "-m", "pliant.scripts", "train", "--agent", "sac", *CHEETAH, *SHORT, "--env.pixels", "36"]
    environment |= {"MUJOCO_GL": library, "__EGL_VENDOR_LIBRARY_FILENAMES": os.devnull}
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment)
    if done.returncode == 0:
        pytest.skip(f"this machine can draw with MUJOCO_GL={library}")
    assert done.returncode == 2 and re.fullmatch(r"error: .*MUJOCO_GL.*\n", done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_other_warnings_of_mujoco_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import gymnasium
    import mujoco

    build, get_warning = gymnasium.make, mujoco.get_mju_user_warning

    def unsound(*given: object, **options: object) -> object:
        get_warning()("the model is unsound")  # type: ignore[misc]
        return build(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(gymnasium, "make", unsound)
    before = get_warning()
    with pytest.warns(UserWarning, match="MuJoCo: the model is unsound") as caught:
        make("HalfCheetah-v5").close()
    assert len(caught) == 1 and get_warning() is before


def test_a_warning_of_an_environment_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import gymnasium

    build = gymnasium.make

    def warned(*given: object, **options: object) -> object:
        warnings.warn("mind the step", stacklevel=1)
        return build(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(gymnasium, "make", warned)
    with pytest.warns(UserWarning, match="mind the step"):
        make("CartPole-v1").close()

"""`pliant NAME`, `python scripts/NAME.py` and `python -m pliant.scripts NAME` are the same command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import outcome_of

from pliant.scripts import main as command

SCRIPTS = Path(command.__file__).resolve().parent
FILES = {name: SCRIPTS / f"{name}.py" for name in command.COMMANDS} | {"inspect": SCRIPTS / "inspection.py"}


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a new interpreter and capture its output."""
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def output_of_pliant(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and standard output of `pliant`, in this process."""
    capsys.readouterr()
    try:
        code = command.main(arguments)
    except SystemExit as done:
        code = int(done.code or 0)
    return code, capsys.readouterr().out


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed width of the terminal, which processes without a terminal read from the environment."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_has_a_file_with_the_same_help(name: str) -> None:
    code, output = outcome_of("--help", file=FILES[name])
    assert code == 0 and output.startswith(f"usage: pliant {name}"), output
    assert (code, output) == outcome_of(name, "--help")


@pytest.mark.parametrize("name", command.COMMANDS)
def test_a_file_refuses_a_wrong_argument_as_the_command_does(name: str) -> None:
    code, output = outcome_of("--no-such-flag", file=FILES[name])
    assert (code, output) == outcome_of(name, "--no-such-flag")
    assert code == 2


@pytest.mark.full
def test_the_folder_the_main_file_and_the_package_run_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    expected = output_of_pliant(capsys, "drifts", "friction")
    for way in ((SCRIPTS,), (SCRIPTS / "main.py",), ("-m", "pliant.scripts")):
        done = python(*way, "drifts", "friction")
        assert (done.returncode, done.stdout, done.stderr) == (*expected, "")


@pytest.mark.full
def test_claims_runs_as_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    done = python(SCRIPTS / "claims.py", "list", "random_labels")
    assert (done.returncode, done.stdout) == output_of_pliant(capsys, "claims", "list", "random_labels")
    assert done.returncode == 0 and "random_labels" in done.stdout and done.stderr == ""


@pytest.mark.full
def test_fork_runs_as_a_file_with_the_same_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its workers import the file too: every process of a pool imports the script that started the pool."""
    for folder in ("file", "command"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "file")
    line = ["--agent", "dqn", "--env", "CartPole-v1", "--steps", "300", "--run", "run", "--threads", "1"]
    small = ["--agent.learning-starts", "64", "--agent.buffer-size", "300", "--agent.network.hidden", "8"]
    code, output = outcome_of("train", *line, *small, "--evaluate-episodes", "0", "--monitors", "none")
    assert code == 0, output
    shutil.copytree("run", tmp_path / "command" / "run")
    fork = ["run", "--at", "latest", "--with", "shrink_perturb", "--for", "100", "--jobs", "1"]
    done = python(SCRIPTS / "fork.py", *fork)
    monkeypatch.chdir(tmp_path / "command")
    assert (done.returncode, done.stdout) == output_of_pliant(capsys, "fork", *fork), done.stderr
    assert done.returncode == 0
    arms = [f"run/forks/300/{arm}/seed0/metrics.jsonl" for arm in ("control", "shrink_perturb")]
    for arm in arms:
        assert (tmp_path / "file" / arm).read_bytes() == (tmp_path / "command" / arm).read_bytes()


def test_a_file_hides_no_module_of_the_user(tmp_path: Path) -> None:
    """Modules in `scripts` have common names, and Python puts the folder of a script first in the search path."""
    (tmp_path / "report.py").write_text("print('mine')\n")
    code = f"""
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
sys.argv = ["scripts/drifts.py", "friction"]
from pliant.scripts.main import script
script("drifts")
import report
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert done.returncode == 0 and done.stdout.endswith("mine\n"), done.stderr

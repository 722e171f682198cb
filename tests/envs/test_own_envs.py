"""Your own environments, `module:Name-v0`: every command can use them, and an error of one is reported in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest
import yaml
from processes import outcome_of
from test_runs import assert_same_run, finish, kill_soon_after_a_checkpoint

from pliant.envs import UnknownEnvironment, make
from pliant.scripts import main, train

CORRIDOR = """
import gymnasium
import numpy as np


class Corridor(gymnasium.Env):
    def __init__(self, length=6):
        self.observation_space = gymnasium.spaces.Box(-1, 2, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = int(self.np_random.integers(self.length))
        return self._seen(), {}

    def step(self, action):
        self.at += 2 * int(action) - 1
        return self._seen(), float(self.at >= self.length), not 0 <= self.at < self.length, False, {}

    def _seen(self):
        return np.array([self.at / self.length, self.np_random.random()], np.float32)


gymnasium.register("Corridor-v0", entry_point="somebodys:Corridor", max_episode_steps=50)
gymnasium.register("wide/Corridor-v3", entry_point=Corridor, max_episode_steps=50, kwargs={"length": 9})
"""
NAME = "somebodys:Corridor-v0"
SMALL = [
    "--env",
    NAME,
    "--threads",
    "1",
    "--monitors",
    "none",
    "--log-every",
    "50",
    "--evaluate-episodes",
    "0",
    "--agent.learning-starts",
    "64",
    "--agent.buffer-size",
    "500",
    "--agent.network.hidden",
    "8",
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which holds the module."""
    (tmp_path / "somebodys.py").write_text(CORRIDOR)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove the modules and environments that a test imports and registers in this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    registered, modules = dict(gymnasium.registry), set(sys.modules)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(registered)
    for name in set(sys.modules) - modules:
        if not getattr(sys.modules[name], "__file__", None) or "/pytest-" in str(sys.modules[name].__file__):
            del sys.modules[name]


def run_command(*arguments: str) -> str:
    code, output = outcome_of(*arguments)
    assert code == 0, output
    return output


# ------------------------------------------------------------------------------------------------ every command


@pytest.mark.full
def test_a_run_is_killed_resumed_evaluated_inspected_forked_and_reported(project: Path) -> None:
    arguments = [*SMALL, "--steps", "2500", "--checkpoint-every", "250", "--num-envs", "2"]
    finish(Path("straight"), *arguments)
    rng = random.Random(0)
    for _ in range(2):
        kill_soon_after_a_checkpoint(Path("killed"), arguments, rng)
    assert "continues from step" in finish(Path("killed"), *arguments)
    assert_same_run(Path("straight"), Path("killed"))

    assert f"{NAME}: mean return" in run_command("evaluate", "killed", "--episodes", "3")
    assert "overestimation" in run_command("inspect", "killed", "--env", NAME, "--monitors", "overestimation")
    output = run_command("fork", "killed", "--at", "latest", "--with", "shrink_perturb", "--for", "200", "--jobs", "1")
    assert "shrink_perturb" in output
    assert "2 forks" in run_command("report", "killed", "--out", "page")
    assert NAME in Path("page", "report.md").read_text()


def test_the_default_folder_has_a_safe_name_and_the_configuration_repeats_the_run(project: Path) -> None:
    run_command("train", *SMALL, "--steps", "120")
    (config,) = Path("runs").rglob("config.yaml")
    assert re.fullmatch(r"runs/somebodys-Corridor-v0-[0-9a-f]{8}/dqn/seed0", str(config.parent))
    run_command("train", "--config", str(config), "--run", "again")
    assert Path("again", "metrics.jsonl").read_bytes() == (config.parent / "metrics.jsonl").read_bytes()
    modules = json.loads((config.parent / "versions.json").read_text())[-1]["modules"]
    assert modules["somebodys"]["file"] == str(project / "somebodys.py")


def test_an_id_may_have_a_namespace(project: Path) -> None:
    run_command("train", *SMALL, "--steps", "120", "--env", "somebodys:wide/Corridor-v3")
    (config,) = Path("runs").rglob("config.yaml")
    assert re.fullmatch(r"runs/somebodys-wide-Corridor-v3-[0-9a-f]{8}/dqn/seed0", str(config.parent))


def small_study(project: Path) -> str:
    flags = {"steps": 150, "evaluate_episodes": 0, "monitors": ["none"], "agent.network.hidden": [8]}
    study = {
        "name": "own",
        "title": "A corridor",
        "agents": {"dqn": None},
        "environments": {NAME: None},
        "arms": {"plain": None},
        "seeds": 2,
        "flags": flags,
    }
    (project / "own.yaml").write_text(yaml.safe_dump(study))
    return "own.yaml"


@pytest.mark.full
def test_a_study_is_swept_and_reported(project: Path) -> None:
    study = small_study(project)
    assert "2 of 2 runs done" in run_command("sweep", study, "--jobs", "2")
    assert len(list(Path("runs/studies/own").rglob("DONE"))) == 2
    run_command("report", study, "--out", "page")
    assert NAME in Path("page", "report.md").read_text()


@pytest.mark.full
def test_the_commands_for_a_cluster_name_the_module(project: Path) -> None:
    study = small_study(project)
    run_command("sweep", study, "--executor", "slurm", "--emit", "sweep.sh")
    (commands,) = project.glob("sweep-*.commands")
    assert commands.read_text().count(f"--env {NAME} ") == 2
    line = "exec pliant" + commands.read_text().splitlines()[0].partition("exec pliant")[2].partition(" >> ")[0]
    done = subprocess.run(["bash", "-c", line.replace("pliant", f"{sys.executable} -m pliant.scripts", 1)])
    assert done.returncode == 0 and len(list(Path("runs").rglob("DONE"))) == 1


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -e '.[sweep]'")
def test_a_study_runs_on_ray(project: Path) -> None:
    study = small_study(project)
    line = [sys.executable, "-m", "pliant.scripts", "sweep", study, "--executor", "ray", "--jobs", "2"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0 and "2 of 2 runs done" in done.stdout, done.stderr


@pytest.mark.full
def test_a_claim_runs_in_an_own_environment(project: Path) -> None:
    flags = {"agent": "dqn", "env": NAME, "steps": 200, "evaluate_episodes": 3, "monitors": ["none"]}
    card = {
        "title": "A corridor",
        "paper": {"title": "Nothing", "arxiv": "0000.00000"},
        "claim": "Nothing.",
        "testbed": {"about": "A corridor.", "segment": 100, "flags": flags, "arms": {"plain": {"kind": "control"}}},
        "arms": {"plain": None},
        "measures": {"return": {"read": "return", "last": 1}},
        "comparisons": [{"a": "plain", "b": 0, "expect": "higher", "margin": 0.1}],
        "seeds": 2,
        "minutes": 1,
    }
    (project / "corridor.yaml").write_text(yaml.safe_dump(card))
    run_command("claims", "run", "corridor.yaml", "--jobs", "1", "--seeds", "2")
    assert len(list(Path("runs/claims").rglob("DONE"))) == 2


def test_the_console_command_finds_a_module_on_pythonpath_and_in_the_current_folder(project: Path) -> None:
    """Unlike `python -m`, a console script does not have the current folder on its path."""
    (project / "another").mkdir()
    arguments = ["train", *SMALL, "--steps", "70", "--run", "run"]
    code = "import sys; sys.path.remove(''); from pliant.scripts.main import main; sys.exit(main(sys.argv[1:]))"
    path = os.environ.get("PYTHONPATH", "")
    for folder, more in ((project, ""), (project / "another", str(project))):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [more, path]))}
        line = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and (folder / "run" / "DONE").exists(), done.stderr


# ----------------------------------------------------------------------------------------------- from another folder


def test_a_run_is_not_resumed_if_its_module_is_missing_or_another_module(project: Path) -> None:
    run = str(project / "run")
    run_command("train", *SMALL, "--steps", "120", "--run", run)
    before = {path: path.read_bytes() for path in (project / "run").rglob("*") if path.is_file()}
    away = project / "away"
    away.mkdir()
    further = ("train", "--config", run, "--run", run, "--steps", "200")
    commands = (
        further,
        ("evaluate", run),
        ("fork", run, "--at", "latest", "--with", "redo", "--for", "9"),
        ("inspect", run, "--env", NAME),
    )
    for content, message in (
        (None, rf"No module named 'somebodys'.*{away}.*PYTHONPATH.*was made with {project}/somebodys.py"),
        (
            CORRIDOR + "# another\n",
            rf"somebodys in {project}/somebodys.py.*another module, {away}/somebodys.py: change to",
        ),
    ):
        if content is not None:
            (away / "somebodys.py").write_text(content)
        for command in commands:
            os.chdir(away)
            code, output = outcome_of(*command)
            os.chdir(project)
            assert code == 2 and re.fullmatch(rf"error: .*{message}.*\n", output), output
    assert before == {path: path.read_bytes() for path in (project / "run").rglob("*") if path.is_file()}
    # The same content in another folder is the same module.
    (away / "somebodys.py").write_text(CORRIDOR)
    os.chdir(away)
    run_command(*further)
    os.chdir(project)
    sessions = json.loads((project / "run" / "versions.json").read_text())
    assert [s["modules"]["somebodys"]["file"] for s in sessions] == [f"{project}/somebodys.py", f"{away}/somebodys.py"]


def test_a_module_that_was_edited_in_place_is_accepted(project: Path) -> None:
    run_command("train", *SMALL, "--steps", "120", "--run", "run")
    (project / "somebodys.py").write_text(CORRIDOR + "# edited\n")
    run_command("train", *SMALL, "--steps", "160", "--run", "run")
    sessions = json.loads(Path("run", "versions.json").read_text())
    assert len({s["modules"]["somebodys"]["blake2b"] for s in sessions}) == 2


# ------------------------------------------------------------------------------------------------ invalid modules


@pytest.mark.usefixtures("clean_imports")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("somebodys:Coridor-v0", r"somebodys.py\) registers no Coridor-v0; did you mean somebodys:Corridor-v0 or "),
        ("somebodys:Corridor-v1", r"did you mean somebodys:Corridor-v0"),
        ("somebodys:Corridor", r"did you mean somebodys:Corridor-v0"),
        ("somebodys:Zebra-v0", r"it registers somebodys:Corridor-v0, somebodys:wide/Corridor-v3"),
        ("lost:Corridor-v0", r"lost:Corridor-v0: No module named 'lost'. .*current folder, .*PYTHONPATH"),
        ("lost.envs:Corridor-v0", r"No module named 'lost'"),
        ("somebodys.envs:Corridor-v0", r"No module named 'somebodys.envs'; 'somebodys' is not a package"),
        ("somebodys.py:Corridor-v0", r"'somebodys.py' is not the name of a module; write dots"),
        ("folder/somebodys:Corridor-v0", r"'folder/somebodys' is not the name of a module; write dots"),
        (":Corridor-v0", r"'' is not the name of a module"),
        ("..somebodys:Corridor-v0", r"is not the name of a module"),
        ("somebodys:", r"is not written as module:Name-v0"),
        ("somebodys:Corridor-v0:x", r"is not written as module:Name-v0"),
        (
            "divides:Zero-v0",
            r"the module divides cannot be imported: ZeroDivisionError: division by zero "
            r"\(.*divides.py, line 2\)",
        ),
        ("leaves:Early-v0", r"the module leaves cannot be imported: it calls sys.exit\(3\) \(.*leaves.py, line 2\)"),
        ("raises:Odd-v0", r"the module raises cannot be imported: Odd: two lines \(.*raises.py, line 3\)"),
        ("needy:Thing-v0", r"the module needy cannot be imported: ModuleNotFoundError: No module named 'not_there'"),
        ("needy_itself:Thing-v0", r"cannot be imported: ModuleNotFoundError: No module named 'needy_itself.part'"),
        ("torn:Paper-v0", r"the module torn cannot be imported: SyntaxError: .*torn.py, line 2"),
        ("bare:Thing-v0", r"bare.py\) registers no environment. Let it call gymnasium.register\(\"Thing-v0\""),
        (
            "classy:Thing",
            r"Thing is a class. Let .*gymnasium.register\(\"Thing-v0\", entry_point=\"classy:Thing\"\)"
            r".*classy:Thing-v0",
        ),
        ("astray:Gone-v0", r"registered with entry_point='astray:Gone', and astray has no Gone"),
        ("astray:Away-v0", r"No module named 'nowhere'"),
    ],
)
def test_modules_that_cannot_be_imported_are_reported_in_one_line(
    name: str, message: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register = "import gymnasium\ngymnasium.register"
    for module, text in {
        "divides": "\n1 / 0\n",
        "leaves": "import sys\nsys.exit(3)\n",
        "needy": "import not_there\n",
        "raises": "class Odd(BaseException): pass\n\nraise Odd('two\\nlines')\n",
        "torn": "\nx = (\n",
        "bare": "",
        "needy_itself": "import needy_itself.part\n",
        "classy": "import gymnasium\nclass Thing(gymnasium.Env): pass\n",
        "astray": f"{register}('Gone-v0', entry_point='astray:Gone')\n{register}('Away-v0', entry_point='nowhere:X')\n",
    }.items():
        (project / f"{module}.py").write_text(text)
    before = {path.name for path in project.iterdir()}
    assert main.exit_code(lambda: train.main(["--env", name, "--steps", "9", "--run", "run"])) == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ") and output.count("\n") == 1 and re.search(message, output), output
    assert {path.name for path in project.iterdir()} - {"__pycache__"} == before


@pytest.mark.usefixtures("clean_imports")
def test_an_interrupt_during_an_import_is_raised(project: Path) -> None:
    (project / "slow.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        make("slow:Thing-v0")


@pytest.mark.usefixtures("clean_imports")
def test_environments_of_a_module_that_is_already_imported_can_be_made(project: Path) -> None:
    sys.path.insert(0, str(project))
    importlib.import_module("somebodys")
    envs = make(NAME, num_envs=2)
    assert envs.reset().shape == (2, 2) and envs.name == NAME
    with pytest.raises(UnknownEnvironment, match="it registers somebodys:Corridor-v0, somebodys:wide/Corridor-v3"):
        make("somebodys:Zebra-v0")


@pytest.mark.usefixtures("clean_imports")
def test_a_failed_import_leaves_the_path_as_it_was(project: Path) -> None:
    before = list(sys.path)
    with pytest.raises(UnknownEnvironment):
        make("lost:Thing-v0")
    assert sys.path == before

"""The package as users install it: a wheel in a new environment, together with another package named `agents`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Built from a copy, so that no build folder is left in the checkout.
    source = folder / "source"
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"], capture_output=True)
    for name in listed.stdout.decode().splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*build, "--wheel-dir", str(folder), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("pliant-*.whl"))


def test_the_wheel_holds_the_package_and_nothing_at_the_top_level(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"pliant", wheel.name.split("-py3")[0] + ".dist-info"}
    assert {"pliant/agents/dqn.py", "pliant/envs/atari.py", "pliant/agents/py.typed"} <= set(names)
    assert not any("test" in name for name in names)


def readme_lines() -> str:
    """The first example in the README, of six lines."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]


def test_the_readmes_example_runs_in_a_project_with_its_own_package_agents(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    with zipfile.ZipFile(wheel) as archive:  # what an installer does with a pure wheel
        archive.extractall(site)
    # Stands in for openai-agents, which installs this top-level name.
    (site / "agents").mkdir()
    (site / "agents" / "__init__.py").write_text("class Runner: pass\n")
    script = f"""
import numpy as np
import agents
assert agents.Runner and "pliant" not in agents.__file__
rng = np.random.default_rng(0)
observations, next_observations = rng.normal(size=(2, 32, 4)).astype(np.float32)
rewards, terminated = np.ones(32), np.zeros(32, bool)
{readme_lines()}
assert agent.act(observations).shape == (32,)
from pliant.agents import SAC, ActionSpec
sac = SAC((3,), ActionSpec(2, False, (-1.0, -1.0), (1.0, 1.0)))
obs = np.zeros((5, 3), np.float32)
sac.update(Batch.of(obs, sac.act(obs), np.ones(5), obs, np.zeros(5)), sac.plan(Clock().updated()))
import pliant.agents
assert {str(site)!r} in pliant.agents.__file__, pliant.agents.__file__
print("ran")
"""
    # Dependencies come from this environment; its own pliant is an editable install, which a path does not reach.
    path = os.environ | {"PYTHONPATH": sysconfig.get_path("purelib"), "OMP_NUM_THREADS": "1"}
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    done = subprocess.run([str(python), "-c", script], cwd=tmp_path, env=path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("ran\n"), done.stderr

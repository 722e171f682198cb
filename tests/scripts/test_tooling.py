"""The files around the code agree: dependencies, their recorded versions, make, hooks, hosted CI, the version."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
STEPS = [(name, step) for name, job in WORKFLOW["jobs"].items() for step in job["steps"]]


def requirements(*extras: str) -> list[Requirement]:
    """The direct dependencies of pliant and of these extras."""
    return [*map(Requirement, PROJECT["dependencies"]), *(each for extra in extras for each in additional(extra))]


def additional(extra: str) -> Iterator[Requirement]:
    """What an extra installs beside the dependencies of pliant; an extra may name other extras of pliant."""
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
        if canonicalize_name(requirement.name) == "pliant":
            yield from (each for other in sorted(requirement.extras) for each in additional(other))
        else:
            yield requirement


def pins(name: str) -> dict[str, Version]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {canonicalize_name(package): Version(version) for package, version in pairs}


def lower_bound(requirement: Requirement) -> Version:
    bounds = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
    assert len(bounds) == 1, f"{requirement} has no lower bound"
    return bounds[0]


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    bounds: dict[str, Version] = {}
    for requirement in requirements("test"):
        name, bound = canonicalize_name(requirement.name), lower_bound(requirement)
        bounds[name] = max(bounds.get(name, bound), bound)
    del bounds["torch"]  # the Makefile's variable TORCH
    lowest = pins("constraints-lowest.txt")
    assert lowest.keys() == bounds.keys()
    assert {name: str(version) for name, version in lowest.items() if version != bounds[name]} == {}


def test_the_recorded_versions_are_allowed_and_complete() -> None:
    recorded = pins("constraints.txt")
    for requirement in requirements("dev"):
        version = recorded.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt: no {requirement.name}"
        assert version in requirement.specifier, f"constraints.txt: {requirement.name} {version} is not {requirement}"


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_help_lists_every_target_with_a_description() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    rows = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert list(rows) == TARGETS
    assert all(rows.values())


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_can_be_made(target: str) -> None:
    done = make(target)
    assert done.returncode == 0, done.stderr


def test_the_environment_of_the_lowest_dependencies_is_its_own() -> None:
    lines = make("check-lowest", "VENV=/nowhere/env", "TESTS=tests/agents").stdout
    assert "/nowhere/env-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt" in lines
    assert f"torch=={pins('constraints.txt')['torch']}" in lines
    assert "/nowhere/env/" not in lines
    other = make("check-lowest", "VENV=/nowhere/env", "TORCH=torch==2.6.0").stdout
    assert '"torch==2.6.0"' in other and "2.13" not in other


def commands(step: dict[str, Any]) -> list[str]:
    return [line for line in step.get("run", "").splitlines() if line.strip()]


@pytest.mark.parametrize(
    "line", sorted({line for _, step in STEPS for line in commands(step)}), ids=lambda line: line.replace("/", "|")
)
def test_a_command_of_hosted_ci_is_one_of_make(line: str) -> None:
    program, target, *settings = shlex.split(line)
    assert program == "make" and target in TARGETS
    assert all(re.fullmatch(r"[A-Z]+=.+", setting) for setting in settings)
    for setting in settings:
        assert re.search(rf"^{setting.partition('=')[0]} \?=", MAKEFILE, re.MULTILINE), f"make ignores {setting}"
    assert make(target, *settings).returncode == 0


def test_hosted_ci_runs_on_every_supported_version_of_python() -> None:
    classifiers = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if "Python :: 3." in each]
    assert WORKFLOW["jobs"]["newest"]["strategy"]["matrix"]["python"] == classifiers
    assert PROJECT["requires-python"] == f">={classifiers[0]}"
    asked = {step["with"]["python-version"] for _, step in STEPS if "setup-python" in step.get("uses", "")}
    assert asked == {classifiers[0], "${{ matrix.python }}"}


def test_hosted_ci_checks_tests_and_tries_the_lowest_and_the_newest_dependencies() -> None:
    made = {shlex.split(line)[1] for _, step in STEPS for line in commands(step)}
    assert made == {"check", "test-all", "check-lowest", "check-newest"}
    lowest = next(lower_bound(each) for each in requirements() if each.name == "torch")
    line = next(line for name, step in STEPS for line in commands(step) if name == "lowest")
    torch = next(setting for setting in shlex.split(line) if setting.startswith("TORCH=torch=="))
    assert Version(torch.rpartition("==")[2]).release[:2] == lowest.release[:2]


def test_every_hook_is_a_part_of_the_check_and_needs_no_network() -> None:
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    hooks = repos[0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    parts = re.search(r"^check:(.*?)##", MAKEFILE, re.MULTILINE)[1].split()
    assert [hook["entry"] for hook in hooks] == [f"make {part}" for part in parts]


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["version"]
    assert metadata.version("pliant") == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == version
    heading = re.search(r"^## (\S+) \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None and heading[1] == version
    assert date.fromisoformat(heading[2]) == citation["date-released"]

"""Public names that have moved: importing the old name gives an error with the new one."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

from pliant.agents.memory import Batch
from pliant.agents.run import Run

MOVED = [
    ("pliant.agents.hooks", "Memory", "pliant.agents.memory.Memory"),
    ("pliant.lab.experiments.fork", "told", "pliant.lab.experiments.fork.results_table"),  # a former name
    ("pliant.lab.experiments.training", "born", "pliant.lab.experiments.training.fresh_agent"),  # a former name
    ("pliant.lab.experiments.threads", "told", "pliant.lab.experiments.threads.recorded_threads"),  # a former name
    ("pliant.lab.experiments.status", "report", "pliant.lab.experiments.status.overview"),
    (
        "pliant.lab.experiments.folder",
        "ELSEWHERE",  # a former name
        "pliant.lab.experiments.folder.ANOTHER_FOLDER_HELPS",
    ),
    ("pliant.lab.analysis.figures", "Look", "pliant.lab.analysis.figures.ArmStyle"),
    ("pliant.lab.analysis.inspection", "Report", "pliant.lab.analysis.inspection.Inspection"),
    ("pliant.lab.analysis.runs", "found_below", "pliant.lab.analysis.runs.run_folders_below"),
    (
        "pliant.lab.analysis.sections",
        "told_difference",  # a former name
        "pliant.lab.analysis.sections.difference_text",
    ),
    ("pliant.lab.benchmarks.interventions", "WORDS", "pliant.lab.benchmarks.interventions.SPECS"),  # a former name
    ("pliant.agents.checkpoint", "Found", "pliant.agents.checkpoint.Checkpoint"),
    ("pliant.agents.rollout", "Judged", "pliant.agents.rollout.Evaluation"),  # a former name
    ("pliant.agents.run", "graceful_stop", "pliant.agents.stopping.graceful_stop"),
    ("pliant.agents.run", "play", "pliant.agents.playing.play"),
    ("pliant.agents.agent", "gaussian_kl", "pliant.agents.policies.gaussian_kl"),
    ("pliant.agents.hooks", "Every", "pliant.agents.clock.Every"),
    ("pliant.agents.spaces", "ActionSpec", "pliant.common.spaces.ActionSpec"),
    ("pliant.agents.words", "Word", "pliant.common.specs.Spec"),  # a former name
    ("pliant.agents.words", "SentenceError", "pliant.common.specs.SpecError"),  # a former name
    ("pliant.agents.words", "parse", "pliant.common.specs.parse"),  # a former name
    ("pliant.interventions", "MONITORS", "pliant.monitors.MONITORS"),
    ("pliant.interventions", "watch", "pliant.monitors.watch"),
    ("pliant.interventions.sb3", "PlasticityCallback", "pliant.interventions.external.sb3.PlasticityCallback"),
    ("pliant.interventions.watch", "watch", "pliant.monitors.watch"),
    ("pliant.interventions.watch", "check_monitors", "pliant.monitors.registry.check_monitors"),
]


@pytest.mark.parametrize(("module", "name", "new"), MOVED)
def test_an_import_of_the_old_name_is_refused_with_the_new_name(module: str, name: str, new: str) -> None:
    with pytest.raises(ImportError) as refused:
        exec(f"from {module} import {name}")
    assert str(refused.value) == f"{module}.{name} has moved: use {new}"
    holder, _, attribute = new.rpartition(".")
    assert hasattr(import_module(holder), attribute), f"{new} does not exist"


@pytest.mark.parametrize("module", sorted({module for module, _, _ in MOVED}))
def test_modules_with_moved_names_can_be_inspected(module: str) -> None:
    assert inspect.getdoc(import_module(module))
    assert not hasattr(import_module(module), "__no_such_name__")


def test_a_name_that_never_existed_gives_the_ordinary_error() -> None:
    with pytest.raises(ImportError, match="cannot import name 'no_such_name'"):
        exec("from pliant.interventions import no_such_name")


RENAMED = [(Run, "owing", "has_pending"), (Run, "beat", "after_step"), (Batch, "_replace", "replace")]  # a former name


@pytest.mark.parametrize(("owner", "name", "new"), RENAMED)
def test_an_attribute_with_a_new_name_is_refused_with_the_new_name(owner: type, name: str, new: str) -> None:
    made = object.__new__(owner)
    with pytest.raises(AttributeError, match=rf"{owner.__name__}\.{name} has a new name: use {owner.__name__}\.{new}$"):
        getattr(made, name)
    assert hasattr(owner, new) and not hasattr(made, "no_such_name")

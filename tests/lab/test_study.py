"""Study files: their keys, the runs that they describe, and the errors about mistakes."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pliant.lab.claims.cards import find
from pliant.lab.errors import BadInput
from pliant.lab.experiments.config import parse
from pliant.lab.experiments.study import load_study
from pliant.scripts.main import main

SMALL: dict[str, Any] = {
    "name": "small",
    "title": "A small study",
    "agents": {"ppo": {"agent.rollout": 64}, "wide": {"agent": "ppo", "agent.rollout": 64, "agent.epochs": 2}},
    "environments": {"CartPole-v1": None, "shaken": {"env": "CartPole-v1", "num_envs": 2}},
    "arms": {
        "plain": {"kind": "control"},
        "layer_norm": ["layer_norm"],
        "fast": {"flags": {"agent.optimizer.lr": 0.003}, "only": ["ppo", "shaken"]},
    },
    "seeds": 2,
    "segment": 100,
    "flags": {"steps": 400, "monitors": ["none"], "evaluate_episodes": 0},
}


def write(folder: Path, **changes: Any) -> Path:
    data = {k: v for k, v in (copy.deepcopy(SMALL) | changes).items() if v is not None}
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file


def test_a_study_is_read_with_all_its_keys(tmp_path: Path) -> None:
    study = load_study(write(tmp_path))
    assert (study.baseline, study.seeds, study.segment, study.arms["plain"].kind) == ("plain", (0, 1), 100, "control")
    cells = study.cells(tmp_path / "runs")
    assert len(cells) == 2 * (2 * 2 * 2 + 1)  # `fast` is in one combination only
    assert [cell.seed for cell in cells] == [0] * 9 + [1] * 9  # one seed of all cells before the next seed
    assert len({cell.folder for cell in cells}) == len(cells)
    first = cells[0]
    assert first.folder == tmp_path / "runs" / "CartPole-v1" / "ppo" / "plain" / "seed0"
    assert (first.config.steps, first.config.checkpoint_every, first.config.threads) == (400, 100, 1)
    # The command gives every setting of the run.
    for cell in cells[:9]:
        assert parse(list(cell.line), prog="test").config == cell.config


def test_a_folder_with_a_study_file_is_read_as_the_study(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    write(tmp_path).rename(tmp_path / "root" / "study.yaml")
    study = load_study(tmp_path / "root")
    assert study.folder == tmp_path / "root" and study.cells()[0].folder.parts[-4:-3] == ("CartPole-v1",)


def test_a_smaller_scale_has_a_separate_folder(tmp_path: Path) -> None:
    study = load_study(write(tmp_path))
    small = study.scaled(200)
    assert small.folder != study.folder and {cell.config.steps for cell in small.cells()} == {200}
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "study.yaml").write_text(small.text)
    assert load_study(tmp_path / "again").cells()[0].config.steps == 200


def test_a_slash_in_the_name_of_an_environment_makes_no_subfolder(tmp_path: Path) -> None:
    study = load_study(
        write(
            tmp_path, agents=["supervised"], environments=["stream/RandomLabels"], arms=["plain"], flags={"steps": 64}
        )
    )
    assert study.cells(tmp_path)[0].folder.relative_to(tmp_path).parts[0] == "stream-RandomLabels"
    # Arms may be a list of names, at any scale.
    assert [cell.config.steps for cell in study.scaled(32).cells(tmp_path)] == [32, 32]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": 3}, "unknown key 'sedes'. Did you mean 'seeds'?"),
        ({"title": None}, "'title' is missing"),
        ({"name": "a/b"}, "'name' is made of letters"),
        ({"seeds": 0}, "'seeds' is how many"),
        ({"seeds": [1, 1]}, "'seeds' is how many"),
        ({"baseline": "plian"}, "is not one of the arms. Did you mean 'plain'?"),
        ({"flags": {"stepps": 3}}, "unknown flag 'stepps'. Did you mean 'steps'?"),
        ({"flags": {"seed": 3}}, "a study file may not set 'seed'"),
        ({"flags": {"interventions": ["layer_norm"]}}, "interventions are set in the 'words' of an arm"),
        ({"arms": {"plain": None, "b": ["layer_nrom"]}}, "Did you mean"),
        ({"arms": {"plain": None, "b": {"words": [], "only": ["pp"]}}}, "is neither"),
        ({"arms": {"plain": None, "b": {"kind": "contrl"}}}, "'kind' is one of control, treatment, oracle"),
        ({"arms": {"plain": None, "b": {"flags": {"agent.rollout": 64}}}}, "'plain' and 'b' are the same run"),
        ({"arms": {"a": {"kind": "control"}, "b": {"kind": "control", "words": ["layer_norm"]}}}, "which one is the"),
        ({"environments": {"a/b": None, "a-b": None}, "arms": ["plain"]}, "would share a folder"),
        ({"arms": {}}, "'arms' is empty"),
    ],
)
def test_a_mistake_gives_one_line_of_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = write(tmp_path, **changes)
    with pytest.raises(BadInput) as error:
        load_study(file)
    assert str(error.value).startswith(str(file)) and message in str(error.value) and "\n" not in str(error.value)


def test_a_claim_file_is_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its runs are those of the claim; the copy in the folder holds the testbed, so that the folder is the study."""
    claim = next(claim for claim in find() if claim.name == "random_labels")
    study = load_study(claim.path)
    assert study.folder == Path("runs", "studies", "random_labels") and study.baseline == "plain"
    own = claim.cells(tmp_path, by_configuration=True)
    for cell, other in zip(study.cells(tmp_path), own, strict=True):
        assert cell.config == replace(other.config, run=cell.config.run) and cell.seed == other.seed
    root = tmp_path / "moved"
    root.mkdir()
    (root / "study.yaml").write_text(study.text)
    again = load_study(root)
    assert (again.name, again.folder, again.comparisons) == ("moved", root, study.comparisons)
    assert [cell.config for cell in again.cells(tmp_path)] == [cell.config for cell in study.cells(tmp_path)]
    assert {cell.config.steps for cell in study.scaled(1000).cells()} == {1000}
    assert main(["sweep", str(claim.path.with_name("step_counter.yaml")), "--dry-run"]) == 2
    assert "a check has no runs" in capsys.readouterr().err


def test_comparisons_of_a_study_name_its_arms_and_measures(tmp_path: Path) -> None:
    comparison = {"a": "layer_norm", "b": "plain", "expect": "higher", "margin": 5}
    study = load_study(write(tmp_path, comparisons=[comparison]))
    assert study.comparisons[0].text == "layer_norm > plain" and study.comparisons[0].measure == ""
    for changes, message in (
        ({"comparisons": [comparison | {"b": "plian"}]}, "there is no arm 'plian'. Did you mean 'plain'?"),
        ({"comparisons": [comparison | {"measure": "return"}]}, "there is no measure 'return'"),
        ({"measures": {"m": {"read": "retrun"}}}, "unknown reading 'retrun'. Did you mean 'return'?"),
    ):
        with pytest.raises(BadInput) as error:
            load_study(write(tmp_path, **changes))
        assert message in str(error.value)

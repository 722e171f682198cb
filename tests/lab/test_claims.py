"""Claims: the content of their files, the numbers read from runs, the rule of verdicts, the way from file to page."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import Command

from pliant.lab.analysis.summaries import summarise, value
from pliant.lab.analysis.verdicts import compare, overall, verdict_on
from pliant.lab.claims import checks as claim_checks
from pliant.lab.claims import page as claim_page
from pliant.lab.claims import results as claim_results
from pliant.lab.claims import running as claims
from pliant.lab.claims.cards import BUILT_IN, find, load_claim
from pliant.lab.claims.results import evaluate, write_result
from pliant.lab.claims.summary import in_order, table
from pliant.lab.commands.durations import seconds
from pliant.lab.errors import BadInput
from pliant.lab.experiments.predicates import Comparison, Measure
from pliant.lab.experiments.sections import command_line
from pliant.lab.experiments.study import Claim, key
from pliant.lab.experiments.training import built
from pliant.lab.statistics import Difference, paired
from pliant.scripts.main import main

TINY: dict[str, Any] = {
    "title": "A small claim, about nothing",
    "paper": {"title": "Nothing in Particular", "arxiv": "0000.00000"},
    "claim": "Layer norm changes what PPO does on CartPole.",
    "testbed": {
        "about": "CartPole for 256 steps.",
        "segment": 64,
        "record": ["losses/value_loss"],
        "flags": {
            "agent": "ppo",
            "env": "CartPole-v1",
            "steps": 256,
            "log_every": 64,
            "evaluate_episodes": 3,
            "monitors": ["none"],
            "agent.rollout": 64,
            "agent.epochs": 1,
            "agent.network.hidden": [16],
            "agent.actor_network.hidden": [16],
        },
        "arms": {"plain": {"kind": "control"}},
    },
    "arms": {
        "plain": None,
        "layer_norm": {"words": ["layer_norm"]},
        "fast": {"kind": "oracle", "flags": {"agent.optimizer.lr": 0.003}},
    },
    "measures": {
        "return": {"read": "return", "last": 2},
        "loss": {"read": "losses/value_loss", "relative": "ratio", "better": "lower"},
    },
    "comparisons": [
        {"a": "layer_norm", "b": "plain", "expect": "higher", "margin": 5},
        {"a": "plain", "b": 20, "expect": "equal", "margin": 1000.0},
    ],
    "seeds": 3,
    "minutes": 2,
}


def tiny(folder: Path, name: str = "tiny", **changes: Any) -> Path:
    """The small card as a file; `changes` replace top-level keys, and None removes one."""
    data = {k: v for k, v in (copy.deepcopy(TINY) | changes).items() if v is not None}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


# ------------------------------------------------------------------------------------------------ cards


@pytest.mark.full
def test_every_card_that_comes_with_pliant_is_valid() -> None:
    """The parser of `pliant train` reads their flags; there are at least 16."""
    cards = find()
    assert len(cards) >= 16
    assert len({card.title for card in cards}) == len(cards)  # they are anchors of the page
    for card in cards:
        assert card.minutes > 0, card.name
        assert re.fullmatch(r"\d{4}\.\d{5}", card.paper.arxiv), card.name
        assert card.kind == "check" or len(card.seeds) >= 5, card.name


def test_every_run_of_every_card_can_be_built(tmp_path: Path) -> None:
    """No agent and no environment refuses its settings."""
    seen = {}
    for card in find():
        for cell in card.cells(tmp_path, (0,), by_configuration=True):
            seen.setdefault(cell.folder, cell.config)
    for config in seen.values():
        envs, _ = built(config)
        envs.close()


def test_a_card_is_read_with_all_its_keys(tmp_path: Path) -> None:
    card = load_claim(tiny(tmp_path))
    assert (card.name, card.seeds, card.first_measure.name) == ("tiny", (0, 1, 2), "return")
    assert [arm.kind for arm in card.arms.values()] == ["control", "treatment", "oracle"]
    assert card.comparisons[0].measure == "return" and card.comparisons[0].text == "layer_norm > plain"
    assert card.comparisons[1].text == "plain = 20"
    cells = card.cells(tmp_path, by_configuration=True)
    (config,) = (cell.config for cell in cells if (cell.arm, cell.seed) == ("layer_norm", 2))
    assert (config.interventions, config.seed, config.device, config.threads) == (("layer_norm",), 2, "cpu", 1)
    assert config.checkpoint_every == 64  # a quarter of the run
    assert Path(config.run or "").parts[-3:][0] == "CartPole-v1" and (config.run or "").endswith("/seed2")
    assert "learning_rate" not in card.command(card.arms["fast"])
    assert card.command(card.arms["fast"])[-2:] == ("--agent.optimizer.lr", "0.003")


def test_arms_with_the_same_configuration_have_the_same_key(tmp_path: Path) -> None:
    one = load_claim(tiny(tmp_path))
    other = copy.deepcopy(TINY)
    other["arms"]["plain, by another name"] = other["arms"].pop("plain") or {"kind": "control"}
    other["comparisons"] = [{"a": "plain, by another name", "b": 1.0, "expect": "higher", "margin": 1}]
    two = load_claim(tiny(tmp_path, "other", arms=other["arms"], comparisons=other["comparisons"]))
    keys = [card.key(arm) for card in (one, two) for arm in card.arms.values()]
    assert len(set(keys)) == 3 and card_key(one, "plain") == card_key(two, "plain, by another name")
    # The key does not depend on the order of flags, nor on the period of checkpoints.
    flags = TINY["testbed"]["flags"]
    turned = dict(reversed(flags.items())) | {"checkpoint_every": 7}
    assert key(command_line(flags)) == key(command_line(turned))
    assert key(command_line(flags)) != key(command_line(flags | {"steps": 257}))


def card_key(card: Claim, arm: str) -> str:
    return card.key(card.arms[arm])


def test_flags_become_command_line_arguments() -> None:
    flags = {
        "agent": "dqn",
        "agent.double": True,
        "agent.dueling": False,
        "num_envs": 2,
        "monitors": ["a", "b(c=1)"],
        "interventions": [],
        "agent.network.hidden": (3, 4),
    }
    assert command_line(flags) == (
        "--agent",
        "dqn",
        "--agent.double",
        "--agent.no-dueling",
        "--num-envs",
        "2",
        "--monitors",
        "a",
        "b(c=1)",
        "--agent.network.hidden",
        "3",
        "4",
    )


def without(name: str) -> dict[str, Any]:
    return {name: None}


def bed(**changes: Any) -> dict[str, Any]:
    return {"testbed": TINY["testbed"] | changes}


def flags(**changes: Any) -> dict[str, Any]:
    return bed(flags=TINY["testbed"]["flags"] | changes)


def arm(content: Any) -> dict[str, Any]:
    return {"arms": TINY["arms"] | {"layer_norm": content}}


def comparison(**changes: Any) -> dict[str, Any]:
    return {"comparisons": [TINY["comparisons"][0] | changes]}


def read(**changes: Any) -> dict[str, Any]:
    return {"measures": {"return": TINY["measures"]["return"] | changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (without("claim"), "'claim' is missing"),
        ({"claim": "  "}, "'claim': expects a text that is not empty"),
        ({"tilte": "x"}, "unknown key 'tilte'. Did you mean 'title'?"),
        ({"paper": {"titel": "x"}}, "paper: unknown key 'titel'. Did you mean 'title'?"),
        ({"paper": "x"}, "'paper' is a section of keys and values"),
        ({"seeds": 0}, "'seeds' is how many there are, at least 1"),
        ({"seeds": "many"}, "'seeds': "),
        ({"kind": "runes"}, "'kind' is one of runs, check, not 'runes'. Did you mean 'runs'?"),
        ({"testbed": "random_label"}, "unknown testbed 'random_label'"),
        (bed(segment=-1), "'segment' must not be negative"),
        (bed(flgas={}), "testbed: unknown key 'flgas'. Did you mean 'flags'?"),
        (flags(agent="ppp"), "unknown agent 'ppp'. Did you mean 'ppo'?"),
        (flags(stepss=3), "unknown flag 'stepss'. Did you mean 'steps'?"),
        (flags(steps="many"), "arm 'plain': "),
        (flags(seed=3), "a claim file may not set 'seed'"),
        (flags(agent={"lr": 3}), "write agent.OPTION: VALUE"),
        (flags(**{"agent.rolout": 3}), "ppo has no option --agent.rolout. Did you mean --agent.rollout?"),
        (flags(**{"agent.clip": 0}), "--agent.clip must be above 0, not 0"),
        (flags(**{"env.pixel": 3}), "--env.pixel"),
        (flags(monitors=["chaep"]), "Did you mean 'cheap'?"),
        (arm({"words": ["layer_nrom"]}), "arm 'layer_norm': 'words': unknown intervention 'layer_nrom'. Did you mean"),
        (arm({"words": ["redo(tau=-1)"]}), "redo: tau must be at least 0, not -1"),
        (arm({"words": ["redo", "redo(tau=0.2"]}), "cannot read"),
        (arm({"wrods": []}), "arm 'layer_norm': unknown key 'wrods'. Did you mean 'words'?"),
        (arm({"kind": "treatmen"}), "'kind' is one of control, treatment, "),
        (arm({"flags": {"interventions": ["redo"]}}), "interventions are set in the 'words' of an arm"),
        (arm(None), "arm 'layer_norm' has no content"),
        (arm({"flags": {"checkpoint_every": 7}}), "'plain' and 'layer_norm' are the same run"),
        (comparison(a="layernorm"), "there is no arm 'layernorm'. Did you mean 'layer_norm'?"),
        (comparison(b="plan"), "there is no arm 'plan'. Did you mean 'plain'?"),
        (comparison(b="layer_norm"), "is compared with itself"),
        (comparison(expect="better"), "'expect' is one of higher, lower, equal, not 'better'"),
        (comparison(margin=0), "the margin is the smallest difference that would matter"),
        (comparison(measure="retrun"), "there is no measure 'retrun'. Did you mean 'return'?"),
        ({"comparisons": []}, "'comparisons' must be a list"),
        (read(read="retrun"), "unknown reading 'retrun'. Did you mean 'return'?"),
        (read(read="losses/value_los"), "does not record losses/value_los. Did you mean 'losses/value_loss'?"),
        (read(first=2), "give first or last, not both"),
        (read(base=0), "base at least 1"),
        (read(relative="ration"), "'relative' is one of none, ratio, difference, not 'ration'. Did you mean 'ratio'?"),
        ({"kind": "check"}, "a check runs no agent, and has no 'testbed'"),
    ],
)
def test_bad_cards_are_refused_in_one_line(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny(tmp_path, **changes)
    assert main(["claims", "run", str(path)]) == 2
    output = capsys.readouterr().err
    assert output.count("\n") == 1 and output.startswith(f"error: {path}: ") and message in output
    assert len(output.replace(str(path), "")) < 600
    assert not (tmp_path / "results").exists()


def test_files_that_are_not_cards_are_refused(tmp_path: Path) -> None:
    for text, message in (("a: [", "cannot be read"), ("- a", "must hold keys"), ("a: 1\na: 2", "appears twice")):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(BadInput, match=message):
            load_claim(tmp_path / "x.yaml")
    with pytest.raises(BadInput, match="there is no claim file"):
        load_claim(tmp_path / "y.yaml")
    with pytest.raises(BadInput, match=r"unknown claim 'random_lables'. Did you mean 'random_labels'\?"):
        find(["random_lables"])


def test_a_check_names_its_function(tmp_path: Path) -> None:
    card = {k: TINY[k] for k in ("title", "paper", "claim")} | {"kind": "check", "check": "injektion"}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(card))
    with pytest.raises(BadInput, match=r"unknown check 'injektion'. Did you mean 'injection'\?"):
        load_claim(path)


# ------------------------------------------------------------------------------------------------ reading a run


def run_folder(folder: Path, rows: list[dict[str, Any]], steps: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "DONE").write_text(json.dumps({"steps": steps, "updates": 7}))
    session = {"git": "abc", "python": "3.11", "platform": "here", "packages": {"torch": "2"}}
    (folder / "versions.json").write_text(json.dumps([session]))
    (folder / "cost.jsonl").write_text('{"cpu": 1.5, "wall": 2}\n{"cpu": 2.5, "wall": 3}\n')
    return folder


def episode(at: int, ret: float, length: int) -> dict[str, Any]:
    return {"steps": at, "charts/episodic_return": ret, "charts/episodic_length": length}


def test_the_stored_result_of_a_run_has_the_mean_of_every_segment(tmp_path: Path) -> None:
    rows = [
        episode(40, 4.0, 10),
        episode(100, 8.0, 30),
        {"steps": 100, "losses/x": 1.0},
        episode(101, 1.0, 1),
        {"steps": 150, "losses/x": 2.0},
        {"steps": 200, "losses/x": "NaN"},
        {"steps": 200, "losses/x": 6.0},
        {"steps": 200, "eval/episodic_return": 1234567.0},
        {"steps": 250, "eval/episodic_return": 5.0},
    ]
    kept = summarise(run_folder(tmp_path, rows, 250), 100, ("losses/x",), ("pliant", "train"))
    assert kept["segments"] == {
        # An episode that ends at the edge belongs to the earlier task; the last quarter of a task begins after 75.
        "episodes": [2, 1, 0],
        "return": [6.0, 1.0, None],
        "end_return": [8.0, None, None],
        "length": [20.0, 1.0, None],
        "reward": [0.3, 1.0, None],
        "end_reward": [0.266667, None, None],
    }
    assert kept["tags"]["losses/x"] == {"mean": [1.0, "nan", None], "last": [1.0, 6.0, None]}
    assert kept["evaluations"] == [[200, 1234570.0], [250, 5.0]]
    assert (kept["cpu_seconds"], kept["updates"], kept["versions"]["torch"]) == (4.0, 7, "2")
    assert len(summarise(tmp_path)["segments"]["return"]) == 20  # parts of 13 steps
    assert json.loads(json.dumps(kept)) == kept


def kept(**series: list[float | None]) -> dict[str, Any]:
    return {
        "schema": 1,
        "segment": 64,
        "steps": 256,
        "updates": 1,
        "cpu_seconds": 6.0,
        "command": [],
        "segments": {"return": series.get("ret", [])},
        "tags": {"losses/value_loss": {"mean": series.get("loss", []), "last": series.get("end", [])}},
        "evaluations": [[i, x] for i, x in enumerate(series.get("eval", []))],
        "versions": {},
        "platform": "",
    }


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ({"read": "return"}, 5.0),
        ({"read": "return", "first": 2}, 2.0),
        ({"read": "return", "last": 2}, 9.0),
        ({"read": "return", "last": 2, "reduce": "max"}, 10.0),
        ({"read": "return", "reduce": "min"}, 2.0),
        ({"read": "return", "last": 1, "relative": "ratio"}, 5.0),
        ({"read": "return", "last": 1, "relative": "difference"}, 8.0),
        ({"read": "return", "last": 1, "relative": "ratio", "base": 3}, 2.0),
        ({"read": "losses/value_loss"}, 1.5),
        ({"read": "losses/value_loss", "of": "last"}, 4.0),
        ({"read": "eval", "last": 1}, 30.0),
        ({"read": "eval"}, 20.0),
        ({"read": "return", "first": 0, "last": 3}, 9.0),
    ],
)
def test_a_measure_reads_its_number_from_a_result(measure: dict[str, Any], expected: float) -> None:
    result = kept(ret=[2.0, None, 8.0, 10.0], loss=[1.0, 2.0], end=[3.0, 5.0], eval=[10.0, 20.0, 30.0])
    if measure == {"read": "return"}:
        expected = 20 / 3
    assert value(result, Measure("m", **measure)) == pytest.approx(expected)


def test_a_measure_of_a_result_without_the_number_is_nan() -> None:
    assert math.isnan(value(kept(ret=[None, None]), Measure("m", "return")))
    assert math.isnan(value(kept(ret=[None, 2.0]), Measure("m", "return", relative="ratio")))
    assert math.isnan(value(kept(ret=[0.0, 2.0]), Measure("m", "return", relative="ratio")))


# ------------------------------------------------------------------------------------------------ verdicts


def gap(estimate: float, error: float, df: float = 1e6, seeds: int = 8) -> Difference:
    """With many degrees of freedom the half width of the 95 % interval is 1.96 errors, of the 90 % interval 1.645."""
    return Difference(estimate, error, df, seeds)


@pytest.mark.parametrize(
    ("estimate", "error", "verdict"),
    [
        (3.0, 1.0, "shown"),  # 1.04 … 4.96
        (1.97, 1.0, "shown"),  # 0.01 …, and reaches the margin of 1
        (1.95, 1.0, "underpowered"),  # -0.01 …
        (0.5, 0.1, "not shown"),  # 0.30 … 0.70: an effect, but too small to matter
        (0.0, 0.5, "not shown"),  # … 0.82 of the 90 % interval
        (0.0, 0.7, "underpowered"),  # … 1.15
        (-0.5, 0.1, "not shown"),
        (-3.0, 1.0, "contradicted"),
        (-1.0, 1.0, "not shown"),  # … 0.64: no effect of 1 in the claimed direction
        (-0.5, 1.0, "underpowered"),  # … 1.14
        (0.8, 0.1, "not shown"),  # … 0.96
        (0.9, 0.1, "shown"),  # … 1.06: as large as the margin, perhaps
    ],
)
@pytest.mark.parametrize("expect", ["higher", "lower"])
def test_the_verdict_on_a_difference(expect: Any, estimate: float, error: float, verdict: str) -> None:
    sign = 1 if expect == "higher" else -1
    result, why = verdict_on(Comparison("a", "b", expect, 1.0), gap(sign * estimate, error))
    assert result == verdict and why


@pytest.mark.parametrize(
    ("estimate", "error", "verdict"),
    [
        (0.0, 0.5, "shown"),  # ±0.82
        (0.4, 0.2, "shown"),  # 0.07 … 0.73: different, but not by as much as matters
        (0.0, 0.7, "underpowered"),  # ±1.15
        (0.9, 0.3, "not shown"),  # 0.31 … 1.49: different, perhaps by more
        (-0.9, 0.3, "not shown"),
        (3.0, 1.0, "contradicted"),  # 1.04 …
        (-3.0, 1.0, "contradicted"),
    ],
)
def test_the_verdict_on_equality(estimate: float, error: float, verdict: str) -> None:
    assert verdict_on(Comparison("a", "b", "equal", 1.0), gap(estimate, error))[0] == verdict


def test_few_seeds_or_no_numbers_are_underpowered() -> None:
    for expect in ("higher", "equal"):
        result, why = verdict_on(Comparison("a", "b", expect, 1.0), paired([9.0, 9.1], [0.0, 0.1]))  # type: ignore[arg-type]
        assert result == "underpowered" and "fewer than 3" in why
        assert verdict_on(Comparison("a", "b", expect, 1.0), gap(math.nan, 1.0))[0] == "underpowered"  # type: ignore[arg-type]


def test_seeds_are_paired_where_both_arms_have_them() -> None:
    first = {0: 1.0, 1: 2.1, 2: 3.0, 5: 99.0}
    second = {0: 0.0, 1: 1.0, 2: 2.0, 4: -99.0}
    together = compare(Comparison("a", "b", "higher", 0.5), {"a": first, "b": second})
    assert together.difference is not None and together.verdict == "shown"
    assert (together.difference.seeds, round(together.difference.estimate, 2)) == (3, 1.03)
    apart = compare(Comparison("a", "b", "higher", 0.5, paired=False), {"a": first, "b": second})
    assert apart.difference is not None and apart.difference.df != 2 and apart.verdict == "underpowered"
    number = compare(Comparison("a", 1.0, "higher", 0.5), {"a": first})
    assert number.difference is not None and number.difference.seeds == 4
    nothing = compare(Comparison("a", "b", "higher", 0.5), {"a": first, "b": {}})
    assert (nothing.verdict, nothing.difference) == ("not run", None)
    assert compare(Comparison("a", 1.0, "higher", 0.5), {"a": {}}).verdict == "not run"


def test_the_verdict_of_a_claim_is_that_of_its_worst_comparison() -> None:
    assert overall(["shown", "shown"]) == "shown"
    assert overall(["shown", "underpowered"]) == "underpowered"
    assert overall(["underpowered", "not shown", "shown"]) == "not shown"
    assert overall(["not shown", "contradicted"]) == "contradicted"
    assert overall(["contradicted", "not run"]) == "not run"


PLAIN, WORSE, BETTER = [10.0, 12.0, 11.0, 9.0], [1.0, 2.0, 1.5, 1.0], [30.0, 33.0, 31.0, 29.0]


def synthetic(folder: Path, name: str = "tiny", **arms: list[float]) -> Path:
    """A card with made-up results: the return of every arm and seed; the oracle's are about 40."""
    path = tiny(folder, name)
    card = load_claim(path)
    for arm_name, values in ({"fast": [40.0, 41.0, 42.0, 40.0]} | arms).items():
        for seed, x in enumerate(values):
            result = kept(ret=[10.0, x, x, x], loss=[1.0, 2.0], end=[1.0, 1.0])
            write_result(claim_results.result_file(card, card.arms[arm_name], seed), result)
    return path


@pytest.mark.parametrize(
    ("layer_norm", "verdict"),
    [
        (BETTER, "shown"),
        (WORSE, "contradicted"),
        (PLAIN[::-1], "not shown"),
        ([40.0, 0.0, 25.0, 2.0], "underpowered"),
        (BETTER[:2], "underpowered"),
        ([], "not run"),
    ],
)
def test_every_verdict_can_be_reached_from_results(tmp_path: Path, layer_norm: list[float], verdict: str) -> None:
    card = load_claim(synthetic(tmp_path, plain=PLAIN, layer_norm=layer_norm))
    claim = evaluate(card)
    assert claim.comparisons[0].verdict == verdict == claim.verdict


def test_the_closed_gap_is_measured_and_an_arm_above_the_oracle_is_marked(tmp_path: Path) -> None:
    card = load_claim(synthetic(tmp_path, plain=PLAIN, layer_norm=BETTER))
    arms = evaluate(card).arms
    assert arms is not None
    closed = arms["return"]["layer_norm"].gap
    assert closed is not None and closed.fraction is not None and not closed.above
    assert closed.fraction.estimate == pytest.approx(20.25 / 30.25)
    assert arms["return"]["plain"].gap is None and arms["return"]["fast"].gap is None
    # The loss is the same in all arms, so there is no gap.
    assert arms["loss"]["layer_norm"].gap is not None and arms["loss"]["layer_norm"].gap.fraction is None
    above = evaluate(load_claim(synthetic(tmp_path, plain=PLAIN, layer_norm=[60.0, 61.0, 60.0, 62.0]))).arms
    assert above is not None and above["return"]["layer_norm"].gap is not None
    assert above["return"]["layer_norm"].gap.above


def test_results_without_the_metrics_or_segments_of_the_card_do_not_count(tmp_path: Path) -> None:
    path = synthetic(tmp_path, plain=PLAIN, layer_norm=BETTER)
    changed = TINY["testbed"] | {"record": ["losses/value_loss", "losses/entropy"]}
    assert evaluate(load_claim(tiny(tmp_path, testbed=changed))).verdict == "not run"
    assert evaluate(load_claim(tiny(tmp_path, testbed=TINY["testbed"] | {"segment": 128}))).verdict == "not run"
    assert evaluate(load_claim(path)).verdict == "not run"  # the file was changed
    assert evaluate(load_claim(tiny(tmp_path))).verdict == "shown"


# ------------------------------------------------------------------------------------------------ checks


@pytest.mark.parametrize("name", ["adaptive_replay_ratio", "step_counter"])
def test_a_check_holds_and_fails_once_the_code_is_broken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(row.holds for row in claim_checks.CHECKS[name]())
    if name == "step_counter":
        monkeypatch.setattr(claim_checks.Adam, "count_per_weight", lambda self, parameter: None)
    else:
        from pliant.interventions.adaptive_replay_ratio import AdaptiveReplayRatio

        monkeypatch.setattr(AdaptiveReplayRatio, "check", lambda self: self.mirror.fill_(1.0))
    assert not all(row.holds for row in claim_checks.CHECKS[name]())


def test_an_injection_that_changes_a_prediction_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from pliant.interventions.plasticity_injection import PlasticityInjection

    name = "DQN on CartPole"
    monkeypatch.setattr(claim_checks, "LEARNERS", {name: claim_checks.LEARNERS[name] + " --agent.network.hidden 16"})
    assert all(row.holds for row in claim_checks.injection())
    move = PlasticityInjection.move

    def forgetful(self: Any, head: Any, number: int, draws: Any, optimizers: Any) -> None:
        move(self, head, number, draws, optimizers)
        for parameter in head.injection.initial[number].parameters():
            parameter.zero_()

    monkeypatch.setattr(PlasticityInjection, "move", forgetful)
    assert [row.holds for row in claim_checks.injection()] == [False, True, True]


# ------------------------------------------------------------------------------------------------ planning


def three(folder: Path) -> list[Claim]:
    """A cheap claim, a more expensive one that shares runs with it, and one of unknown cost."""
    cheap = tiny(folder, "cheap", seeds=6, minutes=1.8)  # 6 seconds a run
    dear = tiny(folder, "dear", seeds=8, minutes=9.6, arms=TINY["arms"] | {"slow": {"words": ["l2"]}})
    unknown = tiny(folder, "unknown", minutes=None, arms=TINY["arms"] | {"dark": {"words": ["crelu"]}})
    return [load_claim(path) for path in (unknown, dear, cheap)]


def seeds_of(planned: claims.Plan, name: str) -> list[int]:
    return [run.cell.seed for run in planned.runs if run.claim.name == name]


def test_a_budget_takes_the_cheapest_claims_completely(tmp_path: Path) -> None:
    cards, runs = three(tmp_path), tmp_path / "runs"
    assert claims.cost_of(cards[2], cards[2].arms["plain"]) == pytest.approx(6.0)
    # Five seeds of three arms at 6 s are 90 s: with nine tenths of 2 x 51 s that is all.
    small = claims.plan(cards, runs, 51.0, 2)
    assert [card.name for card in small.chosen] == ["cheap"] and len(small.runs) == 15
    assert {card.name for card in small.left_out} == {"unknown", "dear"}
    assert claims.plan(cards, runs, 49.0, 2).runs == []
    # A larger budget adds the sixth seed of the cheap claim, then the fourth arm of the dear one (three are shared).
    more = claims.plan(cards, runs, 1000.0, 1)
    assert [card.name for card in more.chosen] == ["cheap", "dear"]
    assert {run.cell.seed for run in more.runs if run.claim.name == "dear"} >= {0, 1, 2, 3, 4}
    assert len({run.cell.folder for run in more.runs}) == len(more.runs)
    # The first five seeds of all come before the sixth of any.
    order = [run.cell.seed for run in more.runs]
    assert max(order[:20]) == 4 and order[20] == 5
    # A shared run counts once: 90 s and five runs of 18 s are 180 s.
    shared = claims.plan(cards, runs, 205.0, 1)
    assert [card.name for card in shared.chosen] == ["cheap", "dear"] and len(shared.runs) == 20
    # Finished runs cost nothing.
    for run in small.runs:
        run.cell.folder.mkdir(parents=True)
        (run.cell.folder / "DONE").write_text('{"steps": 256}')
    assert [card.name for card in claims.plan(cards, runs, 1.0, 1).chosen] == ["cheap"]


def test_without_a_budget_all_seeds_are_planned(tmp_path: Path) -> None:
    cards = three(tmp_path)
    planned = claims.plan(cards, tmp_path / "runs", None, 1)
    assert [len(seeds_of(planned, name)) for name in ("unknown", "dear")] == [12, 23]
    assert len(claims.plan(cards, tmp_path / "runs", None, 1, seeds=1).runs) == 5


@pytest.mark.parametrize(("text", "expected"), [("30m", 1800), ("90s", 90), ("1h30m", 5400), ("0.5m", 30)])
def test_a_budget_is_read_as_a_time(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["30", "m", "", "-3m", "0s", "30 minutes"])
def test_a_budget_that_is_not_a_time_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="a time like 30m"):
        seconds(text)


def test_the_command_without_claims_or_a_budget_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "run"]) == 2
    assert "give --budget" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["claims", "--help"])


# ------------------------------------------------------------------------------------------------ from card to page


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A small claim, run by a process that is killed after its first run and then by another: folder and output."""
    folder = tmp_path_factory.mktemp("claim")
    card = tiny(folder)
    command = ["claims", "run", str(card), "--jobs", "1", "--runs", str(folder / "runs"), "--out", str(folder)]
    first = Command(*command)
    deadline = time.monotonic() + 120
    while not list(folder.glob("runs/*/*/seed*/DONE")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    first.send(signal.SIGKILL)
    first.wait()
    finished = len(list(folder.glob("runs/*/*/seed*/DONE")))
    assert 1 <= finished < 9
    # The worker that was running saves and ends; until then its folder is locked.
    while any(is_locked(lock) for lock in folder.glob("runs/*/*/seed*/.lock")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main(command) == 0
    yield folder, output.getvalue()


def is_locked(lock: Path) -> bool:
    import fcntl

    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.full
def test_a_killed_claim_continues_and_repeats_no_run(done: tuple[Path, str]) -> None:
    folder, output = done
    runs = list(folder.glob("runs/*/*/seed*"))
    assert len(runs) == 9 and all((run / "DONE").exists() for run in runs)
    sessions = [(run / "output.log").read_text().count("in a pool") for run in runs]
    assert sorted(sessions)[:8] == [1] * 8 and max(sessions) <= 2  # except the run that was killed
    assert len(list(folder.glob("results/*/*/seed*.json"))) == 9
    assert "tiny: " in output and "layer_norm > plain in return" in output and "equal" not in output
    result = json.loads(next(folder.glob("results/*/*layer_norm*/seed1.json")).read_text())
    assert result["command"][:2] == ["pliant", "train"] and "--seed" in result["command"]
    assert len(result["segments"]["return"]) == 4 and result["cpu_seconds"] > 0
    assert len(result["tags"]["losses/value_loss"]["mean"]) == 4 and result["evaluations"]
    assert result["versions"]["torch"] and result["steps"] == 256


@pytest.mark.full
def test_the_page_is_complete_and_the_same_in_every_rendering(done: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = done
    card = folder / "tiny.yaml"
    for out in ("one", "two"):
        assert main(["claims", "render", str(card), "--out", str(tmp_path / out)]) == 0
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert [str(f) for f in files] == ["claims.md", "figures/claims/tiny.svg"]
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
        assert (tmp_path / "one" / file).read_bytes() == (folder / file).read_bytes()  # and by another process
    page = (tmp_path / "one" / "claims.md").read_text()
    for text in (
        "## A small claim, about nothing",
        TINY["claim"],
        "Nothing in Particular",
        "0000.00000",
        "CartPole for 256 steps.",
        "figures/claims/tiny.svg",
        r"| layer\_norm > plain |",
        "| plain = 20 |",
        "**fast**: the oracle",
        "`layer_norm`",
        "--agent.rollout 64",
        "# layer_norm: the same with",
        "--interventions layer_norm",
        "pliant claims run tiny",
        "gap closed",
    ):
        assert text in page, text
    anchors = re.findall(r"\]\(#([^)]+)\)", page)
    assert anchors == ["a-small-claim-about-nothing"]
    figure = (tmp_path / "one" / "figures" / "claims" / "tiny.svg").read_text()
    assert figure.startswith("<?xml") and "<dc:date>" not in figure


def test_changed_results_change_the_page(tmp_path: Path) -> None:
    card = synthetic(tmp_path, plain=PLAIN, layer_norm=BETTER)
    claim_page.write_page([evaluate(load_claim(card))], tmp_path)
    before = {p.name: p.read_text() for p in (tmp_path / "claims.md", tmp_path / "figures" / "claims" / "tiny.svg")}
    synthetic(tmp_path, plain=PLAIN, layer_norm=[31.0, *BETTER[1:]])
    claim_page.write_page([evaluate(load_claim(card))], tmp_path)
    assert (tmp_path / "claims.md").read_text() != before["claims.md"]
    assert (tmp_path / "figures" / "claims" / "tiny.svg").read_text() != before["tiny.svg"]


def test_claims_that_are_not_shown_come_first(tmp_path: Path) -> None:
    verdicts = []
    for name, layer_norm in (
        ("a_shown", BETTER),
        ("b_lacking", [40.0, 0.0, 25.0, 2.0]),
        ("c_nothing", PLAIN[::-1]),
        ("d_worse", WORSE),
        ("e_later", []),
    ):
        (tmp_path / name).mkdir()
        path = synthetic(tmp_path / name, name, plain=PLAIN, layer_norm=layer_norm)
        data = yaml.safe_load(path.read_text()) | {"title": name, "tried": "Other seeds."}
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        verdicts.append(evaluate(load_claim(path)))
    claim_page.write_page(verdicts, tmp_path)
    page = (tmp_path / "claims.md").read_text()
    order = ["d_worse", "c_nothing", "b_lacking", "e_later", "a_shown"]
    assert re.findall(r"^## (\S+)", page, re.MULTILINE) == order
    assert re.findall(r"^\| \[(\S+)\]", page, re.MULTILINE) == order
    assert page.count("Attempts: Other seeds.") == 5
    assert "1 contradicted, 1 not shown, 1 underpowered, 1 not run, 1 shown" in " ".join(page.split())
    assert "**Contradicted.**" in page and "**Not shown.**" in page
    assert {p.stem for p in (tmp_path / "figures" / "claims").iterdir()} == set(order) - {"e_later"}
    output = table(verdicts)
    assert [line.split()[0] for line in output.splitlines()[1:]] == order
    # The figure of a removed claim is deleted.
    claim_page.write_page(verdicts[:1], tmp_path)
    assert [p.stem for p in (tmp_path / "figures" / "claims").iterdir()] == ["a_shown"]


def test_two_seeds_have_a_mean_and_no_interval_on_the_page(tmp_path: Path) -> None:
    card = synthetic(tmp_path, plain=PLAIN[:2], layer_norm=BETTER[:2])
    claim_page.write_page([evaluate(load_claim(card))], tmp_path)
    page = (tmp_path / "claims.md").read_text()
    assert "| 31.5 (fewer than 3 seeds: no interval) | 2 |" in page and "underpowered" in page


def test_the_committed_page_is_rendered_from_the_committed_results() -> None:
    """It is not edited by hand and not out of date."""
    page = BUILT_IN.parent / "docs" / "claims.md"
    assert page.exists()
    made = "\n".join(claim_page._page(in_order([evaluate(card) for card in find()]))) + "\n"
    assert page.read_text() == made, "run `pliant claims render`"

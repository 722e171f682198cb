"""`pliant report`: from run folders, as runs write them, to a self-contained page."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pliant.lab.analysis import figures as report_figures
from pliant.lab.analysis.comparisons import per_task
from pliant.lab.analysis.page import Page, Table, Text, as_html, as_markdown
from pliant.lab.analysis.runs import read_run
from pliant.lab.analysis.summaries import series, summarise
from pliant.lab.experiments.config import defaults, dump, load
from pliant.lab.experiments.study import Study, load_study
from pliant.scripts.main import main

SCORES = {"": 10.0, "layer_norm": 40.0}


def run(folder: Path, specs: tuple[str, ...], seed: int, level: float, *, steps: int = 1000, done: bool = True) -> Path:
    """A run's folder as `pliant train` writes it; its returns rise to a level."""
    folder.mkdir(parents=True)
    config = replace(
        defaults("dqn", "CartPole-v1"),
        interventions=specs,
        seed=seed,
        steps=steps,
        evaluate_episodes=0,
        device="cpu",
        threads=1,
    )
    (folder / "config.yaml").write_text(dump(config))
    rows: list[dict[str, Any]] = []
    for i in range(1, 21):
        at = {"frames": 50 * i, "steps": 50 * i, "updates": 50 * i}
        value = level * min(1.0, i / 10) + 0.5 * ((seed * 7) % 5)
        rows.append(at | {"charts/episodic_return": value, "charts/episodic_length": 10, "env": 0, "seed": 0})
        rows.append(at | {"plasticity/dormant_fraction/q": 1.0 / (level + seed)})
        if specs and i == 10:
            rows.append(at | {"firings/layer_norm/fired": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    session = {
        "command": f"pliant train --seed {seed}",
        "python": "3.11.7",
        "platform": "Linux",
        "git": "abc",
        "packages": {"torch": "2.13.0" if seed else "2.12.0"},
    }
    (folder / "versions.json").write_text(json.dumps([session]))
    (folder / "cost.jsonl").write_text(json.dumps({"cpu": 20.0 if specs else 10.0, "wall": 12.0}) + "\n")
    if done:
        (folder / "DONE").write_text(json.dumps({"steps": steps, "updates": 1000}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for specs, level in SCORES.items():
        for seed in range(4):
            run(tmp_path / "runs" / (specs or "plain") / f"seed{seed}", (specs,) if specs else (), seed, level)
    return tmp_path / "runs"


def report(*arguments: object) -> int:
    return main(["report", *map(str, arguments), "--no-flops"])


def test_a_page_shows_scores_failures_versions_and_costs_of_the_runs(runs: Path, tmp_path: Path) -> None:
    failed = run(runs / "plain" / "seed9", (), 9, 0.0, done=False)
    (failed / "output.log").write_text("Traceback\nRuntimeError: out of luck\n")
    run(runs / "plain" / "seed8", (), 8, 0.0, done=False)
    assert report(runs, "--out", tmp_path / "out") == 0
    page, text = ((tmp_path / "out" / name).read_text() for name in ("report.html", "report.md"))
    assert "`layer_norm` is above `plain` by 30 [30, 30] (4 seeds, p < 0.001" in text.replace("\\", "")
    assert "RuntimeError: out of luck" in page and "(at step 1,000 of 1,000)" in page
    assert "2.12.0, 2.13.0 (runs differ)" in page and "4 each" in page
    assert "100 % [100, 100]" in page  # twice the processor time of an update
    assert page.count("<svg") >= 6 and "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page
    assert "dormant_fraction of q" in page and "Ticks at the bottom" in page
    scores = (tmp_path / "out" / "runs.csv").read_text().splitlines()
    assert len(scores) == 11 and sum(",failed," in line for line in scores) == 1
    assert (tmp_path / "out" / "figures" / "iqm-0.png").read_bytes().startswith(b"\x89PNG")


def test_two_seeds_have_no_interval_and_the_page_states_it(runs: Path, tmp_path: Path) -> None:
    for arm in ("plain", "layer_norm"):
        for seed in (2, 3):
            shutil.rmtree(runs / arm / f"seed{seed}")
    assert report(runs, "--out", tmp_path / "out") == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "fewer than 3 give no interval; the means differ by 30" in text
    assert "No interval from fewer than 3 seeds: plain, layer" in text and "is above" not in text
    for row in (tmp_path / "out" / "aggregates.csv").read_text().splitlines()[1:]:
        assert row.split(",")[5:7] == ["", ""]


def test_forks_are_a_section_of_their_own_and_are_compared_with_their_control(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = runs / "plain" / "seed0"
    for label, level in (("control", 10.0), ("full reset", 30.0), ("injection", 10.0)):
        for k in range(1 if label == "injection" else 3):
            folder = run(parent / "forks" / "510" / label / f"seed{k}", (), 0, level + 0.1 * k)
            fork = {
                "parent": "../../../..",
                "step": 510,
                "arm": "",
                "label": label,
                "replicate": k,
                "preset": "diagnose",
            }
            (folder / "fork.json").write_text(json.dumps(fork))
    first = {"frames": 5, "steps": 5, "updates": 5, "charts/episodic_return": 3.0, "env": 0, "seed": 0}
    metrics = parent / "metrics.jsonl"
    metrics.write_text(json.dumps(first) + "\n" + metrics.read_text())
    drawn: dict[str, list[Any]] = {}
    real = report_figures.lines

    def recorded(name: str, curves: Any, *more: Any, **options: Any) -> Any:
        drawn[name] = curves
        return real(name, curves, *more, **options)

    monkeypatch.setattr(report_figures, "lines", recorded)
    assert report(parent, "--out", tmp_path / "out") == 0
    past = {line.label: line for line in drawn["fork-0"]}["parent"]
    assert past.y[0] == 3.0 and 0 < past.x[0] < 25 and past.x[-1] < 510, "the parent is drawn from its first episode on"
    text = (tmp_path / "out" / "report.md").read_text()
    assert "the arms that recover are `full reset`" in text and "`injection`: too few replicates" in text
    assert "1 parent. The score" in text
    # Only steps after the fork count: the lower returns before it belong to all arms.
    rows = list(csv.DictReader((tmp_path / "out" / "forks.csv").read_text().splitlines()))
    assert {row["arm"]: float(row["mean"]) for row in rows} == pytest.approx(
        {"control": 10.1, "full reset": 30.1, "injection": 10.0}
    )
    # With a relative path no table contains the absolute path.
    monkeypatch.chdir(tmp_path)
    assert report("runs/plain/seed0", "--out", "near") == 0
    assert "runs/plain/seed0," in (tmp_path / "near" / "runs.csv").read_text()
    assert all(str(tmp_path) not in file.read_text() for file in (tmp_path / "near").glob("*.*"))
    gaps = {row["arm"]: float(row["difference"]) for row in rows if row["arm"] != "control"}
    assert gaps == pytest.approx({"full reset": 20.0, "injection": 0.0})
    assert sum(",done," in line for line in (tmp_path / "out" / "runs.csv").read_text().splitlines()) == 8


def fork_of(parent: Path, label: str, replicate: int, level: float, steps: int = 1000) -> None:
    folder = run(parent / "forks" / "500" / label / f"seed{replicate}", (), 0, level, steps=steps)
    if steps < 1000:
        metrics = folder / "metrics.jsonl"
        rows = [text for text in metrics.read_text().splitlines() if json.loads(text)["steps"] <= steps]
        metrics.write_text("".join(text + "\n" for text in rows))
    fork = {"parent": "../../../..", "step": 500, "arm": "", "label": label, "replicate": replicate, "preset": None}
    (folder / "fork.json").write_text(json.dumps(fork))


def test_arms_of_different_lengths_are_compared_up_to_the_shortest(runs: Path, tmp_path: Path) -> None:
    """All returns rise until step 500 and stay; those of the control fall after the end of the short arm."""
    parent = runs / "plain" / "seed0"
    for k in range(3):
        fork_of(parent, "control", k, 10.0)
        fork_of(parent, "redo", k, 10.0, steps=700)
        metrics = parent / "forks" / "500" / "control" / f"seed{k}" / "metrics.jsonl"
        record = [json.loads(text) for text in metrics.read_text().splitlines()]
        for row in record:
            if row["steps"] > 700 and "charts/episodic_return" in row:
                row["charts/episodic_return"] = -90.0
        metrics.write_text("".join(json.dumps(row) + "\n" for row in record))
    assert report(parent, "--out", tmp_path / "out") == 0
    rows = list(csv.DictReader((tmp_path / "out" / "forks.csv").read_text().splitlines()))
    (redo,) = [row for row in rows if row["arm"] == "redo"]
    assert float(redo["difference"]) == 0.0
    assert "from the fork to step 700" in (tmp_path / "out" / "report.md").read_text()


def test_forks_of_the_runs_of_different_arms_are_compared_separately(runs: Path, tmp_path: Path) -> None:
    """An intervention that helps the runs of one arm and harms those of another has a row for each."""
    for arm, gap in (("plain", 5.0), ("layer_norm", -5.0)):
        for k in range(3):
            fork_of(runs / arm / "seed0", "control", k, 10.0)
            fork_of(runs / arm / "seed0", "redo", k, 10.0 + gap)
    assert report(runs, "--out", tmp_path / "out") == 0
    rows = list(csv.DictReader((tmp_path / "out" / "forks.csv").read_text().splitlines()))
    gaps = {row["parents"]: float(row["difference"]) for row in rows if row["arm"] == "redo"}
    assert gaps == {"plain": 5.0, "layer_norm": -5.0}
    assert "dqn with `plain` in CartPole-v1" in (tmp_path / "out" / "report.md").read_text()


def test_a_stem_and_an_unfinished_folder_do_not_count_as_runs(runs: Path, tmp_path: Path) -> None:
    parent = runs / "plain" / "seed0"
    run(parent / "forks" / "stem" / "450", (), 0, 10.0, steps=450, done=False)
    run(parent / "forks" / "450" / "redo" / "seed0.tmp", (), 0, 10.0, done=False)
    assert report(parent, "--out", tmp_path / "out") == 0
    assert sum(",done," in line for line in (tmp_path / "out" / "runs.csv").read_text().splitlines()) == 1


def test_runs_with_other_settings_are_a_separate_arm(runs: Path, tmp_path: Path) -> None:
    for file in (runs / "layer_norm").rglob("config.yaml"):
        config = load(file.parent)
        file.write_text(dump(replace(config, agent_config=replace(config.agent_config, gamma=0.9))))
    assert report(runs, "--out", tmp_path / "out") == 0
    assert "`layer_norm (agent.gamma=0.9)` is above `plain`" in (tmp_path / "out" / "report.md").read_text().replace(
        "\\", ""
    )


@pytest.mark.full
def test_the_report_of_a_swept_study_covers_every_cell(tmp_path: Path) -> None:
    """Real runs from the sweep to the page: one cell was never begun, and one has other settings than the study."""
    file, root, out = tmp_path / "small.yaml", tmp_path / "runs", tmp_path / "out"
    file.write_text(
        yaml.safe_dump(
            {
                "name": "small",
                "title": "Labels, drawn anew",
                "seeds": 4,
                "segment": 640,
                "baseline": "plain",
                "agents": {"supervised": {"agent.network.hidden": [16]}},
                "environments": {"stream/RandomLabels": {"env.samples": 64, "env.period": 640, "env.stretch": 20}},
                "arms": {
                    "plain": {"kind": "control"},
                    "fresh": {"kind": "oracle", "words": ["fresh_agent(every=640)"]},
                },
                "flags": {
                    "num_envs": 32,
                    "steps": 2560,
                    "log_every": 640,
                    "evaluate_episodes": 0,
                    "monitors": ["units(every=10)"],
                },
                "measures": {"accuracy": {"read": "end_reward", "last": 2}},
                "comparisons": [
                    {"a": "plain", "b": -5, "expect": "higher", "margin": 0.5},
                    {"a": "plain", "b": "fresh", "expect": "equal", "margin": 1e-6},
                ],
            }
        )
    )
    assert main(["sweep", str(file), "--out", str(root)]) == 0
    study = load_study(root)
    shutil.rmtree(cell_of(study, "plain", 3))
    other = cell_of(study, "fresh", 3) / "config.yaml"
    other.write_text(other.read_text().replace("lr: 0.001", "lr: 0.5"))
    assert main(["report", str(root), "--out", str(out)]) == 0
    text = (out / "report.md").read_text().replace("\\", "")
    assert "Labels, drawn anew" in text and "return per task (of 640" in text
    assert "it was never started" in text and "holds another run, which differs in agent.optimizer.lr" in text
    assert "| plain | 3 |" in text and "| fresh | 3 |" in text
    assert (out / "figures" / "flops-0-0.png").exists() and "dormant_fraction of " in text.split("## Plasticity")[1]
    # Comparisons in the study file are evaluated by the rules of claims.
    expected = text.split("## Expected results")[1].split("## ")[0]
    assert re.search(r"\| plain > -5 \| accuracy \| .* \| 0.5 \| shown \|", expected)
    assert re.search(r"\| plain = fresh \| accuracy \| .* \| (underpowered|not shown|contradicted) \|", expected)
    assert (out / "expected.csv").exists()
    # The page's tasks are those of the claims.
    for cell in study.cells():
        if cell.seed != 3:
            theirs = [math.nan if x is None else x for x in series(summarise(cell.folder, 640), "return")]
            assert list(per_task(read_run(cell.folder), 640)) == pytest.approx(theirs, rel=1e-5, nan_ok=True)
            assert len(theirs) == 4 and all(map(math.isfinite, theirs))


def cell_of(study: Study, arm: str, seed: int) -> Path:
    return next(cell.folder for cell in study.cells() if (cell.arm, cell.seed) == (arm, seed))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["RUNS", "--baseline", "plane"], "Did you mean 'plain'"),
        (["RUNS", "--measure", "lats"], "not one of final, last"),
        (["RUNS", "--measure", "final"], "none of these runs was evaluated"),
        (["RUNS", "--measure", "tasks"], "needs the length of a task"),
        (["RUNS", "--segment", "0"], "at least 1"),
        (["RUNS", "--margin", "-1"], "above 0"),
    ],
)
def test_a_wrong_command_line_gives_one_line_of_error(
    runs: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(runs) if argument == "RUNS" else argument for argument in arguments]
    assert report(*given, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_damaged_file_of_costs_removes_only_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path / "seed0", (), 0, 1.0)
    whole = read_run(folder)
    (folder / "cost.jsonl").write_text('{"cpu": 1\n')
    (folder / "timing.jsonl").write_text('{"time/act": 1}\n{"time/\n')
    damaged = read_run(folder)
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "cost.jsonl: 1 of 1 lines" in errors[0] and "timing.jsonl is damaged" in errors[1]
    assert math.isnan(damaged.wall_seconds) and math.isnan(damaged.cpu_seconds)
    assert damaged.returns.values.tolist() == whole.returns.values.tolist()
    (folder / "timing.jsonl").write_text('{"time/act": 1}\n{"time/act": 2}\n')
    assert read_run(folder).wall_seconds == 3.0


@pytest.mark.parametrize("name", ["DONE", "versions.json", "fork.json"])
@pytest.mark.parametrize("text", ["", "{", "3", "[" * 100_000])
def test_a_damaged_file_of_a_run_is_named_in_one_line(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path / "seed0", (), 0, 1.0)
    (folder / name).write_text(text)
    assert report(folder, "--out", tmp_path / "out") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith(f"error: {folder / name} ") and "Restore it" in errors[0]


def test_text_is_not_interpreted_as_markup() -> None:
    page = Page("a < b", [Text("<script> & `code`"), Table(["x|y"], [["a_b*"]])])
    assert "<p>&lt;script&gt; &amp; <code>code</code></p>" in as_html(page) and "<h1>a &lt; b</h1>" in as_html(page)
    assert r"| x\|y |" in as_markdown(page) and r"a\_b\*" in as_markdown(page)


@pytest.mark.browser
@pytest.mark.skipif(
    not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), reason="no Chromium here"
)
def test_no_part_of_the_page_is_wider_than_a_phone(runs: Path, tmp_path: Path) -> None:
    assert report(runs, "--out", tmp_path / "out") == 0
    file = Path(__file__).resolve().parents[2] / "studies" / "screenshots.py"
    spec = importlib.util.spec_from_file_location("screenshots_of_reports", file)
    assert spec is not None and spec.loader is not None
    screenshots = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = screenshots
    spec.loader.exec_module(screenshots)
    with screenshots.browser(tmp_path / "profile") as tab:
        tab.size(390, 844)
        tab.call("Page.navigate", url=(tmp_path / "out" / "report.html").as_uri())
        tab.wait("document.readyState === 'complete' && document.querySelectorAll('figure').length > 4")
        assert tab.value("document.documentElement.scrollWidth") <= 390
        wide = "all(n => n.localName === 'figure' && box(n).right > 390).length"
        assert tab.value(wide) == 0

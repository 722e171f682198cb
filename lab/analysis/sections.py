"""The sections of a report, from the results to their cost. Fixed rules derive every statement from the numbers.

A difference counts as shown if its 95 % interval excludes 0; the page also shows whether it passes Holm's correction.
Comparisons without a difference are listed with the smallest difference that they could have detected.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from ...agents.progress import duration
from ...common.moved import moved
from ..experiments.predicates import Comparison as Predicate
from ..experiments.study import Study
from ..statistics import (
    CONFIDENCE,
    FEWEST,
    STATISTICS,
    TAUS,
    Array,
    Gap,
    Interval,
    aggregate,
    correlation,
    mean_interval,
    profile,
)
from . import figures
from .comparisons import (
    Comparison,
    Curve,
    Group,
    Measure,
    binned,
    change,
    compare_all,
    curve,
    group_runs,
    plasticity_tags,
    window_of,
)
from .figures import ArmStyle, Line, arm_styles
from .forks import Branch, branches
from .numbers import interval, number
from .page import Block, Box, Bullets, Code, Figure, Figures, Folded, Heading, Page, Table, Text
from .runs import RETURN, Record, Runs
from .summaries import summarise, value
from .verdicts import compare

BINS = 50  # points of a curve
MOST_EDGES = 60  # task changes that are marked
MOST_FIRINGS = 200  # marks of an arm
MOST_METRICS = 12  # figures of the plasticity panel
MOST_CORRELATIONS = 8  # correlations among the findings
EVALUATION = "eval/episodic_return"


@dataclass
class Report:
    """The content of a report: its page, figures and tables.

    Attributes:
        flops: FLOPs of one gradient update by (environment, agent, arm), or the reason why they are unknown.
        command: The command line of the report.
        pictures: PNGs by file name; `tables` the CSV files by theirs, each a header and rows.
    """

    runs: Runs
    measure: Measure
    baseline: str | None
    oracle: str | None
    margin: float | None
    command: str
    flops: Mapping[tuple[str, str, str], float | str] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    tables: dict[str, tuple[list[str], list[list[Any]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.groups, self.without = group_runs(self.runs, self.measure, self.baseline, self.oracle)
        self.comparisons = compare_all(self.groups, self.margin)
        self.branches = branches(self.runs)
        arms = dict.fromkeys(record.arm for record in self.runs.records)
        self.arm_styles = arm_styles(arms, self.baseline, self.oracle)
        self.drawing = figures.installed()
        self.correlations: list[tuple[str, str, str, Interval, int]] = []

    # -------------------------------------------------------------------------------------------- the whole

    def page(self) -> Page:
        study = self.runs.study
        page = Page(study.title if study is not None else "Report of " + _count(len(self.runs.records), "run"))
        if study is not None and study.about:
            page.add(Text(study.about, "lead"))
        panel = list(self.plasticity())  # its correlations are among the findings
        page.add(Heading("Findings"), *self.findings())
        page.add(Heading("Protocol"), *self.protocol())
        if self.groups:
            page.add(Heading("Scores over seeds and tasks"), *self.aggregates())
            page.add(Heading("Comparisons"), *self.compared())
            if self.runs.study is not None and self.runs.study.comparisons:
                page.add(Heading("Expected results"), *self.expected(self.runs.study))
            page.add(Heading("Learning curves"), *self.curves())
            page.add(Heading("Per-task scores"), *self.per_task())
        page.add(Heading("Plasticity"), *panel)
        page.add(Heading("Cost"), *self.cost())
        if self.branches:
            page.add(Heading("Forks"), *self.forks())
        self._runs_table()
        return page

    def csv(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        kept = self.tables.setdefault(f"{name}.csv", (list(header), []))
        kept[1].extend([list(row) for row in rows])

    def figure(self, drawing: figures.Drawing, name: str, caption: str) -> Figure:
        file = f"figures/{name}.png"
        self.pictures[file] = drawing.png
        return Figure(name, drawing.svg, caption, file)

    def records(self, agent: str, environment: str, arm: str) -> list[Record]:
        """Finished runs by seed."""
        records = [r for r in self.runs.finished if (r.agent, r.environment, r.arm) == (agent, environment, arm)]
        return sorted(records, key=lambda r: r.seed)

    def style(self, arm: str) -> ArmStyle:
        return figures.style_of(self.arm_styles, arm)

    def where(self, agent: str, environment: str) -> str:
        """ " of ppo in CartPole-v1", with the parts needed to distinguish them."""
        many = len({env for group in self.groups for env in group.environments}) > 1
        place = (" over all environments" if not environment else f" in {environment}") if many else ""
        return (f" of {agent}" if len(self.groups) > 1 else "") + place

    # -------------------------------------------------------------------------------------------- findings

    def findings(self) -> Iterator[Block]:
        yield Text(self.measure.about + ("" if self.measure.higher_is_better else " Lower is better."))
        shown = [c for c in self.comparisons if c.verdict in ("above", "below")]
        rest = [c for c in self.comparisons if c.verdict not in ("above", "below")]
        shown_lines = [difference_text(c, self.where(c.agent, c.environment)) for c in _overall_first(shown)]
        gaps = [(c, gap_text(c, self.oracle, self.where(c.agent, c.environment))) for c in self.comparisons]
        shown_lines += [text for c, text in gaps if text and closes(c)]
        shown_lines += [line for branch in self.branches for line in branch.shown()]
        # Metrics of layers are only in the table. Those of components are listed here if they pass the correction for
        # the number of tests.
        components = [row for row in self.correlations if not of_layer(row[2])]
        strong = sorted(
            (row for row in components if survives(row[3], len(components))),
            key=lambda row: (*row[:2], -abs(row[3].estimate)),
        )
        shown_lines += [
            correlations_text(list(rows), len(components), self.where(*place))
            for place, rows in itertools.groupby(strong, key=lambda row: (row[0], row[1]))
        ]
        not_shown_lines = [difference_text(c, self.where(c.agent, c.environment)) for c in _overall_first(rest)]
        not_shown_lines += [text for c, text in gaps if text and not closes(c)]
        not_shown_lines += [line for branch in self.branches for line in branch.not_shown()]
        flat = [row for row in components if row not in strong]
        if flat:
            few = all(not row[3].known for row in flat)
            why = f"fewer than {FEWEST} seeds: no interval" if few else f"corrected for {len(components)} tests"
            not_shown_lines.append(
                f"no rank correlation with the change of return shown ({why}) for {len(flat)} metrics: "
                f"{by_metric(row[2] for row in flat)}."
            )
        if shown_lines:
            yield Heading("Shown", 3)
            yield Bullets(shown_lines)
        yield Heading("Not shown", 3)
        if not self.runs.finished:
            not_shown_lines.append("no run is done, so nothing can be compared yet.")
        elif not self.comparisons:
            not_shown_lines.append(
                f"{self.baseline}, the baseline, is the only arm: nothing is compared."
                if self.baseline
                else "no arm is the baseline, so nothing is compared: name one with --baseline."
            )
        lost = Counter(r.state for r in self.runs.records if r.state != "done")
        if lost:
            states = ", ".join(f"{count} {state}" for state, count in sorted(lost.items()))
            not_shown_lines.append(
                f"{_count(sum(lost.values()), 'run')} of {len(self.runs.records)} "
                f"{'is' if sum(lost.values()) == 1 else 'are'} not done and left out ({states}); the "
                "protocol names them."
            )
        yield Bullets(not_shown_lines) if not_shown_lines else Text("All comparisons show a difference.")

    # -------------------------------------------------------------------------------------------- protocol

    def protocol(self) -> Iterator[Block]:
        yield Box(list(self._protocol_rows()))
        yield Folded("The commands of the runs", [Code("\n".join(self._commands()) or "None is recorded.")])

    def _protocol_rows(self) -> Iterator[tuple[str, str]]:
        records = self.runs.records
        done = self.runs.finished
        if self.runs.study is not None:
            yield "Study", f"{self.runs.study.name} ({self.runs.study.path})"
        yield "Agents", ", ".join(dict.fromkeys(r.agent for r in records)) or "none"
        yield "Environments", ", ".join(dict.fromkeys(r.environment for r in records)) or "none"
        yield (
            "Arms",
            ", ".join(
                f"{arm}{' (baseline)' if arm == self.baseline else ' (oracle)' if arm == self.oracle else ''}"
                for arm in dict.fromkeys(r.arm for r in records)
            )
            or "none",
        )
        yield (
            "Length",
            _all(
                (
                    f"{r.steps:,} environment steps = {r.steps * r.frame_skip:,} frames "
                    f"({_count(r.frame_skip, 'frame')} a step)"
                )
                for r in done
            )
            or "no run is done",
        )
        if self.measure.segment:
            yield "Tasks", f"{self.measure.segment:,} environment steps each"
        atari = [r for r in records if r.config is not None and r.config.env.startswith("ALE/")]
        if atari:
            yield "Sticky actions", _all(_sticky(r) for r in atari)
        yield "Score", self.measure.about
        yield "Evaluation", _all(_evaluation(r) for r in done) or "no run is done"
        yield "Seeds per arm", self._seeds()
        yield (
            "Intervals",
            (
                f"{100 * CONFIDENCE:.0f} %. Aggregates: stratified bootstrap over seeds within tasks. Differences: "
                f"paired by "
                f"seed, Student's t. No interval from fewer than {FEWEST} seeds."
            ),
        )
        for state, title in (("missing", "Missing"), ("failed", "Failed"), ("interrupted", "Interrupted")):
            rows = [r for r in records if r.state == state]
            yield f"{title} runs", "; ".join(f"{r.name} ({r.note})" if r.note else r.name for r in rows) or "none"
        if self.without:
            yield "Runs without a score", "; ".join(r.name for r in self.without)
        if self.runs.not_in_study:
            yield "Not in the study, left out", "; ".join(map(str, self.runs.not_in_study))
        names = dict.fromkeys(name for r in [*done, *self.runs.forks] for name in r.versions)
        for name in names:
            values = dict.fromkeys(r.versions.get(name, "not recorded") for r in [*done, *self.runs.forks])
            yield name, ", ".join(values) + (" (runs differ)" if len(values) > 1 else "")
        yield "This report", f"`{self.command}`"

    def _seeds(self) -> str:
        counts: dict[int, list[str]] = {}
        for group in self.groups:
            for arm, by_env in group.scores.items():
                for env, values in by_env.items():
                    counts.setdefault(len(values), []).append(f"{arm}{self.where(group.agent, env)}")
        if not counts:
            return "no run has a score"
        if len(counts) == 1:
            return f"{next(iter(counts))} each"
        return "; ".join(f"{count}: {', '.join(names)}" for count, names in sorted(counts.items()))

    def _commands(self) -> Iterator[str]:
        """The command of each arm's first seed; runs.csv has all commands."""
        seen = set()
        for record in [*self.runs.finished, *self.runs.forks]:
            key = (record.agent, record.environment, record.arm, record.fork and record.fork.label)
            if record.command and key not in seen:
                seen.add(key)
                yield record.command

    # -------------------------------------------------------------------------------------------- aggregates

    def aggregates(self) -> Iterator[Block]:
        for index, group in enumerate(self.groups):
            if len(self.groups) > 1:
                yield Heading(group.agent, 3)
            if group.scale.kind == "none":
                yield Text(
                    "The environments have no common scale (no human scores, and no oracle above the baseline in all "
                    "of "
                    "them), so there is no aggregate over them. The results of each environment are below."
                )
                continue
            yield from self._aggregate(index, group)

    def _aggregate(self, number: int, group: Group) -> Iterator[Block]:
        arms = [arm for arm in group.arms if group.covers_all(arm)]
        aggregates = {arm: aggregate(group.strata(arm)) for arm in arms}
        names = [name for name in STATISTICS if name != "optimality gap" or group.scale.goal]
        tasks = len(group.environments)
        median = "median of the tasks' means" if tasks > 1 else "median"
        yield Text(f"{_capital(group.scale.title)}: {group.scale.about}. {_count(tasks, 'task')}.")
        rows = []
        for arm, by_name in aggregates.items():
            counts = sorted({len(row) for row in group.strata(arm)})
            rows.append([arm, "–".join(map(str, counts)), *(interval(by_name[name]) for name in names)])
            for name in names:
                self.csv(
                    "aggregates",
                    ["agent", "scale", "arm", "statistic", "estimate", "low", "high", "seeds"],
                    [[group.agent, group.scale.title, arm, name, *by_name[name], counts[0]]],
                )
        header = ["arm", "seeds", *(median if name == "median" else name for name in names)]
        yield Table(header, rows, caption=f"{_capital(group.scale.title)} and 95 % stratified bootstrap intervals")
        if few := [arm for arm in arms if min(map(len, group.strata(arm))) < FEWEST]:
            yield Text(f"No interval from fewer than {FEWEST} seeds: {', '.join(few)}.", "note")
        if partly := [arm for arm in group.arms if arm not in arms]:
            yield Text(f"Left out, because not run in every environment: {', '.join(partly)}.", "note")
        if not self.drawing:
            return
        drawn = [(arm, aggregates[arm]["IQM"], self.style(arm)) for arm in arms]
        reference = aggregates[group.baseline]["IQM"].estimate if group.baseline in aggregates else None
        title = f"{_capital(group.scale.title)}, interquartile mean"
        pair = [
            self.figure(
                figures.intervals(f"iqm-{number}", drawn, title, reference=reference),
                f"iqm-{number}",
                f"{title} and its 95 % interval" + (f"; dashed: {group.baseline}." if reference is not None else "."),
            )
        ]
        pair.append(self._profiles(number, group, arms))
        yield Figures(pair)

    def _profiles(self, number: int, group: Group, arms: Sequence[str]) -> Figure:
        pooled = np.concatenate([row for arm in arms for row in group.strata(arm)])
        low, high = float(pooled.min()), float(pooled.max())
        margin = 0.02 * (high - low) or 0.5
        taus = np.linspace(low - margin, high + margin, TAUS)
        drawn = []
        for arm in arms:
            one = profile(group.strata(arm), taus)
            drawn.append(Line(arm, self.style(arm), taus, one.share, one.low, one.high))
            self.csv(
                "profiles",
                ["agent", "arm", "threshold", "share", "low", "high"],
                [[group.agent, arm, *row] for row in zip(taus, one.share, one.low, one.high, strict=True)],
            )
        name = f"profile-{number}"
        return self.figure(
            figures.lines(name, drawn, _capital(group.scale.title), "Share of runs above"),
            name,
            "Performance profile: the share of runs that score above a threshold, with pointwise 95 % bootstrap bands.",
        )

    # -------------------------------------------------------------------------------------------- comparisons

    def compared(self) -> Iterator[Block]:
        if not self.comparisons:
            yield Text("Nothing is compared: there is no baseline, or no other arm.")
            return
        singles = [c for c in self.comparisons if c.environment]
        margin = (
            f"{number(self.margin)} (--margin)"
            if self.margin is not None
            else "a tenth of the baseline's mean (--margin sets another)"
        )
        if self.margin is not None and any(not c.environment for c in self.comparisons):
            margin += " in one environment; over all environments, a tenth of the baseline's mean normalised score"
        yield Text(
            f"Differences to the baseline, paired by seed. p is two-sided; Holm p is corrected for the "
            f"{_count(len(singles), 'comparison')} of this page. Equivalence: two one-sided tests with a margin "
            f"of {margin}. "
            "Detectable: the smallest true difference that these seeds would have shown with 80 % probability. "
            "P(better): the probability that a run of the arm is better than one of the baseline.",
            "note",
        )
        many = len({c.environment for c in self.comparisons}) > 1 or len(self.groups) > 1
        gaps = any(c.gap is not None for c in self.comparisons)
        header = [
            "arm",
            *(["where"] if many else []),
            "seeds",
            "difference",
            "p",
            "Holm p",
            "margin",
            "equivalence p",
            "detectable",
            "P(better)",
            *(["oracle's gap closed"] if gaps else []),
        ]
        rows = []
        for c in self.comparisons:
            place = [(self.where(c.agent, c.environment).strip() or c.environment)] if many else []
            rows.append(
                [
                    c.arm,
                    *place,
                    str(c.seeds),
                    interval(c.interval),
                    p_value(c.difference.p if c.difference else math.nan),
                    p_value(c.p_holm),
                    number(c.margin),
                    p_value(c.equivalence_p),
                    number(_detectable(c)),
                    interval(c.better),
                    *([gap_closed_text(c.gap)] if gaps else []),
                ]
            )
            share = c.gap.fraction if c.gap is not None else None
            self.csv(
                "comparisons",
                [
                    "agent",
                    "environment",
                    "arm",
                    "baseline",
                    "seeds",
                    "difference",
                    "low",
                    "high",
                    "p",
                    "holm_p",
                    "margin",
                    "equivalence_p",
                    "detectable",
                    "better",
                    "better_low",
                    "better_high",
                    "gap_closed",
                    "gap_low",
                    "gap_high",
                    "above_oracle",
                    "verdict",
                ],
                [
                    [
                        c.agent,
                        c.environment or "all",
                        c.arm,
                        c.baseline,
                        c.seeds,
                        *c.interval,
                        c.difference.p if c.difference else math.nan,
                        c.p_holm,
                        c.margin,
                        c.equivalence_p,
                        _detectable(c),
                        *c.better,
                        *(share or [""] * 3),
                        c.gap.above if c.gap else "",
                        c.verdict,
                    ]
                ],
            )
        yield Table(header, rows, texts=2 if many else 1)
        if any(c.verdict == "too few" for c in self.comparisons):
            yield Text(f"No interval from fewer than {FEWEST} shared seeds.", "note")
        if self.drawing:
            for i, group in enumerate(self.groups):
                pair = list(self._comparison_figures(i, group))
                if pair:
                    yield Figures(pair)

    def expected(self, study: Study) -> Iterator[Block]:
        """The comparisons in the study's file, with their verdicts."""
        rows = []
        for group in self.groups:
            for env in group.environments:
                for comparison in study.comparisons:
                    result = compare(comparison, self._values(study, group, env, comparison))
                    difference = "" if result.difference is None else interval(result.difference.interval())
                    labels = (group.agent, env, comparison.text, comparison.measure or self.measure.title)
                    rows.append((*labels, difference, f"{comparison.margin:g}", result.verdict, result.why))
        header = ("agent", "environment", "expected", "measure", "difference", "margin", "verdict", "reason")
        self.csv("expected", header, rows)
        yield Text(
            "The study's file names these results in advance. The verdicts follow from the intervals by the rules of "
            "`lab/analysis/verdicts.py`; none is corrected for the others."
        )
        yield Table(header, rows, texts=4)

    def _values(self, study: Study, group: Group, env: str, comparison: Predicate) -> Mapping[str, Mapping[int, float]]:
        """Values by arm and seed: those of the comparison's measure, or the scores of the report."""
        if not comparison.measure:
            return {arm: by_env.get(env, {}) for arm, by_env in group.scores.items()}
        values: dict[str, dict[int, float]] = {}
        for record in self.runs.finished:
            if (record.agent, record.environment) == (group.agent, env):
                summary = summarise(record.folder, study.segment, study.record)
                values.setdefault(record.arm, {})[record.seed] = value(summary, study.measures[comparison.measure])
        return values

    def _comparison_figures(self, i: int, group: Group) -> Iterator[Figure]:
        mine = [c for c in self.comparisons if c.agent == group.agent]
        overall = [c for c in mine if not c.environment]
        for name, rows in (
            [("all", overall)]
            if overall
            else [(env, [c for c in mine if c.environment == env]) for env in group.environments]
        ):
            if not rows:
                continue
            slug = f"{i}-{_slug(name)}"
            place = self.where(group.agent, "" if name == "all" else name)
            yield self.figure(
                figures.intervals(
                    f"difference-{slug}",
                    [(c.arm, c.interval, self.style(c.arm)) for c in rows],
                    f"Difference to {figures.shortened(rows[0].baseline, 20)}",
                    reference=0.0,
                ),
                f"difference-{slug}",
                f"Paired difference to {rows[0].baseline}{place}, with its 95 % interval.",
            )
            yield self.figure(
                figures.intervals(
                    f"better-{slug}",
                    [(c.arm, c.better, self.style(c.arm)) for c in rows],
                    f"Probability of improvement over {figures.shortened(rows[0].baseline, 16)}",
                    reference=0.5,
                ),
                f"better-{slug}",
                f"Probability that a run is better than one of {rows[0].baseline}{place}, with its "
                "95 % bootstrap interval.",
            )

    # -------------------------------------------------------------------------------------------- curves

    def curves(self) -> Iterator[Block]:
        yield Text(
            "Means over seeds with Student's 95 % bands. Each point is the mean return of the training episodes that "
            "ended in its part of the run; a curve ends where the shortest run of its arm ends. "
            f"Arms with fewer than {FEWEST} seeds have no band.",
            "note",
        )
        unknown = sorted({reason for reason in self.flops.values() if isinstance(reason, str)})
        if unknown:
            yield Text("FLOPs are not counted: " + "; ".join(unknown) + ".", "note")
        elif not self.flops:
            yield Text("FLOPs are not counted.", "note")
        for i, group in enumerate(self.groups):
            for j, env in enumerate(group.environments):
                if len(self.groups) > 1 or len(group.environments) > 1:
                    yield Heading(f"{group.agent} in {env}", 3)
                drawn = list(self._curve_figures(f"{i}-{j}", group, env))
                if drawn:
                    yield Figures(drawn)
        if not self.drawing:
            yield _no_figures()

    def _curve_figures(self, slug: str, group: Group, env: str) -> Iterator[Figure]:
        rows = {arm: self.records(group.agent, env, arm) for arm in group.arms}
        rows = {arm: records for arm, records in rows.items() if records}
        skip = next(iter(rows.values()))[0].frame_skip
        segment = self.measure.segment
        longest = max(min(r.steps for r in records) for records in rows.values())
        # A bin is a task, or several if there are very many.
        tasks = -(-longest // segment) if segment else 0
        width = segment * -(-tasks // (2 * BINS)) if segment else longest / BINS
        grid = np.arange(0, longest + width / 2, width) if width else np.zeros(1)
        axis = "Environment frames" if skip > 1 else "Environment steps (one frame each)"
        kinds: list[tuple[str, str, str, str]] = [("frames", RETURN, axis, "Return")]
        if all(
            len(r.tags[EVALUATION].steps) > 1 if EVALUATION in r.tags else False
            for records in rows.values()
            for r in records
        ):
            kinds.append(("evaluations", EVALUATION, axis, "Return in evaluation"))
        if "/" in self.measure.name:
            kinds.append(("measure", self.measure.name, axis, self.measure.name))
        edges = [k * segment * skip for k in range(1, tasks)] if 1 < tasks <= MOST_EDGES else []
        for kind, tag, x, y in kinds:
            lines = []
            for arm, records in rows.items():
                if averaged := self._steps_curve(records, tag, grid, skip):
                    lines.append(self._line(arm, averaged, self._firings(records, skip)))
                    self._curve_csv(group.agent, env, arm, y, x, averaged)
            if lines and self.drawing:
                what = "mean return per task, task changes marked" if edges and kind == "frames" else y
                yield self.figure(
                    figures.lines(f"{kind}-{slug}", lines, x, y, edges=edges),
                    f"{kind}-{slug}",
                    f"{_capital(what)} by environment frames{self.where(group.agent, env)}.",
                )
        by_updates = {arm: self._updates_curve(records) for arm, records in rows.items()}
        known = {arm: averaged for arm, averaged in by_updates.items() if averaged is not None}
        if known:
            yield from self._update_figures(slug, group, env, known)

    def _update_figures(self, slug: str, group: Group, env: str, known: Mapping[str, Curve]) -> Iterator[Figure]:
        for arm, averaged in known.items():
            self._curve_csv(group.agent, env, arm, "Return", "Gradient updates", averaged)
        if self.drawing:
            yield self.figure(
                figures.lines(
                    f"updates-{slug}", [self._line(arm, c) for arm, c in known.items()], "Gradient updates", "Return"
                ),
                f"updates-{slug}",
                f"Return by gradient updates{self.where(group.agent, env)}.",
            )
        counted = {arm: self.flops.get((env, group.agent, arm)) for arm in known}
        scaled = {
            arm: Curve(known[arm].x * cost, *(getattr(known[arm], n) for n in ("mean", "low", "high", "seeds")))
            for arm, cost in counted.items()
            if isinstance(cost, float)
        }
        if not scaled:
            return
        for arm, averaged in scaled.items():
            self._curve_csv(group.agent, env, arm, "Return", "FLOPs", averaged)
        if self.drawing:
            yield self.figure(
                figures.lines(
                    f"flops-{slug}",
                    [self._line(arm, c) for arm, c in scaled.items()],
                    "FLOPs of gradient updates",
                    "Return",
                ),
                f"flops-{slug}",
                "Return by floating-point operations of the gradient updates (matrix products and "
                "convolutions, forward and backward; counted on one update of a freshly built agent; acting, "
                "elementwise "
                f"operations and interventions between updates are not counted){self.where(group.agent, env)}.",
            )

    def _steps_curve(self, records: Sequence[Record], tag: str, grid: Array, skip: int) -> Curve | None:
        rows = []
        for record in records:
            if tag not in record.tags:
                return None
            series = record.tags[tag]
            row = binned(series.steps, series.values, grid)
            rows.append(row[: int(np.searchsorted(grid[1:], record.steps, side="right"))])
        x = (grid[:-1] + grid[1:]) / 2 * skip
        averaged = curve(rows, x) if len(x) else None
        return averaged if averaged is not None and np.isfinite(averaged.mean).any() else None

    def _updates_curve(self, records: Sequence[Record]) -> Curve | None:
        end = min(record.updates for record in records)
        if not end:
            return None
        points = min(BINS, end)
        if self.measure.segment:
            points = min(2 * BINS, max(1, records[0].steps // self.measure.segment))
        grid = np.linspace(0, end, points + 1)
        rows = [binned(r.returns.updates, r.returns.values, grid) for r in records]
        averaged = curve(rows, (grid[:-1] + grid[1:]) / 2)
        return averaged if np.isfinite(averaged.mean).any() else None

    def _line(self, arm: str, curve: Curve, marks: tuple[float, ...] = ()) -> Line:
        return Line(arm, self.style(arm), curve.x, curve.mean, curve.low, curve.high, marks)

    def _firings(self, records: Sequence[Record], skip: int) -> tuple[float, ...]:
        """Frames at which interventions fired in the first of these runs."""
        at = sorted({step * skip for steps in records[0].firings.values() for step in steps})
        return tuple(at[:: max(1, -(-len(at) // MOST_FIRINGS))])

    def _curve_csv(self, agent: str, env: str, arm: str, y: str, x: str, curve: Curve) -> None:
        self.csv(
            "curves",
            ["agent", "environment", "arm", "seeds", "y", "axis", "x", "mean", "low", "high"],
            [
                [agent, env, arm, curve.seeds, y, x, *row]
                for row in zip(curve.x, curve.mean, curve.low, curve.high, strict=True)
            ],
        )

    # -------------------------------------------------------------------------------------------- per task

    def per_task(self) -> Iterator[Block]:
        for group in self.groups:
            for env in group.environments:
                human = group.human
                rows = []
                for arm, by_env in group.scores.items():
                    if env not in by_env:
                        continue
                    values = np.array(list(by_env[env].values()))
                    raw = mean_interval(values)
                    row = [arm, str(len(values)), interval(raw)]
                    row += [number(float(values.min())), number(float(values.max()))]
                    normalised = Interval(math.nan, math.nan, math.nan)
                    if human:
                        normalised = mean_interval([group.scaled(env, float(v)) for v in values])
                        row.append(interval(normalised))
                    rows.append(row)
                    self.csv(
                        "per_task",
                        [
                            "agent",
                            "environment",
                            "arm",
                            "seeds",
                            "mean",
                            "low",
                            "high",
                            "human_normalised",
                            "human_low",
                            "human_high",
                        ],
                        [[group.agent, env, arm, len(values), *raw, *(normalised if human else [""] * 3)]],
                    )
                yield Table(
                    [
                        "arm",
                        "seeds",
                        f"{self.measure.title}, mean",
                        "lowest",
                        "highest",
                        *(["human-normalised"] if human else []),
                    ],
                    rows,
                    caption=f"{group.agent} in {env}, means with Student's 95 % intervals",
                )
        if any(group.human for group in self.groups):
            yield Text(
                "Human-normalised scores: 0 is a random player, 1 a professional tester. The reference scores of the "
                "57 "
                "games are those of Wang et al. 2016 (1511.06581) and the DQN Zoo, measured without sticky actions.",
                "note",
            )

    # -------------------------------------------------------------------------------------------- plasticity

    def plasticity(self) -> Iterator[Block]:
        any_figure = False
        for i, group in enumerate(self.groups):
            for j, env in enumerate(group.environments):
                rows = {arm: self.records(group.agent, env, arm) for arm in group.arms}
                rows = {arm: records for arm, records in rows.items() if records}
                tags = plasticity_tags(r for records in rows.values() for r in records)
                if not tags:
                    continue
                any_figure = True
                if len(self.groups) > 1 or len(group.environments) > 1:
                    yield Heading(f"{group.agent} in {env}", 3)
                yield from self._panel(f"{i}-{j}", group, env, rows, tags)
        if not any_figure:
            yield Text(
                "No plasticity metric was recorded at two steps of a run: run with --monitors cheap, or with other "
                "monitors (pliant monitors lists them)."
            )

    def _panel(
        self, slug: str, group: Group, env: str, rows: Mapping[str, Sequence[Record]], tags: Sequence[str]
    ) -> Iterator[Block]:
        correlated = []
        for tag in tags:
            points: dict[int, list[tuple[float, float]]] = {}
            for records in rows.values():
                for record in records:
                    window = window_of(record, self.measure.segment)
                    pair = (change(record, tag, window), change(record, RETURN, window))
                    if all(map(math.isfinite, pair)):
                        points.setdefault(record.seed, []).append(pair)
            rho = correlation(points)
            count = sum(map(len, points.values()))
            correlated.append((tag, rho, count, len(points)))
            self.correlations.append((group.agent, env, tag, rho, count))
            self.csv(
                "correlations",
                ["agent", "environment", "metric", "rank_correlation", "low", "high", "runs", "seeds"],
                [[group.agent, env, tag, *rho, count, len(points)]],
            )
        correlated.sort(key=lambda row: -abs(row[1].estimate) if math.isfinite(row[1].estimate) else 1.0)
        yield Text(
            "Spearman's rank correlation over runs, all arms together, of the change of a metric with the change of "
            "the training return, both from the first tenth of a run to its last tenth (at least a task); intervals by "
            "bootstrap over seeds, each with all its arms. An arm that changes both causes a correlation too: a "
            "correlation does not show a cause.",
            "note",
        )
        header = ["metric", "rank correlation", "runs", "seeds"]
        cells = [(tag, [_metric(tag), interval(rho), str(n), str(seeds)]) for tag, rho, n, seeds in correlated]
        yield Table(header, [row for tag, row in cells if not of_layer(tag)])
        if layers := [row for tag, row in cells if of_layer(tag)]:
            yield Folded(f"The same for {_count(len(layers), 'metric')} of single layers", [Table(header, layers)])
        if any(0 < seeds < FEWEST for *_, seeds in correlated):
            yield Text(f"No interval from fewer than {FEWEST} seeds.", "note")
        drawn = []
        chosen = [tag for tag, *_ in correlated if not of_layer(tag)][:MOST_METRICS]
        for tag, *_ in correlated:
            lines = self._metric_lines(group, env, rows, tag)
            if self.drawing and lines and tag in chosen:
                fired = any(line.marks for line in lines)
                marks = " Ticks at the bottom: firings of interventions, in the first seed of an arm." if fired else ""
                skip = next(iter(rows.values()))[0].frame_skip
                drawn.append(
                    self.figure(
                        figures.lines(
                            f"metric-{slug}-{_slug(tag)}",
                            lines,
                            "Environment frames" if skip > 1 else "Environment steps (one frame each)",
                            _metric(tag).split(" of ")[0].replace("_", " ").capitalize(),
                        ),
                        f"metric-{slug}-{_slug(tag)}",
                        f"{_metric(tag)}{self.where(group.agent, env)}.{marks}",
                    )
                )
        if drawn:
            yield Figures(drawn)
        if self.drawing and len(correlated) > len(chosen):
            yield Text(
                f"The figures show the {len(chosen)} metrics of components with the strongest correlations; "
                f"plasticity.csv has all {len(correlated)}.",
                "note",
            )
        if not self.drawing:
            yield _no_figures()

    def _metric_lines(self, group: Group, env: str, rows: Mapping[str, Sequence[Record]], tag: str) -> list[Line]:
        lines = []
        for arm, records in rows.items():
            having = [r for r in records if tag in r.tags and len(r.tags[tag].steps)]
            if not having:
                continue
            end, skip = min(r.steps for r in having), having[0].frame_skip
            points = min(BINS, min(len(np.unique(r.tags[tag].steps)) for r in having))
            grid = np.linspace(0, end, max(points, 1) + 1)
            averaged = self._steps_curve(having, tag, grid, skip)
            if averaged is None:
                continue
            lines.append(self._line(arm, averaged, self._firings(having, skip)))
            self.csv(
                "plasticity",
                ["agent", "environment", "arm", "seeds", "metric", "frames", "mean", "low", "high"],
                [
                    [group.agent, env, arm, averaged.seeds, tag, *row]
                    for row in zip(averaged.x, averaged.mean, averaged.low, averaged.high, strict=True)
                ],
            )
        return lines

    # -------------------------------------------------------------------------------------------- cost

    def cost(self) -> Iterator[Block]:
        header = ["arm", "where", "runs", "steps", "updates", "wall time", "processor time", "overhead per update"]
        rows = []
        for agent, env, arm in dict.fromkeys((r.agent, r.environment, r.arm) for r in self.runs.finished):
            records = self.records(agent, env, arm)
            base = {r.seed: r for r in self.records(agent, env, self.baseline)} if self.baseline else {}
            ratios = [_per_update(r) / _per_update(base[r.seed]) for r in records if r.seed in base]
            ratios = [x for x in ratios if math.isfinite(x) and x > 0]
            over = Interval(math.nan, math.nan, math.nan)
            if ratios and arm != self.baseline:
                logs = mean_interval(np.log(ratios))
                over = Interval(*(math.expm1(x) for x in logs))
            means = [float(np.mean([getattr(r, n) for r in records])) for n in ("steps", "updates")]
            seconds = [_mean_known(getattr(r, n) for r in records) for n in ("wall_seconds", "cpu_seconds")]
            rows.append(
                [
                    arm,
                    f"{agent} in {env}",
                    str(len(records)),
                    *(f"{m:,.0f}" for m in means),
                    *map(_spent, seconds),
                    "baseline" if arm == self.baseline else percent(over),
                ]
            )
            self.csv(
                "cost",
                [
                    "agent",
                    "environment",
                    "arm",
                    "runs",
                    "steps",
                    "updates",
                    "wall_seconds",
                    "cpu_seconds",
                    "overhead",
                    "overhead_low",
                    "overhead_high",
                ],
                [[agent, env, arm, len(records), *means, *seconds, *over]],
            )
        if not rows:
            yield Text("No run is done.")
            return
        yield Text(
            "Means per run. Overhead: processor time per gradient update (wall clock if the processor time was not "
            "recorded), including everything else that the run does, relative to the baseline with the same seed; "
            "geometric mean with Student's 95 % interval. Other load on the machine makes it less exact.",
            "note",
        )
        yield Table(header, rows, texts=2)

    # -------------------------------------------------------------------------------------------- forks

    def forks(self) -> Iterator[Block]:
        yield Text(
            "Runs branched off a parent at one step; they share everything before it. Differences to the control are "
            "paired by parent and replicate. With one or two parents the results hold for this step of these runs, and "
            "not for a method in general.",
            "note",
        )
        for i, branch in enumerate(self.branches):
            yield Heading(branch.title, 3)
            yield Text(branch.about)
            rows = []
            for label in branch.labels:
                values = branch.values(label)
                d = branch.differences.get(label)
                mean = mean_interval(list(values.values())) if values else Interval(math.nan, math.nan, math.nan)
                gap = Interval(math.nan, math.nan, math.nan) if d is None else d.interval()
                row = [label, str(len(values)), interval(mean), "control" if label == "control" else interval(gap)]
                rows.append([*row, branch.verdict(label)])
                self.csv(
                    "forks",
                    [
                        "agent",
                        "environment",
                        "step",
                        "preset",
                        "arm",
                        "runs",
                        "mean",
                        "low",
                        "high",
                        "difference",
                        "difference_low",
                        "difference_high",
                        "verdict",
                        "parents",
                    ],
                    [
                        [
                            branch.agent,
                            branch.environment,
                            branch.step,
                            "diagnose" if branch.diagnoses(label) else "",
                            label,
                            len(values),
                            *mean,
                            *gap,
                            branch.verdict(label),
                            branch.arm,
                        ]
                    ],
                )
            yield Table(["arm", "runs", "return after the fork", "difference to the control", "verdict"], rows)
            lost = [r for r in branch.records if r.state != "done"]
            if lost:
                yield Text("Not done and left out: " + "; ".join(f"{r.name} ({r.note})" for r in lost) + ".", "note")
            if self.drawing and (drawn := self._fork_figure(i, branch)):
                yield Figures(drawn)
        if not self.drawing:
            yield _no_figures()

    def _fork_figure(self, i: int, branch: Branch) -> list[Figure]:
        arms = arm_styles(branch.labels, "control", None)
        done = [r for r in branch.records if r.state == "done"]
        parents = [branch.parents[place] for place in branch.parents]
        ends = [r.steps for r in done]
        if not ends:
            return []
        skip = done[0].frame_skip
        after = max(min(ends) - branch.step, 1)
        width = after / 20
        lines = []
        # Bins as wide as after the fork, except for the remainder at the parent's beginning.
        start = max(0.0, branch.step - 30 * width)
        history = np.append(np.arange(branch.step, start + 1e-6 * width, -width), start)[::-1]
        source = parents or done[:1]
        if len(history) > 1:
            rows = [binned(r.returns.steps, r.returns.values, history) for r in source]
            past = curve(rows, (history[:-1] + history[1:]) / 2 * skip)
            nothing = np.full(len(past.x), math.nan)
            lines.append(Line("parent", ArmStyle("#9a9a9a", "-", 1.6), past.x, past.mean, nothing, nothing))
        grid = np.linspace(branch.step, branch.step + after, 21)
        for label in branch.labels:
            mine = [r for r in done if r.fork is not None and r.fork.label == label]
            if mine:
                rows = [binned(r.returns.steps, r.returns.values, grid) for r in mine]
                averaged = curve(rows, (grid[:-1] + grid[1:]) / 2 * skip)
                lines.append(Line(label, arms[label], averaged.x, averaged.mean, averaged.low, averaged.high))
        if not any(np.isfinite(line.y).any() for line in lines):
            return []
        name = f"fork-{i}"
        drawn = [
            self.figure(
                figures.lines(
                    name,
                    lines,
                    "Environment frames" if skip > 1 else "Environment steps (one frame each)",
                    "Return",
                    at=branch.step * skip,
                ),
                name,
                "Mean return of the arms after the fork (dashed line), with 95 % bands over replicates if there are "
                f"{FEWEST} or more; grey: the parent before the fork.",
            )
        ]
        gaps = [(label, d.interval(), arms[label]) for label, d in branch.differences.items()]
        if gaps:
            drawn.append(
                self.figure(
                    figures.intervals(f"{name}-difference", gaps, "Difference to the control", reference=0.0),
                    f"{name}-difference",
                    "Paired difference to the control after the fork, with its 95 % interval.",
                )
            )
        return drawn

    # -------------------------------------------------------------------------------------------- tables of runs

    def _runs_table(self) -> None:
        self.csv(
            "runs",
            [
                "name",
                "environment",
                "agent",
                "arm",
                "seed",
                "state",
                "note",
                "steps",
                "frames",
                "updates",
                "score",
                "wall_seconds",
                "cpu_seconds",
                "fork_of",
                "fork_step",
                "fork_arm",
                "replicate",
                "folder",
                "command",
            ],
            [
                [
                    r.name,
                    r.environment,
                    r.agent,
                    r.arm,
                    r.seed,
                    r.state,
                    r.note,
                    r.steps,
                    r.steps * r.frame_skip,
                    r.updates,
                    self.measure.of(r) if r.state == "done" else "",
                    r.wall_seconds,
                    r.cpu_seconds,
                    *(
                        (_beside(r.fork.parent, r.folder), r.fork.step, r.fork.label, r.fork.replicate)
                        if r.fork
                        else ("",) * 4
                    ),
                    r.folder,
                    r.command,
                ]
                for r in [*self.runs.records, *self.runs.forks]
            ],
        )


def _beside(parent: Path, folder: Path) -> Path:
    """The parent's path in the form of the fork's own, so that a committed table does not depend on the machine."""
    return parent if folder.is_absolute() else Path(os.path.relpath(parent))


# ------------------------------------------------------------------------------------------------ statements


def difference_text(c: Comparison, where: str) -> str:
    """One statement about a comparison."""
    arm, base = f"`{c.arm}`", f"`{c.baseline}`"
    d = c.difference
    if c.verdict in ("above", "below"):
        assert d is not None
        size = interval(
            Interval(d.estimate, *c.interval[1:])
            if c.verdict == "above"
            else Interval(-d.estimate, -c.interval.high, -c.interval.low)
        )
        correction = ""
        if not math.isnan(c.p_holm):
            correction = f", {p_text(c.p_holm)} after Holm's correction"
            if c.p_holm >= 1 - CONFIDENCE:
                correction += ": significant alone, but not among all comparisons of this page"
        return f"{arm} is {c.verdict} {base}{where} by {size} ({_count(c.seeds, 'seed')}{correction})."
    if c.verdict == "too few":
        if d is None:
            return f"{arm} and {base}{where}: they have no common seed, so nothing is compared."
        return (
            f"{arm} and {base}{where}: {_count(c.seeds, 'shared seed')}, and fewer than {FEWEST} give no "
            f"interval; the means differ by {number(d.estimate)}."
        )
    assert d is not None
    if c.verdict == "equivalent":
        return (
            f"{arm} and {base}{where}: equivalent within ±{number(c.margin)} (two one-sided tests, "
            f"{p_text(c.equivalence_p)}); difference {interval(c.interval)}."
        )
    return (
        f"{arm}: no difference to {base} shown{where} ({interval(c.interval)}); these {c.seeds} seeds would have shown "
        f"{number(_detectable(c))} with 80 % probability."
    )


def gap_text(c: Comparison, oracle: str | None, where: str) -> str:
    """One statement about the share of the oracle's lead that an arm closes; empty if unknown."""
    if c.gap is None or oracle is None:
        return ""
    of_oracle = "the oracle" if oracle == "oracle" else f"the oracle `{oracle}`"
    above = f"`{c.arm}` is above {of_oracle}{where}: it optimises better, beyond keeping plasticity."
    if c.gap.fraction is None:
        return above if c.gap.above else ""
    share = percent(c.gap.fraction)
    text = f"`{c.arm}` closes {share} of the gap between `{c.baseline}` and {of_oracle}{where}."
    return f"{text} {above}" if c.gap.above else text


def closes(c: Comparison) -> bool:
    """Whether it is shown that the arm closes a part of the oracle's gap, or more than all of it."""
    gap = c.gap
    return gap is not None and (gap.above or (gap.fraction is not None and gap.fraction.known and gap.fraction.low > 0))


def survives(rho: Interval, count: int) -> bool:
    """Whether the interval excludes zero after Bonferroni's correction for `count` intervals. There are too few seeds
    for extreme quantiles, so the interval is widened as for a normal distribution."""
    if not rho.known:
        return False
    normal = NormalDist()
    wider = normal.inv_cdf(1 - (1 - CONFIDENCE) / (2 * max(count, 1))) / normal.inv_cdf((1 + CONFIDENCE) / 2)
    below, above = rho.estimate - rho.low, rho.high - rho.estimate
    return rho.estimate - wider * below > 0 or rho.estimate + wider * above < 0


def correlations_text(rows: Sequence[tuple[str, str, str, Interval, int]], tests: int, where: str) -> str:
    """Correlations that survive the correction for the number tested, the strongest first."""
    runs = max(row[4] for row in rows)
    each = ", ".join(f"`{_metric(row[2])}` {interval(row[3])}" for row in rows[:MOST_CORRELATIONS])
    rest = f", and {len(rows) - MOST_CORRELATIONS} weaker ones" if len(rows) > MOST_CORRELATIONS else ""
    return (
        f"rank correlation over {runs} runs of a metric's change with that of the return{where} (corrected for "
        f"{tests} tests): {each}{rest}."
    )


def of_layer(tag: str) -> bool:
    """True for `plasticity/dormant_fraction/critic.body.0`, False for `plasticity/srank_0.01/critic`."""
    return "." in tag.rpartition("/")[2]


def by_metric(tags: Iterable[str]) -> str:
    """`entropy` (actor), `loss` (actor, critic)."""
    places: dict[str, list[str]] = {}
    for tag in sorted(tags):
        metric, place = tag.split("/")[1:]
        places.setdefault(metric, []).append(place)
    return ", ".join(f"`{metric}` ({', '.join(dict.fromkeys(components))})" for metric, components in places.items())


def _overall_first(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Comparisons over all environments before those of each; the largest differences first."""
    return sorted(comparisons, key=lambda c: (c.environment != "", -c.difference.estimate if c.difference else 0.0))


def gap_closed_text(gap: Gap | None) -> str:
    if gap is None:
        return ""
    if gap.fraction is None:
        return "no gap" + (", above the oracle" if gap.above else "")
    return percent(gap.fraction) + (", above the oracle" if gap.above else "")


def _detectable(c: Comparison) -> float:
    return c.difference.detectable() if c.difference is not None else math.nan


# ------------------------------------------------------------------------------------------------ numbers


def percent(x: Interval) -> str:
    if math.isnan(x.estimate):
        return ""
    estimate, low, high = (f"{100 * v + 0.0:.0f}".replace("-0", "0") if abs(v) < 0.005 else f"{100 * v:.0f}" for v in x)
    return f"{estimate} % [{low}, {high}]" if x.known else f"{estimate} %"


def p_value(p: float) -> str:
    return "" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p_value(p)}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _slug(text: str) -> str:
    """A text as part of a file name."""
    slug = re.sub("[^a-z0-9]", "-", text.removeprefix("plasticity/").lower()).strip("-")
    if len(slug) <= 60:
        return slug
    return f"{slug[:51]}-{hashlib.blake2b(text.encode('utf-8', 'replace'), digest_size=4).hexdigest()}"


def _metric(tag: str) -> str:
    """`plasticity/dormant_fraction/critic` → `dormant_fraction of critic`."""
    _, metric, place = tag.split("/")
    return f"{metric} of {place}"


def _all(values: Iterable[str]) -> str:
    """The distinct values, in order."""
    return "; ".join(dict.fromkeys(values))


def _sticky(record: Record) -> str:
    assert record.config is not None
    chosen = record.config.env_config.sticky_actions
    if chosen is not None:
        return f"probability {chosen:g}"
    return "probability 0.25, the default"


def _evaluation(record: Record) -> str:
    evaluation = record.done.get("evaluation")
    return f"{_count(len(evaluation['returns']), 'episode')} of the greedy policy at the end" if evaluation else "none"


def _per_update(record: Record) -> float:
    seconds = record.cpu_seconds if math.isfinite(record.cpu_seconds) else record.wall_seconds
    return seconds / record.updates if record.updates else math.nan


def _mean_known(values: Iterable[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return float(np.mean(finite)) if finite else math.nan


def _spent(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def _no_figures() -> Text:
    return Text("Figures need matplotlib, which is not installed here: pip install 'pliant[report]'.", "note")


def csv_text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as CSV; unknown values are empty.

    Numbers are numbers. A text that a spreadsheet would read as a formula (it begins with =, +, -, @, a tab or a line
    break) gets an apostrophe before it, and so does a text that begins with an apostrophe: `csv_cell` removes it.
    """
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    quoting = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in (header, *rows):
        cells = ["" if isinstance(c, float) and math.isnan(c) else _plain(c) for c in row]
        # A carriage return ends a line for CSV parsers, and the writer would not quote it.
        (quoting if any(isinstance(c, str) and "\r" in c for c in cells) else writer).writerow(cells)
    return out.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(f"{float(value):.10g}")
    if isinstance(value, str | Path):
        text = str(value)
        return f"'{text}" if text.startswith("'") or _is_formula(text) else text
    return value


SIGNS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four are their wide forms
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def _is_formula(text: str) -> bool:
    return not NUMBER.fullmatch(text) and (text.lstrip().startswith(SIGNS) or text.startswith(("\t", "\r", "\n")))


def csv_cell(text: str) -> str:
    """The text that `csv_text` was given, from a cell that was read."""
    return text.removeprefix("'")


FORMER = "told_difference", "told_gap", "told_correlations"  # former names
__getattr__ = moved(__name__, {name: f"{__name__}.{name.partition('_')[2]}_text" for name in FORMER})

"""The scores of a report: one for each run, tables of them, comparisons with the baseline, and curves.

The statistics are those of `lab.statistics`. Differences are paired by seed, with Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np

from ...envs.scores import human_normalised
from ..statistics import (
    BINS,
    CONFIDENCE,
    Array,
    Difference,
    Gap,
    Interval,
    gap_by_seed,
    holm,
    improvement,
    mean_interval,
    paired,
)
from .runs import PLAIN, Record, Runs

Values: TypeAlias = Mapping[int, float]
"""Scores by seed."""

END = 0.1
"""Share of a run that counts as its end."""
MEASURES = ("final", "last", "tasks", "area")
MARGIN = 0.1  # of the baseline's mean, where no margin is given


# ------------------------------------------------------------------------------------------------ one score a run


@dataclass(frozen=True)
class Measure:
    """The definition of the score of a run.

    Attributes:
        name: final, last, tasks, area or the tag of a measurement.
        segment: Environment steps of a task; 0 if unknown.
        higher_is_better: Whether higher scores are better, for the probability of improvement and the oracle's gap.
    """

    name: str
    segment: int = 0
    higher_is_better: bool = True

    @property
    def title(self) -> str:
        return {
            "final": "final evaluation",
            "last": "return at the end",
            "tasks": "return per task",
            "area": "return over the whole run",
        }.get(self.name, self.name)

    @property
    def about(self) -> str:
        """The definition in full."""
        share = f"the last {100 * END:.0f} % of environment steps"
        return {
            "final": "The score of a run is its final evaluation: the mean return of the episodes that the greedy "
            "policy played after training.",
            "last": f"The score of a run is its mean training return over the episodes that ended in {share}.",
            "tasks": f"The score of a run is its mean training return per task (of {self.segment:,} environment "
            "steps), over the last half of its tasks.",
            "area": "The score of a run is its mean training return over the whole run, every "
            + (f"task (of {self.segment:,} environment steps)" if self.segment else "twentieth of it")
            + " with the same weight: the area under its learning curve, divided by its length.",
        }.get(self.name, f"The score of a run is the mean of {self.name} over {share}.")

    def of(self, record: Record) -> float:
        """NaN if the run has no such number."""
        begin, end = (1 - END) * record.steps, record.steps
        if self.name == "final":
            return float(record.done.get("evaluation", {}).get("mean", math.nan))
        if self.name == "last":
            return average(record.returns.within(begin, end))
        if self.name in ("tasks", "area"):
            means = per_task(record, self.segment)
            part = means[len(means) // 2 :] if self.name == "tasks" else means
            return average(part[np.isfinite(part)])
        series = record.tags.get(self.name)
        if series is None or not len(series.values):
            return math.nan
        window = series.within(begin, end)
        return average(window if len(window) else series.values[-1:])


def average(values: Array) -> float:
    return float(values.mean()) if len(values) else math.nan


def per_task(record: Record, segment: int) -> Array:
    """Mean training return of every task of `segment` environment steps (if 0, of each of `BINS` equal parts of the
    run), NaN where no episode ended. `lab.claims.results.summarise` divides a run in the same way."""
    size = segment or max(-(-record.steps // BINS), 1)
    edges = size * np.arange(-(-record.steps // size) + 1, dtype=np.float64)
    return binned(record.returns.steps, record.returns.values, edges)


def choose_measure(runs: Runs, requested: str | None, segment: int, higher_is_better: bool) -> Measure:
    """The requested measure; else the final evaluation if every run has one; else the return per task if the length
    of a task is known; else the return at the end."""
    if requested is None:
        if runs.finished and all(record.done.get("evaluation") for record in runs.finished):
            requested = "final"
        else:
            requested = "tasks" if segment else "last"
    return Measure(requested, segment, higher_is_better)


# ------------------------------------------------------------------------------------------------ tables of scores


@dataclass(frozen=True)
class Group:
    """One agent in all its environments: scores[arm][environment][seed], as measured.

    Attributes:
        agent: Its label.
        scores: Finite scores only.
        baseline: The arm that the others are compared with, or None.
        oracle: The arm whose lead over the baseline is the gap to be closed, or None.
        human: Whether all environments are Atari games with a known human score, and the scores are returns.
    """

    agent: str
    scores: Mapping[str, Mapping[str, Values]]
    baseline: str | None
    oracle: str | None
    measure: Measure
    human: bool

    @cached_property
    def environments(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(env for by_env in self.scores.values() for env in by_env))

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(self.scores)

    @cached_property
    def scale(self) -> Scale:
        """The scale on which scores of several tasks are combined."""
        if self.human:
            return Scale(
                "human",
                "human-normalised score",
                "0 is a random player and 1 a human one (Wang et al. 2016; DQN Zoo)",
                "1",
            )
        if len(self.environments) == 1:
            return Scale("raw", self.measure.title, "as measured, on the task's own scale")
        if self.baseline is not None and self.oracle is not None:
            for env in self.environments:
                ends = [self.scores[arm].get(env, {}) for arm in (self.baseline, self.oracle)]
                if not all(ends) or _of(ends[1]).mean() <= _of(ends[0]).mean():
                    break
            else:
                return Scale(
                    "reference",
                    "normalised score",
                    f"0 is the mean of {self.baseline} and 1 that of "
                    f"{self.oracle} in the same environment. The means of these two arms are treated "
                    "as exact",
                    "1",
                )
        return Scale("none", "", "")

    def scaled(self, env: str, value: float) -> float:
        """A score on the common scale."""
        if self.scale.kind == "human":
            normalised = human_normalised(env.split(" ")[0], value)
            assert normalised is not None
            return normalised
        if self.scale.kind == "reference":
            assert self.baseline is not None and self.oracle is not None
            low, high = (float(_of(self.scores[arm][env]).mean()) for arm in (self.baseline, self.oracle))
            return (value - low) / (high - low)
        return value

    def strata(self, arm: str) -> list[Array]:
        """Scores of an arm on the common scale: one row for each environment in which it was run."""
        return [np.array([self.scaled(env, v) for v in values.values()]) for env, values in self.scores[arm].items()]

    def covers_all(self, arm: str) -> bool:
        """Whether the arm was run in every environment. Only such arms are compared over all environments."""
        return set(self.scores[arm]) == set(self.environments)

    def by_seed(self, arm: str) -> dict[int, float]:
        """Mean over environments on the common scale, for each seed that was run in all of them."""
        by_env = self.scores[arm]
        if not self.covers_all(arm):
            return {}
        seeds = set.intersection(*(set(values) for values in by_env.values()))
        return {s: float(np.mean([self.scaled(e, values[s]) for e, values in by_env.items()])) for s in sorted(seeds)}


@dataclass(frozen=True)
class Scale:
    """A scale: its kind, the name of a score on it, its meaning, and the score that counts as solved ("" if none)."""

    kind: Literal["human", "raw", "reference", "none"]
    title: str
    about: str
    goal: str = ""


def _of(values: Values) -> Array:
    return np.array(list(values.values()), dtype=np.float64)


def group_runs(
    runs: Runs, measure: Measure, baseline: str | None, oracle: str | None
) -> tuple[list[Group], list[Record]]:
    """Scores by agent, and the finished runs without a score."""
    table: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    without = []
    for record in runs.finished:
        score = measure.of(record)
        if math.isfinite(score):
            table.setdefault(record.agent, {}).setdefault(record.arm, {}).setdefault(record.environment, {})[
                record.seed
            ] = score
        else:
            without.append(record)
    returns = measure.name in MEASURES
    groups = []
    for agent, scores in table.items():
        ordered = _in_order(scores, baseline, oracle)
        known = [env for by_env in ordered.values() for env in by_env]
        human = returns and all(human_normalised(env.split(" ")[0], 0.0) is not None for env in known)
        groups.append(
            Group(
                agent,
                ordered,
                baseline if baseline in ordered else None,
                oracle if oracle in ordered else None,
                measure,
                human,
            )
        )
    return groups, without


def _in_order(scores: Mapping[str, Any], baseline: str | None, oracle: str | None) -> dict[str, Any]:
    """The arms with the baseline first and the oracle second."""
    first = [arm for arm in (baseline, oracle) if arm is not None and arm in scores]
    return {arm: scores[arm] for arm in [*first, *(arm for arm in scores if arm not in first)]}


def guess_baseline(runs: Runs) -> str | None:
    """The study's baseline; without a study, the arm without interventions."""
    if runs.study is not None:
        return runs.study.baseline
    return PLAIN if any(record.arm == PLAIN for record in runs.records) else None


def guess_oracle(runs: Runs) -> str | None:
    """The study's oracle, if it has exactly one; without a study, the only arm whose single intervention is
    `fresh_agent`, if there is exactly one."""
    if runs.study is not None:
        oracles = [arm.name for arm in runs.study.arms.values() if arm.kind == "oracle"]
    else:
        oracles = list(
            dict.fromkeys(
                record.arm
                for record in runs.records
                if record.config is not None
                and len(record.config.interventions) == 1
                and record.config.interventions[0].startswith("fresh_agent")
            )
        )
    return oracles[0] if len(oracles) == 1 else None


# ------------------------------------------------------------------------------------------------ comparisons


@dataclass(frozen=True)
class Comparison:
    """An arm compared with the baseline in one environment, or over all of them (`environment` is then "").

    Attributes:
        seeds: Number of seeds that both have.
        difference: Arm minus baseline, paired by seed.
        better: Probability that a run of the arm is better than one of the baseline.
        margin: Smallest difference that matters.
        p_holm: Two-sided p-value after Holm's correction over all comparisons in single environments.
        gap: Share of the oracle's lead that the arm closes, if there is an oracle.
    """

    agent: str
    environment: str
    arm: str
    baseline: str
    difference: Difference | None
    better: Interval
    margin: float
    gap: Gap | None = None
    p_holm: float = math.nan

    @property
    def seeds(self) -> int:
        return self.difference.seeds if self.difference is not None else 0

    @property
    def interval(self) -> Interval:
        return Interval(math.nan, math.nan, math.nan) if self.difference is None else self.difference.interval()

    @property
    def equivalence_p(self) -> float:
        if self.difference is None or not self.margin > 0:
            return math.nan
        return self.difference.equivalence_p(self.margin)

    @property
    def verdict(self) -> Literal["above", "below", "equivalent", "open", "too few"]:
        """From the 95 % interval; if it contains 0, from two one-sided tests at 5 %. "open" means undecided."""
        interval = self.interval
        if not interval.known:
            return "too few"
        if interval.low > 0 or interval.high < 0:
            return "above" if interval.low > 0 else "below"
        return "equivalent" if self.equivalence_p < 1 - CONFIDENCE else "open"


def compare_all(groups: Iterable[Group], margin: float | None) -> list[Comparison]:
    """Each arm compared with the baseline of its agent, in each environment and, if there are several, over all."""
    comparisons: list[Comparison] = []
    for group in groups:
        if group.baseline is None:
            continue
        for arm in group.arms:
            if arm == group.baseline:
                continue
            for env in group.environments:
                if env in group.scores[arm] and env in group.scores[group.baseline]:
                    comparisons.append(_compare(group, env, arm, margin))
            if len(group.environments) > 1 and group.scale.kind != "none" and group.covers_all(arm):
                comparisons.append(_compare_overall(group, arm))
    single = [i for i, c in enumerate(comparisons) if c.environment]
    corrected = holm([_p(comparisons[i]) for i in single])
    for i, p in zip(single, corrected, strict=True):
        comparisons[i] = replace(comparisons[i], p_holm=p)
    return comparisons


def _p(comparison: Comparison) -> float:
    return comparison.difference.p if comparison.difference is not None else math.nan


def _compare(group: Group, env: str, arm: str, margin: float | None) -> Comparison:
    assert group.baseline is not None
    mine, base = group.scores[arm][env], group.scores[group.baseline][env]
    shared = sorted(mine.keys() & base.keys())
    difference = paired([mine[s] for s in shared], [base[s] for s in shared]) if shared else None
    sign = 1.0 if group.measure.higher_is_better else -1.0
    better = improvement([sign * _of(mine)], [sign * _of(base)])
    m = margin if margin is not None else MARGIN * abs(float(_of(base).mean()))
    return Comparison(group.agent, env, arm, group.baseline, difference, better, m, _gap(group, env, arm))


def _gap(group: Group, env: str, arm: str) -> Gap | None:
    if group.oracle is None or group.baseline is None or arm == group.oracle:
        return None
    arms = (group.scores[name].get(env, {}) for name in (arm, group.baseline, group.oracle))
    return gap_by_seed(*arms, higher_is_better=group.measure.higher_is_better)


def _compare_overall(group: Group, arm: str) -> Comparison:
    assert group.baseline is not None
    mine, base = group.by_seed(arm), group.by_seed(group.baseline)
    shared = sorted(mine.keys() & base.keys())
    difference = paired([mine[s] for s in shared], [base[s] for s in shared]) if shared else None
    sign = 1.0 if group.measure.higher_is_better else -1.0
    environments = [env for env in group.environments if env in group.scores[group.baseline]]
    better = improvement(
        [sign * _of(group.scores[arm][env]) for env in environments],
        [sign * _of(group.scores[group.baseline][env]) for env in environments],
    )
    m = MARGIN * abs(float(np.mean(list(base.values())))) if base else 0.0
    return Comparison(group.agent, "", arm, group.baseline, difference, better, m)


# ------------------------------------------------------------------------------------------------ curves


@dataclass(frozen=True)
class Curve:
    """Mean over seeds at the points of a common grid, with Student's 95 % interval (NaN with too few seeds).

    `x` is in the units of the axis; `seeds` is the number of runs.
    """

    x: Array
    mean: Array
    low: Array
    high: Array
    seeds: int


def curve(rows: Sequence[Array], x: Array) -> Curve:
    """Mean of the curves of several seeds on one grid, up to the end of the shortest. Where a seed has no
    value, the point is the mean of the other seeds, without an interval."""
    length = min(len(x), *(len(row) for row in rows))
    points = []
    for i in range(length):
        values = np.array([row[i] for row in rows])
        values = values[np.isfinite(values)]
        complete = len(values) == len(rows)
        point = mean_interval(values) if len(values) else Interval(math.nan, math.nan, math.nan)
        points.append(point if complete else Interval(point.estimate, math.nan, math.nan))
    mean, low, high = (np.array([getattr(p, n) for p in points]) for n in ("estimate", "low", "high"))
    return Curve(x[:length], mean, low, high, len(rows))


def binned(at: Array, values: Array, edges: Array) -> Array:
    """Mean of the finite values in each bin (edge, edge]; NaN for an empty bin."""
    kept = np.isfinite(values)
    at, values = at[kept], values[kept]
    place = np.searchsorted(edges, at, side="left") - 1
    inside = (place >= 0) & (place < len(edges) - 1)
    count = np.bincount(place[inside], minlength=len(edges) - 1)
    total = np.bincount(place[inside], weights=values[inside], minlength=len(edges) - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Array = np.where(count > 0, total / count, math.nan)
    return means


# ------------------------------------------------------------------------------------------------ plasticity


def plasticity_tags(records: Iterable[Record]) -> list[str]:
    """Metrics of components that at least one run has measured at two different steps, by tag."""
    tags = {
        tag
        for record in records
        for tag, series in record.tags.items()
        if tag.startswith("plasticity/") and tag.count("/") == 2 and len(np.unique(series.steps)) > 1
    }
    return sorted(tags)


def change(record: Record, tag: str, window: float) -> float:
    """Mean over the last `window` environment steps, minus the mean over the `window` steps that begin at the
    tag's first value; NaN if one of them has no value, or if they overlap."""
    series = record.tags.get(tag)
    if series is None or not len(series.values):
        return math.nan
    first = float(series.steps[0])
    early, late = series.within(first - 1, first - 1 + window), series.within(record.steps - window, record.steps)
    if first - 1 + window > record.steps - window or not len(early) or not len(late):
        return math.nan
    return average(late) - average(early)


def window_of(record: Record, segment: int) -> float:
    """Length of the windows at the beginning and at the end of a run: a tenth of the run, but at least one task if the
    run has four or more."""
    tenth = END * record.steps
    return max(tenth, float(segment)) if 4 * segment <= record.steps else tenth

"""Comparisons of forks: runs branched off the same step, each arm paired with the control.

A pair shares parent and replicate. Replicates of one parent share its whole past. So with three or more parents, each
parent counts once, as the mean over its replicates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..statistics import Difference, Interval, paired_by_parent
from .comparisons import average
from .numbers import interval, number
from .runs import Record, Runs

CONTROL = "control"
Pair = tuple[Path, int]
"""A parent and a replicate."""


@dataclass(frozen=True)
class Branch:
    """The forks of one agent in one environment that were made at one step.

    Attributes:
        parents: The readable parents, by folder.
        arm: The parents' arm, if the page has forks of several arms.
    """

    agent: str
    environment: str
    step: int
    records: tuple[Record, ...]
    parents: Mapping[Path, Record]
    arm: str = ""

    @property
    def title(self) -> str:
        arm = f" with `{self.arm}`" if self.arm else ""
        return f"{self.agent}{arm} in {self.environment}, forked at step {self.step:,}"

    def diagnoses(self, label: str) -> bool:
        """Whether the arm was made by `--diagnose`."""
        return any(r.fork is not None and r.fork.label == label and r.fork.preset == "diagnose" for r in self.records)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The arms' labels, the control first."""
        labels = dict.fromkeys(r.fork.label for r in self.records if r.fork is not None)
        return tuple(sorted(labels, key=lambda label: label != CONTROL))

    @cached_property
    def evaluated(self) -> bool:
        """Whether all finished runs have a final evaluation at the same step."""
        done = [r for r in self.records if r.state == "done"]
        return bool(done) and all(r.done.get("evaluation") and r.steps == self.end for r in done)

    @cached_property
    def end(self) -> int:
        """The environment step that every finished run has reached."""
        return min((r.steps for r in self.records if r.state == "done"), default=self.step)

    @property
    def about(self) -> str:
        parents = len({r.fork.parent for r in self.records if r.fork is not None})
        measure = (
            "its final evaluation"
            if self.evaluated
            else "its mean training return over all steps after the fork"
            if all(r.steps == self.end for r in self.records if r.state == "done")
            else f"its mean training return from the fork to step {self.end:,}, where the shortest arm ends"
        )
        return f"{parents} parent{'' if parents == 1 else 's'}. The score of a run is {measure}."

    def score(self, record: Record) -> float:
        """The score of a run; NaN if there is none."""
        if self.evaluated:
            return float(record.done["evaluation"]["mean"])
        return average(record.returns.within(self.step, self.end))

    def values(self, label: str) -> dict[Pair, float]:
        """Scores of the finished runs of an arm."""
        scores = {}
        for record in self.records:
            if record.fork is not None and record.fork.label == label and record.state == "done":
                score = self.score(record)
                if math.isfinite(score):
                    scores[record.fork.parent, record.fork.replicate] = score
        return scores

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """The difference of every arm to the control, if they have pairs."""
        control = self.values(CONTROL)
        differences = {}
        for label in self.labels:
            if label != CONTROL and (gap := paired_by_parent(self.values(label), control)) is not None:
                differences[label] = gap
        return differences

    def verdict(self, label: str) -> str:
        """The verdict: for a diagnosis, whether the arm recovers; otherwise, on which side of the control it is."""
        if label == CONTROL:
            return ""
        difference = self.differences.get(label)
        if difference is None:
            return "no pair with the control"
        if not difference.known:
            return "too few replicates"
        low, high = difference.interval()[1:]
        if low > 0:
            return "recovers" if self.diagnoses(label) else "above"
        if high < 0:
            return "below"
        return "no recovery shown" if self.diagnoses(label) else "no difference shown"

    def shown(self) -> list[str]:
        """Text lines on the differences that are shown."""
        lines = []
        for label, difference in self.differences.items():
            verdict = self.verdict(label)
            if verdict in ("recovers", "above", "below"):
                d = difference.interval()
                side = "below" if verdict == "below" else "above"
                size = interval(Interval(-d.estimate, -d.high, -d.low) if verdict == "below" else d)
                effect = "recovers" if verdict == "recovers" else "works" if verdict == "above" else "harms"
                lines.append(f"{self.title}: `{label}` {effect}, {size} {side} the control ({difference.seeds} pairs).")
        if recovering := [label for label in self.differences if self.verdict(label) == "recovers"]:
            lines.append(
                f"{self.title}: by the diagnosis, the arms that recover are {', '.join(f'`{b}`' for b in recovering)}."
            )
        return lines

    def not_shown(self) -> list[str]:
        """Text lines on the comparisons without a shown difference."""
        lines = []
        for label in self.labels:
            verdict = self.verdict(label)
            start = f"{self.title}: `{label}`"
            if verdict in ("too few replicates", "no pair with the control"):
                lines.append(f"{start}: {verdict}.")
            elif verdict.startswith("no "):
                d = self.differences[label]
                lines.append(
                    f"{start}: {verdict} ({interval(d.interval())}); these {d.seeds} pairs would have shown "
                    f"{number(d.detectable())} with 80 % probability."
                )
        return lines


def branches(runs: Runs) -> list[Branch]:
    """All forks, grouped by agent, environment, the parents' arm and step, in the order of the steps."""
    groups: dict[tuple[str, str, int, str], list[Record]] = {}
    for record in runs.forks:
        assert record.fork is not None
        parent = runs.parents.get(record.fork.parent)
        agent, env = (parent.agent, parent.environment) if parent is not None else (record.agent, record.environment)
        arm = parent.arm if parent is not None else ""
        groups.setdefault((agent, env, record.fork.step, arm), []).append(record)
    several = len({arm for *_, arm in groups}) > 1
    return [
        Branch(
            agent,
            env,
            step,
            tuple(records),
            {
                place: runs.parents[place]
                for place in dict.fromkeys(r.fork.parent for r in records if r.fork is not None)
                if place in runs.parents
            },
            arm if several else "",
        )
        for (agent, env, step, arm), records in sorted(groups.items())
    ]

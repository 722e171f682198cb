"""The page of claims and its figures, made from claim files and results. The same results give the same bytes.

Curves are means over seeds with Student's 95 % interval. Colours are those of Okabe and Ito; line styles differ, too.
Figures fit the width of a phone.
"""

from __future__ import annotations

import math
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ..analysis.figures import COLOURS, DASHES
from ..analysis.page import fenced
from ..analysis.summaries import series
from ..analysis.verdicts import ORDER, ComparisonResult
from ..errors import BadInput
from ..experiments.predicates import Measure
from ..experiments.study import Arm, Claim
from ..statistics import FEWEST, Interval, mean_interval
from .results import ArmResult, ClaimResult, stored
from .summary import cost_text, in_order, seeds_text

# Okabe & Ito 2008, without yellow, which is hard to see on white.
MARK = {
    "shown": "shown",
    "not shown": "**not shown**",
    "contradicted": "**contradicted**",
    "underpowered": "**underpowered**",
    "not run": "not run",
}
POINTS = 40  # points of a curve; with more tasks, means of neighbours are drawn


def write_page(results: Sequence[ClaimResult], out: Path) -> Path:
    """`claims.md` in a folder, and `figures/claims/*.svg` beside it (BadInput if matplotlib is not installed)."""
    _matplotlib()
    figures = out / "figures" / "claims"
    figures.mkdir(parents=True, exist_ok=True)
    ordered = in_order(results)
    drawn = set()
    for each in ordered:
        if each.arms is not None and each.verdict != "not run":
            (figures / f"{each.claim.name}.svg").write_text(figure(each), encoding="utf-8")
            drawn.add(f"{each.claim.name}.svg")
    for stale in figures.glob("*.svg"):  # left by a claim that was removed
        if stale.name not in drawn:
            stale.unlink()
    page = out / "claims.md"
    page.write_text("\n".join(_page(ordered)) + "\n", encoding="utf-8")
    return page


def _page(results: Sequence[ClaimResult]) -> Iterator[str]:
    counts = {verdict: sum(each.verdict == verdict for each in results) for verdict in ORDER}
    numbers = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    yield "# Claims"
    yield ""
    yield textwrap.fill(
        f"Published claims, tested here: {numbers}. Each claim is a file in `claims/`. `pliant claims run NAME` does "
        "its missing runs, and `pliant claims render` writes this page from the stored results. Claims that are not "
        "shown come first.",
        120,
    )
    yield ""
    yield textwrap.fill(
        "Verdicts follow from the intervals by rule (`lab/analysis/verdicts.py`). *Shown*: the 95 % interval of the "
        "difference excludes no effect, and the 90 % interval reaches the margin, the smallest difference that would "
        "matter. *Contradicted*: the same in the opposite direction. *Not shown*: an effect as large as the margin is "
        "excluded. *Underpowered*: neither is, and more seeds are needed. For equality: *shown* if two one-sided tests "
        "exclude a difference as large as the margin. Seeds are paired; there is no interval from fewer than three of "
        "them. The *gap closed* is the share of the way from the plain agent to the oracle, a fresh agent for every "
        "task.",
        120,
    )
    yield ""
    yield "| claim | verdict | seeds | cost, CPU |"
    yield "|---|---|---|---|"
    for each in results:
        shown = _cell(each.claim.title).replace("[", r"\[").replace("]", r"\]")
        title = f"[{shown}](#{_anchor(each.claim.title)})"
        yield f"| {title} | {MARK[each.verdict]} | {seeds_text(each)} | {cost_text(each)} |"
    for each in results:
        yield ""
        yield from _section(each)


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _section(result: ClaimResult) -> Iterator[str]:
    claim = result.claim
    yield f"## {_text(claim.title)}"
    yield ""
    yield f"**{result.verdict.capitalize()}.** {_text(claim.claim)}"
    yield ""
    source = f"*{_text(claim.paper.title)}*"
    if claim.paper.arxiv:
        source += f", [{claim.paper.arxiv}](https://arxiv.org/abs/{claim.paper.arxiv})"
    if claim.paper.where:
        source += f", {_text(claim.paper.where)}"
    yield f"Source: {source}. File: {_code(claim.name)}."
    if result.check is not None:
        yield from _checked(result.check)
    else:
        yield ""
        yield textwrap.fill(f"Testbed: {_text(claim.about)}", 120)
        if result.verdict != "not run":
            yield ""
            yield f"![{_text(claim.title)}: {_text(_caption(claim))}](figures/claims/{quote(claim.name)}.svg)"
            yield ""
            yield f"*{_text(_caption(claim))}*"
        yield ""
        yield from _verdicts(result.comparisons)
        for measure in claim.measures.values():
            yield from _arms(result, measure)
        yield ""
        lines = list(_commands(claim))
        fence = fenced("\n".join(lines))
        yield from (fence, *lines, fence)
    yield ""
    run = _code(shlex.join(("pliant", "claims", "run", claim.name)))
    yield f"Cost: {cost_text(result)} of processor time. Command: {run}."
    if claim.tried:
        yield ""
        yield textwrap.fill(f"Attempts: {_text(claim.tried)}", 120)


def _text(text: str) -> str:
    """Prose of a claim, which may contain Markdown but no HTML."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", " ".join(text.split()))


def _cell(text: str) -> str:
    """The same, within a table."""
    return _text(text).replace("|", r"\|")


def _code(text: str) -> str:
    """A code span for text that may contain backticks."""
    if "`" not in text:
        return f"`{text}`"
    fence = fenced(text)
    return f"{fence} {text} {fence}"


def _checked(check: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield "| property | measured | expected | |"
    yield "|---|---|---|---|"
    for row in check["rows"]:
        what, result, expected = (_cell(str(row[key])) for key in ("what", "found", "expected"))
        yield f"| {what} | {result} | {expected} | {'holds' if row['holds'] else '**does not hold**'} |"


def _verdicts(comparisons: Sequence[ComparisonResult]) -> Iterator[str]:
    yield "| comparison | measure | difference, 95 % interval | margin | seeds | verdict |"
    yield "|---|---|---|---|---|---|"
    for each in comparisons:
        c, d = each.comparison, each.difference
        text = _cell(c.text).replace("_", r"\_")
        shown = "" if d is None else _interval(d.interval())
        seeds = "" if d is None else d.seeds
        yield f"| {text} | {_cell(c.measure)} | {shown} | {c.margin:g} | {seeds} | {MARK[each.verdict]}: {each.why} |"


def _arms(result: ClaimResult, measure: Measure) -> Iterator[str]:
    assert result.arms is not None
    arms = result.arms[measure.name]
    gaps = any(arm.gap is not None for arm in arms.values())
    yield ""
    yield f"| arm | {_cell(measure.name)} | seeds |{' gap closed |' if gaps else ''}"
    yield f"|---|---|---|{'---|' if gaps else ''}"
    for arm in arms.values():
        mean = "" if arm.mean is None else _interval(arm.mean)
        gap = f" {_gap(arm)} |" if gaps else ""
        yield f"| {_named(arm.arm)} | {mean} | {len(arm.values)} |{gap}"


def _named(arm: Arm) -> str:
    kinds = {
        "control": "no intervention",
        "oracle": "the oracle",
        "fixed_task": "the task does not change",
        "linear": "linear",
        "optimizer": "only the optimizer is reset",
        "random": "at random",
    }
    name = _cell(arm.name).replace("_", r"\_")
    specs = " ".join(_code(spec).replace("|", r"\|") for spec in arm.specs)
    note = "; ".join(part for part in (kinds.get(arm.kind, ""), specs) if part)
    return f"**{name}**" + (f": {note}" if note else "")


def _gap(arm: ArmResult) -> str:
    if arm.gap is None:
        return ""
    if arm.gap.fraction is None:
        return "no gap" + (", above the oracle" if arm.gap.above else "")
    low, high = arm.gap.fraction[1:]
    share = f"{100 * arm.gap.fraction.estimate:.0f} % ({100 * low:.0f} … {100 * high:.0f})"
    return share + (", **above the oracle**" if arm.gap.above else "")


def _interval(interval: Interval) -> str:
    if not interval.known:
        return f"{_number(interval.estimate)} (fewer than {FEWEST} seeds: no interval)"
    return f"{_number(interval.estimate)} ({_number(interval.low)} … {_number(interval.high)})"


def _number(value: float) -> str:
    """Three digits, so that the text does not depend on the machine."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 1e-12 else "0"


def _commands(claim: Claim) -> Iterator[str]:
    """The complete command line of the first arm, and the differences of the others."""
    base: tuple[str, ...] = ()
    for arm in claim.arms.values():
        command = claim.command(arm)
        if not base:
            base = command
            yield from _wrapped(f"# {arm.name}", ("pliant", "train", *command))
            continue
        flags, common = _by_flag(command), _by_flag(base)
        new = [w for name, row in flags.items() if common.get(name) != row for w in (name, *row)]
        gone = [name for name in common if name not in flags]
        without = f"   (without {' '.join(gone)})" if gone else ""
        title = f"# {arm.name}: the same{' with' if new else ''}{without}"
        yield from _wrapped(title, new) if new else (title,)


def _by_flag(arguments: Sequence[str]) -> dict[str, tuple[str, ...]]:
    by_flag: dict[str, tuple[str, ...]] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, by_flag[argument] = argument, ()
        else:
            by_flag[name] += (argument,)
    return by_flag


def _wrapped(title: str, arguments: Sequence[str]) -> Iterator[str]:
    yield title
    line = ""
    for argument in map(shlex.quote, arguments):
        if line and len(line) + len(argument) > 110:
            yield line + " \\"
            line = "   "
        line += (" " if line else "") + argument
    yield line


# ------------------------------------------------------------------------------------------------ figures


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise BadInput("the page has figures, which need matplotlib: pip install 'pliant[report]'") from None
    return matplotlib


def _caption(claim: Claim) -> str:
    measure = claim.first_measure
    return f"{_axis(measure)} by {_part(claim)}; mean over seeds and its 95 % interval"


def _part(claim: Claim) -> str:
    """The label of the horizontal axis."""
    if claim.first_measure.read == "eval":
        return "evaluation"
    return "task" if claim.segment else "twentieth of the run"


def _axis(measure: Measure) -> str:
    names = {
        "return": "Return",
        "end_return": "Return at the end of a task",
        "reward": "Reward per step",
        "end_reward": "Reward per step at the end of a task",
        "length": "Length of episodes",
        "eval": "Return in evaluation",
    }
    unit = measure.unit or names.get(measure.read, measure.read)
    return unit[0].upper() + unit[1:]


def figure(result: ClaimResult) -> str:
    """The curves of all arms as an SVG."""
    matplotlib = _matplotlib()
    from io import StringIO

    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    claim, measure = result.claim, result.claim.first_measure
    with matplotlib.rc_context(
        {
            "svg.hashsalt": claim.name,
            "svg.fonttype": "path",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e6e6e6",
            "axes.axisbelow": True,
        }
    ):
        chart = Figure(figsize=(4.4, 3.0 + 0.2 * math.ceil(len(claim.arms) / 2)), layout="constrained")
        axes = chart.add_subplot()
        for style, arm in zip(_styles(claim), claim.arms.values(), strict=True):
            rows = [series(result, measure.read, measure.of) for result in stored(claim, arm).values()]
            if not rows:
                continue
            x, curve = _curve(rows)
            mean = [point.estimate for point in curve]
            axes.plot(x, mean, label=_drawn(arm.name.replace("_", " ")), **style)
            if all(point.known or math.isnan(point.estimate) for point in curve):
                low, high = ([getattr(point, end) for point in curve] for end in ("low", "high"))
                axes.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
        axes.set_xlabel(_part(claim).capitalize())
        axes.set_ylabel(_drawn(_axis(measure)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        chart.legend(loc="outside lower center", ncols=2, frameon=False, handlelength=3.2, fontsize=9)
        out = StringIO()
        chart.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    # No trailing blanks, because the file is committed.
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _drawn(text: str) -> str:
    """Escaped for matplotlib, which would read text between two dollar signs as a formula."""
    return text.replace("$", r"\$")


def _styles(claim: Claim) -> Iterator[dict[str, Any]]:
    """Colour and line style of every arm; the control is black, the oracle grey and dashed."""
    count = 0
    for arm in claim.arms.values():
        if arm.kind == "control":
            yield {"color": "#000000", "linestyle": "-", "linewidth": 1.8}
        elif arm.kind == "oracle":
            yield {"color": "#808080", "linestyle": (0, (5, 1.5)), "linewidth": 1.8}
        else:
            yield {"color": COLOURS[count % len(COLOURS)], "linestyle": DASHES[count % len(DASHES)], "linewidth": 1.6}
            count += 1


def _curve(rows: Sequence[Sequence[float]]) -> tuple[list[float], list[Interval]]:
    """Positions (from 1) and means over seeds; if there are very many points, neighbours are averaged."""
    length = min(map(len, rows))
    width = max(-(-length // POINTS), 1)
    parts = [slice(i, i + width) for i in range(0, length, width)]
    table = np.array([row[:length] for row in rows], dtype=np.float64)
    curve = []
    for part in parts:
        block = table[:, part]
        filled = ~np.isnan(block).all(axis=1)
        values = [float(np.nanmean(row)) for row in block[filled]]
        curve.append(mean_interval(values) if values else Interval(math.nan, math.nan, math.nan))
    x = [float(np.mean(range(part.start, min(part.stop, length)))) + 1 for part in parts]
    return x, curve

"""The figures of a report: lines with bands, intervals side by side, and points, as wide as a phone, in SVG and PNG.

An arm has the same style in all figures of a report. Colours are those of Okabe and Ito; line styles differ, too. The
baseline is black; the oracle is grey and dashed. Legends are below the axes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...common.moved import moved
from ..statistics import Array, Interval

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F5539", "#6A3D9A")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1.5, 1, 1.5)))

WIDTH = 4.4  # inches; at 72 points an inch a letter of 10 points is 11 pixels high on a phone
SHORT, LONG = 24, 52  # letters of a label that fit into a legend of two columns, and of one column
BLACK, GREY = "#000000", "#808080"


@dataclass(frozen=True)
class ArmStyle:
    """The style of one arm in all figures."""

    color: str
    dashes: Any
    width: float = 1.5


@dataclass(frozen=True)
class Line:
    """A curve: [N] positions, values and the ends of their intervals (NaN where there is none). `marks` are the
    positions of interventions."""

    label: str
    style: ArmStyle
    x: Array
    y: Array
    low: Array
    high: Array
    marks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """A figure as SVG and PNG."""

    svg: str
    png: bytes


def installed() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def arm_styles(arms: Iterable[str], baseline: str | None, oracle: str | None) -> dict[str, ArmStyle]:
    """The style of every arm. Arms other than baseline and oracle get colours in their order."""
    styles = {}
    count = 0
    for arm in arms:
        if arm == baseline:
            styles[arm] = ArmStyle(BLACK, "-", 1.9)
        elif arm == oracle:
            styles[arm] = ArmStyle(GREY, (0, (5, 1.5)), 1.9)
        else:
            # Every round of colours has another line style, so that thirty-two arms are distinct.
            dashes = DASHES[(count + count // len(COLOURS)) % len(DASHES)]
            styles[arm] = ArmStyle(COLOURS[count % len(COLOURS)], dashes)
            count += 1
    return styles


def shortened(label: str, longest: int = LONG) -> str:
    """A label of bounded length, with its middle left out if needed."""
    if len(label) <= longest:
        return label
    head = (longest - 1) * 2 // 3
    return f"{label[:head].rstrip()}…{label[len(label) - (longest - 1 - head) :].lstrip()}"


def escape_for_matplotlib(text: str) -> str:
    """A text escaped so that matplotlib draws every character.

    matplotlib would read text between two dollar signs as a formula, and leave a label that begins with an underscore
    out of the legend.
    """
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


# ------------------------------------------------------------------------------------------------ kinds of figures


def lines(
    name: str,
    curves: Sequence[Line],
    x: str,
    y: str,
    *,
    edges: Sequence[float] = (),
    at: float | None = None,
    logarithmic: bool = False,
) -> Drawing:
    """Curves with bands.

    Args:
        name: The figure's name; it makes its ids unique on the page.
        x, y: Labels of the axes.
        edges: Positions of task changes.
        at: A position to highlight, such as a fork.
    """
    rows = _legend_rows([line.label for line in curves])
    with _style(name):
        chart, axes = _chart(2.75 + rows * 0.185)
        for edge in edges:
            axes.axvline(edge, color="#c4c4c4", linewidth=0.7, zorder=0)
        if at is not None:
            axes.axvline(at, color="#444444", linewidth=1.0, linestyle=(0, (2, 2)), zorder=0)
        for line in curves:
            drawn = np.isfinite(line.y)
            axes.plot(
                line.x[drawn],
                line.y[drawn],
                label=escape_for_matplotlib(shortened(line.label)),
                color=line.style.color,
                linestyle=line.style.dashes,
                linewidth=line.style.width,
                marker="o" if drawn.sum() == 1 else None,
                markersize=4,
            )
            banded = np.isfinite(line.low) & np.isfinite(line.high)
            axes.fill_between(
                line.x, line.low, line.high, where=banded, color=line.style.color, alpha=0.14, linewidth=0
            )
        marked = [line for line in curves if line.marks]
        for i, line in enumerate(marked):
            # Ticks along the bottom, one row per arm with marks.
            height = 0.02 + 0.03 * i
            axes.plot(
                list(line.marks),
                [height] * len(line.marks),
                linestyle="",
                marker="|",
                markersize=6,
                color=line.style.color,
                transform=axes.get_xaxis_transform(),
                clip_on=True,
            )
        if logarithmic:
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_formatter(_thousands())
        axes.set_xlabel(escape_for_matplotlib(x))
        axes.set_ylabel(escape_for_matplotlib(shortened(y, 34)))
        _legend(chart, [line.label for line in curves])
        return _drawn(chart, name)


def intervals(
    name: str, rows: Sequence[tuple[str, Interval, ArmStyle]], x: str, *, reference: float | None = None
) -> Drawing:
    """Estimates with their intervals, one below the other, each under its label."""
    with _style(name):
        chart, axes = _chart(0.62 + 0.44 * max(len(rows), 1))
        for i, (_, interval, style) in enumerate(rows):
            if not math.isfinite(interval.estimate):
                continue
            if interval.known:
                axes.plot(
                    [interval.low, interval.high],
                    [-i, -i],
                    color=style.color,
                    linewidth=5,
                    alpha=0.3,
                    solid_capstyle="butt",
                )
            axes.plot([interval.estimate], [-i], marker="o", color=style.color, markersize=5.5)
        for i, (label, _, _) in enumerate(rows):
            axes.text(
                0.0,
                -i + 0.2,
                escape_for_matplotlib(shortened(label)),
                transform=axes.get_yaxis_transform(),
                fontsize=8.5,
                va="bottom",
                color="#333333",
            )
        if reference is not None:
            axes.axvline(reference, color="#444444", linewidth=1.0, linestyle=(0, (2, 2)), zorder=0)
        axes.set_ylim(-len(rows) + 0.45, 0.85)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(escape_for_matplotlib(x))
        return _drawn(chart, name)


def points(name: str, sets: Sequence[tuple[str, ArmStyle, Array, Array]], x: str, y: str) -> Drawing:
    """Runs as points, by arm."""
    rows = _legend_rows([label for label, *_ in sets])
    with _style(name):
        chart, axes = _chart(2.75 + rows * 0.185)
        for label, style, xs, ys in sets:
            axes.plot(
                xs,
                ys,
                linestyle="",
                marker="o",
                markersize=5,
                alpha=0.8,
                color=style.color,
                label=escape_for_matplotlib(shortened(label)),
            )
        axes.set_xlabel(escape_for_matplotlib(shortened(x, 44)))
        axes.set_ylabel(escape_for_matplotlib(shortened(y, 34)))
        _legend(chart, [label for label, *_ in sets])
        return _drawn(chart, name)


# ------------------------------------------------------------------------------------------------ appearance


def _style(name: str) -> Any:
    import matplotlib

    return matplotlib.rc_context(
        {
            "svg.hashsalt": name,
            "svg.fonttype": "path",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#ebebeb",
            "axes.axisbelow": True,
            "axes.edgecolor": "#888888",
            "xtick.color": "#333333",
            "ytick.color": "#333333",
            "font.family": "sans-serif",
            "axes.formatter.limits": (-4, 5),
            "axes.formatter.useoffset": False,
        }
    )


def _chart(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # Padding in inches: the layout reserves no room for the half of a tick's label that extends beyond the axis.
    chart = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.16))
    return chart, chart.add_subplot()


def _thousands() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")


def _columns(labels: Sequence[str]) -> int:
    return 2 if max((len(shortened(label)) for label in labels), default=0) <= SHORT else 1


def _legend_rows(labels: Sequence[str]) -> int:
    return math.ceil(len(labels) / _columns(labels)) if len(labels) > 1 else 0


def _legend(chart: Any, labels: Sequence[str]) -> None:
    if len(labels) > 1:
        chart.legend(
            loc="outside lower center",
            ncols=_columns(labels),
            frameon=False,
            handlelength=3.0,
            fontsize=8.5,
            borderpad=0,
            labelspacing=0.3,
            columnspacing=1.2,
        )


def _drawn(chart: Any, name: str) -> Drawing:
    out, picture = io.StringIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from"
        )  # a box is drawn instead; the tables contain the name
        chart.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        chart.savefig(picture, format="png", dpi=160, metadata={"Software": None})
    return Drawing(_embedded(out.getvalue(), name), picture.getvalue())


def _embedded(svg: str, name: str) -> str:
    """An SVG for embedding in a page: no prologue, unique ids, and the full available width."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{re.escape(name)}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    head, _, rest = svg.partition(">")
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    body = "\n".join(line.rstrip() for line in rest.splitlines())
    return f'{head} role="img" preserveAspectRatio="xMidYMid meet">{body}\n'


def style_of(arms: Mapping[str, ArmStyle], label: str) -> ArmStyle:
    """The style of an arm, or a neutral style for other labels."""
    return arms.get(label, ArmStyle(GREY, "-"))


FORMER = {
    "Look": "ArmStyle",
    "looks": "arm_styles",
    "by_arm": "style_of",
    "drawn_as_it_is": "escape_for_matplotlib",
    "STYLES": "DASHES",
}
__getattr__ = moved(__name__, {name: f"{__name__}.{new}" for name, new in FORMER.items()})

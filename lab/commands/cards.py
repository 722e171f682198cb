"""Cards of interventions, monitors and drifts: syntax, effect, and cost."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...interventions import Intervention
from ...interventions.core import spec
from ..errors import BadInput

COSTS = Path(__file__).resolve().parents[1] / "benchmarks" / "costs.json"
"""The measurements of `pliant bench --save`."""


def show(argv: Sequence[str] | None, what: str, registry: Mapping[str, Any]) -> int:
    names = list(sys.argv[1:] if argv is None else argv)
    if any(name in ("-h", "--help") for name in names):
        print(f"usage: pliant {what} [NAME ...]\n\nList the {what}, or explain those named.")
        return 0
    if not names:
        if not registry:
            print(f"no {what} are installed")
            return 0
        width = max(map(len, registry))
        for name, kind in sorted(registry.items()):
            print(f"{name:<{width}}  {(inspect.getdoc(kind) or '').partition(chr(10))[0]}".rstrip())
        return 0
    for name in names:
        if name not in registry:
            hint = spec.did_you_mean(name, registry)
            raise BadInput(f"unknown {what.removesuffix('s')} {name!r}.{hint} `pliant {what}` lists them all")
    print("\n\n\n".join(_card(name, registry[name]) for name in names))
    return 0


def _card(name: str, kind: Any) -> str:
    """The signature, docstring, metrics and cost of an intervention, a monitor or a drift."""
    card = f"{spec.signature(name, kind)}\n\n{inspect.getdoc(kind) or ''}".rstrip()
    if metrics := getattr(kind, "metrics", {}):
        width = max(map(len, metrics))
        card += "\n\nMeasures:"
        card += "".join(f"\n    {metric:<{width}}  {meaning}" for metric, meaning in metrics.items())
    if getattr(kind, "fire", None) not in (None, Intervention.fire):
        card += (
            "\n\nCan also wait for a measurement: when='critic/dormant_fraction > 0.2' in place of a schedule, with\n"
            "patience (measurements in a row) and cooldown (updates). `pliant monitors` lists what is measured."
        )
    return card + _cost(name)


def _cost(name: str) -> str:
    """The cost of an intervention or a monitor, as measured by `pliant bench --save`: the end of its card."""
    costs = json.loads(COSTS.read_text()) if COSTS.exists() else {}
    if name in costs.get("methods", {}):
        lines = [f"\n\nCost ({costs['machine']}; `pliant bench --only interventions`):"]
        for title, cost in costs["methods"][name].items():
            event = f", and {cost['event_ms']:.3g} ms whenever it fires" if cost.get("event_ms") else ""
            lines.append(f"    {title}: {cost['relative']:.2f} of the plain agent's updates a second{event}")
        return "\n".join(lines)
    if name in costs.get("monitors", {}):
        lines = [f"\n\nCost at the default cadence ({costs['monitors_machine']}; `pliant bench --only monitors`):"]
        for title, cost in costs["monitors"][name].items():
            lines.append(f"    {title}: {100 * cost['share']:.2g} % of the time, {cost['event_ms']:,.3g} ms each time")
        return "\n".join(lines)
    return ""

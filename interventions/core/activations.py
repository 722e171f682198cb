"""The base class of interventions that set the activation."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from ...agents.hooks import Effect, Intervention
from ...agents.networks import COPIES, ActivationName
from .config_edits import edit_network

Keep = Literal["features", "parameters", "units"]


class Activating(Intervention):
    """Base of interventions that set the activation of all hidden layers of `on` before an agent is built."""

    effect: ClassVar[Effect] = "configuration"

    def __init__(self, on: Literal["all", "critic", "actor"], activation: ActivationName, keep: Keep) -> None:
        super().__init__()
        self.on, self.activation, self.keep = on, activation, keep
        self.reserves = tuple(f"the activation of the {c}" for c in (("critic", "actor") if on == "all" else (on,)))

    def configure(self, config: Any) -> Any:
        for component in chosen(config, self.on, self.name):
            config = self.shape(config, component)
        return config

    def shape(self, config: Any, component: str) -> Any:
        """The configuration with the network of one component changed."""
        network = getattr(config, config.parts[component][0])
        # If the present activation already has several outputs per unit, the widths were chosen for that.
        copies = COPIES.get(self.activation, 1) / COPIES.get(network.activation, 1)
        factor = {"features": 1 / copies, "parameters": 1 / math.sqrt(copies), "units": 1.0}[self.keep]
        return edit_network(
            config,
            component,
            self.name,
            activation=self.activation,
            width=network.width * factor,
            hidden=tuple(max(1, round(units * factor)) for units in network.hidden),
        )


def chosen(config: Any, on: str, intervention: str) -> list[str]:
    """The components that `on` names (ValueError if this agent does not have the component)."""
    if on == "all":
        return list(config.parts)
    edit_network(config, on, intervention)
    return [on]

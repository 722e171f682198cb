"""What is done to agents so that they keep learning. The protocol is that of `pliant.agents.hooks`."""

from ..agents.hooks import At, Clock, Compose, Every, Intervention, Sampling, Update

INTERVENTIONS: dict[str, type[Intervention]] = {}
"""Every intervention by the word that names it in a sentence."""

__all__ = ["INTERVENTIONS", "At", "Clock", "Compose", "Every", "Intervention", "Sampling", "Update"]

"""ReDo: Sokar et al. 2023, 2302.12902."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, TypeAlias

from torch import Tensor

from ..agents.clock import Unit
from ..agents.hooks import Run
from ..common.ranges import AT_ONCE, NotNegative, Period, SomeShare, Start, at_least
from .core.recycling import Recycler, lowest, magnitude
from .core.surgery import Chosen

FreshSamples: TypeAlias = Annotated[int, at_least(0, "transitions", most=1_000_000, why=AT_ONCE)]


class ReDo(Recycler):
    """Reinitialise dormant units: new incoming weights, outgoing weights set to zero.

    When: Units become dormant during training, as in DQN on Atari and at high replay ratios.
    Paper: Sokar, Agarwal, Castro & Evci 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning",
        2302.12902, definitions 3.1 and 3.2, algorithm 1. The paper uses tau = 0.025 at replay ratio 0.25
        on Atari, and 0.1 otherwise.
    Differs: The authors' code zeroes the wrong inputs between the last convolution and the first dense layer (it
        expands a channel's mask in the wrong order); here tracing the network shows which inputs of the next layer come
        from a unit. Biases are treated like incoming weights: reinitialised, with their moments reset. The layer's own
        initialiser draws the new weights. If two units of neighbouring layers are recycled at once, the weight between
        them ends at zero, as in Dopamine; timoklein/redo keeps the new draw. By default every weight has its own step
        count. Dopamine zeroes moments under a shared step counter, which inflates the first steps of reinitialised
        weights to 3.2, 4.2 and 4.9 times the learning rate; this artefact changes results by as much as the gains that
        papers report (`step_counts=per_tensor` reproduces it).
    Excludes: plasticity_injection, unless on=encoder or on=actor.

    Args:
        tau: A unit is dormant if its mean absolute output is at most tau times the mean over its layer.
        every: Interval between two checks.
        of: Unit of the interval: updates, steps (environment steps) or episodes.
        on: Part of the agent whose units are recycled: critic, actor, encoder, head, all, or layers by name.
        samples: Transitions from the replay on which outputs are measured; 0 uses the update's own batch.
        step_counts: Step counts of Adam. per_weight: each weight has its own count, so a recycled weight starts like a
            new one. per_tensor: moments are zeroed and the tensor's step counter is kept (Dopamine). zeroed: the
            counter is zeroed too (timoklein/redo; after every check the whole
            layer learns more slowly for a while).
        max_fraction: Largest fraction of a layer that is recycled at once, the most dormant units first.
        start: First clock value at which it may fire.
        stop: Last clock value at which it may fire.
    """

    name = "redo"
    example: ClassVar[str] = "redo(tau=0.7, every=2, samples=16)"

    def __init__(
        self,
        tau: NotNegative = 0.1,
        every: Period = 1000,
        of: Unit = "updates",
        on: str = "critic",
        samples: FreshSamples = 64,
        step_counts: Literal["per_weight", "per_tensor", "zeroed"] = "per_weight",
        max_fraction: SomeShare = 1.0,
        start: Start = 0,
        stop: Start | None = None,
    ) -> None:
        super().__init__(on, every, of, start, stop, step_counts)
        self.tau, self.samples, self.max_fraction = tau, samples, max_fraction
        self.needs_view = samples > 0

    def fire(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        chosen = {}
        for name, h in self.measured_outputs(run, activations, self.samples).items():
            score = dormancy_score(magnitude(self.units[name].layer, h))
            chosen[name] = Chosen.where(lowest(score, score <= self.tau, self.max_fraction))
        self.recycle(chosen)
        if self.step_counts == "zeroed":
            self._zero_steps(chosen)

    def _zero_steps(self, chosen: Mapping[str, Chosen]) -> None:
        """Zero the step counters of all measured layers and their consumers, as timoklein/redo does at every check."""
        for name in chosen:
            units = self.units[name]
            for parameter in (*units.layer.parameters(), *(consumer.weight for consumer in units.consumers)):
                if (step := self.optimizers.step(parameter)) is not None:
                    step.zero_()


def dormancy_score(magnitudes: Tensor) -> Tensor:
    """Mean absolute output of each unit relative to its layer's mean [units]; equation 1."""
    return magnitudes / (magnitudes.mean() + 1e-9)

"""Why a network has stopped learning: mend one thing at a time in a copy, and see whether it learns again.

Copies of a module are trained for the probe's budget on new random targets (`probe.py`), as they are: with the
optimizer's memory of their weights, and targets as widely spread as those that the agent learns. Each mended copy
differs from that in one thing alone; the reference is a newborn module with a new optimizer and targets of variance 1.

    optimizer   the optimizer's memory is emptied
    targets     targets are scaled to variance 1
    revive      units that are zero on every state get new incoming weights, and outgoing ones of zero
    separate    of units that always say the same all but one are drawn anew likewise
    centre      one number is taken from the biases of a layer, so that its mean pre-activation is zero
    norms       every tensor of every layer is scaled to the norm that it was born with

    recovered = (fit of the mended copy - fit as it is) / (fit of the newborn - fit as it is)

They are listed in the order of how much they change. Several may help, since a network that is shifted far enough is
dead, too; the fault that is named is the first whose repair is worth four fifths of the best one.

Source: the list of causes follows Lyle et al. 2024, "Disentangling the Causes of Plasticity Loss in Neural Networks",
2402.18762 (pre-activation shift, norms, target scale, dead units) and Lyle et al. 2023, 2303.01486 (optimizer); that
each is undone alone, and the rule that names one, are pliant's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from ..agents.agent import Agent
from ..agents.networks import Layer
from ..agents.replay import Batch
from ..common.seeds import derive_seed
from ..interventions.core.parts import Survey, survey
from ..interventions.core.recycling import per_unit
from ..interventions.core.surgery import Chosen, Optimizers, reinit_units_
from .probing import Bench, Budget, Streams, subjects, temporal_difference_targets

ALIKE = 0.98  # correlation of two units' outputs above which they say the same
WORTH = 0.8  # of the best repair's gain, for another to be taken in its place
LEAST = 0.2  # share of the newborn's lead that a repair must win to be worth a name

REPAIRS = ("optimizer", "targets", "revive", "separate", "centre", "norms")
MEANINGS = {
    "optimizer": "the optimizer's memory is stale",
    "targets": "its targets are too widely spread",
    "revive": "units are dead",
    "separate": "units say the same as others",
    "centre": "pre-activations have shifted",
    "norms": "weights have grown, or shrunk",
}
AS_IT_IS, NEWBORN = "as it is", "newborn"


@dataclass(frozen=True)
class Attribution:
    """What came of the repairs of one module.

    Attributes:
        module: Its name.
        fits: Condition (`AS_IT_IS`, `NEWBORN` and repairs) → 1 - final loss / variance of the targets [draws].
        touched: Repair → how much it changed: units drawn anew, spread of the targets, largest shift, largest factor.
    """

    module: str
    fits: Mapping[str, NDArray[np.float64]]
    touched: Mapping[str, float]

    def gain(self, condition: str) -> tuple[float, float, float]:
        """Mean gain in fit over the copy as it is, with the 95 % interval of Student's t over draws, in pairs."""
        gaps = self.fits[condition] - self.fits[AS_IT_IS]
        mean, n = float(gaps.mean()), len(gaps)
        if n < 3:
            return mean, math.nan, math.nan
        half = float(scipy.stats.t.ppf(0.975, n - 1) * scipy.stats.sem(gaps))
        return mean, mean - half, mean + half

    @property
    def lost(self) -> bool:
        """Does a newborn module learn clearly more?"""
        mean, low, _ = self.gain(NEWBORN)
        return low > 0 and mean > 0.05

    def recovered(self, repair: str) -> float:
        """Share of the newborn's lead that a repair wins back; NaN where there is no lead."""
        return self.gain(repair)[0] / self.gain(NEWBORN)[0] if self.lost else math.nan

    @property
    def fault(self) -> str | None:
        """The repair that names what is wrong; None if nothing is, or no single repair helps."""
        if not self.lost:
            return None
        helps = [r for r in REPAIRS if r in self.fits and self.gain(r)[1] > 0 and self.recovered(r) >= LEAST]
        best = max((self.gain(r)[0] for r in helps), default=0.0)
        return next((r for r in helps if self.gain(r)[0] >= WORTH * best), None)

    def verdict(self) -> str:
        """In words."""
        if not self.lost:
            return f"{self.module}: learns as a newborn one does; nothing to mend"
        if self.fault is None:
            return f"{self.module}: has lost plasticity, and no single repair gives it back"
        return f"{self.module}: {MEANINGS[self.fault]} ({self.fault} recovers {100 * self.recovered(self.fault):.0f} %)"


def attribute(
    agent: Agent, batch: Batch, *, draws: int = 10, steps: int | None = None, seed: int = 0
) -> list[Attribution]:
    """Mend one thing after the other in copies of every component of an agent, and probe each copy.

    Args:
        agent: Never changed.
        batch: Transitions of the agent's own; a few hundred.
        draws: Repetitions with targets and order of the data of their own.
        steps: Gradient steps of the probe; if None 100, or 60 on images.
        seed: Of everything random.
    """
    budget = Budget.of(agent.observation.pixels, steps, None, draws=draws)
    modules = [name for name in agent.probed(batch) if name in agent.components]
    return [_attributed(agent, batch, name, budget, seed) for name in modules]


def _attributed(agent: Agent, batch: Batch, module: str, budget: Budget, seed: int) -> Attribution:
    spread = _spread(agent, batch, module)
    fits: dict[str, list[float]] = {}
    touched: dict[str, float] = {}
    for condition in (AS_IT_IS, NEWBORN, *REPAIRS):
        patient = _copy_of(agent)
        generator = Generator(agent.device).manual_seed(derive_seed(seed, f"repair {module}"))
        if condition in SURGERIES:
            changed = SURGERIES[condition](patient, agent, batch, module, generator)
            touched[condition] = changed
            if not changed:  # there was nothing to mend
                continue
        if condition == "targets":
            touched[condition] = spread
            if spread == 1.0:
                continue
        bench = Bench(subjects(patient, batch, "replay", [module])[module], budget)
        scale = 1.0 if condition in ("targets", NEWBORN) else spread
        fresh_optimizer = condition in ("optimizer", NEWBORN) or bench.present is None
        start = bench.start()
        found = fits.setdefault(condition, [])
        for draw in range(budget.draws):
            streams = Streams(seed, module, draw, bench.device)
            order = torch.randint(
                bench.samples, (budget.steps, budget.batch_size), generator=streams("order"), device=bench.device
            )
            bench.draw_readouts(streams("readout"))
            goal = bench.goal("random", streams) * scale
            if condition == NEWBORN:
                bench.draw_(streams("control"))
                start = bench.start()
            loss = bench.trained("agent" if fresh_optimizer else "present", start, "random", goal, order)
            found.append(float(1 - loss / goal.square().mean()))
    # What diverges has learnt nothing, however far it went.
    as_arrays = {name: np.clip(np.nan_to_num(np.asarray(fit), nan=-1.0), -1.0, 1.0) for name, fit in fits.items()}
    return Attribution(module, as_arrays, touched)


@torch.no_grad()
def _spread(agent: Agent, batch: Batch, module: str) -> float:
    """Standard deviation of the targets of a module that learns values; 1 for others, and where it is smaller."""
    if module != "critic" or agent.learns_from_targets or not agent.values_are_returns:
        return 1.0
    return max(1.0, float(temporal_difference_targets(agent, batch).float().std()))


def _copy_of(agent: Agent) -> Agent:
    """A copy with the optimizers' memory, in which single weights can be made to begin anew."""
    patient = agent.twin()
    patient.become_(agent)
    for _, optimizer in patient.optimizers():
        if hasattr(optimizer, "give_age"):
            state = optimizer.state_dict()
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    optimizer.give_age(parameter)
            optimizer.load_state_dict(state)
    return patient


# ------------------------------------------------------------------------------------------------ the repairs


def _hidden(found: Survey, module: str) -> dict[str, Layer]:
    """The hidden layers of a module that are its own, in order."""
    return {name: found.layers[name] for name in found.taps.get(module, []) if name.startswith(f"{module}.")}


def _outputs(patient: Agent, found: Survey, batch: Batch) -> dict[str, Tensor]:
    return found.outputs(patient.activations(batch))


@torch.no_grad()
def revive_(patient: Agent, agent: Agent, batch: Batch, module: str, generator: Generator) -> float:
    """Draw units anew that are zero on every state; how many."""
    found = survey(patient)
    outputs = _outputs(patient, found, batch)
    chosen: dict[str, Chosen] = {}
    for name, layer in _hidden(found, module).items():
        dead = (per_unit(layer, outputs[name]) == 0).all(dim=3).all(dim=1).all(dim=0)
        if name in found.graph and found.graph[name].resettable:
            chosen[name] = Chosen.where(dead)
    return _recycled(found, patient, chosen, generator)


@torch.no_grad()
def separate_(patient: Agent, agent: Agent, batch: Batch, module: str, generator: Generator) -> float:
    """Draw units anew that say on every state what an earlier one of their layer says, up to a factor; how many."""
    found = survey(patient)
    outputs = _outputs(patient, found, batch)
    chosen: dict[str, Chosen] = {}
    for name, layer in _hidden(found, module).items():
        if name not in found.graph or not found.graph[name].resettable:
            continue
        said = per_unit(layer, outputs[name]).transpose(0, 2).flatten(1)  # [units, all that each says]
        said = said - said.mean(dim=1, keepdim=True)  # what all have in common is a shift, and no likeness
        norm = torch.linalg.vector_norm(said, dim=1, keepdim=True)
        unit = said / norm.clamp(min=1e-12)
        alike = (unit @ unit.T).abs() > ALIKE
        chosen[name] = Chosen.where(torch.tril(alike, diagonal=-1).any(dim=1) & (norm[:, 0] > 0))
    return _recycled(found, patient, chosen, generator)


def _recycled(found: Survey, patient: Agent, chosen: Mapping[str, Chosen], generator: Generator) -> float:
    optimizers = Optimizers(optimizer for _, optimizer in patient.optimizers())
    reinit_units_(found.graph, chosen, optimizers, generator)
    return float(sum(int(c.valid.sum()) for c in chosen.values()))


@torch.no_grad()
def centre_(patient: Agent, agent: Agent, batch: Batch, module: str, generator: Generator) -> float:
    """Take from the biases of every hidden layer, one after the other, the mean of its pre-activations over units and
    states; the largest of these numbers."""
    found = survey(patient)
    largest = 0.0
    for name, layer in _hidden(found, module).items():
        shift = layer.linear.bias if layer.norm is None else getattr(layer.norm, "bias", None)
        if layer.copies > 1 or shift is None:
            continue
        activation = layer._modules["activation"]
        layer._modules["activation"] = nn.Identity()  # of a copy that is thrown away
        try:
            mean = _outputs(patient, found, batch)[name].mean()
        finally:
            layer._modules["activation"] = activation
        shift.sub_(mean)
        largest = max(largest, abs(float(mean)))
    return largest


@torch.no_grad()
def norms_(patient: Agent, agent: Agent, batch: Batch, module: str, generator: Generator) -> float:
    """Scale every tensor of every layer to the norm that it was born with; the largest factor, either way."""
    born, present = survey(agent.twin()).layers, survey(patient).layers
    largest = 1.0
    for name, layer in present.items():
        if not name.startswith(f"{module}."):
            continue
        for key, parameter in layer.named_parameters():
            norm = float(torch.linalg.vector_norm(parameter))
            wanted = float(torch.linalg.vector_norm(born[name].get_parameter(key)))
            if norm > 0:
                parameter.mul_(wanted / norm)
                if wanted > 0:
                    largest = max(largest, wanted / norm, norm / wanted)
    return largest


SURGERIES: dict[str, Callable[[Agent, Agent, Batch, str, Generator], float]] = {
    "revive": revive_,
    "separate": separate_,
    "centre": centre_,
    "norms": norms_,
}


def table(found: list[Attribution]) -> str:
    """For people: one line a module and condition, and a verdict for each module."""
    head = ("module", "mended", "changed", "fit", "gain", "95 % interval", "recovered")
    rows: list[tuple[str, ...]] = [head]
    what: dict[str, Any] = {
        "revive": "{:.0f} units",
        "separate": "{:.0f} units",
        "targets": "spread {:.3g}",
        "centre": "by up to {:.2g}",
        "norms": "up to {:.3g} times",
    }
    for each in found:
        for condition in (AS_IT_IS, *REPAIRS, NEWBORN):
            changed = what[condition].format(each.touched[condition]) if condition in each.touched else ""
            if condition not in each.fits:
                rows.append((each.module, condition, changed or "-", "nothing to mend", "", "", ""))
                continue
            mean, low, high = each.gain(condition)
            gain = "" if condition == AS_IT_IS else f"{mean:+.3f}"
            interval = f"[{low:+.3f}, {high:+.3f}]" if gain and not math.isnan(low) else ""
            share = f"{100 * each.recovered(condition):.0f} %" if gain and each.lost and condition != NEWBORN else ""
            rows.append((each.module, condition, changed, f"{each.fits[condition].mean():.3f}", gain, interval, share))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", *(each.verdict() for each in found)])


def pooled(found: list[list[Attribution]]) -> list[Attribution]:
    """Several agents as one: the mean of their fits, draw by draw; what only some of them had to mend is counted as
    unmended for the others."""
    result = []
    for same in zip(*found, strict=True):
        conditions = [c for c in (AS_IT_IS, NEWBORN, *REPAIRS) if any(c in each.fits for each in same)]
        fits = {c: np.mean([each.fits.get(c, each.fits[AS_IT_IS]) for each in same], axis=0) for c in conditions}
        touched = {r: max(each.touched.get(r, 0.0) for each in same) for r in REPAIRS if r in same[0].touched}
        result.append(replace(same[0], fits=fits, touched=touched))
    return result

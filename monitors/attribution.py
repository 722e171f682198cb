"""Why a network has stopped learning: repair one cause at a time in a copy, and test whether it learns again.

Copies of a module are trained for the probe's budget on new random targets (`probing.py`). The unrepaired copy keeps
the optimizer's state of its weights, and its targets have the standard deviation of the agent's own targets. Each
repaired copy differs from it in one respect; the reference is a freshly initialised module with a new optimizer and
targets of variance 1.

    optimizer   the optimizer's state is reset
    targets     targets are scaled to variance 1
    revive      units that are zero on every state get new incoming weights, and outgoing weights of zero
    separate    of units with the same outputs, all but one are reinitialised in the same way
    centre      one number is subtracted from the biases of a layer, so that its mean pre-activation is zero
    norms       every tensor of every layer is scaled to its initial norm

    recovered = (fit of the repaired copy - fit of the unrepaired copy) / (fit of the fresh module - the same)

Repairs are listed in the order of the size of their change. Several repairs may help, since a sufficiently shifted
network also has dead units; the reported fault is the first one whose repair yields four fifths of the best gain.

Source: the list of causes follows Lyle et al. 2024, "Disentangling the Causes of Plasticity Loss in Neural Networks",
2402.18762 (pre-activation shift, norms, target scale, dead units) and Lyle et al. 2023, 2303.01486 (optimizer). The
separate repair of each cause, and the rule that selects one, are pliant's own.
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
from ..agents.views import view
from ..common.moved import moved
from ..common.seeds import derive_seed
from ..interventions.core.parts import Survey, survey
from ..interventions.core.recycling import per_unit
from ..interventions.core.surgery import Chosen, Optimizers, reinit_units_
from .probing import Bench, Budget, Streams, subjects, temporal_difference_targets

ALIKE = 0.98  # correlation of two units' outputs above which they count as the same
WORTH = 0.8  # share of the best repair's gain that suffices for an earlier repair to be reported
LEAST = 0.2  # minimum share of the fresh module's lead that a reported repair must recover

REPAIRS = ("optimizer", "targets", "revive", "separate", "centre", "norms")
MEANINGS = {
    "optimizer": "the optimizer's state is stale",
    "targets": "the spread of the targets is too large",
    "revive": "units are dead",
    "separate": "units have the same outputs as others",
    "centre": "pre-activations have shifted",
    "norms": "weights have grown, or shrunk",
}
AS_IT_IS, FRESH = "as it is", "fresh"


@dataclass(frozen=True)
class Attribution:
    """The results of the repairs of one module.

    Attributes:
        module: Its name.
        fits: Condition (`AS_IT_IS`, `FRESH` and repairs) → 1 - final loss / variance of the targets [draws].
        touched: Repair → size of its change: units reinitialised, spread of the targets, largest shift, largest factor.
    """

    module: str
    fits: Mapping[str, NDArray[np.float64]]
    touched: Mapping[str, float]

    def gain(self, condition: str) -> tuple[float, float, float]:
        """Mean gain in fit over the unrepaired copy, with the 95 % interval of a paired Student's t over draws."""
        gaps = self.fits[condition] - self.fits[AS_IT_IS]
        mean, n = float(gaps.mean()), len(gaps)
        if n < 3:
            return mean, math.nan, math.nan
        half = float(scipy.stats.t.ppf(0.975, n - 1) * scipy.stats.sem(gaps))
        return mean, mean - half, mean + half

    @property
    def lost(self) -> bool:
        """Return whether a fresh module learns clearly more."""
        mean, low, _ = self.gain(FRESH)
        return low > 0 and mean > 0.05

    def recovered(self, repair: str) -> float:
        """Share of the fresh module's lead that a repair recovers; NaN if there is no lead."""
        return self.gain(repair)[0] / self.gain(FRESH)[0] if self.lost else math.nan

    @property
    def fault(self) -> str | None:
        """The repair that identifies the fault; None if there is no fault, or no single repair helps."""
        if not self.lost:
            return None
        helps = [r for r in REPAIRS if r in self.fits and self.gain(r)[1] > 0 and self.recovered(r) >= LEAST]
        best = max((self.gain(r)[0] for r in helps), default=0.0)
        return next((r for r in helps if self.gain(r)[0] >= WORTH * best), None)

    def verdict(self) -> str:
        """One line of text."""
        if not self.lost:
            return f"{self.module}: learns as well as a fresh module; nothing to repair"
        if self.fault is None:
            return f"{self.module}: has lost plasticity, and no single repair restores it"
        return f"{self.module}: {MEANINGS[self.fault]} ({self.fault} recovers {100 * self.recovered(self.fault):.0f} %)"


def attribute(
    agent: Agent, batch: Batch, *, draws: int = 10, steps: int | None = None, seed: int = 0
) -> list[Attribution]:
    """Apply one repair at a time to copies of every component of an agent, and probe each copy.

    Args:
        agent: Never changed.
        batch: A few hundred transitions of the agent.
        draws: Repetitions, each with its own targets and order of the data.
        steps: Gradient steps of the probe; if None 100, or 60 on images.
        seed: Seed of all random numbers.
    """
    budget = Budget.of(agent.observation.pixels, steps, None, draws=draws)
    modules = [name for name in view(agent).probed(batch) if name in agent.components]
    return [_attributed(agent, batch, name, budget, seed) for name in modules]


def _attributed(agent: Agent, batch: Batch, module: str, budget: Budget, seed: int) -> Attribution:
    spread = _spread(agent, batch, module)
    fits: dict[str, list[float]] = {}
    touched: dict[str, float] = {}
    for condition in (AS_IT_IS, FRESH, *REPAIRS):
        repaired = _copy_of(agent)
        generator = Generator(agent.device).manual_seed(derive_seed(seed, f"repair {module}"))
        if condition in SURGERIES:
            changed = SURGERIES[condition](repaired, agent, batch, module, generator)
            touched[condition] = changed
            if not changed:  # there was nothing to repair
                continue
        if condition == "targets":
            touched[condition] = spread
            if spread == 1.0:
                continue
        bench = Bench(subjects(repaired, batch, "replay", [module])[module], budget)
        scale = 1.0 if condition in ("targets", FRESH) else spread
        fresh_optimizer = condition in ("optimizer", FRESH) or bench.present is None
        start = bench.start()
        condition_fits = fits.setdefault(condition, [])
        for draw in range(budget.draws):
            streams = Streams(seed, module, draw, bench.device)
            order = torch.randint(
                bench.samples, (budget.steps, budget.batch_size), generator=streams("order"), device=bench.device
            )
            bench.draw_readouts(streams("readout"))
            goal = bench.goal("random", streams) * scale
            if condition == FRESH:
                bench.draw_(streams("control"))
                start = bench.start()
            loss = bench.trained("agent" if fresh_optimizer else "present", start, "random", goal, order)
            condition_fits.append(float(1 - loss / goal.square().mean()))
    # A copy that diverges has learnt nothing, whatever its loss.
    as_arrays = {name: np.clip(np.nan_to_num(np.asarray(fit), nan=-1.0), -1.0, 1.0) for name, fit in fits.items()}
    return Attribution(module, as_arrays, touched)


@torch.no_grad()
def _spread(agent: Agent, batch: Batch, module: str) -> float:
    """Standard deviation of the targets of a module that learns values, at least 1; 1 for other modules."""
    if module != "critic" or agent.learns_from_targets or not view(agent).values_are_returns:
        return 1.0
    return max(1.0, float(temporal_difference_targets(agent, batch).float().std()))


def _copy_of(agent: Agent) -> Agent:
    """A copy with the optimizers' state, in which step counts of single weights can be reset."""
    copied = agent.fresh_copy()
    copied.copy_from_(agent)
    for _, optimizer in copied.optimizers():
        if hasattr(optimizer, "count_per_weight"):
            state = optimizer.state_dict()
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    optimizer.count_per_weight(parameter)
            optimizer.load_state_dict(state)
    return copied


# ------------------------------------------------------------------------------------------------ the repairs


def _hidden(surveyed: Survey, module: str) -> dict[str, Layer]:
    """The hidden layers that belong to a module itself, in order."""
    return {name: surveyed.layers[name] for name in surveyed.traced.get(module, []) if name.startswith(f"{module}.")}


def _outputs(repaired: Agent, surveyed: Survey, batch: Batch) -> dict[str, Tensor]:
    return surveyed.outputs(view(repaired).activations(batch))


@torch.no_grad()
def revive_(repaired: Agent, agent: Agent, batch: Batch, module: str, generator: Generator) -> float:
    """Reinitialise units that are zero on every state; return how many."""
    surveyed = survey(repaired)
    outputs = _outputs(repaired, surveyed, batch)
    chosen: dict[str, Chosen] = {}
    for name, layer in _hidden(surveyed, module).items():
        dead = (per_unit(layer, outputs[name]) == 0).all(dim=3).all(dim=1).all(dim=0)
        if name in surveyed.graph and surveyed.graph[name].resettable:
            chosen[name] = Chosen.where(dead)
    return _recycled(surveyed, repaired, chosen, generator)


@torch.no_grad()
def separate_(repaired: Agent, agent: Agent, batch: Batch, module: str, generator: Generator) -> float:
    """Reinitialise units with the outputs of an earlier unit of their layer up to a factor; return how many."""
    surveyed = survey(repaired)
    outputs = _outputs(repaired, surveyed, batch)
    chosen: dict[str, Chosen] = {}
    for name, layer in _hidden(surveyed, module).items():
        if name not in surveyed.graph or not surveyed.graph[name].resettable:
            continue
        centred = per_unit(layer, outputs[name]).transpose(0, 2).flatten(1)  # [units, all outputs of each]
        centred = centred - centred.mean(dim=1, keepdim=True)  # a shared mean is a shift, not a similarity
        norm = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
        unit = centred / norm.clamp(min=1e-12)
        alike = (unit @ unit.T).abs() > ALIKE
        chosen[name] = Chosen.where(torch.tril(alike, diagonal=-1).any(dim=1) & (norm[:, 0] > 0))
    return _recycled(surveyed, repaired, chosen, generator)


def _recycled(surveyed: Survey, repaired: Agent, chosen: Mapping[str, Chosen], generator: Generator) -> float:
    optimizers = Optimizers(optimizer for _, optimizer in repaired.optimizers())
    reinit_units_(surveyed.graph, chosen, optimizers, generator)
    return float(sum(int(c.valid.sum()) for c in chosen.values()))


@torch.no_grad()
def centre_(repaired: Agent, agent: Agent, batch: Batch, module: str, generator: Generator) -> float:
    """Subtract from the biases of every hidden layer, one after the other, the mean of its pre-activations over units
    and states; return the largest of these means."""
    surveyed = survey(repaired)
    largest = 0.0
    for name, layer in _hidden(surveyed, module).items():
        shift = layer.linear.bias if layer.norm is None else getattr(layer.norm, "bias", None)
        if layer.copies > 1 or shift is None:
            continue
        activation = layer._modules["activation"]
        layer._modules["activation"] = nn.Identity()  # in a copy that is discarded
        try:
            mean = _outputs(repaired, surveyed, batch)[name].mean()
        finally:
            layer._modules["activation"] = activation
        shift.sub_(mean)
        largest = max(largest, abs(float(mean)))
    return largest


@torch.no_grad()
def norms_(repaired: Agent, agent: Agent, batch: Batch, module: str, generator: Generator) -> float:
    """Scale every tensor of every layer to its initial norm; return the largest factor, in either direction."""
    initial, present = survey(agent.fresh_copy()).layers, survey(repaired).layers
    largest = 1.0
    for name, layer in present.items():
        if not name.startswith(f"{module}."):
            continue
        for key, parameter in layer.named_parameters():
            norm = float(torch.linalg.vector_norm(parameter))
            target = float(torch.linalg.vector_norm(initial[name].get_parameter(key)))
            if norm > 0:
                parameter.mul_(target / norm)
                if target > 0:
                    largest = max(largest, target / norm, norm / target)
    return largest


SURGERIES: dict[str, Callable[[Agent, Agent, Batch, str, Generator], float]] = {
    "revive": revive_,
    "separate": separate_,
    "centre": centre_,
    "norms": norms_,
}


def table(attributions: list[Attribution]) -> str:
    """A table for people: one line per module and condition, and a verdict per module."""
    head = ("module", "repaired", "changed", "fit", "gain", "95 % interval", "recovered")
    rows: list[tuple[str, ...]] = [head]
    what: dict[str, Any] = {
        "revive": "{:.0f} units",
        "separate": "{:.0f} units",
        "targets": "spread {:.3g}",
        "centre": "by up to {:.2g}",
        "norms": "up to {:.3g} times",
    }
    for each in attributions:
        for condition in (AS_IT_IS, *REPAIRS, FRESH):
            changed = what[condition].format(each.touched[condition]) if condition in each.touched else ""
            if condition not in each.fits:
                rows.append((each.module, condition, changed or "-", "nothing to repair", "", "", ""))
                continue
            mean, low, high = each.gain(condition)
            gain = "" if condition == AS_IT_IS else f"{mean:+.3f}"
            interval = f"[{low:+.3f}, {high:+.3f}]" if gain and not math.isnan(low) else ""
            share = f"{100 * each.recovered(condition):.0f} %" if gain and each.lost and condition != FRESH else ""
            rows.append((each.module, condition, changed, f"{each.fits[condition].mean():.3f}", gain, interval, share))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", *(each.verdict() for each in attributions)])


def pooled(per_agent: list[list[Attribution]]) -> list[Attribution]:
    """Several agents as one: the mean of their fits, draw by draw; an agent without the fault of a repair contributes
    the fit of its unrepaired copy."""
    result = []
    for same in zip(*per_agent, strict=True):
        conditions = [c for c in (AS_IT_IS, FRESH, *REPAIRS) if any(c in each.fits for each in same)]
        fits = {c: np.mean([each.fits.get(c, each.fits[AS_IT_IS]) for each in same], axis=0) for c in conditions}
        touched = {r: max(each.touched.get(r, 0.0) for each in same) for r in REPAIRS if r in same[0].touched}
        result.append(replace(same[0], fits=fits, touched=touched))
    return result


__getattr__ = moved(__name__, {"NEWBORN": f"{__name__}.FRESH"})  # a former name

"""The laws themselves are tested: classic bugs are planted, and a law must catch each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from test_laws import TestLaws as Laws
from test_laws import test_injection_preserves_every_prediction as injection_law
from test_laws import test_recycling_dead_units_changes_no_prediction as dead_units_law
from torch import Tensor, nn

from pliant.agents.hooks import Intervention, Run
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core import surgery
from pliant.interventions.core.units import Consumer
from pliant.interventions.plasticity_injection import PlasticityInjection
from pliant.interventions.redo import ReDo
from pliant.interventions.reset import Reset

LAWS = Laws()
Patch = pytest.MonkeyPatch


def tile_order(patch: Patch) -> None:
    """The mask of channels is tiled over positions, as in Dopamine, where it must be repeated."""
    columns = Consumer.columns.func  # type: ignore[attr-defined]

    def wrong(consumer: Consumer) -> Tensor:
        right = columns(consumer)
        return right.flatten().sort().values.view(right.shape[1], -1).T.contiguous()  # type: ignore[no-any-return]

    patch.setattr(Consumer, "columns", property(wrong))


def half_of_crelu(patch: Patch) -> None:
    """Only the positive copy of a unit is cut off."""
    columns = Consumer.columns.func  # type: ignore[attr-defined]
    patch.setattr(Consumer, "columns", property(lambda r: columns(r)[:, : max(1, columns(r).shape[1] // 2)]))


def remembered_moments(patch: Patch) -> None:
    """Weights are edited, and the optimizer keeps the state of the old ones."""
    patch.setattr(surgery, "_edit_", lambda o, p, *rest: surgery._put_(p, *rest))


def all_forgotten(patch: Patch) -> None:
    """The optimizer state of the whole tensor is reset, neighbours included."""
    inner = surgery._edit_

    def wrong(optimizers: Any, p: Any, *rest: Any) -> None:
        inner(optimizers, p, *rest)
        for memory in optimizers.memory(p).values():
            memory.zero_()

    patch.setattr(surgery, "_edit_", wrong)


def outgoing_first(patch: Patch) -> None:
    """Outgoing weights are zeroed before incoming ones are drawn, so that the draw wins where both overlap."""
    inner = surgery.reinit_units_

    def wrong(graph: Any, chosen: Any, optimizers: Any, generator: Any, *, outgoing: bool = True) -> None:
        inner(graph, chosen, optimizers, generator, outgoing=True)
        inner(graph, chosen, optimizers, generator, outgoing=False)

    patch.setattr("pliant.interventions.core.recycling.reinit_units_", wrong)


def wide_draws(patch: Patch) -> None:
    """New weights come from a distribution that is the square root of six wider than the layer's initialiser."""
    inner = surgery.reinit_units_

    def wrong(graph: Any, chosen: Any, *rest: Any, **options: Any) -> None:
        inner(graph, chosen, *rest, **options)
        for name, (index, valid) in chosen.items():
            graph[name].layer.linear.weight.data[index[valid]] *= 6**0.5

    patch.setattr("pliant.interventions.core.recycling.reinit_units_", wrong)


class Rebound(Reset):
    """A reset that replaces modules: only those of the target, because otherwise nothing could be trained any more."""

    def redraw(self, name: str) -> None:
        super().redraw(name)
        if name in self.survey.copies:
            self.survey.copies[name].linear = copy.deepcopy(self.survey.copies[name].linear)


class Counting(ReDo):
    """Time is kept in an attribute instead of read from the clock."""

    def __init__(self, tau: float = 0.1, every: int = 1000, samples: int = 64) -> None:
        super().__init__(tau, every, samples=samples)
        self.calls = 0
        self.when = lambda clock: self.count() % 4 == 0

    def count(self) -> int:
        self.calls += 1
        return self.calls


class Asking(ReDo):
    """The host asks the device whether there is anything to do."""

    def recycle(self, chosen: Any, **options: Any) -> None:
        if any(bool(c.valid.any()) for c in chosen.values()):
            super().recycle(chosen, **options)


class Global(ReDo):
    """A measurement of the units that draws from the global generator."""

    def after_update(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        torch.rand(1)
        super().after_update(run, activations)


class Forgetful(ReDo):
    """A random stream that no checkpoint saves."""

    def get_extra_state(self) -> dict[str, Any]:
        return {"host": {}, "generator": None}


class Untracked(PlasticityInjection):
    """An injected head that is created outside the optimizer."""

    def inject(self, agent: Any, number: int) -> None:
        super().inject(agent, number)
        agent.components["critic"].online.injected = nn.Linear(2, 2)


class Unequal(PlasticityInjection):
    """The new head and its subtracted copy come from two draws."""

    def move(self, head: Any, number: int, draws: Any, optimizers: Any) -> None:
        super().move(head, number, draws, optimizers)
        for parameter in head.injection.initial[number].parameters():
            parameter.data.mul_(1.01)


def swap(kind: type[Intervention]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        patch.setitem(INTERVENTIONS, kind.name, kind)

    plant.__name__, plant.__doc__ = kind.__name__, kind.__doc__
    return plant


REDO = ("dqn, minatar, dueling", "redo")
CASES: list[tuple[Callable[[Patch], None], Callable[..., None], tuple[str, ...]]] = [
    (tile_order, LAWS.test_edited_weights_make_a_fresh_start, REDO),
    (tile_order, dead_units_law, ("sac, pixels", "redo(tau=0, every=1, on=all, samples=0)")),
    (half_of_crelu, LAWS.test_edited_weights_make_a_fresh_start, ("dqn, crelu, orthogonal", "redo")),
    (remembered_moments, LAWS.test_edited_weights_make_a_fresh_start, REDO),
    (all_forgotten, LAWS.test_edited_weights_make_a_fresh_start, REDO),
    (outgoing_first, LAWS.test_edited_weights_make_a_fresh_start, ("sac", "redo")),
    (wide_draws, LAWS.test_edited_weights_make_a_fresh_start, REDO),
    (swap(Rebound), LAWS.test_a_seed_determines_the_run_and_a_resumed_run_continues_it_exactly, ("dqn", "reset")),
    (swap(Counting), LAWS.test_a_seed_determines_the_run_and_a_resumed_run_continues_it_exactly, REDO),
    (swap(Asking), LAWS.test_a_seed_determines_the_run_and_a_resumed_run_continues_it_exactly, REDO),
    (swap(Global), LAWS.test_a_seed_determines_the_run_and_a_resumed_run_continues_it_exactly, REDO),
    (swap(Forgetful), LAWS.test_a_seed_determines_the_run_and_a_resumed_run_continues_it_exactly, REDO),
    (
        swap(Untracked),
        LAWS.test_a_seed_determines_the_run_and_a_resumed_run_continues_it_exactly,
        ("dqn", "plasticity_injection"),
    ),
    (swap(Unequal), injection_law, ("dqn",)),
]


@pytest.mark.parametrize(("plant", "law", "case"), CASES, ids=[f"{p.__name__}-{c[0]}" for p, _, c in CASES])
def test_a_law_catches_the_planted_bug(
    plant: Callable[[Patch], None], law: Callable[..., None], case: tuple[str, ...], monkeypatch: Patch
) -> None:
    law(*case)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        law(*case)

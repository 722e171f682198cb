"""Every method declares its effect, and the declaration agrees with what its hooks do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from law_agents import DQN_CONFIG, build_run, take_steps
from torch import Tensor

from pliant.agents import Agent
from pliant.agents.hooks import EFFECTS, Effect, Intervention
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core.parts import survey
from pliant.interventions.core.spec import build

AGENT = "dqn, minatar, dueling"
HOOKS: dict[Effect, tuple[str, ...]] = {
    "configuration": ("configure",),
    "penalty": ("penalty",),
    "batch": ("transform_batch",),
    "schedule": ("schedule",),
    "optimizer": ("fire", "after_update"),
    "unit_surgery": ("fire", "after_update"),
    "layer_surgery": ("fire", "after_update"),
    "memory": ("fire", "after_update"),
}


# A target network is not trained, and an injection reserves the heads, which is more than editing them.
WITHOUT_EDITS = ("reset_target", "plasticity_injection")


def overrides(kind: type[Intervention], hook: str) -> bool:
    return getattr(kind, hook) is not getattr(Intervention, hook)


@pytest.mark.parametrize("method", sorted(INTERVENTIONS))
def test_the_declared_effect_agrees_with_the_overridden_hooks(method: str) -> None:
    kind = INTERVENTIONS[method]
    assert kind.effect in EFFECTS, f"{method} declares no effect"
    assert any(overrides(kind, hook) for hook in HOOKS[kind.effect]), (method, kind.effect)
    surgery = kind.effect in ("unit_surgery", "layer_surgery", "memory")
    assert bool(example(method).edits) == (surgery and method not in WITHOUT_EDITS), f"{method}: {kind.effect}"
    for effect in EFFECTS[EFFECTS.index(kind.effect) + 1 : EFFECTS.index("optimizer")]:
        assert not any(overrides(kind, hook) for hook in HOOKS[effect]), f"{method} has a stronger effect: {effect}"


@pytest.mark.parametrize("method", sorted(INTERVENTIONS))
def test_the_declared_effect_is_the_strongest_that_a_run_shows(method: str) -> None:
    observed = observed_effects(example(method))
    if method == "huber":  # the value loss that DQN has already
        assert not observed
        return
    assert observed, f"{method} had no effect"
    assert INTERVENTIONS[method].effect == max(observed, key=EFFECTS.index), sorted(observed)


def test_every_effect_has_a_method() -> None:
    assert {kind.effect for kind in INTERVENTIONS.values()} == set(EFFECTS)


def test_a_wrong_declaration_is_noticed() -> None:
    """The observation separates the effects: a method that does nothing shows none, and two surgeries differ."""
    assert observed_effects(Intervention()) == set()
    assert "unit_surgery" in observed_effects(example("redo"))
    assert "layer_surgery" not in observed_effects(example("redo"))
    assert observed_effects(example("reset_optimizer")) == {"optimizer"}


def example(method: str) -> Any:
    (part,) = build([INTERVENTIONS[method].example], INTERVENTIONS)
    return part


def observed_effects(part: Any) -> set[Effect]:
    """Run an agent for some updates with one intervention, and compare what goes into each hook with what comes out."""
    observed: set[Effect] = set()
    if part.configure(DQN_CONFIG) != DQN_CONFIG:
        observed.add("configuration")
    run = build_run(AGENT, (part,))
    (part,) = run.agent.interventions
    schedule, transform_batch, penalty, after_update, clear = (
        part.schedule,
        part.transform_batch,
        part.penalty,
        part.after_update,
        run.memory.clear,
    )

    def watched_schedule(sampling: Any, clock: Any) -> Any:
        changed = schedule(sampling, clock)
        if changed != sampling:
            observed.add("schedule")
        return changed

    def watched_batch(batch: Any) -> Any:
        changed = transform_batch(batch)
        if changed is not batch:
            observed.add("batch")
        return changed

    def watched_penalty(agent: Any, component: str) -> Any:
        term = penalty(agent, component)
        if isinstance(term, Tensor):
            observed.add("penalty")
        return term

    def watched_clear() -> None:
        observed.add("memory")
        clear()

    def watched_update(r: Any, activations: Any) -> None:
        weights, states = list(all_weights(run.agent)), optimizer_state(run.agent)
        before, state = [p.detach().clone() for p in weights], [s.clone() for s in states]
        after_update(r, activations)
        edited = [p != old for p, old in zip(weights, before, strict=True)]
        if any(bool(mask.all()) for mask in edited):
            observed.add("layer_surgery")
        elif any(bool(mask.any()) for mask in edited):
            observed.add("unit_surgery")
        elif not all(torch.equal(s, old) for s, old in zip(states, state, strict=True)):
            observed.add("optimizer")

    part.schedule, part.transform_batch, part.penalty = watched_schedule, watched_batch, watched_penalty
    part.after_update, run.memory.clear = watched_update, watched_clear  # type: ignore[method-assign]
    take_steps(run, 9)
    return observed


def all_weights(agent: Agent) -> Iterator[Tensor]:
    """The weights of every layer, of online and of target networks."""
    parts = survey(agent)
    for layer in (*parts.layers.values(), *parts.copies.values()):
        yield layer.linear.weight


def optimizer_state(agent: Agent) -> list[Tensor]:
    return [
        value
        for _, optimizer in agent.optimizers()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]

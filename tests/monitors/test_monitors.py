"""The laws of every monitor: it only observes, it never waits for the device, and it resumes exactly. Also triggers
that wait for a measurement, and the log of firings.

A new monitor is tested by being listed in `MONITORS`: its `example` makes it act within a few updates.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from law_agents import (
    AGENTS,
    PAIRED,
    RandomEnvs,
    build_run,
    current_state,
    differences,
    refuse_waiting,
    resume,
    saved,
    take_steps,
    take_steps_with_monitors,
)
from no_wait import HostWaits, no_wait
from numpy.typing import NDArray
from stand import Stand
from torch import Tensor

from pliant.agents import Clock, Every
from pliant.agents.clock import When
from pliant.agents.hooks import Intervention
from pliant.agents.log import Log, read_metrics
from pliant.agents.run import Run
from pliant.interventions import INTERVENTIONS, attach
from pliant.interventions.core.recycling import per_unit
from pliant.interventions.core.spec import SpecError, build, check
from pliant.monitors import MONITORS, watch
from pliant.monitors.base import Finding, Monitor, MonitorContext, Monitors
from pliant.monitors.registry import check_monitors, expand

STEPS = 9  # of two environments: ten updates
EXAMPLES = tuple(kind.example for kind in MONITORS.values())


def state_without_monitors(run: Run) -> Any:
    """The state of a run without that of its monitors."""
    content, envs, obs = saved(run)
    return {key: value for key, value in content.items() if key != "monitors"}, envs, obs


def updates(run: Run, number: int, guarded: bool = False) -> None:
    """This number of updates on the content of the replay; with `guarded` none may wait for the device."""
    sampling = run.agent.sampling(run.clock)
    for _ in range(number):
        run.clock = run.clock.stepped(1)
        batch = run.memory.sample(sampling.batch_size, sampling.n_step, sampling.gamma)
        if guarded:
            with no_wait():
                run.learn(batch)
        else:
            run.learn(batch)


def check_observer(agent: str, specs: tuple[str, ...]) -> Run:
    """A run with monitors equals one without them. Returns the run with monitors after STEPS steps."""
    plain, watched = build_run(agent), build_run(agent, monitors=specs)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    for run in (plain, watched):
        take_steps_with_monitors(run, STEPS)
    assert not differences(state_without_monitors(plain), state_without_monitors(watched))
    for (name, module), (_, other) in zip(plain.agent.modules(), watched.agent.modules(), strict=True):
        for (key, p), q in zip(module.named_parameters(), other.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None) and (p.grad is None or torch.equal(p.grad, q.grad)), (name, key)
            assert p.requires_grad == q.requires_grad
        assert [m.training for m in module.modules()] == [m.training for m in other.modules()]
    assert torch.equal(states[0], torch.get_rng_state()) and random.getstate() == states[2]
    assert np.array_equal(states[1], np.random.get_state()[1])  # type: ignore[index]
    return watched


def check_resume(straight: Run, agent: str, specs: tuple[str, ...]) -> None:
    """Another run that loads the state of a watched run continues exactly like it, and never waits for the device."""
    resumed = build_run(agent, seed=99, monitors=specs)
    resumed.agent.seed, resumed.fresh_envs = straight.agent.seed, straight.fresh_envs  # as in the configuration
    resumed.monitors = watch(resumed.agent, *specs)
    resume(resumed, saved(straight))
    rest = refuse_waiting(straight, updates=7)
    take_steps_with_monitors(straight, STEPS - 4)
    further = rest()
    take_steps_with_monitors(resumed, STEPS - 4)
    take_steps(resumed, further)
    assert not differences(current_state(straight), current_state(resumed))
    assert straight.monitors.readings  # type: ignore[union-attr]


def check_no_wait(agent: str, specs: tuple[str, ...]) -> None:
    run = build_run(agent, monitors=specs)
    take_steps(run, 5)
    updates(run, 7, guarded=True)


def suited(agent: str) -> tuple[str, ...]:
    """Every monitor that this agent can have: a tandem needs an agent with a replay memory."""
    if agent.startswith(("ppo", "supervised")):
        with pytest.raises(ValueError, match="learns from a replay"):
            watch(AGENTS[agent](), MONITORS["tandem"].example)
        return tuple(spec for spec in EXAMPLES if not spec.startswith("tandem"))
    return EXAMPLES


@pytest.mark.parametrize("agent", AGENTS)
class TestEveryAgentWithEveryMonitorOn:
    def test_a_run_with_all_monitors_is_unchanged_resumes_exactly_and_never_waits(self, agent: str) -> None:
        specs = suited(agent)
        check_resume(check_observer(agent, specs), agent, specs)


@pytest.mark.parametrize("agent", PAIRED)
@pytest.mark.parametrize("name", MONITORS)
class TestEveryMonitorAlone:
    def test_a_run_with_it_equals_a_run_without_it_bitwise(self, name: str, agent: str) -> None:
        check_observer(agent, (MONITORS[name].example,))

    def test_it_never_waits_for_the_device(self, name: str, agent: str) -> None:
        check_no_wait(agent, (MONITORS[name].example,))

    def test_it_measures_its_documented_metrics(self, name: str, agent: str) -> None:
        """Every key ends in a documented metric, and starts with a component or a layer of the agent."""
        run = build_run(agent, monitors=(MONITORS[name].example,))
        take_steps_with_monitors(run, STEPS)
        assert isinstance(run.monitors, Monitors)
        readings = run.monitors.readings
        assert MONITORS[name].metrics == {} or readings
        for key in readings:
            place, _, metric = key.rpartition("/")
            assert metric in MONITORS[name].metrics, key
            assert place.partition(".")[0].partition(" ")[0] in ("critic", "actor", "encoder"), key
        for metric, meaning in MONITORS[name].metrics.items():
            assert " " not in metric and "/" not in metric and meaning
        assert (MONITORS[name].__doc__ or "").strip()


@pytest.mark.parametrize("agent", ["dqn", "sac"])
def test_monitors_do_not_change_a_compiled_update(agent: str) -> None:
    """Monitors read what an update returns and what it leaves in `.grad`, so they need no hook in a compiled update."""
    runs = [build_run(agent), build_run(agent, monitors=EXAMPLES)]
    for run in runs:
        name = "loss" if agent == "dqn" else "critic_loss"
        compiled = torch.compile(getattr(run.agent, name), backend="aot_eager")
        setattr(run.agent, name, compiled)
        take_steps(run, STEPS)
    assert runs[1].monitors.readings["critic/weight_norm"]  # type: ignore[union-attr]
    assert not differences(state_without_monitors(runs[0]), state_without_monitors(runs[1]))


# ------------------------------------------------------------------------------------------------ common machinery


class Sum(Monitor):
    """The sum of all weights, in three forms."""

    name = "sum"
    metrics: ClassVar[Mapping[str, str]] = {"sum": "of all weights", "squares": "of all weights squared"}

    def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
        flat = torch.cat([p.detach().flatten() for p in context.agent.components["critic"].online.parameters()])
        yield "critic/sum", flat.sum()
        yield "critic/all", flat.view(1, -1)

    def finish(self, key: str, array: NDArray[Any], clock: Clock) -> Iterator[Finding]:
        assert key == "critic/all" and array.ndim == 2
        yield "critic/squares", float((array**2).sum())


class Steps(Monitor):
    """The clock, between steps."""

    name = "steps"
    metrics: ClassVar[Mapping[str, str]] = {"steps": "environment steps"}

    def between(self, run: Run) -> Iterator[Finding]:
        yield "critic/steps", float(run.clock.steps)


def test_measurements_are_read_one_update_later() -> None:
    run = build_run("dqn", monitors=(Sum(Every(2)),))
    take_steps(run, 5)
    assert isinstance(run.monitors, Monitors)
    weights: dict[int, Tensor] = {}
    for _ in range(5):
        updates(run, 1, guarded=True)
        weights[run.clock.updates] = torch.cat(
            [p.detach().flatten().double() for p in run.agent.components["critic"].online.parameters()]
        )
        value, at = run.monitors.readings["critic/sum"]
        assert at == (run.clock.updates - 1) // 2 * 2, "the reading must be of an earlier even update"
        if at in weights:
            assert value == pytest.approx(weights[at].sum().item(), abs=1e-4)
            squares = weights[at].square().sum().item()
            assert run.monitors.readings["critic/squares"] == (pytest.approx(squares), at)


def test_a_monitor_that_makes_the_host_wait_is_caught() -> None:
    class Impatient(Monitor):
        name = "impatient"

        def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
            if context.outputs()["critic.head.layers.0"].sum() > 0:
                yield "critic/sum", torch.ones(())

    run = build_run("dqn", monitors=(Impatient(Every(1)),))
    take_steps(run, 5)
    with pytest.raises(HostWaits):
        updates(run, 1, guarded=True)


def test_a_monitor_that_uses_the_generator_of_training_is_caught() -> None:
    class Meddler(Monitor):
        name = "meddler"

        def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
            yield "critic/sum", torch.rand((), generator=context.agent.generator)

    plain, watched = build_run("sac"), build_run("sac", monitors=(Meddler(Every(1)),))
    for run in (plain, watched):
        take_steps(run, STEPS)
    assert differences(state_without_monitors(plain), state_without_monitors(watched))


def test_the_record_of_a_stopped_run_equals_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    """Readings that were on their way to the host at the save are written exactly once."""

    def begin(folder: Path) -> Run:
        agent = AGENTS["dqn"]()
        monitors = watch(agent, Sum(Every(1)), Steps(Every(3, of="steps")))
        run = Run(agent, RandomEnvs(agent.observation, agent.action, 2), log=Log(folder), monitors=monitors)
        run.obs = run.envs.reset()
        run.memory.start(run.obs)
        return run

    def go(run: Run, steps: int) -> None:
        for _ in range(steps):
            before = run.clock.steps
            run.step()
            run.after_step(before)

    straight, stopped = begin(tmp_path / "straight"), begin(tmp_path / "stopped")
    go(straight, 12)
    go(stopped, 7)
    assert isinstance(stopped.monitors, Monitors) and stopped.monitors.pages
    state, log = saved(stopped), stopped.log.state_dict()
    stopped.monitors.publish(stopped)  # as at the end of a session; cut off when the run resumes
    stopped.log.close("stopped")
    resumed = begin(tmp_path / "stopped")
    resumed.log.resume(log)
    resume(resumed, state)
    go(resumed, 5)
    for run in (straight, resumed):
        assert run.monitors is not None
        run.monitors.publish(run)
        run.log.close()
    first, second = (read_metrics(tmp_path / name) for name in ("straight", "stopped"))
    assert first == second
    sums = [row for row in first if "plasticity/sum/critic" in row]
    assert [row["updates"] for row in sums] == list(range(1, len(sums) + 1))
    assert [row["plasticity/steps/critic"] for row in first if "plasticity/steps/critic" in row] == [
        4,
        6,
        10,
        12,
        16,
        18,
        22,
        24,
    ]


def test_monitors_may_be_added_and_removed_between_sessions() -> None:
    run = build_run("dqn", monitors=("units(every=2, samples=16)", Sum(Every(1))))
    take_steps(run, STEPS)
    assert run.monitors is not None
    state = run.monitors.state_dict()
    other = build_run("dqn", monitors=("norms(every=2)", "units(every=2, samples=16)"))
    assert isinstance(other.monitors, Monitors)
    other.monitors.load_state_dict(state)
    assert other.monitors.readings["critic/sum"] == run.monitors.readings["critic/sum"]  # type: ignore[attr-defined]
    other.monitors.publish(other)
    assert "critic/squares" in other.monitors.readings


def test_a_copy_equals_the_agent_and_shares_no_memory() -> None:
    run = build_run("sac, pixels")
    take_steps(run, STEPS)
    copy = run.agent.fresh_copy()
    fresh = deepcopy(copy.state_dict())
    copy.copy_from_(run.agent)
    state, copied_state = run.agent.state_dict(), copy.state_dict()
    for part in ("modules", "optimizers"):
        assert not [d for d in differences(state[part], copied_state[part]) if "interventions" not in d]
        assert differences(fresh[part], copied_state[part])
    for p in copy.components["critic"].online.parameters():
        p.data.add_(1.0)
    assert not differences(state, run.agent.state_dict())


def test_monitors_know_the_initial_weights_of_a_trained_agent() -> None:
    class ReadsInitialWeights(Monitor):
        name = "initial"

        def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
            self.seen = context.initial
            return iter(())

    agent = AGENTS["dqn, minatar, dueling"](seed=5)
    weights = {name: p.detach().clone() for name, p in agent.components["critic"].online.named_parameters()}
    for p in agent.components["critic"].online.parameters():
        p.data.add_(1.0)
    part = ReadsInitialWeights(Every(1))
    watch(agent, part).after_update(Stand(agent).tick(), None)  # type: ignore[arg-type]
    initial = {f"{layer}.{key}": p for layer, params in part.seen.items() for key, p in params.items()}
    assert not differences({f"critic.{name}": p for name, p in weights.items()}, initial)


@pytest.mark.parametrize("of", ["updates", "steps", "episodes"])
def test_a_monitor_measures_on_the_clock_that_its_spec_names(of: str) -> None:
    specs = (f"units(every=2, of={of}, samples=16)", f"churn(every=2, of={of}, samples=16)")
    run = build_run("dqn", monitors=specs)
    take_steps(run, 4 * STEPS)
    assert run.clock.episodes > 2
    run.monitors.publish(run)
    assert run.monitors.latest("critic/dead_fraction") and run.monitors.latest("critic/value_churn")


def test_monitors_that_measure_between_steps_count_steps() -> None:
    class Playing(Monitor):
        name = "playing"

        def between(self, run: Any) -> Iterator[Finding]:
            yield "critic/played", 1.0

    with pytest.raises(ValueError, match="playing measures between two steps, so its period must count steps"):
        watch(AGENTS["dqn"](), Playing())
    run = build_run("dqn")
    run.monitors = monitors = watch(run.agent, Playing(Every(4, "steps")))
    run.train(8)
    assert monitors.latest("critic/played") is not None


@pytest.mark.parametrize("agent", ["dqn", "dqn, minatar, dueling"])
def test_the_documented_example_of_a_monitor_works(agent: str) -> None:
    """It runs on vectors and on images, and agrees with the monitor of units."""
    text = (inspect.getmodule(Monitor).__doc__ or "").partition("    class Dead")[2]
    lines = ["class Dead" + text.partition("\n")[0], *text.partition("\n\nAll measurements")[0].split("\n")[1:]]
    names: dict[str, Any] = {
        "Monitor": Monitor,
        "MonitorContext": MonitorContext,
        "Iterator": Iterator,
        "Tensor": Tensor,
        "per_unit": per_unit,
    }
    exec("\n".join([lines[0], *(line[4:] for line in lines[1:])]), names)
    run = build_run(agent)
    monitors = watch(run.agent, names["Dead"](Every(1)), "units")
    stand = Stand(run.agent).tick()
    values = {key: float(value) for key, value in monitors.parts["dead"].measure(monitors._context(stand))}
    monitors.after_update(replace(stand, clock=Clock(updates=250, last_updates=249)), None)  # type: ignore[arg-type]
    monitors.arrive()
    assert values and all(monitors.latest(key) == (pytest.approx(value), 250) for key, value in values.items())


# ------------------------------------------------------------------------------------------------------- specs


def test_groups_and_specs_of_monitors_are_expanded_and_checked() -> None:
    cheap = [name for name, kind in MONITORS.items() if kind.group == "cheap"]
    assert expand(["cheap"]) == cheap and expand(["none"]) == []
    together = [name for name, kind in MONITORS.items() if kind.group != "alone"]
    assert expand(["all"]) == together and set(MONITORS) - set(together) == {"tandem"}
    assert expand(["units(every=7)", "cheap"]) == [*("units(every=7)" if n == "units" else n for n in cheap)]
    assert check_monitors(["cheap", "units( every = 7 )"]) == ("cheap", "units(every=7)")
    for spec, message in (
        ("unitz", "unknown monitor 'unitz'. Did you mean 'units'\\?"),
        ("units(evry=3)", "Did you mean 'every'"),
        ("chep", "Did you mean 'cheap'"),
        ("cheap(every=3)", "cheap is a group of monitors"),
        ("units,norms", "is not a monitor"),
        ("", "an empty spec is not a monitor"),
        ("units(when='critic/dead_fraction > 0')", "when"),
    ):
        with pytest.raises(SpecError, match=message):
            watch(AGENTS["dqn"](), spec)
    with pytest.raises(SpecError, match="units is given twice: units and units\\(every=7\\)"):
        expand(["units", "cheap", "units(every=7)"])
    with pytest.raises(ValueError, match="units is given twice"):
        Monitors([MONITORS["units"](), MONITORS["units"]()])


# ---------------------------------------------------------------------------------------------- closed loop


class FixedReadings:
    """Readings that a test sets."""

    def __init__(self) -> None:
        self.reading: tuple[float, int] | None = None

    def latest(self, metric: str) -> tuple[float, int] | None:
        return self.reading


def fired(when: When, readings: Mapping[int, float], until: int = 40) -> list[int]:
    """The updates at which it fires, given measurements by update; each is read one update later."""
    source = FixedReadings()
    when.readings = source
    updates, clock = [], Clock()
    for update in range(1, until + 1):
        clock = clock.stepped(1).updated()
        if update - 1 in readings:
            source.reading = readings[update - 1], update - 1
        if when(clock):
            updates.append(update)
        assert when(clock) == (update in updates), "repeated calls at one time must agree"
    return updates


def test_a_trigger_waits_for_a_measurement() -> None:
    measured = {2: 0.1, 4: 0.3, 6: 0.3, 8: 0.1, 10: 0.5, 12: 0.5, 14: 0.5, 16: 0.5, 18: 0.5}
    assert fired(When("x", above=0.2), measured) == [5, 7, 11, 13, 15, 17, 19]
    assert fired(When("x", below=0.2), measured) == [3, 9]
    assert fired(When("x", above=0.2, patience=2), measured) == [7, 13, 17]
    assert fired(When("x", above=0.2, patience=3), measured) == [15]
    assert fired(When("x", above=0.2, cooldown=6), measured) == [5, 13]
    assert fired(When("x", above=0.2, patience=2, cooldown=6), measured) == [7, 17]
    assert fired(When("x", above=0.5), measured) == [], "the bound itself does not fire"
    assert fired(When("x", below=0.1), measured) == []
    assert fired(When("x", above=0.2), {2: math.nan, 4: 0.3, 6: math.nan, 8: 0.3}) == [5, 9]
    always = dict.fromkeys(range(1, 40), 0.5)
    assert fired(When("x", above=0.2), always, 9) == [2, 4, 6, 8], (
        "a measurement made before a firing and read after it does not count"
    )
    assert fired(When("x", above=0.2, patience=2), {2: 0.3, 4: math.nan, 6: 0.3, 8: 0.3}) == [9]


def test_a_trigger_resumes_exactly() -> None:
    measured = dict.fromkeys(range(2, 40, 2), 0.5)
    for stop in range(1, 30):
        whole, first, second = (When("x", above=0.2, patience=3, cooldown=5) for _ in range(3))
        expected = fired(whole, measured)
        head = fired(first, measured, stop)
        second.load_state(first.state())
        source = FixedReadings()
        second.readings = source
        tail, clock = [], Clock(stop, stop, stop, stop)
        if earlier := [u for u in measured if u < stop]:
            source.reading = measured[earlier[-1]], earlier[-1]
        for update in range(stop + 1, 41):
            clock = clock.stepped(1).updated()
            if update - 1 in measured:
                source.reading = measured[update - 1], update - 1
            if second(clock):
                tail.append(update)
        assert head + tail == expected, stop


def test_conditions_are_parsed_and_checked() -> None:
    when = When.parse("critic/dormant_fraction > 0.2", 3, 500)
    assert (when.metric, when.above, when.below, when.patience, when.cooldown) == (
        "critic/dormant_fraction",
        0.2,
        None,
        3,
        500,
    )
    assert str(when) == "critic/dormant_fraction > 0.2"
    assert When.parse("critic.head.layers.0/weight_norm<1e-3").below == 1e-3
    for text in ("critic/x", "critic/x >", "> 3", "critic/x = 3", "critic/x > a", "critic/x > 1 > 2", ""):
        with pytest.raises(ValueError, match="cannot read when="):
            When.parse(text)
    with pytest.raises(ValueError, match="when: give exactly one of below and above"):
        When("x")
    for bound in (math.nan, math.inf):
        with pytest.raises(ValueError, match="must be a finite number"):
            When("x", above=bound)
    with pytest.raises(ValueError, match="patience"):
        When("x", above=1, patience=0)


FIRING = (
    "redo",
    "regrama",
    "reset",
    "shrink_perturb",
    "hare_tortoise",
    "bbf",
    "plasticity_injection",
    "fresh_agent",
    "reset_optimizer",
    "reset_target",
    "matched_random",
)


def waiting(name: str, condition: str = "critic/dormant_fraction > -1", more: str = "") -> str:
    samples = ", samples=16" if name in ("redo", "regrama") else ""
    samples += ", like='reset'" if name == "matched_random" else ""
    return f"{name}(when='{condition}'{samples}{more})"


@pytest.mark.parametrize("name", FIRING)
def test_every_intervention_that_fires_can_wait_for_a_measurement(name: str) -> None:
    """It fires one update after each measurement, resumes to the last bit, and never waits for the device."""
    agent = "dqn, minatar, dueling"
    specs = (waiting(name, more=", tau=0.7" if name in ("redo", "regrama") else ""),)
    monitors = ("units(every=3, samples=16)",)

    def begin(seed: int = 0) -> Run:
        run = build_run(agent, tuple(build(specs, INTERVENTIONS)), seed=seed, monitors=monitors)
        run.agent.seed = 0
        return run

    straight, stopped, resumed = begin(), begin(), begin()
    moments = []
    part = next(iter(straight.agent.interventions))
    fire = part.fire
    part.fire = lambda run, activations: (moments.append(run.clock.updates), fire(run, activations))  # type: ignore[func-returns-value, method-assign, assignment]
    take_steps(straight, 2 * STEPS - 4)
    once = name == "plasticity_injection"
    assert moments == ([4] if once else list(range(4, straight.clock.updates + 1, 3)))
    take_steps(stopped, STEPS)
    resume(resumed, saved(stopped))
    take_steps(resumed, STEPS - 4)
    assert not differences(current_state(straight), current_state(resumed))
    guarded = begin()
    take_steps(guarded, 12)
    updates(guarded, 7, guarded=True)


@pytest.mark.parametrize("name", sorted(set(INTERVENTIONS) - set(FIRING)))
def test_interventions_that_never_fire_refuse_a_condition(name: str) -> None:
    spec = INTERVENTIONS[name].example
    inner = spec.partition("(")[2].rstrip(")")
    kept = [a for a in inner.split(", ") if a and not a.startswith(("every", "of", "at=", "start"))]
    spec = f"{name}({', '.join([*kept, 'when=' + repr('critic/dead_fraction > 0')])})"
    with pytest.raises(SpecError, match=f"{name} does not fire now and then"):
        build([spec], INTERVENTIONS)


def test_specs_with_conditions_are_checked() -> None:
    assert check(["redo(when='critic/dead_fraction > 0.2', cooldown=1e3, tau=0.1)"], INTERVENTIONS) == (
        "redo(cooldown=1000, tau=0.1, when='critic/dead_fraction > 0.2')",
    )
    for spec, message in (
        ("redo(when='critic/dead_fraction')", "cannot read when="),
        ("redo(when=3)", "expects str"),
        ("redo(when='critic/dead_fraction > 0', every=10)", "'every' and 'when' exclude each other"),
        ("redo(patience=3)", "'patience' needs when="),
        ("redo(when='critic/dead_fraction > 0', patience=0)", "patience must be at least 1 measurement"),
        ("redo(when='critic/dead_fraction > 0', wen=1)", "Did you mean 'when'|no parameter 'wen'"),
        ("plasticity_injection", "needs a moment"),
    ):
        with pytest.raises((SpecError, ValueError), match=message):
            AGENTS["dqn"](interventions=tuple(build([spec], INTERVENTIONS)))


def test_a_trigger_needs_a_measured_metric() -> None:
    def waits(condition: str) -> Any:
        return AGENTS["dqn"](interventions=tuple(build([waiting("redo", condition)], INTERVENTIONS)))

    agent = waits("critic/dormant_fraction > 0.2")
    with pytest.raises(ValueError, match=r"waits for critic/dormant_fraction > 0.2, and no monitor measures it.*watch"):
        Run(agent, RandomEnvs(agent.observation, agent.action))
    monitors = watch(agent, "none")
    assert list(monitors.parts) == ["units"], "a metric that a trigger needs is always measured"
    Run(agent, RandomEnvs(agent.observation, agent.action), monitors=monitors)
    for condition, message in (
        ("critic/dormant_fractoin > 0", "no monitor measures 'dormant_fractoin'. Did you mean 'dormant_fraction'"),
        ("critik/dormant_fraction > 0", "this dqn has no 'critik'. Did you mean 'critic'"),
        ("critic.head.layers.7/dormant_fraction > 0", "has no 'critic.head.layers.7'"),
        ("encoder/dormant_fraction > 0", "this dqn has no 'encoder'"),
    ):
        with pytest.raises(ValueError, match=message):
            watch(waits(condition))
    with pytest.raises(ValueError, match=r"redo waits for .* an external loop has no monitors"):
        network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        attach(network, torch.optim.Adam(network.parameters()), torch.zeros(1, 3), waiting("redo"))


def test_a_trigger_on_a_metric_that_never_appears_causes_a_warning() -> None:
    """A DQN has a critic but no policy whose entropy could be measured: the name is valid, and no value appears."""
    part = build(["redo(when='critic/entropy < 1')"], INTERVENTIONS)
    run = build_run("dqn", part, monitors=["values(every=1)"])
    take_steps(run, 8)  # two updates each once it learns; a measurement is read at the next update
    expected = r"redo waits for critic/entropy, but 10 measurements of values did not contain it"
    with pytest.warns(UserWarning, match=expected):
        take_steps(run, 2)
    take_steps(run, 4)  # the warning is given once
    other = build_run("dqn", build(["redo(when='critic/q_mean < -99')"], INTERVENTIONS), monitors=["values(every=1)"])
    take_steps(other, 12)


# ----------------------------------------------------------------------------------------------- the log of firings


class AddToBias(Intervention):
    """Adds one to the bias of a value head on a schedule."""

    name = "poke"

    def __init__(self, when: Any) -> None:
        super().__init__()
        self.when = when

    def fire(self, run: Any, activations: Any) -> None:
        run.agent.critic.online.advantage.linear.bias.data.add_(1.0)
        self.touched = {"critic.advantage": 3.0, "critic.head.layers.0": torch.tensor(2.0)}


def test_a_firing_is_logged_with_the_units_it_changed(tmp_path: Path) -> None:
    agent = AGENTS["dqn"](interventions=(AddToBias(Every(4)),))
    run = Run(agent, RandomEnvs(agent.observation, agent.action, 2), log=Log(tmp_path), monitors=watch(agent, "units"))
    run.train(40)
    run.log.close()
    rows = [row for row in read_metrics(tmp_path) if any(key.startswith("firings/") for key in row)]
    assert [row["updates"] for row in rows] == list(range(4, run.clock.updates + 1, 4))
    for row in rows:
        assert row["firings/poke/units/critic.advantage"] == 3.0
        assert row["firings/poke/units/critic.head.layers.0"] == 2.0
        assert row["firings/poke/value_change"] == pytest.approx(1.0, abs=1e-5)


def test_a_method_that_changes_single_units_reports_their_number(tmp_path: Path) -> None:
    spec = "redo(tau=0.7, every=2, samples=16)"
    agent = AGENTS["sac"](interventions=tuple(build([spec], INTERVENTIONS)))
    run = Run(agent, RandomEnvs(agent.observation, agent.action, 2), log=Log(tmp_path), monitors=watch(agent, "units"))
    run.train(30)
    run.log.close()
    rows = [row for row in read_metrics(tmp_path) if "firings/redo/value_change" in row]
    layers = [f"critic.members.{i}.body.layers.{j}" for i in (0, 1) for j in (0, 1)]
    assert rows and any(row[f"firings/redo/units/{layer}"] > 0 for row in rows for layer in layers)
    assert all(0 <= row[f"firings/redo/units/{layer}"] <= 12 for row in rows for layer in layers)


def test_without_monitors_values_are_not_compared() -> None:
    """Without monitors a firing has no extra cost, and the run is the same."""
    runs = [
        build_run("sac", tuple(build([INTERVENTIONS["redo"].example], INTERVENTIONS)), monitors=m)
        for m in ((), ("units",))
    ]
    for run in runs:
        take_steps(run, STEPS)
    assert not differences(state_without_monitors(runs[0]), state_without_monitors(runs[1]))

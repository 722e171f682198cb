"""Baselines: the fresh agent, the reset of optimizer state, the placebo of a reset."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from law_agents import (
    AGENTS,
    BOX,
    DISCRETE,
    VECTOR,
    build_run,
    current_state,
    differences,
    dqn,
    ppo,
    resume,
    saved,
    take_steps,
)
from no_wait import no_wait
from stand import Stand, memories, only, remember_, state_of
from torch import Generator, Tensor

from pliant.agents import Agent, Clock, Intervention
from pliant.agents.optimizers import OptimizerConfig
from pliant.agents.run import Run
from pliant.agents.views import view
from pliant.common.seeds import derive_seed
from pliant.interventions import INTERVENTIONS
from pliant.interventions.continual_backprop import ContinualBackprop
from pliant.interventions.core.spec import SpecError, build
from pliant.interventions.core.surgery import MEMORY
from pliant.interventions.fresh_agent import FreshAgent
from pliant.interventions.matched_random import pairs
from pliant.interventions.redo import ReDo


def parts(*specs: str) -> tuple[Intervention, ...]:
    return tuple(build(specs, INTERVENTIONS))


def run_of(agent: str | Callable[..., Agent], *specs: str, num_envs: int = 2, seed: int = 0) -> Run:
    if not isinstance(agent, str):
        AGENTS["of this test"] = agent
    try:
        return build_run(
            "of this test" if not isinstance(agent, str) else agent, parts(*specs), seed=seed, num_envs=num_envs
        )
    finally:
        AGENTS.pop("of this test", None)


def learnt(run: Run, steps: int) -> list[tuple[int, int, int]]:
    """The updates of some steps: for each its step, and the oldest and newest transition of its batch."""
    seen, learn = [], run.learn

    def recorded_learn(draw: Any) -> None:
        learn(draw)
        index = run.batch.index  # type: ignore[union-attr]
        seen.append((run.clock.steps, int(index.min()), int(index.max())))

    run.learn = recorded_learn  # type: ignore[method-assign]
    take_steps(run, steps)
    run.learn = learn  # type: ignore[method-assign]
    return seen


def networks(agent: Agent) -> dict[str, Any]:
    """All weights, running statistics and optimizer state."""
    modules = {n: dict(m.state_dict()) for n, m in agent.modules() if n != "interventions"}
    optimizers = {n: o.state_dict()["state"] for n, o in agent.optimizers()}
    return copy.deepcopy({"modules": modules, "optimizers": optimizers})


# ------------------------------------------------------------------------------------------------- the fresh agent


@pytest.mark.parametrize("agent", ["dqn, minatar, dueling", "sac, pixels", "droq", "ppo, continuous", "supervised"])
def test_it_equals_a_newly_built_agent_to_the_last_bit(agent: str) -> None:
    """With the random stream of a seed it equals the agent built with that seed: networks, targets, temperature,
    deviation, running statistics, optimizers with their counters."""
    run = run_of(agent, "fresh_agent(every=1000000)")
    take_steps(run, 12)
    part = only(run.agent)
    new_agent = AGENTS[agent](seed=5)
    assert differences(networks(run.agent), networks(new_agent))
    part.generator = Generator().manual_seed(derive_seed(5, "weights"))
    with no_wait():
        part.fire(run, {})
    assert not differences(networks(run.agent), networks(new_agent))
    assert part.measurements()["interventions/fresh_agent_layers"] == len(part.names)


def test_two_reinitialisations_give_different_agents() -> None:
    run = run_of("dqn", "fresh_agent(every=20)")
    take_steps(run, 10)
    first = networks(run.agent)
    only(run.agent).fire(run, {})
    assert differences(first, networks(run.agent))


def test_it_acts_at_the_task_boundary_and_learns_from_later_transitions() -> None:
    """Boundaries at 20 and 40 of two environments: the update of step 20 is the last of the old agent, and the new
    agent waits for 8 of its own transitions (learning_starts) before its first update."""
    run = run_of("dqn", "fresh_agent(every=20)")
    seen = learnt(run, 25)
    steps = [step for step, _, _ in seen]
    # The first update after a boundary ends the old agent and cancels the second update of that step.
    first = [10, 10, 12, 12, 14, 14, 16, 16, 18, 18, 20]
    assert steps == [*first, *(step + 20 for step in first), 50, 50]
    assert all(first >= 20 for step, first, _ in seen if 20 < step <= 40)
    assert all(first >= 40 for step, first, _ in seen if step > 40)
    assert min(first for step, first, _ in seen if step <= 20) < 4 and run.agent.initialised_at == 40


def test_with_kept_memory_learning_continues_without_a_break() -> None:
    run = run_of("dqn", "fresh_agent(every=20, memory=keep)")
    seen = learnt(run, 20)
    assert [step for step, _, _ in seen] == [s for s in range(10, 41, 2) for _ in range(2)]
    assert min(first for step, first, _ in seen if step > 20) < 10 and run.agent.initialised_at == 0


@pytest.mark.parametrize(
    ("options", "initialised_at"),
    [("", 20), (", exploration=keep", 0), (", memory=keep", 0), (", memory=keep, exploration=restart", 20)],
)
def test_exploration_restarts_with_an_empty_memory_or_on_request(options: str, initialised_at: int) -> None:
    run = run_of(dqn(VECTOR, epsilon_steps=4, epsilon_end=0.0), f"fresh_agent(every=20{options})")
    take_steps(run, 9)
    assert run.agent.epsilon(run.clock) == 0.0 and run.agent.initialised_at == 0  # type: ignore[attr-defined]
    take_steps(run, 1)
    assert run.agent.initialised_at == initialised_at
    for steps, epsilon in (
        ((20, 1.0), (27, 1.0), (28, 1.0), (30, 0.5), (32, 0.0)) if initialised_at else ((20, 0.0), (28, 0.0))
    ):
        assert run.agent.epsilon(Clock(steps)) == epsilon  # type: ignore[attr-defined]
    state = saved(run)
    other = run_of(dqn(VECTOR, epsilon_steps=4, epsilon_end=0.0), f"fresh_agent(every=20{options})", seed=3)
    resume(other, state)
    assert other.agent.initialised_at == initialised_at and not differences(saved(other), state)


def test_sac_takes_random_actions_again() -> None:
    run = run_of("sac", "fresh_agent(every=20)")
    take_steps(run, 10)
    obs, clock = run.obs, run.clock
    state = run.agent.generator.get_state()
    acted = run.agent.act(obs, clock)  # type: ignore[arg-type]
    run.agent.generator.set_state(state)
    noise = torch.rand((2, 2), generator=run.agent.generator) * 2 - 1
    torch.testing.assert_close(acted, run.agent.center + run.agent.scale * noise)  # type: ignore[attr-defined]


def test_a_rollout_across_a_task_boundary_is_discarded() -> None:
    """Rollouts of six steps end at 6, 12, 18 …; the boundaries at 8 and 16 fall into the second and the third."""
    run = run_of(ppo(VECTOR, BOX, normalise_observations=True, scale_rewards=True), "fresh_agent(every=8)")
    agent: Any = run.agent
    counts, observed, carried = [], [], []
    for _ in range(12):
        seen = learnt(run, 1)
        if seen:
            counts.append((seen[0][0], len(seen)))
            observed.append((int(agent.seen.count), int(agent.returns.count)))
            carried.append(bool(run.memory.carry.any()))  # type: ignore[attr-defined]
    # Two passes of two minibatches; a reinitialisation cancels all but the first.
    assert counts == [(6, 4), (12, 1), (18, 1), (24, 1)] and agent.initialised_at == 24
    # The new agent's statistics are empty; they do not include the rollout of the earlier agent.
    assert observed == [(6, 6), (0, 0), (0, 0), (0, 0)]
    # The discounted returns behind its reward scale restart too.
    assert carried == [True, False, False, False]
    run = run_of(ppo(VECTOR, BOX, normalise_observations=True), "fresh_agent(every=14)")
    assert [step for step, *_ in learnt(run, 14)] == [6] * 4 + [12] * 4 + [18] + [24] * 4


def test_ppos_learning_rate_is_annealed_from_its_initialisation() -> None:
    run = run_of(ppo(VECTOR, DISCRETE, anneal_steps=20, optimizer=OptimizerConfig(lr=1.0)), "fresh_agent(every=10)")
    rates = []
    for _ in range(12):
        if learnt(run, 1):
            rates.append(run.agent.critic.optimizer.param_groups[0]["lr"])  # type: ignore[attr-defined]
    # At 6 and 12 the first agent learns (its second rollout is cut), at 18 an agent of 6 steps, at 24 one of 12.
    torch.testing.assert_close(rates, [1 - 6 / 20, 1 - 12 / 20, 1 - 6 / 20, 1 - 12 / 20])


@pytest.mark.parametrize("agent", ["dqn, double dueling prioritised 3-step", "sac", "ppo, continuous", "dqn, nature"])
def test_it_resumes_between_a_reinitialisation_and_the_first_update(agent: str) -> None:
    spec = "fresh_agent(every=24)"
    straight, stopped = run_of(agent, spec), run_of(agent, spec)
    take_steps(straight, 26)
    take_steps(stopped, 13)
    assert stopped.agent.initialised_at == 24
    resumed = run_of(agent, spec, seed=9)
    resume(resumed, saved(stopped))
    take_steps(resumed, 13)
    assert not differences(current_state(straight), current_state(resumed))


@pytest.mark.parametrize(
    ("agent", "spec", "message"),
    [
        ("ppo", "fresh_agent(memory=keep)", "fresh_agent: memory=keep needs a replay, and ppo has none"),
        ("supervised", "fresh_agent(memory=keep)", "memory=keep needs a replay, and supervised has none"),
        (
            "dqn",
            "fresh_agent(every=8)",
            "a new agent starts every 8 steps, and no agent learns: learning begins "
            "learning_starts=8 steps after its initialisation",
        ),
        ("dqn", "fresh_agent(at=(50, 56))", "a new agent starts every 6 steps"),
        ("ppo", "fresh_agent(every=3)", "a rollout is complete rollout=3 steps after its initialisation"),
    ],
)
def test_settings_with_which_no_agent_could_learn_are_refused(agent: str, spec: str, message: str) -> None:
    with pytest.raises(ValueError, match="fresh_agent") as refusal:
        run_of(agent, spec)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_rollouts_of_all_environments_that_are_longer_than_a_task_are_refused() -> None:
    run = run_of("ppo", "fresh_agent(every=5)")
    with pytest.raises(ValueError, match="a rollout of all environments is complete 6 steps after its initialisation"):
        take_steps(run, 3)
    run_of("dqn", "fresh_agent(every=8, memory=keep)")
    run_of("dqn", "fresh_agent(every=8, of=updates)")


def test_later_methods_still_get_batches_after_a_reinitialisation() -> None:
    """Later methods in the same update draw batches, and monitors did so before."""
    for agent in ("dqn", "sac", "ppo, continuous", "supervised"):
        specs = "fresh_agent(every=2, of=updates)", "redo(every=1, samples=8)", "regrama(every=1, samples=8)"
        run = run_of(agent, *specs)
        take_steps(run, 12)
        assert run.agent.initialised_at > 0


def test_other_methods_lose_their_state_about_the_earlier_agent() -> None:
    specs = (
        "continual_backprop(rho=0.05, maturity=2)",
        "self_normalized_reset(percentile=0.5, renew=2, longest=2, eps=0.6)",
        "adaptive_replay_ratio(low=1, high=2, every=3, of=updates, delta=0.5)",
        "l2_init(weight=0.1)",
        "shrink_perturb(every=3, of=updates, noise=initial, layers=critic)",
    )
    run = run_of("dqn", *specs, "fresh_agent(every=1000)")
    cbp, snr, arr, l2, shrunk, fresh = run.agent.interventions
    initial = {i: {k: v.clone() for k, v in part.named_buffers()} for i, part in enumerate((cbp, snr, arr))}
    weights = {i: {k: v.clone() for k, v in part.named_buffers()} for i, part in enumerate((l2, shrunk))}
    take_steps(run, 12)
    assert all(differences(initial[i], dict(part.named_buffers())) for i, part in enumerate((cbp, snr, arr)))
    fresh.fire(run, {})
    for i, part in enumerate((cbp, snr, arr)):
        assert not differences(initial[i], dict(part.named_buffers())), part.name
    assert arr.view[0] == 0
    weight = run.agent.components["critic"].online.head.layers[0].linear.weight  # type: ignore[union-attr, index]
    for i, part in enumerate((l2, shrunk)):
        now = dict(part.named_buffers())
        assert len(differences(weights[i], now)) == len(now), part.name
        assert any(v.shape == weight.shape and torch.equal(v, weight) for v in now.values()), part.name


# ---------------------------------------------------------------------------------------- resets of optimizer state


def agent_with_old_optimizer_state(agent: str, *specs: str) -> tuple[Agent, Stand]:
    made = AGENTS[agent](interventions=parts(*specs))
    remember_(made)
    return made, Stand(made)


@pytest.mark.parametrize(
    ("agent", "on", "reset"),
    [
        ("sac", "all", ("critic", "actor", "temperature")),
        ("sac", "actor", ("actor",)),
        ("sac", "temperature", ("temperature",)),
        ("sac", "(critic, temperature)", ("critic", "temperature")),
        ("ppo, continuous", "actor", ("actor",)),
        ("ppo, continuous", "all", ("critic", "actor")),
        ("supervised", "critic", ("critic",)),
        ("sac, pixels", "encoder", ("critic.encoder",)),
    ],
)
def test_named_optimizer_state_is_reset_and_weights_stay(agent: str, on: str, reset: tuple[str, ...]) -> None:
    made, stand = agent_with_old_optimizer_state(agent, f"reset_optimizer(every=1, on={on})")
    before = {n: p.clone() for _, m in made.modules() for n, p in m.named_parameters()}
    stand.tick()
    with no_wait():
        only(made).after_update(stand, {})
    assert not differences(before, {n: p for _, m in made.modules() for n, p in m.named_parameters()})
    count = 0
    for name, component in made.components.items():
        for key, p in component.online.named_parameters():
            is_reset = f"{name}.{key}".startswith(reset)
            count += is_reset
            assert state_of(made, p)["step"] == (0.0 if is_reset else 1e6), f"{name}.{key}"
            for memory in memories(made, p).values():
                assert (memory == (0.0 if is_reset else 1.0)).all(), f"{name}.{key}"
    assert only(made).measurements() == {"interventions/reset_optimizer_tensors": count}


STALE = [3.162278, 4.249613, 4.950216]  # (1 - 0.9^k) / sqrt(1 - 0.999^k)


def first_steps(agent: Agent, parameter: Tensor, steps: int = 3) -> Tensor:
    """The size of a parameter's next steps along a constant gradient, in learning rates [steps, *shape]."""
    moved = []
    optimizer: Any = next(o for _, o in agent.optimizers() if parameter in o.state)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        before = parameter.detach().clone()
        optimizer.step()
        moved.append((before - parameter.detach()) / optimizer.param_groups[0]["lr"])
    return torch.stack(moved)


@pytest.mark.parametrize(("keep_step", "steps"), [(False, [1.0, 1.0, 1.0]), (True, STALE)])
@pytest.mark.parametrize("beside", [(), ("redo(every=1000)",)])
def test_zeroing_only_the_moments_leaves_a_stale_step_counter(
    keep_step: bool, steps: list[float], beside: tuple[str, ...]
) -> None:
    """The same holds for step counts per weight, because these are counters too."""
    agent = AGENTS["dqn"](interventions=parts(f"reset_optimizer(every=1, keep_step={keep_step})", *beside))
    remember_(agent)
    Stand(agent).tick().act()
    weight = agent.components["critic"].online.head.layers[0].linear.weight  # type: ignore[union-attr, index]
    steps_taken = first_steps(agent, weight)
    torch.testing.assert_close(
        steps_taken, torch.tensor(steps)[:, None, None].expand_as(steps_taken), rtol=2e-3, atol=0
    )
    assert state_of(agent, weight)["step"] == (1e6 + 3 if keep_step else 3)


def test_optimizers_are_reset_at_updates_of_the_target() -> None:
    run = run_of("dqn", "reset_optimizer(syncs=True)")  # target_period=3
    fired, part = [], only(run.agent)
    fire = part.fire
    part.fire = lambda r, a: (fired.append(r.clock.updates), fire(r, a))
    take_steps(run, 9)
    assert fired == [3, 6, 9]
    for agent, message in (("ppo", "ppo has none"), ("sac", "sac moves at every update"), ("supervised", "has none")):
        with pytest.raises(ValueError, match=message):
            run_of(agent, "reset_optimizer(syncs=True)")
    with pytest.raises(ValueError, match="this dqn has no 'actor'"):
        run_of("dqn", "reset_optimizer(on=actor)")
    with pytest.raises(SpecError, match="'syncs' and 'when' exclude each other"):
        parts("reset_optimizer(syncs=True, when='critic/dead_fraction > 0')")


# ----------------------------------------------------------------------- step counts, per weight and per tensor


RECYCLERS = {
    "redo": "redo(tau=0, every=1, samples=0{})",
    "regrama": "regrama(tau=0, every=1, mode=weight_grad{})",
    "continual_backprop": "continual_backprop(rho=0.5, maturity=0{})",
    "self_normalized_reset": "self_normalized_reset(longest=1{})",
}


@pytest.mark.parametrize(("step_counts", "steps"), [("per_weight", [1.0, 1.0, 1.0]), ("per_tensor", STALE)])
@pytest.mark.parametrize("method", RECYCLERS)
def test_the_first_steps_of_recycled_weights_depend_on_the_step_counts(
    method: str, step_counts: str, steps: list[float]
) -> None:
    """1, 1, 1 learning rates with a step count per weight; 3.16, 4.25, 4.95 if the moments are zeroed under the
    counter of long training. Neighbours continue as before in both."""
    agent = AGENTS["dqn"](interventions=parts(RECYCLERS[method].format(f", step_counts={step_counts}")))
    layer = agent.components["critic"].online.head.layers[0]  # type: ignore[union-attr, index]
    with torch.no_grad():  # unit 3 is dead, and the only one
        layer.linear.weight.zero_()
        layer.linear.bias.fill_(1.0)
        layer.linear.bias[3] = -1.0
    remember_(agent)
    for p in agent.components["critic"].online.parameters():
        p.grad = torch.ones_like(p)
    layer.linear.weight.grad[3] = 0.0
    stand, part = Stand(agent), only(agent)
    before = layer.linear.weight.detach().clone()
    if method == "continual_backprop":
        part.most = dict.fromkeys(part.most, 1)
    stand.tick().act()
    (row,) = (layer.linear.weight != before).any(1).nonzero().flatten().tolist()
    assert row == 3
    moved = first_steps(agent, layer.linear.weight)
    others = [i for i in range(layer.units) if i != 3]
    torch.testing.assert_close(
        moved[:, 3], torch.tensor(steps)[:, None].expand(3, moved.shape[2]), rtol=2e-3, atol=2e-3
    )
    torch.testing.assert_close(moved[:, others], torch.ones(3, len(others), moved.shape[2]), rtol=2e-3, atol=2e-3)
    assert ("filled" in state_of(agent, layer.linear.weight)) == (step_counts == "per_weight")


@pytest.mark.parametrize("second", ["regrama", "matched_random(like=regrama)"])
def test_two_methods_must_agree_on_the_step_counts(second: str) -> None:
    for first in ("redo(step_counts=per_tensor)", "redo(step_counts=zeroed)"):
        for specs in ((first, second), (second, first)):
            with pytest.raises(
                ValueError, match=r"exclude each other: step_counts=(per_weight|per_tensor|zeroed) and step_counts="
            ) as refusal:
                run_of("sac", *specs)
            assert "redo" in str(refusal.value) and "regrama" in str(refusal.value)
    run_of("sac", "redo(step_counts=per_tensor)", "regrama(step_counts=per_tensor)")
    run_of("sac", "redo(step_counts=per_tensor, on=critic)", "regrama(on=actor)")


# -------------------------------------------------------------------------------------------------- the placebo


LIKE = {
    "reset": "reset(every=1)",
    "redo": "redo(tau=0.7, every=1, samples=0)",
    "shrink_perturb": "shrink_perturb(every=1)",
    "continual_backprop": "continual_backprop(rho=0.3, maturity=0)",
    "hare_tortoise": "hare_tortoise(every=1)",
    "fresh_agent": "fresh_agent(every=1, of=updates)",
}


def changes(agent: Agent, before: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    return {p: p.detach() - old for p, old in before.items()}


@pytest.mark.parametrize("like", LIKE)
@pytest.mark.parametrize("agent", ["sac, pixels", "ppo, continuous"])
def test_the_placebo_moves_every_tensor_equally_far_in_another_direction(agent: str, like: str) -> None:
    if agent.startswith("ppo") and like == "hare_tortoise":
        return
    real, placebo = (run_of(agent, spec) for spec in (LIKE[like], f'matched_random("{LIKE[like]}")'))
    inner = only(placebo.agent).inner
    treated = []
    for run, part in ((real, only(real.agent)), (placebo, inner)):
        run.agent.interventions.after_update = lambda r, a: None  # type: ignore[method-assign]
        take_steps(run, 6)
        del run.agent.interventions.after_update
        part.generator = Generator().manual_seed(1)
        before = {p: p.detach().clone() for pair in pairs(run.agent) for p in pair}
        run.clock = run.clock.stepped(1).updated()
        with no_wait():
            batch = run.memory.sample(8, generator=Generator())
            run.agent.interventions.after_update(run, view(run.agent).activations(batch))
        treated.append(changes(run.agent, before))
    assert not differences(networks(real.agent)["optimizers"], networks(placebo.agent)["optimizers"])
    moved = 0
    for mine, theirs in zip(treated[1].values(), treated[0].values(), strict=True):
        torch.testing.assert_close(mine.norm(), theirs.norm(), rtol=1e-4, atol=1e-6)
        assert torch.equal(mine, torch.zeros_like(mine)) == torch.equal(theirs, torch.zeros_like(theirs))
        if theirs.any() and theirs.numel() > 30:
            moved += 1
            assert torch.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) < 0.6
    assert moved > 1
    total = torch.stack([c.norm() for c in treated[0].values()]).norm()
    norm = only(placebo.agent).measurements()["interventions/matched_random_norm"]
    torch.testing.assert_close(norm, total, rtol=1e-4, atol=0)


def test_the_placebo_moves_a_target_with_its_network() -> None:
    """A reset copies the new network into the target; with the placebo the two stay equally close."""
    run = run_of("sac", "matched_random('reset(every=1)')")
    take_steps(run, 3)
    before = {p: p.detach().clone() for pair in pairs(run.agent) for p in pair}
    only(run.agent).fire(run, {})
    change = changes(run.agent, before)
    compared = 0
    for pair in pairs(run.agent):
        if len(pair) == 2 and pair[0].numel() > 1:
            compared += 1
            a, b = (change[p].flatten() for p in pair)
            assert torch.cosine_similarity(a, b, dim=0) > 0.999
    assert compared > 5


@pytest.mark.parametrize("moments", ["like", "keep"])
def test_the_placebo_resets_optimizer_state_like_its_method_or_keeps_it(moments: str) -> None:
    made, stand = agent_with_old_optimizer_state(
        "sac", f"matched_random('redo(tau=0.7, every=1, samples=0)', moments={moments})"
    )
    stand.tick().act()
    values = torch.cat(
        [v.flatten() for _, o in made.optimizers() for s in o.state.values() for k, v in s.items() if k in MEMORY]
    )
    assert bool((values == 0).any()) == (moments == "like") and ((values == 0) | (values == 1)).all()


def test_the_placebo_of_a_method_with_state_resumes() -> None:
    """The buffers, random stream and trigger of the inner intervention are in the checkpoint."""
    for like in ("continual_backprop(rho=0.05, maturity=2)", "bbf(every=3, anneal=4)"):
        spec = f"matched_random('{like}')"
        straight, stopped, resumed = (run_of("sac, pixels", spec, seed=s) for s in (0, 0, 7))
        take_steps(straight, 12)
        take_steps(stopped, 7)
        resume(resumed, saved(stopped))
        take_steps(resumed, 5)
        assert not differences(current_state(straight), current_state(resumed))
    assert isinstance(only(run_of("sac", "matched_random(continual_backprop)").agent).inner, ContinualBackprop)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("matched_random(layer_norm)", "layer_norm resets no units and redraws no layers"),
        ("matched_random('plasticity_injection(at=3)')", "plasticity_injection resets no units"),
        ("matched_random('replay_ratio(2, reset_every=3)')", "replay_ratio resets no units"),
        ("matched_random('matched_random(redo)')", "matched_random resets no units"),
        ("matched_random(reset_optimizer)", "use one of: bbf, continual_backprop, fresh_agent, hare_tortoise"),
        ("matched_random(rdo)", "unknown intervention 'rdo'. Did you mean 'redo'?"),
        ("matched_random('redo(tau=-1)')", "tau must be at least 0, not -1"),
        ("matched_random", "matched_random needs a value for 'like'"),
    ],
)
def test_a_method_that_changes_no_weights_has_no_placebo(spec: str, message: str) -> None:
    with pytest.raises(SpecError) as refusal:
        parts(spec)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
    assert isinstance(parts("matched_random(redo)")[0].inner, ReDo)
    with pytest.raises(ValueError, match="plasticity_injection"):
        parts("plasticity_injection(at=3)", "matched_random(reset)")


# ------------------------------------------------------------------------------------------------ PPO's deviation


@pytest.mark.parametrize(
    ("spec", "fresh"),
    [
        ("reset(every=1)", True),
        ("reset(every=1, layers=actor)", True),
        ("reset(every=1, layers=critic)", False),
        ("reset(every=1, log_std=keep)", False),
        ("reset(every=1, layers=last)", False),
        ("reset(every=1, moments=reset, layers=actor)", True),
    ],
)
def test_ppos_deviation_is_reset_with_its_policy(spec: str, fresh: bool) -> None:
    made = ppo(VECTOR, BOX, initial_log_std=-0.7)(interventions=parts(spec))
    log_std: Any = made.components["actor"].online.log_std
    torch.testing.assert_close(log_std.detach(), torch.full((2,), -0.7))
    with torch.no_grad():
        log_std.fill_(1.5)
    remember_(made)
    stand = Stand(made).tick()
    with no_wait():
        only(made).after_update(stand, {})
    torch.testing.assert_close(log_std.detach(), torch.full((2,), -0.7 if fresh else 1.5))
    if fresh:
        assert state_of(made, log_std)["step"] == 0 and not any(m.any() for m in memories(made, log_std).values())


# ------------------------------------------------------------------------------- metrics that show a collapse


def test_the_log_shows_exploration_and_values_separately() -> None:
    """Temperature and entropy of SAC, epsilon of DQN, entropy of PPO, and the size of values."""
    metrics, charts = {}, {}
    for name in ("dqn", "sac", "ppo, continuous"):
        run = run_of(name)
        learn = run.agent.update

        def recorded_update(batch: Any, clock: Clock, name: str = name, learn: Any = learn) -> Any:
            update = learn(batch, clock)
            metrics[name] = update.metrics
            return update

        run.agent.update = recorded_update  # type: ignore[method-assign]
        take_steps(run, 9)
        run.flush()
        charts[name] = run.log.latest
    assert "losses/q_values" in metrics["dqn"]
    assert {"losses/alpha", "losses/entropy", "losses/q_magnitude", "losses/q_values"} <= set(metrics["sac"])
    assert "losses/entropy" in metrics["ppo, continuous"]
    assert charts["dqn"]["charts/epsilon"] == 1.0 - (18 - 8) / 7000 * 0.96
    assert charts["ppo, continuous"]["charts/learning_rate"] == 3e-4
    fixed = AGENTS["sac"](interventions=())
    assert "losses/alpha" in fixed.update(Stand(fixed).memory.batch, fixed.plan(Clock(9, 1))).metrics


def test_magnitudes_are_means_of_absolute_values() -> None:
    agent: Any = AGENTS["sac"]()
    batch = Stand(agent).memory.batch
    values = view(agent).values(batch)
    metrics = agent.update(batch, agent.plan(Clock(9, 1))).metrics
    torch.testing.assert_close(metrics["losses/q_magnitude"], values.abs().mean().detach())


def test_a_fresh_agent_edits_weights_and_reserves_nothing() -> None:
    assert FreshAgent().edits and not FreshAgent().reserves


@pytest.mark.parametrize("to", ["online", "drawn"])
def test_reset_target_sets_only_the_target(to: str) -> None:
    run = run_of("sac", f"reset_target(to={to}, every=1000)")
    part = next(iter(run.agent.interventions))
    critic = run.agent.components["critic"]
    with torch.no_grad():
        for p in critic.target.parameters():
            p.add_(1.0)
    online = [p.clone() for p in critic.online.parameters()]
    away = [p.clone() for p in critic.target.parameters()]
    part.fire(run, {})
    assert all(torch.equal(p, old) for p, old in zip(critic.online.parameters(), online, strict=True))
    pairs = list(zip(critic.target.parameters(), critic.online.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in pairs) == (to == "online")
    assert not any(torch.equal(p, old) for p, old in zip(critic.target.parameters(), away, strict=True))
    assert part.touched and part.measurements()
    with pytest.raises(ValueError, match="reset_target: this ppo has no target network"):
        run_of("ppo", "reset_target")

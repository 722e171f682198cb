"""Methods that redraw whole layers, to the last bit and against numbers computed by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from law_agents import build_run, differences
from no_wait import no_wait
from stand import Stand, memories, only, parameters, remember_, state_of
from test_agents import BOX, DQN_SMALL, SAC_SMALL, SMALL_PIXELS, batch_for
from torch import Generator, Tensor, nn

from pliant.agents import DQN, SAC, Agent, Clock, Intervention
from pliant.agents.clock import Sampling
from pliant.agents.networks import Layer, NetworkConfig
from pliant.agents.optimizers import OptimizerConfig
from pliant.common.seeds import derive_seed
from pliant.common.spaces import ObservationSpec
from pliant.interventions.bbf import BBF
from pliant.interventions.core.parts import survey
from pliant.interventions.hare_tortoise import HareTortoise
from pliant.interventions.plasticity_injection import PlasticityInjection
from pliant.interventions.replay_ratio import ReplayRatio
from pliant.interventions.reset import Reset
from pliant.interventions.shrink_perturb import ShrinkPerturb

MINATAR = ObservationSpec((4, 10, 10), torch.uint8, 1.0)
Make = Callable[..., Agent]


def make_dqn(observation: Any = (5,), network: Mapping[str, Any] | None = None, **changes: Any) -> Make:
    config = replace(DQN_SMALL, network=NetworkConfig(**{"hidden": (12, 10)} | dict(network or {})), **changes)
    return lambda *parts, **k: DQN(observation, 3, config, interventions=parts, **k)


def make_sac(observation: Any = (5,), network: Mapping[str, Any] | None = None, **changes: Any) -> Make:
    config = replace(SAC_SMALL, network=NetworkConfig(**{"hidden": (12, 10)} | dict(network or {})), **changes)
    return lambda *parts, **k: SAC(observation, BOX, config, interventions=parts, **k)


AGENTS: dict[str, Make] = {
    "dqn": make_dqn(),
    "dqn, dueling, layer norm": make_dqn(network={"norm": "layer_norm"}, dueling=True),
    "dqn, minatar": make_dqn(MINATAR),
    "dqn, impala, crelu, orthogonal": make_dqn(
        SMALL_PIXELS, {"body": "impala", "width": 0.25, "activation": "crelu", "init": "orthogonal"}
    ),
    "sac": make_sac(),
    "droq": make_sac(network={"norm": "layer_norm"}, dropout=0.1),
    "sac, pixels": make_sac(SMALL_PIXELS, {"body": "drq", "width": 0.25}),
}
PIXELS = AGENTS["sac, pixels"]
each = pytest.mark.parametrize("name", AGENTS)


def trained(make: Make, *parts: Intervention, updates: int = 3, **options: Any) -> tuple[Agent, Stand]:
    """An agent after some updates, so that its optimizers and targets have state."""
    agent = make(*parts, **options)
    stand = Stand(agent)
    for k in range(updates):
        stand.memory.batch = batch_for(agent, seed=k)
        agent.update(stand.memory.batch, agent.plan(stand.tick().clock))
    return agent, stand


def act_once(stand: Stand) -> None:
    """The next update, at which the method acts; it must not wait for the device."""
    stand.tick()
    with no_wait():
        only(stand.agent).after_update(stand, {})


def modules(agent: Agent) -> dict[str, dict[str, Tensor]]:
    """All weights of all networks, copied."""
    return {
        name: {k: v.clone() for k, v in module.state_dict().items() if isinstance(v, Tensor)}
        for name, module in agent.modules()
        if name != "interventions"
    }


def memory(agent: Agent) -> dict[str, Any]:
    return {name: copy.deepcopy(optimizer.state_dict()["state"]) for name, optimizer in agent.optimizers()}


def same(first: Any, second: Any) -> bool:
    return not differences(first, second)


# ---------------------------------------------------------------------------------------------------------- resets


@each
def test_a_full_reset_equals_a_new_agent_of_the_same_seed(name: str) -> None:
    """Networks, targets, temperature and optimizer state are equal to the last bit."""
    agent, stand = trained(AGENTS[name], Reset(1, "updates"))
    other = AGENTS[name](seed=7)
    assert not same(modules(agent), modules(other)) and not same(memory(agent), memory(other))
    only(agent).generator.manual_seed(derive_seed(7, "weights"))
    act_once(stand)
    assert same(modules(agent), modules(other))
    assert same(memory(agent), memory(other))


@each
def test_reset_layers_continue_to_learn(name: str) -> None:
    """Every parameter still has its optimizer, and the next step changes every tensor."""
    agent, stand = trained(AGENTS[name], Reset(1, "updates"))
    act_once(stand)
    held = {id(p) for _, o in agent.optimizers() for g in o.param_groups for p in g["params"]}
    assert held == {id(p) for _, m in agent.modules() for p in m.parameters() if p.requires_grad}
    before = modules(agent)
    agent.update(batch_for(agent, 32, seed=9), agent.plan(stand.tick().clock))
    now = modules(agent)
    for module in (k for k in now if ".target" not in k):
        still = [key for key in now[module] if torch.equal(now[module][key], before[module][key])]
        assert not still, (module, still)


def test_two_resets_draw_different_weights_from_a_separate_generator() -> None:
    agent, stand = trained(AGENTS["sac"], Reset(1, "updates"))
    streams = agent.generator.get_state(), torch.get_rng_state()
    act_once(stand)
    first = modules(agent)
    act_once(stand)
    second = modules(agent)
    for module in ("critic.online", "actor.online"):
        assert all(not torch.equal(first[module][k], second[module][k]) for k in first[module])
    assert torch.equal(agent.generator.get_state(), streams[0]) and torch.equal(torch.get_rng_state(), streams[1])


def test_the_replay_is_unchanged() -> None:
    run = build_run("sac", [Reset(1, "updates")])
    for _ in range(12):
        run.step()

    def content() -> Any:
        chunks = {name: run.memory.chunk(name) for name, _ in run.memory.chunks()}
        return copy.deepcopy((run.memory.state_dict(), chunks))

    before, identity, weights = content(), id(run.memory), modules(run.agent)
    run.clock = run.clock.stepped(1).updated()
    run.agent.interventions.after_update(run, {})
    assert not same(modules(run.agent), weights)
    assert same(content(), before) and id(run.memory) == identity


def layers_of(agent: Agent, *parts: str) -> set[str]:
    return {n for n in survey(agent).layers if any(n.startswith(part) for part in parts)}


def state_by_layer(agent: Agent, targets: bool = False) -> dict[str, dict[str, Tensor]]:
    parts = survey(agent)
    return {name: parameters(layer) for name, layer in (parts.copies if targets else parts.layers).items()}


@pytest.mark.parametrize(
    ("part", "kept"),
    [
        ("all", []),
        ("critic", ["actor"]),
        ("actor", ["critic"]),
        ("head", ["critic.encoder"]),
        ("encoder", ["critic.projection", "critic.members", "actor"]),
        ("critic.members.0.*", ["critic.encoder", "critic.projection", "critic.members.1", "actor"]),
    ],
)
def test_only_the_named_part_is_reset(part: str, kept: list[str]) -> None:
    agent, stand = trained(PIXELS, Reset(1, "updates", layers=(part,), target="none"))
    before, targets = state_by_layer(agent), state_by_layer(agent, targets=True)
    act_once(stand)
    now, stays = state_by_layer(agent), layers_of(agent, *kept) if kept else set()
    for name in now:
        assert torch.equal(now[name]["linear.weight"], before[name]["linear.weight"]) == (name in stays), name
    assert same(state_by_layer(agent, targets=True), targets)
    count = float(len(set(now) - stays))
    assert only(agent).measurements() == {"interventions/reset_layers": count} and not only(agent).measurements()


def test_the_last_layers_are_the_output_layers() -> None:
    agent, stand = trained(AGENTS["dqn, impala, crelu, orthogonal"], Reset(1, "updates", layers=("last",)))
    before = state_by_layer(agent)
    act_once(stand)
    assert [n for n, v in state_by_layer(agent).items() if not same(v, before[n])] == ["critic.advantage"]


def test_each_network_keeps_its_encoder_and_can_keep_the_optimizer_state() -> None:
    """DrQ: heads are reset, and the target keeps its own, slower encoder."""
    for moments in ("all", "reset"):
        agent, stand = trained(PIXELS, Reset(1, "updates", layers=("head",), moments=moments))  # type: ignore[arg-type]
        remember_(agent)
        critic = agent.components["critic"]
        kept = parameters(critic.online.encoder), parameters(critic.target.encoder)
        assert not same(*kept)
        act_once(stand)
        assert same(parameters(critic.online.encoder), kept[0])
        assert same(parameters(critic.target.encoder), kept[1])
        assert same(parameters(critic.target.members), parameters(critic.online.members))
        for p in critic.online.encoder.parameters():
            expected = 0.0 if moments == "all" else 1.0
            assert all((m == expected).all() for m in memories(agent, p).values())
            assert state_of(agent, p)["step"] == (0.0 if moments == "all" else 1e6)
        for module in (critic.online.members, critic.online.projection, agent.components["actor"].online):
            assert not any(m.any() for p in module.parameters() for m in state_of(agent, p).values())


@pytest.mark.parametrize("target", ["copy", "same", "own", "none"])
@pytest.mark.parametrize("name", ["dqn, dueling, layer norm", "sac, pixels"])
def test_a_reset_treats_the_target_network_as_configured(target: Any, name: str) -> None:
    agent, stand = trained(AGENTS[name], Reset(1, "updates", target=target))
    before = state_by_layer(agent, targets=True)
    act_once(stand)
    online, targets = state_by_layer(agent), state_by_layer(agent, targets=True)
    assert targets.keys() == layers_of(agent, "critic")
    for key, target_layer in targets.items():
        if target in ("copy", "same"):
            assert same(target_layer, online[key])
        elif target == "none":
            assert same(target_layer, before[key])
        else:
            weight, bound = target_layer["linear.weight"], online[key]["linear.weight"][0].numel() ** -0.5
            assert not torch.equal(weight, online[key]["linear.weight"])
            assert not torch.equal(weight, before[key]["linear.weight"]) and weight.abs().max() <= bound


def test_norms_are_reset_or_kept() -> None:
    for norms in ("fresh", "keep"):
        agent, stand = trained(AGENTS["droq"], Reset(1, "updates", norms=norms))  # type: ignore[arg-type]
        before = {n: v for n, v in state_by_layer(agent).items() if "norm.weight" in v}
        assert before
        act_once(stand)
        for name, layer in state_by_layer(agent).items():
            if name in before:
                assert torch.equal(layer["norm.weight"], before[name]["norm.weight"]) == (norms == "keep")
                assert (layer["norm.weight"] == 1).all() == (norms == "fresh")
                assert (layer["norm.bias"] == 0).all() == (norms == "fresh")


@pytest.mark.parametrize(
    ("layers", "temperature", "fresh"),
    [
        (("all",), "fresh", True),
        (("actor",), "fresh", True),
        (("head",), "fresh", True),
        (("all",), "keep", False),
        (("critic",), "fresh", False),
        (("encoder",), "fresh", False),
    ],
)
def test_the_temperature_is_reset_with_the_policy(layers: tuple[str, ...], temperature: Any, fresh: bool) -> None:
    make = make_sac(SMALL_PIXELS, {"body": "drq", "width": 0.25}, initial_temperature=0.3)
    agent, stand = trained(make, Reset(1, "updates", layers=layers, temperature=temperature))
    log_alpha = agent.components["temperature"].online.log_alpha
    before, moment = log_alpha.item(), state_of(agent, log_alpha)["exp_avg"].item()
    assert before != pytest.approx(math.log(0.3), abs=1e-6) and moment != 0
    act_once(stand)
    assert log_alpha.item() == pytest.approx(math.log(0.3) if fresh else before, abs=1e-7)
    assert state_of(agent, log_alpha)["exp_avg"].item() == (0.0 if fresh else moment)
    assert (state_of(agent, log_alpha)["step"].item() == 0.0) == fresh


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: Reset(layers=()), "layers= is empty"),
        (lambda: ShrinkPerturb(layers=()), "layers= is empty"),
        (lambda: Reset(layers=("encoder",)), "reset: this dqn has no 'encoder'"),
        (lambda: Reset(layers=("head", "critc")), r"this dqn has no 'critc'\. Did you mean 'critic'\?"),
        (lambda: ShrinkPerturb(layers=("actor",)), "shrink_perturb: this dqn has no 'actor'"),
        (lambda: ShrinkPerturb(shrink=1.5), "shrink must be between 0 and 1, not 1.5"),
        (lambda: Reset(every=0), "every must be at least 1, not 0"),
        (lambda: BBF(), "bbf shrinks the encoder, and this dqn has none"),
        (lambda: ReplayRatio(16, reset_every=9, encoder_shrink=0.8), "replay_ratio shrinks the encoder.*has none"),
        (lambda: HareTortoise(mu=1.0), "mu must be at least 0 and below 1, not 1"),
        (lambda: PlasticityInjection(()), "needs a moment"),
    ],
)
def test_methods_without_anything_to_change_are_refused(part: Callable[[], Intervention], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AGENTS["dqn"](part())


def test_given_moments_and_bounds_set_the_schedule() -> None:
    for part, expected in ((Reset(of="updates", at=(2, 5)), [2, 5]), (Reset(3, "updates", start=4, stop=9), [6, 9])):
        agent, stand = trained(AGENTS["dqn"], part, updates=0)
        fired = []
        for update in range(1, 13):
            act_once(stand)
            fired += [update] if only(agent).measurements() else []
        assert fired == expected


# ----------------------------------------------------------------------------------------------- shrink and perturb


@each
def test_shrinking_by_nothing_and_adding_nothing_changes_nothing(name: str) -> None:
    agent, stand = trained(AGENTS[name], ShrinkPerturb(1.0, 0.0, every=1, of="updates", moments="keep", target="own"))
    before = modules(agent), memory(agent)
    act_once(stand)
    assert same((modules(agent), memory(agent)), before)


@pytest.mark.parametrize("name", [n for n in AGENTS if "norm" not in n and n not in ("droq", "sac, pixels")])
def test_keeping_nothing_and_adding_a_full_draw_gives_a_fresh_network(name: str) -> None:
    agent, stand = trained(AGENTS[name], ShrinkPerturb(0.0, 1.0, every=1, of="updates", moments="all", target="same"))
    only(agent).generator.manual_seed(derive_seed(7, "weights"))
    act_once(stand)
    fresh = AGENTS[name](seed=7)
    now, new = modules(agent), modules(fresh)
    for module in (m for m in now if not m.startswith("temperature")):
        assert same(now[module], new[module]), module


def layer(norm: str = "none", seed: int = 0) -> Layer:
    return Layer(nn.utils.skip_init(nn.Linear, 200, 250), Generator().manual_seed(seed), norm=norm)


@pytest.mark.parametrize(
    ("shrink", "perturb", "ratio"),
    [(0.9, 0.1, 0.0526316), (0.5, 0.5, 1 / 3), (0.8, 0.6, 1.0)],
    ids=["s=.1 k=.1", "half and half", "k^2 = 1 - (1 - s)^2"],
)
def test_repeated_shrinking_has_its_stationary_variance(shrink: float, perturb: float, ratio: float) -> None:
    """It is k^2 / (1 - (1 - s)^2) of the initial variance, within three standard errors."""
    part = ShrinkPerturb(shrink, perturb, every=1, of="updates", moments="keep", layers=("critic.head.layers.0",))
    agent = make_dqn((200,), {"hidden": (250,)})(part)
    stand = Stand(agent)
    weight = agent.critic.online.head.layers[0].linear.weight  # type: ignore[attr-defined]
    initial_variance = (1 / 200) / 3  # of a uniform distribution within 1 / sqrt(200)
    for _ in range(80):
        act_once(stand)
    n = weight.numel()
    assert weight.mean().abs().item() < 3 * math.sqrt(ratio * initial_variance / n)
    assert weight.square().mean().item() / initial_variance == pytest.approx(ratio, rel=3 * math.sqrt(2 / n))


@pytest.mark.parametrize("noise", ["fresh", "gaussian"])
def test_every_event_has_its_own_noise_from_a_separate_stream(noise: Any) -> None:
    agent, stand = trained(AGENTS["sac"], ShrinkPerturb(0.0, 1.0, noise=noise, every=1, of="updates"))
    streams = agent.generator.get_state(), torch.get_rng_state()
    act_once(stand)
    first = modules(agent)["critic.online"]
    act_once(stand)
    second = modules(agent)["critic.online"]
    assert all(not torch.equal(first[k], second[k]) for k in first)
    # Layers of one shape, such as those of twin critics, have separate draws too.
    assert not torch.equal(first["members.0.output.linear.weight"], first["members.1.output.linear.weight"])
    assert torch.equal(agent.generator.get_state(), streams[0]) and torch.equal(torch.get_rng_state(), streams[1])


def test_gaussian_noise_has_the_given_deviation_and_changes_no_norms() -> None:
    part = ShrinkPerturb(0.7, 0.02, noise="gaussian", every=1, of="updates")
    agent = make_dqn((200,), {"hidden": (250,), "norm": "layer_norm"})(part)
    before = parameters(agent.components["critic"].online)
    act_once(Stand(agent))
    noise = {k: p.detach() - 0.7 * before[k] for k, p in agent.components["critic"].online.named_parameters()}
    weights = noise["head.layers.0.linear.weight"]
    assert weights.std().item() == pytest.approx(0.02, rel=3 / math.sqrt(2 * weights.numel()))
    assert noise["head.layers.0.linear.bias"].std().item() == pytest.approx(0.02, rel=3 / math.sqrt(500))
    for key in ("weight", "bias"):
        norm = agent.components["critic"].online.head.layers[0].norm
        assert torch.equal(getattr(norm, key).detach(), before[f"head.layers.0.norm.{key}"])


def test_initial_noise_is_the_initial_weights_and_does_not_change_a_new_network() -> None:
    agent = AGENTS["sac"](ShrinkPerturb(0.75, 0.25, noise="initial", every=1, of="updates"))
    initial = modules(agent)["critic.online"]
    stand = Stand(agent)
    act_once(stand)
    for key, value in modules(agent)["critic.online"].items():
        torch.testing.assert_close(value, initial[key])
    for k in range(3):
        agent.update(batch_for(agent, seed=k), agent.plan(stand.tick().clock))
    trained_weights = modules(agent)["critic.online"]
    act_once(stand)
    for key, value in modules(agent)["critic.online"].items():
        torch.testing.assert_close(value, 0.75 * trained_weights[key] + 0.25 * initial[key])


def test_the_initial_weights_are_saved_with_the_agent(tmp_path: Path) -> None:
    make = AGENTS["dqn, minatar"]
    part = lambda: ShrinkPerturb(0.5, 0.5, noise="initial", every=1, of="updates")  # noqa: E731
    agent, stand = trained(make, part())
    agent.save(tmp_path / "agent.pt")
    loaded = DQN.load(tmp_path / "agent.pt", interventions=[part()])
    other = Stand(loaded, clock=stand.clock)
    act_once(stand), act_once(other)
    assert same(modules(agent), modules(loaded))


@pytest.mark.parametrize("target", ["copy", "same", "own", "none"])
def test_shrink_and_perturb_treats_the_target_as_configured(target: Any) -> None:
    agent, stand = trained(AGENTS["sac, pixels"], ShrinkPerturb(0.8, 0.2, every=1, of="updates", target=target))
    online, targets = state_by_layer(agent), state_by_layer(agent, targets=True)
    act_once(stand)
    now, then = state_by_layer(agent), state_by_layer(agent, targets=True)
    for key in targets:
        noise = {k: (now[key][k] - 0.8 * online[key][k]) / 0.2 for k in now[key] if k.startswith("linear")}
        theirs = {k: (then[key][k] - 0.8 * targets[key][k]) / 0.2 for k in noise}
        for k in noise:
            if target == "same":
                torch.testing.assert_close(theirs[k], noise[k], atol=2e-6, rtol=1e-4)
            elif target == "own":
                assert not torch.allclose(theirs[k], noise[k], atol=1e-4)
                assert theirs[k].abs().max() <= now[key]["linear.weight"][0].numel() ** -0.5 + 1e-5
        if target == "copy":
            assert same(then[key], now[key])
        if target == "none":
            assert same(then[key], targets[key])
        assert all(torch.equal(now[key][k], online[key][k]) for k in now[key] if k.startswith("norm"))


@pytest.mark.parametrize(("moments", "reset"), [("keep", []), ("reset", ["encoder"]), ("all", [""])])
def test_shrink_and_perturb_resets_the_named_optimizer_state(moments: Any, reset: list[str]) -> None:
    part = ShrinkPerturb(0.8, 0.2, every=1, of="updates", layers=("encoder",), moments=moments)
    agent, stand = trained(AGENTS["sac, pixels"], part)
    remember_(agent)
    act_once(stand)
    for key, p in agent.components["critic"].online.named_parameters():
        is_reset = any(key.startswith(part) for part in reset)
        assert all((m == (0.0 if is_reset else 1.0)).all() for m in memories(agent, p).values()), key
        assert state_of(agent, p)["step"] == (0.0 if is_reset else 1e6)
    for component in ("actor", "temperature"):
        for p in agent.components[component].online.parameters():
            assert all((m == 1.0).all() for m in memories(agent, p).values())


# ------------------------------------------------------------------------------------------------------------- BBF


@pytest.mark.parametrize(
    ("updates", "n", "gamma"), [(0, 10, 0.97), (5_000, 5, 0.990513), (10_000, 3, 0.997), (20_000, 3, 0.997)]
)
def test_bbf_anneals_to_the_numbers_of_the_paper(updates: int, n: int, gamma: float) -> None:
    part = BBF()
    part.since = 1234
    sampling = part.schedule(Sampling(32, 1, 0.5, 2.0), Clock(updates=1234 + updates))
    assert (sampling.batch_size, sampling.n_step, sampling.replay_ratio) == (32, n, 2.0)
    assert sampling.gamma == pytest.approx(gamma, abs=1e-6)


def test_bbf_halves_the_encoder_and_redraws_the_head() -> None:
    """An encoder of twos and a draw of ones give 1.5; the head equals the draw."""
    agent, stand = trained(AGENTS["dqn, minatar"], BBF(every=1, of="updates"))
    critic, part = agent.components["critic"], only(agent)
    for network in (critic.online, critic.target):
        for p in network.parameters():
            p.detach().fill_(2.0)
    part.draw = lambda name, generator: {k: torch.ones_like(p) for k, p in part.survey.layers[name].named_parameters()}
    act_once(stand)
    for network in (critic.online, critic.target):
        for key, p in network.named_parameters():
            assert (p == (1.5 if key.startswith("encoder") else 1.0)).all(), key
    assert not any(value.any() for _, o in agent.optimizers() for s in o.state.values() for value in s.values())


def test_bbf_has_separate_draws_for_online_and_target_networks() -> None:
    agent, stand = trained(AGENTS["dqn, minatar"], BBF(every=1, of="updates"))
    parts, part = survey(agent), only(agent)
    before, targets = state_by_layer(agent), state_by_layer(agent, targets=True)
    replay = Generator()
    replay.set_state(part.generator.get_state())
    act_once(stand)
    for name, layer in parts.layers.items():
        mine, theirs = layer.fresh(replay), layer.fresh(replay)
        assert not torch.equal(mine["linear.weight"], theirs["linear.weight"])
        for now, old, drawn in ((layer, before[name], mine), (parts.copies[name], targets[name], theirs)):
            share = 0.5 if "encoder" in name else 0.0
            for key, p in now.named_parameters():
                torch.testing.assert_close(p, share * old[key] + (1 - share) * drawn[key], rtol=0, atol=1e-7)


def test_bbf_starts_no_cycle_that_it_cannot_complete() -> None:
    """Resets at 20, 40, 60 and 80 of 100 thousand steps: a complete period follows the last reset."""
    for part, expected in (
        (BBF(), [20_000, 40_000, 60_000, 80_000]),
        (BBF(every=30_000), [30_000, 60_000]),
        (BBF(every=40_000, stop=None), [40_000, 80_000, 120_000]),
        (BBF(every=10, stop=5), []),
    ):
        clock, fired = Clock(), []
        for _ in range(61):
            clock = clock.stepped(2_000).updated()
            fired += [clock.steps] if part.when(clock) else []
        assert fired == expected


def test_bbf_anneals_from_the_latest_reset_which_is_saved(tmp_path: Path) -> None:
    def part() -> BBF:
        return BBF(every=4, of="updates", anneal=4, stop=None)

    make = AGENTS["dqn, minatar"]
    agent, stand = trained(make, part(), updates=0)
    seen = []
    for _ in range(7):
        act_once(stand)
        seen.append(agent.sampling(stand.clock).n_step)
    expected = [round(10 * 0.3 ** (c / 4)) for c in (1, 2, 3, 0, 1, 2, 3)]
    assert seen == expected and seen[3] == 10
    agent.save(tmp_path / "agent.pt")
    loaded = DQN.load(tmp_path / "agent.pt", interventions=[part()])
    assert only(loaded).since == 4
    assert loaded.sampling(stand.clock) == agent.sampling(stand.clock)
    fresh = make(part())
    assert fresh.sampling(stand.clock) != agent.sampling(stand.clock)


def test_bbf_acts_with_the_target_network_if_configured() -> None:
    for with_target in (True, False):
        agent = AGENTS["dqn, minatar"](BBF(act_with_target=with_target))
        critic = agent.components["critic"]
        assert agent.actor is (critic.target if with_target else critic.online)  # type: ignore[attr-defined]
    assert PIXELS(BBF()).components["actor"].target is None


def test_sr_spr_keeps_most_of_the_encoder_and_uses_the_same_draw_for_the_target() -> None:
    agent, stand = trained(AGENTS["dqn, minatar"], ReplayRatio(2, reset_every=1, encoder_shrink=0.8))
    parts, part = survey(agent), only(agent).resets
    before, targets = state_by_layer(agent), state_by_layer(agent, targets=True)
    replay = Generator()
    replay.set_state(part.generator.get_state())
    act_once(stand)
    for name, layer in parts.layers.items():
        drawn = layer.fresh(replay)
        share = 0.8 if "encoder" in name else 0.0
        for now, old in ((layer, before[name]), (parts.copies[name], targets[name])):
            for key, p in now.named_parameters():
                torch.testing.assert_close(p, share * old[key] + (1 - share) * drawn[key], rtol=0, atol=1e-7)


# ------------------------------------------------------------------------------------------------ hare and tortoise


STILL = OptimizerConfig(lr=1e-30)


def hold(agent: Agent, hare: float, tortoise: float) -> None:
    critic = agent.components["critic"]
    for network, value in ((critic.online, hare), (critic.target, tortoise)):
        for p in network.parameters():
            p.detach().fill_(value)


@pytest.mark.parametrize("name", ["dqn", "sac"])
def test_the_tortoise_averages_the_hare_which_is_reset_to_it(name: str) -> None:
    """The average of a hare at one is 0.5, 0.75, 0.875; then the hare is set to 0.875."""
    make = make_dqn(optimizer=STILL) if name == "dqn" else make_sac(optimizer=STILL)
    agent = make(HareTortoise(mu=0.5, every=3))
    stand, critic = Stand(agent), agent.components["critic"]
    hold(agent, 1.0, 0.0)
    for tortoise, hare in ((0.5, 1.0), (0.75, 1.0), (0.875, 0.875), (0.875, 0.875)):
        stand.learn()
        assert all((p == tortoise).all() for p in critic.target.parameters())
        assert all((p == hare).all() for p in critic.online.parameters())


def test_without_resets_hare_and_tortoise_is_training_with_an_averaged_target() -> None:
    mine, theirs = (
        make_dqn()(HareTortoise(mu=0.9, every=10**6, act="hare")),
        make_dqn(target_tau=1 - 0.9, target_period=1)(),
    )
    for agent in (mine, theirs):
        stand = Stand(agent)
        for k in range(6):
            stand.memory.batch = batch_for(agent, seed=k)
            stand.learn()
    assert same(modules(mine), modules(theirs)) and same(memory(mine), memory(theirs))


@pytest.mark.parametrize("moments", ["keep", "reset"])
def test_the_hare_keeps_or_resets_its_optimizer_state(moments: Any) -> None:
    agent, stand = trained(AGENTS["sac"], HareTortoise(every=1, moments=moments))
    remember_(agent)
    act_once(stand)
    for component, is_reset in (("critic", moments == "reset"), ("actor", False)):
        for p in agent.components[component].online.parameters():
            assert all((m == (0.0 if is_reset else 1.0)).all() for m in memories(agent, p).values())


def test_the_hare_or_the_tortoise_acts_as_configured() -> None:
    for who in ("tortoise", "hare"):
        agent = AGENTS["dqn"](HareTortoise(act=who))  # type: ignore[arg-type]
        critic = agent.components["critic"]
        assert agent.actor is (critic.target if who == "tortoise" else critic.online)  # type: ignore[attr-defined]
        assert agent.config.target_period == 1 and agent.config.target_tau == pytest.approx(0.001)


# ---------------------------------------------------------------------------------------------- plasticity injection


INJECTED: dict[str, Make] = {
    "dqn": make_dqn(),
    "dqn, double": make_dqn(double=True),
    "dqn, dueling, layer norm": make_dqn(network={"norm": "layer_norm"}, dueling=True),
    "dqn, minatar": make_dqn(MINATAR),
    "dqn, minatar, soft targets": make_dqn(MINATAR, target_period=1, target_tau=0.25),
    "dqn, dueling, minatar, crelu": make_dqn(MINATAR, {"activation": "crelu"}, dueling=True),
    "sac": make_sac(),
    "sac, pixels": make_sac(SMALL_PIXELS, {"body": "drq", "width": 0.25}),
}
injected = pytest.mark.parametrize("name", INJECTED)


def outputs(agent: Agent, seed: int = 5) -> list[Tensor]:
    """Values of the online and the target critic, and the actor's actions."""
    batch, critic = batch_for(agent, 16, seed), agent.components["critic"]
    with torch.no_grad():
        if isinstance(agent, SAC):
            values = [network(batch.obs, batch.action) for network in (critic.online, critic.target)]
            return [*values, *agent.components["actor"].online(critic.online.encoder(batch.obs))]
        return [critic.online(batch.obs), critic.target(batch.obs)]


def heads(network: nn.Module) -> list[Any]:
    return [m for m in network.modules() if getattr(m, "injection", None) is not None]


def head_parameters(network: nn.Module) -> dict[str, Tensor]:
    return {
        f"{k}.{key}.{n}": p
        for k, head in enumerate(heads(network))
        for key, m in head.head_modules().items()
        for n, p in m.named_parameters()
    }


def copies(network: nn.Module, which: str, number: int) -> dict[str, Tensor]:
    return {
        f"{k}.{n}": p
        for k, head in enumerate(heads(network))
        for n, p in getattr(head.injection, which)[number].named_parameters()
    }


@injected
def test_neither_the_first_nor_the_second_injection_changes_a_prediction(name: str) -> None:
    agent, stand = trained(INJECTED[name], PlasticityInjection((4, 6), "updates"))
    for _ in range(2):
        before = outputs(agent)
        act_once(stand)
        assert only(agent).measurements()["interventions/plasticity_injection_heads"] >= 1
        for old, new in zip(before, outputs(agent), strict=True):
            assert torch.equal(old, new)
        agent.update(batch_for(agent, seed=8), agent.plan(stand.tick().clock))
        assert not torch.equal(outputs(agent)[0], before[0])


@injected
def test_before_the_injection_it_equals_the_plain_agent(name: str) -> None:
    """Weights are equal to the last bit; the trainable weights are the same before and after the injection."""
    plain, stand = trained(INJECTED[name])
    agent, other = trained(INJECTED[name], PlasticityInjection((4, 9), "updates"))

    def trainable(agent: Agent) -> list[tuple[str, tuple[int, ...]]]:
        return [
            (f"{n}.{k}", tuple(p.shape)) for n, m in agent.modules() for k, p in m.named_parameters() if p.requires_grad
        ]

    assert trainable(agent) == trainable(plain)
    mine, theirs = modules(agent), modules(plain)
    for module, state in theirs.items():
        assert all(torch.equal(mine[module][k], v) for k, v in state.items())
    assert all(torch.equal(a, b) for a, b in zip(outputs(agent), outputs(plain), strict=True))
    act_once(other)
    assert trainable(agent) == trainable(plain) and stand.clock.updates == 3


@injected
def test_the_old_head_is_kept_and_the_new_head_has_a_copy_of_itself(name: str) -> None:
    agent, stand = trained(INJECTED[name], PlasticityInjection((4, 9), "updates"))
    critic = agent.components["critic"]
    networks = (critic.online, critic.target)
    before = [{k: p.detach().clone() for k, p in head_parameters(n).items()} for n in networks]
    act_once(stand)
    for network, old in zip(networks, before, strict=True):
        now = head_parameters(network)
        kept, initial = copies(network, "old", 0), copies(network, "initial", 0)
        assert list(now) == list(kept) == list(initial) == list(old)
        for key, p in now.items():
            assert torch.equal(kept[key], old[key]) and torch.equal(initial[key], p)
            assert "norm" in key or not torch.equal(p, old[key])
        assert not any(p.any() for which in ("old", "initial") for p in copies(network, which, 1).values())
    # The target has its own old head, and the same draws.
    assert all(
        torch.equal(a, b)
        for a, b in zip(head_parameters(networks[0]).values(), head_parameters(networks[1]).values(), strict=True)
    )


@injected
def test_after_the_injection_only_the_new_head_and_the_encoder_change(name: str) -> None:
    agent, stand = trained(INJECTED[name], PlasticityInjection((4,), "updates"))
    act_once(stand)
    critic = agent.components["critic"].online
    before = parameters(critic)
    for k in range(3):
        agent.update(batch_for(agent, seed=20 + k), agent.plan(stand.tick().clock))
    frozen = {id(p) for which in ("old", "initial") for p in copies(critic, which, 0).values()}
    assert frozen
    for key, p in critic.named_parameters():
        assert torch.equal(p, before[key]) == (id(p) in frozen), key


def test_the_encoder_is_trained_through_all_three_heads() -> None:
    agent, stand = trained(INJECTED["dqn, dueling, minatar, crelu"], PlasticityInjection((4,), "updates"))
    act_once(stand)
    for k in range(2):
        agent.update(batch_for(agent, seed=20 + k), agent.plan(stand.tick().clock))
    network, obs = agent.components["critic"].online, batch_for(agent).obs
    encoder, direction = list(network.encoder.parameters()), torch.randn(8, 3, 1, generator=Generator().manual_seed(1))
    gradients = torch.autograd.grad((network(obs) * direction).sum(), encoder)
    injection = network.injection

    def sum_of_heads() -> Tensor:
        features = network.encoder(obs)
        new = network.logits(network._modules, features)
        return new + network.logits(injection.old[0], features) - network.logits(injection.initial[0], features)

    torch.testing.assert_close(network(obs), sum_of_heads())
    expected = torch.autograd.grad((sum_of_heads() * direction).sum(), encoder)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
        assert theirs.any()


@pytest.mark.parametrize("name", ["dqn, minatar", "dqn, minatar, soft targets", "sac, pixels"])
def test_frozen_heads_are_copied_to_the_target_when_it_is_updated(name: str) -> None:
    """A hard update copies everything; a soft update moves every tensor by tau, including frozen ones."""
    agent, stand = trained(INJECTED[name], PlasticityInjection((5,), "updates"), updates=4)
    critic = agent.components["critic"]
    act_once(stand)  # update 5
    old = {k: p.clone() for k, p in copies(critic.target, "old", 0).items()}
    assert any(not torch.equal(p, copies(critic.online, "old", 0)[k]) for k, p in old.items())
    agent.update(batch_for(agent, seed=20), agent.plan(stand.tick().clock))  # update 6 is also a hard update
    tau = agent.config.target_tau
    for which in ("old", "initial"):
        for key, p in copies(critic.target, which, 0).items():
            theirs = copies(critic.online, which, 0)[key]
            expected = old[key] + tau * (theirs - old[key]) if which == "old" else theirs
            torch.testing.assert_close(p, expected, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("encoder", ["keep", "reset"])
def test_a_new_head_has_no_optimizer_state_and_the_encoder_keeps_its_own(encoder: Any) -> None:
    agent, stand = trained(INJECTED["sac, pixels"], PlasticityInjection((4,), "updates", encoder_moments=encoder))
    remember_(agent)
    act_once(stand)
    critic = agent.components["critic"].online
    new = {id(p) for p in head_parameters(critic).values()}
    for key, p in critic.named_parameters():
        if p.requires_grad:
            is_reset = id(p) in new or (encoder == "reset" and key.startswith("encoder"))
            assert all((m == (0.0 if is_reset else 1.0)).all() for m in memories(agent, p).values()), key
            assert state_of(agent, p)["step"] == (0.0 if is_reset else 1e6)


def test_an_injected_agent_is_saved_and_resumes(tmp_path: Path) -> None:
    def part() -> PlasticityInjection:
        return PlasticityInjection((4, 8), "updates")

    agent, stand = trained(INJECTED["sac, pixels"], part())
    act_once(stand)
    agent.save(tmp_path / "agent.pt")
    loaded = SAC.load(tmp_path / "agent.pt", interventions=[part()])
    for which in (agent, loaded):
        other = Stand(which, clock=stand.clock)
        for k in range(5):
            other.memory.batch = batch_for(which, seed=k)
            other.learn()
    assert all(torch.equal(a, b) for a, b in zip(outputs(agent), outputs(loaded), strict=True))
    assert same(modules(agent), modules(loaded))


def test_an_injection_excludes_methods_that_edit_heads() -> None:
    part = PlasticityInjection((4,))
    for other in (Reset(layers=("head",)), ShrinkPerturb(), HareTortoise(), Reset(layers=("critic.head.layers.*",))):
        with pytest.raises(ValueError, match=f"plasticity_injection.*exclude each other.*{part.reserves[0]}"):
            make_dqn(MINATAR)(other, part)
    make_dqn(MINATAR)(Reset(layers=("encoder",)), part)


def test_two_moments_at_once_are_two_injections() -> None:
    agent, stand = trained(INJECTED["dqn"], PlasticityInjection((10, 11), "steps"))
    before = outputs(agent)
    stand.clock = stand.clock.stepped(50)
    act_once(stand)
    assert all(torch.equal(a, b) for a, b in zip(outputs(agent), before, strict=True))
    assert all(
        p.any() for number in (0, 1) for p in copies(agent.components["critic"].online, "initial", number).values()
    )

"""The cheap monitors: all numbers compared with loops and decompositions in float64, and planted defects."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from law_agents import AGENTS, VECTOR, build_run, dqn, sac, take_steps
from no_wait import no_wait
from torch import Generator, Tensor, nn

from pliant.agents import Agent
from pliant.agents.clock import Clock
from pliant.agents.networks import ACTIVATIONS, Layer
from pliant.agents.optimizers import OptimizerConfig
from pliant.agents.run import Run
from pliant.agents.views import view
from pliant.interventions.core.parts import survey
from pliant.interventions.plasticity_injection import PlasticityInjection
from pliant.monitors import metrics
from pliant.monitors import norms as monitor_norms
from pliant.monitors import ranks as monitor_ranks
from pliant.monitors import units as monitor_units
from pliant.monitors.norms import Norms
from pliant.monitors.ranks import Ranks
from pliant.monitors.units import Units
from pliant.monitors.values import Values

NAN = math.nan


def readings(run: Run) -> dict[str, float]:
    """The latest value of every key."""
    run.monitors.publish(run)  # type: ignore[union-attr]
    return {key: value for key, (value, _) in run.monitors.readings.items()}  # type: ignore[union-attr]


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """A watched run of any agent, one environment."""

    def build(agent: str | Callable[..., Agent], *monitors: Any, steps: int = 0, **options: Any) -> Run:
        if callable(agent):
            monkeypatch.setitem(AGENTS, "one", agent)
            agent = "one"
        run = build_run(agent, num_envs=1, monitors=monitors, **options)
        take_steps(run, steps)
        return run

    return build


def close(measured: Mapping[str, float], expected: Mapping[str, float], rel: float = 1e-5) -> None:
    """Every expected value was measured, to this precision."""
    for key, value in expected.items():
        assert measured[key] == pytest.approx(value, rel=rel, abs=1e-9, nan_ok=True), key


# -------------------------------------------------------------------------------------------------------------- ranks


def by_svd(x: np.ndarray) -> dict[str, float]:
    """Every rank by its definition, in plain loops over the singular values of the features."""

    def erank(s: list[float]) -> float:
        total = sum(s)
        return math.exp(-sum(v / total * math.log(v / total) for v in s if v > 1e-12 * s[0])) if total else 0.0

    def fewest(s: list[float], share: float) -> int:
        total, reached = sum(s), 0.0
        for k, v in enumerate(s):
            reached += v
            if total and reached >= share * total * (1 - 1e-12):
                return k + 1
        return 0

    n = len(x)
    s = [float(v) for v in np.linalg.svd(x, compute_uv=False)]
    around = [float(v) for v in np.linalg.svd(x - x.mean(0), compute_uv=False)]
    around = [v if v > 1e-7 * max(s[0], 1e-300) else 0.0 for v in around]
    return {
        "effective_rank": erank(s),
        "stable_rank": float((x**2).sum()) / s[0] ** 2 if s[0] else 0.0,
        "srank_0.01": fewest(s, 0.99),
        "pca_rank_0.99": fewest([v * v for v in s], 0.99),
        "feature_rank_0.01": sum(v / math.sqrt(n) > 0.01 for v in s),
        "numerical_rank": sum(v > s[0] * max(x.shape) * np.finfo(np.float32).eps for v in s),
        "feature_norm": sum(math.sqrt(sum(v * v for v in row)) for row in x) / n,
        "effective_rank_centred": erank(around),
        "srank_0.01_centred": fewest(around, 0.99),
    }


def of(x: Any) -> dict[str, float]:
    """All ranks of features, computed as in a run."""
    array = metrics.feature_moments(torch.as_tensor(np.asarray(x), dtype=torch.float32)).numpy()
    values, rest = monitor_ranks.ranks(array)
    assert not len(rest) and tuple(values) == tuple(Ranks.metrics)
    return values


def features(n: int, d: int, rank: int, seed: int = 0, offset: float = 0.0) -> np.ndarray:
    """Features in float32 with decreasing singular values and a mean."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, rank)) * 0.8 ** np.arange(rank)) @ rng.normal(size=(rank, d)) + offset
    return x.astype(np.float32).astype(np.float64)


class TestRanks:
    @pytest.mark.parametrize(("n", "d", "rank"), [(24, 40, 24), (40, 24, 24), (32, 32, 5), (1, 7, 1), (9, 1, 1)])
    @pytest.mark.parametrize("offset", [0.0, 3.0])
    def test_all_ranks_equal_those_of_the_singular_values(self, n: int, d: int, rank: int, offset: float) -> None:
        x = features(n, d, rank, offset=offset)
        close(of(x), by_svd(x), rel=1e-6)

    def test_ranks_equal_numbers_computed_by_hand(self) -> None:
        measured = of(np.diag([4.0, 2, 1, 1]))
        names = ("effective_rank", "stable_rank", "srank_0.01", "pca_rank_0.99", "feature_rank_0.01", "numerical_rank")
        assert [measured[name] for name in names] == pytest.approx([3.363586, 1.375, 4, 4, 4, 4], abs=1e-6)
        assert measured["feature_norm"] == 2.0
        assert metrics.srank(np.array([4.0, 2, 1, 1]), 0.2) == 3
        # Some code calls srank_0.01 the stable rank.
        measured = of(np.diag([10.0, 1, 1, 1]))
        assert (measured["srank_0.01"], measured["stable_rank"]) == (4, pytest.approx(1.03))
        assert (measured["pca_rank_0.99"], by_svd(np.diag([10.0, 1, 1, 1]))["pca_rank_0.99"]) == (3, 3)

    def test_singular_values_below_float32_rounding_do_not_count(self) -> None:
        measured = of(np.diag([1.0, 1e-5, 1e-6, *[0.0] * 29]))  # the bound is 32 / 2^23 = 3.8e-6
        assert measured["numerical_rank"] == 2
        assert measured["effective_rank"] == pytest.approx(
            by_svd(np.diag([1.0, 1e-5, 1e-6]))["effective_rank"], rel=1e-9
        )

    def test_a_fraction_that_is_reached_exactly_suffices(self) -> None:
        assert metrics.srank(np.ones(100), 0.01) == 99
        assert metrics.pca_rank(np.ones(100), 0.99) == 99
        assert metrics.srank(np.ones(3), 1 / 3) == 2

    def test_a_matrix_of_zeros_has_no_rank(self) -> None:
        assert set(of(np.zeros((5, 3))).values()) == {0.0}

    def test_equal_features_have_rank_zero_after_centring(self) -> None:
        # With so many features their sums are rounded, so the centred features are not exactly zero.
        x = np.tile(np.random.default_rng(0).normal(size=17), (1001, 1))
        for measured in (of(x), of(x[:9])):
            assert measured["effective_rank"] == pytest.approx(1)
            assert measured["effective_rank_centred"] == measured["srank_0.01_centred"] == 0

    @pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e4, 1e12])
    def test_the_scale_changes_only_absolute_measures(self, scale: float) -> None:
        x = features(12, 20, 12, offset=0.5)
        plain, scaled = of(x), of(x * scale)
        for name in Ranks.metrics:
            if name == "feature_norm":
                assert scaled[name] == pytest.approx(scale * plain[name], rel=1e-5)
            elif name == "feature_rank_0.01":
                assert scaled[name] == (0 if scale < 1e-9 else 12 if scale > 1 else scaled[name])
            else:
                assert scaled[name] == pytest.approx(plain[name], rel=1e-4)

    def test_more_samples_of_the_same_features_have_the_same_ranks(self) -> None:
        x = features(12, 20, 12)
        close(of(np.tile(x, (3, 1))), of(x), rel=1e-5)

    @pytest.mark.parametrize("bad", [NAN, math.inf])
    def test_ranks_of_nan_are_nan(self, bad: float) -> None:
        x = features(6, 4, 4)
        x[2, 1] = bad
        assert all(math.isnan(v) for name, v in of(x).items() if name != "feature_norm")

    def test_collapsed_features_have_fewer_directions(self) -> None:
        x = features(64, 32, 32)
        mixed = x.copy()
        mixed[:, 8:] = mixed[:, :8] @ np.random.default_rng(1).normal(size=(8, 24))
        before, after = of(x), of(mixed)
        for name in (
            "effective_rank",
            "srank_0.01",
            "pca_rank_0.99",
            "numerical_rank",
            "feature_rank_0.01",
            "effective_rank_centred",
            "srank_0.01_centred",
        ):
            assert after[name] <= 8.0 < before[name] + (name == "pca_rank_0.99") * 2, name

    def test_centred_ranks_ignore_an_offset(self) -> None:
        x = features(64, 32, 32)
        plain, moved = of(x), of(x + 1000.0)
        assert moved["effective_rank"] < 1.2 < plain["effective_rank"]
        assert moved["effective_rank_centred"] == pytest.approx(plain["effective_rank_centred"], rel=1e-2)

    @pytest.mark.parametrize("agent", AGENTS)
    def test_the_features_are_the_inputs_of_output_layers(self, agent: str) -> None:
        parts = survey(AGENTS[agent](interventions=() if "ppo" in agent else (PlasticityInjection(at=(5,)),)))
        heads = [f"critic.members.{i}.body.layers.1" for i in range(5 if agent == "redq" else 2)]
        if "ppo" in agent or "supervised" in agent:
            heads = ["critic.body.layers.1"]
        if agent.startswith("dqn"):
            heads = ["critic.head.layers.1", *["critic.value_head.layers.1"] * ("dueling" in agent)]
        actor = {} if agent.startswith(("dqn", "supervised")) else {"actor": ["actor.body.layers.1"]}
        assert monitor_ranks.feature_layers(parts) == {"critic": heads, **actor}
        last = {
            "dqn, minatar, dueling": 0,
            "dqn, crelu, orthogonal": 3,
            "dqn, nature": 2,
            "sac, pixels": 0,
            "ppo, pixels": 0,
            "supervised, numbers from pixels": 3,
        }.get(agent)
        expected = [] if last is None else [f"critic.encoder.blocks.{last}"]
        assert monitor_ranks.encoder_outputs(parts) == expected

    @pytest.mark.parametrize("agent", ["dqn, minatar, dueling", "redq", "sac, pixels", "dqn, impala"])
    def test_in_a_run_ranks_are_those_of_the_layers(self, agent: str, one: Callable[..., Run]) -> None:
        run = one(agent, "ranks(every=1, samples=16)", steps=14)
        measured, context = readings(run), run.monitors._context(run)  # type: ignore[union-attr]
        outputs = context.survey.outputs(view(run.agent).activations(context.batch(16)))
        for component, names in monitor_ranks.feature_layers(context.survey).items():
            truth = [by_svd(outputs[name].flatten(1).double().numpy()) for name in names]
            for name, ranks in zip(names, truth, strict=True):
                close(measured, {f"{name}/{metric}": value for metric, value in ranks.items()})
            mean = {m: sum(ranks[m] for ranks in truth) / len(truth) for m in Ranks.metrics}
            close(measured, {f"{component}/{metric}": value for metric, value in mean.items()})
        if agent == "redq":
            assert not any(key.startswith("encoder/") for key in measured)
        else:
            with torch.no_grad():
                encoded = run.agent.components["critic"].online.encoder(context.batch(16).obs)
            truth = by_svd(encoded.double().numpy())
            close(measured, {f"encoder/{metric}": value for metric, value in truth.items()})

    def test_a_sufficiently_large_batch_of_the_update_is_used(self, one: Callable[..., Run]) -> None:
        run = one("sac", "ranks(every=1, samples=6)", "units(every=1, samples=6)")
        with record_updates(run) as seen:
            take_steps(run, 12)
        _, update, _ = seen[-1]
        measured, traces = readings(run), survey(run.agent).outputs(update.activations)
        assert len(traces["actor.body.layers.1"]) == 8
        h = traces["actor.body.layers.1"][:6]
        truth = by_svd(h.double().numpy())
        close(measured, {f"actor/{metric}": value for metric, value in truth.items()})
        assert measured["actor.body.layers.1/active_fraction"] == pytest.approx((h > 0).double().mean().item())


# -------------------------------------------------------------------------------------------------------------- units


def layer_of(activation: str, conv: bool = False) -> Layer:
    linear = nn.Conv2d(2, 6, 3) if conv else nn.Linear(4, 6)
    return Layer(linear, Generator().manual_seed(0), activation=activation)


def by_loops(activation: str, z: np.ndarray, h: np.ndarray) -> dict[str, float]:
    """Every fraction, unit by unit, from inputs z [B, units, P] and outputs h [B, copies * units, P]."""
    b, units, p = z.shape
    circle = activation == "fourier"
    size = [
        float(
            np.mean(
                [abs(x - x.mean() if circle else x) for c in range(h.shape[1] // units) for x in (h[:, c * units + u],)]
            )
        )
        for u in range(units)
    ]
    score = [a / (sum(size) / units + 1e-9) for a in size]
    rho = [sum(z[i, u, j] > 0 for i in range(b) for j in range(p)) / (b * p) for u in range(units)]
    active = [
        sum(
            {"tanh": abs(h[i, u, j]) < 0.99, "crelu": z[i, u, j] != 0}.get(activation, z[i, u, j] > 0)
            for i in range(b)
            for j in range(p)
        )
        / (b * p)
        for u in range(units)
    ]
    linear = [r > 0.99 or (activation in ("crelu", "leaky_relu") and r < 0.01) for r in rho]
    bends = activation not in ("tanh", "identity", "fourier")
    return {
        "dormant_fraction": sum(s <= 0.1 for s in score) / units,
        "dormant_fraction_0.025": sum(s <= 0.025 for s in score) / units,
        "dead_fraction": NAN if circle else sum(a == 0 for a in size) / units,
        "active_fraction": NAN if activation in ("identity", "fourier") else sum(active) / units,
        "linearised_fraction": sum(linear) / units if bends else NAN,
        "nonlinearity": sum(4 * r * (1 - r) for r in rho) / units if bends else NAN,
    }


def inputs(conv: bool) -> Tensor:
    """The inputs of six units [64, 6, ...]: usual, always negative, always positive, small, smaller, zero."""
    z = torch.randn(64, 6, *((3, 3) if conv else ()), generator=Generator().manual_seed(1))
    z[:, 1] = -2.0 - z[:, 1].abs()
    z[:, 2] = 2.0 + z[:, 2].abs()
    z[:, 3] = z[:, 3] * 0.05
    z[:, 4] = z[:, 4] * 0.002
    z[:, 5] = 0.0
    return z


def shares(activation: str, z: Tensor, conv: bool = False) -> dict[str, float]:
    """The fractions that the monitor measures for one layer with the inputs z."""
    layer = layer_of(activation, conv)
    h = layer.activation(z)  # type: ignore[operator]
    if conv:
        h = h.to(memory_format=torch.channels_last)
    counts, _ = monitor_units.counted(layer, h, torch.zeros(6, dtype=torch.bool))
    monitor = Units()
    monitor.bind(_Holder(layer))  # type: ignore[arg-type]
    measured = dict(monitor.finish("units/counts", counts[None].double().numpy(), Clock()))
    return {metric: measured[f"critic.one/{metric}"] for metric in monitor_units.SHARES}  # type: ignore[misc]


class _Holder:
    """An agent of one layer."""

    device = torch.device("cpu")

    def __init__(self, *layers: Layer) -> None:
        names = [f"critic.{name}" for name in ("one", "two", "three")[: len(layers)]]
        layers_by_name = dict(zip(names, layers, strict=True))
        self.survey = replace(survey(AGENTS["dqn"]()), layers=layers_by_name, traced={"critic": names})


class TestUnits:
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("conv", [False, True])
    def test_fractions_equal_those_of_plain_loops(self, activation: str, conv: bool) -> None:
        z = inputs(conv)
        h = ACTIVATIONS[activation]()(z)
        flat = [x.reshape(64, x.shape[1], -1).double().numpy() for x in (z, h)]
        truth = by_loops(activation, *flat)
        close(shares(activation, z, conv), truth)

    def test_fractions_equal_numbers_computed_by_hand(self) -> None:
        """Outputs of mean size (2, 1, 0) have the scores (2, 1, 0); a unit whose score is exactly tau is dormant."""
        layer = Layer(nn.Linear(1, 4), Generator(), activation="relu")
        h = torch.tensor([[4.0, 2, 0, 0], [0.0, 0, 0, 0]])
        counts, now = monitor_units.counted(layer, h, torch.tensor([False, False, True, False]))
        assert counts.tolist() == [2, 2, 2, 1, 0, 2, 1, 1] and now.tolist() == [False, False, True, True]
        h = torch.tensor([[1.0, 1, 1, 3.0 / 39 * 1.0]])  # of a mean 10/13, a tenth
        assert h[0, 3] / h.mean() == pytest.approx(0.1)
        for factor, dormant in ((1.001, 0), (0.999, 1)):
            h[0, 3] = 3.0 / 39 * factor
            assert monitor_units.counted(layer, h, now)[0][0] == dormant

    @pytest.mark.parametrize("bad", [NAN, math.inf])
    def test_a_diverged_network_does_not_appear_healthy(self, bad: float) -> None:
        z = inputs(False)
        z[3, 0] = bad
        assert all(math.isnan(v) for v in shares("relu", z).values())

    def test_layers_are_pooled_over_units_for_which_the_metric_is_defined(self) -> None:
        layers = [Layer(nn.Linear(1, n), Generator(), activation=a) for n, a in ((2, "relu"), (6, "relu"), (4, "tanh"))]
        monitor = Units()
        monitor.bind(_Holder(*layers))  # type: ignore[arg-type]
        counts = np.array([[2, 1, 0, 1, 2, 0.5, 1, 1], [0, 0, 0, 3, 0, 1.5, 3, 0], [1, 0, 0, 2, 0, 0, 0, 0]], float)
        measured: dict[str, Any] = dict(monitor.finish("units/counts", counts, Clock()))
        expected = {
            "dormant_fraction": 3 / 12,
            "dormant_fraction_0.025": 1 / 12,
            "active_fraction": 6 / 12,
            "linearised_fraction": 2 / 8,
            "nonlinearity": 2 / 8,
            "dormant_overlap": 1 / 3,
        }
        close(measured, {f"critic/{metric}": value for metric, value in expected.items()})
        assert measured["critic.one/dormant_overlap"] == 1 and math.isnan(measured["critic.three/linearised_fraction"])
        assert measured["critic.two/dormant_fraction"] == 0 and math.isnan(measured["critic.two/dormant_overlap"])

    @pytest.mark.parametrize("agent", ["dqn, minatar, dueling", "sac, pixels"])
    def test_in_a_run_fractions_are_those_of_the_layers(self, agent: str, one: Callable[..., Run]) -> None:
        run = one(agent, "units(every=1, samples=16)", steps=14)
        measured, context = readings(run), run.monitors._context(run)  # type: ignore[union-attr]
        outputs = context.survey.outputs(view(run.agent).activations(context.batch(16)))
        sizes = {name: h.transpose(0, 1).flatten(1).abs().double().mean(1) for name, h in outputs.items()}
        scores = {name: size / size.mean() for name, size in sizes.items()}
        places = {name: [name] for name in outputs} | metrics.pools(outputs)
        assert set(places) - set(outputs) == {n.partition(".")[0] for n in outputs} | {"encoder"}
        for place, names in places.items():
            score = torch.cat([scores[name] for name in names])
            dead = torch.cat([sizes[name] for name in names]) == 0
            close(
                measured,
                {
                    f"{place}/dormant_fraction": (score <= 0.1).double().mean().item(),
                    f"{place}/dormant_fraction_0.025": (score <= 0.025).double().mean().item(),
                    f"{place}/dead_fraction": dead.double().mean().item(),
                },
            )

    def test_killed_units_are_dead_and_dormant(self, one: Callable[..., Run]) -> None:
        run = one("dqn, minatar, dueling", "units(every=1, samples=16)", steps=14)
        before, name = readings(run), "critic.encoder.blocks.0"
        with torch.no_grad():
            survey(run.agent).layers[name].linear.bias[:6] = -50.0
        take_steps(run, 1)
        after = readings(run)
        for place in (name, "encoder"):
            assert after[f"{place}/dead_fraction"] >= 6 / 16 > before[f"{place}/dead_fraction"]
            assert after[f"{place}/dormant_fraction"] >= 6 / 16 > before[f"{place}/dormant_fraction"]
            assert after[f"{place}/active_fraction"] < before[f"{place}/active_fraction"]
        assert after["critic/dead_fraction"] >= 6 / 60

    def test_lifted_units_are_linearised(self, one: Callable[..., Run]) -> None:
        run = one("dqn", "units(every=1, samples=16)", steps=14)
        before, name = readings(run), "critic.head.layers.0"
        with torch.no_grad():
            survey(run.agent).layers[name].linear.bias[:6] = 1e3
        take_steps(run, 1)
        after = readings(run)
        assert after[f"{name}/linearised_fraction"] >= 6 / 12 > before[f"{name}/linearised_fraction"]
        assert after[f"{name}/nonlinearity"] <= 6 / 12 < before[f"{name}/nonlinearity"]
        assert after[f"{name}/active_fraction"] > before[f"{name}/active_fraction"]
        # Compared with outputs of a thousand all others are dormant.
        assert after[f"{name}/dormant_fraction"] == 6 / 12

    def test_saturated_units_of_tanh_are_not_active(self, one: Callable[..., Run]) -> None:
        run = one(dqn(VECTOR, {"activation": "tanh"}), "units(every=1, samples=16)", steps=12)
        before = readings(run)
        assert before["critic/active_fraction"] > 0.9
        for layer in survey(run.agent).layers.values():
            with torch.no_grad():
                layer.linear.weight *= 1e3
        take_steps(run, 1)
        after = readings(run)
        assert after["critic/active_fraction"] < 0.1 and after["critic/dormant_fraction"] == 0
        assert math.isnan(after["critic/nonlinearity"])

    def test_the_overlap_is_with_the_previous_measurement(self, one: Callable[..., Run]) -> None:
        run = one(dqn(VECTOR), "units(every=1, samples=16)", steps=9)
        names = ("critic.head.layers.0", "critic.head.layers.1")
        biases = [survey(run.agent).layers[name].linear.bias for name in names]
        monitor: Units = run.monitors.parts["units"]  # type: ignore[assignment, union-attr]
        seen, rounds = [], (((0, 1, 2), (9,)), ((2, 3), (9, 8)), ((2, 3), (0, 1)), ((4, 5, 6, 7), (0,)))
        for dead in rounds:
            with torch.no_grad():
                survey(run.agent).layers[names[1]].linear.weight.zero_()
                for bias, units in zip(biases, dead, strict=True):
                    bias.fill_(50.0)
                    bias[list(units)] = -5000.0
            take_steps(run, 1)
            assert monitor.dormant.nonzero().flatten().tolist() == sorted([*dead[0], *(12 + u for u in dead[1])])
            measured = readings(run)
            seen.append(tuple(measured[f"{name}/dormant_overlap"] for name in (*names, "critic")))
        assert seen[1:] == [(0.5, 1.0, 0.5), (1.0, 0.0, 0.5), (0.0, 1.0, 0.25)]
        assert "dormant" in monitor.state_dict()

    def test_the_overlap_coefficient_equals_values_computed_by_hand(self) -> None:
        assert metrics.overlap(2, 3, 8) == 2 / 3 == metrics.overlap(2, 8, 3)
        assert all(math.isnan(metrics.overlap(0, *sizes)) for sizes in ((0, 5), (5, 0), (0, 0)))


# -------------------------------------------------------------------------------------------------------------- norms


class record_updates:
    """Record every update: weights before, the returned value, weights after; by parameter name."""

    def __init__(self, run: Run) -> None:
        self.run, self.seen = run, []

    def __enter__(self) -> list[Any]:
        agent, inner = self.run.agent, self.run.agent.update

        def weights() -> dict[tuple[str, str], np.ndarray]:
            return {
                (name, key): p.detach().double().numpy().copy()
                for name, layer in survey(agent).layers.items()
                for key, p in layer.named_parameters()
            }

        def update(batch: Any, clock: Any) -> Any:
            before = weights()
            result = inner(batch, clock)
            self.seen.append((before, result, weights()))
            return result

        agent.update = update  # type: ignore[method-assign]
        return self.seen

    def __exit__(self, *error: Any) -> None:
        del self.run.agent.update


def joined(parts: Mapping[tuple[str, str], np.ndarray], layers: list[str]) -> np.ndarray:
    return np.concatenate([value.reshape(-1) for (name, _), value in parts.items() if name in layers])


def length(x: np.ndarray) -> float:
    return math.sqrt(sum(float(v) ** 2 for v in x))


def by_matrix(g: np.ndarray, cut: float = 1e-3) -> tuple[float, float, float]:
    """Spectral norm, stable rank and effective rank of a gradient, from its singular values above a fraction `cut`."""
    s = np.linalg.svd(g.reshape(len(g), -1), compute_uv=False)
    if not s[0]:
        return 0.0, 0.0, 0.0
    s = s[s > cut * s[0]]
    p = s / s.sum()
    return float(s[0]), float((s**2).sum() / s[0] ** 2), math.exp(-sum(v * math.log(v) for v in p))


class TestNorms:
    @pytest.mark.parametrize("clip", [0.0, 0.05])
    @pytest.mark.parametrize("agent", ["dqn, minatar, dueling", "sac, pixels", "droq"])
    def test_norms_equal_those_of_the_update(self, agent: str, clip: float, one: Callable[..., Run]) -> None:
        made = AGENTS[agent]
        optimizer = OptimizerConfig(lr=1e-2, max_grad_norm=clip)
        initial = made(seed=0)
        config = replace(initial.given_config, optimizer=optimizer)
        build: Callable[..., Agent] = lambda **k: type(initial)(initial.observation, initial.action, config, **k)  # noqa: E731
        run = one(build, Norms(every=1), steps=10)
        with record_updates(run) as seen:
            take_steps(run, 2)  # two steps; DroQ's actor learns at the second
        before, update, after = seen[-1]
        measured = readings(run)
        start = {
            (n, k): p.detach().double().numpy()
            for n, layer in survey(initial).layers.items()
            for k, p in layer.named_parameters()
        }
        gradients = {}
        for name, layer in survey(run.agent).layers.items():
            factor = run.agent.components[name.partition(".")[0]].optimizer.clipped
            for key, p in layer.named_parameters():
                assert p.grad is not None
                gradients[name, key] = p.grad.double().numpy() / (1.0 if factor is None else float(factor))
        if clip:
            assert float(run.agent.components["critic"].optimizer.clipped) < 0.9
        assert set(update.activations) == set(survey(run.agent).traced) - {"temperature"}
        names = list(survey(run.agent).layers)
        spectra = {name: by_matrix(gradients[name, "linear.weight"]) for name in names}
        for place, layers in ({name: [name] for name in names} | metrics.pools(names)).items():
            old, new, first = (joined(parts, layers) for parts in (before, after, start))
            g = joined(gradients, layers)
            spectral, stable, _ = zip(*(spectra[name] for name in layers), strict=True)
            # A singular value at the cut may be counted or not.
            low, high = (
                sum(by_matrix(gradients[name, "linear.weight"], cut)[2] for name in layers) / len(layers)
                for cut in (1.05e-3, 0.95e-3)
            )
            assert low - 1e-3 <= measured[f"{place}/gradient_effective_rank"] <= high + 1e-3
            expected = {
                "weight_norm": length(new),
                "distance_from_init": length(new - first),
                "relative_distance_from_init": length(new - first) / length(first),
                "gradient_norm": length(g),
                "gradient_norm_l1": sum(abs(v) for v in g),
                "gradient_zero_fraction": sum(v == 0 for v in g) / len(g),
                "update_to_weight": length(new - old) / length(old),
                "gradient_spectral_norm": max(spectral),
                "gradient_stable_rank": sum(stable) / len(layers),
            }
            assert {*expected, "gradient_effective_rank"} == set(Norms.metrics)
            close(measured, {f"{place}/{metric}": value for metric, value in expected.items()}, rel=2e-4)

    @pytest.mark.parametrize("scale", [1.0, 1e-15, 1e15])
    @pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 2, 3, 3), (1, 7)])
    def test_the_spectrum_of_the_gradient_equals_its_singular_values(
        self, shape: tuple[int, ...], scale: float
    ) -> None:
        g = torch.randn(shape, generator=Generator().manual_seed(3)) * scale
        array = metrics.unit_gram(g).double().numpy()
        k = min(shape[0], math.prod(shape[1:]))
        eigen = metrics.eigenvalues(array[1:].reshape(k, k))
        sigma = metrics.singular_values(eigen, monitor_norms.PRECISION * eigen[0])
        measured = array[0] * sigma[0], metrics.stable_rank(sigma), metrics.effective_rank(sigma)
        assert measured == pytest.approx(by_matrix(g.double().numpy()), rel=1e-4)

    def test_spectra_equal_numbers_computed_by_hand(self) -> None:
        for diagonal, stable, effective in (([4.0, 2, 1, 1], 1.375, 3.363586), ([10.0, 1, 1, 1], 1.03, 2.211631)):
            array = metrics.unit_gram(torch.diag(torch.tensor(diagonal))).double().numpy()
            sigma = metrics.singular_values(metrics.eigenvalues(array[1:].reshape(4, 4)), 0.0)
            assert metrics.stable_rank(sigma) == pytest.approx(stable, abs=1e-6)
            assert metrics.effective_rank(sigma) == pytest.approx(effective, abs=1e-5)
        assert not metrics.unit_gram(torch.zeros(3, 4)).any()

    def test_rounding_errors_do_not_count_as_directions(self) -> None:
        """A gradient of a batch of 8 has at most 8 directions, although float32 gives small values in all 64."""
        rng = Generator().manual_seed(0)
        g = torch.randn(64, 8, generator=rng) @ torch.randn(8, 200, generator=rng)
        array = metrics.unit_gram(g).double().numpy()
        eigen = metrics.eigenvalues(array[1:].reshape(64, 64))
        sigma = metrics.singular_values(eigen, monitor_norms.PRECISION * eigen[0])
        assert (sigma > 0).sum() == 8 and metrics.effective_rank(sigma) <= 8

    def test_a_new_agent_has_distance_zero(self, one: Callable[..., Run]) -> None:
        run = one("dqn", "norms(every=1)", steps=7)
        monitor: Norms = run.monitors.parts["norms"]  # type: ignore[assignment, union-attr]
        measured: dict[str, Any] = {}
        for key, value in monitor.measure(run.monitors._context(run)):  # type: ignore[union-attr]
            measured |= dict(monitor.finish(key, value.double().numpy(), Clock()))
        assert measured["critic/distance_from_init"] == measured["critic/relative_distance_from_init"] == 0
        # Before the first update there is neither a gradient nor a step.
        assert {key.rpartition("/")[2] for key in measured} == {
            "weight_norm",
            "distance_from_init",
            "relative_distance_from_init",
        }

    def test_larger_weights_learn_relatively_less(self, one: Callable[..., Run]) -> None:
        """Adam's steps have a fixed size: with tenfold weights update_to_weight is a tenth."""
        run = one("dqn", "norms(every=1)", steps=12)
        before = readings(run)
        for layer in survey(run.agent).layers.values():
            for p in layer.parameters():
                p.data.mul_(10.0)
        take_steps(run, 1)
        after = readings(run)
        assert after["critic/weight_norm"] == pytest.approx(10 * before["critic/weight_norm"], rel=1e-2)
        assert after["critic/update_to_weight"] < 0.3 * before["critic/update_to_weight"]
        assert after["critic/relative_distance_from_init"] > 8 > 1 > before["critic/relative_distance_from_init"]
        assert after["critic/gradient_norm"] > before["critic/gradient_norm"]

    def test_dead_units_have_gradients_of_zero(self, one: Callable[..., Run]) -> None:
        run = one("dqn", "norms(every=1)", steps=12)
        name = "critic.head.layers.1"
        before = readings(run)
        with torch.no_grad():
            survey(run.agent).layers[name].linear.bias[:9] = -1e3
        take_steps(run, 1)
        after = readings(run)
        assert after[f"{name}/gradient_zero_fraction"] >= 0.9 > before[f"{name}/gradient_zero_fraction"]
        assert after[f"{name}/gradient_effective_rank"] <= 1 + 1e-6 < before[f"{name}/gradient_effective_rank"]
        with torch.no_grad():
            survey(run.agent).layers[name].linear.bias[:] = -1e3
        take_steps(run, 1)
        after = readings(run)
        for metric in ("norm", "norm_l1", "spectral_norm", "stable_rank", "effective_rank"):
            assert after[f"{name}/gradient_{metric}"] == 0
        assert after["critic.advantage/gradient_norm"] > 0  # biases still learn

    def test_metrics_of_nan_gradients_are_nan(self, one: Callable[..., Run]) -> None:
        run = one("dqn", "norms(every=1)", "ranks(every=1, samples=16)", "values(every=1, samples=8)", steps=12)
        with torch.no_grad():
            survey(run.agent).layers["critic.head.layers.0"].linear.weight[0] = NAN
        take_steps(run, 2)
        measured = readings(run)
        for key in ("gradient_norm", "gradient_effective_rank", "weight_norm", "effective_rank", "q_mean"):
            assert math.isnan(measured[f"critic/{key}"])

    def test_an_actor_that_did_not_learn_has_an_update_of_zero(self, one: Callable[..., Run]) -> None:
        run = one("redq", "norms(every=1)", "values(every=1, samples=8)")
        stamps: dict[str, set[int]] = {}
        gradients = set()
        for _ in range(40):
            take_steps(run, 1)
            readings(run)
            for key, (value, update) in run.monitors.readings.items():  # type: ignore[union-attr]
                stamps.setdefault(key, set()).add(update)
                gradients |= {value} if key == "actor/gradient_norm" else set()
        updates = stamps["critic/update_to_weight"]
        assert updates == set(range(1, run.clock.updates + 1)) and len(updates) > 30
        learnt = {u for u in updates if u % 4 == 0}
        assert stamps["actor/update_to_weight"] == stamps["actor/entropy"] == stamps["actor/loss"] == learnt
        assert stamps["actor/weight_norm"] == updates
        # The latest gradient is reported until there is a new one.
        assert stamps["actor/gradient_norm"] == {u for u in updates if u >= 4} and len(gradients) == len(learnt)

    def test_frozen_copies_do_not_count_as_layers(self, one: Callable[..., Run]) -> None:
        run = one(
            "dqn",
            "norms(every=1)",
            "units(every=1, samples=8)",
            "ranks(every=1, samples=8)",
            interventions=(PlasticityInjection(at=(3,), of="updates"),),
            steps=14,
        )
        measured = readings(run)
        assert not [key for key in measured if ".injection" in key]
        learning = [p for p in run.agent.components["critic"].online.parameters() if p.requires_grad]
        truth = sum(float(p.detach().double().square().sum()) for p in learning)
        assert measured["critic/weight_norm"] == pytest.approx(math.sqrt(truth), rel=1e-5)

    def test_nothing_is_kept_between_updates(self, one: Callable[..., Run]) -> None:
        run = one("sac", "norms(every=2)", steps=12)
        assert run.monitors.parts["norms"].before == {}  # type: ignore[attr-defined, union-attr]


# ------------------------------------------------------------------------------------------------------------- values


class TestValues:
    @pytest.mark.parametrize("agent", ["dqn, double dueling prioritised 3-step", "redq", "sac, pixels"])
    def test_values_equal_those_of_the_networks(self, agent: str, one: Callable[..., Run]) -> None:
        run = one(agent, "values(every=1, samples=16)", steps=10)
        with record_updates(run) as seen:
            take_steps(run, 2)
        measured, (_, update, _) = readings(run), seen[-1]
        batch, critic = run.monitors._context(run).batch(16), run.agent.components["critic"]  # type: ignore[union-attr]
        both = []
        with torch.no_grad():
            for network in (critic.online, critic.target):
                if agent.startswith("dqn"):
                    q = network(batch.obs)[..., 0]
                    both.append(np.array([[float(q[i, a]) for i, a in enumerate(batch.action)]]))
                else:
                    action = (batch.action - run.agent.center) / run.agent.scale
                    both.append(network(batch.obs, action)[..., 0].double().numpy())
        q, slow = both
        n, b = q.shape
        mean = [sum(q[k, i] for k in range(n)) / n for i in range(b)]
        expected = {
            "critic/q_mean": sum(mean) / b,
            "critic/q_std": math.sqrt(sum((v - sum(mean) / b) ** 2 for v in mean) / b),
            "critic/q_abs_max": max(abs(v) for row in q for v in row),
            "critic/target_gap": sum(abs(q[k, i] - slow[k, i]) for k in range(n) for i in range(b)) / (n * b),
            "critic/td_error": float(update.td_error.double().mean()),
            "critic/loss": float(update.metrics["losses/td_loss" if n == 1 else "losses/qf_loss"]),
        }
        if n > 1:
            expected["critic/ensemble_disagreement"] = (
                sum(math.sqrt(sum((q[k, i] - mean[i]) ** 2 for k in range(n)) / n) for i in range(b)) / b
            )
        if agent == "sac, pixels":
            expected["actor/loss"] = float(update.metrics["losses/actor_loss"])
            expected["actor/entropy"] = float(update.metrics["losses/entropy"])
            expected["actor/temperature"] = float(update.metrics["losses/alpha"])
        assert {key: v for key, v in measured.items() if not key.startswith("actor/")}.keys() == {
            key for key in expected if not key.startswith("actor/")
        }
        close(measured, expected)

    def test_planted_defects_are_measured(self, one: Callable[..., Run]) -> None:
        run = one(sac(VECTOR, target_tau=0.5), "values(every=1, samples=32)", steps=16)
        before = readings(run)
        critic = run.agent.components["critic"]
        with torch.no_grad():
            critic.online.members[0].output.linear.bias += 100.0
        take_steps(run, 1)
        after = readings(run)
        assert after["critic/q_mean"] == pytest.approx(before["critic/q_mean"] + 50, abs=5)
        assert after["critic/q_abs_max"] > 90 and after["critic/td_error"] > 30 + before["critic/td_error"]
        assert after["critic/ensemble_disagreement"] == pytest.approx(50, abs=5)
        assert after["critic/target_gap"] == pytest.approx(25, abs=5)  # the target has moved by half of it
        assert after["critic/q_std"] < 5 and after["critic/loss"] > before["critic/loss"] + 100
        with torch.no_grad():
            critic.online.load_state_dict(critic.target.state_dict())
            for p, q in zip(critic.online.members[0].parameters(), critic.online.members[1].parameters(), strict=True):
                p.copy_(q)
        take_steps(run, 1)
        assert readings(run)["critic/ensemble_disagreement"] < 0.1
        critic.target.load_state_dict(critic.online.state_dict())
        with torch.no_grad():
            critic.online.members[0].output.linear.bias += 50.0
            critic.online.members[1].output.linear.bias -= 50.0
        take_steps(run, 1)
        # One critic is too high by the amount by which the other is too low.
        assert readings(run)["critic/target_gap"] == pytest.approx(25, abs=5)

    def test_an_agent_without_a_target_network_has_no_gap(self, one: Callable[..., Run]) -> None:
        run = one("dqn", "values(every=1, samples=8)", steps=12)
        run.monitors.readings.clear()  # type: ignore[union-attr]
        context = run.monitors._context(run)  # type: ignore[union-attr]
        run.agent.components["critic"].target = None
        measured = dict(run.monitors.parts["values"].measure(context))  # type: ignore[union-attr]
        assert set(measured) == {"critic/q_mean", "critic/q_std", "critic/q_abs_max"}


# -------------------------------------------------------------------------------------------------------- all monitors


@pytest.mark.parametrize("kind", [Units, Norms, Ranks, Values])
def test_invalid_parameters_are_refused(kind: type[Any]) -> None:
    if kind is not Norms:
        with pytest.raises(ValueError, match=f"{kind.name}: samples must be at least 1 transition, not 0"):
            kind(samples=0)
    with pytest.raises(ValueError, match="every must be at least 1, not 0"):
        kind(every=0)


UNDEFINED = ("dormant_overlap", "linearised_fraction", "nonlinearity")


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_is_measured_without_waiting(agent: str) -> None:
    """All four monitors together: every metric is measured, within its bounds, under the guard against waiting."""
    specs = [kind.example for kind in (Units, Norms, Ranks, Values)]
    run = build_run(agent, monitors=specs)
    for name in ("before_update", "after_update"):
        guard(run.monitors, name)
    take_steps(run, 12)
    measured = readings(run)
    seen = {key.rpartition("/")[2] for key in measured}
    known = {metric for kind in (Units, Norms, Ranks, Values) for metric in kind.metrics}
    assert known - seen <= {"ensemble_disagreement", "entropy", "temperature", "target_gap"} and seen <= known
    for key, value in measured.items():
        place, _, metric = key.rpartition("/")
        tanh = place.endswith("projection.layer") or agent == "ppo"
        if metric in UNDEFINED and (metric == "dormant_overlap" or tanh):
            assert math.isnan(value) or 0 <= value <= 1
        elif metric.endswith(("fraction", "overlap", "fraction_0.025", "nonlinearity")):
            assert 0 <= value <= 1, key
        elif "rank" in metric:
            assert 0 <= value <= 16 or metric.startswith("gradient"), key
        else:
            assert math.isfinite(value), key
            assert value >= 0 or metric in ("q_mean", "loss", "entropy"), key


def guard(owner: Any, name: str) -> None:
    """Let a method run under the guard against waiting from now on."""
    inner = getattr(owner, name)

    def guarded(*args: Any) -> None:
        with no_wait():
            inner(*args)

    setattr(owner, name, guarded)


def test_layers_are_grouped_by_their_place() -> None:
    names = ["critic.encoder.blocks.0", "critic.head.0", "actor.body.0", "critic.output"]
    assert metrics.pools(names) == {
        "critic": [names[0], names[1], names[3]],
        "encoder": [names[0]],
        "actor": [names[2]],
    }
    assert list(_empty()) == []


def _empty() -> Iterator[str]:
    return iter(metrics.pools([]))

"""Value heads: values computed by hand, use in agents, and intervention specs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from no_wait import no_wait
from torch import Tensor

from pliant.agents import DQN, SAC, ActionSpec, Agent, Batch, Clock, DQNConfig, SACConfig
from pliant.agents.heads import (
    C51,
    HEADS,
    MSE,
    HeadConfig,
    HLGauss,
    Huber,
    Quantile,
    Symlog,
    TwoHot,
    ValueHead,
    ValueMapping,
    build_head,
    symexp,
    symlog,
)
from pliant.agents.networks import NetworkConfig
from pliant.interventions.core.spec import SpecError, build
from pliant.interventions.value_losses import ValueLoss
from pliant.interventions.value_losses import __dict__ as losses
from pliant.interventions.value_mapping import ValueMapping as ValueMappingIntervention

INTERVENTIONS: dict[str, Any] = {
    kind.name: kind
    for kind in (*losses.values(), ValueMappingIntervention)
    if isinstance(kind, type) and issubclass(kind, ValueLoss) and kind.name
}
CATEGORICAL = ("c51", "two_hot", "hl_gauss")
# Every head, and every form of the heads that have several.
FORMS: dict[str, HeadConfig] = {name: HeadConfig(bins=21, quantiles=7) for name in HEADS} | {
    "two_hot, symlog": HeadConfig(bins=21, low=-4.0, high=4.0, symlog=True),
    "value_mapping, log": HeadConfig(mapping="log", clip=0.0),
    "value_mapping, bands": HeadConfig(channels="bands", levels=2),
    "value_mapping, cumulative": HeadConfig(channels="cumulative", levels=2),
}
# The time of an example depends on the load of the machine.
without_deadline = settings(deadline=None)
every_form = pytest.mark.parametrize("form", FORMS)


def head_of(form: str, **options: Any) -> ValueHead:
    return build_head(form.partition(",")[0], FORMS[form], **options)


def peaked(probabilities: Sequence[float]) -> Tensor:
    """Logits of one sample with these probabilities."""
    return torch.tensor([probabilities]).log()


def approx(values: Any, tolerance: float = 1e-5) -> Any:
    return pytest.approx(values, abs=tolerance)


# ------------------------------------------------------------------------------------------------- mse, huber, symlog


def test_the_mse_loss_is_half_the_squared_error() -> None:
    loss = MSE().loss(torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 5.0]))
    assert loss.tolist() == [0.5, 4.5]


def test_huber_is_quadratic_within_delta_and_linear_beyond() -> None:
    logits = torch.tensor([[0.5], [3.0], [-3.0]])
    assert Huber().loss(logits, torch.zeros(3)).tolist() == [0.125, 2.5, 2.5]
    assert Huber(HeadConfig(delta=2.0)).loss(logits, torch.zeros(3)).tolist() == [0.125, 4.0, 4.0]


def test_all_members_of_an_ensemble_get_the_same_target() -> None:
    logits = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    for head in (MSE(), Huber()):
        assert head.loss(logits, torch.zeros(2)).shape == (2, 2)
        assert head.error(logits, torch.ones(2)).tolist() == [[0.0, 1.0], [2.0, 3.0]]


def test_a_backup_does_not_bootstrap_where_the_discount_is_zero() -> None:
    target = MSE().backup(torch.tensor([[10.0], [10.0]]), torch.tensor([1.0, 1.0]), torch.tensor([0.9, 0.0]))
    assert target.tolist() == [10.0, 1.0]


def test_symlog_equals_values_computed_by_hand() -> None:
    assert symlog(torch.tensor([10.0, -10.0, 0.0])).tolist() == approx([2.397895, -2.397895, 0.0])
    head = Symlog()
    assert head.value(torch.tensor([[2.397895], [-2.397895]])).tolist() == approx([10.0, -10.0], 1e-4)
    assert head.loss(torch.tensor([[2.0]]), torch.tensor([10.0])).item() == approx(0.5 * 0.397895**2)
    # The target is a plain return; the successor's value is mapped back before it is discounted.
    assert head.backup(torch.tensor([[2.397895]]), torch.tensor([1.0]), torch.tensor([0.5])).item() == approx(6.0, 1e-4)


@without_deadline
@given(st.floats(-1e4, 1e4))
def test_symexp_inverts_symlog(x: float) -> None:
    back = symexp(symlog(torch.tensor([x], dtype=torch.float64)))
    assert back.item() == pytest.approx(x, rel=1e-9, abs=1e-9)


def test_values_have_a_gradient_at_zero() -> None:
    """An actor that maximises a value needs a gradient where the outputs of a fresh network are exactly zero."""
    for head, slope in ((Symlog(), [1.0]), (ValueMapping(), [2.0, -2.0]), (MSE(), [1.0])):
        logits = torch.zeros(1, head.outputs, requires_grad=True)
        head.value(logits).sum().backward()
        assert logits.grad is not None and logits.grad[0].tolist() == slope


# ------------------------------------------------------------------------------------------------------------ c51


def test_the_c51_projection_equals_values_computed_by_hand() -> None:
    head = C51(HeadConfig(bins=3, low=-1.0, high=1.0))
    target = head.backup(peaked([0.2, 0.5, 0.3]), torch.tensor([0.25]), torch.tensor([0.5]))
    assert target[0].tolist() == approx([0.05, 0.60, 0.35])
    assert (target * head.support).sum().item() == approx(0.3)


@pytest.mark.parametrize(
    ("reward", "discount", "expected"),
    [
        (0.0, 1.0, [0.2, 0.5, 0.3]),  # every shifted atom is an atom
        (1.0, 1.0, [0.0, 0.2, 0.8]),  # the same, one step up and clipped at the end
        (-1.0, 1.0, [0.7, 0.3, 0.0]),
        (0.0, 0.0, [0.0, 1.0, 0.0]),  # the end of an episode: only the reward
        (1.0, 0.0, [0.0, 0.0, 1.0]),
        (-7.0, 0.0, [1.0, 0.0, 0.0]),  # beyond the support
        (0.5, 0.0, [0.0, 0.5, 0.5]),
    ],
)
def test_c51_projects_all_mass_onto_the_support(reward: float, discount: float, expected: list[float]) -> None:
    head = C51(HeadConfig(bins=3, low=-1.0, high=1.0))
    target = head.backup(peaked([0.2, 0.5, 0.3]), torch.tensor([reward]), torch.tensor([discount]))
    assert target[0].tolist() == approx(expected)


@without_deadline
@given(
    st.integers(2, 60),
    st.floats(-50, 50),
    st.floats(0.0, 1.0),
    st.integers(0, 10_000),
    st.sampled_from([(-10.0, 10.0), (0.0, 1.0), (-3.0, 7.0)]),
)
def test_c51_conserves_mass_and_the_mean_within_the_support(
    bins: int, reward: float, discount: float, seed: int, ends: tuple[float, float]
) -> None:
    head = C51(HeadConfig(bins=bins, low=ends[0], high=ends[1]))
    logits = torch.randn(1, bins, generator=torch.Generator().manual_seed(seed))
    target = head.backup(logits, torch.tensor([reward]), torch.tensor([discount]))
    assert (target >= 0).all() and target.sum().item() == approx(1.0)
    atoms = (reward + discount * head.support).clamp(*ends)
    expected = (logits.softmax(-1) * atoms).sum().item()
    assert (target * head.support).sum().item() == approx(expected, 1e-4)


def test_c51_has_a_gradient_for_atoms_of_zero_probability() -> None:
    head = C51(HeadConfig(bins=3, low=-1.0, high=1.0))
    logits = torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True)
    head.loss(logits, torch.tensor([[0.0, 0.0, 1.0]])).sum().backward()
    assert logits.grad is not None and logits.grad[0].tolist() == approx([1.0, 0.0, -1.0])


def test_the_c51_error_is_the_difference_of_the_means() -> None:
    head = C51(HeadConfig(bins=3, low=-1.0, high=1.0))
    assert head.error(peaked([0.2, 0.5, 0.3]), torch.tensor([[0.5, 0.5, 0.0]])).item() == approx(0.6)


# ------------------------------------------------------------------------------------------------ two-hot, hl-gauss


def test_hl_gauss_equals_values_computed_by_hand() -> None:
    def spread(y: float, **config: Any) -> Tensor:
        return HLGauss(HeadConfig(**config)).distribution(torch.tensor([y]))[0]

    assert spread(0.0, bins=2, low=-1.0, high=1.0).tolist() == approx([0.5, 0.5])
    two = HLGauss(HeadConfig(bins=2, low=-1.0, high=1.0))
    half = two.distribution(torch.tensor([0.5]))[0]
    assert half.tolist() == approx([0.316992, 0.683008])
    assert (half * two.support).sum().item() == approx(0.183008)
    assert spread(0.0, bins=3, low=-3.0, high=3.0).tolist() == approx([0.240694, 0.518612, 0.240694])
    # Sigma is in units of the bin width.
    assert torch.equal(
        spread(0.2, bins=2, low=-2.0, high=2.0, sigma=0.375), spread(0.1, bins=2, low=-1.0, high=1.0, sigma=0.375)
    )
    top = spread(0.0).sort(descending=True).values[:4]
    assert top.tolist() == approx([0.4950, 0.2297, 0.2297, 0.0223], 1e-4)
    head = HLGauss()
    mean = (head.distribution(torch.tensor([9.9, 10.0, 1e9, 3.21])) * head.support).sum(-1)
    assert mean.tolist() == approx([9.69837, 9.72935, 9.72935, 3.21], 2e-5)


def test_the_support_of_hl_gauss_holds_edges_and_that_of_two_hot_centres() -> None:
    config = HeadConfig(bins=4, low=-2.0, high=2.0)
    assert HLGauss(config).support.tolist() == [-1.5, -0.5, 0.5, 1.5]
    assert TwoHot(replace(config, bins=5)).support.tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert C51(replace(config, bins=5)).support.tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]


@without_deadline
@given(st.floats(-1e6, 1e6), st.integers(2, 101), st.floats(0.1, 5.0))
def test_hl_gauss_sums_to_one_and_is_symmetric(y: float, bins: int, sigma: float) -> None:
    head = HLGauss(HeadConfig(bins=bins, low=-5.0, high=5.0, sigma=sigma))
    p, q = head.distribution(torch.tensor([y, -y]))
    assert p.isfinite().all() and (p >= 0).all() and p.sum().item() == approx(1.0)
    torch.testing.assert_close(p, q.flip(0), atol=1e-5, rtol=0)


def test_the_mean_of_hl_gauss_grows_with_its_target() -> None:
    head = HLGauss()
    mean = (head.distribution(torch.linspace(-10, 10, 500)) * head.support).sum(-1)
    assert (mean.diff() > 0).all()


def test_two_hot_equals_values_computed_by_hand() -> None:
    head = TwoHot(HeadConfig(bins=3, low=-1.0, high=1.0))
    spread = head.distribution(torch.tensor([0.25, -1.0, 1.0, 0.0, 7.0, -7.0]))
    expected = [[0, 0.75, 0.25], [1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert [p.tolist() for p in spread] == [approx(p) for p in expected]
    wide = TwoHot(HeadConfig(bins=3, low=-2.397895, high=2.397895, symlog=True))
    assert wide.support.tolist() == approx([-10.0, 0.0, 10.0], 1e-4)
    # The weights are computed from plain values for any spacing: the mean is the target, not its symlog.
    assert wide.distribution(torch.tensor([2.5]))[0].tolist() == approx([0.0, 0.75, 0.25])


@without_deadline
@given(st.floats(-30, 30), st.integers(2, 101), st.booleans())
def test_the_mean_of_two_hot_is_its_target(y: float, bins: int, spaced: bool) -> None:
    head = TwoHot(HeadConfig(bins=bins, low=-3.0, high=3.5, symlog=spaced))
    p = head.distribution(torch.tensor([y]))[0]
    low, high = (float(head.support[i]) for i in (0, -1))
    assert (p >= 0).all() and (p > 0).sum() <= 2 and p.sum().item() == approx(1.0)
    assert (p * head.support).sum().item() == pytest.approx(min(max(y, low), high), abs=1e-4)


def test_zero_logits_of_a_symlog_spaced_head_give_the_value_zero() -> None:
    head = TwoHot(HeadConfig(bins=255, low=-20.0, high=20.0, symlog=True))
    assert abs(head.value(torch.zeros(1, 255)).item()) < 1e-12


@pytest.mark.parametrize("name", CATEGORICAL)
def test_the_gradient_of_a_categorical_loss_is_softmax_minus_target(name: str) -> None:
    head = build_head(name, HeadConfig(bins=11))
    logits = torch.randn(3, 4, 11, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.tensor([-2.0, 0.3, 8.0, 99.0])
    if name == "c51":
        target = head.backup(torch.zeros(4, 11), target, torch.full((4,), 0.5))
    head.loss(logits, target).sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(-1) - head.distribution(target))  # type: ignore[operator]


@pytest.mark.parametrize("name", CATEGORICAL)
def test_cross_entropy_stays_in_single_precision(name: str) -> None:
    head = build_head(name)
    logits = torch.randn(4, 51, generator=torch.Generator().manual_seed(0)).bfloat16()
    target = head.backup(logits, torch.linspace(-5, 5, 4), torch.ones(4))
    assert torch.equal(head.value(logits), head.value(logits.float()))
    assert torch.equal(head.loss(logits, target), head.loss(logits.float(), target))


# ------------------------------------------------------------------------------------------------------- quantiles


def test_the_quantile_loss_equals_values_computed_by_hand() -> None:
    head = Quantile(HeadConfig(quantiles=2))
    # u = (2, 1), Huber (1.5, 0.5), times tau (0.25, 0.75): summed over predicted, averaged over target quantiles.
    assert head.loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 2.0]])).item() == approx(0.75)
    # Two target quantiles: u_11 = 1, u_12 = -1, u_21 = 0, u_22 = -2: (0.25 + 0.75) / 2 * 0.5 + 0.25 / 2 * 1.5.
    assert head.loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, -1.0]])).item() == approx(0.4375)
    # Kappa divides: 0.25 * 2 / 2 + 0.75 * 0.5 / 2.
    soft = Quantile(HeadConfig(quantiles=2, delta=2.0))
    assert soft.loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 2.0]])).item() == approx(0.4375)
    assert head.value(torch.tensor([[1.0, 4.0]])).item() == 2.5
    assert head.backup(torch.tensor([[1.0, 4.0]]), torch.tensor([1.0]), torch.tensor([0.5])).tolist() == [[1.5, 3.0]]
    assert head.error(torch.tensor([[1.0, 4.0]]), torch.tensor([[1.5, 2.5]])).item() == 0.5


def test_the_quantiles_of_a_uniform_return_are_learnt() -> None:
    """The quantiles of returns that are uniform in [0, 1] equal their levels."""
    head = Quantile(HeadConfig(quantiles=5, delta=0.01))
    theta = torch.zeros(1, 5, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.01)
    target = torch.linspace(0, 1, 201).view(1, -1)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(theta, target).sum().backward()
        optimizer.step()
    assert theta[0].tolist() == approx([0.1, 0.3, 0.5, 0.7, 0.9], 0.02)


# --------------------------------------------------------------------------------------------------- value mapping


def test_the_logarithmic_mapping_equals_values_computed_by_hand() -> None:
    head = ValueMapping(HeadConfig(mapping="log"))
    f = lambda x: head.mapped(torch.tensor([x], dtype=torch.float64)).item()  # noqa: E731
    assert f(0.01687) == approx(-2.041109, 1e-6)
    assert f(1.0) == 0.0 and f(math.e**2) == approx(1.0)
    shifted = ValueMapping(HeadConfig(mapping="log", c=2.0, shift=0.5))
    assert shifted.mapped(torch.tensor([math.e])).item() == approx(2.5)


@pytest.mark.parametrize(("c", "shift"), [(0.5, 0.0), (0.5, 0.4), (2.0, -1.0)])
def test_loglin_is_smooth_where_its_two_parts_meet(c: float, shift: float) -> None:
    head = ValueMapping(HeadConfig(c=c, shift=shift))
    knee = math.exp(-shift / c)
    x = torch.tensor([knee * (1 - 1e-9), knee * (1 + 1e-9)], dtype=torch.float64, requires_grad=True)
    y = head.mapped(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert y.tolist() == approx([0.0, 0.0], 1e-8)
    assert slope.tolist() == approx([c / knee, c / knee], 1e-6)
    # Above the knee: the line c exp(shift / c) x - c.
    assert head.mapped(torch.tensor([3 * knee])).item() == approx(2 * c, 1e-6)


@without_deadline
@given(st.floats(0.01687, 100.0), st.floats(0.2, 2.0), st.floats(-1.0, 1.0), st.sampled_from(["log", "loglin"]))
def test_the_mapping_is_inverted_exactly(x: float, c: float, shift: float, mapping: Any) -> None:
    head = ValueMapping(HeadConfig(mapping=mapping, c=c, shift=shift))
    back = head.returns(head.mapped(torch.tensor([x], dtype=torch.float64)))
    assert back.item() == pytest.approx(x, rel=1e-9)


def test_polar_channels_split_a_reward_by_its_sign() -> None:
    head = ValueMapping()
    assert head.outputs == 2 and head.weights.tolist() == [1.0, -1.0]
    assert head.split(torch.tensor([0.5, 3.0, -0.25, -9.0, 0.0])).tolist() == [
        [0.5, 0.0],
        [1.0, 0.0],
        [0.0, 0.25],
        [0.0, 1.0],
        [0.0, 0.0],
    ]
    assert ValueMapping(HeadConfig(clip=0.0)).split(torch.tensor([30.0])).tolist() == [[30.0, 0.0]]


def test_channels_by_magnitude_split_a_reward_by_its_size() -> None:
    bands = ValueMapping(HeadConfig(channels="bands", levels=3))
    assert bands.weights.tolist() == [1, 10, 100, -1, -10, -100]
    assert bands.split(torch.tensor([0.5, 1.0, 5.0, 25.0, 1e4, -2.0])).tolist() == [
        [0.5, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [0, 0.5, 0, 0, 0, 0],
        [0, 0, 0.25, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, pytest.approx(0.2), 0],
    ]
    filled = ValueMapping(HeadConfig(channels="cumulative", levels=3))
    assert filled.weights.tolist() == [1, 9, 90, -1, -9, -90]
    assert filled.split(torch.tensor([0.5, 5.5, 25.0, 1e4, -10.0])).tolist() == [
        [0.5, 0, 0, 0, 0, 0],
        [1, 0.5, 0, 0, 0, 0],
        [1, 1, pytest.approx(15 / 90), 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0],
    ]


@without_deadline
@given(st.floats(-100, 100), st.sampled_from(["polar", "bands", "cumulative"]))
def test_channels_add_up_to_the_reward(reward: float, channels: Any) -> None:
    head = ValueMapping(HeadConfig(channels=channels, levels=3, clip=0.0))
    parts = head.split(torch.tensor([reward]))
    assert (parts >= 0).all() and head.total(parts).item() == pytest.approx(reward, rel=1e-5, abs=1e-5)


def test_value_mapping_equals_values_computed_by_hand() -> None:
    head = ValueMapping(HeadConfig(beta=0.5, mapping="log"), gamma=0.9)
    next_logits = head.mapped(torch.tensor([[4.0, 2.0]]))
    target = head.backup(next_logits, torch.tensor([0.5]), torch.tensor([0.9]))
    assert target[0].tolist() == approx([0.5 + 0.9 * 4, 0.9 * 2])
    logits = head.mapped(torch.tensor([[2.0, 1.0]])).requires_grad_()
    assert head.value(logits).item() == approx(1.0)
    assert head.error(logits, target).item() == approx(abs(4.1 - 1.8 - 1.0))
    # Averaged in the space of returns: (2 + 4.1) / 2 and (1 + 1.8) / 2; then mapped.
    loss = head.loss(logits, target)
    goal = [0.5 * math.log(3.05), 0.5 * math.log(1.4)]
    held = [0.5 * math.log(2.0), 0.0]
    assert loss.item() == approx(sum(0.5 * (g - h) ** 2 for g, h in zip(goal, held, strict=True)))
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == approx([h - g for g, h in zip(goal, held, strict=True)])


def test_value_mapping_clips_returns_at_both_ends() -> None:
    head = ValueMapping(HeadConfig(mapping="log", beta=1.0), gamma=0.9)
    target = head.backup(torch.full((1, 2), 5.0), torch.tensor([0.0]), torch.tensor([0.9]))
    assert target[0].tolist() == approx([9.0, 9.0])
    # A return of zero has no logarithm: the target is epsilon.
    loss = head.loss(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.float64))
    assert loss.item() == approx(2 * (2.041109 - 0.5))
    # The network's own values are also clipped before they are averaged.
    still = ValueMapping(HeadConfig(mapping="log", beta=0.5), gamma=0.9)
    goal = 0.5 * math.log(10.0)
    loss = still.loss(torch.full((1, 2), 3.0), torch.full((1, 2), 10.0, dtype=torch.float64))
    assert loss.item() == approx(2 * (3.0 - goal - 0.5))
    assert ValueMapping(HeadConfig(limit=3.0)).limit == 3.0
    assert ValueMapping(HeadConfig(clip=2.0), gamma=0.5).limit == 4.0
    assert ValueMapping(HeadConfig(channels="bands", clip=2.0), gamma=0.5).limit == 2.0


def test_freshly_initialised_channels_start_at_the_shift_and_cancel() -> None:
    for shift, start in ((0.0, 1.0), (1.0, math.exp(-2.0))):
        head = ValueMapping(HeadConfig(shift=shift))
        assert head.returns(torch.zeros(1, 2))[0].tolist() == approx([start, start])
        assert head.value(torch.zeros(1, 2)).item() == 0.0


# -------------------------------------------------------------------------------------------------- every head


@every_form
def test_every_head_has_the_right_shapes_for_actions_and_ensembles(form: str) -> None:
    head, draw = head_of(form), torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, head.outputs, generator=draw)
    assert head.value(logits).shape == (3, 4)
    target = head.backup(logits[0], torch.randn(4, generator=draw), torch.full((4,), 0.9))
    assert target.shape[0] == 4 and not target.isnan().any()
    for some in (logits, logits[1]):
        loss, error = head.loss(some, target), head.error(some, target)
        assert loss.shape == error.shape == some.shape[:-1]
        assert loss.dtype == error.dtype == torch.float32 and (error >= 0).all()
    # The loss of an ensemble holds the losses of its members.
    torch.testing.assert_close(head.loss(logits, target)[1], head.loss(logits[1], target))
    torch.testing.assert_close(head.error(logits, target)[1], head.error(logits[1], target))


@every_form
def test_no_gradient_flows_through_the_target(form: str) -> None:
    """The gradient equals that for a fixed target, and is finite for any error of the value."""
    head = head_of(form)
    for size in (0.1, 1.0, 30.0):
        logits = (size * torch.randn(64, head.outputs, generator=torch.Generator().manual_seed(1))).requires_grad_()
        target = head.backup(logits.detach(), torch.linspace(-1e3, 1e3, 64), torch.full((64,), 0.99))
        head.loss(logits, target).sum().backward()
        assert logits.grad is not None and logits.grad.isfinite().all()
        value = logits.detach().requires_grad_()
        head.value(value).sum().backward()
        assert value.grad is not None and value.grad.isfinite().all()


@every_form
def test_the_loss_is_smallest_where_the_value_is_the_target(form: str) -> None:
    """Descent from a fresh network's outputs leads to the target."""
    head = head_of(form)
    reward, discount = torch.tensor([0.7, -0.4, 0.1, -1.0]), torch.zeros(4)
    logits = torch.zeros(4, head.outputs, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    target = head.backup(logits.detach(), reward, discount)
    for _ in range(1500):
        optimizer.zero_grad()
        head.loss(logits, target).sum().backward()
        optimizer.step()
    # Two channels of logarithms cannot represent zero, only epsilon; channels by magnitude have it in each.
    tolerance = 0.02 + (0.01687 * head.weights.abs().sum().item() / 2 if isinstance(head, ValueMapping) else 0.0)
    assert head.value(logits).tolist() == approx(reward.tolist(), tolerance)
    assert head.error(logits, target).max() < tolerance


@every_form
def test_a_terminal_target_does_not_depend_on_the_successor(form: str) -> None:
    head = head_of(form)
    reward, discount = torch.tensor([0.5, -0.5]), torch.zeros(2)
    first, second = (head.backup(torch.randn(2, head.outputs), reward, discount) for _ in range(2))
    torch.testing.assert_close(first, second)


@every_form
def test_heads_hold_no_state_that_a_checkpoint_needs(form: str) -> None:
    head = head_of(form)
    assert not head.state_dict() and not list(head.parameters())
    assert all(not buffer.requires_grad and buffer.dtype == torch.float32 for buffer in head.buffers())


@every_form
def test_moving_a_head_to_a_device_moves_all_its_tensors(form: str) -> None:
    """A tensor that stayed on the CPU could not be combined with tensors on the meta device."""
    head = head_of(form).to("meta")
    logits = torch.zeros(2, 3, head.outputs, device="meta")
    target = head.backup(logits[0], torch.zeros(3, device="meta"), torch.zeros(3, device="meta"))
    for result in (head.value(logits), head.loss(logits, target), head.error(logits, target)):
        assert result.device.type == "meta" and result.shape == (2, 3)


@every_form
def test_heads_never_wait_for_the_device(form: str) -> None:
    head = head_of(form)
    logits = torch.randn(2, 3, head.outputs, requires_grad=True)
    with no_wait():
        target = head.backup(logits.detach()[0], torch.randn(3), torch.ones(3))
        head.loss(logits, target).sum().backward()
        head.error(logits.detach(), target)
        head.value(logits).sum().backward()


def test_unknown_losses_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown value loss 'hubert'; known: mse, huber"):
        build_head("hubert")
    with pytest.raises(ValueError, match="value_mapping splits rewards one by one: n_step must be 1, not 3"):
        build_head("value_mapping", n_step=3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"delta": 0.0},
        {"sigma": -1.0},
        {"bins": 1},
        {"quantiles": 0},
        {"low": 10.0},
        {"high": math.inf},
        {"c": 0.0},
        {"epsilon": 0.0},
        {"beta": 0.0},
        {"beta": 1.5},
        {"levels": 0},
        {"clip": -1.0},
        {"limit": -1.0},
        {"shift": 1e3},
        {"shift": math.nan},
        {"mapping": "exp"},
        {"channels": "four"},
        {"symlog": True, "high": 1e3},
    ],
)
def test_invalid_parameters_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as refusal:
        HeadConfig(**wrong)
    field = next(reversed(wrong))
    assert field in str(refusal.value) and "\n" not in str(refusal.value)


# ------------------------------------------------------------------------------------------------------- in agents

NET = NetworkConfig(hidden=(32,))
BOX = ActionSpec(2, discrete=False, low=(-1.0, -1.0), high=(1.0, 1.0))
DQN_BASE = DQNConfig(network=NET, learning_starts=0, target_period=5)
SAC_BASE = SACConfig(network=NET, actor_network=NET, learning_starts=0)
KINDS: dict[str, Any] = {
    "dqn": DQN_BASE,
    "dqn, double dueling prioritised": replace(DQN_BASE, double=True, dueling=True, prioritised=True),
    "sac": SAC_BASE,
    "redq": replace(SAC_BASE, critics=5, target_critics=2, actor_value="mean", actor_period=3),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def agent_of(kind: str, form: str, **options: Any) -> Agent:
    config = replace(KINDS[kind], value_loss=form.partition(",")[0], head=FORMS[form])
    make: Any = DQN if kind.startswith("dqn") else SAC
    return make((3,), 2 if make is DQN else BOX, config, **options)


def batch_for(agent: Agent, seed: int, reward: float | None = None, n: int = 16) -> Batch:
    """Random transitions; with a reward, terminal transitions with this reward."""
    g = torch.Generator().manual_seed(seed)
    action = torch.randint(2, (n,), generator=g) if agent.action.discrete else torch.rand(n, 2, generator=g) * 2 - 1
    ended = torch.rand(n, generator=g) < 0.3 if reward is None else torch.ones(n, dtype=torch.bool)
    rewards = torch.randn(n, generator=g) if reward is None else torch.full((n,), reward)
    return Batch(
        torch.randn(n, 3, generator=g),
        action,
        rewards,
        0.99 * (~ended).float(),
        torch.randn(n, 3, generator=g),
        torch.rand(n, generator=g) + 0.5,
        torch.arange(n),
    )


def learn(agent: Agent, clock: Clock, updates: int, reward: float | None = None) -> Clock:
    for _ in range(updates):
        clock = clock.stepped(1).updated()
        agent.update(batch_for(agent, clock.updates, reward), agent.plan(clock))
    return clock


def weights(agent: Agent) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, module in agent.modules()
        for key, value in module.state_dict().items()
        if isinstance(value, Tensor)
    }


def values(agent: Any, batch: Batch) -> Tensor:
    online = agent.critic.online
    with torch.no_grad():
        return agent.head.value(online(batch.obs) if agent.action.discrete else online(batch.obs, batch.action))


@pytest.mark.parametrize("kind", ["dqn, double dueling prioritised", "sac"])
@every_form
def test_every_head_learns_a_constant_reward(kind: str, form: str) -> None:
    """A constant reward at the end of every transition becomes the value of every state."""
    agent: Any = agent_of(kind, form)
    for group in agent.critic.optimizer.param_groups:
        group["lr"] = 3e-3
    learn(agent, Clock(), 200, reward=0.6)
    assert values(agent, batch_for(agent, 1)).mean().item() == pytest.approx(0.6, abs=0.1)


@every_kind
@every_form
def test_every_head_acts_updates_and_resumes(kind: str, form: str, tmp_path: Path) -> None:
    agent = agent_of(kind, form)
    clock = learn(agent, Clock(), 6)
    batch, obs = batch_for(agent, 99), torch.randn(2, 3)
    with no_wait():
        for acting in (None, clock):
            agent.act(obs, acting)
        update = agent.update(batch, agent.plan(clock.updated()))
    assert update.td_error.shape == (16,) and (update.td_error >= 0).all() and update.td_error.isfinite().all()
    assert all(metric.isfinite() for metric in update.metrics.values())
    agent.save(tmp_path / "agent.pt")
    loaded = type(agent).load(tmp_path / "agent.pt")
    assert loaded.config == agent.config
    learn(agent, clock, 3)
    learn(loaded, clock, 3)
    mine, theirs = weights(agent), weights(loaded)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@every_form
def test_sac_bootstraps_from_the_critic_of_the_smallest_value(form: str) -> None:
    agent: Any = agent_of("sac", form)
    batch, head = batch_for(agent, 0), agent.head
    state = agent.generator.get_state()
    target = agent.target(batch)
    agent.generator.set_state(state)
    with torch.no_grad():
        action, log_prob = agent.policy(batch.next_obs)
        logits = agent.critic.target(batch.next_obs, action)
        reward = batch.reward - batch.discount * agent.temperature() * log_prob
        both = torch.stack([head.backup(member, reward, batch.discount) for member in logits])
    first = (head.value(logits[0]) <= head.value(logits[1])).view(-1, *(1,) * (target.ndim - 1))
    torch.testing.assert_close(target, torch.where(first, both[0], both[1]))


def test_the_greedy_action_has_the_largest_mean() -> None:
    """Not the largest logit: action 1 always gives 0.5, action 0 most likely 1 and otherwise -1."""
    agent: Any = DQN(
        (3,),
        2,
        replace(
            DQN_BASE, network=NetworkConfig(hidden=()), value_loss="c51", head=HeadConfig(bins=3, low=-1.0, high=1.0)
        ),
    )
    with torch.no_grad():
        agent.critic.online.advantage.linear.weight.zero_()
        agent.critic.online.advantage.linear.bias.copy_(torch.tensor([0.45, 0.0001, 0.5499, 0.0001, 0.5, 0.4999]).log())
    assert agent.act(torch.zeros(1, 3)).tolist() == [1]


# ------------------------------------------------------------------------------------------------- intervention specs


def configured(config: Any, *specs: str) -> Any:
    return build(specs, INTERVENTIONS).configure(config)


def test_every_head_has_an_intervention() -> None:
    assert set(INTERVENTIONS) == set(HEADS)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("base", [DQN_BASE, SAC_BASE])
def test_a_spec_without_arguments_is_the_head_with_its_defaults(name: str, base: Any) -> None:
    assert configured(base, name) == replace(base, value_loss=name)


@pytest.mark.parametrize("name", HEADS)
def test_interventions_of_heads_are_documented_and_set_the_head(name: str) -> None:
    intervention = INTERVENTIONS[name]
    lines = [line.strip() for line in intervention.__doc__.splitlines()]
    for part in ("When:", "Paper:", "Differs:", "Excludes:"):
        assert sum(line.startswith(part) for line in lines) == 1
    agent = DQN((3,), 2, DQN_BASE, interventions=tuple(build([intervention.example], INTERVENTIONS)))
    assert type(agent.head) is HEADS[name]
    learn(agent, Clock(), 2)


def test_specs_set_their_parameters_and_no_others() -> None:
    base = replace(DQN_BASE, head=HeadConfig(delta=3.0, bins=7), reward_clip=1.0)
    for spec, expected in (
        ("huber(2)", {"delta": 2.0}),
        ("c51(bins=21, low=-1, high=4)", {"bins": 21, "low": -1.0, "high": 4.0}),
        ("two_hot(bins=9, low=-5, high=5, symlog=True)", {"bins": 9, "low": -5.0, "high": 5.0, "symlog": True}),
        ("hl_gauss(bins=101, sigma=2)", {"bins": 101, "low": -10.0, "high": 10.0, "sigma": 2.0}),
        ("quantile(quantiles=32, delta=0.5)", {"quantiles": 32, "delta": 0.5}),
        ("mse", {}),
    ):
        config = configured(base, spec)
        assert config.head == replace(base.head, **expected) and config.reward_clip == 1.0
    config = configured(
        base,
        "value_mapping(mapping=log, channels=bands, levels=2, c=1, shift=0.5, epsilon=0.1, beta=1,"
        "delta=2, clip=3, limit=4)",
    )
    assert config.head == replace(
        base.head,
        mapping="log",
        channels="bands",
        levels=2,
        c=1.0,
        shift=0.5,
        epsilon=0.1,
        beta=1.0,
        delta=2.0,
        clip=3.0,
        limit=4.0,
    )
    assert config.reward_clip == 0.0  # otherwise all magnitudes would be equal


def test_every_parameter_of_the_heads_is_in_a_spec() -> None:
    parameters = {name for intervention in INTERVENTIONS.values() for name in intervention().parameters_of_head}
    assert parameters == {f.name for f in fields(HeadConfig)}


def test_invalid_specs_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="hl_gauss and c51 exclude each other: both reserve value_loss"):
        build(["c51", "hl_gauss"], INTERVENTIONS)
    with pytest.raises(SpecError, match="c51: bins must be at least 2, not 1"):
        build(["c51(bins=1)"], INTERVENTIONS)
    with pytest.raises(ValueError, match="value_mapping splits rewards one by one: n_step must be 1, not 3"):
        configured(replace(DQN_BASE, n_step=3), "value_mapping")
    with pytest.raises(ValueError, match="quantile: this agent has no value loss"):
        configured(NET, "quantile")
    with pytest.raises(ValueError, match="value_mapping splits rewards one by one"):
        DQN((3,), 2, replace(DQN_BASE, n_step=3, value_loss="value_mapping"))

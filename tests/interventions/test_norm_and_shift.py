"""Layer normalisation in its placements, and random shifts of images, compared with their definitions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from stand import Stand, only, parameters
from test_agents import BOX, DQN_SMALL, SAC_SMALL, SMALL_PIXELS, batch_for
from torch import Generator, Tensor, nn

from pliant.agents import DQN, SAC, Agent, Intervention
from pliant.agents.networks import Layer, NetworkConfig, Projection, all_layers
from pliant.common.spaces import ObservationSpec
from pliant.interventions.layer_norm import LayerNorm
from pliant.interventions.random_shift import RandomShift, crop
from pliant.interventions.redo import ReDo

MINATAR = ObservationSpec((4, 10, 10), torch.uint8, 1.0)


def on_images(*parts: Intervention, **network: Any) -> DQN:
    config = replace(DQN_SMALL, network=NetworkConfig(**{"hidden": (12, 10), "body": "drq", "width": 0.25} | network))
    return DQN(SMALL_PIXELS, 3, config, interventions=parts)


def with_actor(*parts: Intervention) -> SAC:
    network = NetworkConfig(hidden=(12, 10), body="drq", width=0.25)
    return SAC(SMALL_PIXELS, BOX, replace(SAC_SMALL, network=network), interventions=parts)


def normed(network: nn.Module) -> list[str]:
    """The layers with a norm, except projections, which always have one."""
    own = {m.layer for m in network.modules() if isinstance(m, Projection)}
    return [name for name, layer in all_layers(network).items() if layer.norm is not None and layer not in own]


CONVS, DENSE = [f"encoder.blocks.{i}" for i in range(4)], ["head.layers.0", "head.layers.1"]


@pytest.mark.parametrize(
    ("placement", "expected"), [("all", CONVS + DENSE), ("dense", DENSE), ("encoder", CONVS), ("last", DENSE[-1:])]
)
def test_norms_are_placed_as_configured_and_never_after_the_last_map(placement: Any, expected: list[str]) -> None:
    for layers in (
        normed(on_images(LayerNorm(placement=placement)).critic.online),
        normed(on_images(LayerNorm(placement=placement)).critic.target),
    ):  # type: ignore[arg-type]
        assert layers == expected
    assert not normed(on_images().critic.online)


@pytest.mark.parametrize(("on", "critic", "actor"), [("critic", 8, 0), ("actor", 0, 2), ("both", 8, 2)])
def test_norms_are_added_only_to_the_named_components(on: Any, critic: int, actor: int) -> None:
    agent = with_actor(LayerNorm(on=on))
    assert len(normed(agent.critic.online)) == len(normed(agent.critic.target)) == critic  # type: ignore[arg-type]
    assert len(normed(agent.actor.online)) == actor


def test_both_streams_of_a_dueling_network_are_normed() -> None:
    config = replace(DQN_SMALL, dueling=True)
    agent = DQN((5,), 3, config, interventions=[LayerNorm(placement="last")])
    assert normed(agent.critic.online) == ["head.layers.1", "value_head.layers.1"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: on_images(LayerNorm(on="actor")), "layer_norm: dqn has no actor; it has critic"),
        (lambda: on_images(LayerNorm(), LayerNorm(placement="last")), "exclude each other: both reserve the norm"),
        (lambda: with_actor(LayerNorm(), LayerNorm(on="both")), "exclude each other: both reserve the norm"),
        (lambda: DQN((5,), 3, interventions=[LayerNorm(placement="encoder")]), "leaves nothing to normalise in the cr"),
        (lambda: with_actor(LayerNorm(on="actor", placement="encoder")), "leaves nothing to normalise in the actor"),
        (lambda: on_images(LayerNorm(placement="dense"), hidden=()), "nothing to normalise in the critic of this dqn"),
    ],
)
def test_norms_without_an_effect_or_given_twice_are_refused(make: Callable[[], Agent], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_critic_and_actor_can_have_different_norms() -> None:
    agent = with_actor(LayerNorm(placement="dense"), LayerNorm(on="actor", placement="last"))
    assert len(normed(agent.critic.online)) == 4 and normed(agent.actor.online) == ["body.layers.1"]


def dense(**options: Any) -> Layer:
    return Layer(nn.utils.skip_init(nn.Linear, 6, 9), Generator().manual_seed(0), norm="layer_norm", **options)


def test_a_norm_is_between_map_and_activation() -> None:
    layer, x = dense(), torch.randn(5, 6, generator=Generator().manual_seed(1))
    with torch.no_grad():
        layer.norm.weight.copy_(torch.linspace(0.5, 2, 9))  # type: ignore[union-attr]
        layer.norm.bias.copy_(torch.linspace(-1, 1, 9))  # type: ignore[union-attr]
    z = F.linear(x, layer.linear.weight, layer.linear.bias)
    ready = (z - z.mean(1, keepdim=True)) / (z.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = torch.relu(layer.norm.weight * ready + layer.norm.bias)  # type: ignore[union-attr, operator]
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("conv", ["gn1", "ln_chw"])
@pytest.mark.parametrize("factor", [0.1, 50.0])
def test_the_scale_of_the_map_before_a_norm_does_not_matter(conv: Any, factor: float) -> None:
    agent = on_images(LayerNorm(conv=conv))
    obs, online = batch_for(agent).obs, agent.critic.online
    before = online(obs)
    with torch.no_grad():
        for name, layer in all_layers(online).items():
            if layer.norm is not None:
                # Up to eps, which is much smaller than these variances.
                layer.norm.eps = 1e-12  # type: ignore[assignment]
            assert layer.norm is not None or name == "advantage"
        before = online(obs)
        for layer in all_layers(online).values():
            if layer.norm is not None:
                for p in layer.linear.parameters():
                    p.mul_(factor)
    torch.testing.assert_close(online(obs), before, atol=1e-4, rtol=1e-3)


def test_a_dead_unit_gets_a_gradient_through_the_other_units() -> None:
    """dLN_j / dz_i = gain_j / sigma * ((i == j) - 1 / n - z_i z_j / n): a dead unit may become active again."""
    layer, x = dense(activation="relu"), torch.randn(1, 6, generator=Generator().manual_seed(1))
    z = F.linear(x, layer.linear.weight, layer.linear.bias).detach().requires_grad_()
    with torch.no_grad():
        layer.norm.bias[4] = -100.0  # type: ignore[union-attr, index]
    h = layer.activation(layer.norm(z))  # type: ignore[misc]
    assert h[0, 4] == 0.0
    (gradient,) = torch.autograd.grad(h[0, 2], z)
    sigma = (z.var(unbiased=False) + 1e-5).sqrt()
    ready = ((z - z.mean()) / sigma).detach()[0]
    alive = int(h[0].argmax())
    (gradient,) = torch.autograd.grad(layer.activation(layer.norm(z))[0, alive], z)  # type: ignore[misc]
    expected = (torch.eye(9)[alive] - 1 / 9 - ready * ready[alive] / 9) / sigma.detach()
    torch.testing.assert_close(gradient[0], expected, atol=1e-4, rtol=1e-3)
    assert gradient[0, 4] != 0.0


@pytest.mark.parametrize(("conv", "shape"), [("gn1", (8,)), ("ln_chw", (8, 10, 10))])
def test_the_two_norms_of_a_convolution_are_different_networks(conv: Any, shape: tuple[int, ...]) -> None:
    """Both normalise the same numbers, so they agree at initialisation; but their gains have different shapes."""
    agent, other = on_images(LayerNorm(conv=conv)), on_images(LayerNorm(conv="ln_chw" if conv == "gn1" else "gn1"))
    first = agent.critic.online.encoder.blocks[0]  # type: ignore[union-attr, index]
    assert first.norm.weight.shape == first.norm.bias.shape == shape
    last = agent.critic.online.encoder.blocks[3]  # type: ignore[union-attr, index]
    assert last.norm.weight.shape == ((8,) if conv == "gn1" else (8, 4, 4))
    obs = batch_for(agent).obs
    torch.testing.assert_close(agent.critic.online(obs), other.critic.online(obs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("conv", ["gn1", "ln_chw"])
def test_a_recycled_channel_gets_a_fresh_norm_at_all_positions(conv: Any) -> None:
    agent = on_images(LayerNorm(conv=conv), ReDo(tau=0.0, every=1, on="critic.encoder.blocks.1"))
    stand, blocks = Stand(agent), agent.critic.online.encoder.blocks  # type: ignore[union-attr]
    part, layer = list(agent.interventions)[1], blocks[1]  # type: ignore[index]
    with torch.no_grad():
        for block in blocks:  # type: ignore[union-attr]
            block.norm.weight.fill_(0.5)
            block.norm.bias.fill_(0.25)
        layer.norm.weight[2], layer.norm.bias[2] = 0.0, -1.0
    before = parameters(layer)
    part.after_update(stand.tick(), {})
    assert part.measurements()["interventions/redo_units"] == 1.0
    for key, fresh in (("weight", 1.0), ("bias", 0.0)):
        now = getattr(layer.norm, key)
        assert (now[2] == fresh).all()
        others = [i for i in range(8) if i != 2]
        assert torch.equal(now[others], before[f"norm.{key}"][others])
    assert not blocks[2].linear.weight[:, 2].any()  # type: ignore[index]


# ----------------------------------------------------------------------------------------------------------- shifts


def images(batch: int, height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    g = Generator().manual_seed(seed)
    return torch.randint(256, (batch, channels, height, width), dtype=torch.uint8, generator=g)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(3, 12), st.integers(3, 12), st.data())
def test_a_shift_is_a_crop_of_the_padded_image(pad: int, height: int, width: int, data: st.DataObject) -> None:
    """All channels of an image have the same shift, every image its own, from -pad to +pad in both directions."""
    x = images(4, height, width)
    place = st.lists(st.integers(0, 2 * pad), min_size=4, max_size=4)
    down, right = data.draw(place), data.draw(place)
    shifted = crop(x, torch.tensor(down), torch.tensor(right), pad)
    padded = F.pad(x.double(), (pad,) * 4, mode="replicate")
    for i in range(4):
        expected = padded[i, :, down[i] : down[i] + height, right[i] : right[i] + width]
        assert torch.equal(shifted[i].double(), expected)
    assert shifted.dtype == torch.uint8


def test_a_shift_equals_that_of_the_authors_code() -> None:
    """DrQ-v2's grid_sample at integer places, in double precision."""
    pad, size = 4, 21
    x, g = images(6, size, size).double(), Generator().manual_seed(3)
    down, right = torch.randint(2 * pad + 1, (2, 6), generator=g)
    padded, whole = F.pad(x, (pad,) * 4, mode="replicate"), size + 2 * pad
    line = torch.linspace(-1 + 1 / whole, 1 - 1 / whole, whole, dtype=torch.float64)[:size]
    grid = torch.stack([line.repeat(size, 1), line.repeat(size, 1).T], dim=-1).repeat(6, 1, 1, 1)
    offset = torch.stack([right, down], dim=-1).double().view(6, 1, 1, 2) * 2 / whole
    theirs = F.grid_sample(padded, grid + offset, padding_mode="zeros", align_corners=False)
    torch.testing.assert_close(crop(x, down, right, pad), theirs, atol=1e-9, rtol=0)


def test_a_crop_in_the_middle_is_no_shift() -> None:
    x, middle = images(3, 9, 9), torch.full((3,), 2)
    assert torch.equal(crop(x, middle, middle, 2), x)


def shifted(pad: int = 3, seed: int = 0, batch: int = 256) -> tuple[Agent, Any, Any]:
    agent = DQN(SMALL_PIXELS, 3, DQN_SMALL, interventions=[RandomShift(pad)], seed=seed)
    before = batch_for(agent, batch)
    before = before.replace(next_obs=before.obs.clone())
    return agent, before, agent.interventions.transform_batch(before)


def offsets(before: Tensor, after: Tensor, pad: int) -> list[tuple[int, int]]:
    """The shift of each image, determined by trying all shifts."""
    shifts: list[tuple[int, int]] = [(-1, -1)] * len(before)
    for down in range(2 * pad + 1):
        for right in range(2 * pad + 1):
            at = [torch.full((len(before),), n) for n in (down, right)]
            same = (crop(before, at[0], at[1], pad) == after).flatten(1).all(1)
            for i in same.nonzero().flatten().tolist():
                shifts[i] = (down, right)
    assert (-1, -1) not in shifts
    return shifts


def test_only_an_observation_and_its_successor_are_shifted_independently() -> None:
    _, before, after = shifted()
    first, second = offsets(before.obs, after.obs, 3), offsets(before.next_obs, after.next_obs, 3)
    alike = sum(a == b for a, b in zip(first, second, strict=True))
    assert alike < 20, "independent shifts must agree only once in 49 times"
    for name in vars(before):
        if name not in ("obs", "next_obs"):
            assert torch.equal(getattr(before, name), getattr(after, name))


def test_all_shifts_are_equally_likely_in_both_directions() -> None:
    _, before, after = shifted(batch=2048)
    places = torch.tensor(offsets(before.obs, after.obs, 3))
    counts = torch.bincount(places[:, 0] * 7 + places[:, 1], minlength=49).double()
    expected = 2048 / 49
    assert len(counts) == 49
    assert ((counts - expected) ** 2 / expected).sum() < 85.4, "chi squared of 48 degrees, once in a thousand times"


def test_shifts_have_their_own_random_stream() -> None:
    state = torch.get_rng_state()
    agent, before, first = shifted()
    stream = agent.generator.get_state()
    _, _, again = shifted()
    _, _, other = shifted(seed=1)
    assert torch.equal(first.obs, again.obs) and torch.equal(first.next_obs, again.next_obs)
    assert not torch.equal(first.obs, other.obs)
    second = agent.interventions.transform_batch(before)
    assert not torch.equal(second.obs, first.obs)
    assert torch.equal(agent.generator.get_state(), stream) and torch.equal(torch.get_rng_state(), state)


def test_an_update_learns_from_shifted_images() -> None:
    """The update equals one that the test computes on the shifted batch."""
    agent, before, after = shifted(batch=8)
    plain = DQN(SMALL_PIXELS, 3, DQN_SMALL)
    stand = Stand(agent, before)
    only(agent).seed(5, agent.device)
    made = agent.interventions.transform_batch(before)
    only(agent).seed(5, agent.device)
    agent.update(before, agent.plan(stand.tick().clock))
    plain.update(made, plain.plan(stand.clock))
    for mine, theirs in zip(agent.critic.online.parameters(), plain.critic.online.parameters(), strict=True):  # type: ignore[attr-defined]
        assert torch.equal(mine, theirs)
    assert after.obs.shape == before.obs.shape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DQN((5,), 3, DQN_SMALL, interventions=[RandomShift()]),
            r"needs images, and this dqn observes vectors",
        ),
        (
            lambda: SAC((5,), BOX, SAC_SMALL, interventions=[RandomShift()]),
            r"needs images, and this sac observes vectors",
        ),
        (lambda: RandomShift(0), "pad must be at least 1 pixel"),
        (lambda: on_images(RandomShift(), RandomShift(2)), "both reserve the shift of images"),
    ],
)
def test_shifts_of_vectors_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

"""Value heads on numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from pliant.agents.heads import MSE, Huber, build_head


def test_half_the_squared_error() -> None:
    loss = MSE().loss(torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 5.0]))
    assert loss.tolist() == [0.5, 4.5]


def test_huber_is_squared_within_delta_and_linear_beyond() -> None:
    loss = Huber(delta=1.0).loss(torch.tensor([[0.5], [3.0], [-3.0]]), torch.zeros(3))
    assert loss.tolist() == [0.125, 2.5, 2.5]


def test_an_ensemble_shares_its_target() -> None:
    logits = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    for head in (MSE(), Huber()):
        assert head.loss(logits, torch.zeros(2)).shape == (2, 2)
        assert head.error(logits, torch.ones(2)).tolist() == [[0.0, 1.0], [2.0, 3.0]]


def test_a_backup_stops_where_the_discount_is_zero() -> None:
    target = MSE().backup(torch.tensor([[10.0], [10.0]]), torch.tensor([1.0, 1.0]), torch.tensor([0.9, 0.0]))
    assert target.tolist() == [10.0, 1.0]


def test_unknown_losses_are_named() -> None:
    with pytest.raises(ValueError, match="unknown value loss 'hubert'; known: mse, huber"):
        build_head("hubert")

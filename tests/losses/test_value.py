"""The critic's loss: hand numbers, PPO's clipping, masks, and splits of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.losses.value import ValueLoss, value_loss
from quatrain.parts.gae import lambda_returns

VALUES = torch.tensor([[1.0, 4.0, 9.0]])
TARGETS = torch.tensor([[3.0, 3.0, 7.0]])
MASK = torch.tensor([[True, True, False]])


@dataclass
class Given:
    """A critic that says what it is told to."""

    said: torch.Tensor

    def values(self, batch: Batch, role: str = "policy") -> torch.Tensor:
        return self.said


def test_hand_numbers():
    assert value_loss(VALUES, TARGETS, MASK).item() == pytest.approx(0.5 * (4 + 1) / 2)
    assert value_loss(VALUES, TARGETS, MASK, count=10).item() == pytest.approx(0.5 * 5 / 10)


def test_clipping_takes_the_worse_of_the_two_errors():
    """Old values 0 and 3.5, ε = 0.2: clipped predictions 0.2 and 3.7; errors max(4, 7.84) and max(1, 0.49)."""
    old = torch.tensor([[0.0, 3.5, 0.0]])
    assert value_loss(VALUES, TARGETS, MASK, old, clip=0.2).item() == pytest.approx(0.5 * (7.84 + 1) / 2)
    assert value_loss(VALUES, TARGETS, MASK, old, clip=float("inf")).item() == value_loss(VALUES, TARGETS, MASK).item()


def test_a_clipped_value_that_would_improve_no_further_has_no_gradient():
    values = torch.tensor([[1.0]], requires_grad=True)
    value_loss(values, torch.tensor([[3.0]]), torch.tensor([[True]]), torch.tensor([[0.0]]), clip=0.2).backward()
    assert values.grad.item() == 0.0


def test_padding_has_exactly_no_gradient_even_when_it_is_nan():
    values = torch.tensor([[1.0, torch.nan]], requires_grad=True)
    value_loss(values, torch.tensor([[3.0, torch.nan]]), torch.tensor([[True, False]])).backward()
    assert values.grad.tolist() == [[-2.0, 0.0]]


def test_parts_of_a_batch_sum_to_the_whole():
    g = torch.Generator().manual_seed(0)
    values, targets, mask = torch.randn(6, 5, generator=g), torch.randn(6, 5, generator=g), torch.rand(6, 5, generator=g) < 0.6
    count = int(mask.sum())
    parts = sum(value_loss(values[i : i + 2], targets[i : i + 2], mask[i : i + 2], count=count) for i in (0, 2, 4))
    torch.testing.assert_close(parts, value_loss(values, targets, mask))


def test_no_action_gives_zero():
    assert value_loss(VALUES, TARGETS, torch.zeros_like(MASK)).item() == 0.0


@pytest.mark.parametrize(("old", "clip"), [(None, 0.2), (TARGETS, -0.2), (TARGETS, 0.0)])
def test_impossible_clips_are_refused(old: torch.Tensor | None, clip: float):
    with pytest.raises(QuatrainError, match="clip"):
        value_loss(VALUES, TARGETS, MASK, old, clip=clip)


def collected(n: int = 6, t: int = 5, seed: int = 0) -> tuple[Batch, Given]:
    """(a batch with everything that a critic's fit reads, a critic)."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(t) < torch.randint(1, t + 1, (n, 1), generator=g)
    columns = {name: torch.randn(n, t, generator=g) for name in ("rewards", "value", "next_value")}
    columns |= {name: mask & (torch.rand(n, t, generator=g) < 0.2) for name in ("terminated", "truncated")}
    said = torch.randn(n, t + 1, generator=g, requires_grad=True)
    return Batch(mask, torch.zeros(n, t), columns=columns, rows={"row": torch.arange(n)}), Given(said)


def test_a_fit_regresses_on_the_lambda_returns():
    batch, critic = collected()
    fit = ValueLoss(discount=0.9, trace=0.8)
    loss, measures = fit.loss(critic, fit.finalise(fit.prepare(batch)), {})
    names = ("rewards", "value", "next_value", "terminated", "truncated")
    targets = lambda_returns(*(batch[name] for name in names), batch.mask, 0.9, 0.8)
    torch.testing.assert_close(loss, value_loss(critic.said[:, :-1], targets, batch.mask))
    torch.testing.assert_close(measures["value_loss"][0], loss.detach())
    loss.backward()
    assert (critic.said.grad[:, -1] == 0).all() and (critic.said.grad[:, :-1][~batch.mask] == 0).all()


def test_a_fit_split_by_rows_has_the_whole_s_gradient():
    batch, critic = collected()
    fit = ValueLoss(clip=0.3)
    whole = fit.finalise(fit.prepare(batch))
    (expected,) = torch.autograd.grad(fit.loss(critic, whole, {})[0], critic.said)
    found = torch.zeros_like(expected)
    for rows in ([0, 3], [1], [2, 4, 5]):
        part = Given(critic.said.detach()[rows].requires_grad_())
        (found[rows],) = torch.autograd.grad(fit.loss(part, whole.take(rows), {})[0], part.said)
    torch.testing.assert_close(found, expected)


def test_a_critic_that_says_the_returns_has_no_error():
    batch, _ = collected()
    fit = ValueLoss()
    ready = fit.finalise(fit.prepare(batch))
    right = Given(torch.cat([ready["return"], torch.zeros(6, 1)], 1))
    loss, measures = fit.loss(right, ready, {})
    assert loss.item() == 0.0 and measures["value_error"][0].item() == 0.0 and measures["value_error"][1].item() > 0


@pytest.mark.parametrize("absent", ["reward", "value", "next_value"])
def test_a_missing_column_is_named(absent: str):
    with pytest.raises(QuatrainError, match=f"'{absent}'"):
        ValueLoss().check({"reward", "value", "next_value"} - {absent})

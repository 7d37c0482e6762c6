"""The critic's loss: hand numbers, PPO's clipping, masks, and splits of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.losses.value import ValueLoss, value_loss

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


def batch(**columns: torch.Tensor) -> Batch:
    return Batch(MASK, torch.zeros(1, 3, dtype=torch.long), columns=columns)


def test_a_fit_regresses_on_the_returns_of_the_values_before_the_actions():
    """γ = λ = 1, rewards 0, 2 and then the end: both returns are 2, whatever the old values."""
    known = batch(value=torch.tensor([[5.0, 3.0, torch.nan]]), next_value=torch.tensor([[3.0, 0.0, torch.nan]])).with_rows(
        reward=torch.tensor([2.0])
    )
    fit = ValueLoss(discount=1.0, trace=1.0)
    update = fit.finalise(fit.prepare(known))
    assert update["return"].tolist() == [[2.0, 2.0, 0.0]]
    loss, measures = fit.loss(Given(torch.cat([VALUES, torch.tensor([[100.0]])], 1)), update, {})
    assert loss.item() == pytest.approx(0.5 * (1 + 4) / 2)
    assert measures["value_error"][0].item() / measures["value_error"][1].item() == pytest.approx(5 / 8)


def test_parts_of_a_fit_sum_to_the_whole():
    g = torch.Generator().manual_seed(0)
    n, t = 6, 5
    columns = {name: torch.randn(n, t, generator=g) for name in ("value", "next_value")}
    known = Batch(torch.rand(n, t, generator=g) < 0.6, torch.zeros(n, t), columns=columns, rows={"reward": torch.randn(n, generator=g)})
    said, fit = torch.randn(n, t + 1, generator=g), ValueLoss(0.9, 0.8, clip=0.2)
    update = fit.finalise(fit.prepare(known))
    whole, _ = fit.loss(Given(said), update, {})
    parts = [fit.loss(Given(said[i : i + 2]), update.take(range(i, i + 2)), {})[0] for i in (0, 2, 4)]
    torch.testing.assert_close(sum(parts), whole)


def test_a_missing_column_is_named():
    with pytest.raises(QuatrainError, match="'value'"):
        ValueLoss().check({"reward"})

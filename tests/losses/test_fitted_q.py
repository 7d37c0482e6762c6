"""Fitted Q evaluation: by hand, against autograd, and its fixed point against counting."""

from __future__ import annotations

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.losses.fitted_q import FittedQ, following
from tests.toy import TabularChoices, assert_same, case


def test_by_hand_two_actions_of_one_row():
    """States 0, 1; Q = 1 everywhere but Q(0, a=1) = 3; γ = ½; policies that always take 0, and 1."""
    q = TabularChoices(torch.ones(2, 2, 2, dtype=torch.float64))
    with torch.no_grad():
        q.module.values[:, 1, 1] = 5.0
    probs = torch.eye(2, dtype=torch.float64).expand(1, 2, 2, 2)
    batch = Batch(
        torch.ones(1, 2, dtype=torch.bool),
        torch.tensor([[0, 1]]),
        columns={
            "state": torch.tensor([[0, 1]]),
            "rewards": torch.tensor([[2.0, 7.0]]).double(),
            "terminated": torch.tensor([[False, True]]),
            "target_probs": probs,
        },
    )
    loss = FittedQ(0.5)
    found, measures = loss.loss(q, loss.finalise(loss.prepare(batch)), {})
    # first policy: 1 − (2 + ½·1) and 5 − 7; second: 1 − (2 + ½·5) and 5 − 7; over two actions
    assert found.item() == pytest.approx(0.5 * (1.5**2 + 4 + 3.5**2 + 4) / 2)
    assert measures["value_error"][0].item() == pytest.approx(1.5**2 + 4 + 3.5**2 + 4)


def test_the_gradient_is_that_of_the_squared_error_with_constant_targets():
    here = case(seed=3)
    batch, loss = here.batch, FittedQ(0.9)
    q = TabularChoices(torch.randn(2, len(here.policy.table), 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    made = loss.finalise(loss.prepare(batch))
    found = torch.autograd.grad(loss.loss(q, made, {})[0], q.module.values)[0]
    total, n = 0.0, 0
    for row in range(len(batch)):
        places = batch.mask[row].nonzero()[:, 0].tolist()
        for place, then in zip(places, [*places[1:], None], strict=True):
            n += 1
            for policy in (0, 1):
                value = q.module.values[policy, batch["state"][row, place], batch.actions[row, place]]
                target = batch["rewards"][row, place]
                if not batch["terminated"][row, place]:
                    onward = q.module.values[policy, batch["state"][row, then]].detach()
                    target = target + 0.9 * (batch["target_probs"][row, then, policy] * onward).sum()
                total = total + 0.5 * (value - target).square()
    assert_same(found, torch.autograd.grad(total / n, q.module.values)[0], 1e-12)


def test_an_action_whose_next_state_is_not_there_is_left_out():
    here = case(seed=1)
    loss = FittedQ()
    cut = here.batch.with_columns(terminated=here.batch.mask & False, truncated=here.batch["terminated"])
    known = loss.prepare(cut)["known"]
    assert known.sum() == here.batch.mask.sum() - here.batch.mask.any(1).sum()
    assert following(torch.tensor([[False, True, True, False]])).tolist() == [[1, 2, 4, 4]]


def test_it_says_what_it_needs():
    with pytest.raises(QuatrainError, match="target_probs"):
        FittedQ().check({"reward"})

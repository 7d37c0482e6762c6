"""dpo: autograd of −log σ(β·margin)."""

from __future__ import annotations

import pytest
import torch

from quatrain.batch import Batch
from quatrain.training.registry import make
from tests.toy import Case, TabularPolicy, assert_same, autograd, case, gradient


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_gradient(beta: float):
    here = case()
    margin = (here.logp() - here.clean("reference_logp")).sum(1).view(-1, 2) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
    loss = -torch.nn.functional.logsigmoid(beta * margin).mean()
    assert_same(gradient(make("dpo", beta=beta), here), autograd(loss, here))


def test_rows_of_a_pair_need_not_be_neighbours():
    here = case(1)
    order = torch.randperm(len(here.batch), generator=torch.Generator().manual_seed(0))
    assert_same(gradient(make("dpo"), Case(here.batch.take(order), here.policy)), gradient(make("dpo"), here), 1e-13)


def test_at_the_reference_the_gradient_is_half_of_beta_times_the_difference():
    policy = TabularPolicy(torch.zeros(2, 2, dtype=torch.float64))
    batch = Batch(
        mask=torch.ones(2, 1, dtype=torch.bool),
        actions=torch.tensor([[0], [1]]),
        columns={"state": torch.tensor([[0], [1]]), "reference_logp": torch.full((2, 1), 0.5, dtype=torch.float64).log()},
        rows={"pair": torch.zeros(2, dtype=torch.long), "preference": torch.tensor([1.0, -1.0])},
    )
    # ∇log π is (½, −½) for the chosen action 0 and (−½, ½) for the rejected action 1; times ∓β·σ(0) = ∓0.1
    expected = torch.tensor([[-0.05, 0.05], [-0.05, 0.05]], dtype=torch.float64)
    assert torch.allclose(gradient(make("dpo", beta=0.2), Case(batch, policy)), expected, rtol=1e-12)

"""rloo: autograd of its loss, and unbiasedness by enumeration."""

from __future__ import annotations

import torch

from quatrain.batch import Batch
from quatrain.parts.advantages import GroupRelative
from quatrain.training.registry import make
from tests.toy import Case, TabularPolicy, assert_same, autograd, case, gradient


def test_the_gradient():
    here = case()
    reward = here.batch["reward"].view(-1, 4)
    baseline = (reward.sum(1, keepdim=True) - reward) / 3
    loss = -((reward - baseline).flatten() * here.logp().sum(1)).mean()
    assert_same(gradient(make("rloo", group=4), here), autograd(loss, here))


def test_leave_one_out_is_unbiased_and_the_mean_with_the_own_sample_shrinks():
    """Exact expectation over all 27 groups of three actions of a bandit."""
    g, logits = 3, torch.tensor([[0.4, -0.3, 0.1]], dtype=torch.float64)
    policy, reward = TabularPolicy(logits), torch.tensor([1.0, 0.2, -0.5], dtype=torch.float64)
    p = logits.softmax(-1)[0]
    groups = torch.cartesian_prod(*[torch.arange(3)] * g)
    found = {"rloo": 0.0, "own": 0.0}
    for index in groups:
        batch = Batch(
            mask=torch.ones(g, 1, dtype=torch.bool),
            actions=index[:, None],
            columns={"state": torch.zeros(g, 1, dtype=torch.long)},
            rows={"reward": reward[index], "prompt": torch.zeros(g, dtype=torch.long)},
        )
        here = Case(batch, policy)
        found["rloo"] += p[index].prod() * gradient(make("rloo"), here)
        found["own"] += p[index].prod() * gradient(make("rloo").but(advantage=GroupRelative(scale="none")), here)
    exact = torch.autograd.grad((policy.table.softmax(-1)[0] * reward).sum(), policy.table)[0]
    assert_same(-found["rloo"], exact)
    assert_same(-found["own"], exact * (g - 1) / g)

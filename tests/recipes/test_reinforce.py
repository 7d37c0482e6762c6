"""reinforce: autograd of −mean over trajectories of Σ_t G_t log π."""

from __future__ import annotations

import pytest
import torch

from quatrain.batch import Batch
from quatrain.estimator import Objective
from quatrain.training.registry import make
from tests.toy import Case, TabularPolicy, assert_same, autograd, case, gradient


def returns(rewards: torch.Tensor, mask: torch.Tensor, discount: float) -> torch.Tensor:
    """Σ_{k≥t} γ^(actions between) r_k, by a plain loop over the actions of a row."""
    out = torch.zeros_like(rewards)
    for i in range(len(rewards)):
        total = 0.0
        for t in reversed(range(rewards.shape[1])):
            if mask[i, t]:
                total = float(rewards[i, t]) + discount * total
                out[i, t] = total
    return out


def outcome_only(here: Case) -> Case:
    columns = {name: value for name, value in here.batch.columns.items() if name != "rewards"}
    batch = here.batch
    return Case(Batch(mask=batch.mask, actions=batch.actions, columns=columns, rows=batch.rows), here.policy, here.others)


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_the_gradient_with_a_reward_per_action(discount: float, baseline: bool):
    here = case(2)
    gain = returns(here.batch["rewards"], here.batch.mask, discount)
    if baseline:
        gain = gain - gain[here.batch.mask].mean()
    loss = -(gain * here.logp()).sum(1).mean()
    assert_same(gradient(make("reinforce", discount=discount, baseline=baseline), here), autograd(loss, here))


def test_the_gradient_with_an_outcome_reward():
    here = outcome_only(case(3))
    loss = -(here.batch["reward"][:, None] * here.logp()).sum(1).mean()
    assert_same(gradient(make("reinforce", baseline=False), here), autograd(loss, here))


def test_the_mean_as_a_baseline_shrinks_the_gradient_by_its_own_share():
    """Enumerated: N one-action trajectories, all action tuples weighed by their probability."""
    n, logits = 3, torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64)
    policy = TabularPolicy(logits)
    p, reward = logits.softmax(-1)[0], torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    total = 0.0
    for index in torch.cartesian_prod(*[torch.arange(3)] * n):
        batch = Batch(
            mask=torch.ones(n, 1, dtype=torch.bool),
            actions=index[:, None],
            columns={"state": torch.zeros(n, 1, dtype=torch.long)},
            rows={"reward": reward[index]},
        )
        total = total + p[index].prod() * gradient(make("reinforce"), Case(batch, policy))
    exact = torch.autograd.grad((policy.table.softmax(-1)[0] * reward).sum(), policy.table)[0]
    assert_same(-total, exact * (n - 1) / n)


def test_it_has_one_term():
    ((_, fit),) = make("reinforce").fits(Objective)
    assert list(fit.loss.terms) == ["policy"]

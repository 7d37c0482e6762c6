"""Estimated distributions of the return: unbiased by enumeration, CDFs where they claim to be, numbers by hand."""

from __future__ import annotations

import pytest
import torch

from quatrain.environments.tables.generators import rtb
from quatrain.environments.tables.returns import return_distribution, trajectories
from quatrain.errors import QuatrainError
from quatrain.evaluation.off_policy.cumulative import as_cdf, doubly_robust_cdf, importance_cdf, summary


def test_by_enumeration_both_are_unbiased_at_every_point():
    mdp = rtb(3, horizon=3)
    g = torch.Generator().manual_seed(0)
    behaviour, target = (torch.randn(mdp.rows, 3, generator=g).double().softmax(-1) for _ in range(2))
    found = trajectories(mdp)
    chance, ratio = found.chance(mdp, behaviour), found.chance(mdp, target) / found.chance(mdp, behaviour)
    exact = return_distribution(mdp, target)
    returns, count = found.rewards.sum(1), len(chance)
    scaled = count * chance  # the mean over rows is then the expectation
    torch.testing.assert_close(importance_cdf(scaled * ratio, returns, exact.support), exact.chance.cumsum(0))
    model = torch.rand(mdp.states, 3, len(exact.support), generator=g).double()
    first, policy = found.states[:, 0], mdp.policy(target)[0]
    expected = (policy[:, :, None] * model).sum(1)[first]
    robust = doubly_robust_cdf(scaled * ratio, returns, exact.support, model[first, found.actions[:, 0]], 0 * expected)
    torch.testing.assert_close(robust + (chance[:, None] * expected).sum(0), exact.chance.cumsum(0))


def test_after_self_normalisation_it_is_a_cdf():
    g = torch.Generator().manual_seed(1)
    weight, returns = torch.rand(50, generator=g).double() * 9, torch.randn(50, generator=g).double()
    grid = returns.sort().values
    found = importance_cdf(weight, returns, grid, normalise=True)
    assert (found.diff() >= 0).all() and found[0] > 0 and found[-1].item() == pytest.approx(1)
    raw = importance_cdf(weight, returns, grid)
    assert raw[-1].item() == pytest.approx(weight.mean().item())  # unbiased, and not 1
    rough = doubly_robust_cdf(weight, returns, grid, torch.rand(50, 50, generator=g).double(), torch.rand(50, 50, generator=g).double())
    proper = as_cdf(rough)
    assert (proper.diff() >= 0).all() and proper.min() >= 0 and proper[-1] == 1


def test_without_a_model_doubly_robust_is_importance_sampling():
    weight, returns, grid = torch.tensor([2.0, 0.5]), torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0, 2.0, 3.0])
    zero = torch.zeros(2, 4)
    assert torch.equal(doubly_robust_cdf(weight, returns, grid, zero, zero), importance_cdf(weight, returns, grid))


def test_numbers_by_hand():
    """Returns 0, 1, 2, 3 with chance ¼ each: the worst 40 % are all of 0 and 0.15 of 1, on average 0.15/0.4."""
    grid, cdf = torch.arange(4).double(), torch.tensor([0.25, 0.5, 0.75, 1.0]).double()
    found = summary(cdf, grid, 0.4)
    assert (found.mean, found.variance) == (1.5, 1.25) and found.cvar == pytest.approx(0.15 / 0.4)
    assert (found.low, found.median, found.high) == (1, 1, 2)
    assert summary(cdf, grid, 1.0).cvar == pytest.approx(1.5) and summary(cdf, grid, 0.25).cvar == 0
    with pytest.raises(QuatrainError, match="share"):
        summary(cdf, grid, 0.0)

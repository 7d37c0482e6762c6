"""Bounds of a ratio of evidence bounds: below the exact objective, equal to it where nothing has moved, and the draws counted once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.estimator import Objective, Term
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.aggregations import sequence_sum
from quatrain.parts.boundary import Boundary, JointRatio, MeanOverDraws, PerTrajectory
from quatrain.parts.bounds import Clip
from quatrain.parts.denominators import Ratio
from quatrain.parts.likelihoods import LogProb


def objective(d: Tensor, advantage: float) -> Tensor:
    """[M] the bound, for M trajectories of n draws d [M, n]: written from the paper."""
    return advantage * (1 + d.mean(1)) if advantage >= 0 else advantage * d.exp().mean(1)


def exact(d: Tensor, advantage: float) -> Tensor:
    return advantage * d.mean(1).exp()


@pytest.mark.parametrize("advantage", [1.7, 0.0, -1.7])
def test_it_is_a_lower_bound_tight_where_nothing_has_moved(advantage: float):
    g = torch.Generator().manual_seed(0)
    for size in (0.01, 1.0, 5.0):
        d = size * torch.randn(200, 8, generator=g, dtype=torch.float64)
        assert (objective(d, advantage) <= exact(d, advantage) + 1e-12).all()
    d = torch.zeros(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.equal(objective(d, advantage), exact(d, advantage))
    bound, joint = (torch.autograd.grad(f(d, advantage).sum(), d)[0] for f in (objective, exact))
    assert torch.allclose(bound, joint, atol=1e-15)


@pytest.mark.parametrize("advantage", [1.7, -1.7])
def test_the_factor_is_its_derivative(advantage: float):
    d = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    (slope,) = torch.autograd.grad(objective(d, advantage).sum(), d)
    factor = Boundary()(d.detach(), torch.full_like(d, advantage), None)
    assert torch.allclose(factor * advantage / 4, slope, rtol=1e-12)


def test_the_clip_of_the_released_code():
    """A > 0: 1 + d at most 1 + ε, and above 0; A < 0: exp(d) at least 1 − ε and at most the dual bound."""
    d = torch.tensor([[-2.0, -1.0, -0.5, 0.0, 0.1, 0.25, 1.0, 1.5]])
    bound = Boundary(Clip(0.2, 0.2, dual=3.0))
    assert bound(d, torch.ones_like(d), None).tolist() == [[0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]
    found = bound(d, -torch.ones_like(d), None)
    expected = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.1051709, 1.2840254, 2.7182818, 0.0])
    assert torch.allclose(found[0], expected)


def case(rows: int = 6, draws: int = 3, seed: int = 0) -> tuple[Batch, Tensor]:
    """Trajectories of two prompts with ``draws`` rows each, in random order; a leaf of per-action log-probabilities."""
    g = torch.Generator().manual_seed(seed)
    n, t = rows * draws, 4
    mask = torch.arange(t) < torch.randint(1, t + 1, (rows,), generator=g)[:, None].repeat_interleave(draws, 0)
    old = torch.randn(n, t, generator=g, dtype=torch.float64)
    current = (old + 0.5 * torch.randn(n, t, generator=g, dtype=torch.float64)).requires_grad_()
    trajectory = torch.arange(rows).repeat_interleave(draws)
    reward = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])[trajectory]
    batch = Batch(
        mask,
        torch.zeros(n, t, dtype=torch.long),
        {"old_logp": old},
        {"reward": reward, "prompt": trajectory // 3, "trajectory": trajectory},
    )
    return batch, current


def test_rows_of_a_trajectory_count_once():
    batch, _ = case()
    once = PerTrajectory(GroupRelative())(batch)
    assert torch.allclose(once.view(6, 3), GroupRelative()(batch.take(range(0, 18, 3)))[:, None].expand(6, 3))
    assert not torch.allclose(once, GroupRelative()(batch))  # repeated rows have another standard deviation
    order = torch.randperm(18, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(PerTrajectory(GroupRelative())(batch.take(order)), once[order])
    assert PerTrajectory(GroupRelative()).needs == ("prompt", "reward", "trajectory")


@pytest.mark.parametrize("kind", ["boundary", "joint"])
def test_the_gradient_over_draws_is_the_joint_one(kind: str):
    """Against autograd of the objective that holds all draws at once."""
    batch, current = case()
    bound = Boundary() if kind == "boundary" else JointRatio()
    term = Term(PerTrajectory(GroupRelative()), Ratio("current", "old", "sequence", "sum"), bound, aggregation=sequence_sum)
    estimate = Objective({"policy": term})(batch, {LogProb(): current})
    (found,) = torch.autograd.grad(estimate.loss, current)
    advantage = GroupRelative()(batch.take(range(0, 18, 3)))
    d = torch.where(batch.mask, current - batch["old_logp"], 0.0).sum(1).view(6, 3)
    value = objective if kind == "boundary" else exact
    loss = -torch.stack([value(d[i : i + 1], float(advantage[i]))[0] for i in range(6)]).mean()
    (expected,) = torch.autograd.grad(loss, current)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-14) and float(expected.abs().max()) > 1e-3


def test_the_joint_ratio_is_a_guide():
    assert JointRatio().guides == (MeanOverDraws(),) and "trajectory" in JointRatio().needs
    term = Term(bound=JointRatio())
    assert term.live

"""Estimators against exact expectations on problems of which every trajectory is written down."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quatrain.environments.tables.exact import occupancies, values
from quatrain.environments.tables.generators import garnet, rtb
from quatrain.environments.tables.mdp import TableMDP
from quatrain.environments.tables.returns import trajectories
from quatrain.errors import QuatrainError
from quatrain.evaluation.off_policy.estimators import (
    corrected,
    direct,
    doubly_robust,
    folds,
    marginal_corrected,
    per_decision,
    trajectory_wise,
    weighted,
)
from quatrain.evaluation.off_policy.ratios import (
    KERNELS,
    action_ratio,
    cumulative,
    effective_size,
    kernel_ratio,
    normalised,
    spectrum,
)


class World:
    """All trajectories of a small table, a behaviour and a target policy, exact values and marginal ratios at every (t, s, a)."""

    def __init__(self, mdp: TableMDP):
        g = torch.Generator().manual_seed(4)
        self.mdp, self.discount = mdp, mdp.discount
        self.behaviour, self.target = (torch.randn(mdp.rows, mdp.actions, generator=g).double().softmax(-1) for _ in range(2))
        self.found = trajectories(mdp)
        self.chance = self.found.chance(mdp, self.behaviour)
        self.rewards, self.mask = self.found.rewards, torch.ones_like(self.found.rewards, dtype=torch.bool)
        self.exact = values(mdp, self.target)
        self.at = (torch.arange(mdp.horizon), self.found.states[:, :-1], self.found.actions)
        logp = [mdp.policy(policy)[self.at].log() for policy in (self.target, self.behaviour)]
        self.ratio = action_ratio(logp[0], logp[1], self.mask)
        self.q, self.v = self.exact.q[self.at], self.exact.v[self.at[:2]]
        ours, theirs = occupancies(mdp, self.target), occupancies(mdp, self.behaviour)
        self.marginal = (ours.state_action / theirs.state_action.clamp(min=1e-300))[self.at]
        self.state = (ours.state / theirs.state.clamp(min=1e-300))[self.at[:2]]

    def mean(self, contributions: Tensor) -> float:
        return float((self.chance * contributions).sum())

    def variance(self, contributions: Tensor) -> float:
        return self.mean(contributions.square()) - self.mean(contributions) ** 2


WORLDS = [World(garnet(3, 2, 2, horizon=2)), World(rtb(3, horizon=3, discount=0.9))]
every_world = pytest.mark.parametrize("world", WORLDS, ids=["two steps", "three steps, discounted"])


@every_world
def test_every_unbiased_estimator_has_the_exact_mean(world: World):
    """By enumeration: with exact ratios none is biased, whatever the value model is; the direct method is, unless its model is right."""
    policy = world.mdp.policy(world.target)
    wrong = torch.randn(policy.shape, generator=torch.Generator().manual_seed(1)).double()[world.at]
    model = torch.randn(policy.shape, generator=torch.Generator().manual_seed(2)).double()
    q, v = model[world.at], (policy * model).sum(-1)[world.at[:2]]
    own = {"rewards": world.rewards, "discount": world.discount}
    weight = cumulative(world.ratio)
    found = {
        "tis": trajectory_wise(world.ratio, **own),
        "pdis": per_decision(world.ratio, **own),
        "dr": doubly_robust(world.ratio, q=q, v=v, **own),
        "dr, right": doubly_robust(world.ratio, q=world.q, v=world.v, **own),
        "sam-is": weighted(world.marginal, **own),
        "sm-is": weighted(world.state * world.ratio, **own),
        "drl": corrected(world.marginal, q=q, v=v, **own),
        "sam-dr": marginal_corrected(world.marginal, q=q, v=v, **own),
        "sm-dr": marginal_corrected(world.state * world.ratio, q=q, v=v, **own),
        "sam-dr, wrong weights": marginal_corrected(wrong, q=world.q, v=world.v, **own),
        "dm, right": direct(world.v),
        **{f"sope {k}": weighted(spectrum(world.ratio, world.marginal, k), **own) for k in range(4)},
        **{f"sope {k} of states": weighted(spectrum(world.ratio, world.state, k, "state"), **own) for k in range(4)},
    }
    for name, contributions in found.items():
        assert world.mean(contributions) == pytest.approx(float(world.exact.value), abs=1e-8), name
    assert abs(world.mean(direct(v)) - float(world.exact.value)) > 0.01
    torch.testing.assert_close(corrected(weight, q=q, v=v, **own), marginal_corrected(weight, q=q, v=v, **own))


@every_world
def test_variances_are_in_the_order_that_theory_has(world: World):
    own = {"rewards": world.rewards, "discount": world.discount}
    tis, pdis = trajectory_wise(world.ratio, **own), per_decision(world.ratio, **own)
    robust = doubly_robust(world.ratio, q=world.q, v=world.v, **own)
    assert world.variance(robust) < world.variance(pdis) < world.variance(tis)
    assert world.variance(weighted(world.marginal, **own)) < world.variance(pdis)


@every_world
def test_of_its_own_policy_every_weight_is_one(world: World):
    logp = world.mdp.policy(world.behaviour)[world.at].log()
    ratio = action_ratio(logp, logp, world.mask)
    assert torch.equal(ratio, torch.ones_like(ratio)) and torch.equal(cumulative(ratio), ratio)
    assert torch.equal(trajectory_wise(ratio, world.rewards), world.rewards.sum(1))
    assert torch.equal(per_decision(ratio, world.rewards, normalise=True), world.rewards.sum(1))
    assert effective_size(ratio).tolist() == [len(ratio)] * ratio.shape[1]


def test_by_hand_two_trajectories_of_two_actions():
    """ρ = (2, ½), (½, 4); r = (1, 3), (2, 1); γ = ½."""
    ratio, rewards = torch.tensor([[2.0, 0.5], [0.5, 4.0]]), torch.tensor([[1.0, 3.0], [2.0, 1.0]])
    q, v = torch.tensor([[1.0, 2.0], [1.0, 1.0]]), torch.tensor([[3.0, 1.0], [3.0, 2.0]])
    assert trajectory_wise(ratio, rewards, 0.5).tolist() == [1 * (1 + 1.5), 2 * (2 + 0.5)]
    assert per_decision(ratio, rewards, 0.5).tolist() == [2 * 1 + 0.5 * 1 * 3, 0.5 * 2 + 0.5 * 2 * 1]
    # 2·(1−1) + 3 + ½[1·(3−2) + 2·1];  ½·(2−1) + 3 + ½[2·(1−1) + ½·2]
    assert doubly_robust(ratio, rewards, q, v, 0.5).tolist() == [4.5, 4.0]
    # weights over their means: (2, ½)/1.25 and (1, 2)/1.5
    assert per_decision(ratio, rewards, 0.5, normalise=True).tolist() == pytest.approx([1.6 + 1.0, 0.8 + 2 / 3])
    assert trajectory_wise(ratio, rewards, 0.5, normalise=True).mean().item() == pytest.approx((1 * 2.5 + 2 * 2.5) / 3)
    # V(s0) + w0 (r + γ V(s1) − Q) + γ w1 (r − Q)
    assert marginal_corrected(ratio, rewards, q, v, 0.5).tolist() == [3 + 2 * (1 + 0.5 - 1) + 0.25 * 1, 3 + 0.5 * (2 + 1 - 1) + 0.0]


def test_what_is_no_action_has_weight_one_and_nothing_else():
    nan, mask = float("nan"), torch.tensor([[True, False]])
    ratio = action_ratio(torch.tensor([[-1.0, nan]]), torch.tensor([[-2.0, nan]]), mask)
    assert ratio[0, 1] == 1 and cumulative(ratio)[0, 1] == ratio[0, 0]
    assert normalised(torch.zeros(3, 1)).tolist() == [[0.0]] * 3


def test_the_spectrum_ends_at_marginal_and_per_decision_weights():
    g = torch.Generator().manual_seed(0)
    ratio, marginal = torch.rand(3, 4, generator=g), torch.rand(3, 4, generator=g)
    assert torch.equal(spectrum(ratio, marginal, 0), marginal)
    torch.testing.assert_close(spectrum(ratio, marginal, 0, "state"), marginal * ratio)
    assert torch.equal(spectrum(ratio, marginal, 4), cumulative(ratio))
    one = spectrum(ratio, marginal, 1)
    torch.testing.assert_close(one[:, 0], ratio[:, 0])
    torch.testing.assert_close(one[:, 2], marginal[:, 1] * ratio[:, 2])
    torch.testing.assert_close(spectrum(ratio, marginal, 1, "state")[:, 2], marginal[:, 1] * ratio[:, 1] * ratio[:, 2])
    with pytest.raises(QuatrainError, match="spectrum"):
        spectrum(ratio, marginal, -1)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_is_a_density_and_finds_the_value_of_a_deterministic_policy(kernel: str):
    """One action, uniform on [−2, 2], reward a: a policy that takes ½ is worth ½, exactly for a symmetric kernel inside the support."""
    grid = torch.linspace(-2, 2, 40001, dtype=torch.float64)[:, None, None]
    logp = torch.full(grid.shape[:2], 0.25, dtype=torch.float64).log()
    weight = kernel_ratio(torch.full_like(grid, 0.5), grid, logp, torch.ones(grid.shape[:2], dtype=torch.bool), 0.2, kernel)
    assert weight.mean().item() == pytest.approx(1, abs=1e-3)
    assert weighted(weight, grid[..., 0]).mean().item() == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(QuatrainError, match="kernel"):
        kernel_ratio(grid, grid, logp, logp > 0, 0.0, kernel)


def test_folds_are_even_seeded_and_cover():
    parts = folds(10, 3, seed=1)
    assert sorted(torch.bincount(parts).tolist()) == [3, 3, 4] and torch.equal(parts, folds(10, 3, seed=1))

"""Fitted values and marginal ratios: right where the data is, the same by counting and by linear systems, dual to each other."""

from __future__ import annotations

import pytest
import torch

from quatrain.environments.tables.exact import occupancies, values
from quatrain.environments.tables.generators import garnet
from quatrain.environments.tables.mdp import TableMDP
from quatrain.environments.tables.task import TableTask
from quatrain.errors import QuatrainError
from quatrain.evaluation.off_policy.estimators import weighted
from quatrain.evaluation.off_policy.linear import density_ratio, fitted_values, one_hot
from quatrain.evaluation.off_policy.tabular import Counts, count, marginal_ratios, tabular_occupancy, tabular_values
from quatrain.protocols import Sampling


def exact_counts(mdp: TableMDP, behaviour: torch.Tensor) -> Counts:
    """What infinitely many trajectories show, steps and states told apart."""
    mass = occupancies(mdp, behaviour).state_action
    steps, states, actions = mass.shape
    rows = steps * states
    onward = torch.zeros(rows, actions, rows, dtype=torch.float64)
    for t in range(steps - 1):
        onward[t * states : (t + 1) * states, :, (t + 1) * states : (t + 2) * states] = mass[t, ..., None] * mdp.transition
    starts = torch.zeros(rows, dtype=torch.float64)
    starts[:states] = mdp.start
    return Counts(mass.flatten(0, 1), onward, (mass * mdp.mean_reward).flatten(0, 1), starts)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_with_infinite_data_values_and_ratios_are_exact(discount: float):
    mdp = garnet(4, 2, 2, horizon=3, discount=discount)
    g = torch.Generator().manual_seed(0)
    behaviour, target = (torch.randn(mdp.rows, 2, generator=g).double().softmax(-1) for _ in range(2))
    counts, exact = exact_counts(mdp, behaviour), values(mdp, target)
    reached = counts.visits > 0
    found = tabular_values(counts, target[None], discount)[0]
    torch.testing.assert_close(found[reached], exact.q.flatten(0, 1)[reached])
    mass = tabular_occupancy(counts, target[None], discount)[0]
    torch.testing.assert_close(mass, occupancies(mdp, target).state_action.flatten(0, 1))
    pairs, states = marginal_ratios(counts, target[None], discount)
    assert (pairs[0] * counts.rewards).sum().item() == pytest.approx(float(exact.value))
    assert (states[0] * counts.visits.sum(-1)).sum().item() == pytest.approx(float(occupancies(mdp, target).state.sum()))


@pytest.fixture(scope="module")
def logged():
    task = TableTask(garnet(4, 2, 3, horizon=None, discount=0.8, seed=2), limit=12)
    policy = task.network()
    return task, task.rollout(policy, task.starts("train", 0, 60), 1, Sampling(max_actions=12), 0)


def test_counting_and_linear_systems_agree(logged):
    task, batch = logged
    states, gamma = batch.contexts["policy"]["states"], task.mdp.discount
    target = torch.randn(4, 2, generator=torch.Generator().manual_seed(1)).double().softmax(-1)
    n, length = batch.shape
    counts = count(states, batch.actions, batch["rewards"], batch["terminated"], batch.mask, (4, 2), gamma)
    weight = (gamma ** torch.arange(length).double()).expand(n, length).flatten()
    pair = one_hot((states[:, :-1] * 2 + batch.actions).flatten(), 8)
    following = (one_hot(states[:, 1:].flatten(), 4)[:, :, None] * target).flatten(1)
    start = ((torch.bincount(states[:, 0], minlength=4).double() / n)[:, None] * target).flatten()
    theta = fitted_values(pair, following, batch["rewards"].flatten(), weight, gamma, ridge=1e-12)
    torch.testing.assert_close(tabular_values(counts, target[None], gamma)[0].flatten(), theta, rtol=1e-6, atol=1e-6)
    ratio = density_ratio(pair, following, start, weight, n, gamma, ridge=1e-12)
    torch.testing.assert_close(marginal_ratios(counts, target[None], gamma)[0][0].flatten(), ratio, rtol=1e-6, atol=1e-6)
    # dual: weighing rewards by the ratio is averaging values over the starts
    value = weighted((pair @ ratio).view(n, length), batch["rewards"], gamma).mean()
    assert value.item() == pytest.approx(float(start @ theta), rel=1e-6)


def test_state_ratios_by_liu_are_those_of_the_occupancies(logged):
    """With the behaviour policy as target every ratio is 1, by a linear system in states and ρ = 1, up to the cut at the limit."""
    task, batch = logged
    states, gamma = batch.contexts["policy"]["states"], task.mdp.discount
    n, length = batch.shape
    weight = (gamma ** torch.arange(length).double()).expand(n, length).flatten()
    start = torch.bincount(states[:, 0], minlength=4).double() / n
    here, there = one_hot(states[:, :-1].flatten(), 4), one_hot(states[:, 1:].flatten(), 4)
    ratio = density_ratio(here, there, start, weight, n, gamma)
    torch.testing.assert_close(ratio, torch.ones(4, dtype=torch.float64), rtol=0, atol=0.15)


def test_features_are_checked():
    with pytest.raises(QuatrainError, match="out of range"):
        one_hot(torch.tensor([0, 3]), 3)

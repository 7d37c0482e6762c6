"""Values, occupancies and return distributions of tables, against sums over written-down trajectories and against each other."""

from __future__ import annotations

import pytest
import torch

from quatrain.environments.tables.exact import occupancies, optimal, values
from quatrain.environments.tables.generators import TABLES, chain, find_table, garnet, rtb
from quatrain.environments.tables.mdp import TableMDP, stacked
from quatrain.environments.tables.returns import return_distribution, trajectories
from quatrain.errors import QuatrainError


def random_policy(mdp: TableMDP, seed: int = 0, rows: int | None = None) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows or mdp.rows, mdp.actions, generator=g, dtype=torch.float64).softmax(-1)


SMALL = [garnet(4, 2, 2, horizon=4, seed=1), chain(3, horizon=5), rtb(3, horizon=3, seed=2)]


@pytest.mark.parametrize("mdp", SMALL, ids=lambda mdp: mdp.name)
def test_the_value_is_the_sum_over_trajectories(mdp: TableMDP):
    policy = random_policy(mdp)
    found = trajectories(mdp)
    chance, total = found.chance(mdp, policy), found.rewards.sum(1)
    assert chance.sum().item() == pytest.approx(1, abs=1e-12)
    assert values(mdp, policy).value.item() == pytest.approx((chance * total).sum().item(), abs=1e-10)
    shrunk = mdp.but(discount=0.7)
    discounted = (found.rewards * 0.7 ** torch.arange(mdp.horizon).double()).sum(1)
    assert values(shrunk, policy).value.item() == pytest.approx((chance * discounted).sum().item(), abs=1e-10)


@pytest.mark.parametrize("mdp", SMALL, ids=lambda mdp: mdp.name)
def test_the_return_distribution_is_that_of_the_trajectories(mdp: TableMDP):
    policy = random_policy(mdp)
    found, exact = trajectories(mdp), return_distribution(mdp, policy)
    chance, total = found.chance(mdp, policy), found.rewards.sum(1)
    plain = torch.stack([chance[total == g].sum() for g in exact.support])
    torch.testing.assert_close(exact.chance, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("changes", [{}, {"discount": 0.9}, {"horizon": None, "discount": 0.9}])
def test_occupancies_times_rewards_are_the_value(name: str, changes: dict):
    mdp = find_table(name).but(**changes)
    policy = random_policy(mdp)
    mass, found = occupancies(mdp, policy), values(mdp, policy)
    assert (mass.state_action * mdp.mean_reward).sum().item() == pytest.approx(found.value.item(), rel=1e-10)
    torch.testing.assert_close(mass.state_action.sum(-1), mass.state)
    assert optimal(mdp).value >= found.value - 1e-9


def test_the_greedy_policy_of_the_best_values_reaches_them():
    for mdp in (garnet(), chain(horizon=None, discount=0.95)):
        best = optimal(mdp)
        greedy = torch.nn.functional.one_hot(best.q.argmax(-1), mdp.actions).double()
        assert values(mdp, greedy.flatten(0, -2)).value.item() == pytest.approx(best.value.item(), abs=1e-7)


def test_a_long_horizon_becomes_the_endless_one():
    endless, long = (rtb(horizon=horizon, discount=0.8) for horizon in (None, 120))
    policy = random_policy(endless)
    assert values(long, policy).value.item() == pytest.approx(values(endless, policy).value.item(), abs=1e-9)
    torch.testing.assert_close(occupancies(long, policy).state.sum(0), occupancies(endless, policy).state, atol=1e-9, rtol=0)


def test_by_hand_a_coin_and_two_steps():
    """One state, actions worth 0 and 1, two steps, π(1) = 0.25: J = 0.5, returns 0, 1, 2 with chances 9, 6, 1 of 16."""
    mdp = TableMDP(torch.ones(1, 2, 1).double(), torch.tensor([[[0.0], [1.0]]]).double(), torch.ones(1).double(), horizon=2, unit=1.0)
    policy = torch.tensor([[0.75, 0.25]], dtype=torch.float64)
    assert values(mdp, policy).value.item() == 0.5
    assert (16 * return_distribution(mdp, policy).chance).tolist() == [9, 6, 1]


def test_many_tables_at_once_are_each_by_itself():
    tables = [garnet(seed=seed) for seed in range(3)]
    policies = [random_policy(tables[0], seed) for seed in range(3)]
    together, policy = stacked(tables), torch.stack(policies)
    for one in (lambda mdp, policy: values(mdp, policy).value, lambda mdp, policy: occupancies(mdp, policy).state_action):
        torch.testing.assert_close(one(together, policy), torch.stack([one(m, p) for m, p in zip(tables, policies, strict=True)]))
    mass = return_distribution(together, policy).chance
    torch.testing.assert_close(mass.sum(-1), torch.ones(3, dtype=torch.float64))
    assert optimal(together).value.shape == (3,)


def test_generators_are_named_seeded_and_refuse_what_they_do_not_know():
    assert torch.equal(garnet(seed=3).transition, garnet(seed=3).transition) and not torch.equal(garnet(seed=3).reward, garnet().reward)
    with pytest.raises(QuatrainError, match="did you mean 'garnet'"):
        find_table("garnett")
    with pytest.raises(QuatrainError, match="did you mean 'horizon'"):
        find_table("rtb", horizn=3)
    with pytest.raises(QuatrainError, match="no limit"):
        rtb(horizon=None)
    with pytest.raises(QuatrainError, match="lattice"):
        return_distribution(rtb(discount=0.9), random_policy(rtb()))
    with pytest.raises(QuatrainError, match="too many"):
        trajectories(garnet(horizon=12))

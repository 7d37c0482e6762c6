"""matpo: the stated coefficients on planners with one and three workers, the children's advantages, GRPO without workers, autograd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.aggregations import sequence_mean
from quatrain.parts.linked import FromPlanner, planner_mean, planners
from quatrain.rollout.linked import Roles
from quatrain.training.registry import make
from quatrain.training.state import State
from tests.recipes.test_grpo import paper as grpo_loss
from tests.toy import Case, assert_same, autograd, case, fit_of, gradient


def paper(here: Case, clip: float = 0.2, frozen: bool = False) -> Tensor:
    """−1/P Σ over planners i, Σ over rollouts τ of i: the mean over τ of min(r A_i, clip(r) A_i), written row by row."""
    batch, total = here.batch, torch.zeros((), dtype=torch.float64)
    planner, reward = batch["role"] == 0, batch["reward"].double()
    ratio = here.ratio()
    for row in range(len(batch)):
        root = int((planner & (batch["episode"] == batch["episode"][row])).nonzero())
        group = reward[planner & (batch["prompt"] == batch["prompt"][root])]
        advantage = (reward[root] - group.mean()) / (group.std() + 1e-6)
        if frozen and row != root:
            continue
        r = ratio[row][batch.mask[row]]
        total = total + torch.minimum(r * advantage, r.clamp(1 - clip, 1 + clip) * advantage).mean()
    return -total / planner.sum()


def linked(here: Case, workers: list[int]) -> Case:
    """The case with planners that called as many workers; rows in random order; a group is two planners with what they called."""
    roles = [kind for count in workers for kind in (0, *[1] * count)]
    episode = [number for number, count in enumerate(workers) for _ in range(1 + count)]
    assert len(roles) == len(here.batch)
    order = torch.randperm(len(roles), generator=torch.Generator().manual_seed(4))
    rows = {"role": roles, "episode": [977 - 10 * number for number in episode], "prompt": [number // 2 for number in episode]}
    return replace(here, batch=here.batch.with_rows(**{name: torch.tensor(value)[order] for name, value in rows.items()}))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient(seed: int, frozen: bool):
    here = linked(case(seed, prompts=4, group=5), [1, 3, 0, 2, 5, 0, 1, 0])
    recipe = make("matpo", workers="frozen" if frozen else "trained", clip=0.1)
    assert_same(gradient(recipe, here), autograd(paper(here, 0.1, frozen), here))


def test_two_planners_with_one_and_three_workers_by_hand():
    """R = 1 and 0: A = ±1/√2. Six rollouts of 2, 1, 4, 2, 1, 3 of the model's tokens: each token has A/(2·length)."""
    lengths = [2, 1, 4, 2, 1, 3]
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    zero = torch.zeros(6, 4, dtype=torch.float64)
    batch = Batch(mask, zero, {"old_logp": zero, "current_logp": zero}).with_rows(
        role=torch.tensor([0, 1, 0, 1, 1, 1]),
        episode=torch.tensor([70, 70, 30, 30, 30, 30]),
        prompt=torch.zeros(6, dtype=torch.long),
        reward=torch.tensor([1.0, 0.5, 0.0, 9.0, 9.0, 9.0], dtype=torch.float64),  # a worker's reward is not looked at
    )
    objective = fit_of(make("matpo")).loss
    (statistic,) = objective.statistics()
    found = objective(batch, {statistic: zero}).terms["policy"].coefficient
    a = 0.5**0.5 / (1 + 1e-6 * 2**0.5)
    for row, (length, advantage) in enumerate(zip(lengths, [a, a, -a, -a, -a, -a], strict=True)):
        assert found[row, :length].tolist() == pytest.approx([advantage / (2 * length)] * length, rel=1e-9)
        assert not found[row, length:].any()
    naive = fit_of(make("grpo", kl=0.0)).loss
    assert naive(batch, {statistic: zero}).terms["policy"].coefficient[0, 0] != found[0, 0]


def test_without_workers_it_is_grpo_exactly():
    for seed in (0, 1):
        here = case(seed)
        alone = Roles()(State(task=None, models={}), replace(here.batch, rows={k: v for k, v in here.batch.rows.items() if k != "role"}))
        assert (alone["role"] == 0).all() and len(alone["episode"].unique()) == len(alone)
        here = replace(here, batch=alone)
        assert torch.equal(gradient(make("matpo"), here), gradient(make("grpo", kl=0.0), here))
        assert torch.equal(gradient(make("matpo", workers="frozen"), here), gradient(make("grpo", kl=0.0), here))
        assert_same(gradient(make("matpo", kl=0.3), here), autograd(grpo_loss(here, kl=0.3), here))


def test_children_have_their_parents_advantage_and_count_in_no_group():
    here = linked(case(2, prompts=4, group=5), [1, 3, 0, 2, 5, 0, 1, 0]).batch
    found, planner = FromPlanner(GroupRelative())(here), here["role"] == 0
    assert torch.equal(found[planner], GroupRelative()(here.take(planner)))
    for key in here["episode"].unique():
        assert len(found[here["episode"] == key].unique()) == 1
    assert not torch.allclose(found, GroupRelative()(here))
    orphan = here.take(~(planner & (here["episode"] == 977)))
    for broken in (orphan, here.take(~planner)):
        with pytest.raises(QuatrainError, match="without its planner's"):
            FromPlanner(GroupRelative())(broken)


def test_the_mean_is_over_planners():
    here = linked(case(1, prompts=4, group=5), [1, 3, 0, 2, 5, 0, 1, 0]).batch
    weight = planner_mean(here, here.mask)
    assert weight.sum(1).tolist() == pytest.approx([1 / 8] * 20)
    assert torch.allclose(weight, sequence_mean(here, here.mask) * 20 / 8)
    assert planners(here).sum() == 8 * here.shape[1]


def test_a_task_that_says_who_called_whom_is_left_as_it_is():
    state, here = State(task=None, models={}), linked(case(1, prompts=4, group=5), [1, 3, 0, 2, 5, 0, 1, 0]).batch
    assert Roles()(state, here) is here and state.close_round()["workers"] == 12 / 8
    assert len(Roles()(state, here.take([]))) == 0

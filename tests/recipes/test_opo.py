"""opo: the length-weighted baseline by hand, autograd, and the exact baseline it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.estimator import Objective
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.baselines import WeightedBaseline
from quatrain.training.registry import make
from tests.toy import TabularPolicy, assert_same, autograd, case, gradient


@pytest.mark.parametrize("mean", ["sum", "token"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient(seed: int, mean: str):
    here = case(seed)
    logp, reward, lengths = here.logp().sum(1), here.batch["reward"], here.batch.mask.sum(1).double()
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(here.batch), 4):
        rows = slice(start, start + 4)
        baseline = (lengths[rows] * reward[rows]).sum() / lengths[rows].sum()
        total = total - ((reward[rows] - baseline) * logp[rows]).sum()
    total = total / (len(here.batch) if mean == "sum" else lengths.sum())
    assert_same(gradient(make("opo", group=4, mean=mean), here), autograd(total, here))


def advantage(reward: list[float], lengths: list[int], prompt: list[int], **options) -> list[float]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    rows = {"reward": torch.tensor(reward, dtype=torch.float64), "prompt": torch.tensor(prompt)}
    return WeightedBaseline(**options)(Batch(mask, torch.zeros(mask.shape), rows=rows)).tolist()


def test_by_hand_group_by_group():
    # first group: (1·1 + 3·0)/4 = ¼; second: (2·1 + 2·0)/4 = ½
    assert advantage([1, 0, 1, 0], [1, 3, 2, 2], [7, 7, 9, 9]) == pytest.approx([0.75, -0.25, 0.5, -0.5])


def test_what_has_no_reward_takes_no_part():
    found = advantage([1, 0, float("nan")], [1, 3, 5], [0, 0, 0])
    assert found[:2] == pytest.approx([0.75, -0.25]) and found[2] != found[2]


def test_with_equal_lengths_it_is_the_mean():
    here = case(2, length=1)
    plain = make("opo").but(advantage=GroupRelative(scale="none"))
    assert_same(gradient(make("opo"), here), gradient(plain, here), 1e-13)


def test_the_ratio_is_one_and_there_is_one_update_per_batch():
    ((_, fit),) = make("opo").fits(Objective)
    term = fit.loss.terms["policy"]
    assert (fit.epochs, fit.minibatches) == (1, 1) and list(term.needs()) == [("advantage", "prompt"), ("advantage", "reward")]
    here = case(0)
    assert torch.equal(term.denominator(here.batch).exp(), torch.ones(here.batch.shape))


def scores(policy: TabularPolicy, outcomes: Tensor, mask: Tensor, state: Tensor) -> Tensor:
    """[M, S·V] ∇log π of every outcome."""
    logp = policy.table[state].log_softmax(-1).gather(-1, outcomes[..., None])[..., 0]
    rows = torch.where(mask, logp, 0.0).sum(1)
    return torch.stack([torch.autograd.grad(row, policy.table, retain_graph=True)[0].flatten() for row in rows])


def test_the_exact_weights_give_the_least_variance_of_all_baselines():
    """All answers of one to three binary actions (0 goes on, 1 ends): E over them of |∇log π|²(r − b)², over a grid of b."""
    outcomes = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]])
    mask = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]], dtype=torch.bool)
    state = torch.arange(3).expand(4, 3)
    policy = TabularPolicy(torch.tensor([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.2]], dtype=torch.float64))
    logp = torch.where(mask, policy.table[state].log_softmax(-1).gather(-1, outcomes[..., None])[..., 0], 0.0)
    chance, reward = logp.sum(1).exp().detach(), torch.tensor([1.0, 0.0, 1.0, 0.3], dtype=torch.float64)
    assert float(chance.sum()) == pytest.approx(1.0)
    squared = scores(policy, outcomes, mask, state).square().sum(1)
    batch = Batch(mask, outcomes, rows={"reward": reward, "prompt": torch.zeros(4), "norm": squared * chance})
    best = float(reward[0] - WeightedBaseline(weight="norm")(batch)[0])

    def variance(b: float) -> float:
        return float((chance * squared * (reward - b) ** 2).sum())  # the mean does not depend on b

    grid = torch.linspace(-1, 2, 601).tolist()
    assert best == pytest.approx(min(grid, key=variance), abs=0.005)
    assert variance(best) < variance(float((chance * reward).sum())) < variance(0.0)


def test_it_differs_from_the_mean_where_lengths_do():
    here = case(0)
    assert not torch.allclose(gradient(make("opo"), here), gradient(make("opo").but(advantage=GroupRelative(scale="none")), here))

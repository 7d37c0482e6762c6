"""lite-ppo: autograd of the clipped surrogate with mixed normalisation and a token mean; its tricks one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.parts.advantages import GroupRelative
from quatrain.training.registry import make
from tests.toy import Case, TabularPolicy, assert_same, autograd, case, gradient


def paper(here: Case, scale: str = "batch", mean: str = "token", low: float = 0.2, high: float = 0.2, finished: bool = False) -> Tensor:
    reward = here.batch["reward"].view(-1, 4)
    centred = reward - reward.mean(1, keepdim=True)
    deviation = {"batch": reward.std(), "group": reward.std(1, keepdim=True), "none": torch.tensor(1.0 - 1e-6, dtype=torch.float64)}
    advantage = (centred / (deviation[scale] + 1e-6)).view(-1, 1)
    mask = here.batch.mask
    if finished:
        mask = mask & ~here.batch["truncated"].any(1, keepdim=True)
    ratio = here.ratio()
    surrogate = torch.where(mask, torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage), 0.0)
    if mean == "token":
        return -surrogate.sum() / mask.sum()
    per_row = surrogate.sum(1) / mask.sum(1).clamp(min=1)
    return -per_row[mask.any(1)].mean()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient(seed: int):
    here = case(seed)
    assert_same(gradient(make("lite-ppo", group=4), here), autograd(paper(here), here))


@pytest.mark.parametrize("scale", ["batch", "group", "none"])
@pytest.mark.parametrize("mean", ["token", "sequence"])
@pytest.mark.parametrize("finished", [False, True])
def test_every_trick_by_itself(scale: str, mean: str, finished: bool):
    here = case(2)
    last = here.batch["terminated"]
    cut = last & (torch.arange(len(last)) % 3 == 0)[:, None]
    here = Case(here.batch.with_columns(truncated=cut, terminated=last & ~cut), here.policy)
    recipe = make("lite-ppo", group=4, scale=scale, mean=mean, clip_high=0.28, finished=finished)
    assert_same(gradient(recipe, here), autograd(paper(here, scale, mean, high=0.28, finished=finished), here))


def test_the_mixed_normalisation_by_hand():
    """Groups (1, 0) and (1, 1): their own means ½ and 1, the standard deviation of (1, 0, 1, 1), which is ½."""
    rows = {"reward": torch.tensor([1.0, 0.0, 1.0, 1.0]), "prompt": torch.tensor([0, 0, 1, 1])}
    found = GroupRelative(scale="batch", eps=0.0)(Batch(torch.ones(4, 1, dtype=torch.bool), torch.zeros(4, 1), rows=rows))
    assert found.tolist() == pytest.approx([1.0, -1.0, 0.0, 0.0])


@pytest.mark.parametrize(("mean", "short", "long"), [("token", 0.1, 0.1), ("sequence", 0.5, 0.5 / 9)])
def test_every_token_weighs_the_same(mean: str, short: float, long: float):
    """Answers of 1 and 9 tokens, advantages ±1/√2·√2: the size of each token's gradient is its weight."""
    mask = torch.arange(9) < torch.tensor([[1], [9]])
    logp = torch.full((2, 9), 0.5, dtype=torch.float64).log()
    batch = Batch(
        mask=mask,
        actions=torch.zeros(2, 9, dtype=torch.long),
        columns={"state": torch.arange(18).view(2, 9), "old_logp": logp},
        rows={"reward": torch.tensor([1.0, 0.0], dtype=torch.float64), "prompt": torch.zeros(2, dtype=torch.long)},
    )
    here = Case(batch, TabularPolicy(torch.zeros(18, 2, dtype=torch.float64)))
    found = gradient(make("lite-ppo", scale="none", mean=mean), here)[:, 0].view(2, 9).abs() / 0.25  # |A|·∇log π = ½·½
    assert float(found[0, 0]) == pytest.approx(short) and found[1].tolist() == pytest.approx([long] * 9)


def test_with_the_groups_deviation_and_the_sequences_mean_it_is_grpo():
    here = case(3)
    assert torch.equal(gradient(make("lite-ppo", scale="group", mean="sequence"), here), gradient(make("grpo", kl=0.0), here))

"""dr-grpo: neither standard deviation nor length divides."""

from __future__ import annotations

import torch

from quatrain.parts.advantages import GroupRelative
from quatrain.parts.aggregations import sequence_mean
from quatrain.training.registry import make
from tests.toy import assert_same, autograd, case, gradient


def test_the_gradient():
    here = case()
    reward = here.batch["reward"].view(-1, 4)
    advantage = (reward - reward.mean(1, keepdim=True)).view(-1, 1)
    ratio, mask = here.ratio(), here.batch.mask
    objective = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    loss = -(torch.where(mask, objective, 0.0).sum(1) / 5).mean()
    assert_same(gradient(make("dr-grpo", group=4), here, max_actions=5), autograd(loss, here))


def test_with_grpos_advantage_and_mean_it_is_grpo():
    here = case(1)
    back = make("dr-grpo").but(advantage=GroupRelative(), aggregation=sequence_mean)
    assert torch.equal(gradient(back, here), gradient(make("grpo", kl=0.0), here))

"""sft: autograd of the mean cross-entropy."""

from __future__ import annotations

import torch

from quatrain.parts.aggregations import sequence_mean
from quatrain.training.registry import make
from tests.toy import assert_same, autograd, case, gradient


def test_the_gradient_is_that_of_the_mean_cross_entropy():
    here = case()
    table = here.policy.table[here.batch["state"]][here.batch.mask]
    loss = torch.nn.functional.cross_entropy(table, here.batch.actions[here.batch.mask])
    assert_same(gradient(make("sft"), here), autograd(loss, here))


def test_one_changed_part_is_its_neighbour():
    here = case(1)
    lengths = here.batch.mask.sum(1)
    loss = -(here.logp().sum(1) / lengths).mean()
    assert_same(gradient(make("sft").but(aggregation=sequence_mean), here), autograd(loss, here))

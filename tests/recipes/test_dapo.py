"""dapo: eq. 8 with the mean per prompt, and the released code's mean over the batch."""

from __future__ import annotations

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.parts.aggregations import sequence_mean, token_mean
from quatrain.rollout.edits import OverlongPenalty
from quatrain.rollout.sources import DynamicSampling
from quatrain.training.registry import make
from quatrain.training.steps import Collect
from tests.recipes.test_grpo import z_scores
from tests.toy import Case, assert_same, autograd, case, gradient


def surrogate(here: Case, low: float, high: float) -> torch.Tensor:
    ratio, advantage = here.ratio(), z_scores(here)
    return torch.where(here.batch.mask, torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage), 0.0)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient_of_the_papers_mean(seed: int):
    here = case(seed)
    objective = surrogate(here, 0.2, 0.28).view(4, -1).sum(1) / here.batch.mask.view(4, -1).sum(1)
    assert_same(gradient(make("dapo", group=4), here), autograd(-objective.mean(), here))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient_of_the_codes_mean(seed: int):
    here = case(seed)
    loss = -surrogate(here, 0.2, 0.28).sum() / here.batch.mask.sum()
    assert_same(gradient(make("dapo", group=4, mean="batch"), here), autograd(loss, here))


def test_clip_higher_differs_exactly_where_the_ratio_is_in_between():
    here = case(2, prompts=16)
    plain, higher = (gradient(make("dapo", clip_high=high, mean="batch"), here) for high in (0.2, 0.28))
    ratio = here.ratio().detach()
    between = here.batch.mask & (ratio > 1.2) & (ratio <= 1.28) & (z_scores(here) > 0)
    moved = (plain != higher).any(1).view(here.batch.shape)
    assert between.any() and torch.equal(moved, between)


def test_with_grpos_clip_and_mean_it_is_grpo():
    here = case(1)
    grpo = make("grpo", kl=0.0)
    assert torch.equal(gradient(make("dapo", clip_high=0.2, mean="batch"), here), gradient(grpo.but(aggregation=token_mean), here))
    assert torch.equal(gradient(make("dapo", clip_high=0.2).but(aggregation=sequence_mean), here), gradient(grpo, here))


def test_sampling_and_the_overlong_edit():
    def collect(**options) -> Collect:
        return next(step for step in make("dapo", **options).stages[0].steps if isinstance(step, Collect))

    assert isinstance(collect().source, DynamicSampling) and collect().edits == ()
    assert isinstance(collect(overlong_cache=16).edits[0], OverlongPenalty)
    with pytest.raises(QuatrainError, match="wrong type"):
        make("dapo", mean="tokens")

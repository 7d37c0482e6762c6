"""hispo: autograd of the masked, triplet-clipped surrogate, token by token; and where it is the plain clipped surrogate."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.parts.aggregations import ConstantLength
from quatrain.parts.bounds import Clip
from quatrain.training.registry import make
from tests.recipes.test_grpo import z_scores
from tests.toy import Case, TabularPolicy, assert_same, autograd, case, gradient

LONGEST = 5


def paper(here: Case, sequence: float = 0.1, token: float = 1.0, low: float = 0.2, high: float = 0.28, cap: float = 2.0) -> Tensor:
    """−1/(N·T_max) Σ H·min or max of r·A, row by row."""
    logp, old, engine = here.logp(), here.clean("old_logp"), here.clean("behaviour_logp")
    total, advantages = torch.zeros((), dtype=torch.float64), z_scores(here)[:, 0]
    for i, mask in enumerate(here.batch.mask):
        apart = (old[i] - engine[i])[mask]
        r, a = (logp[i] - engine[i])[mask].exp(), advantages[i]
        hold = ((apart.mean().exp() - 1).abs() < sequence) & ((apart.exp() - 1).abs() < token)
        clipped = r.clamp(max=1 + high) if a > 0 else r.clamp(1 - low, 1 + cap)
        surrogate = (
            torch.minimum(r * a, clipped * a) if a > 0 else torch.maximum(torch.minimum(r * a, r.clamp(min=1 - low) * a), (1 + cap) * a)
        )
        total = total - torch.where(hold, surrogate, 0.0).sum() / (len(here.batch) * LONGEST)
    return total


@pytest.mark.parametrize(("sequence", "token"), [(0.1, 1.0), (0.5, 0.3), (0.3, 2.0)])
@pytest.mark.parametrize(("low", "high", "cap"), [(0.2, 0.28, 2.0), (0.1, 0.05, 0.3)])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_gradient(seed: int, sequence: float, token: float, low: float, high: float, cap: float):
    here = case(seed, prompts=8)
    recipe = make("hispo", group=4, sequence_band=sequence, token_band=token, clip_low=low, clip_high=high, clip_cap=cap)
    expected = autograd(paper(here, sequence, token, low, high, cap), here)
    assert_same(gradient(recipe, here, max_actions=LONGEST), expected)


def test_the_gradient_of_a_clip_on_staleness_alone():
    """r_dis is a constant factor of the clipped surrogate of r_stale."""
    here = case(1, prompts=8)
    stale, a = here.ratio("old_logp"), z_scores(here)
    apart = here.clean("old_logp") - here.clean("behaviour_logp")
    mask = here.batch.mask
    hold = mask & (((apart.sum(1) / mask.sum(1)).exp() - 1).abs() < 0.5)[:, None] & ((apart.exp() - 1).abs() < 1.0)
    surrogate = torch.minimum(stale * a, stale.clamp(0.8, 1.28) * a)
    surrogate = torch.where(a < 0, torch.maximum(surrogate, 3.0 * a), surrogate) * apart.exp()
    loss = -torch.where(hold, surrogate, 0.0).sum() / (len(mask) * LONGEST)
    recipe = make("hispo", group=4, sequence_band=0.5, clip_on="stale")
    assert_same(gradient(recipe, here, max_actions=LONGEST), autograd(loss, here))


def test_with_an_exact_engine_it_is_the_clipped_surrogate():
    here = case(0)
    here = replace(here, batch=here.batch.with_columns(behaviour_logp=here.batch["old_logp"]))
    plain = make("grpo", kl=0.0).but(bound=Clip(0.2, 0.28, dual=3.0), aggregation=ConstantLength(LONGEST))
    for clip_on in ("total", "stale"):
        assert torch.equal(gradient(make("hispo", clip_on=clip_on), here, max_actions=LONGEST), gradient(plain, here))


def test_discrepancy_times_staleness_is_the_whole_ratio():
    here = case(3)
    product = here.ratio("old_logp") * (here.clean("old_logp") - here.clean("behaviour_logp")).exp()
    assert torch.allclose(product, here.ratio("behaviour_logp"), rtol=1e-12)


def test_by_hand():
    """One prompt, four one-token answers of probability ½, two solved: which ratios carry a gradient, and how much."""
    ratio = torch.tensor([1.2, 1.5, 1.5, 3.5], dtype=torch.float64)  # A > 0 kept, A > 0 above 1.28, A < 0 below 3, A < 0 above 3
    engine = (0.5 / ratio).log()[:, None]
    batch = Batch(
        mask=torch.ones(4, 1, dtype=torch.bool),
        actions=torch.zeros(4, 1, dtype=torch.long),
        columns={"state": torch.arange(4)[:, None], "old_logp": engine, "behaviour_logp": engine},
        rows={"prompt": torch.zeros(4, dtype=torch.long), "reward": torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)},
    )
    found = gradient(make("hispo"), Case(batch, TabularPolicy(torch.zeros(4, 2, dtype=torch.float64))), max_actions=1)[:, 0]
    a = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    assert found.tolist() == pytest.approx([-1.2 * a / 4 / 2, 0.0, 1.5 * a / 4 / 2, 0.0], rel=1e-12)

"""Parts of different papers in one expression: what each contributes is still there, and the gradient is that of the loss they make."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quatrain.estimator import Objective
from quatrain.parts.aggregations import PerGroup
from quatrain.parts.baselines import RegularisedLeaveOneOut, WeightedBaseline
from quatrain.parts.bounds import Clip, unbounded
from quatrain.parts.levels import GeometricClip, TwoLevelClip
from quatrain.parts.tapers import TaperBySign
from quatrain.recipes.basics.off_policy import off_policy
from quatrain.rollout.sources import DynamicSampling
from quatrain.training.driver import build, run
from quatrain.training.recipe import Recipe
from quatrain.training.registry import make
from quatrain.training.state import State
from quatrain.training.steps import Collect
from tests.toy import Case, ToyTask, assert_same, autograd, case, gradient


def policy_term(recipe: Recipe):
    ((_, fit),) = recipe.fits(Objective)
    return fit.loss.terms["policy"]


def trained(recipe: Recipe) -> State:
    """Three rounds on the toy task."""
    task = ToyTask()
    state = State(task=task, models={"policy": task.policy()}, seed=0)
    state.knobs = {"steps": 3, "prompts": 8, "lr": 0.1, "max_actions": 3}
    build(recipe, state, {})
    return run(recipe, state)


def length_weighted(here: Case, group: int = 4) -> Tensor:
    reward, lengths = here.batch["reward"].view(-1, group), here.batch.mask.sum(1).double().view(-1, group)
    return (reward - (lengths * reward).sum(1, keepdim=True) / lengths.sum(1, keepdim=True)).view(-1, 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_dhpos_clip_with_opos_baseline_under_dapos_sampling(seed: int):
    recipe = make("dapo", minibatches=2).but(bound=TwoLevelClip(0.5), advantage=WeightedBaseline())
    (collect,) = (step for step in recipe.stages[0].steps if isinstance(step, Collect))
    term = policy_term(recipe)
    assert isinstance(collect.source, DynamicSampling) and term.aggregation == PerGroup(actions="pooled")

    here = case(seed)
    r, advantage, mask = here.ratio(), length_weighted(here), here.batch.mask
    gap = (here.logp() - here.clean("old_logp")).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    s = gap.detach().exp() * (here.logp() - here.logp().detach()).exp()
    mixed, inside = (r + s) / 2, (r.clamp(0.8, 1.2) + s.clamp(1 - 3e-4, 1 + 4e-4)) / 2
    objective = torch.where(mask, torch.minimum(mixed * advantage, inside * advantage), 0.0)
    per_prompt = objective.view(4, -1).sum(1) / mask.view(4, -1).sum(1)
    assert_same(gradient(recipe, here), autograd(-per_prompt.mean(), here))
    moved = trained(recipe)
    assert moved.spent["updates"] == 6 and not torch.equal(moved.models["policy"].table, ToyTask().policy().table)


def test_gmpos_mean_with_opos_baseline_off_policy():
    recipe = off_policy(make("gmpo", kl=0.0)).but(advantage=WeightedBaseline())
    here = case(2)
    mask, advantage = here.batch.mask, length_weighted(here)[:, 0]
    gap = here.logp() - here.clean("old_logp")
    clipped = torch.where(advantage[:, None] > 0, gap.clamp(max=0.4), gap.clamp(min=-0.4))
    power = torch.where(mask, clipped, 0.0).sum(1) / mask.sum(1)
    assert_same(gradient(recipe, here), autograd(-(advantage * power.exp()).mean(), here))
    assert trained(recipe).models["sampler"].table.equal(ToyTask().policy().table)  # it stays what it was


def test_gspos_ratio_with_toprs_taper_and_copgs_residual():
    """Live advantage, sequence ratio, taper by sign: three papers in one line."""
    recipe = make("copg", beta=0.2).but(bound=TaperBySign(), denominator=policy_term(make("gspo")).denominator)
    here = case(3)
    mask = here.batch.mask
    value = here.batch["reward"] - 0.2 * (here.logp() - here.clean("reference_logp")).sum(1).detach()
    value = value.view(-1, 4)
    advantage = (value - (value.sum(1, keepdim=True) - value) / 3).flatten()
    s = ((here.logp() - here.clean("old_logp")).sum(1) / mask.sum(1)).exp().detach()
    weight = torch.where(advantage < 0, s.clamp(max=1.0), 1.0)
    assert_same(gradient(recipe, here), autograd(-(weight * advantage * here.logp().sum(1)).mean(), here))
    assert trained(recipe).spent["updates"] == 3


BOUNDS = [Clip(), GeometricClip(), TwoLevelClip(), TaperBySign()]
ADVANTAGES = [WeightedBaseline(), RegularisedLeaveOneOut(0.1)]


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda part: type(part).__name__)
@pytest.mark.parametrize("advantage", ADVANTAGES, ids=lambda part: type(part).__name__)
@pytest.mark.parametrize("name", ["lite-ppo", "dr-grpo", "dapo", "gmpo"])
def test_any_bound_goes_with_any_advantage(name: str, bound, advantage):
    """On policy every bound is 1, so that what is left is the advantage under the recipe's mean."""
    options = {"kl": 0.0} if name == "gmpo" else {}
    here = case(4)
    fresh = Case(here.batch.with_columns(old_logp=here.logp().detach()), here.policy)
    recipe = make(name, **options).but(bound=bound, advantage=advantage)
    assert_same(gradient(recipe, fresh), gradient(recipe.but(bound=unbounded), fresh), 1e-12)
    stale = gradient(recipe, here)
    assert float((stale - gradient(recipe, fresh)).abs().max()) > 1e-6

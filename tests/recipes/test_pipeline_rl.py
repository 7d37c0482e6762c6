"""PipelineRL: the truncated weight of what really sampled each token, whatever version that was."""

from __future__ import annotations

import pytest
import torch

from quatrain.evaluation.off_policy.ratios import effective_size
from quatrain.recipes.engine.pipeline_rl import pipeline_rl
from quatrain.training.executors import InFlight
from quatrain.training.state import State
from tests.toy import Case, ToyTask, assert_same, autograd, case, gradient


def plain_loss(here: Case, cap: float) -> torch.Tensor:
    """−(1/N) Σ_t min(c, π_θ/μ)·A·log π_θ, the weight detached, A = (R − mean)/(std + 1e-6) of the group."""
    reward, prompt = here.batch["reward"], here.batch["prompt"]
    advantage = torch.zeros_like(reward)
    for key in prompt.unique():
        members = prompt == key
        advantage[members] = (reward[members] - reward[members].mean()) / (reward[members].std() + 1e-6)
    weight = here.ratio("behaviour_logp").detach().clamp_max(cap)
    total = torch.where(here.batch.mask, weight * advantage[:, None] * here.logp(), 0.0).sum()
    return -total / here.batch.mask.sum()


@pytest.mark.parametrize("cap", [0.5, 1.5, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_that_of_the_written_loss(cap: float, seed: int):
    here = case(seed, stale=0.8)
    assert cap > 2 or bool((here.ratio("behaviour_logp")[here.batch.mask] > cap).any())
    assert_same(gradient(pipeline_rl(cap=cap), here), autograd(plain_loss(here, cap), here))


def test_the_weight_is_cut_at_the_cap_by_hand():
    (_, fit), *_ = pipeline_rl(cap=2.0).fits()
    bound = fit.loss.terms["policy"].bound
    for advantage in (1.0, -1.0):
        weight = bound(torch.tensor([[0.25, 1.0, 2.0, 8.0]]).log(), torch.full((1, 4), advantage), None)
        torch.testing.assert_close(weight, torch.tensor([[0.25, 1.0, 2.0, 2.0]]))


def test_the_effective_size_of_equal_weights_is_their_number():
    assert float(effective_size(torch.full((7,), 0.3))) == pytest.approx(7.0)
    assert float(effective_size(torch.tensor([1.0, 0.0, 0.0, 0.0]))) == 1.0


def test_without_lag_and_minibatches_it_is_a_clipless_grpo():
    """On policy the truncated weight is 1: the plain group-relative policy gradient."""
    here = case(1)
    current = torch.where(here.batch.mask, here.logp().detach(), float("nan"))
    here = Case(here.batch.with_columns(behaviour_logp=current), here.policy, here.others)
    assert_same(gradient(pipeline_rl(cap=1.0), here), gradient(pipeline_rl(cap=50.0), here), 1e-12)


def test_arms_differ_in_the_executor_and_the_number_of_updates_alone():
    stage, conventional = pipeline_rl().stages[0], pipeline_rl(lag=0, minibatches=4).stages[0]
    assert isinstance(stage.executor, InFlight) and (stage.executor.lag, conventional.executor.lag) == (4, 0)
    assert stage.executor.clock == conventional.executor.clock and stage.steps[0] == conventional.steps[0]
    assert stage.steps[1].loss == conventional.steps[1].loss and conventional.steps[1].minibatches == 4
    recipe = pipeline_rl()
    recipe.check(ToyTask())
    assert {"pool", "prompts", "lr"} <= set(recipe.knobs()) and State(ToyTask(), {}).spent["simulated_seconds"] == 0

"""topr: autograd of the tapered objective, its special cases, and what a taper is for: an objective that is bounded."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.tapers import TaperBySign, effective_share
from quatrain.recipes.basics.off_policy import off_policy
from quatrain.recipes.estimator.topr import TAPERS
from quatrain.training.registry import make
from quatrain.training.steps import Sync
from tests.toy import Case, TabularPolicy, assert_same, autograd, case, gradient

INTERVALS = {
    "topr": ((1, 1), (0, 1)),
    "reinforce": ((1, 1), (1, 1)),
    "positives": ((1, 1), (0, 0)),
    "truncated": ((0, 1), (0, 1)),
}


def paper(here: Case, intervals: tuple, baseline: float = 0.0, ratio: str = "sequence") -> Tensor:
    """−1/N Σ sg[w] R log π(y), row by row; ``token``: Σ_t sg[w_t] R log π(y_t)."""
    total = torch.zeros((), dtype=torch.float64)
    logp, behaviour = here.logp(), here.clean("behaviour_logp")
    for row in range(len(here.batch)):
        mask = here.batch.mask[row]
        ours, theirs = logp[row][mask], behaviour[row][mask]
        signed = 2 * float(here.batch["reward"][row]) - 1 - baseline
        low, high = intervals[0] if signed >= 0 else intervals[1]
        gap = (ours - theirs).detach()
        gap = {"sequence": gap.sum(), "mean": gap.mean(), "token": gap}[ratio]
        total = total - (gap.exp().clamp(low, high) * signed * ours).sum() / len(here.batch)
    return total


@pytest.mark.parametrize("taper", TAPERS)
@pytest.mark.parametrize("baseline", [-0.5, 0.0, 0.5])
def test_the_gradient(taper: str, baseline: float):
    here = case(1)
    recipe = make("topr", group=4, taper=taper, baseline=baseline)
    assert_same(gradient(recipe, here), autograd(paper(here, INTERVALS[taper], baseline), here))


@pytest.mark.parametrize("ratio", ["sequence", "mean", "token"])
def test_the_levels_of_the_ratio(ratio: str):
    here = case(2)
    found = gradient(make("topr", ratio=ratio), here)
    assert_same(found, autograd(paper(here, INTERVALS["topr"], ratio=ratio), here))
    assert ratio == "sequence" or not torch.allclose(found, gradient(make("topr"), here))


def test_the_general_family():
    here, intervals = case(3), ((0.5, 2.0), (0.25, 1.5))
    assert_same(gradient(make("topr").but(bound=TaperBySign(*intervals)), here), autograd(paper(here, intervals), here))


def test_weights_by_hand():
    log_ratio = torch.tensor([[-2.0, 0.0, 1.0]], dtype=torch.float64)
    up, down = (TaperBySign()(log_ratio, torch.full((1, 3), sign), None)[0].tolist() for sign in (1.0, -1.0))
    assert up == [1.0, 1.0, 1.0] and down == pytest.approx([math.exp(-2.0), 1.0, 1.0])


@pytest.mark.parametrize("interval", [(1.0, 0.5), (-0.1, 1.0)])
def test_an_interval_out_of_order_is_refused(interval: tuple[float, float]):
    with pytest.raises(QuatrainError, match="negative advantages"):
        TaperBySign(negative=interval)


def bandit() -> Case:
    """Three equally likely arms tried once each: one good, two bad."""
    return Case(
        Batch(
            mask=torch.ones(3, 1, dtype=torch.bool),
            actions=torch.arange(3)[:, None],
            columns={"state": torch.zeros(3, 1, dtype=torch.long), "behaviour_logp": torch.full((3, 1), 1 / 3, dtype=torch.float64).log()},
            rows={"reward": torch.tensor([1.0, 0.0, 0.0]), "prompt": torch.zeros(3, dtype=torch.long)},
        ),
        TabularPolicy(torch.zeros(1, 3, dtype=torch.float64)),
    )


def climb(taper: str, steps: int = 400) -> tuple[Tensor, float]:
    """(log-probabilities of the arms, size of the gradient) after plain gradient descent at rate 1."""
    here, recipe = bandit(), make("topr", taper=taper)
    for _ in range(steps):
        slope = gradient(recipe, here)
        with torch.no_grad():
            here.policy.table.sub_(slope)
    return here.policy.table.detach().log_softmax(-1)[0], float(gradient(recipe, here).abs().max())


def test_without_a_taper_bad_arms_are_pushed_without_end_and_with_it_the_push_dies_out():
    naive, push = climb("reinforce")
    tapered, rest = climb("topr")
    assert naive[1] < -100 and push > 0.3  # linear: the push on a bad arm stays at its share of the data
    assert -15 < tapered[1] < -4 and rest < 0.01 and tapered[0] > -0.01  # logarithmic, and the good arm is found


def test_a_baseline_acts_like_another_share_of_positives():
    """Σ|A| of the solved over Σ|A|, of 10,000 rewards, is the share that the formula says."""
    reward = torch.zeros(10_000).index_fill_(0, torch.arange(1500), 1.0)
    for baseline in (-0.5, 0.0, 0.5):
        ((_, fit),) = make("topr", baseline=baseline).fits()
        rows = {"reward": reward, "prompt": torch.zeros(10_000, dtype=torch.long)}
        advantage = fit.loss.terms["policy"].advantage(Batch(torch.ones(10_000, 1, dtype=torch.bool), torch.zeros(10_000, 1), rows=rows))
        share = float(advantage[:1500].abs().sum() / advantage.abs().sum())
        assert share == pytest.approx(effective_share(0.15, baseline), rel=1e-9)
    assert effective_share(0.15, 0.5) < 0.15 < effective_share(0.15, -0.5)


def test_on_policy_it_is_reinforce_with_rewards_of_both_signs():
    here = case(4)
    fresh = Case(here.batch.with_columns(behaviour_logp=here.logp().detach()), here.policy)
    signed = Case(here.batch.with_rows(reward=2 * here.batch["reward"] - 1), here.policy)
    expected = autograd(-(here.logp().sum(1) * signed.batch["reward"]).mean(), here)
    for taper in ("topr", "reinforce", "truncated"):
        assert_same(gradient(make("topr", taper=taper), fresh), expected, 1e-12)


def test_the_sampler_is_frozen_or_refreshed():
    recipe = make("topr", refresh=3)
    collect, _, sync = recipe.stages[0].steps
    assert collect.source.model == "sampler" and sync == Sync("policy", "sampler", every=3)
    assert len(make("topr").stages[0].steps) == 2 and list(off_policy(make("rloo")).models) == ["sampler"]

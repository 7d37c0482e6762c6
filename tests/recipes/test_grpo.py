"""grpo: autograd of the clipped surrogate with a k3 penalty (DeepSeekMath, eqs. 3, 4)."""

from __future__ import annotations

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.estimator import Objective
from quatrain.recipes.basics.grpo import grpo, with_kl
from quatrain.training.registry import make
from tests.toy import Case, assert_same, autograd, case, gradient


def z_scores(here: Case, group: int = 4) -> torch.Tensor:
    reward = here.batch["reward"].view(-1, group)
    return ((reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-6)).view(-1, 1)


def paper(here: Case, low: float = 0.2, high: float = 0.2, kl: float = 0.0) -> torch.Tensor:
    ratio, advantage, mask = here.ratio(), z_scores(here), here.batch.mask.double()
    objective = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    gap = here.clean("reference_logp") - here.logp()
    objective = objective - kl * (gap.exp() - gap - 1)
    return -((objective * mask).sum(1) / mask.sum(1)).mean()


@pytest.mark.parametrize("kl", [0.0, 0.04, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient(seed: int, kl: float):
    here = case(seed)
    assert_same(gradient(make("grpo", group=4, kl=kl), here), autograd(paper(here, kl=kl), here))


def test_all_four_cases_of_sign_and_side_are_in_the_batch():
    here = case(0)
    ratio, advantage = here.ratio(), z_scores(here).expand(here.batch.shape)
    for sign in (1, -1):
        for outside in (ratio > 1.2, ratio < 0.8):
            assert (here.batch.mask & (advantage * sign > 0) & outside).any()


@pytest.mark.parametrize(
    ("kind", "penalty"), [("k1", lambda gap: -gap), ("k2", lambda gap: gap**2 / 2), ("k3", lambda gap: gap.exp() - gap - 1)]
)
def test_other_estimators_of_the_kl(kind, penalty):
    here = case(4)
    mask = here.batch.mask.double()
    gap = here.clean("reference_logp") - here.logp()
    loss = paper(here) + 0.3 * ((penalty(gap) * mask).sum(1) / mask.sum(1)).mean()
    assert_same(gradient(with_kl(grpo(4, kl=0.0), 0.3, kind), here), autograd(loss, here))


def test_without_a_penalty_there_is_no_reference():
    assert make("grpo", kl=0.0).models == {} and list(make("grpo").models) == ["reference"]
    ((_, fit),) = make("grpo", kl=0.0).fits(Objective)
    assert not fit.loss.live
    ((_, fit),) = make("grpo").fits(Objective)
    assert not fit.loss.live  # the penalty is read action by action: no pass before the update


def test_the_options_are_checked():
    with pytest.raises(QuatrainError, match="Clip's low"):
        make("grpo", clip=0.0)

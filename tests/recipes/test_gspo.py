"""gspo: autograd of eq. 5 with the length-normalised sequence ratio of eq. 7."""

from __future__ import annotations

import pytest
import torch

from quatrain.training.registry import make
from tests.recipes.test_grpo import z_scores
from tests.toy import assert_same, autograd, case, gradient


@pytest.mark.parametrize(("low", "high"), [(3e-4, 4e-4), (0.2, 0.3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient(seed: int, low: float, high: float):
    here = case(seed)
    mask = here.batch.mask
    s = ((here.logp() - here.clean("old_logp")).sum(1) / mask.sum(1)).exp()
    advantage = z_scores(here)[:, 0]
    loss = -torch.minimum(s * advantage, s.clamp(1 - low, 1 + high) * advantage).mean()
    assert_same(gradient(make("gspo", group=4, clip_low=low, clip_high=high), here), autograd(loss, here))


def test_for_answers_of_one_action_it_is_grpo():
    here = case(3, length=1, prompts=8)
    gspo = make("gspo", clip_low=0.2, clip_high=0.2)
    assert_same(gradient(gspo, here), gradient(make("grpo", kl=0.0), here))

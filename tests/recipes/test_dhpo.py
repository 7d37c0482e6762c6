"""dhpo: autograd of one minimum over mixtures of token and sequence ratios; its ends; what a joint minimum is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.estimator import Objective
from quatrain.parts.bounds import Clip
from quatrain.parts.denominators import Ratio
from quatrain.parts.guides import Surprise
from quatrain.parts.levels import TwoLevelClip
from quatrain.training.registry import make
from tests.recipes.test_grpo import z_scores
from tests.toy import Case, assert_same, autograd, case, fit_of, gradient


def entropies(here: Case) -> Tensor:
    p = here.policy.table.detach()[here.batch["state"]].softmax(-1)
    return -(p * p.log()).sum(-1)


def share(here: Case, guide: str) -> Tensor | float:
    h, mask = entropies(here), here.batch.mask
    if guide == "entropy":
        return (h - h[mask].min()) / (h[mask].max() - h[mask].min())
    return torch.where(mask, h, 0.0) / torch.where(mask, h, 0.0).amax(1, keepdim=True)


def paper(here: Case, w: Tensor | float, token: tuple = (0.2, 0.2), sequence: tuple = (3e-4, 4e-4), minimum: str = "joint") -> Tensor:
    """The loss with the sequence ratio in token form, sg[s]·π/sg[π]."""
    r, mask, advantage = here.ratio(), here.batch.mask.double(), z_scores(here)
    gap = ((here.logp() - here.clean("old_logp")).sum(1, keepdim=True) / mask.sum(1, keepdim=True)).detach()
    s = gap.exp() * (here.logp() - here.logp().detach()).exp()
    r_bar, s_bar = r.clamp(1 - token[0], 1 + token[1]), s.clamp(1 - sequence[0], 1 + sequence[1])
    mixed = w * r + (1 - w) * s
    if minimum == "joint":
        objective = torch.minimum(mixed * advantage, (w * r_bar + (1 - w) * s_bar) * advantage)
    elif minimum == "branch":
        objective = w * torch.minimum(r * advantage, r_bar * advantage) + (1 - w) * torch.minimum(s * advantage, s_bar * advantage)
    else:
        objective = torch.minimum(mixed * advantage, mixed.clamp(1 - token[0], 1 + token[1]) * advantage)
    return -((objective * mask).sum(1) / mask.sum(1)).mean()


@pytest.mark.parametrize("minimum", ["joint", "branch", "after"])
@pytest.mark.parametrize("w", [0.3, 0.5])
@pytest.mark.parametrize(("low", "high"), [(3e-4, 4e-4), (0.1, 0.15)])
def test_the_gradient(minimum: str, w: float, low: float, high: float):
    for seed in (0, 1):
        here = case(seed)
        recipe = make("dhpo", group=4, token_share=w, minimum=minimum, clip_low=low, clip_high=high)
        assert_same(gradient(recipe, here), autograd(paper(here, w, sequence=(low, high), minimum=minimum), here))


@pytest.mark.parametrize("guide", ["entropy", "entropy-response"])
@pytest.mark.parametrize("minimum", ["joint", "branch", "after"])
def test_the_gradient_with_an_entropy_guide(guide: str, minimum: str):
    here = case(2)
    recipe = make("dhpo", guide=guide, minimum=minimum, clip_low=0.1, clip_high=0.1)
    assert_same(gradient(recipe, here), autograd(paper(here, share(here, guide), sequence=(0.1, 0.1), minimum=minimum), here))


def test_all_cases_are_in_the_batches():
    """Both ratios clipped to one side, to opposite sides, exactly one of them, none; with the ranges and the batches above."""
    seen = set()
    for seed, low, high in ((0, 3e-4, 4e-4), (1, 3e-4, 4e-4), (0, 0.1, 0.15), (1, 0.1, 0.15)):
        here = case(seed)
        r = here.ratio().detach()
        s = Ratio("current", "old", "sequence")(here.batch.with_columns(current_logp=here.logp().detach())).exp()
        sides = (r > 1.2).long() - (r < 0.8).long(), (s > 1 + high).long() - (s < 1 - low).long()
        chosen = here.batch.mask & (z_scores(here) != 0)
        seen |= set(zip(sides[0][chosen].tolist(), sides[1][chosen].tolist(), strict=True))
    assert len(seen) == 9


# -- the ends ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("minimum", ["joint", "branch"])
def test_it_becomes_grpo_and_token_level_gspo(minimum: str):
    here = case(1)
    token, sequence = (gradient(make("dhpo", token_share=w, minimum=minimum), here) for w in (1.0, 0.0))
    assert torch.equal(token, gradient(make("grpo", kl=0.0), here))
    assert torch.equal(sequence, gradient(make("gspo"), here))


def test_token_level_gspo_with_an_advantage_per_token():
    """Where the advantage differs by token, GSPO's token form clips s by each token's sign."""
    here = case(2)
    advantage = here.clean("rewards")
    own = {"advantage": lambda batch: batch["rewards"]}
    mask, gap = here.batch.mask.double(), (here.logp() - here.clean("old_logp")).sum(1, keepdim=True)
    s = (gap / mask.sum(1, keepdim=True)).detach().exp() * (here.logp() - here.logp().detach()).exp()
    objective = torch.minimum(s * advantage, s.clamp(1 - 3e-4, 1 + 4e-4) * advantage)
    expected = autograd(-((objective * mask).sum(1) / mask.sum(1)).mean(), here)
    assert_same(gradient(make("dhpo", token_share=0.0).but(**own), here), expected)


@pytest.mark.parametrize("guide", ["average", "entropy", "entropy-response"])
def test_on_policy_it_is_the_policy_gradient_for_any_share(guide: str):
    here = case(3)
    here = replace(here, batch=here.batch.with_columns(old_logp=here.logp().detach()))
    plain = -((z_scores(here) * here.logp()).sum(1) / here.batch.mask.sum(1)).mean()
    assert_same(gradient(make("dhpo", guide=guide), here), autograd(plain, here), 1e-12)


# -- what it is not ----------------------------------------------------------------------------------------------------
def test_a_joint_minimum_is_not_a_sum_of_two_clipped_terms():
    here = case(1)
    ranges = {"clip_low": 0.1, "clip_high": 0.1}
    joint, branch = (gradient(make("dhpo", minimum=minimum, **ranges), here) for minimum in ("joint", "branch"))
    summed = (gradient(make("grpo", kl=0.0), here) + gradient(make("gspo", **ranges), here)) / 2
    assert_same(branch, summed, 1e-13)
    assert float((joint - summed).abs().max()) > 1e-3


def test_where_the_two_differ_by_hand():
    """r = (2, ½): s = 1. Upwards: the first token's r is clipped at 1.2, the second's at 0.8, s not at all."""
    gap = torch.tensor([[2.0, 0.5]], dtype=torch.float64).log()
    batch = Batch(torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2))
    found = {
        minimum: TwoLevelClip(0.5, (0.2, 0.2), (0.1, 0.1), minimum)(gap, torch.ones(1, 2), batch)[0].tolist()
        for minimum in ("joint", "branch", "after")
    }
    # first: m = 1.5 > m̄ = 1.1: only s moves it, 0.5·1; second: m = 0.75 < m̄ = 0.9: everything passes
    assert found["joint"] == pytest.approx([0.5, 0.75]) and found["branch"] == pytest.approx([0.5, 0.75])
    assert found["after"] == pytest.approx([0.0, 0.75])
    # opposite sides, pushed up: r = 0.7 would pass, s = 1.09 would be clipped; the mixture decides for both
    one = torch.tensor([[0.7, 1.09**2 / 0.7]], dtype=torch.float64).log()
    joint, branch = (
        TwoLevelClip(0.5, (0.2, 0.2), (0.05, 0.05), minimum)(one, torch.ones(1, 2), batch)[0, 0].item() for minimum in ("joint", "branch")
    )
    assert joint == pytest.approx((0.7 + 1.09) / 2) and branch == pytest.approx(0.35)  # m = 0.895 < m̄ = (0.8 + 1.05)/2


def test_an_outlier_is_bounded():
    """r = 50 of one token changes m̄ by at most w·(1 + ε): the surrogate of what is pushed up stays below the clipped mixture."""
    w, batch = 0.5, Batch(torch.ones(1, 20, dtype=torch.bool), torch.zeros(1, 20))
    gap = torch.zeros(1, 20, dtype=torch.float64)
    gap[0, 0] = torch.tensor(50.0).log()
    factor = TwoLevelClip(w)(gap, torch.ones_like(gap), batch)[0]
    s = float((gap.sum() / 20).exp())
    assert s > 1.2 and float(factor[0]) == 0.0  # both ratios of the outlier are clipped
    assert factor[1:].tolist() == pytest.approx([w] * 19)  # s is clipped, r = 1 is not
    # a surrogate value of at most w(1 + ε) + (1 − w)(1 + ε')
    assert w * 1.2 + (1 - w) * 1.0004 < w * 50 + (1 - w) * s


# -- the guide ---------------------------------------------------------------------------------------------------------
def test_an_entropy_guide_is_computed_once_on_the_whole_update():
    """Its extremes are those of all rows, so that the gradient does not depend on the micro-batch; the other guides need no pass."""
    here = case(4)
    recipe = make("dhpo", guide="entropy")
    whole = gradient(recipe, here)
    for tokens in (1, 7):
        step = replace(fit_of(recipe), micro_tokens=tokens)
        assert_same(gradient(step, here), whole, 1e-13)
    live = {}
    for guide in ("average", "entropy"):
        ((_, fit),) = make("dhpo", guide=guide).fits(Objective)
        live[guide] = fit.loss.live
    assert live == {"average": False, "entropy": True}


def test_surprise_by_hand():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    entropy = torch.tensor([[1.0, 3.0, 99.0], [2.0, float("nan"), -5.0]])
    batch = Batch(mask, torch.zeros(2, 3), columns={"current_entropy": entropy})
    assert Surprise()(batch).tolist() == [[0.0, 1.0, 0.0], [0.5, 0.0, 0.0]]
    assert Surprise("response")(batch)[0].tolist() == pytest.approx([1 / 3, 1.0, 0.0]) and Surprise("response")(batch)[1, 0] == 1.0
    flat = batch.with_columns(current_entropy=torch.zeros(2, 3))
    assert not Surprise()(flat).any() and not Surprise("response")(flat).any()


def test_the_options_are_checked():
    for options, says in (
        ({"token_share": 1.5}, "share of the action's"),
        ({"clip": 0.0}, "clip range of the action"),
        ({"guide": "h"}, "wrong type"),
    ):
        with pytest.raises(QuatrainError, match=says):
            make("dhpo", **options)
    with pytest.raises(QuatrainError, match="scale of an entropy"):
        Surprise("prompt")


def test_equal_ranges_on_one_action_are_one_clip():
    here = case(5, length=1, prompts=8)
    both = make("dhpo", clip=0.2, clip_low=0.2, clip_high=0.2)
    assert_same(gradient(both, here), gradient(make("grpo", kl=0.0).but(bound=Clip(0.2, 0.2)), here), 1e-13)

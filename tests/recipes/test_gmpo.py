"""gmpo: autograd of the geometric mean, written without logarithms and with them; the clip inside the mean, by sign."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.bounds import Clip
from quatrain.parts.levels import GeometricClip
from quatrain.training.registry import make
from tests.recipes.test_grpo import z_scores
from tests.toy import Case, TabularPolicy, assert_same, autograd, case, gradient


def paper(here: Case, clip: float = 0.4, level: str = "action", root: bool = True, scale: str = "group") -> Tensor:
    """−1/N Σ A·exp(1/|o| Σ m), row by row."""
    if scale == "group":
        advantage = z_scores(here)[:, 0]
    else:
        reward = here.batch["reward"].view(-1, 4)
        advantage = (reward - reward.mean(1, keepdim=True)).flatten()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(here.batch)):
        mask = here.batch.mask[row]
        gap = here.logp()[row][mask] - here.clean("old_logp")[row][mask]
        if level == "sequence":
            gap = gap.sum()
        if level != "none":
            inside = gap.clamp(-clip, clip)
            gap = torch.minimum(gap, inside) if advantage[row] > 0 else torch.maximum(gap, inside)
        power = gap.sum() / (mask.sum() if root else 1)
        total = total - advantage[row] * power.exp() / len(here.batch)
    return total


@pytest.mark.parametrize("level", ["action", "sequence", "none"])
@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("scale", ["group", "none"])
def test_the_gradient(level: str, root: bool, scale: str):
    here = case(1)
    recipe = make("gmpo", group=4, level=level, root=root, scale=scale)
    assert_same(gradient(recipe, here), autograd(paper(here, 0.4, level, root, scale), here))


@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize("clip", [0.2, 1.0])
def test_other_batches_and_ranges(seed: int, clip: float):
    here = case(seed)
    assert_same(gradient(make("gmpo", group=4, clip=clip), here), autograd(paper(here, clip), here))


def test_with_a_penalty():
    here = case(3)
    gap = here.clean("reference_logp") - here.logp()
    penalty = torch.where(here.batch.mask, gap.exp() - gap - 1, 0.0).sum(1) / here.batch.mask.sum(1)
    assert_same(gradient(make("gmpo", kl=0.04), here), autograd(paper(here) + 0.04 * penalty.mean(), here))


def by_hand(ratios: list[float], sign: float, **options) -> list[float]:
    batch = Batch(torch.ones(1, len(ratios), dtype=torch.bool), torch.zeros(1, len(ratios)))
    gap = torch.tensor([ratios], dtype=torch.float64).log()
    return GeometricClip(**options)(gap, torch.full_like(gap, sign), batch)[0].tolist()


def test_ratios_of_two_and_a_half_cancel_without_a_clip():
    assert by_hand([2.0, 0.5], 1.0, clip="none") == pytest.approx([1.0, 1.0])


def test_the_clip_is_by_sign_and_inside_the_mean():
    """A clipped action has no gradient of its own; what is left of its ratio stays in the weight of the others."""
    kept = math.exp((0.4 - math.log(2)) / 2)
    assert by_hand([2.0, 0.5], 1.0) == pytest.approx([0.0, kept])  # upwards: 2 is clipped to e^0.4, ½ is not
    assert by_hand([2.0, 0.5], -1.0) == pytest.approx([1 / kept, 0.0])  # downwards: ½ is clipped to e^−0.4
    outside = Clip(math.expm1(0.4), math.expm1(0.4))(torch.zeros(1, 2), torch.ones(1, 2), None)
    assert outside.tolist() == [[1.0, 1.0]]  # clipping the mean of these, 0, clips nothing
    assert by_hand([2.0, 0.5], 1.0, clip="sequence") == pytest.approx([1.0, 1.0])
    assert by_hand([2.0, 2.0], 1.0, clip="sequence", root=False) == [0.0, 0.0]


def test_the_clip_sits_at_its_end_and_not_beyond():
    edge = math.exp(0.4)
    assert by_hand([edge * 1.0001], 1.0) == [0.0] and by_hand([edge * 0.9999], 1.0)[0] > 1.49
    assert by_hand([edge * 1.0001], -1.0)[0] > 1.49  # a bad action may always be made rarer


def test_for_one_action_it_is_ppos_clip_in_log_space():
    here = case(3, length=1, prompts=8)
    low, high = 1 - math.exp(-0.4), math.exp(0.4) - 1
    assert_same(gradient(make("gmpo"), here), gradient(make("grpo", kl=0.0).but(bound=Clip(low, high)), here))


def test_a_clipped_token_moves_nothing_and_its_neighbours_still():
    """Two actions of one solved answer against one unsolved: log-ratios 0.5 (clipped) and 0."""
    table = torch.zeros(4, 2, dtype=torch.float64)
    old = torch.full((2, 2), 0.5, dtype=torch.float64).log()
    old[0, 0] -= 0.5
    batch = Batch(
        mask=torch.ones(2, 2, dtype=torch.bool),
        actions=torch.zeros(2, 2, dtype=torch.long),
        columns={"state": torch.arange(4).view(2, 2), "old_logp": old},
        rows={"reward": torch.tensor([1.0, 0.0], dtype=torch.float64), "prompt": torch.zeros(2)},
    )
    found = -gradient(make("gmpo", scale="none"), Case(batch, TabularPolicy(table)))[:, 0]
    # A = ±½, ∇log π = ½, 1/(N|o|) = ¼; the weight of the first row is exp((0.4 + 0)/2)
    expected = torch.tensor([0.0, math.exp(0.2), -1.0, -1.0], dtype=torch.float64) * 0.5 * 0.5 / 4
    assert torch.allclose(found, expected, rtol=1e-12, atol=0)


def test_the_options_are_checked():
    with pytest.raises(QuatrainError, match="GeometricClip's low"):
        make("gmpo", clip=0.0)
    with pytest.raises(QuatrainError, match="wrong type"):
        make("gmpo", level="token")

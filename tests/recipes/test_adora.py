"""adora: autograd of GRPO's surrogate with the group's weight, written out group by group as the released code does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.lengths import LengthAdvantage
from quatrain.training.registry import make
from tests.recipes.test_grpo import z_scores
from tests.toy import Case, assert_same, autograd, case, gradient

INF = float("inf")


def weights(here: Case, scale: float, version: str, group: int = 4) -> torch.Tensor:
    """[N, 1] by the released code's loop, its edge cases included."""
    found = []
    for start in range(0, len(here.batch), group):
        rows = range(start, start + group)
        long = [int(here.batch.mask[i].sum()) for i in rows if here.batch["reward"][i] == 1]
        short = [int(here.batch.mask[i].sum()) for i in rows if here.batch["reward"][i] == 0 and not here.batch["truncated"][i].any()]
        best = max(long, default=-INF)
        mean = sum(short) / len(short) if short else (-INF if version == "text" else INF)
        good = best > mean or (version == "vision" and not long)
        found += [1.0 if good else scale] * group
    return torch.tensor(found, dtype=torch.float64)[:, None]


def cut(here: Case, share: float = 0.5) -> Case:
    """Some answers are cut at their last action."""
    batch = here.batch
    chosen = torch.rand(len(batch), generator=torch.Generator().manual_seed(1)) < share
    return replace(here, batch=batch.with_columns(truncated=batch["terminated"] & chosen[:, None]))


@pytest.mark.parametrize("version", ["text", "vision"])
@pytest.mark.parametrize("scale", [0.1, 0.5, 0.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient(seed: int, scale: float, version: str):
    here = cut(case(seed, prompts=12))
    weight = weights(here, scale, version)
    assert 0 < (weight[:, 0] == 1).sum() < len(weight)
    ratio, advantage, mask = here.ratio(), z_scores(here) * weight, here.batch.mask
    objective = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    loss = -(torch.where(mask, objective, 0.0).sum(1) / mask.sum(1)).mean()
    assert_same(gradient(make("adora", group=4, scale=scale, version=version), here), autograd(loss, here))


def test_a_scale_of_one_is_grpo():
    here = cut(case(2))
    assert torch.equal(gradient(make("adora", scale=1.0), here), gradient(make("grpo", kl=0.0), here))


def groups(*each: list[tuple[float, int, bool]]) -> Batch:
    """A batch of groups of (reward, length, cut)."""
    rows = [row for group in each for row in group]
    lengths = torch.tensor([row[1] for row in rows])
    mask = torch.arange(9) < lengths[:, None]
    last = mask & (torch.arange(9) == lengths[:, None] - 1)
    return Batch(
        mask=mask,
        actions=mask.long(),
        columns={"truncated": last & torch.tensor([row[2] for row in rows])[:, None]},
        rows={"reward": torch.tensor([row[0] for row in rows]), "prompt": torch.tensor([k for k, group in enumerate(each) for _ in group])},
    )


def test_hand_made_groups():
    batch = groups(
        [(1.0, 5, False), (1.0, 2, False), (0.0, 4, False), (0.0, 4, False)],  # 5 > 4
        [(1.0, 4, False), (1.0, 2, False), (0.0, 4, False), (0.0, 4, False)],  # 4 > 4 is not
        [(1.0, 4, False), (0.0, 3, False), (0.0, 9, True)],  # the cut one does not count: 4 > 3
        [(0.0, 4, False), (0.0, 3, False)],  # nothing correct
        [(1.0, 4, False), (0.0, 9, True)],  # every wrong one was cut
        [(1.0, 4, False), (float("nan"), 9, False), (0.0, 2, False)],  # a demonstration is neither
    )
    of_group = torch.tensor([0, 4, 8, 11, 13, 15])
    assert LengthAdvantage(0.1)(batch)[of_group].tolist() == [1.0, 0.1, 1.0, 0.1, 1.0, 1.0]
    assert LengthAdvantage(0.1, missing="keep", alone="scale")(batch)[of_group].tolist() == [1.0, 0.1, 1.0, 1.0, 0.1, 1.0]


def test_the_weight_keeps_the_advantages_of_a_group_at_a_sum_of_zero():
    here = cut(case(0, prompts=12))
    weighed = (z_scores(here)[:, 0] * LengthAdvantage(0.1)(here.batch)).view(-1, 4)
    assert weighed.sum(1).abs().max() < 1e-12 and weighed.abs().max() > 0.1


def test_bad_options():
    with pytest.raises(QuatrainError, match="at least 0"):
        make("adora", scale=-0.1)
    with pytest.raises(QuatrainError, match="scaled or kept"):
        LengthAdvantage(missing="drop")

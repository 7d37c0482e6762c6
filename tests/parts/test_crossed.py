"""Baselines that are the others': by hand, what is alone or absent, and, by enumeration, that they do not bias the gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.parts.advantages import LeaveOneOut
from quatrain.parts.crossed import CrossBaseline, mean_of_others
from quatrain.parts.tracked import Above
from tests.toy import case

NAN = float("nan")
POLICY = torch.tensor([0.3, -0.4, 0.9, 0.1], dtype=torch.float64)  # logits of a bandit
REWARD = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
PROBE = torch.tensor([0.9, 0.2, 0.1, 0.7], dtype=torch.float64)  # knows something of the action: not independent of it


def advantages(reward: list[float], value: list[float], prompt: list[int]) -> list[float]:
    rows = {"reward": torch.tensor(reward), "probe_value": torch.tensor(value), "prompt": torch.tensor(prompt)}
    return CrossBaseline()(Batch(torch.ones(len(reward), 1, dtype=torch.bool), torch.zeros(len(reward), 1), rows=rows)).tolist()


def test_by_hand_the_twins_prediction_is_the_baseline():
    assert advantages([1, 0, 1, 1, 0], [0.25, 0.75, 0.5, 0.0, 0.25], [4, 4, 9, 9, 9]) == pytest.approx(
        [0.25, -0.25, 1 - 0.125, 1 - 0.375, -0.25]
    )


def test_who_is_alone_gets_nothing_and_who_is_absent_takes_no_part():
    assert advantages([1, 1, 0, 1], [0.25, 0.5, 0.25, NAN], [1, 2, 2, 2])[:3] == pytest.approx([0.0, 0.75, -0.5])
    found = mean_of_others(torch.tensor([1.0, NAN, 3.0]), torch.tensor([0, 0, 0]), 1)
    assert found.tolist() == [3.0, 2.0, 1.0]


def test_with_the_rewards_themselves_it_is_leave_one_out_and_with_a_constant_a_constant():
    batch = case(0).batch
    own = CrossBaseline(value="reward")(batch)
    assert torch.allclose(own, LeaveOneOut()(batch), atol=1e-15)
    level = CrossBaseline()(batch.with_rows(probe_value=torch.full((len(batch),), 0.3, dtype=torch.float64)))
    assert torch.allclose(level, batch["reward"].double() - 0.3)


def expected_gradient(advantage, draws: int) -> Tensor:
    """E[1/G Σ_i A_i ∇log π(y_i)] over all groups of ``draws`` actions of the bandit, exactly: [V]."""
    grid = torch.cartesian_prod(*[torch.arange(len(POLICY))] * draws)
    flat = grid.flatten()
    rows = {"prompt": torch.arange(len(grid)).repeat_interleave(draws), "reward": REWARD[flat], "probe_value": PROBE[flat]}
    batch = Batch(torch.ones(len(flat), 1, dtype=torch.bool), flat[:, None], rows=rows)
    chance = POLICY.softmax(0)
    score = torch.eye(len(POLICY), dtype=torch.float64)[flat] - chance
    weight = chance[grid].prod(1).repeat_interleave(draws) / draws
    return (weight * advantage(batch)) @ score


@pytest.mark.parametrize("draws", [2, 3])
def test_exactly_unbiased_where_the_own_prediction_is_not(draws: int):
    plain = expected_gradient(lambda batch: batch["reward"], draws)
    assert torch.allclose(expected_gradient(CrossBaseline(), draws), plain, atol=1e-15)
    biased = expected_gradient(Above("probe_value"), draws) - plain
    chance = POLICY.softmax(0)
    assert torch.allclose(biased, -chance * (PROBE - chance @ PROBE), atol=1e-15) and biased.abs().max() > 0.05

"""Gates by hand: success with demonstrations in the group, thresholds, tables."""

from __future__ import annotations

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.knobs import Knob, resolve
from quatrain.parts.gates import BySolvedCount, Scaled, Share, Solved, success_rate

NAN = float("nan")
# Prompt 0: one of two solved, and a demonstration. Prompt 1: none of two. Prompt 2: a demonstration alone. Prompt 3: three of three.
PROMPT = [0, 0, 0, 1, 1, 2, 3, 3, 3]
REWARD = [1.0, 0.0, NAN, 0.0, 0.0, NAN, 1.0, 1.0, 1.0]
BATCH = Batch(torch.ones(9, 1, dtype=torch.bool), torch.zeros(9, 1), rows={"prompt": torch.tensor(PROMPT), "reward": torch.tensor(REWARD)})


def per_prompt(gate) -> list[float]:
    found = gate(BATCH)
    assert all(float(value) == float(found[PROMPT.index(prompt)]) for prompt, value in zip(PROMPT, found, strict=True))
    return [float(found[PROMPT.index(prompt)]) for prompt in range(4)]


def test_the_success_rate_is_of_rollouts():
    assert per_prompt(success_rate) == [0.5, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(("above", "expected"), [(0.0, [1, 0, 0, 1]), (0.5, [0, 0, 0, 1]), (1.0, [0, 0, 0, 0])])
def test_a_threshold_is_exceeded_not_met(above: float, expected: list[float]):
    assert per_prompt(Solved(above)) == expected
    assert per_prompt(Solved(above, invert=True)) == [1 - value for value in expected]


def test_a_table_by_number_of_solved_rollouts():
    assert per_prompt(BySolvedCount((0.5, 0.25, 0.125))) == [0.25, 0.5, 0.5, 0.125]  # three solved: the last entry


def test_scaled():
    assert per_prompt(Scaled(Solved(), by=3.0, over=2.0)) == [1.5, 0.0, 0.0, 1.5]
    assert Scaled(Solved(of="score", by="item")).needs == ("score", "item") == BySolvedCount((1.0,), "score", "item").needs


def test_two_shares_are_one():
    assert Share(0.25)(BATCH).unique().tolist() == [0.25] and Share(0.25, rest=True)(BATCH).unique().tolist() == [0.75]
    assert resolve(Share(Knob("mu", 0.9), rest=True), {"mu": 1.0})(BATCH).eq(0).all() and Share(0.5)(BATCH).shape == BATCH.shape
    with pytest.raises(QuatrainError, match="share is out of range"):
        Share(1.5)

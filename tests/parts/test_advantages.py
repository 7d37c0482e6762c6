"""Advantages against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.advantages import (
    KL,
    Centred,
    Constant,
    GeneralisedAdvantage,
    GroupRelative,
    LeaveOneOut,
    PairLogistic,
    Return,
    action_rewards,
    one,
)

NAN = float("nan")


def rows(reward: list[float], prompt: list[int], length: int = 2, **columns) -> Batch:
    n = len(reward)
    return Batch(
        mask=torch.ones(n, length, dtype=torch.bool),
        actions=torch.zeros(n, length),
        columns=columns,
        rows={"reward": torch.tensor(reward), "prompt": torch.tensor(prompt)},
    )


def about(*values: float):
    return pytest.approx(values, rel=1e-6, abs=1e-12, nan_ok=True)


def test_constants():
    batch = rows([1.0, 2.0], [0, 0])
    assert one(batch).tolist() == [[1.0, 1.0]] * 2 and Constant(-0.5)(batch).tolist() == [[-0.5, -0.5]] * 2


def test_group_z_score():
    # Group 5: 1, 2, 3 → mean 2, deviations −1, 0, 1, Bessel-corrected standard deviation 1. Group 9: all equal → 0.
    found = GroupRelative(eps=0.0)(rows([1.0, 7.0, 2.0, 7.0, 3.0], [5, 9, 5, 9, 5]))
    assert found[[0, 2, 4]].tolist() == about(-1.0, 0.0, 1.0)
    found = GroupRelative()(rows([1.0, 0.0, 0.0, 0.0, 7.0, 7.0], [0, 0, 0, 0, 1, 1]))
    # mean ¼, standard deviation √((9/16 + 3/16)/3) = ½
    assert found.tolist() == about(0.75 / 0.500001, *[-0.25 / 0.500001] * 3, 0.0, 0.0)
    assert found.dtype == torch.float64


def test_group_scales():
    batch = rows([0.0, 1.0, 0.0, 3.0], [0, 0, 1, 1])
    assert GroupRelative(scale="none")(batch).tolist() == about(-0.5, 0.5, -1.5, 1.5)
    spread = 2.0**0.5  # of 0, 1, 0, 3: mean 1, squares 1 + 0 + 1 + 4 = 6, /3
    assert GroupRelative(scale="batch", eps=0.0)(batch).tolist() == about(*(x / spread for x in (-0.5, 0.5, -1.5, 1.5)))
    with pytest.raises(QuatrainError, match="unknown scale"):
        GroupRelative(scale="groups")


@pytest.mark.parametrize("advantage", [GroupRelative(), GroupRelative(scale="batch"), GroupRelative(scale="none"), LeaveOneOut()])
def test_a_group_of_one_gets_zero(advantage):
    assert advantage(rows([3.0], [0])).tolist() == [0.0]


def test_rows_without_a_reward_take_no_part():
    batch = rows([1.0, NAN, 3.0], [0, 0, 0])
    assert GroupRelative(scale="none")(batch).tolist() == about(-1.0, NAN, 1.0)
    assert GroupRelative(eps=0.0)(batch).tolist() == about(-1 / 2**0.5, NAN, 1 / 2**0.5)
    assert GroupRelative(scale="batch", eps=0.0)(batch).tolist() == about(-1 / 2**0.5, NAN, 1 / 2**0.5)
    assert LeaveOneOut()(batch).tolist() == about(-2.0, NAN, 2.0)


def test_another_value_and_another_key():
    batch = rows([0.0, 0.0], [0, 1]).with_rows(score=torch.tensor([1.0, 3.0]), bundle=torch.tensor([4, 4]))
    assert GroupRelative(by="bundle", scale="none", of="score")(batch).tolist() == about(-1.0, 1.0)
    assert set(GroupRelative(by="bundle", of="score").needs) == {"bundle", "score"} == set(LeaveOneOut("bundle", "score").needs)


def test_leave_one_out():
    # Others' means: (2+6)/2, (1+6)/2, (1+2)/2.
    assert LeaveOneOut()(rows([1.0, 2.0, 6.0], [0, 0, 0])).tolist() == about(-3.0, -1.5, 4.5)


def test_centring_is_leave_one_out_shrunk_by_one_over_g():
    batch = rows([0.3, 0.9, -1.0, 2.0, 5.0, 1.0, 1.5, 0.0], [0] * 4 + [1] * 4)
    assert torch.allclose(GroupRelative(scale="none")(batch), LeaveOneOut()(batch) * 3 / 4, rtol=1e-12)


def test_returns():
    mask = torch.tensor([[True, True, False, True]])
    rewards = torch.tensor([[1.0, 2.0, NAN, 4.0]])
    ends = torch.tensor([[False, False, False, True]])
    batch = Batch(mask=mask, actions=torch.zeros(1, 4), columns={"rewards": rewards, "terminated": ends}, rows={"reward": torch.ones(1)})
    assert Return(0.5)(batch).tolist() == [[1 + 0.5 * (2 + 0.5 * 4), 4.0, 0.0, 4.0]]
    assert Return()(batch).tolist() == [[7.0, 6.0, 0.0, 4.0]]


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_a_return_stops_where_its_episode_does(end: str):
    """Two episodes in one row; cut or ended, the first sees nothing of the second."""
    flags = {name: torch.tensor([[False, name == end, False, True]]) for name in ("terminated", "truncated")}
    columns = {"rewards": torch.tensor([[1.0, 2.0, 4.0, 8.0]]), **flags}
    batch = Batch(torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4), columns=columns, rows={"reward": torch.ones(1)})
    assert Return()(batch).tolist() == [[3.0, 2.0, 12.0, 8.0]]


def test_an_outcome_reward_comes_with_the_last_action():
    mask = torch.tensor([[True, False, True, False], [True, False, False, False]])
    batch = Batch(mask=mask, actions=torch.zeros(2, 4), rows={"reward": torch.tensor([2.0, 3.0])})
    rewards, ended = action_rewards(batch)
    assert rewards.tolist() == [[0.0, 0.0, 2.0, 0.0], [3.0, 0.0, 0.0, 0.0]]
    assert ended.tolist() == [[False, False, True, False], [True, False, False, False]]
    assert Return(0.5)(batch).tolist() == [[1.0, 0.0, 2.0, 0.0], [3.0, 0.0, 0.0, 0.0]]


def test_generalised_advantage():
    batch = rows([1.0], [0], value=torch.tensor([[0.5, 0.25]]), next_value=torch.tensor([[0.25, 9.0]]))
    # δ = (0 + 0.5·0.25 − 0.5, 1 − 0.25) = (−0.375, 0.75); γλ = 0.25
    assert GeneralisedAdvantage(0.5, 0.5)(batch)[0].tolist() == about(-0.375 + 0.25 * 0.75, 0.75)
    ends = torch.zeros(1, 2, dtype=torch.bool)
    steps = batch.with_columns(rewards=torch.tensor([[0.0, 1.0]]), terminated=ends, truncated=torch.tensor([[False, True]]))
    # cut, not ended: the value after the last action counts
    assert GeneralisedAdvantage(0.5, 0.0)(steps)[0].tolist() == about(-0.375, 1 + 4.5 - 0.25)


def test_centring_and_scaling_over_the_actions_of_the_batch():
    mask = torch.tensor([[True, True], [True, False]])
    batch = Batch(mask=mask, actions=torch.zeros(2, 2), rows={"reward": torch.tensor([1.0, 4.0])})
    assert Centred(Return())(batch)[mask].tolist() == about(-1.0, -1.0, 2.0)  # returns 1, 1, 4: mean 2
    assert Centred(Return(), scale=True, eps=0.0)(batch)[mask].tolist() == about(*(x / 2**0.5 for x in (-1.0, -1.0, 2.0)))
    assert Centred(Return()).needs == ("reward",) and Centred(one).needs == ()


@pytest.mark.parametrize(("kind", "expected"), [("k1", (-1.0, -1.0)), ("k2", (0.5, -0.25)), ("k3", (0.6487212707, -0.2211992169))])
def test_kl_penalties(kind: str, expected: tuple):
    batch = rows([0.0], [0], current_logp=torch.tensor([[-1.0, -1.0]]), reference_logp=torch.tensor([[-0.5, -1.25]]))
    assert KL(kind=kind)(batch)[0].tolist() == about(*expected)
    assert KL("teacher", kind).needs == ("current_logp", "teacher_logp")


def test_an_unknown_estimator_of_the_kl():
    with pytest.raises(QuatrainError, match="k1, k2 or k3"):
        KL(kind="k4")


def test_pair_logistic():
    current, reference = torch.tensor([[-1.0, -1.0], [-2.0, -3.0]]), torch.tensor([[-1.5, -1.5], [-2.0, -2.0]])
    batch = rows([0.0, 0.0], [0, 0], current_logp=current, reference_logp=reference)
    batch = batch.with_rows(pair=torch.tensor([6, 6]), preference=torch.tensor([1.0, -1.0]))
    # margin = 1 − (−1) = 2; β σ(−2β) with β = ½ is ½/(1 + e)
    assert PairLogistic(0.5)(batch).tolist() == about(0.5 / (1 + 2.718281828), -0.5 / (1 + 2.718281828))
    assert set(PairLogistic(0.5, "initial", "match").needs) == {"current_logp", "initial_logp", "match", "preference"}

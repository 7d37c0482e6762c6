"""Segments, implicit rewards, ranked pairs: by hand numbers."""

from __future__ import annotations

import pytest
import torch

from quatrain.batch import Batch
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.implicit import Implicit, OutcomeLogistic
from quatrain.parts.pairs import ranked_pairs
from quatrain.parts.segments import Plus, SegmentRelative, segment_index
from tests.toy import case


def batch() -> Batch:
    """Two episodes of a group: turns of 2 + 1 and of 1 + 2 tokens, an answer of the environment between; and a group of its own."""
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [1, 0, 0, 0]]).bool()
    turn = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0]])
    nan = float("nan")
    prm = torch.tensor([[1.0, 2.0, nan, 3.0], [-1.0, nan, 0.5, 0.5], [7.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    old = torch.zeros(3, 4, dtype=torch.float64)
    rows = {"prompt": torch.tensor([5, 5, 9]), "reward": torch.tensor([1.0, 0.0, 1.0])}
    return Batch(mask, mask.long(), {"turn": turn, "prm_logp": prm, "old_logp": old}, rows)


def test_turns_are_compared_over_all_episodes_of_the_group():
    """Sums 3, 3, −1, 1 at β = 1: mean 1.5, variance (2.25 + 2.25 + 6.25 + 0.25)/3."""
    found = SegmentRelative(Implicit(1.0), eps=0.0)(batch().take([0, 1]))
    std = (11 / 3) ** 0.5
    assert found[0].tolist() == pytest.approx([1.5 / std, 1.5 / std, 0.0, 1.5 / std])
    assert found[1].tolist() == pytest.approx([-2.5 / std, 0.0, -0.5 / std, -0.5 / std])
    assert torch.equal(SegmentRelative(Implicit(1.0))(batch())[2], torch.zeros(4, dtype=torch.float64))  # alone in its group
    assert torch.allclose(
        SegmentRelative(Implicit(1.0), eps=0.0)(batch().take([0, 1])), SegmentRelative(Implicit(0.2), eps=0.0)(batch().take([0, 1]))
    )


def test_a_row_value_is_added_to_every_segment():
    """4, 4, −1, 1: mean 2, variance (4 + 4 + 9 + 1)/3."""
    found = SegmentRelative(Implicit(1.0), plus="reward", eps=0.0)(batch().take([0, 1]))
    assert found[0, [0, 1, 3]].tolist() == pytest.approx([2 / 6**0.5] * 3) and found[1, 0].item() == pytest.approx(-3 / 6**0.5)
    assert set(SegmentRelative(Implicit(1.0), plus="reward").needs) == {"prm_logp", "old_logp", "reward", "turn", "prompt"}


def test_every_action_is_its_own_segment_without_a_column():
    part = SegmentRelative(Implicit(1.0), by="", eps=0.0)
    here = batch().take([0, 1])
    values = torch.tensor([1.0, 2.0, 3.0, -1.0, 0.5, 0.5], dtype=torch.float64)
    assert torch.allclose(part(here)[here.mask], (values - values.mean()) / values.std())
    assert "turn" not in part.needs and segment_index(here, "")[1] == 6


def test_one_segment_per_trajectory_is_the_group_advantage_of_the_sums():
    here = case(1).batch
    here = here.with_columns(turn=torch.zeros_like(here["turn"])).with_rows(total=Implicit(0.3)(here).sum(1))
    found = SegmentRelative(Implicit(0.3))(here)
    assert torch.allclose(found, torch.where(here.mask, GroupRelative(of="total")(here)[:, None], 0.0), rtol=1e-12)


def test_the_sum_of_two_advantages():
    here = batch()
    part = Plus(GroupRelative(), SegmentRelative(Implicit(1.0)), 0.5)
    expected = GroupRelative()(here)[:, None] + 0.5 * SegmentRelative(Implicit(1.0))(here)
    assert torch.equal(part(here), expected) and set(part.needs) == {"prompt", "reward", "prm_logp", "old_logp", "turn"}
    assert torch.equal(Plus(GroupRelative(), SegmentRelative(Implicit(1.0)), 0.0)(here), GroupRelative()(here)[:, None].expand(3, 4))


def test_implicit_rewards_add_up_to_the_log_ratio_of_the_trajectory():
    for by in ("turn", ""):
        here = case(2).batch
        reward = Implicit(0.05)(here)
        index, count = segment_index(here, by)
        sums = torch.zeros(count, dtype=torch.float64).index_add_(0, index, reward[here.mask])
        rows = torch.zeros(count, dtype=torch.long)
        rows[index] = here.mask.nonzero()[:, 0]
        total = torch.zeros(len(here), dtype=torch.float64).index_add_(0, rows, sums)
        for row in range(len(here)):
            mask = here.mask[row]
            assert total[row].item() == pytest.approx(0.05 * float((here["prm_logp"] - here["old_logp"])[row][mask].sum()), rel=1e-12)
        assert not reward[~here.mask].any()


def test_the_residual_of_outcomes():
    """s = 0.5·(1 + 2) on the first row; an outcome that is absent gives nothing."""
    here = batch().with_rows(reward=torch.tensor([1.0, 0.0, float("nan")]))
    here = here.with_columns(current_logp=here["prm_logp"], old_logp=here["old_logp"])
    found = OutcomeLogistic(0.5)(here)
    assert found.tolist() == pytest.approx([0.5 * (1 - torch.tensor(3.0).sigmoid().item()), -0.25, 0.0])


def test_pairs_from_the_outside_in():
    value = torch.tensor([0.0, 1.0, 0.5, 0.0, 1.0, 1.0, 1.0, 0.0, float("nan"), 0.2])
    index = torch.tensor([3, 3, 3, 3, 3, 1, 1, 2, 3, 2])
    better, worse = ranked_pairs(value, index)
    assert list(zip(better.tolist(), worse.tolist(), strict=True)) == [
        (9, 7),
        (1, 3),
        (4, 0),
    ]  # 0.5 is in the middle; group 1 is all solved
    for solved in range(9):
        group = torch.tensor([1.0] * solved + [0.0] * (8 - solved))
        better, worse = ranked_pairs(group, torch.zeros(8, dtype=torch.long))
        assert len(better) == min(solved, 8 - solved) and (group[better] > group[worse]).all()
        assert len({*better.tolist(), *worse.tolist()}) == 2 * len(better)
    assert len(ranked_pairs(torch.zeros(0), torch.zeros(0, dtype=torch.long))[0]) == 0

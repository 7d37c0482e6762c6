"""The batch: shapes at the door, padding, absent values, and errors that name the provider."""

from __future__ import annotations

import pytest
import torch

from quatrain.batch import Batch, group_index, group_sum, missing, spread
from quatrain.errors import QuatrainError

YES = torch.ones(2, 3, dtype=torch.bool)


def make(n: int = 2, t: int = 3, **parts) -> Batch:
    return Batch(**{"mask": torch.ones(n, t, dtype=torch.bool), "actions": torch.arange(n * t).view(n, t), **parts})


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"mask": torch.ones(2, 3)}, "where the policy acted"),
        ({"mask": torch.ones(6, dtype=torch.bool)}, "where the policy acted"),
        ({"actions": torch.zeros(2, 4)}, "'actions' has one value per action"),
        ({"columns": {"old_logp": torch.zeros(3, 2)}}, "'old_logp' has one value per action"),
        ({"columns": {"old_logp": torch.zeros(2)}}, "'old_logp' has one value per action"),
        ({"rows": {"reward": torch.zeros(3)}}, "'reward' has one value per trajectory"),
        ({"contexts": {"policy": {"tokens": torch.zeros(1, 4)}}}, "'policy.tokens' has one value per trajectory"),
        ({"notes": {"start": ("a",)}}, "'start' has one value per trajectory"),
        ({"rows": {"x": torch.zeros(2)}, "columns": {"x": torch.zeros(2, 3)}}, "either per action or per trajectory"),
    ],
)
def test_shapes_are_checked_at_the_door(parts: dict, says: str):
    with pytest.raises(QuatrainError, match=says):
        make(**parts)


def test_an_absent_column_names_its_provider_or_the_nearest():
    with pytest.raises(QuatrainError, match=r"edit Score\('reference'\)"):
        make()["reference_logp"]
    with pytest.raises(QuatrainError, match="did you mean 'reward'"):
        make(rows={"reward": torch.zeros(2)})["rewardd"]
    said = str(missing("value", [], "the advantage of term 'policy'"))
    assert "needed by the advantage of term 'policy'" in said and "columns none" in said and "Values('critic')" in said


def test_reading():
    batch = make(columns={"value": torch.zeros(2, 3)}, rows={"reward": torch.tensor([1.0, 2.0])})
    assert len(batch) == 2 and batch.shape == (2, 3) and batch.device == torch.device("cpu")
    assert "value" in batch and "reward" in batch and "prompt" not in batch
    assert batch["reward"].tolist() == [1.0, 2.0] and batch.lengths.tolist() == [3, 3]
    assert torch.equal(batch.present, batch.mask)
    seen = torch.zeros(2, 3, dtype=torch.bool)
    assert torch.equal(batch.with_columns(present=seen).present, seen)


def test_deriving_leaves_the_original_alone():
    batch = make()
    more = (
        batch.with_columns(a=torch.zeros(2, 3))
        .with_rows(b=torch.zeros(2))
        .with_notes(c="xy")
        .with_context("teacher", tokens=torch.zeros(2, 5))
    )
    assert "a" not in batch and "b" not in batch and not batch.notes and not batch.contexts
    assert "a" in more and "b" in more and more.notes == {"c": ("x", "y")} and set(more.contexts) == {"teacher"}


def test_take_by_index_and_by_mask():
    batch = make(
        3, 1, rows={"reward": torch.tensor([1.0, 2.0, 3.0])}, notes={"name": ("a", "b", "c")}, contexts={"policy": {"x": torch.arange(3)}}
    )
    twice = batch.take([2, 0, 2])
    assert twice["reward"].tolist() == [3.0, 1.0, 3.0] and twice.notes["name"] == ("c", "a", "c")
    assert twice.contexts["policy"]["x"].tolist() == [2, 0, 2]
    assert batch.take(torch.tensor([False, True, False])).notes["name"] == ("b",)
    assert len(batch.take(torch.zeros(3, dtype=torch.bool))) == 0 == len(batch.take([]))


def test_trim_keeps_what_is_present_or_an_action():
    mask = torch.tensor([[True, False, False, False], [True, True, False, False]])
    batch = Batch(mask=mask, actions=torch.zeros(2, 4), columns={"value": torch.zeros(2, 4, 7)})
    assert batch.trim().shape == (2, 2) and batch.trim()["value"].shape == (2, 2, 7)
    observed = batch.with_columns(present=torch.tensor([[True, True, True, False], [False] * 4]))
    assert observed.trim().shape == (2, 3)
    assert observed.take([0]).trim().trim().shape == (1, 3)
    assert Batch(mask=mask & False, actions=torch.zeros(2, 4)).trim().shape == (2, 1)


def test_cat_pads_on_the_right_and_marks_what_is_absent():
    a = make(1, 2, columns={"old_logp": torch.tensor([[-1.0, -2.0]]), "turn": torch.tensor([[0, 1]])}, notes={"id": ("a",)})
    b = make(1, 3, rows={"reward": torch.tensor([0.5], dtype=torch.float64), "prompt": torch.tensor([7])})
    joined = Batch.cat([a, b])
    assert joined.mask.tolist() == [[True, True, False], [True, True, True]]
    assert joined["old_logp"][0].tolist() == [-1.0, -2.0, 0.0] and joined["old_logp"][1].isnan().all()
    assert joined["turn"].tolist() == [[0, 1, 0], [0, 0, 0]] and joined["turn"].dtype == torch.int64
    assert joined["reward"].dtype == torch.float64 and joined["reward"][0].isnan() and joined["reward"][1] == 0.5
    assert joined["prompt"].tolist() == [0, 7] and joined.notes["id"] == ("a", None)


def test_cat_pads_contexts_and_promotes_types():
    a = make(1, 1, contexts={"policy": {"tokens": torch.ones(1, 2, dtype=torch.long)}}, columns={"value": torch.ones(1, 1)})
    b = make(1, 1, contexts={"policy": {"tokens": torch.ones(1, 4, dtype=torch.long)}}, columns={"value": torch.ones(1, 1).double()})
    joined = Batch.cat([a, b])
    assert joined.contexts["policy"]["tokens"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]] and joined["value"].dtype == torch.float64


def test_cat_of_one_of_none_and_of_different_roles():
    batch = make()
    assert Batch.cat([batch]) is batch and Batch.cat([None, batch]) is batch
    with pytest.raises(QuatrainError, match="nothing to concatenate"):
        Batch.cat([])
    with pytest.raises(QuatrainError, match="same context roles"):
        Batch.cat([batch, make(contexts={"teacher": {"tokens": torch.zeros(2, 1)}})])


def test_cat_with_a_batch_without_rows():
    assert len(Batch.cat([make(2, 3), make(0, 3)])) == 2


def test_groups_and_spreading():
    batch = make(4, 2, rows={"prompt": torch.tensor([9, 3, 9, 5])})
    index, count = group_index(batch)
    assert count == 3 and index[0] == index[2] and len(set(index.tolist())) == 3
    assert group_sum(torch.tensor([1.0, 2.0, 4.0, 8.0]), index, count).sort().values.tolist() == [2.0, 5.0, 8.0]
    assert spread(torch.arange(4.0), batch).shape == (4, 2) and spread(torch.zeros(4, 2), batch).shape == (4, 2)


def test_moving_moves_everything():
    batch = make(columns={"value": torch.zeros(2, 3)}, contexts={"policy": {"x": torch.zeros(2)}}, rows={"reward": torch.ones(2)}).to(
        "meta"
    )
    assert {batch.mask.device.type, batch["value"].device.type, batch["reward"].device.type} == {"meta"}
    assert batch.contexts["policy"]["x"].device.type == "meta"

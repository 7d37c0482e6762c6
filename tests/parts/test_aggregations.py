"""Normalisers against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.aggregations import ConstantLength, PerDimension, PerGroup, sequence_mean, sequence_sum, token_mean, value_scale

# Three selected actions, one, none, two; groups (0, 1) and (2, 3), and a third group in which nothing is selected.
WHERE = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 0]]).bool()
BATCH = Batch(torch.ones(5, 3, dtype=torch.bool), torch.zeros(5, 3), rows={"prompt": torch.tensor([4, 4, 2, 2, 9])})


def per_row(aggregation) -> list[float]:
    """The weight of each row's selected actions, after checking that it is the same for all of them and 0 elsewhere."""
    found = aggregation(BATCH, WHERE)
    assert found.dtype == torch.float64 and not found[~WHERE].any()
    return [float(row[where].mean()) if where.any() else 0.0 for row, where in zip(found, WHERE, strict=True)]


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        (token_mean, [1 / 6, 1 / 6, 0, 1 / 6, 0]),
        (sequence_mean, [1 / 9, 1 / 3, 0, 1 / 6, 0]),
        (sequence_sum, [1 / 3, 1 / 3, 0, 1 / 3, 0]),
        (ConstantLength(10), [1 / 30, 1 / 30, 0, 1 / 30, 0]),
        (PerGroup(), [1 / 6, 1 / 6, 0, 1 / 3, 0]),
        (PerGroup(actions="mean"), [1 / 18, 1 / 6, 0, 1 / 6, 0]),
        (PerGroup(actions="pooled"), [1 / 12, 1 / 12, 0, 1 / 6, 0]),
        (PerGroup(rows="sum"), [1 / 3, 1 / 3, 0, 1 / 3, 0]),
        (PerGroup(actions="mean", rows="sum"), [1 / 9, 1 / 3, 0, 1 / 6, 0]),
    ],
)
def test_weights(aggregation, expected: list[float]):
    assert per_row(aggregation) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "aggregation", [token_mean, sequence_mean, sequence_sum, ConstantLength(3), PerGroup(), PerGroup(actions="pooled")]
)
def test_where_nothing_is_selected_there_is_no_weight_and_no_nan(aggregation):
    assert not aggregation(BATCH, WHERE & False).any()


def test_unknown_averages_are_refused():
    for options in ({"actions": "median"}, {"rows": "max"}):
        with pytest.raises(QuatrainError, match="unknown average"):
            PerGroup(**options)
    assert PerGroup(by="pair").needs == ("pair",)


def test_a_mean_per_dimension_divides_by_the_numbers_of_an_action():
    mask = torch.tensor([[True, True], [True, False]])
    batch = Batch(mask, torch.zeros(2, 2, 4))
    assert torch.equal(PerDimension(2.0)(batch, mask), token_mean(batch, mask) / 2)
    assert torch.equal(PerDimension()(Batch(mask, torch.zeros(2, 2)), mask), token_mean(batch, mask))


def test_a_mean_divided_by_the_mean_size_of_the_value():
    mask, q = torch.tensor([[True], [True], [False]]), torch.tensor([[3.0], [-1.0], [float("nan")]])
    found = value_scale(Batch(mask, torch.zeros(3, 1), {"current_q": q}), mask)
    assert found.tolist() == [[0.25], [0.25], [0.0]]

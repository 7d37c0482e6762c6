"""Unmasking: blocks, numbers per step, orders, ends, and randomness that depends on a row's seed alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quatrain.errors import QuatrainError
from quatrain.models.unmasking import Unmasking, unmask
from quatrain.protocols import Sampling

MASK, END, V = 7, 0, 8
NO_MASK = torch.tensor([0.0] * 7 + [-torch.inf])


class Model:
    """Fixed logits per position [C, V], and a log of what it was shown."""

    def __init__(self, logits: Tensor):
        self.table, self.seen = logits + NO_MASK, []

    def __call__(self, rows: Tensor, canvas: Tensor, span: slice) -> Tensor:
        self.seen.append((rows.clone(), canvas.clone(), span))
        return self.table[span].expand(len(rows), -1, -1)


def peaked(tokens: list[int], sureness: list[float]) -> Tensor:
    table = torch.zeros(len(tokens), V)
    table[torch.arange(len(tokens)), torch.tensor(tokens)] = torch.tensor(sureness)
    return table


def test_blocks_from_left_to_right_and_the_surest_first():
    model = Model(peaked([1, 2, 3, 4], [1.0, 2.0, 2.0, 1.0]))
    found = unmask(model, Unmasking(4, 2, 4), Sampling(temperature=0.0), torch.tensor([5]), MASK, END)
    assert found.tolist() == [[1, 2, 3, 4]]
    shown = [canvas[0].tolist() for _, canvas, _ in model.seen]
    assert shown == [[7, 7, 7, 7], [7, 2, 7, 7], [1, 2, 7, 7], [1, 2, 3, 7]]


def test_fewer_steps_fill_several_positions_each():
    model = Model(peaked([1] * 6, [1.0, 5.0, 3.0, 4.0, 2.0, 6.0]))
    unmask(model, Unmasking(6, 6, 4), Sampling(temperature=0.0), torch.tensor([5]), MASK, END)
    assert [(canvas == MASK).sum().item() for _, canvas, _ in model.seen] == [6, 5, 3, 2]
    assert model.seen[1][1].tolist() == [[7, 7, 7, 7, 7, 1]]


def test_a_row_is_finished_with_the_block_of_its_first_end():
    model = Model(peaked([1, END, 3, 4], [9.0] * 4))
    found = unmask(model, Unmasking(4, 2, 2), Sampling(temperature=0.0), torch.tensor([5, 6]), MASK, END)
    assert found.tolist() == [[1, END, END, END]] * 2 and len(model.seen) == 1


@pytest.mark.parametrize("order", ["confidence", "random"])
def test_randomness_is_the_rows_own(order: str):
    g = torch.Generator().manual_seed(0)
    table = torch.randn(6, V, generator=g)
    table[:, END] = -9.0
    plan = Unmasking(6, 3, 6, order)
    seeds = torch.arange(40) + 100
    together = unmask(Model(table), plan, Sampling(), seeds, MASK, END)
    assert torch.equal(unmask(Model(table), plan, Sampling(), seeds[7:9], MASK, END), together[7:9])
    assert len(together.unique(dim=0)) > 30 and not (together == MASK).any()


def test_random_order_draws_each_position_from_its_distribution():
    table = torch.randn(2, V, generator=torch.Generator().manual_seed(3))
    found = unmask(Model(table), Unmasking(2, 2, 2, "random"), Sampling(temperature=0.7), torch.arange(20_000), MASK, END)
    for place in range(2):
        share = found[:, place].bincount(minlength=V).double() / len(found)
        expected = ((table[place] + NO_MASK) / 0.7).softmax(-1).double()
        assert float((share - expected).abs().max()) < 0.015


@pytest.mark.parametrize(
    "plan",
    [{"canvas": 6, "block": 4}, {"canvas": 6, "block": 3, "steps": 3}, {"canvas": 6, "block": 2, "steps": 12}, {"order": "left"}],
)
def test_a_plan_that_cannot_be_is_refused(plan: dict):
    with pytest.raises(QuatrainError):
        Unmasking(**plan)

"""How a batch is cut: whole groups into updates, bounded positions into micro-batches, and back in order."""

from __future__ import annotations

import pytest
import torch

from quatrain.batch import Batch
from quatrain.training.batching import micro_batches, row_sizes, scored, updates


def batch(lengths: list[int], prompt: list[int] | None = None, prompts: list[int] | None = None) -> Batch:
    width = max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    contexts = {}
    if prompts is not None:
        contexts = {"policy": {"mask": torch.arange(max(prompts)) < torch.tensor(prompts)[:, None]}}
    rows = {"number": torch.arange(len(lengths))} | ({"prompt": torch.tensor(prompt)} if prompt else {})
    return Batch(mask, torch.arange(len(lengths))[:, None].expand(-1, width), rows=rows, contexts=contexts)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_updates_share_out_the_rows_by_whole_groups(count: int):
    here = batch([1] * 12, prompt=[5, 5, 1, 1, 1, 8, 8, 2, 2, 5, 9, 9])
    parts = list(updates(here, count, seed=0))
    assert len(parts) == min(count, 5) and sorted(torch.cat(parts).tolist()) == list(range(12))
    seen: set[int] = set()
    for part in parts:
        groups = set(here["prompt"][part].tolist())
        assert len(part) and not groups & seen
        seen |= groups


def test_updates_depend_on_the_seed_alone():
    here = batch([1] * 8, prompt=list(range(8)))
    cuts = [[part.tolist() for part in updates(here, 4, seed)] for seed in (0, 0, 1)]
    assert cuts[0] == cuts[1] != cuts[2]


def test_without_a_prompt_every_row_is_its_own_group():
    assert sorted(len(part) for part in updates(batch([1] * 7), 3, 0)) == [2, 2, 3]


def test_a_row_costs_its_context_and_what_is_present():
    assert row_sizes(batch([2, 4])).tolist() == [2, 4]
    assert row_sizes(batch([2, 4], prompts=[3, 1])).tolist() == [5, 5]
    observed = batch([2, 4]).with_columns(present=torch.ones(2, 4, dtype=torch.bool))
    assert row_sizes(observed).tolist() == [4, 4]


def test_micro_batches_hold_at_most_so_many_padded_positions():
    lengths = [5, 1, 4, 1, 2, 5, 3]
    for tokens in range(1, 30):
        parts = list(micro_batches(batch(lengths), tokens))
        assert sorted(row for part in parts for row in part["number"].tolist()) == list(range(7))
        for part in parts:
            assert part.shape[1] == int(part.lengths.max())  # trimmed
            assert len(part) * part.shape[1] <= tokens or len(part) == 1
    assert len(list(micro_batches(batch(lengths), 35))) == 1


def test_scores_come_back_in_order_and_full_width():
    here = batch([5, 1, 4, 2])
    found = scored(here, lambda part: {"number": torch.where(part.mask, part["number"][:, None].double() + 1, 0.0)}, tokens=5)
    assert torch.equal(found["number"], torch.where(here.mask, torch.arange(1.0, 5.0)[:, None].double(), 0.0))


def test_nothing_to_score():
    assert scored(batch([1, 2]).take([]), lambda part: {"x": part.mask}, 10) == {} and list(micro_batches(batch([1]).take([]), 5)) == []

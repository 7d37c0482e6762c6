"""How a batch is cut: whole groups into updates, bounded positions into micro-batches, and back in order."""

from __future__ import annotations

from dataclasses import replace

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


def cut(here: Batch, tokens: int, shares: bool = True) -> list[list[int]]:
    return [part["number"].tolist() for part in micro_batches(here, tokens, shares)]


def test_groups_stay_together_where_what_they_share_is_more_than_the_padding():
    # Rows of 10 + 2 and 10 + 4 positions. By size the groups are cut through; together 10 positions of every second row are saved.
    here = batch([2, 4, 2, 4], prompt=[7, 7, 3, 3], prompts=[10] * 4)
    assert cut(here, 28, shares=False) == [[0, 2], [1, 3]]
    assert cut(here, 28) == [[0, 1], [2, 3]]
    # Rows of 1 + 1 and 1 + 30: a group together is 1 + 1 + 30 positions, two rows by size 2·2 and 2·31.
    here = batch([1, 30, 1, 30], prompt=[7, 7, 3, 3], prompts=[1] * 4)
    assert cut(here, 62) == [[0, 1], [2, 3]]
    assert cut(batch([2, 4, 2, 4], prompt=[7, 7, 3, 3]), 8) == [[0, 2], [1, 3]]  # no prompts: nothing is said about sharing


@pytest.mark.parametrize("alike, expected", [(True, [[0, 1], [2, 3]]), (False, [[0, 2], [1, 3]])])
def test_equal_beginnings_of_answers_count(alike: bool, expected: list[list[int]]):
    """Rows of 1 + 8 and 1 + 9: by size 2·9 + 2·10 positions. Groups that say the same are 1 + 9 each; others are padded to 2 · 2·10."""
    here = batch([8, 9, 8, 9], prompt=[7, 7, 3, 3], prompts=[1] * 4)
    here = replace(here, actions=torch.zeros_like(here.actions)) if alike else here
    assert cut(here, 20) == expected


@pytest.mark.parametrize("tokens", [5, 12, 24, 25, 40, 60, 100])
def test_a_group_that_is_too_large_is_cut_and_every_row_is_there_once(tokens: int):
    here = batch([2, 3, 1, 4, 2, 2, 5], prompt=[7, 7, 7, 7, 7, 3, 3], prompts=[8] * 7)
    sizes, parts = row_sizes(here), cut(here, tokens)
    assert sorted(row for part in parts for row in part) == list(range(7))
    assert all(len(part) == 1 or len(part) * int(sizes[part].max()) <= tokens for part in parts)


def test_scores_come_back_in_order_and_full_width():
    here = batch([5, 1, 4, 2])
    found = scored(here, lambda part: {"number": torch.where(part.mask, part["number"][:, None].double() + 1, 0.0)}, tokens=5)
    assert torch.equal(found["number"], torch.where(here.mask, torch.arange(1.0, 5.0)[:, None].double(), 0.0))


def test_nothing_to_score():
    grouped = batch([1, 2], prompt=[3, 3], prompts=[1, 1]).take([])
    assert list(micro_batches(grouped, 5, shares=True)) == []
    assert scored(batch([1, 2]).take([]), lambda part: {"x": part.mask}, 10) == {} and list(micro_batches(batch([1]).take([]), 5)) == []

"""How a batch is cut: into updates by whole groups, into micro-batches by tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index
from quatrain.models.prefix_tree import GAIN


def updates(batch: Batch, count: int, seed: int) -> Iterator[Tensor]:
    """``count`` index tensors that share out the rows at random, whole groups together (fewer if there are fewer groups).

    Groups are those of ``prompt``; without that key every row is its own.
    """
    if count == 1:
        yield torch.arange(len(batch))
        return
    groups, number = group_index(batch) if "prompt" in batch else (torch.arange(len(batch)), len(batch))
    order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
    place = torch.empty(number, dtype=torch.long)
    place[order] = torch.arange(number)
    part = place[groups.cpu()] * min(count, number) // number
    for k in range(min(count, number)):
        yield (part == k).nonzero()[:, 0]


def row_sizes(batch: Batch) -> Tensor:
    """[N] positions a row costs a scorer: its context and its actions."""
    size = batch.present.sum(1)
    prompt = batch.contexts.get("policy", {}).get("mask")
    return size if prompt is None else size + prompt.sum(1)


def micro_batches(batch: Batch, tokens: int, shares: bool = False) -> Iterator[Batch]:
    """The rows in order of size, in parts of at most ``tokens`` padded positions (or one row): little padding is computed.

    shares  the model computes what samples of a prompt have in common once (``CausalLM.shares_prefixes``). Groups then stay together
            where what this saves is more than the padding that it costs.
    """
    sizes = row_sizes(batch)
    order, longest = torch.argsort(sizes, stable=True).tolist(), sizes.tolist()
    if order and len(order) * longest[order[-1]] <= tokens:
        yield batch.take(order).trim()
        return
    parts = _parts([[row] for row in order], longest, tokens)
    if order and shares and "prompt" in batch and "policy" in batch.contexts:
        index = group_index(batch)[0]
        groups: dict[int, list[int]] = {}
        for row, group in zip(order, index[order].tolist(), strict=True):
            groups.setdefault(group, []).append(row)
        whole = _parts(sorted(groups.values(), key=lambda rows: longest[rows[-1]]), longest, tokens)
        prefixes = _prefixes(batch)
        parts = min(parts, whole, key=lambda cut: _computed(cut, batch, index, prefixes, longest))
    for part in parts:
        yield batch.take(part).trim()


def _parts(blocks: Iterable[list[int]], size: Sequence[int], tokens: int) -> list[list[int]]:
    """Blocks of rows one after the other in parts of at most ``tokens`` padded positions; a block that is too large comes row by row."""
    parts: list[list[int]] = []
    longest = 0
    for block in blocks:
        fits = len(block) * max(size[row] for row in block) <= tokens
        for piece in [block] if fits else [[row] for row in block]:
            longest = max(longest, *(size[row] for row in piece))
            if parts and (len(parts[-1]) + len(piece)) * longest <= tokens:
                parts[-1] += piece
            else:
                parts.append([*piece])
                longest = max(size[row] for row in piece)
    return parts


def _prefixes(batch: Batch) -> Tensor:
    """[N, T] int64: equal where two rows' actions have been the same so far, and else different but for a chance."""
    place = torch.arange(batch.shape[1], device=batch.device)
    mixed = (batch.actions.long() * batch.shape[1] + place + 1) * -7046029254386353131
    return ((mixed ^ (mixed >> 29)) * -4658895280553007687).cumsum(1)


def _computed(parts: Sequence[list[int]], batch: Batch, group: Tensor, prefixes: Tensor, size: Sequence[int]) -> int:
    """Positions that a scorer computes: of each part the distinct prefixes of its groups where it shares them, else all padded ones."""
    part = torch.empty(len(batch), dtype=torch.long, device=batch.device)
    for number, rows in enumerate(parts):
        part[rows] = number
    place = part * (int(group.max()) + 1) + group  # of a group within a part
    prompts = torch.zeros(int(place.max()) + 1, dtype=torch.long, device=batch.device)
    prompts[place] = batch.contexts["policy"]["mask"].sum(1)
    tree, inside = place.unique(), batch.present
    nodes = torch.zeros(len(parts), dtype=torch.long, device=batch.device)
    nodes.index_add_(0, tree // (int(group.max()) + 1), prompts[tree])
    known, which = torch.unique((prefixes + (place[:, None] + 1) * -7709467188473911591)[inside], return_inverse=True)
    home = torch.empty_like(known).scatter_(0, which, part[:, None].expand_as(inside)[inside])
    nodes += torch.bincount(home, minlength=len(parts))
    padded = [len(rows) * max(size[row] for row in rows) for rows in parts]
    return sum(shared if shared <= GAIN * plain else plain for plain, shared in zip(padded, nodes.tolist(), strict=True))


def scored(batch: Batch, score: Callable[[Batch], dict[Any, Tensor]], tokens: int, shares: bool = False) -> dict[Any, Tensor]:
    """Scores of every row, computed in micro-batches, in the batch's own order and width."""
    place = torch.arange(len(batch), device=batch.device)
    found: dict[Any, Tensor] = {}
    for part in micro_batches(batch.with_rows(place=place), tokens, shares):
        for statistic, value in score(part).items():
            whole = found.setdefault(statistic, value.new_zeros(batch.shape))
            whole[part["place"], : value.shape[1]] = value
    return found

"""How a batch is cut: into updates by whole groups, into micro-batches by tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index


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


def micro_batches(batch: Batch, tokens: int) -> Iterator[Batch]:
    """The rows in order of size, in parts of at most ``tokens`` padded positions (or one row): little padding is computed."""
    sizes = row_sizes(batch)
    order = torch.argsort(sizes, stable=True)
    start, count = 0, len(batch)
    longest = sizes[order].tolist()
    if count and count * longest[-1] <= tokens:
        yield batch.take(order).trim()
        return
    for end in range(1, count + 1):
        if end == count or (end + 1 - start) * longest[end] > tokens:
            yield batch.take(order[start:end]).trim()
            start = end


def scored(batch: Batch, score: Callable[[Batch], dict[Any, Tensor]], tokens: int) -> dict[Any, Tensor]:
    """Scores of every row, computed in micro-batches, in the batch's own order and width."""
    place = torch.arange(len(batch), device=batch.device)
    found: dict[Any, Tensor] = {}
    for part in micro_batches(batch.with_rows(place=place), tokens):
        for statistic, value in score(part).items():
            whole = found.setdefault(statistic, value.new_zeros(batch.shape))
            whole[part["place"], : value.shape[1]] = value
    return found

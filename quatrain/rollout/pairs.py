"""Rows that were collected before, once more; those that make preference pairs; how well a score orders these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index
from quatrain.parts.needs import needs_of
from quatrain.parts.pairs import ranked_pairs


@dataclass(frozen=True)
class Again:
    """The rows of a store that this round has filled; nothing is charged."""

    store: str = "fresh"

    def provides(self, task: Any) -> set[str]:
        return set()

    def __call__(self, state: Any) -> Batch:
        return state.stores[self.store]


@dataclass(frozen=True)
class RankedPairs:
    """The rows that make pairs within their group: the best with the worst, the second best with the second worst …, as long as they
    differ (``parts.pairs.ranked_pairs``). Chosen and rejected in turn; ``pair`` [N] and ``preference`` [N], +1 or −1.

    of  the row value that is ranked.   by  group key.

    There may be none: a Fit of no rows does nothing.
    """

    of: str = "reward"
    by: str = "prompt"
    provides = ("pair", "preference")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.of, self.by)

    def __call__(self, state: Any, batch: Batch) -> Batch:
        better, worse = ranked_pairs(batch[self.of], group_index(batch, self.by)[0])
        state.measure({"pairs": (torch.tensor(float(len(better))), 1.0)})
        pair = torch.arange(len(better), device=batch.device).repeat_interleave(2)
        preference = torch.tensor([1.0, -1.0], device=batch.device).repeat(len(better))
        return batch.take(torch.stack([better, worse], 1).flatten()).with_rows(pair=pair, preference=preference)


@dataclass(frozen=True)
class OrdersPairs:
    """Measures ``{name}/accuracy``: the share of the batch's ranked pairs that the sum of a score over the trajectory orders right."""

    score: Callable[[Batch], Tensor]
    name: str = "prm"
    of: str = "reward"
    by: str = "prompt"

    @property
    def needs(self) -> tuple[str, ...]:
        return (*needs_of(self.score), self.of, self.by)

    def __call__(self, state: Any, batch: Batch) -> Batch:
        better, worse = ranked_pairs(batch[self.of], group_index(batch, self.by)[0])
        total = torch.where(batch.mask, self.score(batch), 0.0).sum(1)
        state.measure({f"{self.name}/accuracy": ((total[better] > total[worse]).sum(), len(better))})
        return batch

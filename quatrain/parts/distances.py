"""How far apart two trajectories are, in [0, 1]: a distance is (batch, i [P], j [P]) → [P], between rows i and j."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index
from quatrain.errors import QuatrainError
from quatrain.parts.needs import needs_of

Distance = Callable[[Batch, Tensor, Tensor], Tensor]


def packed(batch: Batch) -> tuple[Tensor, Tensor]:
    """([N, T] each row's actions without the gaps between them and −1 after the last, [N] how many). For numbered actions."""
    if batch.actions.ndim != 2 or batch.actions.is_floating_point():
        raise QuatrainError("only numbered actions can be compared one by one", given=tuple(batch.actions.shape), fix="another distance")
    order = torch.argsort(batch.mask.logical_not().long(), dim=1, stable=True)
    lengths = batch.lengths
    inside = torch.arange(batch.shape[1], device=batch.device) < lengths[:, None]
    return torch.where(inside, batch.actions.gather(1, order), -1), lengths


@dataclass(frozen=True)
class EditDistance:
    """Levenshtein's distance of the two sequences of actions, divided by the longer one's length: 0 if equal, 1 if nothing is kept."""

    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, batch: Batch, i: Tensor, j: Tensor) -> Tensor:
        actions, lengths = packed(batch)
        a, b = actions[i], actions[j]
        place = torch.arange(b.shape[1] + 1, device=b.device)
        row = place.expand(len(b), -1)
        found = torch.where(lengths[i] == 0, lengths[j], 0)
        for t in range(a.shape[1]):  # row[k]: edits from the first t + 1 actions of a to the first k of b
            replaced = row[:, :-1] + (a[:, t : t + 1] != b).long()
            best = torch.cat([row[:, :1] + 1, torch.minimum(row[:, 1:] + 1, replaced)], 1)
            row = torch.cummin(best - place, 1).values + place  # inserting is one more for each action
            found = torch.where(lengths[i] == t + 1, row.gather(1, lengths[j][:, None])[:, 0], found)
        return found.double() / torch.maximum(lengths[i], lengths[j]).clamp(min=1)


@dataclass(frozen=True)
class OverlapDistance:
    """1 − |S_i ∩ S_j|/|S_i ∪ S_j| of the sets of ``n`` successive actions: Jaccard's distance; 0 where both sets are empty."""

    n: int = 2
    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, batch: Batch, i: Tensor, j: Tensor) -> Tensor:
        actions, lengths = packed(batch)
        grams = [
            {tuple(row[t : t + self.n]) for t in range(length - self.n + 1)}
            for row, length in zip(actions.tolist(), lengths.tolist(), strict=True)
        ]
        pairs = [(grams[a], grams[b]) for a, b in zip(i.tolist(), j.tolist(), strict=True)]
        return torch.tensor([1 - len(a & b) / len(a | b) if a | b else 0.0 for a, b in pairs], dtype=torch.float64, device=batch.device)


@dataclass(frozen=True)
class ScoreGap:
    """|c_i − c_j| of a score per trajectory, c = the mean log-probability of its actions under ``of``; not bounded by 1."""

    of: str = "old"

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"{self.of}_logp",)

    def __call__(self, batch: Batch, i: Tensor, j: Tensor) -> Tensor:
        score = torch.where(batch.mask, batch[f"{self.of}_logp"], 0.0).double().sum(1) / batch.lengths.clamp(min=1)
        return (score[i] - score[j]).abs()


@dataclass(frozen=True)
class Distinct:
    """A selection: trajectories that are in no pair, one right and one wrong answer to a prompt, that is closer than ``threshold``.

    In a group whose right or wrong answers would all go, those of its most distant pair (or pairs) stay. A group without pairs stays
    as it is. Threshold 0 selects everything; so does a distance of NaN.

    above  a reward above it is right; where it is NaN a trajectory is neither.
    """

    threshold: float = 0.1
    distance: Distance = EditDistance()
    above: float = 0.5
    of: str = "reward"
    by: str = "prompt"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.of, self.by, *needs_of(self.distance))

    def rows(self, batch: Batch) -> Tensor:
        """[N] bool."""
        index, count = group_index(batch, self.by)
        value = batch[self.of]
        right, wrong = value > self.above, value <= self.above
        i, j = ((index[:, None] == index) & right[:, None] & wrong).nonzero().T
        distance = self.distance(batch, i, j)
        near = distance < self.threshold
        keep = torch.ones(len(batch), dtype=torch.bool, device=batch.device)
        keep[i[near]], keep[j[near]] = False, False
        sides = torch.zeros(2, count, dtype=torch.bool, device=batch.device)
        sides[0, index[right & keep]], sides[1, index[wrong & keep]] = True, True
        farthest = distance.new_full((count,), -1.0).scatter_reduce(0, index[i], distance, "amax")
        spared = (distance == farthest[index[i]]) & ~sides.all(0)[index[i]]
        keep[i[spared]], keep[j[spared]] = True, True
        return keep

    def __call__(self, batch: Batch) -> Tensor:
        return batch.mask & self.rows(batch)[:, None]


@dataclass(frozen=True)
class Among:
    """A group advantage among the trajectories of a selection alone: the others' values count as absent (NaN)."""

    selected: Distinct
    advantage: Callable[[Batch], Tensor]
    of: str = "reward"

    @property
    def needs(self) -> tuple[str, ...]:
        return (*needs_of(self.selected), *needs_of(self.advantage))

    def __call__(self, batch: Batch) -> Tensor:
        value = torch.where(self.selected.rows(batch), batch[self.of], float("nan"))
        return self.advantage(batch.with_rows(**{self.of: value}))

"""Segments: actions of one trajectory with one key (a turn, a stage), what they add up to, and how they compare with their group's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index, group_sum, spread
from quatrain.parts.needs import needs_of


def segment_index(batch: Batch, by: str = "turn") -> tuple[Tensor, int]:
    """([A] number of the segment of each of the batch's A actions, row by row; how many segments).

    by  an integer column [N, T]; empty: every action is a segment of its own.

    >>> mask = torch.tensor([[True, False, True, True], [True, True, False, False]])
    >>> turn = torch.tensor([[0, 0, 0, 1], [0, 1, 9, 9]])
    >>> segment_index(Batch(mask, mask.long(), {"turn": turn}))[0].tolist()
    [0, 0, 1, 2, 3]
    """
    rows, steps = batch.mask.nonzero(as_tuple=True)
    if not by:
        return torch.arange(len(rows), device=batch.device), len(rows)
    keys, index = torch.unique(torch.stack([rows, batch[by][rows, steps]]), dim=1, return_inverse=True)
    return index, keys.shape[1]


@dataclass(frozen=True)
class SegmentRelative:
    """A_s = (v_s − mean)/(std + eps) over all segments of all trajectories of the group (Bessel-corrected), for each action of s.

    of     batch → [N, T]: what each action is worth; v_s is their sum over the segment.
    plus   a row value that is added to v_s of every segment of its row; empty: none.
    by     the column whose values part a trajectory; empty: every action is a segment.
    group  key of the trajectories that are compared.

    A trajectory of many segments weighs more. A group with a single segment gets 0, what is no action gets 0.
    → ``GroupRelative`` of the sums where every trajectory is one segment.
    """

    of: Callable[[Batch], Tensor]
    plus: str = ""
    by: str = "turn"
    group: str = "prompt"
    eps: float = 1e-6

    @property
    def needs(self) -> tuple[str, ...]:
        return (*needs_of(self.of), *filter(None, (self.plus, self.by)), self.group)

    def __call__(self, batch: Batch) -> Tensor:
        index, count = segment_index(batch, self.by)
        value = group_sum(spread(self.of(batch), batch)[batch.mask].double(), index, count)
        groups, number = group_index(batch, self.group)
        place = torch.zeros(count, dtype=torch.long, device=batch.device)
        place[index] = batch.mask.nonzero()[:, 0]
        if self.plus:
            value = value + batch[self.plus].double()[place]
        where = groups[place]
        size = group_sum(torch.ones_like(value), where, number)
        centred = value - (group_sum(value, where, number) / size.clamp(min=1))[where]
        std = (group_sum(centred.square(), where, number) / (size - 1).clamp(min=1)).sqrt()
        advantage = torch.zeros(batch.shape, dtype=torch.float64, device=batch.device)
        advantage[batch.mask] = (centred / (std[where] + self.eps))[index]
        return advantage


@dataclass(frozen=True)
class Plus:
    """The sum of two advantages, the second times ``weight``: a number, or batch → [N] or [N, T]. [N, T]"""

    first: Callable[[Batch], Tensor]
    second: Callable[[Batch], Tensor]
    weight: float | Callable[[Batch], Tensor] = 1.0

    @property
    def needs(self) -> tuple[str, ...]:
        return (*needs_of(self.first), *needs_of(self.second), *needs_of(self.weight))

    def __call__(self, batch: Batch) -> Tensor:
        weight = spread(self.weight(batch), batch) if callable(self.weight) else self.weight
        return spread(self.first(batch), batch) + weight * spread(self.second(batch), batch)

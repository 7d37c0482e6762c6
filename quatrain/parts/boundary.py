"""Ratios of evidence bounds: one draw at a time, or all of a trajectory's draws together. A draw is a row; its bound is the row's sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index, group_sum
from quatrain.parts.bounds import Clip
from quatrain.parts.denominators import over_sequence
from quatrain.parts.guides import guide_column
from quatrain.parts.needs import needs_of

TRAJECTORY = "trajectory"  # the key that the draws of one trajectory share


@dataclass(frozen=True)
class Boundary:
    """The gradient of a lower bound of A·exp(d̄) that is a mean over draws: Lin et al. 2025 (BGPO).

        A ≥ 0: A·(1 + d̄), since e^x ≥ 1 + x: factor 1;     A < 0: A·mean_j exp(d_j), since exp is convex: factor exp(d_j)

    clip  watches 1 + d where A > 0 (none of it is left where d ≤ −1) and exp(d) elsewhere, as the released code does per token; the
          bound itself has none.

    Value and gradient are those of A·exp(d̄) where all d are 0.

    >>> d = torch.tensor([[0.5, 0.5]])
    >>> Boundary()(d, torch.tensor([[1.0, -1.0]]), None)
    tensor([[1.0000, 1.6487]])
    """

    clip: Clip | None = None

    def __call__(self, log_ratio: Tensor, advantage: Tensor, batch: Batch) -> Tensor:
        rises = advantage > 0
        factor = torch.where(rises, 1.0, log_ratio.exp())
        if self.clip is None:
            return factor
        watched = torch.where(rises, torch.log1p(log_ratio.clamp(min=-1.0)), log_ratio)
        return torch.where(self.clip(watched, advantage, batch) != 0, factor, 0.0)


@dataclass(frozen=True)
class MeanOverDraws:
    """[N, T] a guide: d̄ = mean over the trajectory's draws of Σ_t (log π_numerator − log π_denominator), the same in all of its rows."""

    numerator: str = "current"
    denominator: str = "old"
    by: str = TRAJECTORY

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"{self.numerator}_logp", f"{self.denominator}_logp", self.by)

    def __call__(self, batch: Batch) -> Tensor:
        gap = torch.where(batch.mask, batch[f"{self.numerator}_logp"] - batch[f"{self.denominator}_logp"], 0.0)
        total = over_sequence(gap, batch.mask, "sum")
        index, count = group_index(batch, self.by)
        mean = group_sum(total[:, 0], index, count) / group_sum(torch.ones_like(total[:, 0]), index, count)
        return mean[index][:, None].expand(batch.shape)


@dataclass(frozen=True)
class JointRatio:
    """exp(d̄): the ratio of the averaged bounds, which every draw's gradient is multiplied by. It takes one pass without gradient."""

    of: MeanOverDraws = MeanOverDraws()

    @property
    def guides(self) -> tuple[Callable[[Batch], Tensor], ...]:
        return (self.of,)

    @property
    def needs(self) -> tuple[str, ...]:
        return self.of.needs

    def __call__(self, log_ratio: Tensor, advantage: Tensor, batch: Batch) -> Tensor:
        return batch[guide_column(self.of)].exp()


@dataclass(frozen=True)
class PerTrajectory:
    """A per-trajectory value that counts the rows of one trajectory (its draws) once: that of its first row, for all of them.

    of  batch → [N]. → ``of`` itself where every row has a key of its own.
    """

    of: Callable[[Batch], Tensor]
    by: str = TRAJECTORY

    @property
    def needs(self) -> tuple[str, ...]:
        return (*needs_of(self.of), self.by)

    def __call__(self, batch: Batch) -> Tensor:
        index, count = group_index(batch, self.by)
        place = torch.arange(len(batch), device=batch.device)
        first = torch.full((count,), len(batch), device=batch.device).scatter_reduce(0, index, place, "amin")
        return self.of(batch.take(first))[index]

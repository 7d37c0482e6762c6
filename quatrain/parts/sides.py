"""Two tasks learnt together: rows have a ``side`` of a ``pair``, and pairs a ``similarity`` of their sides, in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.batch import Batch, group_sum
from quatrain.errors import QuatrainError
from quatrain.parts.needs import needs, needs_of


@dataclass(frozen=True)
class PerSide:
    """Another advantage, computed on the rows of each side alone: its statistics never mix tasks, whatever the group keys are.

    → ``of`` where all rows are of one side, or no group has rows of two.
    """

    of: Callable[[Batch], Tensor]
    by: str = "side"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by, *needs_of(self.of))

    def __call__(self, batch: Batch) -> Tensor:
        sides, index = torch.unique(batch[self.by], return_inverse=True)
        parts = [self.of(batch.take(index == side)) for side in range(len(sides))]
        return torch.cat(parts)[torch.argsort(torch.argsort(index, stable=True))]


@needs("pair", "side")
def pair_mean(batch: Batch, where: Tensor) -> Tensor:
    """1/(P·n·|o_i|): the mean over P pairs of the sum over their sides of the mean over a side's n trajectories of their own means.

    → ``sequence_mean`` times the number of sides, where all sides have as many trajectories.
    """
    w = where.double()
    actions = w.sum(1)
    keys, index = torch.unique(torch.stack([batch["pair"].long(), batch["side"].long()], 1), dim=0, return_inverse=True)
    rows = group_sum((actions > 0).double(), index, len(keys))[index]
    return w / (actions.clamp(min=1) * rows.clamp(min=1))[:, None] / len(batch["pair"].unique())


@dataclass(frozen=True)
class Powered:
    """[N] a row's value, at least 0, to a power: ``Powered("similarity", 0.5)`` weighs both sides of a pair by √s. Power 0: 1.

    >>> batch = Batch(torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1), rows={"similarity": torch.tensor([0.25, 1.0])})
    >>> Powered("similarity", 0.5)(batch).tolist()
    [0.5, 1.0]
    """

    of: str
    power: float = 1.0

    def __post_init__(self) -> None:
        if not self.power >= 0:
            raise QuatrainError("a weight is a power of 0 or more", given=f"power={self.power}")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.of,)

    def __call__(self, batch: Batch) -> Tensor:
        value = batch[self.of].double()
        if not (value >= 0).all():
            raise QuatrainError(f"{self.of} has a value that is no weight", given=float(value.min()), expected="0 or more")
        return value**self.power

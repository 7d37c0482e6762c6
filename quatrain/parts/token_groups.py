"""Group statistics over actions: long trajectories count more."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index, group_sum
from quatrain.errors import QuatrainError
from quatrain.parts.advantages import GroupRelative


@dataclass(frozen=True)
class TokenRelative:
    """A_i = (r_i − mean)/(std + eps) with mean and (population) std over all *actions* of the group, each carrying its r_i (HAPO).

    limit  a group in which an |A| reaches it has ``GroupRelative`` instead.

    Σ_i |o_i| A_i = 0 in every other group. → ``GroupRelative`` with a population std for equal lengths.
    """

    by: str = "prompt"
    of: str = "reward"
    eps: float = 1e-6
    limit: float = 5.0

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise QuatrainError("the limit of an advantage is above 0", given=self.limit)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by, self.of)

    def __call__(self, batch: Batch) -> Tensor:
        index, count = group_index(batch, self.by)
        value = batch[self.of].double()
        known = ~value.isnan()
        weight = torch.where(known, batch.lengths.double(), 0.0)
        size = group_sum(weight, index, count).clamp(min=1)
        centred = value - (group_sum(weight * value.nan_to_num(), index, count) / size)[index]
        std = (group_sum(weight * centred.nan_to_num().square(), index, count) / size).sqrt()
        advantage = centred / (std[index] + self.eps)
        far = group_sum((advantage.nan_to_num().abs() >= self.limit).double(), index, count) > 0
        return torch.where(far[index], GroupRelative(self.by, of=self.of)(batch), advantage)

"""Baselines that come from a group's other trajectories: what each predicts of a reward that is not its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index, group_sum


def mean_of_others(value: Tensor, index: Tensor, count: int) -> Tensor:
    """[N] mean of ``value`` [N] over the group's other rows; NaN for a row that is alone. Rows that are NaN take no part.

    index, count  group number of each row, and how many groups there are.

    >>> mean_of_others(torch.tensor([1.0, 0.0, 0.5, 9.0]), torch.tensor([0, 0, 0, 1]), 2).tolist()
    [0.25, 0.75, 0.5, nan]
    """
    known = ~value.isnan()
    own = torch.where(known, value, 0.0)
    others = group_sum(known.to(value.dtype), index, count)[index] - known.to(value.dtype)
    return torch.where(others > 0, (group_sum(own, index, count)[index] - own) / others.clamp(min=1), torch.nan)


@dataclass(frozen=True)
class CrossBaseline:
    """A_i = r_i − mean_{j≠i} v_j over the group: Choi et al. 2026 (POISE); for a group of two A_1 = r_1 − v_2, A_2 = r_2 − v_1.

    value  the row value v_j, anything that is known of trajectory j: what depends on it may not be its own baseline, but, given the
           prompt, it is independent of the other trajectories, so that as theirs it leaves the gradient unbiased.

    A row that is alone gets 0. → ``LeaveOneOut`` for v = r; → a constant baseline for v = const.
    """

    value: str = "probe_value"
    by: str = "prompt"
    of: str = "reward"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by, self.of, self.value)

    def __call__(self, batch: Batch) -> Tensor:
        reward = batch[self.of].double()
        others = mean_of_others(batch[self.value].double(), *group_index(batch, self.by))
        return torch.where(others.isnan(), torch.zeros_like(reward), reward - others)

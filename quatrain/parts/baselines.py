"""Baselines that are no plain mean: a constant, a weighted mean, the other samples' regularised reward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index, group_sum
from quatrain.parts.advantages import LeaveOneOut


@dataclass(frozen=True)
class Affine:
    """A_i = scale·r_i + shift: a constant baseline. Rewards of 0 and 1 become −1 and +1 with scale 2 and shift −1."""

    scale: float = 1.0
    shift: float = 0.0
    of: str = "reward"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.of,)

    def __call__(self, batch: Batch) -> Tensor:
        return self.scale * batch[self.of].double() + self.shift


@dataclass(frozen=True)
class WeightedBaseline:
    """A_i = r_i − Σ_j w_j r_j / Σ_j w_j over the group.

    weight  the row value w ≥ 0; empty: the trajectory's number of actions. With w = ‖∇log π(y)‖² this is the scalar baseline of
            least variance (Greensmith et al. 2004); the length stands for it where actions' gradients are orthogonal and equally
            large (Hao et al. 2025, OPO).

    The baseline contains its own sample. Trajectories whose value is NaN take no part, and get NaN; a group whose weights are all 0
    has the baseline 0. → ``GroupRelative(scale="none")`` where all weights are equal.
    """

    weight: str = ""
    by: str = "prompt"
    of: str = "reward"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by, self.of, *([self.weight] if self.weight else []))

    def __call__(self, batch: Batch) -> Tensor:
        index, count = group_index(batch, self.by)
        value = batch[self.of].double()
        weight = torch.where(value.isnan(), 0.0, (batch[self.weight] if self.weight else batch.lengths).double())
        total = group_sum(weight, index, count)
        mean = group_sum(weight * value.nan_to_num(), index, count) / torch.where(total > 0, total, 1.0)
        return value - mean[index]


@dataclass(frozen=True)
class RegularisedLeaveOneOut:
    """A_i = R_i − mean of the group's other R_j,  R = r − β·Σ_t log π_θ/π_ref: Flet-Berliac et al. 2024 (CoPG).

    The residual of a regression on differences of rewards: zero for every pair at π* ∝ π_ref·exp(r/β), whatever distribution the
    trajectories come from. Live: it reads the current policy, on the whole group. ``of`` is the row value r.
    → ``LeaveOneOut`` for β = 0. For a group of two with preferences ±1 as r it is IPO's residual.
    """

    beta: float
    reference: str = "reference"
    by: str = "prompt"
    of: str = "reward"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("current_logp", f"{self.reference}_logp", self.by, self.of)

    def __call__(self, batch: Batch) -> Tensor:
        log_ratio = torch.where(batch.mask, batch["current_logp"] - batch[f"{self.reference}_logp"], 0.0).double().sum(1)
        seen = batch.with_rows(regularised=batch[self.of].double() - self.beta * log_ratio)
        return LeaveOneOut(by=self.by, of="regularised")(seen)

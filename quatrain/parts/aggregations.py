"""How actions are averaged: a weight [N, T] that depends on the selection alone. Computed on the whole batch of an update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index, group_sum
from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.parts.needs import needs, needs_of


def token_mean(batch: Batch, where: Tensor) -> Tensor:
    """1/Σ|o|: every selected action counts the same. Long trajectories weigh more."""
    w = where.double()
    return w / w.sum().clamp(min=1)


def sequence_mean(batch: Batch, where: Tensor) -> Tensor:
    """1/(N·|o_i|): every trajectory with a selected action counts the same (GRPO, GSPO)."""
    w = where.double()
    return w / w.sum(1, keepdim=True).clamp(min=1) / _rows(where)


def sequence_sum(batch: Batch, where: Tensor) -> Tensor:
    """1/N: the mean over trajectories of their sums (REINFORCE, RLOO)."""
    return where.double() / _rows(where)


@dataclass(frozen=True)
class PerDimension:
    """scale/(D·Σ|o|): every selected action counts the same, and each of its D numbers; of actions [N, T, D].

    It makes a log-density of actions a mean over their dimensions, as mean squared errors are.
    """

    scale: float | Knob = 1.0

    def __call__(self, batch: Batch, where: Tensor) -> Tensor:
        return token_mean(batch, where) * (self.scale / batch.actions[0, 0].numel())


@dataclass(frozen=True)
class ConstantLength:
    """1/(N·length): sums divided by a constant, so that length carries no weight (Dr. GRPO; Liu et al. 2025, eq. 4)."""

    length: int

    def __call__(self, batch: Batch, where: Tensor) -> Tensor:
        return where.double() / (_rows(where) * self.length)


@dataclass(frozen=True)
class PerGroup:
    """The mean over *all* groups of the batch (also those where nothing is selected) of a group's own average.

    rows     ``mean`` or ``sum`` over the group's selected trajectories, of
    actions  ``sum`` or ``mean`` over a trajectory's selected actions; or ``pooled``: one mean over all the group's selected
             actions (DAPO's equation; then ``rows`` has no meaning).
    """

    by: str = "prompt"
    actions: Literal["sum", "mean", "pooled"] = "sum"
    rows: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        if self.actions not in ("sum", "mean", "pooled") or self.rows not in ("mean", "sum"):
            raise QuatrainError("unknown average", given=f"{self.actions}, {self.rows}", expected="sum|mean|pooled, mean|sum")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    def __call__(self, batch: Batch, where: Tensor) -> Tensor:
        index, count = group_index(batch, self.by)
        w = where.double()
        actions = w.sum(1)
        if self.actions == "pooled":
            return w / group_sum(actions, index, count)[index].clamp(min=1)[:, None] / count
        if self.actions == "mean":
            w = w / actions.clamp(min=1)[:, None]
        if self.rows == "mean":
            w = w / group_sum((actions > 0).double(), index, count)[index].clamp(min=1)[:, None]
        return w / count


@dataclass(frozen=True)
class Over:
    """Another average, taken over the actions of a given selection in place of the term's own: terms that share one mean."""

    aggregation: Callable[[Batch, Tensor], Tensor]
    selection: Callable[[Batch], Tensor]

    @property
    def needs(self) -> tuple[str, ...]:
        return (*needs_of(self.aggregation), *needs_of(self.selection))

    def __call__(self, batch: Batch, where: Tensor) -> Tensor:
        return self.aggregation(batch, batch.mask & self.selection(batch))


@needs("current_q")
def value_scale(batch: Batch, where: Tensor) -> Tensor:
    """1/Σ|Q|: a mean that is divided by the mean size of the critic's value (TD3+BC; Fujimoto & Gu 2021, eq. 5), a constant."""
    w = where.double()
    return w / torch.where(where, batch["current_q"].double(), 0.0).abs().sum().clamp(min=1e-8)


def _rows(where: Tensor) -> Tensor:
    return where.any(1).sum().clamp(min=1)

"""Advantages of single trajectories: against a value that is tracked, standardised over the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.parts.needs import needs_of


@dataclass(frozen=True)
class Above:
    """A_i = r_i − v_i: two row values. An action-independent v leaves the gradient unbiased."""

    baseline: str = "tracked_value"
    of: str = "reward"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.of, self.baseline)

    def __call__(self, batch: Batch) -> Tensor:
        return batch[self.of].double() - batch[self.baseline]


@dataclass(frozen=True)
class Standardised:
    """(A_i − mean)/(std + eps) of another advantage [N], over the batch's trajectories (Bessel-corrected); NaN takes no part."""

    of: Callable[[Batch], Tensor]
    eps: float = 1e-8

    @property
    def needs(self) -> tuple[str, ...]:
        return needs_of(self.of)

    def __call__(self, batch: Batch) -> Tensor:
        value = self.of(batch).double()
        known = value[~torch.isnan(value)]
        spread = (known - known.mean()).square().sum().div(max(len(known) - 1, 1)).sqrt()
        return (value - known.mean()) / (spread + self.eps)

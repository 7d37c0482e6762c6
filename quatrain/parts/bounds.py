"""The ratio as it is used: a factor [N, T] from the log-ratio. For a differentiable f of the ratio it is r·f′(r)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.denominators import Ratio


def unbounded(log_ratio: Tensor, advantage: Tensor, batch: Batch) -> Tensor:
    """r itself: plain importance weighting. → 1 where the denominator is the current policy."""
    return log_ratio.exp()


@dataclass(frozen=True)
class Clip:
    """The gradient of min(r·A, clip(r, 1−low, 1+high)·A): r where the surrogate is not clipped, else 0.

    low, high  above 0. PPO's ε is low = high; DAPO's clip-higher has high > low.
    on         clip by another ratio than the one that weighs (decoupled PPO).
    dual       for A < 0 the objective is bounded below by dual·A: actions with r > dual get 0. Above 1.

    Schulman et al. 2017 (PPO), eq. 7; Ye et al. 2020 (dual clip), eq. 5; Yu et al. 2025 (DAPO), eq. 8.
    → ``unbounded`` as low and high grow.

    >>> r = torch.tensor([[0.5, 1.0, 2.0]]).log()
    >>> Clip(0.2, 0.2)(r, torch.ones(1, 3), None).tolist()
    [[0.5, 1.0, 0.0]]
    """

    low: float = 0.2
    high: float = 0.2
    on: Ratio | None = None
    dual: float | None = None

    def __post_init__(self) -> None:
        for name, floor in (("low", 0.0), ("high", 0.0), ("dual", 1.0)):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not value > floor:
                raise QuatrainError(f"Clip's {name} is out of range", given=value, expected=f"a number above {floor:g}")

    @property
    def needs(self) -> tuple[str, ...]:
        return self.on.needs if self.on else ()

    def __call__(self, log_ratio: Tensor, advantage: Tensor, batch: Batch) -> Tensor:
        ratio = log_ratio.exp()
        watched = self.on(batch).exp() if self.on else ratio
        above = watched <= 1 + self.high
        below = watched >= 1 - self.low
        if self.dual is not None:
            below = below & (watched <= self.dual)
        return torch.where(torch.where(advantage > 0, above, below), ratio, 0.0)

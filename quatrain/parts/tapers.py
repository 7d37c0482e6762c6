"""Tapers: a ratio that may carry differently far where an action is pushed up and where it is pushed down."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError


@dataclass(frozen=True)
class TaperBySign:
    """The ratio clamped into one interval where A ≥ 0 and into another where A < 0: Le Roux et al. 2025 (TOPR).

    positive, negative  (lowest, highest) weight, 0 ≤ lowest ≤ highest.

    (1, 1) and (0, 1) → TOPR; (1, 1) twice → REINFORCE without a ratio; (1, 1) and (0, 0) → positives alone (STaR); (0, 1) twice →
    truncated importance sampling; (0, inf) twice → ``unbounded``. Unlike a clip's zero, a clamped weight still carries a gradient.

    >>> TaperBySign()(torch.tensor([[-2.0, 1.0, -2.0, 1.0]]), torch.tensor([[1.0, 1.0, -1.0, -1.0]]), None)
    tensor([[1.0000, 1.0000, 0.1353, 1.0000]])
    """

    positive: tuple[float, float] = (1.0, 1.0)
    negative: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            low, high = getattr(self, name)
            if isinstance(low, (int, float)) and isinstance(high, (int, float)) and not 0 <= low <= high:
                raise QuatrainError(
                    f"the interval for {name} advantages is out of order", given=(low, high), expected="0 ≤ lowest ≤ highest"
                )

    def __call__(self, log_ratio: Tensor, advantage: Tensor, batch: Batch) -> Tensor:
        ratio = log_ratio.exp()
        return torch.where(advantage < 0, ratio.clamp(*self.negative), ratio.clamp(*self.positive))


def effective_share(positives: float, baseline: float) -> float:
    """p(1−c)/(1+(1−2p)c): what the solved have of all |R − c|, where a share p of the rewards ±1 is positive and −1 < c < 1.

    A baseline acts like another composition of the data (TOPR).

    >>> effective_share(0.5, 0.5), effective_share(0.25, 0.0)
    (0.25, 0.25)
    """
    return positives * (1 - baseline) / (1 + (1 - 2 * positives) * baseline)

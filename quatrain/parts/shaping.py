"""Shaped probabilities: what an action of unknown origin may weigh."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError


@dataclass(frozen=True)
class Shaped:
    """The gradient of f(p) = p/(p + γ) in place of p itself: the factor p·f′(p) = γp/(p + γ)². For the denominator ``one``.

    It gives more weight to unlikely actions than p does, and less to certain ones (Yan et al. 2025, LUFFY, §3.2; γ = 0.1).

    >>> import torch
    >>> round(Shaped(0.1)(torch.tensor([[0.1]]).log(), None, None).item(), 6)
    0.25
    """

    gamma: float = 0.1

    def __post_init__(self) -> None:
        if isinstance(self.gamma, (int, float)) and not self.gamma > 0:
            raise QuatrainError("the scale of a shaped probability is above 0", given=self.gamma)

    def __call__(self, log_ratio: Tensor, advantage: Tensor, batch: Batch) -> Tensor:
        p = log_ratio.exp()
        return self.gamma * p / (p + self.gamma).square()

"""Shaped probabilities: what an action of unknown origin may weigh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.knobs import Knob


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


@dataclass(frozen=True)
class ByProbability:
    """A weight that depends on p = π_θ(a_t|s_t), times ``by``; it has no gradient. [N, T]

    shape  ``phi``: p(1 − p), at most ¼, 0 for what is known and for what is far off (Zhang et al. 2025, CHORD, eq. 7);
           ``importance``: p, the ratio to a denominator of 1.

    >>> import torch
    >>> batch = Batch(torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3))
    >>> ByProbability("phi")(batch.with_columns(current_logp=torch.tensor([[0.5, 1.0, 0.25]]).log())).mul(16).round().abs().tolist()
    [[4.0, 0.0, 3.0]]
    """

    shape: Literal["phi", "importance"] = "phi"
    by: float | Knob = 1.0
    needs = ("current_logp",)

    def __post_init__(self) -> None:
        if self.shape not in ("phi", "importance"):
            raise QuatrainError("unknown weight of a probability", given=self.shape, expected="phi or importance")

    def __call__(self, batch: Batch) -> Tensor:
        log_p = torch.where(batch.mask, batch["current_logp"], 0.0)
        return self.by * log_p.exp() * (-log_p.expm1() if self.shape == "phi" else 1.0)

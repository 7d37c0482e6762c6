"""f-divergences to the policy that samples were drawn from, as advantages of the sampled log-probability.

With w = π_θ/π_to and samples from π_to, D_f = E_to[f(w)] has the gradient E_to[w·f′(w) ∇log π_θ]: descending it is the advantage
−f′(w) with the denominator π_to and no bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.parts.guides import Guide, guided
from quatrain.parts.needs import needs_of

# f′ as a function of log w; f is w log w, w log w − w, −log w, w − log w − 1.
SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse": lambda log_w: log_w + 1,
    "unnormalised-reverse": lambda log_w: log_w,
    "forward": lambda log_w: -(-log_w).exp(),
    "unnormalised-forward": lambda log_w: -(-log_w).expm1(),
}


def log_q(log_w: Tensor, q: float) -> Tensor:
    """Tsallis' logarithm (w^(q−1) − 1)/(q − 1) of w; → log w for q → 1 (Tsallis 1994; q as in MDPO, 2005.09814).

    >>> log_q(torch.tensor(2.0).log(), 2.0).item()
    1.0
    """
    return log_w if q == 1 else ((q - 1) * log_w).expm1() / (q - 1)


@dataclass(frozen=True)
class FDivergence:
    """A_t = −f′(w_t), w = π_θ/π_to: the descent of D_f = E_to[f(w)]; the weight of its term is positive. [N, T]

    kind    ``reverse`` f = w log w: KL(π_θ‖π_to);  ``forward`` −log w: KL(π_to‖π_θ);  ``unnormalised-reverse`` w log w − w and
            ``unnormalised-forward`` w − log w − 1, whose per-sample value (k3 of the other direction) is not negative; ``tsallis``
            w·log_q(w).
    to      whose column of log-probabilities.
    q       of ``tsallis``; 1 → reverse.
    within  (low, high): w is clamped there before f′ is taken.

    In expectation the unnormalised ones have the gradients of their namesakes: they differ by a multiple of E_to[w ∇log π_θ] = 0.
    """

    kind: str = "reverse"
    to: str = "old"
    q: float = 1.0
    within: tuple[float, float] | None = None
    action_by_action: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kind not in (*SLOPES, "tsallis"):
            raise QuatrainError("unknown f-divergence", given=self.kind, expected=", ".join((*SLOPES, "tsallis")))

    @property
    def needs(self) -> tuple[str, ...]:
        return ("current_logp", f"{self.to}_logp")

    def __call__(self, batch: Batch) -> Tensor:
        log_ratio = torch.where(batch.mask, batch["current_logp"] - batch[f"{self.to}_logp"], 0.0)
        if self.within:
            log_ratio = log_ratio.exp().clamp(*self.within).log()
        if self.kind == "tsallis":
            return -(log_q(log_ratio, self.q) + ((self.q - 1) * log_ratio).exp())
        return -SLOPES[self.kind](log_ratio)


@dataclass(frozen=True)
class Regularised:
    """A_t + weight·D_t: a static advantage and one that looks at the current policy, under one bound. [N, T]

    of      batch → [N] or [N, T]; it is computed on the whole batch, before any split.
    by      read action by action, such as the descent of a divergence.
    """

    of: Guide
    by: Callable[[Batch], Tensor]
    weight: float | Knob = 1.0
    action_by_action: ClassVar[bool] = True

    @property
    def guides(self) -> tuple[Guide, ...]:
        return (self.of,)

    @property
    def needs(self) -> tuple[str, ...]:
        return (*needs_of(self.of), *needs_of(self.by))

    def __call__(self, batch: Batch) -> Tensor:
        return guided(self.of, batch) + self.weight * self.by(batch)


@dataclass(frozen=True)
class Clamp:
    """A bound: the ratio clamped into [1 − low, 1 + high], which keeps its gradient outside, for either sign."""

    low: float = 0.2
    high: float = 0.28

    def __call__(self, log_ratio: Tensor, advantage: Tensor, batch: Batch) -> Tensor:
        return log_ratio.exp().clamp(1 - self.low, 1 + self.high)


Kind = Literal["reverse", "unnormalised-reverse", "forward", "unnormalised-forward"]

"""Mirror learning: a drift f(r, A) ≥ 0 in place of a clip (Kuba et al. 2022). What is ascended is E[r·A − f(r, A)].

A drift has f(1, A) = 0 and ∂f/∂r(1, A) = 0. As a bound the surrogate g(r) = r·A − f is the factor r·g′(r)/A = r (1 − f′/A): it may be
negative, where the drift pulls back harder than the advantage pushes, and it may exceed 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError


class Drift(Protocol):
    def __call__(self, log_ratio: Tensor, advantage: Tensor) -> Tensor: ...  # f, [N, T]

    def slope(self, log_ratio: Tensor, advantage: Tensor) -> Tensor: ...  # ∂f/∂ log r = r·f′(r), [N, T]


@dataclass(frozen=True)
class ClipDrift:
    """f = ReLU((r − clip(r, 1−ε, 1+ε))·A): PPO's clip as a drift."""

    eps: float = 0.2

    def __call__(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        ratio = log_ratio.exp()
        return ((ratio - ratio.clamp(1 - self.eps, 1 + self.eps)) * advantage).relu()

    def slope(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        return torch.where(self(log_ratio, advantage) > 0, log_ratio.exp() * advantage, 0.0)


@dataclass(frozen=True)
class DiscoveredDrift:
    """A ≥ 0: ReLU((r−1)A − α·tanh((r−1)A/α));  A < 0: ReLU(A log r − β·tanh(A log r/β)). Lu et al. 2022 (2210.05639), §5.

    alpha, beta  above 0. As both grow f → 0 and nothing is bounded.

    >>> f = DiscoveredDrift()(torch.tensor(1.5, dtype=torch.float64).log(), torch.tensor(2.0, dtype=torch.float64))
    >>> round(f.item(), 4)
    0.0758
    """

    alpha: float = 2.0
    beta: float = 0.6

    def __post_init__(self) -> None:
        if not (self.alpha > 0 and self.beta > 0):
            raise QuatrainError("a drift's scales are above 0", given=f"alpha={self.alpha}, beta={self.beta}")

    def _push(self, log_ratio: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
        up = advantage >= 0
        scale = torch.where(up, torch.full_like(log_ratio, self.alpha), self.beta)  # two numbers would meet in single precision
        return torch.where(up, log_ratio.expm1(), log_ratio) * advantage, scale

    def __call__(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        push, scale = self._push(log_ratio, advantage)
        return (push - scale * (push / scale).tanh()).relu()

    def slope(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        push, scale = self._push(log_ratio, advantage)
        moved = torch.where(advantage >= 0, log_ratio.exp(), 1.0) * advantage  # ∂ push/∂ log r
        return torch.where(push > 0, moved * (push / scale).tanh().square(), 0.0)


@dataclass(frozen=True)
class LearnedDrift:
    """ReLU(w₂·tanh(W₁x) − 1e-4) of x = (1−r, (1−r)², log r, (log r)²) and the same times A: LPO's network, without biases (§4).

    weights  (W₁ as ``hidden`` rows of 8, w₂ as ``hidden`` numbers). Any weights are a drift: at r = 1 every input is 0.
    """

    weights: tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]

    def __post_init__(self) -> None:
        inner, outer = self.weights
        if len(inner) != len(outer) or any(len(row) != 8 for row in inner):
            raise QuatrainError("a learned drift has rows of 8 weights and one more for each", given=f"{len(inner)} rows, {len(outer)}")

    @classmethod
    def of(cls, flat: Sequence[float]) -> LearnedDrift:
        """From ``9·hidden`` numbers: the rows of W₁ one after the other, then w₂."""
        hidden = len(flat) // 9
        inner = tuple(tuple(map(float, flat[8 * k : 8 * k + 8])) for k in range(hidden))
        return cls((inner, tuple(map(float, flat[8 * hidden :]))))

    def __call__(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        gap = -log_ratio.expm1()
        x = torch.stack([gap, gap.square(), log_ratio, log_ratio.square()], -1)
        x = torch.cat([x, x * advantage[..., None]], -1)
        inner, outer = (weights.to(x) for weights in _tensors(self.weights))
        return ((x @ inner.T).tanh() @ outer - 1e-4).relu()

    def slope(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = log_ratio.detach().requires_grad_()
            return torch.autograd.grad(self(leaf, advantage).sum(), leaf)[0]


@cache
def _tensors(weights: tuple) -> tuple[Tensor, Tensor]:
    return torch.tensor(weights[0], dtype=torch.float64), torch.tensor(weights[1], dtype=torch.float64)


@dataclass(frozen=True)
class Sum:
    """The sum of several drifts, which is one."""

    drifts: tuple[Drift, ...]

    def __call__(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        return sum(drift(log_ratio, advantage) for drift in self.drifts)

    def slope(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        return sum(drift.slope(log_ratio, advantage) for drift in self.drifts)


@dataclass(frozen=True)
class Drifting:
    """The bound of a drift: r·g′(r)/A with g = r·A − f, that is r − (r·f′(r))/A; where A = 0, r."""

    drift: Drift = DiscoveredDrift()

    def __call__(self, log_ratio: Tensor, advantage: Tensor, batch: Batch) -> Tensor:
        advantage = advantage.to(log_ratio.dtype)
        drawn = self.drift.slope(log_ratio, advantage) / torch.where(advantage == 0, 1.0, advantage)
        return log_ratio.exp() - torch.where(advantage == 0, 0.0, drawn)

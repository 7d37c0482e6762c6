"""A rule around a rule: several fast steps on one batch, back part of the way, one slow step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.training.masters import MasterAdamW
from quatrain.training.rules import AdamW, Rule


@dataclass(frozen=True)
class SlowFast:
    """θ^{k+1} = θ^k + step(∇L(θ^k)), k < K;  θ̃ = θ⁰ + α(θ^K − θ⁰);  θ ← θ̃ + step(∇L(θ̃)). Slow–Fast Policy Optimization, 2510.04072.

    inner    the rule that makes each step: with plain gradient descent the update is −η[α Σ_k g_k + g(θ̃)].
    steps    K ≥ 0 on the same rows, whose ratio stays the one to the policy that sampled them.
    alpha    how much of the way is kept, 0 to 1. At α = 0 or K = 0 the fast steps are not made: exactly one step of ``inner``.
    moments  what the inner optimiser remembers. ``kept``: of all K + 1 gradients, the step counter advances by K + 1;
             ``rewound``: going back, it forgets the fast steps: the slow step follows on the moments at θ⁰.

    Where a gradient is not finite, weights and moments are as they were at θ⁰.
    """

    inner: Rule = AdamW()
    steps: int | Knob = 3
    alpha: float | Knob = 0.8
    moments: Literal["kept", "rewound"] = "kept"

    def __post_init__(self) -> None:
        if isinstance(self.alpha, (int, float)) and not 0 <= self.alpha <= 1:
            raise QuatrainError("the share of the way that is kept is out of range", given=self.alpha, expected="0 to 1")
        if isinstance(self.steps, int) and self.steps < 0:
            raise QuatrainError("the number of fast steps is at least 0", given=self.steps)
        if self.moments not in ("kept", "rewound"):
            raise QuatrainError("unknown treatment of the moments", given=self.moments, expected="kept or rewound")

    def start(self, module: nn.Module) -> torch.optim.Optimizer:
        return self.inner.start(module)

    def update(self, optimizer: torch.optim.Optimizer, gradient: Callable[[], None]) -> float | None:
        if self.alpha == 0 or self.steps == 0:
            return self.inner.update(optimizer, gradient)
        weights = {parameter: parameter.detach().clone() for group in optimizer.param_groups for parameter in group["params"]}
        moments = {parameter: _copied(optimizer.state[parameter]) for parameter in weights if parameter in optimizer.state}
        norm = None
        try:
            norm = self._moved(optimizer, gradient, weights, moments)
        finally:
            if norm is None:
                _reposition(optimizer, weights, 0.0)
                _rewind(optimizer, moments)
        return norm

    def _moved(self, optimizer: torch.optim.Optimizer, gradient: Callable[[], None], weights: dict, moments: dict) -> float | None:
        for _ in range(self.steps):
            if self.inner.update(optimizer, gradient) is None:
                return None
        _reposition(optimizer, weights, self.alpha)
        if self.moments == "rewound":
            _rewind(optimizer, moments)
        return self.inner.update(optimizer, gradient)


@torch.no_grad()
def _reposition(optimizer: torch.optim.Optimizer, weights: Mapping[Tensor, Tensor], alpha: float) -> None:
    """θ ← θ⁰ + α(θ − θ⁰), exactly θ⁰ where α is 0 or nothing has moved."""
    for parameter, start in weights.items():
        parameter.copy_(start + alpha * (parameter - start) if alpha else start)
    if isinstance(optimizer, MasterAdamW):
        optimizer.publish()


def _rewind(optimizer: torch.optim.Optimizer, moments: Mapping[Tensor, dict[str, Any]]) -> None:
    optimizer.state.clear()
    for parameter, kept in moments.items():
        optimizer.state[parameter] = _copied(kept)


def _copied(kept: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in kept.items()}

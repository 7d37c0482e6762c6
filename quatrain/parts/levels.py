"""Bounds that look at two levels at once: actions and their whole sequence. Both take the log-ratio per action."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.denominators import over_sequence
from quatrain.parts.guides import guide_column
from quatrain.parts.needs import needs_of


@dataclass(frozen=True)
class GeometricClip:
    """The gradient of exp(mean_t m_t)·A with each log-ratio clipped, by the sign of A, before the mean: Zhao et al. 2025 (GMPO).

        m_t = min(l_t, high) where A > 0,  max(l_t, −low) where A < 0;   factor_t = exp(mean_t m_t) where l_t is not clipped, else 0

    An action that is clipped gets no gradient, but what is left of its ratio stays in the weight that its sequence shares.

    low, high  ε of the log-ratio, above 0.
    clip       ``action``; ``sequence``: the sum of the log-ratios is clipped, all of its actions together; ``none``.
    root       divide by the number of actions inside the exponential. Without it the factor is the product of the ratios.

    It wants the same sign of A all along a sequence. → ``Clip`` of the log-ratio for one action; → ``unbounded`` on the sequence's
    mean log-ratio as low and high grow.

    >>> batch = Batch(torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2))
    >>> GeometricClip(clip="none")(torch.tensor([[2.0, 0.5]]).log(), torch.ones(1, 2), batch).tolist()
    [[1.0, 1.0]]
    """

    low: float = 0.4
    high: float = 0.4
    clip: Literal["action", "sequence", "none"] = "action"
    root: bool = True

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not value > 0:
                raise QuatrainError(f"GeometricClip's {name} is out of range", given=value, expected="a log-ratio above 0")
        if self.clip not in ("action", "sequence", "none"):
            raise QuatrainError("unknown level of a geometric clip", given=self.clip, expected="action, sequence or none")

    def __call__(self, log_ratio: Tensor, advantage: Tensor, batch: Batch) -> Tensor:
        value = over_sequence(log_ratio, batch.mask, "sum") if self.clip == "sequence" else log_ratio
        clipped = torch.where(advantage > 0, value.clamp(max=self.high), value.clamp(min=-self.low)) if self.clip != "none" else value
        total = clipped if self.clip == "sequence" else over_sequence(clipped, batch.mask, "sum")
        weight = (total / batch.lengths.clamp(min=1)[:, None] if self.root else total).exp()
        return torch.where(clipped == value, weight, 0.0)


@dataclass(frozen=True)
class TwoLevelClip:
    """The gradient of min(m·A, m̄·A), m a mixture of the action's ratio r and the sequence's s (DHPO; arXiv:2601.05607).

        m = w·r + (1−w)·s,   s = exp(mean_t log r_t), given to each action as sg[s]·π/sg[π]
        m̄ = w·clip(r, 1−low, 1+high) + (1−w)·clip(s, 1−low', 1+high')

    mix       w in [0, 1]: a number, or a guide (batch → [N, T], computed once per update).
    action, sequence  (low, high) of r and of s.
    minimum   ``joint``: as above, one minimum of the mixtures. ``branch``: w·min(r·A, clip(r)·A) + (1−w)·min(s·A, clip(s)·A).
              ``after``: mixed first, then clipped by the interval of ``action``.

    joint and branch differ where exactly one ratio is clipped, or both on opposite sides. On policy all are 1. → ``Clip`` of r for
    w = 1; → ``Clip`` of s for w = 0.
    """

    mix: float | Callable[[Batch], Tensor] = 0.5
    action: tuple[float, float] = (0.2, 0.2)
    sequence: tuple[float, float] = (3e-4, 4e-4)
    minimum: Literal["joint", "branch", "after"] = "joint"

    def __post_init__(self) -> None:
        if isinstance(self.mix, (int, float)) and not 0 <= self.mix <= 1:
            raise QuatrainError("the share of the action's ratio is out of range", given=self.mix, expected="a number from 0 to 1")
        if self.minimum not in ("joint", "branch", "after"):
            raise QuatrainError("unknown minimum of two levels", given=self.minimum, expected="joint, branch or after")
        for name in ("action", "sequence"):
            if not all(value > 0 for value in getattr(self, name) if isinstance(value, (int, float))):
                raise QuatrainError(f"the clip range of the {name}'s ratio is out of range", given=getattr(self, name), expected="above 0")

    @property
    def guides(self) -> tuple[Callable[[Batch], Tensor], ...]:
        return (self.mix,) if callable(self.mix) else ()

    @property
    def needs(self) -> tuple[str, ...]:
        return needs_of(self.mix)

    def __call__(self, log_ratio: Tensor, advantage: Tensor, batch: Batch) -> Tensor:
        w = batch[guide_column(self.mix)] if callable(self.mix) else self.mix
        sign = torch.where(advantage < 0, -1.0, 1.0)
        r, s = log_ratio.exp(), over_sequence(log_ratio, batch.mask, "mean").exp()
        r_bar, s_bar = _clamp(r, self.action), _clamp(s, self.sequence)
        if self.minimum == "branch":
            return w * _kept(r, r_bar, sign) + (1 - w) * _kept(s, s_bar, sign)
        mixed = w * r + (1 - w) * s
        if self.minimum == "after":
            return _kept(mixed, _clamp(mixed, self.action), sign)
        inside = w * torch.where(r == r_bar, r, 0.0) + (1 - w) * torch.where(s == s_bar, s, 0.0)
        return torch.where(mixed * sign <= (w * r_bar + (1 - w) * s_bar) * sign, mixed, inside)


def _clamp(ratio: Tensor, interval: tuple[float, float]) -> Tensor:
    low, high = interval
    return ratio.clamp(1 - low, 1 + high)


def _kept(ratio: Tensor, clipped: Tensor, sign: Tensor) -> Tensor:
    """The ratio where min(ratio·A, clipped·A) is the first, else 0."""
    return torch.where(ratio * sign <= clipped * sign, ratio, 0.0)

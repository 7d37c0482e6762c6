"""The nature of an action: how undecided the policy is there, on a scale from −1 to 1, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.parts.guides import guide_column
from quatrain.parts.needs import needs_of

SMALLEST = 1e-8  # nats: an entropy of 0 has no logarithm


def entropy_scale(entropy: Tensor, level: float = 0.8) -> tuple[float, float, float]:
    """(c, top, bottom): the ``level`` quantile (nearest) of log H over entropies [M], and how far the largest and smallest are from it.

    Nothing at all gives (0, 0, 0).
    """
    if not entropy.numel():
        return 0.0, 0.0, 0.0
    e = entropy.double().clamp(min=SMALLEST).log().sort().values
    centre = e[round(level * (len(e) - 1))]
    return float(centre), float(e[-1] - centre), float(centre - e[0])


def nature(entropy: Tensor, centre: float, top: float, bottom: float, signed: bool = True) -> Tensor:
    """h in [−1, 1] like entropy: (log H − c)/top above c, (log H − c)/bottom below, 0 where the scale has no width.

    Dividing by a common scale first (the root mean square) changes nothing. ``signed`` False: |h|.

    >>> h = nature(torch.tensor([1.0, 2.0, 4.0, 8.0]), *entropy_scale(torch.tensor([1.0, 2.0, 4.0, 8.0]), 1 / 3))
    >>> [round(x, 6) for x in h.tolist()]
    [-1.0, 0.0, 0.5, 1.0]
    """
    gap = entropy.double().clamp(min=SMALLEST).log() - centre
    up = gap / top if top > 0 else torch.zeros_like(gap)
    down = gap / bottom if bottom > 0 else torch.zeros_like(gap)
    h = torch.where(gap > 0, up, down).clamp(-1.0, 1.0)
    return h if signed else h.abs()


@dataclass(frozen=True)
class Nature:
    """Guide: h [N, T] of every action on the scale of one update's actions; 0 where there is none (Liu et al. 2025, HAPO).

    level  quantile of log H that is 0.    signed  False: |h|.    of  the column of entropies.
    """

    level: float = 0.8
    signed: bool = True
    of: str = "old_entropy"

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 1:
            raise QuatrainError("a quantile is from 0 to 1", given=self.level)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.of,)

    def __call__(self, batch: Batch) -> Tensor:
        entropy = torch.where(batch.mask, batch[self.of], 1.0)
        h = nature(entropy, *entropy_scale(entropy[batch.mask], self.level), self.signed)
        return torch.where(batch.mask, h, 0.0)


@dataclass(frozen=True)
class Heat:
    """The factor 1 + scale·h on the temperature, from the entropy [B] at the place that is sampled; 1 on a scale without width."""

    scale: float = 0.05
    signed: bool = True
    centre: float | Knob = 0.0
    top: float | Knob = 0.0
    bottom: float | Knob = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale < 1:
            raise QuatrainError("a temperature stays above 0", given=f"scale={self.scale}", expected="0 to below 1")

    def __call__(self, entropy: Tensor) -> Tensor:
        return 1.0 + self.scale * nature(entropy, self.centre, self.top, self.bottom, self.signed)


@dataclass(frozen=True)
class NatureClip:
    """PPO's dual clip with bounds per action, by h (HAPO).

        low' = low (1 − α h) where h ≤ 0, high' = high (1 + α h) where h > 0, else low and high

    guide  batch → h [N, T] in [−1, 1], computed on the whole update.    widen  α in [0, 1].

    → ``Clip(low, high, dual=dual)`` for h = 0, and for α = 0.
    """

    guide: Callable[[Batch], Tensor] = Nature()
    low: float = 0.2
    high: float = 0.2
    widen: float = 1.0
    dual: float = 10.0

    def __post_init__(self) -> None:
        if not (self.low > 0 and self.high > 0 and 0 <= self.widen <= 1 and self.dual > 1):
            given = f"low={self.low}, high={self.high}, widen={self.widen}, dual={self.dual}"
            raise QuatrainError("a clip by nature is out of range", given=given, expected="low, high > 0; widen from 0 to 1; dual > 1")

    @property
    def guides(self) -> tuple[Callable[[Batch], Tensor], ...]:
        return (self.guide,)

    @property
    def needs(self) -> tuple[str, ...]:
        return needs_of(self.guide)

    def bounds(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(h, low', high'), [N, T] each."""
        h = batch[guide_column(self.guide)]
        return h, self.low * (1 - self.widen * h.clamp(max=0.0)), self.high * (1 + self.widen * h.clamp(min=0.0))

    def __call__(self, log_ratio: Tensor, advantage: Tensor, batch: Batch) -> Tensor:
        (_, low, high), ratio = self.bounds(batch), log_ratio.exp()
        free = torch.where(advantage > 0, ratio <= 1 + high, (ratio >= 1 - low) & (ratio <= self.dual))
        return torch.where(free, ratio, 0.0)


@dataclass(frozen=True)
class Redistribution:
    """Weight 1 + β h for h > 0 and r outside (1 − low'/2, 1 + high'/2), and for h ≤ 0 and r inside; else 1 (HAPO).

    What is undecided counts more once it moves, what is decided less as long as it stays. r is that to the old policy.

    clip   whose bounds these are.    share  β in [0, 1]: the sign of the advantage stays.
    """

    clip: NatureClip = NatureClip()
    share: float = 1.0
    action_by_action: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise QuatrainError("the share of a redistribution is from 0 to 1", given=self.share)

    @property
    def guides(self) -> tuple[Callable[[Batch], Tensor], ...]:
        return self.clip.guides

    @property
    def needs(self) -> tuple[str, ...]:
        return ("current_logp", "old_logp", *self.clip.needs)

    def __call__(self, batch: Batch) -> Tensor:
        h, low, high = self.clip.bounds(batch)
        ratio = torch.where(batch.mask, batch["current_logp"] - batch["old_logp"], 0.0).exp()
        neutral = (ratio > 1 - low / 2) & (ratio < 1 + high / 2)
        return torch.where((h > 0) != neutral, 1 + self.share * h, 1.0)

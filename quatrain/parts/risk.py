"""Risk: advantages of a bundle's score that weigh its lower tail, its middle and its upper tail differently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index, group_sum
from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.parts.gates import success_rate

FLAT = 1e-8  # a sum of shares or a standard deviation below it is zero


def tail_value(score: Tensor, low: float, high: float, slopes: tuple[float, float, float]) -> Tensor:
    """−s₁(low − S)⁺ + s₂[(S − low)⁺ − (S − high)⁺] + s₃(S − high)⁺: 0 at ``low``, one slope below, one between, one above.

    score [N]; low ≤ high: quantiles of the score. Its mean's gradient is that of s₁·lower tail + s₂·middle + s₃·upper tail.

    >>> tail_value(torch.arange(6.0), 1.0, 4.0, (1.5, 1.0, 0.0)).tolist()
    [-1.5, 0.0, 1.0, 2.0, 3.0, 3.0]
    """
    above = (score - low).clamp(min=0)
    beyond = (score - high).clamp(min=0)
    return -slopes[0] * (low - score).clamp(min=0) + slopes[1] * (above - beyond) + slopes[2] * beyond


def bundle_score(batch: Batch, size: int, of: str = "reward", by: str = "bundle") -> Tensor:
    """[N] ``size`` times the mean reward of the row's bundle: the sum of its rewards, 0 to ``size``, where it is full."""
    return size * success_rate(batch, of, by)


@dataclass(frozen=True)
class TailWeighted:
    """The ``tail_value`` of the row's bundle, minus its value at ``high``: 0 at the upper quantile. Ren et al. 2025 (RiskPO).

    low, high  quantiles of the score, tracked from outside (a swapped pair is put in order).
    slopes     of the lower tail, the middle and the upper tail. (1+w, 1, 0) is the paper's mixed value at risk.
    size       members of a bundle.
    anchored   subtract the value at ``high``; without it the value is 0 at ``low``.
    scaled     divide by the standard deviation (Bessel-corrected) of the scores of the bundles that share questions (key ``block``);
               a block without spread gets 0.
    credit     ``same``: every member gets it; ``share``: A (r_i − mean_q r)/Σ_bundle (r_j − mean_q r), A/members where that sum is 0.

    → A linear in S for equal slopes.
    """

    low: float | Knob
    high: float | Knob
    slopes: tuple[float, float, float] = (1.5, 1.0, 0.0)
    size: int | Knob = 5
    anchored: bool = True
    scaled: bool = False
    credit: Literal["same", "share"] = "same"

    def __post_init__(self) -> None:
        if self.credit not in ("same", "share"):
            raise QuatrainError("unknown credit of a bundle's members", given=self.credit, expected="same or share")
        if min(self.slopes) < 0:
            raise QuatrainError("a better bundle is worth at least as much: slopes are at least 0", given=self.slopes)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "bundle", *(("block",) if self.scaled else ()), *(("prompt",) if self.credit == "share" else ()))

    def __call__(self, batch: Batch) -> Tensor:
        low, high = sorted((self.low, self.high))
        score = bundle_score(batch, self.size)
        value = tail_value(score, low, high, self.slopes)
        if self.anchored:
            value = value - self.slopes[1] * (high - low)
        if self.scaled:
            value = value * _inverse_spread(batch, score)
        return value * _shares(batch) if self.credit == "share" else value


def _inverse_spread(batch: Batch, score: Tensor) -> Tensor:
    """[N] 1/std of the scores of the block's bundles, each counted once; 0 where they are all alike."""
    index, count = group_index(batch, "block")
    bundle, bundles = group_index(batch, "bundle")
    once = (1.0 / group_sum(torch.ones_like(score), bundle, bundles))[bundle]  # the members of a bundle weigh 1 together
    number = group_sum(once, index, count)
    centred = score - (group_sum(once * score, index, count) / number)[index]
    spread = (group_sum(once * centred.square(), index, count) / (number - 1).clamp(min=FLAT)).sqrt()[index]
    single = (number < 1.5)[index]
    return torch.where(single | (spread < FLAT), 0.0, 1.0 / spread.clamp(min=FLAT))


def _shares(batch: Batch) -> Tensor:
    """[N] each member's share of its bundle's advantage; the shares of a bundle add up to 1."""
    bundle, bundles = group_index(batch, "bundle")
    centred = batch["reward"].double() - success_rate(batch)
    total = group_sum(centred, bundle, bundles)[bundle]
    equal = 1.0 / group_sum(torch.ones_like(centred), bundle, bundles)[bundle]
    flat = total.abs() < FLAT
    return torch.where(flat, equal, centred / torch.where(flat, 1.0, total))

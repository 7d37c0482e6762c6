"""Ratios to a policy that stands between two others: no weights of its own, only their probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError


@dataclass(frozen=True)
class MixtureRatio:
    """log π_numerator(a_t) − log(α π_first(a_t) + (1 − α) π_second(a_t)), of named columns, [N, T]. α = ``share``, in (0, 1).

    With the trained policy as numerator and second, and r = π/π_first, the ratio is r/(α + (1−α)r): it rises with r and stays below
    1/(1−α). → ``Ratio(numerator, first)`` for α → 1.

    >>> here = {"current_logp": torch.tensor([[0.5]]).log(), "behaviour_logp": torch.tensor([[0.25]]).log()}
    >>> round(MixtureRatio(share=0.5)(Batch(torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1), here)).exp().item(), 5)
    1.33333
    """

    numerator: str = "current"
    first: str = "behaviour"
    second: str = "current"
    share: float = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.share, (int, float)) and not 0 < self.share < 1:
            raise QuatrainError("the share of a mixture is out of range", given=self.share, expected="between 0 and 1")

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(f"{name}_logp" for name in (self.numerator, self.first, self.second)))

    def __call__(self, batch: Batch) -> Tensor:
        first, second = batch[f"{self.first}_logp"] + log(self.share), batch[f"{self.second}_logp"] + log(1 - self.share)
        return torch.where(batch.mask, batch[f"{self.numerator}_logp"] - torch.logaddexp(first, second), 0.0)


def shifted_bound(epsilon: float, share: float) -> float:
    """The b with r/(α + (1−α)r) = 1 + ε ⟺ r = 1 + b: a clip to the mixture is a clip to its first part with other bounds.

    epsilon may be negative (the lower bound). Infinite where the mixture's ratio never gets to 1 + ε.

    >>> round(shifted_bound(0.2, 0.5), 9), round(shifted_bound(-0.2, 0.5), 9)
    (0.5, -0.333333333)
    """
    rest = 1 - (1 - share) * (1 + epsilon)
    return share * (1 + epsilon) / rest - 1 if rest > 0 else float("inf")

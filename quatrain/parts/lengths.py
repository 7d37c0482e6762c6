"""Weights that depend on how long the answers of a group are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index, group_sum
from quatrain.errors import QuatrainError


@dataclass(frozen=True)
class LengthAdvantage:
    """1 for groups whose longest correct answer is longer than their incorrect ones are on average, else ``scale``; [N].

    ADORA (2602.10019): max |o⁺| > mean |o⁻|, over the correct answers and over the incorrect ones that were not cut.

    scale    λ, at least 0; 1 is the weight 1 everywhere.
    above    a reward above it is correct.
    missing  a group without a correct answer: ``scale`` it, or ``keep`` it at 1.
    alone    a group with correct answers and no incorrect one that ended: ``keep`` it at 1, or ``scale`` it.

    The released code for text has (scale, keep), that for images (keep, scale).
    """

    scale: float = 0.1
    above: float = 0.5
    missing: Literal["scale", "keep"] = "scale"
    alone: Literal["scale", "keep"] = "keep"
    of: str = "reward"
    by: str = "prompt"

    def __post_init__(self) -> None:
        if isinstance(self.scale, (int, float)) and not self.scale >= 0:
            raise QuatrainError("the weight of a group is at least 0", given=self.scale)
        if not {self.missing, self.alone} <= {"scale", "keep"}:
            raise QuatrainError("a group is scaled or kept", given=f"{self.missing}, {self.alone}", expected="scale or keep")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.of, self.by, "truncated")

    def __call__(self, batch: Batch) -> Tensor:
        index, count = group_index(batch, self.by)
        length, value = batch.lengths.double(), batch[self.of].double()
        right = value > self.above
        wrong = (value <= self.above) & ~(batch["truncated"] & batch.mask).any(1)  # a value of NaN is neither
        longest = torch.full((count,), -1.0, dtype=torch.float64, device=batch.device)
        longest = longest.scatter_reduce(0, index[right], length[right], "amax")
        rights, wrongs = group_sum(right.double(), index, count), group_sum(wrong.double(), index, count)
        mean = group_sum(torch.where(wrong, length, 0.0), index, count) / wrongs.clamp(min=1)
        keep = torch.where(wrongs > 0, longest > mean, self.alone == "keep")
        keep = torch.where(rights > 0, keep, self.missing == "keep")
        return torch.where(keep, 1.0, torch.full_like(mean, float(self.scale)))[index]

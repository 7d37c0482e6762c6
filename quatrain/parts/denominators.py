"""The denominator: which policy divides, and at which level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError


@dataclass(frozen=True)
class Ratio:
    """log π_numerator(a_t) − log π_denominator(a_t), of named columns, [N, T].

    numerator, denominator  ``current``, ``old``, ``behaviour``, ``reference``, … (the column is ``{name}_logp``), or
                            ``one``: the constant 1, whose logarithm is 0. ``one`` is not ``current``: π_θ/1 weighs by π_θ,
                            π_θ/π_θ is 1.
    level   ``action``: each its own; ``sequence``: all actions of a trajectory share one.
    reduce  how a sequence is reduced: the ``sum`` of its log-ratios, or their ``mean`` (the geometric mean of the ratios).

    → 0 everywhere for ``Ratio("current", "current")``, the default.
    """

    numerator: str = "current"
    denominator: str = "current"
    level: Literal["action", "sequence"] = "action"
    reduce: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        if self.level not in ("action", "sequence") or self.reduce not in ("mean", "sum"):
            raise QuatrainError("unknown level or reduction", given=f"{self.level}, {self.reduce}", expected="action|sequence, mean|sum")

    @property
    def needs(self) -> tuple[str, ...]:
        if self.numerator == self.denominator:
            return ()
        return tuple(f"{name}_logp" for name in (self.numerator, self.denominator) if name != "one")

    def __call__(self, batch: Batch) -> Tensor:
        if self.numerator == self.denominator:
            return torch.zeros(batch.shape, device=batch.device)
        zero = torch.zeros((), device=batch.device)
        above, below = (zero if name == "one" else batch[f"{name}_logp"] for name in (self.numerator, self.denominator))
        log_ratio = torch.where(batch.mask, above - below, 0.0)
        return log_ratio if self.level == "action" else over_sequence(log_ratio, batch.mask, self.reduce)


def over_sequence(value: Tensor, mask: Tensor, reduce: str) -> Tensor:
    """Sum or mean of [N, T] over each row's actions, spread over the row again. An empty row gives 0.

    >>> over_sequence(torch.tensor([[0.5, -0.5, 9.0]]), torch.tensor([[True, True, False]]), "mean").tolist()
    [[0.0, 0.0, 0.0]]
    """
    total = torch.where(mask, value, 0.0).sum(1, keepdim=True)
    if reduce == "mean":
        total = total / mask.sum(1, keepdim=True).clamp(min=1)
    return total.expand(value.shape)

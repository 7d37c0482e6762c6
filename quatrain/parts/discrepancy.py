"""Bands around 1: a bound that acts only where the trainer and the engine that sampled agree on an action.

The ratio of the trained policy to the one that sampled is a product: (θ / old) · (old / behaviour). The first factor is staleness, the
second, at equal weights, is numerical noise of two programs; a band filters the noise, a clip bounds the staleness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.denominators import Ratio
from quatrain.parts.guides import guides_of
from quatrain.parts.needs import needs_of

Bound = Callable[[Tensor, Tensor, Batch], Tensor]


@dataclass(frozen=True)
class Band:
    """[N, T] bool: actions whose ratio lies between low and high (neither included). A ratio of a whole sequence keeps or drops all of it.

    >>> here = {"old_logp": torch.tensor([[0.1, 0.5]]), "behaviour_logp": torch.zeros(1, 2)}
    >>> batch = Batch(torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2), here)
    >>> Band(Ratio("old", "behaviour"), 0.8, 1.2)(batch).tolist(), Band(Ratio("old", "behaviour", "sequence"), 0.8, 1.2)(batch).tolist()
    ([[True, False]], [[False, False]])
    """

    of: Callable[[Batch], Tensor]
    low: float
    high: float

    def __post_init__(self) -> None:
        if isinstance(self.low, (int, float)) and isinstance(self.high, (int, float)) and not self.low < 1 < self.high:
            raise QuatrainError("a band lies around a ratio of 1", given=(self.low, self.high), expected="low < 1 < high")

    @property
    def needs(self) -> tuple[str, ...]:
        return needs_of(self.of)

    def __call__(self, batch: Batch) -> Tensor:
        ratio = self.of(batch).exp()
        return (ratio > self.low) & (ratio < self.high)


def around(of: Ratio, distance: float) -> Band:
    """|ratio − 1| < distance."""
    return Band(of, 1 - distance, 1 + distance)


@dataclass(frozen=True)
class Within:
    """Another bound where every band holds, else 0. Like a clip, and unlike a selection, it leaves the mean's normaliser as it is."""

    bound: Bound
    bands: tuple[Callable[[Batch], Tensor], ...]

    @property
    def guides(self) -> tuple[Callable[[Batch], Tensor], ...]:
        return guides_of(self.bound)

    @property
    def needs(self) -> tuple[str, ...]:
        return (*needs_of(self.bound), *(name for band in self.bands for name in needs_of(band)))

    def __call__(self, log_ratio: Tensor, advantage: Tensor, batch: Batch) -> Tensor:
        kept = batch.mask
        for band in self.bands:
            kept = kept & band(batch)
        return torch.where(kept, self.bound(log_ratio, advantage, batch), 0.0)

"""Quantiles that are followed by stochastic approximation: a knob that a distribution pulls along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quatrain.errors import QuatrainError
from quatrain.knobs import Knob


@dataclass(frozen=True)
class QuantileTracker:
    """q ← q + rate·(level − mean 1[S < q]) after every round: at rest where a share ``level`` of S is below q. Robbins & Monro 1951.

    knob    q itself; its default is where it starts.
    metric  the name of this round's mean of 1[S < q]; a round without it leaves q.
    level   0 to 1.

    >>> from types import SimpleNamespace
    >>> tracker = QuantileTracker(Knob("q", 1.0), "below", level=0.2, rate=0.5)
    >>> tracker(SimpleNamespace(knobs={}), {"below": 1.0})
    {'q': 0.6}
    """

    knob: Knob
    metric: str
    level: float
    rate: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise QuatrainError("a quantile's level is out of range", given=self.level, expected="between 0 and 1")
        if self.rate < 0:
            raise QuatrainError("a tracker's rate is at least 0", given=self.rate)

    def __call__(self, state: Any, metrics: Mapping[str, float]) -> dict[str, float]:
        if self.metric not in metrics:
            return {}
        now = state.knobs.get(self.knob.name, self.knob.default)
        return {self.knob.name: now + self.rate * (self.level - metrics[self.metric])}

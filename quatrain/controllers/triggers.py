"""Triggers: a knob that is set for good once a metric behaves unusually."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from quatrain.errors import QuatrainError


def z_score(value: float, window: Sequence[float]) -> float:
    """(value − mean)/standard deviation (of the population) of the window; 0 where that is 0.

    >>> z_score(5.0, [1.0, 3.0])
    3.0
    """
    mean = sum(window) / len(window)
    spread = sqrt(sum((x - mean) ** 2 for x in window) / len(window))
    return (value - mean) / spread if spread > 0 else 0.0


@dataclass(frozen=True)
class LeavesWindow:
    """Set ``knob`` to ``value`` once |z| ≥ threshold, z the metric's score among its ``window`` last values; and never again.

    Nothing happens before the window is full; the present value is not in it.
    """

    knob: str
    metric: str = "entropy"
    window: int = 20
    threshold: float = 3.0
    value: float = 0.0

    def __post_init__(self) -> None:
        if self.window < 2:
            raise QuatrainError("a window has two values or more", given=self.window)
        if self.threshold <= 0:
            raise QuatrainError("a z-score's threshold is above 0", given=self.threshold)

    def __call__(self, state: Any, metrics: Mapping[str, float]) -> dict[str, float]:
        name = f"trigger/{self.knob}"
        seen = state.memory.get(name, ())
        if self.metric not in metrics or seen is None:  # None: it was pulled
            return {}
        pulled = len(seen) == self.window and abs(z_score(metrics[self.metric], seen)) >= self.threshold
        state.memory[name] = None if pulled else (*seen, metrics[self.metric])[-self.window :]
        return {self.knob: self.value} if pulled else {}

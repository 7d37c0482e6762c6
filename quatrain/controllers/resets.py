"""A knob that is 1 for a round after too few actions carried a gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quatrain.errors import QuatrainError


@dataclass(frozen=True)
class ResetBelow:
    """``knob`` is 1 in the round that follows one in which less than ``active`` of the actions with an advantage were not clipped, else 0.

    active  a share in [0, 1]. A round without any advantage resets nothing.

    >>> [ResetBelow("reset", 0.9)(None, {"clipped": share})["reset"] for share in (0.0, 0.05, 0.2)]
    [0.0, 0.0, 1.0]
    """

    knob: str
    active: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.active <= 1:
            raise QuatrainError("the share of active actions is out of range", given=self.active, expected="from 0 to 1")

    def __call__(self, state: Any, metrics: Mapping[str, float]) -> dict[str, float]:
        return {self.knob: float(1 - metrics.get("clipped", 0.0) < self.active)}

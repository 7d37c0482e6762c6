"""Schedules: a knob as a function of the step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import Any, Literal

from quatrain.errors import QuatrainError
from quatrain.knobs import Knob, resolve


@dataclass(frozen=True)
class Schedule:
    """A knob that rises linearly to its peak over ``warmup`` steps, then stays, or falls to ``floor``·peak at step ``total``.

    from_zero  the rise begins at 0 and is at the peak at step ``warmup``, in place of from peak/warmup, one step earlier.

    >>> [Schedule("lr", 1.0, total=6, warmup=2, kind="linear").at(step) for step in (0, 1, 2, 4, 6)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """

    knob: str
    peak: float
    total: int
    warmup: int = 0
    kind: Literal["constant", "linear", "cosine"] = "constant"
    floor: float = 0.0
    from_zero: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= self.total:
            raise QuatrainError("the warm-up is longer than the run", given=self.warmup, expected=f"0 to {self.total} steps")

    def at(self, step: int) -> float:
        """The value for the round that follows ``step`` finished rounds."""
        if step < self.warmup:
            return self.peak * (step + (not self.from_zero)) / self.warmup
        if self.kind == "constant":
            return self.peak
        progress = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        fall = 1 - progress if self.kind == "linear" else 0.5 * (1 + cos(pi * progress))
        return self.peak * (self.floor + (1 - self.floor) * fall)

    def __call__(self, state: Any, metrics: Mapping[str, float]) -> dict[str, float]:
        return {self.knob: self.at(state.step)}


@dataclass(frozen=True)
class Annealed:
    """A knob that falls linearly from its peak over the rounds of a stage: peak·max(floor, 1 − k/K) in round k of K.

    stage  only in the stage of that number; None: in each. Elsewhere it is at its peak.

    >>> from types import SimpleNamespace
    >>> [Annealed("t", 2.0, rounds=4)(SimpleNamespace(round=k, knobs={}), {})["t"] for k in (1, 2, 3, 4)]
    [1.5, 1.0, 0.5, 2.0]

    It is never 0 in a round: after a stage's last round it is at its peak, for the next stage.
    """

    knob: str
    peak: float = 1.0
    rounds: int | Knob = Knob("steps", 200)
    floor: float = 0.0
    stage: int | None = None

    def __call__(self, state: Any, metrics: Mapping[str, float]) -> dict[str, float]:
        rounds = resolve(self.rounds, state.knobs)
        falls = (self.stage is None or self.stage == state.stage) and state.round < rounds
        return {self.knob: self.peak * (max(self.floor, 1 - state.round / rounds) if falls else 1.0)}

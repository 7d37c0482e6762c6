"""Edits: batch → batch, between sampling and learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.rollout.sources import require


@dataclass(frozen=True)
class AddDemonstrations:
    """Add the demonstration of every start of the batch, where it has one, as a row of the same prompt."""

    needs = ("prompt",)

    def check(self, task: Any) -> None:
        require(task, "demonstrations")

    def __call__(self, state: Any, batch: Batch) -> Batch:
        starts = list({int(key): start for key, start in zip(batch["prompt"], batch.notes["start"], strict=True)}.values())
        shown = state.task.demonstrations(state.models["policy"], starts)
        state.spent["demonstrations"] += len(shown)
        return Batch.cat([batch, shown])


@dataclass(frozen=True)
class OverlongPenalty:
    """Soft punishment of length, added to the reward: Yu et al. 2025 (DAPO), eq. 13.

    0 up to limit − cache actions, then linear down to −1 at the limit, −1 beyond. In actions.
    """

    limit: int | Knob = Knob("max_actions", 64)
    cache: int | Knob = 16
    needs = ("reward",)

    def __post_init__(self) -> None:
        if isinstance(self.limit, int) and isinstance(self.cache, int) and not 0 < self.cache <= self.limit:
            raise QuatrainError(
                "the overlong cache is out of range", given=f"{self.cache} of {self.limit}", expected="1 to the length limit"
            )

    def __call__(self, state: Any, batch: Batch) -> Batch:
        over = (batch.lengths - (self.limit - self.cache)) / self.cache
        return batch.with_rows(reward=batch["reward"] - torch.clamp(over, 0.0, 1.0))

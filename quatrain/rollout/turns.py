"""Turns, for tasks that have one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quatrain.batch import Batch


@dataclass(frozen=True)
class Turns:
    """``turn`` as the task says it; where it says nothing every trajectory is a single turn."""

    provides = ("turn",)

    def __call__(self, state: Any, batch: Batch) -> Batch:
        if "turn" in batch:
            return batch
        return batch.with_columns(turn=torch.zeros(batch.shape, dtype=torch.int64, device=batch.device))

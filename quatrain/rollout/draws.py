"""An edit that gives every action a seed of its own, for what is random when it is learnt from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quatrain.batch import Batch


@dataclass(frozen=True)
class Draws:
    """``draw`` [N, T] int64: a fresh seed per action (times and noises of a flow, dropout …)."""

    provides = ("draw",)

    def __call__(self, state: Any, batch: Batch) -> Batch:
        generator = torch.Generator().manual_seed(state.draw("draws"))
        return batch.with_columns(draw=torch.randint(2**62, batch.shape, generator=generator).to(batch.device))

"""Who asked whom, for tasks in which nobody calls anybody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quatrain.batch import Batch


@dataclass(frozen=True)
class Roles:
    """``role``, ``episode`` and ``parent`` as the task says them; where it says nothing every trajectory is a planner's, on its own."""

    provides = ("role", "episode", "parent")

    def __call__(self, state: Any, batch: Batch) -> Batch:
        if len(batch):
            workers = int((batch["role"] != 0).sum()) if "role" in batch else 0
            state.measure({"workers": (torch.tensor(float(workers)), len(batch) - workers)})
        if "role" in batch:
            return batch
        zero = torch.zeros(len(batch), dtype=torch.int64, device=batch.device)
        return batch.with_rows(role=zero, episode=torch.arange(len(batch), device=batch.device), parent=zero - 1)

"""Rewards that depend on how a trajectory chose to answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quatrain.batch import Batch


@dataclass(frozen=True)
class ModeReward:
    """Replace the reward: 1 for a correct answer, 1 − cost for a correct one that was thought about, ``wrong`` for a wrong one.

    mark  what a completion that thinks begins with. A task without texts has one mode, that of short answers. The mark must be an
          ordinary token: special ones are not in the text of a completion.
    A reward between 0 and 1 is an answer that is correct in part.
    """

    mark: str = "<think>"
    cost: float = 0.5
    wrong: float = -1.0
    needs = ("reward",)

    def __call__(self, state: Any, batch: Batch) -> Batch:
        texts = batch.notes.get("completion", ("",) * len(batch))
        thought = torch.tensor([text.lstrip().startswith(self.mark) for text in texts], dtype=torch.bool, device=batch.device)
        if len(batch):
            state.measure({"modes/thought": (thought.sum(), len(batch))})
        reward = batch["reward"]
        return batch.with_rows(reward=self.wrong + (1.0 - self.cost * thought.to(reward.dtype) - self.wrong) * reward)

"""Both sides of a pair of tasks in one update: one start for each, each with its own group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quatrain.batch import Batch
from quatrain.rollout.sources import OnPolicy


@dataclass(frozen=True)
class BothSides:
    """Trajectories from the starts of half as many pairs as the source has ``prompts``, pair by pair.

    split  of the task: its starts are tuples of starts, one of each side.

    A task without that split has no pairs: the source as it is.
    """

    source: OnPolicy
    split: str

    def provides(self, task: Any) -> set[str]:
        return self.source.provides(task)

    def __call__(self, state: Any) -> Batch:
        if self.split not in getattr(state.task, "splits", ()):
            return self.source(state)
        pairs = state.next_starts(max(1, self.source.prompts // 2), self.split)
        return self.source.of(state, [start for pair in pairs for start in pair])


@dataclass(frozen=True)
class Sides:
    """``pair``, ``side`` and ``similarity`` [N], as the data of a row's start says.

    A start that says nothing is alone: a pair of one side, 0, whose number is its prompt's, with similarity 1.
    """

    needs = ("prompt",)
    provides = ("pair", "side", "similarity")

    def __call__(self, state: Any, batch: Batch) -> Batch:
        data = [getattr(start, "data", {}) for start in batch.notes["start"]]
        prompts = batch["prompt"].tolist()
        pair = torch.tensor([said.get("pair", prompt) for said, prompt in zip(data, prompts, strict=True)], dtype=torch.int64)
        side = torch.tensor([said.get("side", 0) for said in data], dtype=torch.int64)
        similarity = torch.tensor([said.get("similarity", 1.0) for said in data], dtype=torch.float64)
        return batch.with_rows(
            **{name: value.to(batch.device) for name, value in zip(self.provides, (pair, side, similarity), strict=True)}
        )

"""A pool of prompts that is met again and again, the undecided ones more often."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.rollout.sources import OnPolicy
from quatrain.rollout.value_store import evidence, per_prompt, prior_strength, recall, remember

POOL = "pool"


def undecided(value: Tensor, floor: float) -> Tensor:
    """√(v(1 − v)) + floor: largest where half of the responses succeed.

    >>> undecided(torch.tensor([0.0, 0.5, 1.0]), 0.25).tolist()
    [0.25, 0.75, 0.25]
    """
    return (value * (1 - value)).clamp(min=0).sqrt() + floor


@dataclass(frozen=True)
class WholePool:
    """Every one of the task's first ``pool`` training starts once, ``source.group`` trajectories each; their keys are remembered."""

    source: OnPolicy
    pool: int

    def provides(self, task: Any) -> set[str]:
        return self.source.provides(task)

    def __call__(self, state: Any) -> Batch:
        batch = self.source.of(state, list(state.task.starts("train", 0, self.pool)))
        state.memory[POOL] = batch["prompt"][:: self.source.group].cpu()
        return batch


@dataclass(frozen=True)
class Prioritised:
    """``source.prompts`` starts of the pool, drawn without replacement by √(v(1 − v)) + floor, v the tracked value.

    A WholePool comes before it. floor: what a decided prompt weighs, above 0. least: ρ_min of the tracker.
    """

    source: OnPolicy
    pool: int
    floor: float = 0.05
    least: float = 0.875

    def __post_init__(self) -> None:
        if not self.floor > 0:
            raise QuatrainError("the least weight of a prompt is above 0", given=self.floor)

    def provides(self, task: Any) -> set[str]:
        return self.source.provides(task)

    def __call__(self, state: Any) -> Batch:
        alpha, beta = evidence(recall(state.memory), state.memory[POOL], prior_strength(self.least))
        weight, count = undecided(alpha / (alpha + beta), self.floor), self.source.prompts
        generator = torch.Generator().manual_seed(state.draw("prompts"))
        chosen = torch.multinomial(weight, count, replacement=count > self.pool, generator=generator)
        starts = list(state.task.starts("train", 0, self.pool))
        return self.source.of(state, [starts[place] for place in chosen.tolist()])


@dataclass(frozen=True)
class StartValues:
    """Begin a tracker for each prompt of a batch: α = N (s + ½)/(n + 1), β = N (n − s + ½)/(n + 1), s successes of n trajectories."""

    least: float = 0.875
    needs = ("prompt", "reward", "behaviour_logp")

    def __call__(self, state: Any, batch: Batch) -> Batch:
        rows, _, count, wins = per_prompt(batch)
        scale = prior_strength(self.least) / (count + 1)
        remember(state.memory, replace(rows, rows={**rows.rows, "alpha": scale * (wins + 0.5), "beta": scale * (count - wins + 0.5)}))
        return batch

"""A data set that a policy has left: the same trajectories in every round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quatrain.batch import Batch
from quatrain.knobs import Knob
from quatrain.protocols import Sampling
from quatrain.rollout.sources import SAMPLED
from quatrain.seeds import derive


@dataclass(frozen=True)
class Logged:
    """``trajectories`` episodes of a model that does not change, from as many starts: asked for again, the same ones come.

    Nothing is stored and nothing is charged but their number: the run's seed and the model's weights are the data set.
    """

    trajectories: int | Knob = Knob("trajectories", 500)
    temperature: float | Knob = Knob("temperature", 1.0)
    max_actions: int | Knob = Knob("max_actions", 64)
    model: str = "policy"

    def provides(self, task: Any) -> set[str]:
        return SAMPLED | set(task.provides)

    @torch.no_grad()
    def __call__(self, state: Any) -> Batch:
        sampling = Sampling(self.temperature, max_actions=self.max_actions)
        starts = state.task.starts("train", 0, self.trajectories)
        batch = state.task.rollout(state.models[self.model], starts, 1, sampling, derive(state.seed, "logged"))
        state.spent["logged"] = len(batch)
        reward = batch["reward"].double()
        state.measure({"reward": (reward.sum(), len(batch)), "length": (batch.lengths.double().sum(), len(batch))})
        return batch

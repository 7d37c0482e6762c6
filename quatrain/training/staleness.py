"""How far what was sampled is from the weights that learn from it: a meter among the edits."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from quatrain.batch import Batch
from quatrain.evaluation.off_policy.ratios import effective_size
from quatrain.training.columns import Score
from quatrain.training.state import State


@dataclass(frozen=True)
class Staleness:
    """Measures ``lag`` (updates since each action, its mean and maximum) and ``ess``, before the first update on the batch.

    ess = (Σ w)² / (N Σ w²) of the N actions' w = π_θ/μ: 1 for equal weights, the share of the actions that count as many.
    """

    score: Score = field(default_factory=lambda: Score("policy", name="trainer_logp"))
    needs = ("version", "behaviour_logp")
    provides = ("trainer_logp",)
    models = ("policy",)

    @torch.no_grad()
    def __call__(self, state: State, batch: Batch) -> Batch:
        batch = self.score(state, batch)
        lag = (state.models[self.score.model].version - batch["version"])[batch.mask].double()
        weight = (batch["trainer_logp"] - batch["behaviour_logp"])[batch.mask].double().exp()
        ess = effective_size(weight) / len(weight)
        state.measure({"lag": (lag.sum(), len(lag)), "lag/max": (lag.max(), 1.0), "ess": (ess, 1.0)})
        return batch

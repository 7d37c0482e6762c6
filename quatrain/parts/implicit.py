"""Implicit rewards: a model that was fitted to outcomes through its log-ratio to a reference has one for every action."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.batch import Batch


@dataclass(frozen=True)
class Implicit:
    """r_t = β log π_model(a_t|s_t)/π_reference(a_t|s_t), 0 where there is no action. [N, T]

    Summed over a trajectory it is the reward whose KL-regularised optimum the model is (Rafailov et al. 2023, eq. 5, but for a
    constant of the prompt).
    """

    beta: float = 0.05
    model: str = "prm"
    reference: str = "old"

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"{self.model}_logp", f"{self.reference}_logp")

    def __call__(self, batch: Batch) -> Tensor:
        above, below = (batch[name] for name in self.needs)
        return self.beta * torch.where(batch.mask, above - below, 0.0)


@dataclass(frozen=True)
class OutcomeLogistic:
    """β·(y − σ(s)), s = β Σ_t log π_θ/π_reference: the residual of a logistic regression of each outcome y in [0, 1]. [N]

    Yuan et al. 2024 ("Free process rewards without process labels"), the cross-entropy form, as in PRIME. Live: it reads the current
    policy on the whole trajectory, which no micro-batch cuts; the reference sits here, the term's own ratio is 1. Outcomes that are
    absent (NaN) give 0.
    """

    beta: float = 0.05
    reference: str = "old"
    of: str = "reward"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("current_logp", f"{self.reference}_logp", self.of)

    def __call__(self, batch: Batch) -> Tensor:
        log_ratio = torch.where(batch.mask, batch["current_logp"] - batch[f"{self.reference}_logp"], 0.0).sum(1)
        return self.beta * (batch[self.of].to(log_ratio.dtype) - torch.sigmoid(self.beta * log_ratio)).nan_to_num()

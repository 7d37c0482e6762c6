"""Edits that add columns to a collected batch: another policy's log-probabilities, a critic's values."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quatrain.batch import Batch
from quatrain.knobs import Knob
from quatrain.models.critics import value_columns
from quatrain.parts.likelihoods import LogProb
from quatrain.training.batching import scored
from quatrain.training.state import State


@dataclass(frozen=True)
class Score:
    """``{model}_logp`` [N, T] (or the given name): the log-probability of the batch's actions under that model, no gradient.

    role  the context it is scored in, where the batch has it; else the policy's. Empty: the model's own name.
    """

    model: str
    name: str = ""
    micro_tokens: int | Knob = Knob("micro_tokens", 16384)
    role: str = ""

    @property
    def provides(self) -> tuple[str, ...]:
        return (self.name or f"{self.model}_logp",)

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model,)

    @torch.no_grad()
    def __call__(self, state: State, batch: Batch) -> Batch:
        policy, role = state.models[self.model], self.role or self.model
        role = role if role in batch.contexts else "policy"
        scores = scored(
            batch, lambda part: policy.score(part, [LogProb()], role=role), self.micro_tokens, getattr(policy, "shares_prefixes", False)
        )
        state.spent["tokens/scored"] += int(batch.mask.sum())
        return batch.with_columns(**{self.provides[0]: scores[LogProb()]})


@dataclass(frozen=True)
class Values:
    """``value`` and ``next_value`` [N, T]: a critic's values before and after each action, no gradient."""

    model: str = "critic"
    micro_tokens: int | Knob = Knob("micro_tokens", 16384)
    provides = ("value", "next_value")

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model,)

    @torch.no_grad()
    def __call__(self, state: State, batch: Batch) -> Batch:
        critic = state.models[self.model]
        return batch.with_columns(**scored(batch, lambda part: value_columns(critic, part), self.micro_tokens))

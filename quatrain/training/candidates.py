"""Policies to be judged rather than trained, and what judges them: model specs and an edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.models.choice_values import make_choice_values
from quatrain.protocols import Distribution
from quatrain.training.batching import scored
from quatrain.training.state import State


@dataclass(frozen=True)
class Candidate:
    """A copy of a policy with the weights sharpness · w + noise · ε: a sharper, blunter or opposite relative of it.

    For tables of logits the sharpness is an inverse temperature. ε is standard normal noise of ``seed``.
    """

    of: str = "policy"
    sharpness: float = 1.0
    noise: float = 0.0
    seed: int = 0

    @torch.no_grad()
    def __call__(self, models: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        twin = models[self.of].clone()
        generator = torch.Generator().manual_seed(self.seed)
        for weight in twin.module.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.mul_(self.sharpness).add_(noise.to(weight), alpha=self.noise)
        return twin


@dataclass(frozen=True)
class ChoiceValues:
    """Untrained Q(s, ·) of ``heads`` policies, of the kind that fits the policy."""

    of: str = "policy"
    heads: int = 1
    seed: int = 0

    def __call__(self, models: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        return make_choice_values(models[self.of], self.heads, self.seed)


@dataclass(frozen=True)
class LogProbOf:
    """log π(a|s) of one given action, whatever was done."""

    action: int
    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, distribution: Distribution, action: Tensor, others: Mapping[str, Distribution]) -> Tensor:
        return distribution.log_prob(torch.full_like(action, self.action))


@dataclass(frozen=True)
class TargetProbabilities:
    """``target_probs`` [N, T, K, V]: what each of K models would do at every logged action, no gradient.

    For tasks with V counted actions; others are refused.
    """

    models: tuple[str, ...]
    micro_tokens: int | Knob = Knob("micro_tokens", 16384)
    provides = ("target_probs",)

    def check(self, task: Any) -> None:
        if choices(task) is None:
            raise QuatrainError(
                "this recipe judges policies that choose among a few actions", given=f"task={task.name}", fix="task=tables:rtb"
            )

    @torch.no_grad()
    def __call__(self, state: State, batch: Batch) -> Batch:
        statistics = [LogProbOf(action) for action in range(choices(state.task) or 0)]
        found = []
        for name in self.models:
            policy = state.models[name]
            scores = scored(batch, lambda part, policy=policy: policy.score(part, statistics), self.micro_tokens)
            found.append(torch.stack([scores[statistic] for statistic in statistics], -1).exp())
        return batch.with_columns(target_probs=torch.stack(found, 2))


def choices(task: Any) -> int | None:
    """V, how many actions a task's policies choose among; None where they cannot be counted."""
    found = getattr(task, "actions", None) or getattr(getattr(task, "action_space", None), "count", None)
    return found if isinstance(found, int) else None

"""Held-out measures for a task without a reward: how likely the policy finds demonstrations, and which side of a pair."""

from __future__ import annotations

from typing import Any

import torch

from quatrain.batch import Batch
from quatrain.parts.likelihoods import LogProb
from quatrain.protocols import Policy
from quatrain.training.batching import scored

MICRO_TOKENS = 16384


@torch.no_grad()
def likelihood_measures(policy: Policy, task: Any, count: int) -> dict[str, float]:
    """On the first ``count`` held-out items: ``heldout/nll``, nats per token of the demonstrations; or, where items are preference
    pairs, ``heldout/preferred``, the share of pairs whose chosen side is the likelier one."""
    size = task.size("heldout")
    starts = task.starts("heldout", 0, count if size is None else min(count, size))
    if any(start.solution is not None for start in starts):
        batch = task.demonstrations(policy, starts)
        return {"heldout/nll": -float(_sums(policy, batch).sum() / batch.mask.sum())}
    if any(start.rejected is not None for start in starts):
        sums = _sums(policy, task.pairs(policy, starts)).view(-1, 2)
        return {"heldout/preferred": float((sums[:, 0] > sums[:, 1]).double().mean())}
    return {}


def _sums(policy: Policy, batch: Batch) -> torch.Tensor:
    """[N] log-probability of each trajectory, float64."""
    return scored(batch, lambda part: policy.score(part, [LogProb()]), MICRO_TOKENS)[LogProb()].double().sum(1)

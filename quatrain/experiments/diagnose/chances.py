"""The distribution that is sampled from, written out plainly: temperature, top-k, top-p; and the probability of every outcome.

On purpose not the library's own sampler and scorer: the diagnosis holds those against this.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quatrain.experiments.diagnose.problems import Problem
from quatrain.protocols import Sampling


def allowed(logits: Tensor, sampling: Sampling) -> Tensor:
    """[…, V] bool: what can be sampled. top-p keeps the likeliest actions until their mass reaches it, of what top-k left."""
    with torch.no_grad():
        chance = (logits / sampling.temperature).softmax(-1)
        order = torch.argsort(chance, dim=-1, descending=True, stable=True)
        ranked = chance.gather(-1, order)
        keep = torch.ones_like(ranked, dtype=torch.bool)
        if sampling.top_k:
            keep &= torch.arange(ranked.shape[-1]) < sampling.top_k
            ranked = torch.where(keep, ranked, 0.0) / torch.where(keep, ranked, 0.0).sum(-1, keepdim=True)
        keep &= ranked.cumsum(-1) - ranked < sampling.top_p
        return torch.zeros_like(keep).scatter(-1, order, keep)


def sampled_logp(logits: Tensor, sampling: Sampling, support: Tensor | None = None) -> Tensor:
    """[…, V] log-probability of every action under the tempered, truncated, renormalised distribution; −inf outside of it."""
    inside = allowed(logits, sampling) if support is None else support
    return (logits / sampling.temperature).masked_fill(~inside, float("-inf")).log_softmax(-1)


def logits_of(problem: Problem, table: Tensor) -> Tensor:
    """[M, T, V] at every position of every outcome."""
    return table[problem.outcomes["state"]].sum(2)


def action_logp(problem: Problem, table: Tensor, sampling: Sampling, support: Tensor | None = None) -> Tensor:
    """[M, T] log-probability of the policy's own actions, 0 elsewhere. support [M, T, V]: another policy's, in place of its own."""
    logp = sampled_logp(logits_of(problem, table), sampling, support)
    chosen = logp.gather(-1, problem.outcomes.actions[..., None])[..., 0]
    return torch.where(problem.outcomes.mask, chosen, 0.0)


def chances(problem: Problem, table: Tensor, sampling: Sampling, where: Tensor | None = None) -> Tensor:
    """[M] probability of every outcome, questions equally likely: they sum to 1. Differentiable in the table.

    where  [M, T] bool: actions through whose choice the gradient goes; all of them by default.
    """
    logp = action_logp(problem, table, sampling)
    logp = logp if where is None else torch.where(where, logp, logp.detach())
    return logp.sum(1).exp() * problem.nature / problem.questions

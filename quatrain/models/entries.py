"""Divergences between categorical distributions, one vocabulary entry at a time: what each entry adds, [M, V], nats.

Arguments are log-probabilities [M, V]; −inf is an action that never happens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kl_entries(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p (log p − log q), where 0·log 0 = 0; infinite without gradient where q = 0 < p.

    >>> kl_entries(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()).sum().item()
    0.1438...
    """
    p, absent = log_p.exp(), torch.isneginf(log_q)
    gap = log_p.masked_fill(torch.isneginf(log_p), 0.0) - log_q.masked_fill(absent, 0.0)
    return (p * gap).masked_fill(absent & (p > 0), math.inf)


def jsd_entries(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """β q log(q/m) + (1 − β) p log(p/m) with m = (1 − β) p + β q, 0 ≤ β ≤ 1: the generalised Jensen–Shannon divergence.

    (Agarwal et al. 2024, eq. 1, q their teacher.) At β = 0 and 1, where it is 0, the divergence that it tends to when divided by β or
    1 − β: KL(q‖p) and KL(p‖q).
    """
    if beta == 0:
        return kl_entries(log_q, log_p)
    if beta == 1:
        return kl_entries(log_p, log_q)
    # Two impossible actions are given a finite value, since they have no weight and −inf has no slope.
    never = torch.isneginf(log_p) & torch.isneginf(log_q)
    log_m = torch.logaddexp(log_p.masked_fill(never, 0.0) + math.log(1 - beta), log_q.masked_fill(never, 0.0) + math.log(beta))
    return beta * kl_entries(log_q, log_m) + (1 - beta) * kl_entries(log_p, log_m)


def total(entries: Tensor, cap: float = math.inf) -> Tensor:
    """[M] sum over the vocabulary; with a cap, of at most ``cap`` from each entry: a KL, whose entries have signs, may then be negative.

    Infinite without gradient where an entry that is not capped is.
    """
    found = (entries if cap == math.inf else entries.clamp(max=cap)).sum(-1)
    return found.masked_fill(torch.isposinf(found), math.inf)

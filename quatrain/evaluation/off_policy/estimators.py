"""Estimators of J(π) = E_π Σ_t γ^t r_t from logged trajectories. Each answers contributions [N]; the estimate is their mean.

All arguments are [N, T]: ``ratio`` ρ_t = π/π_b of the logged action (1 where there is none), ``rewards`` and values 0 where there is none;
``q`` Q̂(s_t, a_t) and ``v`` V̂(s_t) = Σ_a π(a|s_t) Q̂(s_t, a). ``normalise``: weights divided by their mean at every t (self-normalised).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quatrain.evaluation.off_policy.ratios import before, cumulative, normalised


def discounts(rewards: Tensor, discount: float) -> Tensor:
    """[T] γ^t."""
    return discount ** torch.arange(rewards.shape[1], dtype=rewards.dtype, device=rewards.device)


def direct(v: Tensor) -> Tensor:
    """Direct method: V̂(s_0). As good as Q̂ is."""
    return v[:, 0]


def trajectory_wise(ratio: Tensor, rewards: Tensor, discount: float = 1.0, normalise: bool = False) -> Tensor:
    """TIS: w_{0:T−1} Σ_t γ^t r_t (Precup et al. 2000). Unbiased; its variance grows exponentially with T.

    >>> trajectory_wise(torch.tensor([[2.0, 0.5]]), torch.tensor([[1.0, 3.0]])).tolist()
    [4.0]
    """
    weight = cumulative(ratio)[:, -1:]
    return ((normalised(weight) if normalise else weight) * discounts(rewards, discount) * rewards).sum(1)


def per_decision(ratio: Tensor, rewards: Tensor, discount: float = 1.0, normalise: bool = False) -> Tensor:
    """PDIS: Σ_t γ^t w_{0:t} r_t (Precup et al. 2000): a reward is weighed by what came before it.

    >>> per_decision(torch.tensor([[2.0, 0.5]]), torch.tensor([[1.0, 3.0]])).tolist()
    [5.0]
    """
    weight = cumulative(ratio)
    return weighted(normalised(weight) if normalise else weight, rewards, discount)


def doubly_robust(ratio: Tensor, rewards: Tensor, q: Tensor, v: Tensor, discount: float = 1.0, normalise: bool = False) -> Tensor:
    """DR: Σ_t γ^t [w_{0:t} (r_t − Q̂(s_t,a_t)) + w_{0:t−1} V̂(s_t)] (Jiang & Li 2016; Thomas & Brunskill 2016, self-normalised).

    Unbiased whatever Q̂ is, where the ratios are exact. Q̂ = 0 → PDIS; Q̂ = Q^π → its variance is that of the environment alone.
    """
    weight = cumulative(ratio)
    return corrected(normalised(weight) if normalise else weight, rewards, q, v, discount)


def weighted(weight: Tensor, rewards: Tensor, discount: float = 1.0, normalise: bool = False) -> Tensor:
    """Σ_t γ^t w_t r_t for weights of any kind: state–action marginal ratios (SAM-IS), state ratios times ρ_t (SM-IS), a spectrum."""
    return ((normalised(weight) if normalise else weight) * discounts(rewards, discount) * rewards).sum(1)


def corrected(weight: Tensor, rewards: Tensor, q: Tensor, v: Tensor, discount: float = 1.0, normalise: bool = False) -> Tensor:
    """Σ_t γ^t [w_t (r_t − Q̂(s_t,a_t)) + w_{t−1} V̂(s_t)], w_{−1} = 1, for weights of any kind.

    Marginal state–action ratios, values and ratios fitted on other trajectories (``folds``) → double reinforcement learning
    (Kallus & Uehara 2020, arXiv:1908.08526, eq. 3), unbiased where either of the two is right.
    """
    weight = normalised(weight) if normalise else weight
    return (discounts(rewards, discount) * (weight * (rewards - q) + before(weight) * v)).sum(1)


def marginal_corrected(weight: Tensor, rewards: Tensor, q: Tensor, v: Tensor, discount: float = 1.0, normalise: bool = False) -> Tensor:
    """V̂(s_0) + Σ_t γ^t w_t [r_t + γ V̂(s_{t+1}) − Q̂(s_t,a_t)] (SM-DR, SAM-DR; Kallus & Uehara 2020, arXiv:1909.05850, eq. 11).

    The value after the last action is 0. It differs from ``corrected`` in whose weight a value has: here V̂(s_{t+1}) has that of the
    transition that led to it, so that weights need not average 1. For the weights w_{0:t} the two are the same.
    """
    weight = normalised(weight) if normalise else weight
    following = torch.cat([v[:, 1:], torch.zeros_like(v[:, :1])], 1)
    return v[:, 0] + (discounts(rewards, discount) * weight * (rewards + discount * following - q)).sum(1)


def folds(count: int, parts: int, seed: int = 0) -> Tensor:
    """[N] the part, from 0, of every trajectory: what is estimated on a part is fitted on the others (cross-fitting)."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    found = torch.empty(count, dtype=torch.long)
    found[order] = torch.arange(count) % parts
    return found

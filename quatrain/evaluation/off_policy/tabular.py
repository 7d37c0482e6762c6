"""Values and marginal ratios of logged trajectories over numbered states: counts, then backward or forward passes over them.

The same solutions as ``linear`` with one-hot features, by counting: for many rows far faster. Axes: N trajectories, T actions, S rows
(states, or steps and states), V actions, K policies.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Counts(NamedTuple):
    """Weighted counts: visits [S, V], onward [S, V, S] (transitions that led on), rewards [S, V], starts [S]; all divided by N."""

    visits: Tensor
    onward: Tensor
    rewards: Tensor
    starts: Tensor


def count(
    states: Tensor, actions: Tensor, rewards: Tensor, ended: Tensor, mask: Tensor, shape: tuple[int, int], discount: float = 1.0
) -> Counts:
    """What was seen, transition t weighted by γ^t.

    states   [N, T+1] row numbers; actions [N, T]; rewards [N, T]; ended [N, T] bool: no value follows. shape (S, V).
    """
    rows, choices = shape
    n, length = actions.shape
    weight = (discount ** torch.arange(length, dtype=torch.float64)).expand(n, length)[mask] / n
    pair = (states[:, :-1] * choices + actions)[mask]
    visits = torch.zeros(rows * choices, dtype=torch.float64).index_add_(0, pair, weight)
    paid = torch.zeros_like(visits).index_add_(0, pair, weight * rewards[mask].double())
    goes = ~ended[mask]
    onward = torch.zeros(rows * choices * rows, dtype=torch.float64)
    onward.index_add_(0, (pair * rows + states[:, 1:][mask])[goes], weight[goes])
    starts = torch.bincount(states[:, 0], minlength=rows).double() / n
    return Counts(visits.view(shape), onward.view(rows, choices, rows), paid.view(shape), starts)


def tabular_values(counts: Counts, policy: Tensor, discount: float = 1.0, sweeps: int | None = None) -> Tensor:
    """Q̂ [K, S, V] of policies [K, S, V] by fitted Q evaluation on counts: Q ← r̄ + γ P̂ V, from 0, until nothing moves.

    sweeps   the most; None: 10,000. Where episodes are cut by a horizon and rows tell steps apart, T sweeps are exact.
    Pairs that were never seen have the value 0.
    """
    seen = counts.visits.clamp(min=torch.finfo(torch.float64).tiny)
    reward, onward = counts.rewards / seen, (counts.onward / seen[..., None]).flatten(0, 1)
    q = torch.zeros_like(policy)
    for _ in range(10_000 if sweeps is None else sweeps):
        v = (policy * q).sum(-1)
        new = reward + discount * (v @ onward.T).view(q.shape)
        moved, q = float((new - q).abs().max()), new
        if moved <= 1e-12 * (1 + float(q.abs().max())):
            break
    return q


def tabular_occupancy(counts: Counts, policy: Tensor, discount: float = 1.0, sweeps: int = 10_000) -> Tensor:
    """d̂^π [K, S, V] in the empirical process: Σ_t γ^t Pr(s_t, a_t), by forward passes from the logged starts.

    A pair that was never seen leads nowhere: its mass is lost, and the estimates that use it are too small.
    """
    seen = counts.visits.clamp(min=torch.finfo(torch.float64).tiny)
    onward = discount * (counts.onward / seen[..., None])
    flow = counts.starts.expand(policy.shape[:-1])
    total = torch.zeros_like(flow)
    for _ in range(sweeps):
        total = total + flow
        flow = torch.einsum("ks,ksv,svz->kz", flow, policy, onward)
        if float(flow.sum(-1).max()) <= 1e-12:
            break
    return total[..., None] * policy


def marginal_ratios(counts: Counts, policy: Tensor, discount: float = 1.0) -> tuple[Tensor, Tensor]:
    """(state–action ratio d̂^π/d̂^b [K, S, V], state ratio [K, S]), zero where nothing was seen.

    d̂^b is the logged frequency: Xie et al. 2019 (arXiv:1906.03393) where rows tell steps apart; else minimax weight learning with
    one-hot functions (Uehara et al. 2020).
    """
    mass = tabular_occupancy(counts, policy, discount)
    here = counts.visits.sum(-1)
    pairs = torch.where(counts.visits > 0, mass / counts.visits.clamp(min=1e-300), 0.0)
    return pairs, torch.where(here > 0, mass.sum(-1) / here.clamp(min=1e-300), 0.0)

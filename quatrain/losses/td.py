"""Temporal differences: critics fitted to what their slow copies say of the next state."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_double_q(rewards: Tensor, terminated: Tensor, next_q: Tensor, discount: float = 0.99) -> Tensor:
    """y = r + γ·1[not terminated]·min_k Q_k(s', a'), [M] (Fujimoto et al. 2018, TD3, eq. 10).

    rewards [M], terminated [M] bool (a truncated episode goes on), next_q [K, M]. K = 1 is the plain target.

    >>> clipped_double_q(torch.tensor([1.0, 1.0]), torch.tensor([False, True]), torch.tensor([[2.0, 2.0], [4.0, 1.0]]), 0.5).tolist()
    [2.0, 1.0]
    """
    return rewards + discount * torch.where(terminated, 0.0, next_q.amin(0))


def smoothed(actions: Tensor, noise: Tensor, low: Tensor, high: Tensor, scale: float = 0.2, limit: float = 0.5) -> Tensor:
    """The target's action with clipped noise, within its box (TD3, eq. 14): clip(a + half·clip(scale·ε, ±limit), low, high).

    actions and noise ε (standard normal) [M, A]; low, high [A]. ``scale`` and ``limit`` are fractions of half the box's width.
    """
    return (actions + (high - low) / 2 * (scale * noise).clamp(-limit, limit)).clamp(low, high)

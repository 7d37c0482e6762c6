"""A response in two parts: its first action, which chooses how to answer, and the answer."""

from __future__ import annotations

from torch import Tensor

from quatrain.batch import Batch


def first_action(batch: Batch) -> Tensor:
    """[N, T] bool: each trajectory's first action.

    >>> import torch
    >>> first_action(Batch(torch.tensor([[False, True, True]]), torch.zeros(1, 3))).tolist()
    [[False, True, False]]
    """
    return batch.mask & (batch.mask.long().cumsum(1) == 1)


def after_first(batch: Batch) -> Tensor:
    """[N, T] bool: every action but the first."""
    return batch.mask & ~first_action(batch)


def trajectory_mean(batch: Batch, where: Tensor) -> Tensor:
    """1/(N·|o_i|) over *all* N trajectories that act at all, also those of which nothing is selected.

    → ``sequence_mean`` where something of every trajectory is selected.
    """
    w = where.double()
    return w / w.sum(1, keepdim=True).clamp(min=1) / batch.mask.any(1).sum().clamp(min=1)

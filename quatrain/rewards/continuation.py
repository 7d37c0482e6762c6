"""How well a continuation goes on as the text did: self-supervised rewards. Axes: R continuations, K true tokens, D hidden.

A continuation that has ended early (W < K, or masked) gets nothing for what it does not have.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def agreement(tokens: Tensor, mask: Tensor, truth: Tensor) -> Tensor:
    """[R] share of the true tokens [R, K] that stand at the same place in ``tokens`` [R, W ≤ K]: in [0, 1].

    >>> agreement(torch.tensor([[7, 8, 9]]), torch.ones(1, 3, dtype=torch.bool), torch.tensor([[7, 0, 9, 1]])).tolist()
    [0.5]
    """
    return ((tokens == truth[:, : tokens.shape[1]]) & mask).sum(1) / truth.shape[1]


def resemblance(states: Tensor, mask: Tensor, truth: Tensor) -> Tensor:
    """[R] mean over the K places of the cosine between hidden states [R, W, D] and true ones [R, K, D]: in [−1, 1]; 1 if all are equal."""
    cosine = cosine_similarity(states, truth[:, : states.shape[1]], dim=-1)
    return torch.where(mask, cosine, 0.0).sum(1) / truth.shape[1]

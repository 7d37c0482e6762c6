"""The delta rule of fast weights: a matrix that is written at every token, by one step of regression from key to value.

    W_t = W_{t−1} − β_t (W_{t−1} k_t − v_t) k_tᵀ,   o_t = W_t q_t      (Schlag et al. 2021; Yang et al. 2024, DeltaNet)

Axes: B rows, H heads, L tokens, K features of keys and queries, V of values.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64  # tokens solved for together: a step per token costs its overhead, one triangle for all costs L²


def write(weights: Tensor, key: Tensor, value: Tensor, rate: Tensor) -> Tensor:
    """[…, V, K] fast weights after one token: one gradient step of size ``rate`` […] on ½‖W k − v‖².

    key […, K], value […, V].

    >>> write(torch.zeros(1, 2), torch.tensor([0.6, 0.8]), torch.tensor([5.0]), torch.tensor(1.0))
    tensor([[3., 4.]])
    """
    error = (weights @ key[..., None])[..., 0] - value
    return weights - rate[..., None, None] * error[..., None] * key[..., None, :]


def read_all(query: Tensor, key: Tensor, value: Tensor, rate: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """([B, H, L, V] what each token reads after its own writing, [B, H, V, K] the weights after the last).

    query, key [B, H, L, K], value [B, H, L, V], rate [B, H, L], weights [B, H, V, K] before the first.

    All tokens of a chunk at once. W_t = W_0 + Σ_{s≤t} u_s k_sᵀ, and the writings u solve a unit triangular system:
    u_t + β_t Σ_{s<t} (k_s·k_t) u_s = β_t (v_t − W_0 k_t). A token of rate 0 writes nothing.
    """
    found = []
    for start in range(0, query.shape[2], CHUNK):
        q, k, v, b = (part[:, :, start : start + CHUNK] for part in (query, key, value, rate))
        before = b[..., None] * (k @ k.mT).tril(-1)  # its diagonal is not read: it is 1
        wanted = b[..., None] * (v - k @ weights.mT)
        writing = torch.linalg.solve_triangular(before, wanted, upper=False, unitriangular=True)
        found.append(q @ weights.mT + (q @ k.mT).tril() @ writing)
        weights = weights + writing.mT @ k
    return torch.cat(found, 2), weights

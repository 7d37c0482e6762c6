"""What a policy is worth in a table, exactly: values, occupancies, the best policy. Backward and forward passes, or one linear solve.

Axes: … leading, H steps (absent where episodes do not end), S states, V actions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quatrain.environments.tables.mdp import TableMDP


class Values(NamedTuple):
    """q […, H, S, V] and v […, H, S]; value […] = J(π), from the start distribution."""

    q: Tensor
    v: Tensor
    value: Tensor


class Occupancies(NamedTuple):
    """γ^t Pr(s_t = s) […, H, S] and γ^t Pr(s_t = s, a_t = a) […, H, S, V]; where episodes do not end, their sums over t."""

    state: Tensor
    state_action: Tensor


def values(mdp: TableMDP, probabilities: Tensor) -> Values:
    """Q^π(s,a) = r(s,a) + γ Σ_s' P(s'|s,a) V^π(s'),  V^π(s) = Σ_a π(a|s) Q^π(s,a),  J = Σ_s μ(s) V^π(s).

    probabilities  as for ``TableMDP.policy``.
    """
    policy, reward = mdp.policy(probabilities), mdp.mean_reward
    if mdp.horizon is None:
        mean = (policy * reward).sum(-1)
        matrix = torch.eye(mdp.states, dtype=mean.dtype) - mdp.discount * _kernel(mdp, policy)
        v = torch.linalg.solve(matrix, mean.unsqueeze(-1)).squeeze(-1)
        return Values(_backup(mdp, reward, v), v, (mdp.start * v).sum(-1))
    q, v = [], torch.zeros(mdp.states, dtype=reward.dtype)
    for t in reversed(range(mdp.horizon)):
        q.append(_backup(mdp, reward, v))
        v = (policy[..., t, :, :] * q[-1]).sum(-1)
    stacked = torch.stack(torch.broadcast_tensors(*q[::-1]), -3)
    every = (policy * stacked).sum(-1)
    return Values(stacked, every, (mdp.start * every[..., 0, :]).sum(-1))


def occupancies(mdp: TableMDP, probabilities: Tensor) -> Occupancies:
    """Where a policy is, and what it does there: Σ (state_action · r) = J.

    probabilities  as for ``TableMDP.policy``.
    """
    policy = mdp.policy(probabilities)
    if mdp.horizon is None:
        matrix = torch.eye(mdp.states, dtype=policy.dtype) - mdp.discount * _kernel(mdp, policy).transpose(-1, -2)
        start = mdp.start.expand(*matrix.shape[:-1]).unsqueeze(-1)
        state = torch.linalg.solve(matrix, start).squeeze(-1)
        return Occupancies(state, state.unsqueeze(-1) * policy)
    state = [mdp.start]
    for t in range(mdp.horizon - 1):
        onward = (state[-1].unsqueeze(-2) @ _kernel(mdp, policy[..., t, :, :])).squeeze(-2)
        state.append(mdp.discount * onward)
    found = torch.stack(torch.broadcast_tensors(*state), -2)
    return Occupancies(found, found.unsqueeze(-1) * policy)


def optimal(mdp: TableMDP, tolerance: float = 1e-10) -> Values:
    """Q*, V* and J* by backward induction, or by value iteration to ``tolerance`` where episodes do not end."""
    reward = mdp.mean_reward
    v = torch.zeros(*reward.shape[:-1], dtype=reward.dtype)
    if mdp.horizon is None:
        gap = float("inf")
        while gap > tolerance * (1 - mdp.discount):
            q = _backup(mdp, reward, v)
            gap, v = float((q.amax(-1) - v).abs().max()), q.amax(-1)
        return Values(q, v, (mdp.start * v).sum(-1))
    q = []
    for _ in range(mdp.horizon):
        q.append(_backup(mdp, reward, v))
        v = q[-1].amax(-1)
    stacked = torch.stack(q[::-1], -3)
    return Values(stacked, stacked.amax(-1), (mdp.start * v).sum(-1))


def _backup(mdp: TableMDP, reward: Tensor, v: Tensor) -> Tensor:
    """[…, S, V] r + γ P v."""
    return reward + mdp.discount * (mdp.transition * v.unsqueeze(-2).unsqueeze(-2)).sum(-1)


def _kernel(mdp: TableMDP, policy: Tensor) -> Tensor:
    """[…, S, S] Σ_a π(a|s) P(s'|s,a)."""
    return (policy.unsqueeze(-1) * mdp.transition).sum(-2)

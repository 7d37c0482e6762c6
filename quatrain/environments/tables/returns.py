"""The distribution of the undiscounted return, exactly: a forward pass over (state, return so far), or all trajectories written down.

Axes: H steps, S states, V actions, R returns, M trajectories.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quatrain.environments.tables.mdp import TableMDP
from quatrain.errors import QuatrainError

MOST = 200_000  # trajectories that are written down


class Returns(NamedTuple):
    """support [R], ascending and evenly spaced; chance […, R]."""

    support: Tensor
    chance: Tensor


class Trajectories(NamedTuple):
    """states [M, H+1], actions [M, H], rewards [M, H]; nature [M], the chance of what the policy does not choose."""

    states: Tensor
    actions: Tensor
    rewards: Tensor
    nature: Tensor

    def chance(self, mdp: TableMDP, probabilities: Tensor) -> Tensor:
        """[M] the chance of each under a policy (as for ``TableMDP.policy``): they sum to 1."""
        steps = torch.arange(self.actions.shape[1])
        return self.nature * mdp.policy(probabilities)[steps, self.states[:, :-1], self.actions].prod(1)


def return_distribution(mdp: TableMDP, probabilities: Tensor) -> Returns:
    """Pr(Σ_t r_t = g) under a policy (as for ``TableMDP.policy``), […, R].

    Raises QuatrainError for a table without ``unit``, without a horizon, or with a discount below 1.
    """
    if mdp.unit is None or mdp.horizon is None or mdp.discount != 1:
        told = f"unit={mdp.unit}, horizon={mdp.horizon}, discount={mdp.discount}"
        raise QuatrainError("exact return distributions need a lattice of rewards", given=told, expected="a unit, a horizon, discount=1")
    policy, whole = mdp.policy(probabilities), (mdp.reward / mdp.unit).round().long()
    low, high = mdp.horizon * min(0, int(whole.min())), mdp.horizon * max(0, int(whole.max()))
    lead = torch.broadcast_shapes(policy.shape[:-3], mdp.transition.shape[:-3], mdp.start.shape[:-1])
    mass = torch.zeros(*lead, mdp.states, high - low + 1, dtype=torch.float64)
    mass[..., -low] = mdp.start
    for t in range(mdp.horizon):
        after = torch.zeros_like(mass)
        for step in whole.unique().tolist():
            paid = torch.where(whole == step, mdp.transition, 0.0)
            kernel = (policy[..., t, :, :].unsqueeze(-1) * paid).sum(-2)
            # What would be rolled over an end has no mass: the ends are H times the extreme rewards.
            after += (kernel.transpose(-1, -2) @ mass).roll(step, -1)
        mass = after
    return Returns(torch.arange(low, high + 1) * mdp.unit, mass.sum(-2))


def trajectories(mdp: TableMDP) -> Trajectories:
    """All trajectories of an episode that nature allows. Raises QuatrainError for more than 200,000 of them, or no horizon."""
    if mdp.horizon is None or mdp.transition.ndim != 3:
        raise QuatrainError("trajectories are written down for one table with a horizon", given=f"horizon={mdp.horizon}")
    first = mdp.start.nonzero()
    states, nature = first, mdp.start[first[:, 0]]
    actions, rewards = torch.zeros(len(first), 0, dtype=torch.long), torch.zeros(len(first), 0, dtype=torch.float64)
    for _ in range(mdp.horizon):
        reached = mdp.transition[states[:, -1]]  # [M, V, S]
        row, action, then = (reached > 0).nonzero(as_tuple=True)
        if len(row) > MOST:
            raise QuatrainError("too many trajectories to write down", given=f"more than {MOST:,}", fix="a shorter horizon")
        rewards = torch.cat([rewards[row], mdp.reward[states[row, -1], action, then][:, None]], 1)
        nature = nature[row] * reached[row, action, then]
        states, actions = torch.cat([states[row], then[:, None]], 1), torch.cat([actions[row], action[:, None]], 1)
    return Trajectories(states, actions, rewards, nature)

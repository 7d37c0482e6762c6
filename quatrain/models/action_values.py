"""Q(s, a): how good actions are, by several networks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.models.ensembles import Ensemble
from quatrain.models.networks import Box, NetworkPolicy, observations


class ActionValues:
    """K estimates Q_k(s, a) of continuous actions, relu networks over the observation and the action as a fraction of its box.

    >>> critic = ActionValues(3, Box((-2.0,), (2.0,)), hidden=(8,))
    >>> critic.q(torch.zeros(5, 3), torch.zeros(5, 1)).shape
    torch.Size([2, 5])
    """

    def __init__(self, observation_size: int, box: Box, hidden: Sequence[int] = (256, 256), members: int = 2, seed: int = 0):
        self.observation_size, self.box = observation_size, box
        sizes = (observation_size + box.outputs, *hidden, 1)
        self.module: nn.Module = Ensemble(members, sizes, torch.Generator().manual_seed(seed))
        self.version = 0

    def q(self, seen: Tensor, actions: Tensor, members: int | None = None, frozen: bool = False) -> Tensor:
        """[K, M] at observations [M, D] and actions [M, A]; of the first ``members``; ``frozen``: its weights are constants."""
        return self.module(torch.cat([seen, self.box.unit(actions)], 1), members, frozen)[..., 0]

    def distributions(self, batch: Batch, role: str = "policy", restricted: bool = True) -> AlongQ:
        """Q_1 at the M positions where the batch acted, for a statistic that moves the action."""
        return AlongQ(self, observations(batch, role, self.observation_size)[:, :-1][batch.mask])

    def clone(self) -> ActionValues:
        """A frozen copy with its own weights."""
        twin = copy.deepcopy(self)
        twin.module.requires_grad_(False)
        return twin


@dataclass(frozen=True)
class AlongQ:
    """Q_1(s, ·) at M states: what a likelihood along the critic reads."""

    critic: ActionValues
    seen: Tensor

    def value(self, actions: Tensor) -> Tensor:
        """[M] at actions [M, A]; differentiable in them, not in the critic's weights."""
        return self.critic.q(self.seen, actions, 1, frozen=True)[0]


def twin_critics(policy: NetworkPolicy) -> ActionValues:
    """Two untrained estimates that fit a policy with actions in a box; as wide as it is. QuatrainError for other actions."""
    if not isinstance(policy.action_space, Box):
        raise QuatrainError("these critics judge actions in a box", given=policy.action_space)
    made = ActionValues(policy.observation_size, policy.action_space.executed, policy.hidden, 2, policy.seed + 1)
    made.module.to(policy.device)
    return made

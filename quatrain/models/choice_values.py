"""Q(s, ·) over V counted actions, of several policies at once: what a critic says of every choice."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.models.networks import Discrete, NetworkPolicy, mlp, observations
from quatrain.models.tables import TableChoiceValues, TablePolicy


class MLPChoiceValues:
    """Q(s, ·) of K policies over V actions by one MLP with K·V outputs.

    >>> model = MLPChoiceValues(4, actions=2, heads=3, hidden=(8,))
    >>> batch = Batch(torch.ones(2, 3).bool(), torch.zeros(2, 3), contexts={"policy": {"observations": torch.zeros(2, 4, 4)}})
    >>> tuple(model.values(batch).shape)
    (2, 4, 3, 2)
    """

    def __init__(self, observation_size: int, actions: int, heads: int = 1, hidden: Sequence[int] = (64, 64), seed: int = 0):
        self.observation_size, self.shape = observation_size, (heads, actions)
        self.module: nn.Module = mlp((observation_size, *hidden, heads * actions), 1.0, torch.Generator().manual_seed(seed))
        self.version = 0

    def values(self, batch: Batch, role: str = "policy") -> Tensor:
        """[N, T+1, K, V]; meaningless at observations beyond a row's end."""
        seen = observations(batch, role, self.observation_size)
        return self.module(seen.to(next(self.module.parameters()))).unflatten(-1, self.shape)

    def clone(self) -> MLPChoiceValues:
        return copy.deepcopy(self)


@singledispatch
def make_choice_values(policy: Any, heads: int = 1, seed: int = 0) -> Any:
    """Untrained values of ``heads`` policies of that kind. Raises QuatrainError where actions cannot be counted."""
    raise QuatrainError(
        "values of every choice are known for policies with few actions",
        given=type(policy).__name__,
        expected="a TablePolicy or NetworkPolicy",
    )


@make_choice_values.register
def _(policy: TablePolicy, heads: int = 1, seed: int = 0) -> TableChoiceValues:
    return TableChoiceValues(torch.zeros(heads, *policy.table.shape))


@make_choice_values.register
def _(policy: NetworkPolicy, heads: int = 1, seed: int = 0) -> MLPChoiceValues:
    if not isinstance(policy.action_space, Discrete):
        raise QuatrainError("values of every choice need a number of actions", given=policy.action_space, expected="Discrete(count)")
    return MLPChoiceValues(policy.observation_size, policy.action_space.count, heads, policy.hidden, seed)

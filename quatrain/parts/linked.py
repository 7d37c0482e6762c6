"""Linked trajectories: a planner's (``role`` 0) and those of the workers that it called. They share the row ``episode``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.needs import needs, needs_of


@dataclass(frozen=True)
class FromPlanner:
    """Another advantage [N], computed on the planners' trajectories alone; a worker's has that of the planner it worked for.

    So a planner that called five workers counts once in its group's statistics. → ``of`` where nobody calls anybody. Every episode
    has one planner: raises QuatrainError where a worker's is not in the batch.
    """

    of: Callable[[Batch], Tensor]

    @property
    def needs(self) -> tuple[str, ...]:
        return ("role", "episode", *needs_of(self.of))

    def __call__(self, batch: Batch) -> Tensor:
        planner = batch["role"] == 0
        own, keys = self.of(batch.take(planner)), batch["episode"][planner]
        order = torch.argsort(keys)
        place = torch.searchsorted(keys[order], batch["episode"]).clamp(max=max(len(keys) - 1, 0))
        if not len(keys) or not torch.equal(keys[order][place], batch["episode"]):
            raise QuatrainError("a worker's trajectory is without its planner's", fix="keep the rows of an episode together")
        return own[order][place]


@needs("role")
def planners(batch: Batch) -> Tensor:
    """[N, T] bool: the actions of those whom the user asked.

    >>> batch = Batch(torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1), rows={"role": torch.tensor([0, 1])})
    >>> planners(batch).tolist()
    [[True], [False]]
    """
    return (batch["role"] == 0)[:, None].expand(batch.shape)


@needs("role")
def planner_mean(batch: Batch, where: Tensor) -> Tensor:
    """1/(P·|o_i|): the sum over all trajectories of their own means, divided by the number P of planners' trajectories that act.

    → ``sequence_mean`` where nobody calls anybody.
    """
    w = where.double()
    count = (batch.mask.any(1) & (batch["role"] == 0)).sum().clamp(min=1)
    return w / w.sum(1, keepdim=True).clamp(min=1) / count

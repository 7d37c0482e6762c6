"""A critic that knows: the exact value of every history of an enumerated problem. In float64.

Axes: N trajectories, T actions.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.models.tables import Table


class NodeCritic:
    """The exact value of every history: a table over the batch's column ``node`` [N, T]; after the last action it is 0."""

    def __init__(self, values: Tensor):
        self.module, self.version = Table(values), 0

    def values(self, batch: Batch, role: str = "policy") -> Tensor:
        """[N, T+1]."""
        value = torch.where(batch.present, self.module.values[batch["node"]], 0.0)
        return torch.cat([value, value.new_zeros(len(batch), 1)], 1)

    def clone(self) -> NodeCritic:
        return copy.deepcopy(self)

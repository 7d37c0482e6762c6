"""Trajectories that share beginnings: a batch of leaves, every action marked with the ``node`` of the tree that it belongs to.

Axes: N leaves, T actions, D levels of the deepest leaf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index, group_sum
from quatrain.errors import QuatrainError


def lineage(batch: Batch, of: str = "node") -> Tensor:
    """[N, D] the nodes of each leaf from the root down, −1 below its last one.

    A node is a stretch of actions [N, T] of equal key; leaves that share a key share all that comes before it too.

    >>> mask = torch.ones(2, 4, dtype=torch.bool)
    >>> lineage(Batch(mask, mask.long(), {"node": torch.tensor([[7, 7, 8, 9], [7, 7, 5, 5]])})).tolist()
    [[7, 8, 9], [7, 5, -1]]
    """
    node, mask = batch[of], batch.mask
    # The last action before each position, so that what lies between two actions does not part a node.
    place = torch.where(mask, torch.arange(mask.shape[1], device=batch.device), -1).cummax(1).values
    before = torch.cat([place.new_full((len(batch), 1), -1), place[:, :-1]], 1)
    begins = mask & ((before < 0) | (node.gather(1, before.clamp_min(0)) != node))
    level = begins.long().cumsum(1) - 1
    path = node.new_full((len(batch), max(1, int(begins.sum(1).max()))), -1)
    rows, steps = begins.nonzero(as_tuple=True)
    path[rows, level[rows, steps]] = node[rows, steps]
    return path


def sampled_once(batch: Batch, of: str = "node") -> Tensor:
    """[N, T] bool: the actions, those that several leaves share in the first of them alone. Their number is what sampling cost."""
    rows, steps = batch.mask.nonzero(as_tuple=True)
    _, key = torch.unique(torch.stack([batch[of][rows, steps], steps]), dim=1, return_inverse=True)
    order = torch.arange(len(rows), device=batch.device)
    first = torch.full_like(order, len(rows)).scatter_reduce(0, key, order, "amin")
    found = torch.zeros_like(batch.mask)
    found[rows, steps] = first[key] == order
    return found


@dataclass(frozen=True)
class SubtreeRelative:
    """A_i = Σ_k w_k (R_i − mean of the leaves below i's node at level k): Li et al. 2025 (TreePO), §2.4.

    Level 0 is the whole group, and always counts; below it a level counts where the leaf is not alone in it.

    weight  the levels' weights, which add up to 1: ``average``: equal ones; ``size``: in proportion to the leaves of the level's node.
    drop    below the root, leave out nodes whose leaves all have the same reward.

    The differences of a level add up to 0 below each of its nodes: what the node's leaves share gets nothing from it, so that a deep
    level credits late actions. A node that does not branch counts once more for every segment that it lasts. Leaves whose value is
    NaN (absent) take no part, and get NaN. → ``GroupRelative(scale="none")`` where trees part at the root only.
    """

    weight: Literal["average", "size"] = "average"
    drop: bool = False
    by: str = "prompt"
    of: str = "reward"

    def __post_init__(self) -> None:
        if self.weight not in ("average", "size"):
            raise QuatrainError("unknown weight of a tree's levels", given=self.weight, expected="average or size")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by, self.of, "node")

    def __call__(self, batch: Batch) -> Tensor:
        value = batch[self.of].double()
        root, _ = group_index(batch, self.by)
        total, weights = torch.zeros_like(value), torch.zeros_like(value)
        for level, key in enumerate([root, *lineage(batch).unbind(1)]):
            here = (key >= 0) & ~value.isnan() if level else ~value.isnan()
            _, index = torch.unique(key, return_inverse=True)
            count = int(index.max()) + 1
            size = group_sum(here.double(), index, count)[index]
            centred = value - (group_sum(torch.where(here, value, 0.0), index, count)[index] / size.clamp(min=1))
            counts = here & (size > 1) if level else here
            if self.drop and level:
                counts &= group_sum(torch.where(here, centred.abs(), 0.0), index, count)[index] > 1e-9
            weight = torch.where(counts, size if self.weight == "size" else 1.0, 0.0)
            total, weights = total + torch.where(counts, weight * centred, 0.0), weights + weight
        return torch.where(value.isnan(), value, total / weights.clamp(min=1))

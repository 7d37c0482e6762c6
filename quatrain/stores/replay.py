"""A replay store: the newest rows that were put there, in tensors allocated once; samples of it are addressed by seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError


@dataclass(frozen=True)
class Replay:
    """A recipe's word for a replay store: it makes one. ``capacity``: rows kept, the newest; at least 1."""

    capacity: int = 1_000_000

    def __call__(self) -> ReplayStore:
        return ReplayStore(self.capacity)


class ReplayStore:
    """The newest ``capacity`` rows, as a ring. A transition is a row of one action; rows of whole trajectories do as well.

    What is kept of a row is its tensors; notes are dropped. Rows of different widths are padded on the right as in ``Batch.cat``.

    >>> store = ReplayStore(capacity=3)
    >>> for first in (0.0, 2.0):
    ...     store.add(Batch(torch.ones(2, 1, dtype=torch.bool), torch.tensor([[first], [first + 1]])))
    >>> len(store), store.rows().actions.flatten().tolist()  # the fourth took the place of the first
    (3, [3.0, 1.0, 2.0])
    """

    def __init__(self, capacity: int):
        if capacity < 1:
            raise QuatrainError("a store holds a row at least", given=f"capacity={capacity}")
        self.capacity, self.position, self.size = capacity, 0, 0
        self._ring: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return self.size

    def add(self, batch: Batch) -> None:
        """Put all rows, in order, in place of the oldest; of more than ``capacity`` the last."""
        new = leaves(batch)
        if len(batch) == 0:
            return
        if {name: value.shape[1:] for name, value in new.items()} != {name: value.shape[1:] for name, value in self._ring.items()}:
            new = self._widen(batch)
        count = min(len(batch), self.capacity)
        first = self.position + len(batch) - count
        place = (first + torch.arange(count)) % self.capacity
        for name, ring in self._ring.items():
            ring[place] = new[name][-count:].to(ring)
        self.position = (self.position + len(batch)) % self.capacity
        self.size = min(self.size + len(batch), self.capacity)

    def sample(self, count: int, seed: int) -> Batch:
        """``count`` rows, drawn uniformly with replacement. Raises QuatrainError if nothing was put there."""
        if not self.size:
            raise QuatrainError("nothing to draw from: the store is empty", fix="a Collect into it, in an earlier stage or step")
        place = torch.randint(self.size, (count,), generator=torch.Generator().manual_seed(seed))
        return as_batch({name: ring[place] for name, ring in self._ring.items()})

    def rows(self) -> Batch:
        """All rows, in the order of their places. Raises QuatrainError if there is none."""
        if not self.size:
            raise QuatrainError("an empty store has no rows")
        return as_batch({name: ring[: self.size] for name, ring in self._ring.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "rows": {name: ring[: self.size] for name, ring in self._ring.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be exactly the store that was saved. Raises QuatrainError if it held more than this one can."""
        self._ring, self.size, self.position = {}, 0, state["position"]
        for name, value in state["rows"].items():
            if len(value) > self.capacity:
                raise QuatrainError("the checkpoint's store is larger", given=f"capacity={self.capacity}", expected=f"{len(value)} or more")
            self._ring[name] = value.new_zeros((self.capacity, *value.shape[1:]))
            self._ring[name][: len(value)] = value
            self.size = len(value)

    def _widen(self, batch: Batch) -> dict[str, Tensor]:
        """Allocate anew so that these rows fit; the new rows' tensors in that layout."""
        batch = as_batch(leaves(batch))
        joined = leaves(Batch.cat([self.rows(), batch]) if self.size else batch)
        self._ring = {name: value.new_zeros((self.capacity, *value.shape[1:])) for name, value in joined.items()}
        for name, value in joined.items():
            self._ring[name][: self.size] = value[: self.size]
        return {name: value[self.size :] for name, value in joined.items()}


def leaves(batch: Batch) -> dict[str, Tensor]:
    """A batch's tensors by path: mask, actions, columns/…, rows/…, contexts/ROLE/…."""
    found = {"mask": batch.mask, "actions": batch.actions}
    found |= {f"columns/{name}": value for name, value in batch.columns.items()}
    found |= {f"rows/{name}": value for name, value in batch.rows.items()}
    return found | {f"contexts/{role}/{name}": value for role, part in batch.contexts.items() for name, value in part.items()}


def as_batch(tensors: Mapping[str, Tensor]) -> Batch:
    """The batch of such tensors."""
    parts: dict[str, dict[str, Any]] = {"columns": {}, "rows": {}, "contexts": {}}
    for path, value in tensors.items():
        kind, _, name = path.partition("/")
        if kind == "contexts":
            role, _, name = name.partition("/")
            parts[kind].setdefault(role, {})[name] = value
        elif name:
            parts[kind][name] = value
    return Batch(tensors["mask"], tensors["actions"], **parts)

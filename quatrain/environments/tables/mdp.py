"""A Markov decision process as three tensors, with leading axes for many of them at once.

Axes: … leading (seeds, instances), S states, V actions, H steps. All float64.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from quatrain.errors import QuatrainError


@dataclass(frozen=True)
class TableMDP:
    """transition […, S, V, S] P(s'|s,a); reward […, S, V, S] r(s,a,s'); start [S] or […, S].

    horizon   H, the number of actions of an episode; None: it never ends, and ``discount`` is below 1.
    discount  γ in [0, 1]: J(π) = E Σ_t γ^t r_t.
    unit      every reward is a whole multiple of it: then the distribution of the return is known exactly. None: it is not.

    Raises QuatrainError if a row of probabilities does not sum to 1, or where the return has no limit.
    """

    transition: Tensor
    reward: Tensor
    start: Tensor
    horizon: int | None = None
    discount: float = 1.0
    unit: float | None = None
    name: str = "mdp"

    def __post_init__(self) -> None:
        if self.transition.shape[-1] != self.transition.shape[-3] or self.reward.shape[-3:] != self.transition.shape[-3:]:
            shapes = f"transition {tuple(self.transition.shape)}, reward {tuple(self.reward.shape)}"
            raise QuatrainError("a table has one state axis before and one after the action", given=shapes, expected="[…, S, V, S] both")
        for name in ("transition", "start"):
            value = getattr(self, name)
            if bool((value < 0).any()) or float((value.sum(-1) - 1).abs().max()) > 1e-9:
                raise QuatrainError(f"{name} holds probabilities", given=f"sums from {value.sum(-1).min():g} to {value.sum(-1).max():g}")
        if not 0 <= self.discount <= 1 or (self.horizon is None and self.discount == 1):
            raise QuatrainError("the return has no limit", given=f"horizon={self.horizon}, discount={self.discount}", fix="discount=0.95")

    @property
    def states(self) -> int:
        return self.transition.shape[-3]

    @property
    def actions(self) -> int:
        return self.transition.shape[-2]

    @property
    def rows(self) -> int:
        """How many (step, state) pairs a policy may tell apart: H·S, row t·S + s; S where episodes do not end."""
        return self.states * (self.horizon or 1)

    @property
    def mean_reward(self) -> Tensor:
        """[…, S, V] E[r | s, a]."""
        return (self.transition * self.reward).sum(-1)

    def but(self, **changes: Any) -> TableMDP:
        return replace(self, **changes)

    def policy(self, probabilities: Tensor) -> Tensor:
        """Probabilities […, S, V] or [… , H·S, V] as […, H, S, V] (without H where episodes do not end).

        Raises QuatrainError for another number of rows.
        """
        rows = probabilities.shape[-2]
        if rows not in (self.states, self.rows):
            raise QuatrainError("a policy has one row per state, or one per step and state", given=rows, expected=(self.states, self.rows))
        if self.horizon is None:
            return probabilities
        if rows == self.rows:
            return probabilities.unflatten(-2, (self.horizon, self.states))
        return probabilities.unsqueeze(-3).expand(*probabilities.shape[:-2], self.horizon, *probabilities.shape[-2:])


def stacked(tables: list[TableMDP]) -> TableMDP:
    """Several of one size as one with a leading axis. Raises QuatrainError where something else than the tensors differs."""
    first = tables[0]
    plain = [part.name for part in fields(TableMDP) if part.name not in ("transition", "reward", "start", "name")]
    for name in plain:
        if len({getattr(table, name) for table in tables}) > 1:
            raise QuatrainError("stacked tables differ in their tensors only", given=f"{name}: {[getattr(t, name) for t in tables]}")
    return first.but(**{name: torch.stack([getattr(table, name) for table in tables]) for name in ("transition", "reward", "start")})

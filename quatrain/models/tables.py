"""Models that are tables: a policy, a critic, action values. The models of problems small enough to know everything. All in float64.

Axes: S rows of the table, V actions, N trajectories, T actions, K features of a state, H heads.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.batch import Batch, spread
from quatrain.errors import QuatrainError
from quatrain.models.critics import make_critic
from quatrain.models.distributions import Categorical
from quatrain.models.last_layer import LastLayer


class Table(nn.Module):
    def __init__(self, values: Tensor):
        super().__init__()
        self.values = nn.Parameter(values.detach().clone().double())


class TablePolicy:
    """softmax of the sum of K rows of a table [S, V]; which rows is the batch's column ``state`` [N, T, K].

    Rows that several states have in common are shared parameters. Temperature and support are those of the batch.
    """

    def __init__(self, values: Tensor, version: int = 0):
        self.module, self.version = Table(values), version

    @property
    def table(self) -> Tensor:
        return self.module.values

    def logits(self, batch: Batch) -> Tensor:
        """[N, T, V]."""
        return self.table[batch["state"]].sum(2)

    def distribution(self, batch: Batch) -> Categorical:
        """Of the M selected actions."""
        support = batch["support"][batch.mask] if "support" in batch else None
        return Categorical(self.logits(batch)[batch.mask], support, _temperature(batch))

    def score(
        self, batch: Batch, statistics: Sequence[Any], role: str = "policy", others: Mapping[str, Any] | None = None
    ) -> dict[Any, Tensor]:
        own = self.distribution(batch)
        with torch.no_grad():
            frozen = {name: other.distribution(batch) for name, other in (others or {}).items()}
        values = {statistic: statistic(own, batch.actions[batch.mask], frozen) for statistic in statistics}
        return {statistic: value.new_zeros(batch.shape).masked_scatter(batch.mask, value) for statistic, value in values.items()}

    def last_layer(self, batch: Batch) -> LastLayer:
        """A table is one: its features are the rows that a state consists of."""
        own, temperature = self.distribution(batch), _temperature(batch)
        features = nn.functional.one_hot(batch["state"][batch.mask], len(self.table)).sum(1).to(self.table.dtype)
        features = features if temperature is None else features / temperature[:, None]
        return LastLayer(self.table, features, lambda rows: own, transposed=True)

    def clone(self) -> TablePolicy:
        twin = copy.deepcopy(self)
        twin.module.requires_grad_(False)
        return twin

    def save(self, folder: Any) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        torch.save(self.module.state_dict(), Path(folder) / "table.pt")


def load_table(folder: str | Path) -> TablePolicy:
    """The policy that ``TablePolicy.save`` wrote. Raises QuatrainError when there is none."""
    path = Path(folder) / "table.pt"
    try:
        return TablePolicy(torch.load(path, weights_only=True)["values"])
    except (OSError, KeyError, TypeError, RuntimeError, UnpicklingError) as error:
        raise QuatrainError("no table can be read here", given=f"{path}: {error}", expected="what a run on a table saved") from error


class TableCritic:
    """V(s) from a table [S], at the rows ``states`` [N, T+1] of the role's context: before every action and after the last."""

    def __init__(self, values: Tensor):
        self.module, self.version = Table(values), 0

    def values(self, batch: Batch, role: str = "policy") -> Tensor:
        """[N, T+1]."""
        return self.module.values[rows_of(batch, role)]

    def clone(self) -> TableCritic:
        return copy.deepcopy(self)


class TableChoiceValues:
    """Q(s, ·) of H policies from a table [H, S, V], at the rows ``states`` [N, T+1] of the role's context."""

    def __init__(self, values: Tensor):
        self.module, self.version = Table(values), 0

    def values(self, batch: Batch, role: str = "policy") -> Tensor:
        """[N, T+1, H, V]."""
        heads, rows, choices = self.module.values.shape
        wide = self.module.values.transpose(0, 1).reshape(rows, heads * choices)
        return nn.functional.embedding(rows_of(batch, role), wide).unflatten(-1, (heads, choices))

    def clone(self) -> TableChoiceValues:
        return copy.deepcopy(self)


def _temperature(batch: Batch) -> Tensor | None:
    """[M] of the selected actions; None is 1. A demonstration was not sampled: it has no temperature (NaN), which means 1."""
    return spread(batch["temperature"], batch)[batch.mask].nan_to_num(nan=1.0) if "temperature" in batch else None


def rows_of(batch: Batch, role: str = "policy") -> Tensor:
    """[N, T+1] the table's row of every state. Raises QuatrainError for a batch that was not made of numbered states.

    A trimmed batch may carry more of them than it has actions: the first T+1 are its own.
    """
    if "states" not in batch.contexts.get(role, {}):
        raise QuatrainError("a table of values needs numbered states", given=f"contexts {sorted(batch.contexts)}", fix="task=tables:rtb")
    return batch.contexts[role]["states"][:, : batch.shape[1] + 1]


@make_critic.register
def _(policy: TablePolicy, seed: int = 0) -> TableCritic:
    return TableCritic(torch.zeros(len(policy.table)))

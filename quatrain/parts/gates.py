"""Gates: per-prompt weights that depend on how well the prompt is solved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index, group_sum
from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.parts.needs import needs_of


def success_rate(batch: Batch, of: str = "reward", by: str = "prompt") -> Tensor:
    """[N] mean reward of the row's group, over the rows that have one (demonstrations have none: NaN)."""
    index, count = group_index(batch, by)
    value = batch[of].double()
    known = ~value.isnan()
    size = group_sum(known.double(), index, count)
    return (group_sum(torch.where(known, value, 0.0), index, count) / size.clamp(min=1))[index]


@dataclass(frozen=True)
class Solved:
    """1 for prompts whose success rate is above the threshold, else 0; the reverse with ``invert``. HPT, eq. 12."""

    above: float = 0.0
    invert: bool = False
    of: str = "reward"
    by: str = "prompt"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.of, self.by)

    def __call__(self, batch: Batch) -> Tensor:
        return ((success_rate(batch, self.of, self.by) > self.above) != self.invert).double()


@dataclass(frozen=True)
class Mixed:
    """1 for trajectories of a group whose values are not all equal, else 0. Absent values (NaN) do not count."""

    of: str = "reward"
    by: str = "prompt"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.of, self.by)

    def __call__(self, batch: Batch) -> Tensor:
        index, count = group_index(batch, self.by)
        away = (batch[self.of].double() - success_rate(batch, self.of, self.by)).abs().nan_to_num()
        return (group_sum(away, index, count)[index] > 1e-9).double()


@dataclass(frozen=True)
class BySolvedCount:
    """A weight for each number of solved trajectories: ``table[k]`` for k, the last entry for more."""

    table: Sequence[float]
    of: str = "reward"
    by: str = "prompt"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.of, self.by)

    def __call__(self, batch: Batch) -> Tensor:
        index, count = group_index(batch, self.by)
        solved = group_sum((batch[self.of].double() > 0.5).long(), index, count)  # NaN is not above
        table = torch.tensor(self.table, dtype=torch.float64, device=batch.device)
        return table[solved.clamp(max=len(self.table) - 1)][index]


@dataclass(frozen=True)
class Scaled:
    """Another weight times ``by``, divided by ``over``."""

    of: Callable[[Batch], Tensor]
    by: float = 1.0
    over: float = 1.0

    @property
    def needs(self) -> tuple[str, ...]:
        return needs_of(self.of)

    def __call__(self, batch: Batch) -> Tensor:
        return self.of(batch).double() * (self.by / self.over)


@dataclass(frozen=True)
class Share:
    """One number for every action, ``of``, or with ``rest`` what it leaves of 1: two terms that share one objective.

    of  in [0, 1]; it may be a knob.
    """

    of: float | Knob
    rest: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.of, (int, float)) and not 0 <= self.of <= 1:
            raise QuatrainError("a share is out of range", given=self.of, expected="0 to 1")

    def __call__(self, batch: Batch) -> Tensor:
        value = 1 - self.of if self.rest else self.of
        return torch.full(batch.shape, float(value), dtype=torch.float64, device=batch.device)

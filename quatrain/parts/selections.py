"""Which actions a term is about: bool [N, T]. A selection enters the mean's own normaliser; a bound does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from quatrain.batch import Batch, Origin
from quatrain.parts.needs import needs, needs_of


def every_action(batch: Batch) -> Tensor:
    """All actions."""
    return batch.mask


@needs("origin")
def rollouts(batch: Batch) -> Tensor:
    """Actions that the policy chose itself."""
    return batch.mask & (batch["origin"] == Origin.POLICY)


@needs("origin")
def demonstrations(batch: Batch) -> Tensor:
    """Actions that were demonstrated."""
    return batch.mask & (batch["origin"] == Origin.DEMONSTRATION)


@dataclass(frozen=True)
class Finished:
    """Actions of trajectories that ended by themselves: DAPO's overlong filtering (Yu et al. 2025, §3.4)."""

    needs = ("truncated",)

    def __call__(self, batch: Batch) -> Tensor:
        return batch.mask & ~(batch["truncated"] & batch.mask).any(1, keepdim=True)


@needs("reward")
def judged(batch: Batch) -> Tensor:
    """Actions of trajectories that have a reward (demonstrations have none, unless they were given one)."""
    return batch.mask & ~batch["reward"].isnan()[:, None]


@dataclass(frozen=True)
class AtRandom:
    """A share of the actions, chosen by their own ``draw``: the control of any selection that leaves as many out."""

    share: float
    needs = ("draw",)

    def __call__(self, batch: Batch) -> Tensor:
        return batch.mask & (batch["draw"].double() * 2.0**-62 < self.share)


@dataclass(frozen=True)
class Both:
    """Actions that every one of several selections has."""

    selections: tuple[Callable[[Batch], Tensor], ...]

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(name for part in self.selections for name in needs_of(part))

    def __call__(self, batch: Batch) -> Tensor:
        chosen = batch.mask
        for part in self.selections:
            chosen = chosen & part(batch)
        return chosen

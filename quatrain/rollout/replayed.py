"""Learning from what was collected before: a task's recordings, rows as transitions, draws from a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.knobs import Knob
from quatrain.models.networks import Box
from quatrain.rollout.sources import require


@dataclass(frozen=True)
class Recordings:
    """All episodes of the task's data set, one a row."""

    def provides(self, task: Any) -> set[str]:
        require(task, "recordings")
        return {"rewards", "terminated", "truncated"}

    def __call__(self, state: Any) -> Batch:
        batch = state.task.recorded.episodes.to(state.models["policy"].device)
        state.spent["recorded"] += int(batch.mask.sum())
        return batch


@dataclass(frozen=True)
class Draw:
    """``count`` rows of a store that the recipe keeps, uniformly with replacement; ``draw`` [N, T]: a fresh seed per action."""

    count: int | Knob = Knob("batch", 256)
    store: str = "replay"

    def provides(self, task: Any) -> set[str]:
        return {"draw"}

    def __call__(self, state: Any) -> Batch:
        batch = state.kept[self.store].sample(self.count, state.draw(f"draw {self.store}"))
        generator = torch.Generator().manual_seed(state.draw("draws"))
        return batch.with_columns(draw=torch.randint(2**62, batch.shape, generator=generator).to(batch.device))


@dataclass(frozen=True)
class Transitions:
    """An edit: every action becomes a row of its own, see ``transitions``. Actions in a box are kept as they were executed: within it."""

    keep: tuple[str, ...] = ("rewards", "terminated")

    @property
    def needs(self) -> tuple[str, ...]:
        return self.keep

    def __call__(self, state: Any, batch: Batch) -> Batch:
        found = transitions(batch, self.keep)
        space = state.models["policy"].action_space
        if not isinstance(space, Box):
            return found
        low, high = (found.actions.new_tensor(bound) for bound in (space.low, space.high))
        return Batch(found.mask, found.actions.clamp(low, high), found.columns, contexts=found.contexts)


def transitions(batch: Batch, keep: tuple[str, ...] = ("rewards", "terminated")) -> Batch:
    """[M, 1]: the batch's M actions, row by row, with the columns ``keep`` and the observations before and after [M, 2, D].

    >>> seen = torch.arange(3.0).view(1, 3, 1)
    >>> two = Batch(torch.tensor([[True, True]]), torch.zeros(1, 2), {"r": torch.ones(1, 2)}, contexts={"policy": {"observations": seen}})
    >>> transitions(two, ("r",)).contexts["policy"]["observations"][..., 0].tolist()
    [[0.0, 1.0], [1.0, 2.0]]
    """
    acted, seen = batch.mask, batch.contexts["policy"]["observations"][:, : batch.shape[1] + 1]

    def one(value: Tensor) -> Tensor:
        return value[acted][:, None]

    observations = torch.stack([seen[:, :-1][acted], seen[:, 1:][acted]], 1)
    return Batch(
        one(acted), one(batch.actions), {name: one(batch[name]) for name in keep}, contexts={"policy": {"observations": observations}}
    )

"""From rewarded groups to a revised library: who is asked, and the two scripted proposers.

Axes: N trajectories, G groups, F = S·V features (row of the table, action).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index
from quatrain.errors import QuatrainError
from quatrain.parts.needs import needs_of
from quatrain.rollout.sources import mixed_rewards
from quatrain.search.library import Library, Operation, Rule

Proposer = Callable[[Any, Library, Batch], Sequence[Operation]]


@dataclass(frozen=True)
class Revise:
    """The operations that a proposer derives from the groups that have a contrast, applied batch-wise.

    by      (state, library, the rows of these groups) → operations.
    alone   trajectories that are alone in their group are shown as well, one by one; others without a contrast never are.
    """

    by: Proposer
    alone: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "prompt", *needs_of(self.by))

    def check(self, task: Any) -> None:
        if hasattr(self.by, "check"):
            self.by.check(task)

    def __call__(self, state: Any, library: Library, batch: Batch) -> list[Library]:
        operations = list(self.by(state, library, shown)) if len(shown := self.shown(batch)) else []
        state.measure({"search/groups": (torch.tensor(float(len(shown["prompt"].unique()))), 1.0)})
        for kind in ("add", "modify", "delete"):
            state.measure({f"search/{kind}": (torch.tensor(float(sum(one.kind == kind for one in operations))), 1.0)})
        revised = library.apply(operations)
        return [revised] if revised != library else []

    def shown(self, batch: Batch) -> Batch:
        """The rows that say something: of groups whose rewards differ."""
        keep = mixed_rewards(batch)
        if self.alone:
            index, _ = group_index(batch)
            keep = keep | (torch.bincount(index)[index] == 1)
        return batch.take(keep)


@dataclass(frozen=True)
class Contrasts:
    """The scripted stand-in for a language model: which (row, action) winners of a group have done more often than its losers.

    d_f = mean_{winners} φ_f − mean_{losers} φ_f within a group (winners are above its mean). A trajectory alone has won with a reward
    above ½. The ``most`` largest |d_f| of each group vote with their sign; each feature whose votes are no tie moves by one step:

        none of it and w = ±step → add;   w ± step → modify;   w = 0 → delete

    most   operations that a group may propose. step: of a weight. limit: the largest |weight|.
    blame  a trajectory that is alone and lost speaks against what it did; without, it says nothing.
    """

    most: int = 4
    step: float = 1.0
    limit: float = 4.0
    blame: bool = False
    needs = ("state",)

    def check(self, task: Any) -> None:
        if "state" not in task.provides:
            raise QuatrainError(
                "the scripted proposer reads rows of a table", given=task.name, fix="task=tool-choice, or propose=endpoint with an LLM"
            )

    def __call__(self, state: Any, library: Library, batch: Batch) -> list[Operation]:
        shape = tuple(state.models["policy"].table.shape)
        gap = contrasts(features(batch, shape), batch, self.blame)
        tie = torch.rand(gap.shape, generator=torch.Generator().manual_seed(state.draw("contrasts")), dtype=gap.dtype)
        return revised(state, library, ballots(gap, 1e-6 * tie, self.most).view(shape), self.step, self.limit)


@dataclass(frozen=True)
class RandomRules:
    """A control: as many votes per group as ``Contrasts``, for features and signs at random."""

    most: int = 4
    step: float = 1.0
    limit: float = 4.0

    def __call__(self, state: Any, library: Library, batch: Batch) -> list[Operation]:
        table = state.models["policy"].table
        draws = torch.Generator().manual_seed(state.draw("contrasts"))
        groups = len(batch["prompt"].unique())
        gap = torch.randn(groups, table.numel(), generator=draws, dtype=torch.float64)
        return revised(state, library, ballots(gap.sign(), gap.abs(), self.most).view(table.shape), self.step, self.limit)


def features(batch: Batch, shape: tuple[int, int]) -> Tensor:
    """[N, F] 1 where the trajectory chose that action in a state with that row, of ``state`` [N, T, K]; else 0."""
    place = batch["state"] * shape[1] + batch.actions[..., None]
    chosen = batch.mask[..., None].expand_as(place).double().flatten(1)
    return torch.zeros(len(batch), shape[0] * shape[1], dtype=torch.float64).scatter_reduce(1, place.flatten(1), chosen, "amax")


def contrasts(chosen: Tensor, batch: Batch, blame: bool = False) -> Tensor:
    """[G, F] d_f of every group, groups in order of their keys; chosen [N, F]. ``blame``: see ``Contrasts``."""
    index, count = group_index(batch)
    reward = batch["reward"].double()
    total = torch.bincount(index, minlength=count)
    mean = torch.bincount(index, reward, count) / total
    alone = total[index] == 1
    won = torch.where(alone, reward > 0.5, reward > mean[index])
    return _mean(chosen, won, index, count) - _mean(chosen, ~won & (blame | ~alone), index, count)


def _mean(chosen: Tensor, where: Tensor, index: Tensor, count: int) -> Tensor:
    """[G, F] mean over the rows of a group that are selected; 0 without any."""
    total = torch.bincount(index, where.double(), count).clamp(min=1)
    return torch.zeros(count, chosen.shape[1], dtype=chosen.dtype).index_add_(0, index, chosen * where[:, None]) / total[:, None]


def ballots(gap: Tensor, tie: Tensor, most: int) -> Tensor:
    """[F] sum of the signs of every group's ``most`` largest |gap| [G, F]; ``tie`` [G, F] is added to decide among equals."""
    top = (gap.abs() + tie).topk(min(most, gap.shape[1]), -1).indices
    return torch.zeros_like(gap).scatter(1, top, gap.gather(1, top).sign()).sum(0)


def revised(state: Any, library: Library, votes: Tensor, step: float, limit: float) -> list[Operation]:
    """Operations by the signs of the votes [S, V]: every rule concerned moves by one step, within ±limit."""
    say = getattr(state.task, "say", _say)
    found = []
    for row, action in votes.nonzero().tolist():
        rule = library.find((row, action))
        weight = (rule.weight if rule else 0.0) + step * float(votes[row, action].sign())
        weight = max(-limit, min(limit, weight))
        new = Rule(say(row, action, weight > 0), weight, (row, action))
        if abs(weight) < step / 2:
            found.append(Operation("delete", rule.name))
        elif rule is None:
            found.append(Operation("add", rule=new))
        else:
            found.append(Operation("modify", rule.name, new))
    return found


def _say(row: int, action: int, good: bool) -> str:
    return f"in a state with row {row} {'choose' if good else 'do not choose'} action {action}"

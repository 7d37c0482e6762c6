"""Two ways to answer: 0 thinks first, 1 answers directly. Which one pays for a prompt, and how well a response did within its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index, group_sum
from quatrain.errors import QuatrainError
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.control import first_action

THINKING, DIRECT = 0, 1


def thinking_pays(thinking: Any, direct: Any, margin: float) -> Any:
    """Whether a mean reward is more than another one and a margin: a tie is direct's. Numbers, or tensors element by element."""
    return thinking > direct + margin + 1e-12  # sums of floats may miss a tie by a bit


def preferred_mode(batch: Batch, margin: float = 0.2, by: str = "prompt") -> Tensor:
    """[N] argmax {mean reward of thinking, mean reward of the direct mode + margin} of the row's prompt; a tie is direct's.

    A mode that the prompt has no sample in is not preferred.
    """
    index, count = group_index(batch, by)
    means = []
    for mode in (THINKING, DIRECT):
        here = batch["mode"] == mode
        size = group_sum(here.double(), index, count)
        total = group_sum(torch.where(here, batch["reward"].double(), 0.0), index, count)
        means.append(torch.where(size > 0, total / size.clamp(min=1), -torch.inf))
    return torch.where(thinking_pays(*means, margin), THINKING, DIRECT)[index]


def best_of_mode(batch: Batch, by: str = "prompt") -> Tensor:
    """[N] 1.0 for rows whose reward is the highest of their prompt and mode (all of them, where several are), else 0.0."""
    index, count = group_index(_with_cells(batch, by), "cell")
    reward = batch["reward"].double()
    most = torch.full((count,), -torch.inf, dtype=reward.dtype, device=reward.device).scatter_reduce(0, index, reward, "amax")
    return (reward == most[index]).double()


@dataclass(frozen=True)
class HybridGroup:
    """z(best of its mode) + 1[first action]·alpha·z(mode is the preferred one), [N, T]. Jiang et al. 2025 (HGPO).

    alpha   weight of the choice of the mode, at least 0.
    margin  δ: what thinking must be worth more.
    within  the group that the first z-score is over: the samples of one ``mode``, or all of the ``prompt``.
    """

    alpha: float = 1.0
    margin: float = 0.2
    within: Literal["mode", "prompt"] = "mode"
    needs = ("reward", "prompt", "mode")

    def __post_init__(self) -> None:
        if self.within not in ("mode", "prompt"):
            raise QuatrainError("unknown group of a z-score", given=self.within, expected="mode or prompt")
        if self.alpha < 0:
            raise QuatrainError("the weight of the choice of a mode is at least 0", given=self.alpha)

    def __call__(self, batch: Batch) -> Tensor:
        binary = _with_cells(batch, "prompt").with_rows(
            intra=best_of_mode(batch), inter=(batch["mode"] == preferred_mode(batch, self.margin)).double()
        )
        intra = GroupRelative(by="cell" if self.within == "mode" else "prompt", of="intra")(binary)
        inter = GroupRelative(of="inter")(binary)
        return intra[:, None] + torch.where(first_action(batch), self.alpha * inter[:, None], 0.0)


def _with_cells(batch: Batch, by: str) -> Batch:
    """With ``cell`` [N]: the number of the row's prompt and mode."""
    index, _ = group_index(batch, by)
    return batch.with_rows(cell=2 * index + batch["mode"])

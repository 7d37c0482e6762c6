"""Forking actions: where the policy is less certain than in most of the trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError


def row_quantile(value: Tensor, mask: Tensor, level: float) -> Tensor:
    """[N] the quantile of each row's masked values [N, T], linear between neighbours; infinite for a row that has none.

    >>> row_quantile(torch.tensor([[4.0, 9.0, 0.0, 2.0]]), torch.tensor([[True, False, True, True]]), 0.75).item()
    3.0
    """
    ordered = torch.where(mask, value, torch.inf).sort(1).values
    place = level * (mask.sum(1) - 1).clamp(min=0).double()
    low, high = (ordered.gather(1, side.long()[:, None])[:, 0] for side in (place.floor(), place.ceil()))
    share = (place - place.floor()).to(value.dtype)
    return torch.where(low == high, low, low + share * (high - low))


def forking(batch: Batch, level: float) -> Tensor:
    """[N, T] bool: actions whose entropy is above that quantile of their own trajectory's."""
    entropy = batch["current_entropy"]
    return batch.mask & (entropy > row_quantile(entropy, batch.mask, level)[:, None])


@dataclass(frozen=True)
class ForkWeight:
    """Weights [N, T] at forking actions (Peng et al. 2025, SimKO): 1 where nothing else is said.

    part      ``taken``: 1 − smooth of right answers, ``press`` of wrong ones where the action taken is the likeliest;
              ``candidates``: ``smooth`` of right answers, 0 elsewhere: what goes to the likeliest candidates.
    level     quantile of the entropy above which an action is forking, from 0 to 1.
    smooth    α in [0, 1].    press  λ, above 0.

    A right answer has a value above ½. It reads the current policy within a trajectory, which no micro-batch cuts.
    """

    part: Literal["taken", "candidates"] = "taken"
    level: float = 0.8
    smooth: float = 0.01
    press: float = 1.1
    of: str = "reward"
    action_by_action: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (0 <= self.level <= 1 and 0 <= self.smooth <= 1 and self.press > 0):
            given = f"level={self.level}, smooth={self.smooth}, press={self.press}"
            raise QuatrainError("a weight at forks is out of range", given=given, expected="level and smooth from 0 to 1, press above 0")

    @property
    def needs(self) -> tuple[str, ...]:
        top = ("current_logp", "current_top_logp") if self.part == "taken" else ()
        return ("current_entropy", *top, self.of)

    def __call__(self, batch: Batch) -> Tensor:
        fork, right = forking(batch, self.level), (batch[self.of] > 0.5)[:, None]
        if self.part == "candidates":
            return (fork & right).double() * self.smooth
        likeliest = batch["current_logp"] >= batch["current_top_logp"]
        return 1.0 - (fork & right).double() * self.smooth + (fork & ~right & likeliest).double() * (self.press - 1.0)

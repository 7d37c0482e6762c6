"""How much an action depends on what was observed: the policy beside itself on a corrupted observation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError


@dataclass(frozen=True)
class Perception:
    """The gradient of k3 = r − log r − 1, r = π_to/π_θ, to be *ascended*: A = 1 − r (Wang et al. 2025, PAPO).

    to       the column ``{to}_logp``: the same action under what it was not to be guessed from; it has no gradient.
    far      |log r| beyond which, and limit: k3 above which, the estimate is constant: A = 0. Both above 0.

    A > 0 where the observation makes the action likelier (r < 1): π_θ rises above π_to. 0 where both agree. It reads the current
    policy action by action. → minus the ``KL`` of kind k3 as far and limit grow.
    """

    to: str = "corrupted"
    far: float = 20.0
    limit: float = 10.0
    action_by_action: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("far", "limit"):
            if not getattr(self, name) > 0:
                raise QuatrainError(f"the bound {name!r} of a perception term is above 0", given=getattr(self, name))

    @property
    def needs(self) -> tuple[str, ...]:
        return ("current_logp", f"{self.to}_logp")

    def __call__(self, batch: Batch) -> Tensor:
        log_ratio = torch.where(batch.mask, batch[f"{self.to}_logp"] - batch["current_logp"], 0.0)
        free = (log_ratio.abs() <= self.far) & (log_ratio.expm1() - log_ratio <= self.limit)
        return torch.where(free, -log_ratio.expm1(), 0.0)


@dataclass(frozen=True)
class ByOutcome:
    """[N] one weight for what was solved (a value above ½), another for what was not; both a number."""

    right: float = 1.0
    wrong: float = 1.0
    of: str = "reward"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.of,)

    def __call__(self, batch: Batch) -> Tensor:
        solved = batch[self.of] > 0.5
        return torch.where(solved, 1.0, 0.0).double() * self.right + torch.where(solved, 0.0, 1.0).double() * self.wrong

"""Guides: values that a bound reads and that depend on other actions or rows, such as a batch's extremes.

A bound or a live weight that has some says so with ``guides``, a tuple of parts (batch → [N] or [N, T]); they are computed once on
the rows of one update, with the current policy's columns where they read them, and never on a micro-batch. A live advantage may
have guides too: what it adds to action by action, without a look at the current policy; those are computed before any split
(``guided`` reads them).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from quatrain.batch import Batch, spread
from quatrain.errors import QuatrainError

Guide = Callable[[Batch], Tensor]


def guides_of(part: Any) -> tuple[Guide, ...]:
    """The guides that a part reads; none where it declares none."""
    return tuple(getattr(part, "guides", ()))


def guide_column(guide: Guide) -> str:
    """The column that a guide's value is kept in: two parts that are equal share it."""
    return f"guide/{guide!r}"


def guided(guide: Guide, batch: Batch) -> Tensor:
    """A guide's value [N, T]: as it was computed on the whole batch; else, where this is the whole batch, computed now."""
    return batch[guide_column(guide)] if guide_column(guide) in batch else spread(guide(batch), batch)


@dataclass(frozen=True)
class Surprise:
    """The entropy of the policy at each action, scaled into [0, 1], [N, T]; 0 where there is no action.

    scale  ``batch``: (H − min)/(max − min) over all actions of the update; ``response``: H/H_max of its own response.
    of     the column of entropies: the current policy's by default.

    Where all entropies are equal (``batch``) or zero (``response``) it is 0.
    """

    scale: Literal["batch", "response"] = "batch"
    of: str = "current_entropy"

    def __post_init__(self) -> None:
        if self.scale not in ("batch", "response"):
            raise QuatrainError("unknown scale of an entropy", given=self.scale, expected="batch or response")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.of,)

    def __call__(self, batch: Batch) -> Tensor:
        entropy = batch[self.of]
        if not batch.mask.any():
            return torch.zeros_like(entropy)
        if self.scale == "response":
            low, high = torch.zeros((), dtype=entropy.dtype), torch.where(batch.mask, entropy, 0.0).amax(1, keepdim=True)
        else:
            low, high = entropy[batch.mask].min(), entropy[batch.mask].max()
        span = high - low
        scaled = (entropy - low) / torch.where(span > 0, span, 1.0)
        return torch.where(batch.mask & (span > 0), scaled, 0.0).clamp(0.0, 1.0)

"""A second, damaged, copy of what the policy saw: for what depends on the observation and not on a guess."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index
from quatrain.errors import QuatrainError


@dataclass(frozen=True)
class Corrupt:
    """The context ``role``: the policy's own with each token of the prompt (or each number of an observation) blanked at random.

    rate  chance of a token to be replaced by ``fill``, in [0, 1]. Trajectories of one prompt see the same damage.
    keep  tokens at the end of a prompt that are left as they are: they only say that an answer follows.

    What a corrupted image is to a vision-language model. A task without contexts (a table) has nothing to corrupt and is left as it is.
    """

    rate: float = 0.6
    fill: int = 0
    keep: int = 1
    role: str = "corrupted"
    needs = ("prompt",)

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1 or self.keep < 0:
            raise QuatrainError("the rate of a corruption is a chance", given=f"rate={self.rate}, keep={self.keep}", expected="0 to 1, ≥ 0")

    def __call__(self, state: Any, batch: Batch) -> Batch:
        seed = state.draw("corrupt")
        if "policy" not in batch.contexts:
            return batch
        context = dict(batch.contexts["policy"])
        index, _ = group_index(batch)
        if "tokens" in context:
            mask = context["mask"].bool()
            inner = mask & (mask.long().flip(1).cumsum(1).flip(1) > self.keep)
            hit = inner & struck(context["tokens"].shape, self.rate, seed, index)
            context["tokens"] = torch.where(hit, self.fill, context["tokens"])
        else:
            shape = context["observations"].shape
            context["observations"] = torch.where(struck(shape, self.rate, seed, index), 0.0, context["observations"])
        return batch.with_context(self.role, **context)


def struck(shape: tuple[int, ...], rate: float, seed: int, index: Tensor) -> Tensor:
    """Bool of that shape: True with the given chance; rows of equal ``index`` [N] (group numbers from 0) are struck alike."""
    generator = torch.Generator().manual_seed(seed)
    groups = int(index.max()) + 1 if len(index) else 0
    return (torch.rand((groups, *shape[1:]), generator=generator) < rate).to(index.device)[index]

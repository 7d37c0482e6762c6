"""A second, damaged, copy of what the policy saw: for what depends on the observation and not on a guess."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index
from quatrain.errors import QuatrainError
from quatrain.models.opened import only_token


@dataclass(frozen=True)
class Corrupt:
    """The context ``role``: the policy's own with each token of the prompt (or each number of an observation) blanked at random.

    rate  chance of a token to be replaced by ``fill``, in [0, 1]. Trajectories of one prompt see the same damage.
    fill  a token id; None: the piece of what is observed that shows nothing, or 0.
    keep  tokens at the end of a prompt that are left as they are, since they only say that an answer follows.

    What a corrupted image is to a vision-language model. Where a task says which pieces of its prompts are ``observed`` (texts of one token
    each, that of nothing first), they alone are blanked and the question stays whole. A task without contexts (a table) has nothing to
    corrupt and is left as it is. Raises QuatrainError for a piece that is several tokens.
    """

    rate: float = 0.6
    fill: int | None = None
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
            tokens, mask = context["tokens"], context["mask"].bool()
            pieces = observed(state)
            if pieces is None:
                shown, blank = mask & (mask.long().flip(1).cumsum(1).flip(1) > self.keep), 0
            else:
                shown, blank = mask & torch.isin(tokens, pieces), int(pieces[0])
            hit = shown & struck(tokens.shape, self.rate, seed, index)
            context["tokens"] = torch.where(hit, blank if self.fill is None else self.fill, tokens)
        else:
            shape = context["observations"].shape
            context["observations"] = torch.where(struck(shape, self.rate, seed, index), 0.0, context["observations"])
        return batch.with_context(self.role, **context)


def observed(state: Any) -> Tensor | None:
    """[K] token ids of the pieces that the task's prompts show, that of nothing first; None where it does not tell them from the rest."""
    pieces = getattr(state.task, "observed", None)
    if pieces is None:
        return None
    policy = state.models["policy"]
    return torch.tensor([only_token(policy, piece) for piece in pieces], device=policy.device)


def struck(shape: tuple[int, ...], rate: float, seed: int, index: Tensor) -> Tensor:
    """Bool of that shape: True with the given chance; rows of equal ``index`` [N] (group numbers from 0) are struck alike."""
    generator = torch.Generator().manual_seed(seed)
    groups = int(index.max()) + 1 if len(index) else 0
    return (torch.rand((groups, *shape[1:]), generator=generator) < rate).to(index.device)[index]

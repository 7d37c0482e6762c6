"""Edits: batch → batch, between sampling and learning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.knobs import Knob
from quatrain.parts.needs import needs_of
from quatrain.rollout.documents import whole_documents
from quatrain.rollout.sources import require


@dataclass(frozen=True)
class AddDemonstrations:
    """Add the demonstration of every start of the batch, where it has one, as a row of the same prompt.

    when    batch → [N], a gate such as ``Solved(invert=True)``: only for prompts where it is not 0. None: for all.
    reward  what the demonstrations are worth, so that they take part in their groups; None: they have no reward.
    whole   as documents: the tokens of the prompt are actions as well.
    """

    when: Callable[[Batch], Tensor] | None = None
    reward: float | None = None
    whole: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        return ("prompt", *needs_of(self.when))

    def check(self, task: Any) -> None:
        require(task, "demonstrations")

    def __call__(self, state: Any, batch: Batch) -> Batch:
        chosen = [True] * len(batch) if self.when is None else (self.when(batch) != 0).tolist()
        notes = zip(batch["prompt"], batch.notes["start"], chosen, strict=True)
        starts = list({int(key): start for key, start, wanted in notes if wanted}.values())
        if not starts:
            return batch
        shown = state.task.demonstrations(state.models["policy"], starts)
        shown = whole_documents(state.models["policy"], shown) if self.whole else shown
        state.spent["demonstrations"] += len(shown)
        if self.reward is not None:
            shown = shown.with_rows(reward=torch.full((len(shown),), self.reward, dtype=batch["reward"].dtype, device=shown.device))
        return Batch.cat([batch, shown])


@dataclass(frozen=True)
class OverlongPenalty:
    """Soft punishment of length, added to the reward: Yu et al. 2025 (DAPO), eq. 13.

    0 up to limit − cache actions, then linear down to −1 at the limit, −1 beyond. In actions.
    """

    limit: int | Knob = Knob("max_actions", 64)
    cache: int | Knob = 16
    needs = ("reward",)

    def __post_init__(self) -> None:
        if isinstance(self.limit, int) and isinstance(self.cache, int) and not 0 < self.cache <= self.limit:
            raise QuatrainError(
                "the overlong cache is out of range", given=f"{self.cache} of {self.limit}", expected="1 to the length limit"
            )

    def __call__(self, state: Any, batch: Batch) -> Batch:
        over = (batch.lengths - (self.limit - self.cache)) / self.cache
        return batch.with_rows(reward=batch["reward"] - torch.clamp(over, 0.0, 1.0))


@dataclass(frozen=True)
class AnswerKeys:
    """``answer`` [N]: a key of each trajectory's final answer; equal keys are equal answers.

    The final answer of a text is what ``quatrain.rewards.extract.final_answer`` finds (its last number, where it has several), or
    the whole text, up to case and spaces. Where there are no texts it is the whole sequence of actions.
    """

    provides = ("answer",)

    def __call__(self, state: Any, batch: Batch) -> Batch:
        if "completion" in batch.notes:
            answers: list[Any] = [answer_of(text) for text in batch.notes["completion"]]
        else:
            answers = [tuple(row[mask].flatten().tolist()) for row, mask in zip(batch.actions.cpu(), batch.mask.cpu(), strict=True)]
        keys = [int.from_bytes(blake2b(repr(answer).encode(), digest_size=8).digest(), "little") >> 2 for answer in answers]
        return batch.with_rows(answer=torch.tensor(keys, dtype=torch.int64, device=batch.device))


def answer_of(text: str) -> str:
    """The final answer of a completion, else all of it; lower case, single spaces.

    >>> [answer_of(text) for text in ("so it is 42.", "2>9>8", " Ab  c")]
    ['42', '8', 'ab c']
    """
    from quatrain.rewards.exact import normalise
    from quatrain.rewards.extract import final_answer

    last = text.rsplit(">", 1)[-1]  # a chain of values ends in its answer; what is in tags is found as a marked answer
    return normalise(final_answer(text if "<" in text else last) or last)

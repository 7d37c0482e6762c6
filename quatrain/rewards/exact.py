"""Rewards that compare texts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quatrain.rewards.base import reference

if TYPE_CHECKING:
    from quatrain.protocols import Item

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


def normalise(text: str) -> str:
    """Lower case, single spaces, no space at the ends.

    >>> normalise("  New   York ")
    'new york'
    """
    return " ".join(text.casefold().split())


def answer_text(completion: str) -> str:
    """The text within the last <answer>…</answer>, else the whole completion; stripped.

    >>> answer_text("<think>6*7</think> <answer> 42 </answer>"), answer_text(" 42 ")
    ('42', '42')
    """
    found = _ANSWER.findall(completion)
    return (found[-1] if found else completion).strip()


@dataclass(frozen=True)
class Exact:
    """1 if the completion (or the text within its <answer> tags) is the answer, up to case and spaces, else 0."""

    name: ClassVar[str] = "exact"
    trusted: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("answer",)

    def __call__(self, completion: str, item: Item) -> float:
        return float(normalise(answer_text(completion)) == normalise(reference(item, self.name)))


@dataclass(frozen=True)
class Contains:
    """1 if the answer (or ``text``) occurs in the completion, up to case and spaces, and not within a longer word or number.

    >>> from quatrain.protocols import Item
    >>> reward = Contains()
    >>> [reward(text, Item(0, "", "42")) for text in ("it is 42.", "142", "42.5", "4 2")]
    [1.0, 0.0, 0.0, 0.0]
    """

    text: str | None = None
    name: ClassVar[str] = "contains"
    trusted: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.text else ("answer",)

    def __call__(self, completion: str, item: Item) -> float:
        wanted = re.escape(normalise(self.text or reference(item, self.name)))
        return float(re.search(rf"(?<!\w)(?<!\d[.,]){wanted}(?!\w|[.,]\d)", normalise(completion)) is not None)

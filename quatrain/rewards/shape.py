"""Rewards for the shape of a completion: its format and its length."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from quatrain.errors import QuatrainError

if TYPE_CHECKING:
    from quatrain.protocols import Item

_THINK_ANSWER = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True)
class Format:
    """1 if the completion has the wanted shape, else 0.

    pattern  a regular expression to be found in the completion (``.`` matches newlines; anchor it with ^ and $).
             None is the format of DeepSeek-R1 (2501.12948): <think>…</think> <answer>…</answer>, each tag once, nothing outside.

    Raises QuatrainError for a pattern that does not compile.

    >>> from quatrain.protocols import Item
    >>> item = Item(0, "")
    >>> Format()("<think>6*7</think><answer>42</answer>", item), Format()("<answer>42</answer>", item)
    (1.0, 0.0)
    >>> Format("^[0-9]+$")("42", item)
    1.0
    """

    pattern: str | None = None
    name: ClassVar[str] = "format"
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.pattern is not None:
            try:
                re.compile(self.pattern, re.DOTALL)
            except re.error as error:
                raise QuatrainError(
                    f"the pattern of reward format is not a regular expression: {error}",
                    given=repr(self.pattern),
                    fix="escape special characters with \\",
                ) from None

    @property
    def trusted(self) -> bool:
        """A pattern of the user's may take exponential time."""
        return self.pattern is None

    def __call__(self, completion: str, item: Item) -> float:
        if self.pattern is not None:
            return float(re.search(self.pattern, completion, re.DOTALL) is not None)
        return float(all(completion.count(tag) == 1 for tag in _TAGS) and _THINK_ANSWER.fullmatch(completion) is not None)


@dataclass(frozen=True)
class Length:
    """Soft overlong punishment, from 0 to -1 (DAPO, 2503.14476, eq. 13).

        0                           for |y| ≤ L_max − L_cache
        (L_max − L_cache − |y|) / L_cache   in between
        −1                          for |y| > L_max

    maximum  L_max. The paper's 20480 are tokens.
    cache    L_cache, at most ``maximum``; the paper's is 4096.
    measure  |y| of a text. A reward sees the completion's text, so the default counts characters; give the tokenizer's
             count for tokens. (A recipe that shapes by tokens reads the batch's own lengths instead: exact, and free.)

    >>> from quatrain.protocols import Item
    >>> [Length(10, 4)("x" * n, Item(0, "")) for n in (6, 8, 10, 11)]
    [0.0, -0.5, -1.0, -1.0]
    """

    maximum: int
    cache: int
    measure: Callable[[str], int] = len
    name: ClassVar[str] = "length"
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not 0 < self.cache <= self.maximum:
            raise QuatrainError(
                "reward length needs 0 < cache ≤ max",
                given=f"max={self.maximum}, cache={self.cache}",
                expected="characters: no punishment up to max - cache, the full one from max",
                fix="length?max=2048&cache=512",
            )

    @property
    def trusted(self) -> bool:
        return self.measure is len

    def __call__(self, completion: str, item: Item) -> float:
        over = self.measure(completion) - (self.maximum - self.cache)
        return -min(max(over / self.cache, 0.0), 1.0) or 0.0

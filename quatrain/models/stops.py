"""What ends a completion: end-of-sequence ids, and texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stops:
    """What ends a completion: end-of-sequence ids, and texts (with how to look for them).

    Stopping is decided by tensor operations, and only rows whose last token could complete a stop text are decoded.
    """

    eos: tuple[int, ...]
    texts: tuple[str, ...] = ()
    decode: Callable[[list[int]], str] | None = None
    could_end: Tensor | None = None  # [V] bool: a stop text can be complete after this token

    def __bool__(self) -> bool:
        return bool(self.eos or self.texts)

    def after(self, action: Tensor, tail: Callable[[Tensor], list[list[int]]]) -> Tensor:
        """[B] bool for the last tokens [B]; ``tail(index)`` gives the last tokens of those rows."""
        done = action == self.eos[0] if self.eos else torch.zeros_like(action, dtype=torch.bool)
        for token in self.eos[1:]:
            done |= action == token
        if self.texts:
            for row, tokens in zip(index := (self.could_end[action] & ~done).nonzero()[:, 0], tail(index), strict=True):
                text = self.decode(tokens)
                done[row] = any(stop in text for stop in self.texts)
        return done

    @property
    def span(self) -> int:
        """Tokens that a stop text may stretch over: a character has at most four bytes, a byte-level token at least one."""
        return 4 * max(map(len, self.texts), default=0) + 8

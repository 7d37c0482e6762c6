"""A policy that is made to begin in a certain way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quatrain.errors import QuatrainError


class Opened:
    """A policy whose every prompt goes on with given tokens; in all else it is the policy."""

    def __init__(self, policy: Any, tokens: Sequence[int]):
        self.policy, self.tokens = policy, tokens

    def encode(self, prompt: Any) -> list[int]:
        return [*self.policy.encode(prompt), *self.tokens]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)


def only_token(policy: Any, text: str) -> int:
    """The one token that a text is. Raises QuatrainError if it is several."""
    *tokens, _ = policy.encode_completion(text)
    if len(tokens) != 1:
        raise QuatrainError(
            "this text has to be one token", given=f"{text!r}: {len(tokens)} tokens", fix="a single character, or add it to the vocabulary"
        )
    return tokens[0]

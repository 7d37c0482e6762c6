"""What a part reads. A part says it with ``needs``; a missing column is then refused before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def needs(*names: str) -> Callable[[F], F]:
    """Declare the columns and rows that a function of a batch reads.

    >>> @needs("reward")
    ... def double_reward(batch): return 2 * batch["reward"]
    >>> needs_of(double_reward)
    ('reward',)
    """

    def mark(function: F) -> F:
        function.needs = names  # type: ignore[attr-defined]
        return function

    return mark


def needs_of(part: Any) -> tuple[str, ...]:
    """The declared needs of a part; none where it declares nothing."""
    return tuple(getattr(part, "needs", ()))


def is_live(part: Any) -> bool:
    """Does the part look at the policy being trained (a ``current_…`` column)?"""
    return any(name.startswith("current_") for name in needs_of(part))


def is_pass_needed(part: Any) -> bool:
    """Does a live part need the current policy's columns of other rows, or before the normalisers? Not one marked ``action_by_action``."""
    return is_live(part) and not getattr(part, "action_by_action", False)

"""What a reward is, and how one call of it is made and its result checked."""

from __future__ import annotations

import math
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from quatrain.errors import QuatrainError

if TYPE_CHECKING:
    from quatrain.protocols import Item


class Reward(Protocol):
    """How good a completion is: a finite number, higher is better.

    name     how messages and logs call it.
    trusted  it always ends, quickly, and cannot take the process down: it is called in the training process.
             Everything else is called in a worker with a deadline.
    needs    fields of the item without which it cannot judge ("answer").

    A reward may have ``prepare() -> None``: what to load once, before the first call.
    """

    name: str
    trusted: bool
    needs: tuple[str, ...]

    def __call__(self, completion: str, item: Item) -> float: ...


@dataclass(eq=False)
class Fault(Exception):
    """One call that did not end in a finite number: a message, and the file and line if they are known."""

    kind: str  # "raised" or "returned"
    text: str
    where: str = ""

    def error(self, name: str, completion: str, item: Item) -> QuatrainError:
        """As the message that a person reads."""
        given = f"completion {shorten(completion)!r} of item {item.id} (answer {shorten(str(item.answer))!r})"
        where = f" at {self.where}" if self.where else ""
        if self.kind == "raised":
            return QuatrainError(
                f"reward {name} raised {self.text}{where}",
                given=given,
                expected="a number for every completion, however malformed",
                fix="let the function return 0.0 for what it cannot read",
            )
        return QuatrainError(
            f"reward {name} returned {self.text}",
            given=given,
            expected="a finite number (float, int or bool)",
            fix="return 0.0 where there is no score",
        )


def judge(reward: Any, completion: str, item: Item) -> float:
    """One call of ``reward``, its result as a finite float. Raises Fault for anything else.

    A QuatrainError from the reward itself (an item without an answer) passes as it is.
    """
    try:
        value = reward(completion, item)
    except QuatrainError:
        raise
    except Exception as error:  # the boundary to a user's code: whatever it raises is reported, with its place
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise Fault("raised", f"{type(error).__name__}: {shorten(str(error), 200)}", f"{frame.filename}:{frame.lineno}") from error
    return finite(value)


def finite(value: Any) -> float:
    """A number, bool, NumPy or 0-dimensional tensor scalar as a float. Raises Fault for text, None, NaN and infinities.

    >>> finite(True)
    1.0
    """
    if type(value) is not float:
        try:
            if not hasattr(value, "__float__"):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise Fault("returned", f"{shorten(repr(value))} ({type(value).__name__})") from None
        value = number
    if not math.isfinite(value):
        raise Fault("returned", f"{value} (not a finite number)")
    return value


def reference(item: Item, reward: str) -> str:
    """The item's answer. Raises QuatrainError where it has none."""
    if item.answer is None:
        raise QuatrainError(
            f"reward {reward} compares with an answer and item {item.id} has none",
            given=f"prompt {shorten(str(item.prompt))!r}",
            expected="an answer for every item",
            fix="name the column that holds it (answer=…), or judge with a function of your own (reward=file.py:function)",
        )
    return item.answer


def shorten(text: str, limit: int = 120) -> str:
    """At most ``limit`` characters, the end kept: final answers stand there.

    >>> shorten("a long solution, then 42", 11)
    'a … hen 42'
    """
    if len(text) <= limit:
        return text
    head = (limit - 3) // 4
    return f"{text[:head].rstrip()} … {text[len(text) - (limit - 3 - head) :].lstrip()}"

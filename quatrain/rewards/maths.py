"""Is the final answer mathematically the reference?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

from quatrain.errors import QuatrainError
from quatrain.rewards.base import reference
from quatrain.rewards.extract import final_answer, is_formula, last_number, marked_answer

if TYPE_CHECKING:
    from quatrain.protocols import Item

LONGEST = 200  # characters; what is longer is compared as text: a parser may take minutes over garbage
_PLAIN = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(/\d+)?")
_CROWD = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@dataclass(frozen=True)
class Math:
    r"""1 if the completion's final answer equals the item's answer, else 0.

    The final answer: see ``extract.final_answer``. Equal texts and equal numbers are decided at once; everything else by
    math-verify (LaTeX and plain expressions, sets, intervals, equations). Never raises for a completion. It may hang or
    blow up in the computer algebra system, so it is not trusted: it runs in workers, which keep the time.

    Raises QuatrainError if math-verify is not installed.

    >>> from quatrain.protocols import Item
    >>> reward = Math()
    >>> [reward(text, Item(0, "", "0.5")) for text in (r"so \boxed{\frac{1}{2}}", "#### 0.50", "the answer is 1/2.", "2")]
    [1.0, 1.0, 1.0, 0.0]
    """

    name: ClassVar[str] = "math"
    trusted: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("answer",)

    def __post_init__(self) -> None:
        if find_spec("math_verify") is None:
            raise QuatrainError("reward math needs math-verify, which is not installed", fix="pip install quatrain[reasoning]")

    def prepare(self) -> None:
        """Import the computer algebra system and build its parser."""
        equivalent("x+1", "1+x")

    def __call__(self, completion: str, item: Item) -> float:
        wanted = reference(item, self.name)
        wanted = marked_answer(wanted) or wanted
        given = final_answer(completion)
        if given is None:  # no formula anywhere: the answer may be a word
            return float(bare(completion) == bare(wanted) != "")
        return float(equivalent(given, wanted))


def equivalent(given: str, wanted: str) -> bool:
    """Are two answers the same text, number or expression? A percentage equals both its number and its fraction.

    >>> equivalent("1,000", "1000"), equivalent("$18", "18"), equivalent("7 apples", "7"), equivalent("50%", "0.5"), equivalent("7", "8")
    (True, True, True, True, False)
    """
    left, right = bare(given), bare(wanted)
    if left == right:
        return left != ""
    left_number, right_number = number(left), number(right)
    if right_number is not None and left_number is None and "\\" not in left and not is_formula(left):
        # "18 dollars": a number and words. math-verify would multiply the letters.
        found = last_number(left)
        left_number = number(bare(found)) if found else None
        return left_number == right_number
    if left_number is None or right_number is None:
        if max(len(left), len(right)) > LONGEST:
            return False
        return _verified(given, wanted)
    if ("%" in given) != ("%" in wanted) and 100 * min(left_number, right_number) == max(left_number, right_number):
        return True
    # A rounded decimal against a fraction is math-verify's to decide.
    return left_number == right_number or (("/" in left) != ("/" in right) and _verified(given, wanted))


def _verified(given: str, wanted: str) -> bool:
    from math_verify import parse, verify

    # Its own timeouts are signals, which work in a main thread only and not during one long multiplication: the worker keeps the time.
    left, right = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (given, wanted))
    return bool(left and right and verify(right, left, timeout_seconds=None))


def bare(text: str) -> str:
    """Without what does not change a value: case, spaces, currency, percent, thousands separators, a final full stop.

    >>> bare("$ 1,250.50 "), bare("50 %"), bare("x + 1."), bare("1 2")
    ('1250.50', '50', 'x+1', '1 2')
    """
    text = text.strip().strip("$").removeprefix("\\$").strip().rstrip(".").removesuffix("%").removesuffix("\\").strip()
    if not is_formula(text):
        return " ".join(text.casefold().split())
    return _CROWD.sub("", re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text))


def number(text: str) -> Fraction | None:
    """An integer, decimal or simple fraction, exactly; None for anything else.

    >>> number("-1.5"), number("3/6"), number("1/0"), number("x")
    (Fraction(-3, 2), Fraction(1, 2), None, None)
    """
    if len(text) > 100 or not _PLAIN.fullmatch(text):
        return None
    top, _, bottom = text.partition("/")
    if bottom and int(bottom) == 0:
        return None
    return Fraction(top) / (int(bottom) if bottom else 1)

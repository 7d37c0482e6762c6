"""Where the final answer stands in a completion."""

from __future__ import annotations

import re

# A number as people write it: sign, thousands separators, decimals, exponent, a simple fraction.
_INTEGER = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_NUMBER = re.compile(rf"(?<![\w.)])-?(?:{_INTEGER}(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+\b)?(?:\s?/\s?{_INTEGER}(?![\w]))?")
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"####[ \t]*([^\n]*\S)")
_PHRASE = re.compile(r"\banswer\s*(?:is|:|=)\s*:?\s*([^\n]+)", re.IGNORECASE)
_INLINE = re.compile(r"\$\$?([^$\n]+?)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_COMMAND = re.compile(r"\\(?:text|mathrm|operatorname|mathbf)\s*\{[^{}]*\}|\\[A-Za-z]+")
_SENTENCE_END = re.compile(r"\.(?=\s|$)")


def marked_answer(text: str) -> str | None:
    r"""The answer that an explicit mark points at, None without one.

    In this order, each the last of its kind: \boxed{…}, "#### …", <answer>…</answer> (in which another mark may stand).

    >>> marked_answer(r"first \boxed{1}, no: \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> marked_answer("6*7=42 #### 42")
    '42'
    """
    boxed = _boxed(text)
    if boxed is not None:
        return boxed
    for pattern in (_HASHES, _TAG):
        found = pattern.findall(text)
        if found:
            return found[-1].strip()
    return None


def final_answer(text: str) -> str | None:
    """The final answer of a completion as written, None if there is nothing like one.

    A marked answer; else what follows the last "answer is" or "answer:"; else a whole text that is one short formula;
    else the last formula between dollars; else the last number.

    >>> final_answer("So she has 3 + 4 = 7 apples. The answer is 7 apples.")
    '7'
    >>> final_answer("She pays $5 and then $1,250.50 more.")
    '1,250.50'
    >>> final_answer("x + 1")
    'x + 1'
    """
    marked = marked_answer(text)
    if marked is not None:
        return marked
    phrases = _PHRASE.findall(text)
    if phrases:
        return _tidy(_SENTENCE_END.split(phrases[-1], maxsplit=1)[0])
    stripped = text.strip().rstrip(".")
    if stripped and "\n" not in stripped and len(stripped) <= 80 and "=" not in stripped and is_formula(stripped):
        return stripped.strip("$ ")
    formulas = [next(filter(None, groups)).strip() for groups in _INLINE.findall(text)]
    formulas = [formula for formula in formulas if is_formula(formula)]
    if formulas:
        return formulas[-1].rsplit("=", 1)[-1].strip() or formulas[-1]
    return last_number(text)


def last_number(text: str) -> str | None:
    """The last number as written, None without one. A minus right after a number or letter is a subtraction, not a sign.

    >>> last_number("10-3 is 7, or 1/2 of 14"), last_number("7-3"), last_number("it is -3.5.")
    ('14', '3', '-3.5')
    """
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(" ", "") if numbers else None


def is_formula(text: str) -> bool:
    r"""No words: at most single letters outside of LaTeX commands.

    >>> is_formula(r"3\sqrt{2} + x"), is_formula("5 and ")
    (True, False)
    """
    return re.search(r"[^\W\d_]{2}", _COMMAND.sub(" ", text)) is None


def _tidy(phrase: str) -> str:
    """A formula as it is; in words, the formula between dollars or the first number; else the words."""
    phrase = phrase.strip().strip("*").strip()
    inline = _INLINE.search(phrase)
    if inline and is_formula(inline.group()):
        return next(filter(None, inline.groups())).strip()
    if is_formula(phrase):
        return phrase
    first = _NUMBER.search(phrase)
    return first.group().replace(" ", "") if first else phrase


def _boxed(text: str) -> str | None:
    r"""The content of the last \boxed{…} (or \fbox) with balanced braces."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    open_at = text.find("{", start)
    if open_at < 0 or text[start:open_at].strip() not in ("\\boxed", "\\fbox"):
        return None
    depth = 0
    for position in range(open_at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[open_at + 1 : position].strip()
    return None

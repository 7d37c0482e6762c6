"""Typed calls: ``tool(argument)``, one per turn. What is no call is told so, in words that the embedded model can read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

TYPES = {  # tool → (what its argument looks like, in words)
    "look": (re.compile("[a-l]"), "a letter from a to l"),
    "ask": (re.compile("[a-l]"), "a letter from a to l"),
    "calc": (re.compile(r"\d{1,4}[-+*]\d{1,4}"), "a+b, a-b or a*b"),
    "say": (re.compile(r"[a-z]|-?\d{1,8}"), "a letter or a number"),
}
CALL = re.compile(r"\s*([a-z]+)\(([^()]*)\)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Call:
    tool: str
    argument: str


def parse_call(text: str, tools: Sequence[str]) -> Call | str:
    """The call that the text is, or what is wrong with it.

    >>> parse_call("look(b)\\n", ("look", "say"))
    Call(tool='look', argument='b')
    >>> [parse_call(text, ("look", "say")) for text in ("look b", "calc(1+2)", "look(7)")]
    ['write tool(argument)', 'no tool calc', 'look takes a letter from a to l']
    """
    found = CALL.fullmatch(text)
    if found is None:
        return "write tool(argument)"
    tool, argument = found[1].lower(), found[2].strip().lower()
    if tool not in tools:
        return f"no tool {tool}"
    pattern, words = TYPES[tool]
    return Call(tool, argument) if pattern.fullmatch(argument) else f"{tool} takes {words}"


def calculate(expression: str) -> str:
    """The value of ``a+b``, ``a-b`` or ``a*b`` of whole numbers.

    >>> [calculate(text) for text in ("7+5", "3-9", "12*12")]
    ['12', '-6', '144']
    """
    left, operation, right = re.fullmatch(r"(\d+)([-+*])(\d+)", expression).groups()
    a, b = int(left), int(right)
    return str(a + b if operation == "+" else a - b if operation == "-" else a * b)

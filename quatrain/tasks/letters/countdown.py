"""Countdown: ``3,7,2@13=`` asks for an expression that uses each number once and equals the target: ``7*2-1``-like texts.

Several answers are right; the verifier evaluates the expression exactly, in fractions. The typical mistake is to write
a well-formed expression of the right numbers that misses the target.
"""

from __future__ import annotations

import re
from fractions import Fraction
from random import Random

from quatrain.tasks.letters.kind import Kind, Problem, below

SIZES = (2, 3, 3, 4, 4)  # how many numbers, by level
SIGNS = ("+-", "+-", "+-*", "+-", "+-*")
LONGEST = 64  # characters of an expression that the verifier reads
_TOKEN = re.compile(r"\d+|[-+*/()]")


def evaluate(text: str) -> tuple[Fraction, list[int]] | None:
    """(value, the numbers used in order) of an expression in + - * / and parentheses; None if it is not one.

    >>> evaluate("(3+1)/2"), evaluate("3+"), evaluate("1/0")
    ((Fraction(2, 1), [3, 1, 2]), None, None)
    """
    tokens = _TOKEN.findall(text)
    if len(text) > LONGEST or "".join(tokens) != text:
        return None
    place, numbers = 0, []

    def peek() -> str:
        return tokens[place] if place < len(tokens) else ""

    def take() -> str:
        nonlocal place
        place += 1
        return tokens[place - 1]

    def operand() -> Fraction | None:
        token = peek()
        if token == "(":
            take()
            value = run("+-", lambda: run("*/", operand))
            return take() and value if value is not None and peek() == ")" else None
        if not token.isdigit():
            return None
        numbers.append(int(take()))
        return Fraction(numbers[-1])

    def run(signs: str, part) -> Fraction | None:
        value = part()
        while value is not None and peek() and peek() in signs:
            sign, right = take(), part()
            if right is None or (sign == "/" and right == 0):
                return None
            value = value + right if sign == "+" else value - right if sign == "-" else value * right if sign == "*" else value / right
        return value

    value = run("+-", lambda: run("*/", operand))
    return None if value is None or place < len(tokens) else (value, numbers)


def _check(completion: str, problem: Problem, answer: str) -> bool:
    result = evaluate(completion.strip())
    return result is not None and result[0] == problem[1] and sorted(result[1]) == sorted(problem[0])


def _value(numbers: list[int], signs: str) -> int:
    """numbers[0] signs[0] numbers[1] …, multiplication first."""
    total, product = 0, numbers[0]
    for sign, number in zip(signs, numbers[1:], strict=True):
        if sign == "*":
            product *= number
        else:
            total, product = total + product, number if sign == "+" else -number
    return total + product


def _write(numbers: list[int], signs: str) -> str:
    return str(numbers[0]) + "".join([f"{sign}{number}" for sign, number in zip(signs, numbers[1:], strict=True)])


def _draw(random: Random, level: int) -> Problem:
    """(numbers as shown, target, one expression): the expression comes first, then the numbers are shuffled."""
    size, signs = SIZES[level - 1], SIGNS[level - 1]
    while True:
        numbers = [1 + below(random, 9) for _ in range(size)]
        chosen = "".join([signs[below(random, len(signs))] for _ in range(size - 1)])
        target = _value(numbers, chosen)
        if 0 <= target <= 99:
            shown = tuple(sorted(numbers, key=lambda _: random.random()))
            return shown, target, _write(numbers, chosen)


def _slip(problem: Problem, random: Random, rate: float) -> str:
    shown, target, solution = problem
    if random.random() >= rate:
        return solution
    for _ in range(8):
        numbers = sorted(shown, key=lambda _: random.random())
        signs = "".join(["+-*"[below(random, 3)] for _ in range(len(numbers) - 1)])
        if _value(numbers, signs) != target:
            return _write(numbers, signs)
    return str(shown[0])


countdown = Kind(
    name="countdown",
    draw=_draw,
    key=lambda problem: f"{sorted(problem[0])}@{problem[1]}",
    prompt=lambda problem: ",".join(map(str, problem[0])) + f"@{problem[1]}=",
    steps=lambda problem: (problem[2],),
    slip=_slip,
    check=_check,
)

"""Chained operations: ``7+5-3*2......>`` is worked from left to right modulo 10, every intermediate value written: ``2>9>8``.

The prompt is a form of fixed width, filled up with dots, so that a value always stands at the same distance from its
operation. The typical mistake is to read ``*`` as ``+``; a long chain is right only if every step is, so that it
matters which step is credited.

``worked`` is the same problems with solutions in another hand: every operation is copied before its value, ``7+5=2-3=9*2=8>8``.
A pupil answers both in the short form, so that its demonstrations are not what it would write itself. ``long`` is solved and answered
at length, every operation with both of its numbers: ``7+5=2;2-3=9;9*2=8;8``, up to 38 characters.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from quatrain.tasks.letters.kind import Kind, Problem, after, below

OPERATIONS = (1, 2, 3, 4, 6)  # by level
WIDTH = 13


def _draw(random: Random, level: int) -> Problem:
    parts = [str(below(random, 10))]
    for _ in range(OPERATIONS[level - 1]):
        parts.append("+-*"[below(random, 3)])
        parts.append(str(below(random, 10)))
    return ("".join(parts),)


def values_of(problem: Problem, random: Random | None = None, rate: float = 0.0) -> list[str]:
    text = problem[0]
    value, values = int(text[0]), []
    for place in range(1, len(text), 2):
        operation, operand = text[place], int(text[place + 1])
        if operation == "*" and random is not None and random.random() < rate:
            operation = "+"
        value = (value + operand if operation == "+" else value - operand if operation == "-" else value * operand) % 10
        values.append(str(value))
    return values


def _work(problem: Problem) -> str:
    text = problem[0]
    pairs = [text[place : place + 2] for place in range(1, len(text), 2)]
    return text[0] + "".join([f"{pair}={value}" for pair, value in zip(pairs, values_of(problem), strict=True)])


chain = Kind(
    name="chain",
    draw=_draw,
    key=lambda problem: problem[0],
    prompt=lambda problem: problem[0].ljust(WIDTH, ".") + ">",
    steps=lambda problem: tuple(values_of(problem)),
    slip=lambda problem, random, rate: ">".join(values_of(problem, random, rate)),
    check=after(">"),
    mark=">",
)

worked = replace(chain, name="worked", steps=lambda problem: (_work(problem), values_of(problem)[-1]))


def _long(problem: Problem, random: Random | None = None, rate: float = 0.0) -> tuple[str, ...]:
    text = problem[0]
    before, steps = text[0], []
    for place, value in zip(range(1, len(text), 2), values_of(problem, random, rate), strict=True):
        steps.append(f"{before}{text[place : place + 2]}={value}")
        before = value
    return (*steps, before)


long = replace(
    chain,
    name="long",
    steps=_long,
    slip=lambda problem, random, rate: ";".join(_long(problem, random, rate)),
    check=after(";"),
    mark=";",
)

"""Two ways to answer a chain of operations, each opened by a character: ``#`` works it out, ``>`` answers at once.

``7+5-3*2......=`` is answered ``#2>9>8>8``, every intermediate value and then the answer, or ``>8``. Problems are those of ``chain``,
three levels of one operation (a sum, a difference, a product), which is easily done at once, and two of three and six, which are not;
worked, each step is easy, at two characters a step. A pupil takes either way by the toss of a coin, whatever the level, and reads
``*`` as ``+`` in both. What follows the last ``>`` is judged, with or without an opening.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from quatrain.tasks.letters.chain import WIDTH, chain, values_of
from quatrain.tasks.letters.kind import Problem, after, below

WORKED, DIRECT = "#", ">"  # what a completion of the mode begins with
OPERATIONS, SIGNS = (1, 1, 1, 3, 6), ("+", "-", "*", "+-*", "+-*")  # by level
EASY = 3  # the highest level of one operation


def _draw(random: Random, level: int) -> Problem:
    signs, parts = SIGNS[level - 1], [str(below(random, 10))]
    for _ in range(OPERATIONS[level - 1]):
        parts += [signs[below(random, len(signs))], str(below(random, 10))]
    return ("".join(parts),)


def _steps(values: list[str]) -> tuple[str, ...]:
    return (WORKED + values[0], *values[1:], values[-1])


def _pupil(problem: Problem, random: Random, rate: float) -> str:
    worked = random.random() < 0.5
    values = values_of(problem, random, rate)
    return ">".join(_steps(values)) if worked else DIRECT + values[-1]


modes = replace(
    chain,
    name="modes",
    draw=_draw,
    prompt=lambda problem: problem[0].ljust(WIDTH, ".") + "=",
    steps=lambda problem: _steps(values_of(problem)),
    slip=_pupil,
    check=after(">"),
    mark=">",
)

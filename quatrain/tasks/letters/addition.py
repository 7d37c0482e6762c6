"""Multi-digit addition: ``47+38=`` answered at once, ``47+38:`` with a scratchpad of column sums.

The typical mistake is to forget to carry.
"""

from __future__ import annotations

from random import Random

from quatrain.tasks.letters.kind import Kind, Problem, after, below

ADD_DIGITS = ((1, 1), (2, 1), (2, 2), (3, 2), (3, 3))  # of the two numbers, by level
SCRATCH_DIGITS = ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6))


def _number(random: Random, digits: int) -> int:
    low = 10 ** (digits - 1) if digits > 1 else 0
    return low + below(random, 10**digits - low)


def _draw(sizes: tuple[tuple[int, int], ...]):
    def draw(random: Random, level: int) -> Problem:
        first, second = sizes[level - 1]
        return _number(random, first), _number(random, second)

    return draw


def _key(problem: Problem) -> str:
    return f"+{min(problem)},{max(problem)}"  # both orders, with and without scratchpad


def _columns(problem: Problem, random: Random | None = None, rate: float = 0.0) -> list[int]:
    """Sums of the columns from the right, each with its carry; a carry is forgotten with probability ``rate``."""
    first, second = problem
    sums, carry = [], 0
    while first or second or not sums:
        sums.append(first % 10 + second % 10 + carry)
        carry = sums[-1] // 10
        if carry and random is not None and random.random() < rate:
            carry = 0
        first, second = first // 10, second // 10
    if carry:
        sums.append(carry)
    return sums


def _read(sums: list[int]) -> str:
    """The number that column sums spell, from the left and without leading zeros."""
    return "".join([str(value % 10) for value in reversed(sums)]).lstrip("0") or "0"


def _scratch(sums: list[int]) -> str:
    return _work(sums) + "=" + _read(sums)


def _work(sums: list[int]) -> str:
    return ",".join([f"{value:02d}" for value in sums])


add = Kind(
    name="add",
    draw=_draw(ADD_DIGITS),
    key=_key,
    prompt=lambda problem: f"{problem[0]}+{problem[1]}=",
    steps=lambda problem: (str(problem[0] + problem[1]),),
    slip=lambda problem, random, rate: _read(_columns(problem, random, rate)),
)

scratch = Kind(
    name="scratch",
    draw=_draw(SCRATCH_DIGITS),
    key=_key,
    prompt=lambda problem: f"{problem[0]}+{problem[1]}:",
    steps=lambda problem: (_work(_columns(problem)), str(problem[0] + problem[1])),
    slip=lambda problem, random, rate: _scratch(_columns(problem, random, rate)),
    check=after("="),
    mark="=",
)

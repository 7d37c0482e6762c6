"""Recall over a distance, in the small: what was said once, far back, is asked for.

``recall`` is associative recall of several queries: pairs of a letter and two digits, then all of them twice more, each time in another
order; the very last one's digits are asked for: ``a34b12?b12a34a34b`` → ``12``. As a document it says every pair three times, so that a
reader of the whole can know two of the three characters of every later pair.

``needle`` is retrieval from a haystack: one word over and over, pairs strewn in, one of them asked for: ``cab cab #a34cab ?a`` → ``34``.

The typical mistake is the digits of another key.
"""

from __future__ import annotations

from random import Random

from quatrain.tasks.letters.kind import Kind, Problem, below, word

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PAIRS = (4, 6, 8, 12, 16)  # by level
HAY = (24, 36, 48, 72, 96)  # characters, by level
NEEDLES = 3


def _pairs(random: Random, count: int) -> tuple[tuple[str, str], ...]:
    """Pairs of different letters and different numbers of two digits."""
    return tuple(zip(random.sample(LETTERS, count), [f"{n:02d}" for n in random.sample(range(100), count)], strict=True))


def _draw(random: Random, level: int) -> Problem:
    count = PAIRS[level - 1]
    pairs = _pairs(random, count)
    return pairs, tuple(place for _ in range(2) for place in random.sample(range(count), count))  # in the order of asking


def _prompt(problem: Problem) -> str:
    pairs, order = problem
    said = [key + value for key, value in pairs]
    return "".join(said) + "?" + "".join([said[place] for place in order[:-1]]) + pairs[order[-1]][0]


def _strewn(random: Random, level: int) -> Problem:
    hay = ((word(random, 3, LETTERS) + " ") * (HAY[level - 1] // 4 + 1))[: HAY[level - 1]]
    pairs = _pairs(random, NEEDLES)
    places = sorted(random.sample(range(0, len(hay), 4), NEEDLES))
    return pairs, (below(random, NEEDLES),), hay, tuple(places)


def _haystack(problem: Problem) -> str:
    pairs, (asked,), hay, places = problem
    text, begin = "", 0
    for (key, value), place in zip(pairs, places, strict=True):
        text, begin = text + hay[begin:place] + f"#{key}{value}", place
    return text + hay[begin:] + "?" + pairs[asked][0]


def _answer(problem: Problem) -> tuple[str, ...]:
    return (problem[0][problem[1][-1]][1],)


def _other(problem: Problem, random: Random, rate: float) -> str:
    """The answer, or with that probability the digits of another key."""
    pairs, asked = problem[0], problem[1][-1]
    if random.random() < rate:
        asked = (asked + 1 + below(random, len(pairs) - 1)) % len(pairs)
    return pairs[asked][1]


recall = Kind("recall", draw=_draw, key=_prompt, prompt=_prompt, steps=_answer, slip=_other)
needle = Kind("needle", draw=_strewn, key=_haystack, prompt=_haystack, steps=_answer, slip=_other)

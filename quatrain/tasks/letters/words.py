"""Problems on short words: sort digits, write a word backwards, count a letter, replace each letter by the next one."""

from __future__ import annotations

from random import Random

from quatrain.tasks.letters.kind import Kind, Problem, below, word

LENGTHS = (2, 3, 4, 5, 6)  # by level; one more for ``sort`` and ``count``
WIDTH = 6
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FEW = "abcdefghij"  # the alphabet of ``reverse`` and ``shift``
NEXT = str.maketrans(FEW, FEW[1:] + FEW[0])


def _draw_count(random: Random, level: int) -> Problem:
    alphabet = word(random, 2 + level // 2, LETTERS)  # few letters, so that they repeat
    text = word(random, LENGTHS[level - 1] + 1, alphabet)
    return text[below(random, len(text))], text


def _miscount(problem: Problem, random: Random, rate: float) -> str:
    letter, text = problem
    return str(text.count(letter) - (random.random() < rate))


sort = Kind(
    name="sort",
    draw=lambda random, level: (word(random, LENGTHS[level - 1] + 1, "0123456789"),),
    key=lambda problem: "sort" + "".join(sorted(problem[0])),
    prompt=lambda problem: f"sort {problem[0]}=",
    steps=lambda problem: ("".join(sorted(problem[0])),),
    slip=lambda problem, random, rate: "".join(sorted(problem[0], reverse=random.random() < rate)),
)

reverse = Kind(
    name="reverse",
    draw=lambda random, level: (word(random, LENGTHS[level - 1], FEW),),
    key=lambda problem: "reverse" + problem[0],
    prompt=lambda problem: f"rev {problem[0]}=",
    steps=lambda problem: (problem[0][::-1],),
    slip=lambda problem, random, rate: problem[0] if random.random() < rate and problem[0] != problem[0][::-1] else problem[0][::-1],
)

count = Kind(
    name="count",
    draw=_draw_count,
    key=lambda problem: f"count{problem[0]}{problem[1]}",
    prompt=lambda problem: f"count {problem[0]} {problem[1]}=",
    steps=lambda problem: (str(problem[1].count(problem[0])),),
    slip=_miscount,
)

shift = Kind(
    name="shift",
    draw=lambda random, level: (word(random, LENGTHS[level - 1], FEW),),
    key=lambda problem: "shift" + problem[0],
    prompt=lambda problem: f"next {problem[0]:.<{WIDTH}}=",
    steps=lambda problem: (problem[0].translate(NEXT),),
    slip=lambda problem, random, rate: problem[0] if random.random() < rate else problem[0].translate(NEXT),
)

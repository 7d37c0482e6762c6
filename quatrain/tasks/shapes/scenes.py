"""Scenes: a few coloured forms on a grid of 4 × 4 cells, in words and as an image of 16 tokens."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from quatrain.tasks.letters.kind import below

COLOURS = ("red", "yellow", "green", "blue")
FORMS = ("circle", "square", "heart")
SIDE = 4
CELLS = tuple(f"{row}{column}" for row in "abcd"[:SIDE] for column in range(1, SIDE + 1))  # a1 … d4, row by row
BLANK = "·"
CODES = ("🔴🟥❤", "🟡🟨💛", "🟢🟩💚", "🔵🟦💙")  # by colour, then by form: one character, one token
CODEBOOK = BLANK + "".join(CODES)


class Shape(NamedTuple):
    """One form: numbers of its colour, its form and its cell."""

    colour: int
    form: int
    cell: int

    @property
    def name(self) -> str:
        return f"{COLOURS[self.colour]} {FORMS[self.form]}"


Scene = tuple[Shape, ...]  # in order of their cells, one to a cell


def draw(random: Random, count: int) -> Scene:
    """A scene of ``count`` shapes, uniform."""
    cells = sorted(random.sample(range(SIDE * SIDE), count))
    return tuple(Shape(below(random, len(COLOURS)), below(random, len(FORMS)), cell) for cell in cells)


def image(scene: Scene) -> str:
    """The scene as 16 image tokens, row by row.

    >>> image((Shape(0, 2, 0), Shape(3, 1, 5)))
    '❤····🟦··········'
    """
    tokens = [BLANK] * (SIDE * SIDE)
    for shape in scene:
        tokens[shape.cell] = CODES[shape.colour][shape.form]
    return "".join(tokens)


def read(text: str) -> Scene | None:
    """The scene that an image shows; None for a text that is no image: another length, or a character outside of the codebook.

    >>> read("❤····🟦··········") == (Shape(0, 2, 0), Shape(3, 1, 5)), read("❤")
    (True, None)
    """
    if len(text) != SIDE * SIDE or set(text) - set(CODEBOOK):
        return None
    places = {code: (colour, form) for colour, codes in enumerate(CODES) for form, code in enumerate(codes)}
    return tuple(Shape(*places[code], cell) for cell, code in enumerate(text) if code != BLANK)


def caption(scene: Scene) -> str:
    """The scene in words.

    >>> caption((Shape(0, 2, 0), Shape(3, 1, 5)))
    'red heart a1, blue square b2'
    """
    return ", ".join(f"{shape.name} {CELLS[shape.cell]}" for shape in scene)


def likeness(drawn: Scene, asked: Scene) -> float:
    """Share of shapes that are as asked: right ones over the larger of the two numbers of shapes, in [0, 1]; 1 if the scenes are equal.

    >>> likeness((Shape(0, 2, 0), Shape(3, 1, 6)), (Shape(0, 2, 0), Shape(3, 1, 5)))
    0.5
    """
    return len(set(drawn) & set(asked)) / max(len(drawn), len(asked), 1)

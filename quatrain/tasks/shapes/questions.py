"""Questions about an image, their answers, and a pupil's mistakes on both sides: reading an image and drawing one."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import NamedTuple

from quatrain.tasks.letters.kind import below
from quatrain.tasks.shapes.scenes import CELLS, COLOURS, FORMS, SIDE, Scene, Shape


class Question(NamedTuple):
    text: str
    answer: str


def questions(scene: Scene) -> list[Question]:
    """Every question about the scene with one answer: what is where, which colour, which form, how many.

    >>> [f"{q.text} {q.answer}" for q in questions((Shape(0, 2, 0), Shape(3, 1, 5)))][:4]
    ['what is at a1? red heart', 'where is red heart? a1', 'colour of heart? red', 'form of red? heart']
    """
    names = Counter(shape.name for shape in scene)
    colours, forms = Counter(shape.colour for shape in scene), Counter(shape.form for shape in scene)
    found = []
    for shape in scene:
        found.append(Question(f"what is at {CELLS[shape.cell]}?", shape.name))
        if names[shape.name] == 1:
            found.append(Question(f"where is {shape.name}?", CELLS[shape.cell]))
        if forms[shape.form] == 1:
            found.append(Question(question("colour", shape.form), COLOURS[shape.colour]))
        if colours[shape.colour] == 1:
            found.append(Question(question("form", shape.colour), FORMS[shape.form]))
    return found + [Question(f"how many {COLOURS[colour]}?", str(count)) for colour, count in sorted(colours.items())]


def question(what: str, told: int) -> str:
    """The question for one attribute, ``colour`` or ``form``, of the shape whose other one has that number."""
    return f"{what} of {(FORMS if what == 'colour' else COLOURS)[told]}?"


def ask(scene: Scene, random: Random) -> Question:
    """One of the scene's questions: a kind of question first, then one of that kind."""
    found = questions(scene)
    kinds = sorted({question.text[:3] for question in found})
    kind = kinds[below(random, len(kinds))]
    chosen = [question for question in found if question.text[:3] == kind]
    return chosen[below(random, len(chosen))]


def misread(scene: Scene, random: Random, rate: float) -> Scene:
    """The scene as a careless pupil sees it: with probability ``rate`` each shape has another colour, another form, or is one cell off.

    What would fall on an occupied cell stays where it is.
    """
    taken, seen = {shape.cell for shape in scene}, []
    for shape in scene:
        if random.random() < rate:
            shape = _slipped(shape, taken, random)
            taken.add(shape.cell)
        seen.append(shape)
    return tuple(sorted(seen, key=lambda shape: shape.cell))


def _slipped(shape: Shape, taken: set[int], random: Random) -> Shape:
    what = below(random, 3)
    if what == 0:
        return shape._replace(colour=(shape.colour + 1) % len(COLOURS))
    if what == 1:
        return shape._replace(form=(shape.form + 1) % len(FORMS))
    cell = shape.cell - 1 if shape.cell % SIDE else shape.cell + 1
    return shape if cell in taken else shape._replace(cell=cell)

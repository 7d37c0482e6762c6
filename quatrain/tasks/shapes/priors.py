"""Questions that half answer themselves: hearts are mostly red, so that who does not look is right about as often as they are.

The shortcut that a model with eyes must unlearn. Asked are attributes alone, of scenes that are repainted: which answer is right does not
depend on how the question was chosen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any, NamedTuple

from quatrain.protocols import Item
from quatrain.tasks.letters.kind import below
from quatrain.tasks.shapes.questions import Question, question
from quatrain.tasks.shapes.scenes import COLOURS, FORMS, Scene, image

USUAL = (1, 3, 0)  # the colour of most circles, squares and hearts: yellow, blue, red; nothing is mostly green


class Primed(NamedTuple):
    """A scene, a question about it, and whether the image is needed: its answer is not the usual one."""

    scene: Scene
    question: Question
    depends: bool


def usual(text: str) -> str | None:
    """What one answers without looking; None where that is a mere guess.

    >>> usual("colour of heart?"), usual("form of blue?"), usual("where is red heart?"), usual("form of green?")
    ('red', 'square', None, None)
    """
    return next((habit.answer for habit in habits() if habit.text == text), None)


def strength(text: str) -> float:
    """How firmly the usual answer is believed, in [0, 1]: that hearts are red more than that squares are blue, and that circles are yellow.

    >>> strength("colour of heart?"), strength("where is red heart?")
    (1.0, 0.0)
    """
    return next(((place // 2 + 1) / len(FORMS) for place, habit in enumerate(habits()) if habit.text == text), 0.0)


@cache
def habits() -> tuple[Question, ...]:
    """Both questions about each form's usual colour, form by form."""
    found = []
    for form, colour in enumerate(USUAL):
        found += [Question(question("colour", form), COLOURS[colour]), Question(question("form", colour), FORMS[form])]
    return tuple(found)


def prime(scene: Scene, random: Random, depends: bool) -> Primed | None:
    """The scene, one shape of it repainted, with a question about that shape whose answer is the usual one, or (``depends``) any other.

    None for a scene in which no form, and no colour that is usual, occurs exactly once.
    """
    forms, colours = Counter(shape.form for shape in scene), Counter(shape.colour for shape in scene)
    asked = [("colour", place) for place, shape in enumerate(scene) if forms[shape.form] == 1]
    asked += [("form", place) for place, shape in enumerate(scene) if colours[shape.colour] == 1 and shape.colour in USUAL]
    if not asked:
        return None
    what, place = asked[below(random, len(asked))]
    shape = scene[place]
    told, mostly, names = (shape.form, USUAL[shape.form], COLOURS) if what == "colour" else (shape.colour, USUAL.index(shape.colour), FORMS)
    value = (mostly + 1 + below(random, len(names) - 1)) % len(names) if depends else mostly
    painted = (*scene[:place], shape._replace(**{what: value}), *scene[place + 1 :])
    return Primed(painted, Question(question(what, told), names[value]), depends)


def reliance(items: Sequence[Item], completions: Sequence[str], rewards: Any) -> dict[str, float]:
    """How M answers lean on what is usual: nothing, where no item says whether its answer ``depends`` on the image.

    accuracy/image, accuracy/prior   share solved of those that do, and that do not. rewards [M] tensor.
    blind                            share of the former that were given the usual answer, in [0, 1]
    """
    from quatrain.tasks.text import accuracies

    labels = [{True: ["image"], False: ["prior"]}.get(item.data.get("depends"), []) for item in items]
    asked = [(item, said.strip()) for item, said in zip(items, completions, strict=True) if item.data.get("depends")]
    blind = [said == usual(item.prompt.removeprefix(image(item.data["scene"]))) for item, said in asked]
    return accuracies(labels, rewards) | ({"blind": sum(blind) / len(blind)} if blind else {})

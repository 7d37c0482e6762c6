"""The embedded model of shapes: a tiny causal model over characters and image tokens, taught on the spot, mistakes included.

The first part of its lesson is proper. In the rest it watches a careless pupil, who misreads shapes: asked about an image it answers
for what it saw, and it draws what it understood. So its samples are right more often than its greedy answers.

Where questions half answer themselves the pupil has a bad habit as well: it says what is usual and does not look, the more often the
firmer it believes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from quatrain.seeds import mix
from quatrain.tasks.shapes.priors import strength, usual
from quatrain.tasks.shapes.problems import SIDES, Problems
from quatrain.tasks.shapes.questions import misread, questions
from quatrain.tasks.shapes.scenes import CODEBOOK, image


@dataclass(frozen=True)
class ShapesLesson:
    """Everything that the weights depend on.

    slip      probability that a shape is misread, but for the first part of the examples, ``proper``; in [0, 1].
    prior     above 0: questions alone, this share of which their words answer.
    habit     probability that the usual answer is given without looking, times its ``priors.strength``, but for the first part of the
              examples; in [0, 1].
    Other fields as in ``warm_start.Lesson``.
    """

    laboratory: str = "shapes"
    objects: tuple[int, int] = (1, 3)
    slip: float = 0.3
    proper: float = 0.8
    hidden: int = 96
    inner: int = 256
    layers: int = 2
    heads: int = 4
    groups: int = 2
    examples: int = 28_000
    rows: int = 48
    rate: float = 4e-3
    seed: int = 0
    prior: float = 0.0
    habit: float = 0.0


PUPILS: dict[str, dict[str, Any]] = {"tiny:shapes": {}, "tiny:shapes-prior": {"prior": 0.5, "habit": 0.7, "examples": 16_000}}


def corpus(lesson: ShapesLesson) -> Iterator[tuple[str, str]]:
    """(prompt, completion) of one example after the other, reading and drawing in turns; with a prior, reading alone."""
    sides = SIDES[:1] if lesson.prior else SIDES
    problems = Problems("train", sides, lesson.objects, lesson.examples, mix(lesson.seed, 1), lesson.prior)
    for index, item in enumerate(problems):
        scene, random = item.data["scene"], Random(mix(lesson.seed, 2, index))
        careless = index >= lesson.proper * lesson.examples
        seen = misread(scene, random, lesson.slip) if careless else scene
        if item.data["kind"] == "generation":
            yield item.prompt, image(seen)
            continue
        asked = item.prompt.removeprefix(image(scene))  # what the pupil saw may leave the question without an answer
        if careless and random.random() < lesson.habit * strength(asked):
            yield item.prompt, usual(asked) or item.answer
            continue
        yield item.prompt, next((question.answer for question in questions(seen) if question.text == asked), item.answer)


def pupil(name: str = "tiny:shapes", *, show: bool = True, **changes: Any) -> Any:
    """The model as a CausalLM, built at first use and cached; under a minute: tiny:shapes, or tiny:shapes-prior, which hardly looks.

    changes  fields of ``ShapesLesson`` that differ.
    """
    from quatrain.tasks.embedded import DEFAULTS
    from quatrain.tasks.taught import completions, lesson_of, on_rows, taught

    build = on_rows(lambda lesson, tokens: completions(corpus(lesson), tokens), CODEBOOK)
    lesson = lesson_of(ShapesLesson, PUPILS[name], changes)
    return taught(lesson, build, name=name, defaults={**DEFAULTS, "max_actions": 20}, show=show)

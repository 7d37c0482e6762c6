"""The embedded masked-diffusion model: the shape and the lessons of the embedded causal one, with all of an answer in sight at once.

It is taught by its own likelihood (one mask draw per example), so that what it learns is what supervised fine-tuning would go on with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from quatrain.errors import QuatrainError, nearest
from quatrain.tasks.cache import Report
from quatrain.tasks.embedded import DEFAULTS, LESSONS, SHARES, tokenizer, untrained
from quatrain.tasks.taught import lesson_of, taught
from quatrain.tasks.warm_start import Lesson, corpus, descend

MASK = "<mask>"
SHORT = {kind: share for kind, share in SHARES.items() if kind != "scratch"}  # whose answers fit on the canvas
OWN: dict[str, dict[str, Any]] = {
    "base": {**LESSONS["base"], "shares": SHORT, "examples": 72_000},
    "strong": {**LESSONS["strong"], "shares": {**SHORT, "shift": 3}, "examples": 96_000},
}


@dataclass(frozen=True)
class CanvasLesson(Lesson):
    """A lesson, and how its pupil samples: canvas, block and steps of ``models.unmasking.Unmasking``."""

    canvas: int = 12
    block: int = 4
    steps: int = 12


def tiny_diffusion(name: str = "base", *, show: bool = True, **changes: Any) -> Any:
    """The embedded model as a MaskedDiffusionLM: ``base``, or ``strong``, which was taught longer and without mistakes.

    name     one of these two, with or without the prefix of model=tiny-diffusion, model=tiny-diffusion:strong.
    show     a progress bar while it is built for the first time (about a minute).
    changes  fields of ``CanvasLesson`` that differ: another model, with a place of its own in the cache.

    Raises QuatrainError for an unknown name or field.
    """
    from quatrain.models.masked_diffusion import MaskedDiffusionLM

    name = name.removeprefix("tiny-diffusion").removeprefix(":") or "base"
    if name not in OWN:
        raise QuatrainError("no such embedded model", given=f"tiny-diffusion:{name}", fix=nearest(name, OWN))
    lesson = lesson_of(CanvasLesson, OWN[name], changes)
    defaults = {**DEFAULTS, "max_actions": lesson.canvas}
    return taught(lesson, build, name=f"tiny-diffusion:{name}", defaults=defaults, show=show, policy=MaskedDiffusionLM)


def build(lesson: CanvasLesson, folder: Path, report: Report) -> None:
    """Teach a model the lesson, by its evidence bound, and write its directory."""
    from quatrain.models.masked_diffusion import MaskedDiffusionLM
    from quatrain.models.unmasking import Unmasking
    from quatrain.parts.likelihoods import LogProb

    tokens = tokenizer()
    tokens.add_special_tokens({"mask_token": MASK})
    policy = MaskedDiffusionLM(untrained(lesson, tokens), tokens, Unmasking(lesson.canvas, lesson.block, lesson.steps))

    def losses() -> Iterator[Any]:
        examples = corpus(lesson)
        while rows := list(islice(examples, lesson.rows)):
            shown = policy.demonstrate([policy.encode(prompt) for prompt, _ in rows], [completion for _, completion in rows])
            bound = policy.score(shown, [LogProb()])[LogProb()]
            policy.version += 1
            yield -bound.sum() / (len(rows) * lesson.canvas)

    descend(policy.module, lesson, losses(), report)
    policy.save(folder)

"""An embedded model for episodes of several turns: taught on the spot by watching an expert who makes mistakes, and cached.

Of an environment with ``expert``, ``slip`` and ``lessons``. Only turns are learnt, answers of the environment are read. A share of
the turns is the environment's typical mistake, and the expert goes on from what came of it: so the model has the skills, bad habits
on top of them, and has seen how to recover; its samples succeed more often than chance and less often than they could.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import torch

from quatrain.environments.loading import load_environment
from quatrain.seeds import mix
from quatrain.tasks.turns import TurnTask

AT_ONCE = 256  # episodes played together


@dataclass(frozen=True)
class Apprenticeship:
    """Everything that the weights depend on, but for the environment's code.

    watched  the tasks whose episodes are watched, one after the other.
    slip     share of the turns that are mistakes, in [0, 1], but for the first part of the episodes, ``proper``.
    Other fields as in ``warm_start.Lesson``; ``examples`` are episodes, those of sub-agents not counted.
    """

    watched: tuple[str, ...]
    slip: float = 0.3
    proper: float = 0.6
    hidden: int = 96
    inner: int = 256
    layers: int = 2
    heads: int = 4
    groups: int = 2
    examples: int = 3000
    rows: int = 24
    rate: float = 4e-3
    seed: int = 0


class Reader:
    """One token per character, as the embedded tokenizer has it, and quickly: what a task asks of a policy to write down texts."""

    version, chat_template = 0, None

    def __init__(self, vocabulary: dict[str, int], end: int):
        self.vocabulary, self.end, self.device = vocabulary, end, torch.device("cpu")

    def encode(self, prompt: str) -> list[int]:
        return [self.vocabulary[character] for character in prompt]

    def encode_completion(self, text: str) -> list[int]:
        return [*self.encode(text), self.end]

    def encode_reply(self, text: str, chat: bool = False) -> list[int]:
        return self.encode(text)


def watched(lesson: Apprenticeship, reader: Reader) -> Iterator[tuple[list[int], list[int]]]:
    """(tokens, labels) of one row after the other; labels are −100 on what is no turn."""
    tasks = [
        TurnTask(spec, load_environment(spec, mix(lesson.seed, number) >> 40), lesson.seed) for number, spec in enumerate(lesson.watched)
    ]

    def says(episode: Any, environment: Any, slip: float) -> str:
        random = Random(mix(lesson.seed, 5, episode.seed, episode.turn))
        return environment.slip(episode.state, random) if random.random() < slip else environment.expert(episode.state)

    for first in range(0, lesson.examples, AT_ONCE):
        count, slip = min(AT_ONCE, lesson.examples - first), lesson.slip if first >= lesson.proper * lesson.examples else 0.0
        for number, task in enumerate(tasks):
            share = count * (number + 1) // len(tasks) - count * number // len(tasks)
            speaks = partial(says, environment=task.environment, slip=slip)
            for episode in task.shown(reader, task.starts("train", first, share), speaks):
                labels = [token if acts else -100 for token, acts in zip(episode.tokens, episode.acts, strict=True)]
                yield episode.context, [-100] * len(episode.prompt) + labels


def apprentice(environment: Any, *, show: bool = True, **changes: Any) -> Any:
    """The embedded model of an environment as a CausalLM, built at first use (under a minute on two cores).

    changes  fields of ``Apprenticeship`` that differ: another model, with a place of its own in the cache.
    """
    from quatrain.tasks.embedded import DEFAULTS
    from quatrain.tasks.taught import lesson_of, on_rows, taught

    asked = {"watched": tuple(environment.lessons), "slip": getattr(environment, "slips", Apprenticeship.slip)}
    lesson = lesson_of(Apprenticeship, asked, changes)
    build = on_rows(lambda lesson, tokens: list(watched(lesson, Reader(tokens.get_vocab(), tokens.eos_token_id))))
    defaults = {**DEFAULTS, "max_actions": environment.limits.turns * environment.limits.turn_tokens}
    return taught(lesson, build, name=f"an apprentice of {lesson.watched[0]}", defaults=defaults, show=show)

"""The embedded language model of fast weights: built on the spot, taught whole documents of recall, and cached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from quatrain.tasks.taught import completions, lesson_of, on_rows, taught
from quatrain.tasks.warm_start import Lesson, corpus

DEFAULTS = {"lr": 2e-4, "prompts": 8, "max_actions": 4}  # knobs that suit a model and answers of this size


@dataclass(frozen=True)
class DeltaLesson(Lesson):
    """A lesson of whole documents, prompt and solution, every token after the first predicted. It ends soon after recall has set in.

    levels  (lowest, highest) of the problems; ``groups`` has no meaning here.
    """

    hidden: int = 64
    inner: int = 128
    heads: int = 2
    shares: Mapping[str, int] = field(default_factory=lambda: {"recall": 1})
    examples: int = 11_000
    rows: int = 32
    rate: float = 6e-3
    levels: tuple[int, int] = (1, 1)


def tiny_delta(*, show: bool = True, **changes: Any) -> Any:
    """The embedded model of fast weights as a CausalLM, which recalls some of what it was told.

    show     a progress bar while it is built for the first time (about a minute).
    changes  fields of ``DeltaLesson`` that differ: another model, with a place of its own in the cache.

    Raises QuatrainError for an unknown field.
    """
    from quatrain.models import delta_net  # noqa: F401 – what is kept is loaded by the name that it registers

    build = on_rows(documents, made=untrained)
    return taught(lesson_of(DeltaLesson, {}, changes), build, name="tiny-delta", defaults=DEFAULTS, show=show)


def documents(lesson: DeltaLesson, tokens: Any) -> Iterator[tuple[list[int], list[int]]]:
    for document, _ in completions(corpus(lesson), tokens):
        yield document, [-100, *document[1:]]


def untrained(lesson: DeltaLesson, tokens: Any) -> Any:
    """The model with the lesson's shape and initial weights; the global random state is left as it was."""
    from quatrain.models.delta_net import DeltaNetConfig, DeltaNetForCausalLM

    config = DeltaNetConfig(
        vocab_size=len(tokens),
        hidden_size=lesson.hidden,
        intermediate_size=lesson.inner,
        num_hidden_layers=lesson.layers,
        num_attention_heads=lesson.heads,
        pad_token_id=tokens.pad_token_id,
        eos_token_id=tokens.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lesson.seed)
        return DeltaNetForCausalLM(config)

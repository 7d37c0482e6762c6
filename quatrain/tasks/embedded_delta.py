"""The embedded language model of fast weights: built on the spot, taught whole documents of recall, and cached."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from quatrain.errors import QuatrainError, nearest
from quatrain.seeds import mix
from quatrain.tasks.embedded import cached, tokenizer
from quatrain.tasks.warm_start import Lesson, corpus, descend, loss_on, shelved

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
    from transformers import AutoTokenizer

    from quatrain.models.causal_lm import CausalLM, quiet
    from quatrain.models.delta_net import DeltaNetForCausalLM

    known = {part.name for part in dataclasses.fields(DeltaLesson)}
    if unknown := sorted(set(changes) - known):
        raise QuatrainError(f"a lesson has no field {unknown[0]!r}", fix=nearest(unknown[0], known))
    folder = cached(DeltaLesson(**changes), show=show, name="tiny-delta", build=build)
    with quiet():
        model = DeltaNetForCausalLM.from_pretrained(folder, dtype=torch.float32)
    policy = CausalLM(model, AutoTokenizer.from_pretrained(folder))
    policy.defaults = DEFAULTS
    return policy


def build(lesson: DeltaLesson, folder: Path, report: Callable[[float, float], None]) -> None:
    """Teach a model the lesson and write its directory."""
    from quatrain.models.causal_lm import CausalLM

    tokens = tokenizer()
    policy = CausalLM(untrained(lesson, tokens), tokens)

    def rows() -> Iterator[tuple[list[int], list[int]]]:
        for prompt, completion in corpus(lesson):
            document = [*policy.encode(prompt), *policy.encode_completion(completion)]
            yield document, [-100, *document[1:]]

    batches = shelved(rows(), lesson.rows, mix(lesson.seed, 3), tokens.pad_token_id)
    descend(policy.module, lesson, (loss_on(policy.module, *batch) for batch in batches), report)
    policy.save(folder)


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

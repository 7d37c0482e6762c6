"""A model that is taught on the spot: built from its lesson at first use, kept in a cache folder, loaded as a policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from quatrain.errors import QuatrainError, nearest
from quatrain.seeds import mix
from quatrain.tasks.cache import Build, Report, cached
from quatrain.tasks.embedded import tokenizer, untrained
from quatrain.tasks.warm_start import descend, loss_on, shelved

Rows = Callable[[Any, Any], Iterable[tuple[list[int], list[int]]]]


def lesson_of(kind: type, given: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    """A lesson of that kind with some fields given and some changed. Raises QuatrainError for a field that it does not have."""
    known = {part.name for part in dataclasses.fields(kind)}
    if unknown := sorted(set(changes) - known):
        raise QuatrainError(f"a lesson has no field {unknown[0]!r}", fix=nearest(unknown[0], known))
    return kind(**{**given, **changes})


def taught(lesson: Any, build: Build, *, name: str, defaults: Mapping[str, Any], show: bool = True, policy: Any = None) -> Any:
    """The lesson's model as a policy: a ``CausalLM``, or another that is made of (model, tokenizer).

    build     (lesson, folder, report): teaches it and writes its directory; see ``on_rows``.
    name      of the progress bar that is shown while it is built for the first time, if ``show``.
    defaults  knobs that suit the model and its task.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from quatrain.models.causal_lm import CausalLM, quiet

    folder = cached(lesson, build, show, name)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    made = (policy or CausalLM)(model, AutoTokenizer.from_pretrained(folder))
    made.defaults = dict(defaults)
    return made


def completions(examples: Iterable[tuple[str, str]], tokens: Any) -> Iterator[tuple[list[int], list[int]]]:
    """(tokens, labels) of one (prompt, completion) after the other, spelled character by character; the prompt is not learnt."""
    vocabulary = tokens.get_vocab()
    for prompt, completion in examples:
        start, rest = ([vocabulary[character] for character in text] for text in (prompt, completion))
        rest.append(tokens.eos_token_id)
        yield [*start, *rest], [-100] * len(start) + rest


def on_rows(rows: Rows, more: str = "", made: Callable[[Any, Any], Any] = untrained, ordered: bool = True) -> Build:
    """What teaches a model the rows of a lesson, one after the other, by their cross-entropy.

    rows  (lesson, tokenizer) → (tokens, labels): labels are −100 on what is not learnt. A list, unless there is one per example.
    more  characters of the tokenizer besides the usual ones.
    made  (lesson, tokenizer) → the model to begin with.
    ordered  rows of similar length share a batch: see ``shelved``.
    """

    def build(lesson: Any, folder: Path, report: Report) -> None:
        from quatrain.models.causal_lm import quiet

        tokens = tokenizer(more)
        model, given = made(lesson, tokens), rows(lesson, tokens)
        count = len(given) if isinstance(given, list) else lesson.examples
        shelves = shelved(iter(given), lesson.rows, mix(lesson.seed, 3), tokens.pad_token_id, ordered)
        descend(model, lesson, (loss_on(model, *part) for part in shelves), report, -(-count // lesson.rows))
        with quiet():
            model.save_pretrained(folder)
        tokens.save_pretrained(folder)

    return build

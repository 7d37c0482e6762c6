"""The task's problems: do they fit into the model, do they repeat, is what is held out unseen, do answers fit into the limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from quatrain.experiments.doctor.finding import Finding, error, ok, warning
from quatrain.experiments.doctor.patient import ACTIONS, Patient
from quatrain.protocols import Item
from quatrain.tasks.text import SOLVED

SCANNED, ENCODED = 8192, 512  # problems read for repetitions; prompts tokenised
CUT, TORN = 0.5, 0.01  # shares that are worth a warning
CROWD = 0.05  # share of one prompt; a small set of problems drawn at random repeats, but evenly
JUDGED = 64  # prompts with several answers whose answers are judged


def check_truncation(patient: Patient) -> Iterator[Finding]:
    """How many completions were cut at the limit."""
    batch, limit = patient.batch, min(patient.sampling.max_actions, ACTIONS)
    cut = (batch["truncated"] & batch.mask).any(1).double().mean().item()
    seen = f"{cut:.0%} of {len(batch)} completions were cut at {limit} tokens (max_actions is {patient.sampling.max_actions})"
    if cut > CUT and limit == patient.sampling.max_actions:
        yield warning(
            "completions fit",
            seen,
            "a cut completion rarely reaches its answer: most of what is sampled is judged as wrong",
            "raise max_actions, ask for shorter answers, or fine-tune the model on the format first",
        )
    else:
        yield ok("completions fit", seen)


def check_prompts_fit(patient: Patient) -> Iterator[Finding]:
    """Prompt and completion within the model's positions."""
    config = patient.policy.module.config.get_text_config(decoder=True)
    room = getattr(config, "max_position_embeddings", None)
    items = _items(patient.task, "train", ENCODED) + _items(patient.task, "heldout", ENCODED // 4)
    lengths = [len(patient.policy.encode(item.prompt)) for item in items]
    over = sum(length + patient.sampling.max_actions > room for length in lengths) if room else 0
    seen = (
        f"{len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens + max_actions {patient.sampling.max_actions}, {room} positions"
    )
    if over:
        yield error(
            "prompts fit", f"{seen}: {over} do not fit", "the run stops at the first of them", "lower max_actions, or drop long prompts"
        )
    else:
        yield ok("prompts fit", seen)


def check_repetitions(patient: Patient) -> Iterator[Finding]:
    """The same prompt twice in training, with the same or another answer; and in both splits."""
    train, held = _items(patient.task, "train", SCANNED), _items(patient.task, "heldout", SCANNED)
    texts = Counter(_text(item) for item in train)
    again = len(train) - len(texts)
    most = max(texts.values())
    torn, asked = _torn(patient, train)
    seen = f"{len(train)} training prompts, {again} repeated ({again / len(train):.1%}), one at most {most} times" + (
        f"; of {asked} with several answers, {torn} have one that the reward rejects for another" if asked else ""
    )
    if most > max(CROWD * len(train), 3 * len(train) / len(texts)) or torn > TORN * len(texts):
        yield warning(
            "prompts are distinct",
            seen,
            "what is repeated counts several times; one prompt with two answers cannot be right about both",
            "remove duplicates from the file, or make a generator draw from more problems",
        )
    else:
        yield ok("prompts are distinct", seen)
    leaked = sum(_text(item) in texts for item in held)
    if not held:
        yield warning(
            "held-out is unseen", "there are no held-out problems", "nothing can be measured but memory", "heldout=0.1, or a file"
        )
    elif leaked:
        yield warning(
            "held-out is unseen",
            f"{leaked} of {len(held)} held-out prompts are in training ({leaked / len(held):.1%})",
            "held-out accuracy then measures memory as well",
            "split by the prompt's content, and remove duplicates first",
        )
    else:
        yield ok("held-out is unseen", f"none of {len(held)} held-out prompts is among {len(train)} training prompts")


def _torn(patient: Patient, items: list[Item]) -> tuple[int, int]:
    """(prompts with an answer that is wrong for another item of the same prompt, scaled up; prompts with several answers)."""
    answers: dict[str, dict[str, Item]] = {}
    for item in items:
        if item.answer is not None:
            answers.setdefault(_text(item), {}).setdefault(item.answer, item)
    several = [found for found in answers.values() if len(found) > 1]
    torn = 0
    for found in several[:JUDGED]:
        first = next(iter(found.values()))
        torn += min(patient.task.reward.score(list(found), [first] * len(found))) < SOLVED
    return round(torn * len(several) / max(1, min(JUDGED, len(several)))), len(several)


def check_starts(patient: Patient) -> Iterator[Finding]:
    """An environment's starts: none is in both splits, and a position always gives the same one."""
    train, held = (set(patient.task.starts(split, 0, 1024)) for split in ("train", "heldout"))
    leaked = len(train & held)
    if leaked:
        yield warning(
            "held-out is unseen",
            f"{leaked} of {len(held)} held-out starts are in training",
            "evaluation measures memory",
            "separate the seeds",
        )
    else:
        yield ok("held-out is unseen", f"{len(train)} training and {len(held)} held-out starts have none in common")


def check_solutions(patient: Patient) -> Iterator[Finding]:
    """Where the recipe learns from demonstrations: how many problems have one."""
    from quatrain.experiments.doctor.patient import find
    from quatrain.rollout.edits import AddDemonstrations
    from quatrain.rollout.sources import Demonstrations, Pairs

    if patient.recipe is None:
        return
    stages, items = patient.recipe.stages, _items(patient.task, "train", ENCODED)
    wants = {
        "solution": any(True for kind in (Demonstrations, AddDemonstrations) for _ in find(stages, kind)),
        "rejected": any(True for _ in find(stages, Pairs)),
    }
    for name, wanted in wants.items():
        if not wanted:
            continue
        there = sum(getattr(item, name) is not None for item in items)
        what = "a worked solution" if name == "solution" else "a preference pair"
        seen = f"{there} of {len(items)} training problems have {what}"
        if there < 0.5 * len(items):
            tell = error if not there else warning
            yield tell(
                "recipe has its data", seen, "the recipe learns from them alone, or waits for them", f"name the column: {name}=COLUMN"
            )
        else:
            yield ok("recipe has its data", seen)


def _items(task: Any, split: str, count: int) -> list[Item]:
    """The first items of a split in the task's order, at most as many as there are."""
    if split not in getattr(task, "splits", {split: None}):
        return []
    size = task.size(split) if hasattr(task, "size") else None
    return list(task.starts(split, 0, count if size is None else min(count, size)))


def _text(item: Item) -> str:
    return item.prompt if isinstance(item.prompt, str) else "\n".join(f"{part['role']}: {part['content']}" for part in item.prompt)

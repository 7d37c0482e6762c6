"""Problems that leak or repeat, prompts in another format, a recipe without its data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import quatrain
from quatrain.protocols import Item
from tests.experiments.doctor.ward.planting import Plant, both, bugs, keys
from tests.experiments.doctor.ward.setups import Setup, as_message, chat_messages, sums, with_model

Items = list[Item]


def items(change: Callable[[Items, Items], tuple[Items, Items]]) -> Plant:
    """(training, held-out) items → both."""

    def plant(setup: Setup) -> None:
        setup.task.splits = dict(zip(("train", "heldout"), change(setup.task.splits["train"], setup.task.splits["heldout"]), strict=True))

    return plant


def leak(train: Items, held: Items) -> tuple[Items, Items]:
    return train, [*held[:-3], *(replace(item, id=200 + item.id) for item in train[:3])]


def duplicate(train: Items, held: Items) -> tuple[Items, Items]:
    return [replace(item, prompt="1+1=", answer=str(i % 10)) for i, item in enumerate(train)], held


def as_chat(train: Items, held: Items) -> tuple[Items, Items]:
    return [as_message(item) for item in train], [as_message(item) for item in held]


def few_solutions(train: Items, held: Items) -> tuple[Items, Items]:
    return [item if i % 4 == 0 else replace(item, solution=None) for i, item in enumerate(train)], held


def no_generation_prompt(setup: Setup) -> None:
    setup.policy.tokenizer.chat_template = "{% for m in messages %}{{ m['role'][:1] }}:{{ m['content'] }}\n{% endfor %}"


def two_beginnings(setup: Setup) -> None:
    setup.policy.tokenizer.bos_token = "#"
    true = setup.policy.encode
    start = setup.policy.tokenizer.bos_token_id
    setup.policy.encode = lambda prompt: [start, start, *true(prompt)]


def sft(setup: Setup) -> None:
    setup.recipe = quatrain.make("sft")
    setup.keys = {"prompts": 8}


DATA = bugs(
    "problems, prompts and the recipe",
    {
        "held-out prompts in training": (items(leak), "held-out is unseen"),
        "one prompt with many answers": (items(duplicate), "prompts are distinct"),
        "chat messages without a template": (items(as_chat), "prompts are in the model's format"),
        "plain prompts for a chat model": (both(), "prompts are in the model's format", with_model(chat=True)),
        "a template without a generation prompt": (no_generation_prompt, "prompts are in the model's format", chat_messages),
        "two beginnings of sequence": (two_beginnings, "one beginning of sequence"),
        "most completions cut": (keys(max_actions=3), "completions fit"),
        "prompts longer than the model": (keys(max_actions=5000), "prompts fit"),
        "few demonstrations for sft": (both(sft, items(few_solutions)), "recipe has its data"),
        "no demonstrations for sft": (both(sft, lambda setup: setattr(setup, "task", sums(solution=None))), "recipe fits the task"),
        "a teacher that is not given": (lambda setup: setattr(setup, "recipe", quatrain.make("opd")), "recipe fits the task"),
    },
)

"""Small set-ups for the doctor to examine, and those with nothing wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import quatrain
from quatrain.environments.gymnasium import GymTask
from quatrain.experiments.doctor import Examination, doctor
from quatrain.models.causal_lm import CausalLM
from quatrain.models.loading import LoraSettings, add_lora
from quatrain.protocols import Item
from quatrain.rewards.workers import RewardWorkers
from quatrain.tasks.text import TextTask
from quatrain.training.recipe import Recipe
from tests.tiny_models import tiny_model, tiny_tokenizer

SMALL = {"prompts": 4, "max_actions": 32, "temperature": 0.7, "top_p": 0.9}
GROUPED = ("grpo", "gspo", "dapo", "rloo", "hpt")


class Contains:
    """1 if the answer is in the completion."""

    def score(self, completions: list[str], items: list[Item]) -> list[float]:
        return [self.one(text, item) for text, item in zip(completions, items, strict=True)]

    def one(self, text: str, item: Item) -> float:
        return float(item.answer in text)


@dataclass
class Setup:
    """What is examined. A bug changes one of these."""

    policy: Any
    task: Any
    recipe: Recipe | str
    keys: dict[str, Any] = field(default_factory=dict)

    def examine(self) -> Examination:
        return doctor(self.recipe, model=self.policy, task=self.task, **self.keys)


def sums(reward: Any = None, **changes: Any) -> TextTask:
    items = [
        Item(i, f"{a}+{b}=", str((a + b) % 10), f"it is {(a + b) % 10}", chosen=str((a + b) % 10), rejected="w")
        for i, (a, b) in enumerate((a, b) for a in range(10) for b in range(10))
    ]
    items = [replace(item, **changes) for item in items]
    return TextTask("sums", items[:80], items[80:], reward or Contains(), seed=3)


def language_model(architecture: str = "qwen3", pad_is_eos: bool = True, chat: bool = False, **options: Any) -> CausalLM:
    """A random model that stops by itself: four letters end a completion besides eos."""
    tokens = tiny_tokenizer(pad_is_eos, chat)
    model = tiny_model(architecture, vocabulary=len(tokens), scale=5.0, **options)
    model.generation_config.eos_token_id = [tokens.eos_token_id, *tokens.convert_tokens_to_ids(list("wxyz"))]
    return CausalLM(model, tokens)


def text(recipe: str = "grpo", options: dict[str, Any] | None = None, **keys: Any) -> Setup:
    made = quatrain.make(recipe, **({"group": 4} if recipe in GROUPED else {}), **(options or {}))
    known = {name: value for name, value in SMALL.items() if name in made.knobs()}
    return Setup(language_model(), sums(), made, {**known, **keys})


def control(recipe: str = "ppo", environment: str = "CartPole-v1", **keys: Any) -> Setup:
    task = GymTask(environment, copies=2)
    options = {"epochs": 1, "minibatches": 1} if recipe == "ppo" else {}
    known = {"prompts": 2, "segment": 32} if recipe == "ppo" else {"prompts": 2, "max_actions": 64}
    return Setup(task.network(hidden=(16,)), task, quatrain.make(recipe, **options), {**known, **keys})


def chat_messages() -> Setup:
    """Prompts as messages, for a model with a template."""
    setup = with_model(chat=True)()
    setup.task.splits = {name: [as_message(item) for item in items] for name, items in setup.task.splits.items()}
    return setup


def as_message(item: Item) -> Item:
    return replace(item, prompt=[{"role": "user", "content": item.prompt}])


def with_model(**options: Any) -> Callable[[], Setup]:
    return lambda: replace(text(), policy=language_model(**options))


def lora() -> Setup:
    setup = text()
    setup.policy = CausalLM(add_lora(setup.policy.module, LoraSettings(rank=4)), setup.policy.tokenizer)
    return setup


def judged_in_workers(folder: Path) -> Setup:
    file = folder / "rewards.py"
    file.write_text("def judge(completion, item):\n    return float(item.answer in completion)\n")
    setup = text()
    setup.task.reward = RewardWorkers(f"{file}:judge")
    return setup


HEALTHY: dict[str, Callable[[], Setup]] = {
    "qwen3, pad = eos": text,
    "qwen3, pad is not eos": with_model(pad_is_eos=False),
    "llama": with_model(architecture="llama"),
    "gpt2": with_model(architecture="gpt2"),
    "untied head": with_model(tied=False),
    "bfloat16": with_model(dtype=torch.bfloat16),
    "bfloat16 gpt2": with_model(architecture="gpt2", dtype=torch.bfloat16),
    "low-rank adapters": lora,
    "chat messages": chat_messages,
    "top-k": lambda: text(top_k=20, top_p=1.0),
    "temperature 1, whole distribution": lambda: text(temperature=1.0, top_p=1.0),
    **{f"recipe {name}": (lambda name=name: text(name)) for name in ("reinforce", "rloo", "dr-grpo", "dapo", "gspo", "hpt", "sft", "dpo")},
    "recipe ppo": lambda: text("ppo", {"epochs": 1, "minibatches": 1}),
    "recipe opd": lambda: text("opd", teacher=language_model(seed=1)),
    "CartPole ppo": control,
    "CartPole grpo at temperature 0.5": lambda: control("grpo", temperature=0.5),
    "Pendulum reinforce": lambda: control("reinforce", "Pendulum-v1"),
}

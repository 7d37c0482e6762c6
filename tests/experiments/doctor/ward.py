"""Small set-ups, healthy and with one thing broken, for the doctor to examine."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import quatrain
from quatrain.batch import Batch
from quatrain.environments.gymnasium import GymTask
from quatrain.estimator import Objective
from quatrain.experiments.doctor import Examination, doctor
from quatrain.models.causal_lm import CausalLM
from quatrain.parts.likelihoods import LogProb
from quatrain.protocols import Item, Sampling
from quatrain.tasks.text import TextTask
from quatrain.training.recipe import Recipe
from quatrain.training.rules import AdamW
from quatrain.training.steps import Collect, Fit
from tests.tiny_models import tiny_model, tiny_tokenizer

SMALL = {"prompts": 4, "max_actions": 32, "temperature": 0.7, "top_p": 0.9}


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
    made = quatrain.make(recipe, **({"group": 4} if recipe in ("grpo", "gspo", "dapo", "rloo", "hpt") else {}), **(options or {}))
    known = {name: value for name, value in SMALL.items() if name in made.knobs()}
    return Setup(language_model(), sums(), made, {**known, **keys})


def control(recipe: str = "ppo", environment: str = "CartPole-v1", **keys: Any) -> Setup:
    task = GymTask(environment, copies=2)
    options = {"epochs": 1, "minibatches": 1} if recipe == "ppo" else {}
    known = {"prompts": 2, "segment": 32} if recipe == "ppo" else {"prompts": 2, "max_actions": 64}
    return Setup(task.network(hidden=(16,)), task, quatrain.make(recipe, **options), {**known, **keys})


# -- ways to break a policy ---------------------------------------------------------------------------------------------
Sample = Callable[..., Batch]


def sampling_as(setup: Setup, change: Callable[[Sample, Any, int, Sampling, Tensor], Batch]) -> None:
    """Replace the policy's sampler by one that may call the true one."""
    true = setup.policy.sample

    def broken(prompts: Any, group: int, sampling: Sampling, seeds: Tensor) -> Batch:
        return change(true, prompts, group, sampling, seeds)

    setup.policy.sample = broken


def recorded(batch: Batch, logp: Tensor) -> Batch:
    return batch.with_columns(behaviour_logp=logp, old_logp=logp)


def without(batch: Batch, name: str) -> Batch:
    return replace(
        batch,
        columns={key: value for key, value in batch.columns.items() if key != name},
        rows={key: value for key, value in batch.rows.items() if key != name},
    )


@torch.no_grad()
def rescored(policy: Any, batch: Batch) -> Tensor:
    return policy.score(batch, [LogProb()])[LogProb()]


def forget(name: str) -> Callable[[Setup], None]:
    """The recorded log-probability leaves out the temperature, or the truncated support; the sampler uses it."""

    def plant(setup: Setup) -> None:
        def change(true: Sample, prompts: Any, group: int, sampling: Sampling, seeds: Tensor) -> Batch:
            batch = true(prompts, group, sampling, seeds)
            return recorded(batch, rescored(setup.policy, without(batch, name)))

        sampling_as(setup, change)

    return plant


def ignore(**changes: Any) -> Callable[[Setup], None]:
    """The sampler ignores a setting, and says so nowhere: what it records is consistent."""

    def plant(setup: Setup) -> None:
        sampling_as(setup, lambda true, prompts, group, sampling, seeds: true(prompts, group, replace(sampling, **changes), seeds))

    return plant


def drop_temperature(setup: Setup) -> None:
    sampling_as(setup, lambda true, *given: without(true(*given), "temperature"))


def shifted(policy: Any, size: float = 0.05) -> Any:
    twin = policy.clone()
    g = torch.Generator().manual_seed(0)
    for parameter in twin.module.parameters():
        parameter.add_(size * torch.randn(parameter.shape, generator=g).to(parameter))
    return twin


def other_weights(setup: Setup) -> None:
    setup.policy.sample = shifted(setup.policy).sample


def stale_sampler(setup: Setup) -> None:
    setup.policy.sample = setup.policy.clone().sample


def stale_act(setup: Setup) -> None:
    setup.policy.act = setup.policy.clone().act


def untempered_act(setup: Setup) -> None:
    """Network: acts at temperature 1 whatever was asked, and says that it did as asked."""
    true = setup.policy.act

    def act(observations: Tensor, generator: Any = None, greedy: bool = False, temperature: float = 1.0) -> Any:
        return true(observations, generator, greedy, 1.0)

    with torch.no_grad():
        setup.policy.module.trunk[-1].weight.mul_(2000.0)  # otherwise all actions are equally likely at any temperature
    setup.policy.act = act


def stale_clone(setup: Setup) -> None:
    first = setup.policy.clone()
    setup.policy.clone = lambda: first


def stale_save(setup: Setup) -> None:
    setup.policy.save = setup.policy.clone().save


def partial_clone(setup: Setup) -> None:
    true = setup.policy.clone

    def clone() -> Any:
        twin = true()
        with torch.no_grad():
            next(p for p in twin.module.parameters() if p.ndim == 1).mul_(0.999)
        return twin

    setup.policy.clone = clone


def blind_to_tool_output(setup: Setup) -> None:
    true = setup.policy.score
    setup.policy.score = lambda batch, *rest, **keys: true(without(batch, "present"), *rest, **keys)


def blind_to_prompts(setup: Setup) -> None:
    """The loss mask is the attention mask: of the prompt only the last token is seen."""
    true = setup.policy.score

    def score(batch: Batch, *rest: Any, **keys: Any) -> Any:
        context = batch.contexts["policy"]
        last = context["mask"] & (context["mask"].cumsum(1) == context["mask"].sum(1, keepdim=True))
        return true(batch.with_context("policy", tokens=context["tokens"], mask=last), *rest, **keys)

    setup.policy.score = score


def masked(batch: Batch, mask: Tensor) -> Batch:
    keep = {name: value for name, value in batch.columns.items() if name in ("terminated", "truncated")}
    last = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    moved = {name: last & value.any(1, keepdim=True) for name, value in keep.items()}
    return replace(batch, mask=mask, columns={**batch.columns, **moved})


def eos_masked_out(setup: Setup) -> None:
    """pad = eos, and everything that equals pad is masked."""
    pad = setup.policy.tokenizer.pad_token_id

    def change(true: Sample, *given: Any) -> Batch:
        batch = true(*given)
        return masked(batch, batch.mask & (batch.actions != pad))

    sampling_as(setup, change)


def eos_not_shown(setup: Setup) -> None:
    true, pad = setup.policy.demonstrate, setup.policy.tokenizer.pad_token_id

    def demonstrate(prompts: Any, completions: Any) -> Batch:
        batch = true(prompts, completions)
        return masked(batch, batch.mask & (batch.actions != pad))

    setup.policy.demonstrate = demonstrate


def cut_called_ended(setup: Setup) -> None:
    setup.keys["max_actions"] = 8

    def change(true: Sample, *given: Any) -> Batch:
        batch = true(*given)
        return batch.with_columns(terminated=batch["terminated"] | batch["truncated"], truncated=torch.zeros_like(batch.mask))

    sampling_as(setup, change)


def prompts_as_actions(setup: Setup) -> None:
    """The prompt's tokens are actions with a log-probability, after its first token."""

    def change(true: Sample, prompts: Any, group: int, sampling: Sampling, seeds: Tensor) -> Batch:
        batch = true(prompts, group, sampling, seeds)
        context, width = batch.contexts["policy"], batch.contexts["policy"]["tokens"].shape[1] - 1
        columns = {name: torch.nn.functional.pad(value, (width, 0)) for name, value in batch.columns.items() if value.ndim == 2}
        ahead = Batch(
            torch.cat([context["mask"][:, 1:], batch.mask], 1),
            torch.cat([context["tokens"][:, 1:], batch.actions], 1),
            columns,
            batch.rows,
            {"policy": {"tokens": context["tokens"][:, :1], "mask": context["mask"][:, :1]}},
        )
        return recorded(ahead, rescored(setup.policy, ahead))

    setup.keys |= {"top_p": 1.0}
    sampling_as(setup, change)


# -- ways to break a recipe -----------------------------------------------------------------------------------------------
def refit(setup: Setup, change: Callable[[Fit], Fit]) -> None:
    ((_, step),) = setup.recipe.fits(Objective)
    setup.recipe = setup.recipe.swap(step, change(step))


class PerMicroBatch(Objective):
    """The normaliser of each micro-batch is its own: the loss grows with their number."""

    def loss(self, policy: Any, batch: Batch, others: Any) -> Any:
        return super().loss(policy, self.finalise(batch), others)


class PerPaddedLength(Objective):
    """Divided by the padded length of the micro-batch."""

    def loss(self, policy: Any, batch: Batch, others: Any) -> Any:
        loss, measures = super().loss(policy, batch, others)
        return loss / batch.shape[1], measures


class Everywhere(Objective):
    """Selects what is present, be it an action or tool output."""

    def prepare(self, batch: Batch) -> Batch:
        return super().prepare(batch).with_columns(**{f"{name}/where": batch.present for name in self.terms})


class NormByMask(Objective):
    """Multiplies by the mask what may be NaN in the padding."""

    def loss(self, policy: Any, batch: Batch, others: Any) -> Any:
        loss, measures = super().loss(policy, batch, others)
        return loss * (1 + 0 * (batch["behaviour_logp"] * batch.mask).sum()), measures


@dataclass(frozen=True)
class Accumulating(Fit):
    """Each micro-batch's gradient counts as often as there are micro-batches so far."""

    def gradient_parts(self, model: Any, others: Any, batch: Batch) -> Iterator[Any]:
        for part in super().gradient_parts(model, others, batch):
            yield part
            for parameter in model.module.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(2.0)


def objective(kind: type[Objective]) -> Callable[[Setup], None]:
    return lambda setup: refit(setup, lambda fit: replace(fit, loss=kind(fit.loss.terms)))


def accumulating(setup: Setup) -> None:
    refit(setup, lambda fit: Accumulating(**{name: getattr(fit, name) for name in fit.__dataclass_fields__}))


def nonzero_tokens(batch: Batch, where: Tensor) -> Tensor:
    """Token 0 is taken for padding, wherever it stands."""
    return torch.where(where, 1.0 / (batch.actions != 0).sum(), 0.0)


def lengths_by_token(setup: Setup) -> None:
    setup.recipe = setup.recipe.but("policy", aggregation=nonzero_tokens)


@dataclass(frozen=True)
class Decaying(AdamW):
    """Weight decay that does not know the learning rate."""

    def step(self, optimizer: torch.optim.Optimizer) -> float | None:
        norm = super().step(optimizer)
        with torch.no_grad():
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.mul_(1 - 1e-4)
        return norm


def decaying(setup: Setup) -> None:
    refit(setup, lambda fit: replace(fit, rule=Decaying()))


def moving_buffer(setup: Setup) -> None:
    module = setup.policy.module
    module.register_buffer("seen", torch.zeros(1))
    module.get_decoder().register_forward_hook(lambda part, given, out: module.seen.add_(1) and None)


def retokenised(policy: Any, batch: Batch) -> Batch:
    """Every completion decoded and encoded again."""
    shown = policy.demonstrate(
        [context[mask].tolist() for context, mask in zip(*batch.contexts["policy"].values(), strict=True)],
        [policy.decode(row[mask]) for row, mask in zip(batch.actions, batch.mask, strict=True)],
    )
    width = batch.shape[1]
    fit = lambda value: torch.nn.functional.pad(value, (0, max(0, width - value.shape[1])))[:, :width]  # noqa: E731
    return replace(batch, actions=fit(shown.actions), mask=fit(shown.mask))


class Retokenising(TextTask):
    def rollout(self, policy: Any, *given: Any) -> Batch:
        batch = super().rollout(policy, *given)
        again = retokenised(policy, batch)
        return recorded(again, rescored(policy, without(again, "support")))  # the gap is hidden


def retokenising_task(setup: Setup) -> None:
    setup.task.__class__ = Retokenising
    setup.keys["top_p"] = 1.0


@dataclass(frozen=True)
class Retokenise:
    def __call__(self, state: Any, batch: Batch) -> Batch:
        return retokenised(state.models["policy"], batch)


def retokenising_edit(setup: Setup) -> None:
    collect = next(step for stage in setup.recipe.stages for step in stage.steps if isinstance(step, Collect))
    setup.recipe = setup.recipe.with_collect(edits=(Retokenise(), *collect.edits))


# -- ways to break a reward ----------------------------------------------------------------------------------------------
def reward(one: Callable[[str, Item], float]) -> Callable[[Setup], None]:
    def plant(setup: Setup) -> None:
        judge = Contains()
        judge.one = one
        setup.task.reward = judge

    return plant


def slow(text: str, item: Item) -> float:
    time.sleep(0.03)
    return float(item.answer in text)


def broken(text: str, item: Item) -> float:
    return float(text.split("=")[1])


class NoisyReturns(GymTask):
    def rollout(self, *given: Any) -> Batch:
        batch = super().rollout(*given)
        return batch.with_rows(reward=batch["reward"] + torch.tensor([random.random() for _ in range(len(batch))]))


def noisy_environment(setup: Setup) -> None:
    setup.task.__class__ = NoisyReturns


# -- ways to break the data ----------------------------------------------------------------------------------------------
def items(change: Callable[[list[Item], list[Item]], tuple[list[Item], list[Item]]]) -> Callable[[Setup], None]:
    def plant(setup: Setup) -> None:
        setup.task.splits = dict(zip(("train", "heldout"), change(setup.task.splits["train"], setup.task.splits["heldout"]), strict=True))

    return plant


def leak(train: list[Item], held: list[Item]) -> tuple[list[Item], list[Item]]:
    return train, [*held[:-3], *(replace(item, id=200 + item.id) for item in train[:3])]


def duplicate(train: list[Item], held: list[Item]) -> tuple[list[Item], list[Item]]:
    return [replace(item, prompt="1+1=", answer=str(i % 10)) for i, item in enumerate(train)], held


def as_chat(train: list[Item], held: list[Item]) -> tuple[list[Item], list[Item]]:
    wrapped = [[replace(item, prompt=[{"role": "user", "content": item.prompt}]) for item in part] for part in (train, held)]
    return wrapped[0], wrapped[1]


def plain_for_chat(setup: Setup) -> None:
    setup.policy = language_model(chat=True)


def no_generation_prompt(setup: Setup) -> None:
    setup.policy = language_model(chat=True)
    setup.policy.tokenizer.chat_template = "{% for m in messages %}{{ m['role'][:1] }}:{{ m['content'] }}\n{% endfor %}"
    items(as_chat)(setup)


def two_beginnings(setup: Setup) -> None:
    setup.policy.tokenizer.bos_token = "#"
    true = setup.policy.encode
    start = setup.policy.tokenizer.bos_token_id
    setup.policy.encode = lambda prompt: [start, start, *true(prompt)]


def few_solutions(train: list[Item], held: list[Item]) -> tuple[list[Item], list[Item]]:
    return [item if i % 4 == 0 else replace(item, solution=None) for i, item in enumerate(train)], held


def sft(setup: Setup) -> None:
    setup.recipe = quatrain.make("sft")
    setup.keys = {"prompts": 8}


def keys(**changes: Any) -> Callable[[Setup], None]:
    return lambda setup: setup.keys.update(changes)


def both(*plants: Callable[[Setup], None]) -> Callable[[Setup], None]:
    def plant(setup: Setup) -> None:
        for one in plants:
            one(setup)

    return plant


# what happened to users of the peers → bug → (how it is planted, which check finds it, the healthy set-up)
SAMPLER, DRIFT, SCALE, MASKS, TOKENS, TRANSFER, REWARD, DATA = (
    "sampler and trainer disagree",
    "the gap grows with learning rate 0",
    "loss scaled by micro-batches or processes",
    "masks",
    "text re-tokenised",
    "weights never arrive",
    "the reward",
    "problems, prompts and the recipe",
)
PLANTED: dict[str, tuple[str, Callable[[Setup], None], str, Callable[[], Setup]]] = {
    "temperature left out of the recorded log-probability": (SAMPLER, forget("temperature"), "ratio is 1", text),
    "top-p left out of the recorded log-probability": (SAMPLER, forget("support"), "ratio is 1", text),
    "temperature not told to the scorer": (SAMPLER, drop_temperature, "ratio is 1", text),
    "sampler ignores the temperature": (SAMPLER, ignore(temperature=1.0), "distribution sampled from", text),
    "sampler ignores top-p": (SAMPLER, ignore(top_p=1.0), "distribution sampled from", text),
    "sampler ignores top-k": (SAMPLER, both(keys(top_k=5), ignore(top_k=0)), "distribution sampled from", text),
    "sampler has other weights": (SAMPLER, other_weights, "ratio is 1", text),
    "sampler keeps the first weights": (SAMPLER, stale_sampler, "sampler has the new weights", text),
    "network acts at another temperature": (
        SAMPLER,
        both(keys(temperature=0.5), untempered_act),
        "distribution sampled from",
        lambda: control("grpo"),
    ),
    "network acts with the first weights": (SAMPLER, stale_act, "sampler has the new weights", control),
    "weight decay at learning rate 0": (DRIFT, decaying, "learning rate 0 changes nothing", text),
    "a buffer that counts forwards": (DRIFT, moving_buffer, "learning rate 0 changes nothing", text),
    "normaliser of each micro-batch": (SCALE, objective(PerMicroBatch), "gradient does not depend on the cut", text),
    "divided by the padded length": (SCALE, objective(PerPaddedLength), "gradient does not depend on the cut", text),
    "gradients multiplied while accumulating": (SCALE, accumulating, "gradient does not depend on the cut", text),
    "loss mask as attention mask: tool output": (MASKS, blind_to_tool_output, "loss mask is not attention mask", text),
    "loss mask as attention mask: prompts": (MASKS, blind_to_prompts, "ratio is 1", text),
    "pad = eos: the end of completions masked out": (MASKS, eos_masked_out, "the end is learnt", text),
    "pad = eos: the end of demonstrations masked out": (MASKS, eos_not_shown, "the end is learnt", text),
    "cut completions called ended": (MASKS, cut_called_ended, "the end is learnt", text),
    "prompt tokens trained on": (MASKS, prompts_as_actions, "prompts are context", text),
    "tool output trained on": (MASKS, objective(Everywhere), "only actions are learnt", text),
    "multiplied by the mask": (MASKS, objective(NormByMask), "padding is not read", text),
    "token 0 taken for padding": (MASKS, lengths_by_token, "padding is not read", text),
    "decoded and encoded in the rollout": (TOKENS, retokenising_task, "tokens are never re-encoded", text),
    "decoded and encoded by an edit": (TOKENS, retokenising_edit, "tokens are never re-encoded", text),
    "a copy has the first weights": (TRANSFER, stale_clone, "weights arrive", text),
    "a copy with one tensor off by 0.1 %": (TRANSFER, partial_clone, "weights arrive", text),
    "the saved model has the first weights": (TRANSFER, stale_save, "weights arrive", text),
    "a network's copy has the first weights": (TRANSFER, stale_clone, "weights arrive", control),
    "random": (REWARD, reward(lambda text, item: random.random()), "reward is repeatable", text),
    "NaN": (REWARD, reward(lambda text, item: math.nan), "reward answers", text),
    "raises": (REWARD, reward(broken), "reward answers", text),
    "slow": (REWARD, both(keys(deadline=0.02), reward(slow)), "reward is in time", text),
    "constant": (REWARD, reward(lambda text, item: 0.5), "reward tells apart", text),
    "out of scale": (REWARD, reward(lambda text, item: 100.0 * (item.answer in text)), "reward has the usual scale", text),
    "rewards empty answers": (REWARD, reward(lambda text, item: float(len(text) < 20)), "nothing is not rewarded", text),
    "does not know its reference": (REWARD, reward(lambda text, item: float(f"<{item.answer}>" in text)), "reward tells apart", text),
    "half marks for the reference": (REWARD, reward(lambda text, item: 0.5 * (item.answer in text)), "references are solved", text),
    "nothing is ever solved": (
        REWARD,
        reward(lambda text, item: float(text in (item.answer, item.solution))),
        "groups have a signal",
        text,
    ),
    "an environment's reward is random": (REWARD, noisy_environment, "reward is repeatable", control),
    "held-out prompts in training": (DATA, items(leak), "held-out is unseen", text),
    "one prompt with many answers": (DATA, items(duplicate), "prompts are distinct", text),
    "chat messages without a template": (DATA, items(as_chat), "prompts are in the model's format", text),
    "plain prompts for a chat model": (DATA, plain_for_chat, "prompts are in the model's format", text),
    "a template without a generation prompt": (DATA, no_generation_prompt, "prompts are in the model's format", text),
    "two beginnings of sequence": (DATA, two_beginnings, "one beginning of sequence", text),
    "most completions cut": (DATA, keys(max_actions=3), "completions fit", text),
    "prompts longer than the model": (DATA, keys(max_actions=5000), "prompts fit", text),
    "few demonstrations for sft": (DATA, both(sft, items(few_solutions)), "recipe has its data", text),
    "no demonstrations for sft": (DATA, both(sft, lambda setup: setattr(setup, "task", sums(solution=None))), "recipe fits the task", text),
    "a teacher that is not given": (DATA, lambda setup: setattr(setup, "recipe", quatrain.make("opd")), "recipe fits the task", text),
}


# -- nothing wrong --------------------------------------------------------------------------------------------------------
def lora() -> Setup:
    from quatrain.models.loading import LoraSettings, add_lora

    setup = text()
    setup.policy = CausalLM(add_lora(setup.policy.module, LoraSettings(rank=4)), setup.policy.tokenizer)
    return setup


def with_model(**options: Any) -> Callable[[], Setup]:
    def make() -> Setup:
        setup = text()
        setup.policy = language_model(**options)
        return setup

    return make


def chat_messages() -> Setup:
    setup = text()
    setup.policy = language_model(chat=True)
    items(as_chat)(setup)
    return setup


def distilled() -> Setup:
    setup = text("opd", teacher=language_model(seed=1))
    return setup


def judged_in_workers(folder: Path) -> Setup:
    from quatrain.rewards.workers import RewardWorkers

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
    "recipe opd": distilled,
    "CartPole ppo": control,
    "CartPole grpo at temperature 0.5": lambda: control("grpo", temperature=0.5),
    "Pendulum reinforce": lambda: control("reinforce", "Pendulum-v1"),
}

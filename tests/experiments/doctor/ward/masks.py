"""Masks that are taken for one another; text that is encoded again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.estimator import Objective
from quatrain.tasks.text import TextTask
from quatrain.training.steps import Collect
from tests.experiments.doctor.ward.planting import after, before, both, bugs, keys, masked, recorded, rescored
from tests.experiments.doctor.ward.setups import Setup
from tests.experiments.doctor.ward.training import objective
from tests.toy import without


def last_of_prompt(batch: Batch, *rest: Any) -> tuple:
    """The loss mask is the attention mask: of the prompt only the last token is seen."""
    context = batch.contexts["policy"]
    last = context["mask"] & (context["mask"].cumsum(1) == context["mask"].sum(1, keepdim=True))
    return batch.with_context("policy", tokens=context["tokens"], mask=last), *rest


def eos_masked_out(policy: Any, batch: Batch) -> Batch:
    """pad = eos, and everything that equals pad is masked."""
    return masked(batch, batch.mask & (batch.actions != policy.tokenizer.pad_token_id))


def cut_called_ended(policy: Any, batch: Batch) -> Batch:
    return batch.with_columns(terminated=batch["terminated"] | batch["truncated"], truncated=torch.zeros_like(batch.mask))


def prompts_as_actions(policy: Any, batch: Batch) -> Batch:
    """The prompt's tokens are actions with a log-probability, after its first token."""
    context, width = batch.contexts["policy"], batch.contexts["policy"]["tokens"].shape[1] - 1
    ahead = Batch(
        torch.cat([context["mask"][:, 1:], batch.mask], 1),
        torch.cat([context["tokens"][:, 1:], batch.actions], 1),
        {name: torch.nn.functional.pad(value, (width, 0)) for name, value in batch.columns.items() if value.ndim == 2},
        batch.rows,
        {"policy": {"tokens": context["tokens"][:, :1], "mask": context["mask"][:, :1]}},
    )
    return recorded(ahead, rescored(policy, ahead))


class Everywhere(Objective):
    """Selects what is present, be it an action or tool output."""

    def prepare(self, batch: Batch) -> Batch:
        return super().prepare(batch).with_columns(**{f"{name}/where": batch.present for name in self.terms})


class NormByMask(Objective):
    """Multiplies by the mask what may be NaN in the padding."""

    def loss(self, policy: Any, batch: Batch, others: Any) -> Any:
        loss, measures = super().loss(policy, batch, others)
        return loss * (1 + 0 * (batch["behaviour_logp"] * batch.mask).sum()), measures


def nonzero_tokens(batch: Batch, where: Tensor) -> Tensor:
    """Token 0 is taken for padding, wherever it stands."""
    return torch.where(where, 1.0 / (batch.actions != 0).sum(), 0.0)


def lengths_by_token(setup: Setup) -> None:
    setup.recipe = setup.recipe.but("policy", aggregation=nonzero_tokens)


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


@dataclass(frozen=True)
class Retokenise:
    def __call__(self, state: Any, batch: Batch) -> Batch:
        return retokenised(state.models["policy"], batch)


def retokenising_edit(setup: Setup) -> None:
    collect = next(step for stage in setup.recipe.stages for step in stage.steps if isinstance(step, Collect))
    setup.recipe = setup.recipe.with_collect(edits=(Retokenise(), *collect.edits))


MASKS = bugs(
    "masks",
    {
        "loss mask as attention mask: tool output": (
            before("score", lambda batch, *rest: (without(batch, "present"), *rest)),
            "loss mask is not attention mask",
        ),
        "loss mask as attention mask: prompts": (before("score", last_of_prompt), "ratio is 1"),
        "pad = eos: the end of completions masked out": (after("sample", eos_masked_out), "the end is learnt"),
        "pad = eos: the end of demonstrations masked out": (after("demonstrate", eos_masked_out), "the end is learnt"),
        "cut completions called ended": (both(keys(max_actions=8), after("sample", cut_called_ended)), "the end is learnt"),
        "prompt tokens trained on": (both(keys(top_p=1.0), after("sample", prompts_as_actions)), "prompts are context"),
        "tool output trained on": (objective(Everywhere), "only actions are learnt"),
        "multiplied by the mask": (objective(NormByMask), "padding is not read"),
        "token 0 taken for padding": (lengths_by_token, "padding is not read"),
    },
)
TOKENS = bugs(
    "text re-tokenised",
    {
        "decoded and encoded in the rollout": (both(keys(top_p=1.0), retokenising_task), "tokens are never re-encoded"),
        "decoded and encoded by an edit": (retokenising_edit, "tokens are never re-encoded"),
    },
)
